//! The environment that chat templates run in: nothing but their variables, and a budget for all they do.
//!
//! The engine's fuel pays for steps and data, but has holes (minijinja 3.1): lists joined or sliced lazily, nested values whose
//! size doubles at every level, objects that contain themselves, constants computed while compiling, padding. Whatever walks
//! such a value runs for ever or overflows the stack. So the compiled steps that build values are exchanged for filters of ours
//! that pay for the whole value and bound its depth; namespaces, the only things that can change, may not be
//! values; and what still takes too long is left behind: the caller gets an error, the template is not run again.

use crate::python;
use minijinja::functions;
use minijinja::machinery::{CompiledTemplate, Instruction, TemplateConfig, Token, eval, make_string_output, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// Longest time a rendering may take. Published templates take milliseconds, a book-long conversation less than a second.
const MAX_TIME: Duration = Duration::from_secs(10);
/// Nested statements, macros and includes.
const MAX_RECURSION: usize = 150;
/// Deepest nesting of lists and maps that a template may build.
const MAX_DEPTH: usize = 100;
/// Items of a value that one fuel pays for when the value is built.
const ITEMS_PER_FUEL: u64 = 8;
/// Widest padding that a format string may ask for.
const MAX_WIDTH_DIGITS: usize = 4;
/// Most tokens in one `{{ }}` or `{% %}`: bounds how deep expressions nest. Published templates have below 100.
const MAX_TOKENS: usize = 1000;
/// The branches of an `if` nest too, and have at least 10 bytes of source.
const STACK_PER_BYTE: usize = 512;
/// Stack for everything else.
const MIN_STACK: usize = 4 << 20;
/// Filters can nest values too, a level for at least 5 fuel; writing or freeing it takes below 1000 bytes of stack.
const STACK_PER_FUEL: usize = 256;
/// Our steps. No template can name them: they are no identifiers.
const ADD: &str = "+";
const MUL: &str = "*";
const SLICE: &str = "[::]";
const LIST: &str = "[]";
const TUPLE: &str = "(,)";
const MAP: &str = "{}";

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// An environment as transformers sets it up, without loaders.
pub(crate) fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_debug(false);
    env.set_recursion_limit(MAX_RECURSION);
    env.set_unknown_method_callback(method);
    env.set_formatter(|out, state, value| out.write_str(&python::str(state, value)?).map_err(Error::from));
    env.add_filter(ADD, add);
    env.add_filter(MUL, mul);
    env.add_filter(SLICE, slice);
    env.add_filter(LIST, |state: &State, items: Rest<Value>| paid(state, Value::from(items.0)));
    env.add_filter(TUPLE, |state: &State, items: Rest<Value>| paid(state, Value::from(Tuple::from(items.0))));
    env.add_filter(MAP, |state: &State, items: Rest<Value>| {
        paid(state, Value::from_pairs(items.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()))))
    });
    env.add_function("dict", |state: &State, value: Option<Value>, more: Kwargs| {
        paid(state, functions::dict(value, more)?)
    });
    // Lazy and free as well, and no filters of Jinja2.
    env.remove_filter("chain");
    env.remove_filter("zip");
    env.remove_global("debug");
    env.add_filter("tojson", python::tojson);
    env.add_filter("string", |state: &State, value: Value| python::str(state, &value));
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> { Err(invalid(message)) });
    env
}

/// A template that compiles, and whether it has ever taken too long.
#[derive(Debug)]
pub(crate) struct Sandbox {
    env: Environment<'static>,
    source: Arc<str>,
    too_slow: AtomicBool,
}

impl Sandbox {
    /// Checks that `source` compiles.
    pub(crate) fn new(source: &str) -> Result<Self, Error> {
        let sandbox = Self { env: environment(), source: source.into(), too_slow: AtomicBool::new(false) };
        let source = sandbox.source.clone();
        sandbox.on_thread(0, move || compile(&source).map(drop))?;
        Ok(sandbox)
    }

