//! The `/init` of a level: mounts what it needs, reports, and, except in the innermost level, becomes a
//! hypervisor and runs the next level. It starts few programs, since each costs dearly in a deep level.

use super::{Level, REPORT_MARK};

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

/// What a level that runs another one needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inner<'a> {
    /// The modules by name in the order they are loaded.
    pub modules: Vec<&'a str>,
    /// The next level's memory in bytes.
    pub memory_bytes: u64,
    /// The next level's processors.
    pub cpus: u8,
    /// What `--nested` says for the next level.
    pub nested: &'static str,
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

/// The script of `level`. With `bench` it runs that program once it is up; `inner` says which level it runs then.
pub fn init(level: Level, bench: bool, inner: Option<&Inner>) -> String {
    let Level { number, depth } = level;
    let head = format!(
        r#"#!/bin/busybox sh
# Level {number} of {depth} of a nestling demo.
busybox=/bin/busybox
say() {{ echo "{REPORT_MARK} {number} $*"; }}
down() {{
    read uptime rest </proc/uptime
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
    let bench = match bench {
        true => format!("/{} --level {number} || fail bench $?\n", path::BENCH),
        false => String::new(),
    };
    let tail = match inner {
        None => "down 0\n".to_string(),
        Some(inner) => format!(
            r#"for module in {modules}; do
    $busybox insmod /modules/$module.ko || fail module-$module $?
done
[ -c /dev/kvm ] || fail no-dev-kvm 1
say enter
/bin/nestling run --engine kvm --kernel /{kernel} --initrd /{next} --memory {memory}K --cpus {cpus} \
    --nested {nested} --append {append} </dev/null 2>/run/messages
status=$?
[ $status = 0 ] || $busybox tail -n 5 /run/messages
$busybox grep "not confined" /run/messages
down $status
"#,
            modules = inner.modules.join(" "),
            kernel = path::KERNEL,
            next = path::NEXT,
            memory = inner.memory_bytes / 1024,
            cpus = inner.cpus,
            nested = inner.nested,
            append = quoted(inner.append),
        ),
    };
    head + &bench + &tail
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVEL: Level = Level {
        number: 1,
        depth: 2,
    };

    fn hypervisor() -> String {
        init(
            LEVEL,
            false,
            Some(&Inner {
                modules: vec!["irqbypass", "kvm", "kvm-intel"],
                memory_bytes: 820 << 20,
                cpus: 1,
                nested: "intel",
                append: COMMAND_LINE,
            }),
        )
    }

    #[test]
    fn a_hypervisors_script() {
        insta::assert_snapshot!(hypervisor());
    }

    #[test]
    fn the_innermost_script() {
        insta::assert_snapshot!(init(
            Level {
                number: 2,
                depth: 2
            },
            false,
            None
        ));
    }

    #[test]
    fn a_bench_runs_after_the_report_and_before_what_comes_then() {
        let script = init(LEVEL, true, None);
        let (before, after) = script
            .split_once("/bin/bench --level 1 || fail bench $?\n")
            .expect("it is run");
        assert!(before.ends_with("guest-report --level 1 || fail report $?\n"));
        assert_eq!(after, "down 0\n");
        assert!(!init(LEVEL, false, None).contains("bench"));
    }

    #[test]
    fn the_hosts_shell_parses_the_scripts() {
        for script in [hypervisor(), init(LEVEL, true, None)] {
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
