//! Where Intel's and AMD's manuals differ, and what only AMD has.

use vcpu::cpuid::CpuModel;
use x86defs::exception::{GP, UD};
use x86defs::msr::*;

use crate::cpu::RIP;
use crate::cpu::gpr::*;
use crate::cpu::sreg::{CS, SS};
use crate::testing::*;

const SYSCALL: [u8; 2] = [0x0f, 0x05];
const SYSRETQ: [u8; 3] = [0x48, 0x0f, 0x07];
const SYSENTER: [u8; 2] = [0x0f, 0x34];
const SYSEXIT: [u8; 2] = [0x0f, 0x35];

fn amd() -> Bench {
    Bench::long_with(model_of(CpuModel::NestlingAmd))
}

fn with_targets(mut b: Bench) -> Bench {
    let m = &mut b.cpu().msr;
    m.star = 0x0028_0008_0000_0000 | DATA;
    m.lstar = DATA + 0x100;
    m.cstar = DATA + 0x200;
    m.fmask = 0x200;
    m.sysenter_cs = 8;
    b.cpu().efer |= 1;
    b
}

/// SDM Vol 2: SYSCALL is #UD outside 64-bit mode. APM Vol 3: compatibility mode goes to CSTAR.
#[test]
fn syscall_in_compatibility_mode() {
    let mut b = with_targets(Bench::compatible_with(model()));
    assert_eq!(b.run(&SYSCALL), Outcome::Vector(UD));
    let mut b = with_targets(Bench::compatible_with(model_of(CpuModel::NestlingAmd)));
    b.cpu().set_rflags(0x202);
    assert_eq!(b.run(&SYSCALL), Outcome::Next(DATA + 0x200));
    assert_eq!(b.get(RCX), CODE + 2);
    assert_eq!(b.get(R11), 0x202);
    let cpu = b.cpu();
    assert_eq!(cpu.rflags(), 2);
    assert!(cpu.long64);
    assert_eq!((cpu.seg[CS].selector.0, cpu.seg[SS].selector.0), (8, 16));
}

/// APM Vol 3, SYSCALL: in legacy mode the target is STAR[31:0], IF is cleared, the mask does not count.
#[test]
fn syscall_in_legacy_mode() {
    let mut b = with_targets(Bench::protected());
    assert_eq!(b.run(&SYSCALL), Outcome::Vector(UD), "Intel");
    let mut b = with_targets(Bench::protected_with(model_of(CpuModel::NestlingAmd)));
    b.cpu().msr.fmask = 0x400;
    b.cpu().set_rflags(0x602);
    b.set(R11, 7);
    assert_eq!(b.run(&SYSCALL), Outcome::Next(DATA));
    assert_eq!((b.get(RCX), b.get(R11)), (CODE + 2, 7));
    assert_eq!(b.cpu().rflags(), 0x402);
    // SYSRET: to the 32-bit segments, with IF set; SS but for its selector as it was.
    b.set(RCX, CODE);
    assert_eq!(b.run(&[0x0f, 0x07]), Outcome::Next(CODE));
    let cpu = b.cpu();
    assert_eq!(cpu.rflags(), 0x602);
    assert_eq!((cpu.cpl, cpu.seg[CS].selector.0), (3, 0x2b));
    assert_eq!(cpu.seg[SS].selector.0, 0x30);
}

