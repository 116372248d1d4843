//! What every kind must keep: checked steps, verified and unique answers, disjoint splits, many phrasings.

use fathom_core::rng::Rng;
use fathom_tasks::reward::{Rules, score};
use fathom_tasks::{
    Generator, KINDS, Lang, Mix, Sample, Split, TasksError, check_steps, pieces, word_list, write_jsonl,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::LazyLock;

/// Samples a kind and language and split in the exhaustive tests.
const MANY: u64 = 600;

fn generator() -> &'static Generator {
    static DEFAULT: LazyLock<Generator> = LazyLock::new(|| Generator::new(&Mix::default()).unwrap());
    &DEFAULT
}

/// Every kind, language and split that holds samples.
fn everywhere() -> Vec<(&'static str, Lang, Split)> {
    let all = Generator::kinds().into_iter().flat_map(|k| Lang::ALL.map(|l| Split::ALL.map(|s| (k, l, s))));
    let prose = |k: &str| KINDS.iter().all(|kind| kind.name != k);
    all.flatten().filter(|(k, _, s)| !(prose(k) && *s == Split::Problem)).collect()
}

fn samples(kind: &'static str, lang: Lang, split: Split, count: u64) -> impl Iterator<Item = Sample> {
    let generator = generator();
    (0..count).map(move |i| generator.sample_of(kind, lang, split, 11, i).unwrap())
}

#[test]
fn steps_check_and_hold_the_answer() {
    let mut facts = 0;
    for (kind, lang, split) in everywhere() {
        for sample in samples(kind, lang, split, MANY) {
            let shown = || format!("{}\n{}\n{}", sample.question, sample.reasoning, sample.answer);
            facts += check_steps(kind, &sample.reasoning).unwrap_or_else(|e| panic!("{kind}: {e}\n{}", shown()));
            assert!(sample.problem.verify(lang, sample.answer.trim_start_matches(lang.answer_mark())), "{}", shown());
            let full = score(&sample, &sample.completion(), 1, &Rules { correct: 1.0, format: 1.0, steps: 1.0 });
            assert_eq!(full.value, 3.0, "{}", shown());
            if sample.is_computed() {
                let said = |t: &str| {
                    pieces(t)
                        .filter(|p| p.trim_start().starts_with(char::is_alphanumeric))
                        .map(|p| p.trim().to_owned())
                        .collect::<BTreeSet<_>>()
                };
                let missing: Vec<_> = said(&sample.answer).difference(&said(&sample.reasoning)).cloned().collect();
                let shown_elsewhere = ["Answer", "Antwort", "remainder", "Rest"];
                assert!(
                    kind == "reverse" || missing.iter().all(|m| shown_elsewhere.contains(&m.as_str())),
                    "{missing:?}\n{}",
                    shown()
                );
            }
        }
    }
    assert!(facts > 200_000, "{facts}");
}

/// A digit changed anywhere in the reasoning of a calculation is found.
#[test]
fn the_checker_sees_every_changed_digit() {
    for kind in KINDS {
        let (mut changed, mut missed) = (0, vec![]);
        for sample in samples(kind.name, Lang::De, Split::Train, 60) {
            for (at, c) in sample.reasoning.char_indices().filter(|(_, c)| c.is_ascii_digit()) {
                let other = ((c as u8 - b'0' + 1) % 10 + b'0') as char;
                let mut broken = sample.reasoning.clone();
                broken.replace_range(at..=at, &other.to_string());
                changed += 1;
                if check_steps(kind.name, &broken).is_ok() {
                    missed.push(broken);
                }
            }
        }
        // A change in what is only copied from the question can make steps of another problem, right in themselves:
        // digits behind the one that decides a comparison, or a list's first state.
        let bound = if kind.name == "compare" { 7 } else { 20 };
        assert!(missed.len() * bound <= changed, "{}: {} of {changed}: {:?}", kind.name, missed.len(), &missed[..3]);
    }
}

/// What a model writes may be anything: the checker and the rules say so, and go on.
#[test]
fn no_reasoning_is_too_strange() {
    const ODD: [&str; 12] =
        ["", " ", "\n", ": ", " | ", " =", "?", "ä", "0", "-", "99999999999999999999999", "1/0=0r0"];
    let mut rng = Rng::new(5, 0);
    let mut refused = 0;
    for kind in KINDS {
        for sample in samples(kind.name, Lang::De, Split::Train, 40) {
            let other = samples(KINDS[rng.below(KINDS.len() as u32) as usize].name, Lang::En, Split::Train, 1).next();
            for _ in 0..60 {
                let mut text = sample.reasoning.clone();
                for _ in 0..=rng.below(3) {
                    let places: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
                    let at = |rng: &mut Rng| places[rng.below(places.len() as u32) as usize];
                    let (a, b) = (at(&mut rng), at(&mut rng));
                    let (from, to) = (a.min(b), a.max(b));
                    match rng.below(5) {
                        0 => text.replace_range(from..to, ""),
                        1 => text = [&text[..to], &text[from..]].concat(),
                        2 => text.truncate(to),
                        3 => text.insert_str(from, ODD[rng.below(ODD.len() as u32) as usize]),
                        _ => text.insert_str(from, &other.as_ref().unwrap().reasoning),
                    }
                }
                refused += u64::from(check_steps(kind.name, &text).is_err());
                score(&sample, &text, 1, &Rules::default());
            }
        }
    }
    assert!(refused > 20_000, "{refused}");
}

