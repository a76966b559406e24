//! SSE and AVX: results, upper halves, alignment, flags and SIMD exceptions, as the manual states them.

use super::machine::{Cpu, decode};
use crate::{Class, Feature, MemoryUse, Outcome, PrepareError, host_has};

const ADDPS_XMM1_XMM2: &[u8] = &[0x0f, 0x58, 0xca];
const DIVPS_XMM1_XMM2: &[u8] = &[0x0f, 0x5e, 0xca];
const MULPS_XMM1_XMM2: &[u8] = &[0x0f, 0x59, 0xca];
const IE: u32 = 1;
const DE: u32 = 2;
const ZE: u32 = 4;
const UE: u32 = 0x10;
const PE: u32 = 0x20;

#[test]
fn legacy_keeps_the_upper_half() {
    let mut cpu = Cpu::new();
    cpu.ext.ymm[1] = [0, 0, 0x1111, 0x2222];
    cpu.set_ps(1, [1.0, 2.0, 3.0, 4.0]);
    cpu.set_ps(2, [0.5, 0.25, -3.0, 4.0]);
    assert_eq!(cpu.run(ADDPS_XMM1_XMM2), Outcome::Done);
    assert_eq!(cpu.ps(1), [1.5, 2.25, 0.0, 8.0]);
    assert_eq!(cpu.ext.ymm[1][2..], [0x1111, 0x2222]);
    assert_eq!(cpu.ext.mxcsr, 0x1f80);
}

#[test]
fn vex_128_zeroes_the_upper_half() {
    if !host_has(Feature::Avx) {
        return;
    }
    let mut cpu = Cpu::new();
    cpu.ext.ymm[1] = [1; 4];
    cpu.ext.ymm[2] = [0, 0, 7, 7];
    cpu.set_ps(2, [1.0; 4]);
    cpu.set_ps(3, [2.0; 4]);
    // vaddps xmm1, xmm2, xmm3
    assert_eq!(cpu.run(&[0xc5, 0xe8, 0x58, 0xcb]), Outcome::Done);
    assert_eq!(cpu.ps(1), [3.0; 4]);
    assert_eq!(cpu.ext.ymm[1][2..], [0, 0]);
    assert_eq!(cpu.ext.ymm[2][2..], [7, 7], "a source stays");
}

#[test]
fn flush_to_zero_and_denormals_are_zero() {
    let mut cpu = Cpu::new();
    let smallest_normal = f32::from_bits(0x0080_0000);
    cpu.set_ps(1, [smallest_normal; 4]);
    cpu.set_ps(2, [0.3; 4]);
    cpu.ext.mxcsr = 0x1f80 | 1 << 15;
    assert_eq!(cpu.run(MULPS_XMM1_XMM2), Outcome::Done);
    assert_eq!(cpu.ps(1), [0.0; 4]);
    assert_eq!(cpu.ext.mxcsr, 0x9f80 | UE | PE);

    // Denormal operands are zeros with DAZ, and raise no DE.
    let denormal = f32::from_bits(1);
    for (mxcsr, result, flags) in [(0x1f80, denormal, DE), (0x1fc0, 0.0, 0)] {
        cpu.ext.mxcsr = mxcsr;
        cpu.set_ps(1, [denormal; 4]);
        cpu.set_ps(2, [0.0; 4]);
        assert_eq!(cpu.run(ADDPS_XMM1_XMM2), Outcome::Done);
        assert_eq!(cpu.ps(1).map(f32::to_bits), [result.to_bits(); 4]);
        assert_eq!(cpu.ext.mxcsr, mxcsr | flags);
    }
}

#[test]
fn rounding_is_the_guests() {
    // cvtsd2si eax, xmm1 with each rounding control: nearest even, down, up, to zero.
    for (control, positive, negative) in [(0, 2, -2i32), (1, 2, -3), (2, 3, -2), (3, 2, -2)] {
        for (value, expected) in [(2.5f64, positive), (-2.5, negative)] {
            let mut cpu = Cpu::new();
            cpu.ext.mxcsr = 0x1f80 | control << 13;
            cpu.ext.ymm[1][0] = value.to_bits();
            assert_eq!(cpu.run(&[0xf2, 0x0f, 0x2d, 0xc1]), Outcome::Done);
            assert_eq!(cpu.gpr[0], u64::from(expected as u32));
            assert_eq!(cpu.ext.mxcsr & 0x3f, PE);
        }
    }
}

