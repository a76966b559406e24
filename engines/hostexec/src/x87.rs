//! x87 control instructions, environment images and the MMX view of the x87 registers.
//!
//! Control instructions move words between the state and memory and compute nothing, so they are done here,
//! without the host's x87 (SDM Vol. 1, 8.1; the images: figures 8-9 to 8-12).

use crate::facts::{Control, EnvSize};
use crate::state::{
    Bounce, ExtState, FCW_FNINIT, FSW_BUSY, FSW_ES, FSW_EXCEPTIONS, FSW_TOP, FX_ST,
};

/// What x87 instructions record about themselves, and the form of environment images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct X87Context {
    /// Address of the instruction (offset in its code segment), first prefix included.
    pub rip: u64,
    /// Offset of the memory operand in its segment; `None` leaves FDP alone.
    pub data_address: Option<u64>,
    /// Low three bits of the first opcode byte (D8h..DFh), then the ModRM byte: 11 bits.
    pub opcode: u16,
    /// Real-address or virtual-8086 mode: environment images have their real-mode form.
    pub real_mode: bool,
}

/// FCW bits that can be written: masks, precision, rounding, infinity control. Bit 6 always reads as one.
const FCW_WRITABLE: u16 = 0x1f3f;
const FCW_FIXED: u16 = 0x0040;

impl X87Context {
    /// Records a non-control instruction (SDM Vol. 1, 8.1.8 and 8.1.9).
    pub(crate) fn record(&self, ext: &mut ExtState) {
        ext.set_fop(self.opcode);
        ext.set_fip(self.rip);
        if let Some(address) = self.data_address {
            ext.set_fdp(address);
        }
    }
}

/// Sets ES and B from the flags and masks.
fn summarize(ext: &mut ExtState) {
    let fsw = ext.fsw() & !(FSW_ES | FSW_BUSY);
    let pending = fsw & !ext.fcw() & FSW_EXCEPTIONS != 0;
    ext.set_fsw(if pending {
        fsw | FSW_ES | FSW_BUSY
    } else {
        fsw
    });
}

fn load_fcw(ext: &mut ExtState, fcw: u16) {
    ext.set_fcw(fcw & FCW_WRITABLE | FCW_FIXED);
    summarize(ext);
}

fn fninit(ext: &mut ExtState) {
    load_fsw(ext, 0);
    ext.set_fcw(FCW_FNINIT);
    ext.set_ftw_abridged(0);
    ext.set_fop(0);
    ext.set_fip(0);
    ext.set_fdp(0);
}

/// Executes `control`; pending exceptions have been dealt with.
pub(crate) fn run_control(
    control: Control,
    ext: &mut ExtState,
    gpr: &mut [u64; 16],
    mem: &mut Bounce,
    real_mode: bool,
) {
    let word = u16::from_le_bytes([mem.0[0], mem.0[1]]);
    match control {
        Control::Wait | Control::Ignored => {}
        Control::Fninit => fninit(ext),
        Control::Fnclex => {
            let fsw = ext.fsw() & !(FSW_BUSY | 0xff);
            ext.set_fsw(fsw);
        }
        Control::Fldcw => load_fcw(ext, word),
        Control::Fnstcw => put16(&mut mem.0, 0, ext.fcw()),
        Control::FnstswMem => put16(&mut mem.0, 0, ext.fsw()),
        Control::FnstswAx => gpr[0] = gpr[0] & !0xffff | u64::from(ext.fsw()),
        Control::Fnstenv(size) => {
            store_environment(ext, &mut mem.0, size, real_mode);
            let masked = ext.fcw() | FSW_EXCEPTIONS;
            load_fcw(ext, masked);
        }
        Control::Fldenv(size) => load_environment(ext, &mem.0, size, real_mode),
        Control::Fnsave(size) => {
            store_environment(ext, &mut mem.0, size, real_mode);
            let registers = environment_len(size);
            for i in 0..8u8 {
                let at = registers + usize::from(i) * 10;
                mem.0[at..at + 10].copy_from_slice(&ext.st(i));
            }
            fninit(ext);
        }
        Control::Frstor(size) => {
            load_environment(ext, &mem.0, size, real_mode);
            let registers = environment_len(size);
            for i in 0..8 {
                let from = registers + i * 10;
                let to = FX_ST + i * 16;
                ext.fx[to..to + 10].copy_from_slice(&mem.0[from..from + 10]);
                ext.fx[to + 10..to + 16].fill(0);
            }
        }
    }
}

fn environment_len(size: EnvSize) -> usize {
    match size {
        EnvSize::Bits16 => 14,
        EnvSize::Bits32 => 28,
    }
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from(get16(bytes, at)) | u32::from(get16(bytes, at + 2)) << 16
}

/// The two-bit tags of all registers, computed from their contents (SDM Vol. 1, 8.1.7).
pub(crate) fn full_tag_word(ext: &ExtState) -> u16 {
    let top = ext.top();
    (0..8u8).fold(0, |tags, physical| {
        let tag = if ext.ftw_abridged() >> physical & 1 == 0 {
            3
        } else {
            let register = ext.st(physical.wrapping_sub(top) & 7);
            let exponent = get16(&register, 8) & 0x7fff;
            let integer_bit = register[7] & 0x80 != 0;
            match exponent {
                0 if register[..8].iter().all(|&byte| byte == 0) => 1,
                0 | 0x7fff => 2,
                _ if integer_bit => 0,
                _ => 2,
            }
        };
        tags | tag << (physical * 2)
    })
}

