//! Data and I/O breakpoints (SDM Vol 3 18.2.4, 18.2.5). Instruction breakpoints are the run loop's, since
//! they are faults.
//!
//! While a data breakpoint is enabled the TLB always misses, so that every access comes by [`Cpu::watch`].

use x86defs::cr::cr4;

use crate::cpu::Cpu;

/// Kinds of breakpoint in DR7's R/W fields.
const WRITE: u64 = 1;
const IO: u64 = 2;
const READ_WRITE: u64 = 3;

fn enabled(dr7: u64, i: u64) -> bool {
    dr7 >> (2 * i) & 3 != 0
}

fn kind(dr7: u64, i: u64) -> u64 {
    dr7 >> (16 + 4 * i) & 3
}

/// The bytes a breakpoint covers; the low address bits inside the length do not count.
fn range(dr7: u64, address: u64, i: u64) -> (u64, u64) {
    let len = [1, 2, 8, 4][(dr7 >> (18 + 4 * i) & 3) as usize];
    (address & !(len - 1), len)
}

impl Cpu {
    /// Whether a data breakpoint is enabled.
    pub fn data_breakpoints(&self) -> bool {
        self.dr7 & 0xff != 0
            && (0..4)
                .any(|i| enabled(self.dr7, i) && matches!(kind(self.dr7, i), WRITE | READ_WRITE))
    }

    /// Notes the data breakpoints an access of `len` bytes hits; they trap after the instruction.
    #[inline]
    pub fn watch(&mut self, va: u64, len: u64, write: bool) {
        if self.dr7 & 0xff != 0 {
            self.note_hits(va, len, |kind| {
                kind == READ_WRITE || (write && kind == WRITE)
            });
        }
    }

    /// Notes the I/O breakpoints an access hits; they need CR4.DE.
    #[inline]
    pub fn watch_io(&mut self, port: u16, len: u8) {
        if self.dr7 & 0xff != 0 && self.cr4 & cr4::DE != 0 {
            self.note_hits(u64::from(port), u64::from(len), |kind| kind == IO);
        }
    }

    #[cold]
    fn note_hits(&mut self, at: u64, len: u64, of: impl Fn(u64) -> bool) {
        for i in 0..4 {
            let (start, size) = range(self.dr7, self.dr[i as usize], i);
            let overlaps = at < start.wrapping_add(size) && start < at.wrapping_add(len);
            if enabled(self.dr7, i) && of(kind(self.dr7, i)) && overlaps {
                self.pending_debug |= 1 << i;
            }
        }
    }
}
