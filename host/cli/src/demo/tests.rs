//! The demo with a runner that plays a recorded console.

use super::*;
use crate::vm::{Confinement, Jit, Lost, RunError, Typed};
use lifecycle::Statistics;
use std::io::Read;

const DEPTH_2: &str = "\x1bc\x1b[?7l\x1b[2JNESTLING-LEVEL 1 up kernel=6.1.0-9 hypervisor=none \
    virt=vmx uptime=1.88 memory_kib=1003456\r\n\
    NESTLING-LEVEL 1 enter\r\n\
    NESTLING-LEVEL 2 up kernel=6.1.0-9 hypervisor=KVMKVMKVM virt=vmx uptime=2.10 \
    memory_kib=803456\r\r\n\
    NESTLING-LEVEL 2 down status=0 uptime=2.2\r\r\n\
    [    2.212345] reboot: Power down\r\r\n\
    NESTLING-LEVEL 1 down status=0 uptime=12.5\r\n\
    [   12.6] reboot: Power down\r\n";

struct Recording {
    console: Vec<u8>,
    end: Result<RunOutcome, RunError>,
}

impl Runner for Recording {
    fn run(
        &self,
        _request: RunRequest,
        mut console: Box<dyn ConsoleSink>,
        mut input: Box<dyn Read + Send>,
    ) -> Result<RunReport, RunError> {
        for piece in self.console.chunks(7) {
            console.output(piece);
        }
        let mut nothing = [0];
        assert_eq!(input.read(&mut nothing).expect("no input"), 0);
        self.end.clone().map(|outcome| RunReport {
            outcome,
            picture: None,
            memory: None,
            lost: Lost::default(),
            profile: lifecycle::Profile::default(),
            statistics: Statistics {
                retired: None,
                wall: Duration::ZERO,
                guest_time: Duration::ZERO,
            },
        })
    }
}

#[derive(Clone, Default)]
struct Noted(Arc<Mutex<Vec<String>>>);

impl View for Noted {
    fn report(&mut self, _levels: &Levels, report: &report::Report, _at: Duration) {
        let line = format!("{} {:?}", report.level, report.event);
        self.0.lock().expect("one thread").push(line);
    }
    fn console(&mut self, _line: &str) {}
    fn finish(&mut self) {
        self.0.lock().expect("one thread").push("finish".into());
    }
}

fn play(console: &[u8], end: Result<RunOutcome, RunError>) -> (Result<u8, Failure>, Vec<String>) {
    let request = RunRequest {
        kernel: Some(Vec::new()),
        firmware: None,
        display: false,
        keys: Typed::default(),
        debug_console: None,
        initrd: None,
        boot_protocol: BootProtocol::Auto,
        modules: Vec::new(),
        append: String::new(),
        disks: Vec::new(),
        cdrom: None,
        memory_bytes: 1 << 30,
        cpus: 1,
        engine: Engine::Soft,
        jit: Jit::Off,
        cpu: vcpu::cpuid::CpuModel::Max,
        nested: NestedChoice::Intel,
        clock: ClockMode::Virtual,
        debug_exit: false,
        timeout: Some(Duration::from_secs(600)),
        confinement: Confinement::Off,
        interrupt: Interrupt::new(),
    };
    let decision = Decision {
        engine: Engine::Soft,
        why: "asked for".into(),
    };
    let noted = Noted::default();
    let runner = Recording {
        console: console.to_vec(),
        end,
    };
    let view = Box::new(noted.clone());
    let status = perform(request, 2, decision, Format::Text, view, &runner);
    let notes = noted.0.lock().expect("one thread").clone();
    (status, notes)
}

#[test]
fn a_good_recording_succeeds() {
    let (status, notes) = play(DEPTH_2.as_bytes(), Ok(RunOutcome::PowerOff));
    assert_eq!(status, Ok(0));
    assert_eq!(notes.len(), 6);
    assert_eq!(notes[1], "1 Enter");
    assert_eq!(notes[5], "finish");
}

#[test]
fn every_way_to_end_badly_has_its_status() {
    let good = DEPTH_2.as_bytes();
    let half = &good[..200];
    assert_eq!(play(half, Ok(RunOutcome::PowerOff)).0, Ok(1));
    assert_eq!(play(half, Ok(RunOutcome::Timeout)).0, Ok(124));
    assert_eq!(play(good, Ok(RunOutcome::TripleFault)).0, Ok(1));
    assert_eq!(play(good, Ok(RunOutcome::Reset)).0, Ok(1));
    assert_eq!(play(b"", Ok(RunOutcome::PowerOff)).0, Ok(1));
}

#[test]
fn a_failing_inner_level_fails_the_demo() {
    let failing = DEPTH_2.replace("1 down status=0", "1 down status=12");
    assert_eq!(play(failing.as_bytes(), Ok(RunOutcome::PowerOff)).0, Ok(1));
}

#[test]
fn a_monitor_that_refuses_is_told() {
    let error = RunError::Refused {
        why: "no engine".into(),
        advice: "get one".into(),
    };
    let failure = play(b"", Err(error)).0.expect_err("refused");
    assert_eq!(
        failure.to_string(),
        "cannot run the virtual machine: no engine; get one"
    );
}

#[test]
fn a_hostile_console_does_no_harm() {
    let mut hostile: Vec<u8> = (0..=255_u8).cycle().take(100_000).collect();
    hostile.extend(b"\nNESTLING-LEVEL 9 up\nNESTLING-LEVEL 1 down status=\xff\n");
    hostile.extend(vec![b'A'; 5_000_000]);
    let (status, notes) = play(&hostile, Ok(RunOutcome::PowerOff));
    assert_eq!(status, Ok(1));
    assert_eq!(notes.len(), 2);
}

#[test]
fn the_last_line_counts_without_its_end() {
    let cut = DEPTH_2.replace(
        "uptime=12.5\r\n[   12.6] reboot: Power down\r\n",
        "uptime=12.5",
    );
    assert_eq!(play(cut.as_bytes(), Ok(RunOutcome::PowerOff)).0, Ok(0));
}

#[test]
fn amd_comes_later() {
    use clap::Parser;
    let line = ["nestling", "demo", "--virt", "amd"];
    let parsed = crate::args::CommandLine::try_parse_from(line).expect("parses");
    let crate::args::Command::Demo(args) = parsed.command else {
        panic!("demo");
    };
    let runner = Recording {
        console: Vec::new(),
        end: Ok(RunOutcome::PowerOff),
    };
    let failure = run(&args, &runner).expect_err("not built");
    assert!(failure.why.contains("AMD-V comes later"));
}
