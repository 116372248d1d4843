//! A run: a recipe, a folder, and its stages one after the other.
//!
//! The folder holds the recipe, `tokenizer/`, one folder of checkpoints per stage, `metrics.jsonl` (a line per step), `eval.jsonl` (a
//! line per kind and evaluation), `report.html`, and the finished model. A stage goes on from its newest checkpoint, else from
//! the end of the stage before; what comes out does not depend on where it was interrupted.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fathom_core::{Backend, FormatId, Grad};
use fathom_engine::meter::Source;
use fathom_engine::{ChatModel, Meter};
use fathom_files::write_file;
use fathom_tasks::{Generator, Split};
use fathom_text::VocabLists;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::checkpoint::{self, State};
use crate::data::Examples;
use crate::error::{Error, Result};
use crate::evaluate::{Drafts, Drawing, KindResult, evaluate, held_out};
use crate::export::write_gguf;
use crate::optim::Optimiser;
use crate::params::Params;
use crate::recipe::{Learning, Matrices, Recipe};
use crate::trainer::Trainer;
use crate::vocabulary;

/// A step of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Makes the vocabulary.
    Tokenizer,
    /// Learns whole texts.
    Pretrain,
    /// Learns to answer.
    Sft,
    /// Learns from rewards.
    Grpo,
    /// Measures.
    Eval,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Stage; 5] = [Stage::Tokenizer, Stage::Pretrain, Stage::Sft, Stage::Grpo, Stage::Eval];

    /// Its name, in recipes and folders.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Tokenizer => "tokenizer",
            Stage::Pretrain => "pretrain",
            Stage::Sft => "sft",
            Stage::Grpo => "grpo",
            Stage::Eval => "eval",
        }
    }
}

/// One step, as `metrics.jsonl` has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Stage.
    pub stage: String,
    /// Step of the stage, from 1.
    pub step: u64,
    /// Tokens learned from in this stage until now.
    pub tokens: u64,
    /// Seconds of work on this stage until now.
    pub seconds: f64,
    /// Mean cross-entropy of the tokens that count, in nats.
    pub loss: f64,
    /// The same of the prediction block.
    pub draft_loss: Option<f64>,
    /// Norm of all derivatives before clipping.
    pub norm: f64,
    /// Learning rate.
    pub lr: f32,
    /// Tokens of this step per second.
    pub tokens_per_s: f64,
    /// Load of the busiest expert over the mean, the worst layer's.
    pub imbalance: Option<f64>,
    /// Reinforcement learning only.
    #[serde(flatten)]
    pub reward: Option<RewardMetrics>,
}

/// What reinforcement learning adds to a step's line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewardMetrics {
    /// Mean reward.
    pub reward: f64,
    /// Share of right answers.
    pub correct: f64,
    /// Mean tokens of an answer.
    pub length: f64,
    /// Mean divergence from the model at the start, per token.
    pub kl: f64,
    /// Mean absolute difference between the log-probabilities of rollout and trainer, per token.
    pub rollout_gap: f64,
    /// The largest one.
    pub rollout_gap_max: f64,
}

