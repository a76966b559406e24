//! 32-bit paging with 4-MiB pages (4.3) and PAE paging (4.4), with the error codes of both (4.7).

use runtime::cpu::{self, cr4, efer};
use runtime::legacy::{self, Record};
use runtime::memory::{pages, read, write, write_bytes};
use runtime::{check_eq, section, skip};

use crate::{CODE, END, END_VECTOR, STACK, kernel, read32};

/// The address under test: page directory entry 256, or the second PDPTE's first directory entry.
const TEST: u32 = 0x4000_0000;
const P: u64 = 1;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const NX: u64 = 1 << 63;
const PSE: u64 = 1 << 4;
const PAE: u64 = 1 << 5;
const WP: u32 = 1 << 16;
const VALUE: u32 = 0x1234_5678;
const PAGE_FAULT: u32 = 14;

/// Tables of one of the modes, which map the guest's memory to itself.
struct Tables {
    /// The entry of the test address in the directory, its table, and what it maps.
    directory_entry: u64,
    table: u64,
    frame: u64,
    cr3: u64,
    cr4: u64,
    wide: bool,
}

/// One step of a test.
#[derive(Clone, Copy)]
enum Access {
    Read,
    Write,
    Fetch,
}

impl Tables {
    fn entry(&self, at: u64, value: u64) {
        if self.wide {
            write(at, value);
        } else {
            write_bytes(at, &(value as u32).to_le_bytes());
        }
    }

    fn narrow() -> Self {
        let directory = pages(1, 4096);
        let identity = pages(8, 4096);
        for i in 0..8 * 1024 {
            let entry = (i << 12 | P | W | U) as u32;
            write_bytes(identity + 4 * i, &entry.to_le_bytes());
        }
        let tables = Self {
            directory_entry: directory + 4 * u64::from(TEST >> 22),
            table: pages(1, 4096),
            frame: pages(1, 4096),
            cr3: directory,
            cr4: 0,
            wide: false,
        };
        for i in 0..8 {
            tables.entry(directory + 4 * i, (identity + 4096 * i) | P | W | U);
        }
        tables
    }

    fn wide() -> Self {
        let pointers = pages(1, 4096);
        let directories = pages(2, 4096);
        for i in 0..16 {
            write(directories + 8 * i, i << 21 | P | W | U | PS);
        }
        write(pointers, directories | P);
        write(pointers + 8, (directories + 4096) | P);
        Self {
            directory_entry: directories + 4096,
            table: pages(1, 4096),
            frame: pages(1, 4096),
            cr3: pointers,
            cr4: PAE,
            wide: true,
        }
    }

    /// Maps the test address by a table.
    fn map(&self, directory_flags: u64, flags: u64) {
        self.entry(self.directory_entry, self.table | directory_flags);
        self.entry(self.table, self.frame | flags);
        write_bytes(self.frame, &VALUE.to_le_bytes());
    }

    /// Switches paging on and runs `code`.
    fn run(&self, cr0: u32, user: bool, code: &[u8]) -> Record {
        // The guest's own code needs SSE as soon as it is back.
        let old = (cpu::read_cr0(), cpu::read_cr4());
        let cr4 = self.cr4 | old.1 & (cr4::OSFXSR | cr4::OSXMMEXCPT);
        let mut at = CODE;
        let mut put = |bytes: &[u8]| {
            write_bytes(at, bytes);
            at += bytes.len() as u64;
        };
        // MOV to CR4, MOV to CR3, OR to CR0, by EAX.
        for (value, code) in [
            (cr4 as u32, [0x0f, 0x22, 0xe0]),
            (self.cr3 as u32, [0x0f, 0x22, 0xd8]),
        ] {
            put(&[0xb8]);
            put(&value.to_le_bytes());
            put(&code);
        }
        put(&[0x0f, 0x20, 0xc0, 0x25]);
        put(&(!WP).to_le_bytes());
        put(&[0x0d]);
        put(&(1 << 31 | cr0).to_le_bytes());
        put(&[0x0f, 0x22, 0xc0]);
        if user {
            // DS, which CPL 3 may keep, and RETF there.
            put(&[0xb8, legacy::USER_DATA as u8, 0, 0, 0, 0x8e, 0xd8]);
            let target = CODE as u32 + 0x100;
            put(&[0x6a, legacy::USER_DATA as u8, 0x68]);
            put(&((STACK + 0x4000) as u32).to_le_bytes());
            put(&[0x6a, legacy::USER_CODE as u8, 0x68]);
            put(&target.to_le_bytes());
            put(&[0xcb]);
            at = CODE + 0x100;
        }
        write_bytes(at, code);
        write_bytes(at + code.len() as u64, &END);
        let record = legacy::protected(&kernel());
        cpu::write_cr0(old.0);
        cpu::write_cr4(old.1);
        record
    }

