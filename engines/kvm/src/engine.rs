//! The engine and its VMs.

use std::sync::{Arc, Mutex, PoisonError};

use guestmem::{GuestRam, RamRegion};
use kvm_bindings::{
    CpuId, KVM_CAP_HALT_POLL, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY,
    kvm_enable_cap, kvm_msi, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vcpu::cpuid::feature::leaf1_ecx;
use vcpu::{
    Attention, Capabilities, Engine, EngineError, NestedVirt, Platform, Vcpu, Vm, VmConfig,
};

use crate::cpuid::{HostCpuid, guest_cpuid, lacking};
use crate::vcpu_fd::KvmVcpu;
use crate::{NAME, host, kick, msrs, unsupported};

/// Page of the identity map that KVM's VT-x code needs for real mode on processors without "unrestricted
/// guest"; three pages of a task-state segment follow. Below the BIOS area, above everything PCI may use.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TSS: usize = 0xfeff_d000;
/// First address after them.
const RESERVED_END: u64 = 0xff00_0000;

/// Capabilities the engine cannot do without.
const NEEDED: [(Cap, &str); 10] = [
    (Cap::Irqchip, "in-kernel interrupt controllers"),
    (Cap::Pit2, "an in-kernel PIT"),
    (Cap::UserMemory, "user memory"),
    (Cap::ReadonlyMem, "read-only memory"),
    (Cap::ImmediateExit, "immediate exits"),
    (Cap::MpState, "multiprocessor state"),
    (Cap::VcpuEvents, "vCPU events"),
    (Cap::Debugregs, "debug registers"),
    (Cap::Xsave, "XSAVE state"),
    (Cap::SignalMsi, "MSI"),
];

/// `/dev/kvm`, opened and found fit.
pub struct KvmEngine {
    kvm: Kvm,
    supported: CpuId,
    capabilities: Capabilities,
    run_page_bytes: usize,
}

impl KvmEngine {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// [`EngineError::Host`] when it cannot be opened, [`EngineError::Unsupported`] when it is not the API
    /// version 12 that Linux has had since 2.6.22 or lacks something the engine needs.
    pub fn open() -> Result<Self, EngineError> {
        kick::install_handler()?;
        let kvm = Kvm::new().map_err(host("opening /dev/kvm"))?;
        let version = kvm.get_api_version();
        if version != 12 {
            return Err(unsupported(
                format!("use version {version} of the KVM interface, only 12"),
                "use the software engine",
            ));
        }
        if let Some((_, what)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(unsupported(
                format!("run on a host whose KVM lacks {what}"),
                "use the software engine",
            ));
        }
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(host("asking which CPUID features KVM supports"))?;
        let run_page_bytes = kvm
            .get_vcpu_mmap_size()
            .map_err(host("asking for the size of the run page"))?;
        let capabilities = Capabilities {
            name: NAME,
            own_interrupt_controllers: true,
            nested_intel: HostCpuid::new(&supported).has_vmx(),
            // No CPU model shows AMD-V.
            nested_amd: false,
            max_vcpus: u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX),
        };
        Ok(Self {
            kvm,
            supported,
            capabilities,
            run_page_bytes,
        })
    }

    /// A named model is given whole or not at all.
    fn check_exact(&self, config: &VmConfig) -> Result<(), EngineError> {
        if !config.cpuid.exact {
            return Ok(());
        }
        let host = HostCpuid::new(&self.supported);
        let deadline = self.kvm.check_extension(Cap::TscDeadlineTimer);
        let entries = guest_cpuid(&config.cpuid, &host, deadline, 0, 0);
        let missing = lacking(&config.cpuid, &entries);
        if missing.is_empty() {
            return Ok(());
        }
        Err(unsupported(
            format!(
                "show this CPU model to a guest, as it lacks {}",
                missing.join(", ")
            ),
            "choose --cpu max or --engine soft",
        ))
    }

    fn check(&self, config: &VmConfig) -> Result<(), EngineError> {
        let max = self.capabilities.max_vcpus;
        if config.vcpus == 0 || config.vcpus > max {
            return Err(unsupported(
                format!("give a VM {} vCPUs", config.vcpus),
                format!("this host allows 1 to {max}"),
            ));
        }
        match config.nested {
            NestedVirt::Off => Ok(()),
            NestedVirt::Intel if self.capabilities.nested_intel => Ok(()),
            NestedVirt::Intel => Err(unsupported(
                "show VT-x to the guest: the host's KVM does not offer it",
                "load kvm_intel with nested=1, or use the software engine",
            )),
            NestedVirt::Amd => Err(unsupported(
                "show AMD-V to the guest",
                "use another engine or --nested off",
            )),
        }
    }
}

