//! The segments cases run in.
//!
//! Linux's GDT has flat segments for programs; the others are in the LDT, which a program may fill
//! (modify_ldt). Each worker has [`LDT_ENTRIES`] entries of its own, since their bases are in its slot. All
//! but the flat one reach only the slot, so that whatever offset an instruction comes to is harmless.

use crate::case::{CODE_BYTES, Layout};
use crate::random::Random;

/// Linux's selector of 64-bit code.
pub const CODE64: u16 = 0x33;
/// Linux's selector of flat 32-bit code.
pub const CODE32: u16 = 0x23;
/// Linux's selector of flat data.
pub const DATA: u16 = 0x2b;

/// Numbers of segment registers, in the order of their encoding.
pub const ES: usize = 0;
/// CS.
pub const CS: usize = 1;
/// SS.
pub const SS: usize = 2;
/// DS.
pub const DS: usize = 3;
/// FS.
pub const FS: usize = 4;
/// GS.
pub const GS: usize = 5;

/// Entries of the LDT a worker has.
pub const LDT_ENTRIES: usize = 32;

/// What a segment is for (SDM Vol 3 3.4.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No segment: a null selector.
    Null,
    /// Data, by its type bits.
    Data {
        /// May be written.
        writable: bool,
        /// Valid above its limit.
        expand_down: bool,
    },
    /// Code.
    Code {
        /// May be read.
        readable: bool,
    },
}

/// A segment: what its descriptor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// How it is reached.
    pub selector: u16,
    /// First linear address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
    /// Kind and rights.
    pub kind: Kind,
    /// D/B: 32-bit code or stack.
    pub big: bool,
    /// P.
    pub present: bool,
}

impl Segment {
    /// A null selector.
    pub const NULL: Self = Self {
        selector: 0,
        base: 0,
        limit: 0,
        kind: Kind::Null,
        big: false,
        present: false,
    };

    const fn flat(selector: u16, kind: Kind) -> Self {
        Self {
            selector,
            base: 0,
            limit: u32::MAX,
            kind,
            big: true,
            present: true,
        }
    }

    /// The segment of `selector` in real mode (SDM Vol 3 21.1.1).
    #[must_use]
    pub const fn real(selector: u16) -> Self {
        Self {
            selector,
            base: (selector as u64) << 4,
            limit: 0xffff,
            kind: data(true, false),
            big: false,
            present: true,
        }
    }

    /// The same segment with DPL and RPL 0.
    #[must_use]
    pub const fn of_kernel(mut self) -> Self {
        self.selector &= !3;
        self
    }

    /// The segment `selector` refers to, if code at CPL 3 can use it.
    #[must_use]
    pub fn of(layout: Layout, selector: u16) -> Option<Self> {
        match selector | 3 {
            CODE32 => Some(Self::flat(CODE32, CODE)),
            CODE64 => Some(Self::flat(CODE64, CODE)),
            DATA => Some(Self::flat(DATA, data(true, false))),
            _ => ldt(layout)
                .into_iter()
                .find(|segment| segment.kind != Kind::Null && segment.selector == selector | 3),
        }
    }

    /// The linear address of `size_bytes` bytes at `offset`; nothing when the limit forbids them
    /// (SDM Vol 3 5.3).
    #[must_use]
    pub fn linear(&self, offset: u64, size_bytes: u64) -> Option<u64> {
        let last = offset + size_bytes.max(1) - 1;
        let inside = match self.kind {
            Kind::Null => false,
            Kind::Data {
                expand_down: true, ..
            } => {
                let top = if self.big { 0xffff_ffff } else { 0xffff };
                offset > u64::from(self.limit) && last <= top
            }
            _ => last <= u64::from(self.limit),
        };
        (inside && self.present).then_some((self.base + offset) & 0xffff_ffff)
    }

    /// Whether a read (or write) of any of its bytes is allowed.
    #[must_use]
    pub fn allows(&self, write: bool) -> bool {
        match self.kind {
            Kind::Null => false,
            Kind::Data { writable, .. } => writable || !write,
            Kind::Code { readable } => readable && !write,
        }
    }

    /// Whether it is valid above its limit.
    #[must_use]
    pub const fn is_expand_down(&self) -> bool {
        matches!(
            self.kind,
            Kind::Data {
                expand_down: true,
                ..
            }
        )
    }

