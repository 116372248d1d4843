//! A model that says what it was told to say: where a prompt holds a cue, its answer follows token by token.
//! It reads the history back through the block tables, so a mistake there changes what it says.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fathom_engine::{ChatModel, Engine, EngineOptions, Result, Runner, RunnerInfo, StepOutput, WorkerOptions};
use fathom_model::{Batch, Defaults};
use fathom_server::{Access, Limits, Log, ModelOptions, Offer, Refusal, ServeOptions, Served, Store, serve};
use fathom_text::{HuggingFaceTexts, Specials, VocabSource};

use crate::client::Client;

/// What it says to a cue.
pub(crate) const LINES: &[(&str, &str)] = &[
    ("say hello", "A greeting is due.\n</think>\n\nHello, Wörld! 🐋"),
    (
        "add",
        "They want a sum.</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{\"a\": 6, \"b\": 7}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    (
        "count for ever",
        "</think>\n\n1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36",
    ),
    ("Once upon", " a time there was a whale."),
];

/// Counts what the model does.
#[derive(Default)]
pub(crate) struct Watch {
    pub(crate) steps: AtomicU64,
    /// Milliseconds that a step takes.
    pub(crate) slow: AtomicU64,
}

struct Parrot {
    info: RunnerInfo,
    slots: Vec<u32>,
    /// Cues as text, because a cue's tokens depend on what stands before it, and answers as tokens.
    lines: Vec<(&'static str, Vec<u32>)>,
    chat: ChatModel,
    watch: Arc<Watch>,
}

impl Parrot {
    fn next(&self, history: &[u32]) -> u32 {
        let text = self.chat.tokenizer().decode(history);
        let line = self.lines.iter().filter_map(|line| Some((text.rfind(line.0)?, line))).max_by_key(|(at, _)| *at);
        let Some((_, (_, answer))) = line else { return answer_end(&self.lines) };
        let said = (0..answer.len()).rev().find(|&k| history.ends_with(&answer[..k])).unwrap_or(0);
        answer[said]
    }
}

fn answer_end(lines: &[(&str, Vec<u32>)]) -> u32 {
    *lines[0].1.last().expect("an answer ends")
}

impl Runner for Parrot {
    fn info(&self) -> &RunnerInfo {
        &self.info
    }

    fn step(&mut self, batch: &Batch, out: &mut StepOutput) -> Result<()> {
        self.watch.steps.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(self.watch.slow.load(Ordering::SeqCst)));
        for (&slot, &token) in batch.slots.iter().zip(&batch.tokens) {
            self.slots[slot as usize] = token;
        }
        out.reset(batch.logit_rows.len(), self.info.vocab).fill(-5.0);
        let spans = batch.spans();
        let mut row = 0;
        for span in spans.spans {
            let history: Vec<u32> = (0..span.start + span.rows).map(|p| self.slots[spans.slot(span, p)]).collect();
            for i in 0..span.rows {
                if let Some(place) = batch.logit_rows.iter().position(|&r| r as usize == row + i) {
                    let next = self.next(&history[..span.start + i + 1]) as usize;
                    let logits = out.row_mut(place);
                    logits[next] = 5.0;
                    // A second best, so that log-probabilities have something to show.
                    logits[(next + 1) % self.info.vocab] = 3.0;
                }
            }
            row += span.rows;
        }
        Ok(())
    }

    fn hidden(&mut self, row: u32, out: &mut Vec<f32>) -> Result<()> {
        *out = vec![3.0, 4.0, 0.0, row as f32 * 0.0];
        Ok(())
    }

    fn copy_block(&mut self, from: u32, to: u32, tokens: usize) -> Result<()> {
        let n = self.info.block_tokens;
        self.slots.copy_within(from as usize * n..from as usize * n + tokens, to as usize * n);
        Ok(())
    }

    fn draft(&mut self, _: &Batch, _: &[u32], _: &mut StepOutput) -> Result<()> {
        unreachable!("it has no head for drafts")
    }
}

fn source() -> VocabSource {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/tokenizers/deepseek_v3");
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap();
    let (tokenizer, config) = (read("tokenizer.json"), read("tokenizer_config.json"));
    let texts =
        HuggingFaceTexts { tokenizer: &tokenizer, config: Some(&config), special_tokens: None, chat_template: None };
    VocabSource::from_hugging_face("parrot", texts).unwrap()
}

