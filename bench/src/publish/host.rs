//! The server in the guest, nginx on the host, and the programs that ask both.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bhatti_testkit::{TestDaemon, wait_for};
use camino::{Utf8Path, Utf8PathBuf};

/// Where nginx of the host listens, in the user's network.
const NGINX_PORT: u16 = 8001;
/// Where the server in the guest does.
const GUEST_PORT: u16 = 8000;
/// Where it reads to the end what is sent to it.
const BEHIND_PORT: u16 = 8180;
/// How large what is moved in bulk is.
pub(super) const BULK_MIB: u32 = 32;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proxy {
    Ours,
    Nginx,
}

/// Where a proxy is, and what it is called.
pub(super) struct Address<'a> {
    pub(super) host: &'a str,
    pub(super) address: &'a str,
}

/// What `wrk` has seen.
pub(super) struct Seen {
    pub(super) rate: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

/// Everything that runs; ended with this.
pub(super) struct Served {
    /// `host:port` of the published alias.
    alias: String,
    ours: String,
    nginx: String,
    namespace: String,
    scratch: Utf8PathBuf,
    proxy: Child,
}

impl Drop for Served {
    fn drop(&mut self) {
        // Ours to end; its workers go with their master.
        if let Ok(pid) = i32::try_from(self.proxy.id()) {
            let pid = nix::unistd::Pid::from_raw(pid);
            let ended = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            if ended.is_ok() {
                drop(self.proxy.wait());
            }
        }
    }
}

impl Served {
    /// Puts the server into the sandbox `web`, publishes it, and starts nginx beside it.
    pub(super) fn start(daemon: &TestDaemon) -> Result<Self> {
        let scratch = daemon.scratch_path().join("published");
        let server = scratch.join("server");
        fs::create_dir_all(server.join("html"))?;
        portable_nginx(&server)?;
        fs::write(server.join("html/small"), [b'x'; 1024])?;
        fs::File::create(server.join("html/bulk"))?.set_len(u64::from(BULK_MIB) << 20)?;
        fs::write(server.join("nginx.conf"), guest_config())?;
        daemon.cli(&["cp", server.as_str(), "web:/tmp/"]).ok();
        let run = "cd /tmp/server && exec ./ld.so --library-path . ./nginx -p . -c nginx.conf";
        daemon.cli(&["exec", "web", "--detach", "--", "sh", "-c", run]).ok();
        let printed = daemon.cli(&["publish", "web", "-p", "8000", "-a", "web"]).ok();
        let url = printed.trim().strip_prefix("Published: http://").context("a URL")?;
        let alias = url.trim_end_matches('/').to_owned();
        let port = alias.rsplit_once(':').context("a port")?.1;
        let guest = daemon.json(&["inspect", "web"])["ip"].as_str().context("an ip")?.to_owned();
        let namespace = namespace(daemon)?;
        let proxy = start_nginx(&scratch, &namespace, &guest)?;
        let served = Self {
            ours: format!("127.0.0.1:{port}"),
            nginx: format!("127.0.0.1:{NGINX_PORT}"),
            alias,
            namespace,
            scratch,
            proxy,
        };
        for proxy in [Proxy::Ours, Proxy::Nginx] {
            wait_for("the server answers", || served.download(proxy, "/small", 1).ok());
        }
        Ok(served)
    }

    pub(super) fn address(&self, proxy: Proxy) -> Address<'_> {
        match proxy {
            Proxy::Ours => Address { host: &self.alias, address: &self.ours },
            Proxy::Nginx => Address { host: &self.alias, address: &self.nginx },
        }
    }

    /// A command where that proxy is.
    fn command(&self, proxy: Proxy, program: &str) -> Command {
        match proxy {
            Proxy::Ours => Command::new(program),
            Proxy::Nginx => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &self.namespace, program]);
                command
            }
        }
    }

    /// Asks as fast as `connections` can, each after its answer.
    pub(super) fn wrk(
        &self,
        proxy: Proxy,
        path: &str,
        connections: u32,
        seconds: u32,
    ) -> Result<Seen> {
        let Address { host, address } = self.address(proxy);
        let mut wrk = self.command(proxy, "wrk");
        let (connections, seconds) = (connections.to_string(), format!("{seconds}s"));
        wrk.args(["-t1", "--latency", "-c", &connections, "-d", &seconds]);
        wrk.arg("-H").arg(format!("Host: {host}")).arg(format!("http://{address}{path}"));
        let printed = output(&mut wrk)?;
        ensure!(!printed.contains("Non-2xx"), "not every answer was good:\n{printed}");
        let after = |label: &str| {
            let line = printed.lines().find_map(|line| line.trim().strip_prefix(label));
            line.map(str::trim).with_context(|| format!("no {label} in:\n{printed}"))
        };
        Ok(Seen {
            rate: after("Requests/sec:")?.parse()?,
            p50_ms: millis(after("50%")?)?,
            p99_ms: millis(after("99%")?)?,
        })
    }

    /// The process whose workers pass requests on.
    pub(super) fn nginx_pid(&self) -> u32 {
        self.proxy.id()
    }

    /// MiB a second of one file, fetched `times` times on one connection.
    pub(super) fn download(&self, proxy: Proxy, path: &str, times: u32) -> Result<f64> {
        self.curl(proxy, path, times, "%{size_download} %{time_total}\n", &[])
    }

    /// MiB a second of one body, sent `times` times on one connection.
    pub(super) fn upload(&self, proxy: Proxy, times: u32) -> Result<f64> {
        let file = self.scratch.join("server/html/bulk");
        let args = ["-T", file.as_str(), "-X", "POST"];
        self.curl(proxy, "/up", times, "%{size_upload} %{time_total}\n", &args)
    }

    /// `told` is bytes and seconds of one transfer, on a line.
    fn curl(&self, proxy: Proxy, path: &str, times: u32, told: &str, args: &[&str]) -> Result<f64> {
        let Address { host, address } = self.address(proxy);
        let mut curl = self.command(proxy, "curl");
        for time in 0..times {
            if time > 0 {
                curl.arg("--next");
            }
            curl.args(["-fsS", "-o", "/dev/null", "--max-time", "120", "-w", told]).args(args);
            curl.arg("-H").arg(format!("Host: {host}")).arg(format!("http://{address}{path}"));
        }
        let (mut bytes, mut seconds) = (0.0, 0.0);
        for line in output(&mut curl)?.lines() {
            let (size, time) = line.split_once(' ').context("two numbers")?;
            bytes += size.parse::<f64>()?;
            seconds += time.parse::<f64>()?;
        }
        Ok(bytes / f64::from(1 << 20) / seconds)
    }
}