fn abridge(tags: u16) -> u8 {
    (0..8).fold(0, |abridged, physical| {
        abridged | u8::from(tags >> (physical * 2) & 3 != 3) << physical
    })
}

fn store_environment(ext: &ExtState, bytes: &mut [u8], size: EnvSize, real_mode: bool) {
    let (fip, fdp, fop) = (ext.fip(), ext.fdp(), ext.fop());
    let tags = full_tag_word(ext);
    match size {
        EnvSize::Bits32 => {
            for (i, word) in [ext.fcw(), ext.fsw(), tags].into_iter().enumerate() {
                put32(bytes, i * 4, 0xffff_0000 | u32::from(word));
            }
            if real_mode {
                put32(bytes, 12, 0xffff_0000 | fip as u32 & 0xffff);
                put32(bytes, 16, (fip as u32 >> 16) << 12 | u32::from(fop));
                put32(bytes, 20, 0xffff_0000 | fdp as u32 & 0xffff);
                put32(bytes, 24, (fdp as u32 >> 16) << 12);
            } else {
                put32(bytes, 12, fip as u32);
                put32(bytes, 16, u32::from(fop) << 16);
                put32(bytes, 20, fdp as u32);
                put32(bytes, 24, 0xffff_0000);
            }
        }
        EnvSize::Bits16 => {
            let high = |pointer: u64| (pointer >> 16) as u16 & 0xf;
            let (fip_high, fdp_high) = if real_mode {
                (high(fip) << 12 | fop, high(fdp) << 12)
            } else {
                (0, 0)
            };
            let words = [
                ext.fcw(),
                ext.fsw(),
                tags,
                fip as u16,
                fip_high,
                fdp as u16,
                fdp_high,
            ];
            for (i, word) in words.into_iter().enumerate() {
                put16(bytes, i * 2, word);
            }
        }
    }
}

fn load_environment(ext: &mut ExtState, bytes: &[u8], size: EnvSize, real_mode: bool) {
    let step = match size {
        EnvSize::Bits16 => 2,
        EnvSize::Bits32 => 4,
    };
    let fsw = get16(bytes, step);
    let tags = get16(bytes, 2 * step);
    let (fip, fdp, fop) = match (size, real_mode) {
        (EnvSize::Bits32, false) => (
            get32(bytes, 12),
            get32(bytes, 20),
            (get32(bytes, 16) >> 16) as u16,
        ),
        (EnvSize::Bits32, true) => {
            let fip_high = get32(bytes, 16);
            (
                u32::from(get16(bytes, 12)) | fip_high >> 12 << 16,
                u32::from(get16(bytes, 20)) | get32(bytes, 24) >> 12 << 16,
                fip_high as u16,
            )
        }
        (EnvSize::Bits16, false) => (
            u32::from(get16(bytes, 6)),
            u32::from(get16(bytes, 10)),
            ext.fop(),
        ),
        (EnvSize::Bits16, true) => {
            let fip_high = get16(bytes, 8);
            (
                u32::from(get16(bytes, 6)) | u32::from(fip_high >> 12) << 16,
                u32::from(get16(bytes, 10)) | u32::from(get16(bytes, 12) >> 12) << 16,
                fip_high,
            )
        }
    };
    load_fsw(ext, fsw);
    ext.set_ftw_abridged(abridge(tags));
    ext.set_fip(u64::from(fip));
    ext.set_fdp(u64::from(fdp));
    ext.set_fop(fop);
    load_fcw(ext, get16(bytes, 0));
}

/// Makes the x87 state that of MMX code: TOP 0, all registers valid (SDM Vol. 1, 9.5.1).
#[inline]
pub(crate) fn enter_mmx(ext: &mut ExtState) {
    if ext.top() != 0 {
        let fsw = ext.fsw() & !FSW_TOP;
        load_fsw(ext, fsw);
    }
    ext.set_ftw_abridged(0xff);
}

/// EMMS: TOP 0, all registers empty.
pub(crate) fn emms(ext: &mut ExtState) {
    enter_mmx(ext);
    ext.set_ftw_abridged(0);
}

/// Sets FSW and keeps each physical register's contents: the image is in stack order, so a TOP that changes
/// moves the registers in it.
#[cold]
fn load_fsw(ext: &mut ExtState, fsw: u16) {
    let old_top = ext.top();
    ext.set_fsw(fsw);
    let moved = ext.top().wrapping_sub(old_top) & 7;
    ext.fx[FX_ST..FX_ST + 128].rotate_left(usize::from(moved) * 16);
}

/// Whether an unmasked exception just raised kept an x87 store from its memory operand: invalid operation,
/// overflow and underflow are found before the result is stored, inexact after (SDM Vol. 1, 8.5).
#[inline]
pub(crate) fn store_suppressed(ext: &ExtState) -> bool {
    const INVALID_OVERFLOW_UNDERFLOW: u16 = 0x19;
    ext.fsw() & !ext.fcw() & INVALID_OVERFLOW_UNDERFLOW != 0
}
