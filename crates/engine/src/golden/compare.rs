//! Comparing a model with its recording.

use std::collections::BTreeMap;
use std::sync::Arc;

use fathom_core::{Backend, DType, LatentForm};
use fathom_model::spec::Mixer;
use fathom_model::{Model, NoProbe};

use super::replay::failed;
use super::{Golden, Prompt, Recorder, Replay, Route};
use crate::Result;

/// How far two tables of rows are apart. Sums, so that differences of several prompts add up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Difference {
    /// Largest absolute difference.
    pub max_abs: f32,
    error: f64,
    power: f64,
    rows: usize,
    top1: usize,
    kl: f64,
}

impl Difference {
    /// Of `found` to `golden`, both `[rows, cols]`. What is not finite counts as infinitely far.
    ///
    /// # Panics
    /// If their lengths differ.
    pub fn of(found: &[f32], golden: &[f32], cols: usize) -> Self {
        assert_eq!(found.len(), golden.len(), "invariant: a recording has the model's shape");
        let mut d = Difference::default();
        for (f, g) in found.chunks_exact(cols).zip(golden.chunks_exact(cols)) {
            for (f, g) in f.iter().zip(g) {
                let e = if f.is_finite() { (f - g).abs() } else { f32::INFINITY };
                d.max_abs = d.max_abs.max(e);
                d.error += f64::from(e).powi(2);
                d.power += f64::from(*g).powi(2);
            }
            d.rows += 1;
            d.top1 += usize::from(best(f).0 == best(g).0);
            d.kl += divergence(g, f);
        }
        d
    }

    /// Adds the differences of further rows.
    pub fn and(&mut self, other: Difference) {
        self.max_abs = self.max_abs.max(other.max_abs);
        self.error += other.error;
        self.power += other.power;
        self.rows += other.rows;
        self.top1 += other.top1;
        self.kl += other.kl;
    }

    /// `√(Σ (found − golden)² / Σ golden²)`.
    pub fn rms_rel(&self) -> f64 {
        (self.error / self.power.max(f64::MIN_POSITIVE)).sqrt()
    }

    /// Share of rows whose largest element is the same one.
    pub fn top1(&self) -> f64 {
        self.top1 as f64 / self.rows.max(1) as f64
    }

    /// Mean Kullback–Leibler divergence of the rows as distributions over tokens, from golden to found, in nats.
    pub fn kl(&self) -> f64 {
        self.kl / self.rows.max(1) as f64
    }

    /// Rows compared.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// Index of the largest element (the first of equals) and how far the second largest lies below it.
pub(super) fn best(row: &[f32]) -> (usize, f32) {
    let (mut at, mut first, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (i, &v) in row.iter().enumerate() {
        if v > first {
            (at, second, first) = (i, first, v);
        } else if v > second {
            second = v;
        }
    }
    (at, first - second)
}

/// `Σ p ln(p / q)` for the softmaxes p of `golden` and q of `found`.
fn divergence(golden: &[f32], found: &[f32]) -> f64 {
    let log_sum = |row: &[f32]| {
        let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        max + row.iter().map(|&v| (f64::from(v) - max).exp()).sum::<f64>().ln()
    };
    let (zp, zq) = (log_sum(golden), log_sum(found));
    golden
        .iter()
        .zip(found)
        .map(|(&p, &q)| {
            let (p, q) = (f64::from(p) - zp, f64::from(q) - zq);
            p.exp() * (p - q)
        })
        .sum()
}

/// How far greedy continuations were followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Greedy {
    /// Tokens recorded.
    pub recorded: usize,
    /// Tokens that agree.
    pub equal: usize,
    /// Tokens after a step whose two best logits were too close to call.
    pub excused: usize,
}

/// What [`verify`] measured.
#[derive(Clone, Debug)]
pub struct Report {
    /// The golden's name.
    pub name: String,
    /// The model's family.
    pub family: &'static str,
    /// Formats of its weights and how many tensors have each, most bytes first.
    pub formats: Vec<(String, usize)>,
    /// Logits at all positions of all prompts.
    pub logits: Difference,
    /// The worst root mean square difference of an intermediate, and its name.
    pub hidden: Option<(f64, String)>,
    /// Experts recorded, and how many of them the model chose.
    pub experts: (usize, usize),
    /// Largest difference of a routing weight.
    pub route_weights: f32,
    /// Greedy continuations.
    pub greedy: Greedy,
    /// The prediction block's logits.
    pub drafts: Option<Difference>,
    /// Logits with latent attention in its absorbed form; [`Report::logits`] has the plain one.
    pub absorbed: Option<Difference>,
}

/// What a report must keep.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// On absolute differences of logits.
    pub max_abs: f32,
    /// On relative root mean square differences.
    pub rms_rel: f64,
    /// On routing weights.
    pub route_weights: f32,
}

