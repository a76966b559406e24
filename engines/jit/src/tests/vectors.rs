//! When the host's vector registers are the guest's, and when they must not be.

use super::{DATA, End, Machine, NOWHERE, TABLE};

const ONES: u128 = 0x3f80_0000_3f80_0000_3f80_0000_3f80_0000;
const TWOS: u128 = 0x4000_0000_4000_0000_4000_0000_4000_0000;
const THREES: u128 = 0x4040_0000_4040_0000_4040_0000_4040_0000;

/// ADDPS XMM0, XMM1.
const ADD: [u8; 3] = [0x0f, 0x58, 0xc1];
/// DIVPS XMM2, XMM3.
const DIVIDE: [u8; 3] = [0x0f, 0x5e, 0xd3];
/// PADDD XMM4, XMM4.
const DOUBLE: [u8; 4] = [0x66, 0x0f, 0xfe, 0xe4];
/// XLATB: by its handler.
const BY_HANDLER: [u8; 1] = [0xd7];

fn machine() -> Machine {
    let mut m = Machine::translated();
    m.set_xmm(0, ONES);
    m.set_xmm(1, ONES);
    m.set_xmm(2, ONES);
    m.set_xmm(3, THREES);
    m.set_xmm(4, 1);
    m
}

fn program(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// SDM Vol 3 2.5, CR0.TS.
#[test]
fn task_switched_while_they_are_the_guests() {
    let mut m = machine();
    // mov rax, cr0; or rax, 8; mov cr0, rax
    let set_ts: &[u8] = &[0x0f, 0x20, 0xc0, 0x48, 0x83, 0xc8, 8, 0x0f, 0x22, 0xc0];
    let p = program(&[&ADD, set_ts, &BY_HANDLER, &ADD]);
    assert_eq!(m.run(&p), End::Fault { vector: 7, at: 14 });
    assert_eq!(m.xmm(0), TWOS, "added once");
}

/// SDM Vol 2 Table 2-21: #UD, before #NM.
#[test]
fn neither_em_nor_osfxsr_nor_osxsave_is_passed_over() {
    type Change = fn(&mut Machine);
    let vex: &[u8] = &[0xc5, 0xf8, 0x58, 0xc1];
    let cases: [(Change, &[u8], u64); 6] = [
        (|m| m.state.system.cr0 |= 4, &ADD, 6),
        (|m| m.state.system.cr0 |= 8, vex, 7),
        (|m| m.state.system.cr0 |= 12, &ADD, 6),
        (|m| m.state.system.cr4 &= !0x200, &ADD, 6),
        (|m| m.state.system.cr4 &= !0x4_0000, vex, 6),
        (|m| m.state.system.xcr0 = 3, vex, 6),
    ];
    for (number, (change, instruction, vector)) in cases.into_iter().enumerate() {
        let mut m = machine();
        change(&mut m);
        let p = program(&[&BY_HANDLER, instruction, &ADD]);
        let fault = End::Fault { vector, at: 1 };
        assert_eq!(m.run(&p), fault, "case {number}");
        assert_eq!(m.xmm(0), ONES);
    }
    // VEX instructions do not mind EM, nor OSFXSR.
    let mut m = machine();
    m.state.system.cr0 |= 4;
    m.state.system.cr4 &= !0x200;
    assert_eq!(m.run(vex), End::Whole);
    assert_eq!(m.xmm(0), TWOS);
}

/// One third is inexact (SDM Vol 1 11.5.2.6): MXCSR's bit 5, seen by whoever looks behind it.
#[test]
fn state_that_is_saved_is_the_state_of_now() {
    let mut m = machine();
    // stmxcsr [rsi]; divps; stmxcsr [rsi+4]; fxsave64 [rdi]; mov eax, 7; xor edx, edx; xsave64 [rbx]
    let p = program(&[
        &[0x0f, 0xae, 0x1e],
        &DIVIDE,
        &[0x0f, 0xae, 0x5e, 4],
        &DOUBLE,
        &[0x48, 0x0f, 0xae, 0x07],
        &DOUBLE,
        &[0xb8, 7, 0, 0, 0, 0x31, 0xd2, 0x48, 0x0f, 0xae, 0x23],
    ]);
    assert_eq!(m.run(&p), End::Whole);
    let mxcsr = |at| u32::from_le_bytes(m.get(at));
    assert_eq!(mxcsr(DATA[0]), 0x1f80);
    assert_eq!(mxcsr(DATA[0] + 4), 0x1fa0);
    assert_eq!(mxcsr(DATA[1] + 24), 0x1fa0);
    assert_eq!(mxcsr(DATA[2] + 24), 0x1fa0);
    assert_eq!(m.mxcsr(), 0x1fa0);
    let third = 0x3eaa_aaab_3eaa_aaab_3eaa_aaab_3eaa_aaab_u128;
    for at in [DATA[1], DATA[2]] {
        assert_eq!(m.get(at + 160 + 32), third.to_le_bytes());
    }
    assert_eq!(m.get(DATA[1] + 160 + 64), 2u128.to_le_bytes());
    assert_eq!(m.get(DATA[2] + 160 + 64), 4u128.to_le_bytes());
    // XSTATE_BV: SSE, and no AVX state that is not initial (SDM Vol 1 13.6).
    assert_eq!(m.get(DATA[2] + 512), 2u64.to_le_bytes());
}

#[test]
fn what_is_before_a_fault_is_done_and_what_is_behind_is_not() {
    for (address, vector) in [(NOWHERE, 14), (DATA[0] + 8, 13)] {
        let mut m = machine();
        m.state.gpr[0] = address;
        let before = m.vcpu.retired();
        // addps xmm0, [rax]
        let p = program(&[&ADD, &DIVIDE, &[0x0f, 0x58, 0x00], &ADD]);
        assert_eq!(m.run(&p), End::Fault { vector, at: 6 });
        assert_eq!(m.xmm(0), TWOS, "added once");
        assert_eq!(m.mxcsr(), 0x1fa0);
        // Two, the delivery, and the OUT of its handler.
        let executed = m.vcpu.retired().unwrap() - before.unwrap();
        assert_eq!(executed, 4);
    }
}

/// SDM Vol 1 11.5.4; division by zero is MXCSR's bit 2, its mask bit 9.
#[test]
fn exceptions_that_are_not_masked_are_taken() {
    let mut m = machine();
    m.set_xmm(3, 0);
    m.put(DATA[0], &0x1d80u32.to_le_bytes());
    // ldmxcsr [rsi]
    let p = program(&[&ADD, &[0x0f, 0xae, 0x16], &DOUBLE, &DIVIDE, &ADD]);
    assert_eq!(m.run(&p), End::Fault { vector: 19, at: 10 });
    assert_eq!((m.xmm(0), m.xmm(2), m.xmm(4)), (TWOS, ONES, 2));
    assert_eq!(m.mxcsr(), 0x1d84);
}

/// SDM Vol 2, LDMXCSR: bits that MXCSR has not are #GP(0).
#[test]
fn mxcsr_is_loaded_here_if_nothing_is_to_be_raised() {
    // mov eax, [rsi]; divps; ldmxcsr [rsi]; divps; stmxcsr [rdi]; stmxcsr [rdi+4]
    let p = program(&[
        &[0x8b, 0x06],
        &DIVIDE,
        &[0x0f, 0xae, 0x16],
        &DIVIDE,
        &[0x0f, 0xae, 0x1f],
        &[0x0f, 0xae, 0x5f, 4],
    ]);
    let after = |value: u32| {
        let mut m = machine();
        m.put(DATA[0], &value.to_le_bytes());
        let end = m.run(&p);
        (end, m.mxcsr(), u64::from_le_bytes(m.get(DATA[1])))
    };
    let whole = |mxcsr: u32| {
        let stored = u64::from(mxcsr) << 32 | u64::from(mxcsr);
        (End::Whole, mxcsr, stored)
    };
    // One third, and a third of that, are inexact.
    assert_eq!(after(0x1f80), whole(0x1fa0));
    assert_eq!(after(0xff81), whole(0xffa1));
    // Overflow is not masked, and there is none; inexactness is not masked.
    assert_eq!(after(0x1b80), whole(0x1ba0));
    let fault = |vector, at| End::Fault { vector, at };
    assert_eq!(after(0x0f80), (fault(19, 8), 0x0fa0, 0));
    for bit in [16, 17, 31] {
        assert_eq!(after(0x1f80 | 1 << bit), (fault(13, 5), 0x1fa0, 0));
    }
}

#[test]
fn stores_need_the_right_to_write() {
    // movaps [rdi], xmm0; vmovups [rdi], ymm0; movss [rdi], xmm0; stmxcsr [rdi]
    let stores: [&[u8]; 4] = [
        &[0x0f, 0x29, 0x07],
        &[0xc5, 0xfc, 0x11, 0x07],
        &[0xf3, 0x0f, 0x11, 0x07],
        &[0x0f, 0xae, 0x1f],
    ];
    for store in stores {
        let mut m = machine();
        // Present, and no more.
        m.put(TABLE + 8 * (DATA[1] >> 12), &(DATA[1] | 1).to_le_bytes());
        // mov eax, [rdi]
        let p = program(&[&[0x8b, 0x07], store]);
        assert_eq!(m.run(&p), End::Fault { vector: 14, at: 2 });
        assert_eq!(m.get(DATA[1]), [0; 32]);
    }
}

#[test]
fn stores_past_the_caches_store() {
    let mut m = machine();
    m.state.gpr[2] = 0x1122_3344_5566_7788;
    m.state.gpr[9] = 0x99aa_bbcc_ddee_ff00;
    m.state.extended.ymm_high[4] = 7;
    // mov [rdi], eax; movnti [rdi], rdx; movnti [rdi+8], r9d; movntps [rdi+16], xmm0; movntpd [rdi+32], xmm1;
    // movntdq [rdi+48], xmm2; vmovntdq [rdi+64], ymm4
    let p = program(&[
        &[0x89, 0x07],
        &[0x48, 0x0f, 0xc3, 0x17],
        &[0x44, 0x0f, 0xc3, 0x4f, 8],
        &[0x0f, 0x2b, 0x47, 16],
        &[0x66, 0x0f, 0x2b, 0x4f, 32],
        &[0x66, 0x0f, 0xe7, 0x57, 48],
        &[0xc5, 0xfd, 0xe7, 0x67, 64],
    ]);
    m.set_xmm(1, TWOS);
    m.set_xmm(2, THREES);
    assert_eq!(m.run(&p), End::Whole);
    let [low, high, ones, twos, threes, four, seven] =
        [0, 8, 16, 32, 48, 64, 80].map(|at| u128::from_le_bytes(m.get(DATA[1] + at)));
    assert_eq!(low as u64, 0x1122_3344_5566_7788);
    assert_eq!(high as u64, 0xddee_ff00);
    assert_eq!((ones, twos, threes), (ONES, TWOS, THREES));
    assert_eq!((four, seven), (1, 7));
}

#[test]
fn a_block_goes_on_behind_an_access_that_missed() {
    let mut m = machine();
    m.put(DATA[0], &5u128.to_le_bytes());
    m.put(DATA[1], &7u128.to_le_bytes());
    // paddd xmm4, [rsi]; paddd xmm4, [rdi]; movdqa [rbx], xmm4; paddd xmm4, xmm4
    let p = program(&[
        &[0x66, 0x0f, 0xfe, 0x26],
        &[0x66, 0x0f, 0xfe, 0x27],
        &[0x66, 0x0f, 0x7f, 0x23],
        &DOUBLE,
    ]);
    assert_eq!(m.run(&p), End::Whole);
    assert_eq!(m.get(DATA[2]), 13u128.to_le_bytes());
    assert_eq!(m.xmm(4), 26);
}

/// SDM Vol 1 14.1.2: legacy instructions leave the upper halves alone, VEX ones clear what they do not compute.
#[test]
fn upper_halves_survive_handlers_and_legacy_instructions() {
    let mut m = machine();
    m.state.extended.ymm_high[0] = 10;
    m.state.extended.ymm_high[4] = 40;
    m.state.extended.ymm_high[9] = 90;
    // vpaddd ymm4, ymm4, ymm0; vpaddd xmm9, xmm9, xmm9
    let p = program(&[
        &DOUBLE,
        &BY_HANDLER,
        &DOUBLE,
        &[0xc5, 0xdd, 0xfe, 0xe0],
        &DOUBLE,
        &BY_HANDLER,
        &[0xc4, 0x41, 0x31, 0xfe, 0xc9],
    ]);
    assert_eq!(m.run(&p), End::Whole);
    let high = &m.state.extended.ymm_high;
    assert_eq!((high[0], high[4], high[9]), (10, 50, 0));
    // vzeroupper
    assert_eq!(m.run(&[0xc5, 0xf8, 0x77]), End::Whole);
    assert_eq!(m.state.extended.ymm_high, [0; 16]);
}
