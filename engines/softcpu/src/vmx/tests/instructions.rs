//! VMX instructions: #UD, #GP, VMfail numbers (SDM Vol 3 chapter 31).

use guestmem::RamOffset;
use x86defs::exception::{GP, UD};
use x86defs::vmx::VmcsField as F;

use super::rig::*;
use crate::cpu::{Shadow, gpr, pending};
use crate::vmx::vmcs::region::REVISION;

const VMXON_RAX: &[u8] = &[0xf3, 0x0f, 0xc7, 0x30];
const VMXOFF_CODE: &[u8] = &[0x0f, 0x01, 0xc4];
const VMPTRLD: &[u8] = &[0x0f, 0xc7, 0x30];
const VMPTRST: &[u8] = &[0x0f, 0xc7, 0x38];
const VMCLEAR: &[u8] = &[0x66, 0x0f, 0xc7, 0x30];
/// VMREAD RAX, RBX and VMWRITE RBX, RAX: the encoding in RBX.
const VMREAD: &[u8] = &[0x0f, 0x78, 0xd8];
const VMWRITE: &[u8] = &[0x0f, 0x79, 0xd8];
const VMLAUNCH: &[u8] = &[0x0f, 0x01, 0xc2];
const VMRESUME: &[u8] = &[0x0f, 0x01, 0xc3];
const VMCALL: &[u8] = &[0x0f, 0x01, 0xc1];
const VMFUNC: &[u8] = &[0x0f, 0x01, 0xd4];
/// INVEPT and INVVPID RBX, [RAX].
const INVEPT: &[u8] = &[0x66, 0x0f, 0x38, 0x80, 0x18];
const INVVPID: &[u8] = &[0x66, 0x0f, 0x38, 0x81, 0x18];

use Outcome::{Exception, FailInvalid, FailValid, Succeed};

#[test]
fn outside_vmx_operation_everything_but_vmxon_is_ud() {
    for code in [
        VMXOFF_CODE,
        VMPTRLD,
        VMPTRST,
        VMCLEAR,
        VMREAD,
        VMWRITE,
        VMLAUNCH,
        VMRESUME,
        VMCALL,
        VMFUNC,
        INVEPT,
        INVVPID,
    ] {
        let mut r = Rig::new();
        r.memory_operand(code, VMCS);
        assert_eq!(r.outcome(), Exception(UD), "{code:x?}");
    }
}

#[test]
fn vmxon() {
    let mut r = Rig::new();
    r.cpu().cr4 &= !0x2000;
    r.memory_operand(VMXON_RAX, VMXON);
    assert_eq!(r.outcome(), Exception(UD), "CR4.VMXE clear");

    let mut r = Rig::new();
    r.cpu().msr.feature_control = 1;
    r.memory_operand(VMXON_RAX, VMXON);
    assert_eq!(r.outcome(), Exception(GP), "not enabled outside SMX");
    let mut r = Rig::new();
    r.cpu().cr0 &= !0x20;
    r.memory_operand(VMXON_RAX, VMXON);
    assert_eq!(r.outcome(), Exception(GP), "CR0.NE clear");

    for (what, pointer) in [
        ("unaligned", VMXON + 8),
        ("beyond", 1 << 40),
        ("wrong revision", DATA),
        ("shadow", SHADOW_VMCS),
    ] {
        let mut r = Rig::new();
        r.memory_operand(VMXON_RAX, pointer);
        assert_eq!(r.outcome(), FailInvalid, "{what}");
    }

    let mut r = Rig::new();
    r.memory_operand(VMXON_RAX, VMXON);
    assert_eq!(r.outcome(), Succeed);
    r.memory_operand(VMXON_RAX, VMXON);
    assert_eq!(
        r.outcome(),
        FailInvalid,
        "in root operation without a current VMCS"
    );
    r.memory_operand(VMPTRLD, VMCS);
    r.memory_operand(VMXON_RAX, VMXON);
    assert_eq!(r.outcome(), FailValid(15));
    r.host_instruction(VMXOFF_CODE);
    assert_eq!(r.outcome(), Succeed);
    assert!(!r.cpu().vmx.in_operation());
}

#[test]
fn fixed_bits_hold_in_vmx_operation() {
    // SDM Vol 3 24.8: clearing CR4.VMXE or CR0.PE, PG, NE is #GP.
    let mut r = Rig::root();
    r.cpu().regs[gpr::RAX] = 0x620;
    r.host_instruction(&[0x0f, 0x22, 0xe0]); // mov cr4, rax
    assert_eq!(r.outcome(), Exception(GP));
    let mut r = Rig::root();
    r.cpu().regs[gpr::RAX] = 0x8000_0013;
    r.host_instruction(&[0x0f, 0x22, 0xc0]); // mov cr0, rax
    assert_eq!(r.outcome(), Exception(GP));
}