    /// Vector and error code of an access, and CR2 of a page fault.
    fn access(&self, cr0: u32, user: bool, access: Access, address: u32) -> (u32, u32, u64) {
        let [a, b, c, d] = address.to_le_bytes();
        let record = match access {
            Access::Read => self.run(cr0, user, &[0xa1, a, b, c, d]),
            Access::Write => self.run(cr0, user, &[0xa3, a, b, c, d]),
            Access::Fetch => self.run(cr0, user, &[0xb8, a, b, c, d, 0xff, 0xe0]),
        };
        let cr2 = if record.vector == PAGE_FAULT {
            cpu::read_cr2()
        } else {
            0
        };
        (record.vector, record.error, cr2)
    }

    /// What holds in both modes for 4-KiB pages.
    fn common(&self) {
        use Access::{Fetch, Read, Write};
        let none = (END_VECTOR, 0, 0);
        let at = u64::from(TEST);
        self.map(P | W | U, P | W | U);
        let r = self.run(WP, false, &[0xa1, 0, 0, 0, 0x40]);
        check_eq!(
            (r.vector, r.gpr[7]),
            (END_VECTOR, VALUE),
            "a page's content"
        );
        check_eq!(
            (
                read(self.directory_entry) & (A | D),
                read(self.table) & (A | D)
            ),
            (A, A),
            "4.8: accessed, not dirty"
        );
        check_eq!(self.access(WP, false, Write, TEST), none, "written");
        check_eq!(read(self.table) & (A | D), A | D, "4.8: dirty");
        // What is wrong: flags of both entries; of an access: CR0, CPL 3, kind; the error code, none for no fault.
        let all = P | W | U;
        for (directory, page, cr0, user, access, error) in [
            (0, all, WP, false, Read, Some(0)),
            (0, all, WP, false, Write, Some(2)),
            (all, 0, WP, false, Read, Some(0)),
            (all, W | U, WP, true, Read, Some(4)),
            (all, W | U, WP, true, Write, Some(6)),
            (all, P | U, WP, false, Write, Some(3)),
            (all, P | U, 0, false, Write, None),
            (all, P | U, 0, true, Write, Some(7)),
            (P | U, all, WP, false, Write, Some(3)),
            (all, P | W, WP, true, Read, Some(5)),
            (P | W, all, WP, true, Write, Some(7)),
            (P | W, all, WP, false, Write, None),
        ] {
            self.map(directory, page);
            let expected = error.map_or(none, |e| (PAGE_FAULT, e, at));
            check_eq!(
                self.access(cr0, user, access, TEST),
                expected,
                "entries {directory:x}, {page:x}, CR0 {cr0:x}, CPL 3 {user}"
            );
        }
        self.map(all, all);
        write_bytes(self.frame, &END);
        check_eq!(self.access(WP, false, Fetch, TEST), none, "fetch");
        check_eq!(self.access(WP, true, Fetch, TEST), none, "fetch at CPL 3");
    }
}

