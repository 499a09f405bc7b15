//! One question to a name server, and its answer (RFC 1035, section 4.1), as far
//! as it says whether there is one.

use crate::request::Question;

/// Longest answer that comes by UDP without being asked for (section 4.2.1).
pub(crate) const LONGEST: usize = 512;

const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_NS: u16 = 2;
const CLASS_IN: u16 = 1;
/// Flags: recursion desired.
const QUESTION: u16 = 0x0100;
/// Flags: this is a response.
const RESPONSE: u16 = 0x8000;
/// Flags: the response code.
const CODE: u16 = 0x000f;

/// What a name server answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The response code: 0 is success.
    pub(crate) code: u8,
    /// How many records it has sent.
    pub(crate) records: u16,
}

/// The question as it is sent.
pub(crate) fn query(id: u16, question: &Question) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + 32);
    for word in [id, QUESTION, 1, 0, 0, 0] {
        bytes.extend_from_slice(&u16::to_be_bytes(word));
    }
    let kind = match question {
        Question::Address(name) => {
            for label in name.labels() {
                // A Name has no longer ones than 63.
                bytes.push(label.len() as u8);
                bytes.extend_from_slice(label.as_bytes());
            }
            TYPE_A
        }
        Question::Anything => TYPE_NS,
    };
    bytes.push(0);
    for word in [kind, CLASS_IN] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    bytes
}

/// The answer to the question with that number; [`None`] for anything else.
pub(crate) fn answer(id: u16, bytes: &[u8]) -> Option<Answer> {
    let word = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let (flags, records) = (word(2)?, word(6)?);
    (bytes.len() >= HEADER && word(0)? == id && flags & RESPONSE != 0).then_some(Answer {
        code: (flags & CODE) as u8,
        records,
    })
}

/// A response code in words (RFC 1035, section 4.1.1).
pub(crate) fn code(code: u8) -> String {
    match code {
        0 => "no error".to_owned(),
        1 => "it does not understand the question".to_owned(),
        2 => "server failure".to_owned(),
        3 => "no such name".to_owned(),
        4 => "not implemented".to_owned(),
        5 => "refused".to_owned(),
        code => format!("error {code}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_question_as_it_is_sent() {
        let name = "ab.example".to_owned().try_into().unwrap();
        assert_eq!(
            query(0x1234, &Question::Address(name)),
            b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02ab\x07example\x00\x00\x01\x00\x01"
        );
        assert_eq!(query(1, &Question::Anything)[HEADER..], [0, 0, 2, 0, 1]);
    }

    #[test]
    fn an_answer_belongs_to_its_question() {
        let mut bytes = [0x12, 0x34, 0x81, 0x83, 0, 1, 0, 2, 0, 0, 0, 0];
        let expected = Answer {
            code: 3,
            records: 2,
        };
        assert_eq!(answer(0x1234, &bytes), Some(expected));
        assert_eq!(answer(0x1235, &bytes), None);
        assert_eq!(answer(0x1234, &bytes[..11]), None);
        // A question is no answer.
        bytes[2] = 1;
        assert_eq!(answer(0x1234, &bytes), None);
    }

    proptest! {
        #[test]
        fn no_datagram_does_harm(id: u16, bytes: Vec<u8>) {
            if let Some(answer) = answer(id, &bytes) {
                prop_assert!(answer.code < 16);
                prop_assert_eq!(&bytes[..2], id.to_be_bytes());
            }
        }
    }
}
