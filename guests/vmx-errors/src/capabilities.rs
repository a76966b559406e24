//! The capability MSRs fit together (Appendix A).

use runtime::cpu::read_msr;
use runtime::vmx::msr;
use runtime::{check, check_eq, cpu, section, trap};

pub fn run() {
    section("appendix A: capability MSRs");
    let basic = read_msr(msr::BASIC);
    check_eq!(basic & 1 << 31, 0, "A.1: bit 31");
    let size = basic >> 32 & 0x1fff;
    check!(size > 0 && size <= 4096, "A.1: region of {size} bytes");
    check_eq!(
        basic >> 48 & 1,
        0,
        "A.1: addresses are not limited to 32 bits with 64-bit mode"
    );
    check_eq!(basic >> 50 & 15, 6, "A.1: write-back");
    check!(basic >> 55 & 1 == 1, "A.1: true controls");
    let control = read_msr(msr::FEATURE_CONTROL);
    check_eq!(
        control & 5,
        5,
        "24.7: IA32_FEATURE_CONTROL locked, VMX outside SMX"
    );
    let write = trap::raised(|| cpu::write_msr(msr::FEATURE_CONTROL, control));
    check_eq!(write.what(), (13, 0), "24.7: locked");
    for which in 0..4 {
        let plain = read_msr(msr::PIN + which);
        let truly = read_msr(msr::TRUE_PIN + which);
        let default1: u64 = [0x16, 0x0401_e172, 0x3_6dff, 0x11ff][which as usize];
        check_eq!(
            plain & default1,
            default1,
            "A.2: default1 controls of {which} must be 1 in the plain MSR"
        );
        check_eq!(
            plain >> 32,
            truly >> 32,
            "A.2: controls {which} that may be 1"
        );
        check_eq!(
            truly & !plain & 0xffff_ffff,
            0,
            "A.2: what truly must be 1, must be"
        );
        check_eq!(
            truly & 0xffff_ffff & !(truly >> 32),
            0,
            "A.2: what must be 1, may be"
        );
        check_eq!(
            (plain & !truly) & 0xffff_ffff & !default1,
            0,
            "A.2: only default1 controls are relaxed"
        );
    }
    let secondary = read_msr(msr::SECONDARY);
    check_eq!(
        secondary & 0xffff_ffff,
        0,
        "A.3.3: no secondary control must be 1"
    );
    let (c0, c4) = (cpu::read_cr0(), cpu::read_cr4());
    let (fixed0, fixed1) = (read_msr(msr::CR0_FIXED0), read_msr(msr::CR0_FIXED1));
    check_eq!(fixed0 & !fixed1, 0, "A.7: CR0");
    check_eq!(fixed0 & 0x8000_0021, 0x8000_0021, "24.8: PE, NE, PG");
    check_eq!(c0 & !fixed1, 0, "A.7: what CR0 holds is allowed");
    let (fixed0, fixed1) = (read_msr(msr::CR4_FIXED0), read_msr(msr::CR4_FIXED1));
    check_eq!(fixed0, 1 << 13, "A.8: CR4.VMXE");
    check_eq!(
        (c4 | 1 << 13) & !fixed1,
        0,
        "A.8: what CR4 holds is allowed"
    );
    let highest = read_msr(msr::VMCS_ENUM) >> 1 & 0x1ff;
    check!(highest >= 0x2e / 2, "A.9: highest field index {highest:x}");
    if secondary >> 33 & 1 == 1 {
        let ept = read_msr(msr::EPT_VPID);
        check!(ept & 1 << 6 != 0, "A.10: page-walk length 4");
        check!(ept & 1 << 14 != 0, "A.10: write-back paging structures");
        check!(
            ept & 1 << 20 != 0 && ept & 3 << 25 == 3 << 25,
            "A.10: INVEPT and its types"
        );
    }
    if secondary >> 39 & 1 == 1 {
        check!(
            secondary >> 33 & 1 == 1,
            "25.6.2: unrestricted guest needs EPT"
        );
    }
    for msr in 0x480..=0x490 {
        let trap = trap::raised(|| cpu::write_msr(msr, 0));
        check_eq!(trap.what(), (13, 0), "MSR {msr:x} is read-only");
    }
}
