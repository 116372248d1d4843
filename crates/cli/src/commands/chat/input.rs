//! Where the person's side of a conversation comes from: an editor with history, or lines of a pipe.

use std::borrow::Cow;
use std::io::{self, BufRead as _, IsTerminal as _};

use anyhow::{Context as _, Result};
use reedline::{
    ColumnarMenu, DefaultCompleter, DefaultHinter, EditCommand, Emacs, FileBackedHistory, KeyCode, KeyModifiers,
    MenuBuilder as _, Prompt, PromptEditMode, PromptHistorySearch, Reedline, ReedlineEvent, ReedlineMenu, Signal,
    ValidationResult, Validator, default_emacs_keybindings,
};

use super::{slash, store::Store};
use crate::term;

/// Lines that the history keeps.
const HISTORY: usize = 1_000;

/// The menu that Tab opens.
const COMMANDS: &str = "commands";

/// What the person did.
pub(super) enum Line {
    /// Said something.
    Text(String),
    /// Nothing: an empty line, or Ctrl-C.
    Nothing,
    /// Left.
    End,
}

/// See the module.
pub(super) enum Input {
    Editor(Box<Reedline>),
    Pipe,
}

impl Input {
    /// An editor if there is a terminal on both sides, else lines.
    pub(super) fn open(store: &Store) -> Result<Self> {
        if !io::stdin().is_terminal() || !term::stderr_is_terminal() {
            return Ok(Input::Pipe);
        }
        let path = store.history()?;
        let history = FileBackedHistory::with_file(HISTORY, path.clone())
            .with_context(|| format!("cannot read the history in {}", path.display()))?;
        let mut keys = default_emacs_keybindings();
        let new_line = ReedlineEvent::Edit(vec![EditCommand::InsertNewline]);
        keys.add_binding(KeyModifiers::ALT, KeyCode::Enter, new_line.clone());
        keys.add_binding(KeyModifiers::SHIFT, KeyCode::Enter, new_line);
        let complete = [ReedlineEvent::Menu(COMMANDS.into()), ReedlineEvent::MenuNext];
        keys.add_binding(KeyModifiers::NONE, KeyCode::Tab, ReedlineEvent::UntilFound(complete.into()));
        let mut completer = DefaultCompleter::with_inclusions(&['/']);
        completer.insert(slash::words());
        let editor = Reedline::create()
            .with_history(Box::new(history))
            .with_completer(Box::new(completer))
            .with_quick_completions(true)
            .with_menu(ReedlineMenu::EngineCompleter(Box::new(ColumnarMenu::default().with_name(COMMANDS))))
            .with_hinter(Box::new(DefaultHinter::default()))
            .with_validator(Box::new(Continued))
            .with_edit_mode(Box::new(Emacs::new(keys)))
            .use_bracketed_paste(true);
        Ok(Input::Editor(Box::new(editor)))
    }

    /// Waits for the next line.
    pub(super) fn line(&mut self) -> Result<Line> {
        let text = match self {
            Input::Pipe => {
                let mut text = String::new();
                if io::stdin().lock().read_line(&mut text).context("standard input: expected UTF-8 text")? == 0 {
                    return Ok(Line::End);
                }
                text
            }
            Input::Editor(editor) => match editor.read_line(&Marks)? {
                Signal::Success(text) => text.replace("\\\n", "\n"),
                Signal::CtrlD => return Ok(Line::End),
                _ => {
                    term::note("(Ctrl-D or /exit leaves)");
                    return Ok(Line::Nothing);
                }
            },
        };
        let text = text.trim();
        Ok(if text.is_empty() { Line::Nothing } else { Line::Text(text.to_owned()) })
    }
}

/// A line that ends in a backslash goes on.
struct Continued;

impl Validator for Continued {
    fn validate(&self, line: &str) -> ValidationResult {
        if line.ends_with('\\') { ValidationResult::Incomplete } else { ValidationResult::Complete }
    }
}

/// What stands before the lines.
struct Marks;

impl Prompt for Marks {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        "› ".into()
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_indicator(&self, _: PromptEditMode) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        "… ".into()
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        format!("(search: {}) ", search.term).into()
    }
}
