//! Legacy modes: out of IA-32e mode into 32-bit protected mode without paging, virtual-8086 or real-address mode, and
//! back by whatever exception or interrupt comes first. A state may switch paging on, with tables that map everything
//! but the test's own addresses to itself.
//!
//! [`protected`] enters by IRETD, so that a state of any privilege, or of virtual-8086 mode, can be started; [`real`]
//! enters real-address mode. Both have tables of their own, which tests may change. What ends the state is recorded
//! with what the processor pushed.

use core::arch::global_asm;

use crate::memory;

/// 32-bit code, CPL 0.
pub const CODE: u16 = 0x08;
/// Data, CPL 0.
pub const DATA: u16 = 0x10;
/// The TSS.
pub const TSS: u16 = 0x18;
/// 16-bit code and data, CPL 0.
pub const CODE16: u16 = 0x40;
/// 16-bit data, CPL 0.
pub const DATA16: u16 = 0x48;
/// 32-bit code, CPL 3.
pub const USER_CODE: u16 = 0x50 | 3;
/// Data, CPL 3.
pub const USER_DATA: u16 = 0x58 | 3;
/// The first of the slots for tests.
pub const SPARE: u16 = 0x60;
/// Slots in the GDT.
const SLOTS: usize = 32;
/// Segment of the real-mode entry stubs.
const LOW_SEGMENT: u16 = 0x700;
const LOW: u64 = (LOW_SEGMENT as u64) << 4;
/// Where the real-mode code lies in that segment, behind a stub of 8 bytes for each vector.
const LOW_CODE: u64 = 0x800;

/// Registers and IRETD frame of a state in protected or virtual-8086 mode.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct State {
    /// EAX, ECX, EDX, EBX, EBP, ESI, EDI.
    pub gpr: [u32; 7],
    /// EIP.
    pub eip: u32,
    /// CS.
    pub cs: u32,
    /// EFLAGS.
    pub eflags: u32,
    /// ESP.
    pub esp: u32,
    /// SS; only for states that are not of CPL 0.
    pub ss: u32,
    /// ES, DS, FS, GS; only for virtual-8086 mode.
    pub data: [u32; 4],
}

/// What ended a state of protected mode.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    /// EDI, ESI, EBP, ESP of the handler, EBX, EDX, ECX, EAX.
    pub gpr: [u32; 8],
    /// Vector.
    pub vector: u32,
    /// Error code, zero for vectors without.
    pub error: u32,
    /// EIP.
    pub eip: u32,
    /// CS.
    pub cs: u32,
    /// EFLAGS.
    pub eflags: u32,
    /// What lies above: ESP and SS if the privilege changed, ES, DS, FS and GS out of virtual-8086 mode.
    pub above: [u32; 6],
    /// TR.
    pub tr: u32,
    /// CR0.
    pub cr0: u32,
    /// DR6.
    pub dr6: u32,
    /// DR7.
    pub dr7: u32,
    /// The upper half of the descriptor of [`TSS`], which the way back changes.
    pub tss_descriptor: u32,
}

/// A state of real-address mode.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RealState {
    /// EAX, EBX, ECX, EDX.
    pub gpr: [u32; 4],
    /// ESP.
    pub esp: u32,
    /// IP, CS, FLAGS, SS, DS.
    pub words: [u16; 5],
    /// Data segments keep a limit of 4 GiB.
    pub big: u16,
}

/// What ended it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RealRecord {
    /// EAX, EBX, ECX, EDX.
    pub gpr: [u32; 4],
    /// ESP below the frame.
    pub esp: u32,
    /// IP, CS, FLAGS of the frame.
    pub frame: [u16; 3],
    /// Vector.
    pub vector: u16,
}

