//! A stand-in for the model hub on this machine: lists, announces and serves files over HTTP/1.1.
//!
//! Large files answer as the hub does, with a redirect that carries the sha256; small ones come
//! directly with git's sha1. Faults are queued per file and used up one by one, and every request
//! is recorded, so that a test can say what went where.

use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The commit that the stand-in's only revision has.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Files from this size on are "large": announced by sha256 and served by redirect.
pub(crate) const LARGE: usize = 1000;

/// What goes wrong with one answer.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The connection closes after this many bytes of the body.
    Cut(usize),
    /// Only this status, with this header.
    Status(u16, &'static str),
    /// The right length and a wrong first byte.
    WrongByte,
    /// Content-Length is off by this, and so is the body.
    Length(i64),
    /// The range of the request is ignored.
    NoRange,
    /// Both: the range is ignored, and the connection closes after this many bytes.
    CutWithoutRange(usize),
    /// A 206 that starts elsewhere than asked.
    WrongRange,
    /// Silence.
    Stall(Duration),
    /// The body comes in pieces with a pause between.
    Slow(usize, Duration),
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    faults: BTreeMap<String, VecDeque<Fault>>,
    log: Vec<Request>,
    /// Where large files are redirected to; this server's `/cdn` if empty.
    cdn: String,
    /// The token without which everything but the cdn answers 401.
    token: Option<String>,
}

