//! Which instructions the kernels use: detected once, capped by an option.

use fathom_core::{Error, Result};

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Isa, Portable};

/// A level of instructions that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// What every machine of the architecture has.
    Portable,
    /// AVX2, FMA, F16C.
    Avx2,
    /// AVX-512 F, BW, VL, DQ, VNNI, BF16, VBMI.
    Avx512,
}

impl Level {
    /// All levels, lowest first.
    pub const ALL: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];

    /// The name that options use.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }

    /// Levels that this machine has, lowest first.
    pub fn present() -> impl Iterator<Item = Level> {
        Level::ALL.into_iter().filter(|l| l.isa().is_some())
    }

    /// The level's proof, if this machine has its instructions.
    pub(crate) fn isa(self) -> Option<Isa> {
        match self {
            Level::Portable => Some(Isa::Portable(Portable)),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Avx2::detect().map(Isa::Avx2),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => Avx512::detect().map(Isa::Avx512),
            #[cfg(not(target_arch = "x86_64"))]
            _ => None,
        }
    }

    /// The wanted level, or the best present if none is wanted.
    ///
    /// # Errors
    /// If the wanted level is not present: it was asked for, so falling back would mislead.
    pub(crate) fn choose(wanted: Option<Level>) -> Result<(Level, Isa)> {
        let best = || Level::present().last().expect("invariant: the portable level is always present");
        let level = wanted.unwrap_or_else(best);
        let isa = level.isa().ok_or_else(|| Error::Device {
            device: crate::DEVICE,
            op: "new",
            why: format!("this machine has no {} instructions; its best level is {}", level.name(), best().name()),
        })?;
        Ok((level, isa))
    }
}

/// Physical cores that this process may use: threads beyond them share execution units and slow each other down.
pub(crate) fn physical_cores() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, usize::from);
    // Linux lists the logical CPUs that share a core; the first of each list stands for the core.
    let first_of_core = |cpu: usize| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        let list = std::fs::read_to_string(path).ok()?;
        let first = list.trim().split([',', '-']).next()?.parse::<usize>().ok()?;
        Some(first == cpu)
    };
    let all = (0..).map_while(first_of_core);
    let (mut cpus, mut cores) = (0, 0);
    for first in all {
        cpus += 1;
        cores += usize::from(first);
    }
    if cores == 0 || cpus == 0 { logical } else { logical.min((logical * cores).div_ceil(cpus)) }
}
