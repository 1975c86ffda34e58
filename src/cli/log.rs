//! `keswarden log`: a server's audit or error log as it happens, until the server ends it.

use super::{
    client::{self, Client, Connection},
    output::{self, BOLD, Color, Failure, Outcome},
};
use clap::Args;
use serde_json::Value;

#[derive(Args)]
pub(super) struct Options {
    /// The audit log: what was asked, and by whom (this is what is followed when nothing is said)
    #[arg(long, conflicts_with = "error")]
    audit: bool,
    /// The error log
    #[arg(long)]
    error: bool,
    /// The records as the server sends them, one JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Bound of a record, in bytes: a server that sends no line end must not fill the memory.
const RECORD_MAX: usize = 1 << 20;
/// Digits of an identity in the table. The JSON has all of them.
const IDENTITY_DIGITS: usize = 16;

pub(super) fn main(options: Options) -> u8 {
    let Options { audit: _, error, json, connection } = options;
    client::with_client(&connection, |client| follow(client, error, json))
}

async fn follow(client: Client, error: bool, json: bool) -> Outcome {
    let (path, name) = if error { ("/v1/log/error", "error") } else { ("/v1/log/audit", "audit") };
    let failed = |reason: String| format!("failed to follow the {name} log: {reason}");
    let mut response = client.stream(path).await.map_err(failed)?;
    let show = |line: &[u8]| match (json, error) {
        (true, _) => output::print(&format!("{}\n", String::from_utf8_lossy(line))),
        (false, true) => output::print(&error_line(line)),
        (false, false) => output::print(&audit_line(line)),
    };
    if !json {
        let header = if error { "Message".to_owned() } else { columns(HEADER) };
        output::print(&format!("{}\n", Color::Auto.paint(BOLD, &header)))?;
    }
    let mut rest = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| failed(error.to_string()))? {
        rest.extend_from_slice(&chunk);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            show(&line[..end])?;
        }
        if rest.len() > RECORD_MAX {
            return Err(Failure::Because(failed("a record is longer than 1 MiB".to_owned())));
        }
    }
    if rest.is_empty() { Ok(()) } else { show(&rest) }
}

const HEADER: [&str; 6] = ["Time", "Code", "Took", "IP", "Identity", "Path"];

fn columns([time, code, took, ip, identity, path]: [&str; 6]) -> String {
    format!("{time:<19}  {code:<4}  {took:>8}  {ip:<15}  {identity:<IDENTITY_DIGITS$}  {path}")
}

/// A record in columns. A line that is no record is shown as received.
fn audit_line(line: &[u8]) -> String {
    let Ok(record) = serde_json::from_slice::<Value>(line) else { return as_received(line) };
    let (request, response) = (&record["request"], &record["response"]);
    let text = |value: &Value| output::plain(value.as_str().unwrap_or_default());
    let identity: String = text(&request["identity"]).chars().take(IDENTITY_DIGITS).collect();
    let took = response["time"].as_u64().map(|milliseconds| format!("{milliseconds}ms")).unwrap_or_default();
    let line = columns([
        &output::date(&text(&record["time"])),
        &response["code"].as_u64().unwrap_or_default().to_string(),
        &took,
        &text(&request["ip"]),
        &identity,
        &text(&request["path"]),
    ]);
    format!("{line}\n")
}

fn error_line(line: &[u8]) -> String {
    let record: Option<Value> = serde_json::from_slice(line).ok();
    match record.as_ref().and_then(|record| record["message"].as_str()) {
        Some(message) => format!("{}\n", output::plain(message.trim_end())),
        None => as_received(line),
    }
}

fn as_received(line: &[u8]) -> String {
    match output::plain(&String::from_utf8_lossy(line)) {
        empty if empty.is_empty() => empty,
        line => format!("{line}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_line_up_beneath_the_header() {
        let record = br#"{"time":"2026-11-23T09:18:27Z","request":{"ip":"127.0.0.1","path":"/v1/key/create/k","identity":"3ecfcdf38fcbe141ae26a1030f81e96b"},"response":{"code":200,"time":3}}"#;
        let line = audit_line(record);
        let header = columns(HEADER);
        assert!(line.starts_with("2026-11-23 09:18:27  200  "), "{line}");
        for (name, value) in
            [("IP", "127.0.0.1"), ("Identity", "3ecfcdf38fcbe141 "), ("Path", "/v1/key/create/k")]
        {
            assert_eq!(header.find(name), line.find(value), "{name}:\n{header}\n{line}");
        }
        assert_eq!(error_line(br#"{"message":"msg=x\n"}"#), "msg=x\n");
        assert_eq!(audit_line(b"nonsense"), "nonsense\n");
        assert_eq!(audit_line(b""), "");
    }
}
