//! The two ways software reaches the registers: the xAPIC's page and the x2APIC's MSRs.

use bus::VirtualTime;

use super::{Lapic, MsrFault, Outgoing, Registers, regs};
use crate::message::Trigger;

impl Lapic {
    // ---- the xAPIC interface (SDM Vol 3 12.4.1) ----

    /// Reads `data.len()` bytes at `offset` of the register page. Only aligned doublewords are architectural;
    /// other accesses inside one read its bytes, and the rest read zero.
    pub fn mmio_read(&mut self, offset: u64, data: &mut [u8], now: VirtualTime) {
        if self.mmio_base().is_none() {
            data.fill(0xff);
            return;
        }
        let value = self.mmio_register(offset >> 4, now).to_le_bytes();
        let first = (offset & 15) as usize;
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = value.get(first + i).copied().unwrap_or(0);
        }
    }

    fn mmio_register(&mut self, register: u64, now: VirtualTime) -> u32 {
        let register = u32::try_from(register).unwrap_or(u32::MAX);
        match register {
            regs::ID => self.config.apic_id << 24,
            regs::DFR => self.r.dfr,
            regs::ICR_LOW => self.r.icr as u32,
            regs::ICR_HIGH => (self.r.icr >> 32) as u32,
            // Write-only.
            regs::EOI => 0,
            _ => self.read_register(register, now).unwrap_or_else(|| {
                self.error(regs::ESR_ILLEGAL_REGISTER);
                0
            }),
        }
    }

    /// Writes a register; anything but an aligned doubleword is dropped.
    pub fn mmio_write(&mut self, offset: u64, data: &[u8], now: VirtualTime) -> Option<Outgoing> {
        self.mmio_base()?;
        let value = u32::from_le_bytes(data.try_into().ok()?);
        if offset & 15 != 0 {
            return None;
        }
        let register = u32::try_from(offset >> 4).unwrap_or(u32::MAX);
        match register {
            regs::ID | regs::VERSION | regs::PPR | regs::CURRENT_COUNT => None,
            // Not there, but a write to them is no error (table 12-1, note 1).
            regs::ARBITRATION_PRIORITY | regs::REMOTE_READ => None,
            regs::ISR..regs::ESR => None,
            regs::LDR => {
                self.r.ldr = value & 0xff00_0000;
                None
            }
            regs::DFR => {
                self.r.dfr = value | 0x0fff_ffff;
                None
            }
            regs::ICR_LOW => {
                self.advance(now);
                self.r.icr = self.r.icr & !0xffff_ffff | u64::from(value & regs::ICR_WRITABLE);
                self.send()
            }
            regs::ICR_HIGH => {
                self.r.icr = self.r.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
                None
            }
            _ => self
                .write_register(register, value, now)
                .unwrap_or_else(|| {
                    self.error(regs::ESR_ILLEGAL_REGISTER);
                    None
                }),
        }
    }

    // ---- MSRs: IA32_APIC_BASE, IA32_TSC_DEADLINE and the x2APIC interface (SDM Vol 3 12.12) ----

    /// Reads one of this local APIC's MSRs.
    ///
    /// # Errors
    /// [`MsrFault`] where the manual gives #GP(0), and for MSRs that are not the local APIC's.
    pub fn msr_read(&mut self, msr: u32, now: VirtualTime) -> Result<u64, MsrFault> {
        match msr {
            regs::MSR_APIC_BASE => return Ok(self.base),
            regs::MSR_TSC_DEADLINE if self.config.tsc_deadline => {
                self.advance(now);
                return Ok(self.r.timer.tsc_deadline());
            }
            regs::MSR_X2APIC_FIRST..=regs::MSR_X2APIC_LAST if self.x2apic_mode() => {}
            _ => return Err(MsrFault),
        }
        match msr - regs::MSR_X2APIC_FIRST {
            regs::ID => Ok(u64::from(self.config.apic_id)),
            regs::ICR_LOW => Ok(self.r.icr),
            register => self
                .read_register(register, now)
                .map(u64::from)
                .ok_or(MsrFault),
        }
    }

    /// Writes one of this local APIC's MSRs.
    ///
    /// # Errors
    /// [`MsrFault`] where the manual gives #GP(0): reserved bits, read-only or absent registers, illegal mode changes.
    pub fn msr_write(
        &mut self,
        msr: u32,
        value: u64,
        now: VirtualTime,
    ) -> Result<Option<Outgoing>, MsrFault> {
        match msr {
            regs::MSR_APIC_BASE => return self.write_base(value, now).map(|()| None),
            regs::MSR_TSC_DEADLINE if self.config.tsc_deadline => {
                self.advance(now);
                self.r.timer.set_tsc_deadline(value, self.tsc, now);
                self.advance(now);
                return Ok(None);
            }
            regs::MSR_X2APIC_FIRST..=regs::MSR_X2APIC_LAST if self.x2apic_mode() => {}
            _ => return Err(MsrFault),
        }
        let register = msr - regs::MSR_X2APIC_FIRST;
        if value & self.x2apic_reserved(register)? != 0 {
            return Err(MsrFault);
        }
        match register {
            regs::ICR_LOW => {
                self.advance(now);
                self.r.icr = value & (0xffff_ffff_0000_0000 | u64::from(regs::ICR_WRITABLE));
                Ok(self.send())
            }
            regs::SELF_IPI => {
                self.advance(now);
                if (value as u8) < 16 {
                    self.error(regs::ESR_SEND_ILLEGAL_VECTOR);
                }
                self.accept_vector(value as u8, Trigger::Edge);
                Ok(None)
            }
            _ => self
                .write_register(register, value as u32, now)
                .ok_or(MsrFault),
        }
    }

    /// The bits of an x2APIC register whose setting gives #GP (SDM Vol 3 12.12.1.2 and 12.12.1.3).
    fn x2apic_reserved(&self, register: u32) -> Result<u64, MsrFault> {
        Ok(match register {
            regs::TPR | regs::SELF_IPI => !0xff,
            // These take only zero.
            regs::EOI | regs::ESR => !0,
            regs::SVR => !u64::from(regs::SVR_WRITABLE),
            regs::ICR_LOW => u64::from(regs::ICR_RESERVED),
            regs::LVT..regs::INITIAL_COUNT => {
                let index = (register - regs::LVT) as usize;
                let mut allowed = regs::LVT_WRITABLE[index] | regs::LVT_READ_ONLY;
                if index != regs::LVT_LINT0 && index != regs::LVT_LINT1 {
                    allowed &= !regs::LVT_REMOTE_IRR;
                }
                if index == regs::LVT_TIMER && !self.config.tsc_deadline {
                    allowed &= !(1 << 18);
                }
                !u64::from(allowed)
            }
            regs::INITIAL_COUNT => !0xffff_ffff,
            regs::DIVIDE => !0xb,
            _ => return Err(MsrFault),
        })
    }

    /// IA32_APIC_BASE: modes change only along the arrows of SDM Vol 3 figure 12-27.
    fn write_base(&mut self, value: u64, now: VirtualTime) -> Result<(), MsrFault> {
        let extd = if self.config.x2apic {
            regs::BASE_EXTD
        } else {
            0
        };
        let address = (1u64 << self.config.physical_address_bits.clamp(32, 52)) - 0x1000;
        if value & !(regs::BASE_BSP | regs::BASE_EN | extd | address) != 0 {
            return Err(MsrFault);
        }
        let enable = value & regs::BASE_EN != 0;
        let extended = value & regs::BASE_EXTD != 0;
        let legal = match (self.enabled(), self.x2apic_mode()) {
            _ if extended && !enable => false,
            (false, _) => !extended,
            (true, false) => true,
            (true, true) => extended || !enable,
        };
        if !legal {
            return Err(MsrFault);
        }
        self.advance(now);
        if self.enabled() && !enable {
            self.r = Registers::new(self.config.bus_hz);
        }
        if extended && !self.x2apic_mode() {
            self.r.icr &= 0xffff_ffff;
        }
        self.base = value;
        Ok(())
    }
}
