//! What the TLB answers, and when it forgets.

use super::super::sites::READ_SITES;
use super::*;

const ALL: Allowed = Allowed {
    read: true,
    write: true,
    fetch: true,
};

#[test]
fn banks_keep_their_entries_apart() {
    let mut t = Tlb::new(0x7000_0000);
    t.fill(0x5000, RamOffset(0x1000), ALL);
    assert_eq!(t.read_hit(0x5ff8, 8), Some(RamOffset(0x1ff8)));
    assert_eq!(t.read_hit(0x5ff9, 8), None, "crosses the page");
    let other = Space {
        vpid: 1,
        eptp: 0x1e,
        ..Space::default()
    };
    t.select_space(other);
    assert_eq!(t.read_hit(0x5000, 1), None);
    t.fill(0x5000, RamOffset(0x2000), ALL);
    t.select_space(Space::default());
    assert_eq!(t.write_hit(0x5000, 1), Some(RamOffset(0x1000)));
    t.flush(|s| s.vpid == 1);
    assert!(t.fetch_hit(0x5000).is_some());
    t.select_space(other);
    assert_eq!(t.fetch_hit(0x5000), None);
}

#[test]
fn views_flushes_and_code_pages() {
    let mut t = Tlb::new(0x7000_0000);
    t.select_view(true, false, false);
    t.fill(0x7000, RamOffset(0x3000), ALL);
    t.select_view(false, false, false);
    assert_eq!(t.read_hit(0x7000, 1), None);
    t.select_view(true, false, false);
    t.protect_page(3);
    assert_eq!(t.write_hit(0x7000, 1), None);
    assert!(t.read_hit(0x7000, 1).is_some());
    t.select_view(true, false, true);
    assert_eq!(t.read_hit(0x7000, 1), None, "alignment checking");
    t.select_view(true, false, false);
    for _ in 0..5000 {
        t.flush_current();
        assert_eq!(t.read_hit(0x7000, 1), None);
    }
}

#[test]
fn what_is_global_stays_until_all_goes() {
    let mut t = Tlb::new(0x7000_0000);
    for va in [0x5000, 0x6000, 0x8000] {
        t.fill(va, RamOffset(va), ALL);
    }
    t.keep_global(0x6000);
    t.keep_global(0x8000);
    // Not global any more.
    t.fill(0x8000, RamOffset(0x8000), ALL);
    t.flush_local(|_| true);
    let hits = [0x5000, 0x6000, 0x8000].map(|va| t.read_hit(va, 8).is_some());
    assert_eq!(hits, [false, true, false]);
    t.flush_local(|s| s.pcid == 1);
    t.flush_page(0x5000, |_| true);
    assert!(t.fetch_hit(0x6000).is_some());
    t.flush_page(0x6000, |_| true);
    assert_eq!(t.fetch_hit(0x6000), None);
    t.fill(0x6000, RamOffset(0x6000), ALL);
    t.keep_global(0x6000);
    t.flush(|_| true);
    assert_eq!(t.fetch_hit(0x6000), None);
    // Nor is what comes to its slot later.
    t.fill(0x6000, RamOffset(0x6000), ALL);
    t.flush_local(|_| true);
    assert_eq!(t.fetch_hit(0x6000), None);
}

#[test]
fn a_flush_of_2_mbyte_takes_those() {
    let mut t = Tlb::new(0x7000_0000);
    let inside = [0x60_0000, 0x60_1000, 0x7f_f000];
    let beside = [0x5f_f000, 0x80_0000];
    for va in inside.into_iter().chain(beside) {
        t.fill(va, RamOffset(0x1000), ALL);
        t.keep_global(va);
    }
    t.flush_2m(0x71_2345, |s| s.pcid == 1);
    assert!(inside.iter().all(|va| t.read_hit(*va, 8).is_some()));
    t.flush_2m(0x71_2345, |_| true);
    assert!(inside.iter().all(|va| t.read_hit(*va, 8).is_none()));
    assert!(beside.iter().all(|va| t.read_hit(*va, 8).is_some()));
    t.fill(0x60_1000, RamOffset(0x1000), ALL);
    assert!(t.read_hit(0x60_1000, 8).is_some());
    t.flush_local(|_| true);
    assert!(t.read_hit(0x60_1000, 8).is_none(), "not global now");
}

#[test]
fn more_spaces_than_banks() {
    let mut t = Tlb::new(0x7000_0000);
    for pcid in 0..40 {
        t.select_space(Space {
            pcid,
            ..Space::default()
        });
        assert_eq!(t.read_hit(0x9000, 1), None);
        t.fill(0x9000, RamOffset(u64::from(pcid) << 12), ALL);
    }
    t.select_space(Space {
        pcid: 39,
        ..Space::default()
    });
    assert_eq!(t.read_hit(0x9000, 1), Some(RamOffset(39 << 12)));
}

#[test]
fn page_zero_misses_too_while_everything_misses() {
    let mut t = Tlb::new(0x7000_0000);
    t.select_view(true, false, false);
    t.fill(
        0,
        RamOffset(0x4000),
        Allowed {
            read: true,
            ..Allowed::default()
        },
    );
    assert_eq!(t.write_hit(0x10, 1), None, "read only");
    t.select_view(true, false, true);
    assert_eq!(t.write_hit(0x10, 1), None);
    assert_eq!(t.read_hit(0x10, 1), None);
    assert_eq!(t.fetch_hit(0x10), None);
}

