//! Breaks a ready host in different ways, and checks the verdict on each.

use super::chain::{CHAIN, judge};
use super::step::Step;
use super::verdict::{Mark, Outcome, Verdict};
use crate::snapshot::model::{
    Agent, Complaint, Daemon, Fault, Host, Manager, Naming, Nat, Network, OsTrial, RamVolume,
    StateVolume,
};
use crate::snapshot::samples::{self, NOW, agent, ready};
use crate::term::Style;

type Change = fn(&mut Host);

/// Returns the verdict on a ready host after a change.
fn after(change: Change) -> Verdict {
    let mut host = ready();
    change(&mut host);
    judge(&host)
}

#[test]
fn remark_names_static_address_and_expired_lease() {
    for (origin, text) in [
        (
            "static",
            "static address 192.0.2.7/24, as no DHCP server grants a lease",
        ),
        (
            "expired-lease",
            "192.0.2.7/24 from 192.0.2.1, whose lease ended 5 min 0 s ago (keep_expired)",
        ),
    ] {
        let mut host = ready();
        let network = host.network.as_mut().unwrap();
        network.address_origin = origin.into();
        network.lease.expires_usec = NOW - 300_000_000;
        let verdict = judge(&host);
        assert_eq!(verdict.outcome, Outcome::Ready);
        let texts = verdict.chain.iter().filter(|f| f.mark == Mark::Remark);
        let texts: Vec<_> = texts.map(|finding| finding.what.as_str()).collect();
        assert_eq!(texts, [text]);
    }
}

#[test]
fn verdict_on_host_without_fault_is_ready() {
    let verdict = after(|_| {});
    assert_eq!(verdict.outcome, Outcome::Ready);
    assert_eq!(verdict.exit_code(), 0);
    assert!(verdict.chain.iter().all(|f| f.mark == Mark::Ok));
    assert_eq!(verdict.answer, "bbot@default asks for tasks and gets none");
}

#[test]
fn verdict_on_host_with_tasks_and_silent_natd_is_building() {
    let verdict = after(|host| {
        host.agents[0].task_processes = 3;
        host.nat = None;
        host.silent.insert(Daemon::Natd, "it is not running".into());
    });
    assert_eq!(verdict.outcome, Outcome::Building);
    assert_eq!(verdict.exit_code(), 0);
    assert_eq!(verdict.answer, "bbot@default with 3 processes of tasks");
    // The trial of an operating system reads it.
    assert_eq!(verdict.step, Some(Step::Daemons));
    assert!(verdict.chain.iter().any(|f| f.mark == Mark::Remark));
    assert!(verdict.chain.iter().all(|f| f.mark != Mark::Broken));
}

#[test]
fn shortage_is_a_note_on_ready_host() {
    let verdict = after(|host| {
        let line = "nine tenths of the 12 addresses for machines have a lease";
        let nat = host.nat.as_mut().unwrap();
        nat.shortages.insert("addresses".into(), line.into());
    });
    assert_eq!(verdict.exit_code(), 0);
    let nat = verdict.chain.iter().find(|f| f.step == Step::Nat).unwrap();
    assert_eq!(nat.mark, Mark::Remark);
    assert!(
        nat.what.starts_with("short of addresses: nine tenths"),
        "{nat:?}"
    );
}

#[test]
fn open_ports_are_named_on_ready_host() {
    let verdict = after(|host| {
        let open = (61_000, "172.23.0.9".into(), "tap0".into(), 22, 0);
        host.open_ports.list = vec![open];
    });
    let nat = verdict.chain.iter().find(|f| f.step == Step::Nat).unwrap();
    assert!(
        nat.what.ends_with("; 1 port of a machine is open on br0"),
        "{nat:?}"
    );
}

