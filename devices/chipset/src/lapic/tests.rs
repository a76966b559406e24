//! Facts from SDM Vol 3 chapter 12 (local APIC), by section.

use bus::VirtualTime;

use super::*;
use crate::message::{DeliveryMode, Destination, InterruptMessage, Trigger};
use crate::testing::XorShift;

const T0: VirtualTime = VirtualTime(0);
const SVR_ON: u32 = 0x1ff;

fn config() -> LapicConfig {
    LapicConfig {
        apic_id: 5,
        bootstrap: true,
        bus_hz: 1_000_000_000,
        tsc_hz: 2_000_000_000,
        physical_address_bits: 39,
        x2apic: true,
        tsc_deadline: true,
    }
}

fn read(lapic: &mut Lapic, offset: u64, now: VirtualTime) -> u32 {
    let mut data = [0; 4];
    lapic.mmio_read(offset, &mut data, now);
    u32::from_le_bytes(data)
}

fn write(lapic: &mut Lapic, offset: u64, value: u32, now: VirtualTime) -> Option<Outgoing> {
    lapic.mmio_write(offset, &value.to_le_bytes(), now)
}

/// An xAPIC that software has enabled.
fn enabled() -> Lapic {
    let mut lapic = Lapic::new(config());
    write(&mut lapic, 0xf0, SVR_ON, T0);
    lapic
}

/// The same in x2APIC mode.
fn x2apic() -> Lapic {
    let mut lapic = enabled();
    lapic
        .msr_write(0x1b, 0xfee0_0d00, T0)
        .expect("xAPIC to x2APIC is legal");
    lapic
}

fn fixed(lapic: &mut Lapic, vector: u8) -> Acceptance {
    lapic.accept(DeliveryMode::Fixed, vector, Trigger::Edge)
}

#[test]
fn state_after_reset() {
    // 12.4.7.1 and table 12-1.
    let mut lapic = Lapic::new(config());
    assert_eq!(lapic.msr_read(0x1b, T0), Ok(0xfee0_0900));
    for offset in [0x80, 0xa0, 0xd0, 0x280, 0x300, 0x310, 0x380, 0x390, 0x3e0] {
        assert_eq!(read(&mut lapic, offset, T0), 0, "{offset:#x}");
    }
    for offset in (0x100..0x280).step_by(16) {
        assert_eq!(read(&mut lapic, offset, T0), 0, "ISR, TMR, IRR");
    }
    for offset in (0x320..=0x370).step_by(16) {
        assert_eq!(read(&mut lapic, offset, T0), 0x1_0000, "LVT masked");
    }
    assert_eq!(read(&mut lapic, 0xe0, T0), u32::MAX, "DFR");
    assert_eq!(read(&mut lapic, 0xf0, T0), 0xff, "SVR");
    assert_eq!(read(&mut lapic, 0x20, T0), 5 << 24, "ID");
    // 12.4.8: integrated (10h to 15h), highest LVT entry 5.
    assert_eq!(read(&mut lapic, 0x30, T0), 0x0005_0015);
}

#[test]
fn init_keeps_base_and_id() {
    let mut lapic = x2apic();
    lapic.msr_write(0x808, 0x55, T0).expect("TPR");
    lapic.accept(DeliveryMode::StartUp, 0x9f, Trigger::Edge);
    lapic.init_reset();
    assert_eq!(lapic.msr_read(0x1b, T0), Ok(0xfee0_0d00));
    assert_eq!(lapic.msr_read(0x802, T0), Ok(5));
    assert_eq!(lapic.msr_read(0x808, T0), Ok(0));
    assert_eq!(lapic.msr_read(0x80f, T0), Ok(0xff));
    assert_eq!(lapic.take_sipi(), Some(0x9f));
    lapic.reset();
    assert_eq!(lapic, Lapic::new(config()));
}

