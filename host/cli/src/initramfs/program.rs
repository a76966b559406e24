//! The program a guest carries: it must be static, and only what is loaded of it is carried (System V ABI,
//! ELF-64 object file format, chapters "ELF Header" and "Program Header").

use object::LittleEndian;
use object::elf::{EM_X86_64, FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader, ProgramHeader};

/// Offset of `e_shoff` in an ELF64 header, 8 bytes.
const E_SHOFF: usize = 0x28;
/// Offset of `e_shentsize`, `e_shnum` and `e_shstrndx` in an ELF64 header, 2 bytes each.
const E_SHENTSIZE: usize = 0x3a;

type Header = FileHeader64<LittleEndian>;

/// Checks that `program` is an x86-64 ELF file that needs no dynamic loader, and gives the offset where its
/// last loaded byte ends.
fn loaded_end(program: &[u8]) -> Result<u64, &'static str> {
    const NO_ELF: &str = "it is no x86-64 ELF program";
    let header = Header::parse(program).map_err(|_| NO_ELF)?;
    let endian = header.endian().map_err(|_| NO_ELF)?;
    if header.e_machine(endian) != EM_X86_64 {
        return Err(NO_ELF);
    }
    let segments = header
        .program_headers(endian, program)
        .map_err(|_| "its program headers are broken")?;
    if segments.iter().any(|s| s.p_type(endian) == PT_INTERP) {
        return Err("it is linked dynamically");
    }
    let tables_end = u64::from(header.e_phentsize(endian))
        .checked_mul(u64::from(header.e_phnum(endian)))
        .and_then(|bytes| bytes.checked_add(header.e_phoff(endian)));
    segments
        .iter()
        .map(|s| s.p_offset(endian).checked_add(s.p_filesz(endian)))
        .fold(tables_end, |end, this| Some(end?.max(this?)))
        .filter(|&end| end <= program.len() as u64)
        .ok_or("it is cut off")
}

/// Checks that `program` runs without a dynamic loader.
///
/// # Errors
/// Why it does not, as half a sentence.
pub fn check_static(program: &[u8]) -> Result<(), &'static str> {
    loaded_end(program).map(|_| ())
}

/// `program` without what is not loaded: section headers, symbols and debugging information.
///
/// # Errors
/// As [`check_static`].
pub fn loaded_part(program: &[u8]) -> Result<Vec<u8>, &'static str> {
    let end = usize::try_from(loaded_end(program)?).map_err(|_| "it is too large")?;
    let mut part = program[..end].to_vec();
    if part.len() < E_SHENTSIZE + 6 {
        return Err("it is cut off");
    }
    part[E_SHOFF..E_SHOFF + 8].fill(0);
    part[E_SHENTSIZE..E_SHENTSIZE + 6].fill(0);
    Ok(part)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An ELF64 program of one segment of the type `kind`, followed by 100 bytes that are not loaded.
    pub fn made_up(kind: u32) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56 + 32 + 100];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        elf[0x10] = 2; // ET_EXEC
        elf[0x12] = 62; // EM_X86_64
        elf[0x14] = 1;
        elf[0x20] = 64; // e_phoff
        elf[E_SHOFF] = 200;
        elf[0x34] = 64; // e_ehsize
        elf[0x36] = 56; // e_phentsize
        elf[0x38] = 1; // e_phnum
        elf[E_SHENTSIZE] = 64;
        elf[0x3c] = 1;
        elf[64..68].copy_from_slice(&kind.to_le_bytes());
        elf[64 + 8] = 120; // p_offset
        elf[64 + 32] = 32; // p_filesz
        elf
    }

    #[test]
    fn only_the_loaded_part_is_kept() {
        let part = loaded_part(&made_up(1)).expect("static");
        assert_eq!(part.len(), 152);
        assert!(part[E_SHOFF..E_SHOFF + 8].iter().all(|&byte| byte == 0));
        assert_eq!(check_static(&part), Ok(()));
    }

    #[test]
    fn a_dynamic_program_is_refused() {
        assert_eq!(check_static(&made_up(3)), Err("it is linked dynamically"));
    }

    #[test]
    fn other_files_are_refused() {
        assert!(check_static(b"").is_err());
        assert!(check_static(b"#!/bin/sh\n").is_err());
        assert!(check_static(&[0; 4096]).is_err());
        let mut other = made_up(1);
        other[0x12] = 183; // EM_AARCH64
        assert_eq!(check_static(&other), Err("it is no x86-64 ELF program"));
    }

    #[test]
    fn a_cut_or_lying_program_is_refused() {
        let whole = made_up(1);
        for length in 0..152 {
            assert!(loaded_part(&whole[..length]).is_err(), "{length}");
        }
        let mut lying = made_up(1);
        lying[64 + 8..64 + 16].fill(0xff);
        assert_eq!(check_static(&lying), Err("it is cut off"));
    }
}
