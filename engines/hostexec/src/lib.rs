//! Executes one guest vector or floating-point instruction with the host's own instruction.
//!
//! x87, MMX, SSE to SSE4.2, AES, PCLMULQDQ, SHA, GFNI, AVX, AVX2, FMA, F16C and the VEX forms of VAES,
//! VPCLMULQDQ and GFNI: results, rounding and exception flags come from the processor this runs on. Integer,
//! control-flow and privileged instructions, LDMXCSR/STMXCSR, the XSAVE family and EVEX are not accepted.
//!
//! Use: [`HostExec::prepare`] turns a decoded instruction into a small [`Prepared`], once. It says what the
//! caller has to check and to fetch ([`Facts`]). Then, each time: check (exceptions of the class, alignment, access
//! to the whole memory operand), copy what is read into the [`Bounce`], [`HostExec::run`] or
//! [`HostExec::run_x87`], copy what was written out of it.
//!
//! Invariants:
//! - No call faults on the host. Memory operands are in the bounce buffer, instructions the host lacks are
//!   refused by `prepare`, SIMD exceptions are masked while guest code runs, and x87 instructions do not
//!   start with an exception pending.
//! - A [`Prepared`] of another `HostExec`, or from before [`HostExec::clear`], does not run: it yields
//!   [`Outcome::Stale`].
//! - Calls expect the host thread's MXCSR and x87 control word to have their default values, as Rust code
//!   does, and leave them so.

mod area;
mod facts;
mod features;
mod masked;
mod state;
mod stub;
mod underflow;
mod x87;
mod x87_fast;

#[cfg(test)]
mod tests;

pub use area::{CodeArea, CodeMemoryError};
pub use facts::{Class, Facts, MemoryUse};
pub use features::{Feature, HostFeatures, host_has};
pub use masked::{Gather, MaskedMemory};
pub use state::{Bounce, ExtState, FCW_FNINIT, FCW_POWER_UP, MXCSR_MASK, MXCSR_RESET};
pub use x87::X87Context;

use facts::{Control, Group};
use features::Support;
use iced_x86::{CodeSize, Instruction, InstructionInfoFactory, OpKind};
use std::arch::asm;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why there is no code memory.
#[derive(Debug, thiserror::Error)]
pub enum HostExecError {
    /// The host refused a step of making it.
    #[error(transparent)]
    CodeMemory(#[from] CodeMemoryError),
}

/// Why an instruction was not prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrepareError {
    /// Not one of the instructions this crate executes.
    #[error("not a vector or floating-point instruction of a supported extension")]
    NotVector,
    /// Its registers make it undefined (a gather with overlapping registers): the guest gets #UD.
    #[error("undefined combination of registers")]
    Undefined,
    /// The host lacks the extension, so the guest's CPU model must not have offered it.
    #[error("the host lacks {0:?}")]
    HostLacks(Feature),
    /// The code area is full: [`HostExec::clear`] it and prepare again.
    #[error("the code area is full")]
    Full,
}

/// What came of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// Executed.
    Done,
    /// An x87 store executed, and an unmasked exception kept it from writing memory: nothing in the bounce
    /// buffer is to be copied out. The exception is pending in FSW, as after any x87 instruction.
    StoreSuppressed,
    /// An unmasked SIMD floating-point exception (#XM, or #UD without CR4.OSXMMEXCPT): MXCSR has the flags,
    /// nothing else changed (SDM Vol. 1, 11.5.4).
    SimdException,
    /// An unmasked x87 exception is pending (#MF, or the external form with CR0.NE = 0); nothing was executed.
    X87Pending,
    /// The [`Prepared`] is not of this `HostExec` since its last `clear`; nothing was executed.
    Stale,
}

/// How to execute an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// Stub without MXCSR.
    Integer,
    /// Stub that uses MXCSR.
    SimdFp,
    /// Either of the above with MMX registers.
    Mmx,
    /// Complete stub, and if there is one the distance to the short one.
    X87 {
        short: Option<(u16, x87_fast::Effect)>,
    },
    Control(Control),
    Emms,
    ZeroUpper {
        registers: u8,
    },
    ZeroAll {
        registers: u8,
    },
    Gather(Gather),
}

