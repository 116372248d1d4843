//! The commands of a conversation: `/help`, `/think off` and so on.

use anyhow::{Result, bail};
use fathom_text::Thinking;

/// A command.
#[derive(Debug, PartialEq)]
pub(super) enum Slash {
    Help,
    Exit,
    Clear,
    Think(Thinking),
    /// None takes the limit away.
    Budget(Option<u32>),
    System(Option<String>),
    Image(String),
    Save(Option<String>),
    Resume(Option<String>),
    Model(Option<String>),
}

/// Each command's form and what it does.
const HELP: &[(&str, &str)] = &[
    ("/help", "this list"),
    ("/think on|off", "whether the model reasons before it answers"),
    ("/think budget N|none", "tokens of reasoning after which the answer begins"),
    ("/system [TEXT]", "set or show the system message"),
    ("/image FILE", "show the model a picture with the next message"),
    ("/clear", "begin a new conversation"),
    ("/save [NAME]", "keep the conversation"),
    ("/resume [NAME]", "go on with a kept one, or list them"),
    ("/model [NAME]", "change or show the model"),
    ("/exit", "leave; so does Ctrl-D"),
];

/// The list that `/help` prints.
pub(super) fn help() -> String {
    let lines = HELP.iter().map(|(form, what)| format!("  {form:<22}{what}\n"));
    lines.collect::<String>()
        + "  Alt-Enter begins a new line, and so does \\ at the end of one. Ctrl-C stops an answer.\n"
}

/// The words that begin a command, for completion.
pub(super) fn words() -> Vec<String> {
    let mut words: Vec<String> =
        HELP.iter().map(|(form, _)| form.split(' ').next().unwrap_or(form).to_owned()).collect();
    words.dedup();
    words
}

impl Slash {
    /// Reads a line; none if it is a message. A message may begin with a slash if the first word is no command's form, such
    /// as a path.
    ///
    /// # Errors
    /// If it is a command that is not known, or lacks what it needs.
    pub(super) fn parse(line: &str) -> Result<Option<Slash>> {
        let line = line.trim();
        let Some(rest) = line.strip_prefix('/') else { return Ok(None) };
        let (word, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        if word.is_empty() || !word.chars().all(|c| c.is_ascii_lowercase()) {
            return Ok(None);
        }
        let rest = rest.trim();
        let text = (!rest.is_empty()).then(|| rest.to_owned());
        let alone = |command| match rest {
            "" => Ok(Some(command)),
            more => bail!("/{word} stands alone; what is `{more}`?"),
        };
        match word {
            "help" => alone(Slash::Help),
            "exit" | "quit" | "bye" => alone(Slash::Exit),
            "clear" => alone(Slash::Clear),
            "think" => think(rest).map(Some),
            "system" => Ok(Some(Slash::System(text))),
            "image" => match text {
                Some(path) => Ok(Some(Slash::Image(path))),
                None => bail!("/image FILE: which picture?"),
            },
            "save" => Ok(Some(Slash::Save(text))),
            "resume" => Ok(Some(Slash::Resume(text))),
            "model" => Ok(Some(Slash::Model(text))),
            _ => bail!("/{word} is no command; /help lists them"),
        }
    }
}

fn think(rest: &str) -> Result<Slash> {
    let words: Vec<&str> = rest.split_whitespace().collect();
    match words[..] {
        ["on"] => Ok(Slash::Think(Thinking::On)),
        ["off"] => Ok(Slash::Think(Thinking::Off)),
        ["budget", "none"] => Ok(Slash::Budget(None)),
        ["budget", n] => match n.parse() {
            Ok(n) if n > 0 => Ok(Slash::Budget(Some(n))),
            _ => bail!("/think budget {n}: expected a number of tokens, or none"),
        },
        _ => bail!("/think takes on, off, budget N or budget none"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read() {
        let read = |line: &str| Slash::parse(line).unwrap();
        assert_eq!(read("/help"), Some(Slash::Help));
        assert_eq!(read("  /think off "), Some(Slash::Think(Thinking::Off)));
        assert_eq!(read("/think budget 100"), Some(Slash::Budget(Some(100))));
        assert_eq!(read("/think budget none"), Some(Slash::Budget(None)));
        assert_eq!(read("/system  Be kind.\nAnd short."), Some(Slash::System(Some("Be kind.\nAnd short.".into()))));
        assert_eq!(read("/image my cat.jpg"), Some(Slash::Image("my cat.jpg".into())));
        assert_eq!(read("/save"), Some(Slash::Save(None)));
        assert_eq!(read("what is /help?"), None);
        assert_eq!(read("/usr/bin/env is what?"), None);
        assert_eq!(read("/"), None);
    }

    #[test]
    fn mistakes_are_told() {
        for line in [
            "/hlep",
            "/think",
            "/think maybe",
            "/think budget",
            "/think budget 0",
            "/think budget -1",
            "/clear all",
            "/image",
        ] {
            assert!(Slash::parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn help_knows_every_command() {
        for word in words() {
            let alone = Slash::parse(&word);
            assert!(alone.is_ok() || ["/think", "/image"].contains(&&*word), "{word}: {alone:?}");
        }
    }
}
