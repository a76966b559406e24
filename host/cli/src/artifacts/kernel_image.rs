//! What a file must be to be booted: an x86 Linux bzImage with a 64-bit entry (Linux
//! `Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header").

/// Offset of `setup_sects`, the sectors of the real-mode code after the first one; 0 means 4.
const SETUP_SECTS: usize = 0x1f1;
/// Offset of `syssize`, the protected-mode code's size in units of 16 bytes.
const SYSSIZE: usize = 0x1f4;
/// Offset of `boot_flag`.
const BOOT_FLAG: usize = 0x1fe;
/// Offset of the magic `HdrS`.
const HEADER: usize = 0x202;
/// Offset of the protocol version.
const VERSION: usize = 0x206;
/// Offset of the pointer to the version string, counted from 0x200.
const KERNEL_VERSION: usize = 0x20e;
/// Offset of `xloadflags`.
const XLOADFLAGS: usize = 0x236;
/// `XLF_KERNEL_64`: the legacy 64-bit entry point is there.
const XLF_KERNEL_64: u16 = 1;
/// The protocol version that brought `xloadflags`.
const VERSION_WITH_XLOADFLAGS: u16 = 0x020c;
/// A release string longer than this is cut.
const LONGEST_RELEASE: usize = 64;

fn word(image: &[u8], offset: usize) -> Option<u16> {
    let bytes = image.get(offset..offset.checked_add(2)?)?;
    Some(u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// Checks that `image` is a bzImage with a 64-bit entry.
///
/// # Errors
/// Why it is none, as half a sentence.
pub fn check(image: &[u8]) -> Result<(), &'static str> {
    if image.starts_with(b"\x7fELF") {
        return Err("it is an ELF file, not a bzImage");
    }
    if word(image, BOOT_FLAG) != Some(0xaa55)
        || image.get(HEADER..HEADER + 4) != Some(b"HdrS".as_slice())
    {
        return Err("it is not a Linux bzImage");
    }
    if word(image, VERSION).is_none_or(|version| version < VERSION_WITH_XLOADFLAGS) {
        return Err("its boot protocol is older than 2.12");
    }
    if word(image, XLOADFLAGS).is_none_or(|flags| flags & XLF_KERNEL_64 == 0) {
        return Err("it has no 64-bit entry point");
    }
    if expected_bytes(image).is_none_or(|bytes| bytes > image.len() as u64) {
        return Err("it is cut short");
    }
    Ok(())
}

/// The least size of the file by its header.
fn expected_bytes(image: &[u8]) -> Option<u64> {
    let setup_sectors = match *image.get(SETUP_SECTS)? {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let size = image.get(SYSSIZE..SYSSIZE + 4)?;
    let paragraphs = u32::from_le_bytes([size[0], size[1], size[2], size[3]]);
    Some((setup_sectors + 1) * 512 + u64::from(paragraphs) * 16)
}

/// The release the kernel reports as `uname -r`, when the image names one.
pub fn release(image: &[u8]) -> Option<String> {
    let start = usize::from(word(image, KERNEL_VERSION)?) + 0x200;
    if start == 0x200 {
        return None;
    }
    let text = image.get(start..)?;
    let end = text
        .iter()
        .take(LONGEST_RELEASE)
        .position(|byte| !byte.is_ascii_graphic())?;
    let release = std::str::from_utf8(&text[..end]).ok()?;
    (!release.is_empty()).then(|| release.to_string())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An image with nothing but a good header that names `release`.
    pub fn made_up(release: &str) -> Vec<u8> {
        let mut image = vec![0; 0x1000];
        image[0x1f1] = 1;
        image[0x1f4..0x1f8].copy_from_slice(&0xc0_u32.to_le_bytes());
        image[0x1fe..0x200].copy_from_slice(&0xaa55_u16.to_le_bytes());
        image[0x200..0x202].copy_from_slice(&[0xeb, 0x66]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x211] = 1;
        image[0x236] = 1;
        image[0x238..0x23c].copy_from_slice(&255_u32.to_le_bytes());
        image[0x258..0x260].copy_from_slice(&(1_u64 << 20).to_le_bytes());
        image[0x260..0x264].copy_from_slice(&0x1000_u32.to_le_bytes());
        image[0x300..0x300 + release.len()].copy_from_slice(release.as_bytes());
        image
    }

    #[test]
    fn a_good_header_passes() {
        let image = made_up("6.1.0-99-cloud-amd64 (x@y)");
        assert_eq!(check(&image), Ok(()));
        assert_eq!(release(&image).as_deref(), Some("6.1.0-99-cloud-amd64"));
    }

    #[test]
    fn other_files_are_refused() {
        assert!(check(b"").is_err());
        assert!(check(&[0; 0x238]).is_err());
        assert!(check(b"\x7fELF and more").is_err());
        let whole = made_up("6.1");
        assert_eq!(check(&whole[..0xfff]), Err("it is cut short"));
        let mut old = made_up("2.6");
        old[0x206] = 6;
        assert_eq!(check(&old), Err("its boot protocol is older than 2.12"));
        let mut narrow = made_up("6.1");
        narrow[0x236] = 0;
        assert_eq!(check(&narrow), Err("it has no 64-bit entry point"));
    }

    #[test]
    fn a_wild_version_pointer_is_harmless() {
        let mut image = made_up("6.1");
        image[0x20e..0x210].copy_from_slice(&0xffff_u16.to_le_bytes());
        assert_eq!(release(&image), None);
        assert_eq!(release(&[]), None);
    }
}
