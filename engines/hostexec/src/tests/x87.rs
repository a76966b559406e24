//! x87 and MMX: stack, tags, pointers, pending exceptions, environment images.

use super::machine::{CONTEXT, Cpu, decode};
use crate::{MemoryUse, Outcome, X87Context};

/// 1.0 in double extended precision.
const ONE: [u8; 10] = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f];
const FLD1: [u8; 2] = [0xd9, 0xe8];
const FLDZ: [u8; 2] = [0xd9, 0xee];
const FSQRT: [u8; 2] = [0xd9, 0xfa];
const FCHS: [u8; 2] = [0xd9, 0xe0];

fn top(cpu: &Cpu) -> u16 {
    cpu.ext.fsw() >> 11 & 7
}

#[test]
fn load_add_store() {
    let mut cpu = Cpu::new();
    cpu.set_mem(&2.5f64.to_bits().to_le_bytes());
    assert_eq!(cpu.run(&[0xdd, 0x00]), Outcome::Done); // fld qword [rax]
    assert_eq!((top(&cpu), cpu.ext.ftw_abridged()), (7, 0x80));
    assert_eq!(
        (cpu.ext.fip(), cpu.ext.fdp(), cpu.ext.fop()),
        (CONTEXT.rip, CONTEXT.data_address.unwrap(), 0x5a5)
    );
    assert_eq!(cpu.run(&FLD1), Outcome::Done);
    assert_eq!(
        (top(&cpu), cpu.ext.ftw_abridged(), cpu.ext.st(0)),
        (6, 0xc0, ONE)
    );
    assert_eq!(cpu.run(&[0xd8, 0xc1]), Outcome::Done); // fadd st0, st1
    assert_eq!(cpu.memory_use(&[0xd9, 0x18]), MemoryUse::Write(4));
    assert_eq!(cpu.run(&[0xd9, 0x18]), Outcome::Done); // fstp dword [rax]
    assert_eq!(cpu.mem.0[..4], 3.5f32.to_bits().to_le_bytes());
    assert_eq!((top(&cpu), cpu.ext.ftw_abridged()), (7, 0x80));
    assert_eq!(cpu.ext.fsw() & 0xff, 0);
    // fxch with an empty register: masked invalid operation, stack fault, C1 = 0.
    assert_eq!(cpu.run(&[0xd9, 0xc9]), Outcome::Done);
    assert_eq!(cpu.ext.fsw() & 0x27f, 0x41);
}

#[test]
fn exchange() {
    let mut cpu = Cpu::new();
    for insn in [FLDZ, FLD1] {
        assert_eq!(cpu.run(&insn), Outcome::Done);
    }
    assert_eq!(cpu.run(&[0xd9, 0xc9]), Outcome::Done);
    assert_eq!((cpu.ext.st(0), cpu.ext.st(1)), ([0; 10], ONE));
    assert_eq!(
        crate::x87::full_tag_word(&cpu.ext),
        0x1fff,
        "R6 zero, R7 valid"
    );
}

#[test]
fn an_unmasked_exception_is_pending_for_the_next_instruction() {
    let mut cpu = Cpu::new();
    cpu.ext.set_fcw(0x037e); // invalid operation unmasked
    assert_eq!(cpu.run(&FLD1), Outcome::Done);
    assert_eq!(cpu.run(&FCHS), Outcome::Done);
    assert!(!cpu.ext.x87_pending());
    assert_eq!(cpu.run(&FSQRT), Outcome::Done);
    assert_eq!(cpu.ext.fsw() & 0x80ff, 0x8081, "B, ES and IE");
    let minus_one = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0xbf];
    assert_eq!(cpu.ext.st(0), minus_one, "the operand is unchanged");
    assert!(cpu.ext.x87_pending());
    let before = cpu.ext.clone();
    let waiting: &[&[u8]] = &[
        &FLD1,
        &[0x9b],             // wait
        &[0xd9, 0xd0],       // fnop
        &[0xd9, 0x28],       // fldcw [rax]
        &[0x0f, 0xfc, 0xca], // paddb mm1, mm2
        &[0x0f, 0x77],       // emms
        &[0x0f, 0x2a, 0xc9], // cvtpi2ps xmm1, mm1
    ];
    for bytes in waiting {
        assert_eq!(cpu.run(bytes), Outcome::X87Pending, "{}", decode(64, bytes));
        assert_eq!(cpu.ext, before);
    }
    // Without waiting: fnstsw ax, fnstcw [rax]; an SSE instruction does not care.
    cpu.gpr[0] = 0x1234_5678_9abc_def0;
    assert_eq!(cpu.run(&[0xdf, 0xe0]), Outcome::Done);
    assert_eq!(cpu.gpr[0], 0x1234_5678_9abc_0000 | u64::from(before.fsw()));
    assert_eq!(cpu.run(&[0xd9, 0x38]), Outcome::Done);
    assert_eq!(cpu.mem.0[..2], 0x037eu16.to_le_bytes());
    assert_eq!(cpu.run(&[0x66, 0x0f, 0xef, 0xc1]), Outcome::Done);
    // fnclex: the exception is gone.
    assert_eq!(cpu.run(&[0xdb, 0xe2]), Outcome::Done);
    assert_eq!(cpu.ext.fsw() & 0x80ff, 0);
    assert_eq!(cpu.run(&FLD1), Outcome::Done);
}

