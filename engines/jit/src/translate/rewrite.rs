//! The same instruction with other operands.

use iced_x86::{Instruction, Mnemonic as M, OpAccess};

use super::window::Range;
use super::{ByHandler, Done, Translator};
use crate::asm::{Legacy, Mem, Reg, Rm, Vex};
use crate::fields::{self, Encoding, Field, General};
use crate::layout::{ADDRESS, GUEST_RCX, RCX, SLOT, register};
use softcpu::insn::Facts;

impl Translator<'_> {
    /// The same instruction with other operands. `facts` are those of a vector instruction.
    pub(super) fn written_again(
        &mut self,
        insn: &Instruction,
        bytes: &[u8],
        offsets: &iced_x86::ConstantOffsets,
        facts: Option<&Facts>,
    ) -> Done {
        let access: [OpAccess; 5] = {
            let info = self.info.info(insn);
            std::array::from_fn(|i| info.op_access(i as u32))
        };
        let access = |i: u32| {
            let access = access.get(i as usize).copied();
            access.unwrap_or(OpAccess::ReadWrite)
        };
        let mut e = fields::read(insn, bytes, offsets, access).ok_or(ByHandler)?;
        e.store_in_order(insn);
        let mut p = Placing {
            free: if e.reads_cl { vec![] } else { vec![RCX] },
            ..Placing::default()
        };
        let limits = Limits {
            size: if facts.is_some() { 32 } else { 8 },
            aligned: facts.is_some_and(|f| f.alignment > 1),
        };
        if let Field::Memory { size, written } = e.rm {
            self.operand_in_memory(insn, &e, (size, written), &limits, &mut p)?;
        } else {
            // What is last is taken first; windows stay if they can.
            let windows = p.free.iter().copied().chain([SLOT, ADDRESS]);
            let (windows, free): (Vec<Reg>, Vec<Reg>) = windows.partition(|r| self.a.keeps(*r));
            p.free = [windows, free].concat();
        }
        if e.reads_cl {
            self.a.mov(RCX, GUEST_RCX);
        }
        let reg = self.place(&e, e.reg, &mut p)?;
        let vvvv = self.place(&e, e.vvvv, &mut p)?;
        let in_opcode = match e.in_opcode {
            Some(g) => Some(self.place(&e, Field::General(g), &mut p)?),
            None => None,
        };
        let in_rm = match e.rm {
            Field::Memory { .. } => None,
            // Vector instructions that take either write less to memory.
            Field::General(g) if facts.is_none() && self.where_it_is(insn, &e, g) => {
                p.memory = Some(Rm::Mem(register(usize::from(g.number))));
                None
            }
            other => Some(self.place(&e, other, &mut p)?),
        };
        if e.any_high() && !without_rex(&e, reg, in_rm, in_opcode) {
            return Err(ByHandler);
        }
        let rm = in_rm.map(|r| Rm::Reg(Reg(r))).or(p.memory);
        let rm = rm.ok_or(ByHandler)?;
        self.encode(&e, reg, vvvv, in_opcode, rm);
        let (at, length) = (usize::from(e.immediate.0), usize::from(e.immediate.1));
        self.a.raw(&bytes[at..at + length]);
        if let (Field::General(g), None) = (e.rm, in_rm)
            && g.written
        {
            self.a.guest_changes(g.number);
        }
        for (slot, from) in p.stores {
            self.a.store(slot, from);
        }
        if let (
            Field::Memory {
                size,
                written: true,
            },
            Rm::Mem(at),
        ) = (e.rm, rm)
        {
            self.written(at, u32::from(size));
        }
        Ok(())
    }

    /// Whether the guest register of the r/m field, which is in memory, may be used there.
    fn where_it_is(&self, insn: &Instruction, e: &Encoding, g: General) -> bool {
        let other = |f: Field| !matches!(f, Field::General(o) if o.number == g.number);
        // In memory the first ones find another bit, the last one locks.
        let differs = matches!(insn.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc | M::Xchg);
        // 32 bits clear what is above them; what reads all of it would wait for fewer to arrive there.
        let clears = g.written && g.size < 8;
        let high = g.high || e.any_high();
        // A temporary holds the value for whoever reads it next, who would wait for the store.
        let changes = g.written && !e.reads_cl;
        if !e.or_memory || differs || clears || high || changes || self.a.host(g.number).is_some() {
            return false;
        }
        self.a.holder(g.number).is_none() && other(e.reg) && other(e.vvvv)
    }

    /// Computes and checks the address of an instruction's operand in memory.
    fn operand_in_memory(
        &mut self,
        insn: &Instruction,
        e: &Encoding,
        (size, written): (u8, bool),
        limits: &Limits,
        p: &mut Placing,
    ) -> Done {
        if size == 0 || size > limits.size {
            return Err(ByHandler);
        }
        let locked = e.locked() || (insn.mnemonic() == M::Xchg);
        // Operands that have to be aligned have to be so by their size.
        let aligned = size > 1 && (locked || limits.aligned);
        let range = Range {
            at: 0,
            size,
            write: written,
            aligned,
        };
        if let Some(there) = self.by_window(insn, range) {
            p.memory = Some(Rm::Mem(there));
            let other = if there.base == Some(SLOT) {
                ADDRESS
            } else {
                SLOT
            };
            p.free.insert(0, other);
            if e.any_high() {
                // As below.
                if e.reads_cl {
                    return Err(ByHandler);
                }
                self.a.lea(RCX, there);
                p.memory = Some(Rm::Mem(Mem::at(RCX, 0)));
                p.free = vec![other];
            }
            return Ok(());
        }
        self.address(insn)?;
        self.check(size, written, aligned);
        if !e.any_high() {
            p.memory = Some(Rm::Mem(Mem::indexed(SLOT, ADDRESS, 0, 0)));
            p.two_registers = true;
            return Ok(());
        }
        // AH to BH go without REX, so not with the registers an address is made of.
        if e.reads_cl {
            return Err(ByHandler);
        }
        self.a.lea(RCX, Mem::indexed(SLOT, ADDRESS, 0, 0));
        p.memory = Some(Rm::Mem(Mem::at(RCX, 0)));
        p.free = vec![SLOT];
        Ok(())
    }

    /// The host register for a field of the encoding.
    fn place(&mut self, e: &Encoding, field: Field, p: &mut Placing) -> Result<u8, ByHandler> {
        let g = match field {
            Field::Fixed(n) => return Ok(n),
            Field::Memory { .. } => return Err(ByHandler),
            Field::General(g) => g,
        };
        if g.high {
            // CH is not where it was.
            return if g.number == 1 {
                Err(ByHandler)
            } else {
                Ok(g.number + 4)
            };
        }
        if let Some(r) = self.a.host(g.number) {
            return Ok(r.0);
        }
        if let Some((_, r)) = p.placed.iter().find(|(number, _)| *number == g.number) {
            return Ok(r.0);
        }
        if p.free.is_empty() && p.two_registers {
            // One register for the address sets the other free.
            self.a.lea(ADDRESS, Mem::indexed(SLOT, ADDRESS, 0, 0));
            p.memory = Some(Rm::Mem(Mem::at(ADDRESS, 0)));
            p.free.push(SLOT);
            p.two_registers = false;
        }
        let slot = register(usize::from(g.number));
        let (read, written) = e.uses(g.number);
        let holder = self.a.holder(g.number);
        let at = match holder.and_then(|h| p.free.iter().position(|r| *r == h)) {
            Some(n) => p.free.swap_remove(n),
            None => p.free.pop().ok_or(ByHandler)?,
        };
        match holder {
            Some(h) if read => self.a.mov(at, h),
            None if read => self.a.load(at, slot),
            _ => {}
        }
        if written {
            self.a.changes(at);
        }
        if written {
            p.stores.push((slot, at));
        }
        p.placed.push((g.number, at));
        Ok(at.0)
    }

    pub(super) fn encode(
        &mut self,
        e: &Encoding,
        reg: u8,
        vvvv: u8,
        opcode_reg: Option<u8>,
        rm: Rm,
    ) {
        if let Some((map, pp, long)) = e.vex {
            let i = Vex {
                map,
                pp,
                wide: e.wide,
                long,
                vvvv,
                opcode: e.opcode[0],
            };
            return self.a.vex(&i, reg, rm);
        }
        let i = Legacy {
            prefixes: e.prefixes(),
            wide: e.wide,
            opcode: e.opcode(),
            low_bytes: low_bytes(e, reg, rm, opcode_reg),
        };
        match opcode_reg {
            Some(r) => self.a.in_opcode(&i, Reg(r)),
            None if e.modrm => self.a.legacy(&i, reg, rm),
            None => {
                // RAX and an immediate.
                self.a.raw(i.prefixes);
                if i.wide {
                    self.a.raw(&[0x48]);
                }
                self.a.raw(i.opcode);
            }
        }
    }
}

