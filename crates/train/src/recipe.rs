//! A recipe: everything that decides a run, in one TOML file.
//!
//! Every key is documented here, is checked for its range before anything starts, and has a default where there is a good one.
//! The shape of the model is V3's: latent attention, dense blocks first, then routed and shared experts, one prediction block.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;

use fathom_core::{RopeLayout, RouteSpec, Score};
use fathom_model::ModelSpec;
use fathom_model::spec::{Ffn, LayerSpec, Mixer, RopeScaling, RopeSpec};
use fathom_tasks::Mix;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A whole recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the model.
    pub name: String,
    /// Seed of weights, data and sampling.
    #[serde(default = "one")]
    pub seed: u64,
    /// What the products of learning multiply; master weights and sums are f32 either way.
    #[serde(default)]
    pub products: Products,
    /// Seconds between two checkpoints; 0: one after every step.
    #[serde(default = "save_every")]
    pub save_every: u64,
    /// Shape of the model.
    pub model: Shape,
    /// Vocabulary.
    #[serde(default)]
    pub tokenizer: Vocabulary,
    /// Problems to learn from.
    #[serde(default)]
    pub data: Data,
    /// Learning to continue whole texts, questions included.
    pub pretrain: Option<Learning>,
    /// Learning to answer: only reasoning and answer count.
    pub sft: Option<Learning>,
    /// Reinforcement learning.
    pub grpo: Option<Grpo>,
    /// How the result is measured.
    #[serde(default)]
    pub eval: Evaluation,
}

fn save_every() -> u64 {
    120
}

fn one() -> u64 {
    1
}

/// Number type of the factors of matrix products in learning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Products {
    /// bfloat16: twice as fast where the processor multiplies it.
    #[default]
    Bf16,
    /// 32 bit.
    F32,
}

/// Shape of a model of V3's architecture; names as in DeepSeek's `config.json` where they are longer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Width of the residual stream.
    pub dim: usize,
    /// Blocks, without the prediction block.
    pub layers: usize,
    /// Blocks at the start without experts.
    pub dense_layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Rank of the query's latent; absent: one full projection, as in V2-Lite.
    pub q_rank: Option<usize>,
    /// Width of the cached latent.
    pub kv_rank: usize,
    /// Width of a head's part without position.
    pub nope: usize,
    /// Width of a head's rotated part.
    pub rope: usize,
    /// Width of a value head.
    pub v_dim: usize,
    /// Inner width of dense blocks.
    pub hidden: usize,
    /// Routed experts.
    pub experts: usize,
    /// Experts chosen per token.
    pub top_k: usize,
    /// Inner width of one expert.
    pub expert_hidden: usize,
    /// Shared experts.
    pub shared_experts: usize,
    /// Whether there is a prediction block (V3 paper, section 2.2).
    pub mtp: bool,
    /// Longest context in tokens.
    pub context: usize,
}

/// The vocabulary: 256 bytes, DeepSeek's special tokens, and whole words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vocabulary {
    /// Words at most; the most frequent ones are taken.
    pub words: usize,
}

impl Default for Vocabulary {
    fn default() -> Self {
        Vocabulary { words: 1_500 }
    }
}

/// What the problems are like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// Share of German, 0 to 1.
    pub german: f64,
    /// Whether greetings, carelessness and typos surround the questions.
    pub dressed: bool,
    /// Share of conversations with one or two earlier turns, 0 to 1.
    pub turns: f64,
    /// Weight of each kind of problem; kinds left out have their usual weight, 0 leaves one out.
    pub weights: BTreeMap<String, f64>,
}

impl Default for Data {
    fn default() -> Self {
        let Mix { german, dressed, .. } = Mix::default();
        Data { german, dressed, turns: 0.1, weights: BTreeMap::new() }
    }
}

impl Data {
    /// The generator's mix, with the weights of a stage on top.
    pub fn mix(&self, stage: &BTreeMap<String, f64>) -> Mix {
        let mut mix = Mix { german: self.german, dressed: self.dressed, ..Mix::default() };
        mix.weights.extend(self.weights.clone());
        mix.weights.extend(stage.clone());
        mix
    }
}

