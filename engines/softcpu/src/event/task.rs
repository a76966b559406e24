//! Hardware task switches (SDM Vol 3 chapter 8).
//!
//! A switch has two halves. What fails in the first one, up to the last check of the TSSs, is a fault of the old
//! task, which then has not changed. The second half commits: the old task is saved, TR names the new one, and its
//! registers are loaded. What fails from there on is a fault of the new task, before its first instruction (8.3).

use x86defs::cr::{cr0, cr4, dr};
use x86defs::exception::{GP, NP, SS, TS};
use x86defs::rflags;
use x86defs::segment::{Access, Descriptor, Selector, system_type};

use super::frame::Stack;
use super::segments::{BUSY, TYPE_BYTE, null_segment, segment_of, v8086_segment};
use crate::code::Op;
use crate::cpu::{Cpu, Event, Flow, RIP, Trap, gpr, pending, sreg};
use crate::vmx::Intercept;

/// How a task switch comes about (the numbers are those of a VM exit's qualification).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// CALL: the new task is nested.
    Call = 0,
    /// IRET with RFLAGS.NT: back to the task of the link.
    Iret = 1,
    /// JMP.
    Jump = 2,
    /// A task gate in the IDT: the new task is nested.
    Gate = 3,
}

impl Via {
    /// The new task returns to the old one.
    fn nests(self) -> bool {
        matches!(self, Self::Call | Self::Gate)
    }
}

/// A TSS that was found and may be switched to.
#[derive(Clone, Copy)]
pub struct Tss {
    selector: Selector,
    descriptor: Descriptor,
    /// Where the descriptor lies.
    at: u64,
}

/// Offsets of the fields of a TSS (SDM Vol 3 Figures 8-2 and 8-10).
struct Layout {
    wide: bool,
    /// EIP; EFLAGS and the general registers follow.
    ip: u64,
    /// ES; the other segment registers follow.
    segments: u64,
    segment_count: usize,
    ldt: u64,
    /// Offset of the last byte a TSS must have.
    last: u64,
}

const LAYOUT32: Layout = Layout {
    wide: true,
    ip: 0x20,
    segments: 0x48,
    segment_count: 6,
    ldt: 0x60,
    last: 0x67,
};
const LAYOUT16: Layout = Layout {
    wide: false,
    ip: 0x0e,
    segments: 0x22,
    segment_count: 4,
    ldt: 0x2a,
    last: 0x2b,
};
/// CR3 in a 32-bit TSS.
const CR3: usize = 0x1c;
/// The byte with the debug trap flag T in a 32-bit TSS.
const TRAP: usize = 0x64;
/// Bytes of the largest TSS, without the I/O bitmap.
const TSS_BYTES: usize = 0x68;
/// DR7: L0 to L3 and LE, which every task switch clears (18.2.4).
const DR7_LOCAL: u64 = 0x155;

impl Layout {
    fn of(access: Access) -> &'static Self {
        if access.segment_type() & 8 != 0 {
            &LAYOUT32
        } else {
            &LAYOUT16
        }
    }

    fn word(&self) -> u64 {
        if self.wide { 4 } else { 2 }
    }

    /// The word at `offset` of a TSS image.
    fn get(&self, image: &[u8; TSS_BYTES], offset: u64) -> u64 {
        let at = offset as usize;
        let low = u64::from(u16::from_le_bytes([image[at], image[at + 1]]));
        if self.wide {
            low | u64::from(u16::from_le_bytes([image[at + 2], image[at + 3]])) << 16
        } else {
            low
        }
    }

    fn selector(&self, image: &[u8; TSS_BYTES], offset: u64) -> Selector {
        Selector(self.get(image, offset) as u16)
    }
}

