//! Whole runs of a tiny recipe: interrupted and uninterrupted ones agree to the bit, a kill loses nothing, what is exported is what
//! was trained, and bad recipes are named.

use std::path::Path;
use std::sync::Arc;

use fathom_core::{Precision, format};
use fathom_cpu::{Cpu, CpuOptions, Pool, Products};
use fathom_engine::ChatModel;
use fathom_model::{Model, Options};
use fathom_tasks::{Generator, Mix};
use fathom_text::{ChatMessage, RenderOptions, Role, Specials, Thinking};
use fathom_train::data::Examples;
use fathom_train::recipe::{Data, Recipe};
use fathom_train::run::{Progress, Wish};
use fathom_train::{Error, Params, Run, Stage, checkpoint, vocabulary};

fn cpu() -> Arc<Cpu> {
    Cpu::training(Pool::new(2).unwrap(), None, Products::Bf16).unwrap()
}

fn server() -> Arc<Cpu> {
    Cpu::new(CpuOptions { threads: Some(2), isa: None, precision: Precision::Exact, repack: false }).unwrap()
}

const TINY: &str = r#"
    name = "tiny"
    [model]
    dim = 32
    layers = 2
    dense_layers = 1
    heads = 2
    kv_rank = 16
    nope = 8
    rope = 8
    v_dim = 8
    hidden = 48
    experts = 4
    top_k = 2
    expert_hidden = 32
    shared_experts = 1
    mtp = true
    context = 512
    [tokenizer]
    words = 100
    [pretrain]
    tokens = 600
    batch = 200
    lr = 3e-3
    warmup = 100
    [sft]
    tokens = 3000
    batch = 200
    lr = 3e-3
    warmup = 100
    [grpo]
    steps = 2
    problems = 2
    group = 3
    lr = 1e-4
    max_tokens = 8
    weights = { add = 1.0, sort = 1.0 }
    [eval]
    problems = 1
    max_tokens = 8
    few = 1
"#;

fn tiny() -> Recipe {
    Recipe::parse(TINY, Path::new("tiny.toml")).unwrap()
}

/// Runs stages; stops at a step of the supervised stage if asked to.
fn run(folder: &Path, stages: &[Stage], stop_at: Option<u64>) {
    let run = Run::open(tiny(), folder, (cpu(), server()), None).unwrap();
    for stage in stages {
        let mut watch = |p: Progress<'_>| match p {
            Progress::Step { metrics, .. } if metrics.stage == "sft" && Some(metrics.step) == stop_at => Wish::Stop,
            _ => Wish::Continue,
        };
        run.stage(*stage, &mut watch).unwrap();
    }
}

/// Every step's loss to the last bit, without what time adds.
fn losses(folder: &Path) -> Vec<(String, u64, String)> {
    let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let one = |line: &str| {
        let v: serde_json::Value = serde_json::from_str(line).unwrap();
        (v["stage"].as_str().unwrap().to_owned(), v["step"].as_u64().unwrap(), format!("{} {}", v["loss"], v["norm"]))
    };
    text.lines().map(one).collect()
}

#[test]
fn an_interrupted_run_is_the_uninterrupted_one() {
    let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let learn = [Stage::Tokenizer, Stage::Pretrain, Stage::Sft];
    run(whole.path(), &learn, None);
    run(cut.path(), &learn, Some(3));
    // Lines behind the last checkpoint, as a kill leaves them, and half a checkpoint.
    let log = cut.path().join("metrics.jsonl");
    let text = std::fs::read_to_string(&log).unwrap();
    let last = text.lines().last().unwrap().replace("\"step\":3", "\"step\":4");
    std::fs::write(&log, format!("{text}{last}\n{{\"stage\":\"sft\",\"st")).unwrap();
    std::fs::create_dir_all(cut.path().join("sft/.part-4")).unwrap();
    run(cut.path(), &learn, Some(5));
    run(cut.path(), &learn, None);
    assert_eq!(losses(whole.path()), losses(cut.path()));
    let weights = |folder: &Path| {
        std::fs::read(checkpoint::newest(&folder.join("sft")).unwrap().unwrap().join("model.safetensors")).unwrap()
    };
    assert!(weights(whole.path()) == weights(cut.path()));
    assert!(losses(whole.path()).len() > 10);

    // The rest of the recipe, on what was learned.
    run(whole.path(), &[Stage::Grpo, Stage::Eval], None);
    let lines = losses(whole.path());
    assert_eq!(lines.iter().filter(|l| l.0 == "grpo").count(), 2);
    assert!(whole.path().join("results.json").exists());
    let report = std::fs::read_to_string(whole.path().join("report.html")).unwrap();
    for words in ["Supervised fine-tuning", "Reinforcement learning", "rollout against trainer", "Results", "<polyline"]
    {
        assert!(report.contains(words), "{words}");
    }
    let opened = Run::open(tiny(), whole.path(), (cpu(), server()), None).unwrap();
    let card = fathom_train::card::card(&opened, "tiny.toml").unwrap();
    for words in ["# tiny", "| sft | ", "| countdown | 0.0 (", "held out by hash"] {
        assert!(card.contains(words), "{words}: {card}");
    }
    assert!(!report.contains("http://") && !report.contains("https://"), "the report needs nothing else");
}

