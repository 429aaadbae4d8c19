//! Texts as the kernel prints them.

use super::*;

#[test]
fn who_reads_is_not_at_work() {
    let stat = |running: u32, blocked: u32| {
        format!("cpu  1 2 3 4\nintr 5 6\nprocs_running {running}\nprocs_blocked {blocked}\n")
    };
    assert_eq!(runnable(&stat(1, 0)), Some(0));
    assert_eq!(runnable(&stat(3, 2)), Some(4));
    assert_eq!(runnable(&stat(0, 0)), Some(0));
    assert_eq!(runnable("cpu 1\n"), None);
}

#[tokio::test(start_paused = true)]
async fn what_is_over_in_a_moment_is_no_work() {
    for (seen, fewest, looks) in [
        (&[0][..], 0, 1),
        (&[2, 0], 0, 2),
        (&[1, 3, 1, 0], 0, 4),
        (&[1, 1, 1, 1, 0], 1, 4),
        (&[3, 2, 4, 5], 2, 4),
    ] {
        let mut left = seen.iter();
        let found = lasting(|| Ok(*left.next().expect("not so many looks"))).await;
        assert_eq!(found.expect("the looks work"), fewest, "{seen:?}");
        assert_eq!(seen.len() - left.len(), looks, "{seen:?}");
    }
}

#[test]
fn the_time_of_all_cpus_is_added_up() {
    let text = "version 15\ntimestamp 4294901771\n\
                cpu0 0 0 100 50 60 40 1500000000 3 90\ndomain0 03 1 2 3 4 5 6 7 8\n\
                cpu1 0 0 100 50 60 40 600000000 3 90\n";
    assert_eq!(cpu_time(text), Some(Duration::from_millis(2100)));
    assert_eq!(cpu_time("version 15\n"), None);
    assert_eq!(cpu_time("cpu0 0 0\n"), None);
}

#[test]
fn a_kernel_without_exact_times_is_believed_its_ticks() {
    let stat = "cpu  100 10 50 9999 8888 4 6 7777 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
    assert_eq!(ticked(stat), Some(Duration::from_millis(1700)));
    assert_eq!(ticked("cpu  1 2 3\n"), None);
    assert_eq!(ticked("cpu0 1 2 3 4 5 6 7\n"), None);
}

#[test]
fn our_own_time_is_taken_off_and_never_makes_less_than_nothing() {
    let seconds = Duration::from_secs;
    let last = Counters { everybody: seconds(10), own: seconds(4), ..Counters::default() };
    let now = Counters { everybody: seconds(15), own: seconds(6), ..last };
    assert_eq!(now.others_since(&last), seconds(3));
    let idle = Counters { everybody: seconds(11), own: seconds(6), ..last };
    assert_eq!(idle.others_since(&last), Duration::ZERO);
}

#[test]
fn only_established_connections_to_others_count() {
    let line = |peer: &str, state: &str| format!("   0: 0A00020F:0016 {peer} {state} 0:0 0\n");
    let table = |lines: &[String]| format!("  sl  local_address rem_address\n{}", lines.concat());
    let four = table(&[
        line("00000000:0000", "0A"),
        line("0A0A0A0A:0050", "01"),
        line("0100007F:0050", "01"),
        line("0200017F:0050", "01"),
        line("0A0A0A0A:0051", "06"),
        "cut of".to_owned(),
    ]);
    assert_eq!(connections(&four), 1);
    let six = table(&[
        line("00000000000000000000000001000000:0050", "01"),
        line("0000000000000000FFFF00000100007F:0050", "01"),
        line("0000000000000000FFFF00000A0A0A0A:0050", "01"),
        line("B80D0120000000000000000001000000:0050", "01"),
    ]);
    assert_eq!(connections(&six), 2);
    assert_eq!(connections(""), 0);
}

#[test]
fn the_loopback_moves_nothing() {
    let dev = "Inter-|   Receive                            |  Transmit\n \
               face |bytes    packets errs drop fifo frame compressed multicast|bytes\n    \
               lo: 9999 1 0 0 0 0 0 0 9999 1 0 0 0 0 0 0\n  \
               eth0: 1000 5 0 0 0 0 0 0 234 2 0 0 0 0 0 0\n docker0:1 1 0 0 0 0 0 0 5 1 0 0 0 0 0 0\n";
    assert_eq!(network_bytes(dev), 1240);
    assert_eq!(network_bytes(""), 0);
}

#[test]
fn this_kernel_is_understood() {
    let read = || Counters::read(look("/proc/stat", ticked).unwrap()).unwrap();
    let first = read();
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_millis(30) {
        std::hint::black_box(0);
    }
    let second = read();
    assert!(second.own > first.own && second.everybody >= first.everybody, "{first:?} {second:?}");
    assert!(second.clock >= first.clock + Duration::from_millis(30));
    assert!(look("/proc/stat", runnable).is_ok());
    let missing = look("/proc/no-such-file", |_| Some(()));
    assert!(if_present(missing).unwrap().is_none());
}
