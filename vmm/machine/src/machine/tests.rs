use std::sync::Mutex;

use guestmem::Gpa;
use vcpu::{Attention, Capabilities, MpState, Platform, RunExit, VcpuState};

use super::*;
use crate::config::Image;

/// An engine that keeps what it was given.
#[derive(Default)]
struct Recorder {
    own_interrupt_controllers: bool,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    config: Option<VmConfig>,
    ram: Option<Arc<GuestRam>>,
    states: Vec<(u32, VcpuState)>,
    lines: Vec<(u32, bool)>,
    platforms: Vec<Box<dyn Platform>>,
}

struct RecorderVm(Arc<Mutex<Seen>>);
struct RecorderVcpu(Arc<Mutex<Seen>>, u32);

impl Engine for Recorder {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "recorder",
            own_interrupt_controllers: self.own_interrupt_controllers,
            nested_intel: true,
            nested_amd: false,
            max_vcpus: 8,
        }
    }
    fn create_vm(&self, config: &VmConfig, ram: Arc<GuestRam>) -> Result<Arc<dyn Vm>, EngineError> {
        let mut seen = self.seen.lock().expect("no panic");
        seen.config = Some(config.clone());
        seen.ram = Some(ram);
        Ok(Arc::new(RecorderVm(Arc::clone(&self.seen))))
    }
}

impl Vm for RecorderVm {
    fn create_vcpu(
        &self,
        index: u32,
        platform: Box<dyn Platform>,
        _: Attention,
    ) -> Result<Box<dyn Vcpu>, EngineError> {
        self.0.lock().expect("no panic").platforms.push(platform);
        Ok(Box::new(RecorderVcpu(Arc::clone(&self.0), index)))
    }
    fn set_irq_line(&self, gsi: u32, high: bool) {
        self.0.lock().expect("no panic").lines.push((gsi, high));
    }
}

impl Vcpu for RecorderVcpu {
    fn run(&mut self) -> Result<RunExit, EngineError> {
        Ok(RunExit::Stopped)
    }
    fn kicker(&self) -> Box<dyn Fn() + Send + Sync> {
        Box::new(|| ())
    }
    fn state(&mut self) -> Result<VcpuState, EngineError> {
        Ok(VcpuState::default())
    }
    fn set_state(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        let mut seen = self.0.lock().expect("no panic");
        seen.states.push((self.1, state.clone()));
        Ok(())
    }
}

struct Silence;
impl SerialOutput for Silence {
    fn write(&mut self, _: &[u8]) {}
}

fn build(
    engine: &Recorder,
    change: impl FnOnce(&mut MachineConfig),
) -> Result<Machine, MachineError> {
    let mut config = MachineConfig {
        memory_bytes: 64 << 20,
        kernel: Some(Image::Bytes(Arc::new(boot::tests::kernel_bytes()))),
        ..MachineConfig::default()
    };
    change(&mut config);
    let wiring = Wiring {
        debug_console: None,
        console: Box::new(Silence),
        requests: Box::new(|_| ()),
    };
    Machine::build(engine, &config, wiring)
}

/// Looks for a table of the guest's XSDT, starting from the zero page, as a guest does.
fn has_table(ram: &GuestRam, signature: &[u8; 4]) -> bool {
    let u64_at = |gpa: u64| {
        let mut b = [0; 8];
        ram.read(Gpa(gpa), &mut b).expect("tables are in RAM");
        u64::from_le_bytes(b)
    };
    let rsdp = u64_at(0x7000 + 0x70);
    let xsdt = u64_at(rsdp + 24);
    let length = u64_at(xsdt) >> 32;
    (36..length)
        .step_by(8)
        .any(|at| u64_at(u64_at(xsdt + at)).to_le_bytes()[..4] == *signature)
}

#[test]
fn a_machine_has_its_vcpus_and_the_boot_processor_enters_the_kernel() {
    let engine = Recorder::default();
    let machine = build(&engine, |c| c.vcpus = 3).expect("it can be built");
    assert_eq!(machine.vcpus.len(), 3);
    assert!(!machine.board.needs_timekeeper());
    let seen = engine.seen.lock().expect("no panic");
    let [(0, state)] = &seen.states[..] else {
        panic!("one state, the boot processor's");
    };
    assert_eq!(state.rip, 0x100_0200);
    assert_eq!(state.mp_state, MpState::Running);
    let config = seen.config.as_ref().expect("a VM was made");
    assert_eq!((config.vcpus, config.tsc_hz), (3, 1_000_000_000));
    assert!(config.cpuid.get(0, 0).is_some());
    let ram = seen.ram.as_ref().expect("a VM was made");
    for table in [b"FACP", b"APIC", b"MCFG", b"HPET"] {
        assert!(has_table(ram, table));
    }
}

