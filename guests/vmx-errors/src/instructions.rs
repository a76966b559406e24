//! The VMX instructions (31.3) and their error numbers (31.4).

use runtime::cpu::{self, cr0, cr4, read_msr};
use runtime::memory::{page, read, write};
use runtime::paging::user_address;
use runtime::trap::{self, raised, raised_at};
use runtime::vmx::{
    self, Answer, Vm, field, get, invept, invvpid, msr, set, vmclear, vmptrld, vmptrst, vmread,
    vmwrite, vmxoff, vmxon,
};
use runtime::{address, check_eq, section, skip, snippet};

snippet! {
    n_vmxon: "vmxon qword ptr [rdi]", "ret";
    n_vmclear: "vmclear qword ptr [rdi]", "ret";
    n_vmptrld: "vmptrld qword ptr [rdi]", "ret";
    n_vmptrst: "vmptrst qword ptr [rdi]", "ret";
    n_vmread: "vmread [rdi], rax", "ret";
    n_vmwrite: "vmwrite rax, [rdi]", "ret";
    n_vmlaunch: "vmlaunch", "ret";
    n_vmresume: "vmresume", "ret";
    n_vmxoff: "vmxoff", "ret";
    n_vmcall: "vmcall", "ret";
    n_invept: "mov eax, 2", "invept rax, [rdi]", "ret";
    n_invvpid: "mov eax, 2", "invvpid rax, [rdi]", "ret";
    n_flags: "pushfq", "or dword ptr [rsp], 0x8d5", "popfq", "vmptrst qword ptr [rdi]", "pushfq", "pop rax", "ret";
    n_vmcall_flags: "vmcall", "pushfq", "pop rax", "ret";
    n_launch_shadow: "mov eax, ss", "mov ss, eax", "vmlaunch", "pushfq", "pop rax", "ret";
    n_guest: "vmcall", "ret";
}

const UD: (u64, u64) = (6, 0);
const GP: (u64, u64) = (13, 0);