    /// Whether its descriptor counts in pages.
    const fn granular(&self) -> bool {
        self.limit > 0xf_ffff
    }

    /// Limit field of its descriptor.
    #[must_use]
    pub const fn limit_field(&self) -> u32 {
        if self.granular() {
            self.limit >> 12
        } else {
            self.limit
        }
    }

    /// Access byte of its descriptor: DPL 3, accessed (Linux marks all so).
    #[must_use]
    pub const fn access_byte(&self) -> u8 {
        let kind = match self.kind {
            Kind::Null => return 0,
            Kind::Data {
                writable,
                expand_down,
            } => 1 | (writable as u8) << 1 | (expand_down as u8) << 2,
            Kind::Code { readable } => 9 | (readable as u8) << 1,
        };
        0x70 | kind | (self.present as u8) << 7
    }

    /// The descriptor (SDM Vol 3 Figure 3-8).
    #[must_use]
    pub const fn descriptor(&self) -> u64 {
        let limit = self.limit_field() as u64;
        limit & 0xffff
            | (self.base & 0xff_ffff) << 16
            | (self.access_byte() as u64) << 40
            | (limit >> 16) << 48
            | (self.big as u64) << 54
            | (self.granular() as u64) << 55
            | (self.base >> 24) << 56
    }
}

const fn data(writable: bool, expand_down: bool) -> Kind {
    Kind::Data {
        writable,
        expand_down,
    }
}

const CODE: Kind = Kind::Code { readable: true };

/// First of `layout`'s entries in the LDT.
#[must_use]
pub const fn first_entry(layout: Layout) -> usize {
    layout.index() as usize * LDT_ENTRIES
}

const CODES16: [usize; 2] = [0, 2];
const CODES32: [usize; 3] = [1, 3, 4];
const STACKS: [usize; 6] = [6, 7, 8, 10, 11, 7];
const DATAS: [usize; 12] = [6, 6, 6, 7, 7, 8, 9, 10, 11, 12, 5, 1];

/// The worker's segments in the LDT, in sequence; those not in use are null.
#[must_use]
pub fn ldt(layout: Layout) -> [Segment; LDT_ENTRIES] {
    let (window, code) = (layout.window(), layout.code());
    let around_code = code - 0x8000;
    let around_window = window - 0x4000;
    let short = CODE_BYTES as u32 / 2 + 0x37;
    let rows: [(u64, u32, Kind, bool, bool); 16] = [
        (around_code, 0xffff, CODE, false, true),
        (around_code, 0xffff, CODE, true, true),
        // Its limit is in the middle of the code area.
        (code, short, CODE, false, true),
        (code, short, CODE, true, true),
        (
            around_code,
            0xffff,
            Kind::Code { readable: false },
            true,
            true,
        ),
        // Code that reaches the window, to be read through another segment register.
        (around_window, 0xffff, CODE, false, true),
        (around_window, 0xffff, data(true, false), false, true),
        (around_window, 0xffff, data(true, false), true, true),
        (window, 0x1fff, data(true, false), true, true),
        (around_window, 0xffff, data(false, false), true, true),
        (around_window, 0x4fff, data(true, true), false, true),
        // Offsets FFFFE000h to FFFFFFFFh are the second and third page of the window.
        (window + 0x3000, 0xffff_dfff, data(true, true), true, true),
        (window, 0x1010, data(false, true), false, true),
        (around_window, 0xffff, data(true, false), true, false),
        (around_code, 0xffff, CODE, true, false),
        (around_code, 0xffff, CODE, false, false),
    ];
    let mut table = [Segment::NULL; LDT_ENTRIES];
    for (i, (base, limit, kind, big, present)) in rows.into_iter().enumerate() {
        table[i] = Segment {
            selector: ((first_entry(layout) + i) << 3) as u16 | 7,
            base,
            limit,
            kind,
            big,
            present,
        };
    }
    table
}

/// How a case runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// At CPL 3 on a 64-bit system.
    User,
    /// At CPL 0 in protected mode.
    Kernel,
    /// In real mode.
    Real,
}

/// The six segments a case starts with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// 64, 32 or 16: the mode of the code segment.
    pub bits: u32,
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [Segment; 6],
}

