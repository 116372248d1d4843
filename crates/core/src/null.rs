//! A backend without data: it checks shapes and counts arithmetic and memory traffic.
//!
//! A forward pass over it costs nothing and says what the same pass costs elsewhere, which is what rooflines, memory
//! plans and cost estimates read. Counted are the products (2 floating-point operations per multiply-add; elementwise work is
//! not counted), the bytes of weights that a pass must read at least once per operation, and the cache bytes read and written.
//!
//! Routing depends on data: where `forced` names the experts, distinct experts are counted exactly; else their
//! number is the expectation under uniform, independent routing, `E · (1 − (1 − k/E)^tokens)`.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::backend::Outputs;
use crate::{
    AttendSpec, Backend, Buffer, ConvSpec, DType, Error, Experts, GroupNormSpec, HeadProj, KvCache, KvStream, KvView,
    LatentForm, LatentSpec, Mask, Precision, Proj, Resident, ResidentExperts, Result, RopeFreqs, RopeLayout, RouteSpec,
    Routing, Shape, Span, Spans, Storage, Tensor, Weight, check,
};

const DEVICE: &str = "null";

/// What an operation, or a whole pass, costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// How often the operation ran.
    pub calls: u64,
    /// Floating-point operations in products.
    pub flops: u64,
    /// Bytes of weights read.
    pub weight_bytes: u64,
    /// Bytes of the cache read and written.
    pub cache_bytes: u64,
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        self.calls += other.calls;
        self.flops += other.flops;
        self.weight_bytes += other.weight_bytes;
        self.cache_bytes += other.cache_bytes;
    }
}

/// Costs per operation since the last reset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// By name of the operation.
    pub ops: BTreeMap<&'static str, Cost>,
}

impl Counts {
    /// Over all operations.
    pub fn total(&self) -> Cost {
        let mut total = Cost::default();
        self.ops.values().for_each(|c| total += *c);
        total
    }
}

/// The backend.
#[derive(Default)]
pub struct Null {
    counts: Mutex<Counts>,
}

/// What stands for memory: nothing, or the expert ids that a caller forced.
struct Nothing {
    ids: Option<Vec<u32>>,
}

impl Storage for Nothing {
    fn device(&self) -> &'static str {
        DEVICE
    }
}

/// What stands for a weight (or one expert of several): its size.
struct Bytes(u64);

fn tensor(shape: Shape, dtype: DType) -> Tensor {
    Tensor { buf: Buffer::new(Arc::new(Nothing { ids: None })), shape, dtype }
}

fn f32s(shape: Shape) -> Tensor {
    tensor(shape, DType::F32)
}

/// Bytes of all numbers of a resident.
fn bytes(op: &'static str, w: &Resident) -> Result<u64> {
    Ok(w.data::<Bytes>(op, DEVICE)?.0)
}

/// That tensors live here.
fn own(op: &'static str, tensors: &[&Tensor]) -> Result<()> {
    match tensors.iter().find(|t| t.buf.get::<Nothing>().is_none()) {
        None => Ok(()),
        Some(t) => Err(Error::Foreign { op, expected: DEVICE, found: t.buf.device() }),
    }
}

/// `Σ` over the rows of a span of the positions that each sees.
fn pairs(span: &Span, mask: Mask) -> u64 {
    let (rows, start) = (span.rows as u64, span.start as u64);
    match mask {
        Mask::Causal => rows * start + rows * (rows + 1) / 2,
        Mask::Full => rows * (start + rows),
    }
}

impl Null {
    /// A backend that has counted nothing yet.
    pub fn new() -> Self {
        Null::default()
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().expect("invariant: no panic under the counters' lock")
    }

    /// What has been counted.
    pub fn counts(&self) -> Counts {
        self.lock().clone()
    }

    /// Counts from zero again.
    pub fn reset(&self) {
        *self.lock() = Counts::default();
    }

    fn count(&self, op: &'static str, flops: u64, weight_bytes: u64, cache_bytes: u64) {
        *self.lock().ops.entry(op).or_default() += Cost { calls: 1, flops, weight_bytes, cache_bytes };
    }
}

