//! Fuzz targets: what hostile guests and files can do, made from bytes, and what must hold afterwards.
//!
//! A [`Target`] turns bytes into one case, runs it, and panics when something is wrong: the panic is the finding.
//! Where the bytes come from is not its business: a [`Campaign`] takes them from a generator with a seed, a fixed
//! number of them in CI and as many as one likes by hand (`cargo run --release -p fuzzing -- code 1000000`);
//! `testing/fuzzing/fuzz` takes them from libFuzzer, which is guided by coverage.
//!
//! A target keeps no state from one case to the next but for speed: the same bytes give the same case.

pub mod board;
pub mod boot;
pub mod campaign;
pub mod code;
pub mod cpu;
pub mod devices;
pub mod firmware;
pub mod input;
pub mod paging;
pub mod steps;
pub mod text;
pub mod tiers;
pub mod vmentry;

pub use campaign::{Campaign, Random};
pub use input::Input;

/// Something that takes bytes.
pub trait Target {
    /// Runs the case these bytes describe. Any bytes describe one; missing bytes are zeros.
    ///
    /// # Panics
    /// What must hold does not: a finding.
    fn run(&mut self, data: &[u8]);

    /// The most bytes a case uses.
    fn longest(&self) -> usize;

    /// Figures that show that cases reach what they are for, after a campaign.
    fn figures(&self) -> Vec<(&'static str, u64)>;
}

/// The names of the targets.
pub const NAMES: [&str; 10] = [
    "code",
    "steps",
    "translated",
    "tiers",
    "paging",
    "vmentry",
    "devices",
    "boot",
    "firmware",
    "text",
];

/// The target of that name.
#[must_use]
pub fn target(name: &str) -> Option<Box<dyn Target>> {
    Some(match name {
        "code" => Box::new(code::Code::new()),
        "steps" => Box::new(steps::Steps::new()),
        "translated" => Box::new(steps::Steps::translated()),
        "tiers" => Box::new(tiers::Tiers::new()),
        "paging" => Box::new(paging::Paging::new()),
        "vmentry" => Box::new(vmentry::VmEntry::new()),
        "devices" => Box::new(devices::Devices::new()),
        "boot" => Box::new(boot::Boot::new()),
        "firmware" => Box::new(firmware::FirmwareTarget::new()),
        "text" => Box::new(text::Text::new()),
        _ => return None,
    })
}
