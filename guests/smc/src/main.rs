//! Code that changes (volume 3, 12.6 and 9.1.3): in the block that runs, in the same page, over a page
//! border, by every kind of store, by another name, by another mapping.

#![no_std]
#![no_main]

use runtime::cpu;
use runtime::memory::{page, pages, read, write, write_bytes};
use runtime::paging::{P, TEST_BASE, U, W, map, root};
use runtime::trap::{self, raised_at};
use runtime::{address, check_eq, section, snippet};

runtime::guest!("smc", run);

snippet! {
    // Stores of all kinds; RDI the place, RSI the eight bytes.
    s_mov8: "mov [rdi], sil", "ret";
    s_mov: "mov [rdi], rsi", "ret";
    s_xchg: "xchg [rdi], rsi", "ret";
    s_cmpxchg: "mov rax, [rdi]", "lock cmpxchg [rdi], rsi", "ret";
    s_add: "mov rax, [rdi]", "sub rsi, rax", "add [rdi], rsi", "ret";
    s_xadd: "mov rax, [rdi]", "sub rsi, rax", "lock xadd [rdi], rsi", "ret";
    s_stos: "mov rax, rsi", "stosq", "ret";
    s_rep_stos: "mov rax, rsi", "mov ecx, 1", "rep stosq", "ret";
    s_movs: "push rsi", "mov rsi, rsp", "mov ecx, 8", "rep movsb", "pop rsi", "ret";
    s_movq: "movq xmm0, rsi", "movq [rdi], xmm0", "ret";
    s_movups: "movups xmm0, [rdi]", "movq xmm1, rsi", "movsd xmm0, xmm1", "movups [rdi], xmm0", "ret";
    s_movnti: "movnti [rdi], rsi", "sfence", "ret";
    s_movbe: "bswap rsi", "mov rax, rsi", "bswap rax", "mov [rdi], rax", "ret";
    s_fistp: "push rsi", "fild qword ptr [rsp]", "pop rax", "fistp qword ptr [rdi]", "ret";
    s_push: "mov rdx, rsp", "lea rsp, [rdi + 8]", "push rsi", "mov rsp, rdx", "ret";
    s_pop: "push rsi", "pop qword ptr [rdi]", "ret";
    s_bts: "mov rax, rsi", "xor rax, [rdi]", "2: test rax, rax", "jz 3f", "bsf rcx, rax",
        "btc qword ptr [rdi], rcx", "btr rax, rcx", "jmp 2b", "3: ret";
    s_setcc: "mov rax, rsi", "mov [rdi + 1], rax", "xor eax, eax", "sete byte ptr [rdi]",
        "mov [rdi], rsi", "ret";
    s_cmpxchg16b: "push rbx", "mov rax, [rdi]", "mov rdx, [rdi + 8]", "mov rbx, rsi", "mov rcx, rdx",
        "lock cmpxchg16b [rdi]", "pop rbx", "ret";
    s_call: "ret";
}

/// Calls `function(rdi, rsi)`.
fn call2(function: u64, rdi: u64, rsi: u64) -> u64 {
    let result;
    // SAFETY: the snippets and the code the guest wrote keep to the C calling convention.
    unsafe {
        core::arch::asm!("call {f}", f = in(reg) function, in("rdi") rdi, in("rsi") rsi,
            out("rax") result, clobber_abi("C"));
    }
    result
}

fn call(function: u64) -> u64 {
    call2(function, 0, 0)
}

fn run() {
    section("12.6 the instruction after the store");
    next_instruction();
    section("12.6 the same page");
    same_page();
    section("12.6 every kind of store");
    stores();
    section("12.6 across pages");
    across();
    section("12.6 other names");
    names();
    section("4.10 other mappings");
    mappings();
    section("6.14 pushes of the processor's own");
    pushes();
    section("modes");
    modes();
}

