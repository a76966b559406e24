//! Segment registers and descriptors (SDM Vol 3 3.4, 5.5 to 5.8).

use vcpu::SegmentRegister;
use x86defs::exception::{GP, NP, SS, TS};
use x86defs::segment::{Access, Descriptor, Selector, system_type};

use crate::cpu::{Cpu, Flow, Trap, sreg};

/// Where the byte with the type lies in a descriptor; in it, the accessed bit of code and data and the busy bit of a
/// TSS.
pub(super) const TYPE_BYTE: u64 = 5;
const ACCESSED: u8 = 1;
pub(super) const BUSY: u8 = 2;

/// Access rights of a raw descriptor, as LAR shows them (bits 23:8 of its upper half).
pub fn read_descriptor_access(d: Descriptor) -> u32 {
    (d.0 >> 32) as u32 & 0x00ff_ff00
}

impl Cpu {
    /// Where `selector`'s descriptor lies, if it is inside its table.
    pub fn descriptor_address(&self, selector: Selector, bytes: u64) -> Option<u64> {
        let (base, limit) = if selector.is_ldt() {
            if self.ldtr.access.unusable() || !self.ldtr.access.present() {
                return None;
            }
            (self.ldtr.base, u64::from(self.ldtr.limit))
        } else {
            (self.gdtr.base, u64::from(self.gdtr.limit))
        };
        (selector.table_offset() + bytes - 1 <= limit)
            .then(|| base.wrapping_add(selector.table_offset()))
    }

    /// Reads `selector`'s descriptor; outside its table raises `vector` with the selector.
    pub fn read_descriptor(
        &mut self,
        selector: Selector,
        vector: u8,
    ) -> Result<(Descriptor, u64), Trap> {
        match self.descriptor_address(selector, 8) {
            Some(at) => Ok((Descriptor(self.read_system(at)?), at)),
            None => self.raise_code(vector, self.selector_error(selector)),
        }
    }

    /// A selector's error code, with EXT while an external event is delivered (SDM Vol 3 6.13).
    pub fn selector_error(&self, selector: Selector) -> u32 {
        selector.error_code() | self.external_bit()
    }

    /// 1 while an event that is not a software interrupt is being delivered.
    pub fn external_bit(&self) -> u32 {
        use crate::cpu::EventKind as K;
        u32::from(
            self.delivering
                .is_some_and(|e| !matches!(e.kind, K::SoftwareInterrupt | K::SoftwareException)),
        )
    }

    /// Sets the accessed bit of a code or data descriptor in its table, by a locked operation (SDM Vol 3 9.1.2.1).
    pub fn mark_accessed(&mut self, d: Descriptor, at: u64) -> Result<Descriptor, Trap> {
        if d.0 & Descriptor::ACCESSED == 0 {
            self.set_bits_system(at.wrapping_add(TYPE_BYTE), ACCESSED)?;
        }
        Ok(Descriptor(d.0 | Descriptor::ACCESSED))
    }

    /// MOV/POP/LxS to ES, SS, DS, FS or GS (SDM Vol 2, MOV; Vol 3 5.4).
    pub fn load_segment(&mut self, seg: usize, selector: Selector) -> Flow {
        if !self.protected() || self.v8086() {
            self.load_real(seg, selector);
            return Ok(());
        }
        if selector.is_null() {
            // In 64-bit mode SS may be null below CPL 3 if RPL matches (SDM Vol 3 5.4.1.1).
            if seg == sreg::SS && !(self.long64 && self.cpl < 3 && selector.rpl() == self.cpl) {
                return self.raise_code(GP, 0);
            }
            self.seg[seg] = if seg == sreg::SS {
                null_stack(selector, self.cpl)
            } else {
                null_segment(selector)
            };
            self.mode_changed();
            return Ok(());
        }
        let (d, at) = self.read_descriptor(selector, GP)?;
        let a = d.access();
        let error = self.selector_error(selector);
        if seg == sreg::SS {
            if selector.rpl() != self.cpl || !a.writable() || a.dpl() != self.cpl {
                return self.raise_code(GP, error);
            }
            if !a.present() {
                return self.raise_code(SS, error);
            }
        } else {
            let privileged = a.is_conforming() || a.dpl() >= self.cpl.max(selector.rpl());
            if !a.is_code_or_data() || !a.readable() || !privileged {
                return self.raise_code(GP, error);
            }
            if !a.present() {
                return self.raise_code(NP, error);
            }
        }
        let d = self.mark_accessed(d, at)?;
        self.seg[seg] = segment_of(selector, d);
        self.mode_changed();
        Ok(())
    }

