//! I/O (Table 28-5) and MSR accesses, with and without bitmaps (25.6.4, 25.6.9).

use runtime::memory::{page, read, write_bytes};
use runtime::vmx::{Vm, add, capability, field, get, may, primary, set};
use runtime::{address, check_eq, cpu, labels, section, skip, snippet};

use crate::{exits, passes};

snippet! {
    o_out8: "out 0x80, al", "vmcall";
    o_in32: "in eax, 0x84", "vmcall";
    o_out16: "mov edx, 0x1234", "o_out16_at: out dx, ax", "vmcall";
    o_outsb: "mov edx, 0x80", "mov rsi, rdi", "o_outsb_at: outsb", "vmcall";
    o_rep_insd: "mov edx, 0x8080", "mov ecx, 5", "o_rep_insd_at: rep insd", "vmcall";
    o_fs_outsw: "mov edx, 0x80", "mov rsi, rdi", "o_fs_outsw_at: outs dx, word ptr fs:[rsi]", "vmcall";
    o_in_ffff: "mov edx, 0xffff", "o_in_ffff_at: in ax, dx", "vmcall";
    m_rdmsr: "mov ecx, edi", "m_rdmsr_at: rdmsr", "vmcall";
    m_wrmsr: "mov ecx, edi", "mov eax, 0x5678", "mov edx, 0x1234", "m_wrmsr_at: wrmsr", "vmcall";
}

labels! { o_out16_at, o_outsb_at, o_rep_insd_at, o_fs_outsw_at, o_in_ffff_at, m_rdmsr_at, m_wrmsr_at }

pub fn run(vm: &mut Vm) {
    ports(vm);
    bitmaps(vm);
    msrs(vm);
    lists(vm);
}

fn ports(vm: &mut Vm) {
    section("28.2.1 I/O instructions");
    passes(vm, "OUT without exiting", address!(o_out8), 0);
    add(field::PROCESSOR_CONTROLS, primary::IO);
    exits(
        vm,
        "OUT imm8, AL",
        address!(o_out8),
        0,
        (30, 1 << 6 | 0x80 << 16, 2),
    );
    exits(
        vm,
        "IN EAX, imm8",
        address!(o_in32),
        0,
        (30, 3 | 1 << 3 | 1 << 6 | 0x84 << 16, 2),
    );
    let exit = vm.run(address!(o_out16), 0);
    check_eq!(
        (exit.reason, exit.qualification, exit.length, exit.rip),
        (30, 1 | 0x1234 << 16, 2, address!(o_out16_at)),
        "OUT DX, AX"
    );
    let memory = page();
    let exit = vm.run(address!(o_outsb), memory);
    check_eq!(
        (exit.reason, exit.qualification, exit.rip),
        (30, 1 << 4 | 0x80 << 16, address!(o_outsb_at)),
        "OUTSB"
    );
    check_eq!(
        get(field::GUEST_LINEAR),
        memory,
        "OUTSB: guest-linear address"
    );
    if cpu::read_msr(0x480) >> 54 & 1 == 1 {
        check_eq!(
            (exit.instruction >> 7 & 7, exit.instruction >> 15 & 7),
            (2, 3),
            "OUTSB: 64 bits, DS"
        );
    } else {
        skip("instruction information of INS and OUTS");
    }
    let exit = vm.run(address!(o_rep_insd), memory);
    check_eq!(
        (exit.reason, exit.qualification, exit.rip, exit.length),
        (
            30,
            3 | 1 << 3 | 1 << 4 | 1 << 5 | 0x8080 << 16,
            address!(o_rep_insd_at),
            2
        ),
        "REP INSD"
    );
    check_eq!(
        get(field::GUEST_LINEAR),
        memory,
        "REP INSD: guest-linear address"
    );
    check_eq!(vm.gpr[1], 5, "REP INSD: nothing was done");
    set(field::GUEST_FS_BASE, 0x1000);
    let exit = vm.run(address!(o_fs_outsw), memory);
    check_eq!(
        (exit.reason, exit.qualification, exit.rip),
        (30, 1 | 1 << 4 | 0x80 << 16, address!(o_fs_outsw_at)),
        "OUTSW FS"
    );
    check_eq!(
        get(field::GUEST_LINEAR),
        memory + 0x1000,
        "OUTSW FS: guest-linear address"
    );
    if cpu::read_msr(0x480) >> 54 & 1 == 1 {
        check_eq!(exit.instruction >> 15 & 7, 4, "OUTSW FS: segment");
    }
    vm.fill();
}

