//! From a VMCS that passes every check, each test changes one thing the manual forbids, and expects the
//! failure of that section.

use guestmem::{Gpa, GuestRam, RamOffset};
use x86defs::vmx::VmcsField as F;
use x86defs::vmx::control::{entry, exit, pin, primary, secondary};

use super::{Checked, Subject, controls, guest, host, valid_pat};
use crate::vmx::caps::{Caps, tests::features};
use crate::vmx::vmcs::Vmcs;
use crate::vmx::vmcs::region::{REVISION, SHADOW_INDICATOR};

const CURRENT: Gpa = Gpa(0x1000);
const PAGE: u64 = 0x3000;
const LINKED: u64 = 0x4000;
const SHADOW: u64 = 0x5000;
const PDPT: u64 = 0x6000;
const NONCANONICAL: u64 = 0x8000_0000_0000;

struct Rig {
    caps: Caps,
    ram: GuestRam,
    vmcs: Vmcs,
    host_lma: bool,
}

/// A 64-bit host and a 64-bit guest with EPT, VPID and unrestricted guest.
fn rig() -> Rig {
    let ram = GuestRam::new(&[(Gpa(0), 0x10000)]).unwrap();
    ram.store::<u32>(RamOffset(CURRENT.0), REVISION);
    ram.store::<u32>(RamOffset(LINKED), REVISION);
    ram.store::<u32>(RamOffset(SHADOW), REVISION | SHADOW_INDICATOR);
    let mut vmcs = Vmcs::default();
    for (f, v) in [
        (F::PinControls, 0x16),
        (F::PrimaryControls, 0x8401_e172),
        (
            F::SecondaryControls,
            u64::from(
                secondary::ENABLE_EPT | secondary::ENABLE_VPID | secondary::UNRESTRICTED_GUEST,
            ),
        ),
        (
            F::ExitControls,
            0x3_6dff | u64::from(exit::HOST_ADDRESS_SPACE_SIZE),
        ),
        (
            F::EntryControls,
            0x11ff | u64::from(entry::IA32E_MODE_GUEST),
        ),
        (F::Vpid, 1),
        (F::EptPointer, 0x7000 | 3 << 3 | 6),
        (F::VmcsLinkPointer, u64::MAX),
        (F::HostCr0, 0x8000_0033),
        (F::HostCr4, 0x2020),
        (F::HostCsSelector, 8),
        (F::HostTrSelector, 0x40),
        (F::HostRip, 0xffff_8000_0000_1000),
        (F::GuestCr0, 0x8000_0031),
        (F::GuestCr4, 0x2020),
        (F::GuestRflags, 2),
        (F::GuestRip, 0xffff_8000_0000_2000),
        (F::GuestCsSelector, 0x10),
        (F::GuestCsLimit, 0xffff_ffff),
        (F::GuestCsAccess, 0xa09b),
        (F::GuestTrSelector, 0x40),
        (F::GuestTrLimit, 0x67),
        (F::GuestTrAccess, 0x8b),
        (F::GuestLdtrAccess, 0x1_0000),
    ] {
        vmcs.set(f, v);
    }
    for i in [0, 2, 3, 4, 5] {
        vmcs.set(F::GUEST_SELECTORS[i], 0x18);
        vmcs.set(F::GUEST_LIMITS[i], 0xffff_ffff);
        vmcs.set(F::GUEST_ACCESS[i], 0xc093);
    }
    Rig {
        caps: Caps::new(features()),
        ram,
        vmcs,
        host_lma: true,
    }
}

impl Rig {
    fn subject(&self) -> Subject<'_> {
        Subject {
            vmcs: &self.vmcs,
            caps: &self.caps,
            ram: &self.ram,
            current: CURRENT,
            host_lma: self.host_lma,
        }
    }

    fn controls(&self) -> Checked {
        controls::check(&self.subject()).and_then(|()| controls::check_variable(&self.subject()))
    }

    fn with(mut self, values: &[(F, u64)]) -> Self {
        for (f, v) in values {
            self.vmcs.set(*f, *v);
        }
        self
    }

    fn or(mut self, f: F, bits: u32) -> Self {
        self.vmcs.set(f, self.vmcs.get(f) | u64::from(bits));
        self
    }

    fn and_not(mut self, f: F, bits: u64) -> Self {
        self.vmcs.set(f, self.vmcs.get(f) & !bits);
        self
    }
}

#[track_caller]
fn fails(outcome: Checked, section: &str, what: &str) {
    match outcome {
        Ok(()) => panic!("{section} accepts {what}"),
        Err(e) => assert_eq!(e.section, section, "{what}: {}", e.rule),
    }
}

