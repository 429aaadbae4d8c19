//! The web shell in a real browser, on a real machine.

use bhatti_testkit::{TestDaemon, on_fresh_host};
use serde_json::{Value, json};

use crate::web_shell_browser::{Browser, DESK, Device, PHONE};

const SCREEN: &str = ".xterm-rows";
const STATE: &str = "#state";
const CARD: &str = "#card";

fn sandbox(daemon: &TestDaemon) {
    daemon.cli(&["create", "--name", "dev", "--memory", "256"]).ok();
}

/// What `bhatti share` says: the link.
fn link(daemon: &TestDaemon) -> String {
    let shared = daemon.cli(&["share", "dev"]).ok();
    let link = shared.trim_end().strip_prefix("Shell: ").expect("a link").to_owned();
    assert!(link.starts_with(&format!("{}/_shell/", daemon.url())), "{link}");
    link
}

fn browser(daemon: &TestDaemon, device: Device) -> Browser {
    Browser::start(daemon.scratch_path().as_std_path(), device)
}

#[test]
fn a_link_opens_a_shell_in_a_browser() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        sandbox(&daemon);
        let mut browser = browser(&daemon, DESK);
        let link = link(&daemon);
        browser.open(&link);
        browser.wait_for_text(STATE, "Connected");

        the_token_is_out_of_sight(&mut browser, &link);
        commands_run_and_windows_resize(&mut browser);
        a_reload_keeps_the_shell(&mut browser);
        colours_show(&mut browser);
        a_shell_that_exits_is_followed_by_another(&mut browser);
        another_window_takes_the_shell(&daemon, &mut browser, &link);
        a_page_that_cannot_keep_up_skips(&mut browser, &link);
        revoking_ends_it_at_once(&daemon, &mut browser);
        assert_eq!(browser.complaints(), [""; 0]);
    });
}

fn the_token_is_out_of_sight(browser: &mut Browser, link: &str) {
    let (page, token) = link.split_once("#token=").expect("a token");
    assert_eq!(token.len(), 64);
    assert_eq!(browser.run("location.href"), page);
    assert_eq!(browser.run("document.title"), "dev · bhatti");
    assert_eq!(browser.run("document.cookie"), "");
}

fn commands_run_and_windows_resize(browser: &mut Browser) {
    browser.type_keys("echo a$((40 + 2))b; stty size\n");
    browser.wait_for_text(SCREEN, "a42b");
    browser.look_with(Device { width: 700, height: 400, ..DESK });
    // The page resizes by itself; the shell hears of it.
    browser.wait("fewer rows", "document.querySelectorAll('.xterm-rows > div').length < 25");
    let rows = browser.run("document.querySelectorAll('.xterm-rows > div').length");
    browser.type_keys("echo rows $(stty size | cut -d' ' -f1) end\n");
    browser.wait_for_text(SCREEN, &format!("rows {rows} end"));
    browser.look_with(DESK);
}

fn a_reload_keeps_the_shell(browser: &mut Browser) {
    keep_a_variable(browser);
    browser.reload();
    browser.wait_for_text(STATE, "Connected");
    browser.type_keys("echo it is $kept now\n");
    browser.wait_for_text(SCREEN, "it is yes2 now");
}

/// Something that only this shell knows. What is typed right before a connection is lost is lost, so
/// it waits until the shell has it.
fn keep_a_variable(browser: &mut Browser) {
    browser.type_keys("kept=yes$((1 + 1)); echo now $kept\n");
    browser.wait_for_text(SCREEN, "now yes2");
}

/// Each kind of colour reaches the page in its own way, and the page's policy lets it.
fn colours_show(browser: &mut Browser) {
    browser.type_keys("printf '\\033[38;2;110;20;10mtrue\\033[0m \\033[31mred\\033[0m\\n'\n");
    let shown = |text: &str| {
        format!(
            "(() => {{ const e = [...document.querySelectorAll('.xterm-rows span')]\
             .findLast(e => e.textContent === '{text}'); return e && getComputedStyle(e).color; }})()"
        )
    };
    assert_eq!(browser.wait("a true colour", &shown("true")), "rgb(110, 20, 10)");
    let plain = browser.run("getComputedStyle(document.querySelector('.xterm-rows')).color");
    assert_ne!(browser.wait("a colour of the theme", &shown("red")), plain);
}