impl Limits {
    /// For arithmetic in f32: about five times the worst difference between f32 and f64 that the recorder saw.
    pub const EXACT: Limits = Limits { max_abs: 2e-4, rms_rel: 1e-5, route_weights: 1e-5 };
}

impl Report {
    /// What is outside the limits, in words; empty if all is well.
    pub fn faults(&self, limits: &Limits) -> Vec<String> {
        let mut faults = Vec::new();
        let mut note = |wrong: bool, what: String| faults.extend(wrong.then_some(what));
        let far = |x: f64, limit: f64| x.is_nan() || x > limit;
        let logits = [
            ("logits", Some(&self.logits)),
            ("draft logits", self.drafts.as_ref()),
            ("logits in the absorbed form", self.absorbed.as_ref()),
        ];
        for (what, d) in logits.into_iter().filter_map(|(what, d)| Some((what, d?))) {
            let wrong = far(d.max_abs.into(), limits.max_abs.into()) || far(d.rms_rel(), limits.rms_rel);
            note(wrong, format!("{what}: max abs {:.1e}, rms rel {:.1e}", d.max_abs, d.rms_rel()));
        }
        if let Some((rms, name)) = &self.hidden {
            note(far(*rms, limits.rms_rel), format!("{name}: rms rel {rms:.1e}"));
        }
        let (recorded, chosen) = self.experts;
        note(recorded != chosen, format!("{chosen} of {recorded} experts chosen"));
        let weights = self.route_weights;
        note(far(weights.into(), limits.route_weights.into()), format!("routing weights: max abs {weights:.1e}"));
        let Greedy { recorded, equal, excused } = self.greedy;
        note(equal + excused != recorded, format!("{equal} of {recorded} greedy tokens"));
        faults
    }
}

/// Runs a golden's model on a backend, with a cache of type `kv`, and compares.
///
/// # Errors
/// If the model cannot be loaded or the backend fails.
pub fn verify(golden: &Golden, backend: Arc<dyn Backend>, kv: DType) -> Result<Report> {
    let model = Model::open(&golden.model, &golden.options).map_err(failed)?;
    let decoder = model.load(backend, &mut |_, _| {}).map_err(failed)?;
    let vocab = decoder.spec.vocab;
    let mut report = Report {
        name: golden.name.clone(),
        family: model.spec.family,
        formats: formats(&model)?,
        logits: Difference::default(),
        hidden: None,
        experts: (0, 0),
        route_weights: 0.0,
        greedy: Greedy::default(),
        drafts: None,
        absorbed: None,
    };
    for p in &golden.prompts {
        if p.logits.len() != p.ids.len() * vocab {
            return Err(failed(format!("{}: {} has no recording of the model's shape", golden.name, p.name)));
        }
        let tokens = p.ids.len() + p.greedy.as_ref().map_or(0, Vec::len) + 1;
        let mut replay = Replay::new(&decoder, 3, tokens, kv)?;
        let table = replay.table(tokens);
        let mut seen = Recorder::default();
        let logits = replay.step(&[(&table, 0, &p.ids, LatentForm::Plain)], &mut seen)?;
        report.logits.and(Difference::of(&logits, &p.logits, vocab));
        report.compare_hidden(p, &seen, decoder.spec.dim);
        report.compare_routes(p, &seen);
        if let Some(greedy) = &p.greedy {
            report.follow(&mut replay, &table, p, greedy, &logits[logits.len() - vocab..], golden.greedy_gap)?;
        }
        if p.drafts.is_some() || p.first_draft.is_some() {
            report.compare_drafts(&mut replay, p, vocab)?;
        }
        if decoder.spec.layers.iter().any(|l| matches!(l.mixer, Mixer::Mla { .. })) {
            let table = replay.table(tokens);
            let logits = replay.step(&[(&table, 0, &p.ids, LatentForm::Absorbed)], &mut NoProbe)?;
            let d = Difference::of(&logits, &p.logits, vocab);
            report.absorbed.get_or_insert_default().and(d);
        }
    }
    Ok(report)
}

