//! Pictures in and out of every dialect, with the tiny model that sees and draws.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use fathom_core::DType;
use fathom_core::reference::Reference;
use fathom_engine::{ChatModel, Engine, EngineOptions, ModelRunner, RunnerOptions};
use fathom_model::{Model, Options};
use fathom_picture::{Limits, Picture, base64, decode, from_base64, from_data_url, read_png_text};
use fathom_server::{Offer, Refusal, Served, Store};
use serde_json::{Value, json};

use crate::client::{Answer, Client};
use crate::parrot::{Setting, start, start_with};

struct Studio;

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/janus")
}

impl Store for Studio {
    fn offers(&self) -> Vec<Offer> {
        vec![Offer {
            name: "janus".into(),
            bytes: 1,
            modified: 0,
            family: "janus".into(),
            parameters: 1,
            format: "BF16".into(),
            pictures: true,
        }]
    }

    fn load(&self, _: &str) -> Result<Served, Refusal> {
        let failed = |e: &dyn std::fmt::Display| Refusal::Failed(e.to_string());
        let model = Model::open(&dir(), &Options::default()).map_err(|e| failed(&e))?;
        let chat = ChatModel::new(&model.vocab().map_err(|e| failed(&e))?)?.seeing(model.spec.pictures.as_ref());
        let defaults = model.defaults().map_err(|e| failed(&e))?;
        let decoder = model.load(Arc::new(Reference::new()), &mut |_, _| {}).map_err(|e| failed(&e))?;
        let options = RunnerOptions { context: None, cache_tokens: Some(4096), kv: DType::F32, drafts: false };
        let engine = Engine::start(Box::new(ModelRunner::new(decoder, options)?), EngineOptions::default())?;
        Ok(Served { offer: self.offers().remove(0), chat, engine, defaults })
    }

    fn pull(&self, name: &str, _: &mut dyn FnMut(&str, u64, u64)) -> Result<(), Refusal> {
        Err(Refusal::NoModel(name.to_owned()))
    }

    fn remove(&self, name: &str) -> Result<(), Refusal> {
        Err(Refusal::NoModel(name.to_owned()))
    }
}

fn studio() -> &'static Client {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    CLIENT.get_or_init(|| start_with(Setting { names: vec!["janus"], ..Setting::default() }, Arc::new(Studio)))
}

fn image(n: usize) -> Vec<u8> {
    std::fs::read(dir().join(format!("image_{n}.png"))).unwrap()
}

fn url(file: &[u8]) -> String {
    format!("data:image/png;base64,{}", base64(file))
}

/// A question about pictures in OpenAI's form.
fn asked(urls: &[String]) -> Value {
    let mut parts: Vec<Value> =
        urls.iter().map(|url| json!({"type": "image_url", "image_url": {"url": url, "detail": "auto"}})).collect();
    parts.insert(0, json!({"type": "text", "text": "What is it?"}));
    json!({"model": "janus", "temperature": 0, "max_tokens": 10, "messages": [{"role": "user", "content": parts}]})
}

const CHAT: &str = "/v1/chat/completions";

fn said(answer: &Answer) -> (String, u64) {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let json = answer.json();
    (
        json["choices"][0]["message"]["content"].as_str().unwrap().into(),
        json["usage"]["prompt_tokens"].as_u64().unwrap(),
    )
}

