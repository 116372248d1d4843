//! How many problems a model gets right: greedy answers through the engine, verified exactly.

use std::sync::{Arc, Mutex};

use fathom_core::DType;
use fathom_engine::{
    Event, Flow, Id, Meter, ModelRunner, Request, RunnerOptions, Sampling, ScheduleOptions, Speculation, Worker,
    WorkerOptions,
};
use fathom_model::Decoder;
use fathom_tasks::reward::{Rules, score};
use fathom_tasks::{Generator, Lang, Sample, Split, refuses};
use fathom_text::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// Sequences at once.
const SEQUENCES: usize = 96;

/// One answer of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Its tokens, the end of the answer included if it came.
    pub tokens: Vec<u32>,
    /// Their log-probabilities, if asked for.
    pub logprobs: Vec<f32>,
    /// Whether it ended by itself.
    pub ended: bool,
}

/// How answers are drawn.
#[derive(Clone, Debug)]
pub struct Drawing {
    /// Tokens at most.
    pub max_tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Seed; every answer has a stream of its own.
    pub seed: u64,
    /// Whether log-probabilities are kept.
    pub logprobs: bool,
    /// Whether the prediction block drafts.
    pub drafts: bool,
}

impl Drawing {
    /// Greedy.
    pub fn greedy(max_tokens: usize) -> Self {
        Drawing { max_tokens, sampling: Sampling::default(), seed: 0, logprobs: false, drafts: false }
    }
}

/// What drafting came to: drafts made, and those that were right.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Drafts {
    /// Made.
    pub drafted: u64,
    /// Right.
    pub accepted: u64,
}

/// Has `decoder` answer all prompts, in batches, with a cache of their own.
///
/// # Errors
/// If the engine fails.
pub fn answers(
    decoder: Decoder,
    prompts: &[Vec<u32>],
    stop: &[u32],
    drawing: &Drawing,
) -> Result<(Vec<Answer>, Drafts)> {
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(1) + drawing.max_tokens;
    let context = longest.min(decoder.spec.context);
    let options = RunnerOptions {
        context: Some(context),
        cache_tokens: Some(SEQUENCES * (context + 32)),
        kv: DType::F32,
        drafts: drawing.drafts,
    };
    let runner = ModelRunner::new(decoder, options)?;
    let schedule = ScheduleOptions { sequences: SEQUENCES, ..ScheduleOptions::default() };
    let speculation = if drawing.drafts { Speculation::Head } else { Speculation::Off };
    let options = WorkerOptions { schedule, step_seconds: None, speculation, ..WorkerOptions::default() };
    let mut worker = Worker::new(Box::new(runner), options, Meter::none())?;
    let all: Vec<Arc<Mutex<Answer>>> = prompts.iter().map(|_| Arc::default()).collect();
    for (i, (prompt, answer)) in prompts.iter().zip(&all).enumerate() {
        let request = Request {
            max_tokens: Some(drawing.max_tokens.min(context.saturating_sub(prompt.len())).max(1)),
            sampling: drawing.sampling.clone(),
            seed: Some(drawing.seed.wrapping_mul(0x9e37_79b9).wrapping_add(i as u64)),
            stop_tokens: stop.to_vec(),
            logprobs: drawing.logprobs.then_some(0),
            ..Request::new(prompt.clone())
        };
        let answer = answer.clone();
        let sink = move |event: Event<'_>| {
            if let Event::Token { token, stop, logprob, .. } = event {
                let mut answer = answer.lock().expect("invariant: no panic while an answer grows");
                answer.tokens.push(token);
                answer.logprobs.extend(logprob);
                answer.ended = stop;
            }
            Flow::Continue
        };
        worker.submit(Id(i as u64), request, Box::new(sink))?;
    }
    while worker.step()? {}
    let stats = worker.stats();
    let take = |a: &Arc<Mutex<Answer>>| std::mem::take(&mut *a.lock().expect("invariant: the worker is done"));
    Ok((all.iter().map(take).collect(), Drafts { drafted: stats.drafted, accepted: stats.accepted }))
}

