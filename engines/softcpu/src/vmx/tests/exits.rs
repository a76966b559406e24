//! Exits by instructions: reason, qualification, length, instruction information (SDM Vol 3 26.1, 28.2).

use guestmem::RamOffset;
use x86defs::exception::{GP, UD};
use x86defs::vmx::control::{primary as p, secondary as s};
use x86defs::vmx::{ExitReason, VmcsField as F};

use super::rig::*;
use crate::cpu::gpr;

/// Code that ends a guest which did not exit before: VMCALL.
const END: [u8; 3] = [0x0f, 0x01, 0xc1];

struct Case {
    what: &'static str,
    code: &'static [u8],
    primary: u32,
    secondary: u32,
    reason: u32,
    qualification: u64,
}

const fn case(
    what: &'static str,
    code: &'static [u8],
    primary: u32,
    secondary: u32,
    reason: u32,
    qualification: u64,
) -> Case {
    Case {
        what,
        code,
        primary,
        secondary,
        reason,
        qualification,
    }
}

/// Appendix C of SDM Vol 3, with the controls that bring each exit about.
const CASES: &[Case] = &[
    case("monitor", &[0x0f, 0x01, 0xc8], p::MONITOR_EXITING, 0, 39, 0),
    case("mwait", &[0x0f, 0x01, 0xc9], p::MWAIT_EXITING, 0, 36, 0),
    case("cpuid", &[0x0f, 0xa2], 0, 0, 10, 0),
    case("hlt", &[0xf4], p::HLT_EXITING, 0, 12, 0),
    case("invd", &[0x0f, 0x08], 0, 0, 13, 0),
    case(
        "invlpg [rdx+0x10]",
        &[0x0f, 0x01, 0x7a, 0x10],
        p::INVLPG_EXITING,
        0,
        14,
        DATA + 0x10,
    ),
    case("rdpmc", &[0x0f, 0x33], p::RDPMC_EXITING, 0, 15, 0),
    case("rdtsc", &[0x0f, 0x31], p::RDTSC_EXITING, 0, 16, 0),
    case("vmcall", &[0x0f, 0x01, 0xc1], 0, 0, 18, 0),
    case(
        "vmclear [rdx+0x20]",
        &[0x66, 0x0f, 0xc7, 0x72, 0x20],
        0,
        0,
        19,
        0x20,
    ),
    case("vmlaunch", &[0x0f, 0x01, 0xc2], 0, 0, 20, 0),
    case(
        "vmptrld [rdx-8]",
        &[0x0f, 0xc7, 0x72, 0xf8],
        0,
        0,
        21,
        -8i64 as u64,
    ),
    case("vmptrst [rdx]", &[0x0f, 0xc7, 0x3a], 0, 0, 22, 0),
    case("vmread rax, rbx", &[0x0f, 0x78, 0xd8], 0, 0, 23, 0),
    case("vmresume", &[0x0f, 0x01, 0xc3], 0, 0, 24, 0),
    case("vmwrite rbx, rax", &[0x0f, 0x79, 0xd8], 0, 0, 25, 0),
    case("vmxoff", &[0x0f, 0x01, 0xc4], 0, 0, 26, 0),
    case("vmxon [rdx]", &[0xf3, 0x0f, 0xc7, 0x32], 0, 0, 27, 0),
    case(
        "mov cr3, rcx",
        &[0x0f, 0x22, 0xd9],
        p::CR3_LOAD_EXITING,
        0,
        28,
        0x103,
    ),
    case(
        "mov r9, cr3",
        &[0x41, 0x0f, 0x20, 0xd9],
        p::CR3_STORE_EXITING,
        0,
        28,
        0x913,
    ),
    case(
        "mov cr8, rbx",
        &[0x44, 0x0f, 0x22, 0xc3],
        p::CR8_LOAD_EXITING,
        0,
        28,
        0x308,
    ),
    case(
        "mov rbx, cr8",
        &[0x44, 0x0f, 0x20, 0xc3],
        p::CR8_STORE_EXITING,
        0,
        28,
        0x318,
    ),
    case(
        "mov dr7, rsi",
        &[0x0f, 0x23, 0xfe],
        p::MOV_DR_EXITING,
        0,
        29,
        0x607,
    ),
    case(
        "mov rsi, dr6",
        &[0x0f, 0x21, 0xf6],
        p::MOV_DR_EXITING,
        0,
        29,
        0x616,
    ),
    case(
        "in al, 0x60",
        &[0xe4, 0x60],
        p::UNCONDITIONAL_IO_EXITING,
        0,
        30,
        0x60_0048,
    ),
    case(
        "out 0x70, eax",
        &[0xe7, 0x70],
        p::UNCONDITIONAL_IO_EXITING,
        0,
        30,
        0x70_0043,
    ),
    case(
        "out dx, ax",
        &[0x66, 0xef],
        p::UNCONDITIONAL_IO_EXITING,
        0,
        30,
        (DATA & 0xffff) << 16 | 1,
    ),
    case("rdmsr", &[0x0f, 0x32], 0, 0, 31, 0),
    case("wrmsr", &[0x0f, 0x30], 0, 0, 32, 0),
    case("pause", &[0xf3, 0x90], p::PAUSE_EXITING, 0, 40, 0),
    case(
        "sgdt [rdx]",
        &[0x0f, 0x01, 0x02],
        0,
        s::DESCRIPTOR_TABLE_EXITING,
        46,
        0,
    ),
    case(
        "lidt [rdx+1]",
        &[0x0f, 0x01, 0x5a, 0x01],
        0,
        s::DESCRIPTOR_TABLE_EXITING,
        46,
        1,
    ),
    case(
        "str eax",
        &[0x0f, 0x00, 0xc8],
        0,
        s::DESCRIPTOR_TABLE_EXITING,
        47,
        0,
    ),
    case(
        "invept rbx, [rdx]",
        &[0x66, 0x0f, 0x38, 0x80, 0x1a],
        0,
        0,
        50,
        0,
    ),
    case("rdtscp", &[0x0f, 0x01, 0xf9], p::RDTSC_EXITING, 0, 51, 0),
    case(
        "invvpid rbx, [rdx]",
        &[0x66, 0x0f, 0x38, 0x81, 0x1a],
        0,
        0,
        53,
        0,
    ),
    case("wbinvd", &[0x0f, 0x09], 0, s::WBINVD_EXITING, 54, 0),
    case(
        "rdrand eax",
        &[0x0f, 0xc7, 0xf0],
        0,
        s::RDRAND_EXITING,
        57,
        0,
    ),
    case(
        "invpcid rbx, [rdx]",
        &[0x66, 0x0f, 0x38, 0x82, 0x1a],
        p::INVLPG_EXITING,
        0,
        58,
        0,
    ),
    case(
        "rdseed eax",
        &[0x0f, 0xc7, 0xf8],
        0,
        s::RDSEED_EXITING,
        61,
        0,
    ),
];

