//! `bhatti setup`

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown, lchown};
use std::process::ExitCode;

use bhatti_client::Client;
use bhatti_types::Labels;
use camino::{Utf8Path, Utf8PathBuf};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use serde::Serialize;

use crate::context::{Context, Target};
use crate::failure::{Failure, chain};

/// What `--json` prints.
#[derive(Serialize)]
struct Saved<'a> {
    api_url: &'a str,
    path: &'a Utf8Path,
    sandboxes: usize,
    status: &'static str,
}

pub(crate) fn run(context: &Context) -> Result<ExitCode, Failure> {
    let flags = &context.globals;
    let interactive = flags.url.is_none() || flags.token.is_none();
    let url = match &flags.url {
        Some(url) => url.clone(),
        None => ask_url(context, context.target())?,
    };
    let url = with_scheme(&url);
    let token = match &flags.token {
        Some(token) => token.clone(),
        None => ask_token(context)?,
    };
    if token.is_empty() {
        return Err(Failure::text("API key is required (pass --token or enter at the prompt)"));
    }
    // Before anything is written: an address that is none would lock the user out.
    let client = Client::new(&url, Some(&token))?;
    let path = save(context, &url, &token)?;
    if !flags.json {
        context.write(format!("Saved to {path}\nTesting connection... ").as_bytes())?;
    }
    match context.wait(client.list(&Labels::new()))? {
        Ok(sandboxes) => {
            let count = sandboxes.len();
            let mut text = format!("✓ authenticated ({count} sandboxes)\n");
            if interactive {
                text.push_str(&completion_hint(|name| std::env::var(name).ok()));
            }
            let saved = Saved { api_url: &url, path: &path, sandboxes: count, status: "saved" };
            context.print(&saved, &text)?;
            Ok(ExitCode::SUCCESS)
        }
        // A person sees it and tries again; a script must be told.
        Err(error) if interactive && io::stdin().is_terminal() => {
            context.write(format!("✗ {}\n", chain(&error)).as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            if !flags.json {
                context.write(b"\n")?;
            }
            Err(Failure::caused("authentication failed", &error))
        }
    }
}

/// `host:port` means plain HTTP, as it does for a browser.
fn with_scheme(url: &str) -> String {
    let url = url.trim().trim_end_matches('/');
    if url.contains("://") { url.to_owned() } else { format!("http://{url}") }
}

fn ask_url(context: &Context, current: Target) -> Result<String, Failure> {
    context.say(&format!("API endpoint [{}]: ", current.url));
    let answer = read_line()?;
    Ok(if answer.is_empty() { current.url } else { answer })
}

fn ask_token(context: &Context) -> Result<String, Failure> {
    context.say("API key: ");
    let silence = Silence::begin()?;
    let answer = read_line()?;
    let was_silent = silence.is_some();
    drop(silence);
    if was_silent {
        // The Enter was not shown either.
        context.say("\n");
    }
    Ok(answer)
}

fn read_line() -> Result<String, Failure> {
    let mut line = String::new();
    io::stdin().lock().take(4096).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// The terminal does not show what is typed while this lives.
struct Silence(Termios);

impl Silence {
    /// `None`: stdin is no terminal, so nothing would be shown anyway.
    fn begin() -> Result<Option<Self>, Failure> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin.as_fd())?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(stdin.as_fd(), SetArg::TCSAFLUSH, &silent)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // A terminal that is gone needs no echo.
        tcsetattr(io::stdin().as_fd(), SetArg::TCSAFLUSH, &self.0).unwrap_or_default();
    }
}

/// Writes the file anew, readable by its user only, and theirs even under sudo.
fn save(context: &Context, url: &str, token: &str) -> Result<Utf8PathBuf, Failure> {
    let path = context.places.only.clone().unwrap_or_else(|| context.places.user());
    if let Some(key) = std::fs::read_to_string(&path).ok().as_deref().and_then(foreign_key) {
        return Err(Failure::text(format!(
            "{path} holds more than a login (key {key:?}) and would be overwritten; \
             add api_url and auth_token to it by hand, or unset BHATTI_CONFIG"
        )));
    }
    let text = format!("api_url: {}\nauth_token: {}\n", yaml(url), yaml(token));
    let owner = &context.invoker;
    let owner_ids = owner.via_sudo.then_some((owner.uid, owner.gid));
    write_private(&path, &text, owner_ids)
        .map_err(|error| Failure::caused(format!("write {path}"), &error))?;
    if owner.via_sudo {
        context.say(&format!(
            "note: you don't need sudo for `bhatti setup` —\n      \
             saved config for user {:?} so it works without sudo next time.\n",
            owner.name
        ));
    }
    Ok(path)
}

