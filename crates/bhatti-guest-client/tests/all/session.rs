//! Sessions.

use bhatti_guest_client::{GuestError, Kind, SessionEvent, SessionSpec, Which, WindowSize};
use bhatti_link::{Stream, read_message, write_message};
use bhatti_wire::message::{
    ErrorKind, ExitStatus, MAX_CHUNK, MAX_MESSAGE, Operation, Reply, SCROLLBACK, SessionInfo,
    SessionInput, SessionInputEvent as Input, SessionKind, SessionList, SessionOutput,
    SessionOutputEvent as Event,
};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::fake::{failure, fake, half_close, soon};

fn info(id: &str) -> SessionInfo {
    SessionInfo { id: id.to_owned(), command: "sh -li".to_owned(), ..SessionInfo::default() }
}

async fn tell(stream: &Stream, event: Event) {
    // A client that has heard enough gives the stream up.
    drop(write_message(stream, &SessionOutput { event: Some(event) }).await);
}

fn named() -> Which {
    Which::Named("s1".to_owned())
}

#[tokio::test]
async fn a_replay_is_output_and_the_last_event_is_the_last() {
    let fake = fake(|operation, stream| async move {
        let Operation::OpenSession(open) = operation else { panic!("{operation:?}") };
        assert!(open.reuse && open.start.is_some() && open.id.is_empty());
        tell(&stream, Event::Opened(info("s1"))).await;
        tell(&stream, Event::Replay(Bytes::from(vec![b'x'; SCROLLBACK]))).await;
        // A later agent's.
        write_message(&stream, &SessionOutput { event: None }).await.unwrap();
        tell(&stream, Event::Output(Bytes::from_static(b"y"))).await;
        tell(&stream, Event::Exit(ExitStatus { code: 3, timed_out: false })).await;
        half_close(&stream).await;
    })
    .await;
    let which = Which::FreeOr(SessionSpec::default());
    let mut attached = soon(fake.guest.attach(which)).await.unwrap();
    assert_eq!((attached.info.id.as_str(), attached.info.kind), ("s1", Kind::Terminal));
    let mut events = Vec::new();
    while let Some(event) = soon(attached.output.next()).await.unwrap() {
        events.push(event);
    }
    let expected = [
        SessionEvent::Output(Bytes::from(vec![b'x'; SCROLLBACK])),
        SessionEvent::Output(Bytes::from_static(b"y")),
        SessionEvent::Exit { code: 3 },
    ];
    assert_eq!(events, expected);
    assert_eq!(soon(attached.output.next()).await.unwrap(), None);
}

#[tokio::test]
async fn what_ends_without_an_end_is_lost() {
    let fake = fake(|_, stream| async move {
        tell(&stream, Event::Opened(info("s1"))).await;
        half_close(&stream).await;
    })
    .await;
    let mut attached = soon(fake.guest.attach(named())).await.unwrap();
    assert!(matches!(soon(attached.output.next()).await, Err(GuestError::LinkLost(_))));
    assert_eq!(soon(attached.output.next()).await.unwrap(), None);
}

#[tokio::test]
async fn a_guest_that_breaks_the_rules_is_not_believed() {
    let cases: [fn() -> Event; 4] = [
        || Event::Output(Bytes::from(vec![0; MAX_CHUNK + 1])),
        || Event::Replay(Bytes::from(vec![0; SCROLLBACK + 1])),
        || Event::Opened(info("s2")),
        || Event::Output(Bytes::from(vec![0; 1 << 19])),
    ];
    for case in cases {
        let fake = fake(move |_, stream| async move {
            tell(&stream, Event::Opened(info("s1"))).await;
            tell(&stream, case()).await;
            half_close(&stream).await;
        })
        .await;
        let mut attached = soon(fake.guest.attach(named())).await.unwrap();
        assert!(matches!(soon(attached.output.next()).await, Err(GuestError::Protocol(_))));
    }
    let fake = fake(|_, stream| async move {
        tell(&stream, Event::Output(Bytes::from_static(b"first"))).await;
        half_close(&stream).await;
    })
    .await;
    assert!(matches!(soon(fake.guest.attach(named())).await, Err(GuestError::Protocol(_))));
}

#[tokio::test]
async fn an_agent_of_before_says_that_it_does_not_know() {
    let fake = fake(|_, stream| async move {
        let failure = Some(failure(ErrorKind::Unsupported, "what?"));
        write_message(&stream, &Reply { failure }).await.unwrap();
        half_close(&stream).await;
    })
    .await;
    assert!(matches!(soon(fake.guest.attach(named())).await, Err(GuestError::Unsupported(_))));
    assert!(matches!(soon(fake.guest.sessions()).await, Err(GuestError::Unsupported(_))));
}

