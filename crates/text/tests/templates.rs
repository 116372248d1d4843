//! Published templates, and one that exercises the language, against renderings by Jinja2 (testdata/templates/golden.json).

mod common;

use common::*;
use fathom_text::{
    ChatMessage, ChatTemplate, Clock, DEEPSEEK_LLM_TEMPLATE, NamedTemplate, RenderOptions, Role, TextError, Thinking,
    Tokenizer, ToolCall, ToolForm, VocabSource,
};
use serde_json::json;

const LLAMA: &str = "deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja";
const QWEN: &str = "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja";
const V31: &str = "deepseek-ai-DeepSeek-V3.1.jinja";

fn compile(sources: &[(&str, &str)]) -> ChatTemplate {
    let mut vocab: VocabSource = source(&style_dir("deepseek_v3"));
    let named = |(name, source): &(&str, &str)| NamedTemplate { name: (*name).into(), source: (*source).into() };
    vocab.templates = sources.iter().map(named).collect();
    let tokenizer = Tokenizer::new(&vocab).unwrap();
    ChatTemplate::new(&vocab, &tokenizer).unwrap()
}

fn published(file: &str) -> ChatTemplate {
    compile(&[("default", &read(&root().join("testdata/templates").join(file)))])
}

#[test]
fn renderings_equal_jinja2s() {
    let golden = read_json(&root().join("testdata/templates/golden.json"));
    let now = Clock { unix_seconds: golden["unix_seconds"].as_i64().unwrap(), utc_offset_seconds: 0 };
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 100);
    for file in [LLAMA, QWEN, V31, "semantics.jinja"] {
        let template = published(file);
        for case in cases.iter().filter(|case| case["template"] == file) {
            let mut options = RenderOptions { now, ..RenderOptions::default() };
            options.tools = case["tools"].as_array().cloned().unwrap_or_default();
            if case["thinking"] != "default" {
                // As variables, so that only the template acts on them.
                let on = json!(case["thinking"] == "on");
                options.extra.extend([("thinking".to_owned(), on.clone()), ("enable_thinking".to_owned(), on)]);
            }
            let rendered = template.render(&messages(&case["messages"]), &options).unwrap().text;
            assert_eq!(rendered, text(&case["text"]), "{file}: {} {}", case["name"], case["thinking"]);
        }
    }
}

fn end_of(template: &ChatTemplate, thinking: Thinking) -> (String, bool) {
    let options = RenderOptions { thinking, ..RenderOptions::default() };
    let prompt = template.render(&[ChatMessage::new(Role::User, "x")], &options).unwrap();
    (prompt.text.split_once("x<｜Assistant｜>").unwrap().1.to_owned(), prompt.thinking)
}

#[test]
fn the_thinking_switch() {
    let v3 = compile(&[("default", "{% for m in messages %}<｜User｜>{{ m.content }}{% endfor %}<｜Assistant｜>")]);
    let r1_0528 = compile(&[(
        "default",
        "{% for m in messages %}<｜User｜>{{ m.content.split('</think>')[-1] }}{% endfor %}<｜Assistant｜>",
    )]);
    let (llama, qwen, v31) = (published(LLAMA), published(QWEN), published(V31));
    for (template, default, on, off) in [
        (&llama, ("<think>\n", true), ("<think>\n", true), ("<think>\n\n</think>\n\n", false)),
        (&qwen, ("<think>\n</think>", false), ("<think>\n", true), ("<think>\n</think>", false)),
        (&v31, ("<think></think>", false), ("<think>", true), ("<think></think>", false)),
        (&r1_0528, ("", false), ("<think>\n", true), ("<think>\n\n</think>\n\n", false)),
        // A model whose template knows no thinking is not made to.
        (&v3, ("", false), ("", false), ("", false)),
    ] {
        for (thinking, (end, inside)) in [(Thinking::Default, default), (Thinking::On, on), (Thinking::Off, off)] {
            assert_eq!(end_of(template, thinking), (end.to_owned(), inside), "{thinking:?}");
        }
    }
    assert!(llama.reasons() && v31.reasons() && !v3.reasons());
}

