//! Instructions that exit always (26.1.2) or when a control says so (26.1.3).

use runtime::descriptors;
use runtime::memory::{page, read};
use runtime::vmx::{Vm, add, capability, field, get, may, msr, primary, remove, secondary, set};
use runtime::{address, check, check_eq, cpu, labels, section, skip, snippet};

use crate::{exits, passes, raises};

snippet! {
    i_cpuid: "cpuid", "vmcall";
    i_invd: "invd", "vmcall";
    i_xsetbv: "xor ecx, ecx", "xor edx, edx", "mov eax, 1", "i_xsetbv_at: xsetbv", "vmcall";
    i_vmclear: "vmclear qword ptr [rdi]", "vmcall";
    i_vmlaunch: "vmlaunch", "vmcall";
    i_vmptrld: "vmptrld qword ptr [rdi]", "vmcall";
    i_vmptrst: "vmptrst qword ptr [rdi]", "vmcall";
    i_vmread: "vmread rcx, rdx", "vmcall";
    i_vmread_memory: "vmread [rdi + rbx * 2 + 64], r9", "vmcall";
    i_vmresume: "vmresume", "vmcall";
    i_vmwrite: "vmwrite r10, r11", "vmcall";
    i_vmxoff: "vmxoff", "vmcall";
    i_vmxon: "vmxon qword ptr [rdi + 8]", "vmcall";
    i_invept: "invept r8, [rdi]", "vmcall";
    i_invvpid: "invvpid rsi, [rdi + rcx * 8]", "vmcall";
    i_hlt: "hlt", "vmcall";
    i_invlpg: "invlpg [rdi + 16]", "vmcall";
    i_rdpmc: "mov ecx, 0x7fffffff", "i_rdpmc_at: rdpmc", "vmcall";
    i_rdtsc: "rdtsc", "vmcall";
    i_rdtscp: "rdtscp", "vmcall";
    i_monitor: "mov rax, rdi", "xor ecx, ecx", "xor edx, edx", "i_monitor_at: monitor", "vmcall";
    i_mwait: "mwait", "vmcall";
    i_pause: "pause", "vmcall";
    i_wbinvd: "wbinvd", "vmcall";
    i_sgdt: "sgdt [rdi]", "vmcall";
    i_sidt: "sidt [rdi + 2]", "vmcall";
    i_lgdt: "lgdt [rdi]", "vmcall";
    i_lidt: "lidt [r9]", "vmcall";
    i_sldt: "sldt ecx", "vmcall";
    i_str: "str word ptr [rdi]", "vmcall";
    i_lldt: "lldt dx", "vmcall";
    i_ltr: "ltr word ptr [rdi + 4]", "vmcall";
    i_rdrand: "rdrand r12", "vmcall";
    i_rdseed: "rdseed ebx", "vmcall";
    i_invpcid: "invpcid rdx, [rdi]", "vmcall";
    i_mov_dr: "mov dr3, rcx", "vmcall";
    i_mov_from_dr: "mov r13, dr7", "vmcall";
}

labels! { i_xsetbv_at, i_rdpmc_at, i_monitor_at }

pub fn run(vm: &mut Vm) {
    always(vm);
    vmx_instructions(vm);
    controlled(vm);
    secondary_controls(vm);
    tables(vm);
    debug_registers(vm);
    offsetting(vm);
}

fn always(vm: &mut Vm) {
    section("26.1.2 unconditional exits");
    exits(vm, "CPUID", address!(i_cpuid), 0, (10, 0, 2));
    exits(vm, "INVD", address!(i_invd), 0, (13, 0, 2));
    if cpu::has(1, 2, 26) {
        set(field::GUEST_CR4, get(field::GUEST_CR4) | 1 << 18);
        let exit = vm.run(address!(i_xsetbv), 0);
        check_eq!(
            (exit.reason, exit.length, exit.rip),
            (55, 3, address!(i_xsetbv_at)),
            "XSETBV"
        );
        vm.fill();
        raises(
            vm,
            "XSETBV without OSXSAVE: the fault comes first",
            address!(i_xsetbv),
            0,
            6,
        );
    }
}

/// Instruction information of Table 28-13 (VMCLEAR and others): the fields that mean something.
fn memory_information(base: u64, index: Option<(u64, u64)>) -> u64 {
    let (register, scale, none) = index.map_or((0, 0, 1), |(r, s)| (r, s, 0));
    // 64-bit addresses, memory, segment DS, base.
    scale | 2 << 7 | 3 << 15 | register << 18 | none << 22 | base << 23
}

/// What of the information is defined for an operand without an index: the scale and the index are not.
const NO_INDEX: u64 = !(3 | 15 << 18);

