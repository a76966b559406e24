//! EPT, VPID, the APIC-access page, VMCS shadowing (SDM Vol 3 25.10, chapters 29 and 30).

use guestmem::RamOffset;
use x86defs::vmx::VmcsField as F;
use x86defs::vmx::control::{primary as p, secondary as s};

use super::rig::*;
use crate::cpu::gpr;

/// mov eax, [rdx]; vmcall
const LOAD: &[u8] = &[0x8b, 0x02, 0x0f, 0x01, 0xc1];
/// mov [rdx], eax; vmcall
const STORE: &[u8] = &[0x89, 0x02, 0x0f, 0x01, 0xc1];
/// jmp rdx
const JUMP: &[u8] = &[0xff, 0xe2];

const TARGET: u64 = EPT_SMALL + 0x3000;
/// Another 2-MByte page.
const ELSEWHERE: u64 = 0x60_0000;
const TARGET_ENTRY: u64 = EPT_PT + 8 * 3;

fn guest(entry: u64) -> Rig {
    let mut r = Rig::root();
    r.cpu().regs[gpr::RDX] = TARGET;
    r.set_qword(TARGET_ENTRY, entry);
    r
}

#[test]
fn ept_violations() {
    for (what, code, rights, access) in [
        ("read of an absent page", LOAD, 0, 1),
        ("write of an absent page", STORE, 0, 2),
        ("fetch from an absent page", JUMP, 0, 4),
        ("write of a read-only page", STORE, 5, 2),
        ("fetch from a page without execute", JUMP, 3, 4),
        ("read of an execute-only page", LOAD, 4, 1),
    ] {
        let mut r = guest(if rights == 0 {
            0
        } else {
            TARGET | 0x30 | rights
        });
        assert_eq!(r.run_guest(code), 48, "{what}");
        let q = r.get(F::ExitQualification);
        assert_eq!(q & 7, access, "{what}");
        assert_eq!(q >> 3 & 7, rights, "{what}: what was allowed");
        assert_eq!(q >> 7 & 3, 3, "{what}: the translation of a linear address");
        assert_eq!(r.get(F::GuestLinearAddress), TARGET, "{what}");
        assert_eq!(r.get(F::GuestPhysicalAddress), TARGET, "{what}");
        assert_eq!(r.get(F::ExitInterruptionInfo) >> 31, 0, "{what}");
    }
}

#[test]
fn ept_violation_on_a_page_table() {
    let mut r = Rig::root();
    // The guest's page tables for [rdx] lie in an absent page.
    r.set_qword(0x2000 + 8, TARGET | 7);
    r.set_qword(TARGET_ENTRY, 0);
    r.cpu().regs[gpr::RDX] = 1 << 30;
    assert_eq!(r.run_guest(LOAD), 48);
    let q = r.get(F::ExitQualification);
    assert_eq!(
        q >> 7 & 3,
        1,
        "linear address valid, but not its translation"
    );
    assert_eq!(r.get(F::GuestPhysicalAddress), TARGET);
    assert_eq!(r.get(F::GuestLinearAddress), 1 << 30);
}

#[test]
fn ept_misconfigurations() {
    // SDM Vol 3 29.3.3.1.
    for (what, entry) in [
        ("write without read", TARGET | 0x32),
        ("write and execute without read", TARGET | 0x36),
        ("memory type 2", TARGET | 2 << 3 | 7),
        ("memory type 7", TARGET | 7 << 3 | 7),
        ("address beyond the width", 1 << 40 | 0x37),
    ] {
        let mut r = guest(entry);
        assert_eq!(r.run_guest(LOAD), 49, "{what}");
        assert_eq!(r.get(F::GuestPhysicalAddress), TARGET, "{what}");
    }
}

#[test]
fn a_repaired_violation_needs_no_invept() {
    // An EPT violation invalidates what it used (29.4.3.1).
    let mut r = guest(TARGET | 0x35);
    r.cpu().regs[gpr::RAX] = 0x1234;
    r.bytes(GUEST_CODE, &[0x8b, 0x0a, 0x89, 0x02, 0x0f, 0x01, 0xc1]); // mov ecx,[rdx]; mov [rdx],eax
    r.enter();
    r.step();
    r.step();
    assert_eq!(r.get(F::ExitReason), 48);
    r.set_qword(TARGET_ENTRY, TARGET | 0x37);
    r.enter();
    r.step();
    r.step();
    assert_eq!(r.get(F::ExitReason), 18);
    assert_eq!(r.ram.load::<u32>(RamOffset(TARGET)), 0x1234);
}

