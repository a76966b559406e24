//! Loads and stores by linear address: the hit path and everything else.

use std::sync::atomic::{Ordering, fence};

use guestmem::{Gpa, PAGE_MASK, RamOffset, Word};
use vcpu::{Attention, SegmentRegister};
use x86defs::cr::{cr0, efer};
use x86defs::exception;
use x86defs::rflags;

use super::code_pages::Stale;
use super::tlb::Tlb;
use super::walk::{Access, Translation};
use crate::code::{Ea, Op};
use crate::cpu::{Cpu, Flow, Trap, canonical, pending, sreg};

/// Where a checked store goes.
#[derive(Clone, Copy)]
pub(super) enum Target {
    Ram(RamOffset),
    /// A device, ROM, or RAM that reads as something else.
    Device(Gpa),
    /// The APIC-access page of VMX non-root operation, at this offset.
    ApicAccess(u64),
}

impl Cpu {
    /// The effective address of `op`'s memory operand (SDM Vol 1 3.7.5), truncated to the address size.
    #[inline(always)]
    pub fn effective_address(&self, op: &Op) -> u64 {
        let a = self.regs[(op.base & 31) as usize]
            .wrapping_add(self.regs[(op.index & 31) as usize] << (op.scale & 3))
            .wrapping_add(op.disp as i64 as u64);
        match op.ea {
            Ea::Flat | Ea::Based => a,
            Ea::Addr32 | Ea::Legacy32 => a & 0xffff_ffff,
            Ea::Legacy16 => a & 0xffff,
        }
    }

    /// The linear address of `op`'s memory operand of `size` bytes; checks the segment outside 64-bit mode.
    #[inline(always)]
    pub fn linear(&mut self, op: &Op, size: u64, write: bool) -> Result<u64, Trap> {
        let a = self.effective_address(op);
        match op.ea {
            Ea::Flat => Ok(a),
            Ea::Based | Ea::Addr32 => Ok(a.wrapping_add(self.ea_base[(op.seg & 7) as usize])),
            Ea::Legacy32 | Ea::Legacy16 => self.segmented(usize::from(op.seg), a, size, write),
        }
    }

    /// The linear address of `size` bytes that are `skip` bytes behind the start of `op`'s memory operand.
    pub fn linear_at(&mut self, op: &Op, skip: u64, size: u64, write: bool) -> Result<u64, Trap> {
        let a = self.effective_address(op).wrapping_add(skip);
        match op.ea {
            Ea::Flat => Ok(a),
            Ea::Based | Ea::Addr32 => Ok(a.wrapping_add(self.ea_base[(op.seg & 7) as usize])),
            Ea::Legacy32 | Ea::Legacy16 => self.segmented(usize::from(op.seg), a, size, write),
        }
    }

    /// The linear address of `offset` in segment `seg` with the width rules of the current mode.
    #[inline(always)]
    pub fn linear_in(
        &mut self,
        seg: usize,
        offset: u64,
        size: u64,
        write: bool,
    ) -> Result<u64, Trap> {
        if self.long64 {
            Ok(offset.wrapping_add(self.ea_base[seg & 7]))
        } else {
            self.segmented(seg, offset, size, write)
        }
    }

    /// Whether `size` bytes from `offset` of a segment may be accessed (SDM Vol 3 5.3 to 5.5).
    pub fn segment_allows(&self, s: &SegmentRegister, offset: u64, size: u64, write: bool) -> bool {
        let last = offset + size.max(1) - 1;
        let limit = u64::from(s.limit);
        if !self.protected() || self.v8086() {
            return last <= limit;
        }
        let in_limit = if s.access.expand_down() {
            let top = if s.access.default_big() {
                0xffff_ffff
            } else {
                0xffff
            };
            offset > limit && last <= top
        } else {
            last <= limit
        };
        let typed = if write {
            s.access.writable()
        } else {
            s.access.readable()
        };
        in_limit && typed && !s.access.unusable()
    }

    /// Type and limit checks outside 64-bit mode (SDM Vol 3 5.3 to 5.5).
    pub fn segmented(
        &mut self,
        seg: usize,
        offset: u64,
        size: u64,
        write: bool,
    ) -> Result<u64, Trap> {
        let s = self.seg[seg % 6];
        let offset = offset & 0xffff_ffff;
        if !self.segment_allows(&s, offset, size, write) {
            let vector = if seg == sreg::SS {
                exception::SS
            } else {
                exception::GP
            };
            return self.raise_code(vector, 0);
        }
        Ok((s.base + offset) & 0xffff_ffff)
    }

