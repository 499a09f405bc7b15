//! Waits in the build machine of an interactive task for a person.
//!
//! A real worker stops at the breakpoint that the task names, until the person who has logged
//! in lets it continue. This one serves the login itself: it greets, and continues after one
//! line.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::TcpListener;

/// Port on which the machine waits for the person.
pub const PORT: u16 = 7022;

/// Waits for a person at this breakpoint; returns the line that the person wrote.
///
/// # Errors
///
/// The port cannot be served.
pub fn wait(breakpoint: &str) -> io::Result<String> {
    wait_at(&TcpListener::bind(("0.0.0.0", PORT))?, breakpoint)
}

fn wait_at(listener: &TcpListener, breakpoint: &str) -> io::Result<String> {
    for client in listener.incoming() {
        let said = client.and_then(|mut client| {
            writeln!(client, "stopped at {breakpoint}")?;
            let mut line = String::new();
            BufReader::new(client).read_line(&mut line)?;
            Ok(line.trim().to_owned())
        });
        // A person may leave and come again.
        if let Some(line) = said.ok().filter(|line| !line.is_empty()) {
            return Ok(line);
        }
    }
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn task_continues_after_the_line_of_a_person() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let waiting = std::thread::spawn(move || wait_at(&listener, "test").unwrap());
        drop(TcpStream::connect(address).unwrap());
        let mut person = TcpStream::connect(address).unwrap();
        let mut greeting = String::new();
        let mut reader = BufReader::new(person.try_clone().unwrap());
        reader.read_line(&mut greeting).unwrap();
        assert_eq!(greeting, "stopped at test\n");
        writeln!(person, "continue").unwrap();
        assert_eq!(waiting.join().unwrap(), "continue");
    }
}
