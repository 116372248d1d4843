//! `run`: one prompt, one answer.

use serde_json::Value;

use super::fathom::{Ran, fathom, fathom_in, testdata};

/// Runs the smallest fixture; `--think off` keeps everything in the answer.
fn run(args: &[&str], stdin: &str) -> Ran {
    let model = testdata("models/qwen2");
    let mut all = vec!["run", "-m", &model];
    all.extend(args);
    fathom_in(tempfile::tempdir().unwrap().path(), &all, stdin.as_bytes())
}

const SHORT: [&str; 4] = ["--max-tokens", "12", "--seed", "7"];

fn answer(args: &[&str], stdin: &str) -> Value {
    run(&[&["--json", "--think", "off"], &SHORT[..], args].concat(), stdin).json()
}

#[test]
fn the_answer_is_on_standard_output_and_the_rest_is_not() {
    let json = answer(&["Hello"], "");
    let text = json["text"].as_str().unwrap();
    assert!(!text.is_empty());
    let plain = run(&[&["--think", "off", "Hello"], &SHORT[..]].concat(), "");
    assert_eq!(plain.ok(), format!("{text}\n"));
    assert_eq!(plain.err, "(stopped at --max-tokens 12)\n");
    assert_eq!(json["finish_reason"], "length");
    assert_eq!(json["seed"], 7);
    assert_eq!(json["usage"]["completion_tokens"], 12);
    assert_eq!(json["usage"]["reasoning_tokens"], 0);
    for (group, key) in [("usage", "prompt_tokens"), ("usage", "cached_tokens"), ("timings", "load_s")] {
        assert!(json[group][key].is_number(), "{key}");
    }
    for key in ["first_token_s", "prefill_tokens_per_s", "decode_tokens_per_s"] {
        assert!(json["timings"][key].as_f64().unwrap() > 0.0, "{key}");
    }
}

#[test]
fn reasoning_is_on_standard_error_and_in_json() {
    let on: Vec<&str> = [&["--think", "on", "Hello"], &SHORT[..]].concat();
    let json = run(&[&["--json"], &on[..]].concat(), "").json();
    let reasoning = json["reasoning"].as_str().unwrap();
    assert_eq!(json["text"], "");
    assert_eq!(json["usage"]["reasoning_tokens"], 12);
    let plain = run(&on, "");
    assert_eq!(plain.ok(), "");
    assert!(plain.err.starts_with(reasoning.trim_end()), "{plain:#?}");
}

#[test]
fn the_prompt_comes_from_anywhere() {
    let both = answer(&["Hello\n\nworld"], "");
    assert_eq!(answer(&["Hello"], "world\n")["text"], both["text"]);
    assert_eq!(answer(&[], "Hello\n\nworld\n")["text"], both["text"]);
    assert_ne!(answer(&["Hello"], "")["usage"]["prompt_tokens"], both["usage"]["prompt_tokens"]);
    run(&[], "").fails(1, &["there is no prompt"]);
}

#[test]
fn a_seed_repeats_an_answer() {
    let free = run(&["--json", "--max-tokens", "12", "Hello"], "").json();
    let seed = free["seed"].to_string();
    let again = run(&["--json", "--max-tokens", "12", "--seed", &seed, "Hello"], "").json();
    assert_eq!(again["reasoning"], free["reasoning"]);
    let other = answer(&["Hello", "--temperature", "5", "--top-p", "1"], "");
    assert_ne!(other["text"], answer(&["Hello", "--temperature", "0"], "")["text"]);
}

#[test]
fn stop_strings_and_biases_work() {
    let free = answer(&["Hello", "--temperature", "0"], "");
    let text = free["text"].as_str().unwrap();
    // A piece from the middle, at whole characters.
    let middle: String = text.chars().skip(4).take(2).collect();
    let stopped = answer(&["Hello", "--temperature", "0", "--stop", &middle, "--stop", "never said"], "");
    assert_eq!(stopped["finish_reason"], "stop");
    assert_eq!(stopped["stop_string"], middle.as_str());
    assert_eq!(stopped["text"].as_str().unwrap(), &text[..text.find(&middle).unwrap()]);

    let model = testdata("models/qwen2");
    let id = fathom(&["tokenize", &model, "x"]).ok().trim().to_owned();
    let forced = answer(&["Hello", "--temperature", "0", "--logit-bias", &format!("{id}=1000")], "");
    assert_eq!(forced["text"], "x".repeat(12));
    let forbidden =
        answer(&["Hello", "--logit-bias", &format!("{id}=1000"), "--logit-bias", &format!("{id}=-inf")], "");
    assert!(!forbidden["text"].as_str().unwrap().contains("xx"), "{forbidden}");
}