#[test]
fn the_baseline_passes() {
    let r = rig();
    assert_eq!(r.controls(), Ok(()));
    assert_eq!(host::check(&r.subject()), Ok(()));
    assert_eq!(guest::check(&r.subject()), Ok(()));
}

#[test]
fn execution_controls() {
    const PRIMARY: u64 = 0x8401_e172;
    let beyond = 1u64 << 40;
    let cases: &[(&str, &[(F, u64)])] = &[
        ("pin bit 1 clear", &[(F::PinControls, 0x14)]),
        ("pin bit 8", &[(F::PinControls, 0x116)]),
        (
            "primary bit 8 clear",
            &[(F::PrimaryControls, PRIMARY & !(1 << 8))],
        ),
        ("primary bit 17", &[(F::PrimaryControls, PRIMARY | 1 << 17)]),
        ("secondary bit 31", &[(F::SecondaryControls, 1 << 31)]),
        ("5 CR3 targets", &[(F::Cr3TargetCount, 5)]),
        (
            "I/O bitmap A unaligned",
            &[(F::PrimaryControls, PRIMARY | 1 << 25), (F::IoBitmapA, 1)],
        ),
        (
            "I/O bitmap B beyond",
            &[
                (F::PrimaryControls, PRIMARY | 1 << 25),
                (F::IoBitmapB, beyond),
            ],
        ),
        (
            "MSR bitmaps unaligned",
            &[
                (F::PrimaryControls, PRIMARY | 1 << 28),
                (F::MsrBitmaps, 0x800),
            ],
        ),
        (
            "virtual-APIC unaligned",
            &[
                (F::PrimaryControls, PRIMARY | 1 << 21),
                (F::VirtualApicAddress, 8),
            ],
        ),
        (
            "TPR threshold bits",
            &[
                (F::PrimaryControls, PRIMARY | 1 << 21),
                (F::TprThreshold, 0x10),
            ],
        ),
        (
            "virtual NMIs alone",
            &[(F::PinControls, u64::from(0x16 | pin::VIRTUAL_NMIS))],
        ),
        (
            "NMI window alone",
            &[(
                F::PrimaryControls,
                PRIMARY | u64::from(primary::NMI_WINDOW_EXITING),
            )],
        ),
        (
            "APIC-access unaligned",
            &[(F::SecondaryControls, 1), (F::ApicAccessAddress, 4)],
        ),
        ("VPID 0", &[(F::Vpid, 0)]),
        (
            "EPTP memory type 1",
            &[(F::EptPointer, 0x7000 | 3 << 3 | 1)],
        ),
        ("EPTP walk of 5", &[(F::EptPointer, 0x7000 | 4 << 3 | 6)]),
        (
            "EPTP bit 7",
            &[(F::EptPointer, 0x7000 | 3 << 3 | 6 | 1 << 7)],
        ),
        ("EPTP beyond", &[(F::EptPointer, beyond | 3 << 3 | 6)]),
        (
            "unrestricted without EPT",
            &[(F::SecondaryControls, 1 << 7)],
        ),
        (
            "VMREAD bitmap unaligned",
            &[
                (F::SecondaryControls, u64::from(secondary::VMCS_SHADOWING)),
                (F::VmreadBitmap, 1),
            ],
        ),
        (
            "VMWRITE bitmap beyond",
            &[
                (F::SecondaryControls, u64::from(secondary::VMCS_SHADOWING)),
                (F::VmwriteBitmap, beyond),
            ],
        ),
    ];
    for (what, values) in cases {
        fails(rig().with(values).controls(), "27.2.1.1", what);
    }
    // Secondary controls do not count while they are not activated (25.6.2).
    let inactive = rig().with(&[
        (F::PrimaryControls, PRIMARY & !(1 << 31)),
        (F::SecondaryControls, 1 << 31),
    ]);
    assert_eq!(inactive.controls(), Ok(()));
    let ad = rig().with(&[(F::EptPointer, 0x7000 | 3 << 3 | 1 << 6)]);
    assert_eq!(ad.controls(), Ok(()), "A/D, uncacheable");
}

#[test]
fn tpr_threshold_against_vtpr() {
    let tpr = |vtpr: u8, threshold: u64| {
        let r = rig()
            .or(F::PrimaryControls, primary::TPR_SHADOW)
            .with(&[(F::VirtualApicAddress, PAGE), (F::TprThreshold, threshold)]);
        r.ram.store::<u8>(RamOffset(PAGE + 0x80), vtpr);
        r
    };
    assert_eq!(tpr(0x50, 5).controls(), Ok(()));
    fails(
        tpr(0x4f, 5).controls(),
        "27.2.1.1",
        "threshold 5 over VTPR 4",
    );
    let apic = tpr(0, 5).or(F::SecondaryControls, secondary::VIRTUALIZE_APIC_ACCESSES);
    assert_eq!(
        apic.controls(),
        Ok(()),
        "not checked with virtualized APIC accesses"
    );
}

