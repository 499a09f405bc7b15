//! Rules of others that drop what machines send or are sent.
//!
//! Every base chain of every table has its say: what ours accepts, another
//! one may still drop. So the traffic that a machine needs is walked through
//! the chains of the others, as far as it can be known: a [`Flow`] says of
//! some bits of a packet what they are, and leaves the others open. A rule
//! that is certain to match and to drop is found for certain. One that hangs
//! on something not known here (a set, a match of iptables) is a suspect,
//! which is of interest only when machines are cut off.

use std::collections::HashMap;
use std::fmt;

use crate::nft::{
    AnyTable, ConnectionKey, Expression, Image, ImageChain, ImageRule, MetaKey, PayloadBase,
};
use crate::site::Site;
use crate::table::Is;

/// `NFT_TABLE_F_DORMANT`: none of the table's chains is in the packets' way
/// (linux/netfilter/nf_tables.h).
const DORMANT: u32 = 1;
/// Chains are called this deep at most (`NFT_JUMP_STACK_SIZE`,
/// net/netfilter/nf_tables.h).
const DEEPEST: usize = 16;
/// Chains that call each other may be walked through in more ways than there is
/// time for; what comes after so many rules is not known.
const LONGEST: u32 = 10_000;

/// A place that drops traffic of machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The table, as `nft` names it: `ip filter`.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The rule, or the chain's policy.
    pub what: Dropper,
    /// What is dropped, in words.
    pub traffic: Vec<&'static str>,
    /// Whether it is certain that it is dropped.
    pub certain: bool,
}

/// What drops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dropper {
    /// What no rule has decided.
    Policy,
    /// A rule.
    Rule {
        /// Its place in the chain, from 1.
        number: usize,
        /// What it says, as far as we can tell.
        text: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            Dropper::Policy => write!(f, "the policy")?,
            Dropper::Rule { number, text } => write!(f, "rule {number} ({text})")?,
        }
        let (chain, table) = (&self.chain, &self.table);
        let verb = if self.certain { "drops" } else { "may drop" };
        write!(f, " of chain {chain} in table {table} {verb} ")?;
        f.write_str(&self.traffic.join(" and "))
    }
}

impl Finding {
    fn is_same(&self, other: &Self) -> bool {
        let place = |f: &Self| (f.certain, f.table.clone(), f.chain.clone(), f.what.clone());
        place(self) == place(other)
    }
}

/// What the tables of others drop of what machines need, certain findings
/// first.
#[must_use]
pub fn findings(tables: &[AnyTable], site: &Site) -> Vec<Finding> {
    let mut all: Vec<Finding> = Vec::new();
    for flow in flows(site) {
        for found in tables.iter().flat_map(|table| walk_table(table, &flow)) {
            match all.iter_mut().find(|known| known.is_same(&found)) {
                Some(known) => {
                    if !known.traffic.contains(&flow.traffic) {
                        known.traffic.push(flow.traffic);
                    }
                }
                None => all.push(found),
            }
        }
    }
    all.sort_by_key(|finding| !finding.certain);
    all
}

/// Truth, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    Yes,
    No,
    Maybe,
}

impl Truth {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            (Self::Maybe | Self::Yes, Self::Maybe | Self::Yes) => Self::Maybe,
        }
    }

    fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Maybe => Self::Maybe,
        }
    }
}

/// Bytes of which each bit is known or not.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bits(Vec<(u8, u8)>);

impl Bits {
    fn known(bytes: &[u8]) -> Self {
        Self(bytes.iter().map(|byte| (*byte, 0xff)).collect())
    }

    fn unknown(length: usize) -> Self {
        Self(vec![(0, 0); length])
    }

    /// The first bits of an address.
    fn network(net: ipnet::Ipv4Net) -> Self {
        let bytes = net.network().octets().into_iter();
        Self(bytes.zip(net.netmask().octets()).collect())
    }

    /// A name as the kernel compares it: 16 bytes, filled up with NUL.
    fn name(name: &str) -> Self {
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(libc::IFNAMSIZ, 0);
        Self::known(&bytes)
    }

    fn mask(&mut self, mask: &[u8]) {
        for ((value, known), mask) in self.0.iter_mut().zip(mask) {
            *value &= mask;
            *known |= !mask;
        }
    }