fn next_instruction() {
    let at = page();
    // mov byte ptr [rip + 1], 42h ; mov al, 0 ; movzx eax, al ; ret
    let code = [
        0xc6, 0x05, 0x01, 0, 0, 0, 0x42, 0xb0, 0x00, 0x0f, 0xb6, 0xc0, 0xc3,
    ];
    write_bytes(at, &code);
    check_eq!(
        call(at),
        0x42,
        "immediate of the next instruction, first run"
    );
    write_bytes(at + 8, &[0]);
    check_eq!(call(at), 0x42, "again");
    // A loop that raises the immediate it adds: 1 + 2 + ... + 100.
    // xor eax, eax ; mov ecx, 100
    // again: inc byte ptr [rip + imm] ; add eax, imm8 ; dec ecx ; jnz again ; ret
    let code = [
        0x31, 0xc0, 0xb9, 100, 0, 0, 0, 0xfe, 0x05, 0x02, 0, 0, 0, 0x83, 0xc0, 0x00, 0xff, 0xc9,
        0x75, 0xf3, 0xc3,
    ];
    write_bytes(at + 256, &code);
    check_eq!(call(at + 256), 5050, "a loop that changes itself");
    // Backwards: an instruction already executed in this block changes what a second pass does.
    // xor eax, eax ; mov ecx, 2
    // again: add eax, 1 ; mov byte ptr [rip - 8], 10 (the add's immediate) ; dec ecx ; jnz again ; ret
    let code = [
        0x31, 0xc0, 0xb9, 2, 0, 0, 0, 0x83, 0xc0, 0x01, 0xc6, 0x05, 0xf8, 0xff, 0xff, 0xff, 10,
        0xff, 0xc9, 0x75, 0xf2, 0xc3,
    ];
    write_bytes(at + 512, &code);
    check_eq!(call(at + 512), 11, "an earlier instruction of the block");
    // The store turns the next instruction into RET.
    // mov eax, 1 ; mov byte ptr [rip], C3h ; nop ; mov eax, 2 ; ret
    let code = [
        0xb8, 1, 0, 0, 0, 0xc6, 0x05, 0, 0, 0, 0, 0xc3, 0x90, 0xb8, 2, 0, 0, 0, 0xc3,
    ];
    write_bytes(at + 768, &code);
    check_eq!(call(at + 768), 1, "the next instruction becomes another");
}

fn same_page() {
    let at = page();
    write_bytes(at, &[0xb8, 0, 0, 0, 0, 0xc3]);
    write_bytes(at + 64, &[0xb8, 7, 0, 0, 0, 0xc3]);
    let mut sum = 0;
    for i in 0..1000u32 {
        write_bytes(at + 1, &i.to_le_bytes());
        sum += call(at) + call(at + 64);
    }
    check_eq!(sum, 499_500 + 7000, "a function patched a thousand times");
    // Data beside code: neither disturbs the other.
    let mut sum = 0;
    for i in 0..1000u64 {
        write(at + 8, i);
        sum += call(at) + read(at + 8);
    }
    check_eq!(sum, 999 * 1000 + 499_500, "data beside code");
    // A longer instruction over a shorter one, then nothing but bytes moved by one.
    write_bytes(at + 128, &[0x90, 0x90, 0xb8, 1, 0, 0, 0, 0xc3]);
    check_eq!(call(at + 128), 1, "before");
    write_bytes(at + 128, &[0xb8, 2, 0, 0, 0, 0xc3]);
    check_eq!(call(at + 128), 2, "other lengths");
}

fn stores() {
    let at = page();
    // mov eax, imm32 ; ret ; nop ; nop
    let code = |value: u32| {
        let v = value.to_le_bytes();
        u64::from_le_bytes([0xb8, v[0], v[1], v[2], v[3], 0xc3, 0x90, 0x90])
    };
    write(at + 64 + 8, 0x9090_9090_9090_9090);
    for (i, (name, store)) in [
        ("MOV", address!(s_mov)),
        ("XCHG", address!(s_xchg)),
        ("CMPXCHG", address!(s_cmpxchg)),
        ("ADD", address!(s_add)),
        ("XADD", address!(s_xadd)),
        ("STOS", address!(s_stos)),
        ("REP STOS", address!(s_rep_stos)),
        ("REP MOVS", address!(s_movs)),
        ("MOVQ", address!(s_movq)),
        ("MOVUPS", address!(s_movups)),
        ("MOVNTI", address!(s_movnti)),
        ("BSWAP and MOV", address!(s_movbe)),
        ("FISTP", address!(s_fistp)),
        ("PUSH", address!(s_push)),
        ("POP", address!(s_pop)),
        ("BTC", address!(s_bts)),
        ("SETcc", address!(s_setcc)),
        ("CMPXCHG16B", address!(s_cmpxchg16b)),
    ]
    .into_iter()
    .enumerate()
    {
        let place = at + 64;
        for round in 0..3 {
            let value = (i as u32) << 8 | round;
            call2(store, place, code(value));
            check_eq!(
                call(place) & 0xffff_ffff,
                u64::from(value),
                "{name}, round {round}"
            );
        }
    }
    for value in 0..3 {
        call2(address!(s_mov8), at + 65, value);
        check_eq!(call(at + 64) & 0xff, value, "MOV of a byte");
    }
}

