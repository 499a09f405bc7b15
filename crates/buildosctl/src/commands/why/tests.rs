//! One fault after the other in a host that is ready.

use super::*;
use crate::snapshot::model::samples::{self, NOW, agent, ready};
use crate::snapshot::model::{Agent, Daemon, Manager, Naming, Nat, Network};

type Change = fn(&mut Host);

/// The answer for a host that is ready but for that.
fn after(change: Change) -> Verdict {
    let mut host = ready();
    change(&mut host);
    judge(&host)
}

#[test]
fn a_host_without_a_fault_is_ready() {
    let verdict = after(|_| {});
    assert_eq!(verdict.outcome, Outcome::Ready);
    assert_eq!(verdict.exit_code(), 0);
    assert!(verdict.chain.iter().all(|f| f.mark == Mark::Ok));
    assert_eq!(verdict.answer, "bbot@default asks for work and gets none");
}

#[test]
fn a_host_whose_agent_has_tasks_builds_whatever_else_is_wrong() {
    let verdict = after(|host| {
        host.agents[0].task_processes = 3;
        host.nat = None;
        host.silent.insert(Daemon::Natd, "it is not running".into());
    });
    assert_eq!(verdict.outcome, Outcome::Building);
    assert_eq!(verdict.exit_code(), 0);
    assert_eq!(verdict.answer, "bbot@default with 3 processes of tasks");
    assert!(verdict.chain.iter().any(|f| f.mark == Mark::Remark));
    assert!(verdict.chain.iter().all(|f| f.mark != Mark::Broken));
}

