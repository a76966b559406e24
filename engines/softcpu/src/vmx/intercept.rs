//! The one intercept question (SDM Vol 3 26.1).

use x86defs::vmx::control::{msr_bitmap_byte, primary, secondary};
use x86defs::vmx::qualification::{self, TaskSwitchSource, cr, io};
use x86defs::vmx::{ExitReason, VmcsField as F};

use super::{Cause, ExitRequest};
use crate::cpu::{Cpu, Flow};

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
/// Handlers ask after the checks whose faults come before the intercept (SDM Vol 3 26.1.1, APM Vol 2 15.7):
/// #UD, privilege, the TSS's I/O bitmap; but before MOV DR's own #GP and #UD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Intercept {
    Cpuid,
    Hlt,
    Invd,
    Wbinvd,
    Invlpg {
        linear: u64,
    },
    Invpcid,
    Rdtsc,
    Rdtscp,
    Rdpmc,
    Pause,
    Monitor,
    Mwait {
        armed: bool,
    },
    Xsetbv,
    /// XSAVES, with the supervisor components it is asked for.
    Xsaves {
        components: u64,
    },
    /// XRSTORS.
    Xrstors {
        components: u64,
    },
    Rdrand,
    Rdseed,
    /// MOV from CR3 or CR8.
    CrRead {
        cr: u8,
        gpr: u8,
    },
    /// MOV to CR3 or CR8 (CR0 and CR4 go through `vmx_write_cr`).
    CrWrite {
        cr: u8,
        gpr: u8,
        value: u64,
    },
    Clts,
    /// LMSW; `linear` is its memory operand's address, if it has one.
    Lmsw {
        source: u16,
        linear: Option<u64>,
    },
    DrAccess {
        dr: u8,
        gpr: u8,
        read: bool,
    },
    Io(IoAccess),
    Rdmsr {
        msr: u32,
    },
    Wrmsr {
        msr: u32,
    },
    Descriptor(DescriptorAccess),
    TaskSwitch {
        selector: u16,
        source: u8,
    },
}

impl Cpu {
    /// Asks whether the hypervisor of the running guest wants to see `what`.
    ///
    /// # Errors
    /// [`crate::cpu::Trap::VmExit`] if it does.
    #[inline(always)]
    pub fn intercept(&mut self, what: Intercept) -> Flow {
        if !self.vmx.in_guest {
            return Ok(());
        }
        self.vmx_intercept(what)
    }

