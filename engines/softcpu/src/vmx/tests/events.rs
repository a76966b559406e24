//! Injection, exceptions, interrupts, NMIs, windows, timers (SDM Vol 3 26.2, 26.5, 27.6, 27.7, 28.2).

use guestmem::RamOffset;
use vcpu::{Attention, RunExit};
use x86defs::exception::{DB, DF, NMI, PF, UD};
use x86defs::vmx::VmcsField as F;
use x86defs::vmx::control::{entry, exit, pin, primary as p};

use super::rig::*;
use crate::cpu::{RIP, gpr, sreg};

const VALID: u64 = 1 << 31;
const VMCALL: &[u8] = &[0x0f, 0x01, 0xc1];
/// An external-interrupt exit, of the given vector.
const fn external(vector: u8) -> u64 {
    VALID | vector as u64
}

impl Rig {
    fn raise(&mut self, vector: u8) {
        self.lines.lock().unwrap().interrupt = Some(vector);
        self.attention.raise(Attention::INTERRUPT);
    }

    fn raise_nmi(&mut self) {
        self.lines.lock().unwrap().nmi = true;
        self.attention.raise(Attention::INTERRUPT);
    }

    /// The 64-bit frame on the guest's stack: error code if any, RIP, CS, RFLAGS.
    fn frame(&mut self) -> Vec<u64> {
        let rsp = self.cpu().regs[gpr::RSP];
        (0..4).map(|i| self.qword(rsp + 8 * i)).collect()
    }
}

#[test]
fn injected_events_go_through_the_idt() {
    for (what, info, vector, length, has_error) in [
        ("interrupt", 0x40u64, 0x40, 0, false),
        ("#UD", 3 << 8 | 6, UD, 0, false),
        ("#PF", 3 << 8 | 1 << 11 | 14, PF, 0, true),
        ("int 0x80", 4 << 8 | 0x80, 0x80, 2, false),
        ("int3", 6 << 8 | 3, 3, 1, false),
        ("int1", 5 << 8 | 1, 1, 1, false),
        ("NMI", 2 << 8 | 2, NMI, 0, false),
    ] {
        let mut r = Rig::root();
        r.set(F::EntryInterruptionInfo, VALID | info);
        r.set(F::EntryExceptionErrorCode, 0x15);
        r.set(F::EntryInstructionLength, length);
        r.set(F::GuestRflags, 0x202);
        r.cpu().cr2 = 0x77;
        r.enter();
        assert_eq!(r.rip(), guest_handler(vector), "{what}");
        let f = r.frame();
        let frame = if has_error { &f[1..] } else { &f[..] };
        assert_eq!(frame[0], GUEST_CODE + length, "{what}: return address");
        if has_error {
            assert_eq!(f[0], 0x15);
        }
        assert_eq!(r.cpu().cr2, 0x77, "{what}: injection does not write CR2");
        assert_eq!(r.cpu().nmi_blocked, vector == NMI, "{what}");
        // The field stays valid until the exit clears it.
        let at = r.rip();
        r.bytes(at, VMCALL);
        r.step();
        assert_eq!(
            r.get(F::EntryInterruptionInfo),
            info,
            "{what}: no longer valid"
        );
    }
}