/// An instruction ready to run. Small and `Copy`; valid until [`HostExec::clear`].
#[derive(Clone, Copy, Debug)]
pub struct Prepared {
    generation: u64,
    /// Offset of the stub in the code area; unused by methods without one.
    offset: u32,
    method: Method,
    facts: Facts,
    /// How to look for tiny results when the guest unmasks underflow.
    tiny: underflow::Tiny,
}

impl Prepared {
    /// What to check and fetch before the run.
    #[inline]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }
}

/// Size of the code area in bytes.
const AREA_BYTES: usize = 4 << 20;

/// Generations are unique in the process, so a [`Prepared`] cannot be mistaken for another area's.
static GENERATIONS: AtomicU64 = AtomicU64::new(1);

fn next_generation() -> u64 {
    GENERATIONS.fetch_add(1, Ordering::Relaxed)
}

/// Prepares and runs instructions; owns the generated code.
pub struct HostExec {
    generation: u64,
    area: CodeArea,
    capacity: usize,
    stubs: HashMap<stub::Key, Prepared>,
    info: InstructionInfoFactory,
    features: HostFeatures,
}

impl fmt::Debug for HostExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostExec")
            .field("generation", &self.generation)
            .field("stubs", &self.stubs.len())
            .field("code_bytes", &self.area.used())
            .finish_non_exhaustive()
    }
}

impl HostExec {
    /// An empty cache with a code area of 4 MiB.
    ///
    /// # Errors
    /// The host gives no executable memory.
    pub fn new() -> Result<HostExec, HostExecError> {
        HostExec::with_capacity(AREA_BYTES)
    }

    /// An empty cache with a code area of `bytes`, rounded up to pages and limited to 256 MiB.
    ///
    /// # Errors
    /// The host gives no executable memory.
    pub fn with_capacity(bytes: usize) -> Result<HostExec, HostExecError> {
        let capacity = bytes.clamp(4096, 256 << 20).next_multiple_of(4096);
        let features = HostFeatures::get();
        Ok(HostExec {
            generation: next_generation(),
            area: new_area(capacity, features)?,
            capacity,
            stubs: HashMap::new(),
            info: InstructionInfoFactory::new(),
            features,
        })
    }

    /// Empties the cache. Every [`Prepared`] made before is stale from now on.
    ///
    /// # Errors
    /// The host gives no executable memory; the cache is then as it was.
    pub fn clear(&mut self) -> Result<(), HostExecError> {
        self.area = new_area(self.capacity, self.features)?;
        self.generation = next_generation();
        self.stubs.clear();
        Ok(())
    }

    /// Number of different stubs and bytes of code in the cache.
    pub fn usage(&self) -> (usize, usize) {
        (self.stubs.len(), self.area.used())
    }

    /// Makes `insn`, decoded for 16, 32 or 64-bit mode, ready to run.
    ///
    /// # Errors
    /// See [`PrepareError`].
    pub fn prepare(&mut self, insn: &Instruction) -> Result<Prepared, PrepareError> {
        let code = insn.code();
        let group = facts::group(code).ok_or(PrepareError::NotVector)?;
        match features::support(code, self.features) {
            Support::Present => {}
            Support::Foreign => return Err(PrepareError::NotVector),
            Support::HostLacks(feature) => return Err(PrepareError::HostLacks(feature)),
        }
        let registers = if insn.code_size() == CodeSize::Code64 {
            16
        } else {
            8
        };
        let method = match group {
            Group::Control(control) => Method::Control(control),
            Group::Emms => Method::Emms,
            Group::ZeroUpper => Method::ZeroUpper { registers },
            Group::ZeroAll => Method::ZeroAll { registers },
            Group::X87 => return self.prepare_stub(insn, group),
            Group::Vector => match masked::gather(insn) {
                Err(masked::OverlappingRegisters) => return Err(PrepareError::Undefined),
                Ok(Some(gather)) => Method::Gather(gather),
                Ok(None) => return self.prepare_stub(insn, group),
            },
        };
        let memory = match method {
            Method::Gather(gather) => MemoryUse::Gather(gather),
            Method::Control(_) => memory_use(insn, &mut self.info)?,
            _ => MemoryUse::None,
        };
        Ok(Prepared {
            generation: self.generation,
            offset: 0,
            method,
            facts: facts::facts(insn, group, memory),
            tiny: underflow::Tiny::Never,
        })
    }

