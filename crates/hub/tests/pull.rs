//! Pulls against a stand-in for the hub: what arrives, what goes wrong, and what is never left behind.
//!
//! Each test has its own server and cache. `nothing_half_written` holds after every failure: all
//! that a cache may hold then is unfinished blobs.

mod stand_in;

use fathom_hub::{Config, Error, Hub, Progress, Pulled, Stage, Token};
use stand_in::{COMMIT, Fault, StandIn, bytes};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const MODEL: &str = "deepseek-ai/tiny";
const GGUF: &str = "tiny-Q4_K_M.gguf";

fn directory_files() -> Vec<(&'static str, Vec<u8>)> {
    let index = br#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    vec![
        ("config.json", b"{}".to_vec()),
        ("model-00001-of-00002.safetensors", bytes("one", 70_000)),
        ("model-00002-of-00002.safetensors", bytes("two", 50_000)),
        ("model.safetensors.index.json", index.to_vec()),
        ("pytorch_model.bin", bytes("pickle", 5000)),
        ("tokenizer.json", bytes("tokenizer", 3000)),
        ("README.md", b"read me".to_vec()),
    ]
}

fn gguf_hub() -> StandIn {
    StandIn::new(&[(GGUF, bytes("gguf", 1_000_000))])
}

fn hub_at(endpoint: &str, cache: &Path, token: Option<&str>) -> Hub {
    Hub::new(Config {
        endpoint: endpoint.into(),
        token: token.map(|t| Token::new(t).unwrap()),
        attempts: 3,
        backoff: Duration::from_millis(1),
        silence: Duration::from_millis(500),
        system_proxy: false,
        ..Config::new(cache)
    })
    .unwrap()
}

fn pull(hub: &Hub, name: &str) -> fathom_hub::Result<Pulled> {
    hub.pull(name, &mut |_| ControlFlow::Continue(()))
}

/// Every file and link of a cache, relative.
fn contents(dir: &Path) -> Vec<String> {
    fn walk(root: &Path, dir: &Path, into: &mut Vec<String>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type().unwrap().is_dir() {
                true => walk(root, &path, into),
                false => into.push(path.strip_prefix(root).unwrap().display().to_string()),
            }
        }
    }
    let mut found = vec![];
    walk(dir, dir, &mut found);
    found.retain(|f| !f.starts_with(".locks/"));
    found.sort();
    found
}

fn nothing_half_written(cache: &Path) {
    let left = contents(cache);
    assert!(left.iter().all(|f| f.ends_with(".incomplete")), "left behind: {left:?}");
    assert_eq!(hub_at("http://127.0.0.1:1", cache, None).resolve(MODEL).unwrap(), None);
}

#[test]
fn a_directory_model_arrives_in_the_hubs_layout() {
    let (server, cache) = (StandIn::new(&directory_files()), tempfile::tempdir().unwrap());
    let hub = hub_at(&server.url(), cache.path(), None);
    assert_eq!(hub.resolve(MODEL).unwrap(), None);
    let pulled = pull(&hub, MODEL).unwrap();
    let snapshot = cache.path().join("models--deepseek-ai--tiny/snapshots").join(COMMIT);
    assert_eq!(pulled.path, snapshot);
    assert_eq!(pulled.files.len(), 5);
    for (name, content) in directory_files() {
        let wanted = !["pytorch_model.bin", "README.md"].contains(&name);
        assert_eq!(fs::read(snapshot.join(name)).ok(), wanted.then_some(content), "{name}");
    }
    let main = fs::read_to_string(cache.path().join("models--deepseek-ai--tiny/refs/main")).unwrap();
    assert_eq!(main, COMMIT);
    let target = fs::read_link(snapshot.join("config.json")).unwrap();
    // `git hash-object` of a file that holds `{}`.
    assert_eq!(target, Path::new("../../blobs/9e26dfeeb6e641a33dae4961196235bdb965b21b"));
    assert_eq!(pulled.received_bytes, pulled.total_bytes);
    assert!(server.log().iter().all(|r| !r.path.contains("pytorch_model")));

    // Again: the list is asked for, nothing is fetched. Offline: resolved all the same.
    let again = pull(&hub, MODEL).unwrap();
    assert_eq!((again.received_bytes, again.path), (0, pulled.path.clone()));
    let offline = hub_at("http://127.0.0.1:1", cache.path(), None);
    assert_eq!(offline.resolve(MODEL).unwrap(), Some(pulled.path));
}

