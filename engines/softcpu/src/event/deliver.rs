//! From an event to its handler (SDM Vol 3 6.8 to 6.15).

use vcpu::MpState;
use x86defs::exception::{self, DF, GP, NP, PF, TS, selector_error};
use x86defs::rflags;
use x86defs::segment::{Selector, system_type};

use crate::cpu::{Cpu, Event, EventKind, Flow, RIP, Trap, pending};

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
pub(super) struct Gate {
    pub selector: Selector,
    pub offset: u64,
    pub kind: u8,
    dpl: u8,
    present: bool,
    pub ist: u8,
}

impl Cpu {
    /// Delivers the exception in [`Cpu::fault`] at the current RIP.
    ///
    /// # Errors
    /// [`Trap::VmExit`] when a hypervisor takes it (or the delivery) instead.
    pub fn deliver_fault(&mut self) -> Flow {
        // It takes the time of an instruction: a guest whose handlers fault for ever does not stop time.
        self.charge(1);
        let event = self.raised();
        self.deliver_exception(event, self.fault.detail)
    }

    /// The exception in [`Cpu::fault`] as an event. There are no error codes in real-address mode (SDM Vol 3 21.1.4,
    /// 28.2.2).
    fn raised(&self) -> Event {
        let f = self.fault;
        let has_code = self.protected() && exception::pushes_error_code(f.vector);
        Event {
            vector: f.vector,
            kind: EventKind::Hardware,
            error_code: has_code.then_some(f.error_code),
            length: 0,
        }
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
        let from = self.rip();
        loop {
            self.delivering = Some(event);
            // No block is running that a store of the delivery could change.
            let alone = std::mem::replace(&mut self.alone, true);
            let done = self.through_idt(event);
            self.alone = alone;
            match done {
                Ok(()) => {
                    self.delivering = None;
                    self.record_event(&event, from);
                    self.vmx.iret_unblocked = false;
                    return Ok(());
                }
                Err(Trap::Exception) => {}
                // A VM exit records what was being delivered; it clears `delivering` itself.
                Err(t) => return Err(t),
            }
            let f = self.fault;
            let second = self.raised();
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
                    error_code: self.protected().then_some(0),
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
        // It stops at what it was executing, also where that was INT n, which goes on at `next_rip` otherwise.
        self.next_rip = self.regs[RIP];
        Ok(())
    }

    fn through_idt(&mut self, event: Event) -> Flow {
        if !self.protected() {
            return self.through_ivt(event);
        }
        if event.kind == EventKind::SoftwareInterrupt && self.v8086_redirects(event.vector)? {
            // Also one that a VM entry injects; one that is not redirected goes on here as with IOPL 3 (SDM Vol 3
            // 27.6.1.1).
            return self.redirected_interrupt(event.vector, self.return_rip(&event));
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
            let (back, flags) = (self.return_rip(&event), self.pushed_flags(&event));
            self.shadow = crate::cpu::Shadow::None;
            return self.switch_by_event(&event, gate.selector, back, flags);
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
    pub(super) fn pushed_flags(&self, event: &Event) -> u64 {
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
    pub(super) fn return_rip(&self, event: &Event) -> u64 {
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
}
