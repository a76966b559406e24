//! A run: many cases of every form on the host and on a subject.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use iced_x86::Code;

use crate::case::{Case, Layout, Outcome, Subject, WINDOW_BYTES};
use crate::compare::{describe, differences};
use crate::forms::{FormList, Skip};
use crate::generate::{Generator, background};
use crate::host::Host;

/// Failures kept of one form.
const FAILURES_PER_FORM: usize = 3;

/// What to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Everything follows from it.
    pub seed: u64,
    /// Cases in all, spread evenly over the forms.
    pub cases: u64,
    /// Threads.
    pub workers: u64,
}

impl Config {
    /// `cases` cases with the seed 1, changed by the environment: `NESTLING_SEED`, `NESTLING_CASES`.
    #[must_use]
    pub fn from_environment(cases: u64) -> Self {
        let number = |name: &str, default: u64| {
            std::env::var(name).map_or(default, |text| {
                let parsed = match text.strip_prefix("0x") {
                    Some(hex) => u64::from_str_radix(hex, 16).ok(),
                    None => text.parse().ok(),
                };
                parsed.unwrap_or_else(|| panic!("{name}={text} is not a number"))
            })
        };
        Self {
            seed: number("NESTLING_SEED", 1),
            cases: number("NESTLING_CASES", cases),
            workers: std::thread::available_parallelism().map_or(1, |n| n.get().min(8) as u64),
        }
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was run.
    pub config: Config,
    /// Forms tested and left out, by mode.
    pub forms: Vec<FormList>,
    /// Cases compared, by bits of the code segment.
    pub cases: BTreeMap<u32, u64>,
    /// Cases that raised an exception, by vector.
    pub exceptions: BTreeMap<u8, u64>,
    /// Forms of which no case could be made, with the bits of the mode.
    pub empty: Vec<(Code, u32)>,
    /// Cases that differ.
    pub failed: u64,
    /// Forms with differing cases: how many.
    pub failed_forms: BTreeMap<String, u64>,
    /// The first differing cases of each form, in words.
    pub failures: Vec<String>,
    /// Wall-clock time.
    pub time: Duration,
}

impl Report {
    fn merge(&mut self, other: Self) {
        for (bits, count) in other.cases {
            *self.cases.entry(bits).or_default() += count;
        }
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.empty.extend(other.empty);
        for (form, count) in other.failed_forms {
            *self.failed_forms.entry(form).or_default() += count;
        }
        for (vector, count) in other.exceptions {
            *self.exceptions.entry(vector).or_default() += count;
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.time.as_secs_f64();
        let cases: u64 = self.cases.values().sum();
        let forms: usize = self.forms.iter().map(|list| list.tested.len()).sum();
        writeln!(
            f,
            "seed {} (NESTLING_SEED), {cases} cases of {forms} forms in {seconds:.1} s ({:.0} cases/s)",
            self.config.seed,
            cases as f64 / seconds
        )?;
        let raised: u64 = self.exceptions.values().sum();
        write!(f, "{raised} cases raised an exception:")?;
        for (vector, count) in &self.exceptions {
            write!(f, " vector {vector}: {count}")?;
        }
        writeln!(f)?;
        for list in &self.forms {
            let (bits, made) = (list.bits, self.cases.get(&list.bits).unwrap_or(&0));
            writeln!(
                f,
                "{bits}-bit code: {made} cases of {} forms",
                list.tested.len()
            )?;
            for (why, codes) in &list.skipped {
                writeln!(f, "  skipped {:5} forms: {why}", codes.len())?;
            }
            if let Some(codes) = list.skipped.get(&Skip::NotImplemented) {
                writeln!(f, "  not implemented: {codes:?}")?;
            }
        }
        if !self.empty.is_empty() {
            writeln!(f, "no case could be made of {:?}", self.empty)?;
        }
        for failure in self.failures.iter().take(300) {
            writeln!(f, "{failure}")?;
        }
        if self.failed > 0 {
            writeln!(f, "{} cases differ, by form:", self.failed)?;
            for (form, count) in &self.failed_forms {
                writeln!(f, "  {form}: {count}")?;
            }
        }
        Ok(())
    }
}

/// Modes by the bits of their code segment: 64-bit mode, compatibility mode with 32 and with 16 bits.
const MODES: [u32; 3] = [64, 32, 16];

/// Runs `config` on the host and on the subjects `make` makes, one for each worker; without a subject the
/// host is its own, which finds what is not reproducible.
///
/// # Errors
/// When the host refuses the memory at the addresses the cases use.
pub fn run<S: Subject>(
    config: Config,
    supports: impl Fn(Code, u32) -> bool,
    make: impl Fn(Layout, &[u8; WINDOW_BYTES]) -> Option<S> + Sync,
) -> std::io::Result<Report> {
    let forms = MODES.map(|bits| FormList::new(bits, &supports)).to_vec();
    let all: Vec<(Code, u32)> = forms
        .iter()
        .flat_map(|list| list.tested.iter().map(|&code| (code, list.bits)))
        .collect();
    let started = Instant::now();
    let mut report = Report {
        config,
        forms: Vec::new(),
        cases: BTreeMap::new(),
        exceptions: BTreeMap::new(),
        empty: Vec::new(),
        failed: 0,
        failed_forms: BTreeMap::new(),
        failures: Vec::new(),
        time: Duration::ZERO,
    };
    let parts: Vec<std::io::Result<Report>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..config.workers)
            .map(|index| {
                let (all, make, empty) = (&all, &make, report.clone());
                scope.spawn(move || work(config, index, all, make, empty))
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("a worker does not panic"))
            .collect()
    });
    for part in parts {
        report.merge(part?);
    }
    report.forms = forms;
    report.time = started.elapsed();
    Ok(report)
}