impl Cpu {
    /// Finds the TSS of `selector` and makes the checks of Table 8-1 on its descriptor: `vector` is what a selector
    /// of something else raises, and `busy` what the TSS must be.
    pub fn find_tss(&mut self, selector: Selector, vector: u8, busy: bool) -> Result<Tss, Trap> {
        let error = self.selector_error(selector);
        if selector.is_null() || selector.is_ldt() {
            return self.raise_code(vector, error);
        }
        let (descriptor, at) = self.read_descriptor(selector, vector)?;
        let a = descriptor.access();
        let wanted = if busy {
            [system_type::TSS_BUSY, system_type::TSS16_BUSY]
        } else {
            [system_type::TSS_AVAILABLE, system_type::TSS16_AVAILABLE]
        };
        if a.is_code_or_data() || !wanted.contains(&a.segment_type()) {
            return self.raise_code(vector, error);
        }
        if !a.present() {
            return self.raise_code(NP, error);
        }
        if u64::from(descriptor.limit()) < Layout::of(a).last {
            return self.raise_code(TS, error);
        }
        Ok(Tss {
            selector,
            descriptor,
            at,
        })
    }

    /// A task switch by JMP, CALL or IRET: what its handler returns.
    pub fn switch_by_instruction(&mut self, op: &Op, via: Via, tss: Tss) -> Flow {
        self.intercept(Intercept::TaskSwitch {
            selector: tss.selector.0,
            source: via as u8,
        })?;
        let mut flags = self.rflags() & !rflags::RF;
        if via == Via::Iret {
            flags &= !rflags::NT;
        }
        let back = self.rip_after(op) & 0xffff_ffff;
        let entered = self.switch_task(via, tss, back, flags)?;
        // EFLAGS of the new task says whether it is stepped through.
        self.step_cancelled = true;
        self.trapped_kind_sets_rf = self.rflags_rest & rflags::RF != 0;
        self.next_rip = self.regs[RIP];
        let entered = entered.and_then(|()| self.check_entry(0));
        if entered.is_err() {
            // The run loop adds the instruction's offset.
            self.regs[RIP] = self.regs[RIP].wrapping_sub(u64::from(op.offset));
        }
        entered
    }

    /// An event that meets a task gate (SDM Vol 2, INT n, "TASK-GATE"): `back` and `flags` are what its frame would
    /// hold.
    pub fn switch_by_event(
        &mut self,
        event: &Event,
        selector: Selector,
        back: u64,
        flags: u64,
    ) -> Flow {
        let tss = self.find_tss(selector, GP, false)?;
        self.intercept(Intercept::TaskSwitch {
            selector: selector.0,
            source: Via::Gate as u8,
        })?;
        self.switch_task(Via::Gate, tss, back, flags)??;
        self.next_rip = self.regs[RIP];
        let ext = self.external_bit();
        if let Some(code) = event.error_code {
            let stack = Stack {
                ss: self.seg[sreg::SS],
                sp: self.regs[gpr::RSP],
                cpl: self.cpl,
            };
            let size = Layout::of(self.tr.access).word();
            self.stack_room(&stack, 1, size, ext)?;
            self.regs[gpr::RSP] = self.push_words(&stack, size, &[u64::from(code)])?;
        }
        self.check_entry(ext)
    }

    /// The new EIP must lie within CS's limit.
    fn check_entry(&mut self, error: u32) -> Flow {
        if self.regs[RIP] > self.fetch_limit {
            return self.raise_code(GP, error);
        }
        Ok(())
    }

