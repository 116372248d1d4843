//! Host memory for the backends that compute on the CPU, with a free list per size class.
//!
//! Sizes are rounded up to a power of two quarter steps apart (at most 25 % waste), so that steps of
//! slightly different lengths find each other's buffers again.

use std::sync::{Arc, Mutex, Weak};

use half::f16;
use half::vec::HalfBitsVecExt;

use crate::dtype::RUN;
use crate::{Buffer, DType, Error, KvCache, KvStream, Result, Shape, Storage, Tensor, check};

/// Elements in host memory. Vectors are at least as long as their tensor's shape says.
pub enum HostData {
    /// Binary32.
    F32(Vec<f32>),
    /// Binary16.
    F16(Vec<f16>),
    /// Of every row [`RUN`] elements share a scale: x = d · q.
    Q8_0 {
        /// Signed bytes.
        q: Vec<u8>,
        /// As many scales to a row as it has runs.
        d: Vec<f16>,
    },
    /// Integers.
    U32(Vec<u32>),
}

/// Host memory owned by one device.
pub struct HostStorage {
    device: &'static str,
    data: HostData,
    class: usize,
    home: Weak<HostArena>,
}

impl HostStorage {
    /// The elements.
    pub fn data(&self) -> &HostData {
        &self.data
    }

    /// The elements, for writing.
    pub fn data_mut(&mut self) -> &mut HostData {
        &mut self.data
    }
}

impl Storage for HostStorage {
    fn device(&self) -> &'static str {
        self.device
    }

    fn recycle(self: Arc<Self>) {
        if let Some(home) = self.home.upgrade() {
            home.put(self);
        }
    }
}

const CLASSES: usize = 160;

/// Free lists of host buffers of one device.
pub struct HostArena {
    device: &'static str,
    f32s: Mutex<Vec<Vec<Arc<HostStorage>>>>,
    u32s: Mutex<Vec<Vec<Arc<HostStorage>>>>,
}

/// Smallest class whose capacity holds `len` elements, and that capacity.
fn class_of(len: usize) -> (usize, usize) {
    let len = len.max(64);
    let base = usize::BITS as usize - 1 - len.leading_zeros() as usize;
    let quarter = 1usize << (base - 2);
    let steps = (len - (1 << base)).div_ceil(quarter);
    ((base - 6) * 4 + steps, (1 << base) + steps * quarter)
}

impl HostArena {
    /// An empty arena for `device`.
    pub fn new(device: &'static str) -> Arc<Self> {
        let lists = || Mutex::new((0..CLASSES).map(|_| Vec::with_capacity(32)).collect());
        Arc::new(HostArena { device, f32s: lists(), u32s: lists() })
    }