fn vmx_instructions(vm: &mut Vm) {
    section("26.1.2 VMX instructions, 28.2.5 instruction information");
    let memory = page();
    for (name, function, reason, length, displacement) in [
        ("VMCLEAR", address!(i_vmclear), 19, 4, 0),
        ("VMPTRLD", address!(i_vmptrld), 21, 3, 0),
        ("VMPTRST", address!(i_vmptrst), 22, 3, 0),
        ("VMXON", address!(i_vmxon), 27, 5, 8),
    ] {
        let exit = exits(vm, name, function, memory, (reason, displacement, length));
        let defined = NO_INDEX & !(0x7f << 3 & !(7 << 7)) & !(1 << 2) & 0x1fff_ffff;
        check_eq!(
            exit.instruction & defined & !(1 << 10) & !(15 << 11),
            memory_information(7, None) & defined,
            "{name}: instruction information"
        );
    }
    exits(vm, "VMLAUNCH", address!(i_vmlaunch), 0, (20, 0, 3));
    exits(vm, "VMRESUME", address!(i_vmresume), 0, (24, 0, 3));
    exits(vm, "VMXOFF", address!(i_vmxoff), 0, (26, 0, 3));
    let exit = exits(
        vm,
        "VMREAD to a register",
        address!(i_vmread),
        0,
        (23, 0, 3),
    );
    // Table 28-14: register form, register 1 RCX, register 2 RDX.
    check_eq!(exit.instruction >> 10 & 1, 1, "VMREAD: a register");
    check_eq!(
        (exit.instruction >> 3 & 15, exit.instruction >> 28 & 15),
        (1, 2),
        "VMREAD: RCX, RDX"
    );
    let exit = exits(vm, "VMWRITE", address!(i_vmwrite), 0, (25, 0, 4));
    check_eq!(exit.instruction >> 10 & 1, 1, "VMWRITE: a register");
    check_eq!(
        (exit.instruction >> 3 & 15, exit.instruction >> 28 & 15),
        (11, 10),
        "VMWRITE: R11, R10"
    );
    let exit = exits(
        vm,
        "VMREAD to memory",
        address!(i_vmread_memory),
        memory,
        (23, 64, 6),
    );
    let i = exit.instruction;
    check_eq!(
        (i & 3, i >> 7 & 7, i >> 10 & 1, i >> 15 & 7),
        (1, 2, 0, 3),
        "VMREAD: scale 2, 64 bits, memory, DS"
    );
    check_eq!(
        (i >> 18 & 31, i >> 23 & 31, i >> 28 & 15),
        (3, 7, 9),
        "VMREAD: index RBX, base RDI, register R9"
    );
    let exit = exits(vm, "INVEPT", address!(i_invept), memory, (50, 0, 6));
    let i = exit.instruction;
    check_eq!(
        (i >> 7 & 7, i >> 15 & 7, i >> 22 & 1),
        (2, 3, 1),
        "INVEPT: 64 bits, DS, no index"
    );
    check_eq!(
        (i >> 23 & 31, i >> 28 & 15),
        (7, 8),
        "INVEPT: base RDI, register R8"
    );
    let exit = exits(vm, "INVVPID", address!(i_invvpid), memory, (53, 0, 6));
    let i = exit.instruction;
    check_eq!(
        (i & 3, i >> 18 & 31, i >> 23 & 31, i >> 28 & 15),
        (3, 1, 7, 6),
        "INVVPID: scale 8, RCX, RDI, RSI"
    );
}

/// With the control: the exit; without: on to VMCALL.
fn either(
    vm: &mut Vm,
    what: &str,
    function: u64,
    argument: u64,
    control: u32,
    expected: (u64, u64, u64),
) {
    remove(field::PROCESSOR_CONTROLS, control);
    if may(capability(1), 0) && cpu::read_msr(capability(1)) & u64::from(control) == 0 {
        passes(vm, what, function, argument);
    }
    vm.fill();
    add(field::PROCESSOR_CONTROLS, control);
    exits(vm, what, function, argument, expected);
    vm.fill();
}