    /// Switches; `back` is the EIP and `flags` the EFLAGS to save. An error is a fault of the old task, an inner one
    /// of the new task.
    fn switch_task(&mut self, via: Via, tss: Tss, back: u64, flags: u64) -> Result<Flow, Trap> {
        let old = Layout::of(self.tr.access);
        let new = Layout::of(tss.descriptor.access());
        let (old_base, new_base) = (self.tr.base, tss.descriptor.base());
        let old_end = old.segments + old.segment_count as u64 * old.word();
        if u64::from(self.tr.limit) < old_end - 1 {
            return self.raise_code(TS, self.selector_error(self.tr.selector));
        }
        // 8.3 step 5: nothing of this may fault once the switch has begun.
        let mut image = [0u8; TSS_BYTES];
        self.read_system_bytes(new_base, &mut image[..=new.last as usize])?;
        self.probe_system(old_base.wrapping_add(old.ip), old_end - old.ip)?;
        let old_type = self
            .gdtr
            .base
            .wrapping_add(self.tr.selector.table_offset() + TYPE_BYTE);
        let new_type = tss.at.wrapping_add(TYPE_BYTE);
        if via.nests() {
            self.probe_system(new_base, 2)?;
        } else {
            self.probe_system(old_type, 1)?;
        }
        self.probe_system(new_type, 1)?;
        // The last that may fail: another processor may have got the task since its descriptor was looked at.
        if via != Via::Iret && !self.claim_tss(tss.at)? {
            return self.raise_code(GP, self.selector_error(tss.selector));
        }

        if !via.nests() {
            self.clear_bits_system(old_type, BUSY)?;
        }
        self.save_task(old, back, flags)?;
        if via.nests() {
            let link = self.tr.selector.0;
            self.write_system::<u16>(new_base, link)?;
        }
        self.tr = segment_of(
            tss.selector,
            Descriptor(tss.descriptor.0 | Descriptor::TSS_BUSY),
        );
        self.cr0 |= cr0::TS;
        Ok(self.load_task(new, &image, via.nests()))
    }

    /// The dynamic fields of the old TSS (8.2.1).
    fn save_task(&mut self, layout: &Layout, eip: u64, flags: u64) -> Flow {
        let base = self.tr.base;
        let word = layout.word();
        let mut at = base.wrapping_add(layout.ip);
        let registers: [u64; 8] = std::array::from_fn(|i| self.regs[i]);
        for v in [eip, flags].into_iter().chain(registers) {
            if layout.wide {
                self.write_system::<u32>(at, v as u32)?;
            } else {
                self.write_system::<u16>(at, v as u16)?;
            }
            at = at.wrapping_add(word);
        }
        for s in 0..layout.segment_count {
            let at = base.wrapping_add(layout.segments + s as u64 * word);
            let selector = self.seg[s].selector.0;
            self.write_system::<u16>(at, selector)?;
        }
        Ok(())
    }

    /// Loads the new task's state. Segment registers get their selectors first and their descriptors after the
    /// checks, so that a fault finds the new task's selectors.
    fn load_task(&mut self, layout: &Layout, image: &[u8; TSS_BYTES], nested: bool) -> Flow {
        let word = layout.word();
        let field = |i: u64| layout.get(image, layout.ip + i * word);
        self.dr7 &= !DR7_LOCAL;
        let mut flags = (field(1) & rflags::DEFINED) | rflags::FIXED_1;
        if nested {
            flags |= rflags::NT;
        }
        if self.dr7 & 0xff == 0 {
            flags &= !rflags::RF;
        }
        self.regs[RIP] = field(0);
        for i in 0..8 {
            let v = field(2 + i as u64);
            self.regs[i] = if layout.wide {
                v
            } else {
                (self.regs[i] & 0xffff_0000) | v
            };
        }
        let selectors: [Selector; 6] = std::array::from_fn(|i| {
            if i < layout.segment_count {
                layout.selector(image, layout.segments + i as u64 * word)
            } else {
                Selector(0)
            }
        });
        let v8086 = flags & rflags::VM != 0;
        self.cpl = if v8086 { 3 } else { selectors[sreg::CS].rpl() };
        for (s, selector) in self.seg.iter_mut().zip(selectors) {
            *s = if v8086 {
                v8086_segment(selector)
            } else {
                null_segment(selector)
            };
        }
        self.seg[sreg::SS].access.0 |= u32::from(self.cpl) << 5;
        self.set_rflags(flags);
        self.debug_changed();
        self.mode_changed();
        self.ldtr = null_segment(layout.selector(image, layout.ldt));
        if layout.wide && self.cr0 & cr0::PG != 0 {
            let cr3 = &image[CR3..CR3 + 4];
            let cr3 = u32::from_le_bytes([cr3[0], cr3[1], cr3[2], cr3[3]]);
            self.load_task_cr3(u64::from(cr3))?;
        }
        if layout.wide && image[TRAP] & 1 != 0 {
            self.pending_debug |= dr::DR6_BT;
            self.pending |= pending::DEBUG;
        }
        self.load_task_ldt()?;
        if v8086 {
            return Ok(());
        }
        self.load_task_code(selectors[sreg::CS])?;
        self.load_task_stack(selectors[sreg::SS])?;
        for s in [sreg::ES, sreg::DS, sreg::FS, sreg::GS] {
            self.load_task_data(s, selectors[s])?;
        }
        Ok(())
    }

