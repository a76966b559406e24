//! Frames on the handler's stack (SDM Vol 3 6.12, 6.14; Vol 2, INT n).

use vcpu::SegmentRegister;
use x86defs::exception::{self, GP, PF, TS};
use x86defs::rflags;
use x86defs::segment::{Descriptor, Selector};

use super::deliver::Gate;
use super::segments::{null_segment, null_stack, segment_of};
use crate::cpu::{Cpu, Event, Fault, Flow, RIP, Trap, canonical, gpr, sreg};

/// A stack outside 64-bit mode: the current one, or one that is about to be.
#[derive(Clone, Copy)]
pub struct Stack {
    /// SS.
    pub ss: SegmentRegister,
    /// ESP.
    pub sp: u64,
    /// The privilege level it is written with.
    pub cpl: u8,
}

impl Stack {
    fn mask(&self) -> u64 {
        if self.ss.access.default_big() {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// The stack pointer `bytes` further down.
    fn below(&self, bytes: u64) -> u64 {
        let mask = self.mask();
        (self.sp & !mask) | (self.sp.wrapping_sub(bytes) & mask)
    }
}

impl Cpu {
    /// Checks that a protected-mode stack has room for `count` words of `size` bytes; #SS with `error` if not.
    pub fn stack_room(&mut self, stack: &Stack, count: usize, size: u64, error: u32) -> Flow {
        // The new stack's segment is one of protected mode, also on the way out of virtual-8086 mode.
        let vm = self.rflags_rest & rflags::VM;
        self.rflags_rest &= !vm;
        let mask = stack.mask();
        let room = (1..=count as u64).all(|i| {
            let offset = stack.below(i * size) & mask;
            self.segment_allows(&stack.ss, offset, size, true)
        });
        self.rflags_rest |= vm;
        if room {
            Ok(())
        } else {
            self.raise_code(exception::SS, error)
        }
    }

    /// Pushes words of `size` bytes on a stack that has room for them; gives the new stack pointer.
    pub fn push_words(&mut self, stack: &Stack, size: u64, words: &[u64]) -> Result<u64, Trap> {
        let mask = stack.mask();
        let mut sp = stack.sp;
        for (i, w) in words.iter().enumerate() {
            sp = stack.below((i as u64 + 1) * size);
            let va = stack.ss.base.wrapping_add(sp & mask) & 0xffff_ffff;
            let bytes = &w.to_le_bytes()[..size as usize];
            if stack.cpl == self.cpl {
                self.write_bytes(va, bytes)?;
            } else {
                self.write_bytes_as(va, bytes, stack.cpl == 3)?;
            }
        }
        Ok(sp)
    }

    pub(super) fn enter_handler64(
        &mut self,
        event: &Event,
        gate: &Gate,
        d: Descriptor,
        new_cpl: u8,
    ) -> Flow {
        let switch = new_cpl != self.cpl;
        let top = if switch || gate.ist != 0 {
            self.tss64_stack(new_cpl, gate.ist)?
        } else {
            self.regs[gpr::RSP]
        };
        if !canonical(top) {
            return self.raise_code(exception::SS, self.external_bit());
        }
        if !canonical(gate.offset) {
            return self.raise_code(GP, self.external_bit());
        }
        // The stack is aligned to 16 bytes before the frame (SDM Vol 3 6.14.2).
        let aligned = top & !15;
        let old_ss = self.seg[sreg::SS].selector.0;
        let old_cs = self.seg[sreg::CS].selector.0;
        let mut frame = [0u64; 6];
        let mut words = 0;
        if let Some(code) = event.error_code {
            frame[0] = u64::from(code);
            words = 1;
        }
        let flags = self.pushed_flags(event);
        for v in [
            self.return_rip(event),
            u64::from(old_cs),
            flags,
            self.regs[gpr::RSP],
            u64::from(old_ss),
        ] {
            frame[words] = v;
            words += 1;
        }
        let at = aligned.wrapping_sub(8 * words as u64);
        self.push_frame(at, &frame[..words], new_cpl)?;
        self.regs[gpr::RSP] = at;
        if switch {
            self.seg[sreg::SS] = null_stack(Selector(u16::from(new_cpl)), new_cpl);
        }
        self.enter_code(gate, d, new_cpl);
        Ok(())
    }

    /// Stores the frame with the rights of the handler's level.
    fn push_frame(&mut self, at: u64, frame: &[u64], cpl: u8) -> Flow {
        let mut bytes = [0u8; 48];
        for (i, v) in frame.iter().enumerate() {
            bytes[8 * i..8 * i + 8].copy_from_slice(&v.to_le_bytes());
        }
        let bytes = &bytes[..8 * frame.len()];
        let long64 = std::mem::replace(&mut self.long64, true);
        let done = if cpl == self.cpl {
            self.write_bytes(at, bytes)
        } else {
            self.write_bytes_as(at, bytes, cpl == 3)
        };
        self.long64 = long64;
        if done == Err(Trap::Exception) && self.fault.vector == PF {
            // The frame is pushed word by word, downwards: the highest word of the page is what faults.
            let highest = (self.fault.detail | 0xfff) - 7;
            self.fault.detail = highest.min(at.wrapping_add(bytes.len() as u64 - 8));
        }
        if done == Err(Trap::Exception) && self.fault.vector == GP {
            self.fault = Fault {
                vector: exception::SS,
                error_code: self.external_bit(),
                detail: 0,
            };
        }
        done
    }

    fn enter_code(&mut self, gate: &Gate, d: Descriptor, new_cpl: u8) {
        self.cpl = new_cpl;
        let selector = Selector((gate.selector.0 & !3) | u16::from(new_cpl));
        self.seg[sreg::CS] = segment_of(selector, d);
        self.regs[RIP] = gate.offset;
        self.next_rip = gate.offset;
        self.mode_changed();
    }

    /// Gates of 32 and 16 bits outside IA-32e mode, also out of virtual-8086 mode (SDM Vol 3 21.3.1).
    pub(super) fn enter_handler32(
        &mut self,
        event: &Event,
        gate: &Gate,
        d: Descriptor,
        new_cpl: u8,
    ) -> Flow {
        let from_v86 = self.v8086();
        if from_v86 && new_cpl != 0 {
            return self.raise_code(GP, self.selector_error(gate.selector));
        }
        let mut stack = Stack {
            ss: self.seg[sreg::SS],
            sp: self.regs[gpr::RSP],
            cpl: self.cpl,
        };
        let mut frame = [0u64; 10];
        let mut count = 0;
        let mut put = |v: u64| {
            frame[count] = v;
            count += 1;
        };
        let mut error = self.external_bit();
        if new_cpl != self.cpl {
            let (selector, sp) = self.tss32_stack(new_cpl)?;
            let ss = self.stack_segment(selector, new_cpl, TS)?;
            if from_v86 {
                for s in [sreg::GS, sreg::FS, sreg::DS, sreg::ES] {
                    put(u64::from(self.seg[s].selector.0));
                }
            }
            put(u64::from(stack.ss.selector.0));
            put(stack.sp);
            stack = Stack {
                ss,
                sp,
                cpl: new_cpl,
            };
            error = self.selector_error(selector);
        }
        put(self.pushed_flags(event));
        put(u64::from(self.seg[sreg::CS].selector.0));
        put(self.return_rip(event));
        if let Some(code) = event.error_code {
            put(u64::from(code));
        }
        let size = if gate.kind & 8 != 0 { 4 } else { 2 };
        self.stack_room(&stack, count, size, error)?;
        if gate.offset > u64::from(d.limit()) {
            return self.raise_code(GP, self.external_bit());
        }
        self.regs[gpr::RSP] = self.push_words(&stack, size, &frame[..count])?;
        self.seg[sreg::SS] = stack.ss;
        if from_v86 {
            for s in [sreg::ES, sreg::DS, sreg::FS, sreg::GS] {
                self.seg[s] = null_segment(Selector(0));
            }
            self.rflags_rest &= !rflags::VM;
        }
        self.enter_code(gate, d, new_cpl);
        Ok(())
    }

    /// Real-address mode (SDM Vol 3 21.1.4).
    pub(super) fn through_ivt(&mut self, event: Event) -> Flow {
        let offset = u64::from(event.vector) * 4;
        if offset + 3 > u64::from(self.idtr.limit) {
            return self.raise_code(GP, 0);
        }
        let entry: u32 = self.read_system(self.idtr.base.wrapping_add(offset))?;
        let flags = self.pushed_flags(&event);
        self.push_real_frame(&event, flags, Selector((entry >> 16) as u16), entry as u16)?;
        let flags = self.rflags() & !(rflags::IF | rflags::TF | rflags::AC | rflags::RF);
        self.set_rflags(flags);
        self.shadow = crate::cpu::Shadow::None;
        Ok(())
    }

    /// FLAGS, CS and IP on the stack of real-address or virtual-8086 mode, and on to the handler; no error code is
    /// pushed there.
    pub(super) fn push_real_frame(
        &mut self,
        event: &Event,
        flags: u64,
        cs: Selector,
        ip: u16,
    ) -> Flow {
        let stack = Stack {
            ss: self.seg[sreg::SS],
            sp: self.regs[gpr::RSP],
            cpl: self.cpl,
        };
        let words = [
            flags,
            u64::from(self.seg[sreg::CS].selector.0),
            self.return_rip(event),
        ];
        let mask = stack.mask();
        let room = (1..=words.len() as u64).all(|i| {
            let offset = stack.below(2 * i) & mask;
            self.segment_allows(&stack.ss, offset, 2, true)
        });
        if !room {
            return self.raise_code(exception::SS, 0);
        }
        self.regs[gpr::RSP] = self.push_words(&stack, 2, &words)?;
        self.load_code_real(cs);
        self.regs[RIP] = u64::from(ip);
        self.next_rip = self.regs[RIP];
        Ok(())
    }
}