/// The arithmetic, once more, from the question itself where it has just the operands.
#[test]
fn answers_follow_from_the_operands() {
    let mut seen = 0;
    for kind in ["add", "sub", "mul", "div", "gcd"] {
        for sample in samples(kind, Lang::En, Split::Train, MANY) {
            let key: Vec<i64> = sample.problem.key().split(' ').map(|n| n.parse().unwrap()).collect();
            let (a, b) = (key[0], key[1]);
            let gcd = (1..=a).rev().find(|d| a % d == 0 && b % d == 0).unwrap();
            let wanted = match kind {
                "add" => (a + b).to_string(),
                "sub" => (a - b).to_string(),
                "mul" => (a * b).to_string(),
                "gcd" => gcd.to_string(),
                _ if a % b == 0 => (a / b).to_string(),
                _ => format!("{} remainder {}", a / b, a % b),
            };
            assert_eq!(sample.answer, format!("Answer: {wanted}"), "{}", sample.question);
            let digits = |n: i64| sample.question.contains(&n.to_string());
            assert!(digits(a) && digits(b), "{}", sample.question);
            seen += 1;
        }
    }
    assert_eq!(seen, 5 * MANY);
}

#[test]
fn splits_cannot_meet() {
    let mut problems: HashMap<(&str, String), bool> = HashMap::new();
    let mut phrasings: HashMap<(&str, &str, String), bool> = HashMap::new();
    let (mut held_problems, mut held_phrasings) = (0, 0);
    for (kind, lang, split) in everywhere() {
        let computed = KINDS.iter().any(|k| k.name == kind);
        for sample in samples(kind, lang, split, 2 * MANY) {
            if computed {
                let held = split != Split::Train;
                let before = problems.insert((kind, sample.problem.key()), held);
                assert!(before.is_none_or(|b| b == held), "{kind} {}", sample.problem.key());
                held_problems += usize::from(before.is_none() && held);
            }
            let held = split == Split::Phrasing;
            let before = phrasings.insert((kind, lang.code(), sample.template.clone()), held);
            assert!(before.is_none_or(|b| b == held), "{kind} {}", sample.template);
            held_phrasings += usize::from(before.is_none() && held);
        }
    }
    assert!(held_problems > 10_000, "{held_problems}");
    assert!(held_phrasings > 1_500, "{held_phrasings}");
}

#[test]
fn at_least_two_hundred_forms_a_kind_and_language() {
    for kind in Generator::kinds() {
        for lang in Lang::ALL {
            let train: BTreeSet<String> = samples(kind, lang, Split::Train, 4000).map(|s| s.template).collect();
            let held: BTreeSet<String> = samples(kind, lang, Split::Phrasing, 1000).map(|s| s.template).collect();
            println!(
                "{kind:10} {}: {:5} phrasings seen in training, {:4} held out",
                lang.code(),
                train.len(),
                held.len()
            );
            assert!(train.len() >= 200, "{kind} {}: {}", lang.code(), train.len());
            assert!(held.len() >= 20, "{kind} {}: {} held out", lang.code(), held.len());
        }
    }
}

/// The same words are never answered in two ways, neither by two facts nor by a fact and a refusal.
#[test]
fn a_question_has_one_answer() {
    let mut answers: HashMap<(Lang, String), String> = HashMap::new();
    for (kind, lang, split) in everywhere().into_iter().filter(|(k, _, _)| ["fathom", "outside"].contains(k)) {
        for sample in samples(kind, lang, split, 10 * MANY).filter(|s| !s.template.contains('{')) {
            let before = answers.insert((lang, sample.template.clone()), sample.answer.clone());
            assert!(before.is_none_or(|b| b == sample.answer), "{}: {}", sample.template, sample.answer);
        }
    }
    assert!(answers.len() > 4_000, "{}", answers.len());
}

#[test]
fn bare_forms_are_trained() {
    for (kind, lang, form) in [
        ("add", Lang::En, "{a}+{b}"),
        ("mul", Lang::De, "{a}*{b}"),
        ("chain", Lang::De, "{e}"),
        ("div", Lang::En, "{a}/{d}"),
    ] {
        assert!(samples(kind, lang, Split::Train, 3000).any(|s| s.template == form), "{kind} {form}");
    }
}

