//! Every architecture and file type against its recording, and the laws that a model must keep bit for bit.
//!
//! The goldens in `testdata/models` never skip; the larger set in `../shared/fixtures` runs when it is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fathom_core::reference::Reference;
use fathom_core::{Backend, DType, LatentForm, Precision};
use fathom_cpu::{Cpu, CpuOptions, Level};
use fathom_engine::golden::{Difference, Golden, Limits, Prompt, Recorder, Replay, Rows, find, verify};
use fathom_model::spec::Mixer;
use fathom_model::{Decoder, Model, NoProbe, Probe};
use serde_json::Value;

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models")
}

/// The larger set, if this machine has it.
fn shared() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures");
    let there = dir.exists();
    if !there {
        println!("skipped: no {}", dir.display());
    }
    there.then_some(dir)
}

/// Every backend that this machine can run, by name.
fn backends(precision: Precision) -> Vec<(String, Arc<dyn Backend>)> {
    let mut all: Vec<(String, Arc<dyn Backend>)> = Vec::new();
    if precision == Precision::Exact {
        all.push(("reference".into(), Arc::new(Reference::new())));
    }
    for level in Level::present() {
        let options = CpuOptions { threads: Some(2), isa: Some(level), precision, ..CpuOptions::default() };
        all.push((format!("cpu {}", level.name()), Cpu::new(options).unwrap()));
    }
    all
}

/// Goldens of a directory that fathom runs; the others must be refused by name.
fn goldens(dir: &Path) -> Vec<Golden> {
    let newer = |g: &Golden| ["deepseek_v32", "deepseek_v4"].contains(&g.name.as_str());
    let (refused, runs): (Vec<_>, Vec<_>) = find(dir).unwrap().into_iter().partition(newer);
    for g in refused {
        let error = Model::open(&g.model, &g.options).err().expect("a model that fathom cannot run is refused");
        println!("{:44} refused: {error}", g.name);
    }
    runs
}

