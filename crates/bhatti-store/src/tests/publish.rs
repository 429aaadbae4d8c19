//! Aliases, and what they stand for.

use super::{open, reserve, user, wanted};
use crate::{Published, Store, StoreError};
use bhatti_types::{Alias, SandboxId};

fn alias(text: &str) -> Alias {
    text.parse().unwrap()
}

fn publish(store: &mut Store, sandbox: &SandboxId, port: u16, name: &str) -> Published {
    store.publish(sandbox, port, &alias(name), false).unwrap().0
}

/// The sandbox and port an alias stands for.
fn stands_for(store: &Store, alias: &str) -> Option<(String, u16)> {
    store.published(alias).unwrap().map(|(rule, row)| (row.name.to_string(), rule.port))
}

#[test]
fn an_alias_is_one_sandboxs_and_a_port_has_one() {
    let (_dir, mut store) = open();
    let (alice, bob) = (user(&mut store, "alice", 5), user(&mut store, "bob", 5));
    let dev = reserve(&mut store, &wanted(&alice, "dev")).id;
    let his = reserve(&mut store, &wanted(&bob, "his")).id;
    let Published::New(rule) = publish(&mut store, &dev, 80, "web") else { panic!("it is new") };
    assert_eq!((rule.port, &rule.alias), (80, &alias("web")));
    assert_eq!(stands_for(&store, "web"), Some(("dev".to_owned(), 80)));
    // The same port again: as it was, whatever it is to be called now.
    for name in ["web", "other"] {
        assert_eq!(publish(&mut store, &dev, 80, name), Published::Existing(rule.clone()));
    }
    for (sandbox, port) in [(&his, 80), (&dev, 81)] {
        let taken = store.publish(sandbox, port, &alias("web"), false).err().unwrap();
        assert_eq!(taken.to_string(), "alias \"web\" is already taken");
        assert!(matches!(taken, StoreError::AliasTaken(_)));
    }
    publish(&mut store, &dev, 81, "two");
    publish(&mut store, &his, 80, "three");
    let aliases = |rules: Vec<crate::PublishRow>| {
        rules.iter().map(|rule| rule.alias.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(aliases(store.publish_rules(&dev).unwrap()), ["web", "two"]);
    assert_eq!(aliases(store.publish_rules_of(&alice).unwrap()), ["web", "two"]);
    assert_eq!(aliases(store.publish_rules_of(&bob).unwrap()), ["three"]);
    for nobody in ["", "we", "web ", "WEB", "'"] {
        assert_eq!(stands_for(&store, nobody), None, "{nobody:?}");
    }
}

#[test]
fn a_rule_ends_when_it_is_taken_back_or_with_its_sandbox() {
    let (_dir, mut store) = open();
    let alice = user(&mut store, "alice", 5);
    let dev = reserve(&mut store, &wanted(&alice, "dev")).id;
    publish(&mut store, &dev, 80, "web");
    publish(&mut store, &dev, 81, "two");
    assert_eq!(store.unpublish(&dev, 82).unwrap(), None);
    assert_eq!(store.unpublish(&dev, 80).unwrap().map(|rule| rule.alias), Some(alias("web")));
    assert_eq!(stands_for(&store, "web"), None);
    assert!(matches!(publish(&mut store, &dev, 90, "web"), Published::New(_)), "free again");
    store.remove_sandbox(&dev).unwrap();
    assert_eq!((stands_for(&store, "web"), stands_for(&store, "two")), (None, None));
    let gone = store.publish(&dev, 80, &alias("web"), false).err().unwrap();
    assert!(matches!(gone, StoreError::NoSandbox(_)), "{gone}");
}

#[test]
fn a_sandbox_has_so_many_rules_and_no_more() {
    let (_dir, mut store) = open();
    let alice = user(&mut store, "alice", 5);
    let dev = reserve(&mut store, &wanted(&alice, "dev")).id;
    for port in 1..=100 {
        publish(&mut store, &dev, port, &format!("a{port}"));
    }
    let full = store.publish(&dev, 101, &alias("a101"), false).err().unwrap();
    assert!(matches!(full, StoreError::TooManyPublished(100)), "{full}");
    assert!(matches!(publish(&mut store, &dev, 100, "x"), Published::Existing(_)));
}

#[test]
fn a_protected_port_is_opened_by_its_last_token_only() {
    let (_dir, mut store) = open();
    let alice = user(&mut store, "alice", 5);
    let dev = reserve(&mut store, &wanted(&alice, "dev")).id;
    let rule = |store: &Store| store.published("web").unwrap().unwrap().0;
    let (_, first) = store.publish(&dev, 80, &alias("web"), true).unwrap();
    let first = first.unwrap();
    assert!(rule(&store).is_protected() && rule(&store).opens(first.reveal()));
    for wrong in ["", "bhp_", &first.reveal().to_uppercase()] {
        assert!(!rule(&store).opens(wrong), "{wrong}");
    }
    // Asked for without: it stays protected, as it is.
    assert_eq!(store.publish(&dev, 80, &alias("web"), false).unwrap().1, None);
    assert!(rule(&store).opens(first.reveal()));
    let (outcome, second) = store.publish(&dev, 80, &alias("web"), true).unwrap();
    assert!(matches!(outcome, Published::Existing(rule) if rule.opens(second.unwrap().reveal())));
    assert!(!rule(&store).opens(first.reveal()), "it was replaced");
    publish(&mut store, &dev, 81, "open");
    let open = store.published("open").unwrap().unwrap().0;
    assert!(!open.is_protected() && !open.opens(first.reveal()));
    let stored = store
        .connection
        .query_row("SELECT token_hash FROM publish_rules", [], |row| row.get::<_, String>(0));
    assert_eq!(stored.unwrap().len(), 64, "a hash");
}
