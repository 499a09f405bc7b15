//! Finds the controllers of an agent, and tries to reach them.

use std::time::Duration;

use buildos_service::text;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::model::{Agent, Controller};
use super::path_mtu;

/// Limit for connecting to a controller. TCP repeats its first segment after one second
/// and after another two (RFC 6298, section 2), so two repetitions fit.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// Returns the URLs among the arguments of an agent. bbot-agent takes
/// `[PRIORITY=]URL`.
pub(crate) fn from_arguments(arguments: &[String]) -> Vec<Controller> {
    let urls = arguments.iter().filter_map(|argument| {
        let url = match argument.split_once('=') {
            Some((priority, url)) if priority.bytes().all(|b| b.is_ascii_digit()) => url,
            _ => argument,
        };
        authority(url).map(|_| url)
    });
    urls.map(|url| Controller {
        url: text::escape(url),
        failure: None,
    })
    .collect()
}

/// Connects to every controller of every running agent, all at once, and records the
/// results.
pub(crate) async fn try_all(agents: &mut [Agent]) {
    let mut tries = JoinSet::new();
    for (i, agent) in agents.iter().enumerate() {
        if agent.instance.state != "running" {
            continue;
        }
        for (j, controller) in agent.controllers.iter().enumerate() {
            let url = controller.url.clone();
            tries.spawn(async move { (i, j, connect(&url).await) });
        }
    }
    while let Some(ended) = tries.join_next().await {
        let Ok((i, j, failure)) = ended else { continue };
        let agent = agents.get_mut(i);
        if let Some(controller) = agent.and_then(|agent| agent.controllers.get_mut(j)) {
            controller.failure = Some(failure.err().unwrap_or_default());
        }
    }
}

/// Opens a TCP connection to the host of a URL, and measures the path. Sends no complete
/// request, as the controller would count it.
async fn connect(url: &str) -> Result<(), String> {
    let (host, port) = authority(url).ok_or("its URL has no host")?;
    let attempt = async {
        let addresses: Vec<_> = lookup_host((host, port))
            .await
            .map_err(|error| format!("{host} has no address: {error}"))?
            .collect();
        let mut failure = format!("{host} has no address");
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = format!("{address}: {error}"),
            }
        }
        Err(failure)
    };
    let Ok(outcome) = timeout(CONNECT_TIMEOUT, attempt).await else {
        return Err(format!(
            "{host}, port {port}, does not answer within {} s",
            CONNECT_TIMEOUT.as_secs()
        ));
    };
    path_mtu::check(&mut outcome?, url.starts_with("https:")).await
}

/// Returns host and port of an `http` or `https` URL (RFC 3986, section 3.2).
fn authority(url: &str) -> Option<(&str, u16)> {
    let (scheme, rest) = url.split_once("://")?;
    let port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let authority = rest.get(..end)?;
    let authority = authority.rsplit_once('@').map_or(authority, |(_, at)| at);
    let (host, given) = match authority.strip_prefix('[') {
        Some(literal) => literal
            .split_once(']')
            .map(|(host, rest)| (host, rest.strip_prefix(':')))?,
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = given
        .filter(|given| !given.is_empty())
        .map_or(Some(port), |given| given.parse().ok())?;
    (!host.is_empty()).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_urls_among_arguments() {
        let arguments = [
            "/usr/bin/bbot-agent",
            "--trust=aa:bb",
            "--verbose",
            "3",
            "100=https://a.example/",
            "http://b.example:8080/?build",
        ];
        let controllers = from_arguments(&arguments.map(str::to_owned));
        let urls: Vec<_> = controllers.iter().map(|c| c.url.as_str()).collect();
        assert_eq!(urls, ["https://a.example/", "http://b.example:8080/?build"]);
    }

    #[test]
    fn authority_has_host_and_port_of_url() {
        for (url, expected) in [
            ("https://a.example", Some(("a.example", 443))),
            ("http://a.example/x:9", Some(("a.example", 80))),
            ("http://me@a.example:81?q", Some(("a.example", 81))),
            ("http://[2001:db8::1]:82/", Some(("2001:db8::1", 82))),
            ("http://[2001:db8::1]", Some(("2001:db8::1", 80))),
            ("http://a.example:/", Some(("a.example", 80))),
            ("http://a.example:99999/", None),
            ("http://[2001:db8::1", None),
            ("ftp://a.example", None),
            ("http:///x", None),
            ("a.example", None),
        ] {
            assert_eq!(authority(url), expected, "{url}");
        }
    }
}
