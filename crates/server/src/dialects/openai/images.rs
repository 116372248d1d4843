//! Pictures from words: `/v1/images/generations`, whole or streamed with partial pictures.
//!
//! Source: OpenAI's API reference (Images). The model draws at one size; another `size` is that picture resampled, and the answer says
//! both. `url` gives a `data:` URL, so that nothing has to be kept.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use fathom_engine::{DrawOptions, Event, Flow, Id, Sampling, Usage};
use fathom_picture::{Filter, Picture, base64, encode_png, png_data_url, resize};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::error;
use crate::answer::{self, sse};
use crate::dialects::body;
use crate::fields::{Field, Fields, Kind, Role};
use crate::guard::Caller;
use crate::models::Served;
use crate::quota::Share;
use crate::{App, Refusal, random_id, unix_now};

/// Fields of `/v1/images/generations`.
pub(in crate::dialects) const IMAGES: &[Field] = &[
    Field("model", Kind::Text, Role::Required),
    Field("prompt", Kind::Text, Role::Required),
    Field("n", Kind::Int(1, 10), Role::Used),
    Field("size", Kind::Text, Role::Used),
    Field("response_format", Kind::Word(&["b64_json", "url"]), Role::Used),
    Field("stream", Kind::Bool, Role::Used),
    Field("partial_images", Kind::Int(0, 3), Role::Used),
    Field("seed", Kind::Int(i64::MIN, i64::MAX), Role::Used),
    Field("guidance", Kind::Number(0.0, 100.0), Role::Used),
    Field("temperature", Kind::Number(0.0, 10.0), Role::Used),
    Field("top_k", Kind::Int(0, 1 << 24), Role::Used),
    Field("top_p", Kind::Number(0.0, 1.0), Role::Used),
    Field("user", Kind::Text, Role::Inert),
    Field("moderation", Kind::Text, Role::Inert),
    Field("quality", Kind::Any, Role::Refused(&["\"auto\"", "\"standard\""])),
    Field("background", Kind::Any, Role::Refused(&["\"auto\"", "\"opaque\""])),
    Field("output_format", Kind::Any, Role::Refused(&["\"png\""])),
    Field("output_compression", Kind::Any, Role::Refused(&["100"])),
    Field("style", Kind::Any, Role::Refused(&[])),
];

/// Sides that a picture may be resampled to.
const SIDES: std::ops::RangeInclusive<usize> = 16..=4096;

/// What is wanted.
struct Wish {
    model: String,
    prompt: String,
    options: DrawOptions,
    /// Side to resample to; none = as drawn.
    side: Option<usize>,
    url: bool,
    stream: bool,
    partial: usize,
}

/// What the engine's thread hands over.
enum Told {
    Picture(usize, Picture),
    Partial(usize, Picture),
    Done(Usage),
    Failed(Refusal),
}

/// A request under way; dropped early, as when a client leaves, it is cancelled before the next step.
struct Drawing {
    served: Arc<Served>,
    id: Id,
    receiver: UnboundedReceiver<Told>,
    wish: Wish,
    partials: usize,
    pictures: usize,
    over: bool,
    /// Of the key's quota.
    _share: Share,
}

impl Drop for Drawing {
    fn drop(&mut self) {
        if !self.over {
            self.served.engine.cancel(self.id);
        }
    }
}