#[test]
fn priorities() {
    let mut lapic = enabled();
    fixed(&mut lapic, 0x41);
    fixed(&mut lapic, 0x52);
    // 12.8.3: the higher vector first; its class must exceed the processor priority's.
    assert_eq!(lapic.acknowledge(), Some(0x52));
    assert_eq!(read(&mut lapic, 0xa0, T0), 0x50, "PPR follows ISR");
    assert_eq!(lapic.acknowledge(), None);
    fixed(&mut lapic, 0x5f);
    assert_eq!(
        lapic.pending_vector(),
        None,
        "same class does not interrupt"
    );
    fixed(&mut lapic, 0x60);
    assert_eq!(lapic.acknowledge(), Some(0x60));
    write(&mut lapic, 0xb0, 0, T0);
    write(&mut lapic, 0xb0, 0, T0);
    assert_eq!(lapic.acknowledge(), Some(0x5f));
    write(&mut lapic, 0xb0, 0, T0);
    write(&mut lapic, 0x80, 0x47, T0);
    assert_eq!(
        read(&mut lapic, 0xa0, T0),
        0x47,
        "12.8.3.1: TPR when its class is higher"
    );
    assert_eq!(lapic.pending_vector(), None);
    lapic.set_tpr(0x3f);
    assert_eq!(lapic.acknowledge(), Some(0x41));
}

#[test]
fn irr_isr_tmr_are_256_bits() {
    let mut lapic = enabled();
    lapic.accept(DeliveryMode::Fixed, 0x31, Trigger::Level);
    fixed(&mut lapic, 0xff);
    assert_eq!(read(&mut lapic, 0x210, T0), 1 << 0x11);
    assert_eq!(read(&mut lapic, 0x270, T0), 1 << 31);
    assert_eq!(read(&mut lapic, 0x190, T0), 1 << 0x11);
    assert_eq!(read(&mut lapic, 0x1f0, T0), 0);
    assert_eq!(lapic.acknowledge(), Some(0xff));
    assert_eq!(read(&mut lapic, 0x270, T0), 0);
    assert_eq!(read(&mut lapic, 0x170, T0), 1 << 31);
    // A second of the same vector waits in IRR while the first is in service.
    assert_eq!(fixed(&mut lapic, 0xff), Acceptance::New);
    assert_eq!(fixed(&mut lapic, 0xff), Acceptance::Merged);
}

#[test]
fn only_level_interrupts_broadcast_their_eoi() {
    // 12.8.5.
    let mut lapic = enabled();
    lapic.accept(DeliveryMode::Fixed, 0x31, Trigger::Level);
    lapic.acknowledge();
    assert_eq!(write(&mut lapic, 0xb0, 0, T0), Some(Outgoing::Eoi(0x31)));
    assert_eq!(write(&mut lapic, 0xb0, 0, T0), None);
    fixed(&mut lapic, 0x31);
    lapic.acknowledge();
    assert_eq!(write(&mut lapic, 0xb0, 0, T0), None);
}

#[test]
fn software_disabled_takes_only_what_has_no_vector() {
    // 12.4.7.2.
    let mut lapic = Lapic::new(config());
    assert_eq!(fixed(&mut lapic, 0x40), Acceptance::Refused);
    assert_eq!(
        lapic.accept(DeliveryMode::Nmi, 0, Trigger::Edge),
        Acceptance::New
    );
    assert_eq!(
        lapic.accept(DeliveryMode::Init, 0, Trigger::Edge),
        Acceptance::New
    );
    assert_eq!(
        lapic.accept(DeliveryMode::StartUp, 8, Trigger::Edge),
        Acceptance::New
    );
    write(&mut lapic, 0x320, 0x40, T0);
    assert_eq!(
        read(&mut lapic, 0x320, T0),
        0x1_0040,
        "mask bits cannot be cleared"
    );
    write(&mut lapic, 0xf0, SVR_ON, T0);
    write(&mut lapic, 0x320, 0x40, T0);
    assert_eq!(read(&mut lapic, 0x320, T0), 0x40);
    fixed(&mut lapic, 0x99);
    write(&mut lapic, 0xf0, 0xff, T0);
    assert_eq!(read(&mut lapic, 0x320, T0), 0x1_0040, "disabling masks");
    assert_eq!(lapic.acknowledge(), Some(0x99), "what is pending is held");
}

