//! Lists the next state for every state and input.

use buildos_dhcp::{Input, State};

use crate::host::{Host, MAC};
use crate::server_reply::{ADDRESS, Reply};

#[derive(Debug, Clone, Copy)]
enum Kind {
    Start,
    Stop,
    Suspend,
    Offer,
    Ack,
    Nak,
    Garbage,
    Deadline,
    EarlyTimeout,
    Resume,
    Select,
    Renew,
    Conflict,
    Release,
}

const KINDS: [Kind; 14] = [
    Kind::Start,
    Kind::Stop,
    Kind::Suspend,
    Kind::Offer,
    Kind::Ack,
    Kind::Nak,
    Kind::Garbage,
    Kind::Deadline,
    Kind::EarlyTimeout,
    Kind::Resume,
    Kind::Select,
    Kind::Renew,
    Kind::Conflict,
    Kind::Release,
];

/// Returns the next state. The client holds an OFFER in SELECTING; leases last an hour.
fn next(state: State, kind: Kind) -> State {
    use Kind as K;
    use State as S;
    match state {
        S::Init => match kind {
            K::Start => S::Selecting,
            K::Resume => S::Rebooting,
            K::Stop | K::Suspend | K::Offer | K::Ack | K::Nak | K::Garbage | K::Deadline => S::Init,
            K::EarlyTimeout | K::Select | K::Renew | K::Conflict | K::Release => S::Init,
        },
        S::Selecting => match kind {
            K::Select => S::Requesting,
            K::Stop | K::Suspend | K::Release | K::Conflict => S::Init,
            K::Start | K::Offer | K::Ack | K::Nak | K::Garbage | K::Deadline => S::Selecting,
            K::EarlyTimeout | K::Resume | K::Renew => S::Selecting,
        },
        S::Requesting => match kind {
            K::Ack => S::Bound,
            K::Nak => S::Selecting,
            K::Stop | K::Suspend | K::Release | K::Conflict => S::Init,
            K::Start | K::Offer | K::Garbage | K::Deadline | K::EarlyTimeout => S::Requesting,
            K::Resume | K::Select | K::Renew => S::Requesting,
        },
        S::Bound => match kind {
            K::Deadline | K::Renew => S::Renewing,
            K::Suspend => S::InitReboot,
            K::Stop | K::Release | K::Conflict => S::Init,
            K::Start | K::Offer | K::Ack | K::Nak | K::Garbage | K::EarlyTimeout => S::Bound,
            K::Resume | K::Select => S::Bound,
        },
        S::Renewing => match kind {
            K::Ack => S::Bound,
            K::Nak => S::Selecting,
            K::Suspend => S::InitReboot,
            K::Stop | K::Release | K::Conflict => S::Init,
            K::Start | K::Offer | K::Garbage | K::Deadline | K::EarlyTimeout => S::Renewing,
            K::Resume | K::Select | K::Renew => S::Renewing,
        },
        S::Rebinding => match kind {
            K::Ack => S::Bound,
            K::Nak => S::Selecting,
            K::Suspend => S::InitReboot,
            K::Stop | K::Release | K::Conflict => S::Init,
            K::Start | K::Offer | K::Garbage | K::Deadline | K::EarlyTimeout => S::Rebinding,
            K::Resume | K::Select | K::Renew => S::Rebinding,
        },
        S::InitReboot => match kind {
            K::Start => S::Rebooting,
            // The only deadline here is the expiry of the lease.
            K::Stop | K::Release | K::Deadline => S::Init,
            K::Suspend | K::Offer | K::Ack | K::Nak | K::Garbage | K::EarlyTimeout => S::InitReboot,
            K::Resume | K::Select | K::Renew | K::Conflict => S::InitReboot,
        },
        S::Rebooting => match kind {
            K::Ack => S::Bound,
            K::Nak => S::Selecting,
            K::Suspend => S::InitReboot,
            K::Stop | K::Release | K::Conflict => S::Init,
            K::Start | K::Offer | K::Garbage | K::Deadline | K::EarlyTimeout => S::Rebooting,
            K::Resume | K::Select | K::Renew => S::Rebooting,
        },
    }
}

fn apply(host: &mut Host, kind: Kind) {
    match kind {
        Kind::Start => host.handle(Input::Start),
        Kind::Stop => host.handle(Input::Stop),
        Kind::Suspend => host.handle(Input::Suspend),
        Kind::Offer => host.reply(Reply::offer()),
        Kind::Ack => host.reply(Reply::ack()),
        Kind::Nak => host.reply(Reply::nak()),
        Kind::Garbage => host.packet(&[2; 300]),
        Kind::Deadline => {
            if let Some(deadline) = host.client.deadline() {
                host.now = deadline;
            }
            host.handle(Input::Timeout);
        }
        Kind::EarlyTimeout => host.handle(Input::Timeout),
        Kind::Resume => {
            let lease = Host::in_state(State::Bound).lease().clone();
            host.handle(Input::Resume(Box::new(lease)));
        }
        Kind::Select => host.handle(Input::Select),
        Kind::Renew => host.handle(Input::Renew),
        Kind::Conflict => host.handle(Input::Conflict {
            address: ADDRESS,
            mac: MAC,
        }),
        Kind::Release => host.handle(Input::Release),
    }
}

#[test]
fn every_input_in_every_state_leads_to_the_state_of_the_table() {
    for state in State::ALL {
        for kind in KINDS {
            let mut host = Host::in_state(state);
            apply(&mut host, kind);
            assert_eq!(host.state(), next(state, kind), "{state} with {kind:?}");
        }
    }
}

#[test]
fn only_inputs_of_the_table_send_messages() {
    for state in State::ALL {
        for kind in KINDS {
            let mut host = Host::in_state(state);
            apply(&mut host, kind);
            let may_send = match kind {
                Kind::Start => matches!(state, State::Init | State::InitReboot),
                Kind::Stop | Kind::Suspend | Kind::Offer | Kind::Garbage | Kind::EarlyTimeout => {
                    false
                }
                Kind::Ack => false,
                Kind::Nak => next(state, kind) != state,
                Kind::Deadline => !matches!(state, State::Init | State::InitReboot),
                Kind::Resume => state == State::Init,
                Kind::Select => state == State::Selecting,
                Kind::Renew => {
                    matches!(state, State::Bound | State::Renewing | State::Rebinding)
                }
                Kind::Conflict => !matches!(state, State::Init | State::InitReboot),
                Kind::Release => state.has_lease() && state != State::InitReboot,
            };
            assert_eq!(!host.sent.is_empty(), may_send, "{state} with {kind:?}");
        }
    }
}
