//! The one intercept question.

use crate::cpu::{Cpu, Event, Flow};

/// An I/O access, as an I/O-instruction exit describes it (SDM Vol 3 Table 28-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoAccess {
    /// Port.
    pub port: u16,
    /// 1, 2 or 4.
    pub size_bytes: u8,
    /// IN or INS.
    pub input: bool,
    /// INS or OUTS.
    pub string: bool,
    /// With a REP prefix.
    pub rep: bool,
    /// Port in an immediate.
    pub immediate: bool,
    /// Linear address of the memory operand of INS and OUTS.
    pub linear: u64,
}

/// Instructions that read or write descriptor-table registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DescriptorAccess {
    Sgdt,
    Sidt,
    Lgdt,
    Lidt,
    Sldt,
    Str,
    Lldt,
    Ltr,
}

/// What an instruction is about to do that a hypervisor may have asked to see.
///
/// Handlers ask after the checks whose faults come before the intercept (SDM Vol 3 26.1.1, APM Vol 2 15.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Intercept {
    Cpuid,
    Hlt,
    Invd,
    Wbinvd,
    Invlpg { linear: u64 },
    Invpcid,
    Rdtsc,
    Rdtscp,
    Rdpmc,
    Pause,
    Monitor,
    Mwait { armed: bool },
    Xsetbv,
    Rdrand,
    Rdseed,
    /// MOV from CR3 or CR8.
    CrRead { cr: u8, gpr: u8 },
    /// MOV to CR3 or CR8 (CR0 and CR4 go through `vmx_write_cr`).
    CrWrite { cr: u8, gpr: u8, value: u64 },
    Clts,
    /// LMSW; `linear` is its memory operand's address, if it has one.
    Lmsw { source: u16, linear: Option<u64> },
    DrAccess { dr: u8, gpr: u8, read: bool },
    Io(IoAccess),
    Rdmsr { msr: u32 },
    Wrmsr { msr: u32 },
    Descriptor(DescriptorAccess),
    TaskSwitch { selector: u16, source: u8 },
}

impl Cpu {
    /// Asks whether the hypervisor of the running guest wants to see `what`.
    #[inline(always)]
    pub fn intercept(&mut self, what: Intercept) -> Flow {
        if !self.vmx.in_guest {
            return Ok(());
        }
        let _ = what;
        Ok(())
    }

    /// Asks whether an exception exits (exception bitmap, page-fault error-code mask and match).
    pub fn intercept_exception(&mut self, event: Event, detail: u64) -> Flow {
        let _ = (event, detail);
        Ok(())
    }

    /// A triple fault exits unconditionally from non-root operation.
    pub fn intercept_triple_fault(&mut self) -> Flow {
        Ok(())
    }
}
