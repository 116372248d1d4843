//! From chat-format JSONL to examples: what is learned from, what is left out and said, what is refused and why.

use std::path::Path;

use fathom_text::{ChatTemplate, DEEPSEEK_LLM_TEMPLATE, HuggingFaceTexts, NamedTemplate, Tokenizer, VocabSource};
use fathom_train::Result;
use fathom_train::conversations::{Conversations, Text};

/// The text side of a tokenizer in `testdata`, with its own template or another.
fn text(name: &str, template: Option<&str>) -> (Tokenizer, ChatTemplate) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/tokenizers").join(name);
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap();
    let (tokenizer, config) = (read("tokenizer.json"), read("tokenizer_config.json"));
    let texts =
        HuggingFaceTexts { tokenizer: &tokenizer, config: Some(&config), special_tokens: None, chat_template: None };
    let mut source = VocabSource::from_hugging_face(name, texts).unwrap();
    if let Some(t) = template {
        source.templates = vec![NamedTemplate { name: "default".into(), source: t.into() }];
    }
    let tokenizer = Tokenizer::new(&source).unwrap();
    let template = ChatTemplate::new(&source, &tokenizer).unwrap();
    (tokenizer, template)
}

fn read(text: &(Tokenizer, ChatTemplate), lines: &[u8], max_tokens: usize) -> Result<Conversations> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.jsonl");
    std::fs::write(&path, lines).unwrap();
    Conversations::read(&path, Text { tokenizer: &text.0, template: &text.1 }, max_tokens)
}

/// What is given and what is learned, as text.
fn halves(text: &(Tokenizer, ChatTemplate), data: &Conversations) -> Vec<(String, String)> {
    let halves = |e: &fathom_train::Example| (text.0.decode(&e.tokens[..e.from]), text.0.decode(&e.tokens[e.from..]));
    data.examples.iter().map(halves).collect()
}

const TWO_TURNS: &str = r#"{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"}, {"role": "user", "content": "And 2+2?"}, {"role": "assistant", "content": "4"}]}"#;

/// Every turn of the assistant by itself, behind exactly what serving would have it read; an end token behind it.
#[test]
fn answers_count_and_prompts_do_not() {
    let r1 = text("qwen2", None);
    let line = TWO_TURNS.replace('\n', " ");
    let data = read(&r1, line.as_bytes(), 1000).unwrap();
    let (begin, end) = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>");
    let expected = [
        (format!("{begin}Be brief.<｜User｜>1+1?<｜Assistant｜><think>\n"), format!("\n</think>\n\n2{end}")),
        (
            format!("{begin}Be brief.<｜User｜>1+1?<｜Assistant｜>2{end}<｜User｜>And 2+2?<｜Assistant｜><think>\n"),
            format!("\n</think>\n\n4{end}"),
        ),
    ];
    assert_eq!(halves(&r1, &data), expected);
    assert_eq!((data.lines, data.too_long.len(), data.unused.len()), (1, 0, 0));
}

/// Reasoning beside the content, between think tags in it, or not at all.
#[test]
fn reasoning_is_learned_where_it_is_given() {
    let r1 = text("deepseek_v3", None);
    let lines = r#"{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "reasoning_content": "because"}]}
{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "<think>\nbecause\n</think>\n\nA"}]}
"#;
    let data = read(&r1, lines.as_bytes(), 1000).unwrap();
    let found = halves(&r1, &data);
    assert_eq!(found[0], found[1]);
    assert!(found[0].0.ends_with("<think>\n"), "{found:?}");
    assert_eq!(found[0].1, "because\n</think>\n\nA<｜end▁of▁sentence｜>");

    let plain = text("janus", Some(DEEPSEEK_LLM_TEMPLATE));
    let error = read(&plain, lines.lines().next().unwrap().as_bytes(), 1000).unwrap_err().to_string();
    assert!(error.contains("line 1: message 2: it reasons"), "{error}");
}

