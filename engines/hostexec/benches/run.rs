//! Time of one `run`, by kind of instruction. Compare figures of one machine and one run only.

use hostexec::{Bounce, ExtState, HostExec, Prepared, X87Context};
use iced_x86::{Decoder, DecoderOptions};
use std::hint::black_box;
use std::time::Instant;

const CASES: &[(&str, &[u8])] = &[
    ("paddd xmm, xmm", &[0x66, 0x0f, 0xfe, 0xca]),
    ("paddd xmm, m128", &[0x66, 0x0f, 0xfe, 0x08]),
    ("movd xmm, r32", &[0x66, 0x0f, 0x6e, 0xc9]),
    ("pmovmskb r32, xmm", &[0x66, 0x0f, 0xd7, 0xc1]),
    ("vpaddd ymm, ymm, ymm", &[0xc5, 0xed, 0xfe, 0xcb]),
    ("ptest xmm, xmm", &[0x66, 0x0f, 0x38, 0x17, 0xca]),
    ("addps xmm, xmm", &[0x0f, 0x58, 0xca]),
    ("mulsd xmm, m64", &[0xf2, 0x0f, 0x59, 0x08]),
    ("ucomisd xmm, xmm", &[0x66, 0x0f, 0x2e, 0xca]),
    ("vaddps ymm, ymm, ymm", &[0xc5, 0xec, 0x58, 0xcb]),
    ("paddb mm, mm", &[0x0f, 0xfc, 0xca]),
    ("vzeroupper", &[0xc5, 0xf8, 0x77]),
    ("fld m64", &[0xdd, 0x00]),
    ("fstp m64", &[0xdd, 0x18]),
    ("fadd st0, st1", &[0xd8, 0xc1]),
    ("fmul m64", &[0xdc, 0x08]),
    ("fxch", &[0xd9, 0xc9]),
    ("fld1", &[0xd9, 0xe8]),
    ("fcomi st0, st1", &[0xdb, 0xf1]),
    ("fsqrt", &[0xd9, 0xfa]),
    ("fnstsw ax", &[0xdf, 0xe0]),
    ("fldcw m16", &[0xd9, 0x28]),
];

fn main() {
    let mut exec = HostExec::new().expect("executable memory");
    for (name, bytes) in CASES {
        let insn = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
        match exec.prepare(&insn) {
            Ok(prepared) => {
                println!("{name:24} {:6.1} ns", time(&exec, &prepared));
            }
            Err(error) => println!("{name:24} {error}"),
        }
    }
}

fn time(exec: &HostExec, prepared: &Prepared) -> f64 {
    const RUNS: u32 = 200_000;
    let mut ext = ExtState::initialized();
    for word in ext.ymm.iter_mut().flatten() {
        *word = 0x3ff0_1234_3f81_5678;
    }
    let mut mem = Bounce::new();
    mem.0[..8].copy_from_slice(&1.0f64.to_le_bytes());
    let (mut gpr, mut rflags) = ([1; 16], 2);
    let context = X87Context {
        rip: 0x1000,
        data_address: Some(0x2000),
        opcode: 0,
        real_mode: false,
    };
    let one = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f];
    let x87 = prepared.facts().x87_state;
    let mut best = f64::MAX;
    for _ in 0..7 {
        let start = Instant::now();
        for _ in 0..RUNS {
            if x87 {
                // Two registers in use, so nothing over- or underflows the stack.
                ext.set_fsw(6 << 11);
                ext.set_ftw_abridged(0xc0);
                ext.fx[32..42].copy_from_slice(&one);
                let _ = black_box(exec.run_x87(
                    black_box(prepared),
                    &mut ext,
                    &mut gpr,
                    &mut mem,
                    &mut rflags,
                    &context,
                ));
            } else {
                let _ = black_box(exec.run(
                    black_box(prepared),
                    &mut ext,
                    &mut gpr,
                    &mut mem,
                    &mut rflags,
                ));
            }
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(RUNS));
    }
    best
}
