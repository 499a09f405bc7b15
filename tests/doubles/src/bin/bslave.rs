//! Runs the stand-in for bslave, whose command line and protocol are not public.
//!
//! It logs its arguments and runs until SIGTERM. With `--port` it starts a container on
//! its bridge that answers on that port.

use buildos_doubles::container::{Container, exit_at_end_of_stdin, unique_name};
use buildos_doubles::log::{Log, chain};
use buildos_doubles::shutdown::ShutdownSignals;
use buildos_doubles::udhcpc;
use lexopt::ValueExt as _;
use std::env;
use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

/// Time between two checks of the container.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug, PartialEq, Eq)]
struct Options {
    bridge: String,
    /// Port of the container; `None` starts no container.
    port: Option<u16>,
    /// Name of the container that this program runs in.
    inside: Option<String>,
}

fn main() -> ExitCode {
    let log = Log::Journal;
    let result = parse(lexopt::Parser::from_env())
        .map_err(Into::into)
        .and_then(|options| match &options.inside {
            Some(name) => answer(name, options.port.unwrap_or(0), log),
            None => run(&options, log),
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.error(chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn parse(mut parser: lexopt::Parser) -> Result<Options, lexopt::Error> {
    let mut options = Options {
        bridge: "br0".to_owned(),
        port: None,
        inside: None,
    };
    while let Some(argument) = parser.next()? {
        match argument {
            lexopt::Arg::Long("bridge") => options.bridge = parser.value()?.string()?,
            lexopt::Arg::Long("port") => options.port = Some(parser.value()?.parse()?),
            lexopt::Arg::Long("inside") => options.inside = Some(parser.value()?.string()?),
            // Accepts any argument of the real program.
            lexopt::Arg::Value(_) => {}
            lexopt::Arg::Long(_) | lexopt::Arg::Short(_) => drop(parser.optional_value()),
        }
    }
    Ok(options)
}

fn run(options: &Options, log: Log) -> Result<(), Box<dyn Error>> {
    let signals = ShutdownSignals::install()?;
    let arguments: Vec<String> = env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    log.info(format_args!(
        "started with {} argument(s): {arguments:?}",
        arguments.len()
    ));
    let Some(port) = options.port else {
        signals.wait();
        log.info("ended");
        return Ok(());
    };
    let own = env::current_exe()?.to_string_lossy().into_owned();
    let (name, port) = (unique_name(), port.to_string());
    let program = [&own, "--inside", &name, "--port", &port];
    let mut container = Container::start(&name, &options.bridge, &program)?;
    log.info(format_args!("container {name} is on {}", options.bridge));
    let (sender, shutdown) = std::sync::mpsc::channel();
    thread::spawn(move || {
        signals.wait();
        // The receiver might be gone.
        let _ = sender.send(());
    });
    while shutdown.recv_timeout(CHECK_INTERVAL).is_err() {
        if let Some(status) = container.ended() {
            return Err(format!("the container ended: {status}").into());
        }
    }
    drop(container);
    log.info("ended");
    Ok(())
}

/// Runs in the container: acquires a lease, and answers each connection with `name`.
fn answer(name: &str, port: u16, log: Log) -> Result<(), Box<dyn Error>> {
    exit_at_end_of_stdin();
    let directory = Path::new("/tmp").join(name);
    fs::create_dir_all(&directory)?;
    udhcpc::acquire(&directory)?;
    let _client = udhcpc::renew(&directory)?;
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    log.info(format_args!("{name} answers on port {port}"));
    for connection in listener.incoming() {
        // A client might have closed the connection.
        let _ = connection.and_then(|mut stream| writeln!(stream, "{name}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parser_reads_bridge_and_port_and_ignores_other_options() {
        let parsed = |words: &[&str]| parse(lexopt::Parser::from_args(words)).unwrap();
        let plain = parsed(&["", "--anything", "a b", "--x=1", "-v"]);
        assert_eq!((plain.bridge.as_str(), plain.port), ("br0", None));
        let serving = parsed(&["--bridge", "br7", "--port", "7000"]);
        assert_eq!((serving.bridge.as_str(), serving.port), ("br7", Some(7000)));
        assert!(parse(lexopt::Parser::from_args(["--port", "x"])).is_err());
    }
}
