//! Janus-Pro as published, in both layouts: tensor names and shapes over holes for a rehearsal, or random numbers for measurements.
//!
//! Written out from the model's code and files (DeepSeek's `modeling_vlm.py`, `siglip_vit.py`, `vq_model.py`; transformers' `modeling_janus.py`),
//! on purpose without the loader's own names. The random numbers are of a size that keeps activations ordinary; they show
//! speed and memory, not quality.

use std::path::Path;

use fathom_core::format;
use fathom_core::rng::Rng;
use fathom_files::{Result, SafeTensorsWriter};
use half::bf16;
use serde_json::json;

use crate::rehearsal::{Listed, Published};

/// Which of the two published sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Janus-Pro-1B.
    Pro1B,
    /// Janus-Pro-7B.
    Pro7B,
}

/// Which of the two layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `deepseek-community/*`, as transformers reads it.
    HuggingFace,
    /// `deepseek-ai/*`.
    Original,
}

/// Tensors so far.
struct List {
    all: Vec<Listed>,
    layout: Layout,
}

impl List {
    /// A tensor by its name in either layout.
    fn add(&mut self, hf: &str, original: &str, shape: &[usize]) {
        let name = if self.layout == Layout::HuggingFace { hf } else { original };
        self.all.push(Listed { name: name.to_owned(), dtype: "BF16", shape: shape.to_vec() });
    }

    /// A weight and its bias.
    fn both(&mut self, hf: &str, original: &str, shape: &[usize]) {
        self.add(&format!("{hf}.weight"), &format!("{original}.weight"), shape);
        self.add(&format!("{hf}.bias"), &format!("{original}.bias"), &shape[..1]);
    }

    fn residual(&mut self, hf: &str, original: &str, from: usize, to: usize) {
        let mut part =
            |name: &str, shape: &[usize]| self.both(&format!("{hf}.{name}"), &format!("{original}.{name}"), shape);
        part("norm1", &[from]);
        part("conv1", &[to, from, 3, 3]);
        part("norm2", &[to]);
        part("conv2", &[to, to, 3, 3]);
        if from != to {
            part("nin_shortcut", &[to, from, 1, 1]);
        }
    }

    fn attention(&mut self, hf: &str, original: &str, n: usize) {
        self.both(&format!("{hf}.norm"), &format!("{original}.norm"), &[n]);
        for part in ["q", "k", "v", "proj_out"] {
            self.both(&format!("{hf}.{part}"), &format!("{original}.{part}"), &[n, n, 1, 1]);
        }
    }

    fn language(&mut self, dim: usize, layers: usize, hidden: usize) {
        self.add(
            "model.language_model.embed_tokens.weight",
            "language_model.model.embed_tokens.weight",
            &[102_400, dim],
        );
        for i in 0..layers {
            let (hf, original) =
                (format!("model.language_model.layers.{i}"), format!("language_model.model.layers.{i}"));
            let mut part = |name: &str, shape: &[usize]| {
                self.add(&format!("{hf}.{name}.weight"), &format!("{original}.{name}.weight"), shape);
            };
            ["q", "k", "v", "o"].iter().for_each(|p| part(&format!("self_attn.{p}_proj"), &[dim, dim]));
            part("mlp.gate_proj", &[hidden, dim]);
            part("mlp.up_proj", &[hidden, dim]);
            part("mlp.down_proj", &[dim, hidden]);
            part("input_layernorm", &[dim]);
            part("post_attention_layernorm", &[dim]);
        }
        self.add("model.language_model.norm.weight", "language_model.model.norm.weight", &[dim]);
        self.add("lm_head.weight", "language_model.lm_head.weight", &[102_400, dim]);
    }