/// One request on a connection of its own.
pub(super) fn get(address: &str, host: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The user's network: the one whose name begins as the daemon's do.
fn namespace(daemon: &TestDaemon) -> Result<String> {
    let config = fs::read_to_string(daemon.config())?;
    let prefix = config.lines().find_map(|line| line.strip_prefix("network_prefix: "));
    let prefix = prefix.context("a prefix")?;
    for entry in fs::read_dir("/run/netns")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) {
            return Ok(name);
        }
    }
    bail!("no network of the user's is there")
}

/// nginx, its libraries and their loader, in one directory.
fn portable_nginx(into: &Utf8Path) -> Result<()> {
    let nginx = ["/usr/sbin/nginx", "/usr/bin/nginx"];
    let found = nginx.into_iter().find(|path| Utf8Path::new(path).exists());
    let nginx = found.context("this needs nginx and wrk: apt-get install nginx-light wrk")?;
    fs::copy(nginx, into.join("nginx"))?;
    for line in output(Command::new("ldd").arg(nginx))?.lines() {
        let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) else {
            continue;
        };
        let name = Utf8Path::new(path).file_name().context("a library has a name")?;
        let name = if name.starts_with("ld-") { "ld.so" } else { name };
        fs::copy(path, into.join(name))?;
    }
    Ok(())
}

/// A server that does as little as it can. What comes up is read to its end before it answers.
fn guest_config() -> String {
    format!(
        "daemon off; pid nginx.pid; error_log stderr crit;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n\
         access_log off; sendfile on; keepalive_requests 1000000; default_type text/plain;\n\
         client_max_body_size 100m; client_body_buffer_size 40m;\n\
         client_body_temp_path /tmp/nginx-b; proxy_temp_path /tmp/nginx-p;\n\
         fastcgi_temp_path /tmp/nginx-f; uwsgi_temp_path /tmp/nginx-u; scgi_temp_path /tmp/nginx-s;\n\
         server {{ listen {GUEST_PORT}; root html;\n\
         location /up {{ proxy_pass http://127.0.0.1:{BEHIND_PORT}; proxy_pass_request_body off;\n\
         proxy_set_header Content-Length \"\"; }} }}\n\
         server {{ listen 127.0.0.1:{BEHIND_PORT}; return 200 'taken'; }}\n\
         }}\n"
    )
}

/// nginx as people set it up as a proxy: connections kept on both sides, bodies passed on as they
/// come.
fn start_nginx(scratch: &Utf8Path, namespace: &str, guest: &str) -> Result<Child> {
    let config = format!(
        "daemon off; worker_processes auto; pid {scratch}/nginx.pid; error_log stderr crit;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n\
         access_log off; keepalive_requests 1000000; client_max_body_size 100m;\n\
         client_body_temp_path {scratch}/b; proxy_temp_path {scratch}/p;\n\
         fastcgi_temp_path {scratch}/f; uwsgi_temp_path {scratch}/u; scgi_temp_path {scratch}/s;\n\
         upstream guest {{ server {guest}:{GUEST_PORT}; keepalive 64; keepalive_requests 1000000; }}\n\
         server {{ listen 127.0.0.1:{NGINX_PORT};\n\
         location / {{ proxy_pass http://guest; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_request_buffering off; proxy_max_temp_file_size 0; }} }}\n\
         }}\n"
    );
    let file = scratch.join("nginx.conf");
    fs::write(&file, config)?;
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg("nginx");
    command.args(["-p", scratch.as_str(), "-c", file.as_str()]);
    command.stdin(Stdio::null()).spawn().context("nginx does not start")
}

/// What a program printed, which had to work.
fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {stderr}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A duration as `wrk` writes it.
fn millis(text: &str) -> Result<f64> {
    for (unit, millis) in [("us", 1e-3), ("ms", 1.0), ("s", 1e3), ("m", 6e4)] {
        if let Some(number) = text.strip_suffix(unit) {
            return Ok(number.trim().parse::<f64>()? * millis);
        }
    }
    bail!("{text:?} is no duration")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_wrk_are_read() {
        for (text, wanted) in [("250.00us", 0.25), ("1.50ms", 1.5), ("2.00s", 2000.0)] {
            let read = millis(text).expect("a duration");
            assert!((read - wanted).abs() < 1e-9, "{text}: {read}");
        }
        assert!(millis("fast").is_err());
    }
}
