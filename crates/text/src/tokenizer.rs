//! The tokenizer: text to token ids and back, for byte-level BPE from any source.
//!
//! Whatever the source, the vocabulary becomes `Parts`, is checked once, and is handed to the `tokenizers` library for
//! encoding. Decoding is our own table of bytes per token, so that it works piecewise and never on half characters.

use crate::bytes::{StreamDecoder, byte_of_char, char_of_byte, occurs_in_utf8};
use crate::error::{Result, TextError};
use crate::json;
use crate::pre::PreTokenizer;
use crate::source::{TokenRef, VocabLists, VocabSource, Vocabulary};
use std::collections::{HashMap, HashSet};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NFC, NormalizerWrapper};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, DecoderWrapper, Model as _, Normalizer as _, OffsetType, PostProcessorWrapper, PreTokenizedString,
    PreTokenizer as _, TokenizerImpl,
};

/// Longest run of white space in a text to encode, in characters. The pattern engine underneath gives up silently on
/// runs above a million, and the cut, hence the ids, would be wrong from there on.
const MAX_WHITESPACE_RUN: usize = 500_000;

/// The marks before the text before a gap, between the two texts, and behind them, as families call them.
const GAP_MARKS: [[&str; 3]; 2] =
    [["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"], ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]];

/// What happens to text that spells an added token such as `<think>` or `<｜User｜>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// It becomes that token. For rendered templates and raw prompts.
    Parse,
    /// It is ordinary text. For text of strangers that must not steer the conversation.
    Plain,
}

/// A tokenizer. Immutable, `Send + Sync`; share it behind an `Arc`.
#[derive(Debug)]
pub struct Tokenizer {
    library: Library,
    /// Bytes of token `id` are `bytes[starts[id]..starts[id + 1]]`.
    bytes: Vec<u8>,
    starts: Vec<usize>,
    /// Control tokens (BOS, EOS, ...), not shown in text.
    special: HashSet<u32>,
    ids: HashMap<String, u32>,
    bos: Option<u32>,
    pad: Option<u32>,
    end: Vec<u32>,
    add_bos: bool,
}

type Library = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// A vocabulary from any source, before it is checked.
pub(crate) struct Parts {
    pub(crate) file: String,
    pub(crate) vocab: Vec<(String, u32)>,
    pub(crate) unused: Vec<u32>,
    pub(crate) merges: Vec<(String, String)>,
    pub(crate) added: Vec<Added>,
    pub(crate) normalizer: Option<NormalizerWrapper>,
    pub(crate) pre_tokenizer: PreTokenizerWrapper,
    pub(crate) ignore_merges: bool,
    /// The token that the file itself puts first; implies `add_bos` if it is BOS.
    pub(crate) leading_token: Option<String>,
    /// The tokenizer's own convention.
    pub(crate) add_bos: bool,
}

/// A token matched in the text itself, before any cutting.
pub(crate) struct Added {
    pub(crate) id: u32,
    pub(crate) token: AddedToken,
}

impl Tokenizer {
    /// Builds and checks a tokenizer.
    ///
    /// # Errors
    /// Anything that would make ids wrong or some text impossible to encode: see [`TextError`].
    pub fn new(source: &VocabSource) -> Result<Self> {
        let parts = match &source.vocabulary {
            Vocabulary::TokenizerJson(text) => json::read(&source.name, text)?,
            Vocabulary::Lists(lists) => from_lists(&source.name, lists)?,
        };
        let table = Table::new(&parts)?;
        let special = parts.added.iter().filter(|a| a.token.special).map(|a| a.id).collect();
        let find = |what: &str, token: &Option<TokenRef>| {
            token.as_ref().map(|token| table.find(source, what, token)).transpose()
        };
        let leading = parts.leading_token.clone().map(TokenRef::Text);
        let leading = find("post_processor's first token", &leading)?;
        let bos = find("bos_token", &source.bos)?.or(leading);
        let mut end: Vec<u32> = find("eos_token", &source.eos)?.into_iter().collect();
        for token in &source.also_end {
            let id = table.find(source, "end-of-answer token", token)?;
            if !end.contains(&id) {
                end.push(id);
            }
        }
        let wants_bos = source.add_bos.unwrap_or(leading.is_some() || parts.add_bos);
        Ok(Self {
            bos,
            pad: find("pad_token", &source.pad)?,
            end,
            add_bos: wants_bos && bos.is_some(),
            special,
            library: library(parts, &table)?,
            ids: table.ids,
            bytes: table.bytes,
            starts: table.starts,
        })
    }

