//! FXSAVE, FXRSTOR, the XSAVE family, LDMXCSR and STMXCSR (SDM Vol 1 chapters 10.5 and 13).
//!
//! There are four state components: x87, SSE, AVX, PKRU. No supervisor component is there, so IA32_XSS is always 0;
//! XSAVES and XRSTORS differ from XSAVEC and XRSTOR by privilege, format and intercept.

use hostexec::{ExtState, MXCSR_MASK, MXCSR_RESET};
use iced_x86::Mnemonic;
use vcpu::cpuid::feature::xstate;
use x86defs::cr::{cr0, cr4};
use x86defs::exception::{NM, UD};

use super::form::Form;
use super::operand::{Mem, Place, Source};
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, gpr};
use crate::vmx::Intercept;

/// Bytes of the legacy region.
const LEGACY: usize = 512;
/// XCOMP_BV, bit 63: the area is in compacted format.
const COMPACTED: u64 = 1 << 63;

/// Which part of the FXSAVE image of x87 is kept in `ext.fx`: all but MXCSR, XMM registers and the spare bytes.
fn x87_image(ext: &ExtState, wide: bool) -> [u8; 160] {
    let mut image = [0u8; 160];
    image.copy_from_slice(&ext.fx[..160]);
    image[24..32].fill(0);
    if !wide {
        // 32-bit format: selectors (which current processors store as zero) after 32-bit offsets.
        image[12..16].fill(0);
        image[20..24].fill(0);
    }
    image
}

/// Opcode, instruction and operand pointer in the image.
const POINTERS: std::ops::Range<usize> = 6..24;

/// FSW.ES of an image: an unmasked exception is pending.
fn error_summary(image: &[u8]) -> bool {
    image[2] & 0x80 != 0
}

/// Loads the x87 part of an image, the pointers if they are `wanted`.
fn load_x87(ext: &mut ExtState, image: &[u8], wide: bool, wanted: bool) {
    ext.fx[..POINTERS.start].copy_from_slice(&image[..POINTERS.start]);
    if wanted {
        ext.fx[POINTERS].copy_from_slice(&image[POINTERS]);
    }
    // Reserved: the byte behind the tags and the upper bits of the opcode; in the 32-bit format also what
    // follows the offsets (selectors, which are not kept).
    ext.fx[5] = 0;
    ext.fx[7] &= 7;
    if !wide && wanted {
        ext.fx[12..16].fill(0);
        ext.fx[20..24].fill(0);
    }
    ext.fx[32..160].copy_from_slice(&image[32..160]);
    // The low registers' upper six bytes are reserved.
    for i in 0..8 {
        ext.fx[32 + 16 * i + 10..32 + 16 * i + 16].fill(0);
    }
    let fcw = ext.fcw();
    ext.set_fcw(fcw & 0x1f3f | 0x40);
    // The summary and busy bits follow the flags and masks, whatever the image says.
    const SUMMARY: u16 = 0x8080;
    let pending = ext.fsw() & !ext.fcw() & 0x3f != 0;
    let fsw = ext.fsw() & !SUMMARY;
    ext.set_fsw(if pending { fsw | SUMMARY } else { fsw });
}

impl Cpu {
    /// XINUSE: which components are not in their initial configuration (SDM Vol 1 13.6).
    pub fn xinuse(&self) -> u64 {
        let fx = &self.ext.fx;
        let x87 = self.ext.fcw() != 0x37f
            || fx[2..24].iter().any(|&b| b != 0)
            || fx[32..160].iter().any(|&b| b != 0);
        // Outside 64-bit mode only eight registers count.
        let ymm = &self.ext.ymm[..self.xmm_count()];
        let sse = self.ext.mxcsr != MXCSR_RESET || ymm.iter().any(|y| y[0] | y[1] != 0);
        let avx = ymm.iter().any(|y| y[2] | y[3] != 0);
        let pkru = self.pkru != 0;
        u64::from(x87) | u64::from(sse) << 1 | u64::from(avx) << 2 | u64::from(pkru) << 9
    }

