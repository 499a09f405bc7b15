//! `org.build2.buildos.nat1` on the system bus.

use buildos_dbus_api::nat1::{NAME, PATH, State};
use zbus::{Connection, interface};

use crate::site::Site;
use crate::status::{Observed, Status};

use crate::dnsmasq::Dnsmasq;

/// What the properties are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// State and reason.
    pub status: Status,
    /// Where, once that is known.
    pub site: Option<Site>,
    /// What was found there.
    pub observed: Option<Observed>,
    /// What is wrong in the configuration.
    pub problems: Vec<String>,
}

/// Serves the first state; only then is the name on the bus.
///
/// # Errors
///
/// The bus is gone, or does not let us have the name.
pub async fn serve(connection: &Connection, published: Published) -> zbus::Result<()> {
    connection
        .object_server()
        .at(PATH, Manager { published })
        .await?;
    connection.request_name(NAME).await
}

/// Publishes another state, signalling what differs.
///
/// # Errors
///
/// The bus is gone.
pub async fn publish(connection: &Connection, published: Published) -> zbus::Result<()> {
    buildos_dbus_api::update(connection, PATH, |manager: &mut Manager| {
        manager.published = published;
    })
    .await
}

/// The served object.
#[derive(Debug)]
pub struct Manager {
    published: Published,
}

impl Manager {
    fn site(&self) -> Option<&Site> {
        self.published.site.as_ref()
    }

    fn observed(&self) -> Option<&Observed> {
        self.published.observed.as_ref()
    }
}

#[interface(name = "org.build2.buildos.nat1.Manager")]
impl Manager {
    /// `waiting`, `active` or `degraded`.
    #[zbus(property)]
    fn state(&self) -> &str {
        self.published.status.state.as_str()
    }

    /// One line for people: what is in force, or what is missing.
    #[zbus(property)]
    fn reason(&self) -> &str {
        &self.published.status.reason
    }

    /// True in state `active`.
    #[zbus(property)]
    fn ready(&self) -> bool {
        self.published.status.state == State::Active
    }

    /// Whether table `inet buildos` was installed and read back.
    #[zbus(property)]
    fn table_installed(&self) -> bool {
        self.observed()
            .is_some_and(|observed| observed.table.is_ok())
    }

    /// Whether dnsmasq serves the private bridge.
    #[zbus(property, name = "DHCPServing")]
    fn dhcp_serving(&self) -> bool {
        self.observed()
            .is_some_and(|observed| observed.dnsmasq == Ok(Dnsmasq::Serving))
    }

    /// Address of the host on the private bridge with its prefix, or empty.
    #[zbus(property)]
    fn private_network(&self) -> String {
        self.site()
            .map(|site| site.network.to_string())
            .unwrap_or_default()
    }

    /// First and last address that dnsmasq hands out, or empty.
    #[zbus(property, name = "DHCPRange")]
    fn dhcp_range(&self) -> Vec<String> {
        self.site()
            .map(|site| site.network.machines())
            .map(|(first, last)| vec![first.to_string(), last.to_string()])
            .unwrap_or_default()
    }

    /// Name servers that dnsmasq forwards to.
    #[zbus(property, name = "DNS")]
    fn dns(&self) -> Vec<String> {
        self.site()
            .map(|site| site.dns.iter().map(ToString::to_string).collect())
            .unwrap_or_default()
    }

    /// Errors in the configuration, one line each; empty when it is sound.
    #[zbus(property)]
    fn configuration_problems(&self) -> Vec<String> {
        self.published.problems.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zbus::object_server::Interface as _;

    #[test]
    fn the_xml_of_record_is_what_is_served() {
        let manager = Manager {
            published: Published {
                status: Status::waiting(""),
                site: None,
                observed: None,
                problems: vec![],
            },
        };
        let mut xml = String::from("<node>\n");
        manager.introspect_to_writer(&mut xml, 2);
        xml.push_str("</node>\n");
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/dbus/org.build2.buildos.nat1.xml"
        );
        if std::env::var_os("BUILDOS_BLESS").is_some() {
            std::fs::write(path, &xml).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), xml);
    }
}
