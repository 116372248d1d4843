//! Broken and hostile files: each kind gives one clear error that names the place, and nothing panics or hangs.

mod common;

use common::*;
use fathom_text::{
    ChatMessage, ChatTemplate, Clock, HuggingFaceTexts, NamedTemplate, RenderOptions, Role, Specials, TextError,
    TokenRef, Tokenizer, ToolCall, VocabLists, VocabSource, Vocabulary,
};
use serde_json::{Value, json};

fn good() -> Value {
    read_json(&style_dir("deepseek_v3").join("tokenizer.json"))
}

fn load(json: &str) -> Result<Tokenizer, TextError> {
    Tokenizer::new(&VocabSource::new("dir", Vocabulary::TokenizerJson(json.to_owned())))
}

/// The error of the good file after `break_it`; it must name the file and contain `hint`.
fn refused(hint: &str, break_it: impl FnOnce(&mut Value)) {
    let mut json = good();
    break_it(&mut json);
    let error = load(&json.to_string()).map(drop).unwrap_err().to_string();
    assert!(error.contains("dir/tokenizer.json"), "{error}");
    assert!(error.contains(hint), "wanted {hint:?} in: {error}");
}

#[test]
fn broken_tokenizer_json() {
    load(&good().to_string()).unwrap();
    refused("expected BPE (byte-level), found Unigram", |json| {
        json["model"] = json!({"type": "Unigram", "vocab": [["a", 0.0]]})
    });
    refused("missing field `vocab`", |json| drop(json["model"].as_object_mut().unwrap().remove("vocab")));
    refused("missing field `model`", |json| drop(json.as_object_mut().unwrap().remove("model")));
    refused("missing field `merges`", |json| drop(json["model"].as_object_mut().unwrap().remove("merges")));
    refused("model.dropout", |json| json["model"]["dropout"] = json!(0.1));
    refused("continuing_subword_prefix", |json| json["model"]["continuing_subword_prefix"] = json!("##"));
    refused("end_of_word_suffix", |json| json["model"]["end_of_word_suffix"] = json!("</w>"));
    refused("byte_fallback", |json| json["model"]["byte_fallback"] = json!(true));
    refused("expected u32", |json| json["model"]["vocab"]["!"] = json!("zero"));
    refused("expected u32", |json| json["model"]["vocab"]["!"] = json!(-1));
    refused("expected u32", |json| json["model"]["vocab"]["!"] = json!(1u64 << 32));
    refused("far beyond", |json| json["model"]["vocab"]["!"] = json!(u32::MAX));
    refused("belongs to another token", |json| json["model"]["vocab"]["!"] = json!(50));
    refused("has no text", |json| json["model"]["vocab"][""] = json!(2000));
    refused("no token for byte 0x21", |json| {
        json["model"]["vocab"].as_object_mut().unwrap().remove("!");
        json["model"]["merges"].as_array_mut().unwrap().retain(|rule| !rule.to_string().contains('!'));
    });
    refused("merge 0 `no such`: its left part is no token", |json| json["model"]["merges"][0] = json!(["no", "such"]));
    refused("its right part is no token", |json| json["model"]["merges"][0] = json!(["a", "such"]));
    // Longer than any token: the library underneath would overrun its buffer.
    refused("its result is no token", |json| {
        let longest =
            json["model"]["vocab"].as_object().unwrap().keys().max_by_key(|token| token.len()).unwrap().clone();
        json["model"]["merges"][0] = json!([longest, longest]);
    });
    refused("is no pair", |json| json["model"]["merges"][0] = json!("lonely"));
    refused("two parts", |json| json["model"]["merges"][0] = json!(["a", "b", "c"]));
    refused("a merge rule", |json| json["model"]["merges"][0] = json!(7));
    refused("unknown pre-tokenizer `Metaspace`", |json| json["pre_tokenizer"] = json!({"type": "Metaspace"}));
    refused("ends in ByteLevel, found nothing", |json| json["pre_tokenizer"] = Value::Null);
    refused("field `pre_tokenizer`", |json| {
        json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("(unclosed")
    });
    refused("found Prepend", |json| json["normalizer"] = json!({"type": "Prepend", "prepend": "_"}));
    refused("field `decoder`", |json| json["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true}));
    refused("belongs to another id", |json| json["added_tokens"][3]["content"] = json!("!"));
    refused("belongs to another token", |json| json["added_tokens"][3]["id"] = json!(5));
    refused("invalid type", |json| json["added_tokens"] = json!({"a": 1}));
}

#[test]
fn truncated_tokenizer_json() {
    let text = good().to_string();
    for part in 0..200 {
        let mut end = text.len() * part / 200;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let error = load(&text[..end]).map(drop).unwrap_err();
        assert!(matches!(&error, TextError::Json { file, .. } if file == "dir/tokenizer.json"), "{error}");
    }
    assert!(matches!(load(&"[".repeat(100_000)), Err(TextError::Json { .. })));
    assert!(matches!(load(&format!("{{\"model\":{}", "{\"a\":".repeat(100_000))), Err(TextError::Json { .. })));
}

/// A `tokenizer.json` saved with truncation or padding on must not shorten prompts.
#[test]
fn saved_truncation_and_padding_have_no_effect() {
    let mut json = good();
    json["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 2, "pad_type_id": 0, "pad_token": "x"});
    let text = "The quick brown fox jumps over the lazy dog.";
    let plain = load(&good().to_string()).unwrap().encode(text, Specials::Parse).unwrap();
    assert_eq!(load(&json.to_string()).unwrap().encode(text, Specials::Parse).unwrap(), plain);
}

#[test]
fn broken_configs() {
    let tokenizer = good().to_string();
    let read = |config: &str| {
        let texts = HuggingFaceTexts { tokenizer: &tokenizer, config: Some(config), ..HuggingFaceTexts::default() };
        VocabSource::from_hugging_face("dir", texts).and_then(|source| {
            let tokenizer = Tokenizer::new(&source)?;
            ChatTemplate::new(&source, &tokenizer).map(drop)
        })
    };
    read(r#"{"chat_template": ""}"#).unwrap();
    for (config, hint) in [
        ("", "dir/tokenizer_config.json"),
        ("[]", "dir/tokenizer_config.json"),
        (r#"{"bos_token": 5}"#, "dir/tokenizer_config.json"),
        (r#"{"bos_token": {"text": "x"}}"#, "dir/tokenizer_config.json"),
        (r#"{"add_bos_token": "yes"}"#, "expected a boolean"),
        (r#"{"chat_template": 5}"#, "dir/tokenizer_config.json"),
        (r#"{"chat_template": [{"template": "x"}]}"#, "dir/tokenizer_config.json"),
        (r#"{"bos_token": "<nowhere>"}"#, "bos_token`: expected a token of the vocabulary, found `<nowhere>`"),
        (r#"{"eos_token": "<nowhere>"}"#, "eos_token`: expected a token of the vocabulary, found `<nowhere>`"),
        (r#"{"bos_token": "<think>"}"#, "no chat template in the model's files"),
        (r#"{"chat_template": "{% if %}"}"#, "chat template, line 1"),
    ] {
        let error = read(config).unwrap_err().to_string();
        assert!(error.contains(hint), "wanted {hint:?} in: {error}");
    }
}

#[test]
fn broken_lists() {
    let dir = style_dir("deepseek_v3");
    let good = source_as_lists(&dir, "deepseek-v3");
    let refused = |hint: &str, break_it: &dyn Fn(&mut VocabLists, &mut VocabSource)| {
        let mut source = good.clone();
        let Vocabulary::Lists(mut lists) = good.vocabulary.clone() else { unreachable!() };
        break_it(&mut lists, &mut source);
        source.vocabulary = Vocabulary::Lists(lists);
        let error = Tokenizer::new(&source).map(drop).unwrap_err().to_string();
        assert!(error.contains(hint), "wanted {hint:?} in: {error}");
    };
    refused("expected gpt2 (byte-level BPE), found `llama`", &|lists, _| lists.model = "llama".into());
    refused("unknown pre-tokenizer `default`; known are deepseek-llm", &|lists, _| lists.pre = "default".into());
    refused("982 entries, one per token, found 981", &|lists, _| lists.kinds.truncate(981));
    refused("token_type[7]`: expected 1 to 5, found 6", &|lists, _| lists.kinds[7] = 6);
    refused("merge 3 `ab`", &|lists, _| lists.merges[3] = "ab".into());
    refused("merge 3 `a  b`", &|lists, _| lists.merges[3] = "a  b".into());
    refused("merge 3 `zz b`: its left part is no token", &|lists, _| lists.merges[3] = "zz b".into());
    refused("belongs to another id", &|lists, _| lists.tokens[300] = lists.tokens[301].clone());
    refused("has no text", &|lists, _| lists.tokens[300] = String::new());
    refused("no token for byte 0x00", &|lists, _| {
        *lists = VocabLists { tokens: Vec::new(), kinds: Vec::new(), merges: Vec::new(), ..lists.clone() };
    });
    refused("bos_token`: expected a token of the vocabulary, found 982", &|_, source| {
        source.bos = Some(TokenRef::Id(982))
    });
    refused("end-of-answer token", &|_, source| source.also_end.push(TokenRef::Id(u32::MAX)));
}

#[test]
fn unused_tokens_have_ids_but_no_text() {
    let mut source = source_as_lists(&style_dir("deepseek_v3"), "deepseek-v3");
    let Vocabulary::Lists(lists) = &mut source.vocabulary else { unreachable!() };
    lists.tokens.extend(["[PAD982]".into(), "[PAD983]".into()]);
    lists.kinds.extend([VocabLists::UNUSED; 2]);
    source.pad = Some(TokenRef::Id(983));
    let tokenizer = Tokenizer::new(&source).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.pad()), (984, Some(983)));
    assert_eq!(tokenizer.token_bytes(982), None);
    assert_eq!(tokenizer.token_bytes(5000), None);
    assert_eq!(tokenizer.decode(&[35, 982, 5000, 36]), tokenizer.decode(&[35, 36]));
    assert!(!tokenizer.encode("[PAD982]", Specials::Parse).unwrap().contains(&982));
}

/// Lengths at which anything quadratic would not end.
#[test]
fn long_texts() {
    for (style, pre) in STYLES {
        let tokenizer = Tokenizer::new(&source_as_lists(&style_dir(style), pre)).unwrap();
        let text = "The fox, 1234 dogs\n\n  and 日本語 😀 ".repeat(5_000);
        for text in [text, "a".repeat(200_000), "7".repeat(200_000), "!?".repeat(100_000), " ".repeat(500_000) + "x"] {
            for specials in [Specials::Parse, Specials::Plain] {
                let ids = tokenizer.encode(&text, specials).unwrap();
                assert!(tokenizer.decode(&ids) == text, "{style}: {:?}...", &text[..8]);
            }
        }
        let error = tokenizer.encode(&" ".repeat(500_001), Specials::Parse).unwrap_err();
        assert!(matches!(error, TextError::TooLarge { found: 500_001, .. }), "{error}");
    }
}

fn template(source: &str) -> Result<ChatTemplate, TextError> {
    let mut vocab = source_as_lists(&style_dir("deepseek_v3"), "deepseek-v3");
    vocab.templates = vec![NamedTemplate { name: "default".into(), source: source.into() }];
    let tokenizer = Tokenizer::new(&vocab).unwrap();
    ChatTemplate::new(&vocab, &tokenizer)
}

fn render(source: &str) -> Result<String, TextError> {
    let mut call = ChatMessage::new(Role::Assistant, "");
    call.tool_calls.push(ToolCall { id: None, name: "f".into(), arguments: "{}".into() });
    let messages = [ChatMessage::new(Role::User, "hello"), call];
    Ok(template(source)?.render(&messages, &RenderOptions::default())?.text)
}

#[test]
fn broken_templates() {
    for (source, line) in [
        ("{% for m in messages %}", 1),
        ("ok\n{{ 1 + }}", 2),
        ("{% endfor %}", 1),
        ("{{ 'unclosed }}", 1),
        ("{% nonsense %}", 1),
        ("{{ messages", 1),
    ] {
        match template(source).map(drop) {
            Err(TextError::TemplateSyntax { line: at, .. }) => assert_eq!(at, line, "{source}"),
            other => panic!("{source}: {other:?}"),
        }
    }
    for (source, hint) in [
        ("\n{{ raise_exception('roles must alternate') }}", "line 2, refused the conversation: roles must alternate"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{{ messages[0].content + 5 }}", "refused"),
        ("{{ messages | no_such_filter }}", "no_such_filter"),
        ("{{ messages[0].no_such_method() }}", "no_such_method"),
        ("{% include '/etc/passwd' %}", "refused"),
        ("{% import '/etc/passwd' as x %}", "refused"),
        ("{{ strftime_now('%Q') }}", "unknown directive %Q"),
        ("{{ messages | tojson(nonsense=1) }}", "nonsense"),
        ("{{ raise_exception | tojson }}", "not JSON"),
    ] {
        let error = render(source).unwrap_err().to_string();
        assert!(error.contains(hint), "wanted {hint:?} in: {error}");
    }
    let huge = "x".repeat((1 << 17) + 1);
    assert!(matches!(template(&huge).map(drop), Err(TextError::TooLarge { .. })));
}

/// Each of these would run for ever, or fill the memory or the stack.
#[test]
fn hostile_templates() {
    for source in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x{% endfor %}{% endfor %}{% endfor %}",
        "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{{ 'x' * 99999999 }}",
        "{{ 'x' * 99999999999999999999 }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ 'x' | indent(999999999) }}",
        "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s.replace('a', n.s) %}{% endfor %}",
        "{% set n = namespace(l=['x']) %}{% for i in range(99) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l }}",
        "{% set n = namespace(l=['x']) %}{% for i in range(99) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l | tojson }}",
        "{% set n = namespace(l=['x']) %}{% for i in range(99) %}{% set n.l = n.l + n.l %}{% endfor %}{{ n.l | length }}",
        "{% set n = namespace(l=[1]) %}{% for i in range(99999) %}{% set n.l = [n.l] %}{% endfor %}{{ n.l }}",
        "{% set n = namespace(l=[1]) %}{% for i in range(99999) %}{% set n.l = [n.l] %}{% endfor %}{{ n.l | tojson }}",
        "{% set n = namespace(l=[1]) %}{% for i in range(99999) %}{% set n.l = {'a': n.l} %}{% endfor %}",
        "{% set n = namespace(l=[1]) %}{% for i in range(99999) %}{% set n.l = n.l[:] %}{% endfor %}",
        "{% set n = namespace(l=[1]) %}{% for i in range(99999) %}{% set n.l = n.l | reverse %}{% endfor %}",
        "{% set n = namespace(l=[1]) %}{% for i in range(99999) %}{% set n.l = n.l * 1 %}{% endfor %}",
        "{% set n = namespace(l=[1]) %}{% for i in range(99999) %}{% set n.l = n.l | zip %}{% endfor %}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% for x in [[[[1]]]] recursive %}{{ loop([x]) }}{% endfor %}",
        "{{ range(99999999999) | list }}",
        "{{ messages | tojson(indent=999999) }}",
        "{% set n = range(99999) | list | tojson %}{{ n * 9999 }}",
        "{% set n = [0] %}{{ 1 in n * 99999999 }}",
        "{% set n = [0] %}{{ n * 99999999 == n * 99999998 }}",
        "{% set n = namespace() %}{% set n.a = n %}{{ n ~ '' }}",
        "{% set n = namespace() %}{% set n.a = [n] %}{{ n.a == n.a }}",
        "{% set n = namespace() %}{% macro f(m) %}{% set m.a = m %}{{ m | upper }}{% endmacro %}{{ f(n) }}",
        "{{ namespace() }}",
        "{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l ~ '' }}",
        "{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = dict(a=n.l, b=n.l) %}{% endfor %}{{ n.l | upper }}",
        "{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = (n.l * 2) | batch(2) | list %}{% endfor %}{{ n.l ~ '' }}",
        "{{ 1 in [0] * 99999999 }}",
        "{{ 99999999 * ([0]) == [] }}",
    ] {
        match render(source) {
            Err(
                TextError::TemplateLimit { .. } | TextError::TemplateRender { .. } | TextError::TemplateSyntax { .. },
            ) => {}
            other => panic!("{source}: {:?}", other.map(|text| text.len())),
        }
    }
    for nest in ["(", "[", "{'a':", "-", "not ", "a(", "a[", "{% if 1 %}", "{% macro m() %}", "{% block b %}"] {
        let source = if nest.starts_with("{%") { nest.repeat(9000) } else { format!("{{{{ {}", nest.repeat(20_000)) };
        assert!(render(&source).is_err(), "{nest}");
    }
    let _ = render(&format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(9000)));
    assert!(render(&("{% if 1 %}".repeat(5000) + &"{% endif %}".repeat(5000))).is_err());
    // Long expressions are legal; whatever comes out, the stack must bear them.
    for joint in
        ["+1", "~1", ".a", "[0]", "[:]", "|string", " and 1", " or 0", " if 1 else 1", "==1", "**1", "()", ",1"]
    {
        let _ = render(&format!("{{{{ 1{} }}}}", joint.repeat(300)));
        assert!(render(&format!("{{{{ 1{} }}}}", joint.repeat(130_000 / joint.len()))).is_err(), "{joint}");
    }
}

/// A long conversation is no attack: the budget grows with it.
#[test]
fn long_conversations_render() {
    let template =
        template("{% for m in messages %}{{ m.role ~ ': ' ~ m.content.split('</think>')[-1] | trim }}\n{% endfor %}")
            .unwrap();
    let messages: Vec<ChatMessage> =
        (0..2000).map(|n| ChatMessage::new(Role::User, format!("{n} ").repeat(1000))).collect();
    let text =
        template.render(&messages, &RenderOptions { now: Clock::default(), ..RenderOptions::default() }).unwrap().text;
    assert!(text.len() > 8_000_000);
}
