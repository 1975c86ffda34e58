//! `keswarden metric`: a server's metrics at an interval, as a live table or as JSON lines.

use super::{
    client::{self, Client, Connection},
    output::{self, Color, Outcome},
};
use crate::clock::{self, Clock, Instant};
use clap::Args;
use serde_json::{Map, Value};
use std::{collections::HashSet, time::Duration};

#[derive(Args)]
pub(super) struct Options {
    /// How long to wait before asking again
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = rate)]
    rate: Duration,
    #[command(flatten)]
    connection: Connection,
}

const SUCCESS: &str = "kes_http_request_success";
const ERROR: &str = "kes_http_request_error";
const FAILURE: &str = "kes_http_request_failure";
const LATENCY: &str = "kes_http_response_time";

pub(super) fn main(options: Options) -> u8 {
    let Options { rate, connection } = options;
    client::with_client(&connection, |client| follow(client, rate))
}

fn rate(text: &str) -> Result<Duration, String> {
    match output::go_duration(text)? {
        Duration::ZERO => Err("must be more than 0".to_owned()),
        rate => Ok(rate),
    }
}

async fn follow(client: Client, rate: Duration) -> Outcome {
    let clock = Clock::system();
    let mut table = output::is_terminal().then(Table::default);
    loop {
        let answer = client.get("/v1/metrics").await;
        let answer = answer.map_err(|reason| format!("failed to fetch the server's metrics: {reason}"))?;
        let metrics = parse(&String::from_utf8_lossy(&answer.body));
        match &mut table {
            None => output::print_json(&metrics)?,
            Some(table) => table.draw(&metrics, clock.now())?,
        }
        tokio::time::sleep(rate).await;
    }
}

/// KES's own families of a Prometheus page: the sum of each family's series, or counts by bound in
/// nanoseconds. Counters of requests that the page does not have yet are 0.
fn parse(page: &str) -> Map<String, Value> {
    let histograms: HashSet<_> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" histogram")).collect();
    let mut metrics: Map<String, Value> =
        [SUCCESS, ERROR, FAILURE].map(|name| (name.to_owned(), Value::from(0))).into_iter().collect();
    for (name, labels, value) in page.lines().filter_map(sample).filter(|(name, ..)| name.starts_with("kes_"))
    {
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        match family.filter(|family| histograms.contains(family)) {
            Some(family) if name.ends_with("_bucket") => {
                let buckets = metrics.entry(family).or_insert_with(|| Value::Object(Map::new()));
                if let (Some(buckets), Some(bound)) = (buckets.as_object_mut(), nanoseconds(labels)) {
                    buckets.insert(bound, number(value));
                }
            }
            Some(_) => {}
            None => {
                let sum = metrics.get(name).and_then(Value::as_f64).unwrap_or_default() + value;
                metrics.insert(name.to_owned(), number(sum));
            }
        }
    }
    metrics
}

/// The name, the labels and the value of a line. Absent for a comment, whose value is no number.
fn sample(line: &str) -> Option<(&str, &str, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, value) = match rest.strip_prefix('{') {
        Some(rest) => rest.rsplit_once('}')?,
        None => ("", rest),
    };
    let value = value.split_whitespace().next()?.parse().ok()?;
    Some((name, labels, value))
}

/// The upper bound of a bucket in nanoseconds. Absent for the last bucket, which has none.
fn nanoseconds(labels: &str) -> Option<String> {
    let (_, rest) = labels.split_once("le=\"")?;
    let bound: f64 = rest.split('"').next()?.parse().ok()?;
    bound.is_finite().then(|| format!("{}", (bound * 1e9).round()))
}

/// A JSON number, without a fraction for whole numbers.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9e15 { Value::from(value as i64) } else { Value::from(value) }
}

/// A table that is drawn over itself.
#[derive(Default)]
struct Table {
    lines: usize,
    before: Option<(f64, Instant)>,
}

// === impl Table ===