/// SYSRET to a non-canonical address: Intel raises #GP(0) at CPL 0 (SDM Vol 2), AMD at the target, at CPL 3. AMD
/// leaves base, limit and attributes of SS (APM Vol 3).
#[test]
fn sysret_to_a_hole() {
    let mut b = with_targets(Bench::long());
    b.set(RCX, 1 << 47);
    b.set(R11, 2);
    assert_eq!(b.run(&SYSRETQ), Outcome::Vector(GP));
    assert_eq!(b.at::<u64>(b.get(RSP) + 16) & 3, 0, "CS of the frame");
    let mut b = with_targets(amd());
    b.set(RCX, 1 << 47);
    b.set(R11, 2);
    b.cpu().seg[SS].limit = 0x1234;
    assert_eq!(b.run(&SYSRETQ), Outcome::Next(1 << 47));
    assert_eq!(b.cpu().seg[SS].limit, 0x1234);
    assert_eq!(b.cpu().cpl, 3);
    assert_eq!(b.step(), Outcome::Vector(GP));
    assert_eq!(b.at::<u64>(b.get(RSP) + 16) & 3, 3, "CS of the frame");
    assert_eq!(b.at::<u64>(b.get(RSP) + 8), 1 << 47);
}

/// APM Vol 3: SYSENTER and SYSEXIT are #UD in long mode.
#[test]
fn sysenter_in_long_mode() {
    for insn in [SYSENTER, SYSEXIT] {
        assert_eq!(with_targets(amd()).run(&insn), Outcome::Vector(UD));
        let b = Bench::compatible_with(model_of(CpuModel::NestlingAmd));
        assert_eq!(with_targets(b).run(&insn), Outcome::Vector(UD));
    }
    let mut b = with_targets(Bench::long());
    b.cpu().msr.sysenter_eip = DATA;
    assert_eq!(b.run(&SYSENTER), Outcome::Next(DATA));
    let mut b = with_targets(Bench::protected_with(model_of(CpuModel::NestlingAmd)));
    b.cpu().msr.sysenter_eip = DATA;
    assert_eq!(b.run(&SYSENTER), Outcome::Next(DATA));
}

/// An operand-size prefix on a near branch in 64-bit mode: Intel ignores it (SDM Vol 2, JMP, "N.S."), AMD truncates
/// the target to 16 bits (APM Vol 3, JMP near).
#[test]
fn operand_size_of_near_branches() {
    // jmp, call, jz (with ZF set) and loop, each to behind itself with a prefix.
    for (intel, amd_bytes) in [
        (&[0x66, 0xe9, 0, 0, 0, 0][..], &[0x66, 0xe9, 0, 0][..]),
        (&[0x66, 0xe8, 0, 0, 0, 0], &[0x66, 0xe8, 0, 0]),
        (&[0x66, 0x74, 0], &[0x66, 0x74, 0]),
        (&[0x66, 0xe2, 0], &[0x66, 0xe2, 0]),
    ] {
        let prepare = |mut b: Bench| {
            b.cpu().flags.set_bits(0x40);
            b.set(RCX, 0x1_0000_0001);
            b
        };
        let mut b = prepare(Bench::long());
        let end = CODE + intel.len() as u64;
        assert_eq!(b.run(intel), Outcome::Next(end), "{intel:02x?}");
        let mut b = prepare(amd());
        let end = (CODE + amd_bytes.len() as u64) & 0xffff;
        assert_eq!(b.run(amd_bytes), Outcome::Next(end), "{amd_bytes:02x?}");
        if intel[1] == 0xe2 {
            assert_eq!(b.get(RCX), 0x1_0000_0000, "the counter is RCX");
        }
        if intel[1] == 0xe8 {
            assert_eq!(b.get(RSP), STACK - 2);
        }
    }
}

/// APM Vol 3, MOV CRn: LOCK MOV CR0 is MOV CR8 (AltMovCr8); SDM Vol 2: LOCK is #UD.
#[test]
fn lock_mov_cr0() {
    assert_eq!(
        Bench::long().run(&[0xf0, 0x0f, 0x20, 0xc0]),
        Outcome::Vector(UD)
    );
    let mut b = amd();
    b.set(RAX, 77);
    b.ok(&[0xf0, 0x0f, 0x20, 0xc0]);
    assert_eq!(b.get(RAX), 0, "CR8");
}

