//! Reading a model's description: `config.json` and GGUF metadata behind one face, all faults collected.
//!
//! A key has a name in each layout; an empty one means that the layout does not have it. A missing or unusable value
//! is noted as a [`Fault`] and a harmless default returned, so that one pass reports everything.

use std::ops::RangeInclusive;
use std::path::Path;

use fathom_files::{Fault, Faults, FromValue, Metadata};
use serde_json::Value;

/// Where the values come from.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// `config.json`.
    Hf(&'a Value),
    /// GGUF metadata; keys stand behind `arch.`.
    Gguf {
        /// The architecture's name.
        arch: &'a str,
        /// All keys.
        meta: &'a Metadata,
    },
}

/// A key's names: in `config.json` (`a.b` is a nested key), in GGUF behind the architecture.
pub type Key = (&'static str, &'static str);

/// Reads values and collects faults.
pub struct Keys<'a> {
    /// The description.
    pub source: Source<'a>,
    /// The file it is in, for messages.
    file: &'a Path,
    /// Section of `config.json` that keys are in; empty: the top.
    section: &'static str,
    /// Values of numbers that `config.json` leaves out.
    defaults: &'static [(&'static str, f64)],
    /// What was wrong so far.
    pub faults: Faults,
}

impl<'a> Keys<'a> {
    /// A reader of `source`, which is in `file`.
    pub fn new(source: Source<'a>, file: &'a Path) -> Self {
        Keys { source, file, section: "", defaults: &[], faults: Faults::default() }
    }