#[test]
fn exit_controls() {
    let base = 0x3_6fff;
    let cases: &[(&str, &[(F, u64)])] = &[
        ("bit 16 clear", &[(F::ExitControls, base & !(1 << 16))]),
        ("bit 30", &[(F::ExitControls, base | 1 << 30)]),
        (
            "timer saved without timer",
            &[(F::ExitControls, base | 1 << 22)],
        ),
        (
            "store area unaligned",
            &[(F::ExitMsrStoreCount, 1), (F::ExitMsrStoreAddress, 8)],
        ),
        (
            "load area beyond",
            &[(F::ExitMsrLoadCount, 1), (F::ExitMsrLoadAddress, 1 << 40)],
        ),
        (
            "last byte beyond",
            &[
                (F::ExitMsrLoadCount, 2),
                (F::ExitMsrLoadAddress, (1 << 40) - 16),
            ],
        ),
    ];
    for (what, values) in cases {
        fails(rig().with(values).controls(), "27.2.1.2", what);
    }
    let unused = rig().with(&[(F::ExitMsrLoadAddress, u64::MAX)]);
    assert_eq!(
        unused.controls(),
        Ok(()),
        "an address without entries is not checked"
    );
    let last = rig().with(&[
        (F::ExitMsrStoreCount, 1),
        (F::ExitMsrStoreAddress, (1 << 40) - 16),
    ]);
    assert_eq!(last.controls(), Ok(()));
}

#[test]
fn entry_controls_and_injection() {
    let base = 0x13ff;
    let valid = 1 << 31;
    let inject = |info: u64| [(F::EntryInterruptionInfo, valid | info)];
    let cases: &[(&str, &[(F, u64)])] = &[
        ("bit 12 clear", &[(F::EntryControls, base & !(1 << 12))]),
        ("entry to SMM", &[(F::EntryControls, base | 1 << 10)]),
        ("dual monitor", &[(F::EntryControls, base | 1 << 11)]),
        (
            "load area beyond",
            &[
                (F::EntryMsrLoadCount, u64::from(u32::MAX)),
                (F::EntryMsrLoadAddress, (1 << 40) - 32),
            ],
        ),
        ("type 1", &inject(1 << 8 | 32)),
        ("NMI with vector 3", &inject(2 << 8 | 3)),
        ("exception 32", &inject(3 << 8 | 32)),
        ("other event 1", &inject(7 << 8 | 1)),
        ("#UD with error code", &inject(3 << 8 | 1 << 11 | 6)),
        ("#GP without error code", &inject(3 << 8 | 13)),
        ("interrupt with error code", &inject(1 << 11 | 13)),
        ("bit 12", &inject(1 << 12 | 32)),
        (
            "error code bit 16",
            &[
                (F::EntryInterruptionInfo, valid | 3 << 8 | 1 << 11 | 14),
                (F::EntryExceptionErrorCode, 1 << 16),
            ],
        ),
        (
            "length 16",
            &[
                (F::EntryInterruptionInfo, valid | 4 << 8 | 0x80),
                (F::EntryInstructionLength, 16),
            ],
        ),
        // Without CR0.PE in an unrestricted guest nothing delivers an error code.
        (
            "#GP with error code in real mode",
            &[
                (F::EntryInterruptionInfo, valid | 3 << 8 | 1 << 11 | 13),
                (F::GuestCr0, 0x20),
            ],
        ),
    ];
    for (what, values) in cases {
        fails(rig().with(values).controls(), "27.2.1.3", what);
    }
    for (what, info) in [
        ("interrupt", 0x80),
        ("NMI", 2 << 8 | 2),
        ("#PF", 3 << 8 | 1 << 11 | 14),
        ("#UD", 3 << 8 | 6),
        ("INT n, length 0 (MISC bit 30)", 4 << 8 | 0x80),
        ("MTF", 7 << 8),
    ] {
        assert_eq!(rig().with(&inject(info)).controls(), Ok(()), "{what}");
    }
    let not_valid = rig().with(&[(F::EntryInterruptionInfo, 0x7fff_ffff)]);
    assert_eq!(not_valid.controls(), Ok(()), "not valid: not checked");
}

