use std::fmt::Write as _;

use super::*;
use crate::NestedVirt;

const CONFIG: ModelConfig = ModelConfig {
    vcpus: 2,
    nested: NestedVirt::Intel,
    tsc_hz: 2_000_000_000,
    crystal_hz: 25_000_000,
    host: HostVector::ALL,
};

fn intel(config: &ModelConfig) -> CpuidTable {
    model(CpuModel::NestlingIntel, config)
}

fn max(config: &ModelConfig) -> CpuidTable {
    model(CpuModel::Max, config)
}

fn amd(config: &ModelConfig) -> CpuidTable {
    model(CpuModel::NestlingAmd, config)
}

/// One line a leaf, as the golden files have them.
fn text(table: &CpuidTable) -> String {
    let mut out = String::new();
    for l in &table.leaves {
        let sub = l.subleaf.map_or_else(|| "-".into(), |s| s.to_string());
        let r = l.result;
        writeln!(
            out,
            "{:08x} {sub:>3}  {:08x} {:08x} {:08x} {:08x}",
            l.leaf, r.eax, r.ebx, r.ecx, r.edx
        )
        .expect("writing to a string");
    }
    out
}

#[test]
fn models_are_the_golden_ones() {
    for (table, golden) in [
        (intel(&CONFIG), include_str!("golden/nestling-intel.txt")),
        (amd(&CONFIG), include_str!("golden/nestling-amd.txt")),
    ] {
        let golden: String = golden
            .lines()
            .filter(|l| !l.starts_with('#'))
            .fold(String::new(), |all, l| all + l + "\n");
        assert_eq!(text(&table), golden);
    }
}

/// The levels of the System V ABI, AMD64 supplement, Table 3.1: what a program may use, by name.
#[test]
fn levels_have_what_the_abi_lists() {
    let v2 = "cmov cx8 fpu fxsr mmx syscall sse sse2 cx16 lahf_lm popcnt sse3 sse4_1 sse4_2 ssse3";
    let v3 = "avx avx2 bmi1 bmi2 f16c fma lzcnt movbe xsave";
    for (level, has, not) in [
        (CpuModel::X86_64V2, v2.to_owned(), v3),
        (
            CpuModel::X86_64V3,
            format!("{v2} {v3}"),
            "aes sha adx rdrand pclmulqdq",
        ),
    ] {
        let t = model(level, &CONFIG);
        let features: Vec<_> = t.features().collect();
        for name in has.split(' ') {
            assert!(features.contains(&name), "{level} has {name}");
        }
        for name in not.split(' ') {
            assert!(!features.contains(&name), "{level} has no {name}");
        }
        assert_eq!(t.get(0xd, 0).is_some(), features.contains(&"xsave"));
    }
}

/// A named model is the same whatever the host has, and says what it misses; only `max` follows.
#[test]
fn named_models_do_not_follow_the_host() {
    let host = HostVector {
        avx2: false,
        fma: false,
        ..HostVector::ALL
    };
    for cpu in CpuModel::ALL {
        let on = |host| model(cpu, &ModelConfig { host, ..CONFIG });
        let same = on(host) == on(HostVector::ALL);
        assert_eq!(same, !cpu.follows_host(), "{cpu}");
        assert_eq!(on(host).exact, !cpu.follows_host());
        let missing = cpu.check(&host).err().map_or(Vec::new(), |e| e.missing);
        let expected: &[&str] = match cpu {
            CpuModel::NestlingIntel | CpuModel::NestlingAmd | CpuModel::X86_64V3 => {
                &["fma", "avx2"]
            }
            CpuModel::Max | CpuModel::X86_64V2 => &[],
        };
        assert_eq!(missing, expected, "{cpu}");
        assert_eq!(CpuModel::from_name(cpu.name()), Some(cpu));
        assert_eq!(on(host).vendor(), cpu.vendor());
    }
    let error = CpuModel::X86_64V3.check(&host).expect_err("it lacks two");
    assert!(error.to_string().contains("x86-64-v3 needs fma, avx2"));
    assert_eq!(CpuModel::from_name("host"), None);
}