#[test]
fn init_comes_before_the_start_up_that_follows_it() {
    let mut lapic = enabled();
    lapic.accept(DeliveryMode::StartUp, 1, Trigger::Edge);
    lapic.accept(DeliveryMode::Init, 0, Trigger::Edge);
    assert_eq!(lapic.take_sipi(), None);
    lapic.accept(DeliveryMode::StartUp, 2, Trigger::Edge);
    assert!(lapic.take_init());
    lapic.init_reset();
    assert_eq!(lapic.take_sipi(), Some(2));
    assert!(!lapic.take_init());
    // Also one that comes by the pin.
    lapic.accept(DeliveryMode::StartUp, 3, Trigger::Edge);
    write(&mut lapic, 0xf0, SVR_ON, T0);
    write(&mut lapic, 0x360, 0x500, T0);
    lapic.set_lint(1, true);
    assert!(lapic.take_init());
    assert_eq!(lapic.take_sipi(), None);
}

fn ipi(destination: Destination, mode: DeliveryMode, vector: u8) -> Option<Outgoing> {
    Some(Outgoing::Ipi(InterruptMessage {
        destination,
        mode,
        vector,
        trigger: Trigger::Edge,
    }))
}

#[test]
fn interrupt_command_register() {
    // Figure 12-12 and table 12-3.
    let mut lapic = enabled();
    write(&mut lapic, 0x310, 0x0700_0000, T0);
    let mut send = |value| write(&mut lapic, 0x300, value, T0);
    assert_eq!(
        send(0x4041),
        ipi(Destination::Physical(7), DeliveryMode::Fixed, 0x41)
    );
    assert_eq!(
        send(0x4841),
        ipi(Destination::Logical(7), DeliveryMode::Fixed, 0x41)
    );
    assert_eq!(
        send(0x4141),
        ipi(Destination::Physical(7), DeliveryMode::LowestPriority, 0x41)
    );
    assert_eq!(
        send(0x4400),
        ipi(Destination::Physical(7), DeliveryMode::Nmi, 0)
    );
    assert_eq!(
        send(0x4500),
        ipi(Destination::Physical(7), DeliveryMode::Init, 0)
    );
    assert_eq!(
        send(0xc500),
        ipi(Destination::Physical(7), DeliveryMode::Init, 0)
    );
    assert_eq!(send(0x8500), None, "INIT level de-assert is ignored");
    assert_eq!(
        send(0x4699),
        ipi(Destination::Physical(7), DeliveryMode::StartUp, 0x99)
    );
    assert_eq!(
        send(0x8_4041),
        ipi(Destination::All, DeliveryMode::Fixed, 0x41)
    );
    assert_eq!(
        send(0xc_4041),
        ipi(Destination::AllButSender, DeliveryMode::Fixed, 0x41)
    );
    assert_eq!(
        send(0xc_4500),
        ipi(Destination::AllButSender, DeliveryMode::Init, 0)
    );
    assert_eq!(send(0x8_4500), None, "all including self: fixed only");
    assert_eq!(send(0x4341), None, "reserved delivery mode");
    assert_eq!(send(0x4_4055), None, "self");
    assert_eq!(lapic.acknowledge(), Some(0x55));
    assert_eq!(
        read(&mut lapic, 0x300, T0),
        0x4_4055,
        "delivery status is idle"
    );
    write(&mut lapic, 0x310, 0xff00_0000, T0);
    assert_eq!(
        write(&mut lapic, 0x300, 0x4041, T0),
        ipi(Destination::All, DeliveryMode::Fixed, 0x41)
    );
}

