//! The software CPU against the host's processor.

use conformance::Implemented;
use conformance::engine::EngineSubject;
use conformance::run::{Config, run};
use softcpu::SoftEngine;

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
}
