//! Locked operations: load, change and store in one piece (SDM Vol 3 9.1.2).
//!
//! What lies in one line of 64 bytes of RAM is a compare-and-exchange of the host. Anything else (two lines, two
//! pages, a device) is done while all other vCPUs stand still ([`crate::world`]).

use std::sync::Arc;

use guestmem::{GuestRam, RamOffset, Word};

use super::access::Target;
use crate::cpu::{Cpu, Flow, Trap};

impl Cpu {
    /// Loads, applies `f`, stores, as one; faults as a store before `f` runs. `f` may run several times, each time
    /// with the flags as they were.
    #[inline(always)]
    pub fn lock_linear<T: Word>(&mut self, va: u64, mut f: impl FnMut(&mut Self, T) -> T) -> Flow {
        match self.tlb.write_hit(va, T::SIZE) {
            Some(at) if GuestRam::in_one_line(at, T::SIZE) => {
                self.lock_ram(at, &mut f);
                self.stored(at, T::SIZE);
                Ok(())
            }
            _ => self.lock_slow(va, f),
        }
    }

    #[inline(always)]
    fn lock_ram<T: Word>(&mut self, at: RamOffset, f: &mut impl FnMut(&mut Self, T) -> T) {
        let flags = self.flags;
        let mut old = self.ram.load(at);
        loop {
            let new = f(self, old);
            match self.ram.compare_exchange(at, old, new) {
                Ok(_) => return,
                Err(now) => old = now,
            }
            self.flags = flags;
        }
    }

    #[cold]
    #[inline(never)]
    fn lock_slow<T: Word>(&mut self, va: u64, mut f: impl FnMut(&mut Self, T) -> T) -> Flow {
        self.check_alignment(va, T::SIZE)?;
        let (first, second) = self.targets(va, T::SIZE)?;
        if let (Target::Ram(at), None) = (first, second)
            && GuestRam::in_one_line(at, T::SIZE)
        {
            self.may_store(first, T::SIZE)?;
            self.watch(va, T::SIZE, true);
            self.lock_ram(at, &mut f);
            self.note_store(at, T::SIZE);
            return Ok(());
        }
        let _alone = Arc::clone(&self.world).alone();
        let old = self.read_for_write(va)?;
        let new = f(self, old);
        self.write_slow(va, new)
    }

    /// Sets bits of the byte at `va` with supervisor rights, as one with the look at what they were: the whole byte
    /// from before. A byte that has them is not written (SDM Vol 3 9.1.2.1).
    pub fn set_bits_system(&mut self, va: u64, bits: u8) -> Result<u8, Trap> {
        let before: u8 = self.read_system(va)?;
        if before & bits == bits {
            return Ok(before);
        }
        self.update_system(va, |byte| byte | bits)
    }

    /// Clears bits of the byte at `va` with supervisor rights, as one.
    pub fn clear_bits_system(&mut self, va: u64, bits: u8) -> Flow {
        self.update_system(va, |byte| byte & !bits).map(|_| ())
    }

    /// A locked update with supervisor rights; gives the byte from before.
    fn update_system(&mut self, va: u64, f: impl Fn(u8) -> u8) -> Result<u8, Trap> {
        let mut before = 0;
        self.implicitly(va, |cpu, va| {
            cpu.lock_linear(va, |_, byte: u8| {
                before = byte;
                f(byte)
            })
        })?;
        Ok(before)
    }

    /// Compares the 16 bytes at `va`, a multiple of 16, with `expected` and replaces them by `new` if they are
    /// equal, as one; gives what was there.
    pub fn lock_pair(&mut self, va: u64, expected: u128, new: u128) -> Result<u128, Trap> {
        let (target, _) = self.targets(va, 16)?;
        self.may_store(target, 16)?;
        if let Target::Ram(at) = target
            && let Some(done) = self.ram.compare_exchange_16(at, expected, new)
        {
            self.watch(va, 16, true);
            self.note_store(at, 16);
            return Ok(done.unwrap_or_else(|found| found));
        }
        let _alone = Arc::clone(&self.world).alone();
        let mut found = [0; 16];
        self.read_bytes(va, &mut found)?;
        let found = u128::from_le_bytes(found);
        let store = if found == expected { new } else { found };
        self.write_bytes(va, &store.to_le_bytes())?;
        Ok(found)
    }
}
