//! Task switches in VMX non-root operation (SDM Vol 3 26.4.2): the checks, then exit reason 9.

use x86defs::exception::{GP, NP, TS};
use x86defs::vmx::VmcsField as F;

use super::rig::*;

const TASK_SWITCH: u32 = 9;
const EXCEPTION: u32 = 0;
/// The guest's GDT, and a TSS.
const TABLE: u64 = DATA + 0x400;
const NEW: u64 = DATA + 0x800;
const NEW_TSS: u64 = 0x20;
const TASK_GATE: u64 = 0x28;
const OLD_TSS: u64 = 0x18;

const JMP_TSS: [u8; 7] = [0xea, 0, 0, 0, 0, NEW_TSS as u8, 0];
const CALL_TSS: [u8; 7] = [0x9a, 0, 0, 0, 0, NEW_TSS as u8, 0];
const JMP_GATE: [u8; 7] = [0xea, 0, 0, 0, 0, TASK_GATE as u8, 0];
const INT_40: [u8; 2] = [0xcd, 0x40];
const UD2: [u8; 2] = [0x0f, 0x0b];

fn tss(kind: u64) -> u64 {
    0x67 | (NEW & 0xff_ffff) << 16 | kind << 40 | (NEW >> 24) << 56
}

/// A guest in 32-bit protected mode without paging, with a second task; every exception exits.
fn legacy_guest() -> Rig {
    let mut rig = Rig::root();
    rig.set(F::EntryControls, 0x11ff);
    rig.set(F::GuestCr0, 0x31);
    rig.set(F::GuestCsAccess, 0xc09b);
    rig.set(F::GuestGdtrBase, TABLE);
    rig.set(F::GuestGdtrLimit, 0x2f);
    rig.set(F::ExceptionBitmap, u64::from(u32::MAX));
    for (i, d) in [
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x0000_8b00_0000_0067 | (TSS & 0xff_ffff) << 16,
        tss(0x89),
        NEW_TSS << 16 | 0x85 << 40,
    ]
    .into_iter()
    .enumerate()
    {
        rig.set_qword(TABLE + 8 * i as u64, d);
    }
    let gate = NEW_TSS << 16 | 0x85 << 40;
    rig.set_qword(GUEST_IDT + 8 * 0x40, gate);
    rig.set_qword(GUEST_IDT + 8 * 6, gate);
    rig
}

/// Table 28-2: selector and source; the length of the instruction; the state is the old task's.
#[test]
fn exits() {
    for (code, source) in [(&JMP_TSS, 2u64), (&CALL_TSS, 0), (&JMP_GATE, 2)] {
        let mut rig = legacy_guest();
        assert_eq!(rig.run_guest(code), TASK_SWITCH, "{code:02x?}");
        assert_eq!(rig.get(F::ExitQualification), NEW_TSS | source << 30);
        assert_eq!(rig.get(F::ExitInstructionLength), 7);
        assert_eq!(rig.get(F::GuestRip), GUEST_CODE);
        assert_eq!(rig.get(F::GuestTrSelector), OLD_TSS);
        assert_eq!(rig.get(F::IdtVectoringInfo), 0);
        assert_eq!(rig.qword(TABLE + NEW_TSS), tss(0x89), "not busy");
    }
    // IRET to the link, which must be busy.
    let mut rig = legacy_guest();
    rig.set_qword(TABLE + NEW_TSS, tss(0x8b));
    rig.set_qword(TSS, NEW_TSS);
    rig.set(F::GuestRflags, 0x4002);
    assert_eq!(rig.run_guest(&[0xcf]), TASK_SWITCH);
    assert_eq!(rig.get(F::ExitQualification), NEW_TSS | 1 << 30);
    assert_eq!(rig.get(F::ExitInstructionLength), 1);
}

/// Through the IDT the event is in the IDT-vectoring information (28.2.4).
#[test]
fn exits_of_events() {
    let mut rig = legacy_guest();
    assert_eq!(rig.run_guest(&INT_40), TASK_SWITCH);
    assert_eq!(rig.get(F::ExitQualification), NEW_TSS | 3 << 30);
    assert_eq!(rig.get(F::IdtVectoringInfo), 0x8000_0440);
    assert_eq!(rig.get(F::ExitInstructionLength), 2);
    assert_eq!(rig.get(F::GuestRip), GUEST_CODE);
    let mut rig = legacy_guest();
    rig.set(F::ExceptionBitmap, 0);
    assert_eq!(rig.run_guest(&UD2), TASK_SWITCH);
    assert_eq!(rig.get(F::ExitQualification), NEW_TSS | 3 << 30);
    assert_eq!(rig.get(F::IdtVectoringInfo), 0x8000_0306);
}

/// 26.4.2: what is checked before there can be an exit.
#[test]
fn faults_come_first() {
    type Prepare = fn(&mut Rig);
    let cases: [(&str, &[u8], Prepare, u8, u64); 5] = [
        (
            "busy",
            &JMP_TSS,
            |r| r.set_qword(TABLE + 0x20, tss(0x8b)),
            GP,
            0x20,
        ),
        (
            "absent",
            &CALL_TSS,
            |r| r.set_qword(TABLE + 0x20, tss(0x09)),
            NP,
            0x20,
        ),
        (
            "gate absent",
            &JMP_GATE,
            |r| r.set_qword(TABLE + 0x28, 0x20 << 16 | 5 << 40),
            NP,
            0x28,
        ),
        (
            "outside",
            &JMP_TSS,
            |r| r.set(F::GuestGdtrLimit, 0x1f),
            GP,
            0x20,
        ),
        (
            "short",
            &JMP_TSS,
            |r| r.set_qword(TABLE + 0x20, tss(0x89) - 1),
            TS,
            0x20,
        ),
    ];
    for (what, code, prepare, vector, error) in cases {
        let mut rig = legacy_guest();
        prepare(&mut rig);
        assert_eq!(rig.run_guest(code), EXCEPTION, "{what}");
        assert_eq!(
            rig.get(F::ExitInterruptionInfo) & 0xff,
            u64::from(vector),
            "{what}"
        );
        assert_eq!(rig.get(F::ExitInterruptionErrorCode), error, "{what}");
    }
}

/// 28.2.2: exceptions of real-address mode have no error code.
#[test]
fn no_error_code_in_real_mode() {
    let mut rig = Rig::root();
    rig.set(F::EntryControls, 0x11ff);
    rig.set(F::GuestCr0, 0x30);
    rig.set(F::GuestCsAccess, 0x9b);
    rig.set(F::GuestCsLimit, 0xffff);
    rig.set(F::ExceptionBitmap, u64::from(u32::MAX));
    rig.set(F::GuestCsBase, GUEST_CODE);
    rig.set(F::GuestRip, 0);
    rig.bytes(GUEST_CODE, &[0x67, 0x8b, 0x05, 0xff, 0xff, 0xff, 0xff]);
    rig.set(F::GUEST_LIMITS[3], 0xffff);
    rig.set(F::GUEST_ACCESS[3], 0x93);
    rig.enter();
    rig.step();
    assert_eq!(rig.get(F::ExitReason), u64::from(EXCEPTION));
    assert_eq!(rig.get(F::ExitInterruptionInfo), 0x8000_030d);
}
