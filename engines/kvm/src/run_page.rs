//! The page a vCPU shares with the kernel, `struct kvm_run` (Linux, Documentation/virt/kvm/api.rst, section 5).

use std::mem::offset_of;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use vcpu::EngineError;

use crate::host_errno;

/// Where the exit information starts.
const EXIT_UNION: usize = offset_of!(kvm_run, __bindgen_anon_1);

/// A mapping of the page; lives as long as anyone may want to interrupt the vCPU.
pub(crate) struct RunPage {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: plain shared memory. All but `immediate_exit` is touched only by the thread that owns the vCPU (it
// holds `&mut` of it); `immediate_exit` is accessed atomically.
unsafe impl Send for RunPage {}
// SAFETY: see above.
unsafe impl Sync for RunPage {}

/// A port access the guest makes: `count` items of `size_bytes`, whose data lies at `data` in the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortExit {
    /// The guest writes.
    pub out: bool,
    /// Bytes of one item: 1, 2 or 4.
    pub size_bytes: u8,
    pub port: u16,
    pub count: u32,
    data: usize,
}

/// A memory access the guest makes outside RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MmioExit {
    pub gpa: u64,
    pub data: [u8; 8],
    pub len: usize,
    pub write: bool,
}

impl RunPage {
    /// Maps the page of vCPU descriptor `fd`, `len` bytes (KVM_GET_VCPU_MMAP_SIZE).
    pub(crate) fn map(fd: RawFd, len: usize) -> Result<Self, EngineError> {
        assert!(
            len >= size_of::<kvm_run>(),
            "the kernel's kvm_run is shorter than its header says"
        );
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours.
        let p = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        if p == libc::MAP_FAILED {
            return Err(host_errno("mapping the vCPU's run page"));
        }
        let base = NonNull::new(p.cast()).expect("mmap does not map page 0 unasked");
        Ok(Self { base, len })
    }

    /// Makes KVM_RUN return at once with EINTR, or lets it run.
    pub(crate) fn set_immediate_exit(&self, on: bool) {
        let offset = offset_of!(kvm_run, immediate_exit);
        // SAFETY: inside the mapping (checked in `map`), and every access to this byte from our side is
        // atomic.
        let byte = unsafe { AtomicU8::from_ptr(self.base.as_ptr().add(offset)) };
        byte.store(u8::from(on), Ordering::SeqCst);
    }

    /// Reads a value of the exit information at `offset` from the start of the union.
    fn exit<T: Copy>(&self, offset: usize) -> T {
        assert!(EXIT_UNION + offset + size_of::<T>() <= self.len);
        // SAFETY: inside the mapping, as just checked; any bytes are a value of the integer and array types
        // this is used with. The kernel does not write while the vCPU is out of KVM_RUN.
        unsafe { ptr::read_unaligned(self.base.as_ptr().add(EXIT_UNION + offset).cast()) }
    }

    /// KVM_EXIT_*.
    pub(crate) fn exit_reason(&self) -> u32 {
        // SAFETY: a field of the header, inside the mapping.
        unsafe {
            let p = self.base.as_ptr().add(offset_of!(kvm_run, exit_reason));
            ptr::read_volatile(p.cast())
        }
    }

    /// Exit information as words: hardware reason, sub-error, counts; what they are depends on the reason.
    pub(crate) fn word(&self, n: usize) -> u32 {
        self.exit(n * 4)
    }

    /// Exit information as 64-bit words.
    pub(crate) fn quad(&self, n: usize) -> u64 {
        self.exit(n * 8)
    }

