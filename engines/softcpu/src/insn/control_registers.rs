//! Control registers: MOV CR, CLTS, LMSW, SMSW (SDM Vol 3 2.5; Vol 2).

use iced_x86::Mnemonic;
use x86defs::cr::{cr0, cr4, efer};

use super::form::{Form, Kind};
use super::next;
use super::operand::{Int, Mem, Place, Source};
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, sreg};
use crate::mem::Space;
use crate::vmx::Intercept;

impl Cpu {
    /// The address space translations belong to now.
    pub fn update_space(&mut self) {
        self.serialize();
        let pcid = if self.cr4 & cr4::PCIDE != 0 {
            (self.cr3 & 0xfff) as u16
        } else {
            0
        };
        let space = Space {
            pcid,
            ..self.vmx_space()
        };
        self.tlb.select_space(space);
    }

    /// Forgets every translation of the running VPID (a paging-mode change, SDM Vol 3 4.10.4.1).
    pub fn flush_tlb(&mut self) {
        let now = self.vmx_space();
        self.tlb.flush(|s| s.vpid == now.vpid && s.eptp == now.eptp);
        self.update_space();
    }

    /// MOV to CR0 with all its checks (SDM Vol 3 2.5, 10.8.6; Vol 2 MOV).
    pub fn write_cr0(&mut self, value: u64) -> Flow {
        if value >> 32 != 0 {
            return self.gp0();
        }
        let value = (value & cr0::DEFINED) | cr0::ET;
        let old = self.cr0;
        let on = |bit: u64| value & bit != 0;
        if (on(cr0::PG) && !on(cr0::PE))
            || (on(cr0::NW) && !on(cr0::CD))
            || !self.vmx_cr0_allowed(value)
        {
            return self.gp0();
        }
        let mut new_efer = self.efer;
        if on(cr0::PG) && old & cr0::PG == 0 {
            if self.efer & efer::LME != 0 {
                // The TSS must have its 32-bit form, too (SDM Vol 2, MOV to control registers).
                let tss16 = self.tr.access.segment_type() & 8 == 0;
                if self.cr4 & cr4::PAE == 0 || self.seg[sreg::CS].access.long() || tss16 {
                    return self.gp0();
                }
                new_efer |= efer::LMA;
            }
        } else if !on(cr0::PG) && old & cr0::PG != 0 {
            if self.long64 || self.cr4 & cr4::PCIDE != 0 {
                return self.gp0();
            }
            new_efer &= !efer::LMA;
        }
        let pae = on(cr0::PG) && self.cr4 & cr4::PAE != 0 && new_efer & efer::LMA == 0;
        if pae && (old ^ value) & (cr0::CD | cr0::NW | cr0::PG) != 0 {
            // SDM Vol 3 4.4.1.
            let cr3 = self.cr3;
            if !self.load_pdptes(cr3)? {
                return self.gp0();
            }
        }
        self.cr0 = value;
        self.efer = new_efer;
        if (old ^ value) & (cr0::PG | cr0::WP | cr0::PE) != 0 {
            self.flush_tlb();
        }
        self.mode_changed();
        Ok(())
    }

    /// MOV to CR3 (SDM Vol 3 4.10.4.1): global translations stay.
    pub fn write_cr3(&mut self, value: u64) -> Flow {
        let pcide = self.cr4 & cr4::PCIDE != 0;
        let keep = pcide && value >> 63 != 0;
        let value = if pcide { value & !(1 << 63) } else { value };
        if self.long_mode() {
            if value >> self.model.maxphyaddr != 0 {
                return self.gp0();
            }
        } else if self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 && !self.load_pdptes(value)? {
            return self.gp0();
        }
        self.cr3 = value;
        self.update_space();
        if !keep {
            // The same context may have translations under other mode bits, too.
            let now = self.tlb.space();
            self.tlb
                .flush_local(|s| s.vpid == now.vpid && s.eptp == now.eptp && s.pcid == now.pcid);
        }
        Ok(())
    }

