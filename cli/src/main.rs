//! The command line: `coracle`. From argv to an exit code; what lies between is in the modules below.
//! It owns how errors are told. `vmm` is the same binary's other face: the process that is a running sandbox.

mod args;
mod argv;

mod agents;
mod cmd;
mod config;
mod credentials;
mod env;
mod git;
mod units;
mod workspace;

mod disk;
mod parts;
mod places;
mod store;
mod templates;

mod blobs;
mod digest;
mod fetch;
mod oci;
mod progress;

mod attach;
mod command;
mod launch;
mod ports;
mod report;
mod session;

mod output;
mod program;
mod sys;
mod term;
mod text;
mod timings;

#[cfg(test)]
mod stand_in;

use std::process::ExitCode;

/// Coracle's own failure, as Docker has it.
const FAILURE: u8 = 125;

fn main() -> ExitCode {
    let start_ns = vmm::marks::now_ns();
    let (verbose, result) = args::run(std::env::args_os().skip(1).collect(), start_ns);
    let code = result.unwrap_or_else(|error| {
        output::note(&format!("coracle: {}\n", output::explain(&error, verbose)));
        FAILURE
    });
    ExitCode::from(code)
}
