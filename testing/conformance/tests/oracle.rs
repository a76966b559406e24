//! The oracle against itself and against facts of the manuals.

use conformance::generate::background;
use conformance::host::Host;
use conformance::run::{Config, run};
use conformance::segments::{CODE32, CODE64, CS, DATA, DS, SS, Setting, ldt};
use conformance::{Case, Exception, Layout, Outcome, Patch, READ_ONLY_OFFSET, Subject};

/// Two executions of a case on the host agree: nothing of the host leaks into an outcome.
#[test]
fn host_agrees_with_itself() {
    let config = Config::from_environment(200_000);
    let report = run(config, |_, _| true, |_, _| None::<Host>).expect("the host has the memory");
    println!("{report}");
    assert_eq!(report.failed, 0, "{report}");
    assert!(report.empty.is_empty(), "{:?}", report.empty);
}

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSP: usize = 4;
const RBP: usize = 5;

/// A slot of each test's own: tests run on threads of one process.
fn execute(slot: u64, bytes: &[u8], set: impl FnOnce(&mut Case)) -> (Case, Outcome) {
    let layout = Layout::worker(16 + slot);
    let mut host = Host::new(layout, &background(1)).expect("the host has the memory");
    let mut case = Case::new(layout, bytes);
    set(&mut case);
    let outcome = host.execute(&case);
    (case, outcome)
}

fn exception(vector: u8, error_code: u32, cr2: u64) -> Option<Exception> {
    Some(Exception {
        vector,
        error_code,
        cr2,
    })
}

/// SDM Vol 2, ADD; Vol 1 3.4.3.1: 7Fh + 1 overflows, carries out of bit 3, is negative.
#[test]
fn add_sets_the_flags() {
    // add al, 1
    let (case, outcome) = execute(0, &[0x04, 0x01], |case| {
        case.before.gpr[RAX] = 0x1234_5678_9abc_de7f;
        case.before.rflags |= 0x5;
    });
    assert_eq!(outcome.exception, None);
    assert_eq!(outcome.after.gpr[RAX], 0x1234_5678_9abc_de80);
    assert_eq!(outcome.after.rflags, 0x202 | 0x890);
    assert_eq!(outcome.after.rip, case.next_rip());
}

/// SDM Vol 1 3.4.1.1: 32-bit results are zero-extended, 16-bit ones leave the rest.
#[test]
fn narrow_results() {
    let set = |case: &mut Case| case.before.gpr = [u64::MAX; 16];
    // mov eax, 1
    let (_, outcome) = execute(1, &[0xb8, 1, 0, 0, 0], set);
    assert_eq!(outcome.after.gpr[RAX], 1);
    // mov ax, 1
    let (_, outcome) = execute(1, &[0x66, 0xb8, 1, 0], set);
    assert_eq!(outcome.after.gpr[RAX], 0xffff_ffff_ffff_0001);
    assert_eq!(outcome.after.gpr[RSP], u64::MAX);
}

/// SDM Vol 3 6.15: #DE and #UD are faults; RIP is the instruction's.
#[test]
fn faults_leave_rip() {
    // div ecx
    let (case, outcome) = execute(2, &[0xf7, 0xf1], |case| case.before.gpr[RAX] = 5);
    assert_eq!(outcome.exception, exception(0, 0, 0));
    assert_eq!(outcome.after.rip, case.before.rip);
    assert_eq!(outcome.after.gpr[RAX], 5);
    // ud2
    let (case, outcome) = execute(2, &[0x0f, 0x0b], |_| {});
    assert_eq!(outcome.exception, exception(6, 0, 0));
    assert_eq!(outcome.after.rip, case.before.rip);
    // int3 is a trap
    let (case, outcome) = execute(2, &[0xcc], |_| {});
    assert_eq!(outcome.exception, exception(3, 0, 0));
    assert_eq!(outcome.after.rip, case.next_rip());
}