#[test]
fn a_sample_is_a_function_of_seed_and_index() {
    let (a, b) = (generator(), Generator::new(&Mix::default()).unwrap());
    let text = |s: Sample| s.to_json().to_string();
    for index in [0, 1, 2, 1 << 40] {
        assert_eq!(text(a.sample(Split::Train, 5, index)), text(b.sample(Split::Train, 5, index)));
        assert_ne!(text(a.sample(Split::Train, 5, index)), text(a.sample(Split::Train, 6, index)));
    }
    let distinct: BTreeSet<String> = (0..2000).map(|i| a.sample(Split::Train, 5, i).question).collect();
    assert!(distinct.len() > 1700, "{}", distinct.len());
}

#[test]
fn the_mix_is_kept() {
    let mut counts = BTreeMap::new();
    let (total, generator) = (20_000, generator());
    let mut german = 0;
    for sample in (0..total).map(|i| generator.sample(Split::Train, 1, i)) {
        *counts.entry(sample.kind).or_insert(0) += 1;
        german += u64::from(sample.lang == Lang::De);
    }
    let mix = Mix::default();
    let sum: f64 = mix.weights.values().sum();
    for (kind, weight) in &mix.weights {
        let (share, found) = (weight / sum, f64::from(counts[kind.as_str()]) / total as f64);
        assert!((share - found).abs() < 0.01, "{kind}: {share} {found}");
    }
    assert!((german as f64 / total as f64 - 0.45).abs() < 0.02);
}

#[test]
fn verifiers_forgive_form_and_nothing_else() {
    let generator = generator();
    for (kind, lang, _) in everywhere() {
        if kind == "outside" {
            continue;
        }
        let sample = |i| generator.sample_of(kind, lang, Split::Train, 2, i).unwrap();
        for i in 0..200 {
            let (one, two) = (sample(i), sample(i + 1));
            let stated = |s: &Sample| s.answer.trim_start_matches(lang.answer_mark()).to_owned();
            let fine = one.problem.verify(lang, &format!(" {} ", stated(&one)));
            assert!(fine, "{kind} {}", stated(&one));
            let shared = stated(&one) == stated(&two) || kind == "countdown";
            assert!(
                shared || !one.problem.verify(lang, &stated(&two)),
                "{kind}: {} for {}",
                stated(&two),
                stated(&one)
            );
            assert!(
                !one.problem.verify(lang, "") && !one.problem.verify(lang, "0 1 2") && !one.problem.verify(lang, "?")
            );
        }
    }
}

#[test]
fn word_problems_of_both_kinds_forgive_units_and_notation() {
    let find = |kind, lang, wanted: &str| {
        let all = samples(kind, lang, Split::Train, 4000);
        all.into_iter()
            .find(|s| s.answer.ends_with(wanted))
            .unwrap_or_else(|| panic!("no {kind} answers {wanted}"))
            .problem
    };
    let div = find("div", Lang::En, " 12 remainder 3");
    assert!(["12 r 3", "12R3", "12 remainder 3."].iter().all(|t| div.verify(Lang::En, t)));
    assert!(["12", "12 r 2", "123", "12.3"].iter().all(|t| !div.verify(Lang::En, t)));
    let time = find("time", Lang::De, " 3:46");
    assert!(["3:46", "03:46", "3 h 46 min", "3 Stunden und 46 Minuten"].iter().all(|t| time.verify(Lang::De, t)));
    assert!(["3:47", "346", "3", "46:3", "3:46:1"].iter().all(|t| !time.verify(Lang::De, t)));
    let unit = find("unit", Lang::En, " 300 min");
    assert!(["300", "300 min", "300 minutes"].iter().all(|t| unit.verify(Lang::En, t)));
    assert!(["30 min", "300 dogs", "3 00"].iter().all(|t| !unit.verify(Lang::En, t)));
    let minus = find("sub", Lang::En, " -7");
    assert!(["-7", "−7", "minus 7"].iter().all(|t| minus.verify(Lang::En, t)) && !minus.verify(Lang::En, "7"));
}

#[test]
fn countdown_takes_any_solution() {
    let sample = samples("countdown", Lang::En, Split::Train, 200)
        .find(|s| s.problem.key().starts_with("[2, 3, 7]"))
        .map(|s| s.problem);
    let problem = sample.unwrap_or_else(|| samples("countdown", Lang::En, Split::Train, 1).next().unwrap().problem);
    let answer = problem.answer(Lang::En);
    let target = problem.key().rsplit_once(' ').unwrap().1.to_owned();
    for right in [answer.clone(), format!("({answer})"), format!("{answer} = {target}"), answer.replace('*', " × ")] {
        assert!(problem.verify(Lang::En, &right), "{right}");
    }
    for wrong in [
        target.clone(),
        format!("{answer}+0"),
        format!("{answer}*1"),
        format!("{answer}=1000"),
        answer.replace(['1', '2', '3'], "4") + "+1",
    ] {
        assert!(!problem.verify(Lang::En, &wrong), "{wrong}");
    }
}