    /// Whether it is one of these values.
    fn is_in(&self, set: &[Vec<u8>]) -> Truth {
        let found = set.iter().map(|value| self.begins_with(value));
        found.fold(Truth::No, |any, is| any.not().and(is.not()).not())
    }

    /// Whether it begins with these bytes.
    fn begins_with(&self, bytes: &[u8]) -> Truth {
        if bytes.len() > self.0.len() {
            return Truth::Maybe;
        }
        let mut truth = Truth::Yes;
        for ((value, known), byte) in self.0.iter().zip(bytes) {
            if (value ^ byte) & known != 0 {
                return Truth::No;
            }
            if *known != 0xff {
                truth = Truth::Maybe;
            }
        }
        truth
    }
}

/// Traffic that machines need, at one hook.
#[derive(Debug, Clone)]
struct Flow {
    traffic: &'static str,
    hook: i32,
    input: Bits,
    output: Bits,
    protocol: Bits,
    source: Bits,
    destination: Bits,
    source_port: Bits,
    destination_port: Bits,
    state: Bits,
}

/// `NF_CT_STATE_BIT` (linux/netfilter/nf_conntrack_common.h).
const ESTABLISHED: u32 = 1 << 1;
const NEW: u32 = 1 << 3;
/// `IPS_DST_NAT` (linux/netfilter/nf_conntrack_common.h).
const DESTINATION_CHANGED: u32 = 1 << 5;

/// What a machine needs: a way out and back, an address, names.
fn flows(site: &Site) -> Vec<Flow> {
    let private = Bits::name(site.private.as_str());
    let public = Bits::name(site.public.as_str());
    let nowhere = Bits::name("");
    let machines = Bits::network(site.network.net());
    let host = Bits::known(&site.network.host().octets());
    let udp = Bits::known(&[libc::IPPROTO_UDP as u8]);
    let port = |port: u16| Bits::known(&port.to_be_bytes());
    let state = |bits: u32| Bits::known(&bits.to_ne_bytes());
    let any = Flow {
        traffic: "",
        hook: 0,
        input: nowhere.clone(),
        output: nowhere.clone(),
        protocol: Bits::unknown(1),
        source: Bits::unknown(4),
        destination: Bits::unknown(4),
        source_port: Bits::unknown(2),
        destination_port: Bits::unknown(2),
        state: Bits::unknown(4),
    };
    let out = Flow {
        traffic: "what machines send out",
        input: private.clone(),
        source: machines.clone(),
        state: state(NEW),
        ..any.clone()
    };
    let back = Flow {
        traffic: "the answers to machines",
        input: public.clone(),
        state: state(ESTABLISHED),
        ..any.clone()
    };
    let addresses = Flow {
        traffic: "machines' requests for an address",
        input: private.clone(),
        protocol: udp.clone(),
        source_port: port(68),
        destination_port: port(67),
        ..any.clone()
    };
    let names = Flow {
        traffic: "machines' questions for names",
        input: private.clone(),
        protocol: udp,
        source: machines.clone(),
        destination: host.clone(),
        destination_port: port(53),
        state: state(NEW),
        ..any.clone()
    };
    let answers = Flow {
        traffic: "what the host answers machines",
        output: private.clone(),
        source: host,
        state: state(ESTABLISHED),
        ..any
    };
    let mut flows = Vec::new();
    for (flow, output, destination) in [
        (&out, &public, &out.destination),
        (&back, &private, &machines),
    ] {
        flows.push(at(flow, libc::NF_INET_PRE_ROUTING));
        for hook in [libc::NF_INET_FORWARD, libc::NF_INET_POST_ROUTING] {
            flows.push(Flow {
                output: output.clone(),
                destination: destination.clone(),
                ..at(flow, hook)
            });
        }
    }
    for flow in [&addresses, &names] {
        flows.push(at(flow, libc::NF_INET_PRE_ROUTING));
        flows.push(at(flow, libc::NF_INET_LOCAL_IN));
    }
    flows.push(at(&answers, libc::NF_INET_LOCAL_OUT));
    flows.push(at(&answers, libc::NF_INET_POST_ROUTING));
    flows
}

fn at(flow: &Flow, hook: i32) -> Flow {
    Flow {
        hook,
        ..flow.clone()
    }
}

