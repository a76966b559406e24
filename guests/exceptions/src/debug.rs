//! Debug exceptions (18.2, 18.3): single step, breakpoints, RF, the shadow of MOV SS.

use runtime::cpu::{self, cr4};
use runtime::paging::user_address;
use runtime::trap::{self, Frame, raised_at as at};
use runtime::{address, check, check_eq, labels, section, snippet};

use crate::user_stack;

const TF: u64 = 1 << 8;
const RF: u64 = 1 << 16;
const BS: u64 = 1 << 14;
const BD: u64 = 1 << 13;

/// DR7: global enable of breakpoint `i`, condition `rw`, length code `len`.
const fn dr7(i: u64, rw: u64, len: u64) -> u64 {
    0x400 | 2 << (2 * i) | rw << (16 + 4 * i) | len << (18 + 4 * i)
}

snippet! {
    b_step: "pushfq", "or dword ptr [rsp], 0x100", "popfq", "nop", "b_step_2: nop", "ret";
    b_step_ss: "mov edx, ss", "pushfq", "or dword ptr [rsp], 0x100", "popfq",
        "mov ss, edx", "b_ss_2: nop", "b_ss_3: nop", "pushfq", "and dword ptr [rsp], ~0x100",
        "popfq", "ret";
    b_execute: "nop", "b_execute_at: nop", "nop", "ret";
    b_store: "mov [rdi], al", "b_store_after: nop", "ret";
    b_load: "mov al, [rdi]", "b_load_after: nop", "ret";
    b_store_ss: "mov edx, ss", "mov rax, [rdi]", "mov ss, [rdi]", "b_store_ss_1: nop",
        "b_store_ss_2: nop", "ret";
    b_repeat: "mov ecx, 4", "pushfq", "or dword ptr [rsp], 0x100", "popfq", "b_repeat_at: rep stosb",
        "nop", "b_repeat_end: pushfq", "and dword ptr [rsp], ~0x100", "popfq", "ret";
    b_out: "mov edx, 0x80", "mov al, 0", "out dx, al", "b_out_after: nop", "ret";
    b_user_step: "nop", "b_user_1: int 0x80";
    b_dr4: ".byte 0x0f, 0x21, 0xe0", "ret";
    b_get_dr0: "mov rax, dr0", "ret";
}

labels! { b_step_2, b_ss_2, b_ss_3, b_execute_at, b_store_after, b_load_after, b_store_ss_2, b_repeat_at, b_out_after, b_user_1 }

/// RIPs of the #DBs a recording handler saw.
static mut SEEN: [(u64, u64, u64); 16] = [(0, 0, 0); 16];
static mut COUNT: usize = 0;

fn note(frame: &mut Frame) {
    // SAFETY: one flow of control; bounded.
    unsafe {
        if COUNT < 16 {
            SEEN[COUNT] = (frame.rip, cpu::read_dr6(), frame.rflags);
            COUNT += 1;
        }
    }
    // Instruction breakpoints are faults: go on past them.
    if cpu::read_dr6() & BS == 0 {
        frame.rflags |= RF;
    }
    cpu::write_dr6(0xffff_0ff0);
}

fn recorded(function: u64, argument: u64) -> usize {
    cpu::write_dr6(0xffff_0ff0);
    // SAFETY: one flow of control.
    unsafe { COUNT = 0 };
    trap::handle(1, Some(note));
    let trap = at(function, argument);
    trap::handle(1, None);
    cpu::write_dr7(0x400);
    check_eq!(trap.frame.vector, 256, "nothing but #DB");
    // SAFETY: one flow of control.
    unsafe { COUNT }
}

fn seen(i: usize) -> (u64, u64, u64) {
    // SAFETY: one flow of control.
    unsafe { (&raw const SEEN).cast::<(u64, u64, u64)>().add(i).read() }
}

pub fn run() {
    stepping();
    breakpoints();
    registers();
}

