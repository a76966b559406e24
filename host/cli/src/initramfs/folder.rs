//! The files of a folder, to be put into a guest.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::artifacts::{GuestFile, LARGEST_FILE_BYTES};
use crate::failure::Failure;
use crate::input_file;

/// All regular files below `folder`, sorted by their paths; links are followed.
///
/// # Errors
/// A file that cannot be read, or whose name is not UTF-8.
pub fn files(folder: &Path) -> Result<Vec<GuestFile>, Failure> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(below) = folders.pop() {
        let here = folder.join(&below);
        let reading = |e: std::io::Error| Failure::reading(&here, &e);
        for entry in fs::read_dir(&here).map_err(reading)? {
            let name = entry.map_err(reading)?.file_name();
            let (path, below) = (here.join(&name), below.join(&name));
            let reading = |e: std::io::Error| Failure::reading(&path, &e);
            let metadata = fs::metadata(&path).map_err(reading)?;
            if metadata.is_dir() {
                folders.push(below);
                continue;
            }
            let name = below.to_str().ok_or_else(|| {
                Failure::new(
                    format_args!("cannot put {} into a guest", path.display()),
                    "its name is not UTF-8",
                    "give it another name",
                )
            })?;
            files.push(GuestFile {
                path: name.to_string(),
                mode: metadata.permissions().mode() & 0o777,
                content: input_file::read_bounded(&path, LARGEST_FILE_BYTES)?,
            });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_their_places_and_permissions() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = |name: &str| folder.path().join(name);
        fs::create_dir_all(place("usr/bin")).expect("folders");
        fs::write(place("usr/bin/tool"), "tool").expect("written");
        fs::set_permissions(place("usr/bin/tool"), fs::Permissions::from_mode(0o755)).expect("set");
        fs::write(place("a"), "a").expect("written");
        fs::set_permissions(place("a"), fs::Permissions::from_mode(0o640)).expect("set");
        let found = files(folder.path()).expect("readable");
        let found: Vec<_> = found
            .iter()
            .map(|f| (&f.path[..], f.mode, &f.content[..]))
            .collect();
        assert_eq!(
            found,
            [
                ("a", 0o640, &b"a"[..]),
                ("usr/bin/tool", 0o755, &b"tool"[..])
            ]
        );
        assert!(files(&place("nothing")).is_err());
    }
}
