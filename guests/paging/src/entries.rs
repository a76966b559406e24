//! Reserved bits (4.5, Tables 4-15 to 4-20), ignored bits, accessed and dirty flags (4.8).

use runtime::cpu::{self, efer};
use runtime::memory::{page, read, write};
use runtime::paging::{A, D, G, NX, P, PS, W, entry, root};
use runtime::trap::raised_at;
use runtime::{address, check_eq, section, snippet};

use crate::{map_one, sizes};

snippet! {
    e_read: "mov rax, [rdi]", "ret";
    e_write: "mov [rdi], rdi", "ret";
    e_locked: "lock add qword ptr [rdi], 0", "ret";
    e_exchange: "xor eax, eax", "lock cmpxchg [rdi], rdi", "ret";
}

pub fn run() {
    reserved();
    ignored();
    accessed();
    dirty();
}

fn with(slot: u64, value: u64, address: u64, function: u64) -> (u64, u64) {
    let old = read(slot);
    write(slot, value);
    cpu::invlpg(address);
    let what = raised_at(function, address).what();
    write(slot, old);
    cpu::invlpg(address);
    what
}

const RSVD: u64 = 8;

fn reserved() {
    section("4.5, 4.7 reserved bits");
    let target = page();
    let width = u64::from(cpu::cpuid(0x8000_0008, 0)[0] & 0xff);
    let read_it = address!(e_read);
    let write_it = address!(e_write);
    for &size in sizes() {
        let address = map_one(size, target);
        for level in size..=4 {
            let slot = entry(root(), address, level);
            let old = read(slot);
            for bit in [width, 51] {
                if bit > 51 {
                    continue;
                }
                let value = old | 1 << bit;
                check_eq!(
                    with(slot, value, address, read_it),
                    (14, RSVD | 1),
                    "level {level} bit {bit}: read"
                );
                check_eq!(
                    with(slot, value, address, write_it),
                    (14, RSVD | 3),
                    "level {level} bit {bit}: write"
                );
                // Not present: nothing else is looked at.
                check_eq!(
                    with(slot, value & !P, address, read_it),
                    (14, 0),
                    "level {level} bit {bit}: not present"
                );
            }
        }
        let slot = entry(root(), address, 4);
        check_eq!(
            with(slot, read(slot) | PS, address, read_it),
            (14, RSVD | 1),
            "bit 7 of a PML4E"
        );
        let slot = entry(root(), address, size);
        let old = read(slot);
        match size {
            2 => {
                for bit in 13..21 {
                    check_eq!(
                        with(slot, old | 1 << bit, address, read_it),
                        (14, RSVD | 1),
                        "2 MiB: bit {bit}"
                    );
                }
                check_eq!(
                    with(slot, old | 1 << 12, address, read_it),
                    (256, 0),
                    "2 MiB: PAT"
                );
            }
            3 => {
                for bit in 13..30 {
                    check_eq!(
                        with(slot, old | 1 << bit, address, read_it),
                        (14, RSVD | 1),
                        "1 GiB: bit {bit}"
                    );
                }
                check_eq!(
                    with(slot, old | 1 << 12, address, read_it),
                    (256, 0),
                    "1 GiB: PAT"
                );
            }
            _ => check_eq!(
                with(slot, old | PS, address, read_it),
                (256, 0),
                "4 KiB: PAT"
            ),
        }
        // Without NXE, bit 63 is reserved.
        let msr = cpu::read_msr(efer::MSR);
        cpu::write_msr(efer::MSR, msr & !efer::NXE);
        for level in size..=4 {
            let slot = entry(root(), address, level);
            let value = read(slot) | NX;
            check_eq!(
                with(slot, value, address, read_it),
                (14, RSVD | 1),
                "level {level}: NX without NXE"
            );
        }
        cpu::write_msr(efer::MSR, msr);
    }
    if !cpu::has(0x8000_0001, 3, 26) {
        let address = map_one(1, target);
        let slot = entry(root(), address, 3);
        check_eq!(
            with(slot, read(slot) | PS, address, read_it),
            (14, RSVD | 1),
            "PS of a PDPTE without 1-GiB pages"
        );
    }
}

/// Tables 4-15 to 4-20: ignored bits, and the cache bits, change no translation.
fn ignored() {
    section("4.5 ignored bits");
    let target = page();
    for &size in sizes() {
        let address = map_one(size, target);
        for level in size..=4 {
            let slot = entry(root(), address, level);
            let old = read(slot);
            for bits in [7 << 9, 0x7f << 52, 3 << 3, G] {
                // Bit 8 of an entry that maps nothing is ignored; in one that does it is G.
                let what = with(slot, old | bits, address, address!(e_write));
                check_eq!(what, (256, 0), "level {level}: bits {bits:x}");
            }
        }
    }
}

fn clear(address: u64, size: u32) {
    for level in size..=4 {
        let slot = entry(root(), address, level);
        write(slot, read(slot) & !(A | D));
    }
    cpu::invlpg(address);
    // Structure caches may hold entries whose flags were set.
    cpu::write_cr3(cpu::read_cr3());
}

fn accessed() {
    section("4.8 accessed and dirty flags");
    let target = page();
    for &size in sizes() {
        let address = map_one(size, target);
        let leaf = entry(root(), address, size);
        clear(address, size);
        raised_at(address!(e_read), address);
        for level in size..=4 {
            let value = read(entry(root(), address, level));
            check_eq!(
                value & A,
                A,
                "size {size}: accessed in level {level} after a read"
            );
        }
        check_eq!(read(leaf) & D, 0, "size {size}: not dirty after a read");
        raised_at(address!(e_write), address);
        check_eq!(
            read(leaf) & D,
            D,
            "size {size}: dirty after a write that follows a read"
        );
        clear(address, size);
        raised_at(address!(e_write), address);
        check_eq!(
            read(leaf) & (A | D),
            A | D,
            "size {size}: both after a write"
        );
        for level in size + 1..=4 {
            let value = read(entry(root(), address, level));
            check_eq!(
                value & (A | D),
                A,
                "size {size}: level {level} is not dirty"
            );
        }
        clear(address, size);
        let slot = entry(root(), address, size);
        write(slot, read(slot) & !P);
        cpu::invlpg(address);
        raised_at(address!(e_write), address);
        check_eq!(
            read(slot) & (A | D),
            0,
            "size {size}: a page that is not present"
        );
        write(slot, read(slot) | P);
    }
}

fn dirty() {
    let target = page();
    let address = map_one(1, target);
    let leaf = entry(root(), address, 1);
    // Read-only: no write, not dirty.
    clear(address, 1);
    write(leaf, read(leaf) & !W);
    cpu::invlpg(address);
    check_eq!(
        raised_at(address!(e_write), address).what(),
        (14, 3),
        "read-only"
    );
    check_eq!(read(leaf) & D, 0, "read-only: not dirty");
    write(leaf, read(leaf) | W);
    for (name, function) in [
        ("LOCK ADD 0", address!(e_locked)),
        ("CMPXCHG that fails", address!(e_exchange)),
    ] {
        clear(address, 1);
        write(target, 5);
        raised_at(function, address);
        check_eq!(read(leaf) & D, D, "{name}: a write cycle makes it dirty");
    }
}
