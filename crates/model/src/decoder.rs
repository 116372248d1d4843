//! The one decoder: every text model of the family is this file and a spec.
//!
//! `embed`, `trunk` and `head` are three calls because a prediction block and image generation need the
//! hidden states between them. Nothing here depends on a layer's index or a model's name.

use std::sync::Arc;

use arrayvec::ArrayVec;
use fathom_core::{Backend, Resident, Result, RopeFreqs, Tensor};

use crate::adapter::{Adapter, Pair};
use crate::batch::Batch;
use crate::ffn::FfnLayer;
use crate::kv::{KvPool, LayerKv};
use crate::linear::{Linear, LowRank};
use crate::mixer::{MixerLayer, QueryProj, Step};
use crate::names::Slot::{self, *};
use crate::names::TensorId;
use crate::picture::Pictures;
use crate::probe::Probe;
use crate::spec::ModelSpec;

/// One block with its weights.
#[derive(Clone)]
pub struct Layer {
    /// Norm before the mixer.
    pub mixer_norm: Resident,
    /// Mixer.
    pub mixer: MixerLayer,
    /// Norm before the feed-forward network.
    pub ffn_norm: Resident,
    /// Feed-forward network.
    pub ffn: FfnLayer,
}

/// The multi-token prediction block (V3 paper, section 2.2): from the hidden state of token i and the embedding of
/// token i + 1 it predicts token i + 2.
#[derive(Clone)]
pub struct Mtp {
    /// Norm of the embedding half.
    pub embed_norm: Resident,
    /// Norm of the hidden half.
    pub hidden_norm: Resident,
    /// `[dim, 2 × dim]` over `[embedding | hidden]`, in this order (traps, and V3's shipped weights).
    pub proj: Linear,
    /// The block.
    pub layer: Layer,
    /// Norm before its head.
    pub head_norm: Resident,
    /// Its head, where the file stores a copy.
    pub head: Option<Resident>,
    /// Its embedding table, where the file stores a copy.
    pub embed: Option<Resident>,
}

/// A model ready to run. A clone shares the weights, so that one can compute with an adapter beside one without.
#[derive(Clone)]
pub struct Decoder {
    /// What it is.
    pub spec: ModelSpec,
    /// Where it runs.
    pub backend: Arc<dyn Backend>,
    /// `[vocab, dim]`.
    pub embed: Resident,
    /// Blocks.
    pub layers: Vec<Layer>,
    /// Final norm.
    pub norm: Resident,
    /// `[vocab, dim]`; `None`: the embedding.
    pub head: Option<Resident>,
    /// Prediction block.
    pub mtp: Option<Mtp>,
    /// Picture side.
    pub pictures: Option<Arc<Pictures>>,
    /// Rotation speeds.
    pub freqs: RopeFreqs,
}

impl Layer {
    /// The projections that an adapter can stand beside.
    fn linears(&mut self) -> impl Iterator<Item = (Slot, &mut Linear)> {
        let mixer: ArrayVec<_, 4> = match &mut self.mixer {
            MixerLayer::Gqa(m) => {
                let all = [(AttnQ, &mut m.q), (AttnK, &mut m.k), (AttnV, &mut m.v), (AttnOut, &mut m.out)];
                all.into_iter().collect()
            }
            MixerLayer::Mla(m) => {
                let q: ArrayVec<_, 2> = match &mut m.q {
                    QueryProj::Full(q) => [(AttnQ, q)].into_iter().collect(),
                    QueryProj::Low { a, b, .. } => [(QA, a), (QB, b)].into_iter().collect(),
                };
                q.into_iter().chain([(KvA, &mut m.kv_a), (AttnOut, &mut m.out)]).collect()
            }
        };
        let (slots, dense) = match &mut self.ffn {
            FfnLayer::Dense(f) => ([FfnGate, FfnUp, FfnDown], Some(f)),
            FfnLayer::Moe(f) => ([GateShexp, UpShexp, DownShexp], f.shared.as_mut()),
        };
        mixer
            .into_iter()
            .chain(dense.into_iter().flat_map(move |f| slots.into_iter().zip([&mut f.gate, &mut f.up, &mut f.down])))
    }

