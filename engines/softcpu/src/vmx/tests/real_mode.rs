//! Unrestricted guests in real-address mode: events by the vector table (SDM Vol 3 21.1.4, 27.6.1, 28.2.4).

use guestmem::RamOffset;
use x86defs::vmx::VmcsField as F;
use x86defs::vmx::control::primary;

use super::rig::*;
use crate::cpu::{RIP, gpr, sreg};

const VALID: u64 = 1 << 31;
const TABLE: u64 = 0x5_0000;
const IF: u64 = 1 << 9;
/// The first bytes of the stack segment's frame, of three words.
const FRAME: u64 = 0x1_7ffa;

/// A guest in real-address mode whose handler of a vector v is at 0500:0100 + v.
fn guest() -> Rig {
    let mut r = real_mode();
    r.set(F::GuestIdtrBase, TABLE);
    r.set(F::GuestIdtrLimit, 0x3ff);
    for v in 0..256 {
        let entry = 0x0500_0100 + v as u32;
        r.ram.store::<u32>(RamOffset(TABLE + 4 * v), entry);
    }
    r
}

fn frame(r: &Rig) -> [u64; 3] {
    [0, 2, 4].map(|at| u64::from(r.ram.load::<u16>(RamOffset(FRAME + at))))
}

/// Injects an event of `info` with RFLAGS and gives the machine in the handler.
fn injected(info: u64, flags: u64) -> Rig {
    let mut r = guest();
    r.set(F::GuestRflags, flags | 2);
    r.set(F::EntryInterruptionInfo, VALID | info);
    r.set(F::EntryInstructionLength, 2);
    r.enter();
    let c = r.cpu();
    assert!(c.vmx.in_guest, "{info:#x}");
    let vector = info & 0xff;
    assert_eq!(c.regs[RIP], 0x100 + vector, "{info:#x}");
    let cs = c.seg[sreg::CS];
    assert_eq!((cs.selector.0, cs.base, cs.limit), (0x500, 0x5000, 0xffff));
    assert_eq!(c.regs[gpr::RSP], 0x7ffa);
    assert_eq!(c.rflags() & (IF | 1 << 8), 0, "IF and TF are cleared");
    r
}

/// FLAGS, CS and IP are pushed; the return address of software events is behind their instruction.
#[test]
fn events_go_through_the_vector_table() {
    for (info, flags, ip) in [
        (0x21, IF, 0x4000),
        (0x300 | 6, 0, 0x4000),
        (0x300 | 13, 0, 0x4000),
        (0x400 | 0x15, IF, 0x4002),
        (0x600 | 3, 0, 0x4002),
    ] {
        let r = injected(info, flags);
        assert_eq!(frame(&r)[..2], [ip, 0x1000], "{info:#x}");
        // RF of a fault is above what is pushed.
        assert_eq!(frame(&r)[2], flags | 2, "{info:#x}");
    }
    let mut r = injected(0x200 | 2, 0);
    assert!(r.cpu().nmi_blocked, "an injected NMI blocks NMIs");
}

/// SDM Vol 3 27.2.1.3: no error code without CR0.PE.
#[test]
fn an_error_code_cannot_be_injected() {
    for (deliver, outcome) in [(0, None), (1 << 11, Some(Outcome::FailValid(7)))] {
        let mut r = guest();
        r.set(F::EntryInterruptionInfo, VALID | deliver | 0x300 | 13);
        r.enter();
        match outcome {
            None => assert!(r.cpu().vmx.in_guest),
            Some(outcome) => assert_eq!(r.outcome(), outcome),
        }
    }
}

/// A vector beyond the table is #GP, a double fault, and a triple fault, each beyond it as well.
#[test]
fn a_short_table_ends_in_a_triple_fault() {
    let mut r = guest();
    r.set(F::GuestIdtrLimit, 0x1f);
    r.set(F::EntryInterruptionInfo, VALID | 0x300 | 8);
    r.enter();
    assert_eq!(r.get(F::ExitReason), 2);
    assert_eq!(r.get(F::IdtVectoringInfo), 0);
}

/// 28.2.4: an exit in the delivery names the event; its accesses are accesses by linear address (28.2.1).
#[test]
fn an_exit_in_delivery_names_the_event() {
    let mut r = guest();
    r.set(F::GuestIdtrBase, EPT_SMALL);
    r.set_qword(EPT_PT, 0);
    r.set(F::GuestRflags, IF | 2);
    r.set(F::EntryInterruptionInfo, VALID | 0x21);
    r.enter();
    assert_eq!(r.get(F::ExitReason), 48);
    assert_eq!(r.get(F::IdtVectoringInfo), VALID | 0x21);
    assert_eq!(r.get(F::ExitQualification) & 0x187, 0x181);
    assert_eq!(r.get(F::GuestLinearAddress), EPT_SMALL + 4 * 0x21);
    assert_eq!(r.get(F::GuestPhysicalAddress), EPT_SMALL + 4 * 0x21);
    assert_eq!(r.get(F::GuestRip), 0x4000);
    assert_eq!(r.get(F::GuestRsp), 0x8000);
    assert_eq!(r.get(F::GuestRflags), IF | 2);
}

/// 26.5 and 27.7.5: the window is there before the first instruction, or behind the one that opens it and the next.
#[test]
fn the_interrupt_window() {
    let mut r = guest();
    r.or(F::PrimaryControls, primary::INTERRUPT_WINDOW_EXITING);
    r.set(F::GuestRflags, IF | 2);
    r.bytes(0x1_4000, &[0x90, 0x90]);
    r.enter();
    r.step();
    assert_eq!((r.get(F::ExitReason), r.get(F::GuestRip)), (7, 0x4000));
    r.set(F::GuestRflags, 2);
    r.bytes(0x1_4000, &[0xfb, 0x90, 0x90]); // sti; nop; nop
    r.enter();
    for _ in 0..3 {
        if r.cpu().vmx.in_guest {
            r.step();
        }
    }
    assert_eq!((r.get(F::ExitReason), r.get(F::GuestRip)), (7, 0x4002));
}

/// 24.8 and 26.3: PE and PG are the guest's; segments stay as they are until they are loaded.
#[test]
fn into_protected_mode() {
    let mut r = guest();
    // mov eax, cr0; or al, 1; mov cr0, eax; cpuid
    r.bytes(
        0x1_4000,
        &[0x0f, 0x20, 0xc0, 0x0c, 1, 0x0f, 0x22, 0xc0, 0x0f, 0xa2],
    );
    r.enter();
    for _ in 0..4 {
        r.step();
    }
    assert_eq!((r.get(F::ExitReason), r.get(F::GuestRip)), (10, 0x4008));
    assert_eq!(r.get(F::GuestCr0) & 0x8000_0001, 1);
    assert_eq!(r.get(F::GuestCsAccess), 0x93);
    assert_eq!(r.get(F::GuestCsSelector), 0x1000);
    // And it can be entered again.
    r.enter();
    assert!(r.cpu().vmx.in_guest, "{:x}", r.get(F::ExitQualification));
}
