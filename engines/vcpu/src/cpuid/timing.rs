//! Leaves 15h and 16h: how fast the TSC and the core crystal clock are (SDM Vol 3 19.7.3).

use super::CpuidResult;

/// TSC frequency = crystal clock * `numerator` / `denominator`: EBX and EAX of leaf 15h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscRatio {
    /// EBX.
    pub numerator: u32,
    /// EAX.
    pub denominator: u32,
    /// The ratio gives the frequency to the Hz.
    pub exact: bool,
}

const fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The ratio to tell, if there is one.
///
/// Operating systems multiply the crystal's kHz by the numerator in 32 bits (Linux does), so the
/// numerator is kept below 2^32 / kHz. A pair whose reduced fraction fits (any TSC in whole multiples of 100
/// kHz over a crystal of 25 MHz, for example) is told exactly; for others the best convergent of the continued
/// fraction that fits is taken. `None` when a frequency is 0 or no ratio fits.
#[must_use]
pub fn tsc_ratio(tsc_hz: u64, crystal_hz: u32) -> Option<TscRatio> {
    if tsc_hz == 0 || crystal_hz == 0 {
        return None;
    }
    let limit = u64::from(u32::MAX) / u64::from(crystal_hz / 1000).max(1);
    let g = gcd(tsc_hz, u64::from(crystal_hz));
    let (mut a, mut b) = (tsc_hz / g, u64::from(crystal_hz) / g);
    let (mut before, mut best) = ((0u64, 1u64), (1u64, 0u64));
    while b != 0 {
        let q = a / b;
        // A convergent never exceeds the reduced fraction, but `q` of a far-off pair may be large.
        let next = (
            q.saturating_mul(best.0).saturating_add(before.0),
            q.saturating_mul(best.1).saturating_add(before.1),
        );
        if next.0 > limit || next.1 > u64::from(u32::MAX) {
            break;
        }
        (before, best) = (best, next);
        (a, b) = (b, a % b);
    }
    let (numerator, denominator) = (u32::try_from(best.0).ok()?, u32::try_from(best.1).ok()?);
    (numerator != 0 && denominator != 0).then_some(TscRatio {
        numerator,
        denominator,
        exact: b == 0,
    })
}

/// Leaves 15h and 16h. Leaf 15h is zero ("not enumerated") where no ratio fits; leaf 16h has the base and the
/// highest frequency in MHz, both the TSC's, and a bus reference of 100 MHz.
#[must_use]
pub fn timing_leaves(tsc_hz: u64, crystal_hz: u32) -> (CpuidResult, CpuidResult) {
    let leaf15 = tsc_ratio(tsc_hz, crystal_hz).map_or(CpuidResult::default(), |r| CpuidResult {
        eax: r.denominator,
        ebx: r.numerator,
        ecx: crystal_hz,
        edx: 0,
    });
    // 16 bits each; a TSC beyond 65 GHz is no one's.
    let mhz =
        u32::from(u16::try_from((tsc_hz.saturating_add(500_000)) / 1_000_000).unwrap_or(u16::MAX));
    let leaf16 = CpuidResult {
        eax: mhz,
        ebx: mhz,
        ecx: 100,
        edx: 0,
    };
    (leaf15, leaf16)
}
