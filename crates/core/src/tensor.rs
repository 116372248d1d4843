//! Activations: a shape over a buffer that only its own backend can open.
//!
//! A buffer that was the last of its kind goes back to the arena it came from, so that after the first steps
//! no operation allocates. A handle is cheap to clone; an operation may reuse the memory of
//! an argument that it takes by value if the handle is the only one (section 6 of the design: this
//! is what lets a training tape keep clones and lose nothing).

use std::any::Any;
use std::sync::Arc;

use crate::{DType, Error, Result, Shape};

/// What a backend keeps behind a [`Buffer`].
pub trait Storage: Any + Send + Sync {
    /// Name of the device that owns it.
    fn device(&self) -> &'static str;

    /// Called when the last handle goes; the storage may put itself back on a free list.
    fn recycle(self: Arc<Self>) {}
}

/// A shared handle to device memory.
#[derive(Clone)]
pub struct Buffer(Option<Arc<dyn Storage>>);

impl Buffer {
    /// Wraps a storage.
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        Buffer(Some(storage))
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        self.0.as_ref().expect("invariant: a buffer is only empty while it is dropped")
    }

    /// Device that owns the memory.
    pub fn device(&self) -> &'static str {
        self.storage().device()
    }

    /// The storage, if it is of type `S`.
    pub fn get<S: Storage>(&self) -> Option<&S> {
        let any: &dyn Any = self.storage().as_ref();
        any.downcast_ref()
    }

    /// The storage for writing, if it is of type `S` and this is the only handle.
    pub fn get_mut<S: Storage>(&mut self) -> Option<&mut S> {
        let any: &mut dyn Any = Arc::get_mut(self.0.as_mut()?)?;
        any.downcast_mut()
    }

    /// Whether this is the only handle.
    pub fn is_unique(&self) -> bool {
        Arc::strong_count(self.storage()) == 1
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(storage) = self.0.take()
            && Arc::strong_count(&storage) == 1
        {
            storage.recycle();
        }
    }
}

/// An activation: row-major, last dimension contiguous, at the start of its buffer.
#[derive(Clone)]
pub struct Tensor {
    /// Memory.
    pub buf: Buffer,
    /// Dimensions.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} {} on {})", self.dtype.name(), self.shape, self.buf.device())
    }
}

impl Tensor {
    /// Number of rows: the product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        self.shape.rows()
    }

    /// Size of the last dimension.
    pub fn cols(&self) -> usize {
        self.shape.cols()
    }

    /// The same memory under another shape.
    ///
    /// # Errors
    /// If the number of elements differs.
    pub fn reshape(mut self, shape: Shape) -> Result<Tensor> {
        Error::check_shape(self.shape.numel() == shape.numel(), "reshape", "x", self.shape, || {
            format!("as many elements as {shape}")
        })?;
        self.shape = shape;
        Ok(self)
    }
}
