use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use guestmem::RamOffset;
use vcpu::{Attention, Platform};
use x86defs::exception::DB;
use x86defs::rflags;

use crate::cpu::gpr::{RAX, RSP};
use crate::cpu::{Shadow, pending};
use crate::testing::*;

/// MOV AL, 1.
const MOV: u16 = 0x01b0;

/// A bench with other vCPUs, in front of [`MOV`], whose operand another one makes 2 once it was decoded.
fn changing(mut b: Bench) -> (Bench, u64) {
    let at = b.get(crate::cpu::RIP);
    b.put(at, MOV);
    b.cpu().shared = true;
    b.runner.decoded = Some(Box::new(move |ram| ram.store(RamOffset(at + 1), 2_u8)));
    (b, at)
}

/// A step that finds its code changed does nothing; the next one executes what is there now.
fn nothing_then_mov(b: &mut Bench, at: u64) {
    assert_eq!(b.step(), Outcome::Next(at), "nothing was executed");
    assert!(b.runner.decoded.is_none(), "the code changed");
    assert_eq!(b.get(RAX), 0);
    assert_eq!(b.step(), Outcome::Next(at + 2));
    assert_eq!(b.get(RAX), 2);
}

/// SDM Vol 3 6.8.1, 6.8.3: STI and MOV SS hold off interrupts until after the next instruction.
#[test]
fn changed_code_keeps_the_interrupt_shadow() {
    let (sti, mov_ss): (&[u8], &[u8]) = (&[0xfb], &[0x8e, 0xd0]);
    for (code, shadow) in [(sti, Shadow::Sti), (mov_ss, Shadow::MovSs)] {
        let mut b = Bench::long();
        if shadow == Shadow::MovSs {
            b.cpu().set_rflags(0x202);
            b.set(RAX, u64::from(sel::DATA));
        }
        b.ok(code);
        b.set(RAX, 0);
        b.signals.interrupt.store(0x40, Ordering::Relaxed);
        b.cpu().pending |= pending::INTERRUPT;
        let (mut b, at) = changing(b);
        assert_eq!(b.cpu().shadow, shadow);
        nothing_then_mov(&mut b, at);
        assert_eq!(b.step(), Outcome::Vector(0x40));
        assert_eq!(b.at::<u64>(b.get(RSP)), at + 2, "after the instruction");
    }
}

/// The same where blocks run, not steps: an interrupt that waits is taken behind the instruction after STI, whatever that
/// is, and not between the two; one that came while IF was clear is not forgotten.
#[test]
fn blocks_keep_the_shadow_of_sti() {
    // sti; then nop, mov eax, 1, or jmp to the next; then three nops
    for behind in [&[0x90][..], &[0xb8, 1, 0, 0, 0], &[0xeb, 0]] {
        for interrupt in [0, 0x40] {
            let mut b = Bench::long();
            let at = b.get(crate::cpu::RIP);
            let code = [&[0xfb], behind, &[0x90, 0x90, 0x90, 0xeb, 0xfe]].concat();
            b.ram.write_at(RamOffset(at), &code);
            b.signals.interrupt.store(interrupt, Ordering::Relaxed);
            b.cpu().pending |= pending::INTERRUPT;
            assert_eq!((b.runner.turn(), b.runner.turn()), (None, None));
            assert_eq!(b.cpu().shadow, Shadow::None);
            let taken = b.get(RSP) != STACK;
            assert_eq!(taken, interrupt != 0);
            if taken {
                let next = at + 1 + behind.len() as u64;
                assert_eq!(b.at::<u64>(b.get(RSP)), next, "{behind:x?}");
            }
        }
    }
}

/// 18.3.1.1: RF holds off a code breakpoint until the instruction is executed. 18.3.1.4: the single-step trap comes
/// after it.
#[test]
fn changed_code_keeps_rf_and_tf() {
    let (mut b, at) = changing(Bench::long());
    b.cpu().dr[0] = at;
    b.cpu().dr7 = 1;
    b.cpu().set_rflags(2 | rflags::RF | rflags::TF);
    b.cpu().debug_changed();
    nothing_then_mov(&mut b, at);
    assert_eq!(b.cpu().rflags() & rflags::RF, 0);
    assert_eq!(b.step(), Outcome::Vector(DB));
    assert_eq!(b.cpu().dr6 & 0x400f, 0x4000, "a single step");
    assert_eq!(b.at::<u64>(b.get(RSP)), at + 2);
}

