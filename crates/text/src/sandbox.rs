//! The environment that chat templates run in: nothing but their variables, and a budget for all they do.
//!
//! The engine's fuel pays for steps and data, with holes (minijinja 3.1): `list + list` is joined lazily, for free, until it is
//! copied at once, so that 33 doublings ask for 2^33 slots; a slice of a slice of a ... list walks them all at every step;
//! `str.format` pads to any width before it pays. So the compiled `+` and `[::]` are exchanged for filters of ours that pay
//! per item, and widths are looked at first.

use crate::python;
use minijinja::machinery::{CompiledTemplate, Instruction, TemplateConfig, Token, eval, make_string_output, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Tuple, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};
use std::sync::Arc;

/// Nested statements, macros and includes.
const MAX_RECURSION: usize = 150;
/// Widest padding that a format string may ask for.
const MAX_WIDTH_DIGITS: usize = 4;
/// Most tokens in one `{{ }}` or `{% %}`: bounds how deep expressions nest. Published templates have below 100.
const MAX_TOKENS: usize = 1000;
/// The branches of an `if` nest too, and have at least 10 bytes of source.
const STACK_PER_BYTE: usize = 512;
/// Stack for everything else.
const MIN_STACK: usize = 4 << 20;
/// A level of nesting costs at least 3 fuel to make, and below 300 bytes of stack to free.
const STACK_PER_FUEL: usize = 128;
/// Our `+` and `[::]`. No template can name them: they are no identifiers.
const ADD: &str = "+";
const SLICE: &str = "[::]";

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
    env.add_filter(SLICE, slice);
    // Lazy and free as well, and no filters of Jinja2.
    env.remove_filter("chain");
    env.remove_filter("zip");
    env.add_filter("tojson", python::tojson);
    env.add_filter("string", |state: &State, value: Value| python::str(state, &value));
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> { Err(invalid(message)) });
    env
}

/// Checks that `source` compiles.
pub(crate) fn check(source: &str) -> Result<(), Error> {
    on_stack(source, 0, || compile(source).map(drop))
}

/// Renders `source` in `env` with the variables of `context`, spending at most `fuel`.
pub(crate) fn render(env: &Environment<'static>, source: &str, context: Value, fuel: u64) -> Result<String, Error> {
    on_stack(source, fuel, || run(env, source, context, fuel))
}

/// Runs `work` on a thread of its own, whose stack bears statements as deep as `source` and values as deep as `fuel` can
/// nest them: the engine compiles the ones and frees the others by recursion. Pages never touched cost nothing.
fn on_stack<T: Send>(source: &str, fuel: u64, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    let stack_bytes = MIN_STACK + source.len() * STACK_PER_BYTE + fuel as usize * STACK_PER_FUEL;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat template".into()).stack_size(stack_bytes);
        let handle =
            thread.spawn_scoped(scope, work).map_err(|error| invalid(format!("no thread to render on: {error}")))?;
        handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Compiles `source` with the white-space rules of chat templates.
fn compile(source: &str) -> Result<CompiledTemplate<'_>, Error> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    check_tokens(source, &syntax)?;
    let config = TemplateConfig { syntax_config: syntax, default_auto_escape: Arc::new(|_| AutoEscape::None) };
    let mut template = CompiledTemplate::new("chat_template", source, &config)?;
    for code in std::iter::once(&mut template.instructions).chain(template.blocks.values_mut()) {
        for index in 0.. {
            match code.get_mut(index) {
                // The last field numbers cached look-ups; the largest number means none.
                Some(step @ Instruction::Add) => *step = Instruction::ApplyFilter(ADD, Some(2), u8::MAX),
                Some(step @ Instruction::Slice) => *step = Instruction::ApplyFilter(SLICE, Some(4), u8::MAX),
                Some(_) => {}
                None => break,
            }
        }
    }
    Ok(template)
}