fn across() {
    let at = pages(2, 8192);
    let edge = at + 4096;
    // mov eax, imm32 over the border: each byte of it from either side.
    for split in 1..6 {
        let start = edge - split;
        write_bytes(start, &[0xb8, 1, 1, 1, 1, 0xc3]);
        check_eq!(call(start), 0x0101_0101, "split {split}");
        for byte in 0..4 {
            write_bytes(start + 1 + byte, &[0x77]);
            let expected = 0x0101_0101 & !(0xff << (8 * byte)) | 0x77 << (8 * byte);
            check_eq!(call(start), expected, "split {split}, byte {byte}");
            write_bytes(start + 1 + byte, &[1]);
        }
        check_eq!(call(start), 0x0101_0101, "split {split}: back");
    }
    // A page of code that is changed from another page's code.
    let other = page();
    // mov [rdi], sil ; ret
    write_bytes(other, &[0x40, 0x88, 0x37, 0xc3]);
    write_bytes(at, &[0xb8, 0, 0, 0, 0, 0xc3]);
    for value in 0..50 {
        call2(other, at + 1, value);
        check_eq!(call(at), value, "changed by another page");
    }
    // A block that runs through a border.
    write_bytes(edge - 8, &[0x90; 8]);
    write_bytes(edge, &[0xb8, 3, 0, 0, 0, 0xc3]);
    check_eq!(call(edge - 8), 3, "through the border");
    write_bytes(edge + 1, &[4]);
    check_eq!(call(edge - 8), 4, "through the border, changed behind it");
}

fn names() {
    let at = page();
    let (one, two) = (TEST_BASE, TEST_BASE + (5 << 30));
    map(root(), one, at, 1, P | W);
    map(root(), two, at, 1, P | W);
    cpu::write_cr3(cpu::read_cr3());
    // mov eax, imm32 ; ret
    write_bytes(at, &[0xb8, 0, 0, 0, 0, 0xc3]);
    for i in 0..60u64 {
        let (writer, runner) = match i % 3 {
            0 => (one, two),
            1 => (two, at),
            _ => (at, one),
        };
        write_bytes(writer + 1, &[i as u8]);
        // 9.1.3: another linear address needs a serializing instruction.
        cpu::cpuid(0, 0);
        check_eq!(call(runner), i, "written by one name, run by another");
    }
    // RIP is that of the name it runs by.
    // lea rax, [rip] ; ret
    write_bytes(at + 32, &[0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xc3]);
    for name in [one, two, at, one] {
        check_eq!(call(name + 32), name + 39, "RIP by name");
    }
}

fn mappings() {
    let (one, two) = (page(), page());
    write_bytes(one, &[0xb8, 1, 0, 0, 0, 0xc3]);
    write_bytes(two, &[0xb8, 2, 0, 0, 0, 0xc3]);
    let at = TEST_BASE + (6 << 30);
    for i in 0..20u64 {
        map(root(), at, if i % 2 == 0 { one } else { two }, 1, P | W);
        cpu::invlpg(at);
        check_eq!(call(at), i % 2 + 1, "the same address, other memory");
    }
    // An instruction over a border whose second half is mapped elsewhere.
    let first = page();
    write_bytes(first + 4095, &[0xb8]);
    write_bytes(one, &[1, 0, 0, 0, 0xc3]);
    write_bytes(two, &[2, 0, 0, 0, 0xc3]);
    map(root(), at, first, 1, P | W);
    for i in 0..20u64 {
        map(
            root(),
            at + 4096,
            if i % 2 == 0 { one } else { two },
            1,
            P | W,
        );
        cpu::write_cr3(cpu::read_cr3());
        check_eq!(call(at + 4095), i % 2 + 1, "the second half elsewhere");
    }
    // The page is taken away, or its right to be executed.
    map(root(), at, 0, 1, 0);
    cpu::invlpg(at);
    check_eq!(raised_at(at, 0).what(), (14, 0x10), "not present any more");
    map(root(), at, one, 1, P | W | runtime::paging::NX);
    cpu::invlpg(at);
    check_eq!(
        raised_at(at, 0).what(),
        (14, 0x11),
        "not executable any more"
    );
}

