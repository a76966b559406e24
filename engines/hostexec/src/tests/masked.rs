//! Masked moves and gathers.

use super::machine::Cpu;
use super::sweep::Random;
use crate::{Feature, MemoryUse, Outcome, PrepareError, host_has};

#[test]
fn byte_masks_of_maskmov() {
    let mut cpu = Cpu::new();
    // maskmovdqu xmm1, xmm2: data in xmm1, mask in xmm2.
    let insn = [0x66, 0x0f, 0xf7, 0xca];
    cpu.ext.ymm[1] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908, 0, 0];
    cpu.ext.ymm[2] = [0x8000_7f00_0000_0080, 0xff00_0000_0000_0000, 0, 0];
    let MemoryUse::MaskedWrite(masked) = cpu.memory_use(&insn) else {
        panic!("a masked write");
    };
    assert_eq!((masked.size(), masked.element_size()), (16, 1));
    assert_eq!(masked.byte_mask(&cpu.ext), 1 | 1 << 7 | 1 << 15);
    cpu.set_mem(&[0xee; 16]);
    let gpr = cpu.gpr;
    assert_eq!(cpu.run(&insn), Outcome::Done);
    let mut expected = [0xee; 16];
    for i in [0, 7, 15] {
        expected[i] = i as u8;
    }
    assert_eq!(cpu.mem.0[..16], expected);
    assert_eq!(cpu.gpr, gpr, "RDI is only the address");

    // maskmovq mm3, mm4, with the x87 stack not at 0: MM4 is physical register R4.
    cpu.ext.set_fsw(3 << 11);
    // It is ST(1) there.
    let slot = 32 + 16;
    cpu.ext.fx[slot..slot + 8].copy_from_slice(&0x0080_0000_0000_8000u64.to_le_bytes());
    let MemoryUse::MaskedWrite(masked) = cpu.memory_use(&[0x0f, 0xf7, 0xdc]) else {
        panic!("a masked write");
    };
    assert_eq!(
        (masked.size(), masked.byte_mask(&cpu.ext)),
        (8, 1 << 1 | 1 << 6)
    );
}

#[test]
fn element_masks_of_vmaskmov() {
    if !host_has(Feature::Avx2) {
        return;
    }
    let mut cpu = Cpu::new();
    cpu.ext.ymm[2] = [1 << 63, 1 << 31, u64::MAX, 0];
    // vmaskmovps ymm1, ymm2, [rax]
    let load = [0xc4, 0xe2, 0x6d, 0x2c, 0x08];
    let MemoryUse::MaskedRead(masked) = cpu.memory_use(&load) else {
        panic!("a masked read");
    };
    assert_eq!((masked.size(), masked.element_size()), (32, 4));
    assert_eq!(masked.byte_mask(&cpu.ext), 0x00ff_0ff0);
    cpu.mem.0[..32].fill(0x77);
    assert_eq!(cpu.run(&load), Outcome::Done);
    assert_eq!(
        cpu.ext.ymm[1],
        [0x7777_7777_0000_0000, 0x7777_7777, 0x7777_7777_7777_7777, 0]
    );
    // vpmaskmovq [rax], ymm2, ymm1
    let store = [0xc4, 0xe2, 0xed, 0x8e, 0x08];
    let MemoryUse::MaskedWrite(masked) = cpu.memory_use(&store) else {
        panic!("a masked write");
    };
    assert_eq!((masked.size(), masked.element_size()), (32, 8));
    assert_eq!(masked.byte_mask(&cpu.ext), 0x00ff_00ff);
    assert_eq!(cpu.prepare(&store).facts().alignment, 1);
}

/// Executes a gather as a caller would, over `table`, up to but not including element `fault_at`.
fn gather(cpu: &mut Cpu, bytes: &[u8], scale: i64, table: &[u8], fault_at: usize) -> bool {
    let MemoryUse::Gather(gather) = cpu.memory_use(bytes) else {
        panic!("a gather");
    };
    gather.start(&mut cpu.ext);
    for i in 0..gather.count() {
        if !gather.wanted(&cpu.ext, i) {
            continue;
        }
        if i >= fault_at {
            return false;
        }
        let at = (gather.index(&cpu.ext, i) * scale + 64) as usize;
        let mut value = [0; 8];
        value[..gather.element_size()].copy_from_slice(&table[at..at + gather.element_size()]);
        gather.complete(&mut cpu.ext, i, u64::from_le_bytes(value));
    }
    gather.finish(&mut cpu.ext);
    true
}

/// The eight forms, as `op ymm1 or xmm1, [rax + v2*1], mask 3`: opcode, W.
const FORMS: [(u8, u8); 8] = [
    (0x90, 0),
    (0x90, 1),
    (0x91, 0),
    (0x91, 1),
    (0x92, 0),
    (0x92, 1),
    (0x93, 0),
    (0x93, 1),
];

