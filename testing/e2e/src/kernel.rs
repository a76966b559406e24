//! Made-up kernels: bzImages (Linux `Documentation/arch/x86/boot.rst`) whose 64-bit entry is a few instructions.
//! They run at CPL 0 in 64-bit mode, interrupts off, memory identity-mapped.

/// One setup sector after the first.
const SETUP_SECTORS: u8 = 1;
/// Where the protected-mode code starts in the file.
const CODE: usize = 512 * (1 + SETUP_SECTORS as usize);
/// The 64-bit entry point, from the start of the protected-mode code.
const ENTRY_64: usize = 0x200;
/// What the kernel asks for from its load address on, in bytes.
const INIT_SIZE: u32 = 1 << 20;
const MIB: u32 = 1 << 20;

/// A bzImage that runs `code`.
#[must_use]
pub fn bzimage(code: &[u8]) -> Vec<u8> {
    let body = (ENTRY_64 + code.len()).next_multiple_of(16);
    let paragraphs = u32::try_from(body / 16).expect("a small kernel");
    let mut image = vec![0; CODE + body];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[SETUP_SECTORS]);
    put(0x1f4, &paragraphs.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa]);
    // A jump over the header, which ends at 202h and its displacement.
    put(0x200, &[0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes());
    // loadflags: LOADED_HIGH.
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x230, &(2 * MIB).to_le_bytes());
    put(0x234, &[1]);
    // xloadflags: XLF_KERNEL_64.
    put(0x236, &1_u16.to_le_bytes());
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &u64::from(16 * MIB).to_le_bytes());
    put(0x260, &INIT_SIZE.to_le_bytes());
    put(CODE + ENTRY_64, code);
    image
}

/// Where the setup code starts in the file: where the jump at 200h goes.
const SETUP_CODE: usize = 0x26c;

/// A bzImage that runs `code` in real mode, at its 16-bit entry point.
#[must_use]
pub fn real_mode_bzimage(code: &[u8]) -> Vec<u8> {
    let mut image = bzimage(&[]);
    image[SETUP_CODE..SETUP_CODE + code.len()].copy_from_slice(code);
    image
}

/// Bytes that [`report_real_mode`] sends of registers and of the setup header.
pub const REGISTER_BYTES: u16 = 16;
/// See there.
pub const HEADER_BYTES: u16 = SETUP_CODE as u16 - HEADER;
/// Where the setup header starts.
pub const HEADER: u16 = 0x1f1;

/// 16-bit instructions that send to the first serial port: SP, GS, FS, ES, DS, SS, CS and the flags, as they find them;
/// the setup header in the segment DS; and `count` bytes of it from `start` on. Then the run ends with `value` at the
/// debug-exit port.
#[must_use]
pub fn report_real_mode(start: u16, count: u16, value: u8) -> Vec<u8> {
    const SS: u8 = 0x36;
    const DS: u8 = 0x3e;
    let mut code = vec![
        0x9c, // pushf
        0x0e, // push cs
        0x16, // push ss
        0x1e, // push ds
        0x06, // push es
        0x0f, 0xa0, // push fs
        0x0f, 0xa8, // push gs
        0x54, // push sp
        0x89, 0xe6, // mov si, sp
    ];
    for (segment, start, count) in [
        (SS, None, REGISTER_BYTES),
        (DS, Some(HEADER), HEADER_BYTES),
        (DS, Some(start), count),
    ] {
        if let Some(start) = start {
            // mov si, start
            code.push(0xbe);
            code.extend(start.to_le_bytes());
        }
        // mov cx, count
        code.push(0xb9);
        code.extend(count.to_le_bytes());
        code.extend([
            0xba, 0xfd, 0x03, // 1: mov dx, 0x3fd
            0xec, // 2: in al, dx
            0xa8, 0x20, // test al, 0x20
            0x74, 0xfb, // jz 2b
            0xba, 0xf8, 0x03, // mov dx, 0x3f8
            segment, 0xac, // lodsb
            0xee, // out dx, al
            0xe2, 0xf0, // loop 1b
        ]);
    }
    // mov al, value; out 0xf4, al
    code.extend([0xb0, value, 0xe6, 0xf4]);
    code
}

