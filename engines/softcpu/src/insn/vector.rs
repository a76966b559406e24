//! Vector and floating-point instructions: executed by the host's own (decision 0001), between the checks,
//! loads and stores that are ours.

use hostexec::{
    Bounce, Class, Facts, MXCSR_MASK, MXCSR_RESET, MaskedMemory, MemoryUse, Outcome, PrepareError,
    Prepared, X87Context,
};
use iced_x86::{Instruction, InstructionInfoFactory};
use x86defs::cr::{cr0, cr4};
use x86defs::exception::{NM, UD, XM};

use super::features::GuestFeatures;
use super::form::Form;
use super::table::{self, Bind};
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow};
use crate::flags::Flags;

/// Prepared instructions of the decoded blocks; an [`Op`] holds an index in `imm`.
pub struct VectorTable {
    prepared: Vec<Prepared>,
    /// What of the host's instructions, and of ours, the model shows.
    pub(super) features: GuestFeatures,
    /// The host's code area or this table is full: every block must be dropped.
    pub full: bool,
}

/// FCW: the masks of all exceptions.
const X87_EXCEPTIONS: u16 = 0x3f;
/// Most entries; more make the block cache start anew.
const LIMIT: usize = 1 << 18;

impl VectorTable {
    /// An empty table for a processor with these CPUID leaves.
    pub fn new(cpuid: &vcpu::cpuid::CpuidTable) -> Self {
        Self {
            prepared: Vec::new(),
            features: GuestFeatures::new(cpuid),
            full: false,
        }
    }

    /// How the decoder is to read bytes that the vendors read differently.
    pub fn decoder_options(&self) -> u32 {
        self.features.decoder_options
    }

    /// Whether the model has what the decoder lists `code` under.
    pub fn has(&self, code: iced_x86::Code) -> bool {
        self.features.has(code)
    }

    /// What is to be known of an instruction whose handler has the host execute it; nothing of others.
    pub fn facts(&self, insn: &Instruction, info: &mut InstructionInfoFactory) -> Option<Facts> {
        let host = match table::row(insn.mnemonic()).map(|r| r.bind) {
            Some(Bind::StringOrHost(_)) => !insn.is_string_instruction(),
            Some(_) => false,
            None => true,
        };
        if !host || !self.features.has_vector(insn.code()) {
            return None;
        }
        hostexec::facts_of(insn, info)
    }

    fn add(&mut self, p: Prepared) -> u64 {
        if self.prepared.len() >= LIMIT {
            self.full = true;
        }
        self.prepared.push(p);
        self.prepared.len() as u64 - 1
    }

    /// Forgets all; no decoded block may be left.
    pub fn clear(&mut self) {
        self.prepared.clear();
        self.full = false;
    }
}

/// What binders need of the vCPU.
pub struct HostSide<'a> {
    /// Prepares instructions.
    pub host: &'a mut hostexec::HostExec,
    /// Keeps them.
    pub table: &'a mut VectorTable,
}

/// Binds an instruction the host executes.
pub fn bind_host(form: &Form, op: &mut Op, side: &mut HostSide) -> Option<Handler> {
    if !side.table.features.has_vector(form.insn.code()) {
        return None;
    }
    match side.host.prepare(form.insn) {
        Ok(p) => {
            op.imm = side.table.add(p);
            Some(match (p.facts().class, p.facts().memory) {
                (Class::X87 | Class::X87NoWait, _) => x87,
                (_, MemoryUse::None) => register_only,
                (_, MemoryUse::Read(_) | MemoryUse::Write(_)) => with_memory,
                _ => masked,
            })
        }
        Err(PrepareError::Full) => {
            side.table.full = true;
            Some(super::retry)
        }
        Err(PrepareError::Undefined | PrepareError::HostLacks(_) | PrepareError::NotVector) => None,
    }
}

impl Cpu {
    /// The bits MXCSR has not, and those that mask an exception.
    pub const MXCSR_MASKS: [u64; 2] = [!(MXCSR_MASK as u64), MXCSR_RESET as u64];

