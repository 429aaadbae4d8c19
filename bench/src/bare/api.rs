//! As much of HTTP as Firecracker's API takes: one request after the other over its socket.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Longer than any answer it has for us.
const MOST_ANSWER: u64 = 64 << 10;

pub(super) struct Api(BufReader<UnixStream>);

impl Api {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self(BufReader::new(socket))
    }

    pub(super) async fn get(&mut self, path: &str) -> Result<Value> {
        let body = self.request("GET", path, "").await?;
        serde_json::from_slice(&body).with_context(|| format!("{path} answers no JSON"))
    }

    pub(super) async fn put(&mut self, path: &str, body: &Value) -> Result<()> {
        self.request("PUT", path, &body.to_string()).await.map(drop)
    }

    pub(super) async fn patch(&mut self, path: &str, body: &Value) -> Result<()> {
        self.request("PATCH", path, &body.to_string()).await.map(drop)
    }

    /// The body of an answer that is no refusal.
    async fn request(&mut self, method: &str, path: &str, body: &str) -> Result<Vec<u8>> {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        self.0.get_mut().write_all(request.as_bytes()).await?;
        let mut answer = (&mut self.0).take(MOST_ANSWER);
        let (mut status, mut length) = (None, 0);
        loop {
            let mut line = String::new();
            answer.read_line(&mut line).await?;
            ensure!(line.ends_with('\n'), "it hung up over {method} {path}");
            let line = line.trim_end().to_ascii_lowercase();
            if status.is_none() {
                let code = line.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok());
                status = Some(code.with_context(|| format!("{line:?} is no HTTP"))?);
            } else if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().context("an answer of no length")?;
            } else if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        answer.read_exact(&mut body).await?;
        let ok = status.is_some_and(|status| (200..300).contains(&status));
        ensure!(ok, "{method} {path} is refused: {}", String::from_utf8_lossy(&body));
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn said(answer: &str) -> Result<Value> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answer.as_bytes()).await.unwrap();
        theirs.shutdown().await.unwrap();
        let mut api = Api::new(ours);
        api.put("/actions", &Value::Null).await?;
        api.get("/").await
    }

    #[tokio::test]
    async fn answers_come_one_after_the_other_and_refusals_are_errors() {
        let done = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";
        let body = "HTTP/1.1 200 \r\nContent-Length: 7\r\n\r\n{\"a\":1}";
        let found = said(&format!("{done}{body}")).await.unwrap();
        assert_eq!(found["a"], 1);
        let refused = "HTTP/1.1 400 \r\nContent-Length: 7\r\n\r\n\"no it\"";
        let error = said(refused).await.unwrap_err().to_string();
        assert!(error.contains("PUT /actions is refused: \"no it\""), "{error}");
        for broken in ["", "HTTP/1.1 204 \r\n", "nonsense\r\n\r\n"] {
            said(broken).await.expect_err("it is no answer");
        }
    }
}
