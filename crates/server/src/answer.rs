//! From an [`Ask`] to the pieces of its answers, and from these to a response, whole or streamed.
//!
//! The engine's thread hands pieces over by a channel that never blocks; a reader that falls behind pauses its
//! sequence. Dropping an [`Answer`], as happens when a client leaves, cancels it before the engine's next step.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use fathom_engine::{ChatEvent, ChatModel, Event, Flow, Id, Request, Shaped, TextOptions, Transcriber};
use fathom_picture::{Limits as PictureLimits, Picture, decode};
use fathom_text::{Calls, Clock, RenderOptions, Shape, Thinking};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, timeout_at};

use crate::ask::{Ask, Chat, Choice, Format, Heading, Input, Piece, Scored, Sent, ToolChoice, total};
use crate::guard::Caller;
use crate::models::Served;
use crate::quota::Share;
use crate::{App, Refusal, random_id, unix_now};

/// Pieces that may wait for a slow reader before its sequence is paused, and the number at which it goes on.
const HIGH: usize = 512;
const LOW: usize = 64;

/// How often a silent stream says that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Turns pieces into a dialect's bytes.
pub(crate) trait Encode: Send + 'static {
    /// Type of a streamed body.
    const STREAM: &'static str = "text/event-stream";
    /// What a silent stream says from time to time.
    const ALIVE: &'static str = ": keep-alive\n\n";
    /// Whether a client that waits for a whole answer gets blank lines meanwhile.
    const PATIENT: bool = false;

    /// The whole answer.
    fn whole(&mut self, choices: &[Choice]) -> Value;
    /// The beginning of a stream.
    fn open(&mut self, out: &mut String);
    /// A piece in a stream. `so_far` is the choice with the piece taken in.
    fn piece(&mut self, index: usize, piece: &Piece, so_far: &Choice, out: &mut String);
    /// The end of a stream.
    fn close(&mut self, choices: &[Choice], out: &mut String);
    /// The end of a stream that broke.
    fn broken(&mut self, refusal: &Refusal, out: &mut String);
}

/// Appends a server-sent event.
pub(crate) fn sse(out: &mut String, name: Option<&str>, data: &Value) {
    if let Some(name) = name {
        out.push_str("event: ");
        out.push_str(name);
        out.push('\n');
    }
    out.push_str("data: ");
    out.push_str(&data.to_string());
    out.push_str("\n\n");
}

/// Exact texts of the latest calls, so that a later prompt repeats them byte for byte and the prefix cache hits.
#[derive(Clone, Default)]
pub(crate) struct Replays(Arc<Mutex<VecDeque<(String, String)>>>);

impl Replays {
    /// Calls that are kept, and the longest that is.
    const CALLS: usize = 1024;
    const BYTES: usize = 16 << 10;

    fn keep(&self, id: &str, raw: &str) {
        if raw.len() <= Self::BYTES {
            let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if calls.len() == Self::CALLS {
                calls.pop_front();
            }
            calls.push_back((id.to_owned(), raw.to_owned()));
        }
    }

    /// The texts of those calls of a conversation that were made here.
    fn of(&self, conversation: &Chat) -> Vec<(String, String)> {
        let ids = conversation.messages.iter().flat_map(|m| &m.tool_calls).filter_map(|call| call.id.as_ref());
        let ids: Vec<&String> = ids.collect();
        if ids.is_empty() {
            return Vec::new();
        }
        let calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        calls.iter().filter(|(id, _)| ids.contains(&id)).cloned().collect()
    }
}

/// The running answers to one ask.
pub(crate) struct Answer {
    served: Arc<Served>,
    ids: Vec<Id>,
    lanes: Vec<Lane>,
    receiver: UnboundedReceiver<(usize, Piece)>,
    unfinished: usize,
    /// Answers to each input.
    n: usize,
    started: Instant,
    app: Arc<App>,
    request_id: String,
    /// Of the key's quota.
    _share: Share,
}

