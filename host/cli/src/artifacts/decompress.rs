//! Streams packed with gzip, xz or zstd, told apart by their first bytes, as Debian uses them for the
//! members of packages and for kernel modules.

use std::io::{self, BufRead, BufReader, Read};

/// gzip, RFC 1952 section 2.3.1.
pub const GZIP: &[u8] = &[0x1f, 0x8b];
/// xz, "The .xz File Format" section 2.1.1.1.
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0x00];
/// zstd frame, RFC 8878 section 3.1.1.
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// What a decoder may use for its dictionary.
const DECODER_LIMIT_KIB: u32 = 256 * 1024;

/// A reader of the unpacked content of `packed`. What carries none of the known marks is passed through.
///
/// # Errors
/// What reading the first bytes says, or a broken header.
pub fn reader<'a>(packed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut packed = BufReader::with_capacity(64 * 1024, packed);
    let start = packed.fill_buf()?;
    if start.starts_with(GZIP) {
        Ok(Box::new(flate2::bufread::MultiGzDecoder::new(packed)))
    } else if start.starts_with(XZ) {
        Ok(Box::new(lzma_rust2::XzReader::new_mem_limit(
            packed,
            true,
            DECODER_LIMIT_KIB,
        )))
    } else if start.starts_with(ZSTD) {
        let decoder = ruzstd::decoding::StreamingDecoder::new(packed).map_err(io::Error::other)?;
        Ok(Box::new(decoder))
    } else {
        Ok(Box::new(packed))
    }
}

/// All of the unpacked content of `packed`, refusing more than `limit` bytes.
///
/// # Errors
/// Broken content, or [`io::ErrorKind::FileTooLarge`].
pub fn all(packed: &[u8], limit: usize) -> io::Result<Vec<u8>> {
    read_limited(reader(packed)?, limit)
}

/// Reads to the end, refusing more than `limit` bytes.
///
/// # Errors
/// What the reader says, or [`io::ErrorKind::FileTooLarge`].
pub fn read_limited(reader: impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let ceiling = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    reader.take(ceiling).read_to_end(&mut content)?;
    if content.len() > limit {
        return Err(io::Error::from(io::ErrorKind::FileTooLarge));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn gzip_is_recognised_and_bounded() {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(&[7; 1000]).expect("memory");
        let packed = packer.finish().expect("memory");
        assert_eq!(all(&packed, 1000).expect("unpacks"), vec![7; 1000]);
        let error = all(&packed, 999).expect_err("too large");
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn xz_of_the_reference_tool_unpacks() {
        // `printf nestling | xz --check=crc32`
        let packed = [
            0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00,
            0x21, 0x01, 0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0x01, 0x00, 0x07, 0x6e,
            0x65, 0x73, 0x74, 0x6c, 0x69, 0x6e, 0x67, 0x00, 0x04, 0x3d, 0x77, 0xe6, 0x00, 0x01,
            0x1c, 0x08, 0x44, 0x60, 0x2a, 0xc8, 0x90, 0x42, 0x99, 0x0d, 0x01, 0x00, 0x00, 0x00,
            0x00, 0x01, 0x59, 0x5a,
        ];
        assert_eq!(all(&packed, 100).expect("unpacks"), b"nestling");
        assert!(all(&packed[..40], 100).is_err());
    }

    #[test]
    fn plain_content_passes_through() {
        assert_eq!(all(b"plain", 10).expect("passes"), b"plain");
    }

    #[test]
    fn broken_content_is_an_error() {
        let broken = [0x28, 0xb5, 0x2f, 0xfd, 0xff, 0xff, 0xff];
        assert!(all(&broken, 10).is_err());
        assert!(all(&[0x1f, 0x8b, 0, 0], 10).is_err());
    }
}
