//! Reading JSON objects against a table of the fields that a dialect knows.
//!
//! One table per object serves three purposes: it refuses unknown fields by name, it checks type and range, and the
//! OpenAPI document is made from it. A field that cannot change the output is inert: accepted, and reported in the
//! `fathom-inert` header. One that would change it and is not supported is refused, but for values that mean "off".

use serde_json::{Map, Value, json};

use crate::Refusal;

/// What a field may hold. `null` stands for "not given" everywhere.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Bool,
    /// A whole number in a range.
    Int(i64, i64),
    /// A number in a range.
    Number(f64, f64),
    Text,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A text, or up to so many texts.
    Texts(usize),
    /// An array of at most so many entries.
    List(usize),
    Object,
    /// An object with these fields, read by [`Fields::object`].
    Of(&'static [Field]),
    /// An array of at most so many objects with these fields.
    Each(usize, &'static [Field]),
    Any,
}

/// What a dialect does with a field.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    Used,
    Required,
    /// Cannot change the output.
    Inert,
    /// Would change the output and cannot be done; these values (as JSON) mean "off" and are inert.
    Refused(&'static [&'static str]),
}

/// A known field.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field(pub(crate) &'static str, pub(crate) Kind, pub(crate) Role);

/// The fields of one object, checked.
#[derive(Debug)]
pub(crate) struct Fields {
    place: String,
    values: Map<String, Value>,
    /// Paths of inert fields that were given.
    pub(crate) inert: Vec<String>,
}

impl Fields {
    /// Checks the object at `place` (empty for the body) against its table.
    pub(crate) fn read(table: &[Field], value: Value, place: &str) -> Result<Self, Refusal> {
        let path = |name: &str| if place.is_empty() { name.to_owned() } else { format!("{place}.{name}") };
        let Value::Object(mut values) = value else {
            let what = if place.is_empty() { "the body" } else { place };
            return Err(Refusal::Malformed(format!("{what} must be a JSON object")));
        };
        values.retain(|_, value| !value.is_null());
        let mut inert = Vec::new();
        for (name, value) in &values {
            let Some(Field(_, kind, role)) = table.iter().find(|f| f.0 == name.as_str()) else {
                return Err(Refusal::field(path(name), "unknown field; `/openapi.json` lists those that are known"));
            };
            kind.check(value).map_err(|why| Refusal::field(path(name), why))?;
            match role {
                Role::Used | Role::Required => {}
                Role::Inert => inert.push(path(name)),
                Role::Refused(off) if off.contains(&value.to_string().as_str()) => inert.push(path(name)),
                Role::Refused(off) => {
                    let only = if off.is_empty() { String::new() } else { format!("; only {} is", off.join(" or ")) };
                    return Err(Refusal::field(path(name), format!("not supported here{only}")));
                }
            }
        }
        for Field(name, _, role) in table {
            if matches!(role, Role::Required) && !values.contains_key(*name) {
                return Err(Refusal::field(path(name), "is required"));
            }
        }
        Ok(Fields { place: place.to_owned(), values, inert })
    }

    /// The path of one of its fields, for messages.
    pub(crate) fn path(&self, name: &str) -> String {
        if self.place.is_empty() { name.to_owned() } else { format!("{}.{name}", self.place) }
    }

    /// A refusal because of one of its fields.
    pub(crate) fn refuse<T>(&self, name: &str, why: impl Into<String>) -> Result<T, Refusal> {
        Err(Refusal::field(self.path(name), why))
    }

    /// Takes a field out.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.values.remove(name)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    pub(crate) fn bool(&self, name: &str) -> Option<bool> {
        self.values.get(name)?.as_bool()
    }

    pub(crate) fn int(&self, name: &str) -> Option<i64> {
        self.values.get(name).and_then(whole)
    }

    pub(crate) fn count(&self, name: &str) -> Option<usize> {
        self.int(name).and_then(|n| usize::try_from(n).ok())
    }

    pub(crate) fn number(&self, name: &str) -> Option<f32> {
        self.values.get(name)?.as_f64().map(|x| x as f32)
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name)?.as_str()
    }

    pub(crate) fn take_text(&mut self, name: &str) -> Option<String> {
        match self.values.remove(name)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// A text or several, as several.
    pub(crate) fn texts(&self, name: &str) -> Vec<String> {
        match self.values.get(name) {
            Some(Value::String(text)) => vec![text.clone()],
            Some(Value::Array(texts)) => texts.iter().filter_map(|t| t.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        }
    }

    pub(crate) fn list(&mut self, name: &str) -> Vec<Value> {
        match self.values.remove(name) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        }
    }

    /// An object inside, against its own table. Its inert fields count here.
    pub(crate) fn object(&mut self, name: &str, table: &[Field]) -> Result<Option<Fields>, Refusal> {
        let Some(value) = self.values.remove(name) else { return Ok(None) };
        let mut fields = Fields::read(table, value, &self.path(name))?;
        self.inert.append(&mut fields.inert);
        Ok(Some(fields))
    }
}

