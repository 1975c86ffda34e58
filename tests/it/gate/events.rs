//! Events on our own pod, the history in `/status`, and the termination message: what an operator finds without reading logs. The
//! Kubernetes API is a server that takes Events and fails on any other request.

use crate::harness::{Agent, App, IN_PROCESS, KEY, SOON, eventually, key_text};
use keswarden::{cause::Cause, keystore::memory::MemoryStore};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};
use tempfile::TempDir;

/// A Kubernetes API that knows one pod, and its service account's folder.
struct Kubernetes {
    port: u16,
    dir: TempDir,
    events: Arc<Mutex<Vec<Value>>>,
    unexpected: Arc<Mutex<Vec<String>>>,
}

impl Kubernetes {
    /// An API that answers Events with this status.
    fn start(status: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        fs::write(dir.path().join("ca.crt"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
        fs::write(dir.path().join("token"), "the-token\n").unwrap();
        fs::write(dir.path().join("namespace"), "tenant").unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let leaf = params.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(keswarden::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (events, unexpected) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<Mutex<Vec<_>>>::default());
        let (taken, odd, config) = (events.clone(), unexpected.clone(), Arc::new(config));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (config, taken, odd) = (config.clone(), taken.clone(), odd.clone());
                std::thread::spawn(move || serve(stream, config, status, &taken, &odd));
            }
        });
        Self { port, dir, events, unexpected }
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("KUBERNETES_SERVICE_HOST", "127.0.0.1".to_owned()),
            ("KUBERNETES_SERVICE_PORT", self.port.to_string()),
            ("KESWARDEN_KUBERNETES_DIR", self.dir.path().to_string_lossy().into_owned()),
            ("KESWARDEN_POD", "minio-0".to_owned()),
        ]
    }

    fn reasons(&self) -> Vec<String> {
        let events = self.events.lock().unwrap();
        events.iter().map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(*self.unexpected.lock().unwrap(), [""; 0]);
        }
    }
}

