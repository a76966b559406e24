//! Hardware task switches (SDM Vol 3 chapter 8).

use x86defs::exception::{DB, GP, NP, SS, TS};
use x86defs::rflags;

use crate::cpu::gpr::*;
use crate::cpu::{RIP, sreg};
use crate::testing::*;

/// Another task: its TSS, descriptor, code and stack.
const NEW: u64 = 0x5_8000;
const NEW_TSS: u16 = 0x100;
const NEW_CODE: u64 = 0x2_8000;
const NEW_STACK: u64 = 0x3_8000;
/// A descriptor for the tests to play with, a task gate, an LDT's descriptor.
const SPARE: u16 = 0x108;
const TASK_GATE: u16 = 0x110;
const LDT: u16 = 0x118;

const JMP: [u8; 7] = [0xea, 0, 0, 0, 0, NEW_TSS as u8, (NEW_TSS >> 8) as u8];
const CALL: [u8; 7] = [0x9a, 0, 0, 0, 0, NEW_TSS as u8, (NEW_TSS >> 8) as u8];
const IRET: [u8; 1] = [0xcf];

fn descriptor(b: &Bench, selector: u16, value: u64) {
    b.put(GDT + u64::from(selector & !7), value);
}

fn tss_descriptor(kind: u64, base: u64, limit: u64) -> u64 {
    limit | (base & 0xff_ffff) << 16 | kind << 40 | (base >> 24) << 56
}

fn type_byte(b: &Bench, selector: u16) -> u8 {
    b.at(GDT + u64::from(selector & !7) + 5)
}

/// Words of the 32-bit TSS of the new task.
fn field(b: &Bench, offset: u64, value: u32) {
    b.put(NEW + offset, value);
}

/// 32-bit protected mode with a second task of privilege 0.
fn two_tasks() -> Bench {
    let mut b = Bench::protected();
    b.cpu().gdtr.limit = 0xfff;
    descriptor(&b, sel::TSS, tss_descriptor(0x8b, TSS, 0x67));
    descriptor(&b, NEW_TSS, tss_descriptor(0x89, NEW, 0x67));
    descriptor(&b, TASK_GATE, u64::from(NEW_TSS) << 16 | 0x85 << 40);
    descriptor(&b, LDT, tss_descriptor(0x82, 0x5_9000, 0xff));
    for i in 0..8 {
        field(&b, 0x28 + 4 * i, 0x1111_0000 + i as u32);
    }
    field(&b, 0x20, NEW_CODE as u32);
    field(&b, 0x24, 0x246);
    field(&b, 0x38, NEW_STACK as u32);
    for i in 0..6 {
        field(&b, 0x48 + 4 * i, u32::from(sel::DATA));
    }
    field(&b, 0x4c, u32::from(sel::CODE32));
    for r in 0..8 {
        if r != RSP {
            b.set(r, 0x2222_0000 + r as u64);
        }
    }
    b.cpu().set_rflags(0x246 | rflags::DF);
    b
}

/// What an exception pushed: error code, EIP, CS, EFLAGS.
fn frame(b: &Bench) -> [u32; 4] {
    std::array::from_fn(|i| b.at(b.get(RSP) + 4 * i as u64))
}