#[test]
fn host_state() {
    type Case<'a> = (&'a str, &'a str, &'a [(F, u64)]);
    let cases: &[Case<'_>] = &[
        ("27.2.2", "CR0.NE clear", &[(F::HostCr0, 0x8000_0001)]),
        ("27.2.2", "CR0.PG clear", &[(F::HostCr0, 0x21)]),
        ("27.2.2", "CR4.VMXE clear", &[(F::HostCr4, 0x20)]),
        ("27.2.2", "CR4 bit 31", &[(F::HostCr4, 0x8000_2020)]),
        ("27.2.2", "CR3 beyond", &[(F::HostCr3, 1 << 40)]),
        (
            "27.2.2",
            "SYSENTER_ESP",
            &[(F::HostSysenterEsp, NONCANONICAL)],
        ),
        (
            "27.2.2",
            "SYSENTER_EIP",
            &[(F::HostSysenterEip, NONCANONICAL)],
        ),
        (
            "27.2.2",
            "PAT type 2",
            &[(F::ExitControls, 0x3_6fff | 1 << 19), (F::HostPat, 2)],
        ),
        (
            "27.2.2",
            "EFER bit 1",
            &[(F::ExitControls, 0x3_6fff | 1 << 21), (F::HostEfer, 0x502)],
        ),
        (
            "27.2.2",
            "EFER.LMA clear",
            &[(F::ExitControls, 0x3_6fff | 1 << 21), (F::HostEfer, 0x100)],
        ),
        (
            "27.2.2",
            "PERF_GLOBAL_CTRL bit 4",
            &[
                (F::ExitControls, 0x3_6fff | 1 << 12),
                (F::HostPerfGlobalCtrl, 0x10),
            ],
        ),
        (
            "27.2.2",
            "PERF_GLOBAL_CTRL bit 35",
            &[
                (F::ExitControls, 0x3_6fff | 1 << 12),
                (F::HostPerfGlobalCtrl, 1 << 35),
            ],
        ),
        ("27.2.3", "CS RPL", &[(F::HostCsSelector, 0xb)]),
        ("27.2.3", "GS TI", &[(F::HostGsSelector, 4)]),
        ("27.2.3", "null CS", &[(F::HostCsSelector, 0)]),
        ("27.2.3", "null TR", &[(F::HostTrSelector, 0)]),
        ("27.2.3", "FS base", &[(F::HostFsBase, NONCANONICAL)]),
        ("27.2.3", "IDTR base", &[(F::HostIdtrBase, NONCANONICAL)]),
        ("27.2.3", "TR base", &[(F::HostTrBase, NONCANONICAL)]),
        (
            "27.2.4",
            "32-bit host from IA-32e mode",
            &[
                (F::ExitControls, 0x3_6dff),
                (F::HostSsSelector, 0x10),
                (F::HostRip, 0),
            ],
        ),
        ("27.2.4", "CR4.PAE clear", &[(F::HostCr4, 0x2000)]),
        ("27.2.4", "RIP", &[(F::HostRip, NONCANONICAL)]),
    ];
    for (section, what, values) in cases {
        let r = rig().with(values);
        fails(host::check(&r.subject()), section, what);
    }
    let mut narrow = rig().with(&[
        (F::ExitControls, 0x3_6dff),
        (F::EntryControls, 0x11ff),
        (F::HostSsSelector, 0x10),
        (F::HostRip, 0x1000),
    ]);
    narrow.host_lma = false;
    assert_eq!(host::check(&narrow.subject()), Ok(()), "a 32-bit host");
    for (section, what, f, v) in [
        ("27.2.3", "null SS", F::HostSsSelector, 0),
        ("27.2.4", "RIP of 33 bits", F::HostRip, 1 << 32),
        ("27.2.4", "CR4.PCIDE", F::HostCr4, 0x2_2020),
        ("27.2.4", "64-bit guest", F::EntryControls, 0x13ff),
        ("27.2.4", "64-bit host", F::ExitControls, 0x3_6fff),
    ] {
        let old = narrow.vmcs.get(f);
        narrow.vmcs.set(f, v);
        fails(host::check(&narrow.subject()), section, what);
        narrow.vmcs.set(f, old);
    }
}

/// Expects reason 33 with the default qualification.
#[track_caller]
fn guest_fails(r: &Rig, section: &str, what: &str) {
    let outcome = guest::check(&r.subject());
    fails(outcome, section, what);
    assert_eq!(outcome.unwrap_err().qualification, 0, "{what}");
}

