//! VMCSs to start from, and what is done to them.

use softcpu::vmx::vmcs::Vmcs;
use x86defs::vmx::VmcsField as F;

use crate::Input;
use crate::cpu::STOP;
use crate::cpu::modes::{DATA, GDT, IDT32, IDT64, PDPT_PAE, PML4, TSS};

/// Zeros: bitmaps, the virtual-APIC page.
pub const ZEROS: u64 = 0x1_6000;
/// A shadow VMCS.
pub const SHADOW: u64 = 0x1_7000;
/// MSR areas: loaded at VM entry, stored and loaded at VM exit.
pub const AREAS: [u64; 3] = [0x1_8000, 0x1_8400, 0x1_8800];
/// EPT: PML4 and PDPT, of one page of 1 GByte.
pub const EPT: u64 = 0x1_9000;
/// What the guest executes.
pub const GUEST_CODE: u64 = 0x1_c000;
/// Where the host goes on.
pub const HOST_CODE: u64 = 0x1_d000;
/// The host's stack.
pub const HOST_STACK: u64 = 0xe800;
const GUEST_STACK: u64 = 0xd800;
/// RFLAGS.VM.
pub const VM: u64 = 1 << 17;
/// "Activate secondary controls".
pub const SECOND: u64 = 1 << 31;

/// The guests to start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// 64-bit mode.
    Long,
    /// Real-address mode, as an unrestricted guest.
    Real,
    /// 32 bits, PAE paging.
    Pae,
    /// Virtual-8086 mode under PAE paging.
    Virtual8086,
}

/// All of them.
pub const GUESTS: [Guest; 4] = [Guest::Long, Guest::Real, Guest::Pae, Guest::Virtual8086];

/// A VMCS that passes every check.
#[must_use]
pub fn valid(guest: Guest, ept: bool, cr4: u64) -> Vmcs {
    let mut v = Vmcs::default();
    // EPT, VPID; unrestricted guest where there is EPT.
    let second = if ept || guest == Guest::Real {
        0xa2
    } else {
        0x20
    };
    let entry = if guest == Guest::Long { 0x13ff } else { 0x11ff };
    let controls = [
        (F::PinControls, 0x16),
        (F::PrimaryControls, 0x0400_6172 | SECOND),
        (F::SecondaryControls, second),
        (F::ExitControls, 0x3_6fff),
        (F::EntryControls, entry),
        (F::Vpid, 1),
        (F::EptPointer, EPT | 3 << 3 | 6),
        (F::VmcsLinkPointer, u64::MAX),
        (F::IoBitmapA, ZEROS),
        (F::IoBitmapB, ZEROS),
        (F::MsrBitmaps, ZEROS),
        (F::VirtualApicAddress, ZEROS),
        (F::ApicAccessAddress, ZEROS),
        (F::VmreadBitmap, ZEROS),
        (F::VmwriteBitmap, ZEROS),
        (F::EntryMsrLoadAddress, AREAS[0]),
        (F::ExitMsrStoreAddress, AREAS[1]),
        (F::ExitMsrLoadAddress, AREAS[2]),
    ];
    let host = [
        (F::HostCr0, 0x8000_0031),
        (F::HostCr3, PML4),
        (F::HostCr4, cr4),
        (F::HostCsSelector, 8),
        (F::HostSsSelector, 0x10),
        (F::HostDsSelector, 0x10),
        (F::HostTrSelector, 0x48),
        (F::HostTrBase, TSS),
        (F::HostGdtrBase, GDT),
        (F::HostIdtrBase, IDT64),
        (F::HostEfer, 0xd01),
        (F::HostPat, 0x0007_0406_0007_0406),
        (F::HostRip, HOST_CODE),
        (F::HostRsp, HOST_STACK),
    ];
    for (field, value) in controls.into_iter().chain(host) {
        v.set(field, value);
    }
    guest_state(&mut v, guest, cr4);
    v
}

fn guest_state(v: &mut Vmcs, guest: Guest, cr4: u64) {
    let (cr0, cr3) = match guest {
        Guest::Long => (0x8000_0031, PML4),
        Guest::Real => (0x30, 0),
        Guest::Pae | Guest::Virtual8086 => (0x8000_0031, PDPT_PAE),
    };
    let (idt, idt_limit) = match guest {
        Guest::Long => (IDT64, 0xfff),
        Guest::Real => (0, 0x3ff),
        Guest::Pae | Guest::Virtual8086 => (IDT32, 0x7ff),
    };
    let flags = if guest == Guest::Virtual8086 { VM } else { 0 };
    for (field, value) in [
        (F::GuestCr0, cr0),
        (F::GuestCr3, cr3),
        (F::GuestCr4, cr4),
        (F::GuestEfer, if guest == Guest::Long { 0xd01 } else { 0 }),
        (F::GuestPat, 0x0007_0406_0007_0406),
        (F::GuestRflags, 2 | flags),
        (F::GuestRip, GUEST_CODE),
        (F::GuestRsp, GUEST_STACK),
        (F::GuestDr7, 0x400),
        (F::GuestTrSelector, 0x48),
        (F::GuestTrBase, TSS),
        (F::GuestTrLimit, 0xfff),
        (F::GuestTrAccess, 0x8b),
        (F::GuestLdtrAccess, 0x1_0000),
        (F::GuestGdtrBase, GDT),
        (F::GuestGdtrLimit, 0x9f),
        (F::GuestIdtrBase, idt),
        (F::GuestIdtrLimit, idt_limit),
        (F::GuestPdpte0, 0x8001),
    ] {
        v.set(field, value);
    }
    let small = matches!(guest, Guest::Real | Guest::Virtual8086);
    for i in 0..6 {
        let code = i == 1;
        let (selector, limit, access) = match (guest, code) {
            (Guest::Real, _) => (if code { 0x1c00 } else { 0 }, 0xffff, 0x93),
            (Guest::Virtual8086, _) => (if code { 0x1c00 } else { 0 }, 0xffff, 0xf3),
            (Guest::Long, true) => (8, 0xffff_ffff, 0xa09b),
            (Guest::Pae, true) => (0x18, 0xffff_ffff, 0xc09b),
            (Guest::Long | Guest::Pae, false) => (0x10, 0xffff_ffff, 0xc093),
        };
        // DS leads to what ends a run, which is beyond 64 KByte.
        let selector = if small && i == 3 {
            STOP.0 >> 4
        } else {
            selector
        };
        v.set(F::GUEST_SELECTORS[i], selector);
        v.set(F::GUEST_BASES[i], if small { selector << 4 } else { 0 });
        v.set(F::GUEST_LIMITS[i], limit);
        v.set(F::GUEST_ACCESS[i], access);
    }
    if small {
        v.set(F::GuestRip, 0);
    }
}

