//! The RAM mapping.

use std::arch::asm;
use std::ptr;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::{CodeMap, Gpa, PAGE_MASK, PAGE_SIZE};

/// Byte offset into the RAM mapping; valid for the [`GuestRam`] that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RamOffset(pub u64);

/// One run of guest-physical addresses backed by RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRegion {
    /// First guest-physical address; page aligned.
    pub base: Gpa,
    /// Length in bytes; a multiple of the page.
    pub size_bytes: u64,
    /// Where the region starts in the mapping.
    pub offset: RamOffset,
}

/// Why guest memory could not be set up or reached.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// A region is empty, unaligned, or overlaps another.
    #[error("RAM region at {base} of {size_bytes} bytes is empty, unaligned or overlaps another")]
    BadRegion {
        /// Where the region was to start.
        base: Gpa,
        /// How long it was to be.
        size_bytes: u64,
    },
    /// The host did not give the memory.
    #[error("cannot map {size_bytes} bytes of guest memory: {source}; give the VM less memory")]
    Map {
        /// Bytes asked for.
        size_bytes: u64,
        /// The host's error.
        source: std::io::Error,
    },
    /// An access touched addresses that are not RAM.
    #[error("guest-physical range {gpa} of {len} bytes is not all RAM")]
    NotRam {
        /// First address of the access.
        gpa: Gpa,
        /// Bytes asked for.
        len: usize,
    },
}

/// All RAM of a VM.
///
/// Shared by vCPUs and devices through `Arc`; every access is a single host access of its width where
/// the host can do that (naturally aligned accesses are single-copy atomic, SDM Vol 3 8.1.1).
pub struct GuestRam {
    host: *mut u8,
    size: u64,
    regions: Vec<RamRegion>,
    code: CodeMap,
}

// SAFETY: the mapping is plain memory that outlives `self`; all access goes through raw pointers with
// volatile or atomic operations, never through references, so sharing between threads is sound.
unsafe impl Send for GuestRam {}
// SAFETY: see above; the rest is shareable by itself.
unsafe impl Sync for GuestRam {}

/// Bytes in a line: what the host's processor accesses atomically whatever the alignment.
const LINE: u64 = 64;

/// An integer that guest RAM can hold: `u8`, `u16`, `u32`, `u64`.
pub trait Word: Copy + 'static {
    /// Width in bytes.
    const SIZE: u64;
    /// Zero-extends to 64 bits.
    fn to_u64(self) -> u64;
    /// Truncates from 64 bits.
    fn from_u64(v: u64) -> Self;
    /// Compare and exchange at a pointer of any alignment.
    ///
    /// # Safety
    /// `p` points to as many bytes of a live mapping as the word has, all in one line of 64 bytes.
    #[doc(hidden)]
    unsafe fn compare_exchange(p: *mut Self, old: Self, new: Self) -> Result<Self, Self>;
}

