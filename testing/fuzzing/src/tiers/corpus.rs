//! Real code: this program's own.

use super::case::{CHOICES, REAL, SNIPPETS};
use crate::Random;

/// The code of this program, as it lies in its file.
///
/// # Panics
/// The program cannot read its own file, or that is no ELF file of 64 bits.
#[must_use]
pub fn own_code() -> Vec<u8> {
    let path = std::env::current_exe().expect("a program has a file");
    let file = std::fs::read(path).expect("its file can be read");
    let number = |at: usize, bytes: usize| {
        let bytes = &file[at..at + bytes];
        bytes.iter().rev().fold(0, |n, b| n << 8 | usize::from(*b))
    };
    assert_eq!(&file[..5], b"\x7fELF\x02", "an ELF file of 64 bits");
    // e_phoff, e_phentsize, e_phnum; p_type, p_flags, p_offset, p_filesz.
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let mut code = Vec::new();
    for header in (0..count).map(|n| table + n * size) {
        let loaded = number(header, 4) == 1;
        if loaded && number(header + 4, 4) & 1 != 0 {
            let (from, len) = (number(header + 8, 8), number(header + 32, 8));
            code.extend_from_slice(&file[from..from + len]);
        }
    }
    assert!(code.len() > 1 << 16, "a program has code");
    code
}

/// The bytes of case `number` of a seed: choices, then pieces of `code`.
#[must_use]
pub fn case(seed: u64, number: u64, code: &[u8]) -> Vec<u8> {
    let mut random = Random::new(seed ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93));
    let mut data = vec![0; CHOICES];
    random.fill(&mut data);
    for _ in 0..SNIPPETS {
        let at = random.number() as usize % (code.len() - REAL);
        data.extend_from_slice(&code[at..at + REAL]);
    }
    data
}
