//! Unmasked x87 exceptions, which the next waiting instruction meets (SDM Vol 1 8.7).
//!
//! With CR0.NE that is #MF. Without, the processor drives FERR# and stops before the instruction until an interrupt
//! comes, the one FERR# leads to as a rule; while the board answers with IGNNE#, the instruction executes.

use vcpu::MpState;
use x86defs::cr::cr0;
use x86defs::exception::MF;

use crate::cpu::{Cpu, Flow, Trap, pending};

/// FSW: the exception flags, their summary and its copy.
const FLAGS: u16 = 0x3f;
const SUMMARY: u16 = 1 << 7 | 1 << 15;

impl Cpu {
    /// Before a waiting instruction: a pending x87 exception, if it is not to be ignored.
    #[inline]
    pub fn check_x87_pending(&mut self) -> Flow {
        if self.ext.x87_pending() {
            self.x87_error()
        } else {
            Ok(())
        }
    }

    #[cold]
    fn x87_error(&mut self) -> Flow {
        if self.cr0 & cr0::NE != 0 {
            return self.raise(MF);
        }
        self.drive_ferr(true);
        if self.platform.ignne() {
            return Ok(());
        }
        // As in HLT, but in front of the instruction.
        self.activity = MpState::Halted;
        self.pending |= pending::INACTIVE;
        Err(Trap::Restart)
    }

    fn drive_ferr(&mut self, asserted: bool) {
        if self.ferr != asserted {
            self.ferr = asserted;
            self.platform.set_ferr(asserted);
        }
    }

    /// FERR# ends with the exception: to be called when x87 state was loaded or changed.
    #[inline(always)]
    pub fn follow_x87_state(&mut self) {
        if self.ferr && !self.ext.x87_pending() {
            self.drive_ferr(false);
        }
    }

    /// Checks for a pending exception; gives the flags of an ignored one, taken out of the status word so that the
    /// instruction executes.
    #[inline(always)]
    pub(super) fn begin_waiting(&mut self) -> Result<u16, Trap> {
        if !self.ext.x87_pending() {
            return Ok(0);
        }
        self.x87_error()?;
        let fsw = self.ext.fsw();
        self.ext.set_fsw(fsw & !(FLAGS | SUMMARY));
        Ok(fsw & FLAGS)
    }

    /// Puts back the flags [`Cpu::begin_waiting`] has taken out: they stay until they are cleared.
    #[inline(always)]
    pub(super) fn end_waiting(&mut self, held: u16) {
        if held != 0 {
            let fsw = self.ext.fsw() | held;
            let unmasked = fsw & !self.ext.fcw() & FLAGS != 0;
            self.ext.set_fsw(if unmasked { fsw | SUMMARY } else { fsw });
        }
        self.follow_x87_state();
    }
}