#[test]
fn guest_registers() {
    const E: u64 = 0x13ff;
    let cases: &[(&str, &[(F, u64)])] = &[
        ("CR0.NE clear", &[(F::GuestCr0, 0x8000_0011)]),
        ("CR0 bit 32", &[(F::GuestCr0, 0x1_8000_0031)]),
        ("PG without PE", &[(F::GuestCr0, 0x8000_0020)]),
        ("CR4.VMXE clear", &[(F::GuestCr4, 0x20)]),
        ("DEBUGCTL bit 5", &[(F::GuestDebugctl, 1 << 5)]),
        ("64-bit guest without PG", &[(F::GuestCr0, 0x21)]),
        ("64-bit guest without PAE", &[(F::GuestCr4, 0x2000)]),
        ("CR3 beyond", &[(F::GuestCr3, 1 << 40)]),
        ("DR7 bit 32", &[(F::GuestDr7, 1 << 32)]),
        ("SYSENTER_ESP", &[(F::GuestSysenterEsp, NONCANONICAL)]),
        ("SYSENTER_EIP", &[(F::GuestSysenterEip, NONCANONICAL)]),
        (
            "PAT type 3",
            &[(F::EntryControls, E | 1 << 14), (F::GuestPat, 3 << 56)],
        ),
        (
            "PERF_GLOBAL_CTRL bit 4",
            &[
                (F::EntryControls, E | 1 << 13),
                (F::GuestPerfGlobalCtrl, 0x10),
            ],
        ),
        (
            "EFER bit 2",
            &[(F::EntryControls, E | 1 << 15), (F::GuestEfer, 0x504)],
        ),
        (
            "EFER.LMA clear",
            &[(F::EntryControls, E | 1 << 15), (F::GuestEfer, 0x100)],
        ),
        (
            "EFER.LME clear",
            &[(F::EntryControls, E | 1 << 15), (F::GuestEfer, 0x400)],
        ),
    ];
    for (what, values) in cases {
        guest_fails(&rig().with(values), "27.3.1.1", what);
    }
    let lax = rig().with(&[
        (F::GuestDr7, 1 << 32),
        (F::GuestDebugctl, 1 << 5),
        (F::EntryControls, 0x13fb),
    ]);
    assert_eq!(
        guest::check(&lax.subject()),
        Ok(()),
        "not loaded: not checked"
    );
    guest_fails(
        &real_mode().with(&[(F::GuestCr4, 0x2_2000)]),
        "27.3.1.1",
        "PCIDE outside IA-32e mode",
    );
    let restricted = real_mode().and_not(F::SecondaryControls, 1 << 7);
    guest_fails(
        &restricted,
        "27.3.1.1",
        "real mode without unrestricted guest",
    );
}

/// An unrestricted guest in real-address mode.
fn real_mode() -> Rig {
    let mut r = rig().with(&[
        (F::EntryControls, 0x11ff),
        (F::GuestCr0, 0x20),
        (F::GuestCr4, 0x2000),
        (F::GuestCsAccess, 0x93),
        (F::GuestRip, 0x7c00),
    ]);
    for i in 0..6 {
        r.vmcs.set(F::GUEST_SELECTORS[i], 0x1000);
        r.vmcs.set(F::GUEST_BASES[i], 0x10000);
        r.vmcs.set(F::GUEST_LIMITS[i], 0xffff);
        r.vmcs.set(F::GUEST_ACCESS[i], 0x93);
    }
    r
}

/// A guest in virtual-8086 mode.
fn v8086() -> Rig {
    let mut r = real_mode().with(&[(F::GuestCr0, 0x8000_0031), (F::GuestRflags, 1 << 17 | 2)]);
    for i in 0..6 {
        r.vmcs.set(F::GUEST_ACCESS[i], 0xf3);
    }
    r
}

#[test]
fn other_modes_pass() {
    assert_eq!(guest::check(&real_mode().subject()), Ok(()));
    assert_eq!(guest::check(&v8086().subject()), Ok(()));
}