/// A whole number, also one written as `3.0`.
fn whole(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 1e15).map(|x| x as i64))
}

impl Kind {
    fn check(self, value: &Value) -> Result<(), String> {
        let words = |list: &[&str]| list.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", ");
        let (right, expected) = match self {
            Kind::Bool => (value.is_boolean(), "true or false".to_owned()),
            Kind::Int(from, to) => {
                (whole(value).is_some_and(|n| from <= n && n <= to), format!("a whole number from {from} to {to}"))
            }
            Kind::Number(from, to) => {
                (value.as_f64().is_some_and(|x| from <= x && x <= to), format!("a number from {from} to {to}"))
            }
            Kind::Text => (value.is_string(), "a text".to_owned()),
            Kind::Word(list) => (value.as_str().is_some_and(|w| list.contains(&w)), format!("one of {}", words(list))),
            Kind::Texts(most) => {
                let all = |list: &Vec<Value>| list.len() <= most && list.iter().all(Value::is_string);
                (value.is_string() || value.as_array().is_some_and(all), format!("a text or up to {most} texts"))
            }
            Kind::List(most) | Kind::Each(most, _) => {
                (value.as_array().is_some_and(|l| l.len() <= most), format!("an array of at most {most} entries"))
            }
            Kind::Object | Kind::Of(_) => (value.is_object(), "an object".to_owned()),
            Kind::Any => (true, String::new()),
        };
        if right {
            return Ok(());
        }
        let mut found = value.to_string();
        if found.len() > 60 {
            found.truncate(found.floor_char_boundary(60));
            found.push('…');
        }
        Err(format!("is {found}, expected {expected}"))
    }

    /// As JSON Schema.
    pub(crate) fn schema(self) -> Value {
        match self {
            Kind::Bool => json!({"type": "boolean"}),
            Kind::Int(from, to) => json!({"type": "integer", "minimum": from, "maximum": to}),
            Kind::Number(from, to) => json!({"type": "number", "minimum": from, "maximum": to}),
            Kind::Text => json!({"type": "string"}),
            Kind::Word(list) => json!({"type": "string", "enum": list}),
            Kind::Texts(most) => json!({"anyOf": [{"type": "string"},
                {"type": "array", "maxItems": most, "items": {"type": "string"}}]}),
            Kind::List(most) => json!({"type": "array", "maxItems": most, "items": {}}),
            Kind::Object => json!({"type": "object"}),
            Kind::Of(table) => schema(table),
            Kind::Each(most, table) => json!({"type": "array", "maxItems": most, "items": schema(table)}),
            Kind::Any => json!({}),
        }
    }
}

/// The JSON Schema of an object with these fields.
pub(crate) fn schema(table: &[Field]) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for Field(name, kind, role) in table {
        let mut schema = match role {
            Role::Refused([]) => json!({"type": "null"}),
            Role::Refused(off) => {
                let values: Vec<Value> = off.iter().filter_map(|v| serde_json::from_str(v).ok()).collect();
                json!({"enum": values})
            }
            _ => kind.schema(),
        };
        if matches!(role, Role::Inert | Role::Refused(_)) {
            schema["description"] = "Accepted, without effect.".into();
        }
        if matches!(role, Role::Required) {
            required.push(*name);
        }
        properties.insert((*name).to_owned(), schema);
    }
    let mut schema = json!({"type": "object", "properties": properties, "additionalProperties": false});
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Field] = &[
        Field("model", Kind::Text, Role::Required),
        Field("n", Kind::Int(1, 4), Role::Used),
        Field("user", Kind::Text, Role::Inert),
        Field("audio", Kind::Any, Role::Refused(&["false"])),
    ];

    fn read(value: Value) -> Result<Fields, Refusal> {
        Fields::read(TABLE, value, "")
    }

    #[test]
    fn fields_are_known_typed_and_in_range() {
        let mut fields = read(json!({"model": "m", "n": 2.0, "user": "u", "audio": false, "top": null})).unwrap();
        assert_eq!((fields.take_text("model").as_deref(), fields.count("n")), (Some("m"), Some(2)));
        assert_eq!(fields.inert, ["user", "audio"]);
        for (body, name) in [
            (json!({"model": "m", "nn": 1}), "nn"),
            (json!({"model": "m", "n": 5}), "n"),
            (json!({"model": "m", "n": 1.5}), "n"),
            (json!({"model": 1}), "model"),
            (json!({"n": 1}), "model"),
            (json!({"model": "m", "audio": {"voice": "x"}}), "audio"),
        ] {
            let refusal = read(body.clone()).unwrap_err();
            assert_eq!(refusal.param(), Some(name), "{body}: {refusal}");
        }
        assert!(matches!(read(json!([])), Err(Refusal::Malformed(_))));
    }
}