    /// MOV to CR4.
    pub fn write_cr4(&mut self, value: u64) -> Flow {
        let old = self.cr4;
        let changed = old ^ value;
        if value & !self.model.cr4_allowed != 0 || !self.vmx_cr4_allowed(value) {
            return self.gp0();
        }
        if self.long_mode() {
            if value & cr4::PAE == 0 || changed & cr4::LA57 != 0 {
                return self.gp0();
            }
        } else if value & cr4::PCIDE != 0 {
            return self.gp0();
        }
        if value & cr4::PCIDE != 0 && old & cr4::PCIDE == 0 && self.cr3 & 0xfff != 0 {
            return self.gp0();
        }
        let pae_paging = self.cr0 & cr0::PG != 0 && !self.long_mode() && value & cr4::PAE != 0;
        if pae_paging && changed & (cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP) != 0 {
            let cr3 = self.cr3;
            if !self.load_pdptes(cr3)? {
                return self.gp0();
            }
        }
        self.cr4 = value;
        self.known_leaves.forget();
        let paging = cr4::PSE | cr4::PAE | cr4::PGE | cr4::PCIDE | cr4::SMEP | cr4::SMAP | cr4::PKE;
        if changed & paging != 0 {
            self.flush_tlb();
        }
        self.update_space();
        self.mode_changed();
        Ok(())
    }
}

fn read_cr<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.require_cpl0()?;
    let v = match op.src {
        0 => cpu.vmx_read_cr(0),
        2 => cpu.cr2,
        3 => {
            cpu.intercept(Intercept::CrRead { cr: 3, gpr: op.dst })?;
            cpu.cr3
        }
        4 => cpu.vmx_read_cr(4),
        8 => {
            cpu.intercept(Intercept::CrRead { cr: 8, gpr: op.dst })?;
            u64::from(cpu.read_cr8())
        }
        _ => return cpu.ud(),
    };
    T::set_reg(cpu, op.dst, T::from_u64(v));
    Ok(())
}

fn write_cr<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.require_cpl0()?;
    let v = T::reg(cpu, op.src).to_u64();
    match op.dst {
        0 => {
            let v = cpu.vmx_write_cr(0, v, op.src)?;
            cpu.write_cr0(v)?;
        }
        2 => cpu.cr2 = v,
        3 => {
            cpu.intercept(Intercept::CrWrite {
                cr: 3,
                gpr: op.src,
                value: v,
            })?;
            cpu.write_cr3(v)?;
        }
        4 => {
            let v = cpu.vmx_write_cr(4, v, op.src)?;
            cpu.write_cr4(v)?;
        }
        8 => {
            if v > 15 {
                return cpu.gp0();
            }
            cpu.intercept(Intercept::CrWrite {
                cr: 8,
                gpr: op.src,
                value: v,
            })?;
            cpu.write_cr8(v as u8)?;
        }
        _ => return cpu.ud(),
    }
    next(cpu, op)
}

/// MOV from a control register.
pub fn bind_read(form: &Form) -> Handler {
    if form.long64() {
        read_cr::<u64>
    } else {
        read_cr::<u32>
    }
}

/// MOV to a control register.
pub fn bind_write(form: &Form) -> Handler {
    if form.long64() {
        write_cr::<u64>
    } else {
        write_cr::<u32>
    }
}

fn clts(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.require_cpl0()?;
    if cpu.vmx.in_guest && !cpu.vmx_clts()? {
        return next(cpu, op);
    }
    cpu.cr0 &= !cr0::TS;
    next(cpu, op)
}

fn lmsw<const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.require_cpl0()?;
    let linear = if MEMORY {
        Some(cpu.linear(op, 2, false)?)
    } else {
        None
    };
    let v = if MEMORY {
        Mem::get::<u16>(cpu, op)?
    } else {
        u16::reg(cpu, op.dst)
    };
    cpu.intercept(Intercept::Lmsw { source: v, linear })?;
    let v = u64::from(v) & 0xf;
    // PE can be set, not cleared.
    let new = (cpu.cr0 & !0xe) | v;
    let new = if cpu.vmx.in_guest {
        cpu.vmx_mask_cr0(new)
    } else {
        new
    };
    cpu.write_cr0(new)?;
    next(cpu, op)
}

fn smsw<T: Int, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.check_umip()?;
    let v = cpu.vmx_read_cr(0);
    if MEMORY {
        return Mem::set::<u16>(cpu, op, v as u16);
    }
    T::set_reg(cpu, op.dst, T::from_u64(v));
    Ok(())
}

pub fn bind_msw(form: &Form, _: &mut Op) -> Option<Handler> {
    let memory = form.kind(0) == Kind::Mem;
    Some(match (form.mnemonic(), memory, form.size(0)) {
        (Mnemonic::Clts, ..) => clts,
        (Mnemonic::Lmsw, false, _) => lmsw::<false>,
        (Mnemonic::Lmsw, true, _) => lmsw::<true>,
        (_, true, _) => smsw::<u16, true>,
        (_, _, 2) => smsw::<u16, false>,
        (_, _, 4) => smsw::<u32, false>,
        _ => smsw::<u64, false>,
    })
}
