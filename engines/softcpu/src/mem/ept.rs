//! Extended page tables (SDM Vol 3 29.3): L2-physical to L1-physical.

use guestmem::Gpa;
use x86defs::paging::{EPT_A, EPT_D, EPT_MEMORY_TYPE_SHIFT, EPT_R, EPT_W, EPT_X, PS, address_mask};

use super::tlb::Allowed;
use super::walk::Access;
use crate::cpu::{Cpu, Trap};
use crate::vmx::ExitRequest;

/// What an L2-physical address is accessed for.
#[derive(Clone, Copy, Debug)]
pub enum Via {
    /// The translation of this linear address.
    Linear(u64),
    /// A paging-structure entry used to translate this linear address.
    Table(u64),
    /// No linear address (PDPTE loads, PEBS-like accesses).
    Physical,
}

/// Where an L2-physical page leads.
#[derive(Clone, Copy, Debug)]
pub struct EptTranslation {
    /// L1-physical address of the byte.
    pub address: u64,
    /// What EPT allows, dirty bit considered.
    pub allowed: Allowed,
}

#[derive(Clone, Copy)]
struct Cached {
    page: u64,
    eptp: u64,
    leads_to: u64,
    allowed: Allowed,
}

/// Cached guest-physical mappings (SDM Vol 3 29.4.1), direct mapped.
pub struct EptCache {
    entries: Box<[Cached]>,
}

const ENTRIES: usize = 1024;
const EMPTY: Cached = Cached {
    page: u64::MAX,
    eptp: 0,
    leads_to: 0,
    allowed: Allowed {
        read: false,
        write: false,
        fetch: false,
    },
};

impl Default for EptCache {
    fn default() -> Self {
        Self {
            entries: vec![EMPTY; ENTRIES].into_boxed_slice(),
        }
    }
}

impl EptCache {
    /// Forgets mappings of one EPT pointer (bits 51:12 decide, SDM Vol 3 29.4.2), or all with `None`.
    pub fn flush(&mut self, eptp: Option<u64>) {
        for e in &mut self.entries {
            if eptp.is_none_or(|p| p >> 12 == e.eptp >> 12) {
                *e = EMPTY;
            }
        }
    }
}

/// Memory types an EPT leaf may name (SDM Vol 3 29.3.7.1).
fn valid_memory_type(entry: u64) -> bool {
    matches!(entry >> EPT_MEMORY_TYPE_SHIFT & 7, 0 | 1 | 4 | 5 | 6)
}

impl Cpu {
    /// Translates an L2-physical address with the current EPT pointer.
    pub fn ept_translate(
        &mut self,
        l2: u64,
        access: Access,
        via: Via,
    ) -> Result<EptTranslation, Trap> {
        let eptp = self.tlb.space().eptp;
        let ad = eptp & 1 << 6 != 0;
        // With A/D enabled, accesses to guest paging structures count as writes (SDM Vol 3 29.3.3.2).
        let access = match via {
            Via::Table(_) if ad => Access::Write,
            _ => access,
        };
        let page = l2 >> 12;
        let slot = page as usize & (ENTRIES - 1);
        let c = self.vmx.ept_cache.entries[slot];
        if c.page == page && c.eptp == eptp {
            let ok = match access {
                Access::Read => c.allowed.read,
                Access::Write => c.allowed.write,
                Access::Fetch => c.allowed.fetch,
            };
            if ok {
                return Ok(EptTranslation {
                    address: c.leads_to | (l2 & 0xfff),
                    allowed: c.allowed,
                });
            }
        }
        let t = self.ept_walk(l2, eptp, access, via)?;
        self.vmx.ept_cache.entries[slot] = Cached {
            page,
            eptp,
            leads_to: t.address & !0xfff,
            allowed: t.allowed,
        };
        Ok(t)
    }

