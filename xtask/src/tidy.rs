//! stub
use anyhow::Result;
pub(crate) fn run() -> Result<()> {
    anyhow::bail!("tidy is not written yet")
}
