//! Checks on the guest-state area (27.3.1) and MSR loading (27.4): the entry fails as a VM exit, with
//! reason 33 or 34 and bit 31.

use runtime::cpu;
use runtime::memory::{page, write};
use runtime::vmx::{self, Vm, add, entry, field, get, may, remove, set};
use runtime::{address, check_eq, section, snippet};

snippet! { e_guest: "vmcall", "ret"; }

const INVALID: u64 = 1 << 31 | 33;
const MSR_LOADING: u64 = 1 << 31 | 34;
const NON_CANONICAL: u64 = 1 << 47;
const PERF_GLOBAL_CTRL: u32 = 0x38f;

/// The change is made after RIP and RFLAGS have their usual values.
fn failed(vm: &mut Vm, what: &str, qualification: u64, change: impl FnOnce()) {
    set(field::GUEST_RIP, address!(e_guest));
    set(field::GUEST_RFLAGS, 2);
    change();
    let entered = vm.go();
    check_eq!(
        entered.map(|e| (e.reason, e.qualification)),
        Ok((INVALID, qualification)),
        "{what}"
    );
    vm.fill();
}

fn entered(vm: &mut Vm, what: &str, change: impl FnOnce()) {
    set(field::GUEST_RIP, address!(e_guest));
    set(field::GUEST_RFLAGS, 2);
    change();
    check_eq!(vm.go().map(|e| e.reason), Ok(18), "{what}");
    vm.fill();
}

pub fn run() {
    vmx::turn_on();
    let vm = &mut Vm::new();
    section("27.3.1.1 control registers, debug registers, MSRs");
    entered(vm, "the plain VMCS", || {});
    registers(vm);
    section("27.3.1.2 segment registers");
    segments(vm);
    section("27.3.1.3, 27.3.1.4 descriptor tables, RIP, RFLAGS");
    tables(vm);
    section("27.3.1.5 non-register state");
    others(vm);
    section("27.4 loading MSRs");
    loading(vm);
    // A failed entry keeps the launch state and loads the host (27.8).
    set(field::GUEST_CR0, 0);
    vm.clear();
    let first = vm.start(address!(e_guest), 0).map(|e| e.reason);
    check_eq!(first, Ok(INVALID), "failed VMLAUNCH");
    vm.fill();
    let second = vm.start(address!(e_guest), 0).map(|e| e.reason);
    check_eq!(second, Ok(18), "27.8: still clear, VMLAUNCH again");
    vmx::vmxoff();
}

