//! The code of the ROM: from the BIOS' far call of the boot entry vector to the kernel's 16-bit entry point.

use chipset::fw_cfg::regs;
use iced_x86::Register::{
    AH, AL, AX, BX, CX, DI, DS, DX, EAX, EBP, EBX, ECX, EDI, EDX, ES, ESI, FS, GS, None as Nowhere,
    SI, SP, SS,
};
use iced_x86::{Code, Instruction, MemoryOperand, Register, RepPrefixKind};

use super::asm::{Assembler, Label, at};
use crate::boot::real_mode::{
    BASE, CAN_USE_HEAP, CMDLINE, HEAP_END_BEFORE_STACK_END, KERNEL, STACK_END, UNDEFINED_LOADER,
    VERSION_INIT_SIZE, field,
};

/// The real-mode segment: everything below is at offsets in it.
const SEGMENT: u32 = (BASE.0 >> 4) as u32;
/// In the part that becomes the kernel's heap: an entry of the memory map, and where the best place found so far is.
const MAP_ENTRY: u16 = 0x9000;
const BEST: u16 = 0x9020;
/// Offsets in an entry of the map: base, length, kind (ACPI 6.5, table 15.374).
const BASE_LOW: u16 = 0;
const BASE_HIGH: u16 = 4;
const LENGTH_LOW: u16 = 8;
const LENGTH_HIGH: u16 = 12;
const KIND: u16 = 16;
const ENTRY_BYTES: u32 = 20;
const USABLE: u32 = 1;
/// INT 15h: the memory map; "SMAP".
const MEMORY_MAP: u32 = 0xe820;
const SMAP: u32 = 0x534d_4150;
/// INT 10h, AH: a character as on a teletype. BX: on page 0, grey.
const TELETYPE: u32 = 0x0e;
const GREY: u32 = 7;
const PAGE_MASK: u32 = !0xfff;
/// The interrupts of a BIOS: display, system services, "this device did not boot".
const VIDEO: i32 = 0x10;
const SYSTEM: i32 = 0x15;
const NEXT_DEVICE: i32 = 0x18;

/// A field of the setup header.
fn in_header(field: usize) -> MemoryOperand {
    at(Nowhere, field as u16)
}

/// Routines and ends that the code jumps to.
struct Labels {
    item: Label,
    load: Label,
    print: Label,
    unreadable: Label,
    no_room: Label,
}

/// The code, which starts with its entry, for this offset in the ROM. It uses no address of its own.
pub(super) fn assemble(offset: u16) -> Vec<u8> {
    let mut a = Assembler::default();
    let labels = Labels {
        item: a.label(),
        load: a.label(),
        print: a.label(),
        unreadable: a.label(),
        no_room: a.label(),
    };
    segments(&mut a);
    load_kernel(&mut a, &labels);
    load_initrd(&mut a, &labels);
    start(&mut a);
    fail(&mut a, &labels);
    item(&mut a, labels.item);
    load(&mut a, &labels);
    print(&mut a, labels.print);
    a.assemble(offset)
}

/// DS, ES and SS are the real-mode segment, with the stack where the kernel's will be.
fn segments(a: &mut Assembler) {
    a.op0(Code::Cld);
    a.reg_imm(Code::Mov_r16_imm16, AX, SEGMENT);
    a.reg_reg(Code::Mov_Sreg_rm16, DS, AX);
    a.reg_reg(Code::Mov_Sreg_rm16, ES, AX);
    // No interrupt comes between these two (SDM Vol 2, MOV).
    a.reg_reg(Code::Mov_Sreg_rm16, SS, AX);
    a.reg_imm(Code::Mov_r16_imm16, SP, u32::from(STACK_END));
}

