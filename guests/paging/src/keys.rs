//! Protection keys (4.6.2): both bits of PKRU, both privilege levels, CR0.WP, page sizes, and their error code (4.7).

use core::arch::asm;

use runtime::cpu::{self, cr0, cr4};
use runtime::memory::{page, read, write};
use runtime::paging::{entry, root, user_address};
use runtime::trap::{self, raised_at};
use runtime::{address, check_eq, section, skip, snippet};

use crate::{map_one, sizes};

snippet! {
    key_read: "mov rax, [rdi]", "ret";
    key_write: "mov [rdi], rdi", "ret";
    key_user_read: "mov rax, [rdi]", "int 0x80";
    key_user_write: "mov [rdi], rdi", "int 0x80";
    key_xabort: "rdpkru", "ret";
    key_bad_index: "mov ecx, 1", "rdpkru", "ret";
    key_bad_high: "xor ecx, ecx", "mov edx, 1", "wrpkru", "ret";
}

/// A key other than 0, which the stack and the code have.
const KEY: u64 = 9;

fn wrpkru(value: u32) {
    // SAFETY: CR4.PKE is set; the keys of what this program uses stay open.
    unsafe { asm!("wrpkru", in("eax") value, in("ecx") 0, in("edx") 0, options(nostack)) };
}

/// 4.6.2: whether PKRU forbids the access.
fn forbidden(bits: u32, write: bool, user: bool, wp: bool) -> bool {
    bits & 1 != 0 || (bits & 2 != 0 && write && (user || wp))
}

pub fn run() {
    section("4.6.2 protection keys");
    if !cpu::has(7, 2, 3) {
        skip("protection keys");
        return;
    }
    let (c0, c4) = (cpu::read_cr0(), cpu::read_cr4());
    cpu::write_cr4(c4 & !cr4::PKE);
    check_eq!(cpu::cpuid(7, 0)[2] >> 4 & 1, 0, "OSPKE is CR4.PKE");
    check_eq!(
        raised_at(address!(key_xabort), 0).what(),
        (6, 0),
        "RDPKRU without CR4.PKE"
    );
    cpu::write_cr4(c4 & !cr4::SMAP | cr4::PKE);
    check_eq!(cpu::cpuid(7, 0)[2] >> 4 & 1, 1, "OSPKE is CR4.PKE");
    check_eq!(
        raised_at(address!(key_bad_index), 0).what(),
        (13, 0),
        "RDPKRU, ECX = 1"
    );
    check_eq!(
        raised_at(address!(key_bad_high), 0).what(),
        (13, 0),
        "WRPKRU, EDX = 1"
    );
    let target = page();
    let stack = user_address(page() + 4096);
    for &size in sizes() {
        let address = map_one(size, target);
        let slot = entry(root(), address, size);
        let old = read(slot);
        write(slot, old | KEY << 59);
        cpu::invlpg(address);
        for number in 0..8u32 {
            let (bits, wp) = (number & 3, number & 4 != 0);
            cpu::write_cr0(if wp { c0 | cr0::WP } else { c0 & !cr0::WP });
            // Everything but this key is as it may be; its neighbours are closed.
            wrpkru(bits << (2 * KEY) | 3 << (2 * KEY + 2) | 3 << (2 * KEY - 2));
            accesses(address, bits, wp, stack);
        }
        // A supervisor page has no key.
        wrpkru(3 << (2 * KEY));
        write(slot, (old & !runtime::paging::U) | KEY << 59);
        cpu::invlpg(address);
        check_eq!(
            raised_at(address!(key_write), address).what(),
            (256, 0),
            "supervisor page"
        );
        wrpkru(0);
        write(slot, old);
        cpu::invlpg(address);
    }
    key_zero(target, stack);
    cpu::write_cr0(c0);
    cpu::write_cr4(c4);
}

fn accesses(address: u64, bits: u32, wp: bool, stack: u64) {
    for write in [false, true] {
        let function = if write {
            address!(key_write)
        } else {
            address!(key_read)
        };
        let code = 0x21 | u64::from(write) << 1;
        let expected = if forbidden(bits, write, false, wp) {
            (14, code)
        } else {
            (256, 0)
        };
        let got = raised_at(function, address).what();
        check_eq!(
            got,
            expected,
            "supervisor, write {write}, PKRU {bits:b}, WP {wp}"
        );
        let function = if write {
            address!(key_user_write)
        } else {
            address!(key_user_read)
        };
        let expected = if forbidden(bits, write, true, wp) {
            (14, code | 4)
        } else {
            (0x80, 0)
        };
        let got = trap::user(user_address(function), address, stack, 0).what();
        check_eq!(got, expected, "user, write {write}, PKRU {bits:b}, WP {wp}");
    }
}

/// What is cached of pages with key 0 follows PKRU too, at once.
fn key_zero(target: u64, stack: u64) {
    let address = map_one(1, target);
    let function = user_address(address!(key_user_write));
    for bits in [0, 2, 0, 1, 0] {
        wrpkru(bits);
        let got = trap::user(function, address, stack, 0);
        wrpkru(0);
        let expected = if bits == 0 { (0x80, 0) } else { (14, 0x27) };
        check_eq!(got.what(), expected, "key 0, PKRU {bits:b}");
    }
}