fn registers(vm: &mut Vm) {
    let toggle = |f: u32, bits: u64| set(f, get(f) ^ bits);
    failed(vm, "CR0: PG without PE", 0, || toggle(field::GUEST_CR0, 1));
    failed(vm, "CR0: NE clear", 0, || toggle(field::GUEST_CR0, 1 << 5));
    failed(vm, "CR0: bit 32", 0, || toggle(field::GUEST_CR0, 1 << 32));
    failed(vm, "CR0: PG clear without unrestricted guest", 0, || {
        toggle(field::GUEST_CR0, 1 << 31)
    });
    failed(vm, "CR4: VMXE clear", 0, || {
        toggle(field::GUEST_CR4, 1 << 13)
    });
    failed(vm, "CR4: a bit that does not exist", 0, || {
        toggle(field::GUEST_CR4, 1 << 31)
    });
    failed(vm, "CR4: PAE clear for a 64-bit guest", 0, || {
        toggle(field::GUEST_CR4, 1 << 5)
    });
    let width = cpu::cpuid(0x8000_0008, 0)[0] & 0xff;
    failed(vm, "CR3 beyond MAXPHYADDR", 0, || {
        toggle(field::GUEST_CR3, 1 << width)
    });
    failed(vm, "DR7: bit 32 with load debug controls", 0, || {
        add(field::ENTRY_CONTROLS, entry::LOAD_DEBUG);
        set(field::GUEST_DR7, 1 << 32 | 0x400);
    });
    failed(vm, "DEBUGCTL: reserved with load debug controls", 0, || {
        add(field::ENTRY_CONTROLS, entry::LOAD_DEBUG);
        set(field::GUEST_DEBUGCTL, 1 << 5);
    });
    failed(vm, "SYSENTER_ESP", 0, || {
        set(field::GUEST_SYSENTER_ESP, NON_CANONICAL)
    });
    failed(vm, "SYSENTER_EIP", 0, || {
        set(field::GUEST_SYSENTER_EIP, NON_CANONICAL)
    });
    if may(vmx::capability(3), entry::LOAD_PAT) {
        failed(vm, "PAT, type 3", 0, || {
            add(field::ENTRY_CONTROLS, entry::LOAD_PAT);
            set(field::GUEST_PAT, 0x0007_0406_0007_0403);
        });
    }
    if may(vmx::capability(3), entry::LOAD_EFER) {
        failed(vm, "EFER: reserved", 0, || toggle(field::GUEST_EFER, 2));
        failed(vm, "EFER: LMA is not the control", 0, || {
            toggle(field::GUEST_EFER, 1 << 10)
        });
        failed(vm, "EFER: LME is not LMA with paging", 0, || {
            toggle(field::GUEST_EFER, 1 << 8)
        });
    }
    if may(vmx::capability(3), entry::LOAD_PERF_GLOBAL) {
        for bit in [31, 63] {
            failed(vm, "PERF_GLOBAL_CTRL: reserved", 0, || {
                add(field::ENTRY_CONTROLS, entry::LOAD_PERF_GLOBAL);
                set(field::GUEST_PERF_GLOBAL, 1 << bit);
            });
        }
        let old = cpu::read_msr(PERF_GLOBAL_CTRL);
        entered(vm, "PERF_GLOBAL_CTRL", || {
            add(field::ENTRY_CONTROLS, entry::LOAD_PERF_GLOBAL);
            set(field::GUEST_PERF_GLOBAL, old ^ 1);
        });
        // It stays over an exit that does not load it.
        check_eq!(cpu::read_msr(PERF_GLOBAL_CTRL), old ^ 1, "27.3.2.1: loaded");
        cpu::write_msr(PERF_GLOBAL_CTRL, old);
        entered(vm, "PERF_GLOBAL_CTRL not to be loaded", || {
            set(field::GUEST_PERF_GLOBAL, old ^ 1);
        });
        check_eq!(cpu::read_msr(PERF_GLOBAL_CTRL), old, "27.3.2.1: as it was");
    }
    failed(vm, "not a 64-bit guest, but CR4.PCIDE", 0, || {
        remove(field::ENTRY_CONTROLS, entry::GUEST_64);
        toggle(field::GUEST_EFER, 5 << 8);
        set(field::GUEST_CR4, get(field::GUEST_CR4) | 1 << 17);
    });
}

fn segments(vm: &mut Vm) {
    let access = |i: u32| field::GUEST_ES_ACCESS + 2 * i;
    failed(vm, "TR: TI", 0, || {
        set(field::GUEST_TR, get(field::GUEST_TR) | 4)
    });
    failed(vm, "TR: not busy", 0, || set(access(7), 0x89));
    failed(vm, "TR: 16 bits for a 64-bit guest", 0, || {
        set(access(7), 0x83)
    });
    failed(vm, "TR: unusable", 0, || set(access(7), 0x1_008b));
    failed(vm, "TR: not present", 0, || set(access(7), 0x0b));
    failed(vm, "TR: S", 0, || set(access(7), 0x9b));
    failed(vm, "TR: base", 0, || {
        set(field::GUEST_TR_BASE, NON_CANONICAL)
    });
    failed(vm, "TR: limit against granularity", 0, || {
        set(access(7), 0x808b)
    });
    failed(vm, "LDTR usable: TI", 0, || {
        set(access(6), 0x82);
        set(field::GUEST_LDTR, 4);
    });
    failed(vm, "LDTR usable: type", 0, || set(access(6), 0x83));
    failed(vm, "LDTR usable: base", 0, || {
        set(access(6), 0x82);
        set(field::GUEST_LDTR_BASE, NON_CANONICAL);
    });
    entered(vm, "LDTR usable", || set(access(6), 0x82));
    failed(vm, "FS base", 0, || {
        set(field::GUEST_FS_BASE, NON_CANONICAL)
    });
    failed(vm, "GS base", 0, || {
        set(field::GUEST_GS_BASE, NON_CANONICAL)
    });
    failed(vm, "CS base above 4 GiB", 0, || {
        set(field::GUEST_ES_BASE + 2, 1 << 32)
    });
    failed(vm, "CS: unusable data type", 0, || set(access(1), 0xa093));
    failed(vm, "CS: not accessed", 0, || set(access(1), 0xa09a));
    failed(vm, "CS: L and D", 0, || set(access(1), 0xe09b));
    failed(vm, "CS: not present", 0, || set(access(1), 0xa01b));
    failed(vm, "CS: system", 0, || set(access(1), 0xa08b));
    failed(vm, "CS: reserved bit", 0, || set(access(1), 0xa19b));
    failed(vm, "CS: DPL is not that of SS", 0, || {
        set(access(1), 0xa0fb)
    });
    failed(vm, "CS: limit against granularity", 0, || {
        set(field::GUEST_CS_LIMIT, 0x1000_0000);
    });
    failed(vm, "SS: RPL is not that of CS", 0, || {
        set(field::GUEST_SS, get(field::GUEST_SS) | 3)
    });
    failed(vm, "SS: read-only", 0, || set(access(2), 0xc091));
    failed(vm, "SS: code", 0, || set(access(2), 0xc09b));
    failed(vm, "SS: not present", 0, || set(access(2), 0xc013));
    failed(vm, "SS: DPL is not its RPL", 0, || set(access(2), 0xc0f3));
    failed(vm, "DS: not accessed", 0, || set(access(3), 0xc092));
    failed(vm, "DS: execute-only code", 0, || set(access(3), 0xc099));
    failed(vm, "DS: DPL below RPL", 0, || {
        set(field::GUEST_DS, get(field::GUEST_DS) | 3)
    });
    failed(vm, "DS: not present", 0, || set(access(3), 0xc013));
    failed(vm, "DS: upper reserved bits", 0, || {
        set(access(3), 0x2_c093)
    });
    failed(vm, "DS base above 4 GiB", 0, || {
        set(field::GUEST_ES_BASE + 6, 1 << 32)
    });
    entered(vm, "DS unusable", || set(access(3), 0x1_0000));
    entered(vm, "SS unusable", || set(access(2), 0x1_0000));
}

