//! What the TLB must not keep (4.10.2 to 4.10.4). What it may keep is not tested: it may also forget.

use runtime::cpu::{self, cr0, cr4};
use runtime::memory::{page, read, write};
use runtime::paging::{G, NX, P, TEST_BASE, U, W, entry, map, root};
use runtime::trap::raised_at;
use runtime::{address, check_eq, section, snippet};

use crate::sizes;

snippet! {
    c_read: "mov rax, [rdi]", "ret";
    c_write: "mov [rdi], rdi", "ret";
}

const BASE: u64 = TEST_BASE + (32 << 30);

pub fn run() {
    let (one, two) = (page(), page());
    write(one, 1);
    write(two, 2);
    write(two + 8, 0xc3);
    changes(one, two);
    global(one, two);
    faults(one);
    modes(one);
    large();
    tables();
}

/// 4.10.4.1: instructions that invalidate.
fn changes(one: u64, two: u64) {
    section("4.10.4.1 invalidation");
    let go = |flags: u64, invalidate: &dyn Fn()| {
        map(root(), BASE, one, 1, P | W | flags);
        cpu::invlpg(BASE);
        let before = c_read(BASE);
        map(root(), BASE, two, 1, P | W | flags);
        invalidate();
        (before, c_read(BASE))
    };
    check_eq!(go(0, &|| cpu::invlpg(BASE)), (1, 2), "INVLPG");
    check_eq!(
        go(0, &|| cpu::invlpg(BASE + 0xfff)),
        (1, 2),
        "INVLPG of the page's last byte"
    );
    check_eq!(
        go(0, &|| cpu::write_cr3(cpu::read_cr3())),
        (1, 2),
        "MOV to CR3"
    );
    check_eq!(
        go(0, &|| {
            let c4 = cpu::read_cr4();
            cpu::write_cr4(c4 ^ cr4::PGE);
            cpu::write_cr4(c4);
        }),
        (1, 2),
        "CR4.PGE changed"
    );
    // An address that is not canonical is no error.
    check_eq!(
        raised_at(address!(c_invlpg), 1 << 47).frame.vector,
        256,
        "INVLPG, not canonical"
    );
    // 4.10.2.3: what is not present is not kept.
    map(root(), BASE, one, 1, 0);
    cpu::invlpg(BASE);
    check_eq!(
        raised_at(address!(c_read), BASE).what(),
        (14, 0),
        "not present"
    );
    map(root(), BASE, one, 1, P | W);
    check_eq!(c_read(BASE), 1, "4.10.2.3: present, without invalidation");
    // Entries in the paging-structure caches as well (4.10.3).
    for level in 2..=4 {
        let slot = entry(root(), BASE, level);
        let old = read(slot);
        write(slot, old & !P);
        cpu::invlpg(BASE);
        check_eq!(
            raised_at(address!(c_read), BASE).what(),
            (14, 0),
            "level {level} taken away, INVLPG"
        );
        write(slot, old);
        check_eq!(c_read(BASE), 1, "level {level} put back");
    }
}

snippet! { c_invlpg: "invlpg [rdi]", "ret"; }

/// 4.10.2.4.
fn global(one: u64, two: u64) {
    section("4.10.2.4 global pages");
    let c4 = cpu::read_cr4();
    cpu::write_cr4(c4 | cr4::PGE);
    let go = |invalidate: &dyn Fn()| {
        map(root(), BASE, one, 1, P | W | G);
        cpu::invlpg(BASE);
        let before = c_read(BASE);
        map(root(), BASE, two, 1, P | W | G);
        invalidate();
        (before, c_read(BASE))
    };
    check_eq!(go(&|| cpu::invlpg(BASE)), (1, 2), "INVLPG of a global page");
    check_eq!(
        go(&|| {
            cpu::write_cr4(cpu::read_cr4() & !cr4::PGE);
            cpu::write_cr4(cpu::read_cr4() | cr4::PGE);
        }),
        (1, 2),
        "CR4.PGE cleared and set"
    );
    map(root(), BASE, one, 1, P | W);
    cpu::invlpg(BASE);
    cpu::write_cr4(c4);
}

