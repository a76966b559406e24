//! Paging and its invalidation (SDM Vol 3 chapter 4).

use vcpu::cpuid::CpuModel;
use x86defs::exception::PF;

use crate::cpu::gpr::*;
use crate::mem::Access;
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
    assert_eq!(b.fault(&[0x6d], PF), 2);
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

/// Where a read of `va` by privilege level 0 leads, or the error code of its page fault.
fn walk(b: &mut Bench, va: u64) -> Result<u64, u32> {
    let cpu = b.cpu();
    match cpu.translate_as(va, Access::Read, false) {
        Ok(t) => Ok(t.gpa.0),
        Err(_) => {
            assert_eq!((cpu.fault.vector, cpu.fault.detail), (PF, va));
            Err(cpu.fault.error_code)
        }
    }
}

/// 32-bit paging with CR4.PSE set by a processor with addresses of `maxphyaddr` bits, if they are not the model's.
fn pse36(maxphyaddr: Option<u32>) -> Bench {
    let mut model = model_of(CpuModel::NestlingIntel);
    model.maxphyaddr = maxphyaddr.unwrap_or(model.maxphyaddr);
    let mut b = Bench::protected_with(model);
    let cpu = b.cpu();
    cpu.cr3 = PD32;
    cpu.cr4 |= 1 << 4;
    cpu.cr0 |= 1 << 31;
    cpu.select_view();
    b
}

/// The linear address that the tests look up, by the directory's entry 5.
const VA: u64 = 5 << 22 | 0x2_3456;
const PDE: u64 = PD32 + 4 * 5;

/// SDM Vol 3 4.3, Table 4-4: bits 20:13 of an entry for a 4-MByte page are bits 39:32 of the physical address, bits
/// 31:22 those of the same number; bit 12 is PAT. Bit 21 is reserved; the error code has P and RSVD (4.7).
#[test]
fn large_pages_of_32_bit_paging_reach_40_bits() {
    let mut b = pse36(None);
    b.put::<u32>(PDE, 0x0140_0083);
    assert_eq!(walk(&mut b, VA), Ok(0x0142_3456));
    for bit in 0..8 {
        b.put::<u32>(PDE, 0x0140_0083 | 1 << (13 + bit));
        let high = 1u64 << (32 + bit);
        assert_eq!(walk(&mut b, VA), Ok(high | 0x0142_3456), "bit {bit}");
    }
    b.put::<u32>(PDE, 0xffdf_f083);
    assert_eq!(walk(&mut b, VA), Ok(0xff_ffc2_3456));
    b.put::<u32>(PDE, 0x0160_0083);
    assert_eq!(walk(&mut b, VA), Err(9));
    // mov eax, [ebx] delivers the same; address and error code arrive.
    b.set(RBX, VA);
    assert_eq!(b.run(&[0x8b, 0x03]), Outcome::Vector(PF));
    assert_eq!(b.cpu().cr2, VA);
    assert_eq!(b.at::<u32>(b.get(RSP)), 9);
    // Of an entry that is not present nothing else counts.
    b.put::<u32>(PDE, 0x0160_0082);
    assert_eq!(walk(&mut b, VA), Err(0));
}

/// Table 4-4: M is the smaller of 40 and MAXPHYADDR; bits 21:(M - 19) are reserved.
#[test]
fn large_pages_of_32_bit_paging_end_at_maxphyaddr() {
    for (maxphyaddr, m) in [(32, 32), (36, 36), (39, 39), (40, 40), (46, 40), (52, 40)] {
        let mut b = pse36(Some(maxphyaddr));
        for bit in 13..=21 {
            b.put::<u32>(PDE, 0x0140_0083 | 1 << bit);
            let expected = if bit >= m - 19 {
                Err(9)
            } else {
                Ok(1u64 << (bit + 19) | 0x0142_3456)
            };
            assert_eq!(walk(&mut b, VA), expected, "{maxphyaddr}, bit {bit}");
        }
        // PAT is not reserved.
        b.put::<u32>(PDE, 0x0140_1083);
        assert_eq!(walk(&mut b, VA), Ok(0x0142_3456), "{maxphyaddr}");
    }
}

