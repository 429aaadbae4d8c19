//! What every command is given: settings, a client made on first use, and the only way to write.

use std::cell::{Cell, OnceCell};
use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

use bhatti_api::to_json_pretty;
use bhatti_client::{Client, ClientError};
use bhatti_config::{Config, Places, load, load_endpoint};
use camino::Utf8PathBuf;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use tokio::runtime::Runtime;

use crate::args::Globals;
use crate::cache::Cache;
use crate::failure::{Failure, chain, say};
use crate::invoker::Invoker;
use crate::output;

/// Used when nothing else says where the API is.
const DEFAULT_URL: &str = "http://localhost:8080";

/// One run of the program.
pub(crate) struct Context {
    pub(crate) globals: Globals,
    pub(crate) invoker: Invoker,
    pub(crate) places: Places,
    /// Sandbox names for completion.
    pub(crate) cache: Cache,
    connection: OnceCell<(String, Client)>,
    runtime: OnceCell<Runtime>,
    gate_checked: Cell<bool>,
}

/// An address and a key, from flags, files and environment.
pub(crate) struct Target {
    pub(crate) url: String,
    pub(crate) token: Option<String>,
}

impl Context {
    pub(crate) fn new(globals: Globals) -> Result<Self, Failure> {
        let invoker = Invoker::current()?;
        let only = std::env::var("BHATTI_CONFIG").ok().filter(|path| !path.is_empty());
        Ok(Self {
            places: Places::new(only.map(Utf8PathBuf::from), invoker.home.clone()),
            cache: Cache::of(&invoker),
            globals,
            invoker,
            connection: OnceCell::new(),
            runtime: OnceCell::new(),
            gate_checked: Cell::new(false),
        })
    }

    /// Flag, file, environment, default: the first that says something, each on its own.
    pub(crate) fn target(&self) -> Target {
        let (endpoint, warnings) = load_endpoint(&self.places);
        for warning in warnings {
            say(&format!("{warning}\n"));
        }
        let pick = |flag: &Option<String>, file: Option<String>, variable: &str, option: &str| {
            let said = |text: &String| !text.is_empty();
            let environment = std::env::var(variable).ok().filter(said);
            let flag = flag.clone().filter(said);
            let file = file.filter(said);
            // The contract's order surprises: who exports a key expects it to be used.
            if flag.is_none() && file.is_some() && environment.is_some() && file != environment {
                say(&format!(
                    "Warning: {variable} is not used, the configuration file says something else; \
                     use {option}, or another file with BHATTI_CONFIG\n"
                ));
            }
            flag.or(file).or(environment)
        };
        let url = pick(&self.globals.url, endpoint.api_url, "BHATTI_URL", "--url");
        Target {
            url: url.unwrap_or_else(|| DEFAULT_URL.to_owned()),
            token: pick(&self.globals.token, endpoint.auth_token, "BHATTI_TOKEN", "--token"),
        }
    }

    /// The client, made once. Connects to nothing yet.
    pub(crate) fn client(&self) -> Result<&Client, Failure> {
        Ok(&self.connection()?.1)
    }

    /// The address as it was given.
    pub(crate) fn url(&self) -> Result<&str, Failure> {
        Ok(&self.connection()?.0)
    }

    fn connection(&self) -> Result<&(String, Client), Failure> {
        if let Some(connection) = self.connection.get() {
            return Ok(connection);
        }
        let target = self.target();
        let client = Client::new(&target.url, target.token.as_deref())?;
        let url = target.url.trim_end_matches('/').to_owned();
        Ok(self.connection.get_or_init(|| (url, client)))
    }

    /// The server's configuration, for commands that work on this host. A wrong file is fatal.
    pub(crate) fn config(&self) -> Result<Config, Failure> {
        let config = load(&self.places)
            .map_err(|error| Failure::text(format!("load config: {}", chain(&error))))?;
        for warning in &config.warnings {
            say(&format!("{warning}\n"));
        }
        Ok(config)
    }