/// What a watcher is told.
pub enum Progress<'a> {
    /// A stage begins or goes on.
    Begins {
        /// Which.
        stage: Stage,
        /// Where it goes on from, in tokens (steps in reinforcement learning).
        from: u64,
        /// Of how many.
        total: u64,
    },
    /// A step is done.
    Step {
        /// What it did.
        metrics: &'a Metrics,
        /// Of how many tokens (steps in reinforcement learning).
        total: u64,
    },
    /// A checkpoint is on disk.
    Saved(&'a Path),
    /// Something was measured.
    Evaluated(&'a [KindResult]),
    /// A file was made.
    Made(&'a Path),
}

/// What a watcher wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Go on.
    Continue,
    /// Save and stop.
    Stop,
}

/// Told how a run goes, asked whether it should go on.
pub type Watch<'a> = &'a mut dyn FnMut(Progress<'_>) -> Wish;

/// The loss beyond which a run has left the path: far above that of guessing among the whole vocabulary.
const EXPLODED: f64 = 50.0;

/// See the module.
pub struct Run {
    /// What decides it.
    pub recipe: Recipe,
    /// Where everything goes.
    pub folder: PathBuf,
    /// What learns.
    pub backend: Arc<dyn Grad>,
    /// What answers, in rollouts and evaluation: exact precision on the same weights.
    pub server: Arc<dyn Backend>,
    /// Watts to reckon with where the machine has no counter.
    pub watts: Option<f64>,
}

/// Text side of a run.
pub(crate) struct Language {
    pub(crate) lists: VocabLists,
    pub(crate) chat: ChatModel,
}

impl Run {
    /// Opens a run's folder, which is made if it is not there.
    ///
    /// # Errors
    /// If the folder holds another recipe's run, or cannot be made.
    pub fn open(
        recipe: Recipe,
        folder: &Path,
        (backend, server): (Arc<dyn Grad>, Arc<dyn Backend>),
        watts: Option<f64>,
    ) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io("creating", folder))?;
        let file = folder.join("recipe.json");
        let text = serde_json::to_string_pretty(&recipe).expect("invariant: a recipe is JSON");
        if let Ok(old) = fs::read_to_string(&file) {
            let broken = |e: serde_json::Error| Error::Broken { file: file.clone(), why: e.to_string() };
            let old: Recipe = serde_json::from_str(&old).map_err(broken)?;
            if let Some(what) = differs(&old, &recipe) {
                return Err(Error::OtherRun { folder: folder.to_owned(), what: what.to_owned() });
            }
        }
        write_file(&file, text.as_bytes())?;
        Ok(Run { recipe, folder: folder.to_owned(), backend, server, watts })
    }

    pub(crate) fn stage_folder(&self, stage: Stage) -> PathBuf {
        self.folder.join(stage.name())
    }

    /// Runs one stage.
    ///
    /// # Errors
    /// Whatever goes wrong; the newest checkpoint is good then.
    pub fn stage(&self, stage: Stage, watch: Watch<'_>) -> Result<Wish> {
        let wish = self.one(stage, watch);
        if stage != Stage::Tokenizer {
            crate::report::write(&self.folder, &self.recipe)?;
        }
        wish
    }

    fn one(&self, stage: Stage, watch: Watch<'_>) -> Result<Wish> {
        match stage {
            Stage::Tokenizer => self.tokenizer(watch),
            Stage::Pretrain => match &self.recipe.pretrain {
                Some(learning) => self.learn(stage, learning, watch),
                None => Ok(Wish::Continue),
            },
            Stage::Sft => match &self.recipe.sft {
                Some(learning) => self.learn(stage, learning, watch),
                None => Ok(Wish::Continue),
            },
            Stage::Grpo => match &self.recipe.grpo {
                Some(grpo) => crate::grpo::run(self, grpo, watch),
                None => Ok(Wish::Continue),
            },
            Stage::Eval => self.eval(watch),
        }
    }

    /// Makes the vocabulary, unless it is there.
    fn tokenizer(&self, watch: Watch<'_>) -> Result<Wish> {
        let file = self.folder.join("vocabulary.json");
        if file.exists() {
            return Ok(Wish::Continue);
        }
        watch(Progress::Begins { stage: Stage::Tokenizer, from: 0, total: 1 });
        let lists = vocabulary::lists(self.recipe.tokenizer.words)?;
        let text = json!({"tokens": lists.tokens, "kinds": lists.kinds}).to_string();
        write_file(&file, text.as_bytes())?;
        Ok(watch(Progress::Made(&file)))
    }

    /// The vocabulary that the first stage made.
    pub(crate) fn language(&self, stage: Stage) -> Result<Language> {
        #[derive(Deserialize)]
        struct Saved {
            tokens: Vec<String>,
            kinds: Vec<u32>,
        }
        let file = self.folder.join("vocabulary.json");
        let Ok(text) = fs::read_to_string(&file) else {
            let needs = "the vocabulary (stage `tokenizer`)".to_owned();
            return Err(Error::Missing { stage: stage.name(), needs, folder: self.folder.clone() });
        };
        let saved: Saved = serde_json::from_str(&text).map_err(|e| Error::Broken { file, why: e.to_string() })?;
        let lists = vocabulary::with_tokens(saved.tokens, saved.kinds);
        Ok(Language { chat: vocabulary::chat(&lists)?, lists })
    }

    /// The newest parameters of the stages before `stage`, or new ones.
    pub(crate) fn start(&self, stage: Stage, language: &Language) -> Result<Params> {
        let spec = self.recipe.spec(language.lists.tokens.len());
        for before in Stage::ALL.into_iter().take_while(|s| *s != stage).collect::<Vec<_>>().into_iter().rev() {
            let skipped = match before {
                Stage::Pretrain => self.recipe.pretrain.is_none(),
                Stage::Sft => self.recipe.sft.is_none(),
                Stage::Grpo => self.recipe.grpo.is_none(),
                Stage::Tokenizer | Stage::Eval => true,
            };
            if skipped {
                continue;
            }
            let missing = |needs: String| Error::Missing { stage: stage.name(), needs, folder: self.folder.clone() };
            let Some(path) = checkpoint::newest(&self.stage_folder(before))? else {
                return Err(missing(format!("what stage `{}` learned", before.name())));
            };
            if !checkpoint::state(&path)?.done {
                return Err(missing(format!("the end of stage `{}`, which is not done yet", before.name())));
            }
            return checkpoint::params(&path, &spec);
        }
        Ok(Params::init(&spec, self.recipe.seed))
    }

    /// Parameters and state that a stage goes on from.
    pub(crate) fn resume(&self, stage: Stage, language: &Language) -> Result<(Params, State, Option<PathBuf>)> {
        match checkpoint::newest(&self.stage_folder(stage))? {
            Some(path) => {
                let spec = self.recipe.spec(language.lists.tokens.len());
                Ok((checkpoint::params(&path, &spec)?, checkpoint::state(&path)?, Some(path)))
            }
            None => Ok((self.start(stage, language)?, State::default(), None)),
        }
    }

    /// The newest parameters of any stage.
    pub(crate) fn latest(&self, language: &Language) -> Result<Params> {
        let spec = self.recipe.spec(language.lists.tokens.len());
        for stage in [Stage::Grpo, Stage::Sft, Stage::Pretrain] {
            if let Some(path) = checkpoint::newest(&self.stage_folder(stage))? {
                return checkpoint::params(&path, &spec);
            }
        }
        let needs = "a model that has learned something".to_owned();
        Err(Error::Missing { stage: Stage::Eval.name(), needs, folder: self.folder.clone() })
    }

    /// A stage of learning from examples.
    fn learn(&self, stage: Stage, learning: &Learning, watch: Watch<'_>) -> Result<Wish> {
        let language = self.language(stage)?;
        let (params, mut state, from) = self.resume(stage, &language)?;
        if state.done {
            return Ok(Wish::Continue);
        }
        let mut optimiser = Optimiser::new(&params, learning.matrices == Matrices::Muon);
        optimiser.muon.decay = learning.decay;
        optimiser.clip = learning.clip;
        optimiser.balance = learning.balance;
        if let Some(path) = &from {
            checkpoint::load_optimiser(path, &params, &mut optimiser, state.step)?;
        }
        let mut trainer = Trainer::new(params, optimiser, self.backend.clone());
        trainer.draft_weight = learning.draft_weight;
        let generator = Generator::new(&self.recipe.data.mix(&learning.weights))?;
        let seed = self.recipe.seed.wrapping_mul(1000) + stage as u64;
        let examples = Examples::new(generator, language.chat.tokenizer(), &self.recipe.data, seed);
        let mut log = Log::open(&self.folder, stage, state.step)?;
        let mut meter = Meter::detect(self.watts);
        let whole = stage == Stage::Pretrain;
        let mut saved = Instant::now();
        let mut wish = watch(Progress::Begins { stage, from: state.tokens, total: learning.tokens });
        while state.tokens < learning.tokens && wish == Wish::Continue {
            let began = Instant::now();
            let mut batch = Vec::new();
            let mut rows = 0;
            while rows < learning.batch {
                let (example, _) = examples.example(state.examples, whole)?;
                state.examples += 1;
                // An example that does not fit is left out, as it would be cut before its answer.
                if example.tokens.len() <= self.recipe.model.context {
                    rows += example.tokens.len() - 1;
                    batch.push(example);
                }
            }
            let lr = learning.lr_at(state.tokens);
            let report = trainer.step(&batch, lr)?;
            state.step += 1;
            if !report.loss.is_finite() || report.loss > EXPLODED {
                let newest = checkpoint::newest(&self.stage_folder(stage))?;
                let checkpoint = newest.map_or("none yet".to_owned(), |p| p.display().to_string());
                return Err(Error::Diverged { stage: stage.name(), step: state.step, loss: report.loss, checkpoint });
            }
            let took = began.elapsed().as_secs_f64();
            let every = self.recipe.eval.every;
            let due = every > 0 && (state.tokens + report.tokens as u64) / every > state.tokens / every;
            state.tokens += report.tokens as u64;
            count(&mut state, took, &mut meter);
            let metrics = Metrics {
                stage: stage.name().to_owned(),
                step: state.step,
                tokens: state.tokens,
                seconds: state.seconds,
                loss: report.loss,
                draft_loss: report.draft_loss,
                norm: report.norm,
                lr,
                tokens_per_s: report.tokens as f64 / took,
                imbalance: imbalance(&report.load),
                reward: None,
            };
            log.line(&metrics)?;
            wish = watch(Progress::Step { metrics: &metrics, total: learning.tokens });
            state.done = state.tokens >= learning.tokens;
            if saved.elapsed() >= Duration::from_secs(self.recipe.save_every) || state.done || wish == Wish::Stop {
                self.save(stage, &trainer.params, Some(&trainer.optimiser), &state, &language, watch)?;
                saved = Instant::now();
            }
            if due {
                let few = self.recipe.eval.few;
                self.measure(
                    &trainer.params,
                    &language,
                    &self.kinds(),
                    (few, &[Split::Problem]),
                    Some((stage, state.tokens)),
                    watch,
                )?;
            }
        }
        Ok(wish)
    }

    pub(crate) fn save(
        &self,
        stage: Stage,
        params: &Params,
        optimiser: Option<&Optimiser>,
        state: &State,
        language: &Language,
        watch: Watch<'_>,
    ) -> Result<()> {
        let path = checkpoint::save(&self.stage_folder(stage), params, optimiser, state, &language.lists)?;
        watch(Progress::Saved(&path));
        Ok(())
    }

    /// Kinds of the recipe's problems.
    fn kinds(&self) -> Vec<String> {
        let mix = self.recipe.data.mix(&std::collections::BTreeMap::new());
        Generator::kinds()
            .into_iter()
            .filter(|k| mix.weights.get(*k).is_some_and(|w| *w > 0.0))
            .map(str::to_owned)
            .collect()
    }

    /// Asks held-out problems; the results go to `eval.jsonl`.
    pub(crate) fn measure(
        &self,
        params: &Params,
        language: &Language,
        kinds: &[String],
        (problems, splits): (usize, &[Split]),
        at: Option<(Stage, u64)>,
        watch: Watch<'_>,
    ) -> Result<Vec<KindResult>> {
        let tokenizer = language.chat.tokenizer();
        let generator = || Generator::new(&self.recipe.data.mix(&std::collections::BTreeMap::new()));
        let examples = Examples::new(generator()?, tokenizer, &self.recipe.data, self.recipe.seed);
        let mut all = Vec::new();
        for &split in splits {
            let samples = held_out(&generator()?, kinds, split, problems, self.recipe.seed)?;
            // Drafting shows how often the prediction block is right; the answers are the same.
            let drafts = params.spec.mtp.is_some() && at.is_none();
            let drawing = Drawing { drafts, ..Drawing::greedy(self.recipe.eval.max_tokens) };
            let decoder = params.decoder(self.server.clone())?;
            let prompts = samples.iter().map(|s| examples.prompt(&s.question)).collect::<Result<Vec<_>>>()?;
            let (results, Drafts { drafted, accepted }) =
                evaluate(decoder, tokenizer, &prompts, &samples, split, &drawing)?;
            watch(Progress::Evaluated(&results));
            let mut lines = String::new();
            for r in &results {
                let mut line = serde_json::to_value(r).expect("invariant: a result is JSON");
                line["stage"] = json!(at.map_or("eval", |(s, _)| s.name()));
                line["at_tokens"] = json!(at.map(|(_, t)| t));
                line["drafted"] = json!(drafted);
                line["accepted"] = json!(accepted);
                lines += &format!("{line}\n");
            }
            append(&self.folder.join("eval.jsonl"), &lines)?;
            all.extend(results);
        }
        Ok(all)
    }

    /// Measures the newest model and writes it out.
    fn eval(&self, watch: Watch<'_>) -> Result<Wish> {
        let language = self.language(Stage::Eval)?;
        let params = self.latest(&language)?;
        let splits = [Split::Problem, Split::Phrasing];
        watch(Progress::Begins { stage: Stage::Eval, from: 0, total: splits.len() as u64 });
        let results =
            self.measure(&params, &language, &self.kinds(), (self.recipe.eval.problems, &splits), None, watch)?;
        let file = self.folder.join("results.json");
        write_file(&file, serde_json::to_string_pretty(&results).expect("invariant: results are JSON").as_bytes())?;
        Ok(watch(Progress::Made(&file)))
    }

    /// What the last evaluation found.
    ///
    /// # Errors
    /// If there was none.
    pub fn results(&self) -> Result<Vec<KindResult>> {
        let file = self.folder.join("results.json");
        let Ok(text) = fs::read_to_string(&file) else {
            let needs = "its results (stage `eval`)".to_owned();
            return Err(Error::Missing { stage: "card", needs, folder: self.folder.clone() });
        };
        serde_json::from_str(&text).map_err(|e| Error::Broken { file, why: e.to_string() })
    }

    /// The newest parameters.
    ///
    /// # Errors
    /// If nothing was learned yet.
    pub fn latest_params(&self) -> Result<Params> {
        self.latest(&self.language(Stage::Eval)?)
    }

    /// Writes the newest model as a GGUF file with matrices in `format`.
    ///
    /// # Errors
    /// If there is none yet, or the disk is full or fails.
    pub fn export(&self, path: &Path, format: FormatId) -> Result<()> {
        let language = self.language(Stage::Eval)?;
        let params = self.latest(&language)?;
        let facts = [
            ("name", self.recipe.name.as_str()),
            ("license", "mit"),
            (
                "description",
                "A miniature grown from DeepSeek's published recipe, trained by fathom on generated problems",
            ),
        ];
        write_gguf(path, &params, &language.lists, format, &facts)
    }
}

