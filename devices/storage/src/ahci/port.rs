//! A port: its registers (AHCI 1.3.1 3.3), and its list of commands, executed as they are issued (5.3).
//!
//! A turn of a port moves at most [`bus::TURN_BYTES`]. Each command counts as [`COMMAND_COST`] bytes of it, each region
//! descriptor that is read as 64. A command that is longer goes on in the next turn; until it ends its bit of CI and BSY
//! are set, and nothing is written but its data. Clearing ST, and a reset of port or controller, drop it. What is not
//! bounded here is how long the host takes for the reads of a turn.

use bus::{TURN_NS, Turn, VirtualTime};
use guestmem::{Gpa, GuestRam};

use super::fis::{
    PIO_SETUP_OFFSET, REGISTER_OFFSET, Regions, Request, Slot, Walk, pio_setup_frame,
    register_frame, write,
};
use crate::ata::{AtaDevice, BusFault, Completion, Progress, Protocol, status};

/// Offsets.
mod at {
    pub const CLB: u64 = 0x00;
    pub const CLBU: u64 = 0x04;
    pub const FB: u64 = 0x08;
    pub const FBU: u64 = 0x0c;
    pub const IS: u64 = 0x10;
    pub const IE: u64 = 0x14;
    pub const CMD: u64 = 0x18;
    pub const TFD: u64 = 0x20;
    pub const SIG: u64 = 0x24;
    pub const SSTS: u64 = 0x28;
    pub const SCTL: u64 = 0x2c;
    pub const SERR: u64 = 0x30;
    pub const SACT: u64 = 0x34;
    pub const CI: u64 = 0x38;
}

/// Interrupt status (3.3.5).
mod interrupt {
    /// A register frame came.
    pub const DHRS: u32 = 1 << 0;
    /// A PIO setup frame came.
    pub const PSS: u32 = 1 << 1;
    /// The connection changed: SERR.DIAG.X.
    pub const PCS: u32 = 1 << 6;
    /// More data than room.
    pub const OFS: u32 = 1 << 24;
    /// Host memory could not be reached.
    pub const HBFS: u32 = 1 << 29;
    /// The device reports an error.
    pub const TFES: u32 = 1 << 30;
    /// What can be set, and what software clears by writing one.
    pub const CLEARED: u32 = DHRS | PSS | OFS | HBFS | TFES;
    /// What can be enabled (3.3.6).
    pub const ENABLES: u32 = 0xfdc0_00ff;
}

/// Command and status (3.3.7).
mod cmd {
    pub const ST: u32 = 1 << 0;
    pub const SUD: u32 = 1 << 1;
    pub const POD: u32 = 1 << 2;
    pub const CLO: u32 = 1 << 3;
    pub const FRE: u32 = 1 << 4;
    pub const CCS_SHIFT: u32 = 8;
    pub const CCS: u32 = 0x1f << CCS_SHIFT;
    pub const FR: u32 = 1 << 14;
    pub const CR: u32 = 1 << 15;
    pub const ATAPI: u32 = 1 << 24;
    pub const DLAE: u32 = 1 << 25;
    /// What software sets and finds again.
    pub const KEPT: u32 = ST | FRE | ATAPI | DLAE;
}

/// SATA status (3.3.10): active, generation 1, device present and communicating.
const SSTS_UP: u32 = 0x113;
/// SATA status: the interface is off.
const SSTS_OFFLINE: u32 = 4;
/// SATA control (3.3.11): DET, and the values that reset the connection and switch it off.
const SCTL_DET: u32 = 0xf;
const DET_RESET: u32 = 1;
const DET_OFFLINE: u32 = 4;
const SCTL_WRITABLE: u32 = 0xfff;
/// SATA error: exchanged (3.3.12).
const SERR_EXCHANGED: u32 = 1 << 26;
/// What software may clear.
const SERR_BITS: u32 = 0x07ff_0f03;
/// Task file and signature of a port that heard nothing yet (3.3.8, 3.3.9).
const TFD_RESET: u32 = 0x7f;
const SIG_RESET: u32 = 0xffff_ffff;
/// Error register after a reset: device 0 passed its diagnostics.
const DIAGNOSTIC_PASSED: u8 = 0x01;
/// What a command costs beside its data, in bytes of a turn: so a turn has at most 64 of them.
const COMMAND_COST: u64 = 16 << 10;

