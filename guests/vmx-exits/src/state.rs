//! What an exit saves and loads (28.3, 28.5), and what an entry loads (27.3).

use runtime::cpu::{self, cr4, efer};
use runtime::descriptors::{self, KERNEL_CS, KERNEL_SS, TSS, USER_CS, USER_SS};
use runtime::memory::page;
use runtime::paging::user_address;
use runtime::vmx::{Vm, add, capability, entry, exit, field, get, may, set};
use runtime::{address, check, check_eq, section, snippet};

use crate::passes;

snippet! {
    s_registers: "mov rax, 1", "mov rcx, 2", "mov rdx, 3", "mov rbx, 4", "mov rbp, 5", "mov rsi, 6",
        "mov rdi, 7", "mov r8, 8", "mov r9, 9", "mov r10, 10", "mov r11, 11", "mov r12, 12", "mov r13, 13",
        "mov r14, 14", "mov r15, 15", "stc", "vmcall";
    s_state: "mov rax, cr0", "mov rcx, cr3", "mov rdx, cr4", "mov r8, dr7", "mov r9d, ss", "mov r10d, cs",
        "mov r11d, ds", "str r12w", "pushfq", "pop r13", "mov r14, rsp", "vmcall";
    s_change: "mov rax, cr4", "xor rax, 4", "mov cr4, rax", "mov eax, 0x18 | 3", "mov ds, eax",
        "lgdt [rdi]", "vmcall";
    s_msrs: "mov ecx, 0x174", "mov eax, 0x31", "xor edx, edx", "wrmsr", "mov ecx, 0xc0000100", "mov eax, 0x5000",
        "wrmsr", "mov ecx, 0xc0000080", "rdmsr", "or eax, 1", "wrmsr", "vmcall";
    s_user: "vmcall";
}

pub fn run(vm: &mut Vm) {
    entered(vm);
    left(vm);
}

