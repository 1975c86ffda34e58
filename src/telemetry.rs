//! Logs: text or JSON lines on stderr. Only lines of this crate are printed, so that no other crate prints
//! secrets.
//!
//! One thread writes the lines in their order. A reader that stops reading loses lines and never blocks the
//! process; a later line has the number of lost lines.

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

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The least severe line that is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(LevelFilter);

/// The handle that changes the level.
type Handle = reload::Handle<Targets, Registry>;

static HANDLE: OnceLock<Handle> = OnceLock::new();

/// The thread of log lines; `None` inside when the thread could not be started.
static LINES: OnceLock<Option<Lines>> = OnceLock::new();
/// The number of log lines that were dropped, because too many were waiting.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// A thread that writes lines, so that a slow reader delays no other thread.
pub struct Lines {
    /// The sender; absent after the last line.
    lines: Mutex<Option<SyncSender<Vec<u8>>>>,
    ended: Mutex<Receiver<()>>,
}

/// A value of `main`, whose drop writes the waiting log lines, after a panic too.
pub struct LastWords;

/// The writer that hands log lines to the thread.
struct Stderr;

/// Lines that wait to be written, at most.
const WAITING_LINES_MAX: usize = 4096;
/// The bound of writing the last lines when the process ends.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);

// === impl Lines ===

impl Lines {
    /// Starts a thread that calls `write` for each line, and `caught_up` whenever no line waits.
    fn start(
        name: &str,
        mut write: impl FnMut(&[u8]) + Send + 'static,
        mut caught_up: impl FnMut() + Send + 'static,
    ) -> io::Result<Self> {
        let (lines, waiting) = sync_channel::<Vec<u8>>(WAITING_LINES_MAX);
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

    /// Lines for stdout, by a thread called `name`.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn to_stdout(name: &str) -> io::Result<Self> {
        let write = |line: &[u8]| {
            let mut out = io::stdout().lock();
            // A closed pipe loses lines, not the server.
            let _ = out.write_all(line).and_then(|()| out.flush());
        };
        Self::start(name, write, || {})
    }

    /// Hands a line to the thread, without waiting.
    ///
    /// # Errors
    /// `Full` when 4096 lines wait already, `Disconnected` after the last line.
    pub fn send(&self, line: Vec<u8>) -> Result<(), TrySendError<Vec<u8>>> {
        match &*lock(&self.lines) {
            Some(lines) => lines.try_send(line),
            None => Err(TrySendError::Disconnected(line)),
        }
    }

    /// Ends the thread, and waits up to 1 s until all lines are written.
    fn close(&self) {
        // The thread ends when the sender is gone.
        let last = lock(&self.lines).take();
        drop(last);
        let _ = lock(&self.ended).recv_timeout(LAST_LINES_TIMEOUT);
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
    /// Takes a whole line, because the formatter writes an event in one call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match LINES.get() {
            Some(Some(lines)) => match lines.send(line.to_vec()) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => {
                    DROPPED.fetch_add(1, Ordering::Relaxed);
                }
                // The thread has ended with the process, so a slow reader delays only the end.
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
    // A closed pipe loses lines, not the process.
    let _ = io::stderr().lock().write_all(line);
}

/// The thread of log lines, which reports dropped lines once no line waits.
fn log_thread() -> Option<Lines> {
    let mut reported = 0;
    let report = move || {
        let dropped = DROPPED.load(Ordering::Relaxed);
        if dropped > reported {
            reported = dropped;
            tracing::error!("{dropped} log lines were not written: nobody reads standard error fast enough");
        }
    };
    let lines = Lines::start("log", to_stderr, report);
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
    /// A level in the numbers of Go's `slog`: DEBUG is -4, INFO 0, WARN 4, ERROR 8. Above 8 nothing is
    /// printed.
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
/// The caller holds [`LastWords`] until the process ends.
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

/// Changes the level of later lines.
pub fn set_level(level: Level) {
    if let Some(handle) = HANDLE.get() {
        let _ = handle.reload(targets(level));
    }
}

fn targets(level: Level) -> Targets {
    Targets::new().with_target("keswarden", level.0)
}
