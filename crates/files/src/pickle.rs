//! Reads PyTorch checkpoints, and nothing else, out of pickles.
//!
//! A pickle is a program for a stack machine that may call anything. This machine knows the twenty-odd operations that `torch.save`
//! writes for a table of tensors, and six names: the function that builds a tensor, the class of each storage, the ordered dictionary. It
//! calls nothing; building a tensor means noting where its numbers lie. Every other operation or name ends it with an error that
//! says which. Only `Archive::open_unsafe_kinds` comes here.
//!
//! A checkpoint is a zip file: `NAME/data.pkl` is the program, `NAME/data/KEY` the numbers, stored uncompressed.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use fathom_core::{ByteSource, format};
use zip::ZipArchive;

use crate::fault::{Fault, Faults, Result, quoted};
use crate::map::Map;
use crate::safetensors::{MAX_DIMS, MAX_NAME_BYTES};
use crate::table::{Stored, StoredType, Table};

/// Bytes of a program; a model of a thousand layers takes some megabytes.
const MAX_PROGRAM: u64 = 64 << 20;
/// Values on the stack, and remembered ones.
const MAX_VALUES: usize = 1 << 20;
/// Tuples in tuples.
const MAX_DEPTH: usize = 16;
/// Files in the zip.
const MAX_FILES: usize = 1 << 18;

/// Storage classes: PyTorch's name, bytes of a number, what fathom computes with, if it does.
const STORAGES: &[(&str, usize, StoredType)] = &[
    ("FloatStorage", 4, Ok(format::F32)),
    ("HalfStorage", 2, Ok(format::F16)),
    ("BFloat16Storage", 2, Ok(format::BF16)),
    ("DoubleStorage", 8, Err("DoubleStorage")),
    ("LongStorage", 8, Err("LongStorage")),
    ("IntStorage", 4, Err("IntStorage")),
    ("ShortStorage", 2, Err("ShortStorage")),
    ("CharStorage", 1, Err("CharStorage")),
    ("ByteStorage", 1, Err("ByteStorage")),
    ("BoolStorage", 1, Err("BoolStorage")),
];

/// What a program can make.
#[derive(Clone)]
enum Value {
    None,
    Bool,
    Int(i64),
    Text(Rc<str>),
    /// With how deep tuples lie in it.
    Tuple(Rc<[Value]>, usize),
    /// A dictionary in the making, by its number.
    Dict(usize),
    Global(Global),
    Storage(Rc<Storage>),
    Tensor(Rc<Tensor>),
    /// Where a group of values begins.
    Mark,
}

/// The names that may be called.
#[derive(Clone, Copy, PartialEq)]
enum Global {
    RebuildTensor,
    RebuildParameter,
    OrderedDict,
    /// Its place in [`STORAGES`].
    Storage(usize),
}

/// Numbers in a file of the zip.
struct Storage {
    class: usize,
    key: Rc<str>,
    numbers: u64,
}

/// A part of a storage.
struct Tensor {
    storage: Rc<Storage>,
    offset: u64,
    shape: Vec<u64>,
}

/// The machine.
struct Machine<'a> {
    path: &'a Path,
    code: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    memo: HashMap<u32, Value>,
    dicts: Vec<Vec<(Rc<str>, Value)>>,
}

