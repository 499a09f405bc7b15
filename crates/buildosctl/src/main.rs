//! Shows and controls a build host from the command line; see buildosctl(1).

use std::process::ExitCode;

use lexopt::Parser;

mod cli;
mod commands;
mod files;
#[cfg(test)]
mod generated;
mod programs;
mod simulate;
mod snapshot;
mod term;

/// The exit status for invalid arguments.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match cli::args::parse(Parser::from_env()) {
        Ok(invocation) => commands::run::run(invocation),
        Err(error) => {
            eprintln!("buildosctl: {error}; see --help");
            ExitCode::from(USAGE)
        }
    }
}
