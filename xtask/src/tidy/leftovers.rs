//! Rules on what is left over from writing: markers in comments, placeholder macros, tests switched off.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::Finding;
use super::source::{Source, ident, is_punct};

/// Markers that stand for work not done, as whole words.
const MARKERS: &[&str] = &["TODO", "FIXME", "XXX"];
/// Macros that stand for code not written, or were put in to look at something.
const MACROS: &[&str] = &["todo", "unimplemented", "dbg"];

/// Left-overs of a Rust file: markers in its comments, macros and attributes in its code.
pub fn check_rust(source: &Source<'_>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = source
        .comments()
        .filter_map(|(line, comment)| marker(source.path, line, comment))
        .collect();
    check_tokens(source.path, &source.tokens, &mut findings);
    findings
}

/// Left-overs of any other file that is not prose: markers anywhere.
pub fn check_text(path: &str, text: &str) -> Vec<Finding> {
    (1..)
        .zip(text.lines())
        .filter_map(|(line, text)| marker(path, line, text))
        .collect()
}

fn marker(path: &str, line: usize, text: &str) -> Option<Finding> {
    let words = || text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let found = MARKERS
        .iter()
        .find(|marker| words().any(|word| word == **marker))?;
    Some(Finding::new(path, line, format!("left-over {found}")))
}

fn check_tokens(path: &str, tokens: &TokenStream, findings: &mut Vec<Finding>) {
    let tokens: Vec<TokenTree> = tokens.clone().into_iter().collect();
    for (i, token) in tokens.iter().enumerate() {
        let line = token.span().start().line;
        match token {
            TokenTree::Ident(name) if is_punct(tokens.get(i + 1), '!') => {
                if let Some(found) = MACROS.iter().find(|known| name == *known) {
                    findings.push(Finding::new(path, line, format!("left-over {found}!")));
                }
            }
            TokenTree::Punct(hash)
                if hash.as_char() == '#' && tokens.get(i + 1).is_some_and(ignores_a_test) =>
            {
                findings.push(Finding::new(path, line, "a test switched off by #[ignore]"));
            }
            TokenTree::Group(group) => check_tokens(path, &group.stream(), findings),
            _ => {}
        }
    }
}

/// Whether an attribute's brackets hold `ignore`, also under a condition.
fn ignores_a_test(brackets: &TokenTree) -> bool {
    let TokenTree::Group(brackets) = brackets else {
        return false;
    };
    if brackets.delimiter() != Delimiter::Bracket {
        return false;
    }
    let inside: Vec<TokenTree> = brackets.stream().into_iter().collect();
    match ident(inside.first()).as_deref() {
        Some("ignore") => true,
        Some("cfg_attr") => match inside.get(1) {
            Some(TokenTree::Group(parts)) => parts
                .stream()
                .into_iter()
                .any(|part| ident(Some(&part)).as_deref() == Some("ignore")),
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(usize, String)> {
        let source = Source::parse("a/src/b.rs", text).expect("the sample parses");
        check_rust(&source)
            .into_iter()
            .map(|finding| (finding.line, finding.what))
            .collect()
    }

    #[test]
    fn markers_in_comments_of_any_kind() {
        for marker in ["TODO", "FIXME", "XXX"] {
            for comment in [
                "// @: later",
                "/// @",
                "//! @ ",
                "/* a\n @ */",
                "fn b() {} // (@)",
            ] {
                let text = format!("{}\nfn a() {{}}\n", comment.replace('@', marker));
                let found = found(&text);
                assert_eq!(found.len(), 1, "{text}");
                assert_eq!(found[0].1, format!("left-over {marker}"));
            }
        }
        assert_eq!(found("/* a\n TODO */ fn a() {}\n")[0].0, 2);
    }

    #[test]
    fn markers_elsewhere_or_inside_words_are_none() {
        assert!(found("const A: &str = \"TODO\";\n").is_empty());
        assert!(found("// TODOS, 0xXXX, mktemp.XXXXXX\nfn a() {}\n").is_empty());
    }

    #[test]
    fn markers_in_scripts_and_manifests() {
        assert_eq!(
            check_text(".ci/run", "set -e\ntrue # FIXME\n"),
            [Finding::new(".ci/run", 2, "left-over FIXME")]
        );
        assert!(check_text(".ci/run", "mktemp /tmp/a.XXXXXX\n").is_empty());
    }

    #[test]
    fn placeholder_macros_also_inside_other_macros() {
        for name in ["todo", "unimplemented", "dbg"] {
            let expected = [(2, format!("left-over {name}!"))];
            assert_eq!(found(&format!("fn a() {{\n    {name}!()\n}}\n")), expected);
            assert_eq!(
                found(&format!("fn a() {{\n    vec![b(std::{name}!(1))];\n}}\n")),
                expected
            );
            assert_eq!(
                found(&format!(
                    "macro_rules! a {{\n    () => {{ {name}!() }};\n}}\n"
                )),
                expected
            );
            assert!(found(&format!("// {name}!()\nfn {name}() {{ {name}() }}\n")).is_empty());
        }
        assert!(found("fn a() { unreachable!(\"never\") }\n").is_empty());
    }

    #[test]
    fn tests_switched_off() {
        let off = "a test switched off by #[ignore]".to_string();
        assert_eq!(found("#[test]\n#[ignore]\nfn a() {}\n"), [(2, off.clone())]);
        assert_eq!(
            found("#[test]\n#[ignore = \"slow\"]\nfn a() {}\n"),
            [(2, off.clone())]
        );
        assert_eq!(
            found("mod b {\n#[cfg_attr(unix, ignore)]\nfn a() {}\n}\n"),
            [(2, off)]
        );
        assert!(found("#[test]\nfn ignore() {}\n").is_empty());
    }
}
