//! One token timeline in the engine: prompt, answer, where its cache lies, how far it is computed.
//!
//! A sequence knows its tokens; of these a prefix is computed, that is, stands in the cache. Prefill, decode, drafts to
//! verify and resumption after preemption are all the same thing: known tokens that are not computed yet.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use fathom_core::Tensor;
use fathom_core::rng::Rng;
use fathom_picture::Picture;
use sha2::{Digest as _, Sha256};

use crate::Result;
use crate::blocks::{BlockTable, Chain, Item};
use crate::event::{Event, Finish, Flow, Sink, Usage};
use crate::guide::Guided;
use crate::meter::Account;
use crate::request::{Id, Priority, Request, Seen};
use crate::runner::RunnerInfo;
use crate::sampler::{BadLogits, History, Sampler};
use crate::speculate::Record;

/// The rows of a picture in a prompt.
pub struct SeenRows {
    /// Where they stand.
    pub at: Range<usize>,
    /// What tells the picture from others.
    item: Item,
    /// The picture.
    pub picture: Arc<Picture>,
    /// The rows as they enter the decoder, once they are computed.
    pub rows: Option<Tensor>,
}

/// See the module.
pub struct Sequence {
    /// Its name.
    pub id: Id,
    /// What was asked for. Its prompt has moved to the tokens.
    pub request: Request,
    /// Pictures in the prompt.
    pub seen: Vec<SeenRows>,
    /// Prompt, answer, and behind these the drafts to verify.
    tokens: Vec<u32>,
    /// How many of the tokens are the prompt's.
    prompt: usize,
    /// How many of the tokens are no drafts.
    known: usize,
    /// Tokens that may be known at most.
    limit: usize,
    /// Tokens whose cache entries are written.
    pub computed: usize,
    /// Its cache blocks.
    pub table: BlockTable,
    /// Chained hash of everything before each block, as far as it was needed.
    pub chains: Vec<Chain>,
    /// Blocks that the prefix cache knows or was offered.
    pub offered: usize,
    /// Random stream.
    pub rng: Rng,
    /// What the penalties need.
    pub history: History,
    /// Whether the next token stands inside reasoning.
    inside: bool,
    /// Tokens that come next whatever the model says, last first.
    forced: Vec<u32>,
    /// What the answer must look like.
    guided: Option<Guided>,
    /// How well drafts did.
    pub record: Record,
    sink: Box<dyn Sink>,
    /// Whether its sink wants no more for now.
    pub paused: bool,
    /// Whether it shall end at the next chance.
    pub cancelled: bool,
    /// How it ended, until it is taken out.
    pub ended: Option<Result<Finish>>,
    /// Tokens of the prompt whose log-probabilities were reported.
    pub reported: usize,
    /// What it took so far.
    pub usage: Usage,
    /// Its energy so far.
    pub energy: Account,
    submitted: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
}

impl SeenRows {
    fn new(seen: Seen, rows: usize) -> Self {
        let Picture { width, height, rgb } = &*seen.picture;
        let mut hash = Sha256::new();
        [*width, *height].iter().for_each(|n| hash.update((*n as u64).to_le_bytes()));
        hash.update(rgb);
        let hash = hash.finalize();
        let item = u64::from_le_bytes(hash[..8].try_into().expect("invariant: eight bytes"));
        // Tokens fill the lower half, so the highest bit tells pictures from them.
        SeenRows { at: seen.at..seen.at + rows, item: item | 1 << 63, picture: seen.picture, rows: None }
    }
}