/// Faults: name, change to the host, failed step, and parts of answer and advice.
const FAULTS: [(&str, Change, Step, &str, &str); 34] = [
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
            without_carrier(host, "no Ethernet NIC");
            host.links.clear();
        },
        Step::Carrier,
        "no Ethernet NIC",
        "driver is missing",
    ),
    (
        "no carrier",
        |host| without_carrier(host, "no carrier on eth0, eth1"),
        Step::Carrier,
        "no carrier on eth0, eth1",
        "Plug in a cable",
    ),
    (
        "port of a switch without the VLAN of the uplink",
        |host| {
            without_lease(host, "eth0: no answer to 5 DISCOVERs");
            host.links[0].vlan = 7;
        },
        Step::Lease,
        "no answer to 5 DISCOVERs",
        "netd asks with the tag of VLAN 7.",
    ),
    (
        "port of a switch with tagged VLANs only",
        |host| {
            without_lease(host, "eth0: no answer to 5 DISCOVERs");
            host.links[0].neighbour_untagged_vlan = 0;
        },
        Step::Lease,
        "no answer to 5 DISCOVERs",
        "eth0 is connected to sw1 port Gi1/0/12, which has VLANs 10, 20 with a tag.",
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
        |host| without_lease(host, "eth0: no server has answered"),
        Step::Lease,
        "no server has answered",
        "DHCP server",
    ),
    (
        "refused offer",
        |host| {
            without_lease(
                host,
                "eth0: refused the OFFER from 192.0.2.1: lease time is zero",
            )
        },
        Step::Lease,
        "lease time is zero",
        "netd refuses the offer",
    ),
    (
        "address in use",
        |host| {
            without_lease(
                host,
                "eth0: waits before the next DISCOVER (address is in use by 02:00:00:00:00:01)",
            );
        },
        Step::Lease,
        "in use by 02:00:00:00:00:01",
        "detect_conflicts",
    ),
    (
        "IPv6 only",
        |host| {
            without_lease(host, "eth0: 9 DISCOVERs unanswered");
            let network = host.network.as_mut().unwrap();
            network.ipv6_addresses = vec!["fe80::1/64".into(), "2001:db8::7/64".into()];
        },
        Step::Lease,
        "unanswered",
        "reached by IPv6: 2001:db8::7",
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
        "dnsmasq does not answer machines",
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
        "natd continues by itself",
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
        "tools",
        |host| {
            let reason = "/usr/bin/curl, which it calls, is not installed";
            host.agents = vec![waiting("tools", reason)]
        },
        Step::Needs,
        "/usr/bin/curl",
        "buildos-bbot-runtime",
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
        "room",
        |host| {
            let full = ("disk", "disk: /build has 1.00 GiB of 100 GiB free");
            let mut drained = agent("bbot@default", "drained", &[full]);
            drained.instance.wanted = true;
            host.agents = vec![drained];
        },
        Step::Needs,
        "bbot@default: disk: /build has 1.00 GiB",
        "du -xh",
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
        "bbot@default ends repeatedly (last: exit code 1), starts again in 30 s",
        "journalctl -b -n 50 -u buildos-bbot@default.service",
    ),
    (
        "starting",
        |host| host.agents = vec![agent("bbot@default", "starting", &[])],
        Step::Agent,
        "bbot@default is starting",
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
        "Check the URL",
    ),
];

