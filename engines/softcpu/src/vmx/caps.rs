//! The VMX capability MSRs (SDM Vol 3 appendix A): what VT-x the CPU model has.
//!
//! One [`Caps`] is the source of both what software reads from the MSRs and what VM entry accepts, so the two
//! cannot differ. Only what is implemented is in it.

use x86defs::cr::{cr0, cr4, efer};
use x86defs::vmx::VmcsField;
use x86defs::vmx::capability::{basic, ept_vpid, msr, vmx_misc};
use x86defs::vmx::control::{CR3_TARGETS, entry, exit, pin, primary, secondary};

use super::vmcs::region;

/// What VT-x depends on of the rest of the CPU model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Physical-address width.
    pub maxphyaddr: u32,
    /// CR4 bits that may be set; [`Caps::new`] adds VMXE.
    pub cr4_allowed: u64,
    /// Execute disable.
    pub nx: bool,
    /// RDTSCP.
    pub rdtscp: bool,
    /// INVPCID.
    pub invpcid: bool,
    /// RDRAND.
    pub rdrand: bool,
    /// RDSEED.
    pub rdseed: bool,
    /// XSAVES and XRSTORS.
    pub xsaves: bool,
    /// IA32_DEBUGCTL bits that may be set.
    pub debugctl_allowed: u64,
    /// IA32_PERF_GLOBAL_CTRL bits that may be set; `None` without that MSR.
    pub perf_global: Option<u64>,
}

/// Allowed settings of a control field (SDM Vol 3 A.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controls {
    /// Controls that must be 1.
    pub must_be_1: u32,
    /// Controls that may be 1.
    pub may_be_1: u32,
}

impl Controls {
    /// Whether a value of the field is allowed.
    #[inline]
    #[must_use]
    pub const fn allow(self, value: u32) -> bool {
        value & self.must_be_1 == self.must_be_1 && value & !self.may_be_1 == 0
    }

    /// The MSR: allowed 0-settings in bits 31:0, allowed 1-settings in bits 63:32.
    #[must_use]
    pub const fn msr(self) -> u64 {
        (self.may_be_1 as u64) << 32 | self.must_be_1 as u64
    }
}

/// Capabilities of the modelled VT-x.
#[derive(Clone, Debug)]
pub struct Caps {
    /// The CPU model.
    pub features: Features,
    /// Pin-based controls.
    pub pin: Controls,
    /// Primary processor-based controls.
    pub primary: Controls,
    /// Secondary processor-based controls.
    pub secondary: Controls,
    /// VM-exit controls.
    pub exit: Controls,
    /// VM-entry controls.
    pub entry: Controls,
    /// CR0 bits that are 1 in VMX operation.
    pub cr0_fixed_1: u64,
    /// CR4 bits that are 1 in VMX operation.
    pub cr4_fixed_1: u64,
    /// CR4 bits that may be 1 in VMX operation.
    pub cr4_allowed: u64,
    /// IA32_EFER bits that may be 1.
    pub efer_allowed: u64,
    /// IA32_VMX_EPT_VPID_CAP.
    pub ept_vpid: u64,
    /// IA32_VMX_MISC.
    pub misc: u64,
    supported: [bool; VmcsField::COUNT],
}

/// The preemption timer counts at the rate of the TSC shifted right by this (SDM Vol 3 A.6).
pub const PREEMPTION_TIMER_SHIFT: u32 = 5;

const PIN: u32 =
    pin::EXTERNAL_INTERRUPT_EXITING | pin::NMI_EXITING | pin::VIRTUAL_NMIS | pin::PREEMPTION_TIMER;

const PRIMARY: u32 = primary::INTERRUPT_WINDOW_EXITING
    | primary::TSC_OFFSETTING
    | primary::HLT_EXITING
    | primary::INVLPG_EXITING
    | primary::MWAIT_EXITING
    | primary::RDPMC_EXITING
    | primary::RDTSC_EXITING
    | primary::CR3_LOAD_EXITING
    | primary::CR3_STORE_EXITING
    | primary::CR8_LOAD_EXITING
    | primary::CR8_STORE_EXITING
    | primary::TPR_SHADOW
    | primary::NMI_WINDOW_EXITING
    | primary::MOV_DR_EXITING
    | primary::UNCONDITIONAL_IO_EXITING
    | primary::IO_BITMAPS
    | primary::MONITOR_TRAP_FLAG
    | primary::MSR_BITMAPS
    | primary::MONITOR_EXITING
    | primary::PAUSE_EXITING
    | primary::ACTIVATE_SECONDARY;