/// SDM Vol 3 27.6.1.1: a software interrupt into a virtual-8086 guest with CR4.VME goes by the redirection bitmap,
/// and what is not redirected by the IDT as with IOPL 3.
#[test]
fn a_software_interrupt_into_a_virtual_8086_guest() {
    const TSS: u64 = 0x6000;
    const IO_MAP: u64 = 0x88;
    let enter = |bit: u8| {
        let mut r = Rig::root();
        r.clear(F::EntryControls, entry::IA32E_MODE_GUEST);
        r.set(F::GuestCr0, 0x31);
        r.set(F::GuestCr4, 0x2001);
        r.set(F::GuestRflags, 0x2_0002);
        for i in 0..6 {
            r.set(F::GUEST_SELECTORS[i], 0x1000);
            r.set(F::GUEST_BASES[i], 0x1_0000);
            r.set(F::GUEST_LIMITS[i], 0xffff);
            r.set(F::GUEST_ACCESS[i], 0xf3);
        }
        r.set(F::GuestTrLimit, 0xfff);
        r.set(F::GuestRip, 0x4000);
        r.set(F::GuestRsp, 0x8000);
        r.set(F::EntryInterruptionInfo, 0x8000_0421);
        r.set(F::EntryInstructionLength, 2);
        r.ram.store::<u16>(RamOffset(TSS + 8), 0x10);
        r.ram.store::<u16>(RamOffset(TSS + 0x66), IO_MAP as u16);
        r.ram
            .store::<u8>(RamOffset(TSS + IO_MAP - 32 + 4), bit << 1);
        r.ram.store::<u32>(RamOffset(0x21 * 4), 0x0500_0123);
        // A 32-bit interrupt gate to ring 0 where the 64-bit table of the rig has something else.
        r.set_qword(0x7000 + 8 * 0x21, 0xee00_0008_1234);
        r.enter();
        r
    };
    let mut r = enter(0);
    let c = r.cpu();
    assert_eq!((c.regs[RIP], c.seg[sreg::CS].base), (0x123, 0x5000));
    assert_eq!(c.regs[gpr::RSP], 0x8000 - 6);
    assert_eq!(c.rflags(), 0x2_0002);
    let frame = |word: u64| r.ram.load::<u16>(RamOffset(0x1_7ffa + 2 * word));
    // FLAGS with VIF, 0, for IF, and IOPL 3.
    assert_eq!([frame(0), frame(1), frame(2)], [0x4002, 0x1000, 0x3002]);
    let mut r = enter(1);
    let c = r.cpu();
    assert_eq!((c.regs[RIP], c.cpl), (0x1234, 0));
    assert_eq!(c.rflags() & 0x2_0000, 0, "out of virtual-8086 mode");
}

#[test]
fn a_fault_in_delivery_gives_idt_vectoring_information() {
    let mut r = Rig::root();
    r.set(F::EntryInterruptionInfo, VALID | 4 << 8 | 0x80);
    r.set(F::EntryInstructionLength, 2);
    // The stack is in an EPT page that cannot be written.
    r.set(F::GuestRsp, EPT_SMALL + 0x2000);
    r.set_qword(EPT_PT + 8, (EPT_SMALL + 0x1000) | 0x35);
    r.enter();
    assert_eq!(r.rip(), EXIT_RIP);
    assert_eq!(r.get(F::ExitReason), 48);
    assert_eq!(r.get(F::IdtVectoringInfo), VALID | 4 << 8 | 0x80);
    assert_eq!(r.get(F::ExitInstructionLength), 2);
    assert_eq!(r.get(F::GuestRip), GUEST_CODE);
    assert_eq!(r.get(F::ExitInterruptionInfo), 0);
    assert_eq!(
        r.get(F::ExitQualification) & 0x1ff,
        2 | 5 << 3 | 3 << 7,
        "a write; readable, executable"
    );
}

#[test]
fn exception_bitmap() {
    let mut r = Rig::root();
    r.set(F::ExceptionBitmap, 1 << UD);
    assert_eq!(r.run_guest(&[0x0f, 0x0b]), 0);
    assert_eq!(r.get(F::ExitInterruptionInfo), VALID | 3 << 8 | 6);
    assert_eq!(r.get(F::GuestRip), GUEST_CODE);
    assert_eq!(
        r.get(F::GuestRflags) & 1 << 16,
        1 << 16,
        "RF as in the frame of a fault"
    );

    let mut r = Rig::root();
    r.set(F::ExceptionBitmap, 1 << 3);
    assert_eq!(r.run_guest(&[0xcc]), 0);
    assert_eq!(r.get(F::ExitInterruptionInfo), VALID | 6 << 8 | 3);
    assert_eq!(r.get(F::ExitInstructionLength), 1);
    assert_eq!(r.get(F::GuestRip), GUEST_CODE, "of the INT3 itself");

    let mut r = Rig::root();
    r.set(F::ExceptionBitmap, u64::from(u32::MAX));
    r.bytes(GUEST_CODE, &[0xcd, 0x20]);
    r.enter();
    r.step();
    assert_eq!(
        r.rip(),
        guest_handler(0x20),
        "INT n does not look at the bitmap"
    );
}

