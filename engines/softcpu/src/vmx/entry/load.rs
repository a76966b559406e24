//! Loading guest state (SDM Vol 3 27.3.2) and the controls that matter while the guest runs.

use guestmem::Gpa;
use vcpu::{DescriptorTable, MpState};
use x86defs::cr::{cr0, cr4, dr, efer};
use x86defs::vmx::VmcsField as F;
use x86defs::vmx::control::{entry, primary, secondary};
use x86defs::vmx::guest::{activity, interruptibility};

use crate::cpu::{Cpu, RIP, Shadow, gpr, pending, sreg};

/// CR0 bits that VM entries and VM exits never modify (SDM Vol 3 27.3.2.1): ET, 15:6, 17, 28:19, NW, CD.
pub const CR0_KEPT: u64 = cr0::ET | 0xffc0 | 1 << 17 | 0x1ff8_0000 | cr0::NW | cr0::CD;
/// DR7 bits VM entries clear, whatever the field says (SDM Vol 3 27.3.2.1): 12, 14 and 15.
const DR7_CLEARED: u64 = 1 << 12 | 1 << 14 | 1 << 15;

impl Cpu {
    /// Loads the guest-state area. The VMCS has passed its checks.
    pub(in crate::vmx) fn load_guest_state(&mut self) {
        self.load_control_registers();
        self.load_guest_msrs();
        self.load_guest_segments();
        self.load_guest_execution();
        self.load_guest_non_register();
    }

    /// 27.3.2.1, registers.
    fn load_control_registers(&mut self) {
        let v = self.vmx.current_vmcs();
        let controls = v.entry_controls();
        self.cr0 = (self.cr0 & CR0_KEPT) | (v.get(F::GuestCr0) & !CR0_KEPT);
        self.cr3 = v.get(F::GuestCr3);
        self.cr4 = v.get(F::GuestCr4);
        if controls & entry::LOAD_DEBUG_CONTROLS != 0 {
            self.dr7 = (v.get(F::GuestDr7) & dr::DR7_WRITABLE & !DR7_CLEARED) | dr::DR7_FIXED_1;
            self.msr.debugctl = v.get(F::GuestDebugctl);
        }
        let pae = self.cr0 & cr0::PG != 0
            && self.cr4 & cr4::PAE != 0
            && controls & entry::IA32E_MODE_GUEST == 0;
        if pae {
            self.pdpte = if v.secondary() & secondary::ENABLE_EPT != 0 {
                F::GUEST_PDPTES.map(|f| v.get(f))
            } else {
                super::guest::read_pdptes(&self.ram, self.cr3)
            };
        }
    }

    /// 27.3.2.1, MSRs.
    fn load_guest_msrs(&mut self) {
        let v = self.vmx.current_vmcs();
        let controls = v.entry_controls();
        self.msr.sysenter_cs = v.get(F::GuestSysenterCs);
        self.msr.sysenter_esp = v.get(F::GuestSysenterEsp);
        self.msr.sysenter_eip = v.get(F::GuestSysenterEip);
        if controls & entry::LOAD_EFER != 0 {
            self.efer = v.get(F::GuestEfer);
        } else {
            let long = controls & entry::IA32E_MODE_GUEST != 0;
            set(&mut self.efer, efer::LMA, long);
            if self.cr0 & cr0::PG != 0 {
                set(&mut self.efer, efer::LME, long);
            }
        }
        if controls & entry::LOAD_PAT != 0 {
            self.msr.pat = v.get(F::GuestPat);
        }
        if controls & entry::LOAD_PERF_GLOBAL_CTRL != 0 {
            let value = v.get(F::GuestPerfGlobalCtrl);
            self.set_perf_global_control(value);
        }
    }

