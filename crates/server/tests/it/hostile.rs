//! Requests that were changed at random are read or refused, and never end the process.

use std::path::Path;

use fathom_server::check_request;
use serde_json::Value;

/// splitmix64.
fn next(state: &mut u64) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((x ^ (x >> 27)) >> 17) as usize
}

/// Puts something else at a random place of the tree.
fn disturb(value: &mut Value, state: &mut u64) {
    let others = [
        Value::Null,
        true.into(),
        (-1).into(),
        1e300.into(),
        "".into(),
        "\u{1F600}".into(),
        Value::Array(vec![]),
        serde_json::json!({}),
        serde_json::json!({"type": "text"}),
        serde_json::json!([[[]]]),
        i64::MIN.into(),
    ];
    let inner = match value {
        Value::Array(list) if !list.is_empty() => {
            let i = next(state) % list.len();
            list.get_mut(i)
        }
        Value::Object(map) if !map.is_empty() => {
            let i = next(state) % map.len();
            map.values_mut().nth(i)
        }
        _ => None,
    };
    match inner {
        Some(inner) if !next(state).is_multiple_of(4) => disturb(inner, state),
        Some(inner) => *inner = others[next(state) % others.len()].clone(),
        None => *value = others[next(state) % others.len()].clone(),
    }
}

#[test]
fn disturbed_requests_are_read_or_refused() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let (mut read, mut refused, mut state) = (0, 0, 1u64);
    for file in std::fs::read_dir(dir).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let request = text.split_once("\n---\n").unwrap().0;
        let Some((line, body)) = request.split_once('\n') else { continue };
        let Ok(sound) = serde_json::from_str::<Value>(body) else { continue };
        for path in
            ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/api/chat", "/api/generate"]
        {
            let rounds = if line.ends_with(path) { 400 } else { 20 };
            for _ in 0..rounds {
                let mut value = sound.clone();
                for _ in 0..1 + next(&mut state) % 3 {
                    disturb(&mut value, &mut state);
                }
                match check_request(path, value.to_string().as_bytes()) {
                    Ok(()) => read += 1,
                    Err(refusal) => {
                        refused += 1;
                        assert!(!refusal.to_string().is_empty());
                    }
                }
            }
        }
    }
    assert!(read > 500 && refused > 500, "{read} read, {refused} refused");
}
