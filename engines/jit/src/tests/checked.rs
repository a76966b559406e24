//! Functions that are changed all the time, which compare their bytes when they are entered: a changed value, a changed
//! instruction, and what others change count at the next call (SDM Vol 3 9.1.3).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use guestmem::RamOffset;

use super::random::Random;
use super::{CODE, DATA, End, Machine, STOP, Slices, TABLE};

/// The function's page, and where it is there: over two words, neither whole.
const FUNCTION: u64 = 0x1_4000 + 0x105;
const CALLS: u32 = 300;
/// A function is changed as often until it is checked, and some.
const UNTIL_CHECKED: u64 = 64;

/// What a function does: of the value in it and of what RAX, RDX, R10, and R11 are, to RAX.
type Does = fn(u64, u64) -> u64;

fn signed(value: u64) -> u64 {
    i64::from(value as u32 as i32) as u64
}

fn low(value: u64) -> u64 {
    value & 0xffff_ffff
}

/// Their bytes, where the value is in them, how many bytes of it are changed.
const FUNCTIONS: [(&str, &[u8], u64, u64, Does); 19] = [
    ("mov eax, v", &[0xb8, 0, 0, 0, 0, 0xc3], 1, 4, |v, _| low(v)),
    (
        "mov rax, v of 64 bits",
        &[0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xc3],
        2,
        8,
        |v, _| v,
    ),
    (
        "mov rax, v",
        &[0x48, 0xc7, 0xc0, 0, 0, 0, 0, 0xc3],
        3,
        4,
        |v, _| signed(v),
    ),
    (
        "mov r10d, v; mov rax, r10",
        &[0x41, 0xba, 0, 0, 0, 0, 0x4c, 0x89, 0xd0, 0xc3],
        2,
        4,
        |v, _| low(v),
    ),
    (
        "mov r11, v of 64 bits; mov rax, r11",
        &[0x49, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x4c, 0x89, 0xd8, 0xc3],
        2,
        8,
        |v, _| v,
    ),
    (
        "mov r11, v; mov rax, r11",
        &[0x49, 0xc7, 0xc3, 0, 0, 0, 0, 0x4c, 0x89, 0xd8, 0xc3],
        3,
        4,
        |v, _| signed(v),
    ),
    (
        "mov eax, v in the long form",
        &[0xc7, 0xc0, 0, 0, 0, 0, 0xc3],
        2,
        4,
        |v, _| low(v),
    ),
    (
        "add edx, v; mov rax, rdx",
        &[0x81, 0xc2, 0, 0, 0, 0, 0x48, 0x89, 0xd0, 0xc3],
        2,
        4,
        |v, x| low(x.wrapping_add(v)),
    ),
    (
        "sub rdx, v; mov rax, rdx",
        &[0x48, 0x81, 0xea, 0, 0, 0, 0, 0x48, 0x89, 0xd0, 0xc3],
        3,
        4,
        |v, x| x.wrapping_sub(signed(v)),
    ),
    (
        "xor r10, v; mov rax, r10",
        &[0x49, 0x81, 0xf2, 0, 0, 0, 0, 0x4c, 0x89, 0xd0, 0xc3],
        3,
        4,
        |v, x| x ^ signed(v),
    ),
    (
        "and r10d, v; mov rax, r10",
        &[0x41, 0x81, 0xe2, 0, 0, 0, 0, 0x4c, 0x89, 0xd0, 0xc3],
        3,
        4,
        |v, x| low(x & v),
    ),
    (
        "or rax, v",
        &[0x48, 0x0d, 0, 0, 0, 0, 0xc3],
        2,
        4,
        |v, x| x | signed(v),
    ),
    ("sub eax, v", &[0x2d, 0, 0, 0, 0, 0xc3], 1, 4, |v, x| {
        low(x.wrapping_sub(v))
    }),
    (
        "cmp rdx, v; sbb rax, rax",
        &[0x48, 0x81, 0xfa, 0, 0, 0, 0, 0x48, 0x19, 0xc0, 0xc3],
        3,
        4,
        |v, x| if x < signed(v) { u64::MAX } else { 0 },
    ),
    (
        "cmp r10d, v; setl al; movzx eax, al",
        &[
            0x41, 0x81, 0xfa, 0, 0, 0, 0, 0x0f, 0x9c, 0xc0, 0x0f, 0xb6, 0xc0, 0xc3,
        ],
        3,
        4,
        |v, x| u64::from((x as i32) < v as i32),
    ),
    (
        "cmp eax, v; mov r10, rax; seto al; movzx eax, al; add rax, r10",
        &[
            0x3d, 0, 0, 0, 0, 0x49, 0x89, 0xc2, 0x0f, 0x90, 0xc0, 0x0f, 0xb6, 0xc0, 0x4c, 0x01,
            0xd0, 0xc3,
        ],
        1,
        4,
        |v, x| x.wrapping_add(u64::from((x as i32).checked_sub(v as i32).is_none())),
    ),
    (
        "mov eax, 77; add rax, v",
        &[0xb8, 77, 0, 0, 0, 0x48, 0x05, 0, 0, 0, 0, 0xc3],
        7,
        4,
        |v, _| signed(v).wrapping_add(77),
    ),
    (
        "mov rax, half of it v",
        &[0x48, 0xb8, 0, 0, 0, 0, 1, 2, 3, 4, 0xc3],
        2,
        4,
        |v, _| low(v) | 0x0403_0201 << 32,
    ),
    (
        "stc; adc rax, v",
        &[0xf9, 0x48, 0x15, 0, 0, 0, 0, 0xc3],
        3,
        4,
        |v, x| x.wrapping_add(signed(v)).wrapping_add(1),
    ),
];

