//! Answers that must keep to a shape: batched, cut, preempted or guessed ahead, each is that of its lone run, and fits.

use std::path::Path;
use std::sync::{Arc, Mutex};

use fathom_engine::speculate::DraftPolicy;
use fathom_engine::{
    ChatModel, Event, Finish, Flow, Id, Meter, Request, Reuse, RunnerInfo, Sampling, ScheduleOptions, ScriptedRunner,
    Shaped, Speculation, Worker, WorkerOptions,
};
use fathom_text::{HuggingFaceTexts, Shape, VocabSource};
use serde_json::{Value, json};

fn chat_model() -> ChatModel {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/tokenizers/deepseek_v3");
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap();
    let (tokenizer, config) = (read("tokenizer.json"), read("tokenizer_config.json"));
    let texts =
        HuggingFaceTexts { tokenizer: &tokenizer, config: Some(&config), special_tokens: None, chat_template: None };
    ChatModel::new(&VocabSource::from_hugging_face("shaped", texts).unwrap()).unwrap()
}

fn requests(chat: &ChatModel, shapes: &[Shaped]) -> Vec<Request> {
    let end = chat.tokenizer().end_tokens()[0];
    let each = (0..12u32).map(|i| {
        let mut request = Request::new((0..5 + 3 * i).map(|k| (k * k + i) % 900).collect());
        request.sampling = Sampling { temperature: if i % 3 == 0 { 0.0 } else { 1.0 }, ..Sampling::default() };
        request.seed = Some(u64::from(i));
        request.stop_tokens = vec![end];
        request.max_tokens = Some(250);
        request.shape = Some(shapes[i as usize % shapes.len()].clone());
        request
    });
    each.collect()
}

type Answer = (Vec<u32>, Option<Finish>);

/// Runs requests together; returns the answers and how often one was preempted, and how many drafts were right.
fn run(vocab: usize, requests: &[Request], blocks: usize, speculation: Speculation) -> (Vec<Answer>, usize, usize) {
    let info = RunnerInfo { vocab, context: 160, block_tokens: 8, blocks, latent: true, drafts: true, pictures: None };
    let options = WorkerOptions {
        schedule: ScheduleOptions { step_tokens: 24, sequences: 6, reuse: Reuse::Exact },
        step_seconds: None,
        speculation,
        drafts: DraftPolicy { sequences: 6, worth: 0.0, rest: 0 },
    };
    let mut worker = Worker::new(Box::new(ScriptedRunner::new(info, 3)), options, Meter::none()).unwrap();
    let answers: Vec<Arc<Mutex<Answer>>> = requests.iter().map(|_| Arc::default()).collect();
    for (i, (request, answer)) in requests.iter().zip(&answers).enumerate() {
        let answer = Arc::clone(answer);
        let sink = move |event: Event<'_>| {
            let mut answer = answer.lock().unwrap();
            match event {
                Event::Token { token, .. } => answer.0.push(token),
                Event::Finished { reason, .. } => answer.1 = Some(reason),
                Event::Failed(error) => panic!("{error}"),
                _ => {}
            }
            Flow::Continue
        };
        worker.submit(Id(i as u64), request.clone(), Box::new(sink)).unwrap();
    }
    while worker.step().unwrap() {}
    let stats = worker.stats();
    assert_eq!(stats.idle_blocks, blocks, "no block leaked");
    let answers = answers.iter().map(|a| a.lock().unwrap().clone()).collect();
    (answers, stats.preempted as usize, stats.accepted as usize)
}

#[test]
fn whatever_the_schedule_a_shaped_answer_is_its_lone_one() {
    let chat = chat_model();
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 22, 333]},
        "s": {"type": "string", "maxLength": 6}}, "required": ["ok", "n", "s"], "additionalProperties": false});
    let shape = |shape: &Shape| chat.shape(shape, false).unwrap();
    let shapes = [shape(&Shape::Schema(schema)), shape(&Shape::Regex("(ab|a b){6,20}".to_owned()))];
    let (requests, vocab) = (requests(&chat, &shapes), chat.tokenizer().vocab_size());
    let alone: Vec<Answer> =
        requests.iter().map(|r| run(vocab, std::slice::from_ref(r), 80, Speculation::Off).0.remove(0)).collect();
    let mut stopped = 0;
    for (i, (tokens, finish)) in alone.iter().enumerate() {
        let text = chat.tokenizer().decode_skipping_special(tokens);
        if *finish == Some(Finish::Length) {
            continue;
        }
        stopped += 1;
        if i % 2 == 0 {
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert!([1, 22, 333].iter().any(|n| value["n"] == *n) && value["ok"].is_boolean(), "{text}");
        } else {
            assert!(text.starts_with('a') && text.chars().all(|c| "ab ".contains(c)), "{text}");
        }
    }
    assert!(stopped >= 6, "{stopped} of {} found room to end", alone.len());
    let (mut preempted, mut accepted) = (0, 0);
    for speculation in [Speculation::Off, Speculation::Lookup { ngram: 1, ahead: 3 }, Speculation::Head] {
        for blocks in [80, 20] {
            let (answers, p, a) = run(vocab, &requests, blocks, speculation);
            assert_eq!(answers, alone, "{speculation:?}, {blocks} blocks");
            (preempted, accepted) = (preempted + p, accepted + a);
        }
    }
    assert!(preempted > 0 && accepted > 0, "{preempted} preempted, {accepted} drafts right");
}
