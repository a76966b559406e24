//! Which bytes are an instruction on this processor.

use x86defs::exception::{GP, PF, UD};

use crate::cpu::Model;
use crate::cpu::gpr::*;
use crate::testing::*;
use vcpu::cpuid::CpuModel;

const NON_CANONICAL: u64 = 0x8000_0000_0000_0000;

/// SDM Vol 2 table A-3: 0F 0D and 0F 18 to 0F 1F are NOPs but for what CPUID gives a meaning; they touch no
/// memory.
#[test]
fn reserved_nops() {
    let mut b = Bench::long();
    b.set(RAX, NON_CANONICAL);
    // RDSSPQ RAX without CET: compilers rely on RAX staying as it is.
    b.ok(&[0xf3, 0x48, 0x0f, 0x1e, 0xc8]);
    assert_eq!(b.get(RAX), NON_CANONICAL);
    // ENDBR64, PREFETCH (3DNow), PREFETCHW, PREFETCHWT1, a hint of 0F 18, CLDEMOTE, BNDLDX, BNDMK, NOP [RAX].
    for bytes in [
        &[0xf3, 0x0f, 0x1e, 0xfa][..],
        &[0x0f, 0x0d, 0x00],
        &[0x0f, 0x0d, 0x08],
        &[0x0f, 0x0d, 0x10],
        &[0x0f, 0x18, 0x38],
        &[0x0f, 0x1c, 0x00],
        &[0x0f, 0x1a, 0x00],
        &[0xf3, 0x0f, 0x1b, 0x00],
        &[0x0f, 0x1f, 0x00],
        &[0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
    ] {
        b.ok(bytes);
    }
}

#[test]
fn undefined_instructions() {
    // UD0, UD1, UD2, INCSSPD, LOCK on a NOP, on a register destination, on MOV; MOV from CR1 and CR5, MOV from
    // DR8, MOV to CS; MONITOR and MWAIT, which are not shown.
    for bytes in [
        &[0x0f, 0xff, 0xc0][..],
        &[0x0f, 0xb9, 0xc0],
        &[0x0f, 0x0b],
        &[0xf3, 0x0f, 0xae, 0xe8],
        &[0xf0, 0x90],
        &[0xf0, 0x01, 0xc0],
        &[0xf0, 0x89, 0x03],
        &[0x0f, 0x20, 0xc8],
        &[0x0f, 0x20, 0xe8],
        &[0x44, 0x0f, 0x21, 0xc0],
        &[0x8e, 0xc8],
        &[0x0f, 0x01, 0xc8],
        &[0x0f, 0x01, 0xc9],
    ] {
        Bench::long_with(model_of(CpuModel::NestlingIntel)).fault(bytes, UD);
        // #UD comes before the #GP of privilege.
        Bench::user().fault(bytes, UD);
    }
    let mut b = Bench::long();
    b.set(RBX, DATA);
    // lock add [rbx], eax
    b.ok(&[0xf0, 0x01, 0x03]);
}

/// SDM Vol 2 2.3.11: more than 15 bytes are #GP(0).
#[test]
fn over_long_instructions() {
    let mut bytes = [0x66; 16];
    bytes[15] = 0x90;
    assert_eq!(Bench::long().fault(&bytes, GP), 0);
    Bench::long().ok(&bytes[1..]);
}

/// MOV with control registers ignores the mod field (SDM Vol 2, MOV).
#[test]
fn control_register_moves_ignore_mod() {
    let mut b = Bench::long();
    b.ok(&[0x0f, 0x20, 0x00]);
    assert_eq!(b.get(RAX), 0x8000_0033);
}

/// SDM Vol 1 3.3.7: a 32-bit address is zero-extended, a displacement of a 64-bit one sign-extended.
#[test]
fn absolute_addresses() {
    let mut b = Bench::long();
    // mov eax, [disp32] with and without 67h
    b.fault(&[0x67, 0x8b, 0x04, 0x25, 0, 0, 0, 0x90], PF);
    assert_eq!(b.cpu().cr2, 0x9000_0000);
    let mut b = Bench::long();
    b.fault(&[0x8b, 0x04, 0x25, 0, 0, 0, 0x90], PF);
    assert_eq!(b.cpu().cr2, 0xffff_ffff_9000_0000);
    // lea rax, [eax - 1]: truncated
    let mut b = Bench::long();
    b.set(RAX, 0);
    b.ok(&[0x67, 0x48, 0x8d, 0x40, 0xff]);
    assert_eq!(b.get(RAX), 0xffff_ffff);
}

fn without(leaf: u32, change: impl Fn(&mut vcpu::cpuid::CpuidResult)) -> Model {
    let mut m = model();
    let mut r = m.cpuid.get(leaf, 0).unwrap();
    change(&mut r);
    let subleaf = (leaf == 7).then_some(0);
    m.cpuid.set(leaf, subleaf, r);
    m
}

/// What CPUID does not show does not exist.
#[test]
fn extensions_follow_cpuid() {
    // GF2P8MULB, VAESENC and VPCLMULQDQ on YMM, VPADDD on ZMM, VFRCZPS (XOP), EXTRQ (SSE4a), PFADD (3DNow).
    for bytes in [
        &[0x66, 0x0f, 0x38, 0xcf, 0xc1][..],
        &[0xc4, 0xe2, 0x75, 0xdc, 0xc2],
        &[0xc4, 0xe3, 0x75, 0x44, 0xc2, 0],
        &[0x62, 0xf1, 0x75, 0x48, 0xfe, 0xc2],
        &[0x8f, 0xe9, 0x78, 0x80, 0xc1],
        &[0x66, 0x0f, 0x79, 0xc1],
        &[0x0f, 0x0f, 0xc1, 0x9e],
    ] {
        Bench::long_with(model_of(CpuModel::NestlingIntel)).fault(bytes, UD);
    }
    // MOVBE, POPCNT, PSHUFB, VADDPS.
    let no_leaf1 = |bit: u32| without(1, move |r| r.ecx &= !(1 << bit));
    Bench::long_with(no_leaf1(22)).fault(&[0x0f, 0x38, 0xf0, 0x03], UD);
    Bench::long_with(no_leaf1(23)).fault(&[0xf3, 0x0f, 0xb8, 0xc3], UD);
    Bench::long_with(no_leaf1(9)).fault(&[0x66, 0x0f, 0x38, 0x00, 0xc1], UD);
    Bench::long_with(no_leaf1(28)).fault(&[0xc5, 0xf8, 0x58, 0xc1], UD);
    // VPADDD on YMM needs AVX2, on XMM only AVX.
    if std::is_x86_feature_detected!("avx2") {
        let no_avx2 = || without(7, |r| r.ebx &= !(1 << 5));
        Bench::long_with(no_avx2()).fault(&[0xc5, 0xf5, 0xfe, 0xc2], UD);
        Bench::long_with(no_avx2()).ok(&[0xc5, 0xf1, 0xfe, 0xc2]);
        Bench::long().ok(&[0xc5, 0xf5, 0xfe, 0xc2]);
    }
}

/// TZCNT is BSF where BMI1 is missing: a zero source leaves the destination (SDM Vol 2, TZCNT).
#[test]
fn tzcnt_without_bmi1_is_bsf() {
    let tzcnt = [0xf3, 0x0f, 0xbc, 0xc3];
    let mut b = Bench::long();
    b.set(RAX, 7);
    b.ok(&tzcnt);
    assert_eq!(b.get(RAX), 32);
    let mut b = Bench::long_with(without(7, |r| r.ebx &= !(1 << 3)));
    b.set(RAX, 7);
    b.ok(&tzcnt);
    assert_eq!(b.get(RAX), 7);
    b.set(RBX, 0x10);
    b.ok(&tzcnt);
    assert_eq!(b.get(RAX), 4);
}

/// SALC outside 64-bit mode; in it D6 is no instruction (SDM Vol 2 table A-2 leaves it empty).
#[test]
fn salc() {
    let mut b = Bench::protected();
    b.cpu().flags.set_bits(0);
    b.set(RAX, 0x1234);
    b.ok(&[0xd6]);
    assert_eq!(b.get(RAX), 0x1200);
    b.cpu().flags.set_bits(1);
    b.ok(&[0xd6]);
    assert_eq!(b.get(RAX), 0x12ff);
    assert_eq!(Bench::long().run(&[0xd6]), Outcome::Vector(UD));
}
