//! The suite of backends: the reference keeps the laws that it holds others to, and a backend with faults is caught at
//! each of them.

use std::sync::Arc;

use fathom_core::backend::Outputs;
use fathom_core::reference::Reference;
use fathom_core::{
    AttendSpec, Backend, ConvSpec, DType, Experts, GroupNormSpec, HeadProj, KvCache, KvStream, KvView, LatentSpec,
    Precision, Proj, Resident, ResidentExperts, Result, RopeFreqs, RopeLayout, RouteSpec, Routing, Shape, Spans,
    Tensor, Weight,
};
use fathom_testkit::backend_suite::{Tolerance, backend_suite, failures};

#[test]
fn reference_passes_its_own_suite() {
    let exact = Tolerance { linear: 0.0, attend: 0.0, rows: 0.0 };
    let n = backend_suite(&|| -> Arc<dyn Backend> { Arc::new(Reference::new()) }, exact);
    println!("{n} cases");
}

/// The reference with one small fault in many operations.
struct Faulty(Reference);

macro_rules! as_reference {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => {
        $(fn $name(&self, $($arg: $ty),*) -> $ret { self.0.$name($($arg),*) })*
    };
}

impl Faulty {
    /// `x` with each element changed.
    fn change(&self, x: &Tensor, f: impl Fn(usize, f32) -> f32) -> Result<Tensor> {
        let mut values = vec![0.0; x.shape.numel()];
        self.0.read(x, &mut values)?;
        let changed: Vec<f32> = values.into_iter().enumerate().map(|(i, v)| f(i, v)).collect();
        self.0.tensor(x.shape, &changed)
    }
}

impl Backend for Faulty {
    as_reference! {
        fn device() -> &'static str;
        fn precision() -> Precision;
        fn upload(weight: &Weight) -> Result<Resident>;
        fn upload_experts(experts: &Experts) -> Result<ResidentExperts>;
        fn tensor(shape: Shape, data: &[f32]) -> Result<Tensor>;
        fn read(x: &Tensor, out: &mut [f32]) -> Result<()>;
        fn read_u32(x: &Tensor, out: &mut [u32]) -> Result<()>;
        fn rope_table(positions: &[u32], freqs: &RopeFreqs) -> Result<Tensor>;
        fn kv_write(cache: &mut KvCache, x: &Tensor, slots: &[u32]) -> Result<()>;
        fn swiglu(gate: Tensor, up: &Tensor) -> Result<Tensor>;
        fn add(x: Tensor, y: &Tensor) -> Result<Tensor>;
        fn slice_cols(x: &Tensor, from: usize, to: usize) -> Result<Tensor>;
        fn concat_cols(a: &Tensor, b: &Tensor) -> Result<Tensor>;
        fn select_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor>;
        fn concat_rows(parts: &[&Tensor]) -> Result<Tensor>;
        fn upload_conv(weight: &Weight, kernel: usize) -> Result<Resident>;
        fn layer_norm(x: &Tensor, weight: &Resident, bias: &Resident, eps: f32) -> Result<Tensor>;
    }

    /// The usual approximation by tanh.
    fn gelu(&self, x: Tensor) -> Result<Tensor> {
        self.change(&x, |_, v| 0.5 * v * (1.0 + (0.797_884_6 * (v + 0.044_715 * v * v * v)).tanh()))
    }

    /// Pads on both sides whatever was asked for.
    fn conv2d(&self, x: &Tensor, proj: Proj<'_>, spec: &ConvSpec) -> Result<Tensor> {
        let pad = spec.pad.0.max(spec.pad.1);
        self.0.conv2d(x, proj, &ConvSpec { pad: (pad, pad), ..*spec })
    }

    /// Forgets the activation.
    fn group_norm(&self, x: &Tensor, weight: &Resident, bias: &Resident, spec: &GroupNormSpec) -> Result<Tensor> {
        self.0.group_norm(x, weight, bias, &GroupNormSpec { silu: false, ..*spec })
    }

    /// Wraps a token outside the table instead of refusing it.
    fn embed(&self, table: &Resident, ids: &[u32]) -> Result<Tensor> {
        let wrapped: Vec<u32> = ids.iter().map(|i| i % table.rows as u32).collect();
        self.0.embed(table, &wrapped)
    }

    /// Puts eps beside the root instead of under it.
    fn rms_norm(&self, x: &Tensor, weight: &Resident, eps: f32) -> Result<Tensor> {
        self.0.rms_norm(x, weight, eps * eps)
    }

