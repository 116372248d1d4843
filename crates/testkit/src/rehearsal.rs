//! Dress rehearsals: files with the tensor names, shapes, types and metadata of published models, and holes for
//! weights.
//!
//! A sparse file costs no disk and reads as zeros, so loading the 671 B parameters of R1 and one decode step can be tried on
//! any machine. It shows that names and shapes fit and that memory suffices; it shows neither speed nor
//! quality. The lists are written out here from the model cards and files, on purpose without the loader's own tables.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Result, Write as _};
use std::path::Path;

use fathom_core::{FormatId, format};
use fathom_files::GgufWriter;
use serde_json::{Value, json};

/// A tensor as a file lists it.
pub struct Listed {
    /// Name.
    pub name: String,
    /// Type, as safetensors spells it.
    pub dtype: &'static str,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

/// A published model: its description and its tensors.
pub struct Published {
    /// `config.json`.
    pub config: Value,
    /// Tensors in the layout of Hugging Face.
    pub tensors: Vec<Listed>,
}

/// Shapes of a dense model of the Llama or Qwen2 kind.
#[derive(Clone, Copy)]
pub struct Dense {
    /// Architecture.
    pub architecture: &'static str,
    /// Residual width.
    pub dim: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads of 128.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Inner width of the feed-forward network.
    pub hidden: usize,
    /// Vocabulary.
    pub vocab: usize,
    /// Rotary base.
    pub theta: f64,
    /// Norm epsilon.
    pub eps: f64,
}

/// The six R1 distils and the dense base of DeepSeek's first generation, as published.
pub const DENSE: [(&str, Dense); 7] = [
    ("R1-Distill-Qwen-1.5B", qwen(1536, 28, 12, 2, 8960, 151_936, 1e4, 1e-6)),
    ("R1-Distill-Qwen-7B", qwen(3584, 28, 28, 4, 18_944, 152_064, 1e4, 1e-6)),
    ("R1-Distill-Qwen-14B", qwen(5120, 48, 40, 8, 13_824, 152_064, 1e6, 1e-5)),
    ("R1-Distill-Qwen-32B", qwen(5120, 64, 40, 8, 27_648, 152_064, 1e6, 1e-5)),
    ("R1-Distill-Llama-8B", llama(4096, 32, 32, 8, 14_336, 128_256, 5e5, 1e-5)),
    ("R1-Distill-Llama-70B", llama(8192, 80, 64, 8, 28_672, 128_256, 5e5, 1e-5)),
    ("DeepSeek-LLM-7B", llama(4096, 30, 32, 32, 11_008, 102_400, 1e4, 1e-6)),
];

#[allow(clippy::too_many_arguments)] // one row of the table above
const fn qwen(
    dim: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    hidden: usize,
    vocab: usize,
    theta: f64,
    eps: f64,
) -> Dense {
    Dense { architecture: "Qwen2ForCausalLM", dim, layers, heads, kv_heads, hidden, vocab, theta, eps }
}

#[allow(clippy::too_many_arguments)] // one row of the table above
const fn llama(
    dim: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    hidden: usize,
    vocab: usize,
    theta: f64,
    eps: f64,
) -> Dense {
    Dense { architecture: "LlamaForCausalLM", dim, layers, heads, kv_heads, hidden, vocab, theta, eps }
}

/// Collects tensors under a common prefix.
struct List(Vec<Listed>);

impl List {
    fn add(&mut self, name: String, dtype: &'static str, shape: &[usize]) {
        self.0.push(Listed { name, dtype, shape: shape.to_vec() });
    }

