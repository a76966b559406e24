//! The board's devices at their addresses.

use std::sync::{Arc, Mutex};

use bus::{Bus, BusBuilder, Device, IrqLine, LineSink, MsiSink, Region};
use chipset::SystemControl;
use chipset::acpi_pm::{self, AcpiPmDevice, ResetPort};
use chipset::coprocessor::{self, CoprocessorPorts};
use chipset::debug_ports::{self, DebugConsole, DebugExit, PostCode};
use chipset::fabric::InterruptFabric;
use chipset::fw_cfg;
use chipset::hpet::{self, HpetDevice, LegacyRoute};
use chipset::i8042::{self, I8042Device, Typed};
use chipset::ioapic::{self, IoApicDevice};
use chipset::pic::PicDevice;
use chipset::pit::PitDevice;
use chipset::rtc::{self, RtcDevice};
use chipset::serial::{self, Serial, SerialInput, SerialOutput};
use display::{LegacyWindow, Screen};
use guestmem::{Gpa, GuestRam};

use crate::disks::Disks;
use crate::firmware::FirmwareBoard;
use crate::functions::Functions;
use crate::memory::{FOUR_GIB, MemoryMap};
use crate::ports;

/// What devices are connected to.
pub(crate) struct DeviceWiring<'a> {
    /// Takes the global system interrupts' lines.
    pub lines: Arc<dyn LineSink>,
    /// Takes message-signalled interrupts.
    pub messages: Arc<dyn MsiSink>,
    /// The software interrupt controllers, unless the engine has its own.
    pub fabric: Option<&'a Arc<InterruptFabric>>,
    /// Takes the guest's requests.
    pub control: Arc<dyn SystemControl>,
    /// Takes the first serial port's output.
    pub console: Box<dyn SerialOutput>,
    /// The display and what its expansion ROM holds.
    pub display: Option<(Screen, Arc<Vec<u8>>)>,
    /// What is typed on the keyboard.
    pub keys: &'a Typed,
    /// Whether there is a debug-exit port.
    pub debug_exit: bool,
    /// Takes the debug console's output, if there is such a port.
    pub debug_console: Option<Box<dyn SerialOutput>>,
    /// What is there for firmware, if the machine starts with one.
    pub firmware: Option<FirmwareBoard>,
    /// Number of vCPUs, for the CMOS.
    pub vcpus: u32,
    /// Where RAM is, for the CMOS and the PCI windows.
    pub memory: MemoryMap,
    /// Bits of a guest-physical address.
    pub physical_bits: u8,
    /// RAM, for devices that read and write it.
    pub ram: Arc<GuestRam>,
    /// The disks' images.
    pub disks: Disks,
    /// What the clock shows at time zero, in seconds since 1970.
    pub epoch_s: i64,
}

/// Adds devices at addresses that are the board's own and cannot clash.
struct Adder(BusBuilder);

impl Adder {
    fn add(
        &mut self,
        device: impl Device + 'static,
        ports: &[(u16, u16, Region)],
        mmio: &[(Gpa, u64, Region)],
    ) {
        self.0
            .add(Arc::new(Mutex::new(device)), ports, mmio)
            .unwrap_or_else(|e| unreachable!("the board's address map: {e}"));
    }

    /// A device with one region of ports.
    fn add_ports(&mut self, device: impl Device + 'static, first: u16, count: u16) {
        self.add(device, &[(first, count, Region(0))], &[]);
    }

    /// A device with one region of memory.
    fn add_mmio(&mut self, device: impl Device + 'static, base: u64, size_bytes: u64) {
        self.add(device, &[], &[(Gpa(base), size_bytes, Region(0))]);
    }
}

