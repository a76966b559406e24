//! `nestling run --keys`: a guest reads what is typed.

use e2e::guest::run_kernel;
use e2e::{initramfs, packages};

#[test]
fn linux_reads_what_is_typed() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("written");
        path
    };
    let kernel = write("vmlinuz", &packages::kernel());
    let script = "read -r typed </dev/tty1; echo \"read: $typed.\"";
    let initrd = write("initrd", &initramfs::with(&[], script));
    let ended = run_kernel(&kernel)
        .args(["--initrd".as_ref(), initrd.as_os_str()])
        .args(["--engine", "soft", "--nested", "off", "--clock", "virtual"])
        .args(["--memory", "512M", "--timeout", "120"])
        .args(["--append", "console=ttyS0 quiet panic=-1"])
        .args(["--keys", "Hello, 0<lt>9 & {~|\\}x<bs>!<ret>"])
        .end();
    ended.expect_code(0);
    let console = ended.text();
    assert!(console.contains("read: Hello, 0<9 & {~|\\}!."), "{console}");
}

#[test]
fn keys_that_are_not_there_are_refused() {
    let kernel = e2e::guest::Guest::new(&[e2e::kernel::power_off()]);
    for (keys, why) in [
        ("<f13>", "there is no key <f13>"),
        ("<ret", "lacks its >"),
        ("\u{e4}", "no key of a US keyboard types"),
    ] {
        let ended = kernel.run(&["--keys", keys]).end();
        ended.expect_code(2);
        assert!(ended.messages.contains(why), "{}", ended.messages);
    }
}
