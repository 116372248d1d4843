//! `fathom draw`: pictures from words.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use fathom_core::Precision;
use fathom_engine::{
    ChatModel, DrawOptions, Engine, EngineOptions, Event, Finish, Flow, ModelRunner, RunnerOptions, Sampling, Usage,
};
use fathom_picture::{Filter, Picture, encode_png, resize};

use crate::args::LoadArgs;
use crate::assistant::any_seed;
use crate::load::{Room, load_beside};
use crate::show_picture::{self, Show};
use crate::term::{self, StepBar};
use crate::units::duration;

/// How often the main thread looks up from waiting.
const TICK: Duration = Duration::from_millis(50);

/// Draw pictures of what a prompt describes
#[derive(clap::Args)]
#[command(after_help = "Examples:
  fathom draw 'A red fox in the snow' -m janus-pro-1b -o fox.png
  fathom draw 'A lighthouse at dusk' -m janus-pro-7b -n 4 -o light.png      light-1.png … light-4.png
  fathom draw 'A blue teapot' -m janus-pro-1b --seed 7                      the same picture every time
  fathom draw 'A blue teapot' -m janus-pro-1b --size 768                    drawn at 384, then enlarged

The model draws at one size (384 × 384 for Janus-Pro); --size resamples the finished picture, which adds no detail. Prompt, seed, model
and settings are written into the PNG. Where the terminal can show pictures, they are shown.")]
pub(crate) struct Args {
    /// What to draw
    #[arg(value_name = "PROMPT", allow_hyphen_values = true)]
    prompt: String,

    #[command(flatten)]
    load: LoadArgs,

    /// Pictures to draw at once
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    n: u8,

    /// File to write [default: picture.png; with several pictures -1, -2 … are added]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Seed that repeats the pictures [default: another every time]
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    seed: Option<u64>,

    /// How far to lead away from a picture of nothing in particular; 1 = not
    #[arg(long, value_name = "W", default_value_t = 5.0, allow_negative_numbers = true, help_heading = "Sampling")]
    guidance: f32,

    /// Randomness; 0 draws the likeliest id every time
    #[arg(long, value_name = "T", default_value_t = 1.0, allow_negative_numbers = true, help_heading = "Sampling")]
    temperature: f32,

    /// Keep only so many of the likeliest ids; 0 = all
    #[arg(long, value_name = "K", default_value_t = 0, help_heading = "Sampling")]
    top_k: usize,

    /// Keep only the likeliest ids that make up this much probability
    #[arg(long, value_name = "P", default_value_t = 1.0, help_heading = "Sampling")]
    top_p: f32,

    /// Side of the written picture in pixels, by resampling (Lanczos) after it is drawn [default: as drawn]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u16).range(16..=8192))]
    size: Option<u16>,

    /// Whether to show the picture in the terminal
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Show::Auto)]
    show: Show,
}