    /// Loads a segment register in real-address or virtual-8086 mode (SDM Vol 3 21.1.1, 21.2.1). In real-address
    /// mode limit and rights stay what protected mode has left in them.
    fn load_real(&mut self, seg: usize, selector: Selector) {
        if self.v8086() {
            self.seg[seg] = v8086_segment(selector);
        } else {
            self.seg[seg].selector = selector;
            self.seg[seg].base = u64::from(selector.0) << 4;
        }
        self.mode_changed();
    }

    /// The same for CS, with far transfers.
    pub fn load_code_real(&mut self, selector: Selector) {
        self.load_real(sreg::CS, selector);
    }

    /// LLDT (SDM Vol 2).
    pub fn load_ldtr(&mut self, selector: Selector) -> Flow {
        if selector.is_null() {
            self.ldtr = null_segment(selector);
            return Ok(());
        }
        let (d, base_high) = self.system_descriptor(selector)?;
        let a = d.access();
        let error = selector.error_code();
        if a.is_code_or_data() || a.segment_type() != system_type::LDT {
            return self.raise_code(GP, error);
        }
        if !a.present() {
            return self.raise_code(NP, error);
        }
        self.ldtr = segment_of(selector, d);
        self.ldtr.base |= base_high;
        Ok(())
    }

    /// LTR (SDM Vol 2).
    pub fn load_tr(&mut self, selector: Selector) -> Flow {
        if selector.is_null() {
            return self.raise_code(GP, 0);
        }
        let (d, base_high) = self.system_descriptor(selector)?;
        let a = d.access();
        let error = selector.error_code();
        let available = a.segment_type() == system_type::TSS_AVAILABLE
            || (!self.long_mode() && a.segment_type() == system_type::TSS16_AVAILABLE);
        if a.is_code_or_data() || !available {
            return self.raise_code(GP, error);
        }
        if !a.present() {
            return self.raise_code(NP, error);
        }
        let at = self.gdtr.base.wrapping_add(selector.table_offset());
        if !self.claim_tss(at)? {
            return self.raise_code(GP, error);
        }
        self.tr = segment_of(selector, Descriptor(d.0 | Descriptor::TSS_BUSY));
        self.tr.base |= base_high;
        Ok(())
    }

    /// Tests and sets the busy bit of the TSS descriptor at `at` as one, so that no two processors get the same task
    /// (SDM Vol 3 9.1.2.1); false if another was first.
    pub(super) fn claim_tss(&mut self, at: u64) -> Result<bool, Trap> {
        let before = self.set_bits_system(at.wrapping_add(TYPE_BYTE), BUSY)?;
        Ok(before & BUSY == 0)
    }

    /// A system descriptor of the GDT: 16 bytes in IA-32e mode (SDM Vol 3 3.5.2). Also gives base bits 63:32.
    fn system_descriptor(&mut self, selector: Selector) -> Result<(Descriptor, u64), Trap> {
        let error = selector.error_code();
        if selector.is_ldt() {
            return self.raise_code(GP, error);
        }
        let bytes = if self.long_mode() { 16 } else { 8 };
        let Some(at) = self.descriptor_address(selector, bytes) else {
            return self.raise_code(GP, error);
        };
        let d = Descriptor(self.read_system(at)?);
        let mut high = 0;
        if bytes == 16 {
            let upper: u64 = self.read_system(at.wrapping_add(8))?;
            high = upper << 32;
            let base = d.base() | high;
            if upper >> 40 & 0x1f != 0 || !crate::cpu::canonical(base) {
                return self.raise_code(GP, error);
            }
        }
        Ok((d, high))
    }

