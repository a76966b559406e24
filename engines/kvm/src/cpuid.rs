//! What CPUID answers under KVM: the model's table less what the host cannot do.
//!
//! Feature words are ANDed with KVM_GET_SUPPORTED_CPUID; words that describe (signature, caches, topology,
//! brand) are the model's. KVM's own leaves at 40000000h take the place of ours. VT-x needs no rule of its
//! own: the model has the bit when nesting is asked for, KVM when it can. Leaves 15h and 16h tell the
//! TSC of the host and KVM's APIC timer clock of 1 GHz.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use vcpu::cpuid::feature::{ext8_ebx, ext21, leaf1_ecx, leaf7_ecx, xstate};
use vcpu::cpuid::{CpuidLeaf, CpuidResult, CpuidTable, NAMES, timing_leaves};

/// KVM's leaves are in this block.
const HYPERVISOR_LEAVES: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_00ff;
/// What KVM's in-kernel APIC timer counts, in Hz (KVM_CAP_X86_APIC_BUS_CYCLES_NS, default 1).
const APIC_TIMER_HZ: u32 = 1_000_000_000;

/// What KVM_GET_SUPPORTED_CPUID answered.
#[derive(Clone, Debug)]
pub(crate) struct HostCpuid {
    entries: Vec<kvm_cpuid_entry2>,
}

impl HostCpuid {
    pub(crate) fn new(supported: &CpuId) -> Self {
        Self {
            entries: supported.as_slice().to_vec(),
        }
    }

    /// The entry for `(leaf, subleaf)`, zero where there is none.
    pub(crate) fn get(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        self.entries
            .iter()
            .find(|e| {
                let indexed = e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
                e.function == leaf && (!indexed || e.index == subleaf)
            })
            .map_or(CpuidResult::default(), |e| CpuidResult {
                eax: e.eax,
                ebx: e.ebx,
                ecx: e.ecx,
                edx: e.edx,
            })
    }

    /// VT-x can be shown to guests.
    pub(crate) fn has_vmx(&self) -> bool {
        self.get(1, 0).ecx & leaf1_ecx::VMX != 0
    }

    /// AMD-V can be shown to guests (APM Vol 3, `Fn8000_0001_ECX[SVM]`).
    pub(crate) fn has_svm(&self) -> bool {
        self.get(0x8000_0001, 0).ecx & 1 << 2 != 0
    }
}

/// One leaf of the model as this host can give it.
fn restrict(leaf: &CpuidLeaf, host: &HostCpuid, deadline_timer: bool) -> CpuidResult {
    let mut r = leaf.result;
    let subleaf = leaf.subleaf.unwrap_or(0);
    let h = host.get(leaf.leaf, subleaf);
    match (leaf.leaf, subleaf) {
        (1, _) => {
            // KVM tells the deadline timer by a capability, since it depends on the in-kernel APIC; it never
            // tells "hypervisor" and x2APIC is always there with the in-kernel APIC.
            let mut can = h.ecx | leaf1_ecx::HYPERVISOR | leaf1_ecx::X2APIC;
            if deadline_timer {
                can |= leaf1_ecx::TSC_DEADLINE;
            }
            r.ecx &= can;
            // HTT is a statement about the topology, which is the model's.
            r.edx &= h.edx | vcpu::cpuid::feature::leaf1_edx::HTT;
        }
        (6, _) => r.eax &= h.eax,
        (7, 0) => {
            r.eax = 0;
            r.ebx &= h.ebx;
            r.ecx &= h.ecx;
            r.edx &= h.edx;
        }
        (0xd, 0) => {
            r.eax &= h.eax;
            r.edx &= h.edx;
            r.ecx = area_bytes(r.eax, host);
        }
        (0xd, 1) => r.eax &= h.eax,
        // The places of components are the processor's.
        (0xd, n) if host.get(0xd, 0).eax >> n.min(31) & 1 != 0 => {
            (r.eax, r.ebx, r.ecx) = (h.eax, h.ebx, h.ecx);
        }
        (0xd, _) => r = CpuidResult::default(),
        (0x8000_0001, _) => {
            r.ecx &= h.ecx;
            r.edx &= h.edx;
        }
        (0x8000_0007, _) => r.edx &= h.edx,
        (0x8000_0008, _) => {
            let physical = (r.eax & 0xff).min(h.eax & 0xff);
            r.eax = r.eax & !0xff | physical;
            // KVM lets nobody set EFER.LMSLE who has no SVM; not every version says so.
            r.ebx &= h.ebx | ext8_ebx::NO_LMSLE;
        }
        (0x8000_0021, _) => {
            // Nor has any version SMM_CTL.
            r.eax &= h.eax | ext21::NO_SMM_CTL;
            r.ecx &= h.ecx;
        }
        _ => {}
    }
    r
}