    /// Loads from a linear address.
    #[inline(always)]
    pub fn read_linear<T: Word>(&mut self, va: u64) -> Result<T, Trap> {
        match self.tlb.read_hit(va, T::SIZE) {
            Some(at) => Ok(self.ram.load(at)),
            None => self.read_slow(va),
        }
    }

    /// Stores to a linear address.
    #[inline(always)]
    pub fn write_linear<T: Word>(&mut self, va: u64, value: T) -> Flow {
        match self.tlb.write_hit(va, T::SIZE) {
            Some(at) => {
                self.ram.store(at, value);
                self.stored(at, T::SIZE);
                Ok(())
            }
            None => self.write_slow(va, value),
        }
    }

    /// Loads, applies `f`, stores; faults as a store before `f` runs (SDM Vol 3 4.6: a read-modify-write is a
    /// write access).
    #[inline(always)]
    pub fn modify_linear<T: Word>(
        &mut self,
        va: u64,
        mut f: impl FnMut(&mut Self, T) -> T,
    ) -> Flow {
        match self.tlb.write_hit(va, T::SIZE) {
            Some(at) => {
                let old = self.ram.load(at);
                let new = f(self, old);
                self.ram.store(at, new);
                self.stored(at, T::SIZE);
                Ok(())
            }
            None => {
                let old = self.read_for_write(va)?;
                let new = f(self, old);
                self.write_slow(va, new)
            }
        }
    }

    /// Checks that a write would succeed, then reads.
    #[cold]
    #[inline(never)]
    pub(super) fn read_for_write<T: Word>(&mut self, va: u64) -> Result<T, Trap> {
        self.check_alignment(va, T::SIZE)?;
        let mut word = [0u8; 8];
        let word = &mut word[..T::SIZE as usize];
        let (first, second) = self.targets(va, T::SIZE)?;
        for (t, range) in split(va, word.len(), first, second) {
            self.may_store(t, range.len() as u64)?;
            self.load_target(t, &mut word[range])?;
        }
        Ok(T::from_u64(from_bytes(word)))
    }

    #[cold]
    #[inline(never)]
    fn read_slow<T: Word>(&mut self, va: u64) -> Result<T, Trap> {
        self.check_alignment(va, T::SIZE)?;
        let mut word = [0u8; 8];
        self.read_bytes_as(va, &mut word[..T::SIZE as usize], self.cpl == 3)?;
        Ok(T::from_u64(u64::from_le_bytes(word)))
    }

    #[cold]
    #[inline(never)]
    pub(super) fn write_slow<T: Word>(&mut self, va: u64, value: T) -> Flow {
        self.check_alignment(va, T::SIZE)?;
        self.write_bytes_as(
            va,
            &value.to_u64().to_le_bytes()[..T::SIZE as usize],
            self.cpl == 3,
        )
    }

    /// #AC for misaligned user accesses (SDM Vol 3 6.15, "Alignment Check").
    pub fn check_alignment(&mut self, va: u64, size: u64) -> Flow {
        let on = self.cpl == 3 && self.cr0 & cr0::AM != 0 && self.rflags_rest & rflags::AC != 0;
        if on && va & (size - 1) != 0 {
            return self.raise_code(exception::AC, 0);
        }
        Ok(())
    }

    /// Copies bytes from a linear address with the rights of the current privilege level.
    #[inline]
    pub fn read_bytes(&mut self, va: u64, data: &mut [u8]) -> Flow {
        match self.tlb.read_hit(va, data.len() as u64) {
            Some(at) => {
                self.ram.read_at(at, data);
                Ok(())
            }
            None => self.read_bytes_as(va, data, self.cpl == 3),
        }
    }

    /// Copies bytes to a linear address with the rights of the current privilege level.
    #[inline]
    pub fn write_bytes(&mut self, va: u64, data: &[u8]) -> Flow {
        match self.tlb.write_hit(va, data.len() as u64) {
            Some(at) => {
                self.ram.write_at(at, data);
                self.stored(at, data.len() as u64);
                Ok(())
            }
            None => self.write_bytes_as(va, data, self.cpl == 3),
        }
    }

