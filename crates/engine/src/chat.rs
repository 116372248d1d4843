//! Between conversations and tokens: what the command line and every API dialect share.
//!
//! [`ChatModel`] turns a conversation (or plain text) into a [`Request`] for the engine and a [`Transcriber`] that turns the
//! engine's events back into reasoning, text and tool calls. [`ChatEvent`] is the neutral language of all dialects: no
//! wire format is known here.

use std::sync::{Arc, OnceLock};

use fathom_model::picture::{PictureSpec, prepare};
use fathom_picture::Picture;
use fathom_text::{
    ChatMessage, ChatTemplate, GrammarMaker, ReasoningEvent, ReasoningParser, RenderOptions, Role, Shape, Specials,
    StopMatcher, StreamDecoder, THINK_CLOSE, THINK_OPEN, TextError, Tokenizer, ToolCall, ToolEvent, ToolForm,
    ToolParser, VocabSource,
};

use crate::guide::Shaped;
use crate::request::{Drawing, Reasoning, Seen};
use crate::{Error, Event, Finish, Flow, Priority, Request, Result, Sampling, Sink, Usage};

/// What a caller may wish of an answer, besides the conversation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextOptions {
    /// Tokens to generate at most; none = until the context ends.
    pub max_tokens: Option<usize>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Seed of the random stream; none = another one every time.
    pub seed: Option<u64>,
    /// Texts that end the answer and are not shown. They are looked for in the answer, not in its reasoning.
    pub stop: Vec<String>,
    /// Reasoning tokens after which the answer is forced to begin; none = as many as the model likes.
    pub thinking_budget: Option<usize>,
    /// Log-probability of every generated token, and of this many best-ranked ones beside it.
    pub logprobs: Option<usize>,
    /// Go on behind the model's end-of-answer tokens.
    pub ignore_end: bool,
    /// Who goes first.
    pub priority: Priority,
    /// Separates the prefix caches of tenants.
    pub salt: Vec<u8>,
    /// Pictures of the conversation, one for each [`PICTURE_MARK`] in it.
    pub pictures: Vec<Arc<Picture>>,
    /// Text that the answer begins with, put behind the prompt. A closing think tag in it ends the reasoning.
    pub lead: String,
    /// What the answer must look like, from the end of its reasoning on; from [`ChatModel::shape`].
    pub shape: Option<Shaped>,
}

/// What a caller may wish of pictures, besides their description.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawOptions {
    /// How many.
    pub pictures: usize,
    /// How far the guidance leads.
    pub guidance: f32,
    /// How ids are drawn.
    pub sampling: Sampling,
    /// Seed of the random streams; none = another one every time.
    pub seed: Option<u64>,
    /// Steps between previews; none = no previews.
    pub preview: Option<usize>,
    /// Who goes first.
    pub priority: Priority,
}

impl Default for DrawOptions {
    /// As the model's makers draw (`generation_inference.py`).
    fn default() -> Self {
        DrawOptions {
            pictures: 1,
            guidance: 5.0,
            sampling: Sampling { temperature: 1.0, ..Sampling::default() },
            seed: None,
            preview: None,
            priority: Priority::default(),
        }
    }
}

/// The token after which a picture follows.
const BEGIN_PICTURE: &str = "<begin_of_image>";

/// The token behind a picture.
const END_PICTURE: &str = "<end_of_image>";

/// What stands for a picture in the text of a conversation.
pub const PICTURE_MARK: &str = "<image_placeholder>";

/// The text of a message with so many pictures before it, as the model's makers write it.
pub fn with_pictures(pictures: usize, text: &str) -> String {
    format!("{}{text}", format!("{PICTURE_MARK}\n").repeat(pictures))
}

