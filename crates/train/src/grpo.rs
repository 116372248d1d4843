//! Group relative policy optimisation as published (DeepSeekMath, section 4.1; R1, section 2.2.1).
//!
//! Each step draws a group of answers to every problem through the engine, in exact precision, on the weights that learn; rules
//! reward them; an answer's advantage is its reward less its group's mean, over the group's deviation; the clipped ratio
//! times the advantage is raised, held back by the divergence from the model at the start. The difference between the
//! log-probabilities of rollout and trainer is in every step's line: where it grows, something is broken.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fathom_engine::{Meter, Sampling};
use fathom_tasks::reward::{Means, Rules, Score, score};
use fathom_tasks::{Generator, Split};

use crate::checkpoint;
use crate::data::Examples;
use crate::error::{Error, Result};
use crate::evaluate::{Drawing, answers};
use crate::optim::Optimiser;
use crate::policy::{Bounds, Rollout, logprobs};
use crate::recipe::Grpo;
use crate::run::{Log, Metrics, Progress, RewardMetrics, Run, Stage, Watch, Wish, count};
use crate::trainer::Trainer;

/// Mean reward subtracted, deviation divided out, group by group; zeros where all answers are worth the same.
pub fn advantages(rewards: &[f32], group: usize) -> Vec<f32> {
    let mut all = Vec::with_capacity(rewards.len());
    for group in rewards.chunks(group) {
        let n = group.len() as f32;
        let mean = group.iter().sum::<f32>() / n;
        let deviation = (group.iter().map(|r| (r - mean) * (r - mean)).sum::<f32>() / n).sqrt();
        all.extend(group.iter().map(|r| if deviation > 1e-6 { (r - mean) / deviation } else { 0.0 }));
    }
    all
}

