//! The other processors: started by INIT and start-up IPI (SDM Vol 3 9.4.4), each with a stack, a GDT and a TSS of
//! its own, the boot processor's IDT and page tables. They wait for jobs.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::apic::{self, reg};
use crate::cpu;
use crate::descriptors::{self, TSS};
use crate::memory::pages;
use crate::paging;

/// The most processors, the boot processor among them.
pub const MAX: usize = 16;

/// Where the start-up code lies: page 8, so the IPI's vector is 8.
const TRAMPOLINE: u64 = 0x8000;
const STACK_PAGES: u64 = 8;

global_asm!(
    ".text",
    ".balign 16",
    ".code16",
    "ap_start:",
    "cli",
    "cld",
    "xor ax, ax",
    "mov ds, ax",
    "lgdt [ap_gdtr_at]",
    "mov eax, cr0",
    "or eax, 1",
    "mov cr0, eax",
    // A far jump to 18h: 32-bit code.
    ".byte 0xea",
    ".word ap_32 - ap_start + 0x8000",
    ".word 0x18",
    ".code32",
    "ap_32:",
    "mov ax, 0x10",
    "mov ds, ax",
    "mov es, ax",
    "mov ss, ax",
    // PAE, OSFXSR, OSXMMEXCPT.
    "mov eax, 0x620",
    "mov cr4, eax",
    "mov eax, [ap_root_at]",
    "mov cr3, eax",
    // LME, NXE.
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x900",
    "wrmsr",
    // PG, WP, NE, MP, PE; caches on.
    "mov eax, 0x80010023",
    "mov cr0, eax",
    ".byte 0xea",
    ".long ap_64",
    ".word 0x08",
    ".balign 8",
    "ap_gdt:",
    ".quad 0",
    ".quad 0x00af9b000000ffff",
    ".quad 0x00cf93000000ffff",
    ".quad 0x00cf9b000000ffff",
    "ap_gdtr:",
    ".word 31",
    ".long ap_gdt - ap_start + 0x8000",
    ".balign 8",
    "ap_root:",
    ".quad 0",
    "ap_end:",
    ".set ap_gdtr_at, ap_gdtr - ap_start + 0x8000",
    ".set ap_root_at, ap_root - ap_start + 0x8000",
    ".code64",
    "ap_64:",
    "mov edi, 1",
    "lock xadd [rip + {next}], edi",
    "mov eax, edi",
    "inc eax",
    "shl eax, 15",
    "mov rsp, [rip + {stacks}]",
    "add rsp, rax",
    "xor ebp, ebp",
    "call {main}",
    "ud2",
    next = sym NEXT,
    stacks = sym STACKS,
    main = sym main,
);

// SAFETY: labels of the assembly above; only their addresses are used.
unsafe extern "C" {
    static ap_start: u8;
    static ap_root: u8;
    static ap_end: u8;
}

/// Index the next one that starts gets. The boot processor is 0.
static NEXT: AtomicU32 = AtomicU32::new(1);
/// Memory of the stacks, by index.
static STACKS: AtomicU64 = AtomicU64::new(0);
/// Memory for descriptor tables, a page each.
static TABLES: AtomicU64 = AtomicU64::new(0);
/// APIC ID of each, plus one; 0 while it has not started.
static IDS: [AtomicU32; MAX] = [const { AtomicU32::new(0) }; MAX];
/// What each is to run.
static JOBS: [AtomicU64; MAX] = [const { AtomicU64::new(0) }; MAX];

/// What a processor runs; it is given its index.
pub type Job = fn(usize);

