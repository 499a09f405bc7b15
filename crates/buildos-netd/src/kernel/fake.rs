//! Simulates a kernel as a value, with a clock and cables, for `buildosctl simulate` and
//! tests. It can refuse operations.

use std::collections::{BTreeMap, BTreeSet};

use buildos_dhcp::Instant;
use buildos_types::{InterfaceName, LinkIndex};
use futures_util::FutureExt as _;

use crate::observed::{Address, BridgeSettings, Link, Observed, Vlan};
use crate::plan::Op;
use crate::reconcile::Kernel;
use crate::uplink::path::NicVlan;

/// Index of the loopback interface.
const LOOPBACK: u32 = 1;

/// Decides whether the kernel refuses an operation.
type Refuses = Box<dyn Fn(&Op) -> bool>;

/// A kernel that applies operations to a value.
#[derive(Default)]
pub struct FakeKernel {
    /// Its network configuration. Other programs change it directly.
    pub observed: Observed,
    whole_seconds: bool,
    now: Instant,
    /// Highest index of a link so far. Linux does not reuse indices of removed links.
    last_index: Option<LinkIndex>,
    /// NICs with a cable, plugged in or not. Other links keep their carrier.
    cables: BTreeMap<LinkIndex, bool>,
    refuses: Option<Refuses>,
    ignores: Option<Refuses>,
}

/// The fake kernel refused an operation.
#[derive(Debug, thiserror::Error)]
#[error("cannot {0}: refused")]
pub struct Refused(String);

/// Returns a NIC as the kernel creates it: down, with IPv6 and ARP for all links.
#[must_use]
pub fn nic(index: LinkIndex, name: InterfaceName) -> Link {
    Link {
        index,
        name,
        mac: None,
        mtu: 1500,
        max_mtu: None,
        up: false,
        carrier: false,
        carrier_losses: 0,
        controller: None,
        ethernet: true,
        kind: None,
        device: true,
        virtual_function: false,
        wireless: false,
        ipv6: Some(true),
        answers_arp: true,
        bridge: None,
        vlan: None,
    }
}

/// Runs a future that waits for fake kernels only. Returns [`None`] if it waits for anything
/// else.
pub fn run<T>(future: impl Future<Output = T>) -> Option<T> {
    future.now_or_never()
}

