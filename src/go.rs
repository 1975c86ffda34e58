//! Go's habits, which KES's clients, files and answers have: JSON, durations, escapes, names of architectures.

pub mod duration;
pub mod json;

/// A JSON string, quotes included, with Go's escapes, which also cover `<`, `>`, `&`, U+2028 and U+2029 (`encoding/json`).
pub fn quoted(text: &str) -> String {
    let plain = serde_json::to_string(text).expect("text must encode");
    let mut escaped = String::with_capacity(plain.len());
    for character in plain.chars() {
        match character {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            other => escaped.push(other),
        }
    }
    escaped
}

/// The architecture of this machine under Go's name (`GOARCH`).
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
