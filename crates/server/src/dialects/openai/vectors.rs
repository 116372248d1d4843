//! Embeddings, and text to tokens and back.
//!
//! An embedding is the hidden state of the last token behind the final norm, scaled to length 1: what a model that was not
//! trained to embed has to offer.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use fathom_picture::base64;
use serde_json::{Value, json};

use crate::answer::{Answer, json};
use crate::ask::{Ask, Choice, Input, Wish, total};
use crate::dialects::body;
use crate::fields::{Field, Fields, Kind, Role};
use crate::guard::Caller;
use crate::models::Served;
use crate::{App, Refusal};

/// Fields of `/v1/embeddings`.
pub(in crate::dialects) const EMBEDDINGS: &[Field] = &[
    Field("model", Kind::Text, Role::Required),
    Field("input", Kind::Any, Role::Required),
    Field("encoding_format", Kind::Word(&["float", "base64"]), Role::Used),
    Field("dimensions", Kind::Any, Role::Refused(&[])),
    Field("user", Kind::Text, Role::Inert),
];

/// Fields of `/v1/tokenize`.
pub(in crate::dialects) const TOKENIZE: &[Field] = &[
    Field("model", Kind::Text, Role::Used),
    Field("prompt", Kind::Text, Role::Required),
    Field("add_special_tokens", Kind::Bool, Role::Used),
];

/// Fields of `/v1/detokenize`.
pub(in crate::dialects) const DETOKENIZE: &[Field] =
    &[Field("model", Kind::Text, Role::Used), Field("tokens", Kind::List(1 << 20), Role::Required)];

pub(in crate::dialects) async fn embeddings(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, Refusal> {
    let (value, caller) = body(&app, request).await?;
    let mut fields = Fields::read(EMBEDDINGS, value, "")?;
    let packed = fields.text("encoding_format") == Some("base64");
    let inputs = super::text::prompts(&mut fields, "input")?;
    let model = fields.take_text("model").unwrap_or_default();
    let (choices, model) = embed(&app, model, inputs, &caller).await?;
    let entry = |(index, choice): (usize, &Choice)| {
        let vector = normal(&choice.embedding);
        let embedding = if packed {
            base64(&vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()).into()
        } else {
            json!(vector)
        };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    };
    let data: Vec<Value> = choices.iter().enumerate().map(entry).collect();
    let tokens = total(&choices, 1).prompt;
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Ok(json(&json!({"object": "list", "data": data, "model": model, "usage": usage})))
}

/// The hidden states of inputs, and the model that computed them.
pub(in crate::dialects) async fn embed(
    app: &Arc<App>,
    model: String,
    inputs: Vec<Input>,
    caller: &Caller,
) -> Result<(Vec<Choice>, String), Refusal> {
    let wish = Wish { max_tokens: Some(0), embed: true, ..Wish::default() };
    let ask = Ask { model, inputs, wish, n: 1, stream: false, inert: Vec::new() };
    let (answer, heading) = Answer::start(app, ask, caller).await?;
    Ok((answer.collect().await?, heading.model))
}

/// The vector at length 1.
pub(in crate::dialects) fn normal(state: &[f32]) -> Vec<f32> {
    let length = state.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    state.iter().map(|&x| (f64::from(x) * scale) as f32).collect()
}

/// The model that a request names, else the first.
async fn named_or_first(app: &Arc<App>, fields: &mut Fields) -> Result<Arc<Served>, Refusal> {
    let name = fields.take_text("model").unwrap_or_else(|| app.models.first().to_owned());
    app.models.get(&app.models.resolve(&name)?.0).await
}

/// The first model's marks, as lm-evaluation-harness asks for them to tokenise here.
pub(in crate::dialects) async fn tokenizer_info(State(app): State<Arc<App>>) -> Result<Response, Refusal> {
    let served = app.models.get(&app.models.resolve(app.models.first())?.0).await?;
    let tokenizer = served.chat.tokenizer();
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_bytes(id)).map(|b| String::from_utf8_lossy(b));
    Ok(json(&json!({"bos_token": text(tokenizer.bos()), "eos_token": text(tokenizer.end_tokens().first().copied())})))
}

pub(in crate::dialects) async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, Refusal> {
    let (value, _) = body(&app, request).await?;
    let mut fields = Fields::read(TOKENIZE, value, "")?;
    let served = named_or_first(&app, &mut fields).await?;
    let text = fields.take_text("prompt").unwrap_or_default();
    let special = fields.bool("add_special_tokens").unwrap_or(true);
    let tokens = tokio::task::spawn_blocking(move || {
        let tokenizer = served.chat.tokenizer();
        let tokens = match special {
            true => tokenizer.encode_prompt(&text),
            false => tokenizer.encode(&text, fathom_text::Specials::Parse),
        };
        tokens.map(|tokens| (tokens, served.engine.info().context))
    });
    let broken = |_| Refusal::Failed("tokenising broke off".into());
    let (tokens, context) = tokens.await.map_err(broken)?.map_err(|e| Refusal::Malformed(e.to_string()))?;
    Ok(json(&json!({"count": tokens.len(), "max_model_len": context, "tokens": tokens})))
}

pub(in crate::dialects) async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, Refusal> {
    let (value, _) = body(&app, request).await?;
    let mut fields = Fields::read(DETOKENIZE, value, "")?;
    let served = named_or_first(&app, &mut fields).await?;
    let tokenizer = served.chat.tokenizer();
    let id = |v: &Value| {
        v.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|&id| (id as usize) < tokenizer.vocab_size())
    };
    let ids: Option<Vec<u32>> = fields.list("tokens").iter().map(id).collect();
    let Some(ids) = ids else { return fields.refuse("tokens", "holds token ids of this model only") };
    Ok(json(&json!({"prompt": tokenizer.decode(&ids)})))
}