pub fn run() {
    legacy::install();
    let old = cpu::read_msr(efer::MSR);
    narrow();
    wide();
    cpu::write_msr(efer::MSR, old);
}

fn narrow() {
    use Access::{Fetch, Read, Write};
    section("4.3 32-bit paging");
    let at = u64::from(TEST);
    let mut tables = Tables::narrow();
    tables.common();
    cpu::write_msr(efer::MSR, cpu::read_msr(efer::MSR) | efer::NXE);
    tables.map(P | W | U, 0);
    check_eq!(
        tables.access(WP, false, Fetch, TEST),
        (PAGE_FAULT, 0, at),
        "4.7: no I/D flag without PAE and SMEP"
    );
    if cpu::has(7, 1, 7) {
        // Supervisor pages for what the supervisor runs.
        let directory = tables.cr3;
        (0..8).for_each(|i| {
            let entry = u64::from(read32(directory + 4 * i));
            tables.entry(directory + 4 * i, entry & !U);
        });
        tables.map(P | W | U, P | W | U);
        tables.cr4 = cr4::SMEP;
        check_eq!(
            tables.access(WP, false, Fetch, TEST),
            (PAGE_FAULT, 0x11, at),
            "SMEP"
        );
        tables.cr4 = 0;
        (0..8).for_each(|i| {
            let entry = u64::from(read32(directory + 4 * i));
            tables.entry(directory + 4 * i, entry | U);
        });
    } else {
        skip("SMEP");
    }
    // Without CR4.PSE bit 7 of a directory entry means nothing.
    tables.map(P | W | U | PS, P | W | U);
    let code = [0xa1, 0, 0, 0, 0x40];
    let r = tables.run(WP, false, &code);
    check_eq!((r.vector, r.gpr[7]), (END_VECTOR, VALUE), "PS without PSE");
    if !cpu::has(1, 3, 3) {
        skip("PSE");
        return;
    }
    section("Table 4-4 pages of 4 MiB");
    tables.cr4 = PSE;
    let large = pages(1024, 4 << 20);
    write_bytes(large + 0x12_3004, &VALUE.to_le_bytes());
    tables.entry(tables.directory_entry, large | P | W | U | PS);
    let r = tables.run(WP, false, &[0xa1, 0x04, 0x30, 0x12, 0x40]);
    check_eq!((r.vector, r.gpr[7]), (END_VECTOR, VALUE), "its content");
    let flags = |tables: &Tables| read(tables.directory_entry) & (A | D);
    check_eq!(flags(&tables), A, "accessed");
    tables.access(WP, false, Write, TEST + 0x3f_fffc);
    check_eq!(flags(&tables), A | D, "dirty");
    tables.entry(tables.directory_entry, large | P | U | PS);
    check_eq!(
        tables.access(WP, true, Write, TEST + 0x3f_fffc),
        (PAGE_FAULT, 7, at + 0x3f_fffc),
        "read-only"
    );
    tables.entry(tables.directory_entry, large | P | W | U | PS | 1 << 21);
    check_eq!(
        tables.access(WP, false, Read, TEST),
        (PAGE_FAULT, 9, at),
        "bit 21 is reserved"
    );
    check_eq!(
        tables.access(WP, true, Write, TEST),
        (PAGE_FAULT, 0xf, at),
        "bit 21, a write at CPL 3"
    );
    tables.entry(tables.directory_entry, large | W | U | PS | 1 << 21);
    check_eq!(
        tables.access(WP, false, Read, TEST),
        (PAGE_FAULT, 0, at),
        "bit 21 of an entry not present"
    );
}

