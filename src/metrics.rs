//! The registry of metrics. Typed helpers register each metric when it is made, so that the metric exists
//! from the start.

use prometheus::{
    CounterVec, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, TextEncoder,
};
use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// The `Content-Type` of the Prometheus text format 0.0.4.
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The `Content-Type` of KES's own page of metrics.
pub const TEXT_OF_KES: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// Buckets in seconds, from 50 µs, for work within the process.
pub const LOCAL: &[f64] = &[50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 5e-3, 25e-3, 0.1, 1.0];
/// Buckets in seconds, for requests to another machine.
pub const REMOTE: &[f64] = &[1e-3, 5e-3, 25e-3, 0.1, 0.5, 1.0, 5.0];

/// The metrics of all parts. Clones are cheap and share the metrics.
#[derive(Clone, Default)]
pub struct Registry {
    registry: prometheus::Registry,
    /// Metrics by name. A part that a reload makes anew gets the metrics of its predecessor.
    known: Arc<Mutex<HashMap<String, Box<dyn Any + Send>>>>,
}

// === impl Registry ===

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// A counter. A second call with the name returns the same counter; so do all calls here.
    ///
    /// # Panics
    /// When the name or a label is invalid, or the name belongs to another kind of metric; so do all calls
    /// here.
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(name, IntCounter::new(name, help))
    }

    /// Counters by label.
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(name, IntCounterVec::new(Opts::new(name, help), labels))
    }

    /// Counters of seconds by label, which count fractions.
    pub fn seconds(&self, name: &str, help: &str, labels: &[&str]) -> CounterVec {
        self.add(name, CounterVec::new(Opts::new(name, help), labels))
    }

    /// A gauge.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.add(name, Gauge::new(name, help))
    }

    /// A gauge of whole numbers.
    pub fn int_gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(name, IntGauge::new(name, help))
    }

    /// Gauges by label.
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.add(name, GaugeVec::new(Opts::new(name, help), labels))
    }

    /// Gauges of whole numbers by label.
    pub fn int_gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(name, IntGaugeVec::new(Opts::new(name, help), labels))
    }

    /// The gauge of a certificate's expiry, in seconds since 1970. `usage` is one of a closed set.
    pub fn not_after(&self, usage: &'static str) -> Gauge {
        let help = "When a certificate ends, as seconds since 1970; 0 when it is not known";
        self.gauges("keswarden_tls_not_after_timestamp_seconds", help, &["usage"]).with_label_values(&[usage])
    }

    /// A histogram with the given upper bounds.
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.add(name, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }

    /// Histograms by label, with the given upper bounds.
    pub fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        self.add(name, HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }

    /// One gauge per state of a closed set, all 0 before [`States::set`].
    pub fn states<const N: usize>(&self, name: &str, help: &str, states: [&'static str; N]) -> States<N> {
        let gauges = self.int_gauges(name, help, &["state"]);
        let gauges = states.map(|state| (state, gauges.with_label_values(&[state])));
        States(gauges)
    }

    /// Every metric in the Prometheus text format.
    pub fn text(&self) -> Vec<u8> {
        let mut page = Vec::with_capacity(16 * 1024);
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut page)
            .expect("a registered metric must encode");
        page
    }

    fn add<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        name: &str,
        made: prometheus::Result<C>,
    ) -> C {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(collector) = known.get(name) {
            return collector.downcast_ref::<C>().expect("a name must stand for one kind of metric").clone();
        }
        let collector = made.expect("a metric's name and labels must be valid");
        self.registry.register(Box::new(collector.clone())).expect("a metric must be registered once");
        known.insert(name.to_owned(), Box::new(collector.clone()));
        collector
    }
}

/// The gauges of a closed set of states.
#[derive(Clone)]
pub struct States<const N: usize>([(&'static str, IntGauge); N]);

// === impl States ===

impl<const N: usize> States<N> {
    /// Sets the gauge of `state` to 1 and every other gauge to 0.
    pub fn set(&self, state: &str) {
        for (name, gauge) in &self.0 {
            gauge.set(i64::from(*name == state));
        }
    }
}
