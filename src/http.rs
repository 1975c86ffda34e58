//! An HTTP server over TLS or plain TCP: bounded connections, header and handshake timeouts, and a drain.

use crate::{
    cause::{Cause, Finding},
    shutdown::{Drain, Ended},
};
use http_body_util::Full;
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
};
use rustls::{ServerConfig, pki_types::CertificateDer};
use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};

/// The body of every answer.
pub type Body = Full<Bytes>;

/// The answer is to close the connection (HTTP/1.1) or reset the stream (HTTP/2): the deadline passed.
#[derive(Debug, thiserror::Error)]
#[error("the deadline of the request passed")]
pub struct Close;

/// Answers requests.
pub trait Handler: Clone + Send + Sync + 'static {
    /// What is known of a connection.
    type Peer: Send + Sync + 'static;

    /// A connection was made; `certificates` is what the client showed, leaf first.
    fn connected(&self, address: SocketAddr, certificates: &[CertificateDer<'static>]) -> Self::Peer;

    fn call(
        &self,
        peer: Arc<Self::Peer>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Body>, Close>> + Send;
}

/// An address that is taken, but where nobody listens yet: clients are refused, at once, until it is served.
///
/// Listening early would be worse: MinIO's KES client has no timeout, and would hang without a word.
pub struct Bound {
    socket: TcpSocket,
    pub address: SocketAddr,
}

/// The TLS configuration of new connections; a change reaches the next one.
pub type Tls = watch::Receiver<Arc<ServerConfig>>;

/// Connections at once: each costs up to about 40 KiB with TLS, so 4096 stay under 160 MiB.
const MAX_CONNECTIONS: usize = 4096;
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;
/// Until the handshake is done.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Until an HTTP/1.1 request's headers are there, and how long an idle HTTP/1.1 connection is kept.
const HEADERS: Duration = Duration::from_secs(30);
/// Go's default for headers is 1 MiB; no client of KES sends more than a few hundred bytes.
const MAX_HEADERS: u32 = 64 * 1024;
/// Requests at once on one HTTP/2 connection: Go's own default for a server is 250.
const MAX_STREAMS: u32 = 250;
/// A peer that stops answering pings is gone.
const PING: Duration = Duration::from_secs(30);

// === impl Bound ===

impl Bound {
    pub fn bind(address: SocketAddr, setting: &str) -> Result<Self, Finding> {
        let refused = |error: io::Error| {
            Cause::CannotBind
                .seen(format!("cannot listen on {address}: {error}"))
                .fix(format!("stop what listens there, or set {setting} to another address"))
        };
        let bind = || -> io::Result<Self> {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            let address = socket.local_addr()?;
            Ok(Self { socket, address })
        };
        bind().map_err(refused)
    }

    /// Serves until the drain starts; then finishes what is under way, `grace` long at most. `listening` hears when
    /// clients are no longer refused.
    pub async fn serve(
        self,
        tls: Option<Tls>,
        handler: impl Handler,
        mut drain: Drain,
        grace: Duration,
        listening: impl FnOnce(),
    ) -> Ended {
        let listener = match self.socket.listen(BACKLOG) {
            Ok(listener) => listener,
            Err(error) => return Ended::Failed(format!("cannot listen on {}: {error}", self.address)),
        };
        listening();
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = drain.started() => break,
                Some(_) = connections.join_next() => continue,
                accepted = accept(&listener, &slots) => accepted,
            };
            let (stream, address, slot) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or the client is gone already: the next accept may work.
                    tracing::warn!("accepting a connection on {} failed: {error}", self.address);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (tls, handler) = (tls.as_ref().map(|tls| tls.borrow().clone()), handler.clone());
            let graceful = graceful.watcher();
            connections.spawn(async move {
                let _slot = slot;
                connection(stream, address, tls, handler, graceful).await;
            });
        }
        drop(listener);
        let finished = async {
            graceful.shutdown().await;
            while connections.join_next().await.is_some() {}
        };
        if tokio::time::timeout(grace, finished).await.is_err() {
            tracing::warn!("connections on {} were cut after {grace:?}", self.address);
        }
        Ended::Drained
    }
}

/// The next connection, once there is room for one.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.expect("the semaphore must stay open");
    let (stream, address) = listener.accept().await?;
    Ok((stream, address, slot))
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    handler: impl Handler,
    graceful: Watcher,
) {
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        let peer = handler.connected(address, &[]);
        return serve(stream, peer, handler, graceful).await;
    };
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let stream = match tokio::time::timeout(HANDSHAKE, handshake(stream, &acceptor)).await {
        Ok(Ok(Some(stream))) => stream,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => return tracing::info!(peer = %address, "TLS handshake failed: {error}"),
        Err(_) => return tracing::info!(peer = %address, "TLS handshake took longer than {HANDSHAKE:?}"),
    };
    let certificates: Vec<_> = stream
        .get_ref()
        .1
        .peer_certificates()
        .unwrap_or_default()
        .iter()
        .map(|der| der.clone().into_owned())
        .collect();
    let peer = handler.connected(address, &certificates);
    serve(stream, peer, handler, graceful).await;
}

/// The handshake; nothing when the client spoke plain HTTP and was told so, in KES's words.
async fn handshake(
    mut stream: TcpStream,
    acceptor: &tokio_rustls::TlsAcceptor,
) -> io::Result<Option<tokio_rustls::server::TlsStream<TcpStream>>> {
    const TLS_HANDSHAKE: u8 = 0x16;
    const PLAIN: &[u8] = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
    let mut first = [0];
    match stream.peek(&mut first).await? {
        0 => Ok(None),
        _ if first[0].is_ascii_uppercase() => {
            stream.write_all(PLAIN).await?;
            stream.shutdown().await?;
            Ok(None)
        }
        _ if first[0] == TLS_HANDSHAKE => acceptor.accept(stream).await.map(Some),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the first byte is no TLS handshake")),
    }
}

async fn serve<H: Handler>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: H::Peer,
    handler: H,
    graceful: Watcher,
) {
    let peer = Arc::new(peer);
    let service = service_fn(move |request| {
        let (handler, peer) = (handler.clone(), peer.clone());
        async move { handler.call(peer, request).await }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(MAX_HEADERS as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(100)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    if let Err(error) = graceful.watch(connection).await {
        tracing::debug!("a connection ended: {error}");
    }
}
