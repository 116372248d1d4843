//! What a parser must survive: each function takes bytes from anywhere and panics if the parser does wrong.
//!
//! The fuzz targets call these, and so does the test that replays golden files, mutations of them
//! and every input that once crashed. Parsers of files get theirs in memory-backed storage where the
//! system has it, one directory per thread.

use fathom_core::DType;
use fathom_files::Archive;
use fathom_model::{Model, Options};
use fathom_text::{
    ChatMessage, ChatTemplate, GrammarMaker, HuggingFaceTexts, ReasoningEvent, ReasoningParser, RenderOptions, Role,
    Shape, Specials, StopMatcher, StreamDecoder, TokenRef, Tokenizer, ToolEvent, ToolForm, ToolParser, VocabSource,
};
use std::hint::black_box;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

/// A check of one parser.
pub type Check = fn(&[u8]);

/// Every check: its name, which is also the fuzz target's, the ending of the golden files that seed
/// it (none: no such files), and the function.
pub const CHECKS: &[(&str, &str, Check)] = &[
    ("gguf", ".gguf", gguf),
    ("safetensors", ".safetensors", safetensors),
    ("config", "config.json", config),
    ("tokenizer", "tokenizer.json", tokenizer),
    ("template", ".jinja", template),
    ("streams", "golden_chat.json", streams),
    ("picture", ".png", picture),
    ("pickle", "pytorch_model.bin", pickle),
    ("grammar", "config.json", grammar),
];

/// A picture: what is accepted has the pixels that it says, and can be scaled and written.
pub fn picture(data: &[u8]) {
    let limits = fathom_picture::Limits { pixels: 1 << 20, ..Default::default() };
    if let Ok(picture) = fathom_picture::decode(data, &limits) {
        assert_eq!(picture.rgb.len(), picture.width * picture.height * 3);
        let small = fathom_picture::resize(&picture, 24, 9, fathom_picture::Filter::Bicubic);
        black_box(fathom_picture::encode_png(&small, &[]).expect("a picture with pixels can be written"));
    }
    black_box(fathom_picture::read_png_text(data).is_ok());
}

/// A PyTorch checkpoint beside a sound configuration.
pub fn pickle(data: &[u8]) {
    let dir = scratch(&[("pickled/config.json", b"{}"), ("pickled/pytorch_model.bin", data)]).join("pickled");
    if let Ok(archive) = Archive::open_unsafe_kinds(&dir) {
        touch_tensors(&archive);
    }
}

/// A GGUF file: header, metadata, vocabulary, specification, every tensor's place.
pub fn gguf(data: &[u8]) {
    let path = scratch(&[("model.gguf", data)]).join("model.gguf");
    let Ok(archive) = Archive::open(&path) else { return };
    touch_tensors(&archive);
    if let Ok(model) = Model::open(&path, &Options::default()) {
        black_box((model.check().is_ok(), model.vocab().is_ok(), model.spec.parameters()));
    }
}

/// A safetensors file beside a sound configuration.
pub fn safetensors(data: &[u8]) {
    let dir = scratch(&[("config.json", b"{}"), ("model.safetensors", data)]);
    if let Ok(archive) = Archive::open(&dir) {
        touch_tensors(&archive);
    }
}

/// A `config.json`: what is accepted has sizes that can be computed.
pub fn config(data: &[u8]) {
    let path = scratch(&[("only/config.json", data)]).join("only/config.json");
    if let Ok(model) = Model::open(&path, &Options::default()) {
        black_box((model.spec.parameters(), model.spec.kv_bytes_per_token(DType::F16)));
    }
}

/// A shape from a client, as JSON Schema, regular expression and Lark: it compiles or not, and what compiles can be followed
/// for a while.
pub fn grammar(data: &[u8]) {
    static MAKER: LazyLock<GrammarMaker> = LazyLock::new(|| {
        let mut source = source(SOUND_TOKENIZER, None);
        source.eos = Some(TokenRef::Id(1));
        let tokenizer = Tokenizer::new(&source).expect("the golden tokenizer is sound");
        GrammarMaker::new(Arc::new(tokenizer)).expect("it has a token that ends answers")
    });
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut shapes = vec![Shape::Regex(text.into()), Shape::Lark(text.into())];
    shapes.extend(serde_json::from_str(text).map(Shape::Schema));
    for grammar in shapes.iter().filter_map(|shape| MAKER.compile(shape, true).ok()) {
        let mut guide = grammar.start();
        for _ in 0..8 {
            let Ok(mask) = guide.mask() else { break };
            let Some(word) = mask.iter().position(|word| *word != 0) else { break };
            let token = word as u32 * 32 + mask[word].trailing_zeros();
            if !matches!(guide.take(token), Ok(false)) {
                break;
            }
        }
    }
}

/// A `tokenizer.json`: what is accepted encodes and decodes.
pub fn tokenizer(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(tokenizer) = Tokenizer::new(&source(text, None)) else { return };
    if let Ok(ids) = tokenizer.encode("Où est 12345 的 <|User|>\n\t x\u{1f600}", Specials::Parse) {
        black_box(tokenizer.decode(&ids));
    }
}

