//! Flags that the manual leaves undefined.
//!
//! Translated code has what the host's processor leaves in them, the interpreter what its authors chose. So where two
//! machines differ, the turn is done again on a third, instruction by instruction, and it is noted which flags are
//! undefined where ([`Undefined`]). Before a turn both machines were equal, so nothing from before it counts.
//!
//! - Flags that differ at the turn's end, and were undefined there, are made equal, and the case goes on.
//! - So is the image of such flags in the frame of an exception or interrupt.
//! - If a flag was read that was undefined (a jump, PUSHF, a frame on a stack that is not the handlers' own), then
//!   anything may differ: the case ends there, and is counted. Few do, which is checked.
//!   So do cases in which a repeated string instruction has stored over itself, and of which that cannot be said, because an event came where single steps take it earlier.
//! - The same holds for page tables that the guest has stored to by itself, without flushing anything.
//! - All else is a finding.

use guestmem::RamOffset;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic as M, RflagsBits};
use softcpu::cpu::gpr;
use x86defs::rflags::{AF, CF, OF, PF, SF, ZF};

use super::case::Case;
use super::guest::{FRAMES, handler_entries, tables_are_broken};
use super::system::{At, Processor, System};
use super::{MOST_TO_MEET, act};

/// Most steps of a turn that is done again, beside its instructions: faults, and iterations.
const STEPS: u64 = 4000;

/// What was undefined in a turn.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Undefined {
    /// Flags at its end.
    pub flags: u64,
    /// Flags in frames on handlers' stacks.
    pub frames: u64,
    /// One of them was read, or a result was undefined.
    pub read: bool,
    /// It went another way this time, so nothing is known.
    pub lost: bool,
}

/// RFLAGS bits from iced's.
fn bits(of: u32) -> u64 {
    [
        (RflagsBits::OF, OF),
        (RflagsBits::SF, SF),
        (RflagsBits::ZF, ZF),
        (RflagsBits::AF, AF),
        (RflagsBits::CF, CF),
        (RflagsBits::PF, PF),
    ]
    .iter()
    .filter(|(theirs, _)| of & theirs != 0)
    .fold(0, |all, (_, ours)| all | ours)
}

impl Undefined {
    /// The processor has executed `instruction`; `stack` was RSP in front of it, `flags` are those behind it.
    fn executed(&mut self, instruction: &Instruction, stack: u64, flags: u64) {
        let read = match instruction.mnemonic() {
            // It keeps RFLAGS in R11.
            M::Syscall | M::Pushfq | M::Pushf | M::Pushfd => u64::MAX,
            _ => bits(instruction.rflags_read()),
        };
        self.read |= read & self.flags != 0;
        let undefined = bits(instruction.rflags_undefined());
        let counted = match instruction.mnemonic() {
            M::Rol | M::Ror | M::Rcl | M::Rcr => OF,
            // CF where the count is at least the operand's size.
            M::Shl | M::Sal | M::Shr | M::Sar => CF | OF,
            M::Shld | M::Shrd => {
                // With a count above 16 the result is undefined too.
                self.read |=
                    instruction.op0_register().size() == 2 || instruction.memory_size().size() == 2;
                CF | OF
            }
            M::Iretq | M::Iretd | M::Iret | M::Popfq | M::Popf | M::Popfd | M::Sysretq => {
                self.flags = self.frames;
                // What another stack holds may be from before the turn.
                self.read |= !FRAMES.contains(&stack);
                return;
            }
            M::Bsf | M::Bsr => {
                self.read |= flags & ZF != 0;
                0
            }
            // Compares and scans of nothing.
            _ if instruction.is_string_instruction() => 0,
            // MOV of control and debug registers: both leave flags alone.
            M::Mov => return,
            _ => {
                self.flags &= !bits(instruction.rflags_modified());
                0
            }
        };
        // A count of zero leaves flags, and their being undefined, as they are.
        self.flags |= undefined | counted;
    }

    /// An exception or interrupt was delivered.
    fn delivered(&mut self, stack: u64) {
        if FRAMES.contains(&stack) {
            self.frames |= self.flags;
        } else {
            self.read |= self.flags != 0;
        }
    }
}

