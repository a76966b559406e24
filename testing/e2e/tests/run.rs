//! `nestling run`: how a guest's end becomes the program's, and what goes in and out meanwhile.

use std::time::Duration;

use e2e::guest::{Guest, Level1};
use e2e::kernel::{
    again_and_again, debug_exit, echo_until_q, halt, out8, power_off, print, reset_by_chipset,
    reset_by_keyboard, spin, triple_fault,
};
use e2e::program::{Ended, Run, Running};
use e2e::skipped;
use rustix::process::Signal;

#[test]
fn a_stock_kernel_runs_to_power_off() {
    let ended = Level1::of(1).run(&["--nested", "off"]).end();
    ended.expect_code(0);
    let console = ended.text();
    assert!(console.contains("NESTLING-LEVEL 1 up kernel="), "{console}");
    assert!(console.contains(" virt=none "), "{console}");
    assert!(
        console.contains("NESTLING-LEVEL 1 down status=0"),
        "{console}"
    );
    assert_eq!(ended.messages, "nestling: engine soft: asked for\n");
}

/// More processors than the host has, on the host's clock, interpreted and translated: all come up, and the kernel
/// misses nobody.
#[test]
fn eight_processors_come_up_and_none_stalls() {
    let level = Level1::of(1).with_words("loglevel=7");
    for (cpus, jit) in [("8", "off"), ("8", "on"), ("2", "on")] {
        let options = ["--nested", "off", "--cpus", cpus, "--jit", jit];
        let ended = level.run(&options).end();
        ended.expect_code(0);
        let console = ended.text();
        assert!(console.contains(&format!(" cpus={cpus}")), "{console}");
        assert_no_complaint(&console);
    }
}

/// The kernel whose log this is misses no processor and trusts its clocks.
fn assert_no_complaint(log: &str) {
    for complaint in [
        "stall",
        "lockup",
        "do_boot_cpu failed",
        "TSC unstable",
        "Marking clocksource",
        "calibration failed",
        "interrupts lost",
        "lost interrupt",
        "Lost ",
        "nobody cared",
        "WARNING:",
        "BUG:",
    ] {
        assert!(!log.contains(complaint), "{complaint}: {log}");
    }
}

/// On the host's clock, a guest whose process stands still for seconds misses them and goes on.
#[test]
fn a_run_that_stood_still_goes_on_without_complaints() {
    const PAUSE: Duration = Duration::from_secs(5);
    let level = Level1::of(1).with_words("loglevel=7");
    for (cpus, at) in [
        // Before the kernel has chosen its clock, and after; long before it goes off.
        ("1", "Memory: "),
        ("2", "registered taskstats"),
    ] {
        let mut running = level.run(&["--nested", "off", "--cpus", cpus]).start();
        running.await_within_output(at.as_bytes());
        running.signal(Signal::STOP);
        std::thread::sleep(PAUSE);
        running.signal(Signal::CONT);
        let ended = running.end();
        ended.expect_code(0);
        let log = ended.text();
        assert!(log.contains("NESTLING-LEVEL 1 down status=0"), "{log}");
        assert_no_complaint(&log);
        let seconds: f64 = last_stamp(&log).expect("the log has times");
        assert!(
            seconds >= PAUSE.as_secs_f64(),
            "its time stood still: {log}"
        );
    }
}

/// A processor that does not tell its frequency, so that Linux measures the TSC against the PIT: reads that belong
/// together are not torn apart by a host that gives the vCPU's processor to others.
#[test]
fn a_busy_host_does_not_spoil_the_kernels_measurements() {
    let level = Level1::of(1).with_words("loglevel=7");
    let options = ["--nested", "off", "--cpu", "nestling-amd"];
    let mut load = Load::of(4);
    let ended = level.run(&options).end();
    assert!(load.0.iter_mut().all(|busy| !busy.has_ended()));
    ended.expect_code(0);
    let log = ended.text();
    assert!(log.contains("tsc: Fast TSC calibration using PIT"), "{log}");
    assert!(!log.contains("Unable to calibrate"), "{log}");
    assert!(log.contains("AMD PMU driver."), "{log}");
    assert_eq!(e2e::kernel_log::forbidden(&log).next(), None, "{log}");
    assert_no_complaint(&log);
}

/// Linux waits for its first ticks in a loop of PAUSE and RDTSC, in which a vCPU that has others must not give the
/// host's processor away time and again: too few ticks come, and the kernel panics.
#[test]
fn two_processors_get_their_timer_on_a_busy_host() {
    let level = Level1::of(1).with_words("loglevel=7");
    let mut load = Load::of(4);
    let ended = level.run(&["--nested", "off", "--cpus", "2"]).end();
    assert!(load.0.iter_mut().all(|busy| !busy.has_ended()));
    let log = ended.text();
    for complaint in ["timer not connected", "timer doesn't work", "Kernel panic"] {
        assert!(!log.contains(complaint), "{complaint}: {log}");
    }
    ended.expect_code(0);
    assert!(log.contains(" cpus=2"), "{log}");
}

