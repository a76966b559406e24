//! RDMSR, WRMSR, XGETBV, XSETBV, RDPKRU, WRPKRU and the MSRs themselves (SDM Vol 4).

use iced_x86::Mnemonic;
use x86defs::cr::{cr0, cr4, efer};
use x86defs::msr::*;

use super::form::Form;
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, Trap, canonical, gpr, pending, sreg};
use crate::vmx::Intercept;

/// IA32_FEATURE_CONTROL as firmware leaves it: locked, VMX allowed outside SMX (SDM Vol 3 24.7).
pub const FEATURE_CONTROL_LOCKED_VMX: u64 = 5;

/// IA32_DEBUGCTL bits that can be set: LBR and BTF. On Intel models they do nothing but be kept, as there are no MSRs to
/// record into; on AMD ones LBR records.
pub const DEBUGCTL_ALLOWED: u64 = 3;

/// Bits of AMD's DebugCtl that read as zero whatever is written: 63:13 and 10:7 (APM Vol 2 Figure 13-4).
const AMD_DEBUGCTL_ZERO: u64 = !0x1fff | 0x780;

impl Cpu {
    /// The TSC as the running guest sees it.
    pub fn guest_tsc(&mut self) -> u64 {
        let retired = self.retired_now();
        self.platform
            .tsc(retired)
            .wrapping_add(self.tsc_offset)
            .wrapping_add(self.vmx.tsc_offset)
    }

    fn set_tsc(&mut self, value: u64) {
        let retired = self.retired_now();
        let raw = self.platform.tsc(retired);
        let new = value.wrapping_sub(raw);
        // A write of IA32_TSC changes IA32_TSC_ADJUST by the same amount (SDM Vol 3 18.17.3).
        self.msr.tsc_adjust = self
            .msr
            .tsc_adjust
            .wrapping_add(new.wrapping_sub(self.tsc_offset));
        self.tsc_offset = new;
        self.platform.set_tsc_offset(new);
    }

    /// RDMSR without the privilege check and the intercept question.
    pub fn read_msr(&mut self, msr: u32) -> Result<u64, Trap> {
        let m = &self.msr;
        Ok(match msr {
            IA32_TSC => self.guest_tsc(),
            IA32_PLATFORM_ID if !self.amd() => 0,
            IA32_APIC_BASE | IA32_TSC_DEADLINE | IA32_X2APIC_FIRST..=IA32_X2APIC_LAST => {
                let retired = self.retired_now();
                match self.platform.apic_msr_read(msr, retired) {
                    Ok(v) => v,
                    Err(_) => return self.gp0(),
                }
            }
            IA32_FEATURE_CONTROL if self.model.vmx => m.feature_control,
            IA32_TSC_ADJUST if self.model.tsc_adjust => m.tsc_adjust,
            IA32_SPEC_CTRL if self.model.spec_ctrl_allowed != 0 => m.spec_ctrl,
            IA32_BIOS_SIGN_ID if self.amd() => vcpu::cpuid::PATCH_LEVEL,
            IA32_BIOS_SIGN_ID => vcpu::cpuid::MICROCODE_REVISION,
            // Eight variable ranges, fixed ranges, write-combining.
            IA32_MTRRCAP => 0x508,
            IA32_ARCH_CAPABILITIES if self.model.arch_capabilities != 0 => {
                self.model.arch_capabilities
            }
            IA32_SYSENTER_CS => m.sysenter_cs,
            IA32_SYSENTER_ESP => m.sysenter_esp,
            IA32_SYSENTER_EIP => m.sysenter_eip,
            IA32_MCG_CAP => 0,
            IA32_MCG_STATUS => m.mcg_status,
            IA32_MISC_ENABLE if !self.amd() => m.misc_enable,
            IA32_DEBUGCTL => m.debugctl,
            0x200..=0x20f => m.mtrr_variable[(msr - IA32_MTRR_PHYSBASE0) as usize],
            0x250 | 0x258 | 0x259 | 0x268..=0x26f => {
                m.mtrr_fixed[fixed_mtrr(msr)] & !self.hidden_mtrr_bits()
            }
            IA32_PAT => m.pat,
            IA32_MTRR_DEF_TYPE => m.mtrr_def_type,
            IA32_VMX_BASIC..=IA32_VMX_VMFUNC if self.model.vmx => match self.vmx_capability(msr) {
                Some(v) => v,
                None => return self.gp0(),
            },
            IA32_XSS if self.model.xss_allowed.is_some() => m.xss,
            IA32_EFER => self.efer,
            IA32_STAR => m.star,
            IA32_LSTAR => m.lstar,
            IA32_CSTAR => m.cstar,
            IA32_FMASK => m.fmask,
            IA32_FS_BASE => self.seg[sreg::FS].base,
            IA32_GS_BASE => self.seg[sreg::GS].base,
            IA32_KERNEL_GS_BASE => m.kernel_gs_base,
            IA32_TSC_AUX => m.tsc_aux,
            _ => match self.read_pmu_msr(msr).or_else(|| self.read_amd_msr(msr)) {
                Some(v) => v,
                None => return self.unknown_msr(msr, false),
            },
        })
    }

