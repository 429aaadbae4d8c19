//! The database of this host's daemon, for commands that open it directly.

use std::os::unix::fs::DirBuilderExt;

use bhatti_store::Store;
use camino::{Utf8Path, Utf8PathBuf};
use nix::unistd::geteuid;

use crate::context::Context;
use crate::failure::Failure;

/// Opens `<data_dir>/state.db`, making both if they are not there yet: users may be created
/// before the daemon's first start.
pub(super) fn open(context: &Context) -> Result<Store, Failure> {
    let data_dir = data_dir(context)?;
    let path = data_dir.join("state.db");
    let fail =
        |error: &(dyn std::error::Error + 'static)| cannot_open(&path, error, geteuid().is_root());
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&data_dir)
        .map_err(|error| fail(&error))?;
    Store::open(path.as_std_path()).map_err(|error| fail(&error))
}

/// The same for what asks about the past: without a database there is none.
pub(super) fn open_existing(context: &Context) -> Result<Store, Failure> {
    let path = data_dir(context)?.join("state.db");
    match path.try_exists() {
        Ok(true) => {}
        Ok(false) => {
            return Err(Failure::text(format!(
                "no database at {path}: run this on the daemon's host, or name its data directory \
                 with --data-dir"
            )));
        }
        Err(error) => return Err(cannot_open(&path, &error, geteuid().is_root())),
    }
    open(context)
}

/// The database is root's, and most who may not read it have only forgotten sudo.
fn cannot_open(
    path: &Utf8Path,
    error: &(dyn std::error::Error + 'static),
    is_root: bool,
) -> Failure {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let forbidden = causes.any(|cause| {
        let cause = cause.downcast_ref::<std::io::Error>();
        cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::PermissionDenied)
    });
    if forbidden && !is_root {
        let text = "permission denied; the daemon's database is for root: run this with sudo";
        return Failure::text(format!("open store {path}: {text}"));
    }
    Failure::caused(format!("open store {path}"), error)
}

fn data_dir(context: &Context) -> Result<Utf8PathBuf, Failure> {
    let flag = context.data_dir_flag()?;
    Ok(context.config()?.server(flag.as_deref()).data_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_forgot_sudo_is_told() {
        let path = Utf8Path::new("/d/state.db");
        let said = |error: std::io::Error, is_root| {
            let error = bhatti_store::StoreError::File { path: path.into(), source: error };
            match cannot_open(path, &error, is_root) {
                Failure::Error { text, .. } => text,
                other => panic!("{other:?}"),
            }
        };
        let denied = || std::io::ErrorKind::PermissionDenied.into();
        let wanted = "open store /d/state.db: permission denied; the daemon's database is for root: \
                      run this with sudo";
        assert_eq!(said(denied(), false), wanted);
        assert!(!said(denied(), true).contains("sudo"), "it would not help root");
        assert!(!said(std::io::ErrorKind::NotFound.into(), false).contains("sudo"));
    }
}
