//! Checks on VMX controls (SDM Vol 3 27.2.1). A failure is VM-instruction error 7.

use guestmem::Gpa;
use x86defs::cr::cr0;
use x86defs::exception;
use x86defs::vmx::capability::{ept_vpid, vmx_misc};
use x86defs::vmx::control::{entry, eptp, exit, pin, primary, secondary};
use x86defs::vmx::{EventType, InterruptionInfo, VmcsField as F};

use super::{Checked, Subject, require};
use crate::vmx::caps::Caps;

/// Offset of the TPR in the virtual-APIC page (SDM Vol 3 30.1.1).
const VTPR: u64 = 0x80;
/// Bytes of an entry of an MSR area (SDM Vol 3 25.7.2).
const MSR_ENTRY: u64 = 16;

/// Checks that depend on control fields only.
///
/// # Errors
/// The first check that does not pass.
pub fn check(s: &Subject<'_>) -> Checked {
    execution(s)?;
    exit(s)?;
    entry(s)
}

/// Checks that depend on guest state or memory beside the control fields: to be repeated at every VM entry.
///
/// # Errors
/// The first check that does not pass.
pub fn check_variable(s: &Subject<'_>) -> Checked {
    tpr_threshold(s)?;
    injection(s)
}

/// 27.2.1.1.
fn execution(s: &Subject<'_>) -> Checked {
    const SECTION: &str = "27.2.1.1";
    let v = s.vmcs;
    let (pin, primary) = (v.pin(), v.primary());
    require!(
        s.caps.pin.allow(pin),
        SECTION,
        "reserved pin-based controls"
    );
    require!(
        s.caps.primary.allow(primary),
        SECTION,
        "reserved primary controls"
    );
    let secondary = v.secondary();
    require!(
        s.caps.secondary.allow(secondary),
        SECTION,
        "reserved secondary controls"
    );
    let cr3_targets = s.caps.misc >> vmx_misc::CR3_TARGETS_SHIFT & 0x1ff;
    require!(
        v.get(F::Cr3TargetCount) <= cr3_targets,
        SECTION,
        "CR3-target count"
    );
    if primary & primary::IO_BITMAPS != 0 {
        let ok = s.page_address(v.get(F::IoBitmapA)) && s.page_address(v.get(F::IoBitmapB));
        require!(ok, SECTION, "I/O-bitmap addresses");
    }
    if primary & primary::MSR_BITMAPS != 0 {
        require!(
            s.page_address(v.get(F::MsrBitmaps)),
            SECTION,
            "MSR-bitmap address"
        );
    }
    if primary & primary::TPR_SHADOW != 0 {
        let ok = s.page_address(v.get(F::VirtualApicAddress));
        require!(ok, SECTION, "virtual-APIC address");
        if secondary & secondary::VIRTUAL_INTERRUPT_DELIVERY == 0 {
            require!(
                v.get(F::TprThreshold) & !0xf == 0,
                SECTION,
                "TPR threshold bits 31:4"
            );
        }
    } else {
        let needs = secondary::VIRTUALIZE_X2APIC_MODE
            | secondary::APIC_REGISTER_VIRTUALIZATION
            | secondary::VIRTUAL_INTERRUPT_DELIVERY;
        require!(
            secondary & needs == 0,
            SECTION,
            "APIC virtualization without TPR shadow"
        );
    }
    if pin & pin::NMI_EXITING == 0 {
        require!(
            pin & pin::VIRTUAL_NMIS == 0,
            SECTION,
            "virtual NMIs without NMI exiting"
        );
    }
    if pin & pin::VIRTUAL_NMIS == 0 {
        let ok = primary & primary::NMI_WINDOW_EXITING == 0;
        require!(ok, SECTION, "NMI-window exiting without virtual NMIs");
    }
    if secondary & secondary::VIRTUALIZE_APIC_ACCESSES != 0 {
        let ok = s.page_address(v.get(F::ApicAccessAddress));
        require!(ok, SECTION, "APIC-access address");
        let ok = secondary & secondary::VIRTUALIZE_X2APIC_MODE == 0;
        require!(
            ok,
            SECTION,
            "virtualize APIC accesses with virtualize x2APIC mode"
        );
    }
    if secondary & secondary::VIRTUAL_INTERRUPT_DELIVERY != 0 {
        let ok = pin & pin::EXTERNAL_INTERRUPT_EXITING != 0;
        require!(
            ok,
            SECTION,
            "virtual-interrupt delivery without external-interrupt exiting"
        );
    }
    if secondary & secondary::ENABLE_VPID != 0 {
        require!(v.get(F::Vpid) != 0, SECTION, "VPID 0000H");
    }
    if secondary & secondary::ENABLE_EPT != 0 {
        require!(
            eptp_is_valid(s.caps, v.get(F::EptPointer)),
            SECTION,
            "EPT pointer"
        );
    } else {
        let needs = secondary::UNRESTRICTED_GUEST
            | secondary::ENABLE_PML
            | secondary::MODE_BASED_EXECUTE
            | secondary::SUB_PAGE_WRITE;
        require!(
            secondary & needs == 0,
            SECTION,
            "unrestricted guest, PML or EPT options without EPT"
        );
    }
    if secondary & secondary::ENABLE_PML != 0 {
        require!(s.page_address(v.get(F::PmlAddress)), SECTION, "PML address");
    }
    if secondary & secondary::VMCS_SHADOWING != 0 {
        let ok = s.page_address(v.get(F::VmreadBitmap)) && s.page_address(v.get(F::VmwriteBitmap));
        require!(ok, SECTION, "VMREAD- and VMWRITE-bitmap addresses");
    }
    Ok(())
}

