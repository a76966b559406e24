//! The `nestling` program: `demo`, `run`, `doctor` and `cpu`.
//!
//! The program reads files, talks to the user and builds images; the machine itself is behind the seam in
//! [`vm`]. Every failure reaches the user as one line: what, why, and what to do ([`failure`]).

mod args;
mod artifacts;
mod cpu;
mod demo;
mod doctor;
mod engine;
mod failure;
mod guest_report;
mod initramfs;
mod input_file;
mod interrupt;
mod output;
mod run;
mod vm;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use args::{Command, CommandLine};
use failure::Failure;
use vm::Monitor;

/// Messages of the monitor go to standard error, as far as `NESTLING_LOG` asks for them.
fn log_to_standard_error() {
    let filter =
        EnvFilter::try_from_env("NESTLING_LOG").unwrap_or_else(|_| EnvFilter::new("error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
}

fn perform(command: &Command) -> Result<u8, Failure> {
    match command {
        Command::Demo(args) => demo::run(args, &Monitor),
        Command::Run(args) => run::run(args, &Monitor),
        Command::Doctor(args) => doctor::run(args).map(|()| 0),
        Command::Cpu(args) => cpu::run(args).map(|()| 0),
        Command::GuestReport(args) => guest_report::report(args.level).map(|()| 0),
        Command::Images(args) => demo::images::write(args).map(|()| 0),
        Command::Unpack(args) => unpack(args).map(|()| 0),
    }
}

fn unpack(args: &args::UnpackArgs) -> Result<(), Failure> {
    let interrupt = interrupt::Interrupt::new();
    interrupt.watch_signals()?;
    let progress = artifacts::progress::Progress::on_standard_error();
    artifacts::unpack(&args.packages, &args.output, &interrupt, &progress)
}

fn main() -> ExitCode {
    let line = CommandLine::parse();
    log_to_standard_error();
    match perform(&line.command) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            output::say(&failure.to_string());
            ExitCode::FAILURE
        }
    }
}
