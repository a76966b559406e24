//! From entry to the guest's own function.

use crate::cpu::{self, cr0, cr4};
use crate::{descriptors, paging};

// SAFETY: every guest defines it by `guest!`.
unsafe extern "C" {
    safe fn guest_main() -> !;
}

// SAFETY: the one function of this name; `boot` calls it.
#[unsafe(no_mangle)]
extern "C" fn runtime_start() -> ! {
    let cr0 = cpu::read_cr0() & !(cr0::EM | cr0::TS | cr0::AM);
    cpu::write_cr0(cr0 | cr0::MP | cr0::NE | cr0::WP);
    cpu::write_cr4(cpu::read_cr4() | cr4::OSFXSR | cr4::OSXMMEXCPT);
    let efer = cpu::read_msr(cpu::efer::MSR);
    cpu::write_msr(cpu::efer::MSR, efer | cpu::efer::NXE);
    paging::install();
    descriptors::install();
    // Both interrupt controllers of a PC masked: interrupts come from the local APIC only.
    cpu::outb(0x21, 0xff);
    cpu::outb(0xa1, 0xff);
    guest_main()
}
