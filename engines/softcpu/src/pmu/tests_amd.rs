//! AMD's performance counters, branch records and name strings against APM Vol 2 13.1.1, 13.2 and Vol 3, RDPMC.

use vcpu::cpuid::CpuModel;
use x86defs::exception::{GP, UD};
use x86defs::msr::*;

use crate::cpu::RIP;
use crate::cpu::gpr::*;
use crate::testing::*;

/// USR and OS, EN.
const ALL: u64 = 3 << 16 | 1 << 22;
const INT: u64 = 1 << 20;
const CYCLES: u64 = 0x76;
const INSTRUCTIONS: u64 = 0xc0;
const BRANCHES: u64 = 0xc2;
const NOP: u8 = 0x90;
const HLT: u8 = 0xf4;

fn amd() -> Bench {
    Bench::long_with(model_of(CpuModel::NestlingAmd))
}

fn write(b: &mut Bench, msr: u32, value: u64) {
    b.cpu().write_msr(msr, value).expect("legal");
}

fn read(b: &mut Bench, msr: u32) -> u64 {
    b.cpu().pmu_sync();
    b.cpu().read_msr(msr).expect("there")
}

/// Runs `code` and a HLT behind it, block by block.
fn run(b: &mut Bench, code: &[u8]) {
    let mut all = code.to_vec();
    all.push(HLT);
    b.ram.write_at(guestmem::RamOffset(CODE), &all);
    b.runner.cache.clear(&mut b.runner.cpu.code_pages);
    b.set(RIP, CODE);
    let cpu = b.cpu();
    (cpu.activity, cpu.nmi_blocked) = (vcpu::MpState::Running, false);
    assert_eq!(b.runner.run(), vcpu::RunExit::Stopped);
}

/// WRMSR.
fn wrmsr(msr: u32, value: u64) -> Vec<u8> {
    let mut code = vec![0xb9];
    code.extend(msr.to_le_bytes());
    code.push(0xb8);
    code.extend((value as u32).to_le_bytes());
    code.push(0xba);
    code.extend(((value >> 32) as u32).to_le_bytes());
    code.extend([0x0f, 0x30]);
    code
}

#[test]
fn counters() {
    for (select, expected) in [
        (CYCLES | ALL, 101),
        (INSTRUCTIONS | ALL, 101),
        // Other unit masks are of no meaning to these events.
        (INSTRUCTIONS | ALL | 0xff00, 101),
        (BRANCHES | ALL, 0),
        // Bits 35:32 belong to the event.
        (INSTRUCTIONS | ALL | 1 << 32, 0),
        // Not enabled; at no level; at CPL 3 only.
        (INSTRUCTIONS | 3 << 16, 0),
        (INSTRUCTIONS | 1 << 22, 0),
        (INSTRUCTIONS | 1 << 22 | 1 << 16, 0),
        // CNT_MASK of 2; INV.
        (INSTRUCTIONS | ALL | 2 << 24, 0),
        (INSTRUCTIONS | ALL | 2 << 24 | 1 << 23, 101),
    ] {
        for n in 0..4 {
            let mut b = amd();
            let mut code = wrmsr(AMD_PERF_EVT_SEL0 + n, select);
            code.extend([NOP; 100]);
            run(&mut b, &code);
            assert_eq!(read(&mut b, AMD_PERF_CTR0 + n), expected, "{select:#x}");
        }
    }
    let mut b = amd();
    let mut code = wrmsr(AMD_PERF_EVT_SEL0, BRANCHES | ALL);
    // MOV ECX, 7; DEC ECX; JNZ.
    code.extend([0xb9, 7, 0, 0, 0, 0xff, 0xc9, 0x75, 0xfc]);
    run(&mut b, &code);
    assert_eq!(read(&mut b, AMD_PERF_CTR0), 7);
}

/// Reserved bits are dropped; what Intel has is not there, and the other way round.
#[test]
fn registers() {
    let mut b = amd();
    write(&mut b, AMD_PERF_EVT_SEL0 + 3, !(1 << 22));
    assert_eq!(read(&mut b, AMD_PERF_EVT_SEL0 + 3), 0xf_ff97_ffff);
    write(&mut b, AMD_PERF_CTR0 + 3, u64::MAX);
    assert_eq!(read(&mut b, AMD_PERF_CTR0 + 3), (1 << 48) - 1);
    let intel = [
        IA32_PMC0,
        IA32_PERFEVTSEL0,
        IA32_FIXED_CTR0,
        IA32_FIXED_CTR_CTRL,
        IA32_PERF_GLOBAL_STATUS,
        IA32_PERF_GLOBAL_CTRL,
        IA32_PERF_GLOBAL_OVF_CTRL,
    ];
    let ours = [
        AMD_PERF_EVT_SEL0,
        AMD_PERF_CTR0,
        AMD_NAME_STRING0,
        IA32_LASTBRANCHFROMIP,
    ];
    for (make, missing) in [(amd as fn() -> Bench, &intel[..]), (Bench::long, &ours[..])] {
        for &msr in missing {
            let mut b = make();
            b.set(RCX, msr.into());
            assert_eq!(b.run(&[0x0f, 0x32]), Outcome::Vector(GP), "{msr:#x}");
            let mut b = make();
            b.set(RCX, msr.into());
            assert_eq!(b.run(&[0x0f, 0x30]), Outcome::Vector(GP), "{msr:#x}");
        }
    }
}

