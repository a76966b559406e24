//! Unmasked SIMD underflow.
//!
//! While stubs run, underflow is masked, and a masked underflow is flagged only if the tiny result is also
//! inexact; an unmasked one is signaled for every tiny result (SDM Vol. 1, 4.9.1.5 and 11.5.2.5). So when the
//! guest unmasks it, the results themselves are looked at: a result that is denormal is tiny. Results that were
//! tiny and rounded up to a normal number are inexact, so the masked run has flagged them.

use crate::state::{Bounce, ExtState};
use iced_x86::{Instruction, Mnemonic as M, OpKind};

/// MXCSR: underflow flag.
pub(crate) const MXCSR_UE: u32 = 1 << 4;
/// MXCSR: underflow mask.
pub(crate) const MXCSR_UM: u32 = 1 << 11;
/// MXCSR: flush to zero.
pub(crate) const MXCSR_FTZ: u32 = 1 << 15;

/// Format of the elements an instruction computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Half,
    Single,
    Double,
}

/// Where an instruction's computed floating-point results are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tiny {
    /// It has none that can be tiny.
    Never,
    /// In the low `count` elements of register `register`.
    Register {
        register: u8,
        format: Format,
        count: u8,
    },
    /// In the low `count` elements of the memory operand.
    Memory { format: Format, count: u8 },
}

impl Tiny {
    /// Whether a result is tiny: denormal and not zero.
    pub(crate) fn found(self, ext: &ExtState, mem: &Bounce) -> bool {
        match self {
            Tiny::Never => false,
            Tiny::Register {
                register,
                format,
                count,
            } => {
                let mut bytes = [0; 32];
                let words = &ext.ymm[usize::from(register & 15)];
                for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
                    to.copy_from_slice(&word.to_le_bytes());
                }
                any_denormal(&bytes, format, count)
            }
            Tiny::Memory { format, count } => any_denormal(&mem.0, format, count),
        }
    }
}

fn any_denormal(bytes: &[u8], format: Format, count: u8) -> bool {
    let (size, fraction_bits) = match format {
        Format::Half => (2, 10),
        Format::Single => (4, 23),
        Format::Double => (8, 52),
    };
    bytes
        .chunks_exact(size)
        .take(usize::from(count))
        .any(|element| {
            let mut value = [0; 8];
            value[..size].copy_from_slice(element);
            let magnitude = u64::from_le_bytes(value) & ((1 << (size * 8 - 1)) - 1);
            magnitude != 0 && magnitude >> fraction_bits == 0
        })
}

/// The formats and widths of instructions whose results can be tiny: `(format, scalar)`.
fn computed(mnemonic: M) -> Option<(Format, bool)> {
    #[rustfmt::skip]
    let found = match mnemonic {
        M::Addps | M::Subps | M::Mulps | M::Divps | M::Addsubps | M::Haddps | M::Hsubps | M::Dpps
        | M::Vaddps | M::Vsubps | M::Vmulps | M::Vdivps | M::Vaddsubps | M::Vhaddps | M::Vhsubps | M::Vdpps
        | M::Vfmadd132ps | M::Vfmadd213ps | M::Vfmadd231ps | M::Vfmsub132ps | M::Vfmsub213ps | M::Vfmsub231ps
        | M::Vfnmadd132ps | M::Vfnmadd213ps | M::Vfnmadd231ps
        | M::Vfnmsub132ps | M::Vfnmsub213ps | M::Vfnmsub231ps
        | M::Vfmaddsub132ps | M::Vfmaddsub213ps | M::Vfmaddsub231ps
        | M::Vfmsubadd132ps | M::Vfmsubadd213ps | M::Vfmsubadd231ps
        | M::Cvtpd2ps | M::Vcvtpd2ps => (Format::Single, false),
        M::Addpd | M::Subpd | M::Mulpd | M::Divpd | M::Addsubpd | M::Haddpd | M::Hsubpd | M::Dppd
        | M::Vaddpd | M::Vsubpd | M::Vmulpd | M::Vdivpd | M::Vaddsubpd | M::Vhaddpd | M::Vhsubpd | M::Vdppd
        | M::Vfmadd132pd | M::Vfmadd213pd | M::Vfmadd231pd | M::Vfmsub132pd | M::Vfmsub213pd | M::Vfmsub231pd
        | M::Vfnmadd132pd | M::Vfnmadd213pd | M::Vfnmadd231pd
        | M::Vfnmsub132pd | M::Vfnmsub213pd | M::Vfnmsub231pd
        | M::Vfmaddsub132pd | M::Vfmaddsub213pd | M::Vfmaddsub231pd
        | M::Vfmsubadd132pd | M::Vfmsubadd213pd | M::Vfmsubadd231pd => (Format::Double, false),
        M::Addss | M::Subss | M::Mulss | M::Divss | M::Vaddss | M::Vsubss | M::Vmulss | M::Vdivss
        | M::Vfmadd132ss | M::Vfmadd213ss | M::Vfmadd231ss | M::Vfmsub132ss | M::Vfmsub213ss | M::Vfmsub231ss
        | M::Vfnmadd132ss | M::Vfnmadd213ss | M::Vfnmadd231ss
        | M::Vfnmsub132ss | M::Vfnmsub213ss | M::Vfnmsub231ss
        | M::Cvtsd2ss | M::Vcvtsd2ss => (Format::Single, true),
        M::Addsd | M::Subsd | M::Mulsd | M::Divsd | M::Vaddsd | M::Vsubsd | M::Vmulsd | M::Vdivsd
        | M::Vfmadd132sd | M::Vfmadd213sd | M::Vfmadd231sd | M::Vfmsub132sd | M::Vfmsub213sd | M::Vfmsub231sd
        | M::Vfnmadd132sd | M::Vfnmadd213sd | M::Vfnmadd231sd
        | M::Vfnmsub132sd | M::Vfnmsub213sd | M::Vfnmsub231sd => (Format::Double, true),
        M::Vcvtps2ph => (Format::Half, false),
        _ => return None,
    };
    Some(found)
}

/// Where `insn` (canonical) leaves results that can be tiny.
pub(crate) fn tiny(insn: &Instruction) -> Tiny {
    let Some((format, scalar)) = computed(insn.mnemonic()) else {
        return Tiny::Never;
    };
    let element = match format {
        Format::Half => 2,
        Format::Single => 4,
        Format::Double => 8,
    };
    if insn.op_kind(0) == OpKind::Memory {
        let count = (insn.memory_size().size() / element) as u8;
        return Tiny::Memory { format, count };
    }
    let destination = insn.op0_register();
    // VEX and conversions clear what they do not compute, and zero is not tiny, so the width of the
    // register bounds the results well enough.
    let width = if destination.is_ymm() { 32 } else { 16 };
    Tiny::Register {
        register: destination.number() as u8 & 15,
        format,
        count: if scalar { 1 } else { (width / element) as u8 },
    }
}