/// Everything is named once, and nothing a model shows has no name.
#[test]
fn every_feature_has_a_name() {
    for (i, a) in NAMES.iter().enumerate() {
        assert_eq!(a.bit.count_ones(), 1, "{}", a.name);
        for b in &NAMES[i + 1..] {
            assert!(a.name != b.name, "{} twice", a.name);
            assert!(
                a.place != b.place || a.bit != b.bit,
                "{} and {}",
                a.name,
                b.name
            );
        }
    }
    for cpu in CpuModel::ALL {
        let t = model(cpu, &CONFIG);
        let mut places: Vec<Place> = NAMES.iter().map(|n| n.place).collect();
        places.dedup();
        for place in places {
            let named = NAMES
                .iter()
                .filter(|n| n.place == place)
                .fold(0, |all, n| all | n.bit);
            let mut word = t.word(place);
            if cpu.vendor() == Vendor::Amd && (place.leaf, place.register) == (0x8000_0001, 3) {
                word &= !amd::REPEATED;
            }
            assert_eq!(word & !named, 0, "{cpu} {place:x?}");
        }
    }
}

/// APM Vol 3 E.1: what is not there is zero, beyond the highest leaf as well. E.4.2: the APIC bit follows the APIC,
/// SYSCALL does not follow the mode. E.4.16: leaf 8000001Eh tells the vCPU's number.
/// Leaf 0AH (SDM Vol 2, Table 3-8), whatever the level: version 2, four counters of 48 bits, a bit each for seven events,
/// none of them missing; three counters of fixed function of 48 bits. AMD processors have no such leaf.
#[test]
fn performance_monitoring() {
    for which in CpuModel::ALL {
        let leaf = model(which, &CONFIG).answer(0xa, 0);
        let expected = match which.vendor() {
            Vendor::Intel => CpuidResult {
                eax: 0x0730_0402,
                edx: 0x603,
                ..CpuidResult::default()
            },
            Vendor::Amd => CpuidResult::default(),
        };
        assert_eq!(leaf, expected, "{which}");
    }
}

#[test]
fn amd_leaves_follow_the_vcpu() {
    let t = amd(&CONFIG);
    for leaf in [0xe, 0x15, 0x16, 0x2000_0000, 0x8000_0022, 0xffff_ffff] {
        assert_eq!(t.answer(leaf, 0), CpuidResult::default(), "{leaf:x}");
    }
    let vcpu = VcpuFields {
        apic_id: 1,
        apic_enabled: false,
        osxsave: false,
        pke: false,
        monitor: true,
        xcr0: 1,
        xss: 0,
        mode64: false,
    };
    let r = t.for_vcpu(0x8000_0001, 0, &vcpu);
    assert_eq!(r.edx & (1 << 9 | 1 << 11), 1 << 11);
    let on = VcpuFields {
        apic_enabled: true,
        ..vcpu
    };
    assert_eq!(t.for_vcpu(0x8000_0001, 0, &on).edx >> 9 & 1, 1);
    let r = t.for_vcpu(0x8000_001e, 0, &vcpu);
    assert_eq!((r.eax, r.ebx, r.ecx), (1, 1, 0));
    let one = ModelConfig { vcpus: 1, ..CONFIG };
    assert_eq!(amd(&one).answer(0x8000_0001, 0).ecx & 2, 0, "CmpLegacy");
    assert_eq!(amd(&one).answer(0x8000_0008, 0).ecx, 0);
}

/// Leaf 7 (SDM Vol 2, Table 3-8): EAX of subleaf 0 is the highest subleaf; BHI_CTRL is EDX[4] of subleaf 2, and there is
/// nothing else behind subleaf 0. Named models have only that one.
#[test]
fn subleaves_of_leaf_7() {
    for cpu in CpuModel::ALL {
        let t = model(cpu, &CONFIG);
        let (highest, edx) = match cpu {
            CpuModel::Max => (2, 0x10),
            _ => (0, 0),
        };
        assert_eq!(t.answer(7, 0).eax, highest, "{cpu}");
        assert_eq!(t.answer(7, 1), CpuidResult::default(), "{cpu}");
        let second = CpuidResult {
            edx,
            ..CpuidResult::default()
        };
        assert_eq!(t.answer(7, 2), second, "{cpu}");
        assert_eq!(t.answer(7, 3), CpuidResult::default(), "{cpu}");
    }
}

