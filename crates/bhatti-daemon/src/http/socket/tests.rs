//! Real sockets on the loopback, with patience in milliseconds.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::any;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as WsError, Message as WsMessage};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::*;

const KIND: Kind = Kind { protocol: Some("test.v1"), max_message: 1 << 20 };

/// Far beyond what anything here takes.
const SOON: Duration = Duration::from_secs(60);

struct World {
    sockets: Sockets,
    serve: Box<dyn Fn(Socket) -> futures_util::future::BoxFuture<'static, ()> + Send + Sync>,
}

async fn handle(State(world): State<Arc<World>>, request: Request) -> Result<Response, ApiError> {
    let upgrade = world.sockets.prepare(request, KIND, None).await?;
    Ok(upgrade.run(move |socket| (world.serve)(socket)))
}

/// A server whose sockets are served by `serve`, and its address.
async fn server<F>(
    patience: Patience,
    serve: impl Fn(Socket) -> F + Send + Sync + 'static,
) -> String
where
    F: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(1));
    let shares = Shares::new(1);
    let sockets = Sockets { tasks: Tasks::default(), places, shares, patience };
    let serve = Box::new(move |socket| Box::pin(serve(socket)) as _);
    let router =
        Router::new().route("/", any(handle)).with_state(Arc::new(World { sockets, serve }));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn connect(
    address: &str,
    protocol: &'static str,
) -> Result<WebSocketStream<TcpStream>, WsError> {
    let mut request = format!("ws://{address}/").into_client_request()?;
    let protocol = protocol.parse().expect("a header value");
    request.headers_mut().insert("sec-websocket-protocol", protocol);
    let stream = TcpStream::connect(address).await?;
    Ok(client_async(request, stream).await?.0)
}

fn brisk() -> Patience {
    let [ping, pong, write] = [20, 200, 500].map(Duration::from_millis);
    Patience { ping, pong, write }
}

/// Tells how each socket ended, by its pulse.
fn watch_pulse() -> (
    impl Fn(Socket) -> futures_util::future::BoxFuture<'static, ()> + Send + Sync,
    mpsc::Receiver<Gone>,
) {
    let (tell, told) = mpsc::channel(8);
    let serve = move |socket: Socket| {
        let tell = tell.clone();
        Box::pin(async move {
            let Socket { pulse, mut receiver, .. } = socket;
            let gone = tokio::select! {
                gone = pulse.lost() => gone,
                heard = receiver.next() => match heard {
                    Ok(_) => Gone::Closed,
                    Err(gone) => gone,
                },
            };
            tell.send(gone).await.expect("the test listens");
        }) as _
    };
    (serve, told)
}

#[tokio::test]
async fn a_peer_that_does_not_answer_pings_is_dropped() {
    let (serve, mut told) = watch_pulse();
    let address = server(brisk(), serve).await;
    // Pongs are sent by reading, and nobody reads here.
    let mut deaf = connect(&address, "test.v1").await.expect("an upgrade");
    let before = Instant::now();
    let gone = timeout(SOON, told.recv()).await.expect("soon").expect("it ends");
    assert!(matches!(gone, Gone::Silent), "{gone:?}");
    assert!(before.elapsed() >= brisk().pong);
    deaf.close(None).await.unwrap_or_default();
}

