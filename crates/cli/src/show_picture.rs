//! Pictures in a terminal: by the kitty or iTerm2 protocol where the terminal says that it knows one, else as half blocks in true colour.
//!
//! Which terminal it is comes from its environment; nothing is asked of it, so nothing can hang.

use std::env::var;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use fathom_picture::{Filter, Limits, Picture, base64, decode, encode_png, resize};

use crate::term;

/// Reads a picture file.
pub(crate) fn read(path: &Path) -> Result<Arc<Picture>> {
    let limits = Limits::default();
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut bytes = Vec::new();
    // One byte more than allowed says enough about a file that is too long.
    file.take(limits.bytes as u64 + 1).read_to_end(&mut bytes).with_context(|| path.display().to_string())?;
    let picture = decode(&bytes, &limits).with_context(|| path.display().to_string())?;
    Ok(Arc::new(picture))
}

/// Values of `--show`.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    /// If standard output is a terminal, as that terminal can
    Auto,
    /// Not at all
    Off,
    /// kitty's protocol (kitty, Ghostty, WezTerm, Konsole)
    Kitty,
    /// iTerm2's protocol (iTerm2, WezTerm, mintty, VS Code)
    Iterm,
    /// Coloured half blocks (any terminal with 24-bit colour)
    Blocks,
}

/// How a terminal shows pictures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Kitty,
    Iterm,
    Blocks,
}

/// Columns that a picture of half blocks takes.
const COLUMNS: usize = 48;

fn way(show: Show, variable: impl Fn(&str) -> String) -> Option<Way> {
    match show {
        Show::Off => return None,
        Show::Kitty => return Some(Way::Kitty),
        Show::Iterm => return Some(Way::Iterm),
        Show::Blocks => return Some(Way::Blocks),
        Show::Auto => {}
    }
    let (term, program, colours) = (variable("TERM"), variable("TERM_PROGRAM"), variable("COLORTERM"));
    // A multiplexer between us and the terminal swallows the protocols.
    let direct = !term.starts_with("screen") && !term.starts_with("tmux");
    let is = |names: &[&str]| names.iter().any(|n| program.eq_ignore_ascii_case(n));
    if direct && (term.contains("kitty") || term.contains("ghostty") || is(&["ghostty", "WezTerm"])) {
        return Some(Way::Kitty);
    }
    if direct && is(&["iTerm.app", "mintty", "vscode"]) {
        return Some(Way::Iterm);
    }
    (colours == "truecolor" || colours == "24bit").then_some(Way::Blocks)
}

fn here(show: Show) -> Option<Way> {
    if show == Show::Auto && !term::stdout_is_terminal() {
        return None;
    }
    way(show, |name| var(name).unwrap_or_default())
}

/// Whether previews are worth their time: somebody watches a picture grow.
pub(crate) fn moves(show: Show) -> bool {
    term::stdout_is_terminal() && here(show) == Some(Way::Blocks)
}

/// Where pictures are shown.
pub(crate) struct Screen {
    way: Option<Way>,
    /// Lines of the preview that the next one covers.
    lines: usize,
}

impl Screen {
    pub(crate) fn new(show: Show) -> Self {
        Screen { way: here(show), lines: 0 }
    }

    /// A picture that another will replace.
    pub(crate) fn preview(&mut self, picture: &Picture) -> Result<()> {
        if self.way == Some(Way::Blocks) {
            self.cover()?;
            let text = blocks(picture);
            self.lines = text.lines().count();
            io::stdout().write_all(text.as_bytes())?;
        }
        Ok(())
    }

    /// A picture that stays.
    pub(crate) fn show(&mut self, picture: &Picture) -> Result<()> {
        self.cover()?;
        let text = match self.way {
            None => return Ok(()),
            Some(Way::Kitty) => kitty(&encode_png(picture, &[])?),
            Some(Way::Iterm) => iterm(&encode_png(picture, &[])?),
            Some(Way::Blocks) => blocks(picture),
        };
        io::stdout().write_all(text.as_bytes())?;
        Ok(io::stdout().flush()?)
    }

    fn cover(&mut self) -> Result<()> {
        let lines = std::mem::take(&mut self.lines);
        if lines > 0 {
            write!(io::stdout(), "\x1b[{lines}A\x1b[J")?;
        }
        Ok(())
    }
}

/// Two pixels to a character cell, the upper one as its foreground.
fn blocks(picture: &Picture) -> String {
    let width = COLUMNS.min(picture.width);
    let height = (picture.height * width / picture.width).max(1);
    let small = resize(picture, width, height, Filter::Bicubic);
    let mut text = String::new();
    for y in (0..height).step_by(2) {
        for x in 0..width {
            let [r, g, b] = small.pixel(x, y);
            text += &format!("\x1b[38;2;{r};{g};{b}m");
            if y + 1 < height {
                let [r, g, b] = small.pixel(x, y + 1);
                text += &format!("\x1b[48;2;{r};{g};{b}m");
            }
            text.push('▀');
        }
        text += "\x1b[0m\n";
    }
    text
}

/// kitty's graphics protocol: PNG, shown at once, in pieces of 4,096 characters.
fn kitty(png: &[u8]) -> String {
    let data = base64(png);
    let mut text = String::new();
    let pieces: Vec<&[u8]> = data.as_bytes().chunks(4096).collect();
    for (i, piece) in pieces.iter().enumerate() {
        let more = u8::from(i + 1 < pieces.len());
        let head = if i == 0 { format!("a=T,f=100,m={more}") } else { format!("m={more}") };
        text += &format!("\x1b_G{head};{}\x1b\\", String::from_utf8_lossy(piece));
    }
    text + "\n"
}

/// iTerm2's inline images.
fn iterm(png: &[u8]) -> String {
    format!("\x1b]1337;File=inline=1;size={};preserveAspectRatio=1:{}\x07\n", png.len(), base64(png))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_told_by_their_environment() {
        let with = |pairs: &'static [(&str, &str)]| {
            way(Show::Auto, |name| pairs.iter().find(|p| p.0 == name).map_or_else(String::new, |p| p.1.to_owned()))
        };
        assert_eq!(with(&[("TERM", "xterm-kitty")]), Some(Way::Kitty));
        assert_eq!(with(&[("TERM", "xterm-256color"), ("TERM_PROGRAM", "iTerm.app")]), Some(Way::Iterm));
        assert_eq!(with(&[("TERM", "tmux-256color"), ("TERM_PROGRAM", "iTerm.app")]), None);
        assert_eq!(with(&[("TERM", "xterm-256color"), ("COLORTERM", "truecolor")]), Some(Way::Blocks));
        assert_eq!(with(&[("TERM", "dumb")]), None);
    }

    #[test]
    fn a_long_picture_goes_in_pieces() {
        let text = kitty(&[7; 10_000]);
        assert_eq!(text.matches("\x1b_G").count(), 4);
        assert!(text.starts_with("\x1b_Ga=T,f=100,m=1;") && text.contains("\x1b_Gm=0;"));
    }

    #[test]
    fn half_blocks_have_half_the_lines() {
        let text = blocks(&Picture::filled(10, 10, [1, 2, 3]));
        assert_eq!(text.lines().count(), 5);
        assert_eq!(text.matches("\x1b[48;2;1;2;3m▀").count(), 50);
    }
}
