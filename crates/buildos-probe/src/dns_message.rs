//! Encodes a question to a name server, and decodes the header of its answer
//! (RFC 1035, section 4.1).

use crate::request::Question;

/// Length limit of UDP messages (RFC 1035, section 4.2.1).
pub(crate) const LENGTH_LIMIT: usize = 512;

const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_NS: u16 = 2;
const CLASS_IN: u16 = 1;
/// Flag RD: recursion desired.
const RECURSION_DESIRED: u16 = 0x0100;
/// Flag QR: the message is a response.
const RESPONSE: u16 = 0x8000;
/// Mask of the response code in the flags.
const CODE: u16 = 0x000f;

/// Header of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Response code: 0 is success.
    pub(crate) code: u8,
    /// Number of answer records.
    pub(crate) records: u16,
}

/// Encodes a question.
pub(crate) fn query(id: u16, question: &Question) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + 32);
    for word in [id, RECURSION_DESIRED, 1, 0, 0, 0] {
        bytes.extend_from_slice(&u16::to_be_bytes(word));
    }
    let kind = match question {
        Question::Address(name) => {
            for label in name.labels() {
                // Labels of a DomainName have at most 63 bytes.
                bytes.push(label.len() as u8);
                bytes.extend_from_slice(label.as_bytes());
            }
            TYPE_A
        }
        Question::RootServers => TYPE_NS,
    };
    bytes.push(0);
    for word in [kind, CLASS_IN] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    bytes
}

/// Decodes the answer to the question with this number; [`None`] for other messages.
pub(crate) fn answer(id: u16, bytes: &[u8]) -> Option<Answer> {
    let word = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let (flags, records) = (word(2)?, word(6)?);
    (bytes.len() >= HEADER && word(0)? == id && flags & RESPONSE != 0).then_some(Answer {
        code: (flags & CODE) as u8,
        records,
    })
}

/// Describes a response code (RFC 1035, section 4.1.1).
pub(crate) fn describe(code: u8) -> String {
    match code {
        0 => "no error".to_owned(),
        1 => "format error".to_owned(),
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
    fn question_encodes_as_in_rfc_1035() {
        let name = "ab.example".to_owned().try_into().unwrap();
        assert_eq!(
            query(0x1234, &Question::Address(name)),
            b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02ab\x07example\x00\x00\x01\x00\x01"
        );
        assert_eq!(query(1, &Question::RootServers)[HEADER..], [0, 0, 2, 0, 1]);
    }

    #[test]
    fn answer_with_another_number_is_ignored() {
        let mut bytes = [0x12, 0x34, 0x81, 0x83, 0, 1, 0, 2, 0, 0, 0, 0];
        let expected = Answer {
            code: 3,
            records: 2,
        };
        assert_eq!(answer(0x1234, &bytes), Some(expected));
        assert_eq!(answer(0x1235, &bytes), None);
        assert_eq!(answer(0x1234, &bytes[..11]), None);
        // Without QR it is a question.
        bytes[2] = 1;
        assert_eq!(answer(0x1234, &bytes), None);
    }

    proptest! {
        #[test]
        fn arbitrary_datagram_decodes_or_is_ignored(id: u16, bytes: Vec<u8>) {
            if let Some(answer) = answer(id, &bytes) {
                prop_assert!(answer.code < 16);
                prop_assert_eq!(&bytes[..2], id.to_be_bytes());
            }
        }
    }
}