#[test]
fn page_fault_mask_and_match() {
    // A read of an address that is not mapped: error code 0. SDM Vol 3 25.6.3.
    let run = |bit: bool, mask: u64, matching: u64| {
        let mut r = Rig::root();
        r.set(F::ExceptionBitmap, if bit { 1 << PF } else { 0 });
        r.set(F::PageFaultErrorCodeMask, mask);
        r.set(F::PageFaultErrorCodeMatch, matching);
        r.cpu().regs[gpr::RDX] = 0x8000_0000;
        r.cpu().cr2 = 5;
        r.bytes(GUEST_CODE, &[0x8b, 0x02]);
        r.enter();
        r.step();
        let exited = !r.cpu().vmx.in_guest;
        if exited {
            assert_eq!(
                r.get(F::ExitInterruptionInfo),
                VALID | 3 << 8 | 1 << 11 | 14
            );
            assert_eq!(r.get(F::ExitQualification), 0x8000_0000);
            assert_eq!(r.get(F::ExitInterruptionErrorCode), 0);
            assert_eq!(r.cpu().cr2, 5, "an exiting #PF does not write CR2");
        } else {
            assert_eq!(r.cpu().cr2, 0x8000_0000);
        }
        exited
    };
    assert!(run(true, 0, 0), "bit set, code matches");
    assert!(!run(true, 0, 1), "bit set, code does not match");
    assert!(!run(false, 0, 0), "bit clear, code matches");
    assert!(run(false, 1, 1), "bit clear, code does not match");
}

#[test]
fn double_and_triple_faults() {
    let broken_idt = || {
        let mut r = Rig::root();
        r.set(F::GuestIdtrLimit, 0);
        r
    };
    let mut r = broken_idt();
    assert_eq!(r.run_guest(&[0x0f, 0x0b]), 2, "triple fault");
    assert_eq!(r.get(F::IdtVectoringInfo) >> 31, 0);
    let mut r = broken_idt();
    r.set(F::ExceptionBitmap, 1 << DF);
    // #UD, then #GP in its delivery, which is delivered by itself; #GP in that makes #DF.
    assert_eq!(r.run_guest(&[0x0f, 0x0b]), 0);
    assert_eq!(r.get(F::ExitInterruptionInfo), VALID | 3 << 8 | 1 << 11 | 8);
    assert_eq!(
        r.get(F::IdtVectoringInfo) >> 31,
        0,
        "not during delivery (28.2.4)"
    );
    let mut r = broken_idt();
    r.set(F::ExceptionBitmap, 1 << 13);
    assert_eq!(r.run_guest(&[0x0f, 0x0b]), 0);
    assert_eq!(r.get(F::ExitInterruptionInfo) as u8, 13);
    assert_eq!(
        r.get(F::IdtVectoringInfo),
        VALID | 3 << 8 | 6,
        "#UD was being delivered"
    );
}

#[test]
fn external_interrupts() {
    let guest = |acknowledge: bool| {
        let mut r = Rig::root();
        r.or(F::PinControls, pin::EXTERNAL_INTERRUPT_EXITING);
        if acknowledge {
            r.or(F::ExitControls, exit::ACKNOWLEDGE_INTERRUPT);
        }
        r.bytes(GUEST_CODE, &[0x90, 0x90, 0x90]);
        r.enter();
        r.step();
        r.raise(0x55);
        r
    };
    let mut r = guest(true);
    r.step();
    assert_eq!(r.get(F::ExitReason), 1, "whatever RFLAGS.IF says");
    assert_eq!(r.get(F::ExitInterruptionInfo), external(0x55));
    assert_eq!(r.get(F::GuestRip), GUEST_CODE + 1);
    assert_eq!(r.lines.lock().unwrap().interrupt, None, "acknowledged");
    let mut r = guest(false);
    r.step();
    assert_eq!(r.get(F::ExitReason), 1);
    assert_eq!(r.get(F::ExitInterruptionInfo), 0);
    assert_eq!(
        r.lines.lock().unwrap().interrupt,
        Some(0x55),
        "still pending"
    );
    assert_eq!(r.rip(), EXIT_RIP, "and blocked by the host's RFLAGS.IF");

    let mut r = Rig::root();
    r.set(F::GuestRflags, 0x202);
    r.bytes(GUEST_CODE, &[0x90, 0x90]);
    r.raise(0x55);
    r.enter();
    r.step();
    // The handler's HLT may have run too.
    assert!(r.cpu().vmx.in_guest);
    assert_eq!(
        r.rip() & !15,
        guest_handler(0x55),
        "without the control the guest takes it"
    );
}

