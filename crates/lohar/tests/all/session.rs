//! Sessions: attaching, losing and taking them, and what is left of one that ended.

use std::time::Duration;

use bhatti_link::{read_message, write_message};
use bhatti_wire::message::{
    ErrorKind, Exec, ListSessions, MAX_SESSIONS, OpenSession, Operation, SCROLLBACK, SessionInfo,
    SessionInput, SessionInputEvent as Input, SessionKind, SessionList, SessionOutput,
    SessionOutputEvent as Event, StartSession, WindowSize,
};
use bytes::Bytes;
use lohar::guest::Guest;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Host, PATIENCE, guest, open, sh, wait_for};

/// One attached client.
struct Client {
    host: Host,
    info: SessionInfo,
    /// Everything it was shown, in order.
    seen: Vec<u8>,
}

impl Client {
    async fn send(&mut self, event: Input) {
        write_message(&mut self.host.to, &SessionInput { event: Some(event) }).await.unwrap();
    }

    async fn say(&mut self, text: &str) {
        self.send(Input::Data(Bytes::copy_from_slice(text.as_bytes()))).await;
    }

    async fn resize(&mut self, rows: u32, cols: u32) {
        self.send(Input::Resize(WindowSize { rows, cols })).await;
    }

    /// The next event that is no output; output is kept.
    async fn event(&mut self) -> Option<Event> {
        loop {
            match next(&mut self.host).await? {
                Event::Output(bytes) | Event::Replay(bytes) => self.seen.extend(&bytes),
                event => return Some(event),
            }
        }
    }