/// What an operand in memory may be.
struct Limits {
    /// Most bytes.
    size: u8,
    /// Its address has to be a multiple of its size.
    aligned: bool,
}

/// Where the operands of an instruction that is written again go.
#[derive(Default)]
struct Placing {
    /// Registers for guest registers that are in memory.
    free: Vec<Reg>,
    /// The operand in memory, if there is one.
    memory: Option<Rm>,
    /// Its address is made of two registers that could be one.
    two_registers: bool,
    /// Guest registers that are in memory and where they are for now.
    placed: Vec<(u8, Reg)>,
    /// What is to be stored behind the instruction: where to, what.
    stores: Vec<(Mem, Reg)>,
}

impl Encoding {
    /// Stores past the caches are ordinary ones: that is a hint (SDM Vol 1 10.4.6.2), and an ordinary one is seen by
    /// others in the order of the program, which what follows a store may rely on.
    fn store_in_order(&mut self, insn: &Instruction) {
        let ordinary = match insn.mnemonic() {
            // MOVAPS, MOVAPD.
            M::Movntps | M::Movntpd | M::Vmovntps | M::Vmovntpd => 0x29,
            // MOVDQA.
            M::Movntdq | M::Vmovntdq => 0x7f,
            // MOV.
            M::Movnti => {
                (self.opcode, self.opcode_bytes) = ([0x89, 0, 0], 1);
                return;
            }
            _ => return,
        };
        self.opcode[usize::from(self.opcode_bytes) - 1] = ordinary;
    }

