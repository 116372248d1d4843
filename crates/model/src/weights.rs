//! Finds a spec's tensors in a model's files and hands them to a backend.
//!
//! One walk over the spec does both jobs: run without a backend it only checks, and reports every missing or misshapen
//! tensor at once; run with one it uploads. Absence is data: what the spec demands and the file
//! lacks is a fault, what the file has and nobody asked for is listed.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use fathom_core::{
    AttendSpec, Backend, BlockScales, Experts, FormatId, LatentSpec, Mask, Resident, ResidentExperts, Weight, format,
};
use fathom_files::{Archive, Fault, Faults, Kind, TensorInfo};

use crate::decoder::{Decoder, Layer, Mtp};
use crate::error::{Error, Result};
use crate::ffn::{Dense, FfnLayer, Moe};
use crate::linear::Linear;
use crate::mixer::{Gqa, LatentWeights, MixerLayer, Mla, QueryProj};
use crate::names::{Naming, Slot, TensorId};
use crate::picture::Place;
use crate::spec::{Ffn, LayerSpec, Mixer, ModelSpec, RopeScaling};

/// Told how many bytes of weights have been taken over, of how many.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Parts of the picture side whose numbers are kept in 16 bit at least.
const PLAIN_PLACES: &[&str] = &["vq.", "v.patch_embd", "v.position_embd", "gen.embed"];

/// Columns and rows that share a scale in DeepSeek's FP8 files (V3 paper, section 3.3).
const FP8_BLOCK: (usize, usize) = (128, 128);

/// Where tensors come from: a model's files, or a trainer's parameters.
pub trait TensorSource {
    /// How they are named.
    fn naming(&self) -> Naming;

    /// The tensor `name`, if there is one.
    ///
    /// # Errors
    /// If its type is none that fathom computes with.
    fn tensor(&self, name: &str) -> std::result::Result<Option<TensorInfo>, Fault>;

    /// Whether there is a tensor `name`.
    fn contains(&self, name: &str) -> bool;

    /// The file that holds the tensor `name`, or should: for messages.
    fn file_of(&self, name: &str) -> &Path;

    /// Bytes of all tensors.
    fn total_bytes(&self) -> u64;
}

impl TensorSource for Archive {
    fn naming(&self) -> Naming {
        match self.kind() {
            Kind::Gguf => Naming::Gguf,
            _ => Naming::of_language_model(|name| self.contains(name)),
        }
    }

    fn tensor(&self, name: &str) -> std::result::Result<Option<TensorInfo>, Fault> {
        self.tensor(name)
    }

    fn contains(&self, name: &str) -> bool {
        self.contains(name)
    }

    fn file_of(&self, name: &str) -> &Path {
        self.file_of(name).unwrap_or(self.path())
    }

    fn total_bytes(&self) -> u64 {
        self.total_bytes()
    }
}

/// A tensor that a spec demands, as `[rows, cols]`; experts lie one below the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Which.
    pub id: TensorId,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Experts that the rows are shared among; 1 otherwise.
    pub experts: usize,
}

/// Every tensor that a model of this spec is made of, under its GGUF name: what a trainer begins with.
pub fn demanded(spec: &ModelSpec) -> Vec<Demand> {
    struct Nothing;
    impl TensorSource for Nothing {
        fn naming(&self) -> Naming {
            Naming::Gguf
        }
        fn tensor(&self, _name: &str) -> std::result::Result<Option<TensorInfo>, Fault> {
            Ok(None)
        }
        fn contains(&self, _name: &str) -> bool {
            false
        }
        fn file_of(&self, _name: &str) -> &Path {
            Path::new("")
        }
        fn total_bytes(&self) -> u64 {
            0
        }
    }
    let mut loader = Loader {
        finder: Finder::new(&Nothing),
        backend: None,
        progress: &mut |_, _| {},
        done: 0,
        error: None,
        steady: false,
    };
    loader.decoder(spec, None);
    loader.finder.demanded
}

