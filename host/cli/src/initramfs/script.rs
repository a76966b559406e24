//! The `/init` of a level: mounts what it needs, reports, and, except in the innermost level, becomes a
//! hypervisor and runs the next level. It starts few programs, since each costs dearly in a deep level.

use super::{LOG_MARK, Level, REPORT_MARK};
use crate::artifacts::qemu;

/// The kernel's command line in every level: the console is the first serial port, only errors are printed, a
/// panic ends the guest. Mitigations guard against other users of a processor, of which a demo has none.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off nokaslr random.trust_cpu=on";

/// Where the image has its files.
pub mod path {
    /// The script itself.
    pub const INIT: &str = "init";
    /// busybox.
    pub const BUSYBOX: &str = "bin/busybox";
    /// Our program.
    pub const PROGRAM: &str = "bin/nestling";
    /// A program for the level to run once it is up.
    pub const BENCH: &str = "bin/bench";
    /// The folder of modules.
    pub const MODULES: &str = "modules";
    /// The next level's kernel.
    pub const KERNEL: &str = "vmlinuz";
    /// The next level's initramfs.
    pub const NEXT: &str = "next.cpio";
}

/// What runs the next level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vmm<'a> {
    /// Our own program with its KVM engine.
    Nestling {
        /// What `--nested` says for the next level.
        nested: &'static str,
    },
    /// QEMU with KVM.
    Qemu {
        /// What `-cpu` says.
        cpu: &'a str,
    },
}

/// What a level that runs another one needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inner<'a> {
    /// The modules by name in the order they are loaded.
    pub modules: Vec<&'a str>,
    /// Options of the vendor's module, the last one, separated by spaces.
    pub module_options: &'a str,
    /// The next level's memory in bytes.
    pub memory_bytes: u64,
    /// The next level's processors.
    pub cpus: u8,
    /// What runs it.
    pub vmm: Vmm<'a>,
    /// The next level's kernel command line.
    pub append: &'a str,
}

/// The command line with the user's `more` words; the kernel lets later words win.
pub fn command_line(more: &str) -> String {
    match more {
        "" => COMMAND_LINE.to_string(),
        more => format!("{COMMAND_LINE} {more}"),
    }
}

/// `text` as one word of a shell (POSIX, Shell Command Language, 2.2.2).
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// What a level does besides running the next one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Steps<'a> {
    /// Run the program [`path::BENCH`] once it is up, with these words as its last arguments.
    pub bench: Option<&'a str>,
    /// Before it goes down, print the kernel's messages that are warnings or worse, each behind [`LOG_MARK`] and the
    /// level's number.
    pub log: bool,
}

/// The script of `level`; `inner` says which level it runs.
pub fn init(level: Level, steps: Steps, inner: Option<&Inner>) -> String {
    let Level { number, depth } = level;
    let log = match steps.log {
        true => {
            format!(
                "    $busybox dmesg -r | $busybox sed -n 's/^<[0-4]>/{LOG_MARK} {number} &/p'\n"
            )
        }
        false => String::new(),
    };
    let head = format!(
        r#"#!/bin/busybox sh
# Level {number} of {depth} of a nestling demo.
busybox=/bin/busybox
say() {{ echo "{REPORT_MARK} {number} $*"; }}
down() {{
{log}    read uptime rest </proc/uptime
    say "down status=$1 uptime=$uptime"
    exec $busybox poweroff -f
}}
fail() {{ say "fail step=$1 status=$2"; down 1; }}
$busybox mount -t proc proc /proc || fail mount-proc $?
$busybox mount -t sysfs sysfs /sys || fail mount-sys $?
$busybox mount -t devtmpfs devtmpfs /dev || fail mount-dev $?
/bin/nestling guest-report --level {number} || fail report $?
"#
    );
    let bench = match steps.bench {
        Some(arguments) => format!(
            "{} || fail bench $?\n",
            format!("/{} --level {number} {arguments}", path::BENCH).trim_end()
        ),
        None => String::new(),
    };
    let tail = inner.map_or_else(|| "down 0\n".to_string(), run_inner);
    head + &bench + &tail
}

/// Loads the modules and runs the next level.
fn run_inner(inner: &Inner) -> String {
    let (vendor, others) = match inner.modules.split_last() {
        Some((vendor, others)) => (*vendor, others),
        None => ("", &[][..]),
    };
    let options = match inner.module_options {
        "" => String::new(),
        options => format!(" {options}"),
    };
    format!(
        r#"insert() {{ $busybox insmod /modules/$1.ko $2 $3 $4 || fail module-$1 $?; }}
for module in {others}; do insert $module; done
insert {vendor}{options}
[ -c /dev/kvm ] || fail no-dev-kvm 1
say enter
{run} </dev/null 2>/run/messages
status=$?
[ $status = 0 ] || $busybox tail -n 5 /run/messages
$busybox grep "not confined" /run/messages
down $status
"#,
        others = others.join(" "),
        run = command(inner),
    )
}