/// Real-mode kernel, command line and protected-mode kernel; then what of the setup header is the same for all.
fn load_kernel(a: &mut Assembler, labels: &Labels) {
    for (size, data, to) in [
        (regs::SETUP_SIZE, regs::SETUP_DATA, BASE),
        (regs::CMDLINE_SIZE, regs::CMDLINE_DATA, CMDLINE),
        (regs::KERNEL_SIZE, regs::KERNEL_DATA, KERNEL),
    ] {
        a.reg_imm(Code::Mov_r16_imm16, AX, u32::from(size));
        a.branch(Code::Call_rel16, labels.item);
        a.reg_reg(Code::Mov_r32_rm32, ECX, EAX);
        a.reg_imm(Code::Mov_r32_imm32, EBX, to.0 as u32);
        a.reg_imm(Code::Mov_r16_imm16, AX, u32::from(data));
        a.branch(Code::Call_rel16, labels.load);
    }
    a.mem_imm(
        Code::Mov_rm8_imm8,
        in_header(field::TYPE_OF_LOADER),
        u32::from(UNDEFINED_LOADER),
    );
    a.mem_imm(
        Code::Or_rm8_imm8,
        in_header(field::LOADFLAGS),
        u32::from(CAN_USE_HEAP),
    );
    a.mem_imm(
        Code::Mov_rm16_imm16,
        in_header(field::HEAP_END_PTR),
        u32::from(STACK_END - HEAP_END_BEFORE_STACK_END),
    );
    a.mem_imm(
        Code::Mov_rm32_imm32,
        in_header(field::CMD_LINE_PTR),
        CMDLINE.0 as u32,
    );
}

/// The initial RAM disk, in the highest usable memory that it may have.
///
/// ESI: lowest address for it, behind all that the kernel uses. EBP: its size. EDI: first address above what it may have.
fn load_initrd(a: &mut Assembler, labels: &Labels) {
    let done = a.label();
    a.reg_imm(Code::Mov_r16_imm16, AX, u32::from(regs::INITRD_SIZE));
    a.branch(Code::Call_rel16, labels.item);
    a.reg_reg(Code::Test_rm32_r32, EAX, EAX);
    a.branch(Code::Je_rel8_16, done);
    a.reg_reg(Code::Mov_r32_rm32, EBP, EAX);
    a.reg_imm(Code::Mov_r16_imm16, AX, u32::from(regs::INITRD_ADDRESS));
    a.branch(Code::Call_rel16, labels.item);
    a.reg_reg(Code::Mov_r32_rm32, EDI, EAX);
    a.reg_reg(Code::Add_r32_rm32, EDI, EBP);
    end_of_kernel(a, labels);
    search(a);
    a.reg_mem(Code::Mov_r32_rm32, EBX, at(Nowhere, BEST));
    a.reg_reg(Code::Test_rm32_r32, EBX, EBX);
    a.branch(Code::Je_rel16, labels.no_room);
    a.mem_reg(Code::Mov_rm32_r32, in_header(field::RAMDISK_IMAGE), EBX);
    a.mem_reg(Code::Mov_rm32_r32, in_header(field::RAMDISK_SIZE), EBP);
    a.reg_reg(Code::Mov_r32_rm32, ECX, EBP);
    a.reg_imm(Code::Mov_r16_imm16, AX, u32::from(regs::INITRD_DATA));
    a.branch(Code::Call_rel16, labels.load);
    a.place(done);
}

/// ESI: the end of the kernel's file in memory, or of what it takes before it knows the memory, if that is higher.
fn end_of_kernel(a: &mut Assembler, labels: &Labels) {
    let known = a.label();
    a.reg_imm(Code::Mov_r16_imm16, AX, u32::from(regs::KERNEL_SIZE));
    a.branch(Code::Call_rel16, labels.item);
    a.reg_reg(Code::Mov_r32_rm32, ESI, EAX);
    a.reg_imm(Code::Add_rm32_imm32, ESI, KERNEL.0 as u32);
    a.mem_imm(
        Code::Cmp_rm16_imm16,
        in_header(field::VERSION),
        u32::from(VERSION_INIT_SIZE),
    );
    a.branch(Code::Jb_rel8_16, known);
    a.reg_mem(Code::Mov_r32_rm32, EAX, in_header(field::PREF_ADDRESS));
    a.reg_mem(Code::Add_r32_rm32, EAX, in_header(field::INIT_SIZE));
    a.reg_reg(Code::Cmp_r32_rm32, EAX, ESI);
    a.branch(Code::Jbe_rel8_16, known);
    a.reg_reg(Code::Mov_r32_rm32, ESI, EAX);
    a.place(known);
}