/// SDM Vol 3 4.7: error codes of page faults; CR2 is the faulting byte's page's.
#[test]
fn page_faults() {
    let window = Layout::worker(16 + 3).window();
    // mov al, [rbx]
    let (_, outcome) = execute(3, &[0x8a, 0x03], |case| case.before.gpr[RBX] = window - 1);
    assert_eq!(outcome.exception, exception(14, 4, window - 1));
    // mov [rbx], rax into the read-only page
    let read_only = window + READ_ONLY_OFFSET as u64;
    let (_, outcome) = execute(3, &[0x48, 0x89, 0x03], |case| {
        case.before.gpr[RBX] = read_only + 8;
    });
    assert_eq!(outcome.exception, exception(14, 7, read_only + 8));
    // jmp rbx to a page that may not be executed
    let (_, outcome) = execute(3, &[0xff, 0xe3], |case| {
        case.before.gpr[RBX] = window;
        case.branch_target = Some(window);
    });
    assert_eq!(outcome.exception, exception(14, 0x15, window));
    assert_eq!(outcome.after.rip, window);
}

/// SDM Vol 3 6.15: a non-canonical address is #GP(0), by the stack segment #SS(0). SDM Vol 2, MOVAPS: an
/// operand that is not aligned is #GP(0).
#[test]
fn general_protection() {
    // mov rax, [rbx]
    let (_, outcome) = execute(4, &[0x48, 0x8b, 0x03], |case| {
        case.before.gpr[RBX] = 1 << 47
    });
    assert_eq!(outcome.exception, exception(13, 0, 0));
    // mov rax, [rbp + 0]
    let (_, outcome) = execute(4, &[0x48, 0x8b, 0x45, 0], |case| {
        case.before.gpr[RBP] = 1 << 47;
    });
    assert_eq!(outcome.exception, exception(12, 0, 0));
    // movaps xmm0, [rbx]
    let window = Layout::worker(16 + 4).window();
    let (_, outcome) = execute(4, &[0x0f, 0x28, 0x03], |case| {
        case.before.gpr[RBX] = window + 8;
    });
    assert_eq!(outcome.exception, exception(13, 0, 0));
}

/// SDM Vol 1 11.5.2.3 and 8.7: unmasked #Z of SSE is #XM at once; of x87, #MF at the next waiting
/// instruction.
#[test]
fn floating_point_exceptions() {
    // divps xmm0, xmm1
    let (_, outcome) = execute(5, &[0x0f, 0x5e, 0xc1], |case| {
        case.before.extended.set_xmm(0, 0x3f80_0000);
        case.before.extended.set_mxcsr(0x1f80 & !0x200);
    });
    assert_eq!(outcome.exception, exception(19, 0, 0));
    assert_eq!(outcome.after.extended.mxcsr() & 4, 4);
    // fld1
    let (_, outcome) = execute(5, &[0xd9, 0xe8], |case| {
        case.before.extended.set_fcw(0x37f & !4);
        case.before.extended.set_fsw(0x8084);
    });
    assert_eq!(outcome.exception, exception(16, 0, 0));
}

/// SDM Vol 2, Jcc, PUSH, LOOP: where they go and what they store.
#[test]
fn control_flow_and_stack() {
    // jz +0x40
    for (flags, taken) in [(0x40, true), (0, false)] {
        let (case, outcome) = execute(6, &[0x74, 0x40], |case| {
            case.before.rflags |= flags;
            case.branch_target = Some(case.next_rip() + 0x40);
        });
        let expected = case.next_rip() + if taken { 0x40 } else { 0 };
        assert_eq!(outcome.after.rip, expected);
    }
    // push rdx
    let (case, outcome) = execute(6, &[0x52], |case| {
        case.before.gpr[RDX] = 0x0102_0304_0506_0708;
        // Where it goes: zeros, so that every byte changes.
        case.patches.push(Patch {
            offset: 4088,
            bytes: vec![0; 8],
        });
    });
    let stored: Vec<_> = (0..8).map(|i| (4088 + i, 8 - i as u8)).collect();
    assert_eq!(outcome.memory, stored);
    assert_eq!(outcome.after.gpr[RSP], case.before.gpr[RSP] - 8);
    // loop $ + 2 + 0x30 with RCX = 1 falls through, RCX 0
    let (case, outcome) = execute(6, &[0xe2, 0x30], |case| {
        case.before.gpr[RCX] = 1;
        case.branch_target = Some(case.next_rip() + 0x30);
    });
    assert_eq!(outcome.after.rip, case.next_rip());
    assert_eq!(outcome.after.gpr[RCX], 0);
}

