//! GDT, TSS and IDT (SDM Vol 3 3.4.5, 8.7, 6.14.1).

use core::arch::asm;

/// 64-bit code, CPL 0.
pub const KERNEL_CS: u16 = 0x08;
/// Data, CPL 0.
pub const KERNEL_SS: u16 = 0x10;
/// 32-bit code, CPL 3, as SYSRET wants it below [`USER_SS`].
pub const USER_CS32: u16 = 0x18 | 3;
/// Data, CPL 3.
pub const USER_SS: u16 = 0x20 | 3;
/// 64-bit code, CPL 3.
pub const USER_CS: u16 = 0x28 | 3;
/// The TSS, two slots.
pub const TSS: u16 = 0x30;
/// The first of eight slots for tests.
pub const SPARE: u16 = 0x40;
/// Slots in the GDT.
pub const GDT_SLOTS: usize = 16;

/// Stack of an interrupt stack table entry.
const STACK_BYTES: usize = 16384;

/// 64-bit TSS (SDM Vol 3 Figure 8-11), as words.
#[repr(C, align(16))]
struct Tss([u32; 26]);

#[repr(C, align(4096))]
struct Stacks([[u8; STACK_BYTES]; 4]);

/// An IDT gate.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Gate {
    low: u64,
    high: u64,
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

static mut GDT: [u64; GDT_SLOTS] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
];
static mut IDT: [Gate; 256] = [Gate { low: 0, high: 0 }; 256];
static mut TASK: Tss = Tss([0; 26]);
static mut STACKS: Stacks = Stacks([[0; STACK_BYTES]; 4]);

// SAFETY: a label of `trap`'s assembly; only its address is used.
unsafe extern "C" {
    /// 256 entry stubs, 16 bytes each.
    static trap_stubs: u8;
}

/// Address of the entry stub of `vector`.
pub fn stub(vector: u8) -> u64 {
    &raw const trap_stubs as u64 + 16 * u64::from(vector)
}

/// Top of the stack of interrupt stack table entry `number` (1 to 3), or of RSP0 (0).
pub fn stack_top(number: usize) -> u64 {
    &raw const STACKS as u64 + (STACK_BYTES * (number + 1)) as u64
}

/// Sets gate `vector`: interrupt gate to `target` with stack `ist` (0: none) and privilege `dpl`.
pub fn set_gate(vector: u8, target: u64, ist: u8, dpl: u8) {
    set_raw_gate(vector, target, KERNEL_CS, ist, 0x8e | u64::from(dpl) << 5);
}

/// Sets gate `vector` with the given selector and type byte (P, DPL, type).
pub fn set_raw_gate(vector: u8, target: u64, selector: u16, ist: u8, kind: u64) {
    let low = (target & 0xffff)
        | u64::from(selector) << 16
        | u64::from(ist) << 32
        | kind << 40
        | (target >> 16 & 0xffff) << 48;
    // SAFETY: one flow of control; the processor reads the table when it delivers.
    unsafe {
        (&raw mut IDT)
            .cast::<Gate>()
            .add(usize::from(vector))
            .write_volatile(Gate {
                low,
                high: target >> 32,
            });
    }
}

/// Writes slot `selector / 8` of the GDT.
///
/// # Panics
/// When the selector is outside of the table.
pub fn set_descriptor(selector: u16, descriptor: u64) {
    let slot = usize::from(selector >> 3);
    assert!(slot < GDT_SLOTS, "selector outside of the GDT");
    // SAFETY: in the table; one flow of control.
    unsafe {
        (&raw mut GDT)
            .cast::<u64>()
            .add(slot)
            .write_volatile(descriptor)
    };
}

/// Reads slot `selector / 8` of the GDT.
///
/// # Panics
/// When the selector is outside of the table.
pub fn descriptor(selector: u16) -> u64 {
    let slot = usize::from(selector >> 3);
    assert!(slot < GDT_SLOTS, "selector outside of the GDT");
    // SAFETY: in the table.
    unsafe { (&raw const GDT).cast::<u64>().add(slot).read_volatile() }
}

/// Sets a 64-bit pointer of the TSS: 0 is RSP0, `n` is IST n.
///
/// # Panics
/// When `number` is above 7.
pub fn set_stack(number: usize, top: u64) {
    assert!(number <= 7, "no such stack");
    let at = if number == 0 { 1 } else { 9 + 2 * (number - 1) };
    // SAFETY: in the TSS; the processor reads it when it switches stacks.
    unsafe {
        let words = (&raw mut TASK).cast::<u32>();
        words.add(at).write_volatile(top as u32);
        words.add(at + 1).write_volatile((top >> 32) as u32);
    }
}

/// LIDT with the runtime's table and `limit`.
pub fn load_idt(limit: u16) {
    let pointer = Pointer {
        limit,
        base: &raw const IDT as u64,
    };
    // SAFETY: the table lives as long as the guest.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(nostack)) };
}

/// Base of the GDT.
pub fn gdt_base() -> u64 {
    &raw const GDT as u64
}

/// Base of the IDT.
pub fn idt_base() -> u64 {
    &raw const IDT as u64
}

/// Base of the TSS.
pub fn tss_base() -> u64 {
    &raw const TASK as u64
}

/// Makes the tables and loads them. Every vector goes to its stub on the stack of IST 1; INT3, INTO and
/// INT 80h may come from CPL 3.
pub fn install() {
    for vector in 0..=255 {
        let dpl = if matches!(vector, 3 | 4 | 0x80) { 3 } else { 0 };
        set_gate(vector, stub(vector), 1, dpl);
    }
    set_stack(0, stack_top(0));
    for ist in 1..=3 {
        set_stack(ist, stack_top(ist));
    }
    let tss = tss_base();
    set_descriptor(
        TSS,
        0x67 | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56,
    );
    set_descriptor(TSS + 8, tss >> 32);
    // SAFETY: in the TSS. The I/O map base is past the limit: no map.
    unsafe {
        (&raw mut TASK)
            .cast::<u32>()
            .add(25)
            .write_volatile(0x68 << 16);
    }
    // SAFETY: the tables were just made and live as long as the guest.
    unsafe { load(gdt_base(), (GDT_SLOTS * 8 - 1) as u16) };
    load_idt(0xfff);
}

/// Loads the GDT at `base`, all segment registers, and TR.
///
/// # Safety
/// It has the runtime's layout and stays there; its TSS is not busy.
pub unsafe fn load(base: u64, limit: u16) {
    let pointer = Pointer { limit, base };
    // SAFETY: the caller's promise; the stack stays what it is.
    unsafe {
        asm!(
            "lgdt [{pointer}]",
            "push {cs}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ds, {ss:e}",
            "mov es, {ss:e}",
            "mov ss, {ss:e}",
            "mov fs, {null:e}",
            "mov gs, {null:e}",
            "ltr {tss:x}",
            pointer = in(reg) &pointer,
            cs = in(reg) u64::from(KERNEL_CS),
            ss = in(reg) u64::from(KERNEL_SS),
            null = in(reg) 0u64,
            tss = in(reg) TSS,
            scratch = out(reg) _,
        );
    }
}
