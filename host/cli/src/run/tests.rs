use super::*;
use crate::args::{Command, CommandLine};
use crate::artifacts::kernel_image;
use clap::Parser;

fn args(extra: &[&str]) -> RunArgs {
    let line = ["nestling", "run"].iter().chain(extra);
    match CommandLine::try_parse_from(line).expect("parses").command {
        Command::Run(args) => args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn output_that_nobody_took_is_told() {
    assert_eq!(loss("console", 0), None);
    let text = loss("debug console", 3000).expect("something is lost");
    assert_eq!(
        text,
        "the last 3000 bytes of the guest's debug console are lost: nobody took them in time; have them read, or \
         send them to a file"
    );
}

#[test]
fn the_end_gives_the_status() {
    let none = None;
    assert_eq!(exit_status(RunOutcome::PowerOff, none), 0);
    assert_eq!(exit_status(RunOutcome::Reset, none), 10);
    assert_eq!(exit_status(RunOutcome::TripleFault, none), 12);
    assert_eq!(exit_status(RunOutcome::DebugExit(0), none), 1);
    assert_eq!(exit_status(RunOutcome::DebugExit(0x10), none), 0x21);
    assert_eq!(exit_status(RunOutcome::DebugExit(0xff), none), 0xff);
    assert_eq!(exit_status(RunOutcome::Timeout, none), 124);
    let signal = Some(StopReason::Signal(15));
    assert_eq!(exit_status(RunOutcome::Interrupted, signal), 143);
    let key = Some(StopReason::EscapeKey);
    assert_eq!(exit_status(RunOutcome::Interrupted, key), 14);
}

#[test]
fn a_missing_kernel_is_named() {
    let failure = request(&args(&["--kernel", "/nonexistent/vmlinuz"])).expect_err("missing");
    assert_eq!(
        failure.to_string(),
        "cannot read /nonexistent/vmlinuz: No such file or directory; check the path"
    );
}

#[test]
fn a_kernel_that_is_none_is_refused() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "hello").expect("written");
    let path = file.path().display().to_string();
    let failure = request(&args(&["--kernel", &path])).expect_err("no kernel");
    assert!(failure.why.starts_with("it is no kernel"), "{failure}");
}

#[test]
fn too_little_memory_is_refused() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), kernel_image::tests::made_up("6.1")).expect("written");
    let path = file.path().display().to_string();
    let little = args(&["--kernel", &path, "--memory", "32M"]);
    let failure = request(&little).expect_err("too little");
    assert_eq!(failure.advice, "give --memory 65M or more");
}

#[test]
fn a_request_says_what_was_asked() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), kernel_image::tests::made_up("6.1")).expect("written");
    let path = file.path().display().to_string();
    let line = [
        "--kernel",
        &path,
        "--engine",
        "soft",
        "--clock",
        "virtual",
        "--append",
        "quiet",
        "--memory",
        "256M",
        "--debug-exit",
        "--timeout",
        "9",
    ];
    let request = request(&args(&line)).expect("good");
    assert_eq!(request.engine, Engine::Soft);
    assert_eq!(request.nested, NestedChoice::Intel);
    assert_eq!(request.append, "quiet");
    assert_eq!(request.memory_bytes, 256 << 20);
    assert!(request.debug_exit);
    assert_eq!(request.timeout, Some(std::time::Duration::from_secs(9)));
}

#[test]
fn amd_on_the_soft_engine_comes_later() {
    assert!(check_nested(NestedChoice::Amd, Engine::Soft).is_err());
    assert!(check_nested(NestedChoice::Amd, Engine::Kvm).is_ok());
    assert!(check_nested(NestedChoice::Intel, Engine::Soft).is_ok());
}
