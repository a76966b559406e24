//! Kernel modules: what each one says about itself in its `.modinfo` section (name, the modules it needs,
//! the kernel it was built for), and the order in which a set of them can be loaded.
//!
//! Debian's kernel packages carry no `modules.dep` (it is made when a kernel is installed), so the modules
//! themselves are asked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use object::{Object, ObjectSection};

use super::decompress;
use crate::failure::Failure;
use crate::input_file;

/// No module may be larger, unpacked.
const LARGEST_MODULE: usize = 64 << 20;
/// More is not read of a list of the modules that are built in, which has a line for each.
const LARGEST_LIST: u64 = 1 << 20;
/// How many directory entries a search for modules looks at.
const MOST_ENTRIES: usize = 100_000;
/// How many modules a set may have.
const MOST_MODULES: usize = 64;

/// A module, unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The name with dashes, as `kvm-intel`.
    pub name: String,
    /// The ELF file as `insmod` wants it.
    pub content: Vec<u8>,
}

/// What a module says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModuleInfo {
    /// The modules it needs, by name with dashes.
    pub depends: Vec<String>,
    /// The release of the kernel it was built for.
    pub release: Option<String>,
}

/// The one spelling of a module's name: `kvm_intel` and `kvm-intel` are the same module.
pub fn canonical(name: &str) -> String {
    name.replace('_', "-")
}

/// The name of the module in a file called `path`; `None` when it is no module's file.
pub fn name_of_file(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem = [".ko", ".ko.xz", ".ko.gz", ".ko.zst"]
        .iter()
        .find_map(|suffix| file.strip_suffix(suffix))?;
    Some(canonical(stem))
}

/// A module from its file's content, packed or not.
///
/// # Errors
/// Why it is no module, in words.
pub fn unpack(name: &str, content: &[u8]) -> Result<Module, String> {
    let content =
        decompress::all(content, LARGEST_MODULE).map_err(|error| crate::failure::cause(&error))?;
    Ok(Module {
        name: canonical(name),
        content,
    })
}

/// Reads the module's `.modinfo`: `key=value` strings, each ended by a zero byte.
///
/// # Errors
/// Why it is no module, in words.
pub fn info(module: &Module) -> Result<ModuleInfo, String> {
    let elf = object::File::parse(module.content.as_slice()).map_err(|error| error.to_string())?;
    let section = elf
        .section_by_name(".modinfo")
        .ok_or("it has no .modinfo section")?;
    let data = section.data().map_err(|error| error.to_string())?;
    let mut info = ModuleInfo::default();
    for line in data.split(|&byte| byte == 0) {
        let Ok(line) = std::str::from_utf8(line) else {
            continue;
        };
        if let Some(depends) = line.strip_prefix("depends=") {
            info.depends = depends
                .split(',')
                .filter(|name| !name.is_empty())
                .map(canonical)
                .collect();
        } else if let Some(magic) = line.strip_prefix("vermagic=") {
            info.release = magic.split_whitespace().next().map(str::to_string);
        }
    }
    Ok(info)
}

/// Where modules come from: gives the module of that name, or `None` when there is none.
pub trait ModuleSource {
    /// Finds a module by its name with dashes.
    ///
    /// # Errors
    /// A module that is there but cannot be read.
    fn find(&self, name: &str) -> Result<Option<Module>, Failure>;

    /// Whether the kernel has that module built in.
    fn is_built_in(&self, name: &str) -> bool;

    /// The place, for messages.
    fn place(&self) -> String;
}

/// `root` and everything it needs, each module after the ones it needs. A module that is built into the
/// kernel is left out.
///
/// # Errors
/// A module that is missing or broken.
pub fn load_order(source: &dyn ModuleSource, root: &str) -> Result<Vec<Module>, Failure> {
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    visit(source, &canonical(root), &mut seen, &mut order)?;
    Ok(order)
}