    /// What all fields together do with a guest register.
    fn uses(&self, number: u8) -> (bool, bool) {
        let in_opcode = self.in_opcode.map(Field::General);
        let fields = [self.reg, self.rm, self.vvvv].into_iter().chain(in_opcode);
        fields.fold((false, false), |(read, written), f| match f {
            Field::General(g) if g.number == number => (read | g.read, written | g.written),
            _ => (read, written),
        })
    }
}

/// Whether an instruction with AH to BH can do without REX, with its operands in these registers.
fn without_rex(e: &Encoding, reg: u8, in_rm: Option<u8>, in_opcode: Option<u8>) -> bool {
    let low = |n: u8, field: Field| !matches!(field, Field::General(_)) || n < 8;
    let byte = |f: Field, r: u8| match f {
        // SPL to DIL would be AH to BH.
        Field::General(General { size: 1, high, .. }) => high || r < 4,
        _ => true,
    };
    !e.wide
        && low(reg, e.reg)
        && byte(e.reg, reg)
        && in_rm.is_none_or(|r| low(r, e.rm) && byte(e.rm, r))
        && in_opcode.is_none_or(|r| r < 8)
}

/// Whether it has SPL to DIL, which are AH to BH without REX, among the host's registers for its fields.
fn low_bytes(e: &Encoding, reg: u8, rm: Rm, opcode_reg: Option<u8>) -> bool {
    let in_rm = match rm {
        Rm::Reg(r) => Some(r.0),
        Rm::Mem(_) => None,
    };
    let fields = [(e.reg, Some(reg)), (e.rm, in_rm)].into_iter();
    let in_opcode = (e.in_opcode.map(Field::General)).map(|f| (f, opcode_reg));
    fields.chain(in_opcode).any(|(field, at)| {
        let byte = matches!(
            field,
            Field::General(General {
                size: 1,
                high: false,
                ..
            })
        );
        byte && matches!(at, Some(4..=7))
    })
}