global_asm!(
    r#"
    .text
    .globl legacy_enter
legacy_enter:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    pushfq
    cli
    mov %rsp, legacy_rsp(%rip)
    mov %cr3, %rax
    mov %rax, legacy_cr3(%rip)
    sgdt legacy_gdtr64(%rip)
    sidt legacy_idtr64(%rip)
    lgdt legacy_gdtr(%rip)
    lea 1f(%rip), %rax
    push $0x08
    push %rax
    lretq
    .code32
1:
    mov $0x10, %eax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov %ax, %fs
    mov %ax, %gs
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    mov $0xc0000080, %ecx
    rdmsr
    and $0xfffffeff, %eax
    wrmsr
    mov $legacy_stack_top, %esp
    lidt legacy_idtr
    andb $0xfd, LEGACY_GDT+0x18+5
    mov $0x18, %eax
    ltr %ax
    xor %eax, %eax
    lldt %ax
    cmpl $0, LEGACY_REAL
    jne 3f
    mov $LEGACY_STATE, %esi
    testl $0x20000, 36(%esi)
    jnz 2f
    testl $3, 32(%esi)
    jnz 2f
    mov 40(%esi), %esp
    pushl 36(%esi)
    pushl 32(%esi)
    pushl 28(%esi)
    jmp 4f
2:
    lea 28(%esi), %esp
4:
    mov (%esi), %eax
    mov 4(%esi), %ecx
    mov 8(%esi), %edx
    mov 12(%esi), %ebx
    mov 16(%esi), %ebp
    mov 24(%esi), %edi
    mov 20(%esi), %esi
    iretl
3:
    ljmp $0x40, $0x800

    .balign 16
    .globl legacy_stubs
legacy_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17)
    .else
    pushl $0
    .endif
    pushl $vector
    jmp legacy_common
    .set vector, vector + 1
    .endr
legacy_common:
    pushal
    cld
    mov $0x10, %eax
    mov %ax, %ds
    mov %ax, %es
    mov %esp, %esi
    mov $LEGACY_RECORD, %edi
    mov $19, %ecx
    rep movsl %ss:(%esi), %es:(%edi)
    xor %eax, %eax
    str %ax
    stosl
    mov %cr0, %eax
    stosl
    mov %dr6, %eax
    stosl
    mov %dr7, %eax
    stosl
    mov LEGACY_GDT+0x18+4, %eax
    stosl
legacy_leave:
    mov $0x10, %eax
    mov %ax, %ss
    mov $legacy_stack_top, %esp
    # What pages a test made map this code to itself.
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    mov %cr4, %eax
    or $0x20, %eax
    mov %eax, %cr4
    andb $0xfd, LEGACY_GDT+0x18+5
    mov $0x18, %eax
    ltr %ax
    xor %eax, %eax
    mov %eax, %dr7
    mov legacy_cr3, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000000, %eax
    and $0xfffffff3, %eax
    mov %eax, %cr0
    ljmp $0x20, $5f
    .code64
5:
    lgdt legacy_gdtr64(%rip)
    lidt legacy_idtr64(%rip)
    mov legacy_rsp(%rip), %rsp
    push $0x08
    lea 6f(%rip), %rax
    push %rax
    lretq
6:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    mov legacy_gdtr64+2(%rip), %rax
    andb $0xfd, 0x35(%rax)
    mov $0x30, %eax
    ltr %ax
    popfq
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

    .code32
legacy_real_back:
    mov $0x10, %eax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    jmp legacy_leave

    # Copied to 7800h; offsets are those of segment 700h.
    .code16
    .balign 16
    .globl legacy_low
legacy_low:
    mov $0x48, %ax
    mov %ax, %es
    mov %ax, %ss
    mov %ax, %fs
    mov %ax, %gs
    cmpw $0, 0x7000+0x800+(9f-legacy_low)+30
    jne 7f
    mov %ax, %ds
7:
    mov %cr0, %eax
    and $0xfe, %al
    mov %eax, %cr0
    ljmp $0x700, $(0x800+(8f-legacy_low))
8:
    lidtl %cs:(0x800+(legacy_ivt-legacy_low))
    mov %cs:(0x800+(9f-legacy_low)+26), %ss
    movl %cs:(0x800+(9f-legacy_low)+16), %esp
    mov %cs:(0x800+(9f-legacy_low)+28), %ds
    xor %ax, %ax
    mov %ax, %es
    pushw %cs:(0x800+(9f-legacy_low)+24)
    pushw %cs:(0x800+(9f-legacy_low)+22)
    pushw %cs:(0x800+(9f-legacy_low)+20)
    movl %cs:(0x800+(9f-legacy_low)), %eax
    movl %cs:(0x800+(9f-legacy_low)+4), %ebx
    movl %cs:(0x800+(9f-legacy_low)+8), %ecx
    movl %cs:(0x800+(9f-legacy_low)+12), %edx
    iretw
    .globl legacy_low_back
