//! Hardware task switches (chapter 8).

use runtime::legacy::{self, Record, State};
use runtime::memory::write_bytes;
use runtime::{check_eq, section};

use crate::{CODE, DATA, END_VECTOR, STACK, kernel, place, read16, read32, user, what};

/// The other task: TSS, code, stack.
const NEW: u64 = DATA;
const NEW_CODE: u64 = CODE + 0x2000;
const NEW_STACK: u64 = STACK + 0x4000;
const NEW_TSS: u16 = legacy::SPARE;
const TASK_GATE: u16 = legacy::SPARE + 8;
const EXTRA: u16 = legacy::SPARE + 16;

const BUSY: u64 = 2 << 40;

fn put32(offset: u64, value: u32) {
    write_bytes(NEW + offset, &value.to_le_bytes());
}

fn put16(offset: u64, value: u16) {
    write_bytes(NEW + offset, &value.to_le_bytes());
}

/// Two tasks; the new one ends at once.
fn prepare() {
    legacy::install();
    legacy::set_descriptor(NEW_TSS, legacy::segment(NEW, 0x67, 0x89, 0));
    legacy::set_descriptor(TASK_GATE, legacy::gate(0x85, NEW_TSS, 0, 0));
    for i in 0..26 {
        put32(4 * i, 0);
    }
    put32(0x20, NEW_CODE as u32);
    put32(0x24, 2);
    for i in 0..8 {
        put32(0x28 + 4 * i, 0x1111_0000 + i as u32);
    }
    put32(0x38, NEW_STACK as u32);
    for i in 0..6 {
        put32(0x48 + 4 * i, u32::from(legacy::DATA));
    }
    put32(0x4c, u32::from(legacy::CODE));
    place(NEW_CODE, &[]);
}

fn far(opcode: u8, selector: u16) -> [u8; 7] {
    let [low, high] = selector.to_le_bytes();
    [opcode, 0, 0, 0, 0, low, high]
}

fn run_code(code: &[u8], state: &State) -> Record {
    place(CODE, code);
    legacy::protected(state)
}

/// The busy flags of both tasks, the first one's as the end found it.
fn busy_flags(r: &Record) -> (bool, bool) {
    let old = u64::from(r.tss_descriptor) << 32;
    (old & BUSY != 0, legacy::descriptor(NEW_TSS) & BUSY != 0)
}

pub fn run() {
    switches();
    events();
    faults();
    narrow();
    debug();
    legacy::install();
}

