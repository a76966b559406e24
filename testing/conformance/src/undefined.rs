//! What the manuals leave undefined, or the vendors define differently, and is therefore not compared.
//!
//! Flags come from iced's tables (which follow SDM Vol 1 Appendix A and the instruction pages) except where
//! they depend on a count. The rest:
//!
//! | what | where |
//! |---|---|
//! | x87 instruction and operand pointers, opcode | SDM Vol 1 8.1.8: FCS and FDS deprecated, FOP and FDP by processor; APM Vol 2 11.4.4 |
//! | MXCSR_MASK in an FXSAVE image | SDM Vol 1 11.6.6: bit 17 (MM) is AMD's |
//! | bytes 464 to 511 of an FXSAVE image, padding of the x87 registers | SDM Vol 2, FXSAVE: available to software, reserved |
//! | destination of BSF and BSR with a zero source | SDM Vol 2, BSF: undefined; APM Vol 3, BSF: unchanged |
//! | SHLD, SHRD with a count above the operand size | SDM Vol 2, SHLD: result and flags undefined |
//! | CF of SHL, SHR with a count of at least the operand size | SDM Vol 2, SAL/SAR/SHL/SHR |
//! | OF of shifts and rotates by other than 1 | SDM Vol 2, SAL/SAR/SHL/SHR and RCL/RCR/ROL/ROR |
//! | CR2 when a state image faults | the order of its stores is the processor's |
//! | PE of MXCSR beside an unmasked overflow or underflow | SDM Vol 1 11.5.2.6: whether the result is also inexact is not said for one that is not delivered |
//! | flags of MXCSR beside an unmasked exception of DPPS, DPPD | SDM Vol 2, DPPS: each multiplication and addition by itself |
//! | destination and mask of a gather that faults | SDM Vol 2, VPGATHERDD: elements beyond the faulting one may be done; the mask's form |
//! | what RDTSC, RDTSCP, RDPID, RDRAND, RDSEED, CPUID, XGETBV and SMSW put into registers | it is the host's |
//! | base of FS and GS after a null selector | APM Vol 2 4.5.3 keeps it; SDM Vol 3 3.4.4.1 leaves it open |
//! | CR2 of RETF and IRET | the order in which they read the stack is the processor's |
//! | what a CALL that faults has stored below the stack pointer | SDM Vol 2, CALL checks the target first, APM Vol 3, CALL pushes first |
//! | upper half of a selector that is pushed with 32 bits | SDM Vol 2, PUSH: zero, or not written |
//! | RF | SDM Vol 3 18.3.1.1: set in the image of a fault |

use std::iter::once;
use std::ops::Range;

use iced_x86::{Instruction, Mnemonic, OpKind, Register, RflagsBits};

use crate::case::{Case, Outcome};
use crate::generate::{is_xsave, operand_address};
use crate::segments::SS;

const CF: u64 = 1;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
const RF: u64 = 1 << 16;

/// What of an outcome is not compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Undefined {
    /// RFLAGS bits.
    pub rflags: u64,
    /// x87 status word bits (C0 to C3).
    pub fsw: u16,
    /// General registers, a bit each.
    pub gpr: u16,
    /// Bases of FS and GS.
    pub bases: [bool; 2],
    /// Vector registers, a bit each.
    pub vectors: u16,
    /// MXCSR bits.
    pub mxcsr: u32,
    /// Bits of CR2.
    pub cr2: u64,
    /// Offsets in the window.
    pub memory: Vec<Range<usize>>,
}

