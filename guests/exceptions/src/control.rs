//! Privileged instructions, control registers and MSRs: who may, and which values (2.5, 2.6, 4.1.1).

use runtime::cpu::{self, cr0, cr4, efer};
use runtime::paging::user_address;
use runtime::trap::{self, raised, raised_at as at};
use runtime::{address, check, check_eq, section, skip, snippet};

use crate::user_stack;

const IOPL3: u64 = 3 << 12;

snippet! {
    c_hlt: "hlt", "int 0x80";
    c_cli: "cli", "int 0x80";
    c_sti: "sti", "int 0x80";
    c_in: "in al, 0x80", "int 0x80";
    c_outsb: "mov edx, 0x80", "outsb", "int 0x80";
    c_lgdt: "lgdt [rdi]", "int 0x80";
    c_lidt: "lidt [rdi]", "int 0x80";
    c_lldt: "lldt di", "int 0x80";
    c_ltr: "ltr di", "int 0x80";
    c_clts: "clts", "int 0x80";
    c_invd: "invd", "int 0x80";
    c_wbinvd: "wbinvd", "int 0x80";
    c_invlpg: "invlpg [rdi]", "int 0x80";
    c_rdmsr: "rdmsr", "int 0x80";
    c_wrmsr: "wrmsr", "int 0x80";
    c_mov_cr0: "mov rax, cr0", "int 0x80";
    c_mov_to_cr3: "mov cr3, rax", "int 0x80";
    c_mov_cr8: "mov rax, cr8", "int 0x80";
    c_lmsw: "lmsw ax", "int 0x80";
    c_swapgs: "swapgs", "int 0x80";
    c_rdtsc: "rdtsc", "int 0x80";
    c_rdpmc: "xor ecx, ecx", "rdpmc", "int 0x80";
    c_sgdt: "sgdt [rsp - 16]", "int 0x80";
    c_sidt: "sidt [rsp - 16]", "int 0x80";
    c_sldt: "sldt eax", "int 0x80";
    c_str: "str eax", "int 0x80";
    c_smsw: "smsw eax", "int 0x80";
    c_popf: "pushfq", "pop rax", "push 0x3202", "popfq", "pushfq", "pop rax", "int 0x80";
    c_xgetbv: "mov ecx, edi", "xgetbv", "ret";
    c_xsetbv: "xor ecx, ecx", "xor edx, edx", "mov eax, edi", "xsetbv", "ret";
    c_vaddps: "vaddps ymm0, ymm0, ymm0", "ret";
    c_lmsw_kernel: "lmsw di", "ret";
}

pub fn run() {
    user();
    ports();
    umip();
    registers();
    extended();
}

/// 5.9: privileged instructions; 19.5 of volume 1: I/O.
fn user() {
    section("5.9 privileged instructions at CPL 3");
    let stack = user_stack();
    let data = user_address(runtime::memory::page());
    let go = |function: u64, flags: u64| {
        let rip = user_address(function);
        let trap = trap::user(rip, data, stack, flags);
        (
            trap.what(),
            trap.frame.rip - rip,
            trap.frame.rflags,
            trap.frame.rax(),
        )
    };
    for (name, function) in [
        ("HLT", address!(c_hlt)),
        ("LGDT", address!(c_lgdt)),
        ("LIDT", address!(c_lidt)),
        ("LLDT", address!(c_lldt)),
        ("LTR", address!(c_ltr)),
        ("CLTS", address!(c_clts)),
        ("INVD", address!(c_invd)),
        ("WBINVD", address!(c_wbinvd)),
        ("INVLPG", address!(c_invlpg)),
        ("RDMSR", address!(c_rdmsr)),
        ("WRMSR", address!(c_wrmsr)),
        ("MOV from CR0", address!(c_mov_cr0)),
        ("MOV to CR3", address!(c_mov_to_cr3)),
        ("MOV from CR8", address!(c_mov_cr8)),
        ("LMSW", address!(c_lmsw)),
        ("SWAPGS", address!(c_swapgs)),
        ("CLI", address!(c_cli)),
        ("STI", address!(c_sti)),
        ("IN", address!(c_in)),
    ] {
        let (what, rip, ..) = go(function, 0);
        check_eq!(what, (13, 0), "{name}");
        check_eq!(rip, 0, "{name}: RIP");
    }
    check_eq!(go(address!(c_outsb), 0).0, (13, 0), "OUTS");
    check_eq!(
        go(address!(c_cli), IOPL3 | 0x200).0,
        (0x80, 0),
        "CLI with IOPL 3"
    );
    check_eq!(
        go(address!(c_cli), IOPL3 | 0x200).2 & 0x200,
        0,
        "CLI with IOPL 3: IF"
    );
    check_eq!(go(address!(c_in), IOPL3).0, (0x80, 0), "IN with IOPL 3");
    check_eq!(go(address!(c_hlt), IOPL3).0, (13, 0), "HLT with IOPL 3");
    // POPF: IOPL only at CPL 0, IF only with IOPL.
    check_eq!(
        go(address!(c_popf), 0).3,
        0x2,
        "POPF at CPL 3: neither IOPL nor IF"
    );
    check_eq!(
        go(address!(c_popf), IOPL3).3,
        0x3202,
        "POPF with IOPL 3: IF"
    );
    let old = cpu::read_cr4();
    check_eq!(go(address!(c_rdtsc), 0).0, (0x80, 0), "RDTSC");
    cpu::write_cr4(old | cr4::TSD);
    check_eq!(go(address!(c_rdtsc), 0).0, (13, 0), "RDTSC with TSD");
    check!(
        at(address!(c_rdtsc), 0).frame.vector == 0x80,
        "RDTSC with TSD at CPL 0"
    );
    cpu::write_cr4(old);
    check_eq!(go(address!(c_rdpmc), 0).0, (13, 0), "RDPMC without PCE");
}

