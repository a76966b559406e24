//! Which of the guest's registers are in host registers in the joined copies of a region.
//!
//! Elsewhere six of them are in memory, always the same ([`crate::layout`]). A loop that computes with these waits for
//! its own stores all the time. So where a region is entered, registers that it uses much are *exchanged* for ones that it
//! uses less, and exchanged back on every way out: the exact copies, and all other code, know nothing of it.

use iced_x86::{
    Instruction, InstructionInfoFactory, Mnemonic as M, OpAccess, OpCodeOperandKind as K, OpKind,
    Register,
};

use super::window::Path;
use super::{Exit, Leaving, Translator};
use crate::asm::Reg;
use crate::layout::{MAPPED, host, register};

/// A use in a loop counts for so many.
const LOOP: i32 = 8;
/// Uses that an exchange has to save: the way in and the way out have four accesses of their own.
const LEAST_GAIN: i32 = 2 * LOOP;

/// A guest register that is in memory elsewhere, with the host register it is in, which elsewhere has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exchange {
    /// It comes.
    comes: u8,
    /// The one that goes to memory.
    goes: u8,
    /// Where.
    at: Reg,
}

/// A jump that leaves the joined copies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Detour {
    /// Offset of its distance.
    pub from: usize,
    pub to: Aim,
}

/// Where it leads in the end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Aim {
    /// To an offset in the code.
    Code(usize),
    /// Out of the region: offset in the page of what is next, how.
    Way(i64, Leaving),
}

/// What is known of the uses of guest registers.
struct Uses {
    weight: [i32; 16],
    /// They have to be where they are, a bit each.
    fixed: u16,
}

/// Exchanges for the blocks whose instructions are given, each with whether it is part of a loop.
pub(super) fn choose(blocks: &[(&Path, bool)]) -> Vec<Exchange> {
    let mut info = InstructionInfoFactory::new();
    let mut uses = Uses {
        weight: [0; 16],
        // What RAX is used for by code of our own would be known; that it pays is not. RSP has a place of its own in
        // windows, and cannot be an index.
        fixed: 1 << 0 | 1 << 4,
    };
    for (path, in_loop) in blocks {
        for step in *path {
            uses.count(&mut info, &step.insn, if *in_loop { LOOP } else { 1 });
        }
    }
    let free = |n: &u8| uses.fixed & 1 << n == 0;
    let weight = |n: &u8| uses.weight[usize::from(*n)];
    let mut come: Vec<u8> = (0..16)
        .filter(|n| host(*n).is_none())
        .filter(free)
        .collect();
    let mut go: Vec<u8> = MAPPED.iter().map(|(n, _)| *n).filter(free).collect();
    come.sort_by_key(|n| std::cmp::Reverse(weight(n)));
    go.sort_by_key(weight);
    let pairs = come.into_iter().zip(go);
    let pairs = pairs.take_while(|(comes, goes)| weight(comes) - weight(goes) > LEAST_GAIN);
    pairs
        .filter_map(|(comes, goes)| {
            let at = host(goes)?;
            Some(Exchange { comes, goes, at })
        })
        .collect()
}

impl Uses {
    fn count(&mut self, info: &mut InstructionInfoFactory, insn: &Instruction, weight: i32) {
        let movable = movable(insn);
        for used in info.info(insn).used_registers() {
            let register = used.register().full_register();
            if !register.is_gpr64() {
                continue;
            }
            let number = register.number();
            if movable & 1 << number == 0 {
                self.fixed |= 1 << number;
            }
            let times = match used.access() {
                OpAccess::ReadWrite | OpAccess::ReadCondWrite => 2,
                _ => 1,
            };
            self.weight[number] += times * weight;
        }
    }
}

/// The general registers of an instruction that may be in any register of the host, a bit each.
fn movable(insn: &Instruction) -> u16 {
    if insn.is_string_instruction() || has_unnamed(insn) {
        return 0;
    }
    let mut movable = 0;
    // Of those that it does not name.
    let mut fixed = if is_of_rax(insn) { 1 << 0 | 1 << 2 } else { 0 };
    for (n, kind) in insn.op_code().op_kinds().iter().enumerate() {
        let n = n as u32;
        if insn.op_kind(n) != OpKind::Register {
            continue;
        }
        let named = insn.op_register(n);
        if !named.is_gpr() {
            continue;
        }
        let bit = 1 << named.full_register().number();
        let high = (Register::AH..=Register::BH).contains(&named);
        // RAX and CL have instructions of their own, or are written into them.
        let by_opcode = matches!(kind, K::al | K::ax | K::eax | K::rax | K::cl | K::dx);
        if high || by_opcode {
            fixed |= bit;
        } else {
            movable |= bit;
        }
    }
    for part in [insn.memory_base(), insn.memory_index()] {
        if part.is_gpr64() {
            movable |= 1 << part.number();
        }
    }
    movable & !fixed
}

/// MUL, DIV and IDIV, and IMUL with one operand: the others are RAX and RDX.
fn is_of_rax(insn: &Instruction) -> bool {
    let one = insn.mnemonic() == M::Imul && insn.op_count() == 1;
    one || matches!(insn.mnemonic(), M::Mul | M::Div | M::Idiv)
}

