//! Talks to an agent through the unix socket of its serial port: for trying a guest by hand.
//!
//! ```text
//! talk SOCKET exec [--timeout MS] [--stdin] -- ARGV…    prints the output and the exit
//! talk SOCKET configure HOSTNAME [ADDRESS PREFIX GATEWAY MAC [ROOT_BYTES]]
//! talk SOCKET write PATH MODE < file
//! talk SOCKET bench N                                    N times /bin/true: median and worst
//! talk SOCKET activity N                                 N reports, their times, the last one
//! talk SOCKET clock N                                    N times the clock alone, and how late
//! talk SOCKET quiesce
//! talk SOCKET hold                                       until the next call
//! talk SOCKET power-off
//! ```
//!
//! Every call says hello first, so it also sets the guest's clock.

use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use bhatti_link::{Link, Mode, connect, read_message, write_message};
use bhatti_wire::message::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match talk(std::env::args().skip(1).collect()).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("talk: {error}");
            ExitCode::from(255)
        }
    }
}

async fn talk(words: Vec<String>) -> Outcome<u8> {
    let [socket, verb, rest @ ..] = words.as_slice() else {
        return Err("see the top of talk.rs".into());
    };
    let start = Instant::now();
    let carrier = tokio::net::UnixStream::connect(socket).await?;
    let (link, driver) = connect(carrier, random()?, Mode::Reconnect).await?;
    tokio::spawn(driver);
    let hello: HelloReply = ask(&link, Operation::Hello(hello()?)).await?;
    eprintln!("{hello:?} after {:?}", start.elapsed());
    match verb.as_str() {
        "exec" => exec(&link, rest).await,
        "bench" => bench(&link, count(rest)?).await,
        "configure" => {
            let network = match &rest[1..] {
                [address, prefix, gateway, mac, ..] => Some(Network {
                    address: address.clone(),
                    prefix_len: prefix.parse()?,
                    gateway: gateway.clone(),
                    nameservers: vec![gateway.clone()],
                    mac: mac.clone(),
                }),
                _ => None,
            };
            let env = [("FROM_SANDBOX".to_owned(), "yes".to_owned())].into();
            let start = Instant::now();
            let reply = print_reply(
                ask(
                    &link,
                    Operation::Configure(Configure {
                        hostname: rest[0].clone(),
                        env,
                        network,
                        machine_id: String::new(),
                        root_bytes: rest.get(5).map_or(Ok(0), |bytes| bytes.parse())?,
                    }),
                )
                .await?,
            );
            eprintln!("after {:?}", start.elapsed());
            reply
        }
        "write" => {
            let mut content = Vec::new();
            std::io::stdin().read_to_end(&mut content)?;
            let mut stream = link.open()?;
            let file = WriteFile {
                path: rest[0].clone(),
                mode: u32::from_str_radix(&rest[1], 8)?,
                size: content.len() as u64,
                keep_mode: false,
            };
            write_message(&mut stream, &Request { operation: Some(Operation::WriteFile(file)) })
                .await?;
            stream.write_all(&content).await?;
            stream.shutdown().await?;
            print_reply(read_message(&mut stream).await?.ok_or("no reply")?)
        }
        "activity" => activity(&link, count(rest)?).await,
        "clock" => clock(&link, count(rest)?).await,
        "quiesce" => {
            let start = Instant::now();
            let reply = print_reply(ask(&link, Operation::Quiesce(Quiesce {})).await?);
            eprintln!("after {:?}", start.elapsed());
            reply
        }
        "hold" => {
            let start = Instant::now();
            let reply = print_reply(ask(&link, Operation::Hold(Hold {})).await?);
            eprintln!("after {:?}", start.elapsed());
            reply
        }
        "power-off" => print_reply(ask(&link, Operation::PowerOff(PowerOff {})).await?),
        other => Err(format!("no verb {other}").into()),
    }
}

fn count(words: &[String]) -> Outcome<usize> {
    Ok(words.first().ok_or("how often?")?.parse::<usize>()?.max(1))
}

