//! The part that is about the processor's exits: an instruction that leaves every VT-x or AMD-V guest.

use std::arch::x86_64::__cpuid;
use std::hint::black_box;

use crate::measure::{Part, Wrong};

/// Executions of a batch.
const EXECUTIONS: u32 = 200;

/// CPUID, which exits from a VT-x guest always (Intel SDM volume 3, "Instructions That Cause VM Exits
/// Unconditionally") and from an AMD-V guest as KVM intercepts it: in L2 an operation is an exit to L1's hypervisor
/// and the way back. Leaf 0, whose answer is the same each time.
pub fn cpuid() -> Part {
    Part::new("cpuid", EXECUTIONS, || {
        let expected = __cpuid(0);
        for _ in 0..EXECUTIONS {
            if __cpuid(black_box(0)) != expected {
                return Err(Wrong("CPUID leaf 0 changes".into()));
            }
        }
        Ok(())
    })
}
