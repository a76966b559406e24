//! VM entries with any VMCS.
//!
//! A case takes a VMCS that passes every check, changes some of its fields, and executes VMLAUNCH. Its run stops at
//! the next instruction boundary, so that the oracle ([`rules`], [`manual`]) sees what the instruction has left: a VMfail, a
//! host after a failed VM entry, or a guest at its start. A guest then executes a little, and the host's state after
//! its exit is looked at too.

pub mod guests;
pub mod manual;
pub mod rules;

use guestmem::Gpa;
use softcpu::vmx::vmcs::{Vmcs, region};
use vcpu::{MpState, RunExit, VcpuState};
use x86defs::vmx::VmcsField as F;

use crate::cpu::modes::{CODE, DATA, Mode, PT, VMX_REGION, image, start};
use crate::cpu::{Events, Machine, STOP, guest_cpuid, invariants};
use crate::{Input, Target};
use guests::{AREAS, EPT, GUEST_CODE, GUESTS, HOST_CODE, HOST_STACK, SHADOW};
use rules::{Capabilities, Entry};

const VMCS: u64 = VMX_REGION + 0x1000;
/// The host's code, with the addresses of VMXON's and VMPTRLD's operands in RAX and RSI and [`STOP`] in RDI.
const LAUNCH: [u8; 17] = [
    0xf3, 0x0f, 0xc7, 0x30, // vmxon [rax]
    0x0f, 0xc7, 0x36, // vmptrld [rsi]
    0xeb, 0x00, // jmp $+2
    0x8a, 0x07, // mov al, [rdi]
    0x0f, 0x01, 0xc2, // vmlaunch
    0xf4, 0xeb, 0xfd, // hlt; jmp
];
/// RIP after VMLAUNCH.
const AFTER: u64 = CODE + 14;
/// VMCLEAR of [rsi]; HLT.
const CLEAR: [u8; 5] = [0x66, 0x0f, 0xc7, 0x36, 0xf4];
/// VMXOFF; HLT.
const OFF: [u8; 4] = [0x0f, 0x01, 0xc4, 0xf4];
/// MOV AL, [RDI] or [EDI] or [BX]: a read of [`STOP`]; CPUID, which exits before the run ends.
const EXITS: [u8; 4] = [0x8a, 0x07, 0x0f, 0xa2];
/// Exit reason of CPUID.
const CPUID: u64 = 10;
/// CF, PF, AF, ZF, SF, OF.
const STATUS: u64 = 0x8d5;

/// The target.
pub struct VmEntry {
    capabilities: Capabilities,
    image: Vec<u8>,
    /// The machine of the last case, if that left VMX operation.
    machine: Option<Machine>,
    refused: u64,
    failed: u64,
    entered: u64,
    exits: u64,
    exact: u64,
    shutdowns: u64,
}

impl Default for VmEntry {
    fn default() -> Self {
        Self::new()
    }
}

/// The state of a host in 64-bit mode at [`CODE`].
fn host_start(machine: &Machine) -> VcpuState {
    let mut s = start(&machine.reset, Mode::Long, false, &mut Input::new(&[]));
    s.gpr = [0; 16];
    (s.gpr[0], s.gpr[6], s.gpr[4]) = (DATA, DATA + 8, HOST_STACK);
    (s.gpr[3], s.gpr[7]) = (STOP.0, STOP.0);
    s.rflags = 2;
    s.system.cr0 = 0x8000_0031;
    s.system.cr4 = 0x4_2620;
    s
}

fn rdmsr(machine: &mut Machine, index: u32) -> u64 {
    let mut s = host_start(machine);
    s.gpr[1] = u64::from(index);
    machine.write(CODE, &[0x0f, 0x32, 0xf4]);
    let (_, after, _) = machine.execute(&s, Events::default());
    assert_eq!(after.rip, CODE + 3, "RDMSR of {index:#x}");
    after.gpr[2] << 32 | after.gpr[0]
}

