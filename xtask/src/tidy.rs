//! `cargo xtask tidy`: the rules of `docs/conventions.md` that a program can check.
//!
//! Every tracked file, and every new one that is not ignored, is read once. Rust files are parsed, so that text
//! inside strings and macros is judged for what it is. One module for each subject; each rule has a sample that
//! passes and one that fails in its tests.

mod docs;
mod leftovers;
mod names;
mod size;
mod source;
mod text;
mod unsafety;

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZero;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};

use crate::Report;
use source::Source;

/// What a rule has found.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    /// 1-based.
    line: usize,
    what: String,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Finding {
        Finding {
            path: path.to_string(),
            line,
            what: what.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// Checks the files of the checkout at `root`.
pub fn run(root: &Path) -> Result<Report> {
    let paths = tracked_files(root)?;
    let tree: BTreeSet<String> = paths.iter().cloned().collect();
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let findings = check_files(root, &paths, &tree, threads)?;
    let rust_files = paths.iter().filter(|path| path.ends_with(".rs")).count();
    Ok(Report {
        findings: findings.iter().map(Finding::to_string).collect(),
        summary: format!(
            "tidy: {} files checked, {rust_files} of them Rust",
            paths.len()
        ),
    })
}

/// Every rule on all files, in `threads` parts at once; what is found comes in the order of the files.
fn check_files(
    root: &Path,
    paths: &[String],
    tree: &BTreeSet<String>,
    threads: usize,
) -> Result<Vec<Finding>> {
    let check = |path: &String| {
        let bytes =
            std::fs::read(root.join(path)).with_context(|| format!("cannot read {path}"))?;
        Ok(check_file(path, &bytes, tree))
    };
    let part = paths.len().div_ceil(threads.max(1)).max(1);
    let parts: Vec<Result<Vec<_>>> = thread::scope(|scope| {
        let running: Vec<_> = paths
            .chunks(part)
            .map(|files| scope.spawn(|| files.iter().map(check).collect()))
            .collect();
        let ended = |part: thread::ScopedJoinHandle<'_, _>| {
            part.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        running.into_iter().map(ended).collect()
    });
    let mut findings = Vec::new();
    for part in parts {
        findings.extend(part?.into_iter().flatten());
    }
    Ok(findings)
}

/// The paths git tracks or would track, from `root`, without those that were removed from the disk.
fn tracked_files(root: &Path) -> Result<Vec<String>> {
    let output = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
            "--deduplicate",
        ])
        .current_dir(root)
        .output()
        .context("cannot run git")?;
    if !output.status.success() {
        bail!(
            "git ls-files failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let listing = String::from_utf8(output.stdout).context("a tracked path is not UTF-8")?;
    let is_file = |path: &&str| {
        root.join(path)
            .symlink_metadata()
            .is_ok_and(|found| found.is_file())
    };
    let paths: Vec<String> = listing
        .split('\0')
        .filter(|path| !path.is_empty())
        .filter(is_file)
        .map(str::to_string)
        .collect();
    if paths.is_empty() {
        bail!("git tracks no files in {}", root.display());
    }
    Ok(paths)
}

/// Every rule on one file. `tree` is the set of all paths, for rules about references.
fn check_file(path: &str, bytes: &[u8], tree: &BTreeSet<String>) -> Vec<Finding> {
    let mut findings = names::check(path);
    let Ok(text) = std::str::from_utf8(bytes) else {
        if path.ends_with(".rs") {
            findings.push(Finding::new(path, 1, "is not UTF-8"));
        }
        return findings;
    };
    if text.contains('\0') {
        return findings;
    }
    findings.extend(text::check(path, text));
    if path.ends_with(".rs") {
        match Source::parse(path, text) {
            Ok(source) => {
                findings.extend(size::check(&source));
                findings.extend(leftovers::check_rust(&source));
                findings.extend(unsafety::check_rust(&source));
                findings.extend(names::check_rust(&source));
                findings.extend(docs::check_rust(&source));
            }
            Err(finding) => findings.push(finding),
        }
    } else if path.ends_with(".md") {
        findings.extend(docs::check_markdown(path, text, tree));
    } else {
        findings.extend(leftovers::check_text(path, text));
    }
    if path.ends_with("Cargo.toml") {
        findings.extend(unsafety::check_manifest(path, text));
    }
    findings.sort_by_key(|finding| finding.line);
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whats(path: &str, text: &str) -> Vec<String> {
        check_file(path, text.as_bytes(), &BTreeSet::new())
            .into_iter()
            .map(|finding| finding.what)
            .collect()
    }

    #[test]
    fn a_clean_file_passes_every_rule() {
        let text = "//! What this models.\n\n/// Adds one.\npub fn next(n: u64) -> u64 {\n    n.wrapping_add(1)\n}\n";
        assert_eq!(
            whats("engines/softcpu/src/lib.rs", text),
            Vec::<String>::new()
        );
        assert_eq!(
            whats(
                "arch/x86defs/Cargo.toml",
                "[package]\n\n[lints]\nworkspace = true\n"
            ),
            Vec::<String>::new()
        );
        assert_eq!(
            whats("docs/architecture.md", "# The house\n"),
            Vec::<String>::new()
        );
    }

    /// One sample for each subject, so that no module of rules can be left out of `check_file`.
    #[test]
    fn every_subject_is_wired_in() {
        let file = "engines/softcpu/src/decode.rs";
        let finds = |path: &str, text: &str, part: &str| {
            let found = whats(path, text);
            assert!(
                found.iter().any(|what| what.contains(part)),
                "{path}: {found:?} lacks {part:?}"
            );
        };
        finds("engines/softcpu/src/misc.rs", "//! D.\n", "module name");
        finds(file, "//! D.\nmod util;\n", "module name");
        finds(file, "//! D.\nfn a() {} \n", "white space");
        finds(
            file,
            &format!("//! D.\n{}", "const A: u8 = 0;\n".repeat(1_000)),
            "lines",
        );
        finds(file, "//! D.\nfn a() { todo!() }\n", "todo!");
        finds(file, "//! D.\nfn a() { unsafe { b() } }\n", "unsafe");
        finds(file, "fn a() {}\n", "module docs");
        finds(file, "//! D.\nfn a( {}\n", "does not parse");
        finds(".ci/run", "true # TODO\n", "TODO");
        finds("README.md", "See `docs/nowhere.md`.\n", "does not exist");
        finds("engines/softcpu/Cargo.toml", "[package]\n", "lints");
        let bad_bytes = check_file(file, b"//! \xff\n", &BTreeSet::new());
        assert_eq!(bad_bytes, [Finding::new(file, 1, "is not UTF-8")]);
    }

    #[test]
    fn binary_files_are_judged_by_name_only() {
        assert_eq!(
            whats("guests/blob.bin", "a\0 TODO \n"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn findings_come_in_the_order_of_lines_and_print_as_path_line_what() {
        let found = check_file(
            "engines/softcpu/src/a.rs",
            b"//! D.\nfn a() { dbg!(1); } \nmod util;\n",
            &BTreeSet::new(),
        );
        let lines: Vec<_> = found.iter().map(|finding| finding.line).collect();
        assert_eq!(lines, [2, 2, 3]);
        assert!(
            found[2]
                .to_string()
                .starts_with("engines/softcpu/src/a.rs:3: "),
            "{}",
            found[2]
        );
    }

    #[test]
    fn any_number_of_threads_finds_the_same_in_the_same_order() {
        let folder = std::env::temp_dir().join(format!("xtask-threads-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let paths: Vec<String> = (0..7).map(|n| format!("file{n}.rs")).collect();
        for path in &paths {
            std::fs::write(folder.join(path), "fn a() {} \n").expect("a file");
        }
        let found = |threads| check_files(&folder, &paths, &BTreeSet::new(), threads);
        let alone = found(1).expect("all can be read");
        let files: BTreeSet<_> = alone.iter().map(|finding| finding.path.clone()).collect();
        assert!(files.iter().eq(&paths), "{files:?}");
        for threads in [2, 3, 7, 100] {
            assert_eq!(found(threads).expect("all can be read"), alone, "{threads}");
        }
        std::fs::remove_file(folder.join("file6.rs")).expect("removed");
        let error = found(3).expect_err("a file that cannot be read");
        assert!(error.to_string().contains("file6.rs"), "{error}");
        std::fs::remove_dir_all(&folder).expect("cleaned up");
    }

    #[test]
    fn files_come_from_git_new_ones_too_ignored_and_removed_ones_not() {
        let folder = std::env::temp_dir().join(format!("xtask-tidy-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let git = |args: &[&str]| {
            let status = Command::new("git")
                .args(args)
                .current_dir(&folder)
                .status()
                .expect("git runs");
            assert!(status.success(), "git {args:?}");
        };
        git(&["init", "--quiet"]);
        for name in ["tracked.rs", "removed.rs", "new.rs", "ignored.rs"] {
            std::fs::write(folder.join(name), "//! D.\n").expect("a file");
        }
        std::fs::write(folder.join(".gitignore"), "/ignored.rs\n").expect("a file");
        git(&["add", "tracked.rs", "removed.rs"]);
        std::fs::remove_file(folder.join("removed.rs")).expect("removed");
        let mut paths = tracked_files(&folder).expect("a listing");
        paths.sort();
        std::fs::remove_dir_all(&folder).expect("cleaned up");
        assert_eq!(paths, [".gitignore", "new.rs", "tracked.rs"]);
    }
}