#[test]
fn raw_mode_knows_no_template() {
    let raw = run(&[&["--json", "--no-template", "Hello"], &SHORT[..]].concat(), "").json();
    assert!(raw["usage"]["prompt_tokens"].as_u64() < answer(&["Hello"], "")["usage"]["prompt_tokens"].as_u64());
    assert_eq!(raw["reasoning"], "");
    for option in [["--think", "on"], ["--system", "x"], ["--think-budget", "3"]] {
        run(&["--no-template", "Hello", option[0], option[1]], "").fails(2, &["--no-template", option[0]]);
    }
}

#[test]
fn thinking_has_a_budget() {
    let args = ["--json", "--think", "on", "--think-budget", "5", "--max-tokens", "40", "--seed", "1", "Hello"];
    let json = run(&args, "").json();
    let reasoning = json["usage"]["reasoning_tokens"].as_u64().unwrap();
    assert!((5..20).contains(&reasoning), "five and the closing tag: {json}");
    assert!(!json["text"].as_str().unwrap().is_empty(), "{json}");
}

/// The prediction layer and look-ups guess ahead; the text is the greedy one, bit for bit.
#[test]
fn guessing_ahead_changes_nothing() {
    let model = testdata("models/deepseek_v3_fp8_mtp");
    let run = |draft: &str| {
        let args =
            ["run", "-m", &model, "--json", "--temperature", "0", "--max-tokens", "60", "--draft", draft, "Hello"];
        fathom(&args).json()
    };
    let plain = run("off");
    assert_eq!(plain["usage"]["drafted_tokens"], 0);
    for draft in ["mtp", "lookup"] {
        let guessed = run(draft);
        assert_eq!((&guessed["text"], &guessed["reasoning"]), (&plain["text"], &plain["reasoning"]), "{draft}");
    }
    assert!(run("mtp")["usage"]["drafted_tokens"].as_u64().unwrap() > 0);
    let qwen2 = testdata("models/qwen2");
    fathom(&["run", "-m", &qwen2, "--draft", "mtp", "x"]).fails(1, &["no prediction layer", "lookup"]);
}

#[test]
fn every_backend_says_the_same_in_exact_precision() {
    let greedy = |more: &[&str]| {
        answer(&[&["Hello", "--temperature", "0", "--precision", "exact"], more].concat(), "")["text"].clone()
    };
    let reference = greedy(&["--backend", "reference"]);
    assert_eq!(greedy(&[]), reference);
    assert_eq!(greedy(&["--isa", "portable", "--threads", "1"]), reference);
    assert_eq!(greedy(&["--context", "100", "--kv-type", "f32", "--memory", "1G"]), reference);
    assert!(greedy(&["--kv-type", "q8_0"]).as_str().is_some_and(|text| !text.is_empty()));
}

#[test]
fn what_cannot_be_done_is_said() {
    let said = |args: &[&str], code, words: &[&str]| run(&[args, &["Hello"]].concat(), "").fails(code, words);
    said(&["--temperature", "-1"], 1, &["temperature", "-1"]);
    said(&["--top-p", "1.5"], 1, &["top_p", "1.5"]);
    said(&["--top-k", "-1"], 2, &["--top-k"]);
    said(&["--max-tokens", "0"], 2, &["--max-tokens"]);
    said(&["--logit-bias", "x=1"], 2, &["ID=BIAS"]);
    said(&["--logit-bias", "9999=1"], 1, &["9999", "vocabulary of 528"]);
    said(&["--isa", "mmx"], 2, &["mmx", "portable"]);
    said(&["--threads", "0"], 2, &["--threads"]);
    said(&["--backend", "reference", "--threads", "2"], 1, &["--threads has no effect"]);
    said(&["--backend", "reference", "--precision", "fast"], 1, &["--precision fast has no effect"]);
    said(&["--context", "9999"], 1, &["9,999", "made for 512"]);
    said(&["--memory", "1K"], 1, &[" of cache", "1.00 KiB may be used", "--memory"]);
    said(&["--memory", "much"], 2, &["24G"]);
    run(&["--context", "16", &"word ".repeat(40)], "").fails(1, &["the context holds", "16"]);
}

/// A fresh clone answers: no model is named, none was fetched.
#[test]
fn the_miniature_adds_within_two_seconds() {
    let ran = fathom(&["run", "Was ist 348 + 271?"]);
    assert_eq!(ran.ok(), "Antwort: 619\n");
    for step in ["8+1", "4+7", "3+2"] {
        assert!(ran.err.contains(step), "{ran:#?}");
    }
    let json = fathom(&["run", "--json", "what is 905 - 68?"]).json();
    assert_eq!(json["text"], "Answer: 837");
    let seconds = ["first_token_s", "decode_s"].iter().map(|k| json["timings"][k].as_f64().unwrap()).sum::<f64>();
    assert!(seconds < 2.0, "{json}");
}