fn switches() {
    section("8.3 JMP to a TSS");
    prepare();
    let mut s = kernel();
    s.gpr = [0xa0, 0xa1, 0xa2, 0xa3, 0xa5, 0xa6, 0xa7];
    s.eflags = 0x402;
    let r = run_code(&far(0xea, NEW_TSS), &s);
    check_eq!(
        what(&r),
        (END_VECTOR, 0, NEW_CODE as u32 + 2),
        "the new task"
    );
    check_eq!(r.tr, u32::from(NEW_TSS), "TR");
    check_eq!(r.cr0 & 8, 8, "CR0.TS");
    check_eq!(
        [
            r.gpr[7], r.gpr[6], r.gpr[5], r.gpr[4], r.gpr[2], r.gpr[1], r.gpr[0]
        ],
        [
            0x1111_0000,
            0x1111_0001,
            0x1111_0002,
            0x1111_0003,
            0x1111_0005,
            0x1111_0006,
            0x1111_0007
        ],
        "registers"
    );
    check_eq!(r.eflags & 0x4000, 0, "NT");
    check_eq!(busy_flags(&r), (false, true), "busy flags");
    let old = legacy::tss_base();
    let saved: [u32; 10] = core::array::from_fn(|i| read32(old + 0x20 + 4 * i as u64));
    check_eq!(
        saved,
        [
            CODE as u32 + 7,
            0x402,
            0xa0,
            0xa1,
            0xa2,
            0xa3,
            s.esp,
            0xa5,
            0xa6,
            0xa7
        ],
        "EIP, EFLAGS and registers of the old task"
    );
    let selectors: [u16; 4] = core::array::from_fn(|i| read16(old + 0x48 + 4 * i as u64));
    check_eq!(
        selectors,
        [legacy::DATA, legacy::CODE, legacy::DATA, legacy::DATA],
        "its ES, CS, SS, DS"
    );

    section("8.4 CALL and IRET");
    prepare();
    let r = run_code(&far(0x9a, NEW_TSS), &kernel());
    check_eq!(r.eflags & 0x4000, 0x4000, "NT");
    check_eq!(busy_flags(&r), (true, true), "busy flags");
    check_eq!(read16(NEW), legacy::TSS, "the link");
    prepare();
    place(NEW_CODE, &[0xcf]);
    let r = run_code(&far(0x9a, NEW_TSS), &kernel());
    check_eq!(
        what(&r),
        (END_VECTOR, 0, CODE as u32 + 9),
        "back behind CALL"
    );
    check_eq!(r.tr, u32::from(legacy::TSS), "TR");
    check_eq!(busy_flags(&r), (true, false), "busy flags");
    check_eq!(read32(NEW + 0x20), NEW_CODE as u32 + 1, "EIP behind IRET");
    check_eq!(read32(NEW + 0x24) & 0x4000, 0, "NT is not saved");

    section("8.2.5 task gates");
    prepare();
    let r = run_code(&far(0xea, TASK_GATE), &kernel());
    check_eq!(what(&r), (END_VECTOR, 0, NEW_CODE as u32 + 2), "JMP");
    prepare();
    let r = run_code(&far(0x9a, TASK_GATE | 3), &user());
    check_eq!(
        what(&r),
        (13, u32::from(TASK_GATE), CODE as u32),
        "its privilege"
    );
    legacy::set_descriptor(TASK_GATE, legacy::gate(0xe5, NEW_TSS, 0, 0));
    let r = run_code(&far(0x9a, TASK_GATE | 3), &user());
    check_eq!(r.vector, END_VECTOR, "not that of the TSS");
    check_eq!(
        read16(legacy::tss_base() + 0x50),
        legacy::USER_DATA,
        "SS of CPL 3"
    );
}

fn events() {
    section("6.12.2 interrupt tasks");
    prepare();
    legacy::set_gate(13, legacy::gate(0x85, NEW_TSS, 0, 0));
    place(NEW_CODE, &[0x58]);
    // MOV ES, 1230h.
    let r = run_code(&[0xb8, 0x30, 0x12, 0, 0, 0x8e, 0xc0], &user());
    check_eq!(
        (r.vector, r.gpr[7]),
        (END_VECTOR, 0x1230),
        "the error code on the new stack"
    );
    let old = legacy::tss_base();
    check_eq!(read32(old + 0x20), CODE as u32 + 5, "EIP of the fault");
    check_eq!(read32(old + 0x24) & 1 << 16, 1 << 16, "RF in its EFLAGS");
    check_eq!(read16(NEW), legacy::TSS, "the link");
    prepare();
    legacy::set_gate(0x41, legacy::gate(0xe5, NEW_TSS, 0, 0));
    place(NEW_CODE, &[0xcf]);
    let r = run_code(&[0xcd, 0x41], &user());
    check_eq!(what(&r), (END_VECTOR, 0, CODE as u32 + 4), "INT n and back");
    check_eq!(r.cs, u32::from(legacy::USER_CODE), "to CPL 3");
}

