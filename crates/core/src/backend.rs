//! The line between model graphs and devices: about 25 coarse operations, object-safe.
//!
//! A model holds `Arc<dyn Backend>` and may use several at once. Operations are coarse (a linear layer over all
//! rows, attention over a whole batch), so a virtual call is noise. Every operation allocates its own
//! output; the buffers of dropped tensors are reused. [`crate::reference::Reference`] says what each operation means;
//! `testkit::backend_suite` holds the others to it.
//!
//! Law of all implementations: a row's result does not depend on the rows beside it (batch
//! invariance, section 7 of the design).

use arrayvec::ArrayVec;

use crate::{DType, Experts, Resident, ResidentExperts, Result, RopeFreqs, RopeLayout, Shape, Tensor, Weight};

/// Outputs of an operation with several results.
pub type Outputs = ArrayVec<Tensor, 4>;

/// How carefully a backend computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f32 activations and products; what golden tests and `fathom logits` use.
    Exact,
    /// Activations rounded inside products where that is quicker: those of [`Backend::ffn`] and of experts to int8 or
    /// bf16, all others to twice as many bits.
    Fast,
}

/// One projection: `y = x·Wᵀ + b`.
#[derive(Clone, Copy)]
pub struct Proj<'a> {
    /// `[out, in]`.
    pub weight: &'a Resident,
    /// `[1, out]`.
    pub bias: Option<&'a Resident>,
}

/// The projection of every head out of one weight whose rows are grouped by head (MLA's `kv_b`).
///
/// Head h owns rows `first_row + h × head_stride ..+ head_rows`.
#[derive(Clone, Copy)]
pub struct HeadProj<'a> {
    /// The weight.
    pub weight: &'a Resident,
    /// Row at which head 0 starts.
    pub first_row: usize,
    /// Rows from one head's start to the next one's.
    pub head_stride: usize,
    /// Rows per head.
    pub head_rows: usize,
    /// Whether a head's slab is stored `[rank, features]` (GGUF's split `attn_k_b`) instead of
    /// `[features, rank]`.
    pub transposed: bool,
}

/// Which earlier positions a row may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Its own position and all before.
    Causal,
    /// All of its sequence (vision towers).
    Full,
}

/// Shape and scale of grouped-query attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttendSpec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a query or key head.
    pub head_dim: usize,
    /// Width of a value head.
    pub v_dim: usize,
    /// Factor on the scores before softmax.
    pub scale: f32,
    /// Mask.
    pub mask: Mask,
}

impl AttendSpec {
    /// The cache stream of its keys.
    pub fn keys(&self) -> KvStream {
        KvStream::Keys { heads: self.kv_heads, dim: self.head_dim }
    }

    /// The cache stream of its values.
    pub fn values(&self) -> KvStream {
        KvStream::Values { heads: self.kv_heads, dim: self.v_dim }
    }
}

/// How latent attention is computed; the results are equal up to rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatentForm {
    /// Keys and values of every head are expanded from the latent: cheaper for many rows.
    Plain,
    /// The query is projected into the latent space instead: cheaper for few rows.
    Absorbed,
}

/// Shape and scale of multi-head latent attention (V2 paper, section 2.1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentSpec {
    /// Query heads.
    pub heads: usize,
    /// Width of the latent (512).
    pub rank: usize,
    /// Width of a query head's part without position (128).
    pub nope: usize,
    /// Width of the rotated part, shared by all heads in the key (64).
    pub rope: usize,
    /// Width of a value head (128).
    pub v_dim: usize,
    /// Factor on the scores before softmax.
    pub scale: f32,
}

impl LatentSpec {
    /// The stream of its cache.
    pub fn latents(&self) -> KvStream {
        KvStream::Latents { width: self.rank + self.rope }
    }
}

/// Consecutive rows of a batch that belong to one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First row in the batch.
    pub row: usize,
    /// Number of rows.
    pub rows: usize,
    /// Position of the first row in its sequence; row `row + i` sees positions `0..=start + i`.
    pub start: usize,
    /// Where the sequence's block table begins in [`Spans::tables`].
    pub table: usize,
    /// Which form latent attention takes for these rows.
    pub form: LatentForm,
}

/// The spans of a batch, with the block tables that they point into.
#[derive(Clone, Copy, Debug)]
pub struct Spans<'a> {
    /// Spans, in row order, together covering every row.
    pub spans: &'a [Span],
    /// Block tables, one behind the other: block numbers in the cache.
    pub tables: &'a [u32],
    /// Tokens per block.
    pub block: usize,
}

