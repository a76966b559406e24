//! Process-context identifiers (4.10.1) and INVPCID (Vol 2).

use runtime::cpu::{self, cr0, cr4};
use runtime::memory::{page, write};
use runtime::paging::{G, P, TEST_BASE, W, map, new_root};
use runtime::trap::{raised, raised_at};
use runtime::{address, check_eq, section, skip, snippet};

snippet! {
    i_read: "mov rax, [rdi]", "ret";
}

const BASE: u64 = TEST_BASE + (48 << 30);
const KEEP: u64 = 1 << 63;

pub fn run() {
    if !cpu::has(1, 2, 17) {
        skip("PCID");
        return;
    }
    section("4.10.1 process-context identifiers");
    let (c3, c4) = (cpu::read_cr3(), cpu::read_cr4());
    let gp = (13, 0);
    cpu::write_cr4(c4 & !cr4::PCIDE);
    check_eq!(
        raised(|| cpu::write_cr3(c3 | KEEP)).what(),
        gp,
        "CR3 bit 63 without PCIDE"
    );
    cpu::write_cr3(c3 | 0x18);
    check_eq!(
        raised(|| cpu::write_cr4(c4 | cr4::PCIDE)).what(),
        gp,
        "PCIDE with CR3[11:0] not zero"
    );
    cpu::write_cr3(c3);
    cpu::write_cr4(c4 | cr4::PCIDE);
    check_eq!(
        raised(|| cpu::write_cr0(cpu::read_cr0() & !cr0::PG)).what(),
        gp,
        "PG cleared with PCIDE"
    );
    cpu::write_cr3(c3 | 5 | KEEP);
    check_eq!(cpu::read_cr3(), c3 | 5, "bit 63 is not kept in CR3");
    spaces();
    cpu::write_cr3(c3);
    if cpu::has(7, 1, 10) {
        invpcid();
    } else {
        skip("INVPCID");
    }
    cpu::write_cr3(c3);
    cpu::write_cr4(c4);
}

struct Spaces {
    roots: [u64; 2],
    pages: [u64; 3],
}

/// Two roots with a page each at [`BASE`], entered so that both translations are cached.
fn make(flags: u64) -> Spaces {
    let spaces = Spaces {
        roots: [new_root(), new_root()],
        pages: [page(), page(), page()],
    };
    for (i, &p) in spaces.pages.iter().enumerate() {
        write(p, i as u64 + 1);
    }
    for i in 0..2 {
        map(spaces.roots[i], BASE, spaces.pages[i], 1, P | W | flags);
        map(
            spaces.roots[i],
            BASE + 4096,
            spaces.pages[i],
            1,
            P | W | flags,
        );
    }
    spaces
}

impl Spaces {
    fn enter(&self, i: usize, keep: u64) {
        cpu::write_cr3(self.roots[i] | (i as u64 + 1) | keep);
    }

    fn seen(&self, i: usize) -> u64 {
        self.enter(i, KEEP);
        i_read(BASE)
    }

    /// Maps both names in space `i` to the third page.
    fn change(&self, i: usize, flags: u64) {
        map(self.roots[i], BASE, self.pages[2], 1, P | W | flags);
        map(self.roots[i], BASE + 4096, self.pages[2], 1, P | W | flags);
    }
}

fn spaces() {
    let s = make(0);
    s.enter(0, 0);
    s.enter(1, 0);
    for _ in 0..3 {
        check_eq!(
            (s.seen(0), s.seen(1)),
            (1, 2),
            "each PCID its own translations"
        );
    }
    // Without bit 63, CR3 invalidates what belongs to the PCID.
    s.change(0, 0);
    s.enter(0, 0);
    check_eq!(i_read(BASE), 3, "MOV to CR3 without bit 63");
    check_eq!(s.seen(1), 2, "the other PCID");
    s.change(1, 0);
    s.enter(1, KEEP);
    cpu::invlpg(BASE);
    check_eq!(i_read(BASE), 3, "INVLPG in the current PCID");
    // Global pages belong to all.
    let c4 = cpu::read_cr4();
    cpu::write_cr4(c4 | cr4::PGE);
    let s = make(G);
    s.enter(0, 0);
    let first = i_read(BASE);
    check_eq!(first, 1, "a global page");
    s.enter(1, 0);
    cpu::invlpg(BASE);
    check_eq!(i_read(BASE), 2, "INVLPG of a global page in another PCID");
    cpu::write_cr4(c4);
    // Clearing PCIDE invalidates everything.
    let s = make(0);
    s.seen(1);
    s.enter(0, 0);
    check_eq!(i_read(BASE), 1, "before");
    s.change(0, 0);
    let low = cpu::read_cr3() & !0xfff;
    cpu::write_cr3(s.roots[0] | KEEP);
    cpu::write_cr4(c4 & !cr4::PCIDE);
    check_eq!(i_read(BASE), 3, "PCIDE cleared");
    cpu::write_cr4(c4);
    check_eq!(cpu::read_cr3() & !0xfff, low, "CR3");
}

