//! The code every translation shares: the way in, the ways out, the call of a handler, the look-up by address.
//!
//! None of it touches the guest's arithmetic flags but where it has saved them.

use crate::asm::{Asm, Legacy, Mem, Reg, Rm};
use crate::crossing::Crossings;
use crate::layout::{
    ADDRESS, BUDGET, BUDGET_PLACE, ENTRY, FLAGS, GUEST_RCX, LEAF_KEY, LEAF_MASK, LEFT, MAPPED,
    PAGE, RCX, SLOT, STACK, THIS, VIEW, VIEW_ADDRESS, leaf_answer, register,
};
use crate::sites::{Counting, emit_counting};
use crate::table::{emit_look_up, emit_search};
use crate::vectors;
use hostexec::CodeArea;
use softcpu::cpu::RIP;
use softcpu::insn::known_leaves::SPREAD;

/// In `LEFT`: no way that could be joined.
pub const NO_WAY: u64 = u64::MAX;
/// In `LEFT`: a handler left; it has said why elsewhere.
pub const HANDLER: u64 = u64::MAX - 1;

/// What a handler returns if its block goes on.
pub const GOES_ON: u64 = 0;
/// What it returns if the code is to be left.
pub const LEAVES: u64 = 1;
/// What it returns if the block is over and the one at RIP is to be gone on with.
pub const ELSEWHERE: u8 = 2;

const RAX: Reg = Reg(0);
/// RBX, RBP, R12 to R15: what a called function has to keep.
const KEPT: [u8; 6] = [3, 5, 12, 13, 14, 15];

/// Addresses of the shared code.
#[derive(Clone, Copy, Debug)]
pub struct Stubs {
    /// [`emit_search`].
    pub search: u64,
    /// A function of the address of [`softcpu::cpu::Cpu`] that runs the code at [`ENTRY`].
    pub enter: u64,
    /// Leaves between two blocks; the offset of the next in the page is in [`ADDRESS`].
    pub boundary: u64,
    /// Like `boundary`, by the way whose number is in [`SLOT`].
    pub way: u64,
    /// Calls the handler of the record whose number is in ECX, and returns if the block goes on. If only another one
    /// does, looks for that.
    pub helper: u64,
    /// Tells of the bytes stored at the host's address in [`ADDRESS`], as many as [`SLOT`] says, and returns.
    pub stored: u64,
    /// [`emit_cpuid`].
    pub cpuid: u64,
    /// [`emit_counting`].
    pub counting: Counting,
    /// Reads of two pages.
    pub crossings: Crossings,
    /// [`vectors::give_sse`].
    pub sse: u64,
    /// [`vectors::give_avx`].
    pub avx: u64,
    /// [`vectors::give_x87`].
    pub x87: u64,
}

/// A function that does what CPUID does; RCX is zero then. Else the answer is not known, and nothing was done.
fn emit_cpuid(a: &mut Asm) {
    const RET: u8 = 0xc3;
    // The key, from leaf and subleaf.
    a.move_32(RCX, Rm::Reg(GUEST_RCX));
    a.rorx(RCX, RCX, 32);
    a.move_32(SLOT, Rm::Reg(RAX));
    a.lea(RCX, Mem::indexed(RCX, SLOT, 0, 0));
    a.rorx(SLOT, RCX, SPREAD as u8);
    a.lea(SLOT, Mem::indexed(SLOT, RCX, 0, 0));
    a.extract(SLOT, SLOT, LEAF_MASK);
    a.load(ADDRESS, LEAF_KEY);
    a.lea(RCX, Mem::indexed(RCX, ADDRESS, 0, 0));
    let known = a.if_zero();
    a.raw(&[RET]);
    a.land(known);
    a.lea(SLOT, Mem::indexed(SLOT, SLOT, 0, 0));
    for (number, register) in [RAX, Reg(3), GUEST_RCX, Reg(2)].into_iter().enumerate() {
        a.move_32(register, Rm::Mem(leaf_answer(number)));
    }
    a.raw(&[RET]);
}

fn save(a: &mut Asm) {
    for (guest, host) in MAPPED {
        a.store(register(usize::from(guest)), host);
    }
    a.flags_to_rax();
    a.store(FLAGS, RAX);
    a.store(BUDGET_PLACE, BUDGET);
}

fn restore(a: &mut Asm) {
    a.load(BUDGET, BUDGET_PLACE);
    a.load(VIEW, VIEW_ADDRESS);
    a.load(RAX, FLAGS);
    a.flags_from_rax();
    for (guest, host) in MAPPED.into_iter().rev() {
        a.load(host, register(usize::from(guest)));
    }
}

fn push_or_pop(a: &mut Asm, opcode: u8, reg: u8) {
    let i = Legacy {
        opcode: &[opcode],
        ..Legacy::default()
    };
    a.in_opcode(&i, Reg(reg));
}

