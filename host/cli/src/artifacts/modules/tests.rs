//! Modules are made up here byte by byte after the ELF specification, so that no real module is needed.

use super::*;

/// A minimal little-endian ELF64 relocatable file with one section, `.modinfo`.
fn elf_with_modinfo(modinfo: &[u8]) -> Vec<u8> {
    let names = b"\0.modinfo\0.shstrtab\0";
    let names_offset = 64 + modinfo.len() as u64;
    let headers_offset = names_offset + names.len() as u64;
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend(1_u16.to_le_bytes()); // ET_REL
    elf.extend(62_u16.to_le_bytes()); // EM_X86_64
    elf.extend(1_u32.to_le_bytes());
    elf.extend(0_u64.to_le_bytes());
    elf.extend(0_u64.to_le_bytes());
    elf.extend(headers_offset.to_le_bytes());
    elf.extend(0_u32.to_le_bytes());
    for half in [64_u16, 0, 0, 64, 3, 2] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(modinfo);
    elf.extend(names);
    let mut header = |name: u32, kind: u32, offset: u64, size: u64| {
        elf.extend(name.to_le_bytes());
        elf.extend(kind.to_le_bytes());
        for field in [0, 0, offset, size, 0, 1, 0_u64] {
            elf.extend(field.to_le_bytes());
        }
    };
    header(0, 0, 0, 0);
    header(1, 1, 64, modinfo.len() as u64);
    header(10, 3, names_offset, names.len() as u64);
    elf
}

/// A module that needs `depends`, built for release `6.1.0-made-up`.
pub fn made_up(name: &str, depends: &str) -> Module {
    let modinfo = format!(
        "license=GPL\0depends={depends}\0retpoline=Y\0vermagic=6.1.0-made-up SMP mod_unload\0"
    );
    Module {
        name: canonical(name),
        content: elf_with_modinfo(modinfo.as_bytes()),
    }
}

struct Shelf {
    modules: Vec<Module>,
    built_in: Vec<&'static str>,
}

impl ModuleSource for Shelf {
    fn find(&self, name: &str) -> Result<Option<Module>, Failure> {
        Ok(self.modules.iter().find(|m| m.name == name).cloned())
    }
    fn is_built_in(&self, name: &str) -> bool {
        self.built_in.contains(&name)
    }
    fn place(&self) -> String {
        "the shelf".into()
    }
}

fn names(modules: &[Module]) -> Vec<&str> {
    modules.iter().map(|m| m.name.as_str()).collect()
}

#[test]
fn a_module_tells_what_it_needs() {
    let info = info(&made_up("kvm_intel", "kvm,irq_bypass")).expect("good");
    assert_eq!(info.depends, ["kvm", "irq-bypass"]);
    assert_eq!(info.release.as_deref(), Some("6.1.0-made-up"));
}

#[test]
fn needed_modules_come_first() {
    let shelf = Shelf {
        modules: vec![
            made_up("kvm-amd", "kvm,ccp"),
            made_up("kvm", "irqbypass"),
            made_up("irqbypass", ""),
            made_up("unrelated", ""),
        ],
        built_in: vec!["ccp"],
    };
    let order = load_order(&shelf, "kvm_amd").expect("complete");
    assert_eq!(names(&order), ["irqbypass", "kvm", "kvm-amd"]);
}

#[test]
fn a_missing_module_is_named() {
    let shelf = Shelf {
        modules: vec![made_up("kvm-intel", "kvm")],
        built_in: vec![],
    };
    let failure = load_order(&shelf, "kvm-intel").expect_err("kvm is missing");
    assert_eq!(failure.what, "no module kvm in the shelf");
}

#[test]
fn a_circle_of_modules_ends() {
    let shelf = Shelf {
        modules: vec![made_up("a", "b"), made_up("b", "a")],
        built_in: vec![],
    };
    assert_eq!(names(&load_order(&shelf, "a").expect("ends")), ["b", "a"]);
}

#[test]
fn rubbish_is_no_module() {
    for content in [&b""[..], b"\x7fELF", &[0xff; 200]] {
        let module = Module {
            name: "x".into(),
            content: content.to_vec(),
        };
        assert!(info(&module).is_err());
    }
}

#[test]
fn file_names_give_module_names() {
    assert_eq!(
        name_of_file("a/b/kvm_intel.ko.xz").as_deref(),
        Some("kvm-intel")
    );
    assert_eq!(name_of_file("kvm.ko").as_deref(), Some("kvm"));
    assert_eq!(name_of_file("kvm.so"), None);
}

#[test]
fn a_directory_is_searched_at_any_depth() {
    let root = tempfile::tempdir().expect("a directory");
    let deep = root.path().join("kernel/arch");
    std::fs::create_dir_all(&deep).expect("created");
    std::fs::write(deep.join("kvm.ko"), made_up("kvm", "").content).expect("written");
    std::fs::write(
        root.path().join("modules.builtin"),
        "kernel/virt/lib/irqbypass.ko\n",
    )
    .expect("written");
    let directory = ModuleDirectory::open(root.path()).expect("readable");
    assert!(directory.find("kvm").expect("readable").is_some());
    assert!(directory.find("kvm-intel").expect("readable").is_none());
    assert!(directory.is_built_in("irqbypass"));
}

#[test]
fn a_list_of_built_in_modules_has_a_bound() {
    let root = tempfile::tempdir().expect("a directory");
    let list = root.path().join("modules.builtin");
    let text = |bytes: u64| "kernel/irqbypass.ko\n".repeat(bytes as usize / 20);
    std::fs::write(&list, text(LARGEST_LIST)).expect("written");
    let directory = ModuleDirectory::open(root.path()).expect("readable");
    assert!(directory.is_built_in("irqbypass"));
    std::fs::write(&list, text(LARGEST_LIST + 40)).expect("written");
    let told = ModuleDirectory::open(root.path()).map_or_else(|e| e.to_string(), |_| "read".into());
    assert!(told.contains("it has more than 1 MiB; check"), "{told}");
}

#[test]
fn a_missing_directory_is_an_error() {
    assert!(ModuleDirectory::open(Path::new("/nonexistent/modules")).is_err());
}
