//! The differentiated system description table: processors, the PCI root, the legacy devices, S5.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Memory32Fixed, Name, Package,
    PackageBuilder, Path, ResourceTemplate, Scope,
};
use acpi_tables::{Aml, AmlSink};

use pci::IntxRouter;

use super::osc::HostBridge;
use super::{AcpiConfig, new_table};
use crate::memory::{ECAM_SIZE_BYTES, HPET_BASE, LEGACY_START};
use crate::ports;

/// End of the legacy video window.
const VIDEO_LAST: u32 = 0xb_ffff;
const PCI_SLOTS: u8 = 32;
const PCI_PINS: u8 = 4;

/// An ISA device: name, hardware id, ports `(first, count)`, interrupt.
struct IsaDevice {
    name: &'static str,
    id: &'static str,
    ports: &'static [(u16, u8)],
    irq: Option<u8>,
}

/// The legacy devices with fixed addresses (hardware ids: PNP device id list).
const ISA_DEVICES: [IsaDevice; 5] = [
    IsaDevice {
        name: "PIC_",
        id: "PNP0000",
        ports: &[(0x20, 2), (0xa0, 2), (0x4d0, 2)],
        irq: Some(2),
    },
    IsaDevice {
        name: "TMR_",
        id: "PNP0100",
        ports: &[(0x40, 4)],
        irq: Some(0),
    },
    IsaDevice {
        name: "RTC_",
        id: "PNP0B00",
        ports: &[(0x70, 2)],
        irq: Some(8),
    },
    IsaDevice {
        name: "KBD_",
        id: "PNP0303",
        ports: &[(0x60, 1), (0x64, 1)],
        irq: Some(1),
    },
    IsaDevice {
        name: "COM1",
        id: "PNP0501",
        ports: &[(ports::COM1, 8)],
        irq: Some(ports::COM1_IRQ),
    },
];

/// IRQ descriptor without flags (ACPI 6.5, 6.4.2.1): edge-triggered, active high, exclusive.
struct IsaInterrupt(u8);

impl Aml for IsaInterrupt {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1 << self.0);
    }
}

fn boxed(aml: impl Aml + 'static) -> Box<dyn Aml> {
    Box::new(aml)
}

fn borrow(children: &[Box<dyn Aml>]) -> Vec<&dyn Aml> {
    children.iter().map(AsRef::as_ref).collect()
}

/// The whole table.
pub(super) fn build(config: &AcpiConfig) -> Vec<u8> {
    let mut table = new_table(*b"DSDT", 2);
    let mut aml = Vec::new();
    soft_off(&mut aml);
    processors(config.vcpus, &mut aml);
    pci_root(config, &mut aml);
    isa_devices(&mut aml);
    if config.hpet {
        hpet(&mut aml);
    }
    table.append_slice(&aml);
    table.as_slice().to_vec()
}

/// `\_S5`: the sleep type that turns the machine off (7.4.2).
fn soft_off(sink: &mut dyn AmlSink) {
    let values = [ports::SLEEP_TYPE_S5, ports::SLEEP_TYPE_S5, 0, 0];
    let package = Package::new(values.iter().map(|v| v as &dyn Aml).collect());
    Name::new(Path::new("_S5_"), &package).to_aml_bytes(sink);
}

/// A device with the given named objects.
fn device(name: &str, objects: &[(&str, &dyn Aml)]) -> Vec<u8> {
    let named: Vec<Name> = objects
        .iter()
        .map(|&(name, value)| Name::new(Path::new(name), value))
        .collect();
    let children = named.iter().map(|n| n as &dyn Aml).collect();
    super::bytes_of(&Device::new(Path::new(name), children))
}

/// Processor devices (8.4); `_UID` is the MADT's processor uid.
fn processors(vcpus: u32, sink: &mut dyn AmlSink) {
    let devices: Vec<Vec<u8>> = (0..vcpus)
        .map(|id| {
            device(
                &format!("C{id:03X}"),
                &[("_HID", &"ACPI0007"), ("_UID", &id)],
            )
        })
        .collect();
    sink.vec(&Scope::raw(Path::new("_SB_"), devices.concat()));
}

