//! A backend in front of another: it passes everything on and notes how long each operation took.
//!
//! Where the time of a step goes is read from it (`fathom bench --profile`), without a timer in any kernel. Operations that the
//! backend behind it fuses ([`Backend::ffn`], [`Backend::moe`]) count as one. A method that [`Backend`] gets must be passed
//! on here as well, or the default would run in place of the backend's own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::Outputs;
use crate::{
    AttendSpec, Backend, ConvSpec, DType, Experts, GroupNormSpec, HeadProj, KvCache, KvStream, KvView, LatentSpec,
    Precision, Proj, Resident, ResidentExperts, Result, RopeFreqs, RopeLayout, RouteSpec, Routing, Shape, Spans,
    Tensor, Weight,
};

/// An operation, told apart by the width of its outputs where that says which of a model's products it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Op {
    /// Name of the backend's method.
    pub name: &'static str,
    /// Outputs per row of a product, all projections together; 0 for all else.
    pub outputs: usize,
}

/// How often an operation ran and how long all of that took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// How often.
    pub calls: u64,
    /// How long, by the clock of the caller.
    pub time: Duration,
}

/// The backend in front.
pub struct Timed {
    behind: Arc<dyn Backend>,
    spent: Mutex<BTreeMap<Op, Spent>>,
}

