//! What VM entries load and VM exits save and load (SDM Vol 3 27.3.2, 28.3 to 28.6).

use x86defs::vmx::VmcsField as F;
use x86defs::vmx::control::{entry, exit, primary, secondary};

use super::rig::*;
use crate::cpu::{RIP, gpr, sreg};

const CPUID: &[u8] = &[0x0f, 0xa2];
const NOP: &[u8] = &[0x90];

#[test]
fn guest_state_is_loaded() {
    let mut r = Rig::root();
    for (f, v) in [
        (F::GuestSysenterCs, 0x1111),
        (F::GuestSysenterEsp, 0x2222),
        (F::GuestFsBase, 0xffff_8000_1234_0000),
        (F::GuestDr7, 0x0000_d701),
        (F::GuestPat, 0x0706_0504_0100_0606),
        (F::GuestCr3, PML4 | 0x18),
    ] {
        r.set(f, v);
    }
    r.or(F::EntryControls, entry::LOAD_PAT);
    r.bytes(GUEST_CODE, NOP);
    r.enter();
    let c = r.cpu();
    assert!(c.vmx.in_guest && c.long64 && c.cpl == 0);
    assert_eq!((c.regs[RIP], c.regs[gpr::RSP]), (GUEST_CODE, GUEST_RSP));
    assert_eq!((c.msr.sysenter_cs, c.msr.sysenter_esp), (0x1111, 0x2222));
    assert_eq!(c.seg[sreg::FS].base, 0xffff_8000_1234_0000);
    assert_eq!(c.dr7, 0x0000_0701, "bits 15, 14 and 12 cleared");
    assert_eq!(c.msr.pat, 0x0706_0504_0100_0606);
    assert_eq!(c.cr3, PML4 | 0x18);
    assert_eq!(c.idtr.limit, 0xfff);
}

#[test]
fn general_registers_pass_through() {
    let mut r = Rig::root();
    r.cpu().regs[gpr::RSI] = 0x1122_3344;
    // mov rdi, rsi; cpuid
    assert_eq!(r.run_guest(&[0x48, 0x89, 0xf7, 0x0f, 0xa2]), 10);
    assert_eq!(r.cpu().regs[gpr::RDI], 0x1122_3344);
}

#[test]
fn an_exit_saves_the_guest_and_loads_the_host() {
    let mut r = Rig::root();
    for (f, v) in [
        (F::HostFsBase, 0x1000),
        (F::HostGsBase, 0xffff_8000_0000_2000),
        (F::HostSysenterEip, 0x3333),
        (F::HostDsSelector, 0),
        (F::GuestDr7, 0x401),
    ] {
        r.set(f, v);
    }
    // push rax; stc; cpuid
    assert_eq!(r.run_guest(&[0x50, 0xf9, 0x0f, 0xa2]), 10);
    assert_eq!(r.get(F::GuestRip), GUEST_CODE + 2);
    assert_eq!(r.get(F::ExitInstructionLength), 2);
    assert_eq!(r.get(F::GuestRsp), GUEST_RSP - 8);
    assert_eq!(r.get(F::GuestRflags), 3);
    assert_eq!(r.get(F::GuestCsAccess), 0xa09b);
    assert_eq!(r.get(F::ExitInterruptionInfo), 0);
    assert_eq!(r.get(F::IdtVectoringInfo), 0);
    let c = r.cpu();
    assert_eq!(c.rflags(), 2);
    assert_eq!(c.regs[gpr::RSP], HOST_RSP);
    assert_eq!(c.dr7, 0x400);
    assert_eq!(c.seg[sreg::FS].base, 0x1000);
    assert_eq!(c.seg[sreg::GS].base, 0xffff_8000_0000_2000);
    assert_eq!(c.msr.sysenter_eip, 0x3333);
    assert_eq!(
        (c.seg[sreg::CS].selector.0, c.seg[sreg::CS].access.0),
        (8, 0xa09b)
    );
    assert_eq!(c.seg[sreg::SS].access.0, 0xc093);
    assert!(c.seg[sreg::DS].access.unusable(), "null selector");
    assert_eq!((c.tr.limit, c.tr.access.0), (0x67, 0x8b));
    assert_eq!((c.gdtr.limit, c.idtr.limit), (0xffff, 0xffff));
    assert!(c.ldtr.access.unusable());
    assert_eq!(c.efer & 0x500, 0x500);
}

