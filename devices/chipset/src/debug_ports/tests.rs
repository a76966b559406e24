//! The ports' behaviour as test kernels and firmware expect it.

use super::*;
use crate::testing::{Control, Output, inb, keeps_contract, outb};

const T0: VirtualTime = VirtualTime(0);

#[test]
fn debug_exit_reports_the_code() {
    let control = Arc::new(Control::default());
    let mut port = DebugExit::new(control.clone());
    outb(&mut port, 0, 0, 0x21, T0);
    port.write(Region(0), 0, &0x1234_5607u32.to_le_bytes(), T0);
    assert_eq!(control.taken(), ["exit 33", "exit 7"]);
}

#[test]
fn debug_console_identifies_itself_and_prints() {
    let output = Output::default();
    let mut port = DebugConsole::new(Box::new(output.clone()));
    assert_eq!(inb(&mut port, 0, 0, T0), 0xe9);
    for byte in b"ok" {
        outb(&mut port, 0, 0, *byte, T0);
    }
    assert_eq!(*output.0.lock().expect("unpoisoned"), b"ok");
}

#[test]
fn post_code_is_kept() {
    let mut port = PostCode::new();
    outb(&mut port, 0, 0, 0x42, T0);
    assert_eq!(inb(&mut port, 0, 0, T0), 0x42);
}

#[test]
fn keep_the_device_contract() {
    keeps_contract(|| DebugExit::new(Arc::new(Control::default())), &[(0, 1)]);
    keeps_contract(|| DebugConsole::new(Box::new(Output::default())), &[(0, 1)]);
    keeps_contract(PostCode::new, &[(0, 1)]);
}
