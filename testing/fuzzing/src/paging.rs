//! Random page tables in every paging mode, compared with a walk of our own after the manual's text.
//!
//! What must hold: the engine and [`manual`] agree on the physical address, or on the page fault and its error code,
//! and on every bit of the tables afterwards (accessed and dirty).

pub mod manual;

use std::sync::Arc;

use guestmem::{Gpa, GuestRam};
use hostexec::HostExec;
use softcpu::cpu::{Cpu, Model, Trap};
use softcpu::mem::Access;
use vcpu::{Attention, Platform, VcpuState};
use x86defs::cr::{cr0, cr4, efer};

use crate::{Input, Target};
use manual::{Control, Kind, Walk};

/// RAM from address zero on; the tables are anywhere in it.
const PAGES: u64 = 8;
const RAM_BYTES: u64 = PAGES << 12;
const MAXPHYADDR: u32 = 40;
/// Accesses of one case; what was cached of the tables by one must not change the next.
const ACCESSES: usize = 4;

struct Nothing;

impl Platform for Nothing {
    fn poll(&mut self, _: u64) -> u64 {
        1
    }
}

/// The target.
pub struct Paging {
    cpu: Cpu,
    ram: Arc<GuestRam>,
    start: VcpuState,
    translated: u64,
    faults: u64,
    reserved: u64,
}

impl Default for Paging {
    fn default() -> Self {
        Self::new()
    }
}

impl Paging {
    /// The target, with a processor.
    ///
    /// # Panics
    /// The host has no memory for it.
    #[must_use]
    pub fn new() -> Self {
        let ram = Arc::new(GuestRam::new(&[(Gpa(0), RAM_BYTES)]).expect("memory"));
        let model = Arc::new(Model {
            maxphyaddr: MAXPHYADDR,
            ..softcpu::model(&crate::cpu::vm_config())
        });
        let host = HostExec::new().expect("memory for code");
        let cpu = Cpu::new(
            model,
            Arc::clone(&ram),
            Box::new(Nothing),
            Attention::new(),
            0,
            host,
            Arc::default(),
        );
        Self {
            cpu,
            ram,
            start: vcpu::reset(true),
            translated: 0,
            faults: 0,
            reserved: 0,
        }
    }

    fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; RAM_BYTES as usize];
        self.ram.read(Gpa(0), &mut bytes).expect("it is RAM");
        bytes
    }

    /// Puts the processor into the state of the case; the manual's view of it.
    fn set(&mut self, control: Control) {
        let s = &mut self.start;
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        s.system.cr0 = cr0::PE | cr0::ET | cr0::PG | bit(control.wp, cr0::WP);
        s.system.cr3 = control.cr3;
        s.system.cr4 = bit(control.smep, cr4::SMEP)
            | bit(control.smap, cr4::SMAP)
            | bit(control.pse, cr4::PSE)
            | bit(control.kind != Kind::Bits32, cr4::PAE);
        s.system.efer =
            bit(control.nxe, efer::NXE) | bit(control.kind == Kind::Level4, efer::LME | efer::LMA);
        s.rflags = 2 | bit(control.ac, 1 << 18);
        let dpl = if control.cpl3 { 0x60 } else { 0 };
        let code = if control.kind == Kind::Level4 {
            0xa09b
        } else {
            0xc09b
        };
        for (n, segment) in s.segments.iter_mut().enumerate() {
            segment.base = 0;
            segment.limit = u32::MAX;
            segment.access.0 = dpl | if n == 1 { code } else { 0xc093 };
        }
        self.cpu.restore(s);
    }
}