#[test]
fn efer_and_pat() {
    let mut r = Rig::root();
    r.or(F::EntryControls, entry::LOAD_EFER | entry::LOAD_PAT);
    r.or(
        F::ExitControls,
        exit::SAVE_EFER | exit::LOAD_EFER | exit::SAVE_PAT | exit::LOAD_PAT,
    );
    r.set(F::GuestEfer, 0x500);
    r.set(F::GuestPat, 0x0606_0606_0606_0606);
    r.set(F::HostEfer, 0xd01);
    r.set(F::HostPat, 0x0007_0406_0007_0406);
    // mov ecx, 0xc0000080; rdmsr without bitmaps exits: a plain instruction in between keeps the state.
    assert_eq!(r.run_guest(CPUID), 10);
    assert_eq!(r.get(F::GuestEfer), 0x500);
    assert_eq!(r.get(F::GuestPat), 0x0606_0606_0606_0606);
    assert_eq!(r.cpu().efer, 0xd01);
    assert_eq!(r.cpu().msr.pat, 0x0007_0406_0007_0406);
}

/// SDM Vol 3 27.3.2.1, 28.5.1: IA32_PERF_GLOBAL_CTRL, and with it what counts. Instructions of the host before the
/// entry and after the exit do not.
#[test]
fn performance_counters_are_switched() {
    const GLOBAL: u32 = 0x38f;
    let mut r = Rig::root();
    r.or(F::EntryControls, entry::LOAD_PERF_GLOBAL_CTRL);
    r.or(F::ExitControls, exit::LOAD_PERF_GLOBAL_CTRL);
    r.set(F::GuestPerfGlobalCtrl, 1 << 32);
    r.set(F::HostPerfGlobalCtrl, 1 << 1);
    r.cpu().write_msr(GLOBAL, 4).unwrap();
    // Instructions, at all levels.
    r.cpu().write_msr(0x38d, 3).unwrap();
    // NOP four times, then CPUID, which exits and so does not retire.
    assert_eq!(r.run_guest(&[0x90, 0x90, 0x90, 0x90, 0x0f, 0xa2]), 10);
    assert_eq!(r.cpu().read_msr(GLOBAL), Ok(1 << 1));
    r.cpu().pmu_sync();
    assert_eq!(r.cpu().read_msr(0x309), Ok(4));
    // Without the controls it stays.
    let mut r = Rig::root();
    r.set(F::GuestPerfGlobalCtrl, 1 << 32);
    r.set(F::HostPerfGlobalCtrl, 1 << 1);
    r.cpu().write_msr(GLOBAL, 4).unwrap();
    assert_eq!(r.run_guest(CPUID), 10);
    assert_eq!(r.cpu().read_msr(GLOBAL), Ok(4));
}

/// SDM Vol 3 Table 28-10: bits 9:7 the address size, bit 11 the operand size, 17:15 the segment, 22 and 27 no index and
/// no base, 29:28 the instruction. Table 28-11: bit 10 a register.
#[test]
fn descriptor_table_accesses_in_real_mode() {
    const DS: u64 = 3 << 15;
    const NEITHER: u64 = 1 << 22 | 1 << 27;
    // Scaling, and the numbers of registers that are not there, are undefined.
    const DEFINED: u64 = 0x3840_8b80 | DS;
    let cases: [(&[u8], u64, u64); 5] = [
        (&[0x0f, 0x01, 0x16, 0x34, 0x12], 2 << 28, 0x1234),
        (
            &[0x66, 0x0f, 0x01, 0x16, 0x34, 0x12],
            2 << 28 | 1 << 11,
            0x1234,
        ),
        (&[0x0f, 0x01, 0x06, 0, 0], 0, 0),
        (&[0x66, 0x0f, 0x01, 0x06, 0, 0], 1 << 11, 0),
        (
            &[0x67, 0x0f, 0x01, 0x1d, 0, 0, 1, 0],
            3 << 28 | 1 << 7,
            0x1_0000,
        ),
    ];
    for (code, information, displacement) in cases {
        let mut r = real_mode();
        r.or(F::SecondaryControls, secondary::DESCRIPTOR_TABLE_EXITING);
        r.bytes(0x1_4000, code);
        r.enter();
        r.step();
        assert_eq!(r.get(F::ExitReason), 46, "{code:02x?}");
        assert_eq!(
            r.get(F::ExitInstructionInfo) & DEFINED,
            information | DS | NEITHER,
            "{code:02x?}"
        );
        assert_eq!(r.get(F::ExitQualification), displacement, "{code:02x?}");
    }
}

/// SLDT to memory at displacement 0 in 32-bit code has no base, no index and no displacement, but is no register.
#[test]
fn a_selector_stored_at_address_0() {
    let mut r = Rig::root();
    r.clear(F::EntryControls, entry::IA32E_MODE_GUEST);
    r.set(F::GuestCr0, 0x31);
    r.set(F::GuestCr4, 0x2000);
    r.set(F::GuestCsAccess, 0xc09b);
    r.or(F::SecondaryControls, secondary::DESCRIPTOR_TABLE_EXITING);
    assert_eq!(r.run_guest(&[0x0f, 0x00, 0x05, 0, 0, 0, 0]), 47);
    assert_eq!(r.get(F::ExitInstructionInfo) & 1 << 10, 0);
    let mut r = Rig::root();
    r.or(F::SecondaryControls, secondary::DESCRIPTOR_TABLE_EXITING);
    assert_eq!(r.run_guest(&[0x0f, 0x00, 0xc0]), 47);
    assert_eq!(r.get(F::ExitInstructionInfo) & 1 << 10, 1 << 10);
}

