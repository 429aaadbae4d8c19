//! Who is in a user's network.

use bhatti_types::NetPolicy;

use super::{open, reserve, user, wanted};

#[test]
fn those_of_one_user_with_their_policies() {
    let (_dir, mut store) = open();
    let (alice, bob) = (user(&mut store, "alice", 5), user(&mut store, "bob", 5));
    let subnet = store.user(&alice).unwrap().subnet_index;
    let mut closed = wanted(&alice, "closed");
    closed.net_policy = NetPolicy::closed();
    let (a, b) = (reserve(&mut store, &wanted(&alice, "a")), reserve(&mut store, &closed));
    let others = reserve(&mut store, &wanted(&bob, "a"));
    let seen = |store: &crate::Store, subnet| -> Vec<_> {
        let guests = store.guests_in(subnet).unwrap().into_iter();
        guests.map(|guest| (guest.sandbox, guest.name, guest.ip, guest.net_policy)).collect()
    };
    let row = |row: &crate::SandboxRow, policy: &NetPolicy| {
        (row.id.clone(), row.name.to_string(), row.ip, policy.clone())
    };
    let open = NetPolicy::default();
    assert_eq!(seen(&store, subnet), [row(&a, &open), row(&b, &NetPolicy::closed())]);
    let theirs = store.user(&bob).unwrap().subnet_index;
    assert_eq!(seen(&store, theirs), [row(&others, &open)]);
    assert_eq!(seen(&store, 999), []);

    // What cannot be read may reach nothing.
    let sql = "UPDATE sandboxes SET net_policy = '{\"default\":\"all\"}' WHERE name = 'a'";
    store.connection.execute(sql, []).unwrap();
    assert_eq!(seen(&store, subnet)[0], row(&a, &NetPolicy::closed()));
    assert!(store.connection.execute(&sql.replace('{', "x"), []).is_err(), "it is JSON at least");
}
