//! `nestling run` confines itself before its guest runs: seen from outside, in `/proc`.

use std::fs;
use std::time::{Duration, Instant};

use e2e::guest::Guest;
use e2e::kernel::{echo_until_q, power_off, print, spin};
use e2e::program::{Run, Running};
use e2e::skipped;
use rustix::process::Signal;

/// The values of `key` in the status of every thread of the program.
fn of_all_threads(running: &Running, key: &str) -> Vec<String> {
    let tasks = format!("/proc/{}/task", running.id());
    let status = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path().join("status")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.trim_start_matches(':').trim().to_owned())
    };
    let tasks = fs::read_dir(tasks).expect("it runs");
    tasks.filter_map(|entry| status(entry.ok()?)).collect()
}

/// Whether this host has all that confines; if not, the test says so.
fn host_confines() -> bool {
    let doctor = Run::nestling(["doctor", "--format", "json"]).end();
    doctor.expect_code(0);
    let facts = doctor.json()["host"]["confinement"].clone();
    let complete = facts["no_seccomp"].is_null() && facts["no_landlock"].is_null();
    if !complete {
        skipped(&format!(
            "this host cannot confine a process in full: {facts}"
        ));
    }
    complete
}

fn assert_confined(running: &Running) {
    let filters = of_all_threads(running, "Seccomp");
    assert!(filters.len() > 3, "the program has several threads");
    // proc(5): 2 is SECCOMP_MODE_FILTER.
    assert!(filters.iter().all(|mode| mode == "2"), "{filters:?}");
    let privileges = of_all_threads(running, "NoNewPrivs");
    assert!(privileges.iter().all(|set| set == "1"), "{privileges:?}");
}

#[test]
fn every_thread_is_confined_before_the_guest_runs() {
    if !host_confines() {
        return;
    }
    for clock in ["host", "virtual"] {
        let guest = Guest::new(&[print(b"up"), spin()]);
        let options = ["--confine", "require", "--clock", clock];
        let mut running = guest.run(&options).start();
        running.await_output(b"up");
        assert_confined(&running);
        running.signal(Signal::TERM);
        running.end().expect_code(143);
    }
}

#[test]
fn a_user_can_do_without() {
    let guest = Guest::new(&[print(b"up"), spin()]);
    let mut running = guest.run(&["--confine", "off"]).start();
    running.await_output(b"up");
    let filters = of_all_threads(&running, "Seccomp");
    // The tests themselves may be confined by whoever runs them.
    let own = fs::read_to_string("/proc/self/status").expect("Linux has it");
    assert!(
        filters
            .iter()
            .all(|mode| own.contains(&format!("Seccomp:\t{mode}")))
    );
    running.signal(Signal::TERM);
    running.end().expect_code(143);
}

#[test]
fn an_ordinary_user_is_confined_too() {
    if !host_confines() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        skipped("only root can become another user; the other tests ran as an ordinary one");
        return;
    }
    const NOBODY: u32 = 65_534;
    let guest = Guest::new(&[print(b"up"), spin()]);
    // A copy of kernel and program that anybody may read.
    let folder = tempfile::tempdir().expect("a directory");
    let mode = std::os::unix::fs::PermissionsExt::from_mode;
    fs::set_permissions(folder.path(), mode(0o755)).expect("it is ours");
    let (kernel, program) = (folder.path().join("kernel"), folder.path().join("nestling"));
    fs::copy(guest.path(), &kernel).expect("copied");
    fs::copy(e2e::program::path(), &program).expect("copied");
    fs::set_permissions(&kernel, mode(0o644)).expect("it is ours");
    let mut running = Run::program(&program)
        .args(["run", "--engine", "soft", "--memory", "128M"])
        .args(["--confine", "require", "--kernel"])
        .args([&kernel])
        .user(NOBODY)
        .start();
    running.await_output(b"up");
    assert_confined(&running);
    running.signal(Signal::INT);
    running.end().expect_code(130);
}

#[test]
fn what_goes_in_and_out_still_does() {
    let text = [b"0123456789".repeat(10_000), b"q".to_vec()].concat();
    let ended = Guest::new(&[echo_until_q(), power_off()])
        .run(&["--stats"])
        .input(&text)
        .end();
    ended.expect_code(0);
    assert_eq!(ended.output, text);
}

/// The state of the process as proc(5) names it.
fn state(running: &Running) -> char {
    let status = fs::read_to_string(format!("/proc/{}/stat", running.id())).expect("it runs");
    let after_name = status.rsplit_once(") ").expect("proc(5)").1;
    after_name.chars().next().expect("proc(5)")
}

#[test]
fn a_stop_by_the_terminal_still_stops() {
    let guest = Guest::new(&[print(b"up"), spin()]);
    let mut running = guest.run(&[]).start();
    running.await_output(b"up");
    for (signal, stopped) in [(Signal::TSTP, true), (Signal::CONT, false)] {
        running.signal(signal);
        let asked = Instant::now();
        while (state(&running) == 'T') != stopped {
            assert!(
                asked.elapsed() < Duration::from_secs(60),
                "{}",
                state(&running)
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    running.signal(Signal::TERM);
    running.end().expect_code(143);
}

/// A level's kernel is Debian's; `run` in it confines itself as far as that kernel can.
#[test]
fn inside_a_guest_nothing_is_missing() {
    let ended = e2e::guest::Level1::of(2)
        .run(&["--nested", "intel", "--clock", "virtual"])
        .end();
    ended.expect_code(0);
    let console = ended.text();
    assert!(
        console.contains("NESTLING-LEVEL 2 down status=0"),
        "{console}"
    );
    assert!(!console.contains("not confined"), "{console}");
}
