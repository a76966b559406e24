//! A CD-ROM drive with a disc that stays in it: an ATAPI device with the MMC command set.
//!
//! Sources: ACS-3 for the ATA side; SCSI Primary Commands 3 (SPC-3) and Multi-Media Commands 6 (MMC-6) for packets.

mod packet;

#[cfg(test)]
mod tests;

use bus::BlockBackend;

use crate::ata::{
    AtaDevice, BusFault, Command, Completion, Data, Progress, Protocol, put_text, status,
};
use packet::{Reading, Sense};

/// Signature of a packet device (ACS-3 table 206).
const SIGNATURE: u32 = 0xeb14_0101;
/// ATA commands (ACS-3 table 29).
mod command {
    pub const DEVICE_RESET: u8 = 0x08;
    pub const EXECUTE_DIAGNOSTIC: u8 = 0x90;
    pub const PACKET: u8 = 0xa0;
    pub const IDENTIFY_PACKET: u8 = 0xa1;
    pub const STANDBY_IMMEDIATE: u8 = 0xe0;
    pub const IDLE_IMMEDIATE: u8 = 0xe1;
    pub const CHECK_POWER_MODE: u8 = 0xe5;
    pub const SLEEP: u8 = 0xe6;
    pub const IDENTIFY: u8 = 0xec;
    pub const SET_FEATURES: u8 = 0xef;
}
/// Interrupt reason at the end of a PACKET command: status to the host (ACS-3 6.5.4).
const REASON_DONE: u8 = 3;
/// CHECK POWER MODE: active or idle.
const POWER_ACTIVE: u8 = 0xff;
/// Subcommand of SET FEATURES: transfer mode.
const SET_TRANSFER_MODE: u16 = 0x03;
/// EXECUTE DEVICE DIAGNOSTIC: device 0 passed.
const DIAGNOSTIC_PASSED: u8 = 0x01;

const MODEL: &str = "NESTLING CD-ROM";
const FIRMWARE: &str = "1.0";
const SERIAL: &str = "NESTLING0001";

/// The drive.
pub struct CdRom {
    // Configuration.
    disc: Box<dyn BlockBackend>,
    // Volatile.
    sense: Sense,
    /// A power-on or reset that the host was not told of yet.
    attention: bool,
    buffer: Vec<u8>,
    /// What is left of a read that takes several turns.
    reading: Option<Reading>,
}

impl CdRom {
    /// A drive with `disc` in it, whose size is a multiple of 2,048 bytes.
    #[must_use]
    pub fn new(disc: Box<dyn BlockBackend>) -> Self {
        Self {
            disc,
            sense: Sense::NONE,
            attention: true,
            buffer: Vec::new(),
            reading: None,
        }
    }

    /// IDENTIFY PACKET DEVICE data (ACS-3 7.13).
    fn identification() -> [u8; 512] {
        let mut words = [0u16; 256];
        // ATAPI, CD-ROM, removable, DRQ within 50 us, 12-byte packets.
        words[0] = 0x85c0;
        put_text(&mut words[10..20], SERIAL);
        put_text(&mut words[23..27], FIRMWARE);
        put_text(&mut words[27..47], MODEL);
        // DMA, LBA, IORDY.
        words[49] = 0x0b00;
        // Words 64 to 70 and 88 are valid.
        words[53] = 0x0006;
        // Multiword DMA 2 to 0.
        words[63] = 0x0007;
        // PIO modes 3 and 4, and cycle times.
        words[64] = 0x0003;
        words[65..69].copy_from_slice(&[120, 120, 120, 120]);
        // SATA generation 1.
        words[76] = 0x0002;
        // ATA/ATAPI-5 to ACS-2.
        words[80] = 0x03e0;
        // PACKET and DEVICE RESET; words that are valid; the same enabled.
        words[82] = 0x0210;
        words[83] = 0x4000;
        words[84] = 0x4000;
        words[85] = 0x0210;
        words[87] = 0x4000;
        // Ultra DMA 5 to 0, 5 selected.
        words[88] = 0x203f;
        let mut bytes = [0; 512];
        for (to, word) in bytes.chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// What the registers hold after a reset, also when a command for disks is refused (ACS-3 7.12).
    fn with_signature(completion: Completion) -> Completion {
        Completion {
            count: SIGNATURE as u8,
            lba: SIGNATURE >> 8,
            ..completion
        }
    }

    /// The end of a packet.
    fn ended(&mut self, end: Result<(), Sense>) -> Completion {
        let done = Completion {
            count: REASON_DONE,
            ..Completion::good(Protocol::Register)
        };
        match end {
            Ok(()) => done,
            Err(sense) => {
                self.sense = sense;
                Completion {
                    status: status::READY | status::ERR,
                    // The sense key in the upper half (ACS-3 6.3.9).
                    error: sense.key << 4 | crate::ata::ABORT,
                    ..done
                }
            }
        }
    }

    /// Sends as much of a read as the turn has room for.
    fn read_on(&mut self, data: &mut dyn Data) -> Result<Progress, BusFault> {
        match self.send_sectors(data)? {
            Ok(()) if self.reading.is_some() => Ok(Progress::More),
            end => Ok(Progress::Done(self.ended(end))),
        }
    }
}

impl AtaDevice for CdRom {
    fn signature(&self) -> u32 {
        SIGNATURE
    }

    /// A packet device is not ready before its first command (ACS-3 table 206).
    fn reset_status(&self) -> u8 {
        0
    }

    fn reset(&mut self) {
        self.sense = Sense::NONE;
        self.attention = true;
        self.reading = None;
    }

    fn execute(&mut self, command: &Command, data: &mut dyn Data) -> Result<Progress, BusFault> {
        self.reading = None;
        let good = Completion::good(Protocol::Register);
        let end = match command.command {
            command::PACKET => match self.perform(&command.packet, data)? {
                Ok(()) if self.reading.is_some() => return self.read_on(data),
                end => self.ended(end),
            },
            command::IDENTIFY_PACKET => {
                data.send(&Self::identification())?;
                Completion::good(Protocol::PioIn)
            }
            command::DEVICE_RESET => {
                self.reset();
                Self::with_signature(Completion { status: 0, ..good })
            }
            command::EXECUTE_DIAGNOSTIC => Self::with_signature(Completion {
                error: DIAGNOSTIC_PASSED,
                ..good
            }),
            command::IDENTIFY => Self::with_signature(Completion::aborted()),
            command::CHECK_POWER_MODE => Completion {
                count: POWER_ACTIVE,
                ..good
            },
            command::STANDBY_IMMEDIATE | command::IDLE_IMMEDIATE | command::SLEEP => good,
            command::SET_FEATURES if command.features & 0xff == SET_TRANSFER_MODE => good,
            _ => Completion::aborted(),
        };
        Ok(Progress::Done(end))
    }

    fn go_on(&mut self, data: &mut dyn Data) -> Result<Progress, BusFault> {
        self.read_on(data)
    }

    fn give_up(&mut self) {
        self.reading = None;
    }
}