#[test]
fn invept_makes_a_change_visible() {
    let mut r = guest(TARGET | 0x37);
    assert_eq!(r.run_guest(LOAD), 18);
    r.set_qword(TARGET_ENTRY, 0);
    r.cpu().regs[gpr::RBX] = 1;
    r.set_qword(DATA + 8, 0);
    r.memory_operand(&[0x66, 0x0f, 0x38, 0x80, 0x18], EPTP);
    assert_eq!(r.outcome(), Outcome::Succeed);
    r.cpu().regs[gpr::RDX] = TARGET;
    r.set(F::GuestRip, GUEST_CODE);
    assert_eq!(r.run_guest(LOAD), 48);
}

#[test]
fn ept_accessed_and_dirty() {
    let mut r = guest(TARGET | 0x37);
    r.set(F::EptPointer, EPTP | 1 << 6);
    assert_eq!(r.run_guest(LOAD), 18);
    assert_eq!(r.qword(TARGET_ENTRY) >> 8 & 3, 1, "accessed");
    r.cpu().regs[gpr::RDX] = TARGET;
    r.set(F::GuestRip, GUEST_CODE);
    assert_eq!(r.run_guest(STORE), 18);
    assert_eq!(r.qword(TARGET_ENTRY) >> 8 & 3, 3, "dirty too");
}

#[test]
fn two_guests_with_their_own_mappings() {
    // VPIDs keep translations of the same linear address apart, also against the host's.
    let mut r = Rig::root();
    r.set_qword(TARGET_ENTRY, (EPT_SMALL + 0x5000) | 0x37);
    r.ram.store::<u32>(RamOffset(TARGET), 0x1111);
    r.ram.store::<u32>(RamOffset(EPT_SMALL + 0x5000), 0x2222);
    r.cpu().regs[gpr::RDX] = TARGET;
    assert_eq!(r.run_guest(LOAD), 18);
    assert_eq!(r.cpu().regs[gpr::RAX], 0x2222);
    r.cpu().regs[gpr::RDX] = TARGET;
    r.host_instruction(&[0x8b, 0x02]);
    assert_eq!(r.cpu().regs[gpr::RAX], 0x1111);
    r.clear(F::SecondaryControls, s::ENABLE_EPT | s::UNRESTRICTED_GUEST);
    r.set(F::Vpid, 2);
    r.set(F::GuestRip, GUEST_CODE);
    r.cpu().regs[gpr::RDX] = TARGET;
    assert_eq!(r.run_guest(LOAD), 18);
    assert_eq!(r.cpu().regs[gpr::RAX], 0x1111, "VPID 2 without EPT");
}

#[test]
fn without_vpid_entries_flush() {
    let mut r = Rig::root();
    r.clear(
        F::SecondaryControls,
        s::ENABLE_VPID | s::ENABLE_EPT | s::UNRESTRICTED_GUEST,
    );
    r.cpu().regs[gpr::RDX] = TARGET;
    r.ram.store::<u32>(RamOffset(TARGET), 0x1111);
    assert_eq!(r.run_guest(LOAD), 18);
    // The guest's mapping changes between two entries without any invalidation.
    r.set_qword(0x3000 + 8 * (EPT_SMALL >> 21), ELSEWHERE | 0x87);
    r.set(F::GuestRip, GUEST_CODE);
    r.cpu().regs[gpr::RDX] = TARGET;
    r.ram
        .store::<u32>(RamOffset(TARGET - EPT_SMALL + ELSEWHERE), 0x3333);
    assert_eq!(r.run_guest(LOAD), 18);
    assert_eq!(r.cpu().regs[gpr::RAX], 0x3333);
}

#[test]
fn write_protect_follows_the_guest_entered() {
    // The same VPID entered with another CR0.WP must not profit from what was cached without it.
    let mut r = Rig::root();
    r.set_qword(0x3000 + 8 * (EPT_SMALL >> 21), EPT_SMALL | 0x85); // read-only in the guest's tables
    r.cpu().regs[gpr::RDX] = TARGET;
    assert_eq!(r.run_guest(STORE), 18, "WP is 0");
    r.set(F::GuestCr0, 0x8001_0033);
    r.set(F::ExceptionBitmap, 1 << 14);
    r.set(F::GuestRip, GUEST_CODE);
    r.cpu().regs[gpr::RDX] = TARGET;
    assert_eq!(r.run_guest(STORE), 0, "WP is 1: #PF");
}

fn apic_guest() -> Rig {
    let mut r = guest(TARGET | 0x37);
    r.or(F::PrimaryControls, p::TPR_SHADOW);
    r.or(F::SecondaryControls, s::VIRTUALIZE_APIC_ACCESSES);
    r.set(F::VirtualApicAddress, VIRTUAL_APIC);
    r.set(F::ApicAccessAddress, TARGET);
    r
}

