//! Files the user names, read with a bound: none makes this program take memory without end.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::failure::Failure;

/// Reads a file or a pipe of at most `limit` bytes; `too_large` says what is told of one with more.
///
/// # Errors
/// One that cannot be read, is a device, which may have no end, or has more bytes.
pub fn read(
    path: &Path,
    limit: u64,
    too_large: impl FnOnce() -> Failure,
) -> Result<Vec<u8>, Failure> {
    let failure = |e| Failure::reading(path, &e);
    let file = File::open(path).map_err(failure)?;
    let metadata = file.metadata().map_err(failure)?;
    let kind = metadata.file_type();
    if kind.is_char_device() || kind.is_block_device() {
        return Err(Failure::new(
            format_args!("cannot read {}", path.display()),
            "it is a device",
            "name a file or a pipe",
        ));
    }
    // What is not a regular file, or still grows, is seen to be too large by what comes.
    let mut bytes = Vec::new();
    if metadata.len() <= limit {
        file.take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(failure)?;
    }
    match metadata.len().max(bytes.len() as u64) > limit {
        true => Err(too_large()),
        false => Ok(bytes),
    }
}

/// The same for a file whose kind has an upper bound.
///
/// # Errors
/// As for [`read`].
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    read(path, limit, || {
        Failure::new(
            format_args!("cannot use {}", path.display()),
            format_args!("it has more than {} MiB", limit >> 20),
            "check that it is the right file",
        )
    })
}

/// The same for a file that goes into a guest with so many bytes of memory.
///
/// # Errors
/// As for [`read`].
pub fn read_for_guest(path: &Path, memory_bytes: u64) -> Result<Vec<u8>, Failure> {
    read(path, memory_bytes, || {
        Failure::new(
            "too little memory for the guest",
            format_args!(
                "--memory gives {}M, {} alone has more",
                memory_bytes >> 20,
                path.display()
            ),
            "give it more, or check that it is the right file",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const LIMIT: u64 = 1 << 20;

    fn why(path: &Path) -> String {
        read_bounded(path, LIMIT).expect_err("refused").to_string()
    }

    #[test]
    fn a_file_may_have_as_much_as_the_limit() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(&[7; LIMIT as usize]).expect("written");
        let read = read_bounded(file.path(), LIMIT).expect("it fits");
        assert!(read == [7; LIMIT as usize]);
        file.write_all(&[7]).expect("written");
        let text = why(file.path());
        assert!(text.contains("it has more than 1 MiB; check"), "{text}");
        let text = read_for_guest(file.path(), LIMIT).expect_err("refused");
        assert!(text.to_string().contains("--memory gives 1M"), "{text}");
    }

    #[test]
    fn devices_and_folders_are_none() {
        let text = why(Path::new("/dev/zero"));
        assert_eq!(
            text,
            "cannot read /dev/zero: it is a device; name a file or a pipe"
        );
        assert!(why(Path::new("/")).starts_with("cannot read /: Is a directory"));
    }

    #[test]
    fn a_pipe_is_read_no_further_than_to_the_limit() {
        use std::os::fd::AsRawFd;
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let endless = std::thread::spawn(move || while writer.write_all(&[0; 4096]).is_ok() {});
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        let text = why(Path::new(&path));
        assert!(text.contains("it has more than 1 MiB"), "{text}");
        drop(reader);
        endless.join().expect("it ends");
    }
}