macro_rules! word {
    ($t:ty, $a:ty, $unaligned:expr) => {
        impl Word for $t {
            const SIZE: u64 = size_of::<$t>() as u64;
            #[inline(always)]
            fn to_u64(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn from_u64(v: u64) -> Self {
                v as $t
            }
            // SAFETY: the contract is the trait's.
            #[inline(always)]
            unsafe fn compare_exchange(p: *mut Self, old: Self, new: Self) -> Result<Self, Self> {
                const ORDER: Ordering = Ordering::SeqCst;
                if p.is_aligned() {
                    // SAFETY: the caller passes a pointer into the live mapping, and it is aligned.
                    return unsafe { <$a>::from_ptr(p) }.compare_exchange(old, new, ORDER, ORDER);
                }
                let found = $unaligned(p, old, new);
                if found == old { Ok(old) } else { Err(found) }
            }
        }
    };
}

/// A locked compare-and-exchange at any alignment: the language's atomics want it natural, the processor does
/// not (SDM Vol 3 9.1.2.2).
macro_rules! unaligned {
    ($t:ty, $instruction:literal) => {
        |p: *mut $t, old: $t, new: $t| {
            let found: $t;
            // SAFETY: used by `compare_exchange` only, whose caller passes a pointer to mapped bytes.
            unsafe {
                asm!($instruction, p = in(reg) p, new = in(reg) new, inout("rax") old => found,
                    options(nostack));
            }
            found
        }
    };
}
word!(u8, AtomicU8, |_, _, _| unreachable!("bytes are aligned"));
word!(
    u16,
    AtomicU16,
    unaligned!(u16, "lock cmpxchg word ptr [{p}], {new:x}")
);
word!(
    u32,
    AtomicU32,
    unaligned!(u32, "lock cmpxchg dword ptr [{p}], {new:e}")
);
word!(
    u64,
    AtomicU64,
    unaligned!(u64, "lock cmpxchg qword ptr [{p}], {new:r}")
);

/// What was at `p`, which is now `new` if it was `old`.
///
/// # Safety
/// `p` is a multiple of 16 and points to 16 mapped bytes; the host has CMPXCHG16B.
unsafe fn compare_exchange_16(p: *mut u128, old: u128, new: u128) -> u128 {
    let (mut low, mut high) = (old as u64, (old >> 64) as u64);
    // SAFETY: the caller's promise is what the instruction asks for. RBX, which the compiler keeps for itself, is
    // given back.
    unsafe {
        asm!(
            "xchg rbx, {new_low}",
            "lock cmpxchg16b xmmword ptr [rdi]",
            "mov rbx, {new_low}",
            new_low = inout(reg) new as u64 => _,
            in("rcx") (new >> 64) as u64,
            in("rdi") p,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

#[repr(C, packed)]
struct Unaligned<T>(T);

impl GuestRam {
    /// Maps RAM for the given `(base, size_bytes)` regions, zero-filled.
    ///
    /// # Errors
    /// [`RamError::BadRegion`] for an empty, unaligned or overlapping region, [`RamError::Map`] when the
    /// host refuses the memory.
    pub fn new(layout: &[(Gpa, u64)]) -> Result<Self, RamError> {
        let mut regions = Vec::with_capacity(layout.len());
        let mut size = 0u64;
        for &(base, size_bytes) in layout {
            let bad = RamError::BadRegion { base, size_bytes };
            let end = base.0.checked_add(size_bytes);
            let overlaps = regions.iter().any(|r: &RamRegion| {
                base.0 < r.base.0 + r.size_bytes && end.is_none_or(|e| r.base.0 < e)
            });
            if size_bytes == 0
                || (base.0 | size_bytes) & PAGE_MASK != 0
                || end.is_none()
                || overlaps
            {
                return Err(bad);
            }
            regions.push(RamRegion {
                base,
                size_bytes,
                offset: RamOffset(size),
            });
            size = size.checked_add(size_bytes).ok_or(bad)?;
        }
        if size == 0 {
            return Err(RamError::BadRegion {
                base: Gpa(0),
                size_bytes: 0,
            });
        }
        let map_error = |source| RamError::Map {
            size_bytes: size,
            source,
        };
        let len =
            usize::try_from(size).map_err(|_| map_error(std::io::ErrorKind::OutOfMemory.into()))?;
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches nothing of ours.
        let p = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if p == libc::MAP_FAILED {
            return Err(map_error(std::io::Error::last_os_error()));
        }
        // SAFETY: advice on our own mapping; huge pages spare host TLB misses. Failure is harmless.
        unsafe { libc::madvise(p, len, libc::MADV_HUGEPAGE) };
        Ok(Self {
            host: p.cast(),
            size,
            regions,
            code: CodeMap::new(size / PAGE_SIZE),
        })
    }

    /// Which of its bytes are decoded.
    #[inline(always)]
    pub fn code(&self) -> &CodeMap {
        &self.code
    }

    /// The regions, in the order given.
    pub fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    /// All RAM in bytes; valid offsets are below it.
    #[inline(always)]
    pub fn size_bytes(&self) -> u64 {
        self.size
    }

    /// Host address of the mapping, for engines that hand it to the kernel (KVM memory slots).
    pub fn host_base(&self) -> *mut u8 {
        self.host
    }

    /// Where `gpa` lies in the mapping, when `len` bytes from it are RAM of one region.
    #[inline]
    pub fn find(&self, gpa: Gpa, len: u64) -> Option<RamOffset> {
        self.regions.iter().find_map(|r| {
            let into = gpa.0.checked_sub(r.base.0)?;
            (into < r.size_bytes && len <= r.size_bytes - into)
                .then_some(RamOffset(r.offset.0 + into))
        })
    }

    /// The guest-physical address at an offset of the mapping.
    pub fn gpa_at(&self, offset: RamOffset) -> Option<Gpa> {
        self.regions.iter().find_map(|r| {
            let into = offset.0.checked_sub(r.offset.0)?;
            (into < r.size_bytes).then_some(Gpa(r.base.0 + into))
        })
    }

    #[inline(always)]
    fn at<T: Word>(&self, offset: RamOffset) -> *mut T {
        assert!(offset.0 <= self.size - T::SIZE, "offset outside guest RAM");
        // SAFETY: `offset + T::SIZE <= size` was just checked (RAM is never smaller than a page), so the
        // pointer stays inside the mapping.
        unsafe { self.host.add(offset.0 as usize).cast() }
    }

    /// Loads one word; any alignment. Panics if `offset` does not come from this RAM.
    #[inline(always)]
    pub fn load<T: Word>(&self, offset: RamOffset) -> T {
        // SAFETY: `at` yields a pointer to `T::SIZE` mapped bytes; the packed wrapper allows any alignment.
        unsafe { ptr::read_volatile(self.at::<T>(offset).cast::<Unaligned<T>>()).0 }
    }

    /// Stores one word; any alignment. Panics if `offset` does not come from this RAM.
    #[inline(always)]
    pub fn store<T: Word>(&self, offset: RamOffset, value: T) {
        // SAFETY: as for `load`.
        unsafe {
            ptr::write_volatile(
                self.at::<T>(offset).cast::<Unaligned<T>>(),
                Unaligned(value),
            )
        }
    }

    /// Whether an access of `size` bytes lies in one line of 64 bytes, so that it can be atomic.
    #[inline(always)]
    #[must_use]
    pub fn in_one_line(offset: RamOffset, size: u64) -> bool {
        (offset.0 & (LINE - 1)) + size <= LINE
    }

    /// Atomically replaces `old` by `new`; `Err` holds what was there instead. Panics unless the word lies
    /// [in one line](GuestRam::in_one_line).
    #[inline(always)]
    pub fn compare_exchange<T: Word>(&self, offset: RamOffset, old: T, new: T) -> Result<T, T> {
        assert!(
            Self::in_one_line(offset, T::SIZE),
            "atomic access across lines"
        );
        // SAFETY: in the mapping (checked by `at`) and in one line (just checked; the mapping is page aligned).
        unsafe { T::compare_exchange(self.at::<T>(offset), old, new) }
    }

    /// The same for 16 bytes at a multiple of 16; panics elsewhere. `None` on a host without CMPXCHG16B.
    #[inline]
    pub fn compare_exchange_16(
        &self,
        offset: RamOffset,
        old: u128,
        new: u128,
    ) -> Option<Result<u128, u128>> {
        assert!(offset.0.is_multiple_of(16), "unaligned atomic access");
        assert!(offset.0 <= self.size - 16, "offset outside guest RAM");
        if !std::is_x86_feature_detected!("cmpxchg16b") {
            return None;
        }
        // SAFETY: the host has the instruction, and the aligned range was just checked to be mapped.
        let found =
            unsafe { compare_exchange_16(self.host.add(offset.0 as usize).cast(), old, new) };
        Some(if found == old { Ok(old) } else { Err(found) })
    }

    /// Copies guest bytes out. Panics if the range does not lie in RAM.
    #[inline]
    pub fn read_at(&self, offset: RamOffset, data: &mut [u8]) {
        let len = data.len() as u64;
        assert!(
            len <= self.size && offset.0 <= self.size - len,
            "range outside guest RAM"
        );
        // SAFETY: the source range was just checked; `data` is ours and cannot overlap the mapping.
        unsafe {
            ptr::copy_nonoverlapping(
                self.host.add(offset.0 as usize),
                data.as_mut_ptr(),
                data.len(),
            )
        }
    }

    /// Copies bytes into the guest. Panics if the range does not lie in RAM.
    #[inline]
    pub fn write_at(&self, offset: RamOffset, data: &[u8]) {
        let len = data.len() as u64;
        assert!(
            len <= self.size && offset.0 <= self.size - len,
            "range outside guest RAM"
        );
        // SAFETY: as for `read_at`, in the other direction.
        unsafe {
            ptr::copy_nonoverlapping(data.as_ptr(), self.host.add(offset.0 as usize), data.len())
        }
    }

    /// Copies `len` bytes from `from` to `to` inside RAM as if byte by byte upwards would give the same
    /// result as `memmove`; the caller splits overlapping forward copies. Panics outside RAM.
    #[inline]
    pub fn copy_within(&self, from: RamOffset, to: RamOffset, len: u64) {
        assert!(
            len <= self.size && from.0 <= self.size - len && to.0 <= self.size - len,
            "range outside guest RAM"
        );
        // SAFETY: both ranges were just checked; `copy` allows overlap.
        unsafe {
            ptr::copy(
                self.host.add(from.0 as usize),
                self.host.add(to.0 as usize),
                len as usize,
            );
        }
    }

    /// Fills `len` bytes. Panics outside RAM.
    #[inline]
    pub fn fill(&self, offset: RamOffset, value: u8, len: u64) {
        assert!(
            len <= self.size && offset.0 <= self.size - len,
            "range outside guest RAM"
        );
        // SAFETY: the range was just checked.
        unsafe { ptr::write_bytes(self.host.add(offset.0 as usize), value, len as usize) }
    }

    /// Copies bytes from a guest-physical address.
    ///
    /// # Errors
    /// [`RamError::NotRam`] when the range is not RAM of one region.
    pub fn read(&self, gpa: Gpa, data: &mut [u8]) -> Result<(), RamError> {
        let at = self.find(gpa, data.len() as u64).ok_or(RamError::NotRam {
            gpa,
            len: data.len(),
        })?;
        self.read_at(at, data);
        Ok(())
    }

    /// Copies bytes to a guest-physical address. If they are decoded somewhere, whoever did is told.
    ///
    /// # Errors
    /// [`RamError::NotRam`] when the range is not RAM of one region.
    pub fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), RamError> {
        let at = self.find(gpa, data.len() as u64).ok_or(RamError::NotRam {
            gpa,
            len: data.len(),
        })?;
        self.write_at(at, data);
        self.code.stored(at, data.len() as u64, None);
        Ok(())
    }

    /// Pages of RAM (4 KByte each).
    pub fn page_count(&self) -> u64 {
        self.size / PAGE_SIZE
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; no pointer into it outlives `self`.
        unsafe { libc::munmap(self.host.cast(), self.size as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram() -> GuestRam {
        GuestRam::new(&[(Gpa(0), 0x4000), (Gpa(0x1_0000_0000), 0x2000)]).expect("six pages")
    }

    #[test]
    fn finds_only_what_lies_in_one_region() {
        let r = ram();
        assert_eq!(r.find(Gpa(0x3fff), 1), Some(RamOffset(0x3fff)));
        assert_eq!(r.find(Gpa(0x3fff), 2), None);
        assert_eq!(r.find(Gpa(0x1_0000_1000), 0x1000), Some(RamOffset(0x5000)));
        assert_eq!(r.find(Gpa(u64::MAX), 8), None);
        assert_eq!(r.gpa_at(RamOffset(0x4010)), Some(Gpa(0x1_0000_0010)));
        assert_eq!(r.gpa_at(RamOffset(0x6000)), None);
    }

    #[test]
    fn words_are_little_endian_at_any_alignment() {
        let r = ram();
        r.store(RamOffset(3), 0x1122_3344_5566_7788u64);
        assert_eq!(r.load::<u8>(RamOffset(3)), 0x88);
        assert_eq!(r.load::<u32>(RamOffset(7)), 0x1122_3344);
        assert_eq!(
            r.compare_exchange(RamOffset(8), r.load::<u16>(RamOffset(8)), 7),
            Ok(0x2233)
        );
    }

    /// Two threads count at every alignment a line has for them, beside a neighbour that must not change.
    #[test]
    fn compare_and_exchange_is_atomic_at_any_alignment() {
        const COUNT: u32 = 20_000;
        fn add(r: &GuestRam, at: RamOffset) {
            let mut old = r.load::<u32>(at);
            while let Err(now) = r.compare_exchange(at, old, old + 1) {
                old = now;
            }
        }
        let r = ram();
        for within in [0, 1, 2, 3, 57, 60] {
            let at = RamOffset(0x1000 + within);
            r.store(RamOffset(at.0 + 4), 0xabu8);
            std::thread::scope(|s| {
                for _ in 0..2 {
                    s.spawn(|| (0..COUNT).for_each(|_| add(&r, at)));
                }
            });
            assert_eq!(r.load::<u32>(at), 2 * COUNT, "at {within}");
            assert_eq!(r.load::<u8>(RamOffset(at.0 + 4)), 0xab);
            r.fill(RamOffset(0x1000), 0, 0x80);
        }
        let (old, new) = (5u128 << 100 | 1, 6u128 << 90 | 2);
        r.write_at(RamOffset(0x20), &old.to_le_bytes());
        if let Some(done) = r.compare_exchange_16(RamOffset(0x20), old, new) {
            assert_eq!(done, Ok(old));
            assert_eq!(
                r.compare_exchange_16(RamOffset(0x20), old, 0),
                Some(Err(new))
            );
        }
    }

    #[test]
    #[should_panic(expected = "across lines")]
    fn no_atomic_access_crosses_a_line() {
        let _ = ram().compare_exchange::<u32>(RamOffset(0x103d), 0, 1);
    }

    #[test]
    #[should_panic(expected = "outside guest RAM")]
    fn a_load_past_the_end_is_refused() {
        ram().load::<u64>(RamOffset(0x5ff9));
    }

    #[test]
    fn bad_layouts_are_refused() {
        assert!(GuestRam::new(&[]).is_err());
        assert!(GuestRam::new(&[(Gpa(1), 0x1000)]).is_err());
        assert!(GuestRam::new(&[(Gpa(0), 0x2000), (Gpa(0x1000), 0x1000)]).is_err());
        assert!(GuestRam::new(&[(Gpa(u64::MAX - 0xfff), 0x2000)]).is_err());
    }
}
