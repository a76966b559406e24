//! Checks on the control fields (27.2.1): every failure is error number 7.

use runtime::cpu;
use runtime::memory::page;
use runtime::vmx::{
    self, Answer, Vm, add, exit, field, get, may, msr, pin, primary, remove, secondary, set,
};
use runtime::{address, check_eq, section, snippet};

snippet! { k_guest: "vmcall", "ret"; }

/// Changes fields, enters, puts everything back.
fn refused(vm: &mut Vm, what: &str, change: impl FnOnce()) {
    change();
    let entered = vm.start(address!(k_guest), 0);
    check_eq!(entered.map(|e| e.reason), Err(Answer::Failed(7)), "{what}");
    vm.fill();
}

fn accepted(vm: &mut Vm, what: &str, change: impl FnOnce()) {
    change();
    let entered = vm.start(address!(k_guest), 0);
    check_eq!(entered.map(|e| e.reason), Ok(18), "{what}");
    vm.fill();
}

pub fn run() {
    section("27.2.1 checks on VMX controls");
    let region = vmx::turn_on();
    let vm = &mut Vm::new();
    accepted(vm, "the plain VMCS", || {});
    for (name, which, control) in [
        ("pin-based", 0, field::PIN_CONTROLS),
        ("processor-based", 1, field::PROCESSOR_CONTROLS),
        ("exit", 2, field::EXIT_CONTROLS),
        ("entry", 3, field::ENTRY_CONTROLS),
    ] {
        let capability = cpu::read_msr(vmx::capability(which));
        for bit in 0..32 {
            if capability >> (32 + bit) & 1 == 0 {
                refused(vm, name, || add(control, 1 << bit));
            } else if capability >> bit & 1 == 1 {
                refused(vm, name, || remove(control, 1 << bit));
            }
        }
    }
    let allowed = cpu::read_msr(msr::SECONDARY);
    for bit in 0..32 {
        if allowed >> (32 + bit) & 1 == 0 {
            refused(vm, "secondary", || add(field::SECONDARY_CONTROLS, 1 << bit));
        }
    }
    refused(vm, "five CR3 targets", || set(field::CR3_TARGET_COUNT, 5));
    accepted(vm, "four CR3 targets", || set(field::CR3_TARGET_COUNT, 4));
    addresses(vm);
    interrupts(vm);
    apic(vm);
    tables(vm);
    lists(vm);
    injection(vm);
    vmx::vmxoff();
    let _ = region;
}

fn addresses(vm: &mut Vm) {
    let width = cpu::cpuid(0x8000_0008, 0)[0] & 0xff;
    let processor = vmx::capability(1);
    for (name, control, address) in [
        ("I/O bitmap A", primary::IO_BITMAPS, field::IO_BITMAP_A),
        ("I/O bitmap B", primary::IO_BITMAPS, field::IO_BITMAP_B),
        ("MSR bitmap", primary::MSR_BITMAPS, field::MSR_BITMAP),
        (
            "virtual-APIC page",
            primary::TPR_SHADOW,
            field::VIRTUAL_APIC,
        ),
    ] {
        if !may(processor, control) {
            continue;
        }
        let good = || {
            add(field::PROCESSOR_CONTROLS, control);
            for f in [
                field::IO_BITMAP_A,
                field::IO_BITMAP_B,
                field::MSR_BITMAP,
                field::VIRTUAL_APIC,
            ] {
                set(f, page());
            }
            set(field::TPR_THRESHOLD, 0);
        };
        accepted(vm, name, good);
        refused(vm, name, || {
            good();
            set(address, get(address) + 8);
        });
        refused(vm, name, || {
            good();
            set(address, 1 << width);
        });
        // Not looked at without the control.
        accepted(vm, name, || set(address, 8));
    }
}

fn interrupts(vm: &mut Vm) {
    refused(vm, "virtual NMIs without NMI exiting", || {
        remove(field::PIN_CONTROLS, pin::NMI);
        add(field::PIN_CONTROLS, pin::VIRTUAL_NMIS);
    });
    refused(vm, "NMI window without virtual NMIs", || {
        add(field::PROCESSOR_CONTROLS, primary::NMI_WINDOW);
    });
    if may(vmx::capability(2), exit::SAVE_TIMER) {
        refused(vm, "save preemption timer without the timer", || {
            add(field::EXIT_CONTROLS, exit::SAVE_TIMER);
        });
    }
}

fn apic(vm: &mut Vm) {
    if !may(vmx::capability(1), primary::TPR_SHADOW) {
        return;
    }
    let shadow = || {
        add(field::PROCESSOR_CONTROLS, primary::TPR_SHADOW);
        set(field::VIRTUAL_APIC, page());
        set(field::TPR_THRESHOLD, 0);
    };
    refused(vm, "TPR threshold, bit 4", || {
        shadow();
        set(field::TPR_THRESHOLD, 16);
    });
    refused(vm, "TPR threshold above the virtual TPR", || {
        shadow();
        set(field::TPR_THRESHOLD, 1);
    });
    if may(msr::SECONDARY, secondary::X2APIC) {
        refused(vm, "virtualize x2APIC mode without TPR shadow", || {
            add(field::SECONDARY_CONTROLS, secondary::X2APIC);
        });
    }
    if may(msr::SECONDARY, secondary::APIC_ACCESSES) {
        let good = || {
            add(field::SECONDARY_CONTROLS, secondary::APIC_ACCESSES);
            set(field::APIC_ACCESS, page());
        };
        accepted(vm, "APIC-access page", good);
        refused(vm, "APIC-access page, not aligned", || {
            good();
            set(field::APIC_ACCESS, get(field::APIC_ACCESS) + 8);
        });
        if may(msr::SECONDARY, secondary::X2APIC) {
            refused(vm, "APIC accesses and x2APIC mode", || {
                shadow();
                good();
                add(field::SECONDARY_CONTROLS, secondary::X2APIC);
            });
        }
    }
}

