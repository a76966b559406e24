//! Code that gives the host's vector registers, MXCSR and x87 to the guest, and takes them back.
//!
//! Translated code calls the first two where it is to execute an instruction on them and does not know that they are
//! the guest's already ([`Stubs::sse`], [`Stubs::avx`]). Whatever leaves translated code, for a handler or for good,
//! calls [`take_back`]: Rust code has them then, MXCSR with its default.
//!
//! The XMM registers may be the guest's alone: then the upper halves of the host's are zero, as programs without
//! AVX want them, and those of the guest stay where they are kept.
//!
//! [`Stubs::sse`]: crate::stubs::Stubs::sse
//! [`Stubs::avx`]: crate::stubs::Stubs::avx

use crate::asm::{Asm, Legacy, Mem, Rm, Vex};
use crate::layout::{
    ADDRESS, MXCSR, NO_AVX, NO_SSE, NO_X87, RCX, THIS, barrier, scratch, x87_image, x87_last, ymm,
    ymm_upper,
};

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

/// FXSAVE64 and FXRSTOR64.
fn image(a: &mut Asm, extension: u8) {
    let i = Legacy {
        wide: true,
        opcode: &[0x0f, 0xae],
        ..Legacy::default()
    };
    a.legacy(&i, extension, Rm::Mem(x87_image(0)));
}

/// Makes the x87 the guest's, if that may be: then RCX is zero. XMM registers are not the guest's then. `take_back` is
/// the address of what [`take_back`] writes. Changes [`ADDRESS`], no flags.
pub fn give_x87(a: &mut Asm, take_back: u64) {
    stop_at(a, barrier(2));
    // FXRSTOR loads XMM registers and MXCSR too.
    a.call(take_back);
    a.load(ADDRESS, THIS);
    a.set(RCX, DEFAULT_MXCSR);
    a.store(x87_image(24), RCX);
    for (place, at) in [(0, 8), (1, 16), (2, 6)] {
        a.load(RCX, x87_image(at));
        a.store(x87_last(place), RCX);
    }
    image(a, 1);
    a.set(RCX, 0);
    a.store(NO_X87, RCX);
    ret(a);
}

/// Keeps the x87, which is the guest's, in the processor's state, and has the host's as after FNINIT. Changes RCX and
/// [`ADDRESS`], no flags.
pub fn take_back_x87(a: &mut Asm) {
    a.load(ADDRESS, THIS);
    image(a, 0);
    a.raw(&[0xdb, 0xe3]);
    for (place, at) in [(0, 8), (1, 16)] {
        a.load(RCX, x87_last(place));
        a.store(x87_image(at), RCX);
    }
    a.load(RCX, x87_last(2));
    let store_16 = Legacy {
        prefixes: &[0x66],
        opcode: &[0x89],
        ..Legacy::default()
    };
    a.legacy(&store_16, RCX.0, Rm::Mem(x87_image(6)));
    a.store(NO_X87, ADDRESS);
    ret(a);
}

/// Keeps what is the guest's in the processor's state and has the host's default in MXCSR and the x87. `x87` is the
/// address of what [`take_back_x87`] writes. Changes RCX and [`ADDRESS`], no flags.
pub fn take_back(a: &mut Asm, x87: u64) {
    a.load(RCX, NO_X87);
    let some = a.if_zero();
    let none = a.jump_short();
    a.land(some);
    a.call(x87);
    a.land(none);
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
