//! The bare-metal guests: built by cargo, made a kernel image, run on a machine.
//!
//! A guest is an ELF64 program at 1 MiB that checks itself and ends with an exit status. Machines boot
//! Linux kernels by the 64-bit boot protocol, so the program is wrapped in what that protocol asks for: a
//! setup header, and the entry point 200h bytes into the image.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bus::ClockMode;
use lifecycle::{Console, RunOptions, RunOutcome, Vm};
use machine::{Image, MachineConfig};
use vcpu::Engine;

/// What a guest writes to the debug-exit port when every check held.
pub const PASSED: u8 = 0x10;

const LOAD_ADDRESS: u64 = 0x10_0000;

/// What came of a guest.
#[derive(Clone, Debug)]
pub struct GuestRun {
    /// How the machine ended.
    pub outcome: Result<RunOutcome, String>,
    /// What the guest said.
    pub text: String,
}

impl GuestRun {
    /// Whether every check held.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.outcome == Ok(RunOutcome::DebugExit(PASSED))
    }
}

/// The directory of built guests; builds them on the first call.
///
/// # Errors
/// What cargo says, when it fails.
pub fn built() -> Result<PathBuf, String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> Result<PathBuf, String> {
    let guests = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../guests");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--release", "--offline", "--target-dir", "target"])
        .current_dir(&guests);
    // The guests have flags of their own in guests/.cargo; what the outer build was given is not for them.
    for name in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
    ] {
        command.env_remove(name);
    }
    let output = command
        .output()
        .map_err(|e| format!("cannot run cargo: {e}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(guests.join("target/x86_64-unknown-linux-gnu/release"))
}

/// A Linux kernel image (boot protocol 2.15) that is the ELF64 program `elf`.
///
/// # Errors
/// When it is not a little-endian ELF64 program that starts at 1 MiB.
pub fn kernel_image(elf: &[u8]) -> Result<Vec<u8>, String> {
    let bad = || "not an ELF64 program at 1 MiB".to_owned();
    let bytes = |at: usize, n: usize| elf.get(at..at + n).ok_or_else(bad);
    let word = |at: usize, n: usize| {
        let mut value = [0; 8];
        value[..n].copy_from_slice(bytes(at, n)?);
        Ok::<u64, String>(u64::from_le_bytes(value))
    };
    if bytes(0, 6)? != b"\x7fELF\x02\x01" {
        return Err(bad());
    }
    let (table, size, count) = (word(32, 8)?, word(54, 2)?, word(56, 2)?);
    let (mut code, mut end) = (Vec::new(), 0);
    for i in 0..count {
        let at = (table + i * size) as usize;
        // PT_LOAD
        if word(at, 4)? != 1 {
            continue;
        }
        let (offset, address) = (word(at + 8, 8)?, word(at + 24, 8)?);
        let (file_bytes, memory_bytes) = (word(at + 32, 8)?, word(at + 40, 8)?);
        let from = address.checked_sub(LOAD_ADDRESS).ok_or_else(bad)? as usize;
        let segment = bytes(offset as usize, file_bytes as usize)?;
        code.resize(code.len().max(from + segment.len()), 0);
        code[from..from + segment.len()].copy_from_slice(segment);
        end = end.max(from as u64 + memory_bytes);
    }
    if word(24, 8)? != LOAD_ADDRESS + 0x200 {
        return Err(bad());
    }
    code.resize(code.len().next_multiple_of(16), 0);
    Ok(wrap(&code, end))
}

/// The setup header (Documentation/arch/x86/boot.rst of Linux, "The Real-Mode Kernel Header").
fn wrap(code: &[u8], memory_bytes: u64) -> Vec<u8> {
    let mut image = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x1f4, &((code.len() / 16) as u32).to_le_bytes()); // syssize
    put(0x1fe, &[0x55, 0xaa]);
    put(0x200, &[0xeb, 0x66]);
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes()); // version
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x214, &(LOAD_ADDRESS as u32).to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    put(0x230, &0x20_0000u32.to_le_bytes()); // kernel_alignment
    put(0x236, &1u16.to_le_bytes()); // xloadflags: XLF_KERNEL_64
    put(0x238, &255u32.to_le_bytes()); // cmdline_size
    put(0x258, &LOAD_ADDRESS.to_le_bytes()); // pref_address
    put(0x260, &(memory_bytes as u32).to_le_bytes()); // init_size
    image.extend_from_slice(code);
    image
}

#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs guest `name` on `engine`, on virtual time where the engine can, on a machine that differs from the usual one
/// in what `config` says beside memory, kernel, clock and debug exit.
///
/// # Errors
/// When the guest cannot be built or the machine not be started.
pub fn run_on(engine: &dyn Engine, name: &str, config: MachineConfig) -> Result<GuestRun, String> {
    let kernel = Some(Image::Bytes(Arc::new(kernel_image(&program(name)?)?)));
    run_machine(engine, MachineConfig { kernel, ..config })
}

/// The ELF program that is guest `name`.
///
/// # Errors
/// When the guests cannot be built.
pub fn program(name: &str) -> Result<Vec<u8>, String> {
    let path = built()?.join(name);
    std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Runs the kernel of `config` as guests are run: memory, clock and debug exit are not taken from there.
///
/// # Errors
/// When the machine cannot be started.
pub fn run_machine(engine: &dyn Engine, config: MachineConfig) -> Result<GuestRun, String> {
    let config = MachineConfig {
        memory_bytes: 64 << 20,
        clock: if engine.capabilities().own_interrupt_controllers {
            ClockMode::Host
        } else {
            ClockMode::Virtual
        },
        debug_exit: true,
        ..config
    };
    let text = Text::default();
    let console = Console {
        debug: None,
        output: Box::new(text.clone()),
        input: None,
    };
    let options = RunOptions {
        timeout: Some(Duration::from_secs(180)),
        confine: None,
    };
    let vm = Vm::start(engine, &config, console, options).map_err(|e| e.to_string())?;
    let outcome = vm.wait().map(|r| r.outcome).map_err(|e| e.to_string());
    let text = text.0.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(GuestRun {
        outcome,
        text: String::from_utf8_lossy(&text).into_owned(),
    })
}
