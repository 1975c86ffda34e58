//! An HTTP server over TLS or plain TCP, within a budget: connections, headers, handshakes and silence are bounded.

mod body;
mod budget;

use crate::{
    cause::{Cause, Finding},
    clock::Clock,
    shutdown::{Drain, Ended},
};
pub use body::{Body, Feed};
use budget::{Budget, HEADERS, Slot, Watched};
use http_body_util::BodyExt;
use hyper::{
    Method, Request, Response,
    body::{Body as _, Incoming},
    header,
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

    /// The drain has started: answers that never end by themselves must end now.
    fn draining(&self) {}
}

/// An address that is taken, but where nobody listens yet: clients are refused, at once, until it is served.
///
/// Listening early would be worse: MinIO's KES client has no timeout, and would hang without a word.
pub struct Bound {
    socket: TcpSocket,
    pub address: SocketAddr,
    /// The setting that names the address.
    setting: &'static str,
}

/// The TLS configuration of new connections; a change reaches the next one.
pub type Tls = watch::Receiver<Arc<ServerConfig>>;

/// Connections at once, where many come. One costs about 25 KiB with TLS, so all of them stay near 100 MiB.
const MANY: usize = 4096;
/// Connections at once, where few come: a kubelet, a Prometheus, a person.
pub const FEW: usize = 128;
/// Descriptors that are left for everything else.
const OTHER_DESCRIPTORS: usize = 64;
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;
/// Until the handshake is done.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Go's default for headers is 1 MiB; no client of KES sends more than a few hundred bytes.
const MAX_HEADERS: u32 = 64 * 1024;
/// Requests at once on one HTTP/2 connection: Go's own default for a server is 250.
const MAX_STREAMS: u32 = 250;
/// What an HTTP/2 client may send ahead of being read: enough for a data key, and little to hold for a stranger.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// Streams that a client opened and reset before they were looked at ("rapid reset", CVE-2023-44487), and streams that we
/// had to reset: more of either ends the connection.
const RESET_STREAMS: usize = 20;
const LOCAL_RESETS: usize = 100;
/// A peer that stops answering pings is gone.
const PING: Duration = Duration::from_secs(30);
/// How much of a body that nobody wants is read all the same, and for how long.
const DISCARDED: usize = 256 * 1024;
const DISCARDING: Duration = Duration::from_secs(1);
/// What a connection that must go may take to go by itself.
const GOODBYE: Duration = Duration::from_secs(2);

// === impl Bound ===

impl Bound {
    pub fn bind(address: SocketAddr, setting: &'static str) -> Result<Self, Finding> {
        let bind = |address: SocketAddr| -> io::Result<Self> {
            let bound = |address: SocketAddr| {
                let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
                if address.is_ipv6() {
                    // `[::]` is IPv4 as well, whatever the machine's default is: a cluster may have either, or both.
                    rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
                }
                socket.set_reuseaddr(true)?;
                socket.bind(address)?;
                Ok::<_, io::Error>(socket)
            };
            // Two sockets that may reuse an address can both be bound to it: listening tells whether it is taken.
            drop(bound(address)?.listen(1)?);
            let socket = bound(address)?;
            let address = socket.local_addr()?;
            Ok(Self { socket, address, setting })
        };
        let bound = match bind(address) {
            // Where IPv6 is off, all interfaces are those of IPv4.
            Err(error)
                if address.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != io::ErrorKind::AddrInUse =>
            {
                bind((Ipv4Addr::UNSPECIFIED, address.port()).into())
            }
            bound => bound,
        };
        bound.map_err(|error| cannot_bind(address, setting, &error))
    }

    /// Serves until the drain starts; then finishes what is under way, `grace` long at most. `places` is for connections at
    /// once, `listening` hears when clients are no longer refused.
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
            // Two that were bound to it at the same time both waited, and the other one was ready first.
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
                        // Out of descriptors, or the client is gone already: the next accept may work.
                        tracing::warn!("accepting a connection on {} failed: {error}", self.address);
                        budget.evict();
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                };
                let (tls, handler) = (tls.as_ref().map(|tls| tls.borrow().clone()), handler.clone());
                connections.spawn(connection(stream, address, tls, handler, slot, drain.clone()));
            }
        }
        // Whoever comes now must be refused, and can turn to another server: here it would wait for somebody to accept it.
        drop(listener);
        handler.draining();
        let finished = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, finished).await.is_err() {
            tracing::warn!("connections on {} were cut after {grace:?}", self.address);
        }
        Ended::Drained
    }
}

