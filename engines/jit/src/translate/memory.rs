//! Addresses, and checks before memory.

use iced_x86::{Instruction, Register};
use softcpu::cpu::sreg;

use super::{ByHandler, Crossing, Done, Translator, room};
use crate::asm::{Mem, Reg};
use crate::layout::{ADDRESS, PAGE, PLACE, RCX, SLOT, mask, register, segment_base};
use crate::sites::{Access, Check, LONGEST_RIGHT, emit_right};

impl Translator<'_> {
    /// Computes the linear address of the memory operand into [`ADDRESS`].
    pub(super) fn address(&mut self, insn: &Instruction) -> Done {
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let mut displacement = insn.memory_displacement64() as i64;
        if base == Register::RIP {
            displacement = self.in_page(displacement);
        }
        let at = i32::try_from(displacement).map_err(|_| ByHandler)?;
        let scale = insn.memory_index_scale();
        let parts = (base, index, scale, insn.memory_segment());
        self.linear((ADDRESS, SLOT), parts, at)
    }

    /// Computes the address that a LEA gives into `to`, whole or the lower 32 bits of it. Changes no other but
    /// [`SLOT`].
    pub(super) fn address_into(&mut self, insn: &Instruction, to: Reg, whole: bool) -> Done {
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let displacement = insn.memory_displacement64() as i64;
        if base == Register::RIP {
            let at = i32::try_from(self.in_page(displacement)).map_err(|_| ByHandler)?;
            self.a.load(to, PAGE);
            self.a.lea_of(whole, to, Mem::at(to, at));
            return Ok(());
        }
        let at = i32::try_from(displacement).map_err(|_| ByHandler)?;
        let wide = |r: Register| r == Register::None || r.is_gpr64();
        if !wide(base) || !wide(index) {
            return Err(ByHandler);
        }
        let scale = insn.memory_index_scale().trailing_zeros() as u8;
        let (base, index) = self.base_and_index((to, SLOT), base, index);
        let from = Mem {
            base,
            index: index.map(|i| (i, scale)),
            disp: at,
            gs: false,
        };
        self.a.lea_of(whole, to, from);
        Ok(())
    }

    /// Computes a linear address into the first of two registers that are its own: base, index, scale, segment, and
    /// displacement. With RIP as its base that counts from the start of the page.
    pub(super) fn linear(
        &mut self,
        (to, other): (Reg, Reg),
        (base, index, scale, segment): (Register, Register, u32, Register),
        at: i32,
    ) -> Done {
        let segment = match segment {
            Register::FS => Some(sreg::FS),
            Register::GS => Some(sreg::GS),
            _ => None,
        };
        if base == Register::RIP {
            self.a.load(to, PAGE);
            self.a.lea(to, Mem::at(to, at));
        } else {
            let wide = |r: Register| r == Register::None || r.is_gpr64();
            if !wide(base) || !wide(index) {
                return Err(ByHandler);
            }
            let scale = scale.trailing_zeros() as u8;
            let (b, i) = self.base_and_index((to, other), base, index);
            match (b, i) {
                (None, None) => self.a.set_signed(to, at),
                (Some(b), None) if at == 0 => self.a.mov(to, b),
                (base, i) => self.a.lea(
                    to,
                    Mem {
                        base,
                        index: i.map(|i| (i, scale)),
                        disp: at,
                        gs: false,
                    },
                ),
            }
        }
        if let Some(segment) = segment {
            self.a.load(other, segment_base(segment));
            self.a.lea(to, Mem::indexed(to, other, 0, 0));
        }
        Ok(())
    }

    /// The host registers that hold a base and an index, loaded into one of two if need be.
    fn base_and_index(
        &mut self,
        (one, other): (Reg, Reg),
        base: Register,
        index: Register,
    ) -> (Option<Reg>, Option<Reg>) {
        let there = |t: &Self, r: Register| {
            let guest = r.number() as u8;
            t.a.host(guest).or_else(|| t.a.holder(guest))
        };
        let number = |r: Register| (r != Register::None).then(|| r.number() as u8);
        let mut b = number(base).and_then(|_| there(self, base));
        let mut i = number(index).and_then(|_| there(self, index));
        if let (None, Some(guest)) = (b, number(base)) {
            let to = if i == Some(one) { other } else { one };
            self.a.load(to, register(usize::from(guest)));
            b = Some(to);
        }
        if let (None, Some(guest)) = (i, number(index)) {
            let to = if b == Some(other) { one } else { other };
            self.a.load(to, register(usize::from(guest)));
            i = Some(to);
        }
        (b, i)
    }

    /// Has the access of `size` bytes at [`ADDRESS`] go out of line unless the TLB allows it; [`SLOT`] is what leads
    /// from the address to the byte then. `aligned`: the address has to be a multiple of `size`, which is a power of
    /// two.
    pub(super) fn check(&mut self, size: u8, write: bool, aligned: bool) {
        let access = Access {
            size,
            write,
            aligned,
        };
        // So that what follows is in one piece.
        if self.a.near {
            let last = self.op + 1 == self.source.ops.len();
            self.a.keep_in_reach(room(last) + LONGEST_RIGHT);
        }
        let at = self.a.here();
        emit_right(&mut self.a, access);
        self.found_below();
        self.a.load(SLOT, PLACE);
        let function = self.stubs.crossings.function(size);
        // An instruction reads one operand at most by a check.
        if let Some(function) = function.filter(|_| !write && !aligned)
            && let Some(away) = self.misses.last_mut()
        {
            let back = self.a.here();
            away.crossing = Some(Crossing { function, back });
        }
        if let Some(block) = self.joined_block() {
            self.checks.push(Check {
                at: at as u32,
                length: (self.a.here() - at) as u8,
                near: self.a.near,
                access,
                number: (block << 8 | self.op) as u32,
            });
        }
    }

    /// Goes out of line unless RCX is zero.
    pub(super) fn found(&mut self) {
        let miss = self.a.jump_unless_zero(0);
        self.misses.push(miss.into());
    }

    /// The same where RCX is less than 2^63.
    pub(super) fn found_below(&mut self) {
        let miss = self.unless_zero_below();
        self.misses.push(miss.into());
    }

    /// A jump that is rarely taken, unless RCX is zero, where it is less than 2^63.
    pub(super) fn unless_zero_below(&mut self) -> usize {
        let last = self.op + 1 == self.source.ops.len();
        let a = &mut self.a;
        if !a.near {
            return a.jump_unless_zero(0);
        }
        a.keep_in_reach(room(last));
        // One, from the sign of what is one less.
        a.lea(RCX, Mem::at(RCX, -1));
        a.extract(RCX, RCX, mask(2));
        a.rarely_if_zero()
    }

    /// Goes out of line if RCX is zero.
    pub(super) fn refuse_zero(&mut self) {
        let zero = self.a.if_zero();
        let other = self.a.jump_short();
        self.a.land(zero);
        let miss = self.a.jump(0);
        self.misses.push(miss.into());
        self.a.land(other);
    }

    pub(super) fn read_general(&mut self, to: Reg, guest: u8) {
        match self.a.host(guest) {
            Some(r) => self.a.mov(to, r),
            None => match self.a.holder(guest) {
                Some(r) => self.a.mov(to, r),
                None => self.a.load(to, register(usize::from(guest))),
            },
        }
    }
}
