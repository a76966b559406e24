//! `nestling run --screenshot`: what firmware and kernels put on the screen.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use e2e::cache;
use e2e::program::Run;

/// Dots of a character cell in text mode 3.
const CELL: (usize, usize) = (9, 16);
/// The capital A of the 8 x 16 font that PCs have had since the VGA.
const CAPITAL_A: [u8; 16] = [
    0, 0, 0x10, 0x38, 0x6c, 0xc6, 0xc6, 0xfe, 0xc6, 0xc6, 0xc6, 0xc6, 0, 0, 0, 0,
];

/// The 8 x 16 font in a video BIOS, 16 bytes a character.
fn font(rom: &[u8]) -> &[u8] {
    let a = rom
        .windows(CAPITAL_A.len())
        .position(|w| w == CAPITAL_A)
        .expect("the font is in the ROM");
    let start = a - 16 * usize::from(b'A');
    &rom[start..start + 16 * 256]
}

/// The picture's size, and whether a dot is lit.
fn picture(path: &Path) -> (usize, usize, impl Fn(usize, usize) -> bool) {
    let file = BufReader::new(File::open(path).expect("the picture is there"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG file");
    let mut rgb = vec![0; reader.output_buffer_size().expect("small")];
    let info = reader.next_frame(&mut rgb).expect("a picture");
    let (width, height) = (info.width as usize, info.height as usize);
    let lit = move |x: usize, y: usize| rgb[3 * (y * width + x)..][..3] != [0; 3];
    (width, height, lit)
}

/// The text on the screen in a picture of text mode 3, by the font it was drawn with.
fn text(path: &Path, font: &[u8]) -> Vec<String> {
    let (width, height, lit) = picture(path);
    assert_eq!((width, height), (720, 400));
    let read = |column: usize, row: usize| {
        let dots: Vec<u8> = (0..CELL.1)
            .map(|y| {
                let dot = |x: usize| lit(column * CELL.0 + x, row * CELL.1 + y);
                (0..8).fold(0, |byte, x| byte << 1 | u8::from(dot(x)))
            })
            .collect();
        let code = (b' '..=b'~').find(|&c| font[16 * usize::from(c)..][..16] == dots);
        code.map_or('?', char::from)
    };
    (0..25)
        .map(|row| (0..80).map(|column| read(column, row)).collect())
        .collect()
}

#[test]
fn seabios_shows_its_banner_by_the_video_bios() {
    let folder = tempfile::tempdir().expect("a directory");
    let shot = folder.path().join("screen.png");
    let ended = Run::nestling(["run", "--firmware", "bios", "--engine", "soft"])
        .args(["--memory", "128M", "--clock", "virtual", "--timeout", "40"])
        .args(["--screenshot".as_ref(), shot.as_os_str()])
        .cache(cache::shared())
        .end();
    ended.expect_code(124);
    let entry = cache::names(cache::shared())
        .into_iter()
        .find(|name| name.to_string_lossy().starts_with("seabios"))
        .expect("the firmware is in the cache");
    let rom = cache::shared().join(entry).join("vgabios-stdvga.bin");
    let rom = std::fs::read(rom).expect("readable");
    let lines = text(&shot, font(&rom));
    assert!(lines[0].starts_with("SeaBIOS (version "), "{lines:#?}");
    let said = |what: &str| lines.iter().any(|line| line.starts_with(what));
    assert!(said("No bootable device."), "{lines:#?}");
}

#[test]
fn a_picture_of_no_display_is_refused() {
    let folder = tempfile::tempdir().expect("a directory");
    let shot = folder.path().join("screen.png");
    let guest = e2e::guest::Guest::new(&[e2e::kernel::power_off()]);
    let ended = guest
        .run(&["--vga", "none"])
        .args(["--screenshot".as_ref(), shot.as_os_str()])
        .end();
    assert!(
        ended
            .failure()
            .contains("--vga none leaves the display out")
    );
    assert!(!shot.exists());
}

#[test]
fn a_kernel_finds_text_mode_and_a_font() {
    let folder = tempfile::tempdir().expect("a directory");
    let shot = folder.path().join("screen.png");
    // mov word ptr [0xb8000], 0x1fdb: a full block, white on blue, into the first cell.
    let write = vec![0x66, 0xc7, 0x04, 0x25, 0x00, 0x80, 0x0b, 0x00, 0xdb, 0x1f];
    let ended = e2e::guest::Guest::new(&[write, e2e::kernel::power_off()])
        .run(&[])
        .args(["--screenshot".as_ref(), shot.as_os_str()])
        .end();
    ended.expect_code(0);
    let (width, height, lit) = picture(&shot);
    assert_eq!((width, height), (720, 400));
    for y in 0..CELL.1 {
        assert!((0..CELL.0).all(|x| lit(x, y)), "line {y}");
    }
    assert!(
        (CELL.0..2 * CELL.0).all(|x| !lit(x, 0)),
        "the rest is blank"
    );
}