    /// WRMSR without the privilege check and the intercept question.
    pub fn write_msr(&mut self, msr: u32, value: u64) -> Flow {
        match msr {
            IA32_TSC => self.set_tsc(value),
            IA32_TSC_ADJUST if self.model.tsc_adjust => {
                let by = value.wrapping_sub(self.msr.tsc_adjust);
                self.msr.tsc_adjust = value;
                self.tsc_offset = self.tsc_offset.wrapping_add(by);
                self.platform.set_tsc_offset(self.tsc_offset);
            }
            IA32_APIC_BASE | IA32_TSC_DEADLINE | IA32_X2APIC_FIRST..=IA32_X2APIC_LAST => {
                let retired = self.retired_now();
                if self.platform.apic_msr_write(msr, value, retired).is_err() {
                    return self.gp0();
                }
                self.end_slice();
                if msr == IA32_APIC_BASE {
                    self.known_leaves.forget();
                    // The page may have moved under cached translations.
                    self.tlb.flush(|_| true);
                }
                self.pending |= pending::INTERRUPT;
            }
            IA32_FEATURE_CONTROL if self.model.vmx => {
                if self.msr.feature_control & 1 != 0 {
                    return self.gp0();
                }
                self.msr.feature_control = value & 0x7;
            }
            IA32_SPEC_CTRL if self.model.spec_ctrl_allowed != 0 => {
                let allowed = self.model.spec_ctrl_allowed;
                self.checked(value, allowed, |m| &mut m.spec_ctrl)?;
            }
            IA32_PRED_CMD if self.model.pred_cmd => {
                if value & !1 != 0 {
                    return self.gp0();
                }
            }
            IA32_FLUSH_CMD => return self.gp0(),
            IA32_BIOS_SIGN_ID if !self.amd() => {}
            IA32_MCG_STATUS => {}
            IA32_SYSENTER_CS => self.msr.sysenter_cs = value,
            // AMD's have 32 bits, as SYSENTER is not there in long mode (APM Vol 2 6.1.2): the rest is dropped.
            IA32_SYSENTER_ESP if self.amd() => self.msr.sysenter_esp = value & 0xffff_ffff,
            IA32_SYSENTER_EIP if self.amd() => self.msr.sysenter_eip = value & 0xffff_ffff,
            IA32_SYSENTER_ESP => self.canonical_msr(value, |m| &mut m.sysenter_esp)?,
            IA32_SYSENTER_EIP => self.canonical_msr(value, |m| &mut m.sysenter_eip)?,
            IA32_MISC_ENABLE if !self.amd() => self.write_misc_enable(value)?,
            // Bits that AMD has as zero are dropped; bits 6:3, and those of features that are not shown, are checked.
            IA32_DEBUGCTL if self.amd() => {
                self.checked(value & !AMD_DEBUGCTL_ZERO, DEBUGCTL_ALLOWED, |m| {
                    &mut m.debugctl
                })?;
                self.branches_watched();
            }
            IA32_DEBUGCTL => self.checked(value, DEBUGCTL_ALLOWED, |m| &mut m.debugctl)?,
            0x200..=0x20f => {
                let reserved = self.variable_mtrr_reserved(msr & 1 != 0);
                let typed = msr & 1 != 0 || valid_mtrr_type(value as u8);
                if value & reserved != 0 || !typed {
                    return self.gp0();
                }
                self.msr.mtrr_variable[(msr - IA32_MTRR_PHYSBASE0) as usize] = value;
            }
            0x250 | 0x258 | 0x259 | 0x268..=0x26f => {
                let (hidden, extra) = (self.hidden_mtrr_bits(), self.shown_mtrr_bits());
                if !(value & !extra)
                    .to_le_bytes()
                    .into_iter()
                    .all(valid_mtrr_type)
                {
                    return self.gp0();
                }
                let place = &mut self.msr.mtrr_fixed[fixed_mtrr(msr)];
                *place = (value & !hidden) | (*place & hidden);
            }
            IA32_PAT => {
                if !valid_pat(value) {
                    return self.gp0();
                }
                self.msr.pat = value;
            }
            IA32_MTRR_DEF_TYPE => {
                if !valid_mtrr_type(value as u8) {
                    return self.gp0();
                }
                self.checked(value, 0xcff, |m| &mut m.mtrr_def_type)?;
            }
            IA32_XSS if let Some(allowed) = self.model.xss_allowed => {
                self.checked(value, allowed, |m| &mut m.xss)?;
                self.known_leaves.forget();
            }
            IA32_EFER => self.write_efer(value)?,
            IA32_STAR => self.msr.star = value,
            IA32_LSTAR => self.canonical_msr(value, |m| &mut m.lstar)?,
            IA32_CSTAR => self.canonical_msr(value, |m| &mut m.cstar)?,
            // The upper half reads as zero on AMD (APM Vol 2 Figure 6-1).
            IA32_FMASK if self.amd() => self.msr.fmask = value & 0xffff_ffff,
            IA32_FMASK => self.checked(value, 0xffff_ffff, |m| &mut m.fmask)?,
            IA32_FS_BASE | IA32_GS_BASE => {
                if !canonical(value) {
                    return self.gp0();
                }
                let seg = if msr == IA32_FS_BASE {
                    sreg::FS
                } else {
                    sreg::GS
                };
                self.seg[seg].base = value;
                self.ea_base[seg] = value;
            }
            IA32_KERNEL_GS_BASE => self.canonical_msr(value, |m| &mut m.kernel_gs_base)?,
            // AMD processors drop the upper half without a fault; Intel's reserve it (SDM Vol 4 Table 2-2).
            IA32_TSC_AUX if self.amd() => self.msr.tsc_aux = value & 0xffff_ffff,
            IA32_TSC_AUX => self.checked(value, 0xffff_ffff, |m| &mut m.tsc_aux)?,
            _ => {
                if !self.write_pmu_msr(msr, value)? && !self.write_amd_msr(msr, value)? {
                    self.unknown_msr(msr, true)?;
                }
            }
        }
        Ok(())
    }

