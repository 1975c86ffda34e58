//! An HTTP server over TLS or plain TCP. Connections, headers, handshakes and idle time are bounded.

mod body;
mod budget;

use crate::{
    cause::{Cause, Finding},
    clock::Clock,
    shutdown::{Drain, Ended},
};
use body::without_body;
pub use body::{Body, Feed, discard};
use budget::{Budget, HEADERS_TIMEOUT, Slot, Watched};
use hyper::{
    Method, Request, Response,
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{ServerConfig, pki_types::CertificateDer};
use std::{
    future::Future,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// The deadline of a request passed: the connection is closed (HTTP/1.1), or the stream is reset (HTTP/2).
#[derive(Debug, thiserror::Error)]
#[error("the deadline of the request passed")]
pub struct Close;

/// The application behind a server, which answers requests.
pub trait Handler: Clone + Send + Sync + 'static {
    /// The client of a connection.
    type Peer: Send + Sync + 'static;

    /// The client of a new connection. `certificates` are the client's, leaf first; empty without TLS.
    fn connected(&self, address: SocketAddr, certificates: &[CertificateDer<'static>]) -> Self::Peer;

    /// Answers a request.
    ///
    /// # Errors
    /// [`Close`] when the deadline of the request passed.
    fn call(
        &self,
        peer: Arc<Self::Peer>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Body>, Close>> + Send;

    /// Ends the answers that have no end, because the drain has started.
    fn draining(&self) {}
}

/// A bound address without a listener: connections are refused at once until [`Bound::serve`].
///
/// Listening before an answer is possible would be worse: MinIO's KES client has no timeout, and would hang
/// silently.
pub struct Bound {
    socket: TcpSocket,
    /// The bound address, with the port that the operating system chose for port 0.
    pub address: SocketAddr,
    /// The setting that names the address.
    setting: &'static str,
}

/// The TLS configuration of new connections. A change reaches the next connection.
pub type Tls = watch::Receiver<Arc<ServerConfig>>;

/// Connections of the API server at most. One costs about 25 KiB with TLS, so all of them stay near 100 MiB.
const API_CONNECTIONS_MAX: usize = 4096;
/// Connections at most of a server for a kubelet, a Prometheus and a person.
pub const FEW: usize = 128;
/// Descriptors that connections leave free for files, Vault and other servers.
const OTHER_DESCRIPTORS: usize = 64;
/// Connections that wait to be accepted, at most.
const BACKLOG: u32 = 1024;
/// The bound of a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of headers at most. Go's default is 1 MiB; no client of KES sends more than a few hundred bytes.
const HEADER_BYTES_MAX: u32 = 64 * 1024;
/// Requests at once on one HTTP/2 connection, as many as Go's default for a server.
const STREAMS_MAX: u32 = 250;
/// Unread bytes that an HTTP/2 client may send on one stream: enough for a data key, and little memory for a
/// stranger.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// Unread bytes that an HTTP/2 client may send on one connection.
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;
/// Streams that a client opens and resets before they are handled ("rapid reset", CVE-2023-44487); more of
/// them end the connection.
const CLIENT_RESETS_MAX: usize = 20;
/// Streams that the server resets; more of them end the connection.
const SERVER_RESETS_MAX: usize = 100;
/// The interval of HTTP/2 pings, and the bound of an answer to a ping.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// The bound of a connection's graceful shutdown.
const GRACEFUL_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause after an accept that failed.
const ACCEPT_RETRY_PAUSE: Duration = Duration::from_millis(50);

// === impl Bound ===

impl Bound {
    /// Binds `address`, which `setting` names. `[::]` means IPv4 as well.
    ///
    /// # Errors
    /// `cannot_bind` when the address is in use, or is none of this machine's.
    pub fn bind(address: SocketAddr, setting: &'static str) -> Result<Self, Finding> {
        let bind = |address: SocketAddr| -> io::Result<Self> {
            let bound = |address: SocketAddr| {
                let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
                if address.is_ipv6() {
                    // The machine's default may exclude IPv4 from `[::]`. A cluster may have IPv4, IPv6 or
                    // both.
                    rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
                }
                socket.set_reuseaddr(true)?;
                socket.bind(address)?;
                Ok::<_, io::Error>(socket)
            };
            // Two sockets with SO_REUSEADDR can be bound to one address. Only listening shows that the
            // address is in use.
            drop(bound(address)?.listen(1)?);
            let socket = bound(address)?;
            let address = socket.local_addr()?;
            Ok(Self { socket, address, setting })
        };
        let bound = match bind(address) {
            // `[::]` cannot be bound where IPv6 is off. All interfaces are then those of IPv4.
            Err(error)
                if address.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != io::ErrorKind::AddrInUse =>
            {
                bind((Ipv4Addr::UNSPECIFIED, address.port()).into())
            }
            bound => bound,
        };
        bound.map_err(|error| cannot_bind(address, setting, &error))
    }

    /// Serves until the drain starts, and then finishes requests under way for `grace` at most.
    ///
    /// `places` is the number of connections at most. `listening` is called once connections are accepted.
    /// The result is `Refused` with `cannot_bind` when another process listens on the address by then.
    pub async fn serve(
        self,
        tls: Option<Tls>,
        handler: impl Handler,
        mut drain: Drain,
        grace: Duration,
        places: usize,
        listening: impl FnOnce(),
    ) -> Ended {
        let listener = match self.socket.listen(BACKLOG) {
            Ok(listener) => listener,
            // Two processes can bind one address; the other process listened first.
            Err(error) => return Ended::Refused(cannot_bind(self.address, self.setting, &error)),
        };
        listening();
        let budget = Budget::new(places, Clock::system());
        let mut connections = JoinSet::new();
        {
            let mut number = 0;
            let mut accepting = pin!(accept(&listener, &budget, number));
            loop {
                let accepted = tokio::select! {
                    biased;
                    () = drain.started() => break,
                    Some(_) = connections.join_next() => continue,
                    accepted = &mut accepting => accepted,
                };
                number += 1;
                accepting.set(accept(&listener, &budget, number));
                let (stream, address, slot) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Descriptors ran out, or the client has closed already. The next accept may work.
                        tracing::warn!("accepting a connection on {} failed: {error}", self.address);
                        budget.evict();
                        tokio::time::sleep(ACCEPT_RETRY_PAUSE).await;
                        continue;
                    }
                };
                let (tls, handler) = (tls.as_ref().map(|tls| tls.borrow().clone()), handler.clone());
                connections.spawn(connection(stream, address, tls, handler, slot, drain.clone()));
            }
        }
        // New connections are refused from here on, so that clients try another server at once.
        drop(listener);
        handler.draining();
        let finished = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, finished).await.is_err() {
            tracing::warn!("connections on {} were cut after {grace:?}", self.address);
        }
        Ended::Drained
    }
}

/// The finding for an address that cannot be bound.
fn cannot_bind(address: SocketAddr, setting: &str, error: &io::Error) -> Finding {
    Cause::CannotBind
        .seen(format!("cannot listen on {address}: {error}"))
        .fix(format!("stop what listens there, or set {setting} to another address"))
}

/// The number of connections for the API server: 4096, or as many as the descriptors allow beside a server of
/// [`FEW`], and 16 at least.
///
/// The soft limit of descriptors is raised to the hard limit, as Go does: the soft limit is low only for
/// programs that use `select`.
pub fn many() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let descriptors = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize);
    API_CONNECTIONS_MAX.min(descriptors.saturating_sub(FEW + OTHER_DESCRIPTORS)).max(16)
}