impl Machine<'_> {
    fn fault(&self, expected: impl Into<String>, found: impl Into<String>) -> Fault {
        Fault::byte(self.path, self.at, expected, found)
    }

    fn take(&mut self, n: usize) -> Result<&[u8], Fault> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.code.len());
        let end = end.ok_or_else(|| self.fault("a program that ends with `.`", "its end before that"))?;
        let bytes = &self.code[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.take(1)?[0])
    }

    fn number<const N: usize>(&mut self) -> Result<u64, Fault> {
        Ok(self.take(N)?.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    fn text(&mut self, len: u64) -> Result<Rc<str>, Fault> {
        if len > MAX_NAME_BYTES as u64 {
            return Err(self.fault(format!("texts of at most {MAX_NAME_BYTES} bytes"), format!("{len} bytes")));
        }
        let bytes = self.take(len as usize)?.to_vec();
        String::from_utf8(bytes).map(Rc::from).map_err(|_| self.fault("UTF-8 text", "other bytes"))
    }

    fn line(&mut self) -> Result<String, Fault> {
        let rest = &self.code[self.at..];
        let len = rest.iter().take(MAX_NAME_BYTES).position(|b| *b == b'\n');
        let len = len.ok_or_else(|| self.fault("a name of ordinary length", "none"))?;
        let line = self.text(len as u64)?.to_string();
        self.take(1)?;
        Ok(line)
    }

    fn push(&mut self, value: Value) -> Result<(), Fault> {
        if self.stack.len() >= MAX_VALUES {
            return Err(self.fault(format!("at most {MAX_VALUES} values at once"), "more"));
        }
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, Fault> {
        self.stack.pop().ok_or_else(|| self.fault("a value on the stack", "none"))
    }

    /// The values since the last mark.
    fn group(&mut self) -> Result<Vec<Value>, Fault> {
        let mark = self.stack.iter().rposition(|v| matches!(v, Value::Mark));
        let mark = mark.ok_or_else(|| self.fault("a mark on the stack", "none"))?;
        let group = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(group)
    }

    fn tuple(&mut self, values: Vec<Value>) -> Result<(), Fault> {
        let depth = |v: &Value| if let Value::Tuple(_, depth) = v { *depth } else { 0 };
        let depth = 1 + values.iter().map(depth).max().unwrap_or(0);
        if depth > MAX_DEPTH {
            return Err(self.fault(format!("tuples at most {MAX_DEPTH} deep"), "deeper ones"));
        }
        self.push(Value::Tuple(values.into(), depth))
    }

    fn last(&mut self, n: usize) -> Result<(), Fault> {
        let from = self.stack.len().checked_sub(n).ok_or_else(|| self.fault("values for a tuple", "too few"))?;
        let values = self.stack.split_off(from);
        self.tuple(values)
    }

    fn remember(&mut self, key: u64) -> Result<(), Fault> {
        let value = self.stack.last().cloned().ok_or_else(|| self.fault("a value to remember", "none"))?;
        if self.memo.len() >= MAX_VALUES {
            return Err(self.fault(format!("at most {MAX_VALUES} remembered values"), "more"));
        }
        self.memo.insert(key as u32, value);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<(), Fault> {
        let value = self.memo.get(&(key as u32)).cloned();
        let value = value.ok_or_else(|| self.fault("a value remembered before", format!("number {key}")))?;
        self.push(value)
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), Fault> {
        let storage = || STORAGES.iter().position(|s| s.0 == name).map(Global::Storage);
        let known = match (module, name) {
            ("torch._utils", "_rebuild_tensor_v2") => Some(Global::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Global::RebuildParameter),
            ("collections", "OrderedDict") => Some(Global::OrderedDict),
            ("torch", _) => storage(),
            _ => None,
        };
        match known {
            Some(global) => self.push(Value::Global(global)),
            None => {
                let found = format!("{}, which is not loaded", quoted(&format!("{module}.{name}")));
                Err(self.fault("only the names that tensors are built with", found))
            }
        }
    }

    fn new_dict(&mut self) -> Result<(), Fault> {
        self.dicts.push(Vec::new());
        if self.dicts.len() > MAX_VALUES {
            return Err(self.fault(format!("at most {MAX_VALUES} dictionaries"), "more"));
        }
        self.push(Value::Dict(self.dicts.len() - 1))
    }

    fn set(&mut self, pairs: Vec<Value>) -> Result<(), Fault> {
        let Some(&Value::Dict(dict)) = self.stack.last() else {
            return Err(self.fault("a dictionary to fill", "something else"));
        };
        let mut pairs = pairs.into_iter();
        while let Some(key) = pairs.next() {
            let (Value::Text(key), Some(value)) = (key, pairs.next()) else {
                return Err(self.fault("pairs of a name and a value", "something else"));
            };
            self.dicts[dict].push((key, value));
        }
        Ok(())
    }

    /// A reference to a file of the zip: `("storage", class, key, device, numbers)`.
    fn persistent(&mut self) -> Result<(), Fault> {
        let id = self.pop()?;
        if let Value::Tuple(parts, _) = &id
            && let [Value::Text(kind), Value::Global(Global::Storage(class)), Value::Text(key), _, Value::Int(numbers)] =
                &parts[..]
            && &**kind == "storage"
            && let Ok(numbers) = u64::try_from(*numbers)
        {
            return self.push(Value::Storage(Rc::new(Storage { class: *class, key: key.clone(), numbers })));
        }
        Err(self.fault("a storage", "another reference"))
    }

    /// A call of one of the known names.
    fn call(&mut self) -> Result<(), Fault> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Value::Tuple(arguments, _) = arguments else { return Err(self.fault("arguments in a tuple", "none")) };
        match function {
            Value::Global(Global::OrderedDict) if arguments.is_empty() => self.new_dict(),
            Value::Global(Global::RebuildTensor) => {
                let tensor = self.tensor(&arguments)?;
                self.push(Value::Tensor(Rc::new(tensor)))
            }
            // (tensor, requires_grad, hooks)
            Value::Global(Global::RebuildParameter) => match arguments.first() {
                Some(tensor @ Value::Tensor(_)) => self.push(tensor.clone()),
                _ => Err(self.fault("a parameter's tensor", "something else")),
            },
            _ => Err(self.fault("a call that builds a tensor or a dictionary", "another call")),
        }
    }

    /// `(storage, offset, shape, strides, requires_grad, hooks)`.
    fn tensor(&self, arguments: &[Value]) -> Result<Tensor, Fault> {
        let wrong = |what: &str| self.fault("a storage, an offset, a shape and strides", what);
        let [Value::Storage(storage), Value::Int(offset), shape, strides, ..] = arguments else {
            return Err(wrong("other arguments"));
        };
        let numbers = |v: &Value| match v {
            Value::Tuple(all, _) if all.len() <= MAX_DIMS => {
                all.iter().map(|v| if let Value::Int(n) = v { u64::try_from(*n).ok() } else { None }).collect()
            }
            _ => None,
        };
        let shape: Vec<u64> = numbers(shape).ok_or_else(|| wrong("another shape"))?;
        let strides: Vec<u64> = numbers(strides).ok_or_else(|| wrong("other strides"))?;
        let offset = u64::try_from(*offset).map_err(|_| wrong("a negative offset"))?;
        // Row after row without gaps; the stride of a dimension of one says nothing.
        let mut dense = 1u64;
        for (size, stride) in shape.iter().zip(&strides).rev() {
            if *size != 1 && *stride != dense {
                return Err(self.fault("a tensor that lies row after row", format!("strides {strides:?} of {shape:?}")));
            }
            dense = dense.checked_mul(*size).ok_or_else(|| wrong("a size beyond all memory"))?;
        }
        if strides.len() != shape.len() || offset.checked_add(dense).is_none_or(|end| end > storage.numbers) {
            return Err(
                self.fault("a tensor inside its storage", format!("{shape:?} from {offset} of {}", storage.numbers))
            );
        }
        Ok(Tensor { storage: storage.clone(), offset, shape })
    }

    /// Runs the program; gives the table that it makes.
    fn run(mut self) -> Result<Vec<(Rc<str>, Value)>, Fault> {
        loop {
            let op = self.byte()?;
            match op {
                0x80 => _ = self.byte()?,        // PROTO
                0x95 => _ = self.number::<8>()?, // FRAME
                b'(' => self.push(Value::Mark)?,
                b'}' => self.new_dict()?,
                b')' => self.tuple(Vec::new())?,
                b't' => {
                    let group = self.group()?;
                    self.tuple(group)?;
                }
                0x85..=0x87 => self.last(usize::from(op - 0x84))?, // TUPLE1, 2, 3
                b'N' => self.push(Value::None)?,
                0x88 | 0x89 => self.push(Value::Bool)?, // NEWTRUE, NEWFALSE
                b'K' => {
                    let n = self.number::<1>()?;
                    self.push(Value::Int(n as i64))?;
                }
                b'M' => {
                    let n = self.number::<2>()?;
                    self.push(Value::Int(n as i64))?;
                }
                b'J' => {
                    let n = self.number::<4>()? as u32 as i32;
                    self.push(Value::Int(n.into()))?;
                }
                0x8a => {
                    // LONG1: little-endian, two's complement.
                    let len = usize::from(self.byte()?);
                    if len > 8 {
                        return Err(self.fault("numbers of at most 64 bits", format!("{len} bytes")));
                    }
                    let bytes = self.take(len)?;
                    let mut all = [if bytes.last().is_some_and(|b| *b >= 128) { 255 } else { 0 }; 8];
                    all[..len].copy_from_slice(bytes);
                    self.push(Value::Int(i64::from_le_bytes(all)))?;
                }
                b'X' => {
                    let len = self.number::<4>()?;
                    let text = self.text(len)?;
                    self.push(Value::Text(text))?;
                }
                0x8c => {
                    let len = self.number::<1>()?; // SHORT_BINUNICODE
                    let text = self.text(len)?;
                    self.push(Value::Text(text))?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(&module, &name)?;
                }
                0x93 => {
                    // STACK_GLOBAL
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Value::Text(module), Value::Text(name)) = (module, name) else {
                        return Err(self.fault("a module and a name", "something else"));
                    };
                    self.global(&module, &name)?;
                }
                b'q' => {
                    let key = self.number::<1>()?;
                    self.remember(key)?;
                }
                b'r' => {
                    let key = self.number::<4>()?;
                    self.remember(key)?;
                }
                0x94 => self.remember(self.memo.len() as u64)?, // MEMOIZE
                b'h' => {
                    let key = self.number::<1>()?;
                    self.recall(key)?;
                }
                b'j' => {
                    let key = self.number::<4>()?;
                    self.recall(key)?;
                }
                b'Q' => self.persistent()?,
                b'R' => self.call()?,
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set(vec![key, value])?;
                }
                b'u' => {
                    let group = self.group()?;
                    self.set(group)?;
                }
                // A dictionary's attributes (`_metadata` of a module's table), which say nothing about tensors.
                b'b' => {
                    self.pop()?;
                    if !matches!(self.stack.last(), Some(Value::Dict(_))) {
                        return Err(self.fault("attributes of a dictionary", "of something else"));
                    }
                }
                b'.' => {
                    let Value::Dict(dict) = self.pop()? else {
                        return Err(self.fault("a table of tensors", "something else"));
                    };
                    return Ok(std::mem::take(&mut self.dicts[dict]));
                }
                other => {
                    let found = format!("operation {other:#04x}, which is not carried out");
                    return Err(self.fault("only operations that build tensors", found));
                }
            }
        }
    }
}

