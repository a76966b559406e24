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

/// SDM Vol 3 4.6.1: an implicit supervisor access never profits from RFLAGS.AC under SMAP; an explicit one does.
#[test]
fn smap_and_implicit_accesses() {
    let mut b = Bench::long();
    b.cpu().cr4 |= 1 << 21;
    b.cpu().set_rflags(0x4_0002);
    b.cpu().select_view();
    // Everything is a user page here, and the explicit access is allowed.
    b.set(RBX, DATA);
    b.put::<u64>(DATA, 0x55);
    // The fetch is not subject to SMAP.
    b.ok(&[0x48, 0x8b, 0x03]);
    assert_eq!(b.get(RAX), 0x55);
    // mov ds, ecx reads the GDT implicitly: a page fault, whose delivery reads the IDT the same way.
    b.set(RCX, u64::from(sel::DATA));
    assert_eq!(b.run(&[0x8e, 0xd9]), Outcome::Shutdown);
}

/// SDM Vol 2, INS: a fault of the store comes before the port is read; the element may cross a page.
#[test]
fn ins_checks_both_pages() {
    let mut b = Bench::long();
    b.put::<u64>(PT + 8, 0);
    b.set(RDI, SMALL + 0xffe);
    assert_eq!(b.fault(&[0x6d], x86defs::exception::PF), 2);
    assert_eq!(b.cpu().cr2, SMALL + 0x1000);
    assert_eq!(b.get(RDI), SMALL + 0xffe);
}

/// An instruction that crosses from a page into the same page of RAM, mapped twice: a store to it is noticed, and
/// noticing it comes to an end.
#[test]
fn code_that_crosses_into_its_own_page_can_change() {
    let mut b = Bench::long();
    b.put::<u64>(PT + 8, SMALL | 7);
    // mov eax, imm32 at the page's last byte; the immediate at its first.
    b.put::<u8>(SMALL + 0xfff, 0xb8);
    for value in [0x1111_1111u32, 0x2222_2222, 0x3333_3333] {
        b.ram
            .write(guestmem::Gpa(SMALL), &value.to_le_bytes())
            .unwrap();
        b.cpu().regs[crate::cpu::RIP] = SMALL + 0xfff;
        b.runner.single_step();
        assert_eq!(b.get(RAX), u64::from(value));
    }
}
