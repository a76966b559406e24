//! Every mode of the processor: its tables in RAM, and states that start in it.
//!
//! ```text
//! 0_0000  interrupt vector table       0_6000  PML4, PDPT, PD, PT (4-level; PD and PT are PAE's too)
//! 0_0600  handler: HLT                 0_a000  PD, PT (32-bit)
//! 0_1000  GDT, also the LDT            0_c000  PDPT (PAE)
//! 0_2000  IDT of 32-bit gates          0_d000  stacks, growing down from d800, e800, f800
//! 0_3000  IDT of 64-bit gates          1_0000  code
//! 0_4000  IDT of 16-bit gates          1_2000  data
//! 0_5000  TSS, another one             1_4000  a VMXON region and a VMCS region
//! ```

use std::ops::Range;

use vcpu::{DescriptorTable, SegmentRegister, VcpuState};
use x86defs::segment::{Access, Selector};

use super::RAM_BYTES;
use crate::Input;

/// Where code is.
pub const CODE: u64 = 0x1_0000;
/// Where data is.
pub const DATA: u64 = 0x1_2000;
/// A region for VMXON, with its revision; a VMCS region follows.
pub const VMX_REGION: u64 = 0x1_4000;
/// Where every gate leads.
pub const HANDLER: u64 = 0x600;
pub(crate) const GDT: u64 = 0x1000;
pub(crate) const IDT32: u64 = 0x2000;
pub(crate) const IDT64: u64 = 0x3000;
const IDT16: u64 = 0x4000;
pub(crate) const TSS: u64 = 0x5000;
const OTHER_TSS: u64 = 0x5200;
pub(crate) const PML4: u64 = 0x6000;
/// All tables of translations.
pub(crate) const TABLES: Range<u64> = PML4..0xd000;
pub(crate) const PT: u64 = 0x9000;
const PD32: u64 = 0xa000;
pub(crate) const PDPT_PAE: u64 = 0xc000;

/// The modes of SDM Vol 3 2.2, by privilege and paging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real-address mode, segments of 64 KByte.
    Real,
    /// Real-address mode with limits of 4 GByte.
    BigReal,
    /// Virtual-8086 mode.
    Virtual8086,
    /// 16-bit code, flat, no paging.
    Protected16,
    /// 32-bit code, no paging.
    Protected32,
    /// 32-bit code, 32-bit paging.
    Paging32,
    /// 32-bit code, PAE paging.
    Pae,
    /// 32-bit code in IA-32e mode.
    Compatibility,
    /// 64-bit mode.
    Long,
}

/// All of them.
pub const MODES: [Mode; 9] = [
    Mode::Real,
    Mode::BigReal,
    Mode::Virtual8086,
    Mode::Protected16,
    Mode::Protected32,
    Mode::Paging32,
    Mode::Pae,
    Mode::Compatibility,
    Mode::Long,
];

impl Mode {
    fn protected(self) -> bool {
        !matches!(self, Self::Real | Self::BigReal)
    }

    fn ia32e(self) -> bool {
        matches!(self, Self::Compatibility | Self::Long)
    }

    /// Paging is on.
    #[must_use]
    pub fn paged(self) -> bool {
        matches!(self, Self::Paging32 | Self::Pae) || self.ia32e()
    }
}

/// RAM with all tables.
#[must_use]
pub fn image() -> Vec<u8> {
    let mut image = Image(vec![0; RAM_BYTES as usize]);
    image.descriptors();
    image.gates();
    image.tables();
    // HLT; JMP back to it.
    image.put(HANDLER, &[0xf4, 0xeb, 0xfd]);
    for tss in [TSS, OTHER_TSS] {
        // ESP0 and SS0 of a 32-bit TSS, which are RSP0 of a 64-bit one if SS0 is not looked at; I/O map base.
        image.put(tss + 4, &0xf800u32.to_le_bytes());
        image.put(tss + 102, &0x68u16.to_le_bytes());
    }
    image.put(TSS + 8, &0x10u32.to_le_bytes());
    let revision = softcpu::vmx::vmcs::region::REVISION.to_le_bytes();
    image.put(VMX_REGION, &revision);
    image.put(VMX_REGION + 0x1000, &revision);
    image.0
}

struct Image(Vec<u8>);