impl Engine for KvmEngine {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn create_vm(&self, config: &VmConfig, ram: Arc<GuestRam>) -> Result<Arc<dyn Vm>, EngineError> {
        self.check(config)?;
        self.check_exact(config)?;
        let vm = self.kvm.create_vm().map_err(host("creating a KVM VM"))?;
        vm.set_identity_map_address(IDENTITY_MAP)
            .map_err(host("placing KVM's identity map"))?;
        vm.set_tss_address(TSS)
            .map_err(host("placing KVM's task-state segment"))?;
        vm.create_irq_chip()
            .map_err(host("creating the in-kernel interrupt controllers"))?;
        vm.create_pit2(kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        })
        .map_err(host("creating the in-kernel PIT"))?;
        let mut slots = Slots::default();
        slots.follow(&vm, &ram)?;
        if under_hypervisor() {
            stop_halt_polling(&vm);
        }
        Ok(Arc::new(KvmVm {
            inner: Arc::new(VmInner {
                fd: vm,
                cpuid: HostCpuid::new(&self.supported),
                deadline_timer: self.kvm.check_extension(Cap::TscDeadlineTimer),
                config: config.clone(),
                nested_state: config.nested != NestedVirt::Off
                    && self.kvm.check_extension_int(Cap::NestedState) > 0,
                run_page_bytes: self.run_page_bytes,
                slots: Mutex::new(slots),
                ram,
            }),
        }))
    }
}

/// Whether this host is itself a guest (`CPUID.01H:ECX[31]`).
fn under_hypervisor() -> bool {
    std::arch::x86_64::__cpuid(1).ecx & leaf1_ecx::HYPERVISOR != 0
}

/// Makes a vCPU's HLT give the processor up at once. KVM polls for a while first, which saves a wake-up on hardware;
/// in a nested host each round of the poll costs what a guest's instructions cost, and no one sleeps.
fn stop_halt_polling(vm: &VmFd) {
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_HALT_POLL,
        ..Default::default()
    };
    cap.args[0] = 0; // the longest poll in ns
    if let Err(error) = vm.enable_cap(&cap) {
        tracing::debug!(%error, "KVM keeps polling on HLT");
    }
}

/// The memory slots of a VM: by number, what each maps.
#[derive(Default)]
struct Slots(Vec<Option<RamRegion>>);

impl Slots {
    /// Makes the slots what `ram` shows now: one for each run. Those that stay the same are not touched.
    fn follow(&mut self, vm: &VmFd, ram: &GuestRam) -> Result<(), EngineError> {
        let runs = ram.runs();
        for (number, slot) in (0..).zip(&mut self.0) {
            if let Some(run) = slot.take_if(|run| !runs.contains(run)) {
                let gone = RamRegion {
                    size_bytes: 0,
                    ..run
                };
                set_slot(vm, ram, number, &gone)?;
            }
        }
        for run in runs {
            if self.0.contains(&Some(run)) {
                continue;
            }
            let end = run.base.0.saturating_add(run.size_bytes);
            if run.base.0 < RESERVED_END && end > IDENTITY_MAP {
                return Err(unsupported(
                    format!("have RAM at {IDENTITY_MAP:#x}, which KVM uses itself"),
                    "give the VM a memory layout with a hole there",
                ));
            }
            let free = self.0.iter().position(Option::is_none);
            let number = free.unwrap_or_else(|| {
                self.0.push(None);
                self.0.len() - 1
            });
            set_slot(vm, ram, number as u32, &run)?;
            self.0[number] = Some(run);
        }
        Ok(())
    }
}