    /// Reads with user or (implicit) supervisor rights. At most a page.
    pub fn read_bytes_as(&mut self, va: u64, data: &mut [u8], user: bool) -> Flow {
        self.check_canonical(va, data.len() as u64)?;
        self.watch(va, data.len() as u64, false);
        let in_first = ((4096 - (va & PAGE_MASK)) as usize).min(data.len());
        if user == (self.cpl == 3)
            && let Some((first, second)) = self.both_hit(va, data.len() as u64, Tlb::read_hit)
        {
            self.ram.read_at(first, &mut data[..in_first]);
            self.ram.read_at(second, &mut data[in_first..]);
            return Ok(());
        }
        let first = self.load_page(va, Access::Read, user)?;
        let second = match in_first < data.len() {
            true => Some(self.load_page(self.wrap(va, in_first as u64), Access::Read, user)?),
            false => None,
        };
        self.load_target(first, &mut data[..in_first])?;
        if let Some(second) = second {
            self.load_target(second, &mut data[in_first..])?;
        }
        Ok(())
    }

    /// Where an access to two pages finds its RAM, if `hit` does for both.
    fn both_hit(
        &self,
        va: u64,
        size: u64,
        hit: fn(&Tlb, u64, u64) -> Option<RamOffset>,
    ) -> Option<(RamOffset, RamOffset)> {
        let in_first = 4096 - (va & PAGE_MASK);
        let left = size.checked_sub(in_first).filter(|left| *left > 0)?;
        let second = self.wrap(va, in_first);
        Some((hit(&self.tlb, va, in_first)?, hit(&self.tlb, second, left)?))
    }

    /// Writes with user or (implicit) supervisor rights; nothing is stored unless all can be. At most a page.
    pub fn write_bytes_as(&mut self, va: u64, data: &[u8], user: bool) -> Flow {
        self.check_canonical(va, data.len() as u64)?;
        self.watch(va, data.len() as u64, true);
        let in_first = ((4096 - (va & PAGE_MASK)) as usize).min(data.len());
        if user == (self.cpl == 3)
            && let Some((first, second)) = self.both_hit(va, data.len() as u64, Tlb::write_hit)
        {
            self.store_ram(first, &data[..in_first]);
            self.store_ram(second, &data[in_first..]);
            return Ok(());
        }
        let first = self.load_page(va, Access::Write, user)?;
        let second = match in_first < data.len() {
            true => Some(self.load_page(self.wrap(va, in_first as u64), Access::Write, user)?),
            false => None,
        };
        self.may_store(first, in_first as u64)?;
        if let Some(second) = second {
            self.may_store(second, (data.len() - in_first) as u64)?;
        }
        self.store_target(first, &data[..in_first])?;
        if let Some(second) = second {
            self.store_target(second, &data[in_first..])?;
        }
        Ok(())
    }

    /// Linear addresses wrap at 32 bits outside 64-bit mode.
    fn wrap(&self, va: u64, add: u64) -> u64 {
        let next = va.wrapping_add(add);
        if self.long64 {
            next
        } else {
            next & 0xffff_ffff
        }
    }

    fn check_canonical(&mut self, va: u64, size: u64) -> Flow {
        let last = va.wrapping_add(size.max(1) - 1);
        if self.efer & efer::LMA != 0 && self.long64 && !(canonical(va) && canonical(last)) {
            self.fault = crate::cpu::Fault {
                vector: exception::GP,
                error_code: 0,
                detail: NON_CANONICAL,
            };
            return Err(Trap::Exception);
        }
        Ok(())
    }

    /// Checks that `size` bytes can be written, without writing.
    pub fn probe_write(&mut self, va: u64, size: u64) -> Flow {
        let (first, second) = self.targets(va, size)?;
        let in_first = (4096 - (va & PAGE_MASK)).min(size);
        self.may_store(first, in_first)?;
        match second {
            Some(second) => self.may_store(second, size - in_first),
            None => Ok(()),
        }
    }

    /// Checks that the byte at `va` can be read, without reading it.
    pub fn probe_read(&mut self, va: u64) -> Flow {
        self.check_canonical(va, 1)?;
        self.load_page(va, Access::Read, self.cpl == 3).map(|_| ())
    }

    pub(super) fn targets(&mut self, va: u64, size: u64) -> Result<(Target, Option<Target>), Trap> {
        self.check_canonical(va, size)?;
        let user = self.cpl == 3;
        let first = self.load_page(va, Access::Write, user)?;
        let in_first = 4096 - (va & PAGE_MASK);
        let second = match in_first < size {
            true => Some(self.load_page(self.wrap(va, in_first), Access::Write, user)?),
            false => None,
        };
        Ok((first, second))
    }

    /// Translates and remembers.
    fn load_page(&mut self, va: u64, access: Access, user: bool) -> Result<Target, Trap> {
        let t = self.translate_as(va, access, user)?;
        if self.vmx.apic_access_page == Some(t.gpa.page()) {
            return Ok(Target::ApicAccess(t.gpa.page_offset()));
        }
        match t.ram {
            Some(at) => {
                self.remember(va, at, t, user);
                Ok(Target::Ram(at))
            }
            None => Ok(Target::Device(t.gpa)),
        }
    }