#[test]
fn an_unmasked_exception_changes_only_the_flags() {
    let mut cpu = Cpu::new();
    cpu.set_ps(1, [1.0, 1.0, 1.0, 1.0]);
    cpu.set_ps(2, [3.0, 0.0, 3.0, 3.0]);
    cpu.ext.mxcsr = 0x1f80 & !(ZE << 7);
    let before = cpu.ext.clone();
    assert_eq!(cpu.run(DIVPS_XMM1_XMM2), Outcome::SimdException);
    assert_eq!(cpu.ext.ymm, before.ymm);
    // A pre-computation exception: the inexact quotients were not computed (SDM Vol. 1, 11.5.3).
    assert_eq!(cpu.ext.mxcsr, before.mxcsr | ZE);
    // The flag being set already does not raise it again.
    cpu.set_ps(2, [2.0; 4]);
    assert_eq!(cpu.run(DIVPS_XMM1_XMM2), Outcome::Done);
    assert_eq!(cpu.ps(1), [0.5; 4]);
}

#[test]
fn masked_divide_by_zero_is_infinity() {
    let mut cpu = Cpu::new();
    cpu.set_ps(1, [1.0, -1.0, 1.0, 0.0]);
    cpu.set_ps(2, [0.0, 0.0, 1.0, 0.0]);
    assert_eq!(cpu.run(DIVPS_XMM1_XMM2), Outcome::Done);
    let result = cpu.ps(1);
    assert_eq!(result[..3], [f32::INFINITY, f32::NEG_INFINITY, 1.0]);
    assert_eq!(result[3].to_bits(), 0xffc0_0000, "the default NaN");
    assert_eq!(cpu.ext.mxcsr, 0x1f80 | ZE | IE);
}

#[test]
fn unmasked_underflow_needs_no_loss() {
    let mut cpu = Cpu::new();
    let smallest_normal = f32::from_bits(0x0080_0000);
    cpu.set_ps(1, [smallest_normal, 1.0, 1.0, 1.0]);
    cpu.set_ps(2, [0.5, 1.0, 1.0, 1.0]);
    let before = cpu.ext.ymm;
    assert_eq!(cpu.run(MULPS_XMM1_XMM2), Outcome::Done);
    assert_eq!(cpu.ext.mxcsr, 0x1f80, "exact, so not flagged when masked");
    cpu.ext.ymm = before;
    // FTZ is without effect when underflow is unmasked.
    cpu.ext.mxcsr = 0x9f80 & !(UE << 7);
    assert_eq!(cpu.run(MULPS_XMM1_XMM2), Outcome::SimdException);
    assert_eq!(cpu.ext.ymm, before);
    assert_eq!(cpu.ext.mxcsr & 0x3f, UE);
}

#[test]
fn an_exception_leaves_rflags_and_memory() {
    let mut cpu = Cpu::new();
    cpu.ext.mxcsr = 0x1f80 & !(IE << 7);
    cpu.rflags = 0x8d7;
    cpu.set_ps(1, [f32::NAN; 4]);
    // comiss xmm1, xmm1: a quiet NaN is invalid for COMISS.
    assert_eq!(cpu.run(&[0x0f, 0x2f, 0xc9]), Outcome::SimdException);
    assert_eq!(cpu.rflags, 0x8d7);
    assert_eq!(cpu.ext.mxcsr & 0x3f, IE);
    // ucomiss xmm1, xmm1: not for UCOMISS. Unordered: ZF, PF, CF; OF, SF, AF cleared.
    cpu.ext.mxcsr &= !0x3f;
    assert_eq!(cpu.run(&[0x0f, 0x2e, 0xc9]), Outcome::Done);
    assert_eq!(cpu.rflags, 0x47);

    if host_has(Feature::F16c) {
        cpu.ext.mxcsr = 0x1f80 & !(PE << 7);
        cpu.set_ps(1, [0.1; 4]);
        cpu.set_mem(&[0xa5; 8]);
        // vcvtps2ph [rax], xmm1, 0
        let insn = [0xc4, 0xe3, 0x79, 0x1d, 0x08, 0x00];
        assert_eq!(cpu.memory_use(&insn), MemoryUse::Write(8));
        assert_eq!(cpu.run(&insn), Outcome::SimdException);
        assert_eq!(cpu.mem.0[..8], [0xa5; 8]);
        cpu.ext.mxcsr = 0x1f80;
        assert_eq!(cpu.run(&insn), Outcome::Done);
        assert_eq!(
            cpu.mem.0[..8],
            [0x66, 0x2e, 0x66, 0x2e, 0x66, 0x2e, 0x66, 0x2e]
        );
    }
}