/// How the learning rate goes after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Half a cosine down to `final_lr`.
    #[default]
    Cosine,
    /// A straight line down to `final_lr`.
    Linear,
    /// As it is.
    Constant,
}

/// What changes the matrices inside blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Matrices {
    /// Muon; everything else by AdamW.
    #[default]
    Muon,
    /// AdamW, like everything else.
    AdamW,
}

/// A stage of learning from examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Learning {
    /// Tokens to learn from in all.
    pub tokens: u64,
    /// Tokens of one step.
    #[serde(default = "batch")]
    pub batch: usize,
    /// Highest learning rate.
    pub lr: f32,
    /// Tokens over which it rises from 0.
    #[serde(default = "warmup")]
    pub warmup: u64,
    /// How it goes from there.
    #[serde(default)]
    pub schedule: Schedule,
    /// The last learning rate as a share of the highest.
    #[serde(default = "final_lr")]
    pub final_lr: f32,
    /// What changes the matrices.
    #[serde(default)]
    pub matrices: Matrices,
    /// Weight decay of the matrices, times the learning rate.
    #[serde(default = "decay")]
    pub decay: f32,
    /// Largest norm of all derivatives together.
    #[serde(default = "clip")]
    pub clip: f32,
    /// Factor on the prediction block's loss (V3 paper, section 2.2: λ).
    #[serde(default = "draft_weight")]
    pub draft_weight: f32,
    /// Speed of the routers' correction bias (V3 paper, section 2.1.2: γ).
    #[serde(default = "balance")]
    pub balance: f32,
    /// Weights of kinds in this stage, over those of `[data.weights]`.
    #[serde(default)]
    pub weights: BTreeMap<String, f64>,
}

fn batch() -> usize {
    2048
}
fn warmup() -> u64 {
    120_000
}
fn final_lr() -> f32 {
    0.05
}
fn decay() -> f32 {
    0.05
}
fn clip() -> f32 {
    1.0
}
fn draft_weight() -> f32 {
    0.1
}
fn balance() -> f32 {
    1e-3
}

impl Learning {
    /// Learning rate after `seen` of the tokens.
    pub fn lr_at(&self, seen: u64) -> f32 {
        if seen < self.warmup {
            return self.lr * (seen as f32 + 1.0) / self.warmup as f32;
        }
        let span = self.tokens.saturating_sub(self.warmup).max(1);
        let part = ((seen - self.warmup) as f64 / span as f64).min(1.0) as f32;
        let left = match self.schedule {
            Schedule::Cosine => 0.5 * (1.0 + (std::f32::consts::PI * part).cos()),
            Schedule::Linear => 1.0 - part,
            Schedule::Constant => 1.0,
        };
        self.lr * (self.final_lr + (1.0 - self.final_lr) * left)
    }
}

/// Group relative policy optimisation (DeepSeekMath, section 4; R1, section 2.2.1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grpo {
    /// Steps: one batch of rollouts each.
    pub steps: u64,
    /// Problems per step.
    #[serde(default = "problems")]
    pub problems: usize,
    /// Answers per problem: the group.
    #[serde(default = "group")]
    pub group: usize,
    /// Learning rate.
    pub lr: f32,
    /// Temperature of rollouts.
    #[serde(default = "hot")]
    pub temperature: f32,
    /// Longest answer in tokens.
    #[serde(default = "longest")]
    pub max_tokens: usize,
    /// How far the ratio of probabilities may leave 1 (ε).
    #[serde(default = "epsilon")]
    pub clip_ratio: f32,
    /// Weight of the divergence from the model at the start (β).
    #[serde(default = "kl")]
    pub kl: f32,
    /// Updates from each batch of rollouts.
    #[serde(default = "updates")]
    pub updates: usize,
    /// Largest norm of all derivatives together.
    #[serde(default = "clip")]
    pub clip: f32,
    /// Reward of a right answer.
    #[serde(default = "clip")]
    pub correct: f32,
    /// Reward of the right form.
    #[serde(default = "format_reward")]
    pub format: f32,
    /// Reward of a right answer whose reasoning checks.
    #[serde(default)]
    pub steps_reward: f32,
    /// Weights of kinds in this stage; those left out do not occur.
    pub weights: BTreeMap<String, f64>,
}