fn controlled(vm: &mut Vm) {
    section("26.1.3 primary controls");
    add(field::PROCESSOR_CONTROLS, primary::HLT);
    exits(vm, "HLT", address!(i_hlt), 0, (12, 0, 1));
    vm.fill();
    let target = 0x1234_5000;
    either(
        vm,
        "INVLPG",
        address!(i_invlpg),
        target,
        primary::INVLPG,
        (14, target + 16, 4),
    );
    either(
        vm,
        "RDTSC",
        address!(i_rdtsc),
        0,
        primary::RDTSC,
        (16, 0, 2),
    );
    either(
        vm,
        "PAUSE",
        address!(i_pause),
        0,
        primary::PAUSE,
        (40, 0, 2),
    );
    if may(capability(1), primary::RDPMC) {
        add(field::PROCESSOR_CONTROLS, primary::RDPMC);
        let exit = vm.run(address!(i_rdpmc), 0);
        check_eq!(
            (exit.reason, exit.length, exit.rip),
            (15, 2, address!(i_rdpmc_at)),
            "RDPMC"
        );
        vm.fill();
    }
    if cpu::has(1, 2, 3) {
        add(field::PROCESSOR_CONTROLS, primary::MONITOR);
        let exit = vm.run(address!(i_monitor), page());
        check_eq!(
            (exit.reason, exit.length, exit.rip),
            (39, 3, address!(i_monitor_at)),
            "MONITOR"
        );
        vm.fill();
        add(field::PROCESSOR_CONTROLS, primary::MWAIT);
        let exit = vm.run(address!(i_mwait), 0);
        check_eq!((exit.reason, exit.length), (36, 3), "MWAIT");
        vm.fill();
    } else {
        skip("MONITOR and MWAIT");
        raises(
            vm,
            "MONITOR that is not there",
            address!(i_monitor),
            page(),
            6,
        );
    }
}

fn secondary_controls(vm: &mut Vm) {
    section("26.1.3, 26.5 secondary controls");
    let with = |vm: &mut Vm, bits: u32, f: &mut dyn FnMut(&mut Vm)| {
        if may(msr::SECONDARY, bits) {
            add(field::SECONDARY_CONTROLS, bits);
            f(vm);
            vm.fill();
        } else {
            skip("a secondary control");
        }
    };
    passes(vm, "WBINVD", address!(i_wbinvd), 0);
    with(vm, secondary::WBINVD, &mut |vm| {
        exits(vm, "WBINVD", address!(i_wbinvd), 0, (54, 0, 2));
    });
    // 26.3: what is not enabled is #UD.
    raises(vm, "RDTSCP not enabled", address!(i_rdtscp), 0, 6);
    with(vm, secondary::RDTSCP, &mut |vm| {
        passes(vm, "RDTSCP enabled", address!(i_rdtscp), 0);
        add(field::PROCESSOR_CONTROLS, primary::RDTSC);
        exits(vm, "RDTSCP", address!(i_rdtscp), 0, (51, 0, 3));
    });
    if cpu::has(7, 1, 10) {
        let memory = page();
        raises(vm, "INVPCID not enabled", address!(i_invpcid), memory, 6);
        with(vm, secondary::INVPCID, &mut |vm| {
            vm.gpr[2] = 2;
            passes(vm, "INVPCID enabled", address!(i_invpcid), memory);
            add(field::PROCESSOR_CONTROLS, primary::INVLPG);
            let exit = exits(vm, "INVPCID", address!(i_invpcid), memory, (58, 0, 5));
            let i = exit.instruction;
            check_eq!(
                (i >> 7 & 7, i >> 15 & 7, i >> 22 & 1),
                (2, 3, 1),
                "INVPCID: 64 bits, DS, no index"
            );
            check_eq!(
                (i >> 23 & 31, i >> 28 & 15),
                (7, 2),
                "INVPCID: base RDI, register RDX"
            );
        });
    }
    if cpu::has(1, 2, 30) {
        passes(vm, "RDRAND", address!(i_rdrand), 0);
        with(vm, secondary::RDRAND, &mut |vm| {
            let exit = exits(vm, "RDRAND", address!(i_rdrand), 0, (57, 0, 4));
            // Table 28-12: destination, operand size 64.
            check_eq!(
                (exit.instruction >> 3 & 15, exit.instruction >> 11 & 3),
                (12, 2),
                "RDRAND: R12, 64 bits"
            );
        });
    }
    if cpu::has(7, 1, 18) {
        with(vm, secondary::RDSEED, &mut |vm| {
            let exit = exits(vm, "RDSEED", address!(i_rdseed), 0, (61, 0, 3));
            check_eq!(
                (exit.instruction >> 3 & 15, exit.instruction >> 11 & 3),
                (3, 1),
                "RDSEED: EBX, 32 bits"
            );
        });
    }
}

