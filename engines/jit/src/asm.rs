//! A small assembler: the few instructions the translator writes itself, and guest instructions with other operands.

use crate::layout::{ADDRESS, RCX, SLOT, host, register};

/// A register of the host by its encoding, 0 to 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg(pub u8);

/// A memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mem {
    /// Base register.
    pub base: Option<Reg>,
    /// Index register and log2 of its scale. Never encoding 4.
    pub index: Option<(Reg, u8)>,
    /// Displacement.
    pub disp: i32,
    /// Relative to the base of GS.
    pub gs: bool,
}

impl Mem {
    /// `[base + disp]`.
    pub const fn at(base: Reg, disp: i32) -> Self {
        Self {
            base: Some(base),
            index: None,
            disp,
            gs: false,
        }
    }

    /// `[base + index * 2^scale + disp]`.
    pub const fn indexed(base: Reg, index: Reg, scale: u8, disp: i32) -> Self {
        Self {
            base: Some(base),
            index: Some((index, scale)),
            disp,
            gs: false,
        }
    }

    /// `gs:[disp]`.
    pub const fn gs(disp: i32) -> Self {
        Self {
            base: None,
            index: None,
            disp,
            gs: true,
        }
    }
}

/// What the r/m field says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rm {
    /// A register.
    Reg(Reg),
    /// Memory.
    Mem(Mem),
}

/// An instruction with legacy encoding.
#[derive(Clone, Copy, Debug, Default)]
pub struct Legacy<'a> {
    /// F0h, 66h, F2h, F3h, in the order they are written.
    pub prefixes: &'a [u8],
    /// REX.W.
    pub wide: bool,
    /// Opcode with its escape bytes.
    pub opcode: &'a [u8],
    /// A byte register 4 to 7 is SPL, BPL, SIL or DIL: there has to be a REX prefix.
    pub low_bytes: bool,
}

/// An instruction with VEX encoding.
#[derive(Clone, Copy, Debug)]
pub struct Vex {
    /// Opcode map, 1 to 3.
    pub map: u8,
    /// VEX.pp.
    pub pp: u8,
    /// VEX.W.
    pub wide: bool,
    /// VEX.L.
    pub long: bool,
    /// VEX.vvvv as a number (0 if there is none).
    pub vvvv: u8,
    /// Opcode.
    pub opcode: u8,
}

/// A place in the code that a jump's distance is still to be written to.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Short(usize);

/// Of the host's registers, which hold a guest register that is in memory, by its encoding.
pub type Held = [Option<u8>; 16];

/// Set in what stands for the place of the distance of a jump that is rarely taken: its number is in the other bits.
const RARE: usize = 1 << 40;

/// A short jump that is rarely taken, to a jump near it.
#[derive(Debug)]
struct Rare {
    /// Offset of its distance.
    from: usize,
    /// Offset of the distance of the other one, once that is written.
    at: Option<usize>,
    /// Where that leads, once it is known.
    to: Option<usize>,
}

/// Code on its way.
#[derive(Debug)]
pub struct Asm {
    /// The bytes.
    pub code: Vec<u8>,
    /// The address the first one will run at.
    pub origin: u64,
    held: Held,
    /// The host register each guest register is in, if it is in one.
    places: [Option<Reg>; 16],
    /// By number. Those that are not written yet are the last ones.
    rare: Vec<Rare>,
    /// How many are.
    landed: usize,
    /// Jumps that are rarely taken are short ones, not taken where the code goes on: the host's processor foresees them
    /// without keeping anything about them. It does so for some thousands of jumps that are taken, and a kernel has more.
    pub near: bool,
    /// One of them did not reach what it is to lead to: the code is of no use.
    pub out_of_reach: bool,
    /// Registers whose values somebody relies on, a bit each.
    kept: u16,
}

impl Asm {
    /// Nothing yet.
    pub fn new(origin: u64) -> Self {
        Self {
            code: Vec::with_capacity(1024),
            origin,
            held: [None; 16],
            places: std::array::from_fn(|guest| host(guest as u8)),
            rare: Vec::new(),
            landed: 0,
            near: true,
            out_of_reach: false,
            kept: 0,
        }
    }

    /// The host register a guest register is in, if it is in one.
    pub fn host(&self, guest: u8) -> Option<Reg> {
        self.places[usize::from(guest)]
    }

    /// Says where a guest register is from here on. Nothing is known of it.
    pub fn place(&mut self, guest: u8, at: Option<Reg>) {
        self.places[usize::from(guest)] = at;
        self.guest_changes(guest);
    }

