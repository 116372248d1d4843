//! Rewards by rules for reinforcement learning: correctness by the exact verifier, and format.
//!
//! As in R1-Zero (DeepSeek-AI 2025, section 2.2) no model judges. A third rule, off by default, asks
//! that the printed steps check: without it a trial saw short lucky guesses crowd out a right search.

use crate::{Lang, Sample, check_steps};

/// What each rule is worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// A right answer.
    pub correct: f32,
    /// One pair of think tags with something inside, one answer line.
    pub format: f32,
    /// A right answer whose reasoning checks step by step.
    pub steps: f32,
}

impl Default for Rules {
    fn default() -> Self {
        Rules { correct: 1.0, format: 0.1, steps: 0.0 }
    }
}

/// What the rules found in one completion.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// The verifier accepts the answer.
    pub correct: bool,
    /// The form is kept.
    pub format: bool,
    /// The reasoning checks.
    pub steps: bool,
    /// Length of the completion in tokens.
    pub tokens: usize,
    /// The reward.
    pub value: f32,
}

/// Scores what a model wrote after the template's `<think>`; `tokens` is its length.
pub fn score(sample: &Sample, completion: &str, tokens: usize, rules: &Rules) -> Score {
    let text = completion.trim_start();
    let text = text.strip_prefix("<think>").unwrap_or(text);
    let (reasoning, answer) = text.rsplit_once("</think>").unwrap_or((text, ""));
    let lines: Vec<&str> = answer.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let last = lines.last().copied().unwrap_or("");
    let stated_in = |lang: Lang| last.strip_prefix(if sample.is_computed() { lang.answer_mark() } else { "" });
    // `3+4=` is asked in no language, so either will do.
    let lang = match Lang::ALL.into_iter().find(|&lang| stated_in(lang).is_some()) {
        Some(lang) if sample.is_wordless() => lang,
        _ => sample.lang,
    };
    let stated = stated_in(lang);
    let tags_once = !reasoning.contains("<think>") && !reasoning.contains("</think>") && !answer.contains("<think>");
    let format = tags_once && !reasoning.trim().is_empty() && lines.len() == 1 && stated.is_some();
    let correct = !last.is_empty() && sample.problem.verify(lang, stated.unwrap_or(last));
    let steps = correct && format && check_steps(sample.kind, reasoning.trim()).is_ok();
    let worth = |won: bool, value: f32| if won { value } else { 0.0 };
    let value = worth(correct, rules.correct) + worth(format, rules.format) + worth(steps, rules.steps);
    Score { correct, format, steps, tokens, value }
}

/// Means over a batch of scores.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Means {
    /// Mean reward.
    pub value: f64,
    /// Share of right answers.
    pub correct: f64,
    /// Share in the right form.
    pub format: f64,
    /// Share whose reasoning checks.
    pub steps: f64,
    /// Mean length in tokens.
    pub tokens: f64,
}

impl Means {
    /// Means of `scores`; zeros for none.
    pub fn of(scores: &[Score]) -> Self {
        let mean = |f: fn(&Score) -> f64| scores.iter().map(f).sum::<f64>() / scores.len().max(1) as f64;
        Means {
            value: mean(|s| f64::from(s.value)),
            correct: mean(|s| f64::from(u8::from(s.correct))),
            format: mean(|s| f64::from(u8::from(s.format))),
            steps: mean(|s| f64::from(u8::from(s.steps))),
            tokens: mean(|s| s.tokens as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Generator, Mix, Split};

    #[test]
    fn rules() {
        let generator = Generator::new(&Mix::default()).unwrap();
        let sample = generator.sample_of("add", Lang::En, Split::Train, 1, 1).unwrap();
        let rules = Rules { correct: 1.0, format: 0.25, steps: 0.5 };
        let (right, wrong) = (&sample.answer, "Answer: -1");
        let r = &sample.reasoning;
        for (text, value) in [
            (sample.completion(), 1.75),
            (format!("<think>\n{}", sample.completion()), 1.75),
            (format!("lucky\n</think>\n{right}"), 1.25),
            (format!("</think>\n{right}"), 1.0),
            (format!("{r}\n</think>\n{}", right.trim_start_matches("Answer: ")), 1.0),
            (format!("{r}\n</think>\nSo\n{right}"), 1.0),
            (format!("{r}\n</think>\n<think></think>{right}"), 1.0),
            (format!("{r}\n</think>\n{wrong}"), 0.25),
            (format!("{r}\n{right}"), 0.0),
            (String::new(), 0.0),
        ] {
            assert_eq!(score(&sample, &text, 9, &rules).value, value, "{text}");
        }
        // The answer's language is the question's, unless that has no word.
        let translated = sample.completion().replace("Answer: ", "Antwort: ");
        let with = |question: &str| Sample { question: question.into(), ..sample.clone() };
        assert_eq!(score(&with("3x4=?"), &translated, 9, &rules).value, 1.75);
        assert_eq!(score(&with("What is 3x4?"), &translated, 9, &rules).value, 0.0);
        let means = Means::of(&[score(&sample, &sample.completion(), 30, &rules), score(&sample, "", 10, &rules)]);
        assert_eq!((means.value, means.correct, means.tokens), (0.875, 0.5, 20.0));
        assert_eq!(Means::of(&[]), Means::default());
    }
}
