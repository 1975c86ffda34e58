//! The KES API: what MinIO, `mc` and the `kes` CLI speak, served from the keyring.
//!
//! A request is checked in KES's order: route, method, body limit, deadline, caller and policy, names, body,
//! key, operation.

pub mod audit;
pub mod caller;
mod handlers;
pub mod messages;
pub mod policy;
pub mod refusal;
pub mod routes;

use crate::{
    clock::{Clock, Instant},
    http::{self, Body, Close},
    keyring::{Keyring, Limits},
    metrics::{self, Registry},
};
use audit::{Audit, Change, Record};
use caller::Caller;
use http::Handler;
use hyper::{Request, Response, Version, body::Incoming, header};
use policy::Policies;
use prometheus::{Gauge, Histogram, HistogramVec, IntCounterVec, IntGauge};
use refusal::Refusal;
use routes::{Found, Route};
use rustls::pki_types::CertificateDer;
use std::{net::SocketAddr, sync::Arc};
use tokio::sync::watch;

/// The KES API as an HTTP handler. Clones are cheap and share everything.
#[derive(Clone)]
pub struct Server(Arc<Parts>);

struct Parts {
    state: watch::Receiver<Arc<State>>,
    settings: Config,
    audit: Audit,
    clock: Clock,
    started: Instant,
    metrics: Metrics,
}

/// The part of the API that a reload replaces, always as a whole. A request is answered from one `State`.
#[derive(Clone)]
pub struct State {
    /// The keys, and the key store behind them.
    pub keyring: Keyring,
    /// The policies, and the identities that have them.
    pub policies: Policies,
    /// The operator's settings of each route.
    pub routes: routes::Settings,
}

/// The settings of the API that need a restart to change.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Whether keys may be deleted through the API.
    pub allow_delete: bool,
    /// The place that audit lines are written to.
    pub audit: audit::Output,
    /// How long a key is used while verifying the key fails.
    pub limits: Limits,
    /// Whether a key that is lost from the store goes on sealing.
    pub seal_lost: bool,
    /// The names of keys that the API may create or import.
    pub makeable: policy::Makeable,
}

struct Metrics {
    /// The page at `/v1/metrics`, with KES's metric names.
    page: Registry,
    success: IntCounterVec,
    error: IntCounterVec,
    failure: IntCounterVec,
    active: IntGauge,
    response_time: Histogram,
    up_time: Gauge,
    memory: IntGauge,
    stack: IntGauge,
    threads: IntGauge,
    operations: IntCounterVec,
    durations: HistogramVec,
}

// === impl Server ===

impl Server {
    /// An API that answers from the newest `state`. Metrics with keswarden's names go to `registry`.
    pub fn new(
        state: watch::Receiver<Arc<State>>,
        settings: Config,
        registry: &Registry,
        clock: Clock,
    ) -> Self {
        let started = clock.now();
        let metrics = Metrics::new(registry);
        let audit = Audit::new(settings.audit, &metrics.page, registry);
        Self(Arc::new(Parts { state, settings, audit, clock, started, metrics }))
    }