/// Whose value is no part of the comparison; the others become a new block with each one.
const VARY: usize = FUNCTIONS.len() - 1;

/// The next of the values that [`changing`] has a function changed to.
fn next(seed: u64) -> u64 {
    seed.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f)
}

/// Changes `size` bytes at R9 and calls what is at R8, some times; adds up in RBX what it gives for what is there.
fn changing(size: u64) -> Vec<u8> {
    let store: [u8; 3] = match size {
        // mov [r9], r12d; r12
        4 => [0x45, 0x89, 0x21],
        _ => [0x4d, 0x89, 0x21],
    };
    let mut p = vec![0xb9];
    p.extend(CALLS.to_le_bytes());
    // again: imul r12, r12, ...; add r12, ...
    p.extend([0x4d, 0x69, 0xe4]);
    p.extend(0x0019_660d_u32.to_le_bytes());
    p.extend([0x49, 0x81, 0xc4]);
    p.extend(0x3c6e_f35f_u32.to_le_bytes());
    p.extend(store);
    // mov rax, rbx; mov rdx, rbx; mov r10, rbx; mov r11, rbx; call r8; add rbx, rax; rol rbx, 7; dec ecx; jnz again
    p.extend([
        0x48, 0x89, 0xd8, 0x48, 0x89, 0xda, 0x49, 0x89, 0xda, 0x49, 0x89, 0xdb,
    ]);
    p.extend([
        0x41, 0xff, 0xd0, 0x48, 0x01, 0xc3, 0x48, 0xc1, 0xc3, 7, 0xff, 0xc9,
    ]);
    let back = -i8::try_from(p.len() - 5 + 2).unwrap();
    p.extend([0x75, back as u8]);
    p
}

/// Interpreted, translated at once, and later.
fn machines() -> [Machine; 5] {
    let machines = [
        Machine::one_interpreted_of(1),
        Machine::translated(),
        Machine::translated_after(3),
        Machine::one_interpreted_of(2),
        Machine::one_translated_of(2),
    ];
    for m in &machines {
        m.put(
            TABLE + 8 * (FUNCTION >> 12),
            &(FUNCTION & !0xfff | 3).to_le_bytes(),
        );
    }
    machines
}

fn prepare(m: &mut Machine, function: &[u8], changed: u64) {
    m.put(FUNCTION, function);
    m.state.gpr[8] = FUNCTION;
    m.state.gpr[9] = FUNCTION + changed;
    m.state.gpr[12] = 5;
    m.state.gpr[3] = 3;
}

fn count(m: &Machine, what: &str) -> u64 {
    m.vcpu.profile().counts.get(what).copied().unwrap_or(0)
}

#[test]
fn a_value_counts_from_the_next_call_on() {
    for (n, (name, function, at, size, does)) in FUNCTIONS.into_iter().enumerate() {
        let (mut seed, mut sum) = (5, 3_u64);
        for _ in 0..CALLS {
            seed = next(seed);
            let value = if size == 8 { seed } else { low(seed) };
            sum = sum.wrapping_add(does(value, sum)).rotate_left(7);
        }
        for (kind, m) in machines().iter_mut().enumerate() {
            prepare(m, function, at);
            assert_eq!(m.run(&changing(size)), End::Whole, "{name}");
            assert_eq!(m.state.gpr[3], sum, "{name} {kind}");
            assert!(count(m, "blocks_checked") > 0, "{name}");
            let dropped = count(m, "blocks_dropped");
            let all = u64::from(CALLS) - 2;
            assert_eq!(dropped < UNTIL_CHECKED, n < VARY, "{name}: {dropped}");
            assert!(n < VARY || dropped >= all, "{name}: {dropped}");
        }
    }
}

