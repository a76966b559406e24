//! Paging and its invalidation (SDM Vol 3 chapter 4).

use crate::cpu::gpr::*;
use crate::testing::*;

/// SDM Vol 3 4.10.4.1: INVLPG takes the whole page away, also when its size is more than 4 KByte.
#[test]
fn invlpg_takes_all_of_a_large_page() {
    let mut b = Bench::long();
    let far = 0x60_0000u64;
    b.put::<u64>(far + 0x10_0000, 0x1111);
    b.put::<u64>(0x40_0000 + 0x10_0000, 0x2222);
    b.set(RBX, far + 0x10_0000);
    // mov rax, [rbx]
    b.ok(&[0x48, 0x8b, 0x03]);
    assert_eq!(b.get(RAX), 0x1111);
    b.put::<u64>(PD + 8 * 3, 0x40_0087);
    // invlpg [rcx], at the other end of the page
    b.set(RCX, far + 0x1f_f000);
    b.ok(&[0x0f, 0x01, 0x39]);
    b.ok(&[0x48, 0x8b, 0x03]);
    assert_eq!(b.get(RAX), 0x2222);
}