    fn remember(&mut self, va: u64, at: RamOffset, t: Translation, user: bool) {
        if user == (self.cpl == 3) {
            let mut allowed = t.allowed;
            allowed.write &= !self.code_pages.holds_code(at);
            self.tlb.fill(va, at, allowed);
            if t.global {
                self.tlb.keep_global(va);
            }
        }
    }

    /// Translates an instruction fetch and remembers it; `None` outside RAM.
    pub fn fetch_target(&mut self, va: u64) -> Result<Option<RamOffset>, Trap> {
        if let Some(at) = self.tlb.fetch_hit(va) {
            return Ok(Some(at));
        }
        let t = self.translate(va, Access::Fetch)?;
        if self.vmx.apic_access_page == Some(t.gpa.page()) {
            self.apic_access_fetch(t.gpa.page_offset())?;
        }
        if let Some(at) = t.ram {
            self.remember(va, at, t, self.cpl == 3);
        }
        Ok(t.ram)
    }

    /// Where `len` bytes of one page are that may be stored to, if the TLB has the page and gives no right to write only
    /// because there is code. A store that would change the running block is none of these. Nothing is raised here.
    pub fn code_to_store(&mut self, va: u64, len: u64) -> Option<RamOffset> {
        let at = self.tlb.read_hit(va, len)?;
        if !self.code_pages.holds_code(at) || self.code_pages.touches_running(at, len) {
            return None;
        }
        // A walk as a store makes it: it checks the rights, and sets the dirty bit.
        match self.targets(va, 1) {
            Ok((Target::Ram(there), None)) if there == at => Some(at),
            _ => None,
        }
    }

    /// Before a store: gives way if it would change the running block.
    pub(super) fn may_store(&mut self, target: Target, len: u64) -> Flow {
        let alone = match target {
            Target::Ram(at) => {
                self.code_pages.holds_code(at) && self.code_pages.touches_running(at, len)
            }
            Target::Device(_) => false,
            // The VM exit of a TPR below the threshold comes before the next instruction (SDM Vol 3 30.1.2).
            Target::ApicAccess(_) => true,
        };
        if alone && !self.alone {
            return Err(Trap::Alone);
        }
        Ok(())
    }

    fn load_target(&mut self, target: Target, data: &mut [u8]) -> Flow {
        match target {
            Target::Ram(at) => self.ram.read_at(at, data),
            Target::Device(gpa) => match self.ram.find(gpa, data.len() as u64) {
                Some(at) => self.ram.read_at(at, data),
                None => {
                    let retired = self.retired_now();
                    for (i, part) in data.chunks_mut(8).enumerate() {
                        self.platform
                            .mmio_read(gpa.offset(8 * i as u64), part, retired);
                    }
                }
            },
            Target::ApicAccess(offset) => return self.apic_access_read(offset, data),
        }
        Ok(())
    }

    fn store_target(&mut self, target: Target, data: &[u8]) -> Flow {
        match target {
            Target::Ram(at) => self.store_ram(at, data),
            Target::Device(gpa) => match self.ram.find_write(gpa, data.len() as u64) {
                Some(at) => self.store_ram(at, data),
                None => {
                    let retired = self.retired_now();
                    for (i, part) in data.chunks(8).enumerate() {
                        self.platform
                            .mmio_write(gpa.offset(8 * i as u64), part, retired);
                    }
                    self.end_slice();
                    self.follow_remap();
                }
            },
            Target::ApicAccess(offset) => return self.apic_access_write(offset, data),
        }
        Ok(())
    }

    /// After a device was written, and at boundaries: forgets translations if it changed the memory map.
    #[inline]
    pub fn follow_remap(&mut self) {
        if self.attention.get() & Attention::REMAP != 0 {
            self.attention.clear(Attention::REMAP);
            self.tlb.flush(|_| true);
        }
    }

    /// Stores inside one page of RAM; notices code.
    pub fn store_ram(&mut self, at: RamOffset, data: &[u8]) {
        match data.len() {
            8 => self.ram.store(at, from_bytes(data)),
            4 => self.ram.store(at, from_bytes(data) as u32),
            2 => self.ram.store(at, from_bytes(data) as u16),
            _ => self.ram.write_at(at, data),
        }
        self.note_store(at, data.len() as u64);
    }

