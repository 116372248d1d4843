//! What each operation demands of its arguments, checked in one place for every backend.
//!
//! One function per operation that can be called wrongly; each names the operation and the argument in its error.
//! Where an operation's output shape is not obvious from its arguments, the function returns it.

use crate::{
    AttendSpec, ConvSpec, DType, Error, Experts, GroupNormSpec, HeadProj, KvCache, KvStream, KvView, LatentSpec,
    Outputs, Proj, Resident, ResidentExperts, Result, RouteSpec, Routing, Shape, Spans, Tensor, Weight,
};

/// Checks a shape condition of a tensor argument.
fn that(ok: bool, op: &'static str, arg: &'static str, found: Shape, expected: impl FnOnce() -> String) -> Result<()> {
    Error::check_shape(ok, op, arg, found, expected)
}

fn of(w: &Resident) -> Shape {
    Shape::matrix(w.rows, w.cols)
}

/// `x` is `cols` wide.
pub fn wide(op: &'static str, arg: &'static str, x: &Tensor, cols: usize) -> Result<()> {
    that(x.cols() == cols, op, arg, x.shape, || format!("[rows, {cols}]"))
}

/// `x` is `[rows, cols]`.
pub fn sized(op: &'static str, arg: &'static str, x: &Tensor, rows: usize, cols: usize) -> Result<()> {
    that(x.rows() == rows && x.cols() == cols, op, arg, x.shape, || format!("[{rows}, {cols}]"))
}

/// `ids` are rows of `table`.
pub fn embed(table: &Resident, ids: &[u32]) -> Result<Shape> {
    below("embed", "ids", ids, table.rows)?;
    Ok(Shape::matrix(ids.len(), table.cols))
}

/// Every index is below `limit`.
pub fn below(op: &'static str, arg: &'static str, ids: &[u32], limit: usize) -> Result<()> {
    match ids.iter().find(|&&i| i as usize >= limit) {
        None => Ok(()),
        Some(&i) => that(false, op, arg, Shape::new(&[ids.len()]), || format!("indices below {limit}, not {i}")),
    }
}

/// A vector weight as long as `x` is wide.
pub fn rms_norm(x: &Tensor, weight: &Resident) -> Result<()> {
    that(weight.rows == 1 && weight.cols == x.cols(), "rms_norm", "weight", of(weight), || format!("[1, {}]", x.cols()))
}