/// Sets or, with a size of zero, removes a slot. Writes to one that is not writable leave the guest as MMIO.
fn set_slot(vm: &VmFd, ram: &GuestRam, number: u32, run: &RamRegion) -> Result<(), EngineError> {
    let slot = kvm_userspace_memory_region {
        slot: number,
        flags: if run.writable { 0 } else { KVM_MEM_READONLY },
        guest_phys_addr: run.base.0,
        memory_size: run.size_bytes,
        userspace_addr: ram.host_base() as u64 + run.offset.0,
    };
    // SAFETY: the run lies in the one mapping of `ram` (its invariant), which lives as long as the VM
    // (`VmInner` holds it) and is never accessed through references.
    unsafe { vm.set_user_memory_region(slot) }.map_err(host("giving KVM the guest's memory"))
}

/// What the vCPUs of a VM share. The descriptor is closed before the RAM is let go.
pub(crate) struct VmInner {
    pub(crate) fd: VmFd,
    cpuid: HostCpuid,
    deadline_timer: bool,
    config: VmConfig,
    /// KVM can tell the state of VMX operation, and the guest may be in it.
    pub(crate) nested_state: bool,
    run_page_bytes: usize,
    slots: Mutex<Slots>,
    pub(crate) ram: Arc<GuestRam>,
}

struct KvmVm {
    inner: Arc<VmInner>,
}

impl Vm for KvmVm {
    fn create_vcpu(
        &self,
        index: u32,
        platform: Box<dyn Platform>,
        attention: Attention,
    ) -> Result<Box<dyn Vcpu>, EngineError> {
        let vm = &self.inner;
        if index >= vm.config.vcpus {
            return Err(unsupported(
                format!("create vCPU {index} of a VM with {}", vm.config.vcpus),
                "configure the VM with more vCPUs",
            ));
        }
        let fd = vm
            .fd
            .create_vcpu(u64::from(index))
            .map_err(host("creating a vCPU"))?;
        let tsc_khz = fd.get_tsc_khz().unwrap_or(0);
        let entries = guest_cpuid(
            &vm.config.cpuid,
            &vm.cpuid,
            vm.deadline_timer,
            u64::from(tsc_khz) * 1000,
            index,
        );
        let cpuid = CpuId::from_entries(&entries).map_err(|_| {
            unsupported(
                format!("hold {} CPUID leaves", entries.len()),
                "use a smaller CPU model",
            )
        })?;
        fd.set_cpuid2(&cpuid)
            .map_err(host("setting the vCPU's CPUID"))?;
        msrs::enable_fast_strings(&fd)?;
        let vcpu = KvmVcpu::new(
            index,
            fd,
            vm.run_page_bytes,
            Arc::clone(vm),
            platform,
            attention,
        )?;
        Ok(Box::new(vcpu))
    }

    fn set_irq_line(&self, gsi: u32, high: bool) {
        if let Err(error) = self.inner.fd.set_irq_line(gsi, high) {
            tracing::debug!(gsi, %error, "KVM refused an interrupt line");
        }
    }

    fn memory_changed(&self) {
        let vm = &self.inner;
        let mut slots = vm.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = slots.follow(&vm.fd, &vm.ram) {
            tracing::error!(%error, "the guest's memory map stays as it was");
        }
    }

    fn signal_msi(&self, address: u64, data: u32) {
        let msi = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        // An error says that no APIC took it, as on a real bus.
        if let Err(error) = self.inner.fd.signal_msi(msi) {
            tracing::debug!(address, %error, "KVM did not deliver an MSI");
        }
    }
}
