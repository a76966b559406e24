//! A hand on the board's functions and on the memory their transfers go to.

use std::ops::Range;
use std::sync::Arc;

use guestmem::{Gpa, GuestRam};
use vcpu::Platform;

use crate::Input;
use crate::board::bytes;

/// RAM of the board.
pub const MEMORY: u64 = 32 << 20;
/// Everything functions are told to read or write: the end of RAM, so that what reaches further is not there.
pub const AREA: Range<u64> = MEMORY - 0x1_0000..MEMORY;
/// Pages that no function is told of.
const SENTINEL: Range<u64> = AREA.start - 0x2000..AREA.start;
const FILL: u8 = 0x3c;
/// Bits of the command register: ports, memory, master.
const COMMAND: u32 = 7;

/// The hand.
pub struct Hand<'a> {
    /// The board.
    pub platform: &'a mut dyn Platform,
    /// RAM.
    pub ram: &'a Arc<GuestRam>,
    /// Instructions executed.
    pub retired: u64,
    /// Interrupts taken.
    pub interrupts: u64,
}

impl<'a> Hand<'a> {
    /// A hand on a new board.
    pub fn new(platform: &'a mut dyn Platform, ram: &'a Arc<GuestRam>) -> Self {
        let guard = [FILL; (SENTINEL.end - SENTINEL.start) as usize];
        ram.write(Gpa(SENTINEL.start), &guard).expect("RAM");
        Self {
            platform,
            ram,
            retired: 0,
            interrupts: 0,
        }
    }

    /// Nobody wrote to what nobody was told of.
    pub fn check_guard(&self) {
        let len = (SENTINEL.end - SENTINEL.start) as usize;
        let guard = bytes(self.ram, SENTINEL.start, len);
        assert!(guard.iter().all(|&b| b == FILL), "a write to nobody's RAM");
    }

    /// Writes a doubleword of the configuration space.
    pub fn config_write(&mut self, function: u32, offset: u32, value: u32) {
        self.platform
            .pio_write(0xcf8, 4, 1 << 31 | function << 8 | offset, 0);
        self.platform.pio_write(0xcfc, 4, value, 0);
    }

    /// Puts a base address register of 32 bits somewhere.
    pub fn place(&mut self, function: u32, register: u32, base: u64) {
        self.config_write(function, 0x10 + 4 * register, base as u32);
    }

    /// Lets a function decode its registers and reach memory.
    pub fn enable(&mut self, function: u32) {
        self.config_write(function, 4, COMMAND);
    }

    /// Writes so many bytes of a number to a register.
    pub fn write(&mut self, at: u64, value: u64, size: usize) {
        self.platform
            .mmio_write(Gpa(at), &value.to_le_bytes()[..size], 0);
    }

    /// Reads so many bytes of one.
    pub fn read(&mut self, at: u64, size: usize) -> u64 {
        let mut data = [0; 8];
        self.platform.mmio_read(Gpa(at), &mut data[..size], 0);
        u64::from_le_bytes(data)
    }

    /// Puts bytes into memory; what does not fit is left out.
    pub fn put(&self, at: u64, data: &[u8]) {
        if self.ram.find(Gpa(at), data.len() as u64).is_some() {
            self.ram.write(Gpa(at), data).expect("RAM");
        }
    }

    /// Lets time pass, and takes what interrupts are there.
    pub fn pass_time(&mut self, instructions: u64) {
        let before = self.platform.tsc(self.retired);
        self.retired += instructions;
        assert!(self.platform.poll(self.retired) >= 1, "the vCPU may go on");
        assert!(self.platform.tsc(self.retired) >= before, "time goes on");
        if self.platform.interrupt_pending() {
            self.interrupts += u64::from(self.platform.acknowledge_interrupt().is_some());
        }
        self.platform.take_nmi();
    }

    /// Lets time pass until something is so, for a while at most.
    pub fn wait(&mut self, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        (0..200).any(|_| {
            done(self) || {
                self.pass_time(20_000);
                false
            }
        })
    }
}

/// An address a function is told of: nearly always in the area, else where no RAM is.
pub fn address(input: &mut Input<'_>) -> u64 {
    let near = u64::from(input.any::<u16>());
    match input.below(16) {
        0 => u64::MAX - near,
        1 => AREA.end - (near & 0x1f),
        2 => input.pick(&[0xb000_0000, 0xc000_0000, 0xfee0_0000, 1 << 32, 1 << 63]) + near,
        3 => AREA.start + near,
        _ => AREA.start + (near & !0xf),
    }
}

/// A length a function is told.
pub fn length(input: &mut Input<'_>) -> u32 {
    match input.below(8) {
        0 => input.any(),
        1 => u32::MAX - u32::from(input.any::<u8>()),
        2 => input.pick(&[0, 1, 0xffff, 0x1_0000, 0x3f_ffff, 1 << 31]),
        3 => u32::from(input.any::<u16>()),
        _ => 512 * u32::from(input.any::<u8>() & 7),
    }
}