/// Goes through the BIOS' map of memory and keeps at `BEST` the highest page where EBP bytes fit between ESI and EDI,
/// or zero.
fn search(a: &mut Assembler) {
    let (next_entry, skip, cut, end, done) =
        (a.label(), a.label(), a.label(), a.label(), a.label());
    a.mem_imm(Code::Mov_rm32_imm32, at(Nowhere, BEST), 0);
    a.reg_reg(Code::Xor_r32_rm32, EBX, EBX);
    a.place(next_entry);
    a.reg_imm(Code::Mov_r32_imm32, EAX, MEMORY_MAP);
    a.reg_imm(Code::Mov_r32_imm32, EDX, SMAP);
    a.reg_imm(Code::Mov_r32_imm32, ECX, ENTRY_BYTES);
    // DI is for the BIOS here.
    a.reg(Code::Push_r32, EDI);
    a.reg_imm(Code::Mov_r16_imm16, DI, u32::from(MAP_ENTRY));
    a.imm(Code::Int_imm8, SYSTEM);
    a.reg(Code::Pop_r32, EDI);
    a.branch(Code::Jb_rel8_16, done);
    a.reg_imm(Code::Cmp_rm32_imm32, EAX, SMAP);
    a.branch(Code::Jne_rel8_16, done);
    let entry = |field| at(Nowhere, MAP_ENTRY + field);
    // Usable, and its base below 4 GByte.
    a.mem_imm(Code::Cmp_rm32_imm8, entry(KIND), USABLE);
    a.branch(Code::Jne_rel8_16, skip);
    a.mem_imm(Code::Cmp_rm32_imm8, entry(BASE_HIGH), 0);
    a.branch(Code::Jne_rel8_16, skip);
    // EAX: its end, or EDI if that is lower.
    a.reg_mem(Code::Mov_r32_rm32, EAX, entry(BASE_LOW));
    a.reg_mem(Code::Mov_r32_rm32, EDX, entry(LENGTH_HIGH));
    a.reg_mem(Code::Add_r32_rm32, EAX, entry(LENGTH_LOW));
    a.reg_imm(Code::Adc_rm32_imm8, EDX, 0);
    a.branch(Code::Jne_rel8_16, cut);
    a.reg_reg(Code::Cmp_r32_rm32, EAX, EDI);
    a.branch(Code::Jbe_rel8_16, end);
    a.place(cut);
    a.reg_reg(Code::Mov_r32_rm32, EAX, EDI);
    a.place(end);
    // EAX: the highest page from which it fits.
    a.reg_reg(Code::Sub_r32_rm32, EAX, EBP);
    a.branch(Code::Jb_rel8_16, skip);
    a.reg_imm(Code::And_rm32_imm32, EAX, PAGE_MASK);
    for lowest in [BASE_LOW + MAP_ENTRY, BEST] {
        a.reg_mem(Code::Cmp_r32_rm32, EAX, at(Nowhere, lowest));
        a.branch(Code::Jb_rel8_16, skip);
    }
    a.reg_reg(Code::Cmp_r32_rm32, EAX, ESI);
    a.branch(Code::Jb_rel8_16, skip);
    a.mem_reg(Code::Mov_rm32_r32, at(Nowhere, BEST), EAX);
    a.place(skip);
    // The BIOS gives 0 with the last entry.
    a.reg_reg(Code::Test_rm32_r32, EBX, EBX);
    a.branch(Code::Jne_rel8_16, next_entry);
    a.place(done);
}

/// Jumps to the kernel: all segments are its own but CS, which is 20h more, and interrupts are off.
fn start(a: &mut Assembler) {
    const ENTRY: u32 = 0x20;
    a.op0(Code::Cli);
    a.reg_imm(Code::Mov_r16_imm16, AX, SEGMENT);
    for segment in [DS, ES, FS, GS, SS] {
        a.reg_reg(Code::Mov_Sreg_rm16, segment, AX);
    }
    a.reg_imm(Code::Mov_r16_imm16, SP, u32::from(STACK_END));
    a.far_jump((SEGMENT + ENTRY) as u16, 0);
}

/// The ends of a boot that does not succeed: the user is told, and the BIOS goes on with the next device.
fn fail(a: &mut Assembler, labels: &Labels) {
    for (label, text) in [
        (labels.unreadable, "cannot read the kernel"),
        (labels.no_room, "no room for the initial RAM disk"),
    ] {
        a.place(label);
        a.branch(Code::Call_rel16, labels.print);
        a.text(&format!("nestling: {text}\r\n"));
        a.imm(Code::Int_imm8, NEXT_DEVICE);
    }
}

