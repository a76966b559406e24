//! The board's guest-physical address map, modelled on the q35 chipset's.
//!
//! ```text
//! 0000_0000 .. 000A_0000   RAM ("640 KByte")
//! 000A_0000 .. 0010_0000   legacy video, option ROM and BIOS area; RAM, but not offered to the guest
//! 0010_0000 .. low end     RAM, at most up to B000_0000
//! B000_0000 .. C000_0000   PCI Express configuration space (ECAM), 256 buses
//! C000_0000 .. FEC0_0000   PCI memory window
//! FEC0_0000                I/O APIC
//! FED0_0000                HPET
//! FEE0_0000                local APIC
//! 1_0000_0000 ..           the rest of RAM
//! .. physical address bits PCI memory window
//! ```
//!
//! The legacy area stays inside the one low RAM region so that guest-physical and host addresses stay
//! congruent modulo large pages.

use std::ops::Range;

use guestmem::Gpa;

/// End of conventional memory: the extended BIOS data area starts here (639 KByte).
pub const EBDA_START: u64 = 0x9_fc00;
/// Start of the legacy video window.
pub const LEGACY_START: u64 = 0xa_0000;
/// Start of the area that holds the ACPI tables. The RSDP is searched for from here (ACPI 6.5, 5.2.5.1).
pub const BIOS_START: u64 = 0xe_0000;
/// Start of memory above the legacy area.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;
/// Where low RAM ends at the latest.
pub const LOW_RAM_LIMIT: u64 = 0xb000_0000;
/// Enhanced configuration access mechanism: 256 buses of 1 MByte.
pub const ECAM_BASE: Gpa = Gpa(0xb000_0000);
/// Length of the ECAM window.
pub const ECAM_SIZE_BYTES: u64 = 0x1000_0000;
/// First address of the PCI memory window.
pub const PCI_MMIO_START: u64 = 0xc000_0000;
/// Last address of the PCI memory window.
pub const PCI_MMIO_LAST: u64 = 0xfebf_ffff;
/// First I/O port that PCI functions may be given; below are the board's own.
pub const PCI_IO_START: u16 = 0x1000;
/// Number of those ports: all up to the last.
pub const PCI_IO_PORTS: u16 = 0xf000;
/// The I/O APIC's registers.
pub const IOAPIC_BASE: Gpa = Gpa(0xfec0_0000);
/// The HPET's registers.
pub const HPET_BASE: Gpa = Gpa(0xfed0_0000);
/// The local APIC's registers after reset (SDM Vol 3 12.4.1).
pub const LAPIC_BASE: Gpa = Gpa(0xfee0_0000);
/// Where RAM goes on above the 32-bit hole.
pub const FOUR_GIB: u64 = 0x1_0000_0000;

/// How a VM's RAM is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    /// End of RAM below the 32-bit hole.
    low_end: u64,
    /// Bytes of RAM above 4 GByte.
    high_bytes: u64,
}

/// What an address range is, as BIOS function E820h reports it (ACPI 6.5, table 15.374).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// Usable RAM.
    Ram = 1,
    /// In use or not memory.
    Reserved = 2,
}

/// One entry of the guest's memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub base: Gpa,
    /// Length in bytes.
    pub size_bytes: u64,
    /// What it is.
    pub kind: RangeKind,
}

impl MemoryMap {
    /// Lays out `memory_bytes` of RAM.
    #[must_use]
    pub fn new(memory_bytes: u64) -> Self {
        let low_end = memory_bytes.min(LOW_RAM_LIMIT);
        Self {
            low_end,
            high_bytes: memory_bytes - low_end,
        }
    }

    /// End of RAM below the 32-bit hole.
    #[must_use]
    pub fn low_end(&self) -> Gpa {
        Gpa(self.low_end)
    }

    /// End of all RAM.
    #[must_use]
    pub fn end(&self) -> Gpa {
        match self.high_bytes {
            0 => self.low_end(),
            high => Gpa(FOUR_GIB + high),
        }
    }

