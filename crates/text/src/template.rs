//! Chat templates: a conversation to the exact prompt text that the model was trained on.
//!
//! A template is a Jinja program out of a model file, so it is treated as hostile: it reaches nothing outside
//! its variables, and fuel, nesting, source size and output size are bounded. It is rendered exactly as shipped, with
//! the variables, whitespace rules and helper functions that Hugging Face transformers gives it.

use crate::clock::Clock;
use crate::error::{Result, TextError};
use crate::python::{self, RawJson};
use crate::reasoning::{THINK_CLOSE, THINK_OPEN, ends_in_open_think};
use crate::sandbox::Sandbox;
use crate::source::{NamedTemplate, TokenRef, VocabSource};
use crate::tokenizer::Tokenizer;
use crate::tools::{ToolCall, ToolForm};
use minijinja::value::Value;
use minijinja::{Error, ErrorKind};

/// The layout of DeepSeek-LLM, MoE-16B, V2, V2-Lite and Coder-V2, for files of those models that ship no template
/// (deepseek-ai/DeepSeek-V2, README).
pub const DEEPSEEK_LLM_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
    {% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}\
    {% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}\
    {% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}\
    {% else %}{{ raise_exception('this model knows the roles system, user and assistant') }}{% endif %}\
    {% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}";

/// Longest template source in bytes; published ones are below 20,000.
const MAX_SOURCE: usize = 1 << 17;
/// Longest rendering in bytes, several times what the longest context holds.
const MAX_OUTPUT: usize = 32 << 20;
/// Steps (and 64-byte units of data) that a rendering may take,
const FUEL: u64 = 200_000;
/// more for every message,
const FUEL_PER_MESSAGE: u64 = 2_000;
/// and more for every so many bytes of messages and tools. Published templates need about a tenth of all this.
const BYTES_PER_FUEL: u64 = 4;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions of whoever runs the service.
    System,
    /// Instructions of a developer, for templates that know the role.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A tool's answer.
    Tool,
}

impl Role {
    /// The name used in templates and APIs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One turn of a conversation, in no API's shape.
#[derive(Debug, Clone)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: Role,
    /// What is said; `None` where a message holds only tool calls.
    pub content: Option<String>,
    /// The reasoning before the content. Templates decide whether it is shown again.
    pub reasoning: Option<String>,
    /// The calls that the assistant made.
    pub tool_calls: Vec<ToolCall>,
    /// The call that a tool message answers.
    pub tool_call_id: Option<String>,
    /// The name of the tool or participant.
    pub name: Option<String>,
}

impl ChatMessage {
    /// A message of text.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: Some(content.into()),
            reasoning: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
        }
    }
}

/// Whether the model shall reason before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Thinking {
    /// As the template does by itself.
    #[default]
    Default,
    /// Reason: the prompt ends in an open think block.
    On,
    /// Answer at once: the prompt ends outside, after a closed (empty) think block.
    Off,
}

/// What a rendering depends on besides the messages.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions {
    /// Tool definitions as JSON Schema objects, in the form the template expects (OpenAI's).
    pub tools: Vec<serde_json::Value>,
    /// The thinking switch.
    pub thinking: Thinking,
    /// The moment that `strftime_now` shows.
    pub now: Clock,
    /// Render the conversation only, without the lead-in to the model's answer.
    pub history_only: bool,
    /// Further template variables.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The text; encode it with [`Tokenizer::encode_prompt`].
    pub text: String,
    /// Whether the model's answer starts inside a think block; give it to [`ReasoningParser::new`](crate::ReasoningParser::new).
    pub thinking: bool,
}

/// How a template wants the arguments of earlier tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arguments {
    Text,
    Object,
}

