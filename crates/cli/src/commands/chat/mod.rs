//! `fathom chat`: a conversation.
//!
//! Lines come from [`input`], commands among them are read by [`slash`], answers are shown by [`display`], and
//! conversations are kept by [`store`].

mod display;
mod input;
mod slash;
mod store;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, bail};
use fathom_engine::{Ending, Session, TextOptions, with_pictures};
use fathom_picture::Picture;
use fathom_text::{ChatMessage, Role, Thinking};

use crate::args::{ChatArgs, Draft, LoadArgs, SamplingArgs};
use crate::assistant::Assistant;
use crate::units::{duration, grouped};
use crate::{show_picture, source, term};
use display::Display;
use input::{Input, Line};
use slash::Slash;
use store::Store;

/// Talk to a model; what plain `fathom` does
#[derive(clap::Args)]
#[command(after_help = "Examples:
  fathom -m r1-7b
  fathom chat r1-7b --think off --system 'Answer in rhyme.'
  fathom chat --resume fishing                       goes on where `/save fishing` was said

In the conversation: /help lists the commands, Alt-Enter (or a \\ at the end) begins a new line, Ctrl-C stops an answer,
Ctrl-D leaves. Without a terminal, every line of standard input is a message.")]
pub(crate) struct Args {
    /// The same as -m
    #[arg(value_name = "MODEL")]
    first: Option<String>,

    /// Go on with a saved conversation, with its model unless another is named
    #[arg(long, value_name = "NAME")]
    resume: Option<String>,

    #[command(flatten)]
    load: LoadArgs,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    chat: ChatArgs,

    /// Guess tokens ahead
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Draft::Off, help_heading = "Machine")]
    draft: Draft,
}

/// A conversation going on.
struct Chat<'a> {
    args: &'a Args,
    store: Store,
    /// None after a model could not be loaded.
    assistant: Option<Assistant>,
    messages: Vec<ChatMessage>,
    thinking: Thinking,
    budget: Option<u32>,
    /// Pictures of the conversation, one for each mark in the messages.
    pictures: Vec<Arc<Picture>>,
    /// Of these, how many go with the next message.
    attached: usize,
    /// The name that it was saved or resumed under last.
    name: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    args.sampling.check()?;
    let store = Store::open()?;
    let resumed = args.resume.as_deref().map(|name| store.load(name)).transpose()?;
    let named = args.load.named(args.first.as_deref())?;
    let model = named.or(resumed.as_ref().map(|s| s.model.as_str()));
    let assistant = start(args, model, args.load.one_adapter()?)?;
    term::catch_interrupts(5)?;
    let mut chat = Chat {
        args,
        store,
        assistant: Some(assistant),
        messages: Vec::new(),
        thinking: args.chat.thinking(),
        budget: args.chat.think_budget,
        pictures: Vec::new(),
        attached: 0,
        name: args.resume.clone(),
    };
    if let Some(session) = resumed {
        chat.take(session);
    }
    if let Some(text) = &args.chat.system {
        chat.set_system(text);
    }
    let mut input = Input::open(&chat.store)?;
    loop {
        term::forget_interrupt();
        match input.line()? {
            Line::End => return Ok(ExitCode::SUCCESS),
            Line::Nothing => {}
            Line::Text(text) => {
                // What goes wrong in a turn is said, and the conversation goes on.
                match chat.hear(&text) {
                    Ok(true) => {}
                    Ok(false) => return Ok(ExitCode::SUCCESS),
                    Err(error) if crate::is_broken_pipe(&error) => return Err(error),
                    Err(error) => eprintln!("{}", crate::explain(&error)),
                }
            }
        }
    }
}

fn start(args: &Args, model: Option<&str>, adapter: Option<&PathBuf>) -> Result<Assistant> {
    let load = LoadArgs { model: None, adapter: adapter.into_iter().cloned().collect(), ..args.load.clone() };
    let assistant = Assistant::start(&load, model, args.draft)?;
    let context = grouped(assistant.context as u64);
    let load = duration(assistant.load);
    term::note(&format!("{} · {} · context {context} · loaded in {load}", assistant.name, assistant.device));
    if assistant.name == source::BUILT_IN {
        term::note(&source::miniature());
    }
    if let Some(adapter) = adapter {
        term::note(&format!("with the adapter {}", adapter.display()));
    }
    term::note("/help lists commands, Ctrl-D leaves");
    Ok(assistant)
}

