//! Limits journal lines that repeat.
//!
//! A broken cable or a stranger can make a daemon log the same transitions hundreds of times a
//! minute. The limiter passes what is new, and holds back what repeats:
//!
//! | message | is |
//! |---|---|
//! | a text that its group did not have for [`WINDOW`] | passed |
//! | a text again | held |
//! | more new texts in [`WINDOW`] than the group's limit | held |
//!
//! A [`Group`] is the `MESSAGE_ID` and the object of a message. Of the held messages of a group,
//! the last one is reported, with their number: when the group has been quiet for [`QUIET`], and
//! at least once in [`WINDOW`]. A message that was held alone is reported unchanged. So a rare
//! message is never lost, and is late by [`QUIET`] if it repeats.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Time after which a text counts as new again, and of the number of new texts.
pub(crate) const WINDOW: Duration = Duration::from_secs(60);
/// Time without a message of a group after which the held ones are reported.
pub(crate) const QUIET: Duration = Duration::from_secs(5);
/// New texts in [`WINDOW`] about a link. Strangers of a network can cause them.
const TEXTS_OF_LINK: usize = 6;
/// New texts in [`WINDOW`] about anything else, such as the problems of a configuration.
const TEXTS: usize = 20;
/// Groups with a state of their own. The others are one group together.
const GROUPS: usize = 256;

/// What messages are counted together.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Group {
    /// `MESSAGE_ID`, or the place in the source.
    pub(crate) message: String,
    /// The agent, resource or other object.
    pub(crate) object: String,
    /// The network interface.
    pub(crate) link: String,
}

impl Group {
    fn limit(&self) -> usize {
        match self.link.is_empty() {
            true => TEXTS,
            false => TEXTS_OF_LINK,
        }
    }
}

/// The held messages of a group.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Held<R> {
    first: Instant,
    last: Instant,
    /// Number of messages.
    pub(crate) count: u32,
    /// The last message.
    pub(crate) record: R,
}

impl<R> Held<R> {
    /// Returns the time from the first to the last message.
    pub(crate) fn duration(&self) -> Duration {
        self.last.saturating_duration_since(self.first)
    }

    fn due(&self) -> Instant {
        (self.last + QUIET).min(self.first + WINDOW)
    }
}

/// State of a group.
#[derive(Debug)]
struct State<R> {
    /// Passed texts, with the time of their last message: at most the limit of the group.
    texts: BTreeMap<String, Instant>,
    held: Option<Held<R>>,
}

/// Passes or holds messages. `R` is what is written for a message.
#[derive(Debug)]
pub(crate) struct Limiter<R> {
    groups: BTreeMap<Group, State<R>>,
}

impl<R> Limiter<R> {
    pub(crate) fn new() -> Self {
        Self {
            groups: BTreeMap::new(),
        }
    }

    /// Decides about a message. Held messages are written before the one that passes, so that the
    /// journal has the order of events.
    pub(crate) fn offer(&mut self, group: Group, text: &str, record: R, now: Instant) -> Offer<R> {
        self.forget(now);
        let is_known = self.groups.contains_key(&group);
        let group = match is_known || self.groups.len() < GROUPS {
            true => group,
            false => Group::default(),
        };
        let limit = group.limit();
        let state = self.groups.entry(group).or_insert_with(|| State {
            texts: BTreeMap::new(),
            held: None,
        });
        let is_repeated = match state.texts.get_mut(text) {
            Some(seen) => {
                *seen = now;
                true
            }
            None => false,
        };
        if !is_repeated && state.texts.len() < limit {
            state.texts.insert(text.to_owned(), now);
            return Offer::Passed {
                before: self.take(|_| true),
            };
        }
        match &mut state.held {
            Some(held) => {
                held.count = held.count.saturating_add(1);
                held.last = now;
                held.record = record;
            }
            None => {
                state.held = Some(Held {
                    first: now,
                    last: now,
                    count: 1,
                    record,
                });
            }
        }
        Offer::Held
    }

    /// Returns the time of the next report.
    pub(crate) fn due(&self) -> Option<Instant> {
        let held = self.groups.values().filter_map(|state| state.held.as_ref());
        held.map(Held::due).min()
    }

    /// Returns the groups whose held messages are due.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<Held<R>> {
        self.take(|held| held.due() <= now)
    }

    /// Returns all held messages.
    pub(crate) fn take_all(&mut self) -> Vec<Held<R>> {
        self.take(|_| true)
    }

    /// Returns the held messages in the order of their last ones.
    fn take(&mut self, is_wanted: impl Fn(&Held<R>) -> bool) -> Vec<Held<R>> {
        let states = self.groups.values_mut();
        let mut taken: Vec<_> = states
            .filter_map(|state| state.held.take_if(|held| is_wanted(held)))
            .collect();
        taken.sort_by_key(|held| held.last);
        taken
    }

    fn forget(&mut self, now: Instant) {
        self.groups.retain(|_, state| {
            let is_recent = |seen: &mut Instant| now.saturating_duration_since(*seen) < WINDOW;
            state.texts.retain(|_, seen| is_recent(seen));
            state.held.is_some() || !state.texts.is_empty()
        });
    }
}