    /// The guest register, in no host register, whose place this is.
    fn guest_in_memory(&self, at: Mem) -> Option<u8> {
        let here = |guest: &u8| at == register(usize::from(*guest));
        (0..16)
            .find(here)
            .filter(|guest| self.host(*guest).is_none())
    }

    /// The host register that holds this guest register, which is in memory.
    pub fn holder(&self, guest: u8) -> Option<Reg> {
        let at = self.held.iter().position(|h| *h == Some(guest))?;
        Some(Reg(at as u8))
    }

    /// Which registers hold which guest registers that are in memory.
    pub fn holders(&self) -> impl Iterator<Item = (Reg, u8)> + use<> {
        let held = self.held.into_iter().enumerate();
        held.filter_map(|(r, h)| h.map(|guest| (Reg(r as u8), guest)))
    }

    /// A host register has another value now.
    pub fn changes(&mut self, reg: Reg) {
        self.held[usize::from(reg.0)] = None;
        self.lose(reg);
    }

    /// A host register holds this guest register. Only the translator's own can: guest code changes the others unseen.
    fn holds(&mut self, reg: Reg, guest: Option<u8>) {
        self.lose(reg);
        let own = matches!(reg, RCX | SLOT | ADDRESS);
        self.held[usize::from(reg.0)] = guest.filter(|_| own);
    }

    /// What is known of them.
    pub fn held(&self) -> Held {
        self.held
    }

    /// Says that what was known elsewhere holds here.
    pub fn recall(&mut self, held: Held) {
        self.held = held;
    }

    fn lose(&mut self, reg: Reg) {
        self.kept &= !(1 << reg.0);
    }

    /// From here on it is noticed if a register changes.
    pub fn keep_in(&mut self, reg: Reg) {
        self.kept |= 1 << reg.0;
    }

    /// The register has not changed since [`Asm::keep_in`].
    pub fn keeps(&self, reg: Reg) -> bool {
        self.kept & 1 << reg.0 != 0
    }

    /// All of them may have.
    pub fn forget(&mut self) {
        self.held = [None; 16];
        self.kept = 0;
    }

    /// A guest register that is in memory has another value now.
    pub fn guest_changes(&mut self, guest: u8) {
        for held in &mut self.held {
            if *held == Some(guest) {
                *held = None;
            }
        }
    }

    /// Offset of the next byte.
    pub fn here(&self) -> usize {
        self.code.len()
    }