    fn checked(
        &mut self,
        value: u64,
        allowed: u64,
        place: impl Fn(&mut crate::cpu::Msrs) -> &mut u64,
    ) -> Flow {
        if value & !allowed != 0 {
            return self.gp0();
        }
        *place(&mut self.msr) = value;
        Ok(())
    }

    fn canonical_msr(
        &mut self,
        value: u64,
        place: impl Fn(&mut crate::cpu::Msrs) -> &mut u64,
    ) -> Flow {
        if !canonical(value) {
            return self.gp0();
        }
        *place(&mut self.msr) = value;
        Ok(())
    }

    /// Reserved bits of IA32_MTRR_PHYSBASEn, or of IA32_MTRR_PHYSMASKn (SDM Vol 3 12.11.2.3).
    fn variable_mtrr_reserved(&self, mask: bool) -> u64 {
        let low = if mask { 0x7ff } else { 0xf00 };
        !((1u64 << self.model.maxphyaddr) - 1) | low
    }

    /// IA32_MISC_ENABLE (SDM Vol 4 Table 2-2): what says that something is missing is read-only, the rest that
    /// can be written is kept, other bits are reserved.
    fn write_misc_enable(&mut self, value: u64) -> Flow {
        use misc_enable as bit;
        let read_only = bit::PERFORMANCE_MONITORING | bit::BTS_UNAVAILABLE | bit::PEBS_UNAVAILABLE;
        // Thermal control, SpeedStep, leaf limit, xTPR, turbo: kept without effect.
        let kept = bit::FAST_STRINGS | 1 << 3 | 1 << 16 | 1 << 20 | 1 << 22 | 1 << 23 | 1 << 38;
        let kept = if self.model.monitor {
            kept | bit::MONITOR
        } else {
            kept
        };
        if value & !(read_only | kept) != 0 {
            return self.gp0();
        }
        self.msr.misc_enable = (value & kept) | (self.msr.misc_enable & read_only);
        self.known_leaves.forget();
        Ok(())
    }

    /// An MSR the model does not have: #GP(0).
    fn unknown_msr(&mut self, msr: u32, write: bool) -> Result<u64, Trap> {
        tracing::debug!(vcpu = self.index, msr, write, "MSR the model does not have");
        self.gp0()
    }

    /// IA32_EFER (SDM Vol 3 2.2.1): LMA is read-only, LME cannot change while paging. On AMD processors another LMA
    /// than there is is a fault, and bits 7:1 read as zero whatever is written (APM Vol 2 3.1.7).
    pub fn write_efer(&mut self, value: u64) -> Flow {
        let allowed = self.model.efer_allowed;
        let amd = self.amd();
        let value = if amd { value & !0xfe } else { value };
        let changed = self.efer ^ value;
        if amd && changed & efer::LMA != 0 {
            return self.gp0();
        }
        if value & !allowed != 0 || (changed & efer::LME != 0 && self.cr0 & cr0::PG != 0) {
            return self.gp0();
        }
        self.efer = (value & !efer::LMA) | (self.efer & efer::LMA);
        if changed & efer::NXE != 0 {
            self.flush_tlb();
        }
        Ok(())
    }
}

