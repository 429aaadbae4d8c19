//! The real thing: namespaces, bridges, TAPs and nftables, each test on a host of its own (a fresh
//! network and mount namespace). They need root; without it they fail.

#[path = "all/crowd.rs"]
mod crowd;
#[path = "all/dial.rs"]
mod dial;
#[path = "all/guest.rs"]
mod guest;
#[path = "all/host.rs"]
mod host;
#[path = "all/isolation.rs"]
mod isolation;
#[path = "all/lies.rs"]
mod lies;
#[path = "all/lifetime.rs"]
mod lifetime;
#[path = "all/mending.rs"]
mod mending;
#[path = "all/names.rs"]
mod names;
#[path = "all/others.rs"]
mod others;
#[path = "all/policy.rs"]
mod policy;
#[path = "all/reach.rs"]
mod reach;

#[test]
fn every_file_is_listed() {
    let list = include_str!("all.rs");
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/all");
    for entry in std::fs::read_dir(folder).expect("the folder of this file") {
        let name = entry.expect("an entry").file_name();
        let name = name.to_string_lossy();
        assert!(list.contains(&format!("\"all/{name}\"")), "{name} is not listed in all.rs");
    }
}
