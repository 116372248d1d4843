//! Writes GGUF version 3 files.
//!
//! Metadata and tensors are declared first, then the tensors' bytes follow in that order, streamed. A tensor can be
//! left a hole that takes no room on disk. The file appears under its name only when it is whole.

use std::io::{Seek, SeekFrom};
use std::path::Path;

use fathom_core::FormatId;

use crate::fault::{Fault, Result};
use crate::gguf::DEFAULT_ALIGNMENT;
use crate::metadata::{Value, ValueType};
use crate::new_file::NewFile;

/// What can be written as a metadata value.
pub trait IntoValue {
    /// Appends type and value as they lie in the file.
    fn put(&self, out: &mut Vec<u8>);
}

/// What can be an element of an array.
pub trait Element {
    #[doc(hidden)]
    const CODE: u32;
    #[doc(hidden)]
    fn put_bare(&self, out: &mut Vec<u8>);
}

macro_rules! element {
    ($($t:ty => $ty:ident),+) => {
        $(impl Element for $t {
            const CODE: u32 = ValueType::$ty as u32;
            fn put_bare(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }
        })+
    };
}
element!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64, f32 => F32, f64 => F64);

impl Element for bool {
    const CODE: u32 = ValueType::Bool as u32;
    fn put_bare(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Element for &str {
    const CODE: u32 = ValueType::Str as u32;
    fn put_bare(&self, out: &mut Vec<u8>) {
        out.extend((self.len() as u64).to_le_bytes());
        out.extend(self.as_bytes());
    }
}

impl Element for String {
    const CODE: u32 = ValueType::Str as u32;
    fn put_bare(&self, out: &mut Vec<u8>) {
        self.as_str().put_bare(out);
    }
}

impl<T: Element> IntoValue for T {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend(T::CODE.to_le_bytes());
        self.put_bare(out);
    }
}

impl<T: Element> IntoValue for &[T] {
    fn put(&self, out: &mut Vec<u8>) {
        put_array_head(T::CODE, self.len(), out);
        self.iter().for_each(|v| v.put_bare(out));
    }
}

impl IntoValue for Value<'_> {
    fn put(&self, out: &mut Vec<u8>) {
        if let Value::Array(a) = self {
            put_array_head(a.elem as u32, a.len, out);
            // Every element with its type in front, which an array has only once.
            for v in a.iter() {
                let start = out.len();
                v.put(out);
                out.drain(start..start + 4);
            }
            return;
        }
        match self {
            Value::U8(v) => v.put(out),
            Value::I8(v) => v.put(out),
            Value::U16(v) => v.put(out),
            Value::I16(v) => v.put(out),
            Value::U32(v) => v.put(out),
            Value::I32(v) => v.put(out),
            Value::U64(v) => v.put(out),
            Value::I64(v) => v.put(out),
            Value::F32(v) => v.put(out),
            Value::F64(v) => v.put(out),
            Value::Bool(v) => v.put(out),
            Value::Str(v) => v.put(out),
            Value::Array(_) => unreachable!("invariant: arrays were written above"),
        }
    }
}

fn put_array_head(code: u32, len: usize, out: &mut Vec<u8>) {
    out.extend((ValueType::Array as u32).to_le_bytes());
    out.extend(code.to_le_bytes());
    out.extend((len as u64).to_le_bytes());
}

/// A GGUF file being declared.
#[derive(Default)]
pub struct GgufWriter {
    pairs: Vec<u8>,
    pair_count: u64,
    records: Vec<u8>,
    /// Bytes of each tensor.
    sizes: Vec<u64>,
    /// Where the next tensor starts, from the start of the data.
    offset: u64,
}

impl GgufWriter {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a key-value pair. Keys must differ.
    pub fn pair(&mut self, key: &str, value: impl IntoValue) -> &mut Self {
        key.put_bare(&mut self.pairs);
        value.put(&mut self.pairs);
        self.pair_count += 1;
        self
    }

