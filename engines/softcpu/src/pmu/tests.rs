//! Performance monitoring against SDM Vol 3 chapter 20 and Vol 2, RDPMC.

use std::sync::atomic::Ordering;

use x86defs::exception::{GP, UD};
use x86defs::msr::*;

use crate::cpu::gpr::*;
use crate::testing::*;

/// USR and OS, ENABLE.
const ALL: u64 = 3 << 16 | 1 << 22;
const INT: u64 = 1 << 20;
const INSTRUCTIONS: u64 = 0xc0;
const CYCLES: u64 = 0x3c;
const BRANCHES: u64 = 0xc4;
const NOP: u8 = 0x90;
const HLT: u8 = 0xf4;

fn write(b: &mut Bench, msr: u32, value: u64) {
    b.cpu().write_msr(msr, value).expect("legal");
}

fn read(b: &mut Bench, msr: u32) -> u64 {
    b.cpu().pmu_sync();
    b.cpu().read_msr(msr).expect("there")
}

/// A machine with general counter 0 set up, not yet enabled globally.
fn selecting(select: u64) -> Bench {
    let mut b = Bench::long();
    write(&mut b, IA32_PERF_GLOBAL_CTRL, 0);
    write(&mut b, IA32_PERFEVTSEL0, select);
    write(&mut b, IA32_FIXED_CTR_CTRL, 0x333);
    b
}

/// WRMSR to IA32_PERF_GLOBAL_CTRL of a value of 35 bits, its upper part in EDX.
fn global(low: u8, high: u8) -> Vec<u8> {
    let mut code = vec![0xb9, 0x8f, 0x03, 0, 0];
    code.extend([0xb8, low, 0, 0, 0, 0xba, high, 0, 0, 0, 0x0f, 0x30]);
    code
}

/// Runs `code` with all counters enabled, block by block, up to a HLT behind it.
fn count(b: &mut Bench, code: &[u8]) {
    let mut all = global(0xf, 7);
    all.extend_from_slice(code);
    all.push(HLT);
    b.ram.write_at(guestmem::RamOffset(CODE), &all);
    b.runner.cache.clear(&mut b.runner.cpu.code_pages);
    let cpu = b.cpu();
    cpu.regs[crate::cpu::RIP] = CODE;
    (cpu.activity, cpu.nmi_blocked) = (vcpu::MpState::Running, false);
    assert_eq!(b.runner.run(), vcpu::RunExit::Stopped);
    assert_eq!(b.cpu().activity, vcpu::MpState::Halted);
}

fn nops(n: usize) -> Vec<u8> {
    vec![NOP; n]
}

/// 20.2.1, 20.2.2: what is executed after the write that enables is counted, in general and fixed counters alike; on a
/// clock of one tick an instruction cycles are as many. HLT is the last of them.
#[test]
fn instructions_and_cycles() {
    for n in [0, 1, 47, 48, 100, 5000] {
        for (event, what) in [
            (INSTRUCTIONS, "instructions"),
            (CYCLES, "cycles"),
            (0x13c, "reference"),
        ] {
            let mut b = selecting(event | ALL);
            count(&mut b, &nops(n));
            let expected = n as u64 + 1;
            assert_eq!(read(&mut b, IA32_PMC0), expected, "{what}");
            for fixed in 0..3 {
                assert_eq!(read(&mut b, IA32_FIXED_CTR0 + fixed), expected, "{fixed}");
            }
        }
    }
}

/// RDPMC and RDMSR see what has retired before them.
#[test]
fn reads_in_the_middle_of_code() {
    // MOV ECX; RDPMC of fixed counter 0, kept in EBX.
    let rdpmc = [0xb9, 0, 0, 0, 0x40, 0x0f, 0x33, 0x89, 0xc3];
    // MOV ECX, 309H; RDMSR, kept in ESI.
    let rdmsr = [0xb9, 0x09, 3, 0, 0, 0x0f, 0x32, 0x89, 0xc6];
    let mut b = selecting(0);
    let mut code = nops(10);
    code.extend(rdpmc);
    code.extend(nops(10));
    code.extend(rdmsr);
    count(&mut b, &code);
    assert_eq!(b.get(RBX), 10 + 1);
    assert_eq!(b.get(RSI), 10 + 3 + 10 + 1);
}

