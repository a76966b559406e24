//! Virtual-8086 mode extensions, CR4.VME, and protected-mode virtual interrupts, CR4.PVI (SDM Vol 3 21.3.3 and
//! 21.4): the virtual interrupt flag, and software interrupts that stay in the 8086 program.

use x86defs::cr::cr4;
use x86defs::rflags;
use x86defs::segment::Selector;

use crate::cpu::{Cpu, Flow, RIP, Trap, gpr, sreg};

/// Offset of the I/O map base address in a 32-bit TSS (SDM Vol 3 8.2.1).
const IO_MAP_BASE: u64 = 0x66;
/// The interrupt redirection bitmap is so long and ends where the I/O map begins (SDM Vol 3 21.3.3).
const REDIRECTION_BYTES: u64 = 32;

impl Cpu {
    /// Whether VIF stands in for IF in instructions of a virtual-8086 program: CR4.VME and IOPL below 3.
    pub(crate) fn has_virtual_interrupt_flag(&self) -> bool {
        self.v8086() && self.cr4 & cr4::VME != 0 && self.iopl() < 3
    }

    /// Whether CLI and STI work on VIF: in virtual-8086 mode by VME, at CPL 3 of protected mode by PVI.
    pub(crate) fn interrupt_flag_is_virtual(&self) -> bool {
        let protected_mode = self.protected() && !self.v8086() && self.cpl == 3;
        self.has_virtual_interrupt_flag()
            || protected_mode && self.cr4 & cr4::PVI != 0 && self.iopl() < 3
    }

    /// FLAGS as a virtual-8086 program with a virtual interrupt flag sees them: IOPL 3, VIF in place of IF.
    pub(crate) fn virtual_flags_image(&self) -> u64 {
        let flags = self.rflags();
        let seen = flags & !(rflags::RF | rflags::VM | rflags::IF) | rflags::IOPL;
        if flags & rflags::VIF != 0 {
            seen | rflags::IF
        } else {
            seen
        }
    }

    /// 16 bits of FLAGS that a virtual-8086 program with a virtual interrupt flag loads by POPF or IRET.
    ///
    /// # Errors
    /// #GP(0) for what needs the monitor: TF, or IF while an interrupt is pending.
    pub(crate) fn load_virtual_flags(&mut self, image: u64) -> Result<u64, Trap> {
        let old = self.rflags();
        let pending = image & rflags::IF != 0 && old & rflags::VIP != 0;
        if pending || image & rflags::TF != 0 {
            return self.gp0();
        }
        let writable = rflags::ARITHMETIC | rflags::DF | rflags::NT;
        let kept = old & !(writable | rflags::TF | rflags::VIF | rflags::RF);
        let vif = if image & rflags::IF != 0 {
            rflags::VIF
        } else {
            0
        };
        Ok(kept | image & writable | vif)
    }

    /// Whether an interrupt of INT n in virtual-8086 mode stays in the 8086 program by the redirection bitmap of the
    /// TSS (SDM Vol 3 Table 21-2). If not, IOPL decides whether it goes through the IDT.
    ///
    /// # Errors
    /// A fault of the access to the TSS.
    pub(crate) fn v8086_redirects(&mut self, vector: u8) -> Result<bool, Trap> {
        Ok(self.v8086() && self.cr4 & cr4::VME != 0 && !self.redirection_bit(vector)?)
    }

    fn redirection_bit(&mut self, vector: u8) -> Result<bool, Trap> {
        let limit = u64::from(self.tr.limit);
        if IO_MAP_BASE + 1 > limit {
            return self.gp0();
        }
        let base: u16 = self.read_system(self.tr.base.wrapping_add(IO_MAP_BASE))?;
        let Some(at) = (u64::from(base) + u64::from(vector / 8)).checked_sub(REDIRECTION_BYTES)
        else {
            return self.gp0();
        };
        if at > limit {
            return self.gp0();
        }
        let byte: u8 = self.read_system(self.tr.base.wrapping_add(at))?;
        Ok(byte >> (vector % 8) & 1 != 0)
    }

    /// Enters the 8086 program's own handler by the vector table at linear address 0 (SDM Vol 3 21.3.3.3, methods 5
    /// and 6); it returns to `behind`.
    ///
    /// # Errors
    /// A fault of the vector table or the stack; nothing has changed then.
    pub(super) fn redirected_interrupt(&mut self, vector: u8, behind: u64) -> Flow {
        let entry: u32 = self.read_linear(u64::from(vector) * 4)?;
        let virtual_flag = self.has_virtual_interrupt_flag();
        let image = if virtual_flag {
            self.virtual_flags_image()
        } else {
            self.rflags()
        };
        let rsp = self.regs[gpr::RSP];
        for word in [image, u64::from(self.seg[sreg::CS].selector.0), behind] {
            if let Err(trap) = self.push(word as u16) {
                self.regs[gpr::RSP] = rsp;
                return Err(trap);
            }
        }
        self.load_code_real(Selector((entry >> 16) as u16));
        self.regs[RIP] = u64::from(entry & 0xffff);
        self.next_rip = self.regs[RIP];
        let cleared = if virtual_flag {
            rflags::VIF
        } else {
            rflags::IF
        };
        let flags = self.rflags() & !(cleared | rflags::TF | rflags::RF);
        self.set_rflags(flags);
        self.shadow = crate::cpu::Shadow::None;
        Ok(())
    }
}
