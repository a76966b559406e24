//! A machine as `machine` builds it, with a hand on it where an engine would be.

use std::sync::{Arc, Mutex, PoisonError};

use guestmem::{Gpa, GuestRam};
use machine::{Machine, MachineConfig, MachineError, SerialOutput, Wiring};
use vcpu::{
    Attention, Capabilities, Engine, EngineError, Platform, RunExit, Vcpu, VcpuState, Vm, VmConfig,
};

/// A machine with what its engine was given.
pub struct Built {
    /// The machine.
    pub machine: Machine,
    /// The board as the boot processor sees it.
    pub platform: Box<dyn Platform>,
    /// Its memory.
    pub ram: Arc<GuestRam>,
    /// The boot processor's first state.
    pub state: VcpuState,
}

/// Builds a machine whose engine executes nothing.
///
/// # Errors
/// What [`Machine::build`] says.
///
/// # Panics
/// A machine is built that did not use its engine.
pub fn build(config: &MachineConfig) -> Result<Built, MachineError> {
    let hands = Hands::default();
    let wiring = Wiring {
        debug_console: Some(Box::new(Dropped)),
        console: Box::new(Dropped),
        requests: Box::new(|_| {}),
    };
    let machine = Machine::build(&hands, config, wiring)?;
    let mut given = hands.0.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Built {
        machine,
        platform: given.platform.take().expect("a vCPU was made"),
        ram: given.ram.take().expect("a VM was made"),
        state: given.state.take().expect("the boot processor has a state"),
    })
}

/// Bytes of RAM.
///
/// # Panics
/// They are not all there.
#[must_use]
pub fn bytes(ram: &GuestRam, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let read = ram.read(Gpa(at), &mut bytes);
    assert!(read.is_ok(), "{len} bytes at {at:#x} are in RAM");
    bytes
}

/// A doubleword of RAM.
///
/// # Panics
/// It is not there.
#[must_use]
pub fn dword(ram: &GuestRam, at: u64) -> u32 {
    u32::from_le_bytes(bytes(ram, at, 4).try_into().expect("four bytes"))
}

/// A quadword of RAM.
///
/// # Panics
/// It is not there.
#[must_use]
pub fn qword(ram: &GuestRam, at: u64) -> u64 {
    u64::from_le_bytes(bytes(ram, at, 8).try_into().expect("eight bytes"))
}

/// The sum of bytes that is zero in tables.
#[must_use]
pub fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

#[derive(Default)]
struct Given {
    ram: Option<Arc<GuestRam>>,
    state: Option<VcpuState>,
    platform: Option<Box<dyn Platform>>,
}

/// An engine whose vCPUs are hands on the board.
#[derive(Clone, Default)]
struct Hands(Arc<Mutex<Given>>);

impl Hands {
    fn note(&self, note: impl FnOnce(&mut Given)) {
        note(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Engine for Hands {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "hands",
            own_interrupt_controllers: false,
            nested_intel: false,
            nested_amd: false,
            max_vcpus: 255,
        }
    }

    fn create_vm(&self, _: &VmConfig, ram: Arc<GuestRam>) -> Result<Arc<dyn Vm>, EngineError> {
        self.note(|given| given.ram = Some(ram));
        Ok(Arc::new(self.clone()))
    }
}

impl Vm for Hands {
    fn create_vcpu(
        &self,
        index: u32,
        platform: Box<dyn Platform>,
        _: Attention,
    ) -> Result<Box<dyn Vcpu>, EngineError> {
        if index == 0 {
            self.note(|given| given.platform = Some(platform));
        }
        Ok(Box::new(Still {
            boot: index == 0,
            hands: self.clone(),
        }))
    }
}

/// A vCPU that does nothing.
struct Still {
    boot: bool,
    hands: Hands,
}

impl Vcpu for Still {
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
            self.hands.note(|given| given.state = Some(state.clone()));
        }
        Ok(())
    }
}

struct Dropped;

impl SerialOutput for Dropped {
    fn write(&mut self, _: &[u8]) {}
}
