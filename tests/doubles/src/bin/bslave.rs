//! A stand-in for bslave, whose command line and protocol are not public: says
//! how it was started, and runs until it is told to end. With `--port` it has a
//! container on its bridge that answers on that port.

use buildos_doubles::End;
use buildos_doubles::container::{Container, end_with_leash, unique_name};
use buildos_doubles::log::{Log, chain};
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

/// How often it is looked whether the container still runs.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, PartialEq, Eq)]
struct Options {
    bridge: String,
    /// The port that the container answers on, if there is one.
    port: Option<u16>,
    /// This is the program in the container, of this name.
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
            // Whatever the real one takes.
            lexopt::Arg::Value(_) => {}
            lexopt::Arg::Long(_) | lexopt::Arg::Short(_) => drop(parser.optional_value()),
        }
    }
    Ok(options)
}

fn run(options: &Options, log: Log) -> Result<(), Box<dyn Error>> {
    let end = End::listen()?;
    let arguments: Vec<String> = env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    log.info(format_args!(
        "started with {} argument(s): {arguments:?}",
        arguments.len()
    ));
    let Some(port) = options.port else {
        end.wait();
        log.info("ended");
        return Ok(());
    };
    let own = env::current_exe()?.to_string_lossy().into_owned();
    let (name, port) = (unique_name(), port.to_string());
    let program = [&own, "--inside", &name, "--port", &port];
    let mut container = Container::start(&name, &options.bridge, &program)?;
    log.info(format_args!("container {name} is on {}", options.bridge));
    let (ending, told) = std::sync::mpsc::channel();
    thread::spawn(move || {
        end.wait();
        // The other end waits for it as long as it is there.
        let _ = ending.send(());
    });
    while told.recv_timeout(LOOK).is_err() {
        if let Some(status) = container.ended() {
            return Err(format!("the container ended: {status}").into());
        }
    }
    drop(container);
    log.info("ended");
    Ok(())
}

/// In the container: takes a lease, and answers whoever connects with its name.
fn answer(name: &str, port: u16, log: Log) -> Result<(), Box<dyn Error>> {
    end_with_leash();
    let directory = Path::new("/tmp").join(name);
    fs::create_dir_all(&directory)?;
    udhcpc::take(&directory)?;
    let _client = udhcpc::keep(&directory)?;
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    log.info(format_args!("{name} answers on port {port}"));
    for connection in listener.incoming() {
        // Somebody who hangs up at once does not hear it.
        let _ = connection.and_then(|mut stream| writeln!(stream, "{name}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let parsed = |words: &[&str]| parse(lexopt::Parser::from_args(words)).unwrap();
        let plain = parsed(&["", "--anything", "a b", "--x=1", "-v"]);
        assert_eq!((plain.bridge.as_str(), plain.port), ("br0", None));
        let serving = parsed(&["--bridge", "br7", "--port", "7000"]);
        assert_eq!((serving.bridge.as_str(), serving.port), ("br7", Some(7000)));
        assert!(parse(lexopt::Parser::from_args(["--port", "x"])).is_err());
    }
}
