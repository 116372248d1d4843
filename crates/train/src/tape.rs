//! A backend that remembers.
//!
//! [`Tape`] runs every operation on the backend inside it and notes operation, inputs and outputs;
//! [`Tape::backward`] walks the notes from the end and adds up derivatives. The decoder that serves therefore learns without a
//! second definition (section 6 of the design). A tensor of the tape holds one of the inner backend and a number; a
//! weight knows which parameter it is, or that it is frozen.
//!
//! Training has no cache: the cache operations refuse.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use fathom_core::{
    AttendSpec, Backend, Buffer, ByteSource, ConvSpec, DType, Error, Experts, Grad, GroupNormSpec, HeadProj, KvCache,
    KvStream, KvView, LatentSpec, Outputs, Precision, Proj, Resident, ResidentExperts, Result, RopeFreqs, RopeLayout,
    RouteSpec, Routing, Shape, Span, Spans, Storage, Tensor, Weight, address,
};

const DEVICE: &str = "tape";

/// Number of a value on the tape.
type Id = usize;

/// A value: a tensor of the inner backend, and its number.
struct Value {
    inner: Tensor,
    id: Id,
}

impl Storage for Value {
    fn device(&self) -> &'static str {
        DEVICE
    }
}

/// A weight of the inner backend, and the parameter that it is; `None`: frozen.
struct Learned<W> {
    inner: W,
    param: Option<usize>,
}

/// What was done, with what backward needs of it. Tensors are the inner backend's.
enum Op {
    Embed { ids: Vec<u32>, param: Option<usize> },
    RmsNorm { x: Tensor, weight: Resident, param: Option<usize>, eps: f32 },
    Linear { x: Tensor, projs: Vec<Projection> },
    LinearExperts { x: Tensor, routing: Routing, projs: Vec<(ResidentExperts, Option<usize>)> },
    Rope { table: Tensor, heads: usize, first: usize, layout: RopeLayout },
    Attend { q: Tensor, k: Tensor, v: Tensor, y: Tensor, spans: Vec<Span>, spec: AttendSpec },
    SwiGlu { gate: Tensor, up: Tensor },
    Add,
    Route { logits: Tensor, routing: Routing, spec: RouteSpec },
    Combine { y: Tensor, routing: Routing, plus: bool },
    SliceCols { from: usize, cols: usize },
    ConcatCols { split: usize },
    SelectRows { rows: Vec<u32>, of: usize },
}

struct Projection {
    weight: Resident,
    param: Option<usize>,
    bias: Option<usize>,
}

struct Node {
    op: Op,
    inputs: Vec<Id>,
    /// Numbers of the outputs: this one and as many following.
    output: Id,
}

#[derive(Default)]
struct Record {
    nodes: Vec<Node>,
    /// Shape of every value as it was made; handles may have been reshaped since.
    values: Vec<Shape>,
}

/// A recording backend over another.
pub struct Tape {
    inner: Arc<dyn Grad>,
    /// Addresses of the parameters' values; holding them would keep them from changing.
    params: Vec<usize>,
    record: Mutex<Record>,
    paused: AtomicBool,
}

impl Tape {
    /// A tape over `inner`. A weight that is read from `params[i]` is parameter i, every other one is frozen.
    pub fn new(inner: Arc<dyn Grad>, params: Vec<Arc<dyn ByteSource>>) -> Self {
        let params = params.iter().map(address).collect();
        Tape { inner, params, record: Mutex::default(), paused: AtomicBool::new(false) }
    }

    /// The backend inside.
    pub fn inner(&self) -> &Arc<dyn Grad> {
        &self.inner
    }

    /// Forgets everything recorded.
    pub fn clear(&self) {
        *self.record() = Record::default();
    }