#[test]
fn jsonl_is_chat_format_with_provenance() {
    let generator = generator();
    let mut text = vec![];
    write_jsonl((0..50).map(|i| generator.sample(Split::Problem, 3, i)), &mut text).unwrap();
    let lines: Vec<serde_json::Value> =
        text.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect();
    assert_eq!(lines.len(), 50);
    for line in lines {
        assert_eq!(line["messages"][0]["role"], "user");
        let said = line["messages"][1]["content"].as_str().unwrap();
        assert!(said.starts_with("<think>\n") && said.contains("\n</think>\n\n"), "{said}");
        assert_eq!((&line["split"], line["teacher"].is_null()), (&"problem".into(), true));
        assert!(
            ["CC0-1.0", "MIT"].contains(&line["licence"].as_str().unwrap())
                && line["source"].as_str().unwrap().contains("seed 3")
        );
    }
}

#[test]
fn the_word_list_covers_the_texts_within_two_thousand_tokens() {
    let words = word_list(1700).unwrap();
    let set: BTreeSet<&str> = words.iter().map(String::as_str).collect();
    assert_eq!(set.len(), words.len());
    assert!([" is", "Was", " Monday", "Antwort", " remainder", " left"].iter().all(|w| set.contains(w)));
    assert!([" strawberry", "erdbeere", "a", "7", " r"].iter().all(|w| !set.contains(w)));
    let generator = Generator::new(&Mix {
        weights: Mix::default()
            .weights
            .into_iter()
            .filter(|(k, _)| !["outside", "count", "reverse"].contains(&k.as_str()))
            .collect(),
        ..Mix::default()
    })
    .unwrap();
    let (mut known, mut all) = (0, 0);
    for sample in (0..4000).map(|i| generator.sample(Split::Phrasing, 9, i)) {
        for piece in pieces(&sample.question).filter(|p| p.trim_start().chars().count() > 1) {
            all += 1;
            known += u32::from(set.contains(piece));
        }
    }
    println!(
        "{} words; {:.2} % of the words of held-out phrasings are one token",
        words.len(),
        100.0 * f64::from(known) / f64::from(all)
    );
    assert!(f64::from(known) / f64::from(all) > 0.93, "{known} of {all}");
}

#[test]
fn bad_requests_are_named() {
    let unknown = Generator::new(&Mix::only(&["add", "algebra"])).err();
    assert!(matches!(unknown, Some(TasksError::UnknownKind { name, .. }) if name == "algebra"));
    let with = |change: fn(&mut Mix)| {
        let mut mix = Mix::default();
        change(&mut mix);
        Generator::new(&mix).err()
    };
    assert!(matches!(with(|m| m.german = 1.5), Some(TasksError::Range { .. })));
    assert!(matches!(with(|m| m.german = f64::NAN), Some(TasksError::Range { .. })));
    assert!(matches!(with(|m| m.weights.clear()), Some(TasksError::Range { .. })));
    assert!(matches!(with(|m| *m.weights.get_mut("add").unwrap() = -1.0), Some(TasksError::Range { .. })));
    let empty = generator().sample_of("fathom", Lang::En, Split::Problem, 1, 1).err();
    assert!(matches!(empty, Some(TasksError::EmptySplit { .. })));
}

/// 20,000 samples a second and core is what training needs; run in release by `cargo test --release -- --ignored`.
#[test]
#[ignore = "a measurement: run alone, in release"]
fn speed() {
    let generator = generator();
    let start = on_core();
    let bytes: usize = (0..100_000)
        .map(|i| generator.sample(Split::Train, 1, i))
        .map(|s| s.question.len() + s.completion().len())
        .sum();
    let rate = 100_000.0 / (on_core() - start);
    println!("{rate:.0} samples/s, {} bytes each", bytes / 100_000);
    assert!(rate >= 20_000.0, "{rate}");
}

/// Seconds that this thread has run on a core, so that a busy machine does not count.
fn on_core() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells how long a thread ran");
    text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).expect("the first number is nanoseconds") / 1e9
}

/// Refusals are told from answers.
#[test]
fn refusals_are_known() {
    let generator = Generator::new(&Mix::default()).unwrap();
    for kind in Generator::kinds() {
        for lang in Lang::ALL {
            let sample = generator.sample_of(kind, lang, Split::Train, 3, 5).unwrap();
            assert_eq!(fathom_tasks::refuses(&sample.answer), kind == "outside", "{}", sample.answer);
        }
    }
}