/// SDM Vol 1 14.1.3 and 2.3.10.1 of Vol 2: a VEX.128 instruction clears the upper half, a legacy one keeps it.
#[test]
fn upper_halves() {
    let set = |case: &mut Case| case.before.extended.ymm_high = [7; 16];
    // vaddps xmm0, xmm1, xmm2
    let (_, outcome) = execute(7, &[0xc5, 0xf0, 0x58, 0xc2], set);
    assert_eq!(outcome.after.extended.ymm_high[0], 0);
    assert_eq!(outcome.after.extended.ymm_high[1], 7);
    // addps xmm0, xmm2
    let (_, outcome) = execute(7, &[0x0f, 0x58, 0xc2], set);
    assert_eq!(outcome.after.extended.ymm_high[0], 7);
}

/// Executes in 32-bit code of compatibility mode; the stack is the `stack`th segment of the LDT, the data
/// segment the `data`th.
fn execute32(
    slot: u64,
    stack: usize,
    data: usize,
    bytes: &[u8],
    set: impl FnOnce(&mut Case),
) -> (Case, Outcome) {
    let layout = Layout::worker(16 + slot);
    let mut host = Host::new(layout, &background(1)).expect("the host has the memory");
    let mut setting = Setting::long(layout);
    setting.bits = 32;
    setting.segments[CS].selector = CODE32;
    setting.segments[SS] = ldt(layout)[stack];
    setting.segments[DS] = ldt(layout)[data];
    let mut case = Case::within(layout, setting, bytes);
    set(&mut case);
    let outcome = host.execute(&case);
    (case, outcome)
}

/// Entries of the LDT: 16-bit stack, 32-bit data to the end of the writable window.
const STACK16: usize = 6;
const LIMITED: usize = 8;

/// SDM Vol 3 5.3 and 6.15: beyond the limit is #GP(0).
#[test]
fn limits_of_compatibility_mode() {
    // mov eax, [ebx]
    let (_, outcome) = execute32(8, STACK16, LIMITED, &[0x8b, 0x03], |case| {
        case.before.gpr[RBX] = 0x1ffd;
    });
    assert_eq!(outcome.exception, exception(13, 0, 0));
    let (case, outcome) = execute32(8, STACK16, LIMITED, &[0x8b, 0x03], |case| {
        case.before.gpr[RBX] = 0x1ffc;
    });
    assert_eq!(outcome.exception, None);
    assert_eq!(outcome.after.rip, case.next_rip());
}

/// SDM Vol 1 6.2.3: the B flag of SS says whether SP or ESP is used; the rest of ESP stays.
#[test]
fn stack_of_16_bits() {
    // push eax
    let (case, outcome) = execute32(9, STACK16, LIMITED, &[0x50], |case| {
        case.before.gpr[RAX] = 0x0102_0304;
        case.before.gpr[RSP] = 0xabcd_4008;
        case.patches.push(Patch {
            offset: 4,
            bytes: vec![0; 4],
        });
    });
    assert_eq!(outcome.exception, None);
    assert_eq!(outcome.after.gpr[RSP], 0xabcd_4004);
    assert_eq!(outcome.memory, [(4, 4), (5, 3), (6, 2), (7, 1)]);
    assert_eq!(outcome.selectors, case.selectors());
}

/// SDM Vol 2, JMP: a far jump to a 64-bit code segment leaves compatibility mode; one to data is #GP with its
/// selector.
#[test]
fn far_jumps() {
    let code = Layout::worker(16 + 10).code() as u32;
    let jump = |selector: u16| {
        let mut bytes = vec![0xea];
        bytes.extend((code + 0x100).to_le_bytes());
        bytes.extend(selector.to_le_bytes());
        bytes
    };
    let (_, outcome) = execute32(10, STACK16, LIMITED, &jump(CODE64), |_| {});
    assert_eq!(outcome.exception, None);
    assert_eq!(outcome.selectors[CS], CODE64);
    assert_eq!(outcome.after.rip, u64::from(code + 0x100));
    let (_, outcome) = execute32(10, STACK16, LIMITED, &jump(DATA), |_| {});
    assert_eq!(outcome.exception, exception(13, u32::from(DATA & !3), 0));
}
