//! The part that is about the processor's exits: an instruction that leaves every VT-x or AMD-V guest.

use std::arch::x86_64::__cpuid;
use std::hint::black_box;

use crate::measure::{Group, Part, Wrong};

/// Executions of a batch.
const EXECUTIONS: u32 = 500;

/// CPUID, which exits from a VT-x guest always (Intel SDM volume 3, "Instructions That Cause VM Exits
/// Unconditionally") and from an AMD-V guest as KVM intercepts it: in L2 an operation is an exit to L1's hypervisor
/// and the way back. Leaf 0, whose answer is the same each time.
pub const PART: Part = Part {
    name: "cpuid",
    group: Group::Exit,
    operation: "CPUID",
    needs: &[],
    operations: EXECUTIONS,
    batches: 200,
    expected: Some(EXECUTIONS as u64),
    prepare: |_| {
        Ok(Box::new(|| {
            let expected = __cpuid(0);
            for _ in 0..EXECUTIONS {
                if __cpuid(black_box(0)) != expected {
                    return Err(Wrong("CPUID leaf 0 changes".into()));
                }
            }
            Ok(u64::from(EXECUTIONS))
        }))
    },
};