    /// The last bit depends on whether there are other rows.
    fn linear(&self, x: &Tensor, projs: &[Proj<'_>]) -> Result<Outputs> {
        let bit = if x.rows() > 1 { 1.0 + f32::EPSILON } else { 1.0 };
        self.0.linear(x, projs)?.iter().map(|y| self.change(y, |_, v| v * bit)).collect()
    }

    /// One element of many is a tenth of the usual size off.
    fn linear_experts(&self, x: &Tensor, routing: &Routing, projs: &[&ResidentExperts]) -> Result<Outputs> {
        let all = self.0.linear_experts(x, routing, projs)?;
        all.iter().map(|y| self.change(y, |i, v| if i == 77 { v + 0.1 } else { v })).collect()
    }

    /// Ignores where in the head the rotation begins.
    fn rope(&self, x: Tensor, table: &Tensor, heads: usize, _first: usize, layout: RopeLayout) -> Result<Tensor> {
        self.0.rope(x, table, heads, 0, layout)
    }

    /// Keeps f32 where f16 was asked for.
    fn kv_alloc(&self, slots: usize, stream: KvStream, _dtype: DType) -> Result<KvCache> {
        self.0.kv_alloc(slots, stream, DType::F32)
    }

    /// Copies one slot too few.
    fn kv_copy(&self, cache: &mut KvCache, from: usize, to: usize, count: usize) -> Result<()> {
        self.0.kv_copy(cache, from, to, count - 1)
    }

    /// A slightly different scale where a sequence is longer than 256.
    fn attend(&self, q: &Tensor, kv: KvView<'_>, spans: &Spans<'_>, spec: &AttendSpec) -> Result<Tensor> {
        let long = spans.spans.iter().any(|s| s.start + s.rows > 256);
        self.0.attend(q, kv, spans, &AttendSpec { scale: if long { spec.scale * 1.0001 } else { spec.scale }, ..*spec })
    }

    /// Takes the values of the wrong head where there is more than one.
    fn attend_latent(
        &self,
        q: &Tensor,
        cache: &KvCache,
        k: HeadProj<'_>,
        v: HeadProj<'_>,
        spans: &Spans<'_>,
        spec: &LatentSpec,
    ) -> Result<Tensor> {
        let first_row = if v.first_row > 0 { v.first_row - 1 } else { 0 };
        self.0.attend_latent(q, cache, k, HeadProj { first_row, ..v }, spans, spec)
    }

    /// Prefers the higher index in ties, by an invisible slope.
    fn route(
        &self,
        logits: &Tensor,
        bias: Option<&Resident>,
        spec: &RouteSpec,
        forced: Option<&[u32]>,
    ) -> Result<Routing> {
        let sloped = self.change(logits, |i, v| v + (i % spec.experts) as f32 * 1e-6)?;
        let choice = self.0.route(&sloped, bias, spec, forced)?;
        let mut ids = vec![0; choice.experts.shape.numel()];
        self.0.read_u32(&choice.experts, &mut ids)?;
        self.0.route(logits, bias, spec, Some(&ids))
    }

    /// Forgets the shared expert.
    fn combine_experts(&self, y: &Tensor, routing: &Routing, _plus: Option<Tensor>) -> Result<Tensor> {
        self.0.combine_experts(y, routing, None)
    }
}

#[test]
fn every_fault_is_caught() {
    let (_, failed) = failures(&|| Arc::new(Faulty(Reference::new())), Tolerance::of(Precision::Exact));
    for fault in [
        "a token outside the table: accepted",
        "rms_norm [1, 64] × 0.0001: error",
        "linear F32, whole = cut into",
        "linear_experts stacked F16",
        "rope Interleaved 4 heads of 24, 8 from 16: error",
        "attend a prompt, 4/2 heads of 16/16, f16: error",
        "kv_copy f32",
        "attend a long one, 4/1 heads of 128/128, f32: error",
        "latent Absorbed a prompt, fused",
        "latent Plain one token, fused",
        "route tied Softmax 6 of 64",
        "combine_experts leaves alone",
        "moe stacked F32",
        "gelu [17, 256]: error",
        "conv2d [3, 8, 10, 8] to 20",
        "group_norm [2, 5, 7, 32] + 0 ",
    ] {
        assert!(failed.iter().any(|f| f.starts_with(fault)), "`{fault}` was not caught; caught were {failed:#?}");
    }
    for fine in ["swiglu", "add", "slice", "embed", "linear F32 [", "attend a prompt, 4/2 heads of 16/16, f32"] {
        let wrong = failed.iter().find(|f| f.starts_with(fine));
        assert!(wrong.is_none(), "{wrong:?} has no fault");
    }
}
