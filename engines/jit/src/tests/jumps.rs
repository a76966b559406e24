//! Jumps to other pages are remembered no longer than the translations they rest on (SDM Vol 3 4.10.4.1), and jumps to
//! code that was changed lead to what is there now (Vol 3 9.1.3).

use super::{End, Machine, TABLE};

/// Page and frame of the function, and the frame it is moved to.
const PAGE: u64 = 0x1_4000;
const OTHER_FRAME: u64 = 0x1_8000;
/// Offset of a function that only returns.
const NEAR: u64 = 0x100;
/// Where all of memory is mapped once more; pages there share the TLB's slots with those they stand for.
const AGAIN: u64 = (softcpu::mem::SLOTS as u64) << 12;
const DIRECTORY: u64 = super::DIRECTORY;
/// Of a page-table entry: present, writable; global.
const RW: u64 = 3;
const G: u64 = 1 << 8;

const INVLPG: [u8; 3] = [0x0f, 0x01, 0x3e];
const WRITE_CR3: [u8; 3] = [0x0f, 0x22, 0xd8];

struct Program {
    bytes: Vec<u8>,
}

impl Program {
    fn call(&mut self, to: u64) {
        let next = super::CODE + self.bytes.len() as u64 + 5;
        self.bytes.push(0xe8);
        let distance = to.wrapping_sub(next) as u32;
        self.bytes.extend(distance.to_le_bytes());
    }
}

/// Calls a function some times, moves its page to another frame as `entry` says, does what `flush` says, calls it again.
/// Whether that was the function in the other frame. `displaced`: between the two something else is called that shares
/// the TLB's slot.
fn moved(before: u64, after: u64, displaced: bool, flush: &[u8]) -> bool {
    let mut m = Machine::translated();
    let entry = TABLE + 8 * (PAGE >> 12);
    m.put(entry, &(PAGE | before).to_le_bytes());
    let alias = m.get::<8>(DIRECTORY);
    m.put(DIRECTORY + 8 * (AGAIN >> 21), &alias);
    for (frame, number) in [(PAGE, 1), (OTHER_FRAME, 2)] {
        // shl rbx, 4; add rbx, number; ret
        m.put(
            frame,
            &[0x48, 0xc1, 0xe3, 4, 0x48, 0x83, 0xc3, number, 0xc3],
        );
        m.put(frame + NEAR, &[0xc3]);
    }
    m.state.system.cr4 |= 1 << 7;
    m.state.gpr[0] = m.state.system.cr3;
    m.state.gpr[1] = OTHER_FRAME | after;
    m.state.gpr[3] = 0;
    m.state.gpr[6] = PAGE;
    m.state.gpr[7] = entry;
    let mut p = Program { bytes: Vec::new() };
    for _ in 0..4 {
        p.call(PAGE);
    }
    if displaced {
        p.call(PAGE + AGAIN + NEAR);
    }
    // mov [rdi], rcx
    p.bytes.extend([0x48, 0x89, 0x0f]);
    if displaced {
        // mov rdx, [rsi]: the new translation takes the slot
        p.bytes.extend([0x48, 0x8b, 0x16]);
    }
    p.bytes.extend(flush);
    p.call(PAGE);
    assert_eq!(m.run(&p.bytes), End::Whole);
    let digits = m.state.gpr[3];
    assert_eq!(digits >> 4, 0x1111);
    digits & 15 == 2
}

#[test]
fn a_flush_of_the_page_takes_jumps_there_along() {
    for before in [RW, RW | G] {
        for displaced in [false, true] {
            assert!(moved(before, before, displaced, &INVLPG));
        }
    }
}

/// SDM Vol 3 4.10.4.1: an INVLPG anywhere in a page of 2 MByte takes the whole translation away, jumps included.
#[test]
fn a_flush_of_a_large_page_takes_jumps_there_along() {
    let mut m = Machine::translated();
    // All of memory once more, as one page; then another table for the same.
    let entry = DIRECTORY + 8 * (AGAIN >> 21);
    m.put(entry, &(RW | 1 << 7).to_le_bytes());
    let table = super::DATA[0];
    m.put(table + 8 * (PAGE >> 12), &(OTHER_FRAME | RW).to_le_bytes());
    for (frame, number) in [(PAGE, 1), (OTHER_FRAME, 2)] {
        m.put(
            frame,
            &[0x48, 0xc1, 0xe3, 4, 0x48, 0x83, 0xc3, number, 0xc3],
        );
    }
    m.state.gpr[1] = table | RW;
    m.state.gpr[3] = 0;
    m.state.gpr[6] = AGAIN + 0x1f_f000;
    m.state.gpr[7] = entry;
    let mut p = Program { bytes: Vec::new() };
    for _ in 0..4 {
        p.call(AGAIN + PAGE);
    }
    // mov [rdi], rcx
    p.bytes.extend([0x48, 0x89, 0x0f]);
    p.bytes.extend(INVLPG);
    p.call(AGAIN + PAGE);
    assert_eq!(m.run(&p.bytes), End::Whole);
    assert_eq!(m.state.gpr[3], 0x1_1112);
}

