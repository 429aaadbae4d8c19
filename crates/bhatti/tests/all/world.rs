//! A scratch home, a scripted API, and a way to run the program in them.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

/// What one run left behind.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Ran {
    /// All three at once, so that a failing test shows everything.
    pub(super) fn check(&self, code: i32, stdout: &str, stderr: &str) {
        let got = (self.code, self.stdout.as_str(), self.stderr.as_str());
        assert_eq!(got, (Some(code), stdout, stderr));
    }
}

/// One user's world.
pub(super) struct World {
    pub(super) dir: tempfile::TempDir,
    url: Option<String>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl World {
    /// Without an API.
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tmp")).unwrap();
        Self { dir, url: None, requests: Arc::default() }
    }

    /// With an API that gives these answers, one a request, each as `status`, extra headers and
    /// body.
    pub(super) fn with(answers: &[(&str, &str, &str)]) -> Self {
        let bytes = answers.iter().map(|(status, headers, body)| {
            let length = body.len();
            format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n{body}")
        });
        Self::with_bytes(bytes.map(String::into_bytes).collect(), Ending::KeepAlive)
    }

    /// With an API that gives these bytes.
    pub(super) fn with_bytes(answers: VecDeque<Vec<u8>>, ending: Ending) -> Self {
        let mut world = Self::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        world.url = Some(format!("http://{}", listener.local_addr().unwrap()));
        let answers = Arc::new(Mutex::new(answers));
        let requests = world.requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap(), &answers, &requests, ending);
            }
        });
        world
    }

    pub(super) fn url(&self) -> &str {
        self.url.as_deref().unwrap()
    }

    pub(super) fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// What the API was asked, as `METHOD path body`.
    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// The program with a clean environment.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bhatti"));
        command.args(args).env_clear().stdin(Stdio::null());
        command.env("HOME", self.dir.path()).env("TMPDIR", self.path("tmp"));
        if let Some(url) = &self.url {
            command.env("BHATTI_URL", url);
        }
        command
    }

    pub(super) fn run(&self, args: &[&str]) -> Ran {
        ran(&mut self.command(args))
    }

    /// The names completion knows.
    pub(super) fn cached(&self) -> String {
        let uid = std::os::unix::fs::MetadataExt::uid(&self.dir.path().metadata().unwrap());
        read(&self.path(&format!("tmp/bhatti-completions-{uid}")))
    }
}

pub(super) fn ran(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

pub(super) fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// What the API does after an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    KeepAlive,
    Close,
    /// Holds the connection open until the client leaves.
    Hold,
}

fn serve(
    stream: TcpStream,
    answers: &Mutex<VecDeque<Vec<u8>>>,
    requests: &Mutex<Vec<String>>,
    ending: Ending,
) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            match header.trim().split_once(": ") {
                None => break,
                Some(("content-length", value)) => length = value.parse().unwrap(),
                Some(_) => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let body = String::from_utf8(body).unwrap();
        let line = line.trim_end().trim_end_matches(" HTTP/1.1");
        requests.lock().unwrap().push(format!("{line} {body}").trim_end().to_owned());
        let answer = answers.lock().unwrap().pop_front().expect("an answer for every request");
        // A client that has left is what some tests are about.
        if reader.get_mut().write_all(&answer).is_err() {
            return;
        }
        match ending {
            Ending::KeepAlive => {}
            Ending::Close => return,
            Ending::Hold => {
                reader.read_to_end(&mut Vec::new()).unwrap_or_default();
                return;
            }
        }
    }
}
