//! `fathom serve` as a process: signals, keys, restarts, adapters by name.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fathom_core::Weight;
use fathom_core::rng::Rng;
use fathom_model::adapter::{Pair, targets};
use fathom_model::{Adapter, Model};
use serde_json::{Value, json};

use super::fathom::testdata;

struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(home: &Path, args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_fathom"))
            .arg("serve")
            .args(if args.contains(&"--port") { &[][..] } else { &["--port", "0"] })
            .args(args)
            .env_clear()
            .env("HOME", home)
            .env("HF_HOME", home.join("hf"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("it says where it listens");
        let port = line.trim().rsplit(':').next().and_then(|p| p.parse().ok());
        let server = Server { child, port: port.unwrap_or_else(|| panic!("listening on …, not {line:?}")) };
        let until = Instant::now() + Duration::from_secs(60);
        while !server.send("GET", "/ready", "").starts_with("HTTP/1.1 200") {
            assert!(Instant::now() < until, "it gets ready");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// Sends a request and leaves the answer to be read.
    fn open(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        stream
    }

    fn send(&self, method: &str, path: &str, body: &str) -> String {
        let mut answer = String::new();
        self.open(method, path, body).read_to_string(&mut answer).expect("an answer");
        answer
    }

    fn complete(&self, model: &str) -> Value {
        let body = json!({"model": model, "prompt": [5, 6, 7, 8], "max_tokens": 12, "temperature": 0, "logprobs": 0, "ignore_eos": true});
        let answer = self.send("POST", "/v1/completions", &body.to_string());
        let body = answer.split_once("\r\n\r\n").unwrap_or_default().1;
        let body: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {answer}"));
        body["choices"][0]["logprobs"]["token_logprobs"].clone()
    }

    /// Sends SIGTERM and gives the exit status and what it had said on standard error.
    fn terminate(mut self) -> (Option<i32>, String) {
        let sent = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().expect("there is kill");
        assert!(sent.success());
        let status = self.child.wait().expect("it ends");
        let mut said = String::new();
        self.child.stderr.take().expect("a pipe").read_to_string(&mut said).unwrap();
        (status.code(), said)
    }
}

/// A stream that does not end by itself before the context does.
const ENDLESS: &str =
    r#"{"model":"mini-r1","stream":true,"ignore_eos":true,"messages":[{"role":"user","content":"Count."}]}"#;

#[test]
fn sigterm_drains_ends_the_rest_properly_and_exits_zero() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(home.path(), &["--drain", "0", "--log"]);
    let mut open = server.open("POST", "/v1/chat/completions", ENDLESS);
    open.read_exact(&mut [0; 400]).unwrap();
    let start = Instant::now();
    let (code, said) = server.terminate();
    assert_eq!(code, Some(0), "{said}");
    assert!(start.elapsed() < Duration::from_secs(10));
    let mut rest = String::new();
    open.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("the server is shutting down") || rest.contains("[DONE]"), "an end that clients see: {rest}");
    assert!(said.contains(r#""event":"draining""#) && said.contains(r#""event":"stopped""#), "{said}");
    assert!(!said.contains("Count."), "what was said is in no log: {said}");

    // With time enough the answer comes to its own end.
    let server = Server::start(home.path(), &["--drain", "60", "--context", "128"]);
    let mut open = server.open("POST", "/v1/chat/completions", ENDLESS);
    open.read_exact(&mut [0; 400]).unwrap();
    assert_eq!(server.terminate().0, Some(0));
    let mut rest = String::new();
    open.read_to_string(&mut rest).unwrap();
    assert!(rest.contains(r#""finish_reason":"length""#) && rest.contains("[DONE]"), "{rest}");
}

#[test]
fn killed_it_starts_again() {
    let home = tempfile::tempdir().unwrap();
    let mut server = Server::start(home.path(), &["--context", "128"]);
    let mut open = server.open("POST", "/v1/chat/completions", ENDLESS);
    open.read_exact(&mut [0; 400]).unwrap();
    server.child.kill().unwrap();
    let port = server.port.to_string();
    drop(server);
    let again = Server::start(home.path(), &["--context", "128", "--port", &port]);
    assert_eq!(again.complete("mini-r1").as_array().map(Vec::len), Some(12));
}

#[test]
fn beyond_loopback_a_key_is_made_and_said_once() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(home.path(), &["--host", "0.0.0.0", "--context", "128"]);
    assert!(server.send("GET", "/v1/models", "").starts_with("HTTP/1.1 401"));
    let (_, said) = server.terminate();
    let keys: Vec<&str> =
        said.split_whitespace().filter(|w| w.len() == 64 && w.bytes().all(|b| b.is_ascii_hexdigit())).collect();
    assert_eq!(keys.len(), 1, "{said}");
}

#[test]
fn an_adapter_is_a_model_of_its_own_over_the_same_weights() {
    let home = tempfile::tempdir().unwrap();
    let path = testdata("models/llama");
    let model = Model::open(Path::new(&path), &Default::default()).unwrap();
    let mut rng = Rng::new(3, 0);
    let mut weight = |rows: usize, cols: usize| {
        Weight::from_f32(rows, cols, &(0..rows * cols).map(|_| rng.uniform() as f32 - 0.5).collect::<Vec<_>>())
    };
    let beside = targets(&model.spec).into_iter().filter(|(name, _)| name == "q_proj" || name == "o_proj");
    let pairs = beside.map(|(_, d)| (d.id, Pair { a: weight(4, d.cols), b: weight(d.rows, 4) })).collect();
    let dir = home.path().join("adapter");
    Adapter { rank: 4, scale: 1.0, pairs }.save(&dir, &model.spec, "llama", &[]).unwrap();
    let adapter = format!("bent={}", dir.display());

    let server = Server::start(home.path(), &[&format!("straight={path}"), "--adapter", &adapter]);
    let straight = server.complete("straight");
    let bent = server.complete("bent");
    assert!(straight.as_array().is_some_and(|l| l.len() == 12) && bent.as_array().is_some_and(|l| l.len() == 12));
    assert_ne!(straight, bent);
    assert_eq!(server.complete("straight"), straight, "the adapter is beside it, not in it");
}
