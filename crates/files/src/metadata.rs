//! GGUF metadata: typed values under string keys.
//!
//! Values stay where they are in the mapped file; the parser has checked them once, and they are decoded
//! when asked for. A missing key or a value of the wrong type is a [`Fault`] that names the key, so a caller
//! can collect all of them. Value types: GGUF specification (ggml, `docs/gguf.md`).

use std::fmt;
use std::path::{Path, PathBuf};

use fathom_core::Bytes;

use crate::Fault;
use crate::fault::quoted;

/// Type of a metadata value, with its number in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    Str = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    pub(crate) fn from_code(code: u32) -> Option<ValueType> {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, Str, Array, U64, I64, F64].get(code as usize).copied()
    }

    /// Size in bytes, for all but strings and arrays.
    pub(crate) fn size(self) -> Option<u64> {
        use ValueType::*;
        match self {
            U8 | I8 | Bool => Some(1),
            U16 | I16 => Some(2),
            U32 | I32 | F32 => Some(4),
            U64 | I64 | F64 => Some(8),
            Str | Array => None,
        }
    }

    fn name(self) -> &'static str {
        use ValueType::*;
        match self {
            U8 => "u8",
            I8 => "i8",
            U16 => "u16",
            I16 => "i16",
            U32 => "u32",
            I32 => "i32",
            F32 => "f32",
            Bool => "boolean",
            Str => "string",
            Array => "array",
            U64 => "u64",
            I64 => "i64",
            F64 => "f64",
        }
    }
}

/// A metadata value.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(&'a str),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    /// The value of type `ty` at the start of checked `bytes`, and what lies behind it.
    fn decode(ty: ValueType, bytes: &'a [u8]) -> (Value<'a>, &'a [u8]) {
        fn le<const N: usize>(bytes: &[u8]) -> ([u8; N], &[u8]) {
            let (head, rest) = bytes.split_first_chunk().expect("invariant: metadata was checked when it was opened");
            (*head, rest)
        }
        macro_rules! number {
            ($variant:ident, $t:ty) => {{
                let (b, rest) = le(bytes);
                (Value::$variant(<$t>::from_le_bytes(b)), rest)
            }};
        }
        match ty {
            ValueType::U8 => number!(U8, u8),
            ValueType::I8 => number!(I8, i8),
            ValueType::U16 => number!(U16, u16),
            ValueType::I16 => number!(I16, i16),
            ValueType::U32 => number!(U32, u32),
            ValueType::I32 => number!(I32, i32),
            ValueType::F32 => number!(F32, f32),
            ValueType::U64 => number!(U64, u64),
            ValueType::I64 => number!(I64, i64),
            ValueType::F64 => number!(F64, f64),
            ValueType::Bool => (Value::Bool(bytes[0] != 0), &bytes[1..]),
            ValueType::Str => {
                let (n, rest) = le(bytes);
                let (text, rest) = rest.split_at(u64::from_le_bytes(n) as usize);
                (Value::Str(std::str::from_utf8(text).expect("invariant: metadata was checked")), rest)
            }
            ValueType::Array => {
                let (code, rest) = le(bytes);
                let (len, rest) = le(rest);
                let elem = ValueType::from_code(u32::from_le_bytes(code)).expect("invariant: metadata was checked");
                (Value::Array(Array { elem, len: u64::from_le_bytes(len) as usize, bytes: rest }), &[])
            }
        }
    }

    fn describe(&self) -> String {
        match self {
            Value::U8(v) => format!("u8 {v}"),
            Value::I8(v) => format!("i8 {v}"),
            Value::U16(v) => format!("u16 {v}"),
            Value::I16(v) => format!("i16 {v}"),
            Value::U32(v) => format!("u32 {v}"),
            Value::I32(v) => format!("i32 {v}"),
            Value::U64(v) => format!("u64 {v}"),
            Value::I64(v) => format!("i64 {v}"),
            Value::F32(v) => format!("f32 {v}"),
            Value::F64(v) => format!("f64 {v}"),
            Value::Bool(v) => v.to_string(),
            Value::Str(v) => format!("string {}", quoted(v)),
            Value::Array(a) => format!("array of {} {}", a.len, a.elem.name()),
        }
    }

    fn int(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }
}

