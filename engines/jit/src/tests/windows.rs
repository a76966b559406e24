//! Accesses that go without a check, since one before has made it.

use super::random::Random;
use super::sites::AGAIN;
use super::{DATA, DIRECTORY, End, Machine, STACK, Slices, TABLE};

/// A page.
const PAGE: u64 = 0x2_6000;
/// Rounds of a loop: enough for it to be a region.
const ROUNDS: u64 = 60;
/// Of a page-table entry: present, writable, accessed.
const RW: u64 = 3;
const A: u64 = 1 << 5;

/// A loop that counts RCX down.
fn counted(body: &[u8]) -> Vec<u8> {
    let mut p = vec![0xb9, ROUNDS as u8, 0, 0, 0];
    p.extend(body);
    p.extend([0xff, 0xc9, 0x75, (-4 - body.len() as i64) as u8]);
    p
}

/// The translated one has regions.
fn both(program: &[u8], prepare: impl Fn(&mut Machine)) -> Machine {
    let [translated, interpreted] =
        [Machine::translated(), Machine::one_interpreted_of(1)].map(|mut m| {
            m.state.gpr = [0; 16];
            m.state.gpr[4] = STACK;
            prepare(&mut m);
            assert_eq!(m.run(program), End::Whole);
            m
        });
    assert!(translated.vcpu.profile().counts["regions"] > 0);
    assert_eq!(translated.state.gpr, interpreted.state.gpr);
    assert_eq!(translated.state.rflags, interpreted.state.rflags);
    translated
}

/// Three arrays in turn: what leads to each is kept while the others are accessed, so that no access has a check of its
/// own.
#[test]
fn accesses_to_other_places_come_in_between() {
    let body = [
        // mov rax, [rbx]; add rax, [rsi+8]; mov [rdi+rdx*8], rax; add rax, [rbx+8]; add rax, [rsi]
        0x48, 0x8b, 0x03, 0x48, 0x03, 0x46, 8, 0x48, 0x89, 0x04, 0xd7, 0x48, 0x03, 0x43, 8, 0x48,
        0x03, 0x06, // mov [rdi+rdx*8+8], rax; add rbx, 16; lea rsi, [rsi+16]; add rdx, 2
        0x48, 0x89, 0x44, 0xd7, 8, 0x48, 0x83, 0xc3, 16, 0x48, 0x8d, 0x76, 16, 0x48, 0x83, 0xc2, 2,
    ];
    let number = |array: u64, n: u64| (array + 1) * 1_000_000 + n * n;
    let m = both(&counted(&body), |m| {
        for (array, base) in [DATA[0], DATA[1]].into_iter().enumerate() {
            for n in 0..2 * ROUNDS {
                m.put(base + 8 * n, &number(array as u64, n).to_le_bytes());
            }
        }
        [m.state.gpr[3], m.state.gpr[6], m.state.gpr[7]] = DATA;
    });
    for n in (0..2 * ROUNDS).step_by(2) {
        let first = number(0, n) + number(1, n + 1);
        let second = first + number(0, n + 1) + number(1, n);
        let at = DATA[2] + 8 * n;
        assert_eq!(u64::from_le_bytes(m.get(at)), first, "{n}");
        assert_eq!(u64::from_le_bytes(m.get(at + 8)), second, "{n}");
    }
    assert_eq!(m.vcpu.profile().counts["sites_given"], 0);
}

/// A handler may have had the TLB forget the page: then it is walked to, which sets its accessed bit.
#[test]
fn windows_end_with_a_handler() {
    let mut body = vec![
        // add rdx, [rbx]; add rdx, [r12]; add rdx, [rbx]; add rdx, [rbx+8]
        0x48, 0x03, 0x13, 0x49, 0x03, 0x14, 0x24, 0x48, 0x03, 0x13, 0x48, 0x03, 0x53, 8,
    ];
    // str [rbx+AGAIN+16], by its handler; mov [rdi], r14; add rdx, [rbx]
    body.extend([0x0f, 0x00, 0x8b]);
    body.extend((AGAIN as u32 + 16).to_le_bytes());
    body.extend([0x4c, 0x89, 0x37, 0x48, 0x03, 0x13]);
    let entry = TABLE + 8 * (PAGE >> 12);
    let m = both(&counted(&body), |m| {
        let alias: [u8; 8] = m.get(DIRECTORY);
        m.put(DIRECTORY + 8 * (AGAIN >> 21), &alias);
        m.put(PAGE, &1u64.to_le_bytes());
        m.state.gpr[3] = PAGE;
        m.state.gpr[7] = entry;
        m.state.gpr[12] = DATA[0];
        // Not accessed.
        m.state.gpr[14] = PAGE | RW;
    });
    assert_eq!(m.state.gpr[2], 3 * ROUNDS);
    assert_eq!(u64::from_le_bytes(m.get(entry)) & A, A);
}

/// A window over the end of a page is none: what is before and behind it is accessed all the same.
#[test]
fn streams_cross_page_ends() {
    let body = [
        // movups xmm0, [rbx]; movups xmm1, [rbx+16]; movups [rdi], xmm0; movups [rdi+16], xmm1
        0x0f, 0x10, 0x03, 0x0f, 0x10, 0x4b, 16, 0x0f, 0x11, 0x07, 0x0f, 0x11, 0x4f, 16,
        // add rbx, 32; sub rdi, -32
        0x48, 0x83, 0xc3, 32, 0x48, 0x83, 0xef, 0xe0,
    ];
    let bytes: Vec<u8> = (0..32 * ROUNDS).map(|n| (n * n / 7) as u8).collect();
    for (before_source, before_target) in [(1000, 700), (999, 32), (5, 1001), (64, 64)] {
        let source = 0x2_1000 - before_source;
        let target = 0x3_1000 - before_target;
        let m = both(&counted(&body), |m| {
            m.put(source, &bytes);
            [m.state.gpr[3], m.state.gpr[7]] = [source, target];
        });
        let found: [u8; 32 * ROUNDS as usize] = m.get(target);
        assert_eq!(found[..], bytes, "{before_source} {before_target}");
    }
}

/// Where the page ends inside of what a window would be, in every round, the region is made anew without windows; where it
/// does not, it stays.
#[test]
fn a_region_whose_windows_fail_is_made_anew() {
    const MANY: u32 = 20_000;
    // add rdx, [rbx]; add rdx, [rbx+8]; add rdx, [rbx+16]
    let body = [0x48, 0x03, 0x13, 0x48, 0x03, 0x53, 8, 0x48, 0x03, 0x53, 16];
    let mut program = counted(&body);
    program[1..5].copy_from_slice(&MANY.to_le_bytes());
    for (before_end, parted) in [(8, 1), (16, 1), (24, 0), (64, 0)] {
        let m = both(&program, |m| {
            let at = DATA[0] + 4096 - before_end;
            for n in 0..3 {
                m.put(at + 8 * n, &(1_u64 << (20 * n)).to_le_bytes());
            }
            m.state.gpr[3] = at;
            // Time is up again and again.
            let drawn = Some((Random(7), 2000));
            *m.slices.lock().unwrap() = Slices {
                drawn,
                ends: Vec::new(),
            };
        });
        let sum = (1 | 1 << 20 | 1_u64 << 40).wrapping_mul(MANY.into());
        assert_eq!(m.state.gpr[2], sum, "{before_end}");
        let counts = m.vcpu.profile().counts;
        assert_eq!(counts["regions_parted"], parted, "{before_end}");
    }
}