/// 4.10.4.1: a page fault invalidates the translation it used; 4.10.4.3: rights may be given lazily.
fn faults(one: u64) {
    section("4.10.4.3 rights given without invalidation");
    let slot = entry(root(), BASE, 1);
    map(root(), BASE, one, 1, P);
    cpu::invlpg(BASE);
    check_eq!(c_read(BASE), read(one), "read-only page read");
    check_eq!(raised_at(address!(c_write), BASE).what(), (14, 3), "write");
    write(slot, read(slot) | W);
    // A fault here would be allowed once; after it the right must be seen.
    raised_at(address!(c_write), BASE);
    check_eq!(
        raised_at(address!(c_write), BASE).frame.vector,
        256,
        "write after the right was given"
    );
    map(root(), BASE, one, 1, P | W | NX);
    cpu::invlpg(BASE);
    write(one + 64, 0xc3);
    check_eq!(raised_at(BASE + 64, 0).what(), (14, 0x11), "fetch");
    write(slot, read(slot) & !NX);
    raised_at(BASE + 64, 0);
    check_eq!(
        raised_at(BASE + 64, 0).frame.vector,
        256,
        "fetch after the right was given"
    );
}

/// Rights that depend on registers follow them at once.
fn modes(one: u64) {
    section("4.6.1 rights follow CR0, CR4");
    map(root(), BASE, one, 1, P);
    cpu::invlpg(BASE);
    let (c0, c4) = (cpu::read_cr0(), cpu::read_cr4());
    for _ in 0..2 {
        cpu::write_cr0(c0 & !cr0::WP);
        check_eq!(
            raised_at(address!(c_write), BASE).frame.vector,
            256,
            "WP clear"
        );
        cpu::write_cr0(c0 | cr0::WP);
        check_eq!(raised_at(address!(c_write), BASE).what(), (14, 3), "WP set");
    }
    if cpu::has(7, 1, 20) {
        map(root(), BASE, one, 1, P | W | U);
        cpu::invlpg(BASE);
        for _ in 0..2 {
            cpu::write_cr4(c4 & !cr4::SMAP);
            check_eq!(
                raised_at(address!(c_read), BASE).frame.vector,
                256,
                "SMAP clear"
            );
            cpu::write_cr4(c4 | cr4::SMAP);
            check_eq!(
                raised_at(address!(c_read), BASE).what(),
                (14, 1),
                "SMAP set"
            );
        }
        cpu::write_cr4(c4);
    }
}

/// 4.10.2.3: one INVLPG for a large page; a large page replaced by small ones.
fn large() {
    section("4.10 large pages");
    for &size in sizes() {
        if size == 1 {
            continue;
        }
        let bytes = 1u64 << (12 + 9 * (size - 1));
        let base = BASE + (u64::from(size) << 33);
        // Physical 0 on: the first 2 MiB or 1 GiB, where the guest's own memory is.
        map(root(), base, 0, size, P | W);
        cpu::invlpg(base);
        let target = page();
        write(target, 77);
        check_eq!(c_read(base + target), 77, "size {size}");
        write(base + target, 78);
        check_eq!(read(target), 78, "size {size}: the same memory");
        let slot = entry(root(), base, size);
        let old = read(slot);
        write(slot, 0);
        cpu::invlpg(base + bytes - 1);
        check_eq!(
            raised_at(address!(c_read), base + target).what(),
            (14, 0),
            "size {size}: INVLPG of another part"
        );
        check_eq!(
            raised_at(address!(c_read), base + 0x1000).what(),
            (14, 0),
            "size {size}: every part"
        );
        // Small pages in its place.
        map(root(), base + target, target, 1, P | W);
        check_eq!(
            c_read(base + target),
            78,
            "size {size}: a 4-KiB page in its place"
        );
        check_eq!(
            raised_at(address!(c_read), base + target + 4096).what(),
            (14, 0),
            "size {size}: and nothing else"
        );
        write(slot, old);
        cpu::write_cr3(cpu::read_cr3());
    }
}

/// Page tables are memory: reached through their own mapping they change what is mapped.
fn tables() {
    section("4.10.4 two names of one page");
    let memory = page();
    map(root(), BASE, memory, 1, P | W);
    map(root(), BASE + 4096, memory, 1, P | W);
    cpu::write_cr3(cpu::read_cr3());
    write(BASE, 0x1234);
    check_eq!(
        read(BASE + 4096),
        0x1234,
        "written by one name, read by the other"
    );
    // CR3 with another root.
    let other = runtime::paging::new_root();
    let memory2 = page();
    write(memory2, 0x5678);
    map(other, BASE, memory2, 1, P | W);
    let old = cpu::read_cr3();
    cpu::write_cr3(other);
    check_eq!(c_read(BASE), 0x5678, "another root");
    check_eq!(
        raised_at(address!(c_read), BASE + 4096).what(),
        (14, 0),
        "another root: not mapped"
    );
    cpu::write_cr3(old);
    check_eq!(c_read(BASE), 0x1234, "back");
}
