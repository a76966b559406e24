//! Frames between host and device (Serial ATA 3.x 10.5) and the command list in guest memory (AHCI 1.3.1 4.2).

use bus::Turn;
use guestmem::{Gpa, GuestRam};

use crate::ata::{BusFault, Command, Completion, Data, status};

/// Frame types.
const REGISTER_TO_DEVICE: u8 = 0x27;
const REGISTER_TO_HOST: u8 = 0x34;
const PIO_SETUP: u8 = 0x5f;
/// Register frame to the device: it holds a command, not a write to the control register.
const IS_COMMAND: u8 = 1 << 7;
/// Interrupt bit of a frame to the host.
const INTERRUPT: u8 = 1 << 6;
/// PIO setup: data goes to the host.
const TO_HOST: u8 = 1 << 5;
/// Control register: software reset.
const SOFT_RESET: u8 = 1 << 2;

/// Where a port's memory receives the frames (AHCI 4.2.1).
pub(super) const PIO_SETUP_OFFSET: u64 = 0x20;
pub(super) const REGISTER_OFFSET: u64 = 0x40;

/// Bytes of a command header, and of a region descriptor.
const HEADER_BYTES: u64 = 32;
const REGION_BYTES: u64 = 16;
/// Where the command packet and the region descriptors are in a command table (AHCI 4.2.3).
const PACKET_OFFSET: u64 = 0x40;
const REGIONS_OFFSET: u64 = 0x80;
/// What reading a region descriptor costs, in bytes of a turn.
const REGION_COST: u64 = 64;
/// Where a header counts the bytes transferred.
const COUNT_OFFSET: u64 = 4;

/// What a frame to the device asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Command(Command),
    /// A write to the control register; whether software reset is set.
    Control {
        reset: bool,
    },
}

/// A command slot, as its header describes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    header: Gpa,
    table: Gpa,
    regions: u16,
    is_packet: bool,
}

pub(super) fn read(ram: &GuestRam, at: Gpa, data: &mut [u8]) -> Result<(), BusFault> {
    ram.read(at, data).map_err(|_| BusFault)
}

pub(super) fn write(ram: &GuestRam, at: Gpa, data: &[u8]) -> Result<(), BusFault> {
    ram.write(at, data).map_err(|_| BusFault)
}

fn plus(at: Gpa, offset: u64) -> Gpa {
    Gpa(at.0.saturating_add(offset))
}

impl Slot {
    /// Reads header `index` of the list at `list` (AHCI 4.2.2).
    pub fn read(ram: &GuestRam, list: Gpa, index: u32) -> Result<Self, BusFault> {
        let header = plus(list, HEADER_BYTES * u64::from(index));
        let mut bytes = [0; 16];
        read(ram, header, &mut bytes)?;
        let all = u128::from_le_bytes(bytes);
        Ok(Self {
            header,
            // 128-byte aligned.
            table: Gpa((all >> 64) as u64 & !0x7f),
            regions: (all >> 16) as u16,
            is_packet: all >> 5 & 1 != 0,
        })
    }

    /// Reads the frame that is to be sent; `None` for one a device does not understand.
    pub fn request(&self, ram: &GuestRam) -> Result<Option<Request>, BusFault> {
        let mut f = [0; 20];
        read(ram, self.table, &mut f)?;
        if f[0] != REGISTER_TO_DEVICE {
            return Ok(None);
        }
        if f[1] & IS_COMMAND == 0 {
            return Ok(Some(Request::Control {
                reset: f[15] & SOFT_RESET != 0,
            }));
        }
        let mut packet = [0; 16];
        if self.is_packet {
            read(ram, plus(self.table, PACKET_OFFSET), &mut packet)?;
        }
        Ok(Some(Request::Command(Command {
            command: f[2],
            features: u16::from_le_bytes([f[3], f[11]]),
            lba: u64::from_le_bytes([f[4], f[5], f[6], f[8], f[9], f[10], 0, 0]),
            count: u16::from_le_bytes([f[12], f[13]]),
            device: f[7],
            packet,
        })))
    }

