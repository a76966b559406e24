//! Register layout of the 16550A (National PC16550D datasheet, table II).

/// Ports the chip takes.
pub const PORTS: u16 = 8;
/// Base of the first serial port of a PC.
pub const COM1: u16 = 0x3f8;
/// Its ISA interrupt.
pub const COM1_IRQ: u32 = 4;

/// Receive buffer and transmit holding register, or divisor low with DLAB.
pub const DATA: u8 = 0;
/// Interrupt enable, or divisor high with DLAB.
pub const IER: u8 = 1;
/// Interrupt identification (read), FIFO control (write).
pub const IIR_FCR: u8 = 2;
/// Line control.
pub const LCR: u8 = 3;
/// Modem control.
pub const MCR: u8 = 4;
/// Line status.
pub const LSR: u8 = 5;
/// Modem status.
pub const MSR: u8 = 6;
/// Scratch.
pub const SCR: u8 = 7;

/// IER: received data available.
pub const IER_RDA: u8 = 1 << 0;
/// IER: transmit holding register empty.
pub const IER_THRE: u8 = 1 << 1;
/// IER: line status.
pub const IER_LINE: u8 = 1 << 2;
/// IER: modem status.
pub const IER_MODEM: u8 = 1 << 3;

/// IIR: no interrupt is pending.
pub const IIR_NONE: u8 = 0x01;
/// IIR: line status, the highest priority.
pub const IIR_LINE: u8 = 0x06;
/// IIR: received data available.
pub const IIR_RDA: u8 = 0x04;
/// IIR: character timeout.
pub const IIR_TIMEOUT: u8 = 0x0c;
/// IIR: transmit holding register empty.
pub const IIR_THRE: u8 = 0x02;
/// IIR: modem status, the lowest priority.
pub const IIR_MODEM: u8 = 0x00;
/// IIR: the FIFOs are on.
pub const IIR_FIFOS: u8 = 0xc0;

/// FCR: the FIFOs are on.
pub const FCR_ENABLE: u8 = 1 << 0;
/// FCR: clear the receive FIFO.
pub const FCR_CLEAR_RX: u8 = 1 << 1;

/// LCR: divisor latch access.
pub const LCR_DLAB: u8 = 1 << 7;

/// MCR: the bits that exist.
pub const MCR_WRITABLE: u8 = 0x1f;
/// MCR: OUT2, which lets the interrupt through to the bus on a PC.
pub const MCR_OUT2: u8 = 1 << 3;
/// MCR: loopback.
pub const MCR_LOOP: u8 = 1 << 4;

/// LSR: data ready.
pub const LSR_DR: u8 = 1 << 0;
/// LSR: overrun error.
pub const LSR_OE: u8 = 1 << 1;
/// LSR: parity, framing error, break: the line here never makes them.
pub const LSR_ERRORS: u8 = 0x1e;
/// LSR: transmit holding register and transmitter empty.
pub const LSR_THRE_TEMT: u8 = 0x60;

/// MSR: CTS, DSR and DCD are asserted: a terminal is connected.
pub const MSR_CONNECTED: u8 = 0xb0;

/// Characters in each FIFO.
pub const FIFO: usize = 16;
/// The chip's clock on a PC: 1.8432 MHz, 16 ticks a bit at divisor 1.
pub const CLOCK_HZ: u64 = 1_843_200;
