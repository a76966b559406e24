//! Every instruction this crate executes and the host has, with random operands, against the oracle.

use super::machine::decode;
use super::native::{MEMORY_LEN, Machine, Native};
use crate::facts::{Group, group};
use crate::features::{Support, support};
use crate::{Bounce, ExtState, HostExec, HostFeatures, MemoryUse, Outcome};
use iced_x86::{
    Code, Encoder, Instruction, InstructionInfoFactory, OpCodeOperandKind as K, OpKind, Register,
};

/// xorshift64*: the same sequence each time.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new() -> Random {
        Random(0x9e37_79b9_7f4a_7c15)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 8) % limit
    }

    fn single(&mut self) -> u32 {
        const SPECIAL: [u32; 12] = [
            0,
            0x8000_0000,
            0x3f80_0000,
            0xbf80_0000,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0000,
            0x7f80_0001,
            0x0000_0001,
            0x0080_0000,
            0x7f7f_ffff,
            0x4f00_0000,
        ];
        match self.below(4) {
            0 => SPECIAL[self.below(12) as usize],
            1 => (self.next() as u32 & 0x807f_ffff) | (0x7c + self.below(8) as u32) << 23,
            2 => self.next() as u32 & 0x807f_ffff,
            _ => self.next() as u32,
        }
    }

    fn double(&mut self) -> u64 {
        const SPECIAL: [u64; 10] = [
            0,
            1 << 63,
            0x3ff0 << 48,
            0xbff0 << 48,
            0x7ff0 << 48,
            0x7ff8 << 48,
            0x7ff0_0000_0000_0001,
            1,
            0x7fef_ffff_ffff_ffff,
            0x41e0 << 48,
        ];
        match self.below(4) {
            0 => SPECIAL[self.below(10) as usize],
            1 => (self.next() & 0x800f_ffff_ffff_ffff) | (0x3fc + self.below(8)) << 52,
            2 => self.next() & 0x800f_ffff_ffff_ffff,
            _ => self.next(),
        }
    }

    /// 64 bits that are interesting as two singles, one double or as an integer.
    pub(super) fn word(&mut self) -> u64 {
        match self.below(3) {
            0 => u64::from(self.single()) | u64::from(self.single()) << 32,
            1 => self.double(),
            _ => self.next(),
        }
    }

    fn extended(&mut self) -> [u8; 10] {
        let exponent: u16 = match self.below(5) {
            0 => [0, 1, 0x3fff, 0x7ffe, 0x7fff][self.below(5) as usize],
            1 => 0x3fff + self.below(70) as u16,
            2 => 0x3fff - self.below(70) as u16,
            3 => 0x3fff + self.below(16000) as u16,
            _ => self.next() as u16 & 0x7fff,
        } | (self.next() as u16 & 0x8000);
        let mut mantissa = match self.below(4) {
            0 => 0,
            1 => u64::MAX << self.below(63),
            _ => self.next(),
        };
        if self.below(8) != 0 {
            mantissa |= u64::from(exponent & 0x7fff != 0) << 63;
        }
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&mantissa.to_le_bytes());
        bytes[8..].copy_from_slice(&exponent.to_le_bytes());
        bytes
    }

    pub(super) fn machine(&mut self) -> Machine {
        let mut ext = ExtState::initialized();
        for word in ext.ymm.iter_mut().flatten() {
            *word = self.word();
        }
        for i in 0..8 {
            let value = self.extended();
            ext.fx[32 + i * 16..42 + i * 16].copy_from_slice(&value);
        }
        let mut mem = [0; MEMORY_LEN];
        for bytes in mem.chunks_exact_mut(8) {
            bytes.copy_from_slice(&self.word().to_le_bytes());
        }
        let mut gpr = [0; 16];
        for value in &mut gpr {
            *value = self.next();
        }
        Machine {
            ext,
            gpr,
            mem,
            rflags: 0x202 | self.next() & 0x8d5,
        }
    }
}

/// The codes this crate executes on this host.
pub(super) fn our_codes() -> Vec<(Code, Group)> {
    let host = HostFeatures::get();
    Code::values()
        .filter_map(|code| group(code).map(|group| (code, group)))
        .filter(|&(code, _)| support(code, host) == Support::Present)
        .collect()
}