    /// Device name that the buffers carry.
    pub fn device(&self) -> &'static str {
        self.device
    }

    fn put(&self, storage: Arc<HostStorage>) {
        let lists = match storage.data {
            HostData::F32(_) => &self.f32s,
            HostData::U32(_) => &self.u32s,
            HostData::F16(_) | HostData::Q8_0 { .. } => return,
        };
        lists.lock().expect("invariant: no panic under the arena's lock")[storage.class].push(storage);
    }

    /// A tensor whose elements are whatever the memory last held.
    pub fn alloc(self: &Arc<Self>, shape: Shape, dtype: DType) -> Tensor {
        let (class, capacity) = class_of(shape.numel());
        let lists = match dtype {
            DType::F32 => Some(&self.f32s),
            DType::U32 => Some(&self.u32s),
            DType::F16 | DType::Q8_0 => None,
        };
        let found = lists.and_then(|l| l.lock().expect("invariant: no panic under the arena's lock")[class].pop());
        let storage = found.unwrap_or_else(|| {
            let data = match dtype {
                DType::F32 => HostData::F32(vec![0.0; capacity]),
                DType::U32 => HostData::U32(vec![0; capacity]),
                // Zeroed integers come from the system untouched, so that an unused part of a cache takes no memory.
                DType::F16 => HostData::F16(vec![0u16; capacity].reinterpret_into()),
                DType::Q8_0 => {
                    let scales = shape.rows() * shape.cols().div_ceil(RUN);
                    HostData::Q8_0 { q: vec![0; capacity], d: vec![0u16; scales].reinterpret_into() }
                }
            };
            Arc::new(HostStorage { device: self.device, data, class, home: Arc::downgrade(self) })
        });
        Tensor { buf: Buffer::new(storage), shape, dtype }
    }

    /// A cache stream of `slots` slots.
    ///
    /// # Errors
    /// If caches have no such type.
    pub fn cache(self: &Arc<Self>, slots: usize, stream: KvStream, dtype: DType) -> Result<KvCache> {
        check::kv_alloc(dtype)?;
        let (heads, dim) = stream.heads();
        let mut data = self.alloc(Shape::new(&[slots, heads, dim]), dtype);
        data.shape = Shape::matrix(slots, stream.width());
        Ok(KvCache { data, stream })
    }

    /// A tensor with the given elements.
    pub fn from_f32(self: &Arc<Self>, shape: Shape, data: &[f32]) -> Result<Tensor> {
        Error::check_shape(shape.numel() == data.len(), "tensor", "data", Shape::new(&[data.len()]), || {
            format!("{shape}")
        })?;
        let mut t = self.alloc(shape, DType::F32);
        self.f32s_mut("tensor", &mut t)?.copy_from_slice(data);
        Ok(t)
    }

    fn storage<'a>(&self, op: &'static str, t: &'a Tensor) -> Result<&'a HostStorage> {
        match t.buf.get::<HostStorage>() {
            Some(s) if s.device == self.device => Ok(s),
            _ => Err(Error::Foreign { op, expected: self.device, found: t.buf.device() }),
        }
    }

    /// The f32 elements of a tensor of this arena.
    ///
    /// # Errors
    /// If it lives elsewhere or has another element type.
    pub fn f32s<'a>(&self, op: &'static str, t: &'a Tensor) -> Result<&'a [f32]> {
        match &self.storage(op, t)?.data {
            HostData::F32(v) => Ok(&v[..t.shape.numel()]),
            _ => Err(Error::Type { op, expected: "f32", found: t.dtype.name() }),
        }
    }

    /// The integer elements of a tensor of this arena.
    ///
    /// # Errors
    /// If it lives elsewhere or has another element type.
    pub fn u32s<'a>(&self, op: &'static str, t: &'a Tensor) -> Result<&'a [u32]> {
        match &self.storage(op, t)?.data {
            HostData::U32(v) => Ok(&v[..t.shape.numel()]),
            _ => Err(Error::Type { op, expected: "u32", found: t.dtype.name() }),
        }
    }

    fn storage_mut<'a>(&self, op: &'static str, t: &'a mut Tensor) -> Result<&'a mut HostStorage> {
        self.storage(op, t)?;
        Ok(t.buf.get_mut::<HostStorage>().expect("invariant: an operation writes only to a tensor nobody else holds"))
    }

    /// The f32 elements for writing.
    ///
    /// # Errors
    /// As [`HostArena::f32s`].
    ///
    /// # Panics
    /// If somebody else holds the tensor.
    pub fn f32s_mut<'a>(&self, op: &'static str, t: &'a mut Tensor) -> Result<&'a mut [f32]> {
        let (n, found) = (t.shape.numel(), t.dtype.name());
        match &mut self.storage_mut(op, t)?.data {
            HostData::F32(v) => Ok(&mut v[..n]),
            _ => Err(Error::Type { op, expected: "f32", found }),
        }
    }

    /// The integer elements for writing.
    ///
    /// # Errors
    /// As [`HostArena::u32s`].
    ///
    /// # Panics
    /// If somebody else holds the tensor.
    pub fn u32s_mut<'a>(&self, op: &'static str, t: &'a mut Tensor) -> Result<&'a mut [u32]> {
        let (n, found) = (t.shape.numel(), t.dtype.name());
        match &mut self.storage_mut(op, t)?.data {
            HostData::U32(v) => Ok(&mut v[..n]),
            _ => Err(Error::Type { op, expected: "u32", found }),
        }
    }

    /// `t` itself if nobody else holds it, else a copy: what an in-place operation may write to.
    ///
    /// # Errors
    /// As [`HostArena::f32s`].
    pub fn owned_f32(self: &Arc<Self>, op: &'static str, t: Tensor) -> Result<Tensor> {
        if t.buf.is_unique() {
            self.storage(op, &t)?;
            return Ok(t);
        }
        self.from_f32(t.shape, self.f32s(op, &t)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_their_length_and_waste_little() {
        let mut last = 0;
        for len in 1..70_000 {
            let (class, cap) = class_of(len);
            assert!(cap >= len && class >= last && class < CLASSES);
            assert!(cap <= (len.max(64) * 5).div_ceil(4), "{len} {cap}");
            assert_eq!(class_of(cap), (class, cap));
            last = class;
        }
    }

    #[test]
    fn a_dropped_buffer_is_found_again_and_a_shared_one_is_copied() {
        let arena = HostArena::new("test");
        let t = arena.from_f32(Shape::matrix(2, 3), &[1., 2., 3., 4., 5., 6.]).unwrap();
        let address = arena.f32s("t", &t).unwrap().as_ptr();
        let u = arena.owned_f32("t", t.clone()).unwrap();
        assert_ne!(arena.f32s("t", &u).unwrap().as_ptr(), address);
        drop(u);
        let v = arena.owned_f32("t", t).unwrap();
        assert_eq!(arena.f32s("t", &v).unwrap().as_ptr(), address);
        drop(v);
        let w = arena.alloc(Shape::matrix(1, 5), DType::F32);
        assert_eq!(arena.f32s("t", &w).unwrap().as_ptr(), address);
    }

    #[test]
    fn a_foreign_tensor_is_named() {
        let (a, b) = (HostArena::new("one"), HostArena::new("two"));
        let t = a.alloc(Shape::matrix(1, 1), DType::F32);
        let e = b.f32s("add", &t).unwrap_err().to_string();
        assert!(e.contains("one") && e.contains("two"), "{e}");
    }
}