/// Interrupt routing of bus 0 (6.2.13): every pin goes to a fixed GSI.
fn interrupt_routing() -> PackageBuilder {
    let mut table = PackageBuilder::new();
    for slot in 0..PCI_SLOTS {
        for pin in 0..PCI_PINS {
            let address = u32::from(slot) << 16 | 0xffff;
            let gsi = IntxRouter::gsi(slot, pin);
            table.add_element(&Package::new(vec![&address, &pin, &0u8, &gsi]));
        }
    }
    table
}

fn pci_root(config: &AcpiConfig, sink: &mut dyn AmlSink) {
    let memory = |first, last| {
        boxed(AddressSpace::<u32>::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            first,
            last,
            None,
        ))
    };
    let mut windows = vec![
        boxed(AddressSpace::<u16>::new_bus_number(0, 255)),
        // The configuration ports themselves are consumed, the rest is passed to the bus.
        boxed(IO::new(0xcf8, 0xcf8, 1, 8)),
        boxed(AddressSpace::<u16>::new_io(0, 0xcf7, None)),
        boxed(AddressSpace::<u16>::new_io(0xd00, 0xffff, None)),
        memory(LEGACY_START as u32, VIDEO_LAST),
    ];
    let low = config.pci_low_windows();
    windows.extend(low.map(|(first, last)| memory(first, last)));
    if !config.pci_high.is_empty() {
        windows.push(boxed(AddressSpace::<u64>::new_memory(
            AddressSpaceCacheable::Cacheable,
            true,
            config.pci_high.start,
            config.pci_high.end - 1,
            None,
        )));
    }
    let crs = ResourceTemplate::new(borrow(&windows));
    let routing = interrupt_routing();
    let express = EISAName::new("PNP0A08");
    let conventional = EISAName::new("PNP0A03");
    let root = device(
        "PCI0",
        &[
            ("_HID", &express),
            ("_CID", &conventional),
            ("_UID", &0u8),
            ("_SEG", &0u8),
            ("_BBN", &0u8),
            ("_CRS", &crs),
            ("_PRT", &routing),
        ],
    );
    // The ECAM window must be reserved by a motherboard device (PCI Firmware 3.3, 4.1.2).
    let board = memory_device(
        "MBRD",
        "PNP0C02",
        config.ecam.0 as u32,
        ECAM_SIZE_BYTES as u32,
    );
    sink.vec(&Scope::raw("_SB_".into(), [root, board].concat()));
    let control = super::bytes_of(&HostBridge);
    sink.vec(&Scope::raw("_SB_.PCI0".into(), control));
}

/// A device that is nothing but a range of memory.
fn memory_device(name: &str, id: &str, base: u32, size_bytes: u32) -> Vec<u8> {
    let memory = Memory32Fixed::new(true, base, size_bytes);
    let crs = ResourceTemplate::new(vec![&memory]);
    let id = EISAName::new(id);
    device(name, &[("_HID", &id), ("_UID", &0u8), ("_CRS", &crs)])
}

fn isa_devices(sink: &mut dyn AmlSink) {
    let devices: Vec<Vec<u8>> = ISA_DEVICES
        .iter()
        .map(|d| {
            let mut resources: Vec<Box<dyn Aml>> = Vec::new();
            for &(first, count) in d.ports {
                resources.push(boxed(IO::new(first, first, 1, count)));
            }
            if let Some(irq) = d.irq {
                resources.push(boxed(IsaInterrupt(irq)));
            }
            let id = EISAName::new(d.id);
            let crs = ResourceTemplate::new(borrow(&resources));
            device(d.name, &[("_HID", &id), ("_UID", &0u8), ("_CRS", &crs)])
        })
        .collect();
    sink.vec(&Scope::raw("_SB_.PCI0".into(), devices.concat()));
}

fn hpet(sink: &mut dyn AmlSink) {
    const HPET_SIZE_BYTES: u32 = 0x400;
    let hpet = memory_device("HPET", "PNP0103", HPET_BASE.0 as u32, HPET_SIZE_BYTES);
    sink.vec(&Scope::raw("_SB_".into(), hpet));
}