    /// The start of its region descriptors.
    pub fn walk(&self) -> Walk {
        Walk {
            next: plus(self.table, REGIONS_OFFSET),
            left: self.regions,
            current: None,
            sent: 0,
            overflow: false,
        }
    }

    /// Writes how many bytes were transferred.
    pub fn set_count(&self, ram: &GuestRam, bytes: u32) -> Result<(), BusFault> {
        write(ram, plus(self.header, COUNT_OFFSET), &bytes.to_le_bytes())
    }
}

/// A place in a command's region descriptors (AHCI 4.2.3.3). It stays where it is between two turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Walk {
    next: Gpa,
    left: u16,
    /// What is left of the region being filled.
    current: Option<(Gpa, u32)>,
    /// Bytes that went through.
    pub sent: u32,
    /// The device had more than there was room for.
    pub overflow: bool,
}

/// The host's buffers, walked as they fill in one turn.
pub(super) struct Regions<'a> {
    pub ram: &'a GuestRam,
    pub walk: &'a mut Walk,
    pub turn: &'a mut Turn,
}

impl Regions<'_> {
    fn region(&mut self) -> Result<Option<(Gpa, u32)>, BusFault> {
        let walk = &mut *self.walk;
        if let Some(current) = walk.current {
            return Ok(Some(current));
        }
        if walk.left == 0 {
            return Ok(None);
        }
        self.turn.spend(REGION_COST);
        let mut bytes = [0; REGION_BYTES as usize];
        read(self.ram, walk.next, &mut bytes)?;
        walk.left -= 1;
        walk.next = plus(walk.next, REGION_BYTES);
        let all = u128::from_le_bytes(bytes);
        // Word aligned; the count is one less than the bytes, and odd: bit 0 counts as set.
        let bytes = ((all >> 96) as u32 & 0x3f_ffff | 1) + 1;
        walk.current = Some((Gpa(all as u64 & !1), bytes));
        Ok(walk.current)
    }
}

impl Data for Regions<'_> {
    fn send(&mut self, data: &[u8]) -> Result<(), BusFault> {
        let mut rest = data;
        while !rest.is_empty() {
            let Some((at, room)) = self.region()? else {
                self.overflow();
                return Ok(());
            };
            let len = rest.len().min(room as usize);
            let (now, later) = rest.split_at(len);
            write(self.ram, at, now)?;
            let len = len as u32;
            self.turn.spend(len.into());
            self.walk.sent = self.walk.sent.saturating_add(len);
            self.walk.current = (len < room).then(|| (plus(at, len.into()), room - len));
            rest = later;
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.walk.current.is_none() && self.walk.left == 0
    }

    fn overflow(&mut self) {
        self.walk.overflow = true;
    }

    fn left_of_turn(&self) -> u64 {
        self.turn.left()
    }
}

/// The register frame that ends a command, or follows a reset.
pub(super) fn register_frame(end: &Completion, interrupt: bool) -> [u8; 20] {
    let [lba0, lba1, lba2, _] = end.lba.to_le_bytes();
    let mut f = [0; 20];
    f[0] = REGISTER_TO_HOST;
    f[1] = if interrupt { INTERRUPT } else { 0 };
    f[2] = end.status;
    f[3] = end.error;
    f[4..7].copy_from_slice(&[lba0, lba1, lba2]);
    f[12] = end.count;
    f
}

/// The PIO setup frame of data that went to the host; its ending status is the command's.
pub(super) fn pio_setup_frame(end: &Completion, bytes: u32) -> [u8; 20] {
    let mut f = register_frame(end, true);
    f[0] = PIO_SETUP;
    f[1] |= TO_HOST;
    f[2] = end.status | status::DRQ;
    f[15] = end.status;
    f[16..18].copy_from_slice(&(bytes as u16).to_le_bytes());
    f
}
