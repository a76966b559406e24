use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;

use super::calls::{self, CallSet};
use super::{Confined, files};

/// Names what a child of these tests does once it is confined.
const DEED: &str = "NESTLING_CONFINED_DEED";
/// What a child exits with that was not stopped.
const DONE: i32 = 23;

/// The other half of the tests: a process of its own, since confinement cannot be undone. It does nothing where no
/// test started it.
#[test]
fn a_confined_child() {
    let Ok(deed) = std::env::var(DEED) else {
        return;
    };
    let before = File::open("/proc/version").expect("Linux has it");
    let (go, start) = channel();
    let (done, ended) = channel();
    let deed_elsewhere = deed.strip_prefix("thread ").map(str::to_owned);
    // A thread from before the confinement.
    let elder = std::thread::spawn(move || {
        let _ = start.recv();
        if let Some(deed) = deed_elsewhere {
            done.send(perform(&deed, None)).expect("it is awaited");
        }
    });
    if deed != "open a file under seccomp alone" {
        files::shut().expect("this host has Landlock");
    }
    if deed != "open a file under Landlock alone" {
        calls::limit(CallSet::Soft).expect("this host has seccomp");
    }
    go.send(()).expect("it waits");
    let result = match deed.strip_prefix("thread ") {
        Some(_) => ended.recv().expect("it sends"),
        None => perform(&deed, Some(before)),
    };
    elder.join().expect("it does not panic");
    println!("result: {result}");
    std::io::stdout().flush().expect("it is read");
    std::process::exit(DONE);
}

fn perform(deed: &str, before: Option<File>) -> String {
    let told = |result: std::io::Result<()>| match result {
        Ok(()) => "possible".to_owned(),
        Err(e) => format!("{:?}", e.kind()),
    };
    match deed {
        "read an open file" => {
            let mut text = String::new();
            let mut file = before.expect("it is open");
            told(file.read_to_string(&mut text).map(|_| ()))
        }
        "start a thread" => told(
            std::thread::Builder::new()
                .name("younger".into())
                .spawn(|| vec![1_u8; 1 << 20].len())
                .map(|thread| assert_eq!(thread.join().ok(), Some(1 << 20))),
        ),
        "open a file" | "open a file under seccomp alone" | "open a file under Landlock alone" => {
            told(File::open("/proc/version").map(|_| ()))
        }
        "make a socket" => told(std::net::UdpSocket::bind("127.0.0.1:0").map(|_| ())),
        "start a program" => told(Command::new("/bin/true").status().map(|_| ())),
        "panic" => told(
            std::thread::Builder::new()
                .spawn(|| panic!("on purpose"))
                .map(|thread| assert!(thread.join().is_err())),
        ),
        other => unreachable!("no deed {other}"),
    }
}

fn child(deed: &str) -> Output {
    Command::new(std::env::current_exe().expect("it runs"))
        .args(["--exact", "confine::tests::a_confined_child", "--nocapture"])
        .env(DEED, deed)
        .env("RUST_BACKTRACE", "1")
        .stdin(Stdio::null())
        .output()
        .expect("it starts")
}

/// Whether this host has what the tests are about; if not, they say so.
fn host_confines() -> bool {
    let missing = Confined {
        without_files: files::offered().err(),
        without_calls: calls::offered().err(),
    };
    if let Some(why) = missing.shortfall() {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: this host cannot confine: {why}"
        );
        return false;
    }
    true
}

#[test]
fn what_a_vm_needs_stays_possible() {
    if !host_confines() {
        return;
    }
    for deed in [
        "read an open file",
        "start a thread",
        "thread start a thread",
        "panic",
    ] {
        let output = child(deed);
        assert_eq!(output.status.code(), Some(DONE), "{deed}: {output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("result: possible"), "{deed}: {text}");
    }
}

#[test]
fn files_cannot_be_opened_by_any_thread() {
    if !host_confines() {
        return;
    }
    // Each of the two layers suffices.
    for deed in [
        "open a file",
        "open a file under seccomp alone",
        "open a file under Landlock alone",
        "thread open a file",
    ] {
        let output = child(deed);
        assert_eq!(output.status.code(), Some(DONE), "{deed}: {output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("result: PermissionDenied"), "{deed}: {text}");
    }
}

#[test]
fn a_call_that_is_not_on_the_list_ends_the_process() {
    if !host_confines() {
        return;
    }
    for deed in ["make a socket", "thread make a socket", "start a program"] {
        let output = child(deed);
        assert_eq!(
            output.status.signal(),
            Some(libc::SIGSYS),
            "{deed}: {output:?}"
        );
    }
}

#[test]
fn the_tables_do_not_contradict_themselves() {
    for set in [CallSet::Soft, CallSet::Kvm] {
        calls::filters(set).expect("they compile");
        let mut seen = BTreeSet::new();
        for (number, unconditional) in calls::lines(set) {
            let first = seen.insert(number);
            assert!(first || !unconditional, "call {number} is kept twice");
        }
        for number in calls::refused() {
            assert!(seen.insert(number), "call {number} is kept and refused");
        }
    }
}

#[test]
fn a_shortfall_is_told() {
    let mut confined = Confined::default();
    assert_eq!(confined.shortfall(), None);
    confined.without_files = Some("no Landlock".into());
    assert_eq!(confined.shortfall().as_deref(), Some("no Landlock"));
    confined.without_calls = Some("no seccomp".into());
    assert_eq!(
        confined.shortfall().as_deref(),
        Some("no Landlock, no seccomp")
    );
}