impl Timed {
    /// In front of `behind`, whose tensors and weights are its own.
    pub fn new(behind: Arc<dyn Backend>) -> Self {
        Timed { behind, spent: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Op, Spent>> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was spent since the last [`Timed::reset`].
    pub fn spent(&self) -> BTreeMap<Op, Spent> {
        self.lock().clone()
    }

    /// Counts from zero again.
    pub fn reset(&self) {
        self.lock().clear();
    }

    fn time<T>(&self, name: &'static str, outputs: usize, work: impl FnOnce(&dyn Backend) -> T) -> T {
        let start = Instant::now();
        let done = work(&*self.behind);
        let took = start.elapsed();
        let mut all = self.lock();
        let spent = all.entry(Op { name, outputs }).or_default();
        spent.calls += 1;
        spent.time += took;
        done
    }
}

impl Backend for Timed {
    fn device(&self) -> &'static str {
        self.behind.device()
    }

    fn precision(&self) -> Precision {
        self.behind.precision()
    }

    // Uploads are no part of a step.

    fn upload(&self, weight: &Weight) -> Result<Resident> {
        self.behind.upload(weight)
    }

    fn upload_table(&self, table: &Weight) -> Result<Resident> {
        self.behind.upload_table(table)
    }

    fn upload_experts(&self, experts: &Experts) -> Result<ResidentExperts> {
        self.behind.upload_experts(experts)
    }

    fn upload_conv(&self, weight: &Weight, kernel: usize) -> Result<Resident> {
        self.behind.upload_conv(weight, kernel)
    }

    fn kv_alloc(&self, slots: usize, stream: KvStream, dtype: DType) -> Result<KvCache> {
        self.behind.kv_alloc(slots, stream, dtype)
    }

    fn tensor(&self, shape: Shape, data: &[f32]) -> Result<Tensor> {
        self.time("tensor", 0, |b| b.tensor(shape, data))
    }

    fn read(&self, x: &Tensor, out: &mut [f32]) -> Result<()> {
        self.time("read", 0, |b| b.read(x, out))
    }

    fn read_u32(&self, x: &Tensor, out: &mut [u32]) -> Result<()> {
        self.time("read_u32", 0, |b| b.read_u32(x, out))
    }

    fn embed(&self, table: &Resident, ids: &[u32]) -> Result<Tensor> {
        self.time("embed", 0, |b| b.embed(table, ids))
    }

    fn rms_norm(&self, x: &Tensor, weight: &Resident, eps: f32) -> Result<Tensor> {
        self.time("rms_norm", 0, |b| b.rms_norm(x, weight, eps))
    }

    fn linear(&self, x: &Tensor, projs: &[Proj<'_>]) -> Result<Outputs> {
        let outputs = projs.iter().map(|p| p.weight.rows).sum();
        self.time("linear", outputs, |b| b.linear(x, projs))
    }

    fn linear_steady(&self, x: &Tensor, projs: &[Proj<'_>]) -> Result<Outputs> {
        let outputs = projs.iter().map(|p| p.weight.rows).sum();
        self.time("linear", outputs, |b| b.linear_steady(x, projs))
    }

    fn logits(&self, x: &Tensor, head: &Resident) -> Result<Tensor> {
        self.time("logits", head.rows, |b| b.logits(x, head))
    }

    fn linear_experts(&self, x: &Tensor, routing: &Routing, projs: &[&ResidentExperts]) -> Result<Outputs> {
        let outputs = projs.iter().map(|p| p.each.rows).sum();
        self.time("linear_experts", outputs, |b| b.linear_experts(x, routing, projs))
    }

    fn rope_table(&self, positions: &[u32], freqs: &RopeFreqs) -> Result<Tensor> {
        self.time("rope_table", 0, |b| b.rope_table(positions, freqs))
    }

    fn rope(&self, x: Tensor, table: &Tensor, heads: usize, first: usize, layout: RopeLayout) -> Result<Tensor> {
        self.time("rope", 0, |b| b.rope(x, table, heads, first, layout))
    }

    fn kv_write(&self, cache: &mut KvCache, x: &Tensor, slots: &[u32]) -> Result<()> {
        self.time("kv_write", 0, |b| b.kv_write(cache, x, slots))
    }

    fn kv_copy(&self, cache: &mut KvCache, from: usize, to: usize, count: usize) -> Result<()> {
        self.time("kv_copy", 0, |b| b.kv_copy(cache, from, to, count))
    }

    fn attend(&self, q: &Tensor, kv: KvView<'_>, spans: &Spans<'_>, spec: &AttendSpec) -> Result<Tensor> {
        self.time("attend", 0, |b| b.attend(q, kv, spans, spec))
    }

    fn attend_latent(
        &self,
        q: &Tensor,
        cache: &KvCache,
        k: HeadProj<'_>,
        v: HeadProj<'_>,
        spans: &Spans<'_>,
        spec: &LatentSpec,
    ) -> Result<Tensor> {
        self.time("attend_latent", 0, |b| b.attend_latent(q, cache, k, v, spans, spec))
    }

    fn swiglu(&self, gate: Tensor, up: &Tensor) -> Result<Tensor> {
        self.time("swiglu", 0, |b| b.swiglu(gate, up))
    }

    fn add(&self, x: Tensor, y: &Tensor) -> Result<Tensor> {
        self.time("add", 0, |b| b.add(x, y))
    }

    fn route(
        &self,
        logits: &Tensor,
        bias: Option<&Resident>,
        spec: &RouteSpec,
        forced: Option<&[u32]>,
    ) -> Result<Routing> {
        self.time("route", 0, |b| b.route(logits, bias, spec, forced))
    }

    fn combine_experts(&self, y: &Tensor, routing: &Routing, plus: Option<Tensor>) -> Result<Tensor> {
        self.time("combine_experts", 0, |b| b.combine_experts(y, routing, plus))
    }

    fn slice_cols(&self, x: &Tensor, from: usize, to: usize) -> Result<Tensor> {
        self.time("slice_cols", 0, |b| b.slice_cols(x, from, to))
    }

    fn concat_cols(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.time("concat_cols", 0, |behind| behind.concat_cols(a, b))
    }

    fn select_rows(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        self.time("select_rows", 0, |b| b.select_rows(x, rows))
    }

    fn concat_rows(&self, parts: &[&Tensor]) -> Result<Tensor> {
        self.time("concat_rows", 0, |b| b.concat_rows(parts))
    }

    fn layer_norm(&self, x: &Tensor, weight: &Resident, bias: &Resident, eps: f32) -> Result<Tensor> {
        self.time("layer_norm", 0, |b| b.layer_norm(x, weight, bias, eps))
    }

    fn gelu(&self, x: Tensor) -> Result<Tensor> {
        self.time("gelu", 0, |b| b.gelu(x))
    }

    fn conv2d(&self, x: &Tensor, proj: Proj<'_>, spec: &ConvSpec) -> Result<Tensor> {
        self.time("conv2d", proj.weight.rows, |b| b.conv2d(x, proj, spec))
    }

    fn group_norm(&self, x: &Tensor, weight: &Resident, bias: &Resident, spec: &GroupNormSpec) -> Result<Tensor> {
        self.time("group_norm", 0, |b| b.group_norm(x, weight, bias, spec))
    }

    fn ffn(&self, x: &Tensor, gate: Proj<'_>, up: Proj<'_>, down: Proj<'_>) -> Result<Tensor> {
        self.time("ffn", down.weight.rows, |b| b.ffn(x, gate, up, down))
    }

    fn moe(
        &self,
        x: &Tensor,
        routing: &Routing,
        gate: &ResidentExperts,
        up: &ResidentExperts,
        down: &ResidentExperts,
        plus: Option<Tensor>,
    ) -> Result<Tensor> {
        self.time("moe", down.each.rows, |b| b.moe(x, routing, gate, up, down, plus))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::null::Null;
    use crate::{Weight, format};

    #[test]
    fn operations_pass_through_and_are_noted_apart() {
        let null = Arc::new(Null::new());
        let timed = Timed::new(null.clone());
        let upload = |rows| timed.upload(&Weight::encode(format::F16, rows, 4, &vec![0.0; 4 * rows]).unwrap()).unwrap();
        let (w, head) = (upload(4), upload(9));
        let x = timed.tensor(Shape::matrix(3, 4), &[1.0; 12]).unwrap();
        for w in [&w, &w] {
            timed.linear(&x, &[Proj { weight: w, bias: None }]).unwrap();
        }
        timed.logits(&x, &head).unwrap();
        let proj = Proj { weight: &w, bias: None };
        timed.ffn(&x, proj, proj, proj).unwrap();
        let calls = |name, outputs| timed.spent().get(&Op { name, outputs }).map_or(0, |s| s.calls);
        assert_eq!((calls("linear", 4), calls("logits", 9), calls("ffn", 4)), (2, 1, 1));
        assert_eq!((timed.device(), timed.precision()), (null.device(), null.precision()));
        // The network behind is made of two products there, which are not counted again here.
        assert_eq!(null.counts().ops["linear"].calls, 5);
        timed.reset();
        assert!(timed.spent().is_empty());
    }

    #[test]
    fn no_method_is_forgotten() {
        // One with a default would compile without, and the default run in place of the backend's own.
        let of_trait = include_str!("backend.rs").split("pub trait Backend").nth(1).unwrap();
        let names: Vec<&str> =
            of_trait.lines().filter_map(|l| l.strip_prefix("    fn ")).filter_map(|l| l.split('(').next()).collect();
        assert!(names.len() > 30, "{names:?}");
        for name in names {
            let passed_on = ["b", "behind"].map(|b| include_str!("timed.rs").contains(&format!("{b}.{name}(")));
            assert!(passed_on.contains(&true), "{name} is not passed on");
        }
    }
}
