//! The KES API from a client's side: statuses, texts and headers, over HTTP/1.1 and HTTP/2.

mod corpus;
mod differences;
mod replay;
mod table;

use crate::harness::{App, KEY, base64, block_on};
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

fn refusal(message: &str) -> String {
    format!("{{\"message\":\"{message}\"\n}}")
}

#[test]
fn a_data_key_goes_round_over_both_protocols() {
    let app = App::serving(&[]);
    for (http1, version) in [(true, "HTTP/1.1"), (false, "HTTP/2.0")] {
        let minio = app.minio(http1);
        let (plaintext, ciphertext) = minio.generate(KEY, "{\"bucket\":\"bucket/object\"}");
        assert_eq!((plaintext.len(), ciphertext.len()), (44, 104));
        let opened = minio.decrypt(KEY, &ciphertext, "{\"bucket\":\"bucket/object\"}");
        assert_eq!((opened.status, opened.body), (200, format!("{{\"plaintext\":\"{plaintext}\"}}\n")));
        assert_eq!(
            (opened.version.as_str(), opened.headers["content-type"].as_str()),
            (version, "application/json")
        );
        assert!(!opened.headers.contains_key("server"));
        let other = minio.decrypt(KEY, &ciphertext, "{}");
        assert_eq!(
            (other.status, other.body),
            (400, refusal("decryption failed: ciphertext is not authentic"))
        );
    }
}

#[test]
fn every_refusal_has_the_status_and_the_text_of_kes() {
    let app = App::serving(&[]);
    let long = "a".repeat(81);
    for http1 in [true, false] {
        let minio = app.minio(http1);
        let rows: &[(&str, &str, Option<&str>, u16, &str)] = &[
            ("GET", "/v1/key/describe/nope", None, 404, "key does not exist"),
            ("POST", "/v1/key/generate/nope", Some("{}"), 404, "key does not exist"),
            ("POST", "/v1/key/generate/nope", Some("garbage"), 400, "invalid request body"),
            ("POST", "/v1/key/create/my-key", None, 400, "key already exists"),
            (
                "POST",
                "/v1/key/generate/my.key",
                Some("{}"),
                400,
                "key name 'my.key' is empty, too long or contains invalid characters",
            ),
            (
                "POST",
                "/v1/key/generate/a%2Fb",
                Some("{}"),
                400,
                "key name 'a/b' is empty, too long or contains invalid characters",
            ),
            (
                "POST",
                "/v1/key/generate/",
                Some("{}"),
                400,
                "key name '' is empty, too long or contains invalid characters",
            ),
            ("POST", "/v1/key/decrypt/my-key", Some(""), 400, "invalid request body"),
            ("POST", "/v1/key/decrypt/my-key", Some("[]"), 400, "invalid request body"),
            ("POST", "/v1/key/decrypt/my-key", Some("7"), 400, "invalid request body"),
            ("POST", "/v1/key/decrypt/my-key", Some("{\"ciphertext\":7}"), 400, "invalid request body"),
            ("POST", "/v1/key/decrypt/my-key", Some("{\"ciphertext\":\"%%\"}"), 400, "invalid request body"),
            ("POST", "/v1/key/decrypt/my-key", Some("{\"ciphertext\":\"QUJD"), 400, "invalid request body"),
            (
                "POST",
                "/v1/key/decrypt/my-key",
                Some("null"),
                400,
                "decryption failed: ciphertext is not authentic",
            ),
            (
                "POST",
                "/v1/key/decrypt/my-key",
                Some("{}"),
                400,
                "decryption failed: ciphertext is not authentic",
            ),
            (
                "POST",
                "/v1/key/decrypt/my-key",
                Some("{\"ciphertext\":\"QUJD\"}"),
                400,
                "decryption failed: ciphertext is not authentic",
            ),
            (
                "GET",
                "/v1/key/list/key-",
                None,
                400,
                "listing pattern 'key-' is empty, too long or is invalid",
            ),
            ("GET", "/v1/key/generate/my-key", None, 405, "received method 'GET' expected 'PUT'"),
            ("OPTIONS", "/v1/status", None, 405, "received method 'OPTIONS' expected 'GET'"),
            ("DELETE", "/v1/key/delete/my-key", None, 403, "not authorized: insufficient permissions"),
            ("GET", "/v1/policy/list/*", None, 403, "not authorized: insufficient permissions"),
            ("POST", "/v1/key/import/x", Some("{}"), 403, "not authorized: insufficient permissions"),
        ];
        for (method, path, body, status, message) in rows {
            let reply = minio.call(method, path, *body);
            assert_eq!((reply.status, &reply.body), (*status, &refusal(message)), "{method} {path} {body:?}");
            assert_eq!(reply.headers["content-type"], "application/json");
        }
        let reply = minio.call("GET", &format!("/v1/key/describe/{long}"), None);
        assert_eq!(
            reply.body,
            refusal(&format!("key name '{long}' is empty, too long or contains invalid characters"))
        );
        assert_eq!(minio.call("PATCH", "/v1/status", None).headers["accept"], "GET");
        for path in ["/nope", "/v1/status/", "/v1/key", "/"] {
            let reply = minio.call("GET", path, None);
            assert_eq!((reply.status, reply.body.as_str()), (404, "404 page not found\n"), "{path}");
            assert_eq!(reply.headers["x-content-type-options"], "nosniff");
        }
        let moved = minio.call("POST", "/v1/key/create", None);
        assert_eq!((moved.status, moved.headers["location"].as_str()), (301, "/v1/key/create/"));
    }
}

