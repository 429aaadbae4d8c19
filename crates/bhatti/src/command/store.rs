//! The database of this host's daemon, for commands that open it directly.

use std::os::unix::fs::DirBuilderExt;

use bhatti_store::Store;
use camino::Utf8PathBuf;

use crate::context::Context;
use crate::failure::Failure;

/// Opens `<data_dir>/state.db`, making both if they are not there yet: users may be created
/// before the daemon's first start.
pub(super) fn open(context: &Context) -> Result<Store, Failure> {
    let data_dir = data_dir(context)?;
    let path = data_dir.join("state.db");
    let fail = |error: &dyn std::error::Error| Failure::caused(format!("open store {path}"), error);
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
        Err(error) => return Err(Failure::caused(format!("open store {path}"), &error)),
    }
    open(context)
}

fn data_dir(context: &Context) -> Result<Utf8PathBuf, Failure> {
    let flag = context.data_dir_flag()?;
    Ok(context.config()?.server(flag.as_deref()).data_dir)
}
