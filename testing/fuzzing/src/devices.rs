//! Random accesses to the whole board, as a vCPU makes them: ports, memory-mapped devices, local APIC, time.
//!
//! The board is the one `machine` builds, so a device that is added there is fuzzed from then on. What must hold: no
//! panic; a poll lets the vCPU go on for at least one instruction; time does not go backwards; answers stay in the
//! bytes that were asked for.

use std::sync::{Arc, Mutex};

use guestmem::{Gpa, GuestRam};
use machine::{Image, Machine, MachineConfig, SerialOutput, Wiring};
use vcpu::{
    Attention, Capabilities, Engine, EngineError, Platform, RunExit, Vcpu, VcpuState, Vm, VmConfig,
};

use crate::boot::made_up_kernel;
use crate::{Input, Target};

/// Most accesses of a case.
const ACCESSES: usize = 160;
/// Ports where something is, and one after it.
const PORTS: [u16; 40] = [
    0x20, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x72, 0x73, 0x80,
    0x92, 0xb2, 0xcf8, 0xcf9, 0xcfc, 0xcfd, 0xcfe, 0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x402,
    0x4d0, 0x4d1, 0x510, 0x511, 0x514, 0x600, 0x604, 0x608, 0x3c0, 0x3d4,
];
/// Pages where something is: VGA, flash, PCI windows and ECAM, I/O APIC, HPET, local APIC.
const PAGES: [u64; 14] = [
    0xa_0000,
    0xb_8000,
    0xf_0000,
    0xb000_0000,
    0xb000_1000,
    0xb00f_8000,
    0xc000_0000,
    0xe000_0000,
    0xfe00_0000,
    0xfec0_0000,
    0xfed0_0000,
    0xfee0_0000,
    0xffc0_0000,
    0xffff_f000,
];
/// x2APIC registers and what they are switched on with.
const APIC_MSRS: [u32; 4] = [0x1b, 0x6e0, 0x800, 0x830];

/// An engine whose vCPU is a hand on the board.
struct Hands(Arc<Mutex<Option<Box<dyn Platform>>>>);

impl Engine for Hands {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "hands",
            own_interrupt_controllers: false,
            nested_intel: false,
            nested_amd: false,
            max_vcpus: 1,
        }
    }

    fn create_vm(&self, _: &VmConfig, _: Arc<GuestRam>) -> Result<Arc<dyn Vm>, EngineError> {
        Ok(Arc::new(Hands(Arc::clone(&self.0))))
    }
}

impl Vm for Hands {
    fn create_vcpu(
        &self,
        _: u32,
        platform: Box<dyn Platform>,
        _: Attention,
    ) -> Result<Box<dyn Vcpu>, EngineError> {
        *self.0.lock().expect("one thread") = Some(platform);
        Ok(Box::new(Still))
    }
}

/// A vCPU that does nothing.
struct Still;

impl Vcpu for Still {
    fn run(&mut self) -> Result<RunExit, EngineError> {
        Ok(RunExit::Stopped)
    }
    fn kicker(&self) -> Box<dyn Fn() + Send + Sync> {
        Box::new(|| {})
    }
    fn state(&mut self) -> Result<VcpuState, EngineError> {
        Ok(VcpuState::default())
    }
    fn set_state(&mut self, _: &VcpuState) -> Result<(), EngineError> {
        Ok(())
    }
}

struct Dropped;

impl SerialOutput for Dropped {
    fn write(&mut self, _: &[u8]) {}
}

/// The target.
pub struct Devices {
    kernel: Arc<Vec<u8>>,
    accesses: u64,
    claimed: u64,
    interrupts: u64,
}

impl Default for Devices {
    fn default() -> Self {
        Self::new()
    }
}

impl Devices {
    /// The target.
    #[must_use]
    pub fn new() -> Self {
        Self {
            kernel: Arc::new(made_up_kernel()),
            accesses: 0,
            claimed: 0,
            interrupts: 0,
        }
    }