    #[inline(never)]
    fn vmx_intercept(&mut self, what: Intercept) -> Flow {
        use Intercept as I;
        let controlled = |cpu: &mut Self, control: u32, reason: ExitReason, q: u64| {
            if cpu.vmx.primary(control) {
                cpu.vm_exit(ExitRequest::instruction(reason, q))
            } else {
                Ok(())
            }
        };
        let by_secondary = |cpu: &mut Self, control: u32, reason: ExitReason| {
            if cpu.vmx.secondary(control) {
                cpu.vm_exit(ExitRequest::instruction(reason, 0))
            } else {
                Ok(())
            }
        };
        match what {
            I::Cpuid => self.vm_exit(ExitRequest::instruction(ExitReason::Cpuid, 0)),
            I::Invd => self.vm_exit(ExitRequest::instruction(ExitReason::Invd, 0)),
            I::Xsetbv => self.vm_exit(ExitRequest::instruction(ExitReason::Xsetbv, 0)),
            I::Hlt => controlled(self, primary::HLT_EXITING, ExitReason::Hlt, 0),
            I::Wbinvd => by_secondary(self, secondary::WBINVD_EXITING, ExitReason::Wbinvd),
            I::Invlpg { linear } => {
                controlled(self, primary::INVLPG_EXITING, ExitReason::Invlpg, linear)
            }
            I::Invpcid => controlled(self, primary::INVLPG_EXITING, ExitReason::Invpcid, 0),
            I::Rdtsc => controlled(self, primary::RDTSC_EXITING, ExitReason::Rdtsc, 0),
            I::Rdtscp => controlled(self, primary::RDTSC_EXITING, ExitReason::Rdtscp, 0),
            I::Rdpmc => controlled(self, primary::RDPMC_EXITING, ExitReason::Rdpmc, 0),
            I::Pause => controlled(self, primary::PAUSE_EXITING, ExitReason::Pause, 0),
            I::Monitor => controlled(self, primary::MONITOR_EXITING, ExitReason::Monitor, 0),
            I::Mwait { armed } => {
                let q = u64::from(armed);
                controlled(self, primary::MWAIT_EXITING, ExitReason::Mwait, q)
            }
            I::Xsaves { components } => self.intercept_xss(ExitReason::Xsaves, components),
            I::Xrstors { components } => self.intercept_xss(ExitReason::Xrstors, components),
            I::Rdrand => by_secondary(self, secondary::RDRAND_EXITING, ExitReason::Rdrand),
            I::Rdseed => by_secondary(self, secondary::RDSEED_EXITING, ExitReason::Rdseed),
            I::CrRead { cr, gpr } => {
                let control = match cr {
                    3 => primary::CR3_STORE_EXITING,
                    8 => primary::CR8_STORE_EXITING,
                    _ => 0,
                };
                let q = cr::mov(cr::Access::MovFrom, cr, gpr);
                controlled(self, control, ExitReason::CrAccess, q)
            }
            I::CrWrite { cr, gpr, value } => {
                let control = match cr {
                    3 if !self.is_cr3_target(value) => primary::CR3_LOAD_EXITING,
                    8 => primary::CR8_LOAD_EXITING,
                    _ => 0,
                };
                let q = cr::mov(cr::Access::MovTo, cr, gpr);
                controlled(self, control, ExitReason::CrAccess, q)
            }
            I::Clts if self.clts_exits() => {
                self.vm_exit(ExitRequest::instruction(ExitReason::CrAccess, cr::CLTS))
            }
            I::Lmsw { source, linear } if self.lmsw_exits(source) => {
                let q = cr::lmsw(source, linear.is_some());
                self.vm_exit(ExitRequest {
                    linear: linear.unwrap_or(0),
                    ..ExitRequest::instruction(ExitReason::CrAccess, q)
                })
            }
            I::Clts | I::Lmsw { .. } => Ok(()),
            I::DrAccess { dr, gpr, read } => {
                let q = qualification::mov_dr(dr, read, gpr);
                controlled(self, primary::MOV_DR_EXITING, ExitReason::MovDr, q)
            }
            I::Io(access) => self.intercept_io(&access),
            I::Rdmsr { msr } => self.intercept_msr(msr, false),
            I::Wrmsr { msr } => self.intercept_msr(msr, true),
            I::Descriptor(which) => self.intercept_descriptor(which),
            I::TaskSwitch { selector, source } => self.intercept_task_switch(selector, source),
        }
    }

    /// XSAVES and XRSTORS (SDM Vol 3 25.6.20, 26.1.3); the control is 1, or they would be #UD.
    fn intercept_xss(&mut self, reason: ExitReason, components: u64) -> Flow {
        if components & self.vmx.current_vmcs().get(F::XssExitingBitmap) == 0 {
            return Ok(());
        }
        self.vm_exit(ExitRequest::instruction(reason, 0))
    }

    /// CR3-target values (SDM Vol 3 25.6.7).
    fn is_cr3_target(&self, value: u64) -> bool {
        let v = self.vmx.current_vmcs();
        let count = v.get(F::Cr3TargetCount) as usize;
        F::CR3_TARGETS
            .iter()
            .take(count)
            .any(|f| v.get(*f) == value)
    }