impl Spans<'_> {
    /// Cache slot of position `pos` of a span's sequence.
    pub fn slot(&self, span: &Span, pos: usize) -> usize {
        self.tables[span.table + pos / self.block] as usize * self.block + pos % self.block
    }
}

/// What the rows of a cache stream are, which is what a backend needs to know to lay them out well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvStream {
    /// Keys of every key and value head.
    Keys {
        /// Heads.
        heads: usize,
        /// Width of a head.
        dim: usize,
    },
    /// Values of every key and value head.
    Values {
        /// Heads.
        heads: usize,
        /// Width of a head.
        dim: usize,
    },
    /// Latents with their rotated keys, which all heads share.
    Latents {
        /// Width of both.
        width: usize,
    },
}

impl KvStream {
    /// Numbers per token.
    pub fn width(self) -> usize {
        let (heads, dim) = self.heads();
        heads * dim
    }

    /// Heads, and numbers of each, which are a row where numbers share scales: latents are one head, so that their last run
    /// reaches into the rotated key unless their rank is a multiple of 32, as that of all published models is.
    pub fn heads(self) -> (usize, usize) {
        match self {
            KvStream::Keys { heads, dim } | KvStream::Values { heads, dim } => (heads, dim),
            KvStream::Latents { width } => (1, width),
        }
    }

    /// Bytes per token.
    pub fn bytes(self, dtype: DType) -> usize {
        let (heads, dim) = self.heads();
        heads * dtype.bytes(dim)
    }
}

/// One stream of one layer's cache: `slots` rows, in an order that only the backend knows.
pub struct KvCache {
    /// Memory; its shape is `[slots, width]`, whatever lies where in it.
    pub data: Tensor,
    /// What the rows are.
    pub stream: KvStream,
}

impl KvCache {
    /// Numbers per token.
    pub fn width(&self) -> usize {
        self.data.cols()
    }

    /// Tokens it can hold.
    pub fn slots(&self) -> usize {
        self.data.rows()
    }

    /// Bytes per token.
    pub fn bytes(&self) -> usize {
        self.stream.bytes(self.data.dtype)
    }
}

/// Where attention finds keys and values.
#[derive(Clone, Copy)]
pub enum KvView<'a> {
    /// Tensors `[tokens, kv_heads × dim]` of this very batch (training, vision): position p of a
    /// span is row `span.row + p`, and every span starts at 0.
    Fresh {
        /// Keys.
        k: &'a Tensor,
        /// Values.
        v: &'a Tensor,
    },
    /// The paged cache, which already holds this batch's rows.
    Paged {
        /// Keys.
        k: &'a KvCache,
        /// Values.
        v: &'a KvCache,
    },
}

/// How router logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// Softmax over all experts (DeepSeek-MoE, V2).
    Softmax,
    /// Sigmoid of each (V3).
    Sigmoid,
}

/// How experts are chosen and weighted (V3 paper, section 2.1.2; V2 paper, section 2.2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouteSpec {
    /// Routed experts.
    pub experts: usize,
    /// Experts chosen per token.
    pub top_k: usize,
    /// Scoring function.
    pub score: Score,
    /// Groups of experts; 1 = no grouping.
    pub groups: usize,
    /// Groups that stay eligible.
    pub groups_kept: usize,
    /// A group's score is the sum of its this many best experts (V2: 1, V3: 2).
    pub group_top: usize,
    /// Whether the chosen scores are divided by their sum.
    pub normalise: bool,
    /// Factor on the weights.
    pub scale: f32,
}

/// Which experts each row goes to, best first, and with what weight.
#[derive(Clone)]
pub struct Routing {
    /// `[tokens, top_k]`, u32.
    pub experts: Tensor,
    /// `[tokens, top_k]`, f32.
    pub weights: Tensor,
}

/// A convolution over pictures, which lie as `[pictures, height, width, channels]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvSpec {
    /// Side of the square kernel.
    pub kernel: usize,
    /// Pixels from one output to the next, in both directions.
    pub stride: usize,
    /// Rows and columns of zeros before (top, left) and after (bottom, right) the picture.
    pub pad: (usize, usize),
    /// How often every input pixel is first repeated in both directions (nearest-neighbour upsampling); 1: not.
    pub magnify: usize,
}

impl ConvSpec {
    /// A kernel that keeps the picture's size.
    pub const fn same(kernel: usize) -> Self {
        ConvSpec { kernel, stride: 1, pad: (kernel / 2, kernel / 2), magnify: 1 }
    }

    /// Height or width of the output for an input of `side`; 0 if the kernel does not fit.
    pub fn out(&self, side: usize) -> usize {
        let padded = side * self.magnify + self.pad.0 + self.pad.1;
        padded.checked_sub(self.kernel).map_or(0, |room| room / self.stride + 1)
    }
}

