//! Logs: text or JSON lines on stderr, of this crate only, so that no foreign crate ever prints what it saw.

use std::str::FromStr;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// The least severe line that is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(tracing::Level);

// === impl Format ===

impl FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("is neither text nor json"),
        }
    }
}

// === impl Level ===

impl Default for Level {
    fn default() -> Self {
        Self(tracing::Level::INFO)
    }
}

impl FromStr for Level {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|_| "is none of error, warn, info, debug, trace")
    }
}

/// Sends this crate's log lines to stderr. Later calls change nothing.
pub fn init(format: Format, level: Level) {
    let ours = Targets::new().with_target("keswarden", level.0);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let registry = tracing_subscriber::registry().with(ours);
    let _ = match format {
        Format::Text => registry.with(lines.with_ansi(false)).try_init(),
        Format::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
}