impl Backend for Null {
    fn device(&self) -> &'static str {
        DEVICE
    }

    fn precision(&self) -> Precision {
        Precision::Exact
    }

    fn upload(&self, w: &Weight) -> Result<Resident> {
        Ok(Resident::new(DEVICE, w.rows, w.cols, w.format, Arc::new(Bytes(w.total_bytes() as u64))))
    }

    fn upload_experts(&self, experts: &Experts) -> Result<ResidentExperts> {
        let (rows, cols) = check::upload_experts(experts)?;
        let n = experts.len();
        let total = match experts {
            Experts::Stacked { weight, .. } => weight.total_bytes(),
            Experts::Each(all) => all.iter().map(Weight::total_bytes).sum(),
        };
        let each = Arc::new(Bytes((total / n) as u64));
        Ok(ResidentExperts { experts: n, each: Resident::new(DEVICE, rows, cols, experts.get(0).format, each) })
    }

    fn upload_conv(&self, weight: &Weight, kernel: usize) -> Result<Resident> {
        check::upload_conv(weight, kernel)?;
        self.upload(weight)
    }

    fn tensor(&self, shape: Shape, data: &[f32]) -> Result<Tensor> {
        let t = f32s(shape);
        check::read(&t, data.len())?;
        Ok(t)
    }

    fn read(&self, x: &Tensor, out: &mut [f32]) -> Result<()> {
        own("read", &[x])?;
        check::read(x, out.len())?;
        out.fill(0.0);
        Ok(())
    }

    fn read_u32(&self, x: &Tensor, out: &mut [u32]) -> Result<()> {
        own("read_u32", &[x])?;
        check::read(x, out.len())?;
        match x.buf.get::<Nothing>().and_then(|n| n.ids.as_deref()) {
            Some(ids) => out.copy_from_slice(ids),
            None => out.fill(0),
        }
        Ok(())
    }

    fn embed(&self, table: &Resident, ids: &[u32]) -> Result<Tensor> {
        let shape = check::embed(table, ids)?;
        self.count("embed", 0, bytes("embed", table)? / table.rows as u64 * ids.len() as u64, 0);
        Ok(f32s(shape))
    }

    fn rms_norm(&self, x: &Tensor, weight: &Resident, _eps: f32) -> Result<Tensor> {
        own("rms_norm", &[x])?;
        check::rms_norm(x, weight)?;
        self.count("rms_norm", 0, bytes("rms_norm", weight)?, 0);
        Ok(f32s(x.shape))
    }

    fn linear(&self, x: &Tensor, projs: &[Proj<'_>]) -> Result<Outputs> {
        own("linear", &[x])?;
        check::linear(x, projs)?;
        let (mut flops, mut read) = (0, 0);
        for p in projs {
            flops += 2 * (x.rows() * p.weight.rows * p.weight.cols) as u64;
            read += bytes("linear", p.weight)? + p.bias.map_or(Ok(0), |b| bytes("linear", b))?;
        }
        self.count("linear", flops, read, 0);
        Ok(projs.iter().map(|p| f32s(Shape::matrix(x.rows(), p.weight.rows))).collect())
    }

    fn linear_experts(&self, x: &Tensor, routing: &Routing, projs: &[&ResidentExperts]) -> Result<Outputs> {
        let op = "linear_experts";
        own(op, &[x, &routing.experts, &routing.weights])?;
        check::linear_experts(x, routing, projs)?;
        let (tokens, slots) = (routing.experts.rows(), routing.experts.shape.numel());
        let experts = projs[0].experts;
        let distinct = match routing.experts.buf.get::<Nothing>().and_then(|n| n.ids.as_ref()) {
            Some(ids) => {
                check::below(op, "routing.experts", ids, experts)?;
                (0..experts).filter(|&e| ids.contains(&(e as u32))).count() as f64
            }
            None => {
                let missed = 1.0 - routing.experts.cols() as f64 / experts as f64;
                experts as f64 * (1.0 - missed.powf(tokens as f64))
            }
        };
        let (mut flops, mut read) = (0, 0);
        for p in projs {
            flops += 2 * (slots * p.each.rows * p.each.cols) as u64;
            read += (bytes(op, &p.each)? as f64 * distinct).round() as u64;
        }
        self.count(op, flops, read, 0);
        Ok(projs.iter().map(|p| f32s(Shape::matrix(slots, p.each.rows))).collect())
    }

    fn rope_table(&self, positions: &[u32], freqs: &RopeFreqs) -> Result<Tensor> {
        self.count("rope_table", 0, 0, 0);
        Ok(f32s(Shape::matrix(positions.len(), freqs.dim())))
    }

    fn rope(&self, x: Tensor, table: &Tensor, heads: usize, first: usize, _layout: RopeLayout) -> Result<Tensor> {
        own("rope", &[&x, table])?;
        check::rope(&x, table, heads, first)?;
        self.count("rope", 0, 0, 0);
        Ok(x)
    }

    fn kv_alloc(&self, slots: usize, stream: KvStream, dtype: DType) -> Result<KvCache> {
        Ok(KvCache { data: tensor(Shape::matrix(slots, stream.width()), dtype), stream })
    }

    fn kv_write(&self, cache: &mut KvCache, x: &Tensor, slots: &[u32]) -> Result<()> {
        own("kv_write", &[&cache.data, x])?;
        check::kv_write(cache, x, slots)?;
        self.count("kv_write", 0, 0, (x.rows() * cache.bytes()) as u64);
        Ok(())
    }

    fn kv_copy(&self, cache: &mut KvCache, from: usize, to: usize, count: usize) -> Result<()> {
        own("kv_copy", &[&cache.data])?;
        check::kv_copy(cache, from, to, count)?;
        self.count("kv_copy", 0, 0, 2 * (count * cache.bytes()) as u64);
        Ok(())
    }

    fn attend(&self, q: &Tensor, kv: KvView<'_>, spans: &Spans<'_>, spec: &AttendSpec) -> Result<Tensor> {
        own("attend", &[q])?;
        let shape = check::attend(q, kv, spans, spec)?;
        let per_position = match kv {
            KvView::Fresh { k, v } => own("attend", &[k, v]).map(|()| 0)?,
            KvView::Paged { k, v } => {
                own("attend", &[&k.data, &v.data])?;
                k.bytes() + v.bytes()
            }
        };
        let (mut flops, mut read) = (0, 0);
        for s in spans.spans {
            flops += 2 * pairs(s, spec.mask) * (spec.heads * (spec.head_dim + spec.v_dim)) as u64;
            read += ((s.start + s.rows) * per_position) as u64;
        }
        self.count("attend", flops, 0, read);
        Ok(f32s(shape))
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
        let op = "attend_latent";
        own(op, &[q, &cache.data])?;
        let shape = check::attend_latent(q, cache, k, v, spans, spec)?;
        let slabs = |p: HeadProj<'_>| -> Result<u64> {
            Ok(bytes(op, p.weight)? * (spec.heads * p.head_rows) as u64 / p.weight.rows as u64)
        };
        let projection = spec.rank * (spec.nope + spec.v_dim);
        let (mut flops, mut read) = (0, 0);
        for s in spans.spans {
            let end = s.start + s.rows;
            let (projected, scored) = match s.form {
                LatentForm::Plain => (end, spec.nope + spec.rope + spec.v_dim),
                LatentForm::Absorbed => (s.rows, spec.rank + spec.rope + spec.rank),
            };
            flops += 2 * (spec.heads * projected * projection) as u64;
            flops += 2 * pairs(s, Mask::Causal) * (spec.heads * scored) as u64;
            read += (end * cache.bytes()) as u64;
        }
        self.count(op, flops, slabs(k)? + slabs(v)?, read);
        Ok(f32s(shape))
    }

    fn swiglu(&self, gate: Tensor, up: &Tensor) -> Result<Tensor> {
        own("swiglu", &[&gate, up])?;
        check::same("swiglu", "up", &gate, up)?;
        self.count("swiglu", 0, 0, 0);
        Ok(gate)
    }

    fn add(&self, x: Tensor, y: &Tensor) -> Result<Tensor> {
        own("add", &[&x, y])?;
        check::same("add", "y", &x, y)?;
        self.count("add", 0, 0, 0);
        Ok(x)
    }

    fn route(
        &self,
        logits: &Tensor,
        bias: Option<&Resident>,
        spec: &RouteSpec,
        forced: Option<&[u32]>,
    ) -> Result<Routing> {
        own("route", &[logits])?;
        let shape = check::route(logits, bias, spec, forced)?;
        self.count("route", 0, bias.map_or(Ok(0), |b| bytes("route", b))?, 0);
        let ids = Nothing { ids: forced.map(<[u32]>::to_vec) };
        let experts = Tensor { buf: Buffer::new(Arc::new(ids)), shape, dtype: DType::U32 };
        Ok(Routing { experts, weights: f32s(shape) })
    }

    fn combine_experts(&self, y: &Tensor, routing: &Routing, plus: Option<Tensor>) -> Result<Tensor> {
        own("combine_experts", &[y, &routing.weights])?;
        let shape = check::combine_experts(y, routing, plus.as_ref())?;
        self.count("combine_experts", 2 * y.shape.numel() as u64, 0, 0);
        Ok(f32s(shape))
    }

    fn slice_cols(&self, x: &Tensor, from: usize, to: usize) -> Result<Tensor> {
        own("slice_cols", &[x])?;
        self.count("slice_cols", 0, 0, 0);
        Ok(f32s(check::slice_cols(x, from, to)?))
    }

    fn concat_cols(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        own("concat_cols", &[a, b])?;
        self.count("concat_cols", 0, 0, 0);
        Ok(f32s(check::concat_cols(a, b)?))
    }

    fn select_rows(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        own("select_rows", &[x])?;
        self.count("select_rows", 0, 0, 0);
        Ok(f32s(check::select_rows(x, rows)?))
    }

    fn concat_rows(&self, parts: &[&Tensor]) -> Result<Tensor> {
        own("concat_rows", parts)?;
        self.count("concat_rows", 0, 0, 0);
        Ok(f32s(check::concat_rows(parts)?))
    }

    fn layer_norm(&self, x: &Tensor, weight: &Resident, bias: &Resident, _eps: f32) -> Result<Tensor> {
        let op = "layer_norm";
        own(op, &[x])?;
        check::layer_norm(x, weight, bias)?;
        self.count(op, 0, bytes(op, weight)? + bytes(op, bias)?, 0);
        Ok(f32s(x.shape))
    }

    fn gelu(&self, x: Tensor) -> Result<Tensor> {
        own("gelu", &[&x])?;
        self.count("gelu", 0, 0, 0);
        Ok(x)
    }

    fn conv2d(&self, x: &Tensor, p: Proj<'_>, spec: &ConvSpec) -> Result<Tensor> {
        let op = "conv2d";
        own(op, &[x])?;
        let shape = check::conv2d(x, &p, spec)?;
        let read = bytes(op, p.weight)? + p.bias.map_or(Ok(0), |b| bytes(op, b))?;
        self.count(op, 2 * (shape.numel() * p.weight.cols) as u64, read, 0);
        Ok(f32s(shape))
    }

    fn group_norm(&self, x: &Tensor, weight: &Resident, bias: &Resident, spec: &GroupNormSpec) -> Result<Tensor> {
        let op = "group_norm";
        own(op, &[x])?;
        check::group_norm(x, weight, bias, spec)?;
        self.count(op, 0, bytes(op, weight)? + bytes(op, bias)?, 0);
        Ok(f32s(x.shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Score, format};

    #[test]
    fn a_linear_layer_and_attention_cost_what_paper_and_pencil_say() {
        let null = Null::new();
        let w = null.upload(&Weight::encode(format::F16, 6, 4, &[0.0; 24]).unwrap()).unwrap();
        let x = null.tensor(Shape::matrix(3, 4), &[1.0; 12]).unwrap();
        null.linear(&x, &[Proj { weight: &w, bias: None }]).unwrap();
        // 3 rows, 6 × 4 weights of 2 bytes.
        assert_eq!(null.counts().ops["linear"], Cost { calls: 1, flops: 2 * 3 * 24, weight_bytes: 48, cache_bytes: 0 });

        let spec = AttendSpec { heads: 2, kv_heads: 1, head_dim: 4, v_dim: 4, scale: 1.0, mask: Mask::Causal };
        let mut k = null.kv_alloc(16, spec.keys(), DType::F16).unwrap();
        let v = null.kv_alloc(16, spec.values(), DType::F16).unwrap();
        null.kv_write(&mut k, &x, &[5, 6, 7]).unwrap();
        let q = null.tensor(Shape::matrix(3, 8), &[0.0; 24]).unwrap();
        let span = Span { row: 0, rows: 3, start: 5, table: 0, form: LatentForm::Plain };
        let spans = Spans { spans: &[span], tables: &[0, 1], block: 8 };
        null.attend(&q, KvView::Paged { k: &k, v: &v }, &spans, &spec).unwrap();
        // Rows see 6, 7 and 8 positions; 2 heads; 4 products for the score and 4 for the mix.
        let attend = Cost { calls: 1, flops: 2 * 21 * 2 * 8, weight_bytes: 0, cache_bytes: 8 * (4 + 4) * 2 };
        assert_eq!(null.counts().ops["attend"], attend);
        assert_eq!(null.counts().total().cache_bytes, 128 + 3 * 4 * 2);
        let mut k = null.kv_alloc(16, spec.keys(), DType::Q8_0).unwrap();
        null.kv_write(&mut k, &x, &[5, 6, 7]).unwrap();
        assert_eq!(null.counts().total().cache_bytes, 128 + 3 * 4 * 2 + 3 * (4 + 2));
        null.reset();
        assert_eq!(null.counts(), Counts::default());
    }

    #[test]
    fn forced_experts_are_counted_and_others_expected() {
        let null = Null::new();
        let one = Weight::from_f32(2, 4, &[0.0; 8]);
        let experts = null.upload_experts(&Experts::Each(vec![one; 8])).unwrap();
        let spec = RouteSpec {
            experts: 8,
            top_k: 2,
            score: Score::Softmax,
            groups: 1,
            groups_kept: 1,
            group_top: 1,
            normalise: false,
            scale: 1.0,
        };
        let (x, logits) = (f32s(Shape::matrix(3, 4)), f32s(Shape::matrix(3, 8)));
        let read = |forced| {
            null.reset();
            let routing = null.route(&logits, None, &spec, forced).unwrap();
            null.linear_experts(&x, &routing, &[&experts]).unwrap();
            null.counts().ops["linear_experts"].weight_bytes
        };
        assert_eq!(read(Some(&[0, 1, 1, 0, 0, 7])), 3 * 32);
        // 8 · (1 − (3/4)³) = 4.625 experts of 32 bytes.
        assert_eq!(read(None), 148);
    }
}
