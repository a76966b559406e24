//! Lives of VMs from start to end, on an engine whose "guest" is a closure over the platform.

mod debug_console;

use std::io::{Cursor, Read, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bus::ClockMode;
use guestmem::GuestRam;
use machine::{Image, MachineConfig, MachineError};
use vcpu::{
    Attention, Capabilities, Engine, EngineError, Platform, RunExit, Vcpu, VcpuState, VmConfig,
    Wake,
};

use crate::{Console, Lost, RunError, RunOptions, RunOutcome, StartError, Vm, VmHandle};

/// What a guest's vCPU does instead of executing instructions.
struct Guest<'a> {
    index: u32,
    platform: &'a mut dyn Platform,
    attention: &'a Attention,
    lines: &'a Mutex<Vec<(u32, bool)>>,
    retired: u64,
}

type Program = fn(&mut Guest<'_>) -> Result<RunExit, EngineError>;

#[derive(Clone)]
struct FakeEngine {
    program: Program,
    own_interrupt_controllers: bool,
}

impl FakeEngine {
    fn new(program: Program) -> Self {
        Self {
            program,
            own_interrupt_controllers: false,
        }
    }
}

impl Engine for FakeEngine {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "fake",
            own_interrupt_controllers: self.own_interrupt_controllers,
            nested_intel: false,
            nested_amd: false,
            max_vcpus: 4,
        }
    }

    fn create_vm(&self, _: &VmConfig, _: Arc<GuestRam>) -> Result<Arc<dyn vcpu::Vm>, EngineError> {
        Ok(Arc::new(FakeVm {
            program: self.program,
            lines: Arc::default(),
        }))
    }
}

struct FakeVm {
    program: Program,
    lines: Arc<Mutex<Vec<(u32, bool)>>>,
}

impl vcpu::Vm for FakeVm {
    fn create_vcpu(
        &self,
        index: u32,
        platform: Box<dyn Platform>,
        attention: Attention,
    ) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(FakeVcpu {
            index,
            platform,
            attention,
            program: self.program,
            lines: Arc::clone(&self.lines),
            retired: 0,
        }))
    }

    fn set_irq_line(&self, gsi: u32, high: bool) {
        self.lines.lock().expect("no panic").push((gsi, high));
    }
}

struct FakeVcpu {
    index: u32,
    platform: Box<dyn Platform>,
    attention: Attention,
    program: Program,
    lines: Arc<Mutex<Vec<(u32, bool)>>>,
    retired: u64,
}

impl Vcpu for FakeVcpu {
    fn run(&mut self) -> Result<RunExit, EngineError> {
        let mut guest = Guest {
            index: self.index,
            platform: &mut *self.platform,
            attention: &self.attention,
            lines: &self.lines,
            retired: self.retired,
        };
        let result = (self.program)(&mut guest);
        self.retired = guest.retired;
        result
    }
    fn kicker(&self) -> Box<dyn Fn() + Send + Sync> {
        Box::new(|| ())
    }
    fn state(&mut self) -> Result<VcpuState, EngineError> {
        Ok(VcpuState::default())
    }
    fn set_state(&mut self, _: &VcpuState) -> Result<(), EngineError> {
        Ok(())
    }
    fn retired(&self) -> Option<u64> {
        Some(self.retired)
    }
}