impl Setting {
    /// 64-bit mode; FS and GS have bases below the window.
    #[must_use]
    pub fn long(layout: Layout) -> Self {
        let based = |below: u64| Segment {
            base: layout.window() - below,
            ..Segment::NULL
        };
        Self {
            bits: 64,
            segments: [
                Segment::NULL,
                Segment::flat(CODE64, CODE),
                Segment::flat(DATA, data(true, false)),
                Segment::NULL,
                based(0x1230),
                based(0xff0),
            ],
        }
    }

    /// A random one of `bits`.
    pub fn draw(layout: Layout, bits: u32, random: &mut Random) -> Self {
        if bits == 64 {
            return Self::long(layout);
        }
        let ldt = ldt(layout);
        let flat = Segment::flat(DATA, data(true, false));
        let mut setting = Self {
            bits,
            segments: [flat; 6],
        };
        let is_flat = bits == 32 && random.chance(500);
        setting.segments[CS] = match bits {
            32 if is_flat => Segment::flat(CODE32, CODE),
            32 => ldt[random.pick(&CODES32)],
            _ => ldt[random.pick(&CODES16)],
        };
        for register in [FS, GS, ES, DS] {
            let rarely_flat = random.chance(if is_flat { 900 } else { 60 });
            if register == FS || register == GS || !rarely_flat {
                setting.segments[register] = ldt[random.pick(&DATAS)];
            }
            if random.chance(10) {
                setting.segments[register] = Segment::NULL;
            }
        }
        if !is_flat || random.chance(200) {
            setting.segments[SS] = ldt[random.pick(&STACKS)];
        }
        setting
    }

    /// A random one at CPL 0 in protected mode.
    pub fn draw_kernel(layout: Layout, bits: u32, random: &mut Random) -> Self {
        let ldt = ldt(layout).map(Segment::of_kernel);
        let codes: &[usize] = if bits == 32 { &CODES32 } else { &CODES16 };
        let mut setting = Self {
            bits,
            segments: [Segment::NULL; 6],
        };
        for register in [ES, DS, FS, GS] {
            setting.segments[register] = match random.below(20) {
                0 => Segment::NULL,
                _ => ldt[random.pick(&DATAS)],
            };
        }
        setting.segments[CS] = ldt[random.pick(codes)];
        setting.segments[SS] = ldt[random.pick(&STACKS)];
        setting
    }

    /// A random one of real mode.
    pub fn draw_real(layout: Layout, random: &mut Random) -> Self {
        let mut near =
            |address: u64| Segment::real((address >> 4) as u16 - random.below(256) as u16);
        let mut segments = [(); 6].map(|()| near(layout.window() - 0x3000));
        segments[CS] = near(layout.code() - 0x7000);
        Self { bits: 16, segments }
    }

    /// The code segment.
    #[must_use]
    pub fn code(&self) -> &Segment {
        &self.segments[CS]
    }

    /// Width of the stack pointer.
    #[must_use]
    pub fn stack_bits(&self) -> u32 {
        match self.bits {
            64 => 64,
            _ if self.segments[SS].big => 32,
            _ => 16,
        }
    }

    /// What the width of addresses leaves of an offset.
    #[must_use]
    pub fn rip_mask(&self) -> u64 {
        if self.bits == 64 {
            u64::MAX
        } else {
            0xffff_ffff
        }
    }
}

/// A selector for an instruction that loads one: usable ones mostly, and each kind of refusal.
pub fn draw_selector(layout: Layout, random: &mut Random) -> u16 {
    let first = first_entry(layout);
    let entry = |index: usize, rpl: u64| ((first + index) << 3) as u16 | 4 | rpl as u16;
    let rpl = if random.chance(800) {
        3
    } else {
        random.below(4)
    };
    match random.below(20) {
        0..=1 => random.below(4) as u16,
        2..=3 => DATA & !3 | rpl as u16,
        4 => CODE32 & !3 | rpl as u16,
        5 => CODE64 & !3 | rpl as u16,
        // The kernel's code and data, the task's descriptor, an empty one.
        6 => random.pick(&[0x08u16, 0x10, 0x18, 0x40, 0x48, 0x60]) | rpl as u16,
        // Beyond the limit of the GDT.
        7 => (0x80 + 8 * random.below(0x1fef) as u16) & !7 | rpl as u16,
        _ => entry(random.below(20) as usize, rpl),
    }
}