#[test]
fn go_s_leniency_with_bodies_is_kept() {
    let app = App::serving(&[]);
    let minio = app.minio(false);
    let context = base64(b"{}");
    for body in [
        format!("{{\"context\":\"{context}\"}} and what follows"),
        format!("{{\"CONTEXT\":\"{context}\",\"unknown\":[1,{{}}]}}"),
        format!("{{\"context\":\"\",\"context\":\"{context}\",\"version\":null}}"),
        "{\"context\":[123,125]}".to_owned(),
        "{\"context\":\"e3\\r\\n0=\"}".to_owned(),
    ] {
        let reply = minio.call("PUT", "/v1/key/generate/my-key", Some(&body));
        assert_eq!(reply.status, 200, "{body}: {}", reply.body);
        let made: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
        assert_eq!(minio.decrypt(KEY, made["ciphertext"].as_str().unwrap(), "{}").status, 200, "{body}");
    }
}

#[test]
fn a_body_that_turns_out_empty_never_means_no_context() {
    let app = App::serving(&[]);
    for http1 in [true, false] {
        let minio = app.minio(http1);
        let empty = reqwest::Body::wrap_stream_of_nothing();
        let url = format!("https://{}/v1/key/generate/my-key", app.api);
        let status =
            block_on(async { minio.http.post(url).body(empty).send().await.unwrap().status().as_u16() });
        assert_eq!(
            status, 400,
            "a failover of MinIO's client sends this: sealing for no context would lose an object"
        );
        assert_eq!(minio.call("POST", "/v1/key/generate/my-key", None).status, 200);
    }
}

/// A body of unknown length that ends at once.
trait Nothing {
    fn wrap_stream_of_nothing() -> reqwest::Body;
}

impl Nothing for reqwest::Body {
    fn wrap_stream_of_nothing() -> reqwest::Body {
        struct Empty;
        impl hyper::body::Body for Empty {
            type Data = hyper::body::Bytes;
            type Error = std::convert::Infallible;
            fn poll_frame(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
                std::task::Poll::Ready(None)
            }
        }
        reqwest::Body::wrap(Empty)
    }
}

#[test]
fn bodies_over_the_limit_are_refused_and_bodies_at_it_are_read() {
    let app = App::serving(&[("KESWARDEN_LOG", "error")]);
    let minio = app.minio(false);
    let body = |length: usize| {
        let frame = "{\"context\":\"\",\"pad\":\"\"}".len();
        format!("{{\"context\":\"\",\"pad\":\"{}\"}}", "x".repeat(length - frame))
    };
    assert_eq!(minio.call("POST", "/v1/key/generate/my-key", Some(&body(1_000_000))).status, 200);
    let over = minio.call("POST", "/v1/key/generate/my-key", Some(&body(1_000_001)));
    assert_eq!((over.status, over.body), (400, refusal("invalid request body")));
}