/// The last time of a kernel's log, in seconds.
fn last_stamp(log: &str) -> Option<f64> {
    log.lines().rev().find_map(|line| {
        let (_, rest) = line.split_once('[')?;
        rest.split_once(']')?.0.trim().parse().ok()
    })
}

#[test]
fn a_guest_that_switches_itself_off_ends_with_0() {
    let ended = Guest::new(&[print(b"bye\r\n"), power_off()]).run(&[]).end();
    ended.expect_code(0);
    assert_eq!(ended.output, b"bye\r\n");
}

#[test]
fn a_debug_exit_gives_its_value() {
    for (value, code) in [(0_u8, 1), (1, 3), (0x10, 0x21), (0x7f, 0xff), (0xff, 0xff)] {
        let guest = Guest::new(&[print(b"x"), debug_exit(value)]);
        let ended = guest.run(&["--debug-exit"]).end();
        ended.expect_code(code);
        assert_eq!(ended.output, b"x");
    }
}

#[test]
fn without_the_option_nothing_is_at_the_debug_exit_port() {
    let ended = Guest::new(&[debug_exit(3), power_off()]).run(&[]).end();
    ended.expect_code(0);
}

fn assert_says(ended: &Ended, code: i32, line: &str) {
    ended.expect_code(code);
    let expected = format!("nestling: engine soft: asked for\nnestling: {line}\n");
    assert_eq!(ended.messages, expected);
}

#[test]
fn a_reset_is_told_apart() {
    for reset in [reset_by_chipset(), reset_by_keyboard()] {
        let ended = Guest::new(&[reset]).run(&[]).end();
        assert_says(&ended, 10, "the guest reset itself");
    }
}

#[test]
fn a_triple_fault_is_told_apart() {
    for clock in ["host", "virtual"] {
        let ended = Guest::new(&[print(b"ouch"), triple_fault()])
            .run(&["--clock", clock])
            .end();
        let line = "the guest's processor shut down: triple fault";
        assert_says(&ended, 12, line);
        assert_eq!(ended.output, b"ouch");
    }
}

#[test]
fn a_guest_that_hangs_is_ended_by_the_timeout() {
    for hang in [spin(), halt()] {
        for clock in ["host", "virtual"] {
            let ended = Guest::new(std::slice::from_ref(&hang))
                .run(&["--timeout", "1", "--clock", clock])
                .end();
            let line = "the guest did not end in the time given by --timeout; give it more, or \
                        look at its console";
            assert_says(&ended, 124, line);
        }
    }
}

#[test]
fn a_signal_ends_it() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let guest = Guest::new(&[print(b"up"), spin()]);
        let mut running = guest.run(&[]).start();
        running.await_output(b"up");
        running.signal(signal);
        let ended = running.end();
        assert_says(&ended, code, "stopped");
        assert_eq!(ended.output, b"up");
    }
}

#[test]
fn standard_input_reaches_the_guest() {
    let text: Vec<u8> = (b' '..b'q').chain([0, 0xff, b'\n', b'q']).collect();
    let ended = Guest::new(&[echo_until_q(), power_off()])
        .run(&[])
        .input(&text)
        .end();
    ended.expect_code(0);
    assert_eq!(ended.output, text);
}

#[test]
fn the_end_of_the_input_is_not_the_end_of_the_guest() {
    let guest = Guest::new(&[echo_until_q(), power_off()]);
    let mut running = guest.run(&[]).input(b"abc").start();
    running.await_output(b"abc");
    std::thread::sleep(Duration::from_secs(1));
    assert!(!running.has_ended());
    running.signal(Signal::TERM);
    running.end().expect_code(143);
}