/// An array of numbers, booleans or strings, still in the file.
#[derive(Clone, Copy, PartialEq)]
pub struct Array<'a> {
    pub(crate) elem: ValueType,
    pub(crate) len: usize,
    /// Starts with the elements; may reach past them.
    pub(crate) bytes: &'a [u8],
}

impl fmt::Debug for Array<'_> {
    /// Not the elements: they may be many, and `bytes` may reach to the end of the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} elements of {:?}", self.len, self.elem)
    }
}

impl<'a> Array<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Value<'a>> + use<'a> {
        let (elem, mut rest) = (self.elem, self.bytes);
        (0..self.len).map(move |_| {
            let (value, after) = Value::decode(elem, rest);
            rest = after;
            value
        })
    }
}

/// A Rust type that a metadata value can be read as.
pub trait FromValue<'a>: Sized {
    /// How an error message names it.
    const EXPECTED: &'static str;

    /// The value, if it is one exactly.
    fn from_value(value: Value<'a>) -> Option<Self>;
}

macro_rules! from_value {
    ($t:ty, $expected:literal, $value:ident => $read:expr) => {
        impl<'a> FromValue<'a> for $t {
            const EXPECTED: &'static str = $expected;
            fn from_value($value: Value<'a>) -> Option<Self> {
                $read
            }
        }
    };
}

from_value!(u32, "an unsigned 32-bit integer", v => v.int()?.try_into().ok());
from_value!(u64, "an unsigned integer", v => v.int()?.try_into().ok());
from_value!(usize, "an unsigned integer", v => v.int()?.try_into().ok());
from_value!(i64, "an integer", v => v.int()?.try_into().ok());
from_value!(f32, "a number", v => match v {
    Value::F32(x) => Some(x),
    Value::F64(x) => Some(x as f32),
    _ => None,
});
from_value!(bool, "a boolean", v => match v {
    Value::Bool(x) => Some(x),
    _ => None,
});
from_value!(&'a str, "a string", v => match v {
    Value::Str(x) => Some(x),
    _ => None,
});
from_value!(Array<'a>, "an array", v => match v {
    Value::Array(x) => Some(x),
    _ => None,
});

impl<'a, T: FromValue<'a>> FromValue<'a> for Vec<T> {
    const EXPECTED: &'static str = "an array of one type";
    fn from_value(value: Value<'a>) -> Option<Self> {
        match value {
            Value::Array(a) => a.iter().map(T::from_value).collect(),
            _ => None,
        }
    }
}

/// Where one entry lies in the header.
pub(crate) struct Entry {
    pub(crate) key: std::ops::Range<usize>,
    pub(crate) ty: ValueType,
    /// First byte of the value.
    pub(crate) at: usize,
}

/// The key-value pairs of a GGUF file (of the first part, if it is split).
pub struct Metadata {
    pub(crate) file: PathBuf,
    pub(crate) bytes: Bytes,
    /// In the file's order.
    pub(crate) entries: Vec<Entry>,
    /// Indices into `entries`, ordered by key.
    pub(crate) sorted: Vec<u32>,
}

impl Metadata {
    /// The file they were read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    pub(crate) fn key_of(&self, entry: &Entry) -> &str {
        std::str::from_utf8(&self.bytes.as_slice()[entry.key.clone()]).expect("invariant: metadata was checked")
    }

    /// All pairs, in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.entries.iter().map(|e| (self.key_of(e), Value::decode(e.ty, &self.bytes.as_slice()[e.at..]).0))
    }

    /// The value under `key`, whatever its type.
    pub fn value(&self, key: &str) -> Option<Value<'_>> {
        let i = self.sorted.binary_search_by(|&i| self.key_of(&self.entries[i as usize]).cmp(key)).ok()?;
        let e = &self.entries[self.sorted[i] as usize];
        Some(Value::decode(e.ty, &self.bytes.as_slice()[e.at..]).0)
    }

    /// The value under `key`, or none if there is no such key.
    ///
    /// # Errors
    /// If the value is not a `T`.
    pub fn get<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>, Fault> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match T::from_value(value) {
            Some(t) => Ok(Some(t)),
            None => Err(Fault::key(&self.file, key, T::EXPECTED, value.describe())),
        }
    }

    /// The value under `key`.
    ///
    /// # Errors
    /// If there is no such key, or its value is not a `T`.
    pub fn need<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T, Fault> {
        self.get(key)?.ok_or_else(|| Fault::key(&self.file, key, T::EXPECTED, "no such key"))
    }
}