impl VmEntry {
    /// The target.
    #[must_use]
    pub fn new() -> Self {
        let mut image = image();
        let mut put = |at: u64, bytes: &[u8]| {
            image[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        };
        put(DATA, &VMX_REGION.to_le_bytes());
        put(DATA + 8, &VMCS.to_le_bytes());
        put(SHADOW, &(region::REVISION | 1 << 31).to_le_bytes());
        put(PT + 8 * (STOP.0 >> 12), &(STOP.0 | 7).to_le_bytes());
        put(EPT, &((EPT + 0x1000) | 7).to_le_bytes());
        put(EPT + 0x1000, &0xb7u64.to_le_bytes());
        put(HOST_CODE, &[0xf4, 0xeb, 0xfd]);
        let mut machine = Machine::new(image.clone());
        let mut read = |index| rdmsr(&mut machine, index);
        let capabilities = Capabilities {
            controls: [0x48d, 0x48e, 0x48f, 0x490, 0x48b].map(&mut read),
            cr0: [0x486, 0x487].map(&mut read),
            cr4: [0x488, 0x489].map(&mut read),
            ept: read(0x48c),
            width: guest_cpuid().get(0x8000_0008, 0).unwrap_or_default().eax & 0xff,
        };
        Self {
            capabilities,
            image,
            machine: None,
            refused: 0,
            failed: 0,
            entered: 0,
            exits: 0,
            exact: 0,
            shutdowns: 0,
        }
    }

    /// VMLAUNCH has failed: legal error, nothing else changed (SDM Vol 3 31.2, 31.4).
    fn refused(&mut self, case: &mut Case, after: &VcpuState) {
        self.refused += 1;
        let found = case.vmcs();
        let error = found.get(F::InstructionError);
        assert_eq!(after.rflags & STATUS, 0x40, "VMfailValid sets ZF alone");
        let wrong = case.refusal;
        assert!(case.launched || wrong.is_some(), "VMLAUNCH fails");
        let legal = if case.launched {
            error == 4
        } else {
            matches!(error, 7 | 8)
        };
        assert!(legal, "VM-instruction error {error}");
        manual::unchanged(&case.given, &found, &[F::InstructionError]);
        let mut expected = case.before.clone();
        expected.rip = AFTER;
        expected.rflags = after.rflags;
        expected.system.msrs.clone_from(&after.system.msrs);
        assert_eq!(*after, expected, "VMfail changes flags only");
    }

    /// The processor is in its host: after a failed VM entry, or after an exit. Gives its VMCS.
    fn in_host(&mut self, case: &mut Case, after: &VcpuState) -> Vmcs {
        manual::host(after, &case.given, &case.before);
        let found = case.vmcs();
        let reason = found.get(F::ExitReason);
        if reason >> 31 == 0 {
            self.exits += 1;
            assert!(reason < 80, "exit reason {reason:#x}");
            let info = found.get(F::EntryInterruptionInfo);
            assert!(info >> 31 == 0, "an exit ends the injection");
            return found;
        }
        self.failed += 1;
        let basic = reason & 0xffff;
        let wrong = case.failure;
        assert_eq!(basic == 33, wrong.is_some(), "{wrong:?}, reason {basic}");
        assert!(matches!(basic, 33 | 34), "exit reason {reason:#x}");
        // SDM Vol 3 27.8: nothing is saved.
        manual::unchanged(&case.given, &found, &[F::ExitReason, F::ExitQualification]);
        let qualification = found.get(F::ExitQualification);
        let legal = if basic == 33 {
            matches!(qualification, 0 | 2..=4)
        } else {
            (1..=case.given.get(F::EntryMsrLoadCount)).contains(&qualification)
        };
        assert!(legal, "exit qualification {qualification:#x} of {basic}");
        found
    }

    /// The guest is at its start.
    fn in_guest(&mut self, case: &mut Case, state: &VcpuState) {
        self.entered += 1;
        let wrong = case.failure;
        assert_eq!(wrong, None, "a guest was entered");
        if case.given.get(F::EntryInterruptionInfo) >> 31 == 0 {
            manual::entered(state, &case.given, &case.before);
        }
        let (exit, after) = case.machine.go_on();
        if exit == RunExit::Shutdown {
            // A VMX abort, or a host whose state leads nowhere.
            self.shutdowns += 1;
            return;
        }
        if manual::is_host(&after, &case.given) {
            let long = state.segments[1].access.0 >> 13 & 1 != 0;
            let base = if long { 0 } else { state.segments[1].base };
            let there = base.wrapping_add(state.rip) == GUEST_CODE;
            let found = self.in_host(case, &after);
            if found.get(F::ExitReason) == CPUID && case.exits && there {
                self.exact += 1;
                manual::saved(&found, state);
            }
            return;
        }
        let at = case.given.get(F::HostRip);
        let mut host = after;
        if at == HOST_CODE && host.mp_state == MpState::Halted && host.rip == at + 1 {
            host.rip = at;
            if manual::is_host(&host, &case.given) {
                self.in_host(case, &host);
            }
        }
    }

    /// Holds what VMLAUNCH has left against the oracle.
    fn judge(&mut self, case: &mut Case, exit: RunExit, after: &VcpuState) {
        if after.rip == AFTER
            && after.system.cr3 == case.before.system.cr3
            && after.gdtr == case.before.gdtr
        {
            self.refused(case, after);
            return;
        }
        let wrong = case.refusal;
        assert_eq!(wrong, None, "VMLAUNCH went on");
        if exit == RunExit::Shutdown {
            // A VMX abort (28.7), by an MSR area.
            self.shutdowns += 1;
        } else if manual::is_host(after, &case.given) {
            self.in_host(case, after);
        } else {
            self.in_guest(case, after);
        }
    }
}

/// A case under way.
struct Case {
    machine: Machine,
    /// The host before VMLAUNCH.
    before: VcpuState,
    /// The VMCS it is executed with.
    given: Vmcs,
    launched: bool,
    /// What makes VMLAUNCH fail.
    refusal: Option<&'static str>,
    /// What keeps the guest from being entered.
    failure: Option<&'static str>,
    /// The guest's code is [`EXITS`].
    exits: bool,
    /// The VMCS is written back; nothing but VMXON is left of the case.
    cleared: bool,
}

impl Case {
    /// The VMCS as VMCLEAR writes it; the processor is in VMX root operation.
    fn vmcs(&mut self) -> Vmcs {
        let mut s = self.before.clone();
        s.rip = CODE;
        // The guest may have written anywhere.
        self.machine.restore();
        self.machine.write(CODE, &CLEAR);
        let (_, after, _) = self.machine.execute(&s, Events::default());
        assert_eq!(after.rip, CODE + 5, "VMCLEAR");
        assert_eq!(after.rflags & STATUS, 0, "VMCLEAR fails");
        let mut image = [0; region::IMAGE_SIZE];
        self.machine
            .ram
            .read(Gpa(VMCS), &mut image)
            .expect("it is RAM");
        self.cleared = true;
        region::decode(&image)
    }

