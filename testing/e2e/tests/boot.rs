//! `nestling run` boots kernels of every form by itself.

use std::io::Read;

use e2e::guest::Level1;

/// Where the setup header says how long the real-mode code is, and where the packed kernel lies behind it
/// (Linux Documentation/arch/x86/boot.rst: `setup_sects`, `payload_offset`, `payload_length`).
const SETUP_SECTS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// The ELF file inside of Debian's bzImage, which is packed by LZ4.
fn vmlinux(bzimage: &[u8]) -> Vec<u8> {
    let word = |at: usize| {
        let bytes = bzimage[at..at + 4].try_into().expect("4 bytes");
        u32::from_le_bytes(bytes) as usize
    };
    let start = (usize::from(bzimage[SETUP_SECTS]) + 1) * 512 + word(PAYLOAD_OFFSET);
    // The last 4 bytes are the unpacked size.
    let end = start + word(PAYLOAD_LENGTH) - 4;
    let mut file = Vec::new();
    lz4_flex::frame::FrameDecoder::new(&bzimage[start..end])
        .read_to_end(&mut file)
        .expect("it unpacks");
    file
}

#[test]
fn linux_as_an_elf_file_by_pvh() {
    let level = Level1::of(1);
    let folder = tempfile::tempdir().expect("a directory");
    let kernel = folder.path().join("vmlinux");
    let bzimage = std::fs::read(level.kernel()).expect("readable");
    std::fs::write(&kernel, vmlinux(&bzimage)).expect("written");
    let ended = level
        .run_kernel(&kernel, &["--nested", "off", "--clock", "virtual"])
        .end();
    ended.expect_code(0);
    let console = ended.text();
    assert!(
        console.contains("NESTLING-LEVEL 1 down status=0"),
        "{console}"
    );
}

#[test]
fn linux_by_the_32_bit_protocol() {
    let level = Level1::of(1);
    let options = ["--nested", "off", "--clock", "virtual"];
    let ended = level
        .run(&[&options[..], &["--boot-protocol", "linux32"]].concat())
        .end();
    ended.expect_code(0);
    assert!(ended.text().contains("NESTLING-LEVEL 1 down status=0"));
}
