//! Validates a controller as bbot-agent accepts it: `[priority=]url`.
//!
//! The priority is `[F]DCBA`, one decimal digit each:
//!
//! | digit | effect |
//! |---|---|
//! | A | preference |
//! | B | as A; controllers with a lower B are not polled while a higher task runs |
//! | C | as B; may interrupt one task of a lower C |
//! | D | as C; interrupts all tasks of a lower D |
//! | F | 1, together with D: the task gets all hardware threads |

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

/// Controller in a form that bbot-agent accepts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Controller(String);

/// List of controllers.
///
/// A text, as on the kernel command line, has commas between controllers. A comma that no
/// controller follows belongs to the URL before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controllers(pub Vec<Controller>);

impl<'de> Deserialize<'de> for Controllers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrList;

        impl<'de> de::Visitor<'de> for TextOrList {
            type Value = Controllers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of controllers")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(list)).map(Controllers)
            }
        }

        deserializer.deserialize_any(TextOrList)
    }
}

impl FromStr for Controllers {
    type Err = ControllerError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut controllers: Vec<String> = Vec::new();
        for part in text.split(',') {
            match controllers.last_mut() {
                Some(last) if !begins_controller(part) => {
                    last.push(',');
                    last.push_str(part);
                }
                Some(_) | None => controllers.push(part.to_owned()),
            }
        }
        let controllers = controllers.iter().map(|text| text.parse());
        controllers.collect::<Result<_, _>>().map(Self)
    }
}

/// Returns true for text that begins like `[PRIORITY=]http://` or `https://`. An invalid
/// priority counts, so that it is reported.
fn begins_controller(text: &str) -> bool {
    let (scheme, _) = text.split_once("://").unwrap_or((text, ""));
    let scheme = match scheme.split_once('=') {
        Some((priority, scheme)) if priority.bytes().all(|b| b.is_ascii_digit()) => scheme,
        Some(_) | None => scheme,
    };
    text.contains("://") && matches!(scheme, "http" | "https")
}

/// Reason why a text is not a [`Controller`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControllerError {
    /// The text before `=` does not have four or five digits.
    #[error("bad priority {0:?}: four or five digits are expected, [F]DCBA")]
    Priority(String),
    /// F is greater than 1, or 1 without D.
    #[error("bad priority {0:?}: its first digit, F, is 0, or 1 together with the next one, D")]
    AllThreads(String),
    /// The URL is not an absolute `http` or `https` URL.
    #[error("bad controller {0:?}: https://HOST[:PORT][/PATH] or http://… is expected")]
    Url(String),
}

impl FromStr for Controller {
    type Err = ControllerError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A URL may contain `=`, but not before its first `:`.
        let url = match text.split_once('=') {
            Some((priority, url)) if !priority.contains(':') => {
                check_priority(priority)?;
                url
            }
            Some(_) | None => text,
        };
        if is_url(url) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ControllerError::Url(url.to_owned()))
        }
    }
}

impl TryFrom<String> for Controller {
    type Error = ControllerError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check_priority(text: &str) -> Result<(), ControllerError> {
    let digits = text.as_bytes();
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err(ControllerError::Priority(text.to_owned()));
    }
    match digits {
        [_, _, _, _] | [b'0', _, _, _, _] | [b'1', b'1'..=b'9', _, _, _] => Ok(()),
        [_, _, _, _, _] => Err(ControllerError::AllThreads(text.to_owned())),
        _ => Err(ControllerError::Priority(text.to_owned())),
    }
}

fn is_url(text: &str) -> bool {
    let Some(rest) = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
    else {
        return false;
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    rest.bytes().all(|b| b.is_ascii_graphic()) && is_authority(authority)
}

/// Returns true for `HOST` and `HOST:PORT`. User names and passwords are refused: every
/// local user can read a command line.
fn is_authority(text: &str) -> bool {
    // An IPv6 address is in brackets.
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        Some(_) | None => (text, None),
    };
    let address = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host_fits = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        }
    };
    host_fits && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn controller_accepts_every_form_of_bbot_agent() {
        for good in [
            "https://ci.example.org",
            "http://192.0.2.1:8080/?build-task",
            "http://[2001:db8::1]:8080/x",
            "https://ci.example.org/?a=b",
            "0001=https://ci.example.org",
            "11000=https://ci.example.org/?a=b",
            "00000=https://ci.example.org",
        ] {
            let controller: Controller = good.parse().unwrap();
            assert_eq!(controller.to_string(), good);
        }
    }

    #[test]
    fn comma_in_query_string_belongs_to_the_url() {
        let split = |text: &str| -> Vec<String> {
            let Controllers(list) = text.parse().unwrap();
            list.iter().map(ToString::to_string).collect()
        };
        let urls = [
            "0100=https://a/?repository=x,y&interactive=true",
            "http://b/?a=1,2=3,https,z://w",
            "https://c",
        ];
        assert_eq!(split(&urls.join(",")), urls);
        assert_eq!(split("https://a/,"), ["https://a/,"]);
        let host = "https://a,b".parse::<Controllers>();
        assert_eq!(host, Err(ControllerError::Url("https://a,b".to_owned())));
        // A query string that contains a URL is written with %2C or %3A.
        assert_eq!(
            split("https://a/?next=b,http://c"),
            ["https://a/?next=b", "http://c"]
        );
        let bad_priority = "https://a,12=https://b".parse::<Controllers>();
        assert_eq!(
            bad_priority,
            Err(ControllerError::Priority("12".to_owned()))
        );
        let no_url = "".parse::<Controllers>();
        assert_eq!(no_url, Err(ControllerError::Url(String::new())));
    }

    #[test]
    fn invalid_priority_is_refused() {
        for (text, all_threads) in [
            ("=http://a", false),
            ("1=http://a", false),
            ("123456=http://a", false),
            ("00x0=http://a", false),
            ("20000=http://a", true),
            ("10999=http://a", true),
        ] {
            let priority = text.split('=').next().unwrap().to_owned();
            let expected = if all_threads {
                ControllerError::AllThreads(priority)
            } else {
                ControllerError::Priority(priority)
            };
            assert_eq!(text.parse::<Controller>(), Err(expected), "{text}");
        }
    }

    #[test]
    fn invalid_url_is_refused() {
        for url in [
            "",
            "ci.example.org",
            "ftp://ci.example.org",
            "https://",
            "https:///path",
            "https://a b",
            "https://a/\n",
            "https://a:port",
            "https://a:0",
            "https://a:65536",
            "https://user@a",
            "https://[::1",
            "https://[x]",
        ] {
            assert_eq!(
                url.parse::<Controller>(),
                Err(ControllerError::Url(url.to_owned())),
                "{url}"
            );
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_kept_or_refused(text: String) {
            if let Ok(controller) = text.parse::<Controller>() {
                prop_assert_eq!(controller.to_string(), text);
            }
        }

        #[test]
        fn priority_with_four_or_five_digits_is_accepted(priority in "[0-9]{0,6}") {
            let four = priority.len() == 4;
            let five = priority.len() == 5
                && (priority.starts_with('0') || (priority.starts_with('1') && !priority.starts_with("10")));
            let controller = format!("{priority}=http://a").parse::<Controller>();
            prop_assert_eq!(controller.is_ok(), four || five);
        }
    }
}