/// It is one of ADD, OR, SUB, XOR, one after the other.
#[test]
fn a_changed_instruction_counts_from_the_next_call_on() {
    // The opcodes are at RSI.
    type Computes = fn(u32, u32) -> u32;
    let opcodes: [(u8, Computes); 4] = [
        (0x01, |a, b| a.wrapping_add(b)),
        (0x09, |a, b| a | b),
        (0x29, |a, b| a.wrapping_sub(b)),
        (0x31, |a, b| a ^ b),
    ];
    // mov ecx, 300; again: mov eax, ecx; and eax, 3; mov al, [rsi+rax]; mov [r9], al; mov eax, ebx; mov edx, ecx;
    // call r8; mov ebx, eax; rol ebx, 7; dec ecx; jnz again
    let program: &[u8] = &[
        0xb9, 44, 1, 0, 0, 0x89, 0xc8, 0x83, 0xe0, 3, 0x8a, 0x04, 0x06, 0x41, 0x88, 0x01, 0x89,
        0xd8, 0x89, 0xca, 0x41, 0xff, 0xd0, 0x89, 0xc3, 0xc1, 0xc3, 7, 0xff, 0xc9, 0x75, 0xe5,
    ];
    let mut expected = 3_u32;
    for n in (1..=CALLS).rev() {
        expected = (opcodes[n as usize % 4].1)(expected, n).rotate_left(7);
    }
    for (kind, m) in machines().iter_mut().enumerate() {
        // nop; add eax, edx; ret
        prepare(m, &[0x90, 0x01, 0xd0, 0xc3], 1);
        m.put(DATA[0], &opcodes.map(|o| o.0));
        m.state.gpr[6] = DATA[0];
        assert_eq!(m.run(program), End::Whole);
        assert_eq!(m.state.gpr[3], u64::from(expected), "{kind}");
        assert!(count(m, "blocks_checked") > 100, "{kind}");
    }
}

/// What could change itself after it was entered, or is more than a computation, is noticed as ever.
#[test]
fn what_stores_is_not_checked() {
    // push imm32; pop rax; ret. mov eax, imm32; mov [rsi], eax; ret. mov eax, imm32; call next; next: pop rdx; ret.
    let functions: [(&[u8], u64); 3] = [
        (&[0x68, 0, 0, 0, 0, 0x58, 0xc3], 1),
        (&[0xb8, 0, 0, 0, 0, 0x89, 0x06, 0xc3], 1),
        (&[0xb8, 0, 0, 0, 0, 0xe8, 0, 0, 0, 0, 0x5a, 0xc3], 1),
    ];
    for (n, (function, at)) in functions.into_iter().enumerate() {
        let (mut seed, mut sum) = (5, 3_u64);
        for _ in 0..CALLS {
            seed = next(seed);
            let value = if n == 0 { signed(seed) } else { low(seed) };
            sum = sum.wrapping_add(value).rotate_left(7);
        }
        for m in &mut machines() {
            prepare(m, function, at);
            m.state.gpr[6] = DATA[0];
            assert_eq!(m.run(&changing(4)), End::Whole);
            assert_eq!(m.state.gpr[3], sum, "{n}");
            assert!(count(m, "blocks_dropped") + 2 >= u64::from(CALLS), "{n}");
        }
    }
}

/// A function that changes itself behind where it is: the store counts for the instruction that follows at once.
#[test]
fn a_function_that_changes_itself_does_so_at_once() {
    // mov [r8+7], r12b; xor eax, eax; mov al, 0, which is the byte at 7; movzx eax, al; ret
    let function: &[u8] = &[
        0x45, 0x88, 0x60, 7, 0x31, 0xc0, 0xb0, 0, 0x0f, 0xb6, 0xc0, 0xc3,
    ];
    let (mut seed, mut sum) = (5, 3_u64);
    for _ in 0..CALLS {
        seed = next(seed);
        sum = sum.wrapping_add(seed & 0xff).rotate_left(7);
    }
    for (kind, m) in machines().iter_mut().enumerate() {
        prepare(m, function, 0);
        // The program changes nothing that is executed.
        m.state.gpr[9] = FUNCTION + 0x40;
        assert_eq!(m.run(&changing(4)), End::Whole);
        assert_eq!(m.state.gpr[3], sum, "{kind}");
    }
}