impl Flow {
    fn load(&self, expression: &Expression) -> Option<Bits> {
        Some(match expression {
            Expression::Meta(MetaKey::InputName) => self.input.clone(),
            Expression::Meta(MetaKey::OutputName) => self.output.clone(),
            Expression::Meta(MetaKey::NetworkProtocol) => Bits::known(&[libc::NFPROTO_IPV4 as u8]),
            Expression::Meta(MetaKey::TransportProtocol) => self.protocol.clone(),
            Expression::Connection(ConnectionKey::State) => self.state.clone(),
            // Nobody has redirected it; the rest is open.
            Expression::Connection(ConnectionKey::Status) => {
                Bits(DESTINATION_CHANGED.to_ne_bytes().map(|bit| (0, bit)).into())
            }
            Expression::Payload {
                base,
                offset,
                length,
            } => self.payload(*base, *offset as usize, *length as usize),
            Expression::Foreign(name) if LOADS.contains(&name.as_str()) => Bits::unknown(0),
            Expression::Mask(_)
            | Expression::Compare(..)
            | Expression::Lookup(..)
            | Expression::Counter
            | Expression::Accept
            | Expression::Drop
            | Expression::Masquerade
            | Expression::Jump(_)
            | Expression::Goto(_)
            | Expression::Return
            | Expression::Reject
            | Expression::Match(_)
            | Expression::Target(_)
            | Expression::Foreign(_) => return None,
        })
    }

    /// Offsets: RFC 791, section 3.1; RFC 768.
    fn payload(&self, base: PayloadBase, offset: usize, length: usize) -> Bits {
        let field = match (base, offset) {
            (PayloadBase::Network, 9) => &self.protocol,
            (PayloadBase::Network, 12) => &self.source,
            (PayloadBase::Network, 16) => &self.destination,
            (PayloadBase::Transport, 0) => &self.source_port,
            (PayloadBase::Transport, 2) => &self.destination_port,
            (PayloadBase::Network | PayloadBase::Transport, _) => return Bits::unknown(length),
        };
        match field.0.get(..length) {
            Some(bits) => Bits(bits.to_vec()),
            None => Bits::unknown(length),
        }
    }
}

/// Expressions that load something we do not know, when they are not ours.
const LOADS: [&str; 11] = [
    "meta",
    "ct",
    "payload",
    "bitwise",
    "byteorder",
    "exthdr",
    "fib",
    "hash",
    "numgen",
    "rt",
    "socket",
];
/// Expressions that decide nothing.
const SILENT: [&str; 6] = ["immediate", "last", "log", "notrack", "objref", "dup"];
/// Expressions that let the packet pass in this chain.
const PASSING: [&str; 6] = ["nat", "masq", "redir", "tproxy", "queue", "flow_offload"];
/// Targets of iptables that let the packet pass in this chain.
const PASSING_TARGETS: [&str; 5] = ["DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP"];