legacy_low_back:
    movl %eax, %cs:(0x800+(legacy_low_record-legacy_low))
    movl %ebx, %cs:(0x800+(legacy_low_record-legacy_low)+4)
    movl %ecx, %cs:(0x800+(legacy_low_record-legacy_low)+8)
    movl %edx, %cs:(0x800+(legacy_low_record-legacy_low)+12)
    popw %cs:(0x800+(legacy_low_record-legacy_low)+26)
    movl %esp, %cs:(0x800+(legacy_low_record-legacy_low)+16)
    popw %cs:(0x800+(legacy_low_record-legacy_low)+20)
    popw %cs:(0x800+(legacy_low_record-legacy_low)+22)
    popw %cs:(0x800+(legacy_low_record-legacy_low)+24)
    lgdtl %cs:(0x800+(legacy_low_gdtr-legacy_low))
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $0x08, $legacy_real_back
legacy_ivt:
    .word 0x3ff
    .long 0
legacy_low_gdtr:
    .word 0xff
    .long LEGACY_GDT
    .balign 4
    .globl legacy_low_state
legacy_low_state:
9:
    .skip 32
    .globl legacy_low_record
legacy_low_record:
    .skip 28
    .globl legacy_low_end
legacy_low_end:
    .code64

    .data
    .balign 8
legacy_gdtr:
    .word 0xff
    .quad LEGACY_GDT
legacy_idtr:
    .word 0x7ff
    .long LEGACY_IDT
    .bss
    .balign 16
legacy_rsp: .skip 8
legacy_cr3: .skip 8
legacy_gdtr64: .skip 16
legacy_idtr64: .skip 16
legacy_stack: .skip 8192
    .globl legacy_stack_top
legacy_stack_top:
    .text
"#,
    options(att_syntax)
);

// SAFETY: the assembly above; `legacy_enter` keeps to the C calling convention, of the rest only addresses are used.
unsafe extern "C" {
    safe fn legacy_enter();
    static legacy_stubs: u8;
    static legacy_stack_top: u8;
    static legacy_low: u8;
    static legacy_low_back: u8;
    static legacy_low_state: u8;
    static legacy_low_record: u8;
    static legacy_low_end: u8;
}

// SAFETY: the one symbol of this name, for the assembly above.
#[unsafe(no_mangle)]
static mut LEGACY_GDT: [u64; SLOTS] = [0; SLOTS];
// SAFETY: as above.
#[unsafe(no_mangle)]
static mut LEGACY_IDT: [u64; 256] = [0; 256];
// SAFETY: as above.
#[unsafe(no_mangle)]
static mut LEGACY_STATE: State = State {
    gpr: [0; 7],
    eip: 0,
    cs: 0,
    eflags: 0,
    esp: 0,
    ss: 0,
    data: [0; 4],
};
// SAFETY: as above.
#[unsafe(no_mangle)]
static mut LEGACY_RECORD: Record = Record {
    gpr: [0; 8],
    vector: 0,
    error: 0,
    eip: 0,
    cs: 0,
    eflags: 0,
    above: [0; 6],
    tr: 0,
    cr0: 0,
    dr6: 0,
    dr7: 0,
    tss_descriptor: 0,
};
// SAFETY: as above.
#[unsafe(no_mangle)]
static mut LEGACY_REAL: u32 = 0;

#[repr(C, align(256))]
struct Task([u32; 64]);
static mut LEGACY_TASK: Task = Task([0; 64]);

/// Base of the TSS, which has 256 bytes.
pub fn tss_base() -> u64 {
    &raw const LEGACY_TASK as u64
}

/// Top of the stack of CPL 0.
pub fn stack_top() -> u64 {
    &raw const legacy_stack_top as u64
}

/// The slot of `selector` in the GDT of these modes.
///
/// # Panics
/// When the selector is outside of the table.
pub fn set_descriptor(selector: u16, descriptor: u64) {
    let slot = usize::from(selector >> 3);
    assert!(slot < SLOTS, "selector outside of the GDT");
    // SAFETY: in the table; one flow of control.
    unsafe {
        (&raw mut LEGACY_GDT)
            .cast::<u64>()
            .add(slot)
            .write_volatile(descriptor);
    }
}

/// Reads a slot.
///
/// # Panics
/// When the selector is outside of the table.
pub fn descriptor(selector: u16) -> u64 {
    let slot = usize::from(selector >> 3);
    assert!(slot < SLOTS, "selector outside of the GDT");
    // SAFETY: in the table.
    unsafe {
        (&raw const LEGACY_GDT)
            .cast::<u64>()
            .add(slot)
            .read_volatile()
    }
}

/// Sets a gate of the IDT.
pub fn set_gate(vector: u8, gate: u64) {
    // SAFETY: in the table; one flow of control.
    unsafe {
        (&raw mut LEGACY_IDT)
            .cast::<u64>()
            .add(usize::from(vector))
            .write_volatile(gate);
    }
}