#[test]
fn illegal_vectors_are_logged() {
    // 12.5.3: bit 5 send, bit 6 receive illegal vector; ESR shows errors after a write to it.
    let mut lapic = enabled();
    write(&mut lapic, 0x370, 0xfe, T0);
    assert_eq!(write(&mut lapic, 0x300, 0x400f, T0), None);
    assert_eq!(fixed(&mut lapic, 0x0f), Acceptance::Refused);
    assert_eq!(read(&mut lapic, 0x280, T0), 0);
    write(&mut lapic, 0x280, 0, T0);
    assert_eq!(read(&mut lapic, 0x280, T0), 0x60);
    write(&mut lapic, 0x280, 0, T0);
    assert_eq!(read(&mut lapic, 0x280, T0), 0);
    assert_eq!(lapic.acknowledge(), Some(0xfe), "the error LVT");
    // Bit 7: access to a reserved register.
    read(&mut lapic, 0x40, T0);
    write(&mut lapic, 0x280, 0, T0);
    assert_eq!(read(&mut lapic, 0x280, T0), 0x80);
    // Table 12-1, note 1: writes to APR and RRD, which are not there, do not set it.
    write(&mut lapic, 0x90, 0, T0);
    write(&mut lapic, 0xc0, 0, T0);
    write(&mut lapic, 0x280, 0, T0);
    assert_eq!(read(&mut lapic, 0x280, T0), 0);
}

/// 12.5.3: bit 6 is also for an interrupt by a self IPI, whose sending bit 5 is for.
#[test]
fn an_illegal_self_ipi_is_sent_and_received() {
    let mut lapic = enabled();
    write(&mut lapic, 0x300, 0x4_4005, T0);
    write(&mut lapic, 0x280, 0, T0);
    assert_eq!(read(&mut lapic, 0x280, T0), 0x60);
    let mut lapic = x2apic();
    lapic.msr_write(0x83f, 5, T0).expect("legal");
    lapic.msr_write(0x828, 0, T0).expect("legal");
    assert_eq!(lapic.msr_read(0x828, T0), Ok(0x60));
    assert_eq!(lapic.pending_vector(), None);
}

/// 12.5.3: a write to ESR rearms the error interrupt. So errors that come again and again, for example by reads of the
/// handler, raise none until it is written.
#[test]
fn one_error_interrupt_until_esr_is_written() {
    let mut lapic = enabled();
    write(&mut lapic, 0x370, 0x1_00fe, T0);
    read(&mut lapic, 0x40, T0);
    write(&mut lapic, 0x370, 0xfe, T0);
    assert_eq!(lapic.acknowledge(), None, "was masked");
    for error in 0..3 {
        read(&mut lapic, 0x40, T0);
        let expected = (error == 0).then_some(0xfe);
        assert_eq!(lapic.acknowledge(), expected, "error {error}");
        write(&mut lapic, 0xb0, 0, T0);
    }
    write(&mut lapic, 0x280, 0, T0);
    assert_eq!(read(&mut lapic, 0x280, T0), 0x80);
    read(&mut lapic, 0x40, T0);
    assert_eq!(lapic.acknowledge(), Some(0xfe), "rearmed");
}

#[test]
fn timer_one_shot() {
    // 12.5.4: counts at the bus clock divided; 1 GHz by 16 is 16 ns a count.
    let mut lapic = enabled();
    write(&mut lapic, 0x3e0, 0b0011, T0);
    write(&mut lapic, 0x320, 0x40, T0);
    write(&mut lapic, 0x380, 1000, T0);
    assert_eq!(lapic.deadline(), Some(VirtualTime(16_000)));
    assert_eq!(read(&mut lapic, 0x390, VirtualTime(160)), 990);
    lapic.advance(VirtualTime(15_999));
    assert_eq!(lapic.pending_vector(), None);
    lapic.advance(VirtualTime(16_000));
    assert_eq!(lapic.acknowledge(), Some(0x40));
    assert_eq!(read(&mut lapic, 0x390, VirtualTime(16_001)), 0);
    assert_eq!(read(&mut lapic, 0x380, VirtualTime(16_001)), 1000);
    assert_eq!(lapic.deadline(), None);
    // Writing zero stops.
    write(&mut lapic, 0x380, 1000, VirtualTime(20_000));
    write(&mut lapic, 0x380, 0, VirtualTime(20_001));
    assert_eq!(lapic.deadline(), None);
}