/// After a tool's answer the model goes on with its turn; nothing is put before that.
#[test]
fn the_switch_leaves_a_turn_with_tool_answers_alone() {
    let mut asks = ChatMessage::new(Role::Assistant, "");
    asks.tool_calls = vec![ToolCall { id: None, name: "f".into(), arguments: "{}".into() }];
    let messages = [ChatMessage::new(Role::User, "x"), asks, ChatMessage::new(Role::Tool, "1")];
    for template in [published(LLAMA), published(V31)] {
        let plain = template.render(&messages, &RenderOptions::default()).unwrap();
        assert!(!plain.thinking);
        for thinking in [Thinking::On, Thinking::Off] {
            let options = RenderOptions { thinking, ..RenderOptions::default() };
            assert_eq!(template.render(&messages, &options).unwrap().text.len(), plain.text.len());
        }
    }
}

/// The arguments of an earlier call come back byte for byte, whichever form the template wants, so a prefix cache hits.
#[test]
fn earlier_calls_are_repeated_exactly() {
    for arguments in [r#"{"a":1,  "b": [1.50, 1e3]}"#, "{}", r#"{"u": "\u00e9 é </x>"}"#, "not json"] {
        let mut asks = ChatMessage::new(Role::Assistant, "");
        asks.tool_calls = vec![ToolCall { id: None, name: "f".into(), arguments: arguments.into() }; 2];
        let messages = [ChatMessage::new(Role::User, "x"), asks];
        for file in [LLAMA, QWEN, V31] {
            let text = published(file).render(&messages, &RenderOptions::default()).unwrap().text;
            let shown = if arguments == "not json" && file != LLAMA { "\"not json\"" } else { arguments };
            assert_eq!(text.matches(shown).count(), 2, "{file}: {text}");
        }
    }
    let [llama, qwen, v31] = [LLAMA, QWEN, V31].map(|file| published(file).tool_form());
    assert_eq!([llama, qwen, v31], [ToolForm::R1, ToolForm::R1, ToolForm::V31].map(Some));
}

#[test]
fn a_separate_template_for_tools_is_used_with_tools() {
    let template = compile(&[("tool_use", "tools: {{ tools | length }}"), ("default", "plain: {{ tools }}")]);
    let render = |tools: Vec<serde_json::Value>| {
        let options = RenderOptions { tools, ..RenderOptions::default() };
        template.render(&[ChatMessage::new(Role::User, "x")], &options).unwrap().text
    };
    assert_eq!(render(vec![]), "plain: None");
    assert_eq!(render(vec![json!({}), json!({})]), "tools: 2");
}

#[test]
fn the_built_in_template_of_deepseek_llm() {
    let template = compile(&[("default", DEEPSEEK_LLM_TEMPLATE)]);
    let say = ChatMessage::new;
    let messages = [say(Role::System, "s"), say(Role::User, "a"), say(Role::Assistant, "b"), say(Role::User, "c")];
    let text = template.render(&messages, &RenderOptions::default()).unwrap().text;
    assert_eq!(text, "<｜begin▁of▁sentence｜>s\n\nUser: a\n\nAssistant: b<｜end▁of▁sentence｜>User: c\n\nAssistant:");
    let refused = template.render(&[say(Role::Tool, "x")], &RenderOptions::default()).unwrap_err();
    assert!(matches!(refused, TextError::TemplateRender { .. }), "{refused}");
}

#[test]
fn a_call_is_repeated_as_the_model_wrote_it() {
    let mut asks = ChatMessage::new(Role::Assistant, "");
    let call =
        |id: &str, arguments: &str| ToolCall { id: Some(id.into()), name: "f".into(), arguments: arguments.into() };
    asks.tool_calls = vec![call("1", "{\"a\": 1}"), call("2", "{\"a\": 1}")];
    let messages = [ChatMessage::new(Role::User, "x"), asks];
    let odd = "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\":   1}<｜tool▁call▁end｜>";
    let render = |replays: &[(&str, &str)]| {
        let replays = replays.iter().map(|(id, raw)| ((*id).to_owned(), (*raw).to_owned())).collect();
        published(V31).render(&messages, &RenderOptions { replays, ..RenderOptions::default() }).unwrap().text
    };
    let plain = render(&[]);
    let usual = "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜>";
    assert_eq!(plain.matches(usual).count(), 2, "{plain}");
    assert_eq!(render(&[("2", odd)]), plain.replacen(usual, "@", 1).replace(usual, odd).replace('@', usual));
    assert_eq!(render(&[("3", odd)]), plain, "nobody's call");
}
