//! Requests for pictures, in the same steps as everybody's text.
//!
//! A picture is a sequence of ids, one per step, under classifier-free guidance (Ho & Salimans 2022): two lanes, one after the
//! prompt and one after the prompt without its words, whose logits are mixed and which both go on with the id that was drawn. Lanes
//! are rows of the step's one batch, so weights are read once for all lanes of all pictures and for the text beside them.
//!
//! How long a picture takes is known beforehand. So a request gets the cache blocks of all its lanes when it is admitted and keeps them:
//! it waits or runs, and is never preempted. The prompt is computed once and its blocks are shared.

use std::collections::VecDeque;
use std::time::Instant;

use fathom_core::LatentForm;
use fathom_core::rng::Rng;
use fathom_model::{Batch, Logits};

use crate::blocks::{BlockPool, BlockTable, Copy};
use crate::event::{Event, Finish, Flow, Sink, Usage};
use crate::meter::{Account, Energy};
use crate::request::{Drawing, Id, Request};
use crate::runner::PictureInfo;
use crate::sampler::History;
use crate::{Error, Result, Runner, Sampler, StepOutput};

/// Rows of each prompt that are computed in a step at most.
const PROMPT_ROWS: usize = 256;

/// Lanes of a picture: with the prompt, and without its words.
const LANES: usize = 2;

/// One request.
pub struct Sketch {
    id: Id,
    request: Request,
    drawing: Drawing,
    info: PictureInfo,
    sink: Box<dyn Sink>,
    /// Per picture its two lanes' blocks; empty while it waits.
    tables: Vec<BlockTable>,
    /// Copies of the prompt's last, partly filled block, to be made once it is computed.
    copies: Vec<Copy>,
    /// Positions of the prompt that are computed.
    computed: usize,
    /// Ids of each picture so far.
    ids: Vec<Vec<u32>>,
    /// Random stream of each picture.
    streams: Vec<Rng>,
    /// Pictures painted and handed over.
    painted: usize,
    /// First of its rows of picture logits in the step, and how many; none if it sat the step out.
    rows: Option<(usize, usize)>,
    /// Rows of any kind in the step.
    share: usize,
    paused: bool,
    cancelled: bool,
    ended: Option<Result<Finish>>,
    usage: Usage,
    energy: Account,
    submitted: Instant,
    admitted: Option<Instant>,
    first: Option<Instant>,
}

/// All drawing requests of a worker.
#[derive(Default)]
pub struct Easel {
    waiting: VecDeque<Sketch>,
    running: Vec<Sketch>,
    sampler: Option<Sampler>,
    mixed: Vec<f32>,
}

impl Sketch {
    /// A checked request, ready to wait. `seed` is used if the request names none.
    pub fn new(
        id: Id,
        mut request: Request,
        drawing: Drawing,
        info: PictureInfo,
        sink: Box<dyn Sink>,
        seed: u64,
    ) -> Self {
        request.drawing = None;
        let seed = request.seed.unwrap_or(seed);
        Sketch {
            id,
            info,
            sink,
            tables: Vec::new(),
            copies: Vec::new(),
            computed: 0,
            ids: vec![Vec::with_capacity(info.steps()); drawing.pictures],
            // A picture does not depend on how many are drawn beside it.
            streams: (0..drawing.pictures).map(|i| Rng::new(seed, i as u64)).collect(),
            painted: 0,
            rows: None,
            share: 0,
            paused: false,
            cancelled: false,
            ended: None,
            usage: Usage { prompt: request.prompt.len(), ..Usage::default() },
            energy: Account::default(),
            submitted: Instant::now(),
            admitted: None,
            first: None,
            request,
            drawing,
        }
    }

    /// Positions of a whole lane.
    fn length(&self) -> usize {
        self.request.prompt.len() + self.info.steps()
    }

    fn prompt(&self, lane: usize) -> &[u32] {
        if lane == 0 { &self.request.prompt } else { &self.drawing.unconditional }
    }

    /// Ids drawn of each picture.
    fn drawn(&self) -> usize {
        self.ids[0].len()
    }

    /// Cache blocks of all lanes: the prompt's whole blocks once per lane kind, everything else per picture.
    fn blocks(&self, block: usize) -> usize {
        let (all, shared) = (self.length().div_ceil(block), self.request.prompt.len() / block);
        LANES * (shared + self.drawing.pictures * (all - shared))
    }