#[test]
fn timer_divide_values() {
    // Figure 12-10.
    for (value, divisor) in [
        (0, 2),
        (1, 4),
        (2, 8),
        (3, 16),
        (8, 32),
        (9, 64),
        (10, 128),
        (11, 1),
    ] {
        let mut lapic = enabled();
        write(&mut lapic, 0x3e0, value, T0);
        write(&mut lapic, 0x320, 0x40, T0);
        write(&mut lapic, 0x380, 10, T0);
        assert_eq!(lapic.deadline(), Some(VirtualTime(10 * divisor)), "{value}");
    }
}

#[test]
fn timer_periodic_does_not_drift() {
    let mut lapic = enabled();
    write(&mut lapic, 0x3e0, 0b1011, T0);
    write(&mut lapic, 0x320, 0x2_0040, T0);
    write(&mut lapic, 0x380, 1000, T0);
    lapic.advance(VirtualTime(1000));
    assert_eq!(lapic.acknowledge(), Some(0x40));
    write(&mut lapic, 0xb0, 0, VirtualTime(1000));
    assert_eq!(lapic.deadline(), Some(VirtualTime(2000)));
    // Late by several periods: one interrupt, and the phase stays.
    lapic.advance(VirtualTime(1_000_000_300));
    assert_eq!(lapic.acknowledge(), Some(0x40));
    assert_eq!(lapic.acknowledge(), None);
    assert_eq!(lapic.deadline(), Some(VirtualTime(1_000_001_000)));
    assert_eq!(read(&mut lapic, 0x390, VirtualTime(1_000_000_300)), 700);
    // Masked: it counts without interrupts.
    write(&mut lapic, 0x320, 0x3_0040, VirtualTime(1_000_000_300));
    assert_eq!(lapic.deadline(), None);
    assert_eq!(read(&mut lapic, 0x390, VirtualTime(2_000_000_100)), 900);
}

#[test]
fn timer_tsc_deadline() {
    // 12.5.4.1. The TSC runs at 2 GHz from 0.
    let mut lapic = enabled();
    lapic.msr_write(0x6e0, 1000, T0).expect("present");
    assert_eq!(lapic.msr_read(0x6e0, T0), Ok(0), "ignored in another mode");
    write(&mut lapic, 0x320, 0x4_0040, T0);
    lapic.msr_write(0x6e0, 1000, T0).expect("present");
    assert_eq!(lapic.msr_read(0x6e0, T0), Ok(1000));
    assert_eq!(lapic.deadline(), Some(VirtualTime(500)));
    // In this mode the initial count is ignored, and the current count reads zero.
    write(&mut lapic, 0x380, 7, T0);
    assert_eq!(read(&mut lapic, 0x380, T0), 0);
    assert_eq!(read(&mut lapic, 0x390, T0), 0);
    // A TSC that is set back by 200 ticks arrives 100 ns later.
    lapic.set_tsc_offset(0u64.wrapping_sub(200), VirtualTime(100));
    assert_eq!(lapic.deadline(), Some(VirtualTime(600)));
    lapic.advance(VirtualTime(600));
    assert_eq!(lapic.acknowledge(), Some(0x40));
    assert_eq!(
        lapic.msr_read(0x6e0, VirtualTime(600)),
        Ok(0),
        "disarmed after expiry"
    );
    // A deadline in the past expires at once; zero disarms; leaving the mode disarms.
    write(&mut lapic, 0xb0, 0, T0);
    lapic
        .msr_write(0x6e0, 1, VirtualTime(600))
        .expect("present");
    assert_eq!(lapic.acknowledge(), Some(0x40));
    lapic
        .msr_write(0x6e0, 1 << 40, VirtualTime(600))
        .expect("present");
    lapic
        .msr_write(0x6e0, 0, VirtualTime(600))
        .expect("present");
    assert_eq!(lapic.deadline(), None);
    lapic
        .msr_write(0x6e0, 1 << 40, VirtualTime(600))
        .expect("present");
    write(&mut lapic, 0x320, 0x40, VirtualTime(600));
    assert_eq!(lapic.msr_read(0x6e0, VirtualTime(600)), Ok(0));
}

