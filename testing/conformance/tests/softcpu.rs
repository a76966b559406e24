//! The software CPU against the host's processor.

use conformance::Implemented;
use conformance::engine::EngineSubject;
use conformance::forms::Skip;
use conformance::run::{Config, run};
use iced_x86::{Code, CpuidFeature};
use softcpu::SoftEngine;

/// Forms that belong to a feature the software CPU's model does not show.
fn not_offered(code: Code) -> bool {
    use CpuidFeature as F;
    code.cpuid_features().iter().any(|f| {
        matches!(
            f,
            F::SSE4A
                | F::CLWB
                | F::PREFETCHW
                | F::D3NOW
                | F::TBM
                | F::GFNI
                | F::VAES
                | F::VPCLMULQDQ
        )
    })
}

/// At least a million cases over every form that the software CPU implements and the host has.
#[test]
fn softcpu_agrees_with_the_host() {
    let config = Config::from_environment(1_000_000);
    let implemented = Implemented::new();
    let report = run(
        config,
        |code| implemented.has(code),
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
        .skipped
        .get(&Skip::NotImplemented)
        .into_iter()
        .flatten()
        .filter(|&&code| !not_offered(code))
        .collect();
    assert!(missing.is_empty(), "not implemented: {missing:?}");
}
