//! Audits tables as Docker, firewalld, libvirt and administrators make them, and random
//! tables.

use proptest::prelude::*;

use super::traffic::HOOKS;
use super::{DORMANT, Finding, findings};
use crate::firewall::bytecode::{
    ConntrackKey, Expression, ForeignTable, KernelChain, KernelRule, KernelTable, MetaKey,
};
use crate::firewall::model::CompareOp;
use crate::uplink_network::UplinkNetwork;

/// Parses a rule. Conditions are `iif NAME`, `oif NAME` (`br+` is a prefix), `state BITS`,
/// `tcp`, and `match` or `lookup`, which the audit does not evaluate.
fn rule(text: &str) -> KernelRule {
    let mut words = text.split(' ');
    let mut expressions = vec![];
    let compare = |op, value: &[u8]| Expression::Compare(op, value.to_vec());
    while let Some(word) = words.next() {
        let mut operand = || words.next().unwrap().to_owned();
        match word {
            "iif" | "oif" => {
                let key = [MetaKey::InputName, MetaKey::OutputName][usize::from(word == "oif")];
                let name = operand() + "\0";
                let name = name.strip_suffix("+\0").unwrap_or(&name);
                expressions.push(Expression::Meta(key));
                expressions.push(compare(CompareOp::Equal, name.as_bytes()));
            }
            "state" => {
                let bits: u32 = operand().parse().unwrap();
                expressions.push(Expression::Conntrack(ConntrackKey::State));
                expressions.push(Expression::Mask(bits.to_ne_bytes().into()));
                expressions.push(compare(CompareOp::NotEqual, &[0; 4]));
            }
            "tcp" => {
                expressions.push(Expression::Meta(MetaKey::TransportProtocol));
                expressions.push(compare(CompareOp::Equal, &[libc::IPPROTO_TCP as u8]));
            }
            "match" => expressions.push(Expression::XtMatch(operand())),
            "target" => expressions.push(Expression::XtTarget(operand())),
            "jump" => expressions.push(Expression::Jump(operand())),
            "goto" => expressions.push(Expression::Goto(operand())),
            "accept" => expressions.push(Expression::Accept),
            "drop" => expressions.push(Expression::Drop),
            "reject" => expressions.push(Expression::Reject),
            "return" => expressions.push(Expression::Return),
            other => expressions.push(Expression::Other(other.to_owned())),
        }
    }
    KernelRule {
        expressions,
        comment: String::new(),
    }
}

/// Returns a chain; "prerouting drop" is a base chain of that hook with that policy.
fn chain<R: AsRef<str>>(name: &str, rules: &[R]) -> KernelChain {
    let (name, policy) = name.split_once(' ').unwrap_or((name, ""));
    KernelChain {
        name: name.to_owned(),
        kind: "filter".to_owned(),
        hook: HOOKS
            .iter()
            .position(|hook| *hook == name)
            .map(|n| n as u32),
        priority: 0,
        policy: Some(u32::from(policy != "drop")),
        rules: rules.iter().map(|text| rule(text.as_ref())).collect(),
    }
}

fn table(chains: &[(&str, &[&str])]) -> ForeignTable {
    ForeignTable {
        family: libc::NFPROTO_IPV4,
        table: KernelTable {
            name: "filter".to_owned(),
            flags: 0,
            sets: Vec::new(),
            chains: chains
                .iter()
                .map(|(name, rules)| chain(name, rules))
                .collect(),
        },
    }
}

fn audit(table: ForeignTable) -> Vec<Finding> {
    findings(&[table], &UplinkNetwork::example())
}

#[track_caller]
fn check(chains: &[(&str, &[&str])], expected: &[&str]) {
    let found: Vec<_> = audit(table(chains))
        .iter()
        .map(Finding::to_string)
        .collect();
    assert_eq!(found, expected);
}

const POLICY_DROPS_OUTBOUND: &str = "chain forward in table ip filter (hook forward, policy drop) \
     drops packets from machines to the outside";
const POLICY_DROPS_BOTH: &str = "chain forward in table ip filter (hook forward, policy drop) drops \
     packets from machines to the outside and answers from the outside to machines";
const POLICY_CAN_DROP_BOTH: &str = "chain forward in table ip filter (hook forward, policy drop) \
     can drop packets from machines to the outside and answers from the outside to machines";
const RULE_DROPS_OUTBOUND: &str = "chain forward in table ip filter (hook forward, policy accept) \
     drops packets from machines to the outside";
const RULE_CAN_DROP_BOTH: &str = "chain forward in table ip filter (hook forward, policy accept) \
     can drop packets from machines to the outside and answers from the outside to machines";

#[test]
fn rules_for_other_interfaces_are_no_finding() {
    check(&[], &[]);
    let input = ("input drop", &["iif br+ accept"][..]);
    check(&[("forward", &["iif docker0 drop"]), input], &[]);
}

#[test]
fn libvirt_rules_for_its_bridge_are_no_finding() {
    let out = (
        "LIBVIRT_FWO",
        &["iif virbr0 match set accept", "iif virbr0 target REJECT"][..],
    );
    let back = (
        "LIBVIRT_FWI",
        &["oif virbr0 state 6 accept", "oif virbr0 target REJECT"][..],
    );
    let forward = ("forward", &["jump LIBVIRT_FWO", "jump LIBVIRT_FWI"][..]);
    check(&[forward, out, back], &[]);
}

#[test]
fn agent_redirection_is_no_finding() {
    check(
        &[("prerouting", &["iif br1 match physdev target DNAT"])],
        &[],
    );
}

