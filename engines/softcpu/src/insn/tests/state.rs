//! FXSAVE and the XSAVE family (SDM Vol 1 chapters 10 and 13).

use x86defs::exception::{GP, PF};

use crate::cpu::gpr::*;
use crate::testing::*;

/// SDM Vol 1 8.1.8, 8.1.9: opcode, instruction and operand pointers of the last non-control instruction.
#[test]
fn x87_pointers() {
    let mut b = Bench::long();
    b.set(RBX, DATA + 0x400);
    b.set(RCX, DATA);
    b.put::<u64>(DATA + 0x400, 0x3ff0_0000_0000_0000);
    // fld qword [rbx]
    b.ok(&[0xdd, 0x03]);
    // fxsave64 [rcx]
    b.ok(&[0x48, 0x0f, 0xae, 0x01]);
    assert_eq!(b.at::<u16>(DATA + 6), 0x503);
    assert_eq!(b.at::<u64>(DATA + 8), CODE);
    assert_eq!(b.at::<u64>(DATA + 16), DATA + 0x400);
    // rex.w fadd st, st(0) with a segment prefix
    b.ok(&[0x2e, 0x48, 0xd8, 0xc0]);
    b.ok(&[0x48, 0x0f, 0xae, 0x01]);
    assert_eq!(b.at::<u16>(DATA + 6), 0x0c0);
    // Control instructions are not recorded: fnstcw [rbx].
    b.ok(&[0xd9, 0x3b]);
    b.ok(&[0x48, 0x0f, 0xae, 0x01]);
    assert_eq!(b.at::<u16>(DATA + 6), 0x0c0);
}

/// The 32-bit format holds selectors where the 64-bit one holds upper halves (SDM Vol 1 Table 10-2).
#[test]
fn fxrstor_formats() {
    let mut b = Bench::long();
    b.set(RCX, DATA);
    b.put::<u16>(DATA, 0x37f);
    b.put::<u64>(DATA + 8, 0x1122_3344_5566_7788);
    b.put::<u64>(DATA + 16, 0x1122_3344_5566_7799);
    b.put::<u32>(DATA + 24, 0x1f80);
    // Reserved: the byte behind the tags, five bits of the opcode.
    b.put::<u32>(DATA + 4, 0xffff_ff00);
    // fxrstor [rcx], fxsave64 [rcx]
    b.ok(&[0x0f, 0xae, 0x09]);
    b.ok(&[0x48, 0x0f, 0xae, 0x01]);
    assert_eq!(b.at::<u64>(DATA + 8), 0x5566_7788);
    assert_eq!(b.at::<u64>(DATA + 16), 0x5566_7799);
    assert_eq!(b.at::<u32>(DATA + 4), 0x07ff_0000);
    // A reserved bit of MXCSR, a misaligned image.
    b.put::<u32>(DATA + 24, 0x1_1f80);
    assert_eq!(b.fault(&[0x0f, 0xae, 0x09], GP), 0);
    let mut b = Bench::long();
    b.set(RCX, DATA + 8);
    assert_eq!(b.fault(&[0x0f, 0xae, 0x01], GP), 0);
}

/// ES and B follow the exception flags and masks.
#[test]
fn fxrstor_summarizes() {
    let mut b = Bench::long();
    b.set(RCX, DATA);
    // Zero divide, unmasked, without the summary bit.
    b.put::<u32>(DATA, 0x0004_037b);
    b.put::<u32>(DATA + 24, 0x1f80);
    b.ok(&[0x0f, 0xae, 0x09]);
    // fnstsw ax
    b.ok(&[0xdf, 0xe0]);
    assert_eq!(b.get(RAX) & 0xffff, 0x8084);
}

/// SDM Vol 1 13.8: what XRSTOR refuses.
#[test]
fn xrstor_checks_the_header() {
    // (offset, value): a component that XCR0 lacks; bytes 23:8 in the standard form; in the compacted form a
    // component XCOMP_BV lacks, and a reserved byte.
    for image in [
        &[(512, 8u64)][..],
        &[(520, 1)],
        &[(528, 1)],
        &[(512, 4), (520, 1 << 63 | 3)],
        &[(520, 1 << 63 | 7), (536, 1)],
        &[(520, 1 << 63 | 15)],
        &[(24, 0x1_0000)],
    ] {
        let mut b = Bench::long();
        b.set(RCX, DATA);
        b.set(RAX, 7);
        b.put::<u32>(DATA + 24, 0x1f80);
        for (at, value) in image {
            b.put::<u64>(DATA + at, *value);
        }
        assert_eq!(b.fault(&[0x0f, 0xae, 0x29], GP), 0, "{image:x?}");
    }
    // Standard form: bytes 63:24 are not looked at; MXCSR is loaded though no component is.
    let mut b = Bench::long();
    b.set(RCX, DATA);
    b.set(RAX, 7);
    b.put::<u32>(DATA + 24, 0x1fa0);
    b.put::<u64>(DATA + 536, 1);
    b.ok(&[0x0f, 0xae, 0x29]);
    assert_eq!(b.cpu().ext.mxcsr, 0x1fa0);
    // Compacted form with SSE in its initial state: MXCSR is reset.
    b.put::<u64>(DATA + 520, 1 << 63 | 7);
    b.put::<u64>(DATA + 536, 0);
    b.ok(&[0x0f, 0xae, 0x29]);
    assert_eq!(b.cpu().ext.mxcsr, 0x1f80);
}

/// XSAVE keeps the bits of XSTATE_BV it is not asked for; XSAVEC writes its own (SDM Vol 1 13.7, 13.10).
#[test]
fn xstate_bv() {
    let mut b = Bench::long();
    b.set(RCX, DATA);
    b.set(RAX, 2);
    b.put::<u64>(DATA + 512, 5);
    // xorps would leave XMM0 initial: set a bit.
    b.cpu().ext.ymm[0][0] = 1;
    b.ok(&[0x0f, 0xae, 0x21]);
    assert_eq!(b.at::<u64>(DATA + 512), 7);
    assert_eq!(b.at::<u64>(DATA + 520), 0);
    b.set(RAX, 7);
    b.ok(&[0x0f, 0xc7, 0x21]);
    assert_eq!(b.at::<u64>(DATA + 512), 2);
    assert_eq!(b.at::<u64>(DATA + 520), 1 << 63 | 7);
    // A fault is a write's.
    b.set(RCX, SMALL);
    b.put::<u64>(PT, 0);
    assert_eq!(b.fault(&[0x0f, 0xae, 0x21], PF), 2);
}