/// Faults retire nothing, a repeated string instruction is one.
#[test]
fn what_is_an_instruction() {
    let mut b = selecting(INSTRUCTIONS | ALL);
    // MOV ECX, 20000; MOV EDI, 400000H; REP STOSB.
    let stos = [0xb9, 0x20, 0x4e, 0, 0, 0xbf, 0, 0, 0x40, 0, 0xf3, 0xaa];
    count(&mut b, &stos);
    assert_eq!(read(&mut b, IA32_PMC0), 3 + 1);
    // It takes time.
    assert!(read(&mut b, IA32_FIXED_CTR0 + 1) > 1000);
    let mut b = selecting(INSTRUCTIONS | ALL);
    b.put(HANDLERS + 16 * u64::from(UD), HLT);
    b.put(CODE + 0x1000, HLT);
    let mut code = nops(5);
    code.extend([0x0f, 0x0b]);
    let mut all = global(0xf, 7);
    all.extend(code);
    b.ram.write_at(guestmem::RamOffset(CODE), &all);
    assert_eq!(b.runner.run(), vcpu::RunExit::Stopped);
    assert_eq!(
        read(&mut b, IA32_PMC0),
        5 + 1,
        "UD2 is none, the handler's HLT is"
    );
}

/// The clock stops in HLT (20.2.1.2: "while the core is not halted").
#[test]
fn halted_is_not_counted() {
    let mut b = selecting(CYCLES | ALL);
    count(&mut b, &nops(3));
    assert_eq!(b.signals.slept.load(Ordering::Relaxed), 1000);
    assert_eq!(read(&mut b, IA32_PMC0), 4);
    assert_eq!(b.runner.run(), vcpu::RunExit::Stopped);
    assert_eq!(b.signals.slept.load(Ordering::Relaxed), 2000);
    assert_eq!(read(&mut b, IA32_PMC0), 4);
}

/// Conditional branches, taken or not, jumps, calls, returns; and nothing else. Table 20-1: C4H.
#[test]
fn branches() {
    let mut b = selecting(BRANCHES | ALL);
    write(&mut b, IA32_PERFEVTSEL0 + 1, INSTRUCTIONS | ALL);
    let code = [
        0xb9, 5, 0, 0, 0, // MOV ECX, 5
        0xff, 0xc9, // DEC ECX
        0x75, 0xfc, // JNZ
        0xeb, 1, // JMP over
        HLT, 0xe8, 2, 0, 0, 0, // CALL
        0xeb, 1,    // JMP over
        0xc3, // RET
        NOP,
    ];
    count(&mut b, &code);
    // Five JNZ, JMP, CALL, RET, JMP.
    assert_eq!(read(&mut b, IA32_PMC0), 9);
    assert_eq!(read(&mut b, IA32_PMC0 + 1), 1 + 5 * 2 + 4 + 1 + 1);
    assert_eq!(read(&mut b, IA32_FIXED_CTR0), 1 + 5 * 2 + 4 + 1 + 1);
    // Off again, blocks are executed whole.
    write(&mut b, IA32_PERFEVTSEL0, 0);
    assert_eq!(b.cpu().pending & crate::cpu::pending::COUNT, 0);
}

/// What this processor does not do, and events of no architecture.
#[test]
fn other_events_never_happen() {
    for event in [0x4f2e, 0x412e, 0xc5, 0x01c0, 0x0151] {
        let mut b = selecting(event | ALL);
        count(&mut b, &nops(100));
        assert_eq!(read(&mut b, IA32_PMC0), 0, "{event:#x}");
    }
}