#[test]
fn features_that_are_not_advertised_are_absent() {
    let mut lapic = Lapic::new(LapicConfig {
        x2apic: false,
        tsc_deadline: false,
        ..config()
    });
    write(&mut lapic, 0xf0, SVR_ON, T0);
    assert_eq!(lapic.msr_read(0x6e0, T0), Err(MsrFault));
    assert_eq!(lapic.msr_write(0x1b, 0xfee0_0d00, T0), Err(MsrFault));
    write(&mut lapic, 0x320, 0x4_0040, T0);
    assert_eq!(read(&mut lapic, 0x320, T0), 0x40);
    // 12.8.5: without the version register's bit 24, SVR bit 12 does not exist.
    write(&mut lapic, 0xf0, 0x1fff, T0);
    assert_eq!(read(&mut lapic, 0xf0, T0), 0x3ff);
}

#[test]
fn apic_base_transitions() {
    // Figure 12-27 and 12.12.5.
    let mut lapic = Lapic::new(config());
    let base = |lapic: &mut Lapic, value: u64| lapic.msr_write(0x1b, value, T0).map(|_| ());
    assert_eq!(
        base(&mut lapic, 0xfee0_0500),
        Err(MsrFault),
        "EXTD without EN"
    );
    assert_eq!(
        base(&mut lapic, 0xfee0_0901),
        Err(MsrFault),
        "reserved bit 0"
    );
    assert_eq!(
        base(&mut lapic, 0xfee0_0b00),
        Err(MsrFault),
        "reserved bit 9"
    );
    assert_eq!(
        base(&mut lapic, 1 << 39 | 0x900),
        Err(MsrFault),
        "beyond MAXPHYADDR"
    );
    assert_eq!(base(&mut lapic, 0x70_0000_0900), Ok(()));
    assert_eq!(lapic.mmio_base(), Some(0x70_0000_0000));
    assert_eq!(base(&mut lapic, 0xfee0_0d00), Ok(()), "xAPIC to x2APIC");
    assert_eq!(lapic.mmio_base(), None);
    assert_eq!(
        base(&mut lapic, 0xfee0_0900),
        Err(MsrFault),
        "x2APIC to xAPIC"
    );
    assert_eq!(base(&mut lapic, 0xfee0_0100), Ok(()), "x2APIC to disabled");
    assert_eq!(
        base(&mut lapic, 0xfee0_0d00),
        Err(MsrFault),
        "disabled to x2APIC"
    );
    assert_eq!(base(&mut lapic, 0xfee0_0900), Ok(()), "disabled to xAPIC");
    assert_eq!(read(&mut lapic, 0xf0, T0), 0xff, "12.4.3: as after reset");
}

#[test]
fn a_disabled_local_apic_leaves_the_pins() {
    // 12.4.3: LINT0 and LINT1 are INTR and NMI.
    let mut lapic = enabled();
    assert!(!lapic.summary().ext_int_open);
    lapic.msr_write(0x1b, 0xfee0_0100, T0).expect("legal");
    assert!(lapic.summary().ext_int_open);
    assert_eq!(
        lapic.accept(DeliveryMode::Nmi, 0, Trigger::Edge),
        Acceptance::Refused
    );
    lapic.set_lint(1, true);
    assert!(lapic.take_nmi());
    let mut data = [0; 4];
    lapic.mmio_read(0x20, &mut data, T0);
    assert_eq!(data, [0xff; 4]);
}