    /// An FP8 weight with its scales.
    fn fp8(&mut self, name: String, shape: [usize; 2]) {
        self.add(format!("{name}_scale_inv"), "F32", &[shape[0].div_ceil(128), shape[1].div_ceil(128)]);
        self.add(name, "F8_E4M3", &shape);
    }
}

impl Dense {
    /// The model as published in BF16.
    pub fn published(&self) -> Published {
        let Dense { dim, heads, kv_heads, hidden, vocab, .. } = *self;
        let qwen = self.architecture.starts_with("Qwen2");
        let mut config = json!({
            "architectures": [self.architecture], "hidden_act": "silu", "hidden_size": dim,
            "intermediate_size": hidden, "max_position_embeddings": 131_072, "num_attention_heads": heads,
            "num_hidden_layers": self.layers, "num_key_value_heads": kv_heads, "rms_norm_eps": self.eps,
            "rope_theta": self.theta, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": vocab,
        });
        if self.theta == 5e5 {
            config["rope_scaling"] = json!({
                "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3",
            });
        }
        let mut list = List(Vec::new());
        list.add("model.embed_tokens.weight".into(), "BF16", &[vocab, dim]);
        for i in 0..self.layers {
            let p = format!("model.layers.{i}");
            for (part, out) in [("q", heads * 128), ("k", kv_heads * 128), ("v", kv_heads * 128)] {
                list.add(format!("{p}.self_attn.{part}_proj.weight"), "BF16", &[out, dim]);
                if qwen {
                    list.add(format!("{p}.self_attn.{part}_proj.bias"), "BF16", &[out]);
                }
            }
            list.add(format!("{p}.self_attn.o_proj.weight"), "BF16", &[dim, heads * 128]);
            list.add(format!("{p}.mlp.gate_proj.weight"), "BF16", &[hidden, dim]);
            list.add(format!("{p}.mlp.up_proj.weight"), "BF16", &[hidden, dim]);
            list.add(format!("{p}.mlp.down_proj.weight"), "BF16", &[dim, hidden]);
            list.add(format!("{p}.input_layernorm.weight"), "BF16", &[dim]);
            list.add(format!("{p}.post_attention_layernorm.weight"), "BF16", &[dim]);
        }
        list.add("model.norm.weight".into(), "BF16", &[dim]);
        list.add("lm_head.weight".into(), "BF16", &[vocab, dim]);
        Published { config, tensors: list.0 }
    }
}

impl Dense {
    /// The model as converters publish it: GGUF in Q4_K_M, without vocabulary.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write_gguf(&self, path: &Path) -> fathom_files::Result<()> {
        use format::{F32, Q4_K, Q6_K};
        let Dense { dim, heads, kv_heads, hidden, vocab, .. } = *self;
        let qwen = self.architecture.starts_with("Qwen2");
        let arch = if qwen { "qwen2" } else { "llama" };
        let mut g = Gguf::new(arch);
        for (key, value) in [
            ("block_count", self.layers),
            ("context_length", 131_072),
            ("embedding_length", dim),
            ("feed_forward_length", hidden),
            ("attention.head_count", heads),
            ("attention.head_count_kv", kv_heads),
            ("vocab_size", vocab),
            ("rope.dimension_count", 128),
        ] {
            g.writer.pair(&format!("{arch}.{key}"), value as u32);
        }
        g.writer.pair(&format!("{arch}.rope.freq_base"), self.theta as f32);
        g.writer.pair(&format!("{arch}.attention.layer_norm_rms_epsilon"), self.eps as f32);
        let first = if self.theta == 5e5 { ("rope_freqs.weight", 64) } else { ("output_norm.weight", dim) };
        g.add(first.0, F32, &[first.1]);
        if first.0 != "output_norm.weight" {
            g.add("output_norm.weight", F32, &[dim]);
        }
        g.add("token_embd.weight", Q4_K, &[vocab, dim]);
        g.add("output.weight", Q6_K, &[vocab, dim]);
        for i in 0..self.layers {
            for (part, out) in [("q", heads * 128), ("k", kv_heads * 128), ("v", kv_heads * 128)] {
                g.block(i, &format!("attn_{part}.weight"), Q4_K, &[out, dim]);
                if qwen {
                    g.block(i, &format!("attn_{part}.bias"), F32, &[out]);
                }
            }
            g.block(i, "attn_output.weight", Q4_K, &[dim, heads * 128]);
            g.block(i, "ffn_gate.weight", Q4_K, &[hidden, dim]);
            g.block(i, "ffn_up.weight", Q4_K, &[hidden, dim]);
            g.block(i, "ffn_down.weight", Q6_K, &[dim, hidden]);
            g.block(i, "attn_norm.weight", F32, &[dim]);
            g.block(i, "ffn_norm.weight", F32, &[dim]);
        }
        g.write(path, &ones(first.1))
    }
}