/// Refuses what would take the compiler too long, as its work is not metered: it recurses along expressions, and it
/// computes constant ones, where a literal list times a number makes a long list.
fn check_tokens(source: &str, syntax: &SyntaxConfig) -> Result<(), Error> {
    use Token::{BlockStart, BracketClose, BracketOpen, Mul, ParenClose, ParenOpen, VariableStart};
    let mut count = 0;
    let mut before = None;
    for token in tokenize(source, false, syntax.clone()) {
        let (token, span) = token?;
        count = if matches!(token, BlockStart | VariableStart) { 0 } else { count + 1 };
        if count > MAX_TOKENS {
            let message = format!("line {}: more than {MAX_TOKENS} tokens in one tag", span.start_line);
            return Err(Error::new(ErrorKind::SyntaxError, message));
        }
        if matches!((&before, &token), (Some(BracketClose | ParenClose), Mul) | (Some(Mul), BracketOpen | ParenOpen)) {
            let message = format!("line {}: `*` next to a bracket is refused; name the operand first", span.start_line);
            return Err(Error::new(ErrorKind::SyntaxError, message));
        }
        before = Some(token);
    }
    Ok(())
}

fn run(env: &Environment<'static>, source: &str, context: Value, fuel: u64) -> Result<String, Error> {
    let mut env = env.clone();
    env.set_fuel(Some(fuel));
    let template = compile(source)?;
    let mut text = String::new();
    let mut out = make_string_output(&mut text);
    eval(&env, &template.instructions, context, &template.blocks, &mut out, AutoEscape::None)?;
    Ok(text)
}

/// `left + right` as in Python: numbers, strings, lists, tuples.
fn add(state: &State, left: Value, right: Value) -> Result<Value, Error> {
    if let (Some(left), Some(right)) = (left.as_str(), right.as_str()) {
        state.consume_fuel((left.len() + right.len()) as u64 / 64)?;
        return Ok(Value::from([left, right].concat()));
    }
    if is_list(&left) && is_list(&right) && left.is_tuple() == right.is_tuple() {
        let mut joined = items(state, &left)?;
        joined.extend(items(state, &right)?);
        return Ok(list_like(&left, joined));
    }
    let whole = |value: &Value| i128::try_from(value.clone()).ok().filter(|_| !is_float(value));
    let sum = match (whole(&left), whole(&right)) {
        (Some(a), Some(b)) => a.checked_add(b).map(Value::from),
        _ => match (f64::try_from(left.clone()), f64::try_from(right.clone())) {
            (Ok(a), Ok(b)) => Some(Value::from(a + b)),
            _ => None,
        },
    };
    sum.ok_or_else(|| invalid(format!("cannot add {} and {}", left.kind(), right.kind())))
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
    let all = items(state, &value)?;
    let kept = slice_indices(all.len(), start, stop, step).map(|index| all[index].clone());
    Ok(list_like(&value, kept.collect()))
}

/// The indices that a slice takes of `len` items (Python, `slice.indices`).
fn slice_indices(len: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> impl Iterator<Item = usize> {
    let len = len as i64;
    let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let bound = |at: i64| if at < 0 { at.saturating_add(len) } else { at }.clamp(lowest, highest);
    let (first, end) = (
        start.map_or(if step > 0 { lowest } else { highest }, bound),
        stop.map_or(if step > 0 { highest } else { lowest }, bound),
    );
    let next = move |at: &i64| at.checked_add(step);
    std::iter::successors(Some(first), next)
        .take_while(move |at| (end - at).signum() == step.signum())
        .map(|at| at as usize)
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

/// The items of a list, paid for: about two are as large as what one fuel pays for.
fn items(state: &State, list: &Value) -> Result<Vec<Value>, Error> {
    let mut items = Vec::new();
    for item in list.try_iter()? {
        state.consume_fuel(items.len() as u64 % 2)?;
        items.push(item);
    }
    Ok(items)
}

/// `items` as a tuple if `model` is one, else as a list.
fn list_like(model: &Value, items: Vec<Value>) -> Value {
    if model.is_tuple() { Value::from(Tuple::from(items)) } else { Value::from(items) }
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
        render(&environment(), source, Value::from_pairs([("x", 1)]), 10_000)
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
        ] {
            assert_eq!(show(&format!("{{{{ {expression} }}}}")).unwrap(), sum, "{expression}");
        }
        for expression in ["'a' + 1", "none + 'a'", "[1] + (2,)", "{} + {}", "x.y + 1", "nothing + 'a'"] {
            assert!(show(&format!("{{{{ {expression} }}}}")).is_err(), "{expression}");
        }
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