/// A tensor of a source, and where it belongs in a GGUF file.
pub(crate) struct Found {
    /// Its name in GGUF. Experts that the source keeps singly follow each other under one name.
    pub(crate) name: String,
    /// Its role in the language model; none: it is of the picture side.
    pub(crate) slot: Option<Slot>,
    /// Whether its errors are seen: kernels, codebooks, embeddings of the picture side.
    pub(crate) exact: bool,
    /// Outermost first; of experts, one's.
    pub(crate) shape: Vec<usize>,
    /// The numbers.
    pub(crate) weight: Weight,
}

/// Every tensor that a spec demands, in the order of the walk.
///
/// # Errors
/// All faults at once.
pub(crate) fn found(spec: &ModelSpec, source: &dyn TensorSource) -> Result<Vec<Found>> {
    let mut finder = Finder::new(source);
    finder.found = Some(Vec::new());
    let mut loader = Loader { finder, backend: None, progress: &mut |_, _| {}, done: 0, error: None, steady: false };
    loader.decoder(spec, None);
    let found = loader.finder.found.take().unwrap_or_default();
    loader.finder.faults.or(found).map_err(Error::from)
}

/// Every tensor that [`demanded`] lists, decoded to f32.
///
/// # Errors
/// All faults at once.
pub fn decoded(spec: &ModelSpec, source: &dyn TensorSource) -> Result<Vec<(Demand, Vec<f32>)>> {
    let mut finder = Finder::new(source);
    let mut all = Vec::new();
    for d in demanded(spec) {
        let mut values = Vec::with_capacity(d.rows * d.cols);
        if d.experts > 1 && finder.naming != Naming::Gguf {
            for e in 0..d.experts {
                let weight = finder.weight(TensorId { expert: Some(e), ..d.id }, d.rows / d.experts, d.cols);
                values.extend(weight.into_iter().flat_map(|w| w.decode()));
            }
        } else if let Some(weight) = finder.weight(d.id, d.rows, d.cols) {
            values = weight.decode();
        }
        all.push((d, values));
    }
    finder.faults.or(all).map_err(Error::from)
}

/// Amends a spec by what only the tensors tell: a head that is not there, a missing prediction block,
/// frequency divisors.
///
/// # Errors
/// If the divisors are broken.
pub fn complete(spec: &mut ModelSpec, archive: &Archive) -> Result<()> {
    let naming = TensorSource::naming(archive);
    let has = |id: TensorId| id.name(naming).is_some_and(|n| archive.contains(&n));
    if naming == Naming::Gguf && !has(TensorId::global(Slot::Output)) {
        spec.tied = true;
    }
    if spec.mtp.is_some() && !has(TensorId::layer(Slot::MtpProj, spec.layers.len())) {
        spec.mtp = None;
    }
    if has(TensorId::global(Slot::RopeFreqs)) {
        let mut finder = Finder::new(archive);
        if let Some(w) = finder.weight(TensorId::global(Slot::RopeFreqs), 1, spec.rope.dim / 2) {
            let divisors = w.decode();
            if divisors.iter().all(|d| d.is_finite() && *d > 0.0) {
                spec.rope.scaling = RopeScaling::Divisors(divisors);
            } else {
                let path = archive.path();
                finder.faults.push(Fault::tensor(
                    path,
                    "rope_freqs.weight",
                    "positive numbers",
                    format!("{divisors:?}"),
                ));
            }
        }
        finder.faults.or(())?;
    }
    Ok(())
}

/// Checks every tensor of `spec`; returns the names in the file that nobody asked for.
///
/// # Errors
/// All faults at once.
pub fn check(spec: &ModelSpec, archive: &Archive) -> Result<Vec<String>> {
    let used = checked(spec, archive)?;
    Ok(archive.names().filter(|n| !used.contains(*n)).map(str::to_owned).collect())
}

/// Checks every tensor of `spec`; returns the names that it uses.
fn checked(spec: &ModelSpec, source: &dyn TensorSource) -> Result<BTreeSet<String>> {
    let mut loader = Loader {
        finder: Finder::new(source),
        backend: None,
        progress: &mut |_, _| {},
        done: 0,
        error: None,
        steady: false,
    };
    loader.decoder(spec, None);
    let used = loader.finder.used;
    loader.finder.faults.or(used).map_err(Error::from)
}

