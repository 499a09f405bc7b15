//! The controllers of an agent: which they are, and whether they can be reached.

use std::time::Duration;

use buildos_service::text;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::snapshot::model::{Agent, Controller};

/// How long a controller may take to take a connection; TCP sends its first
/// segment again after one second, and after two more.
const PATIENCE: Duration = Duration::from_secs(4);

/// The URLs among the arguments of an agent: `[PRIORITY=]URL`, as bbot-agent has
/// them.
pub(crate) fn named(arguments: &[String]) -> Vec<Controller> {
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

/// Tries to connect to every controller of every agent that runs, all at once.
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

/// Whether somebody takes connections there: TCP only, so that nothing is asked
/// that a controller would count as a request.
async fn connect(url: &str) -> Result<(), String> {
    let (host, port) = authority(url).ok_or("its URL names no host")?;
    let attempt = async {
        let addresses: Vec<_> = lookup_host((host, port))
            .await
            .map_err(|error| format!("{host} has no address: {error}"))?
            .collect();
        let mut failure = format!("{host} has no address");
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(_) => return Ok(()),
                Err(error) => failure = format!("{address}: {error}"),
            }
        }
        Err(failure)
    };
    let outcome = timeout(PATIENCE, attempt).await;
    outcome.unwrap_or_else(|_elapsed| {
        Err(format!(
            "{host}, port {port}, does not answer within {} s",
            PATIENCE.as_secs()
        ))
    })
}

/// Host and port of an `http` or `https` URL (RFC 3986, section 3.2).
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
    fn controllers_are_the_urls_of_a_command_line() {
        let arguments = [
            "/usr/bin/bbot-agent",
            "--trust=aa:bb",
            "--verbose",
            "3",
            "100=https://a.example/",
            "http://b.example:8080/?build",
        ];
        let named = named(&arguments.map(str::to_owned));
        let urls: Vec<_> = named.iter().map(|c| c.url.as_str()).collect();
        assert_eq!(urls, ["https://a.example/", "http://b.example:8080/?build"]);
    }

    #[test]
    fn authorities() {
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
