//! Between KVM's register structures and [`VcpuState`].

use kvm_bindings as kb;
use vcpu::cpuid::feature::xstate;
use vcpu::{
    DescriptorTable, ExtendedState, Interruptibility, MpState, PendingEvent, SegmentRegister,
    VcpuState,
};
use x86defs::exception;
use x86defs::segment::{Access, Selector};

/// Offset of the upper YMM halves in the standard XSAVE format (SDM Vol 1 13.4.3).
const YMM_OFFSET: usize = 576;
/// XSTATE_BV, the first quadword of the XSAVE header (SDM Vol 1 13.4.2).
const XSTATE_BV: usize = 512;

pub(crate) fn from_regs(s: &mut VcpuState, r: &kb::kvm_regs) {
    s.gpr = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ];
    s.rip = r.rip;
    s.rflags = r.rflags;
}

pub(crate) fn to_regs(s: &VcpuState) -> kb::kvm_regs {
    let [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ] = s.gpr;
    kb::kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: s.rip,
        rflags: s.rflags,
    }
}

fn from_segment(k: &kb::kvm_segment) -> SegmentRegister {
    let bit = |value: u8, at: u32| u32::from(value & 1) << at;
    let access = u32::from(k.type_ & 0xf)
        | bit(k.s, 4)
        | u32::from(k.dpl & 3) << 5
        | bit(k.present, 7)
        | bit(k.avl, 12)
        | bit(k.l, 13)
        | bit(k.db, 14)
        | bit(k.g, 15)
        | bit(k.unusable, 16);
    SegmentRegister {
        selector: Selector(k.selector),
        base: k.base,
        limit: k.limit,
        access: Access(access),
    }
}

fn to_segment(s: &SegmentRegister) -> kb::kvm_segment {
    let a = s.access;
    kb::kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector.0,
        type_: a.segment_type(),
        present: a.present().into(),
        dpl: a.dpl(),
        db: a.default_big().into(),
        s: a.is_code_or_data().into(),
        l: a.long().into(),
        g: a.granularity().into(),
        avl: (a.0 & 1 << 12 != 0).into(),
        unusable: a.unusable().into(),
        padding: 0,
    }
}

pub(crate) fn from_sregs(s: &mut VcpuState, k: &kb::kvm_sregs) {
    s.segments = [&k.es, &k.cs, &k.ss, &k.ds, &k.fs, &k.gs].map(from_segment);
    s.ldtr = from_segment(&k.ldt);
    s.tr = from_segment(&k.tr);
    let table = |t: &kb::kvm_dtable| DescriptorTable {
        base: t.base,
        limit: t.limit,
    };
    s.gdtr = table(&k.gdt);
    s.idtr = table(&k.idt);
    s.system.cr0 = k.cr0;
    s.system.cr2 = k.cr2;
    s.system.cr3 = k.cr3;
    s.system.cr4 = k.cr4;
    s.system.cr8 = k.cr8;
    s.system.efer = k.efer;
}

/// Fills in what [`VcpuState`] has; the APIC base and the bitmap of pending interrupts stay.
pub(crate) fn to_sregs(s: &VcpuState, k: &mut kb::kvm_sregs) {
    let [es, cs, ss, ds, fs, gs] = s.segments.each_ref().map(to_segment);
    (k.es, k.cs, k.ss, k.ds, k.fs, k.gs) = (es, cs, ss, ds, fs, gs);
    k.ldt = to_segment(&s.ldtr);
    k.tr = to_segment(&s.tr);
    let table = |t: &DescriptorTable| kb::kvm_dtable {
        base: t.base,
        limit: t.limit,
        padding: [0; 3],
    };
    k.gdt = table(&s.gdtr);
    k.idt = table(&s.idtr);
    k.cr0 = s.system.cr0;
    k.cr2 = s.system.cr2;
    k.cr3 = s.system.cr3;
    k.cr4 = s.system.cr4;
    k.cr8 = s.system.cr8;
    k.efer = s.system.efer;
}

pub(crate) fn xcr0(k: &kb::kvm_xcrs) -> u64 {
    let used = (k.nr_xcrs as usize).min(k.xcrs.len());
    k.xcrs[..used]
        .iter()
        .find(|x| x.xcr == 0)
        .map_or(1, |x| x.value)
}

pub(crate) fn to_xcrs(xcr0: u64) -> kb::kvm_xcrs {
    let mut k = kb::kvm_xcrs {
        nr_xcrs: 1,
        ..Default::default()
    };
    k.xcrs[0].xcr = 0;
    k.xcrs[0].value = xcr0;
    k
}

