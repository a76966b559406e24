//! Reads files out of a Debian package (deb(5)): an `ar` archive whose member `data.tar`, plain or packed,
//! holds the files.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Component, Path};

use super::decompress;
use crate::failure::{Failure, cause};

/// No file taken from a package may be larger.
const LARGEST_FILE: usize = 256 << 20;

/// A file taken from a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackagedFile {
    /// The path in the package, without a leading `./` or `/`.
    pub path: String,
    /// The content.
    pub content: Vec<u8>,
}

/// Reads the regular files of the package at `deb` whose path `wanted` says yes to.
///
/// # Errors
/// An unreadable or broken package.
pub fn extract(
    deb: &Path,
    mut wanted: impl FnMut(&str) -> bool,
) -> Result<Vec<PackagedFile>, Failure> {
    with_data(deb, |data| extract_tar(data, &mut wanted))
}

/// Unpacks all of the package at `deb` into `folder`: files with their permissions, folders, links. What would end
/// outside of the folder is left out.
///
/// # Errors
/// An unreadable or broken package, or a folder that cannot be written.
pub fn unpack(deb: &Path, folder: &Path) -> Result<(), Failure> {
    with_data(deb, |data| tar::Archive::new(data).unpack(folder))
}

/// What `take` makes of the unpacked `data.tar` of the package at `deb`.
fn with_data<T>(
    deb: &Path,
    take: impl FnOnce(Box<dyn Read + '_>) -> io::Result<T>,
) -> Result<T, Failure> {
    let file = File::open(deb).map_err(|e| Failure::reading(deb, &e))?;
    let broken = |error: io::Error| {
        Failure::new(
            format_args!("cannot unpack {}", deb.display()),
            cause(&error),
            "fetch it again, or give --kernel, --modules and --busybox",
        )
    };
    let mut archive = ar::Archive::new(BufReader::new(file));
    while let Some(member) = archive.next_entry() {
        let member = member.map_err(broken)?;
        if member.header().identifier().starts_with(b"data.tar") {
            return decompress::reader(member).and_then(take).map_err(broken);
        }
    }
    Err(broken(io::Error::new(
        io::ErrorKind::InvalidData,
        "it has no member data.tar",
    )))
}

fn extract_tar(
    data: impl Read,
    wanted: &mut dyn FnMut(&str) -> bool,
) -> io::Result<Vec<PackagedFile>> {
    let mut files = Vec::new();
    for entry in tar::Archive::new(data).entries()? {
        let entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let Some(path) = plain_path(&entry.path()?) else {
            continue;
        };
        if wanted(&path) {
            let content = decompress::read_limited(entry, LARGEST_FILE)?;
            files.push(PackagedFile { path, content });
        }
    }
    Ok(files)
}

/// The path's ordinary components joined by `/`; `None` for a path that climbs or is not UTF-8.
fn plain_path(path: &Path) -> Option<String> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(data_name: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, *content)
                .expect("memory");
        }
        let data = tar.into_inner().expect("memory");
        let mut archive = ar::Builder::new(Vec::new());
        for (name, content) in [("debian-binary", &b"2.0\n"[..]), (data_name, &data)] {
            let header = ar::Header::new(name.into(), content.len() as u64);
            archive.append(&header, content).expect("memory");
        }
        archive.into_inner().expect("memory")
    }

    fn written(content: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), content).expect("writes");
        file
    }

    #[test]
    fn the_wanted_files_come_out() {
        let deb = written(&package(
            "data.tar",
            &[("./bin/busybox", b"box"), ("./usr/share/doc/x", b"doc")],
        ));
        let files = extract(deb.path(), |path| path == "bin/busybox").expect("unpacks");
        let expected = PackagedFile {
            path: "bin/busybox".into(),
            content: b"box".to_vec(),
        };
        assert_eq!(files, [expected]);
    }

    #[test]
    fn a_package_is_unpacked_into_a_folder() {
        let deb = written(&package(
            "data.tar",
            &[("./bin/busybox", b"box"), ("./usr/share/x", b"x")],
        ));
        let folder = tempfile::tempdir().expect("a folder");
        unpack(deb.path(), folder.path()).expect("unpacks");
        let read = |path| std::fs::read(folder.path().join(path)).expect("there");
        assert_eq!(
            (read("bin/busybox"), read("usr/share/x")),
            (b"box".to_vec(), b"x".to_vec())
        );
        assert!(unpack(written(&[0xa5; 4096]).path(), folder.path()).is_err());
    }

    #[test]
    fn a_package_without_data_says_so() {
        let deb = written(&package("control.tar", &[("x", b"y")]));
        let failure = extract(deb.path(), |_| true).expect_err("no data");
        assert_eq!(failure.why, "it has no member data.tar");
    }

    #[test]
    fn rubbish_is_an_error() {
        let deb = written(&[0xa5; 4096]);
        assert!(extract(deb.path(), |_| true).is_err());
        let whole = package("data.tar", &[("x", &[1; 5000])]);
        let cut = written(&whole[..whole.len() / 2]);
        assert!(extract(cut.path(), |_| true).is_err());
    }
}