impl Undefined {
    /// For `case`; `outcome` is the oracle's.
    #[must_use]
    pub fn of(case: &Case, outcome: &Outcome) -> Self {
        let instruction = &case.instruction;
        let bits = instruction.rflags_undefined();
        let mut undefined = Self {
            rflags: RF | rflags(bits),
            fsw: condition_codes(bits),
            ..Self::default()
        };
        use Mnemonic as M;
        match instruction.mnemonic() {
            M::Shl
            | M::Sal
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
            | M::Rcl
            | M::Rcr
            | M::Shld
            | M::Shrd => undefined.shift(case),
            M::Rdtsc
            | M::Rdpid
            | M::Rdrand
            | M::Rdseed
            | M::Rdtscp
            | M::Cpuid
            | M::Xgetbv
            | M::Smsw => undefined.host_values(instruction),
            M::Mov | M::Pop | M::Lfs | M::Lgs => undefined.null_bases(outcome),
            M::Retf | M::Iret | M::Iretd | M::Iretq => undefined.cr2 = u64::MAX,
            M::Call if outcome.exception.is_some() => undefined.below_stack(case, 16),
            M::Push if case.setting.bits != 64 && is_selector(instruction) => {
                undefined.below_stack(case, 2);
            }
            M::Bsf | M::Bsr if outcome.after.rflags & ZF != 0 => {
                undefined.gpr = 1 << instruction.op0_register().full_register().number();
            }
            _ => {}
        }
        undefined.images(case);
        // OE and UE are bits 3 and 4, their masks bits 10 and 11.
        let mxcsr = outcome.after.extended.mxcsr();
        if outcome.exception.is_some_and(|e| e.vector == 19) && mxcsr & !(mxcsr >> 7) & 0x18 != 0 {
            undefined.mxcsr = 1 << 5;
        }
        if matches!(
            instruction.mnemonic(),
            M::Dpps | M::Dppd | M::Vdpps | M::Vdppd
        ) && outcome.exception.is_some()
        {
            undefined.mxcsr = 0x3f;
        }
        if instruction.is_vsib() && outcome.exception.is_some() {
            let registers = (0..instruction.op_count())
                .filter(|&i| instruction.op_kind(i) == OpKind::Register)
                .map(|i| 1 << instruction.op_register(i).number());
            undefined.vectors = registers.fold(0, |all, bit: u16| all | bit);
        }
        undefined
    }

    /// Registers that tell what the host's processor is, its time, or nothing at all.
    fn host_values(&mut self, instruction: &Instruction) {
        use Mnemonic as M;
        self.gpr |= match instruction.mnemonic() {
            M::Rdtsc | M::Xgetbv => 0b101,
            M::Rdtscp => 0b111,
            M::Cpuid => 0b1111,
            _ if instruction.op0_kind() == OpKind::Register => {
                1 << instruction.op0_register().full_register().number()
            }
            _ => 0,
        };
    }

    /// A null selector in FS or GS leaves the base on AMD's processors and clears it on Intel's (APM Vol 2
    /// 4.5.3; SDM Vol 3 3.4.4.1 leaves it open).
    fn null_bases(&mut self, outcome: &Outcome) {
        for i in 0..2 {
            self.bases[i] = outcome.selectors[4 + i] < 4;
        }
    }

    /// `bytes` below the stack pointer.
    fn below_stack(&mut self, case: &Case, bytes: usize) {
        let pointer = case.before.gpr[4] & u64::MAX >> (64 - case.setting.stack_bits());
        let top = pointer.wrapping_add(case.setting.segments[SS].base) & case.setting.rip_mask();
        let top = top.wrapping_sub(case.layout.window());
        if top < 1 << 20 {
            let top = top as usize;
            self.memory.push(top.saturating_sub(bytes)..top);
        }
    }

