//! From a configuration to a machine that is ready to run.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bus::{Clock, ClockMode, LineSink, Msi, MsiSink};
use chipset::fabric::{FabricConfig, InterruptFabric};
use chipset::fw_cfg::FwCfgError;
use chipset::serial::{SerialInput, SerialOutput};
use display::Screen;
use guestmem::{Gpa, GuestRam, MemoryLayout, RamError};
use storage::RawFileError;
use vcpu::cpuid::{CpuidTable, HostVector, LackingHost, ModelConfig, model};
use vcpu::{Engine, EngineError, Vcpu, VcpuState, Vm, VmConfig};

use crate::acpi::{self, AcpiConfig};
use crate::board::Board;
use crate::boot::{self, BootError, BootRequest, real_mode::RealModeKernel};
use crate::config::{ConfigError, MachineConfig};
use crate::contents::MemoryContents;
use crate::control::{Control, RequestSink};
use crate::devices::{self, DeviceWiring};
use crate::disks::Disks;
use crate::engine::UnfitEngine;
use crate::firmware::{FirmwareBoard, FirmwareError, LegacyMap, Loaded};
use crate::memory::{ECAM_BASE, MemoryMap, PCI_MMIO_START};
use crate::platform::SoftPlatform;
use crate::ports_platform::PortsPlatform;
use crate::signal::VcpuLine;
use crate::smbios::SmbiosConfig;

/// Core crystal clock of the software processor: what its APIC timer counts, and what CPUID leaf 15h
/// relates the TSC to.
pub const CRYSTAL_HZ: u32 = 25_000_000;
/// CPUID.01H:ECX.x2APIC and TSC-deadline.
const FEATURE_X2APIC: u32 = 1 << 21;
const FEATURE_TSC_DEADLINE: u32 = 1 << 24;
/// MAXPHYADDR where CPUID does not say (SDM Vol 3 4.1.4).
const DEFAULT_PHYSICAL_BITS: u8 = 36;

