//! Rules on the text of a file: white space, ASCII, and no paths of somebody's machine.

use super::Finding;

/// Folders that exist on one machine only; written apart, so that this file obeys its own rule.
const MACHINE_FOLDERS: &[&str] = &["work", "home", "root"];

/// All text rules on one file.
pub fn check(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let rust = path.ends_with(".rs");
    let prose = path.ends_with(".md");
    for (number, line) in (1..).zip(text.split('\n')) {
        let mut say = |what: String| findings.push(Finding::new(path, number, what));
        if (rust || prose) && line.ends_with(char::is_whitespace) {
            say("trailing white space".into());
        }
        if (rust || prose) && line.contains('\t') {
            say("tab; indent with spaces".into());
        }
        if rust && let Some(odd) = line.chars().find(|c| !c.is_ascii()) {
            say(format!("U+{:04X} is not ASCII", u32::from(odd)));
        }
        if let Some(folder) = MACHINE_FOLDERS
            .iter()
            .find(|folder| names_folder(line, folder))
        {
            say(format!("path under /{folder} of one machine"));
        }
    }
    findings
}

/// Whether `line` has the absolute path `/folder/...`, not as part of a longer path or a URL.
fn names_folder(line: &str, folder: &str) -> bool {
    let needle = format!("/{folder}/");
    line.match_indices(&needle).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !c.is_ascii_alphanumeric() && !"._-~/})>*".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whats(path: &str, text: &str) -> Vec<String> {
        check(path, text)
            .into_iter()
            .map(|finding| finding.what)
            .collect()
    }

    #[test]
    fn white_space_at_the_end_of_a_line() {
        assert_eq!(whats("a.rs", "fn a() {} \n"), ["trailing white space"]);
        assert_eq!(whats("a.md", "word\r\n"), ["trailing white space"]);
        assert!(whats("a.rs", "fn a() {}\n\nfn b() {}\n").is_empty());
        assert!(
            whats("a.snap", "golden \n").is_empty(),
            "golden text is what it is"
        );
    }

    #[test]
    fn tabs() {
        assert_eq!(whats("a.rs", "\tfn a() {}\n"), ["tab; indent with spaces"]);
        assert_eq!(whats("a.md", "-\tpoint\n"), ["tab; indent with spaces"]);
        assert!(whats("Makefile", "\tcc\n").is_empty());
        assert!(whats("a.rs", "const TAB: char = '\\t';\n").is_empty());
    }

    #[test]
    fn rust_is_ascii_and_prose_need_not_be() {
        assert_eq!(whats("a.rs", "// \u{2192}\n"), ["U+2192 is not ASCII"]);
        assert!(whats("a.rs", "// ->\n").is_empty());
        assert!(whats("a.md", "\u{2192}\n").is_empty());
    }

    #[test]
    fn paths_of_one_machine_in_any_file() {
        for folder in ["work", "home", "root"] {
            let path = format!("/{folder}/nestling");
            let what = format!("path under /{folder} of one machine");
            for text in [
                path.clone(),
                format!("cd {path}"),
                format!("\"{path}\""),
                format!("=\"{path}\""),
            ] {
                for file in ["a.rs", "a.md", ".ci/run", "a.toml"] {
                    assert_eq!(whats(file, &text), [what.as_str()], "{text}");
                }
            }
            for text in [
                format!("https://example.org/{folder}/page"),
                format!("docs/{folder}/a.md"),
                format!("$DIR/{folder}/a"),
                format!("${{dir}}/{folder}/a"),
                format!("/{folder}"),
                format!("/{folder}bench/"),
            ] {
                assert!(whats("a.md", &text).is_empty(), "{text}");
            }
        }
    }
}