const SECONDARY: u32 = secondary::VIRTUALIZE_APIC_ACCESSES
    | secondary::ENABLE_EPT
    | secondary::DESCRIPTOR_TABLE_EXITING
    | secondary::ENABLE_VPID
    | secondary::WBINVD_EXITING
    | secondary::UNRESTRICTED_GUEST
    | secondary::VMCS_SHADOWING;

const EXIT: u32 = exit::SAVE_DEBUG_CONTROLS
    | exit::HOST_ADDRESS_SPACE_SIZE
    | exit::ACKNOWLEDGE_INTERRUPT
    | exit::SAVE_PAT
    | exit::LOAD_PAT
    | exit::SAVE_EFER
    | exit::LOAD_EFER
    | exit::SAVE_PREEMPTION_TIMER;

const ENTRY: u32 =
    entry::LOAD_DEBUG_CONTROLS | entry::IA32E_MODE_GUEST | entry::LOAD_PAT | entry::LOAD_EFER;

/// Default1 controls that may be 0: all whose meaning is not "always 1" (SDM Vol 3 A.2).
const PRIMARY_CLEARABLE: u32 = primary::CR3_LOAD_EXITING | primary::CR3_STORE_EXITING;

const EPT_VPID: u64 = ept_vpid::EXECUTE_ONLY
    | ept_vpid::WALK_LENGTH_4
    | ept_vpid::MEMORY_TYPE_UC
    | ept_vpid::MEMORY_TYPE_WB
    | ept_vpid::PAGE_2M
    | ept_vpid::PAGE_1G
    | ept_vpid::INVEPT
    | ept_vpid::ACCESSED_DIRTY
    | ept_vpid::INVEPT_SINGLE_CONTEXT
    | ept_vpid::INVEPT_ALL_CONTEXT
    | ept_vpid::INVVPID
    | ept_vpid::INVVPID_INDIVIDUAL_ADDRESS
    | ept_vpid::INVVPID_SINGLE_CONTEXT
    | ept_vpid::INVVPID_ALL_CONTEXT
    | ept_vpid::INVVPID_RETAINING_GLOBALS;

const MISC: u64 = PREEMPTION_TIMER_SHIFT as u64
    | vmx_misc::STORE_LMA
    | vmx_misc::ACTIVITY_HLT
    | vmx_misc::ACTIVITY_SHUTDOWN
    | vmx_misc::ACTIVITY_WAIT_FOR_SIPI
    | (CR3_TARGETS as u64) << vmx_misc::CR3_TARGETS_SHIFT
    | vmx_misc::VMWRITE_ANY_FIELD
    | vmx_misc::INJECT_LENGTH_0;

