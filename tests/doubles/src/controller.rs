//! A controller as an argument: `[priority=]url`.

use std::fmt;
use std::str::FromStr;
use ureq::http::Uri;

/// A controller and how urgent its tasks are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// When it is asked, compared with the others.
    pub priority: Priority,
    /// Where task requests go.
    pub url: Uri,
}

/// `[F]DCBA`, one decimal digit each.
///
/// A: preference. B: A, and lower-B controllers are not asked while a higher-B
/// task runs. C: B, and may interrupt one lower-C task. D: C, but interrupts
/// all lower-D tasks. F: 1 gives the task all hardware threads; only with D.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(u32);

/// Why an argument is no controller.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ControllerError {
    /// What stands before `=` is not `[F]DCBA`.
    #[error("invalid priority {0:?}: four or five decimal digits are expected, [F]DCBA")]
    Priority(String),
    /// The fifth digit says something else than 0 or 1, or 1 without D.
    #[error("invalid priority {0:?}: the fifth digit is 0, or 1 together with the fourth")]
    Full(String),
    /// The rest is not an absolute http or https URL.
    #[error("invalid controller URL {0:?}: http://HOST[:PORT][/PATH] or https://… is expected")]
    Url(String),
}

impl FromStr for Priority {
    type Err = ControllerError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || ControllerError::Priority(text.to_owned());
        if !(4..=5).contains(&text.len()) || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(invalid());
        }
        let value: u32 = text.parse().map_err(|_| invalid())?;
        let (full, d) = (value / 10_000, value / 1000 % 10);
        if full > 1 || (full == 1 && d == 0) {
            return Err(ControllerError::Full(text.to_owned()));
        }
        Ok(Self(value))
    }
}

impl Priority {
    /// Whether a controller of this priority is asked while tasks of these run, of
    /// which there may be `limit`.
    #[must_use]
    pub fn may_ask(self, running: &[Self], limit: usize) -> bool {
        let conserves = running.iter().any(|other| other.level(10) > self.level(10));
        let room = running.len() < limit || !self.interrupts(running, limit).is_empty();
        !conserves && room
    }

    /// Which of the running tasks, by their places, end for a task of this
    /// priority: all of a lower D, or one of a lower C when there is no room.
    #[must_use]
    pub fn interrupts(self, running: &[Self], limit: usize) -> Vec<usize> {
        let lower = |unit| {
            let places = running.iter().enumerate();
            places
                .filter(move |(_, other)| other.level(unit) < self.level(unit))
                .map(|(place, _)| place)
        };
        let all: Vec<usize> = lower(1000).collect();
        if !all.is_empty() {
            return all;
        }
        let full = running.len() >= limit;
        // The least of them.
        let least = lower(100).min_by_key(|place| running[*place]);
        least.filter(|_| full).into_iter().collect()
    }

    /// The digits from this one up, without F: 10 for DCB, 100 for DC, 1000 for D.
    fn level(self, unit: u32) -> u32 {
        self.rank() / unit
    }

    /// What decides who is asked first: DCBA, without F.
    #[must_use]
    pub fn rank(self) -> u32 {
        self.0 % 10_000
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}", self.0)
    }
}

impl FromStr for Controller {
    type Err = ControllerError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A URL may have a `=` too, but not before its first `:`.
        let (priority, url) = match text.split_once('=') {
            Some((priority, url)) if !priority.contains(':') => (priority.parse()?, url),
            Some(_) | None => (Priority::default(), text),
        };
        let invalid = || ControllerError::Url(url.to_owned());
        let url: Uri = url.parse().map_err(|_| invalid())?;
        let host = url.host().is_some_and(|host| !host.is_empty());
        // http::Uri keeps a port that is none in the authority.
        let port = url.authority().is_some_and(|authority| {
            let after_host = authority.as_str().rsplit(']').next().unwrap_or_default();
            !after_host.contains(':') || authority.port_u16().is_some()
        });
        match url.scheme_str() {
            Some("http" | "https") if host && port => Ok(Self { priority, url }),
            Some(_) | None => Err(invalid()),
        }
    }
}

