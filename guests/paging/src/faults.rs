//! Page faults: CR2, error codes of pages that are not there, accesses and fetches across pages (4.7).

use runtime::cpu;
use runtime::memory::{read, write, write_bytes};
use runtime::paging::{NX, P, U, W, entry, map, root, user_address};
use runtime::trap::{self, raised_at};
use runtime::{address, check_eq, labels, section, snippet};

use crate::{memory, two_pages};
use runtime::paging::TEST_BASE;

snippet! {
    g_read: "mov rax, [rdi]", "ret";
    g_write: "mov [rdi], rdi", "ret";
    g_push: "mov rdx, rsp", "mov rsp, rdi", "push rax", "mov rsp, rdx", "ret";
    g_read_user: "mov rax, [rdi]", "int 0x80";
    g_write_user: "mov [rdi], rdi", "int 0x80";
    g_copy: "mov rsi, rdi", "lea rdi, [rdi + 4096]", "mov ecx, 600", "g_copy_at: rep movsq", "ret";
    g_modify: "add qword ptr [rdi], 1", "ret";
}

labels! { g_copy_at }

const BASE: u64 = TEST_BASE + (16 << 30);

pub fn run() {
    absent();
    across();
    fetches();
    strings();
}

fn absent() {
    section("4.7 pages that are not present");
    let stack = user_address(memory() + 4096);
    map(root(), BASE, 0, 1, 0);
    for level in 1..=4 {
        let slot = entry(root(), BASE, level);
        let old = read(slot);
        write(slot, old & !P);
        cpu::write_cr3(cpu::read_cr3());
        let go = |function: u64| {
            let trap = raised_at(function, BASE + 0x123);
            (trap.what(), trap.cr2)
        };
        check_eq!(
            go(address!(g_read)),
            ((14, 0), BASE + 0x123),
            "read, level {level}"
        );
        check_eq!(
            go(address!(g_write)),
            ((14, 2), BASE + 0x123),
            "write, level {level}"
        );
        check_eq!(
            go(address!(g_modify)),
            ((14, 2), BASE + 0x123),
            "read and write, level {level}"
        );
        let trap = raised_at(BASE + 0x123, 0);
        check_eq!(
            (trap.what(), trap.cr2),
            ((14, 0x10), BASE + 0x123),
            "fetch, level {level}"
        );
        check_eq!(trap.frame.rip, BASE + 0x123, "fetch: RIP");
        let user = |function: u64| trap::user(user_address(function), BASE, stack, 0).what();
        check_eq!(
            user(address!(g_read_user)),
            (14, 4),
            "user read, level {level}"
        );
        check_eq!(
            user(address!(g_write_user)),
            (14, 6),
            "user write, level {level}"
        );
        check_eq!(
            trap::user(BASE, 0, stack, 0).what(),
            (14, 0x14),
            "user fetch, level {level}"
        );
        write(slot, old);
    }
    cpu::write_cr3(cpu::read_cr3());
    let trap = raised_at(address!(g_push), BASE + 8);
    check_eq!((trap.what(), trap.cr2), ((14, 2), BASE), "PUSH");
}