    fn board(&self) -> (Machine, Box<dyn Platform>) {
        let config = MachineConfig {
            memory_bytes: 32 << 20,
            kernel: Some(Image::Bytes(Arc::clone(&self.kernel))),
            clock: machine::ClockMode::Virtual,
            debug_exit: true,
            ..MachineConfig::default()
        };
        let hands = Hands(Arc::default());
        let wiring = Wiring {
            debug_console: None,
            console: Box::new(Dropped),
            requests: Box::new(|_| {}),
        };
        let machine = Machine::build(&hands, &config, wiring).expect("a machine");
        let platform = hands.0.lock().expect("one thread").take();
        (machine, platform.expect("a vCPU was made"))
    }

    fn access(&mut self, platform: &mut dyn Platform, input: &mut Input<'_>, retired: &mut u64) {
        let size = input.pick(&[1u8, 1, 1, 2, 4, 4]);
        let value = match input.below(4) {
            0 => input.any::<u8>().into(),
            1 => input.number() as u32,
            _ => input.any::<u32>(),
        };
        match input.below(9) {
            0 | 1 => {
                let answer = platform.pio_read(port(input), size);
                let mask = u32::MAX >> (32 - 8 * u32::from(size));
                assert!(answer & !mask == 0, "{answer:#x} in {size} bytes");
                self.claimed += u64::from(answer & mask != mask);
            }
            2 | 3 => platform.pio_write(port(input), size, value),
            4 => {
                let mut data = [0xa5; 8];
                let wide = usize::from(size) * 2;
                platform.mmio_read(place(input), &mut data[..wide.min(8)]);
            }
            5 | 6 => {
                let data = (u64::from(value) | u64::from(value.rotate_left(7)) << 32).to_le_bytes();
                let wide = usize::from(size) * if input.once_in(4) { 2 } else { 1 };
                platform.mmio_write(place(input), &data[..wide.min(8)]);
            }
            7 => {
                let msr = input.pick(&APIC_MSRS) + u32::from(input.any::<u8>() & 0x3f);
                // A refusal is a #GP, which is an answer.
                let _ = match input.once_in(2) {
                    true => platform.apic_msr_write(msr, value.into()),
                    false => platform.apic_msr_read(msr).map(|_| ()),
                };
            }
            _ => self.pass_time(platform, input, retired),
        }
    }

    fn pass_time(&mut self, platform: &mut dyn Platform, input: &mut Input<'_>, retired: &mut u64) {
        let before = platform.tsc(*retired);
        *retired += match input.below(4) {
            0 => u64::from(input.any::<u32>()),
            _ => u64::from(input.any::<u16>()),
        };
        assert!(platform.poll(*retired) >= 1, "the vCPU may go on");
        assert!(platform.tsc(*retired) >= before, "time goes on");
        if platform.interrupt_pending() {
            self.interrupts += u64::from(platform.acknowledge_interrupt().is_some());
        }
        platform.take_nmi();
    }
}

fn port(input: &mut Input<'_>) -> u16 {
    match input.below(16) {
        0 => input.any(),
        1 => input
            .pick(&PORTS)
            .wrapping_add(u16::from(input.any::<u8>() & 15)),
        _ => input.pick(&PORTS),
    }
}

fn place(input: &mut Input<'_>) -> Gpa {
    let page = input.pick(&PAGES);
    let offset = match input.below(3) {
        0 => u64::from(input.any::<u16>()) & 0xff8,
        1 => u64::from(input.any::<u8>()) << 4,
        _ => u64::from(input.any::<u16>() & 0xfff).min(0xff8),
    };
    Gpa(page + offset.min(0xff8))
}

impl Target for Devices {
    fn run(&mut self, data: &[u8]) {
        let mut input = Input::new(data);
        let (_machine, mut platform) = self.board();
        let mut retired = 0;
        for _ in 0..ACCESSES {
            if input.is_empty() {
                break;
            }
            self.accesses += 1;
            self.access(&mut *platform, &mut input, &mut retired);
        }
    }

    fn longest(&self) -> usize {
        2048
    }

    fn figures(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("accesses", self.accesses),
            ("answered", self.claimed),
            ("interrupts", self.interrupts),
        ]
    }
}
