//! System instructions: control, debug and segment registers, descriptor tables, TLB control, CPUID, HLT,
//! flag instructions, port I/O (SDM Vol 2; Vol 3 chapter 2).

use iced_x86::{Mnemonic, Register};
use vcpu::MpState;
use x86defs::cr::{cr0, cr4, dr, efer};
use x86defs::exception::{DB, NM};
use x86defs::rflags;
use x86defs::segment::Selector;

use super::form::{Form, Kind};
use super::operand::{Int, Mem, Place, Source};
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Fault, Flow, Shadow, Trap, canonical, gpr, pending, sreg};
use crate::mem::Space;
use crate::vmx::{DescriptorAccess, Intercept, IoAccess};

impl Cpu {
    /// The address space translations belong to now.
    pub fn update_space(&mut self) {
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

    /// Forgets the page of `va`, whatever its size, in the spaces for which `which` holds.
    pub fn flush_linear(&mut self, va: u64, which: impl Fn(&Space) -> bool) {
        if !self.large_pages.may_cover(va) {
            self.tlb.flush_page(va, which);
        } else if self.large_pages.crowded() {
            self.tlb.flush(|_| true);
            self.large_pages.clear();
        } else {
            self.tlb.flush(which);
        }
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

    /// MOV to CR3.
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
                .flush(|s| s.vpid == now.vpid && s.eptp == now.eptp && s.pcid == now.pcid);
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
        let paging = cr4::PSE | cr4::PAE | cr4::PGE | cr4::PCIDE | cr4::SMEP | cr4::SMAP | cr4::PKE;
        if changed & paging != 0 {
            self.flush_tlb();
        }
        self.update_space();
        self.mode_changed();
        Ok(())
    }

    /// Port permission: IOPL, then the TSS's bitmap (SDM Vol 1 19.5).
    pub fn check_io_permission(&mut self, port: u16, size_bytes: u8) -> Flow {
        if !self.protected() || (self.cpl <= self.iopl() && !self.v8086()) {
            return Ok(());
        }
        // A 16-bit TSS has no bitmap.
        if self.tr.access.segment_type() & 8 == 0 || self.tr.limit < 0x67 {
            return self.gp0();
        }
        let map: u16 = self.read_system(self.tr.base.wrapping_add(0x66))?;
        let at = u64::from(map) + u64::from(port) / 8;
        if at + 1 > u64::from(self.tr.limit) {
            return self.gp0();
        }
        let bits: u16 = self.read_system(self.tr.base.wrapping_add(at))?;
        let wanted = ((1u16 << size_bytes) - 1) << (port & 7);
        if bits & wanted != 0 {
            self.gp0()
        } else {
            Ok(())
        }
    }

    /// SGDT, SIDT, SLDT, STR, SMSW at CPL 3 with CR4.UMIP.
    fn check_umip(&mut self) -> Flow {
        if self.cpl == 3 && self.cr4 & cr4::UMIP != 0 {
            self.gp0()
        } else {
            Ok(())
        }
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

/// Handlers that end their block continue behind themselves.
fn next(cpu: &mut Cpu, op: &Op) -> Flow {
    let rip = cpu.rip_after(op);
    cpu.next_rip = if cpu.long64 { rip } else { rip & 0xffff_ffff };
    Ok(())
}

/// DR accesses: general detect, CR4.DE aliasing (SDM Vol 3 18.2).
fn debug_register(cpu: &mut Cpu, n: u8, gpr: u8, read: bool) -> Result<usize, Trap> {
    // This one exit comes before the faults of privilege and CR4.DE (SDM Vol 3 26.1.3).
    cpu.intercept(Intercept::DrAccess { dr: n, gpr, read })?;
    if matches!(n, 4 | 5) && cpu.cr4 & cr4::DE != 0 {
        return cpu.ud();
    }
    cpu.require_cpl0()?;
    if cpu.dr7 & dr::DR7_GD != 0 {
        cpu.fault = Fault {
            vector: DB,
            error_code: 0,
            detail: dr::DR6_BD,
        };
        return Err(Trap::Exception);
    }
    Ok(usize::from(if matches!(n, 4 | 5) { n + 2 } else { n }))
}

fn read_dr<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let n = debug_register(cpu, op.src, op.dst, true)?;
    let v = match n {
        0..=3 => cpu.dr[n],
        6 => cpu.dr6,
        _ => cpu.dr7,
    };
    T::set_reg(cpu, op.dst, T::from_u64(v));
    Ok(())
}

fn write_dr<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let n = debug_register(cpu, op.dst, op.src, false)?;
    let v = T::reg(cpu, op.src).to_u64();
    if n >= 6 && v >> 32 != 0 {
        return cpu.gp0();
    }
    match n {
        0..=3 => cpu.dr[n] = v,
        6 => cpu.dr6 = (v & dr::DR6_WRITABLE) | dr::DR6_FIXED_1,
        _ => {
            cpu.dr7 = (v & dr::DR7_WRITABLE) | dr::DR7_FIXED_1;
            cpu.debug_changed();
        }
    }
    next(cpu, op)
}

fn store_segment<T: Int, const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector = cpu.seg[usize::from(op.src) % 6].selector.0;
    if MEMORY {
        return Mem::set::<u16>(cpu, op, selector);
    }
    T::set_reg(cpu, op.dst, T::from_u64(u64::from(selector)));
    Ok(())
}