impl Image {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        let at = at as usize;
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn quad(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    fn descriptors(&mut self) {
        let descriptors = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_9b00_0000_ffff,
            0x0000_9b00_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0x0000_fb00_0000_ffff,
            // 48h: the TSS, busy, of 16 bytes in IA-32e mode.
            0x0000_8b00_5000_0fff & !0xf000,
            0,
            // 58h: data of 16 bits; 60h: the GDT once more, as LDT.
            0x0000_9300_0000_ffff,
            0x0000_8200_1000_00ff,
            // 68h: a call gate to 18h, DPL 3; 70h: a task gate to 78h; 78h: another TSS.
            0x0000_ec00_0018_0600,
            0x0000_e500_0078_0000,
            0x0000_8900_5200_0067,
            // 80h: a call gate of 64 bits to 08h; 90h: conforming code; 98h: expand-down data.
            0x0000_ec00_0008_0600,
            0,
            0x00cf_9f00_0000_ffff,
            0x00cf_9700_0000_0fff,
        ];
        for (at, value) in (GDT..).step_by(8).zip(descriptors) {
            self.quad(at, value);
        }
    }

    fn gates(&mut self) {
        for vector in 0..256 {
            self.put(4 * vector, &(HANDLER as u32).to_le_bytes());
            let gate = |selector: u64, kind: u64| HANDLER | selector << 16 | kind << 40;
            // Every eighth can be called from CPL 3, every sixteenth is a trap gate.
            let dpl = if vector % 8 == 3 { 0x60 } else { 0 };
            let trap = u64::from(vector % 16 == 4);
            self.quad(IDT32 + 8 * vector, gate(0x18, 0x8e | dpl | trap));
            self.quad(IDT64 + 16 * vector, gate(0x08, 0x8e | dpl | trap));
            self.quad(IDT16 + 8 * vector, gate(0x20, 0x86 | dpl | trap));
        }
        // One task gate.
        self.quad(IDT32 + 8 * 5, 0x0000_e500_0078_0000);
    }

    fn tables(&mut self) {
        const ALL: u64 = 7;
        self.quad(PML4, 0x7000 | ALL);
        // The upper half leads to the same.
        self.quad(PML4 + 8 * 256, 0x7000 | ALL);
        self.quad(0x7000, 0x8000 | ALL);
        self.quad(0x8000, 0x9000 | ALL);
        self.quad(0x8008, ALL | 0x80);
        self.quad(PD32, 0xb000 | ALL);
        self.quad(PD32 + 4, ALL | 0x80);
        for page in 0..RAM_BYTES >> 12 {
            self.quad(PT + 8 * page, page << 12 | ALL);
            let entry = (page << 12 | ALL) as u32;
            self.put(0xb000 + 4 * page, &entry.to_le_bytes());
        }
        // The last page is the kernel's, the one before read-only.
        self.quad(PT + 8 * 31, 31 << 12 | 3);
        self.quad(PT + 8 * 30, 30 << 12 | 5);
        self.quad(PDPT_PAE, 0x8000 | 1);
    }
}

fn segment(selector: u16, base: u64, limit: u32, access: u32) -> SegmentRegister {
    SegmentRegister {
        selector: Selector(selector),
        base,
        limit,
        access: Access(access),
    }
}

/// A state that starts at [`CODE`] in `mode`, with or without privilege where there is a choice.
#[must_use]
pub fn start(reset: &VcpuState, mode: Mode, user: bool, input: &mut Input<'_>) -> VcpuState {
    let mut s = reset.clone();
    let user = (user && mode.protected()) || mode == Mode::Virtual8086;
    for register in &mut s.gpr {
        *register = address_or_number(input);
    }
    s.rflags = 2 | (input.any::<u64>() & 0x24_0fd5);
    // TF in one case of eight only, so that the others get further.
    if !input.once_in(8) {
        s.rflags &= !(1 << 8);
    }
    s.gpr[4] = if user { 0xe800 } else { 0xd800 };
    s.rip = CODE;
    segments(&mut s, mode, user);
    s.gdtr = DescriptorTable {
        base: GDT,
        limit: 0x9f,
    };
    let (base, limit) = match mode {
        Mode::Real | Mode::BigReal => (0, 0x3ff),
        Mode::Protected16 => (IDT16, 0x7ff),
        Mode::Compatibility | Mode::Long => (IDT64, 0xfff),
        Mode::Virtual8086 | Mode::Protected32 | Mode::Paging32 | Mode::Pae => (IDT32, 0x7ff),
    };
    s.idtr = DescriptorTable { base, limit };
    control(&mut s, mode, input);
    if input.once_in(16) {
        s.system.dr = std::array::from_fn(|_| address_or_number(input));
        s.system.dr7 = 0x400 | u64::from(input.any::<u32>() & 0xffff_23ff);
    }
    s
}

