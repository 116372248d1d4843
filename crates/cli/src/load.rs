//! From options to a model that can run: memory reckoned first, then weights, then whoever will use them.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use fathom_core::reference::Reference;
use fathom_core::{Backend, DType, Precision};
use fathom_cpu::{Cpu, CpuOptions};
use fathom_model::spec::kv_bytes;
use fathom_model::{BLOCK, Decoder, Model, ModelSpec};

use crate::args::{BackendName, LoadArgs, Repack};
use crate::term::{self, ByteBar};
use crate::units::{bytes, grouped};
use crate::{machine, source};

/// A context beyond this is only taken if asked for: its cache is memory that most conversations never use.
const DEFAULT_CONTEXT: usize = 32_768;

/// Less context than this is not worth starting with unasked.
const LEAST_CONTEXT: usize = 1_024;

/// How much context a command needs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Room {
    /// As much as is reasonable.
    Conversation,
    /// For this many tokens.
    Tokens(usize),
    /// For so many pictures at once, each with its description.
    Pictures(usize),
    /// For several sequences.
    Sequences {
        /// Tokens of the longest.
        longest: usize,
        /// Tokens of the cache that holds them all.
        together: usize,
    },
}

/// Tokens of a picture's description that room is made for.
const DESCRIPTION: usize = 256;

/// A model with its weights where they are used.
pub(crate) struct Loaded {
    /// As the person named it.
    pub(crate) name: String,
    pub(crate) model: Model,
    pub(crate) decoder: Arc<Decoder>,
    /// Number type of the cache.
    pub(crate) kv: DType,
    /// Tokens that prompt and answer may have together.
    pub(crate) context: usize,
    /// From the first look at the files until now: mapping and packing.
    pub(crate) took: Duration,
    /// Bytes of weights that were rearranged for speed.
    pub(crate) packed: u64,
}

/// What computes, with the level of instructions that it uses.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) backend: Arc<dyn Backend>,
    /// The same, if it is the CPU backend.
    pub(crate) cpu: Option<Arc<Cpu>>,
}

impl Device {
    /// The backend that the options name, in the precision asked for, else in `default`.
    pub(crate) fn open(args: &LoadArgs, default: Precision) -> Result<Self> {
        args.check(default)?;
        if args.backend == BackendName::Reference {
            return Ok(Device { backend: Arc::new(Reference::new()), cpu: None });
        }
        let cpu = Cpu::new(CpuOptions {
            threads: args.threads.map(usize::from),
            isa: args.isa,
            precision: args.precision_or(default),
            repack: args.repack != Some(Repack::Off),
        })?;
        if args.repack == Some(Repack::On) {
            cpu.limit_packing(usize::MAX);
        }
        Ok(Device { backend: cpu.clone(), cpu: Some(cpu) })
    }

    /// `reference`, or `cpu` with level and threads.
    pub(crate) fn describe(&self) -> String {
        match &self.cpu {
            None => "reference".into(),
            Some(cpu) => format!("cpu, {}, {} threads", cpu.level().name(), cpu.pool().threads()),
        }
    }
}

/// Loads the model that the options and the positional name.
pub(crate) fn load(
    args: &LoadArgs,
    positional: Option<&str>,
    room: Room,
    default: Precision,
) -> Result<(Loaded, Device)> {
    let (loaded, device, ()) = load_beside(args, positional, room, default, |_| Ok(()))?;
    Ok((loaded, device))
}

/// The same, with something else made of the model's files meanwhile: a tokenizer takes as long as weights do.
pub(crate) fn load_beside<T: Send>(
    args: &LoadArgs,
    positional: Option<&str>,
    room: Room,
    default: Precision,
    beside: impl FnOnce(&Model) -> Result<T> + Send,
) -> Result<(Loaded, Device, T)> {
    let name = args.named(positional)?;
    let device = Device::open(args, default)?;
    let (loaded, made) = load_on(&device, args, name, room, beside)?;
    Ok((loaded, device, made))
}

