//! Where a block goes on.

use iced_x86::{Instruction, Mnemonic as M, OpKind};
use softcpu::code::Op;

use super::{ByHandler, Done, Exit, Leaving, Miss, Translator};
use crate::asm::Mem;
use crate::layout::{ADDRESS, GUEST_RCX, PAGE, RCX, RSP, SLOT, scratch};
use crate::table::emit_look_up;

impl Translator<'_> {
    /// Goes on `at` bytes from the block's start.
    pub(super) fn go_to(&mut self, at: i64, miss: Miss) {
        let offset = self.in_page(at);
        if (0..4096).contains(&offset) {
            let jump = self.a.jump(0);
            self.way(jump, offset, at);
        } else {
            self.leave_page(offset, miss);
        }
    }

    /// Goes on there if a condition of the flags holds.
    pub(super) fn go_if(&mut self, condition: u8, at: i64) {
        let offset = self.in_page(at);
        if (0..4096).contains(&offset) {
            let jump = self.a.jump_if(condition, 0);
            self.way(jump, offset, at);
        } else {
            // Over it, if the condition does not hold.
            let over = self.a.jump_if(condition ^ 1, 0);
            self.leave_page(offset, Miss::Handler);
            let here = self.a.here();
            self.a.aim(over, here);
        }
    }

    pub(super) fn way(&mut self, jump: usize, offset: i64, at: i64) {
        if self.inside(jump, offset) {
            return;
        }
        if at == 0 {
            // This block again.
            return self.a.aim(jump, self.start);
        }
        let number = self.numbers.way + self.exits.len() as u32;
        self.exits.push(Exit { jump, leave: 0 });
        self.leaves(jump, offset, Leaving::By(number));
    }

    pub(super) fn leave_page(&mut self, offset: i64, miss: Miss) {
        self.look_up_in_code(offset, miss);
        self.go_there();
    }

    /// Goes to what a look-up has found.
    fn go_there(&mut self) {
        self.a.store(PAGE, ADDRESS);
        self.exchange_back();
        self.a.jump_reg(SLOT);
    }

    /// Looks for the block at an offset from the start of the page.
    pub(super) fn look_up_in_code(&mut self, offset: i64, miss: Miss) {
        self.a.load(ADDRESS, PAGE);
        self.a.lea(ADDRESS, Mem::at(ADDRESS, offset as i32));
        if miss == Miss::Handler {
            return self.look_up();
        }
        let mut leave = 0;
        emit_look_up(&mut self.a, self.stubs.search, |a| {
            let found = a.if_zero();
            leave = a.jump(0);
            a.land(found);
        });
        self.leaves(leave, offset, Leaving::Behind);
    }

    /// Looks for the block at the linear address in [`ADDRESS`]; out of line if it is not there.
    pub(super) fn look_up(&mut self) {
        let misses = &mut self.misses;
        emit_look_up(&mut self.a, self.stubs.search, |a| {
            misses.push(a.jump_unless_zero(0).into())
        });
    }

    /// The instruction that ends the block.
    pub(super) fn transfer(&mut self, op: &Op, insn: &Instruction, bytes: &[u8]) -> Done {
        let next = i64::from(op.offset) + i64::from(op.length);
        let near = |i: &Instruction| i.near_branch_target() as i64;
        let branch64 = insn.op0_kind() == OpKind::NearBranch64;
        match insn.mnemonic() {
            M::Jmp if branch64 => self.go_to(near(insn), Miss::Handler),
            M::Call if branch64 => {
                let offset = self.in_page(near(insn));
                if (0..4096).contains(&offset) {
                    self.push_return(next);
                    self.go_to(near(insn), Miss::Handler);
                } else {
                    self.look_up_in_code(offset, Miss::Handler);
                    self.call_found(next);
                }
            }
            M::Jmp | M::Call if insn.is_jmp_near_indirect() || insn.is_call_near_indirect() => {
                return self.indirect(insn, next);
            }
            M::Ret => return self.ret(insn),
            M::Jrcxz if branch64 => {
                self.a.mov(RCX, GUEST_RCX);
                let taken = self.a.if_zero();
                let over = self.a.jump(0);
                self.a.land(taken);
                self.go_to(near(insn), Miss::Handler);
                let here = self.a.here();
                self.a.aim(over, here);
                self.go_to(next, Miss::Handler);
            }
            _ if insn.is_jcc_short_or_near() && branch64 => {
                let condition = bytes
                    .iter()
                    .rev()
                    .nth(offset_bytes(bytes))
                    .map_or(0, |b| b & 15);
                self.go_if(condition, near(insn));
                self.go_to(next, Miss::Handler);
            }
            _ => return Err(ByHandler),
        }
        Ok(())
    }

    /// Pushes the address `next` bytes behind the block's start.
    pub(super) fn push_return(&mut self, next: i64) {
        let to = self.on_stack(-8, true);
        self.a.load(RCX, PAGE);
        self.a.lea(RCX, Mem::at(RCX, self.in_page(next) as i32));
        self.a.store(to, RCX);
        self.a.lea(RSP, Mem::at(RSP, -8));
        self.stack_grows();
        self.written(to, 8);
    }

    /// Calls what a look-up has found.
    pub(super) fn call_found(&mut self, next: i64) {
        self.a.store(scratch(0), ADDRESS);
        self.a.store(scratch(1), SLOT);
        self.push_return(next);
        self.a.load(RCX, scratch(0));
        self.a.store(PAGE, RCX);
        self.exchange_back();
        self.a.through(false, scratch(1));
    }

    pub(super) fn indirect(&mut self, insn: &Instruction, next: i64) -> Done {
        if insn.op0_kind() == OpKind::Register {
            if insn.op0_register().size() != 8 {
                return Err(ByHandler);
            }
            self.read_general(ADDRESS, insn.op0_register().number() as u8);
        } else {
            if insn.memory_size().size() != 8 {
                return Err(ByHandler);
            }
            self.address(insn)?;
            self.check(8, false, false);
            self.a.load(ADDRESS, Mem::indexed(SLOT, ADDRESS, 0, 0));
        }
        self.look_up();
        if insn.mnemonic() == M::Jmp {
            self.go_there();
            return Ok(());
        }
        self.call_found(next);
        Ok(())
    }

    pub(super) fn ret(&mut self, insn: &Instruction) -> Done {
        use iced_x86::Code as C;
        let release = match insn.code() {
            C::Retnq => 8,
            C::Retnq_imm16 => 8 + i32::from(insn.immediate16()),
            _ => return Err(ByHandler),
        };
        let from = self.on_stack(0, false);
        self.a.load(ADDRESS, from);
        self.look_up();
        self.a.lea(RSP, Mem::at(RSP, release));
        self.go_there();
        Ok(())
    }
}

/// How many bytes of a Jcc are its distance.
fn offset_bytes(bytes: &[u8]) -> usize {
    // 7x cb, or 0F 8x cd.
    match bytes.len() {
        n if n >= 6 && bytes[n - 6] == 0x0f => 4,
        _ => 1,
    }
}
