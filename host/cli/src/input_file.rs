//! Files the user names, read with a bound: none makes this program take memory without end.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use crate::failure::Failure;
use crate::vm::Image;

/// What is read at most of a pipe, which may have no end, however large files may be.
const LARGEST_PIPE: u64 = 1 << 30;

/// Reads a file or a pipe of at most `limit` bytes; `too_large` says what is told of one with more.
///
/// # Errors
/// One that cannot be read, is a device, which may have no end, or has more bytes; a pipe with more than a gibibyte.
pub fn read(
    path: &Path,
    limit: u64,
    too_large: impl FnOnce() -> Failure,
) -> Result<Vec<u8>, Failure> {
    read_up_to(path, limit, LARGEST_PIPE, too_large)
}

fn read_up_to(
    path: &Path,
    limit: u64,
    pipe_limit: u64,
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
    let most = match metadata.is_file() {
        true => limit,
        false => limit.min(pipe_limit),
    };
    // What is not a regular file, or still grows, is seen to be too large by what comes.
    let mut bytes = Vec::new();
    if metadata.len() <= most {
        file.take(most.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(failure)?;
    }
    if metadata.len().max(bytes.len() as u64) <= most {
        return Ok(bytes);
    }
    if most == limit {
        return Err(too_large());
    }
    Err(Failure::new(
        format_args!("cannot use {}", path.display()),
        format_args!("more than {} MiB come from it", most >> 20),
        "name a file instead of a pipe, or check that it ends",
    ))
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

/// The same for one whose bytes only the guest looks at, and how many they are. A large file is not read yet: it goes
/// straight to the guest's memory, and takes none of ours.
///
/// # Errors
/// As for [`read`].
pub fn image_for_guest(path: &Path, memory_bytes: u64) -> Result<(Image, u64), Failure> {
    // Files that the kernel makes up as they are read say that they are empty, or a page long.
    const LARGE: u64 = 1 << 20;
    let failure = |e| Failure::reading(path, &e);
    // A pipe is opened only once, when it is read.
    let metadata = fs::metadata(path).map_err(failure)?;
    if metadata.is_file() && (LARGE..=memory_bytes).contains(&metadata.len()) {
        File::open(path).map_err(failure)?;
        return Ok((Image::File(path.to_owned()), metadata.len()));
    }
    let bytes = read_for_guest(path, memory_bytes)?;
    let size = bytes.len() as u64;
    Ok((Image::Bytes(Arc::new(bytes)), size))
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
    fn a_large_file_for_a_guest_is_not_read() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(&[7; LIMIT as usize - 1]).expect("written");
        let image = |file: &tempfile::NamedTempFile| image_for_guest(file.path(), LIMIT);
        let (small, size) = image(&file).expect("it fits");
        assert!(matches!(small, Image::Bytes(bytes) if *bytes == [7; LIMIT as usize - 1]));
        assert_eq!(size, LIMIT - 1);
        file.write_all(&[7]).expect("written");
        let (large, size) = image(&file).expect("it fits");
        assert!(matches!(large, Image::File(path) if path == file.path()));
        assert_eq!(size, LIMIT);
        file.write_all(&[7]).expect("written");
        let text = image(&file).expect_err("refused").to_string();
        assert!(text.contains("--memory gives 1M"), "{text}");
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

    /// What is told of a pipe without an end; and how much came through it.
    fn endless(read: impl FnOnce(&Path) -> Result<Vec<u8>, Failure>) -> (String, u64) {
        use std::os::fd::AsRawFd;
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let endless = std::thread::spawn(move || {
            let mut written = 0;
            while writer.write_all(&[0; 4096]).is_ok() {
                written += 4096;
            }
            written
        });
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        let text = read(Path::new(&path)).expect_err("refused").to_string();
        drop(reader);
        (text, endless.join().expect("it ends"))
    }

    /// What the pipe itself holds, and what was asked for beyond the limit.
    const SLACK: u64 = 1 << 20;

    #[test]
    fn a_pipe_is_read_no_further_than_to_the_limit() {
        let (text, written) = endless(|path| read_bounded(path, LIMIT));
        assert!(text.contains("it has more than 1 MiB"), "{text}");
        assert!(written <= LIMIT + SLACK, "{written}");
    }

    /// Also for a guest with much memory.
    #[test]
    fn a_pipe_has_a_limit_of_its_own() {
        let refused = || Failure::new("a", "b", "c");
        let (text, written) = endless(|path| read_up_to(path, 1 << 50, LIMIT, refused));
        assert!(
            text.ends_with(
                ": more than 1 MiB come from it; name a file instead of a pipe, or check that it ends"
            ),
            "{text}"
        );
        assert!(written <= LIMIT + SLACK, "{written}");
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(&[7; LIMIT as usize + 1]).expect("written");
        let read = read_up_to(file.path(), 1 << 50, LIMIT, refused).expect("it is no pipe");
        assert_eq!(read.len() as u64, LIMIT + 1);
    }
}