#[test]
fn interrupt_window() {
    let mut r = Rig::root();
    r.or(F::PrimaryControls, p::INTERRUPT_WINDOW_EXITING);
    // nop; sti; nop; nop
    assert_eq!(r.run_guest(&[0x90, 0xfb, 0x90, 0x90]), 7);
    assert_eq!(
        r.get(F::GuestRip),
        GUEST_CODE + 3,
        "after the instruction in the shadow of STI"
    );

    let mut r = Rig::root();
    r.or(F::PrimaryControls, p::INTERRUPT_WINDOW_EXITING);
    r.set(F::GuestRflags, 0x202);
    assert_eq!(r.run_guest(&[0x90]), 7);
    assert_eq!(r.get(F::GuestRip), GUEST_CODE, "at once when it is open");

    let mut r = Rig::root();
    r.or(F::PrimaryControls, p::INTERRUPT_WINDOW_EXITING);
    r.set(F::GuestRflags, 0x202);
    r.set(F::GuestActivity, 1);
    assert_eq!(r.run_guest(&[0x90]), 7, "also in HLT");
    assert_eq!(r.get(F::GuestActivity), 1);
}

#[test]
fn nmis() {
    let guest = || {
        let mut r = Rig::root();
        r.or(F::PinControls, pin::NMI_EXITING | pin::VIRTUAL_NMIS);
        r
    };
    let mut r = guest();
    r.bytes(GUEST_CODE, &[0x90, 0x90]);
    r.enter();
    r.raise_nmi();
    r.step();
    assert_eq!(r.get(F::ExitReason), 0);
    assert_eq!(r.get(F::ExitInterruptionInfo), VALID | 2 << 8 | 2);
    assert!(
        r.cpu().nmi_blocked,
        "NMIs are blocked after an NMI exit (28.5.5)"
    );
    assert_eq!(r.get(F::GuestInterruptibility), 0);

    let mut r = guest();
    r.set(F::GuestInterruptibility, 8);
    r.bytes(GUEST_CODE, &[0x90, 0x90]);
    r.enter();
    r.raise_nmi();
    r.step();
    assert_eq!(
        r.get(F::ExitReason),
        0,
        "virtual-NMI blocking does not block NMIs"
    );
    assert_eq!(r.get(F::GuestInterruptibility), 8);

    let mut r = guest();
    r.or(F::PrimaryControls, p::NMI_WINDOW_EXITING);
    assert_eq!(r.run_guest(&[0x90]), 8, "NMI window open at once");
    let mut r = guest();
    r.or(F::PrimaryControls, p::NMI_WINDOW_EXITING);
    r.set(F::GuestInterruptibility, 8);
    // Build an IRETQ frame: ss, rsp, rflags, cs, rip.
    let frame = [GUEST_CODE + 0x10, 8, 2, GUEST_RSP, 0x10];
    for (i, v) in frame.iter().enumerate() {
        r.set_qword(GUEST_RSP + 8 * i as u64, *v);
    }
    assert_eq!(r.run_guest(&[0x90, 0x48, 0xcf]), 8);
    assert_eq!(
        r.get(F::GuestRip),
        GUEST_CODE + 0x10,
        "IRET opens the window"
    );
}

#[test]
fn monitor_trap_flag() {
    let mut r = Rig::root();
    r.or(F::PrimaryControls, p::MONITOR_TRAP_FLAG);
    assert_eq!(r.run_guest(&[0x90, 0x90]), 37);
    assert_eq!(r.get(F::GuestRip), GUEST_CODE + 1, "after one instruction");

    let mut r = Rig::root();
    r.or(F::PrimaryControls, p::MONITOR_TRAP_FLAG);
    r.set(F::EntryInterruptionInfo, VALID | 3 << 8 | 6);
    assert_eq!(r.run_guest(&[0x90]), 37);
    assert_eq!(
        r.get(F::GuestRip),
        guest_handler(UD),
        "after the injected event"
    );

    let mut r = Rig::root();
    r.set(F::EntryInterruptionInfo, VALID | 7 << 8);
    assert_eq!(r.run_guest(&[0x90]), 37);
    assert_eq!(
        r.get(F::GuestRip),
        GUEST_CODE,
        "a pending MTF exit needs no control (27.6.2)"
    );

    let mut r = Rig::root();
    r.or(F::PrimaryControls, p::MONITOR_TRAP_FLAG);
    assert_eq!(r.run_guest(&[0x0f, 0x0b]), 37);
    assert_eq!(
        r.get(F::GuestRip),
        guest_handler(UD),
        "after the delivery of a fault"
    );
}

