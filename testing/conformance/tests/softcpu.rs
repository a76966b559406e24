//! The software CPU against the host's processor.

use std::sync::{Mutex, MutexGuard, PoisonError};

use conformance::Implemented;
use conformance::engine::EngineSubject;
use conformance::forms::Skip;
use conformance::run::{Config, run};
use iced_x86::{Code, CpuidFeature};
use softcpu::SoftEngine;

/// Forms that belong to a feature the software CPU's model does not show.
fn not_offered(code: Code) -> bool {
    use CpuidFeature as F;
    code.cpuid_features()
        .iter()
        .any(|f| matches!(f, F::SSE4A | F::PREFETCHW | F::D3NOW | F::TBM | F::XSAVES))
}

/// Five million cases over every form that the software CPU implements and the host has, in 64-bit mode and in
/// compatibility mode with 32- and 16-bit code.
/// The runs take the same addresses of this process, and both processors each.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn wait_for_the_others() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn softcpu_agrees_with_the_host() {
    let _alone = wait_for_the_others();
    let config = Config::from_environment(5_000_000);
    let implemented = Implemented::new();
    let report = run(
        config,
        |code, bits| implemented.has(code, bits),
        |layout, background| {
            Some(
                EngineSubject::new(&SoftEngine::new(), layout, background)
                    .expect("the software CPU runs everywhere"),
            )
        },
    )
    .expect("the host has the memory");
    println!("{report}");
    assert_eq!(report.failed, 0, "{} cases differ", report.failed);
    assert!(report.empty.is_empty(), "untested: {:?}", report.empty);
    let missing: Vec<_> = report
        .forms
        .iter()
        .filter_map(|list| list.skipped.get(&Skip::NotImplemented))
        .flatten()
        .filter(|&&code| !not_offered(code))
        .collect();
    assert!(missing.is_empty(), "not implemented: {missing:?}");
}

/// The same cases with every block translated before it is executed. Accesses hit the TLB where they may.
#[test]
fn translated_code_agrees_with_the_host() {
    translated(5_000_000, EngineSubject::warm);
}

/// The same again. Every first access misses the TLB.
#[test]
fn translated_code_that_misses_agrees_with_the_host() {
    translated(1_000_000, |subject| subject);
}

fn translated(cases: u64, prepare: impl Fn(EngineSubject) -> EngineSubject + Sync) {
    let _alone = wait_for_the_others();
    let config = Config::from_environment(cases);
    let implemented = Implemented::new();
    let report = run(
        config,
        |code, bits| implemented.has(code, bits),
        |layout, background| {
            let executors: softcpu::Executors = std::sync::Arc::new(|vcpus| {
                let translator = jit::Translator::new(0, vcpus).map_err(std::io::Error::other)?;
                Ok(Box::new(translator))
            });
            let engine = SoftEngine::with_executors(executors);
            let subject = EngineSubject::new(&engine, layout, background);
            Some(prepare(subject.expect("the software CPU runs everywhere")))
        },
    )
    .expect("the host has the memory");
    println!("{report}");
    assert_eq!(report.failed, 0, "{} cases differ", report.failed);
}