impl Sequence {
    /// A checked request, ready to wait. `seed` is used if the request names none.
    pub fn new(id: Id, mut request: Request, sink: Box<dyn Sink>, seed: u64, info: &RunnerInfo) -> Self {
        let (vocab, longest) = (info.vocab, info.longest());
        let rows = info.pictures.map_or(0, |p| p.seen_rows);
        let seen = std::mem::take(&mut request.seen).into_iter().map(|s| SeenRows::new(s, rows)).collect();
        let mut tokens = std::mem::take(&mut request.prompt);
        let prompt = tokens.len();
        let limit = prompt.saturating_add(request.max_tokens.unwrap_or(usize::MAX)).min(longest);
        // All that it can become, once, so that decoding does not allocate.
        tokens.reserve_exact(limit.saturating_sub(prompt));
        let guided = request.shape.as_ref().map(Guided::new);
        let inside = request.reasoning.as_ref().is_some_and(|r| r.inside);
        let mut sequence = Sequence {
            id,
            history: History::new(vocab, &request.sampling, &tokens),
            rng: Rng::new(request.seed.unwrap_or(seed), 0),
            chains: vec![Chain::root(&request.salt)],
            usage: Usage { prompt, ..Usage::default() },
            request,
            seen,
            tokens,
            prompt,
            known: prompt,
            limit,
            computed: 0,
            table: BlockTable::default(),
            offered: 0,
            inside,
            forced: Vec::new(),
            guided,
            record: Record::default(),
            sink,
            paused: false,
            cancelled: false,
            ended: None,
            reported: 1,
            energy: Account::default(),
            submitted: Instant::now(),
            admitted: None,
            first_token: None,
        };
        sequence.spend_budget();
        sequence
    }

