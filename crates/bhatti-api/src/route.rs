//! Paths and header names, spelled once.

/// `GET`: is anybody there. No authentication.
pub const HEALTH: &str = "/health";
/// `GET` list, `POST` create.
pub const SANDBOXES: &str = "/sandboxes";
/// `GET` list. Snapshots are made by [`checkpoint`].
pub const SNAPSHOTS: &str = "/snapshots";

/// `GET`: what listens in all sandboxes that are awake.
pub const PORTS: &str = "/ports";

/// The pages of web shells. No authentication: the token is said in the socket.
pub const WEB_SHELL: &str = "/_shell";

/// On every API response: the daemon's version.
pub const VERSION_HEADER: &str = "x-bhatti-version";
/// On a create that found an identical sandbox.
pub const EXISTING_HEADER: &str = "x-bhatti-existing";
/// On every response, if the server wants newer clients.
pub const MIN_CLI_HEADER: &str = "x-bhatti-min-cli";
/// On an answer to a use of a sandbox that lost something in waking for it: what it lost, in a
/// sentence of printable ASCII.
pub const WARNING_HEADER: &str = "x-bhatti-warning";
/// On an answer about a file: its size in bytes, its permission bits as four octal digits, and
/// whether it is a directory, `true` or `false`.
pub const FILE_SIZE_HEADER: &str = "x-file-size";
pub const FILE_MODE_HEADER: &str = "x-file-mode";
pub const FILE_IS_DIR_HEADER: &str = "x-file-isdir";
/// What an archive is.
pub const TAR: &str = "application/x-tar";
/// Asks `exec` to stream.
pub const NDJSON: &str = "application/x-ndjson";

/// What a forwarded connection becomes: the bytes of the program on the guest's port, as they are,
/// each direction to its half-close.
pub const FORWARD_PROTOCOL: &str = "bhatti-forward/1";

/// The largest JSON body, in bytes.
pub const MAX_JSON: usize = 1 << 20;
/// The largest body of a create, in bytes: it carries files as base64.
pub const MAX_CREATE: usize = 32 << 20;

/// `/sandboxes/:sandbox`, escaped.
pub fn sandbox(sandbox: &str) -> String {
    format!("{SANDBOXES}/{}", escape(sandbox))
}

/// `/sandboxes/:sandbox/exec`, escaped.
pub fn exec(sandbox: &str) -> String {
    format!("{SANDBOXES}/{}/exec", escape(sandbox))
}

/// `/sandboxes/:sandbox/exec/stream`, escaped: a WebSocket.
pub fn exec_stream(sandbox: &str) -> String {
    format!("{}/stream", exec(sandbox))
}

/// `/sandboxes/:sandbox/files?path=:path`, escaped; more of the query may be appended.
pub fn files(sandbox: &str, path: &str) -> String {
    format!("{SANDBOXES}/{}/files?path={}", escape(sandbox), escape(path))
}

/// `/sandboxes/:sandbox/archive?path=:path`, escaped.
pub fn archive(sandbox: &str, path: &str) -> String {
    format!("{SANDBOXES}/{}/archive?path={}", escape(sandbox), escape(path))
}

/// `/sandboxes/:sandbox/ports`, escaped.
pub fn ports(sandbox: &str) -> String {
    format!("{SANDBOXES}/{}/ports", escape(sandbox))
}

/// `/sandboxes/:sandbox/proxy/:port/`, escaped.
pub fn proxy(sandbox: &str, port: u16) -> String {
    format!("{SANDBOXES}/{}/proxy/{port}/", escape(sandbox))
}

/// `/sandboxes/:sandbox/forward/:port`, escaped. Asks for [`FORWARD_PROTOCOL`].
pub fn forward(sandbox: &str, port: u16) -> String {
    format!("{SANDBOXES}/{}/forward/{port}", escape(sandbox))
}

/// `/sandboxes/:sandbox/publish`, escaped.
pub fn publish(sandbox: &str) -> String {
    format!("{SANDBOXES}/{}/publish", escape(sandbox))
}

/// `/sandboxes/:sandbox/publish/:port`, escaped.
pub fn unpublish(sandbox: &str, port: u16) -> String {
    format!("{}/{port}", publish(sandbox))
}

/// `/sandboxes/:sandbox/ws`, escaped: a WebSocket on a terminal. See [`Terminal`].
pub fn terminal(sandbox: &str, which: Terminal<'_>) -> String {
    let path = format!("{SANDBOXES}/{}/ws", escape(sandbox));
    match which {
        Terminal::FreeOrNew => path,
        Terminal::New => format!("{path}?new=true"),
        Terminal::Named(session) => format!("{path}?session={}", escape(session)),
    }
}

/// Which terminal is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminal<'a> {
    /// The newest running one that nobody is attached to, or else a new one.
    FreeOrNew,
    New,
    /// This session, taken from whoever is attached.
    Named(&'a str),
}

/// `/sandboxes/:sandbox/sessions`, escaped.
pub fn sessions(sandbox: &str) -> String {
    format!("{SANDBOXES}/{}/sessions", escape(sandbox))
}

/// `/sandboxes/:sandbox/shell-token`, escaped.
pub fn shell_token(sandbox: &str) -> String {
    format!("{SANDBOXES}/{}/shell-token", escape(sandbox))
}

/// `/_shell/:id`, escaped.
pub fn web_shell(id: &str) -> String {
    format!("{WEB_SHELL}/{}", escape(id))
}

/// `/sandboxes/:sandbox/stop`, escaped.
pub fn stop(sandbox: &str) -> String {
    format!("{SANDBOXES}/{}/stop", escape(sandbox))
}

/// `/sandboxes/:sandbox/start`, escaped.
pub fn start(sandbox: &str) -> String {
    format!("{SANDBOXES}/{}/start", escape(sandbox))
}

/// `/sandboxes/:sandbox/checkpoint`, escaped.
pub fn checkpoint(sandbox: &str) -> String {
    format!("{SANDBOXES}/{}/checkpoint", escape(sandbox))
}

/// `/snapshots/:snapshot`, escaped.
pub fn snapshot(snapshot: &str) -> String {
    format!("{SNAPSHOTS}/{}", escape(snapshot))
}

/// `/snapshots/:snapshot/resume`, escaped.
pub fn resume(snapshot: &str) -> String {
    format!("{SNAPSHOTS}/{}/resume", escape(snapshot))
}

/// Percent-encodes everything but unreserved characters. A segment of dots only is encoded too:
/// it would be taken for a step up the path.
pub fn escape(segment: &str) -> String {
    let mut out = String::with_capacity(segment.len());
    let dots_only = segment.bytes().all(|byte| byte == b'.');
    for byte in segment.bytes() {
        let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        if plain && !dots_only {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn segments_are_escaped() {
        assert_eq!(super::exec("a/b c"), "/sandboxes/a%2Fb%20c/exec");
        assert_eq!(super::exec(".."), "/sandboxes/%2E%2E/exec");
        assert_eq!(super::resume("a/b"), "/snapshots/a%2Fb/resume");
        assert_eq!(super::exec("a.b"), "/sandboxes/a.b/exec");
    }
}
