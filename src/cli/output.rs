//! The output and exit codes of client commands, for people and for programs.

use clap::ValueEnum;
use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

/// Why a command failed.
pub(super) enum Failure {
    /// The message after `Error: `; never has a secret in it.
    Because(String),
    /// No message: the person ended the command, or the output's reader is gone.
    Quiet,
}

/// The outcome of a command.
pub(super) type Outcome = Result<(), Failure>;

/// When to print in colour.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    Never,
    Always,
}

/// The exit code of a command that failed, as in KES.
pub(super) const FAILED: u8 = 1;
/// The exit code after the usage was printed, as in KES.
pub(super) const USAGE: u8 = 2;

// Parameters of the terminal's SGR escape sequence.
pub(super) const BOLD: &str = "1";
pub(super) const RED: &str = "31";
pub(super) const GREEN: &str = "32";

// === impl Failure ===

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self::Because(reason)
    }
}

impl From<&str> for Failure {
    fn from(reason: &str) -> Self {
        Self::Because(reason.to_owned())
    }
}

/// The exit code of an outcome, whose message is printed on stderr.
pub(super) fn code_of(outcome: Outcome) -> u8 {
    match outcome {
        Ok(()) => crate::exit::DONE,
        Err(Failure::Quiet) => FAILED,
        Err(Failure::Because(reason)) => {
            say(&format!("Error: {reason}\n"));
            FAILED
        }
    }
}

/// Prints a text on stderr. A failure to print changes nothing.
pub(super) fn say(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Whether stdout is a terminal. Stderr may be one while a program reads stdout.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Prints a text on stdout, unchanged.
pub(super) fn print(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::Quiet,
        _ => Failure::Because(format!("cannot print: {error}")),
    })
}

/// Prints a value as one line of JSON.
pub(super) fn print_json(value: &impl serde::Serialize) -> Outcome {
    print(&format!("{}\n", to_json(value)?))
}

/// A value as compact JSON, without a line end.
pub(super) fn to_json(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|_| Failure::from("the answer cannot be written as JSON"))
}

/// Prints a text, with a line end on a terminal only.
pub(super) fn print_bare(text: &str) -> Outcome {
    print(&format!("{text}{}", if is_terminal() { "\n" } else { "" }))
}

/// Prints a header and the names, or nothing when there are none; as JSON one array, or `null` when there are
/// none.
pub(super) fn print_names(header: &str, names: &[String], json: bool, color: Color) -> Outcome {
    match (json, names) {
        (true, []) => print("null\n"),
        (true, names) => print_json(&names),
        (false, []) => Ok(()),
        (false, names) => {
            let lines: String = names.iter().map(|name| format!("{}\n", plain(name))).collect();
            print(&format!("{}\n{lines}", color.paint(BOLD, header)))
        }
    }
}

/// Labels and values in two columns; no line end after the last line.
pub(super) fn columns(rows: &[(&str, String)], color: Color) -> String {
    let width = rows.iter().map(|(label, _)| label.len()).max().unwrap_or_default() + 2;
    let line = |(label, value): &(&str, String)| {
        let label = color.paint(BOLD, &format!("{label:<width$}"));
        format!("{label}{}", plain(value))
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A server's text without control characters, which a terminal would obey.
pub(super) fn plain(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).collect()
}

/// A server's time (RFC 3339), to the second, in the time zone of the server's text.
pub(super) fn date(sent: &str) -> String {
    sent.chars().take(19).map(|character| if character == 'T' { ' ' } else { character }).collect()
}

/// A number of bytes for people.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (count as f64, "B");
    for larger in UNITS {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") }
}

/// A duration of the command line, as Go writes one.
///
/// # Errors
/// What a duration looks like, when the text is none.
pub(super) fn go_duration(text: &str) -> Result<Duration, String> {
    let parsed = crate::go::duration::parse(text);
    parsed.ok_or_else(|| "no duration: write for example 500ms, 5s, 1.5h or 5m0s".to_owned())
}

// === impl Color ===

impl Color {
    /// The text in a style, where colour is on.
    pub(super) fn paint(self, style: &str, text: &str) -> String {
        let painted = match self {
            Self::Never => false,
            Self::Always => true,
            Self::Auto => is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()),
        };
        if painted { format!("\x1b[{style}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_hold_no_escapes() {
        let rows = [("Name", "my-key".to_owned()), ("Algorithm", "AES\x1b[31m256".to_owned())];
        assert_eq!(columns(&rows, Color::Never), "Name       my-key\nAlgorithm  AES[31m256");
        assert_eq!(date("2026-11-23T09:18:27.621Z"), "2026-11-23 09:18:27");
    }
}
