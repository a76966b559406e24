//! What the manual says of the states after a VM entry and after a VM exit, said once more and shortly.

use softcpu::vmx::vmcs::Vmcs;
use vcpu::{MpState, VcpuState};
use x86defs::vmx::VmcsField as F;

/// CR0 bits that neither entry nor exit changes (27.3.2.1): ET, 15:6, 17, 28:19, NW, CD.
const KEPT: u64 = 1 << 4 | 0xffc0 | 1 << 17 | 0x1ff8_0000 | 3 << 29;
const PAE: u64 = 1 << 5;
const UNUSABLE: u32 = 1 << 16;
const LMA: u64 = 1 << 10;
const LME: u64 = 1 << 8;

/// Whether this is a host's state after an exit, by what no guest here has.
#[must_use]
pub fn is_host(s: &VcpuState, v: &Vmcs) -> bool {
    s.rip == v.get(F::HostRip)
        && s.gdtr.limit == 0xffff
        && s.idtr.limit == 0xffff
        && s.gdtr.base == v.get(F::HostGdtrBase)
}

fn msr(s: &VcpuState, index: u32) -> u64 {
    let found = s.system.msrs.iter().find(|(m, _)| *m == index);
    found.expect("the engine keeps it").1
}

/// Checks the state a guest starts with, without an injected event (27.3.2).
///
/// # Panics
/// It is not what the VMCS says.
pub fn entered(s: &VcpuState, v: &Vmcs, before: &VcpuState) {
    let y = &s.system;
    let cr0 = before.system.cr0 & KEPT | v.get(F::GuestCr0) & !KEPT;
    assert_eq!(y.cr0, cr0, "guest CR0");
    assert_eq!(y.cr3, v.get(F::GuestCr3), "guest CR3");
    assert_eq!(y.cr4, v.get(F::GuestCr4), "guest CR4");
    assert_eq!(s.rip, v.get(F::GuestRip), "guest RIP");
    assert_eq!(s.gpr[4], v.get(F::GuestRsp), "guest RSP");
    assert_eq!(s.rflags, v.get(F::GuestRflags), "guest RFLAGS");
    let long = v.get(F::EntryControls) & 1 << 9 != 0;
    assert_eq!(y.efer & LMA != 0, long, "guest EFER {:#x}", y.efer);
    let registers = s.segments.iter().chain([&s.ldtr, &s.tr]);
    for (i, register) in registers.enumerate() {
        assert_eq!(*register, v.guest_segment(i), "guest segment {i}");
    }
    assert_eq!(s.gdtr.base, v.get(F::GuestGdtrBase), "guest GDTR");
    assert_eq!(s.idtr.base, v.get(F::GuestIdtrBase), "guest IDTR");
    assert_eq!(u64::from(s.gdtr.limit), v.get(F::GuestGdtrLimit));
    assert_eq!(u64::from(s.idtr.limit), v.get(F::GuestIdtrLimit));
    // What the area loads comes after the fields.
    if v.get(F::EntryMsrLoadCount) == 0 {
        assert_eq!(msr(s, 0x175), v.get(F::GuestSysenterEsp), "SYSENTER_ESP");
        assert_eq!(msr(s, 0x176), v.get(F::GuestSysenterEip), "SYSENTER_EIP");
        if v.get(F::EntryControls) & 1 << 15 != 0 {
            assert_eq!(y.efer, v.get(F::GuestEfer), "guest EFER");
        }
    }
    let state = [
        MpState::Running,
        MpState::Halted,
        MpState::Shutdown,
        MpState::WaitForSipi,
    ];
    assert_eq!(
        s.mp_state,
        state[v.get(F::GuestActivity) as usize],
        "activity"
    );
    let blocking = v.get(F::GuestInterruptibility);
    assert_eq!(s.interruptibility.nmi, blocking & 8 != 0, "NMI blocking");
}

