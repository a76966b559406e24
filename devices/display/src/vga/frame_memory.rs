//! The frame memory, in blocks that are there once they are written. A display whose memory is never used takes none,
//! and clearing drops whole blocks: no access takes longer than filling the few blocks it touches.

use crate::vbe::MEMORY_BYTES;

/// Bytes of a block.
const BLOCK: usize = 64 << 10;
const BLOCKS: usize = MEMORY_BYTES / BLOCK;

/// 16 MiB.
pub(super) struct FrameMemory {
    /// Blocks; what is not there reads as zero.
    blocks: [Option<Box<[u8]>>; BLOCKS],
}

impl FrameMemory {
    /// All zero.
    pub fn new() -> Self {
        Self {
            blocks: [const { None }; BLOCKS],
        }
    }

    /// A byte; `None` beyond the end.
    pub fn get(&self, at: usize) -> Option<u8> {
        let block = self.blocks.get(at / BLOCK)?;
        Some(block.as_ref().map_or(0, |bytes| bytes[at % BLOCK]))
    }

    /// Sets a byte; beyond the end nothing happens.
    pub fn set(&mut self, at: usize, value: u8) {
        if let Some(block) = self.blocks.get_mut(at / BLOCK) {
            block.get_or_insert_with(|| vec![0; BLOCK].into())[at % BLOCK] = value;
        }
    }

    /// Makes the first `count` bytes zero; what is beyond the end is left out.
    pub fn clear(&mut self, count: usize) {
        let count = count.min(MEMORY_BYTES);
        let (whole, rest) = (count / BLOCK, count % BLOCK);
        self.blocks[..whole].fill(None);
        if let Some(Some(bytes)) = self.blocks.get_mut(whole) {
            bytes[..rest].fill(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same as memory that is filled at once.
    #[test]
    fn it_reads_as_if_it_were_filled() {
        let mut memory = FrameMemory::new();
        let mut plain = vec![0; MEMORY_BYTES];
        let mut seed = 0x2545_f491_4f6c_dd1du64;
        let mut random = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed as usize
        };
        for step in 0..200 {
            for _ in 0..100 {
                let (at, value) = (random() % MEMORY_BYTES, random() as u8);
                memory.set(at, value);
                plain[at] = value;
            }
            if step % 3 == 0 {
                let count = random() % MEMORY_BYTES;
                memory.clear(count);
                plain[..count].fill(0);
            }
            for at in [0, 1, BLOCK - 1, BLOCK, MEMORY_BYTES - 1].into_iter() {
                assert_eq!(memory.get(at), Some(plain[at]), "{step} {at:#x}");
            }
        }
        assert!((0..MEMORY_BYTES).all(|at| memory.get(at) == Some(plain[at])));
        memory.clear(usize::MAX);
        assert!((0..MEMORY_BYTES).all(|at| memory.get(at) == Some(0)));
        memory.set(MEMORY_BYTES, 1);
        assert_eq!(memory.get(MEMORY_BYTES), None);
    }

    /// However much is cleared, less than a block is filled then and there; and what is written takes a block.
    #[test]
    fn blocks_are_there_once_they_are_written() {
        let there = |m: &FrameMemory| m.blocks.iter().filter(|block| block.is_some()).count();
        let mut memory = FrameMemory::new();
        assert_eq!(there(&memory), 0);
        (0..BLOCKS).for_each(|block| memory.set(block * BLOCK, 1));
        assert_eq!(there(&memory), BLOCKS);
        memory.clear(MEMORY_BYTES - 1);
        assert_eq!(there(&memory), 1);
        memory.clear(MEMORY_BYTES);
        memory.set(5, 7);
        assert_eq!(there(&memory), 1);
    }
}
