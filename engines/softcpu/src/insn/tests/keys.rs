//! Protection keys (SDM Vol 3 4.6.2, 4.7) and their register in the XSAVE area (SDM Vol 1 13.5.7).

use x86defs::cr::cr4;
use x86defs::exception::{GP, PF, UD};

use crate::cpu::gpr::*;
use crate::testing::*;

const RDPKRU: [u8; 3] = [0x0f, 0x01, 0xee];
const WRPKRU: [u8; 3] = [0x0f, 0x01, 0xef];
/// mov al, [rbx]; mov [rbx], al
const LOAD: [u8; 2] = [0x8a, 0x03];
const STORE: [u8; 2] = [0x88, 0x03];

const KEY: u64 = 5;

fn keyed(mut b: Bench, pkru: u32) -> Bench {
    b.cpu().cr4 |= cr4::PKE;
    b.cpu().set_pkru(pkru);
    b.put::<u64>(PT, SMALL | KEY << 59 | 7);
    b.set(RBX, SMALL);
    b
}

fn page_fault(b: &mut Bench, bytes: &[u8]) -> u64 {
    assert_eq!(b.run(bytes), Outcome::Vector(PF), "{bytes:02x?}");
    b.at(b.get(RSP))
}

/// Access disable forbids reads and writes, write disable writes: to user code always, to the supervisor with CR0.WP.
/// Bit 5 of the error code says so.
#[test]
fn keys_forbid_data_accesses() {
    let access = 1 << (2 * KEY);
    let write = 2 << (2 * KEY);
    for user in [false, true] {
        let bench = || if user { Bench::user() } else { Bench::long() };
        let code = if user { 0x25 } else { 0x21 };
        assert_eq!(page_fault(&mut keyed(bench(), access), &LOAD), code);
        assert_eq!(page_fault(&mut keyed(bench(), access), &STORE), code | 2);
        keyed(bench(), write).ok(&LOAD);
        let mut b = keyed(bench(), write);
        b.cpu().cr0 |= 0x1_0000;
        assert_eq!(page_fault(&mut b, &STORE), code | 2);
        let mut b = keyed(bench(), write);
        b.cpu().cr0 &= !0x1_0000;
        if user {
            assert_eq!(page_fault(&mut b, &STORE), code | 2);
        } else {
            b.ok(&STORE);
        }
        // Other keys' bits do not matter.
        let mut b = keyed(bench(), !(access | write));
        b.ok(&STORE);
        b.ok(&LOAD);
    }
}

/// Keys do not concern fetches, supervisor pages, or anything while CR4.PKE is clear.
#[test]
fn keys_forbid_nothing_else() {
    let mut b = keyed(Bench::long(), u32::MAX);
    b.put::<u8>(SMALL, 0xc3);
    b.cpu().cr4 &= !cr4::PKE;
    b.cpu().update_space();
    b.ok(&LOAD);
    // The stack is a user page too, of key 0: this one is the supervisor's.
    let mut b = keyed(Bench::long(), !3);
    b.put::<u64>(PT, SMALL | KEY << 59 | 3);
    b.ok(&LOAD);
    b.ok(&STORE);
    let mut b = keyed(Bench::user(), !3);
    b.put::<u8>(SMALL, 0x90);
    // jmp rbx, then NOP there.
    assert_eq!(b.run(&[0xff, 0xe3]), Outcome::Next(SMALL));
    assert_eq!(b.step(), Outcome::Next(SMALL + 1));
}

/// Cached translations follow PKRU, those of key 0 as well.
#[test]
fn cached_translations_follow_pkru() {
    for key in [0, KEY] {
        let mut b = keyed(Bench::user(), 0);
        b.put::<u64>(PT, SMALL | key << 59 | 7);
        b.ok(&STORE);
        b.cpu().set_pkru(2 << (2 * key));
        assert_eq!(page_fault(&mut b, &STORE), 0x27, "key {key}");
    }
    let mut b = keyed(Bench::user(), 0);
    b.ok(&STORE);
    b.cpu().set_pkru(1 << (2 * KEY));
    assert_eq!(page_fault(&mut b, &LOAD), 0x25);
    b.cpu().set_pkru(0);
}

/// SDM Vol 2, RDPKRU and WRPKRU.
#[test]
fn access_to_pkru() {
    assert_eq!(Bench::user().run(&RDPKRU), Outcome::Vector(UD), "CR4.PKE");
    let mut b = keyed(Bench::user(), 0);
    b.set(RAX, 0xffff_ffff_1234_5678);
    b.ok(&WRPKRU);
    b.set(RDX, u64::MAX);
    b.set(RAX, 0);
    b.ok(&RDPKRU);
    assert_eq!((b.get(RAX), b.get(RDX)), (0x1234_5678, 0));
    b.set(RCX, 1);
    assert_eq!(b.run(&RDPKRU), Outcome::Vector(GP));
    let mut b = keyed(Bench::user(), 0);
    b.set(RDX, 1);
    assert_eq!(b.run(&WRPKRU), Outcome::Vector(GP));
    // CPUID.7.0:ECX.OSPKE is CR4.PKE.
    assert_eq!(b.cpu().cpuid(7, 0).ecx >> 3 & 3, 3);
    assert_eq!(Bench::long().cpu().cpuid(7, 0).ecx >> 3 & 3, 1);
}

