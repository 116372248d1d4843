//! Which samples may be trained on: decided by hash, never by a list.
//!
//! A problem's hash (kind and canonical key) puts one in sixteen aside, a phrasing's hash (kind,
//! language and template) one in eight. Training sees only what neither puts aside, so no seed, order
//! or amount of sampling can make the splits meet.

use serde::Serialize;

/// What a sample is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Known problems in known phrasings.
    Train,
    /// Held-out problems in known phrasings.
    Problem,
    /// Held-out problems (where a kind has any) in held-out phrasings.
    Phrasing,
}

impl Split {
    /// All splits.
    pub const ALL: [Split; 3] = [Split::Train, Split::Problem, Split::Phrasing];

    /// `train`, `problem` or `phrasing`.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Problem => "problem",
            Split::Phrasing => "phrasing",
        }
    }

    /// Whether this split's problems are held out.
    pub(crate) fn holds_problem(self) -> bool {
        self != Split::Train
    }

    /// Whether this split's phrasings are held out.
    pub(crate) fn holds_phrasing(self) -> bool {
        self == Split::Phrasing
    }
}

/// Whether a problem is held out from training.
pub(crate) fn problem_is_held(kind: &str, key: &str) -> bool {
    hash(&["problem", kind, key]).is_multiple_of(16)
}

/// Whether a phrasing is held out from training.
pub(crate) fn phrasing_is_held(kind: &str, lang: &str, template: &str) -> bool {
    hash(&["phrasing", kind, lang, template]).is_multiple_of(8)
}

/// FNV-1a over the parts, each closed by a zero byte, then the finaliser of splitmix64: part of the data's definition.
fn hash(parts: &[&str]) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parts.iter().flat_map(|p| p.bytes().chain([0])) {
        h = (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ (h >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_as_stated() {
        let held = (0..64_000).filter(|n| problem_is_held("add", &n.to_string())).count();
        assert!((3_800..4_200).contains(&held), "{held}");
        let held = (0..64_000).filter(|n| phrasing_is_held("add", "en", &n.to_string())).count();
        assert!((7_700..8_300).contains(&held), "{held}");
    }

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
    }
}