/// One access, two pages.
fn across() {
    section("4.7 accesses across pages");
    let pages = two_pages();
    map(root(), BASE, pages, 1, P | W | U);
    map(root(), BASE + 4096, pages + 4096, 1, P | W | U);
    cpu::write_cr3(cpu::read_cr3());
    let edge = BASE + 4096 - 3;
    write(pages + 4088, 0);
    write(pages + 4096, 0);
    check_eq!(
        raised_at(address!(g_write), edge).frame.vector,
        256,
        "write across"
    );
    check_eq!(
        read(pages + 4088) >> 40,
        edge & 0xff_ffff,
        "its first three bytes"
    );
    check_eq!(
        read(pages + 4096) & 0xff_ffff_ffff,
        edge >> 24,
        "its last five bytes"
    );
    // The two pages elsewhere: not consecutive in physical memory.
    map(root(), BASE, pages + 4096, 1, P | W | U);
    map(root(), BASE + 4096, pages, 1, P | W | U);
    cpu::write_cr3(cpu::read_cr3());
    check_eq!(
        g_read(edge) >> 24,
        read(pages) & 0xff_ffff_ffff,
        "read across, pages swapped"
    );
    map(root(), BASE, pages, 1, P | W | U);

    // The second page not writable, then not there: nothing of the first is written.
    for (flags, code) in [(P | U, 3), (0, 2)] {
        map(root(), BASE + 4096, pages + 4096, 1, flags);
        cpu::write_cr3(cpu::read_cr3());
        write(pages + 4088, 0x1111_1111_1111_1111);
        let trap = raised_at(address!(g_write), edge);
        check_eq!(
            (trap.what(), trap.cr2),
            ((14, code), BASE + 4096),
            "write into page {flags:x}"
        );
        check_eq!(read(pages + 4088), 0x1111_1111_1111_1111, "nothing written");
    }
    let trap = raised_at(address!(g_read), edge);
    check_eq!(
        (trap.what(), trap.cr2),
        ((14, 0), BASE + 4096),
        "read into a page not present"
    );
    map(root(), BASE, pages, 1, 0);
    map(root(), BASE + 4096, pages + 4096, 1, P | W | U);
    cpu::write_cr3(cpu::read_cr3());
    let trap = raised_at(address!(g_read), edge);
    check_eq!(
        (trap.what(), trap.cr2),
        ((14, 0), edge),
        "read out of a page not present"
    );
    map(root(), BASE, pages, 1, P | W | U);
    cpu::write_cr3(cpu::read_cr3());
}

/// An instruction over a page border.
fn fetches() {
    section("4.7 fetches across pages");
    let pages = two_pages();
    map(root(), BASE, pages, 1, P | W);
    map(root(), BASE + 4096, pages + 4096, 1, P | W);
    cpu::write_cr3(cpu::read_cr3());
    // mov eax, 12345678h; ret
    let start = 4096 - 2;
    write_bytes(pages + start, &[0xb8, 0x78, 0x56, 0x34, 0x12, 0xc3]);
    let call = |address: u64| raised_at(address, 0);
    check_eq!(call(BASE + start).frame.vector, 256, "both present");
    for (flags, code) in [(0, 0x10), (P | W | NX, 0x11)] {
        map(root(), BASE + 4096, pages + 4096, 1, flags);
        cpu::write_cr3(cpu::read_cr3());
        let trap = call(BASE + start);
        check_eq!(
            (trap.what(), trap.cr2),
            ((14, code), BASE + 4096),
            "second page {flags:x}"
        );
        check_eq!(trap.frame.rip, BASE + start, "RIP of the instruction");
        // RET ends in the first page: the second does not matter.
        write_bytes(pages + 4095, &[0xc3]);
        check_eq!(
            call(BASE + 4095).frame.vector,
            256,
            "an instruction that ends before it"
        );
        write_bytes(pages + 4095, &[0x78]);
    }
    // Bytes of the first page decide what the second is asked for: an opcode that is undefined already.
    write_bytes(pages + 4094, &[0x0f, 0x0b]);
    check_eq!(
        call(BASE + 4094).what(),
        (6, 0),
        "UD2 before a page that cannot be executed"
    );
    map(root(), BASE + 4096, pages + 4096, 1, P | W);
    cpu::write_cr3(cpu::read_cr3());
}

/// REP: what was done stays done, and it goes on after the fault.
fn strings() {
    section("vol 2, REP: faults between iterations");
    let pages = runtime::memory::pages(4, 4096);
    for i in 0..4 {
        map(root(), BASE + 4096 * i, pages + 4096 * i, 1, P | W);
    }
    map(root(), BASE + 4096 * 2, 0, 1, 0);
    cpu::write_cr3(cpu::read_cr3());
    for i in 0..512 {
        write(pages + 8 * i, i * 3);
    }
    // 600 quadwords from page 0 to page 1: the 513th is stored to page 2.
    let trap = raised_at(address!(g_copy), BASE);
    check_eq!(
        (trap.what(), trap.cr2),
        ((14, 2), BASE + 8192),
        "the page not present"
    );
    check_eq!(trap.frame.rip, address!(g_copy_at), "RIP at REP MOVS");
    check_eq!(trap.frame.rcx(), 600 - 512, "RCX: what is left");
    check_eq!(trap.frame.gpr[8], BASE + 8192, "RDI: at the fault");
    check_eq!(trap.frame.gpr[9], BASE + 4096, "RSI: at the fault");
    check_eq!(
        read(pages + 4096 + 8 * 511),
        511 * 3,
        "what was done is done"
    );
}
