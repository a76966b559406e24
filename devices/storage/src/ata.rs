//! An ATA device as its host adapter sees it (ATA/ATAPI Command Set 3, ACS-3).

/// The host adapter could not reach guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BusFault;

/// Status bits (ACS-3 6.2).
pub(crate) mod status {
    /// Error; of a packet device: check condition.
    pub const ERR: u8 = 1 << 0;
    pub const DRQ: u8 = 1 << 3;
    /// Seek complete in older editions; drives still set it.
    pub const DSC: u8 = 1 << 4;
    pub const DRDY: u8 = 1 << 6;
    pub const BSY: u8 = 1 << 7;
    /// What a device says that is ready and content.
    pub const READY: u8 = DRDY | DSC;
}

/// Error bit: command aborted (ACS-3 6.3.2).
pub(crate) const ABORT: u8 = 1 << 2;

/// A command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Command {
    pub command: u8,
    pub features: u16,
    /// 48 bits.
    pub lba: u64,
    pub count: u16,
    pub device: u8,
    /// The command packet of a PACKET command.
    pub packet: [u8; 16],
}

/// How a command's data went, which decides what the device sends at the end (Serial ATA 3.x 11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// No data, DMA, or PACKET: the device ends it with a register FIS.
    Register,
    /// PIO to the host: the last PIO setup FIS holds the ending status.
    PioIn,
}

/// The end of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Completion {
    pub status: u8,
    pub error: u8,
    pub count: u8,
    pub lba: u32,
    pub protocol: Protocol,
}

impl Completion {
    /// A good end.
    pub fn good(protocol: Protocol) -> Self {
        Self {
            status: status::READY,
            error: 0,
            count: 0,
            lba: 0,
            protocol,
        }
    }

    /// The command is not one of the device's, or its parameters are wrong.
    pub fn aborted() -> Self {
        Self {
            status: status::READY | status::ERR,
            error: ABORT,
            ..Self::good(Protocol::Register)
        }
    }
}

/// What came of a turn of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It ended.
    Done(Completion),
    /// It goes on in the next turn ([`AtaDevice::go_on`]).
    More,
}

/// Where a command's data goes: the host's buffers, in order.
pub(crate) trait Data {
    /// Sends to the host. What its buffers have no room for is lost.
    ///
    /// # Errors
    /// [`BusFault`] when a buffer is not memory.
    fn send(&mut self, data: &[u8]) -> Result<(), BusFault>;

    /// Whether the host's buffers are full.
    fn is_full(&self) -> bool;

    /// The device has more than the host's buffers have room for.
    fn overflow(&mut self);

    /// Bytes the device may still send in this turn; what it sends once a turn is over, because it is little, is taken.
    fn left_of_turn(&self) -> u64;
}

/// A device on a SATA port.
pub(crate) trait AtaDevice: Send {
    /// The signature after a reset (ACS-3 table 206): LBA bits 23:0 above the sector count.
    fn signature(&self) -> u32;

    /// Status after a reset.
    fn reset_status(&self) -> u8;

    /// A hardware or software reset.
    fn reset(&mut self);

    /// Begins a command, and executes it as far as the turn reaches. The one before it has ended or was given up.
    ///
    /// # Errors
    /// [`BusFault`] when its data could not be moved; the command is given up.
    fn execute(&mut self, command: &Command, data: &mut dyn Data) -> Result<Progress, BusFault>;

    /// Goes on with the command.
    ///
    /// # Errors
    /// [`BusFault`] when its data could not be moved; the command is given up.
    fn go_on(&mut self, data: &mut dyn Data) -> Result<Progress, BusFault>;

    /// Gives up the command that is going on, if one is.
    fn give_up(&mut self);
}

/// Puts text into identification words: padded with spaces, the first character in the upper byte (ACS-3 3.4.8).
pub(crate) fn put_text(words: &mut [u16], text: &str) {
    let mut bytes = text.bytes().chain(std::iter::repeat(b' '));
    for word in words {
        let mut next = || bytes.next().unwrap_or(b' ');
        *word = u16::from_be_bytes([next(), next()]);
    }
}