/// Vol 1 19.5.2: the I/O permission bit map.
fn ports() {
    section("vol 1, 19.5.2 I/O permission bit map");
    let stack = user_stack();
    let rip = user_address(address!(c_in));
    let go = || trap::user(rip, 0, stack, 0).what();
    // A TSS of its own: 104 bytes, then the map, ports 0 to FFh, then the byte of ones.
    use runtime::descriptors::{SPARE, TSS, descriptor, set_descriptor, tss_base};
    let tss = runtime::memory::page();
    for i in 0..13 {
        runtime::memory::write(tss + 8 * i, runtime::memory::read(tss_base() + 8 * i));
    }
    let map = tss + 104;
    runtime::memory::write_bytes(tss + 102, &104u16.to_le_bytes());
    runtime::memory::write_bytes(map, &[0xff; 40]);
    let load = |limit: u64| {
        set_descriptor(
            SPARE,
            limit | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56,
        );
        set_descriptor(SPARE + 8, 0);
        // SAFETY: a TSS with the stacks of the runtime's.
        unsafe { core::arch::asm!("ltr {:x}", in(reg) SPARE) };
    };
    load(104 + 32);
    check_eq!(go(), (13, 0), "bit set");
    runtime::memory::write_bytes(map + 0x10, &[0xfe]);
    check_eq!(go(), (0x80, 0), "bit clear");
    load(104 + 0x10);
    check_eq!(go(), (13, 0), "the second byte is beyond the limit");
    load(104 + 0x11);
    check_eq!(go(), (0x80, 0), "both bytes are within the limit");
    set_descriptor(TSS, descriptor(TSS) & !(2 << 40));
    // SAFETY: the runtime's own.
    unsafe { core::arch::asm!("ltr {:x}", in(reg) TSS) };
    check_eq!(go(), (13, 0), "no map");
}

/// 2.5, UMIP.
fn umip() {
    if !cpu::has(7, 2, 2) {
        skip("UMIP");
        return;
    }
    section("2.5 user-mode instruction prevention");
    let stack = user_stack();
    let old = cpu::read_cr4();
    for (name, function) in [
        ("SGDT", address!(c_sgdt)),
        ("SIDT", address!(c_sidt)),
        ("SLDT", address!(c_sldt)),
        ("STR", address!(c_str)),
        ("SMSW", address!(c_smsw)),
    ] {
        cpu::write_cr4(old & !cr4::UMIP);
        let trap = trap::user(user_address(function), 0, stack, 0);
        check_eq!(trap.what(), (0x80, 0), "{name} without UMIP");
        cpu::write_cr4(old | cr4::UMIP);
        let trap = trap::user(user_address(function), 0, stack, 0);
        check_eq!(trap.what(), (13, 0), "{name} with UMIP");
        check_eq!(
            at(function, 0).frame.vector,
            0x80,
            "{name} with UMIP at CPL 0"
        );
    }
    cpu::write_cr4(old);
}

