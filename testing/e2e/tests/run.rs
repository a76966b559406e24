//! `nestling run`: how a guest's end becomes the program's, and what goes in and out meanwhile.

use std::time::Duration;

use e2e::guest::{Guest, Level1};
use e2e::kernel::{
    debug_exit, echo_until_q, halt, power_off, print, reset_by_chipset, reset_by_keyboard, spin,
    triple_fault,
};
use e2e::program::{Ended, Run};
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
            let ended = Guest::new(&[print(b"."), hang.clone()])
                .run(&["--timeout", "1", "--clock", clock])
                .deadline(Duration::from_secs(120))
                .end();
            let line = "the guest did not end in the time given by --timeout; give it more, or \
                        look at its console";
            assert_says(&ended, 124, line);
            assert_eq!(ended.output, b".");
        }
    }
}

#[test]
fn a_signal_ends_it() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let guest = Guest::new(&[spin()]);
        let running = guest.run(&[]).start();
        // Before the program watches for signals they end it too, with the same status.
        std::thread::sleep(Duration::from_millis(500));
        running.signal(signal);
        running.end().expect_code(code);
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
    let ended = Guest::new(&[echo_until_q(), power_off()])
        .run(&["--timeout", "1"])
        .input(b"abc")
        .end();
    ended.expect_code(124);
    assert_eq!(ended.output, b"abc");
}

#[test]
fn a_console_nobody_reads_ends_the_run() {
    let shell = Run::program("/bin/sh")
        .args(["-c", r#"{ "$@"; echo "status $?" >&2; } | head -c 1"#, "sh"])
        .args([e2e::program::path()]);
    let guest = Guest::new(&[echo_until_q().repeat(2), spin()]);
    let ended = shell
        .args(["run", "--engine", "soft", "--kernel"])
        .args([guest.path()])
        .input(&[b'a'; 5_000])
        .end();
    assert_eq!(ended.output, b"a");
    assert!(ended.messages.contains("status 14\n"), "{}", ended.messages);
}

/// What a run of level 1 printed, and what it counted.
fn virtual_run(level: &Level1) -> (Vec<u8>, String) {
    let ended = level
        .run(&["--clock", "virtual", "--nested", "intel"])
        .env("NESTLING_LOG", "nestling=info")
        .end();
    ended.expect_code(0);
    let counted = ended
        .messages
        .split_once("retired: Some(")
        .and_then(|(_, rest)| rest.split_once(')'))
        .map(|(count, _)| count.to_owned());
    let counted = counted.unwrap_or_else(|| panic!("no count in {}", ended.messages));
    (ended.output, counted)
}

#[test]
fn in_virtual_time_two_runs_are_the_same() {
    let level = Level1::of(1);
    let first = virtual_run(&level);
    let second = virtual_run(&level);
    println!("{} instructions", first.1);
    assert!(first.0.ends_with(b"\n"));
    assert_eq!(
        String::from_utf8_lossy(&first.0),
        String::from_utf8_lossy(&second.0)
    );
    assert_eq!(first.1, second.1, "instructions");
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
