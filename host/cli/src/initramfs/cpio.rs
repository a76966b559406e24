//! Writes an initramfs: a cpio archive in the "newc" form (Linux
//! `Documentation/driver-api/early-userspace/buffer-format.rst`), unpacked, and the same bytes for the same
//! content: names sorted, times and owners zero.

use std::collections::BTreeMap;

/// The mark of a newc header.
const MAGIC: &[u8; 6] = b"070701";
/// The length of a newc header.
const HEADER_BYTES: usize = 110;
/// The name that ends an archive.
const TRAILER: &str = "TRAILER!!!";
/// `S_IFDIR`.
const DIRECTORY: u32 = 0o040_000;
/// `S_IFREG`.
const REGULAR: u32 = 0o100_000;
/// `S_IFCHR`.
const CHARACTER_DEVICE: u32 = 0o020_000;

#[derive(Debug, Clone, Copy)]
enum Node<'a> {
    Directory,
    File { mode: u32, content: &'a [u8] },
    CharacterDevice { mode: u32, major: u32, minor: u32 },
}

/// An archive being put together. Parent directories come by themselves.
#[derive(Debug, Default)]
pub struct Archive<'a> {
    nodes: BTreeMap<String, Node<'a>>,
}

impl<'a> Archive<'a> {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an empty directory.
    pub fn directory(&mut self, path: &str) {
        self.add(path, Node::Directory);
    }

    /// Adds a regular file with the permission bits `mode`.
    pub fn file(&mut self, path: &str, mode: u32, content: &'a [u8]) {
        self.add(path, Node::File { mode, content });
    }

    /// Adds a character device with the permission bits `mode`.
    pub fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.add(path, Node::CharacterDevice { mode, major, minor });
    }

    fn add(&mut self, path: &str, node: Node<'a>) {
        assert!(
            !path.is_empty() && !path.starts_with('/') && !path.contains('\0'),
            "a path in an archive is relative"
        );
        let mut slash = 0;
        while let Some(next) = path[slash..].find('/') {
            let parent = &path[..slash + next];
            self.nodes
                .entry(parent.to_string())
                .or_insert(Node::Directory);
            slash += next + 1;
        }
        self.nodes.insert(path.to_string(), node);
    }

    /// The archive's bytes. `None` if a file is too large for the format (4 GiB).
    pub fn finish(self) -> Option<Vec<u8>> {
        let content_bytes: usize = self
            .nodes
            .values()
            .map(|node| match node {
                Node::File { content, .. } => content.len(),
                Node::Directory | Node::CharacterDevice { .. } => 0,
            })
            .sum();
        let mut out = Vec::with_capacity(content_bytes + (self.nodes.len() + 1) * 256);
        for (index, (path, node)) in (1_u32..).zip(&self.nodes) {
            let (mode, links, device, content): (u32, u32, (u32, u32), &[u8]) = match *node {
                Node::Directory => (DIRECTORY | 0o755, 2, (0, 0), &[]),
                Node::File { mode, content } => (REGULAR | mode, 1, (0, 0), content),
                Node::CharacterDevice { mode, major, minor } => {
                    (CHARACTER_DEVICE | mode, 1, (major, minor), &[])
                }
            };
            let size = u32::try_from(content.len()).ok()?;
            entry(&mut out, path, [index, mode, links, size], device);
            out.extend_from_slice(content);
            pad(&mut out);
        }
        entry(&mut out, TRAILER, [0, 0, 1, 0], (0, 0));
        Some(out)
    }
}

/// Writes the header and the name. The fields after the magic are: inode, mode, uid, gid, links, mtime, size,
/// the device's and the node's major and minor numbers, the name's length with its zero byte, checksum.
fn entry(
    out: &mut Vec<u8>,
    path: &str,
    [inode, mode, links, size]: [u32; 4],
    (major, minor): (u32, u32),
) {
    let name_bytes =
        u32::try_from(path.len() + 1).expect("names are the few short ones of an image");
    let fields = [
        inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_bytes, 0,
    ];
    let start = out.len();
    out.extend_from_slice(MAGIC);
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    debug_assert_eq!(out.len() - start, HEADER_BYTES);
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
}

/// Every header and every content starts at a multiple of four.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// An entry as a reader of the format sees it.
    #[derive(Debug, PartialEq, Eq)]
    pub struct Read {
        pub path: String,
        pub mode: u32,
        pub mtime: u32,
        pub device: (u32, u32),
        pub content: Vec<u8>,
    }

    /// Reads a newc archive by the kernel's description of the format.
    pub fn parse(mut bytes: &[u8]) -> Vec<Read> {
        let total = bytes.len();
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let text = std::str::from_utf8(&bytes[6 + index * 8..14 + index * 8]);
                u32::from_str_radix(text.expect("digits"), 16).expect("digits")
            };
            let name_end = 110 + field(11) as usize;
            let path = String::from_utf8(bytes[110..name_end - 1].to_vec()).expect("text");
            assert_eq!(bytes[name_end - 1], 0);
            let at = total - bytes.len();
            let content_start = (at + name_end).next_multiple_of(4) - at;
            let content_end = content_start + field(6) as usize;
            if path == "TRAILER!!!" {
                return entries;
            }
            entries.push(Read {
                path,
                mode: field(1),
                mtime: field(5),
                device: (field(9), field(10)),
                content: bytes[content_start..content_end].to_vec(),
            });
            bytes = &bytes[(at + content_end).next_multiple_of(4) - at..];
        }
    }

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new();
        archive.file("init", 0o755, b"#!/bin/busybox sh\n");
        archive.file("bin/busybox", 0o755, &[7; 4097]);
        archive.directory("proc");
        archive.character_device("dev/console", 0o600, 5, 1);
        archive.finish().expect("small")
    }

    #[test]
    fn a_reader_finds_what_was_written() {
        let entries = parse(&sample());
        let list: Vec<_> = entries
            .iter()
            .map(|e| (e.path.as_str(), e.mode, e.content.len()))
            .collect();
        assert_eq!(
            list,
            [
                ("bin", 0o040_755, 0),
                ("bin/busybox", 0o100_755, 4097),
                ("dev", 0o040_755, 0),
                ("dev/console", 0o020_600, 0),
                ("init", 0o100_755, 18),
                ("proc", 0o040_755, 0),
            ]
        );
        assert_eq!(entries[3].device, (5, 1));
        assert!(entries.iter().all(|e| e.mtime == 0));
        assert_eq!(entries[4].content, b"#!/bin/busybox sh\n");
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        assert_eq!(sample(), sample());
    }

    #[test]
    fn the_hosts_cpio_lists_it() {
        let candidates: [(&str, &[&str]); 2] = [("cpio", &["-it"]), ("busybox", &["cpio", "-t"])];
        let Some((program, arguments)) = candidates
            .into_iter()
            .find(|(program, _)| crate::artifacts::apt::is_on_path(program))
        else {
            println!("skipped: this host has neither cpio nor busybox");
            return;
        };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut input = child.stdin.take().expect("piped");
        input.write_all(&sample()).expect("reads all");
        drop(input);
        let output = child.wait_with_output().expect("ends");
        assert!(output.status.success());
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "bin\nbin/busybox\ndev\ndev/console\ninit\nproc\n"
        );
    }
}