    /// Renders with the variables of `context`, spending at most `fuel`.
    pub(crate) fn render(&self, context: Value, fuel: u64) -> Result<String, Error> {
        let (mut env, source) = (self.env.clone(), self.source.clone());
        env.set_fuel(Some(fuel));
        self.on_thread(fuel, move || run(&env, &source, context))
    }

    /// Runs `work` on a thread of its own, whose stack bears statements as deep as the source and values as deep as `fuel`
    /// can nest them: the engine walks both by recursion. Stack never touched costs nothing. Work that takes too long is left behind.
    fn on_thread<T: Send + 'static>(
        &self,
        fuel: u64,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let too_slow = || Error::new(ErrorKind::OutOfFuel, format!("{MAX_TIME:?}"));
        if self.too_slow.load(Ordering::Relaxed) {
            return Err(too_slow());
        }
        let stack_bytes = MIN_STACK + self.source.len() * STACK_PER_BYTE + fuel as usize * STACK_PER_FUEL;
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::Builder::new().name("chat template".into()).stack_size(stack_bytes);
        // Nobody may be waiting any more; then the result is of no use.
        let spawned = thread.spawn(move || sender.send(work()).unwrap_or_default());
        let thread = spawned.map_err(|error| invalid(format!("no thread to render on: {error}")))?;
        match receiver.recv_timeout(MAX_TIME) {
            Ok(result) => {
                // Only its thread-locals are left to free; nothing of it outlives this call.
                thread.join().map_err(|_| invalid("the template engine panicked"))?;
                result
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                self.too_slow.store(true, Ordering::Relaxed);
                Err(too_slow())
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(invalid("the template engine panicked")),
        }
    }
}

/// Compiles `source` with the white-space rules of chat templates.
fn compile(source: &str) -> Result<CompiledTemplate<'_>, Error> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    check_tokens(source, &syntax)?;
    let config = TemplateConfig { syntax_config: syntax, default_auto_escape: Arc::new(|_| AutoEscape::None) };
    let mut template = CompiledTemplate::new("chat_template", source, &config)?;
    for code in std::iter::once(&mut template.instructions).chain(template.blocks.values_mut()) {
        for index in 0.. {
            let Some(step) = code.get_mut(index) else { break };
            if let Some(metered) = metered(step) {
                *step = metered;
            }
        }
    }
    Ok(template)
}

