//! Rules on documentation: every module opens with what it is, and prose names only files that exist.

use std::collections::BTreeSet;

use syn::AttrStyle;

use super::Finding;
use super::source::Source;

/// A file under `src` opens with module docs. A `tests.rs` need not: it tests what the module above it models.
pub fn check_rust(source: &Source<'_>) -> Vec<Finding> {
    let in_src = source.path.starts_with("src/") || source.path.contains("/src/");
    let documented = source.file.attrs.iter().any(|attribute| {
        matches!(attribute.style, AttrStyle::Inner(_)) && attribute.path().is_ident("doc")
    });
    let is_tests = source.path.ends_with("/tests.rs");
    if in_src && !is_tests && !documented {
        return vec![Finding::new(
            source.path,
            1,
            "no module docs (//!) at the top",
        )];
    }
    Vec::new()
}

/// Paths in backquotes have to exist, from the root of the tree or from the page's own folder. Decision records
/// tell of their day and are not held to it.
pub fn check_markdown(path: &str, text: &str, tree: &BTreeSet<String>) -> Vec<Finding> {
    if path.starts_with("docs/decisions/") {
        return Vec::new();
    }
    let own_folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut findings = Vec::new();
    let mut fenced = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if fenced {
            continue;
        }
        for quoted in line
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|quoted| is_path(quoted))
        {
            if !exists(tree, quoted) && !exists(tree, &format!("{own_folder}/{quoted}")) {
                findings.push(Finding::new(
                    path,
                    number,
                    format!("`{quoted}` does not exist"),
                ));
            }
        }
    }
    findings
}

/// Whether a quoted word is meant as a path of this tree: a folder ends in `/`, a file in an ending of ours.
fn is_path(quoted: &str) -> bool {
    let plain = quoted
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
    let relative = !quoted.starts_with(['/', '.'])
        || quoted.starts_with(".ci/")
        || quoted.starts_with(".cargo/");
    let has_folder = quoted.contains('/');
    plain
        && relative
        && has_folder
        && [".rs", ".toml", ".md", ".S", "/"]
            .iter()
            .any(|end| quoted.ends_with(end))
}

fn exists(tree: &BTreeSet<String>, path: &str) -> bool {
    if path.ends_with('/') {
        return tree
            .range(path.to_string()..)
            .next()
            .is_some_and(|next| next.starts_with(path));
    }
    tree.contains(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rust(path: &str, text: &str) -> usize {
        check_rust(&Source::parse(path, text).expect("the sample parses")).len()
    }

    #[test]
    fn module_docs_at_the_top_of_source_files() {
        assert_eq!(rust("a/src/b.rs", "fn a() {}\n"), 1);
        assert_eq!(rust("a/src/b.rs", "/// Of a.\nfn a() {}\n"), 1);
        assert_eq!(rust("a/src/b.rs", "// Plain.\nfn a() {}\n"), 1);
        assert_eq!(rust("a/src/b.rs", "#![no_std]\nfn a() {}\n"), 1);
        assert_eq!(rust("a/src/b.rs", "fn a() {\n    //! Of a.\n}\n"), 1);
        assert_eq!(rust("a/src/b.rs", "//! What this is.\nfn a() {}\n"), 0);
        assert_eq!(rust("a/src/b.rs", "#![no_std]\n//! What this is.\n"), 0);
        assert_eq!(rust("a/tests/b.rs", "fn a() {}\n"), 0);
        assert_eq!(rust("a/src/b/tests.rs", "fn a() {}\n"), 0);
        assert_eq!(rust("a/src/contests.rs", "fn a() {}\n"), 1);
        assert_eq!(rust("xtask/src/main.rs", "fn main() {}\n"), 1);
    }

    #[test]
    fn paths_in_prose_exist() {
        let tree: BTreeSet<String> = [
            "docs/architecture.md",
            "engines/softcpu/src/lib.rs",
            "README.md",
        ]
        .map(String::from)
        .into();
        let found = |path: &str, text: &str| check_markdown(path, text, &tree);
        for good in [
            "`engines/softcpu/src/lib.rs` and `engines/softcpu/`",
            "`docs/architecture.md`",
            "`x/y` is a fraction, `lib.rs` a bare name, `/dev/kvm/` a device, `a b/c.rs` a command",
            "engines/gone.rs without quotes",
            "```\n`engines/gone.rs`\n```",
        ] {
            assert!(found("README.md", good).is_empty(), "{good}");
        }
        assert!(
            found("engines/softcpu/README.md", "`src/lib.rs`").is_empty(),
            "from the page's own folder"
        );
        assert_eq!(
            found(
                "README.md",
                "One.\n`docs/architecture.md`, `engines/softcpu/src/gone.rs`\n"
            ),
            [Finding::new(
                "README.md",
                2,
                "`engines/softcpu/src/gone.rs` does not exist"
            )]
        );
        assert_eq!(found("README.md", "`devices/`").len(), 1);
        assert_eq!(
            found("README.md", "`engines/soft/`").len(),
            1,
            "a part of a name is no folder"
        );
        assert_eq!(found("README.md", "`.ci/gone.toml`").len(), 1);
        assert!(found("docs/decisions/0001-a.md", "`engines/gone.rs`").is_empty());
    }
}
