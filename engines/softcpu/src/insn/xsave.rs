//! FXSAVE, FXRSTOR, the XSAVE family, LDMXCSR and STMXCSR (SDM Vol 1 chapters 10.5 and 13).

use hostexec::{ExtState, MXCSR_MASK, MXCSR_RESET};
use iced_x86::Mnemonic;
use x86defs::cr::{cr0, cr4};
use x86defs::exception::{NM, UD};

use super::form::Form;
use super::operand::{Mem, Place, Source};
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, gpr};

const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
/// Bytes of the legacy region.
const LEGACY: usize = 512;
/// Bytes of the whole standard area with AVX.
const AREA: usize = 832;

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
        u64::from(x87) | u64::from(sse) << 1 | u64::from(avx) << 2
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

fn requested(cpu: &Cpu) -> u64 {
    let mask = (cpu.regs[gpr::RDX] << 32) | (cpu.regs[gpr::RAX] & 0xffff_ffff);
    mask & cpu.xcr0
}

/// XSAVE, XSAVEOPT and XSAVEC (bit 1 of `extra`); bit 0 for the 64-bit forms. Only three components exist, so
/// the compacted and the standard layout agree.
fn xsave(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.xsave_allowed()?;
    let rfbm = requested(cpu);
    let size = if rfbm & AVX != 0 { AREA } else { 576 };
    let va = cpu.linear(op, size as u64, true)?;
    if va & 63 != 0 {
        return cpu.gp0();
    }
    let compact = op.extra & 2 != 0;
    let inuse = cpu.xinuse();
    let mut image = [0u8; AREA];
    // What is not saved keeps its bytes; the area is written in any case.
    cpu.probe_write(va, size as u64)?;
    cpu.read_bytes(va, &mut image[..size])?;
    let skip_initial = |bit: u64| compact && inuse & bit == 0;
    if rfbm & X87 != 0 && !skip_initial(X87) {
        let x87 = x87_image(&cpu.ext, op.extra & 1 != 0);
        image[..POINTERS.start].copy_from_slice(&x87[..POINTERS.start]);
        if cpu.moves_pointers(&x87) {
            image[POINTERS].copy_from_slice(&x87[POINTERS]);
        }
        image[32..160].copy_from_slice(&x87[32..160]);
    }
    if rfbm & SSE != 0 && !skip_initial(SSE) {
        cpu.store_xmm(&mut image);
    }
    // MXCSR is saved with SSE or AVX in the standard form, with SSE in the compacted one.
    if rfbm & SSE != 0 || (!compact && rfbm & AVX != 0) {
        image[24..28].copy_from_slice(&cpu.ext.mxcsr.to_le_bytes());
        image[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    }
    if rfbm & AVX != 0 && !skip_initial(AVX) {
        for i in 0..cpu.xmm_count() {
            let at = 576 + 16 * i;
            image[at..at + 8].copy_from_slice(&cpu.ext.ymm[i][2].to_le_bytes());
            image[at + 8..at + 16].copy_from_slice(&cpu.ext.ymm[i][3].to_le_bytes());
        }
    }
    let old = word(&image, 512);
    let bv = if compact {
        rfbm & inuse
    } else {
        (old & !rfbm) | (rfbm & inuse)
    };
    image[512..520].copy_from_slice(&bv.to_le_bytes());
    if compact {
        image[520..528].copy_from_slice(&(rfbm | 1 << 63).to_le_bytes());
    }
    cpu.write_bytes(va, &image[..size])
}

/// XRSTOR, standard and compacted form (SDM Vol 1 13.8).
fn xrstor(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.xsave_allowed()?;
    let rfbm = requested(cpu);
    let va = cpu.linear(op, 576, false)?;
    if va & 63 != 0 {
        return cpu.gp0();
    }
    let mut image = [0u8; AREA];
    cpu.read_bytes(va, &mut image[..576])?;
    let (bv, comp) = (word(&image, 512), word(&image, 520));
    let reserved_zero = image[528..576].iter().all(|&b| b == 0);
    let bad = if comp >> 63 != 0 {
        let components = comp & !(1 << 63);
        components & !cpu.xcr0 != 0 || bv & !components != 0 || !reserved_zero
    } else {
        bv & !cpu.xcr0 != 0 || comp != 0 || !image[520..536].iter().all(|&b| b == 0)
    };
    if bad {
        return cpu.gp0();
    }
    let compact = comp >> 63 != 0;
    let loads = |bit: u64| rfbm & bit != 0 && bv & bit != 0;
    if loads(AVX) {
        let more = &mut [0u8; AREA - 576];
        cpu.read_bytes(va.wrapping_add(576), more)?;
        image[576..].copy_from_slice(more);
    }
    let mxcsr_used = if compact {
        loads(SSE)
    } else {
        rfbm & (SSE | AVX) != 0
    };
    if mxcsr_used {
        let mxcsr = dword(&image, 24);
        if mxcsr & !MXCSR_MASK != 0 {
            return cpu.gp0();
        }
        cpu.ext.mxcsr = mxcsr;
    } else if compact && rfbm & SSE != 0 {
        cpu.ext.mxcsr = MXCSR_RESET;
    }
    if rfbm & X87 != 0 {
        if bv & X87 != 0 {
            let wanted = cpu.moves_pointers(&image);
            load_x87(&mut cpu.ext, &image, op.extra & 1 != 0, wanted);
        } else {
            let initial = ExtState::initialized();
            let fx = initial.fx;
            load_x87(&mut cpu.ext, &fx, true, true);
        }
        cpu.follow_x87_state();
    }
    if rfbm & SSE != 0 {
        if bv & SSE == 0 {
            image[160..416].fill(0);
        }
        cpu.load_xmm(&image);
    }
    if rfbm & AVX != 0 {
        for i in 0..cpu.xmm_count() {
            let at = 576 + 16 * i;
            let (low, high) = if bv & AVX != 0 {
                (word(&image, at), word(&image, at + 8))
            } else {
                (0, 0)
            };
            cpu.ext.ymm[i][2] = low;
            cpu.ext.ymm[i][3] = high;
        }
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
        M::Fxsave64 | M::Fxrstor64 | M::Xsave64 | M::Xsaveopt64 | M::Xsavec64 | M::Xrstor64
    );
    op.extra = u16::from(wide);
    Some(match m {
        M::Fxsave | M::Fxsave64 => fxsave,
        M::Fxrstor | M::Fxrstor64 => fxrstor,
        M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 => xsave,
        M::Xsavec | M::Xsavec64 => {
            op.extra |= 2;
            xsave
        }
        M::Xrstor | M::Xrstor64 => xrstor,
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