#[test]
fn comparison_flags() {
    let mut cpu = Cpu::new();
    for (a, b, flags) in [(1.0, 2.0, 0x01), (2.0, 1.0, 0), (1.0, 1.0, 0x40)] {
        cpu.ext.ymm[1][0] = f64::to_bits(a);
        cpu.ext.ymm[2][0] = f64::to_bits(b);
        cpu.rflags = 0xcd7;
        // comisd xmm1, xmm2; DF (bit 10) is not a status flag and stays.
        assert_eq!(cpu.run(&[0x66, 0x0f, 0x2f, 0xca]), Outcome::Done);
        assert_eq!(cpu.rflags, 0x402 | flags);
    }
    if host_has(Feature::Sse4_1) {
        cpu.ext.ymm[1] = [0xf0, 0, 0, 0];
        cpu.ext.ymm[2] = [0x0f, 0, 0, 0];
        cpu.rflags = 0x8d7;
        // ptest xmm1, xmm2: AND is zero, so ZF; xmm2 AND NOT xmm1 is not, so no CF.
        assert_eq!(cpu.run(&[0x66, 0x0f, 0x38, 0x17, 0xca]), Outcome::Done);
        assert_eq!(cpu.rflags, 0x42);
    }
}

#[test]
fn shuffles_with_memory() {
    if !host_has(Feature::Ssse3) {
        return;
    }
    let mut cpu = Cpu::new();
    cpu.ext.ymm[9] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908, 5, 6];
    cpu.set_mem(&[15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 0x80, 0xff]);
    // pshufb xmm9, [rip + 0x12345678]: whatever the address, the operand is in the buffer.
    let insn = [0x66, 0x44, 0x0f, 0x38, 0x00, 0x0d, 0x78, 0x56, 0x34, 0x12];
    assert_eq!(cpu.memory_use(&insn), MemoryUse::Read(16));
    assert_eq!(cpu.run(&insn), Outcome::Done);
    assert_eq!(
        cpu.ext.ymm[9],
        [0x0809_0a0b_0c0d_0e0f, 0x0000_0203_0405_0607, 5, 6]
    );
}

#[test]
fn general_registers_by_number() {
    if !host_has(Feature::Sse4_1) {
        return;
    }
    let mut cpu = Cpu::new();
    cpu.ext.ymm[1] = [0x1111_2222_3333_4444, 0x8888_7777_6666_5555, 0, 0];
    let before = [0xffff_ffff_ffff_ffff; 16];
    for (modrm, rex, number) in [
        (0xcc, 0x48, 4),
        (0xcf, 0x48, 7),
        (0xce, 0x48, 6),
        (0xc8, 0x49, 8),
        (0xcf, 0x49, 15),
    ] {
        cpu.gpr = before;
        // pextrq r64, xmm1, 1
        assert_eq!(
            cpu.run(&[0x66, rex, 0x0f, 0x3a, 0x16, modrm, 1]),
            Outcome::Done
        );
        let mut expected = before;
        expected[number] = 0x8888_7777_6666_5555;
        assert_eq!(cpu.gpr, expected);
        // pextrd r32, xmm1, 1: zero-extended.
        assert_eq!(
            cpu.run(&[0x66, rex & !8, 0x0f, 0x3a, 0x16, modrm, 1]),
            Outcome::Done
        );
        expected[number] = 0x1111_2222;
        assert_eq!(cpu.gpr, expected);
    }
    // movq xmm3, rsp
    cpu.gpr[4] = 0xabcd_ef01_2345_6789;
    cpu.ext.ymm[3] = [1; 4];
    assert_eq!(cpu.run(&[0x66, 0x48, 0x0f, 0x6e, 0xdc]), Outcome::Done);
    assert_eq!(cpu.ext.ymm[3], [0xabcd_ef01_2345_6789, 0, 1, 1]);
}

