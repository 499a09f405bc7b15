//! Describes each machine of a channel and of a volume: what is wanted, what is current, and
//! what an operator chose. Pure.

use std::collections::BTreeSet;

use buildos_channel::{Channel, Name};
use buildos_dbus_api::update1::{Machine, MachineState};

use crate::retention::Selection;
use crate::state::Volume;

/// Returns the machines by name. Without a channel they are those of the volume.
#[must_use]
pub fn machines(
    channel: Option<&Channel>,
    volume: &Volume,
    selection: &Selection<'_>,
) -> Vec<Machine> {
    let in_channel = channel.iter().flat_map(|channel| &channel.machines);
    let in_channel = in_channel.map(|machine| machine.name.clone());
    let placed = volume.placed();
    let on_volume = placed.iter().map(|placed| placed.name.clone());
    let names: BTreeSet<Name> = in_channel.chain(on_volume).collect();
    let each = names.iter();
    each.map(|name| machine(name, channel, volume, selection))
        .collect()
}

/// Notes the revision of the channel in a machine that was described without one.
pub fn remember(machine: &mut Machine, wanted: u64) {
    machine.wanted = wanted;
    if machine.state == MachineState::Current && wanted > 0 && machine.current != wanted {
        machine.state = MachineState::Waiting;
    }
}

fn machine(
    name: &Name,
    channel: Option<&Channel>,
    volume: &Volume,
    selection: &Selection<'_>,
) -> Machine {
    let choices = selection.choices;
    let mut offered = channel.iter().flat_map(|channel| &channel.machines);
    let offered = offered.find(|machine| machine.name == *name);
    let mut mine = volume.machines.iter().filter(|m| m.name == name.as_str());
    let is_on_volume = mine.clone().next().is_some();
    let pin_is_there = |pin| mine.clone().any(|machine| machine.revision == pin);
    let pin = choices.pinned(name);
    let is_taken = choices.select(name, selection.patterns);
    let state = match (pin, offered) {
        (Some(pin), _) if pin_is_there(pin) => MachineState::Pinned,
        (Some(_), _) => MachineState::PinMissing,
        // Before the first run, what the channel has is unknown.
        (None, None) if channel.is_none() && is_taken => MachineState::Current,
        (None, Some(offered)) if is_taken => {
            let id = offered.id.to_string();
            match mine
                .clone()
                .any(|machine| machine.current && machine.id == id)
            {
                true => MachineState::Current,
                false => MachineState::Waiting,
            }
        }
        (None, _) if is_on_volume => MachineState::Leaving,
        (None, _) => MachineState::NotTaken,
    };
    let current = mine.find(|machine| machine.current);
    let choice = match (choices.is_added(name), choices.is_removed(name)) {
        (true, _) => "added",
        (_, true) => "removed",
        _ => "",
    };
    Machine {
        name: name.to_string(),
        wanted: offered.map_or(0, |machine| machine.revision),
        current: current.map_or(0, |machine| machine.revision),
        id: current
            .map(|machine| machine.id.clone())
            .unwrap_or_default(),
        pinned: pin.unwrap_or(0),
        choice: choice.to_owned(),
        state,
    }
}
