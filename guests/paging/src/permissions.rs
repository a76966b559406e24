//! Who may do what (4.6.1), and the error codes (4.7): every combination.

use runtime::cpu::{self, cr0, cr4};
use runtime::memory::{page, read, write, write_bytes};
use runtime::paging::{NX, P, U, W, entry, root, user_address};
use runtime::trap::{self, raised_at};
use runtime::{address, record, section, skip, snippet};

use crate::{map_one, sizes};

snippet! {
    p_read: "mov rax, [rdi]", "ret";
    p_write: "mov [rdi + 32], rdi", "ret";
    p_read_ac: "pushfq", "or dword ptr [rsp], 0x40000", "popfq", "mov rax, [rdi]",
        "pushfq", "and dword ptr [rsp], ~0x40000", "popfq", "ret";
    p_write_ac: "pushfq", "or dword ptr [rsp], 0x40000", "popfq", "mov [rdi + 32], rdi",
        "pushfq", "and dword ptr [rsp], ~0x40000", "popfq", "ret";
    p_user_read: "mov rax, [rdi]", "int 0x80";
    p_user_write: "mov [rdi + 32], rdi", "int 0x80";
}

/// Rights of a translation.
#[derive(Clone, Copy, Debug)]
struct Rights {
    user: bool,
    write: bool,
    execute: bool,
}

/// What of the processor decides.
#[derive(Clone, Copy, Debug)]
struct Mode {
    wp: bool,
    smep: bool,
    smap: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Access {
    Read,
    Write,
    Execute,
}

/// 4.6.1: whether the access is allowed.
fn allowed(rights: Rights, mode: Mode, user: bool, access: Access, ac: bool) -> bool {
    if user {
        return rights.user
            && match access {
                Access::Read => true,
                Access::Write => rights.write,
                Access::Execute => rights.execute,
            };
    }
    match access {
        Access::Read => !(rights.user && mode.smap && !ac),
        Access::Write => !(rights.user && mode.smap && !ac) && (rights.write || !mode.wp),
        Access::Execute => rights.execute && !(rights.user && mode.smep),
    }
}

/// 4.7: the error code of a protection fault; I/D is there because EFER.NXE is set.
fn code(user: bool, access: Access) -> u64 {
    1 | u64::from(access == Access::Write) << 1
        | u64::from(user) << 2
        | u64::from(access == Access::Execute) << 4
}

pub fn run() {
    section("4.6.1 access rights, 4.7 error codes");
    let (c0, c4) = (cpu::read_cr0(), cpu::read_cr4());
    let has_smep = cpu::has(7, 1, 7);
    let has_smap = cpu::has(7, 1, 20);
    if !has_smep {
        skip("SMEP");
    }
    if !has_smap {
        skip("SMAP");
    }
    let target = page();
    // RET for CPL 0, INT 80h for CPL 3.
    write_bytes(target, &[0xc3]);
    write_bytes(target + 16, &[0xcd, 0x80]);
    let stack = user_address(page() + 4096);
    for number in 0..8u32 {
        let mode = Mode {
            wp: number & 1 != 0,
            smep: number & 2 != 0,
            smap: number & 4 != 0,
        };
        if mode.smep && !has_smep || mode.smap && !has_smap {
            continue;
        }
        let set = |old: u64, bit: u64, on: bool| if on { old | bit } else { old & !bit };
        cpu::write_cr0(set(c0, cr0::WP, mode.wp));
        let mut new = c4;
        if has_smep {
            new = set(new, cr4::SMEP, mode.smep);
        }
        if has_smap {
            new = set(new, cr4::SMAP, mode.smap);
        }
        cpu::write_cr4(new);
        for &size in sizes() {
            let address = map_one(size, target);
            for level in size..=4 {
                levels(address, level, mode, stack);
            }
        }
    }
    cpu::write_cr4(c4);
    cpu::write_cr0(c0);
}

/// Takes rights away in the entry of `level`.
fn levels(address: u64, level: u32, mode: Mode, stack: u64) {
    let slot = entry(root(), address, level);
    let old = read(slot);
    for flags in 0..8u64 {
        let rights = Rights {
            user: flags & 1 != 0,
            write: flags & 2 != 0,
            execute: flags & 4 != 0,
        };
        let mut new = old & !(W | U | NX) | P;
        if rights.user {
            new |= U;
        }
        if rights.write {
            new |= W;
        }
        if !rights.execute {
            new |= NX;
        }
        write(slot, new);
        cpu::invlpg(address);
        accesses(address, rights, mode, stack, level);
    }
    write(slot, old);
    cpu::invlpg(address);
}

fn accesses(address: u64, rights: Rights, mode: Mode, stack: u64, level: u32) {
    for (function, access, ac) in [
        (address!(p_read), Access::Read, false),
        (address!(p_write), Access::Write, false),
        (address!(p_read_ac), Access::Read, true),
        (address!(p_write_ac), Access::Write, true),
        (address, Access::Execute, false),
    ] {
        let trap = raised_at(function, address);
        let expected = if allowed(rights, mode, false, access, ac) {
            (256, 0)
        } else {
            (14, code(false, access))
        };
        judge(
            trap,
            expected,
            address,
            (rights, mode, access, false, ac),
            level,
        );
    }
    for (function, access) in [
        (user_address(address!(p_user_read)), Access::Read),
        (user_address(address!(p_user_write)), Access::Write),
        (address + 16, Access::Execute),
    ] {
        let trap = trap::user(function, address, stack, 0);
        let expected = if allowed(rights, mode, true, access, false) {
            (0x80, 0)
        } else {
            (14, code(true, access))
        };
        judge(
            trap,
            expected,
            address,
            (rights, mode, access, true, false),
            level,
        );
    }
}

fn judge(
    trap: trap::Trap,
    expected: (u64, u64),
    address: u64,
    what: (Rights, Mode, Access, bool, bool),
    level: u32,
) {
    let (rights, mode, access, user, ac) = what;
    let offset = match access {
        Access::Write => 32,
        Access::Execute if user => 16,
        _ => 0,
    };
    let cr2 = expected.0 != 14 || trap.cr2 == address + offset;
    if !record(trap.what() == expected && cr2) {
        runtime::println!(
            "FAIL {rights:?} in the entry of level {level}, {mode:?}, {access:?}, user {user}, AC {ac}: \
             {:x?} CR2 {:x}, expected {expected:x?} at {address:x}",
            trap.what(),
            trap.cr2
        );
    }
}