#[test]
fn real_mode_guest() {
    let mut r = real_mode();
    r.bytes(0x1_4000, &[0xb8, 0x34, 0x12, 0x50, 0x0f, 0xa2]); // mov ax, 1234h; push ax; cpuid
    r.enter();
    for _ in 0..3 {
        r.step();
    }
    assert_eq!(r.get(F::ExitReason), 10);
    assert_eq!(r.get(F::GuestRip), 0x4004);
    assert_eq!(r.ram.load::<u16>(guestmem::RamOffset(0x1_7ffe)), 0x1234);
    assert_eq!(
        r.get(F::EntryControls) & u64::from(entry::IA32E_MODE_GUEST),
        0
    );
    assert!(r.cpu().long64, "back in the 64-bit host");
}

#[test]
fn entry_failures_leave_the_guest_area_alone() {
    let mut r = Rig::root();
    r.set(F::GuestRflags, 0);
    r.set(F::EntryInterruptionInfo, 1 << 31 | 3 << 8 | 6);
    r.set(F::ExitInstructionLength, 0x77);
    r.enter();
    assert_eq!(r.rip(), EXIT_RIP);
    assert_eq!(r.get(F::ExitReason), 33 | 1 << 31);
    assert_eq!(r.get(F::ExitQualification), 0);
    assert_eq!(
        r.get(F::EntryInterruptionInfo),
        1 << 31 | 3 << 8 | 6,
        "stays valid"
    );
    assert_eq!(
        r.get(F::ExitInstructionLength),
        0x77,
        "other information is not touched"
    );
    r.set(F::GuestRflags, 2);
    r.set(F::EntryInterruptionInfo, 0);
    let slot = r.cpu().vmx.current.unwrap().slot;
    assert!(
        !r.cpu().vmx.cache.get(slot).launched,
        "a failed VMLAUNCH does not launch"
    );

    r.set(F::VmcsLinkPointer, 0x123);
    r.enter();
    assert_eq!(
        (r.get(F::ExitReason), r.get(F::ExitQualification)),
        (33 | 1 << 31, 4)
    );
    r.set(F::VmcsLinkPointer, u64::MAX);
    assert_eq!(r.run_guest(CPUID), 10);
}

#[test]
fn msr_areas() {
    let entry_at = |r: &Rig, i: u64, index: u64, value: u64| {
        r.set_qword(MSR_AREA + 16 * i, index);
        r.set_qword(MSR_AREA + 16 * i + 8, value);
    };
    let mut r = Rig::root();
    // Loaded at entry: LSTAR. Stored at exit: LSTAR, KERNEL_GS_BASE. Loaded at exit: LSTAR.
    entry_at(&r, 0, 0xc000_0082, 0x1111);
    entry_at(&r, 4, 0xc000_0082, 0);
    entry_at(&r, 5, 0xc000_0102, 0);
    entry_at(&r, 8, 0xc000_0082, 0x2222);
    for (f, v) in [
        (F::EntryMsrLoadCount, 1),
        (F::EntryMsrLoadAddress, MSR_AREA),
        (F::ExitMsrStoreCount, 2),
        (F::ExitMsrStoreAddress, MSR_AREA + 64),
        (F::ExitMsrLoadCount, 1),
        (F::ExitMsrLoadAddress, MSR_AREA + 128),
    ] {
        r.set(f, v);
    }
    r.cpu().msr.kernel_gs_base = 0x5555;
    assert_eq!(r.run_guest(CPUID), 10);
    assert_eq!(r.qword(MSR_AREA + 64 + 8), 0x1111);
    assert_eq!(r.qword(MSR_AREA + 80 + 8), 0x5555);
    assert_eq!(r.cpu().msr.lstar, 0x2222);
}

#[test]
fn msr_load_failures() {
    // SDM Vol 3 27.4: the qualification is the number of the entry.
    for (what, index, value) in [
        ("FS base", 0xc000_0100, 0),
        ("reserved bits", 1 << 32 | 0xc000_0082, 0),
        ("no such MSR", 0x1234_5678, 0),
        ("bad value", 0xc000_0082, 1 << 63),
    ] {
        let mut r = Rig::root();
        r.set_qword(MSR_AREA, 0xc000_0082);
        r.set_qword(MSR_AREA + 8, 0x1111);
        r.set_qword(MSR_AREA + 16, index);
        r.set_qword(MSR_AREA + 24, value);
        r.set(F::EntryMsrLoadCount, 2);
        r.set(F::EntryMsrLoadAddress, MSR_AREA);
        r.enter();
        assert_eq!(r.rip(), EXIT_RIP, "{what}");
        assert_eq!(
            (r.get(F::ExitReason), r.get(F::ExitQualification)),
            (34 | 1 << 31, 2),
            "{what}"
        );
    }
}

