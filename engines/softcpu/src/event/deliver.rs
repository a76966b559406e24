//! From an event to its handler (SDM Vol 3 6.8 to 6.15).

use vcpu::MpState;
use vcpu::SegmentRegister;
use x86defs::exception::{self, DF, GP, NP, PF, TS, selector_error};
use x86defs::rflags;
use x86defs::segment::{Access, Descriptor, Selector, system_type};

use super::segments::segment_of;
use crate::cpu::{Cpu, Event, EventKind, Fault, Flow, RIP, Trap, canonical, gpr, pending, sreg};

/// How exceptions combine (SDM Vol 3 Table 6-5).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    Page,
    Double,
}

fn class(e: &Event) -> Class {
    if e.kind != EventKind::Hardware {
        return Class::Benign;
    }
    match e.vector {
        exception::DE | TS | NP | exception::SS | GP => Class::Contributory,
        PF | exception::VE => Class::Page,
        DF => Class::Double,
        _ => Class::Benign,
    }
}

/// A gate of the IDT.
struct Gate {
    selector: Selector,
    offset: u64,
    kind: u8,
    dpl: u8,
    present: bool,
    ist: u8,
}

impl Cpu {
    /// Delivers the exception in [`Cpu::fault`] at the current RIP.
    ///
    /// # Errors
    /// [`Trap::VmExit`] when a hypervisor takes it (or the delivery) instead.
    pub fn deliver_fault(&mut self) -> Flow {
        let f = self.fault;
        let error_code = exception::pushes_error_code(f.vector).then_some(f.error_code);
        let event = Event {
            vector: f.vector,
            kind: EventKind::Hardware,
            error_code,
            length: 0,
        };
        self.deliver_exception(event, f.detail)
    }

    /// Delivers an exception; `detail` is the faulting address of #PF or the DR6 bits of #DB.
    pub fn deliver_exception(&mut self, event: Event, detail: u64) -> Flow {
        self.intercept_exception(event, detail)?;
        match event.vector {
            PF => self.cr2 = detail,
            exception::DB => {
                // Breakpoint conditions accumulate; BD, BS and the low four describe this one.
                self.dr6 = (self.dr6 & !0xf) | detail | x86defs::cr::dr::DR6_FIXED_1;
                self.dr7 &= !x86defs::cr::dr::DR7_GD;
            }
            _ => {}
        }
        self.deliver(event)
    }

    /// Delivers an event, turning faults on the way into double and triple faults.
    pub fn deliver(&mut self, event: Event) -> Flow {
        let mut event = event;
        loop {
            self.delivering = Some(event);
            let done = self.through_idt(event);
            match done {
                Ok(()) => {
                    self.delivering = None;
                    self.vmx.iret_unblocked = false;
                    return Ok(());
                }
                Err(Trap::Exception) => {}
                // A VM exit records what was being delivered; it clears `delivering` itself.
                Err(t) => return Err(t),
            }
            let f = self.fault;
            let second = Event {
                vector: f.vector,
                kind: EventKind::Hardware,
                error_code: exception::pushes_error_code(f.vector).then_some(f.error_code),
                length: 0,
            };
            // The exception bitmap is asked of the exception met, not of what the two combine to: a hypervisor
            // without EPT repairs its own page faults and delivers the first event again.
            self.intercept_exception(second, f.detail)?;
            if second.vector == PF {
                // CR2 follows every page fault, also one that ends as a double fault or in shutdown (SDM Vol 3
                // 6.15, "Page-Fault Exception").
                self.cr2 = f.detail;
            }
            let next = match (class(&event), class(&second)) {
                (Class::Double, Class::Contributory | Class::Page) => {
                    self.delivering = None;
                    return self.triple_fault();
                }
                (Class::Contributory, Class::Contributory)
                | (Class::Page, Class::Contributory | Class::Page) => Event {
                    vector: DF,
                    kind: EventKind::Hardware,
                    error_code: Some(0),
                    length: 0,
                },
                _ => second,
            };
            if next != second {
                self.intercept_exception(next, 0)?;
            }
            event = next;
        }
    }

    /// Shutdown (SDM Vol 3 6.15, "Double Fault Exception").
    fn triple_fault(&mut self) -> Flow {
        self.intercept_triple_fault()?;
        self.activity = MpState::Shutdown;
        self.pending |= pending::INACTIVE;
        Ok(())
    }