#[test]
fn an_engine_with_interrupt_controllers_gets_the_lines_and_no_hpet() {
    let engine = Recorder {
        own_interrupt_controllers: true,
        ..Recorder::default()
    };
    let machine = build(&engine, |_| ()).expect("it can be built");
    assert!(machine.board.needs_timekeeper());
    let mut seen = engine.seen.lock().expect("no panic");
    assert!(!has_table(
        seen.ram.as_ref().expect("a VM was made"),
        b"HPET"
    ));
    let mut platform = seen.platforms.pop().expect("one vCPU");
    drop(seen);
    // No interrupt controller answers at its ports and page.
    assert_eq!(platform.pio_read(0x21, 1, 0), 0xff);
    let mut data = [0; 4];
    platform.mmio_read(Gpa(0xfec0_0000), &mut data, 0);
    assert_eq!(data, [0xff; 4]);
    // The serial port's transmitter interrupt goes to GSI 4: OUT2, then IER bit 1.
    platform.pio_write(0x3fc, 1, 8, 0);
    platform.pio_write(0x3f9, 1, 2, 0);
    let seen = engine.seen.lock().expect("no panic");
    assert_eq!(seen.lines.iter().rfind(|l| l.0 == 4), Some(&(4, true)));
}

#[test]
fn the_pci_host_answers_with_the_chipsets_functions() {
    let engine = Recorder::default();
    build(&engine, |_| ()).expect("it can be built");
    let mut platform = engine.seen.lock().expect("no panic").platforms.remove(0);
    // Vendor and device of 00:00.0 by mechanism 1, and of 00:1f.0 by ECAM.
    platform.pio_write(0xcf8, 4, 0x8000_0000, 0);
    assert_eq!(platform.pio_read(0xcfc, 4, 0), 0x29c0_8086);
    let mut id = [0; 4];
    platform.mmio_read(Gpa(0xb000_0000 + (0x1f << 15)), &mut id, 0);
    assert_eq!(u32::from_le_bytes(id), 0x2918_8086);
}

#[test]
fn what_cannot_be_built_says_why() {
    let error = |change: fn(&mut MachineConfig)| {
        build(&Recorder::default(), change)
            .err()
            .expect("it cannot be built")
            .to_string()
    };
    assert!(error(|c| c.memory_bytes = 1 << 20).contains("too little"));
    assert!(error(|c| c.memory_bytes = 1 << 40).contains("address bits"));
    assert!(error(|c| c.memory_bytes = 16 << 20).contains("give the VM more memory"));
    assert!(error(|c| c.vcpus = 9).contains("at most 8"));
    assert!(error(|c| c.nested = vcpu::NestedVirt::Amd).contains("AMD-V"));
    assert!(
        error(|c| c.kernel = Some(Image::File("/nonexistent".into()))).contains("/nonexistent")
    );
    assert!(error(|c| c.cmdline = "x".repeat(5000)).contains("at most"));
}

#[test]
fn virtual_time_starts_at_a_fixed_date() {
    assert_eq!(default_epoch_s(ClockMode::Virtual), 1_735_689_600);
    assert!(default_epoch_s(ClockMode::Host) > 1_735_689_600);
}

/// What the CMOS says of the equipment is there: a floating-point unit, and, as the auxiliary port is empty, no mouse.
#[test]
fn the_equipment_byte_claims_no_mouse() {
    let machine = build(&Recorder::default(), |_| ()).expect("it can be built");
    let bus = &machine.board.bus;
    let now = machine.board.now();
    let write = |port, value| bus.pio_write(port, &[value], now);
    let read = |port| {
        let mut value = [0];
        bus.pio_read(port, &mut value, now);
        value[0]
    };
    write(0x70, 0x14);
    assert_eq!(
        read(0x71) & 0b110,
        0b010,
        "bit 1 FPU, bit 2 pointing device"
    );
    // The auxiliary device's interface on; a reset sent to it is answered by a timeout.
    write(0x64, 0xa8);
    write(0x64, 0xd4);
    write(0x60, 0xff);
    assert_eq!(read(0x64) & 0x61, 0x61, "time-out, of the auxiliary device");
}
