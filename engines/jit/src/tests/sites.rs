//! Accesses by sites find what the TLB would lead them to, whatever was done to it.

use super::random::Random;
use super::{DATA, End, Machine, STACK, TABLE};

/// Page of the accesses, and the frame it is moved to.
const PAGE: u64 = 0x2_6000;
const OTHER_FRAME: u64 = 0x2_8000;
/// Where all of memory is mapped once more; pages there share the TLB's slots with those they stand for.
pub(super) const AGAIN: u64 = (softcpu::mem::SLOTS as u64) << 12;
/// Rounds of a loop: enough for it to be a region.
const ROUNDS: u8 = 60;
/// Of a page-table entry: present, writable, accessed.
const P: u64 = 1;
const RW: u64 = 3;
const A: u64 = 1 << 5;

/// mov ecx, ROUNDS
const COUNT: [u8; 5] = [0xb9, ROUNDS, 0, 0, 0];
/// mov [rdi], rax; mov rax, r14: the page-table entry, and the next one
const MOVE: [u8; 6] = [0x48, 0x89, 0x07, 0x4c, 0x89, 0xf0];

/// A loop three times, with something in between: the first time it becomes a region, the second its sites are filled.
fn thrice(body: &[u8], between: &[u8]) -> Vec<u8> {
    let mut p = COUNT.to_vec();
    p.extend(body);
    // dec ecx; jnz
    p.extend([0xff, 0xc9, 0x75, (-4 - body.len() as i64) as u8]);
    // dec r8d; js out
    let behind = (between.len() + COUNT.len() + 2) as u8;
    p.extend([0x41, 0xff, 0xc8, 0x78, behind]);
    p.extend(between);
    p.extend(COUNT);
    // Not by way of the block that begins with counting.
    let distance = COUNT.len() as i64 - 2 - p.len() as i64;
    p.extend([0xeb, distance as u8]);
    p
}

/// Both pages hold their number at 0. RBX is the address of accesses, RDI that of their page-table entry, which RAX is,
/// R14 the other one, RSI CR3, RBP another CR4, R12 an address of data.
fn prepare(m: &mut Machine, before: u64, after: u64) {
    let entry = TABLE + 8 * (PAGE >> 12);
    m.put(entry, &(PAGE | before).to_le_bytes());
    m.put(OTHER_FRAME, &0x1000u64.to_le_bytes());
    m.put(PAGE, &1u64.to_le_bytes());
    let alias = m.get::<8>(super::DIRECTORY);
    m.put(super::DIRECTORY + 8 * (AGAIN >> 21), &alias);
    m.state.gpr = [0; 16];
    m.state.gpr[0] = PAGE | before;
    m.state.gpr[3] = PAGE;
    m.state.gpr[4] = STACK;
    m.state.gpr[5] = m.state.system.cr4 ^ 1 << 7;
    m.state.gpr[6] = m.state.system.cr3;
    m.state.gpr[7] = entry;
    m.state.gpr[8] = 2;
    m.state.gpr[12] = DATA[2];
    m.state.gpr[14] = OTHER_FRAME | after;
}

/// RDX and the numbers at 8 in both frames, after a program of [`thrice`].
fn run(m: &mut Machine, program: &[u8]) -> [u64; 3] {
    assert_eq!(m.run(program), End::Whole);
    let at = |frame| u64::from_le_bytes(m.get(frame + 8));
    [m.state.gpr[2], at(PAGE), at(OTHER_FRAME)]
}

fn translated(before: u64, after: u64, program: &[u8]) -> [u64; 3] {
    let mut m = Machine::translated();
    prepare(&mut m, before, after);
    let found = run(&mut m, program);
    assert!(m.vcpu.profile().counts["sites_given"] > 0, "by sites");
    found
}

fn interpreted(before: u64, after: u64, program: &[u8]) -> [u64; 3] {
    let mut m = Machine::one_interpreted_of(1);
    prepare(&mut m, before, after);
    run(&mut m, program)
}