    /// The text of a `tokenizer.json` that gives the same ids.
    pub fn to_json(&self) -> String {
        self.library.to_string(false).expect("invariant: what was built from parts can be written")
    }

    /// Token ids of `text`, without adding any.
    ///
    /// # Errors
    /// [`TextError::TooLarge`] for a run of white space beyond 500,000 characters, [`TextError::Encode`] if the library fails.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        let run = longest_whitespace_run(text);
        if run > MAX_WHITESPACE_RUN {
            let what = "run of white space in a text";
            return Err(TextError::TooLarge { what, found: run, limit: MAX_WHITESPACE_RUN });
        }
        let ids = match specials {
            Specials::Parse => self.library.encode_fast(text, false).map(|e| e.get_ids().to_vec()),
            Specials::Plain => self.encode_plain(text),
        };
        ids.map_err(|error| TextError::Encode { bytes: text.len(), reason: error.to_string() })
    }

    fn encode_plain(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        let mut pieces = PreTokenizedString::from(text);
        if let Some(normalizer) = self.library.get_normalizer() {
            pieces.normalize(|piece| normalizer.normalize(piece))?;
        }
        if let Some(pre_tokenizer) = self.library.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|piece| self.library.get_model().tokenize(piece.get()))?;
        Ok(pieces.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
    }

    /// Token ids of a prompt or rendered template: special tokens parsed, and exactly one BOS if the model wants one.
    /// A text that already begins with BOS, even with several, ends up with one. A model that wants none gets none added.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, Specials::Parse)?;
        if let Some(bos) = self.bos {
            let leading = ids.iter().take_while(|&&id| id == bos).count();
            match leading {
                0 if self.add_bos => ids.insert(0, bos),
                0 | 1 => {}
                more => drop(ids.drain(1..more)),
            }
        }
        Ok(ids)
    }

    /// Token ids of a prompt after which the model writes what stands between `before` and `after` (DeepSeek-Coder's README,
    /// "Code Insertion"; Qwen2.5-Coder's README, "Fill in the middle"). Both texts are encoded as plain text.
    ///
    /// # Errors
    /// [`TextError::Field`] if the vocabulary has no marks for this, else as [`encode`](Self::encode).
    pub fn encode_gap(&self, before: &str, after: &str) -> Result<Vec<u32>> {
        let marks = GAP_MARKS
            .iter()
            .find_map(|[begin, hole, end]| Some([self.id_of(begin)?, self.id_of(hole)?, self.id_of(end)?]));
        let [begin, hole, end] = marks.ok_or_else(|| TextError::Field {
            file: "vocabulary".into(),
            field: "marks for filling a gap".into(),
            expected: "three tokens such as <｜fim▁begin｜>".into(),
            found: "none: this model was not trained for it".into(),
        })?;
        let mut ids: Vec<u32> = self.bos.filter(|_| self.add_bos).into_iter().collect();
        ids.push(begin);
        ids.extend(self.encode(before, Specials::Plain)?);
        ids.push(hole);
        ids.extend(self.encode(after, Specials::Plain)?);
        ids.push(end);
        Ok(ids)
    }

    /// The text of `ids`, control tokens included. Ids without a token (padding rows of the embedding) are skipped,
    /// invalid UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_if(ids, |_| true)
    }

    /// As [`decode`](Self::decode), leaving out control tokens.
    pub fn decode_skipping_special(&self, ids: &[u32]) -> String {
        self.decode_if(ids, |id| !self.is_special(id))
    }

    fn decode_if(&self, ids: &[u32], keep: impl Fn(u32) -> bool) -> String {
        let (mut decoder, mut text) = (StreamDecoder::default(), String::new());
        for &id in ids.iter().filter(|&&id| keep(id)) {
            decoder.push(self.token_bytes(id).unwrap_or_default(), &mut text);
        }
        decoder.finish(&mut text);
        text
    }

    /// The bytes that token `id` stands for, or `None` if there is no such token. Feed them to a [`StreamDecoder`].
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        let id = id as usize;
        let range = *self.starts.get(id)?..*self.starts.get(id + 1)?;
        (!range.is_empty()).then(|| &self.bytes[range])
    }

    /// The id of the token whose stored text is `token` (`<think>`, `Ġthe`).
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// Whether `id` is a control token, which does not belong in shown text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// Highest token id plus one, unused tokens included. The embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.starts.len() - 1
    }

    /// The beginning-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Whether a prompt gets BOS.
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// The padding token.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// The tokens that end an answer, EOS first.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end
    }
}