#[tokio::test]
async fn what_is_typed_arrives_in_order_and_before_the_end() {
    let (heard, mut hears) = mpsc::unbounded_channel();
    let fake = fake(move |_, mut stream| {
        let heard = heard.clone();
        async move {
            tell(&stream, Event::Opened(info("s1"))).await;
            while let Ok(Some(message)) = read_message::<SessionInput>(&mut stream).await {
                heard.send(message.event.unwrap()).unwrap();
            }
        }
    })
    .await;
    let mut attached = soon(fake.guest.attach(named())).await.unwrap();
    let size = WindowSize { rows: 4, cols: 5 };
    soon(attached.input.resize(size)).await.unwrap();
    soon(attached.input.write(Bytes::from(vec![b'x'; MAX_CHUNK + 1]))).await.unwrap();
    attached.input.finish();
    drop(attached.output);
    assert_eq!(soon(hears.recv()).await, Some(Input::Resize(size)));
    for length in [MAX_CHUNK, 1] {
        let Some(Input::Data(bytes)) = soon(hears.recv()).await else { panic!("data") };
        assert_eq!(bytes.len(), length);
    }
}

#[tokio::test]
async fn a_write_that_was_given_up_leaves_whole_messages() {
    let (read_on, go) = tokio::sync::oneshot::channel::<()>();
    let (heard, mut hears) = mpsc::unbounded_channel();
    let go = std::sync::Arc::new(tokio::sync::Mutex::new(Some(go)));
    let fake = fake(move |_, mut stream| {
        let (go, heard) = (go.clone(), heard.clone());
        async move {
            tell(&stream, Event::Opened(info("s1"))).await;
            let go = go.lock().await.take().unwrap();
            go.await.unwrap();
            while let Ok(Some(message)) = read_message::<SessionInput>(&mut stream).await {
                let Some(Input::Data(bytes)) = message.event else { panic!("data") };
                heard.send(bytes).unwrap();
            }
        }
    })
    .await;
    let mut attached = soon(fake.guest.attach(named())).await.unwrap();
    // More than the window, to a guest that does not read: it cannot be done.
    let much = Bytes::from(vec![b'x'; 1 << 20]);
    let writing = tokio::time::timeout(std::time::Duration::from_millis(200), async {
        attached.input.write(much).await
    });
    assert!(writing.await.is_err(), "there is no room for it");
    read_on.send(()).unwrap();
    soon(attached.input.write(Bytes::from_static(b"end"))).await.unwrap();
    attached.input.finish();
    let mut last = Bytes::new();
    while let Some(bytes) = soon(hears.recv()).await {
        if bytes == "end" {
            return;
        }
        assert_eq!(bytes.len(), MAX_CHUNK, "a whole message of the one that was given up");
        last = bytes;
    }
    panic!("the end did not arrive, only {}", last.len());
}

#[tokio::test]
async fn a_list_is_bounded_and_printable() {
    let fake = fake(|_, stream| async move {
        let mut sessions = vec![info("s\u{1b}[2J1"); 5000];
        sessions[1].kind = SessionKind::Detached.into();
        sessions[1].output_file = "/tmp/a\nb".to_owned();
        sessions[2].exit = Some(ExitStatus { code: 137, timed_out: false });
        // Of a later agent.
        sessions[3].kind = 99;
        write_message(&stream, &SessionList { failure: None, sessions }).await.unwrap();
        half_close(&stream).await;
    })
    .await;
    let sessions = soon(fake.guest.sessions()).await.unwrap();
    assert!(sessions.len() <= 1024, "{}", sessions.len());
    assert_eq!((sessions[0].id.as_str(), sessions[0].exit_code), ("s[2J1", None));
    assert_eq!((sessions[1].kind, sessions[1].output_file.as_str()), (Kind::Detached, "/tmp/ab"));
    assert_eq!(sessions[2].exit_code, Some(137));
}

/// A megabyte of sessions about which nothing is said would take a hundred here.
#[tokio::test]
async fn a_list_of_nothing_without_end_is_refused() {
    let fake = fake(|_, stream| async move {
        let sessions = vec![SessionInfo::default(); MAX_MESSAGE / 2];
        drop(write_message(&stream, &SessionList { failure: None, sessions }).await);
        half_close(&stream).await;
    })
    .await;
    assert!(matches!(soon(fake.guest.sessions()).await, Err(GuestError::Protocol(_))));
}

#[tokio::test]
async fn a_script_is_started_and_left_alone() {
    let fake = fake(|operation, stream| async move {
        let Operation::OpenSession(open) = operation else { panic!("{operation:?}") };
        let start = open.start.unwrap();
        assert!(start.detached && start.max_idle_seconds == 0 && !open.reuse);
        assert_eq!(start.argv, ["/bin/sh", "-c", "echo hi"]);
        assert_eq!((start.name.as_str(), start.log_file.as_str()), ("init", "/log"));
        tell(&stream, Event::Opened(info(&start.name))).await;
        half_close(&stream).await;
    })
    .await;
    let started = soon(fake.guest.start_script("init", "echo hi", "/log")).await.unwrap();
    assert_eq!(started.id, "init");
}