#[test]
fn what_is_exported_is_what_was_trained() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &[Stage::Tokenizer, Stage::Pretrain], None);
    let recipe = Recipe { pretrain: tiny().pretrain, ..tiny() };
    let run = Run::open(recipe, folder.path(), (cpu(), server()), None).unwrap();
    let newest = checkpoint::newest(&folder.path().join("pretrain")).unwrap().unwrap();
    let file = folder.path().join("x.gguf");
    run.export(&file, format::F32).unwrap();
    let (hf, gguf) =
        (Model::open(&newest, &Options::default()).unwrap(), Model::open(&file, &Options::default()).unwrap());
    assert_eq!(hf.spec, gguf.spec);
    assert!(hf.check().unwrap().is_empty() && gguf.check().unwrap().is_empty());
    let params = |m: &Model| Params::from_source(&m.spec, &m.archive).unwrap();
    for (a, b) in params(&hf).all.iter().zip(&params(&gguf).all) {
        assert!(a.values() == b.values(), "{}", a.name);
    }
    // Both speak the same tokens, and in 8 bit the file is still a model.
    let text = "Was ist 12+3, und \"abc\" rückwärts?\n";
    let ids =
        |m: &Model| ChatModel::new(&m.vocab().unwrap()).unwrap().tokenizer().encode(text, Specials::Parse).unwrap();
    assert_eq!(ids(&hf), ids(&gguf));
    run.export(&file, format::Q8_0).unwrap();
    assert!(Model::open(&file, &Options::default()).unwrap().check().unwrap().is_empty());
}

/// Prompts are put together without the template; they are what the template gives.
#[test]
fn prompts_are_the_templates() {
    let lists = vocabulary::lists(300).unwrap();
    let chat = vocabulary::chat(&lists).unwrap();
    assert_eq!(lists.tokens.len() % 32, 0);
    let generator = || Generator::new(&Mix::default()).unwrap();
    let examples = Examples::new(generator(), chat.tokenizer(), &Data { turns: 1.0, ..Data::default() }, 7);
    for index in 0..200 {
        let sample = examples.sample(index);
        let messages = [ChatMessage::new(Role::User, &*sample.question)];
        let options = RenderOptions { thinking: Thinking::Default, ..RenderOptions::default() };
        let (request, _) = chat.chat(&messages, &options, &Default::default()).unwrap();
        assert_eq!(request.prompt, examples.prompt(&sample.question).unwrap(), "{}", sample.question);
        assert!(request.reasoning.is_some_and(|r| r.inside));
        // With earlier turns and a system prompt the last turn is the same.
        let (example, _) = examples.example(index, false).unwrap();
        let last = &request.prompt[1..];
        assert_eq!(&example.tokens[example.from - last.len()..example.from], last);
        let completion = chat.tokenizer().decode(&example.tokens[example.from..]);
        assert_eq!(completion, format!("{}{}", sample.completion(), vocabulary::EOS));
    }
}

#[test]
fn bad_recipes_are_named() {
    let said = |text: &str| Recipe::parse(text, Path::new("r.toml")).unwrap_err().to_string();
    for (from, to, words) in [
        ("dim = 32", "dim = 3", &["r.toml", "model.dim is 3", "8 to 8192"][..]),
        ("rope = 8", "rope = 7", &["model.rope is 7", "even"]),
        ("top_k = 2", "top_k = 5", &["model.top_k is 5", "1 to 4"]),
        ("lr = 3e-3", "lr = -1.0", &["pretrain.lr is -1", "0.000000001 to 1"]),
        ("group = 3", "group = 1", &["grpo.group is 1", "2 to 1024"]),
        ("dim = 32", "dims = 32", &["dims", "line 4"]),
        ("dim = 32", "dim = \"x\"", &["line 4"]),
        ("name = \"tiny\"", "name = \"a/b\"", &["name is a/b"]),
    ] {
        let message = said(&TINY.replacen(from, to, 1));
        for word in words {
            assert!(message.contains(word), "{word}: {message}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = tiny();
    recipe.data.weights.insert("nonsense".into(), 1.0);
    let run = Run::open(recipe.clone(), folder.path(), (cpu(), server()), None).unwrap();
    assert!(matches!(run.stage(Stage::Sft, &mut |_| Wish::Continue), Err(Error::Missing { .. })));
    run.stage(Stage::Tokenizer, &mut |_| Wish::Continue).unwrap();
    let error = run.stage(Stage::Pretrain, &mut |_| Wish::Continue).unwrap_err().to_string();
    assert!(error.contains("nonsense") && error.contains("countdown"), "{error}");
    recipe.seed = 2;
    assert!(matches!(Run::open(recipe, folder.path(), (cpu(), server()), None), Err(Error::OtherRun { .. })));
}

#[test]
fn a_loss_that_is_no_number_stops_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = tiny();
    let pretrain = recipe.pretrain.as_mut().unwrap();
    (pretrain.lr, pretrain.clip, pretrain.warmup, pretrain.tokens) = (1e8, 1e9, 0, 20_000);
    recipe.pretrain.as_mut().unwrap().matrices = fathom_train::recipe::Matrices::AdamW;
    let run = Run::open(recipe, folder.path(), (cpu(), server()), None).unwrap();
    run.stage(Stage::Tokenizer, &mut |_| Wish::Continue).unwrap();
    match run.stage(Stage::Pretrain, &mut |_| Wish::Continue) {
        Err(Error::Diverged { stage: "pretrain", step, .. }) => assert!(step > 1),
        other => panic!("{:?}", other.err()),
    }
}
