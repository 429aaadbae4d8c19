//! `ssh` and `scp` to a real server in a guest, over `bhatti forward --stdio`, as the page about it says.
//!
//! The server is this host's dropbear, with what it is linked with beyond libc: the image is of the
//! host's release, and the guest needs no network.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use bhatti_testkit::{TestDaemon, on_fresh_host, wait_for};
use camino::{Utf8Path, Utf8PathBuf};

use crate::files::noise;
use crate::shell_screen::Screen;

/// Where the configuration of ssh is that people copy.
const PAGE: &str = include_str!("../../../docs/publishing.md");

/// Starts a server on `127.0.0.1:22` of a sandbox: the programs, a key of its own, and ours.
const START: &str = "
set -e
cd /tmp/server
sudo install -m 755 sftp-server /usr/lib/sftp-server
install -d -m 700 ~/.ssh
install -m 600 id.pub ~/.ssh/authorized_keys
exec sudo env LD_LIBRARY_PATH=$PWD $PWD/dropbear -F -E -r $PWD/host -p 127.0.0.1:22
";

#[track_caller]
fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output();
    let out = out.unwrap_or_else(|error| panic!("{program} ({error}): scripts/bootstrap --tests"));
    assert!(out.status.success(), "{program} {args:?}: {out:?}");
    String::from_utf8(out.stdout).expect("text")
}

/// A client that may get in to `dev`, where a server runs.
struct Client<'a> {
    daemon: &'a TestDaemon,
    dir: Utf8PathBuf,
    config: Utf8PathBuf,
}

impl<'a> Client<'a> {
    fn prepare(daemon: &'a TestDaemon) -> Self {
        let dir = daemon.scratch_path().join("ssh");
        let server = dir.join("server");
        std::fs::create_dir_all(&server).expect("a directory");
        for program in ["/usr/sbin/dropbear", "/usr/lib/openssh/sftp-server"] {
            let linked = run("ldd", &[program]);
            let files = linked.split_whitespace().filter(|word| word.starts_with('/'));
            for file in files.chain([program]) {
                let name = Utf8Path::new(file).file_name().expect("it has one");
                if !name.starts_with("libc.") && !name.starts_with("ld-") {
                    std::fs::copy(file, server.join(name)).expect("it is there");
                }
            }
        }
        let (host, id) = (server.join("host"), dir.join("id"));
        run("dropbearkey", &["-t", "ed25519", "-f", host.as_str()]);
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", id.as_str()]);
        std::fs::copy(dir.join("id.pub"), server.join("id.pub")).expect("it was just made");
        daemon.cli(&["cp", server.as_str(), "dev:/tmp/server"]).ok();
        daemon.cli(&["exec", "dev", "--detach", "--", "sh", "-c", START]).ok();
        wait_for("it listens", || {
            let ports = daemon.json(&["ports", "dev"]);
            let mut ports = ports.as_array().expect("a list").iter();
            ports.any(|port| port["container_port"] == 22).then_some(())
        });
        let config = dir.join("config");
        let known = dir.join("known_hosts");
        let (_, written) = PAGE.split_once("```\nHost dev\n").expect("it is on the page");
        let (written, _) = written.split_once("```").expect("it has an end");
        let own = format!(
            "Host dev\n{written}  IdentityFile {id}\n  IdentitiesOnly yes\n  \
             UserKnownHostsFile {known}\n  StrictHostKeyChecking accept-new\n  BatchMode yes\n"
        );
        std::fs::write(&config, own).expect("a file");
        Self { daemon, dir, config }
    }

    /// `ssh` or the like, with `bhatti` where it looks for programs.
    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        let bhatti = self.daemon.prepare(Some(self.daemon.admin()), &[]);
        for (key, value) in bhatti.get_envs() {
            command.env(key, value.expect("none is taken away"));
        }
        command.env("PATH", self.path()).args(["-F", self.config.as_str()]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn path(&self) -> String {
        let bhatti = self.daemon.prepare(None, &[]);
        let bhatti = Utf8Path::new(bhatti.get_program().to_str().expect("a UTF-8 path"));
        let path = std::env::var("PATH").expect("there is one");
        format!("{}:{path}", bhatti.parent().expect("a directory"))
    }

    #[track_caller]
    fn ssh(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = self.command("ssh", args).stdin(Stdio::piped()).spawn().expect("it starts");
        let mut stdin = child.stdin.take().expect("piped");
        std::thread::scope(|scope| {
            scope.spawn(move || stdin.write_all(input).expect("it is taken"));
            child.wait_with_output().expect("it ends")
        })
    }

    #[track_caller]
    fn scp(&self, args: &[&str]) {
        let out = self.command("scp", &[&["-q"], args].concat()).output().expect("it starts");
        assert!(out.status.success(), "{out:?}");
    }
}

#[test]
fn ssh_gets_in_as_the_page_says() {
    on_fresh_host(|| {
        let daemon = TestDaemon::start();
        daemon.cli(&["create", "--name", "dev", "--memory", "384"]).ok();
        let client = Client::prepare(&daemon);
        let ran = client.ssh(&["dev", "id -un; echo oops >&2; exit 7"], b"");
        assert_eq!(String::from_utf8_lossy(&ran.stdout), "lohar\n", "{ran:?}");
        assert!(ran.status.code() == Some(7), "{ran:?}");
        assert!(String::from_utf8_lossy(&ran.stderr).ends_with("oops\n"), "{ran:?}");
        let bytes = noise(1 << 20);
        let ran = client.ssh(&["dev", "cat"], &bytes);
        assert!(ran.stdout == bytes, "{} bytes: {:?}", ran.stdout.len(), ran.status);
        files_cross_both_ways(&client, &bytes);
        a_terminal_is_one(&client);
        // One that sleeps is woken, its server with it.
        daemon.cli(&["stop", "dev"]).ok();
        let ran = client.ssh(&["dev", "echo awake"], b"");
        assert_eq!(String::from_utf8_lossy(&ran.stdout), "awake\n", "{ran:?}");
        assert_eq!(daemon.unannounced_errors(), Vec::<String>::new());
    });
}

fn files_cross_both_ways(client: &Client<'_>, bytes: &[u8]) {
    let (there, back) = (client.dir.join("there"), client.dir.join("back"));
    std::fs::write(&there, bytes).expect("a file");
    client.scp(&[there.as_str(), "dev:/tmp/copied"]);
    client.scp(&["dev:/tmp/copied", back.as_str()]);
    assert!(std::fs::read(&back).expect("it was copied") == bytes);
}

/// With a size, which changes with ours.
fn a_terminal_is_one(client: &Client<'_>) {
    let (path, config) = (client.path(), &client.config);
    let screen = Screen::run(client.daemon, &format!("PATH='{path}' ssh -F {config} dev"));
    screen.wait_for_prompt();
    screen.line("echo $(tty)-$(stty size)");
    screen.wait_for("/dev/pts/0-24 80");
    screen.resize(40, 100);
    screen.line("until stty size | grep '40 100'; do sleep 0.1; done; echo si''zed");
    screen.wait_for("sized");
    screen.line("exit");
    screen.wait_until("it ends", |screen| screen.text().contains("closed"));
}