/// 8.3: JMP saves the old task, loads the new one, and moves the busy flag. It does not nest.
#[test]
fn jump_to_a_tss() {
    let mut b = two_tasks();
    let flags = b.cpu().rflags();
    assert_eq!(b.run(&JMP), Outcome::Next(NEW_CODE));
    for i in 0..8u64 {
        let old: u32 = b.at(TSS + 0x28 + 4 * i);
        let expected = if i == 4 { STACK } else { 0x2222_0000 + i };
        assert_eq!(u64::from(old), expected, "register {i}");
        let expected = if i == 4 { NEW_STACK } else { 0x1111_0000 + i };
        assert_eq!(b.get(i as usize), expected, "register {i}");
    }
    assert_eq!(b.at::<u32>(TSS + 0x20), CODE as u32 + 7);
    assert_eq!(u64::from(b.at::<u32>(TSS + 0x24)), flags);
    assert_eq!(b.at::<u16>(TSS + 0x4c), sel::CODE32);
    assert_eq!(b.at::<u16>(TSS + 0x50), sel::DATA);
    assert_eq!(type_byte(&b, sel::TSS), 0x89);
    assert_eq!(type_byte(&b, NEW_TSS), 0x8b);
    assert_eq!(b.at::<u16>(NEW), 0, "no link");
    let cpu = b.cpu();
    assert_eq!(cpu.rflags(), 0x246);
    assert_eq!(cpu.tr.selector.0, NEW_TSS);
    assert_eq!((cpu.tr.base, cpu.tr.access.0), (NEW, 0x8b));
    assert_ne!(cpu.cr0 & 8, 0, "CR0.TS");
    assert_eq!(cpu.seg[sreg::SS].selector.0, sel::DATA);
}

/// 8.4: CALL leaves a link and sets NT; IRET with NT goes back and clears both busy flag and NT of the task it leaves.
#[test]
fn call_and_return() {
    let mut b = two_tasks();
    assert_eq!(b.run(&CALL), Outcome::Next(NEW_CODE));
    assert_eq!(b.at::<u16>(NEW), sel::TSS);
    assert_eq!(type_byte(&b, sel::TSS), 0x8b);
    assert_eq!(type_byte(&b, NEW_TSS), 0x8b);
    assert_eq!(b.cpu().rflags(), 0x246 | rflags::NT);
    b.set(RAX, 0x3333);
    assert_eq!(b.run(&IRET), Outcome::Next(CODE + 7));
    assert_eq!(type_byte(&b, sel::TSS), 0x8b);
    assert_eq!(type_byte(&b, NEW_TSS), 0x89);
    assert_eq!(b.get(RAX), 0x2222_0000);
    assert_eq!(b.at::<u32>(NEW + 0x28), 0x3333);
    assert_eq!(b.at::<u32>(NEW + 0x20), NEW_CODE as u32 + 1);
    assert_eq!(b.at::<u32>(NEW + 0x24), 0x246, "NT is not saved");
    assert_eq!(b.cpu().rflags(), 0x246 | rflags::DF);
    assert_eq!(b.cpu().tr.selector.0, sel::TSS);
}

/// 8.2.5: a task gate in the GDT leads to the same task.
#[test]
fn task_gate() {
    let mut b = two_tasks();
    assert_eq!(
        b.run(&[0xea, 0, 0, 0, 0, TASK_GATE as u8, 1]),
        Outcome::Next(NEW_CODE)
    );
    // The privilege of a gate counts, that of the TSS does not.
    let mut b = two_tasks();
    b.cpu().cpl = 1;
    assert_eq!(
        b.run(&[0xea, 0, 0, 0, 0, TASK_GATE as u8, 1]),
        Outcome::Vector(GP)
    );
}

/// 6.14.2 ("Interrupt tasks" 6.12.2): an exception through a task gate pushes its error code on the new task's
/// stack and saves the faulting EIP, with RF in the image.
#[test]
fn exception_through_a_task_gate() {
    let mut b = two_tasks();
    let gate: u64 = b.at(GDT + u64::from(TASK_GATE));
    b.put(IDT + 8 * 13, gate);
    // MOV DS, AX with a selector outside of the GDT.
    b.set(RAX, 0x1230);
    b.put::<u16>(NEW_CODE, 0xfeeb);
    assert_eq!(b.run(&[0x8e, 0xd8]), Outcome::Next(NEW_CODE));
    assert_eq!(b.get(RSP), NEW_STACK - 4);
    assert_eq!(b.at::<u32>(NEW_STACK - 4), 0x1230);
    assert_eq!(b.at::<u32>(TSS + 0x20), CODE as u32);
    assert_eq!(b.at::<u32>(TSS + 0x24) & 0x1_0000, 0x1_0000);
    assert_eq!(b.at::<u16>(NEW), sel::TSS);
    assert_ne!(b.cpu().rflags() & rflags::NT, 0);
    // INT n saves the EIP behind itself; a gate of privilege 0 refuses CPL 3.
    let mut b = two_tasks();
    b.put(IDT + 8 * 0x50, gate);
    assert_eq!(b.run(&[0xcd, 0x50]), Outcome::Next(NEW_CODE));
    assert_eq!(b.at::<u32>(TSS + 0x20), CODE as u32 + 2);
    assert_eq!(b.get(RSP), NEW_STACK);
}

