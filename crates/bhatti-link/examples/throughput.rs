//! Measures the link over a unix socket pair: MB/s of one stream, alone and beside others, and
//! the time of a round trip, alone and beside a bulk stream.
//!
//! `cargo run --release -p bhatti-link --example throughput`

use std::io;
use std::time::{Duration, Instant};

use bhatti_link::{Link, Mode, Stream, connect, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const BULK: usize = 512 << 20;
const TRIPS: usize = 5000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (host_io, guest_io) = UnixStream::pair()?;
    tokio::spawn(serve(guest_io, |stream| drop(tokio::spawn(guest(stream)))));
    let (link, driver) = connect(host_io, [7; 16], Mode::FirstBoot).await?;
    tokio::spawn(driver);

    println!("host to guest  {:.0} MB/s", upload(&link, BULK).await?);
    println!("guest to host  {:.0} MB/s", download(&link, BULK).await?);
    print_trips("round trip alone", trips(&link).await?);
    let other = link.clone();
    let bulk = tokio::spawn(async move { upload(&other, 4 * BULK).await });
    print_trips("round trip beside an upload", trips(&link).await?);
    bulk.abort();
    let other = link.clone();
    let bulk = tokio::spawn(async move { download(&other, 4 * BULK).await });
    print_trips("round trip beside a download", trips(&link).await?);
    bulk.abort();
    Ok(())
}

/// The first byte says what the stream is for.
async fn guest(mut stream: Stream) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    match stream.read_u8().await? {
        b'u' => {
            while stream.read(&mut buffer).await? > 0 {}
            stream.shutdown().await
        }
        b'd' => loop {
            stream.write_all(&buffer).await?;
        },
        _ => loop {
            let byte = stream.read_u8().await?;
            stream.write_u8(byte).await?;
        },
    }
}

async fn upload(link: &Link, total: usize) -> io::Result<f64> {
    let mut stream = link.open().map_err(io::Error::other)?;
    let buffer = vec![0; 256 * 1024];
    let start = Instant::now();
    stream.write_u8(b'u').await?;
    for _ in 0..total / buffer.len() {
        stream.write_all(&buffer).await?;
    }
    stream.shutdown().await?;
    stream.read_to_end(&mut Vec::new()).await?;
    Ok(total as f64 / 1e6 / start.elapsed().as_secs_f64())
}

async fn download(link: &Link, total: usize) -> io::Result<f64> {
    let mut stream = link.open().map_err(io::Error::other)?;
    let mut buffer = vec![0; 256 * 1024];
    let start = Instant::now();
    stream.write_u8(b'd').await?;
    let mut got = 0;
    while got < total {
        got += stream.read(&mut buffer).await?;
    }
    Ok(total as f64 / 1e6 / start.elapsed().as_secs_f64())
}

async fn trips(link: &Link) -> io::Result<Vec<Duration>> {
    let mut stream = link.open().map_err(io::Error::other)?;
    stream.write_u8(b'e').await?;
    let mut times = Vec::with_capacity(TRIPS);
    for _ in 0..TRIPS {
        let start = Instant::now();
        stream.write_u8(1).await?;
        stream.read_u8().await?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

fn print_trips(what: &str, times: Vec<Duration>) {
    println!("{what}  p50 {:?}  p99 {:?}", times[TRIPS / 2], times[TRIPS * 99 / 100]);
}
