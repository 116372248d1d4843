//! Options that several subcommands share: which model, on what, how sampled.
//!
//! An option that would have no effect beside another is refused, never ignored.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser as _;
use fathom_core::{DType, Precision};
use fathom_cpu::Level;
use fathom_model::AttnFactor;

use crate::units::parse_bytes;

/// What the commands say about MODEL.
pub(crate) const MODEL_HELP: &str =
    "A GGUF file, a directory with config.json and safetensors, or a name fetched with `fathom pull`";

const MODEL: &str = "Model";
const MACHINE: &str = "Machine";

/// How to read what releases leave open.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ReadArgs {
    /// What to do with `attn_factor`, a key of R1-0528-Qwen3-8B that loaders disagree about [default: honour]
    #[arg(long, value_name = "HOW", value_enum, help_heading = MODEL)]
    rope_attn_factor: Option<RopeAttnFactor>,
}

/// Values of `--rope-attn-factor`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq)]
pub(crate) enum RopeAttnFactor {
    /// Multiply it in, as vLLM does
    Honour,
    /// Leave it out, as transformers and llama.cpp do
    Ignore,
}

impl ReadArgs {
    /// The options of the model's reader.
    pub(crate) fn options(&self) -> fathom_model::Options {
        self.asked().unwrap_or_default()
    }

    /// The same, if they were given.
    pub(crate) fn asked(&self) -> Option<fathom_model::Options> {
        let attn_factor = match self.rope_attn_factor? {
            RopeAttnFactor::Honour => AttnFactor::Honour,
            RopeAttnFactor::Ignore => AttnFactor::Ignore,
        };
        Some(fathom_model::Options { attn_factor })
    }
}

/// Which model, how much of it, and where it runs. Every command that loads a model has these.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct LoadArgs {
    /// The model: a GGUF file, a directory with config.json and safetensors, or a name fetched with `fathom pull`
    #[arg(short, long, value_name = "MODEL", help_heading = MODEL)]
    pub(crate) model: Option<String>,

    /// Tokens that prompt and answer may have together [default: the model's, at most 32768, and what memory holds]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..), help_heading = MODEL)]
    pub(crate) context: Option<u32>,

    /// Memory for weights and cache together, such as 24G; more is refused [default: what is available]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, help_heading = MODEL)]
    pub(crate) memory: Option<u64>,

    #[command(flatten)]
    pub(crate) read: ReadArgs,

    /// A LoRA adapter beside the model: a directory that `fathom train lora` or PEFT wrote. `fathom serve` takes several, as NAME=DIR
    #[arg(long, value_name = "DIR", help_heading = MODEL)]
    pub(crate) adapter: Vec<PathBuf>,

    /// Number type of the KV cache [default: f16; f32 in exact precision]
    #[arg(long, value_name = "TYPE", value_enum, help_heading = MACHINE)]
    pub(crate) kv_type: Option<KvType>,

    /// What computes
    #[arg(long, value_name = "NAME", value_enum, default_value_t = BackendName::Cpu, help_heading = MACHINE)]
    pub(crate) backend: BackendName,

    /// Threads [default: one per physical core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = MACHINE)]
    pub(crate) threads: Option<u16>,

    /// Highest instruction level to use [default: the best of this machine]
    #[arg(long, value_name = "LEVEL", value_parser = isa_parser(), help_heading = MACHINE)]
    pub(crate) isa: Option<Level>,

    /// exact: float32 throughout; fast: activations rounded where that is quicker
    #[arg(long, value_name = "HOW", value_enum, help_heading = MACHINE)]
    pub(crate) precision: Option<PrecisionName>,

    /// Whether weights are rearranged for speed while they are loaded [default: auto]
    #[arg(long, value_name = "WHEN", value_enum, help_heading = MACHINE)]
    pub(crate) repack: Option<Repack>,
}

fn isa_parser() -> impl clap::builder::TypedValueParser<Value = Level> {
    PossibleValuesParser::new(Level::ALL.map(Level::name)).map(|name| {
        let level = Level::ALL.into_iter().find(|l| l.name() == name);
        level.expect("invariant: clap takes only the names listed")
    })
}

/// Values of `--kv-type`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq)]
pub(crate) enum KvType {
    /// 16 bit: half the memory
    F16,
    /// 32 bit
    F32,
    /// 8 bit and a scale for every 32 numbers: about half the memory of f16
    #[value(name = "q8_0")]
    Q8_0,
}

impl KvType {
    pub(crate) fn dtype(self) -> DType {
        match self {
            KvType::F16 => DType::F16,
            KvType::F32 => DType::F32,
            KvType::Q8_0 => DType::Q8_0,
        }
    }
}

/// Values of `--backend`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq)]
pub(crate) enum BackendName {
    /// Slow and plain: the specification that others are tested against
    Reference,
    /// Threads and SIMD
    Cpu,
}

/// Values of `--precision`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq)]
pub(crate) enum PrecisionName {
    Exact,
    Fast,
}

impl PrecisionName {
    pub(crate) fn precision(self) -> Precision {
        match self {
            PrecisionName::Exact => Precision::Exact,
            PrecisionName::Fast => Precision::Fast,
        }
    }
}

/// Values of `--repack`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Repack {
    /// Unless they and the cache would take more than 80 % of the available memory
    #[default]
    Auto,
    /// Always
    On,
    /// Never: they stay in their mapped file, which loads at once and is slower
    Off,
}