impl Caps {
    /// The capabilities for a CPU model.
    #[must_use]
    pub fn new(features: Features) -> Self {
        let mut secondary_controls = SECONDARY;
        for (there, control) in [
            (features.rdtscp, secondary::ENABLE_RDTSCP),
            (features.invpcid, secondary::ENABLE_INVPCID),
            (features.rdrand, secondary::RDRAND_EXITING),
            (features.rdseed, secondary::RDSEED_EXITING),
            (features.xsaves, secondary::ENABLE_XSAVES),
        ] {
            if there {
                secondary_controls |= control;
            }
        }
        let nx = if features.nx { efer::NXE } else { 0 };
        let (exit_perf, entry_perf) = match features.perf_global {
            Some(_) => (exit::LOAD_PERF_GLOBAL_CTRL, entry::LOAD_PERF_GLOBAL_CTRL),
            None => (0, 0),
        };
        Self {
            features,
            pin: Controls {
                must_be_1: pin::DEFAULT1,
                may_be_1: pin::DEFAULT1 | PIN,
            },
            primary: Controls {
                must_be_1: primary::DEFAULT1 & !PRIMARY_CLEARABLE,
                may_be_1: primary::DEFAULT1 | PRIMARY,
            },
            secondary: Controls {
                must_be_1: 0,
                may_be_1: secondary_controls,
            },
            exit: Controls {
                must_be_1: exit::DEFAULT1 & !exit::SAVE_DEBUG_CONTROLS,
                may_be_1: exit::DEFAULT1 | EXIT | exit_perf,
            },
            entry: Controls {
                must_be_1: entry::DEFAULT1 & !entry::LOAD_DEBUG_CONTROLS,
                may_be_1: entry::DEFAULT1 | ENTRY | entry_perf,
            },
            cr0_fixed_1: cr0::PE | cr0::NE | cr0::PG,
            cr4_fixed_1: cr4::VMXE,
            cr4_allowed: features.cr4_allowed | cr4::VMXE,
            efer_allowed: efer::SCE | efer::LME | efer::LMA | nx,
            ept_vpid: EPT_VPID,
            misc: MISC,
            supported: supported(secondary_controls, features.perf_global.is_some()),
        }
    }

    /// The value of a capability MSR; `None` if the model has no such MSR (SDM Vol 3 appendix A).
    #[must_use]
    pub fn msr(&self, index: u32) -> Option<u64> {
        let with_default1 = |c: Controls, default1: u32| {
            Controls {
                must_be_1: default1,
                ..c
            }
            .msr()
        };
        Some(match index {
            msr::IA32_VMX_BASIC => {
                u64::from(region::REVISION)
                    | region::REGION_SIZE << basic::REGION_SIZE_SHIFT
                    | WRITE_BACK << basic::MEMORY_TYPE_SHIFT
                    | basic::INS_OUTS_INFORMATION
                    | basic::TRUE_CONTROLS
            }
            msr::IA32_VMX_PINBASED_CTLS => with_default1(self.pin, pin::DEFAULT1),
            msr::IA32_VMX_PROCBASED_CTLS => with_default1(self.primary, primary::DEFAULT1),
            msr::IA32_VMX_EXIT_CTLS => with_default1(self.exit, exit::DEFAULT1),
            msr::IA32_VMX_ENTRY_CTLS => with_default1(self.entry, entry::DEFAULT1),
            msr::IA32_VMX_MISC => self.misc,
            msr::IA32_VMX_CR0_FIXED0 => self.cr0_fixed_1,
            msr::IA32_VMX_CR0_FIXED1 => CR0_ALLOWED,
            msr::IA32_VMX_CR4_FIXED0 => self.cr4_fixed_1,
            msr::IA32_VMX_CR4_FIXED1 => self.cr4_allowed,
            msr::IA32_VMX_VMCS_ENUM => self.highest_index() << 1,
            msr::IA32_VMX_PROCBASED_CTLS2 => self.secondary.msr(),
            msr::IA32_VMX_EPT_VPID_CAP => self.ept_vpid,
            msr::IA32_VMX_TRUE_PINBASED_CTLS => self.pin.msr(),
            msr::IA32_VMX_TRUE_PROCBASED_CTLS => self.primary.msr(),
            msr::IA32_VMX_TRUE_EXIT_CTLS => self.exit.msr(),
            msr::IA32_VMX_TRUE_ENTRY_CTLS => self.entry.msr(),
            // IA32_VMX_VMFUNC exists only with the "enable VM functions" control (SDM Vol 3 A.11).
            _ => return None,
        })
    }

    /// Whether the model's VMCS has the field.
    #[inline(always)]
    #[must_use]
    pub fn has_field(&self, field: VmcsField) -> bool {
        self.supported[field.index()]
    }

    /// Whether CR0 may have this value in VMX operation (SDM Vol 3 24.8).
    #[must_use]
    pub const fn cr0_allowed(&self, value: u64) -> bool {
        value & self.cr0_fixed_1 == self.cr0_fixed_1 && value & !CR0_ALLOWED == 0
    }

