//! Serves `org.build2.buildos.hostname1` on the system bus.

use buildos_dbus_api::hostname1::{NAME, PATH, Source};
use buildos_dbus_api::request_name;
use zbus::{Connection, interface};

/// Values of the properties.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Active name, or empty.
    pub hostname: String,
    #[allow(missing_docs)]
    pub source: Source,
    /// Reason for this name, or what the daemon waits for.
    pub reason: String,
    /// Refused names, each with the reason.
    pub refused: Vec<String>,
    /// Errors in the configuration.
    pub problems: Vec<String>,
}

/// Serves the first state, then requests the bus name, so that clients never see an empty
/// state.
///
/// # Errors
///
/// The bus is gone, or its policy refuses the name.
pub async fn serve(connection: &Connection, published: Published) -> zbus::Result<()> {
    connection
        .object_server()
        .at(PATH, Manager { published })
        .await?;
    request_name(connection, NAME).await
}

/// Changes the properties, and signals the differences.
///
/// # Errors
///
/// The bus is gone.
pub async fn update(connection: &Connection, published: Published) -> zbus::Result<()> {
    buildos_dbus_api::update(connection, PATH, |manager: &mut Manager| {
        manager.published = published;
    })
    .await
}

/// Object at [`PATH`].
#[derive(Debug)]
pub struct Manager {
    published: Published,
}

#[interface(name = "org.build2.buildos.hostname1.Manager")]
impl Manager {
    /// The active name, read back from systemd-hostnamed; empty until hostnamed has
    /// chosen one.
    #[zbus(property)]
    fn hostname(&self) -> &str {
        &self.published.hostname
    }

    /// `static`, `configuration`, `dhcp-fqdn`, `dhcp-hostname`, `mac` or `none`.
    #[zbus(property)]
    fn source(&self) -> &str {
        self.published.source.as_str()
    }

    /// One line for operators: the reason for this name, or what hostnamed waits for.
    #[zbus(property)]
    fn reason(&self) -> &str {
        &self.published.reason
    }

    /// Refused names, each with the reason, escaped.
    #[zbus(property)]
    fn refused(&self) -> Vec<String> {
        self.published.refused.clone()
    }

    /// Errors in the configuration, one line each; empty if there are none.
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
    fn served_interface_matches_xml_of_record() {
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