    fn shift(&mut self, case: &Case) {
        let instruction = &case.instruction;
        let bits = match instruction.op0_kind() {
            OpKind::Register => instruction.op0_register().size() * 8,
            _ => instruction.memory_size().size() * 8,
        } as u64;
        let last = instruction.op_count() - 1;
        let count = match instruction.op_kind(last) {
            OpKind::Register if instruction.op_register(last) == Register::CL => case.before.gpr[1],
            _ => u64::from(instruction.immediate8()),
        } & if bits == 64 { 0x3f } else { 0x1f };
        use Mnemonic as M;
        self.rflags = RF;
        if count == 0 {
            return;
        }
        if count != 1 {
            self.rflags |= OF;
        }
        match instruction.mnemonic() {
            M::Rol | M::Ror | M::Rcl | M::Rcr => {}
            M::Shl | M::Sal | M::Shr => {
                self.rflags |= AF | if count >= bits { CF } else { 0 };
            }
            M::Sar => self.rflags |= AF,
            _ => {
                self.rflags |= AF;
                if count > bits {
                    self.rflags |= CF | PF | ZF | SF | OF;
                    match instruction.op0_kind() {
                        OpKind::Register => {
                            self.gpr = 1 << instruction.op0_register().full_register().number();
                        }
                        _ => self.operand(case, once(0..bits as usize / 8)),
                    }
                }
            }
        }
    }

    /// Parts of the memory operand.
    fn operand(&mut self, case: &Case, parts: impl IntoIterator<Item = Range<usize>>) {
        let address = operand_address(case);
        let offset = address.wrapping_sub(case.layout.window());
        if offset < 1 << 20 {
            let offset = offset as usize;
            self.memory
                .extend(parts.into_iter().map(|p| p.start + offset..p.end + offset));
        }
    }

    fn images(&mut self, case: &Case) {
        use Mnemonic as M;
        let mnemonic = case.instruction.mnemonic();
        if is_xsave(mnemonic)
            || matches!(
                mnemonic,
                M::Fnstenv
                    | M::Fnsave
                    | M::Fldenv
                    | M::Frstor
                    | M::Fxsave
                    | M::Fxsave64
                    | M::Fxrstor
                    | M::Fxrstor64
            )
        {
            self.cr2 = u64::MAX;
        }
        match mnemonic {
            M::Fnstenv | M::Fnsave => {
                let short = matches!(
                    case.instruction.code(),
                    iced_x86::Code::Fnstenv_m14byte | iced_x86::Code::Fnsave_m94byte
                );
                if short {
                    self.operand(case, once(6..14));
                } else {
                    self.operand(case, [2..4, 6..8, 10..28]);
                }
            }
            M::Fxsave | M::Fxsave64 => self.legacy_image(case),
            _ if is_xsave(mnemonic) => self.legacy_image(case),
            _ => {}
        }
    }

    fn legacy_image(&mut self, case: &Case) {
        let mut parts = vec![5..24, 28..32, 464..512];
        parts.extend((0..8).map(|i| 42 + 16 * i..48 + 16 * i));
        self.operand(case, parts);
    }

    /// Whether a window byte is compared.
    #[must_use]
    pub fn ignores_memory(&self, offset: usize) -> bool {
        self.memory.iter().any(|range| range.contains(&offset))
    }
}

/// PUSH of a segment register with 32 bits.
fn is_selector(instruction: &Instruction) -> bool {
    instruction.op0_register().is_segment_register() && instruction.stack_pointer_increment() == -4
}

fn rflags(bits: u32) -> u64 {
    [
        (RflagsBits::OF, OF),
        (RflagsBits::SF, SF),
        (RflagsBits::ZF, ZF),
        (RflagsBits::AF, AF),
        (RflagsBits::CF, CF),
        (RflagsBits::PF, PF),
    ]
    .into_iter()
    .filter(|(bit, _)| bits & bit != 0)
    .fold(0, |all, (_, flag)| all | flag)
}

fn condition_codes(bits: u32) -> u16 {
    [
        (RflagsBits::C0, 1 << 8),
        (RflagsBits::C1, 1 << 9),
        (RflagsBits::C2, 1 << 10),
        (RflagsBits::C3, 1 << 14),
    ]
    .into_iter()
    .filter(|(bit, _)| bits & bit != 0)
    .fold(0, |all, (_, flag)| all | flag)
}
