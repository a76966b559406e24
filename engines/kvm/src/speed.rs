//! How fast guest code runs here, against the same code in this process.
//!
//! `/dev/kvm` may be there and yet be no hardware virtualization: some hosts emulate a guest's kernel code
//! instruction by instruction. A loop of two instructions tells the two apart in some ten milliseconds.
//! Both loops are measured in CPU time of their thread, so that a busy host does not change the ratio.

use std::sync::Arc;
use std::time::{Duration, Instant};

use guestmem::{Gpa, GuestRam};
use vcpu::cpuid::CpuidTable;
use vcpu::{
    Attention, Engine, EngineError, NestedVirt, Platform, RunExit, SegmentRegister, VcpuState,
    VmConfig, reset,
};
use x86defs::cr::{cr0, cr4, efer};
use x86defs::paging;
use x86defs::segment::{Access, Selector};

use crate::KvmEngine;

/// How long the guest's loop runs.
const MEASURED: Duration = Duration::from_millis(60);
/// Iterations of the native loop: some milliseconds.
const NATIVE_ITERATIONS: u64 = 4_000_000;
/// `dec rcx; jnz` back.
const LOOP: [u8; 5] = [0x48, 0xff, 0xc9, 0x75, 0xfb];
const INSTRUCTIONS_PER_ITERATION: f64 = 2.0;

const RAM_BYTES: u64 = 0x20_0000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const CODE: u64 = 0x4000;

/// A board with nothing on it.
struct Empty;

impl Platform for Empty {}

/// Puts page tables into `ram` that map its first 2 MByte to themselves, and gives a state at `rip` in 64-bit mode,
/// ring 0, interrupts off.
pub(crate) fn long_mode(ram: &GuestRam, rip: u64) -> VcpuState {
    let table = paging::P | paging::RW;
    for (at, entry) in [
        (PML4, PDPT | table),
        (PDPT, PD | table),
        (PD, table | paging::PS),
    ] {
        ram.write(Gpa(at), &entry.to_le_bytes())
            .expect("the tables lie in the RAM made for them");
    }
    let segment = |selector, access| SegmentRegister {
        selector: Selector(selector),
        base: 0,
        limit: u32::MAX,
        access: Access(access),
    };
    let mut s = reset(true);
    // Present, type 3: read/write data, 4-KByte granularity. Code: type 11, L.
    let data = segment(0x10, 0xc093);
    let code = segment(0x08, 0xa09b);
    s.segments = [data, code, data, data, data, data];
    s.system.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::PG;
    s.system.cr3 = PML4;
    s.system.cr4 = cr4::PAE;
    s.system.efer = efer::LME | efer::LMA;
    s.rip = rip;
    s
}

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Speed {
    pub guest_per_s: f64,
    pub native_per_s: f64,
}

/// Runs both loops; takes about a tenth of a second.
pub(crate) fn measure() -> Result<Speed, EngineError> {
    Ok(Speed {
        guest_per_s: guest_loop()?,
        native_per_s: native_loop(),
    })
}

/// CPU time of the calling thread.
fn thread_time() -> Duration {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a timespec of ours.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    Duration::new(
        t.tv_sec.unsigned_abs(),
        u32::try_from(t.tv_nsec).unwrap_or(0),
    )
}

fn rate(iterations: u64, time: Duration) -> f64 {
    iterations as f64 * INSTRUCTIONS_PER_ITERATION / time.as_secs_f64().max(1e-6)
}

fn native_loop() -> f64 {
    let start = thread_time();
    // SAFETY: counts a register down; touches no memory, leaves only flags changed.
    unsafe {
        std::arch::asm!(
            "2:",
            "dec {n}",
            "jnz 2b",
            n = inout(reg) NATIVE_ITERATIONS => _,
            options(nomem, nostack)
        );
    }
    rate(NATIVE_ITERATIONS, thread_time().saturating_sub(start))
}

fn guest_loop() -> Result<f64, EngineError> {
    let engine = KvmEngine::open()?;
    let ram = Arc::new(
        GuestRam::new(&[(Gpa(0), RAM_BYTES)]).map_err(|e| EngineError::Host {
            what: "mapping memory for the measurement",
            source: std::io::Error::other(e),
        })?,
    );
    ram.write(Gpa(CODE), &LOOP).expect("the loop fits the RAM");
    let config = VmConfig {
        vcpus: 1,
        cpuid: measurement_cpuid(),
        nested: NestedVirt::Off,
        tsc_hz: 0,
    };
    let vm = engine.create_vm(&config, Arc::clone(&ram))?;
    let attention = Attention::new();
    let mut vcpu = vm.create_vcpu(0, Box::new(Empty), attention.clone())?;
    let mut state = long_mode(&ram, CODE);
    state.gpr[1] = u64::MAX;
    vcpu.set_state(&state)?;
    let kick = vcpu.kicker();
    let (time, exit) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let end = Instant::now() + MEASURED;
            std::thread::sleep(end.saturating_duration_since(Instant::now()));
            attention.raise(Attention::STOP);
            kick();
        });
        let start = thread_time();
        let exit = vcpu.run();
        (thread_time().saturating_sub(start), exit)
    });
    if exit? != RunExit::Stopped {
        return Err(EngineError::Stuck {
            vcpu: 0,
            why: "the measuring loop ended in shutdown".into(),
        });
    }
    let left = vcpu.state()?.gpr[1];
    Ok(rate(u64::MAX - left, time))
}

/// Enough to let the guest set CR4.PAE and EFER.LME.
fn measurement_cpuid() -> CpuidTable {
    use vcpu::cpuid::{CpuModel, HostVector, ModelConfig, model};
    model(
        CpuModel::Max,
        &ModelConfig {
            vcpus: 1,
            nested: NestedVirt::Off,
            tsc_hz: 0,
            crystal_hz: 0,
            host: HostVector::default(),
        },
    )
}
