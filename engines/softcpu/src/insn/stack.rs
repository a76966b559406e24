//! The stack: PUSH, POP, PUSHA, POPA, PUSHF, POPF, ENTER, LEAVE (SDM Vol 2; Vol 1 6.2).

use guestmem::Word;
use iced_x86::{Mnemonic, OpKind};
use x86defs::exception::SS;
use x86defs::rflags;

use super::form::{Form, Kind};
use super::operand::{Dst, Int, Mem, Place, Source};
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Fault, Flow, Shadow, Trap, gpr, pending, sreg};

impl Cpu {
    /// Stack addresses have 64 bits in 64-bit mode, else 32 or 16 by SS.B.
    #[inline(always)]
    pub fn stack_mask(&self) -> u64 {
        if self.long64 {
            u64::MAX
        } else if self.seg[sreg::SS].access.default_big() {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// Changes the stack pointer, leaving the bits above the stack's width.
    #[inline(always)]
    pub fn set_stack_pointer(&mut self, value: u64) {
        let mask = self.stack_mask();
        let rsp = &mut self.regs[gpr::RSP];
        // A 32-bit stack pointer is ESP, whose writes clear the upper half; SP's do not.
        *rsp = if mask == 0xffff {
            (*rsp & !mask) | (value & mask)
        } else {
            value & mask
        };
    }

    /// Pushes a word; RSP changes only if the store succeeds.
    #[inline(always)]
    pub fn push<T: Word>(&mut self, value: T) -> Flow {
        if self.long64 {
            let at = self.regs[gpr::RSP].wrapping_sub(T::SIZE);
            if let Err(t) = self.write_linear(at, value) {
                return self.stack_trap(t);
            }
            self.regs[gpr::RSP] = at;
            return Ok(());
        }
        let at = self.regs[gpr::RSP].wrapping_sub(T::SIZE) & self.stack_mask();
        let va = self.segmented(sreg::SS, at, T::SIZE, true)?;
        self.write_linear(va, value)?;
        self.set_stack_pointer(at);
        Ok(())
    }

    /// A non-canonical stack address is #SS(0) whatever segment the instruction's own operand uses.
    #[cold]
    fn stack_trap<T>(&mut self, trap: Trap) -> Result<T, Trap> {
        if trap == Trap::Exception && self.fault.detail == crate::mem::NON_CANONICAL {
            self.fault = Fault {
                vector: SS,
                error_code: 0,
                detail: 0,
            };
        }
        Err(trap)
    }

    /// Reads the word `at` bytes above the stack pointer.
    #[inline(always)]
    pub fn peek<T: Word>(&mut self, at: u64) -> Result<T, Trap> {
        if self.long64 {
            let va = self.regs[gpr::RSP].wrapping_add(at);
            return match self.read_linear(va) {
                Ok(v) => Ok(v),
                Err(t) => self.stack_trap(t),
            };
        }
        let at = self.regs[gpr::RSP].wrapping_add(at) & self.stack_mask();
        let va = self.segmented(sreg::SS, at, T::SIZE, false)?;
        self.read_linear(va)
    }

    /// Adds to the stack pointer.
    #[inline(always)]
    pub fn release_stack(&mut self, bytes: u64) {
        let value = self.regs[gpr::RSP].wrapping_add(bytes);
        self.set_stack_pointer(value);
    }
}

fn push<T: Int, S: Source>(cpu: &mut Cpu, op: &Op) -> Flow {
    let v = S::get::<T>(cpu, op)?;
    cpu.push(v)
}

fn pop_reg<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let v: T = cpu.peek(0)?;
    cpu.release_stack(T::SIZE);
    T::set_reg(cpu, op.dst, v);
    Ok(())
}

/// The address of a memory destination is computed with the incremented stack pointer (SDM Vol 2, POP).
fn pop_mem<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let v: T = cpu.peek(0)?;
    let rsp = cpu.regs[gpr::RSP];
    cpu.release_stack(T::SIZE);
    let stored = Mem::set(cpu, op, v);
    if stored.is_err() {
        cpu.regs[gpr::RSP] = rsp;
    }
    stored
}

/// PUSH of a segment register: `src` is the segment, the operand size in `extra`.
fn push_segment(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector = cpu.seg[usize::from(op.dst) % 6].selector.0;
    match op.extra {
        8 => cpu.push(u64::from(selector)),
        // A 32-bit push writes only the selector's 16 bits.
        4 => {
            let at = cpu.regs[gpr::RSP].wrapping_sub(4) & cpu.stack_mask();
            let va = cpu.linear_in(sreg::SS, at, 2, true)?;
            cpu.write_linear(va, selector)?;
            cpu.set_stack_pointer(at);
            Ok(())
        }
        _ => cpu.push(selector),
    }
}

