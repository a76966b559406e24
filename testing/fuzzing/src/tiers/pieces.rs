//! Code: pieces that do what programs do seldom, ways from one snippet to another, and real code made to fit.

use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind, Register};

use super::guest::{CODE, COUNT, DATA, DEVICE};
use crate::Input;

/// Instructions by which blocks end, pages and modes change, and ones that are often translated by code of their own.
const PIECES: [&[u8]; 68] = [
    &[0xcd, 0x81],                                     // int 81h: to CPL 0
    &[0xcd, 0x82],                                     // int 82h: to CPL 3
    &[0xcd, 0x83],                                     // int 83h: to 32-bit code
    &[0xcd, 0x20],                                     // int 20h
    &[0xcc],                                           // int3
    &[0x0f, 0x05],                                     // syscall
    &[0x9c, 0x80, 0x4c, 0x24, 0x01, 0x01, 0x9d],       // pushfq; or byte [rsp + 1], 1; popfq: TF
    &[0x9c, 0x9d],                                     // pushfq; popfq
    &[0x9c, 0x58],                                     // pushfq; pop rax
    &[0xfa],                                           // cli
    &[0xfb],                                           // sti
    &[0xfc],                                           // cld
    &[0xfd],                                           // std
    &[0xe6, 0x80],                                     // out 80h, al
    &[0xb0, 0x25, 0xe6, 0x80, 0x90, 0x90],             // mov al, 25h; out 80h, al; nop; nop
    &[0xe4, 0x40],                                     // in al, 40h
    &[0x8b, 0x04, 0x25, 0x00, 0x20, 0x02, 0x00],       // mov eax, [22000h]
    &[0x89, 0x0c, 0x25, 0xfc, 0x1f, 0x02, 0x00],       // mov [21ffch], ecx
    &[0x48, 0x89, 0x0c, 0x25, 0xfc, 0x1f, 0x02, 0x00], // mov [21ffch], rcx: into the device
    &[0x0f, 0x01, 0x3f],                               // invlpg [rdi]
    &[0x0f, 0x01, 0x3e],                               // invlpg [rsi]
    &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8],             // mov rax, cr3; mov cr3, rax
    &[
        0x0f, 0x20, 0xd8, 0x48, 0x35, 0x01, 0xb0, 0, 0, 0x0f, 0x22, 0xd8,
    ], // the same with xor rax, b001h between
    &[0x0f, 0x20, 0xe0, 0x34, 0x80, 0x0f, 0x22, 0xe0], // mov rax, cr4; xor al, 80h; mov cr4, rax: PGE
    &[
        0x0f, 0x20, 0xc0, 0x48, 0x0f, 0xba, 0xf8, 0x10, 0x0f, 0x22, 0xc0,
    ], // mov rax, cr0; btc rax, 16; mov cr0, rax: WP
    &[0x0f, 0x20, 0xc0, 0x0c, 0x08, 0x0f, 0x22, 0xc0], // mov rax, cr0; or al, 8; mov cr0, rax: TS
    &[0x0f, 0x06],                                     // clts
    &[0x0f, 0x01, 0xcb],                               // stac
    &[0x0f, 0x01, 0xca],                               // clac
    &[0x0f, 0x01, 0xf8],                               // swapgs
    &[0xf3, 0x48, 0x0f, 0xae, 0xd7],                   // wrfsbase rdi
    &[0xf3, 0x48, 0x0f, 0xae, 0xc8],                   // rdgsbase rax
    &[0x64, 0x48, 0x8b, 0x04, 0x25, 0x10, 0, 0, 0],    // mov rax, fs:[10h]
    &[0x65, 0x48, 0x89, 0x04, 0x25, 0x18, 0, 0, 0],    // mov gs:[18h], rax
    &[0x0f, 0x31],                                     // rdtsc
    &[0xf3, 0x90],                                     // pause
    &[0xf3, 0xa4],                                     // rep movsb
    &[0xf3, 0x48, 0xa5],                               // rep movsq
    &[0xf3, 0xaa],                                     // rep stosb
    &[0xf3, 0xab],                                     // rep stosd
    &[0xf2, 0xae],                                     // repne scasb
    &[0xf3, 0xa6],                                     // repe cmpsb
    &[0xb9, 0x11, 0, 0, 0, 0xf3, 0xa4],                // mov ecx, 11h; rep movsb
    &[0xb9, 0x30, 0, 0, 0, 0xf3, 0x48, 0xab],          // mov ecx, 30h; rep stosq
    &[0xb9, 0x09, 0, 0, 0, 0xf2, 0xae],                // mov ecx, 9; repne scasb
    &[0xa4],                                           // movsb
    &[0x48, 0xab],                                     // stosq
    &[0x48, 0xad],                                     // lodsq
    &[0xf0, 0x48, 0x0f, 0xb1, 0x0f],                   // lock cmpxchg [rdi], rcx
    &[0xf0, 0x0f, 0xc1, 0x07],                         // lock xadd [rdi], eax
    &[0x48, 0x87, 0x06],                               // xchg [rsi], rax
    &[0xf0, 0x0f, 0xc7, 0x0f],                         // lock cmpxchg8b [rdi]
    &[0x0f, 0xa3, 0x07],                               // bt [rdi], eax
    &[0xf0, 0x48, 0x0f, 0xab, 0x0e],                   // lock bts [rsi], rcx
    &[0xc8, 0x10, 0x00, 0x00],                         // enter 10h, 0
    &[0xc9],                                           // leave
    &[0x8e, 0xd8],                                     // mov ds, eax
    &[0x8c, 0xd8],                                     // mov eax, ds
    &[0x0f, 0x6f, 0x07, 0x0f, 0xfe, 0xc8, 0x0f, 0x77], // movq mm0, [rdi]; paddd mm1, mm0; emms
    &[0xdd, 0x07, 0xdc, 0x06, 0xdd, 0x1f], // fld qword [rdi]; fadd qword [rsi]; fstp qword [rdi]
    &[0xd9, 0x3f, 0xd9, 0x2f],             // fnstcw [rdi]; fldcw [rdi]
    &[0x0f, 0xae, 0x1f, 0x0f, 0xae, 0x17], // stmxcsr [rdi]; ldmxcsr [rdi]
    &[0xc5, 0xfe, 0x6f, 0x06, 0xc5, 0xfe, 0x7f, 0x07], // vmovdqu ymm0, [rsi]; vmovdqu [rdi], ymm0
    &[0x0f, 0x29, 0x07],                   // movaps [rdi], xmm0
    &[0xf7, 0xf1],                         // div ecx
    &[0x48, 0xf7, 0xf9],                   // idiv rcx
    &[0x0f, 0xa2],                         // cpuid
    &[0x0f, 0x0b],                         // ud2
];

