//! HTTP/1.1, as much as one request takes.

use super::text;
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

/// The bound of one HTTP request.
const HTTP_TIMEOUT: Duration = Duration::from_secs(5);

/// `GET path` on this machine, over plain HTTP: status and body.
pub fn http_get(port: u16, path: &str) -> Result<(u16, Vec<u8>), String> {
    let ask = || -> std::io::Result<Vec<u8>> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, HTTP_TIMEOUT)?;
        stream.set_read_timeout(Some(HTTP_TIMEOUT))?;
        stream.set_write_timeout(Some(HTTP_TIMEOUT))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| format!("GET :{port}{path}: {error}"))?;
    parse(&answer).ok_or_else(|| format!("GET :{port}{path}: no HTTP answer: {:?}", text(&answer)))
}

/// The server answers this path with this status.
pub fn answers(port: u16, path: &str, wanted: u16) -> Result<(), String> {
    let (status, body) = http_get(port, path)?;
    if status == wanted { Ok(()) } else { Err(format!("GET :{port}{path}: {status} {}", text(&body).trim())) }
}

/// An HTTP/1.1 answer that ended with its connection: status and body.
pub(super) fn parse(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let (head, body) = split(answer, b"\r\n\r\n")?;
    let head = text(head).to_ascii_lowercase();
    let status = head.strip_prefix("http/1.")?.split_whitespace().nth(1)?.parse().ok()?;
    let body = if head.contains("\r\ntransfer-encoding: chunked") { unchunked(body)? } else { body.to_vec() };
    Some((status, body))
}

fn unchunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let (size, data) = split(rest, b"\r\n")?;
        let size = usize::from_str_radix(text(size).trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(data.get(..size)?);
        rest = data.get(size + 2..)?;
    }
}

fn split<'a>(bytes: &'a [u8], at: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let found = bytes.windows(at.len()).position(|window| window == at)?;
    Some((&bytes[..found], &bytes[found + at.len()..]))
}
