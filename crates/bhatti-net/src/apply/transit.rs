//! Which range lies between the namespaces and the host, and the route that claims it.
//!
//! The claim is an `unreachable` route to the whole range. It keeps packets to users that do not
//! exist from leaving by the default route, and it is how another daemon on the same host sees
//! that the range is taken, before any user exists. Its metric says whose it is.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use serde::Deserialize;

use super::{Program, parse};
use crate::address::check_transit;
use crate::plan::Names;
use crate::{Ipv4Net, NetError};

/// Tried in this order if the configured range is in use: shared address space (RFC 6598), then
/// the range for benchmarks (RFC 2544), which no network is addressed from.
const ALTERNATIVES: [&str; 4] =
    ["100.126.0.0/16", "100.125.0.0/16", "198.18.0.0/16", "198.19.0.0/16"];
/// Held while looking and claiming, so that two daemons that start at once do not both find the
/// same range free. Only root may open it.
const LOCK: &str = "/run/bhatti-net.lock";
/// Routes shorter than this are default routes under another name (a VPN's 0.0.0.0/1).
const SHORTEST: u8 = 8;

/// A line of `ip -j route`.
#[derive(Debug, Deserialize)]
struct Route {
    dst: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    dev: Option<String>,
    #[serde(default)]
    metric: u32,
}

impl Route {
    fn is_claim_of(&self, names: &Names) -> bool {
        self.kind.as_deref() == Some("unreachable") && self.metric == names.claim_metric()
    }

    /// Whether the route speaks against using a range that it overlaps.
    fn conflicts(&self, names: &Names) -> bool {
        let ours = self.is_claim_of(names)
            || self.dev.as_deref().is_some_and(|dev| names.index_of_veth(dev).is_some());
        let len = match self.dst.split_once('/') {
            Some((_, len)) => len.parse().unwrap_or(0),
            None if self.dst == "default" => 0,
            None => 32,
        };
        !ours && len >= SHORTEST
    }
}

/// Claims `wanted`, or the first alternative if the host uses a part of it, and gives up claims
/// of ours to other ranges.
pub(crate) async fn choose_transit(names: &Names, wanted: Ipv4Net) -> Result<Ipv4Net, NetError> {
    check_transit(wanted)?;
    let lock = lock().await?;
    let alternatives = ALTERNATIVES.iter().filter_map(|net| net.parse().ok());
    let mut tried = Vec::new();
    for range in std::iter::once(wanted).chain(alternatives) {
        if tried.contains(&range) {
            continue;
        }
        match conflict(names, range).await? {
            None => {
                claim(names, range).await?;
                // Released only now: the claim is visible to the next who looks.
                drop(lock);
                return Ok(range);
            }
            Some(route) => {
                tracing::warn!(%range, in_use_by = route.dst, "transit range is in use on the host");
                tried.push(range);
            }
        }
    }
    Err(NetError::NoTransit { tried })
}

/// Gives up our claim.
pub(crate) async fn release_transit(names: &Names) -> Result<(), NetError> {
    for route in claims(names).await? {
        withdraw(names, &route.dst).await?;
    }
    Ok(())
}

async fn lock() -> Result<File, NetError> {
    let failed = |source| NetError::File { action: "lock", path: LOCK.into(), source };
    let take = || {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(LOCK)?;
        file.lock()?;
        Ok(file)
    };
    tokio::task::spawn_blocking(take).await.map_err(|_| NetError::TaskDied)?.map_err(failed)
}

/// The first route that overlaps `range` and is not ours. Addresses of the host are routes too, in
/// the table `local`.
async fn conflict(names: &Names, range: Ipv4Net) -> Result<Option<Route>, NetError> {
    let range = range.to_string();
    // `match`: routes that contain the range; `root`: routes inside it.
    for how in ["match", "root"] {
        let args = ["-j", "-4", "route", "show", "table", "all", how, &range];
        if let Some(route) = routes(&args).await?.into_iter().find(|r| r.conflicts(names)) {
            return Ok(Some(route));
        }
    }
    Ok(None)
}

async fn claim(names: &Names, range: Ipv4Net) -> Result<(), NetError> {
    let (range, metric) = (range.to_string(), names.claim_metric().to_string());
    for stale in claims(names).await?.iter().filter(|claim| claim.dst != range) {
        withdraw(names, &stale.dst).await?;
    }
    let args = ["-4", "route", "replace", "unreachable", &range, "metric", &metric];
    Program::Ip.run("claim the transit range", &args, "").await.map(drop)
}

async fn withdraw(names: &Names, range: &str) -> Result<(), NetError> {
    let metric = names.claim_metric().to_string();
    let args = ["-4", "route", "delete", "unreachable", range, "metric", &metric];
    Program::Ip.run("give up the transit range", &args, "").await.map(drop)
}

async fn claims(names: &Names) -> Result<Vec<Route>, NetError> {
    let mut routes = routes(&["-j", "-4", "route", "show", "type", "unreachable"]).await?;
    routes.retain(|route| route.is_claim_of(names));
    Ok(routes)
}

async fn routes(args: &[&str]) -> Result<Vec<Route>, NetError> {
    let text = Program::Ip.run("list routes", args, "").await?;
    // With no route to show `ip` prints an empty list or nothing at all.
    if text.trim_ascii().is_empty() { Ok(Vec::new()) } else { parse("ip", &text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_routes_of_others_conflict() {
        let names = Names::new("bhatti-").unwrap();
        let (veth, metric) = (names.veth(3), names.claim_metric());
        for (json, conflicts) in [
            (r#"{"dst":"default","dev":"eth0","flags":[]}"#.to_owned(), false),
            (r#"{"dst":"0.0.0.0/1","dev":"tun0"}"#.to_owned(), false),
            (r#"{"dst":"100.64.0.0/10","dev":"tun0"}"#.to_owned(), true),
            (r#"{"type":"local","dst":"100.127.9.9","dev":"eth0"}"#.to_owned(), true),
            (format!(r#"{{"dst":"100.127.0.6/31","dev":"{veth}"}}"#), false),
            (r#"{"dst":"100.127.0.6/31","dev":"bh000000-3"}"#.to_owned(), true),
            (
                format!(r#"{{"type":"unreachable","dst":"100.127.0.0/16","metric":{metric}}}"#),
                false,
            ),
            (r#"{"type":"unreachable","dst":"100.127.0.0/16","metric":7}"#.to_owned(), true),
        ] {
            let route: Route = serde_json::from_str(&json).unwrap();
            assert_eq!(route.conflicts(&names), conflicts, "{json}");
        }
    }

    #[test]
    fn every_alternative_can_be_used() {
        for net in ALTERNATIVES {
            check_transit(net.parse().unwrap()).unwrap();
        }
    }
}
