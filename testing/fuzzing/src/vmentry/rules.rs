//! The checks of SDM Vol 3 27.2 and 27.3.1, said once more: what names nothing wrong is entered, all else is not.

use guestmem::{Gpa, GuestRam};
use softcpu::vmx::vmcs::{Vmcs, region};
use vcpu::SegmentRegister;
use x86defs::vmx::VmcsField as F;

use super::guests::{SECOND, VM};

/// What RDMSR says of the processor (SDM Vol 3 appendix A).
#[derive(Debug)]
pub struct Capabilities {
    /// True pin-based, primary, exit and entry controls; secondary controls: low half must be 1, high half may.
    pub controls: [u64; 5],
    /// Fixed bits of CR0: those that are 1, those that may be.
    pub cr0: [u64; 2],
    /// The same of CR4.
    pub cr4: [u64; 2],
    /// IA32_VMX_EPT_VPID_CAP.
    pub ept: u64,
    /// Physical-address width.
    pub width: u32,
}

/// What the rules look at.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    /// The VMCS.
    pub v: &'a Vmcs,
    /// The processor.
    pub c: &'a Capabilities,
    /// Memory.
    pub ram: &'a GuestRam,
    /// Where the VMCS is.
    pub at: u64,
}

const PE: u64 = 1;
const PG: u64 = 1 << 31;
const PAE: u64 = 1 << 5;
const PCIDE: u64 = 1 << 17;
const TF: u64 = 1 << 8;
const IF: u64 = 1 << 9;
const UNUSABLE: u32 = 1 << 16;
/// SCE, LME, LMA, NXE.
const EFER: u64 = 0xd01;
/// Four general-purpose counters, three of fixed function: IA32_PERF_GLOBAL_CTRL.
const COUNTERS: u64 = 0x7_0000_000f;
/// LBR and BTF, the bits of IA32_DEBUGCTL the model has.
const DEBUGCTL: u64 = 3;

type Rule = (bool, &'static str);

fn broken(rules: impl IntoIterator<Item = Rule>) -> Option<&'static str> {
    rules
        .into_iter()
        .find_map(|(holds, rule)| (!holds).then_some(rule))
}

fn canonical(address: u64) -> bool {
    ((address as i64) << 16 >> 16) as u64 == address
}

fn fixed(value: u64, [ones, allowed]: [u64; 2], free: u64) -> bool {
    (value | free) & ones == ones && value & !allowed == 0
}

