//! MSRs, control registers and saved state.

use vcpu::cpuid::CpuModel;
use x86defs::exception::{GP, NM};
use x86defs::msr::*;

use crate::cpu::gpr::*;
use crate::testing::*;

fn wrmsr(b: &mut Bench, msr: u32, value: u64) -> Outcome {
    b.set(RCX, u64::from(msr));
    b.set(RAX, value & 0xffff_ffff);
    b.set(RDX, value >> 32);
    b.run(&[0x0f, 0x30])
}

/// Reserved bits and values are #GP(0), and the MSR keeps its value (SDM Vol 4; Vol 3 12.11).
#[test]
fn msr_reserved_bits() {
    let non_canonical = 1 << 47;
    for (msr, value) in [
        (IA32_PAT, 0x0007_0406_0007_0402),
        (IA32_EFER, 1 << 1),
        // LME cannot change while paging is on.
        (IA32_EFER, 0xc01),
        (IA32_LSTAR, non_canonical),
        (IA32_KERNEL_GS_BASE, non_canonical),
        (IA32_SYSENTER_ESP, non_canonical),
        (IA32_FS_BASE, non_canonical),
        (IA32_FMASK, 1 << 32),
        (IA32_TSC_AUX, 1 << 32),
        (IA32_SPEC_CTRL, 4),
        (IA32_PRED_CMD, 2),
        (IA32_MTRR_DEF_TYPE, 0x1000),
        (IA32_MTRR_DEF_TYPE, 2),
        (IA32_MTRR_PHYSBASE0, 0x100),
        (IA32_MTRR_PHYSBASE0, 3),
        (IA32_MTRR_PHYSBASE0, 1 << 40),
        (IA32_MTRR_PHYSBASE0 + 1, 1),
        (IA32_MTRR_PHYSBASE0 + 1, 1 << 40),
        (IA32_MTRR_FIX64K_00000, 7 << 56),
        (IA32_MISC_ENABLE, 1 << 1),
        (IA32_DEBUGCTL, 1 << 15),
        (IA32_FLUSH_CMD, 1),
        (IA32_MTRRCAP, 0),
        (IA32_ARCH_CAPABILITIES, 0),
        (0x1234_5678, 0),
    ] {
        let mut b = Bench::long();
        let before = b.cpu().read_msr(msr).ok();
        assert_eq!(wrmsr(&mut b, msr, value), Outcome::Vector(GP), "{msr:#x}");
        assert_eq!(b.cpu().read_msr(msr).ok(), before, "{msr:#x}");
    }
    for (msr, value) in [
        (IA32_MTRR_PHYSBASE0, 0xff_c000_0006),
        (IA32_MTRR_PHYSBASE0 + 1, 0xff_c000_0800),
        (IA32_MTRR_FIX64K_00000, 0x0606_0504_0100_0606),
        (IA32_MTRR_DEF_TYPE, 0xc06),
        (IA32_SPEC_CTRL, 3),
        (IA32_EFER, 0xd00),
        (IA32_KERNEL_GS_BASE, u64::MAX << 47),
    ] {
        let mut b = Bench::long();
        assert_eq!(
            wrmsr(&mut b, msr, value),
            Outcome::Next(CODE + 2),
            "{msr:#x}"
        );
        assert_eq!(b.cpu().read_msr(msr), Ok(value), "{msr:#x}");
    }
    // BHI_DIS_S is there where CPUID.(07H,2):EDX[4] says so (SDM Vol 4 Table 2-2).
    for (model, there) in [(CpuModel::Max, true), (CpuModel::NestlingIntel, false)] {
        let mut b = Bench::long_with(model_of(model));
        assert_eq!(b.cpu().model.cpuid.answer(7, 2).edx >> 4 & 1 == 1, there);
        let expected = match there {
            true => Outcome::Next(CODE + 2),
            false => Outcome::Vector(GP),
        };
        assert_eq!(wrmsr(&mut b, IA32_SPEC_CTRL, 1 << 10 | 1), expected);
    }
    // What says that a facility is there or missing stays.
    let mut b = Bench::long();
    assert_eq!(wrmsr(&mut b, IA32_MISC_ENABLE, 1), Outcome::Next(CODE + 2));
    let facts = misc_enable::PERFORMANCE_MONITORING
        | misc_enable::BTS_UNAVAILABLE
        | misc_enable::PEBS_UNAVAILABLE;
    assert_eq!(b.cpu().read_msr(IA32_MISC_ENABLE), Ok(1 | facts));
}

