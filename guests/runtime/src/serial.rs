//! COM1 and the debug-exit port.

use core::fmt;

use crate::cpu::{inb, outb, outl};

const COM1: u16 = 0x3f8;

/// Text on COM1.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // Line status bit 5: transmitter holding register empty. Bounded: a board without a UART is no
            // reason to hang.
            for _ in 0..100_000 {
                if inb(COM1 + 5) & 0x20 != 0 {
                    break;
                }
            }
            outb(COM1, byte);
        }
        Ok(())
    }
}

/// Ends the machine: exit status `value << 1 | 1`.
pub fn exit(value: u32) -> ! {
    outl(0xf4, value);
    loop {
        crate::cpu::halt();
    }
}
