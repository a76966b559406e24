//! The state at the 64-bit entry point (boot.rst, "64-bit Boot Protocol").
//!
//! Long mode, paging on with the kernel, `boot_params` and the command line identity-mapped, a GDT with
//! `__BOOT_CS` (10h) and `__BOOT_DS` (18h) flat, interrupts off, RSI pointing to `boot_params`.

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
/// Index of RSP and RSI in [`VcpuState::gpr`].
const RSP: usize = 4;
const RSI: usize = 6;

const BOOT_CS: Selector = Selector(0x10);
const BOOT_DS: Selector = Selector(0x18);
/// Execute/read, accessed, present, 64-bit, 4-KByte granularity.
const CODE_ACCESS: Access = Access(0xa09b);
/// Read/write, accessed, present, 32-bit, 4-KByte granularity.
const DATA_ACCESS: Access = Access(0xc093);
/// Null, null, code, data (SDM Vol 3 3.4.5).
const DESCRIPTORS: [u64; 4] = [0, 0, flat(CODE_ACCESS), flat(DATA_ACCESS)];

/// A descriptor with base 0 and limit FFFFFh.
const fn flat(access: Access) -> u64 {
    (access.0 as u64) << 40 | 0xf << 48 | 0xffff
}

/// Writes GDT and page tables and returns the boot processor's state for a kernel loaded at `load`.
///
/// # Errors
/// [`RamError`] when RAM is too small for the tables.
pub(super) fn prepare(ram: &GuestRam, load: Gpa) -> Result<VcpuState, RamError> {
    for (i, d) in DESCRIPTORS.iter().enumerate() {
        ram.write(GDT.offset(8 * i as u64), &d.to_le_bytes())?;
    }
    write_page_tables(ram)?;

    let segment = |selector, access| SegmentRegister {
        selector,
        base: 0,
        limit: u32::MAX,
        access,
    };
    let code = segment(BOOT_CS, CODE_ACCESS);
    let data = segment(BOOT_DS, DATA_ACCESS);
    let mut state = vcpu::reset(true);
    state.gpr = [0; 16];
    state.gpr[RSP] = STACK_TOP.0;
    state.gpr[RSI] = ZERO_PAGE.0;
    state.rip = load.0 + ENTRY_64;
    state.rflags = rflags::FIXED_1;
    state.segments = [data, code, data, data, data, data];
    state.gdtr = DescriptorTable {
        base: GDT.0,
        limit: (8 * DESCRIPTORS.len() - 1) as u16,
    };
    state.idtr = DescriptorTable { base: 0, limit: 0 };
    state.system.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::PG;
    state.system.cr3 = PML4.0;
    state.system.cr4 = cr4::PAE;
    state.system.efer = efer::LME | efer::LMA;
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
