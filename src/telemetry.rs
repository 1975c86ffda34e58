//! Logs: text or JSON lines on stderr, of this crate only, so that no foreign crate ever prints what it saw.
//!
//! A thread of its own writes them, in their order: a reader that has stopped reading costs lines, of which a later line tells,
//! and never holds up anybody.

use std::{
    io::{self, Write},
    str::FromStr,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel},
    },
    time::Duration,
};
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

/// Log lines on their way to stderr; nothing where there is no thread for them.
static LINES: OnceLock<Option<Lines>> = OnceLock::new();
/// Log lines that found no room.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// A thread that writes lines: what it waits for, nobody else does.
pub struct Lines {
    /// Gone once the last line is on its way.
    lines: Mutex<Option<SyncSender<Vec<u8>>>>,
    ended: Mutex<Receiver<()>>,
}

/// Held by `main`: what was logged last is written before the process ends, after a panic too.
pub struct LastWords;

/// Where a log line is handed over.
struct Stderr;

/// Lines that may wait to be written.
const WAITING: usize = 4096;
/// How long the last lines may take when everything ends.
const LAST: Duration = Duration::from_secs(1);

// === impl Lines ===

impl Lines {
    /// `write` is given a line at a time; `caught_up` hears whenever none waits.
    fn start(
        name: &str,
        mut write: impl FnMut(&[u8]) + Send + 'static,
        mut caught_up: impl FnMut() + Send + 'static,
    ) -> io::Result<Self> {
        let (lines, waiting) = sync_channel::<Vec<u8>>(WAITING);
        let (end, ended) = sync_channel(1);
        let work = move || {
            loop {
                let line = match waiting.try_recv() {
                    Err(TryRecvError::Empty) => {
                        caught_up();
                        waiting.recv().ok()
                    }
                    line => line.ok(),
                };
                let Some(line) = line else { break };
                write(&line);
            }
            caught_up();
            let _ = end.send(());
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(work)?;
        Ok(Self { lines: Mutex::new(Some(lines)), ended: Mutex::new(ended) })
    }

    /// Lines for standard output.
    pub fn to_stdout(name: &str) -> io::Result<Self> {
        let write = |line: &[u8]| {
            let mut out = io::stdout().lock();
            // A closed pipe loses lines, not the server.
            let _ = out.write_all(line).and_then(|()| out.flush());
        };
        Self::start(name, write, || {})
    }

    /// It is on its way, unless too many wait already, or the last one was sent.
    pub fn send(&self, line: Vec<u8>) -> Result<(), TrySendError<Vec<u8>>> {
        match &*lock(&self.lines) {
            Some(lines) => lines.try_send(line),
            None => Err(TrySendError::Disconnected(line)),
        }
    }

    /// No line follows: waits until all are written, but not for long.
    fn close(&self) {
        // The thread ends when the sender is gone.
        let last = lock(&self.lines).take();
        drop(last);
        let _ = lock(&self.ended).recv_timeout(LAST);
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.close();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl LastWords ===

impl Drop for LastWords {
    fn drop(&mut self) {
        if let Some(Some(lines)) = LINES.get() {
            lines.close();
        }
    }
}

// === impl Stderr ===

impl Write for Stderr {
    /// A whole line: the formatter writes an event at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match LINES.get() {
            Some(Some(lines)) => match lines.send(line.to_vec()) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => {
                    DROPPED.fetch_add(1, Ordering::Relaxed);
                }
                // After the last words nobody else is held up.
                Err(TrySendError::Disconnected(line)) => to_stderr(&line),
            },
            _ => to_stderr(line),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn to_stderr(line: &[u8]) {
    // A closed pipe loses lines, and nothing else.
    let _ = io::stderr().lock().write_all(line);
}

/// The thread of the log lines. It tells of those that were dropped once there is room again.
fn log_thread() -> Option<Lines> {
    let mut told = 0;
    let tell = move || {
        let dropped = DROPPED.load(Ordering::Relaxed);
        if dropped > told {
            told = dropped;
            tracing::error!("{dropped} log lines were not written: nobody reads standard error fast enough");
        }
    };
    let lines = Lines::start("log", to_stderr, tell);
    lines.inspect_err(|error| tracing::error!("log lines hold up who writes them: no thread: {error}")).ok()
}

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
///
/// Whoever calls it holds [`LastWords`].
pub fn init(format: Format, level: Level) {
    let (ours, handle) = reload::Layer::new(targets(level));
    let lines = tracing_subscriber::fmt::layer().with_writer(|| Stderr).with_target(false);
    let registry = tracing_subscriber::registry().with(ours);
    let begun = match format {
        Format::Text => registry.with(lines.with_ansi(false)).try_init(),
        Format::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    if begun.is_ok() {
        let _ = HANDLE.set(handle);
        let _ = LINES.get_or_init(log_thread);
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
