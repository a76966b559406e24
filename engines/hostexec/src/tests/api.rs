//! The cache: sharing, exhaustion, stale handles, and what the host thread keeps.

use super::machine::{Cpu, decode};
use crate::{
    Bounce, ExtState, FCW_FNINIT, FCW_POWER_UP, HostExec, Outcome, PrepareError, Prepared,
};

const PXOR: [u8; 4] = [0x66, 0x0f, 0xef, 0xc1];

#[test]
fn state_after_power_up_and_fninit() {
    let state = ExtState::power_up();
    assert_eq!((state.mxcsr, state.fcw(), state.fsw()), (0x1f80, 0x0040, 0));
    assert_eq!(
        (state.fcw(), crate::x87::full_tag_word(&state)),
        (FCW_POWER_UP, 0x5555)
    );
    let state = ExtState::initialized();
    assert_eq!((state.mxcsr, state.fcw(), state.fsw()), (0x1f80, 0x037f, 0));
    assert_eq!(
        (state.fcw(), crate::x87::full_tag_word(&state)),
        (FCW_FNINIT, 0xffff)
    );
    assert_eq!(std::mem::align_of::<ExtState>(), 64);
    assert_eq!(std::mem::offset_of!(ExtState, fx) % 64, 0);
}

#[test]
fn equal_instructions_share_a_stub() {
    let mut cpu = Cpu::new();
    // paddd xmm1, [rax]; [rcx+rdx*4+64]; gs:[0x1000]
    for bytes in [
        &[0x66, 0x0f, 0xfe, 0x08][..],
        &[0x66, 0x0f, 0xfe, 0x4c, 0x91, 0x40],
        &[0x65, 0x66, 0x0f, 0xfe, 0x0c, 0x25, 0, 0x10, 0, 0],
    ] {
        cpu.prepare(bytes);
        assert_eq!(cpu.exec.usage().0, 1);
    }
    cpu.prepare(&[0x66, 0x0f, 0xfe, 0x10]); // paddd xmm2, [rax]
    assert_eq!(cpu.exec.usage().0, 2);
    // movd xmm1, ecx and movd xmm1, edx load different registers.
    cpu.prepare(&[0x66, 0x0f, 0x6e, 0xc9]);
    cpu.prepare(&[0x66, 0x0f, 0x6e, 0xca]);
    assert_eq!(cpu.exec.usage().0, 4);
    assert!(size_of::<Prepared>() <= 48, "{}", size_of::<Prepared>());
}

#[test]
fn stale_handles_do_not_run() {
    let mut cpu = Cpu::new();
    let prepared = cpu.prepare(&PXOR);
    cpu.ext.ymm[1] = [1; 4];
    assert_eq!(cpu.run_prepared(&prepared), Outcome::Done);
    cpu.exec.clear().unwrap();
    assert_eq!(cpu.exec.usage().0, 0);
    let before = cpu.ext.clone();
    assert_eq!(cpu.run_prepared(&prepared), Outcome::Stale);
    assert_eq!(cpu.ext, before);
    let again = cpu.prepare(&PXOR);
    assert_eq!(cpu.run_prepared(&again), Outcome::Done);
    // Nor do those of another cache.
    let other = HostExec::new().unwrap();
    let outcome = other.run(
        &again,
        &mut cpu.ext,
        &mut cpu.gpr,
        &mut cpu.mem,
        &mut cpu.rflags,
    );
    assert_eq!(outcome, Outcome::Stale);
}

#[test]
fn a_full_area_says_so() {
    let mut exec = HostExec::with_capacity(1).unwrap();
    let mut made = 0;
    let error = 'fill: {
        for modrm in 0xc0..=0xffu8 {
            for opcode in [0xef, 0xfe, 0xfd, 0xfc] {
                match exec.prepare(&decode(64, &[0x66, 0x0f, opcode, modrm])) {
                    Ok(_) => made += 1,
                    Err(error) => break 'fill error,
                }
            }
        }
        panic!("one page holds 256 stubs");
    };
    assert_eq!(error, PrepareError::Full);
    assert!(made > 10);
    exec.clear().unwrap();
    assert!(exec.prepare(&decode(64, &PXOR)).is_ok());
}

#[test]
fn runs_on_other_threads() {
    let mut exec = HostExec::new().unwrap();
    let prepared = exec.prepare(&decode(64, &PXOR)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut ext = ExtState::initialized();
                for i in 0..1000 {
                    ext.ymm[0] = [i; 4];
                    ext.ymm[1] = [i; 4];
                    let outcome = exec.run(
                        &prepared,
                        &mut ext,
                        &mut [0; 16],
                        &mut Bounce::new(),
                        &mut 2,
                    );
                    assert_eq!(outcome, Outcome::Done);
                    assert_eq!(ext.ymm[0], [0, 0, i, i]);
                }
            });
        }
    });
}

/// MXCSR without its flags, and the x87 control and tag words.
fn host_control() -> (u32, u16, u16) {
    let mut mxcsr = 0u32;
    let mut environment = [0u16; 14];
    // SAFETY: stores to locals; FNSTENV masks exceptions, which are masked already.
    unsafe {
        std::arch::asm!("stmxcsr [{}]", in(reg) &mut mxcsr);
        std::arch::asm!("fnstenv [{}]", in(reg) &mut environment);
    }
    (mxcsr & !0x3f, environment[0], environment[4])
}

#[test]
fn the_host_thread_keeps_its_modes() {
    let before = host_control();
    assert_eq!(before, (0x1f80, 0x37f, 0xffff));
    let mut cpu = Cpu::new();
    cpu.ext.mxcsr = 0xffff & !0x80;
    cpu.ext.set_fcw(0x0c40);
    let instructions: &[&[u8]] = &[
        &[0x0f, 0x58, 0xca], // addps xmm1, xmm2
        &[0xd9, 0xe8],       // fld1
        &[0xd9, 0xee],       // fldz
        &[0xde, 0xf9],       // fdivp: unmasked zero divide
        &[0xdb, 0xe2],       // fnclex
        &[0x0f, 0xfc, 0xca], // paddb mm1, mm2
        &[0x0f, 0x2a, 0xc9], // cvtpi2ps xmm1, mm1
        &[0x0f, 0x5e, 0xc0], // divps xmm0, xmm0: invalid, unmasked
    ];
    for bytes in instructions {
        let _ = cpu.run(bytes);
        assert_eq!(host_control(), before, "{}", decode(64, bytes));
    }
    assert_eq!(cpu.run(instructions[7]), Outcome::SimdException);
    assert_eq!(host_control(), before);
}