    /// `--data-dir`, made absolute.
    pub(crate) fn data_dir_flag(&self) -> Result<Option<Utf8PathBuf>, Failure> {
        let Some(path) = &self.globals.data_dir else { return Ok(None) };
        let absolute = std::path::absolute(path)?;
        let absolute = Utf8PathBuf::from_path_buf(absolute)
            .map_err(|path| Failure::text(format!("{} is not UTF-8", path.display())))?;
        Ok(Some(absolute))
    }

    /// Runs one or more requests to their end.
    pub(crate) fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        let runtime = match self.runtime.get() {
            Some(runtime) => runtime,
            None => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                self.runtime.get_or_init(|| runtime)
            }
        };
        let result = runtime.block_on(work);
        self.pass_on_warning();
        self.check_gate();
        Ok(result)
    }

    /// Runs a request whose failure is the command's.
    pub(crate) fn call<T>(
        &self,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, Failure> {
        Ok(self.wait(work)??)
    }

    /// Runs a request about one sandbox.
    pub(crate) fn call_about<T>(
        &self,
        sandbox: &str,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, Failure> {
        self.wait(work)?.map_err(|error| Failure::about(sandbox, error))
    }

    /// Says what the server has warned of. To be called as soon as its answer has begun, where
    /// that takes a while.
    pub(crate) fn pass_on_warning(&self) {
        let Some((_, client)) = self.connection.get() else { return };
        if let Some(warning) = client.take_warning() {
            say(&format!("Warning: {warning}\n"));
        }
    }

    /// Says once that the server wants newer clients.
    fn check_gate(&self) {
        let Some((_, client)) = self.connection.get() else { return };
        let Some(minimum) = client.server().min_cli else { return };
        if !self.gate_checked.replace(true)
            && let Some(warning) = output::outdated(env!("CARGO_PKG_VERSION"), &minimum)
        {
            say(&warning);
        }
    }

    /// Prints a result: `value` with `--json`, `text` without.
    pub(crate) fn print(&self, value: &impl Serialize, text: &str) -> Result<(), Failure> {
        if self.globals.json {
            self.write(to_json_pretty(value).as_bytes())
        } else {
            self.write(text.as_bytes())
        }
    }

    /// Writes to stdout at once.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        flush_to(std::io::stdout().lock(), bytes)
    }

    /// Writes to stderr at once; for a guest's stderr, whose loss is a failure.
    pub(crate) fn write_error(&self, bytes: &[u8]) -> Result<(), Failure> {
        flush_to(std::io::stderr().lock(), bytes)
    }

    /// A remark on stderr.
    pub(crate) fn say(&self, text: &str) {
        say(text);
    }

    pub(crate) fn stdout_is_terminal(&self) -> bool {
        std::io::stdout().is_terminal()
    }

    pub(crate) fn stderr_is_terminal(&self) -> bool {
        std::io::stderr().is_terminal()
    }

    /// `--timing`, after everything else.
    pub(crate) fn report_timing(&self) {
        if self.globals.timing {
            let last = self.connection.get().and_then(|(_, client)| client.timing());
            say(&output::timing(last));
        }
    }
}

/// Writes to one of our streams at once.
pub(crate) fn flush_to(mut stream: impl Write + AsFd, bytes: &[u8]) -> Result<(), Failure> {
    match write_all(&mut stream, bytes) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::ClosedPipe),
        Err(error) => Err(Failure::caused("write output", &error)),
    }
}

/// Our streams are others' too, and one of those may have made them non-blocking.
fn write_all(stream: &mut (impl Write + AsFd), mut bytes: &[u8]) -> io::Result<()> {
    loop {
        let all = bytes.is_empty();
        let written = if all { stream.flush().map(|()| 0) } else { stream.write(bytes) };
        match written {
            Ok(_) if all => return Ok(()),
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => wait_if_not_ready(stream, PollFlags::POLLOUT, error)?,
        }
    }
}

/// Waits for a stream that is not ready. Any other error is one.
pub(crate) fn wait_if_not_ready(
    stream: &impl AsFd,
    wanted: PollFlags,
    error: io::Error,
) -> io::Result<()> {
    if error.kind() != io::ErrorKind::WouldBlock {
        return Err(error);
    }
    match poll(&mut [PollFd::new(stream.as_fd(), wanted)], PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
