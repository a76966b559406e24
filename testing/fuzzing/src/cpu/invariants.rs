//! What is true of the state of a processor between any two instructions.

use vcpu::{MpState, VcpuState};
use x86defs::cr::{cr0, cr4, efer};

const PE: u64 = cr0::PE;
const PG: u64 = cr0::PG;
const VM: u64 = 1 << 17;
const CS: usize = 1;
const SS: usize = 2;

fn canonical(address: u64) -> bool {
    ((address as i64) << 16 >> 16) as u64 == address
}

/// Checks all of it.
///
/// # Panics
/// Something does not hold.
pub fn check(s: &VcpuState) {
    flags(s);
    control(s);
    debug(s);
    // A task switch whose segments cannot be loaded, and no handler for that, leaves a shutdown without a CS.
    if s.mp_state != MpState::Shutdown {
        segments(s);
    }
    rip(s);
}

/// SDM Vol 1 3.4.3: bit 1 is one; bits 3, 5, 15 and 22 to 63 are zero.
fn flags(s: &VcpuState) {
    assert_eq!(s.rflags & 2, 2, "bit 1 of RFLAGS");
    let reserved = 1 << 3 | 1 << 5 | 1 << 15 | !0x3f_ffff;
    assert_eq!(s.rflags & reserved, 0, "RFLAGS {:#x}", s.rflags);
}

/// SDM Vol 3 2.5, 4.1.2, 11.5.1.
fn control(s: &VcpuState) {
    let y = &s.system;
    let on = |register: u64, bit: u64| register & bit != 0;
    assert!(!on(y.cr0, PG) || on(y.cr0, PE), "paging without protection");
    assert!(
        !on(y.cr0, cr0::NW) || on(y.cr0, cr0::CD),
        "NW without CD: CR0 {:#x}",
        y.cr0
    );
    assert!(y.cr0 >> 32 == 0, "CR0 {:#x}", y.cr0);
    assert!(on(y.cr0, cr0::ET), "ET is one: CR0 {:#x}", y.cr0);
    assert!(y.cr8 < 16, "CR8 {:#x}", y.cr8);
    let lma = on(y.efer, efer::LME) && on(y.cr0, PG);
    assert_eq!(on(y.efer, efer::LMA), lma, "EFER {:#x}", y.efer);
    assert!(!lma || on(y.cr4, cr4::PAE), "IA-32e mode without PAE");
    assert!(
        lma || !on(y.cr4, cr4::PCIDE),
        "PCIDs outside of IA-32e mode: CR4 {:#x}",
        y.cr4
    );
    // XCR0 (SDM Vol 1 13.3): x87 always, AVX only with SSE.
    assert!(
        y.xcr0 & 1 == 1 && (y.xcr0 & 4 == 0 || y.xcr0 & 2 != 0),
        "XCR0 {:#x}",
        y.xcr0
    );
}

/// SDM Vol 3 18.2.3 and 18.2.4: fixed bits of DR6 and DR7.
fn debug(s: &VcpuState) {
    let (dr6, dr7) = (s.system.dr6, s.system.dr7);
    assert_eq!(dr6 & 0x1000, 0, "DR6 {dr6:#x}");
    assert_eq!(dr6 & 0xffff_0ff0 & !0x1_0800, 0xfffe_07f0, "DR6 {dr6:#x}");
    assert!(dr6 >> 32 == 0, "DR6 {dr6:#x}");
    assert_eq!(dr7 & 0xd400, 0x400, "DR7 {dr7:#x}");
    assert!(dr7 >> 32 == 0, "DR7 {dr7:#x}");
}

fn segments(s: &VcpuState) {
    let (cs, ss) = (&s.segments[CS], &s.segments[SS]);
    let protected = s.system.cr0 & PE != 0;
    if s.rflags & VM != 0 {
        assert!(protected, "virtual-8086 mode without protection");
        assert!(
            s.system.efer & efer::LMA == 0,
            "virtual-8086 mode in IA-32e mode"
        );
        // SDM Vol 3 21.2.1; the checks of 27.3.1.2 say the same of the hidden parts.
        for segment in &s.segments {
            assert_eq!(segment.base, u64::from(segment.selector.0) << 4, "{s:x?}");
            assert_eq!(segment.limit, 0xffff, "{segment:x?}");
            assert_eq!(segment.access.0 & 0xff, 0xf3, "{segment:x?}");
        }
        return;
    }
    for segment in &s.segments {
        let granular = segment.access.0 & 1 << 15 != 0;
        if segment.access.0 & 1 << 16 == 0 {
            // A limit in pages ends with ones, one in bytes has 20 bits.
            assert!(!granular || segment.limit & 0xfff == 0xfff, "{segment:x?}");
        }
    }
    if !protected {
        return;
    }
    let access = cs.access.0;
    // A code segment, or the data segment that real mode left behind.
    assert!(
        access & 0x90 == 0x90,
        "CS is present and no system segment: {cs:x?}"
    );
    let cpl = ss.access.0 >> 5 & 3;
    assert!(
        access & 0x2000 == 0 || access & 0x4000 == 0 || s.system.efer & efer::LMA == 0,
        "CS has L and D: {cs:x?}"
    );
    if access & 8 != 0 {
        let dpl = access >> 5 & 3;
        let conforming = access & 4 != 0;
        if conforming {
            assert!(dpl <= cpl, "conforming CS above CPL: {cs:x?} {ss:x?}");
        } else {
            assert_eq!(dpl, cpl, "CS and SS disagree: {cs:x?} {ss:x?}");
        }
    }
}

/// SDM Vol 3 27.3.1.4, which a processor keeps by itself; but after the last byte of the lower half RIP may stand on
/// the first address that is not canonical, and its fetch faults.
fn rip(s: &VcpuState) {
    let long = s.system.efer & efer::LMA != 0 && s.segments[CS].access.0 & 0x2000 != 0;
    if long {
        assert!(canonical(s.rip) || s.rip == 1 << 47, "RIP {:#x}", s.rip);
    } else if s.mp_state != MpState::Shutdown {
        assert!(s.rip >> 32 == 0, "RIP {:#x} outside of 64-bit mode", s.rip);
    }
}