/// The chat templates of a model, compiled. `Send + Sync`.
#[derive(Debug)]
pub struct ChatTemplate {
    file: String,
    plain: Compiled,
    /// A separate template for conversations with tools, if the model ships one.
    with_tools: Option<Compiled>,
    variables: Vec<(&'static str, String)>,
}

#[derive(Debug)]
struct Compiled {
    sandbox: Sandbox,
    arguments: Arguments,
    tool_form: Option<ToolForm>,
    reasons: bool,
}

impl ChatTemplate {
    /// Compiles the templates of `source`; `tokenizer` supplies the text of special tokens.
    ///
    /// # Errors
    /// [`TextError::NoTemplate`] if there is none, [`TextError::TemplateSyntax`], [`TextError::TooLarge`].
    pub fn new(source: &VocabSource, tokenizer: &Tokenizer) -> Result<Self> {
        let named = |name: &str| source.templates.iter().find(|template| template.name == name);
        let no_template = || TextError::NoTemplate { file: source.name.clone() };
        let plain = named("default").or(source.templates.first()).ok_or_else(no_template)?;
        let mut template = Self {
            file: source.name.clone(),
            plain: Compiled::new(&source.name, plain)?,
            with_tools: named("tool_use").map(|t| Compiled::new(&source.name, t)).transpose()?,
            variables: Vec::new(),
        };
        for (name, token, id) in [
            ("bos_token", &source.bos, tokenizer.bos()),
            ("eos_token", &source.eos, tokenizer.end_tokens().first().copied()),
            ("pad_token", &source.pad, tokenizer.pad()),
        ] {
            let text = match (token, id) {
                (Some(TokenRef::Text(text)), _) => text.clone(),
                (_, Some(id)) => tokenizer.decode(&[id]),
                (_, None) => continue,
            };
            template.variables.push((name, text));
        }
        for compiled in std::iter::once(&mut template.plain).chain(&mut template.with_tools) {
            compiled.arguments = probe_arguments(compiled, &template.variables);
        }
        Ok(template)
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`TextError::TemplateRender`] when the template refuses it, [`TextError::TemplateLimit`] when it exceeds a bound.
    pub fn render(&self, messages: &[ChatMessage], options: &RenderOptions) -> Result<Prompt> {
        let compiled = self.compiled(!options.tools.is_empty());
        let mut text = compiled
            .render(messages, compiled.arguments, options, &self.variables)
            .map_err(|error| render_error(&self.file, &error))?;
        if text.len() > MAX_OUTPUT {
            return Err(TextError::TemplateLimit {
                file: self.file.clone(),
                limit: format!("{MAX_OUTPUT} bytes of output"),
            });
        }
        // After a tool's answer the model is in the middle of its turn.
        let begins_turn = messages.last().is_none_or(|message| message.role != Role::Tool);
        if !options.history_only && compiled.reasons && begins_turn {
            switch_thinking(&mut text, options.thinking);
        }
        let thinking = ends_in_open_think(&text);
        Ok(Prompt { text, thinking })
    }

    /// Whether the template knows think blocks, so that the thinking switch means something.
    pub fn reasons(&self) -> bool {
        self.plain.reasons
    }

    /// How the model writes tool calls, if its template knows them.
    pub fn tool_form(&self) -> Option<ToolForm> {
        self.compiled(true).tool_form
    }

    fn compiled(&self, tools: bool) -> &Compiled {
        self.with_tools.as_ref().filter(|_| tools).unwrap_or(&self.plain)
    }
}

/// Makes the end of a prompt agree with the switch, where the template's own variables did not:
/// R1's way is to open a block, or to close an empty one.
fn switch_thinking(text: &mut String, thinking: Thinking) {
    let open = ends_in_open_think(text);
    let closed = text.trim_end().ends_with(THINK_CLOSE);
    match thinking {
        Thinking::On if !open => {
            // A block that the template closed again is reopened.
            if closed {
                let body = text.trim_end().len() - THINK_CLOSE.len();
                text.truncate(text[..body].trim_end().len());
                if text.ends_with(THINK_OPEN) {
                    text.truncate(text.len() - THINK_OPEN.len());
                }
            }
            text.push_str(THINK_OPEN);
            text.push('\n');
        }
        Thinking::Off if open => {
            text.truncate(text.trim_end().len());
            text.push_str("\n\n");
            text.push_str(THINK_CLOSE);
            text.push_str("\n\n");
        }
        Thinking::Off if !closed => {
            text.extend([THINK_OPEN, "\n\n", THINK_CLOSE, "\n\n"]);
        }
        Thinking::On | Thinking::Off | Thinking::Default => {}
    }
}

impl Compiled {
    fn new(file: &str, template: &NamedTemplate) -> Result<Self> {
        let source = &template.source;
        if source.len() > MAX_SOURCE {
            return Err(TextError::TooLarge { what: "chat template in bytes", found: source.len(), limit: MAX_SOURCE });
        }
        let sandbox = Sandbox::new(source).map_err(|error| TextError::TemplateSyntax {
            file: file.to_owned(),
            line: error.line().unwrap_or(0),
            reason: describe(&error),
        })?;
        Ok(Self {
            sandbox,
            arguments: Arguments::Object,
            tool_form: ToolForm::of_template(source),
            reasons: source.contains(THINK_OPEN) || source.contains(THINK_CLOSE),
        })
    }