/// DeepSeek-R1 as published: FP8 with scales, 61 layers, the prediction block as the 62nd. `config` is the
/// published one.
pub fn r1(config: Value) -> Published {
    const DIM: usize = 7168;
    const VOCAB: usize = 129_280;
    let mut list = List(Vec::new());
    list.add("model.embed_tokens.weight".into(), "BF16", &[VOCAB, DIM]);
    list.add("model.norm.weight".into(), "BF16", &[DIM]);
    list.add("lm_head.weight".into(), "BF16", &[VOCAB, DIM]);
    for i in 0..62 {
        let p = format!("model.layers.{i}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            list.add(format!("{p}.{norm}.weight"), "BF16", &[DIM]);
        }
        list.fp8(format!("{p}.self_attn.q_a_proj.weight"), [1536, DIM]);
        list.add(format!("{p}.self_attn.q_a_layernorm.weight"), "BF16", &[1536]);
        list.fp8(format!("{p}.self_attn.q_b_proj.weight"), [128 * 192, 1536]);
        list.fp8(format!("{p}.self_attn.kv_a_proj_with_mqa.weight"), [576, DIM]);
        list.add(format!("{p}.self_attn.kv_a_layernorm.weight"), "BF16", &[512]);
        list.fp8(format!("{p}.self_attn.kv_b_proj.weight"), [128 * 256, 512]);
        list.fp8(format!("{p}.self_attn.o_proj.weight"), [DIM, 128 * 128]);
        let mut network = |at: String, hidden: usize| {
            list.fp8(format!("{at}.gate_proj.weight"), [hidden, DIM]);
            list.fp8(format!("{at}.up_proj.weight"), [hidden, DIM]);
            list.fp8(format!("{at}.down_proj.weight"), [DIM, hidden]);
        };
        if i < 3 {
            network(format!("{p}.mlp"), 18_432);
        } else {
            (0..256).for_each(|e| network(format!("{p}.mlp.experts.{e}"), 2048));
            network(format!("{p}.mlp.shared_experts"), 2048);
            list.add(format!("{p}.mlp.gate.weight"), "BF16", &[256, DIM]);
            list.add(format!("{p}.mlp.gate.e_score_correction_bias"), "F32", &[256]);
        }
    }
    let p = "model.layers.61";
    list.add(format!("{p}.embed_tokens.weight"), "BF16", &[VOCAB, DIM]);
    list.add(format!("{p}.enorm.weight"), "BF16", &[DIM]);
    list.add(format!("{p}.hnorm.weight"), "BF16", &[DIM]);
    list.add(format!("{p}.eh_proj.weight"), "BF16", &[DIM, 2 * DIM]);
    list.add(format!("{p}.shared_head.norm.weight"), "BF16", &[DIM]);
    list.add(format!("{p}.shared_head.head.weight"), "BF16", &[VOCAB, DIM]);
    Published { config, tensors: list.0 }
}