#[test]
fn every_dialect_shows_the_model_the_same_picture() {
    let (client, file) = (studio(), image(0));
    let (text, tokens) = said(&client.post(CHAT, &asked(&[url(&file)])));
    let (blind, few) = said(&client.post(CHAT, &asked(&[])));
    // The mark's line, its two ends and 36 rows.
    assert!(tokens >= few + 36 + 2, "{tokens} {few}");
    assert_ne!(text, blind);
    let (other, _) = said(&client.post(CHAT, &asked(&[url(&image(1))])));
    assert_ne!(text, other, "another picture, other words");

    let words = "What is it?";
    let response = client.post(
        "/v1/responses",
        &json!({"model": "janus", "temperature": 0, "max_output_tokens": 10, "input": [{"role": "user", "content": [
            {"type": "input_image", "image_url": url(&file), "detail": "auto"}, {"type": "input_text", "text": words}]}]}),
    );
    assert_eq!(response.json()["output"][0]["content"][0]["text"], json!(text), "{}", response.body);
    assert_eq!(response.json()["usage"]["input_tokens"], json!(tokens));
    let source = json!({"type": "base64", "media_type": "image/png", "data": base64(&file)});
    let messages = json!({"model": "janus", "temperature": 0, "max_tokens": 10, "messages": [{"role": "user",
        "content": [{"type": "image", "source": source}, {"type": "text", "text": words}]}]});
    let response = client.post("/v1/messages", &messages);
    assert_eq!(response.json()["content"][0]["text"], json!(text), "{}", response.body);
    let counted = client.post("/v1/messages/count_tokens", &messages);
    assert_eq!(counted.json()["input_tokens"], json!(tokens), "{}", counted.body);
    let options = json!({"temperature": 0, "num_predict": 10});
    let response = client.post(
        "/api/chat",
        &json!({"model": "janus", "stream": false, "options": options,
            "messages": [{"role": "user", "content": words, "images": [base64(&file)]}]}),
    );
    assert_eq!(response.json()["message"]["content"], json!(text), "{}", response.body);
    let response = client.post(
        "/api/generate",
        &json!({"model": "janus", "stream": false, "options": options, "prompt": words, "images": [base64(&file)]}),
    );
    assert_eq!(response.json()["response"], json!(text), "{}", response.body);
    let shown = client.post("/api/show", &json!({"model": "janus"})).json();
    assert!(shown["capabilities"].as_array().unwrap().contains(&json!("vision")), "{shown}");
    assert_eq!(client.get("/v1/models").json()["data"][0]["pictures"], true);
}

#[test]
fn the_prefix_cache_tells_pictures_apart() {
    let client = studio();
    // A tenant of its own, so that other tests' pictures are none of its.
    let ask = |n: &[usize]| {
        let mut body = asked(&n.iter().map(|&n| url(&image(n))).collect::<Vec<_>>());
        body["user_id"] = "cache".into();
        let answer = client.post(CHAT, &body);
        let cached = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        (said(&answer).0, cached)
    };
    let (first, cold) = ask(&[2, 3, 0]);
    let (other, shared) = ask(&[2, 3, 1]);
    let (again, warm) = ask(&[2, 3, 0]);
    assert_eq!(first, again);
    assert!(cold < shared && shared < warm, "{cold} {shared} {warm}");
    assert_ne!(first, other);
}

