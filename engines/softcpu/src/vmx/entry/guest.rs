//! Checks on the guest-state area (SDM Vol 3 27.3.1). A failure is a VM exit with reason 33.

use guestmem::{Gpa, GuestRam};
use vcpu::SegmentRegister;
use x86defs::cr::{cr0, cr4, efer};
use x86defs::exception;
use x86defs::paging;
use x86defs::rflags;
use x86defs::segment::Access;
use x86defs::vmx::control::{entry, pin, secondary};
use x86defs::vmx::exit::entry_failure;
use x86defs::vmx::guest::{activity, interruptibility, pending_debug};
use x86defs::vmx::{EventType, InterruptionInfo, VmcsField as F};

use super::{CheckFailure, Checked, Subject, require, valid_pat};
use crate::cpu::{canonical, sreg};
use crate::vmx::vmcs::region::{REVISION, SHADOW_INDICATOR};

/// Index of LDTR in [`crate::vmx::vmcs::Vmcs::guest_segment`].
const LDTR: usize = 6;
/// Index of TR.
const TR: usize = 7;

/// Checks the guest state.
///
/// # Errors
/// The first check that does not pass.
pub fn check(s: &Subject<'_>) -> Checked {
    let mode = Mode::of(s);
    registers(s, &mode)?;
    segments(s, &mode)?;
    descriptor_tables(s)?;
    rip_and_rflags(s, &mode)?;
    non_register(s)?;
    link_pointer(s)?;
    pdptes(s, &mode)
}

/// Facts that many checks share.
struct Mode {
    /// "IA-32e mode guest".
    long: bool,
    /// "Unrestricted guest".
    unrestricted: bool,
    /// RFLAGS.VM.
    v8086: bool,
    cr0: u64,
    cr4: u64,
}

impl Mode {
    fn of(s: &Subject<'_>) -> Self {
        let v = s.vmcs;
        Self {
            long: v.entry_controls() & entry::IA32E_MODE_GUEST != 0,
            unrestricted: v.secondary() & secondary::UNRESTRICTED_GUEST != 0,
            v8086: v.get(F::GuestRflags) & rflags::VM != 0,
            cr0: v.get(F::GuestCr0),
            cr4: v.get(F::GuestCr4),
        }
    }
}

/// 27.3.1.1.
fn registers(s: &Subject<'_>, mode: &Mode) -> Checked {
    const SECTION: &str = "27.3.1.1";
    let v = s.vmcs;
    let controls = v.entry_controls();
    let free = if mode.unrestricted {
        cr0::PE | cr0::PG
    } else {
        0
    };
    require!(
        s.caps.cr0_allowed(mode.cr0 | free),
        SECTION,
        "CR0 in VMX operation"
    );
    if mode.cr0 & cr0::PG != 0 {
        require!(mode.cr0 & cr0::PE != 0, SECTION, "CR0.PG without CR0.PE");
    }
    require!(
        s.caps.cr4_allowed(mode.cr4),
        SECTION,
        "CR4 in VMX operation"
    );
    let debug = controls & entry::LOAD_DEBUG_CONTROLS != 0;
    if debug {
        let reserved = !s.caps.features.debugctl_allowed;
        require!(
            v.get(F::GuestDebugctl) & reserved == 0,
            SECTION,
            "IA32_DEBUGCTL reserved bits"
        );
    }
    if mode.long {
        let ok = mode.cr0 & cr0::PG != 0 && mode.cr4 & cr4::PAE != 0;
        require!(ok, SECTION, "CR0.PG and CR4.PAE of an IA-32e mode guest");
    } else {
        require!(
            mode.cr4 & cr4::PCIDE == 0,
            SECTION,
            "CR4.PCIDE outside IA-32e mode"
        );
    }
    require!(
        s.caps.fits_physical(v.get(F::GuestCr3)),
        SECTION,
        "CR3 beyond the physical-address width"
    );
    if debug {
        require!(v.get(F::GuestDr7) >> 32 == 0, SECTION, "DR7 bits 63:32");
    }
    let ok = canonical(v.get(F::GuestSysenterEsp)) && canonical(v.get(F::GuestSysenterEip));
    require!(ok, SECTION, "IA32_SYSENTER_ESP and EIP canonical");
    if controls & entry::LOAD_PERF_GLOBAL_CTRL != 0 {
        let allowed = s.caps.features.perf_global.unwrap_or(0);
        let ok = v.get(F::GuestPerfGlobalCtrl) & !allowed == 0;
        require!(ok, SECTION, "IA32_PERF_GLOBAL_CTRL reserved bits");
    }
    if controls & entry::LOAD_PAT != 0 {
        require!(valid_pat(v.get(F::GuestPat)), SECTION, "IA32_PAT");
    }
    if controls & entry::LOAD_EFER != 0 {
        let value = v.get(F::GuestEfer);
        require!(
            value & !s.caps.efer_allowed == 0,
            SECTION,
            "IA32_EFER reserved bits"
        );
        let lma = value & efer::LMA != 0;
        require!(
            lma == mode.long,
            SECTION,
            "IA32_EFER.LMA equals IA-32e mode guest"
        );
        if mode.cr0 & cr0::PG != 0 {
            let lme = value & efer::LME != 0;
            require!(lme == lma, SECTION, "IA32_EFER.LME equals LMA under paging");
        }
    }
    Ok(())
}