fn pat(value: u64) -> bool {
    let types = value.to_le_bytes();
    types.iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

impl Entry<'_> {
    fn get(&self, field: F) -> u64 {
        self.v.get(field)
    }

    fn secondary(&self) -> u64 {
        if self.get(F::PrimaryControls) & SECOND != 0 {
            self.get(F::SecondaryControls)
        } else {
            0
        }
    }

    fn page(&self, field: F) -> bool {
        self.get(field) & 0xfff == 0 && self.get(field) >> self.c.width == 0
    }

    /// Memory that is no RAM reads as ones.
    fn read(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        match self.ram.read(Gpa(at), &mut bytes) {
            Ok(()) => u64::from_le_bytes(bytes),
            Err(_) => u64::MAX,
        }
    }

    /// Names what makes VMLAUNCH fail (27.2), for a host in 64-bit mode.
    #[must_use]
    pub fn refusal(&self) -> Option<&'static str> {
        self.controls()
            .or_else(|| self.injection())
            .or_else(|| self.host())
    }

    /// 27.2.1, but for the injection.
    fn controls(&self) -> Option<&'static str> {
        let fields = [
            self.get(F::PinControls),
            self.get(F::PrimaryControls),
            self.get(F::ExitControls),
            self.get(F::EntryControls),
            self.secondary(),
        ];
        let mut pairs = fields.into_iter().zip(self.c.controls);
        if pairs.any(|(value, c)| !fixed(value, [c & 0xffff_ffff, c >> 32], 0)) {
            return Some("a reserved control");
        }
        let [pin, primary, exit, _, second] = fields;
        let shadow = primary & 1 << 21 != 0;
        let threshold = self.get(F::TprThreshold);
        let vtpr = || self.read(self.get(F::VirtualApicAddress) + 0x80) >> 4 & 0xf;
        let area = |count: F, address: F| {
            let (count, address) = (self.get(count), self.get(address));
            let end = address.wrapping_add(16 * count).wrapping_sub(1);
            count == 0 || address & 15 == 0 && (address | end) >> self.c.width == 0
        };
        broken([
            (self.get(F::Cr3TargetCount) <= 4, "CR3 targets"),
            (
                primary & 1 << 28 == 0 || self.page(F::MsrBitmaps),
                "MSR bitmaps",
            ),
            (
                primary & 1 << 25 == 0 || self.page(F::IoBitmapA) && self.page(F::IoBitmapB),
                "I/O bitmaps",
            ),
            (!shadow || self.page(F::VirtualApicAddress), "virtual APIC"),
            (!shadow || threshold < 16, "TPR threshold"),
            (
                !shadow || second & 1 != 0 || threshold <= vtpr(),
                "TPR threshold above VTPR",
            ),
            (pin & 8 != 0 || pin & 0x20 == 0, "virtual NMIs"),
            (pin & 0x20 != 0 || primary & 1 << 22 == 0, "NMI window"),
            (
                second & 1 == 0 || self.page(F::ApicAccessAddress),
                "APIC access",
            ),
            (second & 0x20 == 0 || self.get(F::Vpid) != 0, "VPID 0"),
            (second & 2 == 0 || self.ept_pointer(), "EPT pointer"),
            (
                second & 2 != 0 || second & 0x80 == 0,
                "unrestricted without EPT",
            ),
            (
                second & 1 << 14 == 0 || self.page(F::VmreadBitmap) && self.page(F::VmwriteBitmap),
                "VMREAD and VMWRITE bitmaps",
            ),
            (pin & 0x40 != 0 || exit & 1 << 22 == 0, "saving no timer"),
            (
                area(F::ExitMsrStoreCount, F::ExitMsrStoreAddress)
                    && area(F::ExitMsrLoadCount, F::ExitMsrLoadAddress)
                    && area(F::EntryMsrLoadCount, F::EntryMsrLoadAddress),
                "MSR areas",
            ),
        ])
    }

    fn ept_pointer(&self) -> bool {
        let p = self.get(F::EptPointer);
        let kind = match p & 7 {
            0 => self.c.ept >> 8 & 1 != 0,
            6 => self.c.ept >> 14 & 1 != 0,
            _ => false,
        };
        let dirty = p & 0x40 == 0 || self.c.ept >> 21 & 1 != 0;
        kind && dirty && p >> 3 & 7 == 3 && p & 0xf80 == 0 && p >> self.c.width == 0
    }

    /// 27.2.1.3: the event to inject.
    fn injection(&self) -> Option<&'static str> {
        let info = self.get(F::EntryInterruptionInfo);
        if info >> 31 == 0 {
            return None;
        }
        let (vector, kind) = (info & 0xff, info >> 8 & 7);
        let real = self.secondary() & 0x80 != 0 && self.get(F::GuestCr0) & PE == 0;
        let code = kind == 3 && !real && matches!(vector, 8 | 10..=14 | 17);
        broken([
            (kind != 1, "type"),
            (kind != 2 || vector == 2, "NMI"),
            (kind != 3 || vector < 32, "exception"),
            (kind != 7 || vector == 0, "other event"),
            ((info >> 11 & 1 != 0) == code, "deliver error code"),
            (info & 0x7fff_f000 == 0, "reserved bits of the event"),
            (
                !code || self.get(F::EntryExceptionErrorCode) >> 16 == 0,
                "error code",
            ),
            (
                !(4..=6).contains(&kind) || self.get(F::EntryInstructionLength) <= 15,
                "instruction length",
            ),
        ])
    }

    /// 27.2.2 to 27.2.4.
    fn host(&self) -> Option<&'static str> {
        let exit = self.get(F::ExitControls);
        let efer = self.get(F::HostEfer);
        let rules = [
            (fixed(self.get(F::HostCr0), self.c.cr0, 0), "host CR0"),
            (fixed(self.get(F::HostCr4), self.c.cr4, 0), "host CR4"),
            (self.get(F::HostCr4) & PAE != 0, "host CR4.PAE"),
            (self.get(F::HostCr3) >> self.c.width == 0, "host CR3"),
            (exit & 1 << 9 != 0, "host address-space size"),
            (canonical(self.get(F::HostRip)), "host RIP"),
            (exit & 1 << 19 == 0 || pat(self.get(F::HostPat)), "host PAT"),
            (
                exit & 1 << 12 == 0 || self.get(F::HostPerfGlobalCtrl) & !COUNTERS == 0,
                "host PERF_GLOBAL_CTRL",
            ),
            (
                exit & 1 << 21 == 0 || efer & !EFER == 0 && efer & 0x500 == 0x500,
                "host EFER",
            ),
            (self.get(F::HostCsSelector) != 0, "host CS"),
            (self.get(F::HostTrSelector) != 0, "host TR"),
        ];
        let addresses = [
            F::HostFsBase,
            F::HostGsBase,
            F::HostTrBase,
            F::HostGdtrBase,
            F::HostIdtrBase,
            F::HostSysenterEsp,
            F::HostSysenterEip,
        ];
        let selectors = [
            F::HostEsSelector,
            F::HostCsSelector,
            F::HostSsSelector,
            F::HostDsSelector,
            F::HostFsSelector,
            F::HostGsSelector,
            F::HostTrSelector,
        ];
        let addresses = addresses.map(|f| (canonical(self.get(f)), "a host address"));
        let selectors = selectors.map(|f| (self.get(f) & 7 == 0, "a host selector"));
        broken(rules.into_iter().chain(addresses).chain(selectors))
    }

    /// Names what keeps the guest from being entered (27.3.1).
    #[must_use]
    pub fn failure(&self) -> Option<&'static str> {
        self.registers()
            .or_else(|| self.segments())
            .or_else(|| self.non_register())
            .or_else(|| self.memory())
    }

    fn long(&self) -> bool {
        self.get(F::EntryControls) & 1 << 9 != 0
    }

    /// 27.3.1.1, 27.3.1.3 and 27.3.1.4.
    fn registers(&self) -> Option<&'static str> {
        let (entry, long) = (self.get(F::EntryControls), self.long());
        let (cr0, cr4) = (self.get(F::GuestCr0), self.get(F::GuestCr4));
        let (flags, rip) = (self.get(F::GuestRflags), self.get(F::GuestRip));
        let free = if self.secondary() & 0x80 != 0 {
            PE | PG
        } else {
            0
        };
        let bits64 = long && self.get(F::GuestCsAccess) & 1 << 13 != 0;
        let efer = self.get(F::GuestEfer);
        let (lma, lme) = (efer >> 10 & 1 != 0, efer >> 8 & 1 != 0);
        let debug = entry & 4 != 0;
        let info = self.get(F::EntryInterruptionInfo);
        let interrupt = info >> 31 != 0 && info >> 8 & 7 == 0;
        let rules = [
            (fixed(cr0, self.c.cr0, free), "CR0"),
            (cr0 & PG == 0 || cr0 & PE != 0, "CR0.PG without PE"),
            (fixed(cr4, self.c.cr4, 0), "CR4"),
            (
                !long || cr0 & PG != 0 && cr4 & PAE != 0,
                "IA-32e without paging",
            ),
            (long || cr4 & PCIDE == 0, "PCIDE"),
            (self.get(F::GuestCr3) >> self.c.width == 0, "CR3"),
            (!debug || self.get(F::GuestDr7) >> 32 == 0, "DR7"),
            (
                !debug || self.get(F::GuestDebugctl) & !DEBUGCTL == 0,
                "IA32_DEBUGCTL",
            ),
            (entry & 1 << 14 == 0 || pat(self.get(F::GuestPat)), "PAT"),
            (
                entry & 1 << 13 == 0 || self.get(F::GuestPerfGlobalCtrl) & !COUNTERS == 0,
                "PERF_GLOBAL_CTRL",
            ),
            (
                entry & 1 << 15 == 0
                    || efer & !EFER == 0 && lma == long && (cr0 & PG == 0 || lma == lme),
                "EFER",
            ),
            (self.get(F::GuestGdtrLimit) >> 16 == 0, "GDTR limit"),
            (self.get(F::GuestIdtrLimit) >> 16 == 0, "IDTR limit"),
            (flags & 0xffff_ffff_ffc0_802a == 2, "RFLAGS"),
            (flags & VM == 0 || !long && cr0 & PE != 0, "RFLAGS.VM"),
            (!interrupt || flags & IF != 0, "an interrupt without IF"),
            (
                if bits64 {
                    canonical(rip)
                } else {
                    rip >> 32 == 0
                },
                "RIP",
            ),
        ];
        let addresses = [
            F::GuestSysenterEsp,
            F::GuestSysenterEip,
            F::GuestGdtrBase,
            F::GuestIdtrBase,
        ];
        let addresses = addresses.map(|f| (canonical(self.get(f)), "an address"));
        broken(rules.into_iter().chain(addresses))
    }

    /// 27.3.1.2.
    fn segments(&self) -> Option<&'static str> {
        const CS: usize = 1;
        const SS: usize = 2;
        const LDTR: usize = 6;
        const TR: usize = 7;
        let long = self.long();
        let unrestricted = self.secondary() & 0x80 != 0;
        let v86 = self.get(F::GuestRflags) & VM != 0;
        let s: [SegmentRegister; 8] = std::array::from_fn(|i| self.v.guest_segment(i));
        let usable = |i: usize| s[i].access.0 & UNUSABLE == 0;
        // With the S bit.
        let kind = |i: usize| s[i].access.0 & 0x1f;
        let dpl = |i: usize| s[i].access.0 >> 5 & 3;
        let rpl = |i: usize| u32::from(s[i].selector.0 & 3);
        let table = |i: usize| s[i].selector.0 & 4 == 0 && canonical(s[i].base);
        let tr = usable(TR) && (kind(TR) == 11 || kind(TR) == 3 && !long) && table(TR);
        let ldtr = !usable(LDTR) || kind(LDTR) == 2 && table(LDTR);
        let fits = |r: &SegmentRegister| {
            let limit = if r.access.0 & 1 << 15 != 0 {
                r.limit & 0xfff == 0xfff
            } else {
                r.limit >> 20 == 0
            };
            limit && r.access.0 & 0x80 != 0 && r.access.0 & 0xfffe_0f00 == 0
        };
        let all = [
            (tr && fits(&s[TR]), "TR"),
            (ldtr && (!usable(LDTR) || fits(&s[LDTR])), "LDTR"),
            (
                canonical(s[4].base) && canonical(s[5].base),
                "FS and GS bases",
            ),
        ];
        if v86 {
            let v86 = |r: &SegmentRegister| {
                r.base == u64::from(r.selector.0) << 4 && r.limit == 0xffff && r.access.0 == 0xf3
            };
            return broken(all).or((!s[..6].iter().all(v86)).then_some("virtual-8086 segments"));
        }
        let code = match kind(CS) {
            0x13 => unrestricted && dpl(CS) == 0 && dpl(SS) == 0,
            0x19 | 0x1b => dpl(CS) == dpl(SS),
            0x1d | 0x1f => dpl(CS) <= dpl(SS),
            _ => false,
        };
        let real = self.get(F::GuestCr0) & PE == 0;
        let more = [
            (code && fits(&s[CS]) && s[CS].base >> 32 == 0, "CS"),
            (!long || s[CS].access.0 & 0x6000 != 0x6000, "CS.L with D"),
            (!usable(SS) || matches!(kind(SS), 0x13 | 0x17), "SS"),
            (unrestricted || rpl(SS) == rpl(CS), "RPL of SS and CS"),
            (unrestricted || rpl(SS) == dpl(SS), "RPL and DPL of SS"),
            (!real || dpl(SS) == 0, "DPL of SS in real mode"),
        ];
        let others = [0, SS, 3, 4, 5].map(|i| {
            let short = i > 3 || s[i].base >> 32 == 0;
            (!usable(i) || fits(&s[i]) && short, "a segment")
        });
        let data = [0, 3, 4, 5].map(|i| {
            let readable = kind(i) & 0x11 == 0x11 && kind(i) & 0xa != 8;
            let privileged = unrestricted || kind(i) & 0xc == 0xc || dpl(i) >= rpl(i);
            (!usable(i) || readable && privileged, "a data segment")
        });
        broken(all.into_iter().chain(more).chain(others).chain(data))
    }

    /// 27.3.1.5, but for the link pointer.
    fn non_register(&self) -> Option<&'static str> {
        let (state, blocking) = (
            self.get(F::GuestActivity),
            self.get(F::GuestInterruptibility),
        );
        let (sti, mov_ss, nmi) = (blocking & 1 != 0, blocking & 2 != 0, blocking & 8 != 0);
        let flags = self.get(F::GuestRflags);
        let pending = self.get(F::GuestPendingDebug);
        let info = self.get(F::EntryInterruptionInfo);
        let event = (info >> 31 != 0).then_some((info >> 8 & 7, info & 0xff));
        let virtual_nmis = self.get(F::PinControls) & 0x20 != 0;
        let fits = match (state, event) {
            (_, None) | (0, _) => true,
            (1, Some((kind, vector))) => {
                matches!(kind, 0 | 2 | 7) || kind == 3 && matches!(vector, 1 | 18)
            }
            (2, Some((kind, vector))) => kind == 2 || kind == 3 && vector == 18,
            _ => false,
        };
        let open = match event {
            Some((0, _)) => !sti && !mov_ss,
            Some((2, _)) => !(mov_ss || virtual_nmis && nmi),
            _ => true,
        };
        let steps = flags & TF != 0 && self.get(F::GuestDebugctl) & 2 == 0;
        let held = sti || mov_ss || state == 1;
        let dpl = self.get(F::GuestSsAccess) >> 5 & 3;
        broken([
            (state <= 3, "activity"),
            (state != 1 || dpl == 0, "HLT outside of CPL 0"),
            (state == 0 || !sti && !mov_ss, "a shadow while inactive"),
            (fits, "an event for another activity state"),
            (blocking & !0xb == 0, "interruptibility"),
            (!(sti && mov_ss), "both shadows"),
            (!sti || flags & IF != 0, "STI without IF"),
            (open, "an event that is blocked"),
            (pending & !0x500f == 0, "pending debug exceptions"),
            (!held || (pending >> 14 & 1 != 0) == steps, "pending BS"),
        ])
    }

    /// The link pointer and 27.3.1.6.
    fn memory(&self) -> Option<&'static str> {
        let link = self.get(F::VmcsLinkPointer);
        let shadowing = self.secondary() & 1 << 14 != 0;
        let expected = region::REVISION | u32::from(shadowing) << 31;
        let linked = link == u64::MAX
            || self.page(F::VmcsLinkPointer)
                && self.read(link) as u32 == expected
                && link != self.at;
        let pae = self.get(F::GuestCr0) & PG != 0 && self.get(F::GuestCr4) & PAE != 0;
        let pae = pae && !self.long();
        let table = self.get(F::GuestCr3) & 0xffff_ffe0;
        let reserved = 0x1e6 | u64::MAX << self.c.width;
        let ept = self.secondary() & 2 != 0;
        let entries = (0..4).map(|i| {
            if ept {
                self.get(F::GUEST_PDPTES[i])
            } else {
                self.read(table + 8 * i as u64)
            }
        });
        let bad = |entry: u64| entry & 1 != 0 && entry & reserved != 0;
        broken([
            (linked, "link pointer"),
            (!pae || !entries.into_iter().any(bad), "PDPTEs"),
        ])
    }
}