fn run(c: &Case, primary: u32, secondary: u32) -> (Rig, u32) {
    let mut r = Rig::root();
    r.or(F::PrimaryControls, primary);
    r.or(F::SecondaryControls, secondary);
    let cpu = r.cpu();
    cpu.regs[gpr::RDX] = DATA;
    cpu.regs[gpr::RCX] = 0xc000_0082;
    let mut code = c.code.to_vec();
    code.extend(END);
    let reason = r.run_guest(&code);
    (r, reason)
}

#[test]
fn reasons_qualifications_and_lengths() {
    for c in CASES {
        let (mut r, reason) = run(c, c.primary, c.secondary);
        assert_eq!(reason, c.reason, "{}", c.what);
        assert_eq!(r.get(F::ExitQualification), c.qualification, "{}", c.what);
        assert_eq!(
            r.get(F::ExitInstructionLength),
            c.code.len() as u64,
            "{}",
            c.what
        );
        assert_eq!(
            r.get(F::GuestRip),
            GUEST_CODE,
            "{}: a fault-like exit",
            c.what
        );
        assert_eq!(r.get(F::ExitInterruptionInfo) >> 31, 0, "{}", c.what);
    }
}

#[test]
fn without_the_control_there_is_no_exit() {
    // HLT and RDPMC do not go on to the next instruction by themselves.
    let goes_on = |c: &&Case| (c.primary | c.secondary) != 0 && !matches!(c.reason, 12 | 15);
    for c in CASES.iter().filter(goes_on) {
        if matches!(
            c.what,
            "mov cr3, rcx"
                | "lidt [rdx+1]"
                | "mov dr7, rsi"
                | "mov cr8, rbx"
                | "invpcid rbx, [rdx]"
                | "monitor"
                | "mwait"
        ) {
            // Their operands are not valid ones here.
            continue;
        }
        let (_, reason) = run(c, 0, 0);
        assert_eq!(reason, 18, "{}", c.what);
    }
}

