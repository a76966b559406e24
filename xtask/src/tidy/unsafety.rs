//! Rules on `unsafe`: only in the crates that are its borders, and never without a reason.
//!
//! The rules read tokens, not syntax trees, so that code inside macros counts like any other. A block, an `impl`
//! and an `extern` block need a comment with `SAFETY:` directly above; a function and a trait may instead have a
//! `# Safety` section in their documentation. Above means above the word, or above the statement, argument or
//! match arm the word stands in.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::Finding;
use super::source::{Source, ident, is_group, is_punct};
use crate::house;

/// A comment that gives the reason.
const REASON: &str = "SAFETY:";
/// The section of a function's or trait's documentation that gives its terms.
const TERMS: &str = "# Safety";

/// All rules on `unsafe` in one Rust file.
pub fn check_rust(source: &Source<'_>) -> Vec<Finding> {
    let mut walk = Walk {
        source,
        allowed: house::may_be_unsafe(source.path),
        findings: Vec::new(),
    };
    walk.tokens(&source.tokens, &[]);
    walk.findings
}

/// A package's manifest takes the workspace's lints, unless the package is a border.
pub fn check_manifest(path: &str, text: &str) -> Vec<Finding> {
    if path == "Cargo.toml" || house::may_be_unsafe(path) {
        return Vec::new();
    }
    let mut section = "";
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section == "[lints]" && line.replace(' ', "") == "workspace=true" {
            return Vec::new();
        }
    }
    vec![Finding::new(
        path,
        1,
        "does not take the workspace's lints ([lints] workspace = true)",
    )]
}

/// What an `unsafe` stands before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Block,
    Impl,
    Extern,
    Fn,
    Trait,
    Attribute,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Block => "block",
            Kind::Impl => "impl",
            Kind::Extern => "extern block",
            Kind::Fn => "fn",
            Kind::Trait => "trait",
            Kind::Attribute => "attribute",
        }
    }

    /// The comments that serve as its reason.
    fn reasons(self) -> &'static [&'static str] {
        match self {
            Kind::Fn | Kind::Trait => &[REASON, TERMS],
            Kind::Block | Kind::Impl | Kind::Extern | Kind::Attribute => &[REASON],
        }
    }
}

struct Walk<'a> {
    source: &'a Source<'a>,
    allowed: bool,
    findings: Vec<Finding>,
}

impl Walk<'_> {
    fn say(&mut self, line: usize, what: String) {
        self.findings
            .push(Finding::new(self.source.path, line, what));
    }

    /// Walks one level of tokens. `outer` holds the lines where the surrounding statement begins.
    fn tokens(&mut self, tokens: &TokenStream, outer: &[usize]) {
        let tokens: Vec<TokenTree> = tokens.clone().into_iter().collect();
        let mut part = None;
        for (i, token) in tokens.iter().enumerate() {
            let line = token.span().start().line;
            let starts: Vec<usize> = outer
                .iter()
                .copied()
                .chain([*part.get_or_insert(line)])
                .collect();
            match token {
                TokenTree::Ident(word) if word == "unsafe" => {
                    if let Some(kind) = kind_of(&tokens[i + 1..]) {
                        self.check_unsafe(kind, line, &starts);
                    }
                }
                TokenTree::Ident(word) if word == "unsafe_code" && !self.allowed => {
                    self.say(
                        line,
                        "changes the lint unsafe_code outside the unsafe borders".into(),
                    );
                }
                // A brace opens statements of their own; other groups belong to the statement around them.
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                    self.tokens(&group.stream(), &[])
                }
                TokenTree::Group(group) => self.tokens(&group.stream(), &starts),
                _ => {}
            }
            if ends_part(&tokens, i) {
                part = None;
            }
        }
    }

    fn check_unsafe(&mut self, kind: Kind, line: usize, starts: &[usize]) {
        if !self.allowed {
            self.say(
                line,
                format!("unsafe {} outside the unsafe borders", kind.name()),
            );
        }
        let has_reason = |&line: &usize| self.source.has_comment_at(line, kind.reasons());
        if !has_reason(&line) && !starts.iter().any(has_reason) {
            self.say(
                line,
                format!(
                    "unsafe {} without a reason ({})",
                    kind.name(),
                    kind.reasons().join(" or ")
                ),
            );
        }
    }
}

/// What follows the word `unsafe`; `None` for a function pointer's type, which does nothing by itself.
fn kind_of(rest: &[TokenTree]) -> Option<Kind> {
    let first = rest.first();
    if is_group(first, Delimiter::Brace) {
        return Some(Kind::Block);
    }
    if is_group(first, Delimiter::Parenthesis) {
        return Some(Kind::Attribute);
    }
    let after_abi = match rest.get(1) {
        Some(TokenTree::Literal(_)) => 2,
        _ => 1,
    };
    match ident(first).as_deref() {
        Some("impl") => Some(Kind::Impl),
        Some("trait" | "auto") => Some(Kind::Trait),
        Some("fn") => ident(rest.get(1)).map(|_| Kind::Fn),
        Some("extern") if ident(rest.get(after_abi)).as_deref() == Some("fn") => {
            ident(rest.get(after_abi + 1)).map(|_| Kind::Fn)
        }
        Some("extern") => Some(Kind::Extern),
        // A foreign item inside an `unsafe extern` block, `unsafe static` or a macro's own use of the word.
        _ => None,
    }
}

/// Whether a statement, an argument or a match arm ends with the token at `i`.
fn ends_part(tokens: &[TokenTree], i: usize) -> bool {
    let token = tokens.get(i);
    if is_punct(token, ';') || is_punct(token, ',') {
        return true;
    }
    // `=>` opens the value of an arm.
    if is_punct(token, '>') && i > 0 && is_punct(tokens.get(i - 1), '=') {
        return true;
    }
    if !is_group(token, Delimiter::Brace) {
        return false;
    }
    match tokens.get(i + 1) {
        Some(TokenTree::Ident(next)) => next != "else" && next != "as",
        Some(TokenTree::Punct(next)) => next.as_char() == '#',
        Some(_) => true,
        None => true,
    }
}

#[cfg(test)]
mod tests;