/// Group normalisation (Wu & He 2018) over pictures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNormSpec {
    /// Groups of neighbouring channels; divides them.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Whether `silu` follows.
    pub silu: bool,
}

/// A device that can run a decoder.
///
/// Shapes are checked; a violation is an error naming operation and argument. `x` is `[tokens, dim]` unless said
/// otherwise.
pub trait Backend: Send + Sync {
    /// Name of the device.
    fn device(&self) -> &'static str;

    /// Precision that it was made with.
    fn precision(&self) -> Precision;

    /// Takes over a weight. It may rearrange the numbers and let the source pages go.
    fn upload(&self, weight: &Weight) -> Result<Resident>;

    /// Takes over a table that only [`Backend::embed`] reads: rows are looked up one by one, so to rearrange it would
    /// cost time and memory for nothing.
    fn upload_table(&self, table: &Weight) -> Result<Resident> {
        self.upload(table)
    }

    /// Takes over the experts of one projection.
    fn upload_experts(&self, experts: &Experts) -> Result<ResidentExperts>;

    /// Takes over the kernels of a convolution: `[out, in × kernel × kernel]`, channel outermost as PyTorch stores them.
    fn upload_conv(&self, weight: &Weight, kernel: usize) -> Result<Resident>;

    /// A tensor with the given elements, row-major.
    fn tensor(&self, shape: Shape, data: &[f32]) -> Result<Tensor>;

    /// Copies the elements of an f32 tensor into `out`, which has exactly their number.
    fn read(&self, x: &Tensor, out: &mut [f32]) -> Result<()>;

    /// Copies the elements of a u32 tensor into `out`, which has exactly their number.
    fn read_u32(&self, x: &Tensor, out: &mut [u32]) -> Result<()>;

    /// Rows `ids` of a table `[vocab, dim]`.
    fn embed(&self, table: &Resident, ids: &[u32]) -> Result<Tensor>;

    /// `x / √(mean(x²) + eps) · weight` along the last dimension (Zhang & Sennrich 2019).
    fn rms_norm(&self, x: &Tensor, weight: &Resident, eps: f32) -> Result<Tensor>;