/// What a vCPU tells the board.
#[derive(Default)]
struct Told {
    /// Instructions executed at each poll and each time it gave way.
    polls: Vec<u64>,
    gave_way: Vec<u64>,
}

/// A board that stops the vCPU at the fourth poll.
struct Ear {
    told: Arc<Mutex<Told>>,
    attention: Attention,
    slice: u64,
}

impl Platform for Ear {
    fn poll(&mut self, retired: u64) -> u64 {
        let mut told = self.told.lock().unwrap();
        told.polls.push(retired);
        if told.polls.len() == 4 {
            self.attention.raise(Attention::STOP);
        }
        self.slice
    }
    fn give_way(&mut self, retired: u64) {
        self.told.lock().unwrap().gave_way.push(retired);
    }
}

/// Runs this code, in a loop, on such a board.
fn told(code: &[u8], shared: bool, slice: u64) -> (Told, Bench) {
    let mut b = Bench::long();
    let at = b.get(crate::cpu::RIP);
    let back = -i8::try_from(code.len() + 2).unwrap();
    for (n, &byte) in code.iter().chain(&[0xeb, back as u8]).enumerate() {
        b.put(at + n as u64, byte);
    }
    let told = Arc::new(Mutex::new(Told::default()));
    let cpu = b.cpu();
    cpu.shared = shared;
    cpu.budget = 0;
    cpu.budget_given = 0;
    cpu.retired_base = 0;
    cpu.platform = Box::new(Ear {
        told: Arc::clone(&told),
        attention: cpu.attention.clone(),
        slice,
    });
    assert_eq!(b.runner.run(), vcpu::RunExit::Stopped);
    let told = std::mem::take(&mut *told.lock().unwrap());
    (told, b)
}

/// The host may have taken its time: what is due is not to wait for the end of a long slice. What is cut off does not
/// count as executed.
#[test]
fn a_vcpu_that_gives_way_ends_its_slice() {
    // PAUSE; NOP; INC RAX; JMP: 4 instructions, and it gives way at each sixteenth round.
    let (told, mut b) = told(&[0xf3, 0x90, 0x90, 0x48, 0xff, 0xc0], true, 30_000);
    assert_eq!(told.gave_way, [64, 128, 192]);
    assert_eq!(told.polls, [0, 64, 128, 192]);
    let rounds = b.get(RAX);
    assert!(rounds >= 48);
    assert_eq!(b.cpu().retired_now(), 4 * rounds);
}

/// One that is alone never does: every slice is as long as the board says.
#[test]
fn a_vcpu_alone_keeps_its_slice() {
    let (told, mut b) = told(&[0xf3, 0x90, 0x90, 0x48, 0xff, 0xc0], false, 400);
    assert!(told.gave_way.is_empty());
    assert_eq!(told.polls, [0, 400, 800, 1200]);
    assert_eq!(b.cpu().retired_now(), 4 * b.get(RAX));
}

/// The board wants to be polled in the middle of a slice.
#[test]
fn a_look_that_is_asked_for_ends_the_slice() {
    let mut b = Bench::long();
    let at = b.get(crate::cpu::RIP);
    b.put(at, 0xfeeb_u16);
    let told = Arc::new(Mutex::new(Told::default()));
    let cpu = b.cpu();
    let attention = cpu.attention.clone();
    cpu.platform = Box::new(Ear {
        told: Arc::clone(&told),
        attention: attention.clone(),
        slice: i64::MAX as u64,
    });
    let runner = std::thread::spawn(move || b.runner.run());
    // Its own slice would end in a century.
    for looks in 2..=4 {
        while told.lock().unwrap().polls.len() < looks {
            attention.raise(Attention::LOOK);
            std::thread::yield_now();
        }
    }
    assert_eq!(runner.join().expect("no panic"), vcpu::RunExit::Stopped);
}
