//! Tables as Docker and administrators make them, and any that there can be.

use std::collections::HashMap;

use proptest::prelude::*;

use super::bits::Truth;
use super::flow::{DESTINATION_CHANGED, ESTABLISHED, Flow, flows};
use super::rule::{Effect, Sets, judge};
use super::walk::{DORMANT, walk};
use super::*;
use crate::firewall::bytecode::{
    ConntrackKey, Expression, KernelChain, KernelRule, KernelTable, MetaKey, PayloadBase,
};
use crate::firewall::model::CompareOp;

fn rule(expressions: &[Expression]) -> KernelRule {
    KernelRule {
        expressions: expressions.to_vec(),
        comment: String::new(),
    }
}

fn chain(name: &str, hook: Option<i32>, drops: bool, rules: Vec<KernelRule>) -> KernelChain {
    KernelChain {
        name: name.to_owned(),
        kind: "filter".to_owned(),
        hook: hook.map(|hook| hook as u32),
        priority: 0,
        policy: hook.map(|_| if drops { 0 } else { 1 }),
        rules,
    }
}

fn table(chains: Vec<KernelChain>) -> ForeignTable {
    ForeignTable {
        family: libc::NFPROTO_IPV4,
        table: KernelTable {
            name: "filter".to_owned(),
            flags: 0,
            chains,
        },
        sets: HashMap::new(),
    }
}

fn forward(drops: bool, rules: Vec<KernelRule>) -> KernelChain {
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
    [
        Expression::Meta(key),
        Expression::Compare(CompareOp::Equal, bytes),
    ]
}

fn with(conditions: &[&[Expression]], verdict: Expression) -> KernelRule {
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
fn check(chains: Vec<KernelChain>, expected: &[&str]) {
    let found: Vec<_> = findings(&[table(chains)], &UplinkNetwork::example())
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
                            &[Expression::XtMatch("conntrack".to_owned())],
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
            Expression::Compare(CompareOp::Equal, bytes.to_vec()),
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
    let odd = Expression::XtMatch("statistic".to_owned());
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
        Expression::Conntrack(ConntrackKey::State),
        Expression::Other("lookup".to_owned()),
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
        Expression::Conntrack(ConntrackKey::Status),
        Expression::Mask(DESTINATION_CHANGED.to_ne_bytes().into()),
        Expression::Compare(CompareOp::NotEqual, vec![0; 4]),
        Expression::Accept,
    ]);
    check(vec![forward(true, vec![redirected])], &[BOTH_WAYS]);
}

#[test]
fn sets_are_looked_into() {
    let state = |is, set: &str, verdict| {
        let lookup = Expression::Lookup(is, set.to_owned());
        rule(&[Expression::Conntrack(ConntrackKey::State), lookup, verdict])
    };
    let check = |rules, expected: &[&str]| {
        let mut table = table(vec![forward(true, rules)]);
        let answers = [ESTABLISHED, 1 << 2].map(|bits| bits.to_ne_bytes().to_vec());
        table.sets.insert("answers".to_owned(), answers.to_vec());
        let found = findings(&[table], &UplinkNetwork::example());
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    };
    let out = "the policy of chain FORWARD in table ip filter drops what machines send out";
    check(
        vec![state(CompareOp::Equal, "answers", Expression::Accept)],
        &[out],
    );
    let new = state(CompareOp::NotEqual, "answers", Expression::Accept);
    check(
        vec![new],
        &["the policy of chain FORWARD in table ip filter drops the answers to machines"],
    );
    // One whose elements are not known.
    check(
        vec![state(CompareOp::Equal, "others", Expression::Accept)],
        &[
            "the policy of chain FORWARD in table ip filter may drop what machines send out and \
           the answers to machines",
        ],
    );
}

#[test]
fn chains_are_left_and_come_back() {
    let back = |returns: KernelRule| {
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
    assert_eq!(findings(&[sleeping], &UplinkNetwork::example()), []);
    let mut six = table(vec![forward(true, vec![])]);
    six.family = libc::NFPROTO_IPV6;
    assert_eq!(findings(&[six], &UplinkNetwork::example()), []);
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

fn rules() -> impl Strategy<Value = Vec<KernelRule>> {
    let condition = prop_oneof![
        Just(vec![]),
        Just(input("br1").to_vec()),
        Just(input("br2").to_vec()),
        Just(vec![Expression::XtMatch("odd".to_owned())]),
    ];
    let rule = (condition, verdict()).prop_map(|(c, v)| with(&[&c], v));
    proptest::collection::vec(rule, 0..5)
}

/// What the kernel does when every unknown condition is `odd`.
fn dropped(tables: &ForeignTable, flow: &Flow, odd: bool) -> Option<bool> {
    fn run(
        image: &KernelTable,
        chain: &KernelChain,
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
        let flow = flows(&UplinkNetwork::example())
            .into_iter()
            .find(|flow| flow.hook == libc::NF_INET_FORWARD)
            .unwrap();
        let found = walk(&tables, &flow);
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