    async fn answer(&self, peer: &Peer, request: &mut Request<Incoming>) -> Result<Response<Body>, Close> {
        let uri = request.uri().clone();
        let (route, name) = match routes::find(uri.path()) {
            Found::Route(route, name) => (route, name),
            Found::Moved(to) => return Ok(refusal::moved(&to, uri.query(), request.method())),
            Found::Malformed if request.version() == Version::HTTP_2 => return Err(Close),
            Found::Malformed => return Ok(refusal::malformed()),
            Found::Nothing => return Ok(refusal::not_found()),
        };
        if !route.takes(request.method()) {
            let refusal = Refusal::Method { got: request.method().to_string(), expected: route.method };
            return Ok(refusal.response());
        }
        let (begun, decoded) = (self.0.clock.now(), route.path_of(&name));
        let state = self.0.state.borrow().clone();
        let setting = state.routes.of(route);
        if let Err(refusal) = state.policies.check(route, setting.open, &decoded, &peer.caller) {
            return Ok(self.refuse(route, &decoded, peer, begun, &refusal));
        }
        let measure = self.0.metrics.measure(route, &self.0.clock, begun);
        let handled = handlers::handle(&self.0, &state, route, &name, peer, request);
        let handled = match setting.timeout {
            None => handled.await,
            Some(timeout) => match tokio::time::timeout(timeout, handled).await {
                Ok(handled) => handled,
                Err(_) => {
                    // KES sends no answer after the deadline either. The audit trail has a line for the
                    // operator.
                    self.0.audit.late(&self.record(route, &decoded, peer, begun, 0), timeout);
                    measure.timed_out();
                    return Err(Close);
                }
            },
        };
        let response = match handled {
            Ok(response) => {
                if let Some(change) = response.extensions().get::<Change>() {
                    self.0.audit.changed(&self.record(route, &decoded, peer, begun, 200), change);
                }
                response
            }
            Err(refusal) => self.refuse(route, &decoded, peer, begun, &refusal),
        };
        measure.done(response.status().as_u16());
        Ok(response)
    }

    /// Audits the refusal and answers with KES's text.
    fn refuse(
        &self,
        route: &Route,
        path: &str,
        peer: &Peer,
        begun: Instant,
        refusal: &Refusal,
    ) -> Response<Body> {
        self.0.audit.refused(&self.record(route, path, peer, begun, refusal.status().as_u16()), refusal);
        refusal.response()
    }

    fn record<'a>(
        &self,
        route: &'a Route,
        path: &'a str,
        peer: &'a Peer,
        begun: Instant,
        code: u16,
    ) -> Record<'a> {
        let at = self.0.clock.timestamp();
        Record { route, path, peer, at, code, took: self.0.clock.now() - begun }
    }
}

/// The client of a connection.
pub struct Peer {
    /// The client's address and port.
    pub address: SocketAddr,
    /// The identity that the client's certificates give.
    pub caller: Caller,
}

impl Handler for Server {
    type Peer = Peer;

    fn connected(&self, address: SocketAddr, certificates: &[CertificateDer<'static>]) -> Peer {
        Peer { address, caller: Caller::of(certificates) }
    }

    async fn call(&self, peer: Arc<Peer>, mut request: Request<Incoming>) -> Result<Response<Body>, Close> {
        let answer = self.answer(&peer, &mut request).await;
        http::discard(&mut request).await;
        answer
    }

    fn draining(&self) {
        self.0.audit.close();
    }
}

/// A JSON answer. `text` is compact and ends with a line end, as in KES.
fn json(text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn empty() -> Response<Body> {
    let mut response = Response::new(Body::default());
    response.headers_mut().insert(header::CONTENT_LENGTH, header::HeaderValue::from_static("0"));
    response
}

// === impl Metrics ===

/// The measurement of one request under way.
struct Measure<'a> {
    metrics: Option<&'a Metrics>,
    operation: Option<&'static str>,
    clock: &'a Clock,
    started: Instant,
}

impl Metrics {
    fn new(registry: &Registry) -> Self {
        let page = Registry::new();
        let metrics = Self {
            success: page.counters(
                "kes_http_request_success",
                "Number of requests that have been served successfully.",
                &["code"],
            ),
            error: page.counters(
                "kes_http_request_error",
                "Number of requests that failed due to some error (4xx).",
                &["code"],
            ),
            failure: page.counters(
                "kes_http_request_failure",
                "Number of requests that failed due to some internal failure (5xx).",
                &["code"],
            ),
            active: page.int_gauge(
                "kes_http_request_active",
                "Number of active requests that are not finished, yet.",
            ),
            response_time: page.histogram(
                "kes_http_response_time",
                "Histogram of request response times spawning from 10ms to 10s.",
                &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 3.0, 5.0, 10.0],
            ),
            up_time: page
                .gauge("kes_system_up_time", "The time the server has been up and running in seconds."),
            memory: page
                .int_gauge("kes_system_mem_heap_used", "The number of bytes the process holds in memory."),
            stack: page.int_gauge(
                "kes_system_mem_stack_used",
                "The number of bytes the stack of the main thread takes.",
            ),
            threads: page.int_gauge("kes_system_num_threads", "The number of threads of the process."),
            operations: registry.counters(
                "keswarden_crypto_operations_total",
                "Cryptographic operations through the API, by operation and outcome",
                &["op", "outcome"],
            ),
            durations: registry.histograms(
                "keswarden_crypto_duration_seconds",
                "How long cryptographic operations took, from route to answer",
                &["op"],
                metrics::LOCAL,
            ),
            page,
        };
        let cpus = i64::try_from(std::thread::available_parallelism().map_or(1, usize::from)).unwrap_or(1);
        metrics
            .page
            .int_gauge("kes_system_num_cpu", "The number of logical CPUs available on the system.")
            .set(cpus);
        metrics
            .page
            .int_gauge("kes_system_num_cpu_used", "The number of logical CPUs usable by the server.")
            .set(cpus);
        // The allocator keeps no count of objects.
        metrics.page.int_gauge("kes_system_mem_heap_objects", "Not counted by this server: always 0.").set(0);
        for operation in routes::CRYPTO {
            for outcome in ["ok", "refused", "failed"] {
                metrics.operations.with_label_values(&[operation, outcome]);
            }
            metrics.durations.with_label_values(&[operation]);
        }
        metrics
    }

