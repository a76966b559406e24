use std::fs;

use super::*;

const RET: u8 = 0xc3;

/// Bytes of the mapping from `start` on that are in large pages.
fn in_large_pages(start: u64) -> usize {
    let all = fs::read_to_string("/proc/self/smaps").expect("the kernel shows mappings");
    let mut lines = all.lines();
    lines
        .find(|l| l.starts_with(&format!("{start:x}-")))
        .expect("the mapping is there");
    let line = lines.find_map(|l| l.strip_prefix("ShmemPmdMapped:"));
    let kbytes = line.and_then(|l| l.split_whitespace().next());
    1024 * kbytes.map_or(0, |n| n.parse::<usize>().expect("a number"))
}

/// The host can put one where there is something: the answer of the call itself, on memory of our own.
fn has_large_pages() -> bool {
    let file = sealed_file(c"probe", 2 * LARGE).expect("a file");
    let at = map(&file, 2 * LARGE, libc::PROT_READ | libc::PROT_WRITE).expect("a mapping");
    // SAFETY: the mapping of `2 * LARGE` bytes was just made and is used nowhere else.
    unsafe {
        at.write(1);
        let done = libc::madvise(at.as_ptr().cast(), LARGE, 25);
        libc::munmap(at.as_ptr().cast(), 2 * LARGE);
        done == 0
    }
}

/// Pieces of which one lies across the border of two large pages run, can be read and changed; what is too short for
/// another large page at the end is used as well.
#[test]
fn code_is_in_large_pages() {
    const PIECE: usize = 3 << 19;
    let len = 2 * LARGE + 4096;
    let mut area = CodeArea::new(c"test", len).expect("memory");
    let start = area.next_address();
    assert_eq!(start as usize % LARGE, 0);
    let mut code = vec![0x90; PIECE];
    code[PIECE - 1] = RET;
    let first = area.append(&code).expect("room for one");
    let second = area.append(&code).expect("room for two");
    assert_eq!((first, second), (0, PIECE as u32));
    let rest = vec![RET; area.room()];
    let last = area.append(&rest).expect("room for the rest");
    assert_eq!(area.room(), 0);
    for offset in [first, second, last] {
        // SAFETY: NOPs and a RET were written there.
        let run: extern "sysv64" fn() = unsafe { std::mem::transmute(area.address(offset)) };
        run();
    }
    area.patch(start + LARGE as u64 - 1, &[0xcc, 0xcd]);
    let mut read = [0; 4];
    area.read(start + LARGE as u64 - 2, &mut read);
    assert_eq!(read, [0x90, 0xcc, 0xcd, 0x90]);
    if has_large_pages() {
        assert_eq!(in_large_pages(start), 2 * LARGE);
    } else {
        eprintln!("skipped: the host has no large pages for shared memory");
    }
}

/// An area shorter than a large page is as long as it says, and not more.
#[test]
fn a_short_area_has_its_bound() {
    let mut area = CodeArea::new(c"test", 4096).expect("memory");
    assert_eq!(area.append(&[RET; 4097]), None);
    assert_eq!(area.append(&[RET; 4096]), Some(0));
    assert_eq!(area.append(&[RET]), None);
}
