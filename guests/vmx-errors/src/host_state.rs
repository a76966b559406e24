//! Checks on the host-state area (27.2.2 to 27.2.4): every failure is error number 8.

use runtime::cpu;
use runtime::vmx::{self, Answer, Vm, add, exit, field, get, may, remove, set};
use runtime::{address, check_eq, section, snippet};

snippet! { h_guest: "vmcall", "ret"; }

fn refused(vm: &mut Vm, what: &str, change: impl FnOnce()) {
    change();
    let entered = vm.start(address!(h_guest), 0);
    check_eq!(entered.map(|e| e.reason), Err(Answer::Failed(8)), "{what}");
    vm.fill();
}

const NON_CANONICAL: u64 = 1 << 47;

pub fn run() {
    section("27.2.2, 27.2.3 checks on the host state");
    vmx::turn_on();
    let vm = &mut Vm::new();
    check_eq!(
        vm.start(address!(h_guest), 0).map(|e| e.reason),
        Ok(18),
        "the plain VMCS"
    );
    for bit in [0, 5, 31] {
        refused(vm, "CR0, a fixed bit clear", || {
            set(field::HOST_CR0, get(field::HOST_CR0) & !(1 << bit))
        });
    }
    refused(vm, "CR0, bit 32", || {
        set(field::HOST_CR0, get(field::HOST_CR0) | 1 << 32)
    });
    refused(vm, "CR4, VMXE clear", || {
        set(field::HOST_CR4, get(field::HOST_CR4) & !(1 << 13))
    });
    refused(vm, "CR4, a bit that does not exist", || {
        set(field::HOST_CR4, get(field::HOST_CR4) | 1 << 31)
    });
    refused(vm, "CR4, PAE clear", || {
        set(field::HOST_CR4, get(field::HOST_CR4) & !(1 << 5))
    });
    let width = cpu::cpuid(0x8000_0008, 0)[0] & 0xff;
    refused(vm, "CR3 beyond MAXPHYADDR", || {
        set(field::HOST_CR3, get(field::HOST_CR3) | 1 << width)
    });
    for (name, canonical) in [
        ("IA32_SYSENTER_ESP", field::HOST_SYSENTER_ESP),
        ("IA32_SYSENTER_EIP", field::HOST_SYSENTER_EIP),
        ("FS base", field::HOST_FS_BASE),
        ("GS base", field::HOST_GS_BASE),
        ("TR base", field::HOST_TR_BASE),
        ("GDTR base", field::HOST_GDTR_BASE),
        ("IDTR base", field::HOST_IDTR_BASE),
    ] {
        refused(vm, name, || set(canonical, NON_CANONICAL));
    }
    for (name, selector) in [
        ("ES", field::HOST_ES),
        ("CS", field::HOST_CS),
        ("SS", field::HOST_SS),
        ("DS", field::HOST_DS),
        ("FS", field::HOST_FS),
        ("GS", field::HOST_GS),
        ("TR", field::HOST_TR),
    ] {
        for bit in 0..3 {
            refused(vm, name, || set(selector, get(selector) | 1 << bit));
        }
    }
    refused(vm, "CS null", || set(field::HOST_CS, 0));
    refused(vm, "TR null", || set(field::HOST_TR, 0));
    if may(vmx::capability(2), exit::LOAD_PAT) {
        refused(vm, "PAT, type 2", || {
            add(field::EXIT_CONTROLS, exit::LOAD_PAT);
            set(field::HOST_PAT, 0x0007_0406_0007_0402);
        });
    }
    if may(vmx::capability(2), exit::LOAD_PERF_GLOBAL) {
        for bit in [31, 63] {
            refused(vm, "PERF_GLOBAL_CTRL, a reserved bit", || {
                add(field::EXIT_CONTROLS, exit::LOAD_PERF_GLOBAL);
                set(field::HOST_PERF_GLOBAL, 1 << bit);
            });
        }
    }
    if may(vmx::capability(2), exit::LOAD_EFER) {
        refused(vm, "EFER, a reserved bit", || {
            set(field::HOST_EFER, get(field::HOST_EFER) | 1 << 1)
        });
        refused(vm, "EFER, LMA clear", || {
            set(field::HOST_EFER, get(field::HOST_EFER) & !(1 << 10))
        });
        refused(vm, "EFER, LME clear", || {
            set(field::HOST_EFER, get(field::HOST_EFER) & !(1 << 8))
        });
    }
    section("27.2.4 address-space size");
    refused(vm, "host address-space size 0 in IA-32e mode", || {
        remove(field::EXIT_CONTROLS, exit::HOST_64)
    });
    vmx::vmxoff();
}
