//! Real programs on real data: Debian's xz, zstd, tcc and sqlite3, each started anew for every batch. They are
//! dynamic programs; they and their libraries are under one folder, in a guest as on the host, and the loader is told so.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::measure::{Batch, Group, Part, Places, Wrong, sum_of};

/// Bytes that are compressed: the beginning of the C library, a file of the package libc6.
const XZ_BYTES: u32 = 64 << 10;
/// The same for zstd, which is faster.
const ZSTD_BYTES: u32 = 512 << 10;
/// How often the compiled program has its unit of code.
const UNITS: u32 = 60;
/// What the compiled program prints, by another compiler (gcc 12 with and without optimization).
const PROGRAM_PRINTS: &[u8] = b"095d6bc2\n";
/// Rows that are inserted.
const ROWS: u32 = 2_000;

/// The parts in the order they run.
pub const PARTS: [Part; 4] = [
    part("xz", "byte there and back", XZ_BYTES, None, xz),
    part("zstd", "byte there and back", ZSTD_BYTES, None, zstd),
    part(
        "tcc",
        "unit compiled",
        UNITS,
        Some(sum_of(PROGRAM_PRINTS)),
        tcc,
    ),
    part("sqlite", "row", ROWS, Some(ROWS as u64), sqlite),
];

const fn part(
    name: &'static str,
    operation: &'static str,
    operations: u32,
    expected: Option<u64>,
    prepare: fn(&Places) -> Result<Batch, Wrong>,
) -> Part {
    Part {
        name,
        group: Group::Program,
        operation,
        needs: &[],
        operations,
        batches: 8,
        expected,
        prepare,
    }
}

/// Where the libraries are under the folder of files.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";

/// The programs under the folder of files.
struct Programs {
    files: PathBuf,
    scratch: PathBuf,
}

impl Programs {
    fn of(places: &Places) -> Self {
        Self {
            files: places.files.clone(),
            scratch: places.scratch.clone(),
        }
    }

    fn scratch(&self, name: &str) -> PathBuf {
        self.scratch.join(format!("guestbench-{name}"))
    }

    /// A program, to be run with what it needs.
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.files.join("lib64/ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(self.files.join(LIBRARIES))
            .arg(self.files.join("usr/bin").join(name));
        command
    }

    /// Writes the beginning of the C library to a file.
    fn real_data(&self, bytes: u32, to: &Path) -> Result<Vec<u8>, Wrong> {
        let library = self.files.join(LIBRARIES).join("libc.so.6");
        let mut data = fs::read(&library).map_err(|e| failed(&library, &e))?;
        if data.len() < bytes as usize {
            return Err(Wrong(format!("{} is too short", library.display())));
        }
        data.truncate(bytes as usize);
        fs::write(to, &data).map_err(|e| failed(to, &e))?;
        Ok(data)
    }
}

fn failed(path: &Path, error: &io::Error) -> Wrong {
    Wrong(format!("{}: {error}", path.display()))
}

/// Runs a command to its end, between two files or from one.
fn run(command: &mut Command, from: Option<&Path>, to: &Path) -> Result<(), Wrong> {
    let input = match from {
        Some(from) => Stdio::from(File::open(from).map_err(|e| failed(from, &e))?),
        None => Stdio::null(),
    };
    let output = File::create(to).map_err(|e| failed(to, &e))?;
    let name = format!("{command:?}");
    let status = command.stdin(input).stdout(output).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Wrong(format!("{name} ended with {status}"))),
        Err(error) => Err(Wrong(format!("{name}: {error}"))),
    }
}

fn xz(places: &Places) -> Result<Batch, Wrong> {
    there_and_back(
        places,
        "xz",
        XZ_BYTES,
        &["--stdout", "--threads=1", "-3"],
        &["--stdout", "--decompress"],
    )
}

fn zstd(places: &Places) -> Result<Batch, Wrong> {
    there_and_back(
        places,
        "zstd",
        ZSTD_BYTES,
        &["-q", "-c", "--single-thread", "-6"],
        &["-q", "-c", "-d"],
    )
}

/// Packs a file and unpacks the result. The sum is that of the packed bytes.
fn there_and_back(
    places: &Places,
    name: &'static str,
    bytes: u32,
    pack: &'static [&'static str],
    unpack: &'static [&'static str],
) -> Result<Batch, Wrong> {
    let programs = Programs::of(places);
    let [plain, packed, unpacked] = ["plain", "packed", "unpacked"].map(|n| programs.scratch(n));
    let data = programs.real_data(bytes, &plain)?;
    Ok(Box::new(move || {
        run(programs.command(name).args(pack), Some(&plain), &packed)?;
        run(
            programs.command(name).args(unpack),
            Some(&packed),
            &unpacked,
        )?;
        let back = fs::read(&unpacked).map_err(|e| failed(&unpacked, &e))?;
        let packed = fs::read(&packed).map_err(|e| failed(&packed, &e))?;
        if back != data || packed.len() >= data.len() {
            return Err(Wrong(format!("{name} does not give back what it got")));
        }
        Ok(sum_of(&packed))
    }))
}