    /// Reads keys of a section of `config.json`, with values for numbers that it leaves out. GGUF has no sections.
    pub fn within<T>(
        &mut self,
        section: &'static str,
        defaults: &'static [(&'static str, f64)],
        read: impl FnOnce(&mut Self) -> T,
    ) -> T {
        static NOTHING: Value = Value::Null;
        let outer = self.source;
        if let Source::Hf(root) = outer {
            self.source = Source::Hf(root.get(section).unwrap_or(&NOTHING));
            self.section = section;
            self.defaults = defaults;
        }
        let result = read(self);
        (self.source, self.section, self.defaults) = (outer, "", &[]);
        result
    }

    /// The key as the file spells it.
    fn spelled(&self, key: Key) -> String {
        match self.source {
            Source::Hf(_) if !self.section.is_empty() => format!("{}.{}", self.section, key.0),
            Source::Hf(_) => key.0.to_owned(),
            Source::Gguf { arch, .. } => format!("{arch}.{}", key.1),
        }
    }

    /// Notes a fault at `key`.
    pub fn fault(&mut self, key: Key, expected: impl Into<String>, found: impl Into<String>) {
        self.faults.push(Fault::key(self.file, &self.spelled(key), expected, found));
    }

    fn json(&self, path: &str) -> Option<&'a Value> {
        let Source::Hf(root) = self.source else { return None };
        let value = path.split('.').try_fold(root, |v, part| v.get(part))?;
        (!value.is_null()).then_some(value)
    }

    fn number(&mut self, key: Key) -> Option<f64> {
        let (found, value) = match self.source {
            Source::Hf(_) => match self.json(key.0) {
                Some(v) => (v.to_string(), v.as_f64()),
                None => return self.defaults.iter().find(|(name, _)| *name == key.0).map(|(_, value)| *value),
            },
            Source::Gguf { meta, .. } => {
                let v = meta.value(&self.spelled(key)).filter(|_| !key.1.is_empty())?;
                let whole = i64::from_value(v).map(|x| x as f64);
                (format!("{v:?}"), whole.or_else(|| f32::from_value(v).map(f64::from)))
            }
        };
        if value.is_none() {
            self.fault(key, "a number", found);
        }
        value
    }

    /// A whole number within `range`, if the key is there.
    pub fn optional(&mut self, key: Key, range: RangeInclusive<usize>) -> Option<usize> {
        let value = self.number(key)?;
        if value.fract() == 0.0 && value >= *range.start() as f64 && value <= *range.end() as f64 {
            return Some(value as usize);
        }
        self.fault(key, format!("a whole number from {} to {}", range.start(), range.end()), value.to_string());
        None
    }

    /// A whole number within `range`.
    pub fn usize(&mut self, key: Key, range: RangeInclusive<usize>) -> usize {
        let (low, faults) = (*range.start(), self.faults.total());
        match self.optional(key, range) {
            Some(v) => v,
            None => {
                if self.faults.total() == faults {
                    self.fault(key, "a whole number", "nothing");
                }
                low.max(1)
            }
        }
    }

    /// A finite number within `range`, if the key is there.
    pub fn optional_f64(&mut self, key: Key, range: RangeInclusive<f64>) -> Option<f64> {
        let value = self.number(key)?;
        if range.contains(&value) {
            return Some(value);
        }
        self.fault(key, format!("a number from {} to {}", range.start(), range.end()), value.to_string());
        None
    }

    /// A finite number within `range`.
    pub fn f64(&mut self, key: Key, range: RangeInclusive<f64>) -> f64 {
        let (low, faults) = (*range.start(), self.faults.total());
        match self.optional_f64(key, range) {
            Some(v) => v,
            None => {
                if self.faults.total() == faults {
                    self.fault(key, "a number", "nothing");
                }
                low
            }
        }
    }

    /// A list of numbers, if the key is there.
    fn numbers(&mut self, key: Key) -> Option<Vec<f64>> {
        let (found, value) = match self.source {
            Source::Hf(_) => {
                let v = self.json(key.0)?;
                let all = v.as_array().and_then(|all| all.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>());
                (v.to_string(), all)
            }
            Source::Gguf { meta, .. } => {
                let v = meta.value(&self.spelled(key)).filter(|_| !key.1.is_empty())?;
                let whole = Vec::<u32>::from_value(v).map(|all| all.into_iter().map(f64::from).collect());
                let real = || Vec::<f32>::from_value(v).map(|all| all.into_iter().map(f64::from).collect());
                (format!("{v:?}"), whole.or_else(real))
            }
        };
        if value.is_none() {
            self.fault(key, "a list of numbers", found);
        }
        value
    }

    /// One to `most` whole numbers within `range`, if the key is there.
    pub fn usizes(&mut self, key: Key, range: RangeInclusive<usize>, most: usize) -> Option<Vec<usize>> {
        let all = self.numbers(key)?;
        let fits = |v: &f64| v.fract() == 0.0 && *v >= *range.start() as f64 && *v <= *range.end() as f64;
        if (1..=most).contains(&all.len()) && all.iter().all(fits) {
            return Some(all.into_iter().map(|v| v as usize).collect());
        }
        let expected = format!("1 to {most} whole numbers from {} to {}", range.start(), range.end());
        self.fault(key, expected, format!("{all:?}"));
        None
    }

    /// Three numbers within `range`, if the key is there.
    pub fn triple(&mut self, key: Key, range: RangeInclusive<f64>) -> Option<[f64; 3]> {
        let all = self.numbers(key)?;
        match <[f64; 3]>::try_from(all) {
            Ok(three) if three.iter().all(|v| range.contains(v)) => Some(three),
            Ok(three) => {
                self.fault(key, format!("numbers from {} to {}", range.start(), range.end()), format!("{three:?}"));
                None
            }
            Err(all) => {
                self.fault(key, "three numbers", format!("{} of them", all.len()));
                None
            }
        }
    }

    /// A truth value; absent means `default`.
    pub fn bool(&mut self, key: Key, default: bool) -> bool {
        let (found, value) = match self.source {
            Source::Hf(_) => match self.json(key.0) {
                Some(v) => (v.to_string(), v.as_bool()),
                None => return default,
            },
            Source::Gguf { meta, .. } => match meta.value(&self.spelled(key)).filter(|_| !key.1.is_empty()) {
                Some(v) => (format!("{v:?}"), bool::from_value(v)),
                None => return default,
            },
        };
        value.unwrap_or_else(|| {
            self.fault(key, "true or false", found);
            default
        })
    }

    /// A string, if the key is there.
    pub fn str(&mut self, key: Key) -> Option<&'a str> {
        let (found, value) = match self.source {
            Source::Hf(_) => {
                let v = self.json(key.0)?;
                (v.to_string(), v.as_str())
            }
            Source::Gguf { meta, .. } => {
                let v = meta.value(&self.spelled(key)).filter(|_| !key.1.is_empty())?;
                (format!("{v:?}"), <&str>::from_value(v))
            }
        };
        if value.is_none() {
            self.fault(key, "a string", found);
        }
        value
    }

    /// Notes a fault unless the string is absent or one of `allowed`.
    pub fn only(&mut self, key: Key, allowed: &[&str]) {
        if let Some(v) = self.str(key)
            && !allowed.contains(&v)
        {
            self.fault(key, allowed.join(" or "), v);
        }
    }

    /// Notes a fault if the switch is on: a feature that no model of the family uses.
    pub fn off(&mut self, key: Key) {
        if self.bool(key, false) {
            self.fault(key, "false (no published model of this family sets it, so it is not implemented)", "true");
        }
    }
}
