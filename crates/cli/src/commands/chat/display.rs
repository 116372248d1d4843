//! An answer on its way to the eye: reasoning dimmed, markdown drawn, where someone watches; plain text elsewhere.

use std::io::{self, Write as _};

use anyhow::Result;
use termimad::crossterm::terminal;

use crate::assistant::Piece;
use crate::markdown::{Markdown, Size};
use crate::term::{self, Spinner};

/// One answer.
pub(super) struct Display {
    spinner: Spinner,
    /// None where nobody watches.
    markdown: Option<Markdown>,
    reasoning: bool,
    /// Whether the answer so far ends a line.
    line_ended: bool,
}

/// A terminal that does not tell its size gets the traditional one.
fn size() -> Size {
    terminal::size().map_or((80, 24), |(columns, rows)| (columns.max(10).into(), rows.max(2).into()))
}

impl Display {
    pub(super) fn new() -> Self {
        Display {
            spinner: Spinner::new("thinking"),
            markdown: term::stdout_is_terminal().then(Markdown::new),
            reasoning: false,
            line_ended: true,
        }
    }

    /// Shows the next piece.
    pub(super) fn show(&mut self, piece: Piece<'_>) -> Result<()> {
        self.spinner.clear();
        match piece {
            Piece::Reasoning(text) => {
                self.reasoning = true;
                let text = term::printable(text);
                io::stderr().write_all(term::dim(&text).as_bytes())?;
            }
            Piece::Text(text) => {
                self.end_reasoning()?;
                let mut out = io::stdout();
                match &mut self.markdown {
                    Some(markdown) => out.write_all(markdown.push(text, size()).as_bytes())?,
                    None => out.write_all(text.as_bytes())?,
                }
                out.flush()?;
                self.line_ended = text.ends_with('\n');
            }
            Piece::TextWasReasoning => {
                if let Some(markdown) = &mut self.markdown {
                    io::stdout().write_all(markdown.finish(size()).as_bytes())?;
                    *markdown = Markdown::new();
                }
                term::note("(all of this was reasoning)");
            }
        }
        Ok(())
    }

    fn end_reasoning(&mut self) -> Result<()> {
        if std::mem::take(&mut self.reasoning) {
            io::stderr().write_all(b"\n\n")?;
        }
        Ok(())
    }

    /// The answer is complete.
    pub(super) fn end(mut self) -> Result<()> {
        self.spinner.clear();
        self.end_reasoning()?;
        let mut out = io::stdout();
        match &mut self.markdown {
            Some(markdown) => out.write_all(markdown.finish(size()).as_bytes())?,
            None if !self.line_ended => out.write_all(b"\n")?,
            None => {}
        }
        Ok(out.flush()?)
    }
}
