//! Descriptor-table registers: LGDT, LIDT, LLDT, LTR and their stores (SDM Vol 3 2.4; Vol 2).

use iced_x86::Mnemonic;
use x86defs::cr::cr4;
use x86defs::segment::Selector;

use super::form::{Form, Kind};
use super::operand::{Int, Mem, Place, Source};
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, canonical};
use crate::vmx::{DescriptorAccess, Intercept};

impl Cpu {
    /// SGDT, SIDT, SLDT, STR, SMSW at CPL 3 with CR4.UMIP.
    pub fn check_umip(&mut self) -> Flow {
        if self.cpl == 3 && self.cr4 & cr4::UMIP != 0 {
            self.gp0()
        } else {
            Ok(())
        }
    }
}

/// What [`Op::extra`] of LGDT, LIDT, SGDT and SIDT is with 16-bit operands.
pub const OPERAND_SIZE_16: u16 = 3;

/// LGDT, LIDT: `extra` is the base's width in bytes as stored in memory (8, 4, or 3 with 16-bit operands).
fn load_table(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.require_cpl0()?;
    let idt = op.src == 1;
    cpu.intercept(Intercept::Descriptor(if idt {
        DescriptorAccess::Lidt
    } else {
        DescriptorAccess::Lgdt
    }))?;
    let bytes = if op.extra == 8 { 10 } else { 6 };
    let va = cpu.linear(op, bytes, false)?;
    let mut image = [0u8; 10];
    cpu.read_bytes(va, &mut image[..bytes as usize])?;
    let limit = u16::from_le_bytes([image[0], image[1]]);
    let mut base = [0u8; 8];
    base.copy_from_slice(&image[2..10]);
    let base = u64::from_le_bytes(base);
    let base = match op.extra {
        8 => base,
        OPERAND_SIZE_16 => base & 0xff_ffff,
        _ => base & 0xffff_ffff,
    };
    if op.extra == 8 && !canonical(base) {
        return cpu.gp0();
    }
    let table = vcpu::DescriptorTable { base, limit };
    if idt {
        cpu.idtr = table;
    } else {
        cpu.gdtr = table;
    }
    Ok(())
}

fn store_table(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.check_umip()?;
    let idt = op.src == 1;
    cpu.intercept(Intercept::Descriptor(if idt {
        DescriptorAccess::Sidt
    } else {
        DescriptorAccess::Sgdt
    }))?;
    let table = if idt { cpu.idtr } else { cpu.gdtr };
    let bytes = if op.extra == 8 { 10 } else { 6 };
    let mut image = [0u8; 10];
    image[..2].copy_from_slice(&table.limit.to_le_bytes());
    image[2..].copy_from_slice(&table.base.to_le_bytes());
    let va = cpu.linear(op, bytes, true)?;
    cpu.write_bytes(va, &image[..bytes as usize])
}

pub fn bind_table(form: &Form, op: &mut Op) -> Option<Handler> {
    let m = form.mnemonic();
    op.src = u8::from(matches!(m, Mnemonic::Lidt | Mnemonic::Sidt));
    op.extra = if form.long64() {
        8
    } else if form.insn.memory_size() == iced_x86::MemorySize::Fword6 {
        use iced_x86::Code as C;
        match form.insn.code() {
            C::Lgdt_m1632_16 | C::Lidt_m1632_16 | C::Sgdt_m1632_16 | C::Sidt_m1632_16 => {
                OPERAND_SIZE_16
            }
            _ => 4,
        }
    } else {
        4
    };
    Some(if matches!(m, Mnemonic::Lgdt | Mnemonic::Lidt) {
        load_table
    } else {
        store_table
    })
}

fn load_system_selector<const TR: bool, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.require_protected()?;
    cpu.require_cpl0()?;
    cpu.intercept(Intercept::Descriptor(if TR {
        DescriptorAccess::Ltr
    } else {
        DescriptorAccess::Lldt
    }))?;
    let s = if MEMORY {
        Mem::get::<u16>(cpu, op)?
    } else {
        u16::reg(cpu, op.dst)
    };
    if TR {
        cpu.load_tr(Selector(s))
    } else {
        cpu.load_ldtr(Selector(s))
    }
}

fn store_system_selector<T: Int, const TR: bool, const MEMORY: bool>(
    cpu: &mut Cpu,
    op: &Op,
) -> Flow {
    cpu.require_protected()?;
    cpu.check_umip()?;
    cpu.intercept(Intercept::Descriptor(if TR {
        DescriptorAccess::Str
    } else {
        DescriptorAccess::Sldt
    }))?;
    let s = if TR {
        cpu.tr.selector.0
    } else {
        cpu.ldtr.selector.0
    };
    if MEMORY {
        return Mem::set::<u16>(cpu, op, s);
    }
    T::set_reg(cpu, op.dst, T::from_u64(u64::from(s)));
    Ok(())
}

pub fn bind_system_selector(form: &Form, op: &mut Op) -> Option<Handler> {
    let memory = form.kind(0) == Kind::Mem;
    // A VM exit describes the operand.
    op.extra = u16::from(memory);
    macro_rules! store {
        ($tr:literal) => {
            match (memory, form.size(0)) {
                (true, _) => store_system_selector::<u16, $tr, true>,
                (_, 2) => store_system_selector::<u16, $tr, false>,
                (_, 4) => store_system_selector::<u32, $tr, false>,
                _ => store_system_selector::<u64, $tr, false>,
            }
        };
    }
    Some(match (form.mnemonic(), memory) {
        (Mnemonic::Ltr, false) => load_system_selector::<true, false>,
        (Mnemonic::Ltr, true) => load_system_selector::<true, true>,
        (Mnemonic::Lldt, false) => load_system_selector::<false, false>,
        (Mnemonic::Lldt, true) => load_system_selector::<false, true>,
        (Mnemonic::Str, _) => store!(true),
        _ => store!(false),
    })
}