/// Runs `code` with RDX pointing at [`DATA`] and gives the instruction-information field.
fn information(code: &[u8], secondary: u32) -> u64 {
    let mut r = Rig::root();
    r.or(F::SecondaryControls, secondary);
    r.or(
        F::PrimaryControls,
        p::UNCONDITIONAL_IO_EXITING | p::INVLPG_EXITING,
    );
    r.cpu().regs[gpr::RDX] = DATA;
    r.run_guest(code);
    r.get(F::ExitInstructionInfo)
}

#[test]
fn instruction_information() {
    let dt = s::DESCRIPTOR_TABLE_EXITING;
    // Tables 28-8 to 28-14. 64-bit addresses: bits 9:7 = 2. Segment DS: bits 17:15 = 3. No index: bit 22; no
    // base: bit 27.
    let flat = 2 << 7 | 3 << 15;
    for (what, code, secondary, expected) in [
        (
            "vmptrld [rdx]",
            &[0x0f, 0xc7, 0x32][..],
            0,
            flat | 2 << 23 | 1 << 22,
        ),
        (
            "vmptrld [rsp+rcx*4]",
            &[0x0f, 0xc7, 0x34, 0x8c],
            0,
            2 << 7 | 2 << 15 | 2 | 1 << 18 | 4 << 23,
        ),
        (
            "vmptrld fs:[r9]",
            &[0x64, 0x41, 0x0f, 0xc7, 0x31],
            0,
            2 << 7 | 4 << 15 | 1 << 22 | 9 << 23,
        ),
        (
            "vmptrld [edx]",
            &[0x67, 0x0f, 0xc7, 0x32],
            0,
            1 << 7 | 3 << 15 | 1 << 22 | 2 << 23,
        ),
        ("vmread rax, rbx", &[0x0f, 0x78, 0xd8], 0, 1 << 10 | 3 << 28),
        (
            "vmread [rdx], r10",
            &[0x44, 0x0f, 0x78, 0x12],
            0,
            flat | 1 << 22 | 2 << 23 | 10 << 28,
        ),
        (
            "vmwrite rbx, r8",
            &[0x41, 0x0f, 0x79, 0xd8],
            0,
            1 << 10 | 8 << 3 | 3 << 28,
        ),
        (
            "invept rbx, [rdx]",
            &[0x66, 0x0f, 0x38, 0x80, 0x1a],
            0,
            flat | 1 << 22 | 2 << 23 | 3 << 28,
        ),
        (
            "invpcid rbx, [rdx]",
            &[0x66, 0x0f, 0x38, 0x82, 0x1a],
            0,
            flat | 1 << 22 | 2 << 23 | 3 << 28,
        ),
        (
            "str ebx",
            &[0x0f, 0x00, 0xcb],
            dt,
            1 << 10 | 3 << 3 | 1 << 28,
        ),
        (
            "sldt [rdx]",
            &[0x0f, 0x00, 0x02],
            dt,
            flat | 1 << 22 | 2 << 23,
        ),
        ("ltr ax", &[0x0f, 0x00, 0xd8], dt, 1 << 10 | 3 << 28),
        (
            "rdrand bx",
            &[0x66, 0x0f, 0xc7, 0xf3],
            s::RDRAND_EXITING,
            3 << 3,
        ),
        (
            "rdrand ebx",
            &[0x0f, 0xc7, 0xf3],
            s::RDRAND_EXITING,
            3 << 3 | 1 << 11,
        ),
        (
            "rdseed r9",
            &[0x49, 0x0f, 0xc7, 0xf9],
            s::RDSEED_EXITING,
            9 << 3 | 2 << 11,
        ),
    ] {
        assert_eq!(information(code, secondary), expected, "{what}");
    }
    // LGDT: bit 11 tells the operand size; in 64-bit mode it is undefined.
    let lgdt = information(&[0x0f, 0x01, 0x12], dt);
    assert_eq!(lgdt & !(1 << 11), flat | 1 << 22 | 2 << 23 | 2 << 28);
    assert_eq!(information(&[0x6e], 0), flat, "outsb");
    assert_eq!(
        information(&[0x67, 0x2e, 0x6f], 0),
        1 << 7 | 3 << 15,
        "outsd from [esi]: 64-bit mode ignores the CS override (SDM Vol 1 3.7.4)"
    );
}

