//! Drawing with a real (tiny) model: the recorded ids, pixels and logits, on every backend; and the laws of the scheduler.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use fathom_core::reference::Reference;
use fathom_core::{Backend, DType, LatentForm, Precision, Shape, Tensor};
use fathom_cpu::{Cpu, CpuOptions};
use fathom_engine::{
    ChatModel, DrawOptions, Event, Finish, Flow, Id, Meter, ModelRunner, Request, Runner, RunnerOptions, Sampling,
    Seen, StepOutput, TextOptions, Worker, WorkerOptions, with_pictures,
};
use fathom_model::picture::{picture, prepare, values};
use fathom_model::{Batch, Input, Logits, Model, NoProbe, Options, Probe};
use fathom_picture::Picture;
use fathom_text::{ChatMessage, RenderOptions, Role};
use safetensors::SafeTensors;

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/janus")
}

/// A recording.
fn golden(name: &str) -> Vec<f32> {
    let bytes = std::fs::read(dir().join("golden.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let t = all.tensor(name).unwrap();
    match t.dtype() {
        safetensors::Dtype::F32 => t.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        safetensors::Dtype::I32 => t.data().as_chunks().0.iter().map(|b| i32::from_le_bytes(*b) as f32).collect(),
        safetensors::Dtype::U8 => t.data().iter().map(|&b| f32::from(b)).collect(),
        other => panic!("{other:?}"),
    }
}

fn ids(name: &str) -> Vec<u32> {
    golden(name).into_iter().map(|v| v as u32).collect()
}

#[derive(Clone)]
struct Device {
    name: &'static str,
    backend: Arc<dyn Backend>,
    kv: DType,
}

fn devices() -> [Device; 3] {
    let cpu = |precision| -> Arc<dyn Backend> {
        Cpu::new(CpuOptions { threads: Some(2), precision, ..CpuOptions::default() }).unwrap()
    };
    [
        Device { name: "reference", backend: Arc::new(Reference::new()), kv: DType::F32 },
        Device { name: "cpu, exact", backend: cpu(Precision::Exact), kv: DType::F32 },
        Device { name: "cpu, fast", backend: cpu(Precision::Fast), kv: DType::F16 },
    ]
}

fn model() -> Model {
    Model::open(&dir(), &Options::default()).unwrap()
}

fn runner(device: &Device) -> ModelRunner {
    let decoder = model().load(Arc::clone(&device.backend), &mut |_, _| {}).unwrap();
    let options = RunnerOptions { context: None, cache_tokens: Some(4096), kv: device.kv, drafts: false };
    ModelRunner::new(decoder, options).unwrap()
}

fn worker(device: &Device) -> Worker {
    Worker::new(Box::new(runner(device)), WorkerOptions::default(), Meter::none()).unwrap()
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Drawn {
    ids: Vec<Vec<u32>>,
    pictures: Vec<Picture>,
    previews: Vec<Picture>,
    steps: usize,
    tokens: Vec<u32>,
    end: Option<Finish>,
}

/// A sink that collects, and stops after so many steps.
fn sink(to: &Arc<Mutex<Drawn>>, stop: usize) -> Box<dyn fathom_engine::Sink> {
    let to = Arc::clone(to);
    Box::new(move |event: Event<'_>| {
        let mut to = to.lock().unwrap();
        assert!(to.end.is_none(), "nothing follows the end");
        match event {
            Event::Drawn { step, steps } => {
                assert_eq!((step, steps), (to.steps + 1, 36));
                to.steps = step;
            }
            Event::Picture { index, ids, picture, preview: false } => {
                assert_eq!(index, to.pictures.len());
                to.ids.push(ids.to_vec());
                to.pictures.push(picture.clone());
            }
            Event::Picture { picture, preview: true, .. } => to.previews.push(picture.clone()),
            Event::Token { token, .. } => to.tokens.push(token),
            Event::Finished { reason, .. } => to.end = Some(reason),
            Event::Failed(error) => panic!("{error}"),
            Event::Accepted { .. } | Event::Prompt { .. } | Event::Embedding(_) => {}
        }
        if to.steps == stop { Flow::Stop } else { Flow::Continue }
    })
}

fn draw(worker: &mut Worker, requests: &[Request]) -> Vec<Drawn> {
    let all: Vec<Arc<Mutex<Drawn>>> = requests.iter().map(|_| Arc::default()).collect();
    for (i, request) in requests.iter().enumerate() {
        worker.submit(Id(i as u64), request.clone(), sink(&all[i], usize::MAX)).unwrap();
    }
    while all.iter().any(|d| d.lock().unwrap().end.is_none()) {
        worker.step().unwrap();
    }
    let stats = worker.stats();
    assert_eq!((stats.running, stats.waiting, stats.idle_blocks), (0, 0, stats.blocks), "everything is given back");
    all.iter().map(|d| d.lock().unwrap().clone()).collect()
}

fn request(options: &DrawOptions) -> Request {
    ChatModel::new(&model().vocab().unwrap()).unwrap().draw("a red fox", options).unwrap()
}

fn greedy() -> DrawOptions {
    DrawOptions { sampling: Sampling::default(), ..DrawOptions::default() }
}

/// `found` is `golden` within `bound`, element by element, and within 1e-5 (exact) of its size on the whole.
#[track_caller]
fn close(device: &Device, what: &str, found: &[f32], golden: &[f32], bound: f32) {
    assert_eq!(found.len(), golden.len(), "{what}");
    let (mut error, mut power) = (0.0, 0.0);
    for (a, b) in found.iter().zip(golden) {
        error += f64::from(a - b).powi(2);
        power += f64::from(*b).powi(2);
        assert!(device.name == "cpu, fast" || (a - b).abs() <= bound, "{}, {what}: {a} {b}", device.name);
    }
    let rms = (error / power).sqrt();
    let most = if device.name == "cpu, fast" { 0.03 } else { 1e-5 };
    assert!(rms <= most, "{}, {what}: rms {rms:e}", device.name);
}

fn read(b: &dyn Backend, t: &Tensor) -> Vec<f32> {
    let mut values = vec![0.0; t.shape.numel()];
    b.read(t, &mut values).unwrap();
    values
}

/// Recorded `[pictures, channels, height, width]` as `[pictures, height, width, channels]`.
fn channels_last(values: &[f32], channels: usize, pixels: usize) -> Vec<f32> {
    let one = |p: &[f32]| (0..pixels * channels).map(|i| p[i % channels * pixels + i / channels]).collect::<Vec<_>>();
    values.chunks_exact(channels * pixels).flat_map(one).collect()
}

fn image(n: usize) -> Arc<Picture> {
    let bytes = std::fs::read(dir().join(format!("image_{n}.png"))).unwrap();
    Arc::new(fathom_picture::decode(&bytes, &fathom_picture::Limits::default()).unwrap())
}

#[test]
fn pictures_are_prepared_as_the_makers_do() {
    let spec = model().spec.pictures.unwrap();
    for n in 0..5 {
        let wanted = channels_last(&golden(&format!("preprocess.{n}.original")), 3, 24 * 24);
        let found = values(&prepare(&image(n), &spec), &spec.pixels);
        let worst = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-6, "image {n}: {worst}");
    }
}

/// Notes what the tower announces.
struct Notes(Vec<(Option<usize>, Vec<f32>)>);

impl Probe for Notes {
    fn tap(&mut self, layer: Option<usize>, _: &'static str, b: &dyn Backend, x: &Tensor) -> fathom_core::Result<()> {
        self.0.push((layer, read(b, x)));
        Ok(())
    }
}

#[test]
fn the_tower_sees_what_was_recorded() {
    for device in devices() {
        let decoder = model().load(Arc::clone(&device.backend), &mut |_, _| {}).unwrap();
        let (b, pictures) = (&*device.backend, decoder.pictures());
        let pixels = channels_last(&golden("vision.pixel_values"), 3, 24 * 24);
        let x = b.tensor(Shape::new(&[1, 24, 24, 3]), &pixels).unwrap();
        let mut notes = Notes(Vec::new());
        let features = pictures.tower.probed(b, &x, &mut notes).unwrap();
        for (layer, values) in &notes.0 {
            let name = layer.map_or("vision.patch_plus_pos".to_owned(), |n| format!("vision.layer.{n}"));
            close(&device, &name, values, &golden(&name), 5e-5);
        }
        assert_eq!(notes.0.len(), 3);
        close(&device, "features", &read(b, &features), &golden("vision.last_hidden"), 5e-5);
        let aligned = pictures.aligner.forward(b, &features).unwrap();
        close(&device, "aligned", &read(b, &aligned), &golden("vision.aligned"), 5e-5);
    }
}

/// Where the placeholders of pictures stand.
fn places(tokens: &[u32]) -> Vec<usize> {
    (0..tokens.len()).filter(|&i| tokens[i] == 379 && (i == 0 || tokens[i - 1] != 379)).collect()
}

#[test]
fn understanding_has_the_recorded_logits() {
    let one = channels_last(&golden("vision.pixel_values"), 3, 24 * 24);
    let two = channels_last(&golden("understand2.pixel_values"), 3, 24 * 24);
    for device in devices() {
        let decoder = model().load(Arc::clone(&device.backend), &mut |_, _| {}).unwrap();
        let b = &*device.backend;
        for (name, pixels) in [("text_only", &[][..]), ("understand", &one), ("understand2", &two)] {
            let tokens = ids(&format!("{name}.input_ids"));
            let places = places(&tokens);
            let mut batch = Batch::new(64);
            batch.push(&tokens, 0, &[0, 1], LatentForm::Plain, Logits::All);
            assert_eq!(places.len(), pixels.len() / (24 * 24 * 3));
            if !places.is_empty() {
                let x = b.tensor(Shape::new(&[places.len(), 24, 24, 3]), pixels).unwrap();
                let rows = decoder.pictures().see(b, &x).unwrap();
                for (i, &at) in places.iter().enumerate() {
                    batch.inputs.push((at..at + 36, Input::Rows(rows.clone(), i * 36..(i + 1) * 36)));
                }
            }
            let mut kv = decoder.kv_pool(2, device.kv).unwrap();
            let h = decoder.trunk(decoder.inputs(&batch).unwrap(), &batch, &mut kv, &mut NoProbe).unwrap();
            let logits = read(b, &decoder.head(&h).unwrap());
            close(&device, name, &logits, &golden(&format!("{name}.logits")), 2e-4);
        }
    }
}

#[test]
fn a_picture_is_described_as_recorded() {
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(dir().join("golden.json")).unwrap()).unwrap();
    let wanted: Vec<u32> =
        json["understand_greedy24"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect();
    let model = model();
    let chat = ChatModel::new(&model.vocab().unwrap()).unwrap().seeing(model.spec.pictures.as_ref());
    let options = |pictures| TextOptions { pictures, max_tokens: Some(24), ignore_end: true, ..TextOptions::default() };
    let ask = |n: usize| {
        let message = ChatMessage::new(Role::User, with_pictures(1, "What is it?"));
        chat.chat(&[message], &RenderOptions::default(), &options(vec![image(n)])).unwrap().0
    };
    let which = (0..5).find(|&n| {
        let spec = model.spec.pictures.as_ref().unwrap();
        let found = values(&prepare(&image(n), spec), &spec.pixels);
        let golden = channels_last(&golden("vision.pixel_values"), 3, 24 * 24);
        found.iter().zip(&golden).all(|(a, b)| (a - b).abs() < 1e-5)
    });
    let which = which.expect("one of the pictures is the described one");
    let recorded = ids("understand.input_ids");
    let request = ask(which);
    println!("{:?}\n{:?}", request.prompt, recorded);
    for device in &devices()[..2] {
        let seen = places(&recorded).into_iter().map(|at| Seen { at, picture: image(which) }).collect();
        let request = Request { seen, max_tokens: Some(24), ..Request::new(recorded.clone()) };
        let drawn = &draw(&mut worker(device), &[request])[0];
        assert_eq!(drawn.tokens, wanted, "{}", device.name);
    }
}

#[test]
fn two_pictures_are_two_prefixes() {
    let device = &devices()[1];
    let tokens = ids("understand.input_ids");
    let at = places(&tokens)[0];
    let ask = |n: usize| {
        let seen = vec![Seen { at, picture: image(n) }];
        Request { seen, max_tokens: Some(12), ..Request::new(tokens.clone()) }
    };
    let alone: Vec<Vec<u32>> = (0..3).map(|n| draw(&mut worker(device), &[ask(n)])[0].tokens.clone()).collect();
    assert_ne!(alone[0], alone[1]);
    let mut shared = worker(device);
    for n in [0, 1, 0, 2, 1, 0] {
        assert_eq!(draw(&mut shared, &[ask(n)])[0].tokens, alone[n], "picture {n}");
    }
    assert!(shared.stats().cached_tokens > 0, "the same picture is found again");
}

#[test]
fn pictures_become_the_recorded_codes() {
    let pixels = channels_last(&golden("vq.encode_pixels"), 3, 24 * 24);
    for device in &devices()[..2] {
        let decoder = model().load(Arc::clone(&device.backend), &mut |_, _| {}).unwrap();
        let (b, codec) = (&*device.backend, &decoder.pictures().codec);
        let x = b.tensor(Shape::new(&[2, 24, 24, 3]), &pixels).unwrap();
        let latent = read(b, &codec.latent(b, &x).unwrap());
        close(device, "latent", &latent, &channels_last(&golden("vq.encode_latent"), 8, 36), 5e-5);
        assert_eq!(codec.encode(b, &x).unwrap(), ids("vq.encode_codes_original_l2"), "{}", device.name);
    }
}

#[test]
fn codes_become_the_recorded_pixels() {
    for device in devices() {
        let decoder = model().load(Arc::clone(&device.backend), &mut |_, _| {}).unwrap();
        let b = &*device.backend;
        let x = decoder.pictures().codec.decode(b, &ids("vq.codes"), 6, 6).unwrap();
        let found = read(b, &x);
        close(&device, "pixels", &found, &channels_last(&golden("vq.decoded"), 3, 24 * 24), 5e-5);
        let bytes = golden("vq.decoded_u8");
        for (one, wanted) in found.chunks_exact(24 * 24 * 3).zip(bytes.chunks_exact(24 * 24 * 3)) {
            let slack = if device.name == "cpu, fast" { 4.0 } else { 1.0 };
            for (a, b) in picture(one, 24, 24).rgb.iter().zip(wanted) {
                assert!((f32::from(*a) - b).abs() <= slack, "{}: {a} {b}", device.name);
            }
        }
    }
}

#[test]
fn the_prompt_is_the_makers() {
    let request = request(&greedy());
    assert_eq!(request.prompt, ids("gen.cond_ids"));
    assert_eq!(request.drawing.unwrap().unconditional, ids("gen.uncond_ids"));
}

#[test]
fn the_recorded_picture_comes_out() {
    let (codes, pixels) = (ids("gen.greedy_codes"), golden("gen.greedy_pixels"));
    let (width, height) = (24, 24);
    for device in devices() {
        let drawn = &draw(&mut worker(&device), &[request(&greedy())])[0];
        assert_eq!(drawn.ids, std::slice::from_ref(&codes), "{}", device.name);
        let slack = if device.name == "cpu, fast" { 3 } else { 1 };
        for y in 0..height {
            for x in 0..width {
                for (c, found) in drawn.pictures[0].pixel(x, y).into_iter().enumerate() {
                    let wanted = (pixels[(c * height + y) * width + x] + 1.0) / 2.0 * 255.0;
                    let wanted = wanted.clamp(0.0, 255.0) as u8;
                    assert!(found.abs_diff(wanted) <= slack, "{} at {x}, {y}: {found} {wanted}", device.name);
                }
            }
        }
    }
}

#[test]
fn the_first_steps_have_the_recorded_logits() {
    let codes = ids("gen.greedy_codes");
    let prompts = [ids("gen.cond_ids"), ids("gen.uncond_ids")];
    let names = ["cond", "uncond"];
    for device in devices() {
        let mut runner = runner(&device);
        let (mut batch, mut out) = (Batch::new(64), StepOutput::default());
        for step in 0..4 {
            batch.clear();
            for (lane, prompt) in prompts.iter().enumerate() {
                let table = [lane as u32];
                match step {
                    0 => {
                        batch.push(prompt, 0, &table, LatentForm::Plain, Logits::None);
                        batch.want_picture();
                    }
                    _ => batch.push_codes(&codes[step - 1..step], prompt.len() + step - 1, &table),
                }
            }
            runner.step(&batch, &mut out).unwrap();
            for (lane, name) in names.iter().enumerate() {
                let wanted = golden(&format!("gen.step{step}.{name}"));
                let bound = if device.name == "cpu, fast" { 0.2 } else { 2e-4 };
                for (a, b) in out.picture_row(lane).iter().zip(&wanted) {
                    assert!((a - b).abs() <= bound, "{}, step {step}, {name}: {a} {b}", device.name);
                }
            }
        }
    }
}

#[test]
fn a_seed_is_a_picture_whatever_is_drawn_beside_it() {
    let options = |pictures| DrawOptions { pictures, seed: Some(11), ..DrawOptions::default() };
    let device = &devices()[2];
    let one = &draw(&mut worker(device), &[request(&options(1))])[0];
    let four = &draw(&mut worker(device), &[request(&options(4))])[0];
    assert_eq!(four.pictures.len(), 4);
    assert_eq!(one.ids[0], four.ids[0]);
    assert_eq!(one.pictures[0], four.pictures[0]);
    assert!(four.ids[1..].iter().all(|other| *other != four.ids[0]), "each its own");
    let text = Request { max_tokens: Some(30), ..Request::new(vec![0, 96, 134]) };
    let alone = &draw(&mut worker(device), std::slice::from_ref(&text))[0];
    let mixed = draw(&mut worker(device), &[request(&options(4)), text, request(&options(1))]);
    assert_eq!(mixed[0].ids, four.ids);
    assert_eq!(mixed[1].tokens, alone.tokens);
    assert_eq!(mixed[2].ids, one.ids);
}

#[test]
fn the_same_seed_draws_the_same_on_reference_and_cpu() {
    let options = DrawOptions { seed: Some(3), ..DrawOptions::default() };
    let [reference, cpu, _] = devices();
    let a = &draw(&mut worker(&reference), &[request(&options)])[0];
    let b = &draw(&mut worker(&cpu), &[request(&options)])[0];
    assert_eq!(a.ids, b.ids);
    for (a, b) in a.pictures[0].rgb.iter().zip(&b.pictures[0].rgb) {
        assert!(a.abs_diff(*b) <= 1);
    }
}

#[test]
fn previews_are_the_rows_so_far() {
    let options = DrawOptions { preview: Some(9), pictures: 2, seed: Some(5), ..DrawOptions::default() };
    let drawn = &draw(&mut worker(&devices()[1]), &[request(&options)])[0];
    // After 9, 18 and 27 of 36 ids, 6 a row, 4 pixels high.
    let heights: Vec<usize> = drawn.previews.iter().map(|p| p.height).collect();
    assert_eq!(heights, [4, 4, 12, 12, 16, 16]);
    assert!(drawn.previews.iter().all(|p| p.width == 24));
}

#[test]
fn a_drawing_can_be_stopped_between_any_two_steps() {
    let device = &devices()[1];
    for stop in [1, 2, 17, 35] {
        let mut worker = worker(device);
        let to = Arc::default();
        worker.submit(Id(0), request(&DrawOptions::default()), sink(&to, stop)).unwrap();
        while to.lock().unwrap().end.is_none() {
            worker.step().unwrap();
        }
        let to = to.lock().unwrap();
        assert_eq!((to.end, to.steps, to.pictures.len()), (Some(Finish::Cancelled), stop, 0));
        let stats = worker.stats();
        assert_eq!((stats.running, stats.idle_blocks), (0, stats.blocks));
    }
    // From outside, also while it waits.
    let mut worker = worker(device);
    let (first, second) = (Arc::default(), Arc::default());
    let many = request(&DrawOptions { pictures: 32, ..DrawOptions::default() });
    worker.submit(Id(0), many.clone(), sink(&first, usize::MAX)).unwrap();
    worker.submit(Id(1), many, sink(&second, usize::MAX)).unwrap();
    (0..3).for_each(|_| assert!(worker.step().unwrap()));
    assert_eq!((worker.stats().running, worker.stats().waiting), (1, 1));
    worker.cancel(Id(1));
    worker.step().unwrap();
    assert_eq!(second.lock().unwrap().end, Some(Finish::Cancelled));
    worker.cancel(Id(0));
    worker.step().unwrap();
    assert_eq!(first.lock().unwrap().end, Some(Finish::Cancelled));
    assert_eq!(worker.stats().idle_blocks, worker.stats().blocks);
}

#[test]
fn what_cannot_be_drawn_is_refused() {
    let runner = runner(&devices()[1]);
    let refused = |options: DrawOptions, words: &str| {
        let error = request(&options).check(runner.info()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(DrawOptions { pictures: 0, ..DrawOptions::default() }, "pictures is 0");
    refused(DrawOptions { pictures: 65, ..DrawOptions::default() }, "pictures is 65");
    refused(DrawOptions { pictures: 64, ..DrawOptions::default() }, "room for 4096");
    refused(DrawOptions { guidance: f32::NAN, ..DrawOptions::default() }, "guidance");
    refused(DrawOptions { preview: Some(0), ..DrawOptions::default() }, "preview");
}

#[test]
fn the_older_model_differs_in_pixels_and_turns() {
    let to = tempfile::tempdir().unwrap();
    for name in
        ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"]
    {
        let mut bytes = std::fs::read(dir().join(name)).unwrap();
        if name == "preprocessor_config.json" || name == "tokenizer_config.json" {
            let mut json: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&bytes).unwrap();
            json.remove("chat_template");
            json.entry("do_normalize").and_modify(|v| *v = false.into());
            bytes = serde_json::to_vec(&json).unwrap();
        }
        std::fs::write(to.path().join(name), bytes).unwrap();
    }
    let (newer, older) = (model(), Model::open(to.path(), &Options::default()).unwrap());
    let numbers = |model: &Model| {
        let pixel = Picture::filled(1, 1, [255, 0, 51]);
        values(&pixel, &model.spec.pictures.as_ref().unwrap().pixels)
    };
    assert_eq!(numbers(&older), [1.0, 0.0, 0.2]);
    assert_eq!(numbers(&newer), [1.0, -1.0, (0.2 - 0.5) / 0.5]);
    let chat = ChatModel::new(&older.vocab().unwrap()).unwrap();
    let request = chat.draw("a red fox", &DrawOptions::default()).unwrap();
    let text = chat.tokenizer().decode(&request.prompt);
    assert!(text.contains("User: a red fox\n\nAssistant:"), "{text}");
}