fn a_shell_that_exits_is_followed_by_another(browser: &mut Browser) {
    browser.type_keys("exit\n");
    browser.wait_for_text(CARD, "The shell has ended");
    browser.press("#button");
    browser.wait_for_text(STATE, "Connected");
    browser.type_keys("echo ${kept:-nothing} is kept\n");
    browser.wait_for_text(SCREEN, "nothing is kept");
}

fn another_window_takes_the_shell(daemon: &TestDaemon, browser: &mut Browser, link: &str) {
    let session =
        "JSON.parse(sessionStorage.getItem('shell:' + location.pathname.split('/').pop()))";
    let session = browser.run(&format!("{session}.session"));
    let session = session.as_str().expect("an id");
    let listed = daemon.json(&["ps", "dev"]);
    let attached: Vec<&Value> =
        listed.as_array().expect("a list").iter().filter(|s| s["attached"] == true).collect();
    assert_eq!((attached.len(), &attached[0]["session_id"]), (1, &json!(session)), "{listed}");
    // As a copy of the tab would: from the same page, over a socket of its own.
    let token = link.rsplit('=').next().expect("a token");
    let hello = json!({ "type": "auth", "token": token, "session": session }).to_string();
    browser.run(&format!("{KNOCK} window.copy = knock(location.pathname, {}); 0", json!(hello)));
    browser.wait_for_text(CARD, "opened elsewhere");
    browser.press("#button");
    browser.wait_for_text(STATE, "Connected");
    let copy = browser.run("window.copy");
    assert_eq!(copy.as_array().expect("what it heard").last(), Some(&json!(4001)), "{copy}");
}

/// Output beyond what may wait to be shown is skipped by attaching to the shell once more.
fn a_page_that_cannot_keep_up_skips(browser: &mut Browser, link: &str) {
    browser.type_keys("clear\n");
    keep_a_variable(browser);
    let token = link.rsplit('#').next().expect("a token");
    browser.run(
        "window.sockets = []; const Real = WebSocket;
         window.WebSocket = class extends Real { constructor(url) { super(url); sockets.push(this); } }; 0",
    );
    browser.run(&format!("location.hash = '{token}'; 0"));
    browser.wait(
        "the same shell over a socket we know",
        "sockets.length === 1 && document.documentElement.dataset.state === 'connected'",
    );
    browser.run(
        "const megabyte = new Uint8Array(1 << 20).fill(120).buffer;
         for (let i = 0; i < 20; i++) sockets[0].onmessage?.({ data: megabyte }); 0",
    );
    browser.wait(
        "a second socket",
        "sockets.length === 2 && document.documentElement.dataset.state === 'connected'",
    );
    browser.type_keys("echo then $kept\n");
    browser.wait_for_text(SCREEN, "then yes2");
    browser.wait(
        "nothing of the flood",
        "!document.querySelector('.xterm-rows').textContent.includes('xxxx')",
    );
}

fn revoking_ends_it_at_once(daemon: &TestDaemon, browser: &mut Browser) {
    assert_eq!(daemon.cli(&["share", "dev", "--revoke"]).ok(), "Shell access revoked.\n");
    browser.wait_for_text(CARD, "This link does not work");
    assert_eq!(browser.run("sessionStorage.length"), 0, "the token is forgotten");
    // A new link works in the same page, pasted whole.
    let again = link(daemon);
    browser.run(&format!("document.getElementById('token').value = {}", json!(again)));
    browser.press("#button");
    browser.wait_for_text(STATE, "Connected");
    // One that replaces it leaves those alone who are in, and revoking means them too.
    link(daemon);
    browser.type_keys("echo still $((3 * 4)) here\n");
    browser.wait_for_text(SCREEN, "still 12 here");
    daemon.cli(&["share", "dev", "--revoke"]).ok();
    browser.wait_for_text(CARD, "This link does not work");
}