fn bitmaps(vm: &mut Vm) {
    section("25.6.4 I/O bitmaps");
    let (a, b) = (page(), page());
    let on = || {
        add(field::PROCESSOR_CONTROLS, primary::IO_BITMAPS);
        set(field::IO_BITMAP_A, a);
        set(field::IO_BITMAP_B, b);
    };
    on();
    passes(vm, "OUT, bit clear", address!(o_out8), 0);
    // With bitmaps, unconditional I/O exiting is ignored.
    add(field::PROCESSOR_CONTROLS, primary::IO);
    passes(
        vm,
        "OUT, bit clear, unconditional exiting",
        address!(o_out8),
        0,
    );
    write_bytes(a + 0x10, &[1]);
    exits(
        vm,
        "OUT, bit set",
        address!(o_out8),
        0,
        (30, 1 << 6 | 0x80 << 16, 2),
    );
    write_bytes(a + 0x10, &[0x80]);
    exits(
        vm,
        "IN of four ports, the last one's bit",
        address!(o_in32),
        0,
        (30, 3 | 1 << 3 | 1 << 6 | 0x84 << 16, 2),
    );
    passes(vm, "OUT of another port", address!(o_out8), 0);
    write_bytes(a + 0x10, &[0]);
    write_bytes(b + 0x10, &[1]);
    let exit = vm.run(address!(o_rep_insd), page());
    check_eq!(
        (exit.reason, exit.rip),
        (30, address!(o_rep_insd_at)),
        "bitmap B"
    );
    write_bytes(b + 0x10, &[0]);
    // An access that wraps around from FFFFh exits.
    let exit = vm.run(address!(o_in_ffff), 0);
    check_eq!(
        (exit.reason, exit.rip),
        (30, address!(o_in_ffff_at)),
        "26.1.3: an access that wraps around"
    );
    vm.fill();
}

fn msrs(vm: &mut Vm) {
    section("25.6.9 MSR bitmaps");
    let go = |vm: &mut Vm, function: u64, at: u64, msr: u64, reason: u64| {
        let exit = vm.run(function, msr);
        check_eq!(
            (exit.reason, exit.qualification, exit.length, exit.rip),
            (reason, 0, 2, at),
            "MSR {msr:x}"
        );
        check_eq!(vm.gpr[1], msr, "ECX");
    };
    let read_at = |vm: &mut Vm, msr: u64| go(vm, address!(m_rdmsr), address!(m_rdmsr_at), msr, 31);
    let write_at = |vm: &mut Vm, msr: u64| go(vm, address!(m_wrmsr), address!(m_wrmsr_at), msr, 32);
    read_at(vm, 0x174);
    write_at(vm, 0x174);
    if !may(capability(1), primary::MSR_BITMAPS) {
        skip("MSR bitmaps");
        return;
    }
    let bitmap = page();
    add(field::PROCESSOR_CONTROLS, primary::MSR_BITMAPS);
    set(field::MSR_BITMAP, bitmap);
    passes(vm, "RDMSR, bit clear", address!(m_rdmsr), 0x174);
    passes(vm, "WRMSR, bit clear", address!(m_wrmsr), 0xc000_0102);
    check_eq!(
        cpu::read_msr(0xc000_0102),
        0x1234_0000_5678,
        "WRMSR, bit clear: written"
    );
    cpu::write_msr(0xc000_0102, 0);
    // Outside both ranges: always.
    read_at(vm, 0x2000);
    read_at(vm, 0x4000_0000);
    write_at(vm, 0xc000_2000);
    let bit = |base: u64, msr: u64| {
        let index = msr & 0x1fff;
        let old = read(bitmap + base + index / 64 * 8);
        runtime::memory::write(bitmap + base + index / 64 * 8, old ^ 1 << (index & 63));
    };
    bit(0, 0x174);
    read_at(vm, 0x174);
    bit(0, 0x174);
    bit(1024, 0xc000_0102);
    read_at(vm, 0xc000_0102);
    passes(
        vm,
        "RDMSR, the low range is another",
        address!(m_rdmsr),
        0x174,
    );
    bit(1024, 0xc000_0102);
    bit(2048, 0x174);
    write_at(vm, 0x174);
    passes(vm, "RDMSR, only writes exit", address!(m_rdmsr), 0x174);
    bit(2048, 0x174);
    bit(3072, 0xc000_0102);
    write_at(vm, 0xc000_0102);
    bit(3072, 0xc000_0102);
    vm.fill();
}

/// 28.4, 28.6: MSRs stored and loaded by the exit.
fn lists(vm: &mut Vm) {
    section("28.4, 28.6 MSR lists of VM exits");
    let (store, load) = (page(), page());
    runtime::memory::write(store, 0xc000_0102);
    runtime::memory::write(store + 16, 0x174);
    runtime::memory::write(load, 0xc000_0102);
    runtime::memory::write(load + 8, 0x99);
    cpu::write_msr(0xc000_0102, 0x77);
    set(field::EXIT_MSR_STORE, store);
    set(field::EXIT_MSR_STORE_COUNT, 2);
    set(field::EXIT_MSR_LOAD, load);
    set(field::EXIT_MSR_LOAD_COUNT, 1);
    set(field::GUEST_SYSENTER_CS, 0x55);
    passes(vm, "with lists", address!(crate::x_end), 0);
    check_eq!(read(store + 8), 0x77, "stored: kernel GS base");
    check_eq!(read(store + 24), 0x55, "stored: the guest's SYSENTER_CS");
    check_eq!(cpu::read_msr(0xc000_0102), 0x99, "loaded: kernel GS base");
    check_eq!(cpu::read_msr(0x174), 0, "28.5.1: the host's SYSENTER_CS");
    cpu::write_msr(0xc000_0102, 0);
    vm.fill();
}
