//! Numeric errors with CR0.NE clear: FERR#, IRQ 13, port F0h (volume 1, 8.7.2 and D.2.1).

use core::sync::atomic::{AtomicU64, Ordering};

use runtime::apic::{self, reg};
use runtime::cpu::{self, cr0};
use runtime::{address, check_eq, descriptors, labels, section, snippet};

/// IRQ 13: the sixth input of the second 8259A.
const VECTOR: u8 = 0x75;

// SAFETY: the one symbol of this name, for the assembly below.
#[unsafe(no_mangle)]
static FERR_COUNT: AtomicU64 = AtomicU64::new(0);
// SAFETY: as above.
#[unsafe(no_mangle)]
static FERR_RIP: AtomicU64 = AtomicU64::new(0);

snippet! {
    ferr_handler:
        "push rax",
        "mov rax, [rsp + 8]",
        "mov [FERR_RIP], rax",
        "inc qword ptr [FERR_COUNT]",
        "xor eax, eax",
        "out 0xf0, al",
        // Under IGNNE# a waiting instruction goes on.
        "fwait",
        "fnclex",
        "mov al, 0x20",
        "out 0xa0, al",
        "out 0x20, al",
        "pop rax",
        "iretq";
    ferr_divide:
        "fninit",
        "fldcw [rdi]",
        "fldz",
        "fld1",
        "fdiv st, st(1)",
        "sti",
        "nop",
        "mov rax, [FERR_COUNT]",
        "ferr_wait:",
        "fwait",
        "cli",
        "ret";
    ferr_second:
        "fninit",
        "fldcw [rdi]",
        "fldz",
        "fld1",
        "fdiv st, st(1)",
        "sti",
        "ferr_second_wait:",
        "fld1",
        "cli",
        "fninit",
        "ret"
}

labels!(ferr_wait, ferr_second_wait);

/// Both 8259As: vectors 60h and 70h, all masked but IRQ 13 and the cascade.
fn interrupt_controllers(mask: bool) {
    for (port, base, wiring, open) in [(0x20, 0x60, 4, 0xfbu8), (0xa0, 0x70, 2, 0xdf)] {
        cpu::outb(port, 0x11);
        cpu::outb(port + 1, base);
        cpu::outb(port + 1, wiring);
        cpu::outb(port + 1, 1);
        cpu::outb(port + 1, if mask { 0xff } else { open });
    }
}

pub fn run() {
    section("volume 1, D.2.1 numeric errors without CR0.NE");
    let before = cpu::read_cr0();
    cpu::write_cr0(before & !cr0::NE);
    interrupt_controllers(false);
    apic::enable();
    // LINT0 passes the 8259As' interrupts on.
    apic::write(reg::LVT_LINT0, 0x700);
    descriptors::set_gate(VECTOR, address!(ferr_handler), 0, 0);
    // Zero divide unmasked.
    let control: u16 = 0x033b;
    let early = ferr_divide(&raw const control as u64);
    check_eq!(early, 0, "no error before a waiting instruction");
    check_eq!(FERR_COUNT.load(Ordering::Relaxed), 1, "IRQ 13 once");
    check_eq!(
        FERR_RIP.load(Ordering::Relaxed),
        address!(ferr_wait),
        "in front of FWAIT"
    );
    ferr_second(&raw const control as u64);
    check_eq!(FERR_COUNT.load(Ordering::Relaxed), 2, "the next error");
    check_eq!(
        FERR_RIP.load(Ordering::Relaxed),
        address!(ferr_second_wait),
        "in front of FLD1"
    );
    interrupt_controllers(true);
    apic::write(reg::LVT_LINT0, 0x1_0000);
    descriptors::set_gate(VECTOR, descriptors::stub(VECTOR), 1, 0);
    cpu::write_cr0(before);
}
