//! Much at once through the proxies, by a real client: streamed both ways, and counted at the end.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};

use bhatti_testkit::{TestDaemon, on_fresh_host};

use crate::files::noise;
use crate::proxy::serve;
use crate::publish::publish;

/// How many MiB each way. The measure is 1024, which takes minutes where machines are
/// emulated.
const SIZE: &str = "BHATTI_TEST_BULK_MIB";
const SIZE_UNSAID: usize = 96;

/// What the daemon may need more than before, in MiB: a small part of what goes through.
const HELD: u64 = 24;

fn size() -> usize {
    std::env::var(SIZE).map_or(SIZE_UNSAID, |text| text.parse().expect("a number of MiB"))
}

#[test]
fn a_body_of_any_size_is_streamed_both_ways() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--memory", "512"]).ok();
        serve(&daemon, "dev", 8000, "127.0.0.1");
        let known = format!("{}/sandboxes/dev/proxy/8000/", daemon.url());
        let published = publish(&daemon, &["dev", "-p", "8000", "-a", "web"]);
        let before = daemon.memory_mib("VmHWM");
        // The public side takes 50 MiB of anybody.
        upload(&daemon, &format!("{known}sum"), size());
        // Strangers have five minutes, in which a busy machine that is emulated moves so much.
        for (url, mib) in [(&known, size()), (&published, size().min(SIZE_UNSAID))] {
            download(&daemon, &format!("{url}big?{}", 16 * mib), mib);
        }
        let after = daemon.memory_mib("VmHWM");
        assert!(after - before < HELD, "{before} MiB, then {after}");
        assert_eq!(daemon.unannounced_errors(), Vec::<String>::new());
    });
}

fn curl(daemon: &TestDaemon, args: &[&str], url: &str) -> Child {
    let key = format!("Authorization: Bearer {}", daemon.admin().key);
    Command::new("curl")
        // However long it takes, if only something moves.
        .args(["-sSf", "--speed-limit", "1", "--speed-time", "60", "-H", &key])
        .args(args)
        .arg(url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl runs")
}

/// In chunks, of which curl knows neither the number nor the sum.
fn upload(daemon: &TestDaemon, url: &str, mib: usize) {
    let mut sending = curl(daemon, &["-T", "-", "-X", "POST"], url);
    let mut sum = Command::new("md5sum");
    let mut sum = sum.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("md5sum runs");
    let mut block = noise(1 << 20);
    {
        let (mut to, mut beside) =
            (sending.stdin.take().expect("piped"), sum.stdin.take().expect("piped"));
        for number in 0..mib {
            // No two are the same: one that is lost or in another's place is found.
            block[..8].copy_from_slice(&(number as u64).to_le_bytes());
            to.write_all(&block).expect("it is taken");
            beside.write_all(&block).expect("it is taken");
        }
    }
    let said = |child: Child| {
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let (heard, sum) = (said(sending), said(sum));
    let sum = sum.split(' ').next().expect("a sum");
    assert_eq!(heard.trim_end(), format!("{} {sum}", mib << 20));
}

/// Every byte is what it is by its place.
fn download(daemon: &TestDaemon, url: &str, mib: usize) {
    let mut receiving = curl(daemon, &[], url);
    let mut from = receiving.stdout.take().expect("piped");
    let (mut buffer, mut at) = (vec![0; 1 << 20], 0_usize);
    loop {
        let n = from.read(&mut buffer).expect("readable");
        if n == 0 {
            break;
        }
        let right = |(i, byte): (usize, &u8)| usize::from(*byte) == (at + i) % 256;
        assert!(buffer[..n].iter().enumerate().all(right), "wrong somewhere after byte {at}");
        at += n;
    }
    assert!(receiving.wait().expect("it ends").success());
    assert_eq!(at, mib << 20);
}