    /// The machine without VMX operation, if the case ended in VMX root operation without a current VMCS.
    fn off(mut self) -> Option<Machine> {
        if !self.cleared {
            return None;
        }
        self.before.rip = CODE;
        self.machine.write(CODE, &OFF);
        let (_, after, _) = self.machine.execute(&self.before, Events::default());
        assert_eq!(after.rip, CODE + 4, "VMXOFF");
        self.machine.restore();
        Some(self.machine)
    }
}

impl Target for VmEntry {
    fn run(&mut self, data: &[u8]) {
        let mut input = Input::new(data);
        let mut machine = match self.machine.take() {
            Some(machine) => machine,
            None => Machine::new(self.image.clone()),
        };
        machine.stops();
        let before = host_start(&machine);
        let mut given = guests::valid(input.pick(&GUESTS), input.once_in(2), before.system.cr4);
        let changes = input.below(6);
        let areas = guests::mutate(&mut given, changes, &mut input);
        let launched = input.once_in(64);
        given.launched = launched;
        let mut bytes = [0; region::IMAGE_SIZE];
        bytes[..4].copy_from_slice(&region::REVISION.to_le_bytes());
        region::encode(&given, &mut bytes);
        machine.write(VMCS, &bytes);
        for (at, area) in AREAS.into_iter().zip(&areas) {
            machine.write(at, area);
        }
        machine.write(CODE, &LAUNCH);
        let exits = input.once_in(2);
        let code = if exits { &EXITS } else { input.bytes(64) };
        machine.write(GUEST_CODE, code);
        let entry = Entry {
            v: &given,
            c: &self.capabilities,
            ram: &machine.ram,
            at: VMCS,
        };
        let (refusal, failure) = (entry.refusal(), entry.failure());
        let (exit, after, _) = machine.execute(&before, Events::default());
        let mut case = Case {
            refusal,
            failure,
            machine,
            before,
            given,
            launched,
            exits,
            cleared: false,
        };
        invariants::check(&after);
        self.judge(&mut case, exit, &after);
        self.machine = case.off();
    }

    fn longest(&self) -> usize {
        512
    }

    fn figures(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("refused", self.refused),
            ("failed", self.failed),
            ("entered", self.entered),
            ("exits", self.exits),
            ("exits by CPUID", self.exact),
            ("shutdowns", self.shutdowns),
        ]
    }
}