#[test]
fn rip_relative_operands() {
    // vmptrld [rip+0x100]: the qualification is the address (28.2.1).
    let mut r = Rig::root();
    assert_eq!(r.run_guest(&[0x90, 0x0f, 0xc7, 0x35, 0x00, 0x01, 0, 0]), 21);
    assert_eq!(r.get(F::ExitQualification), GUEST_CODE + 8 + 0x100);
    let info = r.get(F::ExitInstructionInfo);
    assert_eq!(
        info & (1 << 22 | 1 << 27),
        1 << 22 | 1 << 27,
        "neither base nor index"
    );
}

#[test]
fn io_bitmaps() {
    let exits = |port: u16, size: u8, set: &[u16]| {
        let mut r = Rig::root();
        r.or(
            F::PrimaryControls,
            p::IO_BITMAPS | p::UNCONDITIONAL_IO_EXITING,
        );
        r.set(F::IoBitmapA, IO_BITMAP_A);
        r.set(F::IoBitmapB, IO_BITMAP_B);
        for bit in set {
            let page = if *bit < 0x8000 {
                IO_BITMAP_A
            } else {
                IO_BITMAP_B
            };
            let at = RamOffset(page + u64::from(bit & 0x7fff) / 8);
            let old: u8 = r.ram.load(at);
            r.ram.store::<u8>(at, old | 1 << (bit & 7));
        }
        r.cpu().regs[gpr::RDX] = u64::from(port);
        let mut code = match size {
            1 => vec![0xee],
            2 => vec![0x66, 0xef],
            _ => vec![0xef],
        };
        code.extend(END);
        r.run_guest(&code) == 30
    };
    assert!(
        !exits(0x80, 1, &[]),
        "unconditional exiting is ignored with bitmaps"
    );
    assert!(exits(0x80, 1, &[0x80]));
    assert!(exits(0x80, 4, &[0x83]), "any byte of the access");
    assert!(!exits(0x80, 2, &[0x83]));
    assert!(exits(0x7fff, 2, &[0x8000]), "from bitmap A into B");
    assert!(exits(0x9000, 1, &[0x9000]));
    assert!(exits(0xffff, 2, &[]), "wraps around the port space");
}

#[test]
fn string_io() {
    let mut r = Rig::root();
    r.or(F::PrimaryControls, p::UNCONDITIONAL_IO_EXITING);
    r.cpu().regs[gpr::RDX] = 0x3f8;
    r.cpu().regs[gpr::RSI] = DATA;
    r.cpu().regs[gpr::RCX] = 3;
    assert_eq!(r.run_guest(&[0xf3, 0x6e]), 30); // rep outsb
    assert_eq!(r.get(F::ExitQualification), 0x3f8 << 16 | 1 << 4 | 1 << 5);
    assert_eq!(r.get(F::GuestLinearAddress), DATA);
    assert_eq!(r.cpu().regs[gpr::RCX], 3);
}

#[test]
fn msr_bitmaps() {
    let exits = |msr: u32, write: bool, set: Option<u64>| {
        let mut r = Rig::root();
        r.or(F::PrimaryControls, p::MSR_BITMAPS);
        r.set(F::MsrBitmaps, MSR_BITMAPS);
        if let Some(byte) = set {
            r.ram
                .store::<u8>(RamOffset(MSR_BITMAPS + byte), 1 << (msr & 7));
        }
        r.cpu().regs[gpr::RCX] = u64::from(msr);
        let code = if write {
            [0x0f, 0x30, 0x0f, 0x01, 0xc1]
        } else {
            [0x0f, 0x32, 0x0f, 0x01, 0xc1]
        };
        matches!(r.run_guest(&code), 31 | 32)
    };
    // SDM Vol 3 25.6.9: read low, read high, write low, write high, 1 KByte each.
    assert!(!exits(0x174, false, None));
    assert!(exits(0x174, false, Some(0x174 / 8)));
    assert!(!exits(0x174, true, Some(0x174 / 8)));
    assert!(exits(0x174, true, Some(2048 + 0x174 / 8)));
    assert!(exits(0xc000_0082, false, Some(1024 + 0x82 / 8)));
    assert!(exits(0xc000_0082, true, Some(3072 + 0x82 / 8)));
    assert!(exits(0x4000_0000, false, None), "out of both ranges");
}