/// 27.3.1.2.
fn segments(s: &Subject<'_>, mode: &Mode) -> Checked {
    let v = s.vmcs;
    let seg: [SegmentRegister; 8] = std::array::from_fn(|i| v.guest_segment(i));
    selectors_and_bases(&seg, mode)?;
    if mode.v8086 {
        v8086_segments(&seg)?;
    } else {
        code_segment(&seg, mode)?;
        stack_segment(&seg, mode)?;
        for i in [sreg::DS, sreg::ES, sreg::FS, sreg::GS] {
            data_segment(&seg[i], mode)?;
        }
    }
    task_register(&seg[TR], mode)?;
    local_descriptor_table(&seg[LDTR])
}

const SEGMENTS: &str = "27.3.1.2";

fn selectors_and_bases(seg: &[SegmentRegister; 8], mode: &Mode) -> Checked {
    require!(!seg[TR].selector.is_ldt(), SEGMENTS, "TR selector TI");
    let ldtr_usable = !seg[LDTR].access.unusable();
    if ldtr_usable {
        require!(!seg[LDTR].selector.is_ldt(), SEGMENTS, "LDTR selector TI");
    }
    if !mode.v8086 && !mode.unrestricted {
        let ok = seg[sreg::SS].selector.rpl() == seg[sreg::CS].selector.rpl();
        require!(ok, SEGMENTS, "SS.RPL equals CS.RPL");
    }
    if mode.v8086 {
        for r in &seg[..6] {
            let ok = r.base == u64::from(r.selector.0) << 4;
            require!(ok, SEGMENTS, "base of a virtual-8086 segment");
        }
    }
    for i in [TR, sreg::FS, sreg::GS] {
        require!(canonical(seg[i].base), SEGMENTS, "base canonical");
    }
    if ldtr_usable {
        require!(canonical(seg[LDTR].base), SEGMENTS, "LDTR base canonical");
    }
    require!(
        seg[sreg::CS].base >> 32 == 0,
        SEGMENTS,
        "CS base bits 63:32"
    );
    for i in [sreg::SS, sreg::DS, sreg::ES] {
        if !seg[i].access.unusable() {
            require!(
                seg[i].base >> 32 == 0,
                SEGMENTS,
                "SS, DS, ES base bits 63:32"
            );
        }
    }
    Ok(())
}

fn v8086_segments(seg: &[SegmentRegister; 8]) -> Checked {
    for r in &seg[..6] {
        require!(
            r.limit == 0xffff,
            SEGMENTS,
            "limit of a virtual-8086 segment"
        );
        require!(
            r.access.0 == 0xf3,
            SEGMENTS,
            "access rights of a virtual-8086 segment"
        );
    }
    Ok(())
}

/// Reserved access-rights bits: 11:8 and 31:17.
fn reserved_clear(r: &SegmentRegister) -> bool {
    r.access.0 & 0xfffe_0f00 == 0
}

/// G must be 0 if any of limit bits 11:0 is 0, and 1 if any of bits 31:20 is 1.
fn granularity_fits(r: &SegmentRegister) -> bool {
    if r.access.granularity() {
        r.limit & 0xfff == 0xfff
    } else {
        r.limit & 0xfff0_0000 == 0
    }
}

