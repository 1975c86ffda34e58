//! Processes: started, watched, signalled, and never left behind.

use super::{Look, SOON, eventually, text};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Seek, Write},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A running process, its output in a file. Killed when dropped.
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

/// A process that holds something until dropped: it prints `holding` once it does.
pub struct Holder(Child);

/// Pause between two looks at a command that is expected to end.
const TICK: Duration = Duration::from_millis(5);
/// How much of a log is told when something fails.
const TAIL: usize = 40;

/// Runs a command to its end, `input` on its stdin; panics at the deadline.
pub fn finish(command: &mut Command, input: &str, deadline: Duration) -> Output {
    let shown = shown(command);
    let mut files = [(); 3].map(|()| tempfile::tempfile().expect("a temporary file must open"));
    files[0].write_all(input.as_bytes()).expect("a temporary file must be written");
    files[0].rewind().expect("a temporary file must be rewound");
    let [stdin, stdout, stderr] = files.each_ref().map(handle);
    let mut child = command
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .unwrap_or_else(|error| panic!("{shown} must start: {error}"));
    let end = Instant::now() + deadline;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child must be waited for") {
            break status;
        }
        if Instant::now() >= end {
            let _ = child.kill();
            let _ = child.wait();
            panic!(
                "{shown} did not end within {deadline:?}: {}{}",
                content(&mut files[1]),
                content(&mut files[2])
            );
        }
        thread::sleep(TICK);
    };
    let [_, stdout, stderr] = files.each_mut().map(bytes);
    Output { status, stdout, stderr }
}

/// The stdout of a command that must have succeeded.
pub fn succeeded(what: &str, output: &Output) -> String {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{what} failed ({}): {out}{err}", output.status);
    out
}

/// A command that inherits nothing but the path, and has `home`, and state of its own below it, to itself.
pub(super) fn clean(program: impl AsRef<OsStr>, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", home);
    // The folder where a user's programs keep their state; root's would be the machine's own.
    command.env("XDG_STATE_HOME", home.join("state"));
    command
}

/// A command line without its environment, which holds secrets.
fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(OsStr::to_string_lossy));
    words.join(" ")
}

fn handle(file: &File) -> Stdio {
    file.try_clone().expect("a file handle must be cloned").into()
}

fn bytes(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().expect("a temporary file must be rewound");
    file.read_to_end(&mut bytes).expect("a temporary file must be read");
    bytes
}

fn content(file: &mut File) -> String {
    text(&bytes(file))
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

// === impl Holder ===

impl Holder {
    /// Python with these arguments; `what` names the thing that it is to hold.
    pub fn python(what: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        let mut command = Command::new("python3");
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("python3 must start: {error}"));
        let stdout = child.stdout.take().expect("its output is piped");
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        read.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(line, "holding\n", "{what} must be held");
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// === impl Process ===

impl Process {
    /// Starts a command with both its outputs in the file `log`.
    pub fn spawn(name: &str, mut command: Command, log: PathBuf) -> Self {
        let file =
            File::create(&log).unwrap_or_else(|error| panic!("{} must be made: {error}", log.display()));
        let shown = shown(&command);
        let child = command
            .stdin(Stdio::null())
            .stdout(handle(&file))
            .stderr(handle(&file))
            .spawn()
            .unwrap_or_else(|error| panic!("{shown} must start: {error}"));
        Self { name: name.to_owned(), log, child }
    }

    /// Starts a command with both its outputs in pipes that nobody reads yet.
    pub fn unread(name: &str, mut command: Command) -> Self {
        let shown = shown(&command);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{shown} must start: {error}"));
        Self { name: name.to_owned(), log: PathBuf::from("/dev/null"), child }
    }

    /// The pipe with what an unread process says on stderr.
    pub fn stderr(&mut self) -> ChildStderr {
        self.child.stderr.take().expect("nobody must have taken the pipe")
    }

    /// Everything it printed.
    pub fn log(&self) -> String {
        text(&fs::read(&self.log).unwrap_or_default())
    }

    /// The end of what it printed, for a panic.
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(TAIL)..];
        format!("--- the end of what {} printed:\n{}\n---", self.name, last.join("\n"))
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&mut self, signal: &str) {
        assert!(self.ended().is_none(), "{} ended before SIG{signal}\n{}", self.name, self.tail());
        let mut command = Command::new("sh");
        let line = format!("kill -s {signal} {}", self.child.id());
        succeeded(&line, &finish(command.arg("-c").arg(&line), "", SOON));
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The exit code, or 128 and the signal, once the process has ended.
    pub fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().expect("a child must be waited for").map(code)
    }

    /// Waits for the process's end.
    pub fn wait(&mut self, deadline: Duration) -> i32 {
        let what = format!("{} ends", self.name);
        eventually(deadline, &what, || match self.ended() {
            Some(code) => Ok(code),
            None => Err(self.tail()),
        })
    }

    /// Looks until the condition holds; panics, with the log, at the deadline or when the process ends before.
    pub fn until<L: Look>(
        &mut self,
        deadline: Duration,
        what: &str,
        mut look: impl FnMut() -> L,
    ) -> L::Value {
        let what = format!("{}: {what}", self.name);
        eventually(deadline, &what, || {
            let ended = self.ended();
            let seen = look().seen();
            seen.map_err(|state| {
                let state = format!("{state}\n{}", self.tail());
                assert!(ended.is_none(), "{what}: it ended with code {ended:?}; last seen: {state}");
                state
            })
        })
    }

    /// Waits until the log has these words.
    pub fn says(&mut self, deadline: Duration, words: &str) {
        let log = self.log.clone();
        self.until(deadline, &format!("says {words:?}"), || {
            text(&fs::read(&log).unwrap_or_default()).contains(words)
        });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