/// Bytes of an XSAVE area in standard format for the components of `xcr0` (SDM Vol 1 13.4.3).
fn area_bytes(xcr0: u32, host: &HostCpuid) -> u32 {
    (2..32)
        .filter(|n| xcr0 >> n & 1 != 0)
        .map(|n| host.get(0xd, n))
        .map(|r| r.ebx.saturating_add(r.eax))
        .fold(xstate::LEGACY_AND_HEADER_BYTES, u32::max)
}

/// The names of what the model shows and the entries do not.
pub(crate) fn lacking(model: &CpuidTable, entries: &[kvm_cpuid_entry2]) -> Vec<&'static str> {
    let host = HostCpuid {
        entries: entries.to_vec(),
    };
    NAMES
        .iter()
        .filter(|n| {
            let r = host.get(n.place.leaf, n.place.subleaf);
            let shown = [r.eax, r.ebx, r.ecx, r.edx][n.place.register & 3];
            model.word(n.place) & n.bit & !shown != 0
        })
        .map(|n| n.name)
        .collect()
}

/// Takes back what rests on something the host lacks: AVX without its state component, and what needs AVX.
fn drop_orphans(entries: &mut [kvm_cpuid_entry2], host: &HostCpuid) {
    let xcr0 = entries
        .iter()
        .find(|e| e.function == 0xd && e.index == 0)
        .map_or(0, |e| u64::from(e.eax));
    let has_avx = entries
        .iter()
        .any(|e| e.function == 1 && e.ecx & leaf1_ecx::AVX != 0);
    if has_avx && xcr0 & xstate::AVX != 0 {
        return;
    }
    for e in entries {
        match (e.function, e.index) {
            (1, _) => e.ecx &= !(leaf1_ecx::AVX | leaf1_ecx::FMA | leaf1_ecx::F16C),
            (7, 0) => {
                e.ebx &= !vcpu::cpuid::feature::leaf7_ebx::AVX2;
                e.ecx &= !(leaf7_ecx::VAES | leaf7_ecx::VPCLMULQDQ);
            }
            (0xd, 0) => {
                e.eax &= !(xstate::AVX as u32);
                e.ecx = area_bytes(e.eax, host);
            }
            (0xd, 2) => (e.eax, e.ebx) = (0, 0),
            _ => {}
        }
    }
}

/// The entries for KVM_SET_CPUID2 of the vCPU with this APIC id.
pub(crate) fn guest_cpuid(
    model: &CpuidTable,
    host: &HostCpuid,
    deadline_timer: bool,
    tsc_hz: u64,
    apic_id: u32,
) -> Vec<kvm_cpuid_entry2> {
    let (leaf15, leaf16) = if tsc_hz == 0 {
        Default::default()
    } else {
        timing_leaves(tsc_hz, APIC_TIMER_HZ)
    };
    let mut entries: Vec<_> = model
        .leaves
        .iter()
        .filter(|l| !HYPERVISOR_LEAVES.contains(&l.leaf))
        .map(|l| {
            let mut r = match l.leaf {
                0x15 => leaf15,
                0x16 => leaf16,
                _ => restrict(l, host, deadline_timer),
            };
            match l.leaf {
                1 => r.ebx = r.ebx & 0x00ff_ffff | apic_id << 24,
                0xb => r.edx = apic_id,
                0x8000_001e => (r.eax, r.ebx) = (apic_id, apic_id & 0xff),
                _ => {}
            }
            entry(l.leaf, l.subleaf, r)
        })
        .collect();
    drop_orphans(&mut entries, host);
    let own = host
        .entries
        .iter()
        .filter(|e| HYPERVISOR_LEAVES.contains(&e.function));
    entries.extend(own.copied());
    entries.sort_by_key(|e| (e.function, e.index));
    entries
}