fn code_segment(seg: &[SegmentRegister; 8], mode: &Mode) -> Checked {
    let (cs, ss) = (&seg[sreg::CS], &seg[sreg::SS]);
    let a = cs.access;
    let ok = match a.segment_type() {
        9 | 11 | 13 | 15 => true,
        3 => mode.unrestricted,
        _ => false,
    };
    require!(ok, SEGMENTS, "CS type");
    require!(a.is_code_or_data(), SEGMENTS, "CS S bit");
    let ok = match a.segment_type() {
        3 => a.dpl() == 0,
        9 | 11 => a.dpl() == ss.access.dpl(),
        _ => a.dpl() <= ss.access.dpl(),
    };
    require!(ok, SEGMENTS, "CS.DPL");
    require!(a.present(), SEGMENTS, "CS present");
    require!(reserved_clear(cs), SEGMENTS, "CS reserved bits");
    if mode.long && a.long() {
        require!(!a.default_big(), SEGMENTS, "CS.D with CS.L");
    }
    require!(granularity_fits(cs), SEGMENTS, "CS granularity");
    Ok(())
}

fn stack_segment(seg: &[SegmentRegister; 8], mode: &Mode) -> Checked {
    let (cs, ss) = (&seg[sreg::CS], &seg[sreg::SS]);
    let a = ss.access;
    if !a.unusable() {
        require!(matches!(a.segment_type(), 3 | 7), SEGMENTS, "SS type");
        require!(a.is_code_or_data(), SEGMENTS, "SS S bit");
        require!(a.present(), SEGMENTS, "SS present");
        require!(reserved_clear(ss), SEGMENTS, "SS reserved bits");
        require!(granularity_fits(ss), SEGMENTS, "SS granularity");
    }
    if !mode.unrestricted {
        require!(
            a.dpl() == ss.selector.rpl(),
            SEGMENTS,
            "SS.DPL equals SS.RPL"
        );
    }
    if cs.access.segment_type() == 3 || mode.cr0 & cr0::PE == 0 {
        require!(a.dpl() == 0, SEGMENTS, "SS.DPL in real mode");
    }
    Ok(())
}

fn data_segment(r: &SegmentRegister, mode: &Mode) -> Checked {
    let a = r.access;
    if a.unusable() {
        return Ok(());
    }
    let kind = a.segment_type();
    require!(kind & 1 != 0, SEGMENTS, "data segment accessed");
    require!(kind & 8 == 0 || kind & 2 != 0, SEGMENTS, "readable code");
    require!(a.is_code_or_data(), SEGMENTS, "data segment S bit");
    if !mode.unrestricted && kind <= 11 {
        require!(
            a.dpl() >= r.selector.rpl(),
            SEGMENTS,
            "data segment DPL below RPL"
        );
    }
    require!(a.present(), SEGMENTS, "data segment present");
    require!(reserved_clear(r), SEGMENTS, "data segment reserved bits");
    require!(granularity_fits(r), SEGMENTS, "data segment granularity");
    Ok(())
}

fn task_register(tr: &SegmentRegister, mode: &Mode) -> Checked {
    let a = tr.access;
    let ok = match a.segment_type() {
        3 => !mode.long,
        11 => true,
        _ => false,
    };
    require!(ok, SEGMENTS, "TR type");
    require!(!a.is_code_or_data(), SEGMENTS, "TR S bit");
    require!(a.present(), SEGMENTS, "TR present");
    require!(reserved_clear(tr), SEGMENTS, "TR reserved bits");
    require!(granularity_fits(tr), SEGMENTS, "TR granularity");
    require!(!a.unusable(), SEGMENTS, "TR unusable");
    Ok(())
}

fn local_descriptor_table(ldtr: &SegmentRegister) -> Checked {
    let a = ldtr.access;
    if a.unusable() {
        return Ok(());
    }
    require!(a.segment_type() == 2, SEGMENTS, "LDTR type");
    require!(!a.is_code_or_data(), SEGMENTS, "LDTR S bit");
    require!(a.present(), SEGMENTS, "LDTR present");
    require!(reserved_clear(ldtr), SEGMENTS, "LDTR reserved bits");
    require!(granularity_fits(ldtr), SEGMENTS, "LDTR granularity");
    Ok(())
}

/// 27.3.1.3.
fn descriptor_tables(s: &Subject<'_>) -> Checked {
    const SECTION: &str = "27.3.1.3";
    let v = s.vmcs;
    let ok = canonical(v.get(F::GuestGdtrBase)) && canonical(v.get(F::GuestIdtrBase));
    require!(ok, SECTION, "GDTR and IDTR base canonical");
    let ok = v.get(F::GuestGdtrLimit) >> 16 == 0 && v.get(F::GuestIdtrLimit) >> 16 == 0;
    require!(ok, SECTION, "GDTR and IDTR limit bits 31:16");
    Ok(())
}

