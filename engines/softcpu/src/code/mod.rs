//! Decoded code: operations, blocks, the block cache.

mod cache;
mod checked;
mod decode;
mod executor;
mod op;

pub use cache::{Block, BlockCache, BlockKey, room_for, sum_of};
pub use checked::{Checked, Compared, Varying};
pub use decode::{Decoded, MOST_BYTES, Mode, decode_block, register_code, successors};
pub use executor::{BlockExecutor, Entry, Left, Source, Way};
pub use op::{Ea, Handler, Op};
