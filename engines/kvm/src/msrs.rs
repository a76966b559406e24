//! MSRs as part of a vCPU's state.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use vcpu::EngineError;
use x86defs::msr::*;

use crate::{host, unsupported};

/// MSRs that are state, in ascending order, but for those that KVM keeps elsewhere (IA32_APIC_BASE, IA32_EFER,
/// FS and GS base are system registers). A host that lacks one leaves it out.
const STATE: &[u32] = &[
    IA32_TSC,
    IA32_FEATURE_CONTROL,
    IA32_TSC_ADJUST,
    IA32_SPEC_CTRL,
    IA32_SYSENTER_CS,
    IA32_SYSENTER_ESP,
    IA32_SYSENTER_EIP,
    IA32_MCG_STATUS,
    IA32_MCG_CTL,
    IA32_MISC_ENABLE,
    IA32_DEBUGCTL,
    IA32_MTRR_PHYSBASE0,
    0x201,
    0x202,
    0x203,
    0x204,
    0x205,
    0x206,
    0x207,
    0x208,
    0x209,
    0x20a,
    0x20b,
    0x20c,
    0x20d,
    0x20e,
    0x20f,
    IA32_MTRR_FIX64K_00000,
    IA32_MTRR_FIX16K_80000,
    IA32_MTRR_FIX16K_A0000,
    IA32_MTRR_FIX4K_C0000,
    0x269,
    0x26a,
    0x26b,
    0x26c,
    0x26d,
    0x26e,
    IA32_MTRR_FIX4K_F8000,
    IA32_PAT,
    IA32_MTRR_DEF_TYPE,
    IA32_TSC_DEADLINE,
    IA32_XSS,
    // KVM's own: wall clock, system time, asynchronous page faults, steal time, EOI, poll control.
    0x4b56_4d00,
    0x4b56_4d01,
    0x4b56_4d02,
    0x4b56_4d03,
    0x4b56_4d04,
    0x4b56_4d05,
    0x4b56_4d06,
    IA32_STAR,
    IA32_LSTAR,
    IA32_CSTAR,
    IA32_FMASK,
    IA32_KERNEL_GS_BASE,
    IA32_TSC_AUX,
];

/// MSRs of another engine's state that KVM gives its guests by other means, or that identify the processor: they
/// come with the VM, not with the state.
fn comes_with_the_vm(index: u32) -> bool {
    matches!(
        index,
        IA32_APIC_BASE
            | IA32_EFER
            | IA32_FS_BASE
            | IA32_GS_BASE
            | IA32_PLATFORM_ID
            | IA32_BIOS_SIGN_ID
            | MSR_PLATFORM_INFO
            | IA32_MTRRCAP
            | IA32_ARCH_CAPABILITIES
            | IA32_MCG_CAP
            | IA32_VMX_BASIC..=IA32_VMX_VMFUNC
            | IA32_X2APIC_FIRST..=IA32_X2APIC_LAST
    )
}

/// IA32_APIC_BASE among a state's MSRs.
pub(crate) fn apic_base(list: &[(u32, u64)]) -> Option<u64> {
    list.iter()
        .find(|(index, _)| *index == IA32_APIC_BASE)
        .map(|(_, value)| *value)
}

fn entries(list: &[(u32, u64)]) -> Msrs {
    let entries: Vec<_> = list
        .iter()
        .map(|&(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries).expect("fewer MSRs than KVM's limit of 256, as the callers see to")
}

/// Turns on fast strings as firmware does: KVM starts a vCPU with IA32_MISC_ENABLE.FAST_STRINGS clear, on which
/// operating systems copy without REP MOVS. A host that refuses runs the guest without.
pub(crate) fn enable_fast_strings(fd: &VcpuFd) -> Result<(), EngineError> {
    let mut buffer = entries(&[(IA32_MISC_ENABLE, 0)]);
    let read = fd.get_msrs(&mut buffer).map_err(host("reading MSRs"))?;
    if let (1, [entry]) = (read, buffer.as_slice()) {
        let value = entry.data | misc_enable::FAST_STRINGS;
        fd.set_msrs(&entries(&[(IA32_MISC_ENABLE, value)]))
            .map_err(host("setting MSRs"))?;
    }
    Ok(())
}

/// Reads all state MSRs the host has, with IA32_APIC_BASE, in ascending order.
pub(crate) fn read(fd: &VcpuFd, apic_base: u64) -> Result<Vec<(u32, u64)>, EngineError> {
    let mut out = vec![(IA32_APIC_BASE, apic_base)];
    let mut rest = STATE;
    while !rest.is_empty() {
        let wanted: Vec<_> = rest.iter().map(|&index| (index, 0)).collect();
        let mut buffer = entries(&wanted);
        // KVM stops at the first it refuses and says how many came before.
        let read = fd
            .get_msrs(&mut buffer)
            .map_err(host("reading MSRs"))?
            .min(rest.len());
        out.extend(buffer.as_slice()[..read].iter().map(|e| (e.index, e.data)));
        rest = rest.get(read + 1..).unwrap_or(&[]);
    }
    out.sort_unstable();
    Ok(out)
}

/// Writes a state's MSRs, in the order given.
///
/// # Errors
/// [`EngineError::Unsupported`] names an MSR the host does not have or a value it does not take; a zero in an
/// absent MSR is as good as none.
pub(crate) fn write(fd: &VcpuFd, list: &[(u32, u64)]) -> Result<(), EngineError> {
    let list: Vec<_> = list
        .iter()
        .copied()
        .filter(|&(index, _)| !comes_with_the_vm(index))
        .collect();
    let mut rest = &list[..];
    while !rest.is_empty() {
        let part = &rest[..rest.len().min(128)];
        let written = fd
            .set_msrs(&entries(part))
            .map_err(host("setting MSRs"))?
            .min(part.len());
        if let Some(&(index, value)) = part.get(written) {
            if value != 0 {
                return Err(unsupported(
                    format!("put {value:#x} into MSR {index:#x} on this host"),
                    "run the VM on the engine or a host like the one it was saved on",
                ));
            }
            rest = &rest[written + 1..];
        } else {
            rest = &rest[written..];
        }
    }
    Ok(())
}
