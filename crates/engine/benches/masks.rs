//! How long the mask over the next token takes: `cargo bench -p fathom-engine --bench masks -- MODEL`, whose vocabulary is used.
//!
//! Answers under several shapes are made from allowed tokens drawn at random, so that strings run on, numbers grow and
//! properties come in every place a model might find itself in.

use std::path::Path;
use std::time::Instant;

use fathom_core::rng::Rng;
use fathom_engine::ChatModel;
use fathom_model::Model;
use fathom_text::Shape;
use serde_json::{Value, json};

fn shapes() -> Vec<(&'static str, Shape)> {
    let person = json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 40}, "age": {"type": "integer", "minimum": 0,
        "maximum": 150}, "email": {"type": "string", "format": "email"}, "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 8}},
        "required": ["name", "age", "email"], "additionalProperties": false});
    let item = json!({"type": "object", "properties": {"sku": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"}, "price": {"type": "number",
        "minimum": 0, "maximum": 9999}, "kind": {"enum": ["book", "film", "game", "other"]}, "due": {"type": "string", "format": "date-time"}},
        "required": ["sku", "price", "kind"], "additionalProperties": false});
    let order = json!({"type": "object", "properties": {"items": {"type": "array", "items": item, "minItems": 1, "maxItems": 20}, "to": person,
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["items", "to"], "additionalProperties": false});
    let wide: serde_json::Map<String, Value> =
        (0..60).map(|i| (format!("field_{i}"), json!({"type": ["string", "number", "null"]}))).collect();
    vec![
        ("any JSON object", Shape::Json),
        ("a person", Shape::Schema(person)),
        ("an order", Shape::Schema(order)),
        (
            "60 optional fields",
            Shape::Schema(json!({"type": "object", "properties": wide, "additionalProperties": false})),
        ),
        ("a regular expression", Shape::Regex("([a-z]+ ){3,40}[0-9]{1,6}(\\.[0-9]+)?".to_owned())),
    ]
}

fn main() {
    let Some(path) = std::env::args().nth(1).filter(|a| !a.starts_with("--")) else {
        println!("skipped: name a model whose vocabulary to use");
        return;
    };
    let model = Model::open(Path::new(&path), &Default::default()).expect("a model");
    let chat = ChatModel::new(&model.vocab().expect("a vocabulary")).expect("a tokenizer");
    println!("{} tokens", chat.tokenizer().vocab_size());
    let (mut rng, mut all) = (Rng::new(1, 0), Vec::new());
    for (name, shape) in shapes() {
        let start = Instant::now();
        let grammar = chat.shape(&shape, false).expect("it compiles").0;
        let compiled = start.elapsed();
        let mut times = Vec::new();
        for _ in 0..8 {
            let mut guide = grammar.start();
            for _ in 0..150 {
                let start = Instant::now();
                let mask = guide.mask().expect("within bounds");
                times.push(start.elapsed().as_secs_f64() * 1e3);
                let allowed: u32 = mask.iter().map(|w| w.count_ones()).sum();
                let mut skip = rng.below(allowed);
                let chosen = mask.iter().enumerate().find_map(|(i, &word)| {
                    let here = word.count_ones();
                    if skip >= here {
                        skip -= here;
                        return None;
                    }
                    let bit = (0..32).filter(|b| word >> b & 1 == 1).nth(skip as usize)?;
                    Some(i as u32 * 32 + bit)
                });
                if guide.take(chosen.expect("something is allowed")).expect("it is allowed") {
                    break;
                }
            }
        }
        report(name, &mut times, &format!("; compiled in {:.1} ms", compiled.as_secs_f64() * 1e3));
        all.append(&mut times);
    }
    report("all", &mut all, "");
}

fn report(name: &str, times: &mut [f64], more: &str) {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    let (median, tail, worst) = (at(0.5), at(0.99), at(1.0));
    println!("{name}: {} masks, median {median:.3} ms, 99 % {tail:.3} ms, worst {worst:.3} ms{more}", times.len());
}
