//! A small assembler for 16-bit code: instructions in a row, with labels.

use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Code, IcedError, Instruction, InstructionBlock,
    MemoryOperand, Register,
};

/// A place in the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

/// Code in the making. Its operands are its author's, so that one that does not fit is a broken invariant.
#[derive(Default)]
pub(super) struct Assembler {
    instructions: Vec<Instruction>,
    /// For each label the instruction it stands before, once it is placed.
    places: Vec<Option<usize>>,
    /// The branches and their targets.
    branches: Vec<(usize, Label)>,
}

fn fits<T>(result: Result<T, IcedError>) -> T {
    result.unwrap_or_else(|e| unreachable!("an operand of the ROM's code does not fit: {e}"))
}

/// The memory at `[base + offset]`; a base of [`Register::None`] for `[offset]`.
pub(super) fn at(base: Register, offset: u16) -> MemoryOperand {
    MemoryOperand::with_base_displ_size(base, i64::from(offset), if offset == 0 { 0 } else { 2 })
}

impl Assembler {
    /// A label that is placed later.
    pub(super) fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// Places a label before the next instruction.
    pub(super) fn place(&mut self, label: Label) {
        let old = self.places[label.0].replace(self.instructions.len());
        assert!(old.is_none(), "a label has one place");
    }

    /// A new label before the next instruction.
    pub(super) fn here(&mut self) -> Label {
        let label = self.label();
        self.place(label);
        label
    }

    /// An instruction without operands, or whole.
    pub(super) fn put(&mut self, instruction: Instruction) {
        self.instructions.push(instruction);
    }

    pub(super) fn op0(&mut self, code: Code) {
        self.put(Instruction::with(code));
    }

    pub(super) fn reg(&mut self, code: Code, register: Register) {
        self.put(fits(Instruction::with1(code, register)));
    }

    pub(super) fn imm(&mut self, code: Code, value: i32) {
        self.put(fits(Instruction::with1(code, value)));
    }

    pub(super) fn reg_reg(&mut self, code: Code, to: Register, from: Register) {
        self.put(fits(Instruction::with2(code, to, from)));
    }

    pub(super) fn reg_imm(&mut self, code: Code, to: Register, value: u32) {
        self.put(fits(Instruction::with2(code, to, value)));
    }

    pub(super) fn reg_mem(&mut self, code: Code, to: Register, from: MemoryOperand) {
        self.put(fits(Instruction::with2(code, to, from)));
    }

    pub(super) fn mem_reg(&mut self, code: Code, to: MemoryOperand, from: Register) {
        self.put(fits(Instruction::with2(code, to, from)));
    }

    pub(super) fn mem_imm(&mut self, code: Code, to: MemoryOperand, value: u32) {
        self.put(fits(Instruction::with2(code, to, value)));
    }

    /// A jump or call.
    pub(super) fn branch(&mut self, code: Code, to: Label) {
        self.branches.push((self.instructions.len(), to));
        self.put(fits(Instruction::with_branch(code, 0)));
    }

    pub(super) fn far_jump(&mut self, segment: u16, offset: u32) {
        let code = Code::Jmp_ptr1616;
        self.put(fits(Instruction::with_far_branch(code, segment, offset)));
    }

    /// Text with a zero behind it.
    pub(super) fn text(&mut self, text: &str) {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        for part in bytes.chunks(16) {
            self.put(fits(Instruction::with_declare_byte(part)));
        }
    }

    /// The bytes of the code, the first of which goes to `address`.
    pub(super) fn assemble(mut self, address: u16) -> Vec<u8> {
        // The encoder finds the target of a branch by the address it had before: here its number.
        let number = |index: usize| u16::try_from(index + 1).expect("a short program");
        for (index, instruction) in self.instructions.iter_mut().enumerate() {
            instruction.set_ip(u64::from(number(index)));
        }
        let place = |label: Label| self.places[label.0].expect("every label has a place");
        for &(from, to) in &self.branches {
            self.instructions[from].set_near_branch16(number(place(to)));
        }
        let block = InstructionBlock::new(&self.instructions, u64::from(address));
        let options = BlockEncoderOptions::NONE;
        fits(BlockEncoder::encode(16, block, options)).code_buffer
    }
}