/// The controllers in the order in which they are asked: the highest priority
/// first, `shuffle` deciding among equals.
#[must_use]
pub fn in_order(controllers: &[Controller], shuffle: impl Fn(usize) -> u64) -> Vec<&Controller> {
    let mut order: Vec<(usize, &Controller)> = controllers.iter().enumerate().collect();
    order.sort_by_key(|(index, c)| (std::cmp::Reverse(c.priority.rank()), shuffle(*index)));
    order
        .into_iter()
        .map(|(_, controller)| controller)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn controller(text: &str) -> Controller {
        text.parse().unwrap()
    }

    #[test]
    fn arguments_are_read() {
        assert_eq!(controller("https://ci.example.org").priority, Priority(0));
        assert_eq!(
            controller("http://[2001:db8::1]:8080/x").url.port_u16(),
            Some(8080)
        );
        let with_both = controller("0012=http://192.0.2.1/?build-task=1");
        assert_eq!(
            (with_both.priority, with_both.url.path()),
            (Priority(12), "/")
        );
        assert_eq!(
            controller("http://ci.example.org/?a=b").priority,
            Priority(0)
        );
        assert_eq!(
            controller("11000=http://ci.example.org").priority,
            Priority(11_000)
        );
    }

    #[test]
    fn arguments_that_bbot_agent_would_refuse_are_refused() {
        for text in [
            "12=http://a",
            "123456=http://a",
            "=http://a",
            "00a1=http://a",
            "-001=http://a",
        ] {
            assert!(
                matches!(
                    text.parse::<Controller>(),
                    Err(ControllerError::Priority(_))
                ),
                "{text}"
            );
        }
        for text in ["21000=http://a", "10111=http://a"] {
            assert!(
                matches!(text.parse::<Controller>(), Err(ControllerError::Full(_))),
                "{text}"
            );
        }
        for text in [
            "",
            "a",
            "/a",
            "ftp://a",
            "http://",
            "http://:80",
            "http://a:x",
            "http://a b",
            "0001=",
            "http://a:99999",
        ] {
            assert!(
                matches!(text.parse::<Controller>(), Err(ControllerError::Url(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn the_urgent_are_asked_first_and_equals_by_lot() {
        let all: Vec<Controller> = [
            "http://a",
            "0100=http://b",
            "http://c",
            "11000=http://d",
            "0009=http://e",
        ]
        .map(controller)
        .into();
        let hosts = |lot: fn(usize) -> u64| -> Vec<String> {
            in_order(&all, lot)
                .iter()
                .map(|c| c.url.host().unwrap().to_owned())
                .collect()
        };
        assert_eq!(hosts(|index| index as u64), ["d", "b", "e", "a", "c"]);
        assert_eq!(hosts(|index| 9 - index as u64), ["d", "b", "e", "c", "a"]);
    }

    #[test]
    fn who_is_asked_and_who_ends_while_tasks_run() {
        let priority = |text: &str| text.parse::<Priority>().unwrap();
        for (new, running, limit, may_ask, interrupts) in [
            ("0000", &[][..], 1, true, &[][..]),
            // A: a preference, no more.
            ("0000", &["0009"], 2, true, &[]),
            // B: while it runs, lower ones are not asked.
            ("0009", &["0010"], 2, false, &[]),
            ("0010", &["0000"], 2, true, &[]),
            ("0010", &["0000"], 1, false, &[]),
            // C: one of a lower C ends when there is no room.
            ("0100", &["0000"], 2, true, &[]),
            ("0100", &["0090", "0010"], 2, true, &[1]),
            ("0100", &["0100", "0100"], 2, false, &[]),
            // D: all of a lower D end, room or not.
            ("1000", &["0999", "0000"], 4, true, &[0, 1]),
            ("11000", &["1000"], 1, false, &[]),
            ("2000", &["1000", "2000"], 4, true, &[0]),
        ] {
            let running: Vec<Priority> = running.iter().map(|text| priority(text)).collect();
            let new = priority(new);
            assert_eq!(new.may_ask(&running, limit), may_ask, "{new} {running:?}");
            assert_eq!(
                new.interrupts(&running, limit),
                interrupts,
                "{new} {running:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_argument_is_read_or_refused(text in "([0-9]{0,6}=)?(https?)?(:/{0,3})?\\PC{0,16}") {
            let _ = text.parse::<Controller>();
        }
    }
}