/// APM Vol 4, EXTRQ and INSERTQ, with fields as immediates and in a register.
#[test]
fn sse4a_fields() {
    let mut b = amd();
    b.cpu().ext.ymm[1] = [0x0123_4567_89ab_cdef, 0, 3, 4];
    // extrq xmm1, 12, 8
    b.ok(&[0x66, 0x0f, 0x78, 0xc1, 12, 8]);
    assert_eq!(b.cpu().ext.ymm[1][0], 0xbcd);
    assert_eq!(b.cpu().ext.ymm[1][2..], [3, 4]);
    b.cpu().ext.ymm[1][0] = 0x0123_4567_89ab_cdef;
    b.cpu().ext.ymm[2] = [16 << 8 | 20, 0, 0, 0];
    // extrq xmm1, xmm2
    b.ok(&[0x66, 0x0f, 0x79, 0xca]);
    assert_eq!(b.cpu().ext.ymm[1][0], 0x789ab & 0xf_ffff);
    // A length of 0 is 64.
    b.cpu().ext.ymm[2][0] = 0;
    b.ok(&[0x66, 0x0f, 0x79, 0xca]);
    assert_eq!(b.cpu().ext.ymm[1][0], 0x789ab);
    // insertq xmm1, xmm2, 8, 4
    b.cpu().ext.ymm[2] = [0xfff, 4 << 8 | 16, 0, 0];
    b.ok(&[0xf2, 0x0f, 0x78, 0xca, 8, 4]);
    assert_eq!(b.cpu().ext.ymm[1][0], 0x78ffb);
    // insertq xmm1, xmm2
    b.cpu().ext.ymm[2][0] = 0x1_0000;
    b.ok(&[0xf2, 0x0f, 0x79, 0xca]);
    assert_eq!(b.cpu().ext.ymm[1][0], 0x0000b);
    // movntsd [rbx], xmm1; movntss [rbx + 8], xmm1
    b.set(RBX, DATA);
    b.cpu().ext.ymm[1][0] = 0x1122_3344_5566_7788;
    b.ok(&[0xf2, 0x0f, 0x2b, 0x0b]);
    b.ok(&[0xf3, 0x0f, 0x2b, 0x4b, 8]);
    assert_eq!(b.at::<u64>(DATA), 0x1122_3344_5566_7788);
    assert_eq!(b.at::<u64>(DATA + 8), 0x5566_7788);
    // Intel has none of it.
    assert_eq!(
        Bench::long().run(&[0x66, 0x0f, 0x79, 0xca]),
        Outcome::Vector(UD)
    );
}

/// APM Vol 3, CLZERO: the line that holds the address, by address size; a write.
#[test]
fn clzero() {
    let mut b = amd();
    for i in 0..24 {
        b.put::<u64>(DATA + 8 * i, u64::MAX);
    }
    b.set(RAX, 0x1_0000_0000 | (DATA + 0x7f));
    // addr32 clzero
    b.ok(&[0x67, 0x0f, 0x01, 0xfc]);
    assert_eq!(b.at::<u64>(DATA + 0x38), u64::MAX);
    assert_eq!(b.at::<u64>(DATA + 0x40), 0);
    assert_eq!(b.at::<u64>(DATA + 0x78), 0);
    assert_eq!(b.at::<u64>(DATA + 0x80), u64::MAX);
    b.put::<u64>(DATA + 0x80, u64::MAX);
    b.set(RAX, DATA + 0x80);
    b.ok(&[0x0f, 0x01, 0xfc]);
    assert_eq!(b.at::<u64>(DATA + 0x80), 0);
    b.set(RAX, SMALL);
    b.put::<u64>(PT, 0);
    assert_eq!(b.fault(&[0x0f, 0x01, 0xfc], x86defs::exception::PF), 2);
    assert_eq!(Bench::long().run(&[0x0f, 0x01, 0xfc]), Outcome::Vector(UD));
}

