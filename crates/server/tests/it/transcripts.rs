//! Recorded transcripts: for every dialect, a request and the exact bytes that answer it, but for ids and times.
//!
//! A file holds `METHOD PATH`, the body, a line `---`, the status with the content type, and the response. Running the tests
//! with `RECORD=1` writes them anew, to be read before they are committed.

use std::path::Path;

use crate::parrot::{Setting, start};

/// Replaces what differs from run to run: 24 hexadecimal digits, times and durations.
fn settle(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let hex = rest.bytes().take_while(|b| b.is_ascii_hexdigit()).count();
        if hex >= 24 {
            out.push_str("ID");
            rest = &rest[24..];
            continue;
        }
        let varying = ["\"created\":", "\"created_at\":", "_duration\":"].into_iter().find(|key| rest.starts_with(key));
        if let Some(key) = varying {
            let value = &rest[key.len()..];
            let end = value.find([',', '}']).unwrap_or(value.len());
            out.push_str(key);
            out.push('0');
            rest = &value[end..];
            continue;
        }
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out
}

/// Events of several choices run side by side: here one choice after the other, each in its own order.
fn by_choice(body: &str) -> String {
    let mut events: Vec<&str> = body.split_inclusive("\n\n").collect();
    events.sort_by_key(|e| {
        let choice =
            e.split_once("\"choices\":[{\"index\":").and_then(|(_, rest)| rest.split(',').next()?.parse().ok());
        choice.unwrap_or(usize::MAX)
    });
    events.concat()
}

#[test]
fn every_dialect_answers_as_recorded() {
    let (client, _) = start(Setting::default());
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 12, "there are transcripts");
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let (request, recorded) = text.split_once("\n---\n").unwrap();
        let (line, body) = request.split_once('\n').unwrap_or((request, ""));
        let (method, path) = line.split_once(' ').unwrap();
        let answer = client.send(method, path, &[("x-request-id", "test")], body);
        let kind = answer.header("content-type").unwrap_or("-");
        let several = answer.body.contains("\"choices\":[{\"index\":1");
        let answered = if several { by_choice(&answer.body) } else { answer.body.clone() };
        let got = settle(&format!("{} {kind}\n{answered}", answer.status));
        if std::env::var_os("RECORD").is_some() {
            std::fs::write(&file, format!("{request}\n---\n{got}")).unwrap();
        } else {
            assert_eq!(got, recorded, "{}", file.display());
        }
    }
}