/// Results of one kind of problem in one split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KindResult {
    /// Kind of problem.
    pub kind: String,
    /// `problem` (held-out numbers, known phrasings) or `phrasing` (held-out phrasings too).
    pub split: String,
    /// Problems asked.
    pub asked: usize,
    /// Right answers.
    pub right: usize,
    /// Answers in the right form.
    pub formed: usize,
    /// Answers whose reasoning checks step by step.
    pub sound: usize,
    /// Answers that say that the question lies outside the model's world.
    #[serde(default)]
    pub refused: usize,
    /// Mean tokens of an answer.
    pub tokens: f64,
    /// A wrong answer, to look at: question and what was said.
    pub example: Option<(String, String)>,
}

impl KindResult {
    /// Share of right answers with its 95 % interval (Wilson's score).
    pub fn share(&self) -> (f64, f64, f64) {
        wilson(self.right, self.asked)
    }
}

/// Share and 95 % interval (Wilson 1927).
pub fn wilson(right: usize, asked: usize) -> (f64, f64, f64) {
    if asked == 0 {
        return (0.0, 0.0, 1.0);
    }
    let (n, z) = (asked as f64, 1.96);
    let p = right as f64 / n;
    let middle = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z / (1.0 + z * z / n) * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    (p, (middle - half).max(0.0), (middle + half).min(1.0))
}

/// Held-out problems of every kind that has weight in the generator's mix, `problems` each, half of them German.
///
/// # Errors
/// If a kind is unknown.
pub fn held_out(
    generator: &Generator,
    kinds: &[String],
    split: Split,
    problems: usize,
    seed: u64,
) -> Result<Vec<Sample>> {
    let mut all = Vec::new();
    for kind in kinds {
        // Facts and refusals have no numbers to hold out, only phrasings: known ones are their first split.
        let prose = KINDS_WITHOUT_NUMBERS.contains(&kind.as_str());
        let of = if prose && split == Split::Problem { Split::Train } else { split };
        for i in 0..problems {
            let lang = Lang::ALL[i % 2];
            all.push(generator.sample_of(kind, lang, of, seed, i as u64)?);
        }
    }
    Ok(all)
}

/// Kinds whose problems are texts.
const KINDS_WITHOUT_NUMBERS: [&str; 2] = ["fathom", "outside"];

/// Asks a model held-out problems, each by its own prompt, and counts.
///
/// # Errors
/// If the engine fails.
pub fn evaluate(
    decoder: Decoder,
    tokenizer: &Tokenizer,
    prompts: &[Vec<u32>],
    samples: &[Sample],
    split: Split,
    drawing: &Drawing,
) -> Result<(Vec<KindResult>, Drafts)> {
    let (answers, drafts) = answers(decoder, prompts, tokenizer.end_tokens(), drawing)?;
    let mut results: Vec<KindResult> = Vec::new();
    for (sample, answer) in samples.iter().zip(&answers) {
        let text = tokenizer.decode_skipping_special(&answer.tokens);
        let score = score(sample, &text, answer.tokens.len(), &Rules::default());
        let at = match results.iter().position(|r| r.kind == sample.kind) {
            Some(at) => at,
            None => {
                results.push(KindResult {
                    kind: sample.kind.to_owned(),
                    split: split.name().to_owned(),
                    asked: 0,
                    right: 0,
                    formed: 0,
                    sound: 0,
                    refused: 0,
                    tokens: 0.0,
                    example: None,
                });
                results.len() - 1
            }
        };
        let r = &mut results[at];
        r.asked += 1;
        r.right += usize::from(score.correct && answer.ended);
        r.formed += usize::from(score.format && answer.ended);
        r.sound += usize::from(score.steps);
        let said = text.rsplit_once("</think>").map_or("", |(_, answer)| answer.trim());
        r.refused += usize::from(refuses(said));
        r.tokens += (answer.tokens.len() as f64 - r.tokens) / r.asked as f64;
        if !score.correct && r.example.is_none() {
            r.example = Some((sample.question.clone(), text));
        }
    }
    Ok((results, drafts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        let (p, low, high) = wilson(180, 200);
        assert!((p - 0.9).abs() < 1e-12 && (low - 0.8506).abs() < 5e-4 && (high - 0.9343).abs() < 5e-4);
        assert_eq!(wilson(0, 0), (0.0, 0.0, 1.0));
        assert!(wilson(200, 200).1 > 0.98);
    }
}
