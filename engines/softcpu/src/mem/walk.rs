//! Linear to guest-physical translation (SDM Vol 3 chapter 4).

use guestmem::{Gpa, RamOffset};
use x86defs::cr::{cr0, cr4, efer};
use x86defs::exception::{self, pf};
use x86defs::paging::{A, D, G, KEY_SHIFT, P, PS, RW, US, XD, address_mask, pkru};
use x86defs::rflags;

use super::ept::Via;
use super::tlb::Allowed;
use crate::cpu::{Cpu, Fault, Trap, canonical};

/// What memory is accessed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Data read.
    Read,
    /// Data write, or read for a later write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug)]
pub struct Translation {
    /// L1-physical address of the byte.
    pub gpa: Gpa,
    /// The same in the mapping, if accesses of this kind can go straight there.
    pub ram: Option<RamOffset>,
    /// What the page may be used for in the current view.
    pub allowed: Allowed,
    /// It is good in all address spaces (SDM Vol 3 4.10.2.4).
    pub global: bool,
}

/// What the walk found in the guest's own tables.
struct Leaf {
    /// Guest-physical address of the byte (L2-physical under EPT).
    address: u64,
    /// AND of US, RW over the levels; OR of XD.
    rights: u64,
    /// The leaf's dirty bit is set.
    dirty: bool,
    /// log2 of the page's size in bytes.
    size_log2: u32,
    /// Protection key; 0 outside IA-32e mode.
    key: u64,
    /// The bit G of the entry.
    global: bool,
}

impl Cpu {
    /// Translates for an access of the current privilege level.
    pub fn translate(&mut self, va: u64, access: Access) -> Result<Translation, Trap> {
        self.translate_as(va, access, self.cpl == 3)
    }

    /// Translates for an access with user (`true`) or supervisor rights; supervisor accesses by user code are
    /// the implicit ones of SDM Vol 3 4.6.
    pub fn translate_as(
        &mut self,
        va: u64,
        access: Access,
        user: bool,
    ) -> Result<Translation, Trap> {
        if self.long64 && !canonical(va) {
            return self.gp0();
        }
        self.tlb.walks += 1;
        if self.cr0 & cr0::PG == 0 {
            let all = Allowed {
                read: true,
                write: true,
                fetch: true,
            };
            return self.finish(va, va & 0xffff_ffff, all, access);
        }
        let leaf = if self.long_mode() {
            self.walk64(va, access, user)?
        } else if self.cr4 & cr4::PAE != 0 {
            self.walk_pae(va & 0xffff_ffff, access, user)?
        } else {
            self.walk32(va & 0xffff_ffff, access, user)?
        };
        self.large_pages.note(va, leaf.size_log2);
        let mut allowed = self.rights(leaf.rights, user);
        // A store to a clean page has to come back for the dirty bit.
        allowed.write &= leaf.dirty;
        self.apply_key(leaf.rights, leaf.key, user, &mut allowed);
        let global = leaf.global && self.cr4 & cr4::PGE != 0;
        let t = self.finish(va, leaf.address, allowed, access)?;
        Ok(Translation { global, ..t })
    }

    /// Applies EPT and finds the RAM.
    fn finish(
        &mut self,
        va: u64,
        address: u64,
        allowed: Allowed,
        access: Access,
    ) -> Result<Translation, Trap> {
        let mut allowed = allowed;
        let gpa = if self.tlb.space().eptp != 0 {
            let t = self.ept_translate(address, access, Via::Linear(va))?;
            allowed.read &= t.allowed.read;
            allowed.write &= t.allowed.write;
            allowed.fetch &= t.allowed.fetch;
            Gpa(t.address)
        } else {
            Gpa(address)
        };
        let read = self.ram.find(gpa, 1);
        // ROM, and a legacy area that reads one thing and writes another: stores look up where they go.
        let same = self.ram.find_write(gpa, 1) == read;
        allowed.write &= same;
        let ram = read.filter(|_| same || access != Access::Write);
        Ok(Translation {
            gpa,
            ram,
            allowed,
            global: false,
        })
    }