    /// Whether operations are only carried out from now on, so that nothing is kept for [`Tape::backward`].
    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Relaxed);
    }

    /// A value of this tape that no operation made: where a recording begins that is walked back to here.
    pub fn leaf(&self, inner: Tensor) -> Tensor {
        self.constant(inner)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("invariant: no panic under the tape's lock")
    }

    /// The inner tensor under the handle's own shape.
    pub fn open(&self, op: &'static str, x: &Tensor) -> Result<Tensor> {
        Ok(self.value(op, x)?.0)
    }

    fn value(&self, op: &'static str, x: &Tensor) -> Result<(Tensor, Id)> {
        let value = x.buf.get::<Value>().ok_or(Error::Foreign { op, expected: DEVICE, found: x.buf.device() })?;
        Ok((value.inner.clone().reshape(x.shape)?, value.id))
    }

    fn wrap(inner: Tensor, id: Id) -> Tensor {
        let (shape, dtype) = (inner.shape, inner.dtype);
        Tensor { buf: Buffer::new(Arc::new(Value { inner, id })), shape, dtype }
    }

    /// A value that no derivative flows to.
    fn constant(&self, inner: Tensor) -> Tensor {
        let mut record = self.record();
        record.values.push(inner.shape);
        Self::wrap(inner, record.values.len() - 1)
    }

    fn note(&self, op: Op, inputs: Vec<Id>, outputs: impl IntoIterator<Item = Tensor>) -> Outputs {
        let mut record = self.record();
        let output = record.values.len();
        let outputs: Outputs = outputs.into_iter().enumerate().map(|(i, t)| Self::wrap(t, output + i)).collect();
        record.values.extend(outputs.iter().map(|t| t.shape));
        if self.paused.load(Relaxed) {
            return outputs;
        }
        record.nodes.push(Node { op, inputs, output });
        outputs
    }

    fn note_one(&self, op: Op, inputs: Vec<Id>, output: Tensor) -> Tensor {
        self.note(op, inputs, [output]).remove(0)
    }

    fn learned<'a>(&self, op: &'static str, w: &'a Resident) -> Result<&'a Learned<Resident>> {
        w.data(op, DEVICE)
    }

    fn refuse<T>(&self, op: &'static str) -> Result<T> {
        Err(Error::Device { device: DEVICE, op, why: "training runs without a cache".into() })
    }

    /// Pictures are not trained on: their operations have no derivatives here.
    fn unlearned<T>(&self, op: &'static str) -> Result<T> {
        Err(Error::Device { device: DEVICE, op, why: "pictures cannot be trained on".into() })
    }

    fn param_of(&self, weight: &Weight) -> Option<usize> {
        self.params.iter().position(|p| *p == weight.bytes.source_address())
    }

    /// The inner backend's form of a weight of this tape.
    ///
    /// # Errors
    /// If the weight is not this tape's.
    pub fn frozen<'a>(&self, w: &'a Resident) -> Result<(&'a Resident, Option<usize>)> {
        let l = self.learned("frozen", w)?;
        Ok((&l.inner, l.param))
    }

    /// Walks back from `seeds` (values of this tape with the derivative of the loss by each, on the inner backend) and adds the
    /// derivatives by the parameters to `grads`, where there is a tensor for them. Empties the tape.
    ///
    /// # Errors
    /// If the inner backend fails.
    pub fn backward(&self, seeds: &[(&Tensor, Tensor)], grads: &mut [Option<Tensor>]) -> Result<()> {
        self.backward_to(seeds, grads, None).map(|_| ())
    }

    /// [`Tape::backward`], and the derivative by a [`Tape::leaf`], if it had a part in the seeds.
    ///
    /// # Errors
    /// If the inner backend fails.
    pub fn backward_to(
        &self,
        seeds: &[(&Tensor, Tensor)],
        grads: &mut [Option<Tensor>],
        leaf: Option<&Tensor>,
    ) -> Result<Option<Tensor>> {
        let record = std::mem::take(&mut *self.record());
        let d = record.values.iter().map(|_| None).collect();
        let mut flow = Flow { b: &*self.inner, shapes: record.values, d, grads };
        for (x, d) in seeds {
            let (_, id) = self.value("backward", x)?;
            flow.add(id, d.clone())?;
        }
        for node in record.nodes.into_iter().rev() {
            flow.through(node)?;
        }
        let leaf = leaf.map(|x| self.value("backward", x)).transpose()?;
        Ok(leaf.and_then(|(_, id)| flow.d[id].take()))
    }
}

/// Derivatives by the values still to be walked through, and by the parameters.
struct Flow<'a> {
    b: &'a dyn Grad,
    shapes: Vec<Shape>,
    d: Vec<Option<Tensor>>,
    grads: &'a mut [Option<Tensor>],
}