fn tables(vm: &mut Vm) {
    section("26.1.3 descriptor-table exiting");
    if !may(msr::SECONDARY, secondary::DESCRIPTOR_TABLES) {
        skip("descriptor-table exiting");
        return;
    }
    let memory = page();
    passes(vm, "SGDT", address!(i_sgdt), memory);
    check_eq!(
        read(memory) >> 16,
        descriptors::gdt_base() & 0xffff_ffff_ffff,
        "SGDT: base"
    );
    check_eq!(
        read(memory) & 0xffff,
        (descriptors::GDT_SLOTS * 8 - 1) as u64,
        "SGDT: limit"
    );
    let on = || add(field::SECONDARY_CONTROLS, secondary::DESCRIPTOR_TABLES);
    // Table 28-10: instruction identity in 29:28; Table 28-11 for LDTR and TR.
    for (name, function, reason, displacement, length, identity) in [
        ("SGDT", address!(i_sgdt), 46, 0, 3, 0),
        ("SIDT", address!(i_sidt), 46, 2, 4, 1),
        ("LGDT", address!(i_lgdt), 46, 0, 3, 2),
    ] {
        on();
        let exit = exits(vm, name, function, memory, (reason, displacement, length));
        let i = exit.instruction;
        check_eq!(i >> 28 & 3, identity, "{name}: identity");
        check_eq!(
            (i >> 7 & 7, i >> 22 & 1, i >> 23 & 31, i >> 27 & 1),
            (2, 1, 7, 0),
            "{name}: 64 bits, base RDI"
        );
        vm.fill();
    }
    on();
    vm.gpr[9] = memory;
    let exit = exits(vm, "LIDT", address!(i_lidt), 0, (46, 0, 4));
    check_eq!(
        (exit.instruction >> 28 & 3, exit.instruction >> 23 & 15),
        (3, 9),
        "LIDT: identity, base R9"
    );
    vm.fill();
    on();
    let exit = exits(vm, "SLDT to a register", address!(i_sldt), 0, (47, 0, 3));
    let i = exit.instruction;
    check_eq!(
        (i >> 28 & 3, i >> 10 & 1, i >> 3 & 15),
        (0, 1, 1),
        "SLDT: identity, a register, ECX"
    );
    let exit = exits(vm, "STR to memory", address!(i_str), memory, (47, 0, 3));
    check_eq!(
        (exit.instruction >> 28 & 3, exit.instruction >> 10 & 1),
        (1, 0),
        "STR: identity, memory"
    );
    let exit = exits(vm, "LLDT of a register", address!(i_lldt), 0, (47, 0, 3));
    let i = exit.instruction;
    check_eq!(
        (i >> 28 & 3, i >> 10 & 1, i >> 3 & 15),
        (2, 1, 2),
        "LLDT: identity, a register, DX"
    );
    let exit = exits(vm, "LTR of memory", address!(i_ltr), memory, (47, 4, 4));
    check_eq!(exit.instruction >> 28 & 3, 3, "LTR: identity");
    vm.fill();
}

fn debug_registers(vm: &mut Vm) {
    section("28.2.1 MOV DR");
    passes(vm, "MOV to DR3", address!(i_mov_dr), 0);
    if !may(capability(1), primary::MOV_DR) {
        skip("MOV-DR exiting");
        return;
    }
    add(field::PROCESSOR_CONTROLS, primary::MOV_DR);
    // Table 28-4: register, direction, general register.
    exits(vm, "MOV to DR3", address!(i_mov_dr), 0, (29, 3 | 1 << 8, 3));
    exits(
        vm,
        "MOV from DR7",
        address!(i_mov_from_dr),
        0,
        (29, 7 | 1 << 4 | 13 << 8, 4),
    );
    vm.fill();
}

fn offsetting(vm: &mut Vm) {
    section("26.3 TSC offsetting");
    add(field::PROCESSOR_CONTROLS, primary::TSC_OFFSETTING);
    let offset = 0x0100_0000_0000_0000;
    set(field::TSC_OFFSET, offset);
    let before = cpu::tsc();
    passes(vm, "RDTSC", address!(i_rdtsc), 0);
    let seen = (vm.gpr[2] << 32 | vm.gpr[0] & 0xffff_ffff).wrapping_sub(offset);
    let after = cpu::tsc();
    check!(
        before <= seen && seen <= after,
        "RDTSC: {seen:x} between {before:x} and {after:x}"
    );
    // MSR bitmaps are not in use: RDMSR exits whatever the MSR.
    exits(
        vm,
        "RDMSR of the TSC",
        address!(i_rdmsr_alone),
        0,
        (31, 0, 2),
    );
    if may(capability(1), primary::MSR_BITMAPS) {
        add(field::PROCESSOR_CONTROLS, primary::MSR_BITMAPS);
        set(field::MSR_BITMAP, page());
        let before = cpu::tsc();
        passes(vm, "RDMSR of the TSC", address!(i_rdmsr), 0x10);
        let seen = (vm.gpr[2] << 32 | vm.gpr[0] & 0xffff_ffff).wrapping_sub(offset);
        check!(
            before <= seen && seen <= cpu::tsc(),
            "RDMSR of the TSC is offset too"
        );
    }
    vm.fill();
}

snippet! {
    i_rdmsr: "mov ecx, edi", "rdmsr", "vmcall";
    i_rdmsr_alone: "rdmsr", "vmcall";
}
