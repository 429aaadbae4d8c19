//! Logs: one JSON object a line on stdout, level from `BHATTI_LOG_LEVEL`.

use tracing::level_filters::LevelFilter;

/// Starts logging. Called once, by the process, never by a library user.
pub(crate) fn init() {
    let (level, unknown) = match std::env::var("BHATTI_LOG_LEVEL") {
        Ok(text) => match level(&text) {
            Some(level) => (level, None),
            None => (LevelFilter::INFO, Some(text)),
        },
        Err(_) => (LevelFilter::INFO, None),
    };
    tracing_subscriber::fmt().json().with_max_level(level).with_target(false).init();
    if let Some(text) = unknown {
        tracing::warn!(
            value = text,
            "BHATTI_LOG_LEVEL is not one of debug, info, warn, error; using info"
        );
    }
}

fn level(text: &str) -> Option<LevelFilter> {
    match text.to_ascii_lowercase().as_str() {
        "debug" => Some(LevelFilter::DEBUG),
        "" | "info" => Some(LevelFilter::INFO),
        "warn" => Some(LevelFilter::WARN),
        "error" => Some(LevelFilter::ERROR),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_in_any_case() {
        assert_eq!(level("DEBUG"), Some(LevelFilter::DEBUG));
        assert_eq!(level("warn"), Some(LevelFilter::WARN));
        assert_eq!(level("loud"), None);
    }
}
