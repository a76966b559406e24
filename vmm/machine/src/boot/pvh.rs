//! The x86/HVM direct boot ABI, "PVH" (Xen docs/misc/pvh.pandoc, public/arch-x86/hvm/start_info.h).
//!
//! An ELF file with a note that names a 32-bit entry point. EBX points to `hvm_start_info`, which has the
//! modules (the first of them is Linux's initial RAM disk), the command line, the memory map and the RSDP.

use guestmem::GuestRam;
use vcpu::VcpuState;

use super::elf::Elf;
use super::place::Room;
use super::program::{self, Information, Loaded, Placement};
use super::{BootError, BootRequest, ImageError, Kernel, entry};
use crate::memory::{MapEntry, MemoryMap};

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// The version that brought the memory map.
const VERSION: u32 = 1;

/// Loads everything and returns the boot processor's first state.
pub(super) fn load(
    ram: &GuestRam,
    map: &MemoryMap,
    boot: &BootRequest<'_>,
    kernel: &Kernel<'_>,
) -> Result<VcpuState, BootError> {
    let elf = Elf::parse(kernel.bytes).map_err(|e| BootError::image(kernel.name, e))?;
    let entry = elf
        .pvh_entry
        .ok_or_else(|| BootError::image(kernel.name, ImageError::NoEntry))?;
    let mut room = Room::new(map);
    program::load_segments(ram, &mut room, kernel, &elf.segments)?;
    program::check_entry(entry, &elf.segments).map_err(|e| BootError::image(kernel.name, e))?;
    let modules = program::load_modules(ram, &mut room, boot, Placement::High)?;
    let start_info = tell(
        &mut Information::new(ram, &mut room),
        boot,
        &modules,
        &map.e820(),
    )?;
    Ok(entry::pvh(ram, entry, start_info)?)
}

/// Writes `hvm_start_info` and what it points to; gives its address.
fn tell(
    to: &mut Information<'_>,
    boot: &BootRequest<'_>,
    modules: &[Loaded],
    map: &[MapEntry],
) -> Result<u32, BootError> {
    let mut list = Vec::new();
    for module in modules {
        let text = to.put_text(&module.text)?;
        // hvm_modlist_entry: paddr, size, cmdline_paddr, reserved.
        for field in [module.start.0, module.size_bytes, u64::from(text), 0] {
            list.extend(field.to_le_bytes());
        }
    }
    let list = match modules {
        [] => 0,
        [..] => to.put(&list)?,
    };
    let mut memory = Vec::new();
    for e in map {
        // hvm_memmap_table_entry: addr, size, type, reserved.
        memory.extend(e.base.0.to_le_bytes());
        memory.extend(e.size_bytes.to_le_bytes());
        memory.extend((e.kind as u32).to_le_bytes());
        memory.extend([0; 4]);
    }
    let memory = to.put(&memory)?;
    let cmdline = to.put_text(boot.cmdline)?;

    let mut info = Vec::new();
    let flags = 0u32;
    for field in [MAGIC, VERSION, flags, modules.len() as u32] {
        info.extend(field.to_le_bytes());
    }
    for pointer in [
        u64::from(list),
        u64::from(cmdline),
        boot.rsdp.0,
        u64::from(memory),
    ] {
        info.extend(pointer.to_le_bytes());
    }
    info.extend((map.len() as u32).to_le_bytes());
    info.extend([0; 4]);
    to.put(&info)
}

#[cfg(test)]
mod tests;
