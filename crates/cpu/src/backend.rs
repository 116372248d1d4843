//! The backend: opens tensors, cuts work into tasks, lets kernels do it.
//!
//! How work is cut depends on shapes alone. Work too small to be worth waking a thread (see [`Cpu::grain`]) is one task.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fathom_core::backend::Outputs;
use fathom_core::host::HostArena;
use fathom_core::{
    AttendSpec, Backend, ConvSpec, DType, Error, Experts, GroupNormSpec, HeadProj, KvCache, KvStream, KvView,
    LatentSpec, Precision, Proj, Resident, ResidentExperts, Result, RopeFreqs, RopeLayout, RouteSpec, Routing, Shape,
    Spans, Tensor, Weight, check,
};

use crate::attention::Bands;
use crate::gemm::Products;
use crate::kernels::gemm::Strided;
use crate::kernels::packed::Act;
use crate::kernels::picture::{Gelu, LayerNorm};
use crate::kernels::route::{route_row, route_scratch};
use crate::kernels::rows::{AddScaled, RmsNorm, Rope, SwiGlu};
use crate::kv::{self, CacheMemory, NumbersMut};
use crate::matrix::{Held, Matrix, pairs};
use crate::memory::{self, Memory};
use crate::pack::{self, Layout, Packed};
use crate::product::{After, Order, Part, Rounded};
use crate::scratch::Scratch;
use crate::simd::Isa;
use crate::{DEVICE, Level, Pool};

/// How a [`Cpu`] works.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Threads, the caller's included; `None`: one per physical core that the process may use.
    pub threads: Option<usize>,
    /// Level of instructions; `None`: the best present.
    pub isa: Option<Level>,
    /// Precision.
    pub precision: Precision,
    /// Whether `upload` may rearrange weights for speed and let their source pages go.
    pub repack: bool,
}

impl Default for CpuOptions {
    fn default() -> Self {
        CpuOptions { threads: None, isa: None, precision: Precision::Fast, repack: true }
    }
}

/// The CPU backend.
pub struct Cpu {
    pub(crate) pool: Arc<Pool>,
    pub(crate) level: Level,
    pub(crate) isa: Isa,
    pub(crate) precision: Precision,
    pub(crate) repack: bool,
    pub(crate) arena: Arc<HostArena>,
    pub(crate) scratch: Scratch<f32>,
    /// A packed panel for each thread.
    pub(crate) panels: Scratch<u8>,
    /// Activations of one digit.
    pub(crate) coarse: Mutex<Rounded<1>>,
    /// Activations of two.
    pub(crate) fine: Mutex<Rounded<2>>,
    /// Hidden layers of feed-forward networks, in one digit or two.
    pub(crate) hidden: Mutex<(Vec<Act<1>>, Vec<Act<2>>)>,
    /// What the products of training multiply; `None`: this backend serves.
    pub(crate) training: Option<Products>,
    /// The right factor of a product of training, packed.
    pub(crate) packed: Mutex<Vec<u32>>,
    /// Rows of its left factor.
    pub(crate) tiles: Scratch<u32>,
    /// Inputs of a convolution rounded to bfloat16.
    pub(crate) pixels: Mutex<Vec<[u16; crate::simd::LANES]>>,
    pub(crate) order: Mutex<Order>,
    pub(crate) bands: Mutex<Bands>,
    /// Where packed weights lie.
    memory: Memory,
    /// Bytes that packed weights may still take.
    budget: AtomicUsize,
    /// Bytes of weights that were packed.
    packed_bytes: AtomicUsize,
    /// Bytes of weights that could have been packed but for lack of memory.
    kept_plain: AtomicUsize,
}

pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cpu {
    /// A backend with a pool of its own.
    ///
    /// # Errors
    /// If a wanted level of instructions is not present, or the system refuses threads.
    pub fn new(options: CpuOptions) -> Result<Arc<Cpu>> {
        let threads = options.threads.unwrap_or_else(crate::isa::physical_cores).max(1);
        let pool = Pool::new(threads).map_err(|e| Error::Device {
            device: DEVICE,
            op: "new",
            why: format!("threads: {e}"),
        })?;
        Cpu::with_pool(pool, options)
    }

    /// A backend to train on, which shares a pool: weights stay as they are, in the caller's memory, and products with them run forward
    /// as they run backward. Its sums are added in another order than those of a backend that serves, so results agree up to rounding.
    ///
    /// # Errors
    /// If a wanted level of instructions is not present.
    pub fn training(pool: Arc<Pool>, isa: Option<Level>, products: Products) -> Result<Arc<Cpu>> {
        let options = CpuOptions { threads: None, isa, precision: Precision::Exact, repack: false };
        Cpu::build(pool, options, Some(products))
    }

    /// A backend that shares a pool; `options.threads` is ignored, the pool has its own number.
    ///
    /// # Errors
    /// If a wanted level of instructions is not present.
    pub fn with_pool(pool: Arc<Pool>, options: CpuOptions) -> Result<Arc<Cpu>> {
        Cpu::build(pool, options, None)
    }

    fn build(pool: Arc<Pool>, options: CpuOptions, training: Option<Products>) -> Result<Arc<Cpu>> {
        let (level, isa) = Level::choose(options.isa)?;
        Ok(Arc::new(Cpu {
            level,
            isa,
            precision: options.precision,
            repack: options.repack,
            arena: HostArena::new(DEVICE),
            scratch: Scratch::new(pool.threads()),
            panels: Scratch::new(pool.threads()),
            coarse: Mutex::default(),
            fine: Mutex::default(),
            hidden: Mutex::default(),
            training,
            packed: Mutex::default(),
            tiles: Scratch::new(pool.threads()),
            pixels: Mutex::default(),
            order: Mutex::default(),
            bands: Mutex::default(),
            memory: Memory::default(),
            budget: AtomicUsize::new(memory::available().map_or(usize::MAX, |n| n / 5 * 4)),
            packed_bytes: AtomicUsize::new(0),
            kept_plain: AtomicUsize::new(0),
            pool,
        }))
    }

    /// The level of instructions in use.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The thread pool.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Weights uploaded from now on may take this many bytes when packed. At first: 80 % of the memory that is available when
    /// the backend is made. With 0 a model that memory cannot hold runs from its mapped file.
    pub fn limit_packing(&self, bytes: usize) {
        self.budget.store(bytes, Relaxed);
    }

    /// Bytes of all weights that were packed so far, and of those that stayed as they were for lack of memory: products with
    /// them are slower and otherwise the same.
    pub fn packing(&self) -> (usize, usize) {
        (self.packed_bytes.load(Relaxed), self.kept_plain.load(Relaxed))
    }

    /// Rows per task when each costs about `cost` element operations: all of them if together they take less than waking a
    /// thread does (some microseconds).
    pub(crate) fn grain(rows: usize, cost: usize) -> usize {
        const TASK: usize = 1 << 14;
        if rows * cost < 4 * TASK { rows.max(1) } else { (TASK / cost.max(1)).max(1) }
    }

    /// Whether bfloat16 weights are read in panels in fast precision.
    pub(crate) fn reads_pairs(&self) -> bool {
        self.level != Level::Portable
    }

    /// Takes over matrices of one shape: packed where that is quicker, else as they are.
    fn take(&self, weights: &[Weight]) -> Result<Vec<Matrix>> {
        let first = &weights[0];
        let brain = self.reads_pairs() && weights.iter().all(pairs);
        let layout = Layout::of(first.format).or(brain.then_some(Layout::PAIRS)).filter(|_| {
            // A panel of few rows would be mostly padding.
            let alike = weights.iter().all(|w| w.format == first.format);
            self.repack && self.precision == Precision::Fast && first.rows >= pack::ROWS && alike
        });
        let layout = layout.filter(|l| {
            let need = weights.len() * first.rows.div_ceil(pack::ROWS) * l.panel_bytes(first.cols);
            let took = self.budget.fetch_update(Relaxed, Relaxed, |free| free.checked_sub(need)).is_ok();
            let counter = if took { &self.packed_bytes } else { &self.kept_plain };
            counter.fetch_add(weights.iter().map(Weight::total_bytes).sum(), Relaxed);
            took
        });
        match layout {
            Some(layout) => Ok(Packed::all(&self.pool, self.isa, &self.memory, layout, weights)?
                .into_iter()
                .map(Matrix::Packed)
                .collect()),
            None => Ok(weights.iter().cloned().map(Matrix::Plain).collect()),
        }
    }

    pub(crate) fn held<'a>(&self, op: &'static str, w: &'a Resident) -> Result<&'a Held> {
        w.data(op, DEVICE)
    }

    pub(crate) fn vector<'a>(&self, op: &'static str, w: &'a Resident) -> Result<&'a [f32]> {
        let held = self.held(op, w)?;
        Ok(held.vector.as_deref().expect("invariant: a weight of one row or column is kept as a vector"))
    }

    pub(crate) fn part<'a>(&self, op: &'static str, p: Proj<'a>) -> Result<Part<'a>> {
        let bias = p.bias.map(|b| self.vector(op, b)).transpose()?;
        Ok(Part { each: &self.held(op, p.weight)?.each, rows: p.weight.rows, bias })
    }

    fn project(&self, op: &'static str, after: After, x: &Tensor, projs: &[Proj<'_>]) -> Result<Outputs> {
        check::linear(x, projs)?;
        let xs = self.arena.f32s(op, x)?;
        let mut outs = Outputs::new();
        let mut parts = arrayvec::ArrayVec::<Part<'_>, 4>::new();
        for p in projs {
            outs.push(self.arena.alloc(Shape::matrix(x.rows(), p.weight.rows), DType::F32));
            parts.push(self.part(op, *p)?);
        }
        let (cols, bands, experts) = (x.cols(), &[0, x.rows()], &[0]);
        match self.training {
            Some(products) => {
                let xs = Strided::rows(xs, cols);
                self.trained_products(op, products, xs, cols, bands, experts, &parts, &mut outs)?;
            }
            None => self.products(op, after, xs, cols, bands, experts, &parts, &mut outs)?,
        }
        Ok(outs)
    }

    fn cache_mut<'a>(&self, op: &'static str, cache: &'a mut KvCache) -> Result<NumbersMut<'a>> {
        let found = cache.data.buf.device();
        if found != DEVICE {
            return Err(Error::Foreign { op, expected: DEVICE, found });
        }
        Ok(cache.data.buf.get_mut::<CacheMemory>().expect("invariant: a cache has one owner").numbers_mut())
    }
}