/// MSRs of one vendor are not the other's (SDM Vol 4; APM Vol 2 appendix A).
#[test]
fn each_vendor_has_its_msrs() {
    let intel = [
        IA32_PLATFORM_ID,
        IA32_MISC_ENABLE,
        IA32_ARCH_CAPABILITIES,
        IA32_TSC_ADJUST,
        IA32_FEATURE_CONTROL,
    ];
    let amd_only = [
        AMD_SYSCFG,
        AMD_HWCR,
        AMD_IORR_BASE0,
        AMD_IORR_MASK1,
        AMD_TOP_MEM,
        AMD_TOP_MEM2,
        AMD_NB_CFG,
        AMD_DE_CFG,
    ];
    let read = |mut b: Bench, msr| b.cpu().read_msr(msr).ok();
    for msr in intel {
        assert!(read(Bench::long(), msr).is_some(), "{msr:#x}");
        assert_eq!(read(amd(), msr), None, "{msr:#x}");
    }
    for msr in amd_only {
        assert!(read(amd(), msr).is_some(), "{msr:#x}");
        assert_eq!(read(Bench::long(), msr), None, "{msr:#x}");
    }
    // The revision of Intel's microcode is in the upper half, AMD's in the lower one.
    assert_eq!(
        read(Bench::long(), IA32_BIOS_SIGN_ID).map(|v| v as u32),
        Some(0)
    );
    assert_eq!(read(amd(), IA32_BIOS_SIGN_ID).map(|v| v >> 32), Some(0));
    // HWCR says that the TSC counts at P0's frequency; DE_CFG that LFENCE serializes.
    assert_eq!(read(amd(), AMD_HWCR), Some(1 << 24));
    assert_eq!(read(amd(), AMD_DE_CFG), Some(2));
}

/// APM Vol 2 7.9: reserved bits; RdMem and WrMem of fixed MTRRs are there while SYSCFG[19] is set.
#[test]
fn amd_memory_msrs() {
    let mut b = amd();
    for (msr, bad) in [
        (AMD_SYSCFG, 1 << 23),
        (AMD_HWCR, 1 << 17),
        (AMD_TOP_MEM, 1 << 22),
        (AMD_TOP_MEM2, 1 << 40),
        (AMD_IORR_BASE0, 0x20),
        (AMD_IORR_MASK0, 1),
        (AMD_DE_CFG, 1),
        (IA32_MTRR_FIX64K_00000, 0x1e),
    ] {
        assert!(b.cpu().write_msr(msr, bad).is_err(), "{msr:#x}");
    }
    let cpu = b.cpu();
    assert_eq!(cpu.write_msr(AMD_SYSCFG, 1 << 19), Ok(()));
    assert_eq!(cpu.write_msr(IA32_MTRR_FIX64K_00000, 0x1e1e), Ok(()));
    assert_eq!(cpu.read_msr(IA32_MTRR_FIX64K_00000), Ok(0x1e1e));
    assert_eq!(cpu.write_msr(AMD_SYSCFG, 0), Ok(()));
    assert_eq!(cpu.read_msr(IA32_MTRR_FIX64K_00000), Ok(0x0606));
    assert_eq!(cpu.write_msr(IA32_MTRR_FIX64K_00000, 5), Ok(()));
    assert_eq!(cpu.write_msr(AMD_SYSCFG, 1 << 19), Ok(()));
    assert_eq!(cpu.read_msr(IA32_MTRR_FIX64K_00000), Ok(0x181d));
    assert_eq!(cpu.write_msr(AMD_TOP_MEM, 0xc000_0000), Ok(()));
    assert_eq!(cpu.write_msr(AMD_IORR_MASK1, 0xff_f000_0800), Ok(()));
}

/// EFER.AIBRSE is there where leaf 80000021h says so (APM Vol 2 3.1.7).
#[test]
fn automatic_ibrs() {
    assert!(Bench::long().cpu().write_msr(IA32_EFER, 0x20_0d01).is_err());
    let mut b = amd();
    assert_eq!(b.cpu().write_msr(IA32_EFER, 0x20_0d01), Ok(()));
    assert_eq!(b.cpu().read_msr(IA32_EFER), Ok(0x20_0d01));
}

