//! Instructions that go on behind themselves.

use iced_x86::{Decoder, Instruction, Mnemonic as M, OpKind, Register, RflagsBits};

use super::{ByHandler, Done, Translator};
use crate::asm::{Legacy, Mem, Reg, Rm};
use crate::layout::{ADDRESS, RCX, REST, RSP, SLOT, register, scratch};

impl Translator<'_> {
    pub(super) fn plain(
        &mut self,
        insn: &Instruction,
        bytes: &[u8],
        offsets: &iced_x86::ConstantOffsets,
    ) -> Done {
        match insn.mnemonic() {
            // Prefetches and the NOPs that they are.
            M::Nop
            | M::Reservednop
            | M::Endbr64
            | M::Endbr32
            | M::Prefetchw
            | M::Prefetchnta
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2 => Ok(()),
            M::Lfence
            | M::Sfence
            | M::Mfence
            | M::Clc
            | M::Stc
            | M::Cmc
            | M::Lahf
            | M::Sahf
            | M::Cbw
            | M::Cwde
            | M::Cdqe
            | M::Cwd
            | M::Cdq
            | M::Cqo => {
                self.a.raw(bytes);
                Ok(())
            }
            M::Push => self.push(insn),
            M::Pop => self.pop(insn),
            M::Leave => {
                if insn.code() != iced_x86::Code::Leaveq {
                    return Err(ByHandler);
                }
                let rbp = Reg(5);
                self.a.mov(ADDRESS, rbp);
                self.check(8, false, false);
                self.a.load(RCX, Mem::indexed(SLOT, ADDRESS, 0, 0));
                self.a.lea(RSP, Mem::at(rbp, 8));
                self.a.mov(rbp, RCX);
                Ok(())
            }
            M::Lea => self.lea(insn),
            M::Div | M::Idiv => self.divide(insn),
            M::Pushfq => self.push_flags(insn),
            M::Cld | M::Std => {
                self.direction(insn.mnemonic() == M::Std);
                Ok(())
            }
            M::Salc | M::Pushf | M::Pushfd => Err(ByHandler),
            _ if insn.is_string_instruction() => self.string(insn, bytes),
            M::Cli => {
                self.clear_interrupts();
                Ok(())
            }
            M::Cpuid => {
                self.identify();
                Ok(())
            }
            M::Sti => self.set_interrupts(),
            M::Swapgs => {
                self.swap_gs();
                Ok(())
            }
            M::Pause => self.pause(),
            M::Cmpxchg16b => self.compare_pair(insn),
            M::Mov if Self::is_special(insn.op1_register()) => self.read_special(insn),
            _ if Self::is_bit_in_memory(insn) => self.bit_in_memory(insn),
            _ => self.written_again(insn, bytes, offsets, None),
        }
    }

    pub(super) fn push(&mut self, insn: &Instruction) -> Done {
        if insn.stack_pointer_increment() != -8 {
            return Err(ByHandler);
        }
        let memory = insn.op0_kind() == OpKind::Memory;
        if memory {
            self.address(insn)?;
            self.check(8, false, false);
            self.a.load(RCX, Mem::indexed(SLOT, ADDRESS, 0, 0));
            self.a.store(scratch(0), RCX);
        } else if insn.op0_kind() == OpKind::Register && !insn.op0_register().is_gpr64() {
            return Err(ByHandler);
        }
        let to = self.on_stack(-8, true);
        if memory {
            self.a.load(RCX, scratch(0));
            self.a.store(to, RCX);
        } else if insn.op0_kind() == OpKind::Register {
            let guest = insn.op0_register().number() as u8;
            match self.a.host(guest) {
                Some(r) => self.a.store(to, r),
                None => {
                    self.a.load(RCX, register(usize::from(guest)));
                    self.a.store(to, RCX);
                }
            }
        } else {
            let value = i32::try_from(insn.immediate(0) as i64).map_err(|_| ByHandler)?;
            self.a.set_signed(RCX, value);
            self.a.store(to, RCX);
        }
        self.a.lea(RSP, Mem::at(RSP, -8));
        self.written(to, 8);
        Ok(())
    }

    pub(super) fn pop(&mut self, insn: &Instruction) -> Done {
        if insn.op0_kind() != OpKind::Register || !insn.op0_register().is_gpr64() {
            return Err(ByHandler);
        }
        let guest = insn.op0_register().number() as u8;
        let from = self.on_stack(0, false);
        let to = self.a.host(guest);
        // POP RSP leaves what was popped.
        let at = to.filter(|r| *r != RSP).unwrap_or(RCX);
        self.a.load(at, from);
        self.a.lea(RSP, Mem::at(RSP, 8));
        match to {
            None => self.a.store(register(usize::from(guest)), RCX),
            Some(RSP) => self.a.mov(RSP, RCX),
            Some(_) => {}
        }
        Ok(())
    }

    pub(super) fn lea(&mut self, insn: &Instruction) -> Done {
        let to = insn.op0_register();
        let size = to.size();
        if size < 4 || !to.is_gpr() {
            return Err(ByHandler);
        }
        let flat = insn.segment_prefix() == Register::None
            || !matches!(insn.segment_prefix(), Register::FS | Register::GS);
        if !flat {
            // A segment's base is no part of it.
            return Err(ByHandler);
        }
        let guest = to.full_register().number() as u8;
        let target = self.a.host(guest).unwrap_or(RCX);
        self.address_into(insn, target, size == 8)?;
        if self.a.host(guest).is_none() {
            self.a.store(register(usize::from(guest)), RCX);
        }
        Ok(())
    }

    /// DIV and IDIV whose dividend is no wider than the quotient: they cannot overflow. The host's change the flags,
    /// ours do not.
    fn divide(&mut self, insn: &Instruction) -> Done {
        let (rax, rdx) = (Reg(0), Reg(2));
        let signed = insn.mnemonic() == M::Idiv;
        let wide = match insn.op0_kind() {
            OpKind::Register => insn.op0_register().size(),
            _ => insn.memory_size().size(),
        };
        let wide = match wide {
            8 => true,
            4 => false,
            _ => return Err(ByHandler),
        };
        // The divisor, extended to 64 bits.
        let divisor = if insn.op0_kind() == OpKind::Register {
            self.read_general(SLOT, insn.op0_register().full_register().number() as u8);
            Rm::Reg(SLOT)
        } else {
            self.address(insn)?;
            self.check(if wide { 8 } else { 4 }, false, false);
            Rm::Mem(Mem::indexed(SLOT, ADDRESS, 0, 0))
        };
        match (wide, signed, divisor) {
            (true, _, Rm::Mem(m)) => self.a.load(SLOT, m),
            (true, _, Rm::Reg(_)) => {}
            (false, true, from) => self.a.sign_extend(SLOT, from),
            (false, false, from) => self.a.move_32(SLOT, from),
        }
        self.a.mov(RCX, SLOT);
        self.refuse_zero();
        if signed {
            // Not -1, which the least number overflows with.
            self.a.lea(RCX, Mem::at(SLOT, 1));
            self.refuse_zero();
            // RDX is RAX's sign.
            self.a.set(RCX, 63);
            if wide {
                self.a.sarx(ADDRESS, rax, RCX);
                self.a.mov(RCX, rdx);
            } else {
                self.a.sign_extend(ADDRESS, Rm::Reg(rax));
                self.a.sarx(ADDRESS, ADDRESS, RCX);
                self.a.sign_extend(RCX, Rm::Reg(rdx));
            }
            self.a.not(RCX);
            self.a.lea(RCX, Mem::indexed(RCX, ADDRESS, 0, 1));
        } else if wide {
            self.a.mov(RCX, rdx);
        } else {
            self.a.move_32(RCX, Rm::Reg(rdx));
        }
        self.found();
        let i = Legacy {
            wide,
            opcode: &[0xf7],
            ..Legacy::default()
        };
        let divide = |t: &mut Self| t.a.legacy(&i, if signed { 7 } else { 6 }, Rm::Reg(SLOT));
        if self.flags_are_lost() {
            divide(self);
            return Ok(());
        }
        self.a.mov(ADDRESS, rax);
        self.a.flags_to_rax();
        self.a.mov(RCX, rax);
        self.a.mov(rax, ADDRESS);
        divide(self);
        self.a.mov(ADDRESS, rax);
        self.a.mov(rax, RCX);
        self.a.flags_from_rax();
        self.a.mov(rax, ADDRESS);
        Ok(())
    }

    /// Whether what follows in the block writes all arithmetic flags before anything can see what they are now: an
    /// instruction that reads them, a fault, the end of the block.
    fn flags_are_lost(&self) -> bool {
        const ALL: u32 = RflagsBits::OF
            | RflagsBits::SF
            | RflagsBits::ZF
            | RflagsBits::AF
            | RflagsBits::PF
            | RflagsBits::CF;
        let ops = self.source.ops.get(self.op + 1..).unwrap_or_default();
        let Some(from) = ops.first().map(|o| usize::from(o.offset)) else {
            return false;
        };
        let bytes = self.source.bytes.get(from..).unwrap_or_default();
        let options = self.cpu.vectors.decoder_options();
        for insn in &mut Decoder::new(64, bytes, options) {
            if insn.rflags_read() & ALL != 0 || !is_plain_computation(&insn) {
                return false;
            }
            if insn.rflags_modified() & ALL == ALL {
                return true;
            }
        }
        false
    }

    /// PUSHFQ: RF and VM read as zero in the image (SDM Vol 2 "PUSHF").
    fn push_flags(&mut self, insn: &Instruction) -> Done {
        const UNSEEN: i32 = (x86defs::rflags::RF | x86defs::rflags::VM) as i32;
        if insn.stack_pointer_increment() != -8 {
            return Err(ByHandler);
        }
        let rax = Reg(0);
        self.a.lea(ADDRESS, Mem::at(RSP, -8));
        self.check(8, true, false);
        self.a.lea(ADDRESS, Mem::indexed(SLOT, ADDRESS, 0, 0));
        self.a.set_signed(RCX, !UNSEEN);
        self.a.load(SLOT, REST);
        self.a.keep(SLOT, RCX);
        self.a.store(scratch(0), SLOT);
        self.a.mov(SLOT, rax);
        self.a.flags_to_rax();
        // MOVZX ECX, AH; MOVZX EAX, AL: of the flags' byte bit 1 is set, as it is in the rest.
        self.a.raw(&[0x0f, 0xb6, 0xcc, 0x0f, 0xb6, 0xc0]);
        self.a.rorx(rax, rax, 64 - 11);
        self.a.lea(RCX, Mem::indexed(RCX, rax, 0, -2));
        self.a.mov(rax, SLOT);
        self.a.load(SLOT, scratch(0));
        self.a.lea(SLOT, Mem::indexed(SLOT, RCX, 0, 0));
        let to = Mem::at(ADDRESS, 0);
        self.a.store(to, SLOT);
        self.a.lea(RSP, Mem::at(RSP, -8));
        self.written(to, 8);
        Ok(())
    }
}

/// It computes with general registers of 32 or 64 bits and immediates, and cannot fault.
fn is_plain_computation(insn: &Instruction) -> bool {
    let known = matches!(
        insn.mnemonic(),
        M::Mov
            | M::Movsxd
            | M::Add
            | M::Sub
            | M::And
            | M::Or
            | M::Xor
            | M::Neg
            | M::Not
            | M::Inc
            | M::Dec
            | M::Cmp
            | M::Test
    );
    let operands = (0..insn.op_count()).all(|n| match insn.op_kind(n) {
        OpKind::Register => {
            let r = insn.op_register(n);
            r.is_gpr32() || r.is_gpr64()
        }
        OpKind::Memory => false,
        _ => true,
    });
    known && operands && !insn.has_lock_prefix()
}
