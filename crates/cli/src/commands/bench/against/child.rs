//! Running another program with an end to patience, and keeping what it said.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// More than this is kept of neither output.
const MOST: u64 = 4 << 20;

/// How often it is asked whether it has ended: rarely enough to cost nothing beside it.
const LOOK: Duration = Duration::from_millis(20);

/// How long after its end its outputs are waited for: something that it started may hold them open.
const LINGER: Duration = Duration::from_secs(2);

/// What is left of a program that ended.
pub(super) struct Ended {
    pub(super) success: bool,
    pub(super) status: ExitStatus,
    pub(super) out: String,
    pub(super) err: String,
}

impl Ended {
    /// The last lines that it wrote to standard error, for a message.
    pub(super) fn last_words(&self) -> String {
        let lines: Vec<&str> = self.err.lines().filter(|l| !l.trim().is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(5)..];
        if last.is_empty() {
            "; it wrote no error".into()
        } else {
            format!("; its last words:\n  {}", last.join("\n  "))
        }
    }
}

/// The command as one would type it.
pub(super) fn shown(path: &Path, args: &[String]) -> String {
    let quoted = |word: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,=:+@".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.to_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    let words = std::iter::once(path.display().to_string()).chain(args.iter().cloned());
    words.map(|w| quoted(&w)).collect::<Vec<_>>().join(" ")
}

/// What one output has said so far, and whether that is all.
type Said = Arc<Mutex<(Vec<u8>, bool)>>;

/// Reads on a thread of its own: a program whose pipe is full stands still.
fn listen(mut pipe: impl Read + Send + 'static) -> Said {
    let said = Said::default();
    let heard = said.clone();
    thread::spawn(move || {
        let mut part = [0; 4096];
        loop {
            let n = match pipe.read(&mut part) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                read => read.unwrap_or(0),
            };
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.1 = n == 0;
            if n == 0 {
                return;
            }
            let room = (MOST as usize).saturating_sub(heard.0.len());
            heard.0.extend_from_slice(&part[..n.min(room)]);
        }
    });
    said
}

/// Waits for its end.
fn wait(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() >= patience {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}

/// Runs a program to its end.
///
/// # Errors
/// If it cannot be started, or has not ended when patience has: it is killed then.
pub(super) fn run(path: &Path, args: &[String], patience: Duration) -> Result<Ended> {
    let command = shown(path, args);
    let started = Command::new(path)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("--against {}: cannot be started; give the path of a llama-bench", path.display()));
    let mut child = started?;
    let out = child.stdout.take().map(listen).unwrap_or_default();
    let err = child.stderr.take().map(listen).unwrap_or_default();
    let Some(status) = wait(&mut child, patience).with_context(|| format!("`{command}`"))? else {
        bail!(
            "`{command}` had not ended after {} s and was killed (--against-timeout gives it more)",
            patience.as_secs()
        );
    };
    let ended = Instant::now();
    let take = |said: Said| {
        while !said.lock().unwrap_or_else(PoisonError::into_inner).1 && ended.elapsed() < LINGER {
            thread::sleep(Duration::from_millis(1));
        }
        String::from_utf8_lossy(&said.lock().unwrap_or_else(PoisonError::into_inner).0).into_owned()
    };
    Ok(Ended { success: status.success(), status, out: take(out), err: take(err) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_typed() {
        let words = ["-m", "/a b/it's.gguf", "-d", "0,4096", ""].map(str::to_owned);
        assert_eq!(shown(Path::new("/x/y"), &words), r"/x/y -m '/a b/it'\''s.gguf' -d 0,4096 ''");
    }
}