/// SDM Vol 3 4.10.4.1.
#[test]
fn flushes_take_sites_along() {
    // add rdx, [rbx]; mov [rbx+8], rdx
    let body = [0x48, 0x03, 0x13, 0x48, 0x89, 0x53, 8];
    let rounds = u64::from(ROUNDS);
    let wanted = [0x1002 * rounds, 2 * rounds, 0x1002 * rounds];
    let flushes: [&[u8]; 3] = [
        // invlpg [rbx]
        &[0x0f, 0x01, 0x3b],
        // mov cr3, rsi
        &[0x0f, 0x22, 0xde],
        // xor ebp, 80h; mov cr4, rbp: PGE changes
        &[0x81, 0xf5, 0x80, 0, 0, 0, 0x0f, 0x22, 0xe5],
    ];
    for flush in flushes {
        let program = thrice(&body, &[&MOVE, flush].concat());
        assert_eq!(translated(RW, RW, &program), wanted, "{flush:02x?}");
    }
}

/// Where the TLB's slot is filled anew without a flush, the next access is by the new one, as the interpreter's is.
#[test]
fn a_slot_that_is_filled_anew_takes_its_sites_along() {
    // add rdx, [rbx]; between: mov [r12+8], rcx, which needs the right to write; mov r12, rbx
    let body = [0x48, 0x03, 0x13];
    let write = [0x49, 0x89, 0x4c, 0x24, 8, 0x49, 0x89, 0xdc];
    let program = thrice(&body, &[&MOVE[..], &write].concat());
    let found = translated(P, RW, &program);
    assert_eq!(found, interpreted(P, RW, &program));
    assert_eq!(found[0], 0x1002 * u64::from(ROUNDS));
}

/// A page whose slot was given to another one is walked to again: its accessed bit is set.
#[test]
fn no_walk_is_left_out_for_a_site() {
    let body = [0x48, 0x03, 0x13];
    for mut m in [Machine::translated(), Machine::one_interpreted_of(1)] {
        prepare(&mut m, RW, RW);
        // The entry without its accessed bit.
        m.state.gpr[14] = PAGE | RW;
        // mov r9, [rbx+AGAIN]
        let other = [0x4c, 0x8b, 0x8b, 0, 0, 0, (AGAIN >> 24) as u8];
        let program = thrice(&body, &[&MOVE[..], &other].concat());
        assert_eq!(run(&mut m, &program)[0], 3 * u64::from(ROUNDS));
        let entry = u64::from_le_bytes(m.get(TABLE + 8 * (PAGE >> 12)));
        assert_eq!(entry & A, A);
    }
}

/// A store by a site to a page that has been executed in the meantime changes what is executed.
#[test]
fn a_page_that_turns_into_code_is_no_longer_stored_to_by_sites() {
    // mov [rbx+4], edx
    let body = [0x89, 0x53, 4];
    let call: &[u8] = &[
        // call r12; shl r10, 4; add r10, rax; add edx, 2; mov r12, rbx
        0x41, 0xff, 0xd4, 0x49, 0xc1, 0xe2, 4, 0x49, 0x01, 0xc2, 0x83, 0xc2, 2, 0x49, 0x89, 0xdc,
    ];
    let mut program = thrice(&body, call);
    // Once more at the end.
    program.extend(&call[..10]);
    let mut m = Machine::translated();
    prepare(&mut m, RW, RW);
    // nop; mov eax, ...; ret
    m.put(PAGE, &[0x0f, 0x1f, 0, 0xb8, 0, 0, 0, 0, 0xc3]);
    // Something else to call at first: ret
    m.put(OTHER_FRAME, &[0xc3]);
    let entry = TABLE + 8 * (OTHER_FRAME >> 12);
    m.put(entry, &(OTHER_FRAME | RW).to_le_bytes());
    m.state.gpr[12] = OTHER_FRAME;
    m.state.gpr[0] = 0;
    m.state.gpr[2] = 5;
    run(&mut m, &program);
    assert_eq!(m.state.gpr[10], 0x79);
}