/// 20.2.1.1: CMASK, INV and EDGE, with at most one instruction a cycle.
#[test]
fn masks() {
    let mask = |n: u64| n << 24;
    const INV: u64 = 1 << 23;
    const EDGE: u64 = 1 << 18;
    for (select, expected) in [
        (INSTRUCTIONS | mask(1), 101),
        (INSTRUCTIONS | mask(2), 0),
        (INSTRUCTIONS | mask(1) | INV, 0),
        (INSTRUCTIONS | mask(2) | INV, 101),
        // INV is ignored when CMASK is 0.
        (INSTRUCTIONS | INV, 101),
        (CYCLES | mask(1) | EDGE, 1),
        (0xc5 | mask(1) | INV, 101),
    ] {
        let mut b = selecting(select | ALL);
        count(&mut b, &nops(100));
        assert_eq!(read(&mut b, IA32_PMC0), expected, "{select:#x}");
    }
}

/// USR counts at CPL 1 to 3, OS at CPL 0.
#[test]
fn privilege_levels() {
    for (levels, user) in [(1u64, true), (2, false)] {
        let mut b = selecting(INSTRUCTIONS | levels << 16 | 1 << 22);
        let other = (3 - levels) << 16;
        write(&mut b, IA32_PERFEVTSEL0 + 1, INSTRUCTIONS | other | 1 << 22);
        write(&mut b, IA32_FIXED_CTR_CTRL, levels << 1 & 2 | levels >> 1);
        let user_code = CODE + 0x2000;
        let mut code = vec![0x6a, sel::USER_DATA as u8, 0x68];
        code.extend((STACK as u32).to_le_bytes());
        // PUSH 2 (flags), PUSH CS, PUSH RIP, IRETQ: seven instructions with the first two.
        code.extend([0x6a, 2, 0x6a, sel::USER_CODE64 as u8, 0x68]);
        code.extend((user_code as u32).to_le_bytes());
        code.extend([0x48, 0xcf]);
        let mut all = global(0xf, 7);
        all.extend(code);
        b.ram.write_at(guestmem::RamOffset(CODE), &all);
        b.ram
            .write_at(guestmem::RamOffset(user_code), &[NOP, NOP, NOP, 0xcd, 0x80]);
        b.put(HANDLERS + 0x800, HLT);
        assert_eq!(b.runner.run(), vcpu::RunExit::Stopped);
        // An instruction belongs to the level it begins at.
        let (at_user, at_os) = (3 + 1, 6 + 1);
        let (own, rest) = if user {
            (at_user, at_os)
        } else {
            (at_os, at_user)
        };
        assert_eq!(read(&mut b, IA32_PMC0), own);
        assert_eq!(read(&mut b, IA32_PMC0 + 1), rest);
        assert_eq!(read(&mut b, IA32_FIXED_CTR0), own);
    }
}

/// An overflow sets its bit of IA32_PERF_GLOBAL_STATUS, and with INT interrupts close behind.
#[test]
fn overflow() {
    for (select, fixed, bit) in [
        (INSTRUCTIONS | ALL | INT, 0, 0),
        (CYCLES | ALL | INT, 0, 0),
        (0, 0xb, 32),
        (0, 0xb0, 33),
        (0, 0xb00, 34),
    ] {
        let mut b = selecting(select);
        write(&mut b, IA32_FIXED_CTR_CTRL, fixed);
        let counter = if bit == 0 {
            write(&mut b, IA32_PMC0, 0u64.wrapping_sub(3000));
            IA32_PMC0
        } else {
            let n = bit - 32;
            write(&mut b, IA32_FIXED_CTR0 + n, (1 << 48) - 3000);
            IA32_FIXED_CTR0 + n
        };
        count(&mut b, &nops(2998));
        assert_eq!(
            *b.signals.performance.lock().unwrap(),
            (0, false),
            "not yet"
        );
        assert_eq!(read(&mut b, IA32_PERF_GLOBAL_STATUS), 0);
        assert_eq!(read(&mut b, counter), (1 << 48) - 1);
        b.put(HANDLERS + 0x20, HLT);
        count(&mut b, &nops(3000));
        assert_eq!(*b.signals.performance.lock().unwrap(), (1, true));
        assert_eq!(read(&mut b, IA32_PERF_GLOBAL_STATUS), 1 << bit);
        assert!(read(&mut b, counter) < 100);
        write(&mut b, IA32_PERF_GLOBAL_OVF_CTRL, 1 << bit);
        assert_eq!(read(&mut b, IA32_PERF_GLOBAL_STATUS), 0);
    }
    let mut b = selecting(INSTRUCTIONS | ALL);
    write(&mut b, IA32_PMC0, 0u64.wrapping_sub(10));
    count(&mut b, &nops(100));
    assert_eq!(read(&mut b, IA32_PERF_GLOBAL_STATUS), 1);
    assert_eq!(b.signals.performance.lock().unwrap().0, 0, "without INT");
}

