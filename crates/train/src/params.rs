//! The weights that learn: f32 master copies under GGUF names.
//!
//! A decoder is built straight over them, without copying; to change them the decoder is dropped, the values are changed in
//! place, and the next one built. Either they are the whole model, or an adapter beside one whose own weights stay as their file
//! has them. Exports use the names of Hugging Face or GGUF.

use std::path::Path;
use std::sync::Arc;

use fathom_core::rng::Rng;
use fathom_core::{Backend, ByteSource, Bytes, Weight, format};
use fathom_files::{Archive, Fault, TensorInfo};
use fathom_model::adapter::{self, Adapter, Pair};
use fathom_model::names::{Naming, Slot, TensorId};
use fathom_model::spec::ModelSpec;
use fathom_model::weights::{self, Demand, TensorSource};
use fathom_model::{Decoder, Fused, Model, Result};

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
    /// Factor on the learning rate; 1 but for an adapter's second matrix, which has the adapter's scale multiplied in.
    pub rate: f32,
    values: Arc<Values>,
}

impl Param {
    fn new(demand: Demand, values: Vec<f32>) -> Self {
        let name = demand.id.name(Naming::Gguf).expect("invariant: a demanded tensor has a GGUF name");
        Param { demand, name, rate: 1.0, values: Arc::new(Values(values)) }
    }

    /// The values as a weight that is read where they lie.
    fn weight(&self) -> Weight {
        let bytes = Bytes::new(self.values.clone(), 0..4 * self.values.0.len());
        Weight { format: format::F32, rows: self.demand.rows, cols: self.demand.cols, bytes, scales: None }
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
    /// Its tensors, in the order in which the decoder asks for them; an adapter's in pairs.
    pub all: Vec<Param>,
    /// What they stand beside, if they are an adapter.
    frozen: Option<Frozen>,
}

/// A model whose own weights do not learn.
struct Frozen {
    archive: Arc<Archive>,
    rank: usize,
    scale: f32,
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
        Params { spec: spec.clone(), all, frozen: None }
    }

    /// The parameters of an existing model, decoded to f32.
    ///
    /// # Errors
    /// If a tensor is missing or broken.
    pub fn from_source(spec: &ModelSpec, source: &dyn TensorSource) -> Result<Self> {
        let all = weights::decoded(spec, source)?.into_iter().map(|(d, values)| Param::new(d, values)).collect();
        Ok(Params { spec: spec.clone(), all, frozen: None })
    }

    /// A new adapter beside `model`'s projections of the names `modules` (see [`adapter::targets`]): the first matrix uniform
    /// within 1/√(inputs), the second zero, as PEFT begins (Hu et al. 2021, section 4.1).
    pub fn lora(model: Model, modules: &[String], rank: usize, alpha: f32, seed: u64) -> Self {
        let scale = alpha / rank as f32;
        let mut all = Vec::new();
        for (stream, (_, d)) in
            adapter::targets(&model.spec).into_iter().filter(|(name, _)| modules.contains(name)).enumerate()
        {
            let mut rng = Rng::new(seed, stream as u64);
            let bound = 1.0 / (d.cols as f64).sqrt();
            let a = (0..rank * d.cols).map(|_| (bound * (2.0 * rng.uniform() - 1.0)) as f32).collect();
            let mut pair = [
                Param::new(Demand { rows: rank, ..d }, a),
                Param::new(Demand { cols: rank, ..d }, vec![0.0; d.rows * rank]),
            ];
            for (param, which) in pair.iter_mut().zip(["lora_a", "lora_b"]) {
                param.name = param.name.replace(".weight", &format!(".{which}"));
            }
            pair[1].rate = scale;
            all.extend(pair);
        }
        let frozen = Frozen { archive: Arc::new(model.archive), rank, scale };
        Params { spec: model.spec, all, frozen: Some(frozen) }
    }

    /// The adapter that the parameters are, read where they lie; `None` if they are a whole model.
    pub fn adapter(&self) -> Option<Adapter> {
        let Frozen { rank, scale, .. } = *self.frozen.as_ref()?;
        let pair = |pair: &[Param]| (pair[0].demand.id, Pair { a: pair[0].weight(), b: pair[1].weight() });
        Some(Adapter { rank, scale, pairs: self.all.chunks_exact(2).map(pair).collect() })
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
        let Some(frozen) = &self.frozen else { return weights::load(&self.spec, self, backend, &mut |_, _| {}) };
        let source = Fused { archive: &frozen.archive, spec: &self.spec };
        let mut decoder = weights::load(&self.spec, &source, backend, &mut |_, _| {})?;
        decoder.adapt(self.adapter().as_ref())?;
        Ok(decoder)
    }
}

impl TensorSource for Params {
    fn naming(&self) -> Naming {
        Naming::Gguf
    }

    fn tensor(&self, name: &str) -> std::result::Result<Option<TensorInfo>, Fault> {
        let Some(p) = self.all.iter().find(|p| p.name == name) else { return Ok(None) };
        let Weight { rows, cols, format, bytes, .. } = p.weight();
        Ok(Some(TensorInfo { name: name.to_owned(), shape: vec![rows, cols], format, bytes }))
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
