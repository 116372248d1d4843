//! The hub's HTTP: addresses, redirects followed by hand, retries with back-off.
//!
//! The client library follows no redirect itself, because each hop is a decision: the token goes
//! only where scheme, host and port are the configured endpoint's (Ollama's CVE-2025-51471 sent it
//! to an attacker's realm), https never falls back to http, and a public hub cannot point us at
//! this machine or its private network (CVE-2026-5530).

use crate::config::{Config, Token};
use crate::error::{Error, Result};
use crate::pull::{Stage, Watch};
use serde::Deserialize;
use std::io;
use std::net::IpAddr;
use std::time::Duration;
use ureq::http::{HeaderMap, Uri};

const MAX_HOPS: usize = 10;
const MAX_LISTING_BYTES: u64 = 64 << 20;
const MAX_WAIT: Duration = Duration::from_secs(60);

/// One hub.
#[derive(Debug)]
pub(crate) struct Client {
    agent: ureq::Agent,
    /// Without a slash at its end.
    endpoint: String,
    origin: Uri,
    token: Option<Token>,
    attempts: u32,
    backoff: Duration,
}

/// A failed attempt, and whether another makes sense.
pub(crate) struct Trouble {
    pub(crate) error: Error,
    /// Whether it may go away by itself.
    pub(crate) transient: bool,
    /// Whether this attempt got further than all before, so that the count starts again.
    pub(crate) progressed: bool,
    /// How long the server asks us to wait.
    pub(crate) wait: Option<Duration>,
}

impl Trouble {
    pub(crate) fn transient(error: Error) -> Self {
        Trouble { error, transient: true, progressed: false, wait: None }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Trouble { error, transient: false, progressed: false, wait: None }
    }
}

/// A repository at a revision, as the hub lists it.
#[derive(Deserialize)]
pub(crate) struct Listing {
    /// The commit.
    #[serde(rename = "sha")]
    pub(crate) commit: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Listing {
    /// Paths of all files.
    pub(crate) fn files(self) -> Vec<String> {
        self.siblings.into_iter().map(|s| s.rfilename).collect()
    }
}

/// What the hub announces of a file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Meta {
    pub(crate) etag: Etag,
    pub(crate) size: u64,
}

/// The checksum that names a file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Etag {
    /// Of the content; large files.
    Sha256(String),
    /// Of `blob SIZE\0` and the content, as git names it; small files.
    GitSha1(String),
}

impl Etag {
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Etag::Sha256(hex) | Etag::GitSha1(hex) => hex,
        }
    }

    /// From a header: quotes and the weak mark are dropped; `None` unless it is one of the two hashes.
    fn parse(header: &str) -> Option<Self> {
        let hex = header.trim_start_matches("W/").trim_matches('"');
        match hex.len() {
            64 if is_hex(hex) => Some(Etag::Sha256(hex.into())),
            40 if is_hex(hex) => Some(Etag::GitSha1(hex.into())),
            _ => None,
        }
    }
}

/// Lower-case hexadecimal, which no path can be confused by.
pub(crate) fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// An answer whose body is still to be read.
pub(crate) struct Reply {
    pub(crate) url: String,
    pub(crate) status: u16,
    headers: HeaderMap,
    pub(crate) body: ureq::Body,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl Client {
    pub(crate) fn new(config: &Config) -> Result<Self> {
        let why = "an endpoint is http://HOST or https://HOST, a port and a path may follow";
        let refused = || Error::Invalid { what: "endpoint", value: config.endpoint.clone(), why };
        let origin: Uri = config.endpoint.parse().map_err(|_| refused())?;
        if !matches!(origin.scheme_str(), Some("http" | "https")) || origin.host().is_none() || has_user(&origin) {
            return Err(refused());
        }
        let mut agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("fathom/", env!("CARGO_PKG_VERSION")))
            // Checksums and ranges are of the plain bytes.
            .accept_encoding("identity")
            .timeout_connect(Some(config.silence))
            .timeout_per_read(Some(config.silence));
        if !config.system_proxy {
            agent = agent.proxy(None);
        }
        Ok(Client {
            agent: agent.build().into(),
            endpoint: config.endpoint.trim_end_matches('/').into(),
            origin,
            token: config.token.clone(),
            attempts: config.attempts.max(1),
            backoff: config.backoff,
        })
    }

    /// Where the hub serves a file.
    pub(crate) fn file_url(&self, repo: &str, commit: &str, file: &str) -> String {
        format!("{}/{repo}/resolve/{commit}/{}", self.endpoint, encode(file, true))
    }

    /// The files of a repository at a revision.
    pub(crate) fn listing(&self, repo: &str, revision: &str) -> std::result::Result<Listing, Trouble> {
        let url = format!("{}/api/models/{repo}/revision/{}", self.endpoint, encode(revision, false));
        let mut reply = self.send(false, &url, None)?;
        let text = reply.body.with_config().limit(MAX_LISTING_BYTES).read_to_vec();
        let text = text.map_err(|e| self.network(&reply.url, e))?;
        let listing: Listing = serde_json::from_slice(&text).map_err(|error| Error::Protocol {
            url: reply.url.clone(),
            what: "list of files",
            expected: "JSON with `sha` and `siblings`".into(),
            found: error.to_string(),
        })?;
        if listing.commit.len() != 40 || !is_hex(&listing.commit) {
            let (what, expected) = ("commit", "40 hexadecimal digits".into());
            return Err(Error::Protocol { url: reply.url, what, expected, found: listing.commit }.into());
        }
        Ok(listing)
    }