/// Every way in which a link breaks: what is done to the host, the link, and
/// what the answer and the advice name.
const FAULTS: [(&str, Change, Step, &str, &str); 27] = [
    (
        "silent daemon",
        |host| {
            host.nat = None;
            host.silent.insert(Daemon::Natd, "it is not running".into());
        },
        Step::Daemons,
        "buildos-natd does not answer: it is not running",
        "systemctl status buildos-natd",
    ),
    (
        "no NIC",
        |host| {
            dark(host, "no Ethernet NIC");
            host.links.clear();
        },
        Step::Carrier,
        "no Ethernet NIC",
        "driver is missing",
    ),
    (
        "no carrier",
        |host| dark(host, "no carrier on eth0, eth1"),
        Step::Carrier,
        "no carrier on eth0, eth1",
        "Plug in a cable",
    ),
    (
        "carrier lost",
        |host| {
            let network = host.network.as_mut().unwrap();
            network.state = "carrier-lost".into();
            network.online = false;
            network.reason = "no carrier on eth0; br0 keeps 192.0.2.7/24".into();
        },
        Step::Carrier,
        "br0 keeps 192.0.2.7/24",
        "Plug in a cable",
    ),
    (
        "no lease",
        |host| {
            let network = host.network.as_mut().unwrap();
            network.state = "acquiring".into();
            network.online = false;
            network.address.clear();
            network.reason = "no lease yet; eth0: no server has answered".into();
        },
        Step::Lease,
        "no server has answered",
        "DHCP server",
    ),
    (
        "uplink not in br0",
        |host| host.network.as_mut().unwrap().public_ports.clear(),
        Step::Bridges,
        "eth0 is not a port of br0",
        "ip -d address show br0",
    ),
    (
        "br1 without address",
        |host| host.network.as_mut().unwrap().private_network.clear(),
        Step::Bridges,
        "br1 has no address",
        "ip -d address show br0",
    ),
    (
        "no name",
        |host| {
            host.name = Some(Naming {
                source: "none".into(),
                reason: "systemd-hostnamed does not answer".into(),
                ..Naming::default()
            });
        },
        Step::Name,
        "systemd-hostnamed does not answer",
        "buildos.hostname=NAME",
    ),
    (
        "no table",
        |host| nat_fault(host, |nat| nat.table_installed = false),
        Step::Nat,
        "it does not work",
        "lsmod | grep nf_tables",
    ),
    (
        "foreign table",
        |host| nat_fault(host, |nat| nat.foreign_drops.push("FORWARD".into())),
        Step::Nat,
        "it does not work",
        "nft list ruleset",
    ),
    (
        "no dnsmasq",
        |host| nat_fault(host, |nat| nat.dhcp_serving = false),
        Step::Nat,
        "it does not work",
        "systemctl status buildos-dnsmasq",
    ),
    (
        "probe: link",
        |host| nat_fault(host, |nat| nat.probe_step = "link".into()),
        Step::Nat,
        "it does not work",
        "buildos-probe",
    ),
    (
        "probe: lease",
        |host| nat_fault(host, |nat| nat.probe_step = "lease".into()),
        Step::Nat,
        "it does not work",
        "dnsmasq answers no machine",
    ),
    (
        "probe: names",
        |host| nat_fault(host, |nat| nat.probe_step = "names".into()),
        Step::Nat,
        "it does not work",
        "name servers of the uplink",
    ),
    (
        "probe: outside",
        |host| nat_fault(host, |nat| nat.probe_step = "outside".into()),
        Step::Nat,
        "it does not work",
        "probe_targets",
    ),
    (
        "NAT waits",
        |host| nat_fault(host, |_| {}),
        Step::Nat,
        "it does not work",
        "goes on by itself",
    ),
    (
        "clock",
        |host| {
            host.clock_synchronised = false;
            host.agents = vec![waiting("clock", "the clock is not synchronised yet")];
        },
        Step::Clock,
        "not synchronised",
        "timedatectl",
    ),
    (
        "no agents",
        |host| host.agents.clear(),
        Step::Needs,
        "no agents are configured",
        "[bbot.default]",
    ),
    (
        "configuration",
        |host| {
            host.agents = vec![agent(
                "bbot@default",
                "invalid",
                &[("configuration", "no controllers")],
            )]
        },
        Step::Needs,
        "bbot@default: no controllers",
        "buildos-agentd --check",
    ),
    (
        "program",
        |host| {
            host.agents = vec![waiting(
                "program",
                "program /usr/bin/bbot-agent is not installed",
            )]
        },
        Step::Needs,
        "is not installed",
        "Install the program",
    ),
    (
        "credentials",
        |host| host.agents = vec![waiting("credentials", "credential key is missing")],
        Step::Needs,
        "credential key",
        "systemd-creds(1)",
    ),
    (
        "kvm",
        |host| host.agents = vec![waiting("kvm", "KVM is missing")],
        Step::Needs,
        "KVM is missing",
        "firmware",
    ),
    (
        "memory",
        |host| host.agents = vec![waiting("memory", "RAM: its tasks need 8192 MiB")],
        Step::Needs,
        "8192 MiB",
        "ram_mib",
    ),
    (
        "crash loop",
        |host| {
            let mut looping = agent("bbot@default", "delayed", &[]);
            looping.instance.crash_loop = true;
            looping.instance.last_exit = "exit code 1".into();
            looping.instance.next_start_usec = NOW + 30_000_000;
            host.agents = vec![looping];
        },
        Step::Agent,
        "bbot@default ends again and again (last: exit code 1), starts again in 30 s",
        "journalctl -b -n 50 -u buildos-bbot@default.service",
    ),
    (
        "starting",
        |host| host.agents = vec![agent("bbot@default", "starting", &[])],
        Step::Agent,
        "bbot@default is being started",
        "systemctl status buildos-bbot@default.service",
    ),
    (
        "state of a newer agentd",
        |host| host.agents = vec![agent("bbot@default", "dreaming", &[])],
        Step::Agent,
        "bbot@default has ended",
        "journalctl",
    ),
    (
        "controllers",
        |host| {
            host.agents[0].controllers[0].failure = Some("ci.example.com has no address".into());
        },
        Step::Controllers,
        "https://ci.example.com/: ci.example.com has no address",
        "Is the URL right",
    ),
];

fn dark(host: &mut Host, reason: &str) {
    let network = host.network.as_mut().unwrap();
    network.state = "no-carrier".into();
    network.online = false;
    network.address.clear();
    network.reason = reason.into();
    for link in &mut host.links {
        link.carrier = false;
    }
}

fn nat_fault(host: &mut Host, fault: fn(&mut Nat)) {
    let nat = host.nat.as_mut().unwrap();
    nat.ready = false;
    nat.reason = "it does not work".into();
    fault(nat);
    host.agents = vec![waiting("private-network", "NAT: it does not work")];
}

fn waiting(need: &str, what: &str) -> Agent {
    agent("bbot@default", "waiting", &[(need, what)])
}

#[test]
fn every_link_is_found_broken() {
    for (fault, change, step, answer, advice) in FAULTS {
        let verdict = after(change);
        assert_eq!(verdict.outcome, Outcome::Broken, "{fault}");
        assert_eq!(verdict.step, Some(step), "{fault}");
        assert_eq!(verdict.exit_code(), step as u8, "{fault}");
        assert!(
            verdict.answer.contains(answer),
            "{fault}: {}",
            verdict.answer
        );
        assert!(
            verdict.advice.iter().any(|line| line.contains(advice)),
            "{fault}: {:?}",
            verdict.advice
        );
    }
    for (step, _) in CHAIN {
        assert!(FAULTS.iter().any(|fault| fault.2 == step), "{step:?}");
    }
}

