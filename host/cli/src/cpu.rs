//! `nestling cpu`: the CPU models, their features, and what CPUID answers.

use std::fmt::Write;

use serde::Serialize;
use vcpu::NestedVirt;
use vcpu::cpuid::{CpuModel, CpuidTable, HostVector, ModelConfig, NAMES, model};

use crate::args::{CpuArgs, CpuCommand, Format};
use crate::failure::Failure;
use crate::output::{self, BAD, GOOD};

/// One model in a list.
#[derive(Debug, Serialize)]
struct Listed {
    name: &'static str,
    summary: &'static str,
    vendor: &'static str,
    /// Features the host lacks; with none the model can be had.
    missing: Vec<&'static str>,
}

/// A model whole.
#[derive(Debug, Serialize)]
struct Shown {
    name: &'static str,
    summary: &'static str,
    vendor: &'static str,
    family: u32,
    model: u32,
    stepping: u32,
    features: Vec<&'static str>,
    leaves: Vec<Leaf>,
}

/// One leaf of CPUID.
#[derive(Debug, Serialize)]
struct Leaf {
    leaf: u32,
    subleaf: Option<u32>,
    eax: u32,
    ebx: u32,
    ecx: u32,
    edx: u32,
}

/// Every model, judged for this host.
fn list(host: &HostVector) -> Vec<Listed> {
    CpuModel::ALL
        .into_iter()
        .map(|m| Listed {
            name: m.name(),
            summary: m.summary(),
            vendor: m.vendor().text(),
            missing: m.check(host).err().map_or(Vec::new(), |e| e.missing),
        })
        .collect()
}

/// The list for people, with colours.
fn render_list(models: &[Listed]) -> String {
    let width = models.iter().map(|m| m.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for m in models {
        let mark = if m.missing.is_empty() {
            format!("{GOOD}yes{GOOD:#}")
        } else {
            format!("{BAD}no {BAD:#}")
        };
        let _ = writeln!(
            text,
            "{mark}  {:width$}  {}  {}",
            m.name, m.vendor, m.summary
        );
        if !m.missing.is_empty() {
            let _ = writeln!(
                text,
                "     {:width$}  this host lacks {}",
                "",
                m.missing.join(", ")
            );
        }
    }
    text
}

/// The answers of a model with one vCPU, virtualization off, and the frequencies of the default machine.
fn table(cpu: CpuModel, host: HostVector) -> CpuidTable {
    model(
        cpu,
        &ModelConfig {
            vcpus: 1,
            nested: NestedVirt::Off,
            tsc_hz: machine::config::DEFAULT_TSC_HZ,
            crystal_hz: machine::CRYSTAL_HZ,
            host,
        },
    )
}

/// Family, model and stepping of a signature (SDM Vol 2, CPUID, Figure 3-6; APM Vol 3 E.3.2).
fn identification(signature: u32) -> (u32, u32, u32) {
    let (base, extended) = (signature >> 8 & 15, signature >> 20 & 0xff);
    let family = if base == 15 { base + extended } else { base };
    let high = if matches!(base, 6 | 15) {
        signature >> 16 & 15
    } else {
        0
    };
    (family, high << 4 | signature >> 4 & 15, signature & 15)
}

fn show(cpu: CpuModel, host: HostVector) -> Shown {
    let table = table(cpu, host);
    let (family, number, stepping) = identification(table.signature());
    Shown {
        name: cpu.name(),
        summary: cpu.summary(),
        vendor: cpu.vendor().text(),
        family,
        model: number,
        stepping,
        features: table.features().collect(),
        leaves: table
            .leaves
            .iter()
            .map(|l| Leaf {
                leaf: l.leaf,
                subleaf: l.subleaf,
                eax: l.result.eax,
                ebx: l.result.ebx,
                ecx: l.result.ecx,
                edx: l.result.edx,
            })
            .collect(),
    }
}

/// The features of one register of CPUID a line, its leaves below.
fn render(shown: &Shown) -> String {
    let mut text = format!(
        "{}: {}\n{}, family {:X}h, model {:X}h, stepping {}\n\nfeatures\n",
        shown.name, shown.summary, shown.vendor, shown.family, shown.model, shown.stepping
    );
    let mut place = None;
    for n in NAMES.iter().filter(|n| shown.features.contains(&n.name)) {
        if place.replace(n.place) == Some(n.place) {
            let _ = write!(text, " {}", n.name);
            continue;
        }
        if !text.ends_with("features\n") {
            text.push('\n');
        }
        let register = ["EAX", "EBX", "ECX", "EDX"][n.place.register & 3];
        let at = format!("{:X}h.{} {register}", n.place.leaf, n.place.subleaf);
        let _ = write!(text, "  {at:15} {}", n.name);
    }
    let _ = writeln!(
        text,
        "\n\n{:8} {:>3} {:8} {:8} {:8} {:8}",
        "leaf", "sub", "EAX", "EBX", "ECX", "EDX"
    );
    for l in &shown.leaves {
        let sub = l.subleaf.map_or_else(|| "-".to_owned(), |s| s.to_string());
        let _ = writeln!(
            text,
            "{:08X} {sub:>3} {:08X} {:08X} {:08X} {:08X}",
            l.leaf, l.eax, l.ebx, l.ecx, l.edx
        );
    }
    text
}

/// Prints what was asked for.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(args: &CpuArgs) -> Result<(), Failure> {
    let host = HostVector::detect();
    match args.command {
        CpuCommand::List { format } => {
            let models = list(&host);
            match format {
                Format::Text => output::print(&render_list(&models)),
                Format::Json => output::print_json(&models),
            }
        }
        CpuCommand::Show { model, format } => {
            let shown = show(model, host);
            match format {
                Format::Text => output::print(&render(&shown)),
                Format::Json => output::print_json(&shown),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model() {
        for cpu in CpuModel::ALL {
            let text = render(&show(cpu, HostVector::ALL));
            insta::assert_snapshot!(format!("model_{}", cpu.name()), text);
        }
    }

    #[test]
    fn the_list_says_what_the_host_lacks() {
        let host = HostVector {
            avx: false,
            aes: false,
            ..HostVector::ALL
        };
        let text = render_list(&list(&host));
        insta::assert_snapshot!("list", anstream::adapter::strip_str(&text).to_string());
    }

    #[test]
    fn json_has_all_of_it() {
        let shown = show(CpuModel::NestlingAmd, HostVector::ALL);
        let json = serde_json::to_value(&shown).expect("plain data");
        assert_eq!(json["family"], 0x19);
        assert_eq!(json["leaves"][0]["leaf"], 0);
        assert!(json["features"].as_array().is_some_and(|f| !f.is_empty()));
    }
}