    fn render(
        &self,
        messages: &[ChatMessage],
        arguments: Arguments,
        options: &RenderOptions,
        variables: &[(&'static str, String)],
    ) -> std::result::Result<String, Error> {
        let mut context: Vec<(String, Value)> = Vec::new();
        context.extend(options.extra.iter().map(|(name, value)| (name.clone(), python::from_json(value))));
        context.extend(variables.iter().map(|(name, text)| ((*name).to_owned(), Value::from(text.as_str()))));
        let mut set = |name: &str, value: Value| context.push((name.to_owned(), value));
        set("messages", messages.iter().map(|message| message_value(message, arguments)).collect());
        set(
            "tools",
            if options.tools.is_empty() {
                Value::from(())
            } else {
                options.tools.iter().map(python::from_json).collect()
            },
        );
        set("documents", Value::from(()));
        set("add_generation_prompt", Value::from(!options.history_only));
        if options.thinking != Thinking::Default {
            let on = Value::from(options.thinking == Thinking::On);
            // V3.1's and Qwen3's name of the switch.
            set("thinking", on.clone());
            set("enable_thinking", on);
        }
        let now = options.now;
        set(
            "strftime_now",
            Value::from_function(move |format: &str| -> std::result::Result<String, Error> {
                let unknown = |directive| format!("strftime_now: unknown directive {directive}");
                now.strftime(format).map_err(|directive| Error::new(ErrorKind::InvalidOperation, unknown(directive)))
            }),
        );
        let tools = options.tools.iter().map(|tool| tool.to_string().len());
        let bytes: usize = messages.iter().map(size).chain(tools).sum();
        let fuel = FUEL + FUEL_PER_MESSAGE * messages.len() as u64 + bytes as u64 / BYTES_PER_FUEL;
        self.sandbox.render(Value::from_pairs(context), fuel)
    }
}

/// The message as transformers gives it to templates: absent fields are absent, not null, but for `content`.
fn message_value(message: &ChatMessage, arguments: Arguments) -> Value {
    let mut fields: Vec<(&str, Value)> = vec![("role", Value::from(message.role.as_str()))];
    let content = message.content.as_deref();
    // An empty text beside tool calls means no text; templates print a turn of its own for it otherwise.
    let content = content.filter(|content| !content.is_empty() || message.tool_calls.is_empty());
    fields.push(("content", content.map_or(Value::from(()), Value::from)));
    if let Some(reasoning) = &message.reasoning {
        fields.push(("reasoning_content", Value::from(reasoning.as_str())));
    }
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| tool_call_value(call, arguments));
        fields.push(("tool_calls", calls.collect()));
    }
    for (name, value) in [("tool_call_id", &message.tool_call_id), ("name", &message.name)] {
        if let Some(value) = value {
            fields.push((name, Value::from(value.as_str())));
        }
    }
    Value::from_pairs(fields)
}

fn tool_call_value(call: &ToolCall, arguments: Arguments) -> Value {
    let parsed = match arguments {
        Arguments::Text => None,
        Arguments::Object => {
            serde_json::from_str::<serde_json::Value>(&call.arguments).ok().filter(|value| value.is_object())
        }
    };
    let arguments = match parsed {
        None => Value::from(call.arguments.as_str()),
        Some(object) => Value::from_object(RawJson { text: call.arguments.clone(), value: python::from_json(&object) }),
    };
    let function = Value::from_pairs([("name", Value::from(call.name.as_str())), ("arguments", arguments)]);
    let mut fields = vec![("type", Value::from("function")), ("function", function)];
    if let Some(id) = &call.id {
        fields.push(("id", Value::from(id.as_str())));
    }
    Value::from_pairs(fields)
}

fn size(message: &ChatMessage) -> usize {
    let calls = message.tool_calls.iter().map(|call| call.arguments.len() + call.name.len());
    let texts = [&message.content, &message.reasoning].into_iter().flatten().map(String::len);
    calls.chain(texts).sum()
}

/// Finds out whether the template joins the arguments to its text (R1's) or writes them through `tojson` (V3.1's, Qwen's),
/// by rendering a call both ways. Published templates differ, and the wrong one fails or quotes the JSON twice.
fn probe_arguments(compiled: &Compiled, variables: &[(&'static str, String)]) -> Arguments {
    const ARGUMENTS: &str = r#"{"probe": 1}"#;
    let mut asks = ChatMessage::new(Role::Assistant, "");
    asks.tool_calls.push(ToolCall { id: Some("call_0".into()), name: "probe".into(), arguments: ARGUMENTS.into() });
    let messages = [ChatMessage::new(Role::User, "probe"), asks];
    let shows = |arguments| {
        let text = compiled.render(&messages, arguments, &RenderOptions::default(), variables);
        text.is_ok_and(|text| text.contains(ARGUMENTS))
    };
    if shows(Arguments::Text) && !shows(Arguments::Object) { Arguments::Text } else { Arguments::Object }
}

fn render_error(file: &str, error: &Error) -> TextError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TextError::TemplateLimit {
            file: file.to_owned(),
            limit: "steps and memory for a conversation of this size".into(),
        };
    }
    TextError::TemplateRender { file: file.to_owned(), line: error.line().unwrap_or(0), reason: describe(error) }
}

fn describe(error: &Error) -> String {
    match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    }
}
