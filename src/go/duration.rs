//! Durations as Go reads and prints them (`time.ParseDuration`, `time.Duration.String`), and as our own settings have them.

use std::time::Duration;

/// Nanoseconds of each of Go's units.
const UNITS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];
/// Nanoseconds of a day, which Go has no unit for.
const DAY: f64 = 86_400e9;

/// `300ms`, `1.5h`, `5m0s`, `-2s`, `0`, in nanoseconds. Absent when the text is no duration of Go's.
pub fn parse_signed(text: &str) -> Option<i64> {
    let (sign, rest) = match text.as_bytes().first()? {
        b'-' => (-1.0, &text[1..]),
        b'+' => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    let total = sum(rest, |unit| UNITS.iter().find(|(name, _)| *name == unit).map(|(_, length)| *length))?;
    (total < i64::MAX as f64).then(|| (sign * total).round() as i64)
}

/// As [`parse_signed`], for a duration that is not negative.
pub fn parse(text: &str) -> Option<Duration> {
    let nanoseconds = parse_signed(text).filter(|_| !text.starts_with('-'))?;
    Some(Duration::from_nanos(nanoseconds.unsigned_abs()))
}

/// As [`parse`], with days (`d`), without a sign, and with blanks around it: a setting of ours.
pub fn parse_setting(text: &str) -> Option<Duration> {
    let total = sum(text.trim(), |unit| match unit {
        "d" => Some(DAY),
        _ => UNITS.iter().find(|(name, _)| *name == unit).map(|(_, length)| *length),
    })?;
    Duration::try_from_secs_f64(total / 1e9).ok()
}

/// The sum of numbers with units, in nanoseconds; `0` needs no unit.
fn sum(text: &str, unit_of: impl Fn(&str) -> Option<f64>) -> Option<f64> {
    if text == "0" {
        return Some(0.0);
    }
    let is_number = |character: char| character.is_ascii_digit() || character == '.';
    let (mut total, mut rest) = (0.0, text);
    loop {
        let digits = rest.find(|character| !is_number(character))?;
        let end = rest[digits..].find(is_number).map_or(rest.len(), |at| digits + at);
        let number: f64 = rest[..digits].parse().ok()?;
        total += number * unit_of(&rest[digits..end])?;
        rest = &rest[end..];
        if rest.is_empty() {
            return Some(total);
        }
    }
}

/// A duration of at most some seconds as Go prints it, to the nanosecond: `1.5µs`, `12ms`, `2s`.
pub fn print(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos() as f64;
    match duration.as_nanos() {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanoseconds}ns"),
        1_000..1_000_000 => format!("{}µs", nanoseconds / 1e3),
        1_000_000..1_000_000_000 => format!("{}ms", nanoseconds / 1e6),
        _ => format!("{}s", nanoseconds / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, nanoseconds) in [
            ("300ms", 300_000_000),
            ("500ms", 500_000_000),
            ("5s", 5_000_000_000),
            ("1.5h", 5_400_000_000_000),
            ("5m0s", 300_000_000_000),
            ("-2s", -2_000_000_000),
            ("0", 0),
            ("1us", 1_000),
            ("1µs", 1_000),
            (".5s", 500_000_000),
        ] {
            assert_eq!(parse_signed(text), Some(nanoseconds), "{text}");
            let positive = u64::try_from(nanoseconds).ok().map(Duration::from_nanos);
            assert_eq!(parse(text), positive, "{text}");
        }
        for text in ["", "5", "1d", "5d", "s", ".s", "-", "+", "1 s", "1e3s", "9999999999h", "5m0", "5s5"] {
            assert_eq!((parse_signed(text), parse(text)), (None, None), "{text}");
        }
        assert_eq!(parse("-1s"), None);
    }

    #[test]
    fn durations_are_printed_as_go_prints_them() {
        for (nanoseconds, text) in
            [(0, "0s"), (12, "12ns"), (1_500, "1.5µs"), (1_020_309, "1.020309ms"), (2_000_000_000, "2s")]
        {
            assert_eq!(print(Duration::from_nanos(nanoseconds)), text);
        }
    }
}