fn entered(vm: &mut Vm) {
    section("27.3.2 loading the guest's state");
    for i in 0..16 {
        vm.gpr[i] = 0;
    }
    passes(vm, "registers", address!(s_registers), 0);
    let expected = [1, 2, 3, 4, vm.gpr[4], 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    check_eq!(vm.gpr, expected, "general registers are the guest's");
    check_eq!(get(field::GUEST_RFLAGS), 3, "RFLAGS saved");
    // CR0.ET and what VMX operation fixes aside, the guest has what its area says.
    let other = runtime::paging::new_root();
    set(field::GUEST_CR3, other);
    set(field::GUEST_CR4, get(field::GUEST_CR4) | cr4::TSD);
    add(field::ENTRY_CONTROLS, entry::LOAD_DEBUG);
    set(field::GUEST_DR7, 0x455);
    set(field::GUEST_SS, u64::from(USER_SS) & !3);
    passes(vm, "state", address!(s_state), 0);
    check_eq!(vm.gpr[0], get(field::GUEST_CR0), "CR0");
    check_eq!(vm.gpr[1], other, "CR3");
    check_eq!(vm.gpr[2], get(field::GUEST_CR4), "CR4");
    check_eq!(vm.gpr[8], 0x455, "DR7");
    check_eq!(
        vm.gpr[9],
        u64::from(USER_SS) & !3,
        "SS selector as in the area, whatever the GDT says"
    );
    check_eq!(
        (vm.gpr[10], vm.gpr[11]),
        (u64::from(KERNEL_CS), u64::from(KERNEL_SS)),
        "CS, DS"
    );
    check_eq!(vm.gpr[12] & 0xffff, u64::from(TSS), "TR");
    check_eq!(vm.gpr[14], vm.stack - 8, "RSP");
    vm.fill();
    // A guest at CPL 3.
    set(field::GUEST_CS, u64::from(USER_CS));
    set(field::GUEST_CS_ACCESS, 0xa0fb);
    set(field::GUEST_SS, u64::from(USER_SS));
    set(field::GUEST_SS_ACCESS, 0xc0f3);
    for i in [0, 3] {
        set(field::GUEST_ES + 2 * i, u64::from(USER_SS));
        set(field::GUEST_ES_ACCESS + 2 * i, 0xc0f3);
    }
    let exit = vm.run(user_address(address!(s_user)), 0);
    check_eq!(
        (exit.reason, exit.length),
        (18, 3),
        "VMCALL exits at CPL 3 too"
    );
    check_eq!(get(field::GUEST_CS), u64::from(USER_CS), "CS saved");
    vm.fill();
}

fn left(vm: &mut Vm) {
    section("28.3, 28.5 saving the guest's state, loading the host's");
    let pointer = page();
    runtime::memory::write(pointer, 0x47 | descriptors::gdt_base() << 16);
    runtime::memory::write(pointer + 8, descriptors::gdt_base() >> 48);
    let c4 = cpu::read_cr4();
    passes(vm, "changes", address!(s_change), pointer);
    check_eq!(get(field::GUEST_CR4), c4 ^ 4, "CR4 saved");
    check_eq!(get(field::GUEST_GDTR_LIMIT), 0x47, "GDTR limit saved");
    check_eq!(get(field::GUEST_ES + 6), 0x1b, "DS saved");
    check_eq!(cpu::read_cr4(), c4, "CR4 is the host's");
    let (mut gdtr, mut idtr) = ([0u8; 10], [0u8; 10]);
    let (ds, es, ss, cs, tr): (u64, u64, u64, u64, u64);
    // SAFETY: reads registers.
    unsafe {
        core::arch::asm!("sgdt [{g}]", "sidt [{i}]", "mov {ds:e}, ds", "mov {es:e}, es", "mov {ss:e}, ss",
            "mov {cs:e}, cs", "str {tr:x}", g = in(reg) &mut gdtr, i = in(reg) &mut idtr, ds = out(reg) ds,
            es = out(reg) es, ss = out(reg) ss, cs = out(reg) cs, tr = inout(reg) 0u64 => tr);
    }
    check_eq!((gdtr[0], gdtr[1]), (0xff, 0xff), "28.5.2: GDTR limit FFFFh");
    check_eq!((idtr[0], idtr[1]), (0xff, 0xff), "28.5.2: IDTR limit FFFFh");
    let data = u64::from(KERNEL_SS);
    check_eq!(
        (ds, es, ss, cs),
        (data, data, data, u64::from(KERNEL_CS)),
        "28.5.2: selectors of the host"
    );
    check_eq!(tr, u64::from(TSS), "28.5.2: TR");
    vm.fill();
    // MSRs of the guest-state area.
    let bitmap = page();
    if may(capability(1), runtime::vmx::primary::MSR_BITMAPS) {
        add(
            field::PROCESSOR_CONTROLS,
            runtime::vmx::primary::MSR_BITMAPS,
        );
        set(field::MSR_BITMAP, bitmap);
        let host_efer = cpu::read_msr(efer::MSR);
        set(field::GUEST_EFER, host_efer & !1);
        passes(vm, "MSRs", address!(s_msrs), 0);
        check_eq!(get(field::GUEST_SYSENTER_CS), 0x31, "SYSENTER_CS saved");
        check_eq!(get(field::GUEST_FS_BASE), 0x5000, "FS base saved");
        check_eq!(get(field::GUEST_EFER) & 1, 1, "EFER saved");
        check_eq!(cpu::read_msr(0x174), 0, "SYSENTER_CS is the host's");
        check_eq!(
            cpu::read_msr(0xc000_0100),
            get(field::HOST_FS_BASE),
            "FS base is the host's"
        );
        check_eq!(cpu::read_msr(efer::MSR), host_efer, "EFER is the host's");
        vm.fill();
    }
    // IF, AC and the rest of RFLAGS are cleared.
    let flags: u64;
    set(field::GUEST_RFLAGS, 0x202);
    vm.run(address!(crate::x_end), 0);
    // SAFETY: reads RFLAGS.
    unsafe { core::arch::asm!("pushfq", "pop {}", out(reg) flags) };
    check_eq!(flags & !0x8d5, 2, "28.5.3: RFLAGS");
    check!(may(capability(2), exit::HOST_64), "64-bit host");
    vm.fill();
}