pub(crate) fn from_xsave(k: &kb::kvm_xsave) -> ExtendedState {
    let mut e = ExtendedState::default();
    for (to, from) in e.legacy.chunks_exact_mut(4).zip(k.region) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    for (n, high) in e.ymm_high.iter_mut().enumerate() {
        let at = YMM_OFFSET / 4 + n * 4;
        *high = (0..4).fold(0, |all, word| {
            all | u128::from(k.region[at + word]) << (word * 32)
        });
    }
    if k.region[XSTATE_BV / 4] & xstate::PKRU as u32 != 0 {
        e.pkru = pkru_word().map_or(0, |at| k.region[at]);
    }
    e
}

/// Where the host's processor has PKRU in an area of standard format, in words; `None` if it has none.
fn pkru_word() -> Option<usize> {
    let r = std::arch::x86_64::__cpuid_count(0xd, xstate::PKRU.trailing_zeros());
    let words = kb::kvm_xsave::default().region.len();
    (r.eax != 0)
        .then_some(r.ebx as usize / 4)
        .filter(|&at| at < words)
}

pub(crate) fn to_xsave(e: &ExtendedState) -> kb::kvm_xsave {
    let mut k = kb::kvm_xsave::default();
    for (to, from) in k.region.iter_mut().zip(e.legacy.chunks_exact(4)) {
        *to = u32::from_le_bytes(from.try_into().expect("chunks of four"));
    }
    for (n, high) in e.ymm_high.iter().enumerate() {
        let at = YMM_OFFSET / 4 + n * 4;
        for word in 0..4 {
            k.region[at + word] = (high >> (word * 32)) as u32;
        }
    }
    let present = &mut k.region[XSTATE_BV / 4];
    *present &= !(xstate::PKRU as u32);
    if let Some(at) = pkru_word().filter(|_| e.pkru != 0) {
        *present |= xstate::PKRU as u32;
        k.region[at] = e.pkru;
    }
    // XCOMP_BV and the reserved quadwords of the header are 0 in standard format.
    k.region[XSTATE_BV / 4 + 2..YMM_OFFSET / 4].fill(0);
    k
}

pub(crate) fn from_debugregs(s: &mut VcpuState, k: &kb::kvm_debugregs) {
    s.system.dr = k.db;
    s.system.dr6 = k.dr6;
    s.system.dr7 = k.dr7;
}

pub(crate) fn to_debugregs(s: &VcpuState) -> kb::kvm_debugregs {
    kb::kvm_debugregs {
        db: s.system.dr,
        dr6: s.system.dr6,
        dr7: s.system.dr7,
        ..Default::default()
    }
}

pub(crate) fn from_mp_state(k: u32) -> MpState {
    match k {
        kb::KVM_MP_STATE_UNINITIALIZED | kb::KVM_MP_STATE_INIT_RECEIVED => MpState::WaitForSipi,
        kb::KVM_MP_STATE_HALTED => MpState::Halted,
        // A start-up IPI that was received is taken at the next entry; on other architectures' states KVM does
        // not come on x86.
        _ => MpState::Running,
    }
}

/// Shutdown is not KVM's to know: the vCPU is not run in it.
pub(crate) fn to_mp_state(s: MpState) -> u32 {
    match s {
        MpState::Running | MpState::Shutdown => kb::KVM_MP_STATE_RUNNABLE,
        MpState::Halted => kb::KVM_MP_STATE_HALTED,
        MpState::WaitForSipi => kb::KVM_MP_STATE_INIT_RECEIVED,
    }
}

pub(crate) fn from_events(s: &mut VcpuState, k: &kb::kvm_vcpu_events) {
    let shadow = u32::from(k.interrupt.shadow);
    s.interruptibility = Interruptibility {
        sti: shadow & kb::KVM_X86_SHADOW_INT_STI != 0,
        mov_ss: shadow & kb::KVM_X86_SHADOW_INT_MOV_SS != 0,
        nmi: k.nmi.masked != 0,
    };
    let event = |vector, error_code| Some(PendingEvent { vector, error_code });
    // INT n, INT3 and INTO whose delivery was interrupted are left out: RIP is at the instruction, which delivers
    // them again.
    let soft = k.exception.injected != 0 && matches!(k.exception.nr, exception::BP | exception::OF);
    s.pending = if (k.exception.injected != 0 || k.exception.pending != 0) && !soft {
        let error = (k.exception.has_error_code != 0).then_some(k.exception.error_code);
        event(k.exception.nr, error)
    } else if k.nmi.injected != 0 || k.nmi.pending != 0 {
        event(exception::NMI, None)
    } else if k.interrupt.injected != 0 && k.interrupt.soft == 0 {
        event(k.interrupt.nr, None)
    } else {
        None
    };
}