fn leave(a: &mut Asm) {
    a.lea(STACK, Mem::at(STACK, 8));
    for reg in KEPT.into_iter().rev() {
        push_or_pop(a, 0x58, reg);
    }
    a.raw(&[0xc3]);
}

/// Calls a function wherever it is.
fn call_far(a: &mut Asm, function: u64) {
    let wide = Legacy {
        wide: true,
        opcode: &[0xb8],
        ..Legacy::default()
    };
    a.in_opcode(&wide, RAX);
    a.raw(&function.to_le_bytes());
    let call = Legacy {
        opcode: &[0xff],
        ..Legacy::default()
    };
    a.legacy(&call, 2, Rm::Reg(RAX));
}

impl Stubs {
    /// Writes them to an empty area. `handler` is a function of the address of the processor and the number of a
    /// record that returns [`GOES_ON`], [`LEAVES`] or [`ELSEWHERE`]; `told` one of that, the address of a byte of RAM
    /// on the host, and how many from there on were stored. `places_told` is the address of a
    /// [`crate::sites::Noted`].
    ///
    /// # Panics
    /// The area is too small for them.
    pub fn new(area: &mut CodeArea, handler: u64, told: u64, places_told: u64) -> Self {
        let mut a = Asm::new(area.next_address());
        let at = |a: &Asm| a.origin + a.here() as u64;

        let sse = at(&a);
        vectors::give_sse(&mut a);
        let avx = at(&a);
        vectors::give_avx(&mut a);
        let x87_back = at(&a);
        vectors::take_back_x87(&mut a);
        let take_back = at(&a);
        vectors::take_back(&mut a, x87_back);
        let x87 = at(&a);
        vectors::give_x87(&mut a, take_back);

        let search = at(&a);
        emit_search(&mut a);
        let counting = emit_counting(&mut a, places_told);
        let crossings = Crossings::emit(&mut a);

        let cpuid = at(&a);
        emit_cpuid(&mut a);

        let enter = at(&a);
        for reg in KEPT {
            push_or_pop(&mut a, 0x50, reg);
        }
        a.lea(STACK, Mem::at(STACK, -8));
        restore(&mut a);
        a.through(false, ENTRY);

        let boundary = at(&a);
        a.load(RCX, PAGE);
        a.lea(ADDRESS, Mem::indexed(ADDRESS, RCX, 0, 0));
        let boundary_at = at(&a);
        a.set_signed(SLOT, -1);
        let out = at(&a);
        a.store(LEFT, SLOT);
        a.store(register(RIP), ADDRESS);
        save(&mut a);
        a.call(take_back);
        leave(&mut a);

        let way = at(&a);
        a.load(RCX, PAGE);
        a.lea(ADDRESS, Mem::indexed(ADDRESS, RCX, 0, 0));
        a.jump(out);

        let helper = at(&a);
        save(&mut a);
        a.mov(Reg(6), RCX);
        a.call(take_back);
        a.load(Reg(7), THIS);
        a.lea(STACK, Mem::at(STACK, -8));
        call_far(&mut a, handler);
        // For the call's alignment before, for the return address now.
        a.mov(RCX, RAX);
        a.lea(STACK, Mem::at(STACK, 8));
        let goes_on = a.if_zero();
        a.lea(STACK, Mem::at(STACK, 8));
        a.lea(RCX, Mem::at(RCX, -i32::from(ELSEWHERE)));
        let elsewhere = a.if_zero();
        leave(&mut a);
        a.land(elsewhere);
        let far = a.jump(0);
        a.land(goes_on);
        restore(&mut a);
        a.raw(&[0xc3]);
        let here = a.here();
        a.aim(far, here);
        restore(&mut a);
        a.load(ADDRESS, register(RIP));
        emit_look_up(&mut a, search, |a| {
            let found = a.if_zero();
            a.load(ADDRESS, register(RIP));
            a.jump(boundary_at);
            a.land(found);
        });
        a.store(PAGE, ADDRESS);
        a.jump_reg(SLOT);

        let stored = at(&a);
        save(&mut a);
        a.mov(Reg(6), ADDRESS);
        a.mov(Reg(2), SLOT);
        a.call(take_back);
        a.load(Reg(7), THIS);
        a.lea(STACK, Mem::at(STACK, -8));
        call_far(&mut a, told);
        a.lea(STACK, Mem::at(STACK, 8));
        restore(&mut a);
        a.raw(&[0xc3]);

        assert!(
            area.append(&a.code).is_some(),
            "an empty area has room for the stubs"
        );
        Self {
            search,
            enter,
            boundary,
            way,
            helper,
            stored,
            cpuid,
            counting,
            crossings,
            sse,
            avx,
            x87,
        }
    }
}