#[test]
fn flags_without_summary_are_pending_too() {
    // A state loaded from elsewhere: IE set and unmasked, ES clear. The host must not take SIGFPE for it.
    let mut cpu = Cpu::new();
    cpu.ext.set_fcw(0x037e);
    cpu.ext.set_fsw(1);
    assert_eq!(cpu.run(&FLD1), Outcome::X87Pending);
}

#[test]
fn an_unmasked_exception_keeps_a_store_from_memory() {
    let mut cpu = Cpu::new();
    cpu.ext.set_fcw(0x0377); // overflow unmasked
    cpu.set_mem(&1e300f64.to_bits().to_le_bytes());
    assert_eq!(cpu.run(&[0xdd, 0x00]), Outcome::Done); // fld qword [rax]
    cpu.set_mem(&[0xa5; 4]);
    assert_eq!(cpu.run(&[0xd9, 0x18]), Outcome::StoreSuppressed); // fstp dword [rax]
    assert_eq!(cpu.mem.0[..4], [0xa5; 4]);
    assert_eq!(top(&cpu), 7, "and nothing is popped");
    assert_eq!(cpu.ext.fsw() & 0x88, 0x88);
    // Inexact alone is found after the store.
    let mut cpu = Cpu::new();
    cpu.ext.set_fcw(0x035f);
    cpu.set_mem(&0.1f64.to_bits().to_le_bytes());
    assert_eq!(cpu.run(&[0xdd, 0x00]), Outcome::Done);
    assert_eq!(cpu.run(&[0xd9, 0x18]), Outcome::Done);
    assert_eq!(cpu.mem.0[..4], 0.1f32.to_bits().to_le_bytes());
    assert!(cpu.ext.x87_pending());
}

#[test]
fn fcomi_and_fcmov_use_rflags() {
    let mut cpu = Cpu::new();
    for insn in [FLDZ, FLD1] {
        assert_eq!(cpu.run(&insn), Outcome::Done);
    }
    cpu.rflags = 0x402;
    assert_eq!(cpu.run(&[0xdb, 0xf1]), Outcome::Done); // fcomi st0, st1: 1 > 0
    assert_eq!(cpu.rflags & 0x445, 0x400);
    cpu.rflags = 0x2;
    assert_eq!(cpu.run(&[0xda, 0xc9]), Outcome::Done); // fcmove st0, st1: ZF clear
    assert_eq!(cpu.ext.st(0), ONE);
    cpu.rflags = 0x42;
    assert_eq!(cpu.run(&[0xda, 0xc9]), Outcome::Done);
    assert_eq!(cpu.ext.st(0), [0; 10]);
    assert_eq!(cpu.rflags, 0x42);
}