/// Whether an EPT pointer passes the checks of 27.2.1.1, which INVEPT makes too.
#[must_use]
pub fn eptp_is_valid(caps: &Caps, value: u64) -> bool {
    const RESERVED: u64 = 0xf80;
    const WALK_LENGTH_4: u64 = 3;
    let memory_type = match value & eptp::MEMORY_TYPE {
        0 => caps.ept_vpid & ept_vpid::MEMORY_TYPE_UC != 0,
        6 => caps.ept_vpid & ept_vpid::MEMORY_TYPE_WB != 0,
        _ => false,
    };
    memory_type
        && value >> eptp::WALK_LENGTH_SHIFT & 7 == WALK_LENGTH_4
        && (value & eptp::ACCESSED_DIRTY == 0 || caps.ept_vpid & ept_vpid::ACCESSED_DIRTY != 0)
        && value & RESERVED == 0
        && caps.fits_physical(value)
}

/// An MSR area of `count` entries at `address` (27.2.1.2 and 27.2.1.3).
fn msr_area(s: &Subject<'_>, count: F, address: F) -> bool {
    let count = s.vmcs.get(count);
    let address = s.vmcs.get(address);
    count == 0
        || address & 0xf == 0
            && s.caps.fits_physical(address)
            // `count` has 32 bits and the address at most 52, so the sum cannot wrap.
            && s.caps.fits_physical(address + count * MSR_ENTRY - 1)
}

/// 27.2.1.2.
fn exit(s: &Subject<'_>) -> Checked {
    const SECTION: &str = "27.2.1.2";
    let controls = s.vmcs.exit_controls();
    require!(
        s.caps.exit.allow(controls),
        SECTION,
        "reserved VM-exit controls"
    );
    if s.vmcs.pin() & pin::PREEMPTION_TIMER == 0 {
        let ok = controls & exit::SAVE_PREEMPTION_TIMER == 0;
        require!(
            ok,
            SECTION,
            "save VMX-preemption timer value without the timer"
        );
    }
    let ok = msr_area(s, F::ExitMsrStoreCount, F::ExitMsrStoreAddress);
    require!(ok, SECTION, "VM-exit MSR-store area");
    let ok = msr_area(s, F::ExitMsrLoadCount, F::ExitMsrLoadAddress);
    require!(ok, SECTION, "VM-exit MSR-load area");
    Ok(())
}