/// The interrupt, here an NMI, comes no later than the end of the block that overflows.
#[test]
fn the_interrupt_comes_close_behind() {
    for event in [INSTRUCTIONS, CYCLES, BRANCHES] {
        for left in [1u64, 2, 50, 1000, 9000] {
            let mut b = selecting(event | ALL | INT);
            write(&mut b, IA32_PMC0, 0u64.wrapping_sub(left));
            let mut code = global(0xf, 7);
            if event == BRANCHES {
                // JMP to the next, again and again.
                code.extend([0xeb, 0].repeat(10_000));
            } else {
                code.extend(nops(10_000));
            }
            b.ram.write_at(guestmem::RamOffset(CODE), &code);
            b.put(HANDLERS + 0x20, HLT);
            assert_eq!(b.runner.run(), vcpu::RunExit::Stopped);
            let bytes = if event == BRANCHES { 2 } else { 1 };
            let rip: u64 = b.at(b.get(RSP));
            let executed = (rip - CODE - 17) / bytes;
            assert!(executed >= left, "{event:#x} {left}: {executed}");
            // A block has at most 48 instructions.
            let behind = if event == BRANCHES { 0 } else { 47 };
            assert!(executed <= left + behind, "{event:#x} {left}: {executed}");
        }
    }
}

/// Reserved bits and MSRs that are not there are #GP(0), and change nothing.
#[test]
fn reserved_bits() {
    for (msr, value) in [
        (IA32_PERFEVTSEL0, 1 << 21),
        (IA32_PERFEVTSEL0 + 3, 1 << 32),
        (IA32_PERFEVTSEL0 + 4, 0),
        (IA32_PMC0 + 4, 0),
        (IA32_FIXED_CTR0, 1 << 48),
        (IA32_FIXED_CTR0 + 3, 0),
        (IA32_FIXED_CTR_CTRL, 4),
        (IA32_FIXED_CTR_CTRL, 1 << 12),
        (IA32_PERF_GLOBAL_CTRL, 1 << 4),
        (IA32_PERF_GLOBAL_CTRL, 1 << 35),
        (IA32_PERF_GLOBAL_STATUS, 0),
        (IA32_PERF_GLOBAL_OVF_CTRL, 1 << 4),
        (IA32_PERF_GLOBAL_OVF_CTRL, 1 << 61),
        (IA32_PERF_CAPABILITIES, 0),
        // A_PMC0: full-width writes are not told.
        (0x4c1, 0),
    ] {
        let mut b = Bench::long();
        let before = b.cpu().read_msr(msr).ok();
        b.set(RCX, msr.into());
        b.set(RAX, value & 0xffff_ffff);
        b.set(RDX, value >> 32);
        assert_eq!(
            b.run(&[0x0f, 0x30]),
            Outcome::Vector(GP),
            "{msr:#x} {value:#x}"
        );
        assert_eq!(b.cpu().read_msr(msr).ok(), before);
    }
    let mut b = Bench::long();
    // Table 10-1: the general-purpose counters are enabled after RESET.
    assert_eq!(read(&mut b, IA32_PERF_GLOBAL_CTRL), 0xf);
    for (msr, value, kept) in [
        (IA32_PERFEVTSEL0, 0xffdf_ffff, 0xffdf_ffff),
        // Bit 31 goes on upwards.
        (IA32_PMC0 + 1, 0x8000_0000, 0xffff_8000_0000),
        (IA32_PMC0 + 1, 0x12_7fff_ffff, 0x7fff_ffff),
        (IA32_FIXED_CTR0 + 2, (1 << 48) - 1, (1 << 48) - 1),
        (IA32_FIXED_CTR_CTRL, 0xbbb, 0xbbb),
        (IA32_PERF_GLOBAL_OVF_CTRL, 3 << 62 | 0x7_0000_000f, 0),
    ] {
        write(&mut b, msr, value);
        assert_eq!(b.cpu().read_msr(msr), Ok(kept), "{msr:#x}");
        write(&mut b, IA32_PERFEVTSEL0, 0);
        write(&mut b, IA32_FIXED_CTR_CTRL, 0);
    }
    // IA32_MISC_ENABLE bit 7 is read-only.
    let old = read(&mut b, IA32_MISC_ENABLE);
    assert_ne!(old & 1 << 7, 0);
    write(&mut b, IA32_MISC_ENABLE, old & !(1 << 7));
    assert_eq!(read(&mut b, IA32_MISC_ENABLE), old);
}

