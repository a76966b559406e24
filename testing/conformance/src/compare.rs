//! Differences between two outcomes, and how they are told.

use std::fmt::Write;

use iced_x86::{Formatter, NasmFormatter};

use crate::case::{Case, Exception, Extended, Outcome};
use crate::undefined::Undefined;

const GPR_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

const SEGMENT_NAMES: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// What differs between the oracle's outcome and the subject's, one line each; empty when they agree in
/// everything the manuals define.
#[must_use]
pub fn differences(case: &Case, host: &Outcome, subject: &Outcome) -> Vec<String> {
    if host == subject {
        return Vec::new();
    }
    let undefined = Undefined::of(case, host);
    let mut lines = Vec::new();
    let comparable = |outcome: &Outcome| {
        outcome.exception.map(|e| Exception {
            cr2: e.cr2 & !undefined.cr2,
            ..e
        })
    };
    if comparable(host) != comparable(subject) {
        lines.push(format!(
            "exception: host {:x?}, subject {:x?}",
            host.exception, subject.exception
        ));
    }
    let (a, b) = (&host.after, &subject.after);
    for (i, name) in GPR_NAMES.iter().enumerate() {
        if a.gpr[i] != b.gpr[i] && undefined.gpr & 1 << i == 0 {
            lines.push(differ(name, a.gpr[i], b.gpr[i]));
        }
    }
    for (i, name) in SEGMENT_NAMES.iter().enumerate() {
        if host.selectors[i] != subject.selectors[i] {
            lines.push(differ(name, host.selectors[i], subject.selectors[i]));
        }
    }
    for (i, name) in ["fs base", "gs base"].iter().enumerate() {
        if host.bases[i] != subject.bases[i] && !undefined.bases[i] {
            lines.push(differ(name, host.bases[i], subject.bases[i]));
        }
    }
    if a.rip != b.rip {
        lines.push(differ("rip", a.rip, b.rip));
    }
    if (a.rflags ^ b.rflags) & !undefined.rflags != 0 {
        let mask = !undefined.rflags;
        lines.push(differ("rflags", a.rflags & mask, b.rflags & mask));
    }
    extended(&a.extended, &b.extended, &undefined, &mut lines);
    memory(host, subject, &undefined, &mut lines);
    lines
}

fn differ<T: std::fmt::LowerHex>(name: &str, host: T, subject: T) -> String {
    format!("{name}: host {host:#x}, subject {subject:#x}")
}

fn extended(a: &Extended, b: &Extended, undefined: &Undefined, lines: &mut Vec<String>) {
    if a == b {
        return;
    }
    if a.fcw() != b.fcw() {
        lines.push(differ("fcw", a.fcw(), b.fcw()));
    }
    if (a.fsw() ^ b.fsw()) & !undefined.fsw != 0 {
        lines.push(differ("fsw", a.fsw(), b.fsw()));
    }
    if a.abridged_tags() != b.abridged_tags() {
        lines.push(differ(
            "abridged tags",
            a.abridged_tags(),
            b.abridged_tags(),
        ));
    }
    if (a.mxcsr() ^ b.mxcsr()) & !undefined.mxcsr != 0 {
        lines.push(differ("mxcsr", a.mxcsr(), b.mxcsr()));
    }
    for i in 0..8 {
        if a.st(i) != b.st(i) {
            let value = |st: [u8; 10]| st.iter().rev().fold(0u128, |v, &x| v << 8 | u128::from(x));
            lines.push(differ(&format!("st{i}"), value(a.st(i)), value(b.st(i))));
        }
    }
    for i in (0..16).filter(|i| undefined.vectors & 1 << i == 0) {
        if a.xmm(i) != b.xmm(i) {
            lines.push(differ(&format!("xmm{i}"), a.xmm(i), b.xmm(i)));
        }
        if a.ymm_high[i] != b.ymm_high[i] {
            lines.push(differ(
                &format!("ymm{i} upper half"),
                a.ymm_high[i],
                b.ymm_high[i],
            ));
        }
    }
}