    /// Exit information as bytes from `offset`.
    pub(crate) fn bytes<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.exit(offset)
    }

    /// The access of KVM_EXIT_IO; `None` when it makes no sense.
    pub(crate) fn port_exit(&self) -> Option<PortExit> {
        let [direction, size_bytes] = self.exit::<[u8; 2]>(0);
        let port: u16 = self.exit(2);
        let count: u32 = self.exit(4);
        let data = usize::try_from(self.exit::<u64>(8)).ok()?;
        let bytes = (count as usize).checked_mul(usize::from(size_bytes))?;
        let end = data.checked_add(bytes)?;
        (matches!(size_bytes, 1 | 2 | 4) && end <= self.len).then_some(PortExit {
            out: u32::from(direction) == kvm_bindings::KVM_EXIT_IO_OUT,
            size_bytes,
            port,
            count,
            data,
        })
    }

    fn port_data(&self, access: &PortExit, n: u32) -> *mut u8 {
        let size = usize::from(access.size_bytes);
        let at = access.data + n as usize * size;
        assert!(n < access.count && at + size <= self.len);
        // SAFETY: inside the mapping, as just checked.
        unsafe { self.base.as_ptr().add(at) }
    }

    /// Item `n` the guest writes, zero-extended.
    pub(crate) fn port_item(&self, access: &PortExit, n: u32) -> u32 {
        let mut value = [0; 4];
        let p = self.port_data(access, n);
        // SAFETY: `port_data` gives a pointer to `size_bytes` (at most 4) mapped bytes.
        unsafe { ptr::copy_nonoverlapping(p, value.as_mut_ptr(), access.size_bytes.into()) }
        u32::from_le_bytes(value)
    }

    /// Puts item `n` the guest reads.
    pub(crate) fn set_port_item(&self, access: &PortExit, n: u32, value: u32) {
        let p = self.port_data(access, n);
        let value = value.to_le_bytes();
        // SAFETY: as for `port_item`, in the other direction.
        unsafe { ptr::copy_nonoverlapping(value.as_ptr(), p, access.size_bytes.into()) }
    }

    /// The access of KVM_EXIT_MMIO; `None` when its length makes no sense.
    pub(crate) fn mmio_exit(&self) -> Option<MmioExit> {
        let len: u32 = self.exit(16);
        (1..=8).contains(&len).then(|| MmioExit {
            gpa: self.exit(0),
            data: self.exit(8),
            len: len as usize,
            write: self.exit::<u8>(20) != 0,
        })
    }

    /// Puts the data of a read.
    pub(crate) fn set_mmio_data(&self, data: [u8; 8]) {
        // SAFETY: the exit union is inside the mapping; `data` of the MMIO exit is 8 bytes at offset 8.
        unsafe { ptr::write_unaligned(self.base.as_ptr().add(EXIT_UNION + 8).cast(), data) }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `map` mapped; no pointer into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// KVM_RUN: `Ok` when the page holds an exit.
///
/// # Errors
/// What the kernel said; EINTR and EAGAIN are part of normal life.
pub(crate) fn kvm_run(fd: &impl AsRawFd) -> Result<(), i32> {
    // _IO(KVMIO, 0x80)
    const KVM_RUN: libc::c_ulong = 0xae80;
    // SAFETY: the descriptor is a vCPU's; what the kernel writes is the run page and the guest's RAM, both of
    // which are accessed as memory that others write.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), KVM_RUN as _, 0) };
    if r == 0 {
        return Ok(());
    }
    Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::FromRawFd;

    use super::*;

    const PAGES: usize = 0x3000;

    /// A run page over a file, with `exit` as exit information.
    fn page(exit: &[u8]) -> RunPage {
        // SAFETY: a C string literal and no flags.
        let fd = unsafe { libc::memfd_create(c"run-page".as_ptr(), 0) };
        assert!(fd >= 0, "a memory file");
        // SAFETY: the descriptor was just made and has no other owner.
        let mut file = unsafe { std::fs::File::from_raw_fd(fd) };
        let mut bytes = vec![0; PAGES];
        bytes[EXIT_UNION..EXIT_UNION + exit.len()].copy_from_slice(exit);
        file.write_all(&bytes).expect("memory");
        RunPage::map(file.as_raw_fd(), PAGES).expect("a mapping")
    }

    fn port_exit(direction: u8, size: u8, port: u16, count: u32, at: u64) -> Vec<u8> {
        let mut exit = vec![direction, size];
        exit.extend(port.to_le_bytes());
        exit.extend(count.to_le_bytes());
        exit.extend(at.to_le_bytes());
        exit
    }

    #[test]
    fn port_data_are_read_and_written_by_item() {
        let p = page(&port_exit(0, 2, 0x1f0, 3, 0x1000));
        let access = p.port_exit().expect("it makes sense");
        assert!(!access.out);
        assert_eq!((access.port, access.count), (0x1f0, 3));
        p.set_port_item(&access, 1, 0x1234_5678);
        let items: Vec<_> = (0..3).map(|n| p.port_item(&access, n)).collect();
        assert_eq!(items, [0, 0x5678, 0]);
    }

    #[test]
    fn impossible_accesses_are_refused() {
        for (size, count, at) in [
            (0, 1, 0x1000),
            (3, 1, 0x1000),
            (8, 1, 0x1000),
            (4, 0x801, 0x1000),
            (1, 1, PAGES as u64),
            (1, 1, u64::MAX),
            (4, u32::MAX, 0),
        ] {
            let p = page(&port_exit(1, size, 0, count, at));
            assert_eq!(p.port_exit(), None, "{count} of {size} at {at:#x}");
        }
        for len in [0u32, 9, u32::MAX] {
            let mut exit = vec![0; 24];
            exit[16..20].copy_from_slice(&len.to_le_bytes());
            assert_eq!(page(&exit).mmio_exit(), None, "{len} bytes");
        }
    }
}