#[test]
fn control_instructions_keep_the_pointers() {
    let mut cpu = Cpu::new();
    cpu.ext.set_fip(0x1111);
    cpu.ext.set_fdp(0x2222);
    cpu.ext.set_fop(0x333);
    let pointers = |cpu: &Cpu| (cpu.ext.fip(), cpu.ext.fdp(), cpu.ext.fop());
    cpu.set_mem(&0x037fu16.to_le_bytes());
    for bytes in [
        &[0xd9, 0x28][..],
        &[0xd9, 0x38],
        &[0xdd, 0x38],
        &[0xdf, 0xe0],
        &[0xdb, 0xe2],
        &[0x9b],
    ] {
        assert_eq!(cpu.run(bytes), Outcome::Done);
        assert_eq!(
            pointers(&cpu),
            (0x1111, 0x2222, 0x333),
            "{}",
            decode(64, bytes)
        );
    }
    // Without a memory operand FDP stays.
    let prepared = cpu.prepare(&FLD1);
    let context = X87Context {
        data_address: None,
        ..CONTEXT
    };
    let outcome = cpu.exec.run_x87(
        &prepared,
        &mut cpu.ext,
        &mut cpu.gpr,
        &mut cpu.mem,
        &mut cpu.rflags,
        &context,
    );
    assert_eq!(outcome, Outcome::Done);
    assert_eq!(pointers(&cpu), (CONTEXT.rip, 0x2222, 0x5a5));
    // fninit clears them.
    assert_eq!(cpu.run(&[0xdb, 0xe3]), Outcome::Done);
    assert_eq!(pointers(&cpu), (0, 0, 0));
    assert_eq!(
        (cpu.ext.fcw(), cpu.ext.fsw(), cpu.ext.ftw_abridged()),
        (0x37f, 0, 0)
    );
}

#[test]
fn environment_images() {
    let mut cpu = Cpu::new();
    assert_eq!(cpu.run(&FLD1), Outcome::Done);
    assert_eq!(cpu.run(&FLDZ), Outcome::Done);
    cpu.ext.set_fip(0xdddd_cccc_000b_aaaa);
    cpu.ext.set_fdp(0x0006_5555);
    cpu.ext.set_fop(0x7ab);
    // fnstenv [rax], 32-bit protected-mode form.
    assert_eq!(cpu.memory_use(&[0xd9, 0x30]), MemoryUse::Write(28));
    let saved = cpu.ext.clone();
    assert_eq!(cpu.run(&[0xd9, 0x30]), Outcome::Done);
    let dword =
        |cpu: &Cpu, i: usize| u32::from_le_bytes(cpu.mem.0[i * 4..i * 4 + 4].try_into().unwrap());
    assert_eq!(dword(&cpu, 0) as u16, 0x037f);
    assert_eq!(dword(&cpu, 1) as u16, 6 << 11);
    assert_eq!(
        dword(&cpu, 2) as u16,
        0x1fff,
        "R7 valid, R6 zero, others empty"
    );
    assert_eq!(dword(&cpu, 3), 0x000b_aaaa);
    assert_eq!(dword(&cpu, 4), 0x7ab << 16);
    assert_eq!(dword(&cpu, 5), 0x0006_5555);
    assert_eq!(cpu.ext.fcw(), 0x037f);
    // fninit, fldenv: all but the upper half of FIP is back.
    assert_eq!(cpu.run(&[0xdb, 0xe3]), Outcome::Done);
    assert_eq!(cpu.run(&[0xd9, 0x20]), Outcome::Done);
    let mut expected = saved.clone();
    expected.set_fip(0x000b_aaaa);
    assert_eq!(cpu.ext.fx[..24], expected.fx[..24]);
    assert_eq!(cpu.ext.fx[32..160], expected.fx[32..160]);
}

#[test]
fn real_mode_images() {
    let context = X87Context {
        real_mode: true,
        ..CONTEXT
    };
    for (bitness, fip, size) in [(32, 0xabcd_ef01u64, 28u8), (16, 0x000b_ef01, 14)] {
        let mut cpu = Cpu::new();
        cpu.ext.set_fip(fip);
        cpu.ext.set_fdp(fip ^ 0x000f_0000);
        cpu.ext.set_fop(0x123);
        let saved = cpu.ext.clone();
        let run = |cpu: &mut Cpu, bytes: &[u8]| {
            let prepared = cpu.exec.prepare(&decode(bitness, bytes)).unwrap();
            let outcome = cpu.exec.run_x87(
                &prepared,
                &mut cpu.ext,
                &mut cpu.gpr,
                &mut cpu.mem,
                &mut cpu.rflags,
                &context,
            );
            assert_eq!(outcome, Outcome::Done);
            prepared.facts().memory
        };
        assert_eq!(run(&mut cpu, &[0xd9, 0x30]), MemoryUse::Write(size));
        if bitness == 32 {
            // SDM Vol. 1, figure 8-10: FIP 15:0, then FIP 31:16 in bits 27:12 above the opcode.
            assert_eq!(cpu.mem.0[12..14], 0xef01u16.to_le_bytes());
            assert_eq!(cpu.mem.0[16..20], 0x0abc_d123u32.to_le_bytes());
            assert_eq!(cpu.mem.0[24..28], 0x0abc_2000u32.to_le_bytes());
        } else {
            // Figure 8-12: FIP 19:16 in bits 15:12 above the opcode.
            assert_eq!(cpu.mem.0[6..8], 0xef01u16.to_le_bytes());
            assert_eq!(cpu.mem.0[8..10], 0xb123u16.to_le_bytes());
            assert_eq!(cpu.mem.0[12..14], 0x4000u16.to_le_bytes());
        }
        run(&mut cpu, &[0xdb, 0xe3]);
        assert_eq!(run(&mut cpu, &[0xd9, 0x20]), MemoryUse::Read(size));
        assert_eq!(cpu.ext, saved);
    }
}