impl Backend for Cpu {
    fn device(&self) -> &'static str {
        DEVICE
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn upload(&self, weight: &Weight) -> Result<Resident> {
        let vector = (weight.rows == 1 || weight.cols == 1).then(|| weight.decode());
        let held = Held::new(self.take(std::slice::from_ref(weight))?, vector);
        Ok(Resident::new(DEVICE, weight.rows, weight.cols, weight.format, Arc::new(held)))
    }

    fn upload_table(&self, table: &Weight) -> Result<Resident> {
        let held = Held::new(vec![Matrix::Plain(table.clone())], None);
        Ok(Resident::new(DEVICE, table.rows, table.cols, table.format, Arc::new(held)))
    }

    fn upload_experts(&self, experts: &Experts) -> Result<ResidentExperts> {
        let (rows, cols) = check::upload_experts(experts)?;
        let weights: Vec<Weight> = (0..experts.len()).map(|e| experts.get(e)).collect();
        let held = Held::new(self.take(&weights)?, None);
        let each = Resident::new(DEVICE, rows, cols, experts.get(0).format, Arc::new(held));
        Ok(ResidentExperts { experts: experts.len(), each })
    }

    fn upload_conv(&self, weight: &Weight, kernel: usize) -> Result<Resident> {
        self.pack_conv(weight, kernel)
    }

    fn tensor(&self, shape: Shape, data: &[f32]) -> Result<Tensor> {
        self.arena.from_f32(shape, data)
    }

    fn read(&self, x: &Tensor, out: &mut [f32]) -> Result<()> {
        check::read(x, out.len())?;
        out.copy_from_slice(self.arena.f32s("read", x)?);
        Ok(())
    }

    fn read_u32(&self, x: &Tensor, out: &mut [u32]) -> Result<()> {
        check::read(x, out.len())?;
        out.copy_from_slice(self.arena.u32s("read_u32", x)?);
        Ok(())
    }

    fn embed(&self, table: &Resident, ids: &[u32]) -> Result<Tensor> {
        let shape = check::embed(table, ids)?;
        let matrix = &self.held("embed", table)?.each[0];
        let mut out = self.arena.alloc(shape, DType::F32);
        let n = Self::grain(ids.len(), 4 * table.cols);
        self.pool.chunks_mut(self.arena.f32s_mut("embed", &mut out)?, n * table.cols, |first, rows| {
            for (row, &id) in rows.chunks_exact_mut(table.cols).zip(&ids[first / table.cols..]) {
                matrix.decode_row(id as usize, row);
            }
        });
        Ok(out)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Resident, eps: f32) -> Result<Tensor> {
        check::rms_norm(x, weight)?;
        let w = self.vector("rms_norm", weight)?;
        let xs = self.arena.f32s("rms_norm", x)?;
        let mut out = self.arena.alloc(x.shape, DType::F32);
        let n = Self::grain(x.rows(), w.len()) * w.len();
        self.pool.chunks_mut(self.arena.f32s_mut("rms_norm", &mut out)?, n, |first, out| {
            self.isa.run(RmsNorm { x: &xs[first..first + out.len()], weight: w, eps, out });
        });
        Ok(out)
    }

