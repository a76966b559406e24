//! What kernels use often: bits of bit maps, pairs of words, control registers, CLI, SWAPGS, PAUSE.

use std::mem::offset_of;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic as M, OpKind, Register};
use softcpu::cpu::{Cpu, sreg};
use vcpu::SegmentRegister;
use x86defs::rflags;

use super::{ByHandler, Done, Translator};
use crate::asm::{Legacy, Mem, Rm};
use crate::layout::{
    ADDRESS, CPL, GUEST_RCX, IN_GUEST, INTERRUPT_WAITING, KERNEL_GS_BASE, RCX, REST, SLOT,
    WATCHES_IF, field, register, segment_base, segments,
};

impl Translator<'_> {
    /// BT and its relatives with an operand in memory and the bit in a register: that is signed and reaches beyond the
    /// operand (SDM Vol 2 "BT").
    pub(super) fn bit_in_memory(&mut self, insn: &Instruction) -> Done {
        let (size, log2) = match insn.memory_size().size() {
            4 => (4, 2),
            8 => (8, 3),
            _ => return Err(ByHandler),
        };
        let extension = match insn.mnemonic() {
            M::Bt => 0xa3,
            M::Bts => 0xab,
            M::Btr => 0xb3,
            _ => 0xbb,
        };
        let write = insn.mnemonic() != M::Bt;
        let bit = insn.op1_register().full_register().number() as u8;
        self.address(insn)?;
        // How far its word is.
        self.read_general(SLOT, bit);
        if size == 4 {
            self.a.sign_extend(SLOT, Rm::Reg(SLOT));
        }
        self.a.set(RCX, 3 + log2);
        self.a.sarx(SLOT, SLOT, RCX);
        self.a
            .lea(ADDRESS, Mem::indexed(ADDRESS, SLOT, log2 as u8, 0));
        self.check(size, write, insn.has_lock_prefix());
        self.a.lea(ADDRESS, Mem::indexed(SLOT, ADDRESS, 0, 0));
        // Which bit of it.
        let from = self.a.host(bit).unwrap_or_else(|| {
            self.a.load(RCX, register(usize::from(bit)));
            RCX
        });
        self.a.set(SLOT, 8 * u32::from(size) - 1);
        self.a.extract_by(SLOT, from, SLOT);
        let i = Legacy {
            prefixes: if insn.has_lock_prefix() { &[0xf0] } else { &[] },
            wide: size == 8,
            opcode: &[0x0f, extension],
            ..Legacy::default()
        };
        let operand = Mem::at(ADDRESS, 0);
        self.a.changes(SLOT);
        self.a.legacy(&i, SLOT.0, Rm::Mem(operand));
        if write {
            self.written(operand, u32::from(size));
        }
        Ok(())
    }

    /// It is one whose word the register chooses.
    pub(super) fn is_bit_in_memory(insn: &Instruction) -> bool {
        matches!(insn.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
            && insn.op0_kind() == OpKind::Memory
            && insn.op1_kind() == OpKind::Register
    }

    /// Goes out of line unless a byte of the processor's state is zero.
    fn only_if_zero(&mut self, byte: Mem) {
        let movzx = Legacy {
            opcode: &[0x0f, 0xb6],
            ..Legacy::default()
        };
        self.a.changes(RCX);
        self.a.legacy(&movzx, RCX.0, Rm::Mem(byte));
        self.found_below();
    }

    /// CPUID, where no hypervisor wants to see it and the answer is known.
    pub(super) fn identify(&mut self) {
        self.only_if_zero(IN_GUEST);
        if self.cpu.shared {
            // It serializes (SDM Vol 3 9.3); the host's processor knows no more of it than of any other load.
            self.a.raw(&[0x0f, 0xae, 0xf0]);
        }
        self.a.call(self.stubs.cpuid);
        self.found();
    }

    /// At CPL 0, where IF is neither virtual nor protected.
    pub(super) fn clear_interrupts(&mut self) {
        self.only_if_zero(CPL);
        self.a.set_signed(RCX, !(rflags::IF as i32));
        self.a.load(SLOT, REST);
        self.a.keep(SLOT, RCX);
        self.a.store(REST, SLOT);
    }

    /// At CPL 0, where nothing waits for IF, and with the instruction it holds events off for in its block. Where a VM exit
    /// of that could tell, it has to be one that does nothing.
    pub(super) fn set_interrupts(&mut self) -> Done {
        let ops = self.source.ops;
        if ops[self.op].extra == 0 {
            return Err(ByHandler);
        }
        for byte in [CPL, INTERRUPT_WAITING, WATCHES_IF] {
            self.only_if_zero(byte);
        }
        if !self.is_nop(self.op + 1) {
            self.only_if_zero(IN_GUEST);
        }
        self.a.set_signed(RCX, !(rflags::IF as i32));
        self.a.load(SLOT, REST);
        self.a.keep(SLOT, RCX);
        self.a.lea(SLOT, Mem::at(SLOT, rflags::IF as i32));
        self.a.store(REST, SLOT);
        Ok(())
    }

    /// The operation at this place of the block is a NOP.
    fn is_nop(&self, place: usize) -> bool {
        let Some(op) = self.source.ops.get(place) else {
            return false;
        };
        let (from, length) = (usize::from(op.offset), usize::from(op.length));
        let bytes = self.source.bytes.get(from..from + length);
        bytes.is_some_and(|b| {
            Decoder::new(64, b, DecoderOptions::NONE)
                .decode()
                .mnemonic()
                == M::Nop
        })
    }

    /// At CPL 0.
    pub(super) fn swap_gs(&mut self) {
        const BASE: Mem =
            segments(sreg::GS * size_of::<SegmentRegister>() + offset_of!(SegmentRegister, base));
        self.only_if_zero(CPL);
        self.a.load(RCX, KERNEL_GS_BASE);
        self.a.load(SLOT, BASE);
        self.a.store(KERNEL_GS_BASE, SLOT);
        self.a.store(BASE, RCX);
        self.a.store(segment_base(sreg::GS), RCX);
    }

    /// CMPXCHG16B, which is atomic here also without LOCK, as in its handler.
    pub(super) fn compare_pair(&mut self, insn: &Instruction) -> Done {
        self.address(insn)?;
        self.check(16, true, true);
        let operand = Mem::at(ADDRESS, 0);
        self.a.lea(ADDRESS, Mem::indexed(SLOT, ADDRESS, 0, 0));
        self.a.mov(RCX, GUEST_RCX);
        let i = Legacy {
            prefixes: &[0xf0],
            wide: true,
            opcode: &[0x0f, 0xc7],
            ..Legacy::default()
        };
        self.a.legacy(&i, 1, Rm::Mem(operand));
        self.written(operand, 16);
        Ok(())
    }

    /// It is a segment, control or debug register.
    pub(super) fn is_special(r: Register) -> bool {
        r.is_segment_register() || r.is_cr() || r.is_dr()
    }

    /// MOV from a segment or control register to a general one.
    pub(super) fn read_special(&mut self, insn: &Instruction) -> Done {
        let (to, from) = (insn.op0_register(), insn.op1_register());
        if !(to.is_gpr32() || to.is_gpr64()) {
            return Err(ByHandler);
        }
        let control = match from {
            Register::CR0 => offset_of!(Cpu, cr0),
            Register::CR2 => offset_of!(Cpu, cr2),
            Register::CR3 => offset_of!(Cpu, cr3),
            Register::CR4 => offset_of!(Cpu, cr4),
            _ if from.is_segment_register() => {
                let at = from.number() * size_of::<SegmentRegister>();
                let movzx = Legacy {
                    opcode: &[0x0f, 0xb7],
                    ..Legacy::default()
                };
                let selector = segments(at + offset_of!(SegmentRegister, selector));
                self.a.changes(RCX);
                self.a.legacy(&movzx, RCX.0, Rm::Mem(selector));
                self.write_general(to);
                return Ok(());
            }
            _ => return Err(ByHandler),
        };
        self.only_if_zero(CPL);
        if from != Register::CR2 {
            // A hypervisor may want to see it, or show another one.
            self.only_if_zero(IN_GUEST);
        }
        self.a.load(RCX, field(control));
        self.write_general(to);
        Ok(())
    }

    /// Moves [`RCX`] to a guest register.
    fn write_general(&mut self, to: Register) {
        let number = to.full_register().number() as u8;
        match self.a.host(number) {
            Some(r) => self.a.mov(r, RCX),
            None => self.a.store(register(usize::from(number)), RCX),
        }
    }

    /// Where nobody else waits for the host's processor, nor a hypervisor for the guest's.
    pub(super) fn pause(&mut self) -> Done {
        if self.cpu.shared {
            return Err(ByHandler);
        }
        self.only_if_zero(IN_GUEST);
        Ok(())
    }
}
