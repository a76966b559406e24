//! The RAM mapping.

use std::arch::asm;
use std::ptr;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::legacy::{self, LegacyArea, LegacySwitches};
use crate::{CodeMap, Gpa, PAGE_MASK, PAGE_SIZE};

/// Byte offset into the RAM mapping; valid for the [`GuestRam`] that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RamOffset(pub u64);

/// One run of guest-physical addresses backed by the mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRegion {
    /// First guest-physical address; page aligned.
    pub base: Gpa,
    /// Length in bytes; a multiple of the page.
    pub size_bytes: u64,
    /// Where the region starts in the mapping.
    pub offset: RamOffset,
    /// Whether the guest can write it; not so for ROM.
    pub writable: bool,
}

/// What a VM's memory is made of; all `(base, size_bytes)`.
#[derive(Clone, Debug, Default)]
pub struct MemoryLayout {
    /// RAM.
    pub ram: Vec<(Gpa, u64)>,
    /// ROM: read and executed from, not written by the guest.
    pub roms: Vec<(Gpa, u64)>,
    /// Whether A0000h to FFFFFh is the PC's legacy area, switched by [`GuestRam::set_legacy`]. It needs RAM from
    /// address 0 to 1 MByte; the last ROM is what shows below 1 MByte.
    pub legacy_area: bool,
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
    legacy: Option<LegacyArea>,
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
        Self::with_layout(&MemoryLayout {
            ram: layout.to_vec(),
            ..MemoryLayout::default()
        })
    }

    /// Maps everything `layout` says, zero-filled. A legacy area starts as RAM. The content of a ROM is laid down
    /// with [`Self::write_at`] where [`Self::find`] says.
    ///
    /// # Errors
    /// [`RamError::BadRegion`] for an empty, unaligned or overlapping region or a legacy area without RAM,
    /// [`RamError::Map`] when the host refuses the memory.
    pub fn with_layout(layout: &MemoryLayout) -> Result<Self, RamError> {
        let mut regions = Vec::with_capacity(layout.ram.len() + layout.roms.len());
        let mut size = 0u64;
        let rams = layout.ram.iter().map(|&r| (r, true));
        let roms = layout.roms.iter().map(|&r| (r, false));
        for ((base, size_bytes), writable) in rams.chain(roms) {
            let bad = RamError::BadRegion { base, size_bytes };
            let end = base.0.checked_add(size_bytes - u64::from(size_bytes > 0));
            let overlaps = regions.iter().any(|r: &RamRegion| {
                base.0 <= r.base.0 + (r.size_bytes - 1) && end.is_none_or(|e| r.base.0 <= e)
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
                writable,
            });
            size = size.checked_add(size_bytes).ok_or(bad)?;
        }
        let legacy = match layout.legacy_area {
            true => Some(legacy_area(&regions)?),
            false => None,
        };
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
            legacy,
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

    /// Where `gpa` lies in the mapping for a read or a fetch, when `len` bytes from it are RAM or ROM in one run.
    #[inline]
    pub fn find(&self, gpa: Gpa, len: u64) -> Option<RamOffset> {
        self.locate(gpa, len, false)
    }

    /// The same for a write: ROM is not found. May differ from [`Self::find`] in the legacy area.
    #[inline]
    pub fn find_write(&self, gpa: Gpa, len: u64) -> Option<RamOffset> {
        self.locate(gpa, len, true)
    }

    #[inline]
    fn locate(&self, gpa: Gpa, len: u64, write: bool) -> Option<RamOffset> {
        if let Some(legacy) = &self.legacy
            && gpa.0 < legacy::END
            && gpa.0.saturating_add(len.max(1)) > legacy::START
        {
            return match gpa.0 >= legacy::START {
                true => legacy.find(gpa.0, len, write),
                false => None,
            };
        }
        self.regions.iter().find_map(|r| {
            let into = gpa.0.checked_sub(r.base.0)?;
            let fits = into < r.size_bytes && len <= r.size_bytes - into;
            (fits && (r.writable || !write)).then_some(RamOffset(r.offset.0 + into))
        })
    }

    /// Switches the legacy area; whether that changed anything. Whoever caches translations has to forget those of
    /// the area then. Nothing happens without such an area.
    pub fn set_legacy(&self, switches: LegacySwitches) -> bool {
        self.legacy.as_ref().is_some_and(|l| l.set(switches))
    }

    /// The mapping as the guest sees it now, in runs, for engines that hand it to the kernel. A part of the legacy
    /// area that reads one thing and writes another is listed as what it reads, not writable.
    pub fn runs(&self) -> Vec<RamRegion> {
        let mut runs: Vec<RamRegion> = Vec::new();
        for region in &self.regions {
            let legacy = self.legacy.as_ref().filter(|_| region.base.0 < legacy::END);
            let Some(legacy) = legacy else {
                runs.push(*region);
                continue;
            };
            runs.push(RamRegion {
                size_bytes: legacy::START - region.base.0,
                ..*region
            });
            for stretch in legacy.stretches() {
                let Some(offset) = stretch.read else { continue };
                let next = RamRegion {
                    base: Gpa(stretch.start),
                    size_bytes: LegacyArea::STRETCH_BYTES,
                    offset,
                    writable: stretch.write == stretch.read,
                };
                match runs.last_mut() {
                    Some(last) if continues(last, &next) => last.size_bytes += next.size_bytes,
                    _ => runs.push(next),
                }
            }
            let rest = RamRegion {
                base: Gpa(legacy::END),
                size_bytes: region.size_bytes - legacy::END,
                offset: RamOffset(region.offset.0 + legacy::END),
                writable: true,
            };
            // A run of its own, so that a switch leaves the bulk of memory as it is.
            if rest.size_bytes > 0 {
                runs.push(rest);
            }
        }
        runs
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
        // The sizes instructions have are one access each, or two of eight bytes.
        match data.len() {
            2 => return data.copy_from_slice(&self.load::<u16>(offset).to_le_bytes()),
            4 => return data.copy_from_slice(&self.load::<u32>(offset).to_le_bytes()),
            8 | 16 => {
                for (part, at) in data.chunks_exact_mut(8).zip((offset.0..).step_by(8)) {
                    part.copy_from_slice(&self.load::<u64>(RamOffset(at)).to_le_bytes());
                }
                return;
            }
            _ => {}
        }
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
        // As for `read_at`; and each byte is stored once.
        match *data {
            [a, b] => return self.store(offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => return self.store(offset, u32::from_le_bytes([a, b, c, d])),
            _ if matches!(data.len(), 8 | 16) => {
                for (part, at) in data.chunks_exact(8).zip((offset.0..).step_by(8)) {
                    let word = u64::from_le_bytes(std::array::from_fn(|i| part[i]));
                    self.store(RamOffset(at), word);
                }
                return;
            }
            _ => {}
        }
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
    /// [`RamError::NotRam`] when a part of the range is neither RAM nor ROM.
    pub fn read(&self, gpa: Gpa, data: &mut [u8]) -> Result<(), RamError> {
        let len = data.len();
        if let Some(at) = self.find(gpa, len as u64) {
            self.read_at(at, data);
            return Ok(());
        }
        for (gpa, range) in pages(gpa, len) {
            let at = self.find(gpa, range.len() as u64);
            let at = at.ok_or(RamError::NotRam { gpa, len })?;
            self.read_at(at, &mut data[range]);
        }
        Ok(())
    }

    /// Copies bytes to a guest-physical address. If they are decoded somewhere, whoever did is told.
    ///
    /// # Errors
    /// [`RamError::NotRam`] when a part of the range is not RAM; what is before it may have been written.
    pub fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), RamError> {
        let len = data.len();
        if let Some(at) = self.find_write(gpa, len as u64) {
            self.write_at(at, data);
            self.code.stored(at, len as u64, None);
            return Ok(());
        }
        for (gpa, range) in pages(gpa, len) {
            let at = self.find_write(gpa, range.len() as u64);
            let at = at.ok_or(RamError::NotRam { gpa, len })?;
            self.write_at(at, &data[range.clone()]);
            self.code.stored(at, range.len() as u64, None);
        }
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

/// The legacy area over RAM from address 0, with the last ROM showing.
fn legacy_area(regions: &[RamRegion]) -> Result<LegacyArea, RamError> {
    let ram = regions
        .iter()
        .find(|r| r.writable && r.base == Gpa(0) && r.size_bytes >= legacy::END)
        .ok_or(RamError::BadRegion {
            base: Gpa(0),
            size_bytes: legacy::END,
        })?;
    let rom = regions.iter().rev().find(|r| !r.writable);
    Ok(LegacyArea::new(ram, rom))
}

/// Whether `next` goes on where `last` ends, in addresses, mapping and use.
fn continues(last: &RamRegion, next: &RamRegion) -> bool {
    last.base.0 + last.size_bytes == next.base.0
        && last.offset.0 + last.size_bytes == next.offset.0
        && last.writable == next.writable
}

/// Splits `len` bytes from `gpa` at page borders: address and range of each part.
fn pages(gpa: Gpa, len: usize) -> impl Iterator<Item = (Gpa, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = gpa.offset(done as u64);
        let n = ((PAGE_SIZE - at.page_offset()) as usize).min(len - done);
        let range = done..done + n;
        done += n;
        (n > 0).then_some((at, range))
    })
}

#[cfg(test)]
mod tests;
