//! The reference backend against `testdata/ops/golden.json`: values from numpy, by other formulas (see the script
//! beside it).

use fathom_core::reference::Reference;
use fathom_core::{
    AttendSpec, Backend, DType, Experts, HeadProj, KvCache, KvStream, KvView, LatentForm, LatentSpec, Mask, Proj,
    RopeFreqs, RopeLayout, RouteSpec, Score, Shape, Span, Spans, Tensor, Weight,
};
use serde_json::Value;

struct Case(Value);

impl Case {
    fn f32s(&self, key: &str) -> Vec<f32> {
        self.0[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
    }
    fn u32s(&self, key: &str) -> Vec<u32> {
        self.0[key].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
    }
    fn size(&self, key: &str) -> usize {
        self.0[key].as_u64().unwrap() as usize
    }
    fn number(&self, key: &str) -> f32 {
        self.0[key].as_f64().unwrap() as f32
    }
    fn word(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap()
    }
    /// A matrix of `rows` rows.
    fn tensor(&self, b: &Reference, key: &str, rows: usize) -> Tensor {
        let data = self.f32s(key);
        b.tensor(Shape::matrix(rows, data.len() / rows), &data).unwrap()
    }
    fn weight(&self, key: &str, rows: usize) -> Weight {
        let data = self.f32s(key);
        Weight::from_f32(rows, data.len() / rows, &data)
    }

    /// The result is the golden one, rounded once.
    fn expect(&self, b: &Reference, y: &Tensor) {
        self.near(b, y, 1e-9);
    }

    /// The result is the golden one within half a unit of the last place and `slack`.
    fn near(&self, b: &Reference, y: &Tensor, slack: f32) {
        let mut found = vec![0.0; y.shape.numel()];
        b.read(y, &mut found).unwrap();
        let golden = self.f32s("out");
        assert_eq!(found.len(), golden.len(), "{}", self.0["op"]);
        for (i, (f, g)) in found.iter().zip(&golden).enumerate() {
            assert!((f - g).abs() <= 1.2e-7 * g.abs() + slack, "{} element {i}: {f} instead of {g}", self.0["op"]);
        }
    }

    /// Spans over sequences of `start + rows` positions each, with cache blocks of 2 in reversed order.
    fn paged(&self) -> (Vec<Span>, Vec<u32>, Vec<usize>) {
        let (mut spans, mut tables, mut ends, mut row) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for s in self.0["spans"].as_array().unwrap() {
            let (start, rows) = (s["start"].as_u64().unwrap() as usize, s["rows"].as_u64().unwrap() as usize);
            spans.push(Span { row, rows, start, table: tables.len(), form: LatentForm::Plain });
            let first = tables.len() as u32;
            tables.extend((first..first + (start + rows).div_ceil(2) as u32).rev());
            ends.push(start + rows);
            row += rows;
        }
        (spans, tables, ends)
    }

    /// A cache that holds `key`, the rows of all sequences one below the other.
    fn cache(&self, b: &Reference, key: &str, stream: KvStream, spans: &Spans<'_>, ends: &[usize]) -> KvCache {
        let x = self.tensor(b, key, ends.iter().sum());
        let mut cache = b.kv_alloc(spans.tables.len() * spans.block, stream, DType::F32).unwrap();
        let slots: Vec<u32> =
            spans.spans.iter().zip(ends).flat_map(|(s, &end)| (0..end).map(|p| spans.slot(s, p) as u32)).collect();
        b.kv_write(&mut cache, &x, &slots).unwrap();
        cache
    }
}

fn check(b: &Reference, c: &Case) {
    match c.word("op") {
        "rms_norm" => {
            let w = b.upload(&c.weight("weight", 1)).unwrap();
            c.expect(b, &b.rms_norm(&c.tensor(b, "x", c.size("rows")), &w, c.number("eps")).unwrap());
        }
        "linear" => {
            let bias = c.weight("bias", 1);
            let (w, bias) = (b.upload(&c.weight("weight", bias.cols)).unwrap(), b.upload(&bias).unwrap());
            let x = c.tensor(b, "x", c.size("rows"));
            c.expect(b, &b.linear(&x, &[Proj { weight: &w, bias: Some(&bias) }]).unwrap()[0]);
        }
        "swiglu" => {
            let (gate, up) = (c.tensor(b, "gate", c.size("rows")), c.tensor(b, "up", c.size("rows")));
            c.expect(b, &b.swiglu(gate, &up).unwrap());
        }
        "rope" => {
            let freqs = RopeFreqs { inv_freq: c.f32s("inv_freq"), factor: c.number("factor") };
            let positions = c.u32s("positions");
            let table = b.rope_table(&positions, &freqs).unwrap();
            let layout = match c.word("layout") {
                "halves" => RopeLayout::Halves,
                _ => RopeLayout::Interleaved,
            };
            let x = c.tensor(b, "x", positions.len());
            // The table's cos and sin are f32: one rounding more than the bound counts.
            c.near(b, &b.rope(x, &table, c.size("heads"), c.size("first"), layout).unwrap(), 4e-7);
        }
        "attend" => {
            let (spans, tables, ends) = c.paged();
            let rows = spans.iter().map(|s| s.rows).sum();
            let spans = Spans { spans: &spans, tables: &tables, block: 2 };
            let spec = AttendSpec {
                heads: c.size("heads"),
                kv_heads: c.size("kv_heads"),
                head_dim: c.size("head_dim"),
                v_dim: c.size("v_dim"),
                scale: c.number("scale"),
                mask: if c.word("mask") == "full" { Mask::Full } else { Mask::Causal },
            };
            let (k, v) = (c.cache(b, "k", spec.keys(), &spans, &ends), c.cache(b, "v", spec.values(), &spans, &ends));
            c.expect(b, &b.attend(&c.tensor(b, "q", rows), KvView::Paged { k: &k, v: &v }, &spans, &spec).unwrap());
        }
        "attend_latent" => attend_latent(b, c),
        "route" => route(b, c),
        "moe" => {
            let (rows, n, top_k, hidden) = (c.size("rows"), c.size("experts"), c.size("top_k"), c.size("hidden"));
            let x = c.tensor(b, "x", rows);
            let stacked = |key: &str, each: usize| {
                b.upload_experts(&Experts::Stacked { weight: c.weight(key, n * each), experts: n }).unwrap()
            };
            let (gate, up, down) = (stacked("gate", hidden), stacked("up", hidden), stacked("down", x.cols()));
            let spec = RouteSpec {
                experts: n,
                top_k,
                score: Score::Softmax,
                groups: 1,
                groups_kept: 1,
                group_top: 1,
                normalise: false,
                scale: 1.0,
            };
            let logits = c.tensor(b, "logits", rows);
            let routing = b.route(&logits, None, &spec, Some(&c.u32s("chosen"))).unwrap();
            let plus = c.tensor(b, "plus", rows);
            // Four roundings on the way.
            c.near(b, &b.moe(&x, &routing, &gate, &up, &down, Some(plus)).unwrap(), 2e-6);
        }
        other => panic!("no test for `{other}`"),
    }
}

fn attend_latent(b: &Reference, c: &Case) {
    let spec = LatentSpec {
        heads: c.size("heads"),
        rank: c.size("rank"),
        nope: c.size("nope"),
        rope: c.size("rope"),
        v_dim: c.size("v_dim"),
        scale: c.number("scale"),
    };
    let (mut spans, tables, ends) = c.paged();
    let rows = spans.iter().map(|s| s.rows).sum();
    let per_head = spec.nope + spec.v_dim;
    let kv_b = c.weight("kv_b", spec.heads * per_head);
    // The same keys as a file of the split kind holds them: [heads × rank, nope].
    let values = kv_b.decode();
    let mut turned = Vec::new();
    for h in 0..spec.heads {
        for r in 0..spec.rank {
            turned.extend((0..spec.nope).map(|j| values[(h * per_head + j) * spec.rank + r]));
        }
    }
    let turned = b.upload(&Weight::from_f32(spec.heads * spec.rank, spec.nope, &turned)).unwrap();
    let kv_b = b.upload(&kv_b).unwrap();
    let part = |first_row, head_rows| HeadProj {
        weight: &kv_b,
        first_row,
        head_stride: per_head,
        head_rows,
        transposed: false,
    };
    let split =
        HeadProj { weight: &turned, first_row: 0, head_stride: spec.rank, head_rows: spec.rank, transposed: true };
    for form in [LatentForm::Plain, LatentForm::Absorbed] {
        spans.iter_mut().for_each(|s| s.form = form);
        let view = Spans { spans: &spans, tables: &tables, block: 2 };
        let (cache, q) = (c.cache(b, "cache", spec.latents(), &view, &ends), c.tensor(b, "q", rows));
        for k in [part(0, spec.nope), split] {
            c.expect(b, &b.attend_latent(&q, &cache, k, part(spec.nope, spec.v_dim), &view, &spec).unwrap());
        }
    }
}

fn route(b: &Reference, c: &Case) {
    let s = Case(c.0["spec"].clone());
    let spec = RouteSpec {
        experts: s.size("experts"),
        top_k: s.size("top_k"),
        score: if s.word("score") == "sigmoid" { Score::Sigmoid } else { Score::Softmax },
        groups: s.size("groups"),
        groups_kept: s.size("groups_kept"),
        group_top: s.size("group_top"),
        normalise: s.0["normalise"].as_bool().unwrap(),
        scale: s.number("scale"),
    };
    let bias = (!c.0["bias"].is_null()).then(|| b.upload(&c.weight("bias", 1)).unwrap());
    let routing = b.route(&c.tensor(b, "logits", c.size("rows")), bias.as_ref(), &spec, None).unwrap();
    let mut experts = vec![0; routing.experts.shape.numel()];
    b.read_u32(&routing.experts, &mut experts).unwrap();
    assert_eq!(experts, c.u32s("experts"));
    c.expect(b, &routing.weights);
}

#[test]
fn operations_match_numpy() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/ops/golden.json");
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let b = Reference::new();
    let mut ops: Vec<String> = Vec::new();
    for c in cases {
        ops.push(c["op"].as_str().unwrap().to_owned());
        check(&b, &Case(c));
    }
    ops.dedup();
    assert_eq!(ops, ["rms_norm", "linear", "swiglu", "rope", "attend", "attend_latent", "route", "moe"]);
}