    fn tower(&mut self) {
        let (hf, original) = ("model.vision_model", "vision_model.vision_tower");
        let patch = (format!("{hf}.embeddings.patch_embedding"), format!("{original}.patch_embed.proj"));
        self.both(&patch.0, &patch.1, &[1024, 3, 16, 16]);
        let positions = if self.layout == Layout::Original { &[1, 576, 1024][..] } else { &[576, 1024] };
        self.add(&format!("{hf}.embeddings.position_embedding.weight"), &format!("{original}.pos_embed"), positions);
        for i in 0..24 {
            let (h, o) = (format!("{hf}.encoder.layers.{i}"), format!("{original}.blocks.{i}"));
            let mut part =
                |a: &str, b: &str, shape: &[usize]| self.both(&format!("{h}.{a}"), &format!("{o}.{b}"), shape);
            part("layer_norm1", "norm1", &[1024]);
            part("layer_norm2", "norm2", &[1024]);
            part("mlp.fc1", "mlp.fc1", &[4096, 1024]);
            part("mlp.fc2", "mlp.fc2", &[1024, 4096]);
            part("self_attn.projection_layer", "attn.proj", &[1024, 1024]);
            match self.layout {
                Layout::Original => self.both("", &format!("{o}.attn.qkv"), &[3072, 1024]),
                Layout::HuggingFace => {
                    ["q", "k", "v"]
                        .iter()
                        .for_each(|p| self.both(&format!("{h}.self_attn.{p}_proj"), "", &[1024, 1024]));
                }
            }
        }
        self.both(&format!("{hf}.post_layernorm"), &format!("{original}.norm"), &[1024]);
    }

    fn codec(&mut self) {
        const CHANNELS: [usize; 5] = [128, 128, 256, 256, 512];
        let (hf, original) = ("model.vqmodel", "gen_vision_model");
        let names = |rest: &str| (format!("{hf}.{rest}"), format!("{original}.{rest}"));
        let mut both = |rest: &str, shape: &[usize]| {
            let (h, o) = names(rest);
            self.both(&h, &o, shape);
        };
        both("encoder.conv_in", &[128, 3, 3, 3]);
        both("encoder.norm_out", &[512]);
        both("encoder.conv_out", &[256, 512, 3, 3]);
        both("quant_conv", &[8, 256, 1, 1]);
        both("post_quant_conv", &[256, 8, 1, 1]);
        both("decoder.conv_in", &[512, 256, 3, 3]);
        both("decoder.norm_out", &[128]);
        both("decoder.conv_out", &[3, 128, 3, 3]);
        let (h, o) = names("quantize.embedding.weight");
        self.add(&h, &o, &[16_384, 8]);
        for half in ["encoder", "decoder"] {
            let at = |h: &str, o: &str| (format!("{hf}.{half}.{h}"), format!("{original}.{half}.{o}"));
            for (h, o) in [at("mid.block_1", "mid.0"), at("mid.block_2", "mid.2")] {
                self.residual(&h, &o, 512, 512);
            }
            let (h, o) = at("mid.attn_1", "mid.1");
            self.attention(&h, &o, 512);
            let mut from = if half == "encoder" { 128 } else { 512 };
            for i in 0..5 {
                let (to, blocks) = if half == "encoder" { (CHANNELS[i], 2) } else { (CHANNELS[4 - i], 3) };
                let level = if half == "encoder" { "down" } else { "up" };
                for j in 0..blocks {
                    let (h, o) = at(&format!("{level}.{i}.block.{j}"), &format!("conv_blocks.{i}.res.{j}"));
                    self.residual(&h, &o, from, to);
                    from = to;
                    if to == 512 {
                        let (h, o) = at(&format!("{level}.{i}.attn.{j}"), &format!("conv_blocks.{i}.attn.{j}"));
                        self.attention(&h, &o, 512);
                    }
                }
                if i < 4 {
                    let change = if half == "encoder" { "downsample.conv" } else { "upsample.conv" };
                    let (h, o) = at(&format!("{level}.{i}.{change}"), &format!("conv_blocks.{i}.{change}"));
                    self.both(&h, &o, &[to, to, 3, 3]);
                }
            }
        }
    }
}

