//! A real Chromium without a window, driven over its debugging protocol.
//!
//! The protocol runs over a pair of pipes and not over a port: nothing else can connect, no
//! driver is between, and a browser whose test has died ends by itself.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

use bhatti_testkit::{deadline, wait_for};
use serde_json::{Value, json};

/// Chromium has the protocol on descriptors 3 and 4; a `Command` has only the first three.
const ON_PIPES: &str = r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null"#;

const FLAGS: [&str; 13] = [
    "--headless=new",
    "--remote-debugging-pipe",
    // Tests run as root.
    "--no-sandbox",
    // A container may have 64 MiB of it.
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-default-browser-check",
    "--no-first-run",
    "--password-store=basic",
];

/// What a page is looked at with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) touch: bool,
}

pub(crate) const DESK: Device = Device { width: 1000, height: 640, touch: false };
pub(crate) const PHONE: Device = Device { width: 390, height: 760, touch: true };

/// One browser with one tab.
pub(crate) struct Browser {
    child: Child,
    requests: ChildStdin,
    answers: Receiver<Value>,
    last: u64,
    tab: Option<String>,
    /// What the browser holds against the page.
    complaints: Vec<String>,
}

impl Browser {
    /// Starts one that keeps its files in `dir`.
    pub(crate) fn start(dir: &Path, device: Device) -> Self {
        Self::start_with(dir, device, &[])
    }

