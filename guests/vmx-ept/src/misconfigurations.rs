//! EPT misconfigurations (29.3.3.1).

use runtime::memory::{page, read};
use runtime::paging;
use runtime::vmx::{Vm, field, get, msr};
use runtime::{address, check_eq, cpu, section};

use crate::{ALL, EXECUTE, Ept, LEAF, WB, WRITE, linear, p_read, p_write};

const MISCONFIGURATION: u64 = 49;

pub fn run(vm: &mut Vm, ept: &Ept) {
    section("29.3.3.1 misconfigurations");
    let target = page();
    let address = linear(target);
    // Under a PML4E of its own, so that this can be spoiled too.
    let gpa = (1 << 39) + target;
    ept.map(gpa, target, 1, ALL | WB);
    let slot = paging::entry(paging::root(), address, 1);
    runtime::memory::write(slot, gpa | paging::P | paging::W);
    ept.invalidate();
    let capabilities = cpu::read_msr(msr::EPT_VPID);
    let width = u64::from(cpu::cpuid(0x8000_0008, 0)[0] & 0xff);
    let mut bad = |what: &str, level: u32, value: u64| {
        for function in [address!(p_read), address!(p_write)] {
            let exit = ept.with(gpa, level, value, || vm.run(function, address + 0x18));
            check_eq!(
                exit.reason,
                MISCONFIGURATION,
                "{what}, level {level}, {value:x}"
            );
            check_eq!(
                get(field::GUEST_PHYSICAL),
                gpa + 0x18,
                "{what}: guest-physical address"
            );
            check_eq!(exit.rip, function, "{what}: RIP");
        }
    };
    for level in 1..=4 {
        let old = read(ept.entry(gpa, level));
        bad("write without read", level, old & !ALL | WRITE);
        bad(
            "write and execute without read",
            level,
            old & !ALL | WRITE | EXECUTE,
        );
        if capabilities & 1 == 0 {
            bad("execute alone", level, old & !ALL | EXECUTE);
        }
        for bit in [width, 51] {
            if bit < 52 {
                bad("an address beyond MAXPHYADDR", level, old | 1 << bit);
            }
        }
        if level > 1 {
            // Entries that reference a table: 7:3 reserved (7 alone marks a page).
            for bit in 3..7 {
                bad("a reserved bit", level, old | 1 << bit);
            }
        }
    }
    let old = read(ept.entry(gpa, 4));
    bad("bit 7 of a PML4E", 4, old | LEAF);
    for kind in [2, 3, 7] {
        bad("memory type", 1, target | ALL | kind << 3);
    }
    // Large pages: reserved address bits; 1 GiB where it is not offered.
    if capabilities >> 16 & 1 == 1 {
        for bit in 12..21 {
            bad("2 MiB: a reserved bit", 2, ALL | WB | LEAF | 1 << bit);
        }
        bad("2 MiB: memory type", 2, ALL | 2 << 3 | LEAF);
    }
    if capabilities >> 17 & 1 == 1 {
        for bit in 12..30 {
            bad("1 GiB: a reserved bit", 3, ALL | WB | LEAF | 1 << bit);
        }
    } else {
        bad("1 GiB", 3, ALL | WB | LEAF);
    }
    // Not present: nothing else of the entry matters (29.3.2).
    for level in 1..=3 {
        let value = 1 << 51 | 0x78;
        let exit = ept.with(gpa, level, value, || vm.run(address!(p_read), address));
        check_eq!(
            exit.reason,
            48,
            "level {level} not present, other bits set: a violation"
        );
    }
    // Ignored bits.
    for level in 1..=4 {
        // 11 and 56:52; others have got meanings that controls turn on.
        let value = read(ept.entry(gpa, level)) | 1 << 11 | 0x1f << 52;
        let exit = ept.with(gpa, level, value, || vm.run(address!(p_read), address));
        check_eq!(exit.reason, 18, "level {level}: ignored bits");
    }
}