/// What comes out of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum ChatEvent<'a> {
    /// Its computation begins.
    Accepted {
        /// Tokens of the prompt.
        prompt: usize,
        /// How many of them the prefix cache holds.
        cached: usize,
    },
    /// More of the reasoning.
    Reasoning(&'a str),
    /// More of the answer.
    Text(&'a str),
    /// The text so far turned out to be reasoning (a closing tag without an opening one).
    TextWasReasoning,
    /// A tool call, complete.
    ToolCall {
        /// The call.
        call: ToolCall,
        /// Its exact text, for replaying it in a later prompt.
        raw: &'a str,
    },
    /// Something between tool tags that is no call.
    MalformedCall {
        /// Its text.
        raw: &'a str,
        /// What is wrong with it.
        reason: String,
    },
    /// A token's log-probability, if asked for. Its text follows as soon as it is a whole character.
    Token {
        /// The token.
        token: u32,
        /// Log-probability under the unmodified logits.
        logprob: f32,
        /// The best-ranked tokens at its place, best first.
        top: &'a [(u32, f32)],
    },
    /// The end.
    Done {
        /// Why.
        ending: Ending,
        /// What it took.
        usage: Usage,
    },
    /// The end, because something broke.
    Failed(Error),
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The model ended it.
    Stop,
    /// This stop string was about to appear.
    StopString(String),
    /// As many tokens as asked for, or the end of the context.
    Length,
    /// It was cancelled.
    Cancelled,
}

/// The text side of a model: tokenizer, template, reasoning marks. Cheap to clone.
#[derive(Clone)]
pub struct ChatModel {
    tokenizer: Arc<Tokenizer>,
    template: std::result::Result<Arc<ChatTemplate>, TextError>,
    marks: Option<Marks>,
    /// Rows that a picture takes in a prompt, if the model sees.
    pictures: Option<Arc<PictureSpec>>,
    /// Made when the first answer must have a shape: it takes a moment and some memory.
    grammars: Arc<OnceLock<std::result::Result<GrammarMaker, TextError>>>,
}

/// The think tags as tokens, where each is one.
#[derive(Clone, Debug)]
struct Marks {
    open: u32,
    close: u32,
    closing: Vec<u32>,
}

fn text_error(place: &'static str) -> impl Fn(TextError) -> Error {
    move |error| Error::Text { place, why: error.to_string() }
}

/// The refusal of pictures by a model that does not see.
fn blind(pictures: usize) -> Error {
    Error::Option { name: "pictures", found: pictures.to_string(), expected: "none: this model does not see" }
}

impl ChatModel {
    /// Builds tokenizer and template. A model without a (working) template can still complete plain text.
    ///
    /// # Errors
    /// If the vocabulary is broken.
    pub fn new(source: &VocabSource) -> Result<Self> {
        let tokenizer = Tokenizer::new(source).map_err(text_error("tokenizer"))?;
        let template = ChatTemplate::new(source, &tokenizer).map(Arc::new);
        let marks = match (tokenizer.id_of(THINK_OPEN), tokenizer.id_of(THINK_CLOSE)) {
            (Some(open), Some(close)) => {
                // As R1 itself goes from reasoning to the answer.
                let text = format!("\n{THINK_CLOSE}\n\n");
                let closing = tokenizer.encode(&text, Specials::Parse).map_err(text_error("closing think tag"))?;
                Some(Marks { open, close, closing })
            }
            _ => None,
        };
        Ok(ChatModel { tokenizer: Arc::new(tokenizer), template, marks, pictures: None, grammars: Arc::default() })
    }

    /// The same for a model that sees pictures as described.
    pub fn seeing(mut self, pictures: Option<&PictureSpec>) -> Self {
        self.pictures = pictures.cloned().map(Arc::new);
        self
    }

    /// A picture at the size at which the model sees it, so that what waits is small whatever was sent.
    ///
    /// # Errors
    /// If the model does not see.
    pub fn look(&self, picture: &Picture) -> Result<Arc<Picture>> {
        match &self.pictures {
            Some(spec) => Ok(Arc::new(prepare(picture, spec))),
            None => Err(blind(1)),
        }
    }

    /// Whether the model sees pictures.
    pub fn sees(&self) -> bool {
        self.pictures.is_some()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template.
    ///
    /// # Errors
    /// If the model has none, or a broken one.
    pub fn template(&self) -> Result<&ChatTemplate> {
        match &self.template {
            Ok(template) => Ok(template),
            Err(error) => Err(text_error("chat template")(error.clone())),
        }
    }

    /// Compiles a shape that answers of a chat (else, of plain text) are to have.
    ///
    /// # Errors
    /// Saying what of it cannot be followed.
    pub fn shape(&self, shape: &Shape, chat: bool) -> Result<Shaped> {
        let maker = self.grammars.get_or_init(|| GrammarMaker::new(Arc::clone(&self.tokenizer)));
        let reasons = chat && self.template().is_ok_and(ChatTemplate::reasons);
        let compiled = maker.as_ref().map_err(Clone::clone).and_then(|maker| maker.compile(shape, reasons));
        Ok(Shaped(Arc::new(compiled.map_err(text_error("shape of the answer"))?)))
    }

    /// The request that lets the model take the next turn of a conversation.
    ///
    /// # Errors
    /// If there is no template, if it refuses the conversation, or if a thinking budget is asked of a model without think
    /// tokens.
    pub fn chat(
        &self,
        messages: &[ChatMessage],
        render: &RenderOptions,
        options: &TextOptions,
    ) -> Result<(Request, Transcriber)> {
        let template = self.template()?;
        let mut prompt = template.render(messages, render).map_err(text_error("chat template"))?;
        prompt.text.push_str(&options.lead);
        prompt.thinking &= !options.lead.contains(THINK_CLOSE);
        let tokens = self.tokenizer.encode_prompt(&prompt.text).map_err(text_error("prompt"))?;
        let (tokens, seen) = self.place_pictures(tokens, &options.pictures)?;
        let mut request = Request { seen, ..self.request(tokens, options) };
        let reasons = template.reasons();
        request.reasoning = self.marks.as_ref().filter(|_| reasons).map(|marks| Reasoning {
            open: marks.open,
            close: marks.close,
            inside: prompt.thinking,
            may_open: options.lead.is_empty() && !prompt.thinking && !prompt.text.trim_end().ends_with(THINK_CLOSE),
            budget: options.thinking_budget,
            closing: marks.closing.clone(),
        });
        if options.thinking_budget.is_some() && request.reasoning.is_none() {
            return Err(Error::Option {
                name: "thinking budget",
                found: "set, but this model does not mark its reasoning by tokens of its own".to_owned(),
                expected: "none",
            });
        }
        if options.shape.is_some() && reasons && request.reasoning.is_none() {
            return Err(Error::Option {
                name: "shape of the answer",
                found: "set, but this model does not mark its reasoning by tokens of its own".to_owned(),
                expected: "none: where the reasoning ends could not be told",
            });
        }
        let reasoning = reasons.then(|| ReasoningParser::new(prompt.thinking));
        let tools = template.tool_form().filter(|_| !render.tools.is_empty());
        Ok((request, self.transcriber(options, reasoning, tools)))
    }

    /// The request that continues a text as it stands. Everything that comes out is text.
    ///
    /// # Errors
    /// If the text cannot be encoded, or if a thinking budget is asked for.
    pub fn complete(&self, text: &str, options: &TextOptions) -> Result<(Request, Transcriber)> {
        let tokens = self.tokenizer.encode_prompt(text).map_err(text_error("prompt"))?;
        self.continue_tokens(tokens, options)
    }

    /// The request that continues tokens as they stand. Everything that comes out is text.
    ///
    /// # Errors
    /// If a thinking budget is asked for.
    pub fn continue_tokens(&self, tokens: Vec<u32>, options: &TextOptions) -> Result<(Request, Transcriber)> {
        if options.thinking_budget.is_some() {
            let found = "set, but plain text has no reasoning".to_owned();
            return Err(Error::Option { name: "thinking budget", found, expected: "none" });
        }
        Ok((self.request(tokens, options), self.transcriber(options, None, None)))
    }

    /// The request that writes what stands between two texts.
    ///
    /// # Errors
    /// If the model's vocabulary has no marks for a gap.
    pub fn fill(&self, before: &str, after: &str, options: &TextOptions) -> Result<(Request, Transcriber)> {
        let tokens = self.tokenizer.encode_gap(before, after).map_err(text_error("gap to fill"))?;
        self.continue_tokens(tokens, options)
    }

    /// Makes room for pictures: a mark in the prompt becomes the token that begins a picture, placeholders for its rows, and the
    /// token that ends it.
    fn place_pictures(&self, tokens: Vec<u32>, pictures: &[Arc<Picture>]) -> Result<(Vec<u32>, Vec<Seen>)> {
        let id = |token| self.tokenizer.id_of(token);
        let refuse = |found, expected| Err(Error::Option { name: "pictures", found, expected });
        let (Some(spec), Some(mark)) = (&self.pictures, id(PICTURE_MARK)) else {
            return match pictures.len() {
                0 => Ok((tokens, Vec::new())),
                n => Err(blind(n)),
            };
        };
        let rows = spec.rows();
        let marks = tokens.iter().filter(|&&t| t == mark).count();
        if marks != pictures.len() {
            let found = format!("{}, where the conversation has {marks} times {PICTURE_MARK}", pictures.len());
            return refuse(found, "one picture for each");
        }
        let (mut placed, mut seen) = (Vec::with_capacity(tokens.len() + marks * (rows + 1)), Vec::new());
        let mut pictures = pictures.iter();
        for token in tokens {
            match (token == mark).then(|| pictures.next()).flatten() {
                None => placed.push(token),
                Some(picture) => {
                    placed.extend(id(BEGIN_PICTURE));
                    seen.push(Seen { at: placed.len(), picture: Arc::clone(picture) });
                    placed.resize(placed.len() + rows, mark);
                    placed.extend(id(END_PICTURE));
                }
            }
        }
        Ok((placed, seen))
    }

    /// The request for pictures of what `words` describe.
    ///
    /// # Errors
    /// If there is no template, or the tokenizer lacks the tokens that drawing needs.
    pub fn draw(&self, words: &str, options: &DrawOptions) -> Result<Request> {
        let lacks = |what: &str| Error::Text { place: "tokenizer", why: format!("lacks {what}, so it cannot draw") };
        let begin = self.tokenizer.id_of(BEGIN_PICTURE).ok_or_else(|| lacks(BEGIN_PICTURE))?;
        let pad = self.tokenizer.pad().ok_or_else(|| lacks("a padding token"))?;
        // An empty system message stands for none; without it, some templates put in a default.
        let messages = [ChatMessage::new(Role::System, ""), ChatMessage::new(Role::User, words)];
        let rendered = self.template()?.render(&messages, &RenderOptions::default()).map_err(text_error("template"))?;
        let mut prompt = self.tokenizer.encode_prompt(&rendered.text).map_err(text_error("prompt"))?;
        prompt.push(begin);
        let mut unconditional = prompt.clone();
        let last = unconditional.len() - 1;
        unconditional[1..last].fill(pad);
        Ok(Request {
            sampling: options.sampling.clone(),
            seed: options.seed,
            priority: options.priority,
            drawing: Some(Drawing {
                unconditional,
                pictures: options.pictures,
                guidance: options.guidance,
                preview: options.preview,
            }),
            ..Request::new(prompt)
        })
    }

    fn request(&self, prompt: Vec<u32>, options: &TextOptions) -> Request {
        Request {
            max_tokens: options.max_tokens,
            sampling: options.sampling.clone(),
            seed: options.seed,
            stop_tokens: if options.ignore_end { Vec::new() } else { self.tokenizer.end_tokens().to_vec() },
            logprobs: options.logprobs,
            priority: options.priority,
            salt: options.salt.clone(),
            shape: options.shape.clone(),
            ..Request::new(prompt)
        }
    }

    fn transcriber(
        &self,
        options: &TextOptions,
        reasoning: Option<ReasoningParser>,
        tools: Option<ToolForm>,
    ) -> Transcriber {
        Transcriber {
            tokenizer: Arc::clone(&self.tokenizer),
            marks: self.marks.as_ref().map(|marks| [marks.open, marks.close]),
            decoder: StreamDecoder::default(),
            text: String::new(),
            stages: Stages {
                reasoning,
                tools: tools.map(ToolParser::new),
                stop: StopMatcher::new(options.stop.clone()),
                safe: String::new(),
                stopped: None,
            },
        }
    }
}

/// Turns the events of one request into [`ChatEvent`]s.
///
/// Bytes of tokens → characters → reasoning or answer → tool calls → stop strings.
pub struct Transcriber {
    tokenizer: Arc<Tokenizer>,
    marks: Option<[u32; 2]>,
    decoder: StreamDecoder,
    text: String,
    stages: Stages,
}

/// The parsers behind the decoder.
struct Stages {
    reasoning: Option<ReasoningParser>,
    tools: Option<ToolParser>,
    stop: StopMatcher,
    safe: String,
    /// The stop string that ended the answer.
    stopped: Option<String>,
}

impl Transcriber {
    /// Takes an event of the engine and hands on what it completes. Returns what the engine is to be told.
    pub fn event(&mut self, event: Event<'_>, mut emit: impl FnMut(ChatEvent<'_>) -> Flow) -> Flow {
        let mut flow = Flow::Continue;
        // Of several answers the strongest counts: stop, then pause.
        let mut hand_on = |event: ChatEvent<'_>| match (emit(event), flow) {
            (Flow::Stop, _) | (_, Flow::Stop) => flow = Flow::Stop,
            (Flow::Pause, _) | (_, Flow::Pause) => flow = Flow::Pause,
            (Flow::Continue, Flow::Continue) => {}
        };
        match event {
            Event::Accepted { prompt, cached } => hand_on(ChatEvent::Accepted { prompt, cached }),
            Event::Prompt { .. } | Event::Embedding(_) | Event::Drawn { .. } | Event::Picture { .. } => {}
            Event::Token { token, stop, logprob, top } => {
                if let Some(logprob) = logprob {
                    hand_on(ChatEvent::Token { token, logprob, top });
                }
                if !stop && self.shown(token) {
                    self.text.clear();
                    let bytes = self.tokenizer.token_bytes(token).unwrap_or_default();
                    self.decoder.push(bytes, &mut self.text);
                    self.stages.push(&self.text, &mut hand_on);
                }
            }
            Event::Finished { reason, usage } => {
                self.text.clear();
                self.decoder.finish(&mut self.text);
                self.stages.push(&self.text, &mut hand_on);
                self.stages.finish(&mut hand_on);
                let ending = match (self.stages.stopped.take(), reason) {
                    (Some(stop), _) => Ending::StopString(stop),
                    (None, Finish::Stop) => Ending::Stop,
                    (None, Finish::Length) => Ending::Length,
                    (None, Finish::Cancelled) => Ending::Cancelled,
                };
                hand_on(ChatEvent::Done { ending, usage });
            }
            Event::Failed(error) => hand_on(ChatEvent::Failed(error)),
        }
        if self.stages.stopped.is_some() { Flow::Stop } else { flow }
    }

    /// A sink for the engine that hands everything on to `emit`.
    pub fn sink(mut self, mut emit: impl FnMut(ChatEvent<'_>) -> Flow + Send + 'static) -> impl Sink + 'static {
        move |event: Event<'_>| self.event(event, &mut emit)
    }

    /// Control tokens are not text, but for those that the parsers look for.
    fn shown(&self, token: u32) -> bool {
        let parsed = self.stages.tools.is_some()
            || self.stages.reasoning.is_some() && self.marks.is_some_and(|marks| marks.contains(&token));
        parsed || !self.tokenizer.is_special(token)
    }
}