    /// The stack for privilege level `level` from a 64-bit TSS: RSPn, or IST entry 1 to 7 (SDM Vol 3 8.7).
    pub fn tss64_stack(&mut self, level: u8, ist: u8) -> Result<u64, Trap> {
        let offset = if ist != 0 {
            0x24 + 8 * (u64::from(ist) - 1)
        } else {
            4 + 8 * u64::from(level)
        };
        if offset + 7 > u64::from(self.tr.limit) {
            return self.raise_code(TS, self.selector_error(self.tr.selector));
        }
        self.read_system(self.tr.base.wrapping_add(offset))
    }

    /// SS and ESP for privilege level `level` from a 32- or 16-bit TSS (SDM Vol 3 8.2.1).
    pub fn tss32_stack(&mut self, level: u8) -> Result<(Selector, u64), Trap> {
        let wide = self.tr.access.segment_type() & 8 != 0;
        let level = u64::from(level);
        let (offset, size) = if wide {
            (4 + 8 * level, 6)
        } else {
            (2 + 4 * level, 4)
        };
        if offset + size - 1 > u64::from(self.tr.limit) {
            return self.raise_code(TS, self.selector_error(self.tr.selector));
        }
        let at = self.tr.base.wrapping_add(offset);
        if wide {
            let esp: u32 = self.read_system(at)?;
            let ss: u16 = self.read_system(at + 4)?;
            Ok((Selector(ss), u64::from(esp)))
        } else {
            let sp: u16 = self.read_system(at)?;
            let ss: u16 = self.read_system(at + 2)?;
            Ok((Selector(ss), u64::from(sp)))
        }
    }

    /// Checks a stack segment for a switch to `level`; violations raise `vector` (#TS) with the selector.
    pub fn stack_segment(
        &mut self,
        selector: Selector,
        level: u8,
        vector: u8,
    ) -> Result<SegmentRegister, Trap> {
        if selector.is_null() {
            return self.raise_code(vector, self.external_bit());
        }
        let (d, at) = self.read_descriptor(selector, vector)?;
        let a = d.access();
        let error = self.selector_error(selector);
        if selector.rpl() != level || a.dpl() != level || !a.writable() {
            return self.raise_code(vector, error);
        }
        if !a.present() {
            return self.raise_code(SS, error);
        }
        let d = self.mark_accessed(d, at)?;
        Ok(segment_of(selector, d))
    }
}

/// A segment register with a null selector.
pub(super) fn null_segment(selector: Selector) -> SegmentRegister {
    SegmentRegister {
        selector,
        base: 0,
        limit: 0,
        access: Access::UNUSABLE,
    }
}

/// SS with a null selector, whose DPL is the privilege level.
pub(crate) fn null_stack(selector: Selector, cpl: u8) -> SegmentRegister {
    SegmentRegister {
        access: Access(Access::UNUSABLE.0 | u32::from(cpl) << 5),
        ..null_segment(selector)
    }
}

/// A segment register in virtual-8086 mode (SDM Vol 3 21.2.1).
pub(crate) fn v8086_segment(selector: Selector) -> SegmentRegister {
    SegmentRegister {
        selector,
        base: u64::from(selector.0) << 4,
        limit: 0xffff,
        access: Access(0xf3),
    }
}

/// The register image of a descriptor.
pub(crate) fn segment_of(selector: Selector, d: Descriptor) -> SegmentRegister {
    SegmentRegister {
        selector,
        base: d.base(),
        limit: d.limit(),
        access: d.access(),
    }
}