/// 27.3.1.4.
fn rip_and_rflags(s: &Subject<'_>, mode: &Mode) -> Checked {
    const SECTION: &str = "27.3.1.4";
    const RESERVED: u64 = 0xffff_ffff_ffc0_8028;
    let v = s.vmcs;
    let rip = v.get(F::GuestRip);
    let cs = Access(v.get32(F::GuestCsAccess));
    if mode.long && cs.long() {
        require!(canonical(rip), SECTION, "RIP canonical");
    } else {
        require!(
            rip >> 32 == 0,
            SECTION,
            "RIP bits 63:32 outside 64-bit mode"
        );
    }
    let flags = v.get(F::GuestRflags);
    let ok = flags & RESERVED == 0 && flags & rflags::FIXED_1 != 0;
    require!(ok, SECTION, "RFLAGS reserved bits");
    if mode.long || mode.cr0 & cr0::PE == 0 {
        require!(
            !mode.v8086,
            SECTION,
            "RFLAGS.VM in IA-32e mode or real mode"
        );
    }
    let info = injected(s);
    if info.is_valid() && info.event_type() == EventType::ExternalInterrupt {
        require!(
            flags & rflags::IF != 0,
            SECTION,
            "RFLAGS.IF to inject an interrupt"
        );
    }
    Ok(())
}

fn injected(s: &Subject<'_>) -> InterruptionInfo {
    InterruptionInfo(s.vmcs.get32(F::EntryInterruptionInfo))
}

/// 27.3.1.5, but for the VMCS link pointer.
fn non_register(s: &Subject<'_>) -> Checked {
    const SECTION: &str = "27.3.1.5";
    let v = s.vmcs;
    let state = v.get32(F::GuestActivity);
    let blocking = v.get32(F::GuestInterruptibility);
    let flags = v.get(F::GuestRflags);
    let info = injected(s);
    // The capability MSR lists every state (SDM Vol 3 A.6), so the encoding alone decides.
    require!(
        state <= activity::WAIT_FOR_SIPI,
        SECTION,
        "activity state supported"
    );
    if state == activity::HLT {
        let ss = Access(v.get32(F::GuestSsAccess));
        require!(ss.dpl() == 0, SECTION, "HLT with SS.DPL not 0");
    }
    let (sti, mov_ss) = (
        blocking & interruptibility::STI != 0,
        blocking & interruptibility::MOV_SS != 0,
    );
    if sti || mov_ss {
        require!(
            state == activity::ACTIVE,
            SECTION,
            "blocking in an inactive state"
        );
    }
    if info.is_valid() {
        require!(
            injectable(state, info),
            SECTION,
            "event for the activity state"
        );
    }
    // Bit 4 (enclave interruption) is reserved without SGX.
    let defined = interruptibility::STI
        | interruptibility::MOV_SS
        | interruptibility::SMI
        | interruptibility::NMI;
    require!(
        blocking & !defined == 0,
        SECTION,
        "interruptibility reserved bits"
    );
    require!(!(sti && mov_ss), SECTION, "blocking by STI and by MOV SS");
    if flags & rflags::IF == 0 {
        require!(!sti, SECTION, "blocking by STI with RFLAGS.IF 0");
    }
    if info.is_valid() {
        match info.event_type() {
            EventType::ExternalInterrupt => {
                require!(!sti && !mov_ss, SECTION, "interrupt into blocking")
            }
            EventType::Nmi => {
                require!(!mov_ss, SECTION, "NMI into blocking by MOV SS");
                let virtual_nmis = v.pin() & pin::VIRTUAL_NMIS != 0;
                let blocked = blocking & interruptibility::NMI != 0;
                require!(
                    !(virtual_nmis && blocked),
                    SECTION,
                    "NMI into virtual-NMI blocking"
                );
            }
            _ => {}
        }
    }
    // SMM is not modelled: the processor is never in it at VM entry.
    let ok = blocking & interruptibility::SMI == 0;
    require!(ok, SECTION, "blocking by SMI outside SMM");
    pending_debug_exceptions(s, sti || mov_ss || state == activity::HLT)
}