/// The local APIC's entry stays open.
#[test]
fn overflow() {
    let mut b = amd();
    b.put(HANDLERS + 0x20, HLT);
    write(&mut b, AMD_PERF_CTR0 + 1, (1 << 48) - 2000);
    let mut code = wrmsr(AMD_PERF_EVT_SEL0 + 1, INSTRUCTIONS | ALL | INT);
    code.extend([NOP; 4000]);
    run(&mut b, &code);
    assert_eq!(*b.signals.performance.lock().unwrap(), (1, false));
    let rip: u64 = b.at(b.get(RSP));
    let executed = rip - CODE - 17;
    assert!((2000..2048).contains(&executed), "{executed}");
}

#[test]
fn rdpmc() {
    const RDPMC: &[u8] = &[0x0f, 0x33];
    let mut b = amd();
    write(&mut b, AMD_PERF_CTR0 + 3, 0x8765_1234_5678);
    b.set(RCX, 3);
    b.ok(RDPMC);
    assert_eq!((b.get(RAX), b.get(RDX)), (0x1234_5678, 0x8765));
    for ecx in [4u64, 0x4000_0000, 0x8000_0000] {
        let mut b = amd();
        b.set(RCX, ecx);
        assert_eq!(b.fault(RDPMC, GP), 0, "{ecx:#x}");
    }
}

/// MSRs C001_0030h to C001_0035h are what leaves 8000_0002h to 8000_0004h answer.
#[test]
fn name() {
    let mut b = amd();
    let told = |b: &mut Bench| {
        let mut text = Vec::new();
        for leaf in 0x8000_0002..=0x8000_0004 {
            let r = b.cpu().cpuid(leaf, 0);
            for word in [r.eax, r.ebx, r.ecx, r.edx] {
                text.extend(word.to_le_bytes());
            }
        }
        text
    };
    let model = b.cpu().model.cpuid.get(0x8000_0002, 0).unwrap();
    let first = u64::from(model.ebx) << 32 | u64::from(model.eax);
    assert_eq!(read(&mut b, AMD_NAME_STRING0), first);
    let text = *b"A processor of another name than before, so far.";
    for (msr, part) in (AMD_NAME_STRING0..).zip(text.chunks_exact(8)) {
        write(&mut b, msr, u64::from_le_bytes(part.try_into().unwrap()));
    }
    assert_eq!(told(&mut b), text);
    let saved = b.cpu().save();
    let mut other = amd();
    other.cpu().restore(&saved);
    assert_eq!(told(&mut other), text);
    assert_ne!(told(&mut amd()), text);
}

fn records(b: &mut Bench) -> [u64; 4] {
    [
        IA32_LASTBRANCHFROMIP,
        IA32_LASTBRANCHTOIP,
        IA32_LASTINTFROMIP,
        IA32_LASTINTTOIP,
    ]
    .map(|msr| read(b, msr))
}

/// 13.1.1: taken branches; at an exception or interrupt what they were is kept in two other registers.
#[test]
fn branch_records() {
    let mut b = amd();
    run(&mut b, &[0xeb, 0]);
    assert_eq!(records(&mut b), [0; 4], "not while LBR is clear");
    write(&mut b, IA32_DEBUGCTL, 1);
    // JMP over two NOPs; XOR EAX, EAX; JNZ, not taken.
    run(&mut b, &[0xeb, 2, NOP, NOP, 0x31, 0xc0, 0x75, 0]);
    assert_eq!(records(&mut b), [CODE, CODE + 4, 0, 0]);
    // CALL over a NOP.
    run(&mut b, &[0xe8, 1, 0, 0, 0, NOP]);
    assert_eq!(records(&mut b), [CODE, CODE + 6, 0, 0]);
    // UD2 behind a NOP, and INT 80H.
    for (code, vector) in [([NOP, 0x0f, 0x0b], UD), ([NOP, 0xcd, 0x80], 0x80)] {
        let before = records(&mut b);
        let handler = HANDLERS + 16 * u64::from(vector);
        b.put(handler, HLT);
        run(&mut b, &code);
        let after = [CODE + 1, handler, before[0], before[1]];
        assert_eq!(records(&mut b), after, "{vector:#x}");
    }
    let before = records(&mut b);
    let saved = b.cpu().save();
    let mut other = amd();
    other.cpu().restore(&saved);
    assert_eq!(records(&mut other), before);
    // INT1 is a debug exception: nothing is recorded any more.
    b.put(HANDLERS + 0x10, HLT);
    run(&mut b, &[NOP, 0xf1]);
    assert_eq!(records(&mut b), before);
    assert_eq!(read(&mut b, IA32_DEBUGCTL), 0);
    assert_eq!(b.cpu().pending & crate::cpu::pending::COUNT, 0);
    for msr in IA32_LASTBRANCHFROMIP..=IA32_LASTINTTOIP {
        let mut b = amd();
        b.set(RCX, msr.into());
        assert_eq!(b.run(&[0x0f, 0x30]), Outcome::Vector(GP), "read-only");
    }
}
