//! Firewalls of others that would drop what ours lets through.
//!
//! A packet must pass every base chain of every table, so no rule of ours can help; only saying so.

use serde::Deserialize;

use super::{Program, parse};
use crate::NetError;

/// What `nft -j list chains` prints.
#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

/// One object of the listing; those that are no chain are skipped.
#[derive(Deserialize)]
struct Item {
    chain: Option<Chain>,
}

#[derive(Deserialize)]
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
    policy: Option<String>,
}

/// Base chains of tables other than `own` that drop forwarded IPv4 packets by default, as
/// `family table chain`.
pub(crate) async fn foreign_drops(own: &str) -> Result<Vec<String>, NetError> {
    let text = Program::Nft.run("list chains", &["-j", "list", "chains"], "").await?;
    Ok(drops(parse("nft", &text)?, own))
}

fn drops(listing: Listing, own: &str) -> Vec<String> {
    let is_drop = |chain: &Chain| {
        matches!(chain.family.as_str(), "ip" | "inet")
            && chain.hook.as_deref() == Some("forward")
            && chain.policy.as_deref() == Some("drop")
            && chain.table != own
    };
    let chains = listing.nftables.into_iter().filter_map(|item| item.chain).filter(is_drop);
    chains.map(|Chain { family, table, name, .. }| format!("{family} {table} {name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dropping_forward_chains_of_others_are_named() {
        let chain = |family: &str, table: &str, rest: &str| {
            format!(r#"{{"chain":{{"family":"{family}","table":"{table}","name":"F"{rest}}}}}"#)
        };
        let drop = r#","hook":"forward","policy":"drop","prio":0"#;
        let text = [
            r#"{"metainfo":{"version":"1.0.6"}}"#.to_owned(),
            chain("ip", "filter", drop),
            chain("inet", "bhatti", drop),
            chain("ip6", "filter", drop),
            chain("inet", "fw", r#","hook":"forward","policy":"accept""#),
            chain("inet", "fw", r#","hook":"input","policy":"drop""#),
            chain("ip", "filter", ""),
        ];
        let text = format!(r#"{{"nftables":[{}]}}"#, text.join(","));
        let listing = parse("nft", text.as_bytes()).unwrap();
        assert_eq!(drops(listing, "bhatti"), ["ip filter F"]);
    }
}