#[test]
fn truncating_conversion() {
    let mut cpu = Cpu::new();
    for (value, expected, flags) in [
        (-2.9f64, 0xffff_ffff_ffff_fffe, PE),
        (4e18, 4_000_000_000_000_000_000, 0),
        (1e19, 0x8000_0000_0000_0000, IE),
        (f64::NAN, 0x8000_0000_0000_0000, IE),
    ] {
        cpu.ext.mxcsr = 0x1f80;
        cpu.ext.ymm[1][0] = value.to_bits();
        // cvttsd2si r11, xmm1
        assert_eq!(cpu.run(&[0xf2, 0x4c, 0x0f, 0x2c, 0xd9]), Outcome::Done);
        assert_eq!(cpu.gpr[11], expected);
        assert_eq!(cpu.ext.mxcsr & 0x3f, flags);
    }
}

#[test]
fn string_comparison_registers() {
    if !host_has(Feature::Sse4_2) {
        return;
    }
    let mut cpu = Cpu::new();
    let text = |bytes: &[u8; 16]| {
        let (low, high) = bytes.split_at(8);
        [
            u64::from_le_bytes(low.try_into().unwrap()),
            u64::from_le_bytes(high.try_into().unwrap()),
            0,
            0,
        ]
    };
    cpu.ext.ymm[1] = text(b"needle..........");
    cpu.ext.ymm[2] = text(b"a needle in hay!");
    cpu.gpr = [0x55; 16];
    // Lengths are EAX and EDX; with no REX.W the upper halves do not count.
    cpu.gpr[0] = 0xdead_0000_0000_0006;
    cpu.gpr[2] = 0xdead_0000_0000_0010;
    cpu.gpr[1] = u64::MAX;
    // pcmpestri xmm1, xmm2, 0ch: equal ordered, unsigned bytes.
    assert_eq!(
        cpu.run(&[0x66, 0x0f, 0x3a, 0x61, 0xca, 0x0c]),
        Outcome::Done
    );
    assert_eq!(cpu.gpr[1], 2, "zero-extended index");
    // CF: a match; SF: EAX < 16; ZF: EDX is not < 16; OF: bit 0 of the result.
    assert_eq!(cpu.rflags & 0x8d5, 0x81);
    assert_eq!(cpu.gpr[3..], [0x55; 13]);

    // pcmpestrm xmm1, xmm2, 4ch: byte mask into XMM0.
    cpu.ext.ymm[0] = [9; 4];
    assert_eq!(
        cpu.run(&[0x66, 0x0f, 0x3a, 0x60, 0xca, 0x4c]),
        Outcome::Done
    );
    assert_eq!(cpu.ext.ymm[0], [0xff << 16, 0, 9, 9]);

    // pcmpistri xmm1, [rax], 0ch: no alignment needed.
    let insn = [0x66, 0x0f, 0x3a, 0x63, 0x08, 0x0c];
    assert_eq!(cpu.prepare(&insn).facts().alignment, 1);
}

#[test]
fn implicit_xmm0() {
    let mut cpu = Cpu::new();
    if host_has(Feature::Sse4_1) {
        cpu.ext.ymm[0] = [0x8000_0000_0000_0000, 0x0000_0000_8000_0000, 0, 0];
        cpu.ext.ymm[1] = [0x1111_1111_1111_1111; 4];
        cpu.ext.ymm[2] = [0x2222_2222_2222_2222; 4];
        // blendvps xmm1, xmm2
        assert_eq!(cpu.run(&[0x66, 0x0f, 0x38, 0x14, 0xca]), Outcome::Done);
        assert_eq!(
            cpu.ext.ymm[1],
            [
                0x2222_2222_1111_1111,
                0x1111_1111_2222_2222,
                0x1111_1111_1111_1111,
                0x1111_1111_1111_1111
            ]
        );
    }
}