    fn prepare_stub(&mut self, insn: &Instruction, group: Group) -> Result<Prepared, PrepareError> {
        let canonical = stub::canonicalize(insn, &mut self.info).ok_or(PrepareError::NotVector)?;
        let key = canonical.key().map_err(|_| PrepareError::NotVector)?;
        if let Some(known) = self.stubs.get(&key) {
            return Ok(*known);
        }
        let memory = operand_use(&canonical.insn, canonical.memory_access)?;
        let facts = facts::facts(&canonical.insn, group, memory);
        let built = stub::build(
            &canonical,
            group,
            &facts,
            &mut self.info,
            self.area.address(0),
            self.area.next_address(),
        )
        .map_err(|_| PrepareError::NotVector)?;
        let offset = self.area.append(&built.code).ok_or(PrepareError::Full)?;
        let method = match group {
            Group::X87 => Method::X87 { short: built.short },
            _ if facts.x87_state => Method::Mmx,
            _ if facts.simd_fp => Method::SimdFp,
            _ => Method::Integer,
        };
        let prepared = Prepared {
            generation: self.generation,
            offset,
            method,
            facts,
            tiny: underflow::tiny(&canonical.insn),
        };
        self.stubs.insert(key, prepared);
        Ok(prepared)
    }

    /// Runs `prepared` on the guest's state.
    ///
    /// `gpr` has the SDM's order (RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15). x87 instructions run as by
    /// [`HostExec::run_x87`] without a context: pointers and opcode stay as they are and environment images
    /// have their protected-mode form.
    #[inline]
    pub fn run(
        &self,
        prepared: &Prepared,
        ext: &mut ExtState,
        gpr: &mut [u64; 16],
        mem: &mut Bounce,
        rflags: &mut u64,
    ) -> Outcome {
        if prepared.generation != self.generation {
            return Outcome::Stale;
        }
        match prepared.method {
            Method::Integer => {
                self.call(prepared.offset, ext, gpr, mem, rflags);
                Outcome::Done
            }
            Method::SimdFp => self.run_simd_fp(prepared, ext, gpr, mem, rflags),
            _ => self.run_other(prepared, ext, gpr, mem, rflags, None),
        }
    }

    /// Runs an x87 instruction with what it records about itself. Other instructions run as by
    /// [`HostExec::run`].
    pub fn run_x87(
        &self,
        prepared: &Prepared,
        ext: &mut ExtState,
        gpr: &mut [u64; 16],
        mem: &mut Bounce,
        rflags: &mut u64,
        context: &X87Context,
    ) -> Outcome {
        if prepared.generation != self.generation {
            return Outcome::Stale;
        }
        self.run_other(prepared, ext, gpr, mem, rflags, Some(context))
    }

    fn run_other(
        &self,
        prepared: &Prepared,
        ext: &mut ExtState,
        gpr: &mut [u64; 16],
        mem: &mut Bounce,
        rflags: &mut u64,
        context: Option<&X87Context>,
    ) -> Outcome {
        let facts = &prepared.facts;
        if facts.x87_state && facts.class != Class::X87NoWait && ext.x87_pending() {
            return Outcome::X87Pending;
        }
        match prepared.method {
            Method::Integer => {
                self.call(prepared.offset, ext, gpr, mem, rflags);
            }
            Method::SimdFp => return self.run_simd_fp(prepared, ext, gpr, mem, rflags),
            Method::Mmx => return self.run_mmx(prepared, ext, gpr, mem, rflags),
            Method::X87 { short } => {
                if let Some((distance, effect)) = short.filter(|(_, effect)| effect.applies(ext)) {
                    let entry = prepared.offset + u32::from(distance);
                    let (status, fsw) = self.call(entry, ext, gpr, mem, rflags);
                    if status == 0 {
                        effect.finish(ext, fsw as u16);
                        if let Some(context) = context {
                            context.record(ext);
                        }
                        return Outcome::Done;
                    }
                }
                return self.run_x87_stub(prepared, ext, gpr, mem, rflags, context);
            }
            Method::Control(control) => {
                let real_mode = context.is_some_and(|context| context.real_mode);
                x87::run_control(control, ext, gpr, mem, real_mode);
            }
            Method::Emms => x87::emms(ext),
            Method::ZeroUpper { registers } => {
                for ymm in ext.ymm.iter_mut().take(usize::from(registers)) {
                    ymm[2] = 0;
                    ymm[3] = 0;
                }
            }
            Method::ZeroAll { registers } => {
                for ymm in ext.ymm.iter_mut().take(usize::from(registers)) {
                    *ymm = [0; 4];
                }
            }
            Method::Gather(gather) => gather.run(ext, &mem.0),
        }
        Outcome::Done
    }

