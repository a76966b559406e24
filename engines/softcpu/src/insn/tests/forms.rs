//! Every instruction form of every extension a model shows is bound to a handler, or named here with the reason.

use std::collections::{BTreeMap, HashMap};

use iced_x86::{Code, CpuidFeature as F, Decoder, EncodingKind, Instruction, Mnemonic};
use vcpu::cpuid::CpuModel;

use crate::code::{Handler, Mode, Op};
use crate::insn::{self, HostSide};
use crate::testing::{Bench, model_of};

/// Extensions no model shows; their forms do not exist here (#UD).
fn not_shown(feature: F) -> bool {
    use F::*;
    #[rustfmt::skip]
    let known = !matches!(
        feature,
        INTEL8086 | INTEL186 | INTEL286 | INTEL386 | INTEL486 | X64 | CMOV | CPUID | CX8 | FPU | FPU287 | FPU387
        | FXSR | MMX | MULTIBYTENOP | PAUSE | SSE | SSE2 | CLFSH | SYSCALL | ADX | AES | AVX | AVX2 | BMI1 | BMI2
        | CLFLUSHOPT | CLWB | CMPXCHG16B | F16C | FMA | GFNI | LZCNT | MOVBE | PCLMULQDQ | POPCNT | PREFETCHW | SHA
        | SSE3 | SSSE3 | SSE4_1 | SSE4_2 | VAES | VPCLMULQDQ | XSAVE | XSAVEC | XSAVEOPT | XSAVES | MONITOR | PKU
        | FSGSBASE | INVPCID | RDPID | RDRAND | RDSEED | RDTSCP | SMAP | RDPMC | SEP | MSR | TSC | VMX
        | SSE4A | CLZERO | WBNOINVD | INTEL486_A_ONLY | INTEL386_A0_ONLY | INTEL386_ONLY | INTEL8086_ONLY
        | INTEL286_ONLY
    );
    known
}

/// Why a form has no handler of its own.
fn exception(code: Code) -> Option<&'static str> {
    use Mnemonic as M;
    let form = code.op_code();
    if !form.is_instruction() {
        return Some("a directive of the assembler");
    }
    if !matches!(
        form.encoding(),
        EncodingKind::Legacy | EncodingKind::VEX | EncodingKind::D3NOW
    ) {
        return Some("EVEX, XOP and MVEX are not shown");
    }
    if form.fwait() {
        return Some("WAIT and an instruction: two instructions, each with its handler");
    }
    if code.cpuid_features().iter().any(|f| not_shown(*f)) {
        return Some("an extension no model shows");
    }
    Some(match code.mnemonic() {
        M::Ud0 | M::Ud1 | M::Ud2 => "defined to be #UD",
        // Its handler does what that of no instruction does, and a compiler may make one function of the two.
        M::Vmfunc => {
            "#UD without the control that enables VM functions, which is not shown (SDM Vol 3 26.5.6.2)"
        }
        _ if hint(code) => "a hint: read as one of the reserved NOPs (SDM Vol 2 table A-3)",
        M::Loadall | M::Ibts | M::Xbts | M::Smint | M::Rdshr | M::Wrshr => {
            "only on processors before the Pentium"
        }
        _ => return by_code(code),
    })
}

/// Opcodes 0F 0D and 0F 18 to 0F 1F that do nothing here but be NOPs, whatever extension names them.
fn hint(code: Code) -> bool {
    let name = format!("{code:?}");
    name.starts_with("Prefetch") || name.starts_with("Nop_rm")
}

fn by_code(code: Code) -> Option<&'static str> {
    let name = format!("{code:?}");
    let tests: &[(&str, &str)] = &[
        ("_tr", "test registers: not since the Pentium"),
        ("_Cs", "POP CS: the 8086 alone"),
    ];
    let old = code.cpuid_features().iter().any(|f| {
        let f = format!("{f:?}");
        f.ends_with("_ONLY")
    });
    if old {
        return Some("only on processors before the Pentium");
    }
    tests
        .iter()
        .find(|(part, _)| name.ends_with(part))
        .map(|(_, why)| *why)
}