#[test]
fn alignment_of_memory_operands() {
    let mut cpu = Cpu::new();
    let cases: &[(&[u8], u8)] = &[
        (&[0x0f, 0x28, 0x08], 16),       // movaps xmm1, [rax]
        (&[0x0f, 0x29, 0x08], 16),       // movaps [rax], xmm1
        (&[0x0f, 0x10, 0x08], 1),        // movups
        (&[0x66, 0x0f, 0x10, 0x08], 1),  // movupd
        (&[0xf3, 0x0f, 0x6f, 0x08], 1),  // movdqu
        (&[0x66, 0x0f, 0x6f, 0x08], 16), // movdqa
        (&[0x66, 0x0f, 0xe7, 0x08], 16), // movntdq
        (&[0x0f, 0x58, 0x08], 16),       // addps
        (&[0x66, 0x0f, 0xfe, 0x08], 16), // paddd
        (&[0x66, 0x0f, 0x60, 0x08], 16), // punpcklbw
        (&[0xf3, 0x0f, 0x58, 0x08], 1),  // addss
        (&[0xf3, 0x0f, 0xe6, 0x08], 1),  // cvtdq2pd, m64
        (&[0x66, 0x0f, 0x12, 0x08], 1),  // movlpd, m64
        (&[0x0f, 0xfe, 0x08], 1),        // paddd mm, m64
        (&[0xf2, 0x0f, 0xf0, 0x08], 1),  // lddqu
        (&[0xdb, 0x28], 1),              // fld tbyte
    ];
    for (bytes, alignment) in cases {
        assert_eq!(
            cpu.prepare(bytes).facts().alignment,
            *alignment,
            "{}",
            decode(64, bytes)
        );
    }
    let vex: &[(&[u8], u8)] = &[
        (&[0xc5, 0xf8, 0x28, 0x08], 16), // vmovaps xmm1, [rax]
        (&[0xc5, 0xfc, 0x28, 0x08], 32), // vmovaps ymm1, [rax]
        (&[0xc5, 0xfd, 0xe7, 0x08], 32), // vmovntdq [rax], ymm1
        (&[0xc5, 0xfc, 0x10, 0x08], 1),  // vmovups ymm1, [rax]
        (&[0xc5, 0xec, 0x58, 0x08], 1),  // vaddps ymm1, ymm2, [rax]
        (&[0xc5, 0xe8, 0x58, 0x08], 1),  // vaddps xmm1, xmm2, [rax]
    ];
    for (bytes, alignment) in vex.iter().filter(|_| host_has(Feature::Avx)) {
        assert_eq!(
            cpu.prepare(bytes).facts().alignment,
            *alignment,
            "{}",
            decode(64, bytes)
        );
    }
}

#[test]
fn classes_and_traits() {
    let mut cpu = Cpu::new();
    let facts = |cpu: &mut Cpu, bytes: &[u8]| *cpu.prepare(bytes).facts();
    let addps = facts(&mut cpu, ADDPS_XMM1_XMM2);
    assert_eq!(
        (addps.class, addps.simd_fp, addps.x87_state),
        (Class::Sse, true, false)
    );
    let paddb_mm = facts(&mut cpu, &[0x0f, 0xfc, 0xca]);
    assert_eq!(
        (paddb_mm.class, paddb_mm.simd_fp, paddb_mm.x87_state),
        (Class::Mmx, false, true)
    );
    let movdq2q = facts(&mut cpu, &[0xf2, 0x0f, 0xd6, 0xca]);
    assert_eq!((movdq2q.class, movdq2q.x87_state), (Class::Sse, true));
    let fcomi = facts(&mut cpu, &[0xdb, 0xf1]);
    assert_eq!(
        (fcomi.class, fcomi.writes_rflags, fcomi.reads_rflags),
        (Class::X87, true, false)
    );
    let fcmovb = facts(&mut cpu, &[0xda, 0xc1]);
    assert_eq!((fcmovb.writes_rflags, fcmovb.reads_rflags), (false, true));
    for no_wait in [
        &[0xdb, 0xe3][..],
        &[0xdb, 0xe2],
        &[0xd9, 0x38],
        &[0xdf, 0xe0],
        &[0xd9, 0x30],
        &[0xdd, 0x30],
    ] {
        assert_eq!(facts(&mut cpu, no_wait).class, Class::X87NoWait);
    }
    assert_eq!(facts(&mut cpu, &[0x9b]).class, Class::X87);
}