/// The standard format has PKRU where CPUID says; the compacted one behind what is there (SDM Vol 1 13.4.3).
#[test]
fn pkru_in_xsave_areas() {
    let mut b = keyed(Bench::long(), 0x44);
    let offset = u64::from(b.cpu().cpuid(0xd, 9).ebx);
    assert!(offset >= 832);
    b.cpu().xcr0 = 0x207;
    assert_eq!(u64::from(b.cpu().cpuid(0xd, 0).ebx), offset + 8);
    b.set(RCX, DATA);
    b.set(RAX, 0x200);
    b.put::<u64>(DATA + offset + 8, 0x77);
    // xsave [rcx]
    b.ok(&[0x0f, 0xae, 0x21]);
    assert_eq!(b.at::<u64>(DATA + offset), 0x44);
    assert_eq!(b.at::<u64>(DATA + offset + 8), 0x77);
    assert_eq!(b.at::<u64>(DATA + 512), 0x200);
    assert_eq!(b.at::<u64>(DATA + 24), 0, "neither SSE nor AVX: no MXCSR");
    b.cpu().set_pkru(0);
    // xrstor [rcx]
    b.ok(&[0x0f, 0xae, 0x29]);
    assert_eq!(b.cpu().pkru, 0x44);
    // xsavec [rcx]: without AVX right behind the header, with it behind AVX.
    b.ok(&[0x0f, 0xc7, 0x21]);
    assert_eq!(b.at::<u64>(DATA + 576), 0x44);
    assert_eq!(b.at::<u64>(DATA + 520), 1 << 63 | 0x200);
    b.cpu().ext.ymm[0][3] = 1;
    b.set(RAX, 0x204);
    b.ok(&[0x0f, 0xc7, 0x21]);
    assert_eq!(b.at::<u64>(DATA + 832), 0x44);
    b.cpu().set_pkru(0);
    b.ok(&[0x0f, 0xae, 0x29]);
    assert_eq!(b.cpu().pkru, 0x44);
    // In its initial state it becomes 0.
    b.put::<u64>(DATA + 512, 4);
    b.ok(&[0x0f, 0xae, 0x29]);
    assert_eq!(b.cpu().pkru, 0);
}

/// XSAVES and XRSTORS: privileged, compacted format only; IA32_XSS has no bits (SDM Vol 1 13.11, 13.12).
#[test]
fn xsaves() {
    const XSAVES: [u8; 3] = [0x0f, 0xc7, 0x29];
    const XRSTORS: [u8; 3] = [0x0f, 0xc7, 0x19];
    for insn in [XSAVES, XRSTORS] {
        let mut b = Bench::user();
        b.set(RCX, DATA);
        assert_eq!(b.run(&insn), Outcome::Vector(GP), "privilege");
    }
    let mut b = Bench::long();
    b.set(RCX, DATA);
    b.set(RAX, 7);
    b.cpu().ext.ymm[3] = [1, 2, 3, 4];
    b.put::<u64>(DATA + 528, 9);
    b.ok(&XSAVES);
    assert_eq!(b.at::<u64>(DATA + 512), 6);
    assert_eq!(b.at::<u64>(DATA + 520), 1 << 63 | 7);
    assert_eq!(
        b.at::<u64>(DATA + 528),
        9,
        "the rest of the header is not written"
    );
    assert_eq!(
        b.run(&XRSTORS),
        Outcome::Vector(GP),
        "and not reserved for nothing"
    );
    let mut b = Bench::long();
    b.set(RCX, DATA);
    b.set(RAX, 7);
    b.cpu().ext.ymm[3] = [1, 2, 3, 4];
    b.ok(&XSAVES);
    b.cpu().ext.ymm[3] = [0; 4];
    b.ok(&XRSTORS);
    assert_eq!(b.cpu().ext.ymm[3], [1, 2, 3, 4]);
    // The standard format is refused.
    b.put::<u64>(DATA + 520, 0);
    assert_eq!(b.run(&XRSTORS), Outcome::Vector(GP));
    let mut b = Bench::long();
    let cpu = b.cpu();
    assert_eq!(cpu.read_msr(x86defs::msr::IA32_XSS), Ok(0));
    assert!(cpu.write_msr(x86defs::msr::IA32_XSS, 1 << 8).is_err());
    assert_eq!(cpu.write_msr(x86defs::msr::IA32_XSS, 0), Ok(()));
}

/// What is not asked for keeps its bytes (SDM Vol 1 13.7), also where the area is one other processors write to.
#[test]
fn xsave_writes_only_what_it_saves() {
    let mut b = Bench::long();
    b.set(RCX, DATA);
    b.set(RAX, 1);
    for i in 0..104 {
        b.put::<u64>(DATA + 8 * i, u64::MAX);
    }
    b.put::<u64>(DATA + 512, 0);
    b.ok(&[0x48, 0x0f, 0xae, 0x21]);
    assert_eq!(b.at::<u64>(DATA + 24), u64::MAX, "MXCSR");
    assert_eq!(b.at::<u64>(DATA + 160), u64::MAX, "XMM0");
    assert_eq!(b.at::<u64>(DATA + 576), u64::MAX, "YMM0");
    assert_eq!(b.at::<u64>(DATA + 520), u64::MAX, "XCOMP_BV");
    assert_eq!(b.at::<u16>(DATA), 0x37f);
}