/// The first part of two recipes that differs and must not: a stage may be added or made longer.
fn differs(old: &Recipe, new: &Recipe) -> Option<&'static str> {
    let cases = [
        ("name", old.name != new.name),
        ("seed", old.seed != new.seed),
        ("products", old.products != new.products),
        ("[model]", old.model != new.model),
        ("[tokenizer]", old.tokenizer != new.tokenizer),
        ("[data]", old.data != new.data),
    ];
    cases.into_iter().find(|(_, differs)| *differs).map(|(what, _)| what)
}

/// Adds a step's time and energy to a state.
pub(crate) fn count(state: &mut State, seconds: f64, meter: &mut Meter) {
    state.seconds += seconds;
    if let Some(energy) = meter.lap() {
        state.joules = Some(state.joules.unwrap_or(0.0) + energy.joules);
        state.joules_measured = energy.source == Source::PackageCounter;
    }
}

/// Load of the busiest expert over the mean, the worst layer's.
fn imbalance(load: &[Vec<u64>]) -> Option<f64> {
    let worst = |l: &Vec<u64>| {
        let mean = l.iter().sum::<u64>() as f64 / l.len() as f64;
        l.iter().copied().max().unwrap_or(0) as f64 / mean.max(1e-9)
    };
    load.iter().map(worst).reduce(f64::max)
}