/// What takes the place of a step that builds a value.
fn metered(step: &Instruction<'_>) -> Option<Instruction<'static>> {
    let (filter, count) = match *step {
        Instruction::Add => (ADD, Some(2)),
        Instruction::Mul => (MUL, Some(2)),
        Instruction::Slice => (SLICE, Some(4)),
        Instruction::BuildList(count) => (LIST, count),
        Instruction::BuildTuple(count) => (TUPLE, count),
        Instruction::BuildMap(pairs) => (MAP, Some(2 * pairs)),
        _ => return None,
    };
    let count = count.map(|count| u16::try_from(count).expect("no more operands than tokens in a tag"));
    // The last field numbers cached look-ups; the largest number means none.
    Some(Instruction::ApplyFilter(filter, count, u8::MAX))
}

/// Refuses, by the look of the source, what the budget cannot bound: expressions so long that the compiler's recursion is
/// deep; literal lists times a number, which it multiplies out unpaid; and namespaces used as values, which could then contain
/// themselves (templates make them by `{% set x = namespace(..) %}` and use `x.field`).
fn check_tokens(source: &str, syntax: &SyntaxConfig) -> Result<(), Error> {
    use Token::{Assign, BlockStart, BracketClose, BracketOpen, Dot, Ident, Mul, ParenClose, ParenOpen, VariableStart};
    let tokens: Vec<_> = tokenize(source, false, syntax.clone()).collect::<Result<_, Error>>()?;
    let token = |index: usize| tokens.get(index).map(|(token, _)| token);
    let makes_namespace = |at: usize| match (at.checked_sub(4).and_then(token), token(at + 1)) {
        (Some(BlockStart), Some(ParenOpen)) => match (token(at - 3), token(at - 2), token(at - 1)) {
            (Some(Ident("set")), Some(Ident(name)), Some(Assign)) => Some(*name),
            _ => None,
        },
        _ => None,
    };
    let is_namespace_call = |at: &usize| matches!(token(*at), Some(Ident("namespace")));
    let namespaces: HashSet<&str> = (0..tokens.len()).filter(is_namespace_call).filter_map(makes_namespace).collect();
    let mut in_tag = 0;
    for (at, (this, span)) in tokens.iter().enumerate() {
        in_tag = if matches!(this, BlockStart | VariableStart) { 0 } else { in_tag + 1 };
        let (before, after) = (at.checked_sub(1).and_then(token), token(at + 1));
        let is_value = !matches!(before, Some(Dot)) && !matches!(after, Some(Dot | BracketOpen | Assign));
        let fault = match (before, this) {
            _ if in_tag > MAX_TOKENS => format!("more than {MAX_TOKENS} tokens in one tag"),
            (Some(BracketClose | ParenClose), Mul) | (Some(Mul), BracketOpen | ParenOpen) => {
                "`*` next to a bracket is refused; name the operand first".to_owned()
            }
            (_, Ident("namespace")) if makes_namespace(at).is_none() && !matches!(before, Some(Dot)) => {
                "`namespace` is allowed in `{% set name = namespace(..) %}` only".to_owned()
            }
            (_, Ident(name)) if namespaces.contains(name) && is_value => {
                format!("namespace `{name}` is used as a value; only its fields may be")
            }
            _ => continue,
        };
        let message = format!("line {}: {fault}", span.start_line);
        return Err(Error::new(ErrorKind::SyntaxError, message));
    }
    Ok(())
}

fn run(env: &Environment<'static>, source: &str, context: Value) -> Result<String, Error> {
    let template = compile(source)?;
    let mut text = String::new();
    let mut out = make_string_output(&mut text);
    eval(env, &template.instructions, context, &template.blocks, &mut out, AutoEscape::None)?;
    Ok(text)
}

/// `left + right` as in Python: numbers, strings, lists, tuples.
fn add(state: &State, left: Value, right: Value) -> Result<Value, Error> {
    if let (Some(left), Some(right)) = (left.as_str(), right.as_str()) {
        state.consume_fuel((left.len() + right.len()) as u64 / 64)?;
        return Ok(Value::from([left, right].concat()));
    }
    if is_list(&left) && is_list(&right) && left.is_tuple() == right.is_tuple() {
        let mut joined = items(&left)?;
        joined.extend(items(&right)?);
        return paid(state, list_like(&left, joined));
    }
    arithmetic(&left, &right, i128::checked_add, |a, b| a + b)
        .ok_or_else(|| invalid(format!("cannot add {} and {}", left.kind(), right.kind())))
}

/// `left * right` as in Python: numbers, and strings, lists and tuples times a number.
fn mul(state: &State, left: Value, right: Value) -> Result<Value, Error> {
    let is_sequence = |value: &Value| value.as_str().is_some() || is_list(value);
    let (value, times) = if is_sequence(&left) { (&left, &right) } else { (&right, &left) };
    if is_sequence(value)
        && let Some(times) = whole(times)
    {
        let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
        let pay = |len: usize, per_fuel: u64| state.consume_fuel(len.saturating_mul(times) as u64 / per_fuel);
        if let Some(text) = value.as_str() {
            pay(text.len(), 64)?;
            return Ok(Value::from(text.repeat(times)));
        }
        let items = items(value)?;
        pay(items.len(), ITEMS_PER_FUEL)?;
        return paid(state, list_like(value, std::iter::repeat_n(items, times).flatten().collect()));
    }
    arithmetic(&left, &right, i128::checked_mul, |a, b| a * b)
        .ok_or_else(|| invalid(format!("cannot multiply {} and {}", left.kind(), right.kind())))
}

fn arithmetic(
    left: &Value,
    right: &Value,
    on_whole: fn(i128, i128) -> Option<i128>,
    on_floats: fn(f64, f64) -> f64,
) -> Option<Value> {
    match (whole(left), whole(right)) {
        (Some(a), Some(b)) => on_whole(a, b).map(Value::from),
        _ => match (f64::try_from(left.clone()), f64::try_from(right.clone())) {
            (Ok(a), Ok(b)) => Some(Value::from(on_floats(a, b))),
            _ => None,
        },
    }
}

fn whole(value: &Value) -> Option<i128> {
    i128::try_from(value.clone()).ok().filter(|_| !is_float(value))
}

/// `value[start:stop:step]` as in Python: strings, lists, tuples. Nothing gives nothing, as the engine has it.
fn slice(state: &State, value: Value, start: Value, stop: Value, step: Value) -> Result<Value, Error> {
    let bound = |bound: &Value| (!bound.is_none()).then(|| i64::try_from(bound.clone())).transpose();
    let (start, stop, step) = (bound(&start)?, bound(&stop)?, bound(&step)?.unwrap_or(1));
    if step == 0 {
        return Err(invalid("cannot slice by step size of 0"));
    }
    if let Some(text) = value.as_str() {
        let chars: Vec<char> = text.chars().collect();
        let kept = slice_indices(chars.len(), start, stop, step).map(|index| chars[index]);
        return Ok(Value::from(kept.collect::<String>()));
    }
    if value.is_none() || value.is_undefined() {
        return Ok(Value::from(Vec::<Value>::new()));
    }
    if !is_list(&value) {
        return Err(invalid(format!("value of type {} cannot be sliced", value.kind())));
    }
    let all = items(&value)?;
    state.consume_fuel(all.len() as u64 / ITEMS_PER_FUEL)?;
    let kept = slice_indices(all.len(), start, stop, step).map(|index| all[index].clone());
    Ok(list_like(&value, kept.collect()))
}

/// The indices that a slice takes of `len` items (Python, `slice.indices`).
fn slice_indices(len: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> impl Iterator<Item = usize> {
    let len = len as i64;
    let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let bound = |at: i64| if at < 0 { at.saturating_add(len) } else { at }.clamp(lowest, highest);
    let (from, to) = if step > 0 { (lowest, highest) } else { (highest, lowest) };
    let (first, end) = (start.map_or(from, bound), stop.map_or(to, bound));
    std::iter::successors(Some(first), move |at| at.checked_add(step))
        .take_while(move |at| (end - at).signum() == step.signum())
        .map(|at| at as usize)
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

fn items(list: &Value) -> Result<Vec<Value>, Error> {
    Ok(list.try_iter()?.collect())
}

/// `items` as a tuple if `model` is one, else as a list.
fn list_like(model: &Value, items: Vec<Value>) -> Value {
    if model.is_tuple() { Value::from(Tuple::from(items)) } else { Value::from(items) }
}

/// `value`, once its whole extent is paid for.
fn paid(state: &State, value: Value) -> Result<Value, Error> {
    pay_for(state, &value, 0, &mut 0)?;
    Ok(value)
}

fn pay_for(state: &State, value: &Value, depth: usize, seen: &mut u64) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid(format!("value nested deeper than {MAX_DEPTH}")));
    }
    let is_map = value.kind() == ValueKind::Map;
    if !is_map && !is_list(value) {
        return Ok(());
    }
    for item in value.try_iter()? {
        *seen += 1;
        state.consume_fuel(u64::from(seen.is_multiple_of(ITEMS_PER_FUEL)))?;
        let item = if is_map { value.get_item(&item)? } else { item };
        pay_for(state, &item, depth + 1, seen)?;
    }
    Ok(())
}