/// A command that takes several turns.
#[derive(Clone, Copy, Debug)]
struct Running {
    index: u32,
    slot: Slot,
    walk: Walk,
}

/// A port and the device on it.
pub(super) struct Port {
    device: Option<Box<dyn AtaDevice>>,
    // Volatile.
    list: u64,
    received: u64,
    interrupts: u32,
    enables: u32,
    command: u32,
    task_file: u32,
    signature: u32,
    control: u32,
    error: u32,
    active: u32,
    issued: u32,
    /// Slot executed last: 3.3.7, CCS.
    slot: u32,
    /// The slot the search for the next one starts at.
    next: u32,
    /// A signature frame that could not be received yet.
    frame: Option<Completion>,
    /// The device's command, while it goes on. Those behind it wait.
    running: Option<Running>,
    /// In a software reset.
    soft_reset: bool,
    /// It stopped at an error until ST is cleared.
    stopped: bool,
    due: Option<VirtualTime>,
}

impl Port {
    pub fn new(device: Option<Box<dyn AtaDevice>>) -> Self {
        let mut port = Self {
            device,
            list: 0,
            received: 0,
            interrupts: 0,
            enables: 0,
            command: 0,
            task_file: TFD_RESET,
            signature: SIG_RESET,
            control: 0,
            error: 0,
            active: 0,
            issued: 0,
            slot: 0,
            next: 0,
            frame: None,
            running: None,
            soft_reset: false,
            stopped: false,
            due: None,
        };
        port.connect();
        port
    }

    /// A reset of the whole controller; list and frame addresses stay only over that (AHCI 10.4.3), which is left to
    /// `keep`.
    pub fn reset(&mut self, keep: bool) {
        let device = self.device.take();
        let (list, received) = (self.list, self.received);
        *self = Self::new(None);
        self.device = device;
        if keep {
            (self.list, self.received) = (list, received);
        }
        self.connect();
    }

    /// The connection comes up: the device resets and sends its signature.
    fn connect(&mut self) {
        if let Some(device) = &mut self.device {
            device.reset();
            self.error |= SERR_EXCHANGED;
            self.send_signature();
        }
    }

    /// The device sends the frame that ends a reset.
    fn send_signature(&mut self) {
        let Some(device) = &self.device else {
            return;
        };
        let signature = device.signature();
        let end = Completion {
            status: device.reset_status(),
            error: DIAGNOSTIC_PASSED,
            count: signature as u8,
            lba: signature >> 8,
            protocol: Protocol::Register,
        };
        self.frame = Some(end);
        self.set_task_file(&end);
        self.signature = signature;
    }

    fn set_task_file(&mut self, end: &Completion) {
        self.task_file = u32::from(end.error) << 8 | u32::from(end.status);
    }

    /// Posts the signature frame once frames are received.
    fn post_signature(&mut self, ram: &GuestRam) {
        if self.command & cmd::FRE != 0
            && let Some(end) = self.frame.take()
        {
            self.post(ram, REGISTER_OFFSET, &register_frame(&end, false));
        }
    }

    fn post(&mut self, ram: &GuestRam, offset: u64, frame: &[u8; 20]) {
        if self.command & cmd::FRE == 0 {
            return;
        }
        let at = Gpa(self.received.saturating_add(offset));
        if write(ram, at, frame).is_err() {
            self.fail();
        }
    }

    /// Host memory could not be reached: a fatal error (6.1.2).
    fn fail(&mut self) {
        self.interrupts |= interrupt::HBFS;
        self.stopped = true;
    }

    fn status(&self) -> u32 {
        let changed = match self.error & SERR_EXCHANGED {
            0 => 0,
            _ => interrupt::PCS,
        };
        self.interrupts | changed
    }

    /// Whether the port asks for an interrupt.
    pub fn asks(&self) -> bool {
        self.status() & self.enables != 0
    }

