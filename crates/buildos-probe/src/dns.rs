//! The step that asks for a name.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use crate::dns_message::{self, Answer};
use crate::request::Question;

/// RFC 1035, section 4.2.1.
const PORT: u16 = 53;
/// dnsmasq asks the next of its servers when a client repeats a question.
const TRIES: u32 = 4;
const PATIENCE: Duration = Duration::from_millis(1500);

const NO_ERROR: u8 = 0;
const NO_SUCH_NAME: u8 = 3;
const REFUSED: u8 = 5;

/// No answer, or none that is worth anything.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NamesError {
    #[error("cannot ask {0}")]
    Socket(Ipv4Addr, #[source] io::Error),
    #[error("{server} does not answer a question for a name within {} s", (PATIENCE * TRIES).as_secs())]
    Silent { server: Ipv4Addr },
    #[error("{server} answers {question} with: {}", dns_message::code(*code))]
    Code {
        server: Ipv4Addr,
        question: String,
        code: u8,
    },
    #[error("{server} knows no IPv4 address of {name}")]
    NoAddress { server: Ipv4Addr, name: String },
}

/// Asks the server and judges its answer.
pub(crate) fn ask(server: Ipv4Addr, question: &Question) -> Result<(), NamesError> {
    let answer = exchange(server, question).map_err(|error| NamesError::Socket(server, error))?;
    judge(
        server,
        question,
        answer.ok_or(NamesError::Silent { server })?,
    )
}

fn judge(server: Ipv4Addr, question: &Question, answer: Answer) -> Result<(), NamesError> {
    let fine = match question {
        Question::Address(name) => {
            if answer.code == NO_ERROR && answer.records == 0 {
                let name = name.to_string();
                return Err(NamesError::NoAddress { server, name });
            }
            answer.code == NO_ERROR
        }
        // It was asked and has answered; it need not tell us.
        Question::Anything => [NO_ERROR, NO_SUCH_NAME, REFUSED].contains(&answer.code),
    };
    match fine {
        true => Ok(()),
        false => Err(NamesError::Code {
            server,
            question: match question {
                Question::Address(name) => format!("the question for {name}"),
                Question::Anything => "the question for the root's name servers".to_owned(),
            },
            code: answer.code,
        }),
    }
}

/// [`None`] when no answer comes.
fn exchange(server: Ipv4Addr, question: &Question) -> io::Result<Option<Answer>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(SocketAddrV4::new(server, PORT))?;
    // Answers to all tries are answers.
    let id = buildos_service::random::seed() as u16;
    let query = dns_message::query(id, question);
    let mut buffer = [0; dns_message::LONGEST];
    for _ in 0..TRIES {
        socket.send(&query)?;
        let end = Instant::now() + PATIENCE;
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

pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(question: &Question, code: u8, records: u16) -> Option<String> {
        let server = Ipv4Addr::new(172, 23, 0, 1);
        let error = judge(server, question, Answer { code, records }).err()?;
        Some(error.to_string())
    }

    #[test]
    fn a_configured_name_must_be_known() {
        let question = Question::Address("a.example".to_owned().try_into().unwrap());
        assert_eq!(told(&question, 0, 1), None);
        assert_eq!(
            told(&question, 0, 0).as_deref(),
            Some("172.23.0.1 knows no IPv4 address of a.example")
        );
        assert_eq!(
            told(&question, 3, 0).as_deref(),
            Some("172.23.0.1 answers the question for a.example with: no such name")
        );
    }

    #[test]
    fn without_one_any_answer_of_a_working_server_will_do() {
        for code in [0, 3, 5] {
            assert_eq!(told(&Question::Anything, code, 0), None);
        }
        assert_eq!(
            told(&Question::Anything, 2, 0).as_deref(),
            Some(
                "172.23.0.1 answers the question for the root's name servers with: server failure"
            )
        );
    }
}