#[test]
fn preemption_timer() {
    let mut r = Rig::root();
    r.or(F::PinControls, pin::PREEMPTION_TIMER);
    r.set(F::PreemptionTimer, 0);
    assert_eq!(r.run_guest(&[0x90]), 52);
    assert_eq!(
        r.get(F::GuestRip),
        GUEST_CODE,
        "expired before the first instruction"
    );

    let mut r = Rig::root();
    r.or(F::PinControls, pin::PREEMPTION_TIMER);
    r.or(F::ExitControls, exit::SAVE_PREEMPTION_TIMER);
    r.set(F::PreemptionTimer, 100);
    r.bytes(GUEST_CODE, &[0xeb, 0xfe]);
    r.enter();
    for _ in 0..1000 {
        if !r.cpu().vmx.in_guest {
            break;
        }
        r.step();
    }
    assert_eq!(r.get(F::ExitReason), 52);
    assert_eq!(r.get(F::PreemptionTimer), 0);

    let mut r = Rig::root();
    r.or(F::PinControls, pin::PREEMPTION_TIMER);
    r.or(F::ExitControls, exit::SAVE_PREEMPTION_TIMER);
    r.set(F::PreemptionTimer, 1000);
    assert_eq!(r.run_guest(VMCALL), 18);
    assert!((990..=1000).contains(&r.get(F::PreemptionTimer)));
}

/// 26.5.1: the timer counts in HLT and shutdown, and ends them: the processor waits for that time, it does not pass
/// it by looking again and again.
#[test]
fn preemption_timer_while_inactive() {
    // Timer ticks of 32 TSC ticks each.
    const TICKS: u64 = 1 << 31;
    for activity in [0, 1, 2] {
        let mut r = Rig::root();
        r.or(F::PinControls, pin::PREEMPTION_TIMER);
        r.set(F::PreemptionTimer, TICKS);
        r.set(F::GuestActivity, activity);
        let retired = r.cpu().retired_now();
        // HLT, which does not exit.
        assert_eq!(r.run_guest(&[0xf4]), 52, "activity state {activity}");
        assert_eq!(r.get(F::GuestActivity), activity.max(1));
        let executed = r.cpu().retired_now() - retired;
        assert!(executed < 10, "{executed} in activity state {activity}");
        let lines = r.lines.lock().unwrap();
        let [Some(until)] = lines.waits[..] else {
            panic!("{:x?} in activity state {activity}", lines.waits);
        };
        // At most a timer tick and the TSC's 16 for each of the instructions around it are between.
        let from = until - 32 * TICKS;
        assert!(
            (16 * retired - 32..16 * (retired + 10)).contains(&from),
            "{from}"
        );
    }
    // Wait-for-SIPI: nothing but a SIPI.
    let mut r = Rig::root();
    r.or(F::PinControls, pin::PREEMPTION_TIMER);
    r.set(F::PreemptionTimer, 0);
    r.set(F::GuestActivity, 3);
    r.enter();
    let mut ended = None;
    for _ in 0..20 {
        ended = ended.or_else(|| r.runner.single_step());
    }
    assert_eq!(ended, Some(RunExit::Stopped), "it waits");
    assert!(r.cpu().vmx.in_guest);
    let lines = r.lines.lock().unwrap();
    assert!(lines.waits.iter().all(Option::is_none), "{:?}", lines.waits);
}

/// 26.5.2: the exit follows an instruction, also where that was decoded twice because another vCPU changed it.
#[test]
fn monitor_trap_flag_waits_for_code_that_changes() {
    let mut r = Rig::root();
    r.or(F::PrimaryControls, p::MONITOR_TRAP_FLAG);
    // MOV AL, 1, which becomes MOV AL, 2.
    r.bytes(GUEST_CODE, &[0xb0, 1]);
    r.enter();
    r.cpu().shared = true;
    r.runner.decoded = Some(Box::new(|ram| ram.store(RamOffset(GUEST_CODE + 1), 2_u8)));
    r.step();
    assert!(r.runner.decoded.is_none() && r.cpu().vmx.in_guest);
    assert_eq!(r.rip(), GUEST_CODE, "nothing was executed");
    r.step();
    r.step();
    assert_eq!(
        (r.get(F::ExitReason), r.get(F::GuestRip)),
        (37, GUEST_CODE + 2)
    );
    assert_eq!(r.cpu().regs[gpr::RAX] & 0xff, 2);
}

