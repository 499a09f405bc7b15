//! `buildosctl machines`: lists the machines on the bridges.

use buildos_service::text::size;
use serde::Serialize;

use crate::snapshot::model::{Host, Machine, MachineKind as Kind, SCHEMA};
use crate::term::{Style, columns_within, row, span};

/// Renders the machines.
pub(crate) fn render(host: &Host, style: Style) -> String {
    if host.machines.is_empty() {
        return "no machines\n".to_owned();
    }
    let header = [
        "PORT", "BRIDGE", "ADDRESS", "AGENT", "PROCESS", "AGE", "CPU", "RAM", "STATE",
    ];
    let mut rows = vec![row(&header)];
    rows.extend(host.machines.iter().map(|m| cells(m, host.taken_usec)));
    columns_within(&rows, style.width)
}

fn cells(machine: &Machine, now: u64) -> Vec<String> {
    let or_dash = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
    let owner = match machine.agent.as_str() {
        "" => &machine.unit,
        agent => agent,
    };
    let mut cells = vec![
        or_dash(&machine.port),
        or_dash(&machine.bridge),
        or_dash(&machine.address),
        or_dash(owner),
    ];
    if machine.kind == Kind::Unknown {
        cells.extend(row(&["-", "-", "-", "-"]));
        cells.push("no process found".to_owned() + &open_ports(machine, now));
        return cells;
    }
    let state = match (machine.suspended_usec, machine.kind) {
        (0, Kind::Container) => "container".to_owned(),
        (0, Kind::Qemu | Kind::Unknown) => "runs".to_owned(),
        (since, _) => format!("suspended for {}", span(now.saturating_sub(since))),
    };
    let state = state + &open_ports(machine, now);
    cells.extend([
        machine.process.to_string(),
        span(now.saturating_sub(machine.since_usec)),
        span(machine.cpu_usec),
        size(machine.memory),
        state,
    ]);
    cells
}

fn open_ports(machine: &Machine, now: u64) -> String {
    let ports = machine.open_ports.iter();
    let texts = ports.map(|(inside, outside, end)| {
        let left = span(end.saturating_sub(now));
        format!("; port {inside} is open as {outside} for {left}")
    });
    texts.collect::<Vec<_>>().concat()
}

/// buildosctl machines --json
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "machines"))]
pub(crate) struct Json<'a> {
    /// Version of this format, as in status
    schema: u32,
    /// Time of the reading, in microseconds since 1970
    taken_usec: u64,
    /// Machines of br1, of br0, then those of agents at no port
    machines: &'a [Machine],
}

impl<'a> Json<'a> {
    /// Returns the JSON form of the machines of a host.
    pub(crate) fn of(host: &'a Host) -> Self {
        Self {
            schema: SCHEMA,
            taken_usec: host.taken_usec,
            machines: &host.machines,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::samples::{NOW, ready};

    #[test]
    fn machines_are_listed_in_columns() {
        let mut host = ready();
        assert_eq!(render(&host, Style::PLAIN), "no machines\n");
        let machine = Machine {
            port: "tap12".into(),
            bridge: "br1".into(),
            address: "172.23.0.9".into(),
            agent: "bbot@default".into(),
            kind: Kind::Qemu,
            process: 77,
            since_usec: NOW - 125_000_000,
            cpu_usec: 61_000_000,
            memory: 812 << 20,
            ..Machine::default()
        };
        host.machines = vec![
            machine.clone(),
            Machine {
                suspended_usec: NOW - 7_200_000_000,
                ..machine.clone()
            },
            Machine {
                kind: Kind::Container,
                agent: String::new(),
                unit: "x.service".into(),
                ..machine
            },
            Machine {
                port: "veth1".into(),
                bridge: "br1".into(),
                open_ports: vec![(22, 61_000, NOW + 3_540_000_000)],
                ..Machine::default()
            },
        ];
        assert_eq!(
            render(&host, Style::PLAIN),
            "\
PORT   BRIDGE  ADDRESS     AGENT         PROCESS  AGE        CPU        RAM      STATE
tap12  br1     172.23.0.9  bbot@default  77       2 min 5 s  1 min 1 s  812 MiB  runs
tap12  br1     172.23.0.9  bbot@default  77       2 min 5 s  1 min 1 s  812 MiB  suspended for 2 h 0 min
tap12  br1     172.23.0.9  x.service     77       2 min 5 s  1 min 1 s  812 MiB  container
veth1  br1     -           -             -        -          -          -        no process found; port 22 is open as 61000 for 59 min 0 s
"
        );
    }
}