impl LoadArgs {
    /// Refuses options that the backend has no use for, in the precision asked for or else in `default`.
    pub(crate) fn check(&self, default: Precision) -> Result<()> {
        let repack = match self.repack {
            None | Some(Repack::Auto) => None,
            Some(Repack::On) => Some("--repack on"),
            Some(Repack::Off) => Some("--repack off"),
        };
        if self.backend == BackendName::Cpu {
            return match repack.filter(|_| self.precision_or(default) == Precision::Exact) {
                Some(option) => bail!(
                    "{option} has no effect in exact precision, in which weights always stay as they are: leave it out, \
                     or take --precision fast"
                ),
                None => Ok(()),
            };
        }
        let useless = [
            ("--threads", self.threads.is_some()),
            ("--isa", self.isa.is_some()),
            ("--precision fast", self.precision == Some(PrecisionName::Fast)),
            (repack.unwrap_or_default(), repack.is_some()),
        ];
        match useless.iter().find(|(_, given)| *given) {
            Some((option, _)) => bail!(
                "{option} has no effect on the reference backend, which is one thread of plain float32: leave it out"
            ),
            None => Ok(()),
        }
    }

    /// The adapter, where one model is loaded.
    pub(crate) fn one_adapter(&self) -> Result<Option<&PathBuf>> {
        match self.adapter.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            [_, second, ..] => bail!("--adapter {}: a model computes with one adapter at a time", second.display()),
        }
    }

    /// The precision asked for, else the command's own; the reference backend is always exact.
    pub(crate) fn precision_or(&self, default: Precision) -> Precision {
        match (self.backend, self.precision) {
            (BackendName::Reference, _) => Precision::Exact,
            (BackendName::Cpu, Some(name)) => name.precision(),
            (BackendName::Cpu, None) => default,
        }
    }

    /// The cache's number type for a precision.
    pub(crate) fn kv_dtype(&self, precision: Precision) -> DType {
        match (self.kv_type, precision) {
            (Some(kv), _) => kv.dtype(),
            (None, Precision::Exact) => DType::F32,
            (None, Precision::Fast) => DType::F16,
        }
    }

    /// The model named: by `-m` or by position, not by both.
    pub(crate) fn named<'a>(&'a self, positional: Option<&'a str>) -> Result<Option<&'a str>> {
        match (self.model.as_deref(), positional) {
            (Some(a), Some(b)) => bail!("the model is named twice: -m {a} and {b}; name it once"),
            (a, b) => Ok(a.or(b)),
        }
    }
}

/// How tokens are drawn and when an answer ends. What is left out comes from the model's `generation_config.json`, else from
/// DeepSeek's recommendation.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(
    next_help_heading = "Sampling (defaults: the model's generation_config.json, else temperature 0.6, top-p 0.95)"
)]
pub(crate) struct SamplingArgs {
    /// Randomness; 0 always takes the likeliest token
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f32>,

    /// Draw from the likeliest tokens that together have this probability; 1: from all
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f32>,

    /// Draw from this many likeliest tokens; 0: from all
    #[arg(long, value_name = "N")]
    pub(crate) top_k: Option<u32>,

    /// Leave out tokens less likely than this fraction of the likeliest; 0: none
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) min_p: Option<f32>,

    /// Makes tokens of prompt and answer less likely: divides their logits; 1: off
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) repeat_penalty: Option<f32>,

    /// Subtracted from the logit of each token that the answer has already
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) presence_penalty: Option<f32>,

    /// Subtracted from a token's logit for every time that the answer has it
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) frequency_penalty: Option<f32>,

    /// Makes the random choices repeatable [default: another one each time]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// Adds BIAS to the logit of a token id; -inf forbids it. May be given several times
    #[arg(long, value_name = "ID=BIAS", value_parser = parse_bias, allow_hyphen_values = true)]
    pub(crate) logit_bias: Vec<(u32, f32)>,

    /// Tokens that an answer may have, reasoning included [default: as many as the context holds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: Option<u32>,

    /// Ends the answer where this text begins. May be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let expected = "expected ID=BIAS, a token id and a number, such as 1023=-5 or 7=-inf";
    let (id, bias) = text.split_once('=').ok_or(expected)?;
    let id = id.trim().parse().map_err(|_| expected)?;
    let bias: f32 = bias.trim().parse().map_err(|_| expected)?;
    if bias.is_nan() { Err(expected.into()) } else { Ok((id, bias)) }
}

/// How a conversation starts and whether the model thinks.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Conversation")]
pub(crate) struct ChatArgs {
    /// System message
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) system: Option<String>,

    /// Whether the model reasons before it answers [default: as the model's template has it]
    #[arg(long, value_name = "on|off", value_enum)]
    pub(crate) think: Option<Switch>,

    /// Tokens of reasoning after which it is closed and the answer begins
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) think_budget: Option<u32>,
}

/// On or off.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq)]
pub(crate) enum Switch {
    On,
    Off,
}

/// Two positionals of which the first is the model, unless `-m` names it: then the first is the second.
pub(crate) fn model_then_text(
    flag: Option<String>,
    first: Option<String>,
    second: Option<String>,
) -> Result<(Option<String>, Option<String>)> {
    match (flag, first, second) {
        (Some(flag), _, Some(second)) => bail!("-m {flag} names the model, so `{second}` is one argument too many"),
        (Some(flag), text, None) => Ok((Some(flag), text)),
        (None, model, text) => Ok((model, text)),
    }
}

/// Guessing tokens ahead: quicker where the guesses are good, the same text always.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Draft {
    /// No guesses
    #[default]
    Off,
    /// By the model's own prediction layer (V3, R1)
    Mtp,
    /// By repeating what followed the same words before
    Lookup,
}