fn fixed_mtrr(msr: u32) -> usize {
    match msr {
        0x250 => 0,
        0x258 => 1,
        0x259 => 2,
        _ => (msr - 0x268) as usize + 3,
    }
}

/// Memory types an MTRR may hold: UC, WC, WT, WP, WB (SDM Vol 3 Table 12-8).
fn valid_mtrr_type(memory_type: u8) -> bool {
    matches!(memory_type, 0 | 1 | 4 | 5 | 6)
}

/// Memory types of a PAT entry: 0, 1, 4, 5, 6, 7 (SDM Vol 3 12.12.2).
pub fn valid_pat(value: u64) -> bool {
    value
        .to_le_bytes()
        .iter()
        .all(|t| matches!(t, 0 | 1 | 4 | 5 | 6 | 7))
}

/// RDMSR ends its block, as the counters of performance monitoring have to be known.
fn rdmsr(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.require_cpl0()?;
    let msr = cpu.regs[gpr::RCX] as u32;
    cpu.intercept(Intercept::Rdmsr { msr })?;
    let v = match cpu.vmx_read_virtualized_msr(msr) {
        Some(v) => v,
        None => {
            cpu.pmu_sync_before_this();
            cpu.read_msr(msr)?
        }
    };
    cpu.regs[gpr::RAX] = v & 0xffff_ffff;
    cpu.regs[gpr::RDX] = v >> 32;
    super::next(cpu, op)
}

fn wrmsr(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.require_cpl0()?;
    let msr = cpu.regs[gpr::RCX] as u32;
    cpu.intercept(Intercept::Wrmsr { msr })?;
    cpu.serialize();
    let value = (cpu.regs[gpr::RDX] << 32) | (cpu.regs[gpr::RAX] & 0xffff_ffff);
    if !cpu.vmx_write_virtualized_msr(msr, value)? {
        cpu.write_msr(msr, value)?;
    }
    cpu.next_rip = cpu.rip_after(op);
    Ok(())
}

fn xgetbv(cpu: &mut Cpu, _: &Op) -> Flow {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return cpu.ud();
    }
    let v = match cpu.regs[gpr::RCX] as u32 {
        0 => cpu.xcr0,
        // XINUSE (SDM Vol 1 13.2): which components are not in their initial state.
        1 => cpu.xcr0 & cpu.xinuse(),
        _ => return cpu.gp0(),
    };
    cpu.regs[gpr::RAX] = v & 0xffff_ffff;
    cpu.regs[gpr::RDX] = v >> 32;
    Ok(())
}

fn xsetbv(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return cpu.ud();
    }
    // In non-root operation the exit comes before the checks of its operands.
    cpu.require_cpl0()?;
    cpu.intercept(Intercept::Xsetbv)?;
    let value = (cpu.regs[gpr::RDX] << 32) | (cpu.regs[gpr::RAX] & 0xffff_ffff);
    let bad = cpu.regs[gpr::RCX] as u32 != 0
        || value & !cpu.model.xcr0_allowed != 0
        || value & 1 == 0
        || (value & 4 != 0 && value & 2 == 0);
    if bad {
        return cpu.gp0();
    }
    cpu.xcr0 = value;
    cpu.known_leaves.forget();
    cpu.next_rip = cpu.rip_after(op);
    Ok(())
}

/// RDPKRU and WRPKRU (SDM Vol 2): the index in ECX must be 0.
fn pkru_allowed(cpu: &mut Cpu) -> Flow {
    if cpu.cr4 & cr4::PKE == 0 {
        return cpu.ud();
    }
    if cpu.regs[gpr::RCX] as u32 != 0 {
        return cpu.gp0();
    }
    Ok(())
}

fn rdpkru(cpu: &mut Cpu, _: &Op) -> Flow {
    pkru_allowed(cpu)?;
    cpu.regs[gpr::RAX] = cpu.pkru.into();
    cpu.regs[gpr::RDX] = 0;
    Ok(())
}

fn wrpkru(cpu: &mut Cpu, _: &Op) -> Flow {
    pkru_allowed(cpu)?;
    if cpu.regs[gpr::RDX] as u32 != 0 {
        return cpu.gp0();
    }
    cpu.set_pkru(cpu.regs[gpr::RAX] as u32);
    Ok(())
}

impl Cpu {
    /// Changes PKRU and what cached translations permit.
    pub fn set_pkru(&mut self, value: u32) {
        self.pkru = value;
        self.update_space();
    }
}

pub fn bind_msr(form: &Form, _: &mut Op) -> Option<Handler> {
    Some(match form.mnemonic() {
        Mnemonic::Rdmsr => rdmsr,
        Mnemonic::Wrmsr => wrmsr,
        Mnemonic::Xgetbv => xgetbv,
        Mnemonic::Rdpkru => rdpkru,
        Mnemonic::Wrpkru => wrpkru,
        _ => xsetbv,
    })
}