    fn linear(&self, x: &Tensor, projs: &[Proj<'_>]) -> Result<Outputs> {
        self.project("linear", After::Attention, x, projs)
    }

    fn linear_steady(&self, x: &Tensor, projs: &[Proj<'_>]) -> Result<Outputs> {
        self.project("linear_steady", After::Steady, x, projs)
    }

    fn logits(&self, x: &Tensor, head: &Resident) -> Result<Tensor> {
        Ok(self.project("logits", After::Little, x, &[Proj { weight: head, bias: None }])?.remove(0))
    }

    fn ffn(&self, x: &Tensor, gate: Proj<'_>, up: Proj<'_>, down: Proj<'_>) -> Result<Tensor> {
        let op = "ffn";
        check::ffn(x, gate, up, down)?;
        let mut out = Outputs::new();
        out.push(self.arena.alloc(Shape::matrix(x.rows(), down.weight.rows), DType::F32));
        let parts = [self.part(op, gate)?, self.part(op, up)?, self.part(op, down)?];
        if self.gated(op, self.arena.f32s(op, x)?, None, parts, x.cols(), &mut out)? {
            return Ok(out.remove(0));
        }
        let mut both = self.project(op, After::Little, x, &[gate, up])?;
        let (up, gate) = (both.pop().expect("invariant: two outputs"), both.pop().expect("invariant: two outputs"));
        let h = self.swiglu(gate, &up)?;
        Ok(self.project(op, After::Little, &h, &[down])?.remove(0))
    }

    fn linear_experts(&self, x: &Tensor, routing: &Routing, projs: &[&ResidentExperts]) -> Result<Outputs> {
        let op = "linear_experts";
        let sharing = check::linear_experts(x, routing, projs)?;
        let experts = self.arena.u32s(op, &routing.experts)?;
        check::below(op, "routing.experts", experts, projs[0].experts)?;
        let mut order = lock(&self.order);
        order.sort(experts, projs[0].experts);
        let sorted = match self.training {
            Some(products) => self.trained_experts(op, products, x, &order, sharing, projs)?,
            None => self.sorted_products(op, &self.gather(op, x, &order, sharing)?, &order, projs)?,
        };
        sorted.iter().map(|y| self.scatter(op, y, &order)).collect()
    }

    fn rope_table(&self, positions: &[u32], freqs: &RopeFreqs) -> Result<Tensor> {
        let dim = freqs.dim();
        let mut table = self.arena.alloc(Shape::matrix(positions.len(), dim), DType::F32);
        if dim > 0 {
            let n = Self::grain(positions.len(), 20 * dim);
            self.pool.chunks_mut(self.arena.f32s_mut("rope_table", &mut table)?, n * dim, |first, rows| {
                for (row, &p) in rows.chunks_exact_mut(dim).zip(&positions[first / dim..]) {
                    freqs.fill(p, row);
                }
            });
        }
        Ok(table)
    }

    fn rope(&self, x: Tensor, table: &Tensor, heads: usize, first: usize, layout: RopeLayout) -> Result<Tensor> {
        let head_dim = check::rope(&x, table, heads, first)?;
        let mut x = self.arena.owned_f32("rope", x)?;
        let (row, dim, n) = (x.cols(), table.cols(), Self::grain(x.rows(), 4 * heads * table.cols()));
        let table = self.arena.f32s("rope", table)?;
        self.pool.chunks_mut(self.arena.f32s_mut("rope", &mut x)?, n * row, |at, x| {
            let rows = at / row..at / row + x.len() / row;
            let table = &table[rows.start * dim..rows.end * dim];
            self.isa.run(Rope { x, table, row, dim, head_dim, first, layout });
        });
        Ok(x)
    }

    fn kv_alloc(&self, slots: usize, stream: KvStream, dtype: DType) -> Result<KvCache> {
        CacheMemory::alloc(slots, stream, dtype)
    }

    fn kv_write(&self, cache: &mut KvCache, x: &Tensor, slots: &[u32]) -> Result<()> {
        check::kv_write(cache, x, slots)?;
        let (stream, x) = (cache.stream, self.arena.f32s("kv_write", x)?);
        match self.cache_mut("kv_write", cache)? {
            NumbersMut::F32(cache) => self.isa.run(kv::Write { stream, x, slots, cache }),
            NumbersMut::F16(cache) => self.isa.run(kv::Write { stream, x, slots, cache }),
            NumbersMut::Q8_0 { q, d } => self.isa.run(kv::WriteRuns { stream, x, slots, q, d }),
        }
        Ok(())
    }

    fn kv_copy(&self, cache: &mut KvCache, from: usize, to: usize, count: usize) -> Result<()> {
        check::kv_copy(cache, from, to, count)?;
        let stream = cache.stream;
        match self.cache_mut("kv_copy", cache)? {
            NumbersMut::F32(v) => kv::copy(stream, v, from, to, count),
            NumbersMut::F16(v) => kv::copy(stream, v, from, to, count),
            NumbersMut::Q8_0 { q, d } => kv::copy_runs(stream, q, d, from, to, count),
        }
        Ok(())
    }

    fn attend(&self, q: &Tensor, kv: KvView<'_>, spans: &Spans<'_>, spec: &AttendSpec) -> Result<Tensor> {
        self.attend_rows(q, kv, spans, spec)
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
        self.attend_latent_rows(q, cache, k, v, spans, spec)
    }

    fn swiglu(&self, gate: Tensor, up: &Tensor) -> Result<Tensor> {
        check::same("swiglu", "up", &gate, up)?;
        let mut gate = self.arena.owned_f32("swiglu", gate)?;
        let up = self.arena.f32s("swiglu", up)?;
        let n = Self::grain(up.len(), 4);
        self.pool.chunks_mut(self.arena.f32s_mut("swiglu", &mut gate)?, n, |first, gate| {
            let up = &up[first..first + gate.len()];
            self.isa.run(SwiGlu { gate, up });
        });
        Ok(gate)
    }

    fn add(&self, x: Tensor, y: &Tensor) -> Result<Tensor> {
        check::same("add", "y", &x, y)?;
        let mut x = self.arena.owned_f32("add", x)?;
        let y = self.arena.f32s("add", y)?;
        let n = Self::grain(y.len(), 1);
        self.pool.chunks_mut(self.arena.f32s_mut("add", &mut x)?, n, |first, x| {
            let y = &y[first..first + x.len()];
            self.isa.run(AddScaled { x, y, factor: 1.0 });
        });
        Ok(x)
    }

    fn route(
        &self,
        logits: &Tensor,
        bias: Option<&Resident>,
        spec: &RouteSpec,
        forced: Option<&[u32]>,
    ) -> Result<Routing> {
        let op = "route";
        let shape = check::route(logits, bias, spec, forced)?;
        let rows = self.arena.f32s(op, logits)?;
        let bias = bias.map(|b| self.vector(op, b)).transpose()?;
        let mut experts = self.arena.alloc(shape, DType::U32);
        let mut weights = self.arena.alloc(shape, DType::F32);
        self.scratch.reserve(route_scratch(spec));
        let scratch = &mut self.scratch.lock(0)[..];
        let e = self.arena.u32s_mut(op, &mut experts)?.chunks_exact_mut(spec.top_k);
        let w = self.arena.f32s_mut(op, &mut weights)?.chunks_exact_mut(spec.top_k);
        for (t, ((row, e), w)) in rows.chunks_exact(spec.experts).zip(e).zip(w).enumerate() {
            let forced = forced.map(|f| &f[t * spec.top_k..(t + 1) * spec.top_k]);
            route_row(row, bias, spec, forced, scratch, e, w);
        }
        Ok(Routing { experts, weights })
    }

    fn combine_experts(&self, y: &Tensor, routing: &Routing, plus: Option<Tensor>) -> Result<Tensor> {
        let op = "combine_experts";
        check::combine_experts(y, routing, plus.as_ref())?;
        self.combine(op, y, |slot| slot, &routing.weights, plus)
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
        // Rows stay sorted by expert from the first projection to the last.
        let op = "moe";
        let sharing = check::moe(x, routing, gate, up, down)?;
        let experts = self.arena.u32s(op, &routing.experts)?;
        check::below(op, "routing.experts", experts, gate.experts)?;
        let mut order = lock(&self.order);
        order.sort(experts, gate.experts);
        let mut out = Outputs::new();
        out.push(self.arena.alloc(Shape::matrix(experts.len(), down.each.rows), DType::F32));
        let (xs, sorted) = (self.arena.f32s(op, x)?, Some((&*order, sharing)));
        let [g, u, d] = [gate, up, down].map(|p| self.part(op, Proj { weight: &p.each, bias: None }));
        if !self.gated(op, xs, sorted, [g?, u?, d?], x.cols(), &mut out)? {
            let mut both = self.sorted_products(op, &self.gather(op, x, &order, sharing)?, &order, &[gate, up])?;
            let (up, gate) = (both.pop().expect("invariant: two outputs"), both.pop().expect("invariant: two outputs"));
            out = self.sorted_products(op, &self.swiglu(gate, &up)?, &order, &[down])?;
        }
        check::combine_experts(&out[0], routing, plus.as_ref())?;
        self.combine(op, &out[0], |slot| order.places[slot], &routing.weights, plus)
    }

    fn slice_cols(&self, x: &Tensor, from: usize, to: usize) -> Result<Tensor> {
        let shape = check::slice_cols(x, from, to)?;
        let xs = self.arena.f32s("slice_cols", x)?;
        let mut out = self.arena.alloc(shape, DType::F32);
        let o = self.arena.f32s_mut("slice_cols", &mut out)?;
        for (o, x) in o.chunks_exact_mut(to - from).zip(xs.chunks_exact(x.cols())) {
            o.copy_from_slice(&x[from..to]);
        }
        Ok(out)
    }

    fn concat_cols(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let shape = check::concat_cols(a, b)?;
        let (xs, ys) = (self.arena.f32s("concat_cols", a)?, self.arena.f32s("concat_cols", b)?);
        let mut out = self.arena.alloc(shape, DType::F32);
        let o = self.arena.f32s_mut("concat_cols", &mut out)?;
        for ((o, x), y) in
            o.chunks_exact_mut(shape.cols()).zip(xs.chunks_exact(a.cols())).zip(ys.chunks_exact(b.cols()))
        {
            o[..a.cols()].copy_from_slice(x);
            o[a.cols()..].copy_from_slice(y);
        }
        Ok(out)
    }

    fn select_rows(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        let shape = check::select_rows(x, rows)?;
        let (xs, n) = (self.arena.f32s("select_rows", x)?, x.cols());
        let mut out = self.arena.alloc(shape, DType::F32);
        let o = self.arena.f32s_mut("select_rows", &mut out)?;
        for (o, &r) in o.chunks_exact_mut(n).zip(rows) {
            o.copy_from_slice(&xs[r as usize * n..(r as usize + 1) * n]);
        }
        Ok(out)
    }

    fn concat_rows(&self, parts: &[&Tensor]) -> Result<Tensor> {
        let op = "concat_rows";
        let mut out = self.arena.alloc(check::concat_rows(parts)?, DType::F32);
        let mut rest = self.arena.f32s_mut(op, &mut out)?;
        for p in parts {
            let (to, after) = rest.split_at_mut(p.shape.numel());
            to.copy_from_slice(self.arena.f32s(op, p)?);
            rest = after;
        }
        Ok(out)
    }

    fn layer_norm(&self, x: &Tensor, weight: &Resident, bias: &Resident, eps: f32) -> Result<Tensor> {
        let op = "layer_norm";
        check::layer_norm(x, weight, bias)?;
        let (xs, weight, bias) = (self.arena.f32s(op, x)?, self.vector(op, weight)?, self.vector(op, bias)?);
        let mut out = self.arena.alloc(x.shape, DType::F32);
        let n = Self::grain(x.rows(), 2 * weight.len()) * weight.len();
        self.pool.chunks_mut(self.arena.f32s_mut(op, &mut out)?, n, |first, out| {
            self.isa.run(LayerNorm { x: &xs[first..first + out.len()], weight, bias, eps, out });
        });
        Ok(out)
    }

    fn gelu(&self, x: Tensor) -> Result<Tensor> {
        let mut x = self.arena.owned_f32("gelu", x)?;
        let n = Self::grain(x.shape.numel(), 4);
        self.pool.chunks_mut(self.arena.f32s_mut("gelu", &mut x)?, n, |_, x| self.isa.run(Gelu { x }));
        Ok(x)
    }

    fn conv2d(&self, x: &Tensor, proj: Proj<'_>, spec: &ConvSpec) -> Result<Tensor> {
        self.convolve(x, proj, spec)
    }

    fn group_norm(&self, x: &Tensor, weight: &Resident, bias: &Resident, spec: &GroupNormSpec) -> Result<Tensor> {
        self.normalise_groups(x, weight, bias, spec)
    }
}
