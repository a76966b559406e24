//! The rules on `unsafe`, with a reason and without, inside the borders and outside.

use super::*;

const BORDER: &str = "engines/hostexec/src/lib.rs";

fn found_in(path: &str, text: &str) -> Vec<(usize, String)> {
    let source = Source::parse(path, text).expect("the sample parses");
    check_rust(&source)
        .into_iter()
        .map(|finding| (finding.line, finding.what))
        .collect()
}

/// The lines of the findings inside a border.
fn lines(text: &str) -> Vec<usize> {
    found_in(BORDER, text)
        .into_iter()
        .map(|(line, _)| line)
        .collect()
}

#[test]
fn a_block_needs_a_reason() {
    assert_eq!(
        found_in(BORDER, "fn a() {\n    unsafe { b() }\n}\n"),
        [(2, "unsafe block without a reason (SAFETY:)".into())]
    );
    assert!(lines("fn a() {\n    // SAFETY: b is a constant.\n    unsafe { b() }\n}\n").is_empty());
    assert!(
        lines("fn a() {\n    /* SAFETY: b is a constant. */\n    unsafe { b() }\n}\n").is_empty()
    );
    assert!(
        lines("fn a() {\n    // SAFETY: b is\n    // a constant.\n    unsafe { b() }\n}\n")
            .is_empty()
    );
    assert_eq!(
        lines("fn a() {\n    // Calls b.\n    unsafe { b() }\n}\n"),
        [3]
    );
    assert_eq!(
        lines("fn a() {\n    // SAFETY: too far.\n\n    unsafe { b() }\n}\n"),
        [4]
    );
    assert_eq!(
        lines("fn a() {\n    let why = \"SAFETY:\";\n    unsafe { b() }\n}\n"),
        [3]
    );
}

#[test]
fn a_reason_serves_the_statement_it_stands_above() {
    assert!(
        lines("fn a() {\n    // SAFETY: c.\n    let x =\n        d(1, unsafe { b() });\n}\n")
            .is_empty()
    );
    assert!(
        lines("fn a() {\n    // SAFETY: c.\n    if unsafe { b() } {\n        d();\n    }\n}\n")
            .is_empty()
    );
    assert!(lines("fn a() {\n    match x {\n        // SAFETY: c.\n        1 => unsafe { b() },\n        _ => 0,\n    }\n}\n").is_empty());
    assert!(
        lines("fn a() {\n    d(\n        1,\n        // SAFETY: c.\n        unsafe { b() },\n    );\n}\n")
            .is_empty()
    );
}

#[test]
fn a_reason_does_not_serve_the_next_statement() {
    assert_eq!(
        lines("fn a() {\n    // SAFETY: c.\n    unsafe { b() };\n    unsafe { b() }\n}\n"),
        [4]
    );
    assert_eq!(
        lines("fn a() {\n    // SAFETY: c.\n    if d() {\n        unsafe { b() }\n    }\n}\n"),
        [4]
    );
    assert_eq!(
        lines("fn a() {\n    // SAFETY: c.\n    if d() {}\n    unsafe { b() }\n}\n"),
        [4]
    );
    assert_eq!(
        lines(
            "fn a() {\n    match x {\n        // SAFETY: c.\n        1 => unsafe { b() },\n        _ => unsafe { d() },\n    }\n}\n"
        ),
        [5]
    );
}

#[test]
fn a_function_needs_a_reason_or_terms() {
    assert_eq!(
        found_in(BORDER, "unsafe fn a() {}\n"),
        [(1, "unsafe fn without a reason (SAFETY: or # Safety)".into())]
    );
    assert_eq!(lines("/// Does b.\npub unsafe fn a() {}\n"), [2]);
    assert_eq!(lines("unsafe extern \"C\" fn a() {}\n"), [1]);
    assert_eq!(lines("trait A {\n    unsafe fn a();\n}\n"), [2]);
    assert_eq!(lines("impl A {\n    unsafe fn a() {}\n}\n"), [2]);
    assert!(
        lines("/// Does b.\n///\n/// # Safety\n/// `c` holds.\n#[inline]\npub(crate) unsafe fn a() {}\n")
            .is_empty()
    );
    assert!(
        lines("// SAFETY: the caller's terms.\npub const unsafe extern \"sysv64\" fn a() {}\n")
            .is_empty()
    );
}