/// Builds the bus. Gives it and the writing end of the first serial port.
///
/// With an engine that has interrupt controllers and PIT of its own these are left out, and so is the HPET,
/// whose legacy replacement would have to take over that PIT's line.
pub(crate) fn build(wiring: DeviceWiring<'_>) -> (Bus, SerialInput) {
    let lines = &wiring.lines;
    let line = |gsi| IrqLine::new(Arc::clone(lines), gsi);
    let mut bus = Adder(BusBuilder::new());
    let mut rtc_line = line(rtc::regs::IRQ);
    if let Some(fabric) = wiring.fabric {
        let legacy = LegacyRoute::new(Arc::clone(lines));
        rtc_line = legacy.rtc_line();
        interrupt_controllers(&mut bus, fabric);
        bus.add(PitDevice::new(legacy.pit_line()), &PitDevice::PORTS, &[]);
        let hpet = HpetDevice::new(Arc::clone(lines), legacy);
        bus.add_mmio(hpet, hpet::regs::BASE, hpet::regs::MMIO_SIZE);
    }
    let rtc = clock(wiring.epoch_s, rtc_line, &wiring.memory, wiring.vcpus);
    bus.add_ports(rtc, rtc::regs::PORT, 4);
    let (com1, input) = Serial::new(line(u32::from(ports::COM1_IRQ)), wiring.console);
    bus.add_ports(com1, ports::COM1, serial::regs::PORTS);
    bus.add_ports(PostCode::new(), debug_ports::POST_PORT, 1);
    let sci = line(acpi_pm::regs::SCI_IRQ);
    let pm = AcpiPmDevice::new(sci, Arc::clone(&wiring.control));
    bus.add_ports(pm, acpi_pm::regs::PORT, acpi_pm::regs::PORTS);
    let reset = ResetPort::new(Arc::clone(&wiring.control));
    bus.add_ports(reset, acpi_pm::regs::RESET_PORT, 1);
    let mut keyboard = I8042Device::new(
        line(i8042::regs::KEYBOARD_IRQ),
        line(i8042::regs::AUX_IRQ),
        Arc::clone(&wiring.control),
    );
    keyboard.type_keys(&wiring.keys.0);
    bus.add(keyboard, &I8042Device::PORTS, &[]);
    let messages = Arc::clone(&wiring.messages);
    let mut functions = Functions::new(
        lines,
        messages,
        &wiring.memory,
        wiring.physical_bits,
        wiring.firmware.as_ref(),
    );
    functions.add_disks(wiring.disks, &wiring.ram);
    if let Some((screen, rom)) = &wiring.display {
        functions.add_display(screen, rom);
        let window = LegacyWindow::new(screen.clone());
        bus.add(window, &LegacyWindow::PORTS, &[LegacyWindow::MEMORY]);
    }
    let pci = functions.finish();
    let (pci_ports, pci_mmio) = (pci.ports(), pci.mmio());
    bus.add(pci, &pci_ports, &pci_mmio);
    if wiring.debug_exit {
        let exit = DebugExit::new(Arc::clone(&wiring.control));
        bus.add_ports(exit, debug_ports::DEBUG_EXIT_PORT, 4);
    }
    if let Some(output) = wiring.debug_console {
        let console = DebugConsole::new(output);
        bus.add_ports(console, debug_ports::DEBUG_CONSOLE_PORT, 1);
    }
    if let Some(firmware) = wiring.firmware {
        let configuration = firmware.configuration;
        bus.add_ports(configuration, fw_cfg::regs::PORT, fw_cfg::regs::PORTS);
        if let Some((flash, base, bytes)) = firmware.flash {
            bus.add_mmio(flash, base.0, bytes);
        }
    }
    (bus.0.build(), input)
}

fn interrupt_controllers(bus: &mut Adder, fabric: &Arc<InterruptFabric>) {
    bus.add(PicDevice::new(Arc::clone(fabric)), &PicDevice::PORTS, &[]);
    let errors = CoprocessorPorts::new(Arc::clone(fabric));
    bus.add_ports(errors, coprocessor::PORT, coprocessor::PORTS);
    let ioapic = IoApicDevice::new(Arc::clone(fabric));
    bus.add_mmio(ioapic, ioapic::regs::BASE, ioapic::regs::MMIO_SIZE);
}

/// The clock with the memory sizes that firmware of a PC reads from its RAM.
fn clock(epoch_s: i64, line: IrqLine, memory: &MemoryMap, vcpus: u32) -> RtcDevice {
    /// Equipment: a floating-point unit; no pointing device (bit 2), since none is on the auxiliary port.
    const EQUIPMENT: (u8, u8) = (0x14, 0x02);
    /// Boot order, a nibble each from the low one of 3Dh to the high one of 38h: hard disk, floppy, CD.
    const BOOT_ORDER: [(u8, u8); 2] = [(0x3d, 0x12), (0x38, 0x30)];
    /// vCPUs less one.
    const CPUS: u8 = 0x5f;
    const BASE_KIB: u8 = 0x15;
    const EXTENDED_KIB: [u8; 2] = [0x17, 0x30];
    const ABOVE_16_MIB_64KIB: u8 = 0x34;
    const ABOVE_4_GIB_64KIB: u8 = 0x5b;
    let low = memory.low_end().0;
    let high = memory.end().0.saturating_sub(FOUR_GIB);
    let mut rtc = RtcDevice::new(epoch_s, line);
    let mut put = |index: u8, bytes: &[u8]| {
        for (index, &byte) in (index..).zip(bytes) {
            rtc.set_ram(index, byte);
        }
    };
    put(BASE_KIB, &640u16.to_le_bytes());
    let extended = ((low >> 10).saturating_sub(1024)).min(0xffff) as u16;
    for index in EXTENDED_KIB {
        put(index, &extended.to_le_bytes());
    }
    let above_16_mib = (low.saturating_sub(16 << 20) >> 16).min(0xffff) as u16;
    put(ABOVE_16_MIB_64KIB, &above_16_mib.to_le_bytes());
    put(ABOVE_4_GIB_64KIB, &(high >> 16).to_le_bytes()[..3]);
    for (index, value) in BOOT_ORDER.into_iter().chain([EQUIPMENT]) {
        put(index, &[value]);
    }
    put(
        CPUS,
        &[u8::try_from(vcpus.saturating_sub(1)).unwrap_or(u8::MAX)],
    );
    rtc
}