/// The same on a device that is open already, so that several models share its threads.
pub(crate) fn load_on<T: Send>(
    device: &Device,
    args: &LoadArgs,
    name: Option<&str>,
    room: Room,
    beside: impl FnOnce(&Model) -> Result<T> + Send,
) -> Result<(Loaded, T)> {
    let start = Instant::now();
    let place = source::locate(name)?;
    let mut model = place.open(&args.read.options())?;
    if let Some(dir) = args.one_adapter()? {
        model.adapt(dir)?;
    }
    let kv = args.kv_dtype(device.backend.precision());
    let context = context(&model, kv, args, room)?;
    let plan = Plan { spec: &model.spec, weights: model.archive.total_bytes(), kv };
    let cpu = device.cpu.as_deref();
    let before = cpu.map_or((0, 0), Cpu::packing);
    let refused = cpu.and_then(|cpu| plan.make_room(cpu, room, context, args));
    let mut bar = ByteBar::new("loading");
    let (decoder, made) = thread::scope(|scope| {
        let other = scope.spawn(|| beside(&model));
        let decoder = model.load(device.backend.clone(), &mut |done, total| bar.update(done, total, 0));
        (decoder, other.join().unwrap_or_else(|panic| resume_unwind(panic)))
    });
    drop(bar);
    let (decoder, made) = (Arc::new(decoder?), made?);
    let after = cpu.map_or((0, 0), Cpu::packing);
    let (packed, plain) = ((after.0 - before.0) as u64, (after.1 - before.1) as u64);
    if plain > 0 {
        let why = match refused {
            Some((needs, most)) => format!(
                "packed they and the cache would take {}, and {} may be used of the memory",
                bytes(needs),
                bytes(most)
            ),
            None => "the memory holds no more of them packed".into(),
        };
        term::note(&format!(
            "{} of weights stay as they lie in the file, which is slower: {why} (--repack on packs them all the same)",
            bytes(plain)
        ));
    }
    let name = name.map_or_else(|| place.path().display().to_string(), str::to_owned);
    Ok((Loaded { name, model, decoder, kv, context, took: start.elapsed(), packed }, made))
}

/// The part of the available memory that packed weights and cache may take: the rest of the system needs some as well.
const SHARE: (u64, u64) = (4, 5);

/// Bytes that may be packed, or why nothing is: what it would take with the cache, and the most that may be taken.
///
/// Packed weights are as large as the file's, nearly; with the cache they must fit into what `--memory` allows and into 80 % of
/// what is available.
fn packing(weights: u64, cache: u64, memory: Option<u64>, available: Option<u64>) -> Result<u64, (u64, u64)> {
    let share = available.map(|n| n / SHARE.1 * SHARE.0);
    let Some(most) = memory.into_iter().chain(share).min() else { return Ok(u64::MAX) };
    let needs = weights.saturating_add(cache);
    if needs > most { Err((needs, most)) } else { Ok(most - cache) }
}

/// The context to make room for, if there is the memory for it.
pub(crate) fn context(model: &Model, kv: DType, args: &LoadArgs, room: Room) -> Result<usize> {
    let plan = Plan { spec: &model.spec, weights: model.archive.total_bytes(), kv };
    let budget = args.memory.or_else(machine::available_bytes);
    plan.context(room, args.context.map(|c| c as usize), budget)
}

/// What a model will take.
struct Plan<'a> {
    spec: &'a ModelSpec,
    /// Bytes of all weights.
    weights: u64,
    kv: DType,
}