impl Chat<'_> {
    /// Takes what was typed. False ends the conversation.
    fn hear(&mut self, text: &str) -> Result<bool> {
        let Some(command) = Slash::parse(text)? else {
            self.answer(text)?;
            return Ok(true);
        };
        match command {
            Slash::Exit => return Ok(false),
            Slash::Help => eprint!("{}", slash::help()),
            Slash::Think(thinking) => self.think(thinking)?,
            Slash::Budget(budget) => {
                self.budget = budget;
                term::note(
                    &budget
                        .map_or("reasoning without a limit".to_owned(), |n| format!("at most {n} tokens of reasoning")),
                );
            }
            Slash::System(None) => match self.system() {
                Some(text) => eprintln!("{text}"),
                None => term::note("no system message; /system TEXT sets one"),
            },
            Slash::System(Some(text)) => {
                self.set_system(&text);
                term::note("system message set");
            }
            Slash::Clear => {
                self.messages.retain(|m| m.role == Role::System);
                self.pictures.clear();
                self.attached = 0;
                term::note("a new conversation");
            }
            Slash::Image(path) => {
                match &self.assistant {
                    Some(a) if !a.chat.sees() => bail!("{} does not see pictures; Janus and Janus-Pro do", a.name),
                    _ => {}
                }
                let picture = show_picture::read(Path::new(&path))?;
                let (width, height) = (picture.width, picture.height);
                self.pictures.push(picture);
                self.attached += 1;
                term::note(&format!("{path} ({width} × {height}) goes with the next message"));
            }
            Slash::Save(_) if !self.pictures.is_empty() => {
                bail!("a conversation with pictures cannot be saved: only text is kept")
            }
            Slash::Save(name) => self.save(name)?,
            Slash::Resume(None) => {
                let names = self.store.names()?;
                term::note(&if names.is_empty() { "nothing was saved yet".into() } else { names.join("  ") });
            }
            Slash::Resume(Some(name)) => {
                let session = self.store.load(&name)?;
                self.name = Some(name);
                self.take(session);
            }
            Slash::Model(None) => match &self.assistant {
                Some(a) => eprintln!("{} ({}; context {} tokens)", a.name, a.device, grouped(a.context as u64)),
                None => term::note("no model; /model NAME loads one"),
            },
            Slash::Model(Some(name)) => self.change_model(&name)?,
        }
        Ok(true)
    }

    /// Has the model take its turn.
    fn answer(&mut self, text: &str) -> Result<()> {
        let Some(assistant) = &self.assistant else { bail!("no model; /model NAME loads one") };
        let sampling = self.args.sampling.options(&assistant.defaults, self.budget);
        let options = TextOptions { pictures: self.pictures.clone(), ..sampling };
        self.messages.push(ChatMessage::new(Role::User, with_pictures(self.attached, text)));
        let mut display = Display::new();
        let answer = assistant
            .turn(&self.messages, self.thinking, &options)
            .and_then(|request| assistant.ask(request, &mut |piece| display.show(piece)));
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                drop(display);
                // The turn did not take place.
                self.messages.pop();
                return Err(error);
            }
        };
        let attached = std::mem::take(&mut self.attached);
        display.end()?;
        if let Some(remark) = answer.remark(assistant.context, options.max_tokens) {
            term::note(&remark);
        }
        term::note(&answer.summary());
        if answer.ending == Ending::Cancelled && answer.text.is_empty() {
            self.messages.pop();
            self.attached = attached;
            return Ok(());
        }
        let mut message = ChatMessage::new(Role::Assistant, answer.text);
        message.reasoning = (!answer.reasoning.is_empty()).then_some(answer.reasoning);
        self.messages.push(message);
        Ok(())
    }

    fn think(&mut self, thinking: Thinking) -> Result<()> {
        if let Some(assistant) = &self.assistant
            && !assistant.chat.template()?.reasons()
        {
            bail!("{} does not reason", assistant.name);
        }
        self.thinking = thinking;
        term::note(if thinking == Thinking::Off { "answers at once" } else { "thinks before it answers" });
        Ok(())
    }

    fn system(&self) -> Option<&str> {
        self.messages.first().filter(|m| m.role == Role::System).and_then(|m| m.content.as_deref())
    }

    fn set_system(&mut self, text: &str) {
        self.messages.retain(|m| m.role != Role::System);
        self.messages.insert(0, ChatMessage::new(Role::System, text));
    }

    fn save(&mut self, name: Option<String>) -> Result<()> {
        let Some(name) = name.or_else(|| self.name.clone()) else { bail!("/save NAME: under which name?") };
        let model = self.assistant.as_ref().map_or(String::new(), |a| absolute(&a.name));
        let path = self.store.save(&name, &Session { model, messages: self.messages.clone() })?;
        term::note(&format!("saved: {}; `fathom chat --resume {name}` goes on", path.display()));
        self.name = Some(name);
        Ok(())
    }

    /// Goes on with a saved conversation.
    fn take(&mut self, session: Session) {
        let turns = session.messages.iter().filter(|m| m.role == Role::User).count();
        term::note(&format!("{turns} questions and their answers are back"));
        if let Some(last) = session.messages.iter().rfind(|m| m.role == Role::Assistant) {
            eprintln!("{}", term::printable(last.content.as_deref().unwrap_or_default()));
        }
        self.messages = session.messages;
        self.pictures.clear();
        self.attached = 0;
    }

    fn change_model(&mut self, name: &str) -> Result<()> {
        // Looked up before the old one goes, which must go first: both may not fit.
        source::locate(Some(name))?;
        self.assistant = None;
        if !self.args.load.adapter.is_empty() {
            term::note("without the adapter, which belongs to the model it was named with");
        }
        self.assistant = Some(start(self.args, Some(name), None)?);
        Ok(())
    }
}

/// A path that means the same from another directory; a fetched model's name stays.
fn absolute(name: &str) -> String {
    match Path::new(name).canonicalize() {
        Ok(path) => path.display().to_string(),
        Err(_) => name.to_owned(),
    }
}