impl Flow<'_> {
    fn add(&mut self, id: Id, d: Tensor) -> Result<()> {
        let d = d.reshape(self.shapes[id])?;
        self.d[id] = Some(match self.d[id].take() {
            Some(sum) => self.b.add(sum, &d)?,
            None => d,
        });
        Ok(())
    }

    fn grad(&mut self, param: Option<usize>) -> Option<&mut Tensor> {
        self.grads[param?].as_mut()
    }

    fn through(&mut self, Node { op, inputs, output }: Node) -> Result<()> {
        let b = self.b;
        if let Op::Linear { x, projs } = op {
            for (i, p) in projs.iter().enumerate() {
                let Some(dy) = self.d[output + i].take() else { continue };
                if let Some(dw) = self.grad(p.param) {
                    b.linear_dw(&x, &dy, dw)?;
                }
                if let Some(db) = self.grad(p.bias) {
                    b.bias_db(&dy, db)?;
                }
                self.add(inputs[0], b.linear_dx(&dy, &p.weight)?)?;
            }
            return Ok(());
        }
        if let Op::LinearExperts { x, routing, projs } = op {
            for (i, (w, param)) in projs.iter().enumerate() {
                let Some(dy) = self.d[output + i].take() else { continue };
                if let Some(dw) = self.grad(*param) {
                    b.linear_experts_dw(&x, &dy, &routing, dw)?;
                }
                self.add(inputs[0], b.linear_experts_dx(&dy, &routing, w, x.rows())?)?;
            }
            return Ok(());
        }
        let Some(dy) = self.d[output].take() else { return Ok(()) };
        match op {
            Op::Linear { .. } | Op::LinearExperts { .. } => unreachable!("invariant: handled above"),
            Op::Embed { ids, param } => {
                if let Some(d) = self.grad(param) {
                    b.embed_grad(&ids, &dy, d)?;
                }
            }
            Op::RmsNorm { x, weight, param, eps } => {
                let dx = b.rms_norm_grad(&x, &weight, eps, &dy, self.grad(param))?;
                self.add(inputs[0], dx)?;
            }
            Op::Rope { table, heads, first, layout } => {
                self.add(inputs[0], b.rope_grad(&dy, &table, heads, first, layout)?)?;
            }
            Op::Attend { q, k, v, y, spans, spec } => {
                let spans = Spans { spans: &spans, tables: &[], block: 1 };
                let (dq, dk, dv) = b.attend_grad(&q, &k, &v, &y, &dy, &spans, &spec)?;
                self.add(inputs[0], dq)?;
                self.add(inputs[1], dk)?;
                self.add(inputs[2], dv)?;
            }
            Op::SwiGlu { gate, up } => {
                let (dg, du) = b.swiglu_grad(&gate, &up, &dy)?;
                self.add(inputs[0], dg)?;
                self.add(inputs[1], du)?;
            }
            Op::Add => {
                self.add(inputs[0], dy.clone())?;
                self.add(inputs[1], dy)?;
            }
            Op::Route { logits, routing, spec } => {
                self.add(inputs[0], b.route_grad(&logits, &routing, &dy, &spec)?)?;
            }
            Op::Combine { y, routing, plus } => {
                let (d, dw) = b.combine_experts_grad(&y, &routing, &dy)?;
                self.add(inputs[0], d)?;
                self.add(inputs[1], dw)?;
                if plus {
                    self.add(inputs[2], dy)?;
                }
            }
            Op::SliceCols { from, cols } => self.add(inputs[0], b.slice_cols_grad(&dy, from, cols)?)?,
            Op::ConcatCols { split } => {
                self.add(inputs[0], b.slice_cols(&dy, 0, split)?)?;
                self.add(inputs[1], b.slice_cols(&dy, split, dy.cols())?)?;
            }
            Op::SelectRows { rows, of } => self.add(inputs[0], b.select_rows_grad(&dy, &rows, of)?)?,
        }
        Ok(())
    }
}