#[test]
fn tables_are_sorted_and_without_duplicates() {
    for vcpus in [0, 1, 3, 64, 1000] {
        let t = intel(&ModelConfig { vcpus, ..CONFIG });
        let keys: Vec<_> = t.leaves.iter().map(|l| (l.leaf, l.subleaf)).collect();
        assert!(keys.is_sorted_by(|a, b| a < b), "{keys:x?}");
    }
}

#[test]
fn vt_x_is_shown_only_when_asked_for() {
    for (nested, shown) in [
        (NestedVirt::Off, false),
        (NestedVirt::Intel, true),
        (NestedVirt::Amd, false),
    ] {
        let t = intel(&ModelConfig { nested, ..CONFIG });
        assert_eq!(t.answer(1, 0).ecx & leaf1_ecx::VMX != 0, shown);
        assert_eq!(
            t.answer(0x8000_0001, 0).ecx & 1 << 2,
            0,
            "SVM is not Intel's"
        );
    }
}

/// What needs AVX state goes with AVX (SDM Vol 1 14.5.3, 14.7.1: software checks AVX before F16C, FMA, AVX2).
#[test]
fn without_avx_nothing_of_it_is_left() {
    let host = HostVector {
        avx: false,
        ..HostVector::ALL
    };
    let t = max(&ModelConfig { host, ..CONFIG });
    let one = t.answer(1, 0).ecx;
    assert_eq!(one & (leaf1_ecx::AVX | leaf1_ecx::FMA | leaf1_ecx::F16C), 0);
    assert_ne!(one & leaf1_ecx::XSAVE, 0);
    assert_eq!(t.answer(7, 0).ebx & feature::leaf7_ebx::AVX2, 0);
    assert_eq!(t.answer(0xd, 0).eax & 4, 0);
    assert_eq!(t.answer(0xd, 2), CpuidResult::default());
}

/// Leaf 0DH is consistent with itself: the area of subleaf 0 ends where the last component does, and every
/// component of XCR0 above SSE has a subleaf.
#[test]
fn xsave_sizes_follow_from_the_components() {
    let t = intel(&CONFIG);
    let components = t.answer(0xd, 0).eax;
    let mut end = 576;
    for n in 2..32 {
        let r = t.answer(0xd, n);
        assert_eq!(r.eax != 0, components >> n & 1 == 1, "component {n}");
        if r.eax != 0 {
            end = end.max(r.ebx + r.eax);
        }
    }
    assert_eq!(t.answer(0xd, 0).ecx, end);
    let vcpu = VcpuFields {
        apic_id: 0,
        apic_enabled: true,
        osxsave: true,
        pke: false,
        monitor: true,
        xcr0: 7,
        xss: 0,
        mode64: true,
    };
    assert_eq!(t.for_vcpu(0xd, 0, &vcpu).ebx, end);
    assert_eq!(t.for_vcpu(0xd, 1, &vcpu).ebx, end);
}

#[test]
fn what_follows_the_vcpu_is_filled_in() {
    let t = intel(&CONFIG);
    let reset = VcpuFields {
        apic_id: 1,
        apic_enabled: false,
        osxsave: false,
        pke: false,
        monitor: true,
        xcr0: 1,
        xss: 0,
        mode64: false,
    };
    let one = t.for_vcpu(1, 0, &reset);
    assert_eq!(one.ebx >> 24, 1);
    assert_eq!(one.ecx & leaf1_ecx::OSXSAVE, 0);
    assert_eq!(one.edx & leaf1_edx::APIC, 0);
    assert_eq!(t.for_vcpu(0xb, 0, &reset).edx, 1);
    assert_eq!(t.for_vcpu(0xb, 9, &reset).edx, 1);
    assert_eq!(t.for_vcpu(0xd, 0, &reset).ebx, 576);
    assert_eq!(
        t.for_vcpu(0x8000_0001, 0, &reset).edx & ext1_edx::SYSCALL,
        0
    );
    let running = VcpuFields {
        apic_enabled: true,
        osxsave: true,
        mode64: true,
        ..reset
    };
    let one = t.for_vcpu(1, 0, &running);
    assert_ne!(one.ecx & leaf1_ecx::OSXSAVE, 0);
    assert_ne!(one.edx & leaf1_edx::APIC, 0);
    assert_ne!(
        t.for_vcpu(0x8000_0001, 0, &running).edx & ext1_edx::SYSCALL,
        0
    );
}