    /// I/O instructions (SDM Vol 3 25.6.4, 26.1.3).
    fn intercept_io(&mut self, a: &IoAccess) -> Flow {
        let v = self.vmx.current_vmcs();
        let exits = if v.primary() & primary::IO_BITMAPS != 0 {
            self.io_bitmap(a.port, a.size_bytes)
        } else {
            v.primary() & primary::UNCONDITIONAL_IO_EXITING != 0
        };
        if !exits {
            return Ok(());
        }
        let mut q = io::access(a.size_bytes, a.port);
        for (set, bit) in [
            (a.input, io::IN),
            (a.string, io::STRING),
            (a.rep, io::REP),
            (a.immediate, io::IMMEDIATE),
        ] {
            if set {
                q |= bit;
            }
        }
        self.vm_exit(ExitRequest {
            linear: a.linear,
            ..ExitRequest::instruction(ExitReason::Io, q)
        })
    }

    /// Whether a bit of the I/O bitmaps is set for any byte of the access, or the access wraps around the
    /// port space (SDM Vol 3 26.1.3).
    fn io_bitmap(&self, port: u16, size_bytes: u8) -> bool {
        let last = u32::from(port) + u32::from(size_bytes.max(1)) - 1;
        if last > 0xffff {
            return true;
        }
        (u32::from(port)..=last).any(|p| {
            let v = self.vmx.current_vmcs();
            let bitmap = v.get(if p < 0x8000 {
                F::IoBitmapA
            } else {
                F::IoBitmapB
            });
            let byte: u8 = self.read_phys(bitmap + u64::from(p & 0x7fff) / 8);
            byte >> (p & 7) & 1 != 0
        })
    }

    /// RDMSR and WRMSR (SDM Vol 3 25.6.9).
    fn intercept_msr(&mut self, msr: u32, write: bool) -> Flow {
        const WRITE_BITMAPS: u64 = 2048;
        let v = self.vmx.current_vmcs();
        let exits = v.primary() & primary::MSR_BITMAPS == 0
            || msr_bitmap_byte(msr).is_none_or(|at| {
                let at = at + if write { WRITE_BITMAPS } else { 0 };
                let byte: u8 = self.read_phys(v.get(F::MsrBitmaps) + at);
                byte >> (msr & 7) & 1 != 0
            });
        if !exits {
            return Ok(());
        }
        let reason = if write {
            ExitReason::Wrmsr
        } else {
            ExitReason::Rdmsr
        };
        self.vm_exit(ExitRequest::instruction(reason, 0))
    }

    fn intercept_descriptor(&mut self, which: DescriptorAccess) -> Flow {
        use DescriptorAccess as D;
        if !self.vmx.secondary(secondary::DESCRIPTOR_TABLE_EXITING) {
            return Ok(());
        }
        let reason = match which {
            D::Sgdt | D::Sidt | D::Lgdt | D::Lidt => ExitReason::GdtrIdtrAccess,
            D::Sldt | D::Str | D::Lldt | D::Ltr => ExitReason::LdtrTrAccess,
        };
        // Bits 29:28 of the instruction information name the instruction; `exit` adds the operand.
        let number = match which {
            D::Sgdt | D::Sldt => 0,
            D::Sidt | D::Str => 1,
            D::Lgdt | D::Lldt => 2,
            D::Lidt | D::Ltr => 3u32,
        };
        self.vm_exit(ExitRequest {
            information: number << 28,
            ..ExitRequest::instruction(reason, 0)
        })
    }

    /// Task switches are not allowed in VMX non-root operation (SDM Vol 3 26.4.2). `source` is 0 for CALL,
    /// 1 for IRET, 2 for JMP, 3 for a task gate in the IDT.
    fn intercept_task_switch(&mut self, selector: u16, source: u8) -> Flow {
        let (source, cause) = match source & 3 {
            0 => (TaskSwitchSource::Call, Cause::Instruction),
            1 => (TaskSwitchSource::Iret, Cause::Instruction),
            2 => (TaskSwitchSource::Jmp, Cause::Instruction),
            _ => (TaskSwitchSource::TaskGate, Cause::Access),
        };
        self.vm_exit(ExitRequest {
            cause,
            ..ExitRequest::instruction(
                ExitReason::TaskSwitch,
                qualification::task_switch(source, selector),
            )
        })
    }
}