/// What a rule does, if its conditions hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect<'a> {
    Nothing,
    Pass,
    Drop,
    Jump(&'a str),
    Goto(&'a str),
    Return,
    /// Looked up in a map that we do not read.
    Unknown,
}

/// What is in a table's sets, as far as it is known.
type Sets = HashMap<String, Vec<Vec<u8>>>;

/// Whether the rule matches, and what it then does.
fn judge<'a>(rule: &'a ImageRule, sets: &Sets, flow: &Flow) -> (Truth, Effect<'a>) {
    let mut truth = Truth::Yes;
    let mut register = Bits::unknown(0);
    for expression in &rule.expressions {
        if let Some(loaded) = flow.load(expression) {
            register = loaded;
            continue;
        }
        let effect = match expression {
            Expression::Mask(mask) => {
                register.mask(mask);
                Effect::Nothing
            }
            Expression::Compare(is, bytes) => {
                let equal = register.begins_with(bytes);
                truth = truth.and(match is {
                    Is::Equal => equal,
                    Is::Not => equal.not(),
                });
                Effect::Nothing
            }
            Expression::Lookup(is, set) => {
                let within = sets
                    .get(set)
                    .map_or(Truth::Maybe, |set| register.is_in(set));
                truth = truth.and(match is {
                    Is::Equal => within,
                    Is::Not => within.not(),
                });
                Effect::Nothing
            }
            Expression::Accept | Expression::Masquerade => Effect::Pass,
            Expression::Drop | Expression::Reject => Effect::Drop,
            Expression::Jump(chain) => Effect::Jump(chain),
            Expression::Goto(chain) => Effect::Goto(chain),
            Expression::Return => Effect::Return,
            // Always true, and there for people.
            Expression::Match(name) if name == "comment" => Effect::Nothing,
            Expression::Target(name) if name == "REJECT" => Effect::Drop,
            Expression::Target(name) if PASSING_TARGETS.contains(&name.as_str()) => Effect::Pass,
            Expression::Foreign(name) if PASSING.contains(&name.as_str()) => Effect::Pass,
            Expression::Foreign(name) if SILENT.contains(&name.as_str()) => Effect::Nothing,
            Expression::Counter | Expression::Target(_) => Effect::Nothing,
            Expression::Match(_)
            | Expression::Foreign(_)
            | Expression::Meta(_)
            | Expression::Connection(_)
            | Expression::Payload { .. } => {
                truth = truth.and(Truth::Maybe);
                Effect::Nothing
            }
        };
        if truth == Truth::No {
            return (Truth::No, Effect::Nothing);
        }
        if effect != Effect::Nothing {
            return (truth, effect);
        }
    }
    let looks_up = |e: &Expression| matches!(e, Expression::Foreign(name) if name == "lookup");
    match rule.expressions.iter().any(looks_up) {
        true => (truth, Effect::Unknown),
        false => (truth, Effect::Nothing),
    }
}

fn walk_table(table: &AnyTable, flow: &Flow) -> Vec<Finding> {
    // The other families see no IPv4 packets that are routed, or not as such.
    let family = match table.family {
        libc::NFPROTO_IPV4 => "ip",
        libc::NFPROTO_INET => "inet",
        _ => return Vec::new(),
    };
    if table.table.flags & DORMANT != 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    for base in &table.table.chains {
        if base.hook != Some(flow.hook as u32) {
            continue;
        }
        let mut walk = Walk {
            table: &table.table,
            sets: &table.sets,
            name: format!("{family} {}", table.table.name),
            flow,
            left: LONGEST,
            found: Vec::new(),
        };
        let through = walk.chain(base, true, 0);
        let drops = base.policy == Some(libc::NF_DROP as u32);
        if drops && through != Through::Never {
            walk.find(base, Dropper::Policy, through == Through::Always);
        }
        found.append(&mut walk.found);
    }
    found
}

/// Whether the packet comes out of a chain undecided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Through {
    Always,
    Sometimes,
    Never,
}

struct Walk<'a> {
    table: &'a Image,
    sets: &'a Sets,
    name: String,
    flow: &'a Flow,
    /// Rules that are still looked at.
    left: u32,
    found: Vec<Finding>,
}

impl<'a> Walk<'a> {
    /// `sure`: the packet is certain to come to this chain.
    fn chain(&mut self, chain: &'a ImageChain, mut sure: bool, depth: usize) -> Through {
        // Nothing before can have decided, and nothing can have left the chain.
        let (mut undecided, mut stayed) = (true, true);
        for (i, rule) in chain.rules.iter().enumerate() {
            let Some(left) = self.left.checked_sub(1) else {
                return Through::Sometimes;
            };
            self.left = left;
            let (truth, effect) = judge(rule, self.sets, self.flow);
            if truth == Truth::No {
                continue;
            }
            let certain = truth == Truth::Yes;
            let (through, leaves) = match effect {
                Effect::Nothing => continue,
                Effect::Pass => (Through::Never, true),
                Effect::Drop => {
                    let (number, text) = (i + 1, text(rule));
                    self.find(chain, Dropper::Rule { number, text }, sure && certain);
                    (Through::Never, true)
                }
                Effect::Jump(to) => (self.call(to, sure && certain, depth), false),
                Effect::Goto(to) => (self.call(to, sure && certain, depth), true),
                Effect::Return => (Through::Always, true),
                Effect::Unknown => (Through::Sometimes, false),
            };
            let ends = leaves || through == Through::Never;
            if certain && ends {
                return match through {
                    Through::Always if undecided => Through::Always,
                    Through::Never if stayed => Through::Never,
                    Through::Always | Through::Sometimes | Through::Never => Through::Sometimes,
                };
            }
            undecided &= through == Through::Always;
            stayed &= !(leaves && through != Through::Never) && effect != Effect::Unknown;
            sure &= !ends && through == Through::Always;
        }
        match undecided {
            true => Through::Always,
            false => Through::Sometimes,
        }
    }