    pub fn deadline(&self) -> Option<VirtualTime> {
        self.due
    }

    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            at::CLB => self.list as u32,
            at::CLBU => (self.list >> 32) as u32,
            at::FB => self.received as u32,
            at::FBU => (self.received >> 32) as u32,
            at::IS => self.status(),
            at::IE => self.enables,
            at::CMD => {
                let receiving = if self.command & cmd::FRE != 0 {
                    cmd::FR
                } else {
                    0
                };
                let running = if self.command & cmd::ST != 0 {
                    cmd::CR
                } else {
                    0
                };
                let slot = match self.command & cmd::ST {
                    0 => 0,
                    _ => self.slot << cmd::CCS_SHIFT & cmd::CCS,
                };
                self.command | cmd::SUD | cmd::POD | slot | receiving | running
            }
            at::TFD => self.task_file,
            at::SIG => self.signature,
            at::SSTS => match self.control & SCTL_DET {
                DET_RESET => 0,
                DET_OFFLINE => SSTS_OFFLINE,
                _ if self.device.is_some() => SSTS_UP,
                _ => 0,
            },
            at::SCTL => self.control,
            at::SERR => self.error,
            at::SACT => self.active,
            at::CI => self.issued,
            _ => 0,
        }
    }

    /// A write; what it starts happens with [`Self::work`].
    pub fn write(&mut self, offset: u64, value: u32) {
        let low = |all: u64, mask: u32| all & !0xffff_ffff | u64::from(value & mask);
        let high = |all: u64| all & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            at::CLB => self.list = low(self.list, !0x3ff),
            at::CLBU => self.list = high(self.list),
            at::FB => self.received = low(self.received, !0xff),
            at::FBU => self.received = high(self.received),
            at::IS => self.interrupts &= !(value & interrupt::CLEARED),
            at::IE => self.enables = value & interrupt::ENABLES,
            at::CMD => self.write_command(value),
            at::SCTL => {
                let before = self.control & SCTL_DET;
                self.control = value & SCTL_WRITABLE;
                let now = self.control & SCTL_DET;
                if matches!(now, DET_RESET | DET_OFFLINE) {
                    self.give_up();
                    self.signature = SIG_RESET;
                    self.task_file = TFD_RESET;
                    self.issued = 0;
                } else if matches!(before, DET_RESET | DET_OFFLINE) {
                    self.connect();
                }
            }
            at::SERR => self.error &= !(value & SERR_BITS),
            // 3.3.13, 3.3.14: only while the list is processed.
            at::SACT if self.command & cmd::ST != 0 => self.active |= value,
            at::CI if self.command & cmd::ST != 0 => self.issued |= value,
            _ => {}
        }
    }

    fn write_command(&mut self, value: u32) {
        let before = self.command;
        self.command = value & cmd::KEPT;
        if value & cmd::CLO != 0 {
            // 3.3.7: clears BSY and DRQ of the task file.
            self.task_file &= !u32::from(status::BSY | status::DRQ);
        }
        if before & !self.command & cmd::ST != 0 {
            self.give_up();
            self.issued = 0;
            self.active = 0;
            self.slot = 0;
            self.next = 0;
            self.stopped = false;
            self.due = None;
        }
    }

    /// Drops the command that is going on. The device is ready for another one.
    fn give_up(&mut self) {
        self.due = None;
        if self.running.take().is_some() {
            self.release_device();
        }
    }

    fn release_device(&mut self) {
        if let Some(device) = &mut self.device {
            device.give_up();
        }
        if self.task_file & u32::from(status::BSY) != 0 {
            self.task_file = status::READY.into();
        }
    }

    /// Nothing is done before the next [`Self::work`].
    pub fn suspend(&mut self) {
        self.due = None;
    }

    /// Whether commands are executed: the list is started, nothing stopped it, and the connection is not held down.
    fn is_running(&self) -> bool {
        let down = matches!(self.control & SCTL_DET, DET_RESET | DET_OFFLINE);
        self.command & cmd::ST != 0 && !self.stopped && !down
    }

    /// Executes what was issued, for one turn.
    pub fn work(&mut self, ram: &GuestRam, now: VirtualTime) {
        self.due = None;
        self.post_signature(ram);
        let mut turn = Turn::new();
        while !turn.is_over() {
            if !self.is_running() || self.issued == 0 {
                return;
            }
            let result = match self.running.take() {
                Some(running) => self.go_on(running, ram, &mut turn),
                None => {
                    let ahead = self.issued.rotate_right(self.next);
                    let slot = (self.next + ahead.trailing_zeros()) & 31;
                    self.slot = slot;
                    self.next = (slot + 1) & 31;
                    turn.spend(COMMAND_COST);
                    self.execute(slot, ram, &mut turn)
                }
            };
            if result.is_err() {
                self.release_device();
                self.fail();
            }
            if self.running.is_some() {
                break;
            }
        }
        if self.issued != 0 && self.is_running() {
            self.due = Some(now + TURN_NS);
        }
    }

    fn execute(&mut self, index: u32, ram: &GuestRam, turn: &mut Turn) -> Result<(), BusFault> {
        let slot = Slot::read(ram, Gpa(self.list), index)?;
        let request = slot.request(ram)?;
        let Some(device) = &mut self.device else {
            // Nobody answers: the command stays issued, as with a device that is gone.
            self.stopped = true;
            return Ok(());
        };
        let command = match request {
            Some(Request::Command(command)) => command,
            Some(Request::Control { reset }) => {
                // The device answers only when the reset ends (Serial ATA 3.x 11.4).
                self.issued &= !(1 << index);
                if self.soft_reset && !reset {
                    device.reset();
                    self.send_signature();
                    self.post_signature(ram);
                }
                self.soft_reset = reset;
                return Ok(());
            }
            None => {
                self.stopped = true;
                return Ok(());
            }
        };
        let mut walk = slot.walk();
        let mut regions = Regions {
            ram,
            walk: &mut walk,
            turn,
        };
        let progress = device.execute(&command, &mut regions)?;
        self.progress(Running { index, slot, walk }, progress, ram)
    }

    /// The next turn of a command.
    fn go_on(
        &mut self,
        mut running: Running,
        ram: &GuestRam,
        turn: &mut Turn,
    ) -> Result<(), BusFault> {
        let Some(device) = &mut self.device else {
            self.stopped = true;
            return Ok(());
        };
        let mut regions = Regions {
            ram,
            walk: &mut running.walk,
            turn,
        };
        let progress = device.go_on(&mut regions)?;
        self.progress(running, progress, ram)
    }

    /// Ends a command, or puts it aside. The device is busy until it ends (3.3.8).
    fn progress(
        &mut self,
        running: Running,
        progress: Progress,
        ram: &GuestRam,
    ) -> Result<(), BusFault> {
        let end = match progress {
            Progress::Done(end) => end,
            Progress::More => {
                self.task_file = status::BSY.into();
                self.running = Some(running);
                return Ok(());
            }
        };
        running.slot.set_count(ram, running.walk.sent)?;
        if running.walk.overflow {
            self.interrupts |= interrupt::OFS;
        }
        self.finish(running.index, &end, running.walk.sent, ram);
        Ok(())
    }

    /// The device's last frame of a command arrives (5.3.10, 5.3.13, 6.2.2.1).
    fn finish(&mut self, index: u32, end: &Completion, sent: u32, ram: &GuestRam) {
        self.set_task_file(end);
        match end.protocol {
            Protocol::Register => {
                self.interrupts |= interrupt::DHRS;
                self.post(ram, REGISTER_OFFSET, &register_frame(end, true));
            }
            Protocol::PioIn => {
                self.interrupts |= interrupt::PSS;
                self.post(ram, PIO_SETUP_OFFSET, &pio_setup_frame(end, sent));
            }
        }
        if end.status & status::ERR != 0 {
            // The command stays issued, and the list stops until software restarts it.
            self.interrupts |= interrupt::TFES;
            self.stopped = true;
        } else {
            self.issued &= !(1 << index);
        }
    }
}
