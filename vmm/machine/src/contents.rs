//! A machine's memory as one figure, to compare runs by.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use guestmem::{GuestRam, RamOffset};
use sha2::{Digest, Sha256};

const PAGE: usize = 4096;

/// What is in a machine's RAM. It keeps the memory from being given back to the host.
#[derive(Clone)]
pub struct MemoryContents(Arc<GuestRam>);

impl fmt::Debug for MemoryContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryContents({} bytes)", self.0.size_bytes())
    }
}

impl MemoryContents {
    pub(crate) fn new(ram: Arc<GuestRam>) -> Self {
        Self(ram)
    }

    /// A SHA-256 of all RAM in the order of its regions, as hexadecimal text; ROM is not in it. It has a meaning
    /// only while nobody runs.
    ///
    /// Each region counts with its place and size, and each page that is not zero with its address, so that memory
    /// the guest never used costs little.
    #[must_use]
    pub fn hash(&self) -> String {
        let mut hasher = Sha256::new();
        let mut page = [0; PAGE];
        for region in self.0.regions().iter().filter(|region| region.writable) {
            hasher.update(region.base.0.to_le_bytes());
            hasher.update(region.size_bytes.to_le_bytes());
            for at in (0..region.size_bytes).step_by(PAGE) {
                self.0.read_at(RamOffset(region.offset.0 + at), &mut page);
                if page != [0; PAGE] {
                    hasher.update((region.base.0 + at).to_le_bytes());
                    hasher.update(page);
                }
            }
        }
        hasher
            .finalize()
            .iter()
            .fold(String::new(), |mut text, byte| {
                // Writing to a string does not fail.
                let _ = write!(text, "{byte:02x}");
                text
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guestmem::{Gpa, MemoryLayout};

    const RAM: [(Gpa, u64); 2] = [(Gpa(0), 0x4000), (Gpa(0x10_0000), 0x4000)];

    fn memory(roms: &[(Gpa, u64)]) -> (Arc<GuestRam>, MemoryContents) {
        let layout = MemoryLayout {
            ram: RAM.to_vec(),
            roms: roms.to_vec(),
            ..MemoryLayout::default()
        };
        let ram = Arc::new(GuestRam::with_layout(&layout).expect("a layout"));
        (Arc::clone(&ram), MemoryContents::new(ram))
    }

    #[test]
    fn every_byte_and_its_place_count() {
        let (ram, contents) = memory(&[]);
        let mut seen = vec![contents.hash()];
        for place in [0, 1, 0xfff, 0x1000, 0x3fff, 0x10_0000, 0x10_3fff] {
            ram.write(Gpa(place), &[1]).expect("RAM");
            let hash = contents.hash();
            assert!(!seen.contains(&hash), "{place:#x}");
            seen.push(hash);
            ram.write(Gpa(place), &[0]).expect("RAM");
            assert_eq!(contents.hash(), seen[0]);
        }
    }

    #[test]
    fn the_same_bytes_have_the_same_hash_and_rom_has_none() {
        let rom = Gpa(0x20_0000);
        let (first, second) = (memory(&[]), memory(&[(rom, 0x1000)]));
        for (ram, _) in [&first, &second] {
            ram.write(Gpa(0x1ff0), &[7; 32]).expect("RAM");
        }
        let place = second.0.find(rom, 1).expect("ROM");
        second.0.write_at(place, &[1]);
        assert_eq!(first.1.hash(), second.1.hash());
        assert_eq!(first.1.hash().len(), 64);
    }
}
