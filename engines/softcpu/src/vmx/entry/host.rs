//! Checks on the host-state area (SDM Vol 3 27.2.2 to 27.2.4). A failure is VM-instruction error 8.

use x86defs::cr::{cr4, efer};
use x86defs::vmx::VmcsField as F;
use x86defs::vmx::control::{entry, exit};

use super::{Checked, Subject, require, valid_pat};
use crate::cpu::canonical;

/// Checks the host state.
///
/// # Errors
/// The first check that does not pass.
pub fn check(s: &Subject<'_>) -> Checked {
    registers(s)?;
    segments(s)?;
    address_space(s)
}

/// 27.2.2.
fn registers(s: &Subject<'_>) -> Checked {
    const SECTION: &str = "27.2.2";
    let v = s.vmcs;
    let controls = v.exit_controls();
    require!(
        s.caps.cr0_allowed(v.get(F::HostCr0)),
        SECTION,
        "CR0 in VMX operation"
    );
    require!(
        s.caps.cr4_allowed(v.get(F::HostCr4)),
        SECTION,
        "CR4 in VMX operation"
    );
    require!(
        s.caps.fits_physical(v.get(F::HostCr3)),
        SECTION,
        "CR3 beyond the physical-address width"
    );
    let ok = canonical(v.get(F::HostSysenterEsp)) && canonical(v.get(F::HostSysenterEip));
    require!(ok, SECTION, "IA32_SYSENTER_ESP and EIP canonical");
    if controls & exit::LOAD_PAT != 0 {
        require!(valid_pat(v.get(F::HostPat)), SECTION, "IA32_PAT");
    }
    if controls & exit::LOAD_PERF_GLOBAL_CTRL != 0 {
        let allowed = s.caps.features.perf_global.unwrap_or(0);
        let ok = v.get(F::HostPerfGlobalCtrl) & !allowed == 0;
        require!(ok, SECTION, "IA32_PERF_GLOBAL_CTRL reserved bits");
    }
    if controls & exit::LOAD_EFER != 0 {
        let value = v.get(F::HostEfer);
        require!(
            value & !s.caps.efer_allowed == 0,
            SECTION,
            "IA32_EFER reserved bits"
        );
        let long = controls & exit::HOST_ADDRESS_SPACE_SIZE != 0;
        let ok = (value & efer::LMA != 0) == long && (value & efer::LME != 0) == long;
        require!(
            ok,
            SECTION,
            "IA32_EFER.LMA and LME equal host address-space size"
        );
    }
    Ok(())
}

/// 27.2.3.
fn segments(s: &Subject<'_>) -> Checked {
    const SECTION: &str = "27.2.3";
    const TI_AND_RPL: u64 = 7;
    let v = s.vmcs;
    for f in [
        F::HostCsSelector,
        F::HostSsSelector,
        F::HostDsSelector,
        F::HostEsSelector,
        F::HostFsSelector,
        F::HostGsSelector,
        F::HostTrSelector,
    ] {
        require!(v.get(f) & TI_AND_RPL == 0, SECTION, "selector TI and RPL");
    }
    let ok = v.get(F::HostCsSelector) != 0 && v.get(F::HostTrSelector) != 0;
    require!(ok, SECTION, "null CS or TR");
    if v.exit_controls() & exit::HOST_ADDRESS_SPACE_SIZE == 0 {
        require!(
            v.get(F::HostSsSelector) != 0,
            SECTION,
            "null SS for a 32-bit host"
        );
    }
    for f in [
        F::HostFsBase,
        F::HostGsBase,
        F::HostGdtrBase,
        F::HostIdtrBase,
        F::HostTrBase,
    ] {
        require!(canonical(v.get(f)), SECTION, "base canonical");
    }
    Ok(())
}

/// 27.2.4.
fn address_space(s: &Subject<'_>) -> Checked {
    const SECTION: &str = "27.2.4";
    let v = s.vmcs;
    let host_long = v.exit_controls() & exit::HOST_ADDRESS_SPACE_SIZE != 0;
    let guest_long = v.entry_controls() & entry::IA32E_MODE_GUEST != 0;
    require!(
        host_long == s.host_lma,
        SECTION,
        "host address-space size equals IA32_EFER.LMA"
    );
    let rip = v.get(F::HostRip);
    if host_long {
        require!(
            v.get(F::HostCr4) & cr4::PAE != 0,
            SECTION,
            "CR4.PAE for a 64-bit host"
        );
        require!(canonical(rip), SECTION, "RIP canonical");
    } else {
        require!(!guest_long, SECTION, "IA-32e mode guest of a 32-bit host");
        require!(
            v.get(F::HostCr4) & cr4::PCIDE == 0,
            SECTION,
            "CR4.PCIDE for a 32-bit host"
        );
        require!(rip >> 32 == 0, SECTION, "RIP bits 63:32 for a 32-bit host");
    }
    Ok(())
}