fn entry(leaf: u32, subleaf: Option<u32>, r: CpuidResult) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: leaf,
        index: subleaf.unwrap_or(0),
        flags: if subleaf.is_some() {
            KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        } else {
            0
        },
        eax: r.eax,
        ebx: r.ebx,
        ecx: r.ecx,
        edx: r.edx,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vcpu::NestedVirt;
    use vcpu::cpuid::{CpuModel, HostVector, ModelConfig, model};

    fn table(nested: NestedVirt) -> CpuidTable {
        model(
            CpuModel::Max,
            &ModelConfig {
                vcpus: 2,
                nested,
                tsc_hz: 1_000_000_000,
                crystal_hz: 25_000_000,
                host: HostVector::ALL,
            },
        )
    }

    fn find(entries: &[kvm_cpuid_entry2], leaf: u32, subleaf: u32) -> CpuidResult {
        HostCpuid {
            entries: entries.to_vec(),
        }
        .get(leaf, subleaf)
    }

    /// A host that can do everything, and says so in every word.
    fn everything() -> HostCpuid {
        let all = CpuidResult {
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
        };
        let mut entries: Vec<_> = table(NestedVirt::Intel)
            .leaves
            .iter()
            .map(|l| match (l.leaf, l.subleaf) {
                // Where components lie is a fact, not an ability.
                (0xd, Some(2..)) => entry(l.leaf, l.subleaf, l.result),
                _ => entry(l.leaf, l.subleaf, all),
            })
            .collect();
        entries.retain(|e| e.function >> 28 != 4);
        let text = |s: &[u8; 4]| u32::from_le_bytes(*s);
        entries.push(entry(
            0x4000_0000,
            None,
            CpuidResult {
                eax: 0x4000_0001,
                ebx: text(b"KVMK"),
                ecx: text(b"VMKV"),
                edx: text(b"M\0\0\0"),
            },
        ));
        HostCpuid { entries }
    }

    #[test]
    fn a_host_that_can_all_gives_the_model() {
        let t = table(NestedVirt::Intel);
        let got = guest_cpuid(&t, &everything(), true, 0, 0);
        for l in &t.leaves {
            if matches!(l.leaf, 0x15 | 0x16 | 0x4000_0000) {
                continue;
            }
            let got = find(&got, l.leaf, l.subleaf.unwrap_or(0));
            assert_eq!(got, l.result, "leaf {:x}", l.leaf);
        }
    }

    #[test]
    fn what_a_model_loses_is_named() {
        let t = table(NestedVirt::Off);
        let lost = |host: &HostCpuid| lacking(&t, &guest_cpuid(&t, host, true, 0, 0));
        assert_eq!(lost(&everything()), Vec::<&str>::new());
        let mut without = everything();
        for e in &mut without.entries {
            if e.function == 7 {
                e.ebx &= !(1 << 8);
            }
        }
        assert_eq!(lost(&without), ["bmi2"]);
    }

    /// What no version of KVM gives is said to be missing, whether or not the host says so.
    #[test]
    fn what_kvm_never_has_is_no_loss() {
        let config = ModelConfig {
            vcpus: 2,
            nested: NestedVirt::Off,
            tsc_hz: 1_000_000_000,
            crystal_hz: 25_000_000,
            host: HostVector::ALL,
        };
        let t = model(CpuModel::NestlingAmd, &config);
        let mut host = HostCpuid {
            entries: t
                .leaves
                .iter()
                .map(|l| entry(l.leaf, l.subleaf, l.result))
                .collect(),
        };
        for e in &mut host.entries {
            match e.function {
                0x8000_0008 => e.ebx &= !(1 << 20 | 1 << 9),
                0x8000_0021 => e.eax &= !(1 << 9),
                _ => {}
            }
        }
        let got = guest_cpuid(&t, &host, true, 0, 0);
        assert_eq!(lacking(&t, &got), ["wbnoinvd"]);
        assert_eq!(find(&got, 0x8000_0008, 0).ebx >> 20 & 1, 1);
        assert_eq!(find(&got, 0x8000_0021, 0).eax >> 9 & 1, 1);
    }

    #[test]
    fn kvms_leaves_replace_ours() {
        let got = guest_cpuid(&table(NestedVirt::Off), &everything(), true, 0, 0);
        let r = find(&got, 0x4000_0000, 0);
        assert_eq!(r.eax, 0x4000_0001);
        assert_eq!(r.ebx.to_le_bytes(), *b"KVMK");
    }

    #[test]
    fn what_the_host_lacks_is_not_shown() {
        let none = HostCpuid {
            entries: Vec::new(),
        };
        let got = guest_cpuid(&table(NestedVirt::Intel), &none, false, 0, 1);
        let one = find(&got, 1, 0);
        assert_eq!(one.ecx, leaf1_ecx::HYPERVISOR | leaf1_ecx::X2APIC);
        assert_eq!(one.ebx >> 24, 1);
        let seven = find(&got, 7, 0);
        assert_eq!((seven.ebx, seven.ecx, seven.edx), (0, 0, 0));
        assert_eq!(find(&got, 0xd, 0).eax, 0);
        assert_eq!(find(&got, 0xd, 2), CpuidResult::default());
        assert_eq!(find(&got, 0x8000_0001, 0).edx, 0);
        assert_eq!(find(&got, 0xb, 0).edx, 1);
    }

    #[test]
    fn avx_without_its_state_takes_its_followers_along() {
        let mut host = everything();
        for e in &mut host.entries {
            if e.function == 0xd && e.index == 0 {
                e.eax = 3;
            }
        }
        let got = guest_cpuid(&table(NestedVirt::Off), &host, true, 0, 0);
        let vector = leaf1_ecx::AVX | leaf1_ecx::FMA | leaf1_ecx::F16C;
        assert_eq!(find(&got, 1, 0).ecx & vector, 0);
        assert_eq!(find(&got, 7, 0).ebx & 1 << 5, 0);
        assert_eq!(find(&got, 0xd, 0).ecx, 576);
    }

    #[test]
    fn vt_x_is_shown_when_asked_for_and_there() {
        let ask = |nested, host: &HostCpuid| {
            let got = guest_cpuid(&table(nested), host, true, 0, 0);
            find(&got, 1, 0).ecx & leaf1_ecx::VMX != 0
        };
        let mut without = everything();
        for e in &mut without.entries {
            if e.function == 1 {
                e.ecx &= !leaf1_ecx::VMX;
            }
        }
        assert!(ask(NestedVirt::Intel, &everything()));
        assert!(!ask(NestedVirt::Off, &everything()));
        assert!(!ask(NestedVirt::Intel, &without));
        assert!(!without.has_vmx());
    }

    #[test]
    fn the_host_tsc_is_told_over_a_clock_of_1_ghz() {
        let t = table(NestedVirt::Off);
        let got = guest_cpuid(&t, &everything(), true, 2_500_000_000, 0);
        let r = find(&got, 0x15, 0);
        assert_eq!((r.eax, r.ebx, r.ecx), (2, 5, 1_000_000_000));
        assert_eq!(find(&got, 0x16, 0).eax, 2500);
        let got = guest_cpuid(&t, &everything(), true, 0, 0);
        assert_eq!(find(&got, 0x15, 0), CpuidResult::default());
    }
}
