//! Makes channels for tests.

use buildos_channel::model::{
    Agent, Channel, Increment, Kind, Machine, Object, Os, Rollout, Stream, Toolchain,
};
use buildos_channel::{Digest, HostId, Name, Timestamp};

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn host(number: u32) -> HostId {
    format!("host-{number}").parse().unwrap()
}

pub(crate) fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

pub(crate) fn stream(text: &str, size: u64) -> Stream {
    Stream {
        size,
        pieces: Digest::of(text.as_bytes()),
    }
}

fn object(text: &str) -> Object {
    Object {
        sha256: Digest::of(text.as_bytes()),
        size: text.len() as u64,
    }
}

pub(crate) fn machine(text: &str) -> Machine {
    let of = |part: &str| format!("{text}{part}");
    Machine {
        name: name(text),
        kind: Kind::Machine,
        revision: 3,
        id: Digest::of(of("3").as_bytes()),
        size: 2_345_678_901,
        whole: stream(&of("whole"), 987_654_321),
        increments: vec![
            Increment {
                from: Digest::of(of("2").as_bytes()),
                stream: stream(&of("2-3"), 21_000_000),
            },
            Increment {
                from: Digest::of(of("1").as_bytes()),
                stream: stream(&of("1-3"), 33_000_000),
            },
        ],
    }
}

/// Returns a channel with everything that a channel can have.
pub(crate) fn channel() -> Channel {
    Channel {
        name: name("stable"),
        serial: 42,
        valid_until: time("2027-01-31T12:00:00Z"),
        os: Some(Os {
            version: name("0.2.0"),
            image: object("image"),
            initrd: object("initrd"),
        }),
        agents: vec![Agent {
            name: name("bbot-agent"),
            version: name("0.18.0"),
            extension: object("extension"),
        }],
        toolchains: vec![Toolchain {
            name: name("public"),
            version: name("0.18.0"),
            list: object("list"),
        }],
        machines: vec![machine("x86_64-linux_debian_13-gcc"), machine("m")],
        rollout: Rollout {
            percent: 10,
            since: 41,
        },
    }
}
