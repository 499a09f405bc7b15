//! Checks the parameters of the kernel command line that scripts of the image read; see
//! buildos(7).

/// The names of the parameters.
pub(super) const PARAMETERS: [&str; 2] = ["buildos.login", "buildos.ssh_key"];

/// The names of the parameters that image/serve and updates of the operating system write.
pub(super) const OF_UPDATES: [&str; 3] = ["buildos.returned", "buildos.running", "buildos.trial"];

/// Returns the mistake in the value of a parameter, if there is one.
///
/// The rules are those of `buildos-image-generator` and ssh-keygen(1). The image runs both,
/// but they report a mistake only when the host boots.
pub(super) fn problem(key: &str, value: &str) -> Option<String> {
    match key {
        "buildos.login" if value.is_empty() || value.contains('/') || value.starts_with('.') => {
            Some(format!(
                "{key}: {value:?} is not the name of a terminal, such as ttyS0"
            ))
        }
        // A key has a type and data, separated by a comma instead of a space.
        "buildos.ssh_key" if value.split([' ', ',']).count() < 2 => Some(format!(
            "{key}: {value:?} is not a public key; replace its spaces by commas"
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn login_takes_names_of_terminals() {
        for value in ["ttyS0", "tty1", "hvc0"] {
            assert_eq!(problem("buildos.login", value), None);
        }
        for value in ["", "/dev/ttyS0", "."] {
            assert!(problem("buildos.login", value).is_some(), "{value}");
        }
    }

    #[test]
    fn ssh_key_takes_type_and_data() {
        for value in ["ssh-ed25519,AAAA,me@desk", "ssh-ed25519 AAAA"] {
            assert_eq!(problem("buildos.ssh_key", value), None);
        }
        for value in ["", "ssh-ed25519"] {
            assert!(problem("buildos.ssh_key", value).is_some(), "{value}");
        }
    }
}