/// Uploads every tensor of `spec` to `backend`.
///
/// # Errors
/// All faults at once, or the first failure of the backend.
pub fn load(
    spec: &ModelSpec,
    source: &dyn TensorSource,
    backend: Arc<dyn Backend>,
    progress: Progress<'_>,
) -> Result<Decoder> {
    checked(spec, source)?;
    let mut loader =
        Loader { finder: Finder::new(source), backend: Some(&*backend), progress, done: 0, error: None, steady: false };
    let decoder = loader.decoder(spec, Some(backend.clone()));
    match (decoder, loader.error) {
        (Some(decoder), None) => Ok(decoder),
        (_, Some(error)) => Err(error),
        (None, None) => panic!("invariant: a tensor that was checked is there"),
    }
}

/// How the dimensions of a tensor make a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fold {
    /// All but the last are rows.
    Rows,
    /// All but the first are columns.
    Cols,
    /// As [`Fold::Rows`]; the matrix is the `nth` of `of` that lie behind each other.
    Part { nth: usize, of: usize },
}

/// Finds tensors, checks their shapes and notes what is wrong.
pub(crate) struct Finder<'a> {
    source: &'a dyn TensorSource,
    naming: Naming,
    used: BTreeSet<String>,
    demanded: Vec<Demand>,
    /// What was found, where somebody asks for it.
    found: Option<Vec<Found>>,
    faults: Faults,
}

impl<'a> Finder<'a> {
    fn new(source: &'a dyn TensorSource) -> Self {
        let naming = source.naming();
        Finder { source, naming, used: BTreeSet::new(), demanded: Vec::new(), found: None, faults: Faults::default() }
    }

    fn has(&self, id: TensorId) -> bool {
        id.name(self.naming).is_some_and(|n| self.source.contains(&n))
    }

    /// The tensor `id` as `[rows, cols]`; leading dimensions count as rows.
    fn weight(&mut self, id: TensorId, rows: usize, cols: usize) -> Option<Weight> {
        self.demanded.push(Demand { id, rows, cols, experts: 1 });
        let Some(name) = id.name(self.naming) else {
            panic!("invariant: {id} exists in the layout {:?}", self.naming);
        };
        let weight = self.named(&name, rows, cols, Fold::Rows)?;
        if let Some(found) = &mut self.found {
            let name = TensorId { expert: None, ..id }.name(Naming::Gguf);
            let name = name.expect("invariant: every tensor of a language model has a GGUF name");
            let shape = vec![rows, cols];
            found.push(Found { name, slot: Some(id.slot), exact: false, shape, weight: weight.clone() });
        }
        Some(weight)
    }

    fn named(&mut self, name: &str, rows: usize, cols: usize, fold: Fold) -> Option<Weight> {
        let found = match fold {
            Fold::Part { nth, of } if rows == 1 => {
                // A vector: its parts lie in one row.
                let all = self.find(name, 1, of * cols, fold);
                all.map(|w| {
                    let n = w.row_bytes() / of;
                    let bytes = w.bytes.slice(nth * n..(nth + 1) * n);
                    Weight { cols, bytes, ..w }
                })
            }
            Fold::Part { nth, of } => {
                self.find(name, of * rows, cols, fold).map(|w| w.slice_rows(nth * rows..(nth + 1) * rows))
            }
            _ => self.find(name, rows, cols, fold),
        };
        match found {
            Ok(weight) => Some(weight),
            Err(fault) => {
                self.faults.push(fault);
                None
            }
        }
    }