impl Plan<'_> {
    /// A model that memory does not hold beside its cache is not packed: its weights stay in their mapped file, where the system
    /// may drop and read them again. Gives what it would have needed and what there is.
    fn make_room(&self, cpu: &Cpu, room: Room, context: usize, args: &LoadArgs) -> Option<(u64, u64)> {
        if args.repack.unwrap_or_default() != Repack::Auto {
            return None;
        }
        let packing = packing(self.weights, self.caches(room, context), args.memory, machine::available_bytes());
        cpu.limit_packing(usize::try_from(packing.unwrap_or(0)).unwrap_or(usize::MAX));
        packing.err()
    }

    /// Bytes of cache for all that there is room for, of which a sequence may have `context` tokens.
    fn caches(&self, room: Room, context: usize) -> u64 {
        match room {
            // Every picture takes two lanes of the cache.
            Room::Pictures(n) => (2 * n as u64).saturating_mul(self.cache(context)),
            Room::Sequences { together, .. } => self.cache(together.max(context)),
            Room::Conversation | Room::Tokens(_) => self.cache(context),
        }
    }

    /// Bytes of cache for so many tokens: whole blocks, the prediction block's layer included.
    fn cache(&self, tokens: usize) -> u64 {
        let drafts = self.spec.mtp.as_ref().map_or(0, |l| kv_bytes(&l.mixer, self.kv));
        let per_token = (self.spec.kv_bytes_per_token(self.kv) + drafts) as u64;
        per_token.saturating_mul((tokens as u64).div_ceil(BLOCK as u64).saturating_mul(BLOCK as u64))
    }

    /// The context to make room for.
    ///
    /// # Errors
    /// With both numbers, if it is longer than the model's, shorter than needed, or too large for the memory.
    fn context(&self, room: Room, asked: Option<usize>, budget: Option<u64>) -> Result<usize> {
        let most = self.spec.context;
        let wanted = match (room, asked) {
            (Room::Tokens(needed) | Room::Sequences { longest: needed, .. }, Some(asked)) if asked < needed => {
                bail!("--context {asked} is less than the {needed} tokens needed here")
            }
            (_, Some(asked)) => asked,
            (Room::Tokens(needed) | Room::Sequences { longest: needed, .. }, None) => needed,
            (Room::Conversation, None) => most.min(DEFAULT_CONTEXT),
            (Room::Pictures(_), None) => {
                let steps = self.spec.pictures.as_ref().map_or(0, fathom_model::picture::PictureSpec::steps);
                most.min(steps + DESCRIPTION)
            }
        };
        if wanted > most {
            bail!(
                "a context of {} tokens is asked for; this model was made for {}",
                grouped(wanted as u64),
                grouped(most as u64)
            );
        }
        // Weights beyond the memory stay in their mapped file.
        let held = if budget.is_some_and(|b| self.weights > b) { 0 } else { self.weights };
        let needs = |tokens| held.saturating_add(self.caches(room, tokens));
        let Some(budget) = budget.filter(|b| needs(wanted) > *b) else { return Ok(wanted) };
        if asked.is_none() && matches!(room, Room::Conversation) {
            // Nobody asked for so much, so what fits will do, if it is said.
            let fits = (1..=wanted / BLOCK).rev().map(|blocks| blocks * BLOCK).find(|tokens| needs(*tokens) <= budget);
            if let Some(fits) = fits.filter(|f| *f >= LEAST_CONTEXT.min(wanted)) {
                term::note(&format!(
                    "context of {} tokens: more does not fit into {} (--context asks for more, --memory allows more)",
                    grouped(fits as u64),
                    bytes(budget)
                ));
                return Ok(fits);
            }
        }
        bail!(
            "this needs {}: {} of weights and {} of cache for {} tokens, but {} may be used: \
             take a smaller --context or a smaller file, or allow more with --memory",
            bytes(needs(wanted)),
            bytes(held),
            bytes(self.caches(room, wanted)),
            grouped(if let Room::Sequences { together, .. } = room { together.max(wanted) } else { wanted } as u64),
            bytes(budget),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 384 bytes of cache per token in 16 bit, a context of 4,096.
    fn spec() -> ModelSpec {
        use fathom_core::RopeLayout;
        use fathom_model::spec::{Ffn, LayerSpec, Mixer, RopeScaling, RopeSpec};
        let mixer = Mixer::Gqa { heads: 4, kv_heads: 2, head_dim: 16, qkv_bias: false, qk_norm: false };
        ModelSpec {
            family: "test",
            vocab: 8,
            dim: 64,
            eps: 1e-6,
            context: 4_096,
            rope: RopeSpec { dim: 16, theta: 1e4, layout: RopeLayout::Halves, scaling: RopeScaling::None },
            layers: vec![LayerSpec { mixer, ffn: Ffn::Dense { hidden: 8 } }; 3],
            tied: false,
            mtp: None,
            pictures: None,
        }
    }

    fn context(room: Room, asked: Option<usize>, budget: Option<u64>) -> Result<usize> {
        Plan { spec: &spec(), weights: 1_000_000, kv: DType::F16 }.context(room, asked, budget)
    }

    #[test]
    fn what_fits_is_taken_and_what_was_asked_for_is_not_cut() {
        let whole = 1_000_000 + 384 * 4_096;
        assert_eq!(context(Room::Conversation, None, None).unwrap(), 4_096);
        assert_eq!(context(Room::Conversation, None, Some(whole)).unwrap(), 4_096);
        assert_eq!(context(Room::Conversation, None, Some(whole - 1)).unwrap(), 4_096 - BLOCK);
        assert_eq!(context(Room::Conversation, Some(100), Some(1_000_000 + 384 * 128)).unwrap(), 100);
        assert_eq!(context(Room::Tokens(7), None, None).unwrap(), 7);
        let said = |r: Result<usize>| r.unwrap_err().to_string();
        let asked = said(context(Room::Conversation, Some(4_096), Some(whole - 1)));
        for words in ["2.45 MiB", "976.56 KiB of weights", "1.50 MiB of cache for 4,096 tokens", "--memory"] {
            assert!(asked.contains(words), "{words}: {asked}");
        }
        assert!(said(context(Room::Conversation, None, Some(1_000_000))).contains("of cache"));
        // Weights that memory cannot hold stay in the file; the cache must fit all the same.
        assert_eq!(context(Room::Tokens(64), None, Some(999_999)).unwrap(), 64);
        assert!(said(context(Room::Tokens(4_096), None, Some(384 * 4_096 - 1))).contains("of cache"));
        assert!(said(context(Room::Conversation, Some(5_000), None)).contains("made for 4,096"));
        assert!(said(context(Room::Tokens(7), Some(6), None)).contains("7 tokens needed"));
        assert!(said(context(Room::Tokens(5_000), None, None)).contains("made for 4,096"));
        // Several sequences need their caches together, and none may be longer than the model's context.
        let four = Room::Sequences { longest: 64, together: 4 * 64 };
        assert_eq!(context(four, None, Some(1_000_000 + 384 * 256)).unwrap(), 64);
        assert!(said(context(four, None, Some(1_000_000 + 384 * 256 - 1))).contains("of cache for 256 tokens"));
        assert!(said(context(four, Some(63), None)).contains("64 tokens needed"));
        assert!(said(context(Room::Sequences { longest: 5_000, together: 9_999 }, None, None)).contains("made for"));
    }

    #[test]
    fn nothing_is_packed_where_weights_and_cache_would_fill_the_memory() {
        assert_eq!(packing(700, 100, None, Some(1_000)), Ok(700));
        assert_eq!(packing(701, 100, None, Some(1_000)), Err((801, 800)));
        assert_eq!(packing(500, 100, None, Some(1_000)), Ok(700));
        // What a person allows holds as well, if it is less.
        assert_eq!(packing(500, 100, Some(599), Some(1_000)), Err((600, 599)));
        assert_eq!(packing(500, 100, Some(9_000), Some(1_000)), Ok(700));
        assert_eq!(packing(500, 100, Some(600), None), Ok(500));
        // Where the system does not tell, nobody can know better.
        assert_eq!(packing(u64::MAX, 1, None, None), Ok(u64::MAX));
    }
}