impl Backend for Tape {
    fn device(&self) -> &'static str {
        DEVICE
    }

    fn precision(&self) -> Precision {
        self.inner.precision()
    }

    fn upload(&self, weight: &Weight) -> Result<Resident> {
        let param = self.param_of(weight);
        let inner = self.inner.upload(weight)?;
        Ok(Resident::new(DEVICE, weight.rows, weight.cols, weight.format, Arc::new(Learned { inner, param })))
    }

    fn upload_conv(&self, _weight: &Weight, _kernel: usize) -> Result<Resident> {
        self.unlearned("upload_conv")
    }

    fn upload_experts(&self, experts: &Experts) -> Result<ResidentExperts> {
        let param = match experts {
            Experts::Stacked { weight, .. } => self.param_of(weight),
            Experts::Each(_) => None,
        };
        let inner = self.inner.upload_experts(experts)?;
        let (n, each) = (inner.experts, inner.each.clone());
        let data = Arc::new(Learned { inner, param });
        Ok(ResidentExperts { experts: n, each: Resident::new(DEVICE, each.rows, each.cols, each.format, data) })
    }

    fn tensor(&self, shape: Shape, data: &[f32]) -> Result<Tensor> {
        Ok(self.constant(self.inner.tensor(shape, data)?))
    }

    fn read(&self, x: &Tensor, out: &mut [f32]) -> Result<()> {
        self.inner.read(&self.open("read", x)?, out)
    }

    fn read_u32(&self, x: &Tensor, out: &mut [u32]) -> Result<()> {
        self.inner.read_u32(&self.open("read_u32", x)?, out)
    }

    fn embed(&self, table: &Resident, ids: &[u32]) -> Result<Tensor> {
        let table = self.learned("embed", table)?;
        let y = self.inner.embed(&table.inner, ids)?;
        Ok(self.note_one(Op::Embed { ids: ids.to_vec(), param: table.param }, vec![], y))
    }

    fn rms_norm(&self, x: &Tensor, weight: &Resident, eps: f32) -> Result<Tensor> {
        let (x, id) = self.value("rms_norm", x)?;
        let w = self.learned("rms_norm", weight)?;
        let y = self.inner.rms_norm(&x, &w.inner, eps)?;
        Ok(self.note_one(Op::RmsNorm { x, weight: w.inner.clone(), param: w.param, eps }, vec![id], y))
    }

    fn linear(&self, x: &Tensor, projs: &[Proj<'_>]) -> Result<Outputs> {
        let op = "linear";
        let (x, id) = self.value(op, x)?;
        let mut inner = Vec::new();
        let mut noted = Vec::new();
        for p in projs {
            let weight = self.learned(op, p.weight)?;
            let bias = p.bias.map(|b| self.learned(op, b)).transpose()?;
            inner.push(Proj { weight: &weight.inner, bias: bias.map(|b| &b.inner) });
            let bias = bias.and_then(|b| b.param);
            noted.push(Projection { weight: weight.inner.clone(), param: weight.param, bias });
        }
        let y = self.inner.linear(&x, &inner)?;
        Ok(self.note(Op::Linear { x, projs: noted }, vec![id], y))
    }

    fn linear_experts(&self, x: &Tensor, routing: &Routing, projs: &[&ResidentExperts]) -> Result<Outputs> {
        let op = "linear_experts";
        let (x, id) = self.value(op, x)?;
        let (routing, _) = self.routing(op, routing)?;
        let mut noted = Vec::new();
        for p in projs {
            let l: &Learned<ResidentExperts> = p.each.data(op, DEVICE)?;
            noted.push((l.inner.clone(), l.param));
        }
        let inner: Vec<&ResidentExperts> = noted.iter().map(|(w, _)| w).collect();
        let y = self.inner.linear_experts(&x, &routing, &inner)?;
        Ok(self.note(Op::LinearExperts { x, routing, projs: noted }, vec![id], y))
    }

    fn rope_table(&self, positions: &[u32], freqs: &RopeFreqs) -> Result<Tensor> {
        Ok(self.constant(self.inner.rope_table(positions, freqs)?))
    }

    fn rope(&self, x: Tensor, table: &Tensor, heads: usize, first: usize, layout: RopeLayout) -> Result<Tensor> {
        let (x, id) = self.value("rope", &x)?;
        let table = self.open("rope", table)?;
        let y = self.inner.rope(x, &table, heads, first, layout)?;
        Ok(self.note_one(Op::Rope { table, heads, first, layout }, vec![id], y))
    }

    fn kv_alloc(&self, _slots: usize, _stream: KvStream, _dtype: DType) -> Result<KvCache> {
        self.refuse("kv_alloc")
    }

    fn kv_write(&self, _cache: &mut KvCache, _x: &Tensor, _slots: &[u32]) -> Result<()> {
        self.refuse("kv_write")
    }

    fn kv_copy(&self, _cache: &mut KvCache, _from: usize, _to: usize, _count: usize) -> Result<()> {
        self.refuse("kv_copy")
    }

    fn attend(&self, q: &Tensor, kv: KvView<'_>, spans: &Spans<'_>, spec: &AttendSpec) -> Result<Tensor> {
        let op = "attend";
        let KvView::Fresh { k, v } = kv else { return self.refuse(op) };
        let ((q, q_id), (k, k_id), (v, v_id)) = (self.value(op, q)?, self.value(op, k)?, self.value(op, v)?);
        let y = self.inner.attend(&q, KvView::Fresh { k: &k, v: &v }, spans, spec)?;
        let noted = Op::Attend { q, k, v, y: y.clone(), spans: spans.spans.to_vec(), spec: *spec };
        Ok(self.note_one(noted, vec![q_id, k_id, v_id], y))
    }

    fn attend_latent(
        &self,
        _q: &Tensor,
        _cache: &KvCache,
        _k: HeadProj<'_>,
        _v: HeadProj<'_>,
        _spans: &Spans<'_>,
        _spec: &LatentSpec,
    ) -> Result<Tensor> {
        self.refuse("attend_latent")
    }

    fn swiglu(&self, gate: Tensor, up: &Tensor) -> Result<Tensor> {
        let ((gate, g_id), (up, u_id)) = (self.value("swiglu", &gate)?, self.value("swiglu", up)?);
        let y = self.inner.swiglu(gate.clone(), &up)?;
        Ok(self.note_one(Op::SwiGlu { gate, up }, vec![g_id, u_id], y))
    }

    fn add(&self, x: Tensor, y: &Tensor) -> Result<Tensor> {
        let ((x, x_id), (y, y_id)) = (self.value("add", &x)?, self.value("add", y)?);
        let sum = self.inner.add(x, &y)?;
        Ok(self.note_one(Op::Add, vec![x_id, y_id], sum))
    }

    fn route(
        &self,
        logits: &Tensor,
        bias: Option<&Resident>,
        spec: &RouteSpec,
        forced: Option<&[u32]>,
    ) -> Result<Routing> {
        let (logits, id) = self.value("route", logits)?;
        let bias = bias.map(|b| self.learned("route", b)).transpose()?;
        let routing = self.inner.route(&logits, bias.map(|b| &b.inner), spec, forced)?;
        let noted = Op::Route { logits, routing: routing.clone(), spec: *spec };
        let weights = self.note_one(noted, vec![id], routing.weights);
        Ok(Routing { experts: self.constant(routing.experts), weights })
    }

    fn combine_experts(&self, y: &Tensor, routing: &Routing, plus: Option<Tensor>) -> Result<Tensor> {
        let op = "combine_experts";
        let (y, y_id) = self.value(op, y)?;
        let (routing, w_id) = self.routing(op, routing)?;
        let plus = plus.map(|p| self.value(op, &p)).transpose()?;
        let mut inputs = vec![y_id, w_id];
        inputs.extend(plus.as_ref().map(|(_, id)| *id));
        let has_plus = plus.is_some();
        let out = self.inner.combine_experts(&y, &routing, plus.map(|(p, _)| p))?;
        Ok(self.note_one(Op::Combine { y, routing, plus: has_plus }, inputs, out))
    }

    fn slice_cols(&self, x: &Tensor, from: usize, to: usize) -> Result<Tensor> {
        let (x, id) = self.value("slice_cols", x)?;
        let y = self.inner.slice_cols(&x, from, to)?;
        Ok(self.note_one(Op::SliceCols { from, cols: x.cols() }, vec![id], y))
    }

    fn concat_cols(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let ((a, a_id), (b, b_id)) = (self.value("concat_cols", a)?, self.value("concat_cols", b)?);
        let y = self.inner.concat_cols(&a, &b)?;
        Ok(self.note_one(Op::ConcatCols { split: a.cols() }, vec![a_id, b_id], y))
    }

    fn select_rows(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        let (x, id) = self.value("select_rows", x)?;
        let y = self.inner.select_rows(&x, rows)?;
        Ok(self.note_one(Op::SelectRows { rows: rows.to_vec(), of: x.rows() }, vec![id], y))
    }

    fn concat_rows(&self, _parts: &[&Tensor]) -> Result<Tensor> {
        self.unlearned("concat_rows")
    }

    fn layer_norm(&self, _x: &Tensor, _weight: &Resident, _bias: &Resident, _eps: f32) -> Result<Tensor> {
        self.unlearned("layer_norm")
    }

    fn gelu(&self, _x: Tensor) -> Result<Tensor> {
        self.unlearned("gelu")
    }

    fn conv2d(&self, _x: &Tensor, _proj: Proj<'_>, _spec: &ConvSpec) -> Result<Tensor> {
        self.unlearned("conv2d")
    }

    fn group_norm(&self, _: &Tensor, _: &Resident, _: &Resident, _: &GroupNormSpec) -> Result<Tensor> {
        self.unlearned("group_norm")
    }
}

impl Tape {
    /// The inner routing, and the number of its weights.
    fn routing(&self, op: &'static str, r: &Routing) -> Result<(Routing, Id)> {
        let (weights, id) = self.value(op, &r.weights)?;
        Ok((Routing { experts: self.open(op, &r.experts)?, weights }, id))
    }
}