/// Instructions that write `value` to the 8-bit port `port`.
#[must_use]
pub fn out8(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    // mov dx, port; mov al, value; out dx, al
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// Instructions that write `value` to the 16-bit port `port`.
#[must_use]
pub fn out16(port: u16, value: u16) -> Vec<u8> {
    let [port_low, port_high] = port.to_le_bytes();
    let [low, high] = value.to_le_bytes();
    // mov dx, port; mov ax, value; out dx, ax
    vec![
        0x66, 0xba, port_low, port_high, 0x66, 0xb8, low, high, 0x66, 0xef,
    ]
}

/// Instructions that send `text` to the first serial port, each byte once THRE in the line status register says that
/// the one before has gone.
#[must_use]
pub fn print(text: &[u8]) -> Vec<u8> {
    let mut code = Vec::new();
    for &byte in text {
        // mov dx, 0x3fd
        code.extend([0x66, 0xba, 0xfd, 0x03]);
        // 1: in al, dx; test al, 0x20; jz 1b
        code.extend([0xec, 0xa8, 0x20, 0x74, 0xfb]);
        code.extend(out8(0x3f8, byte));
    }
    code
}

/// Ends the run with `value` at the debug-exit port.
#[must_use]
pub fn debug_exit(value: u8) -> Vec<u8> {
    out8(0xf4, value)
}

/// Switches the machine off: SLP_TYP 7 (S5 of the ICH9 datasheet, 13.8.3.3) and SLP_EN (ACPI 6.5, 4.8.4.2.1) to
/// PM1a_CNT.
#[must_use]
pub fn power_off() -> Vec<u8> {
    out16(0x604, 7 << 10 | 1 << 13)
}

/// Resets through the chipset's reset control register at CF9h (ICH9 datasheet 13.7.5).
#[must_use]
pub fn reset_by_chipset() -> Vec<u8> {
    out8(0xcf9, 0x06)
}

/// Resets through the keyboard controller: command FEh pulses the reset line.
#[must_use]
pub fn reset_by_keyboard() -> Vec<u8> {
    out8(0x64, 0xfe)
}

/// An IDT without a single entry and a breakpoint: #BP, #GP or #DF for want of a gate, shutdown (SDM Vol 3 6.15,
/// "Interrupt 8").
#[must_use]
pub fn triple_fault() -> Vec<u8> {
    // push 0; push 0; lidt [rsp]; int3
    vec![0x6a, 0x00, 0x6a, 0x00, 0x0f, 0x01, 0x1c, 0x24, 0xcc]
}

/// Does `code` again and again.
///
/// # Panics
/// The code is longer than a jump reaches.
#[must_use]
pub fn again_and_again(mut code: Vec<u8>) -> Vec<u8> {
    const JUMP_BYTES: usize = 5;
    let back = i32::try_from(code.len() + JUMP_BYTES).expect("a jump reaches 2 GByte");
    // jmp to the start
    code.push(0xe9);
    code.extend((-back).to_le_bytes());
    code
}

/// Spins for ever.
#[must_use]
pub fn spin() -> Vec<u8> {
    // 1: jmp 1b
    vec![0xeb, 0xfe]
}

/// Halts for ever: interrupts are off.
#[must_use]
pub fn halt() -> Vec<u8> {
    // 1: cli; hlt; jmp 1b
    vec![0xfa, 0xf4, 0xeb, 0xfc]
}

/// Sends back what it receives on the first serial port, up to and with a `q`.
#[must_use]
pub fn echo_until_q() -> Vec<u8> {
    vec![
        0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
        0xec, // 1: in al, dx
        0xa8, 0x01, // test al, 1
        0x74, 0xfb, // jz 1b
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xec, // in al, dx
        0xee, // out dx, al
        0x3c, b'q', // cmp al, 'q'
        0x75, 0xed, // jne the start
    ]
}
