//! Programs that answer too late, too much, or what is no answer, over a real link.

use axum::body::to_bytes;
use bhatti_guest_client::{Guest, Mode};
use bhatti_lifecycle::Tasks;
use bhatti_link::{Stream, read_message, serve, write_message};
use bhatti_wire::message::{Operation, Reply, Request as Message};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;
use crate::http::proxy::Keys;
use crate::http::proxy::conversation::MAX_BUFFER;

/// As the public side has it.
const PUBLIC: Limit = Limit {
    whole: Some(Duration::from_secs(300)),
    idle: Duration::from_secs(300),
    body: Some(1000),
};
/// As who has a key has it.
const KNOWN: Limit = Limit { whole: None, idle: Duration::from_secs(600), body: None };

/// A guest on whose every port `program` is.
async fn guest<F>(program: impl Fn(Stream) -> F + Send + 'static) -> Guest
where
    F: Future<Output = ()> + Send + 'static,
{
    let (ours, theirs) = duplex(256 * 1024);
    let (accepted, mut streams) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move { serve(theirs, move |stream| drop(accepted.send(stream))).await });
    tokio::spawn(async move {
        while let Some(mut stream) = streams.recv().await {
            let request: Message = read_message(&mut stream).await.expect("whole").expect("one");
            assert!(matches!(request.operation, Some(Operation::Dial(_))), "{request:?}");
            write_message(&stream, &Reply { failure: None }).await.expect("taken");
            // Nobody answers before he is asked.
            let asked = stream.read(&mut [0; 4096]).await.expect("a request");
            assert!(asked > 0);
            tokio::spawn(program(stream));
        }
    });
    let (guest, driver) = Guest::connect(ours, Mode::FirstBoot).await.expect("a link");
    tokio::spawn(driver);
    guest
}

async fn ask(guest: Guest, body: Body, limit: &Limit) -> Result<Response, Failure> {
    ask_holding(guest, body, limit, CancellationToken::new(), Box::new(())).await
}

/// The same, while `kept` is held.
async fn ask_holding(
    guest: Guest,
    body: Body,
    limit: &Limit,
    out: CancellationToken,
    kept: Box<dyn Send + Sync>,
) -> Result<Response, Failure> {
    let proxy = Proxy::new(Tasks::default());
    let request = Request::post("/").body(body).expect("a request");
    let asker = Asker { peer: [127, 0, 0, 1].into(), keys: Keys::Theirs, https: false };
    let visit =
        Visit { sandbox: SandboxId::random(), port: 80, dialer: guest.into(), out, _kept: kept };
    exchange(&proxy, request, Uri::from_static("/"), asker, visit, limit).await
}

/// Says something, and reads whatever comes.
async fn says(mut stream: Stream, text: &[u8]) {
    let (mut from, mut to) = tokio::io::split(&mut stream);
    let say = async { to.write_all(text).await };
    let hear = async { tokio::io::copy(&mut from, &mut tokio::io::sink()).await };
    // Until the other side goes.
    drop(tokio::join!(say, hear));
}

#[tokio::test(start_paused = true)]
async fn a_program_that_says_nothing_is_given_up() {
    for (limit, late) in [(PUBLIC, 300), (KNOWN, 600)] {
        let guest = guest(|stream| says(stream, b"")).await;
        let started = Instant::now();
        let failure = ask(guest, Body::empty(), &limit).await.expect_err("no answer");
        assert!(matches!(failure, Failure::Late(_)), "{failure}");
        assert_eq!(started.elapsed().as_secs(), late, "{failure}");
    }
}