impl Table {
    fn draw(&mut self, metrics: &Map<String, Value>, now: Instant) -> Outcome {
        let total = value(metrics, SUCCESS) + value(metrics, ERROR) + value(metrics, FAILURE);
        let rate =
            self.before.map_or(0.0, |(before, at)| (total - before) / (now - at).as_secs_f64().max(1e-3));
        self.before = Some((total, now));
        let text = output::columns(&rows(metrics, rate), Color::Auto);
        let back = match self.lines {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\x1b[J"),
        };
        self.lines = text.lines().count();
        output::print(&format!("{back}{text}\n"))
    }
}

fn value(metrics: &Map<String, Value>, name: &str) -> f64 {
    metrics.get(name).and_then(Value::as_f64).unwrap_or_default()
}

fn rows(metrics: &Map<String, Value>, rate: f64) -> Vec<(&'static str, String)> {
    let of = |name: &str| value(metrics, name);
    let percent = |share: f64| within(metrics, share).unwrap_or_else(|| "-".to_owned());
    vec![
        ("Requests", format!("{rate:.1}/s, {} active", of("kes_http_request_active"))),
        ("Answered", format!("{} well, {} refused, {} failed", of(SUCCESS), of(ERROR), of(FAILURE))),
        ("Latency", format!("50% {}, 90% {}, 99% {}", percent(0.5), percent(0.9), percent(0.99))),
        ("Log events", format!("{} error, {} audit", of("kes_log_error_events"), of("kes_log_audit_events"))),
        ("Uptime", clock::human(Duration::try_from_secs_f64(of("kes_system_up_time")).unwrap_or_default())),
        ("CPUs", format!("{} of {}", of("kes_system_num_cpu_used"), of("kes_system_num_cpu"))),
        ("Threads", of("kes_system_num_threads").to_string()),
        ("Heap", output::bytes(of("kes_system_mem_heap_used") as u64)),
        ("Stack", output::bytes(of("kes_system_mem_stack_used") as u64)),
    ]
}

/// The bound within which a share of all requests was answered. Absent when there were no requests.
fn within(metrics: &Map<String, Value>, share: f64) -> Option<String> {
    let counts = metrics.get(LATENCY)?.as_object()?.iter();
    let mut buckets: Vec<(u64, f64)> =
        counts.filter_map(|(bound, count)| Some((bound.parse().ok()?, count.as_f64()?))).collect();
    buckets.sort_by_key(|(bound, _)| *bound);
    let &(last, counted) = buckets.last()?;
    let total = counted.max(value(metrics, SUCCESS) + value(metrics, ERROR) + value(metrics, FAILURE));
    let human = |nanoseconds| format!("{:?}", Duration::from_nanos(nanoseconds));
    let found = buckets.iter().find(|(_, count)| *count >= total * share);
    (total > 0.0).then(|| match found {
        Some((bound, _)) => format!("≤ {}", human(*bound)),
        None => format!("> {}", human(last)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP kes_http_response_time x\n# TYPE kes_http_response_time histogram\n\
        kes_http_response_time_bucket{le=\"0.01\"} 9\nkes_http_response_time_bucket{le=\"1.5\"} 10\n\
        kes_http_response_time_bucket{le=\"+Inf\"} 10\nkes_http_response_time_sum 0.25\n\
        kes_http_response_time_count 10\n# TYPE kes_http_request_success counter\n\
        kes_http_request_success{code=\"200\"} 7\nkes_http_request_success{code=\"204\"} 1\n\
        kes_system_up_time 12.25\nother_family 1\n";

    #[test]
    fn a_page_becomes_one_flat_object() {
        let json = Value::Object(parse(PAGE)).to_string();
        let expected = "{\"kes_http_request_error\":0,\"kes_http_request_failure\":0,\"kes_http_request_success\":8,\
            \"kes_http_response_time\":{\"10000000\":9,\"1500000000\":10},\"kes_system_up_time\":12.25}";
        assert_eq!(json, expected);
    }

    #[test]
    fn latencies_are_read_from_the_buckets() {
        let metrics = parse(PAGE);
        assert_eq!(within(&metrics, 0.5).as_deref(), Some("≤ 10ms"));
        assert_eq!(within(&metrics, 0.99).as_deref(), Some("≤ 1.5s"));
        assert_eq!(within(&Map::new(), 0.5), None);
        assert!(rate("0s").is_err() && rate("5").is_err());
    }
}