/// APM Vol 2 11.4.4: without the error-pointer feature FXSAVE and FXRSTOR leave the pointers alone unless an unmasked
/// exception is pending.
#[test]
fn x87_pointers_of_old_amd_processors() {
    let mut model = model_of(CpuModel::NestlingAmd);
    assert!(!model.x87_pointers_on_error, "the feature is shown");
    model.x87_pointers_on_error = true;
    let mut b = Bench::long_with(model);
    b.set(RCX, DATA);
    b.put::<u64>(DATA + 8, 0x55);
    // fld1; fxsave64 [rcx]
    b.ok(&[0xd9, 0xe8]);
    b.ok(&[0x48, 0x0f, 0xae, 0x01]);
    assert_eq!(b.at::<u16>(DATA), 0x37f);
    assert_eq!(b.at::<u64>(DATA + 8), 0x55, "not saved");
    assert_eq!(b.at::<u32>(DATA + 24), 0x1f80);
    // fxrstor64 [rcx] keeps what the registers have.
    let ip = b.cpu().ext.fip();
    assert_ne!(ip, 0x55);
    b.ok(&[0x48, 0x0f, 0xae, 0x09]);
    assert_eq!(b.cpu().ext.fip(), ip);
    // Zero divide, unmasked: both move them.
    b.put::<u32>(DATA, 0x8084_037b);
    b.ok(&[0x48, 0x0f, 0xae, 0x09]);
    assert_eq!(b.cpu().ext.fip(), 0x55);
    b.put::<u64>(DATA + 8, 0);
    b.ok(&[0x48, 0x0f, 0xae, 0x01]);
    assert_eq!(b.at::<u64>(DATA + 8), 0x55);
}

/// EDX after RESET has the signature (SDM Vol 3 10.1.2; APM Vol 2 14.1.3).
#[test]
fn reset_shows_the_signature() {
    for cpu in [CpuModel::NestlingAmd, CpuModel::NestlingIntel] {
        let model = model_of(cpu);
        let signature = model.cpuid.signature();
        assert_ne!(signature, 0);
        let b = Bench::fresh(model);
        assert_eq!(b.get(RDX), u64::from(signature), "{cpu}");
        assert_eq!(b.get(RIP), 0xfff0);
    }
}

/// SYSENTER's target and stack pointer have 32 bits on AMD, which has no SYSENTER in long mode (APM Vol 2 6.1.2), and
/// 64 on Intel, where they must be canonical (SDM Vol 2, WRMSR). The upper half of SFMASK (APM Vol 2 Figure 6-1) and of
/// TSC_AUX is dropped on AMD and reserved on Intel (SDM Vol 4 Table 2-2).
#[test]
fn msrs_of_32_bits() {
    const HOLE: u64 = 0x1234_5678_9abc_def0;
    for msr in [
        IA32_SYSENTER_ESP,
        IA32_SYSENTER_EIP,
        IA32_FMASK,
        IA32_TSC_AUX,
    ] {
        let mut b = amd();
        assert_eq!(b.cpu().write_msr(msr, HOLE), Ok(()), "{msr:#x}");
        assert_eq!(b.cpu().read_msr(msr), Ok(0x9abc_def0), "{msr:#x}");
        let mut b = Bench::long();
        assert!(b.cpu().write_msr(msr, HOLE).is_err(), "{msr:#x}");
    }
    let kernel = 0xffff_8000_1234_5678;
    let mut b = Bench::long();
    assert_eq!(b.cpu().write_msr(IA32_SYSENTER_EIP, kernel), Ok(()));
    assert_eq!(b.cpu().read_msr(IA32_SYSENTER_EIP), Ok(kernel));
    // rdtscp; rdpid rdx
    let mut b = amd();
    assert_eq!(b.cpu().write_msr(IA32_TSC_AUX, 7 << 32 | 5), Ok(()));
    b.ok(&[0x0f, 0x01, 0xf9]);
    b.ok(&[0xf3, 0x0f, 0xc7, 0xfa]);
    assert_eq!((b.get(RCX), b.get(RDX)), (5, 5));
}

