//! The web shell: what opens it, and what is said in its socket besides terminal bytes.

use serde::{Deserialize, Serialize};

/// `POST /sandboxes/:s/shell-token`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShellToken {
    /// 64 lower-case hex digits, shown this once.
    pub token: String,
    /// The page with the token in its fragment. A server that knows no public name leaves the
    /// host out, `https:///_shell/…`: put in how you reached it.
    #[serde(default)]
    pub url: String,
}

/// A client's first message in the web shell's socket.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum WebShellHello {
    Auth {
        token: String,
        /// The session to go on with; empty for a new one. Whoever says nothing gets a new one
        /// and is not told which.
        session: Option<String>,
    },
}

/// What a server says in text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum WebShellNotice {
    /// The token was right. `status` is how the sandbox was before it is woken.
    Connected { sandbox: String, status: String },
    /// The shell is there. Only to those who asked for it.
    Session { session_id: String },
    /// The end.
    Error { error: String },
}
