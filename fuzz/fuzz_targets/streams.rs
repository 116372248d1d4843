#![no_main]
//! Generated text cut into pieces anywhere: every streaming parser must find what it finds in the whole.
//!
//! The first two bytes choose where to cut, the rest is what the model writes.
use fathom_text::{ReasoningEvent, ReasoningParser, StopMatcher, StreamDecoder, ToolEvent, ToolForm, ToolParser};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&[first, step], bytes)) = data.split_first_chunk() else { return };
    let step = usize::from(step).max(1);
    let whole = String::from_utf8_lossy(bytes);

    let mut text = String::new();
    let mut decoder = StreamDecoder::default();
    for piece in cut(bytes.len(), first.into(), step) {
        decoder.push(&bytes[piece], &mut text);
    }
    decoder.finish(&mut text);
    assert_eq!(text, whole);

    let chars: Vec<char> = whole.chars().collect();
    let pieces: Vec<String> = cut(chars.len(), first.into(), step).map(|r| chars[r].iter().collect()).collect();
    let all = [whole.into_owned()];
    for inside in [false, true] {
        assert_eq!(reasoning(&pieces, inside), reasoning(&all, inside));
    }
    for form in [ToolForm::DeepSeek, ToolForm::Hermes] {
        assert_eq!(tools(&pieces, form), tools(&all, form));
    }
    assert_eq!(stop(&pieces), stop(&all));
});

/// Ranges that cover `0..len`: up to `first`, then `step` at a time.
fn cut(len: usize, first: usize, step: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let first = first.min(len);
    let rest = (first..len).step_by(step).map(move |at| at..(at + step).min(len));
    std::iter::once(0..first).chain(rest)
}

fn reasoning(pieces: &[String], inside: bool) -> (String, String) {
    let mut parser = ReasoningParser::new(inside);
    let (mut thought, mut answer) = (String::new(), String::new());
    let mut take = |event: ReasoningEvent<'_>| match event {
        ReasoningEvent::Reasoning(text) => thought.push_str(text),
        ReasoningEvent::Text(text) => answer.push_str(text),
        ReasoningEvent::TextWasReasoning => thought.push_str(&std::mem::take(&mut answer)),
    };
    pieces.iter().for_each(|piece| parser.push(piece, &mut take));
    parser.finish(&mut take);
    (thought, answer)
}

fn tools(pieces: &[String], form: ToolForm) -> Vec<String> {
    let mut parser = ToolParser::new(form);
    let mut found: Vec<String> = vec![];
    let mut in_text = false;
    let mut take = |event: ToolEvent<'_>| match event {
        ToolEvent::Text(text) if in_text => found.last_mut().expect("text came before").push_str(text),
        event => {
            in_text = matches!(event, ToolEvent::Text(_));
            found.push(match event {
                ToolEvent::Text(text) => text.to_owned(),
                other => format!("{other:?}"),
            });
        }
    };
    pieces.iter().for_each(|piece| parser.push(piece, &mut take));
    parser.finish(&mut take);
    found
}

fn stop(pieces: &[String]) -> (String, Option<usize>) {
    let mut matcher = StopMatcher::new(vec!["</s>".into(), "\n\nUser:".into(), "</".into(), "aab".into()]);
    let mut shown = String::new();
    for piece in pieces {
        if let Some(index) = matcher.push(piece, &mut shown) {
            return (shown, Some(index));
        }
    }
    matcher.finish(&mut shown);
    (shown, None)
}
