//! Parses the description of a simulated network: NICs, the networks behind them, and the
//! configuration of the host.
//!
//! A description is one TOML file. The parser is that of the daemons' configuration.
//!
//! | module | subject |
//! |---|---|
//! | `model` | what a description contains |
//! | `keys` | keys of the file |
//! | `dhcp_options` | encoding of DHCP options |
//! | `contradictions` | errors between several keys |

mod contradictions;
mod dhcp_options;
mod keys;
mod model;

use std::path::Path;

use buildos_service::config::{Fragment, Origin, evaluate};

pub(crate) use self::model::{
    Behaviour, Neighbour, Nic, Port, Segment, Server, Topology, Vlan, Word,
};

/// Parses a description. Errors contain `path`.
///
/// # Errors
///
/// Returns all errors, one line each.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Topology, Vec<String>> {
    let fragment = Fragment {
        origin: Origin::File(path.to_owned()),
        text: text.to_owned(),
    };
    let loaded = evaluate(&keys::schema(), &[fragment]);
    let mut problems: Vec<String> = loaded.problems.iter().map(ToString::to_string).collect();
    if problems.is_empty() {
        let contradictions = contradictions::find(&loaded.settings);
        problems.extend(
            contradictions
                .iter()
                .map(|error| format!("{}: {error}", path.display())),
        );
    }
    match problems.is_empty() {
        true => Ok(loaded.settings),
        false => Err(problems),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_encoded_as_in_messages() {
        let text = "[nic.a]\nmac = \"02:00:00:00:00:01\"\n[server.s]\naddress = \"192.0.2.1\"\n\
                    offers = [\"192.0.2.9/24\"]\nfqdn = \"a.example.\"\n\
                    routes = [\"10.0.0.0/8 via 192.0.2.2\"]\noptions = { 43 = \"00ff\" }\n";
        let topology = parse(Path::new("x"), text).unwrap();
        let options = &topology.servers[&Word("s".to_owned())].options;
        assert_eq!(options[&51], [0, 0, 0x0e, 0x10]);
        assert_eq!(options[&81], *b"\x04\0\0\x01a\x07example\0");
        assert_eq!(options[&121], [8, 10, 192, 0, 2, 2]);
        assert_eq!(options[&43], [0, 255]);
    }
}
