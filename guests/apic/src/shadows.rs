//! When a pending interrupt is taken (6.8; volume 2 STI, MOV, HLT).

use runtime::apic::{reg, write};
use runtime::{address, check_eq, labels, section, snippet};

use crate::{count, listen, taken};

snippet! {
    w_sti: "sti", "nop", "w_sti_1: nop", "cli", "ret";
    w_sti_cli: "sti", "cli", "ret";
    w_sti_sti: "sti", "sti", "w_sti_sti_1: nop", "cli", "ret";
    w_popf: "pushfq", "or dword ptr [rsp], 0x200", "popfq", "w_popf_1: nop", "cli", "ret";
    w_iret: "mov eax, ss", "push rax", "lea rax, [rsp + 8]", "push rax", "pushfq",
        "or dword ptr [rsp], 0x200", "mov eax, cs", "push rax", "lea rax, [rip + w_iret_1]", "push rax",
        "iretq", "w_iret_1: nop", "cli", "ret";
    w_mov_ss: "mov eax, ss", "mov edx, 0xfee00300", "mov dword ptr [rdx], 0x40041", "sti", "mov ss, eax", "nop",
        "w_mov_ss_2: nop", "cli", "ret";
    w_hlt: "sti", "hlt", "w_hlt_1: cli", "ret";
    w_cr8: "sti", "nop", "xor eax, eax", "mov cr8, rax", "w_cr8_1: nop", "cli", "ret";
}

labels! { w_sti_1, w_sti_sti_1, w_popf_1, w_iret_1, w_mov_ss_2, w_hlt_1, w_cr8_1 }

fn go(function: extern "C" fn(u64) -> u64) -> (usize, u64) {
    listen(&[0x41]);
    write(reg::ICR, 1 << 18 | 0x41);
    function(0);
    (count(), taken(0).1)
}

macro_rules! call {
    ($function:ident) => {{
        extern "C" fn run(argument: u64) -> u64 {
            $function(argument)
        }
        go(run)
    }};
}

pub fn run() {
    section("6.8 when an interrupt is taken");
    check_eq!(
        call!(w_sti),
        (1, address!(w_sti_1)),
        "STI: after the next instruction"
    );
    check_eq!(call!(w_sti_cli).0, 0, "STI, CLI: never");
    runtime::cpu::enable_interrupts();
    runtime::cpu::disable_interrupts();
    check_eq!(
        call!(w_sti_sti),
        (1, address!(w_sti_sti_1)),
        "STI, STI: the second does not shadow again"
    );
    check_eq!(call!(w_popf), (1, address!(w_popf_1)), "POPF: at once");
    check_eq!(call!(w_iret), (1, address!(w_iret_1)), "IRET: at once");
    check_eq!(
        call!(w_hlt),
        (1, address!(w_hlt_1)),
        "STI, HLT: HLT ends, RIP after it"
    );
    // MOV SS while interrupts are open, the request made just before.
    listen(&[0x41]);
    w_mov_ss(0);
    check_eq!(
        (count(), taken(0).1),
        (1, address!(w_mov_ss_2)),
        "6.8.3: STI, then MOV SS: after the next instruction"
    );
    // CR8 opens the window.
    listen(&[0x41]);
    runtime::cpu::write_cr8(15);
    write(reg::ICR, 1 << 18 | 0x41);
    w_cr8(0);
    check_eq!(
        (count(), taken(0).1),
        (1, address!(w_cr8_1)),
        "MOV to CR8: at once"
    );
}
