//! Options that several subcommands share.

use anyhow::{Result, bail};
use fathom_core::DType;
use fathom_model::AttnFactor;

/// What the commands say about MODEL.
pub(crate) const MODEL_HELP: &str =
    "A GGUF file, a directory with config.json and safetensors, or a name fetched with `fathom pull`";

/// How to read what releases leave open.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ReadArgs {
    /// What to do with `attn_factor`, a key of R1-0528-Qwen3-8B that loaders disagree about
    #[arg(long, value_name = "HOW", value_enum, default_value_t = RopeAttnFactor::Honour)]
    rope_attn_factor: RopeAttnFactor,
}

/// Values of `--rope-attn-factor`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq)]
enum RopeAttnFactor {
    /// Multiply it in, as vLLM does
    Honour,
    /// Leave it out, as transformers and llama.cpp do
    Ignore,
}

impl ReadArgs {
    /// The options of the model's reader.
    pub(crate) fn options(&self) -> fathom_model::Options {
        let attn_factor = match self.rope_attn_factor {
            RopeAttnFactor::Honour => AttnFactor::Honour,
            RopeAttnFactor::Ignore => AttnFactor::Ignore,
        };
        fathom_model::Options { attn_factor }
    }
}

/// Values of `--kv-type`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq)]
pub(crate) enum KvType {
    /// 16 bit: half the memory
    F16,
    /// 32 bit
    F32,
}

impl KvType {
    pub(crate) fn dtype(self) -> DType {
        match self {
            KvType::F16 => DType::F16,
            KvType::F32 => DType::F32,
        }
    }
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
