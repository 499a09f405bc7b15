//! Parses controllers (`[priority=]url`) and orders them by priority.

use std::fmt;
use std::str::FromStr;
use ureq::http::Uri;

/// A controller and the priority of its tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// Priority of its tasks; controllers with a higher priority are polled first.
    pub priority: Priority,
    /// Destination of task requests.
    pub url: Uri,
}

/// `[F]DCBA`, one decimal digit each.
///
/// | digit | effect |
/// |---|---|
/// | A | preference |
/// | B | A, and controllers with a lower B are not polled while a task with a higher B runs |
/// | C | B, and may interrupt one task with a lower C |
/// | D | C, but interrupts all tasks with a lower D |
/// | F | 1 gives the task all hardware threads; only with D |
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(u32);

/// The reason why an argument is not a controller.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ControllerError {
    /// The text before `=` is not `[F]DCBA`.
    #[error("invalid priority {0:?}: four or five decimal digits are expected, [F]DCBA")]
    Priority(String),
    /// The fifth digit is not 0 or 1, or it is 1 without D.
    #[error("invalid priority {0:?}: the fifth digit is 0, or 1 together with the fourth")]
    Full(String),
    /// The text after `=` is not an absolute http or https URL.
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
    /// Returns true if a controller of this priority is polled while tasks with the
    /// priorities `running` run. `limit` is the maximum number of tasks.
    #[must_use]
    pub fn may_poll(self, running: &[Self], limit: usize) -> bool {
        let has_higher = running.iter().any(|other| other.level(10) > self.level(10));
        let has_room = running.len() < limit || !self.interrupts(running, limit).is_empty();
        !has_higher && has_room
    }

    /// Returns the indexes of the running tasks that a task of this priority interrupts.
    ///
    /// It interrupts all tasks of a lower D, or one of a lower C if the limit is reached.
    #[must_use]
    pub fn interrupts(self, running: &[Self], limit: usize) -> Vec<usize> {
        let lower = |unit| {
            let indexed = running.iter().enumerate();
            indexed
                .filter(move |(_, other)| other.level(unit) < self.level(unit))
                .map(|(index, _)| index)
        };
        let all: Vec<usize> = lower(1000).collect();
        if !all.is_empty() {
            return all;
        }
        let is_full = running.len() >= limit;
        let lowest = lower(100).min_by_key(|index| running[*index]);
        lowest.filter(|_| is_full).into_iter().collect()
    }

    /// Returns the digits from this one up, without F: 10 for DCB, 100 for DC, 1000 for D.
    fn level(self, unit: u32) -> u32 {
        self.rank() / unit
    }

    /// Returns the digits DCBA, which decide the order of polls.
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
        // A URL can contain `=`, but not before its first `:`.
        let (priority, url) = match text.split_once('=') {
            Some((priority, url)) if !priority.contains(':') => (priority.parse()?, url),
            Some(_) | None => (Priority::default(), text),
        };
        let invalid = || ControllerError::Url(url.to_owned());
        let url: Uri = url.parse().map_err(|_| invalid())?;
        let has_host = url.host().is_some_and(|host| !host.is_empty());
        // http::Uri keeps an invalid port in the authority.
        let has_valid_port = url.authority().is_some_and(|authority| {
            let after_host = authority.as_str().rsplit(']').next().unwrap_or_default();
            !after_host.contains(':') || authority.port_u16().is_some()
        });
        match url.scheme_str() {
            Some("http" | "https") if has_host && has_valid_port => Ok(Self { priority, url }),
            Some(_) | None => Err(invalid()),
        }
    }
}

/// Returns the controllers in the order of polls: the highest priority first, and equal
/// ones ordered by `shuffle`.
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
    fn valid_arguments_are_parsed() {
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
    fn arguments_invalid_for_bbot_agent_are_rejected() {
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
    fn controllers_are_polled_by_priority_and_shuffled_if_equal() {
        let all: Vec<Controller> = [
            "http://a",
            "0100=http://b",
            "http://c",
            "11000=http://d",
            "0009=http://e",
        ]
        .map(controller)
        .into();
        let hosts = |shuffle: fn(usize) -> u64| -> Vec<String> {
            in_order(&all, shuffle)
                .iter()
                .map(|c| c.url.host().unwrap().to_owned())
                .collect()
        };
        assert_eq!(hosts(|index| index as u64), ["d", "b", "e", "a", "c"]);
        assert_eq!(hosts(|index| 9 - index as u64), ["d", "b", "e", "c", "a"]);
    }

    #[test]
    fn priority_decides_polls_and_interruptions_while_tasks_run() {
        let priority = |text: &str| text.parse::<Priority>().unwrap();
        for (new, running, limit, may_poll, interrupts) in [
            ("0000", &[][..], 1, true, &[][..]),
            // A: only a preference.
            ("0000", &["0009"], 2, true, &[]),
            // B: lower ones are not polled while it runs.
            ("0009", &["0010"], 2, false, &[]),
            ("0010", &["0000"], 2, true, &[]),
            ("0010", &["0000"], 1, false, &[]),
            // C: one of a lower C ends at the limit.
            ("0100", &["0000"], 2, true, &[]),
            ("0100", &["0090", "0010"], 2, true, &[1]),
            ("0100", &["0100", "0100"], 2, false, &[]),
            // D: all of a lower D end, even below the limit.
            ("1000", &["0999", "0000"], 4, true, &[0, 1]),
            ("11000", &["1000"], 1, false, &[]),
            ("2000", &["1000", "2000"], 4, true, &[0]),
        ] {
            let running: Vec<Priority> = running.iter().map(|text| priority(text)).collect();
            let new = priority(new);
            assert_eq!(new.may_poll(&running, limit), may_poll, "{new} {running:?}");
            assert_eq!(
                new.interrupts(&running, limit),
                interrupts,
                "{new} {running:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_argument_is_parsed_or_rejected(text in "([0-9]{0,6}=)?(https?)?(:/{0,3})?\\PC{0,16}") {
            let _ = text.parse::<Controller>();
        }
    }
}