/// Instructions that store near behind themselves; four bytes of distance follow, then what is here second.
const STORES: [(&[u8], &[u8]); 7] = [
    (&[0xc6, 0x05], &[0x90]),             // mov byte [rip + d], 90h
    (&[0xc6, 0x05], &[0x40]),             // mov byte [rip + d], 40h
    (&[0x88, 0x05], &[]),                 // mov [rip + d], al
    (&[0x89, 0x0d], &[]),                 // mov [rip + d], ecx
    (&[0x0f, 0x11, 0x05], &[]),           // movups [rip + d], xmm0
    (&[0x80, 0x35], &[0x01]),             // xor byte [rip + d], 1
    (&[0x48, 0x8d, 0x3d], &[0xf3, 0xa4]), // lea rdi, [rip + d]; rep movsb
];

/// Where code goes on: by a distance of four bytes.
const WAYS: [&[u8]; 5] = [
    &[0xe9],       // jmp
    &[0xe8],       // call
    &[0x0f, 0x84], // je
    &[0x0f, 0x83], // jae
    &[0x0f, 0x8d], // jge
];

/// What is written where: code as it becomes.
struct Writer<'a> {
    at: u64,
    code: Vec<u8>,
    targets: &'a [u64],
}

impl Writer<'_> {
    fn here(&self) -> u64 {
        self.at + self.code.len() as u64
    }

    /// The distance to an address from behind itself and `behind` bytes.
    fn distance(&mut self, to: u64, behind: u64) {
        let from = self.here() + 4 + behind;
        self.code
            .extend((to.wrapping_sub(from) as i32).to_le_bytes());
    }

    fn way(&mut self, input: &mut Input<'_>) {
        let to = input.pick(self.targets);
        match input.below(8) {
            // LEA RAX; JMP RAX.
            0 => {
                self.code.extend([0x48, 0x8d, 0x05]);
                self.distance(to, 0);
                self.code.extend([0xff, 0xe0]);
            }
            // LEA RAX; PUSH RAX; RET.
            1 => {
                self.code.extend([0x48, 0x8d, 0x05]);
                self.distance(to, 0);
                self.code.extend([0x50, 0xc3]);
            }
            // CALL of what stands behind.
            2 => {
                self.code.extend([0xff, 0x15, 0, 0, 0, 0]);
                self.code.extend(to.to_le_bytes());
            }
            // A loop by a counter.
            3 => {
                self.code
                    .extend([0x83, 0x2c, 0x25, 0x00, 0xc0, 0x01, 0x00, 0x01, 0x0f, 0x8d]);
                self.distance(self.at, 0);
            }
            // DEC EBX; JNE.
            4 => {
                self.code.extend([0xff, 0xcb, 0x0f, 0x85]);
                self.distance(self.at, 0);
            }
            // On into what comes next.
            5 => {}
            _ => {
                let way = input.pick(&WAYS);
                self.code.extend(way);
                self.distance(to, 0);
            }
        }
    }

    fn piece(&mut self, input: &mut Input<'_>) {
        if input.once_in(4) {
            let (first, last) = input.pick(&STORES);
            self.code.extend(first);
            let to = self.here() + 4 + u64::from(input.any::<u8>() & 0x3f);
            let to = match input.below(4) {
                0 => input.pick(self.targets),
                1 => input.pick(self.targets) + 3,
                _ => to,
            };
            let behind = if last.len() == 1 { 1 } else { 0 };
            self.distance(to, behind);
            self.code.extend(last);
        } else {
            self.code.extend(input.pick(&PIECES));
        }
    }

    /// One instruction of real code, with its distances and displacements made to lead somewhere.
    fn real(&mut self, bytes: &[u8], instruction: &Instruction, input: &mut Input<'_>) {
        let start = self.code.len();
        self.code.extend(bytes);
        let offsets = instruction_offsets(bytes);
        let near = matches!(instruction.op0_kind(), OpKind::NearBranch64);
        if near && offsets.has_immediate() && offsets.immediate_size() == 4 {
            self.code.truncate(start + offsets.immediate_offset());
            let to = input.pick(self.targets);
            self.distance(to, 0);
        } else if offsets.has_displacement() && offsets.displacement_size() == 4 {
            let end = self.here();
            let page = match input.below(16) {
                0 => CODE + input.below(COUNT as usize) as u64,
                1 => DEVICE,
                _ => DATA + input.below(COUNT as usize) as u64,
            };
            let to = page << 12 | u64::from(input.any::<u16>() & 0xfff);
            let new = match instruction.memory_base() {
                Register::RIP => to.wrapping_sub(end) as i32,
                Register::None if instruction.segment_prefix() == Register::None => to as i32,
                _ => i32::from(input.any::<i8>()),
            };
            let at = start + offsets.displacement_offset();
            self.code[at..at + 4].copy_from_slice(&new.to_le_bytes());
        }
        if input.once_in(16) {
            // A bit of it is another.
            let at = start + input.below(self.code.len() - start);
            self.code[at] ^= 1 << input.below(8);
        }
    }
}

fn instruction_offsets(bytes: &[u8]) -> iced_x86::ConstantOffsets {
    let mut decoder = Decoder::new(64, bytes, DecoderOptions::NONE);
    let instruction = decoder.decode();
    decoder.get_constant_offsets(&instruction)
}

/// A snippet that begins at `at`: `real` made to fit, with pieces between its instructions, and a way on.
pub fn snippet(at: u64, real: &[u8], targets: &[u64], input: &mut Input<'_>) -> Vec<u8> {
    let mut w = Writer {
        at,
        code: Vec::with_capacity(2 * real.len()),
        targets,
    };
    let mut decoder = Decoder::new(64, real, DecoderOptions::NONE);
    // How often a piece comes between.
    let rare = input.pick(&[2, 4, 8, 24]);
    while decoder.can_decode() {
        let start = decoder.position();
        let instruction = decoder.decode();
        let end = decoder.position();
        if input.once_in(rare) {
            w.piece(input);
        }
        w.real(&real[start..end], &instruction, input);
    }
    w.way(input);
    w.code
}