#[test]
fn pointers() {
    let mut r = Rig::root();
    for (code, value, expected) in [
        (VMPTRLD, VMCS + 1, FailValid(9)),
        (VMPTRLD, 1 << 40, FailValid(9)),
        (VMPTRLD, VMXON, FailValid(10)),
        (VMPTRLD, DATA, FailValid(11)),
        (VMPTRLD, 0xfee0_0000, FailValid(11)),
        (VMCLEAR, VMCS + 1, FailValid(2)),
        (VMCLEAR, 1 << 40, FailValid(2)),
        (VMCLEAR, VMXON, FailValid(3)),
        (VMPTRLD, SHADOW_VMCS, Succeed),
        (VMPTRLD, OTHER_VMCS, Succeed),
    ] {
        r.memory_operand(code, value);
        assert_eq!(r.outcome(), expected, "{code:x?} {value:#x}");
    }
    r.memory_operand(VMPTRST, 0);
    assert_eq!(r.qword(DATA), OTHER_VMCS);
    r.memory_operand(VMCLEAR, OTHER_VMCS);
    assert_eq!(r.outcome(), Succeed);
    r.memory_operand(VMPTRST, 0);
    assert_eq!(
        r.qword(DATA),
        u64::MAX,
        "VMCLEAR of the current VMCS leaves none"
    );
    r.memory_operand(VMPTRLD, VMCS + 1);
    assert_eq!(
        r.outcome(),
        FailInvalid,
        "no current VMCS to hold the error"
    );
}

#[test]
fn vmread_and_vmwrite() {
    let mut r = Rig::root();
    let mut access = |code: &[u8], encoding: u64, value: u64| {
        r.cpu().regs[gpr::RBX] = encoding;
        r.cpu().regs[gpr::RAX] = value;
        r.host_instruction(code);
        (r.outcome(), r.cpu().regs[gpr::RAX])
    };
    assert_eq!(access(VMWRITE, 0x681c, 0x1234_5678_9abc).0, Succeed);
    assert_eq!(access(VMREAD, 0x681c, 0), (Succeed, 0x1234_5678_9abc));
    assert_eq!(access(VMWRITE, 0x2010, 0x1_0000_0002).0, Succeed);
    assert_eq!(
        access(VMREAD, 0x2011, 0),
        (Succeed, 1),
        "high half of the TSC offset"
    );
    for encoding in [0x9999, 0x4003, 0x2812, 0x1_681c, 1 << 32 | 0x681c] {
        assert_eq!(
            access(VMREAD, encoding, 7),
            (FailValid(12), 7),
            "{encoding:#x}"
        );
        assert_eq!(
            access(VMWRITE, encoding, 7).0,
            FailValid(12),
            "{encoding:#x}"
        );
    }
    // IA32_VMX_MISC bit 29: VM-exit information can be written.
    assert_eq!(access(VMWRITE, 0x4402, 0x33).0, Succeed);
    assert_eq!(access(VMREAD, 0x4402, 0), (Succeed, 0x33));

    r.set(F::GuestRsp, 0x77);
    r.cpu().regs[gpr::RBX] = 0x681c;
    r.memory_operand(&[0x0f, 0x78, 0x18], 0); // vmread [rax], rbx
    assert_eq!(r.qword(DATA), 0x77);
    r.memory_operand(&[0x0f, 0x79, 0x18], 0x99); // vmwrite rbx, [rax]
    assert_eq!(r.get(F::GuestRsp), 0x99);

    let mut none = Rig::new();
    none.memory_operand(VMXON_RAX, VMXON);
    none.cpu().regs[gpr::RBX] = 0x681c;
    none.host_instruction(VMREAD);
    assert_eq!(none.outcome(), FailInvalid, "no current VMCS");
}

#[test]
fn a_cleared_vmcs_keeps_its_fields() {
    let mut r = Rig::root();
    r.set(F::GuestRsp, 0xabc);
    r.memory_operand(VMCLEAR, VMCS);
    assert_eq!(r.ram.load::<u32>(RamOffset(VMCS)), REVISION);
    r.memory_operand(VMPTRLD, VMCS);
    assert_eq!(r.get(F::GuestRsp), 0xabc);
}

