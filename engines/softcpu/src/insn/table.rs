//! The instruction table: what drives dispatch, block building, analysis and test generation.
//!
//! Operands, sizes and flag effects of each form come from the decoder's own tables (iced-x86's op-code and
//! instruction information); this table adds what only this processor knows. Mnemonics without a row are
//! vector and floating-point instructions, which the host executes, or do not exist here.

use std::sync::LazyLock;

use iced_x86::Mnemonic;
use iced_x86::Mnemonic as M;

use super::form::Form;
use super::{
    alu, bits, control, control_registers, data, descriptor_tables, far, fast_call, flag,
    interrupt, monitor, msr, muldiv, port, segment, selector, shift, sse4a, stack, string, system,
    translation, xsave,
};
use crate::code::{Handler, Op};

/// Who may execute an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Anyone.
    User,
    /// CPL at most IOPL, or the I/O bitmap.
    Io,
    /// CPL 0.
    Supervisor,
}

/// How a translator is to treat an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Worth native code.
    Native,
    /// Call the interpreter's handler.
    Helper,
}

/// Where the handler of a mnemonic comes from.
#[derive(Clone, Copy)]
pub enum Bind {
    /// A binder of this crate.
    Here(fn(&Form, &mut Op) -> Option<Handler>),
    /// A string instruction that shares its mnemonic with a vector one (MOVSD, CMPSD).
    StringOrHost(fn(&Form, &mut Op) -> Option<Handler>),
    /// The VT-x instructions.
    Vmx,
}

/// What is known of a mnemonic.
#[derive(Clone, Copy)]
pub struct Row {
    /// The mnemonic.
    pub mnemonic: Mnemonic,
    /// Who may execute it.
    pub privilege: Privilege,
    /// A hypervisor may ask to see it.
    pub intercepted: bool,
    /// Nothing after it belongs to its block: it transfers control, or changes what decoding or event
    /// delivery depend on.
    pub ends_block: bool,
    /// For a translator.
    pub strategy: Strategy,
    /// Its binder.
    pub bind: Bind,
}

macro_rules! rows {
    ($( [$($m:ident),+ $(,)?] $privilege:ident $icpt:ident $end:ident $strategy:ident $bind:expr; )*) => {
        &[$($(Row {
            mnemonic: M::$m,
            privilege: Privilege::$privilege,
            intercepted: rows!(@$icpt),
            ends_block: rows!(@$end),
            strategy: Strategy::$strategy,
            bind: $bind,
        },)+)*]
    };
    (@exits) => { true };
    (@quiet) => { false };
    (@ends) => { true };
    (@flows) => { false };
}

use Bind::{Here, StringOrHost};

