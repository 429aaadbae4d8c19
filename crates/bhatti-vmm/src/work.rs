//! Small things every step of an engine needs: blocking work, errors about files.

use std::io;

use bhatti_engine::EngineError;
use camino::Utf8Path;

/// For `map_err`, on an operation on `path`.
pub fn file_error(action: &'static str, path: &Utf8Path) -> impl Fn(io::Error) -> EngineError {
    move |source| EngineError::File { action, path: path.to_owned(), source }
}

/// Runs what blocks for longer than a moment away from the event loop.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(EngineError::Gone), // the runtime is going down
        },
    }
}