fn serve(
    stream: TcpStream,
    config: Arc<rustls::ServerConfig>,
    status: u16,
    events: &Mutex<Vec<Value>>,
    unexpected: &Mutex<Vec<String>>,
) {
    let Ok(connection) = rustls::ServerConnection::new(config) else { return };
    let mut stream = BufReader::new(rustls::StreamOwned::new(connection, stream));
    loop {
        let (mut line, mut length, mut token) = (String::new(), 0, false);
        if stream.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        loop {
            let mut header = String::new();
            if stream.read_line(&mut header).unwrap_or(0) == 0 || header.trim().is_empty() {
                break;
            }
            let header = header.to_ascii_lowercase();
            length =
                header.strip_prefix("content-length:").map_or(length, |text| text.trim().parse().unwrap());
            token |= header.trim() == "authorization: bearer the-token";
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        let (status, answer) = match line.trim() {
            "POST /api/v1/namespaces/tenant/events HTTP/1.1" if token => {
                events.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
                (status, "{}")
            }
            "GET /api/v1/namespaces/tenant/pods/minio-0 HTTP/1.1" if token => {
                (200, r#"{"metadata":{"uid":"0d9c-the-uid"}}"#)
            }
            other => {
                unexpected.lock().unwrap().push(other.to_owned());
                (404, "{}")
            }
        };
        let head = format!("HTTP/1.1 {status} -\r\ncontent-length: {}\r\n\r\n", answer.len());
        if stream.get_mut().write_all(format!("{head}{answer}").as_bytes()).is_err() {
            return;
        }
    }
}

/// An agent over a folder without its key.
fn agent(kubernetes: &Kubernetes, keys: &TempDir) -> Agent {
    let mut settings = kubernetes.settings();
    settings.push(("KESWARDEN_FS_DIR", keys.path().to_string_lossy().into_owned()));
    settings.push(("KESWARDEN_KEY_NAME", KEY.to_owned()));
    // Without a memory the key is unpinned, which is the third Event.
    settings.push(("KESWARDEN_MEMORY", "off".to_owned()));
    Agent::new("events", &settings)
}

#[test]
fn the_pod_s_events_say_why_it_waits_and_that_it_goes_on() {
    let (kubernetes, keys) = (Kubernetes::start(201), tempfile::tempdir().unwrap());
    let mut agent = agent(&kubernetes, &keys);
    agent.run();
    eventually(SOON, "the Event is posted", || kubernetes.reasons().contains(&"KeyMissing".to_owned()));
    fs::write(keys.path().join(KEY), key_text()).unwrap();
    agent.ready();
    eventually(SOON, "the Event is posted", || kubernetes.reasons().contains(&"GatePassed".to_owned()));
    agent.drain();
    // A cause that stays is posted once.
    assert_eq!(kubernetes.reasons(), ["KeyMissing", "GatePassed", "KeyUnpinned"]);
    let events = kubernetes.events.lock().unwrap();
    let event = &events[0];
    assert_eq!(event["involvedObject"]["name"], "minio-0");
    assert_eq!(event["involvedObject"]["uid"], "0d9c-the-uid");
    assert_eq!(event["type"], "Warning");
    assert!(event["message"].as_str().unwrap().contains("keswarden key create --first"), "{event}");
    assert_eq!(events[1]["type"], "Normal");
}

#[test]
fn init_posts_its_last_event_before_it_ends() {
    let (kubernetes, keys) = (Kubernetes::start(201), tempfile::tempdir().unwrap());
    fs::write(keys.path().join(KEY), key_text()).unwrap();
    let mut agent = agent(&kubernetes, &keys);
    agent.set("KESWARDEN_PIN", "off");
    let begun = std::time::Instant::now();
    assert_eq!(agent.init().wait(SOON), 0);
    assert!(
        begun.elapsed() < std::time::Duration::from_millis(1900),
        "nobody is waited for: {:?}",
        begun.elapsed()
    );
    assert_eq!(kubernetes.reasons(), ["GatePassed"]);
}

/// A kubelet that gives up on a container sends a SIGTERM: the termination message says why the gate waited.
#[test]
fn who_is_stopped_while_it_waits_leaves_the_reason() {
    let (kubernetes, keys) = (Kubernetes::start(201), tempfile::tempdir().unwrap());
    let log = keys.path().join("termination-log");
    for is_init in [true, false] {
        fs::write(&log, "").unwrap();
        let mut agent = agent(&kubernetes, &keys);
        agent.set("KESWARDEN_TERMINATION_LOG", &log.to_string_lossy());
        if is_init {
            let mut init = agent.init();
            init.says(SOON, "key_missing");
            init.signal("TERM");
            assert_eq!(init.wait(SOON), 69);
        } else {
            agent.run();
            agent.process().says(SOON, "key_missing");
            agent.drain();
        }
        let left = fs::read_to_string(&log).unwrap();
        assert!(left.starts_with("SIGTERM: the gate did not pass: waiting for "), "{left}");
    }
}

#[test]
fn without_the_right_to_post_one_line_says_so() {
    let (kubernetes, keys) = (Kubernetes::start(403), tempfile::tempdir().unwrap());
    let mut agent = agent(&kubernetes, &keys);
    agent.run();
    agent.process().says(SOON, "no Events on the pod");
    fs::write(keys.path().join(KEY), key_text()).unwrap();
    agent.ready();
    eventually(SOON, "the second one is refused too", || kubernetes.reasons().len() >= 2);
    agent.drain();
    assert_eq!(agent.logs().matches("no Events on the pod").count(), 1);
}

#[test]
fn what_it_ended_on_is_left_for_kubernetes() {
    let (kubernetes, keys) = (Kubernetes::start(201), tempfile::tempdir().unwrap());
    let mut agent = agent(&kubernetes, &keys);
    let log = keys.path().join("termination-log");
    agent.set("KESWARDEN_TERMINATION_LOG", &log.to_string_lossy());
    agent.set("KESWARDEN_GATE_TIMEOUT", "1s");
    agent.set("KESWARDEN_EVENTS", "off");
    assert_eq!(agent.init().wait(SOON), 69);
    assert!(!log.exists(), "a file that is not there is nobody's to read");
    fs::write(&log, "").unwrap();
    assert_eq!(agent.init().wait(SOON), 69);
    let left = fs::read_to_string(&log).unwrap();
    assert!(
        left.starts_with("the gate did not pass within 1s: key_missing: ") && left.contains("fix: "),
        "{left}"
    );
    assert_eq!(kubernetes.reasons(), [""; 0]);
}

#[test]
fn the_history_of_causes_is_in_the_status() {
    let store = Arc::new(MemoryStore::new());
    store.fail(Some(Cause::VaultSealed.seen("as the test says")));
    let app = App::start(store.clone(), &[("KESWARDEN_VERIFY_INTERVAL", "100ms"), ("KESWARDEN_PIN", "off")]);
    let history = || {
        // The health server may not listen yet.
        let status: Value = serde_json::from_str(&app.health("/status").1).unwrap_or_default();
        let history = status["history"].as_array().into_iter().flatten();
        history.map(|happening| happening["reason"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    eventually(IN_PROCESS, "the gate waits", || (history() == ["vault_sealed"]).then_some(()));
    store.fail(None);
    eventually(IN_PROCESS, "the gate waits", || (history() == ["vault_sealed", "key_missing"]).then_some(()));
    store.put(KEY, &key_text());
    app.wait_ready();
    store.fail(Some(Cause::VaultUnreachableRefused.seen("as the test says")));
    let wanted = ["vault_sealed", "key_missing", "gate_passed", "vault_unreachable_refused"];
    eventually(IN_PROCESS, "the outage is remembered", || (history() == wanted).then_some(()));
}

#[test]
fn a_pod_that_flaps_does_not_fill_the_cluster_with_events() {
    let kubernetes = Kubernetes::start(201);
    let store = Arc::new(MemoryStore::new());
    store.fail(Some(Cause::VaultSealed.seen("as the test says")));
    let settings = kubernetes.settings();
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let app = App::start(store.clone(), &settings);
    let happened = || {
        let status: Value = serde_json::from_str(&app.health("/status").1).unwrap_or_default();
        status["history"].as_array().map_or(0, Vec::len)
    };
    let causes = [Cause::VaultUnreachableRefused, Cause::VaultSealed];
    for (number, cause) in causes.iter().cycle().take(6).enumerate() {
        eventually(IN_PROCESS, "it is told", || (happened() > number).then_some(()));
        store.fail(Some(cause.seen("as the test says")));
    }
    eventually(IN_PROCESS, "it is told", || (happened() == 7).then_some(()));
    store.fail(None);
    store.put(KEY, &key_text());
    app.wait_ready();
    eventually(SOON, "the last one is posted", || kubernetes.reasons().contains(&"GatePassed".to_owned()));
    let reasons = kubernetes.reasons();
    let gate: Vec<_> = reasons.iter().filter(|reason| *reason != "KeyUnpinned").collect();
    assert_eq!(
        gate,
        ["VaultSealed", "VaultUnreachableRefused", "GatePassed"],
        "each is posted once in a minute"
    );
}
