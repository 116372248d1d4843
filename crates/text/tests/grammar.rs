//! What a shape lets through, text by text.

mod common;

use std::sync::Arc;

use fathom_text::{GrammarMaker, Shape, Specials, Tokenizer};
use serde_json::{Value, json};

fn maker() -> (Arc<Tokenizer>, GrammarMaker) {
    let tokenizer = Arc::new(Tokenizer::new(&common::source(&common::style_dir("deepseek_v3"))).unwrap());
    let maker = GrammarMaker::new(Arc::clone(&tokenizer)).unwrap();
    (tokenizer, maker)
}

/// Whether every token of a text is allowed in its turn, and its end after it.
fn fits((tokenizer, maker): &(Arc<Tokenizer>, GrammarMaker), schema: &Value, text: &str) -> bool {
    let mut guide = maker.compile(&Shape::Schema(schema.clone()), false).unwrap().start();
    let allows = |mask: &[u32], token: u32| mask[token as usize / 32] >> (token % 32) & 1 == 1;
    for token in tokenizer.encode(text, Specials::Plain).unwrap() {
        if !allows(&guide.mask().unwrap(), token) {
            return false;
        }
        if guide.take(token).unwrap() {
            return true;
        }
    }
    allows(&guide.mask().unwrap(), tokenizer.end_tokens()[0])
}

#[test]
fn dates_are_days_that_there_are() {
    let maker = maker();
    for (format, good, bad) in [
        (
            "date",
            ["2024-02-29", "2000-02-29", "1999-12-31", "0004-02-29"].as_slice(),
            ["2023-02-29", "1900-02-29", "2024-02-30", "2024-13-01", "2024-04-31", "0000-01-01"].as_slice(),
        ),
        ("time", &["21:48:49.1-04:24", "00:00:00Z"], &["23:59:60Z", "24:00:00Z", "10:00:00", "10:60:00Z"]),
        (
            "date-time",
            &["2024-02-29T00:00:00Z", "1969-07-20T20:17:40.5+00:00"],
            &["2023-02-29T00:00:00Z", "2016-12-31T23:59:60Z", "2024-02-29", "2024-02-29 00:00:00Z"],
        ),
    ] {
        let schema = json!({"type": "string", "format": format});
        let quoted = |text: &&str| format!("\"{text}\"");
        assert!(good.iter().all(|t| fits(&maker, &schema, &quoted(t))), "{format}");
        for text in bad {
            assert!(!fits(&maker, &schema, &quoted(text)), "{format}: {text}");
        }
    }
}

#[test]
fn hosts_have_names_of_bounded_length() {
    let maker = maker();
    let name = |n: usize| format!("\"{}\"", "a.".repeat(n / 2) + if n % 2 == 1 { "b" } else { "" });
    for own in [None, Some(1000), Some(9)] {
        let mut schema = json!({"type": "string", "format": "hostname"});
        if let Some(own) = own {
            schema["maxLength"] = own.into();
        }
        let limit = if own == Some(9) { 9 } else { 253 };
        assert!(fits(&maker, &schema, &name(limit)), "{own:?}");
        assert!(!fits(&maker, &schema, &name(limit + 2)), "{own:?}");
    }
}

#[test]
fn a_pattern_beside_a_format_holds_as_well() {
    let maker = maker();
    let schema = json!({"type": "object", "properties": {"day": {"type": "string", "format": "date", "pattern": "^2"}},
        "required": ["day"], "additionalProperties": false});
    assert!(fits(&maker, &schema, "{\"day\":\"2024-02-29\"}"));
    assert!(!fits(&maker, &schema, "{\"day\":\"1999-01-01\"}"));
    assert!(!fits(&maker, &schema, "{\"day\":\"2023-02-29\"}"));
    // What only looks like a schema stays as it is.
    let schema = json!({"enum": [{"format": "date"}]});
    assert!(fits(&maker, &schema, "{\"format\":\"date\"}"));
}