/// 18.3.1.4.
fn stepping() {
    section("18.3.1.4 single step");
    cpu::write_dr6(0xffff_0ff0);
    let trap = at(address!(b_step), 0);
    check_eq!(trap.what(), (1, 0), "TF");
    // POPF itself is not stepped: TF was clear when it began.
    check_eq!(
        trap.frame.rip,
        address!(b_step_2),
        "after the instruction that follows POPF"
    );
    check_eq!(trap.dr6 & (BS | 15), BS, "DR6.BS");
    check_eq!(trap.frame.rflags & TF, TF, "TF in the image");
    check_eq!(trap.frame.rflags & RF, 0, "no RF for a trap");

    let count = recorded(address!(b_step_ss), 0);
    check!(count >= 2, "steps: {count}");
    // 6.8.3: no debug exception after MOV SS; the next is after the instruction that follows.
    check!(
        (0..count).all(|i| seen(i).0 != address!(b_ss_2)),
        "6.8.3: no #DB between MOV SS and the next instruction"
    );
    check_eq!(
        seen(0).0,
        address!(b_ss_3),
        "6.8.3: the step after the shadow"
    );

    let memory = runtime::memory::page();
    let count = recorded(address!(b_repeat), memory);
    let at_rep = (0..count)
        .filter(|&i| seen(i).0 == address!(b_repeat_at))
        .count();
    check_eq!(
        at_rep,
        3,
        "a step after every iteration but the last is at REP STOS"
    );

    let user = user_address(address!(b_user_step));
    cpu::write_dr6(0xffff_0ff0);
    let trap = trap::user(user, 0, user_stack(), TF);
    check_eq!(
        trap.what(),
        (1, 0),
        "IRET sets TF: step after the next instruction"
    );
    check_eq!(
        trap.frame.rip,
        user_address(address!(b_user_1)),
        "RIP at CPL 3"
    );
}

/// 18.2.4, 18.3.1.1 to 18.3.1.3.
fn breakpoints() {
    section("18.3.1 breakpoints");
    let memory = runtime::memory::page();
    cpu::write_dr0(address!(b_execute_at));
    cpu::write_dr7(dr7(0, 0, 0));
    cpu::write_dr6(0xffff_0ff0);
    let trap = at(address!(b_execute), 0);
    check_eq!(trap.what(), (1, 0), "execution");
    check_eq!(
        trap.frame.rip,
        address!(b_execute_at),
        "a fault: RIP at the instruction"
    );
    check_eq!(trap.dr6 & (BS | 15), 1, "DR6.B0");
    // 18.3.1.1: RF is what lets the handler go on.
    cpu::write_dr7(dr7(0, 0, 0));
    check_eq!(recorded(address!(b_execute), 0), 1, "RF: once");
    cpu::write_dr7(0x400);
    check_eq!(recorded(address!(b_execute), 0), 0, "not enabled");

    let go = |function: u64, argument: u64, i: u64, rw: u64, len: u64, address: u64| {
        match i {
            0 => cpu::write_dr0(address),
            1 => cpu::write_dr1(address),
            2 => cpu::write_dr2(address),
            _ => cpu::write_dr3(address),
        }
        cpu::write_dr6(0xffff_0ff0);
        cpu::write_dr7(dr7(i, rw, len));
        let trap = at(function, argument);
        cpu::write_dr7(0x400);
        trap
    };
    let (store, load) = (address!(b_store), address!(b_load));
    let trap = go(store, memory, 1, 1, 0, memory);
    check_eq!(trap.what(), (1, 0), "data write");
    check_eq!(trap.frame.rip, address!(b_store_after), "a trap: RIP after");
    check_eq!(trap.dr6 & 15, 2, "DR6.B1");
    check_eq!(
        go(load, memory, 1, 1, 0, memory).frame.vector,
        256,
        "a read is no write"
    );
    let trap = go(load, memory, 2, 3, 0, memory);
    check_eq!(trap.what(), (1, 0), "data read or write: read");
    check_eq!(trap.frame.rip, address!(b_load_after), "RIP after the read");
    check_eq!(
        go(store, memory, 3, 3, 0, memory).dr6 & 15,
        8,
        "data read or write: write"
    );
    check_eq!(
        go(store, memory + 3, 0, 1, 3, memory).frame.vector,
        1,
        "length 4: last byte"
    );
    check_eq!(
        go(store, memory + 4, 0, 1, 3, memory).frame.vector,
        256,
        "length 4: beyond"
    );
    check_eq!(
        go(store, memory + 7, 0, 1, 2, memory).frame.vector,
        1,
        "length 8: last byte"
    );
    check_eq!(
        go(store, memory + 8, 0, 1, 2, memory).frame.vector,
        256,
        "length 8: beyond"
    );
    check_eq!(
        go(store, memory + 1, 0, 1, 0, memory).frame.vector,
        256,
        "length 1: beyond"
    );
    // 18.2.5: the low bits of the address are those of the length: ignored.
    check_eq!(
        go(store, memory, 0, 1, 3, memory + 3).frame.vector,
        1,
        "length 4, address not aligned"
    );
    // 6.8.3: a data breakpoint of MOV SS is held until after the next instruction.
    runtime::memory::write(memory, u64::from(runtime::descriptors::KERNEL_SS));
    cpu::write_dr0(memory);
    cpu::write_dr7(dr7(0, 3, 0));
    let count = recorded(address!(b_store_ss), memory);
    check_eq!(count, 2, "the load before MOV SS, and MOV SS");
    check_eq!(
        seen(1).0,
        address!(b_store_ss_2),
        "6.8.3: held over the next instruction"
    );

    // 18.2.4: I/O breakpoints need CR4.DE.
    let old = cpu::read_cr4();
    cpu::write_cr4(old | cr4::DE);
    let trap = go(address!(b_out), 0, 0, 2, 0, 0x80);
    check_eq!(trap.what(), (1, 0), "I/O");
    check_eq!(trap.frame.rip, address!(b_out_after), "I/O: RIP after");
    cpu::write_cr4(old & !cr4::DE);
}