#[test]
fn faults_that_come_before_exits() {
    // SDM Vol 3 26.1.1: privilege and #UD come first.
    let cpl3 = |code: &[u8]| {
        let mut r = Rig::root();
        r.or(
            F::PrimaryControls,
            p::HLT_EXITING | p::RDTSC_EXITING | p::MOV_DR_EXITING | p::RDPMC_EXITING,
        );
        r.bytes(GUEST_CODE, code);
        r.enter();
        r.cpu().cpl = 1;
        r.step();
        (r.cpu().vmx.in_guest, r.rip())
    };
    for (what, code, vector) in [
        ("hlt", &[0xf4][..], GP),
        ("invd", &[0x0f, 0x08], GP),
        ("rdmsr", &[0x0f, 0x32], GP),
        ("mov cr0, rax", &[0x0f, 0x22, 0xc0], GP),
        ("ud2", &[0x0f, 0x0b], UD),
    ] {
        let (in_guest, rip) = cpl3(code);
        assert_eq!((in_guest, rip), (true, guest_handler(vector)), "{what}");
    }
    let (in_guest, _) = cpl3(&[0x0f, 0xa2]);
    assert!(!in_guest, "CPUID exits at any CPL");
    let (in_guest, _) = cpl3(&[0x0f, 0x21, 0xf8]);
    assert!(
        !in_guest,
        "MOV DR exits before the privilege check (26.1.3)"
    );
    let (in_guest, _) = cpl3(&[0x0f, 0x01, 0xc1]);
    assert!(!in_guest, "VMCALL exits at any CPL");
}

#[test]
fn masks_and_shadows() {
    let guest = || {
        let mut r = Rig::root();
        // The hypervisor owns CR0.TS and NE; CR4.VMXE hidden.
        r.set(F::Cr0Mask, 0x28);
        r.set(F::Cr0ReadShadow, 0x8000_0033 & !0x20);
        r.set(F::Cr4Mask, 0x2000);
        r.set(F::Cr4ReadShadow, 0);
        r
    };
    let mut r = guest();
    // mov rax, cr0; mov rbx, cr4; vmcall
    assert_eq!(
        r.run_guest(&[0x0f, 0x20, 0xc0, 0x0f, 0x20, 0xe3, 0x0f, 0x01, 0xc1]),
        18
    );
    assert_eq!(r.cpu().regs[gpr::RAX], 0x8000_0013);
    assert_eq!(r.cpu().regs[gpr::RBX], 0x620);

    let mut r = guest();
    r.cpu().regs[gpr::RBX] = 0x8001_0013; // WP on, owned bits as in the shadow
    assert_eq!(r.run_guest(&[0x0f, 0x22, 0xc3, 0x0f, 0x01, 0xc1]), 18);
    assert_eq!(r.get(F::GuestCr0), 0x8001_0033, "owned NE stays 1");

    let mut r = guest();
    r.cpu().regs[gpr::RBX] = 0x8000_001b; // TS
    assert_eq!(r.run_guest(&[0x0f, 0x22, 0xc3]), 28);
    assert_eq!(r.get(F::ExitQualification), 0x300, "mov cr0, rbx");

    let mut r = guest();
    assert_eq!(
        r.run_guest(&[0x0f, 0x06, 0x0f, 0x01, 0xc1]),
        18,
        "CLTS with TS 0 in the shadow"
    );
    let mut r = guest();
    r.set(F::Cr0ReadShadow, 0x8000_001b);
    assert_eq!(r.run_guest(&[0x0f, 0x06]), 28);
    assert_eq!(r.get(F::ExitQualification), 0x20);

    let mut r = guest();
    r.cpu().regs[gpr::RAX] = 0xb; // lmsw ax with TS
    assert_eq!(r.run_guest(&[0x0f, 0x01, 0xf0]), 28);
    assert_eq!(r.get(F::ExitQualification), 0x000b_0030);
    let mut r = guest();
    r.cpu().regs[gpr::RAX] = 3;
    assert_eq!(
        r.run_guest(&[0x0f, 0x01, 0xf0, 0x0f, 0x01, 0xc1]),
        18,
        "LMSW of unowned bits"
    );
}