fn problems() -> usize {
    16
}
fn group() -> usize {
    8
}
fn hot() -> f32 {
    1.0
}
fn longest() -> usize {
    320
}
fn epsilon() -> f32 {
    0.2
}
fn kl() -> f32 {
    0.04
}
fn updates() -> usize {
    1
}
fn format_reward() -> f32 {
    0.1
}

/// How the result is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Evaluation {
    /// Held-out problems per kind and split.
    pub problems: usize,
    /// Longest answer in tokens.
    pub max_tokens: usize,
    /// Tokens of learning between two small evaluations on the way; 0: none.
    pub every: u64,
    /// Problems per kind of a small evaluation.
    pub few: usize,
}

impl Default for Evaluation {
    fn default() -> Self {
        Evaluation { problems: 200, max_tokens: 400, every: 0, few: 20 }
    }
}

impl Recipe {
    /// Reads and checks a recipe.
    ///
    /// # Errors
    /// Naming the key, its value and what is allowed.
    pub fn open(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).map_err(Error::io("reading", file))?;
        Self::parse(&text, file)
    }

    /// The same from its text; `file` is for messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn parse(text: &str, file: &Path) -> Result<Self> {
        let wrong = |why: String| Error::RecipeText { file: file.to_owned(), why };
        let recipe: Recipe = toml_edit::de::from_str(text).map_err(|e| wrong(e.to_string().trim_end().to_owned()))?;
        recipe.check(file)?;
        Ok(recipe)
    }

    fn check(&self, file: &Path) -> Result<()> {
        let mut check = Check { file, fault: None };
        check.that(
            "name",
            !self.name.is_empty()
                && self.name.len() <= 64
                && self.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)),
            &self.name,
            "1 to 64 letters, digits, -, _ and .",
        );
        check.within("save_every", self.save_every, 0..=86_400);
        let m = &self.model;
        check.within("model.dim", m.dim, 8..=8192);
        check.within("model.layers", m.layers, 1..=256);
        check.within("model.dense_layers", m.dense_layers, 1..=m.layers);
        check.within("model.heads", m.heads, 1..=256);
        if let Some(rank) = m.q_rank {
            check.within("model.q_rank", rank, 8..=8192);
        }
        check.within("model.kv_rank", m.kv_rank, 8..=8192);
        check.within("model.nope", m.nope, 4..=1024);
        check.within("model.rope", m.rope, 2..=1024);
        check.that("model.rope", m.rope.is_multiple_of(2), m.rope, "even");
        check.within("model.v_dim", m.v_dim, 4..=1024);
        check.within("model.hidden", m.hidden, 8..=65_536);
        check.within("model.experts", m.experts, 1..=1024);
        check.within("model.top_k", m.top_k, 1..=m.experts);
        check.within("model.expert_hidden", m.expert_hidden, 8..=65_536);
        check.within("model.shared_experts", m.shared_experts, 0..=16);
        check.within("model.context", m.context, 64..=1 << 20);
        check.within("tokenizer.words", self.tokenizer.words, 0..=100_000);
        check.within("data.german", self.data.german, 0.0..=1.0);
        check.within("data.turns", self.data.turns, 0.0..=1.0);
        for (name, stage) in [("pretrain", &self.pretrain), ("sft", &self.sft)] {
            let Some(s) = stage else { continue };
            let key = |k: &str| format!("{name}.{k}");
            check.within(&key("tokens"), s.tokens, 1..=1 << 50);
            check.within(&key("batch"), s.batch, 16..=1 << 24);
            check.within(&key("lr"), s.lr, 1e-9..=1.0);
            check.within(&key("warmup"), s.warmup, 0..=s.tokens.max(warmup()));
            check.within(&key("final_lr"), s.final_lr, 0.0..=1.0);
            check.within(&key("decay"), s.decay, 0.0..=1.0);
            check.within(&key("clip"), s.clip, 1e-6..=1e6);
            check.within(&key("draft_weight"), s.draft_weight, 0.0..=10.0);
            check.within(&key("balance"), s.balance, 0.0..=1.0);
        }
        if let Some(g) = &self.grpo {
            check.within("grpo.steps", g.steps, 1..=1 << 40);
            check.within("grpo.problems", g.problems, 1..=4096);
            check.within("grpo.group", g.group, 2..=1024);
            check.within("grpo.lr", g.lr, 1e-9..=1.0);
            check.within("grpo.temperature", g.temperature, 0.01..=10.0);
            check.within("grpo.max_tokens", g.max_tokens, 1..=m.context);
            check.within("grpo.clip_ratio", g.clip_ratio, 1e-3..=10.0);
            check.within("grpo.kl", g.kl, 0.0..=10.0);
            check.within("grpo.updates", g.updates, 1..=64);
            check.within("grpo.clip", g.clip, 1e-6..=1e6);
            for (key, v) in [("correct", g.correct), ("format", g.format), ("steps_reward", g.steps_reward)] {
                check.within(&format!("grpo.{key}"), v, 0.0..=1000.0);
            }
        }
        check.within("eval.problems", self.eval.problems, 1..=1_000_000);
        check.within("eval.max_tokens", self.eval.max_tokens, 1..=m.context);
        check.within("eval.few", self.eval.few, 1..=1_000_000);
        match check.fault {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }

    /// The model's spec over a vocabulary of so many tokens.
    pub fn spec(&self, vocab: usize) -> ModelSpec {
        let m = &self.model;
        let mixer = Mixer::Mla {
            heads: m.heads,
            q_rank: m.q_rank,
            kv_rank: m.kv_rank,
            nope: m.nope,
            rope: m.rope,
            v_dim: m.v_dim,
            scale: ((m.nope + m.rope) as f64).powf(-0.5) as f32,
        };
        let route = RouteSpec {
            experts: m.experts,
            top_k: m.top_k,
            score: Score::Sigmoid,
            groups: 1,
            groups_kept: 1,
            group_top: 2,
            normalise: true,
            scale: 1.0,
        };
        let moe = Ffn::Moe {
            route,
            bias_corrected: true,
            hidden: m.expert_hidden,
            shared_hidden: m.shared_experts * m.expert_hidden,
        };
        let dense = LayerSpec { mixer: mixer.clone(), ffn: Ffn::Dense { hidden: m.hidden } };
        let moe = LayerSpec { mixer, ffn: moe };
        let mut layers = vec![dense; m.dense_layers];
        layers.resize(m.layers, moe);
        ModelSpec {
            family: "DeepSeek-V3",
            vocab,
            dim: m.dim,
            eps: 1e-6,
            context: m.context,
            rope: RopeSpec {
                dim: m.rope,
                theta: 10_000.0,
                layout: RopeLayout::Interleaved,
                scaling: RopeScaling::None,
            },
            mtp: m.mtp.then(|| layers[m.layers - 1].clone()),
            pictures: None,
            layers,
            tied: true,
        }
    }
}

/// Remembers the first value outside its range.
struct Check<'a> {
    file: &'a Path,
    fault: Option<Error>,
}

impl Check<'_> {
    fn that(&mut self, key: &str, holds: bool, found: impl ToString, expected: &str) {
        if !holds && self.fault.is_none() {
            let (key, found, expected) = (key.to_owned(), found.to_string(), expected.to_owned());
            self.fault = Some(Error::RecipeValue { file: self.file.to_owned(), key, found, expected });
        }
    }

    fn within<T: PartialOrd + ToString + Copy>(&mut self, key: &str, value: T, range: RangeInclusive<T>) {
        let expected = format!("{} to {}", range.start().to_string(), range.end().to_string());
        self.that(key, range.contains(&value), value, &expected);
    }
}