/// 18.2: the registers themselves.
fn registers() {
    section("18.2 debug registers");
    let old = cpu::read_cr4();
    cpu::write_cr4(old & !cr4::DE);
    cpu::write_dr6(0xffff_0ff0);
    check_eq!(b_dr4(0), 0xffff_0ff0, "18.2.2: DR4 is DR6 without DE");
    cpu::write_cr4(old | cr4::DE);
    check_eq!(at(address!(b_dr4), 0).what(), (6, 0), "18.2.2: #UD with DE");
    cpu::write_cr4(old);
    cpu::write_dr6(0);
    check_eq!(
        cpu::read_dr6() & 0xffff_0ff0 & !(1 << 11 | 1 << 16),
        0xfffe_07f0,
        "DR6: ones that are fixed"
    );
    cpu::write_dr7(0);
    check_eq!(cpu::read_dr7(), 0x400, "DR7: bit 10 is fixed");
    check_eq!(
        trap::raised(|| cpu::write_dr6(1 << 32)).what(),
        (13, 0),
        "18.2.6: DR6 bit 32"
    );
    check_eq!(
        trap::raised(|| cpu::write_dr7(1 << 32)).what(),
        (13, 0),
        "18.2.6: DR7 bit 32"
    );
    let user = user_address(address!(b_get_dr0));
    check_eq!(
        trap::user(user, 0, user_stack(), 0).what(),
        (13, 0),
        "MOV from DR0 at CPL 3"
    );
    // General detect.
    cpu::write_dr6(0xffff_0ff0);
    cpu::write_dr7(0x400 | 1 << 13);
    let trap = at(address!(b_get_dr0), 0);
    check_eq!(trap.what(), (1, 0), "18.2.4: general detect");
    check_eq!(trap.frame.rip, address!(b_get_dr0), "GD is a fault");
    check_eq!(trap.dr6 & BD, BD, "DR6.BD");
    check_eq!(cpu::read_dr7() & 1 << 13, 0, "GD cleared for the handler");
    cpu::write_dr7(0x400);
    cpu::write_dr6(0xffff_0ff0);
}