fn work<S: Subject>(
    config: Config,
    index: u64,
    forms: &[(Code, u32)],
    make: &(impl Fn(Layout, &[u8; WINDOW_BYTES]) -> Option<S> + Sync),
    mut report: Report,
) -> std::io::Result<Report> {
    let layout = Layout::worker(index);
    let background = background(config.seed);
    let mut host = Host::new(layout, &background)?;
    let mut subject = make(layout, &background);
    let mut generator = Generator::new(config.seed, layout);
    let per_form = config.cases.div_ceil(forms.len().max(1) as u64);
    let mine = forms
        .iter()
        .skip(index as usize)
        .step_by(config.workers as usize);
    for &(code, bits) in mine {
        let mut made = 0u64;
        for number in 0..per_form {
            let Some(case) = generator.case(code, bits, number) else {
                continue;
            };
            made += 1;
            let expected = host.execute(&case);
            let result = match &mut subject {
                Some(subject) => catch_unwind(AssertUnwindSafe(|| subject.execute(&case))),
                None => Ok(host.execute(&case)),
            };
            if let Some(exception) = expected.exception {
                *report.exceptions.entry(exception.vector).or_default() += 1;
            }
            judge(&case, number, &expected, result.ok(), &mut report);
        }
        *report.cases.entry(bits).or_default() += made;
        if made == 0 {
            report.empty.push((code, bits));
        }
    }
    Ok(report)
}

/// Notes the differences; no result means that the subject panicked.
fn judge(case: &Case, number: u64, host: &Outcome, result: Option<Outcome>, report: &mut Report) {
    let lines = match &result {
        Some(result) => differences(case, host, result),
        None => vec!["the subject panicked".to_owned()],
    };
    if lines.is_empty() {
        return;
    }
    report.failed += 1;
    let form = format!("{:?} ({} bits)", case.instruction.code(), case.setting.bits);
    let count = report.failed_forms.entry(form).or_default();
    *count += 1;
    if *count <= FAILURES_PER_FORM as u64 {
        report.failures.push(format!(
            "case {number} of {}  {}",
            describe(case),
            lines.join("\n  ")
        ));
    }
}
