//! The same code run in blocks and one instruction at a time, with descriptor tables, gates and task states near to
//! sound ones.
//!
//! What must hold: wherever both have executed as much, registers, segments, control registers, MSRs, vector state, the
//! board's accesses and at the end every byte of memory are the same, and so is how the run ended
//! ([`compare`](crate::cpu::ways::compare)). A block is an optimization: nothing a guest does may tell it from single
//! steps. Translated code is held against single steps in the same way, but for flags that the manual leaves undefined: there
//! it gives what the host's processor gives.

use vcpu::{MpState, RunExit};

use crate::cpu::modes::{CODE, DATA, GDT, IDT32, IDT64, MODES, Mode, TSS, image, start};
use crate::cpu::ways::{Side, Way, compare};
use crate::cpu::{Machine, invariants};
use crate::{Input, Target};

/// The most instructions of a case, but for the block that is under way then.
const MOST: u64 = 160;
/// Where code begins: mostly at a page's start, else so that a page ends in it.
const PAGE_ENDS: u64 = 0xf80;
/// Instructions between two polls of the side that runs in blocks.
const SLICES: [u64; 4] = [1, 5, 48, 1000];
/// Bytes of code.
const CODE_BYTES: usize = 112;
/// CR4.VMXE: what VMXON makes is no part of the state that is set.
const VMXE: u64 = 1 << 13;
/// Pieces of code, by what they do to segments, tasks, flags, and to the code itself. `rip`-relative ones work in
/// 64-bit mode only; elsewhere they are other instructions, which is as good.
const PIECES: [&[u8]; 40] = [
    &[0x8e, 0xd8],                                     // mov ds, eax
    &[0x8e, 0xc3],                                     // mov es, ebx
    &[0x8e, 0xd1, 0x89, 0xd8],                         // mov ss, ecx; mov eax, ebx
    &[0x8e, 0xe2],                                     // mov fs, edx
    &[0x17, 0x90],                                     // pop ss
    &[0x0f, 0xb2, 0x23],                               // lss esp, [ebx]
    &[0xc5, 0x06],                                     // lds eax, [esi]
    &[0xff, 0x2b],                                     // jmp far [ebx]
    &[0xff, 0x1e],                                     // call far [esi]
    &[0xcf],                                           // iret
    &[0x48, 0xcf],                                     // iretq
    &[0xcb],                                           // retf
    &[0xca, 0x08, 0x00],                               // retf 8
    &[0xea, 0x00, 0x00, 0x01, 0x00, 0x18, 0x00],       // jmp 18h:10000h
    &[0x9a, 0x00, 0x06, 0x00, 0x00, 0x70, 0x00],       // call 70h:600h
    &[0xea, 0x00, 0x00, 0x00, 0x00, 0x78, 0x00],       // jmp 78h:0
    &[0xcd, 0x03],                                     // int 3
    &[0xcd, 0x05],                                     // int 5
    &[0xcc],                                           // int3
    &[0xf1],                                           // int1
    &[0x9c, 0x9d],                                     // pushf; popf
    &[0xfa],                                           // cli
    &[0xfb, 0x90],                                     // sti; nop
    &[0x0f, 0x00, 0xd8],                               // ltr ax
    &[0x0f, 0x00, 0xd3],                               // lldt bx
    &[0x0f, 0x02, 0xc3],                               // lar eax, ebx
    &[0x0f, 0x03, 0xc3],                               // lsl eax, ebx
    &[0x0f, 0x00, 0xe3],                               // verr bx
    &[0x0f, 0x01, 0x13],                               // lgdt [ebx]
    &[0xf3, 0xa4],                                     // rep movsb
    &[0xf3, 0xab],                                     // rep stosd
    &[0xf2, 0xae],                                     // repne scasb
    &[0x88, 0x05, 0x02, 0x00, 0x00, 0x00, 0x90, 0x90], // mov [rip + 2], al
    &[0x0f, 0x20, 0xc0, 0x0f, 0x22, 0xc0],             // mov eax, cr0; mov cr0, eax
    &[0x0f, 0x20, 0xe0, 0x0f, 0x22, 0xe0],             // mov eax, cr4; mov cr4, eax
    &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8],             // mov eax, cr3; mov cr3, eax
    &[0x0f, 0x01, 0x38],                               // invlpg [eax]
    &[0xeb, 0x00],                                     // jmp $+2
    &[0x75, 0xfe],                                     // jne $
    &[0xe2, 0xfc],                                     // loop $-2
];