#[test]
fn guest_segments() {
    let cases: &[(&str, &[(F, u64)])] = &[
        ("TR TI", &[(F::GuestTrSelector, 0x44)]),
        (
            "LDTR TI",
            &[(F::GuestLdtrAccess, 0x82), (F::GuestLdtrSelector, 4)],
        ),
        ("TR base", &[(F::GuestTrBase, NONCANONICAL)]),
        ("FS base", &[(F::GuestFsBase, NONCANONICAL)]),
        (
            "LDTR base",
            &[(F::GuestLdtrAccess, 0x82), (F::GuestLdtrBase, NONCANONICAL)],
        ),
        ("CS base", &[(F::GuestCsBase, 1 << 32)]),
        ("DS base", &[(F::GuestDsBase, 1 << 32)]),
        ("CS type 10", &[(F::GuestCsAccess, 0xa09a)]),
        ("CS S", &[(F::GuestCsAccess, 0xa08b)]),
        ("CS DPL 3 over SS 0", &[(F::GuestCsAccess, 0xa0fb)]),
        ("conforming CS DPL 3", &[(F::GuestCsAccess, 0xa0ff)]),
        ("CS not present", &[(F::GuestCsAccess, 0xa01b)]),
        ("CS bit 8", &[(F::GuestCsAccess, 0xa19b)]),
        ("CS L and D", &[(F::GuestCsAccess, 0xe09b)]),
        ("CS G clear, limit 4 GByte", &[(F::GuestCsAccess, 0x209b)]),
        ("CS G set, limit FFFE", &[(F::GuestCsLimit, 0xffff_fffe)]),
        ("CS bit 17", &[(F::GuestCsAccess, 0x2_a09b)]),
        ("SS type 1", &[(F::GuestSsAccess, 0xc091)]),
        ("SS S", &[(F::GuestSsAccess, 0xc083)]),
        ("SS not present", &[(F::GuestSsAccess, 0xc013)]),
        ("SS bit 11", &[(F::GuestSsAccess, 0xc893)]),
        ("DS not accessed", &[(F::GuestDsAccess, 0xc092)]),
        ("ES execute-only", &[(F::GuestEsAccess, 0xc099)]),
        ("FS S", &[(F::GuestFsAccess, 0xc083)]),
        ("GS not present", &[(F::GuestGsAccess, 0xc013)]),
        ("DS G", &[(F::GuestDsLimit, 0xf_0fff_u64 << 12)]),
        ("TR type 9", &[(F::GuestTrAccess, 0x89)]),
        ("TR type 3 of a 64-bit guest", &[(F::GuestTrAccess, 0x83)]),
        ("TR S", &[(F::GuestTrAccess, 0x9b)]),
        ("TR not present", &[(F::GuestTrAccess, 0x0b)]),
        ("TR G", &[(F::GuestTrAccess, 0x808b)]),
        ("TR unusable", &[(F::GuestTrAccess, 0x1_008b)]),
        ("LDTR type", &[(F::GuestLdtrAccess, 0x83)]),
        ("LDTR S", &[(F::GuestLdtrAccess, 0x92)]),
        ("LDTR not present", &[(F::GuestLdtrAccess, 0x02)]),
        (
            "LDTR limit",
            &[(F::GuestLdtrAccess, 0x82), (F::GuestLdtrLimit, 0x10_0000)],
        ),
    ];
    for (what, values) in cases {
        guest_fails(&rig().with(values), "27.3.1.2", what);
    }
    for (what, values) in [
        ("DS unusable is not checked", (F::GuestDsAccess, 0x1_ffff)),
        ("LDTR unusable is not checked", (F::GuestLdtrSelector, 4)),
    ] {
        assert_eq!(
            guest::check(&rig().with(&[values]).subject()),
            Ok(()),
            "{what}"
        );
    }
}

#[test]
fn guest_segments_depend_on_unrestricted_guest() {
    let restricted = || rig().and_not(F::SecondaryControls, 1 << 7);
    assert_eq!(guest::check(&restricted().subject()), Ok(()));
    for (what, values) in [
        ("SS.RPL", (F::GuestSsSelector, 0x1b)),
        ("CS type 3", (F::GuestCsAccess, 0xa093)),
        ("DS.DPL below RPL", (F::GuestDsSelector, 0x1b)),
    ] {
        guest_fails(&restricted().with(&[values]), "27.3.1.2", what);
    }
    let lax = rig().with(&[(F::GuestSsSelector, 0x1b), (F::GuestDsSelector, 0x1b)]);
    assert_eq!(guest::check(&lax.subject()), Ok(()));
    guest_fails(
        &real_mode().with(&[(F::GuestSsAccess, 0xf3)]),
        "27.3.1.2",
        "SS.DPL in real mode",
    );
    guest_fails(
        &real_mode().with(&[(F::GuestCsAccess, 0xf3)]),
        "27.3.1.2",
        "CS.DPL with type 3",
    );
}

#[test]
fn virtual_8086_segments() {
    for (what, values) in [
        ("base", (F::GuestDsBase, 0)),
        ("limit", (F::GuestEsLimit, 0xfffff)),
        ("access rights", (F::GuestGsAccess, 0x93)),
    ] {
        guest_fails(&v8086().with(&[values]), "27.3.1.2", what);
    }
}

