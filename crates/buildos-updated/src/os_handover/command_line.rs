//! Makes the kernel command lines of the new and of the previous system.
//!
//! | parameter | meaning |
//! |---|---|
//! | `buildos.running=IMAGE:INITRD` | digests of the two files that run |
//! | `buildos.trial=SERIAL` | serial of the channel that brought this system |
//! | `buildos.returned=REASON:IMAGE:INITRD` | the host came back from these two files |
//!
//! New parameters come first: after `--`, the kernel passes parameters to PID 1.

pub use crate::os::pair::Pair;

use super::judge::LONGEST_CODE;

const RUNNING: &str = "buildos.running";
const TRIAL: &str = "buildos.trial";
const RETURNED: &str = "buildos.returned";

/// Most bytes of a command line: the kernel of x86 cuts the rest off (`COMMAND_LINE_SIZE`).
pub const LONGEST: usize = 2047;

/// Why the host came back, and from which system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Returned {
    /// A code of [`super::judge::Reason`].
    pub code: String,
    #[allow(missing_docs)]
    pub from: Pair,
}

/// Returns the two files that run.
#[must_use]
pub fn running(line: &str) -> Option<Pair> {
    last(line, RUNNING)?.parse().ok()
}

/// Returns the serial of the channel that brought the running system by kexec.
#[must_use]
pub fn trial(line: &str) -> Option<u64> {
    last(line, TRIAL)?.parse().ok()
}

/// Returns why the host came back to the running system.
#[must_use]
pub fn returned(line: &str) -> Option<Returned> {
    let (code, from) = last(line, RETURNED)?.split_once(':')?;
    Some(Returned {
        code: code.to_owned(),
        from: from.parse().ok()?,
    })
}

/// Returns the command line of a new system; `line` is that of the running one.
#[must_use]
pub fn of_new(line: &str, new: Pair, serial: u64) -> String {
    let running = format!("{RUNNING}={}:{}", new.image, new.initrd);
    let added = [running, format!("{TRIAL}={serial}")];
    join(&added, &without(line, &[RUNNING, TRIAL, RETURNED]))
}

/// Returns the command line with which the running system starts again. It keeps the serial, so
/// that the system still refuses an older channel.
#[must_use]
pub fn of_previous(line: &str) -> String {
    join(&[], &without(line, &[RETURNED]))
}

/// Returns the command line of the previous system after a failed trial; `line` comes from
/// [`of_previous`].
#[must_use]
pub fn of_return(line: &str, code: &str, from: Pair) -> String {
    let returned = format!("{RETURNED}={code}:{}:{}", from.image, from.initrd);
    join(&[returned], &without(line, &[RETURNED]))
}

/// Checks that the kernel takes both the command line of the new system and that of a return.
///
/// # Errors
///
/// One is too long; the reason in one line.
pub fn check_length(line: &str, new: Pair, serial: u64) -> Result<(), String> {
    let longest = "x".repeat(LONGEST_CODE);
    let lines = [
        of_new(line, new, serial),
        of_return(&of_previous(line), &longest, new),
    ];
    match lines.iter().map(String::len).max() {
        Some(length) if length > LONGEST => Err(format!(
            "the kernel command line would have {length} bytes, more than {LONGEST}"
        )),
        _ => Ok(()),
    }
}

/// Returns the value of the last parameter with this key. Values here never have quotes.
fn last<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let mut words = words(line).into_iter().rev();
    words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

fn without<'a>(line: &'a str, keys: &[&str]) -> Vec<&'a str> {
    let named = |word: &str| {
        let key = word.trim_start_matches('"').split('=').next();
        key.is_some_and(|key| keys.contains(&key))
    };
    let words = words(line).into_iter();
    words.filter(|word| !named(word)).collect()
}

fn join(added: &[String], kept: &[&str]) -> String {
    let added = added.iter().map(String::as_str);
    let all: Vec<_> = added.chain(kept.iter().copied()).collect();
    all.join(" ")
}

/// Splits a command line at white space outside double quotes, which stay.
fn words(line: &str) -> Vec<&str> {
    let mut quoted = false;
    let words = line.split(|c: char| {
        quoted ^= c == '"';
        c.is_ascii_whitespace() && !quoted
    });
    words.filter(|word| !word.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildos_channel::Digest;

    fn a_pair(seed: &[u8]) -> Pair {
        Pair {
            image: Digest::of(seed),
            initrd: Digest::of(&[seed, b"i"].concat()),
        }
    }

    fn text(pair: Pair) -> String {
        format!("{}:{}", pair.image, pair.initrd)
    }

    #[test]
    fn new_system_has_parameters_of_the_running_one_and_its_own_digests() {
        let (old, new) = (a_pair(b"old"), a_pair(b"new"));
        let line = format!(
            "console=ttyS0  a=\"b c\" buildos.running={} buildos.trial=3 -- x\n",
            text(old)
        );
        assert_eq!(running(&line), Some(old));
        assert_eq!(trial(&line), Some(3));
        let next = of_new(&line, new, 4);
        assert_eq!(
            next,
            format!(
                "buildos.running={} buildos.trial=4 console=ttyS0 a=\"b c\" -- x",
                text(new)
            )
        );
        assert_eq!((running(&next), trial(&next)), (Some(new), Some(4)));
    }

    #[test]
    fn returned_system_has_its_parameters_and_the_reason() {
        let (old, bad) = (a_pair(b"old"), a_pair(b"bad"));
        let first = format!("quiet buildos.running={} buildos.trial=3", text(old));
        let previous = of_previous(&first);
        assert_eq!(previous, first);
        let line = of_return(&previous, "why-15", bad);
        let expected = Returned {
            code: "why-15".to_owned(),
            from: bad,
        };
        assert_eq!(returned(&line), Some(expected));
        assert_eq!((running(&line), trial(&line)), (Some(old), Some(3)));
        // The next system does not inherit the reason.
        assert_eq!(returned(&of_new(&line, bad, 5)), None);
        assert_eq!(of_previous(&line), previous);
    }

    #[test]
    fn command_line_leaves_room_for_the_reason_of_a_return() {
        let (old, new) = (a_pair(b"old"), a_pair(b"new"));
        let line = |count| format!("buildos.running={} x={}", text(old), "y".repeat(count));
        let most = LONGEST - of_return(&line(0), &"x".repeat(LONGEST_CODE), new).len();
        assert_eq!(check_length(&line(most), new, u64::MAX), Ok(()));
        assert!(of_new(&line(most + 1), new, u64::MAX).len() <= LONGEST);
        let error = check_length(&line(most + 1), new, u64::MAX).unwrap_err();
        assert!(error.ends_with("2048 bytes, more than 2047"), "{error}");
    }

    #[test]
    fn wrong_digests_are_no_pair() {
        for value in ["", "x:y", &"0".repeat(64), &text(a_pair(b"x"))[1..]] {
            let line = format!("buildos.running={value} buildos.returned=why-15:{value}");
            assert_eq!((running(&line), returned(&line)), (None, None), "{value}");
        }
        assert_eq!(running("xbuildos.running=a"), None);
    }
}
