//! One behaviour suite for all backends.
//!
//! [`backend_suite`] runs every operation on ordinary and odd shapes, in every weight format, on the backend under test and on
//! [`Reference`], and compares. It then demands the law of batch invariance bit for bit: a row's result does not
//! depend on the rows beside it, on chunking, or on where its cache blocks lie. A backend is done when
//! this passes.

mod attend;
mod invariance;
mod linear;
mod picture;
mod route;
mod rows;

use std::fmt::Display;
use std::sync::Arc;

use fathom_core::reference::Reference;
use fathom_core::{Backend, DType, Precision, Result, Shape, Tensor};

/// Largest normalised mean square errors allowed: `Σ (y − r)² / Σ r²`.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Products with weights.
    pub linear: f64,
    /// Attention.
    pub attend: f64,
    /// Everything that works on single elements or rows.
    pub rows: f64,
}

impl Tolerance {
    /// What each precision must keep. Exact: f32 accumulation over some thousand terms. Fast: activations rounded to
    /// int8 per block of a product (about 0.7 % of their spread each), f16 inside attention.
    pub fn of(precision: Precision) -> Self {
        match precision {
            Precision::Exact => Tolerance { linear: 1e-11, attend: 1e-11, rows: 1e-12 },
            Precision::Fast => Tolerance { linear: 1.5e-4, attend: 1e-5, rows: 1e-10 },
        }
    }
}

/// What an operation gave, on the host.
#[derive(PartialEq)]
struct Seen {
    shape: Shape,
    values: Vec<f32>,
}

fn see(b: &dyn Backend, t: &Tensor) -> Result<Seen> {
    let mut values = vec![f32::NAN; t.shape.numel()];
    if t.dtype == DType::U32 {
        let mut ids = vec![0; values.len()];
        b.read_u32(t, &mut ids)?;
        values = ids.iter().map(|&i| i as f32).collect();
    } else {
        b.read(t, &mut values)?;
    }
    Ok(Seen { shape: t.shape, values })
}

/// A case: builds its inputs on the backend that it is given and returns what is to be compared.
type Case<'a> = &'a dyn Fn(&dyn Backend) -> Result<Vec<Tensor>>;

fn run(b: &dyn Backend, case: Case<'_>) -> Result<Vec<Seen>> {
    case(b)?.iter().map(|t| see(b, t)).collect()
}

/// Why `y` is not `r` within `bound`, if it is not: by normalised mean square, and by the worst element (a single wrong one
/// hides in the mean).
fn difference(y: &Seen, r: &Seen, bound: f64) -> Option<String> {
    if y.shape != r.shape {
        return Some(format!("shape {} instead of {}", y.shape, r.shape));
    }
    let (mut error, mut power, mut worst, mut at) = (0.0, 0.0, 0.0, 0);
    for (i, (y, r)) in y.values.iter().zip(&r.values).enumerate() {
        let e = (f64::from(*y) - f64::from(*r)).powi(2);
        error += e;
        power += f64::from(*r).powi(2);
        if e > worst || e.is_nan() {
            (worst, at) = (e, i);
        }
    }
    let n = r.values.len().max(1) as f64;
    // A handful of sums can be small by chance, and their error with respect to themselves large.
    let bound = bound * (1.0 + 1000.0 / (n * n));
    let fine = error <= bound * power && worst <= 200.0 * bound * power / n;
    (!fine).then(|| {
        format!(
            "error {:.2e} (allowed {bound:.1e}); worst at element {at}: {} instead of {}",
            error / power,
            y.values[at],
            r.values[at]
        )
    })
}

struct Suite {
    subject: Arc<dyn Backend>,
    reference: Reference,
    tolerance: Tolerance,
    cases: usize,
    failures: Vec<String>,
}

impl Suite {
    fn note(&mut self, name: impl Display, failure: Option<String>) {
        self.cases += 1;
        if let Some(why) = failure {
            self.failures.push(format!("{name}: {why}"));
        }
    }

    /// The subject gives what the reference gives.
    fn like_reference(&mut self, name: impl Display, bound: f64, case: Case<'_>) {
        let expected = run(&self.reference, case).unwrap_or_else(|e| panic!("{name}: the case itself is wrong: {e}"));
        let failure = match run(self.subject.as_ref(), case) {
            Err(e) => Some(e.to_string()),
            Ok(found) if found.len() != expected.len() => Some(format!("{} outputs", found.len())),
            Ok(found) => found.iter().zip(&expected).find_map(|(y, r)| difference(y, r, bound)),
        };
        self.note(name, failure);
    }

    /// Two ways to compute the same thing on the subject give the same bits, concatenated over their outputs.
    fn same_bits(&mut self, name: impl Display, one: Case<'_>, other: Case<'_>) {
        let bits = |case| {
            let seen = run(self.subject.as_ref(), case)?;
            Ok::<Vec<u32>, fathom_core::Error>(seen.iter().flat_map(|s| s.values.iter().map(|v| v.to_bits())).collect())
        };
        let failure = match (bits(one), bits(other)) {
            (Ok(a), Ok(b)) if a == b => None,
            (Ok(a), Ok(b)) => Some(format!(
                "{} of {} numbers differ in their bits (lengths {} and {})",
                a.iter().zip(&b).filter(|(a, b)| a != b).count(),
                a.len(),
                a.len(),
                b.len()
            )),
            (Err(e), _) | (_, Err(e)) => Some(e.to_string()),
        };
        self.note(name, failure);
    }

    /// The subject refuses, with an error that says each of `words`.
    fn refuses(&mut self, name: impl Display, words: &[&str], case: Case<'_>) {
        let failure = match run(self.subject.as_ref(), case) {
            Ok(_) => Some("accepted".into()),
            Err(e) => {
                let said = e.to_string();
                let missing = words.iter().find(|w| !said.contains(**w));
                missing.map(|w| format!("the error does not name `{w}`: {said}"))
            }
        };
        self.note(name, failure);
    }
}

/// Runs every case on the backend that `make` gives; returns how many there were and what failed.
pub fn failures(make: &dyn Fn() -> Arc<dyn Backend>, tolerance: Tolerance) -> (usize, Vec<String>) {
    let mut suite = Suite { subject: make(), reference: Reference::new(), tolerance, cases: 0, failures: Vec::new() };
    rows::cases(&mut suite);
    linear::cases(&mut suite);
    route::cases(&mut suite);
    attend::cases(&mut suite);
    picture::cases(&mut suite);
    invariance::cases(&mut suite);
    (suite.cases, suite.failures)
}

/// Runs every case on the backend that `make` gives and returns how many there were.
///
/// # Panics
/// With the first failed cases, if there are any.
pub fn backend_suite(make: &dyn Fn() -> Arc<dyn Backend>, tolerance: Tolerance) -> usize {
    let (cases, failed) = failures(make, tolerance);
    let shown = &failed[..failed.len().min(40)];
    assert!(failed.is_empty(), "{} of {cases} cases failed:\n{}", failed.len(), shown.join("\n"));
    cases
}
