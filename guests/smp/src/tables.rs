//! What processors set in shared descriptor tables: the accessed and the busy flag, by locked operations (9.1.2.1).

use core::arch::asm;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use runtime::descriptors::{GDT_SLOTS, SPARE, TSS, gdt_base, set_descriptor};
use runtime::memory::page;
use runtime::{check, check_eq, section, smp, trap};

use crate::CPUS;

const ROUNDS: u64 = 500;
/// A data segment that all load.
const SEGMENT: u16 = SPARE;
/// A TSS that all want.
const WANTED: u16 = SPARE + 16;
/// In the byte with the type: accessed (Table 3-1), busy (Table 3-2).
const ACCESSED: u8 = 1;
const BUSY: u8 = 2;

static LOST: AtomicU64 = AtomicU64::new(0);
static LOADED: AtomicU64 = AtomicU64::new(0);
static OWNERS: AtomicU64 = AtomicU64::new(0);
static SHARED: AtomicU64 = AtomicU64::new(0);

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

fn own_gdt() -> Pointer {
    let mut pointer = Pointer { limit: 0, base: 0 };
    // SAFETY: stores 10 bytes there.
    unsafe { asm!("sgdt [{}]", in(reg) &raw mut pointer, options(nostack)) };
    pointer
}

fn load_gdt(pointer: &Pointer) {
    // SAFETY: a table with the runtime's layout that stays where it is.
    unsafe { asm!("lgdt [{}]", in(reg) pointer, options(nostack)) };
}

/// The boot processor's table, which all use for these tests.
fn shared_gdt() -> Pointer {
    Pointer {
        limit: (GDT_SLOTS * 8 - 1) as u16,
        base: gdt_base(),
    }
}

/// The byte with the type of the descriptor of `selector`.
fn type_byte(gdt: u64, selector: u16) -> &'static AtomicU8 {
    // SAFETY: in a descriptor table, which lives as long as the guest; processors change it too, as one.
    unsafe { &*((gdt + u64::from(selector & !7) + 5) as *const AtomicU8) }
}

pub fn run() {
    accessed();
    busy();
}

/// Half of the processors load a segment whose accessed flag they clear again and again; the others change its DPL
/// meanwhile, each a bit of its own.
fn accessed() {
    section("9.1.2.1 setting the accessed flag loses nothing");
    fn job(me: usize) {
        let own = own_gdt();
        load_gdt(&shared_gdt());
        let byte = type_byte(gdt_base(), SEGMENT);
        if me.is_multiple_of(2) {
            for _ in 0..ROUNDS {
                byte.fetch_and(!ACCESSED, Ordering::SeqCst);
                // SAFETY: a data segment of any DPL may be loaded at CPL 0; 64-bit mode does not use DS.
                unsafe { asm!("mov ds, {:e}", in(reg) u32::from(SEGMENT), options(nostack)) };
            }
        } else {
            let bit = if me == 1 { 0x20 } else { 0x40 };
            let mut expected = byte.load(Ordering::SeqCst) & bit;
            for _ in 0..16 * ROUNDS {
                let found = byte.fetch_xor(bit, Ordering::SeqCst) & bit;
                if found != expected {
                    LOST.fetch_add(1, Ordering::SeqCst);
                }
                expected = !found & bit;
            }
        }
        load_gdt(&own);
    }
    set_descriptor(SEGMENT, 0x00cf_9300_0000_ffff);
    check!(
        smp::everywhere(CPUS, job),
        "loads and changes come to their end"
    );
    check_eq!(
        LOST.load(Ordering::SeqCst),
        0,
        "changes of DPL that were lost"
    );
    // SAFETY: as above.
    unsafe { asm!("mov ds, {:e}", in(reg) u32::from(SEGMENT), options(nostack)) };
    let byte = type_byte(gdt_base(), SEGMENT).load(Ordering::SeqCst);
    check_eq!(byte & ACCESSED, ACCESSED, "it is set in the end");
}

/// LTR tests and sets the busy flag as one: of all that want a TSS, one gets it, and the others get #GP.
fn busy() {
    section("9.1.2.1 one processor gets a TSS");
    /// LTR AX has three bytes.
    fn refused(frame: &mut trap::Frame) {
        frame.gpr[13] = 1;
        frame.rip += 3;
    }
    fn job(_: usize) {
        let own = own_gdt();
        let byte = type_byte(gdt_base(), WANTED);
        for _ in 0..ROUNDS {
            load_gdt(&shared_gdt());
            let refused: u64;
            // SAFETY: the handler of #GP goes on behind LTR; a TSS that was loaded is used by nothing before the own
            // one is loaded again.
            unsafe {
                asm!("xor ecx, ecx", "ltr ax", in("ax") WANTED, out("rcx") refused);
            }
            if refused == 0 {
                if OWNERS.fetch_add(1, Ordering::SeqCst) != 0 {
                    SHARED.fetch_add(1, Ordering::SeqCst);
                }
                LOADED.fetch_add(1, Ordering::SeqCst);
                load_gdt(&own);
                let base = own.base;
                type_byte(base, TSS).fetch_and(!BUSY, Ordering::SeqCst);
                // SAFETY: the processor's own TSS, available again.
                unsafe { asm!("ltr {:x}", in(reg) TSS, options(nostack)) };
                OWNERS.fetch_sub(1, Ordering::SeqCst);
                byte.fetch_and(!BUSY, Ordering::SeqCst);
            }
        }
        load_gdt(&own);
    }
    let tss = page();
    set_descriptor(
        WANTED,
        0x67 | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56,
    );
    set_descriptor(WANTED + 8, tss >> 32);
    trap::handle(13, Some(refused));
    check!(smp::everywhere(CPUS, job), "all come to their end");
    trap::handle(13, None);
    check!(LOADED.load(Ordering::SeqCst) > 0, "some got it");
    check_eq!(SHARED.load(Ordering::SeqCst), 0, "two had it at once");
}
