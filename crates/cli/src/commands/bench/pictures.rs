//! `fathom bench --pictures`: seeing a picture, the steps of drawing one and four, and the codec.
//!
//! Steps are measured where a whole picture's are on average: half of its ids are in the cache before. A step reads every weight of the
//! decoder and of the picture head once, however many pictures are drawn, and the cache of every lane.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use fathom_core::null::Null;
use fathom_core::rng::Rng;
use fathom_core::{DType, Shape};
use fathom_engine::{
    Drawing, Event, Flow, Id, Meter, ModelRunner, PictureInfo, Request, Runner as _, RunnerOptions, Sampling, Worker,
    WorkerOptions,
};
use fathom_model::picture::values;
use fathom_model::{BLOCK, Batch, Decoder, Model};
use fathom_picture::Picture;
use serde_json::{Value, json};

use crate::units::{bytes, duration};

/// Tokens of a description.
const WORDS: usize = 24;

/// Pictures that are drawn at once.
const AT_ONCE: [usize; 2] = [1, 4];

/// Seconds, each the median of several.
pub(super) struct Measured {
    see: f64,
    encode: f64,
    paint: f64,
    prompt: f64,
    /// A step of one picture, and of four.
    steps: [f64; 2],
    /// Steps of a picture.
    count: usize,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    (values[(n - 1) / 2] + values[n / 2]) / 2.0
}

/// The median time of several passes after one that is not counted.
fn timed(repetitions: u32, mut pass: impl FnMut() -> Result<()>) -> Result<f64> {
    pass()?;
    let mut times = Vec::new();
    for _ in 0..repetitions {
        let start = Instant::now();
        pass()?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(median(times))
}

/// Room for four pictures that begin behind as many positions as half a picture has.
fn options(decoder: &Decoder, kv: DType, info: PictureInfo) -> RunnerOptions {
    let lane = (WORDS + info.steps() / 2 + info.steps()).next_multiple_of(BLOCK);
    let context = Some(decoder.spec.context.min(lane));
    RunnerOptions { context, cache_tokens: Some(2 * AT_ONCE[1] * lane), kv, drafts: false }
}

fn info(decoder: &Decoder) -> Result<PictureInfo> {
    let spec = decoder.spec.pictures.as_ref().context("--pictures: this model neither sees nor draws")?;
    Ok(PictureInfo { codes: spec.codec.codes, grid: spec.grid(), side: spec.side, seen_rows: spec.rows() })
}

/// Measures everything, `steps` steps of each kind.
pub(super) fn measure(decoder: Arc<Decoder>, kv: DType, steps: usize, repetitions: u32) -> Result<Measured> {
    let info = info(&decoder)?;
    let steps = steps.min(info.steps() - 1);
    ensure!(steps > 0, "--pictures: -n is 0, so there are no steps to measure");
    let vocab = decoder.spec.vocab as u32;
    let options = options(&decoder, kv, info);
    let mut rng = Rng::new(1, 0);
    let picture = {
        let mut picture = Picture::filled(info.side, info.side, [0; 3]);
        picture.rgb.fill_with(|| rng.below(256) as u8);
        picture
    };
    let ids: Vec<u32> = (0..info.steps()).map(|_| rng.below(info.codes as u32)).collect();
    let mut runner = ModelRunner::new(decoder, options)?;
    let see = timed(repetitions, || Ok(runner.see(&picture).map(drop)?))?;
    let encode = timed(repetitions, || {
        let decoder = runner.decoder();
        let (b, spec) = (&*decoder.backend, decoder.spec.pictures.as_ref().context("no picture side")?);
        let pixels = b.tensor(Shape::new(&[1, info.side, info.side, 3]), &values(&picture, &spec.pixels))?;
        Ok(decoder.pictures().codec.encode(b, &pixels).map(drop)?)
    })?;
    let paint = timed(repetitions, || Ok(runner.paint(&ids).map(drop)?))?;
    let mut worker = Worker::new(Box::new(runner), WorkerOptions::default(), Meter::none())?;
    let mut words = |n: usize| (0..n).map(|_| rng.below(vocab)).collect::<Vec<u32>>();
    let prompt = timed(repetitions, || draw(&mut worker, words(WORDS), 1, 0).map(drop))?;
    let middle = WORDS + (info.steps() - steps) / 2;
    let mut step = |pictures| Ok::<_, anyhow::Error>(median(draw(&mut worker, words(middle), pictures, steps)?));
    let steps = [step(AT_ONCE[0])?, step(AT_ONCE[1])?];
    Ok(Measured { see, encode, paint, prompt, steps, count: info.steps() })
}

/// Draws the first id and `steps` more of each picture; how long each of those took.
fn draw(worker: &mut Worker, prompt: Vec<u32>, pictures: usize, steps: usize) -> Result<Vec<f64>> {
    #[derive(Default)]
    struct Notes {
        drawn: Vec<Instant>,
        failed: Option<fathom_engine::Error>,
    }
    let notes: Arc<Mutex<Notes>> = Arc::default();
    let seen = Arc::clone(&notes);
    let request = Request {
        seed: Some(1),
        sampling: Sampling { temperature: 1.0, ..Sampling::default() },
        drawing: Some(Drawing { unconditional: prompt.clone(), pictures, guidance: 5.0, preview: None }),
        ..Request::new(prompt)
    };
    let sink = move |event: Event<'_>| {
        let mut notes = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Drawn { .. } => notes.drawn.push(Instant::now()),
            Event::Failed(error) => notes.failed = Some(error),
            _ => {}
        }
        if notes.drawn.len() > steps { Flow::Stop } else { Flow::Continue }
    };
    worker.submit(Id(0), request, Box::new(sink))?;
    while worker.step()? {}
    let notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = &notes.failed {
        return Err(error.clone()).context("drawing broke off");
    }
    Ok(notes.drawn.windows(2).map(|two| (two[1] - two[0]).as_secs_f64()).collect())
}