/// The command that runs the next level on its standard output.
fn command(inner: &Inner) -> String {
    let (kernel, next, append) = (path::KERNEL, path::NEXT, quoted(inner.append));
    let (memory_kib, cpus) = (inner.memory_bytes / 1024, inner.cpus);
    match inner.vmm {
        Vmm::Nestling { nested } => format!(
            r#"/bin/nestling run --engine kvm --kernel /{kernel} --initrd /{next} --memory {memory_kib}K --cpus {cpus} \
    --nested {nested} --append {append}"#
        ),
        Vmm::Qemu { cpu } => format!(
            r#"/{program} -accel kvm -cpu {cpu} -smp {cpus} -m {memory_kib}K \
    -nodefaults -no-user-config -display none -serial stdio -no-reboot \
    -kernel /{kernel} -initrd /{next} -append {append}"#,
            program = qemu::PROGRAM,
            cpu = quoted(cpu),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVEL: Level = Level {
        number: 1,
        depth: 2,
    };

    fn hypervisor(module_options: &'static str, cpus: u8, vmm: Vmm<'static>) -> String {
        init(
            LEVEL,
            Steps::default(),
            Some(&Inner {
                modules: vec!["irqbypass", "kvm", "kvm-intel"],
                module_options,
                memory_bytes: 820 << 20,
                cpus,
                vmm,
                append: COMMAND_LINE,
            }),
        )
    }

    fn ours() -> String {
        hypervisor("", 1, Vmm::Nestling { nested: "intel" })
    }

    fn with_qemu() -> String {
        hypervisor(
            "ept=0 nested=1",
            2,
            Vmm::Qemu {
                cpu: "host,+x2apic",
            },
        )
    }

    #[test]
    fn a_hypervisors_script() {
        insta::assert_snapshot!(ours());
    }

    #[test]
    fn a_script_that_runs_qemu() {
        let script = with_qemu();
        assert!(
            script.contains("insert kvm-intel ept=0 nested=1\n"),
            "{script}"
        );
        let command =
            "/usr/bin/qemu-system-x86_64 -accel kvm -cpu 'host,+x2apic' -smp 2 -m 839680K ";
        assert!(script.contains(command), "{script}");
    }

    #[test]
    fn a_log_comes_before_the_level_is_down() {
        let steps = Steps {
            log: true,
            ..Steps::default()
        };
        let script = init(LEVEL, steps, None);
        let (_, body) = script.split_once("down() {\n").expect("it is there");
        assert!(body.starts_with("    $busybox dmesg -r |"), "{body}");
        assert!(body.contains("NESTLING-LOG 1 &"), "{body}");
        assert!(!ours().contains("dmesg"));
    }

    #[test]
    fn the_innermost_script() {
        insta::assert_snapshot!(init(
            Level {
                number: 2,
                depth: 2
            },
            Steps::default(),
            None
        ));
    }

    #[test]
    fn a_bench_runs_after_the_report_and_before_what_comes_then() {
        let bench = Steps {
            bench: Some(""),
            ..Steps::default()
        };
        let script = init(LEVEL, bench, None);
        let (before, after) = script
            .split_once("/bin/bench --level 1 || fail bench $?\n")
            .expect("it is run");
        assert!(before.ends_with("guest-report --level 1 || fail report $?\n"));
        assert_eq!(after, "down 0\n");
        assert!(!init(LEVEL, Steps::default(), None).contains("bench"));
    }

    #[test]
    fn the_hosts_shell_parses_the_scripts() {
        let steps = Steps {
            bench: Some(""),
            log: true,
        };
        for script in [ours(), with_qemu(), init(LEVEL, steps, None)] {
            let file = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(file.path(), script).expect("written");
            let status = std::process::Command::new("/bin/sh")
                .arg("-n")
                .arg(file.path())
                .status()
                .expect("a shell");
            assert!(status.success());
        }
    }

    #[test]
    fn words_of_the_user_stay_one_word() {
        assert_eq!(quoted("a 'b' $c"), "'a '\\''b'\\'' $c'");
        assert!(command_line("loglevel=7").ends_with("random.trust_cpu=on loglevel=7"));
        assert_eq!(command_line(""), COMMAND_LINE);
    }
}