#[test]
fn impls_traits_extern_blocks_and_attributes_need_one_too() {
    for item in [
        "unsafe impl Send for A {}",
        "unsafe extern \"C\" {}",
        "#[unsafe(no_mangle)]\nfn a() {}",
    ] {
        assert_eq!(lines(&format!("{item}\n")), [1], "{item}");
        assert!(
            lines(&format!("// SAFETY: c.\n{item}\n")).is_empty(),
            "{item}"
        );
        assert_eq!(lines(&format!("/// # Safety\n{item}\n")), [2], "{item}");
    }
    assert_eq!(lines("unsafe trait A {}\n"), [1]);
    assert!(lines("/// A.\n///\n/// # Safety\n/// `c` holds.\nunsafe trait A {}\n").is_empty());
}

#[test]
fn a_function_pointer_type_needs_none() {
    assert!(
        lines("type A = unsafe extern \"sysv64\" fn(u64);\ntype B = unsafe fn();\n").is_empty()
    );
}

#[test]
fn macros_are_no_hiding_place() {
    assert_eq!(
        lines("fn a() {\n    println!(\"{}\", unsafe { b() });\n}\n"),
        [2]
    );
    assert_eq!(
        lines("macro_rules! a {\n    () => {\n        unsafe { b() }\n    };\n}\n"),
        [3]
    );
    assert!(
        lines("macro_rules! a {\n    () => {\n        // SAFETY: c.\n        unsafe { b() }\n    };\n}\n")
            .is_empty()
    );
}

#[test]
fn outside_the_borders_no_reason_helps() {
    let text = "fn a() {\n    // SAFETY: c.\n    unsafe { b() }\n}\n";
    for path in [
        "engines/softcpu/src/lib.rs",
        "host/cli/src/main.rs",
        "testing/e2e/tests/a.rs",
        "a.rs",
    ] {
        assert_eq!(
            found_in(path, text),
            [(3, "unsafe block outside the unsafe borders".into())],
            "{path}"
        );
    }
    for path in [
        "arch/guestmem/src/a.rs",
        "engines/jit/src/a.rs",
        "engines/kvm/tests/a.rs",
        "guests/a/src/main.rs",
    ] {
        assert!(found_in(path, text).is_empty(), "{path}");
    }
}

#[test]
fn outside_the_borders_the_lint_stays_as_it_is() {
    let text = "#![allow(unsafe_code)]\n";
    assert_eq!(
        found_in("engines/softcpu/src/lib.rs", text),
        [(
            1,
            "changes the lint unsafe_code outside the unsafe borders".into()
        )]
    );
    assert!(lines(text).is_empty());
}

#[test]
fn the_word_in_comments_and_strings_is_no_code() {
    assert!(found_in("a.rs", "// unsafe { b() }\nconst A: &str = \"unsafe {\";\n").is_empty());
}

#[test]
fn manifests_take_the_lints_of_the_workspace() {
    let found = |path: &str, text: &str| check_manifest(path, text).len();
    assert_eq!(
        found(
            "engines/softcpu/Cargo.toml",
            "[package]\n\n[lints]\nworkspace = true\n"
        ),
        0
    );
    assert_eq!(
        found(
            "engines/softcpu/Cargo.toml",
            "[package]\nworkspace = true\n"
        ),
        1
    );
    assert_eq!(
        found(
            "engines/softcpu/Cargo.toml",
            "[lints.rust]\nunsafe_code = \"allow\"\n"
        ),
        1
    );
    assert_eq!(
        found(
            "engines/hostexec/Cargo.toml",
            "[lints.rust]\nunsafe_code = \"allow\"\n"
        ),
        0
    );
    assert_eq!(found("Cargo.toml", "[workspace]\n"), 0);
}
