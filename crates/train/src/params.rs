//! The weights that learn: f32 master copies under GGUF names.
//!
//! A decoder is built straight over them, without copying; to change them the decoder is dropped, the values are changed in
//! place, and the next one built. Exports use the names of Hugging Face or GGUF.

use std::path::Path;
use std::sync::Arc;

use fathom_core::rng::Rng;
use fathom_core::{Backend, ByteSource, Bytes, format};
use fathom_files::{Fault, TensorInfo};
use fathom_model::names::{Naming, Slot, TensorId};
use fathom_model::spec::ModelSpec;
use fathom_model::weights::{self, Demand, TensorSource};
use fathom_model::{Decoder, Result};

/// Values of one parameter, readable as the bytes of a weight.
struct Values(Vec<f32>);

impl ByteSource for Values {
    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// One tensor of the model.
pub struct Param {
    /// What it is: role and shape.
    pub demand: Demand,
    /// Its GGUF name.
    pub name: String,
    values: Arc<Values>,
}

impl Param {
    fn new(demand: Demand, values: Vec<f32>) -> Self {
        let name = demand.id.name(Naming::Gguf).expect("invariant: a demanded tensor has a GGUF name");
        Param { demand, name, values: Arc::new(Values(values)) }
    }

    /// The values, row-major.
    pub fn values(&self) -> &[f32] {
        &self.values.0
    }

    /// The values, for changing.
    ///
    /// # Panics
    /// While a decoder over them is alive.
    pub fn values_mut(&mut self) -> &mut [f32] {
        let values = Arc::get_mut(&mut self.values).expect("invariant: weights change only between two decoders");
        &mut values.0
    }
}

/// All parameters of a model.
pub struct Params {
    /// The model.
    pub spec: ModelSpec,
    /// Its tensors, in the order in which the decoder asks for them.
    pub all: Vec<Param>,
}

impl Params {
    /// A new model: normal with standard deviation 1/√(inputs); the projections that write to the residual stream divided by
    /// √(2·layers) besides; the embedding 1/√(width); norms one, biases zero.
    pub fn init(spec: &ModelSpec, seed: u64) -> Self {
        let depth = (2.0 * spec.layers.len() as f64).sqrt();
        let make = |(stream, d): (usize, Demand)| {
            let mut rng = Rng::new(seed, stream as u64);
            let fan_in = (d.cols as f64).sqrt();
            let deviation = match d.id.slot {
                Slot::AttnOut | Slot::FfnDown | Slot::DownExps | Slot::DownShexp => 1.0 / (fan_in * depth),
                _ => 1.0 / fan_in,
            };
            let n = d.rows * d.cols;
            let values = match d.id.slot {
                Slot::AttnQBias | Slot::AttnKBias | Slot::AttnVBias | Slot::RouterBias => vec![0.0; n],
                _ if d.rows == 1 => vec![1.0; n],
                _ => (0..n).map(|_| (rng.normal() * deviation) as f32).collect(),
            };
            Param::new(d, values)
        };
        let all = weights::demanded(spec).into_iter().enumerate().map(make).collect();
        Params { spec: spec.clone(), all }
    }

    /// The parameters of an existing model, decoded to f32.
    ///
    /// # Errors
    /// If a tensor is missing or broken.
    pub fn from_source(spec: &ModelSpec, source: &dyn TensorSource) -> Result<Self> {
        let all = weights::decoded(spec, source)?.into_iter().map(|(d, values)| Param::new(d, values)).collect();
        Ok(Params { spec: spec.clone(), all })
    }

    /// The parameter `id`.
    pub fn find(&self, id: TensorId) -> Option<usize> {
        self.all.iter().position(|p| p.demand.id == id)
    }

    /// What a tape needs to tell the parameters apart, in order.
    pub fn sources(&self) -> Vec<Arc<dyn ByteSource>> {
        self.all.iter().map(|p| p.values.clone() as Arc<dyn ByteSource>).collect()
    }

    /// A decoder over the live values.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn decoder(&self, backend: Arc<dyn Backend>) -> Result<Decoder> {
        weights::load(&self.spec, self, backend, &mut |_, _| {})
    }
}

impl TensorSource for Params {
    fn naming(&self) -> Naming {
        Naming::Gguf
    }

    fn tensor(&self, name: &str) -> std::result::Result<Option<TensorInfo>, Fault> {
        let Some(p) = self.all.iter().find(|p| p.name == name) else { return Ok(None) };
        let Demand { rows, cols, .. } = p.demand;
        let source: Arc<dyn ByteSource> = p.values.clone();
        let bytes = Bytes::new(source, 0..rows * cols * 4);
        Ok(Some(TensorInfo { name: name.to_owned(), shape: vec![rows, cols], format: format::F32, bytes }))
    }

    fn contains(&self, name: &str) -> bool {
        self.all.iter().any(|p| p.name == name)
    }

    fn file_of(&self, _name: &str) -> &Path {
        Path::new("(the model in training)")
    }

    fn total_bytes(&self) -> u64 {
        self.all.iter().map(|p| 4 * p.values().len() as u64).sum()
    }
}
