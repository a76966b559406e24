//! The engine, VM and vCPU of the software CPU.

use std::sync::Arc;

use guestmem::GuestRam;
use vcpu::cpuid::Vendor;
use vcpu::cpuid::feature::{ext8_ebx, ext21, leaf7_2_edx};
use vcpu::{
    Attention, Capabilities, Engine, EngineError, NestedVirt, Platform, Profile, RunExit, Vcpu,
    VcpuState, Vm, VmConfig,
};
use x86defs::cr::{cr4, efer};
use x86defs::msr::spec_ctrl;

use crate::code::BlockExecutor;
use crate::cpu::{Cpu, Model};
use crate::run::Runner;
use crate::world::World;

/// The most vCPUs of a VM.
const MAX_VCPUS: u32 = 64;

/// The software engine: there on every x86-64 host.
#[derive(Default)]
pub struct SoftEngine {
    executors: Option<Executors>,
}

/// Makes what runs the hot blocks of a vCPU.
pub type Executors = Arc<dyn Fn(u32) -> std::io::Result<Box<dyn BlockExecutor>> + Send + Sync>;

impl SoftEngine {
    /// The engine.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The engine with something that runs hot blocks.
    #[must_use]
    pub fn with_executors(executors: Executors) -> Self {
        Self {
            executors: Some(executors),
        }
    }
}

struct SoftVm {
    executors: Option<Executors>,
    model: Arc<Model>,
    ram: Arc<GuestRam>,
    world: Arc<World>,
    vcpus: u32,
}

struct SoftVcpu {
    runner: Runner,
}

impl Engine for SoftEngine {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "soft",
            own_interrupt_controllers: false,
            nested_intel: true,
            nested_amd: false,
            max_vcpus: MAX_VCPUS,
        }
    }

    fn create_vm(&self, config: &VmConfig, ram: Arc<GuestRam>) -> Result<Arc<dyn Vm>, EngineError> {
        let unsupported = |what: &str, advice: &str| EngineError::Unsupported {
            engine: "soft",
            what: what.to_owned(),
            advice: advice.to_owned(),
        };
        if !(1..=MAX_VCPUS).contains(&config.vcpus) {
            let advice = format!("use --cpus 1 to {MAX_VCPUS}");
            return Err(unsupported("run that many vCPUs", &advice));
        }
        if config.nested == NestedVirt::Amd {
            return Err(unsupported("show AMD-V yet", "use --nested intel"));
        }
        Ok(Arc::new(SoftVm {
            executors: self.executors.clone(),
            model: Arc::new(model(config)),
            ram,
            world: Arc::default(),
            vcpus: config.vcpus,
        }))
    }
}

