//! Firmware files of every size, and what a machine tells its firmware, read as firmware reads it.
//!
//! What must hold: files of sound sizes are taken and no others; the directory of the configuration device, its data
//! port and its DMA agree; an operation of its DMA writes where it says and nowhere else, and never to ROM; the script
//! for the ACPI tables, executed wherever the files are put, makes whole tables; the SMBIOS structures are what their
//! entry point says; RAM is told whole.

mod guest;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use guestmem::{Gpa, GuestRam};
use machine::{Firmware, FirmwareError, Image, MachineConfig, MachineError, Variables};
use vcpu::Platform;

use crate::board::{Built, build, bytes, qword, sum};
use crate::boot::tables;
use crate::{Input, Target};
use guest::{Guest, OPERATION, SENTINEL};

const KIB: usize = 1 << 10;
const BLOCK: usize = 4 * KIB;
/// The fewest bytes of code, and the most of code and variables.
const LEAST: usize = 128 * KIB;
const MOST: usize = 16 << 20;
/// Where a case's files go: from here on, upwards.
const FILES: u64 = 0x20_0000;
const FOUR_GIB: u64 = 1 << 32;
/// PCIEXBAR of the host bridge, for the address port.
const PCIEXBAR: u32 = 0x8000_0060;
/// Bytes of a command of the tables' script, and of a name in it.
const COMMAND: usize = 128;
const NAME: usize = 56;

/// The target.
#[derive(Default)]
pub struct FirmwareTarget {
    built: u64,
    refused: u64,
    scripts: u64,
    operations: u64,
    errors: u64,
    flash: u64,
}

/// A file in guest memory: its address and size.
type Placed = BTreeMap<String, (u64, usize)>;

impl FirmwareTarget {
    /// The target.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sizes: sound ones, and others near to them.
    fn size(input: &mut Input<'_>, least: usize) -> usize {
        match input.below(16) {
            0 => least / 2 + input.below(BLOCK) + BLOCK * input.below(least / BLOCK),
            1 => least - 1 + input.below(3),
            2 => MOST - BLOCK + input.below(3) * BLOCK,
            3 => 0,
            _ => least + BLOCK * input.below(8),
        }
    }

    fn config(input: &mut Input<'_>) -> (MachineConfig, Vec<u8>, Option<usize>) {
        let mut code = vec![0; Self::size(input, LEAST)];
        for (n, byte) in code.iter_mut().enumerate() {
            *byte = (n >> 8) as u8 ^ n as u8;
        }
        let variables = input.once_in(2).then(|| Self::size(input, BLOCK));
        let config = MachineConfig {
            memory_bytes: match input.below(8) {
                0 => (0xaf0 + u64::from(input.any::<u8>() & 31)) << 20,
                1 => (4 << 30) + (u64::from(input.any::<u8>()) << 24),
                _ => (8 + u64::from(input.any::<u8>() & 31)) << 20,
            },
            vcpus: 1 + u32::from(input.any::<u8>()) % 255,
            firmware: Some(Firmware {
                code: Image::Bytes(Arc::new(code.clone())),
                variables: variables.map(|size| Variables {
                    template: Image::Bytes(Arc::new(vec![0x77; size])),
                    file: None,
                }),
            }),
            clock: machine::ClockMode::Virtual,
            ..MachineConfig::default()
        };
        (config, code, variables)
    }

    /// The directory's files by name, read by the data port; their contents by DMA.
    fn place_files(guest: &mut Guest<'_>, input: &mut Input<'_>) -> Placed {
        let mut placed = Placed::new();
        let mut next = FILES;
        for (name, (key, size)) in guest.directory() {
            let alignment = 64 << input.below(8);
            let at = next.next_multiple_of(alignment) + 64 * input.below(16) as u64;
            // What it has, and zeros behind its end, and nothing behind those.
            let behind = input.pick(&[1, 2, 64, 0x1800]);
            let all = size + behind;
            guest.ram.write(Gpa(at), &vec![0xee; all + 1]).expect("RAM");
            let control = guest.dma(Guest::SELECT_READ | u32::from(key) << 16, all as u32, at);
            assert_eq!(control, 0, "reading {name}");
            let content = bytes(guest.ram, at, all + 1);
            let (zeros, rest) = content[size..].split_at(behind);
            assert!(zeros.iter().all(|&byte| byte == 0), "behind {name}");
            assert_eq!(rest, [0xee], "behind what was asked for of {name}");
            assert_eq!(guest.next(), 0, "behind {name}, by port");
            if input.once_in(8) {
                let mut port = guest.item(key, all);
                port.push(0xee);
                assert!(content == port, "{name} by port and by DMA");
            }
            next = at + all as u64 + 1;
            placed.insert(name, (at, size));
        }
        placed
    }