    /// Whether CR4 may have this value in VMX operation (SDM Vol 3 24.8).
    #[must_use]
    pub const fn cr4_allowed(&self, value: u64) -> bool {
        value & self.cr4_fixed_1 == self.cr4_fixed_1 && value & !self.cr4_allowed == 0
    }

    /// Whether no bit beyond the physical-address width is set.
    #[inline]
    #[must_use]
    pub const fn fits_physical(&self, address: u64) -> bool {
        address >> self.features.maxphyaddr == 0
    }

    fn highest_index(&self) -> u64 {
        VmcsField::ALL
            .iter()
            .filter(|f| self.has_field(**f))
            .map(|f| u64::from(f.encoding() >> 1 & 0x1ff))
            .max()
            .unwrap_or(0)
    }
}

/// IA32_VMX_CR0_FIXED1: every bit of the low half may be 1, as on every Intel processor.
const CR0_ALLOWED: u64 = 0xffff_ffff;
/// Memory type of VMX structures: write back (SDM Vol 3 A.1).
const WRITE_BACK: u64 = 6;

/// Fields that exist with the given secondary controls (SDM Vol 3 appendix B, footnotes of its tables).
fn supported(secondary_controls: u32, perf_global: bool) -> [bool; VmcsField::COUNT] {
    use VmcsField as F;
    let has = |control| secondary_controls & control != 0;
    let mut out = [true; VmcsField::COUNT];
    for f in VmcsField::ALL {
        out[f.index()] = match f {
            F::PostedInterruptVector
            | F::PostedInterruptDescriptor
            | F::EptpIndex
            | F::VirtualizationExceptionInfo
            | F::HlatPrefixSize
            | F::HlatPointer
            | F::LastPidPointerIndex
            | F::PidPointerTable
            | F::GuestUinv
            | F::LowPasidDirectory
            | F::HighPasidDirectory
            | F::SharedEptPointer
            | F::SubPagePermissionTable
            | F::TertiaryControls
            | F::SecondaryExitControls
            | F::SpecCtrlMask
            | F::SpecCtrlShadow
            | F::InstructionTimeout
            | F::GuestBndcfgs
            | F::GuestRtitCtl
            | F::GuestLbrCtl
            | F::GuestPkrs
            | F::HostPkrs
            | F::GuestSCet
            | F::GuestSsp
            | F::GuestInterruptSspTable
            | F::HostSCet
            | F::HostSsp
            | F::HostInterruptSspTable => false,
            F::GuestPerfGlobalCtrl | F::HostPerfGlobalCtrl => perf_global,
            F::GuestInterruptStatus
            | F::EoiExitBitmap0
            | F::EoiExitBitmap1
            | F::EoiExitBitmap2
            | F::EoiExitBitmap3 => has(secondary::VIRTUAL_INTERRUPT_DELIVERY),
            F::PmlIndex | F::PmlAddress => has(secondary::ENABLE_PML),
            F::VmFunctionControls | F::EptpListAddress => has(secondary::ENABLE_VM_FUNCTIONS),
            F::VmreadBitmap | F::VmwriteBitmap => has(secondary::VMCS_SHADOWING),
            F::XssExitingBitmap => has(secondary::ENABLE_XSAVES),
            F::EnclsExitingBitmap => has(secondary::ENCLS_EXITING),
            F::EnclvExitingBitmap => has(secondary::ENCLV_EXITING),
            F::PconfigExitingBitmap => has(secondary::ENABLE_PCONFIG),
            F::TscMultiplier => has(secondary::TSC_SCALING),
            F::PleGap | F::PleWindow => has(secondary::PAUSE_LOOP_EXITING),
            _ => true,
        };
    }
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A CPU model with everything VT-x can depend on.
    pub fn features() -> Features {
        Features {
            maxphyaddr: 40,
            cr4_allowed: 0x0037_27ff,
            nx: true,
            rdtscp: true,
            invpcid: true,
            rdrand: true,
            rdseed: true,
            xsaves: true,
            debugctl_allowed: 3,
            perf_global: Some(0x7_0000_000f),
        }
    }

    #[test]
    fn plain_and_true_msrs_agree() {
        // SDM Vol 3 A.3.1: the true MSR differs only in which default1 controls may be 0.
        let c = Caps::new(features());
        for (plain, exact, default1) in [
            (
                msr::IA32_VMX_PINBASED_CTLS,
                msr::IA32_VMX_TRUE_PINBASED_CTLS,
                pin::DEFAULT1,
            ),
            (
                msr::IA32_VMX_PROCBASED_CTLS,
                msr::IA32_VMX_TRUE_PROCBASED_CTLS,
                primary::DEFAULT1,
            ),
            (
                msr::IA32_VMX_EXIT_CTLS,
                msr::IA32_VMX_TRUE_EXIT_CTLS,
                exit::DEFAULT1,
            ),
            (
                msr::IA32_VMX_ENTRY_CTLS,
                msr::IA32_VMX_TRUE_ENTRY_CTLS,
                entry::DEFAULT1,
            ),
        ] {
            let (p, t) = (c.msr(plain).unwrap(), c.msr(exact).unwrap());
            assert_eq!(p >> 32, t >> 32, "{plain:#x}");
            assert_eq!(p as u32, default1, "{plain:#x}");
            assert_eq!(t as u32 & !default1, 0, "{exact:#x}");
            assert_eq!(
                p as u32 & !(p >> 32) as u32,
                0,
                "what must be 1 may be 1: {plain:#x}"
            );
        }
    }

    #[test]
    fn values_the_manual_fixes() {
        let c = Caps::new(features());
        let basic = c.msr(msr::IA32_VMX_BASIC).unwrap();
        assert_eq!(basic >> 31 & 1, 0, "bit 31 is always 0");
        assert_eq!(basic >> 32 & 0x1fff, 4096);
        assert_eq!(basic >> 48 & 1, 0, "always 0 on Intel 64");
        assert_eq!(basic >> 50 & 0xf, 6);
        // A.6: bit 5 must be 1 with unrestricted guest.
        assert_eq!(c.msr(msr::IA32_VMX_MISC).unwrap() & 0x20, 0x20);
        assert_eq!(c.msr(msr::IA32_VMX_CR0_FIXED0), Some(0x8000_0021));
        assert_eq!(c.msr(msr::IA32_VMX_CR4_FIXED0), Some(0x2000));
        // Highest index among our fields: VMX-preemption timer value, 482EH.
        assert_eq!(c.msr(msr::IA32_VMX_VMCS_ENUM), Some(0x17 << 1));
        assert_eq!(c.msr(msr::IA32_VMX_VMFUNC), None);
        assert_eq!(c.msr(0x492), None);
    }

    #[test]
    fn fields_follow_controls() {
        let c = Caps::new(features());
        for (field, there) in [
            (VmcsField::GuestRip, true),
            (VmcsField::VmreadBitmap, true),
            (VmcsField::XssExitingBitmap, true),
            (VmcsField::GuestPerfGlobalCtrl, true),
            (VmcsField::TscMultiplier, false),
        ] {
            assert_eq!(c.has_field(field), there, "{field:?}");
        }
    }

    #[test]
    fn controls_follow_the_model() {
        let secondary = |f| (Caps::new(f).msr(msr::IA32_VMX_PROCBASED_CTLS2).unwrap() >> 32) as u32;
        assert_ne!(secondary(features()) & secondary::ENABLE_RDTSCP, 0);
        let without = Features {
            rdtscp: false,
            ..features()
        };
        assert_eq!(secondary(without) & secondary::ENABLE_RDTSCP, 0);
        // Bits 12 and 13 (Tables 25-14 and 25-17).
        let bare = Features {
            perf_global: None,
            ..features()
        };
        for (f, there) in [(features(), true), (bare, false)] {
            let c = Caps::new(f);
            assert_eq!(
                c.msr(msr::IA32_VMX_EXIT_CTLS).unwrap() >> (32 + 12) & 1 != 0,
                there
            );
            assert_eq!(
                c.msr(msr::IA32_VMX_ENTRY_CTLS).unwrap() >> (32 + 13) & 1 != 0,
                there
            );
            assert_eq!(c.has_field(VmcsField::HostPerfGlobalCtrl), there);
        }
    }
}
