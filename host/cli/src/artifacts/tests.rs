//! The user's own files, and what a package must hold. Fetching itself is tried end to end.

use super::*;
use crate::initramfs::program;
use modules::tests::made_up;

struct Files {
    folder: TempDir,
}

impl Files {
    /// A kernel, its modules and a busybox, all made up.
    fn new() -> Self {
        let files = Self {
            folder: tempfile::tempdir().expect("a directory"),
        };
        std::fs::create_dir(files.path("modules")).expect("created");
        files.write("vmlinuz", &kernel_image::tests::made_up("6.1.0-made-up"));
        files.write("busybox", &program::tests::made_up(1));
        for (name, depends) in [
            ("irqbypass", ""),
            ("kvm", "irqbypass"),
            ("kvm-intel", "kvm"),
        ] {
            files.write(
                &format!("modules/{name}.ko"),
                &made_up(name, depends).content,
            );
        }
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: &[u8]) {
        std::fs::write(self.path(name), content).expect("written");
    }

    fn own(&self) -> OwnFiles {
        OwnFiles {
            kernel: Some(self.path("vmlinuz")),
            modules: Some(self.path("modules")),
            busybox: Some(self.path("busybox")),
        }
    }
}

fn obtained(own: &OwnFiles, vendor: Option<&str>) -> Result<Artifacts, Failure> {
    let wanted = Wanted {
        vendor_module: vendor,
        kernel_package: KERNEL_PACKAGE,
        qemu: false,
    };
    obtain(own, &wanted, &Interrupt::new(), &Progress::silent())
}

#[test]
fn own_files_need_no_network() {
    let files = Files::new();
    let artifacts = obtained(&files.own(), Some("kvm-intel")).expect("all there");
    let names: Vec<_> = artifacts.modules.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["irqbypass", "kvm", "kvm-intel"]);
    assert_eq!(artifacts.release.as_deref(), Some("6.1.0-made-up"));
}

#[test]
fn one_level_needs_no_modules() {
    let files = Files::new();
    let own = OwnFiles {
        modules: None,
        ..files.own()
    };
    assert!(obtained(&own, None).expect("all there").modules.is_empty());
    let failure = obtained(&own, Some("kvm-intel")).expect_err("no modules");
    assert_eq!(failure.why, "its modules are not given");
}

#[test]
fn modules_need_their_kernel() {
    let files = Files::new();
    let own = OwnFiles {
        kernel: None,
        ..files.own()
    };
    let failure = obtained(&own, Some("kvm-intel")).expect_err("no kernel");
    assert_eq!(failure.why, "the kernel they belong to is not given");
}

#[test]
fn modules_of_another_kernel_are_refused() {
    let files = Files::new();
    files.write("vmlinuz", &kernel_image::tests::made_up("6.2.0-other"));
    let failure = obtained(&files.own(), Some("kvm-intel")).expect_err("another release");
    assert_eq!(
        failure.why,
        "the module is for 6.1.0-made-up, the kernel is 6.2.0-other"
    );
}

#[test]
fn a_busybox_with_a_loader_is_refused() {
    let files = Files::new();
    files.write("busybox", &program::tests::made_up(3));
    let failure = obtained(&files.own(), None).expect_err("dynamic");
    assert_eq!(failure.why, "it is linked dynamically");
}

#[test]
fn missing_and_wrong_files_are_told_apart() {
    let files = Files::new();
    files.write("vmlinuz", b"hello");
    let failure = obtained(&files.own(), None).expect_err("no kernel");
    assert_eq!(failure.why, "it is not a Linux bzImage");
    std::fs::remove_file(files.path("vmlinuz")).expect("removed");
    let failure = obtained(&files.own(), None).expect_err("missing");
    assert_eq!(failure.why, "No such file or directory");
    files.write("vmlinuz", &kernel_image::tests::made_up("6.1.0-made-up"));
    std::fs::remove_file(files.path("modules/kvm.ko")).expect("removed");
    let failure = obtained(&files.own(), Some("kvm-intel")).expect_err("no kvm");
    assert!(failure.what.starts_with("no module kvm in"));
}

fn entry(files: &[(&str, Vec<u8>)]) -> Entry {
    Entry {
        package: "linux-image-made-up".into(),
        version: "1".into(),
        deb_sha256: String::new(),
        files: files
            .iter()
            .map(|(name, content)| (name.to_string(), content.clone()))
            .collect(),
    }
}

#[test]
fn what_a_package_still_lacks_is_known() {
    let entry = entry(&[
        ("vmlinuz", vec![0]),
        ("kvm.ko", made_up("kvm", "irqbypass").content),
        ("kvm-amd.ko", made_up("kvm-amd", "kvm,ccp").content),
    ]);
    assert_eq!(unmet_needs(&entry).expect("modules"), ["ccp", "irqbypass"]);
}

#[test]
fn what_a_package_lacks_is_built_in_except_kvm_itself() {
    let source = PackageModules::of(entry(&[(
        "kvm-intel.ko",
        made_up("kvm-intel", "kvm").content,
    )]));
    let order = modules::load_order(&source, "kvm-intel").expect("kvm is built in");
    assert_eq!(order.len(), 1);
    assert!(modules::load_order(&source, "kvm-amd").is_err());
}

#[test]
fn bytes_as_digits() {
    assert_eq!(hexadecimal(&[0x00, 0xab, 0x10]), "00ab10");
}
