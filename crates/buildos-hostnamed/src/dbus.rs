//! `org.build2.buildos.hostname1` on the system bus.

use buildos_dbus_api::hostname1::{NAME, PATH, Source};
use zbus::{Connection, interface};

/// What the properties are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The name in force, or empty.
    pub hostname: String,
    /// Where it came from.
    pub source: Source,
    /// Why this name, or what is waited for.
    pub reason: String,
    /// Names that were not taken, each with the reason.
    pub refused: Vec<String>,
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

#[interface(name = "org.build2.buildos.hostname1.Manager")]
impl Manager {
    /// The name in force, read back from systemd-hostnamed; empty before the first.
    #[zbus(property)]
    fn hostname(&self) -> &str {
        &self.published.hostname
    }

    /// `static`, `configuration`, `dhcp-fqdn`, `dhcp-hostname`, `mac` or `none`.
    #[zbus(property)]
    fn source(&self) -> &str {
        self.published.source.as_str()
    }

    /// One line for people: why this name, or what is waited for.
    #[zbus(property)]
    fn reason(&self) -> &str {
        &self.published.reason
    }

    /// Names that were refused, each with the reason, escaped.
    #[zbus(property)]
    fn refused(&self) -> Vec<String> {
        self.published.refused.clone()
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
                hostname: String::new(),
                source: Source::None,
                reason: String::new(),
                refused: vec![],
                problems: vec![],
            },
        };
        let mut xml = String::from("<node>\n");
        manager.introspect_to_writer(&mut xml, 2);
        xml.push_str("</node>\n");
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/dbus/org.build2.buildos.hostname1.xml"
        );
        if std::env::var_os("BUILDOS_BLESS").is_some() {
            std::fs::write(path, &xml).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), xml);
    }
}
