//! `nestling run --firmware`: Debian's SeaBIOS and OVMF from the reset vector on.

use std::fs;
use std::time::Duration;

use e2e::cache;
use e2e::program::Run;

/// A run with firmware, on the soft engine. It waits for seconds to pass, busily, so as a rule on the host's time.
fn firmware(which: &str, options: &[&str]) -> Run {
    let fixed = ["run", "--firmware", which, "--engine", "soft", "--memory"];
    Run::nestling(fixed)
        .args(["256M", "--timeout", "500"])
        .args(options)
        .cache(cache::shared())
}

#[test]
fn seabios_looks_for_something_to_boot() {
    let folder = tempfile::tempdir().expect("a directory");
    let log = folder.path().join("debugcon");
    let log_text = log.display().to_string();
    let run = firmware("bios", &["--debugcon", &log_text]);
    let mut running = run.typed().start();
    running.await_within_output(b"SeaBIOS (version 1.16");
    running.await_within_output(b"Booting from Hard Disk...");
    running.await_within_output(b"No bootable device.");
    running.signal(rustix::process::Signal::TERM);
    running.end().expect_code(143);
    let said = fs::read_to_string(log).expect("it is text");
    for line in [
        "Running on QEMU (q35)",
        "QEMU fw_cfg DMA interface supported",
        "qemu/e820: addr 0x0000000000000000 len 0x0000000010000000 [RAM]",
        "PCIe: using q35 mmconfig at 0xb0000000",
        "Found 1 cpu(s) max supported 1 cpu(s)",
        "Copying SMBIOS from",
        // Found by the RSDP, read by its signature.
        "table(50434146)=",
        "ACPI: parse DSDT at",
        "No bootable device.",
    ] {
        assert!(said.contains(line), "{line}:\n{said}");
    }
}

/// SeaBIOS starts its processors with one message after the other and waits for the last of them, for ever were one
/// lost; on virtual time all of them move the clock. A few times, since it is a matter of when their threads look.
#[test]
fn seabios_finds_two_processors_on_virtual_time() {
    const LIMIT: Duration = Duration::from_secs(60);
    let folder = tempfile::tempdir().expect("a directory");
    let log = folder.path().join("debugcon");
    let log_text = log.display().to_string();
    let options = ["--cpus", "2", "--clock", "virtual", "--debugcon", &log_text];
    for _ in 0..3 {
        let mut running = firmware("bios", &options).deadline(LIMIT).start();
        // What comes first on the console; then it has them.
        running.await_within_output(b"SeaBIOS (version 1.16");
        running.signal(rustix::process::Signal::TERM);
        running.end().expect_code(143);
        let said = fs::read_to_string(&log).expect("it is text");
        let line = "Found 2 cpu(s) max supported 2 cpu(s)";
        assert!(said.contains(line), "{said}");
    }
}

/// The shell of OVMF keeps a variable in the file and finds it again; `reset -s` is ACPI's soft off.
#[test]
fn ovmf_comes_to_its_shell_and_keeps_variables() {
    const PROMPT: &[u8] = b"Shell> ";
    const NAME: &str = "nestling";
    let folder = tempfile::tempdir().expect("a directory");
    let variables = folder.path().join("variables").display().to_string();
    let shell = |command: &str| {
        let mut running = firmware("uefi", &["--firmware-vars", &variables])
            .typed()
            .start();
        running.await_within_output(PROMPT);
        running.send(command.as_bytes());
        running.send(b"\r");
        running.send(b"reset -s\r");
        let ended = running.end();
        ended.expect_code(0);
        ended.text()
    };
    let text = shell(&format!(
        "setvar {NAME} -guid 00112233-4455-6677-8899-aabbccddeeff -nv -bs =0x4711"
    ));
    assert!(text.contains("UEFI Interactive Shell"), "{text}");
    let kept = fs::read(&variables).expect("it is there");
    assert_eq!(kept.len(), 540_672, "the size of the template");
    // Variables have names of 16-bit characters.
    let name: Vec<u8> = NAME.encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert!(kept.windows(name.len()).any(|w| w == name));
    let text = shell(&format!(
        "setvar {NAME} -guid 00112233-4455-6677-8899-aabbccddeeff"
    ));
    assert!(text.contains("11 47"), "{text}");
}

#[test]
fn a_file_that_is_no_firmware_is_refused() {
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("rom");
    fs::write(&file, [0; 100]).expect("written");
    let ended = firmware(&file.display().to_string(), &[]).end();
    ended.expect_code(1);
    assert!(ended.failure().contains("100 bytes"), "{}", ended.messages);
    let ended = firmware("bios", &["--firmware-vars", "/nonexistent/vars"]).end();
    ended.expect_code(1);
    let says = "cannot keep the firmware's variables";
    assert!(ended.failure().contains(says), "{}", ended.messages);
}
