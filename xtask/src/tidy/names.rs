//! Rules on names: a module says what it holds.

use syn::ItemMod;
use syn::visit::{self, Visit};

use super::Finding;
use super::source::Source;

/// Names that say nothing of what is inside.
const EMPTY_NAMES: &[&str] = &["common", "util", "utils", "misc", "manager", "managers"];
/// Ends of names that make a module the place where everything lands.
const EMPTY_ENDS: &[&str] = &["_util", "_utils", "_manager", "_managers"];

/// The parts of a Rust file's path.
pub fn check(path: &str) -> Vec<Finding> {
    if !path.ends_with(".rs") {
        return Vec::new();
    }
    path.trim_end_matches(".rs")
        .split('/')
        .filter(|part| is_empty_name(part))
        .map(|part| Finding::new(path, 1, refusal(part)))
        .collect()
}

/// The modules declared in a file.
pub fn check_rust(source: &Source<'_>) -> Vec<Finding> {
    let mut modules = Modules {
        path: source.path,
        findings: Vec::new(),
    };
    modules.visit_file(&source.file);
    modules.findings
}

struct Modules<'a> {
    path: &'a str,
    findings: Vec<Finding>,
}

impl<'ast> Visit<'ast> for Modules<'_> {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        let name = module.ident.to_string();
        if is_empty_name(&name) {
            self.findings.push(Finding::new(
                self.path,
                module.ident.span().start().line,
                refusal(&name),
            ));
        }
        visit::visit_item_mod(self, module);
    }
}

fn is_empty_name(name: &str) -> bool {
    EMPTY_NAMES.contains(&name) || EMPTY_ENDS.iter().any(|end| name.ends_with(end))
}

fn refusal(name: &str) -> String {
    format!("module name `{name}` does not say what is inside")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORBIDDEN: [&str; 6] = ["common", "util", "utils", "misc", "manager", "managers"];

    #[test]
    fn names_of_files_and_folders() {
        for name in FORBIDDEN {
            assert_eq!(check(&format!("a/src/{name}.rs")).len(), 1, "{name}");
            assert_eq!(check(&format!("a/src/{name}/mod.rs")).len(), 1, "{name}");
            assert_eq!(check(&format!("{name}/src/lib.rs")).len(), 1, "{name}");
        }
        for end in ["_util", "_utils", "_manager", "_managers"] {
            assert_eq!(check(&format!("a/src/device{end}.rs")).len(), 1, "{end}");
        }
        assert!(check("engines/softcpu/src/paging.rs").is_empty());
        assert!(
            check("devices/virtio/src/common_cfg.rs").is_empty(),
            "the specification's own word"
        );
        assert!(
            check("arch/x86defs/src/vmx_misc.rs").is_empty(),
            "the manual's own word"
        );
        assert!(check("docs/misc.md").is_empty());
    }

    #[test]
    fn names_of_declared_modules() {
        let found = |text: &str| {
            check_rust(&Source::parse("a/src/lib.rs", text).expect("the sample parses"))
        };
        for name in FORBIDDEN {
            assert_eq!(
                found(&format!("mod a {{\n    pub mod {name} {{}}\n}}\n"))[0].line,
                2,
                "{name}"
            );
        }
        assert!(found("mod paging;\nfn util() {}\n").is_empty());
    }
}
