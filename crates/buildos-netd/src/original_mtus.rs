//! Remembers the MTU that NICs had before the key `mtu` changed it, so that they get it back
//! when the key is removed.
//!
//! # Limits
//!
//! A restart of netd forgets it.

use std::collections::BTreeMap;

use buildos_types::LinkIndex;

use crate::observed::Observed;

/// The MTUs of NICs before netd changed them.
#[derive(Debug, Default)]
pub(crate) struct OriginalMtus(BTreeMap<LinkIndex, u32>);

impl OriginalMtus {
    /// Updates the MTUs before the NICs `up` get a configured MTU, or after the key was removed.
    /// A NIC that has its original MTU again is forgotten: a later change is that of an
    /// administrator.
    pub(crate) fn update(
        &mut self,
        is_configured: bool,
        up: impl IntoIterator<Item = LinkIndex>,
        observed: &Observed,
    ) {
        let mtu = |index: LinkIndex| observed.links.get(&index).map(|link| link.mtu);
        if is_configured {
            for index in up {
                if let Some(mtu) = mtu(index) {
                    self.0.entry(index).or_insert(mtu);
                }
            }
        }
        self.0.retain(|index, original| match mtu(*index) {
            Some(current) => is_configured || current != *original,
            None => false,
        });
    }

    /// Returns the MTUs that NICs get back.
    #[must_use]
    pub(crate) fn get(&self) -> &BTreeMap<LinkIndex, u32> {
        &self.0
    }
}