/// What a translator's code does: copies the slot of `va` to the first sites, for reads and for writes.
fn copy(t: &mut Tlb, va: u64) {
    let current = t.current;
    let view = &mut t.views[current];
    let i = slot(va);
    let linear = va & !PAGE_MASK;
    for (site, page) in [(0, view.read[i]), (READ_SITES, view.write[i])] {
        if page == linear.wrapping_neg() {
            view.sites.any = 1;
            view.sites.copied[i] = 1;
            view.sites.place[site] = view.place[i];
            view.sites.page[site] = (va >> 12).wrapping_neg();
        }
    }
}

/// Whether the first sites, of reads and of writes, answer for `va`.
fn answers(t: &Tlb, va: u64) -> [bool; 2] {
    let sites = &t.views[t.current].sites;
    [0, READ_SITES].map(|site| sites.page[site].wrapping_add(va >> 12) == 0)
}

/// A TLB whose sites hold the page at 5000h, which is not global, and global if `global`.
fn with_sites(global: bool) -> Tlb {
    let mut t = Tlb::new(0x7000_0000);
    t.fill(0x5000, RamOffset(0x1000), ALL);
    if global {
        t.keep_global(0x5000);
    }
    assert_eq!(answers(&t, 0x5000), [false; 2]);
    copy(&mut t, 0x5000);
    assert_eq!(answers(&t, 0x5ff0), [true; 2]);
    assert_eq!(answers(&t, 0x6000), [false; 2]);
    t
}

#[test]
fn whatever_changes_a_slot_empties_its_sites() {
    let none = |t: &Tlb| answers(t, 0x5000) == [false; 2];
    let all = |t: &Tlb| answers(t, 0x5000) == [true; 2];

    let mut t = with_sites(false);
    t.flush_page(0x5000, |_| true);
    assert!(none(&t));

    for global in [false, true] {
        let mut t = with_sites(global);
        t.flush_local(|_| true);
        assert!(none(&t));
        let mut t = with_sites(global);
        t.flush(|_| true);
        assert!(none(&t));
    }

    // Another page, and the same one anew.
    for va in [0x5000 + (SLOTS as u64) * 4096, 0x5000] {
        let mut t = with_sites(false);
        t.fill(va, RamOffset(0x2000), ALL);
        assert!(none(&t));
    }

    let mut t = with_sites(false);
    t.protect_page(1);
    assert!(!answers(&t, 0x5000)[1]);

    // Others than that leave them alone.
    let mut t = with_sites(false);
    t.flush_page(0x6000, |_| true);
    t.fill(0x7000, RamOffset(0x2000), ALL);
    t.protect_page(2);
    t.flush(|space| space.vpid == 1);
    assert!(all(&t));
}

#[test]
fn sites_belong_to_a_view() {
    let mut t = with_sites(false);
    let all = [true; 2];
    t.select_view(true, false, false);
    assert_ne!(answers(&t, 0x5000), all);
    t.select_view(false, false, true);
    assert_ne!(answers(&t, 0x5000), all, "everything misses");
    t.select_view(false, false, false);
    assert_eq!(answers(&t, 0x5000), all);
    for pcid in 1..=BANKS as u16 {
        t.select_space(Space {
            pcid,
            ..Space::default()
        });
        assert_ne!(answers(&t, 0x5000), all);
    }
    t.select_space(Space::default());
    assert_ne!(answers(&t, 0x5000), all, "its bank was given away");
}

#[test]
fn a_site_is_emptied_alone() {
    let mut t = with_sites(false);
    t.drop_site(READ_SITES);
    assert_eq!(answers(&t, 0x5000), [true, false]);
}

/// Slots whose usual empty value is near their own pages, and those beside them; pages at both ends of linear addresses.
#[test]
fn what_was_never_filled_answers_nothing() {
    const PAGES: u64 = SLOTS as u64;
    let mut t = Tlb::new(0x7000_0000);
    // So that there is a view.
    t.fill(0x5_0000, RamOffset(0x1000), ALL);
    let numbers = (0..4).chain(PAGES - 3..PAGES + 3);
    let pages: Vec<u64> = numbers
        .flat_map(|n| [n << 12, (n << 12).wrapping_neg()])
        .collect();
    let silent = |t: &Tlb| {
        for page in &pages {
            for (va, size) in [
                (*page, 1),
                (page + 0xff8, 8),
                (page + 0xfff, 2),
                (page + 0xfc1, 64),
            ] {
                assert_eq!(t.read_hit(va, size), None, "{va:x}");
                assert_eq!(t.write_hit(va, size), None, "{va:x}");
                assert_eq!(t.fetch_hit(va), None, "{va:x}");
            }
        }
    };
    silent(&t);
    for page in &pages {
        t.fill(*page, RamOffset(0), ALL);
        assert_eq!(t.write_hit(page + 0xff8, 8), Some(RamOffset(0xff8)));
        // Its neighbours have other slots.
        assert_eq!(t.read_hit(page.wrapping_sub(1), 8), None);
        t.flush_page(*page, |_| true);
    }
    silent(&t);
    for page in &pages {
        t.fill(*page, RamOffset(0), ALL);
    }
    t.protect_page(0);
    assert!(pages.iter().all(|page| t.write_hit(*page, 1).is_none()));
    t.flush_current();
    silent(&t);
}
