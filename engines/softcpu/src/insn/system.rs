//! CPUID, HLT, time stamps, caches, random numbers, WAIT and what does nothing (SDM Vol 2).

use iced_x86::Mnemonic;
use vcpu::MpState;
use x86defs::cr::{cr0, cr4};
use x86defs::exception::NM;
use x86defs::rflags;

use super::form::Form;
use super::next;
use super::operand::Int;
use crate::code::{Handler, Op};
use crate::cpu::{Cpu, Flow, gpr, pending};
use crate::vmx::Intercept;

fn cpuid(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.intercept(Intercept::Cpuid)?;
    let (leaf, subleaf) = (cpu.regs[gpr::RAX] as u32, cpu.regs[gpr::RCX] as u32);
    cpu.serialize();
    let r = cpu.cpuid(leaf, subleaf);
    if cpu.long64 && !cpu.vmx.in_guest {
        cpu.known_leaves.learn(leaf, subleaf, r);
    }
    for (reg, v) in [
        (gpr::RAX, r.eax),
        (gpr::RBX, r.ebx),
        (gpr::RCX, r.ecx),
        (gpr::RDX, r.edx),
    ] {
        cpu.regs[reg] = u64::from(v);
    }
    Ok(())
}

impl Cpu {
    /// CPUID with what depends on this vCPU and its mode.
    pub fn cpuid(&mut self, leaf: u32, subleaf: u32) -> vcpu::cpuid::CpuidResult {
        if self.amd()
            && let Some(name) = self.msr.amd.name_leaf(leaf)
        {
            return name;
        }
        // To ask the board costs more than the rest.
        let base = if matches!(leaf, 1 | 0x8000_0001) {
            let retired = self.retired_now();
            let base = x86defs::msr::IA32_APIC_BASE;
            self.platform.apic_msr_read(base, retired).unwrap_or(0)
        } else {
            0
        };
        let fields = vcpu::cpuid::VcpuFields {
            apic_id: self.index,
            apic_enabled: base & 1 << 11 != 0,
            osxsave: self.cr4 & cr4::OSXSAVE != 0,
            pke: self.cr4 & cr4::PKE != 0,
            monitor: self.monitor_enabled(),
            xcr0: self.xcr0,
            xss: self.msr.xss,
            mode64: self.long64,
        };
        self.model.cpuid.for_vcpu(leaf, subleaf, &fields)
    }
}

fn hlt(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.require_cpl0()?;
    cpu.intercept(Intercept::Hlt)?;
    cpu.activity = MpState::Halted;
    cpu.pending |= pending::INACTIVE;
    next(cpu, op)
}

fn rdtsc<const P: bool>(cpu: &mut Cpu, _: &Op) -> Flow {
    if P {
        cpu.vmx_rdtscp_enabled()?;
    }
    if cpu.cr4 & cr4::TSD != 0 && cpu.cpl != 0 {
        return cpu.gp0();
    }
    cpu.intercept(if P {
        Intercept::Rdtscp
    } else {
        Intercept::Rdtsc
    })?;
    let tsc = cpu.guest_tsc();
    cpu.regs[gpr::RAX] = tsc & 0xffff_ffff;
    cpu.regs[gpr::RDX] = tsc >> 32;
    if P {
        cpu.regs[gpr::RCX] = cpu.msr.tsc_aux & 0xffff_ffff;
    }
    Ok(())
}

/// RDPMC ends its block: what was executed is known only there.
fn rdpmc(cpu: &mut Cpu, op: &Op) -> Flow {
    if !cpu.may_read_counters() {
        return cpu.gp0();
    }
    cpu.intercept(Intercept::Rdpmc)?;
    cpu.read_counter()?;
    next(cpu, op)
}

fn invd(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.require_cpl0()?;
    cpu.serialize();
    let invd = op.extra == 0;
    cpu.intercept(if invd {
        Intercept::Invd
    } else {
        Intercept::Wbinvd
    })
}

fn pause(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.intercept(Intercept::Pause)?;
    cpu.paused();
    Ok(())
}

fn mfence(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.serialize();
    Ok(())
}

fn nothing(_: &mut Cpu, _: &Op) -> Flow {
    Ok(())
}

/// CLFLUSH and friends, and prefetches that must not fault: the former check their byte like a load.
fn clflush(cpu: &mut Cpu, op: &Op) -> Flow {
    let va = cpu.linear(op, 1, false)?;
    if cpu.tlb.read_hit(va, 1).is_some() {
        return Ok(());
    }
    // The byte is not read: it may be a device's register.
    cpu.probe_read(va)
}

/// CLZERO: zeroes the aligned 64 bytes that rAX points into (APM Vol 3).
fn clzero(cpu: &mut Cpu, op: &Op) -> Flow {
    // The address is rounded down inside its segment.
    let within = cpu.effective_address(op) & 63;
    let line = Op {
        disp: -(within as i32),
        ..*op
    };
    let va = cpu.linear(&line, 64, true)?;
    cpu.write_bytes(va, &[0; 64])
}

fn random<T: Int>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.intercept(if op.extra == 0 {
        Intercept::Rdrand
    } else {
        Intercept::Rdseed
    })?;
    let v = cpu.random();
    T::set_reg(cpu, op.dst, T::from_u64(v));
    // CF says that a value was delivered; the others are cleared.
    cpu.flags.set_bits(rflags::CF);
    Ok(())
}

fn rdpid(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.vmx_rdtscp_enabled()?;
    let v = cpu.msr.tsc_aux & 0xffff_ffff;
    cpu.regs[(op.dst & 31) as usize] = v;
    Ok(())
}

fn wait(cpu: &mut Cpu, _: &Op) -> Flow {
    if cpu.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS {
        return cpu.raise(NM);
    }
    cpu.check_x87_pending()
}

pub fn bind_plain(form: &Form, op: &mut Op) -> Option<Handler> {
    use Mnemonic as M;
    Some(match form.mnemonic() {
        M::Cpuid => cpuid,
        M::Hlt => hlt,
        M::Rdtsc => rdtsc::<false>,
        M::Rdtscp => rdtsc::<true>,
        M::Rdpmc => rdpmc,
        M::Invd => {
            op.extra = 0;
            invd
        }
        M::Wbinvd | M::Wbnoinvd => {
            op.extra = 1;
            invd
        }
        M::Pause => pause,
        M::Clflush | M::Clflushopt | M::Clwb => clflush,
        M::Clzero => {
            form.address_in_rax(op);
            clzero
        }
        M::Rdrand | M::Rdseed => {
            op.extra = u16::from(form.mnemonic() == M::Rdseed);
            // For the instruction information of a VM exit.
            op.imm = form.size(0) as u64;
            match form.size(0) {
                2 => random::<u16>,
                4 => random::<u32>,
                _ => random::<u64>,
            }
        }
        M::Rdpid => rdpid,
        M::Wait => wait,
        M::Mfence => mfence,
        _ => nothing,
    })
}
