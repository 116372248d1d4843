//! How Python writes values: `str`, `repr` and `json.dumps` for the values of chat templates.
//!
//! Templates were written for Jinja2, where `{{ none }}` prints `None` and `tojson` is `json.dumps` with spaces after
//! commas and colons. Models saw those bytes in training, so they are reproduced. Work is charged to the template's fuel.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};
use std::fmt::Write as _;

/// Deepest nesting of lists and maps that is written.
const MAX_DEPTH: usize = 128;

/// Marks a value that must be written to JSON as the text it came from; see [`crate::template`].
#[derive(Debug)]
pub(crate) struct RawJson {
    pub(crate) text: String,
    pub(crate) value: Value,
}

impl minijinja::value::Object for RawJson {
    fn get_value(self: &std::sync::Arc<Self>, key: &Value) -> Option<Value> {
        self.value.get_item(key).ok().filter(|value| !value.is_undefined())
    }

    fn enumerate(self: &std::sync::Arc<Self>) -> minijinja::value::Enumerator {
        let keys = self.value.try_iter().map(|keys| keys.collect()).unwrap_or_default();
        minijinja::value::Enumerator::Values(keys)
    }
}

/// A JSON value as a template value, keys in order.
pub(crate) fn from_json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => Value::from(*value),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Value::from(value),
            (None, Some(value)) => Value::from(value),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(from_json).collect(),
        serde_json::Value::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(key, value)| (key.as_str(), from_json(value))))
        }
    }
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// `str(value)`: what `{{ value }}` prints.
pub(crate) fn str(state: &State, value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    match value.as_str() {
        Some(text) => out.push_str(text),
        None if value.is_undefined() => {}
        None => repr(state, value, 0, &mut out)?,
    }
    Ok(out)
}

fn repr(state: &State, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    enter(state, depth)?;
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number(value, "nan", "inf")),
        ValueKind::Seq | ValueKind::Iterable => {
            let tuple = value.is_tuple();
            out.push(if tuple { '(' } else { '[' });
            let mut count = 0;
            for item in value.try_iter()? {
                if count > 0 {
                    out.push_str(", ");
                }
                repr(state, &item, depth + 1, out)?;
                count += 1;
            }
            out.push_str(match (tuple, count) {
                (true, 1) => ",)",
                (true, _) => ")",
                (false, _) => "]",
            });
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                repr(state, &key, depth + 1, out)?;
                out.push_str(": ");
                repr(state, &value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        // The engine's debug form of a string is Python's repr.
        _ => write!(out, "{value:?}").map_err(|_| invalid("value cannot be written"))?,
    }
    Ok(())
}

/// The filter `tojson`: `json.dumps` with the arguments that transformers passes on, `ensure_ascii` false by default.
pub(crate) fn tojson(state: &State, value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<Value> = kwargs.get("indent")?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => Some(match (indent.as_str(), indent.as_usize()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(width)) if width <= 64 => " ".repeat(width),
            _ => {
                return Err(invalid("tojson: indent must be a string or a number up to 64"));
            }
        }),
    };
    let separators: Option<Value> = kwargs.get("separators")?;
    let (item, key) = match separators.filter(|separators| !separators.is_none()) {
        Some(pair) => {
            let part = |index| -> Result<String, Error> {
                let part = pair.get_item_by_index(index)?;
                part.as_str().map(str::to_owned).ok_or_else(|| invalid("tojson: separators must be two strings"))
            };
            (part(0)?, part(1)?)
        }
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let style = Style {
        indent,
        item,
        key,
        ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    json(state, &value, &style, 0, &mut out)?;
    Ok(Value::from(out))
}

struct Style {
    indent: Option<String>,
    item: String,
    key: String,
    ascii: bool,
    sort: bool,
}

impl Style {
    fn line_break(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }
}

fn json(state: &State, value: &Value, style: &Style, depth: usize, out: &mut String) -> Result<(), Error> {
    enter(state, depth)?;
    if let Some(raw) = value.downcast_object_ref::<RawJson>() {
        if style.indent.is_none() && !style.sort && !style.ascii {
            state.consume_fuel(raw.text.len() as u64 / 64)?;
            out.push_str(&raw.text);
            return Ok(());
        }
        return json(state, &raw.value, style, depth, out);
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value, "NaN", "Infinity")),
        ValueKind::String => json_string(state, value, style, out)?,
        ValueKind::Seq | ValueKind::Iterable => {
            let mut empty = true;
            out.push('[');
            for item in value.try_iter()? {
                if !empty {
                    out.push_str(&style.item);
                }
                empty = false;
                style.line_break(depth + 1, out);
                json(state, &item, style, depth + 1, out)?;
            }
            if !empty {
                style.line_break(depth, out);
            }
            out.push(']');
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort {
                keys.sort();
            }
            out.push('{');
            for (index, key) in keys.iter().enumerate() {
                if index > 0 {
                    out.push_str(&style.item);
                }
                style.line_break(depth + 1, out);
                match key.kind() {
                    ValueKind::String => json_string(state, key, style, out)?,
                    ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                        out.push('"');
                        json(state, key, style, depth + 1, out)?;
                        out.push('"');
                    }
                    kind => {
                        return Err(invalid(format!("tojson: a key of type {kind} is not JSON")));
                    }
                }
                out.push_str(&style.key);
                json(state, &value.get_item(key)?, style, depth + 1, out)?;
            }
            if !keys.is_empty() {
                style.line_break(depth, out);
            }
            out.push('}');
        }
        kind => {
            return Err(invalid(format!("tojson: a value of type {kind} is not JSON")));
        }
    }
    Ok(())
}

