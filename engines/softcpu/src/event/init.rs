//! INIT and start-up IPIs (SDM Vol 3 9.4, 10.1).

use vcpu::MpState;
use x86defs::cr::cr0;

use crate::cpu::{Cpu, RIP, Shadow, pending, sreg};

/// IA32_APIC_BASE, bit 8: this is the bootstrap processor.
const APIC_BASE_BSP: u64 = 1 << 8;

impl Cpu {
    /// Follows an INIT: the state of SDM Vol 3 Table 10-1, column INIT. It leaves alone the time-stamp counter, the
    /// MSRs, x87 and vector registers, XCR0, and CR0.CD and CR0.NW. The bootstrap processor starts at its reset
    /// vector again, others wait for a start-up IPI (9.4.3).
    pub fn init(&mut self) {
        self.platform.init_accepted();
        let retired = self.retired_now();
        let bootstrap = self
            .platform
            .apic_msr_read(x86defs::msr::IA32_APIC_BASE, retired)
            .is_ok_and(|base| base & APIC_BASE_BSP != 0);
        let mut state = vcpu::reset(bootstrap);
        let kept = cr0::CD | cr0::NW;
        state.system.cr0 = (state.system.cr0 & !kept) | (self.cr0 & kept);
        state.system.xcr0 = self.xcr0;
        state.extended = self.save_extended();
        state.gpr[2] = self.model.cpuid.get(1, 0).map_or(0, |leaf| leaf.eax.into());
        self.msr.debugctl = 0;
        self.nmi_pending = false;
        self.pending_debug = 0;
        self.trapped_kind_sets_rf = false;
        self.delivering = None;
        self.restore(&state);
    }

    /// Follows a start-up IPI: real mode at page `vector` (SDM Vol 3 9.4.4.1).
    pub fn start_up(&mut self, vector: u8) {
        let cs = &mut self.seg[sreg::CS];
        cs.selector.0 = u16::from(vector) << 8;
        cs.base = u64::from(vector) << 12;
        self.regs[RIP] = 0;
        self.next_rip = 0;
        self.activity = MpState::Running;
        self.shadow = Shadow::None;
        self.pending = (self.pending & !pending::INACTIVE) | pending::INTERRUPT | pending::SIGNAL;
        self.mode_changed();
    }
}

#[cfg(test)]
mod tests {
    use guestmem::RamOffset;
    use vcpu::{MpState, StartSignals};

    use crate::cpu::{RIP, gpr, sreg};
    use crate::testing::Bench;

    fn send(bench: &mut Bench, init: bool, sipi: Option<u8>) {
        *bench.signals.start.lock().unwrap() = StartSignals { init, sipi };
        bench.runner.cpu.pending |= super::pending::SIGNAL;
        bench.runner.single_step();
    }

    /// SDM Vol 3 9.4.4.1: INIT, then a start-up IPI, however close.
    #[test]
    fn a_start_up_ipi_right_behind_its_init_starts_the_processor() {
        let mut b = Bench::long();
        b.runner.cpu.msr.tsc_aux = 7;
        b.runner.cpu.regs[gpr::RBX] = 5;
        send(&mut b, true, Some(0x9a));
        let cpu = &b.runner.cpu;
        assert_eq!(cpu.activity, MpState::Running);
        let cs = cpu.seg[sreg::CS];
        assert_eq!((cs.selector.0, cs.base), (0x9a00, 0x9_a000));
        assert!(!cpu.protected());
        // Table 10-1.
        assert_eq!((cpu.regs[gpr::RBX], cpu.msr.tsc_aux), (0, 7));
    }

    #[test]
    fn one_after_the_other() {
        let mut b = Bench::long();
        // JMP to itself.
        b.ram.store(RamOffset(0x1_0000), 0xfeebu16);
        send(&mut b, false, Some(0x10));
        assert!(b.runner.cpu.long64, "it did not wait for one");
        send(&mut b, true, None);
        assert_eq!(b.runner.cpu.activity, MpState::WaitForSipi);
        send(&mut b, false, Some(0x10));
        let cpu = &b.runner.cpu;
        assert_eq!(
            (cpu.activity, cpu.seg[sreg::CS].base),
            (MpState::Running, 0x1_0000)
        );
        assert_eq!(cpu.regs[RIP], 0);
    }
}
