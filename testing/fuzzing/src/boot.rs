//! Random kernels: headers near to valid ones, files cut short, sizes that do not fit.
//!
//! What must hold: no panic, whatever the file; a machine that is built enters at an address in RAM, and its tables
//! are right for its configuration (ACPI's checksums).

use std::sync::{Arc, Mutex};

use guestmem::{Gpa, GuestRam};
use machine::{Image, Machine, MachineConfig, SerialOutput, Wiring};
use vcpu::{
    Attention, Capabilities, Engine, EngineError, Platform, RunExit, Vcpu, VcpuState, Vm, VmConfig,
};

use crate::{Input, Target};

/// Offsets of the fields of the setup header, and bytes around them (Linux `boot.rst`).
const FIELDS: [usize; 20] = [
    0x1f1, 0x1f2, 0x1f4, 0x1fa, 0x1fe, 0x200, 0x201, 0x202, 0x206, 0x211, 0x214, 0x21c, 0x22c,
    0x230, 0x234, 0x236, 0x238, 0x248, 0x258, 0x260,
];
const FILE_BYTES: usize = 0x800;

/// A bzImage of nothing but a header (Linux `Documentation/arch/x86/boot.rst`).
#[must_use]
pub fn made_up_kernel() -> Vec<u8> {
    let mut image = vec![0; FILE_BYTES];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &0x40u32.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa]);
    put(0x200, &[0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1]);
    put(0x236, &1u16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x1000u32.to_le_bytes());
    image
}

/// What an engine of ours sees of a machine: its memory, and the state the boot processor gets.
#[derive(Default)]
struct Seen {
    ram: Option<Arc<GuestRam>>,
    state: Option<VcpuState>,
}

struct Witness(Arc<Mutex<Seen>>);

impl Engine for Witness {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "witness",
            own_interrupt_controllers: false,
            nested_intel: false,
            nested_amd: false,
            max_vcpus: 64,
        }
    }

    fn create_vm(&self, _: &VmConfig, ram: Arc<GuestRam>) -> Result<Arc<dyn Vm>, EngineError> {
        self.0.lock().expect("one thread").ram = Some(ram);
        Ok(Arc::new(Witness(Arc::clone(&self.0))))
    }
}

impl Vm for Witness {
    fn create_vcpu(
        &self,
        index: u32,
        _: Box<dyn Platform>,
        _: Attention,
    ) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(Processor {
            boot: index == 0,
            seen: Arc::clone(&self.0),
        }))
    }
}

struct Processor {
    boot: bool,
    seen: Arc<Mutex<Seen>>,
}

impl Vcpu for Processor {
    fn run(&mut self) -> Result<RunExit, EngineError> {
        Ok(RunExit::Stopped)
    }
    fn kicker(&self) -> Box<dyn Fn() + Send + Sync> {
        Box::new(|| {})
    }
    fn state(&mut self) -> Result<VcpuState, EngineError> {
        Ok(vcpu::reset(self.boot))
    }
    fn set_state(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        if self.boot {
            self.seen.lock().expect("one thread").state = Some(state.clone());
        }
        Ok(())
    }
}

struct Dropped;

impl SerialOutput for Dropped {
    fn write(&mut self, _: &[u8]) {}
}

/// The target.
pub struct Boot {
    kernel: Vec<u8>,
    built: u64,
    refused: u64,
}

impl Default for Boot {
    fn default() -> Self {
        Self::new()
    }
}

impl Boot {
    /// The target.
    #[must_use]
    pub fn new() -> Self {
        Self {
            kernel: made_up_kernel(),
            built: 0,
            refused: 0,
        }
    }

    fn file(&self, input: &mut Input<'_>) -> Vec<u8> {
        if input.once_in(16) {
            return input.bytes(FILE_BYTES).to_vec();
        }
        let mut file = self.kernel.clone();
        for _ in 0..input.below(4) {
            let at = input.pick(&FIELDS) + input.below(4);
            let number = input.number().to_le_bytes();
            let width = input.pick(&[1, 2, 4, 8]);
            file[at..at + width].copy_from_slice(&number[..width]);
        }
        if input.once_in(8) {
            file.truncate(input.below(FILE_BYTES + 1));
        }
        file
    }
}

/// The RSDP and all tables it leads to have sums of zero (ACPI 6.5, 5.2.5 and 5.2.6).
fn check_acpi(ram: &GuestRam) {
    let sum = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        ram.read(Gpa(at), &mut bytes).expect("a table is in RAM");
        bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte))
    };
    let quad = |at: u64| {
        let mut bytes = [0; 8];
        ram.read(Gpa(at), &mut bytes).expect("a table is in RAM");
        u64::from_le_bytes(bytes)
    };
    let signature = u64::from_le_bytes(*b"RSD PTR ");
    let rsdp = (0xe_0000..0x10_0000)
        .step_by(16)
        .find(|&at| quad(at) == signature);
    let Some(rsdp) = rsdp else { return };
    assert_eq!(sum(rsdp, 20), 0, "the RSDP's first sum");
    assert_eq!(sum(rsdp, 36), 0, "the RSDP's second sum");
    let xsdt = quad(rsdp + 24);
    let len = (quad(xsdt) >> 32) as usize;
    assert_eq!(sum(xsdt, len), 0, "the XSDT's sum");
    for at in (xsdt + 36..xsdt + len as u64).step_by(8) {
        let table = quad(at);
        assert_eq!(
            sum(table, (quad(table) >> 32) as usize),
            0,
            "table {table:#x}"
        );
    }
}

impl Target for Boot {
    fn run(&mut self, data: &[u8]) {
        let mut input = Input::new(data);
        let kernel = Some(Image::Bytes(Arc::new(self.file(&mut input))));
        let initrd = input
            .once_in(2)
            .then(|| Image::Bytes(Arc::new(vec![0x5a; input.below(1 << 16)])));
        let config = MachineConfig {
            memory_bytes: u64::from(input.any::<u8>()) << 20,
            vcpus: u32::from(input.any::<u8>() & 0x7f),
            kernel,
            initrd,
            cmdline: "x".repeat(if input.once_in(8) {
                input.below(8192)
            } else {
                10
            }),
            clock: machine::ClockMode::Virtual,
            ..MachineConfig::default()
        };
        let seen = Arc::new(Mutex::new(Seen::default()));
        let wiring = Wiring {
            debug_console: None,
            console: Box::new(Dropped),
            requests: Box::new(|_| {}),
        };
        match Machine::build(&Witness(Arc::clone(&seen)), &config, wiring) {
            Err(refusal) => {
                self.refused += 1;
                let text = refusal.to_string();
                assert!(!text.is_empty() && text.len() < 1000, "{text}");
            }
            Ok(_machine) => {
                self.built += 1;
                let seen = seen.lock().expect("one thread");
                let ram = seen.ram.as_ref().expect("a VM was made");
                let state = seen.state.as_ref().expect("the boot processor has a state");
                let entry = state.segments[1].base.wrapping_add(state.rip);
                let flash = 0xff00_0000..0x1_0000_0000u64;
                assert!(
                    ram.find(Gpa(entry), 1).is_some() || flash.contains(&entry),
                    "the entry {entry:#x} is not in RAM"
                );
                check_acpi(ram);
            }
        }
    }

    fn longest(&self) -> usize {
        256
    }

    fn figures(&self) -> Vec<(&'static str, u64)> {
        vec![("built", self.built), ("refused", self.refused)]
    }
}
