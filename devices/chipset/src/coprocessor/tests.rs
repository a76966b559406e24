use super::*;
use crate::fabric::FabricConfig;
use crate::testing::{inb, keeps_contract, outb};

const T0: VirtualTime = VirtualTime(0);

/// SDM Vol 1 D.2.1.1: the error's interrupt, its acknowledgement, IGNNE# until FERR# goes.
#[test]
fn an_error_from_report_to_end() {
    let mut logic = ErrorLogic::default();
    assert!(!logic.acknowledge(), "nothing to acknowledge");
    assert!(!logic.ignne());
    assert!(logic.set_ferr(0, true));
    assert!(logic.set_ferr(0, true), "the level stays");
    assert!(!logic.ignne());
    assert!(!logic.acknowledge());
    assert!(logic.ignne());
    assert!(!logic.set_ferr(0, false));
    assert!(!logic.ignne());
    assert!(logic.set_ferr(0, true), "the next error");
}

/// FERR# of several processors is one signal.
#[test]
fn ferr_is_wired_or() {
    let mut logic = ErrorLogic::default();
    assert!(logic.set_ferr(0, true));
    assert!(logic.set_ferr(1, true));
    assert!(logic.set_ferr(0, false));
    assert!(!logic.set_ferr(1, false));
}

fn fabric() -> Arc<InterruptFabric> {
    InterruptFabric::new(&FabricConfig {
        apic_ids: vec![0],
        bus_hz: 1_000_000_000,
        tsc_hz: 1_000_000_000,
        physical_address_bits: 40,
        x2apic: true,
        tsc_deadline: true,
    })
}

#[test]
fn the_port_acknowledges() {
    let fabric = fabric();
    let mut ports = CoprocessorPorts::new(Arc::clone(&fabric));
    fabric.set_ferr(0, true);
    outb(&mut ports, 0, 1, 0, T0);
    assert!(!fabric.ignne(), "F1h does nothing");
    outb(&mut ports, 0, 0, 0, T0);
    assert!(fabric.ignne());
    assert_eq!(inb(&mut ports, 0, 0, T0), 0xff);
}

#[test]
fn contract() {
    keeps_contract(|| CoprocessorPorts::new(fabric()), &[(0, 2)]);
}