fn wide() {
    use Access::{Fetch, Read};
    let at = u64::from(TEST);
    let none = (END_VECTOR, 0, 0);
    section("4.4 PAE paging");
    let tables = Tables::wide();
    cpu::write_msr(efer::MSR, cpu::read_msr(efer::MSR) | efer::NXE);
    tables.common();
    let all = P | W | U;
    tables.map(all, 0);
    check_eq!(
        tables.access(WP, false, Fetch, TEST),
        (PAGE_FAULT, 0x10, at),
        "4.7: I/D flag with NXE"
    );
    for (directory, page, name) in [(all, all | NX, "page"), (all | NX, all, "directory")] {
        tables.map(directory, page);
        check_eq!(
            tables.access(WP, false, Fetch, TEST),
            (PAGE_FAULT, 0x11, at),
            "NX in the {name} entry: fetch"
        );
        check_eq!(
            tables.access(WP, true, Read, TEST),
            none,
            "NX in the {name} entry: read"
        );
    }
    cpu::write_msr(efer::MSR, cpu::read_msr(efer::MSR) & !efer::NXE);
    check_eq!(
        tables.access(WP, false, Read, TEST),
        (PAGE_FAULT, 9, at),
        "NX without NXE is reserved"
    );
    for (directory, page, name) in [
        (all, all | 1 << 62, "bit 62 of a page entry"),
        (all | 1 << 62, all, "bit 62 of a directory entry"),
    ] {
        tables.map(directory, page);
        check_eq!(
            tables.access(WP, false, Read, TEST),
            (PAGE_FAULT, 9, at),
            "{name}"
        );
    }

    section("Table 4-9 pages of 2 MiB");
    let large = pages(512, 2 << 20);
    write_bytes(large + 0x12_3004, &VALUE.to_le_bytes());
    tables.entry(tables.directory_entry, large | all | PS);
    let r = tables.run(WP, false, &[0xa1, 0x04, 0x30, 0x12, 0x40]);
    check_eq!((r.vector, r.gpr[7]), (END_VECTOR, VALUE), "without CR4.PSE");
    for bit in 13..21 {
        tables.entry(tables.directory_entry, large | all | PS | 1 << bit);
        check_eq!(
            tables.access(WP, false, Read, TEST),
            (PAGE_FAULT, 9, at),
            "bit {bit} is reserved"
        );
    }

    section("4.4.1 PDPTE registers");
    tables.map(all, all);
    let second = tables.cr3 + 8;
    let good = read(second);
    for bit in [1, 2, 5, 6, 7, 8, 62, 63] {
        write(second, good | 1 << bit);
        let r = tables.run(WP, false, &[]);
        check_eq!((r.vector, r.error), (13, 0), "bit {bit}: MOV to CR0");
        write(second, (good & !P) | 1 << bit);
        check_eq!(
            tables.access(WP, false, Read, TEST),
            (PAGE_FAULT, 0, at),
            "bit {bit} of an entry not present"
        );
    }
    write(second, good);
    // MOV DWORD [second], 0; INVLPG [TEST]; MOV EAX, [TEST]; then the same behind MOV to CR3.
    let [a, b, c, d] = (second as u32).to_le_bytes();
    let change = [0xc7, 0x05, a, b, c, d, 0, 0, 0, 0];
    let look = [0x0f, 0x01, 0x3d, 0, 0, 0, 0x40, 0xa1, 0, 0, 0, 0x40];
    let mut code = [0; 28];
    code[..10].copy_from_slice(&change);
    code[10..22].copy_from_slice(&look);
    let r = tables.run(WP, false, &code[..22]);
    check_eq!(
        (r.vector, r.gpr[7]),
        (END_VECTOR, VALUE),
        "a change in memory is not seen"
    );
    write(second, good);
    code[10..16].copy_from_slice(&[0x0f, 0x20, 0xda, 0x0f, 0x22, 0xda]);
    code[16..].copy_from_slice(&look);
    let r = tables.run(WP, false, &code);
    check_eq!((r.vector, r.error), (PAGE_FAULT, 0), "but by MOV to CR3");
    // A value that is refused leaves the old ones.
    write(second, good);
    code[6] = 3;
    let r = tables.run(WP, false, &code);
    check_eq!((r.vector, r.error), (13, 0), "a reserved bit: MOV to CR3");
    write(second, good);
}
