//! MTRRs and the PAT: what the MSRs keep, and what they refuse (12.11.2, 12.12.2).

use runtime::cpu;
use runtime::trap::raised;
use runtime::{check, check_eq, section};

const MTRRCAP: u32 = 0xfe;
const PHYSBASE0: u32 = 0x200;
const FIXED: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];
const PAT: u32 = 0x277;
const DEF_TYPE: u32 = 0x2ff;

/// Table 12-8: UC, WC, WT, WP, WB; write-combining only if IA32_MTRRCAP says so.
fn type_exists(memory_type: u64) -> bool {
    matches!(memory_type, 0 | 4 | 5 | 6)
        || (memory_type == 1 && cpu::read_msr(MTRRCAP) & 1 << 10 != 0)
}

/// Writes, reads back, and puts the old value in place.
fn keeps(msr: u32, value: u64) {
    let old = cpu::read_msr(msr);
    cpu::write_msr(msr, value);
    check_eq!(cpu::read_msr(msr), value, "MSR {msr:x}");
    cpu::write_msr(msr, old);
}

fn refuses(msr: u32, value: u64) {
    let old = cpu::read_msr(msr);
    let got = raised(|| cpu::write_msr(msr, value)).what();
    check_eq!(got, (13, 0), "{value:x} in MSR {msr:x}");
    check_eq!(cpu::read_msr(msr), old, "MSR {msr:x} after a refused write");
}

fn either(msr: u32, value: u64, good: bool) {
    if good {
        keeps(msr, value);
    } else {
        refuses(msr, value);
    }
}

pub fn run() {
    section("12.11 MTRRs");
    let capabilities = cpu::read_msr(MTRRCAP);
    let count = capabilities as u32 & 0xff;
    check!(
        count > 0 && capabilities & 1 << 8 != 0,
        "variable and fixed MTRRs"
    );
    refuses(MTRRCAP, capabilities);
    let bits = cpu::cpuid(0x8000_0008, 0)[0] & 0xff;
    let highest = 1u64 << (bits - 1);
    for memory_type in 0..256u64 {
        let good = type_exists(memory_type);
        either(PHYSBASE0, memory_type, good);
        either(FIXED[0], memory_type << 24, good);
        either(DEF_TYPE, memory_type, good);
    }
    for n in 0..count {
        let (base, mask) = (PHYSBASE0 + 2 * n, PHYSBASE0 + 2 * n + 1);
        keeps(base, highest | 0x1000 | 6);
        keeps(mask, highest | 0x800);
        refuses(base, highest << 1);
        refuses(mask, highest << 1);
        (8..12).for_each(|bit| refuses(base, 1 << bit));
        (0..11).for_each(|bit| refuses(mask, 1 << bit));
    }
    let gone = PHYSBASE0 + 2 * count;
    let got = raised(|| _ = cpu::read_msr(gone)).what();
    check_eq!(got, (13, 0), "one more variable MTRR than there are");
    for msr in FIXED {
        keeps(msr, 0x0001_0405_0600_0106);
        (0..8).for_each(|byte| refuses(msr, 2 << (8 * byte)));
    }
    keeps(DEF_TYPE, 0xc06);
    for bit in [8, 9, 12, 31, 32, 63] {
        refuses(DEF_TYPE, 1 << bit);
    }

    section("12.12 PAT");
    check_eq!(
        cpu::read_msr(PAT),
        0x0007_0406_0007_0406,
        "after RESET (12.12.4)"
    );
    for memory_type in 0..256u64 {
        let good = matches!(memory_type, 0 | 1 | 4..=7);
        for entry in [0, 3, 7] {
            either(PAT, memory_type << (8 * entry), good);
        }
    }
}