/// The published model.
pub fn published(size: Size, layout: Layout) -> Published {
    let (dim, layers, heads, hidden) = match size {
        Size::Pro1B => (2048, 24, 16, 5632),
        Size::Pro7B => (4096, 30, 32, 11_008),
    };
    let mut list = List { all: Vec::new(), layout };
    list.language(dim, layers, hidden);
    list.tower();
    list.codec();
    for (h, o, from) in [("aligner", "aligner", 1024), ("generation_aligner", "gen_aligner", 8)] {
        list.both(&format!("model.{h}.fc1"), &format!("{o}.layers.0"), &[dim, from]);
        list.both(&format!("model.{h}.hidden_layers.0"), &format!("{o}.layers.2"), &[dim, dim]);
    }
    list.add("model.generation_embeddings.weight", "gen_embed.weight", &[16_384, 8]);
    list.both("model.generation_head.proj_out", "gen_head.output_mlp_projector", &[dim, dim]);
    list.both("model.generation_head.vision_head", "gen_head.vision_head", &[16_384, dim]);
    let config = match layout {
        Layout::HuggingFace => json!({
            "architectures": ["JanusForConditionalGeneration"], "model_type": "janus",
            "text_config": {
                "hidden_size": dim, "intermediate_size": hidden, "num_hidden_layers": layers, "vocab_size": 102_400,
                "num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": 16_384,
                "rms_norm_eps": 1e-6, "hidden_act": "silu", "model_type": "llama", "rope_theta": 10_000.0,
            },
            "vision_config": {"projection_dim": dim, "image_size": 384, "patch_size": 16, "model_type": "janus_vision_model"},
            "vq_config": {"num_patches": 24, "projection_dim": dim, "image_token_embed_dim": dim, "model_type": "janus_vqgan"},
        }),
        Layout::Original => json!({
            "architectures": ["MultiModalityCausalLM"], "model_type": "multi_modality",
            "language_config": {
                "hidden_size": dim, "intermediate_size": hidden, "num_hidden_layers": layers, "vocab_size": 102_400,
                "num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": 16_384,
                "model_type": "llama", "torch_dtype": "bfloat16",
            },
            "vision_config": {"cls": "CLIPVisionTower", "params": {"image_size": 384, "model_name":
                "siglip_large_patch16_384", "select_feature": "same", "select_layer": -1}},
            "aligner_config": {"params": {"depth": 2, "input_dim": 1024, "n_embed": dim, "projector_type": "mlp_gelu"}},
            "gen_aligner_config": {"params": {"depth": 2, "input_dim": 8, "n_embed": dim, "projector_type": "mlp_gelu"}},
            "gen_head_config": {"params": {"image_token_embed": dim, "image_token_size": 16_384, "n_embed": dim}},
            "gen_vision_config": {"cls": "VQ-16", "params": {"image_token_size": 16_384, "n_embed": 8}},
        }),
    };
    Published { config, tensors: list.all }
}

/// Writes `config.json` and `model.safetensors` with random numbers in BF16: norms near one, biases near zero, the rest as large as keeps
/// a product of ordinary size.
///
/// # Errors
/// What the file system says.
pub fn write_random(published: &Published, dir: &Path) -> Result<()> {
    let config = serde_json::to_vec_pretty(&published.config).expect("invariant: a JSON value can be written");
    fathom_files::write_file(&dir.join("config.json"), &config)?;
    let mut writer = SafeTensorsWriter::new();
    for t in &published.tensors {
        writer.tensor(&t.name, format::BF16, &t.shape)?;
    }
    let shapes: std::collections::HashMap<&str, &[usize]> =
        published.tensors.iter().map(|t| (t.name.as_str(), &t.shape[..])).collect();
    // One pool of normal numbers, read from another place for every tensor.
    let mut rng = Rng::new(17, 0);
    let pool: Vec<f32> = (0..(1 << 20) + 7).map(|_| rng.normal() as f32).collect();
    writer.write(&dir.join("model.safetensors"), |name, out| {
        let shape = shapes[name];
        let count: usize = shape.iter().product();
        let fan_in = shape.iter().skip(1).product::<usize>().max(1);
        let (mean, spread) = match shape.len() {
            1 if name.ends_with("bias") => (0.0, 0.02),
            1 => (1.0, 0.02),
            _ => (0.0, (fan_in as f32).powf(-0.5)),
        };
        let mut at = rng.below(1 << 20) as usize;
        let mut left = count;
        while left > 0 {
            let n = left.min(pool.len() - at);
            let bytes: Vec<u8> =
                pool[at..at + n].iter().flat_map(|v| bf16::from_f32(mean + spread * v).to_le_bytes()).collect();
            out.write(&bytes)?;
            (left, at) = (left - n, 0);
        }
        Ok(())
    })
}