/// The next connection, and a slot for the connection.
async fn accept(
    listener: &TcpListener,
    budget: &Budget,
    number: u64,
) -> io::Result<(TcpStream, SocketAddr, Slot)> {
    let (stream, address) = listener.accept().await?;
    // A socket for both families shows an IPv4 address as a mapped IPv6 address.
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    Ok((stream, address, budget.slot(number).await))
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    handler: impl Handler,
    mut slot: Slot,
    mut drain: Drain,
) {
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        let peer = handler.connected(address, &[]);
        return serve(stream, true, peer, handler, &mut slot, drain).await;
    };
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let accepted = tokio::select! {
        accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(stream, &acceptor)) => accepted,
        () = slot.activity.evicted.notified() => return,
        // No request is under way before the handshake ends.
        () = drain.started() => return,
    };
    let stream = match accepted {
        Ok(Ok(Some(stream))) => stream,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => return tracing::info!("http: TLS handshake error from {address}: {error}"),
        Err(_) => {
            return tracing::info!(
                "http: TLS handshake error from {address}: none within {HANDSHAKE_TIMEOUT:?}"
            );
        }
    };
    let session = stream.get_ref().1;
    let certificates: Vec<_> =
        session.peer_certificates().unwrap_or_default().iter().map(|der| der.clone().into_owned()).collect();
    let http1 = session.alpn_protocol() != Some(b"h2");
    let peer = handler.connected(address, &certificates);
    serve(stream, http1, peer, handler, &mut slot, drain).await;
}