#[test]
fn a_model_that_lost_a_shard_is_not_resolved_and_a_pull_mends_it() {
    let (server, cache) = (StandIn::new(&directory_files()), tempfile::tempdir().unwrap());
    let hub = hub_at(&server.url(), cache.path(), None);
    let pulled = pull(&hub, MODEL).unwrap();
    fs::remove_file(fs::canonicalize(pulled.path.join("model-00002-of-00002.safetensors")).unwrap()).unwrap();
    assert_eq!(hub.resolve(MODEL).unwrap(), None);
    assert_eq!(pull(&hub, MODEL).unwrap().received_bytes, 50_000);
    assert!(hub.resolve(MODEL).unwrap().is_some());
}

#[test]
fn a_cut_connection_is_resumed_where_it_broke() {
    let (server, cache) = (gguf_hub(), tempfile::tempdir().unwrap());
    server.fault(GGUF, Fault::Cut(300_000)).fault(GGUF, Fault::Cut(0)).fault(GGUF, Fault::Cut(200_000));
    let pulled = pull(&hub_at(&server.url(), cache.path(), None), MODEL).unwrap();
    assert_eq!(fs::read(&pulled.path).unwrap(), bytes("gguf", 1_000_000));
    assert_eq!(pulled.received_bytes, 1_000_000);
    let ranges: Vec<_> = server
        .gets(GGUF)
        .iter()
        .filter(|r| r.path.starts_with("/cdn"))
        .map(|r| r.headers.get("range").cloned())
        .collect();
    let from = |n: u32| Some(format!("bytes={n}-"));
    assert_eq!(ranges, [None, from(300_000), from(300_000), from(500_000)]);
}

#[test]
fn a_later_pull_resumes_what_an_earlier_one_left() {
    let (server, cache) = (gguf_hub(), tempfile::tempdir().unwrap());
    server.fault(GGUF, Fault::Cut(400_000));
    for _ in 0..2 {
        server.fault(GGUF, Fault::Status(503, ""));
    }
    let hub = hub_at(&server.url(), cache.path(), None);
    assert!(matches!(pull(&hub, MODEL), Err(Error::Status { status: 503, attempts: 3, .. })));
    nothing_half_written(cache.path());
    assert_eq!(pull(&hub, MODEL).unwrap().received_bytes, 600_000);
}

#[test]
fn a_server_without_ranges_starts_over() {
    let (server, cache) = (gguf_hub(), tempfile::tempdir().unwrap());
    server.fault(GGUF, Fault::Cut(300_000)).fault(GGUF, Fault::NoRange);
    let pulled = pull(&hub_at(&server.url(), cache.path(), None), MODEL).unwrap();
    assert_eq!(fs::read(&pulled.path).unwrap(), bytes("gguf", 1_000_000));
    assert_eq!(pulled.received_bytes, 1_300_000);
}

#[test]
fn a_server_that_never_gets_further_is_given_up() {
    for fault in [Fault::Cut(0), Fault::CutWithoutRange(300_000)] {
        let (server, cache) = (gguf_hub(), tempfile::tempdir().unwrap());
        for _ in 0..9 {
            server.fault(GGUF, fault.clone());
        }
        let result = pull(&hub_at(&server.url(), cache.path(), None), MODEL);
        assert!(matches!(result, Err(Error::Network { attempts: 3, .. })), "{result:?}");
        assert_eq!(server.gets(GGUF).iter().filter(|r| r.path.starts_with("/cdn")).count(), 3);
        nothing_half_written(cache.path());
    }
}

#[test]
fn a_wrong_byte_is_fetched_again_once_then_refused() {
    let (server, cache) = (gguf_hub(), tempfile::tempdir().unwrap());
    server.fault(GGUF, Fault::WrongByte);
    let hub = hub_at(&server.url(), cache.path(), None);
    let pulled = pull(&hub, MODEL).unwrap();
    assert_eq!(fs::read(&pulled.path).unwrap(), bytes("gguf", 1_000_000));
    assert_eq!(pulled.received_bytes, 2_000_000);

    let cache = tempfile::tempdir().unwrap();
    server.fault(GGUF, Fault::WrongByte).fault(GGUF, Fault::WrongByte);
    let error = pull(&hub_at(&server.url(), cache.path(), None), MODEL).unwrap_err();
    assert!(
        matches!(&error, Error::Checksum { file, expected, found, .. } if file == GGUF && expected != found),
        "{error}"
    );
    assert_eq!(contents(cache.path()), Vec::<String>::new());
}