    fn dma(&mut self, guest: &mut Guest<'_>, input: &mut Input<'_>) {
        let control = match input.below(4) {
            0 => input.any::<u32>(),
            _ => u32::from(input.any::<u8>() & 0x1f) | u32::from(input.any::<u16>() & 0x3f) << 16,
        };
        let length = match input.below(4) {
            0 => input.number() as u32,
            _ => u32::from(input.any::<u16>()),
        };
        let memory = guest.memory_end();
        // Much of a large memory is too much for a case.
        let length = if memory > 64 << 20 {
            length & 0xf_ffff
        } else {
            length
        };
        let near = u64::from(input.any::<u16>());
        let to = match input.below(8) {
            0 => input.number(),
            1 => memory.wrapping_sub(near),
            2 => FOUR_GIB - near,
            3 => u64::MAX - near,
            _ => FILES + near,
        };
        // The guard's pages are nobody's, and what describes the operation stays as it is.
        let end = to.saturating_add(length.into());
        let meets = |range: Range<u64>| to < range.end && end > range.start;
        if meets(SENTINEL) || meets(OPERATION..OPERATION + 16) {
            return;
        }
        let reads = control & 2 != 0;
        let writable = guest.is_ram(to, length);
        let before = writable.then(|| bytes(guest.ram, to, length as usize));
        let status = guest.dma(control, length, to);
        self.operations += 1;
        assert_eq!(status & !1, 0, "nothing but the error is left");
        if status & 1 != 0 {
            self.errors += 1;
            if let Some(before) = before {
                let after = bytes(guest.ram, to, length as usize);
                assert!(before == after, "an error that transfers: {control:#x}");
            }
        } else {
            assert!(
                !reads || writable || length == 0,
                "{length:#x} bytes to {to:#x}"
            );
            if !reads && let Some(before) = before {
                let after = bytes(guest.ram, to, length as usize);
                assert!(before == after, "no read: {control:#x}");
            }
        }
    }

    /// Commands to the flash for variables. What is programmed and erased is found again; a reset of its mode shows its
    /// array.
    fn flash(
        &mut self,
        platform: &mut dyn Platform,
        base: u64,
        size: usize,
        input: &mut Input<'_>,
    ) {
        for _ in 0..input.below(64) {
            let at = Gpa(base + (input.any::<u32>() as u64) % size as u64 / 8 * 8);
            let wide = input.pick(&[1, 1, 1, 2, 4, 8]);
            if input.once_in(3) {
                platform.mmio_read(at, &mut [0; 8][..wide], 0);
                continue;
            }
            const COMMANDS: [u8; 12] = [
                0x10, 0x20, 0x40, 0x50, 0x60, 0x70, 0x90, 0x98, 0xd0, 0xe8, 0xff, 0x01,
            ];
            let mut data = [input.pick(&COMMANDS); 8];
            if input.once_in(4) {
                data = input.any::<u64>().to_le_bytes();
            }
            platform.mmio_write(at, &data[..wide], 0);
        }
        // Read array, until a buffered write that was under way has all its data and is refused.
        for _ in 0..2052 {
            platform.mmio_write(Gpa(base), &[0xff], 0);
        }
        let at = base + (input.any::<u32>() as u64) % size as u64;
        let program = input.any::<u8>();
        let read = |platform: &mut dyn Platform| {
            let mut byte = [0];
            platform.mmio_read(Gpa(at), &mut byte, 0);
            byte[0]
        };
        platform.mmio_write(Gpa(at), &[0x10], 0);
        platform.mmio_write(Gpa(at), &[program], 0);
        platform.mmio_write(Gpa(base), &[0x50], 0);
        platform.mmio_write(Gpa(base), &[0xff], 0);
        let first = read(platform);
        assert_eq!(first & !program, 0, "programming sets no bit");
        platform.mmio_write(Gpa(at), &[0x20], 0);
        platform.mmio_write(Gpa(at), &[0xd0], 0);
        platform.mmio_write(Gpa(base), &[0x50], 0);
        platform.mmio_write(Gpa(base), &[0xff], 0);
        assert_eq!(read(platform), 0xff, "an erased byte");
        self.flash += 1;
    }

