//! The bare-metal guests on the software CPU.

use conformance::guest::{run, run_on};
use machine::MachineConfig;
use softcpu::SoftEngine;
use vcpu::NestedVirt;
use vcpu::cpuid::CpuModel;

fn passes(name: &str, nested: NestedVirt) {
    let result = run(&SoftEngine::new(), name, nested).unwrap_or_else(|e| panic!("{name}: {e}"));
    println!("{}", result.text);
    assert!(result.passed(), "{name}: {:?}", result.outcome);
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
    let result = run_on(&SoftEngine::new(), "smp", config).unwrap_or_else(|e| panic!("smp: {e}"));
    println!("{}", result.text);
    assert!(result.passed(), "smp: {:?}", result.outcome);
}

#[test]
fn isa() {
    let config = MachineConfig {
        vcpus: 2,
        ..MachineConfig::default()
    };
    let result = run_on(&SoftEngine::new(), "isa", config).unwrap_or_else(|e| panic!("isa: {e}"));
    println!("{}", result.text);
    assert!(result.passed(), "isa: {:?}", result.outcome);
}

/// The same on an AMD processor.
#[test]
fn isa_on_amd() {
    let config = MachineConfig {
        vcpus: 2,
        cpu: CpuModel::NestlingAmd,
        ..MachineConfig::default()
    };
    let result =
        run_on(&SoftEngine::new(), "isa", config).unwrap_or_else(|e| panic!("isa on AMD: {e}"));
    println!("{}", result.text);
    assert!(result.passed(), "isa on AMD: {:?}", result.outcome);
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