fn tables(vm: &mut Vm) {
    failed(vm, "GDTR base", 0, || {
        set(field::GUEST_GDTR_BASE, NON_CANONICAL)
    });
    failed(vm, "IDTR base", 0, || {
        set(field::GUEST_IDTR_BASE, NON_CANONICAL)
    });
    failed(vm, "GDTR limit", 0, || {
        set(field::GUEST_GDTR_LIMIT, 0x1_0000)
    });
    failed(vm, "IDTR limit", 0, || {
        set(field::GUEST_IDTR_LIMIT, 0x1_0000)
    });
    failed(vm, "RIP not canonical", 0, || {
        set(field::GUEST_RIP, 1 << 60)
    });
    failed(vm, "RFLAGS: bit 1 clear", 0, || set(field::GUEST_RFLAGS, 0));
    for bit in [3, 5, 15, 22, 63] {
        failed(vm, "RFLAGS: reserved", 0, || {
            set(field::GUEST_RFLAGS, 2 | 1 << bit)
        });
    }
    failed(vm, "RFLAGS: VM in a 64-bit guest", 0, || {
        set(field::GUEST_RFLAGS, 2 | 1 << 17)
    });
    failed(
        vm,
        "RFLAGS: IF clear, external interrupt injected",
        0,
        || {
            set(field::ENTRY_INFO, 1 << 31 | 0x40);
        },
    );
}

