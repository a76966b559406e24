//! Random kernels: sound files of every kind, files near to sound ones, files cut short; with modules, command lines
//! and memories of every size.
//!
//! What must hold: no panic, whatever the file, and a refusal says why in a few words; a sound kernel boots, and one that
//! breaks a rule of its format does not; what is
//! entered is in RAM; it finds its segments, modules, texts and memory map as its protocol has them, none over another
//! ([`told`]); the ACPI tables are whole ([`tables`]).

pub mod kernels;
pub mod tables;
pub mod told;

use std::sync::Arc;

use guestmem::{Gpa, GuestRam};
use machine::{BootProtocol, Image, MachineConfig, MachineError, Module};

use crate::board::{Built, build, bytes};
use crate::{Input, Target};
pub use kernels::bzimage as made_up_kernel;
use kernels::{File, Sound};
use told::{Given, Protocol};

const PROTOCOLS: [BootProtocol; 5] = [
    BootProtocol::Auto,
    BootProtocol::Linux64,
    BootProtocol::Linux32,
    BootProtocol::Multiboot,
    BootProtocol::Pvh,
];
/// The longest command line every kernel takes.
const SHORT_CMDLINE: usize = 255;
/// The most memory of sound kernels and modules, in MByte.
const ENOUGH_MIB: u64 = 8;

/// The target.
#[derive(Default)]
pub struct Boot {
    built: u64,
    refused: u64,
    sound: u64,
    wrong: u64,
    linux: u64,
    multiboot: u64,
    pvh: u64,
}

impl Boot {
    /// The target.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn built(&mut self, built: &Built, file: &File, given: &Given<'_>) {
        self.built += 1;
        let Built { ram, state, .. } = built;
        let entry = state.segments[1].base.wrapping_add(state.rip);
        assert!(
            ram.find(Gpa(entry), 1).is_some(),
            "the entry {entry:#x} is not in RAM"
        );
        match told::check(ram, state, given) {
            Protocol::Linux => self.linux += 1,
            Protocol::Multiboot => self.multiboot += 1,
            Protocol::Pvh => self.pvh += 1,
        }
        tables::check_from_search(ram, given.config.vcpus);
        if let Some(sound) = &file.sound {
            if given.config.boot_protocol == BootProtocol::Auto {
                assert_eq!(entry, sound.entry, "the entry");
            }
            loaded(ram, sound);
        }
    }
}

/// The segments are where they belong, with zeros behind.
fn loaded(ram: &GuestRam, sound: &Sound) {
    for (at, expected, memory) in &sound.segments {
        let found = bytes(ram, *at, *memory as usize);
        let (own, rest) = found.split_at(expected.len());
        assert!(own == expected, "the segment at {at:#x}");
        assert!(rest.iter().all(|&byte| byte == 0), "zeros at {at:#x}");
    }
}

/// Bytes that differ from module to module.
fn content(input: &mut Input<'_>, seed: u8) -> Vec<u8> {
    let most = input.pick(&[1, 16, 4096, 1 << 16]);
    vec![seed; input.below(most + 1)]
}

fn cmdline(input: &mut Input<'_>) -> String {
    let length = match input.below(8) {
        0 => input.below(8192),
        1 => 0,
        2 => 2040 + input.below(16),
        _ => input.below(SHORT_CMDLINE),
    };
    let first = input.any::<u8>();
    let letter = |n: usize| char::from(b'!' + (n as u8).wrapping_add(first) % 94);
    (0..length).map(letter).collect()
}

/// What is asked to be built, with what the kernel is to be given.
fn config(input: &mut Input<'_>, kernel: &[u8]) -> (MachineConfig, Vec<(Vec<u8>, String)>) {
    let image = |bytes: &[u8]| Image::Bytes(Arc::new(bytes.to_vec()));
    let mut given = Vec::new();
    let initrd = input.once_in(2).then(|| content(input, 0x5a));
    let initrd = initrd.map(|bytes| {
        let initrd = image(&bytes);
        given.push((bytes, "initrd".to_owned()));
        initrd
    });
    let count = input.pick(&[0, 0, 0, 1, 2, 3]);
    let modules = (0..count).map(|n| {
        let bytes = content(input, n);
        let text = cmdline(input);
        let module = image(&bytes);
        given.push((bytes, text.clone()));
        Module {
            image: module,
            text,
        }
    });
    let modules = modules.collect();
    let config = MachineConfig {
        memory_bytes: match input.below(8) {
            0 => u64::from(input.any::<u8>()) << 20,
            // Around the hole below 4 GByte.
            1 => u64::from(0xa80 + u32::from(input.any::<u8>())) << 20,
            _ => (ENOUGH_MIB + u64::from(input.any::<u8>() & 31)) << 20,
        },
        vcpus: match input.below(8) {
            0 => u32::from(input.any::<u16>()),
            _ => 1 + u32::from(input.any::<u8>() & 15),
        },
        kernel: Some(image(kernel)),
        boot_protocol: match input.once_in(8) {
            true => input.pick(&PROTOCOLS),
            false => BootProtocol::Auto,
        },
        initrd,
        modules,
        cmdline: cmdline(input),
        display: input.once_in(4).then(Default::default),
        clock: machine::ClockMode::Virtual,
        ..MachineConfig::default()
    };
    (config, given)
}

/// Whether a sound kernel boots on a machine of this configuration, whatever else is given.
fn must_boot(config: &MachineConfig, linux: bool) -> bool {
    let taken = config.modules.is_empty() && config.cmdline.len() <= SHORT_CMDLINE;
    config.memory_bytes >= ENOUGH_MIB << 20
        && (1..=255).contains(&config.vcpus)
        && config.boot_protocol == BootProtocol::Auto
        && (taken || !linux)
}

fn is_linux(file: &File) -> bool {
    file.bytes.get(0x202..0x206) == Some(b"HdrS")
}

impl Target for Boot {
    fn run(&mut self, data: &[u8]) {
        let mut input = Input::new(data);
        let file = kernels::any(&mut input);
        let (config, modules) = config(&mut input, &file.bytes);
        let given = Given {
            config: &config,
            modules: &modules,
        };
        let boots = file.sound.is_some() && must_boot(&config, is_linux(&file));
        self.sound += u64::from(boots);
        self.wrong += u64::from(file.wrong.is_some());
        match build(&config) {
            Err(refusal) => {
                self.refused += 1;
                let text = refusal.to_string();
                assert!(!boots, "a sound kernel is refused: {text}");
                assert!(!text.is_empty() && text.len() < 1000, "{text}");
                let engine = matches!(refusal, MachineError::Engine(_));
                assert!(!engine, "the engine makes any machine: {text}");
            }
            Ok(machine) => {
                if let Some(why) = file.wrong {
                    panic!("a program is loaded that has {why}");
                }
                self.built(&machine, &file, &given);
            }
        }
    }

    fn longest(&self) -> usize {
        256
    }

    fn figures(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("built", self.built),
            ("refused", self.refused),
            ("sound", self.sound),
            ("wrong", self.wrong),
            ("linux", self.linux),
            ("multiboot", self.multiboot),
            ("pvh", self.pvh),
        ]
    }
}