/// RDPMC (SDM Vol 2): which counters there are, and CR4.PCE outside CPL 0.
#[test]
fn rdpmc() {
    const RDPMC: &[u8] = &[0x0f, 0x33];
    let mut b = Bench::long();
    for n in 0..4u32 {
        write(&mut b, IA32_PMC0 + n, (0x8000_0000 + n).into());
    }
    for n in 0..3u32 {
        write(&mut b, IA32_FIXED_CTR0 + n, 0x1234_0000_5678 + u64::from(n));
    }
    for (ecx, eax, edx) in [
        (0u64, 0x8000_0000u64, 0xffffu64),
        (3, 0x8000_0003, 0xffff),
        (0x4000_0000, 0x5678, 0x1234),
        (0xffff_ffff_4000_0002, 0x567a, 0x1234),
    ] {
        for r in [RAX, RDX] {
            b.set(r, u64::MAX);
        }
        b.set(RCX, ecx);
        b.ok(RDPMC);
        assert_eq!((b.get(RAX), b.get(RDX)), (eax, edx), "{ecx:#x}");
    }
    for ecx in [4u64, 0x4000_0003, 0x8000_0000, 0xc000_0000] {
        let mut b = Bench::long();
        b.set(RCX, ecx);
        assert_eq!(b.fault(RDPMC, GP), 0, "{ecx:#x}");
    }
    let mut b = Bench::user();
    b.set(RCX, 0);
    assert_eq!(b.fault(RDPMC, GP), 0);
    let mut b = Bench::user();
    b.cpu().cr4 |= 1 << 8;
    b.set(RCX, 0);
    b.ok(RDPMC);
    let mut b = Bench::real();
    b.ok(RDPMC);
}

/// What is saved is what is restored, in the middle of a count.
#[test]
fn saved_state() {
    let mut b = selecting(INSTRUCTIONS | ALL);
    write(&mut b, IA32_PMC0, 0u64.wrapping_sub(10));
    write(&mut b, IA32_FIXED_CTR0 + 1, 1 << 40);
    count(&mut b, &nops(20));
    let saved = b.cpu().save();
    let mut other = Bench::long();
    other.cpu().restore(&saved);
    assert_eq!(other.cpu().save().system.msrs, saved.system.msrs);
    assert_eq!(read(&mut other, IA32_PMC0), 11);
    assert_eq!(read(&mut other, IA32_PERF_GLOBAL_STATUS), 1);
    assert_eq!(read(&mut other, IA32_FIXED_CTR0 + 1), (1 << 40) + 21);
}

/// INIT leaves the counters alone (Table 10-1).
#[test]
fn init_keeps_counters() {
    let mut b = selecting(CYCLES | ALL);
    count(&mut b, &nops(20));
    b.cpu().init();
    assert_eq!(read(&mut b, IA32_PERFEVTSEL0), CYCLES | ALL);
    assert_eq!(read(&mut b, IA32_PERF_GLOBAL_CTRL), 0x7_0000_000f);
    assert_eq!(read(&mut b, IA32_PMC0), 21);
}
