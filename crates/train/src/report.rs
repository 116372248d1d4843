//! `report.html`: a run at a glance, in one file that needs nothing else.
//!
//! Made from the recipe and the lines that the run left, so it can be made again at any time. Each plot is an SVG drawn here; the numbers
//! behind them stay in `metrics.jsonl` and `eval.jsonl`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use fathom_files::write_file;
use serde_json::Value;

use crate::error::Result;
use crate::evaluate::wilson;
use crate::recipe::Recipe;
use crate::run::Metrics;

/// Points of a curve at most; more are averaged.
const POINTS: usize = 400;

/// Colours that are told apart by most eyes (Okabe & Ito 2008), light and dark alike.
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f"];

/// A curve: its name, and points.
type Curve = (String, Vec<(f64, f64)>);

const STYLE: &str = ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:68rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}figure{display:inline-block;margin:0 1rem 1rem 0;vertical-align:top}\
figcaption{font-weight:600}table{border-collapse:collapse}td,th{padding:.15rem .7rem;text-align:right;border-bottom:1px solid #8884}\
td:first-child,th:first-child{text-align:left}pre{background:#8881;padding:.8rem;overflow:auto;border-radius:.4rem}\
svg text{fill:currentColor;font-size:11px}svg .axis{stroke:currentColor;opacity:.35}";

/// Writes `report.html` into a run's folder.
///
/// # Errors
/// If the disk is full or fails.
pub fn write(folder: &Path, recipe: &Recipe) -> Result<()> {
    let lines = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
    let metrics: Vec<Metrics> = lines("metrics.jsonl").lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let evals: Vec<Value> = lines("eval.jsonl").lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let page = page(recipe, &metrics, &evals);
    Ok(write_file(&folder.join("report.html"), page.as_bytes())?)
}

fn page(recipe: &Recipe, metrics: &[Metrics], evals: &[Value]) -> String {
    let mut out = String::new();
    let name = escape(&recipe.name);
    let _ = write!(
        out,
        "<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title><style>{STYLE}</style><h1>{name}</h1>"
    );
    summary(&mut out, metrics);
    for stage in ["pretrain", "sft"] {
        let of: Vec<&Metrics> = metrics.iter().filter(|m| m.stage == stage).collect();
        if !of.is_empty() {
            let _ = write!(out, "<h2>{}</h2>", if stage == "sft" { "Supervised fine-tuning" } else { "Pre-training" });
            learning(&mut out, &of);
        }
    }
    progress(&mut out, evals);
    let grpo: Vec<&Metrics> = metrics.iter().filter(|m| m.stage == "grpo").collect();
    if !grpo.is_empty() {
        out += "<h2>Reinforcement learning</h2>";
        reinforcement(&mut out, &grpo, evals);
    }
    results(&mut out, evals);
    let recipe = serde_json::to_string_pretty(recipe).expect("invariant: a recipe is JSON");
    let _ = write!(out, "<h2>Recipe</h2><pre>{}</pre></html>", escape(&recipe));
    out
}

/// A line per stage: steps, tokens, time.
fn summary(out: &mut String, metrics: &[Metrics]) {
    let mut last: BTreeMap<&str, &Metrics> = BTreeMap::new();
    for m in metrics {
        last.insert(&m.stage, m);
    }
    *out += "<table><tr><th>stage<th>steps<th>million tokens<th>minutes<th>tokens/s<th>loss at the end</tr>";
    for (stage, m) in last {
        let _ = write!(
            out,
            "<tr><td>{stage}<td>{}<td>{:.2}<td>{:.1}<td>{:.0}<td>{:.4}</tr>",
            m.step,
            m.tokens as f64 / 1e6,
            m.seconds / 60.0,
            m.tokens as f64 / m.seconds.max(1e-9),
            m.loss
        );
    }
    *out += "</table>";
}

fn curve(name: &str, of: &[&Metrics], x: impl Fn(&Metrics) -> f64, y: impl Fn(&Metrics) -> Option<f64>) -> Curve {
    (name.to_owned(), of.iter().filter_map(|m| Some((x(m), y(m)?))).collect())
}

fn learning(out: &mut String, of: &[&Metrics]) {
    let tokens = |m: &Metrics| m.tokens as f64 / 1e6;
    let minutes = |m: &Metrics| m.seconds / 60.0;
    let losses = |x: &dyn Fn(&Metrics) -> f64| {
        vec![
            curve("next token", of, x, |m| Some(m.loss)),
            curve("the one after (prediction block)", of, x, |m| m.draft_loss),
        ]
    };
    plot(out, "Loss in nats against million tokens", &losses(&tokens), true);
    plot(out, "Loss in nats against minutes", &losses(&minutes), true);
    plot(out, "Learning rate", &[curve("", of, tokens, |m| Some(f64::from(m.lr)))], false);
    plot(out, "Norm of all derivatives", &[curve("", of, tokens, |m| Some(m.norm))], true);
    let load = curve("", of, tokens, |m| m.imbalance);
    plot(out, "Expert load: the busiest over the mean", &[load], false);
    plot(out, "Tokens per second", &[curve("", of, tokens, |m| Some(m.tokens_per_s))], false);
}

/// Accuracy by kind against tokens, and how often the prediction block is right.
fn progress(out: &mut String, evals: &[Value]) {
    let mut kinds: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for e in evals.iter().filter(|e| e["stage"] == "sft" || e["stage"] == "pretrain") {
        let (Some(kind), Some(at)) = (e["kind"].as_str(), e["at_tokens"].as_f64()) else { continue };
        let share = e["right"].as_f64().unwrap_or(0.0) / e["asked"].as_f64().unwrap_or(1.0).max(1.0);
        kinds.entry(kind.to_owned()).or_default().push((at / 1e6, 100.0 * share));
    }
    if kinds.is_empty() {
        return;
    }
    *out += "<h2>Held-out problems on the way</h2>";
    let all: Vec<Curve> = kinds.into_iter().collect();
    for part in all.chunks(COLOURS.len()) {
        plot(out, "Right answers in % against million tokens", part, false);
    }
}

fn reinforcement(out: &mut String, of: &[&Metrics], evals: &[Value]) {
    let step = |m: &Metrics| m.step as f64;
    let reward = |y: fn(&crate::run::RewardMetrics) -> f64| move |m: &Metrics| m.reward.as_ref().map(y);
    plot(out, "Mean reward against steps", &[curve("", of, step, reward(|r| r.reward))], false);
    plot(out, "Right answers of the rollouts in %", &[curve("", of, step, reward(|r| 100.0 * r.correct))], false);
    plot(out, "Tokens of an answer", &[curve("", of, step, reward(|r| r.length))], false);
    plot(out, "Divergence from the start, per token", &[curve("", of, step, reward(|r| r.kl))], false);
    let gaps =
        [curve("mean", of, step, reward(|r| r.rollout_gap)), curve("largest", of, step, reward(|r| r.rollout_gap_max))];
    plot(out, "Log-probability: rollout against trainer", &gaps, true);
    let at = |last: bool| {
        let steps = evals.iter().filter(|e| e["stage"] == "grpo").filter_map(|e| e["at_tokens"].as_u64());
        if last { steps.max() } else { steps.min() }
    };
    let (Some(first), Some(last)) = (at(false), at(true)) else { return };
    *out += "<table><tr><th>kind<th>before %<th>95 % interval<th>after %<th>95 % interval</tr>";
    let find = |kind: &Value, at: u64| {
        evals.iter().rfind(|e| e["stage"] == "grpo" && e["kind"] == *kind && e["at_tokens"].as_u64() == Some(at))
    };
    for before in evals.iter().filter(|e| e["stage"] == "grpo" && e["at_tokens"].as_u64() == Some(first)) {
        let kind = before["kind"].as_str().unwrap_or_default();
        let _ = write!(out, "<tr><td>{}{}", escape(kind), cells(before));
        if let Some(after) = find(&before["kind"], last).filter(|_| last > first) {
            *out += &cells(after);
        }
        *out += "</tr>";
    }
    *out += "</table>";
}

/// Share and interval of one result, as cells.
fn cells(e: &Value) -> String {
    let number = |key: &str| e[key].as_u64().unwrap_or(0) as usize;
    let (share, low, high) = wilson(number("right"), number("asked"));
    format!("<td>{:.1}<td>{:.0}–{:.0}", 100.0 * share, 100.0 * low, 100.0 * high)
}

/// The last evaluation, kind by kind.
fn results(out: &mut String, evals: &[Value]) {
    let mut last: BTreeMap<(String, String), &Value> = BTreeMap::new();
    for e in evals.iter().filter(|e| e["stage"] == "eval") {
        let text = |key: &str| e[key].as_str().unwrap_or_default().to_owned();
        last.insert((text("kind"), text("split")), e);
    }
    if last.is_empty() {
        return;
    }
    *out +=
        "<h2>Results</h2><table><tr><th>kind<th>split<th>right %<th>95 % interval<th>sound reasoning %<th>tokens</tr>";
    for ((kind, split), e) in &last {
        let asked = e["asked"].as_f64().unwrap_or(1.0).max(1.0);
        let _ = write!(
            out,
            "<tr><td>{}<td>{}{}<td>{:.1}<td>{:.0}</tr>",
            escape(kind),
            escape(split),
            cells(e),
            100.0 * e["sound"].as_f64().unwrap_or(0.0) / asked,
            e["tokens"].as_f64().unwrap_or(0.0)
        );
    }
    *out += "</table>";
    if let Some(e) = last.values().find(|e| e["drafted"].as_u64().is_some_and(|d| d > 0)) {
        let share = e["accepted"].as_f64().unwrap_or(0.0) / e["drafted"].as_f64().unwrap_or(1.0);
        let _ = write!(out, "<p>The prediction block's drafts were right in {:.1} % of cases.</p>", 100.0 * share);
    }
}

/// Averages neighbours until there are at most [`POINTS`] points.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let n = points.len().div_ceil(POINTS).max(1);
    let mean = |c: &[(f64, f64)]| {
        let k = c.len() as f64;
        (c.iter().map(|p| p.0).sum::<f64>() / k, c.iter().map(|p| p.1).sum::<f64>() / k)
    };
    points.chunks(n).map(mean).collect()
}

/// One figure; `log`: the y axis in powers of ten.
fn plot(out: &mut String, title: &str, curves: &[Curve], log: bool) {
    const W: f64 = 460.0;
    const H: f64 = 220.0;
    const LEFT: f64 = 52.0;
    const BOTTOM: f64 = 24.0;
    let curves: Vec<(&str, Vec<(f64, f64)>)> = curves
        .iter()
        .map(|(name, points)| (name.as_str(), thin(points)))
        .filter(|(_, points)| points.iter().any(|p| p.1.is_finite()))
        .collect();
    let scale = |y: f64| if log { y.max(1e-12).log10() } else { y };
    let all = || curves.iter().flat_map(|(_, p)| p).filter(|p| p.1.is_finite());
    if all().next().is_none() {
        return;
    }
    let bound = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (x0, x1) = bound(&mut all().map(|p| p.0));
    let (mut y0, mut y1) = bound(&mut all().map(|p| scale(p.1)));
    if !log && y0 > 0.0 {
        y0 = 0.0;
    }
    if y1 - y0 < 1e-9 {
        (y0, y1) = (y0 - 0.5, y1 + 0.5);
    }
    let x = |v: f64| LEFT + (v - x0) / (x1 - x0).max(1e-9) * (W - LEFT - 8.0);
    let y = |v: f64| (H - BOTTOM) - (scale(v) - y0) / (y1 - y0) * (H - BOTTOM - 10.0);
    let _ = write!(out, "<figure><figcaption>{}</figcaption><svg width={W} height={H} role=img>", escape(title));
    for i in 0..=4 {
        let part = f64::from(i) / 4.0;
        let value = y0 + part * (y1 - y0);
        let value = if log { 10f64.powf(value) } else { value };
        let at = y(value);
        let _ = write!(
            out,
            "<line class=axis x1={LEFT} x2={W} y1={at:.1} y2={at:.1} /><text x={:.1} y={:.1} text-anchor=end>{}</text>",
            LEFT - 6.0,
            at + 4.0,
            short(value)
        );
        let value = x0 + part * (x1 - x0);
        let anchor = ["start", "middle", "middle", "middle", "end"][i as usize];
        let _ = write!(out, "<text x={:.1} y={} text-anchor={anchor}>{}</text>", x(value), H - 6.0, short(value));
    }
    for (i, (_, points)) in curves.iter().enumerate() {
        let path: Vec<String> =
            points.iter().filter(|p| p.1.is_finite()).map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        let colour = COLOURS[i % COLOURS.len()];
        let _ = write!(out, "<polyline points='{}' fill=none stroke='{colour}' stroke-width=1.8 />", path.join(" "));
    }
    *out += "</svg>";
    let named: Vec<String> = curves
        .iter()
        .enumerate()
        .filter(|(_, (name, _))| !name.is_empty())
        .map(|(i, (name, _))| format!("<span style='color:{}'>■</span> {}", COLOURS[i % COLOURS.len()], escape(name)))
        .collect();
    let _ = write!(out, "<div>{}</div></figure>", named.join(" &nbsp; "));
}

/// A number for an axis.
fn short(v: f64) -> String {
    match v.abs() {
        0.0 => "0".to_owned(),
        a if a >= 1000.0 => format!("{v:.0}"),
        a if a >= 10.0 => format!("{v:.0}"),
        a if a >= 0.1 => format!("{v:.2}"),
        a if a >= 0.001 => format!("{v:.4}"),
        _ => format!("{v:.1e}"),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_thinned_by_averaging() {
        let points: Vec<(f64, f64)> = (0..1000).map(|i| (f64::from(i), 2.0)).collect();
        let thin = thin(&points);
        assert!(thin.len() <= POINTS && thin.iter().all(|p| p.1 == 2.0) && (thin[0].0 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_plot_stays_in_its_frame_whatever_the_numbers() {
        for values in [vec![1.0], vec![f64::NAN, 1.0, 1e9], vec![0.0, -5.0], vec![1e-30, 1e30]] {
            for log in [false, true] {
                let points = values.iter().enumerate().map(|(i, v)| (i as f64, *v)).collect();
                let mut out = String::new();
                plot(&mut out, "<x>", &[("a<b".to_owned(), points)], log);
                assert!(out.contains("&lt;x&gt;") && out.contains("a&lt;b") && !out.contains("NaN"), "{out}");
            }
        }
        let mut out = String::new();
        plot(&mut out, "nothing", &[("a".to_owned(), vec![])], true);
        assert!(out.is_empty());
    }
}
