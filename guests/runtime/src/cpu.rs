//! Single instructions as functions.

use core::arch::asm;

/// CR0 bits.
pub mod cr0 {
    /// Monitor coprocessor.
    pub const MP: u64 = 1 << 1;
    /// Emulation.
    pub const EM: u64 = 1 << 2;
    /// Task switched.
    pub const TS: u64 = 1 << 3;
    /// Numeric error.
    pub const NE: u64 = 1 << 5;
    /// Write protect.
    pub const WP: u64 = 1 << 16;
    /// Alignment mask.
    pub const AM: u64 = 1 << 18;
    /// Paging.
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits.
pub mod cr4 {
    /// Time-stamp disable.
    pub const TSD: u64 = 1 << 2;
    /// Debugging extensions.
    pub const DE: u64 = 1 << 3;
    /// Page global enable.
    pub const PGE: u64 = 1 << 7;
    /// FXSAVE and FXRSTOR.
    pub const OSFXSR: u64 = 1 << 9;
    /// Unmasked SIMD exceptions.
    pub const OSXMMEXCPT: u64 = 1 << 10;
    /// User-mode instruction prevention.
    pub const UMIP: u64 = 1 << 11;
    /// VMX.
    pub const VMXE: u64 = 1 << 13;
    /// FSGSBASE instructions.
    pub const FSGSBASE: u64 = 1 << 16;
    /// Process-context identifiers.
    pub const PCIDE: u64 = 1 << 17;
    /// XSAVE.
    pub const OSXSAVE: u64 = 1 << 18;
    /// Supervisor-mode execution prevention.
    pub const SMEP: u64 = 1 << 20;
    /// Supervisor-mode access prevention.
    pub const SMAP: u64 = 1 << 21;
    /// Protection keys for user pages.
    pub const PKE: u64 = 1 << 22;
}

/// IA32_EFER and its bits.
pub mod efer {
    /// The MSR.
    pub const MSR: u32 = 0xc000_0080;
    /// SYSCALL enable.
    pub const SCE: u64 = 1;
    /// No-execute enable.
    pub const NXE: u64 = 1 << 11;
}

macro_rules! control_register {
    ($read:ident, $write:ident, $name:literal) => {
        #[doc = concat!("Reads ", $name, ".")]
        pub fn $read() -> u64 {
            let value;
            // SAFETY: reading a control or debug register at CPL 0 changes nothing.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack)) };
            value
        }

        #[doc = concat!("Writes ", $name, ".")]
        pub fn $write(value: u64) {
            // SAFETY: the guest owns the processor and knows what it switches.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack)) };
        }
    };
}

control_register!(read_cr0, write_cr0, "cr0");
control_register!(read_cr2, write_cr2, "cr2");
control_register!(read_cr3, write_cr3, "cr3");
control_register!(read_cr4, write_cr4, "cr4");
control_register!(read_cr8, write_cr8, "cr8");
control_register!(read_dr0, write_dr0, "dr0");
control_register!(read_dr1, write_dr1, "dr1");
control_register!(read_dr2, write_dr2, "dr2");
control_register!(read_dr3, write_dr3, "dr3");
control_register!(read_dr6, write_dr6, "dr6");
control_register!(read_dr7, write_dr7, "dr7");

/// RDMSR.
pub fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: a bad index is #GP, which the guest's handler takes.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// WRMSR.
pub fn write_msr(msr: u32, value: u64) {
    // SAFETY: the guest owns the processor and knows what it switches.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack));
    }
}

/// CPUID: EAX, EBX, ECX, EDX.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let result = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [result.eax, result.ebx, result.ecx, result.edx]
}

/// Whether bit `bit` of register `register` (0 EAX to 3 EDX) of a leaf is set.
pub fn has(leaf: u32, register: usize, bit: u32) -> bool {
    let highest = cpuid(leaf & 0xffff_0000, 0)[0];
    highest >= leaf && cpuid(leaf, 0)[register] & 1 << bit != 0
}

/// INVLPG.
pub fn invlpg(address: u64) {
    // SAFETY: only drops translations.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack)) };
}

/// INVPCID of `kind` with the descriptor (PCID, linear address).
pub fn invpcid(kind: u64, pcid: u64, address: u64) {
    let descriptor = [pcid, address];
    // SAFETY: only drops translations.
    unsafe { asm!("invpcid {}, [{}]", in(reg) kind, in(reg) &descriptor, options(nostack)) };
}

/// RDTSC.
pub fn tsc() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// HLT.
pub fn halt() {
    // SAFETY: waits.
    unsafe { asm!("hlt", options(nomem, nostack)) };
}

/// STI, then NOP, so that a pending interrupt comes before this returns.
pub fn enable_interrupts() {
    // SAFETY: handlers run on a stack of their own.
    unsafe { asm!("sti", "nop", options(nostack)) };
}

/// CLI.
pub fn disable_interrupts() {
    // SAFETY: only holds interrupts back.
    unsafe { asm!("cli", options(nostack)) };
}

/// STI and HLT: waits for an interrupt; CLI afterwards.
pub fn wait_for_interrupt() {
    // SAFETY: handlers run on a stack of their own.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// IN, 8 bits.
pub fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: port input touches no memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// OUT, 8 bits.
pub fn outb(port: u16, value: u8) {
    // SAFETY: the ports the guest writes touch no memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// OUT, 32 bits.
pub fn outl(port: u16, value: u32) {
    // SAFETY: the ports the guest writes touch no memory.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) };
}