const BASE: Register = Register::RBX;
const DISPLACEMENT: i64 = 0x40;

/// One instruction of `code` with random operands, encoded for `bitness`: bytes and decoded form.
fn instance(code: Code, random: &mut Random, bitness: u32) -> Option<(Vec<u8>, Instruction)> {
    let registers = if bitness == 64 { 16 } else { 8 };
    let info = code.op_code();
    let mut insn = Instruction::default();
    insn.set_code(code);
    let mut vectors: Vec<u32> = (0..registers).collect();
    for (operand, &kind) in info.op_kinds().iter().enumerate() {
        let operand = operand as u32;
        let vector = vectors.remove(random.below(vectors.len() as u64) as usize);
        let number = random.below(u64::from(registers)) as u32;
        let name = format!("{kind:?}");
        let use_memory = name.ends_with("_or_mem") && random.below(2) == 0;
        let register = match kind {
            K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 => Register::XMM0 + number,
            K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 => Register::YMM0 + number,
            K::xmm_or_mem if !use_memory => Register::XMM0 + number,
            K::ymm_or_mem if !use_memory => Register::YMM0 + number,
            K::mm_reg | K::mm_rm => Register::MM0 + number % 8,
            K::mm_or_mem if !use_memory => Register::MM0 + number % 8,
            K::r32_reg | K::r32_rm => Register::EAX + number,
            K::r64_reg | K::r64_rm => Register::RAX + number,
            K::r32_or_mem if !use_memory => Register::EAX + number,
            K::r64_or_mem if !use_memory => Register::RAX + number,
            K::st0 => Register::ST0,
            K::sti_opcode => Register::ST0 + number % 8,
            K::imm8 => {
                insn.set_op_kind(operand, OpKind::Immediate8);
                insn.set_immediate8(random.next() as u8);
                continue;
            }
            K::seg_rDI => {
                let kind = if bitness == 64 {
                    OpKind::MemorySegRDI
                } else {
                    OpKind::MemorySegEDI
                };
                insn.set_op_kind(operand, kind);
                continue;
            }
            K::ax => Register::AX,
            _ => {
                assert!(name.contains("mem"), "operand kind {name} of {code:?}");
                insn.set_op_kind(operand, OpKind::Memory);
                insn.set_memory_base(if bitness == 64 { BASE } else { Register::EBX });
                insn.set_memory_displacement64(DISPLACEMENT as u64);
                insn.set_memory_displ_size(1);
                if name.contains("vsib") {
                    let ymm = name.contains("vsib32y") || name.contains("vsib64y");
                    let first = if ymm { Register::YMM0 } else { Register::XMM0 };
                    insn.set_memory_index(first + vector);
                }
                continue;
            }
        };
        // Gathers need three different registers.
        let distinct = info.requires_unique_reg_nums();
        let register = match register {
            r if distinct && r.is_xmm() => Register::XMM0 + vector,
            r if distinct && r.is_ymm() => Register::YMM0 + vector,
            r => r,
        };
        insn.set_op_kind(operand, OpKind::Register);
        insn.set_op_register(operand, register);
    }
    let mut encoder = Encoder::new(bitness);
    encoder.encode(&insn, 0).ok()?;
    let bytes = encoder.take_buffer();
    let decoded = decode(bitness, &bytes);
    assert_eq!(decoded.code(), code);
    Some((bytes, decoded))
}

/// How many times the usual number of operands to try: the environment's HOSTEXEC_SWEEP, or 1.
fn effort() -> usize {
    std::env::var("HOSTEXEC_SWEEP")
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(1)
}

struct Sweep {
    exec: HostExec,
    native: Native,
    random: Random,
}

impl Sweep {
    fn new() -> Sweep {
        Sweep {
            exec: HostExec::new().unwrap(),
            native: Native::new(),
            random: Random::new(),
        }
    }

    /// Points the memory operand of `insn` at the test memory, at an offset that suits any alignment.
    fn aim(&self, insn: &Instruction, machine: &mut Machine) -> usize {
        machine.gpr[7] = self.native.memory_address() + 64;
        if insn.op0_kind() == OpKind::MemorySegRDI {
            return 64;
        }
        machine.gpr[3] = self.native.memory_address() + 64 - DISPLACEMENT as u64;
        64
    }