    fn through_idt(&mut self, event: Event) -> Flow {
        if !self.protected() {
            return self.through_ivt(event);
        }
        let software = matches!(
            event.kind,
            EventKind::SoftwareInterrupt | EventKind::SoftwareException
        );
        let idt_error = u32::from(event.vector) << 3 | selector_error::IDT | self.external_bit();
        let gate = self.read_gate(event.vector, idt_error)?;
        let long = self.long_mode();
        let kind_ok = matches!(
            gate.kind,
            system_type::INTERRUPT_GATE | system_type::TRAP_GATE
        ) || (!long
            && matches!(
                gate.kind,
                system_type::INTERRUPT_GATE16 | system_type::TRAP_GATE16 | system_type::TASK_GATE
            ));
        if !kind_ok {
            return self.raise_code(GP, idt_error);
        }
        if software && gate.dpl < self.cpl {
            return self.raise_code(GP, idt_error);
        }
        if !gate.present {
            return self.raise_code(NP, idt_error);
        }
        if gate.kind == system_type::TASK_GATE {
            // Hardware task switches are not implemented; a gate to one is refused like an invalid TSS.
            return self.raise_code(TS, self.selector_error(gate.selector));
        }
        if gate.selector.is_null() {
            return self.raise_code(GP, self.external_bit());
        }
        let (d, at) = self.read_descriptor(gate.selector, GP)?;
        let a = d.access();
        let error = self.selector_error(gate.selector);
        if !a.is_code() || a.dpl() > self.cpl || (long && (!a.long() || a.default_big())) {
            return self.raise_code(GP, error);
        }
        if !a.present() {
            return self.raise_code(NP, error);
        }
        let d = self.mark_accessed(d, at)?;
        let new_cpl = if a.is_conforming() { self.cpl } else { a.dpl() };
        if long {
            self.enter_handler64(&event, &gate, d, new_cpl)?;
        } else {
            self.enter_handler32(&event, &gate, d, new_cpl)?;
        }
        let mut clear = rflags::TF | rflags::NT | rflags::RF | rflags::VM;
        if matches!(
            gate.kind,
            system_type::INTERRUPT_GATE | system_type::INTERRUPT_GATE16
        ) {
            clear |= rflags::IF;
        }
        let flags = self.rflags() & !clear;
        self.set_rflags(flags);
        self.shadow = crate::cpu::Shadow::None;
        Ok(())
    }

    fn read_gate(&mut self, vector: u8, error: u32) -> Result<Gate, Trap> {
        let long = self.long_mode();
        let bytes = if long { 16 } else { 8 };
        let offset = u64::from(vector) * bytes;
        if offset + bytes - 1 > u64::from(self.idtr.limit) {
            return self.raise_code(GP, error);
        }
        let at = self.idtr.base.wrapping_add(offset);
        let low: u64 = self.read_system(at)?;
        let high: u64 = if long {
            self.read_system(at.wrapping_add(8))?
        } else {
            0
        };
        let kind = (low >> 40 & 0x1f) as u8;
        // A 16-bit gate has no upper half of the offset.
        let upper = if kind & 8 != 0 {
            low >> 32 & 0xffff_0000
        } else {
            0
        };
        Ok(Gate {
            selector: Selector((low >> 16) as u16),
            offset: (low & 0xffff) | upper | (high & 0xffff_ffff) << 32,
            kind,
            dpl: (low >> 45 & 3) as u8,
            present: low >> 47 & 1 != 0,
            ist: if long { (low >> 32 & 7) as u8 } else { 0 },
        })
    }

    /// RFLAGS as the handler's frame holds them: RF set for faults (SDM Vol 3 18.3.1.1).
    fn pushed_flags(&self, event: &Event) -> u64 {
        // Of debug exceptions only general detect is a fault that sets RF; instruction breakpoints do not.
        let general_detect =
            self.fault.vector == exception::DB && self.fault.detail & x86defs::cr::dr::DR6_BD != 0;
        let fault_like = event.kind == EventKind::Hardware
            && (!matches!(event.vector, exception::DB | DF | exception::MC)
                || (event.vector == exception::DB && general_detect));
        let rf = if fault_like { rflags::RF } else { 0 };
        self.rflags() | rf
    }

    /// Software events return behind their instruction.
    fn return_rip(&self, event: &Event) -> u64 {
        match event.kind {
            EventKind::SoftwareInterrupt
            | EventKind::SoftwareException
            | EventKind::PrivilegedSoftware => {
                let rip = self.regs[RIP].wrapping_add(u64::from(event.length));
                if self.long64 { rip } else { rip & 0xffff_ffff }
            }
            EventKind::External | EventKind::Nmi | EventKind::Hardware => self.regs[RIP],
        }
    }