fn json_string(state: &State, value: &Value, style: &Style, out: &mut String) -> Result<(), Error> {
    let text = value.as_str().unwrap_or_default();
    state.consume_fuel(text.len() as u64 / 64)?;
    let quoted = serde_json::to_string(text).map_err(|error| invalid(error.to_string()))?;
    if !style.ascii {
        out.push_str(&quoted);
        return Ok(());
    }
    for c in quoted.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    Ok(())
}

fn enter(state: &State, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid(format!("value nested deeper than {MAX_DEPTH}")));
    }
    state.consume_fuel(1)
}

/// A number as Python writes it: the shortest decimal that reads back equal, exponents from 1e16 and below 1e-4.
fn number(value: &Value, nan: &str, infinity: &str) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(float) = f64::try_from(value.clone()) else {
        return value.to_string();
    };
    if float.is_nan() {
        return nan.to_owned();
    }
    if float.is_infinite() {
        return format!("{}{infinity}", if float < 0.0 { "-" } else { "" });
    }
    let text = format!("{float:?}");
    match text.split_once('e') {
        None => text,
        Some((mantissa, exponent)) => {
            let (sign, digits) = match exponent.strip_prefix('-') {
                Some(digits) => ('-', digits),
                None => ('+', exponent),
            };
            format!("{}e{sign}{digits:0>2}", mantissa.trim_end_matches(".0"))
        }
    }
}

#[cfg(test)]
mod tests {
    use minijinja::Environment;
    use serde_json::json;

    /// Expected texts were written by CPython 3.11's `json.dumps(x, ensure_ascii=False, ...)`, `str` and `repr`.
    fn render(template: &str, x: serde_json::Value) -> String {
        let mut env = Environment::new();
        env.add_filter("tojson", super::tojson);
        env.set_formatter(|out, state, value| {
            out.write_str(&super::str(state, value)?).map_err(minijinja::Error::from)
        });
        env.set_fuel(Some(100_000));
        env.render_str(template, minijinja::context! { x => super::from_json(&x) }).unwrap()
    }

    #[test]
    fn json_as_python_writes_it() {
        let value =
            json!({"b": [1, 2.0, 1e20, 1.5e-7, true, null], "a": "日本 \"q\" \n\t\u{1}\u{7f}</x>", "e": [], "o": {}});
        assert_eq!(
            render("{{ x|tojson }}", value.clone()),
            "{\"b\": [1, 2.0, 1e+20, 1.5e-07, true, null], \"a\": \"日本 \\\"q\\\" \\n\\t\\u0001\u{7f}</x>\", \"e\": [], \"o\": {}}"
        );
        assert_eq!(
            render("{{ x|tojson(indent=2, sort_keys=true) }}", json!({"b": [1, {"c": 2}], "a": []})),
            "{\n  \"a\": [],\n  \"b\": [\n    1,\n    {\n      \"c\": 2\n    }\n  ]\n}"
        );
        assert_eq!(render("{{ x|tojson(separators=(',', ':')) }}", json!({"a": [1, 2]})), r#"{"a":[1,2]}"#);
        assert_eq!(render("{{ x|tojson(ensure_ascii=true) }}", json!("é😀")), r#""\u00e9\ud83d\ude00""#);
    }

    #[test]
    fn values_as_python_prints_them() {
        assert_eq!(render("{{ x }}{{ nothing }}", json!(null)), "None");
        assert_eq!(
            render("{{ x }}", json!([true, null, "it's", 1.0, {"k": "v"}])),
            r#"[True, None, "it's", 1.0, {'k': 'v'}]"#
        );
        assert_eq!(render("{{ x }}", json!("plain")), "plain");
        assert_eq!(render("{{ (1,) }} {{ (1, 2) }}", json!(0)), "(1,) (1, 2)");
    }
}