/// Faults of the old task (Table 8-1; Vol 2 JMP, IRET): nothing has changed.
#[test]
fn faults_before_the_switch() {
    type Prepare = fn(&mut Bench);
    let cases: [(&str, &[u8], Prepare, u8, u32); 9] = [
        (
            "busy",
            &JMP,
            |b| descriptor(b, NEW_TSS, tss_descriptor(0x8b, NEW, 0x67)),
            GP,
            0x100,
        ),
        (
            "not present",
            &JMP,
            |b| descriptor(b, NEW_TSS, tss_descriptor(0x09, NEW, 0x67)),
            NP,
            0x100,
        ),
        (
            "limit",
            &CALL,
            |b| descriptor(b, NEW_TSS, tss_descriptor(0x89, NEW, 0x66)),
            TS,
            0x100,
        ),
        (
            "limit of 16 bits",
            &CALL,
            |b| descriptor(b, NEW_TSS, tss_descriptor(0x81, NEW, 0x2a)),
            TS,
            0x100,
        ),
        (
            "old TSS too short",
            &JMP,
            |b| b.cpu().tr.limit = 0x40,
            TS,
            0x18,
        ),
        (
            "gate not present",
            &[0xea, 0, 0, 0, 0, TASK_GATE as u8, 1],
            |b| descriptor(b, TASK_GATE, u64::from(NEW_TSS) << 16 | 0x05 << 40),
            NP,
            0x110,
        ),
        (
            "gate to an LDT",
            &[0xea, 0, 0, 0, 0, TASK_GATE as u8, 1],
            |b| descriptor(b, TASK_GATE, 0x104 << 16 | 0x85 << 40),
            GP,
            0x104,
        ),
        (
            "link to what is not busy",
            &IRET,
            |b| {
                b.put(TSS, NEW_TSS);
                b.cpu().set_rflags(0x4002);
            },
            TS,
            0x100,
        ),
        (
            "link to nothing",
            &IRET,
            |b| {
                b.put::<u16>(TSS, 0);
                b.cpu().set_rflags(0x4002);
            },
            TS,
            0,
        ),
    ];
    for (what, code, prepare, vector, error) in cases {
        let mut b = two_tasks();
        prepare(&mut b);
        assert_eq!(b.run(code), Outcome::Vector(vector), "{what}");
        assert_eq!(frame(&b)[..3], [error, CODE as u32, 0x40], "{what}");
        assert_eq!(b.cpu().tr.selector.0, sel::TSS, "{what}");
        assert_eq!(b.get(RSP), STACK - 16, "{what}");
    }
}