/// A running stand-in; its thread ends with the test process.
#[derive(Clone)]
pub(crate) struct StandIn {
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl StandIn {
    /// Serves these files as the repository of every name.
    pub(crate) fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let files = files.iter().map(|(name, bytes)| (name.to_string(), bytes.clone())).collect();
        let stand_in = StandIn { addr, state: Arc::new(Mutex::new(State { files, ..State::default() })) };
        let server = stand_in.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                // A client that hangs up is part of the game.
                std::thread::spawn(move || server.answer(stream).ok());
            }
        });
        stand_in
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Queues a fault for the next GET of this file's bytes.
    pub(crate) fn fault(&self, file: &str, fault: Fault) -> &Self {
        self.state.lock().unwrap().faults.entry(file.into()).or_default().push_back(fault);
        self
    }

    /// Sends large files to another server.
    pub(crate) fn redirect_to(&self, other: &str) -> &Self {
        self.state.lock().unwrap().cdn = other.into();
        self
    }

    pub(crate) fn require_token(&self, token: &str) -> &Self {
        self.state.lock().unwrap().token = Some(token.into());
        self
    }

    pub(crate) fn log(&self) -> Vec<Request> {
        self.state.lock().unwrap().log.clone()
    }

    /// The requests for this file's bytes.
    pub(crate) fn gets(&self, file: &str) -> Vec<Request> {
        let ending = format!("/{file}");
        let is_get = |r: &Request| r.method == "GET" && r.path.ends_with(&ending);
        self.log().into_iter().filter(|r| is_get(r) && !r.path.starts_with("/api")).collect()
    }

    fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((key, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(key.to_ascii_lowercase(), value.trim().to_owned());
        }
        let request = Request { method, path, headers };
        self.state.lock().unwrap().log.push(request.clone());
        self.respond(stream, &request)
    }

    fn respond(&self, mut out: TcpStream, request: &Request) -> std::io::Result<()> {
        let path = request.path.replace("%20", " ");
        let (files, cdn, token) = {
            let state = self.state.lock().unwrap();
            (state.files.clone(), state.cdn.clone(), state.token.clone())
        };
        let from_cdn = path.strip_prefix("/cdn/");
        if let (Some(token), None) = (token, from_cdn)
            && request.headers.get("authorization") != Some(&format!("Bearer {token}"))
        {
            // The header names an attacker's realm, as in CVE-2025-51471.
            let realm = "WWW-Authenticate: Bearer realm=\"http://127.0.0.1:1/token\"\r\n";
            return write!(out, "HTTP/1.1 401 Unauthorized\r\n{realm}Content-Length: 0\r\nConnection: close\r\n\r\n");
        }
        if path.starts_with("/api/models/") {
            let siblings: Vec<_> = files.keys().map(|f| serde_json::json!({ "rfilename": f })).collect();
            let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
            return self.body(out, request, "api", body.as_bytes(), "");
        }
        let in_repo = path.split_once(&format!("/resolve/{COMMIT}/")).map(|p| p.1);
        let Some(file) = from_cdn.or(in_repo) else { return status(&mut out, 404, "") };
        let Some(bytes) = files.get(file) else { return status(&mut out, 404, "") };
        if from_cdn.is_some() {
            return self.body(out, request, file, bytes, "");
        }
        if bytes.len() >= LARGE {
            let to = if cdn.is_empty() { self.url() } else { cdn };
            let etag = hex(&Sha256::digest(bytes));
            let headers = format!(
                "Location: {to}/cdn/{}\r\nX-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {}\r\n",
                file.replace(' ', "%20"),
                bytes.len()
            );
            return status(&mut out, 302, &headers);
        }
        let etag = hex(&Sha1::digest([format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat()));
        self.body(out, request, file, bytes, &format!("ETag: \"{etag}\"\r\n"))
    }

    /// Sends bytes, the range asked for, with the next fault of this file if it is a GET.
    fn body(
        &self,
        mut out: TcpStream,
        request: &Request,
        file: &str,
        bytes: &[u8],
        extra: &str,
    ) -> std::io::Result<()> {
        let get = request.method == "GET";
        let fault = if get { self.next_fault(file) } else { None };
        let range =
            request.headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let start: usize = range.unwrap_or(0);
        let size = bytes.len();
        let mut body = bytes.to_vec();
        let mut head = format!("HTTP/1.1 200 OK\r\n{extra}");
        let ranged = range.is_some() && !matches!(fault, Some(Fault::NoRange | Fault::CutWithoutRange(_)));
        if ranged {
            if start >= size {
                return status(&mut out, 416, "");
            }
            body.drain(..start);
            let from = if matches!(fault, Some(Fault::WrongRange)) { start + 1 } else { start };
            head =
                format!("HTTP/1.1 206 Partial Content\r\n{extra}Content-Range: bytes {from}-{}/{size}\r\n", size - 1);
        }
        let (mut length, mut piece, mut pause) = (body.len(), body.len(), Duration::ZERO);
        match fault {
            Some(Fault::Status(code, header)) => return status(&mut out, code, header),
            Some(Fault::Cut(at) | Fault::CutWithoutRange(at)) => body.truncate(at),
            Some(Fault::WrongByte) => body[0] ^= 1,
            Some(Fault::Length(by)) => {
                length = (length as i64 + by) as usize;
                body.resize(length, 0);
                piece = length;
            }
            Some(Fault::Stall(time)) => std::thread::sleep(time),
            Some(Fault::Slow(bytes, time)) => (piece, pause) = (bytes, time),
            Some(Fault::NoRange | Fault::WrongRange) | None => {}
        }
        write!(out, "{head}Content-Length: {length}\r\nConnection: close\r\n\r\n")?;
        if get {
            for piece in body.chunks(piece.max(1)) {
                out.write_all(piece)?;
                out.flush()?;
                std::thread::sleep(pause);
            }
        }
        Ok(())
    }

    fn next_fault(&self, file: &str) -> Option<Fault> {
        self.state.lock().unwrap().faults.get_mut(file)?.pop_front()
    }
}

fn status(out: &mut TcpStream, code: u16, headers: &str) -> std::io::Result<()> {
    write!(out, "HTTP/1.1 {code} Status\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes that differ from any other name's and are no repetition.
pub(crate) fn bytes(name: &str, size: usize) -> Vec<u8> {
    let mut state =
        name.bytes().fold(0x9e37_79b9_7f4a_7c15_u64, |s, b| (s ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..size).map(|_| next()).collect()
}