#[test]
fn launch_state_and_entry_errors() {
    let mut r = Rig::root();
    r.host_instruction(VMRESUME);
    assert_eq!(r.outcome(), FailValid(5));
    assert_eq!(r.run_guest(&[0x0f, 0xa2]), 10);
    r.host_instruction(VMLAUNCH);
    assert_eq!(r.outcome(), FailValid(4));
    r.memory_operand(VMCLEAR, VMCS);
    r.memory_operand(VMPTRLD, VMCS);
    r.host_instruction(VMRESUME);
    assert_eq!(
        r.outcome(),
        FailValid(5),
        "VMCLEAR makes the launch state clear"
    );

    r.set(F::PinControls, 0);
    r.host_instruction(VMLAUNCH);
    assert_eq!(r.outcome(), FailValid(7));
    r.set(F::PinControls, 0x16);
    r.set(F::HostCr4, 0);
    r.host_instruction(VMLAUNCH);
    assert_eq!(r.outcome(), FailValid(8));
    r.set(F::HostCr4, 0x2620);
    r.cpu().shadow = Shadow::MovSs;
    r.cpu().pending |= pending::SHADOW;
    r.host_instruction(VMLAUNCH);
    assert_eq!(r.outcome(), FailValid(26));

    r.memory_operand(VMPTRLD, SHADOW_VMCS);
    r.host_instruction(VMLAUNCH);
    assert_eq!(r.outcome(), FailInvalid, "a shadow VMCS");
    r.memory_operand(VMCLEAR, SHADOW_VMCS);
    r.host_instruction(VMLAUNCH);
    assert_eq!(r.outcome(), FailInvalid, "no current VMCS");
}

#[test]
fn checks_made_before_are_made_again_after_a_write() {
    let mut r = Rig::root();
    assert_eq!(r.run_guest(&[0x0f, 0xa2]), 10);
    for (f, bad, error) in [
        (F::ExitControls, 0, 7),
        (F::HostRip, 1 << 63, 8),
        (F::EntryControls, 0, 7),
    ] {
        let good = r.get(f);
        r.cpu().regs[gpr::RBX] = u64::from(f.encoding());
        r.cpu().regs[gpr::RAX] = bad;
        r.host_instruction(VMWRITE);
        r.enter();
        assert_eq!(r.outcome(), FailValid(error), "{f:?}");
        r.set(f, good);
        assert_eq!(r.run_guest(&[0x0f, 0xa2]), 10);
    }
}

#[test]
fn vmcall_vmfunc_and_privilege() {
    let mut r = Rig::root();
    r.host_instruction(VMCALL);
    assert_eq!(r.outcome(), FailValid(1));
    r.host_instruction(VMFUNC);
    assert_eq!(r.outcome(), Exception(UD));
    let mut r = Rig::root();
    r.cpu().cpl = 3;
    r.memory_operand(VMPTRLD, VMCS);
    assert_eq!(r.outcome(), Exception(GP), "CPL 3");
}

#[test]
fn invept_and_invvpid() {
    let mut r = Rig::root();
    let mut run = |code: &[u8], kind: u64, low: u64, high: u64| {
        r.set_qword(DATA + 8, high);
        r.cpu().regs[gpr::RBX] = kind;
        r.memory_operand(code, low);
        r.outcome()
    };
    assert_eq!(run(INVEPT, 0, EPTP, 0), FailValid(28));
    assert_eq!(run(INVEPT, 3, EPTP, 0), FailValid(28));
    assert_eq!(run(INVEPT, 1, EPTP | 1, 0), FailValid(28), "memory type 7");
    assert_eq!(run(INVEPT, 1, EPTP, 0), Succeed);
    assert_eq!(run(INVEPT, 2, 0, 0), Succeed);
    assert_eq!(run(INVVPID, 4, 1, 0), FailValid(28));
    assert_eq!(run(INVVPID, 0, 1, 1 << 63), FailValid(28), "not canonical");
    assert_eq!(run(INVVPID, 0, 0, 0), FailValid(28), "VPID 0");
    assert_eq!(run(INVVPID, 1, 0, 0), FailValid(28), "VPID 0");
    assert_eq!(run(INVVPID, 3, 0x1_0001, 0), FailValid(28), "reserved bits");
    for kind in 0..4 {
        assert_eq!(run(INVVPID, kind, 1, 0), Succeed, "type {kind}");
    }
    assert_eq!(
        run(INVVPID, 2, 0, 0),
        Succeed,
        "all-context ignores the VPID"
    );
}
