//! `fathom bench --profile`: where the time of prefill and of decode goes, operation by operation.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use anyhow::Result;
use fathom_core::timed::{Op, Spent};
use serde_json::{Value, json};

use super::sweep::Measured;

/// Operations of several passes.
#[derive(Clone, Debug, Default)]
pub(super) struct Profile {
    spent: BTreeMap<Op, Spent>,
    /// By the clock, from the first operation of each pass to its last.
    wall: Duration,
}

/// What kinds of operations there are, in the order of the table.
const KINDS: [&str; 9] =
    ["products", "head", "attention", "cache", "norms", "rotation", "additions", "routing", "others"];

/// What a kind is made of.
fn kind(op: Op) -> &'static str {
    match op.name {
        "logits" => "head",
        "linear" | "linear_experts" | "ffn" | "moe" | "conv2d" => "products",
        "attend" | "attend_latent" => "attention",
        "kv_write" | "kv_copy" => "cache",
        "rms_norm" | "layer_norm" | "group_norm" => "norms",
        "rope" | "rope_table" => "rotation",
        "add" => "additions",
        "route" | "combine_experts" => "routing",
        _ => "others",
    }
}

/// A line of the table.
#[derive(Debug, PartialEq)]
struct Line {
    kind: &'static str,
    time: Duration,
    /// Operations that it is made of, longest first.
    ops: Vec<(Op, Spent)>,
}

impl Profile {
    /// One more pass.
    pub(super) fn add(&mut self, spent: &BTreeMap<Op, Spent>, wall: Duration) {
        self.wall += wall;
        for (op, more) in spent {
            let sum = self.spent.entry(*op).or_default();
            sum.calls += more.calls;
            sum.time += more.time;
        }
    }

    fn lines(&self) -> Vec<Line> {
        let line = |of: &'static str| {
            let mut ops: Vec<_> = self.spent.iter().filter(|(op, _)| kind(**op) == of).map(|(o, s)| (*o, *s)).collect();
            ops.sort_by_key(|(_, spent)| std::cmp::Reverse(spent.time));
            Line { kind: of, time: ops.iter().map(|(_, s)| s.time).sum(), ops }
        };
        let mut lines: Vec<Line> = KINDS.into_iter().map(line).filter(|l| !l.ops.is_empty()).collect();
        let between = self.wall.saturating_sub(lines.iter().map(|l| l.time).sum());
        lines.push(Line { kind: "between", time: between, ops: Vec::new() });
        lines
    }

    fn share(&self, time: Duration) -> f64 {
        time.as_secs_f64() / self.wall.as_secs_f64().max(1e-12)
    }

    /// Shares of the time that are neither matrix products nor the head, and of attention.
    fn outside(&self, lines: &[Line]) -> (f64, f64) {
        let of = |kind: &str| lines.iter().find(|l| l.kind == kind).map_or(0.0, |l| self.share(l.time));
        (1.0 - of("products") - of("head"), of("attention"))
    }
}

/// The table of one figure, if it was profiled. `passes` is how often it was measured.
pub(super) fn print(out: &mut impl io::Write, measured: &Measured) -> Result<()> {
    let Some(profile) = &measured.profile else { return Ok(()) };
    let figure = &measured.figure;
    let units = match figure.unit() {
        "prompt" => measured.rates.len(),
        _ => measured.rates.len() * figure.tokens,
    };
    let each = |time: Duration| 1e3 * time.as_secs_f64() / units as f64;
    let lines = profile.lines();
    writeln!(
        out,
        "\n{} of {}: {:.3} ms a {}",
        figure.what.name(),
        figure.describe(),
        each(profile.wall),
        figure.unit()
    )?;
    for line in &lines {
        writeln!(out, "  {:<26}{:>11.3} ms{:>8.1} %", line.kind, each(line.time), 100.0 * profile.share(line.time))?;
        for (op, spent) in line.ops.iter().filter(|_| line.ops.len() > 1 || line.kind == "products") {
            let name = if op.outputs > 0 { format!("{}, {} wide", op.name, op.outputs) } else { op.name.to_owned() };
            let calls = spent.calls as f64 / units as f64;
            writeln!(
                out,
                "    {name:<24}{:>11.3} ms{:>8.1} %{calls:>8.0} times",
                each(spent.time),
                100.0 * profile.share(spent.time)
            )?;
        }
    }
    let (outside, attention) = profile.outside(&lines);
    writeln!(out, "  outside matrix products {:.1} %, of which attention {:.1} %", 100.0 * outside, 100.0 * attention)?;
    Ok(())
}

/// The same for programs, seconds of all passes together.
pub(super) fn json(measured: &Measured) -> Value {
    let Some(profile) = &measured.profile else { return Value::Null };
    let lines = profile.lines();
    let (outside, attention) = profile.outside(&lines);
    let ops = |line: &Line| -> Vec<Value> {
        let op = |(op, s): &(Op, Spent)| {
            let time = s.time.as_secs_f64();
            json!({ "op": op.name, "outputs": op.outputs, "calls": s.calls, "s": time })
        };
        line.ops.iter().map(op).collect()
    };
    let kinds: Vec<Value> = lines
        .iter()
        .map(|l| json!({ "kind": l.kind, "s": l.time.as_secs_f64(), "share": profile.share(l.time), "ops": ops(l) }))
        .collect();
    json!({
        "s": profile.wall.as_secs_f64(),
        "outside_products_fraction": outside,
        "attention_fraction": attention,
        "kinds": kinds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_the_head_stands_apart() {
        let spent = |ms| Spent { calls: 1, time: Duration::from_millis(ms) };
        let op = |name, outputs| Op { name, outputs };
        let pass = BTreeMap::from([
            (op("linear", 64), spent(30)),
            (op("ffn", 64), spent(40)),
            (op("logits", 100), spent(10)),
            (op("attend", 0), spent(8)),
            (op("rms_norm", 0), spent(2)),
        ]);
        let mut profile = Profile::default();
        profile.add(&pass, Duration::from_millis(100));
        profile.add(&pass, Duration::from_millis(100));
        let lines = profile.lines();
        let told: Vec<_> = lines.iter().map(|l| (l.kind, l.time.as_millis())).collect();
        assert_eq!(told, [("products", 140), ("head", 20), ("attention", 16), ("norms", 4), ("between", 20)]);
        assert_eq!(lines[0].ops[0].0.name, "ffn");
        let (outside, attention) = profile.outside(&lines);
        assert!((outside - 0.2).abs() < 1e-9 && (attention - 0.08).abs() < 1e-9);
        assert_eq!(lines.iter().map(|l| profile.share(l.time)).sum::<f64>(), 1.0);
    }
}
