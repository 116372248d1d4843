//! The derivatives of operations that are linear in every argument, against differences of the operations themselves.
//!
//! A central difference of such an operation is exact whatever the step, so the reference backend's f32 results are held to f32's
//! rounding. What is not linear (norms, rotation, attention, SwiGLU, routing, loss) is held to differences in f64 beside
//! the formulas, in `src/reference/grad.rs`.

use fathom_core::reference::Reference;
use fathom_core::rng::Rng;
use fathom_core::{Backend, Experts, Grad, Proj, Resident, ResidentExperts, Routing, Shape, Tensor, Weight};

/// A matrix of numbers.
#[derive(Clone)]
struct M {
    rows: usize,
    cols: usize,
    data: Vec<f32>,
}

fn random(rng: &mut Rng, rows: usize, cols: usize) -> M {
    M { rows, cols, data: (0..rows * cols).map(|_| rng.normal() as f32).collect() }
}

struct Bench(Reference);

impl Bench {
    fn tensor(&self, m: &M) -> Tensor {
        self.0.tensor(Shape::matrix(m.rows, m.cols), &m.data).unwrap()
    }

    fn weight(&self, m: &M) -> Resident {
        self.0.upload(&Weight::from_f32(m.rows, m.cols, &m.data)).unwrap()
    }

    fn experts(&self, m: &M, experts: usize) -> ResidentExperts {
        let weight = Weight::from_f32(m.rows, m.cols, &m.data);
        self.0.upload_experts(&Experts::Stacked { weight, experts }).unwrap()
    }

    /// Experts by row, with weights.
    fn routing(&self, chosen: &[&[u32]], experts: usize, weights: &M) -> Routing {
        let mut logits = vec![0.0; chosen.len() * experts];
        for (row, chosen) in chosen.iter().enumerate() {
            chosen.iter().enumerate().for_each(|(s, &e)| logits[row * experts + e as usize] = 9.0 - s as f32);
        }
        let top_k = chosen[0].len();
        let spec = fathom_core::RouteSpec {
            experts,
            top_k,
            score: fathom_core::Score::Softmax,
            groups: 1,
            groups_kept: 1,
            group_top: 1,
            normalise: false,
            scale: 1.0,
        };
        let logits = self.0.tensor(Shape::matrix(chosen.len(), experts), &logits).unwrap();
        let routing = self.0.route(&logits, None, &spec, Some(&chosen.concat())).unwrap();
        Routing { experts: routing.experts, weights: self.tensor(weights) }
    }

    fn zeros(&self, m: &M) -> Tensor {
        self.0.zeros(Shape::matrix(m.rows, m.cols)).unwrap()
    }

    fn read(&self, t: &Tensor) -> Vec<f32> {
        let mut out = vec![0.0; t.shape.numel()];
        self.0.read(t, &mut out).unwrap();
        out
    }

    /// Compares `d` with the slope of `x ↦ Σ dy·f(x)` along every coordinate.
    fn compare(&self, what: &str, x: &M, d: &Tensor, dy: &M, f: impl Fn(&M) -> Tensor) {
        let d = self.read(d);
        assert_eq!(d.len(), x.data.len(), "{what}");
        let value = |x: &M| -> f64 {
            let y = self.read(&f(x));
            y.iter().zip(&dy.data).map(|(y, d)| f64::from(*y) * f64::from(*d)).sum()
        };
        let mut x = x.clone();
        for (i, d) in d.iter().enumerate() {
            let at = x.data[i];
            x.data[i] = at + 1.0;
            let up = value(&x);
            x.data[i] = at - 1.0;
            let slope = (up - value(&x)) / 2.0;
            x.data[i] = at;
            assert!((slope - f64::from(*d)).abs() < 2e-5 * (1.0 + slope.abs()), "{what}[{i}]: {d} against {slope}");
        }
    }
}

