//! Rules on size: files, functions, and test modules inside a file.

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Block, Expr, ExprMatch, ItemMod, Signature, Stmt};

use super::Finding;
use super::source::Source;

/// Most lines of a source file, its test modules not counted. Files aim at half of it.
const FILE_LINES: usize = 1_000;
/// Most lines of a function, from its signature to its closing brace. Functions aim at one screen.
const FUNCTION_LINES: usize = 120;
/// A longer function passes when one `match` at its top holds at least this share of it, in per cent.
const DISPATCH_SHARE: usize = 60;
/// Most lines of a test module inside a file; beyond, it moves to a `tests.rs`.
const TEST_MODULE_LINES: usize = 200;

/// All size rules on one file.
pub fn check(source: &Source<'_>) -> Vec<Finding> {
    let mut sizes = Sizes {
        path: source.path,
        findings: Vec::new(),
        test_lines: 0,
    };
    sizes.visit_file(&source.file);
    let lines = source.line_count() - sizes.test_lines;
    if lines > FILE_LINES && !is_test_file(source.path) {
        let what = format!("{lines} lines without tests, more than {FILE_LINES}");
        sizes.findings.push(Finding::new(source.path, 1, what));
    }
    sizes.findings
}

/// Whether a file holds only tests or benchmarks, by its place.
fn is_test_file(path: &str) -> bool {
    let mut parts = path.split('/').rev();
    let name = parts.next().unwrap_or_default();
    name == "tests.rs" || parts.any(|folder| folder == "tests" || folder == "benches")
}

struct Sizes<'a> {
    path: &'a str,
    findings: Vec<Finding>,
    /// Lines of test modules inside the file.
    test_lines: usize,
}

impl Sizes<'_> {
    fn check_function(&mut self, signature: &Signature, body: &Block) {
        let (first, last) = (
            line_of(signature.span()),
            body.brace_token.span.close().end().line,
        );
        let lines = last - first + 1;
        if lines <= FUNCTION_LINES {
            return;
        }
        let name = &signature.ident;
        let longest = top_matches(body)
            .into_iter()
            .max_by_key(|dispatch| lines_of(dispatch.span()));
        match longest.filter(|dispatch| lines_of(dispatch.span()) * 100 >= lines * DISPATCH_SHARE) {
            None => {
                let what = format!("fn {name} has {lines} lines, more than {FUNCTION_LINES}");
                self.findings.push(Finding::new(self.path, first, what));
            }
            Some(dispatch) => {
                for arm in dispatch
                    .arms
                    .iter()
                    .filter(|arm| lines_of(arm.span()) > FUNCTION_LINES)
                {
                    let lines = lines_of(arm.span());
                    let what = format!(
                        "fn {name}: this arm has {lines} lines, more than {FUNCTION_LINES}"
                    );
                    self.findings
                        .push(Finding::new(self.path, line_of(arm.span()), what));
                }
            }
        }
    }
}

impl<'ast> Visit<'ast> for Sizes<'_> {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.check_function(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.check_function(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(body) = &function.default {
            self.check_function(&function.sig, body);
        }
        visit::visit_trait_item_fn(self, function);
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        if module.content.is_some() && module.attrs.iter().any(is_cfg_test) {
            let lines = lines_of(module.span());
            self.test_lines += lines;
            if lines > TEST_MODULE_LINES && !is_test_file(self.path) {
                let what = format!(
                    "test module of {lines} lines; beyond {TEST_MODULE_LINES} it moves to tests.rs"
                );
                self.findings.push(Finding::new(
                    self.path,
                    line_of(module.mod_token.span),
                    what,
                ));
            }
        }
        visit::visit_item_mod(self, module);
    }
}

fn is_cfg_test(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg")
        && attribute
            .parse_args::<syn::Path>()
            .is_ok_and(|condition| condition.is_ident("test"))
}

/// The `match` expressions at the top of a body: those that are a statement, the value of one, or the whole
/// body of a loop.
fn top_matches(body: &Block) -> Vec<&ExprMatch> {
    body.stmts
        .iter()
        .filter_map(|statement| match statement {
            Stmt::Expr(expr, _) => Some(expr),
            Stmt::Local(local) => local.init.as_ref().map(|init| &*init.expr),
            Stmt::Item(_) | Stmt::Macro(_) => None,
        })
        .flat_map(matches_in)
        .collect()
}

fn matches_in(expr: &Expr) -> Vec<&ExprMatch> {
    match expr {
        Expr::Match(found) => vec![found],
        Expr::Assign(e) => matches_in(&e.right),
        Expr::Return(e) => e.expr.as_deref().map(matches_in).unwrap_or_default(),
        Expr::Break(e) => e.expr.as_deref().map(matches_in).unwrap_or_default(),
        Expr::Try(e) => matches_in(&e.expr),
        Expr::Paren(e) => matches_in(&e.expr),
        Expr::Cast(e) => matches_in(&e.expr),
        Expr::Reference(e) => matches_in(&e.expr),
        Expr::Call(e) => e.args.iter().flat_map(matches_in).collect(),
        Expr::Block(e) => top_matches(&e.block),
        Expr::Unsafe(e) => top_matches(&e.block),
        Expr::Loop(e) => top_matches(&e.body),
        Expr::While(e) => top_matches(&e.body),
        Expr::ForLoop(e) => top_matches(&e.body),
        _ => Vec::new(),
    }
}

fn line_of(span: Span) -> usize {
    span.start().line
}