/// Faults of the new task (8.3 step 13): TR, EIP, CS and the stack are the new ones.
#[test]
fn faults_after_the_switch() {
    // (what, offset in the TSS, value, a spare descriptor, vector, error code)
    let data = 0x00cf_9300_0000_ffffu64;
    let code = 0x00cf_9b00_0000_ffffu64;
    for (what, offset, value, spare, vector, error) in [
        ("DS outside", 0x54, 0x2000, data, TS, 0x2000),
        ("DS not present", 0x54, 0x108, data & !(1 << 47), NP, 0x108),
        ("DS not readable", 0x54, 0x108, code & !(1 << 41), TS, 0x108),
        ("ES with a low DPL", 0x48, 0x10b, data, TS, 0x108),
        ("GS a system segment", 0x5c, 0x118, data, TS, 0x118),
    ] {
        let mut b = two_tasks();
        descriptor(&b, SPARE, spare);
        field(&b, offset, value);
        assert_eq!(b.run(&JMP), Outcome::Vector(vector), "{what}");
        assert_eq!(
            frame(&b),
            [error, NEW_CODE as u32, 0x40, 0x1_0246],
            "{what}"
        );
        assert_eq!(b.get(RSP), NEW_STACK - 16, "{what}");
        assert_eq!(b.cpu().tr.selector.0, NEW_TSS, "{what}");
    }
    // With an SS that is bad or not loaded yet the exception cannot be pushed at this level: it needs a task (6.15,
    // "Invalid TSS Exception").
    let ldt = tss_descriptor(0x02, 0x5_9000, 0xff);
    for (offset, value, spare, vector, error) in [
        (0x60, 0x10, data, TS, 0x10),
        (0x60, 0x14, data, TS, 0x14),
        (0x60, 0x108, ldt, TS, 0x108),
        (0x50, 0x108, data & !(1 << 47), SS, 0x108),
        (0x50, 0x108, code, TS, 0x108),
        (0x50, 0, data, TS, 0),
        (0x4c, 0x108, code & !(1 << 47), NP, 0x108),
        (0x4c, 0x108, data, TS, 0x108),
        (0x4c, 0, data, TS, 0),
    ] {
        let mut b = two_tasks();
        descriptor(&b, SPARE, spare);
        field(&b, offset, value);
        // A third task for the exception.
        let third = 0x5_a000;
        for i in 0..0x68 / 4 {
            let v: u32 = b.at(NEW + 4 * i);
            b.put(third + 4 * i, v);
        }
        b.put(third + 0x4c, u32::from(sel::CODE32));
        b.put(third + 0x50, u32::from(sel::DATA));
        b.put(third + 0x60, 0u32);
        descriptor(&b, 0x120, tss_descriptor(0x89, third, 0x67));
        b.put::<u64>(IDT + 8 * u64::from(vector), 0x120 << 16 | 0x85 << 40);
        assert_eq!(
            b.run(&JMP),
            Outcome::Next(NEW_CODE),
            "{offset:#x} {value:#x}"
        );
        assert_eq!(b.cpu().tr.selector.0, 0x120);
        assert_eq!(b.at::<u16>(third), NEW_TSS, "nested in the new task");
        assert_eq!(b.at::<u32>(NEW_STACK - 4), error);
        assert_eq!(b.at::<u32>(NEW + 0x20), NEW_CODE as u32);
    }
    // The new EIP beyond CS's limit (Vol 2, JMP).
    let mut b = two_tasks();
    descriptor(&b, SPARE, 0x0040_9b00_0000_ffff);
    field(&b, 0x4c, 0x108);
    assert_eq!(b.run(&JMP), Outcome::Vector(GP));
    assert_eq!(frame(&b)[..3], [0, NEW_CODE as u32, 0x108]);
}