    fn ept_walk(
        &mut self,
        l2: u64,
        eptp: u64,
        access: Access,
        via: Via,
    ) -> Result<EptTranslation, Trap> {
        let phys = address_mask(self.model.maxphyaddr);
        let ad = eptp & 1 << 6 != 0;
        if l2 >> 48 != 0 {
            return self.ept_violation(l2, access, via, 0);
        }
        'again: loop {
            let mut table = eptp & phys;
            let mut rights = EPT_R | EPT_W | EPT_X;
            for level in (0..4u32).rev() {
                let shift = 12 + 9 * level;
                let address = table + ((l2 >> shift & 0x1ff) << 3);
                let at = self.ram.find(Gpa(address), 8);
                let entry = at.map_or(u64::MAX, |o| self.ram.load::<u64>(o));
                let at = self.writable(at, address);
                if entry & (EPT_R | EPT_W | EPT_X) == 0 {
                    return self.ept_violation(l2, access, via, 0);
                }
                let large = entry & PS != 0 && (level == 1 || level == 2);
                let leaf = level == 0 || large;
                if self.ept_misconfigured(entry, level, leaf) {
                    return self.ept_exit(ExitRequest::ept_misconfiguration(l2));
                }
                rights &= entry;
                let mut bits = if ad { EPT_A } else { 0 };
                if leaf {
                    let ok = match access {
                        Access::Read => rights & EPT_R != 0,
                        Access::Write => rights & EPT_W != 0 && (rights & EPT_R != 0),
                        Access::Fetch => rights & EPT_X != 0,
                    };
                    if !ok {
                        return self.ept_violation(l2, access, via, rights & 7);
                    }
                    if ad && access == Access::Write {
                        bits |= EPT_D;
                    }
                }
                if let Some(at) = at.filter(|_| entry & bits != bits) {
                    let done = self.ram.compare_exchange(at, entry, entry | bits);
                    self.note_store(at, 8);
                    if done.is_err() {
                        continue 'again;
                    }
                }
                if leaf {
                    let within = (1u64 << shift) - 1;
                    let allowed = Allowed {
                        read: rights & EPT_R != 0,
                        write: rights & EPT_W != 0 && (!ad || (entry | bits) & EPT_D != 0),
                        fetch: rights & EPT_X != 0,
                    };
                    return Ok(EptTranslation {
                        address: (entry & phys & !within) | (l2 & within),
                        allowed,
                    });
                }
                table = entry & phys;
            }
        }
    }

    /// SDM Vol 3 29.3.3.1.
    fn ept_misconfigured(&self, entry: u64, level: u32, leaf: bool) -> bool {
        let rwx = entry & 7;
        let high = ((1u64 << 52) - 1) & !((1u64 << self.model.maxphyaddr) - 1);
        let reserved = match (level, leaf) {
            (3, _) => 0xf8,
            (1 | 2, false) => 0x78,
            (2, true) => 0x3fff_f000,
            (1, true) => 0x1f_f000,
            _ => 0,
        };
        // Write without read; execute-only is allowed (capability bit 0).
        rwx & EPT_R == 0 && rwx & EPT_W != 0
            || entry & (high | reserved) != 0
            || leaf && !valid_memory_type(entry)
        // Bit 7 of a PML4 entry is in the mask above; at the last level it is ignored.
    }

    fn ept_violation<T>(
        &mut self,
        l2: u64,
        access: Access,
        via: Via,
        rights: u64,
    ) -> Result<T, Trap> {
        let mut q = match access {
            Access::Read => 1,
            Access::Write => 2,
            Access::Fetch => 4,
        } | rights << 3;
        let mut linear = 0;
        match via {
            Via::Linear(va) => {
                q |= 1 << 7 | 1 << 8;
                linear = va;
            }
            Via::Table(va) => {
                // An access to a paging structure is a read, and a write too with A/D (SDM Vol 3 Table 28-7).
                if self.tlb.space().eptp & 1 << 6 != 0 {
                    q |= 3;
                }
                q |= 1 << 7;
                linear = va;
            }
            Via::Physical => {}
        }
        self.ept_exit(ExitRequest::ept_violation(q, linear, l2))
    }

    #[cold]
    fn ept_exit<T>(&mut self, exit: ExitRequest) -> Result<T, Trap> {
        self.exit = exit;
        Err(Trap::VmExit)
    }
}