impl Guest<'_> {
    fn out(&mut self, port: u16, value: u8) {
        self.retired += 1;
        self.platform.pio_write(port, 1, u32::from(value), 0);
    }
    fn input(&mut self, port: u16) -> u8 {
        self.retired += 1;
        self.platform.pio_read(port, 1, 0) as u8
    }
    fn print(&mut self, text: &str) {
        text.bytes().for_each(|b| self.out(0x3f8, b));
    }
    fn stopping(&self) -> bool {
        self.attention.get() & Attention::STOP != 0
    }
    /// Executes instructions until asked to stop.
    fn spin(&mut self) -> Result<RunExit, EngineError> {
        while !self.stopping() {
            self.retired += self.platform.poll(self.retired);
        }
        Ok(RunExit::Stopped)
    }
    /// HLT with interrupts enabled: waits for an interrupt and takes it.
    fn halt(&mut self) -> Option<u8> {
        loop {
            self.attention.clear(Attention::INTERRUPT);
            if let Some(vector) = self.platform.acknowledge_interrupt() {
                return Some(vector);
            }
            if self.platform.idle(self.retired, None) == Wake::Stop {
                return None;
            }
        }
    }
    /// Both 8259A to vectors 20h and 28h, only `irq` unmasked.
    fn init_pic(&mut self, irq: u8) {
        let mask = !(1u16 << irq | u16::from(irq > 7) << 2);
        for (port, value) in [
            (0x20, 0x11),
            (0x21, 0x20),
            (0x21, 4),
            (0x21, 1),
            (0xa0, 0x11),
            (0xa1, 0x28),
            (0xa1, 2),
            (0xa1, 1),
            (0x21, mask as u8),
            (0xa1, (mask >> 8) as u8),
        ] {
            self.out(port, value);
        }
    }
}

/// A file that passes for a kernel: header of boot.rst, no code.
fn kernel() -> Image {
    let mut b = vec![0u8; 5 * 512];
    let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
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
    put(0x260, &0x10_0000u32.to_le_bytes());
    Image::Bytes(Arc::new(b))
}

fn config() -> MachineConfig {
    MachineConfig {
        memory_bytes: 32 << 20,
        kernel: Some(kernel()),
        debug_exit: true,
        ..MachineConfig::default()
    }
}

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Screen {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no panic")).into_owned()
    }
    fn console(&self) -> Console {
        Console {
            debug: None,
            output: Box::new(self.clone()),
            input: None,
        }
    }
}

/// What comes through a channel, as a reader that blocks.
struct Keyboard(Receiver<u8>);

impl Read for Keyboard {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.0.recv() {
            Ok(byte) => {
                buffer[0] = byte;
                Ok(1)
            }
            Err(_) => Ok(0),
        }
    }
}

fn start(program: Program) -> VmHandle {
    start_with(&config(), Screen::default().console(), program)
}

fn start_with(config: &MachineConfig, console: Console, program: Program) -> VmHandle {
    Vm::start(
        &FakeEngine::new(program),
        config,
        console,
        RunOptions {
            timeout: Some(Duration::from_secs(30)),
            confine: None,
        },
    )
    .expect("it starts")
}

fn outcome(vm: &VmHandle) -> RunOutcome {
    vm.wait().expect("no failure of the host's").outcome
}

#[test]
fn a_guest_prints_and_ends_with_a_code() {
    let screen = Screen::default();
    let vm = start_with(&config(), screen.console(), |g| {
        g.print("hello\n");
        g.out(0xf4, 7);
        g.spin()
    });
    let report = vm.wait().expect("no failure of the host's");
    assert_eq!(report.outcome, RunOutcome::DebugExit(7));
    assert_eq!(report.console_error, None);
    assert_eq!(screen.text(), "hello\n");
    // 6 characters and the exit, and not one instruction after it.
    assert_eq!(report.statistics.retired, Some(7));
    // Every wait gives the same.
    assert_eq!(vm.wait().expect("as before"), report);
}

#[test]
fn a_guest_that_powers_off_stops_the_other_vcpus() {
    let vm = start_with(
        &MachineConfig {
            vcpus: 3,
            ..config()
        },
        Screen::default().console(),
        |g| match g.index {
            // SLP_TYP 7 with SLP_EN in PM1a_CNT.
            0 => {
                g.platform.pio_write(0x604, 2, 7 << 10 | 1 << 13, 0);
                g.spin()
            }
            1 => g.spin(),
            _ => {
                assert_eq!(g.halt(), None);
                Ok(RunExit::Stopped)
            }
        },
    );
    assert_eq!(outcome(&vm), RunOutcome::PowerOff);
}

#[test]
fn a_guest_that_resets_ends_the_run() {
    let vm = start(|g| {
        g.out(0xcf9, 0x06);
        g.spin()
    });
    assert_eq!(outcome(&vm), RunOutcome::Reset);
}

