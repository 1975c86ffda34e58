//! Bodies: answers of whole bytes or a stream of lines, and the unwanted rest of requests.

use super::budget::Busy;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint},
    header,
};
use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::mpsc;

/// The body of every answer.
#[derive(Default)]
pub struct Body {
    content: Content,
    /// Keeps the connection busy until the last line is sent.
    _busy: Option<Busy>,
}

enum Content {
    Whole(Full<Bytes>),
    Lines(mpsc::Receiver<Bytes>),
}

/// Bytes that keep the connection busy until the last of them is sent. An HTTP/2 client decides how many
/// bytes are sent at a time.
struct Sending {
    bytes: Bytes,
    _busy: Busy,
}

/// Lines for the present listeners, without history. A listener that does not read loses lines, and costs
/// neither memory nor time.
#[derive(Default)]
pub struct Feed {
    listeners: Mutex<Listeners>,
}

#[derive(Default)]
struct Listeners {
    senders: Vec<mpsc::Sender<Bytes>>,
    closed: bool,
}

/// Lines that wait for one listener, at most. With 64 listeners and lines of 512 bytes this is 8 MiB.
const WAITING_LINES_MAX: usize = 256;
/// Listeners at once, at most. A further listener replaces the oldest.
const LISTENERS_MAX: usize = 64;
/// Bytes of an unwanted body that are read at most.
const DISCARDED_BYTES_MAX: usize = 256 * 1024;
/// The bound of reading an unwanted body.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

// === impl Body ===

impl Body {
    /// The body, which drops `busy` when the last byte is sent.
    pub(super) fn until_sent(self, busy: Busy) -> Self {
        match self.content {
            Content::Whole(whole) => {
                busy.answered();
                let bytes = whole.into_inner();
                bytes.map_or_else(Self::default, |bytes| {
                    Bytes::from_owner(Sending { bytes, _busy: busy }).into()
                })
            }
            lines @ Content::Lines(_) => Self { content: lines, _busy: Some(busy) },
        }
    }
}

impl AsRef<[u8]> for Sending {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Default for Content {
    fn default() -> Self {
        Self::Whole(Full::default())
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Self {
        Self { content: Content::Whole(Full::new(bytes.into())), _busy: None }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut self.get_mut().content {
            Content::Whole(whole) => Pin::new(whole).poll_frame(context),
            Content::Lines(lines) => {
                lines.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole(whole) => whole.is_end_stream(),
            Content::Lines(lines) => lines.is_closed() && lines.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(whole) => whole.size_hint(),
            Content::Lines(_) => SizeHint::default(),
        }
    }
}

// === impl Feed ===

impl Feed {
    /// A body of the lines from now on, until the feed is closed. The oldest of 64 listeners is ended for a
    /// further one.
    pub fn listen(&self) -> Body {
        let (sender, receiver) = mpsc::channel(WAITING_LINES_MAX);
        let mut listeners = self.lock();
        listeners.senders.retain(|sender| !sender.is_closed());
        if listeners.senders.len() == LISTENERS_MAX {
            listeners.senders.remove(0);
        }
        if !listeners.closed {
            listeners.senders.push(sender);
        }
        Body { content: Content::Lines(receiver), _busy: None }
    }

    /// Sends a line, and returns the number of listeners that take the line. Without listeners, `line` is not
    /// called.
    pub fn send(&self, line: impl FnOnce() -> String) -> usize {
        let mut listeners = self.lock();
        if listeners.senders.is_empty() {
            return 0;
        }
        let line = Bytes::from(line());
        listeners.senders.retain(|sender| !sender.is_closed());
        listeners.senders.iter().filter(|sender| sender.try_send(line.clone()).is_ok()).count()
    }

    /// Ends every stream, later ones included.
    pub fn close(&self) {
        let mut listeners = self.lock();
        listeners.closed = true;
        listeners.senders.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the rest of a request's body, for 1 s and 256 KiB at most.
///
/// A client that is refused while sending would otherwise see a reset or a closed connection in place of the
/// answer.
pub async fn discard(request: &mut Request<Incoming>) {
    if request.headers().contains_key(header::EXPECT) {
        return;
    }
    let body = request.body_mut();
    let rest = async {
        let mut left = DISCARDED_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, |data| data.len());
            left = match left.checked_sub(length) {
                Some(left) => left,
                None => return,
            };
        }
    };
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, rest).await;
}

/// The answer to HEAD: the length of the answer to GET, without the body.
pub(super) fn without_body(mut answer: Response<Body>) -> Response<Body> {
    if let Some(length) = answer.body().size_hint().exact() {
        answer.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    *answer.body_mut() = Body::default();
    answer
}