fn move_to_segment<const MEMORY: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let selector = if MEMORY {
        Mem::get::<u16>(cpu, op)?
    } else {
        u16::reg(cpu, op.src)
    };
    let seg = usize::from(op.dst) % 6;
    cpu.load_segment(seg, Selector(selector))?;
    if seg == sreg::SS {
        cpu.shadow = Shadow::MovSs;
        cpu.pending |= pending::SHADOW;
    }
    next(cpu, op)
}

/// MOV with a segment, control or debug register.
pub fn bind_mov_special(form: &Form, op: &mut Op) -> Option<Handler> {
    let (r0, r1) = (form.insn.op0_register(), form.insn.op1_register());
    let _ = op;
    let long = form.long64();
    Some(match (r0, r1) {
        (_, s) if s.is_segment_register() => match (form.kind(0), form.size(0)) {
            (Kind::Mem, _) => store_segment::<u16, true>,
            (_, 2) => store_segment::<u16, false>,
            (_, 4) => store_segment::<u32, false>,
            _ => store_segment::<u64, false>,
        },
        (s, _) if s.is_segment_register() => {
            if s == Register::CS {
                super::invalid_opcode
            } else if form.kind(1) == Kind::Mem {
                move_to_segment::<true>
            } else {
                move_to_segment::<false>
            }
        }
        (_, c) if c.is_cr() => {
            if long {
                read_cr::<u64>
            } else {
                read_cr::<u32>
            }
        }
        (c, _) if c.is_cr() => {
            if long {
                write_cr::<u64>
            } else {
                write_cr::<u32>
            }
        }
        (_, d) if d.is_dr() => {
            if long {
                read_dr::<u64>
            } else {
                read_dr::<u32>
            }
        }
        (d, _) if d.is_dr() => {
            if long {
                write_dr::<u64>
            } else {
                write_dr::<u32>
            }
        }
        _ => return None,
    })
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
        4 => base & 0xffff_ffff,
        _ => base & 0xff_ffff,
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
            C::Lgdt_m1632_16 | C::Lidt_m1632_16 => 3,
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
    if !cpu.protected() || cpu.v8086() {
        return cpu.ud();
    }
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
    if !cpu.protected() || cpu.v8086() {
        return cpu.ud();
    }
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

pub fn bind_system_selector(form: &Form, _: &mut Op) -> Option<Handler> {
    let memory = form.kind(0) == Kind::Mem;
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

fn invlpg(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.require_cpl0()?;
    let va = cpu.effective_address(op);
    let va = if cpu.long64 {
        va.wrapping_add(cpu.ea_base[(op.seg & 7) as usize])
    } else {
        va.wrapping_add(cpu.seg[usize::from(op.seg) % 6].base) & 0xffff_ffff
    };
    cpu.intercept(Intercept::Invlpg { linear: va })?;
    // Global translations are not told apart, so every PCID forgets the page.
    let now = cpu.vmx_space();
    cpu.flush_linear(va, |s| s.vpid == now.vpid && s.eptp == now.eptp);
    next(cpu, op)
}

/// INVPCID (SDM Vol 2): type in `dst`, descriptor in memory.
fn invpcid(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.vmx_invpcid_enabled()?;
    cpu.require_cpl0()?;
    cpu.intercept(Intercept::Invpcid)?;
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
            .flush(|s| s.vpid == vpid && s.eptp == eptp && u64::from(s.pcid) == pcid),
        _ => cpu.tlb.flush(|s| s.vpid == vpid && s.eptp == eptp),
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

fn cpuid(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.intercept(Intercept::Cpuid)?;
    let (leaf, subleaf) = (cpu.regs[gpr::RAX] as u32, cpu.regs[gpr::RCX] as u32);
    let r = cpu.cpuid(leaf, subleaf);
    for (reg, v) in [
        (gpr::RAX, r.eax),
        (gpr::RBX, r.ebx),
        (gpr::RCX, r.ecx),
        (gpr::RDX, r.edx),
    ] {
        cpu.regs[reg] = u64::from(v);
    }
    Ok(())
}

impl Cpu {
    /// CPUID with what depends on this vCPU and its mode.
    pub fn cpuid(&mut self, leaf: u32, subleaf: u32) -> vcpu::cpuid::CpuidResult {
        let base = self
            .platform
            .apic_msr_read(x86defs::msr::IA32_APIC_BASE)
            .unwrap_or(0);
        let fields = vcpu::cpuid::VcpuFields {
            apic_id: self.index,
            apic_enabled: base & 1 << 11 != 0,
            osxsave: self.cr4 & cr4::OSXSAVE != 0,
            xcr0: self.xcr0,
            mode64: self.long64,
        };
        self.model.cpuid.for_vcpu(leaf, subleaf, &fields)
    }
}

fn hlt(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.require_cpl0()?;
    cpu.intercept(Intercept::Hlt)?;
    cpu.activity = MpState::Halted;
    cpu.pending |= pending::INACTIVE;
    next(cpu, op)
}

fn rdtsc<const P: bool>(cpu: &mut Cpu, _: &Op) -> Flow {
    if P {
        cpu.vmx_rdtscp_enabled()?;
    }
    if cpu.cr4 & cr4::TSD != 0 && cpu.cpl != 0 {
        return cpu.gp0();
    }
    cpu.intercept(if P {
        Intercept::Rdtscp
    } else {
        Intercept::Rdtsc
    })?;
    let tsc = cpu.guest_tsc();
    cpu.regs[gpr::RAX] = tsc & 0xffff_ffff;
    cpu.regs[gpr::RDX] = tsc >> 32;
    if P {
        cpu.regs[gpr::RCX] = cpu.msr.tsc_aux & 0xffff_ffff;
    }
    Ok(())
}

/// RDPMC: no counters are there, so every index is refused (SDM Vol 2, RDPMC).
fn rdpmc(cpu: &mut Cpu, _: &Op) -> Flow {
    if cpu.cr4 & cr4::PCE == 0 && cpu.cpl != 0 {
        return cpu.gp0();
    }
    cpu.intercept(Intercept::Rdpmc)?;
    cpu.gp0()
}

fn invd(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.require_cpl0()?;
    let invd = op.extra == 0;
    cpu.intercept(if invd {
        Intercept::Invd
    } else {
        Intercept::Wbinvd
    })
}

fn pause(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.intercept(Intercept::Pause)
}

fn nothing(_: &mut Cpu, _: &Op) -> Flow {
    Ok(())
}

fn swapgs(cpu: &mut Cpu, _: &Op) -> Flow {
    if !cpu.long64 {
        return cpu.ud();
    }
    cpu.require_cpl0()?;
    std::mem::swap(&mut cpu.seg[sreg::GS].base, &mut cpu.msr.kernel_gs_base);
    cpu.ea_base[sreg::GS] = cpu.seg[sreg::GS].base;
    Ok(())
}

/// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE: `src` is the segment, `extra` 1 for writes.
fn segment_base<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    if !cpu.long64 || cpu.cr4 & cr4::FSGSBASE == 0 {
        return cpu.ud();
    }
    let seg = usize::from(op.src) % 6;
    if op.extra == 0 {
        let v = cpu.seg[seg].base;
        T::set_reg(cpu, op.dst, T::from_u64(v));
        return Ok(());
    }
    let v = T::reg(cpu, op.dst).to_u64();
    if !canonical(v) {
        return cpu.gp0();
    }
    cpu.seg[seg].base = v;
    cpu.ea_base[seg] = v;
    Ok(())
}

/// CLFLUSH and friends, and prefetches that must not fault: the former check their byte like a load.
fn clflush(cpu: &mut Cpu, op: &Op) -> Flow {
    let va = cpu.linear(op, 1, false)?;
    if cpu.tlb.read_hit(va, 1).is_some() {
        return Ok(());
    }
    // The byte is not read: it may be a device's register.
    cpu.probe_read(va)
}

fn random<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.intercept(if op.extra == 0 {
        Intercept::Rdrand
    } else {
        Intercept::Rdseed
    })?;
    let v = cpu.random();
    T::set_reg(cpu, op.dst, T::from_u64(v));
    // CF says that a value was delivered; the others are cleared.
    cpu.flags.set_bits(rflags::CF);
    Ok(())
}

fn rdpid(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.vmx_rdtscp_enabled()?;
    let v = cpu.msr.tsc_aux & 0xffff_ffff;
    cpu.regs[(op.dst & 31) as usize] = v;
    Ok(())
}

fn wait(cpu: &mut Cpu, _: &Op) -> Flow {
    if cpu.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS {
        return cpu.raise(NM);
    }
    cpu.check_x87_pending()
}

pub fn bind_plain(form: &Form, op: &mut Op) -> Option<Handler> {
    use Mnemonic as M;
    Some(match form.mnemonic() {
        M::Cpuid => cpuid,
        M::Hlt => hlt,
        M::Rdtsc => rdtsc::<false>,
        M::Rdtscp => rdtsc::<true>,
        M::Rdpmc => rdpmc,
        M::Invd => {
            op.extra = 0;
            invd
        }
        M::Wbinvd | M::Wbnoinvd => {
            op.extra = 1;
            invd
        }
        M::Pause => pause,
        M::Swapgs => swapgs,
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => {
            let m = form.mnemonic();
            op.src = if matches!(m, M::Rdfsbase | M::Wrfsbase) {
                sreg::FS
            } else {
                sreg::GS
            } as u8;
            op.extra = u16::from(matches!(m, M::Wrfsbase | M::Wrgsbase));
            if form.size(0) == 4 {
                segment_base::<u32>
            } else {
                segment_base::<u64>
            }
        }
        M::Clflush | M::Clflushopt => clflush,
        M::Rdrand | M::Rdseed => {
            op.extra = u16::from(form.mnemonic() == M::Rdseed);
            // For the instruction information of a VM exit.
            op.imm = form.size(0) as u64;
            match form.size(0) {
                2 => random::<u16>,
                4 => random::<u32>,
                _ => random::<u64>,
            }
        }
        M::Rdpid => rdpid,
        M::Wait => wait,
        _ => nothing,
    })
}

fn flag_instruction(cpu: &mut Cpu, op: &Op) -> Flow {
    match op.extra {
        0 => cpu.flags.set_cf(false),
        1 => cpu.flags.set_cf(true),
        2 => {
            let cf = cpu.flags.cf();
            cpu.flags.set_cf(!cf);
        }
        3 => cpu.rflags_rest &= !rflags::DF,
        4 => cpu.rflags_rest |= rflags::DF,
        5 => {
            let image = cpu.flags.bits() & 0xff | rflags::FIXED_1;
            u8::set_reg(cpu, 0x20, image as u8);
        }
        _ => {
            let low = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF;
            let ah = u64::from(u8::reg(cpu, 0x20));
            let bits = (cpu.flags.bits() & !low) | (ah & low);
            cpu.flags.set_bits(bits);
        }
    }
    Ok(())
}

fn cli(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.protected() && cpu.cpl > cpu.iopl() {
        return cpu.gp0();
    }
    let _ = op;
    cpu.rflags_rest &= !rflags::IF;
    Ok(())
}

fn sti(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.protected() && cpu.cpl > cpu.iopl() {
        return cpu.gp0();
    }
    if cpu.rflags_rest & rflags::IF == 0 {
        cpu.rflags_rest |= rflags::IF;
        cpu.shadow = Shadow::Sti;
        cpu.pending |= pending::SHADOW | pending::INTERRUPT | pending::VMX;
    }
    next(cpu, op)
}

fn alignment_flag<const SET: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    if cpu.cpl != 0 || cpu.model.cr4_allowed & cr4::SMAP == 0 {
        return cpu.ud();
    }
    let _ = op;
    if SET {
        cpu.rflags_rest |= rflags::AC;
    } else {
        cpu.rflags_rest &= !rflags::AC;
    }
    cpu.select_view();
    Ok(())
}

