//! Hypervisors inside: a few combinations; `cargo xtask e2e-all` runs all. Each looks through the logs of the kernels
//! of all levels.

use std::time::Duration;

use e2e::nested::Setup;

/// On a busy machine of two slow processors. A run that hangs is ended by this, nothing else.
const PATIENCE: Duration = Duration::from_secs(1500);

fn run(name: &str) {
    let setup = Setup::named(name).expect("a name of the list");
    let time = setup
        .run(PATIENCE)
        .unwrap_or_else(|error| panic!("{error:#}"));
    println!("{name} took {time:?}");
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