    fn call(&mut self, name: &str, sure: bool, depth: usize) -> Through {
        match self.table.chains.iter().find(|chain| chain.name == name) {
            Some(chain) if depth < DEEPEST => self.chain(chain, sure, depth + 1),
            Some(_) | None => Through::Always,
        }
    }

    fn find(&mut self, chain: &ImageChain, what: Dropper, certain: bool) {
        self.found.push(Finding {
            table: self.name.clone(),
            chain: chain.name.clone(),
            what,
            traffic: vec![self.flow.traffic],
            certain,
        });
    }
}

/// A rule in the words of `nft`, with `…` for what we do not read.
fn text(rule: &ImageRule) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut loaded: Option<&str> = None;
    let mut mask: &[u8] = &[];
    for expression in &rule.expressions {
        let word = match expression {
            Expression::Meta(MetaKey::InputName) => {
                loaded = Some("iifname");
                continue;
            }
            Expression::Meta(MetaKey::OutputName) => {
                loaded = Some("oifname");
                continue;
            }
            Expression::Payload {
                base: PayloadBase::Network,
                offset: 12,
                ..
            } => {
                (loaded, mask) = (Some("ip saddr"), &[]);
                continue;
            }
            Expression::Payload {
                base: PayloadBase::Network,
                offset: 16,
                ..
            } => {
                (loaded, mask) = (Some("ip daddr"), &[]);
                continue;
            }
            Expression::Mask(bits) => {
                mask = bits;
                continue;
            }
            Expression::Compare(is, bytes) => match loaded.take() {
                Some(what) => format!("{what} {is}{}", operand(what, bytes, mask)),
                None => "…".to_owned(),
            },
            Expression::Match(name) => format!("-m {name}"),
            Expression::Target(name) => format!("-j {name}"),
            Expression::Drop => "drop".to_owned(),
            Expression::Reject => "reject".to_owned(),
            Expression::Counter => continue,
            Expression::Meta(_)
            | Expression::Connection(_)
            | Expression::Payload { .. }
            | Expression::Accept
            | Expression::Masquerade
            | Expression::Jump(_)
            | Expression::Goto(_)
            | Expression::Return
            | Expression::Lookup(..)
            | Expression::Foreign(_) => {
                loaded = None;
                "…".to_owned()
            }
        };
        if word != "…" || words.last() != Some(&word) {
            words.push(word);
        }
    }
    buildos_service::text::escape(&words.join(" "))
}