#[test]
fn save_and_restore() {
    let mut cpu = Cpu::new();
    for insn in [FLD1, FLDZ, FLD1] {
        assert_eq!(cpu.run(&insn), Outcome::Done);
    }
    let saved = cpu.ext.clone();
    assert_eq!(cpu.memory_use(&[0xdd, 0x30]), MemoryUse::Write(108));
    assert_eq!(cpu.run(&[0xdd, 0x30]), Outcome::Done); // fnsave [rax]
    assert_eq!(cpu.mem.0[28..38], ONE, "ST0 first");
    assert_eq!(cpu.mem.0[38..48], [0; 10]);
    assert_eq!(
        (cpu.ext.fcw(), cpu.ext.fsw(), cpu.ext.ftw_abridged()),
        (0x37f, 0, 0)
    );
    assert_eq!(cpu.memory_use(&[0xdd, 0x20]), MemoryUse::Read(108));
    assert_eq!(cpu.run(&[0xdd, 0x20]), Outcome::Done); // frstor [rax]
    assert_eq!(cpu.ext.fx[..6], saved.fx[..6]);
    assert_eq!(cpu.ext.fx[32..160], saved.fx[32..160]);
    // With 16-bit operand size.
    assert_eq!(cpu.memory_use(&[0x66, 0xdd, 0x30]), MemoryUse::Write(94));
}

#[test]
fn mmx_takes_the_x87_registers() {
    let mut cpu = Cpu::new();
    assert_eq!(cpu.run(&FLD1), Outcome::Done); // R7 = 1.0, TOP = 7
    // movq mm1, [rax]; movq mm2, [rax+8] in place; paddd mm1, mm2
    cpu.set_mem(&0x0000_0005_ffff_ffffu64.to_le_bytes());
    assert_eq!(cpu.run(&[0x0f, 0x6f, 0x08]), Outcome::Done);
    assert_eq!(
        (top(&cpu), cpu.ext.ftw_abridged()),
        (0, 0xff),
        "all valid, TOP 0"
    );
    assert_eq!(cpu.ext.mm(1), 0x0000_0005_ffff_ffff);
    assert_eq!(
        cpu.ext.st(1)[8..],
        [0xff, 0xff],
        "exponent and sign all ones"
    );
    assert_eq!(cpu.ext.st(7), ONE, "R7 keeps its contents");
    cpu.set_mem(&0x0000_0001_0000_0002u64.to_le_bytes());
    assert_eq!(cpu.run(&[0x0f, 0x6f, 0x10]), Outcome::Done);
    assert_eq!(cpu.run(&[0x0f, 0xfe, 0xca]), Outcome::Done);
    assert_eq!(cpu.ext.mm(1), 0x0000_0006_0000_0001);
    // pmovmskb r10d, mm1 reads; emms empties.
    cpu.gpr[10] = u64::MAX;
    assert_eq!(cpu.run(&[0x44, 0x0f, 0xd7, 0xd1]), Outcome::Done);
    assert_eq!(cpu.gpr[10], 0);
    assert_eq!(cpu.run(&[0x0f, 0x77]), Outcome::Done);
    assert_eq!((top(&cpu), cpu.ext.ftw_abridged()), (0, 0));
    assert_eq!(cpu.ext.mm(1), 0x0000_0006_0000_0001);
}