    /// Checksum and size of a file.
    pub(crate) fn meta(&self, url: &str) -> std::result::Result<Meta, Trouble> {
        let reply = self.send(true, url, None)?;
        let etag = reply.header("x-linked-etag").or(reply.header("etag")).unwrap_or("none");
        let size = reply.header("x-linked-size").or(reply.header("content-length")).unwrap_or("none");
        let wrong = |what, expected: &str, found: &str| Error::Protocol {
            url: url.into(),
            what,
            expected: expected.into(),
            found: found.into(),
        };
        Ok(Meta {
            etag: Etag::parse(etag).ok_or_else(|| wrong("ETag", "a sha256 or a git sha1", etag))?,
            size: size.parse().map_err(|_| wrong("size", "a number of bytes", size))?,
        })
    }

    /// The bytes of a file from `offset` on.
    pub(crate) fn get(&self, url: &str, offset: u64) -> std::result::Result<Reply, Trouble> {
        self.send(false, url, (offset > 0).then_some(offset))
    }

    /// Sends a request and follows redirects. Success, and 416 for a range, come back as a reply;
    /// a HEAD comes back as soon as a hop announces a large file's checksum.
    fn send(&self, head: bool, url: &str, offset: Option<u64>) -> std::result::Result<Reply, Trouble> {
        let mut at: Uri = url.parse().map_err(|_| self.bad_address(url, url))?;
        for _ in 0..MAX_HOPS {
            let mut request = if head { self.agent.head(&at) } else { self.agent.get(&at) };
            let token = self.token.as_ref().filter(|_| same_origin(&at, &self.origin));
            if let Some(token) = token {
                request = request.header("authorization", format!("Bearer {}", token.expose()));
            }
            if let Some(offset) = offset {
                request = request.header("range", format!("bytes={offset}-"));
            }
            let response = request.call().map_err(|e| self.network(&at.to_string(), e))?;
            let (parts, body) = response.into_parts();
            let reply = Reply { url: at.to_string(), status: parts.status.as_u16(), headers: parts.headers, body };
            match reply.status {
                200..=299 => return Ok(reply),
                416 if offset.is_some() => return Ok(reply),
                301 | 302 | 303 | 307 | 308 => {
                    if head && reply.header("x-linked-etag").is_some() {
                        return Ok(reply);
                    }
                    let location = reply.header("location").unwrap_or_default();
                    at = self.next_hop(&at, location)?;
                }
                _ => return Err(self.failure(reply, token.is_some())),
            }
        }
        let expected = format!("at most {MAX_HOPS} hops");
        Err(Error::Protocol { url: url.into(), what: "redirects", expected, found: "more".into() }.into())
    }

    /// Where a redirect leads, if it may lead there.
    fn next_hop(&self, from: &Uri, location: &str) -> Result<Uri> {
        let refused = || self.bad_address(&from.to_string(), location);
        let absolute = if location.starts_with('/') && !location.starts_with("//") {
            let authority = from.authority().map_or("", |a| a.as_str());
            format!("{}://{authority}{location}", from.scheme_str().unwrap_or("https"))
        } else {
            location.to_owned()
        };
        let to: Uri = absolute.parse().map_err(|_| refused())?;
        let downgrade = from.scheme_str() == Some("https") && to.scheme_str() != Some("https");
        let inward = is_local(&to) && !is_local(&self.origin);
        let plain = matches!(to.scheme_str(), Some("http" | "https")) && to.host().is_some() && !has_user(&to);
        if !plain || downgrade || inward {
            return Err(refused());
        }
        Ok(to)
    }

    fn bad_address(&self, url: &str, found: &str) -> Error {
        Error::Protocol {
            url: url.into(),
            what: "redirect",
            expected: "an http(s) address, no step from https to http, none into a private network".into(),
            found: found.into(),
        }
    }

    fn failure(&self, reply: Reply, token_sent: bool) -> Trouble {
        let wait = reply.header("retry-after").and_then(|s| s.parse().ok()).map(Duration::from_secs);
        let (url, status) = (reply.url, reply.status);
        let at_hub = url.parse().is_ok_and(|at| same_origin(&at, &self.origin));
        match status {
            401 | 403 if at_hub => Error::Denied { url, status, token_sent }.into(),
            404 => {
                Error::NotFound { what: "repository, revision or file".into(), place: url, available: vec![] }.into()
            }
            408 | 429 | 500 | 502..=504 => {
                Trouble { wait, ..Trouble::transient(Error::Status { url, status, attempts: 1 }) }
            }
            _ => Error::Status { url, status, attempts: 1 }.into(),
        }
    }