    /// Whether the x87 pointers of `image` are moved between memory and registers (APM Vol 2 11.4.4: on some AMD
    /// processors only with an unmasked exception pending).
    fn moves_pointers(&self, image: &[u8]) -> bool {
        !self.model.x87_pointers_on_error || error_summary(image)
    }

    fn fx_allowed(&mut self) -> Flow {
        if self.cr0 & (cr0::EM | cr0::TS) != 0 {
            self.raise(NM)
        } else {
            Ok(())
        }
    }

    fn xsave_allowed(&mut self) -> Flow {
        if self.cr4 & cr4::OSXSAVE == 0 {
            return self.raise(UD);
        }
        if self.cr0 & cr0::TS != 0 {
            self.raise(NM)
        } else {
            Ok(())
        }
    }

    /// XMM registers the running mode has.
    fn xmm_count(&self) -> usize {
        if self.long64 { 16 } else { 8 }
    }

    fn store_xmm(&self, image: &mut [u8]) {
        for i in 0..self.xmm_count() {
            let at = 160 + 16 * i;
            image[at..at + 8].copy_from_slice(&self.ext.ymm[i][0].to_le_bytes());
            image[at + 8..at + 16].copy_from_slice(&self.ext.ymm[i][1].to_le_bytes());
        }
    }

    fn load_xmm(&mut self, image: &[u8]) {
        for i in 0..self.xmm_count() {
            let at = 160 + 16 * i;
            self.ext.ymm[i][0] = word(image, at);
            self.ext.ymm[i][1] = word(image, at + 8);
        }
    }
}

fn word(image: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|k| image[at + k]))
}

fn dword(image: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|k| image[at + k]))
}

