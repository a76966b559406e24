//! The arithmetic flags, kept lazily.
//!
//! Instead of six bits, an instruction leaves its result and the vector of carries out of each bit; a flag is
//! computed when it is asked for. `result` is sign-extended to 64 bits. `aux` holds, for an operand of n
//! bits, the carries out of bits n-1 and n-2 in bits 63 and 62, the carry out of bit 3 in bit 3, and two
//! corrections that let any combination of flags be represented: bit 0 flips SF, bits 15:8 flip the byte
//! that parity is taken of.

use guestmem::Word;
use x86defs::rflags;

/// Lazy OSZAPC.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flags {
    /// Sign-extended result.
    pub result: u64,
    /// Carries and corrections.
    pub aux: u64,
}

const TOP_CARRIES: u64 = 3 << 62;

/// Sign-extends the low `T` of `v`.
#[inline(always)]
pub fn sign_extend<T: Word>(v: u64) -> u64 {
    let unused = 64 - 8 * T::SIZE as u32;
    (((v << unused) as i64) >> unused) as u64
}

/// Mask of the bits of `T`.
#[inline(always)]
pub const fn mask<T: Word>() -> u64 {
    u64::MAX >> (64 - 8 * T::SIZE)
}

impl Flags {
    /// After an addition (with or without carry in) of operands `a` and `b` giving `sum`.
    #[inline(always)]
    pub fn after_add<T: Word>(&mut self, a: u64, b: u64, sum: u64) {
        self.set_carries::<T>(sum, (a & b) | ((a | b) & !sum));
    }

    /// After a subtraction (with or without borrow in) `a - b` giving `difference`.
    #[inline(always)]
    pub fn after_sub<T: Word>(&mut self, a: u64, b: u64, difference: u64) {
        self.set_carries::<T>(difference, (!a & b) | ((!a | b) & difference));
    }

    #[inline(always)]
    fn set_carries<T: Word>(&mut self, result: u64, carries: u64) {
        self.result = sign_extend::<T>(result);
        self.aux = ((carries << (64 - 8 * T::SIZE)) & TOP_CARRIES) | (carries & 8);
    }

    /// After a logical operation: CF = OF = AF = 0.
    #[inline(always)]
    pub fn after_logic<T: Word>(&mut self, result: u64) {
        self.result = sign_extend::<T>(result);
        self.aux = 0;
    }

    /// Sets SF, ZF, PF from a result and CF, OF as given; AF clear.
    #[inline(always)]
    pub fn set_result_cf_of<T: Word>(&mut self, result: u64, cf: bool, of: bool) {
        self.result = sign_extend::<T>(result);
        self.aux = carry_bits(cf, of);
    }

    /// CF.
    #[inline(always)]
    pub fn cf(self) -> bool {
        (self.aux as i64) < 0
    }

    /// OF.
    #[inline(always)]
    pub fn of(self) -> bool {
        ((self.aux ^ (self.aux << 1)) as i64) < 0
    }

    /// ZF.
    #[inline(always)]
    pub fn zf(self) -> bool {
        self.result == 0
    }

    /// SF.
    #[inline(always)]
    pub fn sf(self) -> bool {
        ((self.result >> 63) ^ self.aux) & 1 != 0
    }

    /// PF.
    #[inline(always)]
    pub fn pf(self) -> bool {
        ((self.result ^ (self.aux >> 8)) as u8).count_ones() & 1 == 0
    }

    /// AF.
    #[inline(always)]
    pub fn af(self) -> bool {
        self.aux & 8 != 0
    }

    /// Changes CF and OF, keeps the rest.
    #[inline(always)]
    pub fn set_cf_of(&mut self, cf: bool, of: bool) {
        self.aux = (self.aux & !TOP_CARRIES) | carry_bits(cf, of);
    }

    /// Changes CF, keeps the rest.
    #[inline(always)]
    pub fn set_cf(&mut self, cf: bool) {
        self.set_cf_of(cf, self.of());
    }

    /// Changes OF, keeps the rest.
    #[inline(always)]
    pub fn set_of(&mut self, of: bool) {
        self.set_cf_of(self.cf(), of);
    }

    /// Changes ZF, keeps the rest.
    pub fn set_zf(&mut self, zf: bool) {
        let bits = self.bits() & !rflags::ZF;
        self.set_bits(if zf { bits | rflags::ZF } else { bits });
    }

    /// The six flags at their places in RFLAGS.
    #[inline]
    pub fn bits(self) -> u64 {
        u64::from(self.cf())
            | u64::from(self.pf()) << 2
            | u64::from(self.af()) << 4
            | u64::from(self.zf()) << 6
            | u64::from(self.sf()) << 7
            | u64::from(self.of()) << 11
    }

    /// Sets all six from an RFLAGS image.
    #[inline]
    pub fn set_bits(&mut self, image: u64) {
        let sf = image & rflags::SF != 0;
        // A result of 100h is non-zero, positive and of even parity; corrections do the rest.
        self.result = if image & rflags::ZF != 0 { 0 } else { 0x100 };
        self.aux = carry_bits(image & rflags::CF != 0, image & rflags::OF != 0)
            | if image & rflags::AF != 0 { 8 } else { 0 }
            | u64::from(sf)
            | if image & rflags::PF != 0 { 0 } else { 0x100 };
    }

    /// The condition of a Jcc, SETcc or CMOVcc by its 4-bit code (SDM Vol 2 B.1.4.7).
    #[inline(always)]
    pub fn condition(self, code: u8) -> bool {
        let base = match code >> 1 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() | self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() | (self.sf() != self.of()),
        };
        base ^ (code & 1 != 0)
    }
}

#[inline(always)]
fn carry_bits(cf: bool, of: bool) -> u64 {
    u64::from(cf) << 63 | u64::from(cf ^ of) << 62
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_survives() {
        for i in 0..64u64 {
            let image = (i & 1) | (i & 2) << 1 | (i & 4) << 2 | (i & 0x18) << 3 | (i & 0x20) << 6;
            let mut f = Flags::default();
            f.set_bits(image);
            assert_eq!(f.bits(), image, "{image:#x}");
        }
    }

    /// ADD and SUB of all bytes against their definition (SDM Vol 1 3.4.3.1).
    #[test]
    fn byte_arithmetic() {
        for a in 0..=255u64 {
            for b in 0..=255u64 {
                let mut f = Flags::default();
                f.after_add::<u8>(a, b, a + b);
                let sum = (a + b) as u8;
                assert_eq!(f.cf(), a + b > 255);
                assert_eq!(f.zf(), sum == 0);
                assert_eq!(f.sf(), sum >= 128);
                assert_eq!(f.of(), (a as i8).checked_add(b as i8).is_none());
                assert_eq!(f.af(), (a & 15) + (b & 15) > 15);
                assert_eq!(f.pf(), sum.count_ones().is_multiple_of(2));
                f.after_sub::<u8>(a, b, a.wrapping_sub(b));
                assert_eq!(f.cf(), a < b);
                assert_eq!(f.zf(), a == b);
                assert_eq!(f.of(), (a as i8).checked_sub(b as i8).is_none());
                assert_eq!(f.af(), (a & 15) < (b & 15));
            }
        }
    }
}
