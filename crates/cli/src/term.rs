//! The terminal: who is watching, progress for what takes long, dimmed text, Ctrl-C.
//!
//! Everything but an answer goes to standard error, and what moves goes there only if that is a terminal.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _};
use std::process::exit;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// Exit status after an interrupt, as shells count it: 128 + SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;

/// What took less than this is not worth a bar.
const PATIENCE: Duration = Duration::from_millis(500);

/// Whether someone watches standard output.
pub(crate) fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether someone watches standard error.
pub(crate) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Dimmed, where someone watches standard error.
pub(crate) fn dim(text: &str) -> Cow<'_, str> {
    if stderr_is_terminal() { Cow::Owned(format!("\x1b[2m{text}\x1b[0m")) } else { Cow::Borrowed(text) }
}

/// A remark on standard error.
pub(crate) fn note(text: &str) {
    eprintln!("{}", dim(text));
}

/// A bar over a known number of bytes, shown once it is clear that this takes a while.
pub(crate) struct ByteBar {
    label: String,
    start: Instant,
    bar: Option<ProgressBar>,
}

impl ByteBar {
    pub(crate) fn new(label: impl Into<String>) -> Self {
        ByteBar { label: label.into(), start: Instant::now(), bar: None }
    }

    /// Changes what stands before the bar.
    pub(crate) fn label(&mut self, label: &str) {
        if self.label != label {
            self.label = label.to_owned();
            if let Some(bar) = &self.bar {
                bar.set_message(self.label.clone());
            }
        }
    }

    /// `done` bytes of `total`. Rate and time left are reckoned from `done`, of which `had` were there at the start.
    pub(crate) fn update(&mut self, done: u64, total: u64, had: u64) {
        if self.bar.is_none() && stderr_is_terminal() && self.start.elapsed() > PATIENCE {
            let style = ProgressStyle::with_template(
                "{msg}  {wide_bar}  {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left",
            );
            let bar = ProgressBar::new(total).with_style(style.expect("invariant: the template is well formed"));
            bar.set_message(self.label.clone());
            bar.set_position(had);
            bar.reset_eta();
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        }
    }
}

impl Drop for ByteBar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A bar over a known number of steps.
pub(crate) struct StepBar(Option<ProgressBar>);

impl StepBar {
    pub(crate) fn new(label: impl Into<Cow<'static, str>>, steps: usize) -> Self {
        if !stderr_is_terminal() {
            return StepBar(None);
        }
        let style = ProgressStyle::with_template("{msg}  {wide_bar}  {pos}/{len}  {elapsed}  {eta} left");
        let bar = ProgressBar::new(steps as u64).with_style(style.expect("invariant: the template is well formed"));
        bar.set_message(label);
        StepBar(Some(bar))
    }

    /// So many steps are done.
    pub(crate) fn update(&self, step: usize) {
        if let Some(bar) = &self.0 {
            bar.set_position(step as u64);
        }
    }

    /// Does something with the bar out of the way.
    pub(crate) fn suspend<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(bar) => bar.suspend(work),
            None => work(),
        }
    }
}

impl Drop for StepBar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Something that turns while nobody knows how long it will take.
pub(crate) struct Spinner(Option<ProgressBar>);

impl Spinner {
    pub(crate) fn new(label: impl Into<Cow<'static, str>>) -> Self {
        if !stderr_is_terminal() {
            return Spinner(None);
        }
        let style = ProgressStyle::with_template("\x1b[2m{msg}  {elapsed}\x1b[0m");
        let bar = ProgressBar::new_spinner().with_style(style.expect("invariant: the template is well formed"));
        bar.set_message(label);
        bar.enable_steady_tick(Duration::from_millis(200));
        Spinner(Some(bar))
    }

    /// Says something else beside it.
    pub(crate) fn label(&self, label: impl Into<Cow<'static, str>>) {
        if let Some(bar) = &self.0 {
            bar.set_message(label);
        }
    }

    /// Takes it away.
    pub(crate) fn clear(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.clear();
    }
}

static INTERRUPTS: AtomicUsize = AtomicUsize::new(0);

/// From now on Ctrl-C asks for an end instead of making one; asked `patience` times without effect, the process goes.
pub(crate) fn catch_interrupts(patience: usize) -> Result<()> {
    ctrlc::set_handler(move || {
        if INTERRUPTS.fetch_add(1, Ordering::Relaxed) + 1 >= patience {
            exit(INTERRUPTED.into());
        }
    })
    .context("cannot listen for Ctrl-C")
}

/// Whether an end was asked for.
pub(crate) fn interrupted() -> bool {
    INTERRUPTS.load(Ordering::Relaxed) > 0
}

/// The wish was granted.
pub(crate) fn forget_interrupt() {
    INTERRUPTS.store(0, Ordering::Relaxed);
}

/// Text without the control characters that a terminal would obey, where someone watches standard error.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| c.is_control() && c != '\n' && c != '\t';
    if stderr_is_terminal() && text.contains(obeyed) { text.replace(obeyed, "").into() } else { text.into() }
}