/// A gate: type byte (P, DPL, type), target, parameters of a call gate.
pub fn gate(kind: u64, selector: u16, offset: u64, parameters: u64) -> u64 {
    (offset & 0xffff)
        | u64::from(selector) << 16
        | parameters << 32
        | kind << 40
        | (offset >> 16 & 0xffff) << 48
}

/// A segment or system descriptor with byte granularity; `access` is the type byte, `flags` the upper four bits.
pub fn segment(base: u64, limit: u64, access: u64, flags: u64) -> u64 {
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

/// Address of the recording handler of `vector`.
pub fn stub(vector: u8) -> u64 {
    &raw const legacy_stubs as u64 + 16 * u64::from(vector)
}

/// Makes the tables anew: flat segments, a recording handler behind every vector, open to CPL 3.
pub fn install() {
    for slot in 0..SLOTS as u16 {
        set_descriptor(slot << 3, 0);
    }
    set_descriptor(CODE, 0x00cf_9b00_0000_ffff);
    set_descriptor(DATA, 0x00cf_9300_0000_ffff);
    set_descriptor(TSS, segment(tss_base(), 0xff, 0x89, 0));
    set_descriptor(0x20, 0x00af_9b00_0000_ffff);
    set_descriptor(CODE16, segment(LOW, 0xffff, 0x9b, 0));
    set_descriptor(DATA16, segment(0, 0xffff, 0x93, 0));
    set_descriptor(USER_CODE, 0x00cf_fb00_0000_ffff);
    set_descriptor(USER_DATA, 0x00cf_f300_0000_ffff);
    for vector in 0..=255 {
        set_gate(vector, gate(0xee, CODE, stub(vector), 0));
    }
    // SAFETY: the TSS of this module; one flow of control.
    unsafe {
        (&raw mut LEGACY_TASK).write_bytes(0, 1);
        let words = (&raw mut LEGACY_TASK).cast::<u32>();
        words.add(1).write_volatile(stack_top() as u32);
        words.add(2).write_volatile(u32::from(DATA));
        // The I/O map begins past the limit.
        words.add(25).write_volatile(0x100 << 16);
    }
    let blob = &raw const legacy_low as u64;
    let length = &raw const legacy_low_end as u64 - blob;
    for i in 0..length {
        // SAFETY: inside of the assembly above.
        let byte = unsafe { ((blob + i) as *const u8).read_volatile() };
        memory::write_bytes(LOW + LOW_CODE + i, &[byte]);
    }
    let back = LOW_CODE + (&raw const legacy_low_back as u64 - blob);
    for vector in 0..256u64 {
        // PUSH imm8; JMP rel16.
        let distance = back.wrapping_sub(8 * vector + 5) as u16;
        let [low, high] = distance.to_le_bytes();
        let stub = [0x6a, vector as u8, 0xe9, low, high];
        memory::write_bytes(LOW + 8 * vector, &stub);
        set_real_vector(vector as u8, LOW_SEGMENT, 8 * vector as u16);
    }
}

/// Sets an entry of the real-mode interrupt table.
pub fn set_real_vector(vector: u8, segment: u16, offset: u16) {
    let [a, b] = offset.to_le_bytes();
    let [c, d] = segment.to_le_bytes();
    memory::write_bytes(4 * u64::from(vector), &[a, b, c, d]);
}

/// Runs a state of protected or virtual-8086 mode until its first exception or interrupt.
pub fn protected(state: &State) -> Record {
    // SAFETY: one flow of control; the state's code is the test's own.
    unsafe {
        (&raw mut LEGACY_STATE).write_volatile(*state);
        (&raw mut LEGACY_REAL).write_volatile(0);
    }
    legacy_enter();
    // SAFETY: written by the handler.
    unsafe { (&raw const LEGACY_RECORD).read_volatile() }
}

/// Runs a state of real-address mode until its first exception or interrupt.
pub fn real(state: &RealState) -> RealRecord {
    let low = |symbol: *const u8| LOW + LOW_CODE + (symbol as u64 - &raw const legacy_low as u64);
    // SAFETY: one flow of control; the state's code is the test's own. The blob is in low memory (`install`).
    unsafe {
        (low(&raw const legacy_low_state) as *mut RealState).write_volatile(*state);
        (&raw mut LEGACY_REAL).write_volatile(1);
    }
    legacy_enter();
    // SAFETY: written by the stub.
    let mut record =
        unsafe { (low(&raw const legacy_low_record) as *const RealRecord).read_volatile() };
    record.vector &= 0xff;
    record
}
