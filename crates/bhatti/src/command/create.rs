//! `bhatti create`

use std::fs::File;
use std::io::Read;
use std::process::ExitCode;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bhatti_api::{CreateSandbox, FileSpec, route};

use super::policy::PolicyArgs;
use super::size::megabytes;
use super::{interrupt, pairs, spinner};
use crate::context::Context;
use crate::failure::Failure;
use crate::output;

/// Create a new sandbox
///
/// The sandbox is ready when the command returns. An identical sandbox of that name is
/// returned as it is, so scripts can run this again.
#[derive(clap::Args, Debug)]
#[command(override_usage = "bhatti create [flags]")]
pub(crate) struct CreateArgs {
    /// Sandbox name (default: generated)
    #[arg(long)]
    name: Option<String>,
    /// Number of CPUs, may be fractional (default: 1)
    #[arg(long, value_name = "FLOAT", value_parser = finite)]
    cpus: Option<f64>,
    /// Memory in MB, or as 2GB (default: 1024)
    #[arg(long, value_name = "SIZE", value_parser = megabytes)]
    memory: Option<i64>,
    /// Disk size in MB, or as 20GB (default: the image's)
    #[arg(long, value_name = "SIZE", value_parser = megabytes)]
    disk_size: Option<i64>,
    /// Environment variables as K=V,K=V
    #[arg(long, value_name = "K=V")]
    env: Vec<String>,
    /// Script that runs at boot, as the session "init"
    #[arg(long, value_name = "SCRIPT")]
    init: Option<String>,
    /// Never pause it, even when idle
    #[arg(long)]
    keep_hot: bool,
    /// Use 2 MB pages: faster, but its memory is shared with nobody and every snapshot is full
    #[arg(long)]
    hugepages: bool,
    /// Image to start from (default: the server's)
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// Label as key=value (repeatable)
    #[arg(long, value_name = "K=V")]
    label: Vec<String>,
    /// Copy a local file into the sandbox, as local:guest (repeatable)
    #[arg(long, value_name = "LOCAL:GUEST")]
    file: Vec<String>,
    #[command(flatten)]
    policy: PolicyArgs,
}

pub(crate) fn run(context: &Context, args: &CreateArgs) -> Result<ExitCode, Failure> {
    let wanted = request(args)?;
    let client = context.client()?;
    interrupt::new_sandbox_goes_on(context, &wanted.name)?;
    let what = format!("creating {}", args.name.as_deref().unwrap_or("a sandbox"));
    let created = context.call(spinner::while_waiting(context, &what, client.create(&wanted)))?;
    context.cache.add(&created.sandbox.name);
    context.print(&created.sandbox, &output::created(&created))?;
    Ok(ExitCode::SUCCESS)
}

fn request(args: &CreateArgs) -> Result<CreateSandbox, Failure> {
    Ok(CreateSandbox {
        name: args.name.clone().unwrap_or_default(),
        image: args.image.clone().unwrap_or_default(),
        // Sent only when given, so that a template's own value can apply.
        cpus: args.cpus,
        // 0 has always meant the default.
        memory_mb: args.memory.filter(|memory| *memory != 0),
        disk_size_mb: args.disk_size.filter(|size| *size != 0),
        env: env(&args.env)?,
        init: args.init.clone().unwrap_or_default(),
        keep_hot: args.keep_hot.then_some(true),
        hugepages: args.hugepages.then_some(true),
        files: files(&args.file)?,
        labels: pairs::labels(&args.label)?,
        net_policy: args.policy.policy()?,
        ..CreateSandbox::default()
    })
}

/// No quoting here: a value cannot hold a comma, as documented. Better refused than lost.
fn env(values: &[String]) -> Result<std::collections::BTreeMap<String, String>, Failure> {
    values
        .iter()
        .flat_map(|value| value.split(','))
        .filter(|item| !item.is_empty())
        .map(|item| match item.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(Failure::text(format!(
                "invalid --env {item:?}: expected KEY=VALUE (a value cannot contain a comma)"
            ))),
        })
        .collect()
}