    fn forward(
        &self,
        step: &Step<'_>,
        h: Tensor,
        kv: Option<&mut LayerKv>,
        index: usize,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let (b, at) = (step.b, Some(index));
        let x = b.rms_norm(&h, &self.mixer_norm, step.eps)?;
        probe.tap(at, "attn_norm", b, &x)?;
        let y = self.mixer.forward(step, &x, kv)?;
        probe.tap(at, "attn_out", b, &y)?;
        let h = b.add(h, &y)?;
        let x = b.rms_norm(&h, &self.ffn_norm, step.eps)?;
        probe.tap(at, "ffn_norm", b, &x)?;
        let y = self.ffn.forward(b, &x, index, probe)?;
        probe.tap(at, "ffn_out", b, &y)?;
        let h = b.add(h, &y)?;
        probe.tap(at, "out", b, &h)?;
        Ok(h)
    }
}

impl Decoder {
    /// A cache for this model, its prediction block included.
    ///
    /// # Errors
    /// If the backend has no memory for it.
    pub fn kv_pool(&self, blocks: usize, dtype: fathom_core::DType) -> Result<KvPool> {
        let layers = self.spec.layers.iter().chain(self.mtp.as_ref().and(self.spec.mtp.as_ref()));
        KvPool::new(&*self.backend, layers, blocks, dtype)
    }

