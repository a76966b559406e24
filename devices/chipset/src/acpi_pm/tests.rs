//! Facts from ACPI 6.5 section 4.8 and the ICH9 datasheet.

use super::*;
use crate::testing::{Control, Lines, inb, keeps_contract, outb};

const T0: VirtualTime = VirtualTime(0);

fn device() -> (AcpiPmDevice, Arc<Lines>, Arc<Control>) {
    let (lines, control) = (Lines::new(), Arc::new(Control::default()));
    (
        AcpiPmDevice::new(lines.line(9), control.clone()),
        lines,
        control,
    )
}

fn read(device: &mut AcpiPmDevice, offset: u64, size: usize, now: VirtualTime) -> u32 {
    let mut data = [0; 4];
    device.read(Region(0), offset, &mut data[..size], now);
    u32::from_le_bytes(data)
}

fn write16(device: &mut AcpiPmDevice, offset: u64, value: u16, now: VirtualTime) {
    device.write(Region(0), offset, &value.to_le_bytes(), now);
}

#[test]
fn the_timer_counts_at_its_frequency() {
    // 4.8.3.3: 3.579545 MHz.
    let (mut device, ..) = device();
    assert_eq!(read(&mut device, 8, 4, T0), 0);
    assert_eq!(
        read(&mut device, 8, 4, VirtualTime(1_000_000_000)),
        3_579_545
    );
    assert_eq!(
        read(&mut device, 8, 4, VirtualTime(3_600_000_000_000)),
        (3_579_545u64 * 3600) as u32
    );
}

#[test]
fn the_timers_highest_bit_sets_its_status() {
    let (mut device, lines, _) = device();
    assert_eq!(device.deadline(), None);
    write16(&mut device, 2, 1, T0);
    let due = device.deadline().expect("enabled");
    assert_eq!(due, VirtualTime::from_ticks(1 << 31, 3_579_545));
    device.advance(VirtualTime(due.0 - 1));
    assert!(!lines.level(9));
    device.advance(due);
    assert!(lines.level(9));
    assert_eq!(read(&mut device, 0, 2, due), 1);
    // Writing one clears.
    write16(&mut device, 0, 1, due);
    assert!(!lines.level(9));
    assert_eq!(
        device.deadline(),
        Some(VirtualTime::from_ticks(1 << 32, 3_579_545))
    );
}

#[test]
fn the_power_button_raises_sci_when_enabled() {
    let (mut device, lines, _) = device();
    device.press_power_button();
    assert!(!lines.level(9));
    assert_eq!(read(&mut device, 0, 2, T0), 1 << 8);
    write16(&mut device, 2, 1 << 8, T0);
    assert!(lines.level(9));
    write16(&mut device, 0, 1 << 8, T0);
    assert!(!lines.level(9));
}

#[test]
fn general_purpose_events() {
    // 4.8.4.1: the first half of the block is status, the second enable.
    let (mut device, lines, _) = device();
    device.raise_gpe(11);
    device.raise_gpe(200);
    assert_eq!(read(&mut device, 0x21, 1, T0), 1 << 3);
    outb(&mut device, 0, 0x29, 1 << 3, T0);
    assert!(lines.level(9));
    outb(&mut device, 0, 0x21, 1 << 3, T0);
    assert!(!lines.level(9));
}

#[test]
fn s5_powers_off() {
    let (mut device, _, control) = device();
    assert_eq!(read(&mut device, 4, 2, T0), 1, "SCI_EN");
    // SLP_TYP alone, then SLP_EN with another type: nothing.
    write16(&mut device, 4, 7 << 10, T0);
    assert_eq!(read(&mut device, 4, 2, T0), 7 << 10 | 1);
    write16(&mut device, 4, 5 << 10 | 1 << 13, T0);
    assert!(control.taken().is_empty());
    write16(&mut device, 4, 7 << 10 | 1 << 13, T0);
    assert_eq!(control.taken(), ["power off"]);
    assert_eq!(
        read(&mut device, 4, 2, T0),
        7 << 10 | 1,
        "SLP_EN reads zero"
    );
}

#[test]
fn the_reset_port_resets_on_the_rising_edge() {
    let control = Arc::new(Control::default());
    let mut port = ResetPort::new(control.clone());
    outb(&mut port, 0, 0, 0x02, T0);
    assert!(control.taken().is_empty());
    outb(&mut port, 0, 0, 0x06, T0);
    assert_eq!(control.taken(), ["reset"]);
    outb(&mut port, 0, 0, 0x0e, T0);
    assert!(control.taken().is_empty());
    assert_eq!(inb(&mut port, 0, 0, T0), 0x0e);
    // What the FADT says is enough on its own.
    let mut port = ResetPort::new(control.clone());
    outb(&mut port, 0, 0, regs::RESET_VALUE, T0);
    assert_eq!(control.taken(), ["reset"]);
}

#[test]
fn keeps_the_device_contract() {
    keeps_contract(|| device().0, &[(0, 0x80)]);
    keeps_contract(|| ResetPort::new(Arc::new(Control::default())), &[(0, 1)]);
}