fn encode(opcode: u8, w: u8, l: u8) -> [u8; 6] {
    // VEX.66.0F38, vvvv = 3 (inverted), ModRM rm = 100b with SIB base RAX, index 2.
    [0xc4, 0xe2, w << 7 | 0x60 | l << 2 | 1, opcode, 0x0c, 0x10]
}

/// The host's own gather of the same form on the same registers.
fn host_gather(bytes: &[u8], ymm: &[[u64; 4]; 3], table: &[u8]) -> [[u64; 4]; 3] {
    let mut native = super::native::Native::new();
    let mut machine = Random::new().machine();
    machine.mem[..table.len()].copy_from_slice(table);
    machine.ext.ymm[1..4].copy_from_slice(ymm);
    machine.gpr[0] = native.memory_address() + 64;
    assert!(!native.run(bytes, &mut machine));
    [machine.ext.ymm[1], machine.ext.ymm[2], machine.ext.ymm[3]]
}

#[test]
fn gathers_are_the_processors() {
    if !host_has(Feature::Avx2) {
        return;
    }
    let mut random = Random::new();
    let mut cpu = Cpu::new();
    for ((opcode, w), l) in FORMS.into_iter().flat_map(|form| [(form, 0), (form, 1)]) {
        for _ in 0..50 {
            let bytes = encode(opcode, w, l);
            let table: Vec<u8> = (0..256).map(|_| random.next() as u8).collect();
            let mut ymm = [[0; 4]; 3];
            for word in ymm.iter_mut().flatten() {
                *word = random.next();
            }
            // Indexes -64..=127 in the index size of the form (odd opcodes have quadwords).
            for word in &mut ymm[1] {
                let (a, b) = (random.below(180) as i64 - 60, random.below(180) as i64 - 60);
                *word = if opcode & 1 == 1 {
                    a as u64
                } else {
                    u64::from(a as u32) | u64::from(b as u32) << 32
                };
            }
            cpu.ext.ymm[1..4].copy_from_slice(&ymm);
            assert!(gather(&mut cpu, &bytes, 1, &table, 8));
            assert_eq!(
                cpu.ext.ymm[1..4],
                host_gather(&bytes, &ymm, &table),
                "{bytes:02x?}"
            );

            // The same through `run`, with the wanted elements in place.
            let MemoryUse::Gather(plan) = cpu.memory_use(&bytes) else {
                panic!("a gather");
            };
            let done = cpu.ext.ymm;
            cpu.ext.ymm[1..4].copy_from_slice(&ymm);
            for i in (0..plan.count()).filter(|&i| plan.wanted(&cpu.ext, i)) {
                let from = (plan.index(&cpu.ext, i) + 64) as usize;
                let to = i * plan.element_size();
                cpu.mem.0[to..to + plan.element_size()]
                    .copy_from_slice(&table[from..from + plan.element_size()]);
            }
            assert_eq!(cpu.run(&bytes), Outcome::Done);
            assert_eq!(cpu.ext.ymm, done);
        }
    }
}

#[test]
fn a_fault_keeps_what_is_gathered() {
    if !host_has(Feature::Avx2) {
        return;
    }
    let mut cpu = Cpu::new();
    let bytes = encode(0x91, 1, 1); // vpgatherqq ymm1, [rax + ymm2], ymm3
    let table: Vec<u8> = (0..=255).collect();
    cpu.ext.ymm[1] = [1, 2, 3, 4];
    cpu.ext.ymm[2] = [0, 8, 16, 24];
    cpu.ext.ymm[3] = [1 << 63, 0, 1 << 63, 1 << 63];
    assert!(!gather(&mut cpu, &bytes, 1, &table, 2));
    assert_eq!(cpu.ext.ymm[1], [0x4746_4544_4342_4140, 2, 3, 4]);
    assert_eq!(cpu.ext.ymm[3], [0, 0, u64::MAX, u64::MAX]);
    // The instruction starts again and completes.
    assert!(gather(&mut cpu, &bytes, 1, &table, 4));
    assert_eq!(
        cpu.ext.ymm[1],
        [
            0x4746_4544_4342_4140,
            2,
            0x5756_5554_5352_5150,
            0x5f5e_5d5c_5b5a_5958
        ]
    );
    assert_eq!(cpu.ext.ymm[3], [0; 4]);
}

#[test]
fn overlapping_registers_are_undefined() {
    if !host_has(Feature::Avx2) {
        return;
    }
    use iced_x86::{Code, Instruction, MemoryOperand, Register as R};
    let mut cpu = Cpu::new();
    for (dest, index, mask) in [
        (R::XMM1, R::XMM1, R::XMM2),
        (R::XMM1, R::XMM2, R::XMM1),
        (R::XMM1, R::XMM2, R::XMM2),
    ] {
        let memory = MemoryOperand::with_base_index(R::RAX, index);
        let insn =
            Instruction::with3(Code::VEX_Vpgatherdd_xmm_vm32x_xmm, dest, memory, mask).unwrap();
        assert_eq!(
            cpu.exec.prepare(&insn).unwrap_err(),
            PrepareError::Undefined
        );
    }
}
