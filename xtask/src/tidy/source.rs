//! A parsed Rust file, with its code and its comments told apart.
//!
//! The compiler's own tokens decide what is a comment: whatever no token covers is white space or a comment, and
//! a documentation comment is a token that is written as a comment. So a marker inside a string is code, and a
//! quote inside a comment confuses nothing.

use std::str::FromStr;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::Finding;

/// One Rust file.
pub struct Source<'a> {
    pub path: &'a str,
    pub text: &'a str,
    pub tokens: TokenStream,
    pub file: syn::File,
    /// The file's lines with everything but comments blanked out.
    comments: Vec<String>,
    /// The file's lines with the comments blanked out.
    code: Vec<String>,
}

impl<'a> Source<'a> {
    /// Reads `text`; a finding when it is not Rust.
    pub fn parse(path: &'a str, text: &'a str) -> Result<Source<'a>, Finding> {
        let refuse = |error: syn::Error| {
            Finding::new(
                path,
                error.span().start().line.max(1),
                format!("does not parse: {error}"),
            )
        };
        let tokens = TokenStream::from_str(text).map_err(|error| refuse(error.into()))?;
        let file = syn::parse2::<syn::File>(tokens.clone()).map_err(refuse)?;
        let mut is_code = vec![false; text.len()];
        mark_code(text, &tokens, &mut is_code);
        let lines = |keep: bool| -> Vec<String> {
            let kept = text.bytes().zip(&is_code).map(|(byte, &code)| match byte {
                b'\n' => '\n',
                _ if code == keep && byte.is_ascii() => byte as char,
                _ if code == keep => '?',
                _ => ' ',
            });
            kept.collect::<String>()
                .lines()
                .map(str::to_string)
                .collect()
        };
        Ok(Source {
            path,
            text,
            tokens,
            file,
            comments: lines(false),
            code: lines(true),
        })
    }

    /// The number of lines.
    pub fn line_count(&self) -> usize {
        self.text.lines().count()
    }

    /// The comment text of each line, with its 1-based number.
    pub fn comments(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.comments.iter().map(String::as_str))
    }

    /// Whether one of `words` stands in a comment on `line` or in the comments directly above it; attributes
    /// may stand between.
    pub fn has_comment_at(&self, line: usize, words: &[&str]) -> bool {
        let says = |line: usize| {
            words
                .iter()
                .any(|word| self.comments[line - 1].contains(word))
        };
        let belongs = |line: usize| {
            let code = self.code[line - 1].trim();
            let has_comment = !self.comments[line - 1].trim().is_empty();
            code.starts_with("#[") || code.starts_with("#![") || code.is_empty() && has_comment
        };
        says(line)
            || (1..line)
                .rev()
                .take_while(|&above| belongs(above))
                .any(says)
    }
}

/// Marks every byte that belongs to a token, except tokens that are written as a documentation comment.
fn mark_code(text: &str, tokens: &TokenStream, is_code: &mut [bool]) {
    for token in tokens.clone() {
        let range = token.span().byte_range();
        let written = text.get(range.clone()).unwrap_or_default();
        if written.starts_with("//") || written.starts_with("/*") {
            continue;
        }
        match token {
            TokenTree::Group(group) => {
                if group.delimiter() != Delimiter::None {
                    is_code[group.span_open().byte_range()].fill(true);
                    is_code[group.span_close().byte_range()].fill(true);
                }
                mark_code(text, &group.stream(), is_code);
            }
            _ => is_code[range].fill(true),
        }
    }
}

/// The name at the start of a token, if it is an identifier.
pub fn ident(token: Option<&TokenTree>) -> Option<String> {
    match token {
        Some(TokenTree::Ident(ident)) => Some(ident.to_string()),
        _ => None,
    }
}

/// Whether a token is the punctuation mark `mark`.
pub fn is_punct(token: Option<&TokenTree>, mark: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == mark)
}

/// Whether a token is a group in these delimiters.
pub fn is_group(token: Option<&TokenTree>, delimiter: Delimiter) -> bool {
    matches!(token, Some(TokenTree::Group(group)) if group.delimiter() == delimiter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_code_are_told_apart() {
        let text = "//! top\nlet a = \"// no\"; // yes /* \" */\n/* b\n c */ const D: char = '\"';\n/// doc\nfn f() {}\n";
        let text = &text.replace("let a", "const A: &str");
        let source = Source::parse("a.rs", text).expect("parses");
        let comments: Vec<_> = source
            .comments()
            .map(|(_, comment)| comment.trim().to_string())
            .collect();
        assert_eq!(
            comments,
            ["//! top", "// yes /* \" */", "/* b", "c */", "/// doc", ""]
        );
        let code: Vec<_> = source.code.iter().map(|line| line.trim()).collect();
        assert_eq!(
            code,
            [
                "",
                "const A: &str = \"// no\";",
                "",
                "const D: char = '\"';",
                "",
                "fn f() {}"
            ]
        );
    }

    #[test]
    fn comments_above_reach_through_attributes_but_not_through_code_or_blank_lines() {
        let text = "// one\n#[inline]\nfn a() {}\n\nfn b() {}\n// two\n\nfn c() {}\n// three\nfn d() {}\nfn e() {}\n";
        let source = Source::parse("a.rs", text).expect("parses");
        assert!(source.has_comment_at(3, &["one"]));
        assert!(!source.has_comment_at(5, &["one"]));
        assert!(!source.has_comment_at(8, &["two"]));
        assert!(source.has_comment_at(10, &["three"]));
        assert!(!source.has_comment_at(11, &["three"]));
    }

    #[test]
    fn what_is_not_rust_is_a_finding_at_its_line() {
        let finding = Source::parse("a.rs", "//! D.\n\nfn a( {}\n")
            .err()
            .expect("refused");
        assert!(
            finding.what.starts_with("does not parse"),
            "{}",
            finding.what
        );
        let finding = Source::parse("a.rs", "//! D.\nfn struct() {}\n")
            .err()
            .expect("refused");
        assert_eq!(finding.line, 2);
    }
}