pub(in crate::dialects) async fn generations(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, Refusal> {
    let (value, caller) = body(&app, request).await?;
    let (wish, inert) = parse(value)?;
    let drawing = Drawing::start(&app, wish, &caller).await?;
    let mut response = if drawing.wish.stream { streamed(drawing, caller.request) } else { whole(drawing).await? };
    if let Ok(inert) = HeaderValue::from_str(&inert.join(", "))
        && !inert.is_empty()
    {
        response.headers_mut().insert("fathom-inert", inert);
    }
    Ok(response)
}

fn parse(value: Value) -> Result<(Wish, Vec<String>), Refusal> {
    let mut fields = Fields::read(IMAGES, value, "")?;
    let side = match fields.text("size") {
        None | Some("auto") => None,
        Some(size) => {
            let side = size.split_once('x').filter(|(w, h)| w == h).and_then(|(w, _)| w.parse().ok());
            match side.filter(|side| SIDES.contains(side)) {
                Some(side) => Some(side),
                None => return fields.refuse("size", "is `auto` or a square such as `768x768`, at most 4096x4096"),
            }
        }
    };
    let stream = fields.bool("stream").unwrap_or(false);
    let partial = fields.count("partial_images").unwrap_or(0);
    if partial > 0 && !stream {
        return fields.refuse("partial_images", "needs `stream`");
    }
    let plain = DrawOptions::default();
    let options = DrawOptions {
        pictures: fields.count("n").unwrap_or(1),
        guidance: fields.number("guidance").unwrap_or(plain.guidance),
        sampling: Sampling {
            temperature: fields.number("temperature").unwrap_or(plain.sampling.temperature),
            top_k: fields.count("top_k").unwrap_or(0),
            top_p: fields.number("top_p").unwrap_or(1.0),
            ..plain.sampling
        },
        seed: fields.int("seed").map(|seed| seed as u64),
        ..plain
    };
    let wish = Wish {
        url: fields.text("response_format") == Some("url"),
        model: fields.take_text("model").unwrap_or_default(),
        prompt: fields.take_text("prompt").unwrap_or_default(),
        options,
        side,
        stream,
        partial,
    };
    Ok((wish, fields.inert))
}

impl Drawing {
    async fn start(app: &Arc<App>, wish: Wish, caller: &Caller) -> Result<Self, Refusal> {
        let share = app.quotas.take(caller.key, wish.options.pictures)?;
        let (name, _) = app.models.resolve(&wish.model)?;
        let served = app.models.get(&name).await?;
        let Some(info) = served.engine.info().pictures else {
            return Err(Refusal::field("model", format!("{name} does not draw")));
        };
        let preview = (wish.partial > 0).then(|| (info.steps() / (wish.partial + 1)).max(1));
        let options = DrawOptions { preview, ..wish.options.clone() };
        let (sender, receiver) = unbounded_channel();
        let (chat, prompt) = (served.chat.clone(), wish.prompt.clone());
        let request = tokio::task::spawn_blocking(move || chat.draw(&prompt, &options)).await;
        let request = request.map_err(|_| Refusal::Failed("preparing the prompt broke off".into()))??;
        let id = served.engine.submit(request, move |event: Event<'_>| {
            let told = match event {
                Event::Picture { index, picture, preview: false, .. } => Told::Picture(index, picture.clone()),
                Event::Picture { index, picture, preview: true, .. } => Told::Partial(index, picture.clone()),
                Event::Finished { usage, .. } => Told::Done(usage),
                Event::Failed(error) => Told::Failed(error.into()),
                _ => return if sender.is_closed() { Flow::Stop } else { Flow::Continue },
            };
            if sender.send(told).is_ok() { Flow::Continue } else { Flow::Stop }
        })?;
        Ok(Drawing { served, id, receiver, wish, partials: 0, pictures: 0, over: false, _share: share })
    }

    async fn next(&mut self) -> Told {
        let told = self.receiver.recv().await;
        let told = told.unwrap_or_else(|| Told::Failed(Refusal::Failed("the engine ended without a picture".into())));
        self.over = matches!(told, Told::Done(_) | Told::Failed(_));
        told
    }

    /// The file of a picture, and its size in words.
    fn file(&self, index: usize, picture: &Picture) -> Result<(Vec<u8>, String), Refusal> {
        let side = self.wish.side.filter(|side| *side != picture.width);
        let height = |side: usize| (picture.height * side / picture.width).max(1);
        let sized = side.map(|side| resize(picture, side, height(side), Filter::Lanczos));
        let sized = sized.as_ref().unwrap_or(picture);
        let size = format!("{}x{}", sized.width, sized.height);
        let (seed, guidance) = (self.wish.options.seed, self.wish.options.guidance);
        let settings = format!(
            "guidance {guidance}, temperature {}, seed {}, picture {} of {}, drawn at {}x{}",
            self.wish.options.sampling.temperature,
            seed.map_or("random".to_owned(), |s| s.to_string()),
            index + 1,
            self.wish.options.pictures,
            picture.width,
            picture.height,
        );
        let text = [
            ("Software", concat!("fathom ", env!("CARGO_PKG_VERSION"))),
            ("prompt", &self.wish.prompt),
            ("model", &self.served.offer.name),
            ("settings", &settings),
        ];
        let bytes = encode_png(sized, &text).map_err(|e| Refusal::Failed(e.to_string()))?;
        Ok((bytes, size))
    }
}