    fn machine(&mut self, built: &mut Built, config: &MachineConfig, input: &mut Input<'_>) {
        let ram = Arc::clone(&built.ram);
        let platform = &mut *built.platform;
        if input.once_in(4) {
            // Firmware moves ECAM, or what it takes for that; with 256, 128 or 64 buses, or off.
            let address =
                u32::from(input.any::<u8>()) << 24 | u32::from(input.any::<u8>() & 0xe) << 24;
            platform.pio_write(0xcf8, 4, PCIEXBAR, 0);
            platform.pio_write(0xcfc, 4, address | u32::from(input.any::<u8>() & 7), 0);
        }
        let mut guest = Guest::new(platform, &ram, config.memory_bytes);
        for _ in 0..input.below(32) {
            self.dma(&mut guest, input);
        }
        let files = Self::place_files(&mut guest, input);
        assert!(guest.guard_is_untouched(), "written to nobody's pages");
        smbios(&ram, &files);
        e820(&ram, &files, config.memory_bytes);
        execute(&ram, &files, config.vcpus);
        self.scripts += 1;
    }
}

fn file(files: &Placed, name: &str) -> (u64, usize) {
    *files.get(name).unwrap_or_else(|| panic!("no file {name}"))
}

/// DSP0134 5.2.1 and 6.1: sums, and structures that fill the table.
fn smbios(ram: &GuestRam, files: &Placed) {
    let (at, size) = file(files, "etc/smbios/smbios-anchor");
    let anchor = bytes(ram, at, size);
    let word = |at: usize| usize::from(anchor[at]) | usize::from(anchor[at + 1]) << 8;
    assert!(anchor.starts_with(b"_SM_") && anchor[5] == 0x1f && size == 0x1f);
    assert_eq!(sum(&anchor), 0, "the entry point's sum");
    assert_eq!(sum(&anchor[16..]), 0, "the second sum");
    let (at, size) = file(files, "etc/smbios/smbios-tables");
    assert_eq!(word(0x16), size, "the table's length");
    let table = bytes(ram, at, size);
    let (mut rest, mut count, mut largest, mut handles) = (&table[..], 0, 0, Vec::new());
    while !rest.is_empty() {
        let formatted = usize::from(rest[1]);
        assert!((4..=rest.len()).contains(&formatted));
        let strings = &rest[formatted..];
        let end = strings.windows(2).position(|pair| pair == [0, 0]);
        let end = formatted + end.expect("two zeros") + 2;
        handles.push((rest[2], rest[3]));
        (count, largest) = (count + 1, end.max(largest));
        assert_eq!(rest[0] == 127, end == rest.len(), "the last structure");
        rest = &rest[end..];
    }
    assert_eq!((count, largest), (word(0x1c), word(8)));
    handles.sort_unstable();
    handles.dedup();
    assert_eq!(handles.len(), count, "handles are unique");
}

/// RAM as firmware is told is all there is.
fn e820(ram: &GuestRam, files: &Placed, memory: u64) {
    let (at, size) = file(files, "etc/e820");
    assert_eq!(size % 20, 0);
    let all: u64 = (0..size as u64 / 20)
        .map(|n| qword(ram, at + 20 * n + 8))
        .sum();
    assert_eq!(all, memory, "RAM");
}