static ROWS: &[Row] = rows! {
    [Add] User quiet flows Native Here(alu::bind_add);
    [Adc] User quiet flows Native Here(alu::bind_adc);
    [Sub] User quiet flows Native Here(alu::bind_sub);
    [Sbb] User quiet flows Native Here(alu::bind_sbb);
    [And] User quiet flows Native Here(alu::bind_and);
    [Or] User quiet flows Native Here(alu::bind_or);
    [Xor] User quiet flows Native Here(alu::bind_xor);
    [Cmp] User quiet flows Native Here(alu::bind_cmp);
    [Test] User quiet flows Native Here(alu::bind_test);
    [Inc] User quiet flows Native Here(alu::bind_inc);
    [Dec] User quiet flows Native Here(alu::bind_dec);
    [Neg] User quiet flows Native Here(alu::bind_neg);
    [Not] User quiet flows Native Here(alu::bind_not);

    // A MOV to a segment, control or debug register ends its block by way of `ends_special`.
    [Mov] User quiet flows Native Here(data::bind_mov);
    [Movnti] User quiet flows Native Here(data::bind_movnti);
    [Movzx, Movsx, Movsxd] User quiet flows Native Here(data::bind_movx);
    [Lea] User quiet flows Native Here(data::bind_lea);
    [Xchg] User quiet flows Native Here(data::bind_xchg);
    [Xadd] User quiet flows Native Here(data::bind_xadd);
    [Cmpxchg] User quiet flows Native Here(data::bind_cmpxchg);
    [Cmpxchg8b] User quiet flows Helper Here(data::bind_cmpxchg_pair);
    [Cmpxchg16b] User quiet flows Native Here(data::bind_cmpxchg_pair);
    [Bswap] User quiet flows Native Here(data::bind_bswap);
    [Movbe] User quiet flows Native Here(data::bind_movbe);
    [Cmovo, Cmovno, Cmovb, Cmovae, Cmove, Cmovne, Cmovbe, Cmova, Cmovs, Cmovns, Cmovp, Cmovnp, Cmovl, Cmovge,
     Cmovle, Cmovg] User quiet flows Native Here(data::bind_cmov);
    [Seto, Setno, Setb, Setae, Sete, Setne, Setbe, Seta, Sets, Setns, Setp, Setnp, Setl, Setge, Setle, Setg]
        User quiet flows Native Here(data::bind_setcc);
    [Cbw, Cwde, Cdqe, Cwd, Cdq, Cqo] User quiet flows Native Here(data::bind_extend);
    [Xlatb] User quiet flows Helper Here(data::bind_xlat);

    [Shl, Sal, Shr, Sar, Rol, Ror, Rcl, Rcr] User quiet flows Native Here(shift::bind_shift);
    [Shld, Shrd] User quiet flows Native Here(shift::bind_double);
    [Shlx, Shrx, Sarx, Rorx] User quiet flows Native Here(shift::bind_flagless);

    [Mul, Imul, Div, Idiv] User quiet flows Native Here(muldiv::bind_muldiv);
    [Mulx] User quiet flows Native Here(muldiv::bind_mulx);
    [Adcx, Adox] User quiet flows Native Here(muldiv::bind_adx);
    [Daa, Das, Aaa, Aas, Aam, Aad] User quiet flows Helper Here(muldiv::bind_bcd);

    [Bt, Bts, Btr, Btc] User quiet flows Native Here(bits::bind_bt);
    [Bsf, Bsr, Tzcnt, Lzcnt, Popcnt] User quiet flows Native Here(bits::bind_scan);
    [Andn, Bextr, Blsi, Blsmsk, Blsr, Bzhi, Pdep, Pext] User quiet flows Native Here(bits::bind_bmi);
    [Crc32] User quiet flows Native Here(bits::bind_crc32);

    [Push] User quiet flows Native Here(stack::bind_push);
    // POP of a segment register ends its block by way of `ends_special`.
    [Pop] User quiet flows Native Here(stack::bind_pop);
    [Pusha, Pushad, Popa, Popad] User quiet flows Helper Here(stack::bind_all);
    [Pushf, Pushfd, Pushfq] User quiet flows Native Here(stack::bind_flags);
    [Popf, Popfd, Popfq] User quiet ends Helper Here(stack::bind_flags);
    [Leave] User quiet flows Native Here(stack::bind_frame);
    [Enter] User quiet flows Helper Here(stack::bind_frame);

    [Jo, Jno, Jb, Jae, Je, Jne, Jbe, Ja, Js, Jns, Jp, Jnp, Jl, Jge, Jle, Jg]
        User quiet ends Native Here(control::bind_jcc);
    [Jmp] User quiet ends Native Here(control::bind_jmp);
    [Call] User quiet ends Native Here(control::bind_call);
    [Ret] User quiet ends Native Here(control::bind_ret);
    [Loop, Loope, Loopne, Jcxz, Jecxz, Jrcxz] User quiet ends Native Here(control::bind_loop);

    [Retf] User quiet ends Helper Here(far::bind_retf);
    [Iret, Iretd, Iretq] User quiet ends Helper Here(far::bind_iret);
    [Int, Int3, Int1, Into] User quiet ends Helper Here(interrupt::bind_int);
    [Bound] User quiet flows Helper Here(interrupt::bind_bound);
    [Syscall, Sysret, Sysretq, Sysenter, Sysexit, Sysexitq] User quiet ends Helper Here(fast_call::bind_fast_call);
    [Lds, Les, Lfs, Lgs, Lss] User quiet ends Helper Here(segment::bind_load_far);
    [Lar, Lsl, Verr, Verw] User quiet flows Helper Here(selector::bind_probe);
    [Arpl] User quiet flows Helper Here(selector::bind_arpl);

    [Movsb, Movsw, Movsq, Stosb, Stosw, Stosd, Stosq, Lodsb, Lodsw, Lodsd, Lodsq, Scasb, Scasw, Scasd, Scasq,
     Cmpsb, Cmpsw, Cmpsq] User quiet flows Native Here(string::bind_string);
    [Movsd, Cmpsd] User quiet flows Native StringOrHost(string::bind_string);
    [Insb, Insw, Insd, Outsb, Outsw, Outsd] Io exits flows Helper Here(string::bind_string);

    [Clc, Stc, Cmc, Cld, Std, Lahf, Sahf, Salc] User quiet flows Native Here(flag::bind_flag);
    [Cli] Io quiet flows Native Here(flag::bind_flag);
    // The next instruction belongs to the block of an STI, and ends it.
    [Sti] Io quiet flows Native Here(flag::bind_flag);
    [Stac, Clac] Supervisor quiet flows Helper Here(flag::bind_flag);

    [In, Out] Io exits ends Helper Here(port::bind_io);
    [Cpuid] User exits flows Native Here(system::bind_plain);
    [Monitor] Supervisor exits flows Helper Here(monitor::bind_monitor);
    [Mwait] Supervisor exits ends Helper Here(monitor::bind_monitor);
    [Hlt] Supervisor exits ends Helper Here(system::bind_plain);
    [Rdpmc] User exits ends Helper Here(system::bind_plain);
    [Rdtsc, Rdtscp] User exits flows Helper Here(system::bind_plain);
    [Invd, Wbinvd, Wbnoinvd] Supervisor exits flows Helper Here(system::bind_plain);
    [Pause] User exits flows Native Here(system::bind_plain);
    [Swapgs] Supervisor quiet flows Native Here(segment::bind_base);
    [Rdfsbase, Rdgsbase, Wrfsbase, Wrgsbase] User quiet flows Helper Here(segment::bind_base);
    [Clflush, Clflushopt, Clwb, Clzero] User quiet flows Helper Here(system::bind_plain);
    [Rdrand, Rdseed] User exits flows Helper Here(system::bind_plain);
    [Rdpid] User quiet flows Helper Here(system::bind_plain);
    [Wait] User quiet flows Helper Here(system::bind_plain);
    [Nop, Endbr64, Endbr32, Lfence, Sfence, Mfence, Prefetchw, Prefetchnta, Prefetcht0, Prefetcht1,
     Prefetcht2, Reservednop] User quiet flows Native Here(system::bind_plain);

    [Clts, Lmsw] Supervisor exits ends Helper Here(control_registers::bind_msw);
    [Smsw] User quiet flows Helper Here(control_registers::bind_msw);
    [Lgdt, Lidt] Supervisor exits flows Helper Here(descriptor_tables::bind_table);
    [Sgdt, Sidt] User exits flows Helper Here(descriptor_tables::bind_table);
    [Lldt, Ltr] Supervisor exits flows Helper Here(descriptor_tables::bind_system_selector);
    [Sldt, Str] User exits flows Helper Here(descriptor_tables::bind_system_selector);
    [Invlpg, Invpcid] Supervisor exits ends Helper Here(translation::bind_tlb);

    [Rdmsr, Wrmsr, Xsetbv] Supervisor exits ends Helper Here(msr::bind_msr);
    [Rdpkru, Wrpkru] User quiet flows Helper Here(msr::bind_msr);
    [Xgetbv] User quiet flows Helper Here(msr::bind_msr);

    [Extrq, Insertq, Movntss, Movntsd] User quiet flows Helper Here(sse4a::bind_sse4a);

    [Fxsave, Fxsave64, Fxrstor, Fxrstor64, Xsave, Xsave64, Xsaveopt, Xsaveopt64, Xsavec, Xsavec64, Xsaves, Xsaves64,
     Xrstor, Xrstor64, Xrstors, Xrstors64, Ldmxcsr, Stmxcsr, Vldmxcsr, Vstmxcsr] User quiet flows Helper Here(xsave::bind_state);

    [Vmxon, Vmxoff, Vmptrld, Vmptrst, Vmclear, Vmlaunch, Vmresume, Invept, Invvpid]
        Supervisor exits ends Helper Bind::Vmx;
    [Vmread, Vmwrite] Supervisor exits flows Helper Bind::Vmx;
    [Vmcall, Vmfunc] User exits ends Helper Bind::Vmx;
};

static BY_MNEMONIC: LazyLock<Vec<Option<&'static Row>>> = LazyLock::new(|| {
    let mut by = vec![None; Mnemonic::values().len()];
    for row in ROWS {
        by[row.mnemonic as usize] = Some(row);
    }
    by
});

/// The row of a mnemonic.
pub fn row(mnemonic: Mnemonic) -> Option<&'static Row> {
    BY_MNEMONIC.get(mnemonic as usize).copied().flatten()
}

/// Every row.
pub fn rows() -> &'static [Row] {
    ROWS
}