#[test]
fn a_flush_of_all_takes_jumps_along() {
    for displaced in [false, true] {
        assert!(moved(RW, RW, displaced, &WRITE_CR3));
        // What they rest on was not global, whatever is now.
        assert!(moved(RW, RW | G, displaced, &WRITE_CR3));
    }
}

#[test]
fn jumps_to_global_pages_stay() {
    assert!(!moved(RW | G, RW | G, false, &WRITE_CR3));
}

/// How often code is left for a block, with a function that is called, changed, and called `times` more.
fn left_for_block(times: u8) -> u64 {
    let mut m = Machine::translated();
    // add rbx, 1; ret
    m.put(PAGE, &[0x48, 0x83, 0xc3, 1, 0xc3]);
    let executable = PAGE | RW;
    m.put(TABLE + 8 * (PAGE >> 12), &executable.to_le_bytes());
    m.state.gpr[3] = 0;
    m.state.gpr[6] = PAGE;
    let mut p = Program { bytes: Vec::new() };
    p.call(PAGE);
    p.call(PAGE);
    // mov byte [rsi + 3], 2; mov ecx, times
    p.bytes.extend([0xc6, 0x46, 3, 2, 0xb9, times, 0, 0, 0]);
    let start = p.bytes.len();
    p.call(PAGE);
    // dec ecx; jnz start
    p.bytes.extend([0xff, 0xc9, 0x75]);
    let distance = start as i64 - p.bytes.len() as i64 - 1;
    p.bytes.push(distance as u8);
    assert_eq!(m.run(&p.bytes), End::Whole);
    assert_eq!(m.state.gpr[3], 2 + 2 * u64::from(times));
    m.vcpu.profile().counts["left_for_block"]
}

#[test]
fn jumps_to_what_was_changed_lead_to_what_is_there_now() {
    assert_eq!(left_for_block(200), left_for_block(20));
}

/// Two blocks lead to a third in their page. It is changed again and again, while they go there by turns.
#[test]
fn all_ways_to_a_block_that_was_changed_lead_to_what_is_there_now() {
    const TIMES: u64 = 240;
    let mut m = Machine::translated_after(1);
    // The third block's place, and what it adds.
    m.state.gpr[6] = super::CODE;
    m.state.gpr[3] = 0;
    m.state.gpr[1] = TIMES;
    m.state.gpr[0] = 1;
    let third = 0x100;
    let mut p = vec![0x90; third];
    let jump = |p: &mut Vec<u8>, at: usize, to: usize| {
        p[at] = 0xe9;
        p[at + 1..at + 5].copy_from_slice(&(to as i32 - at as i32 - 5).to_le_bytes());
    };
    // test cl, 1; jz 40h
    p[..5].copy_from_slice(&[0xf6, 0xc1, 1, 0x74, 0x40 - 5]);
    jump(&mut p, 0x20, third);
    jump(&mut p, 0x60, third);
    // add rbx, 1; dec ecx
    p.extend([0x48, 0x83, 0xc3, 1, 0xff, 0xc9]);
    // test cl, 0fh; jnz over; inc eax; mov [rsi + 103h], al; over:
    p.extend([0xf6, 0xc1, 15, 0x75, 8, 0xff, 0xc0]);
    p.extend([0x88, 0x86]);
    p.extend((third as u32 + 3).to_le_bytes());
    // test ecx, ecx; jnz start
    p.extend([0x85, 0xc9, 0x0f, 0x85]);
    p.extend((-(p.len() as i32) - 4).to_le_bytes());
    assert_eq!(m.run(&p), End::Whole);
    let sum: u64 = (0..TIMES).map(|n| 1 + n / 16).sum();
    assert_eq!(m.state.gpr[3], sum);
    // Some times for each of the 15 changes, not each time.
    assert!(m.vcpu.profile().counts["left_for_block"] < TIMES / 2);
}