/// CALL and exceptions push onto a page that holds code.
fn pushes() {
    let at = page();
    // At +8: mov eax, 1 ; ret. CALL with RSP there pushes over it.
    write_bytes(at + 8, &[0xb8, 1, 0, 0, 0, 0xc3, 0x90, 0x90]);
    check_eq!(call(at + 8), 1, "before");
    let expected: u64;
    // SAFETY: the stack is elsewhere for one CALL and RET.
    unsafe {
        core::arch::asm!(
            "mov {save}, rsp",
            "lea rsp, [{place} + 16]",
            "call {f}",
            "2: mov rsp, {save}",
            "lea {save}, [rip + 2b]",
            save = out(reg) expected,
            place = in(reg) at,
            f = in(reg) address!(s_call),
        );
    }
    check_eq!(read(at + 8), expected, "CALL wrote its return address");
    // The bytes are an address now: 2-byte instructions at best; give them a meaning.
    write_bytes(at + 8, &[0xb8, 9, 0, 0, 0, 0xc3]);
    check_eq!(call(at + 8), 9, "after");
    // An exception's frame over code: RIP, the lowest, over the function.
    runtime::descriptors::set_stack(2, at + 256);
    runtime::descriptors::set_gate(6, runtime::descriptors::stub(6), 2, 0);
    write_bytes(at + 208, &[0xb8, 1, 0, 0, 0, 0xc3]);
    check_eq!(call(at + 208), 1, "code where the frame will be");
    let trap = raised_at(address!(s_ud), 0);
    check_eq!(trap.frame.vector, 6, "#UD");
    // SS at +248, then RSP, RFLAGS, CS at +224, RIP at +216, error code's place and vector below.
    check_eq!(trap.pushed_at, at + 216, "the frame");
    let bytes = read(at + 208);
    check_eq!(bytes, 0, "the stub's own push is there now");
    write_bytes(at + 208, &[0xb8, 5, 0, 0, 0, 0xc3]);
    check_eq!(call(at + 208), 5, "code again");
    runtime::descriptors::set_gate(6, runtime::descriptors::stub(6), 1, 0);
    runtime::descriptors::set_stack(2, runtime::descriptors::stack_top(2));
}

snippet! { s_ud: "ud2", "ret"; }

/// The same bytes as 64-bit and as 32-bit code.
fn modes() {
    let at = page();
    // As 64-bit code: mov rax, rcx ; int 80h. As 32-bit code: dec eax ; mov eax, ecx ; int 80h.
    // xor eax, eax first in both; 48h alone before JMP tells them apart: dec eax / a REX prefix.
    write_bytes(at, &[0x31, 0xc0, 0x48, 0x90, 0xcd, 0x80]);
    let address = TEST_BASE + (7 << 30);
    map(root(), address, at, 1, P | W | U);
    // 32-bit code needs an address below 4 GiB: a hole of the first 4 GiB, 3 GiB on.
    let low = 0xc000_0000;
    let slot = runtime::paging::entry(root(), low, 2);
    let old = read(slot);
    write(slot, 0);
    map(root(), low, at, 1, P | W | U);
    for level in 3..=4 {
        let slot = runtime::paging::entry(root(), low, level);
        write(slot, read(slot) | U);
    }
    let slot2 = runtime::paging::entry(root(), low, 2);
    write(slot2, read(slot2) | U);
    cpu::write_cr3(cpu::read_cr3());
    let stack = runtime::paging::user_address(page() + 4096);
    for _ in 0..3 {
        let trap = trap::user(address, 0, stack, 0);
        check_eq!(
            (trap.frame.vector, trap.frame.rax()),
            (0x80, 0),
            "64-bit code"
        );
        let trap = trap::enter([
            low,
            u64::from(runtime::descriptors::USER_CS32),
            2,
            stack & 0xffff_ffff,
            u64::from(runtime::descriptors::USER_SS),
            0,
        ]);
        let eax = trap.frame.rax() & 0xffff_ffff;
        check_eq!((trap.frame.vector, eax), (0x80, 0xffff_ffff), "32-bit code");
    }
    write(slot, old);
    cpu::write_cr3(cpu::read_cr3());
}