/// APM Vol 2 5.3.3: bits 8 and 7 of a PML4 entry must be zero; SDM Vol 3 Table 4-15: bit 8 is ignored. In an entry of
/// the next level that refers to a page directory, both ignore bit 8.
#[test]
fn bit_8_of_pml4_entries() {
    for (mut b, reserved) in [(Bench::long(), false), (amd(), true)] {
        let cpu = b.cpu();
        let read = |cpu: &mut crate::cpu::Cpu| {
            let t = cpu.translate_as(DATA, crate::mem::Access::Read, false);
            t.map(|t| t.gpa.0).map_err(|_| cpu.fault.error_code)
        };
        let (pml4e, pdpte) = (guestmem::RamOffset(PML4), guestmem::RamOffset(0x2000));
        let old = cpu.ram.load::<u64>(pdpte);
        cpu.ram.store::<u64>(pdpte, old | 1 << 8);
        assert_eq!(read(cpu), Ok(DATA), "AMD: {reserved}");
        let old = cpu.ram.load::<u64>(pml4e);
        cpu.ram.store::<u64>(pml4e, old | 1 << 8);
        let expected = if reserved { Err(9) } else { Ok(DATA) };
        assert_eq!(read(cpu), expected, "AMD: {reserved}");
        cpu.ram.store::<u64>(pml4e, old | 1 << 7);
        assert_eq!(read(cpu), Err(9), "AMD: {reserved}");
    }
}

/// What is not there is said not to be: EFER.LMSLE (APM Vol 2 3.1.7; CPUID 80000008h, EBX[20]) and SMM_CTL (APM Vol 3,
/// CPUID 80000021h, EAX[9]).
#[test]
fn what_amd_models_say_is_missing() {
    const SMM_CTL: u32 = 0xc001_0116;
    let mut b = amd();
    assert!(b.cpu().write_msr(IA32_EFER, 0x2d01).is_err());
    assert!(b.cpu().read_msr(SMM_CTL).is_err());
    let cpuid = &b.cpu().model.cpuid;
    assert_eq!(cpuid.answer(0x8000_0008, 0).ebx >> 20 & 1, 1);
    assert_eq!(cpuid.answer(0x8000_0021, 0).eax >> 9 & 1, 1);
}

/// The other near branches that an operand-size prefix makes 16 bits wide on AMD: RET, and JMP and CALL through a
/// register (APM Vol 3).
#[test]
fn operand_size_of_returns_and_indirect_branches() {
    for bytes in [&[0x66, 0xc3][..], &[0x66, 0xff, 0xe3], &[0x66, 0xff, 0xd3]] {
        let prepare = |mut b: Bench| {
            b.set(RBX, 0x5_1234);
            b.put::<u64>(STACK, 0x5_1234);
            b
        };
        let mut b = prepare(Bench::long());
        assert_eq!(b.run(bytes), Outcome::Next(0x5_1234), "{bytes:02x?}");
        let mut b = prepare(amd());
        assert_eq!(b.run(bytes), Outcome::Next(0x1234), "{bytes:02x?}");
        let moved = match bytes[1] {
            0xc3 => STACK + 2,
            _ if bytes[2] == 0xd3 => STACK - 2,
            _ => STACK,
        };
        assert_eq!(b.get(RSP), moved, "{bytes:02x?}");
    }
}