fn segments(s: &mut VcpuState, mode: Mode, user: bool) {
    let dpl: u16 = if user { 3 } else { 0 };
    let rights = if user { 0x60 } else { 0 };
    let data = segment(if user { 0x33 } else { 0x10 }, 0, u32::MAX, 0xc093 | rights);
    let code = |selector, user_selector, access, limit| {
        let selector = if user { user_selector } else { selector };
        segment(selector | dpl, 0, limit, access | rights)
    };
    let (code, data) = match mode {
        Mode::Real | Mode::Virtual8086 => {
            let rights = if user { 0xf3 } else { 0x93 };
            let all = |selector: u16| segment(selector, u64::from(selector) << 4, 0xffff, rights);
            s.rip = CODE - 0xf000;
            (all(0xf00), all(0))
        }
        Mode::BigReal => {
            s.rip = CODE - 0xf000;
            (
                segment(0xf00, 0xf000, u32::MAX, 0x93),
                segment(0, 0, u32::MAX, 0x93),
            )
        }
        Mode::Protected16 => (code(0x20, 0x40, 0x809b, u32::MAX), data),
        Mode::Long => (code(0x08, 0x28, 0xa09b, u32::MAX), data),
        Mode::Protected32 | Mode::Paging32 | Mode::Pae | Mode::Compatibility => {
            (code(0x18, 0x38, 0xc09b, u32::MAX), data)
        }
    };
    s.segments = [data, code, data, data, data, data];
    s.tr = segment(0x48, TSS, 0xfff, 0x8b);
    s.ldtr = segment(0x60, GDT, 0xff, 0x82);
}

fn control(s: &mut VcpuState, mode: Mode, input: &mut Input<'_>) {
    let system = &mut s.system;
    // ET and NE; MP, EM, TS, WP, AM as they come, EM and TS seldom.
    system.cr0 = 0x30 | (input.any::<u64>() & 0x5_0002);
    if input.once_in(8) {
        system.cr0 |= 0xc;
    }
    if mode.protected() {
        system.cr0 |= 1;
    }
    // VME, PVI, TSD, DE, PSE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT, UMIP, FSGSBASE, OSXSAVE, SMEP, SMAP.
    const SOME: u64 = 0x35_0fdf & !0x20;
    const ALWAYS: u64 = 0x4_0600;
    system.cr4 = (input.any::<u64>() & SOME & supported_cr4()) | ALWAYS;
    // Code, tables and stacks are user pages: with these a supervisor does nothing at all.
    if mode.paged() && !input.once_in(8) {
        system.cr4 &= !(1 << 20 | 1 << 21);
    }
    if input.once_in(32) {
        system.cr4 |= 1 << 13;
    }
    system.xcr0 = 7;
    system.cr3 = match mode {
        Mode::Paging32 => PD32,
        Mode::Pae => PDPT_PAE,
        _ => PML4,
    };
    if mode == Mode::Pae || mode.ia32e() {
        system.cr4 |= 1 << 5;
    }
    if mode.paged() {
        system.cr0 |= 1 << 31;
    }
    if mode.ia32e() {
        // NXE, LMA, LME, SCE.
        system.efer = 0xd01;
    }
    if mode == Mode::Virtual8086 {
        s.rflags |= 1 << 17;
    } else {
        s.rflags &= !(1 << 17);
    }
}

/// CR4 bits that the CPU model of the tests has, by their CPUID bits.
fn supported_cr4() -> u64 {
    let cpuid = super::guest_cpuid();
    let leaf7 = cpuid.get(7, 0).unwrap_or_default();
    let has = |bits: u32, bit: u32| u64::from(bits >> bit & 1);
    0xfffc
        | (3 * has(cpuid.get(1, 0).unwrap_or_default().edx, 1))
        | has(leaf7.ecx, 2) << 11
        | has(leaf7.ebx, 0) << 16
        | 1 << 18
        | has(leaf7.ebx, 7) << 20
        | has(leaf7.ebx, 20) << 21
}

fn address_or_number(input: &mut Input<'_>) -> u64 {
    match input.below(4) {
        0 => input.number(),
        1 => VMX_REGION + 8 * input.below(4) as u64,
        _ => DATA + u64::from(input.any::<u16>() & 0x1fff),
    }
}