#[test]
fn cr3_targets() {
    let mut r = Rig::root();
    r.or(F::PrimaryControls, p::CR3_LOAD_EXITING);
    r.set(F::Cr3TargetCount, 2);
    r.set(F::Cr3Target1, PML4);
    r.cpu().regs[gpr::RAX] = PML4;
    assert_eq!(r.run_guest(&[0x0f, 0x22, 0xd8, 0x0f, 0x01, 0xc1]), 18);
    let mut r = Rig::root();
    r.or(F::PrimaryControls, p::CR3_LOAD_EXITING);
    r.set(F::Cr3TargetCount, 1);
    r.set(F::Cr3Target1, PML4);
    r.cpu().regs[gpr::RAX] = PML4;
    assert_eq!(
        r.run_guest(&[0x0f, 0x22, 0xd8]),
        28,
        "value 1 does not count"
    );
}

#[test]
fn instructions_that_controls_enable() {
    for (what, code, control) in [
        ("rdtscp", &[0x0f, 0x01, 0xf9][..], s::ENABLE_RDTSCP),
        (
            "invpcid",
            &[0x66, 0x0f, 0x38, 0x82, 0x1a],
            s::ENABLE_INVPCID,
        ),
        // Before the check of CR4.OSXSAVE, which gives the same.
        ("xsaves", &[0x0f, 0xc7, 0x2a], s::ENABLE_XSAVES),
        ("xrstors", &[0x0f, 0xc7, 0x1a], s::ENABLE_XSAVES),
    ] {
        let mut r = Rig::root();
        r.clear(F::SecondaryControls, control);
        r.bytes(GUEST_CODE, code);
        r.cpu().regs[gpr::RDX] = DATA;
        r.enter();
        r.step();
        assert!(r.cpu().vmx.in_guest);
        assert_eq!(r.rip(), guest_handler(UD), "{what}");
    }
}

/// SDM Vol 3 26.1.3: XSAVES and XRSTORS exit by the components that are asked for, enabled, and in the bitmap.
#[test]
fn supervisor_components_exit_by_bitmap() {
    for (code, reason) in [
        (&[0x0f, 0xc7, 0x2a], ExitReason::Xsaves),
        (&[0x0f, 0xc7, 0x1a], ExitReason::Xrstors),
    ] {
        for (xss, bitmap, exits) in [
            (0, u64::MAX, false),
            (1 << 8, 0, false),
            (1 << 8, 1 << 8, true),
        ] {
            let mut r = Rig::root();
            r.or(F::SecondaryControls, s::ENABLE_XSAVES);
            r.set(F::XssExitingBitmap, bitmap);
            let cr4 = r.get(F::GuestCr4) | 1 << 18;
            r.set(F::GuestCr4, cr4);
            r.bytes(GUEST_CODE, code);
            r.cpu().regs[gpr::RAX] = 0x100;
            r.cpu().regs[gpr::RDX] = 0;
            r.enter();
            // No model has such a component: only what is intercepted can be seen.
            r.cpu().msr.xss = xss;
            r.cpu().regs[gpr::RDX] = 0;
            r.cpu().regs[gpr::RAX] = 0x100;
            r.step();
            assert_eq!(
                !r.cpu().vmx.in_guest,
                exits,
                "{reason:?} {xss:x} {bitmap:x}"
            );
            if exits {
                assert_eq!(r.get(F::ExitReason), reason as u64);
            }
        }
    }
}

#[test]
fn tsc_offset() {
    let mut r = Rig::root();
    r.or(F::PrimaryControls, p::TSC_OFFSETTING);
    r.set(F::TscOffset, 1 << 40);
    assert_eq!(r.run_guest(&[0x0f, 0x31, 0x0f, 0x01, 0xc1]), 18);
    let (high, low) = (r.cpu().regs[gpr::RDX], r.cpu().regs[gpr::RAX]);
    assert_eq!(high << 32 >> 40, 1);
    assert!(low < 1 << 20);
    r.host_instruction(&[0x0f, 0x31]);
    assert_eq!(r.cpu().regs[gpr::RDX], 0, "not in root operation");
}