/// SDM Vol 3 27.4 and 28.4: the MSRs that no area may name. Each would be fine alone or read as something.
#[test]
fn msrs_that_no_area_may_name() {
    // The x2APIC TPR, FS base, GS base, SMBASE; a microcode update is only kept from being loaded.
    for (msr, store) in [
        (0x808, true),
        (0xc000_0100, true),
        (0xc000_0101, true),
        (0x9e, true),
        (0x79, false),
    ] {
        let mut r = Rig::root();
        r.set_qword(MSR_AREA, msr);
        r.set_qword(MSR_AREA + 8, 0);
        r.set(F::EntryMsrLoadCount, 1);
        r.set(F::EntryMsrLoadAddress, MSR_AREA);
        r.enter();
        assert_eq!(r.get(F::ExitReason), 0x8000_0022, "{msr:#x}");
        assert_eq!(r.get(F::ExitQualification), 1);
        if store {
            let mut r = Rig::root();
            r.set_qword(MSR_AREA, msr);
            r.set(F::ExitMsrStoreCount, 1);
            r.set(F::ExitMsrStoreAddress, MSR_AREA);
            r.bytes(GUEST_CODE, CPUID);
            r.enter();
            r.step();
            assert!(r.cpu().vmx.aborted(), "{msr:#x}");
        }
    }
}

/// The TSC that an exit stores is the processor's own, without the guest's offset (SDM Vol 3 26.3, RDMSR, says where
/// the offset is added).
#[test]
fn the_stored_tsc_has_no_offset() {
    let mut r = Rig::root();
    r.or(F::PrimaryControls, primary::TSC_OFFSETTING);
    r.set(F::TscOffset, 1 << 40);
    r.set_qword(MSR_AREA, 0x10);
    r.set(F::ExitMsrStoreCount, 1);
    r.set(F::ExitMsrStoreAddress, MSR_AREA);
    assert_eq!(r.run_guest(CPUID), 10);
    let stored = r.qword(MSR_AREA + 8);
    assert!((1..1 << 40).contains(&stored), "{stored:#x}");
}

#[test]
fn a_failing_exit_load_is_a_vmx_abort() {
    let mut r = Rig::root();
    r.set_qword(MSR_AREA, 0x1234_5678);
    r.set(F::ExitMsrLoadCount, 1);
    r.set(F::ExitMsrLoadAddress, MSR_AREA);
    r.bytes(GUEST_CODE, CPUID);
    r.enter();
    r.step();
    assert!(r.cpu().vmx.aborted());
    assert_eq!(
        r.ram.load::<u32>(guestmem::RamOffset(VMCS + 4)),
        4,
        "indicator"
    );
    assert_eq!(r.runner.run(), vcpu::RunExit::Shutdown);
}

#[test]
fn an_fs_base_without_selector_survives_iret() {
    // What KVM makes of its nested guest's host state: null selector, usable, DPL 0.
    let mut r = Rig::root();
    r.set(F::GuestFsSelector, 0);
    r.set(F::GuestFsBase, DATA);
    r.set_qword(DATA + 8, 0x1234);
    for (i, v) in [GUEST_CODE + 0x10, USER_CS | 3, 2, GUEST_RSP, USER_SS | 3]
        .iter()
        .enumerate()
    {
        r.set_qword(GUEST_RSP + 8 * i as u64, *v);
    }
    r.bytes(
        GUEST_CODE + 0x10,
        &[0x64, 0x48, 0x8b, 0x04, 0x25, 8, 0, 0, 0, 0x0f, 0xa2],
    ); // mov rax, fs:[8]
    assert_eq!(r.run_guest(&[0x48, 0xcf]), 10);
    assert_eq!(r.get(F::GuestRip), GUEST_CODE + 0x19);
    assert_eq!(r.cpu().regs[gpr::RAX], 0x1234);
    assert_eq!(r.get(F::GuestFsBase), DATA);
}

#[test]
fn the_launched_guest_continues_where_it_left() {
    let mut r = Rig::root();
    assert_eq!(r.run_guest(&[0x0f, 0xa2, 0x0f, 0x01, 0xc1]), 10);
    let next = r.get(F::GuestRip) + r.get(F::ExitInstructionLength);
    r.set(F::GuestRip, next);
    r.enter();
    r.step();
    assert_eq!(r.get(F::ExitReason), 18, "VMCALL");
}