/// Between two runs a device writes; and another vCPU stores, whose word does not have to come.
#[test]
fn what_others_store_counts() {
    // call r8; mov rbx, rax
    let call: &[u8] = &[0x41, 0xff, 0xd0, 0x48, 0x89, 0xc3];
    let function: &[u8] = &[0xb8, 0, 0, 0, 0, 0x90, 0x90, 0xc3];
    for m in &mut machines() {
        prepare(m, function, 1);
        assert_eq!(m.run(&changing(4)), End::Whole);
        for value in [7_u32, 8, 8, 9] {
            m.put(FUNCTION + 1, &value.to_le_bytes());
            assert_eq!(m.run(call), End::Whole);
            assert_eq!(m.state.gpr[3], u64::from(value), "a device");
            m.ram.store(RamOffset(FUNCTION + 1), value + 10);
            assert_eq!(m.run(call), End::Whole);
            assert_eq!(m.state.gpr[3], u64::from(value + 10), "another vCPU");
            // mov eax, v; not eax; ret. Then what it was again.
            for (bytes, expected) in [([0xf7_u8, 0xd0], !value), ([0x90, 0x90], value)] {
                m.ram.store(RamOffset(FUNCTION + 1), value);
                m.ram
                    .store(RamOffset(FUNCTION + 5), u16::from_le_bytes(bytes));
                assert_eq!(m.run(call), End::Whole);
                assert_eq!(m.state.gpr[3], u64::from(expected), "{bytes:x?}");
            }
        }
        // A device writes something that cannot be checked, and then something that can.
        m.put(FUNCTION, &[0x6a, 0x11, 0x58, 0xc3]);
        assert_eq!(m.run(call), End::Whole);
        assert_eq!(m.state.gpr[3], 0x11);
        m.put(FUNCTION, function);
        assert_eq!(m.run(call), End::Whole);
        assert_eq!(m.state.gpr[3], 0);
    }
}

/// Another vCPU stores while the function is called in a loop.
#[test]
fn what_others_store_meanwhile_is_seen() {
    // again: call r8; mov [rsi], eax; cmp eax, 5; jnz again
    let program: &[u8] = &[0x41, 0xff, 0xd0, 0x89, 0x06, 0x83, 0xf8, 5, 0x75, 0xf6];
    // mov eax, 4; ret.  mov eax, 5; ret.  xor eax, eax; add al, 5; ret.  push 5; pop rax; ret
    let before: [u8; 8] = [0xb8, 4, 0, 0, 0, 0xc3, 0x90, 0x90];
    let after: [[u8; 8]; 3] = [
        [0xb8, 5, 0, 0, 0, 0xc3, 0x90, 0x90],
        [0x31, 0xc0, 4, 5, 0xc3, 0x90, 0x90, 0x90],
        [0x6a, 5, 0x58, 0xc3, 0x90, 0x90, 0x90, 0x90],
    ];
    let function = FUNCTION & !7;
    for after in after {
        for mut m in machines() {
            prepare(&mut m, &[0xb8, 0, 0, 0, 0, 0xc3], 1);
            assert_eq!(m.run(&changing(4)), End::Whole);
            m.put(function, &before);
            prepare(&mut m, &[0x90; 3], 0);
            m.put(function, &before);
            m.state.gpr[8] = function;
            m.state.gpr[9] = function + 1;
            // Makes it a checked one there, too.
            assert_eq!(m.run(&changing(4)), End::Whole);
            m.put(function, &before);
            m.put(DATA[0], &[0; 4]);
            m.state.gpr[6] = DATA[0];
            let (ram, over) = (m.ram.clone(), Arc::new(AtomicBool::new(false)));
            let is_over = over.clone();
            let other = std::thread::spawn(move || {
                while ram.load::<u32>(RamOffset(DATA[0])) != 4 && !is_over.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
                ram.store(RamOffset(function), u64::from_le_bytes(after));
            });
            *m.slices.lock().unwrap() = Slices {
                drawn: Some((Random(1), 1 << 14)),
                ends: Vec::new(),
            };
            m.put(CODE, program);
            m.put(CODE + program.len() as u64, &STOP);
            m.state.rip = CODE;
            m.polls.store(0, Ordering::Relaxed);
            m.go();
            over.store(true, Ordering::Relaxed);
            other.join().unwrap();
            assert_eq!(m.state.rip, CODE + (program.len() + STOP.len()) as u64);
            assert_eq!(m.state.gpr[0], 5);
        }
    }
}