fn visit(
    source: &dyn ModuleSource,
    name: &str,
    seen: &mut BTreeSet<String>,
    order: &mut Vec<Module>,
) -> Result<(), Failure> {
    if !seen.insert(name.to_string()) {
        return Ok(());
    }
    if seen.len() > MOST_MODULES {
        return Err(Failure::new(
            format_args!("cannot use the modules in {}", source.place()),
            format_args!("they need more than {MOST_MODULES} others"),
            "take the modules of a Debian cloud kernel",
        ));
    }
    let Some(module) = source.find(name)? else {
        if source.is_built_in(name) {
            return Ok(());
        }
        return Err(Failure::new(
            format_args!("no module {name} in {}", source.place()),
            "neither a file of that name nor an entry in modules.builtin is there",
            "give --modules the directory /lib/modules/<release> of the kernel given by --kernel",
        ));
    };
    let info = info(&module).map_err(|why| broken(name, source, &why))?;
    for needed in &info.depends {
        visit(source, needed, seen, order)?;
    }
    order.push(module);
    Ok(())
}

fn broken(name: &str, source: &dyn ModuleSource, why: &str) -> Failure {
    Failure::new(
        format_args!("cannot use module {name} in {}", source.place()),
        why,
        "give --modules the directory /lib/modules/<release> of the kernel given by --kernel",
    )
}

/// Modules below a directory, as `--modules` names it.
#[derive(Debug)]
pub struct ModuleDirectory {
    root: PathBuf,
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

impl ModuleDirectory {
    /// Lists the module files below `root`. Symbolic links to directories are not followed.
    ///
    /// # Errors
    /// A directory that cannot be read, or one that is far too large.
    pub fn open(root: &Path) -> Result<Self, Failure> {
        let mut directory = Self {
            root: root.to_path_buf(),
            files: BTreeMap::new(),
            built_in: BTreeSet::new(),
        };
        let mut pending = vec![root.to_path_buf()];
        let mut looked_at = 0_usize;
        while let Some(folder) = pending.pop() {
            let entries = std::fs::read_dir(&folder).map_err(|e| Failure::reading(&folder, &e))?;
            for entry in entries {
                let entry = entry.map_err(|e| Failure::reading(&folder, &e))?;
                looked_at += 1;
                if looked_at > MOST_ENTRIES {
                    return Err(Failure::new(
                        format_args!("cannot search {} for modules", root.display()),
                        format_args!("it holds more than {MOST_ENTRIES} files"),
                        "give --modules a directory /lib/modules/<release>",
                    ));
                }
                let kind = entry
                    .file_type()
                    .map_err(|e| Failure::reading(&entry.path(), &e))?;
                if kind.is_dir() {
                    pending.push(entry.path());
                } else {
                    directory.note(&entry.path())?;
                }
            }
        }
        Ok(directory)
    }

    fn note(&mut self, path: &Path) -> Result<(), Failure> {
        let Some(file) = path.file_name().and_then(|name| name.to_str()) else {
            return Ok(());
        };
        if file == "modules.builtin" {
            let list = input_file::read_bounded(path, LARGEST_LIST)?;
            let list = String::from_utf8_lossy(&list);
            self.built_in.extend(list.lines().filter_map(name_of_file));
        } else if let Some(name) = name_of_file(file) {
            self.files.entry(name).or_insert_with(|| path.to_path_buf());
        }
        Ok(())
    }
}

impl ModuleSource for ModuleDirectory {
    fn find(&self, name: &str) -> Result<Option<Module>, Failure> {
        let Some(path) = self.files.get(name) else {
            return Ok(None);
        };
        let content = super::read(path)?;
        unpack(name, &content)
            .map(Some)
            .map_err(|why| broken(name, self, &why))
    }

    fn is_built_in(&self, name: &str) -> bool {
        self.built_in.contains(name)
    }

    fn place(&self) -> String {
        self.root.display().to_string()
    }
}

#[cfg(test)]
pub mod tests;