    /// Several projections of the same input: one quantisation of `x`, one region.
    fn linear(&self, x: &Tensor, projs: &[Proj<'_>]) -> Result<Outputs>;

    /// A [`Backend::linear`] after which an error of rounding drifts and does not jump: no experts are chosen by what follows, and no
    /// guidance multiplies it. A backend may round more than there.
    fn linear_steady(&self, x: &Tensor, projs: &[Proj<'_>]) -> Result<Outputs> {
        self.linear(x, projs)
    }

    /// `x · headᵀ`, `[rows, vocab]`. A [`Backend::linear`] whose outputs nothing else is computed from, so that an error of rounding
    /// stays what it is: a backend may round more than there.
    fn logits(&self, x: &Tensor, head: &Resident) -> Result<Tensor> {
        Ok(self.linear(x, &[Proj { weight: head, bias: None }])?.remove(0))
    }

    /// For row t and slot s: `x_row · W[expert(t, s)]ᵀ`, for one or several projections. `x` is `[tokens, in]`, shared by
    /// a token's slots, or `[tokens × top_k, in]`. Outputs are `[tokens × top_k, out]`.
    fn linear_experts(&self, x: &Tensor, routing: &Routing, projs: &[&ResidentExperts]) -> Result<Outputs>;

    /// cos and sin of every position, `[positions, freqs.dim()]`: made once per step, used by every layer.
    fn rope_table(&self, positions: &[u32], freqs: &RopeFreqs) -> Result<Tensor>;

    /// Rotates `table.cols()` elements of each head of `x: [tokens, heads × head_dim]`, beginning at `first`.
    fn rope(&self, x: Tensor, table: &Tensor, heads: usize, first: usize, layout: RopeLayout) -> Result<Tensor>;

    /// An empty cache stream of `dtype`, which is not [`DType::U32`].
    fn kv_alloc(&self, slots: usize, stream: KvStream, dtype: DType) -> Result<KvCache>;

    /// Writes row i of `x`, rounded to the cache's type, to slot `slots[i]`.
    fn kv_write(&self, cache: &mut KvCache, x: &Tensor, slots: &[u32]) -> Result<()>;

    /// Copies `count` slots as they are (copy-on-write of a shared block).
    fn kv_copy(&self, cache: &mut KvCache, from: usize, to: usize, count: usize) -> Result<()>;

    /// Grouped-query attention: `[tokens, heads × head_dim]` → `[tokens, heads × v_dim]`.
    fn attend(&self, q: &Tensor, kv: KvView<'_>, spans: &Spans<'_>, spec: &AttendSpec) -> Result<Tensor>;

    /// Latent attention over a cache of `[latent | rotated key]` rows:
    /// `q: [tokens, heads × (nope + rope)]`, rotated parts already rotated → `[tokens, heads × v_dim]`.
    fn attend_latent(
        &self,
        q: &Tensor,
        cache: &KvCache,
        k: HeadProj<'_>,
        v: HeadProj<'_>,
        spans: &Spans<'_>,
        spec: &LatentSpec,
    ) -> Result<Tensor>;

    /// `silu(gate) ⊙ up`.
    fn swiglu(&self, gate: Tensor, up: &Tensor) -> Result<Tensor>;

    /// `x + y`, into `x` if nobody else holds it.
    fn add(&self, x: Tensor, y: &Tensor) -> Result<Tensor>;

    /// Chooses experts from router logits `[tokens, experts]`. `bias` (V3's correction bias) counts only in the
    /// choice. `forced`, `[tokens × top_k]`, replaces the choice but not the weights (golden comparison, replay).
    fn route(
        &self,
        logits: &Tensor,
        bias: Option<&Resident>,
        spec: &RouteSpec,
        forced: Option<&[u32]>,
    ) -> Result<Routing>;

    /// `Σ_s weights[t, s] · y[t × top_k + s]`, plus `x` if given: `[tokens × top_k, dim]` → `[tokens, dim]`.
    fn combine_experts(&self, y: &Tensor, routing: &Routing, plus: Option<Tensor>) -> Result<Tensor>;

    /// Columns `from..to` of every row.
    fn slice_cols(&self, x: &Tensor, from: usize, to: usize) -> Result<Tensor>;

    /// Rows side by side: `[tokens, a] ⧺ [tokens, b]`.
    fn concat_cols(&self, a: &Tensor, b: &Tensor) -> Result<Tensor>;

    /// The named rows (those whose logits are wanted).
    fn select_rows(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor>;

    /// Tensors of one width below each other.
    fn concat_rows(&self, parts: &[&Tensor]) -> Result<Tensor>;

    /// `(x − mean) / √(variance + eps) · weight + bias` along the last dimension (Ba et al. 2016).
    fn layer_norm(&self, x: &Tensor, weight: &Resident, bias: &Resident, eps: f32) -> Result<Tensor>;

    /// `x · Φ(x)` with the exact normal distribution Φ (Hendrycks & Gimpel 2016), into `x` if nobody else holds it.
    fn gelu(&self, x: Tensor) -> Result<Tensor>;

    /// A convolution, bias included: `x: [pictures, height, width, in]` → `[pictures, height', width', out]`. The weight
    /// comes from [`Backend::upload_conv`].
    fn conv2d(&self, x: &Tensor, proj: Proj<'_>, spec: &ConvSpec) -> Result<Tensor>;

    /// Group normalisation of each picture of `[pictures, height, width, channels]`, over the pixels and the channels of a
    /// group; weight and bias are `[1, channels]`.
    fn group_norm(&self, x: &Tensor, weight: &Resident, bias: &Resident, spec: &GroupNormSpec) -> Result<Tensor>;

    /// Feed-forward block `down(silu(gate x) ⊙ up x)`. A backend may fuse it.
    fn ffn(&self, x: &Tensor, gate: Proj<'_>, up: Proj<'_>, down: Proj<'_>) -> Result<Tensor> {
        let mut both = self.linear(x, &[gate, up])?;
        let up = both.pop().expect("invariant: linear gives an output per projection");
        let gate = both.pop().expect("invariant: linear gives an output per projection");
        let h = self.swiglu(gate, &up)?;
        Ok(self.linear(&h, &[down])?.remove(0))
    }

    /// The routed experts' part of a mixture-of-experts block, plus `plus` (the shared expert's part). A backend may
    /// fuse it.
    fn moe(
        &self,
        x: &Tensor,
        routing: &Routing,
        gate: &ResidentExperts,
        up: &ResidentExperts,
        down: &ResidentExperts,
        plus: Option<Tensor>,
    ) -> Result<Tensor> {
        let mut both = self.linear_experts(x, routing, &[gate, up])?;
        let up = both.pop().expect("invariant: linear_experts gives an output per projection");
        let gate = both.pop().expect("invariant: linear_experts gives an output per projection");
        let h = self.swiglu(gate, &up)?;
        let y = self.linear_experts(&h, routing, &[down])?.remove(0);
        self.combine_experts(&y, routing, plus)
    }
}