    /// Runs `bytes` both ways on `start` and compares everything.
    fn compare(&mut self, bytes: &[u8], insn: &Instruction, start: &Machine, at: usize) {
        let prepared = self
            .exec
            .prepare(insn)
            .unwrap_or_else(|error| panic!("{insn}: {error}"));
        let facts = *prepared.facts();
        let mut ours = start.clone();
        let mut bounce = Bounce::new();
        bounce.0[..256].copy_from_slice(&start.mem[at..at + 256]);
        let outcome = self.exec.run(
            &prepared,
            &mut ours.ext,
            &mut ours.gpr,
            &mut bounce,
            &mut ours.rflags,
        );
        let mut native = start.clone();
        let trapped = self.native.run(bytes, &mut native);
        assert_eq!(
            outcome == Outcome::SimdException,
            trapped,
            "{insn}: {outcome:?}"
        );
        if outcome == Outcome::Done {
            match facts.memory {
                MemoryUse::None | MemoryUse::Read(_) | MemoryUse::MaskedRead(_) => {}
                MemoryUse::Write(size) => {
                    let size = usize::from(size);
                    ours.mem[at..at + size].copy_from_slice(&bounce.0[..size]);
                }
                MemoryUse::MaskedWrite(masked) => {
                    let mask = masked.byte_mask(&start.ext);
                    for i in (0..masked.size()).filter(|i| mask >> i & 1 != 0) {
                        ours.mem[at + i] = bounce.0[i];
                    }
                }
                MemoryUse::Gather(_) => unreachable!("gathers have their own test"),
            }
        }
        for machine in [&mut ours, &mut native] {
            // Pointers, MXCSR and padding of the image are not compared here.
            machine.ext.fx[5..32].fill(0);
            for i in 0..8 {
                machine.ext.fx[42 + i * 16..48 + i * 16].fill(0);
            }
            machine.ext.fx[160..].fill(0);
            machine.rflags &= 0x8d5;
        }
        if trapped {
            // Rounding is not comparable when overflow or underflow is taken unmasked.
            ours.ext.mxcsr &= !0x20;
            native.ext.mxcsr &= !0x20;
        }
        let x87 = matches!(facts.class, crate::Class::X87 | crate::Class::X87NoWait);
        assert!(
            facts.writes_rflags || native.rflags == start.rflags & 0x8d5,
            "{insn}: flags"
        );
        let what = || {
            format!(
                "{insn} {bytes:02x?} mxcsr {:#x} start {:x?}",
                start.ext.mxcsr,
                if x87 {
                    start.ext.fx[..160].to_vec()
                } else {
                    Vec::new()
                }
            )
        };
        assert_eq!(ours.ext.ymm, native.ext.ymm, "{}", what());
        assert_eq!(ours.ext.mxcsr, native.ext.mxcsr, "{}", what());
        assert_eq!(ours.ext.fx[..32], native.ext.fx[..32], "{}", what());
        assert_eq!(ours.ext.fx[32..160], native.ext.fx[32..160], "{}", what());
        assert_eq!(ours.gpr, native.gpr, "{}", what());
        assert_eq!(ours.rflags, native.rflags, "{}", what());
        assert_eq!(ours.mem, native.mem, "{}", what());
    }
}

#[test]
fn vector_instructions_are_the_processors() {
    let mut sweep = Sweep::new();
    let mut seen = 0;
    for (code, group) in our_codes() {
        if group == Group::X87
            || matches!(group, Group::Control(_))
            || code.op_code().requires_unique_reg_nums()
        {
            continue;
        }
        for round in 0..12 * effort() {
            let Some((bytes, insn)) = instance(code, &mut sweep.random, 64) else {
                continue;
            };
            seen += usize::from(round == 0);
            let mut machine = sweep.random.machine();
            // Rounding, FTZ and DAZ vary, all exceptions masked.
            machine.ext.mxcsr = 0x1f80 | (sweep.random.next() as u32 & 0xe07f);
            machine.ext.set_fsw((sweep.random.next() as u16) & 0x7f7f);
            machine.ext.set_ftw_abridged(sweep.random.next() as u8);
            let at = sweep.aim(&insn, &mut machine);
            sweep.compare(&bytes, &insn, &machine, at);
        }
    }
    assert!(seen > 900, "only {seen} codes could be made");
}