    /// The same with more flags.
    pub(crate) fn start_with(dir: &Path, device: Device, more: &[String]) -> Self {
        let profile = dir.join(format!("chromium-{}x{}", device.width, device.height));
        let log = std::fs::File::create(profile.with_extension("log")).expect("a log file");
        let mut child = Command::new("sh")
            .args(["-c", ON_PIPES, "chromium"])
            .args(FLAGS)
            .args(more)
            .arg(format!("--user-data-dir={}", profile.display()))
            .env("HOME", dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("sh starts");
        let requests = child.stdin.take().expect("piped");
        let stdout = child.stdout.take().expect("piped");
        let (found, answers) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(stdout).split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).expect("the browser says JSON");
                if found.send(message).is_err() {
                    return;
                }
            }
        });
        let complaints = Vec::new();
        let mut browser = Self { child, requests, answers, last: 0, tab: None, complaints };
        browser.open_tab(device);
        browser
    }

    fn open_tab(&mut self, device: Device) {
        let target = self.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = self.call("Target.attachToTarget", attach);
        self.tab = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Audits"] {
            self.call(&format!("{domain}.enable"), json!({}));
        }
        self.look_with(device);
        self.call("Emulation.setTouchEmulationEnabled", json!({ "enabled": device.touch }));
    }

    /// Makes the window as large as that.
    pub(crate) fn look_with(&mut self, device: Device) {
        let metrics = json!({
            "width": device.width,
            "height": device.height,
            "deviceScaleFactor": if device.touch { 2 } else { 1 },
            "mobile": device.touch,
        });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
    }

    pub(crate) fn open(&mut self, url: &str) {
        let answer = self.call("Page.navigate", json!({ "url": url }));
        assert_eq!(answer.get("errorText"), None, "{url}");
        self.wait("the page is there", "document.readyState === 'complete'");
    }

    pub(crate) fn reload(&mut self) {
        self.run("window.formerly = true");
        self.call("Page.reload", json!({}));
        self.wait("the page is new", "!window.formerly && document.readyState === 'complete'");
    }

    /// What a script in the page comes to.
    pub(crate) fn run(&mut self, script: &str) -> Value {
        let how = json!({ "expression": script, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", how);
        assert_eq!(answer.get("exceptionDetails"), None, "{script}");
        answer["result"]["value"].clone()
    }

    /// Waits until `script` comes to something that is not nothing.
    pub(crate) fn wait(&mut self, what: &str, script: &str) -> Value {
        wait_for(what, || {
            // A page that is just being left has no place to run a script in.
            let how = json!({ "expression": script, "returnByValue": true });
            let answer = self.try_call("Runtime.evaluate", how).ok()?;
            let value = answer["result"]["value"].clone();
            let nothing = value.is_null() || value == json!(false) || value == json!("");
            (answer.get("exceptionDetails").is_none() && !nothing).then_some(value)
        })
    }

    /// Waits until `text` is to be seen in `selector`.
    pub(crate) fn wait_for_text(&mut self, selector: &str, text: &str) {
        let shown = format!(
            "[...document.querySelectorAll({})].some(e => e.checkVisibility() \
             && e.textContent.includes({}))",
            json!(selector),
            json!(text)
        );
        self.wait(&format!("{text:?} is to be seen in {selector}"), &shown);
    }

    /// Types as on a keyboard; `\n` is Enter.
    pub(crate) fn type_keys(&mut self, text: &str) {
        for c in text.chars() {
            let key = match c {
                '\n' => json!({ "key": "Enter", "code": "Enter", "text": "\r",
                                "windowsVirtualKeyCode": 13 }),
                c => json!({ "key": c.to_string(), "text": c.to_string() }),
            };
            for kind in ["keyDown", "keyUp"] {
                let mut event = key.clone();
                event["type"] = json!(kind);
                self.call("Input.dispatchKeyEvent", event);
            }
        }
    }

    /// Taps or clicks the middle of the first element that `selector` finds.
    pub(crate) fn press(&mut self, selector: &str) {
        let middle = format!(
            "(() => {{ const b = document.querySelector({}).getBoundingClientRect(); \
             return [b.x + b.width / 2, b.y + b.height / 2]; }})()",
            json!(selector)
        );
        let middle = self.run(&middle);
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({ "type": kind, "x": middle[0], "y": middle[1],
                                "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// What the browser holds against the page since this was last asked: errors and warnings of
    /// scripts, what the page's policy refused, what could not be loaded.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        // Whatever was said before its answer has been heard after it.
        self.run("0");
        std::mem::take(&mut self.complaints)
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.try_call(method, params).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// Its answer; the error is its refusal, or why there is none. Does not panic: it is also asked by
    /// who is dropped in a panic.
    fn try_call(&mut self, method: &str, params: Value) -> Result<Value, Value> {
        self.last += 1;
        let mut request = json!({ "id": self.last, "method": method, "params": params });
        if let Some(tab) = &self.tab {
            request["sessionId"] = json!(tab);
        }
        let mut bytes = request.to_string().into_bytes();
        bytes.push(0);
        let written = self.requests.write_all(&bytes);
        written.map_err(|error| json!(format!("{error}; is chromium installed?")))?;
        let until = Instant::now() + deadline();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let message = match self.answers.recv_timeout(left) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => return Err(json!("no answer")),
                Err(RecvTimeoutError::Disconnected) => return Err(json!("the browser ended")),
            };
            if message["id"] == json!(self.last) {
                return match message.get("error") {
                    Some(error) => Err(error.clone()),
                    None => Ok(message["result"].clone()),
                };
            }
            self.complaints.extend(complaint(&message));
        }
    }
}

/// What an event of the browser is worth to a test.
fn complaint(event: &Value) -> Option<String> {
    let params = &event["params"];
    match event["method"].as_str()? {
        "Runtime.exceptionThrown" => Some(params["exceptionDetails"].to_string()),
        "Runtime.consoleAPICalled" => {
            let kind = params["type"].as_str()?;
            ["error", "warning", "assert"].contains(&kind).then(|| params["args"].to_string())
        }
        "Log.entryAdded" => {
            let entry = &params["entry"];
            let level = entry["level"].as_str()?;
            let line = format!("{}: {} {}", entry["source"], entry["text"], entry["url"]);
            ["error", "warning"].contains(&level).then_some(line)
        }
        "Audits.issueAdded" => {
            let issue = &params["issue"];
            (issue["code"] == "ContentSecurityPolicyIssue").then(|| issue.to_string())
        }
        _ => None,
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // One that has ended has nothing to show, and a panic here would be the end of all tests.
        if std::thread::panicking() && matches!(self.child.try_wait(), Ok(None)) {
            let how = json!({ "expression": "document.body.innerText", "returnByValue": true });
            let shown = self.try_call("Runtime.evaluate", how).unwrap_or_else(|error| error);
            let shown = shown["result"]["value"].as_str().unwrap_or_default();
            drop(writeln!(std::io::stderr(), "--- page ---\n{shown}"));
        }
        // It has ended by itself, or it does not matter any more how it does.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