#[test]
fn a_triple_fault_is_an_outcome() {
    assert_eq!(
        outcome(&start(|_| Ok(RunExit::Shutdown))),
        RunOutcome::TripleFault
    );
}

#[test]
fn stopping_reaches_running_and_idle_vcpus() {
    let programs: [Program; 2] = [
        |g| g.spin(),
        |g| {
            assert_eq!(g.halt(), None);
            Ok(RunExit::Stopped)
        },
    ];
    for program in programs {
        let vm = start(program);
        let stopper = vm.stopper();
        let helper = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            stopper.stop();
        });
        assert_eq!(outcome(&vm), RunOutcome::Stopped);
        helper.join().expect("no panic");
        // Once more has no effect.
        vm.stop();
        assert_eq!(outcome(&vm), RunOutcome::Stopped);
    }
}

#[test]
fn the_time_limit_ends_a_guest_that_hangs() {
    let begin = Instant::now();
    let vm = Vm::start(
        &FakeEngine::new(|g| g.spin()),
        &config(),
        Screen::default().console(),
        RunOptions {
            timeout: Some(Duration::from_millis(50)),
            confine: None,
        },
    )
    .expect("it starts");
    assert_eq!(outcome(&vm), RunOutcome::Timeout);
    assert!(begin.elapsed() >= Duration::from_millis(50));
}