#[test]
fn zero_upper_by_mode() {
    if !host_has(Feature::Avx) {
        return;
    }
    let mut cpu = Cpu::new();
    for (bitness, registers) in [(64, 16), (32, 8)] {
        cpu.ext.ymm = [[1, 2, 3, 4]; 16];
        assert_eq!(cpu.run_in(bitness, &[0xc5, 0xf8, 0x77]), Outcome::Done);
        for (number, ymm) in cpu.ext.ymm.iter().enumerate() {
            let expected = if number < registers {
                [1, 2, 0, 0]
            } else {
                [1, 2, 3, 4]
            };
            assert_eq!(*ymm, expected);
        }
        assert_eq!(cpu.run_in(bitness, &[0xc5, 0xfc, 0x77]), Outcome::Done);
        for (number, ymm) in cpu.ext.ymm.iter().enumerate() {
            let expected = if number < registers {
                [0; 4]
            } else {
                [1, 2, 3, 4]
            };
            assert_eq!(*ymm, expected);
        }
    }
}

#[test]
fn instructions_of_32_bit_mode() {
    let mut cpu = Cpu::new();
    cpu.ext.ymm[5] = [0xffff_ffff_8000_0001, 2, 3, 4];
    cpu.gpr[6] = 0x1234_5678_9abc_def0;
    // movd esi, xmm5
    assert_eq!(cpu.run_in(32, &[0x66, 0x0f, 0x7e, 0xee]), Outcome::Done);
    assert_eq!(cpu.gpr[6], 0x8000_0001);
    // paddd xmm5, [0x12345678]: an absolute address in 32-bit mode.
    cpu.set_mem(&[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]);
    assert_eq!(
        cpu.run_in(32, &[0x66, 0x0f, 0xfe, 0x2d, 0x78, 0x56, 0x34, 0x12]),
        Outcome::Done
    );
    assert_eq!(
        cpu.ext.ymm[5],
        [0x0000_0001_8000_0002, 0x0000_0004_0000_0005, 3, 4]
    );
    // And in 16-bit mode: movups [bx+si], xmm5.
    assert_eq!(cpu.run_in(16, &[0x0f, 0x11, 0x28]), Outcome::Done);
    assert_eq!(cpu.mem.0[..8], 0x0000_0001_8000_0002u64.to_le_bytes());
}

#[test]
fn what_is_not_ours() {
    let mut cpu = Cpu::new();
    let foreign: &[&[u8]] = &[
        &[0x01, 0xc8],                         // add eax, ecx
        &[0xf3, 0x0f, 0xb8, 0xc1],             // popcnt eax, ecx
        &[0xf2, 0x0f, 0x38, 0xf1, 0xc1],       // crc32 eax, ecx
        &[0x0f, 0xae, 0x10],                   // ldmxcsr [rax]
        &[0x0f, 0xae, 0x18],                   // stmxcsr [rax]
        &[0x0f, 0xae, 0x00],                   // fxsave [rax]
        &[0x0f, 0xae, 0x20],                   // xsave [rax]
        &[0x0f, 0xae, 0xf0],                   // mfence
        &[0x0f, 0xc3, 0x08],                   // movnti [rax], ecx
        &[0x0f, 0x18, 0x08],                   // prefetcht0 [rax]
        &[0x0f, 0x44, 0xc1],                   // cmove eax, ecx
        &[0xc4, 0xe2, 0x78, 0xf2, 0xc1],       // andn eax, eax, ecx
        &[0x62, 0xf1, 0x74, 0x48, 0x58, 0xc2], // vaddps zmm0, zmm1, zmm2
        &[0xf2, 0x0f, 0x79, 0xc1],             // insertq xmm0, xmm1 (SSE4A)
        &[0x0f, 0x01, 0xd0],                   // xgetbv
        &[0xc3],
    ];
    for bytes in foreign {
        let insn = decode(64, bytes);
        assert_eq!(
            cpu.exec.prepare(&insn).unwrap_err(),
            PrepareError::NotVector,
            "{insn}"
        );
    }
    assert_eq!(
        cpu.exec
            .prepare(&iced_x86::Instruction::default())
            .unwrap_err(),
        PrepareError::NotVector
    );
}