/// Executes the script of the ACPI tables (QEMU's table loader) and checks what comes of it.
fn execute(ram: &GuestRam, files: &Placed, vcpus: u32) {
    let (at, size) = file(files, "etc/table-loader");
    assert_eq!(size % COMMAND, 0, "whole commands");
    let script = bytes(ram, at, size);
    let mut allocated = Vec::new();
    for command in script.chunks(COMMAND) {
        let word = |at: usize| u32::from_le_bytes(command[at..at + 4].try_into().expect("four"));
        let name = |at: usize| {
            let field = &command[at..at + NAME];
            let end = field.iter().position(|&byte| byte == 0).expect("a zero");
            String::from_utf8_lossy(&field[..end]).into_owned()
        };
        let placed = |name: &str| {
            assert!(allocated.iter().any(|n| n == name), "{name} is allocated");
            file(files, name)
        };
        match word(0) {
            // Nothing ends a script early but is no command either.
            0 => {}
            1 => {
                let alignment = word(4 + NAME);
                assert!(alignment.is_power_of_two(), "alignment {alignment}");
                assert!(matches!(command[8 + NAME], 1 | 2), "a zone");
                let name = name(4);
                let _ = file(files, &name);
                allocated.push(name);
            }
            2 => {
                let (into, to) = (placed(&name(4)), placed(&name(4 + NAME)));
                let (offset, width) = (word(4 + 2 * NAME), command[8 + 2 * NAME]);
                assert!(matches!(width, 1 | 2 | 4 | 8), "a pointer of {width}");
                let width = usize::from(width);
                assert!(offset as usize + width <= into.1, "a pointer at {offset}");
                let at = into.0 + u64::from(offset);
                let mut pointer = [0; 8];
                pointer[..width].copy_from_slice(&bytes(ram, at, width));
                let inside = u64::from_le_bytes(pointer);
                assert!((inside as usize) < to.1, "a pointer to {inside:#x}");
                let value = (inside + to.0).to_le_bytes();
                ram.write(Gpa(at), &value[..width]).expect("RAM");
            }
            3 => {
                let into = placed(&name(4));
                let [offset, start, len] = [0, 4, 8].map(|n| word(4 + NAME + n) as usize);
                assert!(start + len <= into.1 && (start..start + len).contains(&offset));
                let found = sum(&bytes(ram, into.0 + start as u64, len));
                let at = into.0 + offset as u64;
                let old = bytes(ram, at, 1)[0];
                ram.write(Gpa(at), &[old.wrapping_sub(found)]).expect("RAM");
            }
            other => panic!("command {other}"),
        }
    }
    let (rsdp, _) = file(files, "etc/acpi/rsdp");
    tables::check(ram, rsdp, vcpus);
}

impl Target for FirmwareTarget {
    fn run(&mut self, data: &[u8]) {
        let mut input = Input::new(data);
        let (config, code, variables) = Self::config(&mut input);
        let whole = |size: usize| size.is_multiple_of(BLOCK);
        let code_fits = (LEAST..=MOST).contains(&code.len()) && whole(code.len());
        let variables_fit =
            variables.is_none_or(|size| size > 0 && whole(size) && size + code.len() <= MOST);
        let mut built = match build(&config) {
            Ok(built) => built,
            Err(refusal) => {
                self.refused += 1;
                let text = refusal.to_string();
                assert!(!(code_fits && variables_fit), "refused: {text}");
                assert!(!text.is_empty() && text.len() < 1000, "{text}");
                // For what is wrong, and not for what came of it.
                let told = match refusal {
                    MachineError::Firmware(FirmwareError::CodeSize { .. }) => !code_fits,
                    MachineError::Firmware(FirmwareError::VariablesSize { .. }) => code_fits,
                    _ => false,
                };
                assert!(told, "{} {variables:?}: {text}", code.len());
                return;
            }
        };
        self.built += 1;
        assert!(code_fits && variables_fit, "{} {variables:?}", code.len());
        let rom = FOUR_GIB - code.len() as u64;
        let (entry, state) = (FOUR_GIB - 16, &built.state);
        // SDM Vol 3 10.1.4.
        assert_eq!(state.segments[1].base.wrapping_add(state.rip), entry);
        self.machine(&mut built, &config, &mut input);
        if let Some(size) = variables {
            let base = rom - size as u64;
            self.flash(&mut *built.platform, base, size, &mut input);
        }
        built.platform.mmio_write(Gpa(rom), &[0x10, 0], 0);
        assert!(bytes(&built.ram, rom, code.len()) == code, "ROM changed");
    }

    fn longest(&self) -> usize {
        640
    }

    fn figures(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("built", self.built),
            ("refused", self.refused),
            ("scripts", self.scripts),
            ("operations", self.operations),
            ("errors", self.errors),
            ("flash", self.flash),
        ]
    }
}
