//! From a conversation to a request, and from tokens back to reasoning, text and tool calls, with a real tokenizer.

use std::path::Path;

use fathom_engine::{ChatEvent, ChatModel, Ending, Error, Event, Finish, Flow, TextOptions, Transcriber, Usage};
use fathom_text::{ChatMessage, HuggingFaceTexts, RenderOptions, Role, Specials, Thinking, VocabSource};

fn model(name: &str) -> ChatModel {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/tokenizers").join(name);
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap();
    let (tokenizer, config) = (read("tokenizer.json"), read("tokenizer_config.json"));
    let texts =
        HuggingFaceTexts { tokenizer: &tokenizer, config: Some(&config), special_tokens: None, chat_template: None };
    ChatModel::new(&VocabSource::from_hugging_face(name, texts).unwrap()).unwrap()
}

#[derive(Default, Debug, PartialEq)]
struct Heard {
    reasoning: String,
    text: String,
    calls: Vec<(String, String, String)>,
    malformed: usize,
    logprobs: usize,
    ending: Option<Ending>,
    /// Tokens taken before the transcriber said stop.
    taken: usize,
}

/// Lets the transcriber hear an answer token by token.
fn hear(model: &ChatModel, mut transcriber: Transcriber, answer: &str, end: Finish) -> Heard {
    let tokens = model.tokenizer().encode(answer, Specials::Parse).unwrap();
    let mut heard = Heard::default();
    let mut stopped = false;
    let mut taken = 0;
    let mut say = |event: Event<'_>, heard: &mut Heard| {
        transcriber.event(event, |event| {
            match event {
                ChatEvent::Accepted { .. } => {}
                ChatEvent::Reasoning(text) => heard.reasoning.push_str(text),
                ChatEvent::Text(text) => heard.text.push_str(text),
                ChatEvent::TextWasReasoning => heard.reasoning = std::mem::take(&mut heard.text),
                ChatEvent::ToolCall { call, raw } => heard.calls.push((call.name, call.arguments, raw.to_owned())),
                ChatEvent::MalformedCall { .. } => heard.malformed += 1,
                ChatEvent::Token { .. } => heard.logprobs += 1,
                ChatEvent::Done { ending, .. } => heard.ending = Some(ending),
                ChatEvent::Failed(error) => panic!("{error}"),
            }
            Flow::Continue
        })
    };
    for &token in &tokens {
        taken += 1;
        let stop = model.tokenizer().end_tokens().contains(&token);
        let event = Event::Token { token, stop, logprob: Some(-0.5), top: &[] };
        if say(event, &mut heard) == Flow::Stop {
            stopped = true;
            break;
        }
        assert!(!heard.text.contains('\u{FFFD}') && !heard.reasoning.contains('\u{FFFD}'), "half a character");
    }
    let reason = if stopped { Finish::Cancelled } else { end };
    say(Event::Finished { reason, usage: Usage::default() }, &mut heard);
    heard.taken = taken;
    heard
}

fn ask(model: &ChatModel, options: &TextOptions, render: &RenderOptions) -> (fathom_engine::Request, Transcriber) {
    model.chat(&[ChatMessage::new(Role::User, "What is 6 × 7?")], render, options).unwrap()
}

fn thinking() -> RenderOptions {
    RenderOptions { thinking: Thinking::On, ..RenderOptions::default() }
}