    /// Reads until `text` has been seen.
    async fn until(&mut self, text: &str) {
        while !self.text().contains(text) {
            match next(&mut self.host).await {
                Some(Event::Output(bytes) | Event::Replay(bytes)) => self.seen.extend(&bytes),
                other => panic!("{other:?} instead of {text:?} after {:?}", self.text()),
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }
}

async fn next(host: &mut Host) -> Option<Event> {
    let message = tokio::time::timeout(PATIENCE, read_message::<SessionOutput>(&mut host.from));
    message.await.expect("an event in time").expect("a whole message").map(|m| m.event.unwrap())
}

async fn ask(guest: &Arc<Guest>, request: OpenSession) -> Result<Client, (ErrorKind, String)> {
    let mut host = open(guest, Some(Operation::OpenSession(request))).await;
    match next(&mut host).await.expect("an answer") {
        Event::Opened(info) => Ok(Client { host, info, seen: Vec::new() }),
        Event::Failed(failure) => Err((failure.kind(), failure.message)),
        other => panic!("{other:?}"),
    }
}

fn script(kind: SessionKind, script: &str) -> StartSession {
    StartSession {
        kind: kind.into(),
        argv: ["/bin/sh", "-c", script].map(String::from).into(),
        ..StartSession::default()
    }
}

async fn start(guest: &Arc<Guest>, start: StartSession) -> Client {
    ask(guest, OpenSession { start: Some(start), ..OpenSession::default() }).await.unwrap()
}

async fn terminal(guest: &Arc<Guest>, text: &str) -> Client {
    start(guest, script(SessionKind::Terminal, text)).await
}

async fn attach(guest: &Arc<Guest>, id: &str) -> Result<Client, (ErrorKind, String)> {
    ask(guest, OpenSession { id: id.to_owned(), ..OpenSession::default() }).await
}

async fn free_or(guest: &Arc<Guest>, text: &str) -> Client {
    let start = Some(script(SessionKind::Terminal, text));
    ask(guest, OpenSession { start, reuse: true, ..OpenSession::default() }).await.unwrap()
}

async fn list(guest: &Arc<Guest>) -> Vec<SessionInfo> {
    let mut host = open(guest, Some(Operation::ListSessions(ListSessions {}))).await;
    let list: SessionList = read_message(&mut host.from).await.unwrap().unwrap();
    assert_eq!(list.failure, None);
    list.sessions
}

/// Waits until session `id` is as `is` wants it; `None`: forgotten.
async fn seen_as(guest: &Arc<Guest>, id: &str, is: impl Fn(Option<&SessionInfo>) -> bool) {
    wait_for("the session is seen so", || {
        is(guest.sessions.list().iter().find(|info| info.id == id))
    })
    .await;
}

async fn detach(guest: &Arc<Guest>, client: Client) {
    let id = client.info.id.clone();
    drop(client);
    seen_as(guest, &id, |info| info.is_some_and(|info| !info.attached)).await;
}

/// Prints a line for each line it reads, without echo.
const ECHO: &str = "stty -echo; echo ready; while read line; do echo \"got $line\"; done";

#[tokio::test]
async fn a_terminal_is_the_programs_own() {
    let guest = guest();
    let mut client = terminal(
        &guest,
        "tty; test -t 0 && test -t 1 && test -t 2 && echo all; \
         ps -o pid=,sid=,tty= -p $$ | awk '{print ($1==$2), $3 ~ /pts/}'; \
         stty size; echo $TERM; exec 0</dev/tty && echo controlling",
    )
    .await;
    let exit = client.event().await;
    assert!(matches!(&exit, Some(Event::Exit(exit)) if exit.code == 0), "{exit:?}");
    let text = client.text();
    assert!(text.starts_with("/dev/pts/"), "{text}");
    assert!(text.ends_with("all\r\n1 1\r\n24 80\r\nxterm-256color\r\ncontrolling\r\n"), "{text}");
    assert_eq!(client.event().await, None, "nothing comes after the last event");
}

#[tokio::test]
async fn a_size_reaches_the_program() {
    let guest = guest();
    let mut client =
        terminal(&guest, "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done").await;
    client.until("ready").await;
    client.resize(40, 120).await;
    client.until("40 120\r\n").await;
    client.resize(0, 0).await;
    client.resize(70_000, 10).await;
    client.resize(41, 121).await;
    client.until("41 121\r\n").await;
    assert!(!client.text().contains("\r\n0 0"), "{}", client.text());
    // Whoever comes back sees nothing yet, so the program is to paint again though its size is
    // the same.
    detach(&guest, client).await;
    let mut client = attach(&guest, "s1").await.unwrap();
    client.until("41 121\r\n").await;
    let before = client.text().matches("41 121").count();
    client.resize(41, 121).await;
    while client.text().matches("41 121").count() == before {
        client.until("41 121").await;
        let Some(Event::Output(bytes)) = next(&mut client.host).await else { panic!("output") };
        client.seen.extend(&bytes);
    }
}

/// What is typed after a size was said finds that size, however quickly it follows.
#[tokio::test]
async fn a_size_is_there_before_what_is_typed_after_it() {
    let guest = guest();
    let text = "stty -echo; echo ready; while read line; do echo \"<$(stty size)>\"; done";
    let mut client = terminal(&guest, text).await;
    client.until("ready").await;
    for cols in 100..150 {
        client.resize(30, cols).await;
        client.resize(31, cols).await;
        client.say("now\n").await;
        client.until(&format!("<31 {cols}>")).await;
    }
    let answers: Vec<_> = (100..150).map(|cols| format!("<31 {cols}>")).collect();
    assert_eq!(
        client.text().split_whitespace().skip(1).collect::<Vec<_>>().join(" "),
        answers.join(" ")
    );
}

#[tokio::test]
async fn what_was_printed_is_replayed_and_goes_on() {
    let guest = guest();
    let count = "i=0; while :; do i=$((i+1)); echo line-$i; sleep 0.002; done";
    let mut seen = Vec::new();
    let mut client = terminal(&guest, count).await;
    // In and out, many times: all that was ever shown is one sequence.
    for round in 0..20 {
        client.until(&format!("line-{}\r\n", (round + 1) * 10)).await;
        seen.push(client.text());
        detach(&guest, client).await;
        client = attach(&guest, "s1").await.unwrap();
    }
    for text in seen {
        let numbers: Vec<u32> =
            text.lines().filter_map(|line| line.strip_prefix("line-")?.parse().ok()).collect();
        let last = *numbers.last().unwrap();
        // The last may be half a number.
        let expected: Vec<u32> = (1..last.max(2)).collect();
        assert_eq!(numbers[..numbers.len() - 1], expected[..numbers.len() - 1]);
    }
}

#[tokio::test]
async fn a_program_without_a_client_is_never_held_up() {
    let guest = guest();
    let dir = tempfile::tempdir().unwrap();
    let done = dir.path().join("done");
    let text = format!(
        "echo ready; read _; head -c 3000000 /dev/zero | tr '\\0' x; echo end; touch {}; read _",
        done.display()
    );
    let mut client = terminal(&guest, &text).await;
    client.until("ready").await;
    client.say("\n").await;
    detach(&guest, client).await;
    wait_for("it printed everything", || done.exists()).await;
    let mut client = attach(&guest, "s1").await.unwrap();
    client.until("end").await;
    assert!((SCROLLBACK - 4096..=SCROLLBACK).contains(&client.seen.len()), "{}", client.seen.len());
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_program_up() {
    let guest = guest();
    let dir = tempfile::tempdir().unwrap();
    let done = dir.path().join("done");
    let text = format!("head -c 3000000 /dev/zero; touch {}; echo end; read _", done.display());
    let client = terminal(&guest, &text).await;
    // It is held up: whoever looks meanwhile is answered, a hundred times.
    for _ in 0..100 {
        assert!(list(&guest).await[0].attached);
    }
    assert!(!done.exists(), "3 MB cannot be anywhere");
    // Somebody else may have it all the same, and the one before gives way.
    let mut other = attach(&guest, "s1").await.unwrap();
    other.until("end").await;
    drop(client);
}

#[tokio::test]
async fn who_it_is_taken_from_is_told() {
    let guest = guest();
    let mut first = terminal(&guest, ECHO).await;
    first.until("ready").await;
    let mut second = attach(&guest, "s1").await.unwrap();
    assert!(matches!(first.event().await, Some(Event::Taken(_))));
    assert_eq!(first.event().await, None);
    // The former one's end is not the end of the attachment.
    drop(first);
    second.say("one\n").await;
    second.until("got one").await;
    assert!(list(&guest).await[0].attached);
    detach(&guest, second).await;
}

#[tokio::test]
async fn two_that_want_a_free_one_get_two() {
    let guest = guest();
    let mut first = terminal(&guest, ECHO).await;
    first.until("ready").await;
    detach(&guest, first).await;
    let clients = tokio::join!(free_or(&guest, ECHO), free_or(&guest, ECHO), free_or(&guest, ECHO));
    let mut ids = [clients.0, clients.1, clients.2].map(|client| client.info.id.clone());
    ids.sort();
    assert_eq!(ids, ["s1", "s2", "s3"]);
}

#[tokio::test]
async fn the_newest_free_terminal_is_reused() {
    let guest = guest();
    for _ in 0..2 {
        let mut client = terminal(&guest, ECHO).await;
        client.until("ready").await;
        detach(&guest, client).await;
    }
    let piped = start(&guest, script(SessionKind::Piped, "cat")).await;
    detach(&guest, piped).await;
    let attached = free_or(&guest, ECHO).await;
    assert_eq!(attached.info.id, "s2", "not the pipe");
    let older = free_or(&guest, ECHO).await;
    assert_eq!(older.info.id, "s1");
    assert_eq!(free_or(&guest, ECHO).await.info.id, "s4");
}

#[tokio::test]
async fn an_end_is_told_to_whoever_comes_next_and_then_forgotten() {
    let guest = guest();
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let text = format!("until [ -e {} ]; do sleep 0.01; done; echo bye; exit 7", go.display());
    for kind in [SessionKind::Terminal, SessionKind::Piped] {
        let client = start(&guest, script(kind, &text)).await;
        let id = client.info.id.clone();
        detach(&guest, client).await;
        std::fs::write(&go, "").unwrap();
        seen_as(&guest, &id, |info| info.is_some_and(|info| info.exit.is_some())).await;
        let mut client = attach(&guest, &id).await.unwrap();
        assert_eq!(client.info.exit.as_ref().map(|exit| exit.code), Some(7));
        let exit = client.event().await;
        assert!(matches!(&exit, Some(Event::Exit(exit)) if exit.code == 7), "{exit:?}");
        assert_eq!(client.text().trim_end(), "bye");
        seen_as(&guest, &id, |info| info.is_none()).await;
        let gone = attach(&guest, &id).await.err().unwrap();
        assert_eq!(gone, (ErrorKind::NotFound, "session not found".to_owned()));
        std::fs::remove_file(&go).unwrap();
    }
}

#[tokio::test]
async fn the_last_word_of_a_program_is_not_lost() {
    let guest = guest();
    for kind in [SessionKind::Terminal, SessionKind::Piped] {
        for round in 0..20 {
            let mut client = start(
                &guest,
                script(kind, "head -c 50000 /dev/zero | tr '\\0' x; echo end; exit 3"),
            )
            .await;
            let exit = client.event().await;
            assert!(matches!(&exit, Some(Event::Exit(exit)) if exit.code == 3), "{exit:?}");
            assert!(client.text().trim_end().ends_with("xend"), "round {round}");
            assert_eq!(client.text().trim_end().len(), 50_003);
        }
    }
}

#[tokio::test]
async fn a_session_ends_with_its_program_and_not_with_its_background() {
    let guest = guest();
    for kind in [SessionKind::Terminal, SessionKind::Piped] {
        let mut client = start(&guest, script(kind, "setsid sleep 30 & echo up")).await;
        let exit = client.event().await;
        assert!(matches!(&exit, Some(Event::Exit(_))), "{exit:?}");
    }
}

#[tokio::test]
async fn a_terminal_that_its_program_closes_for_a_while_is_still_there() {
    let guest = guest();
    let mut client = terminal(
        &guest,
        "exec 0<&- 1>&- 2>&-; sleep 0.3; exec 0</dev/tty 1>/dev/tty; echo back; read line; echo $line",
    )
    .await;
    client.until("back").await;
    client.say("again\n").await;
    client.until("again\r\nagain\r\n").await;
}

#[tokio::test]
async fn input_that_is_not_read_does_not_hide_that_its_client_left() {
    let guest = guest();
    let mut client = start(&guest, script(SessionKind::Piped, "exec sleep 30")).await;
    let id = client.info.id.clone();
    for _ in 0..4 {
        client.send(Input::Data(Bytes::from(vec![b'x'; 32 * 1024]))).await;
    }
    drop(client);
    seen_as(&guest, &id, |info| info.is_some_and(|info| !info.attached)).await;
}

#[tokio::test]
async fn pipes_take_bytes_and_give_both_outputs() {
    let guest = guest();
    let mut client =
        start(&guest, script(SessionKind::Piped, "echo err >&2; head -c 100000 | wc -c")).await;
    client.resize(10, 10).await;
    for _ in 0..4 {
        client.send(Input::Data(Bytes::from(vec![b'x'; 25_000]))).await;
    }
    let exit = client.event().await;
    assert!(matches!(&exit, Some(Event::Exit(exit)) if exit.code == 0), "{exit:?}");
    assert_eq!(client.text(), "err\n100000\n");
}

#[tokio::test]
async fn one_without_a_client_for_too_long_is_ended() {
    let guest = guest();
    let text = "trap 'echo hung up; exit 5' HUP; echo ready; while :; do sleep 0.05; done";
    let request = StartSession { max_idle_seconds: 1, ..script(SessionKind::Terminal, text) };
    let mut client = start(&guest, request).await;
    client.until("ready").await;
    let begun = std::time::Instant::now();
    // With a client, time does not count.
    let looked = tokio::time::timeout(Duration::from_millis(1500), client.event()).await;
    assert!(looked.is_err(), "{looked:?}");
    detach(&guest, client).await;
    seen_as(&guest, "s1", |info| info.is_some_and(|info| info.exit.is_some())).await;
    assert!(begun.elapsed() > Duration::from_millis(2500), "{:?}", begun.elapsed());
    let mut client = attach(&guest, "s1").await.unwrap();
    assert!(matches!(client.event().await, Some(Event::Exit(exit)) if exit.code == 5));
    assert!(client.text().contains("hung up"));
}

#[tokio::test]
async fn one_that_does_not_hang_up_is_killed() {
    let guest = guest();
    let text = "trap '' HUP; echo ready; while :; do sleep 0.05; done";
    let request = StartSession { max_idle_seconds: 1, ..script(SessionKind::Terminal, text) };
    let mut client = start(&guest, request).await;
    client.until("ready").await;
    detach(&guest, client).await;
    seen_as(&guest, "s1", |info| {
        info.and_then(|info| info.exit.as_ref()).is_some_and(|exit| exit.code == 137)
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_costs_nothing() {
    let guest = guest();
    let cases = [
        (OpenSession::default(), ErrorKind::Invalid, "neither a session"),
        (
            OpenSession { id: "s1".into(), ..OpenSession::default() },
            ErrorKind::NotFound,
            "session not found",
        ),
        (
            OpenSession {
                start: Some(StartSession {
                    argv: vec!["no-such".into()],
                    ..StartSession::default()
                }),
                ..OpenSession::default()
            },
            ErrorKind::NotFound,
            "not found in PATH",
        ),
        (
            OpenSession {
                start: Some(script(SessionKind::Detached, "true")),
                ..OpenSession::default()
            },
            ErrorKind::Invalid,
            "detached",
        ),
    ];
    for (request, kind, text) in cases {
        let (told, message) = ask(&guest, request).await.err().unwrap();
        assert!(told == kind && message.contains(text), "{told:?} {message}");
    }
    assert_eq!(list(&guest).await, []);
    let mut clients = Vec::new();
    for _ in 0..MAX_SESSIONS {
        clients.push(start(&guest, script(SessionKind::Piped, "cat")).await);
    }
    let start = Some(script(SessionKind::Piped, "cat"));
    let request = OpenSession { start, ..OpenSession::default() };
    let (_, message) = ask(&guest, request).await.err().unwrap();
    assert_eq!(message, "session limit exceeded");
    assert_eq!(list(&guest).await.len(), MAX_SESSIONS);
}

/// Twenty shells that ended unseen a moment ago are no reason to refuse the next one.
#[tokio::test]
async fn ends_that_nobody_saw_make_room() {
    let guest = guest();
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let waits = format!("until [ -e {} ]; do sleep 0.1; done", go.display());
    let mut ids = Vec::new();
    for _ in 1..MAX_SESSIONS {
        let client = start(&guest, script(SessionKind::Piped, &waits)).await;
        ids.push(client.info.id.clone());
        detach(&guest, client).await;
    }
    // Not before: an end that a client could still have been told of would be forgotten at once.
    std::fs::write(&go, "").unwrap();
    let stays = start(&guest, script(SessionKind::Piped, "cat")).await;
    for id in &ids {
        seen_as(&guest, id, |info| info.is_some_and(|info| info.exit.is_some())).await;
    }
    let new = start(&guest, script(SessionKind::Piped, "cat")).await;
    let left = list(&guest).await;
    assert_eq!(left.len(), MAX_SESSIONS);
    let has = |id: &str| left.iter().any(|info| info.id == id);
    assert!(!has(&ids[0]) && has(&ids[1]), "the oldest end went");
    assert!(has(&stays.info.id) && has(&new.info.id));
    let gone = attach(&guest, &ids[0]).await.err().unwrap();
    assert_eq!(gone.1, "session not found");
    let seen = attach(&guest, &ids[1]).await;
    assert!(seen.is_ok(), "what is remembered can be seen");
}

#[tokio::test]
async fn a_login_shell_is_found_and_begins_somewhere() {
    let guest = guest();
    let mut client = start(&guest, StartSession::default()).await;
    assert!(client.info.command.ends_with("sh -li"), "{}", client.info.command);
    // There may be a /workspace on this machine; the account's home does not exist.
    client.say("echo in-$PWD-; exit 4\n").await;
    let exit = client.event().await;
    assert!(matches!(&exit, Some(Event::Exit(exit)) if exit.code == 4), "{exit:?}");
    assert!(["in-/-", "in-/workspace-"].iter().any(|place| client.text().contains(place)));
}

#[tokio::test]
async fn a_named_one_writes_its_end_down_and_is_forgotten() {
    let guest = guest();
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("logs/init.log");
    let request = StartSession {
        name: "init".into(),
        log_file: log.to_str().unwrap().into(),
        detached: true,
        ..script(SessionKind::Terminal, "echo hello; read _; echo bye; exit 9")
    };
    let open = OpenSession { start: Some(request), ..OpenSession::default() };
    let mut started = ask(&guest, open.clone()).await.unwrap();
    assert_eq!((started.info.id.as_str(), started.info.attached), ("init", false));
    assert_eq!(started.event().await, None, "nobody is attached");
    let (kind, message) = ask(&guest, open).await.err().unwrap();
    assert_eq!((kind, message.as_str()), (ErrorKind::Invalid, "there is a session init already"));
    // It is a terminal like any other.
    let mut client = free_or(&guest, "true").await;
    assert_eq!(client.info.id, "init");
    client.until("hello").await;
    client.say("\n").await;
    let exit = client.event().await;
    assert!(matches!(&exit, Some(Event::Exit(exit)) if exit.code == 9), "{exit:?}");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "hello\r\n\r\nbye\r\n");
    seen_as(&guest, "init", |info| info.is_none()).await;
}

#[tokio::test]
async fn detached_commands_are_listed_while_they_run() {
    let guest = guest();
    let dir = tempfile::tempdir().unwrap();
    let (go, output_file) = (dir.path().join("go"), dir.path().join("log"));
    let output_file = output_file.to_str().unwrap().to_owned();
    let text = format!("until [ -e {} ]; do sleep 0.01; done", go.display());
    let exec = Exec { detach: true, output_file: output_file.clone(), ..sh(&text) };
    let started = open(&guest, Some(Operation::Exec(exec))).await.finish().await.started.unwrap();
    let listed = list(&guest).await;
    let [info] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!((info.kind(), info.pid), (SessionKind::Detached, started.pid));
    assert_eq!((info.id.clone(), &info.output_file), (format!("d{}", info.pid), &output_file));
    assert_eq!(info.command, format!("/bin/sh -c {text}"));
    let (kind, message) = attach(&guest, &info.id).await.err().unwrap();
    assert!(kind == ErrorKind::Invalid && message.contains(&output_file), "{message}");
    std::fs::write(&go, "").unwrap();
    seen_as(&guest, &info.id, |info| info.is_none()).await;
}

#[tokio::test]
async fn noise_costs_the_client_and_nothing_else() {
    let guest = guest();
    let mut client = terminal(&guest, ECHO).await;
    client.until("ready").await;
    client.host.to.write_all(&[0xff; 64]).await.unwrap();
    let mut rest = Vec::new();
    client.host.from.read_to_end(&mut rest).await.unwrap();
    let mut client = attach(&guest, "s1").await.unwrap();
    client.say("still\n").await;
    client.until("got still").await;
}