#[test]
fn keys_are_made_described_and_listed() {
    let app = App::serving(&[]);
    let minio = app.minio(false);
    let made = minio.call("POST", "/v1/key/create/another", None);
    assert_eq!((made.status, made.body.as_str(), made.headers["content-length"].as_str()), (200, "", "0"));
    let described: serde_json::Value =
        serde_json::from_str(&minio.call("GET", "/v1/key/describe/another", None).body).unwrap();
    assert_eq!((&described["name"], &described["algorithm"]), (&"another".into(), &"AES256".into()));
    assert_eq!(described["created_by"].as_str().unwrap().len(), 64);
    for path in ["/v1/key/list", "/v1/key/list/", "/v1/key/list/*", "/v1/key/list/%2A"] {
        assert_eq!(minio.call("GET", path, None).body, "{\"names\":[\"another\",\"my-key\"]}\n", "{path}");
    }
    assert_eq!(minio.call("GET", "/v1/key/list/my*", None).body, "{\"names\":[\"my-key\"]}\n");
    assert_eq!(minio.call("GET", "/v1/key/list/nothing*", None).body, "{\"names\":[]}\n");
    let (_, ciphertext) = minio.generate("another", "{}");
    assert_eq!(minio.decrypt("another", &ciphertext, "{}").status, 200);
    let hmac = minio.call("PUT", "/v1/key/hmac/another", Some("{\"message\":\"QUJD\"}"));
    assert_eq!((hmac.status, hmac.body.len()), (200, "{\"hmac\":\"\"}\n".len() + 44));
}

#[test]
fn only_whom_we_know_may_do_anything() {
    let app = App::serving(&[]);
    let stranger = app.stranger();
    for path in ["/v1/status", "/v1/key/list/", "/v1/key/describe/my-key"] {
        let reply = stranger.call("GET", path, None);
        assert_eq!((reply.status, reply.body), (403, refusal("not authorized: insufficient permissions")));
    }
    assert_eq!(stranger.call("GET", "/version", None).status, 200);
    let nobody = app.client(None, false);
    assert!(
        block_on(nobody.send("GET", "/version", None)).is_err(),
        "the handshake must fail without a certificate"
    );
}

#[test]
fn status_api_and_metrics_are_what_clients_parse() {
    let app = App::serving(&[]);
    let minio = app.minio(false);
    let status: serde_json::Value =
        serde_json::from_str(&minio.call("GET", "/v1/status", None).body).unwrap();
    assert!(status["keystore_latency"].as_u64().unwrap() >= 1);
    assert!(status["uptime"].is_u64() && status["num_cpu"].is_u64() && status["mem_heap_used"].is_u64());
    let api: serde_json::Value = serde_json::from_str(&minio.call("GET", "/v1/api", None).body).unwrap();
    let generate = api.as_array().unwrap().iter().find(|row| row["path"] == "/v1/key/generate/").unwrap();
    assert_eq!(
        (&generate["method"], &generate["max_body"], &generate["timeout"]),
        (&"PUT".into(), &1_000_000.into(), &15.into())
    );
    minio.generate(KEY, "{}");
    assert_eq!(app.metric("keswarden_crypto_operations_total{op=\"generate\",outcome=\"ok\"}"), Some(1.0));
    assert_eq!(app.metric("keswarden_gate_state{state=\"passed\"}"), Some(1.0));
}

#[test]
fn plain_http_and_garbage_are_told_off() {
    let app = App::serving(&[]);
    let talk = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(app.api).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let plain = talk(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(plain.starts_with("HTTP/1.0 400 Bad Request\r\n"), "{plain}");
    assert!(plain.ends_with("\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"), "{plain}");
    talk(b"\0\0\0\0garbage");
    talk(&[0x16, 3, 1, 0, 4, 0xff, 0, 0, 0]);
    assert_eq!(app.minio(false).call("GET", "/version", None).status, 200);
}

#[test]
fn health_answers_and_status_is_for_this_machine() {
    let app = App::serving(&[]);
    for path in ["/livez", "/readyz", "/startupz"] {
        assert_eq!(app.health(path), (200, "ok\n".to_owned()));
    }
    let status: serde_json::Value = serde_json::from_str(&app.health("/status").1).unwrap();
    assert_eq!((&status["ready"], &status["parts"]["gate"]["state"]), (&true.into(), &"passed".into()));
    assert_eq!(app.health("/env").0, 404);
    app.stop().unwrap();
}

/// As MinIO does at its first start: no data key, so the key is made, and a data key is asked for at once.
#[test]
fn a_key_whose_making_was_acknowledged_is_there_for_whoever_asks_next() {
    let app = App::serving(&[]);
    std::thread::scope(|scope| {
        for client in 0..12 {
            let minio = app.minio(false);
            scope.spawn(move || {
                for number in 0..40 {
                    let generate = format!("/v1/key/generate/k-{client}-{number}");
                    assert_eq!(minio.call("POST", &generate, Some("{}")).status, 404);
                    let create = format!("/v1/key/create/k-{client}-{number}");
                    assert_eq!(minio.call("POST", &create, None).status, 200);
                    let reply = minio.call("POST", &generate, Some("{}"));
                    assert_eq!(reply.status, 200, "{generate}: {}", reply.body);
                }
            });
        }
    });
}