/// SDM Vol 2, CPUID: beyond the highest leaf, the data of the highest basic leaf; invalid subleaves are 0, but
/// leaf 0BH returns the input in ECX[7:0].
#[test]
fn absent_leaves_answer_as_the_manual_says() {
    let t = intel(&CONFIG);
    let highest = t.answer(0x16, 0);
    assert_eq!(t.answer(0x17, 0), highest);
    assert_eq!(t.answer(0x8000_0009, 0), highest);
    assert_eq!(t.answer(0x2000_0000, 5), highest);
    assert_eq!(t.answer(0xffff_ffff, 0), highest);
    assert_eq!(t.answer(5, 0), CpuidResult::default());
    assert_eq!(t.answer(4, 4), CpuidResult::default());
    assert_eq!(t.answer(0x8000_0005, 0), CpuidResult::default());
    assert_eq!(t.answer(0x4000_0100, 0), CpuidResult::default());
    assert_eq!(t.answer(0xb, 0x102).ecx, 2);
}

#[test]
fn topology_covers_every_apic_id() {
    for vcpus in [1u32, 2, 3, 4, 5, 64, 255] {
        let t = intel(&ModelConfig { vcpus, ..CONFIG });
        let core = t.answer(0xb, 1);
        assert!(vcpus <= 1 << core.eax, "{vcpus} cores in {} bits", core.eax);
        assert_eq!(core.ebx, vcpus);
        assert_eq!(
            t.answer(1, 0).edx & leaf1_edx::HTT != 0,
            vcpus > 1,
            "HTT with {vcpus}"
        );
        let l3 = t.answer(4, 3).eax;
        assert!((l3 >> 14 & 0xfff) + 1 >= vcpus, "L3 shared by all");
    }
}

#[test]
fn a_leaf_can_be_replaced_or_added() {
    let mut t = intel(&CONFIG);
    let r = CpuidResult {
        eax: 9,
        ..CpuidResult::default()
    };
    t.set(0x4000_0000, None, r);
    t.set(0x4000_0001, None, r);
    assert_eq!(t.answer(0x4000_0000, 3), r);
    assert_eq!(t.answer(0x4000_0001, 0), r);
    assert!(t.leaves.is_sorted_by_key(|l| (l.leaf, l.subleaf)));
}

/// SDM Vol 3 19.7.3: TSC frequency = ECX * EBX / EAX; and the product that guests form in 32 bits fits.
#[test]
fn frequencies_are_told_exactly_where_they_can_be() {
    for (tsc, crystal) in [
        (1_000_000_000, 25_000_000),
        (2_000_000_000, 1_000_000_000),
        (2_500_100_000, 25_000_000),
        (3_333_000_000, 24_000_000),
        (1_193_182, 1_193_182),
    ] {
        let r = tsc_ratio(tsc, crystal).expect("a ratio");
        assert!(r.exact, "{tsc} over {crystal}: {r:?}");
        assert_eq!(
            u64::from(crystal) * u64::from(r.numerator) / u64::from(r.denominator),
            tsc
        );
        assert!((crystal / 1000).checked_mul(r.numerator).is_some());
    }
    // 1 GHz in kHz leaves 12 bits for the numerator: close, and said to be no more than that.
    let r = tsc_ratio(2_445_404_000, 1_000_000_000).expect("a ratio");
    assert!(!r.exact);
    let told = 1e9 * f64::from(r.numerator) / f64::from(r.denominator);
    assert!((told / 2_445_404_000.0 - 1.0).abs() < 1e-6, "{told}");
    assert_eq!(tsc_ratio(0, 25_000_000), None);
    assert_eq!(tsc_ratio(1, 0), None);
    assert_eq!(tsc_ratio(u64::MAX, 1), None);
}

/// The bits that make an operating system skip a mitigation (SDM Vol 4 Table 2-2, and the advisories' names).
#[test]
fn an_interpreter_is_affected_by_nothing_speculative() {
    let no = [0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62];
    assert_eq!(
        arch_capabilities(),
        no.iter().fold(0, |all, bit| all | 1u64 << bit)
    );
}