/// Fields that decide more than others.
const FAVOURITES: [F; 32] = [
    F::PinControls,
    F::PrimaryControls,
    F::SecondaryControls,
    F::ExitControls,
    F::EntryControls,
    F::GuestCr0,
    F::GuestCr3,
    F::GuestCr4,
    F::GuestEfer,
    F::GuestRflags,
    F::GuestRip,
    F::GuestCsAccess,
    F::GuestSsAccess,
    F::GuestDsAccess,
    F::GuestTrAccess,
    F::GuestLdtrAccess,
    F::GuestCsLimit,
    F::GuestSsSelector,
    F::GuestTrSelector,
    F::GuestInterruptibility,
    F::GuestActivity,
    F::GuestPendingDebug,
    F::GuestDebugctl,
    F::VmcsLinkPointer,
    F::PreemptionTimer,
    F::EptPointer,
    F::HostCr0,
    F::HostCr4,
    F::HostEfer,
    F::HostCsSelector,
    F::HostRip,
    F::HostCr3,
];
/// MSRs for the areas: some that may be there, some that may not.
const MSRS: [u32; 16] = [
    0x10,
    0x174,
    0x175,
    0x176,
    0x1d9,
    0x277,
    0xc000_0080,
    0xc000_0081,
    0xc000_0082,
    0xc000_0084,
    0xc000_0100,
    0xc000_0102,
    0x9e,
    0x79,
    0x808,
    0x1b,
];

/// One field gets another value.
fn change(v: &mut Vmcs, input: &mut Input<'_>) {
    let field = if input.once_in(2) {
        input.pick(&FAVOURITES)
    } else {
        input.pick(F::ALL)
    };
    let old = v.get(field);
    let width = field.mask().count_ones() as usize;
    let value = match input.below(8) {
        0..=3 => old ^ 1 << input.below(width),
        4 => input.number(),
        5 => old
            .wrapping_add(u64::from(input.any::<u8>()))
            .wrapping_sub(128),
        6 => v.get(input.pick(F::ALL)),
        _ => input.pick(&[ZEROS, SHADOW, DATA, EPT, PDPT_PAE, u64::MAX, 0, 1 << 46]),
    };
    v.set(field, value);
}

/// An event to inject, well formed more often than not.
fn inject(v: &mut Vmcs, input: &mut Input<'_>) {
    let kind = input.any::<u64>() & 7;
    let vector = match kind {
        2 => 2,
        3 => input.any::<u64>() & 0x1f,
        7 => 0,
        _ => input.any::<u64>() & 0xff,
    };
    let with_code = kind == 3 && matches!(vector, 8 | 10..=14 | 17);
    let real = v.get(F::GuestCr0) & 1 == 0;
    let code = u64::from(with_code && !real) << 11;
    v.set(
        F::EntryInterruptionInfo,
        1 << 31 | code | kind << 8 | vector,
    );
    v.set(F::EntryExceptionErrorCode, input.any::<u64>() & 0xffff);
    v.set(F::EntryInstructionLength, input.any::<u64>() & 0xf);
    if kind == 0 {
        v.set(F::GuestRflags, v.get(F::GuestRflags) | 1 << 9);
    }
}

/// Changes a VMCS; gives the entries of the MSR areas.
pub fn mutate(v: &mut Vmcs, changes: usize, input: &mut Input<'_>) -> [Vec<u8>; 3] {
    if input.once_in(4) {
        inject(v, input);
    }
    let mut areas = [const { Vec::new() }; 3];
    if input.once_in(4) {
        let counts = [
            F::EntryMsrLoadCount,
            F::ExitMsrStoreCount,
            F::ExitMsrLoadCount,
        ];
        for (area, count) in areas.iter_mut().zip(counts) {
            let entries = input.below(4);
            for _ in 0..entries {
                area.extend(input.pick(&MSRS).to_le_bytes());
                area.extend(u32::from(input.once_in(32)).to_le_bytes());
                area.extend(input.number().to_le_bytes());
            }
            v.set(count, entries as u64);
        }
    }
    for _ in 0..changes {
        change(v, input);
    }
    areas
}