fn longest_whitespace_run(text: &str) -> usize {
    let (mut longest, mut run) = (0, 0);
    for c in text.chars() {
        run = if c.is_whitespace() { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    longest
}

/// The lists of a GGUF header as [`Parts`].
fn from_lists(name: &str, lists: &VocabLists) -> Result<Parts> {
    let field_error = |field: &str, expected: String, found: String| TextError::Field {
        file: name.to_owned(),
        field: field.to_owned(),
        expected,
        found,
    };
    if lists.model != "gpt2" {
        let expected = "gpt2 (byte-level BPE)".to_owned();
        return Err(field_error("tokenizer.ggml.model", expected, format!("`{}`", lists.model)));
    }
    let count = lists.tokens.len();
    if !lists.kinds.is_empty() && lists.kinds.len() != count {
        let (expected, found) = (format!("{count} entries, one per token"), lists.kinds.len().to_string());
        return Err(field_error("tokenizer.ggml.token_type", expected, found));
    }
    let pre = PreTokenizer::by_name(name, &lists.pre)?;
    let mut parts = Parts {
        file: name.to_owned(),
        vocab: Vec::with_capacity(count),
        unused: Vec::new(),
        merges: Vec::with_capacity(lists.merges.len()),
        added: Vec::new(),
        normalizer: pre.nfc.then(|| NFC.into()),
        pre_tokenizer: pre.chain(),
        ignore_merges: pre.ignore_merges,
        leading_token: None,
        add_bos: pre.add_bos,
    };
    for (id, token) in (0u32..).zip(&lists.tokens) {
        match lists.kinds.get(id as usize).copied().unwrap_or(VocabLists::NORMAL) {
            VocabLists::NORMAL => parts.vocab.push((token.clone(), id)),
            VocabLists::UNUSED => parts.unused.push(id),
            kind @ (VocabLists::UNKNOWN | VocabLists::CONTROL | VocabLists::USER) => {
                let special = kind != VocabLists::USER;
                let token = AddedToken::from(token.clone(), special).normalized(false);
                parts.added.push(Added { id, token });
            }
            kind => {
                let field = format!("tokenizer.ggml.token_type[{id}]");
                return Err(field_error(&field, "1 to 5".into(), kind.to_string()));
            }
        }
    }
    for (rank, rule) in lists.merges.iter().enumerate() {
        let pair = json::split_merge(rule).ok_or_else(|| TextError::Merge {
            file: name.to_owned(),
            rank,
            merge: rule.clone(),
            fault: "is not two tokens with one space between",
        })?;
        parts.merges.push(pair);
    }
    Ok(parts)
}

/// The checked token table: bytes by id, id by text.
struct Table {
    ids: HashMap<String, u32>,
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl Table {
    fn new(parts: &Parts) -> Result<Self> {
        let fault = |id: u32, token: &str, fault: &'static str| TextError::TokenId {
            file: parts.file.clone(),
            id,
            token: token.to_owned(),
            fault,
        };
        let total = parts.vocab.len() + parts.added.len() + parts.unused.len();
        let mut by_id: Vec<Option<(&str, bool)>> = Vec::new();
        let mut ids: HashMap<String, u32> = HashMap::with_capacity(total);
        let plain = parts.vocab.iter().map(|(token, id)| (token.as_str(), *id, false));
        let added = parts.added.iter().map(|a| (a.token.content.as_str(), a.id, true));
        for (token, id, is_added) in plain.chain(added) {
            // Bounds the table by what the file holds; published vocabularies have hardly any gaps.
            if id as usize > 2 * total + 1024 {
                return Err(fault(id, token, "id is far beyond the number of tokens"));
            }
            if token.is_empty() {
                return Err(fault(id, token, "has no text"));
            }
            if by_id.len() <= id as usize {
                by_id.resize(id as usize + 1, None);
            }
            match by_id[id as usize] {
                // `tokenizer.json` may list an added token in the model's vocabulary too.
                Some((same, _)) if is_added && same == token => {}
                Some(_) => return Err(fault(id, token, "id belongs to another token as well")),
                None => {}
            }
            if ids.insert(token.to_owned(), id).is_some_and(|other| other != id) {
                return Err(fault(id, token, "text belongs to another id as well"));
            }
            by_id[id as usize] = Some((token, is_added));
        }
        if let Some(&last) = parts.unused.last() {
            by_id.resize(by_id.len().max(last as usize + 1), None);
        }
        let (mut bytes, mut starts) = (Vec::new(), Vec::with_capacity(by_id.len() + 1));
        for entry in &by_id {
            starts.push(bytes.len());
            match *entry {
                Some((text, true)) => bytes.extend_from_slice(text.as_bytes()),
                Some((text, false)) => push_token_bytes(text, &mut bytes),
                None => {}
            }
        }
        starts.push(bytes.len());

        if let Some(byte) = (0..=255)
            .find(|&b| occurs_in_utf8(b) && !ids.contains_key(char_of_byte(b).encode_utf8(&mut [0; 4]) as &str))
        {
            return Err(TextError::MissingByte { file: parts.file.clone(), byte });
        }
        Ok(Self { ids, bytes, starts })
    }

    fn find(&self, source: &VocabSource, what: &str, token: &TokenRef) -> Result<u32> {
        let (found, known) = match token {
            TokenRef::Id(id) => (id.to_string(), ((*id as usize) < self.starts.len() - 1).then_some(*id)),
            TokenRef::Text(text) => (format!("`{text}`"), self.ids.get(text).copied()),
        };
        known.ok_or_else(|| TextError::Field {
            file: source.name.clone(),
            field: what.to_owned(),
            expected: "a token of the vocabulary".into(),
            found,
        })
    }
}

/// Bytes of a byte-level string. A string with characters outside the alphabet stands for itself.
fn push_token_bytes(text: &str, out: &mut Vec<u8>) {
    let from = out.len();
    for c in text.chars() {
        match byte_of_char(c) {
            Some(byte) => out.push(byte),
            None => {
                out.truncate(from);
                out.extend_from_slice(text.as_bytes());
                return;
            }
        }
    }
}

/// Checks the merges and hands everything to the tokenizer library.
fn library(parts: Parts, table: &Table) -> Result<Library> {
    let mut joined = String::new();
    for (rank, (left, right)) in parts.merges.iter().enumerate() {
        joined.clear();
        joined.extend([left.as_str(), right.as_str()]);
        let known = |token: &String| table.ids.contains_key(token);
        let fault = match (known(left), known(right), known(&joined)) {
            (true, true, true) => continue,
            (false, _, _) => "its left part is no token",
            (_, false, _) => "its right part is no token",
            _ => "its result is no token",
        };
        let merge = format!("{left} {right}");
        return Err(TextError::Merge { file: parts.file, rank, merge, fault });
    }
    // All tokens go into the model's vocabulary, added ones too: the library then keeps their ids.
    let vocab: Vocab = table.ids.iter().map(|(token, &id)| (token.clone(), id)).collect();
    let broken = |reason: tokenizers::Error| TextError::Field {
        file: parts.file.clone(),
        field: "vocabulary".into(),
        expected: "one that the tokenizer library builds".into(),
        found: reason.to_string(),
    };
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, parts.merges)
        .ignore_merges(parts.ignore_merges)
        .build()
        .map_err(broken)?;
    let mut library = Library::new(bpe);
    library.with_normalizer(parts.normalizer).map_err(broken)?;
    library.with_pre_tokenizer(Some(parts.pre_tokenizer));
    library.with_decoder(Some(ByteLevel::new(false, true, false)));
    library.add_tokens(parts.added.into_iter().map(|added| added.token)).map_err(broken)?;
    Ok(library)
}
