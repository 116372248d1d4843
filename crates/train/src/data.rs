//! From problems to examples: tokens, and where they begin to count.
//!
//! The tokens of a prompt are put together here exactly as the chat template has them (a test compares), without the template: a
//! run makes hundreds of thousands. Example number `index` of a seed is always the same one.

use fathom_core::rng::Rng;
use fathom_tasks::{Generator, Sample, Split};
use fathom_text::{Specials, THINK_OPEN, Tokenizer};

use crate::error::Result;
use crate::recipe::Data;
use crate::trainer::Example;
use crate::vocabulary::{ASSISTANT, USER};

/// System prompts that clients send by themselves; they should not confuse a model that has nothing to learn from them.
const SYSTEM: &[&str] = &[
    "You are a helpful assistant.",
    "You are a helpful assistant",
    "You are a helpful, respectful and honest assistant.",
    "Du bist ein hilfreicher Assistent.",
    "Answer briefly.",
    "Antworte kurz.",
];

/// Makes examples.
pub struct Examples<'a> {
    generator: Generator,
    tokenizer: &'a Tokenizer,
    turns: f64,
    seed: u64,
    marks: Marks,
}

/// Special tokens.
#[derive(Clone, Copy)]
struct Marks {
    bos: u32,
    eos: u32,
    user: u32,
    assistant: u32,
    think: u32,
}

impl Marks {
    fn of(tokenizer: &Tokenizer) -> Self {
        let id = |t: &str| tokenizer.id_of(t).expect("invariant: the vocabulary begins with DeepSeek's special tokens");
        Marks {
            bos: tokenizer.bos().expect("invariant: the vocabulary has a beginning"),
            eos: tokenizer.end_tokens()[0],
            user: id(USER),
            assistant: id(ASSISTANT),
            think: id(THINK_OPEN),
        }
    }
}

impl<'a> Examples<'a> {
    /// Examples of the mix under `seed`.
    ///
    /// # Errors
    /// If the mix names kinds that do not exist, or is empty.
    pub fn new(generator: Generator, tokenizer: &'a Tokenizer, data: &Data, seed: u64) -> Self {
        Examples { generator, tokenizer, turns: data.turns, seed, marks: Marks::of(tokenizer) }
    }

    /// The problem behind example `index`.
    pub fn sample(&self, index: u64) -> Sample {
        self.generator.sample(Split::Train, self.seed, index)
    }

    /// The prompt of a question as a model meets it.
    ///
    /// # Errors
    /// If the text cannot be encoded.
    pub fn prompt(&self, question: &str) -> Result<Vec<u32>> {
        let mut tokens = vec![self.marks.bos];
        self.ask(question, &mut tokens)?;
        self.begin(&mut tokens)?;
        Ok(tokens)
    }

    fn text(&self, text: &str, tokens: &mut Vec<u32>) -> Result<()> {
        tokens.extend(self.tokenizer.encode(text, Specials::Parse)?);
        Ok(())
    }

    fn ask(&self, question: &str, tokens: &mut Vec<u32>) -> Result<()> {
        tokens.push(self.marks.user);
        self.text(question, tokens)
    }

    fn begin(&self, tokens: &mut Vec<u32>) -> Result<()> {
        tokens.extend([self.marks.assistant, self.marks.think]);
        self.text("\n", tokens)
    }

    /// Example `index`, and its problem: perhaps a system prompt and earlier turns, then question, reasoning, answer.
    /// Reasoning and answer count; with `whole` everything does.
    ///
    /// # Errors
    /// If a text cannot be encoded.
    pub fn example(&self, index: u64, whole: bool) -> Result<(Example, Sample)> {
        let mut rng = Rng::new(self.seed ^ 0x7475_726e, index);
        let mut tokens = vec![self.marks.bos];
        if rng.uniform() < self.turns / 2.0 {
            self.text(SYSTEM[rng.below(SYSTEM.len() as u32) as usize], &mut tokens)?;
        }
        if rng.uniform() < self.turns {
            for _ in 0..1 + rng.below(2) {
                // Far from every index that is learned from by itself.
                let earlier = self.generator.sample(Split::Train, self.seed, (1 << 40) + u64::from(rng.next_u32()));
                self.ask(&earlier.question, &mut tokens)?;
                tokens.push(self.marks.assistant);
                self.text(&earlier.answer, &mut tokens)?;
                tokens.push(self.marks.eos);
            }
        }
        let sample = self.sample(index);
        self.ask(&sample.question, &mut tokens)?;
        self.begin(&mut tokens)?;
        let from = if whole { 1 } else { tokens.len() };
        self.text(&sample.completion(), &mut tokens)?;
        tokens.push(self.marks.eos);
        Ok((Example { tokens, from }, sample))
    }
}