#[test]
fn local_pins() {
    let mut lapic = enabled();
    write(&mut lapic, 0x350, 0x700, T0);
    assert!(lapic.summary().ext_int_open);
    write(&mut lapic, 0x350, 0x51, T0);
    assert!(lapic.summary().lint0_listens);
    lapic.set_lint(0, true);
    lapic.set_lint(0, true);
    assert_eq!(lapic.acknowledge(), Some(0x51));
    assert_eq!(lapic.acknowledge(), None);
    lapic.set_lint(0, false);
    write(&mut lapic, 0xb0, 0, T0);
    // Level: remote IRR until the EOI, again while the pin is high.
    write(&mut lapic, 0x350, 0x8052, T0);
    lapic.set_lint(0, true);
    assert_eq!(read(&mut lapic, 0x350, T0), 0xc052);
    assert_eq!(lapic.acknowledge(), Some(0x52));
    write(&mut lapic, 0xb0, 0, T0);
    assert_eq!(lapic.acknowledge(), Some(0x52));
    lapic.set_lint(0, false);
    write(&mut lapic, 0xb0, 0, T0);
    assert_eq!(lapic.acknowledge(), None);
    assert_eq!(read(&mut lapic, 0x350, T0), 0x8052);
    write(&mut lapic, 0x360, 0x400, T0);
    lapic.set_lint(1, true);
    assert!(lapic.take_nmi());
}

/// 12.5.1: the entry is masked by the interrupt itself, and only software unmasks it; on AMD's it stays open.
#[test]
fn performance_counters_interrupt() {
    let mut lapic = enabled();
    lapic.performance_interrupt(true);
    assert_eq!(lapic.acknowledge(), None, "masked after reset");
    write(&mut lapic, 0x340, 0x61, T0);
    lapic.performance_interrupt(true);
    assert_eq!(read(&mut lapic, 0x340, T0), 0x1_0061);
    lapic.performance_interrupt(true);
    assert_eq!(lapic.acknowledge(), Some(0x61));
    assert_eq!(lapic.acknowledge(), None, "one only");
    write(&mut lapic, 0xb0, 0, T0);
    write(&mut lapic, 0x340, 0x400, T0);
    lapic.performance_interrupt(false);
    assert_eq!(read(&mut lapic, 0x340, T0), 0x400);
    assert!(lapic.take_nmi());
}

#[test]
fn x2apic_registers() {
    // Table 12-6.
    let mut lapic = x2apic();
    assert_eq!(lapic.msr_read(0x802, T0), Ok(5));
    assert_eq!(lapic.msr_read(0x803, T0), Ok(0x0005_0015));
    // 12.12.10.2: logical ID is (ID >> 4) << 16 | 1 << (ID & 15).
    assert_eq!(lapic.msr_read(0x80d, T0), Ok(1 << 5));
    for msr in [
        0x800, 0x801, 0x804, 0x809, 0x80b, 0x80c, 0x80e, 0x82f, 0x831, 0x83a, 0x83f, 0x840, 0x8ff,
    ] {
        assert_eq!(lapic.msr_read(msr, T0), Err(MsrFault), "{msr:#x}");
    }
    for msr in [
        0x802, 0x803, 0x80a, 0x80d, 0x80e, 0x810, 0x818, 0x820, 0x82f, 0x831, 0x839,
    ] {
        assert_eq!(lapic.msr_write(msr, 0, T0), Err(MsrFault), "{msr:#x}");
    }
    assert_eq!(lapic.msr_read(0x900, T0), Err(MsrFault));
    let mut xapic = enabled();
    assert_eq!(
        xapic.msr_read(0x802, T0),
        Err(MsrFault),
        "not in xAPIC mode"
    );
    assert_eq!(xapic.msr_write(0x80b, 0, T0), Err(MsrFault));
}