fn others(vm: &mut Vm) {
    failed(vm, "activity state 4", 0, || set(field::ACTIVITY, 4));
    failed(vm, "activity HLT, DPL of SS not 0", 0, || {
        set(field::ACTIVITY, 1);
        set(field::GUEST_CS, u64::from(runtime::descriptors::USER_CS));
        set(field::GUEST_SS, u64::from(runtime::descriptors::USER_SS));
        set(field::GUEST_CS_ACCESS, 0xa0fb);
        set(field::GUEST_SS_ACCESS, 0xc0f3);
        for i in [0, 3] {
            set(field::GUEST_ES_ACCESS + 2 * i, 0xc0f3);
        }
    });
    failed(vm, "activity HLT with blocking by STI", 0, || {
        set(field::ACTIVITY, 1);
        set(field::GUEST_RFLAGS, 0x202);
        set(field::INTERRUPTIBILITY, 1);
    });
    failed(vm, "activity wait-for-SIPI with an event", 0, || {
        set(field::ACTIVITY, 3);
        set(field::ENTRY_INFO, 1 << 31 | 3 << 8 | 6);
    });
    for bit in [5, 6, 31] {
        failed(vm, "interruptibility: reserved", 0, || {
            set(field::INTERRUPTIBILITY, 1 << bit)
        });
    }
    failed(vm, "blocking by STI with IF clear", 0, || {
        set(field::INTERRUPTIBILITY, 1)
    });
    failed(vm, "blocking by STI and by MOV SS", 0, || {
        set(field::INTERRUPTIBILITY, 3);
        set(field::GUEST_RFLAGS, 0x202);
    });
    failed(vm, "interrupt injected with blocking by STI", 0, || {
        set(field::INTERRUPTIBILITY, 1);
        set(field::GUEST_RFLAGS, 0x202);
        set(field::ENTRY_INFO, 1 << 31 | 0x40);
    });
    failed(vm, "interrupt injected with blocking by MOV SS", 0, || {
        set(field::INTERRUPTIBILITY, 2);
        set(field::GUEST_RFLAGS, 0x202);
        set(field::ENTRY_INFO, 1 << 31 | 0x40);
    });
    failed(vm, "NMI injected with blocking by MOV SS", 0, || {
        set(field::INTERRUPTIBILITY, 2);
        set(field::ENTRY_INFO, 1 << 31 | 2 << 8 | 2);
    });
    failed(vm, "blocking by SMI outside SMM", 0, || {
        set(field::INTERRUPTIBILITY, 4)
    });
    failed(vm, "pending debug exceptions: reserved", 0, || {
        set(field::PENDING_DEBUG, 1 << 4)
    });
    failed(
        vm,
        "pending debug exceptions: BS missing with TF and blocking",
        0,
        || {
            set(field::GUEST_RFLAGS, 0x302);
            set(field::INTERRUPTIBILITY, 1);
        },
    );
    failed(
        vm,
        "pending debug exceptions: BS without TF but with blocking",
        0,
        || {
            set(field::GUEST_RFLAGS, 0x202);
            set(field::INTERRUPTIBILITY, 1);
            set(field::PENDING_DEBUG, 1 << 14);
        },
    );
    failed(vm, "link pointer not aligned", 4, || {
        set(field::LINK_POINTER, 8)
    });
    failed(vm, "link pointer to another revision", 4, || {
        let region = page();
        write(region, cpu::read_msr(vmx::msr::BASIC) & 0x7fff_ffff ^ 1);
        set(field::LINK_POINTER, region);
    });
}

fn loading(vm: &mut Vm) {
    let list = page();
    let mut go = |what: &str, entries: &[(u64, u64)], expected: Option<u64>| {
        for (i, &(msr, value)) in entries.iter().enumerate() {
            write(list + 16 * i as u64, msr);
            write(list + 16 * i as u64 + 8, value);
        }
        set(field::ENTRY_MSR_LOAD, list);
        set(field::ENTRY_MSR_LOAD_COUNT, entries.len() as u64);
        let entered = vm
            .start(address!(e_guest), 0)
            .map(|e| (e.reason, e.qualification));
        match expected {
            Some(index) => check_eq!(entered, Ok((MSR_LOADING, index)), "{what}"),
            None => check_eq!(entered.map(|e| e.0), Ok(18), "{what}"),
        }
        vm.fill();
    };
    let good = (0x174, 8);
    go("two good ones", &[good, (0xc000_0102, 0x1234)], None);
    check_eq!(
        cpu::read_msr(0xc000_0102),
        0x1234,
        "loaded, and not taken back by the exit"
    );
    go("FS base", &[(0xc000_0100, 0)], Some(1));
    go("GS base, second", &[good, (0xc000_0101, 0)], Some(2));
    go("upper bits of the index", &[(0x1_0000_0174, 0)], Some(1));
    go("reserved bits", &[(0x174 | 1 << 40, 0)], Some(1));
    go("no such MSR", &[good, good, (0x4000_1234, 0)], Some(3));
    go("a value WRMSR refuses", &[(0x175, NON_CANONICAL)], Some(1));
    go("an x2APIC MSR", &[(0x808, 0)], Some(1));
    // The value of the entries before the bad one stays.
    cpu::write_msr(0xc000_0102, 0);
    go(
        "the second is bad",
        &[(0xc000_0102, 0x77), (0xc000_0100, 0)],
        Some(2),
    );
    check_eq!(
        cpu::read_msr(0xc000_0102),
        0x77,
        "27.4: what was loaded before the failure"
    );
    cpu::write_msr(0xc000_0102, 0);
}
