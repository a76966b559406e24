//! Instructions that go on behind themselves.

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

use super::{ByHandler, Done, Translator};
use crate::asm::{Legacy, Mem, Reg, Rm};
use crate::layout::{ADDRESS, RCX, RSP, SLOT, host, register, scratch};

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
            M::Div | M::Idiv | M::Cld | M::Std | M::Salc | M::Pushf | M::Pushfd | M::Pushfq => {
                Err(ByHandler)
            }
            M::Bt | M::Bts | M::Btr | M::Btc
                if insn.op0_kind() == OpKind::Memory && insn.op1_kind() == OpKind::Register =>
            {
                // The register's upper bits choose the word.
                Err(ByHandler)
            }
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
        self.a.lea(ADDRESS, Mem::at(RSP, -8));
        self.check(8, true, false);
        let to = Mem::indexed(SLOT, ADDRESS, 0, 0);
        if memory {
            self.a.load(RCX, scratch(0));
            self.a.store(to, RCX);
        } else if insn.op0_kind() == OpKind::Register {
            let guest = insn.op0_register().number() as u8;
            match host(guest) {
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
        Ok(())
    }

    pub(super) fn pop(&mut self, insn: &Instruction) -> Done {
        if insn.op0_kind() != OpKind::Register || !insn.op0_register().is_gpr64() {
            return Err(ByHandler);
        }
        let guest = insn.op0_register().number() as u8;
        self.a.mov(ADDRESS, RSP);
        self.check(8, false, false);
        let from = Mem::indexed(SLOT, ADDRESS, 0, 0);
        let to = host(guest);
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
        self.address(insn)?;
        let guest = to.full_register().number() as u8;
        let target = host(guest).unwrap_or(RCX);
        if size == 8 {
            self.a.mov(target, ADDRESS);
        } else {
            self.move_32(target, ADDRESS);
        }
        if host(guest).is_none() {
            self.a.store(register(usize::from(guest)), RCX);
        }
        Ok(())
    }

    pub(super) fn move_32(&mut self, to: Reg, from: Reg) {
        self.load_32(to, Rm::Reg(from));
    }

    /// MOV of 32 bits, zero-extended.
    pub(super) fn load_32(&mut self, to: Reg, from: Rm) {
        let i = Legacy {
            opcode: &[0x8b],
            ..Legacy::default()
        };
        self.a.legacy(&i, to.0, from);
    }
}