#[test]
fn a_panic_in_a_vcpu_is_an_error_of_the_run() {
    let vm = start_with(
        &MachineConfig {
            vcpus: 2,
            ..config()
        },
        Screen::default().console(),
        |g| match g.index {
            0 => g.spin(),
            _ => panic!("by test"),
        },
    );
    match vm.wait() {
        Err(RunError::Panic { thread, text }) => {
            assert_eq!((thread.as_str(), text.as_str()), ("vCPU 1", "by test"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_failing_engine_is_an_error_of_the_run() {
    let vm = start(|g| {
        Err(EngineError::Stuck {
            vcpu: g.index,
            why: "no way".into(),
        })
    });
    let text = vm.wait().expect_err("the engine failed").to_string();
    assert!(text.contains("vCPU 0") && text.contains("no way"), "{text}");
}

#[test]
fn a_vcpu_that_never_leaves_does_not_hang_the_caller() {
    let vm = start(|_| {
        thread::sleep(Duration::from_secs(5));
        Ok(RunExit::Stopped)
    });
    vm.stop();
    assert!(matches!(vm.wait(), Err(RunError::Hung { count: 1 })));
}

#[test]
fn a_blocked_reader_outside_does_not_hold_up_a_stop() {
    struct Blocked(Receiver<()>);
    impl Write for Blocked {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (release, blocked): (Sender<()>, _) = channel();
    let console = Console {
        debug: None,
        output: Box::new(Blocked(blocked)),
        input: None,
    };
    let vm = start_with(&config(), console, |g| {
        while !g.stopping() {
            g.print("much more than anybody reads\n");
        }
        Ok(RunExit::Stopped)
    });
    thread::sleep(Duration::from_millis(50));
    vm.stop();
    assert_eq!(outcome(&vm), RunOutcome::Stopped);
    drop(release);
}

/// A pipe whose reader is gone.
struct Broken;
impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn output_that_cannot_be_written_is_reported_and_does_not_stop_the_guest() {
    let console = Console {
        debug: None,
        output: Box::new(Broken),
        input: None,
    };
    let vm = start_with(&config(), console, |g| {
        for _ in 0..100_000 {
            g.print("into the void\n");
        }
        g.out(0xf4, 1);
        g.spin()
    });
    let report = vm.wait().expect("no failure of the host's");
    assert_eq!(report.outcome, RunOutcome::DebugExit(1));
    assert!(report.console_error.is_some());
}

/// Echoes what the serial port's receive interrupt brings, until a `q`.
fn echo(g: &mut Guest<'_>) -> Result<RunExit, EngineError> {
    g.init_pic(4);
    // Receive interrupt on; OUT2 connects the chip to the interrupt line.
    g.out(0x3f9, 1);
    g.out(0x3fc, 8);
    loop {
        match g.halt() {
            None => return Ok(RunExit::Stopped),
            Some(vector) => assert_eq!(vector, 0x24),
        }
        while g.input(0x3fd) & 1 != 0 {
            let byte = g.input(0x3f8);
            g.out(0x3f8, byte);
            if byte == b'q' {
                g.out(0xf4, byte);
            }
        }
        g.out(0x20, 0x20);
    }
}

#[test]
fn input_wakes_an_idle_vcpu_every_time() {
    let screen = Screen::default();
    let (keys, keyboard) = channel();
    let console = Console {
        debug: None,
        output: Box::new(screen.clone()),
        input: Some(Box::new(Keyboard(keyboard))),
    };
    let vm = start_with(&config(), console, echo);
    let typed = "abc".repeat(300) + "q";
    for byte in typed.bytes() {
        keys.send(byte).expect("the reader lives");
        if byte == b'c' {
            thread::sleep(Duration::from_micros(300));
        }
    }
    assert_eq!(outcome(&vm), RunOutcome::DebugExit(b'q'));
    assert_eq!(screen.text(), typed);
}

#[test]
fn more_input_than_the_port_holds_arrives_whole() {
    let screen = Screen::default();
    let text = "0123456789abcdef".repeat(4096) + "q";
    let console = Console {
        debug: None,
        output: Box::new(screen.clone()),
        input: Some(Box::new(Cursor::new(text.clone().into_bytes()))),
    };
    let vm = start_with(&config(), console, echo);
    assert_eq!(outcome(&vm), RunOutcome::DebugExit(b'q'));
    assert_eq!(screen.text(), text);
}

/// Programs PIT channel 0 as a rate generator of 1193 ticks (999.85 us) and takes five interrupts while
/// executing; prints at how many instructions each was seen.
fn five_ticks(g: &mut Guest<'_>) -> Result<RunExit, EngineError> {
    // The PIT first: its output rises with the mode, which the 8259A's initialization forgets.
    g.out(0x43, 0x34);
    g.out(0x40, (1193 & 0xff) as u8);
    g.out(0x40, (1193 >> 8) as u8);
    g.init_pic(0);
    let mut seen = 0;
    while seen < 5 && !g.stopping() {
        let slice = g.platform.poll(g.retired);
        if let Some(vector) = g.platform.acknowledge_interrupt() {
            assert_eq!(vector, 0x20);
            let at = g.retired;
            g.out(0x20, 0x20);
            g.print(&format!("{at} "));
            seen += 1;
        } else {
            g.retired += slice;
        }
    }
    g.out(0xf4, 5);
    g.spin()
}

#[test]
fn in_virtual_time_interrupts_come_at_the_same_instruction_in_every_run() {
    let run = || {
        let screen = Screen::default();
        let virtual_time = MachineConfig {
            clock: ClockMode::Virtual,
            ..config()
        };
        let vm = start_with(&virtual_time, screen.console(), five_ticks);
        assert_eq!(outcome(&vm), RunOutcome::DebugExit(5));
        screen.text()
    };
    let first = run();
    assert_eq!(first, run());
    let at: Vec<u64> = first
        .split_whitespace()
        .map(|n| n.parse().expect("a number"))
        .collect();
    // One instruction is one nanosecond; the period is 1193 / 1.193182 MHz = 999847 ns.
    for (n, at) in (1..).zip(at) {
        let due = n * 999_847;
        assert!(at.abs_diff(due) < 3_000, "tick {n} at {at}, due {due}");
    }
}

/// As [`five_ticks`], but idle between the ticks.
fn five_idle_ticks(g: &mut Guest<'_>) -> Result<RunExit, EngineError> {
    g.out(0x43, 0x34);
    g.out(0x40, 0);
    g.out(0x40, 0);
    g.init_pic(0);
    for _ in 0..5 {
        if g.halt().is_none() {
            return Ok(RunExit::Stopped);
        }
        g.out(0x20, 0x20);
    }
    g.out(0xf4, 5);
    g.spin()
}

#[test]
fn idle_time_passes_in_host_mode_and_is_jumped_over_in_virtual_mode() {
    // Five times 65536 / 1.193182 MHz are 274.6 ms.
    let due = Duration::from_millis(274);
    let vm = start(five_idle_ticks);
    let host = vm.wait().expect("no failure of the host's").statistics;
    assert!(host.wall >= due, "{host:?}");
    let virtual_time = MachineConfig {
        clock: ClockMode::Virtual,
        ..config()
    };
    let vm = start_with(&virtual_time, Screen::default().console(), five_idle_ticks);
    let jumped = vm.wait().expect("no failure of the host's").statistics;
    assert!(jumped.guest_time >= due, "{jumped:?}");
    assert!(jumped.wall < due, "{jumped:?}");
}

#[test]
fn several_vcpus_share_virtual_time() {
    let virtual_time = MachineConfig {
        clock: ClockMode::Virtual,
        vcpus: 2,
        ..config()
    };
    let vm = start_with(&virtual_time, Screen::default().console(), |g| {
        match g.index {
            0 => five_idle_ticks(g),
            _ => {
                for _ in 0..50_000 {
                    g.retired += g.platform.poll(g.retired);
                }
                assert_eq!(g.halt(), None);
                Ok(RunExit::Stopped)
            }
        }
    });
    assert_eq!(outcome(&vm), RunOutcome::DebugExit(5));
}

/// With an engine that has interrupt controllers, devices act on time though no vCPU asks.
#[test]
fn the_timekeeper_serves_devices_of_an_engine_with_interrupt_controllers() {
    let engine = FakeEngine {
        own_interrupt_controllers: true,
        program: |g| {
            // RTC: periodic interrupt at 1024 Hz (rate 6, PIE).
            for (index, value) in [(0x0a, 0x26), (0x0b, 0x42)] {
                g.out(0x70, index);
                g.out(0x71, value);
            }
            while !g.stopping() {
                if g.lines.lock().expect("no panic").contains(&(8, true)) {
                    g.out(0xf4, 8);
                }
                thread::sleep(Duration::from_millis(1));
            }
            Ok(RunExit::Stopped)
        },
    };
    let options = RunOptions {
        timeout: Some(Duration::from_secs(10)),
        confine: None,
    };
    let vm =
        Vm::start(&engine, &config(), Screen::default().console(), options).expect("it starts");
    assert_eq!(outcome(&vm), RunOutcome::DebugExit(8));
    assert_eq!(vm.engine(), "fake");
}

#[test]
fn what_the_engine_cannot_do_is_refused_at_the_start() {
    let engine = FakeEngine {
        own_interrupt_controllers: true,
        program: |g| g.spin(),
    };
    let refused = |config: &MachineConfig| {
        let console = Screen::default().console();
        match Vm::start(&engine, config, console, RunOptions::default()) {
            Err(StartError::Machine(MachineError::Unfit(e))) => e.to_string(),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("started"),
        }
    };
    let virtual_time = MachineConfig {
        clock: ClockMode::Virtual,
        ..config()
    };
    assert!(refused(&virtual_time).contains("virtual time"));
    let five = MachineConfig {
        vcpus: 5,
        ..config()
    };
    assert!(refused(&five).contains("at most 4"));
    let nested = MachineConfig {
        nested: vcpu::NestedVirt::Intel,
        ..config()
    };
    assert!(refused(&nested).contains("VT-x"));
}

#[test]
fn a_dropped_handle_stops_the_vm() {
    let screen = Screen::default();
    drop(start_with(&config(), screen.console(), |g| {
        let result = g.spin();
        g.print("bye");
        result
    }));
    // The console's end is dropped when the run is over.
    let begin = Instant::now();
    while Arc::strong_count(&screen.0) > 1 {
        assert!(begin.elapsed() < Duration::from_secs(10), "it still runs");
        thread::sleep(Duration::from_millis(1));
    }
}