/// EAX becomes the doubleword that is the item of the key AX. Uses CX and DX.
fn item(a: &mut Assembler, label: Label) {
    a.place(label);
    a.reg_imm(Code::Mov_r16_imm16, DX, u32::from(regs::PORT));
    a.reg_reg(Code::Out_DX_AX, DX, AX);
    // The data port is the next one. Its bytes, the lowest first, come in from the top.
    a.reg(Code::Inc_r16, DX);
    a.reg_imm(Code::Mov_r16_imm16, CX, 4);
    let next = a.here();
    a.reg_reg(Code::In_AL_DX, AL, DX);
    a.reg_imm(Code::Ror_rm32_imm8, EAX, 8);
    a.branch(Code::Loop_rel8_16_CX, next);
    a.op0(Code::Retnw);
}

/// The first ECX bytes of the item AX go to the physical address EBX. Uses EAX, EBX, ECX and DX; does not come back if
/// there is an error.
fn load(a: &mut Assembler, labels: &Labels) {
    const DMA_HIGH: u32 = regs::PORT as u32 + regs::DMA_ADDRESS as u32;
    const DMA_LOW: u32 = DMA_HIGH + 4;
    a.place(labels.load);
    // The structure that describes the operation, from its end on: address, length, control, all big-endian.
    a.reg(Code::Bswap_r32, EBX);
    a.reg(Code::Push_r32, EBX);
    a.imm(Code::Pushd_imm8, 0);
    a.reg(Code::Bswap_r32, ECX);
    a.reg(Code::Push_r32, ECX);
    a.reg_imm(Code::Shl_rm32_imm8, EAX, 16);
    a.reg_imm(Code::Mov_r16_imm16, AX, regs::DMA_SELECT | regs::DMA_READ);
    a.reg(Code::Bswap_r32, EAX);
    a.reg(Code::Push_r32, EAX);
    // Where it lies; the write of the low half starts the operation.
    a.reg_reg(Code::Xor_r32_rm32, EAX, EAX);
    a.reg_imm(Code::Mov_r16_imm16, DX, DMA_HIGH);
    a.reg_reg(Code::Out_DX_EAX, DX, EAX);
    a.reg_reg(Code::Mov_r16_rm16, BX, SP);
    a.reg_reg(Code::Movzx_r32_rm16, EAX, BX);
    a.reg_imm(Code::Add_rm32_imm32, EAX, BASE.0 as u32);
    a.reg(Code::Bswap_r32, EAX);
    a.reg_imm(Code::Mov_r16_imm16, DX, DMA_LOW);
    a.reg_reg(Code::Out_DX_EAX, DX, EAX);
    // It is over when nothing is left in the control word but perhaps the error.
    let busy = a.here();
    a.reg_mem(Code::Mov_r32_rm32, EAX, at(BX, 0));
    a.reg(Code::Bswap_r32, EAX);
    a.reg_imm(Code::Cmp_rm32_imm8, EAX, regs::DMA_ERROR);
    a.branch(Code::Ja_rel8_16, busy);
    a.branch(Code::Je_rel16, labels.unreadable);
    a.reg_imm(Code::Add_rm16_imm8, SP, regs::DMA_BYTES as u32);
    a.op0(Code::Retnw);
}

/// Prints the text behind the call.
fn print(a: &mut Assembler, label: Label) {
    const REAL_MODE: u32 = 16;
    let done = a.label();
    a.place(label);
    a.reg(Code::Pop_r16, SI);
    let next = a.here();
    let lodsb = Instruction::with_lodsb(REAL_MODE, Register::CS, RepPrefixKind::None);
    a.put(lodsb.expect("addresses of 16 bits are known"));
    a.reg_reg(Code::Test_rm8_r8, AL, AL);
    a.branch(Code::Je_rel8_16, done);
    a.reg_imm(Code::Mov_r8_imm8, AH, TELETYPE);
    a.reg_imm(Code::Mov_r16_imm16, BX, GREY);
    a.imm(Code::Int_imm8, VIDEO);
    a.branch(Code::Jmp_rel8_16, next);
    a.place(done);
    a.reg(Code::Jmp_rm16, SI);
}
