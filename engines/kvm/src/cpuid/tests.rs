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
            // A bit in EBX is an event that is missing.
            (0xa, _) => {
                let r = CpuidResult { ebx: 0, ..all };
                entry(l.leaf, l.subleaf, r)
            }
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
    assert_eq!(seven, CpuidResult::default());
    assert_eq!(find(&got, 7, 2), CpuidResult::default());
    assert_eq!(find(&got, 0xd, 0).eax, 0);
    assert_eq!(find(&got, 0xd, 2), CpuidResult::default());
    assert_eq!(find(&got, 0x8000_0001, 0).edx, 0);
    assert_eq!(find(&got, 0xb, 0).edx, 1);
}

/// A PMU is KVM's whole or not there; it is no feature whose lack is refused.
#[test]
fn counters_are_all_there_or_none() {
    let t = table(NestedVirt::Off);
    let ours = t.answer(0xa, 0);
    let shown = |host: CpuidResult| {
        let mut kvm = everything();
        for e in &mut kvm.entries {
            if e.function == 0xa {
                (e.eax, e.ebx, e.edx) = (host.eax, host.ebx, host.edx);
            }
        }
        let got = guest_cpuid(&t, &kvm, true, 0, 0);
        assert_eq!(lacking(&t, &got), Vec::<&str>::new());
        find(&got, 0xa, 0)
    };
    let host = |eax, ebx, edx| CpuidResult {
        eax,
        ebx,
        ecx: 0,
        edx,
    };
    // Eight counters; an eighth event that is missing.
    for more in [host(0x0830_0802, 0x80, 0x604), host(0x0730_0402, 0, 0x603)] {
        assert_eq!(shown(more), ours);
    }
    for less in [
        host(0, 0, 0),
        host(0x0730_0401, 0, 0x603),
        host(0x0730_0202, 0, 0x603),
        host(0x0728_0402, 0, 0x603),
        host(0x0630_0402, 0, 0x603),
        host(0x0730_0402, 4, 0x603),
        host(0x0730_0402, 0, 0x602),
        host(0x0730_0402, 0, 0x503),
    ] {
        assert_eq!(shown(less), CpuidResult::default(), "{less:x?}");
    }
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