    fn enter_handler64(&mut self, event: &Event, gate: &Gate, d: Descriptor, new_cpl: u8) -> Flow {
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
            self.seg[sreg::SS] = SegmentRegister {
                selector: Selector(u16::from(new_cpl)),
                base: 0,
                limit: 0,
                access: Access(Access::UNUSABLE.0 | u32::from(new_cpl) << 5),
            };
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

    fn enter_handler32(&mut self, event: &Event, gate: &Gate, d: Descriptor, new_cpl: u8) -> Flow {
        let wide = gate.kind & 8 != 0;
        let from_v86 = self.v8086();
        if from_v86 && new_cpl != 0 {
            return self.raise_code(GP, self.selector_error(gate.selector));
        }
        let mut words: Vec<u64> = Vec::with_capacity(11);
        let flags = self.pushed_flags(event);
        let (old_ss, old_sp) = (self.seg[sreg::SS], self.regs[gpr::RSP]);
        let mut new_sp = old_sp;
        let switch = new_cpl != self.cpl || from_v86;
        let mut new_ss = old_ss;
        if switch {
            let (selector, sp) = self.tss32_stack(new_cpl)?;
            new_ss = self.stack_segment(selector, new_cpl, TS)?;
            new_sp = sp;
            if from_v86 {
                for s in [sreg::GS, sreg::FS, sreg::DS, sreg::ES] {
                    words.push(u64::from(self.seg[s].selector.0));
                }
            }
            words.push(u64::from(old_ss.selector.0));
            words.push(old_sp);
        }
        words.push(flags);
        words.push(u64::from(self.seg[sreg::CS].selector.0));
        words.push(self.return_rip(event));
        words.extend(event.error_code.map(u64::from));
        if gate.offset > u64::from(d.limit()) {
            return self.raise_code(GP, self.external_bit());
        }
        let mask = if new_ss.access.default_big() {
            0xffff_ffff
        } else {
            0xffff
        };
        let size = if wide { 4 } else { 2 };
        let mut sp = new_sp;
        // The new stack is checked and written with the new privilege.
        let saved_ss = std::mem::replace(&mut self.seg[sreg::SS], new_ss);
        for w in words {
            sp = (sp & !mask) | (sp.wrapping_sub(size) & mask);
            let done = self
                .segmented(sreg::SS, sp & mask, size, true)
                .and_then(|va| {
                    self.write_bytes_as(va, &w.to_le_bytes()[..size as usize], new_cpl == 3)
                });
            if let Err(t) = done {
                self.seg[sreg::SS] = saved_ss;
                if t == Trap::Exception && self.fault.vector == exception::SS {
                    // Beyond the stack's limit: a new stack is named (SDM Vol 2, INT n).
                    self.fault.error_code = if switch {
                        self.selector_error(new_ss.selector)
                    } else {
                        self.external_bit()
                    };
                }
                return Err(t);
            }
        }
        self.regs[gpr::RSP] = sp;
        if from_v86 {
            for s in [sreg::ES, sreg::DS, sreg::FS, sreg::GS] {
                self.seg[s] = SegmentRegister {
                    access: Access::UNUSABLE,
                    ..SegmentRegister::default()
                };
            }
            self.rflags_rest &= !rflags::VM;
        }
        self.enter_code(gate, d, new_cpl);
        Ok(())
    }

    /// Real-address mode (SDM Vol 3 21.1.4).
    fn through_ivt(&mut self, event: Event) -> Flow {
        let offset = u64::from(event.vector) * 4;
        if offset + 3 > u64::from(self.idtr.limit) {
            return self.raise_code(GP, u32::from(event.vector) << 3 | selector_error::IDT);
        }
        let entry: u32 = self.read_system(self.idtr.base.wrapping_add(offset))?;
        let rsp = self.regs[gpr::RSP];
        for v in [
            self.rflags(),
            u64::from(self.seg[sreg::CS].selector.0),
            self.return_rip(&event),
        ] {
            if let Err(t) = self.push(v as u16) {
                self.regs[gpr::RSP] = rsp;
                return Err(t);
            }
        }
        let selector = Selector((entry >> 16) as u16);
        self.seg[sreg::CS].selector = selector;
        self.seg[sreg::CS].base = u64::from(selector.0) << 4;
        self.regs[RIP] = u64::from(entry & 0xffff);
        self.next_rip = self.regs[RIP];
        let flags = self.rflags() & !(rflags::IF | rflags::TF | rflags::AC | rflags::RF);
        self.set_rflags(flags);
        self.shadow = crate::cpu::Shadow::None;
        self.mode_changed();
        Ok(())
    }
}
