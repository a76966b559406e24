//! Making a vCPU, and its state as [`VcpuState`].

use std::sync::Arc;

use guestmem::GuestRam;
use hostexec::{Bounce, ExtState, HostExec};
use vcpu::{
    Attention, ExtendedState, Interruptibility, MpState, Platform, SystemRegisters, VcpuState,
};
use x86defs::cr::{cr0, cr4};
use x86defs::msr::*;

use crate::code::Op;
use crate::cpu::{AmdMsrs, Cpu, Fault, Model, Msrs, Native, RIP, Shadow, TWO_GIB, pending, sreg};
use crate::flags::Flags;
use crate::insn::{
    DEBUGCTL_ALLOWED, FEATURE_CONTROL_LOCKED_VMX, KnownLeaves, Monitor, VectorTable,
};
use crate::mem::{CodePages, LargePages, Tlb};
use crate::pmu::{self, Pmu};
use crate::vmx::caps::Features;
use crate::vmx::{ExitRequest, Vmx};
use crate::world::World;

/// MSRs that are saved beside the ones with fields of their own.
const SAVED_MSRS: &[u32] = &[
    IA32_FEATURE_CONTROL,
    IA32_TSC_ADJUST,
    IA32_SPEC_CTRL,
    IA32_SYSENTER_CS,
    IA32_SYSENTER_ESP,
    IA32_SYSENTER_EIP,
    IA32_MISC_ENABLE,
    IA32_DEBUGCTL,
    IA32_PAT,
    IA32_MTRR_DEF_TYPE,
    IA32_STAR,
    IA32_LSTAR,
    IA32_CSTAR,
    IA32_FMASK,
    IA32_KERNEL_GS_BASE,
    IA32_TSC_AUX,
    IA32_XSS,
    IA32_MTRR_FIX64K_00000,
    IA32_MTRR_FIX16K_80000,
    IA32_MTRR_FIX16K_A0000,
    AMD_SYSCFG,
    AMD_HWCR,
    AMD_IORR_BASE0,
    AMD_IORR_MASK0,
    AMD_IORR_BASE1,
    AMD_IORR_MASK1,
    AMD_TOP_MEM,
    AMD_TOP_MEM2,
    AMD_NAME_STRING0,
    AMD_NAME_STRING0 + 1,
    AMD_NAME_STRING0 + 2,
    AMD_NAME_STRING0 + 3,
    AMD_NAME_STRING0 + 4,
    AMD_NAME_STRING0 + 5,
    IA32_LASTBRANCHFROMIP,
    IA32_LASTBRANCHTOIP,
    IA32_LASTINTFROMIP,
    IA32_LASTINTTOIP,
];

/// More of them: the variable and the small fixed MTRRs.
fn saved_msrs() -> impl Iterator<Item = u32> {
    let variable = IA32_MTRR_PHYSBASE0..IA32_MTRR_PHYSBASE0 + 16;
    let fixed = IA32_MTRR_FIX4K_C0000..=IA32_MTRR_FIX4K_F8000;
    SAVED_MSRS.iter().copied().chain(variable).chain(fixed)
}

/// What VT-x depends on of the model.
fn vmx_features(model: &Model) -> Features {
    let leaf = |leaf, subleaf| model.cpuid.get(leaf, subleaf).unwrap_or_default();
    let (l1, l7, lx) = (leaf(1, 0), leaf(7, 0), leaf(0x8000_0001, 0));
    Features {
        maxphyaddr: model.maxphyaddr,
        cr4_allowed: model.cr4_allowed,
        nx: lx.edx & 1 << 20 != 0,
        rdtscp: lx.edx & 1 << 27 != 0,
        invpcid: l7.ebx & 1 << 10 != 0,
        rdrand: l1.ecx & 1 << 30 != 0,
        rdseed: l7.ebx & 1 << 18 != 0,
        xsaves: model.xss_allowed.is_some(),
        debugctl_allowed: DEBUGCTL_ALLOWED,
        perf_global: model.pmu.as_ref().and_then(pmu::Features::perf_global),
    }
}