#[test]
fn a_small_file_with_a_wrong_byte_is_refused_too() {
    let (server, cache) = (StandIn::new(&directory_files()), tempfile::tempdir().unwrap());
    server.fault("config.json", Fault::WrongByte).fault("config.json", Fault::WrongByte);
    let error = pull(&hub_at(&server.url(), cache.path(), None), MODEL).unwrap_err();
    assert!(matches!(&error, Error::Checksum { file, .. } if file == "config.json"), "{error}");
    nothing_half_written(cache.path());
}

#[test]
fn a_wrong_length_or_range_is_tried_again_then_refused() {
    for fault in [Fault::Length(-10), Fault::Length(10), Fault::WrongRange] {
        let (server, cache) = (gguf_hub(), tempfile::tempdir().unwrap());
        server.fault(GGUF, Fault::Cut(1000));
        server.fault(GGUF, fault.clone());
        let pulled = pull(&hub_at(&server.url(), cache.path(), None), MODEL).unwrap();
        assert_eq!(fs::read(&pulled.path).unwrap(), bytes("gguf", 1_000_000), "{fault:?}");
    }
    for by in [-10, 10] {
        let (server, cache) = (gguf_hub(), tempfile::tempdir().unwrap());
        for _ in 0..3 {
            server.fault(GGUF, Fault::Length(by));
        }
        let error = pull(&hub_at(&server.url(), cache.path(), None), MODEL).unwrap_err();
        let right = |what: &str, expected: &str| what == "Content-Length" && expected == "1000000";
        assert!(matches!(&error, Error::Protocol { what, expected, .. } if right(what, expected)), "{error}");
        nothing_half_written(cache.path());
    }
}

#[test]
fn silence_counts_as_a_broken_connection() {
    let (server, cache) = (gguf_hub(), tempfile::tempdir().unwrap());
    server.fault(GGUF, Fault::Stall(Duration::from_secs(20)));
    let start = Instant::now();
    assert!(pull(&hub_at(&server.url(), cache.path(), None), MODEL).is_ok());
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn the_token_goes_to_the_endpoint_and_not_to_where_it_redirects() {
    let cache = tempfile::tempdir().unwrap();
    let content = bytes("gguf", 100_000);
    let cdn = StandIn::new(&[(GGUF, content.clone())]);
    let server = StandIn::new(&[(GGUF, content.clone())]);
    server.redirect_to(&cdn.url()).require_token("hf_secret");
    let pulled = pull(&hub_at(&server.url(), cache.path(), Some("hf_secret")), MODEL).unwrap();
    assert_eq!(fs::read(&pulled.path).unwrap(), content);
    assert_eq!(cdn.log().len(), 1);
    for request in cdn.log() {
        assert!(!format!("{request:?}").contains("hf_secret"), "{request:?}");
    }
    assert!(server.log().iter().all(|r| r.headers["authorization"] == "Bearer hf_secret"));
}

#[test]
fn a_refusal_says_what_to_do_and_follows_no_realm() {
    let (server, cache) = (gguf_hub(), tempfile::tempdir().unwrap());
    server.require_token("hf_secret");
    let error = pull(&hub_at(&server.url(), cache.path(), None), MODEL).unwrap_err();
    assert!(matches!(error, Error::Denied { status: 401, token_sent: false, .. }), "{error}");
    assert!(error.to_string().contains("HF_TOKEN"));
    let error = pull(&hub_at(&server.url(), cache.path(), Some("hf_other")), MODEL).unwrap_err();
    assert!(matches!(error, Error::Denied { token_sent: true, .. }));
    assert!(!format!("{error:?} {error}").contains("hf_other"));
    assert_eq!(server.log().len(), 2);
}

#[test]
fn statuses_are_retried_where_that_can_help() {
    let (server, cache) = (gguf_hub(), tempfile::tempdir().unwrap());
    let hub = hub_at(&server.url(), cache.path(), None);
    server.fault("api", Fault::Status(404, ""));
    assert!(matches!(pull(&hub, MODEL), Err(Error::NotFound { .. })));
    server.fault("api", Fault::Status(418, ""));
    assert!(matches!(pull(&hub, MODEL), Err(Error::Status { status: 418, attempts: 1, .. })));
    assert_eq!(server.log().len(), 2);
    for _ in 0..3 {
        server.fault("api", Fault::Status(500, ""));
    }
    assert!(matches!(pull(&hub, MODEL), Err(Error::Status { status: 500, attempts: 3, .. })));
    assert_eq!(server.log().len(), 5);

    server.fault("api", Fault::Status(429, "Retry-After: 1\r\n")).fault(GGUF, Fault::Status(503, ""));
    let (start, mut waits) = (Instant::now(), vec![]);
    let pulled = hub.pull(MODEL, &mut |progress| {
        if let Stage::Retrying { wait, .. } = progress.stage {
            waits.push(wait);
        }
        ControlFlow::Continue(())
    });
    assert!(pulled.is_ok());
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(waits.first(), Some(&Duration::from_secs(1)));
    assert_eq!(waits.last(), Some(&Duration::from_millis(1)));
}

#[test]
fn names_that_would_leave_the_cache_are_refused() {
    for evil in ["../../evil.gguf", "/tmp/evil.gguf", "a/../../evil.gguf", "a\\..\\evil.gguf", "c:evil.gguf"] {
        let (server, cache) = (StandIn::new(&[(evil, bytes("evil", 2000))]), tempfile::tempdir().unwrap());
        let error = pull(&hub_at(&server.url(), cache.path(), None), MODEL).unwrap_err();
        assert!(matches!(&error, Error::Invalid { what: "file of the hub", value, .. } if value == evil), "{error}");
        assert_eq!(contents(cache.path()), Vec::<String>::new());
    }
}

#[test]
fn a_model_larger_than_the_disk_is_refused_before_a_byte_is_fetched() {
    // A HEAD that announces far more than any disk has.
    let cache = tempfile::tempdir().unwrap();
    let huge = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", huge.local_addr().unwrap());
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for mut stream in huge.incoming().flatten() {
            let mut request = [0; 4096];
            let count = stream.read(&mut request).unwrap_or(0);
            let head = request[..count].starts_with(b"HEAD");
            let body = format!(r#"{{"sha":"{COMMIT}","siblings":[{{"rfilename":"{GGUF}"}}]}}"#);
            let extra = format!(
                "X-Linked-Etag: \"{}\"\r\nX-Linked-Size: 9000000000000000000\r\nLocation: /\r\n",
                "ab".repeat(32)
            );
            let reply = match head {
                true => format!("HTTP/1.1 302 Found\r\n{extra}Content-Length: 0\r\nConnection: close\r\n\r\n"),
                false => {
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
                }
            };
            stream.write_all(reply.as_bytes()).ok();
        }
    });
    let error = pull(&hub_at(&url, cache.path(), None), MODEL).unwrap_err();
    assert!(matches!(error, Error::Space { needed_bytes: 9_000_000_000_000_000_000, .. }), "{error}");
    nothing_half_written(cache.path());
}

