//! Commands, status bits and query table of the parallel NOR flash (JEDEC JEP137 "Common Flash Interface"; Intel
//! StrataFlash Embedded Memory (P30) datasheet, command set 0001h).

/// Command: read array.
pub const READ_ARRAY: u8 = 0xff;
/// Command: read array, as older software gives it.
pub const READ_ARRAY_OLD: u8 = 0x00;
/// Command: read identifier codes.
pub const READ_IDENTIFIER: u8 = 0x90;
/// Command: read the query table.
pub const READ_QUERY: u8 = 0x98;
/// Command: read the status register.
pub const READ_STATUS: u8 = 0x70;
/// Command: clear the status register.
pub const CLEAR_STATUS: u8 = 0x50;
/// Command: program, first cycle.
pub const PROGRAM: u8 = 0x40;
/// Command: program, the alternative code.
pub const PROGRAM_OTHER: u8 = 0x10;
/// Command: program a buffer, first cycle.
pub const BUFFER: u8 = 0xe8;
/// Command: erase a block, first cycle.
pub const ERASE: u8 = 0x20;
/// Command: the second cycle of an erasure, a buffer's last, and of an unlock.
pub const CONFIRM: u8 = 0xd0;
/// Command: lock bits, first cycle.
pub const LOCK: u8 = 0x60;
/// Second cycle after [`LOCK`]: lock the block.
pub const LOCK_BLOCK: u8 = 0x01;

/// Status: ready.
pub const READY: u8 = 1 << 7;
/// Status: erasure failed.
pub const ERASE_ERROR: u8 = 1 << 5;
/// Status: programming failed.
pub const PROGRAM_ERROR: u8 = 1 << 4;

/// Identifier: Intel.
pub const MANUFACTURER: u8 = 0x89;
/// Identifier: device code.
pub const DEVICE: u8 = 0x18;

/// log2 of the write buffer's bytes.
pub const BUFFER_LOG2: u8 = 11;
/// Bytes of the write buffer.
pub const BUFFER_BYTES: u64 = 1 << BUFFER_LOG2;

/// Where the query table starts.
pub const QUERY_START: usize = 0x10;
/// The query table from [`QUERY_START`] on; sizes are filled in by [`query`].
const QUERY: [u8; 0x21] = [
    // 10h: "QRY"; primary command set 0001h and its table at 31h; no alternative.
    b'Q',
    b'R',
    b'Y',
    0x01,
    0x00,
    0x31,
    0x00,
    0x00,
    0x00,
    0x00,
    0x00,
    // 1Bh: Vcc 4.5 V to 5.5 V, no Vpp; times: 2^7 us for a word and a buffer, 2^10 ms for a block, none for the chip.
    0x45,
    0x55,
    0x00,
    0x00,
    0x07,
    0x07,
    0x0a,
    0x00,
    0x04,
    0x04,
    0x04,
    0x00,
    // 27h: size; interface x8; bytes of the write buffer; one region of erase blocks.
    0x00,
    0x00,
    0x00,
    BUFFER_LOG2,
    0x00,
    0x01, // 2Dh: blocks less one, bytes of each / 256.
    0x00,
    0x00,
    0x00,
    0x00,
];

/// The query table of a chip of `bytes`, with erase blocks of `block_bytes`.
#[must_use]
pub fn query(bytes: u64, block_bytes: u64) -> [u8; QUERY.len()] {
    let mut table = QUERY;
    let mut put = |at: usize, value: u8| table[at - QUERY_START] = value;
    put(0x27, bytes.next_power_of_two().trailing_zeros() as u8);
    let [low, high, ..] = (bytes / block_bytes).wrapping_sub(1).to_le_bytes();
    put(0x2d, low);
    put(0x2e, high);
    let [low, high, ..] = (block_bytes >> 8).to_le_bytes();
    put(0x2f, low);
    put(0x30, high);
    table
}