pub fn bind_flag(form: &Form, op: &mut Op) -> Option<Handler> {
    use Mnemonic as M;
    op.extra = match form.mnemonic() {
        M::Clc => 0,
        M::Stc => 1,
        M::Cmc => 2,
        M::Cld => 3,
        M::Std => 4,
        M::Lahf => 5,
        M::Sahf => 6,
        M::Cli => return Some(cli),
        M::Sti => return Some(sti),
        M::Stac => return Some(alignment_flag::<true>),
        _ => return Some(alignment_flag::<false>),
    };
    Some(flag_instruction)
}

fn port<T: Int>(cpu: &mut Cpu, op: &Op, input: bool) -> Result<u16, Trap> {
    let immediate = op.extra == 1;
    let port = if immediate {
        op.imm as u16 & 0xff
    } else {
        cpu.regs[gpr::RDX] as u16
    };
    cpu.check_io_permission(port, T::SIZE as u8)?;
    cpu.intercept(Intercept::Io(IoAccess {
        port,
        size_bytes: T::SIZE as u8,
        input,
        string: false,
        rep: false,
        immediate,
        linear: 0,
    }))?;
    cpu.watch_io(port, T::SIZE as u8);
    Ok(port)
}

fn input<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let port = port::<T>(cpu, op, true)?;
    let v = cpu.platform.pio_read(port, T::SIZE as u8);
    T::set_reg(cpu, 0, T::from_u64(u64::from(v)));
    next(cpu, op)
}

fn output<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    let port = port::<T>(cpu, op, false)?;
    let v = T::reg(cpu, 0).to_u64() as u32;
    cpu.platform.pio_write(port, T::SIZE as u8, v);
    next(cpu, op)
}

pub fn bind_io(form: &Form, op: &mut Op) -> Option<Handler> {
    let is_in = form.mnemonic() == Mnemonic::In;
    let data = if is_in { form.size(0) } else { form.size(1) };
    let other = if is_in { form.kind(1) } else { form.kind(0) };
    op.extra = u16::from(other == Kind::Imm);
    Some(match (is_in, data) {
        (true, 1) => input::<u8>,
        (true, 2) => input::<u16>,
        (true, _) => input::<u32>,
        (false, 1) => output::<u8>,
        (false, 2) => output::<u16>,
        (false, _) => output::<u32>,
    })
}