impl FakeKernel {
    /// Returns a kernel without links at that time since boot.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            now,
            ..Self::default()
        }
    }

    /// Rounds lifetimes of addresses down to whole seconds, as Linux does.
    #[must_use]
    pub fn with_whole_seconds(mut self) -> Self {
        self.whole_seconds = true;
        self
    }

    /// Adds a link.
    pub fn add_link(&mut self, link: Link) {
        self.last_index = self.last_index.max(Some(link.index));
        self.observed.links.insert(link.index, link);
    }

    /// Connects or disconnects the cable of a NIC. Returns false if that changes nothing.
    pub fn plug(&mut self, nic: LinkIndex, plugged: bool) -> bool {
        self.cables.insert(nic, plugged) != Some(plugged)
    }

    /// Returns true if the cable of a NIC is connected.
    #[must_use]
    pub fn is_plugged(&self, nic: LinkIndex) -> bool {
        self.cables.get(&nic) == Some(&true)
    }

    /// Refuses the operations for which `refuses` returns true, until the next call.
    pub fn refuse(&mut self, refuses: impl Fn(&Op) -> bool + 'static) {
        self.refuses = Some(Box::new(refuses));
    }

    /// Returns the next end of a lifetime of an address.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Instant> {
        let addresses = self.observed.addresses.iter();
        addresses.filter_map(|address| address.expires).min()
    }

    /// Advances the clock. Removes and returns the addresses whose lifetimes end, with the
    /// routes that have them as their source.
    pub fn advance(&mut self, now: Instant) -> Vec<Address> {
        self.now = self.now.max(now);
        let is_over = |address: &Address| address.expires.is_some_and(|end| end <= now);
        let (over, kept): (Vec<_>, _) = std::mem::take(&mut self.observed.addresses)
            .into_iter()
            .partition(is_over);
        self.observed.addresses = kept;
        for address in &over {
            let routes = &mut self.observed.routes;
            routes.retain(|route| route.source != address.net.addr());
        }
        over
    }

    /// Returns an index that no link has had.
    #[must_use]
    pub fn unused_index(&self) -> Option<LinkIndex> {
        let last = self.last_index.map_or(LOOPBACK, LinkIndex::get);
        LinkIndex::new(last.checked_add(1)?)
    }

    /// Updates the links of VLANs as their NICs changed.
    fn update_vlans(&mut self) {
        let mut links = self.observed.links.values();
        if !links.any(|link| link.vlan.is_some()) {
            return;
        }
        let nics = self.observed.links.clone();
        self.observed.links.retain(|_, link| {
            let Some(vlan) = link.vlan else { return true };
            let Some(nic) = nics.get(&vlan.nic) else {
                return false;
            };
            link.up &= nic.up;
            link.carrier = link.up && nic.carrier;
            link.mtu = link.mtu.min(nic.mtu);
            true
        });
    }

    fn update_carrier(&mut self) {
        let mut bridges_with_carrier = BTreeSet::new();
        for (index, link) in &mut self.observed.links {
            if let Some(plugged) = self.cables.get(index) {
                link.carrier = link.up && *plugged;
            }
        }
        self.update_vlans();
        for link in self.observed.links.values().filter(|link| link.carrier) {
            bridges_with_carrier.extend(link.controller);
        }
        let links = self.observed.links.values_mut();
        for bridge in links.filter(|link| link.bridge.is_some()) {
            bridge.carrier = bridge.up && bridges_with_carrier.contains(&bridge.index);
        }
    }

    /// Has the kernel accept some operations without effect from now on.
    pub fn ignore(&mut self, ignores: impl Fn(&Op) -> bool + 'static) {
        self.ignores = Some(Box::new(ignores));
    }

    fn create_bridge(&mut self, name: &str, mac: buildos_types::MacAddress) {
        // The kernel refuses a second link of a name, which counts as done.
        if self.observed.links.values().any(|link| link.name == name) {
            return;
        }
        let Some((index, name)) = self.unused_index().zip(InterfaceName::new(name).ok()) else {
            return;
        };
        self.add_link(Link {
            mac: Some(mac),
            kind: Some("bridge".to_owned()),
            device: false,
            bridge: Some(BridgeSettings::FORWARD_AT_ONCE),
            ..nic(index, name)
        });
    }

    fn create_vlan(&mut self, vlan: &NicVlan) {
        let links = &self.observed.links;
        let is_taken = links.values().any(|link| link.name == vlan.name);
        let Some(nic) = links.get(&vlan.nic).filter(|_| !is_taken) else {
            return;
        };
        let (mac, mtu) = (nic.mac, nic.mtu);
        let Some(index) = self.unused_index() else {
            return;
        };
        self.add_link(Link {
            mac,
            mtu,
            kind: Some("vlan".to_owned()),
            device: false,
            vlan: Some(Vlan {
                nic: vlan.nic,
                id: vlan.id.get(),
                is_own: true,
            }),
            ..self::nic(index, vlan.name.clone())
        });
    }

    fn remove_link(&mut self, index: LinkIndex) {
        self.observed.links.remove(&index);
        self.observed
            .other_addresses
            .retain(|(link, _)| *link != index);
    }

    /// Adds an address, or replaces its lifetime.
    fn set_address(&mut self, address: &Address) {
        let mut address = address.clone();
        if self.whole_seconds {
            let end = address.expires.map(|end| {
                let left = end.saturating_sub(self.now).as_secs();
                self.now + Instant::from_secs(left)
            });
            address.expires = end;
        }
        let addresses = &mut self.observed.addresses;
        addresses.retain(|other| !other.is_same_apart_from_lifetime(&address));
        addresses.push(address);
    }

    /// Applies an operation. An operation on a missing link changes nothing.
    fn execute(&mut self, op: &Op) {
        let observed = &mut self.observed;
        let mut change = |index: &LinkIndex, change: &dyn Fn(&mut Link)| {
            if let Some(link) = observed.links.get_mut(index) {
                change(link);
            }
        };
        match op {
            Op::CreateBridge(name, mac) => self.create_bridge(name, *mac),
            Op::CreateVlan(vlan) => self.create_vlan(vlan),
            Op::RemoveVlan(index) => self.remove_link(*index),
            Op::DisableIpv6AndArp(index) => change(index, &|link| {
                (link.ipv6, link.answers_arp) = (Some(false), false);
            }),
            Op::DisableIpv6(index) => change(index, &|link| link.ipv6 = Some(false)),
            Op::EnableIpv6(index) => change(index, &|link| link.ipv6 = Some(true)),
            Op::SetBridge(index) => change(index, &|link| {
                link.bridge = Some(BridgeSettings::FORWARD_AT_ONCE);
            }),
            Op::SetMac(index, mac) => change(index, &|link| link.mac = Some(*mac)),
            Op::SetMtu(index, mtu) => change(index, &|link| link.mtu = *mtu),
            Op::SetUp(index) => change(index, &|link| link.up = true),
            Op::Detach(index) => change(index, &|link| link.controller = None),
            Op::Attach { port, bridge } => change(port, &|link| link.controller = Some(*bridge)),
            Op::RemoveAddress(address) => observed.addresses.retain(|other| other != address),
            Op::SetAddress(address) => self.set_address(address),
            Op::RemoveRoute(route) => observed.routes.retain(|other| other != route),
            Op::AddRoute(route) => observed.routes.push(route.clone()),
        }
    }
}

impl Kernel for FakeKernel {
    type Error = Refused;

    fn now(&self) -> Instant {
        self.now
    }

    async fn observe(&mut self) -> Result<Observed, Refused> {
        self.update_carrier();
        Ok(self.observed.clone())
    }

    async fn apply(&mut self, op: &Op, observed: &Observed) -> Result<(), Refused> {
        if self.refuses.as_ref().is_some_and(|refuses| refuses(op)) {
            return Err(Refused(op.describe(observed)));
        }
        if self.ignores.as_ref().is_some_and(|ignores| ignores(op)) {
            return Ok(());
        }
        let is_down = |index: LinkIndex| !self.observed.links.get(&index).is_some_and(|l| l.up);
        if let Op::SetUp(index) = op {
            let vlan = self.observed.links.get(index).and_then(|link| link.vlan);
            if vlan.is_some_and(|vlan| is_down(vlan.nic)) {
                // ENETDOWN.
                return Err(Refused(op.describe(observed)));
            }
        }
        self.execute(op);
        Ok(())
    }
}
