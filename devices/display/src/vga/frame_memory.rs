//! The frame memory, which can be cleared in no time: blocks are marked, and filled with zeros when they are next
//! written. So no access takes longer than filling the few blocks it touches.

use crate::vbe::MEMORY_BYTES;

/// Bytes of a block.
const BLOCK: usize = 64 << 10;
const BLOCKS: usize = MEMORY_BYTES / BLOCK;

/// 16 MiB.
pub(super) struct FrameMemory {
    bytes: Vec<u8>,
    /// Blocks that read as zero, whatever is in `bytes`.
    cleared: [bool; BLOCKS],
}

impl FrameMemory {
    /// All zero.
    pub fn new() -> Self {
        Self {
            bytes: vec![0; MEMORY_BYTES],
            cleared: [false; BLOCKS],
        }
    }

    /// A byte; `None` beyond the end.
    pub fn get(&self, at: usize) -> Option<u8> {
        match self.cleared.get(at / BLOCK)? {
            true => Some(0),
            false => self.bytes.get(at).copied(),
        }
    }

    /// Sets a byte; beyond the end nothing happens.
    pub fn set(&mut self, at: usize, value: u8) {
        let block = at / BLOCK;
        let Some(cleared) = self.cleared.get_mut(block) else {
            return;
        };
        if std::mem::take(cleared) {
            self.bytes[block * BLOCK..][..BLOCK].fill(0);
        }
        self.bytes[at] = value;
    }

    /// Makes the first `count` bytes zero; what is beyond the end is left out.
    pub fn clear(&mut self, count: usize) {
        let count = count.min(MEMORY_BYTES);
        let whole = count / BLOCK;
        self.cleared[..whole].fill(true);
        if self.cleared.get(whole) == Some(&false) {
            self.bytes[whole * BLOCK..count].fill(0);
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

    /// However much is cleared, less than a block is filled then and there.
    #[test]
    fn whole_blocks_are_only_marked() {
        let mut memory = FrameMemory::new();
        (0..BLOCKS).for_each(|block| memory.set(block * BLOCK, 1));
        memory.clear(MEMORY_BYTES);
        assert_eq!(memory.cleared, [true; BLOCKS]);
        let untouched = |m: &FrameMemory| m.bytes.iter().filter(|&&byte| byte != 0).count();
        assert_eq!(untouched(&memory), BLOCKS);
        memory.set(5, 7);
        assert_eq!(untouched(&memory), BLOCKS, "one filled, one set");
        assert_eq!(memory.cleared.iter().filter(|&&c| !c).count(), 1);
    }
}