fn tables(vm: &mut Vm) {
    if may(msr::SECONDARY, secondary::VPID) {
        refused(vm, "VPID 0", || {
            add(field::SECONDARY_CONTROLS, secondary::VPID);
            set(field::VPID, 0);
        });
        accepted(vm, "VPID 1", || {
            add(field::SECONDARY_CONTROLS, secondary::VPID);
            set(field::VPID, 1);
        });
    }
    if may(msr::SECONDARY, secondary::UNRESTRICTED) {
        refused(vm, "unrestricted guest without EPT", || {
            add(field::SECONDARY_CONTROLS, secondary::UNRESTRICTED);
        });
    }
    if !may(msr::SECONDARY, secondary::EPT) {
        return;
    }
    let root = page();
    let width = cpu::cpuid(0x8000_0008, 0)[0] & 0xff;
    let mut eptp = |what: &str, value: u64| {
        refused(vm, what, || {
            add(field::SECONDARY_CONTROLS, secondary::EPT);
            set(field::EPTP, value);
        });
    };
    eptp("EPTP, memory type 1", root | 1 | 3 << 3);
    eptp("EPTP, memory type 7", root | 7 | 3 << 3);
    eptp("EPTP, walk length 3", root | 6 | 2 << 3);
    eptp("EPTP, walk length 6", root | 6 | 5 << 3);
    for bit in 8..12 {
        eptp("EPTP, reserved bit", root | 6 | 3 << 3 | 1 << bit);
    }
    eptp("EPTP, beyond MAXPHYADDR", root | 6 | 3 << 3 | 1 << width);
    if cpu::read_msr(msr::EPT_VPID) & 1 << 21 == 0 {
        eptp(
            "EPTP, accessed and dirty flags that are not there",
            root | 6 | 3 << 3 | 1 << 6,
        );
    }
}

/// 27.2.1.2, 27.2.1.3: MSR lists.
fn lists(vm: &mut Vm) {
    let width = cpu::cpuid(0x8000_0008, 0)[0] & 0xff;
    for (name, count, address) in [
        (
            "exit MSR-store list",
            field::EXIT_MSR_STORE_COUNT,
            field::EXIT_MSR_STORE,
        ),
        (
            "exit MSR-load list",
            field::EXIT_MSR_LOAD_COUNT,
            field::EXIT_MSR_LOAD,
        ),
        (
            "entry MSR-load list",
            field::ENTRY_MSR_LOAD_COUNT,
            field::ENTRY_MSR_LOAD,
        ),
    ] {
        let list = page();
        // IA32_SYSENTER_CS
        runtime::memory::write(list, 0x174);
        accepted(vm, name, || {
            set(count, 1);
            set(address, list);
        });
        refused(vm, name, || {
            set(count, 1);
            set(address, list + 8);
        });
        refused(vm, name, || {
            set(count, 1);
            set(address, 1 << width);
        });
        refused(vm, name, || {
            set(count, 2);
            set(address, (1 << width) - 16);
        });
        accepted(vm, name, || set(address, 8));
    }
}

/// 27.2.1.3: event injection.
fn injection(vm: &mut Vm) {
    section("27.2.1.3 VM-entry interruption information");
    const VALID: u64 = 1 << 31;
    const CODE: u64 = 1 << 11;
    let mut info = |what: &str, value: u64, length: u64| {
        refused(vm, what, || {
            set(field::ENTRY_INFO, VALID | value);
            set(field::ENTRY_LENGTH, length);
        });
    };
    info("type 1", 1 << 8, 0);
    info("other event but MTF", 7 << 8 | 1, 0);
    info("NMI with vector 3", 2 << 8 | 3, 0);
    info("hardware exception 32", 3 << 8 | 32, 0);
    for bit in 12..31 {
        info("reserved bit", 3 << 8 | 6 | 1 << bit, 0);
    }
    info("error code for #UD", 3 << 8 | 6 | CODE, 0);
    info("no error code for #GP", 3 << 8 | 13, 0);
    info("no error code for #PF", 3 << 8 | 14, 0);
    info("error code with an interrupt", 0x40 | CODE, 0);
    info("error code with an NMI", 2 << 8 | 2 | CODE, 0);
    info(
        "error code with a software interrupt",
        4 << 8 | 0x40 | CODE,
        2,
    );
    info("software interrupt, length 16", 4 << 8 | 0x40, 16);
    info("software exception, length 16", 6 << 8 | 3, 16);
    info("privileged software exception, length 16", 5 << 8 | 1, 16);
    if cpu::read_msr(msr::MISC) & 1 << 30 == 0 {
        info("software interrupt, length 0", 4 << 8 | 0x40, 0);
    }
    refused(vm, "reserved bits of the error code", || {
        set(field::ENTRY_INFO, VALID | 3 << 8 | 13 | CODE);
        set(field::ENTRY_ERROR, 1 << 16);
    });
    // Not valid: nothing of it is looked at.
    accepted(vm, "not valid", || set(field::ENTRY_INFO, 0x7fff_ffff));
}
