//! Loading host state (SDM Vol 3 28.5).

use vcpu::{DescriptorTable, MpState, SegmentRegister};
use x86defs::cr::{cr0, cr4, dr, efer};
use x86defs::paging;
use x86defs::rflags;
use x86defs::segment::{Access, Selector};
use x86defs::vmx::VmcsField as F;
use x86defs::vmx::control::exit;
use x86defs::vmx::exit::AbortIndicator;

use crate::cpu::{Cpu, RIP, Shadow, gpr, sreg};
use crate::vmx::entry::guest::{pdpte_reserved, read_pdptes};
use crate::vmx::entry::load::CR0_KEPT;

/// Access rights of a flat writable data segment, G and B set.
const DATA: u32 = 0xc093;
/// Access rights of a busy 32- or 64-bit TSS.
const TSS: u32 = 0x8b;
/// Limit of the host's TSS.
const TSS_LIMIT: u32 = 0x67;

impl Cpu {
    /// Loads the host-state area; leaves NMI blocking to the caller.
    ///
    /// # Errors
    /// The VMX abort, if the PDPTEs of a PAE host are bad.
    pub(super) fn load_host_state(&mut self) -> Result<(), AbortIndicator> {
        self.load_host_registers()?;
        self.load_host_segments();
        let v = self.vmx.current_vmcs();
        let (rip, rsp) = (v.get(F::HostRip), v.get(F::HostRsp));
        self.regs[RIP] = rip;
        self.next_rip = rip;
        self.regs[gpr::RSP] = rsp;
        self.set_rflags(rflags::FIXED_1);
        self.activity = MpState::Running;
        self.shadow = Shadow::None;
        self.pending_debug = 0;
        Ok(())
    }

    /// 28.5.1 and 28.5.4.
    fn load_host_registers(&mut self) -> Result<(), AbortIndicator> {
        let v = self.vmx.current_vmcs();
        let c = v.exit_controls();
        let long = c & exit::HOST_ADDRESS_SPACE_SIZE != 0;
        self.cr0 = (self.cr0 & CR0_KEPT) | (v.get(F::HostCr0) & !CR0_KEPT);
        self.cr3 = v.get(F::HostCr3);
        self.cr4 = v.get(F::HostCr4);
        if long {
            self.cr4 |= cr4::PAE;
        } else {
            self.cr4 &= !cr4::PCIDE;
        }
        self.dr7 = dr::DR7_FIXED_1;
        self.msr.debugctl = 0;
        self.msr.sysenter_cs = v.get(F::HostSysenterCs);
        self.msr.sysenter_esp = v.get(F::HostSysenterEsp);
        self.msr.sysenter_eip = v.get(F::HostSysenterEip);
        if c & exit::LOAD_EFER != 0 {
            self.efer = v.get(F::HostEfer);
        } else if long {
            self.efer |= efer::LMA | efer::LME;
        } else {
            self.efer &= !(efer::LMA | efer::LME);
        }
        if c & exit::LOAD_PAT != 0 {
            self.msr.pat = v.get(F::HostPat);
        }
        if c & exit::LOAD_PERF_GLOBAL_CTRL != 0 {
            let value = v.get(F::HostPerfGlobalCtrl);
            self.set_perf_global_control(value);
        }
        if !long && self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 {
            self.pdpte = read_pdptes(&self.ram, self.cr3);
            let reserved = pdpte_reserved(self.vmx.caps.features.maxphyaddr);
            let bad = |e: &u64| e & paging::P != 0 && e & reserved != 0;
            if self.pdpte.iter().any(bad) {
                return Err(AbortIndicator::HostPdptes);
            }
        }
        Ok(())
    }

    /// 28.5.2 and 28.5.3.
    fn load_host_segments(&mut self) {
        let v = self.vmx.current_vmcs();
        let long = v.exit_controls() & exit::HOST_ADDRESS_SPACE_SIZE != 0;
        let base_of = [0, 0, 0, 0, v.get(F::HostFsBase), v.get(F::HostGsBase)];
        let selectors = [
            F::HostEsSelector,
            F::HostCsSelector,
            F::HostSsSelector,
            F::HostDsSelector,
            F::HostFsSelector,
            F::HostGsSelector,
        ];
        for (i, (field, base)) in selectors.iter().zip(base_of).enumerate() {
            let selector = Selector(v.get16(*field));
            let access = if i == sreg::CS {
                // Execute/read, accessed, present, G; L or D by the host address-space size.
                Access(if long { 0xa09b } else { 0xc09b })
            } else if selector.0 == 0 {
                Access::UNUSABLE
            } else {
                Access(DATA)
            };
            self.seg[i] = SegmentRegister {
                selector,
                base,
                limit: u32::MAX,
                access,
            };
        }
        self.tr = SegmentRegister {
            selector: Selector(v.get16(F::HostTrSelector)),
            base: v.get(F::HostTrBase),
            limit: TSS_LIMIT,
            access: Access(TSS),
        };
        self.ldtr = SegmentRegister {
            access: Access::UNUSABLE,
            ..SegmentRegister::default()
        };
        self.gdtr = DescriptorTable {
            base: v.get(F::HostGdtrBase),
            limit: 0xffff,
        };
        self.idtr = DescriptorTable {
            base: v.get(F::HostIdtrBase),
            limit: 0xffff,
        };
        self.cpl = 0;
    }
}
