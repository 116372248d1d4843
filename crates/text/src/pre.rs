//! Pre-tokenizers by the name that GGUF files give them: how text is cut before merges are applied.
//!
//! A `tokenizer.json` describes its own chain; GGUF metadata holds only a name. An unknown name is refused,
//! because any other cut gives wrong ids silently. The patterns are those of the models' published tokenizers.

use crate::error::{Result, TextError};
use tokenizers::SplitDelimiterBehavior::Isolated;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

/// What a pre-tokenizer name implies.
pub(crate) struct PreTokenizer {
    /// Patterns applied one after the other, each isolating its matches.
    patterns: &'static [&'static str],
    /// Text is brought to Unicode's composed form first.
    pub(crate) nfc: bool,
    /// A word that is a token is taken whole, even if merges would not build it.
    pub(crate) ignore_merges: bool,
    /// The model's convention for BOS when the file does not say.
    pub(crate) add_bos: bool,
}

const LINE_BREAK: &str = r"[\r\n]";
const CJK_AND_HANGUL: &str = "[\u{4E00}-\u{9FA5}\u{0800}-\u{4E00}\u{AC00}-\u{D7FF}]+";
const ONE_DIGIT: &str = r"\p{N}";

/// DeepSeek-LLM's letters with an optional leading space: the cased scripts, as ranges in its tokenizer.
const CASED_LETTERS: &str = "\\s?[A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}\u{295}-\u{2AF}\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}\u{A771}-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}]+";

const DEEPSEEK_LLM: PreTokenizer = PreTokenizer {
    patterns: &[
        LINE_BREAK,
        CASED_LETTERS,
        "\\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3000}-\u{3002}]+",
        r"\s+$",
        CJK_AND_HANGUL,
        ONE_DIGIT,
    ],
    nfc: false,
    ignore_merges: false,
    add_bos: true,
};

const DEEPSEEK_CODER: PreTokenizer = PreTokenizer {
    patterns: &[LINE_BREAK, r"\s?\p{L}+", r"\s?\p{P}+", CJK_AND_HANGUL, ONE_DIGIT],
    nfc: false,
    ignore_merges: false,
    add_bos: true,
};

const DEEPSEEK_V3: PreTokenizer = PreTokenizer {
    patterns: &[
        r"\p{N}{1,3}",
        "[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+",
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
    ],
    nfc: false,
    ignore_merges: false,
    add_bos: true,
};

const QWEN2: PreTokenizer = PreTokenizer {
    patterns: &[
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    nfc: true,
    ignore_merges: false,
    add_bos: false,
};

const DEEPSEEK_R1_QWEN: PreTokenizer = PreTokenizer { add_bos: true, ..QWEN2 };

const LLAMA3: PreTokenizer = PreTokenizer {
    patterns: &[
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    nfc: false,
    ignore_merges: true,
    add_bos: true,
};

/// Every name accepted, with what it stands for.
static BY_NAME: &[(&str, &PreTokenizer)] = &[
    ("deepseek-llm", &DEEPSEEK_LLM),
    ("deepseek-coder", &DEEPSEEK_CODER),
    ("deepseek-v3", &DEEPSEEK_V3),
    ("deepseek-r1-qwen", &DEEPSEEK_R1_QWEN),
    ("qwen2", &QWEN2),
    ("llama-bpe", &LLAMA3),
    ("llama3", &LLAMA3),
    ("llama-v3", &LLAMA3),
];

/// The pre-tokenizer names that [`VocabLists::pre`](crate::VocabLists::pre) may hold.
pub fn known_pre_tokenizers() -> Vec<&'static str> {
    BY_NAME.iter().map(|(name, _)| *name).collect()
}

impl PreTokenizer {
    pub(crate) fn by_name(file: &str, name: &str) -> Result<&'static Self> {
        let found = BY_NAME.iter().find(|(known, _)| *known == name);
        found.map(|(_, pre)| *pre).ok_or_else(|| TextError::UnknownPreTokenizer {
            file: file.to_owned(),
            found: name.to_owned(),
            known: known_pre_tokenizers(),
        })
    }

    /// The chain for the tokenizer library, ending in the byte-level alphabet.
    pub(crate) fn chain(&self) -> PreTokenizerWrapper {
        let mut chain: Vec<PreTokenizerWrapper> = Vec::with_capacity(self.patterns.len() + 1);
        for pattern in self.patterns {
            let regex = SplitPattern::Regex((*pattern).to_owned());
            let split = Split::new(regex, Isolated, false);
            chain.push(split.expect("the built-in patterns compile").into());
        }
        chain.push(ByteLevel::new(false, true, false).into());
        Sequence::new(chain).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    fn cut(name: &str, text: &str) -> Vec<String> {
        let chain = PreTokenizer::by_name("test", name).unwrap().chain();
        let mut pieces = PreTokenizedString::from(text);
        chain.pre_tokenize(&mut pieces).unwrap();
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(_, (from, to), _)| text[from..to].to_owned()).collect()
    }

    #[test]
    fn every_name_builds() {
        for name in known_pre_tokenizers() {
            assert_eq!(cut(name, "a").concat(), "a");
        }
    }

    #[test]
    fn digits_are_grouped_as_each_model_was_trained() {
        assert_eq!(cut("deepseek-v3", "12345"), ["123", "45"]);
        assert_eq!(cut("llama-bpe", "12345"), ["123", "45"]);
        for name in ["deepseek-llm", "deepseek-coder", "qwen2", "deepseek-r1-qwen"] {
            assert_eq!(cut(name, "123"), ["1", "2", "3"], "{name}");
        }
    }

    #[test]
    fn spaces_letters_and_scripts_are_cut_as_published() {
        assert_eq!(cut("deepseek-v3", "a  b\n\nc日本d"), ["a", " ", " b", "\n\n", "c", "日本", "d"]);
        assert_eq!(cut("deepseek-llm", "a  b\n\nc日本d"), ["a", " ", " b", "\n", "\n", "c", "日本", "d"]);
        assert_eq!(cut("deepseek-coder", "don't"), ["don", "'", "t"]);
        assert_eq!(cut("qwen2", "don't"), ["don", "'t"]);
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let error = PreTokenizer::by_name("x.gguf", "gpt-5").err().unwrap().to_string();
        assert!(error.contains("x.gguf") && error.contains("gpt-5") && error.contains("deepseek-v3"), "{error}");
    }
}