impl Published {
    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(Listed::bytes).sum()
    }

    /// Writes `config.json` and a set of sparse safetensors files of about `shard_bytes` each, with their index.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write_hf(&self, dir: &Path, shard_bytes: u64) -> Result<()> {
        std::fs::create_dir_all(dir)?;
        std::fs::write(dir.join("config.json"), self.config.to_string())?;
        let mut shards: Vec<Vec<&Listed>> = vec![Vec::new()];
        let mut filled = 0;
        for tensor in &self.tensors {
            if filled + tensor.bytes() > shard_bytes && filled > 0 {
                shards.push(Vec::new());
                filled = 0;
            }
            filled += tensor.bytes();
            shards.last_mut().expect("invariant: there is a shard").push(tensor);
        }
        let mut weight_map = serde_json::Map::new();
        for (i, shard) in shards.iter().enumerate() {
            let name = format!("model-{:05}-of-{:06}.safetensors", i + 1, shards.len());
            let mut header = String::from("{");
            let mut at = 0;
            for t in shard {
                let end = at + t.bytes();
                let comma = if at == 0 { "" } else { "," };
                let (dtype, shape) = (t.dtype, &t.shape);
                write!(
                    header,
                    r#"{comma}"{}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{at},{end}]}}"#,
                    t.name
                )
                .expect("invariant: writing to a string succeeds");
                at = end;
                weight_map.insert(t.name.clone(), json!(name));
            }
            header.push('}');
            while !header.len().is_multiple_of(8) {
                header.push(' ');
            }
            let mut file = File::create(dir.join(&name))?;
            file.write_all(&(header.len() as u64).to_le_bytes())?;
            file.write_all(header.as_bytes())?;
            file.set_len(8 + header.len() as u64 + at)?;
        }
        let index = json!({"metadata": {"total_size": self.bytes()}, "weight_map": weight_map});
        std::fs::write(dir.join("model.safetensors.index.json"), index.to_string())
    }
}

impl Listed {
    fn bytes(&self) -> u64 {
        let size = match self.dtype {
            "F8_E4M3" => 1,
            "BF16" => 2,
            _ => 4,
        };
        self.shape.iter().product::<usize>() as u64 * size
    }
}

/// How the latent's up-projections lie in a GGUF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvB {
    /// One tensor: files of January 2025.
    Fused,
    /// Keys transposed and values apart: files since April 2025.
    Split,
}

/// A GGUF file being declared, in the types of llama.cpp's Q4_K_M.
struct Gguf {
    writer: GgufWriter,
    tensors: usize,
}

impl Gguf {
    fn new(architecture: &str) -> Self {
        let mut writer = GgufWriter::new();
        writer.pair("general.architecture", architecture);
        Gguf { writer, tensors: 0 }
    }

    fn add(&mut self, name: &str, format: FormatId, shape: &[usize]) {
        self.writer.tensor(name, format, shape).expect("invariant: published shapes are whole blocks");
        self.tensors += 1;
    }

    /// Writes the file: `first` is the data of the first tensor, all others are holes.
    fn write(self, path: &Path, first: &[u8]) -> fathom_files::Result<()> {
        let mut data = self.writer.create(path)?;
        data.write(first)?;
        for _ in 1..self.tensors {
            data.hole()?;
        }
        data.finish()
    }

    fn block(&mut self, i: usize, part: &str, format: FormatId, shape: &[usize]) {
        self.add(&format!("blk.{i}.{part}"), format, shape);
    }
}