/// A chat template: it compiles or not, renders within its budget or not, and ends.
pub fn template(data: &[u8]) {
    static TOKENIZER: LazyLock<Tokenizer> =
        LazyLock::new(|| Tokenizer::new(&source(SOUND_TOKENIZER, None)).expect("the golden tokenizer is sound"));
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(template) = ChatTemplate::new(&source(SOUND_TOKENIZER, Some(text)), &TOKENIZER) else { return };
    let messages = [
        ChatMessage::new(Role::System, "Be brief."),
        ChatMessage::new(Role::User, "Why?"),
        ChatMessage::new(Role::Assistant, "<think>hm</think>Because."),
        ChatMessage::new(Role::User, "And?"),
    ];
    black_box(template.render(&messages, &RenderOptions::default()).is_ok());
}

/// Generated text cut into pieces: every streaming parser finds what it finds in the whole. The
/// first two bytes choose where to cut, the rest is what the model writes.
pub fn streams(data: &[u8]) {
    let Some((&[first, step], bytes)) = data.split_first_chunk() else { return };
    let (first, step) = (usize::from(first), usize::from(step).max(1));
    let whole = String::from_utf8_lossy(bytes);

    let mut text = String::new();
    let mut decoder = StreamDecoder::default();
    for piece in cut(bytes.len(), first, step) {
        decoder.push(&bytes[piece], &mut text);
    }
    decoder.finish(&mut text);
    assert_eq!(text, whole, "decoded in pieces, decoded whole");

    let chars: Vec<char> = whole.chars().collect();
    let pieces: Vec<String> = cut(chars.len(), first, step).map(|r| chars[r].iter().collect()).collect();
    let all = [whole.into_owned()];
    for inside in [false, true] {
        assert_eq!(reasoning(&pieces, inside), reasoning(&all, inside), "reasoning in pieces, whole");
    }
    for form in [ToolForm::R1, ToolForm::Hermes] {
        assert_eq!(tools(&pieces, form), tools(&all, form), "tool calls in pieces, whole");
    }
    assert_eq!(stop(&pieces), stop(&all), "stop strings in pieces, whole");
}

const SOUND_TOKENIZER: &str = include_str!("../../../testdata/tokenizers/deepseek_v3/tokenizer.json");

/// Reads the last byte of every tensor, which proves that its extent lies inside the file.
fn touch_tensors(archive: &Archive) {
    for name in archive.names() {
        if let Ok(Some(tensor)) = archive.tensor(name) {
            black_box(tensor.bytes.as_slice().last());
        }
    }
}

fn source(tokenizer: &str, template: Option<&str>) -> VocabSource {
    let texts = HuggingFaceTexts { tokenizer, chat_template: template, ..HuggingFaceTexts::default() };
    VocabSource::from_hugging_face("hostile", texts).expect("no config that could be wrong")
}

/// Writes files into this thread's scratch directory and returns it.
fn scratch(files: &[(&str, &[u8])]) -> PathBuf {
    struct Scratch(PathBuf);
    impl Drop for Scratch {
        fn drop(&mut self) {
            // Nothing depends on it; a leftover is small.
            std::fs::remove_dir_all(&self.0).ok();
        }
    }
    thread_local! {
        static DIR: Scratch = {
            let memory = PathBuf::from("/dev/shm");
            let base = if memory.is_dir() { memory } else { std::env::temp_dir() };
            Scratch(base.join(format!("fathom-{}-{:?}", std::process::id(), std::thread::current().id())))
        };
    }
    DIR.with(|dir| {
        for (name, bytes) in files {
            let path = dir.0.join(name);
            std::fs::create_dir_all(path.parent().expect("a file in a directory")).expect("a scratch directory");
            std::fs::write(path, bytes).expect("room for the input");
        }
        dir.0.clone()
    })
}

/// Ranges that cover `0..len`: up to `first`, then `step` at a time.
fn cut(len: usize, first: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    let first = first.min(len);
    let rest = (first..len).step_by(step).map(move |at| at..(at + step).min(len));
    std::iter::once(0..first).chain(rest)
}

fn reasoning(pieces: &[String], inside: bool) -> (String, String) {
    let mut parser = ReasoningParser::new(inside);
    let (mut thought, mut answer) = (String::new(), String::new());
    let mut take = |event: ReasoningEvent<'_>| match event {
        ReasoningEvent::Reasoning(text) => thought.push_str(text),
        ReasoningEvent::Text(text) => answer.push_str(text),
        ReasoningEvent::TextWasReasoning => thought.push_str(&std::mem::take(&mut answer)),
    };
    pieces.iter().for_each(|piece| parser.push(piece, &mut take));
    parser.finish(&mut take);
    (thought, answer)
}

/// Events with neighbouring texts joined.
fn tools(pieces: &[String], form: ToolForm) -> Vec<String> {
    let mut parser = ToolParser::new(form);
    let mut found: Vec<String> = vec![];
    let mut in_text = false;
    let mut take = |event: ToolEvent<'_>| match event {
        ToolEvent::Text(text) if in_text => found.last_mut().expect("text came before").push_str(text),
        event => {
            in_text = matches!(event, ToolEvent::Text(_));
            found.push(match event {
                ToolEvent::Text(text) => text.to_owned(),
                other => format!("{other:?}"),
            });
        }
    };
    pieces.iter().for_each(|piece| parser.push(piece, &mut take));
    parser.finish(&mut take);
    found
}

fn stop(pieces: &[String]) -> (String, Option<usize>) {
    let mut matcher = StopMatcher::new(vec!["</s>".into(), "\n\nUser:".into(), "</".into(), "aab".into()]);
    let mut shown = String::new();
    for piece in pieces {
        if let Some(index) = matcher.push(piece, &mut shown) {
            return (shown, Some(index));
        }
    }
    matcher.finish(&mut shown);
    (shown, None)
}
