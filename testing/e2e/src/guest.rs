//! A made-up kernel as a file, and runs of it.

use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};

use crate::kernel;
use crate::program::Run;

/// A made-up kernel in a file.
#[derive(Debug)]
pub struct Guest {
    file: NamedTempFile,
}

impl Guest {
    /// A kernel of these parts, one after the other, which spins if it comes to its end.
    ///
    /// # Panics
    /// The file cannot be written.
    #[must_use]
    pub fn new(parts: &[Vec<u8>]) -> Self {
        let mut code = parts.concat();
        code.extend(kernel::spin());
        let file = NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), kernel::bzimage(&code)).expect("written");
        Self { file }
    }

    /// The bzImage.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// A run of it on the soft engine, with more options.
    #[must_use]
    pub fn run(&self, options: &[&str]) -> Run {
        let run = run_kernel(self.path()).args(["--engine", "soft"]);
        let memory: &[&str] = match options.contains(&"--memory") {
            true => &[],
            false => &["--memory", "128M"],
        };
        run.args(memory).args(options)
    }
}

/// A run of the kernel at `path`.
#[must_use]
pub fn run_kernel(path: &Path) -> Run {
    Run::nestling(["run", "--kernel"]).args([path])
}

/// What a level of a demo is started with, in files, so that `run` can start it.
#[derive(Debug)]
pub struct Level1 {
    folder: TempDir,
    append: String,
}

impl Level1 {
    /// Level 1 of a demo of `depth` levels.
    ///
    /// # Panics
    /// The images cannot be written.
    #[must_use]
    pub fn of(depth: u8) -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        crate::cache::write_images(depth, folder.path())
            .cache(crate::cache::shared())
            .end()
            .expect_code(0);
        let append = std::fs::read_to_string(folder.path().join("append.txt")).expect("readable");
        Self {
            folder,
            append: append.trim().to_owned(),
        }
    }

    /// The same with more words on its kernel's command line; the kernel lets later words win.
    #[must_use]
    pub fn with_words(mut self, words: &str) -> Self {
        self.append = format!("{} {words}", self.append);
        self
    }

    /// A run of it on the soft engine, with more options.
    #[must_use]
    pub fn run(&self, options: &[&str]) -> Run {
        self.run_kernel(&self.kernel(), options)
    }

    /// Its bzImage.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.folder.path().join("vmlinuz")
    }

    /// The same with another file of the kernel.
    #[must_use]
    pub fn run_kernel(&self, kernel: &Path, options: &[&str]) -> Run {
        run_kernel(kernel)
            .args(["--engine", "soft", "--append", &self.append, "--initrd"])
            .args([self.folder.path().join("initramfs.cpio")])
            .args(options)
    }
}
