//! Finds the program a command means, as a shell would, in the command's own `PATH`.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// There is nothing to run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    #[error("exec: {name:?}: not found in PATH")]
    NotInPath { name: String },
    #[error("exec: {name:?}: no such file")]
    Missing { name: String },
    #[error("exec: {name:?}: permission denied")]
    NotExecutable { name: String },
}

/// The file `name` stands for. A name with a slash is a path, relative to `cwd`.
///
/// Permission is not decided here: the kernel decides when the user's process executes it.
pub fn find_program(name: &str, path: &str, cwd: &Path) -> Result<PathBuf, FindError> {
    let owned = || name.to_owned();
    if name.contains('/') {
        let program = cwd.join(name);
        return match kind(&program) {
            Kind::Executable => Ok(program),
            Kind::Other => Err(FindError::NotExecutable { name: owned() }),
            Kind::Missing => Err(FindError::Missing { name: owned() }),
        };
    }
    let mut denied = false;
    for directory in path.split(':').filter(|_| !name.is_empty()) {
        // An empty entry means the working directory, by tradition.
        let program = cwd.join(directory).join(name);
        match kind(&program) {
            Kind::Executable => return Ok(program),
            Kind::Other => denied = true,
            Kind::Missing => {}
        }
    }
    if denied {
        return Err(FindError::NotExecutable { name: owned() });
    }
    Err(FindError::NotInPath { name: owned() })
}

enum Kind {
    Executable,
    Other,
    Missing,
}

fn kind(program: &Path) -> Kind {
    match std::fs::metadata(program) {
        Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => Kind::Executable,
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Kind::Missing
        }
        Ok(_) | Err(_) => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_as_a_shell_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        for (sub, name, mode) in
            [("a", "data", 0o644), ("b", "data", 0o755), ("b", "tool", 0o755), ("a", "only", 0o600)]
        {
            std::fs::create_dir_all(dir.path().join(sub)).unwrap();
            let file = dir.path().join(sub).join(name);
            std::fs::write(&file, "").unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        std::fs::create_dir(dir.path().join("a/tool")).unwrap();
        let (cwd, root) = (dir.path(), dir.path().display());
        let path = format!("/no/such:{root}/a:{root}/b");
        let find = |name: &str| find_program(name, &path, cwd);
        let message = |name: &str| find(name).unwrap_err().to_string();

        assert_eq!(find("data").unwrap(), cwd.join("b/data"), "skips one it cannot execute");
        assert_eq!(find("tool").unwrap(), cwd.join("b/tool"), "skips a directory");
        assert_eq!(
            find("b/tool").unwrap(),
            cwd.join("b/tool"),
            "relative to the working directory"
        );
        assert_eq!(message("foo"), "exec: \"foo\": not found in PATH");
        assert_eq!(message(""), "exec: \"\": not found in PATH");
        assert_eq!(message("only"), "exec: \"only\": permission denied");
        assert_eq!(message("./a/data"), "exec: \"./a/data\": permission denied");
        assert_eq!(message("/no/such"), "exec: \"/no/such\": no such file");
        assert_eq!(find_program("tool", "", &cwd.join("b")).unwrap(), cwd.join("b/tool"));
    }
}
