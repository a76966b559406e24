//! Entry: by the ELF header, in 64-bit mode or, by a multiboot loader, in protected mode; by the Linux boot
//! protocol in either; by the PVH note in protected mode.

use core::arch::global_asm;

/// Who entered the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loader {
    /// The 64-bit Linux boot protocol, or nobody with information.
    Linux64,
    /// The 32-bit Linux boot protocol.
    Linux32,
    /// Multiboot 1.
    Multiboot,
    /// The x86/HVM direct boot ABI.
    Pvh,
}

// SAFETY: written once by the entry code below, before anything else runs.
unsafe extern "C" {
    static boot_loader: u32;
    static boot_magic: u32;
    static boot_info: u64;
}

/// Who entered the guest.
///
/// # Panics
/// The entry code and this list differ.
pub fn loader() -> Loader {
    // SAFETY: see its declaration.
    match unsafe { boot_loader } {
        0 => Loader::Linux64,
        1 => Loader::Linux32,
        2 => Loader::Multiboot,
        3 => Loader::Pvh,
        other => panic!("loader {other}"),
    }
}

/// EAX at the entry by multiboot.
pub fn magic() -> u32 {
    // SAFETY: see its declaration.
    unsafe { boot_magic }
}

/// The address the loader passed: `boot_params` in RSI, or the information in EBX.
pub fn information() -> u64 {
    // SAFETY: see its declaration.
    unsafe { boot_info }
}

global_asm!(
    // Linked at 100000h: where the 32-bit Linux boot protocol enters a kernel that lies at 1 MiB.
    ".section .entry32, \"ax\"",
    ".code32",
    "jmp linux32_start",
    // Multiboot 0.6.96, 3.1: modules page aligned, memory information; no address fields.
    ".section .multiboot, \"a\"",
    ".balign 4",
    ".long 0x1badb002",
    ".long 3",
    ".long -(0x1badb002 + 3)",
    // The x86/HVM direct boot ABI: note type 18 holds the physical 32-bit entry point.
    ".section .note.pvh, \"a\", @note",
    ".balign 4",
    ".long 4",
    ".long 4",
    ".long 18",
    ".asciz \"Xen\"",
    ".long pvh_start",
    // Linked at 100200h: where the 64-bit Linux boot protocol enters a kernel that lies at 1 MiB.
    ".section .entry, \"ax\"",
    ".globl _start",
    "_start:",
    // 41h is INC ECX in protected mode and a prefix in 64-bit mode, where the TEST reads R9D and ECX, 0.
    "xor ecx, ecx",
    ".byte 0x41, 0x85, 0xc9",
    // JZ with a displacement of 32 bits is the same in both.
    ".byte 0x0f, 0x84",
    ".long start64 - . - 4",
    // JMP too.
    ".byte 0xe9",
    ".long multiboot_start - . - 4",
    // Protected mode, flat segments, no paging, no stack.
    ".section .boot, \"ax\"",
    ".code32",
    "linux32_start:",
    "mov dword ptr [boot_loader], 1",
    "mov dword ptr [boot_info], esi",
    "jmp protected",
    "multiboot_start:",
    "mov dword ptr [boot_loader], 2",
    "mov dword ptr [boot_magic], eax",
    "mov dword ptr [boot_info], ebx",
    "jmp protected",
    "pvh_start:",
    "mov dword ptr [boot_loader], 3",
    "mov dword ptr [boot_info], ebx",
    "protected:",
    "cli",
    "cld",
    "mov esp, offset boot_stack_top",
    "mov eax, offset boot_pdpt",
    "or eax, 3",
    "mov dword ptr [boot_pml4], eax",
    "mov eax, offset boot_pd",
    "or eax, 3",
    "mov edi, offset boot_pdpt",
    "mov ecx, 4",
    "2:",
    "mov dword ptr [edi], eax",
    "add edi, 8",
    "add eax, 4096",
    "loop 2b",
    // 2048 pages of 2 MiB.
    "mov eax, 0x83",
    "mov edi, offset boot_pd",
    "mov ecx, 2048",
    "2:",
    "mov dword ptr [edi], eax",
    "add edi, 8",
    "add eax, 0x200000",
    "loop 2b",
    "mov eax, cr4",
    "or eax, 0x20",
    "mov cr4, eax",
    "mov eax, offset boot_pml4",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    "mov eax, cr0",
    "or eax, 0x80000001",
    "mov cr0, eax",
    "lgdt [boot_gdtr]",
    "ljmp 8, offset common64",
    ".code64",
    "start64:",
    "mov qword ptr [boot_info], rsi",
    "common64:",
    "cli",
    "cld",
    "mov rsp, offset boot_stack_top",
    "xor ebp, ebp",
    "call runtime_start",
    "ud2",
    ".balign 8",
    "boot_gdt:",
    ".quad 0",
    ".quad 0x00af9b000000ffff",
    "boot_gdtr:",
    ".word 15",
    ".long boot_gdt",
    ".section .data, \"aw\"",
    ".balign 8",
    ".globl boot_info, boot_loader, boot_magic",
    "boot_info: .quad 0",
    "boot_loader: .long 0",
    "boot_magic: .long 0",
    ".section .bss, \"aw\", @nobits",
    ".balign 4096",
    "boot_pml4: .skip 4096",
    "boot_pdpt: .skip 4096",
    "boot_pd: .skip 16384",
    "boot_stack: .skip 65536",
    "boot_stack_top:",
    ".text",
);
