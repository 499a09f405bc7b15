//! Runs step `names`: asks a name server, and evaluates its answer.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use crate::dns_message::{self, Answer};
use crate::request::Question;
use crate::socket_error::is_timeout;

/// UDP port of name servers (RFC 1035, section 4.2.1).
const PORT: u16 = 53;
/// Each repetition makes dnsmasq forward the question to another of its servers.
const TRIES: u32 = 4;
/// Time limit of each try.
const LIMIT: Duration = Duration::from_millis(1500);

const NO_ERROR: u8 = 0;
const NO_SUCH_NAME: u8 = 3;
const REFUSED: u8 = 5;

/// The name server does not answer, or its answer is an error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DnsError {
    #[error("cannot ask {0}")]
    Socket(Ipv4Addr, #[source] io::Error),
    #[error("{server} does not answer DNS queries within {} s", (LIMIT * TRIES).as_secs())]
    NoAnswer { server: Ipv4Addr },
    #[error("{server} answers {question} with: {}", dns_message::describe(*code))]
    Code {
        server: Ipv4Addr,
        question: String,
        code: u8,
    },
    #[error("{server} knows no IPv4 address of {name}")]
    NoAddress { server: Ipv4Addr, name: String },
}

/// Returns an error unless the server gives a usable answer.
pub(crate) fn resolve(server: Ipv4Addr, question: &Question) -> Result<(), DnsError> {
    let answer = exchange(server, question).map_err(|error| DnsError::Socket(server, error))?;
    evaluate(
        server,
        question,
        answer.ok_or(DnsError::NoAnswer { server })?,
    )
}

fn evaluate(server: Ipv4Addr, question: &Question, answer: Answer) -> Result<(), DnsError> {
    let usable = match question {
        Question::Address(name) => {
            if answer.code == NO_ERROR && answer.records == 0 {
                let name = name.to_string();
                return Err(DnsError::NoAddress { server, name });
            }
            answer.code == NO_ERROR
        }
        // A server that refuses the question or does not know the root still works.
        Question::RootServers => [NO_ERROR, NO_SUCH_NAME, REFUSED].contains(&answer.code),
    };
    match usable {
        true => Ok(()),
        false => Err(DnsError::Code {
            server,
            question: match question {
                Question::Address(name) => format!("the question for {name}"),
                Question::RootServers => "the question for the root's name servers".to_owned(),
            },
            code: answer.code,
        }),
    }
}

/// Returns the first answer, or [`None`] if every try times out.
fn exchange(server: Ipv4Addr, question: &Question) -> io::Result<Option<Answer>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(SocketAddrV4::new(server, PORT))?;
    // One number for all tries, so that a late answer counts.
    let id = buildos_service::random::seed() as u16;
    let query = dns_message::query(id, question);
    let mut buffer = [0; dns_message::LENGTH_LIMIT];
    for _ in 0..TRIES {
        socket.send(&query)?;
        let end = Instant::now() + LIMIT;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    if let Some(answer) =
                        dns_message::answer(id, buffer.get(..length).unwrap_or_default())
                    {
                        return Ok(Some(answer));
                    }
                }
                Err(error) if is_timeout(&error) => break,
                // The port is closed; the server may be about to start.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::thread::sleep(left.min(Duration::from_millis(200)));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_text(question: &Question, code: u8, records: u16) -> Option<String> {
        let server = Ipv4Addr::new(172, 23, 0, 1);
        let error = evaluate(server, question, Answer { code, records }).err()?;
        Some(error.to_string())
    }

    #[test]
    fn configured_name_without_address_is_an_error() {
        let question = Question::Address("a.example".to_owned().try_into().unwrap());
        assert_eq!(error_text(&question, 0, 1), None);
        assert_eq!(
            error_text(&question, 0, 0).as_deref(),
            Some("172.23.0.1 knows no IPv4 address of a.example")
        );
        assert_eq!(
            error_text(&question, 3, 0).as_deref(),
            Some("172.23.0.1 answers the question for a.example with: no such name")
        );
    }

    #[test]
    fn root_question_accepts_any_answer_but_server_failure() {
        for code in [0, 3, 5] {
            assert_eq!(error_text(&Question::RootServers, code, 0), None);
        }
        assert_eq!(
            error_text(&Question::RootServers, 2, 0).as_deref(),
            Some(
                "172.23.0.1 answers the question for the root's name servers with: server failure"
            )
        );
    }
}