fn files(values: &[String]) -> Result<Vec<FileSpec>, Failure> {
    // Base64 makes four bytes of three, and the rest of the body needs some room too.
    let mut room = (route::MAX_CREATE - (64 << 10)) / 4 * 3;
    let mut specs = Vec::new();
    for value in pairs::split(values) {
        let (local, guest) = match value.split_once(':') {
            Some((local, guest)) if !local.is_empty() && !guest.is_empty() => (local, guest),
            _ => {
                let text =
                    format!("invalid --file format {value:?} (expected local_path:guest_path)");
                return Err(Failure::text(text));
            }
        };
        let content = read_file(local, room)?;
        room -= content.len();
        specs.push(FileSpec {
            guest_path: guest.to_owned(),
            content: BASE64_STANDARD.encode(&content),
            mode: String::new(),
        });
    }
    Ok(specs)
}

fn read_file(path: &str, room: usize) -> Result<Vec<u8>, Failure> {
    let fail = |error: std::io::Error| Failure::caused(format!("read file {path}"), &error);
    let mut content = Vec::new();
    let file = File::open(path).map_err(fail)?;
    file.take(room as u64 + 1).read_to_end(&mut content).map_err(fail)?;
    if content.len() > room {
        let most = route::MAX_CREATE / 4 * 3 / (1 << 20);
        return Err(Failure::text(format!(
            "read file {path}: all files together exceed {most} MiB"
        )));
    }
    Ok(content)
}

/// JSON has no other numbers: what is not finite would silently become the default.
fn finite(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        Ok(_) => Err("not a finite number".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse};

    fn body(flags: &[&str]) -> Result<String, String> {
        let argv = ["bhatti", "create"].iter().chain(flags).map(Into::into).collect::<Vec<_>>();
        let Some(Command::Create(args)) = parse(&argv).unwrap().command else { panic!("create") };
        match request(&args) {
            Ok(request) => Ok(bhatti_api::to_json(&request).trim_end().to_owned()),
            Err(Failure::Error { text, .. }) => Err(text),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_become_the_request() {
        assert_eq!(body(&[]).unwrap(), r#"{"name":""}"#);
        let wanted = r#"{"name":"dev","image":"browser","cpus":0.5,"memory_mb":512,"disk_size_mb":9,"env":{"A":"1","B":"x=y"},"init":"true","keep_hot":true,"hugepages":true,"labels":{"k":"v","l":""}}"#;
        let flags = [
            "--name=dev",
            "--image",
            "browser",
            "--cpus",
            "0.5",
            "--memory",
            "0.5GB",
            "--disk-size=9",
            "--env",
            "A=1,B=x=y",
            "--init",
            "true",
            "--keep-hot",
            "--hugepages",
            "--label",
            "k=v",
            "--label",
            "l=",
        ];
        assert_eq!(body(&flags).unwrap(), wanted);
        let flags =
            ["--egress=deny", "--allow-host=*.a.example,b.example", "--allow-cidr=10.0.0.1"];
        let wanted = r#"{"name":"","net_policy":{"default":"deny","allow_hosts":["*.a.example","b.example"],"allow_cidrs":["10.0.0.1"]}}"#;
        assert_eq!(body(&flags).unwrap(), wanted);
        assert_eq!(body(&["--memory", "0"]).unwrap(), r#"{"name":""}"#);
        assert_eq!(body(&["--name", "a", "--name", "b"]).unwrap(), r#"{"name":"b"}"#);
    }

    #[test]
    fn files_travel_as_base64() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"\xff\x00hi").unwrap();
        let flag = format!("{}:/etc/f", path.display());
        let wanted = r#"{"name":"","files":[{"guest_path":"/etc/f","content":"/wBoaQ=="}]}"#;
        assert_eq!(body(&["--file", &flag]).unwrap(), wanted);
    }

    #[test]
    fn bad_values_are_named() {
        for (flags, text) in [
            (
                ["--env", "A=1,2"],
                "invalid --env \"2\": expected KEY=VALUE (a value cannot contain a comma)",
            ),
            (["--label", "x"], "invalid --label \"x\": expected key=value"),
            (["--file", "/x"], "invalid --file format \"/x\" (expected local_path:guest_path)"),
            (
                ["--file", "/no/such:/g"],
                "read file /no/such: No such file or directory (os error 2)",
            ),
            (["--file", "/dev/zero:/g"], "read file /dev/zero: all files together exceed 24 MiB"),
        ] {
            assert_eq!(body(&flags).unwrap_err(), text);
        }
    }
}