    fn measure<'a>(&'a self, route: &Route, clock: &'a Clock, started: Instant) -> Measure<'a> {
        let metrics = route.counted().then_some(self);
        if let Some(metrics) = metrics {
            metrics.active.inc();
        }
        Measure { metrics, operation: route.crypto(), clock, started }
    }

    fn text(&self, up: f64) -> Vec<u8> {
        self.up_time.set((up * 100.0).round() / 100.0);
        self.memory.set(i64::try_from(resident_bytes()).unwrap_or(i64::MAX));
        self.stack.set(process_status("VmStk:").saturating_mul(1024));
        self.threads.set(process_status("Threads:"));
        self.page.text()
    }
}

impl Measure<'_> {
    /// Counts a request whose deadline passed as 504, which is what the deadline means to the client.
    fn timed_out(&self) {
        self.done(504);
    }

    fn done(&self, status: u16) {
        let Some(metrics) = self.metrics else { return };
        let elapsed = (self.clock.now() - self.started).as_secs_f64();
        let (counter, outcome) = match status {
            ..400 => (&metrics.success, "ok"),
            400..500 => (&metrics.error, "refused"),
            _ => (&metrics.failure, "failed"),
        };
        let mut digits = [0; 3];
        counter.with_label_values(&[code(status, &mut digits)]).inc();
        metrics.response_time.observe(elapsed);
        if let Some(operation) = self.operation {
            metrics.operations.with_label_values(&[operation, outcome]).inc();
            metrics.durations.with_label_values(&[operation]).observe(elapsed);
        }
    }
}

impl Drop for Measure<'_> {
    fn drop(&mut self) {
        if let Some(metrics) = self.metrics {
            metrics.active.dec();
        }
    }
}

/// The three digits of a status. Nothing is allocated.
fn code(status: u16, digits: &mut [u8; 3]) -> &str {
    *digits = [status / 100, status / 10 % 10, status % 10].map(|digit| b'0' + digit as u8);
    std::str::from_utf8(digits).expect("digits must be text")
}

/// A number from `/proc/self/status`; 0 where the file or the line is missing.
fn process_status(name: &str) -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// The resident memory of the process in bytes, from `/proc/self/statm`; 0 where the file is missing.
fn resident_bytes() -> u64 {
    const PAGE_BYTES: u64 = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * PAGE_BYTES
}