/// 2.5, 4.1.1, 2.2.1, 11.8.6: values that are refused.
fn registers() {
    section("2.5 control registers and EFER");
    let (c0, c3, c4) = (cpu::read_cr0(), cpu::read_cr3(), cpu::read_cr4());
    let gp = (13, 0);
    check_eq!(
        raised(|| cpu::write_cr0(c0 & !1)).what(),
        gp,
        "CR0: PG without PE"
    );
    check_eq!(
        raised(|| cpu::write_cr0(c0 | 1 << 29)).what(),
        gp,
        "CR0: NW without CD"
    );
    check_eq!(
        raised(|| cpu::write_cr0(c0 | 1 << 32)).what(),
        gp,
        "CR0: bit 32"
    );
    cpu::write_cr0(c0 & !(1 << 4));
    check_eq!(cpu::read_cr0() & 1 << 4, 1 << 4, "CR0.ET is fixed");
    check_eq!(
        raised(|| cpu::write_cr4(c4 & !(1 << 5))).what(),
        gp,
        "CR4: PAE in IA-32e mode"
    );
    check_eq!(
        raised(|| cpu::write_cr4(c4 | 1 << 19 << 12)).what(),
        gp,
        "CR4: reserved"
    );
    check_eq!(
        raised(|| cpu::write_cr4(c4 | 1 << 63)).what(),
        gp,
        "CR4: bit 63"
    );
    let width = cpu::cpuid(0x8000_0008, 0)[0] & 0xff;
    check_eq!(
        raised(|| cpu::write_cr3(c3 | 1 << width)).what(),
        gp,
        "CR3: beyond MAXPHYADDR"
    );
    check_eq!(raised(|| cpu::write_cr8(16)).what(), gp, "CR8: above 15");
    cpu::write_cr8(5);
    check_eq!(cpu::read_cr8(), 5, "CR8");
    cpu::write_cr8(0);
    // LMSW sets PE, MP, EM, TS and cannot clear PE.
    cpu::write_cr0(c0 & !(cr0::TS | cr0::EM));
    c_lmsw_kernel(cr0::TS | cr0::MP);
    check_eq!(cpu::read_cr0() & 15, cr0::TS | cr0::MP | 1, "LMSW");
    cpu::write_cr0(c0);

    let e = cpu::read_msr(efer::MSR);
    check_eq!(e & 1 << 10, 1 << 10, "EFER.LMA");
    check_eq!(
        raised(|| cpu::write_msr(efer::MSR, e & !(1 << 8))).what(),
        gp,
        "EFER: LME with paging"
    );
    check_eq!(
        raised(|| cpu::write_msr(efer::MSR, e | 1 << 1)).what(),
        gp,
        "EFER: reserved"
    );
    cpu::write_msr(efer::MSR, e & !(1 << 10));
    check_eq!(cpu::read_msr(efer::MSR), e, "EFER: LMA is not written");
    check_eq!(
        raised(|| {
            cpu::read_msr(0x4000_1234);
        })
        .what(),
        gp,
        "RDMSR of none"
    );
    check_eq!(
        raised(|| cpu::write_msr(0x4000_1234, 0)).what(),
        gp,
        "WRMSR of none"
    );
    check_eq!(
        raised(|| cpu::write_msr(0xc000_0100, 1 << 47)).what(),
        gp,
        "FS base, not canonical"
    );
    check_eq!(
        raised(|| cpu::write_msr(0x277, 2)).what(),
        gp,
        "12.12.2: IA32_PAT, reserved type"
    );
    check_eq!(
        raised(|| cpu::write_cr4(c4 | cr4::PCIDE)).frame.vector,
        pcide_with(c3),
        "CR4.PCIDE"
    );
    cpu::write_cr4(c4);
}

/// 4.10.1: PCIDE may be set only with CR3[11:0] zero, and where the processor has it.
fn pcide_with(cr3: u64) -> u64 {
    if cpu::has(1, 2, 17) && cr3 & 0xfff == 0 {
        256
    } else {
        13
    }
}

/// Vol 1 13.3, 14.3: XCR0 and AVX.
fn extended() {
    if !cpu::has(1, 2, 26) {
        skip("XSAVE");
        return;
    }
    section("vol 1, 13.3 XCR0");
    let c4 = cpu::read_cr4();
    cpu::write_cr4(c4 & !cr4::OSXSAVE);
    check!(!cpu::has(1, 2, 27), "CPUID.OSXSAVE follows CR4");
    check_eq!(
        at(address!(c_xgetbv), 0).what(),
        (6, 0),
        "XGETBV without OSXSAVE"
    );
    check_eq!(
        at(address!(c_xsetbv), 1).what(),
        (6, 0),
        "XSETBV without OSXSAVE"
    );
    cpu::write_cr4(c4 | cr4::OSXSAVE);
    check!(cpu::has(1, 2, 27), "CPUID.OSXSAVE follows CR4");
    check_eq!(
        at(address!(c_xsetbv), 0).what(),
        (13, 0),
        "XCR0 without x87"
    );
    check_eq!(at(address!(c_xsetbv), 5).what(), (13, 0), "AVX without SSE");
    check_eq!(at(address!(c_xgetbv), 7).what(), (13, 0), "XGETBV of none");
    check_eq!(at(address!(c_xsetbv), 3).frame.vector, 256, "x87 and SSE");
    check_eq!(c_xgetbv(0) & 0xff, 3, "XGETBV");
    if cpu::has(1, 2, 28) {
        check_eq!(at(address!(c_vaddps), 0).what(), (6, 0), "AVX not in XCR0");
        check_eq!(at(address!(c_xsetbv), 7).frame.vector, 256, "x87, SSE, AVX");
        check_eq!(at(address!(c_vaddps), 0).frame.vector, 256, "AVX in XCR0");
        let c0 = cpu::read_cr0();
        cpu::write_cr0(c0 | cr0::TS);
        check_eq!(at(address!(c_vaddps), 0).what(), (7, 0), "AVX with TS");
        cpu::write_cr0(c0);
    } else {
        skip("AVX");
    }
    at(address!(c_xsetbv), 1);
    cpu::write_cr4(c4);
}
