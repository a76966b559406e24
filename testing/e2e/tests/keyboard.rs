//! `nestling run --keys`: a guest reads what is typed.

use e2e::guest::run_kernel;
use e2e::program::Run;
use e2e::{cache, initramfs, packages};

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
fn seabios_reads_what_is_typed() {
    // Reads keys by INT 16h and sends their characters to COM1; a full stop goes to the debug-exit port.
    let code = [
        0xb4, 0x00, // mov ah, 0
        0xcd, 0x16, // int 0x16
        0x3c, b'.', // cmp al, '.'
        0x75, 0x02, // jne +2
        0xe6, 0xf4, // out 0xf4, al
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xee, // out dx, al
        0xeb, 0xf0, // jmp to the start
    ];
    let mut sector = vec![0; 1 << 20];
    sector[..code.len()].copy_from_slice(&code);
    sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    let folder = tempfile::tempdir().expect("a folder");
    let disk = folder.path().join("disk.img");
    std::fs::write(&disk, sector).expect("written");
    let ended = Run::nestling(["run", "--firmware", "bios", "--engine", "soft"])
        .args(["--memory", "128M", "--clock", "virtual", "--timeout", "60"])
        .args(["--debug-exit", "--keys", "Hi, BIOS<ret>."])
        .args(["--disk".as_ref(), disk.as_os_str()])
        .cache(cache::shared())
        .end();
    ended.expect_code(i32::from(b'.') << 1 | 1);
    let console = ended.text();
    assert!(console.contains("Hi, BIOS\r"), "{console:?}");
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