    fn find(&mut self, name: &str, rows: usize, cols: usize, fold: Fold) -> std::result::Result<Weight, Fault> {
        let expected = if rows == 1 { format!("[{cols}]") } else { format!("[{rows}, {cols}]") };
        let fail = |expected: String, found: String| Fault::tensor(self.source.file_of(name), name, expected, found);
        let Some(info) = self.source.tensor(name)? else {
            return Err(fail(expected, "no such tensor".to_owned()));
        };
        let found = match fold {
            Fold::Cols => (info.shape.first().copied().unwrap_or(1), info.shape.iter().skip(1).product::<usize>()),
            _ => (info.shape.iter().rev().skip(1).product(), info.shape.last().copied().unwrap_or(1)),
        };
        if found != (rows, cols) {
            return Err(fail(expected, format!("{:?}", info.shape)));
        }
        self.used.insert(name.to_owned());
        let scales = if info.format == format::F8_E4M3 { Some(self.scales(name, rows, cols)?) } else { None };
        Weight::new(info.format, rows, cols, info.bytes, scales)
            .map_err(|e| Fault::tensor(self.source.file_of(name), name, "whole blocks", e.to_string()))
    }

    fn scales(&mut self, weight: &str, rows: usize, cols: usize) -> std::result::Result<BlockScales, Fault> {
        let name = format!("{weight}_scale_inv");
        let fail = |expected: String, found: String| Fault::tensor(self.source.file_of(&name), &name, expected, found);
        let shape = [rows.div_ceil(FP8_BLOCK.0), cols.div_ceil(FP8_BLOCK.1)];
        let Some(info) = self.source.tensor(&name)? else {
            return Err(fail(format!("the scales {shape:?} of {weight}"), "no such tensor".to_owned()));
        };
        if info.shape != shape {
            return Err(fail(format!("{shape:?}"), format!("{:?}", info.shape)));
        }
        if ![format::F32, format::BF16, format::UE8M0].contains(&info.format) {
            return Err(fail("F32, BF16 or UE8M0".to_owned(), info.format.to_string()));
        }
        self.used.insert(name);
        Ok(BlockScales { bytes: info.bytes, format: info.format, block: FP8_BLOCK, first_row: 0 })
    }
}

/// Walks the spec. Every method returns `None` when there is no backend, or after a failure.
pub(crate) struct Loader<'a> {
    finder: Finder<'a>,
    backend: Option<&'a dyn Backend>,
    progress: Progress<'a>,
    done: u64,
    error: Option<Error>,
    /// Whether the model's attention may round more ([`Backend::linear_steady`]).
    steady: bool,
}

