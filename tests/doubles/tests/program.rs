//! Runs the programs like a host.
#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use buildos_doubles::manifest;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

const AGENT: &str = env!("CARGO_BIN_EXE_bbot-agent");
const SLAVE: &str = env!("CARGO_BIN_EXE_bslave");

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

fn start(program: &str, arguments: &[&str]) -> (Child, BufReader<ChildStderr>) {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("BBOT_DOUBLE_INTERVAL_MS", "20")
        .env("BBOT_DOUBLE_MACHINE", "container")
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    (child, log)
}

/// Ends the program with SIGTERM, and returns its exit status and the rest of its log.
fn terminate(mut child: Child, mut log: impl BufRead) -> (Option<i32>, String) {
    let kill = Command::new("sh")
        .args(["-c", &format!("kill -TERM {}", child.id())])
        .status();
    assert!(kill.unwrap().success());
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    (child.wait().unwrap().code(), rest)
}

/// Accepts one HTTP request, sends `answer`, and returns the body of the request.
fn serve(listener: &TcpListener, answer: &str) -> String {
    let (stream, _) = listener.accept().unwrap();
    let mut reader = BufReader::new(&stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let mut stream: &TcpStream = &stream;
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{answer}",
        answer.len()
    )
    .unwrap();
    String::from_utf8(body).unwrap()
}

fn line(log: &mut impl BufRead) -> String {
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    line
}

#[test]
fn agent_polls_until_sigterm() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (agent, mut log) = start(AGENT, &["--systemd-daemon", &format!("0100={url}")]);
    for _ in 0..3 {
        let request = manifest::parse(&serve(&listener, ": 1\nsession:\n")).unwrap();
        assert_eq!(request[0].get("toolchain-name"), Some("default"));
        assert_eq!(request.len(), 2);
    }
    assert_eq!(
        line(&mut log),
        "<6>toolchain default, 1 machine(s), bridge br1, 1 controller(s)\n"
    );
    assert_eq!(
        line(&mut log),
        format!("<6>{url} (priority 0100): nothing to do\n")
    );
    assert_eq!(terminate(agent, log), (Some(0), "<6>ended\n".to_owned()));
}

#[test]
fn failed_controller_is_logged_and_polled_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (agent, mut log) = start(AGENT, &[&url, "https://127.0.0.1/"]);
    serve(&listener, "<html>");
    serve(&listener, ": 1\nsession:\n");
    let mut lines = vec![
        line(&mut log),
        line(&mut log),
        line(&mut log),
        line(&mut log),
    ];
    lines.sort();
    assert!(lines[0].starts_with("bbot-agent: info: "), "{lines:?}");
    assert!(
        lines
            .iter()
            .any(|l| l.contains("warning") && l.contains("not a task response"))
    );
    assert!(
        lines
            .iter()
            .any(|l| l.contains("warning") && l.contains("does not support https"))
    );
    assert!(
        lines.iter().any(|l| l.contains("nothing to do")),
        "{lines:?}"
    );
    assert_eq!(terminate(agent, log).0, Some(0));
}

#[test]
fn invalid_command_line_exits_with_1() {
    for arguments in [
        &["--no-such-option"][..],
        &["12=http://a"],
        &["ci.example.org"],
        &[],
    ] {
        let output = run(AGENT, arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(
            output.stderr.starts_with(b"bbot-agent: error: "),
            "{arguments:?}"
        );
    }
}

#[test]
fn agent_prints_help_version_and_machines() {
    assert!(
        run(AGENT, &["--help"])
            .stdout
            .starts_with(b"Usage: bbot-agent")
    );
    assert!(
        run(AGENT, &["--version"])
            .stdout
            .starts_with(b"bbot-agent double ")
    );
    let machines = run(AGENT, &["--dump-machines", "--machines", "/nonexistent"]);
    let machines = String::from_utf8(machines.stdout).unwrap();
    assert_eq!(manifest::parse(&machines).unwrap().len(), 1);
}

#[test]
fn slave_logs_arguments_and_ends_on_sigterm() {
    let (slave, mut log) = start(SLAVE, &["--bridge", "br0"]);
    assert_eq!(
        line(&mut log),
        "<6>started with 2 argument(s): [\"--bridge\", \"br0\"]\n"
    );
    assert_eq!(terminate(slave, log), (Some(0), "<6>ended\n".to_owned()));
}