#[test]
fn tpr_shadow() {
    let mut r = Rig::root();
    r.or(F::PrimaryControls, p::TPR_SHADOW);
    r.set(F::VirtualApicAddress, VIRTUAL_APIC);
    r.set_qword(VIRTUAL_APIC + 0x80, 0x70);
    r.cpu().regs[gpr::RBX] = 9;
    // mov rax, cr8; mov cr8, rbx; vmcall
    let code = [
        0x44, 0x0f, 0x20, 0xc0, 0x44, 0x0f, 0x22, 0xc3, 0x0f, 0x01, 0xc1,
    ];
    assert_eq!(r.run_guest(&code), 18);
    assert_eq!(r.cpu().regs[gpr::RAX], 7);
    assert_eq!(r.qword(VIRTUAL_APIC + 0x80) as u32, 0x90);
    assert_eq!(
        r.lines.lock().unwrap().cr8,
        0,
        "the real TPR is not touched"
    );

    let mut r = Rig::root();
    r.or(F::PrimaryControls, p::TPR_SHADOW);
    r.set(F::VirtualApicAddress, VIRTUAL_APIC);
    r.set(F::TprThreshold, 5);
    r.set_qword(VIRTUAL_APIC + 0x80, 0x70);
    r.cpu().regs[gpr::RBX] = 4;
    assert_eq!(r.run_guest(&code[4..]), 43);
    assert_eq!(r.get(F::GuestRip), GUEST_CODE + 4, "a trap-like exit");
}

#[test]
fn activity_states() {
    let mut r = Rig::root();
    r.or(F::PinControls, pin::EXTERNAL_INTERRUPT_EXITING);
    r.set(F::GuestActivity, 1);
    r.raise(0x33);
    assert_eq!(r.run_guest(&[0x90]), 1);
    assert_eq!(r.get(F::GuestActivity), 1, "an exit does not leave HLT");
    assert_eq!(r.get(F::GuestRip), GUEST_CODE);

    let mut r = Rig::root();
    r.set(F::GuestActivity, 1);
    r.set(F::GuestRflags, 0x202);
    r.set(F::EntryInterruptionInfo, external(0x33));
    r.enter();
    assert_eq!(
        r.rip(),
        guest_handler(0x33),
        "an injected interrupt ends HLT"
    );
    assert_eq!(r.cpu().activity, vcpu::MpState::Running);

    let mut r = Rig::root();
    r.or(F::PinControls, pin::NMI_EXITING);
    r.set(F::GuestActivity, 2);
    r.enter();
    r.raise_nmi();
    r.step();
    assert_eq!(
        r.get(F::ExitReason),
        0,
        "an NMI reaches a guest in shutdown"
    );
    assert_eq!(r.get(F::GuestActivity), 2);
}

#[test]
fn debug_exceptions() {
    let mut r = Rig::root();
    r.set(F::ExceptionBitmap, 1 << DB);
    r.set(F::GuestRflags, 0x102);
    assert_eq!(r.run_guest(&[0x90, 0x90]), 0);
    assert_eq!(r.get(F::ExitInterruptionInfo), VALID | 3 << 8 | 1);
    assert_eq!(r.get(F::ExitQualification) & 0x4000, 0x4000, "BS");
    assert_eq!(r.get(F::GuestRip), GUEST_CODE + 1, "a trap");
    assert_eq!(r.cpu().dr6 & 0x4000, 0, "DR6 is not updated");

    // Pending debug exceptions are delivered after VM entry (27.7.3).
    let mut r = Rig::root();
    r.set(F::GuestPendingDebug, 1 << 12 | 1);
    r.bytes(GUEST_CODE, &[0x90]);
    r.enter();
    r.step();
    assert_eq!(r.rip() & !15, guest_handler(DB));
    assert_eq!(r.cpu().dr6 & 0xf, 1);
}

#[test]
fn exits_in_an_interrupt_shadow_save_it() {
    let mut r = Rig::root();
    r.or(F::PrimaryControls, p::HLT_EXITING);
    assert_eq!(r.run_guest(&[0xfb, 0xf4]), 12); // sti; hlt
    assert_eq!(r.get(F::GuestInterruptibility), 1);
    // Skipping the HLT without clearing the blocking, it still covers one instruction.
    r.or(F::PrimaryControls, p::INTERRUPT_WINDOW_EXITING);
    r.set(F::GuestRip, GUEST_CODE + 2);
    r.bytes(GUEST_CODE + 2, &[0x90, 0x90]);
    r.enter();
    r.step();
    r.step();
    assert_eq!(r.get(F::ExitReason), 7);
    assert_eq!(r.get(F::GuestRip), GUEST_CODE + 3);
}
