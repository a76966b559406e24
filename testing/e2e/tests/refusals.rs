//! What cannot be started is refused with one clear line: files, sizes and options.

use std::fs;
use std::path::Path;

use e2e::cache;
use e2e::guest::{Guest, Level1, run_kernel};
use e2e::kernel::{bzimage, power_off};
use e2e::program::{Ended, Run};
use e2e::skipped;
use tempfile::{NamedTempFile, TempDir};

fn written(content: &[u8]) -> NamedTempFile {
    let file = NamedTempFile::new().expect("a file");
    fs::write(file.path(), content).expect("written");
    file
}

fn assert_tells(ended: &Ended, parts: &[&str]) {
    let line = ended.failure();
    for part in parts {
        assert!(line.contains(part), "no {part:?} in: {line}");
    }
    assert!(ended.output.is_empty(), "{}", ended.text());
}

fn soft(kernel: &Path) -> Run {
    run_kernel(kernel).args(["--engine", "soft"])
}

#[test]
fn a_missing_kernel() {
    let ended = soft(Path::new("/nonexistent/vmlinuz")).end();
    assert_tells(
        &ended,
        &["cannot read /nonexistent/vmlinuz: No such file or directory; check the path"],
    );
}

#[test]
fn a_missing_initrd() {
    let guest = Guest::new(&[power_off()]);
    let ended = guest.run(&["--initrd", "/nonexistent/initrd"]).end();
    assert_tells(&ended, &["cannot read /nonexistent/initrd: No such file"]);
}

#[test]
fn a_folder_instead_of_a_file() {
    assert_tells(&soft(Path::new("/")).end(), &["cannot read /: Is a dir"]);
    let guest = Guest::new(&[power_off()]);
    let ended = guest.run(&["--initrd", "/"]).end();
    assert_tells(&ended, &["cannot read /: Is a directory"]);
}

/// Runs as a user who may not read what only root may; `None` where that cannot be tried.
fn as_somebody_else(run: Run) -> Option<Ended> {
    const NOBODY: u32 = 65_534;
    if !rustix::process::geteuid().is_root() {
        return Some(run.end());
    }
    match run.user(NOBODY).try_start() {
        Ok(running) => Some(running.end()),
        Err(why) => {
            skipped(&format!("another user cannot start the program: {why}"));
            None
        }
    }
}

#[test]
fn files_this_user_may_not_read() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a directory");
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(folder.path(), open).expect("it is ours");
    let [closed, readable] = ["closed", "readable"].map(|name| folder.path().join(name));
    for (path, mode) in [(&closed, 0o000), (&readable, 0o644)] {
        fs::write(path, bzimage(&power_off())).expect("written");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    }
    let expected = ["Permission denied; make it readable for this user or take another file"];
    if let Some(ended) = as_somebody_else(soft(&closed)) {
        assert_tells(&ended, &expected);
    }
    let initrd = soft(&readable).args(["--initrd".as_ref(), closed.as_os_str()]);
    if let Some(ended) = as_somebody_else(initrd) {
        assert_tells(&ended, &expected);
    }
}

#[test]
fn a_kernel_that_is_none() {
    let kernel = bzimage(&power_off());
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut image = kernel.clone();
        change(&mut image);
        image
    };
    let cases: [(Vec<u8>, &str); 10] = [
        (Vec::new(), "it is no kernel"),
        (b"hello\n".to_vec(), "it is no kernel"),
        (vec![0xff; 100_000], "it is no kernel"),
        (
            b"\x7fELF\x02\x01\x01".to_vec(),
            "its ELF headers are broken",
        ),
        (
            fs::read("/proc/self/exe").expect("readable"),
            "without a multiboot header",
        ),
        (b"\x1f\x8b and more".to_vec(), "cannot read "),
        (with(&|k| k[0x202] = b'h'), "it is no kernel"),
        (with(&|k| k[0x206] = 0x02), "2.03 is needed"),
        (with(&|k| k[0x211] = 0), "it is a zImage"),
        (with(&|k| k.truncate(0x300)), "it is cut short"),
    ];
    for (content, why) in cases {
        let file = written(&content);
        assert_tells(&soft(file.path()).end(), &["cannot ", why, "; "]);
    }
    let file = written(&with(&|k| k[0x236] = 0));
    let long = soft(file.path()).args(["--boot-protocol", "linux64"]);
    assert_tells(
        &long.end(),
        &["cannot boot ", "no 64-bit entry point", "; leave out"],
    );
    let module = file.path().display().to_string();
    assert_tells(
        &soft(file.path()).args(["--module", &module]).end(),
        &["takes no modules", "; give the file by --initrd"],
    );
}