#[test]
fn progress_adds_up_and_cancel_keeps_what_came() {
    let (server, cache) = (StandIn::new(&directory_files()), tempfile::tempdir().unwrap());
    server.fault("model-00001-of-00002.safetensors", Fault::Slow(10_000, Duration::from_millis(5)));
    let hub = hub_at(&server.url(), cache.path(), None);
    let result = hub.pull(MODEL, &mut |p: &Progress<'_>| match p.stage == Stage::Fetching && p.file_bytes >= 20_000 {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    });
    assert!(matches!(result, Err(Error::Cancelled)));
    let kept: u64 = hub.list().unwrap().iter().map(|c| c.unfinished_bytes).sum();
    assert!((20_000..70_000).contains(&kept), "{kept}");
    assert_eq!(hub.resolve(MODEL).unwrap(), None);

    let mut last = (0, 0, 0);
    let pulled = hub
        .pull(MODEL, &mut |p| {
            assert!(p.done_bytes <= p.total_bytes, "{p:?}");
            assert!(p.done_bytes >= last.0, "{p:?}");
            last = (p.done_bytes, p.total_bytes, p.received_bytes);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(last, (pulled.total_bytes, pulled.total_bytes, pulled.received_bytes));
    assert_eq!(pulled.received_bytes, pulled.total_bytes - kept - 2);
}

#[test]
fn types_and_parts_are_chosen_listed_and_deleted() {
    let parts: Vec<String> = (1..=3).map(|i| format!("Q8_0/tiny-Q8_0-{i:05}-of-00003.gguf")).collect();
    let mut files = vec![(GGUF, bytes("gguf", 3000))];
    files.extend(parts.iter().map(|p| (p.as_str(), bytes(p, 2000))));
    let (server, cache) = (StandIn::new(&files), tempfile::tempdir().unwrap());
    let hub = hub_at(&server.url(), cache.path(), None);
    let q8 = pull(&hub, &format!("{MODEL}:Q8_0")).unwrap();
    assert!(q8.path.ends_with(&parts[0]), "{}", q8.path.display());
    assert_eq!(fs::read(&q8.files[2]).unwrap(), bytes(&parts[2], 2000));
    pull(&hub, MODEL).unwrap();
    let listed = hub.list().unwrap();
    assert_eq!((listed.len(), listed[0].bytes, listed[0].unfinished_bytes), (1, 9000, 0));
    assert_eq!(listed[0].models, [format!("{MODEL}:{}", parts[0]), format!("{MODEL}:{GGUF}")]);
    for name in &listed[0].models {
        assert!(hub.resolve(name).unwrap().is_some(), "{name}");
    }
    assert!(hub.resolve(&format!("{MODEL}@{COMMIT}:Q8_0")).unwrap().is_some());
    assert_eq!(hub.resolve(&format!("{MODEL}@other:Q8_0")).unwrap(), None);

    assert_eq!(hub.delete(&format!("{MODEL}:Q8_0")).unwrap(), 6000);
    assert_eq!(hub.resolve(&format!("{MODEL}:Q8_0")).unwrap(), None);
    assert!(hub.resolve(MODEL).unwrap().is_some());
    assert_eq!(hub.delete(MODEL).unwrap(), 3000);
    assert_eq!((hub.list().unwrap(), hub.delete(MODEL).unwrap()), (vec![], 0));
    assert_eq!(contents(cache.path()), Vec::<String>::new());
}

/// The other process of the tests below: this test binary again, asked to run `test` as a child.
fn child(test: &str, endpoint: &str, cache: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("FATHOM_HUB_CHILD", format!("{endpoint} {}", cache.display()))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

/// If this process is such a child: pulls, and says whether it was one.
fn acted_as_child() -> bool {
    let Ok(text) = std::env::var("FATHOM_HUB_CHILD") else { return false };
    let (endpoint, cache) = text.split_once(' ').unwrap();
    pull(&hub_at(endpoint, Path::new(cache), None), MODEL).unwrap();
    true
}

#[test]
fn a_killed_process_leaves_nothing_under_a_final_name() {
    if acted_as_child() {
        return;
    }
    let (server, cache) = (gguf_hub(), tempfile::tempdir().unwrap());
    let blobs = cache.path().join("models--deepseek-ai--tiny/blobs");
    let unfinished = || -> Option<(PathBuf, u64)> {
        let entry = fs::read_dir(&blobs).ok()?.flatten().next()?;
        Some((entry.path(), entry.metadata().ok()?.len()))
    };
    for kill_at in [1, 300_000] {
        server.fault(GGUF, Fault::Slow(20_000, Duration::from_millis(10)));
        let mut process = child("a_killed_process_leaves_nothing_under_a_final_name", &server.url(), cache.path());
        let deadline = Instant::now() + Duration::from_secs(20);
        while unfinished().is_none_or(|(_, length)| length < kill_at) {
            assert!(Instant::now() < deadline, "the child did not get to {kill_at} bytes");
            std::thread::sleep(Duration::from_millis(2));
        }
        process.kill().unwrap();
        process.wait().unwrap();
        nothing_half_written(cache.path());
    }
    let kept = unfinished().unwrap().1;
    assert!((300_000..1_000_000).contains(&kept), "{kept}");
    // The dead process's lock is gone with it, and its bytes are used.
    let pulled = pull(&hub_at(&server.url(), cache.path(), None), MODEL).unwrap();
    assert_eq!(pulled.received_bytes, 1_000_000 - kept);
    assert_eq!(fs::read(&pulled.path).unwrap(), bytes("gguf", 1_000_000));
}

#[test]
fn two_processes_at_once_fetch_each_byte_once() {
    if acted_as_child() {
        return;
    }
    let (server, cache) = (gguf_hub(), tempfile::tempdir().unwrap());
    server.fault(GGUF, Fault::Slow(50_000, Duration::from_millis(5)));
    let test = "two_processes_at_once_fetch_each_byte_once";
    let mut processes: Vec<Child> = (0..3).map(|_| child(test, &server.url(), cache.path())).collect();
    for process in &mut processes {
        assert!(process.wait().unwrap().success());
    }
    assert_eq!(server.gets(GGUF).iter().filter(|r| r.path.starts_with("/cdn")).count(), 1);
    let path = hub_at(&server.url(), cache.path(), None).resolve(MODEL).unwrap().unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes("gguf", 1_000_000));
}

#[test]
fn threads_of_one_process_wait_for_each_other_too() {
    let (server, cache) = (gguf_hub(), tempfile::tempdir().unwrap());
    server.fault(GGUF, Fault::Slow(50_000, Duration::from_millis(5)));
    let received: u64 = std::thread::scope(|scope| {
        let hub = || hub_at(&server.url(), cache.path(), None);
        let threads: Vec<_> =
            (0..3).map(|_| scope.spawn(move || pull(&hub(), MODEL).unwrap().received_bytes)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(received, 1_000_000);
}