/// 64-bit code that leaves no flag undefined, and that a translator has code of its own for.
const PLAIN: [&[u8]; 48] = [
    &[0x01, 0xd8],                                  // add eax, ebx
    &[0x48, 0x01, 0xd8],                            // add rax, rbx
    &[0x29, 0xc8],                                  // sub eax, ecx
    &[0x48, 0x39, 0xd8],                            // cmp rax, rbx
    &[0x11, 0xc8],                                  // adc eax, ecx
    &[0x48, 0x19, 0xd0],                            // sbb rax, rdx
    &[0x66, 0x01, 0xf0],                            // add ax, si
    &[0x00, 0xe0],                                  // add al, ah
    &[0x28, 0xf9],                                  // sub cl, bh
    &[0x83, 0xc3, 0x7f],                            // add ebx, 7fh
    &[0x48, 0x83, 0xe9, 0x01],                      // sub rcx, 1
    &[0xff, 0xc0],                                  // inc eax
    &[0x48, 0xff, 0xc9],                            // dec rcx
    &[0x75, 0xee],                                  // jne back
    &[0x72, 0xf0],                                  // jb back
    &[0x7d, 0xf2],                                  // jge back
    &[0x7a, 0x03],                                  // jp forth
    &[0xf7, 0xd8],                                  // neg eax
    &[0x48, 0xf7, 0xd1],                            // not rcx
    &[0x50],                                        // push rax
    &[0x5b],                                        // pop rbx
    &[0x41, 0x57],                                  // push r15
    &[0x41, 0x58],                                  // pop r8
    &[0xe8, 0x00, 0x00, 0x00, 0x00],                // call the next
    &[0xc3],                                        // ret
    &[0xff, 0xd0],                                  // call rax
    &[0x48, 0x89, 0x07],                            // mov [rdi], rax
    &[0x48, 0x8b, 0x06],                            // mov rax, [rsi]
    &[0x8a, 0x66, 0x07],                            // mov ah, [rsi + 7]
    &[0x88, 0x07],                                  // mov [rdi], al
    &[0x01, 0x07],                                  // add [rdi], eax
    &[0x48, 0x2b, 0x4e, 0x10],                      // sub rcx, [rsi + 10h]
    &[0x0f, 0xb6, 0xc0],                            // movzx eax, al
    &[0x48, 0x63, 0xc8],                            // movsxd rcx, eax
    &[0x48, 0x8d, 0x04, 0x8b],                      // lea rax, [rbx + 4 rcx]
    &[0x0f, 0x44, 0xc1],                            // cmove eax, ecx
    &[0x0f, 0x94, 0xc0],                            // sete al
    &[0x48, 0x87, 0xc3],                            // xchg rax, rbx
    &[0xf0, 0x0f, 0xc1, 0x07],                      // lock xadd [rdi], eax
    &[0x48, 0x0f, 0xb1, 0x0f],                      // cmpxchg [rdi], rcx
    &[0x48, 0x0f, 0xc8],                            // bswap rax
    &[0xf9],                                        // stc
    &[0xf5],                                        // cmc
    &[0x66, 0x0f, 0x6e, 0xc0],                      // movd xmm0, eax
    &[0x0f, 0x58, 0xc8],                            // addps xmm1, xmm0
    &[0x0f, 0x11, 0x0f],                            // movups [rdi], xmm1
    &[0x66, 0x48, 0x0f, 0x7e, 0xca],                // movq rdx, xmm1
    &[0x65, 0x48, 0x8b, 0x0c, 0x25, 0, 0x20, 1, 0], // mov rcx, gs:[12000h]
];

/// The target.
pub struct Steps {
    translates: bool,
    blocks: Side,
    singly: Side,
    instructions: u64,
    compared: u64,
    halted: u64,
    shutdowns: u64,
    tasks: u64,
    repeats: u64,
    apart: u64,
}

impl Default for Steps {
    fn default() -> Self {
        Self::new()
    }
}

/// The machine that runs in blocks.
fn first(translates: bool) -> Machine {
    let mut machine = Machine::new(image());
    if translates {
        let translator = jit::Translator::new(0, 1).expect("memory for code");
        machine.set_executor(Box::new(translator));
    }
    machine
}

impl Steps {
    /// The target, with two machines.
    #[must_use]
    pub fn new() -> Self {
        Self::of(false)
    }

    /// The target whose first machine executes translated code where there is any, and 64-bit code most of the time.
    #[must_use]
    pub fn translated() -> Self {
        Self::of(true)
    }

