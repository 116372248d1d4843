//! What training needs of a backend beyond serving: the derivative of each operation.
//!
//! `d<x>` stands for the derivative of the loss by x. A backend that implements these can be trained on; `train` binds to none in
//! particular. Derivatives by a weight are *added* to an f32 tensor of the weight's shape, so that several uses and several
//! batches sum up. [`crate::reference::Reference`] says what each one means; finite differences in f64 hold it to that.

use crate::optim::{AdamW, Muon, Stride, Update};
use crate::{
    AttendSpec, Backend, Resident, ResidentExperts, Result, RopeLayout, RouteSpec, Routing, Shape, Spans, Tensor,
};

/// Derivatives of the operations that the text models use.
pub trait Grad: Backend {
    /// An f32 tensor of zeros.
    fn zeros(&self, shape: Shape) -> Result<Tensor>;

    /// Of `linear` by its input: `dy · W`, `[tokens, out]` → `[tokens, in]`.
    fn linear_dx(&self, dy: &Tensor, weight: &Resident) -> Result<Tensor>;

    /// Of `linear` by its weight: `dw += dyᵀ · x`, `[out, in]`.
    fn linear_dw(&self, x: &Tensor, dy: &Tensor, dw: &mut Tensor) -> Result<()>;

    /// Of `linear` by its bias: `db += Σ_t dy[t]`, `[1, out]`.
    fn bias_db(&self, dy: &Tensor, db: &mut Tensor) -> Result<()>;

    /// Of `linear_experts` by its input, which had `x_rows` rows (`tokens`, shared by a token's slots, or
    /// `tokens × top_k`).
    fn linear_experts_dx(&self, dy: &Tensor, routing: &Routing, w: &ResidentExperts, x_rows: usize) -> Result<Tensor>;

    /// Of `linear_experts` by its weights, `[experts × out, in]`.
    fn linear_experts_dw(&self, x: &Tensor, dy: &Tensor, routing: &Routing, dw: &mut Tensor) -> Result<()>;

    /// Of `rms_norm` by its input; adds the derivative by its weight, `[1, dim]`, to `dw`.
    fn rms_norm_grad(&self, x: &Tensor, w: &Resident, eps: f32, dy: &Tensor, dw: Option<&mut Tensor>)
    -> Result<Tensor>;

    /// Of `rope` by its input: the rotation back.
    fn rope_grad(&self, dy: &Tensor, table: &Tensor, heads: usize, first: usize, layout: RopeLayout) -> Result<Tensor>;

    /// Of `attend` over fresh keys and values, by queries, keys and values.
    #[allow(clippy::too_many_arguments)] // the operation's arguments, its output, and the derivative by that
    fn attend_grad(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        y: &Tensor,
        dy: &Tensor,
        spans: &Spans<'_>,
        spec: &AttendSpec,
    ) -> Result<(Tensor, Tensor, Tensor)>;

    /// Of `swiglu` by gate and up.
    fn swiglu_grad(&self, gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)>;

    /// Of the weights that `route` gives, by the router logits; the choice itself has no derivative.
    fn route_grad(&self, logits: &Tensor, routing: &Routing, dweights: &Tensor, spec: &RouteSpec) -> Result<Tensor>;

    /// Of `combine_experts` by its input and the routing weights.
    fn combine_experts_grad(&self, y: &Tensor, routing: &Routing, dout: &Tensor) -> Result<(Tensor, Tensor)>;

    /// Of `embed` by its table: `dtable[ids[t]] += dy[t]`.
    fn embed_grad(&self, ids: &[u32], dy: &Tensor, dtable: &mut Tensor) -> Result<()>;

    /// Of `slice_cols`: `dy` at columns `from..`, zeros elsewhere, `cols` wide.
    fn slice_cols_grad(&self, dy: &Tensor, from: usize, cols: usize) -> Result<Tensor>;

    /// Of `select_rows`: `dy` at the named rows, zeros elsewhere, `rows` high.
    fn select_rows_grad(&self, dy: &Tensor, picked: &[u32], rows: usize) -> Result<Tensor>;

    /// `Σ_t weights[t] · −log softmax(logits[t])[targets[t]]`, and its derivative by the logits.
    fn cross_entropy(&self, logits: &Tensor, targets: &[u32], weights: &[f32]) -> Result<(f64, Tensor)>;

    /// `Σ x²`.
    fn squares(&self, x: &Tensor) -> Result<f64>;

    /// A step of AdamW.
    fn adamw(&self, updates: &mut [Update<'_>], rule: &AdamW, at: Stride) -> Result<()>;

    /// A step of Muon, for every matrix by itself.
    fn muon(&self, updates: &mut [Update<'_>], rule: &Muon, at: Stride) -> Result<()>;
}