fn faults() {
    section("Table 8-1, in the old task");
    let new = u32::from(NEW_TSS);
    let at = CODE as u32;
    for (descriptor, expected, name) in [
        (legacy::segment(NEW, 0x67, 0x8b, 0), (13, new, at), "busy"),
        (
            legacy::segment(NEW, 0x67, 0x09, 0),
            (11, new, at),
            "not present",
        ),
        (
            legacy::segment(NEW, 0x66, 0x89, 0),
            (10, new, at),
            "too short",
        ),
        (legacy::segment(NEW, 0x67, 0x82, 0), (13, new, at), "an LDT"),
    ] {
        prepare();
        legacy::set_descriptor(NEW_TSS, descriptor);
        let r = run_code(&far(0xea, NEW_TSS), &kernel());
        check_eq!(what(&r), expected, "{name}");
        check_eq!(r.tr, u32::from(legacy::TSS), "TR: {name}");
    }
    prepare();
    write_bytes(legacy::tss_base(), &NEW_TSS.to_le_bytes());
    let s = kernel();
    // NT by POPF, as the entry to the test is an IRET itself.
    let code = [0x68, 0x02, 0x40, 0, 0, 0x9d, 0xcf];
    let r = run_code(&code, &s);
    check_eq!(what(&r), (10, new, at + 6), "IRET to what is not busy");

    section("Table 8-1, in the new task");
    let in_new = NEW_CODE as u32;
    let data = 0x00cf_9300_0000_ffff;
    let extra = u32::from(EXTRA);
    for (offset, selector, descriptor, expected, name) in [
        (0x54, 0x2000, data, (10, 0x2000, in_new), "DS outside"),
        (
            0x54,
            extra,
            data & !(1 << 47),
            (11, extra, in_new),
            "DS not present",
        ),
        (
            0x48,
            extra | 3,
            data,
            (10, extra, in_new),
            "ES with a low DPL",
        ),
        (
            0x58,
            extra,
            0x00cf_9900_0000_ffff,
            (10, extra, in_new),
            "FS not readable",
        ),
    ] {
        prepare();
        legacy::set_descriptor(EXTRA, descriptor);
        put32(offset, selector);
        let r = run_code(&far(0xea, NEW_TSS), &s);
        check_eq!(what(&r), expected, "{name}");
        check_eq!(r.tr, new, "TR: {name}");
    }
}

fn narrow() {
    section("8.6 TSSs of 16 bits");
    prepare();
    legacy::set_descriptor(NEW_TSS, legacy::segment(NEW, 0x2b, 0x81, 0));
    legacy::set_descriptor(EXTRA, legacy::segment(CODE, 0xffff, 0x9b, 4));
    for i in 0..22 {
        put16(2 * i, 0);
    }
    put16(0x0e, 0x2000);
    put16(0x10, 2);
    put16(0x12, 0xaaaa);
    put16(0x1a, 0x4000);
    for i in 0..4 {
        put16(0x22 + 2 * i, legacy::DATA);
    }
    put16(0x24, EXTRA);
    legacy::set_descriptor(legacy::DATA16, legacy::segment(STACK, 0xffff, 0x93, 0));
    put16(0x26, legacy::DATA16);
    place(NEW_CODE, &[0xcf]);
    let r = run_code(&far(0x9a, NEW_TSS), &kernel());
    check_eq!(what(&r), (END_VECTOR, 0, CODE as u32 + 9), "there and back");
    check_eq!(read16(NEW + 0x0e), 0x2001, "its IP");
    check_eq!(read16(NEW + 0x12), 0xaaaa, "its AX");
    check_eq!(read16(NEW), legacy::TSS, "its link");
}

fn debug() {
    section("18.3.1.5 the debug trap flag");
    prepare();
    put32(0x64, 1);
    let r = run_code(&far(0xea, NEW_TSS), &kernel());
    check_eq!(
        what(&r),
        (1, 0, NEW_CODE as u32),
        "before the first instruction"
    );
    check_eq!(r.dr6 & 1 << 15, 1 << 15, "BT");
    section("8.7 a task in virtual-8086 mode");
    prepare();
    put32(0x24, 0x2_3002);
    put32(0x20, 0x2000);
    for i in 0..6 {
        put32(0x48 + 4 * i, 0x2000);
    }
    write_bytes(NEW + 4, &(legacy::stack_top() as u32).to_le_bytes());
    write_bytes(NEW + 8, &u32::from(legacy::DATA).to_le_bytes());
    let r = run_code(&far(0xea, NEW_TSS), &kernel());
    check_eq!(
        (r.vector, r.eip, r.cs),
        (END_VECTOR, 0x2002, 0x2000),
        "its code"
    );
    check_eq!(r.eflags & 1 << 17, 1 << 17, "VM");
}