fn all() -> [(&'static str, u64); 11] {
    [
        ("VMCLEAR", address!(n_vmclear)),
        ("VMPTRLD", address!(n_vmptrld)),
        ("VMPTRST", address!(n_vmptrst)),
        ("VMREAD", address!(n_vmread)),
        ("VMWRITE", address!(n_vmwrite)),
        ("VMLAUNCH", address!(n_vmlaunch)),
        ("VMRESUME", address!(n_vmresume)),
        ("VMXOFF", address!(n_vmxoff)),
        ("VMCALL", address!(n_vmcall)),
        ("INVEPT", address!(n_invept)),
        ("INVVPID", address!(n_invvpid)),
    ]
}

pub fn run() {
    outside();
    turning_on();
    let region = vmx::turn_on();
    inside(region);
    pointers(region);
    fields();
    invalidation();
    launching();
    check_eq!(vmxoff(), Answer::Succeeded, "VMXOFF");
    check_eq!(
        raised_at(address!(n_vmptrst), page()).what(),
        UD,
        "outside again"
    );
    cpu::write_cr4(cpu::read_cr4() & !cr4::VMXE);
}

fn outside() {
    section("31.3 outside VMX operation");
    let memory = page();
    for (name, function) in all() {
        check_eq!(raised_at(function, memory).what(), UD, "{name}");
        let user = user_address(memory);
        let trap = trap::user(user_address(function), user, user_address(memory + 4096), 0);
        check_eq!(trap.what(), UD, "{name} at CPL 3");
    }
    check_eq!(
        raised_at(address!(n_vmxon), memory).what(),
        UD,
        "VMXON without CR4.VMXE"
    );
}

fn turning_on() {
    section("31.3 VMXON");
    let (c0, c4) = (cpu::read_cr0(), cpu::read_cr4());
    cpu::write_cr4(c4 | cr4::VMXE);
    let pointer = page();
    let region = vmx::new_region();
    write(pointer, region);
    cpu::write_cr0(c0 & !cr0::NE);
    check_eq!(
        raised_at(address!(n_vmxon), pointer).what(),
        GP,
        "without CR0.NE"
    );
    cpu::write_cr0(c0 | cr0::NE);
    let stack = user_address(page() + 4096);
    let trap = trap::user(
        user_address(address!(n_vmxon)),
        user_address(pointer),
        stack,
        0,
    );
    check_eq!(trap.what(), GP, "at CPL 3");
    check_eq!(
        raised_at(address!(n_vmxon), 1 << 47).what(),
        GP,
        "operand not canonical"
    );
    check_eq!(
        raised_at(address!(n_vmxon), 0x7fff_0000_0000).what(),
        (14, 0),
        "operand not present"
    );
    check_eq!(vmxon(region + 8), Answer::Invalid, "region not aligned");
    let width = cpu::cpuid(0x8000_0008, 0)[0] & 0xff;
    check_eq!(
        vmxon(1 << width),
        Answer::Invalid,
        "region beyond MAXPHYADDR"
    );
    let revision = read(region);
    write(region, revision ^ 1);
    check_eq!(vmxon(region), Answer::Invalid, "another revision");
    write(region, revision | 1 << 31);
    check_eq!(vmxon(region), Answer::Invalid, "bit 31 of the revision");
    write(region, revision);
    check_eq!(vmxon(region), Answer::Succeeded, "VMXON");
    // Without a current VMCS there is no place for a number.
    check_eq!(vmxon(region), Answer::Invalid, "again, no current VMCS");
    let vm = Vm::new();
    check_eq!(vmxon(region), Answer::Failed(15), "again, current VMCS");
    check_eq!(vmxoff(), Answer::Succeeded, "VMXOFF");
    let _ = vm;
    check_eq!(vmxon(region), Answer::Succeeded, "and on again");
    check_eq!(vmptrst(), u64::MAX, "24.11.5: no VMCS is current");
    check_eq!(vmxoff(), Answer::Succeeded, "VMXOFF");
    cpu::write_cr4(c4);
}

fn inside(region: u64) {
    section("24.8, 31.3 in VMX root operation");
    let (c0, c4) = (cpu::read_cr0(), cpu::read_cr4());
    check_eq!(
        raised(|| cpu::write_cr4(c4 & !cr4::VMXE)).what(),
        GP,
        "CR4.VMXE cleared"
    );
    check_eq!(
        raised(|| cpu::write_cr0(c0 & !cr0::NE)).what(),
        GP,
        "CR0.NE cleared"
    );
    check_eq!(
        raised(|| cpu::write_cr0(c0 & !cr0::PG)).what(),
        GP,
        "CR0.PG cleared"
    );
    let stack = user_address(page() + 4096);
    let memory = user_address(page());
    for (name, function) in all() {
        let trap = trap::user(user_address(function), memory, stack, 0);
        check_eq!(trap.what(), GP, "{name} at CPL 3");
    }
    for (name, function) in all() {
        let operand = !matches!(
            name,
            "VMLAUNCH" | "VMRESUME" | "VMXOFF" | "VMCALL" | "VMREAD" | "VMWRITE"
        );
        if operand {
            check_eq!(
                raised_at(function, 1 << 47).what(),
                GP,
                "{name}: operand not canonical"
            );
            let code = if name == "VMPTRST" { 2 } else { 0 };
            check_eq!(
                raised_at(function, 0x7fff_0000_0000).what(),
                (14, code),
                "{name}: operand not present"
            );
        }
    }
    // VMsucceed clears CF, PF, AF, ZF, SF, OF (31.2).
    check_eq!(n_flags(page()) & 0x8d5, 0, "31.2: flags of VMsucceed");
    // No current VMCS: VMfailInvalid is CF alone.
    check_eq!(vmptrst(), u64::MAX, "no current VMCS");
    check_eq!(n_vmcall_flags(0) & 0x8d5, 1, "VMCALL: VMfailInvalid");
    check_eq!(
        vmread(field::EXIT_REASON).0,
        Answer::Invalid,
        "VMREAD: VMfailInvalid"
    );
    check_eq!(
        vmwrite(field::GUEST_RIP, 0),
        Answer::Invalid,
        "VMWRITE: VMfailInvalid"
    );
    check_eq!(
        vmclear(region),
        Answer::Invalid,
        "VMCLEAR of the VMXON region: VMfailInvalid"
    );
}

fn pointers(region: u64) {
    section("31.4 VMCLEAR, VMPTRLD, VMPTRST");
    let vm = Vm::new();
    check_eq!(vmptrst(), vm.vmcs, "VMPTRST");
    let width = cpu::cpuid(0x8000_0008, 0)[0] & 0xff;
    check_eq!(
        n_vmcall_flags(0) & 0x8d5,
        0x40,
        "VMCALL: VMfailValid is ZF alone"
    );
    check_eq!(
        get(field::INSTRUCTION_ERROR),
        1,
        "VMCALL in VMX root operation"
    );
    check_eq!(
        vmclear(vm.vmcs + 8),
        Answer::Failed(2),
        "VMCLEAR, not aligned"
    );
    check_eq!(
        vmclear(1 << width),
        Answer::Failed(2),
        "VMCLEAR, beyond MAXPHYADDR"
    );
    check_eq!(
        vmclear(region),
        Answer::Failed(3),
        "VMCLEAR of the VMXON region"
    );
    check_eq!(
        vmptrld(vm.vmcs + 8),
        Answer::Failed(9),
        "VMPTRLD, not aligned"
    );
    check_eq!(
        vmptrld(1 << width),
        Answer::Failed(9),
        "VMPTRLD, beyond MAXPHYADDR"
    );
    check_eq!(
        vmptrld(region),
        Answer::Failed(10),
        "VMPTRLD of the VMXON region"
    );
    let other = vmx::new_region();
    write(other, read(other) ^ 1);
    check_eq!(
        vmptrld(other),
        Answer::Failed(11),
        "VMPTRLD, another revision"
    );
    if !vmx::may(msr::SECONDARY, 1 << 14) {
        write(other, (read_msr(msr::BASIC) & 0x7fff_ffff) | 1 << 31);
        check_eq!(
            vmptrld(other),
            Answer::Failed(11),
            "VMPTRLD, shadow VMCS without shadowing"
        );
    }
    check_eq!(vmptrst(), vm.vmcs, "still current after failures");
    write(other, read_msr(msr::BASIC) & 0x7fff_ffff);
    check_eq!(vmclear(other), Answer::Succeeded, "VMCLEAR of another");
    check_eq!(vmptrst(), vm.vmcs, "the current one stays");
    set(field::GUEST_RIP, 0x1234);
    check_eq!(vmptrld(other), Answer::Succeeded, "VMPTRLD of another");
    set(field::GUEST_RIP, 0x5678);
    check_eq!(vmptrld(vm.vmcs), Answer::Succeeded, "VMPTRLD of the first");
    check_eq!(get(field::GUEST_RIP), 0x1234, "each has its fields");
    check_eq!(vmptrld(other), Answer::Succeeded, "VMPTRLD of the second");
    check_eq!(get(field::GUEST_RIP), 0x5678, "each has its fields");
    check_eq!(vmclear(other), Answer::Succeeded, "VMCLEAR of the current");
    check_eq!(vmptrst(), u64::MAX, "no VMCS is current");
    // What VMCLEAR wrote to memory can be loaded again (24.11.3).
    check_eq!(vmptrld(other), Answer::Succeeded, "VMPTRLD after VMCLEAR");
    check_eq!(get(field::GUEST_RIP), 0x5678, "fields survive VMCLEAR");
    let copy = page();
    check_eq!(vmclear(other), Answer::Succeeded, "VMCLEAR");
    for i in 0..512 {
        write(copy + 8 * i, read(other + 8 * i));
    }
    check_eq!(
        vmptrld(copy),
        Answer::Succeeded,
        "24.11.3: VMPTRLD of a copy of a cleared VMCS"
    );
    check_eq!(get(field::GUEST_RIP), 0x5678, "24.11.3: the copy's fields");
}

fn fields() {
    section("31.3, 31.4 VMREAD, VMWRITE");
    let _vm = Vm::new();
    for unsupported in [
        0x0001,
        0x7fff,
        0x6c18,
        0x4830 + 0x200,
        0x1_0000_0000u64 as u32 | 0x2fff,
    ] {
        check_eq!(
            vmread(unsupported).0,
            Answer::Failed(12),
            "VMREAD of {unsupported:x}"
        );
        check_eq!(
            vmwrite(unsupported, 0),
            Answer::Failed(12),
            "VMWRITE of {unsupported:x}"
        );
    }
    check_eq!(get(field::INSTRUCTION_ERROR), 12, "the error's number");
    if read_msr(msr::MISC) & 1 << 29 == 0 {
        for read_only in [
            field::EXIT_REASON,
            field::INSTRUCTION_ERROR,
            field::QUALIFICATION,
            field::GUEST_LINEAR,
        ] {
            check_eq!(
                vmwrite(read_only, 0),
                Answer::Failed(13),
                "VMWRITE of read-only {read_only:x}"
            );
        }
    } else {
        skip("VMWRITE of read-only fields is allowed here");
    }
    // Widths (25.11.2, 31.3).
    let ones = u64::MAX;
    for (name, wide, expected) in [
        ("16 bits", field::GUEST_ES, 0xffff),
        ("32 bits", field::GUEST_ES_LIMIT, 0xffff_ffff),
        ("64 bits", field::TSC_OFFSET, ones),
        ("natural width", field::GUEST_RIP, ones),
    ] {
        let old = get(wide);
        check_eq!(vmwrite(wide, ones), Answer::Succeeded, "VMWRITE, {name}");
        check_eq!(get(wide), expected, "VMREAD, {name}");
        set(wide, old);
    }
    set(field::TSC_OFFSET, 0x1122_3344_5566_7788);
    check_eq!(
        get(field::TSC_OFFSET + 1),
        0x1122_3344,
        "the high half by itself"
    );
    set(field::TSC_OFFSET + 1, 0xaaaa_bbbb_cccc_dddd);
    check_eq!(
        get(field::TSC_OFFSET),
        0xcccc_dddd_5566_7788,
        "the high half written"
    );
    // Every field of Appendix B that the guest uses keeps what it is given.
    for i in 0..16u64 {
        let value = 1 << (4 * i) | i;
        set(field::GUEST_RSP, value);
        check_eq!(get(field::GUEST_RSP), value, "round trip");
    }
    // Memory operands.
    let memory = page();
    write(memory, 0x55);
    set(field::GUEST_RSP, 0x1234_5678_9abc_def0);
    let value = memory_read(field::GUEST_RSP, memory);
    check_eq!(value, 0x1234_5678_9abc_def0, "VMREAD to memory");
    check_eq!(
        raised(|| {
            memory_read(field::GUEST_RSP, 0x7fff_0000_0000);
        })
        .what(),
        (14, 2),
        "VMREAD to memory not present"
    );
}

fn memory_read(field: u32, memory: u64) -> u64 {
    // SAFETY: memory is the guest's, or faults, which the caller wants.
    unsafe {
        core::arch::asm!("vmread [{m}], {f}", m = in(reg) memory, f = in(reg) u64::from(field));
    }
    read(memory)
}

fn invalidation() {
    section("31.3 INVEPT, INVVPID");
    let _vm = Vm::new();
    let capabilities = read_msr(msr::EPT_VPID);
    if capabilities & 1 << 20 != 0 {
        check_eq!(invept(0, 0, 0), Answer::Failed(28), "INVEPT of type 0");
        check_eq!(invept(3, 0, 0), Answer::Failed(28), "INVEPT of type 3");
        check_eq!(
            invept(u64::MAX, 0, 0),
            Answer::Failed(28),
            "INVEPT of type -1"
        );
        check_eq!(invept(2, 0, 0), Answer::Succeeded, "INVEPT, all contexts");
        let eptp = page() | 6 | 3 << 3;
        check_eq!(invept(1, eptp, 0), Answer::Succeeded, "INVEPT, one context");
        check_eq!(
            invept(1, eptp | 7, 0),
            Answer::Failed(28),
            "INVEPT, an EPTP that an entry would refuse"
        );
    } else {
        skip("INVEPT");
    }
    if capabilities & 1 << 32 != 0 {
        check_eq!(invvpid(4, 1, 0), Answer::Failed(28), "INVVPID of type 4");
        check_eq!(invvpid(2, 0, 0), Answer::Succeeded, "INVVPID, all contexts");
        check_eq!(invvpid(1, 1, 0), Answer::Succeeded, "INVVPID, one context");
        check_eq!(invvpid(1, 0, 0), Answer::Failed(28), "INVVPID, VPID 0");
        check_eq!(invvpid(0, 1, 0x1000), Answer::Succeeded, "INVVPID, address");
        check_eq!(
            invvpid(0, 1, 1 << 47),
            Answer::Failed(28),
            "INVVPID, address not canonical"
        );
        check_eq!(
            invvpid(0, 0, 0),
            Answer::Failed(28),
            "INVVPID, address, VPID 0"
        );
        check_eq!(
            invvpid(1, 1 | 1 << 16, 0),
            Answer::Failed(28),
            "INVVPID, reserved bits"
        );
        check_eq!(
            invvpid(3, 1, 0),
            Answer::Succeeded,
            "INVVPID, one context but global pages"
        );
    } else {
        skip("INVVPID");
    }
}

fn launching() {
    section("31.4 VMLAUNCH, VMRESUME");
    let mut vm = Vm::new();
    check_eq!(n_launch_shadow(0) & 0x8d5, 0x40, "VMLAUNCH after MOV SS");
    check_eq!(get(field::INSTRUCTION_ERROR), 26, "blocked by MOV SS");
    // Clear: VMRESUME refuses; launched: VMLAUNCH refuses.
    raised_at(address!(n_vmresume), 0);
    check_eq!(
        get(field::INSTRUCTION_ERROR),
        5,
        "VMRESUME of a VMCS that is clear"
    );
    let exit = vm.run(address!(n_guest), 0);
    check_eq!(exit.reason, 18, "VMLAUNCH: the guest's VMCALL");
    raised_at(address!(n_vmlaunch), 0);
    check_eq!(
        get(field::INSTRUCTION_ERROR),
        4,
        "VMLAUNCH of a VMCS that is launched"
    );
    let exit = vm.run(address!(n_guest), 0);
    check_eq!(exit.reason, 18, "VMRESUME");
    vm.clear();
    raised_at(address!(n_vmresume), 0);
    check_eq!(get(field::INSTRUCTION_ERROR), 5, "clear again");
    let exit = vm.run(address!(n_guest), 0);
    check_eq!(exit.reason, 18, "VMLAUNCH again");
    // No current VMCS.
    vmclear(vm.vmcs);
    let other = vmx::new_region();
    check_eq!(vmclear(other), Answer::Succeeded, "VMCLEAR");
    check_eq!(
        n_resume_flags(0) & 0x8d5,
        1,
        "VMRESUME without a current VMCS"
    );
}

snippet! { n_resume_flags: "vmresume", "pushfq", "pop rax", "ret"; }