/// Far pointers in memory have at most 32 bits of offset on AMD, also with REX.W (APM Vol 3, JMP far, LSS); on Intel
/// REX.W makes them 64 bits (SDM Vol 2).
#[test]
fn rex_w_of_far_pointers() {
    let prepare = |mut b: Bench| {
        b.set(RBX, DATA);
        // The selector behind 32 bits is CODE64; the one behind 64 bits is that of data or code.
        b.put::<u32>(DATA, 0x5_1234);
        b.put::<u16>(DATA + 4, sel::CODE64);
        b
    };
    // rex.w jmp far [rbx]: the Intel one reads an address that is not canonical.
    let jump = [0x48, 0xff, 0x2b];
    let mut b = prepare(amd());
    assert_eq!(b.run(&jump), Outcome::Next(0x5_1234));
    let mut b = prepare(Bench::long());
    b.put::<u16>(DATA + 6, 0x1234);
    b.put::<u16>(DATA + 8, sel::CODE64);
    assert_eq!(b.run(&jump), Outcome::Vector(GP));
    // rex.w lfs rax, [rbx]
    let load = [0x48, 0x0f, 0xb4, 0x03];
    let mut b = prepare(amd());
    b.put::<u16>(DATA + 4, sel::DATA);
    b.set(RAX, u64::MAX);
    b.ok(&load);
    assert_eq!(b.get(RAX), 0x5_1234);
    let mut b = prepare(Bench::long());
    b.put::<u16>(DATA + 8, sel::DATA);
    b.ok(&load);
    assert_eq!(b.get(RAX), 0x8_0005_1234);
}

/// A null selector in FS clears base and limit, which AMD models say they do (APM Vol 3, CPUID 80000021h, EAX[6]).
#[test]
fn null_selectors_clear_the_base() {
    let mut b = amd();
    assert_eq!(
        b.cpu().model.cpuid.answer(0x8000_0021, 0).eax >> 6 & 1,
        1,
        "shown"
    );
    let cpu = b.cpu();
    assert_eq!(cpu.write_msr(IA32_FS_BASE, 0x1234_5000), Ok(()));
    // mov fs, eax, with a null selector whose RPL is 2
    b.set(RAX, 2);
    b.ok(&[0x8e, 0xe0]);
    let fs = b.cpu().seg[crate::cpu::sreg::FS];
    assert_eq!((fs.selector.0, fs.base, fs.limit), (2, 0, 0));
    assert_eq!(b.cpu().read_msr(IA32_FS_BASE), Ok(0));
}

/// APM Vol 3, LAR: the descriptor's second doubleword masked with 00FF_FF00h, also with a 64-bit operand; 16 bits of it
/// with a 16-bit one. LSL: the limit in bytes. TSS and LDT by their types in long mode.
#[test]
fn access_rights_and_limits() {
    let mut b = amd();
    for (selector, rights, limit) in [
        (sel::CODE64, 0x00af_9b00, 0xffff_ffff),
        (sel::DATA, 0x00cf_9300, 0xffff_ffff),
        (sel::TSS, 0x0000_8900, 0x67),
    ] {
        b.set(RCX, 0xabcd_0000 | u64::from(selector));
        b.set(RAX, u64::MAX);
        // lar eax, ecx; lsl edx, ecx
        b.ok(&[0x0f, 0x02, 0xc1]);
        b.ok(&[0x0f, 0x03, 0xd1]);
        assert_eq!((b.get(RAX), b.get(RDX)), (rights, limit), "{selector:#x}");
        // rex.w lar rax, rcx; lar bx, cx
        b.set(RAX, u64::MAX);
        b.set(RBX, u64::MAX);
        b.ok(&[0x48, 0x0f, 0x02, 0xc1]);
        b.ok(&[0x66, 0x0f, 0x02, 0xd9]);
        assert_eq!(b.get(RAX), rights, "{selector:#x}");
        let low = rights & 0xff00;
        assert_eq!(b.get(RBX), !0xffff | low, "{selector:#x}");
        assert_ne!(b.cpu().rflags() & 0x40, 0, "ZF, {selector:#x}");
    }
}

