//! `_OSC` of the PCI root (ACPI 6.5, 6.2.11; PCI Firmware 3.3, 4.5): which PCI Express features the system may control.
//!
//! It gets a buffer of three doublewords: status, what the system supports, and what it wants to control. It gives the
//! buffer back with what it gets. Hot-plug stays with the firmware, since no slot of this board has any.

use acpi_tables::aml::{
    And, Arg, CreateDWordField, Else, Equal, If, Local, Method, NotEqual, ONE, Or, Path, Return,
    Store, Uuid, ZERO,
};
use acpi_tables::{Aml, AmlSink};

const PCI_HOST_BRIDGE: &str = "33db4d5b-1ff7-401c-9657-7441c03dd766";
/// Bits of the status.
const UNRECOGNIZED_UUID: u8 = 4;
const UNRECOGNIZED_REVISION: u8 = 8;
const MASKED: u8 = 16;

/// Power management events, error reporting, and the Express capability structure.
const GRANTED: u8 = 1 << 2 | 1 << 3 | 1 << 4;

/// The method, for the scope of the root.
pub(super) struct HostBridge;

impl Aml for HostBridge {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (uuid, revision, buffer) = (Arg(0), Arg(1), Arg(3));
        let (status, control) = (Path::new("CDW1"), Path::new("CDW3"));
        let eight = 8u8;
        let field1 = CreateDWordField::new(&status, &buffer, &ZERO);
        let field3 = CreateDWordField::new(&control, &buffer, &eight);
        let host_bridge = Uuid::new(PCI_HOST_BRIDGE);
        let known = Equal::new(&uuid, &host_bridge);
        let granted = Local(0);
        let grant = And::new(&granted, &control, &GRANTED);
        // The interface has one revision.
        let other_revision = NotEqual::new(&revision, &ONE);
        let say_revision = Or::new(&status, &status, &UNRECOGNIZED_REVISION);
        let if_revision = If::new(&other_revision, vec![&say_revision]);
        let fewer = NotEqual::new(&granted, &control);
        let say_masked = Or::new(&status, &status, &MASKED);
        let if_fewer = If::new(&fewer, vec![&say_masked]);
        let answer = Store::new(&control, &granted);
        let done = Return::new(&buffer);
        let if_known = If::new(
            &known,
            vec![&field3, &grant, &if_revision, &if_fewer, &answer],
        );
        let say_uuid = Or::new(&status, &status, &UNRECOGNIZED_UUID);
        let unknown = Else::new(vec![&say_uuid]);
        // Serialized: the fields are objects with names.
        let body: Vec<&dyn Aml> = vec![&field1, &if_known, &unknown, &done];
        Method::new(Path::new("_OSC"), 4, true, body).to_aml_bytes(sink);
    }
}