    /// Token ids → residual stream `[tokens, dim]`.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        self.backend.embed(&self.embed, tokens)
    }

    /// All blocks and the final norm: `[tokens, dim]` → `[tokens, dim]`. Writes the rows' keys and values to
    /// the cache.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn trunk(&self, h: Tensor, batch: &Batch, kv: &mut KvPool, probe: &mut dyn Probe) -> Result<Tensor> {
        self.run(h, batch, Some(kv), probe)
    }

    /// [`Decoder::trunk`] without a cache, for training: every span is a whole sequence from position 0 and its rows see
    /// each other's fresh keys and values.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn trunk_fresh(&self, h: Tensor, batch: &Batch, probe: &mut dyn Probe) -> Result<Tensor> {
        self.run(h, batch, None, probe)
    }

    /// Block `index` alone, without a cache, as [`Decoder::trunk_fresh`] runs them: for training that computes a block again
    /// instead of keeping all it did.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn block_fresh(&self, index: usize, h: Tensor, batch: &Batch, probe: &mut dyn Probe) -> Result<Tensor> {
        let rope = self.backend.rope_table(&batch.positions, &self.freqs)?;
        self.layers[index].forward(&self.step(batch, &rope), h, None, index, probe)
    }

    /// The norm behind the last block, which [`Decoder::trunk`] and [`Decoder::trunk_fresh`] include.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn final_norm(&self, h: &Tensor) -> Result<Tensor> {
        self.backend.rms_norm(h, &self.norm, self.spec.eps)
    }

    fn run(&self, h: Tensor, batch: &Batch, mut kv: Option<&mut KvPool>, probe: &mut dyn Probe) -> Result<Tensor> {
        let b = &*self.backend;
        let rope = b.rope_table(&batch.positions, &self.freqs)?;
        let step = self.step(batch, &rope);
        probe.tap(None, "embed", b, &h)?;
        let mut h = h;
        for (i, layer) in self.layers.iter().enumerate() {
            h = layer.forward(&step, h, kv.as_mut().map(|kv| &mut kv.layers[i]), i, probe)?;
        }
        let h = self.final_norm(&h)?;
        probe.tap(None, "final_norm", b, &h)?;
        Ok(h)
    }

    /// Logits `[rows, vocab]` of normed hidden states `[rows, dim]`.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn head(&self, h: &Tensor) -> Result<Tensor> {
        self.project(h, self.head.as_ref().unwrap_or(&self.embed))
    }

    /// The prediction block: `hidden` are the trunk's outputs for the batch's rows, `batch.tokens` the tokens that
    /// *follow* those rows, positions and slots those of the rows. Returns logits `[logit_rows, vocab]` for the token
    /// after that, or none if no row's are wanted (the block has a cache of its own to fill).
    ///
    /// # Errors
    /// If the backend fails.
    ///
    /// # Panics
    /// If the model has no prediction block.
    pub fn draft(
        &self,
        hidden: &Tensor,
        batch: &Batch,
        kv: &mut KvPool,
        probe: &mut dyn Probe,
    ) -> Result<Option<Tensor>> {
        let h = self.draft_trunk(hidden, batch, Some(kv), probe)?;
        if batch.logit_rows.is_empty() {
            return Ok(None);
        }
        self.draft_head(&self.backend.select_rows(&h, &batch.logit_rows)?).map(Some)
    }

    /// [`Decoder::draft`] up to its head's norm, for every row: `[tokens, dim]`. Without a cache as
    /// [`Decoder::trunk_fresh`].
    ///
    /// # Errors
    /// If the backend fails.
    ///
    /// # Panics
    /// If the model has no prediction block.
    pub fn draft_trunk(
        &self,
        hidden: &Tensor,
        batch: &Batch,
        kv: Option<&mut KvPool>,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let mtp = self.mtp();
        let (b, eps, index) = (&*self.backend, self.spec.eps, self.layers.len());
        let e = b.embed(mtp.embed.as_ref().unwrap_or(&self.embed), &batch.tokens)?;
        let e = b.rms_norm(&e, &mtp.embed_norm, eps)?;
        let x = b.rms_norm(hidden, &mtp.hidden_norm, eps)?;
        let h = mtp.proj.forward(b, &b.concat_cols(&e, &x)?)?;
        let rope = b.rope_table(&batch.positions, &self.freqs)?;
        let kv = kv.map(|kv| &mut kv.layers[index]);
        let h = mtp.layer.forward(&self.step(batch, &rope), h, kv, index, probe)?;
        b.rms_norm(&h, &mtp.head_norm, eps)
    }

    /// Logits of the prediction block's normed hidden states.
    ///
    /// # Errors
    /// If the backend fails.
    ///
    /// # Panics
    /// If the model has no prediction block.
    pub fn draft_head(&self, h: &Tensor) -> Result<Tensor> {
        self.project(h, self.mtp().head.as_ref().or(self.head.as_ref()).unwrap_or(&self.embed))
    }

    /// Puts an adapter beside the blocks' projections in place of the one before, or takes it away. Whether it fits is the
    /// adapter's to check, when it is made.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn adapt(&mut self, adapter: Option<&Adapter>) -> Result<()> {
        let b = self.backend.clone();
        let upload = |pair: &Pair| Ok(LowRank { a: b.upload(&pair.a)?, b: b.upload(&pair.b)? });
        for (i, layer) in self.layers.iter_mut().enumerate() {
            for (slot, linear) in layer.linears() {
                let pair = adapter.and_then(|a| a.get(TensorId::layer(slot, i)));
                linear.adapter = pair.map(upload).transpose()?;
            }
        }
        Ok(())
    }

    fn mtp(&self) -> &Mtp {
        self.mtp.as_ref().expect("invariant: only a model with a prediction block drafts")
    }

    fn project(&self, h: &Tensor, weight: &Resident) -> Result<Tensor> {
        self.backend.logits(h, weight)
    }

    fn step<'a>(&'a self, batch: &'a Batch, rope: &'a Tensor) -> Step<'a> {
        Step { b: &*self.backend, batch, rope, layout: self.spec.rope.layout, eps: self.spec.eps }
    }
}