    /// Prompt and answer.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens[..self.known]
    }

    /// What stands at a position, as far as the prefix cache must know: pictures take the places of equal tokens.
    pub fn item(&self, position: usize) -> Item {
        let seen = self.seen.iter().find(|s| s.at.contains(&position));
        seen.map_or_else(|| self.tokens[position].into(), |s| s.item)
    }

    /// Prompt, answer and drafts.
    pub fn tokens_and_drafts(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens of the prompt.
    pub fn prompt(&self) -> usize {
        self.prompt
    }

    /// Known tokens that are not computed; at least 1 while it runs.
    pub fn remaining(&self) -> usize {
        self.known - self.computed
    }

    /// Whether only the newest token is left to compute.
    pub fn decoding(&self) -> bool {
        self.remaining() == 1 && self.known > self.prompt
    }

    /// Drafts to verify.
    pub fn drafts(&self) -> usize {
        self.tokens.len() - self.known
    }

    /// Drafts that make sense: each, and the token after the last, must fit under the limit.
    pub fn room_for_drafts(&self) -> usize {
        self.limit.saturating_sub(self.known + 1)
    }

    /// Replaces the drafts, as far as there is room.
    pub fn set_drafts(&mut self, drafts: &[u32]) {
        self.tokens.truncate(self.known);
        let room = self.room_for_drafts();
        self.tokens.extend(drafts.iter().take(room));
    }

    /// Replaces the drafts by known tokens that stood at `range`, as far as there is room.
    pub fn draft_again(&mut self, range: Range<usize>) {
        self.tokens.truncate(self.known);
        let room = self.room_for_drafts();
        self.tokens.extend_from_within(range.start..range.end.min(range.start + room));
    }

    /// Who goes first: the lesser.
    pub fn rank(&self) -> (Priority, Id) {
        (self.request.priority, self.id)
    }

    /// Notes that its computation begins, and says so the first time.
    pub fn admit(&mut self) {
        if self.admitted.is_none() {
            let now = Instant::now();
            self.admitted = Some(now);
            self.usage.queue_s = (now - self.submitted).as_secs_f64();
            self.emit(Event::Accepted { prompt: self.prompt, cached: self.computed });
        }
    }

    /// Whether its computation has begun (and was preempted if it waits).
    pub fn begun(&self) -> bool {
        self.admitted.is_some()
    }

    /// Whether the whole limit is known: nothing is left to generate.
    pub fn full(&self) -> bool {
        self.known >= self.limit
    }

    /// Whether the next token must fit the answer's shape.
    fn shaped(&self) -> bool {
        self.guided.is_some() && !self.inside && self.forced.is_empty()
    }

    /// The mark that may open reasoning at this place although the shape has no room for it.
    fn opening(&self) -> Option<u32> {
        let first = self.known == self.prompt;
        self.request.reasoning.as_ref().filter(|r| first && r.may_open).map(|r| r.open)
    }

    /// The guide, if it rules the next token.
    pub fn guided(&mut self) -> Option<&mut Guided> {
        if self.shaped() { self.guided.as_mut() } else { None }
    }

    /// Chooses the next token: the one that must come, else one drawn from `logits: [vocab]` that fits the answer's shape.
    ///
    /// # Errors
    /// If the shape cannot be followed; inside, if the logits allow no draw.
    pub fn choose(&mut self, logits: &mut [f32], sampler: &mut Sampler) -> Result<std::result::Result<u32, BadLogits>> {
        if let Some(&token) = self.forced.last() {
            return Ok(Ok(token));
        }
        let (shaped, opening) = (self.shaped(), self.opening());
        let (history, sampling, rng) = (&self.history, &self.request.sampling, &mut self.rng);
        match self.guided.as_mut().filter(|_| shaped) {
            None => Ok(sampler.sample(logits, history, sampling, rng)),
            Some(guided) => Ok(sampler.sample_masked(logits, (guided.mask()?, opening), history, sampling, rng)),
        }
    }

    /// Takes the next token: verifies the first draft against it, or drops all drafts. Tells the sink, and ends if this was
    /// the last.
    pub fn push(&mut self, token: u32, logprob: Option<f32>, top: &[(u32, f32)]) {
        if self.tokens.get(self.known) == Some(&token) {
            self.usage.accepted += 1;
        } else {
            self.tokens.truncate(self.known);
            self.tokens.push(token);
        }
        let stop = self.request.stop_tokens.contains(&token);
        let opens = self.opening() == Some(token);
        let taken = match self.guided().filter(|_| !stop && !opens) {
            Some(guided) => guided.take(token),
            None => Ok(false),
        };
        self.known += 1;
        self.history.push(token);
        self.usage.completion += 1;
        self.follow_reasoning(token);
        let now = Instant::now();
        let first = *self.first_token.get_or_insert(now);
        self.usage.decode_s = (now - first).as_secs_f64();
        self.usage.prefill_s = self.admitted.map_or(0.0, |admitted| (first - admitted).as_secs_f64());
        self.emit(Event::Token { token, stop, logprob, top });
        if let Err(error) = taken {
            self.ended = Some(Err(error));
        } else if stop || taken == Ok(true) {
            self.ended = Some(Ok(Finish::Stop));
        } else if self.full() {
            self.ended = Some(Ok(Finish::Length));
        }
    }

    /// Says how it ended.
    pub fn close(mut self) {
        self.usage.energy = self.energy.sum();
        let usage = self.usage;
        match self.ended.take().unwrap_or(Ok(Finish::Cancelled)) {
            Ok(reason) => self.emit(Event::Finished { reason, usage }),
            Err(error) => self.emit(Event::Failed(error)),
        }
    }

    fn follow_reasoning(&mut self, token: u32) {
        self.forced.pop();
        let Some(reasoning) = &self.request.reasoning else { return };
        if token == reasoning.open {
            self.inside = true;
        } else if token == reasoning.close {
            self.inside = false;
        } else if self.inside {
            self.usage.reasoning += 1;
            self.spend_budget();
        }
    }

    /// Forces the closing tokens once the reasoning budget is spent.
    fn spend_budget(&mut self) {
        if let Some(reasoning) = &self.request.reasoning
            && self.inside
            && self.forced.is_empty()
            && reasoning.budget == Some(self.usage.reasoning)
        {
            self.forced.extend(reasoning.closing.iter().rev());
        }
    }

    /// Tells the sink and takes its answer to heart.
    pub fn emit(&mut self, event: Event<'_>) {
        match self.sink.event(event) {
            Flow::Continue => {}
            Flow::Pause => self.paused = true,
            Flow::Stop => self.cancelled = true,
        }
    }
}