impl Loader<'_> {
    /// How the files name tensors.
    pub(crate) fn naming(&self) -> Naming {
        self.finder.naming
    }

    /// Whether this walk uploads, and has not failed.
    pub(crate) fn uploads(&self) -> bool {
        self.backend.is_some() && self.error.is_none()
    }

    /// A tensor of the picture side as `[rows, cols]`.
    pub(crate) fn find_place(&mut self, place: &Place, rows: usize, cols: usize, fold: Fold) -> Option<Weight> {
        let weight = self.finder.named(place.name(self.finder.naming), rows, cols, fold)?;
        if let Some(found) = &mut self.finder.found {
            let name = place.name(Naming::Gguf).to_owned();
            let exact = PLAIN_PLACES.iter().any(|start| name.starts_with(start));
            // The codebook is looked at twice.
            if found.last().is_none_or(|last| last.name != name) {
                found.push(Found { name, slot: None, exact, shape: vec![rows, cols], weight: weight.clone() });
            }
        }
        Some(weight)
    }

    /// The same, handed to the backend by `upload`.
    pub(crate) fn placed(
        &mut self,
        place: &Place,
        rows: usize,
        cols: usize,
        fold: Fold,
        upload: impl FnOnce(&dyn Backend, &Weight) -> fathom_core::Result<Resident>,
    ) -> Option<Resident> {
        let weight = self.find_place(place, rows, cols, fold)?;
        let backend = self.backend.filter(|_| self.error.is_none())?;
        let bytes = weight.total_bytes();
        let result = upload(backend, &weight);
        self.took(place.name(self.finder.naming), bytes, result)
    }

    /// Numbers that are in no file.
    pub(crate) fn upload_constant(&mut self, weight: &Weight) -> Option<Resident> {
        let backend = self.backend.filter(|_| self.error.is_none())?;
        self.took("a constant", 0, backend.upload(weight))
    }

    fn took<T>(&mut self, tensor: impl ToString, bytes: usize, result: fathom_core::Result<T>) -> Option<T> {
        match result {
            Ok(t) => {
                self.done += bytes as u64;
                (self.progress)(self.done, self.finder.source.total_bytes());
                Some(t)
            }
            Err(source) => {
                self.error.get_or_insert(Error::Upload { tensor: tensor.to_string(), source: Box::new(source) });
                None
            }
        }
    }

    fn matrix(&mut self, id: TensorId, rows: usize, cols: usize) -> Option<Resident> {
        self.matrix_as(id, rows, cols, None)
    }

    /// `as_format`: decode and keep in another format.
    fn matrix_as(&mut self, id: TensorId, rows: usize, cols: usize, as_format: Option<FormatId>) -> Option<Resident> {
        let weight = self.finder.weight(id, rows, cols)?;
        let backend = self.backend.filter(|_| self.error.is_none())?;
        let bytes = weight.total_bytes();
        let result = match as_format {
            Some(f) if f != weight.format => {
                Weight::encode(f, rows, cols, &weight.decode()).and_then(|w| backend.upload(&w))
            }
            _ => backend.upload(&weight),
        };
        self.took(id, bytes, result)
    }

    /// A table whose rows are looked up and which multiplies nothing.
    fn table(&mut self, id: TensorId, rows: usize, cols: usize) -> Option<Resident> {
        let weight = self.finder.weight(id, rows, cols)?;
        let backend = self.backend.filter(|_| self.error.is_none())?;
        self.took(id, weight.total_bytes(), backend.upload_table(&weight))
    }

    fn linear(&mut self, slot: Slot, layer: usize, rows: usize, cols: usize) -> Option<Linear> {
        Some(Linear::new(self.matrix(TensorId::layer(slot, layer), rows, cols)?, None))
    }

    fn biased(&mut self, slots: (Slot, Slot), layer: usize, rows: usize, cols: usize, bias: bool) -> Option<Linear> {
        let weight = self.matrix(TensorId::layer(slots.0, layer), rows, cols);
        let bias = if bias { Some(self.matrix(TensorId::layer(slots.1, layer), 1, rows)) } else { None };
        Some(Linear::new(weight?, flatten(bias)?))
    }

    fn norm(&mut self, slot: Slot, layer: usize, n: usize) -> Option<Resident> {
        self.matrix(TensorId::layer(slot, layer), 1, n)
    }

    fn decoder(&mut self, spec: &ModelSpec, backend: Option<Arc<dyn Backend>>) -> Option<Decoder> {
        let (vocab, dim) = (spec.vocab, spec.dim);
        self.steady = spec.pictures.is_none() && spec.layers.iter().all(|l| matches!(l.ffn, Ffn::Dense { .. }));
        let embed = TensorId::global(Slot::TokenEmbd);
        let embed = if spec.tied { self.matrix(embed, vocab, dim) } else { self.table(embed, vocab, dim) };
        let layers: Vec<Option<Layer>> = spec.layers.iter().enumerate().map(|(i, l)| self.layer(l, i, dim)).collect();
        let norm = self.matrix(TensorId::global(Slot::OutputNorm), 1, dim);
        let output = TensorId::global(Slot::Output);
        let head = if spec.tied {
            // Some files store a copy all the same.
            self.finder.used.extend(output.name(self.finder.naming));
            None
        } else {
            Some(self.matrix(output, vocab, dim))
        };
        if let Some(name) = TensorId::global(Slot::RopeFreqs).name(self.finder.naming) {
            self.finder.used.insert(name);
        }
        let mtp = spec.mtp.as_ref().map(|l| self.mtp(l, spec.layers.len(), vocab, dim));
        let pictures = spec.pictures.as_ref().map(|p| self.pictures(p, dim));
        Some(Decoder {
            spec: spec.clone(),
            backend: backend?,
            embed: embed?,
            layers: layers.into_iter().collect::<Option<_>>()?,
            norm: norm?,
            head: flatten(head)?,
            mtp: flatten(mtp)?,
            pictures: flatten(pictures)?.map(Arc::new),
            freqs: spec.rope.freqs(),
        })
    }

    fn mtp(&mut self, spec: &LayerSpec, i: usize, vocab: usize, dim: usize) -> Option<Mtp> {
        let embed_norm = self.norm(Slot::MtpEmbedNorm, i, dim);
        let hidden_norm = self.norm(Slot::MtpHiddenNorm, i, dim);
        let proj = self.linear(Slot::MtpProj, i, dim, 2 * dim);
        let layer = self.layer(spec, i, dim);
        let head_norm = self.norm(Slot::MtpHeadNorm, i, dim);
        let head = self.optional(TensorId::layer(Slot::MtpHead, i), vocab, dim);
        let embed = self.optional(TensorId::layer(Slot::MtpEmbd, i), vocab, dim);
        Some(Mtp {
            embed_norm: embed_norm?,
            hidden_norm: hidden_norm?,
            proj: proj?,
            layer: layer?,
            head_norm: head_norm?,
            head: flatten(head)?,
            embed: flatten(embed)?,
        })
    }

    fn optional(&mut self, id: TensorId, rows: usize, cols: usize) -> Option<Option<Resident>> {
        self.finder.has(id).then(|| self.matrix(id, rows, cols))
    }

    fn layer(&mut self, spec: &LayerSpec, i: usize, dim: usize) -> Option<Layer> {
        let mixer_norm = self.norm(Slot::AttnNorm, i, dim);
        let mixer = match spec.mixer {
            Mixer::Gqa { .. } => self.gqa(&spec.mixer, i, dim).map(MixerLayer::Gqa),
            Mixer::Mla { .. } => self.mla(&spec.mixer, i, dim).map(MixerLayer::Mla),
        };
        let ffn_norm = self.norm(Slot::FfnNorm, i, dim);
        let ffn = match &spec.ffn {
            Ffn::Dense { hidden } => {
                self.dense([Slot::FfnGate, Slot::FfnUp, Slot::FfnDown], i, dim, *hidden).map(FfnLayer::Dense)
            }
            Ffn::Moe { .. } => self.moe(&spec.ffn, i, dim).map(FfnLayer::Moe),
        };
        Some(Layer { mixer_norm: mixer_norm?, mixer: mixer?, ffn_norm: ffn_norm?, ffn: ffn? })
    }

    fn gqa(&mut self, spec: &Mixer, i: usize, dim: usize) -> Option<Gqa> {
        let Mixer::Gqa { heads, kv_heads, head_dim, qkv_bias, qk_norm } = *spec else { return None };
        let q = self.biased((Slot::AttnQ, Slot::AttnQBias), i, heads * head_dim, dim, qkv_bias);
        let k = self.biased((Slot::AttnK, Slot::AttnKBias), i, kv_heads * head_dim, dim, qkv_bias);
        let v = self.biased((Slot::AttnV, Slot::AttnVBias), i, kv_heads * head_dim, dim, qkv_bias);
        let out = self.linear(Slot::AttnOut, i, dim, heads * head_dim);
        let norms = qk_norm.then(|| {
            let (q, k) = (self.norm(Slot::AttnQNorm, i, head_dim), self.norm(Slot::AttnKNorm, i, head_dim));
            Some((q?, k?))
        });
        let scale = (head_dim as f64).powf(-0.5) as f32;
        let spec = AttendSpec { heads, kv_heads, head_dim, v_dim: head_dim, scale, mask: Mask::Causal };
        let steady = self.steady;
        let [q, k, v, out] = [q?, k?, v?, out?].map(|l| Linear { steady, ..l });
        Some(Gqa { spec, q, k, v, out, qk_norm: flatten(norms)? })
    }

    fn mla(&mut self, spec: &Mixer, i: usize, dim: usize) -> Option<Mla> {
        let Mixer::Mla { heads, q_rank, kv_rank: rank, nope, rope, v_dim, scale } = *spec else { return None };
        let q_out = heads * (nope + rope);
        let q = match q_rank {
            None => self.linear(Slot::AttnQ, i, q_out, dim).map(QueryProj::Full),
            Some(r) => {
                let a = self.linear(Slot::QA, i, r, dim);
                let norm = self.norm(Slot::QANorm, i, r);
                let b = self.linear(Slot::QB, i, q_out, r);
                (|| Some(QueryProj::Low { a: a?, norm: norm?, b: b? }))()
            }
        };
        let kv_a = self.linear(Slot::KvA, i, rank + rope, dim);
        let kv_norm = self.norm(Slot::KvANorm, i, rank);
        let split = self.finder.has(TensorId::layer(Slot::KB, i));
        let kv_b = if split {
            // Files of the transition hold the fused tensor as well.
            self.finder.used.extend(TensorId::layer(Slot::KvB, i).name(self.finder.naming));
            let k = self.matrix(TensorId::layer(Slot::KB, i), heads * rank, nope);
            let v = self.matrix(TensorId::layer(Slot::VB, i), heads * v_dim, rank);
            (|| Some(LatentWeights::Split { k: k?, v: v? }))()
        } else {
            self.matrix(TensorId::layer(Slot::KvB, i), heads * (nope + v_dim), rank).map(LatentWeights::Fused)
        };
        let out = self.linear(Slot::AttnOut, i, dim, heads * v_dim);
        let spec = LatentSpec { heads, rank, nope, rope, v_dim, scale };
        Some(Mla { spec, q: q?, kv_a: kv_a?, kv_norm: kv_norm?, kv_b: kv_b?, out: out? })
    }

    fn dense(&mut self, [gate, up, down]: [Slot; 3], i: usize, dim: usize, hidden: usize) -> Option<Dense> {
        let gate = self.linear(gate, i, hidden, dim);
        let up = self.linear(up, i, hidden, dim);
        let down = self.linear(down, i, dim, hidden);
        Some(Dense { gate: gate?, up: up?, down: down? })
    }

    fn moe(&mut self, spec: &Ffn, i: usize, dim: usize) -> Option<Moe> {
        let Ffn::Moe { route, bias_corrected, hidden, shared_hidden } = *spec else { return None };
        // A choice of experts that flips on a rounding error is worth more than the memory: the router stays in f32.
        let router = self.matrix_as(TensorId::layer(Slot::Router, i), route.experts, dim, Some(format::F32));
        let bias = bias_corrected.then(|| self.norm(Slot::RouterBias, i, route.experts));
        let gate = self.experts(Slot::GateExps, i, route.experts, hidden, dim);
        let up = self.experts(Slot::UpExps, i, route.experts, hidden, dim);
        let down = self.experts(Slot::DownExps, i, route.experts, dim, hidden);
        let shared = (shared_hidden > 0)
            .then(|| self.dense([Slot::GateShexp, Slot::UpShexp, Slot::DownShexp], i, dim, shared_hidden));
        Some(Moe {
            route,
            router: Linear::new(router?, None),
            bias: flatten(bias)?,
            gate: gate?,
            up: up?,
            down: down?,
            shared: flatten(shared)?,
        })
    }

    fn experts(&mut self, slot: Slot, i: usize, experts: usize, rows: usize, cols: usize) -> Option<ResidentExperts> {
        let id = TensorId::layer(slot, i);
        let all = match self.finder.naming {
            Naming::Gguf => {
                let weight = self.finder.weight(id, experts * rows, cols);
                self.finder.demanded.last_mut().expect("invariant: it was just demanded").experts = experts;
                Experts::Stacked { weight: weight?, experts }
            }
            _ => {
                let each: Vec<Option<Weight>> =
                    (0..experts).map(|e| self.finder.weight(TensorId { expert: Some(e), ..id }, rows, cols)).collect();
                Experts::Each(each.into_iter().collect::<Option<_>>()?)
            }
        };
        let backend = self.backend.filter(|_| self.error.is_none())?;
        let bytes = (0..experts).map(|e| all.get(e).total_bytes()).sum();
        let result = backend.upload_experts(&all);
        self.took(id, bytes, result)
    }
}

/// An optional part: absent is fine, failed is not.
fn flatten<T>(part: Option<Option<T>>) -> Option<Option<T>> {
    match part {
        None => Some(None),
        Some(None) => None,
        Some(some) => Some(some),
    }
}