/// What CPUID does not show is #UD (APM Vol 3 appendix D): SVM, MONITORX, RDPRU, MCOMMIT, INVLPGB, 3DNow!, XOP and
/// FMA4; Intel's VMX too.
#[test]
fn what_amd_models_do_not_have() {
    let mut list: Vec<Vec<u8>> = (0xd8..=0xdf).map(|last| vec![0x0f, 0x01, last]).collect();
    list.extend([
        // vmcall; monitorx; mwaitx; rdpru; mcommit; invlpgb; tlbsync
        vec![0x0f, 0x01, 0xc1],
        vec![0x0f, 0x01, 0xfa],
        vec![0x0f, 0x01, 0xfb],
        vec![0x0f, 0x01, 0xfd],
        vec![0xf3, 0x0f, 0x01, 0xfa],
        vec![0x0f, 0x01, 0xfe],
        vec![0x0f, 0x01, 0xff],
        // femms; pfadd mm0, mm1
        vec![0x0f, 0x0e],
        vec![0x0f, 0x0f, 0xc1, 0x9e],
        // vpcmov xmm0, xmm1, xmm2, xmm3; vfmaddps xmm0, xmm1, xmm2, xmm3
        vec![0x8f, 0xe8, 0x70, 0xa2, 0xc2, 0x30],
        vec![0xc4, 0xe3, 0x71, 0x68, 0xc2, 0x30],
    ]);
    for bytes in list {
        assert_eq!(amd().run(&bytes), Outcome::Vector(UD), "{bytes:02x?}");
    }
}

/// EFER.LMA is read-only; AMD raises #GP where it is written as it is not, Intel ignores it. Bits 7:1 are reserved, on
/// AMD as zero (APM Vol 2 3.1.7), on Intel with a fault (SDM Vol 2, WRMSR).
#[test]
fn read_only_bits_of_efer() {
    for (mut b, faults) in [(Bench::long(), false), (amd(), true)] {
        let cpu = b.cpu();
        let before = cpu.read_msr(IA32_EFER).unwrap();
        assert_eq!(before & 0x400, 0x400);
        let clear = cpu.write_msr(IA32_EFER, before & !0x400);
        assert_eq!(clear.is_err(), faults);
        let reserved = cpu.write_msr(IA32_EFER, before | 0xfe);
        assert_eq!(reserved.is_err(), !faults);
        assert_eq!(cpu.read_msr(IA32_EFER), Ok(before));
    }
    // Without paging it cannot be set.
    for (model, faults) in [(model(), false), (model_of(CpuModel::NestlingAmd), true)] {
        let mut b = Bench::protected_with(model);
        let set = b.cpu().write_msr(IA32_EFER, 0x400);
        assert_eq!(set.is_err(), faults);
        assert_eq!(b.cpu().read_msr(IA32_EFER), Ok(0));
    }
}

/// DebugCtl on AMD (APM Vol 2 Figure 13-4): bits 63:13 and 10:7 read as zero, bits 6:3 must be zero; bits 12:11 and 2
/// are of features that are not shown. On Intel all but LBR and BTF is reserved here (SDM Vol 4 Table 2-2).
#[test]
fn reserved_bits_of_debugctl() {
    for (mut b, dropped) in [(Bench::long(), 0), (amd(), 0xffff_ffff_ffff_e780u64)] {
        let cpu = b.cpu();
        for bit in 2..64 {
            let wrote = cpu.write_msr(IA32_DEBUGCTL, 1 << bit | 2);
            assert_eq!(wrote.is_ok(), dropped >> bit & 1 != 0, "bit {bit}");
        }
        assert_eq!(cpu.write_msr(IA32_DEBUGCTL, 3), Ok(()));
        assert_eq!(cpu.write_msr(IA32_DEBUGCTL, dropped | 1), Ok(()));
        assert_eq!(cpu.read_msr(IA32_DEBUGCTL), Ok(1));
    }
}
