//! Rotary position embeddings: layouts, and the frequencies a spec has been boiled down to.
//!
//! How a model's scaling (linear, llama3, YaRN) turns into frequencies is the model crate's business
//! (`model/spec`); a backend sees only the result.

/// Which elements of a head form a rotated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeLayout {
    /// (0, 1), (2, 3), …: DeepSeek's MLA, llama.cpp's permuted Llama rows.
    Interleaved,
    /// (0, d/2), (1, d/2 + 1), …: Hugging Face's Llama and Qwen.
    Halves,
}

/// One rotation speed per pair, and a factor on cos and sin.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeFreqs {
    /// Radians per position, one per pair.
    pub inv_freq: Vec<f32>,
    /// Factor on cos and sin (YaRN's attention factor; 1 otherwise).
    pub factor: f32,
}

impl RopeFreqs {
    /// Number of rotated elements per head.
    pub fn dim(&self) -> usize {
        self.inv_freq.len() * 2
    }

    /// Writes cos and sin of one position: `[cos × pairs, sin × pairs]`, each times the factor.
    ///
    /// The angle is formed in f32, as the reference implementations do, because at long positions the
    /// rounding of that product is part of what models were trained with.
    pub fn fill(&self, position: u32, out: &mut [f32]) {
        let (cos, sin) = out.split_at_mut(self.inv_freq.len());
        for ((f, c), s) in self.inv_freq.iter().zip(cos).zip(sin) {
            let (sn, cs) = (position as f32 * f).sin_cos();
            *c = cs * self.factor;
            *s = sn * self.factor;
        }
    }
}