/// 27.2.1.3, but for [`injection`].
fn entry(s: &Subject<'_>) -> Checked {
    const SECTION: &str = "27.2.1.3";
    let controls = s.vmcs.entry_controls();
    // SMM is not modelled: "entry to SMM" and "deactivate dual-monitor treatment" are reserved bits here.
    require!(
        s.caps.entry.allow(controls),
        SECTION,
        "reserved VM-entry controls"
    );
    let smm = entry::ENTRY_TO_SMM | entry::DEACTIVATE_DUAL_MONITOR;
    require!(controls & smm == 0, SECTION, "entry to SMM outside SMM");
    let ok = msr_area(s, F::EntryMsrLoadCount, F::EntryMsrLoadAddress);
    require!(ok, SECTION, "VM-entry MSR-load area");
    Ok(())
}

/// 27.2.1.1: the TPR threshold against VTPR in the virtual-APIC page.
fn tpr_threshold(s: &Subject<'_>) -> Checked {
    let v = s.vmcs;
    let hidden = secondary::VIRTUALIZE_APIC_ACCESSES | secondary::VIRTUAL_INTERRUPT_DELIVERY;
    if v.primary() & primary::TPR_SHADOW == 0 || v.secondary() & hidden != 0 {
        return Ok(());
    }
    let vtpr = s.physical_u32(Gpa(v.get(F::VirtualApicAddress)).offset(VTPR));
    let ok = v.get(F::TprThreshold) & 0xf <= u64::from(vtpr >> 4 & 0xf);
    require!(ok, "27.2.1.1", "TPR threshold above VTPR");
    Ok(())
}

/// 27.2.1.3: the event-injection fields.
fn injection(s: &Subject<'_>) -> Checked {
    const SECTION: &str = "27.2.1.3";
    let v = s.vmcs;
    let info = InterruptionInfo(v.get32(F::EntryInterruptionInfo));
    if !info.is_valid() {
        return Ok(());
    }
    let kind = info.event_type();
    let vector = info.vector();
    let vector_fits = match kind {
        EventType::Reserved => false,
        EventType::Nmi => vector == exception::NMI,
        EventType::HardwareException => vector <= 31,
        EventType::Other => {
            s.caps.primary.may_be_1 & primary::MONITOR_TRAP_FLAG != 0 && vector == 0
        }
        EventType::ExternalInterrupt
        | EventType::SoftwareInterrupt
        | EventType::PrivilegedSoftwareException
        | EventType::SoftwareException => true,
    };
    require!(vector_fits, SECTION, "interruption type and vector");
    let unrestricted = v.secondary() & secondary::UNRESTRICTED_GUEST != 0;
    let delivers = (!unrestricted || v.get(F::GuestCr0) & cr0::PE != 0)
        && kind == EventType::HardwareException
        && matches!(
            vector,
            exception::DF
                | exception::TS
                | exception::NP
                | exception::SS
                | exception::GP
                | exception::PF
                | exception::AC
        );
    require!(
        info.has_error_code() == delivers,
        SECTION,
        "deliver-error-code bit"
    );
    let ok = info.0 & InterruptionInfo::ENTRY_RESERVED == 0;
    require!(ok, SECTION, "interruption-information reserved bits");
    if info.has_error_code() {
        let ok = v.get(F::EntryExceptionErrorCode) >> 16 == 0;
        require!(ok, SECTION, "exception error code bits 31:16");
    }
    if kind.is_software() {
        let length = v.get(F::EntryInstructionLength);
        let least = u64::from(s.caps.misc & vmx_misc::INJECT_LENGTH_0 == 0);
        require!(
            (least..=15).contains(&length),
            SECTION,
            "instruction length"
        );
    }
    Ok(())
}