/// Tables whose entries lead somewhere more often than chance would have it.
fn tables(input: &mut Input<'_>) -> Vec<u8> {
    let mut memory = vec![0; RAM_BYTES as usize];
    // What all entries of a case have in common, so that a walk gets to its end.
    let mut common: u64 = input.any::<u64>() & 0x1e7 | 1;
    // PS ends most walks: in a PML4E it is reserved.
    if !input.once_in(4) {
        common &= !0x80;
    }
    let palette: [u64; 16] = std::array::from_fn(|_| {
        let base = (input.below(PAGES as usize + 1) as u64) << 12;
        match input.below(8) {
            0 => input.any(),
            1 => base | (common ^ 1 << input.below(12)),
            2 => base | common | 1 << input.below(64),
            3 => base | (input.any::<u64>() & 0xfff),
            _ => base | common,
        }
    });
    let seed: u64 = input.any();
    let mut random = crate::Random::new(seed);
    for entry in memory.chunks_mut(8) {
        let bits = random.number();
        let low = palette[(bits & 15) as usize];
        let quad = match bits >> 4 & 3 {
            // Two entries of 32 bits.
            0 => low & 0xffff_ffff | palette[(bits >> 8 & 15) as usize] << 32,
            _ => low,
        };
        entry.copy_from_slice(&quad.to_le_bytes());
    }
    memory
}

fn control(input: &mut Input<'_>) -> Control {
    let bits: u16 = input.any();
    let kind = match bits & 3 {
        0 => Kind::Bits32,
        1 => Kind::Pae,
        _ => Kind::Level4,
    };
    let cr3 = (input.below(PAGES as usize) as u64) << 12;
    let low = match kind {
        Kind::Pae => u64::from(input.any::<u8>()) & 0x7f << 5 & 0xfe0,
        Kind::Bits32 | Kind::Level4 => 0,
    };
    Control {
        kind,
        cr3: cr3 | low,
        wp: bits & 4 != 0,
        smep: bits & 8 != 0,
        smap: bits & 0x10 != 0,
        pse: bits & 0x20 != 0,
        nxe: bits & 0x40 != 0,
        ac: bits & 0x80 != 0,
        cpl3: bits & 0x100 != 0,
        maxphyaddr: MAXPHYADDR,
    }
}

fn linear(kind: Kind, input: &mut Input<'_>) -> u64 {
    let va: u64 = input.any();
    match kind {
        Kind::Bits32 | Kind::Pae => va & 0xffff_ffff,
        Kind::Level4 => ((va as i64) << 16 >> 16) as u64,
    }
}

impl Target for Paging {
    fn run(&mut self, data: &[u8]) {
        let mut input = Input::new(data);
        let control = control(&mut input);
        let mut memory = tables(&mut input);
        self.ram.write(Gpa(0), &memory).expect("it is RAM");
        self.set(control);
        let mut pdpte = [0; 4];
        if control.kind == Kind::Pae {
            let Some(loaded) = manual::load_pdptes(&memory, control) else {
                // A MOV to CR3 that #GP(0)s; the state that was set keeps what it had.
                let refused = self.cpu.load_pdptes(control.cr3);
                assert_eq!(refused, Ok(false), "reserved bits of a PDPTE");
                return;
            };
            pdpte = loaded;
        }
        for _ in 0..ACCESSES {
            let va = linear(control.kind, &mut input);
            let (kind, access) = match input.below(3) {
                0 => (manual::Access::Read, Access::Read),
                1 => (manual::Access::Write, Access::Write),
                _ => (manual::Access::Fetch, Access::Fetch),
            };
            // Implicit supervisor accesses come from CPL 3 too.
            let user = control.cpl3 && !input.once_in(8);
            let expected = manual::walk(&mut memory, control, pdpte, va, kind, user);
            let found = self.cpu.translate_as(va, access, user);
            let found = match found {
                Ok(t) => Walk::Address(t.gpa.0),
                Err(Trap::Exception) => {
                    let fault = self.cpu.fault;
                    assert_eq!((fault.vector, fault.detail), (14, va), "{control:x?}");
                    Walk::PageFault(fault.error_code)
                }
                Err(other) => panic!("{other:?} of {va:#x}, {control:x?}"),
            };
            assert_eq!(found, expected, "{va:#x} {kind:?} user {user} {control:x?}");
            match expected {
                Walk::Address(_) => self.translated += 1,
                Walk::PageFault(code) => {
                    self.faults += 1;
                    self.reserved += u64::from(code & 8 != 0);
                }
            }
        }
        assert_eq!(
            self.memory(),
            memory,
            "accessed and dirty bits, {control:x?}"
        );
    }

    fn longest(&self) -> usize {
        320
    }

    fn figures(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("translated", self.translated),
            ("page faults", self.faults),
            ("reserved bits", self.reserved),
        ]
    }
}