/// One to four projections of vectors as wide as `x`, with biases as long as their outputs.
pub fn linear(x: &Tensor, projs: &[Proj<'_>]) -> Result<()> {
    count("linear", projs.len())?;
    projs.iter().try_for_each(|p| projection("linear", p, x.cols()))
}

fn projection(op: &'static str, p: &Proj<'_>, cols: usize) -> Result<()> {
    that(p.weight.cols == cols, op, "weight", of(p.weight), || format!("[out, {cols}]"))?;
    match p.bias {
        Some(b) => that(b.rows * b.cols == p.weight.rows, op, "bias", of(b), || format!("[1, {}]", p.weight.rows)),
        None => Ok(()),
    }
}

/// Gate and up read `x` and are alike; down reads what they give.
pub fn ffn(x: &Tensor, gate: Proj<'_>, up: Proj<'_>, down: Proj<'_>) -> Result<()> {
    [gate, up].iter().try_for_each(|p| projection("ffn", p, x.cols()))?;
    let hidden = gate.weight.rows;
    that(up.weight.rows == hidden, "ffn", "up", of(up.weight), || format!("[{hidden}, {}]", x.cols()))?;
    projection("ffn", &down, hidden)
}

fn count(op: &'static str, n: usize) -> Result<()> {
    let most = Outputs::new().capacity();
    that((1..=most).contains(&n), op, "projs", Shape::new(&[n]), || format!("1 to {most} projections"))
}

/// Both tensors of a routing are `[tokens, top_k]`. Returns these two.
fn routing(op: &'static str, routing: &Routing) -> Result<(usize, usize)> {
    let (e, w) = (&routing.experts, &routing.weights);
    that(e.shape == w.shape, op, "routing", w.shape, || format!("{}", e.shape))?;
    Ok((e.rows(), e.cols()))
}

/// `x` is `[tokens, in]` or `[tokens × top_k, in]`. Returns how many slots share a row of `x`: `top_k` or 1.
pub fn linear_experts(x: &Tensor, r: &Routing, projs: &[&ResidentExperts]) -> Result<usize> {
    let op = "linear_experts";
    count(op, projs.len())?;
    let (tokens, top_k) = routing(op, r)?;
    let (rows, cols) = (x.rows(), x.cols());
    that(rows == tokens || rows == tokens * top_k, op, "x", x.shape, || {
        format!("[{tokens} or {tokens} × {top_k}, in]")
    })?;
    for p in projs {
        that(p.each.cols == cols, op, "projs", of(&p.each), || format!("[out, {cols}]"))?;
        that(p.experts == projs[0].experts, op, "projs", Shape::new(&[p.experts]), || {
            format!("{} experts, like the first", projs[0].experts)
        })?;
    }
    Ok(if rows == tokens { top_k } else { 1 })
}

/// As [`linear_experts`] for gate and up, which are alike; down reads what they give.
pub fn moe(
    x: &Tensor,
    r: &Routing,
    gate: &ResidentExperts,
    up: &ResidentExperts,
    down: &ResidentExperts,
) -> Result<usize> {
    let sharing = linear_experts(x, r, &[gate, up])?;
    let hidden = gate.each.rows;
    that(up.each.rows == hidden, "moe", "up", of(&up.each), || format!("[{hidden}, {}]", x.cols()))?;
    that(down.each.cols == hidden, "moe", "down", of(&down.each), || format!("[out, {hidden}]"))?;
    let found = Shape::new(&[down.experts]);
    that(down.experts == gate.experts, "moe", "down", found, || format!("{} experts", gate.experts))?;
    Ok(sharing)
}

/// All experts of a projection have one shape. Returns it.
pub fn upload_experts(experts: &Experts) -> Result<(usize, usize)> {
    let op = "upload_experts";
    that(!experts.is_empty(), op, "experts", Shape::new(&[0]), || "at least one expert".into())?;
    match experts {
        Experts::Stacked { weight, experts } => {
            that(weight.rows.is_multiple_of(*experts), op, "weight", Shape::matrix(weight.rows, weight.cols), || {
                format!("[{experts} × rows, cols]")
            })?;
            Ok((weight.rows / experts, weight.cols))
        }
        Experts::Each(all) => {
            let (rows, cols) = (all[0].rows, all[0].cols);
            for w in all {
                that(w.rows == rows && w.cols == cols, op, "experts", Shape::matrix(w.rows, w.cols), || {
                    format!("[{rows}, {cols}], like the first")
                })?;
            }
            Ok((rows, cols))
        }
    }
}

/// A row of `table` for every row of `x`, and heads wide enough for the rotation. Returns the head width.
pub fn rope(x: &Tensor, table: &Tensor, heads: usize, first: usize) -> Result<usize> {
    let op = "rope";
    that(heads > 0 && x.cols().is_multiple_of(heads), op, "x", x.shape, || format!("[tokens, {heads} × head_dim]"))?;
    let head_dim = x.cols() / heads;
    that(
        table.rows() == x.rows() && table.cols().is_multiple_of(2) && first + table.cols() <= head_dim,
        op,
        "table",
        table.shape,
        || format!("[{}, an even number ≤ {head_dim} − {first}]", x.rows()),
    )?;
    Ok(head_dim)
}

fn stream(op: &'static str, arg: &'static str, cache: &KvCache, expected: KvStream) -> Result<()> {
    that(cache.stream == expected, op, arg, cache.data.shape, || {
        format!("a cache of {expected:?}, not {:?}", cache.stream)
    })
}

/// Caches hold numbers as they are or in q8_0.
pub fn kv_alloc(dtype: DType) -> Result<()> {
    match dtype {
        DType::F32 | DType::F16 | DType::Q8_0 => Ok(()),
        DType::U32 => Err(Error::Type { op: "kv_alloc", expected: "f32, f16 or q8_0", found: dtype.name() }),
    }
}

/// `x` has the cache's width and a slot per row.
pub fn kv_write(cache: &KvCache, x: &Tensor, slots: &[u32]) -> Result<()> {
    let op = "kv_write";
    that(x.cols() == cache.width() && x.rows() == slots.len(), op, "x", x.shape, || {
        format!("[{}, {}]", slots.len(), cache.width())
    })?;
    below(op, "slots", slots, cache.slots())
}

/// Both ranges lie in the cache.
pub fn kv_copy(cache: &KvCache, from: usize, to: usize, count: usize) -> Result<()> {
    let end = from.max(to).checked_add(count);
    that(end.is_some_and(|e| e <= cache.slots()), "kv_copy", "cache", cache.data.shape, || {
        format!("slots {from}..+{count} and {to}..+{count}")
    })
}

/// Spans cover `rows` rows in order; block tables reach far enough and name slots below `slots` (`None`: no
/// cache, so every span starts at 0).
pub fn spans(op: &'static str, spans: &Spans<'_>, rows: usize, slots: Option<usize>) -> Result<()> {
    let mut next = 0;
    let arg = "spans";
    for s in spans.spans {
        let found = Shape::new(&[s.row, s.rows, s.start]);
        that(s.row == next, op, arg, found, || format!("a span that begins at row {next}"))?;
        next += s.rows;
        match slots {
            None => that(s.start == 0, op, arg, found, || "spans that start at position 0".into())?,
            Some(slots) => {
                let blocks = (s.start + s.rows).div_ceil(spans.block.max(1));
                let table = spans.tables.get(s.table..s.table + blocks);
                that(spans.block > 0 && table.is_some(), op, arg, found, || format!("a table of {blocks} blocks"))?;
                below(op, "spans.tables", table.unwrap_or_default(), slots.div_ceil(spans.block))?;
            }
        }
    }
    that(next == rows, op, arg, Shape::new(&[next]), || format!("spans that cover {rows} rows"))
}

/// Widths of queries, keys and values agree with `spec`, and spans with the batch. Returns the output's shape.
pub fn attend(q: &Tensor, kv: KvView<'_>, sp: &Spans<'_>, spec: &AttendSpec) -> Result<Shape> {
    let op = "attend";
    let (heads, groups) = (spec.heads, spec.kv_heads);
    that(groups > 0 && heads.is_multiple_of(groups), op, "spec", Shape::new(&[heads, groups]), || {
        "heads divided by kv_heads".into()
    })?;
    that(q.cols() == heads * spec.head_dim, op, "q", q.shape, || format!("[tokens, {heads} × {}]", spec.head_dim))?;
    let (k, v, slots) = match kv {
        KvView::Fresh { k, v } => {
            that(k.rows() == q.rows(), op, "k", k.shape, || format!("{} rows", q.rows()))?;
            (k, v, None)
        }
        KvView::Paged { k, v } => {
            stream(op, "k", k, spec.keys())?;
            stream(op, "v", v, spec.values())?;
            (&k.data, &v.data, Some(k.slots()))
        }
    };
    that(k.cols() == groups * spec.head_dim, op, "k", k.shape, || format!("[rows, {groups} × {}]", spec.head_dim))?;
    that(v.cols() == groups * spec.v_dim && v.rows() == k.rows(), op, "v", v.shape, || {
        format!("[{}, {groups} × {}]", k.rows(), spec.v_dim)
    })?;
    spans(op, sp, q.rows(), slots)?;
    Ok(Shape::matrix(q.rows(), heads * spec.v_dim))
}

/// Widths of queries, cache and projections agree with `spec`. Returns the output's shape.
pub fn attend_latent(
    q: &Tensor,
    cache: &KvCache,
    k: HeadProj<'_>,
    v: HeadProj<'_>,
    sp: &Spans<'_>,
    spec: &LatentSpec,
) -> Result<Shape> {
    let op = "attend_latent";
    let width = spec.nope + spec.rope;
    that(q.cols() == spec.heads * width, op, "q", q.shape, || format!("[tokens, {} × {width}]", spec.heads))?;
    stream(op, "cache", cache, spec.latents())?;
    for (arg, p, features) in [("k", k, spec.nope), ("v", v, spec.v_dim)] {
        let (rows, cols) = if p.transposed { (spec.rank, features) } else { (features, spec.rank) };
        that(p.head_rows == rows && p.weight.cols == cols, op, arg, Shape::matrix(p.head_rows, p.weight.cols), || {
            format!("[{rows}, {cols}] per head")
        })?;
        let end = p.first_row + spec.heads.saturating_sub(1) * p.head_stride + p.head_rows;
        that(end <= p.weight.rows, op, arg, of(p.weight), || format!("at least {end} rows"))?;
    }
    spans(op, sp, q.rows(), Some(cache.slots()))?;
    Ok(Shape::matrix(q.rows(), spec.heads * spec.v_dim))
}

/// Two tensors of one shape.
pub fn same(op: &'static str, arg: &'static str, x: &Tensor, y: &Tensor) -> Result<()> {
    that(x.shape == y.shape, op, arg, y.shape, || format!("{}", x.shape))
}

/// Logits, bias and forced choice agree with `spec`, and `spec` with itself. Returns the output's shape.
pub fn route(logits: &Tensor, bias: Option<&Resident>, spec: &RouteSpec, forced: Option<&[u32]>) -> Result<Shape> {
    let op = "route";
    that(logits.cols() == spec.experts, op, "logits", logits.shape, || format!("[tokens, {}]", spec.experts))?;
    if let Some(b) = bias {
        that(b.rows * b.cols == spec.experts, op, "bias", of(b), || format!("[1, {}]", spec.experts))?;
    }
    let found = Shape::new(&[spec.experts, spec.groups, spec.groups_kept, spec.top_k]);
    that(spec.groups > 0 && spec.experts.is_multiple_of(spec.groups), op, "spec", found, || {
        "experts divided by groups".into()
    })?;
    let size = spec.experts / spec.groups;
    that(
        (1..=spec.groups).contains(&spec.groups_kept)
            && (1..=spec.groups_kept * size).contains(&spec.top_k)
            && (spec.groups == 1 || (1..=size).contains(&spec.group_top)),
        op,
        "spec",
        found,
        || "1 ≤ groups_kept ≤ groups, 1 ≤ group_top ≤ experts per group, 1 ≤ top_k ≤ experts in kept groups".into(),
    )?;
    let shape = Shape::matrix(logits.rows(), spec.top_k);
    if let Some(f) = forced {
        that(f.len() == shape.numel(), op, "forced", Shape::new(&[f.len()]), || format!("{shape}"))?;
        below(op, "forced", f, spec.experts)?;
    }
    Ok(shape)
}

/// A row of `y` for every slot, a row of `plus` for every token. Returns the output's shape.
pub fn combine_experts(y: &Tensor, r: &Routing, plus: Option<&Tensor>) -> Result<Shape> {
    let op = "combine_experts";
    let (tokens, top_k) = routing(op, r)?;
    that(y.rows() == tokens * top_k, op, "y", y.shape, || format!("[{tokens} × {top_k}, dim]"))?;
    let shape = Shape::matrix(tokens, y.cols());
    match plus {
        Some(p) if (p.rows(), p.cols()) != (tokens, y.cols()) => {
            that(false, op, "plus", p.shape, || format!("{shape}"))
        }
        _ => Ok(()),
    }?;
    Ok(shape)
}

/// `from..to` are columns of `x`.
pub fn slice_cols(x: &Tensor, from: usize, to: usize) -> Result<Shape> {
    that(from < to && to <= x.cols(), "slice_cols", "x", x.shape, || format!("a width that holds {from}..{to}"))?;
    Ok(Shape::matrix(x.rows(), to - from))
}

/// As many rows in `b` as in `a`.
pub fn concat_cols(a: &Tensor, b: &Tensor) -> Result<Shape> {
    that(a.rows() == b.rows(), "concat_cols", "b", b.shape, || format!("[{}, any]", a.rows()))?;
    Ok(Shape::matrix(a.rows(), a.cols() + b.cols()))
}

/// `rows` are rows of `x`.
pub fn select_rows(x: &Tensor, rows: &[u32]) -> Result<Shape> {
    below("select_rows", "rows", rows, x.rows())?;
    Ok(Shape::matrix(rows.len(), x.cols()))
}

/// One or more tensors of one width. Returns the output's shape.
pub fn concat_rows(parts: &[&Tensor]) -> Result<Shape> {
    let op = "concat_rows";
    that(!parts.is_empty(), op, "parts", Shape::new(&[0]), || "at least one tensor".into())?;
    let cols = parts[0].cols();
    for p in parts {
        that(p.cols() == cols, op, "parts", p.shape, || format!("[any, {cols}], like the first"))?;
    }
    Ok(Shape::matrix(parts.iter().map(|p| p.rows()).sum(), cols))
}

/// Vector weights as long as `x` is wide.
pub fn layer_norm(x: &Tensor, weight: &Resident, bias: &Resident) -> Result<()> {
    vectors("layer_norm", x.cols(), weight, bias)
}

fn vectors(op: &'static str, n: usize, weight: &Resident, bias: &Resident) -> Result<()> {
    that(weight.rows * weight.cols == n, op, "weight", of(weight), || format!("[1, {n}]"))?;
    that(bias.rows * bias.cols == n, op, "bias", of(bias), || format!("[1, {n}]"))
}

/// Pictures `[pictures, height, width, channels]`. Returns the four.
fn pictures(op: &'static str, x: &Tensor) -> Result<[usize; 4]> {
    let dims: Option<[usize; 4]> = x.shape.dims().try_into().ok();
    that(dims.is_some(), op, "x", x.shape, || "[pictures, height, width, channels]".into())?;
    Ok(dims.unwrap_or_default())
}

/// Kernels that are whole squares of channels.
pub fn upload_conv(weight: &Weight, kernel: usize) -> Result<()> {
    let square = kernel * kernel;
    that(
        square > 0 && weight.cols.is_multiple_of(square),
        "upload_conv",
        "weight",
        Shape::matrix(weight.rows, weight.cols),
        || format!("[out, in × {kernel} × {kernel}]"),
    )
}

/// Kernels for the channels of `x`, a picture at least as large as they. Returns the output's shape.
pub fn conv2d(x: &Tensor, p: &Proj<'_>, spec: &ConvSpec) -> Result<Shape> {
    let op = "conv2d";
    let [n, height, width, channels] = pictures(op, x)?;
    let found = Shape::new(&[spec.kernel, spec.stride, spec.magnify]);
    that(spec.kernel > 0 && spec.stride > 0 && spec.magnify > 0, op, "spec", found, || "positive numbers".into())?;
    let cols = channels * spec.kernel * spec.kernel;
    that(p.weight.cols == cols, op, "weight", of(p.weight), || {
        format!("[out, {channels} × {} × {}]", spec.kernel, spec.kernel)
    })?;
    if let Some(b) = p.bias {
        that(b.rows * b.cols == p.weight.rows, op, "bias", of(b), || format!("[1, {}]", p.weight.rows))?;
    }
    let (h, w) = (spec.out(height), spec.out(width));
    that(h > 0 && w > 0, op, "x", x.shape, || format!("pictures that hold a kernel of side {}", spec.kernel))?;
    Ok(Shape::new(&[n, h, w, p.weight.rows]))
}

/// Groups that divide the channels, and vector weights as long as there are channels. Returns `[pictures, pixels,
/// channels]`.
pub fn group_norm(x: &Tensor, weight: &Resident, bias: &Resident, spec: &GroupNormSpec) -> Result<[usize; 3]> {
    let op = "group_norm";
    let [n, height, width, channels] = pictures(op, x)?;
    that(spec.groups > 0 && channels.is_multiple_of(spec.groups), op, "spec", Shape::new(&[spec.groups]), || {
        format!("a divisor of {channels} channels")
    })?;
    vectors(op, channels, weight, bias)?;
    Ok([n, height * width, channels])
}

/// As many elements in the copy's target as in `x`.
pub fn read(x: &Tensor, out: usize) -> Result<()> {
    that(x.shape.numel() == out, "read", "out", Shape::new(&[out]), || format!("{} elements", x.shape.numel()))
}
