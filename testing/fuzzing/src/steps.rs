//! The same code run in blocks and one instruction at a time, with descriptor tables, gates and task states near to
//! sound ones.
//!
//! What must hold: wherever both have executed as much, registers, segments, control registers, MSRs, vector state, the
//! board's accesses and at the end every byte of memory are the same, and so is how the run ended
//! ([`compare`](crate::cpu::ways::compare)). A block is an optimization: nothing a guest does may tell it from single
//! steps. So this is what any faster way to run code is held against.

use vcpu::{MpState, RunExit};

use crate::cpu::modes::{CODE, DATA, GDT, IDT32, IDT64, MODES, TSS, image, start};
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

/// The target.
pub struct Steps {
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

impl Steps {
    /// The target, with two machines.
    #[must_use]
    pub fn new() -> Self {
        Self {
            blocks: Side::new(Machine::new(image()), Way::Blocks(1)),
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

fn code(input: &mut Input<'_>) -> Vec<u8> {
    let mut code = Vec::with_capacity(CODE_BYTES + 8);
    while code.len() < CODE_BYTES && !input.is_empty() {
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
        let mode = input.pick(&MODES);
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
        let code = code(&mut input);
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
            self.blocks.machine = Machine::new(image());
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