#[test]
fn a_console_nobody_reads_ends_the_run() {
    let guest = Guest::new(&[again_and_again(print(b"a"))]);
    let ended = Run::program("/bin/sh")
        .args(["-c", r#"{ "$@"; echo "status $?" >&2; } | head -c 1"#, "sh"])
        .args([e2e::program::path()])
        .args(["run", "--engine", "soft", "--kernel"])
        .args([guest.path()])
        .end();
    assert_eq!(ended.output, b"a");
    assert!(ended.messages.contains("status 14\n"), "{}", ended.messages);
}

/// Nobody reads, though the pipe is open. What does not fit into it cannot be written, and the guest is over.
#[test]
fn a_console_that_is_stuck_does_not_hold_up_the_end() {
    let guest = Guest::new(&[print(&[b'a'; 200_000]), power_off()]);
    let mut running = Run::program("/bin/sh")
        .args(["-c", r#"{ "$@"; echo "status $?" >&2; } | sleep 500"#, "sh"])
        .args([e2e::program::path()])
        .args(["run", "--engine", "soft", "--kernel"])
        .args([guest.path()])
        .start();
    running.await_message("bytes of the guest's console are lost: nobody took them in time;");
    running.await_message("status 0\n");
}

/// Nor does standard error with the debug console, also if there is something to say at the end.
#[test]
fn standard_error_that_is_stuck_does_not_hold_up_the_end() {
    let guest = Guest::new(&[again_and_again(out8(0x402, b'a'))]);
    let script = r#"{ { "$@" 2>&1 >/dev/null; echo "status $?" >&3; } | sleep 500; } 3>&1"#;
    let mut running = Run::program("/bin/sh")
        .args(["-c", script, "sh"])
        .args([e2e::program::path()])
        .args([
            "run",
            "--engine",
            "soft",
            "--debugcon",
            "-",
            "--timeout",
            "5",
        ])
        .args(["--kernel"])
        .args([guest.path()])
        .start();
    running.await_output(b"status 124\n");
}

/// What a run in virtual time shows of itself.
#[derive(Debug, PartialEq, Eq)]
struct VirtualRun {
    console: String,
    instructions: u64,
    guest_ms: u64,
    memory: String,
}

fn virtual_run(level: &Level1, jit: &str) -> VirtualRun {
    let ended = level
        .run(&[
            "--clock", "virtual", "--nested", "intel", "--stats", "--jit", jit,
        ])
        .end();
    ended.expect_code(0);
    let mut lines = ended.messages.lines();
    let (line, words) = lines
        .find_map(|line| Some((line, line.strip_prefix("nestling: stats ")?)))
        .expect("the figures");
    println!("{line}");
    let word = |key: &str| {
        let found = words.split(' ').find_map(|word| word.strip_prefix(key));
        found.unwrap_or_else(|| panic!("no {key} in: {line}"))
    };
    let figure = |key: &str| word(key).parse().expect("a number");
    VirtualRun {
        console: ended.text(),
        instructions: figure("instructions="),
        guest_ms: figure("guest_ms="),
        memory: word("memory=").to_owned(),
    }
}

/// Processes that keep the host's processors busy until this is dropped.
struct Load(Vec<Running>);

impl Load {
    fn of(count: usize) -> Self {
        let busy = || {
            Run::program("/bin/sh")
                .args(["-c", "while :; do :; done"])
                .start()
        };
        Self((0..count).map(|_| busy()).collect())
    }
}

#[test]
fn in_virtual_time_two_runs_are_the_same_also_on_a_busy_host() {
    let level = Level1::of(1);
    let first = virtual_run(&level, "on");
    let mut load = Load::of(4);
    let second = virtual_run(&level, "on");
    assert!(load.0.iter_mut().all(|busy| !busy.has_ended()));
    assert!(first.console.contains("NESTLING-LEVEL 1 down status=0"));
    assert!(first.instructions > 10_000_000, "{first:?}");
    assert_eq!(first.memory.len(), 64, "{first:?}");
    assert_eq!(first, second);
}

/// The interpreter is the translator's oracle: a boot is the same instruction for instruction.
#[test]
fn translated_and_interpreted_boots_are_the_same() {
    let level = Level1::of(1);
    let interpreted = virtual_run(&level, "off");
    assert_eq!(virtual_run(&level, "force"), interpreted);
    assert_eq!(virtual_run(&level, "on"), interpreted);
}

/// What this machine's KVM is good for, by what `doctor` says.
#[derive(PartialEq, Eq)]
enum HostKvm {
    RunsGuests,
    /// It emulates, and not every instruction.
    Emulates,
    Unusable,
}

fn host_kvm() -> HostKvm {
    let doctor = Run::nestling(["doctor", "--format", "json"]).end();
    doctor.expect_code(0);
    let kvm = &doctor.json()["host"]["kvm"];
    match (
        kvm["device"]["state"].as_str(),
        kvm["hardware_speed"].as_bool(),
    ) {
        (Some("open"), Some(true)) => HostKvm::RunsGuests,
        (Some("open"), Some(false)) => HostKvm::Emulates,
        _ => HostKvm::Unusable,
    }
}

#[test]
fn the_kvm_engine_ends_the_same_ways() {
    let host = host_kvm();
    if host == HostKvm::Unusable {
        skipped("this machine has no KVM that runs guests");
        return;
    }
    let mut ends = vec![
        (debug_exit(0x10), 0x21),
        (power_off(), 0),
        (reset_by_chipset(), 10),
        (reset_by_keyboard(), 10),
        (spin(), 124),
        (halt(), 124),
    ];
    if host == HostKvm::Emulates {
        skipped("this machine's KVM emulates and knows no triple faults");
    } else {
        ends.push((triple_fault(), 12));
    }
    for (end, code) in ends {
        let guest = Guest::new(&[print(b"k"), end]);
        let ended = e2e::guest::run_kernel(guest.path())
            .args(["--engine", "kvm", "--nested", "off", "--memory", "128M"])
            .args(["--debug-exit", "--timeout", "10"])
            .end();
        ended.expect_code(code);
        assert_eq!(ended.output, b"k");
    }
}
