//! `chat` without a terminal: every line of standard input is a message or a command.

use std::path::Path;

use super::fathom::{Ran, fathom, fathom_in, testdata};

fn chat(home: &Path, more: &[&str], lines: &str) -> Ran {
    let model = testdata("models/qwen2");
    let mut args = vec!["chat", "-m", &model, "--temperature", "0", "--max-tokens", "8", "--think", "off"];
    args.extend(more);
    fathom_in(home, &args, lines.as_bytes())
}

#[test]
fn answers_alone_are_on_standard_output() {
    let home = tempfile::tempdir().unwrap();
    let two = chat(home.path(), &[], "Hello\n\nAnd you?\n");
    let one = chat(home.path(), &[], "Hello\n/exit\nAnd you?\n");
    assert!(two.ok().starts_with(one.ok()) && two.out.len() > one.out.len(), "{one:#?} {two:#?}");
    assert!(two.err.contains("tokens/s") && two.err.contains("first token"), "{two:#?}");
    let model = testdata("models/qwen2");
    let plain = fathom_in(
        home.path(),
        &["-m", &model, "--temperature", "0", "--max-tokens", "8", "--think", "off"],
        b"Hello\n",
    );
    assert_eq!(plain.ok(), one.out, "plain `fathom` is `fathom chat`");
}

#[test]
fn a_kept_conversation_goes_on_as_if_it_had_not_ended() {
    let home = tempfile::tempdir().unwrap();
    let whole = chat(home.path(), &["--system", "Be brief."], "Hello\nAnd you?\n");
    let first = chat(home.path(), &["--system", "Be brief."], "Hello\n/save talk-1\n");
    assert!(
        first.err.contains("saved: ") && home.path().join(".local/share/fathom/conversations/talk-1.json").exists()
    );
    let second = chat(home.path(), &["--resume", "talk-1"], "And you?\n");
    assert_eq!(format!("{}{}", first.ok(), second.ok()), whole.ok());
    // Resumed from inside, and with the model that it was held with.
    let inside = chat(home.path(), &[], "/resume\n/resume talk-1\n/system\nAnd you?\n");
    assert_eq!(inside.ok(), second.out);
    assert!(inside.err.contains("talk-1") && inside.err.contains("Be brief."), "{inside:#?}");
    let args = ["chat", "--resume", "talk-1", "--temperature", "0", "--max-tokens", "8", "--think", "off"];
    assert_eq!(fathom_in(home.path(), &args, b"And you?\n").ok(), second.out);
    chat(home.path(), &["--resume", "talk-2"], "").fails(1, &["no conversation is called talk-2", "talk-1"]);
}

#[test]
fn commands_change_what_follows() {
    let home = tempfile::tempdir().unwrap();
    let cleared = chat(home.path(), &[], "Hello\n/clear\nHello\n");
    let (first, second) = cleared.ok().split_at(cleared.out.len() / 2);
    assert_eq!(first, second, "a cleared conversation begins as the first did");
    let switched = chat(home.path(), &[], "/think on\nHello\n");
    assert_eq!(switched.ok(), "", "eight tokens of reasoning and no answer");
    let limited = chat(home.path(), &[], "/think on\n/think budget 2\nHello\n");
    assert!(limited.err.contains("at most 2 tokens"), "{limited:#?}");
    let other = testdata("models/llama");
    let changed = chat(home.path(), &[], &format!("/model {other}\n/model\nHello\n"));
    assert!(changed.ok() != first && changed.err.contains(&other), "{changed:#?}");
}

#[test]
fn a_mistake_does_not_end_the_conversation() {
    let home = tempfile::tempdir().unwrap();
    let lines = "/hlep\n/think maybe\n/save ../x\n/resume nothing\n/model /nowhere\n/save\nHello\n";
    let ran = chat(home.path(), &[], lines);
    assert_eq!(ran.ok(), chat(home.path(), &[], "Hello\n").out);
    for words in
        ["/hlep is no command", "/think takes", "no name for a conversation", "no conversation is called nothing"]
    {
        assert!(ran.err.contains(words), "{words}: {ran:#?}");
    }
    let long = "word ".repeat(600);
    let ran = chat(home.path(), &[], &format!("{long}\nHello\n"));
    assert!(ran.err.contains("the context holds 512"), "{ran:#?}");
    assert_eq!(ran.ok(), chat(home.path(), &[], "Hello\n").out, "the turn that failed is forgotten");
}

#[test]
fn help_lists_commands_and_the_miniature_introduces_itself() {
    let home = tempfile::tempdir().unwrap();
    let help = chat(home.path(), &[], "/help\n");
    assert!(help.err.contains("/think budget") && help.ok().is_empty(), "{help:#?}");
    // The model inside the program says what it is, and how to get a larger one.
    let inside = fathom(&[]);
    for words in ["mini-r1", "a miniature grown from the published recipe", "fathom pull r1-1.5b", "fathom -m r1-1.5b"]
    {
        assert!(inside.err.contains(words), "{words}: {inside:#?}");
    }
    assert!(inside.ok().is_empty());
}
