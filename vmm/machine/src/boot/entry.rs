//! The boot processor's state at each protocol's entry point.
//!
//! All of them find a GDT with flat segments at the selectors the Linux protocols want: 10h for code, 18h for
//! data. The others may not rely on the GDTR, and are not hurt by a valid one.

use guestmem::{Gpa, GuestRam, RamError};
use vcpu::{DescriptorTable, SegmentRegister, VcpuState};
use x86defs::cr::{cr0, cr4, efer};
use x86defs::segment::{Access, Selector};
use x86defs::{paging, rflags};

use super::ZERO_PAGE;

const GDT: Gpa = Gpa(0x500);
const STACK_TOP: Gpa = Gpa(0x8ff0);
const PML4: Gpa = Gpa(0x9000);
const PDPT: Gpa = Gpa(0xa000);
const FIRST_PAGE_DIRECTORY: Gpa = Gpa(0xb000);
/// Each page directory maps 1 GByte.
const PAGE_DIRECTORIES: u64 = 4;
/// The 64-bit entry point, from the load address.
const ENTRY_64: u64 = 0x200;
/// Indices in [`VcpuState::gpr`].
const RAX: usize = 0;
const RBX: usize = 3;
const RSP: usize = 4;
const RSI: usize = 6;
/// EAX at the entry of a multiboot image.
const MULTIBOOT_LOADER_MAGIC: u64 = 0x2bad_b002;

const BOOT_CS: Selector = Selector(0x10);
const BOOT_DS: Selector = Selector(0x18);
/// Execute/read, accessed, present, 64-bit, 4-KByte granularity.
const CODE64_ACCESS: Access = Access(0xa09b);
/// Execute/read, accessed, present, 32-bit, 4-KByte granularity.
const CODE32_ACCESS: Access = Access(0xc09b);
/// Read/write, accessed, present, 32-bit, 4-KByte granularity.
const DATA_ACCESS: Access = Access(0xc093);
/// A busy 32-bit TSS, present.
const TSS_ACCESS: Access = Access(0x8b);
/// Limit of the least TSS (SDM Vol 3 8.2.2).
const TSS_LIMIT: u32 = 0x67;

/// A descriptor with base 0 and limit FFFFFh.
const fn flat(access: Access) -> u64 {
    (access.0 as u64) << 40 | 0xf << 48 | 0xffff
}

fn segment(selector: Selector, access: Access) -> SegmentRegister {
    SegmentRegister {
        selector,
        base: 0,
        limit: u32::MAX,
        access,
    }
}

/// Everything but the mode: flat segments, interrupts off, all registers zero.
fn flat_state(ram: &GuestRam, code: Access) -> Result<VcpuState, RamError> {
    // Null, null, code, data (SDM Vol 3 3.4.5).
    let descriptors = [0, 0, flat(code), flat(DATA_ACCESS)];
    for (i, d) in descriptors.iter().enumerate() {
        ram.write(GDT.offset(8 * i as u64), &d.to_le_bytes())?;
    }
    let data = segment(BOOT_DS, DATA_ACCESS);
    let mut state = vcpu::reset(true);
    state.gpr = [0; 16];
    state.rflags = rflags::FIXED_1;
    state.segments = [data, segment(BOOT_CS, code), data, data, data, data];
    state.gdtr = DescriptorTable {
        base: GDT.0,
        limit: (8 * descriptors.len() - 1) as u16,
    };
    state.idtr = DescriptorTable { base: 0, limit: 0 };
    Ok(state)
}

/// Protected mode without paging.
fn protected(ram: &GuestRam, entry: u32) -> Result<VcpuState, RamError> {
    let mut state = flat_state(ram, CODE32_ACCESS)?;
    state.rip = entry.into();
    state.system.cr0 = cr0::PE | cr0::ET;
    state.system.cr4 = 0;
    state.system.efer = 0;
    Ok(state)
}

/// The 64-bit Linux protocol (boot.rst, "64-bit Boot Protocol") for a kernel at `load`: paging on with the
/// kernel, `boot_params` and the command line identity-mapped, RSI pointing to `boot_params`.
pub(super) fn linux64(ram: &GuestRam, load: Gpa) -> Result<VcpuState, RamError> {
    write_page_tables(ram)?;
    let mut state = flat_state(ram, CODE64_ACCESS)?;
    state.gpr[RSP] = STACK_TOP.0;
    state.gpr[RSI] = ZERO_PAGE.0;
    state.rip = load.0 + ENTRY_64;
    state.system.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::PG;
    state.system.cr3 = PML4.0;
    state.system.cr4 = cr4::PAE;
    state.system.efer = efer::LME | efer::LMA;
    Ok(state)
}

/// The 32-bit Linux protocol (boot.rst, "32-bit Boot Protocol"): ESI points to `boot_params`, EBP, EDI and EBX
/// are 0.
pub(super) fn linux32(ram: &GuestRam, load: Gpa) -> Result<VcpuState, RamError> {
    let mut state = protected(ram, super::program::low(load.0))?;
    state.gpr[RSP] = STACK_TOP.0;
    state.gpr[RSI] = ZERO_PAGE.0;
    Ok(state)
}

/// Multiboot (specification 3.2): EAX holds the loader's magic number, EBX the address of the information
/// structure. There is no stack.
pub(super) fn multiboot(
    ram: &GuestRam,
    entry: u32,
    information: u32,
) -> Result<VcpuState, RamError> {
    let mut state = protected(ram, entry)?;
    state.gpr[RAX] = MULTIBOOT_LOADER_MAGIC;
    state.gpr[RBX] = information.into();
    Ok(state)
}

/// PVH (Xen docs/misc/pvh.pandoc, "Domain Builder"): EBX holds the address of `hvm_start_info`, TR a 32-bit TSS
/// with base 0 and limit 67h. There is no stack.
pub(super) fn pvh(ram: &GuestRam, entry: u32, start_info: u32) -> Result<VcpuState, RamError> {
    let mut state = protected(ram, entry)?;
    state.gpr[RBX] = start_info.into();
    state.tr.limit = TSS_LIMIT;
    state.tr.access = TSS_ACCESS;
    Ok(state)
}

/// Maps the first 4 GByte to themselves with 2-MByte pages (SDM Vol 3 4.5).
fn write_page_tables(ram: &GuestRam) -> Result<(), RamError> {
    const PRESENT: u64 = paging::P | paging::RW;
    ram.write(PML4, &(PDPT.0 | PRESENT).to_le_bytes())?;
    for i in 0..PAGE_DIRECTORIES {
        let directory = FIRST_PAGE_DIRECTORY.offset(i << 12);
        ram.write(PDPT.offset(8 * i), &(directory.0 | PRESENT).to_le_bytes())?;
        let entries: Vec<u8> = (0..512u64)
            .flat_map(|j| (i << 30 | j << 21 | PRESENT | paging::PS).to_le_bytes())
            .collect();
        ram.write(directory, &entries)?;
    }
    Ok(())
}