    /// What keeps SSE, VEX and x87 instructions of 64-bit mode from being executed on the host with the guest's MXCSR
    /// and x87, as three words: zero if nothing does. Beside the checks before any of them (`vector_allowed`) that is
    /// an exception that is pending, or one that is not masked, because the host would raise it.
    pub fn vector_barriers(&self) -> [u64; 3] {
        let sse = self.cr0 & (cr0::EM | cr0::TS)
            | !self.cr4 & cr4::OSFXSR
            | u64::from(!self.ext.mxcsr & MXCSR_RESET);
        let vex = sse | !self.cr4 & cr4::OSXSAVE | !self.xcr0 & 6;
        let x87 = self.cr0 & (cr0::EM | cr0::TS)
            | u64::from(!self.ext.fcw() & X87_EXCEPTIONS)
            | u64::from(self.ext.x87_pending());
        [sse, vex, x87]
    }

    /// The checks before any instruction of a class (SDM Vol 3 2.5, 13.1; Vol 2 2.4).
    #[inline(always)]
    fn vector_allowed(&mut self, class: Class) -> Flow {
        let (em, ts) = (self.cr0 & cr0::EM != 0, self.cr0 & cr0::TS != 0);
        let undefined = match class {
            Class::X87 | Class::X87NoWait => {
                return if em || ts { self.raise(NM) } else { Ok(()) };
            }
            Class::Mmx => em,
            Class::Sse => em || self.cr4 & cr4::OSFXSR == 0,
            Class::Vex => {
                self.cr4 & cr4::OSXSAVE == 0
                    || self.xcr0 & 6 != 6
                    || !self.protected()
                    || self.v8086()
            }
        };
        if undefined {
            return self.raise(UD);
        }
        if ts { self.raise(NM) } else { Ok(()) }
    }

    /// What x87 and MMX instructions owe to a pending x87 exception; gives what is to be put back afterwards.
    #[inline(always)]
    fn begin_vector(&mut self, p: &Prepared) -> Result<u16, crate::cpu::Trap> {
        if p.facts().x87_state && p.facts().class != Class::X87NoWait {
            self.begin_waiting()
        } else {
            Ok(0)
        }
    }

    #[inline(always)]
    fn end_vector(&mut self, p: &Prepared, held: u16) {
        if p.facts().x87_state {
            self.end_waiting(held);
        }
    }

    #[inline(always)]
    fn run_on_host(
        &mut self,
        p: &Prepared,
        bounce: &mut Bounce,
        context: Option<&X87Context>,
    ) -> Flow {
        let flags_used = p.facts().reads_rflags || p.facts().writes_rflags;
        let mut rflags = if flags_used { self.flags.bits() } else { 0 };
        let Some(gpr) = self.regs.first_chunk_mut::<16>() else {
            unreachable!("32 registers")
        };
        let outcome = match context {
            None => self.host.run(p, &mut self.ext, gpr, bounce, &mut rflags),
            Some(c) => self
                .host
                .run_x87(p, &mut self.ext, gpr, bounce, &mut rflags, c),
        };
        match outcome {
            Outcome::Done => {
                if p.facts().writes_rflags {
                    let mut flags = Flags::default();
                    flags.set_bits(rflags);
                    self.flags = flags;
                }
                Ok(())
            }
            Outcome::StoreSuppressed => Ok(()),
            Outcome::SimdException => {
                let vector = if self.cr4 & cr4::OSXMMEXCPT != 0 {
                    XM
                } else {
                    UD
                };
                self.raise(vector)
            }
            Outcome::X87Pending => unreachable!("waiting instructions have asked"),
            Outcome::Stale => unreachable!("blocks are dropped before the code area is cleared"),
        }
    }

    fn prepared(&self, op: &Op) -> Prepared {
        self.vectors.prepared[op.imm as usize]
    }
}

fn register_only(cpu: &mut Cpu, op: &Op) -> Flow {
    let p = cpu.prepared(op);
    cpu.vector_allowed(p.facts().class)?;
    let held = cpu.begin_vector(&p)?;
    let mut bounce = std::mem::take(&mut cpu.bounce);
    let done = cpu.run_on_host(&p, &mut bounce, None);
    cpu.bounce = bounce;
    cpu.end_vector(&p, held);
    done
}