    fn load_task_cr3(&mut self, cr3: u64) -> Flow {
        if self.cr4 & cr4::PAE != 0 && !self.load_pdptes(cr3)? {
            return self.gp0();
        }
        self.cr3 = cr3;
        self.update_space();
        let now = self.tlb.space();
        self.tlb.flush(|s| s.vpid == now.vpid && s.eptp == now.eptp);
        Ok(())
    }

    fn load_task_ldt(&mut self) -> Flow {
        let selector = self.ldtr.selector;
        if selector.is_null() {
            return Ok(());
        }
        let error = self.selector_error(selector);
        if selector.is_ldt() {
            return self.raise_code(TS, error);
        }
        let (d, _) = self.read_descriptor(selector, TS)?;
        let a = d.access();
        if a.is_code_or_data() || a.segment_type() != system_type::LDT || !a.present() {
            return self.raise_code(TS, error);
        }
        self.ldtr = segment_of(selector, d);
        Ok(())
    }

    fn load_task_code(&mut self, selector: Selector) -> Flow {
        let error = self.selector_error(selector);
        if selector.is_null() {
            return self.raise_code(TS, error);
        }
        let (d, at) = self.read_descriptor(selector, TS)?;
        let a = d.access();
        let level = if a.is_conforming() {
            a.dpl() <= selector.rpl()
        } else {
            a.dpl() == selector.rpl()
        };
        if !a.is_code() || !level {
            return self.raise_code(TS, error);
        }
        if !a.present() {
            return self.raise_code(NP, error);
        }
        let d = self.mark_accessed(d, at)?;
        self.seg[sreg::CS] = segment_of(selector, d);
        self.mode_changed();
        Ok(())
    }

    fn load_task_stack(&mut self, selector: Selector) -> Flow {
        let error = self.selector_error(selector);
        if selector.is_null() {
            return self.raise_code(TS, error);
        }
        let (d, at) = self.read_descriptor(selector, TS)?;
        let a = d.access();
        if !a.writable() {
            return self.raise_code(TS, error);
        }
        if !a.present() {
            return self.raise_code(SS, error);
        }
        if a.dpl() != self.cpl || selector.rpl() != self.cpl {
            return self.raise_code(TS, error);
        }
        let d = self.mark_accessed(d, at)?;
        self.seg[sreg::SS] = segment_of(selector, d);
        self.mode_changed();
        Ok(())
    }

    fn load_task_data(&mut self, segment: usize, selector: Selector) -> Flow {
        if selector.is_null() {
            return Ok(());
        }
        let error = self.selector_error(selector);
        let (d, at) = self.read_descriptor(selector, TS)?;
        let a = d.access();
        let level = a.is_conforming() || a.dpl() >= self.cpl.max(selector.rpl());
        if !a.is_code_or_data() || !a.readable() || !level {
            return self.raise_code(TS, error);
        }
        if !a.present() {
            return self.raise_code(NP, error);
        }
        let d = self.mark_accessed(d, at)?;
        self.seg[segment] = segment_of(selector, d);
        self.mode_changed();
        Ok(())
    }

    /// The TSS IRET returns to with RFLAGS.NT set (SDM Vol 2, IRET, "TASK-RETURN").
    pub fn linked_tss(&mut self) -> Result<Tss, Trap> {
        let link: u16 = self.read_system(self.tr.base)?;
        self.find_tss(Selector(link), TS, true)
    }
}