    /// Follows a store that hit the TLB, so to a page without code of this vCPU: others may have some.
    #[inline(always)]
    pub fn stored(&mut self, at: RamOffset, len: u64) {
        if self.shared {
            if self.stores_fence {
                fence(Ordering::SeqCst);
            }
            if self.ram.code().holds(at) {
                self.tell_others(at, len);
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn tell_others(&mut self, at: RamOffset, len: u64) {
        self.ram
            .code()
            .stored(at, len, Some(self.code_pages.watcher));
    }

    /// Follows any store: one to code of this vCPU is acted on before the next block, others hear of theirs.
    pub fn note_store(&mut self, at: RamOffset, len: u64) {
        self.stored(at, len);
        if self.code_pages.holds_code(at) && self.code_pages.touches(at, len) {
            Stale::remember(&mut self.code_pages.stale, at, len);
            self.pending |= pending::CODE;
        }
    }

    /// Physical reads of the processor itself (VMCS regions, bitmaps, MSR lists): zero outside RAM.
    pub fn read_phys<T: Word>(&self, gpa: u64) -> T {
        self.ram
            .find(Gpa(gpa), T::SIZE)
            .map_or(T::from_u64(0), |at| self.ram.load(at))
    }

    /// Physical writes of the processor itself; dropped outside RAM.
    pub fn write_phys<T: Word>(&mut self, gpa: u64, value: T) {
        if let Some(at) = self.ram.find_write(Gpa(gpa), T::SIZE) {
            self.store_ram(at, &value.to_u64().to_le_bytes()[..T::SIZE as usize]);
        }
    }

    /// Loads with supervisor rights whatever the privilege level: descriptor tables, TSS (SDM Vol 3 4.6).
    pub fn read_system<T: Word>(&mut self, va: u64) -> Result<T, Trap> {
        self.implicitly(va, |cpu, va| match cpu.tlb.read_hit(va, T::SIZE) {
            Some(at) => Ok(cpu.ram.load(at)),
            None => {
                let mut word = [0u8; 8];
                cpu.read_bytes_as(va, &mut word[..T::SIZE as usize], false)?;
                Ok(T::from_u64(u64::from_le_bytes(word)))
            }
        })
    }

    /// Does an implicit supervisor access: as privilege level 0, but RFLAGS.AC does not open user pages (SDM Vol 3
    /// 4.6.1), and IA-32e mode has 64-bit table addresses also where code has 32 bits.
    pub(super) fn implicitly<R>(
        &mut self,
        va: u64,
        access: impl FnOnce(&mut Self, u64) -> Result<R, Trap>,
    ) -> Result<R, Trap> {
        let (cpl, ac) = (self.cpl, self.rflags_rest & rflags::AC);
        let long = self.long_mode();
        let long64 = std::mem::replace(&mut self.long64, long);
        let other_view = cpl == 3 || ac != 0;
        if other_view {
            self.cpl = 0;
            self.rflags_rest &= !rflags::AC;
            self.select_view();
        }
        let done = access(self, if long { va } else { va & 0xffff_ffff });
        self.long64 = long64;
        if other_view {
            self.cpl = cpl;
            self.rflags_rest |= ac;
            self.select_view();
        }
        done
    }

    /// Loads bytes with supervisor rights. At most a page.
    pub fn read_system_bytes(&mut self, va: u64, data: &mut [u8]) -> Flow {
        self.implicitly(va, |cpu, va| cpu.read_bytes_as(va, data, false))
    }

    /// Checks that `size` bytes can be stored with supervisor rights. At most a page.
    pub fn probe_system(&mut self, va: u64, size: u64) -> Flow {
        self.implicitly(va, |cpu, va| cpu.probe_write(va, size))
    }

    /// Stores with supervisor rights.
    pub fn write_system<T: Word>(&mut self, va: u64, value: T) -> Flow {
        let bytes = value.to_u64().to_le_bytes();
        self.implicitly(va, |cpu, va| {
            cpu.write_bytes_as(va, &bytes[..T::SIZE as usize], false)
        })
    }
}

/// In [`crate::cpu::Fault::detail`] of a #GP(0): the address was not canonical, so that a stack access turns it into #SS(0).
pub const NON_CANONICAL: u64 = u64::MAX;

fn from_bytes(data: &[u8]) -> u64 {
    let mut word = [0u8; 8];
    word[..data.len()].copy_from_slice(data);
    u64::from_le_bytes(word)
}

fn split(
    va: u64,
    len: usize,
    first: Target,
    second: Option<Target>,
) -> impl Iterator<Item = (Target, std::ops::Range<usize>)> {
    let in_first = ((4096 - (va & PAGE_MASK)) as usize).min(len);
    std::iter::once((first, 0..in_first)).chain(second.map(|s| (s, in_first..len)))
}
