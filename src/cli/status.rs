//! `keswarden status`: the status and the API of a server.

use super::{
    client::{self, Client, Connection},
    output::{self, BOLD, Color, GREEN, Outcome, RED},
};
use crate::clock::{self, Clock};
use clap::Args;
use serde_json::{Map, Value};
use std::time::Duration;

#[derive(Args)]
pub(super) struct Options {
    /// Only whether the server answers, and where
    #[arg(short, long)]
    short: bool,
    /// The routes of the API too
    #[arg(long)]
    api: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// When to use colour
    #[arg(long, value_enum, default_value_t = Color::Auto)]
    color: Color,
    #[command(flatten)]
    connection: Connection,
}

/// The parts to show, and their form.
struct Wanted {
    short: bool,
    api: bool,
    json: bool,
    color: Color,
}

pub(super) fn main(options: Options) -> u8 {
    let Options { short, api, json, color, connection } = options;
    let wanted = Wanted { short, api, json, color };
    client::with_client(&connection, |client| show(client, wanted))
}

async fn show(client: Client, wanted: Wanted) -> Outcome {
    let failed = |reason: String| format!("failed to fetch the server's status: {reason}");
    let clock = Clock::system();
    let started = clock.now();
    let answer = client.get("/v1/status").await.map_err(failed)?;
    let took = clock.now() - started;
    let mut status: Map<String, Value> = answer.json().map_err(failed)?;
    let routes = if wanted.api { routes(&client).await? } else { Vec::new() };
    if wanted.json {
        status.retain(|_, value| !is_zero(value));
        if wanted.api {
            status.insert("api".to_owned(), Value::from(routes));
        }
        return output::print_json(&status);
    }
    let mut text = head(&answer.server, &status, wanted.color);
    if !wanted.short {
        let rows = rows(&status, took);
        text.extend(output::columns(&rows, wanted.color).lines().map(|line| format!("  {line}\n")));
    }
    if wanted.api {
        text.push_str(&table(&routes, wanted.color));
    }
    output::print(&text)
}

/// The routes of the API, by path.
async fn routes(client: &Client) -> Result<Vec<Value>, String> {
    let failed = |reason: String| format!("failed to list the server's API: {reason}");
    let answer = client.get("/v1/api").await.map_err(failed)?;
    let mut routes: Vec<Value> = answer.json().map_err(failed)?;
    routes.sort_by(|one, other| one["path"].as_str().cmp(&other["path"].as_str()));
    Ok(routes)
}

/// Whether a value is zero or empty: KES leaves such members out.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(truth) => !truth,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn is_store_down(status: &Map<String, Value>) -> bool {
    ["keystore_unreachable", "keystore_unavailable"]
        .iter()
        .any(|name| status.get(*name).and_then(Value::as_bool).unwrap_or_default())
}

/// The line of the server, with a green dot while its key store can be reached.
fn head(server: &str, status: &Map<String, Value>, color: Color) -> String {
    let dot = color.paint(if is_store_down(status) { RED } else { GREEN }, "●");
    format!("{dot} {}\n", color.paint(BOLD, server))
}

fn rows(status: &Map<String, Value>, took: Duration) -> Vec<(&'static str, String)> {
    let number = |name: &str| status.get(name).and_then(Value::as_u64).unwrap_or_default();
    let text = |name: &str| status.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let store = match (is_store_down(status), number("keystore_latency")) {
        (true, _) => "not reachable".to_owned(),
        (false, 0) => "reachable".to_owned(),
        (false, latency) => format!("reachable in {latency}ms"),
    };
    vec![
        ("Version", text("version")),
        ("Uptime", clock::human(Duration::from_secs(number("uptime")))),
        ("Latency", format!("{}ms", took.as_millis().max(1))),
        ("Keystore", store),
        ("OS", format!("{}/{}", text("os"), text("arch"))),
        ("CPUs", format!("{} of {}", number("num_cpu_used"), number("num_cpu"))),
        (
            "Memory",
            format!(
                "heap {}, stack {}",
                output::bytes(number("mem_heap_used")),
                output::bytes(number("mem_stack_used"))
            ),
        ),
    ]
}

fn table(routes: &[Value], color: Color) -> String {
    let line = |method: &str, path: &str, body: &str, timeout: &str| {
        format!("{method:<7} {path:<28} {body:>10} {timeout:>8}")
    };
    let mut text = format!("\n{}\n", color.paint(BOLD, &line("Method", "API", "Max Body", "Timeout")));
    for route in routes {
        let name = |member: &str| output::plain(route[member].as_str().unwrap_or_default());
        let body = output::bytes(route["max_body"].as_u64().unwrap_or_default());
        let timeout = match route["timeout"].as_u64().unwrap_or_default() {
            0 => "none".to_owned(),
            seconds => format!("{seconds}s"),
        };
        text.push_str(&format!("{}\n", line(&name("method"), &name("path"), &body, &timeout)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn zeros_are_left_out_and_a_store_that_is_down_is_told() {
        let mut all = status(
            serde_json::json!({ "version": "1", "uptime": 0, "keystore_unreachable": true, "os": "" }),
        );
        assert_eq!(head("h:1", &all, Color::Always), "\x1b[31m●\x1b[0m \x1b[1mh:1\x1b[0m\n");
        assert!(rows(&all, Duration::ZERO).contains(&("Keystore", "not reachable".to_owned())));
        all.retain(|_, value| !is_zero(value));
        assert_eq!(all.len(), 2);
        assert_eq!(head("h:1", &status(serde_json::json!({})), Color::Never), "● h:1\n");
    }
}