/// SDM Vol 3 2.5, 2.2.1: what MOV to a control register refuses.
#[test]
fn control_register_checks() {
    // (opcode's ModRM byte for MOV CRn, RAX; value)
    for (modrm, value) in [
        // CR0: PG without PE, NW without CD, upper half, PG off in 64-bit mode.
        (0xc0, 0x8000_0032u64),
        (0xc0, 0xa000_0033),
        (0xc0, 0x1_8000_0033),
        (0xc0, 0x33),
        // CR3 beyond MAXPHYADDR; bit 63 without CR4.PCIDE.
        (0xd8, 1 << 40 | PML4),
        (0xd8, 1 << 63 | PML4),
        // CR4: PAE off in IA-32e mode, LA57, a reserved bit; CR8 above 15.
        (0xe0, 0x600),
        (0xe0, 0x1620),
        (0xe0, 1 << 40 | 0x620),
    ] {
        let mut b = Bench::long();
        b.set(RAX, value);
        assert_eq!(
            b.fault(&[0x0f, 0x22, modrm], GP),
            0,
            "{modrm:#x} {value:#x}"
        );
    }
    let mut b = Bench::long();
    b.set(RAX, 16);
    assert_eq!(b.fault(&[0x44, 0x0f, 0x22, 0xc0], GP), 0);
    // CR4.PCIDE needs CR3[11:0] = 0 (4.10.1).
    let mut b = Bench::long();
    b.cpu().cr3 = PML4 | 0x18;
    b.set(RAX, 0x2_0620);
    assert_eq!(b.fault(&[0x0f, 0x22, 0xe0], GP), 0);
}

/// SDM Vol 3 4.4.1: with PAE paging, MOV to CR3 and to CR0 load the PDPTEs and refuse reserved bits.
#[test]
fn pae_paging_loads_pdptes() {
    let mut b = Bench::protected();
    b.cpu().cr4 |= 0x20;
    b.set(RAX, PDPTES);
    b.ok(&[0x0f, 0x22, 0xd8]);
    // Reserved bit 1 in entry 3.
    b.put::<u64>(PDPTES + 24, PAE_PD | 3);
    b.set(RAX, 0x8000_0033);
    assert_eq!(b.run(&[0x0f, 0x22, 0xc0]), Outcome::Vector(GP));
    let mut b = Bench::protected();
    b.cpu().cr4 |= 0x20;
    b.cpu().cr3 = PDPTES;
    b.set(RAX, 0x8000_0033);
    b.ok(&[0x0f, 0x22, 0xc0]);
    assert_eq!(b.cpu().pdpte[0], PAE_PD | 1);
    // They are registers: memory may change, and a change of CR0.CD takes it up.
    b.put::<u64>(PDPTES, PAE_PD | 0xa01);
    b.set(RAX, 0x8000_0033);
    b.ok(&[0x0f, 0x22, 0xc0]);
    assert_eq!(b.cpu().pdpte[0], PAE_PD | 1);
    b.set(RAX, 0xc000_0033);
    b.ok(&[0x0f, 0x22, 0xc0]);
    assert_eq!(b.cpu().pdpte[0], PAE_PD | 0xa01);
    // Saved state has no PDPTEs: they come back from memory.
    let saved = b.cpu().save();
    b.cpu().pdpte = [0; 4];
    b.cpu().restore(&saved);
    assert_eq!(b.cpu().pdpte[0], PAE_PD | 0xa01);
}

/// Restoring what was saved changes nothing: MTRRs and the TSC with its adjustment included.
#[test]
fn saved_state_is_complete() {
    let mut b = Bench::long();
    for (msr, value) in [
        (IA32_TSC, 0x1234_5678_9abc),
        (IA32_TSC_ADJUST, 0x7777),
        (IA32_MTRR_PHYSBASE0 + 4, 0x8000_0006),
        (IA32_MTRR_PHYSBASE0 + 5, 0xff_8000_0800),
        (IA32_MTRR_FIX16K_A0000, 0x0101_0101_0101_0101),
        (IA32_MTRR_FIX4K_C0000 + 3, 0x0505_0505_0505_0505),
        (IA32_TSC_AUX, 9),
    ] {
        assert_eq!(
            wrmsr(&mut b, msr, value),
            Outcome::Next(b.get(crate::cpu::RIP))
        );
    }
    let saved = b.cpu().save();
    let mut other = Bench::long();
    other.cpu().restore(&saved);
    let mut again = other.cpu().save();
    // The bench's clock counts instructions, of which the other one has executed none.
    let tsc = |s: &vcpu::VcpuState| s.system.msrs.iter().position(|m| m.0 == IA32_TSC).unwrap();
    let (x, y) = (tsc(&saved), tsc(&again));
    assert_eq!(saved.system.msrs[x], again.system.msrs[y]);
    again.system.msrs[y] = saved.system.msrs[x];
    assert_eq!(saved, again);
}

/// WAIT: #NM with MP and TS; x87: #NM with EM or TS (SDM Vol 3 13.1).
#[test]
fn device_not_available() {
    let mut b = Bench::long();
    b.cpu().cr0 |= 8;
    b.fault(&[0x9b], NM);
    let mut b = Bench::long();
    b.cpu().cr0 = (b.cpu().cr0 & !2) | 8;
    b.ok(&[0x9b]);
    b.fault(&[0xd9, 0xee], NM);
}