#[test]
fn apic_access_page() {
    for (what, code, offset, kind) in [("read", LOAD, 0x20, 0), ("write", STORE, 0x300, 1)] {
        let mut r = apic_guest();
        r.cpu().regs[gpr::RDX] = TARGET + offset;
        assert_eq!(r.run_guest(code), 44, "{what}");
        assert_eq!(r.get(F::ExitQualification), offset | kind << 12, "{what}");
    }
    let mut r = apic_guest();
    assert_eq!(r.run_guest(JUMP), 44, "fetch");
    assert_eq!(r.get(F::ExitQualification), 2 << 12);

    let mut r = apic_guest();
    r.set_qword(VIRTUAL_APIC + 0x80, 0x60);
    r.cpu().regs[gpr::RDX] = TARGET + 0x80;
    assert_eq!(
        r.run_guest(LOAD),
        18,
        "the TPR is read from the virtual-APIC page"
    );
    assert_eq!(r.cpu().regs[gpr::RAX], 0x60);

    let mut r = apic_guest();
    r.cpu().regs[gpr::RDX] = TARGET + 0x80;
    r.cpu().regs[gpr::RAX] = 0xffff_ff30;
    assert_eq!(r.run_guest(STORE), 18);
    assert_eq!(
        r.ram.load::<u32>(RamOffset(VIRTUAL_APIC + 0x80)),
        0x30,
        "bytes 3:1 cleared"
    );

    let mut r = apic_guest();
    r.set(F::TprThreshold, 4);
    r.set_qword(VIRTUAL_APIC + 0x80, 0x60);
    r.cpu().regs[gpr::RDX] = TARGET + 0x80;
    r.cpu().regs[gpr::RAX] = 0x30;
    assert_eq!(r.run_guest(STORE), 43, "below the threshold");
    assert_eq!(r.get(F::GuestRip), GUEST_CODE + 2);

    let mut r = apic_guest();
    r.set(F::TprThreshold, 4);
    assert_eq!(r.run_guest(LOAD), 43, "after VM entry (27.7.7)");
    assert_eq!(r.get(F::GuestRip), GUEST_CODE);
}

#[test]
fn vmcs_shadowing() {
    let shadowed = |clear_bits: &[u32]| {
        let mut r = Rig::root();
        r.or(F::SecondaryControls, s::VMCS_SHADOWING);
        r.set(F::VmreadBitmap, VMREAD_BITMAP);
        r.set(F::VmwriteBitmap, VMWRITE_BITMAP);
        r.set(F::VmcsLinkPointer, SHADOW_VMCS);
        for bitmap in [VMREAD_BITMAP, VMWRITE_BITMAP] {
            r.bytes(bitmap, &[0xff; 4096]);
            for bit in clear_bits {
                r.ram
                    .store::<u8>(RamOffset(bitmap + u64::from(bit / 8)), !(1 << (bit & 7)));
            }
        }
        r
    };
    let rip = F::GuestRip.encoding();
    let mut r = shadowed(&[rip]);
    r.cpu().regs[gpr::RBX] = u64::from(rip);
    r.cpu().regs[gpr::RAX] = 0x4242;
    // vmwrite rbx, rax; xor eax, eax; vmread rax, rbx; vmcall
    assert_eq!(
        r.run_guest(&[
            0x0f, 0x79, 0xd8, 0x31, 0xc0, 0x0f, 0x78, 0xd8, 0x0f, 0x01, 0xc1
        ]),
        18
    );
    assert_eq!(r.cpu().regs[gpr::RAX], 0x4242);
    assert_eq!(
        r.get(F::GuestRip),
        GUEST_CODE + 8,
        "the guest's own VMCS is not the one written"
    );
    r.memory_operand(&[0x66, 0x0f, 0xc7, 0x30], SHADOW_VMCS);
    r.memory_operand(&[0x0f, 0xc7, 0x30], SHADOW_VMCS);
    assert_eq!(r.get(F::GuestRip), 0x4242);

    let mut r = shadowed(&[]);
    r.cpu().regs[gpr::RBX] = u64::from(rip);
    assert_eq!(r.run_guest(&[0x0f, 0x78, 0xd8]), 23, "bit set: exits");

    let mut r = shadowed(&[0x1ffe]);
    r.cpu().regs[gpr::RBX] = 0x1ffe;
    // vmread; pushfq; pop rcx; vmcall
    assert_eq!(
        r.run_guest(&[0x0f, 0x78, 0xd8, 0x9c, 0x59, 0x0f, 0x01, 0xc1]),
        18
    );
    assert_eq!(r.cpu().regs[gpr::RCX] & 0x8d5, 0x40, "VMfailValid");

    let mut r = shadowed(&[rip]);
    r.set(F::VmcsLinkPointer, u64::MAX);
    r.cpu().regs[gpr::RBX] = u64::from(rip);
    assert_eq!(
        r.run_guest(&[0x0f, 0x78, 0xd8, 0x9c, 0x59, 0x0f, 0x01, 0xc1]),
        18
    );
    assert_eq!(
        r.cpu().regs[gpr::RCX] & 0x8d5,
        1,
        "VMfailInvalid without a shadow VMCS"
    );
}