fn without_carrier(host: &mut Host, reason: &str) {
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

fn waiting(need: &str, reason: &str) -> Agent {
    agent("bbot@default", "waiting", &[(need, reason)])
}

#[test]
fn each_fault_fails_expected_step() {
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
fn steps_after_first_failure_are_not_checked() {
    let verdict = after(|host| {
        without_carrier(host, "no carrier on eth0, eth1");
        nat_fault(host, |_| {});
        host.clock_synchronised = false;
    });
    let marks: Vec<_> = verdict.chain.iter().map(|finding| finding.mark).collect();
    let mut expected = vec![Mark::NotChecked; CHAIN.len()];
    expected[0] = Mark::Ok;
    expected[1] = Mark::Broken;
    assert_eq!(marks, expected);
}

#[test]
fn failed_step_without_agent_requirement_is_remark() {
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
fn nat_step_fails_if_running_agent_lost_nat() {
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
    // A stopped agent requires nothing.
    assert_eq!(with("stopped").outcome, Outcome::Ready);
}

#[test]
fn stopped_or_drained_agent_is_out_of_service() {
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

fn without_lease(host: &mut Host, reason: &str) {
    let network = host.network.as_mut().unwrap();
    network.state = "acquiring".into();
    network.online = false;
    network.address.clear();
    network.reason = format!("no lease yet; {reason}");
}

#[test]
fn other_claimant_of_address_and_proxy_arp_are_named() {
    let mut host = ready();
    let network = host.network.as_mut().unwrap();
    network.reason = "br0 has 192.0.2.7/24 by eth0 from 192.0.2.1; 02:00:00:00:00:01 claims \
                      this address, too; 02:00:00:00:00:02 answers ARP for every address, \
                      which is ignored (detect_conflicts); other"
        .into();
    let verdict = judge(&host);
    assert_eq!(verdict.outcome, Outcome::Ready);
    let step = verdict.chain.iter().find(|f| f.step == Step::Lease);
    let what = &step.unwrap().what;
    let expected = "; 02:00:00:00:00:01 claims this address, too; 02:00:00:00:00:02 answers \
                    ARP for every address, which is ignored (detect_conflicts)";
    assert!(what.ends_with(expected), "{what}");
}

#[test]
fn command_that_sudo_refused_is_named() {
    let mut host = ready();
    host.agents[0].refused_commands = Some(vec!["/usr/sbin/ip netns add x".into()]);
    let verdict = judge(&host);
    assert_eq!(verdict.outcome, Outcome::Ready);
    let step = verdict.chain.iter().find(|f| f.step == Step::Agent);
    let expected = "bbot@default runs; sudo refused bbot@default: /usr/sbin/ip netns add x";
    assert_eq!(step.unwrap().what, expected);

    host.agents[0].instance.state = "delayed".into();
    let verdict = judge(&host);
    assert_eq!(verdict.step, Some(Step::Agent));
    assert!(verdict.answer.ends_with("ip netns add x"), "{verdict:?}");
    assert!(verdict.advice[1].contains("/etc/sudoers.d"), "{verdict:?}");
}

#[test]
fn fault_in_log_of_agent_is_named_with_advice() {
    let mut host = ready();
    host.agents[0].complaints = Some(vec![Complaint {
        usec: NOW - 120_000_000,
        fault: Fault::Unauthorized,
        text: "curl: (22) The requested URL returned error: 401".into(),
    }]);
    let verdict = judge(&host);
    assert_eq!(verdict.outcome, Outcome::Ready);
    let step = verdict.chain.last().unwrap();
    assert_eq!(step.mark, Mark::Remark);
    assert_eq!(
        step.what,
        "bbot@default logged 2 min 0 s ago: curl: (22) The requested URL returned error: 401"
    );
    assert!(verdict.advice[0].contains("auth_key"), "{verdict:?}");
}

#[test]
fn agent_without_task_since_hours_is_named() {
    let mut host = ready();
    host.agents[0].run.start_usec = NOW - 5 * 3_600_000_000;
    host.agents[0].run.memory_peak = Some(4 << 30);
    assert_eq!(
        judge(&host).answer,
        "bbot@default asks for tasks and gets none"
    );
    host.agents[0].run.memory_peak = Some(20 << 20);
    let verdict = judge(&host);
    assert!(
        verdict
            .answer
            .ends_with("; bbot@default has had no task since its start 5 h 0 min ago"),
        "{verdict:?}"
    );
    assert!(
        verdict
            .advice
            .iter()
            .any(|line| line.contains("does not know the key"))
    );
}

#[test]
fn lost_full_size_packets_are_distinguished_from_no_connection() {
    let mut host = ready();
    let failure = "small packets reach 192.0.2.1:443, full-size packets do not (path MTU)";
    host.agents[0].controllers[0].failure = Some(failure.into());
    let verdict = judge(&host);
    assert_eq!(verdict.step, Some(Step::Controllers));
    assert!(
        verdict
            .answer
            .starts_with("results cannot reach the controllers: ")
    );
    assert!(
        verdict.advice[0].contains("fragmentation needed"),
        "{verdict:?}"
    );
}

#[test]
fn draining_agent_with_tasks_builds() {
    let mut host = ready();
    host.agents = vec![agent("bbot@default", "draining", &[])];
    host.agents[0].task_processes = 1;
    let verdict = judge(&host);
    assert_eq!(verdict.outcome, Outcome::Building);
    assert_eq!(verdict.answer, "bbot@default with 1 process of tasks");
}

#[test]
fn one_reachable_controller_of_two_passes_with_remark() {
    let mut host = ready();
    let mut second = host.agents[0].controllers[0].clone();
    second.failure = Some("connection refused".into());
    host.agents[0].controllers.push(second);
    let verdict = judge(&host);
    assert_eq!(verdict.outcome, Outcome::Ready);
    assert_eq!(verdict.chain.last().unwrap().mark, Mark::Remark);
}

#[test]
fn verdict_on_silent_or_empty_daemons_is_a_failed_step() {
    let mut host = samples::silent();
    assert_eq!(judge(&host).exit_code(), Step::Daemons as u8);
    // The daemons answer with default values.
    host.silent.clear();
    host.network = Some(Network::default());
    host.name = Some(Naming::default());
    host.nat = Some(Nat::default());
    host.manager = Some(Manager::default());
    assert_eq!(judge(&host).exit_code(), Step::Lease as u8);
}

#[test]
fn text_begins_with_answer_and_ends_with_advice() {
    let text = after(|host| without_carrier(host, "no carrier on eth0, eth1")).render(Style::PLAIN);
    assert!(
        text.starts_with(
            "This host cannot build: no carrier on eth0, eth1\n\n  \
             ok   daemons     all four daemons answer\n  \
             FAIL carrier     no carrier on eth0, eth1\n  \
             -    lease\n"
        ),
        "{text}"
    );
    assert!(text.contains("\nWhat to do:\n  Plug in a cable"), "{text}");
}

#[test]
fn hold_and_pins_are_advice() {
    let mut host = ready();
    host.choices.hold = Some("release week".into());
    host.choices.pinned.insert("box".into(), 3);
    host.choices.removed.push("old".into());
    let mut expected = judge(&ready());
    expected.advice.extend([
        "Updates are held: release week; buildosctl update resume ends it.".to_owned(),
        "Machines stay at a revision: box at revision 3; buildosctl machines unpin ends it."
            .to_owned(),
    ]);
    let found = judge(&host);
    assert_eq!(found.outcome, expected.outcome);
    assert_eq!(found.advice, expected.advice);
}

#[test]
fn volume_that_does_not_fit_into_ram_is_advice() {
    let mut host = ready();
    let mut volume = RamVolume {
        state: "failed".into(),
        fault: true,
        volume: "default".into(),
        reason: "machines.ram_mib = 8192, but only 400 MiB of RAM are available".into(),
        ..RamVolume::default()
    };
    host.ram_volume = Some(volume.clone());
    let mut expected = judge(&ready());
    expected.advice.push(
        "Machine volume default in RAM: machines.ram_mib = 8192, but only 400 MiB of RAM are \
         available; see buildos-updated(8)."
            .into(),
    );
    let found = judge(&host);
    assert_eq!(found.outcome, expected.outcome);
    assert_eq!(found.advice, expected.advice);
    volume.fault = false;
    host.ram_volume = Some(volume);
    assert_eq!(judge(&host).advice, judge(&ready()).advice);
}

#[test]
fn return_and_trial_of_operating_system_are_advice() {
    let mut host = ready();
    let before = judge(&host);
    let mut trial = OsTrial {
        state: "trial".into(),
        version: "1.5".into(),
        deadline_usec: host.taken_usec + 60_000_000,
        ..OsTrial::default()
    };
    host.os_trial = Some(trial.clone());
    assert_eq!(judge(&host), before);
    trial.reason = "agent bbot@default does not run, although it ran before the update".into();
    host.os_trial = Some(trial.clone());
    let last = |host: &Host| judge(host).advice.last().cloned().unwrap();
    assert_eq!(
        last(&host),
        "Operating system 1.5 is on trial for another 1 min 0 s, and not proven: agent \
         bbot@default does not run, although it ran before the update."
    );
    trial.deadline_usec = host.taken_usec;
    host.os_trial = Some(trial.clone());
    assert!(last(&host).starts_with("Operating system 1.5 is on trial beyond its deadline, and"));
    trial.state = "returned".into();
    trial.reason = "buildosctl why ended with 15 (nat)".into();
    host.os_trial = Some(trial);
    assert_eq!(
        last(&host),
        "The host has returned to its former operating system: buildosctl why ended with 15 \
         (nat); see buildos-updated(8)."
    );
    assert_eq!(judge(&host).exit_code(), 0);
}

#[test]
fn fault_of_state_volume_is_advice() {
    let mut host = ready();
    let before = judge(&host);
    host.state_volume = Some(StateVolume {
        state: "refused".into(),
        fault: true,
        reason: "there is no state volume, as vda and vdb have the same label".into(),
        ..StateVolume::default()
    });
    let verdict = judge(&host);
    assert_eq!(verdict.exit_code(), 0);
    assert_eq!(verdict.advice.len(), before.advice.len() + 1);
    assert_eq!(
        verdict.advice.last().unwrap(),
        "State volume (refused): there is no state volume, as vda and vdb have the same label; \
         see buildos-volumes(8)."
    );
}