    /// Writes bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    fn rm_bits(rm: Rm) -> (u8, u8) {
        match rm {
            Rm::Reg(r) => (r.0 >> 3, 0),
            Rm::Mem(m) => (
                m.base.map_or(0, |r| r.0 >> 3),
                m.index.map_or(0, |(r, _)| r.0 >> 3),
            ),
        }
    }

    fn modrm(&mut self, reg: u8, rm: Rm) {
        let reg = (reg & 7) << 3;
        let m = match rm {
            Rm::Reg(r) => return self.code.push(0xc0 | reg | (r.0 & 7)),
            Rm::Mem(m) => m,
        };
        let Some(base) = m.base else {
            // No base: a SIB byte and 32 bits of displacement. Without SIB it would be relative to RIP.
            let index = m.index.map_or(4 << 3, |(r, s)| (r.0 & 7) << 3 | s << 6);
            self.raw(&[reg | 4, index | 5]);
            return self.raw(&m.disp.to_le_bytes());
        };
        let short = i8::try_from(m.disp).ok();
        // Encoding 5 with mode 0 means no base.
        let mode = match short {
            Some(0) if base.0 & 7 != 5 => 0,
            Some(_) => 0x40,
            None => 0x80,
        };
        match m.index {
            Some((r, s)) => self.raw(&[mode | reg | 4, s << 6 | (r.0 & 7) << 3 | (base.0 & 7)]),
            None if base.0 & 7 == 4 => self.raw(&[mode | reg | 4, 0x24]),
            None => self.code.push(mode | reg | (base.0 & 7)),
        }
        match mode {
            0 => {}
            0x40 => self.code.push(m.disp as u8),
            _ => self.raw(&m.disp.to_le_bytes()),
        }
    }

    /// Writes an instruction without its immediate.
    pub fn legacy(&mut self, i: &Legacy, reg: u8, rm: Rm) {
        if matches!(rm, Rm::Mem(Mem { gs: true, .. })) {
            self.code.push(0x65);
        }
        self.raw(i.prefixes);
        let (b, x) = Self::rm_bits(rm);
        let rex = u8::from(i.wide) << 3 | (reg >> 3 & 1) << 2 | x << 1 | b;
        if rex != 0 || i.low_bytes {
            self.code.push(0x40 | rex);
        }
        self.raw(i.opcode);
        self.modrm(reg, rm);
    }

    /// Writes an instruction whose opcode holds a register, without its immediate.
    pub fn in_opcode(&mut self, i: &Legacy, reg: Reg) {
        self.raw(i.prefixes);
        let rex = u8::from(i.wide) << 3 | reg.0 >> 3;
        if rex != 0 || i.low_bytes {
            self.code.push(0x40 | rex);
        }
        let (last, escapes) = i.opcode.split_last().expect("an opcode has a byte");
        self.raw(escapes);
        self.code.push(last & !7 | (reg.0 & 7));
    }

    /// Writes an instruction without its immediate.
    pub fn vex(&mut self, i: &Vex, reg: u8, rm: Rm) {
        if matches!(rm, Rm::Mem(Mem { gs: true, .. })) {
            self.code.push(0x65);
        }
        let (b, x) = Self::rm_bits(rm);
        let r = reg >> 3 & 1;
        let last = (!i.vvvv & 15) << 3 | u8::from(i.long) << 2 | i.pp;
        if i.map == 1 && !i.wide && b == 0 && x == 0 {
            self.raw(&[0xc5, (1 - r) << 7 | last]);
        } else {
            self.raw(&[
                0xc4,
                (1 - r) << 7 | (1 - x) << 6 | (1 - b) << 5 | i.map,
                u8::from(i.wide) << 7 | last,
            ]);
        }
        self.code.push(i.opcode);
        self.modrm(reg, rm);
    }

    fn wide(&mut self, opcode: u8, reg: Reg, rm: Rm) {
        let i = Legacy {
            wide: true,
            opcode: &[opcode],
            ..Legacy::default()
        };
        self.legacy(&i, reg.0, rm);
    }

    /// MOV of 64 bits between registers.
    pub fn mov(&mut self, to: Reg, from: Reg) {
        if to != from {
            self.wide(0x8b, to, Rm::Reg(from));
            self.holds(to, self.held[usize::from(from.0)]);
        }
    }

    /// MOV of 64 bits from memory.
    pub fn load(&mut self, to: Reg, from: Mem) {
        self.raw_load(to, from);
        self.holds(to, self.guest_in_memory(from));
    }

    /// MOV of 64 bits to memory.
    pub fn store(&mut self, to: Mem, from: Reg) {
        self.raw_store(to, from);
        if let Some(guest) = self.guest_in_memory(to) {
            self.guest_changes(guest);
            self.holds(from, Some(guest));
        }
    }

    /// MOV of 64 bits from memory to a register that is not the translator's own; what is known stays known.
    pub fn raw_load(&mut self, to: Reg, from: Mem) {
        self.wide(0x8b, to, Rm::Mem(from));
    }

    /// MOV of 64 bits to memory; what is known stays known.
    pub fn raw_store(&mut self, to: Mem, from: Reg) {
        self.wide(0x89, from, Rm::Mem(to));
    }

    /// LEA of 64 bits.
    pub fn lea(&mut self, to: Reg, from: Mem) {
        self.lea_of(true, to, from);
    }

    /// LEA of 64 bits, or of 32, the rest zero.
    pub fn lea_of(&mut self, wide: bool, to: Reg, from: Mem) {
        self.changes(to);
        let i = Legacy {
            wide,
            opcode: &[0x8d],
            ..Legacy::default()
        };
        self.legacy(&i, to.0, Rm::Mem(from));
    }

    /// NOT of 64 bits. Leaves the flags alone.
    pub fn not(&mut self, at: Reg) {
        self.changes(at);
        self.wide(0xf7, Reg(2), Rm::Reg(at));
    }

    /// MOV of a zero-extended immediate.
    pub fn set(&mut self, to: Reg, value: u32) {
        self.changes(to);
        let i = Legacy {
            opcode: &[0xb8],
            ..Legacy::default()
        };
        self.in_opcode(&i, to);
        self.raw(&value.to_le_bytes());
    }

    /// MOV of an immediate of 64 bits.
    pub fn set_wide(&mut self, to: Reg, value: u64) {
        self.changes(to);
        let i = Legacy {
            wide: true,
            opcode: &[0xb8],
            ..Legacy::default()
        };
        self.in_opcode(&i, to);
        self.raw(&value.to_le_bytes());
    }

    /// MOV of a sign-extended immediate.
    pub fn set_signed(&mut self, to: Reg, value: i32) {
        self.changes(to);
        self.wide(0xc7, Reg(0), Rm::Reg(to));
        self.raw(&value.to_le_bytes());
    }

    /// PEXT of 64 bits: the bits of `from` that `mask` names. Leaves the flags alone.
    pub fn extract(&mut self, to: Reg, from: Reg, mask: Mem) {
        self.changes(to);
        let i = Vex {
            map: 2,
            pp: 2,
            wide: true,
            long: false,
            vvvv: from.0,
            opcode: 0xf5,
        };
        self.vex(&i, to.0, Rm::Mem(mask));
    }

    fn gather(&mut self, pp: u8, to: Reg, from: Reg, mask: Reg) {
        self.changes(to);
        let i = Vex {
            map: 2,
            pp,
            wide: true,
            long: false,
            vvvv: from.0,
            opcode: 0xf5,
        };
        self.vex(&i, to.0, Rm::Reg(mask));
    }

    /// PEXT of 64 bits with its mask in a register. Leaves the flags alone.
    pub fn extract_by(&mut self, to: Reg, from: Reg, mask: Reg) {
        self.gather(2, to, from, mask);
    }

    /// Clears the bits of `reg` that are clear in `mask`: PEXT, then PDEP. Leaves the flags alone.
    pub fn keep(&mut self, reg: Reg, mask: Reg) {
        self.gather(2, reg, reg, mask);
        self.gather(3, reg, reg, mask);
    }

    /// SARX of 64 bits. Leaves the flags alone.
    pub fn sarx(&mut self, to: Reg, from: Reg, count: Reg) {
        self.changes(to);
        let i = Vex {
            map: 2,
            pp: 2,
            wide: true,
            long: false,
            vvvv: count.0,
            opcode: 0xf7,
        };
        self.vex(&i, to.0, Rm::Reg(from));
    }

    /// SHRX of 64 bits. Leaves the flags alone.
    pub fn shrx(&mut self, to: Reg, from: Reg, count: Reg) {
        self.changes(to);
        let i = Vex {
            map: 2,
            pp: 3,
            wide: true,
            long: false,
            vvvv: count.0,
            opcode: 0xf7,
        };
        self.vex(&i, to.0, Rm::Reg(from));
    }

    /// RORX of 64 bits. Leaves the flags alone.
    pub fn rorx(&mut self, to: Reg, from: Reg, count: u8) {
        self.changes(to);
        let i = Vex {
            map: 3,
            pp: 3,
            wide: true,
            long: false,
            vvvv: 0,
            opcode: 0xf0,
        };
        self.vex(&i, to.0, Rm::Reg(from));
        self.code.push(count);
    }

    /// MOVSXD.
    pub fn sign_extend(&mut self, to: Reg, from: Rm) {
        self.changes(to);
        self.wide(0x63, to, from);
    }

    /// MOV of 32 bits, the rest zero.
    pub fn move_32(&mut self, to: Reg, from: Rm) {
        self.changes(to);
        let i = Legacy {
            opcode: &[0x8b],
            ..Legacy::default()
        };
        self.legacy(&i, to.0, from);
    }

    /// Leaves RAX with what LAHF and SETO AL make of it.
    pub fn flags_to_rax(&mut self) {
        self.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
    }

    /// Takes the flags from what [`Asm::flags_to_rax`] left in RAX; changes AL.
    pub fn flags_from_rax(&mut self) {
        // ADD AL, 7Fh sets OF if AL is 1; SAHF leaves OF alone.
        self.raw(&[0x04, 0x7f, 0x9e]);
    }

    /// JMP to what comes behind, short; the place is for [`Asm::land`].
    pub fn jump_short(&mut self) -> Short {
        self.raw(&[0xeb, 0]);
        Short(self.here() - 1)
    }

    fn distance(&self, from: usize, to: u64) -> i32 {
        let next = self.origin.wrapping_add(from as u64 + 4);
        to.wrapping_sub(next) as i32
    }

    /// JMP to an address. Gives the offset of its distance.
    pub fn jump(&mut self, to: u64) -> usize {
        self.code.push(0xe9);
        self.near(to)
    }

    /// Jcc to an address, by its condition code. Gives the offset of its distance.
    pub fn jump_if(&mut self, condition: u8, to: u64) -> usize {
        self.raw(&[0x0f, 0x80 | condition]);
        self.near(to)
    }

    /// CALL of an address.
    pub fn call(&mut self, to: u64) {
        self.forget();
        self.code.push(0xe8);
        self.near(to);
    }

    fn near(&mut self, to: u64) -> usize {
        let at = self.here();
        let distance = self.distance(at, to);
        self.raw(&distance.to_le_bytes());
        at
    }

    /// JRCXZ that is rarely taken, to what is told by [`Asm::aim`] of what this gives.
    pub fn rarely_if_zero(&mut self) -> usize {
        self.raw(&[0xe3, 0]);
        self.rare.push(Rare {
            from: self.here() - 1,
            at: None,
            to: None,
        });
        RARE | (self.rare.len() - 1)
    }

    /// A jump that is rarely taken, if RCX is zero.
    pub fn unless_set(&mut self) -> usize {
        if self.near {
            return self.rarely_if_zero();
        }
        let zero = self.if_zero();
        let set = self.jump_short();
        self.land(zero);
        let jump = self.jump(0);
        self.land(set);
        jump
    }

    /// Writes the jumps that those rarely taken lead to. Nothing may fall into them.
    pub fn island(&mut self) {
        for number in self.landed..self.rare.len() {
            let Rare { from, to, .. } = self.rare[number];
            let distance = i8::try_from(self.here() - from - 1);
            self.out_of_reach |= distance.is_err();
            self.code[from] = distance.unwrap_or_default() as u8;
            let at = self.jump(0);
            self.rare[number].at = Some(at);
            if let Some(to) = to {
                self.aim(at, to);
            }
        }
        self.landed = self.rare.len();
    }

    /// Writes them, and a jump over them, if `room` bytes more would be too far.
    pub fn keep_in_reach(&mut self, room: usize) {
        const REACH: usize = 120;
        let Some(oldest) = self.rare.get(self.landed) else {
            return;
        };
        let waiting = self.rare.len() - self.landed;
        if self.here() + room + 5 * waiting > oldest.from + REACH {
            let over = self.jump_short();
            self.island();
            self.land(over);
        }
    }

    /// Takes back what is behind an offset.
    pub fn truncate(&mut self, to: usize) {
        self.code.truncate(to);
        while self.rare.last().is_some_and(|r| r.from >= to) {
            self.rare.pop();
        }
        self.landed = self.landed.min(self.rare.len());
        while let Some(last) = self.landed.checked_sub(1)
            && self.rare[last].at.is_some_and(|at| at >= to)
        {
            self.rare[last].at = None;
            self.landed = last;
        }
    }

    /// Has the jump with its distance at `at` go to offset `to`.
    pub fn aim(&mut self, at: usize, to: usize) {
        if at & RARE != 0 {
            let rare = &mut self.rare[at & !RARE];
            rare.to = Some(to);
            if let Some(at) = rare.at {
                self.aim(at, to);
            }
            return;
        }
        let distance = self.distance(at, self.origin + to as u64);
        self.code[at..at + 4].copy_from_slice(&distance.to_le_bytes());
    }

    /// JRCXZ forward, to [`Asm::land`].
    pub fn if_zero(&mut self) -> Short {
        self.raw(&[0xe3, 0]);
        Short(self.here() - 1)
    }

    /// JMP to an address that is taken unless RCX is zero. Gives the offset of its distance.
    pub fn jump_unless_zero(&mut self, to: u64) -> usize {
        let zero = self.if_zero();
        let jump = self.jump(to);
        self.land(zero);
        jump
    }

    /// Where a short jump goes.
    ///
    /// # Panics
    /// It is too far.
    pub fn land(&mut self, from: Short) {
        let distance = self.here() - from.0 - 1;
        self.code[from.0] = i8::try_from(distance).expect("a short jump is short") as u8;
    }

    /// JMP through a register.
    pub fn jump_reg(&mut self, to: Reg) {
        let i = Legacy {
            opcode: &[0xff],
            ..Legacy::default()
        };
        self.legacy(&i, 4, Rm::Reg(to));
    }

    /// JMP or CALL through memory.
    pub fn through(&mut self, call: bool, to: Mem) {
        let i = Legacy {
            opcode: &[0xff],
            ..Legacy::default()
        };
        self.legacy(&i, if call { 2 } else { 4 }, Rm::Mem(to));
    }
}