#[test]
fn descriptor_tables_and_rip() {
    for (section, what, values) in [
        ("27.3.1.3", "GDTR base", (F::GuestGdtrBase, NONCANONICAL)),
        ("27.3.1.3", "IDTR base", (F::GuestIdtrBase, NONCANONICAL)),
        ("27.3.1.3", "IDTR limit", (F::GuestIdtrLimit, 0x1_0000)),
        ("27.3.1.4", "RIP", (F::GuestRip, NONCANONICAL)),
        ("27.3.1.4", "RFLAGS bit 1", (F::GuestRflags, 0)),
        ("27.3.1.4", "RFLAGS bit 3", (F::GuestRflags, 0xa)),
        ("27.3.1.4", "RFLAGS bit 22", (F::GuestRflags, 0x40_0002)),
    ] {
        guest_fails(&rig().with(&[values]), section, what);
    }
    let compat = rig().with(&[(F::GuestCsAccess, 0xc09b)]);
    guest_fails(&compat, "27.3.1.4", "RIP bits 63:32 in compatibility mode");
    let interrupt = rig().with(&[(F::EntryInterruptionInfo, 1 << 31 | 0x40)]);
    guest_fails(&interrupt, "27.3.1.4", "interrupt with IF 0");
    let vm = v8086().with(&[(F::GuestCr0, 0x20)]);
    let outcome = guest::check(&vm.subject());
    assert!(outcome.is_err(), "RFLAGS.VM in real mode");
}

#[test]
fn activity_interruptibility_and_pending_debug() {
    const IF: u64 = 0x202;
    const TF: u64 = 0x102;
    let nmi = (F::EntryInterruptionInfo, 1 << 31 | 2 << 8 | 2);
    let bad: &[(&str, &[(F, u64)])] = &[
        ("activity 4", &[(F::GuestActivity, 4)]),
        (
            "HLT with SS.DPL 3",
            &[
                (F::GuestActivity, 1),
                (F::GuestSsAccess, 0xc0f3),
                (F::GuestCsAccess, 0xa0fb),
            ],
        ),
        (
            "STI in HLT",
            &[
                (F::GuestActivity, 1),
                (F::GuestInterruptibility, 1),
                (F::GuestRflags, IF),
            ],
        ),
        (
            "MOV SS in shutdown",
            &[(F::GuestActivity, 2), (F::GuestInterruptibility, 2)],
        ),
        (
            "#PF in HLT",
            &[
                (F::GuestActivity, 1),
                (F::EntryInterruptionInfo, 1 << 31 | 3 << 8 | 1 << 11 | 14),
            ],
        ),
        (
            "MTF in shutdown",
            &[
                (F::GuestActivity, 2),
                (F::EntryInterruptionInfo, 1 << 31 | 7 << 8),
            ],
        ),
        ("NMI in wait-for-SIPI", &[(F::GuestActivity, 3), nmi]),
        (
            "interruptibility bit 5",
            &[(F::GuestInterruptibility, 1 << 5)],
        ),
        ("enclave without SGX", &[(F::GuestInterruptibility, 1 << 4)]),
        (
            "STI and MOV SS",
            &[(F::GuestInterruptibility, 3), (F::GuestRflags, IF)],
        ),
        ("STI with IF 0", &[(F::GuestInterruptibility, 1)]),
        (
            "interrupt under STI",
            &[
                (F::GuestInterruptibility, 1),
                (F::GuestRflags, IF),
                (F::EntryInterruptionInfo, 1 << 31 | 0x40),
            ],
        ),
        (
            "interrupt under MOV SS",
            &[
                (F::GuestInterruptibility, 2),
                (F::GuestRflags, IF),
                (F::EntryInterruptionInfo, 1 << 31 | 0x40),
            ],
        ),
        ("NMI under MOV SS", &[(F::GuestInterruptibility, 2), nmi]),
        (
            "NMI under virtual-NMI blocking",
            &[(F::GuestInterruptibility, 8), nmi, (F::PinControls, 0x3e)],
        ),
        ("SMI outside SMM", &[(F::GuestInterruptibility, 4)]),
        ("pending debug bit 4", &[(F::GuestPendingDebug, 1 << 4)]),
        ("pending debug bit 13", &[(F::GuestPendingDebug, 1 << 13)]),
        ("pending RTM", &[(F::GuestPendingDebug, 1 << 16)]),
        (
            "BS missing",
            &[(F::GuestInterruptibility, 2), (F::GuestRflags, TF)],
        ),
        (
            "BS with TF 0",
            &[
                (F::GuestInterruptibility, 2),
                (F::GuestPendingDebug, 1 << 14),
            ],
        ),
        (
            "BS with BTF",
            &[
                (F::GuestActivity, 1),
                (F::GuestRflags, TF),
                (F::GuestDebugctl, 2),
                (F::GuestPendingDebug, 1 << 14),
            ],
        ),
    ];
    for (what, values) in bad {
        guest_fails(&rig().with(values), "27.3.1.5", what);
    }
}

