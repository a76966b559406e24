//! Disks of a Linux guest that is booted by `--kernel`: what it reads is in the image, and what it writes comes there.

use std::path::Path;

use e2e::guest::run_kernel;
use e2e::program::{Ended, Run};
use e2e::{initramfs, packages};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// Debian's kernel with an initial RAM disk whose script is `script`.
struct Linux {
    folder: TempDir,
}

impl Linux {
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, content: &[u8]| {
            std::fs::write(folder.path().join(name), content).expect("written");
        };
        write("vmlinuz", &packages::kernel());
        write("initrd", &initramfs::with(initramfs::VIRTIO_BLK, script));
        Self { folder }
    }

    fn run(&self, append: &str) -> Run {
        let append = format!("console=ttyS0 quiet panic=-1 {append}");
        run_kernel(&self.folder.path().join("vmlinuz"))
            .args([
                "--initrd".as_ref(),
                self.folder.path().join("initrd").as_os_str(),
            ])
            .args(["--engine", "soft", "--nested", "off", "--clock", "virtual"])
            .args(["--memory", "512M", "--append", &append])
    }
}

/// Bytes that do not repeat (Marsaglia's xorshift64).
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

fn image(folder: &Path, name: &str, content: &[u8]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, content).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

fn assert_says(ended: &Ended, lines: &[&str]) {
    ended.expect_code(0);
    let console = ended.text();
    for line in lines {
        assert!(
            console.lines().any(|l| l == *line),
            "no `{line}` in: {console}"
        );
    }
}

const SCRIPT: &str = r#"
echo "size $($b cat /sys/block/vda/size) ro $($b cat /sys/block/vda/ro)"
echo "id $($b cat /sys/block/vda/serial)"
echo "second $($b cat /sys/block/vdb/size) ro $($b cat /sys/block/vdb/ro)"
echo "interrupts $($b grep -c virtio0 /proc/interrupts)"
$b dd if=/dev/vda of=/dev/vdb bs=64k seek=4 2>/dev/null && echo copied
$b tr '\0' x </dev/zero | $b dd of=/dev/vdb bs=1000 count=3 2>/dev/null
$b blkdiscard -o 65536 -l 65536 /dev/vdb && echo discarded
$b sync
$b dd if=/dev/zero of=/dev/vda bs=512 count=1 2>/dev/null || echo refused
"#;

#[test]
fn linux_reads_and_writes_virtio_disks() {
    let linux = Linux::new(SCRIPT);
    let folder = linux.folder.path();
    let source = noise(3 * MIB + 512);
    let read_only = image(folder, "a.img", &source) + ",readonly";
    let written = image(folder, "b.img", &vec![1; 4 * MIB]);
    // By MSI-X there are two vectors for the disk, by the pin there is one.
    for (append, interrupts) in [("", "interrupts 2"), ("pci=nomsi", "interrupts 1")] {
        std::fs::write(folder.join("b.img"), vec![1; 4 * MIB]).expect("written");
        let ended = linux
            .run(append)
            .args(["--disk", &read_only, "--disk", &written])
            .end();
        let sectors = source.len() / 512;
        assert_says(
            &ended,
            &[
                &format!("size {sectors} ro 1"),
                "id disk0",
                "second 8192 ro 0",
                interrupts,
                "copied",
                "discarded",
                "refused",
            ],
        );
        let mut expected = vec![1; 4 * MIB];
        expected[256 << 10..][..source.len()].copy_from_slice(&source);
        expected[..3000].fill(b'x');
        let content = std::fs::read(folder.join("b.img")).expect("readable");
        // A file system without holes may leave what was discarded.
        if content[65536] == 0 {
            expected[65536..131_072].fill(0);
        }
        assert!(
            content == expected,
            "the disk is not what was written to it"
        );
        let content = std::fs::read(folder.join("a.img")).expect("readable");
        assert!(content == source, "a read-only disk was written");
    }
}

#[test]
fn an_image_in_use_is_refused() {
    let linux = Linux::new("");
    let disk = image(linux.folder.path(), "a.img", &[0; 4096]);
    let ended = linux.run("").args(["--disk", &disk, "--disk", &disk]).end();
    ended.expect_code(1);
    assert!(
        ended
            .messages
            .contains("is in use by another disk or program"),
        "{}",
        ended.messages
    );
    let ended = linux.run("").args(["--disk", "/nowhere/a.img"]).end();
    ended.expect_code(1);
    assert!(
        ended.messages.contains("/nowhere/a.img"),
        "{}",
        ended.messages
    );
}