impl Stages {
    fn push(&mut self, text: &str, emit: &mut dyn FnMut(ChatEvent<'_>)) {
        if text.is_empty() || self.stopped.is_some() {
            return;
        }
        match self.reasoning.take() {
            Some(mut reasoning) => {
                reasoning.push(text, |event| self.classified(event, emit));
                self.reasoning = Some(reasoning);
            }
            None => self.answer(text, emit),
        }
    }

    fn finish(&mut self, emit: &mut dyn FnMut(ChatEvent<'_>)) {
        if let Some(mut reasoning) = self.reasoning.take() {
            reasoning.finish(|event| self.classified(event, emit));
        }
        if let Some(mut tools) = self.tools.take() {
            tools.finish(|event| self.tool(event, emit));
        }
        if self.stopped.is_none() {
            self.safe.clear();
            self.stop.finish(&mut self.safe);
            if !self.safe.is_empty() {
                emit(ChatEvent::Text(&self.safe));
            }
        }
    }

    fn classified(&mut self, event: ReasoningEvent<'_>, emit: &mut dyn FnMut(ChatEvent<'_>)) {
        match event {
            _ if self.stopped.is_some() => {}
            ReasoningEvent::Reasoning(text) => emit(ChatEvent::Reasoning(text)),
            ReasoningEvent::Text(text) => self.answer(text, emit),
            ReasoningEvent::TextWasReasoning => emit(ChatEvent::TextWasReasoning),
        }
    }

    fn answer(&mut self, text: &str, emit: &mut dyn FnMut(ChatEvent<'_>)) {
        match self.tools.take() {
            Some(mut tools) => {
                tools.push(text, |event| self.tool(event, emit));
                self.tools = Some(tools);
            }
            None => self.visible(text, emit),
        }
    }

    fn tool(&mut self, event: ToolEvent<'_>, emit: &mut dyn FnMut(ChatEvent<'_>)) {
        match event {
            _ if self.stopped.is_some() => {}
            ToolEvent::Text(text) => self.visible(text, emit),
            ToolEvent::Call { call, raw } => emit(ChatEvent::ToolCall { call, raw }),
            ToolEvent::Malformed { raw, reason } => emit(ChatEvent::MalformedCall { raw, reason }),
        }
    }

    fn visible(&mut self, text: &str, emit: &mut dyn FnMut(ChatEvent<'_>)) {
        self.safe.clear();
        let hit = self.stop.push(text, &mut self.safe);
        if !self.safe.is_empty() {
            emit(ChatEvent::Text(&self.safe));
        }
        self.stopped = hit.map(|index| self.stop.stops()[index].clone());
    }
}