/// Bytes of weights and cache that a step of one picture reads, counted by a pass over the backend without data.
pub(super) fn cost(model: &Model, kv: DType) -> Result<u64> {
    let null = Arc::new(Null::new());
    let decoder = model.load(null.clone(), &mut |_, _| {})?;
    let info = info(&decoder)?;
    let options = options(&decoder, kv, info);
    let mut runner = ModelRunner::new(decoder, options)?;
    let mut batch = Batch::new(BLOCK);
    let at = WORDS + info.steps() / 2;
    let blocks = (at + 1).div_ceil(BLOCK) as u32;
    for lane in 0..2 {
        let table: Vec<u32> = (lane * blocks..(lane + 1) * blocks).collect();
        batch.push_codes(&[0], at, &table);
    }
    null.reset();
    runner.step(&batch, &mut fathom_engine::StepOutput::default())?;
    let total = null.counts().total();
    Ok(total.weight_bytes + total.cache_bytes)
}

impl Measured {
    /// A whole picture, or four at once.
    fn whole(&self, which: usize) -> f64 {
        self.prompt + self.count as f64 * self.steps[which] + AT_ONCE[which] as f64 * self.paint
    }

    /// Share of the bandwidth that a step of one picture reaches.
    fn fraction(&self, cost: u64, bandwidth: f64) -> f64 {
        cost as f64 / self.steps[0] / bandwidth
    }

    pub(super) fn json(&self, cost: u64, bandwidth: f64) -> Value {
        json!({
            "see_s": self.see,
            "encode_s": self.encode,
            "decode_s": self.paint,
            "prompt_s": self.prompt,
            "step_s": self.steps[0],
            "step_of_four_s": self.steps[1],
            "steps": self.count,
            "picture_s": self.whole(0),
            "four_pictures_s": self.whole(1),
            "step_bytes": cost,
            "step_bandwidth_fraction": self.fraction(cost, bandwidth),
        })
    }

    pub(super) fn print(&self, out: &mut impl io::Write, cost: u64, bandwidth: f64) -> Result<()> {
        let s = |seconds: f64| duration(std::time::Duration::from_secs_f64(seconds));
        let [one, four] = self.steps.map(|step| 1000.0 * step);
        writeln!(out, "see         {} a picture", s(self.see))?;
        writeln!(out, "codec       {} to ids, {} to pixels", s(self.encode), s(self.paint))?;
        writeln!(
            out,
            "step        {one:.1} ms, of four pictures {four:.1} ms; reads {} and reaches {:.0} % of the bandwidth",
            bytes(cost),
            100.0 * self.fraction(cost, bandwidth)
        )?;
        writeln!(
            out,
            "picture     {} (prompt {}, {} steps {}, pixels {}); four at once {}",
            s(self.whole(0)),
            s(self.prompt),
            self.count,
            s(self.count as f64 * self.steps[0]),
            s(self.paint),
            s(self.whole(1)),
        )?;
        Ok(())
    }
}