fn with_memory(cpu: &mut Cpu, op: &Op) -> Flow {
    let p = cpu.prepared(op);
    cpu.vector_allowed(p.facts().class)?;
    let held = cpu.begin_vector(&p)?;
    let mut bounce = std::mem::take(&mut cpu.bounce);
    let done = memory_instruction(cpu, op, &p, &mut bounce, None);
    cpu.bounce = bounce;
    cpu.end_vector(&p, held);
    done
}

fn memory_instruction(
    cpu: &mut Cpu,
    op: &Op,
    p: &Prepared,
    bounce: &mut Bounce,
    context: Option<&X87Context>,
) -> Flow {
    let (size, write) = match p.facts().memory {
        MemoryUse::Read(n) => (usize::from(n), false),
        MemoryUse::Write(n) => (usize::from(n), true),
        _ => (0, false),
    };
    let va = cpu.linear(op, size as u64, write)?;
    if va & (u64::from(p.facts().alignment) - 1) != 0 {
        return cpu.gp0();
    }
    // Alignment checking of what is not a whole vector (SDM Vol 3 Table 6-7).
    match size {
        2 | 4 | 8 => cpu.check_alignment(va, size as u64)?,
        10 => cpu.check_alignment(va, 8)?,
        _ => {}
    }
    if !write {
        cpu.read_bytes(va, &mut bounce.0[..size])?;
        return cpu.run_on_host(p, bounce, context);
    }
    if !p.facts().x87_state && !p.facts().simd_fp {
        cpu.run_on_host(p, bounce, context)?;
        return cpu.write_bytes(va, &bounce.0[..size]);
    }
    // Instructions that change state as well as memory (FSTP, FNSAVE, MOVNTQ) must not run if the store faults.
    if cpu.tlb.write_hit(va, size as u64).is_none() {
        cpu.probe_write(va, size as u64)?;
    }
    let suppressed = run_x87_store(cpu, p, bounce, context)?;
    if suppressed {
        Ok(())
    } else {
        cpu.write_bytes(va, &bounce.0[..size])
    }
}

/// Runs a store; true if an unmasked exception kept it from writing.
fn run_x87_store(
    cpu: &mut Cpu,
    p: &Prepared,
    bounce: &mut Bounce,
    context: Option<&X87Context>,
) -> Result<bool, crate::cpu::Trap> {
    let mut rflags = 0;
    let Some(gpr) = cpu.regs.first_chunk_mut::<16>() else {
        unreachable!("32 registers")
    };
    let outcome = match context {
        None => cpu.host.run(p, &mut cpu.ext, gpr, bounce, &mut rflags),
        Some(c) => cpu
            .host
            .run_x87(p, &mut cpu.ext, gpr, bounce, &mut rflags, c),
    };
    match outcome {
        Outcome::Done => Ok(false),
        Outcome::StoreSuppressed => Ok(true),
        Outcome::X87Pending => unreachable!("waiting instructions have asked"),
        Outcome::SimdException => {
            let vector = if cpu.cr4 & cr4::OSXMMEXCPT != 0 {
                XM
            } else {
                UD
            };
            cpu.raise(vector)
        }
        Outcome::Stale => unreachable!("blocks are dropped before the code area is cleared"),
    }
}

fn x87(cpu: &mut Cpu, op: &Op) -> Flow {
    let p = cpu.prepared(op);
    cpu.vector_allowed(p.facts().class)?;
    // A pending x87 exception comes before the memory access.
    let mut held = cpu.begin_vector(&p)?;
    let memory = p.facts().memory != MemoryUse::None;
    if memory && matches!(op.extra & 0x738, 0x120 | 0x520) {
        // FLDENV (D9 /4) and FRSTOR (DD /4) replace the status word.
        held = 0;
    }
    let context = X87Context {
        rip: cpu.regs[crate::cpu::RIP].wrapping_add(u64::from(op.offset)),
        data_address: memory.then(|| cpu.effective_address(op)),
        // The decoder has put it there.
        opcode: op.extra,
        real_mode: !cpu.protected() || cpu.v8086(),
    };
    let mut bounce = std::mem::take(&mut cpu.bounce);
    let done = if memory {
        memory_instruction(cpu, op, &p, &mut bounce, Some(&context))
    } else {
        cpu.run_on_host(&p, &mut bounce, Some(&context))
    };
    cpu.bounce = bounce;
    cpu.end_vector(&p, held);
    done
}