/// An empty site answers for no address, nor does a full one for an address beside its page or one that is not
/// canonical.
#[test]
fn sites_answer_for_their_page_alone() {
    // mov rdx, [rbx]; the next address
    let body = [0x48, 0x8b, 0x13, 0x48, 0x8b, 0x5b, 8];
    for off in [0u64, 1, 4, 7] {
        for first in [DATA[0], DATA[1] - 8] {
            for last in [
                DATA[0] + 4096 - off,
                DATA[1] - off,
                u64::MAX - off,
                DATA[1] | 1 << 63,
                DATA[0] | 1 << 52,
            ] {
                // Where the site has the page of the first address by then, or is empty.
                for then in [first, last] {
                    let states =
                        [Machine::translated(), Machine::one_interpreted_of(1)].map(|mut m| {
                            prepare(&mut m, RW, RW);
                            m.put(first + 8, &first.to_le_bytes());
                            m.put(DATA[1], &[0x5a; 16]);
                            m.put(first, &off.to_le_bytes());
                            m.state.gpr[3] = first;
                            [m.state.gpr[9], m.state.gpr[14]] = [then, last];
                            // mov rbx, r9; mov r9, r14
                            let program = thrice(&body, &[0x4c, 0x89, 0xcb, 0x4d, 0x89, 0xf1]);
                            let end = m.run(&program);
                            (end, m.state.gpr, m.state.rflags)
                        });
                    assert_eq!(states[0], states[1], "{first:x} {then:x} {last:x}");
                }
            }
        }
    }
}

/// A place that is at another page each time is by the TLB again; one that is not stays.
#[test]
fn sites_are_for_what_stays_on_its_page() {
    let mut m = Machine::translated_from(1);
    m.slices.lock().unwrap().drawn = Some((Random(1), 300));
    prepare(&mut m, RW, RW);
    [m.state.gpr[6], m.state.gpr[3]] = [DATA[0], PAGE];
    // mov ecx, 100000; again: add rdx, [rbx]; xor rbx, 8, so that there is no window; add rdx, [rsi];
    // xor rsi, 2000h; dec ecx; jnz again
    let program = [
        0xb9, 0xa0, 0x86, 1, 0, 0x48, 0x03, 0x13, 0x48, 0x83, 0xf3, 8, 0x48, 0x03, 0x16, 0x48,
        0x81, 0xf6, 0, 0x20, 0, 0, 0xff, 0xc9, 0x75, 0xeb,
    ];
    assert_eq!(m.run(&program), End::Whole);
    assert_eq!(DATA[0] ^ 0x2000, DATA[1]);
    let counts = &m.vcpu.profile().counts;
    assert_eq!([counts["sites_given"], counts["sites_taken"]], [2, 1]);
}

/// So is one whose site is empty each time although it stays on its page.
#[test]
fn sites_are_for_what_finds_its_page_there() {
    let mut m = Machine::translated_from(1);
    m.slices.lock().unwrap().drawn = Some((Random(1), 300));
    prepare(&mut m, RW, RW);
    [m.state.gpr[6], m.state.gpr[3]] = [DATA[0], PAGE];
    // mov ecx, 100000; again: add rdx, [rbx]; add rdx, [rsi]; invlpg [rbx]; dec ecx; jnz again
    let program = [
        0xb9, 0xa0, 0x86, 1, 0, 0x48, 0x03, 0x13, 0x48, 0x03, 0x16, 0x0f, 0x01, 0x3b, 0xff, 0xc9,
        0x75, 0xf3,
    ];
    assert_eq!(m.run(&program), End::Whole);
    let counts = &m.vcpu.profile().counts;
    assert_eq!(counts["sites_taken"], 1);
}