fn pop_segment(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector: u16 = cpu.peek(0)?;
    let seg = usize::from(op.dst) % 6;
    // The stack pointer has the width of the old stack, also when SS is what is loaded.
    let rsp = cpu.regs[gpr::RSP];
    cpu.release_stack(u64::from(op.extra));
    if let Err(t) = cpu.load_segment(seg, x86defs::segment::Selector(selector)) {
        cpu.regs[gpr::RSP] = rsp;
        return Err(t);
    }
    if seg == sreg::SS {
        cpu.shadow = Shadow::MovSs;
        cpu.pending |= pending::SHADOW;
    }
    cpu.next_rip = cpu.rip_after(op);
    Ok(())
}

fn stack_size(form: &Form) -> usize {
    form.insn.stack_pointer_increment().unsigned_abs() as usize
}

fn is_segment(form: &Form) -> bool {
    form.insn.op_kind(0) == OpKind::Register && form.insn.op_register(0).is_segment_register()
}

pub fn bind_push(form: &Form, op: &mut Op) -> Option<Handler> {
    let size = stack_size(form);
    op.seg = if form.kind(0) == Kind::Mem {
        op.seg
    } else {
        sreg::SS as u8
    };
    if is_segment(form) {
        op.extra = size as u16;
        return Some(push_segment);
    }
    match (form.kind(0), size) {
        (Kind::Reg, 2) => Some(push::<u16, Dst>),
        (Kind::Reg, 4) => Some(push::<u32, Dst>),
        (Kind::Reg, 8) => Some(push::<u64, Dst>),
        (Kind::Mem, 2) => Some(push::<u16, Mem>),
        (Kind::Mem, 4) => Some(push::<u32, Mem>),
        (Kind::Mem, 8) => Some(push::<u64, Mem>),
        (Kind::Imm, 2) => Some(push::<u16, super::operand::Imm>),
        (Kind::Imm, 4) => Some(push::<u32, super::operand::Imm>),
        (Kind::Imm, 8) => Some(push::<u64, super::operand::Imm>),
        _ => None,
    }
}

pub fn bind_pop(form: &Form, op: &mut Op) -> Option<Handler> {
    let size = stack_size(form);
    if is_segment(form) {
        op.extra = size as u16;
        op.seg = sreg::SS as u8;
        return Some(pop_segment);
    }
    match (form.kind(0), size) {
        (Kind::Reg, s) => {
            op.seg = sreg::SS as u8;
            match s {
                2 => Some(pop_reg::<u16>),
                4 => Some(pop_reg::<u32>),
                _ => Some(pop_reg::<u64>),
            }
        }
        (_, 2) => Some(pop_mem::<u16>),
        (_, 4) => Some(pop_mem::<u32>),
        (_, 8) => Some(pop_mem::<u64>),
        _ => None,
    }
}

fn push_all<T: Int>(cpu: &mut Cpu, _: &Op) -> Flow {
    let rsp = cpu.regs[gpr::RSP];
    for r in 0..8u8 {
        let v = if r == 4 {
            T::from_u64(rsp)
        } else {
            T::reg(cpu, r)
        };
        if let Err(t) = cpu.push(v) {
            cpu.regs[gpr::RSP] = rsp;
            return Err(t);
        }
    }
    Ok(())
}

fn pop_all<T: Int>(cpu: &mut Cpu, _: &Op) -> Flow {
    let mut values = [T::from_u64(0); 8];
    for (i, v) in values.iter_mut().enumerate() {
        *v = cpu.peek(i as u64 * T::SIZE)?;
    }
    cpu.release_stack(8 * T::SIZE);
    for (i, v) in values.into_iter().enumerate() {
        let r = 7 - i as u8;
        if r != 4 {
            T::set_reg(cpu, r, v);
        }
    }
    Ok(())
}

pub fn bind_all(form: &Form, _: &mut Op) -> Option<Handler> {
    Some(match form.mnemonic() {
        Mnemonic::Pusha => push_all::<u16>,
        Mnemonic::Pushad => push_all::<u32>,
        Mnemonic::Popa => pop_all::<u16>,
        _ => pop_all::<u32>,
    })
}

fn push_flags<T: Int>(cpu: &mut Cpu, _: &Op) -> Flow {
    if cpu.v8086() && cpu.iopl() < 3 {
        if T::SIZE == 2 && cpu.has_virtual_interrupt_flag() {
            let image = cpu.virtual_flags_image();
            return cpu.push(T::from_u64(image));
        }
        return cpu.gp0();
    }
    // RF and VM read as zero in the image.
    let image = cpu.rflags() & !(rflags::RF | rflags::VM);
    cpu.push(T::from_u64(image))
}

