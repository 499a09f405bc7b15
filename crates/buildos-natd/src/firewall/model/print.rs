//! Prints a table as nft(8) lists it.
//!
//! # Limits
//!
//! nft(8) has no words for the fields of a DHCP message in a key, and lists their offsets
//! in bits.

use std::fmt;

use ipnet::Ipv4Net;

use super::{
    Chain, CompareOp, Elements, Field, Hash, Hook, KeyPart, Match, Rule, Set, Table, Update,
    Verdict,
};

/// Prints the table as `nft --stateless --terse list table` does.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {} {{", self.family.as_str(), self.name)?;
        for set in &self.sets {
            writeln!(f, "{set}\n")?;
        }
        for (i, chain) in self.chains.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{chain}")?;
        }
        writeln!(f, "}}")
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tset {} {{", self.name)?;
        match &self.elements {
            Elements::AddedAddresses(size) => {
                writeln!(
                    f,
                    "\t\ttype ipv4_addr . mark\n\t\tsize {size}\n\t\tflags dynamic"
                )?;
            }
            Elements::Interfaces(names) => {
                f.write_str("\t\ttype ifname\n")?;
                let names: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
                if !names.is_empty() {
                    writeln!(f, "\t\telements = {{ {} }}", names.join(",\n\t\t\t     "))?;
                }
            }
            Elements::Learned(parts, size) => {
                let parts: Vec<_> = parts.iter().map(ToString::to_string).collect();
                writeln!(f, "\t\ttype {}\n\t\tsize {size}", parts.join(" . "))?;
                f.write_str("\t\tflags dynamic,timeout\n")?;
            }
        }
        f.write_str("\t}")
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hook, kind) = (self.hook.as_str(), self.kind.as_str());
        let priority = self.priority.as_str();
        writeln!(f, "\tchain {} {{", self.name())?;
        if !matches!(self.hook, Hook::Called(_)) {
            writeln!(
                f,
                "\t\ttype {kind} hook {hook} priority {priority}; policy accept;"
            )?;
        }
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.matches {
            write!(f, "{condition} ")?;
        }
        let mut parts: Vec<_> = self.updates.iter().map(ToString::to_string).collect();
        if self.counted {
            parts.push("counter".to_owned());
        }
        if self.verdict != Verdict::Continue {
            parts.push(self.verdict.to_string());
        }
        if !self.comment.is_empty() {
            parts.push(format!("comment \"{}\"", self.comment));
        }
        f.write_str(&parts.join(" "))
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(is, name) => write!(f, "iifname {is}\"{name}\""),
            Self::NotFrom(name) => write!(f, "iifname != \"{name}\""),
            Self::Output(is, name) => write!(f, "oifname {is}\"{name}\""),
            Self::InputLink(link) => write!(f, "iif \"{}\"", link.name),
            Self::OutputLink(link) => write!(f, "oif \"{}\"", link.name),
            Self::InputIn(is, set) => write!(f, "iifname {is}@{set}"),
            Self::OutputNotIn(set) => write!(f, "oifname != @{set}"),
            Self::OutputBridge(name) => write!(f, "meta obrname \"{name}\""),
            Self::EthernetSource(is, address) => write!(f, "ether saddr {is}{address}"),
            Self::ToReservedAddress => {
                f.write_str("ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00")
            }
            Self::Key(is, key, set) => write!(f, "{} {is}@{set}", Fields(key)),
            Self::RateOver { set, key, limit } => write!(
                f,
                "update @{set} {{ {} timeout 10m limit rate over {}/{} burst {} packets }}",
                Fields(key),
                limit.tokens,
                limit.interval.as_str(),
                limit.burst
            ),
            Self::DhcpAcknowledgement => f.write_str("@th,64,8 2 @th,1984,24 0x350105"),
            Self::DhcpAddress(net) => write!(f, "@th,192,32 {}", Net(*net)),
            Self::InputBridge(is, name) => write!(f, "meta ibrname {is}\"{name}\""),
            Self::Arp => f.write_str("ether type arp"),
            Self::ArpSource(is, net) => write!(f, "arp saddr ip {is}{}", Net(*net)),
            Self::Ipv4(is) => write!(f, "meta nfproto {is}ipv4"),
            Self::Ipv4Frame => f.write_str("ether type ip"),
            Self::Source(is, net) => write!(f, "ip saddr {is}{}", Net(*net)),
            Self::Destination(is, net) => write!(f, "ip daddr {is}{}", Net(*net)),
            Self::Protocol(is, transport) => {
                write!(f, "meta l4proto {is}{}", transport.as_str())
            }
            Self::SourcePort(transport, port) => write!(f, "{} sport {port}", transport.as_str()),
            Self::Port(transport, port) => write!(f, "{} dport {port}", transport.as_str()),
            Self::Ports(transport, first, last) => {
                write!(f, "{} dport {first}-{last}", transport.as_str())
            }
            Self::Syn => f.write_str("tcp flags syn"),
            Self::ConnectionsOver {
                set,
                hash,
                groups,
                limit,
            } => write!(
                f,
                "add @{set} {{ ip saddr . {hash} mod {groups} ct count over {limit} }}"
            ),
            Self::EchoRequest => f.write_str("icmp type echo-request"),
            Self::State(states) => {
                let names: Vec<_> = states.iter().map(|state| state.as_str()).collect();
                write!(f, "ct state {}", names.join(","))
            }
            Self::DestinationNat => f.write_str("ct status dnat"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Continue => Ok(()),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::MasqueradePorts(first, last) => write!(f, "masquerade to :{first}-{last}"),
            Self::DestinationNat(address, port) => write!(f, "dnat ip to {address}:{port}"),
            Self::ClampSegmentSize => f.write_str("tcp option maxseg size set rt mtu"),
        }
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connection => "symhash",
            Self::SourcePort => "jhash tcp sport",
        })
    }
}

impl fmt::Display for CompareOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Equal => Ok(()),
            Self::NotEqual => f.write_str("!= "),
        }
    }
}

impl fmt::Display for KeyPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HardwareAddress => "ether_addr",
            Self::Address => "ipv4_addr",
            Self::Interface => "iface_index",
        })
    }
}

impl fmt::Display for Update {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (set, key, seconds) = (self.set, Fields(self.key), self.timeout.as_secs());
        let operation = match self.renew {
            true => "update",
            false => "add",
        };
        write!(f, "{operation} @{set} {{ {key} timeout {seconds}s }}")
    }
}

/// Prints the fields of a key.
struct Fields(super::Key);

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields: Vec<_> = self.0.iter().map(|field| name(*field)).collect();
        f.write_str(&fields.join(" . "))
    }
}

fn name(field: Field) -> &'static str {
    match field {
        Field::EthernetSource => "ether saddr",
        Field::Source => "ip saddr",
        Field::InputInterface => "iif",
        Field::OutputInterface => "oif",
        Field::ArpHardwareAddress => "arp saddr ether",
        Field::ArpAddress => "arp saddr ip",
        Field::DhcpHardwareAddress => "@th,288,48",
        Field::DhcpAddress => "@th,192,32",
    }
}

/// Prints a network, or a single address without its `/32`.
struct Net(Ipv4Net);

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == 32 {
            self.0.addr().fmt(f)
        } else {
            self.0.fmt(f)
        }
    }
}