    /// Takes the blocks of all lanes, of which the pool has enough.
    fn admit(&mut self, pool: &mut BlockPool) {
        let (length, block) = (self.length(), pool.block_tokens());
        let (whole, rest) = (self.request.prompt.len() / block, self.request.prompt.len() % block);
        for picture in 0..self.drawing.pictures {
            for lane in 0..LANES {
                let mut table = BlockTable::with_capacity(length.div_ceil(block));
                let first = if picture > 0 { self.tables[lane].blocks().to_vec() } else { Vec::new() };
                first.iter().take(whole).for_each(|&shared| table.share(pool, shared));
                let from = table.blocks().len() * block;
                let copy = table.reserve(pool, from, length);
                assert_eq!(copy, Ok(None), "invariant: a drawing is admitted when there are blocks for all of it");
                if picture > 0 && rest > 0 {
                    self.copies.push(Copy { from: first[whole], to: table.blocks()[whole], tokens: rest });
                }
                self.tables.push(table);
            }
        }
        let now = Instant::now();
        self.admitted = Some(now);
        self.usage.queue_s = (now - self.submitted).as_secs_f64();
        self.emit(Event::Accepted { prompt: self.request.prompt.len(), cached: 0 });
    }

    /// Adds its rows to the step.
    fn place(&mut self, batch: &mut Batch) {
        let (rows, logits) = (batch.rows(), batch.picture_rows.len());
        let prompt = self.request.prompt.len();
        if self.computed < prompt {
            let end = prompt.min(self.computed + PROMPT_ROWS);
            for lane in 0..LANES {
                let tokens = &self.prompt(lane)[self.computed..end];
                batch.push(tokens, self.computed, self.tables[lane].blocks(), LatentForm::Plain, Logits::None);
                if end == prompt {
                    batch.want_picture();
                }
            }
            self.computed = end;
        } else {
            let at = prompt + self.drawn() - 1;
            for (picture, ids) in self.ids.iter().enumerate() {
                let newest = &ids[ids.len() - 1..];
                for lane in 0..LANES {
                    batch.push_codes(newest, at, self.tables[picture * LANES + lane].blocks());
                }
            }
        }
        self.rows = Some((logits, batch.picture_rows.len() - logits));
        self.share = batch.rows() - rows;
    }

    /// Draws the next id of every picture from the step's logits.
    fn take(&mut self, out: &StepOutput, sampler: &mut Sampler, mixed: &mut Vec<f32>) {
        let Some((first, rows)) = self.rows.filter(|(_, rows)| *rows > 0) else { return };
        for picture in 0..self.drawing.pictures {
            // After the prompt all pictures draw from the same two rows.
            let row = first + if rows > LANES { LANES * picture } else { 0 };
            let (with, without) = (out.picture_row(row), out.picture_row(row + 1));
            mixed.clear();
            mixed.extend(with.iter().zip(without).map(|(c, u)| u + self.drawing.guidance * (c - u)));
            let stream = &mut self.streams[picture];
            match sampler.sample(mixed, &History::default(), &self.request.sampling, stream) {
                Ok(id) => self.ids[picture].push(id),
                Err(bad) => {
                    let position = self.request.prompt.len() + self.drawn() - 1;
                    self.ended = Some(Err(Error::Logits { position, why: bad.why() }));
                    return;
                }
            }
        }
        let now = Instant::now();
        let start = *self.first.get_or_insert(now);
        self.usage.decode_s = (now - start).as_secs_f64();
        self.usage.prefill_s = self.admitted.map_or(0.0, |at| (start - at).as_secs_f64());
        self.usage.completion += self.drawing.pictures;
        self.emit(Event::Drawn { step: self.drawn(), steps: self.info.steps() });
    }

    /// Paints what is to be shown: a preview of every picture when one is due, and one finished picture at a time, so that others'
    /// steps come between two.
    fn paint(&mut self, runner: &mut dyn Runner) -> Result<()> {
        let (drawn, steps) = (self.drawn(), self.info.steps());
        let fresh = self.rows.is_some_and(|(_, rows)| rows > 0);
        if drawn == steps {
            if self.painted < self.ids.len() {
                let index = self.painted;
                self.show(runner, index, steps, false)?;
                self.painted += 1;
            }
            if self.painted == self.ids.len() && self.ended.is_none() {
                self.ended = Some(Ok(Finish::Stop));
            }
        } else if fresh
            && self.drawing.preview.is_some_and(|every| drawn.is_multiple_of(every))
            && drawn >= self.info.grid
        {
            let whole = drawn / self.info.grid * self.info.grid;
            for index in 0..self.ids.len() {
                self.show(runner, index, whole, true)?;
            }
        }
        Ok(())
    }

