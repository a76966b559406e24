//! From what a user wants to the files level 1 is started with.

use crate::args::{BenchArgs, FileArgs, ImagesArgs, InnerArgs, NestedArg, Vendor, VmmArg};
use crate::artifacts::progress::Progress;
use crate::artifacts::{self, Artifacts};
use crate::failure::Failure;
use crate::initramfs::script::{self, Vmm};
use crate::initramfs::{self, Bench, Images, Plan, folder};
use crate::interrupt::Interrupt;
use crate::output;

/// The levels a user wants.
pub struct Wanted<'a> {
    /// How many.
    pub depth: u8,
    /// The virtualization the hypervisors among them use.
    pub virt: Vendor,
    /// How the inner levels are run.
    pub inner: &'a InnerArgs,
    /// The memory of level 1, if given.
    pub memory_bytes: Option<u64>,
    /// Virtual processors of each level.
    pub cpus: u8,
    /// The command line of their kernels.
    pub append: &'a str,
    /// Files that replace the fetched ones.
    pub files: &'a FileArgs,
    /// A program every level runs once it is up.
    pub bench: &'a BenchArgs,
}

/// Gets the files and builds the images.
///
/// # Errors
/// Whatever keeps the files from being had, or the images from being built.
pub fn prepare(wanted: &Wanted, interrupt: &Interrupt) -> Result<(Artifacts, Images), Failure> {
    let program = initramfs::own_program()?;
    let bench_program = wanted.bench.program.as_deref();
    let bench_program = bench_program.map(initramfs::other_program).transpose()?;
    let bench_files = match &wanted.bench.files {
        Some(folder) => folder::files(folder)?,
        None => Vec::new(),
    };
    let (module, nested) = match wanted.virt {
        Vendor::Intel => ("kvm-intel", "intel"),
        Vendor::Amd => ("kvm-amd", "amd"),
    };
    let inner = wanted.inner;
    let hypervisors = wanted.depth > 1;
    let artifacts = artifacts::obtain(
        &wanted.files.own(),
        &artifacts::Wanted {
            vendor_module: hypervisors.then_some(module),
            kernel_package: &inner.kernel_package,
            qemu: hypervisors && inner.vmm == VmmArg::Qemu,
        },
        interrupt,
        &Progress::on_standard_error(),
    )?;
    let images = initramfs::build(&Plan {
        artifacts: &artifacts,
        program: &program,
        depth: wanted.depth,
        vmm: match inner.vmm {
            VmmArg::Nestling => Vmm::Nestling {
                nested: inner.nested.map_or(nested, NestedArg::word),
            },
            VmmArg::Qemu => Vmm::Qemu {
                cpu: &inner.qemu_cpu,
            },
        },
        module_options: &inner.kvm_options,
        memory_bytes: wanted.memory_bytes,
        cpus: wanted.cpus,
        append: wanted.append,
        bench: bench_program.as_deref().map(|program| Bench {
            program,
            arguments: &wanted.bench.arguments,
            files: &bench_files,
        }),
        log: inner.log,
    })?;
    Ok((artifacts, images))
}

/// Writes the files a demo starts level 1 with into a directory, for use with other monitors.
///
/// # Errors
/// Whatever keeps the files from being had or written.
pub fn write(args: &ImagesArgs) -> Result<(), Failure> {
    let interrupt = Interrupt::new();
    interrupt.watch_signals()?;
    let append = script::command_line(&args.append);
    let wanted = Wanted {
        depth: args.depth,
        virt: args.virt,
        inner: &args.inner,
        memory_bytes: args.memory,
        cpus: args.cpus,
        append: &append,
        files: &args.files,
        bench: &args.bench,
    };
    let (artifacts, images) = prepare(&wanted, &interrupt)?;
    let folder = &args.output;
    std::fs::create_dir_all(folder).map_err(|e| Failure::writing(folder, &e))?;
    let write = |name: &str, content: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, content).map_err(|e| Failure::writing(&path, &e))
    };
    write("vmlinuz", &artifacts.kernel)?;
    write("initramfs.cpio", &images.outermost)?;
    write("append.txt", format!("{append}\n").as_bytes())?;
    output::print(&format!(
        "kernel {}, level 1 needs {}M of memory\n",
        artifacts.release.as_deref().unwrap_or("of unknown release"),
        images.memory_bytes[0] >> 20
    ))
}