fn invpcid() {
    section("vol 2, INVPCID");
    let c4 = cpu::read_cr4();
    let gp = (13, 0);
    let go = |kind: u64, low: u64, address: u64| raised(|| cpu::invpcid(kind, low, address)).what();
    check_eq!(go(4, 0, 0), gp, "type 4");
    check_eq!(go(u64::MAX, 0, 0), gp, "type -1");
    check_eq!(go(0, 1 << 12, 0), gp, "reserved bit of the descriptor");
    check_eq!(
        go(1, 1 << 63, 0),
        gp,
        "reserved bit of the descriptor, type 1"
    );
    check_eq!(go(0, 1, 1 << 47), gp, "type 0, address not canonical");
    check_eq!(go(1, 1, 1 << 47), (256, 0), "type 1 takes no address");
    check_eq!(
        raised_at(address!(i_bad), 0x7fff_ffff_0000).frame.vector,
        14,
        "descriptor not mapped"
    );
    check_eq!(
        raised_at(address!(i_bad), 1 << 47).what(),
        gp,
        "descriptor not canonical"
    );

    let s = make(0);
    let prepare = || {
        for i in 0..2 {
            map(s.roots[i], BASE, s.pages[i], 1, P | W);
            map(s.roots[i], BASE + 4096, s.pages[i], 1, P | W);
        }
        cpu::invpcid(2, 0, 0);
        let seen = (s.seen(0), s.seen(1));
        s.change(0, 0);
        s.change(1, 0);
        seen
    };
    check_eq!(prepare(), (1, 2), "prepared");
    cpu::invpcid(0, 1, BASE);
    check_eq!(s.seen(0), 3, "type 0: another PCID's address");
    prepare();
    cpu::invpcid(0, 2, BASE);
    check_eq!(s.seen(1), 3, "type 0: the current PCID's address");
    prepare();
    cpu::invpcid(1, 1, 0);
    check_eq!(s.seen(0), 3, "type 1: another PCID");
    prepare();
    cpu::invpcid(1, 2, 0);
    check_eq!(s.seen(1), 3, "type 1: the current PCID");
    prepare();
    cpu::invpcid(2, 0, 0);
    check_eq!(
        (s.seen(0), s.seen(1)),
        (3, 3),
        "type 2: all, global ones too"
    );
    prepare();
    cpu::invpcid(3, 0, 0);
    check_eq!(
        (s.seen(0), s.seen(1)),
        (3, 3),
        "type 3: all but global ones"
    );
    cpu::write_cr4(c4 | cr4::PGE);
    let g = make(G);
    g.enter(0, 0);
    check_eq!(i_read(BASE), 1, "a global page");
    g.change(0, G);
    cpu::invpcid(2, 0, 0);
    check_eq!(i_read(BASE), 3, "type 2: a global page");
    cpu::write_cr4(c4);
    // Without PCIDE only PCID 0 exists.
    cpu::write_cr3(g.roots[0]);
    cpu::write_cr4(c4 & !cr4::PCIDE);
    check_eq!(go(0, 1, 0), gp, "type 0, PCID 1 without PCIDE");
    check_eq!(go(1, 1, 0), gp, "type 1, PCID 1 without PCIDE");
    check_eq!(go(1, 0, 0), (256, 0), "type 1, PCID 0 without PCIDE");
    cpu::write_cr4(c4);
}

snippet! { i_bad: "xor eax, eax", "invpcid rax, [rdi]", "ret"; }
