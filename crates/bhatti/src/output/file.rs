//! Files and ports.

use std::fmt::Write as _;

use bhatti_api::{FileInfo, Port};
use serde::Serialize;

/// One entry of `file ls --json`.
#[derive(Serialize)]
pub(crate) struct FileRow<'a> {
    name: &'a str,
    size: u64,
    is_dir: bool,
    mode: &'a str,
}

impl<'a> From<&'a FileInfo> for FileRow<'a> {
    fn from(file: &'a FileInfo) -> Self {
        Self { name: &file.name, size: file.size, is_dir: file.is_dir, mode: &file.mode }
    }
}

pub(crate) fn files(files: &[FileInfo]) -> String {
    let mut out = String::new();
    for FileInfo { name, size, mode, is_dir, .. } in files {
        let kind = if *is_dir { 'd' } else { '-' };
        writeln!(out, "{kind}{mode} {size:>8} {}", on_one_line(name))
            .expect("a String takes all text");
    }
    out
}

/// One port of `ports --json`.
#[derive(Serialize)]
pub(crate) struct PortRow<'a> {
    container_port: u16,
    proxy_url: &'a str,
}

impl<'a> From<&'a Port> for PortRow<'a> {
    fn from(port: &'a Port) -> Self {
        Self { container_port: port.container_port, proxy_url: &port.proxy_url }
    }
}

/// `url`: where the API is.
pub(crate) fn ports(url: &str, ports: &[Port]) -> String {
    if ports.is_empty() {
        return "No listening ports detected.\n".to_owned();
    }
    let mut out = format!("{:<8} {}\n", "PORT", "URL");
    for Port { container_port, proxy_url, .. } in ports {
        writeln!(out, "{container_port:<8} {url}{proxy_url}").expect("a String takes all text");
    }
    out
}

/// A text of a guest that can neither move the cursor nor pretend to be two lines.
pub(crate) fn on_one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_stand_in_columns() {
        assert_eq!(ports("http://x", &[]), "No listening ports detected.\n");
        let port = Port {
            sandbox_id: None,
            container_port: 3000,
            proxy_url: "/sandboxes/dev/proxy/3000/".to_owned(),
        };
        assert_eq!(
            ports("http://x:8080", std::slice::from_ref(&port)),
            "PORT     URL\n3000     http://x:8080/sandboxes/dev/proxy/3000/\n"
        );
        let row = serde_json::to_string(&PortRow::from(&port)).expect("JSON");
        assert_eq!(row, r#"{"container_port":3000,"proxy_url":"/sandboxes/dev/proxy/3000/"}"#);
    }

    #[test]
    fn files_stand_in_columns() {
        let file = |name: &str, size, is_dir| FileInfo {
            name: name.to_owned(),
            size,
            mode: "0644".to_owned(),
            is_dir,
            mtime: 0,
        };
        let listed = [file("app.js", 12, false), file("a\n\u{1b}[2Jb", 123_456_789, true)];
        assert_eq!(files(&listed), "-0644       12 app.js\nd0644 123456789 a??[2Jb\n");
        let row = serde_json::to_string(&FileRow::from(&listed[0])).expect("JSON");
        assert_eq!(row, r#"{"name":"app.js","size":12,"is_dir":false,"mode":"0644"}"#);
    }
}