#[test]
fn a_kernel_whose_header_lies() {
    let fields: [(usize, &[u8]); 7] = [
        (0x211, &[0]),
        (0x230, &[0xff; 4]),
        (0x238, &[0; 4]),
        (0x258, &[0; 8]),
        (0x258, &[0xff; 8]),
        (0x260, &[0; 4]),
        (0x260, &[0xff; 4]),
    ];
    for (at, bytes) in fields {
        let mut image = bzimage(&power_off());
        image[at..at + bytes.len()].copy_from_slice(bytes);
        let file = written(&image);
        println!("{at:#x} {bytes:x?}: {}", soft(file.path()).end().failure());
    }
}

#[test]
fn too_little_memory() {
    let level = Level1::of(1);
    let ended = level.run(&["--memory", "16M"]).end();
    assert_tells(
        &ended,
        &[
            "too little memory for the guest: --memory gives 16M, ",
            "; give --memory ",
        ],
    );
    let guest = Guest::new(&[power_off()]);
    let ended = guest.run(&["--memory", "1M"]).end();
    assert_tells(&ended, &["too little memory"]);
}

#[test]
fn the_memory_a_refusal_asks_for_is_enough() {
    let level = Level1::of(1);
    let ended = level.run(&["--memory", "16M"]).end();
    let line = ended.failure();
    let (_, rest) = line.split_once("; give --memory ").expect("it says so");
    let (size, _) = rest.split_once(' ').expect("a size");
    level.run(&["--memory", size]).end().expect_code(0);
}

#[test]
fn too_little_memory_for_the_levels() {
    let ended = Run::nestling(["demo", "--depth", "3", "--memory", "128M"])
        .args(["--engine", "soft"])
        .cache(cache::shared())
        .end();
    assert_tells(
        &ended,
        &[
            "cannot run 3 levels: --memory gives 128M, ",
            " or a smaller --depth",
        ],
    );
}

#[test]
fn more_memory_than_a_machine_can_have() {
    let guest = Guest::new(&[power_off()]);
    let ended = guest.run(&["--memory", "8388608T"]).end();
    assert_tells(&ended, &["memory"]);
}