    #[inline]
    fn run_simd_fp(
        &self,
        prepared: &Prepared,
        ext: &mut ExtState,
        gpr: &mut [u64; 16],
        mem: &mut Bounce,
        rflags: &mut u64,
    ) -> Outcome {
        if ext.mxcsr & underflow::MXCSR_UM == 0
            || matches!(prepared.facts.memory, MemoryUse::Write(_))
        {
            return self.run_simd_fp_slow(prepared, ext, gpr, mem, rflags);
        }
        let (status, raised) = self.call(prepared.offset, ext, gpr, mem, rflags);
        if status == 0 {
            Outcome::Done
        } else {
            take_simd_exception(ext, raised)
        }
    }

    /// A floating-point instruction whose effects have to be looked at before they count: underflow is
    /// unmasked, or the instruction writes memory.
    #[cold]
    fn run_simd_fp_slow(
        &self,
        prepared: &Prepared,
        ext: &mut ExtState,
        gpr: &mut [u64; 16],
        mem: &mut Bounce,
        rflags: &mut u64,
    ) -> Outcome {
        let (mut new_ext, mut new_gpr, mut new_rflags) = (ext.clone(), *gpr, *rflags);
        let mut new_mem = mem.clone();
        let unmasked_underflow = ext.mxcsr & underflow::MXCSR_UM == 0;
        new_ext.mxcsr = ext.mxcsr & !0x3f | MXCSR_RESET;
        if unmasked_underflow {
            // FTZ has no effect while underflow is unmasked (SDM Vol. 1, 10.2.3.3).
            new_ext.mxcsr &= !underflow::MXCSR_FTZ;
        }
        let (status, _) = self.call(
            prepared.offset,
            &mut new_ext,
            &mut new_gpr,
            &mut new_mem,
            &mut new_rflags,
        );
        assert_eq!(status, 0, "no exception is unmasked in this MXCSR");
        let mut raised = new_ext.mxcsr & 0x3f;
        if unmasked_underflow && prepared.tiny.found(&new_ext, &new_mem) {
            raised |= underflow::MXCSR_UE;
        }
        if raised & !(ext.mxcsr >> 7) != 0 {
            return take_simd_exception(ext, raised);
        }
        new_ext.mxcsr = ext.mxcsr | raised;
        *ext = new_ext;
        *gpr = new_gpr;
        *mem = new_mem;
        *rflags = new_rflags;
        Outcome::Done
    }

    fn run_mmx(
        &self,
        prepared: &Prepared,
        ext: &mut ExtState,
        gpr: &mut [u64; 16],
        mem: &mut Bounce,
        rflags: &mut u64,
    ) -> Outcome {
        // The x87 state changes to MMX before the conversion that may raise a SIMD exception.
        x87::enter_mmx(ext);
        if prepared.facts.simd_fp {
            return self.run_simd_fp(prepared, ext, gpr, mem, rflags);
        }
        self.call(prepared.offset, ext, gpr, mem, rflags);
        Outcome::Done
    }

    fn run_x87_stub(
        &self,
        prepared: &Prepared,
        ext: &mut ExtState,
        gpr: &mut [u64; 16],
        mem: &mut Bounce,
        rflags: &mut u64,
        context: Option<&X87Context>,
    ) -> Outcome {
        let (fop, fip, fdp) = (ext.fop(), ext.fip(), ext.fdp());
        // FXRSTOR loads MXCSR as well: the host's has to stay the default.
        ext.fx[24..28].copy_from_slice(&MXCSR_RESET.to_le_bytes());
        self.call(prepared.offset, ext, gpr, mem, rflags);
        // Whatever FXSAVE wrote there is the host's.
        ext.set_fop(fop);
        ext.set_fip(fip);
        ext.set_fdp(fdp);
        if let Some(context) = context {
            context.record(ext);
        }
        if matches!(prepared.facts.memory, MemoryUse::Write(_)) && x87::store_suppressed(ext) {
            return Outcome::StoreSuppressed;
        }
        Outcome::Done
    }