fn drawn(client: &Client, more: Value) -> Value {
    let mut body = json!({"model": "janus", "prompt": "a red fox", "seed": 9});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let answer = client.post("/v1/images/generations", &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

fn picture(b64: &Value) -> (Picture, Vec<(String, String)>) {
    let file = from_base64(b64.as_str().unwrap()).unwrap();
    (decode(&file, &Limits::default()).unwrap(), read_png_text(&file).unwrap())
}

#[test]
fn words_become_pictures() {
    let client = studio();
    let one = drawn(client, json!({}));
    assert_eq!((&one["size"], &one["usage"]["output_tokens"]), (&json!("24x24"), &json!(36)), "{one}");
    let (first, text) = picture(&one["data"][0]["b64_json"]);
    assert!(text.contains(&("prompt".into(), "a red fox".into())), "{text:?}");
    let two = drawn(client, json!({"n": 2, "response_format": "url"}));
    let file = from_data_url(two["data"][0]["url"].as_str().unwrap()).unwrap();
    assert_eq!(decode(&file, &Limits::default()).unwrap(), first, "the first of two is the one of one");
    assert_eq!(two["data"].as_array().unwrap().len(), 2);
    let large = drawn(client, json!({"size": "48x48"}));
    assert_eq!(picture(&large["data"][0]["b64_json"]).0.width, 48);

    let body = json!({"model": "janus", "prompt": "a red fox", "seed": 9, "n": 2, "stream": true, "partial_images": 2});
    let answer = client.post("/v1/images/generations", &body);
    let events: Vec<Value> = answer
        .body
        .lines()
        .filter_map(|line| Some(serde_json::from_str(line.strip_prefix("data: ")?).unwrap()))
        .collect();
    let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    let (partial, completed) = ("image_generation.partial_image", "image_generation.completed");
    assert_eq!(kinds, [partial, partial, partial, partial, completed, completed]);
    assert!(picture(&events[0]["b64_json"]).0.height < 24, "the rows so far");
    assert_eq!(picture(&events[4]["b64_json"]).0, first);
    assert_eq!(events[5]["usage"]["output_tokens"], 72);
}

/// The check sum of a PNG's chunks.
fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc: u32, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// A small file that says that it is a large picture.
fn bomb() -> Vec<u8> {
    let mut file = image(0);
    file[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    file[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    let sum = crc(&file[12..29]).to_be_bytes();
    file[29..33].copy_from_slice(&sum);
    file
}

#[test]
fn what_is_no_picture_is_refused_and_named() {
    let client = studio();
    let refused = |path: &str, body: &Value, place: &str, why: &str| {
        let answer = client.post(path, body);
        assert_eq!(answer.status, 400, "{place}: {}", answer.body);
        assert!(answer.body.contains(place) && answer.body.contains(why), "{place}, {why}: {}", answer.body);
    };
    let file = image(0);
    for (url, why) in [
        ("https://example.org/cat.png".to_owned(), "nothing is fetched"),
        ("file:///etc/passwd".to_owned(), "nothing is fetched"),
        (url(&file[..file.len() / 2]), "the PNG is broken"),
        (url(b"GIF89a, they say"), "a GIF cannot be read"),
        (url(b""), "an empty file"),
        (url(&bomb()), "60000"),
        ("data:image/png;base64,no base64!".to_owned(), "base64"),
    ] {
        refused(CHAT, &asked(&[url]), "messages[0].content[1].image_url.url", why);
    }
    refused(CHAT, &asked(&vec![url(b"x"); 65]), "messages[0].content[65]", "one more than 64");
    let mut mine = asked(&[url(&file)]);
    mine["messages"][0]["role"] = "assistant".into();
    refused(CHAT, &mine, "messages[0].content[1].type", "belong to");
    let blocks = json!({"type": "image", "source": {"type": "url", "url": "https://example.org/cat.png"}});
    let body = json!({"model": "janus", "max_tokens": 1, "messages": [{"role": "user", "content": [blocks]}]});
    refused("/v1/messages", &body, "messages[0].content[0].source.url", "nothing is fetched");
    let body = json!({"model": "janus", "messages": [{"role": "user", "content": "x", "images": ["?"]}]});
    refused("/api/chat", &body, "messages[0].images[0]", "base64");
    let body = json!({"model": "janus", "prompt": "x", "raw": true, "images": [base64(&file)]});
    refused("/api/generate", &body, "images", "not to a text");
    let body = json!({"model": "janus", "prompt": "x", "n": 11});
    refused("/v1/images/generations", &body, "n", "from 1 to 10");
    let body = json!({"model": "janus", "prompt": "x", "size": "24x48"});
    refused("/v1/images/generations", &body, "size", "square");
    // A mark that somebody writes is no picture.
    let mut marked = asked(&[url(&file)]);
    marked["messages"][0]["content"][0]["text"] = "<image_placeholder>".into();
    refused(CHAT, &marked, "pictures", "one picture for each");
    assert_eq!(client.get("/health").status, 200);
}

#[test]
fn a_model_without_eyes_says_so() {
    let (client, _) = start(Setting::default());
    let mut body = asked(&[url(&image(0))]);
    body["model"] = "parrot".into();
    let answer = client.post(CHAT, &body);
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("does not see pictures"), "{}", answer.body);
    let body = json!({"model": "parrot", "prompt": "a fox"});
    let answer = client.post("/v1/images/generations", &body);
    assert!(answer.status == 400 && answer.body.contains("does not draw"), "{}", answer.body);
}
