//! Checks a signed channel file: signatures, grammar, policy, and the objects beside it.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use buildos_channel::policy::{Clock, Terms, Verified, judge};
use buildos_channel::{Channel, Digest, Name, Timestamp, grammar};
use buildos_updated::programs::sqv;

use crate::commands::publish::objects;

/// Keys that an operator trusts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Trust {
    /// File with OpenPGP certificates.
    pub(crate) keyring: Option<PathBuf>,
    /// Required signatures of different certificates; 1 if not given.
    pub(crate) signatures: Option<u8>,
}

/// Returns true if a file has a cleartext signature (RFC 9580, section 7).
pub(crate) fn is_signed(text: &str) -> bool {
    text.starts_with("-----BEGIN PGP SIGNED MESSAGE-----")
}

/// Returns the mistakes in a channel file.
///
/// # Errors
///
/// The signatures are not valid, or cannot be verified.
pub(crate) fn check(path: &Path, trust: &Trust) -> Result<Vec<String>, String> {
    let place = path.display();
    let Some(keyring) = &trust.keyring else {
        return Err(format!(
            "{place} is a signed channel: give the keys that you trust with --keyring FILE"
        ));
    };
    let required = trust.signatures.unwrap_or(1);
    let signed = sqv::verify(
        Path::new("sqv"),
        path,
        std::slice::from_ref(keyring),
        required,
    )
    .map_err(|error| format!("{place}: {error}"))?;
    let parsed = match grammar::parse(&signed.text) {
        Ok(parsed) => parsed,
        Err(problems) => return Ok(placed(&problems, path)),
    };
    // The lines are those of the signed text.
    let mut problems = placed(&parsed.unknown, path);
    problems.extend(refusal(path, &parsed.channel, &signed, required));
    let tree = path.parent().and_then(Path::parent);
    if let Some(tree) = tree.filter(|tree| tree.join("objects").is_dir()) {
        let faults = objects::faults(tree, &parsed.channel);
        problems.extend(faults.iter().map(|fault| format!("{place}: {fault}")));
    }
    Ok(problems)
}

fn placed(problems: &[grammar::Problem], path: &Path) -> Vec<String> {
    let place = path.display();
    let each = problems.iter();
    each.map(|problem| format!("{place}: {problem}")).collect()
}

/// Returns the reason for which a host would refuse the file now.
fn refusal(path: &Path, channel: &Channel, signed: &sqv::Signed, required: u8) -> Option<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    let terms = Terms {
        name: name.and_then(|name| name.parse::<Name>().ok())?,
        signatures: required,
    };
    let file = Verified {
        channel,
        digest: Digest::of(signed.text.as_bytes()),
        signatures: signed.signatures,
    };
    let refusal = judge(file, &terms, None, Clock::Set(now())).err()?;
    Some(format!("{}: hosts refuse it: {refusal}", path.display()))
}

/// Returns the time of this machine.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Timestamp::from_seconds(since.map_or(0, |since| since.as_secs()))
}
