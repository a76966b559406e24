//! Hypervisors inside: a few combinations; `cargo xtask e2e-all` runs all. Each looks through the logs of the kernels
//! of all levels.

use std::time::Duration;

use e2e::nested::Setup;
use e2e::{cache, guest, kernel_log};

/// On a busy machine of two slow processors. A run that hangs is ended by this, nothing else.
const PATIENCE: Duration = Duration::from_secs(1500);

fn run(name: &str) {
    let setup = Setup::named(name).expect("a name of the list");
    let time = setup
        .run(PATIENCE)
        .unwrap_or_else(|error| panic!("{error:#}"));
    println!("{name} took {time:?}");
}

/// The whole log of both kernels: each has a driver for the performance counters it sees, the outer one a watchdog that
/// lives on one of them, and neither says what it says of a processor without.
#[test]
fn both_levels_have_performance_counters() {
    let folder = tempfile::tempdir().expect("a folder");
    cache::write_images(2, folder.path())
        .args(["--append", "loglevel=7"])
        .cache(cache::shared())
        .end()
        .expect_code(0);
    let append = std::fs::read_to_string(folder.path().join("append.txt")).expect("text");
    let ended = guest::run_kernel(&folder.path().join("vmlinuz"))
        .args([
            "--engine", "soft", "--nested", "intel", "--clock", "virtual",
        ])
        .args(["--memory", "1G", "--append", append.trim(), "--initrd"])
        .args([folder.path().join("initramfs.cpio")])
        .deadline(PATIENCE)
        .end();
    ended.expect_code(0);
    let console = ended.text();
    let bad: Vec<_> = kernel_log::forbidden(&console).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    let count = |what: &str| console.matches(what).count();
    assert_eq!(count("Intel PMU driver."), 2, "{console}");
    assert_eq!(count("NMI watchdog: Enabled."), 1, "{console}");
    assert_eq!(count("LOCKUP"), 0, "{console}");
}

/// SeaBIOS in real mode in an unrestricted guest, and the host's processor.
#[test]
fn qemu_in_level_1() {
    run("qemu");
}

/// No EPT, so no unrestricted guest either: shadow paging, real mode in virtual-8086 mode; a named model.
#[test]
fn qemu_in_level_1_without_ept() {
    run("qemu-no-ept-named-model");
}

#[test]
fn our_own_in_level_1_without_ept() {
    run("nestling-no-ept");
}