fn lines_of(span: Span) -> usize {
    span.end().line - span.start().line + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<(usize, String)> {
        let source = Source::parse(path, text).expect("the sample parses");
        check(&source)
            .into_iter()
            .map(|finding| (finding.line, finding.what))
            .collect()
    }

    fn passes(text: &str) -> bool {
        found("a/src/b.rs", text).is_empty()
    }

    /// A function of `2 + before + lines` lines: statements, then a dispatch of `lines` lines.
    fn dispatcher(before: usize, lines: usize, wrap: (&str, &str)) -> String {
        let (open, close) = wrap;
        let arms = "        1 => one(),\n".repeat(lines - 2);
        let before = "    step();\n".repeat(before);
        format!("fn run() {{\n{before}    {open}match op {{\n{arms}    }}{close}\n}}\n")
    }

    #[test]
    fn a_file_holds_a_thousand_lines() {
        let at_limit = "const A: u8 = 0;\n".repeat(FILE_LINES);
        assert!(passes(&at_limit));
        let over = format!("{at_limit}const B: u8 = 0;\n");
        assert_eq!(
            found("a/src/b.rs", &over),
            [(1, "1001 lines without tests, more than 1000".into())]
        );
        for exempt in [
            "a/src/b/tests.rs",
            "a/tests/b.rs",
            "a/src/tests/b.rs",
            "a/benches/b.rs",
        ] {
            assert!(found(exempt, &over).is_empty(), "{exempt}");
        }
        assert!(!found("testing/conformance/src/lib.rs", &over).is_empty());
    }

    #[test]
    fn test_modules_do_not_count_for_the_file_but_have_a_limit() {
        let code = "const A: u8 = 0;\n".repeat(FILE_LINES);
        let tests = |lines: usize| {
            format!(
                "#[cfg(test)]\nmod tests {{\n{}}}\n",
                "    const A: u8 = 0;\n".repeat(lines - 3)
            )
        };
        assert!(passes(&format!("{code}{}", tests(TEST_MODULE_LINES))));
        assert_eq!(
            found("a/src/b.rs", &tests(TEST_MODULE_LINES + 1)),
            [(
                2,
                "test module of 201 lines; beyond 200 it moves to tests.rs".into()
            )]
        );
        assert!(passes("#[cfg(test)]\nmod tests;\n"));
        let not_tests = tests(TEST_MODULE_LINES).replace("cfg(test)", "cfg(unix)");
        assert!(!passes(&format!("{code}{not_tests}")));
    }

    #[test]
    fn a_function_holds_120_lines() {
        let function =
            |lines: usize| format!("fn run() {{\n{}}}\n", "    step();\n".repeat(lines - 2));
        assert!(passes(&function(FUNCTION_LINES)));
        assert_eq!(
            found("a/src/b.rs", &function(FUNCTION_LINES + 1)),
            [(1, "fn run has 121 lines, more than 120".into())]
        );
        assert!(!passes(&format!(
            "impl A {{\n{}}}\n",
            function(FUNCTION_LINES + 1)
        )));
        assert!(!passes(&format!(
            "trait A {{\n{}}}\n",
            function(FUNCTION_LINES + 1)
        )));
        assert!(!passes(&format!(
            "mod a {{\n{}}}\n",
            function(FUNCTION_LINES + 1)
        )));
    }

    #[test]
    fn documentation_and_attributes_do_not_count_for_the_function() {
        let body = "    step();\n".repeat(FUNCTION_LINES - 2);
        assert!(passes(&format!(
            "/// One.\n/// Two.\n#[inline]\npub fn run() {{\n{body}}}\n"
        )));
    }

    #[test]
    fn a_dispatching_match_may_be_longer() {
        let plain = ("", "");
        assert!(passes(&dispatcher(0, 300, plain)));
        assert!(
            passes(&dispatcher(78, 120, plain)),
            "60 per cent of 200 lines"
        );
        assert!(
            !passes(&dispatcher(79, 119, plain)),
            "less than 60 per cent of 200 lines"
        );
        let wraps = [
            ("let a = ", ";"),
            ("return ", ";"),
            ("a = ", ";"),
            ("Ok(", ")"),
            ("loop { ", " }"),
            ("while more() { ", " }"),
            ("for op in ops { ", " }"),
            ("(", ")?;"),
            ("break ", ";"),
        ];
        for wrap in wraps {
            assert!(passes(&dispatcher(2, 200, wrap)), "{wrap:?}");
        }
    }

    #[test]
    fn a_match_deeper_inside_excuses_nothing() {
        assert!(!passes(&dispatcher(0, 200, ("if a { ", " }"))));
        assert!(!passes(&dispatcher(0, 200, ("let f = || ", ";"))));
        let two = format!(
            "fn run() {{\n{0}{0}}}\n",
            format!("match a {{\n{}}}\n", "    1 => one(),\n".repeat(98))
        );
        assert!(!passes(&two), "two halves are no dispatch");
    }

    #[test]
    fn an_arm_of_a_dispatch_is_held_to_the_limit_of_a_function() {
        let arm = format!(
            "        2 => {{\n{}        }}\n",
            "            step();\n".repeat(FUNCTION_LINES - 1)
        );
        let text = dispatcher(0, 200, ("", "")).replacen("        1 => one(),\n", &arm, 1);
        assert_eq!(
            found("a/src/b.rs", &text),
            [(3, "fn run: this arm has 121 lines, more than 120".into())]
        );
    }
}