/// What a name or an address is compared with.
fn operand(what: &str, bytes: &[u8], mask: &[u8]) -> String {
    if what.starts_with("ip ") {
        let mut octets = [0; 4];
        for (octet, byte) in octets.iter_mut().zip(bytes) {
            *octet = *byte;
        }
        let address = std::net::Ipv4Addr::from(octets);
        let bits = match mask {
            [] => bytes.len() as u32 * 8,
            mask => mask.iter().map(|byte| byte.count_ones()).sum(),
        };
        return match bits {
            32 => address.to_string(),
            bits => format!("{address}/{bits}"),
        };
    }
    let name: Vec<u8> = bytes
        .iter()
        .copied()
        .take_while(|byte| *byte != 0)
        .collect();
    // Without its NUL it is the beginning of a name.
    let star = if bytes.contains(&0) { "" } else { "*" };
    format!("\"{}{star}\"", String::from_utf8_lossy(&name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(expressions: &[Expression]) -> ImageRule {
        ImageRule {
            expressions: expressions.to_vec(),
            comment: String::new(),
        }
    }

    fn chain(name: &str, hook: Option<i32>, drops: bool, rules: Vec<ImageRule>) -> ImageChain {
        ImageChain {
            name: name.to_owned(),
            kind: "filter".to_owned(),
            hook: hook.map(|hook| hook as u32),
            priority: 0,
            policy: hook.map(|_| if drops { 0 } else { 1 }),
            rules,
        }
    }

    fn table(chains: Vec<ImageChain>) -> AnyTable {
        AnyTable {
            family: libc::NFPROTO_IPV4,
            table: Image {
                name: "filter".to_owned(),
                flags: 0,
                chains,
            },
            sets: HashMap::new(),
        }
    }

    fn forward(drops: bool, rules: Vec<ImageRule>) -> ImageChain {
        chain("FORWARD", Some(libc::NF_INET_FORWARD), drops, rules)
    }

    /// `-i NAME`, `-o NAME`: the key and what it is compared with.
    fn interface(key: MetaKey, name: &str) -> [Expression; 2] {
        let mut bytes = name.as_bytes().to_vec();
        match bytes.last() {
            Some(b'+') => {
                bytes.pop();
            }
            _ => bytes.push(0),
        }
        [Expression::Meta(key), Expression::Compare(Is::Equal, bytes)]
    }

    fn with(conditions: &[&[Expression]], verdict: Expression) -> ImageRule {
        let mut expressions = conditions.concat();
        expressions.push(Expression::Counter);
        expressions.push(verdict);
        rule(&expressions)
    }

    fn input(name: &str) -> [Expression; 2] {
        interface(MetaKey::InputName, name)
    }

    fn output(name: &str) -> [Expression; 2] {
        interface(MetaKey::OutputName, name)
    }

    #[track_caller]
    fn check(chains: Vec<ImageChain>, expected: &[&str]) {
        let found: Vec<_> = findings(&[table(chains)], &Site::example())
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(found, expected);
    }

    const BOTH_WAYS: &str = "the policy of chain FORWARD in table ip filter drops what machines \
                             send out and the answers to machines";

    #[test]
    fn nothing_that_concerns_machines_is_found() {
        check(vec![], &[]);
        check(
            vec![
                forward(false, vec![with(&[&input("docker0")], Expression::Drop)]),
                chain(
                    "INPUT",
                    Some(libc::NF_INET_LOCAL_IN),
                    true,
                    vec![with(&[&input("br+")], Expression::Accept)],
                ),
            ],
            &[],
        );
    }

    #[test]
    fn docker_sets_the_policy() {
        let docker = |rules| {
            vec![
                forward(true, rules),
                chain("DOCKER-USER", None, false, vec![]),
                chain(
                    "DOCKER-FORWARD",
                    None,
                    false,
                    vec![
                        with(
                            &[
                                &output("docker0"),
                                &[Expression::Match("conntrack".to_owned())],
                            ],
                            Expression::Accept,
                        ),
                        with(&[&input("docker0")], Expression::Accept),
                    ],
                ),
            ]
        };
        let jumps = vec![
            with(&[], Expression::Jump("DOCKER-USER".to_owned())),
            with(&[], Expression::Jump("DOCKER-FORWARD".to_owned())),
        ];
        check(docker(jumps.clone()), &[BOTH_WAYS]);
        // Docker's answer to it, and how an administrator gets around.
        let mut rules = jumps;
        rules.insert(0, with(&[&input("br1")], Expression::Accept));
        rules.insert(1, with(&[&output("br1")], Expression::Accept));
        check(docker(rules), &[]);
    }

    #[test]
    fn a_rule_is_named() {
        check(
            vec![forward(
                false,
                vec![
                    with(&[&input("eth0")], Expression::Drop),
                    with(&[&input("br+"), &output("br0")], Expression::Reject),
                ],
            )],
            &[
                "rule 2 (iifname \"br*\" oifname \"br0\" reject) of chain FORWARD in table ip filter \
               drops what machines send out",
            ],
        );
        let source = |bytes: &[u8], mask: &[u8]| {
            [
                Expression::Payload {
                    base: PayloadBase::Network,
                    offset: 12,
                    length: 4,
                },
                Expression::Mask(mask.to_vec()),
                Expression::Compare(Is::Equal, bytes.to_vec()),
            ]
        };
        check(
            vec![forward(
                false,
                vec![with(
                    &[&source(&[172, 16, 0, 0], &[255, 240, 0, 0])],
                    Expression::Drop,
                )],
            )],
            &[
                "rule 1 (ip saddr 172.16.0.0/12 drop) of chain FORWARD in table ip filter drops \
               what machines send out",
                // Anybody may send the answers.
                "rule 1 (ip saddr 172.16.0.0/12 drop) of chain FORWARD in table ip filter may \
               drop the answers to machines",
            ],
        );
    }

    #[test]
    fn what_hangs_on_something_unknown_is_a_suspect() {
        let odd = Expression::Match("statistic".to_owned());
        check(
            vec![forward(
                false,
                vec![with(&[std::slice::from_ref(&odd)], Expression::Drop)],
            )],
            &[
                "rule 1 (-m statistic drop) of chain FORWARD in table ip filter may drop what \
               machines send out and the answers to machines",
            ],
        );
        // Perhaps accepted before.
        check(
            vec![forward(true, vec![with(&[&[odd]], Expression::Accept)])],
            &[
                "the policy of chain FORWARD in table ip filter may drop what machines send out and \
               the answers to machines",
            ],
        );
        // A map of verdicts may say anything.
        let map = rule(&[
            Expression::Connection(ConnectionKey::State),
            Expression::Foreign("lookup".to_owned()),
        ]);
        check(
            vec![forward(true, vec![map])],
            &[
                "the policy of chain FORWARD in table ip filter may drop what machines send out and \
               the answers to machines",
            ],
        );
    }

    #[test]
    fn what_is_redirected_is_not_what_machines_need() {
        let redirected = rule(&[
            Expression::Connection(ConnectionKey::Status),
            Expression::Mask(DESTINATION_CHANGED.to_ne_bytes().into()),
            Expression::Compare(Is::Not, vec![0; 4]),
            Expression::Accept,
        ]);
        check(vec![forward(true, vec![redirected])], &[BOTH_WAYS]);
    }

    #[test]
    fn sets_are_looked_into() {
        let state = |is, set: &str, verdict| {
            let lookup = Expression::Lookup(is, set.to_owned());
            rule(&[
                Expression::Connection(ConnectionKey::State),
                lookup,
                verdict,
            ])
        };
        let check = |rules, expected: &[&str]| {
            let mut table = table(vec![forward(true, rules)]);
            let answers = [ESTABLISHED, 1 << 2].map(|bits| bits.to_ne_bytes().to_vec());
            table.sets.insert("answers".to_owned(), answers.to_vec());
            let found = findings(&[table], &Site::example());
            let found: Vec<_> = found.iter().map(ToString::to_string).collect();
            assert_eq!(found, expected);
        };
        let out = "the policy of chain FORWARD in table ip filter drops what machines send out";
        check(
            vec![state(Is::Equal, "answers", Expression::Accept)],
            &[out],
        );
        let new = state(Is::Not, "answers", Expression::Accept);
        check(
            vec![new],
            &["the policy of chain FORWARD in table ip filter drops the answers to machines"],
        );
        // One whose elements are not known.
        check(
            vec![state(Is::Equal, "others", Expression::Accept)],
            &[
                "the policy of chain FORWARD in table ip filter may drop what machines send out and \
               the answers to machines",
            ],
        );
    }

    #[test]
    fn chains_are_left_and_come_back() {
        let back = |returns: ImageRule| {
            vec![
                forward(false, vec![with(&[], Expression::Jump("sub".to_owned()))]),
                chain(
                    "sub",
                    None,
                    false,
                    vec![returns, with(&[&output("br0")], Expression::Drop)],
                ),
            ]
        };
        check(back(with(&[&input("br1")], Expression::Return)), &[]);
        check(
            back(with(&[&input("br7")], Expression::Return)),
            &[
                "rule 2 (oifname \"br0\" drop) of chain sub in table ip filter drops what machines \
               send out",
            ],
        );
        // A goto does not come back: the policy decides.
        check(
            vec![
                forward(
                    true,
                    vec![
                        with(&[], Expression::Goto("sub".to_owned())),
                        with(&[], Expression::Accept),
                    ],
                ),
                chain("sub", None, false, vec![]),
            ],
            &[BOTH_WAYS],
        );
        // A loop, which the kernel refuses, ends.
        check(
            vec![
                forward(false, vec![with(&[], Expression::Jump("a".to_owned()))]),
                chain(
                    "a",
                    None,
                    false,
                    vec![with(&[], Expression::Jump("a".to_owned()))],
                ),
            ],
            &[],
        );
    }

    #[test]
    fn a_firewall_of_the_host_that_forgets_the_machines() {
        check(
            vec![chain(
                "INPUT",
                Some(libc::NF_INET_LOCAL_IN),
                true,
                vec![with(&[&input("lo")], Expression::Accept)],
            )],
            &[
                "the policy of chain INPUT in table ip filter drops machines' requests for an \
               address and machines' questions for names",
            ],
        );
        check(
            vec![chain("OUTPUT", Some(libc::NF_INET_LOCAL_OUT), true, vec![])],
            &["the policy of chain OUTPUT in table ip filter drops what the host answers machines"],
        );
    }

    #[test]
    fn a_table_that_sleeps_or_sees_no_packets_of_ours_is_harmless() {
        let mut sleeping = table(vec![forward(true, vec![])]);
        sleeping.table.flags = DORMANT;
        assert_eq!(findings(&[sleeping], &Site::example()), []);
        let mut six = table(vec![forward(true, vec![])]);
        six.family = libc::NFPROTO_IPV6;
        assert_eq!(findings(&[six], &Site::example()), []);
    }

    fn verdict() -> impl Strategy<Value = Expression> {
        let chain = || proptest::sample::select(vec!["a", "b", "FORWARD"]);
        prop_oneof![
            Just(Expression::Accept),
            Just(Expression::Drop),
            Just(Expression::Return),
            chain().prop_map(|name| Expression::Jump(name.to_owned())),
            chain().prop_map(|name| Expression::Goto(name.to_owned())),
        ]
    }

    fn rules() -> impl Strategy<Value = Vec<ImageRule>> {
        let condition = prop_oneof![
            Just(vec![]),
            Just(input("br1").to_vec()),
            Just(input("br2").to_vec()),
            Just(vec![Expression::Match("odd".to_owned())]),
        ];
        let rule = (condition, verdict()).prop_map(|(c, v)| with(&[&c], v));
        proptest::collection::vec(rule, 0..5)
    }

    /// What the kernel does when every unknown condition is `odd`.
    fn dropped(tables: &AnyTable, flow: &Flow, odd: bool) -> Option<bool> {
        fn run(
            image: &Image,
            chain: &ImageChain,
            flow: &Flow,
            odd: bool,
            fuel: &mut u32,
        ) -> Option<Option<bool>> {
            for rule in &chain.rules {
                *fuel = fuel.checked_sub(1)?;
                let (truth, effect) = judge(rule, &Sets::new(), flow);
                if truth == Truth::No || truth == Truth::Maybe && !odd {
                    continue;
                }
                let find = |name: &str| image.chains.iter().find(|c| c.name == name);
                match effect {
                    Effect::Nothing | Effect::Unknown => {}
                    Effect::Pass => return Some(Some(false)),
                    Effect::Drop => return Some(Some(true)),
                    Effect::Return => return Some(None),
                    Effect::Jump(to) => {
                        let end = run(image, find(to)?, flow, odd, fuel)?;
                        if end.is_some() {
                            return Some(end);
                        }
                    }
                    Effect::Goto(to) => return run(image, find(to)?, flow, odd, fuel),
                }
            }
            Some(None)
        }
        let base = tables.table.chains.first()?;
        let end = run(&tables.table, base, flow, odd, &mut 100)?;
        Some(end.unwrap_or(base.policy == Some(0)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// What is certain is dropped however the unknown turns out; what is
        /// dropped in some way is found.
        #[test]
        fn certainty_is_earned(
            base in rules(), a in rules(), b in rules(), drops: bool,
        ) {
            let tables = table(vec![
                forward(drops, base),
                chain("a", None, false, a),
                chain("b", None, false, b),
            ]);
            let flow = flows(&Site::example())
                .into_iter()
                .find(|flow| flow.hook == libc::NF_INET_FORWARD)
                .unwrap();
            let found = walk_table(&tables, &flow);
            let worlds = [true, false].map(|odd| dropped(&tables, &flow, odd));
            // Loops are none of the kernel's.
            prop_assume!(worlds.iter().all(Option::is_some));
            if found.iter().any(|finding| finding.certain) {
                prop_assert_eq!(worlds, [Some(true); 2], "{:?}", found);
            }
            if worlds.contains(&Some(true)) {
                prop_assert!(!found.is_empty());
            }
        }
    }
}
