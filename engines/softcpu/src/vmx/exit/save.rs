//! Saving guest state (SDM Vol 3 28.3).

use vcpu::MpState;
use x86defs::cr::{cr0, cr4};
use x86defs::rflags;
use x86defs::vmx::VmcsField as F;
use x86defs::vmx::control::{entry, exit as controls, secondary};
use x86defs::vmx::guest::{activity, interruptibility, pending_debug};

use crate::cpu::{Cpu, Event, RIP, Shadow, gpr};
use crate::vmx::{Cause, ExitRequest};

/// IA32_DEBUGCTL.BTF.
const BTF: u64 = 1 << 1;

impl Cpu {
    /// Saves the guest-state area.
    pub(super) fn save_guest_state(&mut self, exit: &ExitRequest, delivering: Option<Event>) {
        self.save_preemption_timer();
        self.save_registers();
        self.save_segments();
        self.save_execution(exit, delivering);
        self.save_non_register(exit);
    }

    /// 28.3.1.
    fn save_registers(&mut self) {
        let long = self.long_mode();
        let pae = self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 && !long;
        let (msr, pdpte) = (&self.msr, self.pdpte);
        let (cr0, cr3, cr4, efer, dr7) = (self.cr0, self.cr3, self.cr4, self.efer, self.dr7);
        let v = self.vmx.current_vmcs_mut();
        let c = v.exit_controls();
        v.set(F::GuestCr0, cr0);
        v.set(F::GuestCr3, cr3);
        v.set(F::GuestCr4, cr4);
        v.set(F::GuestSysenterCs, msr.sysenter_cs);
        v.set(F::GuestSysenterEsp, msr.sysenter_esp);
        v.set(F::GuestSysenterEip, msr.sysenter_eip);
        if c & controls::SAVE_DEBUG_CONTROLS != 0 {
            v.set(F::GuestDr7, dr7);
            v.set(F::GuestDebugctl, msr.debugctl);
        }
        if c & controls::SAVE_PAT != 0 {
            v.set(F::GuestPat, msr.pat);
        }
        if c & controls::SAVE_EFER != 0 {
            v.set(F::GuestEfer, efer);
        }
        // IA32_VMX_MISC bit 5: EFER.LMA goes to the "IA-32e mode guest" control. The control checks that
        // depend on it are those of host state, which a guest cannot bring out of order.
        let e = v.entry_controls() & !entry::IA32E_MODE_GUEST;
        let mode = if long { entry::IA32E_MODE_GUEST } else { 0 };
        v.set(F::EntryControls, u64::from(e | mode));
        if pae && v.secondary() & secondary::ENABLE_EPT != 0 {
            for (f, e) in F::GUEST_PDPTES.iter().zip(pdpte) {
                v.set(*f, e);
            }
        }
    }

    /// 28.3.2.
    fn save_segments(&mut self) {
        const LDTR: usize = 6;
        const TR: usize = 7;
        let (seg, ldtr, tr, gdtr, idtr) = (self.seg, self.ldtr, self.tr, self.gdtr, self.idtr);
        let v = self.vmx.current_vmcs_mut();
        for (i, s) in seg.iter().enumerate() {
            v.set_guest_segment(i, s);
        }
        v.set_guest_segment(LDTR, &ldtr);
        v.set_guest_segment(TR, &tr);
        v.set(F::GuestGdtrBase, gdtr.base);
        v.set(F::GuestGdtrLimit, u64::from(gdtr.limit));
        v.set(F::GuestIdtrBase, idtr.base);
        v.set(F::GuestIdtrLimit, u64::from(idtr.limit));
    }

    /// 28.3.3.
    fn save_execution(&mut self, exit: &ExitRequest, delivering: Option<Event>) {
        let mut flags = self.rflags();
        match exit.cause {
            Cause::Instruction => flags &= !rflags::RF,
            Cause::Event { fault: true } => flags |= rflags::RF,
            Cause::Access if delivering.is_none() => flags |= rflags::RF,
            Cause::Access
            | Cause::Event { fault: false }
            | Cause::Boundary
            | Cause::BeforeDebug => {}
        }
        let (rip, rsp) = (self.regs[RIP], self.regs[gpr::RSP]);
        let v = self.vmx.current_vmcs_mut();
        v.set(F::GuestRip, rip);
        v.set(F::GuestRsp, rsp);
        v.set(F::GuestRflags, flags);
    }

    /// 28.3.4.
    fn save_non_register(&mut self, exit: &ExitRequest) {
        let mut blocking = match self.shadow {
            Shadow::None => 0,
            Shadow::Sti | Shadow::StiInBlock => interruptibility::STI,
            Shadow::MovSs => interruptibility::MOV_SS,
        };
        if self.nmi_blocked {
            blocking |= interruptibility::NMI;
        }
        let state = match self.activity {
            MpState::Running => activity::ACTIVE,
            MpState::Halted => activity::HLT,
            MpState::WaitForSipi => activity::WAIT_FOR_SIPI,
            MpState::Shutdown => activity::SHUTDOWN,
        };
        let pending = self.pending_debug_field(exit);
        let v = self.vmx.current_vmcs_mut();
        v.set(F::GuestInterruptibility, u64::from(blocking));
        v.set(F::GuestActivity, u64::from(state));
        v.set(F::GuestPendingDebug, pending);
    }

    /// Pending debug exceptions stay pending over exits that come before them, or while MOV SS blocks them.
    fn pending_debug_field(&self, exit: &ExitRequest) -> u64 {
        let held = self.shadow != Shadow::None || self.activity == MpState::Halted;
        let stays = exit.cause == Cause::BeforeDebug || self.shadow == Shadow::MovSs;
        let mut field = 0;
        if stays && self.pending_debug != 0 {
            field = self.pending_debug & (pending_debug::B | pending_debug::BS);
            if field & pending_debug::B != 0 {
                field |= pending_debug::ENABLED_BREAKPOINT;
            }
        }
        if held {
            // What VM entry asks for in these states (27.3.1.5).
            let stepping = self.rflags_rest & rflags::TF != 0 && self.msr.debugctl & BTF == 0;
            field &= !pending_debug::BS;
            if stepping {
                field |= pending_debug::BS;
            }
        }
        field
    }
}