/// FXSAVE (`extra` 0), FXSAVE64 (1).
fn fxsave(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.fx_allowed()?;
    let va = cpu.linear(op, LEGACY as u64, true)?;
    if va & 15 != 0 {
        return cpu.gp0();
    }
    // The last 96 bytes are not written.
    let mut image = [0u8; 416];
    image[..160].copy_from_slice(&x87_image(&cpu.ext, op.extra == 1));
    image[24..28].copy_from_slice(&cpu.ext.mxcsr.to_le_bytes());
    image[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    cpu.store_xmm(&mut image);
    let bytes = if cpu.long64 { 416 } else { 288 };
    if cpu.moves_pointers(&image) {
        return cpu.write_bytes(va, &image[..bytes]);
    }
    cpu.probe_write(va, bytes as u64)?;
    cpu.write_bytes(va, &image[..POINTERS.start])?;
    let behind = va.wrapping_add(POINTERS.end as u64);
    cpu.write_bytes(behind, &image[POINTERS.end..bytes])
}

fn fxrstor(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.fx_allowed()?;
    let va = cpu.linear(op, LEGACY as u64, false)?;
    if va & 15 != 0 {
        return cpu.gp0();
    }
    let mut image = [0u8; LEGACY];
    cpu.read_bytes(va, &mut image)?;
    let mxcsr = dword(&image, 24);
    if mxcsr & !MXCSR_MASK != 0 {
        return cpu.gp0();
    }
    cpu.ext.mxcsr = mxcsr;
    let wanted = cpu.moves_pointers(&image);
    load_x87(&mut cpu.ext, &image, op.extra == 1, wanted);
    cpu.follow_x87_state();
    cpu.load_xmm(&image);
    Ok(())
}

/// What an instruction of the XSAVE family is, as its binder puts it into `extra`.
mod form {
    /// The 64-bit form.
    pub const WIDE: u16 = 1;
    /// XSAVEC, XSAVES, XRSTORS: the compacted format.
    pub const COMPACT: u16 = 2;
    /// XSAVES, XRSTORS: supervisor components too.
    pub const SUPERVISOR: u16 = 4;
}

/// Where the components above SSE lie in an area.
#[derive(Clone, Copy)]
struct Layout {
    avx: u64,
    pkru: u64,
    /// Bytes of the area.
    end: u64,
}

impl Cpu {
    /// The layout of an area with `components`: the standard one, or the compacted one (SDM Vol 1 13.4).
    fn layout(&self, components: u64, compact: bool) -> Layout {
        let table = &self.model.cpuid;
        let at = |number| {
            if compact {
                table.xsave_compacted_offset(components, number)
            } else {
                table.get(0xd, number).unwrap_or_default().ebx
            }
        };
        let end = if compact {
            table.xsave_compacted_bytes(components)
        } else {
            table.xsave_standard_bytes(components)
        };
        Layout {
            avx: at(2).into(),
            pkru: at(9).into(),
            end: end.into(),
        }
    }

    /// The components an instruction is asked for that are enabled: RFBM (SDM Vol 1 13.7 to 13.12).
    fn requested(&self, op: &Op) -> u64 {
        let mask = self.edx_eax();
        if op.extra & form::SUPERVISOR != 0 {
            mask & (self.xcr0 | self.msr.xss)
        } else {
            mask & self.xcr0
        }
    }

    fn edx_eax(&self) -> u64 {
        (self.regs[gpr::RDX] << 32) | (self.regs[gpr::RAX] & 0xffff_ffff)
    }

    /// What XSAVES and XRSTORS check before anything else; both are intercepted by the components that are asked
    /// for (SDM Vol 3 26.1.3, 26.3).
    fn supervisor_allowed(&mut self, op: &Op, store: bool) -> Flow {
        if op.extra & form::SUPERVISOR == 0 {
            return Ok(());
        }
        self.vmx_xsaves_enabled()?;
        self.require_cpl0()?;
        let components = self.edx_eax() & self.msr.xss;
        self.intercept(if store {
            Intercept::Xsaves { components }
        } else {
            Intercept::Xrstors { components }
        })
    }

    /// Stores the parts of `saved` into the area at `va`, which can be written.
    fn store_components(&mut self, va: u64, saved: u64, at: Layout, op: &Op) -> Flow {
        let place = |offset: u64| va.wrapping_add(offset);
        if saved & xstate::X87 != 0 {
            let x87 = x87_image(&self.ext, op.extra & form::WIDE != 0);
            let first = if self.moves_pointers(&x87) {
                POINTERS.end
            } else {
                POINTERS.start
            };
            self.write_bytes(va, &x87[..first])?;
            self.write_bytes(place(32), &x87[32..160])?;
        }
        if saved & xstate::SSE != 0 {
            let mut image = [0u8; 416];
            self.store_xmm(&mut image);
            let end = 160 + 16 * self.xmm_count();
            self.write_bytes(place(160), &image[160..end])?;
        }
        if saved & xstate::AVX != 0 {
            let mut image = [0u8; 256];
            for (part, y) in image.chunks_exact_mut(16).zip(&self.ext.ymm) {
                part[..8].copy_from_slice(&y[2].to_le_bytes());
                part[8..].copy_from_slice(&y[3].to_le_bytes());
            }
            self.write_bytes(place(at.avx), &image[..16 * self.xmm_count()])?;
        }
        if saved & xstate::PKRU != 0 {
            let image = u64::from(self.pkru).to_le_bytes();
            self.write_bytes(place(at.pkru), &image)?;
        }
        Ok(())
    }

    fn store_mxcsr(&mut self, va: u64) -> Flow {
        let both = u64::from(MXCSR_MASK) << 32 | u64::from(self.ext.mxcsr);
        self.write_bytes(va.wrapping_add(24), &both.to_le_bytes())
    }
}

/// XSAVE, XSAVEOPT, XSAVEC and XSAVES (SDM Vol 1 13.7, 13.9, 13.10, 13.11). The init optimization is that of XSAVEC
/// and XSAVES; nothing is left out for not having been modified.
fn xsave(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.xsave_allowed()?;
    cpu.supervisor_allowed(op, true)?;
    let rfbm = cpu.requested(op);
    let compact = op.extra & form::COMPACT != 0;
    let at = cpu.layout(rfbm, compact);
    let va = cpu.linear(op, at.end, true)?;
    if va & 63 != 0 {
        return cpu.gp0();
    }
    cpu.probe_write(va, at.end)?;
    let inuse = cpu.xinuse();
    let header = va.wrapping_add(LEGACY as u64);
    if compact {
        let saved = rfbm & inuse;
        cpu.store_components(va, saved, at, op)?;
        if saved & xstate::SSE != 0 {
            cpu.store_mxcsr(va)?;
        }
        let mut image = [0u8; 16];
        image[..8].copy_from_slice(&saved.to_le_bytes());
        image[8..].copy_from_slice(&(rfbm | COMPACTED).to_le_bytes());
        return cpu.write_bytes(header, &image);
    }
    let old: u64 = cpu.read_linear(header)?;
    cpu.store_components(va, rfbm, at, op)?;
    if rfbm & (xstate::SSE | xstate::AVX) != 0 {
        cpu.store_mxcsr(va)?;
    }
    cpu.write_linear(header, (old & !rfbm) | (rfbm & inuse))
}

/// XRSTOR and XRSTORS (SDM Vol 1 13.8, 13.12).
fn xrstor(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.xsave_allowed()?;
    cpu.supervisor_allowed(op, false)?;
    let rfbm = cpu.requested(op);
    let va = cpu.linear(op, 576, false)?;
    if va & 63 != 0 {
        return cpu.gp0();
    }
    let mut image = [0u8; 576];
    cpu.read_bytes(va, &mut image)?;
    let (bv, comp) = (word(&image, 512), word(&image, 520));
    let compact = comp & COMPACTED != 0;
    let supervisor = op.extra & form::SUPERVISOR != 0;
    let enabled = cpu.xcr0 | if supervisor { cpu.msr.xss } else { 0 };
    let zero = |bytes: &[u8]| bytes.iter().all(|&b| b == 0);
    let bad = if compact {
        let components = comp & !COMPACTED;
        components & !enabled != 0 || bv & !components != 0 || !zero(&image[528..])
    } else {
        supervisor || bv & !enabled != 0 || !zero(&image[520..536])
    };
    if bad {
        return cpu.gp0();
    }
    let at = cpu.layout(if compact { comp & !COMPACTED } else { rfbm }, compact);
    restore(
        cpu,
        op,
        &Restored {
            va,
            rfbm,
            bv,
            compact,
            at,
        },
        &mut image,
    )
}

/// What XRSTOR has found in the header.
struct Restored {
    va: u64,
    rfbm: u64,
    bv: u64,
    compact: bool,
    at: Layout,
}

/// Loads all from memory, then changes registers: a fault changes none.
fn restore(cpu: &mut Cpu, op: &Op, r: &Restored, image: &mut [u8; 576]) -> Flow {
    let loads = |bit: u64| r.rfbm & r.bv & bit != 0;
    let mut avx = [0u8; 256];
    if loads(xstate::AVX) {
        cpu.linear(op, r.at.avx + 256, false)?;
        cpu.read_bytes(r.va.wrapping_add(r.at.avx), &mut avx)?;
    }
    let mut pkru = [0u8; 8];
    if loads(xstate::PKRU) {
        cpu.linear(op, r.at.pkru + 8, false)?;
        cpu.read_bytes(r.va.wrapping_add(r.at.pkru), &mut pkru)?;
    }
    let mxcsr_used = if r.compact {
        loads(xstate::SSE)
    } else {
        r.rfbm & (xstate::SSE | xstate::AVX) != 0
    };
    if mxcsr_used {
        let mxcsr = dword(image, 24);
        if mxcsr & !MXCSR_MASK != 0 {
            return cpu.gp0();
        }
        cpu.ext.mxcsr = mxcsr;
    } else if r.compact && r.rfbm & xstate::SSE != 0 {
        cpu.ext.mxcsr = MXCSR_RESET;
    }
    if r.rfbm & xstate::X87 != 0 {
        if loads(xstate::X87) {
            let wanted = cpu.moves_pointers(image);
            load_x87(&mut cpu.ext, image, op.extra & form::WIDE != 0, wanted);
        } else {
            let initial = ExtState::initialized();
            load_x87(&mut cpu.ext, &initial.fx, true, true);
        }
        cpu.follow_x87_state();
    }
    if r.rfbm & xstate::SSE != 0 {
        if !loads(xstate::SSE) {
            image[160..416].fill(0);
        }
        cpu.load_xmm(image);
    }
    if r.rfbm & xstate::AVX != 0 {
        for i in 0..cpu.xmm_count() {
            cpu.ext.ymm[i][2] = word(&avx, 16 * i);
            cpu.ext.ymm[i][3] = word(&avx, 16 * i + 8);
        }
    }
    if r.rfbm & xstate::PKRU != 0 {
        cpu.set_pkru(dword(&pkru, 0));
    }
    Ok(())
}

fn mxcsr_allowed(cpu: &mut Cpu, vex: bool) -> Flow {
    let undefined = if vex {
        cpu.cr4 & cr4::OSXSAVE == 0 || cpu.xcr0 & 6 != 6 || !cpu.protected() || cpu.v8086()
    } else {
        cpu.cr0 & cr0::EM != 0 || cpu.cr4 & cr4::OSFXSR == 0
    };
    if undefined {
        return cpu.raise(UD);
    }
    if cpu.cr0 & cr0::TS != 0 {
        cpu.raise(NM)
    } else {
        Ok(())
    }
}

fn ldmxcsr(cpu: &mut Cpu, op: &Op) -> Flow {
    mxcsr_allowed(cpu, op.extra == 1)?;
    let v = Mem::get::<u32>(cpu, op)?;
    if v & !MXCSR_MASK != 0 {
        return cpu.gp0();
    }
    cpu.ext.mxcsr = v;
    Ok(())
}

fn stmxcsr(cpu: &mut Cpu, op: &Op) -> Flow {
    mxcsr_allowed(cpu, op.extra == 1)?;
    let v = cpu.ext.mxcsr;
    Mem::set(cpu, op, v)
}

pub fn bind_state(form: &Form, op: &mut Op) -> Option<Handler> {
    use Mnemonic as M;
    let m = form.mnemonic();
    let wide = matches!(
        m,
        M::Fxsave64
            | M::Fxrstor64
            | M::Xsave64
            | M::Xsaveopt64
            | M::Xsavec64
            | M::Xsaves64
            | M::Xrstor64
            | M::Xrstors64
    );
    op.extra = u16::from(wide);
    Some(match m {
        M::Fxsave | M::Fxsave64 => fxsave,
        M::Fxrstor | M::Fxrstor64 => fxrstor,
        M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 => xsave,
        M::Xsavec | M::Xsavec64 => {
            op.extra |= form::COMPACT;
            xsave
        }
        M::Xsaves | M::Xsaves64 => {
            op.extra |= form::COMPACT | form::SUPERVISOR;
            xsave
        }
        M::Xrstor | M::Xrstor64 => xrstor,
        M::Xrstors | M::Xrstors64 => {
            op.extra |= form::COMPACT | form::SUPERVISOR;
            xrstor
        }
        M::Ldmxcsr | M::Stmxcsr => {
            op.extra = 0;
            if m == M::Ldmxcsr { ldmxcsr } else { stmxcsr }
        }
        M::Vldmxcsr | M::Vstmxcsr => {
            op.extra = 1;
            if m == M::Vldmxcsr { ldmxcsr } else { stmxcsr }
        }
        _ => return None,
    })
}
