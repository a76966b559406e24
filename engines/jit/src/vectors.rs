//! Code that gives the host's vector registers and MXCSR to the guest, and takes them back.
//!
//! Translated code calls the first two where it is to execute an instruction on them and does not know that they are
//! the guest's already ([`Stubs::sse`], [`Stubs::avx`]). Whatever leaves translated code, for a handler or for good,
//! calls the third ([`take_back`]): Rust code has them then, MXCSR with its default.
//!
//! The XMM registers may be the guest's alone: then the upper halves of the host's are zero, as programs without
//! AVX want them, and those of the guest stay where they are kept.
//!
//! [`Stubs::sse`]: crate::stubs::Stubs::sse
//! [`Stubs::avx`]: crate::stubs::Stubs::avx

use crate::asm::{Asm, Legacy, Mem, Rm, Vex};
use crate::layout::{ADDRESS, MXCSR, NO_AVX, NO_SSE, RCX, THIS, barrier, scratch, ymm, ymm_upper};

/// MXCSR as Rust code expects it.
const DEFAULT_MXCSR: u32 = 0x1f80;

/// MOVAPS and VMOVAPS: load, store.
const LOAD: u8 = 0x28;
const STORE: u8 = 0x29;

fn mxcsr(a: &mut Asm, extension: u8, at: Mem) {
    let i = Legacy {
        opcode: &[0x0f, 0xae],
        ..Legacy::default()
    };
    a.legacy(&i, extension, Rm::Mem(at));
}

/// LDMXCSR.
pub fn load_mxcsr(a: &mut Asm, from: Mem) {
    mxcsr(a, 2, from);
}

/// STMXCSR.
pub fn store_mxcsr(a: &mut Asm, to: Mem) {
    mxcsr(a, 3, to);
}

/// All XMM registers.
fn move_xmm(a: &mut Asm, opcode: u8) {
    for number in 0..16 {
        let i = Legacy {
            opcode: &[0x0f, opcode],
            ..Legacy::default()
        };
        a.legacy(&i, number, Rm::Mem(ymm(number)));
    }
}

/// All YMM registers.
fn move_ymm(a: &mut Asm, opcode: u8) {
    for number in 0..16 {
        let i = Vex {
            map: 1,
            pp: 0,
            wide: false,
            long: true,
            vvvv: 0,
            opcode,
        };
        a.vex(&i, number, Rm::Mem(ymm(number)));
    }
}

/// VINSERTF128: the upper halves.
fn load_upper(a: &mut Asm) {
    for number in 0..16 {
        let i = Vex {
            map: 3,
            pp: 1,
            wide: false,
            long: true,
            vvvv: number,
            opcode: 0x18,
        };
        a.vex(&i, number, Rm::Mem(ymm_upper(number)));
        a.raw(&[1]);
    }
}

fn ret(a: &mut Asm) {
    a.raw(&[0xc3]);
}

/// Returns unless the word at `barrier` is zero. Then RCX is.
fn stop_at(a: &mut Asm, barrier: Mem) {
    a.load(RCX, barrier);
    let none = a.if_zero();
    ret(a);
    a.land(none);
    a.load(ADDRESS, THIS);
}

/// Makes XMM registers and MXCSR the guest's, if that may be: then RCX is zero. Changes [`ADDRESS`], no flags.
pub fn give_sse(a: &mut Asm) {
    stop_at(a, barrier(0));
    load_mxcsr(a, MXCSR);
    move_xmm(a, LOAD);
    a.store(NO_SSE, RCX);
    ret(a);
}

/// Makes YMM registers and MXCSR the guest's, if that may be: then RCX is zero. Changes [`ADDRESS`], no flags.
pub fn give_avx(a: &mut Asm) {
    stop_at(a, barrier(1));
    a.load(RCX, NO_SSE);
    let lower_there = a.if_zero();
    let all = a.jump(0);
    a.land(lower_there);
    load_upper(a);
    a.store(NO_AVX, RCX);
    ret(a);
    let here = a.here();
    a.aim(all, here);
    load_mxcsr(a, MXCSR);
    move_ymm(a, LOAD);
    a.set(RCX, 0);
    a.store(NO_SSE, RCX);
    a.store(NO_AVX, RCX);
    ret(a);
}

/// Keeps what is the guest's in the processor's state and has the host's default in MXCSR. Changes RCX and
/// [`ADDRESS`], no flags.
pub fn take_back(a: &mut Asm) {
    a.load(RCX, NO_SSE);
    let some = a.if_zero();
    ret(a);
    a.land(some);
    a.load(ADDRESS, THIS);
    a.load(RCX, NO_AVX);
    let upper_too = a.if_zero();
    let lower = a.jump(0);
    a.land(upper_too);
    move_ymm(a, STORE);
    // VZEROUPPER: Rust code is SSE.
    a.raw(&[0xc5, 0xf8, 0x77]);
    let done = a.jump(0);
    let here = a.here();
    a.aim(lower, here);
    move_xmm(a, STORE);
    let here = a.here();
    a.aim(done, here);
    store_mxcsr(a, MXCSR);
    a.set(RCX, DEFAULT_MXCSR);
    a.store(NO_SSE, RCX);
    a.store(NO_AVX, RCX);
    // Others have the words before it over a call.
    a.store(scratch(3), RCX);
    load_mxcsr(a, scratch(3));
    ret(a);
}