/// Events that may be injected in an activity state (27.3.1.5).
fn injectable(state: u32, info: InterruptionInfo) -> bool {
    let (kind, vector) = (info.event_type(), info.vector());
    let exception = |v| kind == EventType::HardwareException && vector == v;
    match state {
        activity::ACTIVE => true,
        activity::HLT => {
            matches!(
                kind,
                EventType::ExternalInterrupt | EventType::Nmi | EventType::Other
            ) || exception(exception::DB)
                || exception(exception::MC)
        }
        activity::SHUTDOWN => kind == EventType::Nmi || exception(exception::MC),
        _ => false,
    }
}

fn pending_debug_exceptions(s: &Subject<'_>, held: bool) -> Checked {
    const SECTION: &str = "27.3.1.5";
    const BTF: u64 = 1 << 1;
    let v = s.vmcs;
    let pending = v.get(F::GuestPendingDebug);
    // RTM and bus-lock detection are not in the model: bits 16 and 11 are reserved.
    let defined = pending_debug::B | pending_debug::ENABLED_BREAKPOINT | pending_debug::BS;
    require!(
        pending & !defined == 0,
        SECTION,
        "pending debug exceptions reserved bits"
    );
    if held {
        let step = v.get(F::GuestRflags) & rflags::TF != 0 && v.get(F::GuestDebugctl) & BTF == 0;
        let bs = pending & pending_debug::BS != 0;
        require!(bs == step, SECTION, "pending BS equals single-stepping");
    }
    Ok(())
}

/// 27.3.1.5: the VMCS link pointer.
fn link_pointer(s: &Subject<'_>) -> Checked {
    let v = s.vmcs;
    let link = v.get(F::VmcsLinkPointer);
    if link == u64::MAX {
        return Ok(());
    }
    let fail = |rule| CheckFailure {
        qualification: entry_failure::VMCS_LINK_POINTER,
        ..CheckFailure::new("27.3.1.5", rule)
    };
    if !s.page_address(link) {
        return Err(fail("VMCS link pointer alignment and width"));
    }
    let word = s.physical_u32(Gpa(link));
    if word & !SHADOW_INDICATOR != REVISION {
        return Err(fail("revision of the linked VMCS"));
    }
    let shadowing = v.secondary() & secondary::VMCS_SHADOWING != 0;
    if (word & SHADOW_INDICATOR != 0) != shadowing {
        return Err(fail("shadow indicator of the linked VMCS"));
    }
    if Gpa(link) == s.current {
        return Err(fail("VMCS link pointer is the current VMCS"));
    }
    Ok(())
}

/// 27.3.1.6.
fn pdptes(s: &Subject<'_>, mode: &Mode) -> Checked {
    if mode.cr0 & cr0::PG == 0 || mode.cr4 & cr4::PAE == 0 || mode.long {
        return Ok(());
    }
    let entries = guest_pdptes(s);
    let reserved = pdpte_reserved(s.caps.features.maxphyaddr);
    for e in entries {
        if e & paging::P != 0 && e & reserved != 0 {
            return Err(CheckFailure {
                qualification: entry_failure::PDPTE,
                ..CheckFailure::new("27.3.1.6", "PDPTE reserved bits")
            });
        }
    }
    Ok(())
}

/// The PDPTEs a PAE guest starts with: from their fields with EPT, else from the table at CR3.
#[must_use]
pub fn guest_pdptes(s: &Subject<'_>) -> [u64; 4] {
    let v = s.vmcs;
    if v.secondary() & secondary::ENABLE_EPT != 0 {
        return F::GUEST_PDPTES.map(|f| v.get(f));
    }
    read_pdptes(s.ram, v.get(F::GuestCr3))
}

/// The four PDPTEs at a CR3 value; memory that is not RAM reads as ones.
#[must_use]
pub fn read_pdptes(ram: &GuestRam, cr3: u64) -> [u64; 4] {
    let table = cr3 & 0xffff_ffe0;
    std::array::from_fn(|i| {
        ram.find(Gpa(table + 8 * i as u64), 8)
            .map_or(u64::MAX, |at| ram.load(at))
    })
}

/// Reserved bits of a present PDPTE: 2:1, 8:5 and all beyond the physical-address width (SDM Vol 3 Table 4-8).
#[must_use]
pub const fn pdpte_reserved(maxphyaddr: u32) -> u64 {
    !paging::address_mask(maxphyaddr) & !(paging::P | paging::PWT | paging::PCD | 0xe00)
}