#[test]
fn a_page_finds_its_shell_again() {
    on_fresh_host(|| {
        let mut daemon = TestDaemon::start();
        // The same port every time, or nobody could find it again.
        let config = std::fs::read_to_string(daemon.config()).expect("a file");
        let address = daemon.url().trim_start_matches("http://");
        let config = config.replace("listen: 127.0.0.1:0", &format!("listen: {address}"));
        std::fs::write(daemon.config(), config).expect("a file");
        sandbox(&daemon);
        let mut browser = browser(&daemon, DESK);
        browser.open(&link(&daemon));
        browser.wait_for_text(STATE, "Connected");
        keep_a_variable(&mut browser);

        daemon.kill_9();
        browser.wait_for_text(STATE, "Trying again in");
        daemon.run();
        browser.wait_for_text(STATE, "Connected");
        browser.type_keys("echo it is $kept now\n");
        browser.wait_for_text(SCREEN, "it is yes2 now");

        // An orderly stop, and for longer than the page has patience.
        assert_eq!(daemon.terminate(), 0);
        browser.wait_for_text(CARD, "The connection was lost");
        daemon.run();
        browser.press("#button");
        browser.wait_for_text(STATE, "Connected");
        browser.type_keys("echo it was $kept too\n");
        browser.wait_for_text(SCREEN, "it was yes2 too");

        // Who stops a sandbox does not have it woken by a page that is open somewhere.
        daemon.cli(&["stop", "dev"]).ok();
        browser.wait_for_text(CARD, "dev was put to sleep");
        assert_eq!(daemon.state("dev").as_deref(), Some("stopped"));
        browser.press("#button");
        browser.wait_for_text(STATE, "Connected");
        browser.type_keys("echo it is $kept again\n");
        browser.wait_for_text(SCREEN, "it is yes2 again");

        // A shell that is gone is not passed off as the one that was.
        let forged = "for (const key of Object.keys(sessionStorage)) {
            const kept = JSON.parse(sessionStorage.getItem(key));
            sessionStorage.setItem(key, JSON.stringify({ ...kept, session: 's999' }));
        }";
        browser.run(forged);
        browser.reload();
        browser.wait_for_text(SCREEN, "The former shell has ended. This is a new one.");
        for complaint in browser.complaints() {
            assert!(complaint.contains("ERR_CONNECTION_REFUSED"), "{complaint}");
        }
    });
}

#[test]
fn a_phone_wakes_a_sandbox_and_has_keys() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        sandbox(&daemon);
        let link = link(&daemon);
        daemon.cli(&["stop", "dev"]).ok();
        let mut browser = browser(&daemon, PHONE);
        browser.open(link.split('#').next().expect("a page"));
        browser.wait_for_text(CARD, "Paste the token");
        assert_eq!(daemon.state("dev").as_deref(), Some("stopped"), "the page alone wakes nothing");
        browser.run("window.labels = []; new MutationObserver(() => labels.push(document.getElementById('state').textContent)).observe(document.getElementById('state'), { childList: true }); 0");
        browser.run(&format!(
            "location.hash = {}; 0",
            json!(format!("token={}", &link[link.len() - 64..]))
        ));
        browser.wait_for_text(STATE, "Connected");
        let labels = browser.run("window.labels.join()");
        assert_eq!(labels, "Connecting…,Waking dev…,Connected");

        browser.type_keys("echo up$((6 * 7))\n");
        browser.wait_for_text(SCREEN, "up42");
        browser.type_keys("sh -c 'echo re\"\"ady; exec cat'\n");
        // Earlier, Ctrl-C would be for the shell that is about to start it.
        browser.wait_for_text(SCREEN, "ready");
        browser.press("#control");
        browser
            .wait("Ctrl is held", "document.querySelector('#control[aria-pressed=true]') !== null");
        browser.type_keys("c");
        browser
            .wait("and let go", "document.querySelector('#control[aria-pressed=false]') !== null");
        // What is typed before the shell has its terminal back may still be read by what has just ended.
        let prompt =
            "document.querySelector('.xterm-rows').textContent.split('^C')[1]?.includes('$')";
        browser.wait("a prompt after it", prompt);
        browser.type_keys("echo code $? end\n");
        browser.wait_for_text(SCREEN, "code 130 end");
        browser.type_keys("clear; echo one$((1 + 1))x\n");
        browser.wait_for_text(SCREEN, "one2x");
        for key in ["up", "up", "down"] {
            browser.press(&format!("[data-key={key}]"));
        }
        // The same again, and something before its last letter.
        browser.press("[data-key=left]");
        browser.type_keys("+4\n");
        browser.wait_for_text(SCREEN, "one2+4x");
        let fits = "document.querySelector('footer').getBoundingClientRect().bottom <= innerHeight + 1 && document.documentElement.scrollWidth <= innerWidth";
        assert_eq!(browser.run(fits), true, "nothing is beyond the edge");
        assert_eq!(browser.complaints(), [""; 0]);
    });
}

