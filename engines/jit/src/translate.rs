//! One block: its instructions with host registers for the guest's, checks before memory, ways out.
//!
//! Between two guest instructions the host's arithmetic flags are the guest's. So whatever is added leaves them alone:
//! LEA and JRCXZ instead of ADD and CMP.
//!
//! An instruction that cannot be written again has its handler called. So has one whose access misses the TLB, whole,
//! from the *cold* code behind the block; it goes on behind the instruction then. Nothing of an instruction is done
//! before its checks, so a handler always begins it anew.

use iced_x86::{
    Decoder, Instruction, InstructionInfoFactory, Mnemonic as M, OpAccess, OpKind, Register,
};
use softcpu::code::{Op, Source};
use softcpu::cpu::{Cpu, RIP, sreg};
use softcpu::insn::table::{self, Strategy};

use crate::Record;
use crate::asm::{Asm, Legacy, Mem, Reg, Rm, Vex};
use crate::fields::{self, Encoding, Field, General};
use crate::layout::{
    ADDRESS, BUDGET, GUEST_RCX, PAGE, PLACE, POLL, RCX, READ, RSP, SLOT, WRITE, alignment, host,
    mask, register, scratch, segment_base,
};
use crate::stubs::Stubs;

/// A way out that can be joined to a block of the same page.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// Offset of the jump's distance in the code.
    pub jump: usize,
}

/// A translated block.
pub struct Translation {
    /// The code; it is entered at its first byte.
    pub code: Vec<u8>,
    /// What its handlers are called with.
    pub records: Vec<Record>,
    /// Its ways out.
    pub exits: Vec<Exit>,
    /// Offset of the code that leaves before the block.
    pub leave: usize,
}

/// Where numbers of records and ways go on.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    /// First record.
    pub record: u32,
    /// First way.
    pub way: u32,
}

/// Out of line: the handler of a record, then back.
struct Cold {
    /// Offset of the distance of the jump that leads here.
    from: usize,
    /// Number of the record.
    record: u32,
    /// Where to go on; `None` if the handler ends the block.
    back: Option<usize>,
}

struct Translator<'a> {
    a: Asm,
    stubs: &'a Stubs,
    source: &'a Source<'a>,
    cpu: &'a Cpu,
    info: InstructionInfoFactory,
    numbers: Numbers,
    records: Vec<Record>,
    cold: Vec<Cold>,
    exits: Vec<Exit>,
    /// Jumps to the code of an exit that is not joined: offset of the distance, offset in the page, number.
    ways: Vec<(usize, i64, u32)>,
    /// Misses of the instruction being translated.
    misses: Vec<usize>,
    record: u32,
}

/// What is done about a block of another page that is not at hand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Miss {
    /// The code is left.
    Boundary,
    /// The instruction is left to its handler, which checks the address.
    Handler,
}

/// Cannot be translated by itself: the handler does it.
struct ByHandler;
type Done = Result<(), ByHandler>;

/// Translates a block to run at `origin`.
pub fn translate(
    cpu: &Cpu,
    source: &Source,
    stubs: &Stubs,
    origin: u64,
    numbers: Numbers,
) -> Option<Translation> {
    let mut t = Translator {
        a: Asm::new(origin),
        stubs,
        source,
        cpu,
        info: InstructionInfoFactory::new(),
        numbers,
        records: Vec::new(),
        cold: Vec::new(),
        exits: Vec::new(),
        ways: Vec::new(),
        misses: Vec::new(),
        record: 0,
    };
    t.block()?;
    let leave = t.out_of_line();
    Some(Translation {
        code: t.a.code,
        records: t.records,
        exits: t.exits,
        leave,
    })
}