/// Checks the state a host goes on with (28.5).
///
/// # Panics
/// It is not what the VMCS says.
pub fn host(s: &VcpuState, v: &Vmcs, before: &VcpuState) {
    let y = &s.system;
    let cr0 = before.system.cr0 & KEPT | v.get(F::HostCr0) & !KEPT;
    assert_eq!(y.cr0 & !KEPT, cr0 & !KEPT, "host CR0");
    assert_eq!(y.cr3, v.get(F::HostCr3), "host CR3");
    assert_eq!(y.cr4, v.get(F::HostCr4) | PAE, "host CR4");
    assert_eq!(s.rip, v.get(F::HostRip), "host RIP");
    assert_eq!(s.gpr[4], v.get(F::HostRsp), "host RSP");
    assert_eq!(s.rflags, 2, "host RFLAGS");
    assert_eq!(y.dr7, 0x400, "host DR7");
    assert_eq!(y.efer & (LMA | LME), LMA | LME, "host EFER");
    let selectors = [
        F::HostEsSelector,
        F::HostCsSelector,
        F::HostSsSelector,
        F::HostDsSelector,
        F::HostFsSelector,
        F::HostGsSelector,
    ];
    for (i, field) in selectors.into_iter().enumerate() {
        let (found, selector) = (&s.segments[i], v.get(field));
        assert_eq!(u64::from(found.selector.0), selector, "host segment {i}");
        if i == 1 {
            assert_eq!(found.access.0, 0xa09b, "host CS");
        } else {
            let unusable = found.access.0 & UNUSABLE != 0;
            assert_eq!(unusable, selector == 0, "host segment {i}");
        }
    }
    assert_eq!(s.segments[4].base, v.get(F::HostFsBase), "host FS");
    assert_eq!(s.segments[5].base, v.get(F::HostGsBase), "host GS");
    assert_eq!(u64::from(s.tr.selector.0), v.get(F::HostTrSelector));
    assert_eq!((s.tr.base, s.tr.limit), (v.get(F::HostTrBase), 0x67), "TR");
    assert_eq!(s.tr.access.0 & 0x1_f0ff, 0x8b, "host TR");
    assert!(s.ldtr.access.0 & UNUSABLE != 0, "host LDTR");
    assert_eq!(
        (s.gdtr.base, s.gdtr.limit),
        (v.get(F::HostGdtrBase), 0xffff)
    );
    assert_eq!(
        (s.idtr.base, s.idtr.limit),
        (v.get(F::HostIdtrBase), 0xffff)
    );
    if v.get(F::ExitMsrLoadCount) == 0 {
        assert_eq!(msr(s, 0x175), v.get(F::HostSysenterEsp), "SYSENTER_ESP");
        assert_eq!(msr(s, 0x176), v.get(F::HostSysenterEip), "SYSENTER_EIP");
        assert_eq!(msr(s, 0x1d9), 0, "IA32_DEBUGCTL");
        if v.get(F::ExitControls) & 1 << 21 != 0 {
            assert_eq!(y.efer, v.get(F::HostEfer), "host EFER");
        }
        if v.get(F::ExitControls) & 1 << 19 != 0 {
            assert_eq!(msr(s, 0x277), v.get(F::HostPat), "host PAT");
        }
    }
}

/// Checks that two VMCSs differ in nothing but these fields.
///
/// # Panics
/// They do.
pub fn unchanged(before: &Vmcs, after: &Vmcs, but: &[F]) {
    for &field in F::ALL.iter().filter(|f| !but.contains(f)) {
        assert_eq!(after.get(field), before.get(field), "{field:?} changed");
    }
}

/// Checks what an exit by CPUID has saved of a guest (28.3), which ran nothing but a MOV before it.
///
/// # Panics
/// It is not the guest's state.
pub fn saved(v: &Vmcs, guest: &VcpuState) {
    const MOV_LENGTH: u64 = 2;
    assert_eq!(v.get(F::GuestRip), guest.rip + MOV_LENGTH, "saved RIP");
    assert_eq!(v.get(F::ExitInstructionLength), 2, "length of CPUID");
    assert_eq!(v.get(F::GuestRsp), guest.gpr[4], "saved RSP");
    assert_eq!(v.get(F::GuestCr0), guest.system.cr0, "saved CR0");
    assert_eq!(v.get(F::GuestCr3), guest.system.cr3, "saved CR3");
    assert_eq!(v.get(F::GuestCr4), guest.system.cr4, "saved CR4");
    // RF lasts one instruction.
    let flags = guest.rflags & !(1 << 16);
    assert_eq!(v.get(F::GuestRflags), flags, "saved RFLAGS");
    let registers = guest.segments.iter().chain([&guest.ldtr, &guest.tr]);
    for (i, register) in registers.enumerate() {
        assert_eq!(v.guest_segment(i), *register, "saved segment {i}");
    }
    assert_eq!(v.get(F::ExitInterruptionInfo) >> 31, 0, "no event");
    assert_eq!(v.get(F::IdtVectoringInfo) >> 31, 0, "no delivery");
    assert_eq!(v.get(F::GuestActivity), 0, "saved activity state");
}