#[test]
fn reasoning_and_answer_are_told_apart() {
    let model = model("deepseek_v3");
    let (request, transcriber) = ask(&model, &TextOptions::default(), &thinking());
    let t = model.tokenizer();
    assert_eq!(request.prompt.iter().filter(|&&id| Some(id) == t.bos()).count(), 1, "exactly one BOS");
    let marks = request.reasoning.expect("think tags are tokens of this vocabulary");
    assert!(marks.inside && marks.budget.is_none());
    assert_eq!(Some(marks.close), t.id_of("</think>"));
    assert_eq!(request.stop_tokens, t.end_tokens());
    let end = t.decode(&t.end_tokens()[..1]);
    let heard = hear(&model, transcriber, &format!("Six sevens… 六七\n</think>\n\n42 🐋{end}"), Finish::Stop);
    assert_eq!((heard.reasoning.as_str(), heard.text.as_str()), ("Six sevens… 六七\n", "\n\n42 🐋"));
    assert_eq!(heard.ending, Some(Ending::Stop));
    assert_eq!(heard.logprobs, heard.taken);
}

#[test]
fn the_thinking_switch_and_budget_reach_the_request() {
    let model = model("deepseek_v3");
    let off = RenderOptions { thinking: Thinking::Off, ..RenderOptions::default() };
    let (request, transcriber) = ask(&model, &TextOptions::default(), &off);
    assert!(!request.reasoning.unwrap().inside);
    assert_eq!(hear(&model, transcriber, "42", Finish::Length).text, "42");
    let options = TextOptions { thinking_budget: Some(9), ..TextOptions::default() };
    let marks = ask(&model, &options, &thinking()).0.reasoning.unwrap();
    assert_eq!(marks.budget, Some(9));
    assert_eq!(model.tokenizer().decode(&marks.closing), "\n</think>\n\n");
    let refused = model.complete("1 + 1 =", &options).err().unwrap();
    assert!(matches!(refused, Error::Option { name: "thinking budget", .. }));
}

#[test]
fn stop_strings_end_the_answer_not_the_reasoning() {
    let model = model("deepseek_v3");
    let options = TextOptions { stop: vec!["\nUser:".into(), "END".into()], ..TextOptions::default() };
    let (_, transcriber) = ask(&model, &options, &thinking());
    let answer = "I may say END here.</think>So be it. EN-EN\nUser: and more and more and more";
    let heard = hear(&model, transcriber, answer, Finish::Length);
    assert_eq!((heard.reasoning.as_str(), heard.text.as_str()), ("I may say END here.", "So be it. EN-EN"));
    assert_eq!(heard.ending, Some(Ending::StopString("\nUser:".into())));
    let all = model.tokenizer().encode(answer, Specials::Parse).unwrap().len();
    assert!(heard.taken < all, "it stops at once");
    let (_, transcriber) = ask(&model, &options, &thinking());
    let heard = hear(&model, transcriber, "x</think>It ends in EN", Finish::Length);
    assert_eq!((heard.text.as_str(), heard.ending), ("It ends in EN", Some(Ending::Length)));
}

#[test]
fn tool_calls_are_heard_if_tools_were_offered() {
    let model = model("deepseek_v3");
    let call = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{\"a\": 6}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    let answer = format!("hm</think>Let me see.{call}");
    let tools = vec![serde_json::json!({"type": "function", "function": {"name": "add", "parameters": {}}})];
    let render = RenderOptions { tools, ..thinking() };
    let (_, transcriber) = ask(&model, &TextOptions::default(), &render);
    let heard = hear(&model, transcriber, &answer, Finish::Length);
    assert_eq!((heard.text.as_str(), heard.calls.len(), heard.malformed), ("Let me see.", 1, 0));
    let (name, arguments, raw) = &heard.calls[0];
    assert_eq!((name.as_str(), arguments.as_str()), ("add", "{\"a\": 6}"));
    assert!(call.contains(raw.as_str()), "the exact text, for replay");
}

#[test]
fn plain_text_is_only_text() {
    let model = model("qwen2");
    let (request, transcriber) = model.complete("Once <think>", &TextOptions::default()).unwrap();
    assert!(request.reasoning.is_none());
    let heard = hear(&model, transcriber, " upon</think> a time 時", Finish::Length);
    assert_eq!((heard.text.as_str(), heard.reasoning.as_str()), (" upon</think> a time 時", ""));
}
