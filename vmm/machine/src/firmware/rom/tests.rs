use super::asm::{Assembler, at};
use super::*;
use iced_x86::Register::{AL, AX, CX, DX, EAX, EDX, None as Nowhere};
use iced_x86::{Code, Decoder, DecoderOptions, Mnemonic};

fn word(rom: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([rom[at], rom[at + 1]]))
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, &b| sum.wrapping_add(b))
}

fn decoder(rom: &[u8], offset: usize) -> Decoder<'_> {
    Decoder::with_ip(16, &rom[offset..], offset as u64, DecoderOptions::NONE)
}

/// Plug and Play BIOS Specification 1.0A, 3.1 and 3.2.
#[test]
fn the_headers_are_what_a_bios_looks_for() {
    let rom = build();
    assert_eq!(rom[..2], [0x55, 0xaa]);
    assert_eq!(usize::from(rom[2]) * 512, rom.len());
    assert_eq!(sum(&rom), 0, "of the whole ROM");
    let pnp = word(&rom, 0x1a);
    assert!(pnp.is_multiple_of(16), "on a paragraph");
    assert_eq!(word(&rom, 0x18), 0, "no PCI data structure");
    let header = &rom[pnp..pnp + 32];
    assert_eq!(&header[..4], b"$PnP");
    assert_eq!(header[4], 1, "revision");
    assert_eq!(header[5], 2, "length in paragraphs");
    assert_eq!(word(header, 6), 0, "no next header");
    assert_eq!(sum(header), 0, "of the header");
    let name = |at| {
        let text = rom[word(header, at)..].split(|&b| b == 0).next();
        std::str::from_utf8(text.expect("a text")).expect("ASCII")
    };
    assert_eq!((name(0x0e), name(0x10)), ("Nestling", "Linux kernel"));
    assert_ne!(header[0x15] & 4, 0, "an initial program load device");
    assert_eq!(word(header, 0x16), 0, "no boot connection vector");
    assert_eq!(word(header, 0x18), 0, "no disconnect vector");
    assert!((LOADER..rom.len()).contains(&word(header, 0x1a)));
    assert_eq!(word(header, 0x1e), 0, "no static resources");
}

/// The same, 3.3: what the initialization answers in AX.
#[test]
fn the_initialization_only_says_that_there_is_something_to_boot_from() {
    let rom = build();
    let code: Vec<_> = decoder(&rom, 3).into_iter().take(2).collect();
    assert_eq!(code[0].code(), Code::Mov_r16_imm16);
    assert_eq!(code[0].op0_register(), AX);
    assert_eq!(code[0].immediate16() >> 4 & 3, 0b10);
    assert_eq!(code[1].code(), Code::Retfw);
    assert!(code[1].next_ip() <= 0x18);
}

/// Boot.rst, "Running the Kernel": interrupts off, and a far jump to 20h paragraphs behind the real-mode kernel.
#[test]
fn the_loader_ends_in_a_jump_to_the_16_bit_entry() {
    let rom = build();
    let mut code = decoder(&rom, LOADER).into_iter();
    let jump = code
        .find(|i| i.mnemonic() == Mnemonic::Jmp && i.is_jmp_far())
        .expect("there is one");
    assert_eq!(jump.far_branch_selector(), 0x1020);
    assert_eq!(jump.far_branch16(), 0);
    let before = |ip| {
        decoder(&rom, LOADER)
            .into_iter()
            .any(|i| i.ip() < ip && i.code() == Code::Cli)
    };
    assert!(before(jump.ip()));
}

/// Encodings of the SDM, volume 2.
#[test]
fn code_is_encoded_for_16_bits() {
    let mut a = Assembler::default();
    let (out, text) = (a.label(), a.label());
    a.reg_imm(Code::Mov_r16_imm16, CX, 4);
    let again = a.here();
    a.reg_reg(Code::In_AL_DX, AL, DX);
    a.reg_imm(Code::Ror_rm32_imm8, EAX, 8);
    a.branch(Code::Loop_rel8_16_CX, again);
    a.branch(Code::Je_rel8_16, out);
    a.branch(Code::Call_rel16, text);
    a.text("ab");
    a.place(out);
    a.mem_imm(Code::Mov_rm8_imm8, at(Nowhere, 0x210), 0xff);
    a.reg_mem(Code::Add_r32_rm32, EDX, at(Nowhere, 0x260));
    a.far_jump(0x1020, 0);
    a.place(text);
    a.op0(Code::Retnw);
    let expected = [
        &[0xb9, 0x04, 0x00][..],         // mov cx, 4
        &[0xec],                         // 1: in al, dx
        &[0x66, 0xc1, 0xc8, 0x08],       // ror eax, 8
        &[0xe2, 0xf9],                   // loop 1b
        &[0x74, 0x06],                   // je 2f
        &[0xe8, 0x12, 0x00],             // call 3f
        b"ab\0",                         //
        &[0xc6, 0x06, 0x10, 0x02, 0xff], // 2: mov byte [0x210], 0xff
        &[0x66, 0x03, 0x16, 0x60, 0x02], // add edx, [0x260]
        &[0xea, 0x00, 0x00, 0x20, 0x10], // jmp 0x1020:0
        &[0xc3],                         // 3: ret
    ];
    assert_eq!(a.assemble(0x100), expected.concat());
}