#[test]
fn x2apic_reserved_bits_fault() {
    // 12.12.1.3.
    let mut lapic = x2apic();
    let reserved: [(u32, u64); 12] = [
        (0x808, 0x100),
        (0x80b, 1),
        (0x80f, 1 << 12),
        (0x80f, 1 << 32),
        (0x828, 1),
        (0x830, 1 << 13),
        (0x830, 1 << 16),
        (0x830, 1 << 20),
        (0x832, 1 << 13),
        (0x835, 1 << 17),
        (0x838, 1 << 32),
        (0x83e, 1 << 2),
    ];
    for (msr, value) in reserved {
        assert_eq!(
            lapic.msr_write(msr, value, T0),
            Err(MsrFault),
            "{msr:#x} {value:#x}"
        );
    }
    assert_eq!(lapic.msr_write(0x83f, 0x100, T0), Err(MsrFault));
    for (msr, value) in [
        (0x808, 0xff),
        (0x80b, 0),
        (0x828, 0),
        (0x832, 0x6_00ef),
        (0x83e, 0xb),
    ] {
        assert_eq!(lapic.msr_write(msr, value, T0), Ok(None), "{msr:#x}");
    }
}

#[test]
fn x2apic_interrupt_command() {
    // 12.12.9: one 64-bit register, 32-bit destination.
    let mut lapic = x2apic();
    let mut send = |value: u64| lapic.msr_write(0x830, value, T0).expect("legal");
    assert_eq!(
        send(0x1_0000_0000_4041),
        ipi(Destination::Physical(0x1_0000), DeliveryMode::Fixed, 0x41)
    );
    assert_eq!(
        send(0xff_0000_4041),
        ipi(Destination::Physical(0xff), DeliveryMode::Fixed, 0x41)
    );
    assert_eq!(
        send(0xffff_ffff_0000_4041),
        ipi(Destination::All, DeliveryMode::Fixed, 0x41)
    );
    assert_eq!(
        send(0xffff_ffff_0000_4841),
        ipi(Destination::All, DeliveryMode::Fixed, 0x41)
    );
    assert_eq!(
        send(0x3_0003_0000_4841),
        ipi(Destination::Logical(0x3_0003), DeliveryMode::Fixed, 0x41)
    );
    assert_eq!(lapic.msr_read(0x830, T0), Ok(0x3_0003_0000_4841));
    // 12.12.11: self IPI.
    assert_eq!(lapic.msr_write(0x83f, 0x77, T0), Ok(None));
    assert_eq!(lapic.acknowledge(), Some(0x77));
}

#[test]
fn any_access_is_answered() {
    for seed in [1, 7, 0x1234_5678_9abc_def1] {
        let mut random = XorShift(seed);
        let mut lapic = Lapic::new(config());
        let mut now = T0;
        for _ in 0..200_000 {
            now = VirtualTime(now.0.wrapping_add(match random.below(8) {
                0 => random.next(),
                _ => random.below(10_000),
            }));
            let msr = [0x1b, 0x6e0, 0x800 + random.below(0x100) as u32][random.below(3) as usize];
            let value = random.next() >> random.below(64);
            let size = 1 + random.below(8) as usize;
            let offset = random.below(0x420);
            let vector = random.next() as u8;
            match random.below(12) {
                0 => drop(lapic.msr_read(msr, now)),
                1 => drop(lapic.msr_write(msr, value, now)),
                2 => lapic.mmio_read(offset, &mut [0; 8][..size], now),
                3 => drop(lapic.mmio_write(offset, &value.to_le_bytes()[..size], now)),
                4 => drop(lapic.mmio_write(offset & !15, &(value as u32).to_le_bytes(), now)),
                5 => drop(write(&mut lapic, 0xf0, SVR_ON, now)),
                6 => lapic.advance(now),
                7 => lapic.set_tsc_offset(value, now),
                8 => {
                    let mode = DeliveryMode::from_bits(value as u32).unwrap_or(DeliveryMode::Fixed);
                    let trigger = if value & 8 != 0 {
                        Trigger::Level
                    } else {
                        Trigger::Edge
                    };
                    lapic.accept(mode, vector, trigger);
                }
                9 => drop(lapic.acknowledge()),
                10 => lapic.set_lint(random.below(3) as usize, value & 1 != 0),
                _ => drop((lapic.summary(), lapic.deadline(), lapic.ppr())),
            }
        }
    }
}