    fn show(&mut self, runner: &mut dyn Runner, index: usize, count: usize, preview: bool) -> Result<()> {
        let ids = std::mem::take(&mut self.ids[index]);
        let painted = runner.paint(&ids[..count]);
        if let Ok(picture) = &painted {
            self.emit(Event::Picture { index, ids: &ids[..count], picture, preview });
        }
        self.ids[index] = ids;
        painted.map(drop)
    }

    fn emit(&mut self, event: Event<'_>) {
        match self.sink.event(event) {
            Flow::Continue => {}
            Flow::Pause => self.paused = true,
            Flow::Stop => self.cancelled = true,
        }
    }

    /// Gives back its blocks and says how it ended. Returns what it took.
    fn close(mut self, pool: &mut BlockPool) -> Usage {
        // Later pictures share the first one's blocks.
        self.tables.iter_mut().rev().for_each(|table| table.release(pool));
        self.usage.energy = self.energy.sum();
        let usage = self.usage;
        match self.ended.take().unwrap_or(Ok(Finish::Cancelled)) {
            Ok(reason) => self.emit(Event::Finished { reason, usage }),
            Err(error) => self.emit(Event::Failed(error)),
        }
        usage
    }
}

impl Easel {
    /// Lets a request wait for its turn.
    pub fn add(&mut self, sketch: Sketch) {
        self.waiting.push_back(sketch);
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Requests that are being drawn.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Sketch> {
        self.running.iter_mut().chain(&mut self.waiting)
    }

    /// Ends a request before the next step.
    pub fn cancel(&mut self, id: Id) {
        self.all().filter(|s| s.id == id).for_each(|s| s.cancelled = true);
    }

    /// Lets a paused request go on.
    pub fn resume(&mut self, id: Id) {
        self.all().filter(|s| s.id == id).for_each(|s| s.paused = false);
    }

    /// Marks all requests as ended: cancelled, or failed with `error`.
    pub fn end_all(&mut self, error: Option<&Error>) {
        for sketch in self.all() {
            match error {
                Some(error) => sketch.ended = Some(Err(error.clone())),
                None => sketch.cancelled = true,
            }
        }
    }

    /// Admits who comes next as far as blocks reach, and adds everybody's rows to the step. Returns whether there is anything to do.
    pub fn place(&mut self, pool: &mut BlockPool, batch: &mut Batch) -> bool {
        while self.waiting.front().is_some_and(|s| s.blocks(pool.block_tokens()) <= pool.idle()) {
            let mut sketch = self.waiting.pop_front().expect("invariant: there is a first one");
            sketch.admit(pool);
            self.running.push(sketch);
        }
        let mut busy = false;
        for sketch in &mut self.running {
            (sketch.rows, sketch.share) = (None, 0);
            if sketch.paused || sketch.cancelled {
                continue;
            }
            busy = true;
            if sketch.drawn() < sketch.info.steps() {
                sketch.place(batch);
            }
        }
        busy
    }

    /// Takes the step's logits, tells what there is to tell, and paints.
    ///
    /// # Errors
    /// If the runner fails.
    pub fn take(&mut self, runner: &mut dyn Runner, out: &StepOutput) -> Result<()> {
        for sketch in &mut self.running {
            if sketch.paused || sketch.cancelled {
                continue;
            }
            if sketch.computed == sketch.request.prompt.len() {
                for copy in std::mem::take(&mut sketch.copies) {
                    runner.copy_block(copy.from, copy.to, copy.tokens)?;
                }
            }
            let sampler = self.sampler.get_or_insert_with(|| Sampler::new(sketch.info.codes));
            sketch.take(out, sampler, &mut self.mixed);
            if sketch.ended.is_none() && !sketch.cancelled {
                sketch.paint(runner)?;
            }
        }
        Ok(())
    }

    /// Notes everybody's share of the energy of a step of `rows` rows.
    pub fn account(&mut self, rows: usize, energy: Option<Energy>) {
        for sketch in self.running.iter_mut().filter(|s| s.share > 0) {
            let share = sketch.share as f64 / rows as f64;
            sketch.energy.add(energy.map(|e| Energy { joules: e.joules * share, ..e }));
        }
    }

    /// Takes out what has ended or is to end; returns what each took.
    pub fn sweep(&mut self, pool: &mut BlockPool) -> Vec<Usage> {
        let over = |s: &Sketch| s.ended.is_some() || s.cancelled;
        let mut ended: Vec<Sketch> = self.running.extract_if(.., |s| over(s)).collect();
        let (gone, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(over);
        self.waiting = waiting;
        ended.extend::<VecDeque<Sketch>>(gone);
        ended.into_iter().map(|sketch| sketch.close(pool)).collect()
    }
}
