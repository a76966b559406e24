//! Contents of operands and of the floating-point and vector state.

use iced_x86::{Instruction, MemorySize, Mnemonic};

use crate::case::{Extended, Registers};
use crate::random::{Lane, Random};

use super::POPPED_FLAGS;

/// MXCSR bits both vendors have (SDM Vol 1 10.2.3); AMD also has bit 17, misaligned exception mask
/// (APM Vol 1 4.2.2), which is never set here.
const MXCSR_BITS: u32 = 0xffff;

/// MXCSR: sticky flags, DAZ, masks, rounding, FTZ.
fn draw_mxcsr(random: &mut Random) -> u32 {
    let mut value = 0x1f80 | (random.below(4) as u32) << 13;
    if random.chance(500) {
        value |= random.below(64) as u32;
    }
    if random.chance(120) {
        value |= 1 << 6;
    }
    if random.chance(120) {
        value |= 1 << 15;
    }
    if random.chance(20) {
        value &= !((random.below(64) as u32) << 7);
    }
    value
}

/// Control and status word that agree: pending unmasked exceptions set ES and B (SDM Vol 1 8.1.3.3).
fn draw_x87_words(random: &mut Random) -> (u16, u16) {
    let masks = if random.chance(970) {
        0x3f
    } else {
        random.below(64) as u16
    };
    let precision = random.pick(&[0u16, 2, 3, 3, 3]);
    let control = 0x40 | masks | precision << 8 | (random.below(4) as u16) << 10;
    let mut status = (random.below(8) as u16) << 11 | random.bits64() as u16 & 0x4700;
    let mut flags = random.below(128) as u16;
    if random.chance(700) {
        // Without unmasked ones pending.
        flags &= masks | 0x40;
    }
    status |= flags;
    if flags & 0x3f & !masks != 0 {
        status |= 0x8080;
    }
    (control, status)
}

/// Vector and floating-point registers.
pub fn draw_extended(state: &mut Extended, lane: Lane, random: &mut Random) {
    let (control, status) = draw_x87_words(random);
    state.set_fcw(control);
    state.set_fsw(status);
    state.set_abridged_tags(match random.below(8) {
        0 => 0,
        1 | 2 => random.bits64() as u8,
        _ => 0xff,
    });
    state.set_mxcsr(draw_mxcsr(random));
    state.legacy[28..32].copy_from_slice(&MXCSR_BITS.to_le_bytes());
    for i in 0..8 {
        let value = random.float80();
        state.set_st(i, value);
    }
    for i in 0..16 {
        let mut bytes = [0; 32];
        let kind = draw_lane(lane, random);
        random.fill(kind, &mut bytes);
        let half = |at: usize| {
            let mut value = [0; 16];
            value.copy_from_slice(&bytes[at..at + 16]);
            u128::from_le_bytes(value)
        };
        state.set_xmm(i, half(0));
        state.ymm_high[i] = half(16);
    }
}

fn draw_lane(lane: Lane, random: &mut Random) -> Lane {
    if lane != Lane::Any && random.chance(800) {
        return lane;
    }
    random.pick(&[
        Lane::Int8,
        Lane::Int16,
        Lane::Int32,
        Lane::Int64,
        Lane::Float32,
        Lane::Float64,
        Lane::Any,
    ])
}