/// A template that begins an answer with a blank is followed in that.
#[test]
fn the_template_says_how_an_answer_begins() {
    let plain = text("janus", Some(DEEPSEEK_LLM_TEMPLATE));
    let line = r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}"#;
    let data = read(&plain, line.as_bytes(), 1000).unwrap();
    let expected =
        ("<｜begin▁of▁sentence｜>User: Hi\n\nAssistant:".to_owned(), " Hello.<｜end▁of▁sentence｜>".to_owned());
    assert_eq!(halves(&plain, &data), [expected]);
}

#[test]
fn wrong_lines_are_named_with_number_and_reason() {
    let r1 = text("qwen2", None);
    let good = TWO_TURNS.replace('\n', " ");
    let lines: Vec<(&[u8], &str)> = vec![
        (good.as_bytes(), ""),
        (b"{\"messages\": [", "line 2: EOF while parsing"),
        (b"[]", "line 3: "),
        (b"{\"messages\": []}", "line 4: no turn of the assistant"),
        (b"{\"text\": \"x\"}", "line 5: missing field `messages`"),
        (b"", ""),
        (
            br#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " \n"}]}"#,
            "line 7: message 2: an empty turn of the assistant",
        ),
        (br#"{"messages": [{"role": "assistant", "content": "a"}]}"#, "line 8: message 1: the assistant cannot have"),
        (
            br#"{"messages": [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}]}"#,
            "line 9: message 2: role `bot`; known are system",
        ),
        (
            br#"{"messages": [{"role": "user", "content": "a", "weight": 0}]}"#,
            "line 10: unknown field `weight`",
        ),
        (b"{\"messages\": [{\"role\": \"user\", \"content\": \"\xff\"}]}", "line 11: invalid unicode"),
        (
            br#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>b</think>"}]}"#,
            "line 12: message 2: reasoning without an answer",
        ),
    ];
    let all: Vec<&[u8]> = lines.iter().map(|l| l.0).collect();
    let error = read(&r1, &all.join(&b'\n'), 1000).unwrap_err().to_string();
    assert!(error.contains("data.jsonl: 10 of 11 lines are wrong:"), "{error}");
    for (_, why) in lines {
        assert!(error.contains(why), "{why}: {error}");
    }

    // However many there are, twenty are shown and all are counted.
    let error = read(&r1, &b"{}\n".repeat(500), 1000).unwrap_err().to_string();
    assert!(error.contains("500 of 500") && error.contains("line 20:") && error.contains("and 480 more"), "{error}");
    assert!(!error.contains("line 21:"), "{error}");
}

#[test]
fn what_is_too_long_is_left_out_and_counted_and_never_cut() {
    let r1 = text("qwen2", None);
    let line = |words: usize| {
        let answer = "word ".repeat(words);
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"Q\"}}, {{\"role\": \"assistant\", \"content\": \"{answer}\"}}], \"id\": {words}}}\n"
        )
    };
    let lines = line(3) + &line(300) + "\n" + &line(400) + &line(5);
    let data = read(&r1, lines.as_bytes(), 100).unwrap();
    assert_eq!((data.examples.len(), data.lines), (2, 4));
    let left_out: Vec<usize> = data.too_long.iter().map(|(line, _)| *line).collect();
    assert_eq!(left_out, [2, 4]);
    assert!(data.too_long.iter().all(|(_, tokens)| *tokens > 300), "{:?}", data.too_long);
    assert_eq!(data.unused.get("id"), Some(&4));
    // The limit itself is allowed.
    let longest = data.examples.iter().map(|e| e.tokens.len()).max().unwrap();
    assert_eq!(read(&r1, lines.as_bytes(), longest).unwrap().examples.len(), 2);
    assert_eq!(read(&r1, lines.as_bytes(), longest - 1).unwrap().examples.len(), 1);

    let error = read(&r1, line(300).as_bytes(), 100).unwrap_err().to_string();
    assert!(error.contains("all 1 answers are too long") && error.contains("allowed are 100"), "{error}");
    let error = read(&r1, b"\n \n", 100).unwrap_err().to_string();
    assert!(error.contains("no conversation"), "{error}");
}