    /// 27.3.2.2 and 27.3.2.3.
    fn load_guest_segments(&mut self) {
        const LDTR: usize = 6;
        const TR: usize = 7;
        let v = self.vmx.current_vmcs();
        for (i, s) in self.seg.iter_mut().enumerate() {
            *s = v.guest_segment(i);
        }
        self.ldtr = v.guest_segment(LDTR);
        self.tr = v.guest_segment(TR);
        self.gdtr = DescriptorTable {
            base: v.get(F::GuestGdtrBase),
            limit: v.get16(F::GuestGdtrLimit),
        };
        self.idtr = DescriptorTable {
            base: v.get(F::GuestIdtrBase),
            limit: v.get16(F::GuestIdtrLimit),
        };
        self.cpl = self.seg[sreg::SS].access.dpl();
    }

    /// 27.3.2.4.
    fn load_guest_execution(&mut self) {
        let v = self.vmx.current_vmcs();
        let flags = v.get(F::GuestRflags);
        self.regs[RIP] = v.get(F::GuestRip);
        self.next_rip = self.regs[RIP];
        self.regs[gpr::RSP] = v.get(F::GuestRsp);
        self.set_rflags(flags);
    }

    /// 27.7.1 and 27.7.2: interruptibility and activity state.
    fn load_guest_non_register(&mut self) {
        let v = self.vmx.current_vmcs();
        let blocking = v.get32(F::GuestInterruptibility);
        let state = v.get32(F::GuestActivity);
        self.nmi_blocked = blocking & interruptibility::NMI != 0;
        self.shadow = if blocking & interruptibility::MOV_SS != 0 {
            Shadow::MovSs
        } else if blocking & interruptibility::STI != 0 {
            Shadow::Sti
        } else {
            Shadow::None
        };
        self.activity = match state {
            activity::HLT => MpState::Halted,
            activity::SHUTDOWN => MpState::Shutdown,
            activity::WAIT_FOR_SIPI => MpState::WaitForSipi,
            _ => MpState::Running,
        };
    }

    /// Puts the controls in force that are looked at while the guest runs, and selects its translations.
    pub(in crate::vmx) fn load_controls(&mut self) {
        let v = self.vmx.current_vmcs();
        let second = v.secondary();
        let vpid = if second & secondary::ENABLE_VPID != 0 {
            v.get16(F::Vpid)
        } else {
            0
        };
        let eptp = if second & secondary::ENABLE_EPT != 0 {
            v.get(F::EptPointer)
        } else {
            0
        };
        let apic = (second & secondary::VIRTUALIZE_APIC_ACCESSES != 0)
            .then(|| Gpa(v.get(F::ApicAccessAddress)));
        let offset = if v.primary() & primary::TSC_OFFSETTING != 0 {
            v.get(F::TscOffset)
        } else {
            0
        };
        self.vmx.vpid = vpid;
        self.vmx.eptp = eptp;
        self.vmx.apic_access_page = apic;
        self.vmx.tsc_offset = offset;
        self.vmx.in_guest = true;
        if vpid == 0 {
            self.flush_without_vpid();
        }
        self.world_switched();
    }
}

impl Cpu {
    /// Without VPIDs, VM entries and VM exits invalidate the mappings of VPID 0 (SDM Vol 3 29.4.3.1).
    pub(in crate::vmx) fn flush_without_vpid(&mut self) {
        self.tlb.flush(|s| s.vpid == 0);
    }

    /// After all of the register state has changed at a VM entry or VM exit: re-derives what depends on it,
    /// selects the translations, and has the run loop look at everything again.
    pub(in crate::vmx) fn world_switched(&mut self) {
        self.vmx.watch_if();
        self.known_leaves.forget();
        self.update_space();
        self.mode_changed();
        self.debug_changed();
        self.pending |= pending::INTERRUPT | pending::SIGNAL | pending::VMX;
        set_pending(
            &mut self.pending,
            pending::SHADOW,
            self.shadow != Shadow::None,
        );
        set_pending(
            &mut self.pending,
            pending::INACTIVE,
            self.activity != MpState::Running,
        );
        set_pending(&mut self.pending, pending::DEBUG, self.pending_debug != 0);
    }
}

fn set(word: &mut u64, bits: u64, on: bool) {
    if on {
        *word |= bits;
    } else {
        *word &= !bits;
    }
}

fn set_pending(word: &mut u32, bits: u32, on: bool) {
    if on {
        *word |= bits;
    } else {
        *word &= !bits;
    }
}
