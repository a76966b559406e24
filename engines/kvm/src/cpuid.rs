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
            // The highest subleaf.
            r.eax = r.eax.min(h.eax);
            r.ebx &= h.ebx;
            r.ecx &= h.ecx;
            r.edx &= h.edx;
        }
        (7, 2) => r.edx &= h.edx,
        // A PMU with fewer counters is another one; KVM has none, or not all of ours, on many hosts.
        (0xa, _) if !has_counters(&r, &h) => r = CpuidResult::default(),
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

/// Whether KVM gives all of what leaf 0AH of a model tells (SDM Vol 2, Table 3-8): version, number and width of the
/// general-purpose counters, number and width of those of fixed function, and no event of the model's is missing.
fn has_counters(model: &CpuidResult, host: &CpuidResult) -> bool {
    let field = |word: u32, shift: u32, bits: u32| word >> shift & ((1 << bits) - 1);
    let enough = |a: u32, b: u32, shift, bits| field(b, shift, bits) >= field(a, shift, bits);
    let events = (1u32 << field(model.eax, 24, 5)) - 1;
    [0, 8, 16, 24]
        .into_iter()
        .all(|shift| enough(model.eax, host.eax, shift, 8))
        && enough(model.edx, host.edx, 0, 5)
        && enough(model.edx, host.edx, 5, 8)
        && host.ebx & !model.ebx & events == 0
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
mod tests;
