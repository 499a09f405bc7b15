//! What should be in force, all of it, as one value.

use crate::config::Settings;
use crate::dnsmasq;
use crate::nft::Image;
use crate::ruleset;
use crate::site::Site;

/// What should be in force for a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Where.
    pub site: Site,
    /// Our table.
    pub table: Image,
    /// Content of [`dnsmasq::CONFIGURATION`].
    pub dnsmasq: String,
    /// Content of [`dnsmasq::RESOLV`].
    pub resolv: String,
}

impl Wish {
    /// The wish for a site under these settings.
    #[must_use]
    pub fn new(site: Site, settings: &Settings) -> Self {
        Self {
            table: Image::of(&ruleset::table(&site)),
            dnsmasq: dnsmasq::configuration(&site, settings.lease),
            resolv: dnsmasq::resolv(&site.dns),
            site,
        }
    }
}
