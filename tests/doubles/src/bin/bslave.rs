//! A stand-in for bslave, whose command line and protocol are not public: says
//! how it was started, and runs until it is told to end.

use buildos_doubles::End;
use buildos_doubles::log::{Log, chain};
use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    let log = Log::Journal;
    let end = match End::listen() {
        Ok(end) => end,
        Err(error) => {
            log.error(chain(&error));
            return ExitCode::FAILURE;
        }
    };
    let arguments: Vec<String> = env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    log.info(format_args!(
        "started with {} argument(s): {arguments:?}",
        arguments.len()
    ));
    end.wait();
    log.info("ended");
    ExitCode::SUCCESS
}
