//! The bare-metal guests on the software CPU.

use std::sync::{Mutex, PoisonError};

use conformance::guest::run_on;
use machine::MachineConfig;
use machine::engine::{EngineKind, Translation, open};
use softcpu::SoftEngine;
use vcpu::cpuid::CpuModel;
use vcpu::{Engine, NestedVirt};

/// One machine with several processors at a time.
static SEVERAL: Mutex<()> = Mutex::new(());

fn passes(name: &str, nested: NestedVirt) {
    let config = MachineConfig {
        nested,
        ..MachineConfig::default()
    };
    passes_on(&SoftEngine::new(), name, config);
}

fn passes_on(engine: &dyn Engine, name: &str, config: MachineConfig) {
    // Processors that wait for each other in turns would wait for those of other machines too.
    let _one = (config.vcpus > 1).then(|| SEVERAL.lock().unwrap_or_else(PoisonError::into_inner));
    let result = run_on(engine, name, config).unwrap_or_else(|e| panic!("{name}: {e}"));
    println!("{}", result.text);
    assert!(result.passed(), "{name}: {:?}", result.outcome);
}

/// All code is translated before it runs for the first time.
fn passes_translated(name: &str, vcpus: u32) {
    let config = MachineConfig {
        vcpus,
        ..MachineConfig::default()
    };
    passes_translated_on(name, config);
}

fn passes_translated_on(name: &str, config: MachineConfig) {
    if let Some(missing) = jit::missing() {
        println!("skipped: translated code needs {missing}");
        return;
    }
    let engine = open(EngineKind::Soft, Translation::Force).expect("the host has what it takes");
    passes_on(engine.as_ref(), name, config);
}

#[test]
fn exceptions() {
    passes("exceptions", NestedVirt::Off);
}

#[test]
fn paging() {
    passes("paging", NestedVirt::Off);
}

#[test]
fn smc() {
    passes("smc", NestedVirt::Off);
}

#[test]
fn smp() {
    let config = MachineConfig {
        vcpus: 4,
        ..MachineConfig::default()
    };
    passes_on(&SoftEngine::new(), "smp", config);
}

#[test]
fn isa() {
    let config = MachineConfig {
        vcpus: 2,
        ..MachineConfig::default()
    };
    passes_on(&SoftEngine::new(), "isa", config);
}

/// The same on an AMD processor.
#[test]
fn isa_on_amd() {
    let config = MachineConfig {
        vcpus: 2,
        cpu: CpuModel::NestlingAmd,
        ..MachineConfig::default()
    };
    passes_on(&SoftEngine::new(), "isa", config);
}

#[test]
fn apic() {
    passes("apic", NestedVirt::Off);
}

#[test]
fn vmx_errors() {
    passes("vmx-errors", NestedVirt::Intel);
}

#[test]
fn vmx_exits() {
    passes("vmx-exits", NestedVirt::Intel);
}

#[test]
fn vmx_ept() {
    passes("vmx-ept", NestedVirt::Intel);
}

#[test]
fn vmx_inject() {
    passes("vmx-inject", NestedVirt::Intel);
}

#[test]
fn modes() {
    passes("modes", NestedVirt::Off);
}

#[test]
fn exceptions_translated() {
    passes_translated("exceptions", 1);
}

#[test]
fn paging_translated() {
    passes_translated("paging", 1);
}

#[test]
fn smc_translated() {
    passes_translated("smc", 1);
}

#[test]
fn smp_translated() {
    passes_translated("smp", 4);
}

#[test]
fn isa_translated() {
    passes_translated("isa", 2);
}

#[test]
fn apic_translated() {
    passes_translated("apic", 1);
}

#[test]
fn modes_translated() {
    passes_translated("modes", 1);
}

/// The guests of VT-x.
#[test]
fn vmx_translated() {
    for name in ["vmx-errors", "vmx-exits", "vmx-ept", "vmx-inject"] {
        let config = MachineConfig {
            nested: NestedVirt::Intel,
            ..MachineConfig::default()
        };
        passes_translated_on(name, config);
    }
}