/// An event that has left the engine's thread.
enum Told {
    Step(usize),
    Picture(usize, Picture),
    Preview(Picture),
    Done(Finish, Usage),
    Failed(fathom_engine::Error),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let options = DrawOptions {
        pictures: usize::from(args.n),
        guidance: args.guidance,
        sampling: Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            ..Sampling::default()
        },
        seed: Some(args.seed.unwrap_or_else(any_seed)),
        preview: show_picture::moves(args.show).then_some(PREVIEW_STEPS),
        ..DrawOptions::default()
    };
    options.sampling.check(usize::MAX)?;
    let (loaded, _device, chat) =
        load_beside(&args.load, None, Room::Pictures(options.pictures), Precision::Fast, |model| {
            if model.spec.pictures.is_none() {
                bail!("this model does not draw; Janus and Janus-Pro do");
            }
            Ok(ChatModel::new(&model.vocab()?)?)
        })?;
    let pictures = loaded.decoder.spec.pictures.as_ref().expect("invariant: checked above");
    let (steps, side) = (pictures.steps(), pictures.side);
    let request = chat.draw(&args.prompt, &options)?;
    let lane = (request.prompt.len() + steps).next_multiple_of(fathom_model::BLOCK);
    let runner = ModelRunner::new(
        loaded.decoder,
        RunnerOptions { context: None, cache_tokens: Some(2 * options.pictures * lane), kv: loaded.kv, drafts: false },
    )?;
    let engine = Engine::start(Box::new(runner), EngineOptions::default())?;
    let size = args.size.map_or(side, usize::from);
    let described = Described { args, options: &options, model: &loaded.name, drawn: side, size };

    term::catch_interrupts(2)?;
    let (sender, receiver) = channel();
    let id = engine.submit(request, move |event: Event<'_>| {
        let told = match event {
            Event::Drawn { step, .. } => Told::Step(step),
            Event::Picture { index, picture, preview: false, .. } => Told::Picture(index, picture.clone()),
            Event::Picture { index: 0, picture, preview: true, .. } => Told::Preview(picture.clone()),
            Event::Finished { reason, usage } => Told::Done(reason, usage),
            Event::Failed(error) => Told::Failed(error),
            Event::Picture { .. }
            | Event::Accepted { .. }
            | Event::Prompt { .. }
            | Event::Embedding(_)
            | Event::Token { .. } => {
                return Flow::Continue;
            }
        };
        if sender.send(told).is_ok() { Flow::Continue } else { Flow::Stop }
    })?;
    let bar = StepBar::new("drawing", steps);
    let mut screen = show_picture::Screen::new(args.show);
    let mut drawn = Instant::now();
    loop {
        if term::interrupted() {
            engine.cancel(id);
        }
        match receiver.recv_timeout(TICK) {
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("the engine ended without a picture"),
            Ok(Told::Step(step)) => {
                drawn = Instant::now();
                bar.update(step);
            }
            Ok(Told::Preview(picture)) => bar.suspend(|| screen.preview(&picture))?,
            Ok(Told::Picture(index, picture)) => {
                let path = path(args, index);
                bar.suspend(|| {
                    described.write(&path, index, &picture)?;
                    screen.show(&picture)?;
                    writeln!(io::stdout(), "{}", path.display())?;
                    anyhow::Ok(())
                })?;
            }
            Ok(Told::Done(Finish::Cancelled, _)) => return Ok(ExitCode::from(term::INTERRUPTED)),
            Ok(Told::Done(_, usage)) => {
                drop(bar);
                let pixels = drawn.elapsed();
                let seconds = |s| duration(Duration::from_secs_f64(s));
                term::note(&format!(
                    "seed {} · prompt {} · {steps} steps {} · pixels {}",
                    options.seed.unwrap_or_default(),
                    seconds(usage.prefill_s),
                    seconds(usage.decode_s),
                    duration(pixels),
                ));
                return Ok(ExitCode::SUCCESS);
            }
            Ok(Told::Failed(error)) => return Err(error).context("drawing broke off"),
        }
    }
}

/// Steps between two previews in a terminal.
const PREVIEW_STEPS: usize = 96;

/// The file of picture `index`.
fn path(args: &Args, index: usize) -> PathBuf {
    let path = args.output.as_deref().unwrap_or(Path::new("picture.png"));
    if args.n == 1 {
        return path.to_owned();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map_or_else(|| "png".into(), |e| e.to_string_lossy());
    path.with_file_name(format!("{stem}-{}.{extension}", index + 1))
}

/// What a picture's file says of it.
struct Described<'a> {
    args: &'a Args,
    options: &'a DrawOptions,
    model: &'a str,
    drawn: usize,
    size: usize,
}

impl Described<'_> {
    fn write(&self, path: &Path, index: usize, picture: &Picture) -> Result<()> {
        let sized = (self.size != self.drawn).then(|| resize(picture, self.size, self.size, Filter::Lanczos));
        let settings = format!(
            "guidance {}, temperature {}, top-k {}, top-p {}, picture {} of {}",
            self.options.guidance,
            self.options.sampling.temperature,
            self.options.sampling.top_k,
            self.options.sampling.top_p,
            index + 1,
            self.options.pictures,
        );
        let size = match sized {
            None => format!("{0} × {0}, as drawn", self.drawn),
            Some(_) => format!("{0} × {0}, resampled (Lanczos) from {1} × {1}", self.size, self.drawn),
        };
        let seed = self.options.seed.unwrap_or_default().to_string();
        let text = [
            ("Software", concat!("fathom ", env!("CARGO_PKG_VERSION"))),
            ("prompt", &self.args.prompt),
            ("model", self.model),
            ("seed", &seed),
            ("settings", &settings),
            ("size", &size),
        ];
        let bytes = encode_png(sized.as_ref().unwrap_or(picture), &text)?;
        std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
    }
}