/// A top-level key of a configuration file that `setup` would not write back.
fn foreign_key(text: &str) -> Option<&str> {
    text.lines()
        .filter(|line| line.starts_with(|first: char| first.is_ascii_alphanumeric()))
        .filter_map(|line| line.split_once(':').map(|(key, _)| key))
        .find(|key| !matches!(*key, "api_url" | "auth_token"))
}

/// Text as a YAML value. A JSON string is one; plain ones stay readable.
fn yaml(text: &str) -> String {
    let plain = text.starts_with("http") || text.starts_with("bht_");
    let safe = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'/' | b'.' | b'-' | b'_');
    if plain && text.bytes().all(safe) && !text.ends_with(':') {
        text.to_owned()
    } else {
        serde_json::to_string(text).expect("text is always JSON")
    }
}

fn write_private(path: &Utf8Path, text: &str, owner: Option<(u32, u32)>) -> io::Result<()> {
    let dir = path.parent().ok_or_else(|| io::Error::other("not a file name"))?;
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {
            if let Some((uid, gid)) = owner {
                lchown(dir, Some(uid), Some(gid))?;
            }
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let fresh = path.with_extension(format!("tmp{}", std::process::id()));
    // `create_new` refuses a link somebody left there.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    let written = write_all(&mut file, text, owner).and_then(|()| std::fs::rename(&fresh, path));
    if written.is_err() {
        std::fs::remove_file(&fresh).unwrap_or_default();
    }
    written?;
    File::open(dir)?.sync_all()
}

fn write_all(file: &mut File, text: &str, owner: Option<(u32, u32)>) -> io::Result<()> {
    // The umask may have taken more away than group and others.
    file.set_permissions(Permissions::from_mode(0o600))?;
    if let Some((uid, gid)) = owner {
        fchown(&*file, Some(uid), Some(gid))?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// How to get completion in the shells this user seems to have.
fn completion_hint(environment: impl Fn(&str) -> Option<String>) -> String {
    let shell = environment("SHELL").unwrap_or_default();
    let mut lines = String::new();
    if shell.ends_with("zsh") {
        lines.push_str("  echo 'source <(bhatti completion zsh)' >> ~/.zshrc\n");
    } else if shell.ends_with("bash") {
        lines.push_str("  echo 'source <(bhatti completion bash)' >> ~/.bashrc\n");
    } else if shell.ends_with("fish") {
        lines.push_str("  bhatti completion fish > ~/.config/fish/completions/bhatti.fish\n");
    }
    if environment("PSModulePath").is_some() {
        lines.push_str("  bhatti completion powershell >> $PROFILE\n");
    }
    if lines.is_empty() { lines } else { format!("\nEnable completions:\n{lines}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_file_is_not_overwritten() {
        assert_eq!(foreign_key("api_url: x\nauth_token: y\n# listen: z\n"), None);
        assert_eq!(foreign_key("api_url: x\nlisten: :8080\n"), Some("listen"));
    }

    #[test]
    fn addresses_get_their_scheme() {
        assert_eq!(with_scheme(" host:8080/ "), "http://host:8080");
        assert_eq!(with_scheme("https://a.b//"), "https://a.b");
    }

    #[test]
    fn values_read_back_as_text() {
        assert_eq!(yaml("http://localhost:8080"), "http://localhost:8080");
        assert_eq!(yaml("bht_0a"), "bht_0a");
        for odd in ["12345", "true", "a: b", "bht_#x y", "http://x:"] {
            assert!(yaml(odd).starts_with('"'), "{odd}");
        }
    }

    #[test]
    fn the_hint_follows_the_shell() {
        let hint =
            |shell: &str| completion_hint(|name| (name == "SHELL").then(|| shell.to_owned()));
        assert_eq!(
            hint("/bin/bash"),
            "\nEnable completions:\n  echo 'source <(bhatti completion bash)' >> ~/.bashrc\n"
        );
        assert_eq!(hint("/bin/sh"), "");
    }
}