/// Compiles and links a program, and runs it.
fn tcc(places: &Places) -> Result<Batch, Wrong> {
    let programs = Programs::of(places);
    let [source, program, printed] =
        ["source.c", "program", "printed"].map(|n| programs.scratch(n));
    fs::write(&source, source_text()).map_err(|e| failed(&source, &e))?;
    let mut folder = std::ffi::OsString::from("-B");
    folder.push(programs.files.join("usr/lib/x86_64-linux-gnu/tcc"));
    Ok(Box::new(move || {
        let mut compile = programs.command("tcc");
        compile
            .arg(&folder)
            .args(["-nostdinc", "-nostdlib", "-static", "-o"])
            .args([&program, &source]);
        run(&mut compile, None, &printed)?;
        run(&mut Command::new(&program), None, &printed)?;
        let printed = fs::read(&printed).map_err(|e| failed(&printed, &e))?;
        Ok(sum_of(&printed))
    }))
}

/// The program for the compiler: a head, many like units, and a tail that calls them all.
fn source_text() -> String {
    let mut text = include_str!("programs/head.c").to_string();
    let mut table = String::from("static word (*const units[])(word) = {\n");
    for unit in 0..UNITS {
        text += &include_str!("programs/unit.c").replace('@', &unit.to_string());
        let _ = writeln!(table, "    unit_{unit},");
    }
    table += "};\n\n";
    text + &table + include_str!("programs/tail.c")
}

/// Inserts rows into a table with an index, in one transaction, and asks for their number and a sum.
fn sqlite(places: &Places) -> Result<Batch, Wrong> {
    let programs = Programs::of(places);
    let [script, database, printed] =
        ["script.sql", "database", "printed"].map(|n| programs.scratch(n));
    fs::write(&script, script_text()).map_err(|e| failed(&script, &e))?;
    let right = format!(
        "{ROWS}|{}\n",
        (0..ROWS).map(value).map(u64::from).sum::<u64>()
    );
    Ok(Box::new(move || {
        // The first batch finds none.
        let _ = fs::remove_file(&database);
        let mut command = programs.command("sqlite3");
        // What a user keeps in a file of their own is not read.
        command
            .args(["-batch", "-init", "/dev/null"])
            .arg(&database);
        run(&mut command, Some(&script), &printed)?;
        let printed = fs::read(&printed).map_err(|e| failed(&printed, &e))?;
        match printed == right.as_bytes() {
            true => Ok(u64::from(ROWS)),
            false => Err(Wrong(format!(
                "sqlite3 prints {:?}, not {right:?}",
                String::from_utf8_lossy(&printed)
            ))),
        }
    }))
}

/// The number in a row, in no order.
fn value(row: u32) -> u32 {
    row * 7_919 % 100_003
}

fn script_text() -> String {
    let mut text = String::from(
        "PRAGMA synchronous = OFF;\nCREATE TABLE items (number INTEGER, name TEXT);\n\
         CREATE INDEX by_number ON items (number);\nBEGIN;\n",
    );
    for row in 0..ROWS {
        let value = value(row);
        let _ = writeln!(text, "INSERT INTO items VALUES ({value}, 'item {row}');");
    }
    text + "COMMIT;\nSELECT count(*), sum(number) FROM items WHERE number >= 0;\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_has_every_unit() {
        let text = source_text();
        assert!(!text.contains('@'));
        for unit in [0, UNITS - 1] {
            assert!(text.contains(&format!("static word unit_{unit}(word sum)")));
            assert!(text.contains(&format!("    unit_{unit},\n")));
        }
        assert_eq!(script_text().matches("INSERT").count(), ROWS as usize);
    }

    /// The host's own compiler, where there is one, gives the output that tcc's program is held against.
    #[test]
    fn another_compiler_gives_the_same_program() {
        let folder = std::env::temp_dir().join(format!("guestbench-test-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let (source, program) = (folder.join("source.c"), folder.join("program"));
        fs::write(&source, source_text()).expect("written");
        let compiled = Command::new("gcc")
            .args([
                "-O1",
                "-ffreestanding",
                "-fno-stack-protector",
                "-nostdlib",
                "-static",
                "-o",
            ])
            .args([&program, &source])
            .output();
        match compiled {
            Ok(output) if output.status.success() => {
                let output = Command::new(&program).output().expect("it runs");
                assert_eq!(output.stdout, PROGRAM_PRINTS);
            }
            _ => eprintln!("skipped: this host has no gcc"),
        }
        fs::remove_dir_all(&folder).expect("removed");
    }
}
