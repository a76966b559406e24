//! The LDT of this program (modify_ldt(2)).

use std::io;

use crate::case::Layout;
use crate::segments::{Kind, first_entry, ldt};

/// `struct user_desc` of Linux.
#[repr(C)]
struct UserDescriptor {
    entry_number: u32,
    base: u32,
    limit: u32,
    flags: u32,
}

/// Function number of modify_ldt: write an entry, with all flags.
const WRITE: libc::c_long = 0x11;

/// Installs the segments of `layout`'s worker.
///
/// # Errors
/// When the kernel has no LDT or no 16-bit segments (CONFIG_MODIFY_LDT_SYSCALL, CONFIG_X86_16BIT).
pub fn install(layout: Layout) -> io::Result<()> {
    for (i, segment) in ldt(layout).iter().enumerate() {
        let (contents, read_only) = match segment.kind {
            Kind::Null => continue,
            Kind::Data {
                writable,
                expand_down,
            } => (u32::from(expand_down), !writable),
            Kind::Code { readable } => (2, !readable),
        };
        let granular = segment.limit_field() != segment.limit;
        let descriptor = UserDescriptor {
            entry_number: (first_entry(layout) + i) as u32,
            base: segment.base as u32,
            limit: segment.limit_field(),
            flags: u32::from(segment.big)
                | contents << 1
                | u32::from(read_only) << 3
                | u32::from(granular) << 4
                | u32::from(!segment.present) << 5,
        };
        // SAFETY: the kernel reads the structure of the size given; the segments reach only the slot.
        let result = unsafe {
            libc::syscall(
                libc::SYS_modify_ldt,
                WRITE,
                &descriptor,
                size_of::<UserDescriptor>(),
            )
        };
        // The kernel returns a 32-bit value.
        if result as i32 != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
