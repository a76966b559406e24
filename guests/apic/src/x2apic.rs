//! x2APIC mode (11.12).

use runtime::apic::{BASE_MSR, bit, reg, x2};
use runtime::cpu::{self, read_msr, write_msr};
use runtime::trap::raised;
use runtime::{check, check_eq, section, skip};

use crate::{count, listen, taken, window};

const ENABLED: u64 = 1 << 11;
const EXTENDED: u64 = 1 << 10;
const GP: (u64, u64) = (13, 0);
const NONE: (u64, u64) = (256, 0);

fn reading(msr: u32) -> (u64, u64) {
    raised(|| {
        read_msr(msr);
    })
    .what()
}

fn writing(msr: u32, value: u64) -> (u64, u64) {
    raised(|| write_msr(msr, value)).what()
}

pub fn run() {
    if !cpu::has(1, 2, 21) {
        skip("x2APIC");
        return;
    }
    section("11.12.5 mode changes");
    let base = read_msr(BASE_MSR);
    check_eq!(reading(x2(reg::ID)), GP, "x2APIC MSRs in xAPIC mode: read");
    check_eq!(
        writing(x2(reg::TPR), 0),
        GP,
        "x2APIC MSRs in xAPIC mode: write"
    );
    check_eq!(
        writing(BASE_MSR, base & !ENABLED | EXTENDED),
        GP,
        "EXTD without EN"
    );
    write_msr(BASE_MSR, base & !ENABLED);
    check_eq!(writing(BASE_MSR, base | EXTENDED), GP, "disabled to x2APIC");
    write_msr(BASE_MSR, base);
    let id = runtime::apic::read(reg::ID) >> 24;
    runtime::apic::enable();
    write_msr(BASE_MSR, base | EXTENDED);
    check_eq!(read_msr(BASE_MSR) & 0xfff, 0xd00, "EN and EXTD");
    check_eq!(writing(BASE_MSR, base), GP, "x2APIC to xAPIC");
    registers(u64::from(id));
    interrupts(u64::from(id));
    write_msr(BASE_MSR, base & !ENABLED);
    check_eq!(reading(x2(reg::ID)), GP, "x2APIC MSRs while disabled");
    write_msr(BASE_MSR, base);
    check_eq!(
        runtime::apic::read(reg::SVR) & 0x1ff,
        0xff,
        "11.12.5.1: disabled and enabled: as after reset"
    );
}

fn registers(id: u64) {
    section("11.12.1.2 registers by MSR");
    check_eq!(read_msr(x2(reg::ID)), id, "ID, 32 bits");
    check_eq!(
        u64::from(cpu::cpuid(0xb, 0)[3]),
        id,
        "CPUID leaf 0Bh: x2APIC ID"
    );
    check_eq!(
        read_msr(x2(reg::LDR)),
        (id >> 4) << 16 | 1 << (id & 15),
        "11.12.10.2: LDR follows the ID"
    );
    check_eq!(
        read_msr(x2(reg::SVR)) & 0x1ff,
        0x1ff,
        "SVR kept from xAPIC mode"
    );
    // Read-only, write-only, absent.
    for register in [
        reg::ID,
        reg::VERSION,
        reg::PPR,
        reg::LDR,
        reg::ISR,
        reg::TMR,
        reg::IRR,
        reg::CURRENT_COUNT,
    ] {
        check_eq!(reading(x2(register)), NONE, "register {register:x}: read");
        check_eq!(
            writing(x2(register), 0),
            GP,
            "register {register:x} is read-only"
        );
    }
    check_eq!(reading(x2(reg::EOI)), GP, "EOI is write-only");
    check_eq!(writing(x2(reg::EOI), 1), GP, "EOI takes zero only");
    check_eq!(writing(x2(reg::EOI), 0), NONE, "EOI");
    check_eq!(writing(x2(reg::ESR), 1), GP, "ESR takes zero only");
    check_eq!(writing(x2(reg::ESR), 0), NONE, "ESR");
    check_eq!(reading(0x83f), GP, "SELF IPI is write-only");
    check_eq!(reading(x2(reg::DFR)), GP, "there is no DFR");
    check_eq!(
        reading(x2(reg::ICR_HIGH)),
        GP,
        "there is no high half of ICR"
    );
    for msr in [
        0x800, 0x801, 0x804, 0x807, 0x809, 0x80c, 0x829, 0x82e, 0x83a, 0x83c, 0x840, 0x8ff,
    ] {
        check_eq!(reading(msr), GP, "MSR {msr:x} is reserved: read");
        check_eq!(writing(msr, 0), GP, "MSR {msr:x} is reserved: write");
    }
    // 11.12.1.3: reserved bits.
    check_eq!(writing(x2(reg::TPR), 0x100), GP, "TPR bit 8");
    check_eq!(writing(x2(reg::TPR), 1 << 32), GP, "TPR bit 32");
    check_eq!(writing(x2(reg::SVR), 0x1ff | 1 << 32), GP, "SVR bit 32");
    check_eq!(
        writing(x2(reg::LVT_TIMER), 1 << 16 | 1 << 20),
        GP,
        "LVT timer bit 20"
    );
    check_eq!(
        writing(x2(reg::DIVIDE), 4),
        GP,
        "divide configuration bit 2"
    );
    check_eq!(
        writing(x2(reg::INITIAL_COUNT), 1 << 32),
        GP,
        "initial count bit 32"
    );
    check_eq!(writing(0x83f, 0x100), GP, "SELF IPI bit 8");
    write_msr(x2(reg::TPR), 0x70);
    check_eq!(cpu::read_cr8(), 7, "TPR: CR8");
    cpu::write_cr8(3);
    check_eq!(read_msr(x2(reg::TPR)), 0x30, "CR8: TPR");
    cpu::write_cr8(0);
}

fn interrupts(id: u64) {
    section("11.12.9, 11.12.11 interrupts");
    listen(&[0x40, 0x55]);
    write_msr(0x83f, 0x55);
    check!(bit(reg::IRR, 0x55), "SELF IPI: requested");
    window();
    check_eq!((count(), taken(0).0), (1, 0x55), "SELF IPI");
    write_msr(x2(reg::ICR), id << 32 | 0x40);
    window();
    check_eq!((count(), taken(1).0), (2, 0x40), "ICR, physical");
    write_msr(x2(reg::ICR), (id + 1) << 32 | 0x40);
    window();
    check_eq!(count(), 2, "ICR, another ID");
    write_msr(x2(reg::ICR), 0xffff_ffff << 32 | 0x40);
    window();
    check_eq!(count(), 3, "ICR, broadcast");
    let logical = read_msr(x2(reg::LDR));
    write_msr(x2(reg::ICR), logical << 32 | 1 << 11 | 0x40);
    window();
    check_eq!(count(), 4, "ICR, logical");
    write_msr(x2(reg::ICR), 1 << 18 | 0x40);
    check_eq!(read_msr(x2(reg::ICR)) & 0xff, 0x40, "ICR reads back");
    window();
    check_eq!(count(), 5, "ICR, self");
    // The timer by MSR.
    write_msr(x2(reg::LVT_TIMER), 0x55);
    write_msr(x2(reg::INITIAL_COUNT), 1000);
    cpu::wait_for_interrupt();
    check_eq!((count(), taken(5).0), (6, 0x55), "timer");
    write_msr(x2(reg::LVT_TIMER), 0x1_0000);
}
