//! Registers and their values after reset (11.4, 11.5).

use runtime::apic::{BASE_MSR, DEFAULT_BASE, read, reg, write};
use runtime::cpu;
use runtime::trap::raised;
use runtime::{check, check_eq, section};

pub fn run() {
    section("11.4 the local APIC");
    check!(cpu::has(1, 3, 9), "11.4.2: CPUID.01H:EDX.APIC");
    let base = cpu::read_msr(BASE_MSR);
    check_eq!(base & 0xf_ffff_f000, DEFAULT_BASE, "11.4.4: base");
    check_eq!(
        base & 0xfff,
        0x900,
        "11.4.4: enabled, boot processor, no x2APIC"
    );
    check_eq!(
        read(reg::ID) >> 24,
        cpu::cpuid(1, 0)[1] >> 24,
        "11.4.6: ID as CPUID has it"
    );
    let version = read(reg::VERSION);
    check!(
        (0x10..0x20).contains(&(version & 0xff)),
        "11.4.8: version {version:x}"
    );
    check!(version >> 16 & 0xff >= 4, "11.4.8: LVT entries");
    check_eq!(read(reg::DFR), 0xffff_ffff, "11.6.2.2: DFR");
    check_eq!(read(reg::LDR), 0, "LDR");
    check_eq!(read(reg::TPR), 0, "TPR");
    check_eq!(read(reg::PPR), 0, "PPR");
    // What started the guest may have enabled it; from here on as after reset (11.4.7.1).
    write(reg::SVR, 0xff);
    check_eq!(read(reg::SVR) & 0x1ff, 0xff, "SVR, software-disabled");
    for (name, register) in [
        ("timer", reg::LVT_TIMER),
        ("thermal", reg::LVT_THERMAL),
        ("performance", reg::LVT_PERFORMANCE),
        ("error", reg::LVT_ERROR),
    ] {
        check_eq!(read(register), 0x1_0000, "11.5.1: LVT {name} masked");
        // 11.4.7.2: while software-disabled, mask bits stay set.
        write(register, 0x40);
        check_eq!(
            read(register) & 0x1_00ff,
            0x1_0040,
            "11.4.7.2: LVT {name} stays masked"
        );
    }
    check_eq!(read(reg::INITIAL_COUNT), 0, "initial count");
    check_eq!(read(reg::CURRENT_COUNT), 0, "current count");
    for i in 0..8 {
        let at = 0x10 * i;
        check_eq!(read(reg::ISR + at), 0, "ISR {i}");
        check_eq!(read(reg::IRR + at), 0, "IRR {i}");
    }
    runtime::apic::enable();
    write(reg::LVT_TIMER, 0x40);
    check_eq!(read(reg::LVT_TIMER), 0x40, "unmasked once software-enabled");
    write(reg::SVR, 0xff);
    check_eq!(read(reg::LVT_TIMER), 0x1_0040, "11.4.7.2: disabling masks");
    runtime::apic::enable();
    check_eq!(
        read(reg::LVT_TIMER),
        0x1_0040,
        "and enabling does not unmask"
    );
    write(reg::LVT_TIMER, 0x1_0000);

    section("11.8.6 task priority");
    for priority in 0..16u64 {
        cpu::write_cr8(priority);
        check_eq!(
            u64::from(read(reg::TPR)),
            priority << 4,
            "CR8 {priority}: TPR"
        );
    }
    write(reg::TPR, 0x5a);
    check_eq!(cpu::read_cr8(), 5, "TPR 5Ah: CR8");
    check_eq!(
        read(reg::PPR),
        0x5a,
        "11.8.3.1: PPR is TPR when nothing is in service"
    );
    write(reg::TPR, 0);

    section("11.4.4 IA32_APIC_BASE");
    let width = cpu::cpuid(0x8000_0008, 0)[0] & 0xff;
    if width < 52 {
        let trap = raised(|| cpu::write_msr(BASE_MSR, base | 1 << width));
        check_eq!(trap.what(), (13, 0), "a base beyond MAXPHYADDR");
    }
    check_eq!(
        raised(|| cpu::write_msr(BASE_MSR, base | 1)).what(),
        (13, 0),
        "a reserved bit"
    );
    cpu::write_msr(BASE_MSR, base & !(1 << 11));
    check!(
        !cpu::has(1, 3, 9),
        "11.4.3: CPUID.01H:EDX.APIC is clear while disabled"
    );
    cpu::write_msr(BASE_MSR, base);
    check!(cpu::has(1, 3, 9), "and set again");
}