/// An instruction and where it is: a prefix of it may be all that lies in its page.
struct There {
    instruction: Instruction,
    at: RamOffset,
    bytes: [u8; 15],
    in_page: usize,
}

impl There {
    /// The instruction at RIP.
    fn find(p: &mut Processor) -> Option<Self> {
        let cpu = &mut p.runner.cpu;
        let linear = match cpu.long64 {
            true => cpu.rip(),
            false => cpu.rip() & 0xffff_ffff,
        };
        let mut bytes = [0; 15];
        let at = cpu.fetch_target(linear).ok().flatten()?;
        let in_page = (4096 - (at.0 as usize & 0xfff)).min(bytes.len());
        let (first, rest) = bytes.split_at_mut(in_page);
        cpu.ram.read_at(at, first);
        let mode = if cpu.long64 { 64 } else { 32 };
        let mut decoder = Decoder::new(mode, first, DecoderOptions::NONE);
        let mut instruction = decoder.decode();
        if decoder.last_error() == DecoderError::NoMoreBytes {
            // It goes on in the next page.
            let next = (linear | 0xfff).wrapping_add(1);
            let next = cpu.fetch_target(next).ok().flatten()?;
            cpu.ram.read_at(next, rest);
            instruction = Decoder::new(mode, &bytes, DecoderOptions::NONE).decode();
        }
        Some(Self {
            instruction,
            at,
            bytes,
            in_page,
        })
    }

    /// It is a repeated string instruction that has stored over itself. Such a one goes on as it was until it gives way,
    /// which is earlier where the page is known to hold code.
    fn is_rewritten(&self, p: &Processor) -> bool {
        if !self.instruction.is_string_instruction() {
            return false;
        }
        let mut now = [0; 15];
        let count = self.in_page.min(self.instruction.len());
        p.runner.cpu.ram.read_at(self.at, &mut now[..count]);
        now[..count] != self.bytes[..count]
    }
}

/// Does the turns of a case again that ended in `ends`: the last, or each of them, instruction by instruction.
pub(super) fn again(system: &mut System, case: &Case, ends: &[At], each: bool) -> Undefined {
    let last = ends.len() - 1;
    let entries = handler_entries(&case.image);
    system.begin(&case.image, &case.states);
    let mut all = Undefined::default();
    for (number, turn) in case.turns.iter().take(ends.len()).enumerate() {
        act(system, turn.vcpu, &turn.action);
        let p = &mut system.processors[turn.vcpu];
        p.set_slice(turn.slice);
        if number != last && !each {
            p.turn();
            // Both had to meet.
            for _ in 0..MOST_TO_MEET {
                if p.retired() < ends[number].0 {
                    p.turn();
                }
            }
            // A turn may be longer where code is not known any more.
            all.lost |= p.at() != ends[number];
            continue;
        }
        let mut this = Undefined::default();
        let mut steps = 0;
        while !p.is_at(ends[number]) && steps < STEPS {
            steps += 1;
            let cpu = &p.runner.cpu;
            let before = (p.retired(), cpu.uncounted, cpu.regs[gpr::RSP]);
            let there = There::find(p);
            if p.runner.single_step().is_some() {
                break;
            }
            let cpu = &p.runner.cpu;
            // At a handler's first instruction, or behind it.
            let entered = entries
                .iter()
                .any(|e| cpu.rip() == *e || cpu.rip() == e + 7);
            if entered {
                this.delivered(cpu.regs[gpr::RSP]);
            }
            let executed = p.retired() != before.0 && cpu.uncounted == before.1;
            let flags = cpu.rflags();
            if let Some(there) = there {
                this.read |= there.is_rewritten(p);
                // It pushes no error code, so some handlers take RFLAGS for CS.
                let interrupts = there.instruction.mnemonic() == M::Int;
                this.read |= entered && interrupts && this.flags != 0;
                if executed && !entered {
                    this.executed(&there.instruction, before.2, flags);
                }
            }
        }
        // Single steps take an event inside what is a block otherwise: then this was another way, and says nothing.
        all.lost |= p.at() != ends[number];
        all.read |= this.read;
        all.frames |= this.frames;
        all.flags = this.flags;
        system.read();
        all.lost |= tables_are_broken(&case.image, &system.buffer);
    }
    all
}