pub(crate) fn chat_model() -> ChatModel {
    ChatModel::new(&source()).unwrap()
}

/// Offers parrots by any of the names.
pub(crate) struct Cage {
    names: Vec<&'static str>,
    pub(crate) watch: Arc<Watch>,
    queue: usize,
}

impl Store for Cage {
    fn offers(&self) -> Vec<Offer> {
        let offer = |name: &&str| Offer {
            name: (*name).to_owned(),
            bytes: 100,
            modified: 0,
            family: "parrot".into(),
            parameters: 1_500_000_000,
            format: "F32".into(),
            pictures: false,
        };
        self.names.iter().map(offer).collect()
    }

    fn load(&self, name: &str) -> std::result::Result<Served, Refusal> {
        let chat = chat_model();
        let t = chat.tokenizer();
        let encode = |text: &str| t.encode(text, Specials::Parse).unwrap();
        let answer = |text: &str| [encode(text), vec![t.end_tokens()[0]]].concat();
        let info = RunnerInfo {
            vocab: t.vocab_size(),
            context: 512,
            block_tokens: 16,
            blocks: 128,
            latent: false,
            drafts: false,
            pictures: None,
        };
        let runner = Parrot {
            slots: vec![0; info.cache_tokens()],
            lines: LINES.iter().map(|(cue, text)| (*cue, answer(text))).collect(),
            info,
            chat: chat.clone(),
            watch: Arc::clone(&self.watch),
        };
        let options = EngineOptions { queue: self.queue, worker: WorkerOptions::default(), ..EngineOptions::default() };
        let engine = Engine::start(Box::new(runner), options)?;
        let offer = self.offers().into_iter().find(|o| o.name == name).unwrap();
        let defaults = Defaults { temperature: 0.0, top_p: 1.0, top_k: 0 };
        Ok(Served { offer, chat, engine, defaults })
    }

    fn pull(&self, name: &str, progress: &mut dyn FnMut(&str, u64, u64)) -> std::result::Result<(), Refusal> {
        progress(name, 50, 100);
        progress(name, 100, 100);
        Ok(())
    }

    fn remove(&self, name: &str) -> std::result::Result<(), Refusal> {
        Err(Refusal::NoModel(name.to_owned()))
    }
}

/// How a test's server differs from the usual one.
pub(crate) struct Setting {
    pub(crate) access: Access,
    pub(crate) limits: Limits,
    pub(crate) names: Vec<&'static str>,
    pub(crate) memory: Option<u64>,
    pub(crate) queue: usize,
    /// The key that the returned client sends.
    pub(crate) key: Option<&'static str>,
}

impl Default for Setting {
    fn default() -> Self {
        let (access, limits) = (Access::default(), Limits::default());
        Setting { access, limits, names: vec!["parrot"], memory: None, queue: 64, key: None }
    }
}

/// Starts a server that lives as long as the test's process.
pub(crate) fn start(setting: Setting) -> (Client, Arc<Watch>) {
    let watch = Arc::new(Watch::default());
    let cage = Cage { names: setting.names.clone(), watch: Arc::clone(&watch), queue: setting.queue };
    (start_with(setting, Arc::new(cage)), watch)
}

/// The same over any store, whose first model is loaded when this returns.
pub(crate) fn start_with(setting: Setting, store: Arc<dyn Store>) -> Client {
    let options = ServeOptions {
        host: "127.0.0.1".into(),
        port: 0,
        access: setting.access,
        limits: setting.limits,
        models: ModelOptions {
            kept: vec![setting.names[0].to_owned()],
            aliases: vec![fathom_server::Alias {
                name: "deepseek-chat".into(),
                model: setting.names[0].into(),
                thinking: fathom_text::Thinking::Off,
            }],
            keep_alive: Duration::from_secs(300),
            memory: setting.memory,
            load_wait: Duration::from_secs(20),
        },
        log: Log::off(),
    };
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        serve(options, store, &mut |address| sender.send(address).unwrap()).unwrap();
    });
    let client = Client {
        address: receiver.recv_timeout(Duration::from_secs(10)).unwrap(),
        key: setting.key.map(str::to_owned),
    };
    for _ in 0..400 {
        if client.get("/ready").status == 200 {
            return client;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    panic!("the server is not ready after 10 s");
}