    /// The RAM regions, `(base, size_bytes)`.
    #[must_use]
    pub fn ram_regions(&self) -> Vec<(Gpa, u64)> {
        let mut regions = vec![(Gpa(0), self.low_end)];
        if self.high_bytes > 0 {
            regions.push((Gpa(FOUR_GIB), self.high_bytes));
        }
        regions
    }

    /// The PCI memory window above 4 GByte: from behind RAM, on a 1-GByte boundary, to where `physical_bits` of address end.
    /// Empty if nothing is left.
    #[must_use]
    pub fn pci_high_window(&self, physical_bits: u8) -> Range<u64> {
        let start = (FOUR_GIB + self.high_bytes).next_multiple_of(1 << 30);
        let end = 1u64 << physical_bits.min(63);
        start..end.max(start)
    }

    /// The map the guest is told, in ascending order without overlaps.
    #[must_use]
    pub fn e820(&self) -> Vec<MapEntry> {
        let entry = |start: u64, end: u64, kind| MapEntry {
            base: Gpa(start),
            size_bytes: end - start,
            kind,
        };
        let mut map = vec![
            entry(0, EBDA_START, RangeKind::Ram),
            entry(EBDA_START, LEGACY_START, RangeKind::Reserved),
            entry(BIOS_START, HIGH_MEMORY_START, RangeKind::Reserved),
        ];
        if self.low_end > HIGH_MEMORY_START {
            map.push(entry(HIGH_MEMORY_START, self.low_end, RangeKind::Ram));
        }
        map.push(entry(
            ECAM_BASE.0,
            ECAM_BASE.0 + ECAM_SIZE_BYTES,
            RangeKind::Reserved,
        ));
        if self.high_bytes > 0 {
            map.push(entry(FOUR_GIB, FOUR_GIB + self.high_bytes, RangeKind::Ram));
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn usable(map: &MemoryMap) -> u64 {
        map.e820()
            .iter()
            .filter(|e| e.kind == RangeKind::Ram)
            .map(|e| e.size_bytes)
            .sum()
    }

    #[test]
    fn small_memory_is_one_region_below_the_hole() {
        let map = MemoryMap::new(512 << 20);
        assert_eq!(map.ram_regions(), [(Gpa(0), 512 << 20)]);
        // All but 1 KByte of EBDA and the 384 KByte from 640 KByte to 1 MByte.
        assert_eq!(usable(&map), (512 << 20) - 1024 - (384 << 10));
    }

    #[test]
    fn large_memory_goes_on_above_4_gib() {
        let map = MemoryMap::new(4 * GIB);
        let low = 0xb000_0000;
        assert_eq!(
            map.ram_regions(),
            [(Gpa(0), low), (Gpa(4 * GIB), 4 * GIB - low)]
        );
        assert_eq!(usable(&map), 4 * GIB - 1024 - (384 << 10));
    }

    #[test]
    fn memory_that_just_fits_has_no_high_region() {
        assert_eq!(MemoryMap::new(0xb000_0000).ram_regions().len(), 1);
        assert_eq!(
            MemoryMap::new(0xb000_1000).ram_regions()[1],
            (Gpa(4 * GIB), 0x1000)
        );
    }

    #[test]
    fn the_high_pci_window_is_behind_ram() {
        let window = |bytes, bits| MemoryMap::new(bytes).pci_high_window(bits);
        assert_eq!(window(512 << 20, 46), 4 * GIB..1 << 46);
        assert_eq!(window(4 * GIB, 36), 6 * GIB..1 << 36);
        assert!(window(4 * GIB, 32).is_empty());
    }

    #[test]
    fn the_guests_map_is_sorted_and_disjoint_and_keeps_ram_out_of_the_holes() {
        for bytes in [16 << 20, 2 * GIB, 0xb000_0000, 8 * GIB] {
            let map = MemoryMap::new(bytes).e820();
            for pair in map.windows(2) {
                assert!(pair[0].base.0 + pair[0].size_bytes <= pair[1].base.0);
            }
            for e in map.iter().filter(|e| e.kind == RangeKind::Ram) {
                let end = e.base.0 + e.size_bytes;
                assert!(end <= 0xa_0000 || e.base.0 >= 0x10_0000);
                assert!(end <= 0xb000_0000 || e.base.0 >= 4 * GIB);
            }
        }
    }
}