/// Counts in the shape of the images API.
fn counts(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt,
        "output_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "input_tokens_details": {"text_tokens": usage.prompt, "image_tokens": 0},
    })
}

async fn whole(mut drawing: Drawing) -> Result<Response, Refusal> {
    let created = unix_now();
    let (mut data, mut size) = (Vec::new(), String::new());
    loop {
        match drawing.next().await {
            Told::Partial(..) => {}
            Told::Picture(index, picture) => {
                let (png, named) = drawing.file(index, &picture)?;
                size = named;
                data.push(if drawing.wish.url {
                    json!({"url": png_data_url(&png)})
                } else {
                    json!({"b64_json": base64(&png)})
                });
            }
            Told::Done(usage) => {
                return Ok(answer::json(&json!({
                    "created": created, "data": data, "background": "opaque", "output_format": "png", "size": size,
                    "quality": "auto", "usage": counts(&usage),
                })));
            }
            Told::Failed(refusal) => return Err(refusal),
        }
    }
}

fn streamed(drawing: Drawing, request_id: String) -> Response {
    let created = unix_now();
    let state = Some((drawing, request_id, random_id(), Vec::<Value>::new()));
    let body = futures_util::stream::unfold(state, move |state| async move {
        let (mut drawing, request_id, id, mut waiting) = state?;
        let mut out = String::new();
        loop {
            match drawing.next().await {
                Told::Partial(index, picture) => {
                    let Ok((png, size)) = drawing.file(index, &picture) else { continue };
                    let event = json!({
                        "type": "image_generation.partial_image", "b64_json": base64(&png), "created_at": created,
                        "size": size, "quality": "auto", "background": "opaque", "output_format": "png",
                        "partial_image_index": drawing.partials,
                    });
                    drawing.partials += 1;
                    sse(&mut out, Some("image_generation.partial_image"), &event);
                }
                Told::Picture(index, picture) => {
                    let Ok((png, size)) = drawing.file(index, &picture) else { continue };
                    drawing.pictures += 1;
                    waiting.push(json!({
                        "type": "image_generation.completed", "id": format!("ig_{id}_{index}"), "b64_json": base64(&png),
                        "created_at": created, "size": size, "quality": "auto", "background": "opaque",
                        "output_format": "png",
                    }));
                    // The last one comes with the counts.
                    if drawing.pictures == drawing.wish.options.pictures {
                        continue;
                    }
                    let event = waiting.remove(0);
                    sse(&mut out, Some("image_generation.completed"), &event);
                }
                Told::Done(usage) => {
                    for mut event in waiting {
                        event["usage"] = counts(&usage);
                        sse(&mut out, Some("image_generation.completed"), &event);
                    }
                    return Some((Ok::<_, std::convert::Infallible>(Bytes::from(out)), None));
                }
                Told::Failed(refusal) => {
                    let (_, body) = error(&refusal, &request_id);
                    sse(&mut out, Some("error"), &body);
                    return Some((Ok(Bytes::from(out)), None));
                }
            }
            return Some((Ok(Bytes::from(out)), Some((drawing, request_id, id, waiting))));
        }
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
