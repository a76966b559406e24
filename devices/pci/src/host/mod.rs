//! The PCI host: configuration mechanisms and address windows, as one device on the bus.
//!
//! Configuration mechanism #1 (PCI Local Bus 3.0 3.2.2.3.2) takes doublewords at CF8h; bytes 1 to 3 of that port are
//! left to others. ECAM is PCI Express Base 4.0 7.2.2; the host bridge says where it is, inside the memory windows. A
//! function that is not there reads as ones.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};

use bus::{Device, Region, VirtualTime};
use guestmem::Gpa;

use crate::config::{BarKind, regs};
use crate::function::{Bdf, EndpointFunction, SharedFunction};

const REGION_ADDRESS: u8 = 0;
const REGION_DATA: u8 = 1;
const REGION_ECAM: u8 = 2;
const REGION_IO: u8 = 3;
const REGION_MEMORY32: u8 = 4;
const REGION_MEMORY64: u8 = 5;

/// CONFIG_ADDRESS: accesses to CONFIG_DATA are configuration accesses.
const ADDRESS_ENABLE: u32 = 1 << 31;
/// Bytes of ECAM for 256 buses.
pub(crate) const ECAM_BYTES: u64 = 256 << 20;

/// Where the host decodes. The same ranges belong in ACPI's MCFG and _CRS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// ECAM for 256 buses: 256 MiB. It is a memory window too, for software that moves ECAM elsewhere, unless it
    /// lies in the window below 4 GiB anyway.
    pub ecam: Gpa,
    /// First port of the I/O window.
    pub io_start: u16,
    /// Ports of the I/O window; zero for none.
    pub io_ports: u16,
    /// Start of the memory window below 4 GiB.
    pub memory32_start: Gpa,
    /// Its size; zero for none.
    pub memory32_bytes: u64,
    /// Start of the memory window above 4 GiB.
    pub memory64_start: Gpa,
    /// Its size; zero for none.
    pub memory64_bytes: u64,
}

/// A function could not be added.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// The place is taken.
    #[error("PCI function {bdf} is taken by {name}")]
    Taken {
        /// The place.
        bdf: Bdf,
        /// Who is there.
        name: &'static str,
    },
}

/// A base address register as it decodes now.
struct Decode {
    io: bool,
    start: u64,
    last: u64,
    bar: u8,
    function: SharedFunction,
}

/// All PCI functions, and what the host decodes for them.
pub struct PciHost {
    config: HostConfig,
    functions: BTreeMap<Bdf, SharedFunction>,
    /// CONFIG_ADDRESS.
    address: u32,
    decodes: Vec<Decode>,
    /// Where ECAM is decoded: first and last address.
    ecam: Option<(u64, u64)>,
}

/// Where an access through a window ends.
enum Target<'a> {
    Config(Bdf, u16),
    Bar(&'a Decode, u64),
}