    fn network(&self, url: &str, error: ureq::Error) -> Trouble {
        let transient = !matches!(error, ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::BadUri(_));
        Trouble { transient, ..broken(url, error.into_io()) }
    }

    /// Tries until it works, the trouble is not transient, or `attempts` in a row got no further.
    pub(crate) fn retry<T>(
        &self,
        watch: &mut Watch<'_>,
        mut attempt: impl FnMut(&mut Watch<'_>) -> std::result::Result<T, Trouble>,
    ) -> Result<T> {
        let mut failures = 0;
        loop {
            let mut trouble = match attempt(watch) {
                Ok(value) => return Ok(value),
                Err(trouble) => trouble,
            };
            failures = if trouble.progressed { 1 } else { failures + 1 };
            if !trouble.transient || failures >= self.attempts {
                if let Error::Status { attempts, .. } | Error::Network { attempts, .. } = &mut trouble.error {
                    *attempts = failures;
                }
                return Err(trouble.error);
            }
            let doubled = self.backoff.saturating_mul(1 << (failures - 1).min(16));
            let wait = trouble.wait.unwrap_or(doubled).min(MAX_WAIT);
            watch.sleep(Stage::Retrying { attempt: failures + 1, wait }, wait)?;
        }
    }
}

/// A connection that broke: worth another attempt.
pub(crate) fn broken(url: &str, source: io::Error) -> Trouble {
    Trouble::transient(Error::Network { url: url.into(), attempts: 1, source })
}

fn has_user(uri: &Uri) -> bool {
    uri.authority().is_some_and(|a| a.as_str().contains('@'))
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |u: &Uri| u.port_u16().unwrap_or(if u.scheme_str() == Some("https") { 443 } else { 80 });
    let host = |u: &Uri| u.host().unwrap_or_default().to_ascii_lowercase();
    a.scheme_str() == b.scheme_str() && host(a) == host(b) && port(a) == port(b)
}

/// Whether an address names this machine or a private network by number (a name may still lead there).
fn is_local(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_ascii_lowercase();
    match host.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_unspecified(),
        Ok(IpAddr::V6(ip)) => {
            ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_unspecified()
        }
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

/// Percent-encodes a path; a slash stays one if `keep_slash`.
fn encode(text: &str, keep_slash: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(b.into()),
            b'/' if keep_slash => out.push('/'),
            _ => out += &format!("%{b:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(endpoint: &str) -> Client {
        Client::new(&Config { endpoint: endpoint.into(), ..Config::new("/nowhere") }).unwrap()
    }

    #[test]
    fn redirects_lead_where_they_may() {
        let hub = client("https://hub.example");
        let from: Uri = "https://hub.example/a/b".parse().unwrap();
        let hop = |to: &str| hub.next_hop(&from, to).map(|u| u.to_string());
        assert_eq!(hop("/c?d=1").unwrap(), "https://hub.example/c?d=1");
        assert_eq!(hop("https://cdn.example/x").unwrap(), "https://cdn.example/x");
        let refused = [
            "http://cdn.example/x",
            "https://127.0.0.1/x",
            "https://10.0.0.8/x",
            "https://169.254.169.254/latest",
            "https://[::1]/x",
            "https://[::ffff:10.0.0.1]/x",
            "https://localhost/x",
            "https://user@cdn.example/x",
            "file:///etc/passwd",
            "ftp://x/y",
            "c",
            "",
        ];
        for to in refused {
            assert!(matches!(hop(to), Err(Error::Protocol { .. })), "{to}");
        }
        let local = client("http://127.0.0.1:8080");
        let from: Uri = "http://127.0.0.1:8080/a".parse().unwrap();
        assert!(local.next_hop(&from, "http://127.0.0.1:9090/x").is_ok());
    }

    #[test]
    fn one_origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| same_origin(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://Hub.example/a", "https://hub.example:443/b"));
        assert!(!same("https://hub.example/a", "http://hub.example/a"));
        assert!(!same("https://hub.example/a", "https://hub.example:8443/a"));
        assert!(!same("https://hub.example/a", "https://hub.example.evil.example/a"));
    }

    #[test]
    fn etags_are_one_of_two_hashes() {
        let sha256 = "0f".repeat(32);
        assert_eq!(Etag::parse(&format!("\"{sha256}\"")), Some(Etag::Sha256(sha256.clone())));
        assert_eq!(Etag::parse(&format!("W/\"{}\"", "ab".repeat(20))), Some(Etag::GitSha1("ab".repeat(20))));
        for bad in ["", "\"d41d8cd98f00b204e9800998ecf8427e\"", &"0F".repeat(32), &format!("../{}", "a".repeat(61))] {
            assert_eq!(Etag::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn addresses_are_encoded() {
        let hub = client("https://hub.example/base/");
        assert_eq!(
            hub.file_url("a/b", "c0", "d e/f#?.gguf"),
            "https://hub.example/base/a/b/resolve/c0/d%20e/f%23%3F.gguf"
        );
        assert_eq!(encode("refs/pr/1", false), "refs%2Fpr%2F1");
        assert!(Client::new(&Config { endpoint: "hub.example".into(), ..Config::new("/x") }).is_err());
    }
}
