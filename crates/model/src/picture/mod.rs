//! Pictures: a tower that sees, a head that predicts picture ids, a codec between ids and pixels.
//!
//! Nothing of the language model is here: the tower's features and the ids' embeddings enter [`crate::Decoder::trunk`] as rows, and
//! the head reads its hidden states. Pictures lie as `[pictures, height, width, channels]`.

mod codec;
mod load;
mod names;
mod pixels;
mod spec;
mod tower;

use fathom_core::{Backend, Resident, Result, Shape, Tensor};
use fathom_picture::Picture;

use crate::Decoder;
use crate::batch::{Batch, Input};
use crate::linear::Linear;

pub use codec::Codec;
pub use names::Place;
pub use pixels::{picture, prepare, values};
pub use spec::{CodecSpec, PictureSpec, PixelSpec, TowerSpec};
pub use tower::Tower;

/// The picture side of a model, with weights.
pub struct Pictures {
    /// Sees.
    pub tower: Tower,
    /// From the tower's width to the decoder's.
    pub aligner: Mlp,
    /// Embeddings of picture ids, `[codes, code_dim]`.
    pub embed: Resident,
    /// From there to the decoder's width.
    pub embed_aligner: Mlp,
    /// Logits of picture ids.
    pub head: Mlp,
    /// Between ids and pixels.
    pub codec: Codec,
}

/// Projections with GELU between them.
pub struct Mlp {
    /// The projections.
    pub layers: Vec<Linear>,
}

impl Mlp {
    /// `x: [rows, in]` → `[rows, out]`.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn forward(&self, b: &dyn Backend, x: &Tensor) -> Result<Tensor> {
        let (first, rest) = self.layers.split_first().expect("invariant: a perceptron has layers");
        rest.iter().try_fold(first.forward(b, x)?, |y, layer| layer.forward(b, &b.gelu(y)?))
    }
}

impl Pictures {
    /// Pixel values `[pictures, side, side, 3]` → rows for the decoder, `[pictures × rows, dim]`.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn see(&self, b: &dyn Backend, pixels: &Tensor) -> Result<Tensor> {
        self.aligner.forward(b, &self.tower.forward(b, pixels)?)
    }

    /// Picture ids → rows for the decoder, `[ids, dim]`.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn embed(&self, b: &dyn Backend, ids: &[u32]) -> Result<Tensor> {
        self.embed_aligner.forward(b, &b.embed(&self.embed, ids)?)
    }
}

impl Decoder {
    /// The picture side.
    ///
    /// # Panics
    /// If the model has none.
    pub fn pictures(&self) -> &Pictures {
        self.pictures.as_ref().expect("invariant: only a model with a picture side is asked for pictures")
    }

    /// Rows of a batch as they enter the trunk, whatever they are: `[tokens, dim]`.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn inputs(&self, batch: &Batch) -> Result<Tensor> {
        if batch.inputs.is_empty() {
            return self.embed(&batch.tokens);
        }
        let mut parts = Vec::new();
        let mut at = 0;
        for (rows, input) in &batch.inputs {
            if at < rows.start {
                parts.push(self.embed(&batch.tokens[at..rows.start])?);
            }
            parts.push(match input {
                Input::Codes => self.pictures().embed(&*self.backend, &batch.tokens[rows.clone()])?,
                Input::Rows(x, rows) if rows.len() == x.rows() => x.clone(),
                Input::Rows(x, rows) => {
                    let rows: Vec<u32> = rows.clone().map(|row| row as u32).collect();
                    self.backend.select_rows(x, &rows)?
                }
            });
            at = rows.end;
        }
        if at < batch.rows() {
            parts.push(self.embed(&batch.tokens[at..])?);
        }
        self.backend.concat_rows(&parts.iter().collect::<Vec<_>>())
    }

    /// A picture's rows for the decoder, `[rows, dim]`.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn see(&self, picture: &Picture) -> Result<Tensor> {
        let spec = self.spec.pictures.as_ref().expect("invariant: a model with a picture side has its spec");
        let values = values(&prepare(picture, spec), &spec.pixels);
        let b = &*self.backend;
        self.pictures().see(b, &b.tensor(Shape::new(&[1, spec.side, spec.side, 3]), &values)?)
    }

    /// Logits of picture ids, `[rows, codes]`, of normed hidden states `[rows, dim]`.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn picture_head(&self, h: &Tensor) -> Result<Tensor> {
        self.pictures().head.forward(&*self.backend, h)
    }
}
