//! Memory operands of which only some elements are touched: masked moves and gathers.
//!
//! An element the mask does not select must not be accessed: no fault, no dirty page, no MMIO (SDM Vol. 2,
//! VMASKMOV, VPMASKMOV, MASKMOVDQU, VGATHERxxx). So the caller asks here which bytes or elements to touch,
//! before it runs the instruction.

use crate::state::ExtState;
use iced_x86::{Instruction, Mnemonic};

/// The register whose element sign bits select the elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MaskRegister {
    /// MMX register (MASKMOVQ).
    Mm(u8),
    /// XMM or YMM register.
    Vector(u8),
}

/// A memory operand of `size` bytes made of elements selected by a mask register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskedMemory {
    size: u8,
    element: u8,
    mask: MaskRegister,
}

impl MaskedMemory {
    /// Bytes from the first to the last element, selected or not: at most 32.
    pub fn size(&self) -> usize {
        usize::from(self.size)
    }

    /// Bytes of one element: 1, 4 or 8.
    pub fn element_size(&self) -> usize {
        usize::from(self.element)
    }

    /// One bit for each byte of the operand that the instruction touches, bit 0 for the lowest address.
    ///
    /// Ask before the run: a masked load may overwrite its own mask register.
    pub fn byte_mask(&self, ext: &ExtState) -> u32 {
        let words = match self.mask {
            MaskRegister::Mm(number) => [ext.mm(number), 0, 0, 0],
            MaskRegister::Vector(number) => ext.ymm[usize::from(number & 15)],
        };
        let element = self.element_size();
        let element_bits = (1u32 << element) - 1;
        (0..self.size())
            .step_by(element)
            .filter(|&start| sign_bit(&words, start + element - 1))
            .fold(0, |mask, start| mask | element_bits << start)
    }
}

/// The most significant bit of byte `byte` (0..32) of a vector.
fn sign_bit(words: &[u64; 4], byte: usize) -> bool {
    words[(byte / 8) & 3] >> (byte % 8 * 8 + 7) & 1 != 0
}

/// The masked operand of `insn`, if its memory operand is one: `(operand, is_write)`.
pub(crate) fn masked_operand(insn: &Instruction, size: u8) -> Option<(MaskedMemory, bool)> {
    let register = |operand: u32| insn.op_register(operand);
    let vector = |operand| MaskRegister::Vector(register(operand).number() as u8);
    match insn.mnemonic() {
        Mnemonic::Maskmovq => Some((
            MaskedMemory {
                size,
                element: 1,
                mask: MaskRegister::Mm(register(2).number() as u8),
            },
            true,
        )),
        Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu => Some((
            MaskedMemory {
                size,
                element: 1,
                mask: vector(2),
            },
            true,
        )),
        Mnemonic::Vmaskmovps
        | Mnemonic::Vmaskmovpd
        | Mnemonic::Vpmaskmovd
        | Mnemonic::Vpmaskmovq => {
            let element = match insn.mnemonic() {
                Mnemonic::Vmaskmovps | Mnemonic::Vpmaskmovd => 4,
                _ => 8,
            };
            // Loads are `reg, mask, mem`; stores are `mem, mask, reg`: the mask is operand 1 in both.
            let store = insn.op_kind(0) == iced_x86::OpKind::Memory;
            Some((
                MaskedMemory {
                    size,
                    element,
                    mask: vector(1),
                },
                store,
            ))
        }
        _ => None,
    }
}

/// An AVX2 gather (SDM Vol. 2, VGATHERDPS and its family).
///
/// The address of element `i` is `base + index(i) * scale + displacement` at the instruction's address size;
/// base, scale and displacement are the caller's, which has the instruction. To execute one:
///
/// 1. [`Gather::start`];
/// 2. for each `i` in `0..count()` with [`Gather::wanted`], read [`Gather::element_size`] bytes and hand them to
///    [`Gather::complete`]; on a fault stop there: what is complete stays complete, and the instruction can be
///    started again;
/// 3. [`Gather::finish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gather {
    dest: u8,
    index: u8,
    mask: u8,
    index_size: u8,
    element: u8,
    count: u8,
}

impl Gather {
    /// Number of elements: 2, 4 or 8.
    pub fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// Bytes of one element: 4 or 8.
    pub fn element_size(&self) -> usize {
        usize::from(self.element)
    }