/// Who executes instructions without preparing them has to check the same.
#[test]
fn facts_do_not_need_a_stub() {
    let (mut random, mut info) = (Random::new(), InstructionInfoFactory::new());
    let mut host = HostExec::with_capacity(64 << 20).unwrap();
    let (mut seen, mut masked) = (0, 0);
    for code in Code::values() {
        if group(code).is_none() || support(code, HostFeatures::get()) != Support::Present {
            let mut insn = Instruction::default();
            insn.set_code(code);
            assert_eq!(crate::facts_of(&insn, &mut info), None, "{code:?}");
            continue;
        }
        for bitness in [32, 64, 64, 64, 64, 64] {
            let Some((_, insn)) = instance(code, &mut random, bitness) else {
                continue;
            };
            let facts = *host.prepare(&insn).unwrap().facts();
            assert_eq!(crate::facts_of(&insn, &mut info), Some(facts), "{insn}");
            seen += 1;
            masked += usize::from(matches!(facts.memory, MemoryUse::MaskedWrite(_)));
        }
    }
    assert!(seen > 5000 && masked > 20, "only {seen}, {masked}");
}

#[test]
fn unmasked_simd_exceptions_are_the_processors() {
    let mut sweep = Sweep::new();
    for (code, group) in our_codes() {
        if group != Group::Vector || !crate::facts::is_simd_fp(code) {
            continue;
        }
        for _ in 0..24 * effort() {
            let Some((bytes, insn)) = instance(code, &mut sweep.random, 64) else {
                continue;
            };
            let mut machine = sweep.random.machine();
            machine.ext.mxcsr = sweep.random.next() as u32 & 0xffff;
            let at = sweep.aim(&insn, &mut machine);
            sweep.compare(&bytes, &insn, &machine, at);
        }
    }
}

#[test]
fn x87_instructions_are_the_processors() {
    let mut sweep = Sweep::new();
    for (code, group) in our_codes() {
        if !(group == Group::X87 || matches!(group, Group::Control(_))) {
            continue;
        }
        for round in 0..60 * effort() {
            let Some((bytes, insn)) = instance(code, &mut sweep.random, 64) else {
                continue;
            };
            let mut machine = sweep.random.machine();
            let ext = &mut machine.ext;
            ext.set_fcw(
                0x037f & !(sweep.random.next() as u16 & 0x300)
                    | (sweep.random.next() as u16 & 0xc00),
            );
            if round % 3 == 1 {
                // Unmasked exceptions, none of them pending.
                ext.set_fcw(ext.fcw() & !(sweep.random.next() as u16 & 0x3f));
            }
            let flags = sweep.random.next() as u16 & ext.fcw() & 0x3f;
            ext.set_fsw(sweep.random.next() as u16 & 0x7f40 | flags);
            ext.set_ftw_abridged(if round % 2 == 0 {
                0xff
            } else {
                sweep.random.next() as u8
            });
            if round % 4 == 2 {
                let top = ext.top();
                ext.set_ftw_abridged(0x0fu8.rotate_left(u32::from(top)));
            }
            let at = sweep.aim(&insn, &mut machine);
            sweep.compare(&bytes, &insn, &machine, at);
        }
    }
}

#[test]
fn every_code_prepares_in_32_bit_mode() {
    let mut sweep = Sweep::new();
    for (code, _) in our_codes() {
        if !code.op_code().mode32() {
            continue;
        }
        for _ in 0..4 {
            let Some((_, insn)) = instance(code, &mut sweep.random, 32) else {
                panic!("{code:?} has no 32-bit form");
            };
            let prepared = sweep
                .exec
                .prepare(&insn)
                .unwrap_or_else(|error| panic!("{insn}: {error}"));
            let mut machine = sweep.random.machine();
            let mut bounce = Bounce::new();
            let outcome = sweep.exec.run(
                &prepared,
                &mut machine.ext,
                &mut machine.gpr,
                &mut bounce,
                &mut machine.rflags,
            );
            assert!(
                matches!(outcome, Outcome::Done | Outcome::StoreSuppressed),
                "{insn}: {outcome:?}"
            );
        }
    }
}