/// All goldens on all backends in exact precision. Returns what was seen: families and formats.
fn verify_all(dir: &Path) -> BTreeSet<String> {
    let goldens = goldens(dir);
    let (mut faults, mut seen) = (Vec::new(), BTreeSet::new());
    for (device, backend) in backends(Precision::Exact) {
        for g in &goldens {
            let r = verify(g, backend.clone(), DType::F32).unwrap_or_else(|e| panic!("{} on {device}: {e}", g.name));
            println!(
                "{device:12} {:52} logits {:.1e} (rms {:.1e}), hidden {:.1e}, experts {}/{}, greedy {}/{}, drafts {:?}",
                r.name,
                r.logits.max_abs,
                r.logits.rms_rel(),
                r.hidden.as_ref().map_or(0.0, |h| h.0),
                r.experts.1,
                r.experts.0,
                r.greedy.equal,
                r.greedy.recorded,
                r.drafts.map(|d| d.max_abs),
            );
            faults.extend(r.faults(&Limits::EXACT).into_iter().map(|f| format!("{} on {device}: {f}", g.name)));
            seen.insert(r.family.to_owned());
            seen.extend(r.formats.into_iter().map(|(name, _)| name));
            seen.extend(r.drafts.map(|_| "drafts".to_owned()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    seen
}

#[test]
fn a_fresh_clone_has_a_golden_for_everything_and_all_match() {
    let seen = verify_all(&testdata());
    let wanted = [
        ["Llama", "Qwen2", "Qwen3", "DeepSeek-MoE", "DeepSeek-V2", "DeepSeek-V3", "drafts", "F8_E4M3"],
        ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0", "Q5_1", "IQ4_XS"],
        ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_1", "", ""],
    ];
    for name in wanted.concat().into_iter().filter(|n| !n.is_empty()) {
        assert!(seen.contains(name), "no golden for {name}, only for {seen:?}");
    }
}

#[test]
fn shared_fixtures_match() {
    if let Some(dir) = shared() {
        verify_all(&dir);
    }
}

fn load(g: &Golden, backend: &Arc<dyn Backend>) -> Decoder {
    let model = Model::open(&g.model, &g.options).unwrap();
    model.load(backend.clone(), &mut |_, _| {}).unwrap()
}

/// The forms that a model's attention has.
fn forms(decoder: &Decoder) -> &'static [LatentForm] {
    match decoder.spec.layers[0].mixer {
        Mixer::Mla { .. } => &[LatentForm::Plain, LatentForm::Absorbed],
        Mixer::Gqa { .. } => &[LatentForm::Plain],
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// Logits of a prompt computed in the given pieces, each a step.
fn in_pieces(decoder: &Decoder, ids: &[u32], pieces: &[usize], form: LatentForm, kv: DType) -> Vec<u32> {
    let mut replay = Replay::new(decoder, 1, ids.len(), kv).unwrap();
    let table = replay.table(ids.len());
    let (mut out, mut at) = (Vec::new(), 0);
    for &n in pieces {
        out.extend(replay.step(&[(&table, at, &ids[at..at + n], form)], &mut NoProbe).unwrap());
        at += n;
    }
    assert_eq!(at, ids.len());
    bits(&out)
}

/// Logits of several prompts computed side by side in every step: prefills, chunks and single rows mixed.
fn side_by_side(decoder: &Decoder, prompts: &[&Prompt], form: LatentForm, kv: DType) -> Vec<Vec<u32>> {
    let longest = prompts.iter().map(|p| p.ids.len()).max().unwrap();
    let mut replay = Replay::new(decoder, prompts.len(), longest, kv).unwrap();
    let tables: Vec<_> = prompts.iter().map(|p| replay.table(p.ids.len())).collect();
    let mut done = vec![0; prompts.len()];
    let mut out = vec![Vec::new(); prompts.len()];
    for step in 0.. {
        let mut rows: Vec<Rows<'_>> = Vec::new();
        let mut whose = Vec::new();
        for (i, p) in prompts.iter().enumerate() {
            // Sequence i advances by i + 1 rows in even steps, by one in odd ones, the last all at once.
            let stride = if i + 1 == prompts.len() { p.ids.len() } else { 1 + i * (step % 2) * 3 };
            let n = stride.min(p.ids.len() - done[i]);
            if n > 0 {
                rows.push((&tables[i], done[i], &p.ids[done[i]..done[i] + n], form));
                whose.push((i, n));
                done[i] += n;
            }
        }
        if rows.is_empty() {
            return out;
        }
        let logits = replay.step(&rows, &mut NoProbe).unwrap();
        let mut at = 0;
        for (i, n) in whose {
            out[i].extend(bits(&logits[at..at + n * decoder.spec.vocab]));
            at += n * decoder.spec.vocab;
        }
    }
    unreachable!("the loop ends when all prompts are done")
}

/// The laws, on every golden of a directory and every backend of both precisions.
fn laws(dir: &Path) {
    let types = [(Precision::Exact, DType::F32), (Precision::Fast, DType::F16), (Precision::Fast, DType::Q8_0)];
    for (precision, kv) in types {
        for (device, backend) in backends(precision) {
            for g in goldens(dir) {
                let decoder = load(&g, &backend);
                let mut by_length: Vec<&Prompt> = g.prompts.iter().filter(|p| !p.ids.is_empty()).collect();
                by_length.sort_by_key(|p| p.ids.len());
                for &form in forms(&decoder) {
                    let whole = |p: &Prompt| in_pieces(&decoder, &p.ids, &[p.ids.len()], form, kv);
                    let what = format!("{} on {device}, {precision:?}, {form:?}, {}", g.name, kv.name());
                    let p = by_length.last().unwrap();
                    let n = p.ids.len();
                    let expected = whole(p);
                    assert!(
                        in_pieces(&decoder, &p.ids, &vec![1; n], form, kv) == expected,
                        "{what}: cached ≠ uncached"
                    );
                    for pieces in [vec![5, n - 5], vec![n - 1, 1], vec![n / 3, n / 3, n - 2 * (n / 3)]] {
                        let chunked = in_pieces(&decoder, &p.ids, &pieces, form, kv);
                        assert!(chunked == expected, "{what}: chunks of {pieces:?} ≠ whole");
                    }
                    let together = side_by_side(&decoder, &by_length, form, kv);
                    for (p, logits) in by_length.iter().zip(together) {
                        assert!(logits == whole(p), "{what}: {} in a batch ≠ alone", p.name);
                    }
                }
            }
        }
    }
}

#[test]
fn cached_chunked_and_batched_runs_give_the_same_bits() {
    laws(&testdata());
}

#[test]
fn shared_fixtures_keep_the_laws() {
    if let Some(dir) = shared() {
        laws(&dir);
    }
}

/// Logits of a prompt in one step.
fn whole(decoder: &Decoder, ids: &[u32], kv: DType, probe: &mut dyn Probe) -> Vec<f32> {
    let mut replay = Replay::new(decoder, 1, ids.len(), kv).unwrap();
    let table = replay.table(ids.len());
    replay.step(&[(&table, 0, ids, LatentForm::Plain)], probe).unwrap()
}

/// What llama.cpp diverges from exact arithmetic, by file, and the prompts (modulo the vocabulary) that it was measured on
/// (see `testdata/scripts`).
struct LlamaCpp {
    prompts: Vec<Vec<u32>>,
    files: BTreeMap<String, f64>,
}

fn llama_cpp() -> LlamaCpp {
    let json: Value = serde_json::from_slice(&std::fs::read(testdata().join("llama_cpp.json")).unwrap()).unwrap();
    let files = json["files"].as_object().unwrap();
    LlamaCpp {
        prompts: serde_json::from_value(json["prompts"].clone()).unwrap(),
        files: files.iter().map(|(name, entry)| (name.clone(), entry["kl"].as_f64().unwrap())).collect(),
    }
}

/// Fast precision stays near: root mean square of the logits within 3 % of the recordings, the experts forced to be
/// those that exact arithmetic chooses (one flipped choice is a different function, not an error of rounding).
///
/// With their own choice of experts, logits diverge at most as much as llama.cpp's on the same file and prompts (seen at the
/// best level of instructions; the others differ from it by the order of additions).
fn fast(dir: &Path) {
    let exact = CpuOptions { precision: Precision::Exact, ..CpuOptions::default() };
    let exact: Arc<dyn Backend> = Cpu::new(exact).unwrap();
    let peer = llama_cpp();
    let mut faults = Vec::new();
    let all = backends(Precision::Fast);
    let best = all.last().unwrap().0.clone();
    for (device, backend) in all {
        for g in goldens(dir) {
            let (exact, decoder) = (load(&g, &exact), load(&g, &backend));
            let vocab = decoder.spec.vocab;
            let mut forced = Difference::default();
            for p in &g.prompts {
                let mut chosen = Recorder::default();
                whole(&exact, &p.ids, DType::F32, &mut chosen);
                let mut probe = Recorder { force: chosen.routes, ..Recorder::default() };
                forced.and(Difference::of(&whole(&decoder, &p.ids, DType::F16, &mut probe), &p.logits, vocab));
            }
            println!("{device:16} {:52} rms {:.4} top-1 {:.3}", g.name, forced.rms_rel(), forced.top1());
            if forced.rms_rel().is_nan() || forced.rms_rel() > 0.03 {
                faults.push(format!("{} on {device}: rms rel {:.4}, allowed 0.03", g.name, forced.rms_rel()));
            }
            let Some(&theirs) = peer.files.get(&g.name).filter(|_| device == best) else { continue };
            let mut free = Difference::default();
            for ids in &peer.prompts {
                let ids: Vec<u32> = ids.iter().map(|i| i % vocab as u32).collect();
                let golden = whole(&exact, &ids, DType::F32, &mut NoProbe);
                free.and(Difference::of(&whole(&decoder, &ids, DType::F16, &mut NoProbe), &golden, vocab));
            }
            println!("{:16} own choice of experts: kl {:.1e}, llama.cpp {theirs:.1e}", "", free.kl());
            if free.kl().is_nan() || free.kl() > theirs {
                faults.push(format!("{} on {device}: KL {:.2e}, llama.cpp's is {theirs:.2e}", g.name, free.kl()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn fast_precision_stays_near() {
    fast(&testdata());
}

#[test]
fn fast_precision_stays_near_on_shared_fixtures() {
    if let Some(dir) = shared() {
        fast(&dir);
    }
}

/// A cache of 8 bits alone moves the logits by less than fast precision may.
#[test]
fn a_cache_of_eight_bits_stays_near() {
    let options = CpuOptions { precision: Precision::Exact, ..CpuOptions::default() };
    let backend: Arc<dyn Backend> = Cpu::new(options).unwrap();
    for g in goldens(&testdata()) {
        let decoder = load(&g, &backend);
        let mut moved = Difference::default();
        for p in &g.prompts {
            let mut chosen = Recorder::default();
            let exact = whole(&decoder, &p.ids, DType::F32, &mut chosen);
            let mut probe = Recorder { force: chosen.routes, ..Recorder::default() };
            moved.and(Difference::of(&whole(&decoder, &p.ids, DType::Q8_0, &mut probe), &exact, decoder.spec.vocab));
        }
        println!("{:52} rms {:.4} kl {:.1e} top-1 {:.3}", g.name, moved.rms_rel(), moved.kl(), moved.top1());
        assert!(moved.rms_rel() <= 0.03, "{}: rms rel {:.4}", g.name, moved.rms_rel());
    }
}