impl Cpu {
    /// A vCPU in its reset state.
    pub fn new(
        model: Arc<Model>,
        ram: Arc<GuestRam>,
        platform: Box<dyn Platform>,
        attention: Attention,
        index: u32,
        host: HostExec,
        world: Arc<World>,
    ) -> Self {
        let mut regs = [0; 32];
        regs[TWO_GIB] = 1 << 31;
        let code_pages = CodePages::new(&ram, &attention);
        let stores_fence = ram.code().writers_fence();
        world.join(attention.clone());
        let mut platform = platform;
        let random_state = platform.seed().wrapping_add(u64::from(index));
        let vmx = Vmx::new(vmx_features(&model));
        let pmu = Pmu::new(model.pmu.as_ref());
        let mut cpu = Self {
            regs,
            flags: Flags::default(),
            rflags_rest: 2,
            next_rip: 0,
            pending: 0,
            budget: 0,
            native: Native::default(),
            tlb: Tlb::new(ram.host_base() as u64),
            large_pages: LargePages::default(),
            ram,
            ea_base: [0; 8],
            fetch_limit: u64::MAX,
            cpl: 0,
            long64: false,
            seg: [vcpu::SegmentRegister::default(); 6],
            ldtr: vcpu::SegmentRegister::default(),
            tr: vcpu::SegmentRegister::default(),
            gdtr: vcpu::DescriptorTable::default(),
            idtr: vcpu::DescriptorTable::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            pkru: 0,
            dr: [0; 4],
            dr6: 0,
            dr7: 0,
            pdpte: [0; 4],
            msr: Msrs {
                pat: 0x0007_0406_0007_0406,
                misc_enable: vcpu::cpuid::MISC_ENABLE_RESET
                    | if model.monitor {
                        misc_enable::MONITOR
                    } else {
                        0
                    }
                    | if model.pmu.is_some() {
                        misc_enable::PERFORMANCE_MONITORING
                    } else {
                        0
                    },
                feature_control: if model.vmx {
                    FEATURE_CONTROL_LOCKED_VMX
                } else {
                    0
                },
                amd: AmdMsrs::after_reset(&model.cpuid),
                ..Msrs::default()
            },
            ext: ExtState::initialized(),
            host,
            vectors: VectorTable::new(&model.cpuid),
            bounce: Bounce::new(),
            code_pages,
            shared: false,
            stores_fence,
            world,
            platform,
            attention,
            model,
            index,
            fault: Fault::default(),
            exit: ExitRequest::default(),
            delivering: None,
            trapped: Op::default(),
            monitor: Monitor::default(),
            shadow: Shadow::None,
            nmi_blocked: false,
            pending_debug: 0,
            activity: MpState::Running,
            trapped_kind_sets_rf: false,
            step_cancelled: false,
            interrupt_waiting: false,
            known_leaves: KnownLeaves::default(),
            ferr: false,
            nmi_pending: false,
            init_pending: false,
            sipi_pending: None,
            pauses: 0,
            alone: false,
            tsc_offset: 0,
            retired_base: 0,
            budget_given: 0,
            uncounted: 0,
            pmu,
            random_state,
            vmx,
        };
        let mut reset = vcpu::reset(index == 0);
        reset.gpr[crate::cpu::gpr::RDX] = u64::from(cpu.model.cpuid.signature());
        cpu.restore(&reset);
        cpu
    }