/// It may use registers that it does not name.
fn has_unnamed(insn: &Instruction) -> bool {
    use iced_x86::CodeSize;
    let known = matches!(
        insn.mnemonic(),
        M::Mov
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Movbe
            | M::Lea
            | M::Add
            | M::Adc
            | M::Sub
            | M::Sbb
            | M::And
            | M::Or
            | M::Xor
            | M::Not
            | M::Neg
            | M::Inc
            | M::Dec
            | M::Cmp
            | M::Test
            | M::Shl
            | M::Sal
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
            | M::Rcl
            | M::Rcr
            | M::Shld
            | M::Shrd
            | M::Bt
            | M::Bts
            | M::Btr
            | M::Btc
            | M::Bsf
            | M::Bsr
            | M::Tzcnt
            | M::Lzcnt
            | M::Popcnt
            | M::Bswap
            | M::Xchg
            | M::Xadd
            | M::Crc32
            | M::Andn
            | M::Bextr
            | M::Blsi
            | M::Blsmsk
            | M::Blsr
            | M::Bzhi
            | M::Pdep
            | M::Pext
            | M::Rorx
            | M::Sarx
            | M::Shlx
            | M::Shrx
            | M::Push
            | M::Pop
    );
    let three = insn.mnemonic() == M::Imul && insn.op_count() > 1;
    let if_so = insn.condition_code() != iced_x86::ConditionCode::None
        && !insn.is_loop()
        && !insn.is_loopcc();
    let plain_vector = is_vector(insn)
        && !matches!(
            insn.mnemonic(),
            M::Pcmpestri
                | M::Pcmpestri64
                | M::Pcmpestrm
                | M::Pcmpestrm64
                | M::Pcmpistri
                | M::Pcmpistrm
                | M::Vpcmpestri
                | M::Vpcmpestri64
                | M::Vpcmpestrm
                | M::Vpcmpestrm64
                | M::Vpcmpistri
                | M::Vpcmpistrm
                | M::Maskmovdqu
                | M::Vmaskmovdqu
                | M::Maskmovq
        );
    let jump = insn.is_jmp_short_or_near() || insn.is_jmp_near_indirect();
    let wide = insn.code_size() == CodeSize::Code64 || insn.code_size() == CodeSize::Unknown;
    !(wide && (known || three || if_so || plain_vector || jump || is_of_rax(insn)))
}

/// An operand is a vector register.
fn is_vector(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|n| {
        let r = insn.op_register(n);
        insn.op_kind(n) == OpKind::Register && (r.is_xmm() || r.is_ymm())
    })
}

impl Translator<'_> {
    /// Whether registers are exchanged in what is being written.
    pub(super) fn is_renamed(&self) -> bool {
        self.is_joined()
            && self
                .joining
                .as_ref()
                .is_some_and(|j| !j.exchanges.is_empty())
    }

    fn exchanges(&self) -> Vec<Exchange> {
        let joining = self.joining.as_ref();
        joining.map_or_else(Vec::new, |j| j.exchanges.clone())
    }

    /// Where registers are in joined copies is where they are in what is written from here on; or no longer.
    pub(super) fn rename(&mut self, on: bool) {
        for e in self.exchanges() {
            let (comes, goes) = if on {
                (Some(e.at), None)
            } else {
                (None, Some(e.at))
            };
            self.a.place(e.comes, comes);
            self.a.place(e.goes, goes);
        }
    }

    /// Exchanges registers on the way in.
    pub(super) fn exchange(&mut self) {
        for e in self.exchanges() {
            self.a.raw_store(register(usize::from(e.goes)), e.at);
            self.a.raw_load(e.at, register(usize::from(e.comes)));
        }
    }

    /// Exchanges them back on a way out, if they are exchanged. Changes nothing else.
    pub(super) fn exchange_back(&mut self) {
        if !self.is_renamed() {
            return;
        }
        for e in self.exchanges() {
            self.a.raw_store(register(usize::from(e.comes)), e.at);
            self.a.raw_load(e.at, register(usize::from(e.goes)));
        }
    }

    /// A jump leaves the region.
    pub(super) fn leaves(&mut self, from: usize, offset: i64, how: Leaving) {
        if self.is_renamed()
            && let Some(joining) = &mut self.joining
        {
            let to = Aim::Way(offset, how);
            return joining.detours.push(Detour { from, to });
        }
        self.ways.push((from, offset, how));
    }

    /// Writes the code of detours.
    pub(super) fn take_detours(&mut self) {
        let Some(joining) = &mut self.joining else {
            return;
        };
        let detours = std::mem::take(&mut joining.detours);
        if detours.is_empty() {
            return;
        }
        const RET: u8 = 0xc3;
        // Most of them are rarely taken, so they share what exchanges.
        let back = self.a.origin + self.a.here() as u64;
        self.exchange_back();
        self.a.raw(&[RET]);
        let mut there = std::collections::BTreeMap::new();
        for Detour { from, to } in detours {
            let here = self.a.here();
            match to {
                Aim::Code(to) => {
                    let known = *there.entry(to).or_insert(here);
                    self.a.aim(from, known);
                    if known == here {
                        self.a.call(back);
                        let jump = self.a.jump(0);
                        self.a.aim(jump, to);
                    }
                }
                Aim::Way(offset, how) => {
                    self.a.aim(from, here);
                    self.exchange_back();
                    let jump = self.a.jump(0);
                    self.ways.push((jump, offset, how));
                    if let Leaving::By(way) = how {
                        let exit: &mut Exit = &mut self.exits[(way - self.numbers.way) as usize];
                        exit.jump = jump;
                    }
                }
            }
        }
    }
}