#[test]
fn the_first_broken_link_is_the_answer_and_the_rest_is_not_looked_at() {
    let verdict = after(|host| {
        dark(host, "no carrier on eth0, eth1");
        nat_fault(host, |_| {});
        host.clock_synchronised = false;
    });
    let marks: Vec<_> = verdict.chain.iter().map(|finding| finding.mark).collect();
    let mut expected = vec![Mark::NotLookedAt; CHAIN.len()];
    expected[0] = Mark::Ok;
    expected[1] = Mark::Broken;
    assert_eq!(marks, expected);
}

#[test]
fn what_no_agent_needs_is_a_remark() {
    let verdict = after(|host| {
        nat_fault(host, |_| {});
        host.clock_synchronised = false;
        host.agents = vec![
            agent("bslave@x", "running", &[]),
            agent(
                "bbot@default",
                "waiting",
                &[("program", "program is missing")],
            ),
        ];
    });
    assert_eq!(verdict.outcome, Outcome::Ready);
    let remarks: Vec<_> = verdict
        .chain
        .iter()
        .filter(|finding| finding.mark == Mark::Remark)
        .map(|finding| finding.step)
        .collect();
    assert_eq!(remarks, [Step::Nat, Step::Clock, Step::Needs]);
}

#[test]
fn what_a_running_agent_has_lost_is_broken() {
    let lost = [("private-network", "NAT: it does not work")];
    let with = |state| {
        let mut host = ready();
        nat_fault(&mut host, |nat| nat.dhcp_serving = false);
        host.agents = vec![
            agent("bslave@x", "running", &[]),
            agent("bbot@default", state, &lost),
        ];
        judge(&host)
    };
    assert_eq!(with("running").step, Some(Step::Nat));
    // Nobody wants that one to work.
    assert_eq!(with("stopped").outcome, Outcome::Ready);
}

#[test]
fn what_somebody_wants_so_is_out_of_service() {
    for (state, advice) in [
        ("stopped", "systemctl start buildos-bbot@default.service"),
        ("drained", "buildosctl resume bbot@default"),
        ("draining", "buildosctl resume bbot@default"),
    ] {
        let mut host = ready();
        host.agents = vec![agent("bbot@default", state, &[])];
        let verdict = judge(&host);
        assert_eq!(verdict.outcome, Outcome::OutOfService, "{state}");
        assert_eq!(verdict.exit_code(), 3, "{state}");
        assert_eq!(verdict.advice, [advice], "{state}");
    }
}

#[test]
fn an_agent_that_drains_still_builds() {
    let mut host = ready();
    host.agents = vec![agent("bbot@default", "draining", &[])];
    host.agents[0].task_processes = 1;
    let verdict = judge(&host);
    assert_eq!(verdict.outcome, Outcome::Building);
    assert_eq!(verdict.answer, "bbot@default with 1 process of tasks");
}

#[test]
fn one_controller_of_two_is_enough() {
    let mut host = ready();
    let mut second = host.agents[0].controllers[0].clone();
    second.failure = Some("connection refused".into());
    host.agents[0].controllers.push(second);
    let verdict = judge(&host);
    assert_eq!(verdict.outcome, Outcome::Ready);
    assert_eq!(verdict.chain.last().unwrap().mark, Mark::Remark);
}

#[test]
fn nothing_known_at_all_is_an_answer() {
    let mut host = samples::silent();
    assert_eq!(judge(&host).exit_code(), Step::Daemons as u8);
    // Daemons that answer but say nothing.
    host.silent.clear();
    host.network = Some(Network::default());
    host.name = Some(Naming::default());
    host.nat = Some(Nat::default());
    host.manager = Some(Manager::default());
    assert_eq!(judge(&host).exit_code(), Step::Lease as u8);
}

#[test]
fn people_read_the_answer_first() {
    let text = after(|host| dark(host, "no carrier on eth0, eth1")).render(Style::PLAIN);
    assert!(
        text.starts_with(
            "This host cannot build: no carrier on eth0, eth1\n\n  \
             ok   daemons     all four answer\n  \
             FAIL carrier     no carrier on eth0, eth1\n  \
             -    lease\n"
        ),
        "{text}"
    );
    assert!(text.contains("\nWhat to do:\n  Plug in a cable"), "{text}");
}
