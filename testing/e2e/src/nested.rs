//! Hypervisors inside: levels of Linux under different monitors, processors and settings of KVM, each run to its end,
//! with the logs of all kernels looked through.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::{cache, guest, kernel_log};

/// Debian's packages of kernels.
const KERNEL_6_12: [&str; 2] = ["--kernel-package", "linux-image-6.12-cloud-amd64"];
/// A named model that our processor has all of; `enforce` refuses to start if not.
const NAMED: [&str; 2] = ["--qemu-cpu", "Skylake-Client-noTSX-IBRS,enforce"];
/// All of the processor, with an invariant TSC, which QEMU leaves out of what can be migrated.
const HOST: [&str; 2] = ["--qemu-cpu", "host,migratable=off"];
const QEMU: [&str; 2] = ["--vmm", "qemu"];
const NO_EPT: [&str; 2] = ["--kvm-options", "ept=0"];
const NO_UNRESTRICTED: [&str; 2] = ["--kvm-options", "unrestricted_guest=0"];

/// Without VPID, the APIC-access page with the TPR shadow, and the preemption timer.
const PLAIN: [&str; 2] = ["--kvm-options", "vpid=0 flexpriority=0 preemption_timer=0"];
/// Without VMCS shadowing, accessed and dirty bits in EPT, and virtual NMIs.
const PLAIN_INNER: [&str; 2] = ["--kvm-options", "enable_shadow_vmcs=0 eptad=0 vnmi=0"];
const TWO_CPUS: [&str; 2] = ["--cpus", "2"];

/// A combination of monitors and settings.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Its name.
    pub name: &'static str,
    /// How many levels.
    pub depth: u8,
    /// Options of `images`, in groups.
    options: &'static [[&'static str; 2]],
}

/// All of them. What runs level 1 is the soft engine.
pub const SETUPS: [Setup; 19] = [
    Setup::new("qemu", 2, &[QEMU, HOST]),
    Setup::new("qemu-named-model", 2, &[QEMU, NAMED]),
    Setup::new("qemu-smp", 2, &[QEMU, HOST, TWO_CPUS]),
    Setup::new("qemu-no-ept", 2, &[QEMU, HOST, NO_EPT]),
    Setup::new("qemu-no-ept-smp", 2, &[QEMU, HOST, NO_EPT, TWO_CPUS]),
    Setup::new("qemu-no-ept-named-model", 2, &[QEMU, NAMED, NO_EPT]),
    Setup::new("qemu-no-unrestricted", 2, &[QEMU, HOST, NO_UNRESTRICTED]),
    Setup::new("qemu-plain-kvm", 2, &[QEMU, HOST, PLAIN]),
    Setup::new("qemu-three-levels", 3, &[QEMU, HOST]),
    Setup::new("qemu-three-levels-smp", 3, &[QEMU, HOST, TWO_CPUS]),
    Setup::new("qemu-6.12", 2, &[QEMU, HOST, KERNEL_6_12]),
    Setup::new("qemu-6.12-smp", 2, &[QEMU, HOST, KERNEL_6_12, TWO_CPUS]),
    Setup::new("qemu-6.12-no-ept", 2, &[QEMU, HOST, KERNEL_6_12, NO_EPT]),
    Setup::new("nestling-smp", 2, &[TWO_CPUS]),
    Setup::new("nestling-no-ept", 2, &[NO_EPT]),
    Setup::new("nestling-no-unrestricted", 2, &[NO_UNRESTRICTED]),
    Setup::new("nestling-three-levels-no-ept", 3, &[NO_EPT]),
    Setup::new("nestling-three-levels-plain-kvm", 3, &[PLAIN_INNER]),
    Setup::new("nestling-6.12", 2, &[KERNEL_6_12]),
];

impl Setup {
    const fn new(name: &'static str, depth: u8, options: &'static [[&'static str; 2]]) -> Self {
        Self {
            name,
            depth,
            options,
        }
    }

    /// How many processors every level has.
    fn cpus(&self) -> &'static str {
        match self.options.contains(&TWO_CPUS) {
            true => "2",
            false => "1",
        }
    }

    /// The setup of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        SETUPS.iter().find(|setup| setup.name == name)
    }

    /// Runs it to its end and gives the time that took. Whoever wants to see the console of a run that went wrong finds
    /// it in the error.
    ///
    /// # Errors
    /// What a level did not do, or a line of a kernel's log that is not expected.
    ///
    /// # Panics
    /// The program does not start, or not end by `deadline`.
    pub fn run(&self, deadline: Duration) -> Result<Duration> {
        let folder = tempfile::tempdir()?;
        cache::write_images(self.depth, folder.path())
            .args(["--log", "--append", "mitigations=auto"])
            .args(self.options.as_flattened())
            .cache(cache::shared())
            .end()
            .expect_code(0);
        let append = std::fs::read_to_string(folder.path().join("append.txt"))?;
        let started = Instant::now();
        let ended = guest::run_kernel(&folder.path().join("vmlinuz"))
            .args([
                "--engine", "soft", "--nested", "intel", "--clock", "virtual",
            ])
            .args([
                "--cpus",
                self.cpus(),
                "--memory",
                "2G",
                "--append",
                append.trim(),
                "--initrd",
            ])
            .args([folder.path().join("initramfs.cpio")])
            .deadline(deadline)
            .end();
        let console = ended.text();
        let wrong = |what: String| format!("{}: {what}\n{console}\n{}", self.name, ended.messages);
        ensure!(ended.code() == 0, wrong(format!("status {}", ended.code())));
        self.came_and_went(&console)
            .map_err(|e| anyhow::anyhow!(wrong(e.to_string())))?;
        // Named models of QEMU have no performance counters, on real hardware neither: `kernel_log::forbidden` is not
        // asked.
        let unexpected: Vec<&str> = kernel_log::unexpected(&console).collect();
        ensure!(
            unexpected.is_empty(),
            wrong(format!("not on real hardware:\n{}", unexpected.join("\n")))
        );
        Ok(started.elapsed())
    }

    /// Checks the reports of the levels.
    fn came_and_went(&self, console: &str) -> Result<()> {
        for level in 1..=self.depth {
            let report = |event: &str| {
                let start = format!("NESTLING-LEVEL {level} {event} ");
                console
                    .lines()
                    .find_map(|line| line.trim_end().strip_prefix(&start))
            };
            let Some(up) = report("up") else {
                bail!("level {level} did not come up");
            };
            let hypervisor = match level {
                1 => "NestlingNest",
                _ => "KVMKVMKVM",
            };
            // The innermost level may have a model without VT-x.
            let virt = match level < self.depth {
                true => " virt=vmx ",
                false => " virt=",
            };
            let expected = format!(" hypervisor={hypervisor}{virt}");
            ensure!(up.contains(&expected), "level {level} sees {up}");
            ensure!(
                up.ends_with(&format!(" cpus={}", self.cpus())),
                "level {level} has other processors: {up}"
            );
            ensure!(
                !self.options.contains(&KERNEL_6_12) || up.starts_with("kernel=6.12."),
                "level {level} has another kernel: {up}"
            );
            let down = report("down");
            ensure!(
                down.is_some_and(|down| down.starts_with("status=0 ")),
                "level {level} went down with {down:?}"
            );
        }
        Ok(())
    }
}