/// Opens a socket, says `hello`, and hears everything until the end: a list of messages, with the
/// length of what is binary, and the close code last.
const KNOCK: &str = "window.knock = (page, hello) => {
    const heard = [];
    const socket = new WebSocket(location.origin.replace('http', 'ws') + page + '/ws');
    heard.closed = new Promise((resolve) => {
        socket.onopen = () => hello !== null && socket.send(hello);
        socket.onmessage = ({ data }) => heard.push(typeof data === 'string' ? JSON.parse(data) : data.size);
        socket.onclose = ({ code }) => resolve(heard.push(code));
    });
    return heard;
};";

#[test]
fn a_stranger_learns_nothing() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        sandbox(&daemon);
        let link = link(&daemon);
        let (page, token) = link.split_once("#token=").expect("a token");
        let mut browser = browser(&daemon, DESK);
        browser.open(page);
        browser.run(&format!("{KNOCK} 0"));
        let auth = |token: &str| json!({ "type": "auth", "token": token }).to_string();

        let nobody = "/_shell/0123456789abcdef";
        let dev = page.trim_start_matches(daemon.url());
        let refused = json!([{ "error": "unauthorized", "type": "error" }, 1008]);
        for (page, hello) in [
            (nobody, json!(auth(token))),
            (dev, json!(auth(&"0".repeat(64)))),
            (dev, json!(auth(""))),
            ("/_shell/dev", json!(auth(token))),
            (dev, json!("{}")),
            (dev, json!("nonsense")),
            // Nothing at all, for ten seconds.
            (dev, Value::Null),
        ] {
            let heard = format!(
                "(async () => {{ const heard = knock('{page}', {hello}); await heard.closed; return heard; }})()"
            );
            assert_eq!(browser.run(&heard), refused, "{page} {hello}");
        }
        places_are_counted(&mut browser, dev, &auth(token));
        a_flood_is_refused(&mut browser, nobody);
    });
}

fn places_are_counted(browser: &mut Browser, dev: &str, hello: &str) {
    let knock = format!("knock('{dev}', {})", json!(hello));
    browser.run(&format!("window.five = [1, 2, 3, 4, 5].map(() => {knock}); 0"));
    // Each has said who it is and shows its prompt; nobody asked which session it is.
    browser.wait(
        "five shells",
        "five.every(heard => heard[0]?.type === 'connected' && heard[0].sandbox === 'dev' \
         && heard[0].status === 'running' && heard[1] > 0)",
    );
    let sixth =
        format!("(async () => {{ const heard = {knock}; await heard.closed; return heard; }})()");
    let crowded = json!([{ "error": "too many sessions", "type": "error" }, 1008]);
    assert_eq!(browser.run(&sixth), crowded);
}

fn a_flood_is_refused(browser: &mut Browser, page: &str) {
    let flood = format!(
        "(async () => {{ const all = Array.from({{ length: 40 }}, () => knock('{page}', '{{}}')); \
         await Promise.all(all.map(heard => heard.closed)); \
         return all.filter(heard => heard[0] === 1006).length; }})()"
    );
    let refused = browser.run(&flood).as_u64().expect("a number");
    assert!((1..40).contains(&refused), "{refused} of 40 were refused");
    let complaints = browser.complaints();
    assert!(complaints.iter().any(|line| line.contains("429")), "{complaints:?}");
}