#[test]
fn a_host_with_too_little_memory() {
    let guest = Guest::new(&[power_off()]);
    let ended = Run::program("/bin/sh")
        .args(["-c", r#"ulimit -v 600000 && exec "$@""#, "sh"])
        .args([e2e::program::path()])
        .args(["run", "--engine", "soft", "--memory", "4G", "--kernel"])
        .args([guest.path()])
        .end();
    assert_tells(&ended, &["cannot run the virtual machine: ", "memory"]);
}

#[test]
fn a_command_line_too_long_for_the_kernel() {
    let guest = Guest::new(&[power_off()]);
    let ended = guest.run(&["--append", &"x".repeat(2_048)]).end();
    assert_tells(&ended, &["command line", "2047"]);
}

/// Files without an end, and larger than the guest's memory.
#[test]
fn files_that_are_too_large() {
    const ENDLESS: &str = "/dev/zero";
    let device = ["cannot read /dev/zero: it is a device; name a file or a pipe"];
    let guest = Guest::new(&[power_off()]);
    assert_tells(&soft(Path::new(ENDLESS)).end(), &device);
    assert_tells(&guest.run(&["--initrd", ENDLESS]).end(), &device);
    let firmware = Run::nestling(["run", "--engine", "soft", "--firmware"]);
    assert_tells(&firmware.args([ENDLESS]).end(), &device);
    let demo = Run::nestling(["demo", "--engine", "soft", "--busybox", ENDLESS]);
    assert_tells(&demo.end(), &device);

    let large = written(&[]);
    large.as_file().set_len(1 << 40).expect("a sparse file");
    let path = large.path().display().to_string();
    let memory = [
        "too little memory for the guest: --memory gives 1024M",
        "; give it more",
    ];
    assert_tells(&soft(large.path()).end(), &memory);
    let firmware = Run::nestling(["run", "--engine", "soft", "--firmware", &path]);
    assert_tells(&firmware.end(), &["it has more than 16 MiB"]);
}

/// Firmware starts bzImages only, within what the 16-bit protocol and memory allow.
#[test]
fn what_firmware_cannot_start() {
    let kernel = bzimage(&power_off());
    let with = |at: usize, bytes: &[u8]| {
        let mut image = kernel.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    };
    let firmware = |image: &[u8], options: &[&str]| {
        let file = written(image);
        let run = soft(file.path()).args(["--firmware", "bios", "--memory", "128M"]);
        run.args(options).cache(cache::shared()).end()
    };
    for (image, why) in [
        (
            fs::read("/proc/self/exe").expect("readable"),
            "only a Linux bzImage",
        ),
        (b"hello\n".to_vec(), "only a Linux bzImage"),
        (with(0x206, &[0x02]), "2.03 is needed"),
        (with(0x211, &[0]), "it is a zImage"),
        (with(0x1f4, &[0xff; 4]), "it is cut short"),
    ] {
        assert_tells(&firmware(&image, &[]), &["cannot boot ", why, "; "]);
    }
    let ended = firmware(&kernel, &["--append", &"x".repeat(2_048)]);
    assert_tells(&ended, &["command line", "2047"]);
    let initrd = written(&[0; 4096]);
    let path = initrd.path().display().to_string();
    // The kernel takes 1 MByte from 16 MByte on.
    let near = with(0x22c, &0x010f_ffff_u32.to_le_bytes());
    let ended = firmware(&near, &["--initrd", &path]);
    assert_tells(&ended, &["larger than this kernel accepts"]);
    let ended = firmware(&with(0x260, &(112_u32 << 20).to_le_bytes()), &[]);
    assert_tells(
        &ended,
        &["too little for the kernel", "; give the VM more memory"],
    );
    for option in [["--module", &path], ["--boot-protocol", "linux32"]] {
        let ended = firmware(&kernel, &option);
        ended.expect_code(2);
        assert!(
            ended.messages.contains("cannot be used with"),
            "{}",
            ended.messages
        );
    }
    let ended = Run::nestling(["run", "--firmware", "bios", "--initrd", &path]).end();
    ended.expect_code(2);
    assert!(
        ended.messages.contains("--kernel <FILE>"),
        "{}",
        ended.messages
    );
}

#[test]
fn an_initrd_too_large_for_the_memory() {
    let initrd = written(&[]);
    initrd.as_file().set_len(300 << 20).expect("a sparse file");
    let path = initrd.path().display().to_string();
    let guest = Guest::new(&[power_off()]);
    let ended = guest.run(&["--initrd", &path]).end();
    assert_tells(
        &ended,
        &["too little memory for the guest: --memory gives 128M"],
    );
}

#[test]
fn what_the_soft_engine_cannot_do() {
    let guest = Guest::new(&[power_off()]);
    let ended = guest.run(&["--nested", "amd"]).end();
    assert_tells(
        &ended,
        &["cannot show AMD-V to the guest: ", "; take intel"],
    );
    let ended = Run::nestling(["demo", "--virt", "amd"]).end();
    assert_tells(&ended, &["cannot show AMD-V to the guest: "]);
    let ended = run_kernel(guest.path())
        .args(["--engine", "kvm", "--clock", "virtual"])
        .end();
    assert_tells(&ended, &["only the soft engine has a virtual clock"]);
}

/// Files of one's own that are not what they should be.
struct OwnFiles {
    folder: TempDir,
}

impl OwnFiles {
    /// The kernel and busybox of the cache and an empty folder of modules.
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        for (entry, file) in [
            ("linux-image-cloud-amd64", "vmlinuz"),
            ("busybox-static", "busybox"),
        ] {
            let from = cache::shared().join(entry).join(file);
            fs::copy(from, folder.path().join(file)).expect("copied");
        }
        fs::create_dir(folder.path().join("modules")).expect("created");
        Self { folder }
    }

    /// A demo whose options are pairs of a name and one of these files.
    fn demo(&self, depth: u8, options: &[&str]) -> Ended {
        let mut run = Run::nestling(["demo", "--engine", "soft", "--depth", &depth.to_string()])
            .without_env("HOME");
        for pair in options.chunks(2) {
            run = run.args([
                pair[0].as_ref(),
                self.folder.path().join(pair[1]).as_os_str(),
            ]);
        }
        // Whoever brings all files needs no cache.
        run.without_env("NESTLING_CACHE")
            .without_env("XDG_CACHE_HOME")
            .end()
    }
}

#[test]
fn own_files_of_a_demo_that_do_not_fit() {
    let files = OwnFiles::new();
    fs::write(files.folder.path().join("text"), "hello").expect("written");
    let one_level = |kernel, busybox| files.demo(1, &["--kernel", kernel, "--busybox", busybox]);
    assert_tells(
        &one_level("nothing", "busybox"),
        &["cannot read ", "nothing: No such file"],
    );
    assert_tells(
        &one_level("text", "busybox"),
        &["cannot boot ", "it is not a Linux bzImage"],
    );
    assert_tells(
        &one_level("vmlinuz", "nothing"),
        &["cannot read ", "nothing: No such file"],
    );
    assert_tells(
        &one_level("vmlinuz", "text"),
        &["as busybox: it is no x86-64 ELF program"],
    );
    let two_levels =
        |options: &[&str]| files.demo(2, &[&["--busybox", "busybox"], options].concat());
    assert_tells(
        &two_levels(&["--kernel", "vmlinuz", "--modules", "modules"]),
        &["no module kvm-intel in "],
    );
    assert_tells(
        &two_levels(&["--kernel", "vmlinuz", "--modules", "nothing"]),
        &["cannot read ", "nothing: No such file"],
    );
    assert_tells(
        &two_levels(&["--kernel", "vmlinuz"]),
        &["its modules are not given; add --modules"],
    );
    assert_tells(
        &two_levels(&["--modules", "modules"]),
        &["the kernel they belong to is not given; add --kernel"],
    );
}

#[test]
fn no_place_for_the_cache() {
    let ended = Run::nestling(["demo", "--engine", "soft"])
        .without_env("HOME")
        .without_env("NESTLING_CACHE")
        .without_env("XDG_CACHE_HOME")
        .end();
    assert_tells(
        &ended,
        &["no place for the cache: HOME is not set; set NEST"],
    );
}

#[test]
fn options_that_are_wrong() {
    let cases: [(&[&str], &str); 16] = [
        (&[], "Usage: nestling"),
        (&["fly"], "'fly'"),
        (&["run"], "--kernel"),
        (&["run", "--kernel"], "--kernel"),
        (
            &["run", "--kernel", "k", "--memory", "512"],
            "as 512M or 2G",
        ),
        (&["run", "--kernel", "k", "--memory", "0G"], "--memory"),
        (
            &["run", "--kernel", "k", "--memory", "99999999999999999T"],
            "too large",
        ),
        (&["run", "--kernel", "k", "--cpus", "0"], "--cpus"),
        (&["run", "--kernel", "k", "--engine", "warp"], "soft"),
        (&["run", "--kernel", "k", "--clock", "sun"], "virtual"),
        (&["run", "--kernel", "k", "--timeout", "0"], "--timeout"),
        (&["run", "--kernel", "k", "--timeout", "never"], "--timeout"),
        (&["run", "--kernel", "k", "--sideways"], "--sideways"),
        (&["demo", "--depth", "0"], "--depth"),
        (&["demo", "--depth", "9"], "1..=8"),
        (&["doctor", "--format", "xml"], "json"),
    ];
    for (arguments, told) in cases {
        let ended = Run::nestling(arguments).end();
        ended.expect_code(2);
        assert!(ended.messages.contains(told), "{}", ended.messages);
        assert!(ended.output.is_empty(), "{}", ended.text());
    }
}

#[test]
fn help_and_version_are_no_failures() {
    for arguments in [
        &["--help"][..],
        &["run", "--help"],
        &["demo", "--help"],
        &["doctor", "-h"],
        &["--version"],
    ] {
        let ended = Run::nestling(arguments).end();
        ended.expect_code(0);
        assert!(ended.messages.is_empty(), "{}", ended.messages);
        assert!(ended.text().contains("nestling"), "{}", ended.text());
    }
}

#[test]
fn the_doctor_always_answers() {
    let ended = Run::nestling(["doctor"]).end();
    ended.expect_code(0);
    assert!(
        ended.text().contains("\nengine auto takes "),
        "{}",
        ended.text()
    );
    let ended = Run::nestling(["doctor", "--format", "json"]).end();
    ended.expect_code(0);
    let engine = &ended.json()["engine"]["engine"];
    assert!(engine == "soft" || engine == "kvm", "{engine}");
}