#[test]
fn activity_and_interruptibility_that_pass() {
    const IF: u64 = 0x202;
    const TF: u64 = 0x102;
    let nmi = (F::EntryInterruptionInfo, 1 << 31 | 2 << 8 | 2);
    let good: &[(&str, &[(F, u64)])] = &[
        ("HLT", &[(F::GuestActivity, 1)]),
        ("wait-for-SIPI", &[(F::GuestActivity, 3)]),
        ("NMI in shutdown", &[(F::GuestActivity, 2), nmi]),
        (
            "interrupt in HLT",
            &[
                (F::GuestActivity, 1),
                (F::GuestRflags, IF),
                (F::EntryInterruptionInfo, 1 << 31 | 0x40),
            ],
        ),
        (
            "#DB in HLT",
            &[
                (F::GuestActivity, 1),
                (F::EntryInterruptionInfo, 1 << 31 | 3 << 8 | 1),
            ],
        ),
        (
            "STI with IF",
            &[(F::GuestInterruptibility, 1), (F::GuestRflags, IF)],
        ),
        (
            "NMI under NMI blocking without virtual NMIs",
            &[(F::GuestInterruptibility, 8), nmi],
        ),
        (
            "BS with TF",
            &[
                (F::GuestInterruptibility, 2),
                (F::GuestRflags, TF),
                (F::GuestPendingDebug, 1 << 14),
            ],
        ),
        (
            "BS free when nothing holds it",
            &[(F::GuestPendingDebug, 1 << 14 | 1 << 12 | 0xf)],
        ),
    ];
    for (what, values) in good {
        assert_eq!(
            guest::check(&rig().with(values).subject()),
            Ok(()),
            "{what}"
        );
    }
}

#[test]
fn link_pointer_has_qualification_4() {
    let shadowing = secondary::VMCS_SHADOWING;
    let cases = [
        ("unaligned", LINKED + 1, 0),
        ("beyond", 1 << 40, 0),
        ("wrong revision", PAGE, 0),
        ("not RAM", 0xfee0_0000, 0),
        ("shadow without shadowing", SHADOW, 0),
        ("ordinary with shadowing", LINKED, shadowing),
        ("the current VMCS", CURRENT.0, 0),
    ];
    for (what, link, control) in cases {
        let r = rig()
            .with(&[(F::VmcsLinkPointer, link)])
            .or(F::SecondaryControls, control);
        let e = guest::check(&r.subject()).expect_err(what);
        assert_eq!((e.section, e.qualification), ("27.3.1.5", 4), "{what}");
    }
    for (link, control) in [(LINKED, 0), (SHADOW, shadowing)] {
        let r = rig()
            .with(&[(F::VmcsLinkPointer, link)])
            .or(F::SecondaryControls, control);
        assert_eq!(guest::check(&r.subject()), Ok(()));
    }
}

#[test]
fn pdptes_have_qualification_2() {
    let pae = || {
        rig().with(&[
            (F::EntryControls, 0x11ff),
            (F::GuestCsAccess, 0xc09b),
            (F::GuestRip, 0x1000),
            (F::GuestCr3, PDPT),
        ])
    };
    assert_eq!(guest::check(&pae().subject()), Ok(()));
    for bits in [2, 4, 1 << 5, 1 << 8, 1 << 40, 1 << 63] {
        let r = pae().with(&[(F::GuestPdpte2, 1 | bits)]);
        let e = guest::check(&r.subject()).expect_err("PDPTE field");
        assert_eq!((e.section, e.qualification), ("27.3.1.6", 2), "{bits:#x}");
        let absent = pae().with(&[(F::GuestPdpte2, bits & !1)]);
        assert_eq!(
            guest::check(&absent.subject()),
            Ok(()),
            "not present: not checked"
        );
    }
    // Without EPT they come from memory.
    let plain = pae().with(&[(F::SecondaryControls, 0)]);
    plain.ram.store::<u64>(RamOffset(PDPT + 24), 1 | 2);
    let e = guest::check(&plain.subject()).expect_err("PDPTE in memory");
    assert_eq!(e.qualification, 2);
    let with_ept = pae();
    with_ept.ram.store::<u64>(RamOffset(PDPT + 24), 1 | 2);
    assert_eq!(guest::check(&with_ept.subject()), Ok(()));
}

#[test]
fn memory_types_of_pat() {
    assert!(valid_pat(0x0007_0406_0007_0406));
    assert!(!valid_pat(2));
    assert!(!valid_pat(3 << 16));
    assert!(!valid_pat(8 << 56));
}