    /// The sign-extended index of element `i`.
    pub fn index(&self, ext: &ExtState, i: usize) -> i64 {
        let words = &ext.ymm[usize::from(self.index & 15)];
        if self.index_size == 4 {
            i64::from((words[(i / 2) & 3] >> (i % 2 * 32)) as u32 as i32)
        } else {
            words[i & 3] as i64
        }
    }

    /// Whether element `i` is still to be read.
    pub fn wanted(&self, ext: &ExtState, i: usize) -> bool {
        let element = self.element_size();
        sign_bit(
            &ext.ymm[usize::from(self.mask & 15)],
            i * element + element - 1,
        )
    }

    /// Extends each element's mask bit over the element and clears the mask beyond the elements.
    pub fn start(&self, ext: &mut ExtState) {
        let extended =
            (0..self.count())
                .filter(|&i| self.wanted(ext, i))
                .fold([0; 4], |mut words, i| {
                    self.put(&mut words, i, u64::MAX);
                    words
                });
        ext.ymm[usize::from(self.mask & 15)] = extended;
    }

    /// Puts the value read for element `i` into the destination and clears its mask element.
    pub fn complete(&self, ext: &mut ExtState, i: usize, value: u64) {
        self.put(&mut ext.ymm[usize::from(self.dest & 15)], i, value);
        self.put(&mut ext.ymm[usize::from(self.mask & 15)], i, 0);
    }

    /// Clears the mask and the destination beyond the elements.
    pub fn finish(&self, ext: &mut ExtState) {
        ext.ymm[usize::from(self.mask & 15)] = [0; 4];
        let used = self.count() * self.element_size() / 8;
        for word in &mut ext.ymm[usize::from(self.dest & 15)][used.min(4)..] {
            *word = 0;
        }
    }

    fn put(&self, words: &mut [u64; 4], i: usize, value: u64) {
        if self.element == 4 {
            let shift = i % 2 * 32;
            let word = &mut words[(i / 2) & 3];
            *word = *word & !(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift;
        } else {
            words[i & 3] = value;
        }
    }

    /// Executes the whole gather from `elements`, which holds one value for each wanted element in place.
    pub(crate) fn run(&self, ext: &mut ExtState, elements: &[u8]) {
        self.start(ext);
        for (i, bytes) in elements
            .chunks_exact(self.element_size())
            .take(self.count())
            .enumerate()
        {
            if self.wanted(ext, i) {
                let mut value = [0; 8];
                value[..bytes.len()].copy_from_slice(bytes);
                self.complete(ext, i, u64::from_le_bytes(value));
            }
        }
        self.finish(ext);
    }
}

/// The gather `insn` is: `Ok(None)` if it is none, `Err` if its registers overlap, which is #UD.
pub(crate) fn gather(insn: &Instruction) -> Result<Option<Gather>, OverlappingRegisters> {
    let (index_size, element) = match insn.mnemonic() {
        Mnemonic::Vgatherdps | Mnemonic::Vpgatherdd => (4u8, 4u8),
        Mnemonic::Vgatherdpd | Mnemonic::Vpgatherdq => (4, 8),
        Mnemonic::Vgatherqps | Mnemonic::Vpgatherqd => (8, 4),
        Mnemonic::Vgatherqpd | Mnemonic::Vpgatherqq => (8, 8),
        _ => return Ok(None),
    };
    let dest = insn.op0_register();
    let index = insn.memory_index();
    let mask = insn.op2_register();
    let numbers = [
        dest.number() as u8,
        index.number() as u8,
        mask.number() as u8,
    ];
    let [d, x, m] = numbers;
    if d == x || d == m || x == m {
        return Err(OverlappingRegisters);
    }
    let vector_bytes = |register: iced_x86::Register| if register.is_ymm() { 32 } else { 16 };
    // The wider of the index and data elements fills its register; the other may leave part of its own unused.
    let count = (vector_bytes(dest) / element).min(vector_bytes(index) / index_size);
    Ok(Some(Gather {
        dest: d & 15,
        index: x & 15,
        mask: m & 15,
        index_size,
        element,
        count,
    }))
}

/// Destination, index and mask of a gather are not three different registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OverlappingRegisters;
