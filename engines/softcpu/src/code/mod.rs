//! Decoded code: operations, blocks, the block cache.

mod cache;
mod decode;
mod op;

pub use cache::{Block, BlockCache, BlockKey};
pub use decode::{Decoded, Mode, decode_block, register_code};
pub use op::{Ea, Handler, Op};
