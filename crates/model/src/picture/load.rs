//! The walk over the picture side's tensors: checks them all, or uploads them.
//!
//! Part of [`crate::weights`]' loader; like there, every method returns `None` when there is no backend, or after a failure, and goes
//! on looking for faults.

use fathom_core::{FormatId, Resident, Weight, format};

use crate::linear::Linear;
use crate::names::Naming;
use crate::picture::codec::{AttnBlock, Conv, Half, Level, ResBlock};
use crate::picture::tower::{Norm, TowerLayer};
use crate::picture::{Codec, CodecSpec, Mlp, PictureSpec, Pictures, Place, Tower, TowerSpec};
use crate::weights::{Fold, Loader};

impl Loader<'_> {
    pub(crate) fn pictures(&mut self, spec: &PictureSpec, dim: usize) -> Option<Pictures> {
        let (tower_spec, codec_spec) = (&spec.tower, &spec.codec);
        let tower = self.tower(tower_spec, spec.rows());
        let aligner = Place::root("mm", "model.aligner", "aligner");
        let aligner = self.mlp(&aligner, tower_spec.aligner_layers, tower_spec.dim, dim);
        let table = Place::root("gen.embed.weight", "model.generation_embeddings.weight", "gen_embed.weight");
        let embed = self.at(&table, codec_spec.codes, codec_spec.code_dim);
        let place = Place::root("gen.mm", "model.generation_aligner", "gen_aligner");
        let embed_aligner = self.mlp(&place, codec_spec.aligner_layers, codec_spec.code_dim, dim);
        let head = self.head(spec, dim);
        let codec = self.codec(codec_spec);
        Some(Pictures {
            tower: tower?,
            aligner: aligner?,
            embed: embed?,
            embed_aligner: embed_aligner?,
            head: head?,
            codec: codec?,
        })
    }

    fn at(&mut self, place: &Place, rows: usize, cols: usize) -> Option<Resident> {
        self.placed(place, rows, cols, Fold::Rows, |b, w| b.upload(w))
    }

    fn proj(&mut self, place: &Place, rows: usize, cols: usize) -> Option<Linear> {
        let weight = self.placed(&place.part("weight"), rows, cols, Fold::Cols, |b, w| b.upload(w));
        let bias = self.at(&place.part("bias"), 1, rows);
        Some(Linear::new(weight?, Some(bias?)))
    }

    fn conv(&mut self, place: &Place, rows: usize, channels: usize, kernel: usize) -> Option<Linear> {
        let cols = channels * kernel * kernel;
        let upload = |b: &dyn fathom_core::Backend, w: &Weight| b.upload_conv(w, kernel);
        let weight = self.placed(&place.part("weight"), rows, cols, Fold::Cols, upload);
        let bias = self.at(&place.part("bias"), 1, rows);
        Some(Linear::new(weight?, Some(bias?)))
    }

    fn conv3(&mut self, place: &Place, rows: usize, channels: usize) -> Option<Conv> {
        self.conv(place, rows, channels, 3).map(Conv)
    }

    fn affine(&mut self, place: &Place, n: usize) -> Option<Norm> {
        let weight = self.at(&place.part("weight"), 1, n);
        let bias = self.at(&place.part("bias"), 1, n);
        Some(Norm { weight: weight?, bias: bias? })
    }

    fn mlp(&mut self, place: &Place, layers: usize, from: usize, to: usize) -> Option<Mlp> {
        let all: Vec<Option<Linear>> = (0..layers)
            .map(|i| {
                let hf = if i == 0 { "fc1".to_owned() } else { format!("hidden_layers.{}", i - 1) };
                let place = place.at(&i.to_string(), &hf, &format!("layers.{}", 2 * i));
                self.proj(&place, to, if i == 0 { from } else { to })
            })
            .collect();
        Some(Mlp { layers: all.into_iter().collect::<Option<_>>()? })
    }

    fn head(&mut self, spec: &PictureSpec, dim: usize) -> Option<Mlp> {
        let place = Place::root("gen.head", "model.generation_head", "gen_head");
        let first = self.proj(&place.at("0", "proj_out", "output_mlp_projector"), spec.head_hidden, dim);
        let last = self.proj(&place.at("1", "vision_head", "vision_head"), spec.codec.codes, spec.head_hidden);
        Some(Mlp { layers: vec![first?, last?] })
    }

    fn tower(&mut self, spec: &TowerSpec, patches: usize) -> Option<Tower> {
        let dim = spec.dim;
        let root = Place::root("v", "model.vision_model", "vision_model.vision_tower");
        let place = root.at("patch_embd", "embeddings.patch_embedding", "patch_embed.proj");
        let patch = self.conv(&place, dim, 3, spec.patch);
        let place = root.at("position_embd.weight", "embeddings.position_embedding.weight", "pos_embed");
        let positions = self.at(&place, patches, dim);
        let layers: Vec<Option<TowerLayer>> = (0..spec.layers)
            .map(|i| {
                let place = root.at("blk", "encoder.layers", "blocks").nth(i);
                self.tower_layer(&place, spec)
            })
            .collect();
        let norm = self.affine(&root.at("post_ln", "post_layernorm", "norm"), dim);
        Some(Tower {
            spec: spec.clone(),
            patch: patch?,
            positions: positions?,
            layers: layers.into_iter().collect::<Option<_>>()?,
            norm: norm?,
        })
    }

    fn tower_layer(&mut self, place: &Place, spec: &TowerSpec) -> Option<TowerLayer> {
        let (dim, hidden) = (spec.dim, spec.hidden);
        let norm1 = self.affine(&place.at("ln1", "layer_norm1", "norm1"), dim);
        let qkv = ["q", "k", "v"].map(|which| {
            let hf = format!("self_attn.{which}_proj");
            // The makers' layout keeps the three below each other in one tensor.
            let place = place.at(&format!("attn_{which}"), &hf, "attn.qkv");
            let third = (self.naming() == Naming::Original).then_some("qkv".find(which).unwrap_or(0));
            let fold = |fold: Fold| third.map_or(fold, |nth| Fold::Part { nth, of: 3 });
            let weight = self.placed(&place.part("weight"), dim, dim, fold(Fold::Rows), |b, w| b.upload(w));
            let bias = self.placed(&place.part("bias"), 1, dim, fold(Fold::Rows), |b, w| b.upload(w));
            Some(Linear::new(weight?, Some(bias?)))
        });
        let out = self.proj(&place.at("attn_out", "self_attn.projection_layer", "attn.proj"), dim, dim);
        let norm2 = self.affine(&place.at("ln2", "layer_norm2", "norm2"), dim);
        let up = self.proj(&place.at("ffn_up", "mlp.fc1", "mlp.fc1"), hidden, dim);
        let down = self.proj(&place.at("ffn_down", "mlp.fc2", "mlp.fc2"), dim, hidden);
        let [q, k, v] = qkv;
        Some(TowerLayer { norm1: norm1?, qkv: [q?, k?, v?], out: out?, norm2: norm2?, up: up?, down: down? })
    }

    fn codec(&mut self, spec: &CodecSpec) -> Option<Codec> {
        let root = Place::root("vq", "model.vqmodel", "gen_vision_model");
        let codebook = root.at("codebook.weight", "quantize.embedding.weight", "quantize.embedding.weight");
        let entries = self.values(&codebook, spec.codes, spec.code_dim);
        let codebook = self.at(&codebook, spec.codes, spec.code_dim);
        let encoder = self.encoder(&root.part("encoder"), spec);
        let quant = self.proj(&root.part("quant_conv"), spec.code_dim, spec.latent);
        let post_quant = self.proj(&root.part("post_quant_conv"), spec.latent, spec.code_dim);
        let decoder = self.decoder_half(&root.part("decoder"), spec);
        let unit = self.constant(&vec![(spec.code_dim as f64).powf(-0.5) as f32; spec.code_dim]);
        let mut entries = entries?;
        for entry in entries.chunks_exact_mut(spec.code_dim) {
            let length = entry.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
            entry.iter_mut().for_each(|v| *v /= length);
        }
        Some(Codec {
            spec: spec.clone(),
            codebook: codebook?,
            entries,
            unit: unit?,
            encoder: encoder?,
            quant: quant?,
            post_quant: post_quant?,
            decoder: decoder?,
        })
    }

    fn encoder(&mut self, place: &Place, spec: &CodecSpec) -> Option<Half> {
        let last = spec.multipliers.len() - 1;
        let conv_in = self.conv3(&place.part("conv_in"), spec.base, 3);
        let mut channels = spec.base;
        let levels: Vec<Option<Level>> = (0..=last)
            .map(|i| {
                let place = place.at("down", "down", "conv_blocks").nth(i);
                let to = spec.base * spec.multipliers[i];
                let resize = (i < last).then(|| place.part("downsample.conv"));
                let level = self.level(&place, channels, to, spec.blocks, i == last, resize);
                channels = to;
                level
            })
            .collect();
        self.half(place, conv_in, levels, (channels, channels, spec.latent))
    }

    fn decoder_half(&mut self, place: &Place, spec: &CodecSpec) -> Option<Half> {
        let last = spec.multipliers.len() - 1;
        let middle = spec.base * spec.multipliers[last];
        let conv_in = self.conv3(&place.part("conv_in"), middle, spec.latent);
        let mut channels = middle;
        let levels: Vec<Option<Level>> = (0..=last)
            .map(|i| {
                let place = place.at("up", "up", "conv_blocks").nth(i);
                let to = spec.base * spec.multipliers[last - i];
                let resize = (i < last).then(|| place.part("upsample.conv"));
                let level = self.level(&place, channels, to, spec.blocks + 1, i == 0, resize);
                channels = to;
                level
            })
            .collect();
        self.half(place, conv_in, levels, (middle, channels, 3))
    }

    /// What both halves have; `sizes`: channels of the middle, of the last norm, of the output.
    fn half(
        &mut self,
        place: &Place,
        conv_in: Option<Conv>,
        levels: Vec<Option<Level>>,
        sizes: (usize, usize, usize),
    ) -> Option<Half> {
        let (middle, channels, out) = sizes;
        let mid =
            |hf: &str, original: &str| place.at(&format!("mid.{hf}"), &format!("mid.{hf}"), &format!("mid.{original}"));
        let first = self.residual(&mid("block_1", "0"), middle, middle);
        let attention = self.attention(&mid("attn_1", "1"), middle);
        let second = self.residual(&mid("block_2", "2"), middle, middle);
        let norm_out = self.affine(&place.part("norm_out"), channels);
        let conv_out = self.conv3(&place.part("conv_out"), out, channels);
        Some(Half {
            conv_in: conv_in?,
            levels: levels.into_iter().collect::<Option<_>>()?,
            middle: (first?, attention?, second?),
            norm_out: norm_out?,
            conv_out: conv_out?,
        })
    }

    fn level(
        &mut self,
        place: &Place,
        from: usize,
        to: usize,
        blocks: usize,
        attends: bool,
        resize: Option<Place>,
    ) -> Option<Level> {
        let mut all = Vec::new();
        for i in 0..blocks {
            let block = self.residual(&place.at("block", "block", "res").nth(i), if i == 0 { from } else { to }, to);
            let attention = attends.then(|| self.attention(&place.part("attn").nth(i), to));
            all.push((|| {
                let attention = match attention {
                    Some(attention) => Some(attention?),
                    None => None,
                };
                Some((block?, attention))
            })());
        }
        let resize = resize.map(|place| self.conv3(&place, to, to));
        Some(Level {
            blocks: all.into_iter().collect::<Option<_>>()?,
            resize: match resize {
                Some(conv) => Some(conv?),
                None => None,
            },
        })
    }

    fn residual(&mut self, place: &Place, from: usize, to: usize) -> Option<ResBlock> {
        let norm1 = self.affine(&place.part("norm1"), from);
        let conv1 = self.conv3(&place.part("conv1"), to, from);
        let norm2 = self.affine(&place.part("norm2"), to);
        let conv2 = self.conv3(&place.part("conv2"), to, to);
        let shortcut = (from != to).then(|| self.proj(&place.part("nin_shortcut"), to, from));
        Some(ResBlock {
            halves: [(norm1?, conv1?), (norm2?, conv2?)],
            shortcut: match shortcut {
                Some(proj) => Some(proj?),
                None => None,
            },
        })
    }

    fn attention(&mut self, place: &Place, channels: usize) -> Option<AttnBlock> {
        let norm = self.affine(&place.part("norm"), channels);
        let [q, k, v] = ["q", "k", "v"].map(|which| self.proj(&place.part(which), channels, channels));
        let out = self.proj(&place.part("proj_out"), channels, channels);
        Some(AttnBlock { norm: norm?, qkv: [q?, k?, v?], out: out? })
    }

    /// The numbers of a tensor, for the host.
    fn values(&mut self, place: &Place, rows: usize, cols: usize) -> Option<Vec<f32>> {
        let weight = self.find_place(place, rows, cols, Fold::Rows)?;
        self.uploads().then(|| weight.decode())
    }

    /// A vector that is in no file.
    fn constant(&mut self, values: &[f32]) -> Option<Resident> {
        const F32: FormatId = format::F32;
        let weight = Weight::encode(F32, 1, values.len(), values).expect("invariant: F32 can be written");
        self.upload_constant(&weight)
    }
}
