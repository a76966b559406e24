//! The VMCSs that are active on a vCPU (SDM Vol 3 25.1).
//!
//! VMPTRLD makes a VMCS active, VMCLEAR makes it inactive; in between the processor may keep its data on
//! chip. Keeping several makes the VMPTRLD pairs of a nested hypervisor, which switches VMCSs at every exit
//! it reflects, a change of index.
//!
//! Invariants: no two slots hold the same region; the slots of the current VMCS and of the shadow VMCS it
//! links to are never evicted by loading another.

use guestmem::{Gpa, GuestRam, RamOffset};

use super::Vmcs;
use super::region::{self, DATA_OFFSET, IMAGE_SIZE, REGION_SIZE};

/// VMCSs kept.
const SLOTS: usize = 8;

/// Index of a VMCS in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u8);

#[derive(Clone, Copy, Debug)]
struct Tag {
    region: Option<Gpa>,
    last_used: u64,
}

/// Active VMCSs of one vCPU.
pub struct VmcsCache {
    vmcs: Box<[Vmcs; SLOTS]>,
    tags: [Tag; SLOTS],
    uses: u64,
}

/// A region the cache has written to; code decoded from it is stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written(pub RamOffset);

impl Default for VmcsCache {
    fn default() -> Self {
        Self {
            vmcs: Box::new(std::array::from_fn(|_| Vmcs::default())),
            tags: [Tag {
                region: None,
                last_used: 0,
            }; SLOTS],
            uses: 0,
        }
    }
}

impl VmcsCache {
    /// The VMCS in a slot.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, slot: Slot) -> &Vmcs {
        &self.vmcs[usize::from(slot.0) % SLOTS]
    }

    /// The VMCS in a slot.
    #[inline(always)]
    pub fn get_mut(&mut self, slot: Slot) -> &mut Vmcs {
        &mut self.vmcs[usize::from(slot.0) % SLOTS]
    }

    /// Where a region's VMCS is kept, if it is.
    #[inline]
    #[must_use]
    pub fn find(&self, region: Gpa) -> Option<Slot> {
        self.tags
            .iter()
            .position(|t| t.region == Some(region))
            .map(|i| Slot(i as u8))
    }

    /// Makes the VMCS of a region active: from its slot, or read from RAM in place of the least recently
    /// used one not in `keep`, whose region may thereby be written. `None` if the region is not all RAM.
    pub fn activate(
        &mut self,
        ram: &GuestRam,
        region: Gpa,
        keep: [Option<Slot>; 2],
    ) -> Option<(Slot, Option<Written>)> {
        self.uses += 1;
        if let Some(slot) = self.find(region) {
            self.tags[usize::from(slot.0)].last_used = self.uses;
            return Some((slot, None));
        }
        let at = ram.find(region, REGION_SIZE)?;
        let victim = (0..SLOTS)
            .filter(|i| !keep.contains(&Some(Slot(*i as u8))))
            .min_by_key(|i| (self.tags[*i].region.is_some(), self.tags[*i].last_used))
            .expect("more slots than are kept");
        let slot = Slot(victim as u8);
        let written = self.write_back(ram, slot);
        let mut image = [0; IMAGE_SIZE];
        ram.read_at(at, &mut image);
        self.vmcs[victim] = region::decode(&image);
        self.tags[victim] = Tag {
            region: Some(region),
            last_used: self.uses,
        };
        Some((slot, written))
    }

    /// VMCLEAR (SDM Vol 3 chapter 31): the region's VMCS is written to memory, inactive and with launch state
    /// clear. `None` if nothing was written because the region is not RAM.
    pub fn clear(&mut self, ram: &GuestRam, region: Gpa) -> Option<Written> {
        match self.find(region) {
            Some(slot) => {
                self.get_mut(slot).launched = false;
                let written = self.write_back(ram, slot);
                self.tags[usize::from(slot.0)].region = None;
                written
            }
            None => {
                let at = ram.find_write(region, REGION_SIZE)?;
                ram.store::<u32>(RamOffset(at.0 + DATA_OFFSET as u64), 0);
                Some(Written(at))
            }
        }
    }

    /// Writes every VMCS to its region and keeps it, for a saved state. Calls `written` for each.
    pub fn write_back_all(&self, ram: &GuestRam, mut written: impl FnMut(Written)) {
        for i in 0..SLOTS {
            if let Some(w) = self.write_back(ram, Slot(i as u8)) {
                written(w);
            }
        }
    }

    /// Forgets every VMCS, without writing (RESET).
    pub fn forget(&mut self) {
        for t in &mut self.tags {
            t.region = None;
        }
    }

    fn write_back(&self, ram: &GuestRam, slot: Slot) -> Option<Written> {
        let region = self.tags[usize::from(slot.0)].region?;
        let at = ram.find_write(region, REGION_SIZE)?;
        let mut image = [0; IMAGE_SIZE];
        region::encode(self.get(slot), &mut image);
        ram.write_at(RamOffset(at.0 + DATA_OFFSET as u64), &image[DATA_OFFSET..]);
        Some(Written(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86defs::vmx::VmcsField;

    fn ram() -> GuestRam {
        GuestRam::new(&[(Gpa(0), 0x20000)]).unwrap()
    }

    #[test]
    fn vmclear_makes_the_data_reloadable() {
        let ram = ram();
        let mut c = VmcsCache::default();
        let (slot, _) = c.activate(&ram, Gpa(0x1000), [None; 2]).unwrap();
        c.get_mut(slot).set(VmcsField::GuestRip, 0x1234);
        c.get_mut(slot).launched = true;
        ram.store::<u32>(RamOffset(0x1000), region::REVISION);
        assert_eq!(c.clear(&ram, Gpa(0x1000)), Some(Written(RamOffset(0x1000))));
        assert_eq!(c.find(Gpa(0x1000)), None);
        assert_eq!(ram.load::<u32>(RamOffset(0x1000)), region::REVISION);
        let (slot, _) = c.activate(&ram, Gpa(0x1000), [None; 2]).unwrap();
        assert_eq!(c.get(slot).get(VmcsField::GuestRip), 0x1234);
        assert!(!c.get(slot).launched);
    }

    #[test]
    fn eviction_writes_back_and_spares_the_kept() {
        let ram = ram();
        let mut c = VmcsCache::default();
        let (first, _) = c.activate(&ram, Gpa(0x1000), [None; 2]).unwrap();
        c.get_mut(first).launched = true;
        let (second, _) = c.activate(&ram, Gpa(0x2000), [Some(first), None]).unwrap();
        c.get_mut(second).set(VmcsField::GuestRsp, 7);
        for i in 3..0x20u64 {
            c.activate(&ram, Gpa(i << 12), [Some(first), None]).unwrap();
        }
        assert_eq!(c.find(Gpa(0x1000)), Some(first));
        assert_eq!(c.find(Gpa(0x2000)), None);
        let (again, _) = c.activate(&ram, Gpa(0x2000), [Some(first), None]).unwrap();
        assert_eq!(c.get(again).get(VmcsField::GuestRsp), 7);
    }

    #[test]
    fn regions_outside_ram() {
        let ram = ram();
        let mut c = VmcsCache::default();
        assert!(c.activate(&ram, Gpa(0xfee0_0000), [None; 2]).is_none());
        assert!(c.clear(&ram, Gpa(0xfee0_0000)).is_none());
        c.clear(&ram, Gpa(0x5000)).unwrap();
        assert_eq!(ram.load::<u32>(RamOffset(0x5008)), 0);
    }
}