fn memory(host: &Outcome, subject: &Outcome, undefined: &Undefined, lines: &mut Vec<String>) {
    if host.memory == subject.memory {
        return;
    }
    let find = |outcome: &Outcome, offset: usize| {
        outcome
            .memory
            .binary_search_by_key(&offset, |change| change.0)
            .ok()
            .map(|i| outcome.memory[i].1)
    };
    let mut offsets: Vec<usize> = host
        .memory
        .iter()
        .chain(&subject.memory)
        .map(|change| change.0)
        .collect();
    offsets.sort_unstable();
    offsets.dedup();
    let told = |value: Option<u8>| value.map_or("unchanged".to_owned(), |v| format!("{v:#04x}"));
    let before = lines.len();
    for offset in offsets {
        let (a, b) = (find(host, offset), find(subject, offset));
        if a == b || undefined.ignores_memory(offset) {
            continue;
        }
        if lines.len() - before == 24 {
            lines.push("memory: and more".to_owned());
            return;
        }
        lines.push(format!(
            "memory +{offset:#x}: host {}, subject {}",
            told(a),
            told(b)
        ));
    }
}

/// The case in words: form, bytes, disassembly, inputs.
#[must_use]
pub fn describe(case: &Case) -> String {
    let mut text = String::new();
    let mut disassembly = String::new();
    NasmFormatter::new().format(&case.instruction, &mut disassembly);
    let bytes: String = case.bytes.iter().map(|b| format!("{b:02x} ")).collect();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{:?}: {bytes}| {disassembly}",
        case.instruction.code()
    );
    let before = &case.before;
    for (i, name) in GPR_NAMES.iter().enumerate() {
        let end = if i % 4 == 3 { "\n" } else { "" };
        let _ = write!(text, "  {name:>3} {:016x}{end}", before.gpr[i]);
    }
    let x = &before.extended;
    let _ = writeln!(
        text,
        "  rip {:016x}  rflags {:x}  mxcsr {:x}  fcw {:x}  fsw {:x}  tags {:x}  window {:x}",
        before.rip,
        before.rflags,
        x.mxcsr(),
        x.fcw(),
        x.fsw(),
        x.abridged_tags(),
        case.layout.window()
    );
    if case.setting.bits != 64 {
        let _ = writeln!(text, "  {} bits", case.setting.bits);
        for (name, segment) in SEGMENT_NAMES.iter().zip(&case.setting.segments) {
            let _ = writeln!(
                text,
                "  {name} {:04x} base {:x} limit {:x} {:?}{}",
                segment.selector,
                segment.base,
                segment.limit,
                segment.kind,
                if segment.big { " big" } else { "" }
            );
        }
    }
    for i in vector_operands(case) {
        let _ = writeln!(text, "  ymm{i} {:032x}_{:032x}", x.ymm_high[i], x.xmm(i));
    }
    if format!("{:?}", case.instruction.code()).starts_with('F')
        || case.instruction.mnemonic() == iced_x86::Mnemonic::Emms
    {
        for i in 0..8 {
            let _ = writeln!(text, "  st{i} {:02x?}", x.st(i));
        }
    }
    for patch in &case.patches {
        let shown = &patch.bytes[..patch.bytes.len().min(64)];
        let _ = writeln!(text, "  window +{:#x}: {shown:02x?}", patch.offset);
    }
    text
}

fn vector_operands(case: &Case) -> Vec<usize> {
    let instruction = &case.instruction;
    let mut numbers: Vec<usize> = instruction
        .op_registers()
        .chain([instruction.memory_index()])
        .filter(|r| r.is_vector_register())
        .map(|r| r.number())
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

trait OperandRegisters {
    fn op_registers(&self) -> impl Iterator<Item = iced_x86::Register>;
}

impl OperandRegisters for iced_x86::Instruction {
    fn op_registers(&self) -> impl Iterator<Item = iced_x86::Register> {
        (0..self.op_count())
            .filter(|&i| self.op_kind(i) == iced_x86::OpKind::Register)
            .map(|i| self.op_register(i))
    }
}