async fn activity(link: &Link, rounds: usize) -> Outcome<u8> {
    let mut times = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        let reply: ActivityReply = ask(link, Operation::Activity(Activity {})).await?;
        times.push(start.elapsed());
        if times.len() == rounds {
            println!("{reply:?}");
        }
    }
    print_times(times);
    Ok(0)
}

async fn clock(link: &Link, rounds: usize) -> Outcome<u8> {
    let mut times = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        let hello = Hello { entropy: bytes::Bytes::new(), ..hello()? };
        let _: HelloReply = ask(link, Operation::Hello(hello)).await?;
        times.push(start.elapsed());
    }
    print_times(times);
    Ok(0)
}

fn print_times(mut times: Vec<Duration>) {
    times.sort_unstable();
    println!("median {:?}, worst {:?}", times[times.len() / 2], times[times.len() - 1]);
}

fn random<const N: usize>() -> Outcome<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn hello() -> Outcome<Hello> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(Hello {
        protocol: PROTOCOL_VERSION,
        host_version: "talk".to_owned(),
        unix_nanos: u64::try_from(now.as_nanos())?,
        entropy: bytes::Bytes::copy_from_slice(&random::<64>()?),
        identity: None,
    })
}

async fn ask<M: prost::Message + Default>(link: &Link, operation: Operation) -> Outcome<M> {
    let mut stream = link.open()?;
    write_message(&mut stream, &Request { operation: Some(operation) }).await?;
    Ok(read_message(&mut stream).await?.ok_or("the guest ended the stream without an answer")?)
}

fn print_reply(reply: Reply) -> Outcome<u8> {
    println!("{reply:?}");
    Ok(u8::from(reply.failure.is_some()))
}

async fn exec(link: &Link, words: &[String]) -> Outcome<u8> {
    let mut exec = Exec::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--timeout" => exec.timeout_ms = words.next().ok_or("--timeout how long?")?.parse()?,
            "--stdin" => exec.stdin = true,
            "--detach" => exec.detach = true,
            "--" => exec.argv = words.by_ref().cloned().collect(),
            other => return Err(format!("no option {other}").into()),
        }
    }
    let start = Instant::now();
    let feeds = exec.stdin;
    let mut stream = link.open()?;
    write_message(&mut stream, &Request { operation: Some(Operation::Exec(exec)) }).await?;
    let (mut from, mut to) = tokio::io::split(stream);
    if feeds {
        tokio::spawn(async move {
            let mut stdin = tokio::io::stdin();
            let mut buffer = vec![0; MAX_CHUNK];
            while let Ok(n) = stdin.read(&mut buffer).await {
                let event = match n {
                    0 => ExecInputEvent::Eof(Nothing {}),
                    n => ExecInputEvent::Data(bytes::Bytes::copy_from_slice(&buffer[..n])),
                };
                if write_message(&mut to, &ExecInput { event: Some(event) }).await.is_err()
                    || n == 0
                {
                    break;
                }
            }
            // Half-closing would do as well; keeping it open is what most callers do.
            std::future::pending::<()>().await;
        });
    }
    while let Some(output) = read_message::<ExecOutput>(&mut from).await? {
        match output.event {
            Some(ExecOutputEvent::Stdout(bytes)) => std::io::stdout().write_all(&bytes)?,
            Some(ExecOutputEvent::Stderr(bytes)) => std::io::stderr().write_all(&bytes)?,
            Some(ExecOutputEvent::Started(started)) => eprintln!("{started:?}"),
            Some(ExecOutputEvent::Failed(failure)) => return Err(format!("{failure:?}").into()),
            Some(ExecOutputEvent::Exit(exit)) => {
                eprintln!("{exit:?} after {:?}", start.elapsed());
                return Ok(exit.code as u8);
            }
            None => {}
        }
    }
    Ok(0)
}

async fn bench(link: &Link, rounds: usize) -> Outcome<u8> {
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        let mut stream = link.open()?;
        let exec = Exec { argv: vec!["/bin/true".to_owned()], ..Exec::default() };
        write_message(&mut stream, &Request { operation: Some(Operation::Exec(exec)) }).await?;
        while read_message::<ExecOutput>(&mut stream).await?.is_some() {}
        times.push(start.elapsed());
    }
    print_times(times);
    Ok(0)
}