    /// Adds a tensor; `shape` has 1 to 4 dimensions, outermost first. Names must differ.
    ///
    /// # Errors
    /// If GGUF does not have the format, or rows are not whole blocks.
    pub fn tensor(&mut self, name: &str, format: FormatId, shape: &[usize]) -> Result<&mut Self> {
        let fault = |expected: &str, found: String| Fault::tensor(Path::new("(new GGUF file)"), name, expected, found);
        let f = format.get();
        let Some(code) = f.gguf_code() else {
            return Err(fault("a format that GGUF has", format.to_string()).into());
        };
        let cols = *shape.last().expect("invariant: a tensor has at least one dimension");
        if !cols.is_multiple_of(f.block_elems()) {
            return Err(fault("rows of whole blocks", format!("rows of {cols} in {format}")).into());
        }
        name.put_bare(&mut self.records);
        self.records.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|d| self.records.extend((*d as u64).to_le_bytes()));
        self.records.extend(code.to_le_bytes());
        self.records.extend(self.offset.to_le_bytes());
        let size = (shape.iter().product::<usize>() / f.block_elems() * f.block_bytes()) as u64;
        self.sizes.push(size);
        self.offset += size.next_multiple_of(DEFAULT_ALIGNMENT.into());
        Ok(self)
    }

    /// Starts the file that will be `path`, with all that was declared.
    ///
    /// # Errors
    /// If the directory cannot be written to.
    pub fn create(self, path: &Path) -> Result<GgufData> {
        let mut header = b"GGUF".to_vec();
        header.extend(3u32.to_le_bytes());
        header.extend((self.sizes.len() as u64).to_le_bytes());
        header.extend(self.pair_count.to_le_bytes());
        header.extend(self.pairs);
        header.extend(self.records);
        header.resize(header.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);

        let mut file = NewFile::create(path)?;
        file.write(&header)?;
        Ok(GgufData { file, sizes: self.sizes, tensor: 0, written: 0 })
    }
}

/// A GGUF file whose tensors are being written. Dropped before [`GgufData::finish`], it leaves nothing behind.
pub struct GgufData {
    file: NewFile,
    sizes: Vec<u64>,
    /// The tensor being written, and how much of it has been.
    tensor: usize,
    written: u64,
}

impl GgufData {
    /// The tensor to be written now; steps over those without bytes.
    fn left(&self) -> u64 {
        *self.sizes.get(self.tensor).expect("invariant: no more bytes than the declared tensors have") - self.written
    }

    /// Writes more bytes of the current tensor; when it is whole, the next one follows.
    ///
    /// # Panics
    /// If the current tensor has fewer bytes left.
    ///
    /// # Errors
    /// If the disk is full or fails.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        assert!(bytes.len() as u64 <= self.left(), "invariant: a write ends with its tensor or before");
        self.file.write(bytes)?;
        self.advance(bytes.len() as u64)
    }

    /// Leaves the rest of the current tensor a hole, which reads as zeros.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn hole(&mut self) -> Result<()> {
        let left = self.left();
        self.file.io(|f| f.seek(SeekFrom::Current(left as i64)))?;
        self.advance(left)
    }

    fn advance(&mut self, bytes: u64) -> Result<()> {
        self.written += bytes;
        let size = self.sizes[self.tensor];
        if self.written == size {
            let padding = size.next_multiple_of(DEFAULT_ALIGNMENT.into()) - size;
            self.file.write(&[0; DEFAULT_ALIGNMENT as usize][..padding as usize])?;
            self.tensor += 1;
            self.written = 0;
        }
        Ok(())
    }

    /// Puts the file under its name, on disk for good.
    ///
    /// # Panics
    /// If a declared tensor has not been written.
    ///
    /// # Errors
    /// If the disk is full or fails.
    pub fn finish(self) -> Result<()> {
        assert!(self.tensor == self.sizes.len(), "invariant: every declared tensor is written before the file is done");
        self.file.finish()
    }
}