#[tokio::test]
async fn how_old_a_program_is_is_not_the_clients_business() {
    let old = b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold";
    let guest = guest(|stream| says(stream, old)).await;
    let answer = ask(guest, Body::empty(), &KNOWN).await.expect("an answer");
    assert_eq!(answer.version(), Version::HTTP_11);
    assert_eq!(to_bytes(answer.into_body(), 9).await.expect("a body"), "old");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_never_ends_is_given_up() {
    async fn begin(mut stream: Stream) {
        let mut more = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Le").await;
        while more.is_ok() {
            sleep(Duration::from_secs(30)).await;
            more = stream.write_all(b"x").await;
        }
    }
    let (guest, started) = (guest(begin).await, Instant::now());
    let failure = ask(guest, Body::empty(), &PUBLIC).await.expect_err("no answer");
    assert!(matches!(failure, Failure::Late(_)), "{failure}");
    assert_eq!(started.elapsed().as_secs(), 300);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_a_byte_a_minute_does_so_for_five() {
    let bytes = futures_util::stream::unfold((), |()| async {
        sleep(Duration::from_secs(60)).await;
        Some((Ok::<_, std::io::Error>(Bytes::from_static(b"x")), ()))
    });
    let (guest, started) = (guest(|stream| says(stream, b"")).await, Instant::now());
    let asked = ask(guest, Body::from_stream(bytes), &PUBLIC).await;
    let failure = asked.expect_err("no answer");
    assert!(matches!(failure, Failure::Late(Late::Whole(300))), "{failure}");
    assert_eq!(started.elapsed().as_secs(), 300);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_trickles_ends_for_strangers_and_not_for_others() {
    async fn trickle(mut stream: Stream) {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("taken");
        for _ in 0..20 {
            sleep(Duration::from_secs(59)).await;
            if stream.write_all(b"x").await.is_err() {
                return;
            }
        }
        stream.shutdown().await.expect("an end");
    }
    for (limit, bytes) in [(PUBLIC, None), (KNOWN, Some(20))] {
        let answer = ask(guest(trickle).await, Body::empty(), &limit).await.expect("an answer");
        let body = answer.into_body().collect().await;
        assert_eq!(body.ok().map(|body| body.to_bytes().len()), bytes);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_holds_nothing_beyond_the_limit() {
    let begun = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n";
    for unpublished in [false, true] {
        let (out, kept) = (CancellationToken::new(), Arc::new(()));
        let guest = guest(move |stream| says(stream, begun)).await;
        let held = Box::new(Arc::clone(&kept));
        let answer = ask_holding(guest, Body::empty(), &PUBLIC, out.clone(), held).await;
        let mut body = answer.expect("an answer").into_body();
        body.frame().await.expect("a frame").expect("a byte");
        // From here on nobody asks for the rest, as with a window of HTTP/2 that stays closed.
        sleep(Duration::from_secs(299)).await;
        assert_eq!(Arc::strong_count(&kept), 2);
        if unpublished {
            out.cancel();
        }
        sleep(Duration::from_secs(if unpublished { 0 } else { 2 })).await;
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&kept), 1, "what it held is free");
        assert!(body.frame().await.expect("no good end").is_err());
    }
}

#[test]
fn a_program_is_told_the_host_that_led_to_it() {
    for uri in ["http://dev.localhost:8090/x", "http://evil.example@dev.localhost:8090/x"] {
        let request = Request::get(uri).header(header::HOST, "evil.example");
        let request = request.body(Body::empty()).expect("a request");
        let asker = Asker { peer: [127, 0, 0, 1].into(), keys: Keys::Theirs, https: false };
        let uri = Uri::from_static("/x");
        let asked = outgoing(request, uri, asker, 80, false, &Arc::default(), &PUBLIC);
        let asked = asked.expect("small enough");
        assert_eq!(asked.headers()["x-forwarded-host"], "dev.localhost:8090");
    }
}

#[tokio::test]
async fn what_is_no_answer_is_not_passed_on() {
    let long = [b"HTTP/1.1 200 OK\r\nx: ", [b'x'; 2 * MAX_BUFFER].as_slice(), b"\r\n\r\n"].concat();
    let many = [b"HTTP/1.1 200 OK\r\n".as_slice(), &b"a: b\r\n".repeat(1000), b"\r\n"].concat();
    let unasked = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n".to_vec();
    for text in [b"220 ready\r\n\r\n".to_vec(), b"\0\0\0\0\r\n\r\n".to_vec(), long, many, unasked] {
        let guest = guest(move |stream| {
            let text = text.clone();
            async move { says(stream, &text).await }
        });
        let outcome = ask(guest.await, Body::empty(), &KNOWN).await;
        let failure = outcome.expect_err("no answer");
        assert!(matches!(failure, Failure::NoAnswer(_) | Failure::Unasked), "{failure:?}");
        assert!(!words(&failure).is_empty());
    }
    let gone = guest(|stream| async move { drop(stream) }).await;
    let failure = ask(gone, Body::empty(), &KNOWN).await.expect_err("no answer");
    assert!(matches!(failure, Failure::NoAnswer(_)), "{failure:?}");
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_whether_or_not_it_says_its_length() {
    let pieces = || futures_util::stream::iter((0..3).map(|_| Ok::<_, std::io::Error>([0; 400])));
    let pieces =
        || Body::from_stream(futures_util::StreamExt::map(pieces(), |p| p.map(Bytes::from_owner)));
    for body in [Body::from(vec![0; 1001]), pieces()] {
        let guest = guest(|stream| says(stream, b"")).await;
        let failure = ask(guest, body, &PUBLIC).await.expect_err("refused");
        assert!(matches!(failure, Failure::TooLarge), "{failure:?}");
    }
    let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let guest = guest(move |stream| says(stream, ok)).await;
    let answer = ask(guest, pieces(), &KNOWN).await.expect("an answer");
    assert_eq!(to_bytes(answer.into_body(), 10).await.expect("a body"), "ok");
}

#[tokio::test]
async fn a_client_that_goes_takes_the_connection_along() {
    let (tell, told) = std::sync::mpsc::channel();
    let program = move |mut stream: Stream| {
        let tell = tell.clone();
        async move {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nx").await.expect("taken");
            let end = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            tell.send(end.is_err()).expect("the test waits");
        }
    };
    let answer = ask(guest(program).await, Body::empty(), &KNOWN).await.expect("an answer");
    let mut body = answer.into_body();
    body.frame().await.expect("a frame").expect("a byte");
    drop(body);
    let reset = tokio::task::spawn_blocking(move || told.recv()).await.expect("it runs");
    assert!(reset.expect("the program is told"), "a reset, no good end");
}

/// Asks again and again, as clients of one daemon do.
struct Asking {
    proxy: Proxy,
    sandbox: SandboxId,
    guest: Guest,
}

impl Asking {
    /// Of a program that is asked anew after each answer, and ends a connection after `each` of
    /// them without a word. What is counted are connections.
    async fn of_server(each: usize) -> (Self, Arc<std::sync::atomic::AtomicUsize>) {
        let connections = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let guest = guest(move |mut stream| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move {
                for _ in 0..each {
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                    stream.write_all(answer).await.expect("taken");
                    if stream.read(&mut [0; 4096]).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
            }
        });
        let (proxy, sandbox) = (Proxy::new(Tasks::default()), SandboxId::random());
        (Self { proxy, sandbox, guest: guest.await }, connections)
    }

    async fn ask(&self, method: &str, body: &'static str) -> Result<Bytes, Failure> {
        let request = Request::builder().method(method).uri("/").body(Body::from(body));
        let asker = Asker { peer: [127, 0, 0, 1].into(), keys: Keys::Theirs, https: false };
        let visit = Visit {
            sandbox: self.sandbox.clone(),
            port: 80,
            dialer: self.guest.clone().into(),
            out: CancellationToken::new(),
            _kept: Box::new(()),
        };
        let uri = Uri::from_static("/");
        let request = request.expect("a request");
        let answer = exchange(&self.proxy, request, uri, asker, visit, &KNOWN).await?;
        let whole = answer.into_body().collect().await.expect("a whole answer").to_bytes();
        // Whoever moves the bytes sees the end of the answer too.
        tokio::task::yield_now().await;
        Ok(whole)
    }
}

#[tokio::test]
async fn a_connection_waits_for_requests_that_may_be_sent_twice() {
    let (asking, connections) = Asking::of_server(usize::MAX).await;
    for (method, body, wanted) in
        [("POST", "x", 1), ("GET", "", 1), ("OPTIONS", "", 1), ("POST", "", 2), ("GET", "x", 3)]
    {
        assert_eq!(asking.ask(method, body).await.expect("an answer"), "ok");
        assert_eq!(connections.load(Ordering::Relaxed), wanted, "{method} {body:?}");
    }
}

#[tokio::test]
async fn a_program_that_hangs_up_between_two_requests_is_asked_again() {
    // It reads the second request, and hangs up instead of an answer: that cannot be told from one
    // that hung up just before.
    let (asking, connections) = Asking::of_server(1).await;
    for wanted in 1..=4 {
        assert_eq!(asking.ask("GET", "").await.expect("an answer"), "ok");
        assert_eq!(connections.load(Ordering::Relaxed), wanted);
    }
}

#[tokio::test]
async fn an_answer_that_is_there_holds_nothing() {
    for (answer, whole) in [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".as_slice(), true),
        (b"HTTP/1.1 204 No Content\r\n\r\n", true),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", false),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", false),
    ] {
        let kept = Arc::new(());
        let guest = guest(move |stream| says(stream, answer)).await;
        let (out, held) = (CancellationToken::new(), Box::new(Arc::clone(&kept)));
        let given = ask_holding(guest, Body::empty(), &PUBLIC, out, held).await;
        let given = given.expect("an answer");
        assert_eq!(Arc::strong_count(&kept) == 1, whole, "{given:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_program_that_hangs_up_while_nobody_asks_is_let_go() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let guest = guest(move |mut stream: Stream| {
        let tell = tell.clone();
        async move {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            stream.write_all(answer).await.expect("taken");
            stream.shutdown().await.expect("an end");
            let end = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            tell.send(end.is_ok()).expect("the test waits");
        }
    });
    let (proxy, sandbox) = (Proxy::new(Tasks::default()), SandboxId::random());
    let (asking, started) = (Asking { proxy, sandbox, guest: guest.await }, Instant::now());
    assert_eq!(asking.ask("GET", "").await.expect("an answer"), "ok");
    told.recv().await.expect("the other end too");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_does_not_wait_for_long() {
    let (asking, connections) = Asking::of_server(usize::MAX).await;
    for (pause, wanted) in [(0, 1), (3, 1), (3, 1), (5, 2)] {
        sleep(Duration::from_secs(pause)).await;
        assert_eq!(asking.ask("GET", "").await.expect("an answer"), "ok");
        assert_eq!(connections.load(Ordering::Relaxed), wanted, "after {pause} s");
    }
    asking.proxy.forget(&asking.sandbox, 81);
    assert!(asking.ask("GET", "").await.is_ok());
    assert_eq!(connections.load(Ordering::Relaxed), 2, "of another port");
    asking.proxy.forget(&asking.sandbox, 80);
    assert!(asking.ask("GET", "").await.is_ok());
    assert_eq!(connections.load(Ordering::Relaxed), 3);
}
