//! What two thousand slow connections cost a good client: the latency of a decrypt beside them, as a ratio to that without.
//!
//! `cargo bench --bench slow`. Both are measured in one run, in turns, on one server of the release build.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a bench may panic, and measures time")]

use keswarden::{
    crypto::{Kind, key_version::KeyVersion},
    identity::ApiKey,
    tls::{self, Pair, mint::RunDir, trust::Trust},
};
use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const CONNECTIONS: usize = 2000;
const REQUESTS: usize = 2000;
const TURNS: usize = 5;

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() {
    // `cargo test` runs benches as well, to see that they build.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let now = keswarden::clock::Clock::system().unix_seconds() as i64;
    RunDir::new(dir.path().to_owned(), &[]).ensure(now).unwrap();
    let api_key = ApiKey::generate();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = serve(dir.path(), &api_key, port);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = client(dir.path(), &api_key, now);
    let base = format!("https://127.0.0.1:{port}/v1/key");
    let ciphertext = runtime.block_on(ciphertext(&client, &base));
    let measure = || runtime.block_on(latencies(&client, &base, &ciphertext));
    let (mut quiet, mut attacked) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        quiet.extend(measure());
        let attack = attack(port);
        attacked.extend(measure());
        drop(attack);
    }
    println!("{REQUESTS} decrypts, {TURNS} turns, beside {CONNECTIONS} slow connections and without");
    for (name, part) in [("median", 0.5), ("99 of 100", 0.99)] {
        let (quiet, attacked) = (at(&mut quiet, part), at(&mut attacked, part));
        let ratio = attacked.as_secs_f64() / quiet.as_secs_f64();
        println!("{name}: {quiet:?} alone, {attacked:?} beside them, ratio {ratio:.2}");
    }
    println!("peak memory of the server: {}", peak(server.0.id()));
}

fn serve(dir: &Path, api_key: &ApiKey, port: u16) -> Ended {
    let path = |file: &str| dir.join(file).display().to_string();
    let yaml = format!(
        "admin: {{ identity: {} }}\ntls: {{ key: {}, cert: {} }}\nlog: {{ error: off, audit: off }}\nkeystore: {{ fs: {{ path: {} }} }}\n",
        api_key.identity(),
        path("server.key"),
        path("server.crt"),
        path("keys"),
    );
    std::fs::write(dir.join("server-config.yaml"), yaml).unwrap();
    std::fs::create_dir(dir.join("keys")).unwrap();
    let key = KeyVersion::generate(Kind::of_this_machine(), jiff::Timestamp::UNIX_EPOCH, String::new());
    std::fs::write(dir.join("keys/my-key"), key.to_text().expose()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_keswarden"));
    command.args(["server", "--addr", &format!("127.0.0.1:{port}"), "--config"]);
    command.arg(dir.join("server-config.yaml")).env_clear().env("KESWARDEN_ADMIN_ADDR", "127.0.0.1:0");
    Ended(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

fn client(dir: &Path, api_key: &ApiKey, now: i64) -> reqwest::Client {
    let (certificate, key) = api_key.certificate(now);
    let trust = Trust::only(&dir.join("ca.crt")).unwrap();
    let mut config = tls::client_config(trust, Some(Pair { chain: vec![certificate], key })).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    reqwest::Client::builder().tls_backend_preconfigured(config).build().unwrap()
}

/// A sealed data key, as soon as the server answers.
async fn ciphertext(client: &reqwest::Client, base: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Ok(answer) = client.post(format!("{base}/generate/my-key")).body("{}").send().await {
            let value: serde_json::Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
            return value["ciphertext"].as_str().unwrap().to_owned();
        }
        assert!(Instant::now() < deadline, "the server must answer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn latencies(client: &reqwest::Client, base: &str, ciphertext: &str) -> Vec<Duration> {
    let (url, body) = (format!("{base}/decrypt/my-key"), format!("{{\"ciphertext\":\"{ciphertext}\"}}"));
    let mut all = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let begun = Instant::now();
        let answer = client.post(&url).body(body.clone()).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.bytes().await.unwrap();
        all.push(begun.elapsed());
    }
    all
}

fn attack(port: u16) -> Ended {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/attack.py");
    let mut process = Command::new("python3")
        .arg(script)
        .args([port.to_string(), CONNECTIONS.to_string(), "idle,hello".to_owned()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "holding\n");
    Ended(process)
}

fn at(latencies: &mut [Duration], part: f64) -> Duration {
    latencies.sort_unstable();
    latencies[((latencies.len() - 1) as f64 * part) as usize]
}

fn peak(process: u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().to_owned()
}