/// Encodings to look for forms in: every opcode of every map, with every prefix that selects a form, every ModRM byte
/// that does, and its registers.
fn encodings(mut each: impl FnMut(&[u8])) {
    const TAIL: [u8; 10] = [0x12, 0x34, 0x56, 0x78, 0x12, 0x34, 0x56, 0x78, 0, 0];
    // mod = 3 with each rm; mod = 0 with a base register; SIB with different registers as base and index.
    let modrms: Vec<u8> = (0..=255)
        .filter(|m| m >> 6 == 3 || m & 0xc7 == 3 || m & 0xc7 == 4)
        .collect();
    let prefixes: [&[u8]; 6] = [&[], &[0x66], &[0xf2], &[0xf3], &[0x66, 0xf2], &[0x66, 0xf3]];
    let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    let mut bytes = Vec::new();
    let mut put = |parts: &[&[u8]], opcode: u8, modrm: u8| {
        bytes.clear();
        for part in parts {
            bytes.extend_from_slice(part);
        }
        bytes.extend_from_slice(&[opcode, modrm]);
        bytes.extend_from_slice(&TAIL);
        each(&bytes);
    };
    for opcode in 0..=255 {
        for &modrm in &modrms {
            for address in [&[][..], &[0x67]] {
                for prefix in prefixes {
                    for rex in [&[][..], &[0x48], &[0x41]] {
                        for map in maps {
                            put(&[address, prefix, rex, map], opcode, modrm);
                        }
                    }
                }
            }
            for map in 1..4 {
                for pp_l_w in 0..16u8 {
                    let (pp, l, w) = (pp_l_w & 3, pp_l_w >> 2 & 1, pp_l_w >> 3);
                    // No register beyond 7; VVVV is 15, "none", or 2.
                    for vvvv in [0x78, 0x68] {
                        let vex = [0xc4, 0xe0 | map, w << 7 | vvvv | l << 2 | pp];
                        put(&[&vex], opcode, modrm);
                        put(&[&[0x67], &vex], opcode, modrm);
                    }
                }
            }
        }
    }
}

/// What was found of a form in a mode.
#[derive(Default)]
struct Found {
    bound: bool,
    tries: u32,
}

/// Decodes all encodings as a model does and binds what comes out.
fn look(cpu: CpuModel, found: &mut HashMap<(Code, u8), Found>) {
    let mut b = Bench::long_with(model_of(cpu));
    for f in found.values_mut() {
        f.tries = 0;
    }
    let cpu = b.cpu();
    let options = cpu.vectors.decoder_options();
    let mut insn = Instruction::default();
    for bits in [16u8, 32, 64] {
        let mode = Mode {
            bits,
            big_stack: bits == 32,
            single: false,
        };
        encodings(|bytes| {
            Decoder::with_ip(u32::from(bits), bytes, 0, options).decode_out(&mut insn);
            if insn.is_invalid() {
                return;
            }
            let f = found.entry((insn.code(), bits)).or_default();
            // Some operands make an instruction undefined, so that more than one has to be tried.
            if f.bound || f.tries >= 300 {
                return;
            }
            f.tries += 1;
            let mut op = Op::default();
            let mut side = HostSide {
                host: &mut cpu.host,
                table: &mut cpu.vectors,
            };
            insn::bind(&insn, mode, &mut side, &mut op);
            assert!(!cpu.vectors.full, "the code area is full");
            f.bound = !std::ptr::fn_addr_eq(op.run, insn::invalid_opcode as Handler);
        });
    }
}

/// In every mode that has the form, with registers and with memory operands.
#[test]
fn every_form_of_what_models_show_has_a_handler() {
    let mut found = HashMap::new();
    look(CpuModel::Max, &mut found);
    look(CpuModel::NestlingAmd, &mut found);
    let mut excused: BTreeMap<&str, Vec<Code>> = BTreeMap::new();
    let mut missing = Vec::new();
    let mut bound = 0;
    for code in Code::values() {
        if let Some(why) = exception(code) {
            excused.entry(why).or_default().push(code);
            continue;
        }
        let form = code.op_code();
        for (bits, has) in [
            (16, form.mode16()),
            (32, form.mode32()),
            (64, form.mode64()),
        ] {
            match found.get(&(code, bits)) {
                Some(Found { bound: true, .. }) => bound += 1,
                _ if !has => {}
                Some(_) => missing.push(format!("{code:?} in {bits}-bit mode has no handler")),
                None => missing.push(format!("{code:?} in {bits}-bit mode was not decoded")),
            }
        }
    }
    for (why, codes) in &excused {
        eprintln!("{:4} forms: {why}", codes.len());
    }
    eprintln!("{bound} forms bound, counted in each mode");
    assert!(
        missing.is_empty(),
        "{} missing: {missing:#?}",
        missing.len()
    );
    assert!(bound > 3000, "{bound}");
}
