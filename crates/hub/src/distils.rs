//! The six R1 distils by their short names.
//! table
//!
//! Sources: the model cards of `deepseek-ai/DeepSeek-R1-Distill-*` (parameters, licences) and the
//! file lists of the GGUF repositories (sizes of the Q4_K_M files). Sizes are for saying what a
//! pull will cost before the hub is asked; the pull itself goes by what the hub announces.

/// A distilled model with a short name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distil {
    /// The name that a person types.
    pub short: &'static str,
    /// The publisher's repository, safetensors in BF16.
    pub original: &'static str,
    /// A repository of GGUF conversions.
    pub gguf: &'static str,
    /// The GGUF type taken unless another is named.
    pub gguf_type: &'static str,
    /// Parameters, in billions.
    pub parameters_b: f32,
    /// Size of the default GGUF file, in GB (10^9 bytes).
    pub gguf_gb: f32,
    /// Size of the safetensors files, in GB.
    pub original_gb: f32,
    /// Licence of the weights: MIT, and the terms of the base model.
    pub licence: &'static str,
}

const QWEN: &str = "MIT; base model Apache-2.0";

/// The distils, smallest first.
#[rustfmt::skip]
pub const DISTILS: &[Distil] = &[
    Distil { short: "r1-1.5b", original: "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", gguf: "bartowski/DeepSeek-R1-Distill-Qwen-1.5B-GGUF",
        gguf_type: "Q4_K_M", parameters_b: 1.78, gguf_gb: 1.12, original_gb: 3.55, licence: QWEN },
    Distil { short: "r1-7b", original: "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", gguf: "bartowski/DeepSeek-R1-Distill-Qwen-7B-GGUF",
        gguf_type: "Q4_K_M", parameters_b: 7.62, gguf_gb: 4.68, original_gb: 15.23, licence: QWEN },
    Distil { short: "r1-8b", original: "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", gguf: "bartowski/DeepSeek-R1-Distill-Llama-8B-GGUF",
        gguf_type: "Q4_K_M", parameters_b: 8.03, gguf_gb: 4.92, original_gb: 16.06, licence: "MIT; Llama 3.1 Community License" },
    Distil { short: "r1-14b", original: "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", gguf: "bartowski/DeepSeek-R1-Distill-Qwen-14B-GGUF",
        gguf_type: "Q4_K_M", parameters_b: 14.77, gguf_gb: 8.99, original_gb: 29.54, licence: QWEN },
    Distil { short: "r1-32b", original: "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", gguf: "bartowski/DeepSeek-R1-Distill-Qwen-32B-GGUF",
        gguf_type: "Q4_K_M", parameters_b: 32.76, gguf_gb: 19.85, original_gb: 65.53, licence: QWEN },
    Distil { short: "r1-70b", original: "deepseek-ai/DeepSeek-R1-Distill-Llama-70B", gguf: "bartowski/DeepSeek-R1-Distill-Llama-70B-GGUF",
        gguf_type: "Q4_K_M", parameters_b: 70.55, gguf_gb: 42.52, original_gb: 141.11, licence: "MIT; Llama 3.3 Community License" },
];

impl Distil {
    /// The distil with this short name.
    pub fn find(short: &str) -> Option<&'static Distil> {
        DISTILS.iter().find(|d| d.short.eq_ignore_ascii_case(short))
    }
}