#[test]
fn docker_forward_policy_drops_until_docker_user_accepts() {
    let docker = |docker_user| {
        let forward = (
            "forward drop",
            &["jump DOCKER-USER", "jump DOCKER-FORWARD"][..],
        );
        let own = ["oif docker0 match set accept", "iif docker0 accept"];
        table(&[
            forward,
            ("DOCKER-USER", docker_user),
            ("DOCKER-FORWARD", &own),
        ])
    };
    let found = audit(docker(&[]));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].to_string(), POLICY_DROPS_BOTH);
    assert_eq!(audit(docker(&["iif br1 accept", "oif br1 accept"])), []);
}

#[test]
fn usual_firewall_drops_new_connections_only() {
    let usual = ["state 6 accept", "state 1 drop", "iif eth1 oif eth0 accept"];
    check(&[("forward drop", &usual)], &[POLICY_DROPS_OUTBOUND]);
    check(
        &[("forward drop", &[&usual[..], &["iif br1 accept"]].concat())],
        &[],
    );
}

#[test]
fn drop_rule_is_certain_for_its_interfaces_only() {
    let drops = ("forward", &["iif eth0 drop", "iif br+ oif br0 reject"][..]);
    check(&[drops], &[RULE_DROPS_OUTBOUND]);
    check(&[("forward", &["iif br1 oif br7 drop"])], &[]);
}

#[test]
fn unknown_condition_makes_drop_possible() {
    for condition in ["match mark", "payload cmp", "lookup"] {
        let (drop, accept) = (format!("{condition} drop"), format!("{condition} accept"));
        check(&[("forward", &[&drop])], &[RULE_CAN_DROP_BOTH]);
        check(&[("forward drop", &[&accept])], &[POLICY_CAN_DROP_BOTH]);
    }
    // A verdict map.
    check(&[("forward drop", &["lookup"])], &[POLICY_CAN_DROP_BOTH]);
}

#[test]
fn statement_before_verdict_keeps_it_certain() {
    check(
        &[("forward drop", &["match comment log", "meta accept"])],
        &[],
    );
    check(
        &[("forward drop", &["target LOG", "limit log"])],
        &[POLICY_DROPS_BOTH],
    );
}

#[test]
fn return_goto_and_loop_end_chains_as_in_the_kernel() {
    let jump = ("forward", &["jump sub"][..]);
    check(&[jump, ("sub", &["iif br1 return", "oif br0 drop"])], &[]);
    check(
        &[jump, ("sub", &["iif br7 return", "oif br0 drop"])],
        &[RULE_DROPS_OUTBOUND],
    );
    check(
        &[("forward drop", &["goto sub", "accept"]), ("sub", &[])],
        &[POLICY_DROPS_BOTH],
    );
    check(&[jump, ("sub", &["jump sub"])], &[]);
}

#[test]
fn host_firewall_without_machines_drops_requests_and_answers() {
    let requests = "chain input in table ip filter (hook input, policy drop) drops machines' \
                    requests for DHCP and DNS";
    check(
        &[("input drop", &["iif lo accept", "tcp match dport accept"])],
        &[requests],
    );
    let answers = "chain output in table ip filter (hook output, policy drop) drops the host's \
                   answers to machines";
    check(&[("output drop", &["oif lo accept"])], &[answers]);
}

#[test]
fn dormant_or_ipv6_table_is_no_finding() {
    let mut dormant = table(&[("forward drop", &[])]);
    dormant.table.flags = DORMANT;
    assert_eq!(audit(dormant), []);
    let mut ipv6 = table(&[("forward drop", &[])]);
    ipv6.family = libc::NFPROTO_IPV6;
    assert_eq!(audit(ipv6), []);
}

fn rules() -> impl Strategy<Value = Vec<String>> {
    let condition = proptest::sample::select(vec!["", "iif br1 ", "iif br2 ", "match mark "]);
    let verdicts = ["accept", "drop", "return", "jump sub", "goto sub"];
    let verdict = proptest::sample::select(verdicts.to_vec());
    proptest::collection::vec(
        (condition, verdict).prop_map(|(c, v)| format!("{c}{v}")),
        0..5,
    )
}

/// Returns true if the rules drop a packet from br1 to br0, and [`None`] if no rule
/// decides. `holds` is the result of unknown conditions.
fn dropped(rules: &[String], sub: &[String], holds: bool) -> Option<bool> {
    for rule in rules {
        let (condition, verdict) = match rule.strip_prefix("match mark ") {
            Some(verdict) => (holds, verdict),
            None => (!rule.contains("br2"), rule.trim_start_matches("iif br1 ")),
        };
        match verdict {
            _ if !condition => {}
            "accept" | "drop" => return Some(verdict == "drop"),
            "return" => return None,
            "goto sub" => return dropped(sub, &[], holds),
            _ => {
                if let Some(drops) = dropped(sub, &[], holds) {
                    return Some(drops);
                }
            }
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn certain_drops_always_happen_and_possible_drops_are_found(
        base in rules(), sub in rules(), policy in proptest::sample::select(vec!["", " drop"]),
    ) {
        let sub: Vec<_> = sub.into_iter().filter(|rule| !rule.contains("sub")).collect();
        let mut foreign = table(&[]);
        let forward = format!("forward{policy}");
        foreign.table.chains = vec![chain(&forward, &base), chain("sub", &sub)];
        let drops = [true, false]
            .map(|holds| dropped(&base, &sub, holds).unwrap_or(policy == " drop"));
        let mut found = audit(foreign);
        found.retain(|finding| finding.traffic.contains(&"packets from machines to the outside"));
        let certain = found.iter().any(|finding| finding.certain);
        prop_assert!(!certain || drops == [true, true], "{found:?}");
        prop_assert!(!found.is_empty() || drops == [false, false]);
    }
}
