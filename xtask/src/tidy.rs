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
use std::path::Path;
use std::process::Command;

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
    let mut findings = Vec::new();
    let mut rust_files = 0;
    for path in &paths {
        let bytes =
            std::fs::read(root.join(path)).with_context(|| format!("cannot read {path}"))?;
        rust_files += usize::from(path.ends_with(".rs"));
        findings.extend(check_file(path, &bytes, &tree));
    }
    Ok(Report {
        findings: findings.iter().map(Finding::to_string).collect(),
        summary: format!(
            "tidy: {} files checked, {rust_files} of them Rust",
            paths.len()
        ),
    })
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