/// Starts the others, `count` in all with the boot processor; false if not all have come within a second of the
/// TSC.
pub fn start(count: usize) -> bool {
    assert!(count <= MAX, "too many processors");
    STACKS.store(pages(STACK_PAGES * MAX as u64, 4096), Ordering::SeqCst);
    TABLES.store(pages(MAX as u64, 4096), Ordering::SeqCst);
    IDS[0].store(own_id() + 1, Ordering::SeqCst);
    let start = &raw const ap_start as u64;
    let length = &raw const ap_end as u64 - start;
    for at in 0..length {
        // SAFETY: the start-up code lies in the image; the page below 1 MiB is the guest's.
        unsafe {
            ((TRAMPOLINE + at) as *mut u8).write_volatile(((start + at) as *const u8).read())
        };
    }
    let root = TRAMPOLINE + (&raw const ap_root as u64 - start);
    crate::memory::write(root, paging::root());
    // INIT, then the start-up IPI twice, to all but oneself (9.4.4.1).
    apic::write(reg::ICR, 0xc_4500);
    pause(10_000);
    for _ in 0..2 {
        apic::write(reg::ICR, 0xc_4600 | (TRAMPOLINE >> 12) as u32);
        pause(200);
    }
    until(|| (0..count).all(|i| IDS[i].load(Ordering::SeqCst) != 0))
}

/// The APIC ID of a processor that has started.
pub fn id(index: usize) -> u32 {
    IDS[index].load(Ordering::SeqCst).wrapping_sub(1)
}

fn own_id() -> u32 {
    cpu::cpuid(1, 0)[1] >> 24
}

/// Waits for so many microseconds of a TSC of 1 GHz, at least.
pub fn pause(microseconds: u64) {
    let start = cpu::tsc();
    while cpu::tsc().wrapping_sub(start) < microseconds * 1000 {
        core::hint::spin_loop();
    }
}

/// Waits until `done`; false if that takes more than ten seconds of a TSC of 1 GHz.
pub fn until(done: impl Fn() -> bool) -> bool {
    let start = cpu::tsc();
    while !done() {
        if cpu::tsc().wrapping_sub(start) > 10_000_000_000 {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// Has processor `index` run `job`.
pub fn give(index: usize, job: Job) {
    JOBS[index].store(job as usize as u64, Ordering::SeqCst);
}

/// Waits for processor `index` to be done; false if it does not get there.
pub fn wait(index: usize) -> bool {
    until(|| JOBS[index].load(Ordering::SeqCst) == 0)
}

/// Runs `job` on the first `count` processors at once, the boot processor among them.
pub fn everywhere(count: usize, job: Job) -> bool {
    (1..count).for_each(|i| give(i, job));
    job(0);
    (1..count).all(wait)
}

/// What the assembly comes to.
extern "C" fn main(index: u64) -> ! {
    let index = index as usize;
    if index < MAX {
        tables(index);
        apic::enable();
        IDS[index].store(own_id() + 1, Ordering::SeqCst);
        loop {
            let job = JOBS[index].load(Ordering::SeqCst);
            if job != 0 {
                // SAFETY: only `give` stores here, and it takes a `Job`.
                let job: Job = unsafe { core::mem::transmute(job as usize) };
                job(index);
                JOBS[index].store(0, Ordering::SeqCst);
            }
            core::hint::spin_loop();
        }
    }
    loop {
        cpu::halt();
    }
}

/// A copy of the boot processor's GDT with a TSS of its own, in which every stack is its own too; the boot
/// processor's IDT.
fn tables(index: usize) {
    let gdt = TABLES.load(Ordering::SeqCst) + 4096 * index as u64;
    let tss = gdt + 0x200;
    for slot in 0..u64::from(TSS / 8) {
        let descriptor = crate::memory::read(descriptors::gdt_base() + 8 * slot);
        crate::memory::write(gdt + 8 * slot, descriptor);
    }
    let slot = gdt + u64::from(TSS);
    let low = 0x67 | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56;
    crate::memory::write(slot, low);
    crate::memory::write(slot + 8, tss >> 32);
    // RSP0 and IST1 to IST3 (Figure 8-11), a page of the stack each; the flow of control has the pages above.
    let stack = STACKS.load(Ordering::SeqCst) + STACK_PAGES * 4096 * index as u64;
    for (at, page) in [(4, 1), (0x24, 2), (0x2c, 3), (0x34, 4)] {
        crate::memory::write_bytes(tss + at, &(stack + page * 4096).to_le_bytes());
    }
    // SAFETY: just made, with the runtime's layout.
    unsafe { descriptors::load(gdt, TSS + 15) };
    descriptors::load_idt(0xfff);
}
