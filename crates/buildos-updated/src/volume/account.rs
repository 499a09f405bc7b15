//! Finds the ids of system accounts. They are in `/etc/passwd`: sysusers made them.

use std::fs;
use std::path::Path;

/// User and primary group of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
}

/// Returns an account.
///
/// # Errors
///
/// No account has this name.
pub fn find(root: &Path, name: &str) -> Result<Account, String> {
    let path = root.join("etc/passwd");
    let text = fs::read_to_string(&path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    parse(&text, name).ok_or_else(|| format!("there is no user {name}"))
}

fn parse(text: &str, name: &str) -> Option<Account> {
    let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let fields = lines.find(|fields| fields.first() == Some(&name))?;
    Some(Account {
        uid: fields.get(2)?.parse().ok()?,
        gid: fields.get(3)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_is_found_by_its_name() {
        let text = "root:x:0:0:root:/root:/bin/bash\nbuild:x:997:996:a:/build:/bin/sh\nbad:x\n";
        let account = Account { uid: 997, gid: 996 };
        assert_eq!(parse(text, "build"), Some(account));
        assert_eq!(parse(text, "buil"), None);
        assert_eq!(parse(text, "bad"), None);
    }
}