/// 8.6: a 16-bit TSS has IP, FLAGS, eight registers and four selectors.
#[test]
fn sixteen_bit_tss() {
    let mut b = two_tasks();
    descriptor(&b, NEW_TSS, tss_descriptor(0x81, NEW, 0x2b));
    let words = [
        0u16,
        0,
        0,
        0,
        0,
        0,
        0,
        0x8000,
        0x0246,
        0xa0,
        0xa1,
        0xa2,
        0xa3,
        0x9000,
        0xa5,
        0xa6,
        0xa7,
        sel::DATA,
        sel::CODE32,
        sel::DATA,
        sel::DATA,
        LDT,
    ];
    for (i, w) in words.into_iter().enumerate() {
        b.put(NEW + 2 * i as u64, w);
    }
    assert_eq!(b.run(&CALL), Outcome::Next(0x8000));
    for (r, v) in [(RAX, 0xa0), (RCX, 0xa1), (RSP, 0x9000), (RDI, 0xa7)] {
        assert_eq!(b.get(r) & 0xffff, v);
    }
    assert_eq!(b.at::<u16>(NEW), sel::TSS);
    assert_eq!(type_byte(&b, NEW_TSS), 0x83);
    assert_eq!(b.cpu().ldtr.selector.0, LDT);
    assert_eq!(b.cpu().ldtr.limit, 0xff);
    assert_eq!(b.cpu().seg[sreg::FS].selector.0, 0);
    assert_eq!(b.cpu().rflags(), 0x246 | rflags::NT);
    b.set(RDX, 0x4444);
    assert_eq!(b.run(&IRET), Outcome::Next(CODE + 7));
    assert_eq!(b.at::<u16>(NEW + 0x0e), 0x8001);
    assert_eq!(b.at::<u16>(NEW + 0x16), 0x4444);
    assert_eq!(b.at::<u16>(NEW + 0x10), 0x246);
    assert_eq!(b.get(RDX), 0x2222_0002);
}

/// 18.3.1.5: the T flag traps before the new task's first instruction. 18.2.4: local breakpoints end.
#[test]
fn debug_trap_flag() {
    let mut b = two_tasks();
    field(&b, 0x64, 1);
    b.cpu().dr7 = 0x7ff;
    assert_eq!(b.run(&JMP), Outcome::Next(NEW_CODE));
    assert_eq!(b.cpu().dr7, 0x6aa);
    assert_eq!(b.step(), Outcome::Vector(DB));
    assert_ne!(b.cpu().dr6 & 1 << 15, 0, "BT");
    assert_eq!(b.at::<u32>(b.get(RSP)), NEW_CODE as u32);
}

/// 21.2.2: a task with VM in its EFLAGS runs in virtual-8086 mode.
#[test]
fn virtual_8086_task() {
    let mut b = two_tasks();
    field(&b, 0x24, 0x2_0246);
    field(&b, 0x20, 0x100);
    for i in 0..6 {
        field(&b, 0x48 + 4 * i, 0x2000 + i as u32);
    }
    assert_eq!(b.run(&JMP), Outcome::Next(0x100));
    let cpu = b.cpu();
    assert!(cpu.v8086());
    assert_eq!(cpu.cpl, 3);
    for (i, s) in cpu.seg.iter().enumerate() {
        assert_eq!(s.base, 0x2_0000 + 16 * i as u64);
        assert_eq!((s.limit, s.access.0), (0xffff, 0xf3));
    }
}

/// 8.7: there are no task switches in IA-32e mode.
#[test]
fn not_in_long_mode() {
    let mut b = Bench::long();
    b.cpu().gdtr.limit = 0xfff;
    descriptor(&b, NEW_TSS, tss_descriptor(0x89, NEW, 0x67));
    // JMP m16:32 through RBX.
    b.set(RBX, DATA);
    b.put::<u32>(DATA, 0);
    b.put::<u16>(DATA + 4, NEW_TSS);
    assert_eq!(b.fault(&[0xff, 0x2b], GP), u64::from(NEW_TSS));
    let mut b = Bench::long();
    b.cpu().set_rflags(0x4002);
    assert_eq!(b.fault(&[0x48, 0xcf], GP), 0);
    let mut b = Bench::long();
    b.put::<u64>(IDT + 16 * 0x50, 0x100 << 16 | 0x85 << 40);
    assert_eq!(b.fault(&[0xcd, 0x50], GP), 0x50 << 3 | 2);
    assert_eq!(b.at::<u64>(b.get(RSP) + 8), CODE);
    assert_ne!(b.get(RIP), CODE);
}