/// The stage: see the module.
///
/// # Errors
/// Whatever goes wrong; the newest checkpoint is good then.
pub(crate) fn run(run: &Run, grpo: &Grpo, watch: Watch<'_>) -> Result<Wish> {
    let stage = Stage::Grpo;
    let language = run.language(stage)?;
    let tokenizer = language.chat.tokenizer();
    let (params, mut state, from) = run.resume(stage, &language)?;
    if state.done {
        return Ok(Wish::Continue);
    }
    let reference = if grpo.kl > 0.0 { Some(run.start(stage, &language)?) } else { None };
    let mut optimiser = Optimiser::new(&params, false);
    optimiser.clip = grpo.clip;
    if let Some(path) = &from {
        checkpoint::load_optimiser(path, &params, &mut optimiser, state.step * grpo.updates as u64)?;
    }
    let mut trainer = Trainer::new(params, optimiser, run.backend.clone());
    // Only the kinds that the stage names.
    let mut weights: BTreeMap<String, f64> = Generator::kinds().into_iter().map(|k| (k.to_owned(), 0.0)).collect();
    weights.extend(grpo.weights.clone());
    let generator = Generator::new(&run.recipe.data.mix(&weights))?;
    let seed = run.recipe.seed.wrapping_mul(1000) + stage as u64;
    let examples = Examples::new(generator, tokenizer, &run.recipe.data, seed);
    let kinds: Vec<String> = grpo.weights.iter().filter(|(_, w)| **w > 0.0).map(|(k, _)| k.clone()).collect();
    let rules = Rules { correct: grpo.correct, format: grpo.format, steps: grpo.steps_reward };
    let mut log = Log::open(&run.folder, stage, state.step)?;
    let mut meter = Meter::detect(run.watts);
    let mut saved = Instant::now();
    let mut wish = watch(Progress::Begins { stage, from: state.step, total: grpo.steps });
    if state.step == 0 {
        // Where it starts from: the gain is measured against this.
        let asked = (run.recipe.eval.problems, &[Split::Problem][..]);
        run.measure(&trainer.params, &language, &kinds, asked, Some((stage, 0)), watch)?;
    }
    while state.step < grpo.steps && wish == Wish::Continue {
        let began = Instant::now();
        let samples: Vec<_> = (0..grpo.problems as u64).map(|i| examples.sample(state.examples + i)).collect();
        state.examples += grpo.problems as u64;
        let mut prompts = Vec::new();
        for sample in &samples {
            let prompt = examples.prompt(&sample.question)?;
            prompts.extend(std::iter::repeat_n(prompt, grpo.group));
        }
        let drawing = Drawing {
            max_tokens: grpo.max_tokens,
            sampling: Sampling { temperature: grpo.temperature, ..Sampling::default() },
            seed: seed.wrapping_add(state.step),
            logprobs: true,
            drafts: false,
        };
        let decoder = trainer.decoder(run.server.clone())?;
        let (answers, _) = answers(decoder, &prompts, tokenizer.end_tokens(), &drawing)?;
        let mut scores: Vec<Score> = Vec::new();
        for (i, answer) in answers.iter().enumerate() {
            let text = tokenizer.decode_skipping_special(&answer.tokens);
            let mut score = score(&samples[i / grpo.group], &text, answer.tokens.len(), &rules);
            if !answer.ended {
                // Cut off: there is no answer.
                score = Score { correct: false, format: false, steps: false, value: 0.0, ..score };
            }
            scores.push(score);
        }
        let rewards: Vec<f32> = scores.iter().map(|s| s.value).collect();
        let mut rollouts = Vec::new();
        for ((prompt, answer), advantage) in prompts.iter().zip(answers).zip(advantages(&rewards, grpo.group)) {
            // Where a whole group is worth the same there is nothing to learn but to stay near the reference.
            if advantage != 0.0 {
                let tokens = [&prompt[..], &answer.tokens].concat();
                let (from, old) = (prompt.len(), answer.logprobs);
                rollouts.push(Rollout { tokens, from, advantage, old, reference: Vec::new() });
            }
        }
        if let Some(reference) = &reference {
            let decoder = reference.decoder(run.server.clone())?;
            let all = logprobs(&decoder, &rollouts, trainer.step_rows)?;
            rollouts.iter_mut().zip(all).for_each(|(r, logprobs)| r.reference = logprobs);
        }
        let bounds = Bounds { ratio: grpo.clip_ratio, kl: grpo.kl };
        let mut first = None;
        if !rollouts.is_empty() {
            for _ in 0..grpo.updates {
                let report = trainer.policy_step(&rollouts, grpo.lr, bounds)?;
                first.get_or_insert(report);
            }
        }
        let report = first.unwrap_or_default();
        state.step += 1;
        if !report.loss.is_finite() || !report.norm.is_finite() {
            let newest = checkpoint::newest(&run.stage_folder(stage))?;
            let checkpoint = newest.map_or("none yet".to_owned(), |p| p.display().to_string());
            return Err(Error::Diverged { stage: stage.name(), step: state.step, loss: report.loss, checkpoint });
        }
        let means = Means::of(&scores);
        let drawn: usize = scores.iter().map(|s| s.tokens).sum();
        state.tokens += drawn as u64;
        let took = began.elapsed().as_secs_f64();
        count(&mut state, took, &mut meter);
        let metrics = Metrics {
            stage: stage.name().to_owned(),
            step: state.step,
            tokens: state.tokens,
            seconds: state.seconds,
            loss: report.loss,
            draft_loss: None,
            norm: report.norm,
            lr: grpo.lr,
            tokens_per_s: drawn as f64 / took,
            imbalance: None,
            reward: Some(RewardMetrics {
                reward: means.value,
                correct: means.correct,
                length: means.tokens,
                kl: report.kl,
                rollout_gap: report.gap,
                rollout_gap_max: report.gap_max,
            }),
        };
        log.line(&metrics)?;
        wish = watch(Progress::Step { metrics: &metrics, total: grpo.steps });
        state.done = state.step >= grpo.steps;
        if state.done || saved.elapsed() >= Duration::from_secs(run.recipe.save_every) || wish == Wish::Stop {
            run.save(stage, &trainer.params, Some(&trainer.optimiser), &state, &language, watch)?;
            saved = Instant::now();
        }
    }
    if state.done {
        let asked = (run.recipe.eval.problems, &[Split::Problem][..]);
        run.measure(&trainer.params, &language, &kinds, asked, Some((stage, state.step)), watch)?;
    }
    Ok(wish)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advantages_are_of_the_group() {
        assert_eq!(
            advantages(&[1.0, 0.0, 1.0, 0.0, 0.5, 0.5, 0.5, 0.5], 4),
            [1.0, -1.0, 1.0, -1.0, 0.0, 0.0, 0.0, 0.0]
        );
    }
}