    fn of(translates: bool) -> Self {
        Self {
            translates,
            blocks: Side::new(first(translates), Way::Blocks(1)),
            singly: Side::new(Machine::new(image()), Way::Singly),
            instructions: 0,
            compared: 0,
            halted: 0,
            shutdowns: 0,
            tasks: 0,
            repeats: 0,
            apart: 0,
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.blocks.machine.write(at, bytes);
        self.singly.machine.write(at, bytes);
    }

    /// Changes some descriptors and gates: type, privilege, presence, limit, or anything.
    fn descriptors(&self, input: &mut Input<'_>) {
        for _ in 0..input.below(6) {
            let at = match input.below(4) {
                0 => IDT32 + 8 * input.below(32) as u64,
                1 => IDT64 + 8 * input.below(64) as u64,
                _ => GDT + 8 * (1 + input.below(19) as u64),
            };
            let mut descriptor = self.blocks.machine.qword(at);
            match input.below(8) {
                0 => descriptor = input.any(),
                1 => descriptor ^= 1 << input.below(64),
                2 => descriptor ^= 1 << 47,
                3 => descriptor = descriptor & !0xf_0000_0000_ffff | u64::from(input.any::<u16>()),
                4 => descriptor ^= 0x6000_0000_0000,
                _ => descriptor ^= u64::from(input.any::<u8>() & 0x1f) << 40,
            }
            self.write(at, &descriptor.to_le_bytes());
        }
        for _ in 0..input.below(3) {
            // Fields of the two task states.
            let at = TSS + 0x200 * u64::from(input.any::<u8>() & 1) + 4 * input.below(27) as u64;
            let value = match input.below(4) {
                0 => input.any(),
                1 => CODE as u32,
                2 => 8 * input.below(20) as u32,
                _ => u32::from(input.any::<u16>()),
            };
            self.write(at, &value.to_le_bytes());
        }
    }
}

fn code(input: &mut Input<'_>, plain: bool) -> Vec<u8> {
    let mut code = Vec::with_capacity(CODE_BYTES + 8);
    while code.len() < CODE_BYTES && !input.is_empty() {
        if plain && !input.once_in(8) {
            code.extend(input.pick(&PLAIN));
            continue;
        }
        match input.below(8) {
            0 | 1 => code.push(input.any()),
            2 => code.extend([
                0xb8 | input.any::<u8>() & 7,
                8 * input.below(20) as u8,
                0,
                0,
                0,
            ]),
            3 => code.extend([0x80, 0xc0, input.any()]),
            _ => code.extend(input.pick(&PIECES)),
        }
    }
    code
}

/// What far pointers, stack images and strings are made of.
fn memory(input: &mut Input<'_>) -> Vec<u8> {
    let mut memory = Vec::with_capacity(96);
    for _ in 0..12 {
        let selector = (8 * input.below(20) + input.pick(&[0, 0, 0, 3])) as u32;
        let offset = CODE as u32 + u32::from(input.any::<u8>() & 0x7f);
        match input.below(4) {
            0 => memory.extend(input.any::<u64>().to_le_bytes()),
            1 => {
                memory.extend(offset.to_le_bytes());
                memory.extend(selector.to_le_bytes());
            }
            2 => memory.extend(u64::from(selector).to_le_bytes()),
            _ => memory.extend(u64::from(offset).to_le_bytes()),
        }
    }
    memory
}

impl Target for Steps {
    fn run(&mut self, data: &[u8]) {
        let mut input = Input::new(data);
        let mode = match self.translates && !input.once_in(8) {
            true => Mode::Long,
            false => input.pick(&MODES),
        };
        let user = input.once_in(2);
        let mut state = start(&self.blocks.machine.reset, mode, user, &mut input);
        state.system.cr4 &= !VMXE;
        for n in [0, 1, 2] {
            if input.once_in(2) {
                state.gpr[n] = (8 * input.below(20) + input.pick(&[0, 0, 3])) as u64;
            }
        }
        self.blocks.way = Way::Blocks(input.pick(&SLICES));
        self.descriptors(&mut input);
        let stack = memory(&mut input);
        self.write(DATA, &memory(&mut input));
        self.write(state.gpr[4] & 0xffff, &stack);
        let offset = match input.below(4) {
            0 => PAGE_ENDS + u64::from(input.any::<u8>() & 0x7f),
            _ => 0,
        };
        state.rip += offset;
        let plain = self.translates && mode == Mode::Long && !input.once_in(4);
        let code = code(&mut input, plain);
        self.write(CODE + offset, &code);
        let agreed = match compare(&mut self.blocks, &mut self.singly, &state, MOST) {
            Ok(agreed) => agreed,
            Err(difference) => {
                let (flags, dr7) = (state.rflags, state.system.dr7);
                panic!(
                    "{mode:?}, RIP {:#x}, flags {flags:#x}, DR7 {dr7:#x}, {:?}, code {code:02x?}; in blocks, singly: \
                     {difference}",
                    state.rip, self.blocks.way
                );
            }
        };
        let after = &agreed.state;
        invariants::check(after);
        self.instructions += agreed.executed;
        self.compared += agreed.compared;
        self.repeats += u64::from(agreed.repeats != 0);
        self.apart += u64::from(agreed.apart);
        self.halted += u64::from(after.mp_state == MpState::Halted);
        self.shutdowns += u64::from(agreed.exit == Some(RunExit::Shutdown));
        self.tasks += u64::from(after.tr.base != state.tr.base);
        if after.system.cr4 & VMXE != 0 || agreed.apart {
            // What VMXON made is no part of the state that is set.
            self.blocks.machine = first(self.translates);
            self.singly.machine = Machine::new(image());
        } else {
            self.blocks.machine.restore();
            self.singly.machine.restore();
        }
    }

    fn longest(&self) -> usize {
        640
    }

    fn figures(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("instructions", self.instructions),
            ("compared", self.compared),
            ("halted", self.halted),
            ("shutdowns", self.shutdowns),
            ("tasks", self.tasks),
            ("repeats", self.repeats),
            ("apart", self.apart),
        ]
    }
}