/// SDM Vol 3 4.3: with CR4.PSE clear, bit 7 is ignored and the entry refers to a page table (Table 4-5), whose address
/// are all its bits 31:12.
#[test]
fn without_pse_every_directory_entry_refers_to_a_table() {
    let mut b = pse36(None);
    b.cpu().cr4 &= !(1 << 4);
    b.cpu().select_view();
    // Bit 21 as an address bit: the table lies at 20_0000H.
    b.put::<u32>(PDE, 0x0020_0083);
    b.put::<u32>(0x20_0000 + 4 * 0x23, 0x0076_5003);
    assert_eq!(walk(&mut b, VA), Ok(0x0076_5456));
    // In the last level bit 7 is PAT, and there are no reserved bits.
    b.put::<u32>(0x20_0000 + 4 * 0x23, 0xffff_f083);
    assert_eq!(walk(&mut b, VA), Ok(0xffff_f456));
}

/// SDM Vol 3 4.1.4: the mechanism is there where CPUID.01H:EDX.PSE-36 says so, and every model does.
#[test]
fn every_model_shows_pse36() {
    for cpu in CpuModel::ALL {
        let leaf = model_of(cpu).cpuid.get(1, 0).unwrap();
        assert_eq!(leaf.edx >> 17 & 1, 1, "{cpu}");
    }
}

/// SDM Vol 3 4.10.2.4, 4.10.4.1: a write of CR3, and INVPCID of types 1 and 3, leave global translations alone; INVLPG,
/// INVPCID of type 2, and a change of CR4.PGE do not. Without CR4.PGE the bit means nothing.
#[test]
fn global_translations_outlive_the_others() {
    const CR4_PGE: u64 = 1 << 7;
    const WRITE_CR3: &[u8] = &[0x0f, 0x22, 0xd8];
    const INVLPG: &[u8] = &[0x0f, 0x01, 0x3b];
    const WRITE_CR4: &[u8] = &[0x0f, 0x22, 0xe2];
    // invpcid rsi, [rdi]
    const INVPCID: &[u8] = &[0x66, 0x0f, 0x38, 0x82, 0x37];
    for (instruction, kind, spares) in [
        (WRITE_CR3, 0, true),
        (INVPCID, 1, true),
        (INVPCID, 3, true),
        (INVPCID, 2, false),
        (INVPCID, 0, false),
        (INVLPG, 0, false),
        (WRITE_CR4, 0, false),
    ] {
        for (g, pge) in [(0, CR4_PGE), (1 << 8, 0), (1 << 8, CR4_PGE)] {
            let mut b = Bench::long();
            let old = b.cpu().cr4 | pge;
            b.cpu().write_cr4(old).unwrap();
            let page = SMALL + 0x1000;
            b.put::<u64>(PT + 8, page | 7 | g);
            b.put::<u64>(page, 1);
            b.put::<u64>(page + 0x1000, 2);
            // INVPCID's descriptor: PCID 0, the page.
            b.put::<u64>(DATA, 0);
            b.put::<u64>(DATA + 8, page);
            let cr3 = b.cpu().cr3;
            for (register, value) in [(RBX, page), (RAX, cr3), (RSI, kind), (RDI, DATA)] {
                b.set(register, value);
            }
            b.set(RDX, old ^ CR4_PGE);
            // mov rcx, [rbx]
            b.ok(&[0x48, 0x8b, 0x0b]);
            assert_eq!(b.get(RCX), 1);
            b.put::<u64>(PT + 8, (page + 0x1000) | 7 | g);
            b.ok(instruction);
            b.ok(&[0x48, 0x8b, 0x0b]);
            let stays = spares && g != 0 && pge != 0;
            let expected = if stays { 1 } else { 2 };
            assert_eq!(
                b.get(RCX),
                expected,
                "{instruction:x?} {kind} {g:x} {pge:x}"
            );
        }
    }
}