#[test]
fn projections() {
    let (b, mut rng) = (Bench(Reference::new()), Rng::new(1, 0));
    let (x, w, bias) = (random(&mut rng, 3, 5), random(&mut rng, 4, 5), random(&mut rng, 1, 4));
    let dy = random(&mut rng, 3, 4);
    let f = |x: &M, w: &M, bias: &M| {
        let (weight, bias) = (b.weight(w), b.weight(bias));
        b.0.linear(&b.tensor(x), &[Proj { weight: &weight, bias: Some(&bias) }]).unwrap().remove(0)
    };
    let d = b.tensor(&dy);
    b.compare("linear by x", &x, &b.0.linear_dx(&d, &b.weight(&w)).unwrap(), &dy, |x| f(x, &w, &bias));
    let mut dw = b.zeros(&w);
    b.0.linear_dw(&b.tensor(&x), &d, &mut dw).unwrap();
    b.compare("linear by w", &w, &dw, &dy, |w| f(&x, w, &bias));
    let mut db = b.zeros(&bias);
    b.0.bias_db(&d, &mut db).unwrap();
    b.compare("linear by b", &bias, &db, &dy, |bias| f(&x, &w, bias));

    // A second use adds to the first.
    b.0.linear_dw(&b.tensor(&x), &d, &mut dw).unwrap();
    let twice = M { data: dy.data.iter().map(|v| 2.0 * v).collect(), ..dy };
    b.compare("linear by w, twice", &w, &dw, &twice, |w| f(&x, w, &bias));
}

/// Inputs that a token's slots share, and inputs of their own; an expert that nobody chose; the weights of the sum.
#[test]
fn experts() {
    let (b, mut rng) = (Bench(Reference::new()), Rng::new(2, 0));
    let (tokens, top_k, experts, inputs, outputs) = (3, 2, 4, 5, 3);
    let chosen: [&[u32]; 3] = [&[2, 0], &[0, 3], &[2, 3]];
    let share = random(&mut rng, tokens, top_k);
    let routing = b.routing(&chosen, experts, &share);
    let w = random(&mut rng, experts * outputs, inputs);
    let dy = random(&mut rng, tokens * top_k, outputs);
    for rows in [tokens, tokens * top_k] {
        let x = random(&mut rng, rows, inputs);
        let f = |x: &M, w: &M| {
            let w = b.experts(w, experts);
            b.0.linear_experts(&b.tensor(x), &routing, &[&w]).unwrap().remove(0)
        };
        let dx = b.0.linear_experts_dx(&b.tensor(&dy), &routing, &b.experts(&w, experts), rows).unwrap();
        b.compare("experts by x", &x, &dx, &dy, |x| f(x, &w));
        let mut dw = b.zeros(&w);
        b.0.linear_experts_dw(&b.tensor(&x), &b.tensor(&dy), &routing, &mut dw).unwrap();
        b.compare("experts by w", &w, &dw, &dy, |w| f(&x, w));
    }

    let y = random(&mut rng, tokens * top_k, inputs);
    let plus = random(&mut rng, tokens, inputs);
    let dout = random(&mut rng, tokens, inputs);
    let f = |y: &M, share: &M| {
        b.0.combine_experts(&b.tensor(y), &b.routing(&chosen, experts, share), Some(b.tensor(&plus))).unwrap()
    };
    let (d, dshare) = b.0.combine_experts_grad(&b.tensor(&y), &routing, &b.tensor(&dout)).unwrap();
    b.compare("combine by y", &y, &d, &dout, |y| f(y, &share));
    b.compare("combine by weights", &share, &dshare, &dout, |share| f(&y, share));
}

/// Tables and views: rows that are read twice add up, what is not read has no derivative.
#[test]
fn tables_and_views() {
    let (b, mut rng) = (Bench(Reference::new()), Rng::new(3, 0));
    let ids = [4, 1, 4, 0];
    let (table, dy) = (random(&mut rng, 6, 3), random(&mut rng, 4, 3));
    let mut d = b.zeros(&table);
    b.0.embed_grad(&ids, &b.tensor(&dy), &mut d).unwrap();
    b.compare("embed", &table, &d, &dy, |table| b.0.embed(&b.weight(table), &ids).unwrap());

    let x = random(&mut rng, 4, 7);
    let dy = random(&mut rng, 4, 3);
    let d = b.0.slice_cols_grad(&b.tensor(&dy), 2, 7).unwrap();
    b.compare("slice_cols", &x, &d, &dy, |x| b.0.slice_cols(&b.tensor(x), 2, 5).unwrap());

    let picked = [3, 0, 3];
    let dy = random(&mut rng, 3, 7);
    let d = b.0.select_rows_grad(&b.tensor(&dy), &picked, 4).unwrap();
    b.compare("select_rows", &x, &d, &dy, |x| b.0.select_rows(&b.tensor(x), &picked).unwrap());
}
