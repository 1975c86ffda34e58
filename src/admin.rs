//! Health and metrics over plain HTTP:
//!
//! * `/livez`: 200 as long as the process runs.
//! * `/readyz`: 200 when the gate has passed and the API listens; 503 with the reasons before that, and in a drain.
//! * `/startupz`: as `/readyz`, but a drain changes nothing.
//! * `/metrics`: metrics in the Prometheus text format.
//! * `/status`: the notes of each part and the last happenings, as JSON, for callers on this machine only.

use crate::{
    health::{Happening, Health, NotReady},
    http::{Body, Close, Handler},
    metrics::{self, Registry},
    version,
};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
};
use rustls::pki_types::CertificateDer;
use std::{net::SocketAddr, sync::Arc};

/// The health and metrics API.
#[derive(Clone)]
pub struct Server {
    health: Health,
    registry: Registry,
}

// === impl Server ===

impl Server {
    /// A server of `health` and `registry`, which also gets `keswarden_build_info`.
    pub fn new(health: Health, registry: Registry) -> Self {
        let info =
            registry.int_gauges("keswarden_build_info", "1, with what this build is", &["version", "commit"]);
        info.with_label_values(&[version::VERSION, version::COMMIT]).set(1);
        Self { health, registry }
    }

    fn answer(&self, from: SocketAddr, method: &Method, path: &str) -> Response<Body> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n".to_owned());
        }
        match path {
            "/livez" => text(StatusCode::OK, "ok\n".to_owned()),
            "/readyz" => probe(self.health.ready()),
            "/startupz" => probe(self.health.started()),
            "/metrics" => {
                let mut page = Response::new(Body::from(self.registry.text()));
                page.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(metrics::TEXT));
                page
            }
            "/status" if from.ip().to_canonical().is_loopback() => self.status(),
            "/status" => text(
                StatusCode::FORBIDDEN,
                "only for callers on this machine; a port-forward is one\n".to_owned(),
            ),
            _ => text(StatusCode::NOT_FOUND, "/livez /readyz /startupz /metrics /status\n".to_owned()),
        }
    }

    fn status(&self) -> Response<Body> {
        let waiting = self.health.ready().err().unwrap_or_default();
        let history: Vec<_> = self
            .health
            .history()
            .into_iter()
            .map(|Happening { at, reason, says, .. }| {
                serde_json::json!({ "at": at.to_string(), "reason": reason, "says": says })
            })
            .collect();
        let status = serde_json::json!({
            "version": version::VERSION,
            "ready": waiting.is_empty(),
            "waiting_for": waiting,
            "parts": self.health.notes(),
            "history": history,
        });
        let mut page = text(StatusCode::OK, format!("{status:#}\n"));
        page.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        page
    }
}

impl Handler for Server {
    type Peer = SocketAddr;

    fn connected(&self, address: SocketAddr, _: &[CertificateDer<'static>]) -> SocketAddr {
        address
    }

    async fn call(&self, peer: Arc<SocketAddr>, request: Request<Incoming>) -> Result<Response<Body>, Close> {
        Ok(self.answer(*peer, request.method(), request.uri().path()))
    }
}

fn probe(result: Result<(), NotReady>) -> Response<Body> {
    match result {
        Ok(()) => text(StatusCode::OK, "ok\n".to_owned()),
        Err(waiting) => {
            text(StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {}\n", waiting.join(", ")))
        }
    }
}

fn text(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