    /// What `rights` (AND of US and RW, OR of XD) allow in the current view (SDM Vol 3 4.6.1).
    fn rights(&self, rights: u64, user: bool) -> Allowed {
        let user_page = rights & US != 0;
        let writable = rights & RW != 0;
        let not_xd = rights & XD == 0;
        if user {
            return Allowed {
                read: user_page,
                write: user_page && writable,
                fetch: user_page && not_xd,
            };
        }
        let smap = self.cr4 & cr4::SMAP != 0;
        // Implicit supervisor accesses by user code never profit from AC.
        let ac = self.rflags_rest & rflags::AC != 0 && self.cpl != 3;
        let data = !(user_page && smap && !ac);
        Allowed {
            read: data,
            write: data && (writable || self.cr0 & cr0::WP == 0),
            fetch: not_xd && !(user_page && self.cr4 & cr4::SMEP != 0),
        }
    }

    /// What PKRU forbids of data accesses to a page with `rights` and `key` (SDM Vol 3 4.6.2): all of them, and
    /// writes.
    fn key_forbids(&self, rights: u64, key: u64, user: bool) -> (bool, bool) {
        if self.cr4 & cr4::PKE == 0 || !self.long_mode() || rights & US == 0 {
            return (false, false);
        }
        let bits = pkru::of(self.pkru, key);
        let access = bits & pkru::ACCESS_DISABLE != 0;
        let write = bits & pkru::WRITE_DISABLE != 0 && (user || self.cr0 & cr0::WP != 0);
        (access, access || write)
    }

    /// What may be cached of a page with a protection key. PKRU's bits of key 0 belong to the address space
    /// ([`super::tlb::Space::rules`]); data of pages with other keys is looked up at each access.
    fn apply_key(&self, rights: u64, key: u64, user: bool, allowed: &mut Allowed) {
        let (access, write) = self.key_forbids(rights, key, user);
        let uncached = key != 0 && self.cr4 & cr4::PKE != 0;
        allowed.read &= !access && !uncached;
        allowed.write &= !write && !uncached;
    }

    fn page_fault<T>(&mut self, va: u64, access: Access, user: bool, why: u32) -> Result<T, Trap> {
        let nx = self.efer & efer::NXE != 0 && self.cr4 & cr4::PAE != 0;
        let mut code = why;
        if access == Access::Write {
            code |= pf::W;
        }
        if user {
            code |= pf::U;
        }
        if access == Access::Fetch && (nx || self.cr4 & cr4::SMEP != 0) {
            code |= pf::I;
        }
        self.fault = Fault {
            vector: exception::PF,
            error_code: code,
            detail: va,
        };
        Err(Trap::Exception)
    }

    /// Reads a paging-structure entry at a guest-physical address; also gives where it lies in RAM.
    fn table_entry(&mut self, address: u64, via: Via) -> Result<(u64, Option<RamOffset>), Trap> {
        let gpa = if self.tlb.space().eptp != 0 {
            self.ept_translate(address, Access::Read, via)?.address
        } else {
            address
        };
        let at = self.ram.find(Gpa(gpa), 8);
        // Paging structures outside RAM read as all ones, like any unclaimed address.
        let entry = at.map_or(u64::MAX, |o| self.ram.load::<u64>(o));
        Ok((entry, self.writable(at, gpa)))
    }

    /// `at`, where the entry at `gpa` was read, if it can be written there: ROM drops accessed and dirty bits.
    pub fn writable(&self, at: Option<RamOffset>, gpa: u64) -> Option<RamOffset> {
        at.filter(|_| self.ram.find_write(Gpa(gpa), 8) == at)
    }

    /// Sets A (and D) in an entry of `size` bytes, atomically; false if the entry changed under us.
    fn set_bits(
        &mut self,
        at: Option<RamOffset>,
        address: u64,
        va: u64,
        entry: u64,
        bits: u64,
    ) -> Result<bool, Trap> {
        if entry & bits == bits {
            return Ok(true);
        }
        if self.tlb.space().eptp != 0 {
            self.ept_translate(address, Access::Write, Via::Table(va))?;
        }
        let Some(at) = at else { return Ok(true) };
        let done = self.ram.compare_exchange(at, entry, entry | bits).is_ok();
        // It may be a page with code: whoever decoded it must hear of it.
        self.note_store(at, 8);
        Ok(done)
    }