/// Derives the processor's facts from its CPUID leaves.
#[must_use]
pub fn model(config: &VmConfig) -> Model {
    let c = &config.cpuid;
    let leaf = |l, s| c.get(l, s).unwrap_or_default();
    let (l1, l7) = (leaf(1, 0), leaf(7, 0));
    let (x1, x8, x21) = (
        leaf(0x8000_0001, 0),
        leaf(0x8000_0008, 0),
        leaf(0x8000_0021, 0),
    );
    let vendor = c.vendor();
    let mut allowed = cr4::TSD
        | cr4::DE
        | cr4::PSE
        | cr4::PAE
        | cr4::MCE
        | cr4::PGE
        | cr4::PCE
        | cr4::OSFXSR
        | cr4::OSXMMEXCPT;
    let mut with = |present: bool, bit: u64| {
        if present {
            allowed |= bit;
        }
    };
    with(l1.edx & 1 << 1 != 0, cr4::VME | cr4::PVI);
    with(l1.ecx & 1 << 5 != 0, cr4::VMXE);
    with(l1.ecx & 1 << 17 != 0, cr4::PCIDE);
    with(l1.ecx & 1 << 26 != 0, cr4::OSXSAVE);
    with(l7.ebx & 1 != 0, cr4::FSGSBASE);
    with(l7.ebx & 1 << 7 != 0, cr4::SMEP);
    with(l7.ebx & 1 << 20 != 0, cr4::SMAP);
    with(l7.ecx & 1 << 2 != 0, cr4::UMIP);
    with(l7.ecx & 1 << 3 != 0, cr4::PKE);
    let d = leaf(0xd, 0);
    let amd = |bit: u32| vendor == Vendor::Amd && x8.ebx & bit != 0;
    let intel_spec = l7.edx & 1 << 26 != 0;
    let spec_ctrl_allowed = [
        // IBRS, STIBP; STIBP may be written wherever IBRS may. SSBD is not shown.
        (intel_spec, 3),
        (amd(ext8_ebx::IBRS), 1),
        (amd(ext8_ebx::STIBP), 2),
        // BHI_DIS_S.
        (
            leaf(7, 2).edx & leaf7_2_edx::BHI_CTRL != 0,
            spec_ctrl::BHI_DIS_S,
        ),
    ];
    let efer_allowed = [
        (true, efer::SCE | efer::LME | efer::LMA),
        (x1.edx & 1 << 20 != 0, efer::NXE),
        (x21.eax & ext21::AUTOMATIC_IBRS != 0, efer::AIBRSE),
    ];
    let any = |list: &[(bool, u64)]| {
        list.iter()
            .filter(|(there, _)| *there)
            .fold(0, |all, (_, bits)| all | bits)
    };
    Model {
        vendor,
        // No supervisor component is there.
        xss_allowed: (leaf(0xd, 1).eax & 1 << 3 != 0).then_some(0),
        efer_allowed: any(&efer_allowed),
        spec_ctrl_allowed: any(&spec_ctrl_allowed),
        tsc_adjust: l7.ebx & 1 << 1 != 0,
        pred_cmd: intel_spec || amd(ext8_ebx::IBPB),
        x87_pointers_on_error: vendor == Vendor::Amd && !amd(ext8_ebx::X87_POINTERS),
        maxphyaddr: leaf(0x8000_0008, 0).eax & 0xff,
        cr4_allowed: allowed,
        xcr0_allowed: u64::from(d.edx) << 32 | u64::from(d.eax),
        monitor: l1.ecx & 1 << 3 != 0,
        vmx: l1.ecx & 1 << 5 != 0,
        arch_capabilities: if l7.edx & 1 << 29 != 0 {
            vcpu::cpuid::arch_capabilities()
        } else {
            0
        },
        pmu: crate::pmu::Features::of(c),
        cpuid: c.clone(),
    }
}

impl Vm for SoftVm {
    fn create_vcpu(
        &self,
        index: u32,
        platform: Box<dyn Platform>,
        attention: Attention,
    ) -> Result<Box<dyn Vcpu>, EngineError> {
        let host = hostexec::HostExec::new().map_err(|e| EngineError::Host {
            what: "cannot make memory for vector instructions",
            source: std::io::Error::other(e),
        })?;
        let cpu = Cpu::new(
            self.model.clone(),
            self.ram.clone(),
            platform,
            attention,
            index,
            host,
            Arc::clone(&self.world),
        );
        let mut runner = Runner::new(cpu, self.vcpus);
        if let Some(executors) = &self.executors {
            let executor = executors(self.vcpus).map_err(|source| EngineError::Host {
                what: "cannot make memory for translated code",
                source,
            })?;
            runner.set_executor(executor);
        }
        Ok(Box::new(SoftVcpu { runner }))
    }
}

impl Vcpu for SoftVcpu {
    fn run(&mut self) -> Result<RunExit, EngineError> {
        Ok(self.runner.run())
    }

    fn kicker(&self) -> Box<dyn Fn() + Send + Sync> {
        // Attention is read at every block boundary; a sleeping platform wakes by itself.
        Box::new(|| {})
    }

    fn state(&mut self) -> Result<VcpuState, EngineError> {
        Ok(self.runner.cpu.save())
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        self.runner.cpu.restore(state);
        Ok(())
    }

    fn retired(&self) -> Option<u64> {
        Some(self.runner.cpu.retired_now())
    }

    fn profile(&self) -> Profile {
        self.runner.profile()
    }
}