fn lock(function: &SharedFunction) -> MutexGuard<'_, dyn EndpointFunction + 'static> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PciHost {
    /// A host without functions.
    #[must_use]
    pub fn new(config: HostConfig) -> Self {
        Self {
            config,
            functions: BTreeMap::new(),
            address: 0,
            decodes: Vec::new(),
            ecam: None,
        }
    }

    /// Adds a function. Function 0 of a device with others must say that it has several.
    ///
    /// # Errors
    /// [`PciError::Taken`].
    pub fn add(&mut self, bdf: Bdf, function: SharedFunction) -> Result<(), PciError> {
        if let Some(other) = self.functions.get(&bdf) {
            return Err(PciError::Taken {
                bdf,
                name: lock(other).name(),
            });
        }
        self.functions.insert(bdf, function);
        self.decode();
        Ok(())
    }

    /// The port ranges for `BusBuilder::add`.
    #[must_use]
    pub fn ports(&self) -> Vec<(u16, u16, Region)> {
        let mut ports = vec![
            (0xcf8, 1, Region(REGION_ADDRESS)),
            (0xcfc, 4, Region(REGION_DATA)),
        ];
        if self.config.io_ports != 0 {
            ports.push((
                self.config.io_start,
                self.config.io_ports,
                Region(REGION_IO),
            ));
        }
        ports
    }

    /// The memory ranges for `BusBuilder::add`.
    #[must_use]
    pub fn mmio(&self) -> Vec<(Gpa, u64, Region)> {
        let c = &self.config;
        let from_start = c.ecam.0.checked_sub(c.memory32_start.0);
        let in_window = from_start.is_some_and(|into| into < c.memory32_bytes);
        let ecam_bytes = if in_window { 0 } else { ECAM_BYTES };
        let mut ranges = Vec::new();
        let windows = [
            (c.ecam, ecam_bytes, REGION_ECAM),
            (c.memory32_start, c.memory32_bytes, REGION_MEMORY32),
            (c.memory64_start, c.memory64_bytes, REGION_MEMORY64),
        ];
        ranges.extend(
            windows
                .into_iter()
                .filter(|w| w.1 != 0)
                .map(|(s, n, r)| (s, n, Region(r))),
        );
        ranges
    }

    /// Gathers what decodes: base address registers and ECAM.
    fn decode(&mut self) {
        self.decodes.clear();
        self.ecam = None;
        for function in self.functions.values() {
            if let Some((base, bytes)) = lock(function).ecam() {
                self.ecam = Some((base.0, base.0.saturating_add(bytes - 1)));
            }
            for bar in lock(function).config().bars() {
                let Some(last) = bar.base.checked_add(bar.size_bytes - 1) else {
                    continue;
                };
                self.decodes.push(Decode {
                    io: bar.kind == BarKind::Io,
                    start: bar.base,
                    last,
                    bar: bar.index,
                    function: function.clone(),
                });
            }
        }
    }

    /// The function, register number and offset for an access to CONFIG_DATA.
    fn selected(&self, offset: u64) -> Option<(Bdf, u16)> {
        let register = (self.address & 0xfc) as u16 | (offset & 3) as u16;
        (self.address & ADDRESS_ENABLE != 0)
            .then(|| (Bdf::from_id((self.address >> 8) as u16), register))
    }

    fn config_read(&self, bdf: Bdf, offset: u16, data: &mut [u8], now: VirtualTime) {
        match self.functions.get(&bdf) {
            Some(function) => {
                let mut function = lock(function);
                function.config_read(offset, data.len(), now);
                function.config().read(offset, data);
            }
            None => data.fill(0xff),
        }
    }

    fn config_write(&mut self, bdf: Bdf, offset: u16, data: &[u8], now: VirtualTime) {
        let Some(function) = self.functions.get(&bdf) else {
            return;
        };
        {
            let mut function = lock(function);
            function.config_mut().write(offset, data);
            function.config_written(offset, data.len(), now);
        }
        if offset < regs::HEADER_END || bdf == Bdf::new(0, 0, 0) {
            self.decode();
        }
    }

    /// What an offset in a window leads to. A write that reaches past a register's end is cut by the function, which
    /// knows its layout.
    fn target(&self, region: Region, offset: u64) -> Option<Target<'_>> {
        let (io, at) = self.window(region, offset)?;
        if let Some((first, last)) = self.ecam
            && !io
            && (first..=last).contains(&at)
        {
            let (bdf, register) = ecam(at - first);
            return Some(Target::Config(bdf, register));
        }
        let d = self
            .decodes
            .iter()
            .find(|d| d.io == io && d.start <= at && at <= d.last)?;
        Some(Target::Bar(d, at - d.start))
    }

    /// The address of an offset in a window; whether it is a port.
    fn window(&self, region: Region, offset: u64) -> Option<(bool, u64)> {
        let c = &self.config;
        let (io, start) = match region.0 {
            REGION_IO => (true, u64::from(c.io_start)),
            REGION_ECAM => (false, c.ecam.0),
            REGION_MEMORY32 => (false, c.memory32_start.0),
            REGION_MEMORY64 => (false, c.memory64_start.0),
            _ => return None,
        };
        Some((io, start.checked_add(offset)?))
    }
}

/// Splits an ECAM offset into function and register.
fn ecam(offset: u64) -> (Bdf, u16) {
    (Bdf::from_id((offset >> 12) as u16), (offset & 0xfff) as u16)
}

impl Device for PciHost {
    fn name(&self) -> &'static str {
        "pci"
    }

    fn reset(&mut self) {
        self.address = 0;
        for function in self.functions.values() {
            lock(function).reset();
        }
        self.decode();
    }

    fn read(&mut self, region: Region, offset: u64, data: &mut [u8], now: VirtualTime) {
        match region.0 {
            REGION_ADDRESS => {
                if let (0, Ok(all)) = (offset, <&mut [u8; 4]>::try_from(data)) {
                    *all = self.address.to_le_bytes();
                }
            }
            REGION_DATA => {
                if let Some((bdf, register)) = self.selected(offset) {
                    self.config_read(bdf, register, data, now);
                }
            }
            _ => match self.target(region, offset) {
                Some(Target::Config(bdf, register)) => self.config_read(bdf, register, data, now),
                Some(Target::Bar(d, offset)) => {
                    lock(&d.function).bar_read(d.bar, offset, data, now);
                }
                None => {}
            },
        }
    }

    fn write(&mut self, region: Region, offset: u64, data: &[u8], now: VirtualTime) {
        match region.0 {
            REGION_ADDRESS => {
                if let (0, Ok(all)) = (offset, <[u8; 4]>::try_from(data)) {
                    // Bits 30:24 and 1:0 are reserved.
                    self.address = u32::from_le_bytes(all) & 0x80ff_fffc;
                }
            }
            REGION_DATA => {
                if let Some((bdf, register)) = self.selected(offset) {
                    self.config_write(bdf, register, data, now);
                }
            }
            _ => match self.target(region, offset) {
                Some(Target::Config(bdf, register)) => {
                    self.config_write(bdf, register, data, now);
                }
                Some(Target::Bar(d, offset)) => {
                    lock(&d.function).bar_write(d.bar, offset, data, now);
                }
                None => {}
            },
        }
    }

    /// Lets one function act, the one that is due first, so that the lock of all of them is held for one function's turn
    /// only. The others are still due, and come at the next call.
    fn advance(&mut self, now: VirtualTime) {
        let due = |f: &&SharedFunction| lock(f).deadline();
        let first = self
            .functions
            .values()
            .filter(|f| due(f).is_some_and(|at| at <= now))
            .min_by_key(due);
        if let Some(function) = first {
            lock(function).advance(now);
        }
    }

    fn deadline(&self) -> Option<VirtualTime> {
        self.functions
            .values()
            .filter_map(|f| lock(f).deadline())
            .min()
    }
}
