//! MONITOR and MWAIT (SDM Vol 2; Vol 3 9.10.4).

use guestmem::Gpa;
use vcpu::Attention;
use vcpu::cpuid::CpuModel;
use x86defs::exception::{GP, PF, UD};
use x86defs::msr::{IA32_MISC_ENABLE, misc_enable};

use crate::cpu::gpr::*;
use crate::testing::*;

const MONITOR: [u8; 3] = [0x0f, 0x01, 0xc8];
const MWAIT: [u8; 3] = [0x0f, 0x01, 0xc9];

fn armed() -> Bench {
    let mut b = Bench::long();
    b.set(RAX, DATA + 0x44);
    b.ok(&MONITOR);
    b
}

#[test]
fn who_may_use_them() {
    for insn in [MONITOR, MWAIT] {
        assert_eq!(Bench::user().run(&insn), Outcome::Vector(UD));
        let mut b = Bench::long_with(model_of(CpuModel::NestlingIntel));
        assert_eq!(b.run(&insn), Outcome::Vector(UD), "not shown");
        let mut b = Bench::long();
        b.set(RCX, 2);
        assert_eq!(b.run(&insn), Outcome::Vector(GP), "extensions");
        // IA32_MISC_ENABLE[18] takes them away, and CPUID says so (SDM Vol 4 Table 2-2).
        let mut b = Bench::long();
        assert_eq!(b.cpu().cpuid(1, 0).ecx >> 3 & 1, 1);
        let on = b.cpu().read_msr(IA32_MISC_ENABLE).unwrap();
        assert_eq!(
            b.cpu()
                .write_msr(IA32_MISC_ENABLE, on & !misc_enable::MONITOR),
            Ok(())
        );
        assert_eq!(b.cpu().cpuid(1, 0).ecx >> 3 & 1, 0);
        assert_eq!(b.run(&insn), Outcome::Vector(UD), "disabled");
    }
    let mut b = Bench::long();
    b.set(RCX, 1);
    assert_eq!(
        b.run(&MONITOR),
        Outcome::Vector(GP),
        "MONITOR has no extensions"
    );
}

/// MONITOR is a load of one byte.
#[test]
fn monitor_faults_as_a_load() {
    let mut b = Bench::long();
    b.put::<u64>(PT, 0);
    b.set(RAX, SMALL);
    assert_eq!(b.fault(&MONITOR, PF), 0);
    let mut b = Bench::long();
    b.set(RAX, 1 << 47);
    assert_eq!(b.fault(&MONITOR, GP), 0);
    // addr32: EAX alone.
    let mut b = Bench::long();
    b.set(RAX, 1 << 47 | DATA);
    b.ok(&[0x67, 0x0f, 0x01, 0xc8]);
}

#[test]
fn mwait_does_not_wait_for_nothing() {
    let mut b = Bench::long();
    b.ok(&MWAIT);
    assert!(!b.cpu().in_mwait(), "not armed");
    // A store of its own before: mov [rax + 8], eax.
    let mut b = armed();
    b.ok(&[0x89, 0x40, 0x08]);
    b.ok(&MWAIT);
    assert!(!b.cpu().in_mwait(), "the line has changed");
    let mut b = armed();
    b.ram.write(Gpa(DATA + 0x7f), &[1]).unwrap();
    b.ok(&MWAIT);
    assert!(!b.cpu().in_mwait(), "another has stored");
    // A device's registers cannot be monitored: the wait ends at once.
    let mut b = Bench::long();
    b.put::<u64>(PT, 0xf000_0000 | 7);
    b.set(RAX, SMALL);
    b.ok(&MONITOR);
    b.ok(&MWAIT);
    assert!(!b.cpu().in_mwait(), "no RAM");
}

#[test]
fn stores_of_others_end_the_wait() {
    for (at, ends) in [(0x40, true), (0x7f, true), (0x3f, false), (0x80, false)] {
        let mut b = armed();
        b.ok(&MWAIT);
        assert!(b.cpu().in_mwait());
        // The value does not matter.
        b.ram.write(Gpa(DATA + at), &[0]).unwrap();
        let raised = b.cpu().attention.get() & Attention::MONITOR != 0;
        assert_eq!(raised, ends, "{at:x}");
        if ends {
            b.ok(&[0x90]);
            assert!(!b.cpu().in_mwait());
            // It takes a MONITOR to wait again.
            b.ok(&MWAIT);
            assert!(!b.cpu().in_mwait());
        }
    }
}

/// What is saved is not "in HLT": there is nothing a restored processor could wait for.
#[test]
fn a_waiting_processor_is_saved_as_active() {
    let mut b = armed();
    b.ok(&MWAIT);
    let s = b.cpu().save();
    assert_eq!(s.mp_state, vcpu::MpState::Running);
    b.cpu().restore(&s);
    assert!(!b.cpu().in_mwait());
    b.ok(&[0x90]);
}