/// Masked moves and gathers.
fn masked(cpu: &mut Cpu, op: &Op) -> Flow {
    let p = cpu.prepared(op);
    cpu.vector_allowed(p.facts().class)?;
    let held = cpu.begin_vector(&p)?;
    let mut bounce = std::mem::take(&mut cpu.bounce);
    let done = match p.facts().memory {
        MemoryUse::MaskedRead(m) => masked_read(cpu, op, &p, m, &mut bounce),
        MemoryUse::MaskedWrite(m) => masked_write(cpu, op, &p, m, &mut bounce),
        MemoryUse::Gather(g) => gather(cpu, op, g),
        MemoryUse::None | MemoryUse::Read(_) | MemoryUse::Write(_) => {
            unreachable!("bound to another handler")
        }
    };
    cpu.bounce = bounce;
    cpu.end_vector(&p, held);
    done
}

fn masked_elements(
    m: &MaskedMemory,
    mask: u32,
) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
    let size = m.element_size();
    (0..m.size())
        .step_by(size)
        .filter(move |&i| mask >> i & 1 != 0)
        .map(move |i| i..i + size)
}

/// Nothing of an element that is not selected faults, its segment's limit and rights included (SDM Vol 2,
/// VMASKMOV).
fn masked_read(cpu: &mut Cpu, op: &Op, p: &Prepared, m: MaskedMemory, bounce: &mut Bounce) -> Flow {
    let mask = m.byte_mask(&cpu.ext);
    bounce.0[..m.size()].fill(0);
    for r in masked_elements(&m, mask) {
        let va = cpu.linear_at(op, r.start as u64, r.len() as u64, false)?;
        cpu.read_bytes(va, &mut bounce.0[r])?;
    }
    cpu.run_on_host(p, bounce, None)
}

fn masked_write(
    cpu: &mut Cpu,
    op: &Op,
    p: &Prepared,
    m: MaskedMemory,
    bounce: &mut Bounce,
) -> Flow {
    let mask = m.byte_mask(&cpu.ext);
    for r in masked_elements(&m, mask) {
        let va = cpu.linear_at(op, r.start as u64, r.len() as u64, true)?;
        cpu.probe_write(va, r.len() as u64)?;
    }
    cpu.run_on_host(p, bounce, None)?;
    for r in masked_elements(&m, mask) {
        let va = cpu.linear_at(op, r.start as u64, r.len() as u64, true)?;
        cpu.write_bytes(va, &bounce.0[r])?;
    }
    Ok(())
}

/// A gather stops at a faulting element; what is complete stays complete (SDM Vol 2, VPGATHERDD).
fn gather(cpu: &mut Cpu, op: &Op, g: hostexec::Gather) -> Flow {
    let size = g.element_size();
    g.start(&mut cpu.ext);
    for i in 0..g.count() {
        if !g.wanted(&cpu.ext, i) {
            continue;
        }
        let mut element = *op;
        let index = g.index(&cpu.ext, i);
        // The index has no register; add it, scaled, to the base through a scratch slot.
        let base = cpu.regs[(op.base & 31) as usize];
        cpu.regs[usize::from(SCRATCH)] = base.wrapping_add((index << op.scale) as u64);
        element.base = SCRATCH;
        element.index = crate::cpu::ZERO as u8;
        element.scale = 0;
        let va = cpu.linear(&element, size as u64, false)?;
        let mut bytes = [0u8; 8];
        cpu.read_bytes(va, &mut bytes[..size])?;
        g.complete(&mut cpu.ext, i, u64::from_le_bytes(bytes));
    }
    g.finish(&mut cpu.ext);
    Ok(())
}

/// A slot of `Cpu::regs` no guest register uses.
const SCRATCH: u8 = 21;