impl Translator<'_> {
    /// Offset in its page of what is `at` bytes behind the block's start.
    fn in_page(&self, at: i64) -> i64 {
        (self.source.start.0 & 0xfff) as i64 + at
    }

    fn block(&mut self) -> Option<()> {
        let ops = self.source.ops;
        let pseudo = ops.last().is_some_and(|o| o.length == 0 && ops.len() > 1);
        let instructions = ops.len() - usize::from(pseudo);
        self.prologue(instructions as i32);
        let mut decoder =
            Decoder::with_ip(64, self.source.bytes, 0, self.cpu.vectors.decoder_options());
        let mut insn = Instruction::default();
        for op in &ops[..instructions] {
            if decoder.position() != usize::from(op.offset) || !decoder.can_decode() {
                // The bytes are not those the block was decoded from.
                return None;
            }
            decoder.decode_out(&mut insn);
            if insn.len() != usize::from(op.length) {
                return None;
            }
            let offsets = decoder.get_constant_offsets(&insn);
            let last = usize::from(op.offset) + usize::from(op.length) == self.source.bytes.len()
                && !pseudo;
            self.instruction(op, &insn, &offsets, last);
        }
        if pseudo {
            let end = self.source.bytes.len() as i64;
            self.go_to(end, Miss::Boundary);
        }
        Some(())
    }

    /// Leaves if anything but this block is to be done; else takes its instructions off the budget.
    fn prologue(&mut self, instructions: i32) {
        let a = &mut self.a;
        a.load(SLOT, BUDGET);
        a.load(ADDRESS, POLL);
        // Negative if the budget is zero or less, and never zero: all bits as a mask always find something.
        a.lea(RCX, Mem::indexed(SLOT, SLOT, 0, -1));
        a.extract(RCX, RCX, Mem::at(ADDRESS, 0));
        let go_on = a.if_zero();
        let leave = a.jump(0);
        a.land(go_on);
        a.lea(SLOT, Mem::at(SLOT, -instructions));
        a.store(BUDGET, SLOT);
        let start = self.in_page(0);
        self.ways.push((leave, start, u32::MAX));
    }

    fn instruction(
        &mut self,
        op: &Op,
        insn: &Instruction,
        offsets: &iced_x86::ConstantOffsets,
        last: bool,
    ) {
        let start = self.a.here();
        let native = table::row(insn.mnemonic()).is_some_and(|r| r.strategy == Strategy::Native)
            && self.cpu.vectors.has(insn.code());
        self.misses.clear();
        self.record = self.numbers.record + self.records.len() as u32;
        let exits = (self.exits.len(), self.ways.len());
        let at = usize::from(op.offset);
        let bytes = &self.source.bytes[at..at + usize::from(op.length)];
        let done = if !native {
            Err(ByHandler)
        } else if last {
            self.transfer(op, insn, bytes)
        } else {
            self.plain(insn, bytes, offsets)
        };
        let mut needs_record = !self.misses.is_empty();
        if done.is_err() {
            self.a.code.truncate(start);
            self.exits.truncate(exits.0);
            self.ways.truncate(exits.1);
            self.misses.clear();
            needs_record = true;
            self.a.set(RCX, self.record);
            self.a.call(self.stubs.helper);
        }
        let back = (!last).then(|| self.a.here());
        for from in std::mem::take(&mut self.misses) {
            self.cold.push(Cold {
                from,
                record: self.record,
                back,
            });
        }
        if needs_record {
            let flags = insn.rflags_read() != 0 || insn.rflags_modified() != 0;
            let vector = table::row(insn.mnemonic()).is_none();
            self.records.push(Record {
                op: *op,
                start: self.source.start.0,
                bytes: self.source.bytes.len() as u32,
                block: self.source.index,
                flags: flags || !(native || vector),
                last,
            });
        }
    }

    /// Gives the offset of the code that leaves before the block.
    fn out_of_line(&mut self) -> usize {
        let mut leave = 0;
        for cold in std::mem::take(&mut self.cold) {
            let here = self.a.here();
            self.a.aim(cold.from, here);
            self.a.set(RCX, cold.record);
            self.a.call(self.stubs.helper);
            if let Some(back) = cold.back {
                let to = self.a.origin + back as u64;
                self.a.jump(to);
            }
        }
        for (from, offset, way) in std::mem::take(&mut self.ways) {
            let here = self.a.here();
            self.a.aim(from, here);
            self.a.set_signed(ADDRESS, offset as i32);
            if way == u32::MAX {
                leave = here;
                self.a.jump(self.stubs.boundary);
            } else {
                self.a.set(SLOT, way);
                self.a.jump(self.stubs.way);
            }
        }
        leave
    }

    // --- Where it goes on.

    /// Goes on `at` bytes from the block's start.
    fn go_to(&mut self, at: i64, miss: Miss) {
        let offset = self.in_page(at);
        if (0..4096).contains(&offset) {
            let jump = self.a.jump(0);
            self.way(jump, offset, at);
        } else {
            self.to_other_page(offset, miss);
        }
    }

    /// Goes on there if a condition of the flags holds.
    fn go_if(&mut self, condition: u8, at: i64) {
        let offset = self.in_page(at);
        if (0..4096).contains(&offset) {
            let jump = self.a.jump_if(condition, 0);
            self.way(jump, offset, at);
        } else {
            // Over it, if the condition does not hold.
            let over = self.a.jump_if(condition ^ 1, 0);
            self.to_other_page(offset, Miss::Handler);
            let here = self.a.here();
            self.a.aim(over, here);
        }
    }

    fn way(&mut self, jump: usize, offset: i64, at: i64) {
        if at == 0 {
            // This block again.
            return self.a.aim(jump, 0);
        }
        let number = self.numbers.way + self.exits.len() as u32;
        self.exits.push(Exit { jump });
        self.ways.push((jump, offset, number));
    }

    fn to_other_page(&mut self, offset: i64, miss: Miss) {
        self.look_up(offset, miss);
        self.a.store(PAGE, ADDRESS);
        self.a.jump_reg(SLOT);
    }

    /// Looks for the block at an offset from the start of the page.
    fn look_up(&mut self, offset: i64, miss: Miss) {
        self.a.load(ADDRESS, PAGE);
        self.a.lea(ADDRESS, Mem::at(ADDRESS, offset as i32));
        self.a.call(self.stubs.lookup);
        if miss == Miss::Handler {
            return self.found();
        }
        let found = self.a.if_zero();
        self.a.jump(self.stubs.boundary_at);
        self.a.land(found);
    }

    /// The instruction that ends the block.
    fn transfer(&mut self, op: &Op, insn: &Instruction, bytes: &[u8]) -> Done {
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
                    self.look_up(offset, Miss::Handler);
                    self.call_found(next);
                }
            }
            M::Jmp | M::Call if insn.is_jmp_near_indirect() || insn.is_call_near_indirect() => {
                return self.indirect(op, insn, next);
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
                    .skip(offset_bytes(bytes))
                    .next()
                    .map_or(0, |b| b & 15);
                self.go_if(condition, near(insn));
                self.go_to(next, Miss::Handler);
            }
            _ => return Err(ByHandler),
        }
        Ok(())
    }

    /// Pushes the address `next` bytes behind the block's start.
    fn push_return(&mut self, next: i64) {
        self.a.lea(ADDRESS, Mem::at(RSP, -8));
        self.check(8, true, None);
        self.a.load(RCX, PAGE);
        self.a.lea(RCX, Mem::at(RCX, self.in_page(next) as i32));
        self.a.store(Mem::indexed(SLOT, ADDRESS, 0, 0), RCX);
        self.a.lea(RSP, Mem::at(RSP, -8));
    }

    /// Calls what a look-up has found.
    fn call_found(&mut self, next: i64) {
        self.a.store(scratch(0), ADDRESS);
        self.a.store(scratch(1), SLOT);
        self.push_return(next);
        self.a.load(RCX, scratch(0));
        self.a.store(PAGE, RCX);
        self.a.through(false, scratch(1));
    }

    fn indirect(&mut self, op: &Op, insn: &Instruction, next: i64) -> Done {
        if insn.op0_kind() == OpKind::Register {
            if insn.op0_register().size() != 8 {
                return Err(ByHandler);
            }
            self.read_general(ADDRESS, op.dst);
        } else {
            if insn.memory_size().size() != 8 {
                return Err(ByHandler);
            }
            self.address(insn)?;
            self.check(8, false, None);
            self.a.load(ADDRESS, Mem::indexed(SLOT, ADDRESS, 0, 0));
        }
        self.a.call(self.stubs.lookup);
        self.found();
        if insn.mnemonic() == M::Jmp {
            self.a.store(PAGE, ADDRESS);
            self.a.jump_reg(SLOT);
            return Ok(());
        }
        self.call_found(next);
        Ok(())
    }

    fn ret(&mut self, insn: &Instruction) -> Done {
        use iced_x86::Code as C;
        let release = match insn.code() {
            C::Retnq => 8,
            C::Retnq_imm16 => 8 + i32::from(insn.immediate16()),
            _ => return Err(ByHandler),
        };
        self.a.mov(ADDRESS, RSP);
        self.check(8, false, None);
        self.a.load(ADDRESS, Mem::indexed(SLOT, ADDRESS, 0, 0));
        self.a.call(self.stubs.lookup);
        self.found();
        self.a.lea(RSP, Mem::at(RSP, release));
        self.a.store(PAGE, ADDRESS);
        self.a.jump_reg(SLOT);
        Ok(())
    }

    /// Goes out of line unless RCX is zero.
    fn found(&mut self) {
        let found = self.a.if_zero();
        let miss = self.a.jump(0);
        self.a.land(found);
        self.misses.push(miss);
    }

    // --- Instructions that go on.

    fn plain(
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
                self.check(8, false, None);
                self.a.load(RCX, Mem::indexed(SLOT, ADDRESS, 0, 0));
                self.a.lea(RSP, Mem::at(rbp, 8));
                self.a.mov(rbp, RCX);
                Ok(())
            }
            M::Lea => self.lea(insn),
            M::Div
            | M::Idiv
            | M::Cld
            | M::Std
            | M::Salc
            | M::Pushf
            | M::Pushfd
            | M::Pushfq
            | M::Movnti => Err(ByHandler),
            M::Bt | M::Bts | M::Btr | M::Btc
                if insn.op0_kind() == OpKind::Memory && insn.op1_kind() == OpKind::Register =>
            {
                // The register's upper bits choose the word.
                Err(ByHandler)
            }
            _ => self.written_again(insn, bytes, offsets),
        }
    }

    fn push(&mut self, insn: &Instruction) -> Done {
        if insn.stack_pointer_increment() != -8 {
            return Err(ByHandler);
        }
        let memory = insn.op0_kind() == OpKind::Memory;
        if memory {
            self.address(insn)?;
            self.check(8, false, None);
            self.a.load(RCX, Mem::indexed(SLOT, ADDRESS, 0, 0));
            self.a.store(scratch(0), RCX);
        } else if insn.op0_kind() == OpKind::Register && !insn.op0_register().is_gpr64() {
            return Err(ByHandler);
        }
        self.a.lea(ADDRESS, Mem::at(RSP, -8));
        self.check(8, true, None);
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

    fn pop(&mut self, insn: &Instruction) -> Done {
        if insn.op0_kind() != OpKind::Register || !insn.op0_register().is_gpr64() {
            return Err(ByHandler);
        }
        let guest = insn.op0_register().number() as u8;
        self.a.mov(ADDRESS, RSP);
        self.check(8, false, None);
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

    fn lea(&mut self, insn: &Instruction) -> Done {
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

    fn move_32(&mut self, to: Reg, from: Reg) {
        let i = Legacy {
            opcode: &[0x8b],
            ..Legacy::default()
        };
        self.a.legacy(&i, to.0, Rm::Reg(from));
    }

    /// The same instruction with other operands.
    fn written_again(
        &mut self,
        insn: &Instruction,
        bytes: &[u8],
        offsets: &iced_x86::ConstantOffsets,
    ) -> Done {
        let access: [OpAccess; 5] = {
            let info = self.info.info(insn);
            std::array::from_fn(|i| info.op_access(i as u32))
        };
        let e = fields::read(insn, bytes, offsets, |i| {
            access
                .get(i as usize)
                .copied()
                .unwrap_or(OpAccess::ReadWrite)
        })
        .ok_or(ByHandler)?;
        let mut free = vec![RCX];
        if e.reads_cl {
            free.clear();
        }
        let mut rm = None;
        if let Field::Memory { size, written } = e.rm {
            if size == 0 || size > 8 {
                return Err(ByHandler);
            }
            self.address(insn)?;
            let locked = e.locked() || (insn.mnemonic() == M::Xchg);
            let aligned = (locked && size > 1).then(|| size.trailing_zeros() as u8);
            self.check(size, written, aligned);
            // AH to BH go without REX, so not with the registers an address is made of.
            if self.any_high(&e) {
                self.a.lea(RCX, Mem::indexed(SLOT, ADDRESS, 0, 0));
                free.clear();
                free.push(SLOT);
                rm = Some(Rm::Mem(Mem::at(RCX, 0)));
                if e.reads_cl {
                    return Err(ByHandler);
                }
            } else {
                rm = Some(Rm::Mem(Mem::indexed(SLOT, ADDRESS, 0, 0)));
            }
        } else {
            free.extend([SLOT, ADDRESS]);
        }
        if e.reads_cl {
            self.a.mov(RCX, GUEST_RCX);
        }
        let mut stores = Vec::new();
        let mut fold = rm.is_some() && !self.any_high(&e);
        let mut place = |t: &mut Self, field: Field| -> Result<u8, ByHandler> {
            match field {
                Field::Fixed(n) => Ok(n),
                Field::Memory { .. } => Err(ByHandler),
                Field::General(g) => {
                    if g.high {
                        // CH is not where it was.
                        return if g.number == 1 {
                            Err(ByHandler)
                        } else {
                            Ok(g.number + 4)
                        };
                    }
                    if let Some(r) = host(g.number) {
                        return Ok(r.0);
                    }
                    if free.is_empty() && fold {
                        // One register for the address sets the other free.
                        t.a.lea(ADDRESS, Mem::indexed(SLOT, ADDRESS, 0, 0));
                        rm = Some(Rm::Mem(Mem::at(ADDRESS, 0)));
                        free.push(SLOT);
                        fold = false;
                    }
                    let at = free.pop().ok_or(ByHandler)?;
                    let slot = register(usize::from(g.number));
                    if g.read {
                        t.a.load(at, slot);
                    }
                    if g.written {
                        stores.push((slot, at));
                    }
                    Ok(at.0)
                }
            }
        };
        // One register in two fields is one register.
        let same = |x: Field, y: Field| match (x, y) {
            (Field::General(x), Field::General(y)) => {
                host(x.number).is_none() && x.number == y.number && !x.high && !y.high
            }
            _ => false,
        };
        if same(e.reg, e.rm) || same(e.reg, e.vvvv) || same(e.rm, e.vvvv) {
            return Err(ByHandler);
        }
        let reg = place(self, e.reg)?;
        let vvvv = place(self, e.vvvv)?;
        let opcode_reg = match e.in_opcode {
            Some(g) => Some(place(self, Field::General(g))?),
            None => None,
        };
        let rm_reg = match e.rm {
            Field::Memory { .. } => None,
            other => Some(place(self, other)?),
        };
        let rm = match rm_reg {
            Some(r) => Rm::Reg(Reg(r)),
            None => rm.ok_or(ByHandler)?,
        };
        if self.any_high(&e) {
            let low = |n: u8, field: Field| !matches!(field, Field::General(_)) || n < 8;
            let rm_low = rm_reg.is_none_or(|r| low(r, e.rm));
            let byte = |f: Field, r: u8| match f {
                // SPL to DIL would be AH to BH.
                Field::General(General { size: 1, high, .. }) => high || r < 4,
                _ => true,
            };
            let fits = low(reg, e.reg)
                && rm_low
                && byte(e.reg, reg)
                && rm_reg.is_none_or(|r| byte(e.rm, r))
                && opcode_reg.is_none_or(|r| r < 8);
            if !fits || e.wide {
                return Err(ByHandler);
            }
        }
        let low_bytes = [e.reg, e.rm]
            .into_iter()
            .chain(e.in_opcode.map(Field::General))
            .any(|f| {
                matches!(
                    f,
                    Field::General(General {
                        size: 1,
                        high: false,
                        number: 4..=7,
                        ..
                    })
                )
            });
        self.encode(&e, reg, vvvv, opcode_reg, rm, low_bytes);
        let (at, length) = (usize::from(e.immediate.0), usize::from(e.immediate.1));
        self.a.raw(&bytes[at..at + length]);
        for (slot, from) in stores {
            self.a.store(slot, from);
        }
        Ok(())
    }

    fn encode(
        &mut self,
        e: &Encoding,
        reg: u8,
        vvvv: u8,
        opcode_reg: Option<u8>,
        rm: Rm,
        low_bytes: bool,
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
            low_bytes,
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

    fn any_high(&self, e: &Encoding) -> bool {
        let high = |f: Field| matches!(f, Field::General(General { high: true, .. }));
        high(e.reg) || high(e.rm) || e.in_opcode.is_some_and(|g| g.high)
    }

    fn read_general(&mut self, to: Reg, guest: u8) {
        match host(guest) {
            Some(r) => self.a.mov(to, r),
            None => self.a.load(to, register(usize::from(guest))),
        }
    }

    // --- Memory.

    /// Computes the linear address of the memory operand into [`ADDRESS`].
    fn address(&mut self, insn: &Instruction) -> Done {
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let displacement = insn.memory_displacement64() as i64;
        let segment = match insn.memory_segment() {
            Register::FS => Some(sreg::FS),
            Register::GS => Some(sreg::GS),
            _ => None,
        };
        if base == Register::RIP {
            let at = i32::try_from(self.in_page(displacement)).map_err(|_| ByHandler)?;
            self.a.load(ADDRESS, PAGE);
            self.a.lea(ADDRESS, Mem::at(ADDRESS, at));
        } else {
            let at = i32::try_from(displacement).map_err(|_| ByHandler)?;
            let wide = |r: Register| r == Register::None || r.is_gpr64();
            if !wide(base) || !wide(index) {
                return Err(ByHandler);
            }
            let in_host = |t: &mut Self, r: Register, spare: Reg| {
                let guest = r.number() as u8;
                host(guest).unwrap_or_else(|| {
                    t.a.load(spare, register(usize::from(guest)));
                    spare
                })
            };
            let scale = insn.memory_index_scale().trailing_zeros() as u8;
            let b = (base != Register::None).then(|| in_host(self, base, ADDRESS));
            let i = (index != Register::None).then(|| in_host(self, index, SLOT));
            match (b, i) {
                (None, None) => self.a.set_signed(ADDRESS, at),
                (Some(b), None) if at == 0 => self.a.mov(ADDRESS, b),
                (base, i) => self.a.lea(
                    ADDRESS,
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
            self.a.load(SLOT, segment_base(segment));
            self.a.lea(ADDRESS, Mem::indexed(ADDRESS, SLOT, 0, 0));
        }
        Ok(())
    }

    /// Has the access of `size` bytes at [`ADDRESS`] go out of line unless the TLB allows it; [`SLOT`] is what leads
    /// from the address to the byte then. `aligned` is log2 of what the address has to be a multiple of.
    fn check(&mut self, size: u8, write: bool, aligned: Option<u8>) {
        if let Some(log2) = aligned {
            self.a.extract(RCX, ADDRESS, alignment(log2));
            self.found();
        }
        let a = &mut self.a;
        a.extract(SLOT, ADDRESS, mask(0));
        a.load(RCX, if write { WRITE } else { READ });
        a.lea(RCX, Mem::indexed(RCX, ADDRESS, 0, i32::from(size) - 1));
        a.extract(RCX, RCX, mask(1));
        self.found();
        self.a.load(SLOT, PLACE);
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

const _: () = assert!(RIP == 16);