#[tokio::test]
async fn a_peer_that_answers_pings_stays() {
    let (serve, mut told) = watch_pulse();
    let address = server(brisk(), serve).await;
    let mut client = connect(&address, "test.v1").await.expect("an upgrade");
    let before = Instant::now();
    let mut pings = 0;
    while before.elapsed() < brisk().pong * 3 {
        match timeout(SOON, client.next()).await.expect("soon") {
            Some(Ok(WsMessage::Ping(_))) => pings += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(pings > 2 && told.try_recv().is_err(), "{pings}");
    client.close(None).await.expect("it closes");
    let gone = timeout(SOON, told.recv()).await.expect("soon").expect("it ends");
    assert!(matches!(gone, Gone::Closed), "{gone:?}");
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_dropped() {
    let (tell, mut told) = mpsc::channel(1);
    let serve = move |socket: Socket| {
        let tell = tell.clone();
        async move {
            let block = Bytes::from(vec![0; 1 << 16]);
            loop {
                if let Err(gone) = socket.sender.send(Message::Binary(block.clone())).await {
                    tell.send(gone).await.expect("the test listens");
                    return;
                }
            }
        }
    };
    let address = server(brisk(), serve).await;
    let _deaf = connect(&address, "test.v1").await.expect("an upgrade");
    let gone = timeout(SOON, told.recv()).await.expect("soon").expect("it ends");
    assert!(matches!(gone, Gone::Slow), "{gone:?}");
}

#[tokio::test]
async fn the_last_message_arrives_whatever_is_still_under_way() {
    let serve = |socket: Socket| async move {
        socket.sender.send(Message::text("last")).await.expect("it is taken");
        socket.sender.close(socket.receiver, NORMAL, "").await;
    };
    let address = server(Patience::default(), serve).await;
    let client = connect(&address, "test.v1").await.expect("an upgrade");
    let (mut to, mut from) = client.split();
    let sending = tokio::spawn(async move {
        let block = Bytes::from(vec![0; 1 << 16]);
        // More than the kernel's buffers hold; the server wants none of it.
        for _ in 0..200 {
            if to.send(WsMessage::Binary(block.clone())).await.is_err() {
                return;
            }
        }
    });
    let last = timeout(SOON, from.next()).await.expect("soon").expect("one").expect("a message");
    assert_eq!(last, WsMessage::text("last"));
    let close = timeout(SOON, from.next()).await.expect("soon").expect("one").expect("a message");
    let WsMessage::Close(Some(frame)) = close else { panic!("{close:?}") };
    assert_eq!(frame.code, CloseCode::Normal);
    sending.await.expect("it does not panic");
}

#[tokio::test]
async fn what_cannot_become_a_socket_is_refused_before_anything_happens() {
    let address = server(Patience::default(), |socket| async move {
        let mut receiver = socket.receiver;
        while let Ok(Some(_)) = receiver.next().await {}
    })
    .await;
    let refused = async |protocol| match connect(&address, protocol).await {
        Err(WsError::Http(response)) => {
            let body = response.body().clone().unwrap_or_default();
            (response.status().as_u16(), String::from_utf8(body).expect("UTF-8"))
        }
        other => panic!("{:?}", other.map(drop)),
    };
    let offer = "{\"error\":\"offer the WebSocket subprotocol test.v1\"}\n";
    assert_eq!(refused("other.v1").await, (400, offer.to_owned()));
    let mut first = connect(&address, "test.v1").await.expect("an upgrade");
    assert_eq!(refused("test.v1").await.0, 429, "there is one place");
    first.close(None).await.expect("it closes");
    while timeout(SOON, first.next()).await.expect("soon").is_some_and(|read| read.is_ok()) {}
    let again = async {
        while connect(&address, "test.v1").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, again).await.expect("the place is free again");
}

#[tokio::test]
async fn a_peer_that_is_not_listened_to_is_not_blamed() {
    let (tell, mut told) = mpsc::channel(1);
    let serve = move |socket: Socket| {
        let tell = tell.clone();
        async move {
            let Socket { pulse, mut receiver, .. } = socket;
            receiver.next().await.expect("it says something");
            // What it said is passed on to somebody who takes nothing.
            tell.send(pulse.lost().await).await.unwrap_or_default();
        }
    };
    let address = server(brisk(), serve).await;
    let mut client = connect(&address, "test.v1").await.expect("an upgrade");
    client.send(WsMessage::text("x")).await.expect("it is sent");
    let before = Instant::now();
    while before.elapsed() < brisk().pong * 3 {
        let heard = timeout(SOON, client.next()).await.expect("soon");
        assert!(matches!(heard, Some(Ok(WsMessage::Ping(_)))), "{heard:?}");
    }
    assert!(told.try_recv().is_err());
}

/// A client of a server that has no use for messages until the test says so.
async fn connect_early()
-> (WebSocketStream<TcpStream>, Arc<Notify>, mpsc::Receiver<Result<Incoming, Gone>>) {
    let (tell, told) = mpsc::channel(8);
    let wanted = Arc::new(Notify::new());
    let now = wanted.clone();
    let serve = move |mut socket: Socket| {
        let (tell, now) = (tell.clone(), now.clone());
        async move {
            tokio::select! {
                gone = socket.receiver.gone() => return tell.send(Err(gone)).await.expect("heard"),
                () = now.notified() => {}
            }
            while let Ok(Some(message)) = socket.receiver.next().await {
                tell.send(Ok(message)).await.expect("heard");
            }
        }
    };
    let address = server(Patience::default(), serve).await;
    (connect(&address, "test.v1").await.expect("an upgrade"), wanted, told)
}

#[tokio::test]
async fn what_is_said_before_there_is_use_for_it_is_kept() {
    let (mut client, wanted, mut told) = connect_early().await;
    client.send(WsMessage::text("a")).await.expect("it is sent");
    client.send(WsMessage::binary(&b"b"[..])).await.expect("it is sent");
    client.send(WsMessage::Ping(Bytes::new())).await.expect("it is sent");
    let pong = timeout(SOON, client.next()).await.expect("soon").expect("one").expect("a message");
    assert!(pong.is_pong(), "it is heard all the time: {pong:?}");
    wanted.notify_one();
    client.send(WsMessage::text("c")).await.expect("it is sent");
    let text = |text: &str| Incoming::Text(text.to_owned());
    for message in [text("a"), Incoming::Binary(Bytes::from_static(b"b")), text("c")] {
        let heard = timeout(SOON, told.recv()).await.expect("soon").expect("one");
        assert_eq!(heard.expect("it is there"), message);
    }
}

#[tokio::test]
async fn a_peer_that_leaves_before_there_is_use_for_it_is_noticed() {
    let (mut client, _wanted, mut told) = connect_early().await;
    client.send(WsMessage::text("a")).await.expect("it is sent");
    drop(client);
    let heard = timeout(SOON, told.recv()).await.expect("soon").expect("one");
    assert!(matches!(heard, Err(Gone::Broken(_) | Gone::Closed)), "{heard:?}");
}

#[tokio::test]
async fn no_more_is_kept_than_there_is_room_for() {
    let (tell, mut told) = mpsc::channel(1);
    let serve = move |socket: Socket| {
        let tell = tell.clone();
        async move {
            let mut receiver = socket.receiver;
            while receiver.ahead.is_empty() {
                // Long enough for all of it, if it were taken.
                timeout(Duration::from_millis(100), receiver.gone()).await.unwrap_err();
            }
            tell.send(receiver.ahead.len()).await.expect("heard");
        }
    };
    let address = server(Patience::default(), serve).await;
    let mut client = connect(&address, "test.v1").await.expect("an upgrade");
    for _ in 0..4 {
        client.send(WsMessage::binary(vec![0; AHEAD])).await.expect("it is sent");
    }
    assert_eq!(timeout(SOON, told.recv()).await.expect("soon"), Some(1));
}

#[tokio::test]
async fn one_account_does_not_take_all_the_places() {
    let places = Arc::new(Semaphore::new(2));
    let sockets = Sockets { places, shares: Shares::new(1), ..Sockets::new(Tasks::default()) };
    let prepare = async |user: &UserId| {
        let headers = [
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
            ("sec-websocket-protocol", "test.v1"),
        ];
        let request = headers
            .iter()
            .fold(Request::builder(), |request, (name, value)| request.header(*name, *value));
        let mut request = request.body(axum::body::Body::empty()).expect("a request");
        let connection = hyper::upgrade::on(Request::new(axum::body::Body::empty()));
        request.extensions_mut().insert(connection);
        sockets.prepare(request, KIND, Some(user)).await
    };
    let (alice, bob) = (UserId::random(), UserId::random());
    let first = prepare(&alice).await.map_err(|error| error.to_string()).expect("a place");
    assert!(matches!(prepare(&alice).await, Err(ApiError::TooManySockets)));
    prepare(&bob).await.map_err(|error| error.to_string()).expect("another's place");
    drop(first);
    prepare(&alice).await.map_err(|error| error.to_string()).expect("free again");
}