/// What a memory operand holds before the instruction; empty for the window's background.
pub fn operand(
    instruction: &Instruction,
    memory: MemorySize,
    lane: Lane,
    registers: &Registers,
    random: &mut Random,
) -> Vec<u8> {
    use MemorySize as S;
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Ldmxcsr | M::Vldmxcsr => {
            let reserved = if random.chance(30) {
                1 << (18 + random.below(14))
            } else {
                0
            };
            return (draw_mxcsr(random) | reserved).to_le_bytes().to_vec();
        }
        M::Fldcw => return draw_x87_words(random).0.to_le_bytes().to_vec(),
        M::Fldenv => return environment(instruction, random),
        M::Frstor => {
            let mut image = environment(instruction, random);
            for _ in 0..8 {
                image.extend(random.float80());
            }
            return image;
        }
        M::Fxrstor | M::Fxrstor64 => return legacy_image(random),
        M::Xrstor | M::Xrstor64 => return xsave_image(random),
        M::Popf | M::Popfd | M::Popfq => {
            let flags = random.bits64() & POPPED_FLAGS | 0x202;
            return flags.to_le_bytes().to_vec();
        }
        M::Cmpxchg8b | M::Cmpxchg16b | M::Cmpxchg if random.chance(500) => {
            let gpr = &registers.gpr;
            let size = memory.size();
            let mut bytes = Vec::with_capacity(16);
            match instruction.mnemonic() {
                M::Cmpxchg8b => {
                    bytes.extend((gpr[0] as u32).to_le_bytes());
                    bytes.extend((gpr[2] as u32).to_le_bytes());
                }
                M::Cmpxchg16b => {
                    bytes.extend(gpr[0].to_le_bytes());
                    bytes.extend(gpr[2].to_le_bytes());
                }
                _ => bytes.extend(&gpr[0].to_le_bytes()[..size.min(8)]),
            }
            return bytes;
        }
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => {
            let mut bytes = vec![0; 96];
            let letter = 0x41 + random.below(2) as u8;
            bytes.fill(letter);
            if random.chance(500) {
                bytes[random.below(96) as usize] = 0x40;
            }
            return bytes;
        }
        M::Scasb | M::Scasw | M::Scasd | M::Scasq if random.chance(700) => {
            let mut bytes: Vec<u8> = registers.gpr[0]
                .to_le_bytes()
                .iter()
                .take(memory.size().clamp(1, 8))
                .copied()
                .cycle()
                .take(64)
                .collect();
            if random.chance(500) {
                bytes[random.below(64) as usize] ^= 1;
            }
            return bytes;
        }
        _ => {}
    }
    let size = memory.size();
    match memory {
        S::Float80 => random.float80().to_vec(),
        S::Float32 => random.float32().to_le_bytes().to_vec(),
        S::Float64 => random.float64().to_le_bytes().to_vec(),
        S::Bcd => decimal(random),
        _ if size == 0 || size > 64 => Vec::new(),
        _ => {
            let mut bytes = vec![0; size];
            let lane = match size {
                _ if size >= 16 || lane != Lane::Any => draw_lane(lane, random),
                1 => Lane::Int8,
                2 => Lane::Int16,
                4 => Lane::Int32,
                _ => Lane::Int64,
            };
            random.fill(lane, &mut bytes);
            bytes
        }
    }
}

/// Packed decimal: 18 digits and a sign (SDM Vol 1 4.7). Other digits than 0 to 9 are undefined (FBLD).
fn decimal(random: &mut Random) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..10)
        .map(|_| (random.below(10) << 4 | random.below(10)) as u8)
        .collect();
    if random.chance(300) {
        bytes[4..9].fill(0);
    }
    bytes[9] = (random.below(2) as u8) << 7;
    bytes
}

/// The environment FLDENV loads, in the format of the operand size (SDM Vol 1 8.1.10).
fn environment(instruction: &Instruction, random: &mut Random) -> Vec<u8> {
    let (control, status) = draw_x87_words(random);
    let tags = if random.chance(500) {
        0
    } else {
        random.bits64() as u16
    };
    let short = matches!(
        instruction.code(),
        iced_x86::Code::Fldenv_m14byte | iced_x86::Code::Frstor_m94byte
    );
    let mut bytes = Vec::with_capacity(28);
    for word in [control, status, tags] {
        bytes.extend(word.to_le_bytes());
        if !short {
            bytes.extend([0xff, 0xff]);
        }
    }
    bytes.resize(if short { 14 } else { 28 }, 0);
    bytes
}

fn legacy_image(random: &mut Random) -> Vec<u8> {
    let mut state = Extended::default();
    draw_extended(&mut state, Lane::Any, random);
    if random.chance(30) {
        state.set_mxcsr(state.mxcsr() | 1 << (18 + random.below(14)));
    }
    state.legacy.to_vec()
}

/// An XSAVE area in the standard or the compacted format (SDM Vol 1 13.4), sometimes with a header that
/// XRSTOR refuses (13.8).
fn xsave_image(random: &mut Random) -> Vec<u8> {
    let mut image = legacy_image(random);
    image.resize(576, 0);
    let in_use = random.below(8);
    image[512] = in_use as u8;
    if random.chance(300) {
        image[520] = (in_use | random.below(8)) as u8;
        image[527] = 0x80;
    }
    if random.chance(60) {
        let at = 512 + random.below(64) as usize;
        image[at] ^= 1 << random.below(8);
        // Bits of state components that the host may have and the guest does not are left alone.
        image[512] &= 7;
        image[513] = 0;
        image[514] = 0;
        image[520] &= 7;
        image[521] = 0;
        image[522] = 0;
    }
    for _ in 0..16 {
        let mut half = [0; 16];
        let kind = draw_lane(Lane::Any, random);
        random.fill(kind, &mut half);
        image.extend(half);
    }
    image
}