pub(crate) fn to_events(s: &VcpuState) -> kb::kvm_vcpu_events {
    let mut k = kb::kvm_vcpu_events {
        flags: kb::KVM_VCPUEVENT_VALID_NMI_PENDING | kb::KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    let blocked = s.interruptibility;
    let bit = |on, bit: u32| if on { bit as u8 } else { 0 };
    k.interrupt.shadow = bit(blocked.sti, kb::KVM_X86_SHADOW_INT_STI)
        | bit(blocked.mov_ss, kb::KVM_X86_SHADOW_INT_MOV_SS);
    k.nmi.masked = blocked.nmi.into();
    match s.pending {
        None => {}
        Some(e) if e.vector == exception::NMI => k.nmi.pending = 1,
        Some(e) if e.vector < 32 => {
            k.exception.injected = 1;
            k.exception.nr = e.vector;
            k.exception.has_error_code = e.error_code.is_some().into();
            k.exception.error_code = e.error_code.unwrap_or(0);
        }
        Some(e) => {
            k.interrupt.injected = 1;
            k.interrupt.nr = e.vector;
        }
    }
    k
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(set: impl Fn(&mut kb::kvm_vcpu_events)) -> Option<PendingEvent> {
        let mut k = kb::kvm_vcpu_events::default();
        set(&mut k);
        let mut s = VcpuState::default();
        from_events(&mut s, &k);
        s.pending
    }

    #[test]
    fn events_that_their_instruction_repeats_are_not_pending() {
        let int_n =
            events(|k| (k.interrupt.injected, k.interrupt.nr, k.interrupt.soft) = (1, 0x80, 1));
        assert_eq!(int_n, None);
        let int3 = events(|k| (k.exception.injected, k.exception.nr) = (1, 3));
        assert_eq!(int3, None);
        let nmi_with_stale_vector = events(|k| (k.exception.nr, k.nmi.pending) = (3, 1));
        assert_eq!(nmi_with_stale_vector.map(|e| e.vector), Some(2));
        let external = events(|k| (k.interrupt.injected, k.interrupt.nr) = (1, 0x80));
        assert_eq!(external.map(|e| e.vector), Some(0x80));
    }

    #[test]
    fn events_are_put_back_by_kind() {
        for (vector, error_code) in [
            (2, None),
            (6, None),
            (13, Some(0x18)),
            (32, None),
            (255, None),
        ] {
            let mut s = VcpuState {
                pending: Some(PendingEvent { vector, error_code }),
                ..VcpuState::default()
            };
            s.interruptibility.sti = true;
            let mut back = VcpuState::default();
            from_events(&mut back, &to_events(&s));
            assert_eq!(back.pending, s.pending);
            assert_eq!(back.interruptibility, s.interruptibility);
        }
    }

    /// Access rights have the layout of a descriptor's second doubleword, bits 23:8, and bit 16 for "unusable" (SDM
    /// Vol 3 Table 25-2).
    #[test]
    fn access_rights_keep_every_bit() {
        for bit in [0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15, 16] {
            let s = SegmentRegister {
                access: Access(1 << bit),
                ..SegmentRegister::default()
            };
            assert_eq!(from_segment(&to_segment(&s)), s, "bit {bit}");
        }
        let k = to_segment(&SegmentRegister {
            access: Access(0xa09b),
            ..SegmentRegister::default()
        });
        assert_eq!(
            (k.type_, k.s, k.dpl, k.present, k.l, k.db, k.g, k.avl),
            (0xb, 1, 0, 1, 1, 0, 1, 0)
        );
    }

    #[test]
    fn the_xsave_area_is_in_standard_format() {
        let mut e = ExtendedState::default();
        e.legacy[160..176].copy_from_slice(b"xmm0 xmm0 xmm0 x");
        e.legacy[512] = 7;
        e.legacy[520] = 0xff; // XCOMP_BV, which standard format has as 0
        e.ymm_high[15] = 0x0123_4567_89ab_cdef_0011_2233_4455_6677;
        let k = to_xsave(&e);
        assert_eq!(k.region[0] & 0xffff, 0x37f, "FCW");
        assert_eq!(k.region[6], 0x1f80, "MXCSR");
        assert_eq!(k.region[130], 0, "XCOMP_BV");
        assert_eq!(k.region[(576 + 15 * 16) / 4], 0x4455_6677);
        e.legacy[520] = 0;
        assert_eq!(from_xsave(&k), e);
    }
}