/// DeepSeek-R1 as GGUF in Q4_K_M, without vocabulary, as converters publish it; the prediction block is left out by them
/// unless `mtp`.
///
/// # Errors
/// What the file system says.
pub fn write_r1_gguf(path: &Path, kv_b: KvB, mtp: bool) -> fathom_files::Result<()> {
    const DIM: usize = 7168;
    const VOCAB: usize = 129_280;
    use format::{F32, Q4_K, Q6_K, Q8_0};
    let mut g = Gguf::new("deepseek2");
    let blocks = 61 + usize::from(mtp);
    for (key, value) in [
        ("block_count", blocks),
        ("context_length", 163_840),
        ("embedding_length", DIM),
        ("feed_forward_length", 18_432),
        ("attention.head_count", 128),
        ("attention.head_count_kv", if kv_b == KvB::Fused { 128 } else { 1 }),
        ("leading_dense_block_count", 3),
        ("vocab_size", VOCAB),
        ("attention.q_lora_rank", 1536),
        ("attention.kv_lora_rank", 512),
        ("attention.key_length", if kv_b == KvB::Fused { 192 } else { 576 }),
        ("attention.value_length", if kv_b == KvB::Fused { 128 } else { 512 }),
        ("rope.dimension_count", 64),
        ("expert_feed_forward_length", 2048),
        ("expert_count", 256),
        ("expert_used_count", 8),
        ("expert_shared_count", 1),
        ("expert_gating_func", 2),
        ("expert_group_count", 8),
        ("expert_group_used_count", 4),
        ("rope.scaling.original_context_length", 4096),
    ] {
        g.writer.pair(&format!("deepseek2.{key}"), value as u32);
    }
    if kv_b == KvB::Split {
        g.writer
            .pair("deepseek2.attention.key_length_mla", 192u32)
            .pair("deepseek2.attention.value_length_mla", 128u32);
    }
    if mtp {
        g.writer.pair("deepseek2.nextn_predict_layers", 1u32);
    }
    g.writer.pair("deepseek2.expert_weights_norm", true).pair("deepseek2.rope.scaling.type", "yarn");
    for (key, value) in [
        ("attention.layer_norm_rms_epsilon", 1e-6),
        ("rope.freq_base", 1e4),
        ("expert_weights_scale", 2.5),
        ("rope.scaling.factor", 40.0),
        ("rope.scaling.yarn_log_multiplier", 0.1f32),
    ] {
        g.writer.pair(&format!("deepseek2.{key}"), value);
    }
    g.add("output_norm.weight", F32, &[DIM]);
    g.add("token_embd.weight", Q4_K, &[VOCAB, DIM]);
    g.add("output.weight", Q6_K, &[VOCAB, DIM]);
    for i in 0..blocks {
        g.block(i, "attn_norm.weight", F32, &[DIM]);
        g.block(i, "ffn_norm.weight", F32, &[DIM]);
        g.block(i, "attn_q_a.weight", Q4_K, &[1536, DIM]);
        g.block(i, "attn_q_a_norm.weight", F32, &[1536]);
        g.block(i, "attn_q_b.weight", Q4_K, &[128 * 192, 1536]);
        g.block(i, "attn_kv_a_mqa.weight", Q8_0, &[576, DIM]);
        g.block(i, "attn_kv_a_norm.weight", F32, &[512]);
        if kv_b == KvB::Fused {
            g.block(i, "attn_kv_b.weight", Q8_0, &[128 * 256, 512]);
        } else {
            g.block(i, "attn_k_b.weight", Q8_0, &[128, 512, 128]);
            g.block(i, "attn_v_b.weight", Q8_0, &[128, 128, 512]);
        }
        g.block(i, "attn_output.weight", Q4_K, &[DIM, 128 * 128]);
        if i < 3 {
            g.block(i, "ffn_gate.weight", Q4_K, &[18_432, DIM]);
            g.block(i, "ffn_up.weight", Q4_K, &[18_432, DIM]);
            g.block(i, "ffn_down.weight", Q6_K, &[DIM, 18_432]);
        } else {
            g.block(i, "ffn_gate_inp.weight", F32, &[256, DIM]);
            g.block(i, "exp_probs_b.bias", F32, &[256]);
            for (part, format, rows, cols) in
                [("gate", Q4_K, 2048, DIM), ("up", Q4_K, 2048, DIM), ("down", Q6_K, DIM, 2048)]
            {
                g.block(i, &format!("ffn_{part}_exps.weight"), format, &[256, rows, cols]);
                g.block(i, &format!("ffn_{part}_shexp.weight"), format, &[rows, cols]);
            }
        }
    }
    if mtp {
        for (part, format, shape) in [
            ("eh_proj", Q8_0, &[DIM, 2 * DIM][..]),
            ("embed_tokens", Q4_K, &[VOCAB, DIM]),
            ("enorm", F32, &[DIM]),
            ("hnorm", F32, &[DIM]),
            ("shared_head_head", Q6_K, &[VOCAB, DIM]),
            ("shared_head_norm", F32, &[DIM]),
        ] {
            g.block(61, &format!("nextn.{part}.weight"), format, shape);
        }
    }
    g.write(path, &ones(DIM))
}

fn ones(n: usize) -> Vec<u8> {
    std::iter::repeat_n(1f32.to_le_bytes(), n).flatten().collect()
}