fn is_float(value: &Value) -> bool {
    value.is_number() && !value.is_integer()
}

/// Python's methods of strings, lists and dicts.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if name == "format"
        && let Some(format) = value.as_str()
    {
        let wide = |run: &str| run.len() > MAX_WIDTH_DIGITS;
        if format.split(|c: char| !c.is_ascii_digit()).any(wide) && format.contains('{') {
            return Err(invalid(format!("format: a width of more than {MAX_WIDTH_DIGITS} digits")));
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(source: &str) -> Result<String, Error> {
        Sandbox::new(source)?.render(Value::from_pairs([("x", 1)]), 10_000)
    }

    #[test]
    fn plus_is_pythons() {
        for (expression, sum) in [
            ("1 + 2", "3"),
            ("1 + 0.5", "1.5"),
            ("1.0 + 2", "3.0"),
            ("'a' + 'b' + 'c'", "abc"),
            ("[1] + ['a'] + []", "[1, 'a']"),
            ("(1,) + (2,)", "(1, 2)"),
            ("(range(2) | list) + [x]", "[0, 1, 1]"),
            ("1 - -2", "3"),
            ("x * 3", "3"),
            ("2 * 1.5", "3.0"),
            ("'ab' * 2", "abab"),
            ("-1 * 'ab'", ""),
            ("2 * x * 'a'", "aa"),
            ("{'a': [1], 'b': 'c', 'a': 2}", "{'a': 2, 'b': 'c'}"),
            ("dict(a=1)", "{'a': 1}"),
        ] {
            assert_eq!(show(&format!("{{{{ {expression} }}}}")).unwrap(), sum, "{expression}");
        }
        for expression in [
            "'a' + 1",
            "none + 'a'",
            "[1] + (2,)",
            "{} + {}",
            "x.y + 1",
            "nothing + 'a'",
            "'a' * 'b'",
            "'a' * 1.5",
            "none * 2",
        ] {
            assert!(show(&format!("{{{{ {expression} }}}}")).is_err(), "{expression}");
        }
        assert_eq!(show("{% set l = [x, (x,)] %}{{ l * 2 }}").unwrap(), "[1, (1,), 1, (1,)]");
        assert_eq!(
            show("{% block b %}{{ 'a' + 'b' }}{% endblock %}{% macro m(a) %}{{ a + 'z' }}{% endmacro %}{{ m('y') }}")
                .unwrap(),
            "abyz"
        );
    }

    /// Expected values from CPython 3.11.
    #[test]
    fn slices_are_pythons() {
        for (expression, part) in [
            ("'héllo'[1:]", "éllo"),
            ("'héllo'[-3:-1]", "ll"),
            ("'hello'[::-1]", "olleh"),
            ("'hello'[::2]", "hlo"),
            ("'hello'[10:]", ""),
            ("[1, 2, 3, 4][1:-1]", "[2, 3]"),
            ("[1, 2, 3, 4][-99:99:3]", "[1, 4]"),
            ("[1, 2, 3, 4][:1:-1]", "[4, 3]"),
            ("[1, 2, 3, 4][3:0:-2]", "[4, 2]"),
            ("(1, 2, 3)[:2]", "(1, 2)"),
            ("range(5)[1:3]", "[1, 2]"),
            ("[1][::9223372036854775807]", "[1]"),
            ("[1][::-9223372036854775807]", "[1]"),
        ] {
            assert_eq!(show(&format!("{{{{ {expression} }}}}")).unwrap(), part, "{expression}");
        }
        assert!(show("{{ [1][::0] }}").is_err());
        assert!(show("{{ {}[1:] }}").is_err());
    }

    #[test]
    fn blocks_are_trimmed_and_lines_are_kept_for_errors() {
        assert_eq!(show("  {% if x %}\nyes\n  {% endif %}\nend").unwrap(), "yes\nend");
        assert_eq!(show("a\nb\n{{ 1 + 'a' }}").unwrap_err().line(), Some(3));
    }
}