/// Decision of [`Limiter::offer`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Offer<R> {
    /// These held messages are written, and then that message.
    Passed { before: Vec<Held<R>> },
    /// The message is held. [`Limiter::due`] has the time of its report.
    Held,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A limiter in stepped time, whose messages are their texts.
    struct Journal {
        limiter: Limiter<String>,
        now: Instant,
        lines: Vec<String>,
    }

    impl Journal {
        fn new() -> Self {
            Self {
                limiter: Limiter::new(),
                now: Instant::now(),
                lines: Vec::new(),
            }
        }

        fn write(&mut self, reports: Vec<Held<String>>) {
            let lines = reports.into_iter();
            self.lines.extend(lines.map(|held| {
                let (record, count) = (&held.record, held.count);
                format!("{record} ×{count} in {} s", held.duration().as_secs())
            }));
        }

        fn log(&mut self, message: &str, link: &str, text: &str) {
            let group = Group {
                message: message.to_owned(),
                link: link.to_owned(),
                object: String::new(),
            };
            match self.limiter.offer(group, text, text.to_owned(), self.now) {
                Offer::Passed { before } => {
                    self.write(before);
                    self.lines.push(text.to_owned());
                }
                Offer::Held => {}
            }
        }

        fn pass(&mut self, time: Duration) {
            let end = self.now + time;
            while let Some(due) = self.limiter.due().filter(|due| *due <= end) {
                self.now = due;
                let reports = self.limiter.take_due(due);
                assert!(!reports.is_empty());
                self.write(reports);
            }
            self.now = end;
        }

        fn take(&mut self) -> Vec<String> {
            std::mem::take(&mut self.lines)
        }
    }

    #[test]
    fn rare_messages_pass_at_once() {
        let mut journal = Journal::new();
        for _ in 0..5 {
            journal.log("id", "eth0", "carrier lost");
            journal.log("id", "eth0", "carrier");
            assert_eq!(journal.take(), ["carrier lost", "carrier"]);
            journal.pass(WINDOW);
            assert!(journal.take().is_empty());
        }
    }

    #[test]
    fn flapping_link_writes_each_text_once_and_then_their_number() {
        let mut journal = Journal::new();
        for _ in 0..25 {
            journal.log("id", "eth0", "carrier lost");
            journal.log("id", "eth0", "carrier");
            journal.pass(Duration::from_millis(200));
        }
        journal.pass(QUIET);
        assert_eq!(
            journal.take(),
            ["carrier lost", "carrier", "carrier ×48 in 4 s"]
        );
    }

    #[test]
    fn endless_flapping_is_reported_once_a_minute() {
        let mut journal = Journal::new();
        for _ in 0..(10 * 60) {
            journal.log("id", "eth0", "carrier lost");
            journal.log("id", "eth0", "carrier");
            journal.pass(Duration::from_secs(1));
        }
        let lines = journal.take();
        assert!((10..=12).contains(&lines.len()), "{lines:?}");
        journal.pass(WINDOW);
        journal.take();
        journal.log("id", "eth0", "carrier");
        assert_eq!(journal.take(), ["carrier"]);
    }

    #[test]
    fn repeated_message_alone_is_reported_after_quiet_time() {
        let mut journal = Journal::new();
        journal.log("id", "", "restored");
        journal.pass(Duration::from_secs(30));
        journal.log("id", "", "restored");
        assert_eq!(journal.take(), ["restored"]);
        journal.pass(QUIET);
        assert_eq!(journal.take(), ["restored ×1 in 0 s"]);
    }

    #[test]
    fn different_texts_are_limited_and_counted() {
        for (link, limit) in [("eth0", TEXTS_OF_LINK), ("", TEXTS)] {
            let mut journal = Journal::new();
            for number in 0..1000 {
                journal.log("id", link, &format!("refused {number}"));
            }
            journal.pass(QUIET);
            let lines = journal.take();
            assert_eq!(lines.len(), limit + 1);
            let held = 1000 - limit;
            assert_eq!(lines.last(), Some(&format!("refused 999 ×{held} in 0 s")));
        }
    }

    #[test]
    fn groups_are_limited_by_themselves() {
        let mut journal = Journal::new();
        for link in ["eth0", "eth1"] {
            for message in ["a", "b"] {
                journal.log(message, link, "text");
            }
        }
        assert_eq!(journal.take().len(), 4);
    }

    #[test]
    fn new_message_comes_after_those_held_before() {
        let mut journal = Journal::new();
        for text in ["waiting", "ready", "waiting"] {
            journal.log(text, "", text);
        }
        journal.log("failed", "", "failed");
        assert_eq!(
            journal.take(),
            ["waiting", "ready", "waiting ×1 in 0 s", "failed"]
        );
        assert_eq!(journal.limiter.due(), None);
    }

    #[test]
    fn held_messages_are_reported_in_their_order() {
        let mut journal = Journal::new();
        for text in ["b", "a", "b", "a"] {
            journal.log(text, "", text);
            journal.pass(Duration::from_millis(1));
        }
        journal.pass(QUIET);
        assert_eq!(journal.take()[2..], ["b ×1 in 0 s", "a ×1 in 0 s"]);
    }

    #[test]
    fn many_groups_share_one_and_are_forgotten() {
        let mut journal = Journal::new();
        for number in 0..10_000 {
            journal.log("id", &format!("veth{number}"), "carrier");
        }
        assert_eq!(journal.limiter.groups.len(), GROUPS + 1);
        assert_eq!(journal.take().len(), GROUPS + 1);
        journal.pass(WINDOW + WINDOW);
        journal.log("id", "eth0", "carrier");
        assert_eq!(journal.limiter.groups.len(), 1);
    }

    #[test]
    fn end_of_process_reports_all() {
        let mut journal = Journal::new();
        for _ in 0..3 {
            journal.log("id", "eth0", "carrier");
        }
        let reports = journal.limiter.take_all();
        journal.write(reports);
        assert_eq!(journal.take(), ["carrier", "carrier ×2 in 0 s"]);
    }
}
