//! Code that changes: what translators of all kinds do inside a guest.

use std::hint::black_box;

use crate::kernel::Mapping;
use crate::measure::{Batch, Group, Part, Places, Wrong};

/// Changes of a batch.
const CHANGES: u32 = 2_000;
/// `mov eax, imm32; lea eax, [rax + rdi * 2]; ret`.
const FUNCTION: [u8; 9] = [0xb8, 0, 0, 0, 0, 0x8d, 0x04, 0x78, 0xc3];
/// Where its value stands.
const VALUE_AT: usize = 1;
/// Every function begins at a multiple of this.
const PLACE_BYTES: usize = 16;
/// New functions go around in a page of their own and one more.
const PLACES: usize = 2 * 4096 / PLACE_BYTES;

/// The part.
pub const PART: Part = Part {
    name: "self-modifying",
    group: Group::Compute,
    operation: "change and call",
    needs: &[],
    operations: CHANGES,
    batches: 100,
    expected: Some(expected()),
    prepare,
};

/// What all calls of a batch give together: call `n` gives `7 n + 2 n`.
const fn expected() -> u64 {
    let n = CHANGES as u64;
    9 * (n * (n - 1) / 2)
}

/// Half of the changes are to the value in a function that was just called, half write a whole function where no one
/// was called lately.
fn prepare(_: &Places) -> Result<Batch, Wrong> {
    let code = Mapping::executable((PLACES + 1) * PLACE_BYTES)?;
    let start = code.start();
    // SAFETY: the first place of the mapping, which is writable and known to nobody else.
    unsafe { start.cast::<[u8; 9]>().write(FUNCTION) };
    Ok(Box::new(move || {
        let _code = &code;
        let mut sum = 0;
        for n in 0..CHANGES {
            let value = 7 * n;
            let place = match n % 2 {
                0 => 0,
                _ => 1 + n as usize / 2 % PLACES,
            };
            let at = start.wrapping_add(place * PLACE_BYTES);
            // SAFETY: `at` is a place of the mapping, which is readable, writable, executable and lives as long as
            // this closure. What is called there is a whole function that takes an integer in EDI, gives one in EAX
            // and touches nothing else (System V ABI). A processor sees its own stores to code at the next branch
            // (Intel SDM volume 3, "Handling Self- and Cross-Modifying Code").
            sum += u64::from(unsafe {
                if place > 0 {
                    at.cast::<[u8; 9]>().write(FUNCTION);
                }
                at.add(VALUE_AT).cast::<u32>().write_unaligned(value);
                let function: extern "sysv64" fn(u32) -> u32 = std::mem::transmute(black_box(at));
                function(n)
            });
        }
        Ok(sum)
    }))
}