/// Why nobody can listen there.
fn cannot_bind(address: SocketAddr, setting: &str, error: &io::Error) -> Finding {
    Cause::CannotBind
        .seen(format!("cannot listen on {address}: {error}"))
        .fix(format!("stop what listens there, or set {setting} to another address"))
}

/// Places where many come, as far as the descriptors allow, beside a server for few; the soft limit, which is low for the
/// sake of programs that use `select`, is raised to the hard one, as Go does.
pub fn many() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let descriptors = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize);
    MANY.min(descriptors.saturating_sub(FEW + OTHER_DESCRIPTORS)).max(16)
}

/// The next connection, and room for it.
async fn accept(
    listener: &TcpListener,
    budget: &Budget,
    number: u64,
) -> io::Result<(TcpStream, SocketAddr, Slot)> {
    let (stream, address) = listener.accept().await?;
    // An IPv4 client of a socket for both is shown as what it is.
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
        accepted = tokio::time::timeout(HANDSHAKE, handshake(stream, &acceptor)) => accepted,
        () = slot.activity.evicted.notified() => return,
        // Nothing was asked yet.
        () = drain.started() => return,
    };
    let stream = match accepted {
        Ok(Ok(Some(stream))) => stream,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => return tracing::info!("http: TLS handshake error from {address}: {error}"),
        Err(_) => {
            return tracing::info!("http: TLS handshake error from {address}: none within {HANDSHAKE:?}");
        }
    };
    let session = stream.get_ref().1;
    let certificates: Vec<_> =
        session.peer_certificates().unwrap_or_default().iter().map(|der| der.clone().into_owned()).collect();
    let http1 = session.alpn_protocol() != Some(b"h2");
    let peer = handler.connected(address, &certificates);
    serve(stream, http1, peer, handler, &mut slot, drain).await;
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
        // Silence is `Activity`'s to judge: the builder's own limit would end idle connections as well.
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .max_buf_size(MAX_HEADERS as usize)
            // A client that has said all it has to say is answered, as Go does.
            .half_close(true);
        let connection = pin!(builder.serve_connection(io, service));
        until_done(connection, http1::Connection::graceful_shutdown, true, slot, drain).await;
    } else {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADERS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_pending_accept_reset_streams(RESET_STREAMS)
            .max_local_error_reset_streams(LOCAL_RESETS)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING);
        let connection = pin!(builder.serve_connection(io, service));
        until_done(connection, http2::Connection::graceful_shutdown, false, slot, drain).await;
    }
}

/// Reads what is left of a request's body, as far as that takes little: a client that is refused while it still sends
/// would see its stream reset, or its connection closed, in place of the answer.
pub async fn discard(request: &mut Request<Incoming>) {
    if request.headers().contains_key(header::EXPECT) {
        return;
    }
    let body = request.body_mut();
    let rest = async {
        let mut left = DISCARDED;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, |data| data.len());
            left = match left.checked_sub(length) {
                Some(left) => left,
                None => return,
            };
        }
    };
    let _ = tokio::time::timeout(DISCARDING, rest).await;
}

/// The answer to HEAD: the length that a GET would get, and nothing behind it.
fn without_body(mut answer: Response<Body>) -> Response<Body> {
    if let Some(length) = answer.body().size_hint().exact() {
        answer.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    *answer.body_mut() = Body::default();
    answer
}

/// Runs a connection until its end; ends it when it is overdue, or in the way, or everything drains.
async fn until_done<C: Future<Output = hyper::Result<()>>>(
    mut connection: std::pin::Pin<&mut C>,
    say_goodbye: impl Fn(std::pin::Pin<&mut C>),
    is_http1: bool,
    slot: &mut Slot,
    mut drain: Drain,
) {
    let mut look = tokio::time::interval(HEADERS);
    let drains = loop {
        tokio::select! {
            ended = connection.as_mut() => return said(ended),
            () = drain.started() => break true,
            // A request that came meanwhile is not cut: somebody else goes.
            () = slot.activity.evicted.notified() => {
                if slot.activity.is_idle_for(Duration::ZERO) {
                    break false;
                }
            }
            _ = look.tick() => if slot.activity.is_overdue(is_http1) { break false },
        }
    };
    if !drains && !slot.leave() {
        return;
    }
    say_goodbye(connection.as_mut());
    loop {
        match tokio::time::timeout(GOODBYE, connection.as_mut()).await {
            Ok(ended) => return said(ended),
            // Requests under way are finished; the server's grace is the limit.
            Err(_) if drains && !slot.activity.is_idle_for(GOODBYE) => {}
            Err(_) => return,
        }
    }
}

fn said(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!("a connection ended: {error}");
    }
}
