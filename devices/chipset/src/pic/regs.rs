//! Ports and command bits of the 8259A pair (8259A datasheet; ICH9 datasheet 13.4 for ELCR).

/// Region of the master's two ports, 20h and 21h.
pub const REGION_MASTER: u8 = 0;
/// Region of the slave's two ports, A0h and A1h.
pub const REGION_SLAVE: u8 = 1;
/// Region of the edge/level control registers, 4D0h and 4D1h.
pub const REGION_ELCR: u8 = 2;

/// First port of the master.
pub const PORT_MASTER: u16 = 0x20;
/// First port of the slave.
pub const PORT_SLAVE: u16 = 0xa0;
/// First port of the edge/level control registers.
pub const PORT_ELCR: u16 = 0x4d0;

/// Master input the slave is on.
pub const CASCADE: u8 = 2;

/// Inputs that ELCR can make level triggered: not IRQ 0, 1, 2, 8 and 13.
pub const ELCR_WRITABLE: [u8; 2] = [0xf8, 0xde];

/// ICW1: marks the start of initialization.
pub const ICW1: u8 = 1 << 4;
/// ICW1: ICW4 will follow.
pub const ICW1_IC4: u8 = 1 << 0;
/// ICW1: the chip is alone, so no ICW3 follows.
pub const ICW1_SNGL: u8 = 1 << 1;

/// ICW4: automatic end of interrupt.
pub const ICW4_AEOI: u8 = 1 << 1;
/// ICW4: special fully nested mode.
pub const ICW4_SFNM: u8 = 1 << 4;

/// Marks an OCW3 among writes to the even port.
pub const OCW3: u8 = 1 << 3;
/// OCW3: the next read of the even port is a poll.
pub const OCW3_P: u8 = 1 << 2;
/// OCW3: RIS is valid.
pub const OCW3_RR: u8 = 1 << 1;
/// OCW3: reads give ISR, not IRR.
pub const OCW3_RIS: u8 = 1 << 0;
/// OCW3: SMM is valid.
pub const OCW3_ESMM: u8 = 1 << 6;
/// OCW3: special mask mode.
pub const OCW3_SMM: u8 = 1 << 5;