fn append(file: &Path, text: &str) -> Result<()> {
    let mut out = fs::OpenOptions::new().create(true).append(true).open(file).map_err(Error::io("opening", file))?;
    out.write_all(text.as_bytes()).map_err(Error::io("writing", file))
}

/// `metrics.jsonl`, cut back to where a stage goes on.
pub(crate) struct Log {
    file: PathBuf,
}

impl Log {
    /// Opens the log of a run; lines of `stage` behind `step` belong to what was not saved, and go.
    pub(crate) fn open(folder: &Path, stage: Stage, step: u64) -> Result<Self> {
        let file = folder.join("metrics.jsonl");
        if let Ok(text) = fs::read_to_string(&file) {
            let keep = |line: &&str| {
                serde_json::from_str::<Metrics>(line).is_ok_and(|m| m.stage != stage.name() || m.step <= step)
            };
            let kept: String = text.lines().filter(keep).flat_map(|l| [l, "\n"]).collect();
            if kept != text {
                write_file(&file, kept.as_bytes())?;
            }
        }
        Ok(Log { file })
    }

    pub(crate) fn line(&mut self, metrics: &Metrics) -> Result<()> {
        append(&self.file, &format!("{}\n", serde_json::to_string(metrics).expect("invariant: metrics are JSON")))
    }
}