    /// The architectural state at an instruction boundary.
    pub fn save(&mut self) -> VcpuState {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.regs[..16]);
        self.pmu_sync();
        let counters = self.model.pmu.into_iter().flat_map(|f| pmu::saved(&f));
        let mut msrs: Vec<(u32, u64)> = saved_msrs()
            .chain(counters)
            .filter_map(|m| self.read_msr(m).ok().map(|v| (m, v)))
            .collect();
        msrs.push((IA32_TSC, self.guest_tsc()));
        msrs.sort_unstable();
        VcpuState {
            gpr,
            rip: self.regs[RIP],
            rflags: self.rflags(),
            segments: self.seg,
            ldtr: self.ldtr,
            tr: self.tr,
            gdtr: self.gdtr,
            idtr: self.idtr,
            system: SystemRegisters {
                cr0: self.cr0,
                cr2: self.cr2,
                cr3: self.cr3,
                cr4: self.cr4,
                cr8: u64::from(self.platform.cr8()),
                efer: self.efer,
                xcr0: self.xcr0,
                dr: self.dr,
                dr6: self.dr6,
                dr7: self.dr7,
                msrs,
            },
            extended: self.save_extended(),
            // MWAIT may end at any time.
            mp_state: if self.in_mwait() {
                MpState::Running
            } else {
                self.activity
            },
            interruptibility: Interruptibility {
                sti: matches!(self.shadow, Shadow::Sti | Shadow::StiInBlock),
                mov_ss: self.shadow == Shadow::MovSs,
                nmi: self.nmi_blocked,
            },
            pending: None,
        }
    }

    pub(crate) fn save_extended(&self) -> ExtendedState {
        let mut e = ExtendedState::default();
        let image = &mut e.legacy;
        image[..24].copy_from_slice(&self.ext.fx[..24]);
        image[24..28].copy_from_slice(&self.ext.mxcsr.to_le_bytes());
        image[28..32].copy_from_slice(&hostexec::MXCSR_MASK.to_le_bytes());
        image[32..160].copy_from_slice(&self.ext.fx[32..160]);
        for (i, y) in self.ext.ymm.iter().enumerate() {
            image[160 + 16 * i..168 + 16 * i].copy_from_slice(&y[0].to_le_bytes());
            image[168 + 16 * i..176 + 16 * i].copy_from_slice(&y[1].to_le_bytes());
            e.ymm_high[i] = u128::from(y[3]) << 64 | u128::from(y[2]);
        }
        image[512..520].copy_from_slice(&7u64.to_le_bytes());
        e.pkru = self.pkru;
        e
    }

    fn restore_extended(&mut self, e: &ExtendedState) {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|k| e.legacy[at + k]));
        let present = word(512);
        let initial = ExtState::initialized();
        self.ext = initial;
        self.pkru = e.pkru;
        if present & 1 != 0 {
            self.ext.fx[..24].copy_from_slice(&e.legacy[..24]);
            self.ext.fx[32..160].copy_from_slice(&e.legacy[32..160]);
        }
        if present & 6 != 0 {
            self.ext.mxcsr = word(24) as u32 & hostexec::MXCSR_MASK;
        }
        for i in 0..16 {
            if present & 2 != 0 {
                self.ext.ymm[i][0] = word(160 + 16 * i);
                self.ext.ymm[i][1] = word(168 + 16 * i);
            }
            if present & 4 != 0 {
                self.ext.ymm[i][2] = e.ymm_high[i] as u64;
                self.ext.ymm[i][3] = (e.ymm_high[i] >> 64) as u64;
            }
        }
    }

    /// Replaces the architectural state.
    pub fn restore(&mut self, s: &VcpuState) {
        self.regs[..16].copy_from_slice(&s.gpr);
        self.regs[RIP] = s.rip;
        self.next_rip = s.rip;
        self.seg = s.segments;
        self.ldtr = s.ldtr;
        self.tr = s.tr;
        self.gdtr = s.gdtr;
        self.idtr = s.idtr;
        let y = &s.system;
        (self.cr0, self.cr2, self.cr3, self.cr4) = (y.cr0, y.cr2, y.cr3, y.cr4);
        (self.efer, self.xcr0) = (y.efer, y.xcr0);
        (self.dr, self.dr6, self.dr7) = (y.dr, y.dr6, y.dr7);
        self.platform.set_cr8((y.cr8 & 15) as u8);
        for &(msr, value) in &y.msrs {
            if msr == IA32_FEATURE_CONTROL {
                self.msr.feature_control = value;
            } else if msr == IA32_TSC_ADJUST {
                // The TSC itself is restored: this must not move it once more.
                self.msr.tsc_adjust = value;
            } else if self.restore_pmu_msr(msr, value) || self.restore_branch_record(msr, value) {
                // Counters whole, as no WRMSR can.
            } else if self.write_msr(msr, value).is_err() {
                tracing::warn!(vcpu = self.index, msr, value, "saved MSR value refused");
            }
        }
        self.known_leaves.forget();
        self.restore_extended(&s.extended);
        self.end_mwait();
        // A trap that waited belongs to what was executed before.
        self.pending_debug = 0;
        self.activity = s.mp_state;
        self.shadow = match s.interruptibility {
            Interruptibility { mov_ss: true, .. } => Shadow::MovSs,
            Interruptibility { sti: true, .. } => Shadow::Sti,
            _ => Shadow::None,
        };
        self.nmi_blocked = s.interruptibility.nmi;
        self.cpl = if self.protected() {
            self.seg[sreg::SS].access.dpl()
        } else {
            0
        };
        self.pending = (self.pending & pending::CODE) | pending::INTERRUPT | pending::SIGNAL;
        if self.shadow != Shadow::None {
            self.pending |= pending::SHADOW;
        }
        if self.activity != MpState::Running {
            self.pending |= pending::INACTIVE;
        }
        self.pmu_configured();
        self.set_rflags(s.rflags);
        self.debug_changed();
        self.update_space();
        self.tlb.flush(|_| true);
        self.mode_changed();
        let pae = self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 && !self.long_mode();
        if pae && self.tlb.space().eptp == 0 && self.load_pdptes(self.cr3) != Ok(true) {
            tracing::warn!(vcpu = self.index, "saved CR3 leads to no valid PDPTEs");
        }
    }
}