fn pop_flags<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.v8086() && cpu.iopl() < 3 {
        if T::SIZE == 2 && cpu.has_virtual_interrupt_flag() {
            let image = cpu.peek::<T>(0)?.to_u64();
            let flags = cpu.load_virtual_flags(image)?;
            cpu.release_stack(T::SIZE);
            cpu.set_rflags(flags);
            cpu.next_rip = cpu.rip_after(op);
            return Ok(());
        }
        return cpu.gp0();
    }
    let image = cpu.peek::<T>(0)?.to_u64();
    cpu.release_stack(T::SIZE);
    let mut writable =
        rflags::ARITHMETIC | rflags::TF | rflags::DF | rflags::NT | rflags::AC | rflags::ID;
    if cpu.cpl == 0 {
        writable |= rflags::IOPL;
    }
    if cpu.cpl <= cpu.iopl() {
        writable |= rflags::IF;
    }
    if T::SIZE == 2 {
        writable &= 0xffff;
    }
    let old = cpu.rflags() & !rflags::RF;
    cpu.set_rflags((old & !writable) | (image & writable));
    cpu.next_rip = cpu.rip_after(op);
    Ok(())
}

pub fn bind_flags(form: &Form, op: &mut Op) -> Option<Handler> {
    op.seg = sreg::SS as u8;
    Some(match form.mnemonic() {
        Mnemonic::Pushf => push_flags::<u16>,
        Mnemonic::Pushfd => push_flags::<u32>,
        Mnemonic::Pushfq => push_flags::<u64>,
        Mnemonic::Popf => pop_flags::<u16>,
        Mnemonic::Popfd => pop_flags::<u32>,
        _ => pop_flags::<u64>,
    })
}

/// LEAVE: the frame pointer's width is the stack's, the popped one the operand's.
fn leave<T: Int>(cpu: &mut Cpu, _: &Op) -> Flow {
    let rsp = cpu.regs[gpr::RSP];
    let frame = cpu.regs[gpr::RBP];
    cpu.set_stack_pointer(frame);
    match cpu.peek::<T>(0) {
        Ok(v) => {
            cpu.release_stack(T::SIZE);
            T::set_reg(cpu, gpr::RBP as u8, v);
            Ok(())
        }
        Err(t) => {
            cpu.regs[gpr::RSP] = rsp;
            Err(t)
        }
    }
}

/// ENTER (SDM Vol 2, ENTER): frame size in `imm`, nesting level in `extra`.
fn enter<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let (rsp, rbp) = (cpu.regs[gpr::RSP], cpu.regs[gpr::RBP]);
    let done = enter_frame::<T>(cpu, op);
    if done.is_err() {
        cpu.regs[gpr::RSP] = rsp;
        cpu.regs[gpr::RBP] = rbp;
    }
    done
}

fn enter_frame<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let level = op.extra & 31;
    let old = T::reg(cpu, gpr::RBP as u8);
    cpu.push(old)?;
    let frame = cpu.regs[gpr::RSP];
    let mut at = cpu.regs[gpr::RBP];
    for _ in 1..level.max(1) {
        at = at.wrapping_sub(T::SIZE);
        let va = cpu.linear_in(sreg::SS, at & cpu.stack_mask(), T::SIZE, false)?;
        let v: T = cpu.read_linear(va)?;
        cpu.push(v)?;
    }
    if level > 0 {
        cpu.push(T::from_u64(frame))?;
    }
    cpu.release_stack(0u64.wrapping_sub(op.imm & 0xffff));
    // The new stack top must be writable.
    let top = cpu.regs[gpr::RSP] & cpu.stack_mask();
    let va = cpu.linear_in(sreg::SS, top, T::SIZE, true)?;
    cpu.probe_write(va, T::SIZE)?;
    T::set_reg(cpu, gpr::RBP as u8, T::from_u64(frame));
    Ok(())
}

pub fn bind_frame(form: &Form, op: &mut Op) -> Option<Handler> {
    op.seg = sreg::SS as u8;
    let size = match form.insn.code() {
        iced_x86::Code::Leavew | iced_x86::Code::Enterw_imm16_imm8 => 2,
        iced_x86::Code::Leaved | iced_x86::Code::Enterd_imm16_imm8 => 4,
        _ => 8,
    };
    Some(match (form.mnemonic(), size) {
        (Mnemonic::Leave, 2) => leave::<u16>,
        (Mnemonic::Leave, 4) => leave::<u32>,
        (Mnemonic::Leave, _) => leave::<u64>,
        (_, 2) => enter::<u16>,
        (_, 4) => enter::<u32>,
        _ => enter::<u64>,
    })
}