/// Between the engine's thread and the reader of one answer.
#[derive(Clone, Default)]
struct Lane {
    waiting: Arc<AtomicUsize>,
    paused: Arc<AtomicBool>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        // Nothing was submitted for what was refused.
        if self.unfinished > 0 && !self.ids.is_empty() {
            self.ids.iter().for_each(|&id| self.served.engine.cancel(id));
            self.app.metrics.cancelled.fetch_add(1, Ordering::Relaxed);
        }
        self.app.metrics.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Answer {
    /// Renders, tokenises and submits. The refusals of everything that can be known before computing come from here.
    pub(crate) async fn start(app: &Arc<App>, mut ask: Ask, caller: &Caller) -> Result<(Self, Heading), Refusal> {
        let (name, aliased) = app.models.resolve(&ask.model)?;
        let (choices, most) = (ask.inputs.len() * ask.n, app.limits.choices);
        if choices > most {
            return Err(Refusal::field("n", format!("asks for {choices} answers, at most {most} are allowed")));
        }
        if app.draining.load(Ordering::Relaxed) {
            return Err(Refusal::Unavailable("the server is shutting down".into()));
        }
        let share = app.quotas.take(caller.key, choices)?;
        // Whose prompts are cached cannot be told from how soon another key is answered.
        ask.wish.tenant = format!("{} {}", caller.key, ask.wish.tenant);
        let served = app.models.get(&name).await?;
        let heading =
            Heading { n: ask.n, id: random_id(), created: unix_now(), model: name, chat: served.chat.clone() };
        let (sender, receiver) = unbounded_channel();
        let lanes: Vec<Lane> = (0..choices).map(|_| Lane::default()).collect();
        let mut answer = Answer {
            served: Arc::clone(&served),
            ids: Vec::new(),
            lanes: lanes.clone(),
            receiver,
            unfinished: choices,
            n: ask.n,
            started: Instant::now(),
            app: Arc::clone(app),
            request_id: caller.request.clone(),
            _share: share,
        };
        app.metrics.running.fetch_add(1, Ordering::Relaxed);
        // Templates and tokenizers compute for a while.
        let replays = app.replays.clone();
        let submitted =
            tokio::task::spawn_blocking(move || submit(&served, &ask, aliased, &lanes, &sender, &replays)).await;
        let (ids, result) = submitted.map_err(|_| Refusal::Failed("preparing the prompt broke off".into()))?;
        answer.ids = ids;
        result?;
        Ok((answer, heading))
    }

    /// The next piece of any of the answers; none after the last.
    async fn next(&mut self) -> Option<(usize, Piece)> {
        if self.unfinished == 0 {
            return None;
        }
        let Some((index, piece)) = self.receiver.recv().await else {
            self.unfinished = 0;
            return Some((0, Piece::Failed(Refusal::Failed("the engine ended without an answer".into()))));
        };
        let lane = &self.lanes[index];
        let waiting = lane.waiting.fetch_sub(1, Ordering::Relaxed) - 1;
        if waiting <= LOW && lane.paused.swap(false, Ordering::Relaxed) {
            self.served.engine.resume(self.ids[index]);
        }
        if matches!(piece, Piece::Done { .. } | Piece::Failed(_)) {
            self.unfinished -= 1;
        }
        Some((index, piece))
    }

    /// The next piece, or a refusal once a time limit has passed.
    async fn next_in_time(&mut self, begun: bool) -> Option<(usize, Piece)> {
        let limits = &self.app.limits;
        let limit = if begun { limits.total } else { limits.first_token };
        let deadline = self.started + limit;
        let mut over = self.app.over.subscribe();
        let in_time = tokio::select! {
            piece = timeout_at(deadline, self.next()) => piece,
            _ = over.wait_for(|over| *over) => {
                return Some((0, Piece::Failed(Refusal::Unavailable("the server is shutting down".into()))));
            }
        };
        match in_time {
            Ok(piece) => piece,
            Err(_) => {
                let what = if begun { "the answer" } else { "the first token" };
                let why = format!("{what} took longer than the {} s that this server allows", limit.as_secs());
                Some((0, Piece::Failed(Refusal::Unavailable(why))))
            }
        }
    }

    /// Waits for the whole of all answers.
    pub(crate) async fn collect(mut self) -> Result<Vec<Choice>, Refusal> {
        let mut choices = vec![Choice::default(); self.lanes.len()];
        let mut begun = false;
        while let Some((index, piece)) = self.next_in_time(begun).await {
            begun |= begins(&piece);
            choices[index].take(&piece);
            if let Piece::Failed(refusal) = piece {
                self.note(&choices, Some(&refusal));
                return Err(refusal);
            }
        }
        self.note(&choices, None);
        Ok(choices)
    }

    /// Counts and logs an ended answer.
    fn note(&self, choices: &[Choice], refusal: Option<&Refusal>) {
        let usage = total(choices, self.n);
        self.app.metrics.answered(&usage);
        let ending = match (refusal, choices.first().and_then(|c| c.done.as_ref())) {
            (Some(refusal), _) => refusal.to_string(),
            (None, Some((ending, _))) => format!("{ending:?}").split('(').next().unwrap_or_default().to_lowercase(),
            (None, None) => "none".to_owned(),
        };
        self.app.log.line(&serde_json::json!({
            "event": "answer", "request": self.request_id, "model": self.served.offer.name, "ending": ending,
            "prompt_tokens": usage.prompt, "cached_tokens": usage.cached, "completion_tokens": usage.completion,
            "queue_s": usage.queue_s, "first_token_s": usage.first_token_s(), "decode_s": usage.decode_s,
        }));
    }
}

/// Submits every answer of an ask. Returns what was submitted even if a later one was refused.
fn submit(
    served: &Served,
    ask: &Ask,
    aliased: Thinking,
    lanes: &[Lane],
    sender: &UnboundedSender<(usize, Piece)>,
    replays: &Replays,
) -> (Vec<Id>, Result<(), Refusal>) {
    let mut ids = Vec::new();
    let context = served.engine.info().context;
    if let Some(least) = ask.wish.least_context.filter(|&least| least > context) {
        let why = format!("a context of {least} tokens is asked for, this server gives {context}");
        return (ids, Err(Refusal::Context(why)));
    }
    let shape = match shape(&served.chat, ask) {
        Ok(shape) => shape,
        Err(refusal) => return (ids, Err(refusal)),
    };
    let pictures = match pictures(&served.chat, &ask.inputs) {
        Ok(pictures) => pictures,
        Err(refusal) => return (ids, Err(refusal)),
    };
    for (index, lane) in lanes.iter().enumerate() {
        let mut options = ask.wish.options(&served.defaults, index % ask.n);
        options.shape = shape.clone();
        options.pictures = pictures.clone();
        let input = &ask.inputs[index / ask.n];
        let submitted =
            request(&served.chat, input, aliased, &options, replays).and_then(|(mut request, transcriber)| {
                request.prompt_logprobs = ask.wish.prompt_logprobs;
                request.embed = ask.wish.embed;
                if request.prompt_logprobs.is_some() {
                    lane.waiting.fetch_add(1, Ordering::Relaxed);
                    // The receiver outlives this function, or nobody wants the answer.
                    let _ = sender.send((index, Piece::Given(request.prompt.clone())));
                }
                Ok(served
                    .engine
                    .submit(request, sink(index, transcriber, lane.clone(), sender.clone(), replays.clone()))?)
            });
        match submitted {
            Ok(id) => ids.push(id),
            Err(refusal) => return (ids, Err(refusal)),
        }
    }
    (ids, Ok(()))
}

/// Holds whoever unfolds a picture, so that the memory of one is enough for all.
static UNFOLDING: Mutex<()> = Mutex::new(());

/// The pictures of a conversation, as small as the model sees them. An ask with a conversation has no other inputs.
fn pictures(chat: &ChatModel, inputs: &[Input]) -> Result<Vec<Arc<Picture>>, Refusal> {
    let [Input::Chat(conversation)] = inputs else { return Ok(Vec::new()) };
    if let Some(first) = conversation.pictures.first().filter(|_| !chat.sees()) {
        return Err(Refusal::field(first.place.clone(), "this model does not see pictures"));
    }
    let read = |sent: &Sent| {
        let _one = UNFOLDING.lock().unwrap_or_else(PoisonError::into_inner);
        let picture = decode(&sent.file, &PictureLimits::default());
        Ok(chat.look(&picture.map_err(|e| Refusal::field(sent.place.clone(), e.to_string()))?)?)
    };
    conversation.pictures.iter().map(read).collect()
}

/// What the answers must look like: as the format says, or calls of tools.
fn shape(chat: &ChatModel, ask: &Ask) -> Result<Option<Shaped>, Refusal> {
    let conversation = match ask.inputs.first() {
        Some(Input::Chat(conversation)) => Some(conversation),
        _ => None,
    };
    let wanted = match &ask.wish.format {
        Format::Free => None,
        Format::Json => Some(Shape::Json),
        Format::Schema(schema) => Some(Shape::Schema(schema.clone())),
        Format::Regex(regex) => Some(Shape::Regex(regex.clone())),
        Format::Lark(text) => Some(Shape::Lark(text.clone())),
    };
    let calls = conversation.filter(|c| !c.tools.is_empty() && c.choice != ToolChoice::None);
    let formatted = wanted.is_some();
    let (shape, field) = match (wanted, calls) {
        (None, None) => return Ok(None),
        (Some(shape), None) => (shape, "response_format"),
        (otherwise, Some(conversation)) => match calls_shape(chat, conversation, otherwise)? {
            Some(shape) => (shape, if formatted { "response_format" } else { "tools" }),
            None => return Ok(None),
        },
    };
    match chat.shape(&shape, conversation.is_some()) {
        Ok(shape) => Ok(Some(shape)),
        // Where nobody promised that calls are valid, a schema that cannot be followed leaves them to the model.
        Err(_)
            if matches!(&shape, Shape::Calls(calls) if !calls.required && calls.otherwise.is_none())
                && !conversation.is_some_and(|c| c.strict) =>
        {
            Ok(None)
        }
        Err(error) => Err(Refusal::field(field, error.to_string())),
    }
}

/// The calls that a conversation's answer may hold.
fn calls_shape(chat: &ChatModel, conversation: &Chat, otherwise: Option<Shape>) -> Result<Option<Shape>, Refusal> {
    let Some(form) = chat.template()?.tool_form() else { return Ok(None) };
    let named = match &conversation.choice {
        ToolChoice::Named(name) => Some(name.as_str()),
        _ => None,
    };
    let tool = |tool: &Value| {
        let function = &tool["function"];
        (function["name"].as_str().unwrap_or_default().to_owned(), function["parameters"].clone())
    };
    let tools = conversation.tools.iter().map(tool).filter(|(name, _)| named.is_none_or(|n| n == name));
    Ok(Some(Shape::Calls(Calls {
        form,
        tools: tools.collect(),
        required: conversation.choice != ToolChoice::Auto,
        parallel: conversation.parallel && named.is_none(),
        otherwise: otherwise.map(Box::new),
    })))
}

/// The engine's request for an input.
fn request(
    chat: &ChatModel,
    input: &Input,
    aliased: Thinking,
    options: &TextOptions,
    replays: &Replays,
) -> Result<(Request, Transcriber), Refusal> {
    match input {
        Input::Text(text) => Ok(chat.complete(text, options)?),
        Input::Tokens(tokens) => Ok(chat.continue_tokens(tokens.clone(), options)?),
        Input::Gap { before, after } => Ok(chat.fill(before, after, options)?),
        Input::Chat(conversation) => {
            let template = chat.template()?;
            let asked = conversation.thinking;
            if asked == Thinking::On && !template.reasons() {
                return Err(Refusal::field("thinking", "this model does not reason"));
            }
            let offered = !conversation.tools.is_empty() && conversation.choice != ToolChoice::None;
            if offered && template.tool_form().is_none() {
                return Err(Refusal::field("tools", "this model's template knows no tools"));
            }
            let thinking = match (asked, aliased) {
                (Thinking::Default, aliased) if template.reasons() => aliased,
                (asked, _) => asked,
            };
            let render = RenderOptions {
                tools: if offered { conversation.tools.clone() } else { Vec::new() },
                thinking,
                replays: replays.of(conversation),
                now: Clock { unix_seconds: unix_now() as i64, utc_offset_seconds: 0 },
                ..RenderOptions::default()
            };
            Ok(chat.chat(&conversation.messages, &render, options)?)
        }
    }
}

/// The engine's end of a lane.
fn sink(
    index: usize,
    mut transcriber: Transcriber,
    lane: Lane,
    sender: UnboundedSender<(usize, Piece)>,
    replays: Replays,
) -> impl FnMut(Event<'_>) -> Flow + Send + 'static {
    let send = move |piece: Piece| {
        let waiting = lane.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        match sender.send((index, piece)) {
            Err(_) => Flow::Stop,
            Ok(()) if waiting >= HIGH => {
                lane.paused.store(true, Ordering::Relaxed);
                Flow::Pause
            }
            Ok(()) => Flow::Continue,
        }
    };
    // White space before the first word of reasoning and answer belongs to neither, if there is reasoning.
    let (mut reasoned, mut reasoning_begun, mut text_begun) = (false, false, false);
    move |event| {
        if let Event::Embedding(state) = event {
            return send(Piece::Embedding(state.to_vec()));
        }
        if let Event::Prompt { logprob, top, token, .. } = event {
            return send(Piece::Prompt(Scored { token, logprob, top: top.to_vec() }));
        }
        transcriber.event(event, |event| {
            let piece = match event {
                ChatEvent::Accepted { prompt, cached } => Piece::Accepted { prompt, cached },
                ChatEvent::Reasoning(text) => {
                    reasoned = true;
                    let text = if reasoning_begun { text } else { text.trim_start() };
                    reasoning_begun |= !text.is_empty();
                    Piece::Reasoning(text.to_owned())
                }
                ChatEvent::Text(text) => {
                    let text = if text_begun || !reasoned { text } else { text.trim_start() };
                    text_begun |= !text.is_empty();
                    Piece::Text(text.to_owned())
                }
                ChatEvent::TextWasReasoning => {
                    (reasoned, text_begun) = (true, false);
                    Piece::TextWasReasoning
                }
                ChatEvent::ToolCall { mut call, raw } => {
                    let id = format!("call_{}", random_id());
                    replays.keep(&id, raw);
                    call.id = Some(id);
                    Piece::Call(call)
                }
                // What is no call is shown as it is.
                ChatEvent::MalformedCall { raw, .. } => Piece::Text(raw.to_owned()),
                ChatEvent::Token { token, logprob, top } => Piece::Token(Scored { token, logprob, top: top.to_vec() }),
                ChatEvent::Done { ending, usage } => Piece::Done { ending, usage },
                ChatEvent::Failed(error) => Piece::Failed(error.into()),
            };
            match piece {
                Piece::Text(text) | Piece::Reasoning(text) if text.is_empty() => Flow::Continue,
                piece => send(piece),
            }
        })
    }
}

/// Tokens of an ask's prompt.
pub(crate) async fn count(app: &Arc<App>, ask: Ask) -> Result<usize, Refusal> {
    let (name, aliased) = app.models.resolve(&ask.model)?;
    let served = app.models.get(&name).await?;
    let replays = app.replays.clone();
    let counted = tokio::task::spawn_blocking(move || {
        let pictures = pictures(&served.chat, &ask.inputs)?;
        let options = TextOptions { pictures, ..ask.wish.options(&served.defaults, 0) };
        let prompts = ask
            .inputs
            .iter()
            .map(|input| Ok(request(&served.chat, input, aliased, &options, &replays)?.0.prompt.len()));
        prompts.sum::<Result<usize, Refusal>>()
    });
    counted.await.map_err(|_| Refusal::Failed("counting broke off".into()))?
}

/// Answers an ask in a dialect, whole or streamed.
pub(crate) async fn respond<E: Encode>(
    app: &Arc<App>,
    caller: &Caller,
    ask: Ask,
    encoder: impl FnOnce(Heading) -> E,
) -> Result<Response, Refusal> {
    let (stream, inert) = (ask.stream, ask.inert.join(", "));
    let (answer, heading) = Answer::start(app, ask, caller).await?;
    let encoder = encoder(heading);
    let mut response = if stream {
        streamed(answer, encoder)
    } else if E::PATIENT {
        patient(answer, encoder).await?
    } else {
        whole(answer, encoder).await?
    };
    if let Ok(inert) = HeaderValue::from_str(&inert)
        && !inert.is_empty()
    {
        response.headers_mut().insert("fathom-inert", inert);
    }
    Ok(response)
}

/// A JSON body.
pub(crate) fn json(value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn whole<E: Encode>(answer: Answer, mut encoder: E) -> Result<Response, Refusal> {
    let choices = answer.collect().await?;
    Ok(json(&encoder.whole(&choices)))
}

/// As [`whole`], with blank lines once it takes long: they keep proxies from hanging up, and JSON readers skip them.
async fn patient<E: Encode>(answer: Answer, mut encoder: E) -> Result<Response, Refusal> {
    let mut work = Box::pin(answer.collect());
    if let Ok(choices) = tokio::time::timeout(KEEP_ALIVE, &mut work).await {
        return Ok(json(&encoder.whole(&choices?)));
    }
    let body = futures_util::stream::unfold(Some((work, encoder)), |state| async {
        let (mut work, mut encoder) = state?;
        let (text, rest) = match tokio::time::timeout(KEEP_ALIVE, &mut work).await {
            Err(_) => ("\n".to_owned(), Some((work, encoder))),
            Ok(Ok(choices)) => (encoder.whole(&choices).to_string(), None),
            Ok(Err(refusal)) => {
                let mut out = String::new();
                encoder.broken(&refusal, &mut out);
                (out.trim_start_matches("data: ").to_owned(), None)
            }
        };
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(text)), rest))
    });
    let mut response = Response::new(Body::from_stream(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn streamed<E: Encode>(answer: Answer, encoder: E) -> Response {
    let choices = vec![Choice::default(); answer.lanes.len()];
    let state = Stream { answer, encoder, choices, opened: false, begun: false, closed: false };
    let body = futures_util::stream::unfold(state, |mut state| async {
        let text = state.more().await?;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(text)), state))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(E::STREAM));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx would collect the stream otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Whether computing has brought something.
fn begins(piece: &Piece) -> bool {
    !matches!(piece, Piece::Given(_) | Piece::Accepted { .. })
}

/// A streamed response under way.
struct Stream<E> {
    answer: Answer,
    encoder: E,
    choices: Vec<Choice>,
    opened: bool,
    begun: bool,
    closed: bool,
}

impl<E: Encode> Stream<E> {
    /// The next bytes, none at the end.
    async fn more(&mut self) -> Option<String> {
        if self.closed {
            return None;
        }
        let mut out = String::new();
        if !std::mem::replace(&mut self.opened, true) {
            self.encoder.open(&mut out);
        }
        while out.is_empty() {
            match tokio::time::timeout(KEEP_ALIVE, self.answer.next_in_time(self.begun)).await {
                Err(_) if E::ALIVE.is_empty() => {}
                Err(_) => out.push_str(E::ALIVE),
                Ok(None) => {
                    self.closed = true;
                    self.encoder.close(&self.choices, &mut out);
                    self.answer.note(&self.choices, None);
                    break;
                }
                Ok(Some((_, Piece::Failed(refusal)))) => {
                    self.closed = true;
                    self.encoder.broken(&refusal, &mut out);
                    self.answer.note(&self.choices, Some(&refusal));
                    break;
                }
                Ok(Some((index, piece))) => {
                    self.begun |= begins(&piece);
                    self.choices[index].take(&piece);
                    self.encoder.piece(index, &piece, &self.choices[index], &mut out);
                }
            }
        }
        Some(out)
    }
}