    /// Calls the stub at `offset`. Returns its status and, if that is not 0, the SIMD flags raised.
    ///
    /// `offset` is that of a `Prepared` whose generation is this area's.
    #[inline]
    fn call(
        &self,
        offset: u32,
        ext: &mut ExtState,
        gpr: &mut [u64; 16],
        mem: &mut Bounce,
        rflags: &mut u64,
    ) -> (u32, u32) {
        let entry = self.area.address(offset);
        let status: u32;
        let raised: u32;
        // SAFETY: `entry` is the start of a stub (`Prepared` is made by `prepare_stub` only, and the caller
        // compared generations). A stub reads and writes only the four referents, within their sizes (a
        // memory operand is at most 108 bytes, checked in `operand_use`), and its own stack; it keeps to the
        // registers listed as operands and clobbers, returns with the x87 stack empty, MXCSR default and
        // the direction flag clear, and cannot fault (see the crate's invariants).
        unsafe {
            asm!(
                "call {entry}",
                entry = in(reg) entry,
                inlateout("rsi") mem.0.as_mut_ptr() => _,
                in("r8") ext as *mut ExtState,
                in("r9") gpr.as_mut_ptr(),
                in("r10") rflags as *mut u64,
                lateout("eax") status,
                lateout("edx") raised,
                clobber_abi("sysv64"),
            );
        }
        (status, raised)
    }
}

fn new_area(capacity: usize, features: HostFeatures) -> Result<CodeArea, HostExecError> {
    let mut area = CodeArea::new(c"nestling-code", capacity)?;
    let code = stub::prologue(area.address(0), features.has(Feature::Avx))
        .unwrap_or_else(|error| unreachable!("fixed instructions encode: {error}"));
    assert_eq!(area.append(&code), Some(0), "an area holds its prologue");
    Ok(area)
}

/// Sets the flags of an unmasked SIMD exception. When one that is found before the computation (invalid, denormal,
/// divide by zero) is among them, there was no computation to raise the others (SDM Vol. 1, 11.5.3 and 11.5.4).
#[cold]
fn take_simd_exception(ext: &mut ExtState, raised: u32) -> Outcome {
    const PRE_COMPUTATION: u32 = 0x7;
    let unmasked = raised & !(ext.mxcsr >> 7) & 0x3f;
    ext.mxcsr |= if unmasked & PRE_COMPUTATION != 0 {
        raised & PRE_COMPUTATION
    } else {
        raised & 0x3f
    };
    Outcome::SimdException
}

/// What [`HostExec::prepare`] would find of `insn`; nothing for what it would refuse.
pub fn facts_of(insn: &Instruction, info: &mut InstructionInfoFactory) -> Option<Facts> {
    let group = facts::group(insn.code())?;
    if features::support(insn.code(), HostFeatures::get()) != Support::Present {
        return None;
    }
    let memory = match masked::gather(insn).ok()? {
        Some(gather) => MemoryUse::Gather(gather),
        None => memory_use(insn, info).ok()?,
    };
    Some(facts::facts(insn, group, memory))
}

fn memory_use(
    insn: &Instruction,
    info: &mut InstructionInfoFactory,
) -> Result<MemoryUse, PrepareError> {
    let in_memory = |kind| {
        matches!(
            kind,
            OpKind::Memory | OpKind::MemorySegDI | OpKind::MemorySegEDI | OpKind::MemorySegRDI
        )
    };
    let operand = (0..insn.op_count()).find(|&i| in_memory(insn.op_kind(i)));
    let access = operand.map(|i| info.info(insn).op_access(i));
    operand_use(insn, access.unwrap_or(iced_x86::OpAccess::None))
}

/// How `insn` uses its memory operand, accessed as `access`.
fn operand_use(insn: &Instruction, access: iced_x86::OpAccess) -> Result<MemoryUse, PrepareError> {
    if access == iced_x86::OpAccess::None {
        return Ok(MemoryUse::None);
    }
    let size = insn.memory_size().size();
    let size = match u8::try_from(size) {
        Ok(size @ 1..=108) => size,
        _ => return Err(PrepareError::NotVector),
    };
    if let Some((masked, write)) = masked::masked_operand(insn, size) {
        return Ok(if write {
            MemoryUse::MaskedWrite(masked)
        } else {
            MemoryUse::MaskedRead(masked)
        });
    }
    Ok(if stub::writes(access) {
        MemoryUse::Write(size)
    } else {
        MemoryUse::Read(size)
    })
}
