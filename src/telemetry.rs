//! Logs: text or JSON lines on stderr, of this crate only, so that no foreign crate ever prints what it saw.

use std::{str::FromStr, sync::OnceLock};
use tracing_subscriber::{
    Registry,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// The least severe line that is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(LevelFilter);

/// Changes the level of the lines that are printed.
type Handle = reload::Handle<Targets, Registry>;

static HANDLE: OnceLock<Handle> = OnceLock::new();

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
        Self(LevelFilter::INFO)
    }
}

impl Level {
    /// A level as Go's `slog` counts: DEBUG is -4, INFO 0, WARN 4, ERROR 8; above that nothing is printed.
    pub fn of_slog(level: i64) -> Self {
        Self(match level {
            ..=-4 => LevelFilter::DEBUG,
            -3..=0 => LevelFilter::INFO,
            1..=4 => LevelFilter::WARN,
            5..=8 => LevelFilter::ERROR,
            _ => LevelFilter::OFF,
        })
    }
}

impl FromStr for Level {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let level = text.parse::<tracing::Level>();
        level.map(|level| Self(level.into())).map_err(|_| "is none of error, warn, info, debug, trace")
    }
}

/// Sends this crate's log lines to stderr. Later calls change nothing.
pub fn init(format: Format, level: Level) {
    let (ours, handle) = reload::Layer::new(targets(level));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let registry = tracing_subscriber::registry().with(ours);
    let begun = match format {
        Format::Text => registry.with(lines.with_ansi(false)).try_init(),
        Format::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    if begun.is_ok() {
        let _ = HANDLE.set(handle);
    }
}

/// Changes the level from now on.
pub fn set_level(level: Level) {
    if let Some(handle) = HANDLE.get() {
        let _ = handle.reload(targets(level));
    }
}

fn targets(level: Level) -> Targets {
    Targets::new().with_target("keswarden", level.0)
}
