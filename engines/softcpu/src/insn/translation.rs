//! INVLPG and INVPCID (SDM Vol 3 4.10.4; Vol 2).

use iced_x86::Mnemonic;
use x86defs::cr::cr4;

use super::form::Form;
use super::next;
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, canonical};
use crate::mem::{Covered, Space};
use crate::vmx::Intercept;

impl Cpu {
    /// Forgets the page of `va`, whatever its size, in the spaces for which `which` holds.
    pub fn flush_linear(&mut self, va: u64, which: impl Fn(&Space) -> bool) {
        match self.large_pages.around(va) {
            Covered::Small => self.tlb.flush_page(va, which),
            _ if self.large_pages.crowded() => {
                self.tlb.flush(|_| true);
                self.large_pages.clear();
            }
            Covered::By2M if self.cr4 & cr4::PAE != 0 => self.tlb.flush_2m(va, which),
            // One of 1 GByte, or of 4 MByte.
            Covered::By2M | Covered::By1G => self.tlb.flush(which),
        }
    }
}

fn invlpg(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.require_cpl0()?;
    let va = cpu.effective_address(op);
    let va = if cpu.long64 {
        va.wrapping_add(cpu.ea_base[(op.seg & 7) as usize])
    } else {
        va.wrapping_add(cpu.seg[usize::from(op.seg) % 6].base) & 0xffff_ffff
    };
    cpu.intercept(Intercept::Invlpg { linear: va })?;
    cpu.serialize();
    // Global translations go whatever the PCID they were made under; that the others do is more than is asked for.
    let now = cpu.vmx_space();
    cpu.flush_linear(va, |s| s.vpid == now.vpid && s.eptp == now.eptp);
    next(cpu, op)
}

/// INVPCID (SDM Vol 2): type in `dst`, descriptor in memory.
fn invpcid(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.vmx_invpcid_enabled()?;
    cpu.require_cpl0()?;
    cpu.intercept(Intercept::Invpcid)?;
    cpu.serialize();
    let kind = if cpu.long64 {
        cpu.regs[(op.dst & 31) as usize]
    } else {
        cpu.regs[(op.dst & 31) as usize] & 0xffff_ffff
    };
    let va = cpu.linear(op, 16, false)?;
    let mut image = [0u8; 16];
    cpu.read_bytes(va, &mut image)?;
    let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|k| image[i + k]));
    let (pcid, address) = (word(0), word(8));
    if kind > 3 || pcid >> 12 != 0 {
        return cpu.gp0();
    }
    if kind <= 1 && pcid != 0 && cpu.cr4 & cr4::PCIDE == 0 {
        return cpu.gp0();
    }
    if kind == 0 && !canonical(address) {
        return cpu.gp0();
    }
    let now = cpu.vmx_space();
    let (vpid, eptp) = (now.vpid, now.eptp);
    match kind {
        0 => cpu.flush_linear(address, |s| {
            s.vpid == vpid && s.eptp == eptp && u64::from(s.pcid) == pcid
        }),
        1 => cpu
            .tlb
            .flush_local(|s| s.vpid == vpid && s.eptp == eptp && u64::from(s.pcid) == pcid),
        2 => cpu.tlb.flush(|s| s.vpid == vpid && s.eptp == eptp),
        _ => cpu.tlb.flush_local(|s| s.vpid == vpid && s.eptp == eptp),
    }
    next(cpu, op)
}

pub fn bind_tlb(form: &Form, _: &mut Op) -> Option<Handler> {
    Some(if form.mnemonic() == Mnemonic::Invlpg {
        invlpg
    } else {
        invpcid
    })
}