/// Makes the handshake. Plain HTTP is answered with KES's text, and gives nothing.
async fn handshake(
    mut stream: TcpStream,
    acceptor: &tokio_rustls::TlsAcceptor,
) -> io::Result<Option<tokio_rustls::server::TlsStream<TcpStream>>> {
    const TLS_HANDSHAKE: u8 = 0x16;
    const ANSWER_TO_PLAIN_HTTP: &[u8] =
        b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
    let mut first = [0];
    match stream.peek(&mut first).await? {
        0 => Ok(None),
        _ if first[0].is_ascii_uppercase() => {
            stream.write_all(ANSWER_TO_PLAIN_HTTP).await?;
            stream.shutdown().await?;
            Ok(None)
        }
        _ if first[0] == TLS_HANDSHAKE => acceptor.accept(stream).await.map(Some),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the first byte is no TLS handshake")),
    }
}

async fn serve<H: Handler>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    is_http1: bool,
    peer: H::Peer,
    handler: H,
    slot: &mut Slot,
    drain: Drain,
) {
    let peer = Arc::new(peer);
    let watched = slot.activity.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (handler, peer, busy) = (handler.clone(), peer.clone(), watched.begin());
        async move {
            let is_head = request.method() == Method::HEAD;
            let answer = handler.call(peer, request).await?;
            let answer = if is_head { without_body(answer) } else { answer };
            Ok::<_, Close>(answer.map(|body| body.until_sent(busy)))
        }
    });
    let io = Watched { stream: TokioIo::new(stream), activity: slot.activity.clone() };
    if is_http1 {
        let mut builder = http1::Builder::new();
        // `Activity` bounds the time of headers: the builder's own limit would end idle connections as well.
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .max_buf_size(HEADER_BYTES_MAX as usize)
            // A client that has closed its sending half is still answered, as by Go's server.
            .half_close(true);
        let connection = pin!(builder.serve_connection(io, service));
        until_done(connection, http1::Connection::graceful_shutdown, true, slot, drain).await;
    } else {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEADER_BYTES_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_pending_accept_reset_streams(CLIENT_RESETS_MAX)
            .max_local_error_reset_streams(SERVER_RESETS_MAX)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_INTERVAL);
        let connection = pin!(builder.serve_connection(io, service));
        until_done(connection, http2::Connection::graceful_shutdown, false, slot, drain).await;
    }
}

/// Runs a connection until its end. An overdue or evicted connection is ended, and so are all in a drain.
async fn until_done<C: Future<Output = hyper::Result<()>>>(
    mut connection: std::pin::Pin<&mut C>,
    shut_down: impl Fn(std::pin::Pin<&mut C>),
    is_http1: bool,
    slot: &mut Slot,
    mut drain: Drain,
) {
    let mut checks = tokio::time::interval(HEADERS_TIMEOUT);
    let drains = loop {
        tokio::select! {
            ended = connection.as_mut() => return log_end(ended),
            () = drain.started() => break true,
            // A connection with a new request stays. The budget evicts another connection.
            () = slot.activity.evicted.notified() => {
                if slot.activity.is_idle_for(Duration::ZERO) {
                    break false;
                }
            }
            _ = checks.tick() => if slot.activity.is_overdue(is_http1) { break false },
        }
    };
    if !drains && !slot.leave() {
        return;
    }
    shut_down(connection.as_mut());
    loop {
        match tokio::time::timeout(GRACEFUL_CLOSE_TIMEOUT, connection.as_mut()).await {
            Ok(ended) => return log_end(ended),
            // In a drain, requests under way are finished. The server's grace is their limit.
            Err(_) if drains && !slot.activity.is_idle_for(GRACEFUL_CLOSE_TIMEOUT) => {}
            Err(_) => return,
        }
    }
}

fn log_end(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!("a connection ended: {error}");
    }
}