/// Why a machine cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The engine cannot run it.
    #[error(transparent)]
    Unfit(#[from] UnfitEngine),
    /// The host cannot execute what the CPU model shows.
    #[error(transparent)]
    Cpu(#[from] LackingHost),
    /// The memory cannot be had.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The kernel cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// An image cannot be a disk.
    #[error(transparent)]
    Disk(#[from] RawFileError),
    /// The firmware cannot be used.
    #[error(transparent)]
    Firmware(#[from] FirmwareError),
    /// What the machine tells its firmware does not fit.
    #[error(transparent)]
    FirmwareItems(#[from] FwCfgError),
    /// The engine cannot make the VM.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The guest's processor cannot address so much memory.
    #[error("{} MiB of memory is more than a processor of {bits} address bits reaches; give the VM less", .bytes >> 20)]
    Unaddressable {
        /// RAM asked for.
        bytes: u64,
        /// MAXPHYADDR.
        bits: u8,
    },
}

/// What the machine is connected to.
pub struct Wiring {
    /// Takes what the guest sends on its first serial port.
    pub console: Box<dyn SerialOutput>,
    /// Takes what the guest writes to the debug console; without it there is no such port.
    pub debug_console: Option<Box<dyn SerialOutput>>,
    /// Is told when the guest asks for off, reset or debug exit.
    pub requests: RequestSink,
}

/// A machine with everything wired, its boot processor about to enter the kernel.
///
/// It owns no threads. Whoever runs it gives each vCPU one, and, where [`Board::needs_timekeeper`] says so,
/// the board another.
pub struct Machine {
    /// Devices, time, and the way to reach vCPUs.
    pub board: Arc<Board>,
    /// The virtual processors, by APIC id.
    pub vcpus: Vec<Box<dyn Vcpu>>,
    /// The writing end of the first serial port's input. After a push, call [`Board::input_arrived`].
    pub console_input: SerialInput,
    /// What the display shows, if there is one.
    pub screen: Option<Screen>,
    /// What is in its RAM.
    pub memory: MemoryContents,
}

/// Interrupt lines and messages of an engine with interrupt controllers of its own.
struct EngineLines(Arc<dyn Vm>);

impl LineSink for EngineLines {
    fn set_line(&self, line: u32, high: bool) {
        self.0.set_irq_line(line, high);
    }
}

impl MsiSink for EngineLines {
    fn signal(&self, msi: Msi) {
        self.0.signal_msi(msi.address, msi.data);
    }
}

impl Machine {
    /// Builds the machine `config` describes on `engine`.
    ///
    /// # Errors
    /// [`MachineError`]: what cannot be had and why.
    pub fn build(
        engine: &dyn Engine,
        config: &MachineConfig,
        wiring: Wiring,
    ) -> Result<Self, MachineError> {
        config.validate()?;
        let capabilities = engine.capabilities();
        crate::engine::check(config, &capabilities)?;
        config.cpu.check(&HostVector::detect())?;
        let disks = Disks::open(&config.disks, config.cdrom.as_ref())?;
        let cpuid = cpuid_table(config);
        let map = MemoryMap::new(config.memory_bytes);
        check_reach(config, &map, &cpuid)?;
        let own_controllers = capabilities.own_interrupt_controllers;
        let acpi = AcpiConfig {
            vcpus: config.vcpus,
            hpet: !own_controllers,
            ecam: ECAM_BASE,
            pci_low: Gpa(PCI_MMIO_START),
            pci_high: map.pci_high_window(physical_bits(&cpuid)),
        };
        let firmware = config.firmware.as_ref().map(Loaded::read).transpose()?;
        let kernel = match &firmware {
            Some(_) => RealModeKernel::read(config, &map)?,
            None => None,
        };
        let layout = match &firmware {
            Some(firmware) => firmware.layout(&map),
            None => MemoryLayout {
                ram: map.ram_regions(),
                roms: Vec::new(),
                legacy_area: true,
            },
        };
        let ram = Arc::new(GuestRam::with_layout(&layout)?);
        let screen = config.display.as_ref().map(|_| Screen::new());
        if let (Some(screen), None) = (&screen, &firmware) {
            screen.set_text_mode();
        }
        let entry = match &firmware {
            Some(firmware) => {
                firmware.place(&ram);
                reset_state(&cpuid)
            }
            None => load_kernel(config, &acpi, &ram, &map)?,
        };

        let vm = engine.create_vm(
            &VmConfig {
                vcpus: config.vcpus,
                cpuid: cpuid.clone(),
                nested: config.nested,
                tsc_hz: config.tsc_hz,
            },
            Arc::clone(&ram),
        )?;
        let lines: Vec<Arc<VcpuLine>> = (0..config.vcpus).map(|_| Arc::default()).collect();
        let fabric = (!own_controllers).then(|| new_fabric(config, &cpuid, &lines));
        let firmware = match firmware {
            Some(loaded) => {
                let legacy = Arc::new(LegacyMap {
                    ram: Arc::clone(&ram),
                    vm: Arc::clone(&vm),
                    lines: lines.clone(),
                });
                let smbios = smbios_config(config, map, &cpuid);
                Some(FirmwareBoard::new(
                    loaded, kernel, map, acpi, smbios, legacy,
                )?)
            }
            None => None,
        };
        let (lines_sink, messages): (Arc<dyn LineSink>, Arc<dyn MsiSink>) = match &fabric {
            Some(fabric) => (Arc::clone(fabric) as _, Arc::clone(fabric) as _),
            None => {
                let engine = Arc::new(EngineLines(Arc::clone(&vm)));
                (Arc::clone(&engine) as _, engine)
            }
        };
        let (bus, console_input) = devices::build(DeviceWiring {
            lines: lines_sink,
            messages,
            fabric: fabric.as_ref(),
            control: Arc::new(Control::new(lines.clone(), wiring.requests)),
            console: wiring.console,
            display: screen
                .clone()
                .zip(config.display.as_ref().map(|d| Arc::clone(&d.rom))),
            keys: &config.keys,
            debug_exit: config.debug_exit,
            debug_console: wiring.debug_console,
            firmware,
            vcpus: config.vcpus,
            memory: map,
            physical_bits: physical_bits(&cpuid),
            ram: Arc::clone(&ram),
            disks,
            epoch_s: config
                .epoch_s
                .unwrap_or_else(|| default_epoch_s(config.clock)),
        });
        let clock = match own_controllers {
            true => Clock::real_time(),
            false => Clock::new(config.clock),
        };
        let board = Arc::new(Board::new(bus, clock, fabric, lines));
        let mut vcpus = create_vcpus(&*vm, &board, config)?;
        vcpus[0].set_state(&entry)?;
        Ok(Self {
            board,
            vcpus,
            console_input,
            screen,
            memory: MemoryContents::new(ram),
        })
    }
}

/// Loads the kernel and the tables it finds without firmware.
fn load_kernel(
    config: &MachineConfig,
    acpi: &AcpiConfig,
    ram: &GuestRam,
    map: &MemoryMap,
) -> Result<VcpuState, MachineError> {
    for table in acpi::build(acpi) {
        ram.write(table.gpa, &table.bytes)?;
    }
    let request = BootRequest {
        kernel: config.kernel.as_ref().ok_or(ConfigError::NothingToStart)?,
        initrd: config.initrd.as_ref(),
        modules: &config.modules,
        cmdline: &config.cmdline,
        rsdp: acpi::rsdp_address(),
        protocol: config.boot_protocol,
        text_screen: config.display.is_some(),
    };
    Ok(boot::load(ram, map, &request)?)
}

/// The boot processor after a reset, with its signature in EDX (SDM Vol 3 Table 10-1).
fn reset_state(cpuid: &CpuidTable) -> VcpuState {
    const EDX: usize = 2;
    let mut state = vcpu::reset(true);
    state.gpr[EDX] = u64::from(cpuid.get(1, 0).unwrap_or_default().eax);
    state
}

fn smbios_config(config: &MachineConfig, memory: MemoryMap, cpuid: &CpuidTable) -> SmbiosConfig {
    let leaf = cpuid.get(1, 0).unwrap_or_default();
    SmbiosConfig {
        vcpus: config.vcpus,
        memory,
        processor_id: (leaf.eax, leaf.edx),
        processor_hz: config.tsc_hz,
    }
}

/// What the clock shows when nothing is asked for: the host's time, or, so that every run on virtual time is
/// the same, the start of 2025.
fn default_epoch_s(mode: ClockMode) -> i64 {
    const START_OF_2025: i64 = 1_735_689_600;
    match mode {
        ClockMode::Virtual => START_OF_2025,
        ClockMode::Host => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|d| i64::try_from(d.as_secs()).ok())
            .unwrap_or(START_OF_2025),
    }
}

fn cpuid_table(config: &MachineConfig) -> CpuidTable {
    model(
        config.cpu,
        &ModelConfig {
            vcpus: config.vcpus,
            nested: config.nested,
            tsc_hz: config.tsc_hz,
            crystal_hz: CRYSTAL_HZ,
            host: HostVector::detect(),
        },
    )
}

fn physical_bits(cpuid: &CpuidTable) -> u8 {
    cpuid
        .get(0x8000_0008, 0)
        .map_or(DEFAULT_PHYSICAL_BITS, |leaf| leaf.eax as u8)
}

/// RAM must lie below what the guest's processor can address.
fn check_reach(
    config: &MachineConfig,
    map: &MemoryMap,
    cpuid: &CpuidTable,
) -> Result<(), MachineError> {
    let bits = physical_bits(cpuid);
    if bits < 64 && map.end().0 > 1 << bits {
        return Err(MachineError::Unaddressable {
            bytes: config.memory_bytes,
            bits,
        });
    }
    Ok(())
}

fn new_fabric(
    config: &MachineConfig,
    cpuid: &CpuidTable,
    lines: &[Arc<VcpuLine>],
) -> Arc<InterruptFabric> {
    let features = cpuid.get(1, 0).unwrap_or_default().ecx;
    let fabric = InterruptFabric::new(&FabricConfig {
        apic_ids: (0..config.vcpus).collect(),
        bus_hz: u64::from(CRYSTAL_HZ),
        tsc_hz: config.tsc_hz,
        physical_address_bits: physical_bits(cpuid),
        x2apic: features & FEATURE_X2APIC != 0,
        tsc_deadline: features & FEATURE_TSC_DEADLINE != 0,
    });
    for (vcpu, line) in lines.iter().enumerate() {
        fabric.connect(vcpu, Arc::clone(line) as _);
    }
    if config.firmware.is_none() {
        // What firmware leaves behind: the 8259A's interrupts reach the boot processor.
        fabric.set_virtual_wire(0);
    }
    fabric
}

fn create_vcpus(
    vm: &dyn Vm,
    board: &Arc<Board>,
    config: &MachineConfig,
) -> Result<Vec<Box<dyn Vcpu>>, EngineError> {
    (0..config.vcpus)
        .map(|index| {
            let at = index as usize;
            let attention = board.lines()[at].attention().clone();
            let platform: Box<dyn vcpu::Platform> = match &board.fabric {
                Some(fabric) => Box::new(SoftPlatform::new(
                    at,
                    Arc::clone(board),
                    Arc::clone(fabric),
                    config.tsc_hz,
                )),
                None => Box::new(PortsPlatform::new(Arc::clone(board))),
            };
            vm.create_vcpu(index, platform, attention)
        })
        .collect()
}

#[cfg(test)]
mod tests;
