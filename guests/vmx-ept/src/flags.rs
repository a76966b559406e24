//! Accessed and dirty flags of EPT (29.3.5).

use runtime::memory::{page, read, write};
use runtime::paging;
use runtime::vmx::{Vm, field, get, msr};
use runtime::{address, check_eq, cpu, section, skip, snippet};

use crate::{ACCESSED, ALL, DIRTY, Ept, READ, WB, linear, p_read, p_write};

snippet! { f_code: "vmcall"; }

pub fn run(vm: &mut Vm, ept: &Ept) {
    if cpu::read_msr(msr::EPT_VPID) & 1 << 21 == 0 {
        skip("accessed and dirty flags of EPT");
        return;
    }
    section("29.3.5 accessed and dirty flags");
    let target = page();
    let address = linear(target);
    let gpa = 0x50_0000_0000 + target;
    ept.map(gpa, target, 1, ALL | WB);
    let slot = paging::entry(paging::root(), address, 1);
    write(slot, gpa | paging::P | paging::W | paging::A | paging::D);
    let clear = || {
        for level in 1..=4 {
            let at = ept.entry(gpa, level);
            write(at, read(at) & !(ACCESSED | DIRTY));
        }
        ept.invalidate();
    };
    let shown = |level: u32| read(ept.entry(gpa, level)) & (ACCESSED | DIRTY);
    // Without bit 6 of EPTP nothing is set.
    clear();
    ept.enable(0);
    vm.run(address!(p_write), address);
    check_eq!(
        (shown(1), shown(2), shown(3), shown(4)),
        (0, 0, 0, 0),
        "not enabled"
    );
    ept.enable(1 << 6);
    clear();
    vm.run(address!(p_read), address);
    for level in 1..=4 {
        check_eq!(shown(level), ACCESSED, "read: accessed in level {level}");
    }
    vm.run(address!(p_write), address);
    check_eq!(shown(1), ACCESSED | DIRTY, "write after a read: dirty");
    check_eq!(shown(2), ACCESSED, "level 2 is not dirty");
    clear();
    vm.run(address!(p_write), address);
    check_eq!(shown(1), ACCESSED | DIRTY, "write: both");
    // A walk of the guest's tables counts as writes to them.
    let table = slot & !0xfff;
    let table_entry = ept.entry(table, 1);
    let old = read(table_entry);
    write(table_entry, old & !(ACCESSED | DIRTY));
    ept.invalidate();
    vm.run(address!(p_read), address);
    check_eq!(
        read(table_entry) & (ACCESSED | DIRTY),
        ACCESSED | DIRTY,
        "29.3.5: the guest's page tables are written"
    );
    // And so need the right to be, even with the guest's own flags set.
    let exit = ept.with(table, 1, table | READ | WB, || {
        vm.run(address!(p_read), address)
    });
    check_eq!(
        exit.reason,
        48,
        "29.3.3.2: a read-only page table is a violation"
    );
    check_eq!(
        get(field::QUALIFICATION) & 0x1fe & !(7 << 3),
        2 | 1 << 7,
        "a write by the walk"
    );
    // A write that is not allowed sets nothing.
    let leaf = ept.entry(gpa, 1);
    write(leaf, target | READ | WB);
    ept.invalidate();
    let exit = vm.run(address!(p_write), address);
    check_eq!(
        (exit.reason, read(leaf) & DIRTY),
        (48, 0),
        "a violation: not dirty"
    );
    ept.map(gpa, target, 1, ALL | WB);
    // A fetch: accessed only.
    clear();
    let code = address!(f_code) & !0xfff;
    let code_entry = ept.entry(code, 1);
    write(code_entry, read(code_entry) & !(ACCESSED | DIRTY));
    ept.invalidate();
    vm.run(address!(f_code), 0);
    check_eq!(read(code_entry) & ACCESSED, ACCESSED, "fetch: accessed");
    ept.enable(0);
}
