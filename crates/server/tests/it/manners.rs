//! How the server behaves when clients are wrong, greedy, slow, or gone.

use std::io::Read;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fathom_server::{Access, Limits};
use serde_json::{Value, json};

use crate::client::Client;
use crate::parrot::{Setting, start};

fn hello(extra: Value) -> Value {
    let mut body = json!({"model": "parrot", "messages": [{"role": "user", "content": "Please say hello."}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

const CHAT: &str = "/v1/chat/completions";

#[test]
fn a_key_is_asked_for_and_other_sites_are_kept_out() {
    let access = Access::new(&["secret".into()], vec![], vec![]);
    let (client, _) = start(Setting { access, ..Setting::default() });
    assert_eq!(client.get("/health").status, 200, "probes need no key");
    assert_eq!(client.get("/").status, 200, "nor does the page's file");
    for path in ["/v1/models", "/metrics", "/api/tags", "/openapi.json"] {
        assert_eq!(client.get(path).status, 401, "{path}");
    }
    let refused = client.send("POST", "/v1/messages", &[], "{}");
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (401, &json!("authentication_error")));
    let keyed = Client { key: Some("secret".into()), ..client.clone() };
    assert_eq!(keyed.post(CHAT, &hello(json!({}))).status, 200);
    assert_eq!(client.send("GET", "/v1/models", &[("x-api-key", "secret")], "").status, 200);
    assert_eq!(keyed.send("GET", "/v1/models", &[("host", "evil.example")], "").status, 403);
    let foreign = keyed.send("POST", CHAT, &[("origin", "https://evil.example")], "{}");
    assert_eq!((foreign.status, foreign.header("access-control-allow-origin")), (403, None));
}

#[test]
fn errors_carry_the_request_id_and_never_a_5xx() {
    let (client, _) = start(Setting::default());
    for (method, path, body, status) in [
        ("POST", CHAT, "", 400),
        ("POST", CHAT, "{", 400),
        ("POST", CHAT, "[]", 400),
        ("POST", CHAT, "{\"model\": \"parrot\"}", 400),
        ("GET", CHAT, "", 405),
        ("GET", "/nowhere", "", 404),
        ("POST", "/v1/embeddings", "{\"model\":\"parrot\",\"input\":[]}", 400),
        ("POST", "/v1/completions", "{\"model\":\"parrot\",\"prompt\":[4000000]}", 400),
        ("POST", "/v1/completions", "{\"model\":\"parrot\",\"prompt\":\"a\",\"n\":17}", 400),
        ("DELETE", "/api/delete", "{\"model\":\"x\"}", 404),
    ] {
        let answer = client.send(method, path, &[("x-request-id", "mine-1")], body);
        assert_eq!(answer.status, status, "{method} {path} {body}: {}", answer.body);
        assert_eq!(answer.header("x-request-id"), Some("mine-1"));
        assert!(answer.body.contains("mine-1"), "{}", answer.body);
    }
}

#[test]
fn inert_fields_are_listed_and_refused_ones_named() {
    let (client, _) = start(Setting::default());
    let answer = client.post(CHAT, &hello(json!({"user": "me", "store": true, "audio": null})));
    assert_eq!(answer.header("fathom-inert"), Some("user, store"));
    let refused = client.post(CHAT, &hello(json!({"audio": {"voice": "x"}})));
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("audio")));
}

#[test]
fn a_context_too_long_is_refused_with_both_numbers() {
    let (client, _) = start(Setting::default());
    let long = "word ".repeat(900);
    let answer = client.post("/v1/completions", &json!({"model": "parrot", "prompt": long}));
    let text = answer.json()["error"]["message"].to_string();
    assert_eq!(answer.status, 400);
    assert!(text.contains("512") && text.contains("tokens"), "{text}");
    assert_eq!(answer.json()["error"]["code"], "context_length_exceeded");
    let asked = client.post(
        "/api/chat",
        &json!({"model": "parrot", "messages": [{"role": "user", "content": "a"}],
        "options": {"num_ctx": 4096}}),
    );
    assert!(asked.status == 400 && asked.body.contains("4096") && asked.body.contains("512"), "{}", asked.body);
}

#[test]
fn too_large_a_body_or_head_is_refused() {
    let limits = Limits { body_bytes: 1000, head_bytes: 8192, ..Limits::default() };
    let (client, _) = start(Setting { limits, ..Setting::default() });
    let body = hello(json!({"user": "x".repeat(2000)})).to_string();
    assert_eq!(client.send("POST", CHAT, &[], &body).status, 413);
    let long = "x".repeat(20_000);
    assert_eq!(client.send("GET", "/health", &[("x-long", &long)], "").status, 431);
}

#[test]
fn a_client_that_leaves_stops_the_work() {
    let (client, watch) = start(Setting::default());
    watch.slow.store(50, Ordering::SeqCst);
    for stream in [true, false] {
        let body = json!({"model": "parrot", "stream": stream, "ignore_eos": true,
            "messages": [{"role": "user", "content": "count for ever"}]});
        let mut open = client.open("POST", CHAT, &[], &body.to_string());
        if stream {
            let mut first = [0; 64];
            open.read_exact(&mut first).unwrap();
        } else {
            std::thread::sleep(Duration::from_millis(300));
        }
        drop(open);
        std::thread::sleep(Duration::from_millis(500));
        let steps = watch.steps.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(watch.steps.load(Ordering::SeqCst), steps, "stream {stream}: it goes on computing");
    }
    let metrics = client.get("/metrics").body;
    assert!(metrics.contains("fathom_cancelled_total 2"), "{metrics}");
    assert!(metrics.contains("vllm:num_requests_running{model_name=\"parrot\"} 0"), "{metrics}");
    assert!(metrics.contains("vllm:kv_cache_usage_perc{model_name=\"parrot\"} 0"), "no block leaks: {metrics}");
}

#[test]
fn a_key_has_its_share_and_no_more_and_its_own_cache() {
    let access = Access::new(&["one".into(), "two".into()], vec![], vec![]);
    let limits = Limits { per_key: Some(2), ..Limits::default() };
    let (client, watch) = start(Setting { access, limits, key: Some("one"), ..Setting::default() });
    let keyed = |key: &str| Client { key: Some(key.into()), ..client.clone() };
    let (one, two) = (keyed("one"), keyed("two"));
    watch.slow.store(30, Ordering::SeqCst);
    let long = hello(json!({"ignore_eos": true, "stream": true, "max_tokens": 400})).to_string();
    let held: Vec<_> = (0..2)
        .map(|_| {
            let mut open = one.open("POST", CHAT, &[], &long);
            open.read_exact(&mut [0; 64]).unwrap();
            open
        })
        .collect();
    let over = one.post(CHAT, &hello(json!({})));
    assert_eq!((over.status, over.header("retry-after").is_some()), (429, true), "{}", over.body);
    assert_eq!(over.json()["error"]["type"], "rate_limit_error");
    let too_many = one.post(CHAT, &hello(json!({"n": 3})));
    assert_eq!((too_many.status, too_many.json()["error"]["param"].as_str()), (400, Some("n")), "never, not later");
    assert_eq!(two.post(CHAT, &hello(json!({}))).status, 200, "another key has its own share");
    drop(held);
    watch.slow.store(0, Ordering::SeqCst);
    let until = Instant::now() + Duration::from_secs(10);
    while one.post(CHAT, &hello(json!({}))).status != 200 {
        assert!(Instant::now() < until, "who left gives back his share");
        std::thread::sleep(Duration::from_millis(50));
    }
    // Long enough to fill blocks; the other key must not be able to tell that it was asked before.
    let body = json!({"model": "parrot", "prompt": "a tale of a whale ".repeat(20), "max_tokens": 1});
    let cached = |client: &Client| {
        client.post("/v1/completions", &body).json()["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    // The beginning that all prompts share may be known from before.
    assert!(cached(&one) < 8);
    assert!(cached(&one) > 100);
    assert!(cached(&two) < 8);
}

#[test]
fn a_full_queue_is_429_and_time_limits_hold() {
    let limits = Limits { first_token: Duration::from_millis(1500), ..Limits::default() };
    let (client, watch) = start(Setting { limits, queue: 2, ..Setting::default() });
    watch.slow.store(700, Ordering::SeqCst);
    let body = hello(json!({"max_tokens": 3})).to_string();
    let answers: Vec<_> = std::thread::scope(|scope| {
        let ask = |_| scope.spawn(|| client.send("POST", CHAT, &[], &body));
        let threads: Vec<_> = (0..12).map(ask).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let busy: Vec<_> = answers.iter().filter(|a| a.status == 429).collect();
    assert!(!busy.is_empty() && busy.len() < 12, "some wait, some are refused");
    assert!(busy.iter().all(|a| a.header("retry-after").is_some()));
    watch.slow.store(5000, Ordering::SeqCst);
    let start = Instant::now();
    let late = client.send("POST", CHAT, &[], &body);
    assert_eq!((late.status, late.header("retry-after").is_some()), (503, true), "{}", late.body);
    assert!(start.elapsed() < Duration::from_secs(4));
}

#[test]
fn models_come_on_demand_and_go_when_memory_is_short() {
    let names = vec!["parrot", "macaw", "cockatoo"];
    let (client, _) = start(Setting { names, memory: Some(250), ..Setting::default() });
    let loaded = || -> Vec<String> {
        let list = client.get("/api/ps").json()["models"].clone();
        list.as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(loaded(), ["parrot"]);
    let ask = |model: &str| {
        client.post("/v1/completions", &json!({"model": model, "prompt": "Once upon", "max_tokens": 2})).status
    };
    assert_eq!((ask("macaw"), loaded()), (200, vec!["macaw".to_owned(), "parrot".to_owned()]));
    assert_eq!((ask("cockatoo"), loaded()), (200, vec!["cockatoo".to_owned(), "macaw".to_owned()]));
    assert_eq!(ask("parakeet"), 404);
    let unloaded = client.post("/api/generate", &json!({"model": "macaw", "keep_alive": 0})).json();
    assert_eq!((unloaded["done_reason"].as_str(), loaded()), (Some("unload"), vec!["cockatoo".to_owned()]));
}

#[test]
fn many_clients_with_random_ends_leave_nothing_behind() {
    let (client, watch) = start(Setting::default());
    watch.slow.store(1, Ordering::SeqCst);
    std::thread::scope(|scope| {
        for i in 0..24u64 {
            let client = client.clone();
            scope.spawn(move || {
                for round in 0..6u64 {
                    let cue = if (i + round) % 2 == 0 { "count for ever" } else { "Please say hello." };
                    let body = json!({"model": "parrot", "stream": true, "max_tokens": 60,
                        "messages": [{"role": "user", "content": cue}]});
                    let mut open = client.open("POST", CHAT, &[], &body.to_string());
                    let mut bytes = vec![0; ((i * 7 + round * 131) % 4000) as usize];
                    let _ = open.read_exact(&mut bytes);
                    if round % 3 == 2 {
                        let mut rest = Vec::new();
                        let _ = open.read_to_end(&mut rest);
                        assert!(!String::from_utf8_lossy(&rest).contains("HTTP/1.1 5"));
                    }
                }
            });
        }
    });
    let idle = "vllm:kv_cache_usage_perc{model_name=\"parrot\"} 0\n";
    let end = Instant::now() + Duration::from_secs(10);
    while !client.get("/metrics").body.contains(idle) {
        assert!(Instant::now() < end, "blocks are lost: {}", client.get("/metrics").body);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(client.get("/metrics").body.contains("fathom_requests_running 0\n"));
}
