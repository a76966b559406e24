//! `nestling doctor`: item by item what the host offers, which engine is taken, and why.

pub mod facts;
pub mod judge;

use std::fmt::Write;

use serde::Serialize;

use crate::args::{DoctorArgs, Format};
use crate::failure::Failure;
use crate::output::{self, BAD, GOOD};
use facts::HostFacts;
use judge::{Diagnosis, Status};

/// Facts and findings as data.
#[derive(Debug, Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    diagnosis: &'a Diagnosis,
    host: &'a HostFacts,
}

/// The findings for people, with colours.
fn render(diagnosis: &Diagnosis) -> String {
    let width = diagnosis
        .findings
        .iter()
        .map(|finding| finding.item.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for finding in &diagnosis.findings {
        let mark = match finding.status {
            Status::Yes => format!("{GOOD}yes{GOOD:#}"),
            Status::No => format!("{BAD}no {BAD:#}"),
            Status::Note => "-  ".to_string(),
        };
        let _ = writeln!(text, "{mark}  {:width$}  {}", finding.item, finding.found);
        if let Some(advice) = &finding.advice {
            let _ = writeln!(text, "     {:width$}  to do: {advice}", "");
        }
    }
    let engine = &diagnosis.engine;
    let _ = writeln!(
        text,
        "\nengine auto takes {}: {}",
        engine.engine, engine.why
    );
    text
}

/// Looks at the host and prints what it finds.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let host = facts::gather();
    let diagnosis = judge::judge(&host);
    match args.format {
        Format::Text => output::print(&render(&diagnosis)),
        Format::Json => output::print_json(&Report {
            diagnosis: &diagnosis,
            host: &host,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use judge::tests::{closed_host, emulating_host, fine_host, poor_host};

    fn shown(facts: &HostFacts) -> String {
        let text = render(&judge::judge(facts));
        anstream::adapter::strip_str(&text).to_string()
    }

    #[test]
    fn what_people_see() {
        insta::assert_snapshot!("fine_host", shown(&fine_host()));
        insta::assert_snapshot!("poor_host", shown(&poor_host()));
        insta::assert_snapshot!("closed_host", shown(&closed_host()));
        insta::assert_snapshot!("emulating_host", shown(&emulating_host()));
    }

    #[test]
    fn what_programs_see() {
        let facts = closed_host();
        let diagnosis = judge::judge(&facts);
        let report = Report {
            diagnosis: &diagnosis,
            host: &facts,
        };
        insta::assert_snapshot!(serde_json::to_string_pretty(&report).expect("plain data"));
    }
}