/// Adds the tensors of a checkpoint to a table.
pub(crate) fn read_checkpoint(path: &Path, table: &mut Table, faults: &mut Faults) -> Result<()> {
    let map: Arc<dyn ByteSource> = Arc::new(Map::open(path)?);
    let bytes = map.bytes();
    let broken = |e: zip::result::ZipError| {
        Fault::file(path, "a checkpoint of PyTorch 1.6 or later (a zip file)", e.to_string())
    };
    let mut zip = ZipArchive::new(std::io::Cursor::new(bytes)).map_err(broken)?;
    if zip.len() > MAX_FILES {
        return Err(Fault::file(path, format!("at most {MAX_FILES} files in it"), zip.len().to_string()).into());
    }
    let mut program = None;
    let mut places = HashMap::new();
    for i in 0..zip.len() {
        let entry = zip.by_index_raw(i).map_err(broken)?;
        let (name, size) = (entry.name().to_owned(), entry.size());
        // What a zip file says of itself need not be so.
        let start = entry.data_start();
        let end = start.checked_add(entry.compressed_size()).filter(|end| *end <= bytes.len() as u64);
        let Some(end) = end else {
            return Err(Fault::file(path, format!("the whole of {}", quoted(&name)), "less").into());
        };
        if entry.compression() != zip::CompressionMethod::Stored || entry.compressed_size() != size || entry.encrypted()
        {
            let found = format!("{} compressed", quoted(&name));
            return Err(Fault::file(path, "files stored as they are, as PyTorch does", found).into());
        }
        let range = start as usize..end as usize;
        match name.split_once('/') {
            Some((_, "data.pkl")) if program.is_none() => program = Some(range),
            Some((_, "data.pkl")) => return Err(Fault::file(path, "one program", "a second one").into()),
            Some((_, "byteorder")) if &bytes[range.clone()] != b"little" => {
                return Err(Fault::file(path, "numbers with the low byte first", "the other order").into());
            }
            Some((_, rest)) => {
                if let Some(key) = rest.strip_prefix("data/") {
                    places.insert(key.to_owned(), range);
                }
            }
            None => {}
        }
    }
    let program = program.ok_or_else(|| Fault::file(path, "a checkpoint", "a zip file without data.pkl"))?;
    if program.len() as u64 > MAX_PROGRAM {
        return Err(
            Fault::file(path, format!("a program of at most {MAX_PROGRAM} bytes"), program.len().to_string()).into()
        );
    }
    let code = &bytes[program];
    let machine = Machine { path, code, at: 0, stack: Vec::new(), memo: HashMap::new(), dicts: Vec::new() };
    let tensors = machine.run()?;
    let file = table.add_file(path, map.clone());
    for (name, value) in tensors {
        let Value::Tensor(tensor) = value else {
            faults.push(Fault::tensor(path, &name, "a tensor", "something else"));
            continue;
        };
        let storage = &tensor.storage;
        let (_, width, ty) = STORAGES[storage.class];
        let place = places.get(&*storage.key);
        let fits = place.is_some_and(|p| storage.numbers.checked_mul(width as u64) == Some(p.len() as u64));
        let (Some(place), true) = (place, fits) else {
            let found = place.map_or("nothing".to_owned(), |p| format!("{} bytes", p.len()));
            faults.push(Fault::tensor(path, &name, format!("{} numbers of {width} bytes", storage.numbers), found));
            continue;
        };
        let shape: Vec<usize> = tensor.shape.iter().map(|n| *n as usize).collect();
        // Checked when the tensor was built: inside the storage, which has just been found whole.
        let start = place.start + tensor.offset as usize * width;
        let range = start..start + shape.iter().product::<usize>() * width;
        let shape = if shape.is_empty() { vec![1] } else { shape };
        table.insert(&name, Stored { ty, shape, file, range }, faults);
    }
    Ok(())
}