/// Formats of the model's matrices.
fn formats(model: &Model) -> Result<Vec<(String, usize)>> {
    let mut all: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for name in model.archive.names() {
        if let Some(t) = model.archive.tensor(name).map_err(failed)? {
            let entry = all.entry(t.format.name()).or_default();
            *entry = (entry.0 + t.bytes.len(), entry.1 + 1);
        }
    }
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort_by_key(|(_, (bytes, _))| std::cmp::Reverse(*bytes));
    Ok(all.into_iter().map(|(name, (_, n))| (name.to_owned(), n)).collect())
}

impl Report {
    fn compare_hidden(&mut self, p: &Prompt, seen: &Recorder, dim: usize) {
        for golden in &p.hidden {
            let found = seen.hidden.iter().find(|h| h.layer == golden.layer && h.name == golden.name);
            let rms = found.map_or(f64::INFINITY, |f| Difference::of(&f.values, &golden.values, dim).rms_rel());
            if self.hidden.as_ref().is_none_or(|(worst, _)| rms > *worst) {
                let layer = golden.layer.map_or(String::new(), |l| format!("blk.{l}."));
                self.hidden = Some((rms, format!("{layer}{}", golden.name)));
            }
        }
    }

    fn compare_routes(&mut self, p: &Prompt, seen: &Recorder) {
        for golden in &p.routes {
            let top_k = golden.experts.len() / p.ids.len();
            let Some(found) = seen.routes.iter().find(|r| r.layer == golden.layer) else {
                self.experts.0 += golden.experts.len();
                continue;
            };
            let rows = |r: &Route| -> Vec<Vec<(u32, f32)>> {
                let pairs: Vec<_> = r.experts.iter().copied().zip(r.weights.iter().copied()).collect();
                pairs.chunks_exact(top_k).map(<[_]>::to_vec).collect()
            };
            for (golden, found) in rows(golden).into_iter().zip(rows(found)) {
                for (expert, weight) in golden {
                    self.experts.0 += 1;
                    if let Some((_, w)) = found.iter().find(|(e, _)| *e == expert) {
                        self.experts.1 += 1;
                        self.route_weights = self.route_weights.max((w - weight).abs());
                    }
                }
            }
        }
    }

    /// Continues a prompt greedily, one row a step, in the form that generation uses.
    fn follow(
        &mut self,
        replay: &mut Replay<'_>,
        table: &[u32],
        p: &Prompt,
        golden: &[u32],
        last: &[f32],
        gap: f32,
    ) -> Result<()> {
        self.greedy.recorded += golden.len();
        let mut row = last.to_vec();
        for (i, &expected) in golden.iter().enumerate() {
            let (token, clear) = best(&row);
            if token as u32 != expected {
                self.greedy.excused += if clear < gap { golden.len() - i } else { 0 };
                return Ok(());
            }
            self.greedy.equal += 1;
            row = replay.step(&[(table, p.ids.len() + i, &[expected], LatentForm::Absorbed)], &mut NoProbe)?;
        }
        Ok(())
    }

    fn compare_drafts(&mut self, replay: &mut Replay<'_>, p: &Prompt, vocab: usize) -> Result<()> {
        let table = replay.table(p.ids.len() + 1);
        let n = p.ids.len();
        let rows = (&table[..], 0, &p.ids[..], LatentForm::Plain);
        let hidden = replay.trunk(&[rows], &mut NoProbe)?;
        let logits = replay.decoder.head(&hidden).map_err(failed)?;
        let mut last = vec![0.0; n * vocab];
        replay.decoder.backend.read(&logits, &mut last).map_err(failed)?;
        let next = best(&last[(n - 1) * vocab..]).0 as u32;
        let following: Vec<u32> = p.ids[1..].iter().copied().chain([next]).collect();
        let drafts = replay.draft(&hidden, &[(&table, 0, &following, LatentForm::Plain)])?;
        let total = self.drafts.get_or_insert_default();
        if let Some(golden) = &p.drafts {
            total.and(Difference::of(&drafts[..(n - 1) * vocab], golden, vocab));
        }
        if let Some(golden) = &p.first_draft {
            total.and(Difference::of(&drafts[(n - 1) * vocab..], golden, vocab));
        }
        Ok(())
    }
}