    /// The final permission check and the update of A and D.
    fn leaf(
        &mut self,
        va: u64,
        access: Access,
        user: bool,
        rights: u64,
        entry: u64,
    ) -> Result<u64, Trap> {
        let allowed = self.rights(rights, user);
        let key = if self.long_mode() {
            entry >> KEY_SHIFT & 15
        } else {
            0
        };
        let (no_data, no_write) = self.key_forbids(rights, key, user);
        let keyed = match access {
            Access::Read => no_data,
            Access::Write => no_write,
            Access::Fetch => false,
        };
        if keyed {
            return self.page_fault(va, access, user, pf::P | pf::PK);
        }
        let ok = match access {
            Access::Read => allowed.read,
            Access::Write => allowed.write,
            Access::Fetch => allowed.fetch,
        };
        if !ok {
            return self.page_fault(va, access, user, pf::P);
        }
        Ok(if access == Access::Write { A | D } else { A })
    }

    fn walk64(&mut self, va: u64, access: Access, user: bool) -> Result<Leaf, Trap> {
        let phys = address_mask(self.model.maxphyaddr);
        'again: loop {
            let mut table = self.cr3 & phys;
            let mut rights = US | RW;
            for level in (0..4u32).rev() {
                let shift = 12 + 9 * level;
                let address = table + ((va >> shift & 0x1ff) << 3);
                let (entry, at) = self.table_entry(address, Via::Table(va))?;
                if entry & P == 0 {
                    return self.page_fault(va, access, user, 0);
                }
                let large = level > 0 && entry & PS != 0;
                if entry & self.reserved64(level, large) != 0 {
                    return self.page_fault(va, access, user, pf::P | pf::RSVD);
                }
                rights = (rights & entry & (US | RW)) | ((rights | entry) & XD);
                if level == 0 || large {
                    let bits = self.leaf(va, access, user, rights, entry)?;
                    if !self.set_bits(at, address, va, entry, bits)? {
                        continue 'again;
                    }
                    let within = (1u64 << shift) - 1;
                    let address = (entry & phys & !within) | (va & within);
                    return Ok(Leaf {
                        address,
                        rights,
                        dirty: (entry | bits) & D != 0,
                        size_log2: shift,
                        key: entry >> KEY_SHIFT & 15,
                        global: entry & G != 0,
                    });
                }
                if !self.set_bits(at, address, va, entry, A)? {
                    continue 'again;
                }
                table = entry & phys;
            }
        }
    }

    /// Reserved bits of a 4-level entry (SDM Vol 3 Tables 4-15 to 4-20). AMD reserves bit 8 of a PML4 entry too,
    /// which is G elsewhere (APM Vol 2 5.3.3, Figure 5-20).
    fn reserved64(&self, level: u32, large: bool) -> u64 {
        let high = ((1u64 << 52) - 1) & !((1u64 << self.model.maxphyaddr) - 1);
        let xd = if self.efer & efer::NXE == 0 { XD } else { 0 };
        let low = match (level, large) {
            (3, _) if self.amd() => PS | G,
            (3, _) => PS,
            (2, true) => 0x3fff_e000,
            (1, true) => 0x1f_e000,
            _ => 0,
        };
        high | xd | low
    }

    fn walk_pae(&mut self, va: u64, access: Access, user: bool) -> Result<Leaf, Trap> {
        let phys = address_mask(self.model.maxphyaddr);
        let pdpte = self.pdpte[(va >> 30) as usize & 3];
        if pdpte & P == 0 {
            return self.page_fault(va, access, user, 0);
        }
        'again: loop {
            let mut table = pdpte & phys;
            let mut rights = US | RW;
            for level in (0..2u32).rev() {
                let shift = 12 + 9 * level;
                let address = table + ((va >> shift & 0x1ff) << 3);
                let (entry, at) = self.table_entry(address, Via::Table(va))?;
                if entry & P == 0 {
                    return self.page_fault(va, access, user, 0);
                }
                let large = level > 0 && entry & PS != 0;
                // Bits 62:52 are reserved too (SDM Vol 3 Tables 4-9 to 4-11).
                if entry & (self.reserved64(level, large) | 0x7ff0_0000_0000_0000) != 0 {
                    return self.page_fault(va, access, user, pf::P | pf::RSVD);
                }
                rights = (rights & entry & (US | RW)) | ((rights | entry) & XD);
                if level == 0 || large {
                    let bits = self.leaf(va, access, user, rights, entry)?;
                    if !self.set_bits(at, address, va, entry, bits)? {
                        continue 'again;
                    }
                    let within = (1u64 << shift) - 1;
                    let address = (entry & phys & !within) | (va & within);
                    return Ok(Leaf {
                        address,
                        rights,
                        dirty: (entry | bits) & D != 0,
                        size_log2: shift,
                        key: 0,
                        global: entry & G != 0,
                    });
                }
                if !self.set_bits(at, address, va, entry, A)? {
                    continue 'again;
                }
                table = entry & phys;
            }
        }
    }

    fn walk32(&mut self, va: u64, access: Access, user: bool) -> Result<Leaf, Trap> {
        'again: loop {
            let mut table = self.cr3 & 0xffff_f000;
            let mut rights = US | RW;
            for level in (0..2u32).rev() {
                let shift = 12 + 10 * level;
                let address = table + ((va >> shift & 0x3ff) << 2);
                // The entry is the half of an aligned quadword.
                let (pair, at) = self.table_entry(address & !7, Via::Table(va))?;
                let high = address & 4 != 0;
                let entry = if high { pair >> 32 } else { pair & 0xffff_ffff };
                if entry & P == 0 {
                    return self.page_fault(va, access, user, 0);
                }
                let large = level > 0 && entry & PS != 0 && self.cr4 & cr4::PSE != 0;
                let maxphy_high = self.model.maxphyaddr.min(40) - 32;
                let reserved = 0x3f_e000 & !(((1u64 << maxphy_high) - 1) << 13);
                if large && entry & reserved != 0 {
                    return self.page_fault(va, access, user, pf::P | pf::RSVD);
                }
                rights &= entry & (US | RW);
                let last = level == 0 || large;
                let bits = if last {
                    self.leaf(va, access, user, rights, entry)?
                } else {
                    A
                };
                let bits_in_pair = if high { bits << 32 } else { bits };
                if !self.set_bits(at, address & !7, va, pair, bits_in_pair)? {
                    continue 'again;
                }
                if last {
                    let within = (1u64 << shift) - 1;
                    // PSE-36: bits 20:13 are address bits 39:32 (SDM Vol 3 Table 4-4).
                    let frame = if large {
                        (entry & 0xffc0_0000) | (entry >> 13 & 0xff) << 32
                    } else {
                        entry & 0xffff_f000
                    };
                    let address = frame | (va & within);
                    return Ok(Leaf {
                        address,
                        rights,
                        dirty: (entry | bits) & D != 0,
                        size_log2: shift,
                        key: 0,
                        global: entry & G != 0,
                    });
                }
                table = entry & 0xffff_f000;
            }
        }
    }

    /// Loads the PAE PDPTEs from CR3 (SDM Vol 3 4.4.1); false if a reserved bit is set, which is #GP(0).
    pub fn load_pdptes(&mut self, cr3: u64) -> Result<bool, Trap> {
        let reserved = !address_mask(self.model.maxphyaddr) & !(P | 0x18 | 0xe00);
        let mut new = [0; 4];
        for (i, e) in new.iter_mut().enumerate() {
            let at = (cr3 & 0xffff_ffe0) + 8 * i as u64;
            *e = self.table_entry(at, Via::Physical)?.0;
            if *e & P != 0 && *e & reserved != 0 {
                return Ok(false);
            }
        }
        self.pdpte = new;
        Ok(true)
    }
}
