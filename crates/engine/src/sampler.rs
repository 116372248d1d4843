//! From logits to a token: a pure function of logits, history, parameters and random stream.
//!
//! Fixed order: penalties (repetition, presence, frequency) → logit bias → temperature → top-k → top-p → min-p → draw.
//! Tokens are ranked by logit, lower id first among equals; top-k, top-p and min-p each keep a prefix of
//! that ranking, so the whole vocabulary is never sorted. Log-probabilities come from the logits as the model gave them.
//! No arithmetic depends on the platform's mathematics library, so a seed gives the same text everywhere.

use fathom_core::rng::Rng;

use crate::{Error, Result};

/// How tokens are drawn. The default is greedy, without any penalty.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 = greedy (the best-ranked token, no random number drawn).
    pub temperature: f32,
    /// Keeps this many best-ranked tokens; 0 = all.
    pub top_k: usize,
    /// Keeps the shortest prefix of the ranking whose probability reaches this; 1 = all.
    pub top_p: f32,
    /// Keeps tokens at least this fraction as probable as the best one; 0 = all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or answer (Keskar et al. 2019); 1 = none.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of every token in the answer.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit for each time it is in the answer.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens; −∞ forbids one.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
        }
    }
}

impl Sampling {
    /// Checks every parameter's range.
    ///
    /// # Errors
    /// Naming the first parameter that is out of range.
    pub fn check(&self, vocab: usize) -> Result<()> {
        let within = |name, x: f32, ok: bool, expected| {
            if ok { Ok(()) } else { Err(Error::Option { name, found: x.to_string(), expected }) }
        };
        let finite = |name, x: f32| within(name, x, x.is_finite(), "a finite number");
        let t = self.temperature;
        within("temperature", t, t.is_finite() && t >= 0.0, "a number of at least 0")?;
        within("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "more than 0 and at most 1")?;
        within("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "between 0 and 1")?;
        let r = self.repetition_penalty;
        within("repetition_penalty", r, r.is_finite() && r > 0.0, "a number above 0")?;
        finite("presence_penalty", self.presence_penalty)?;
        finite("frequency_penalty", self.frequency_penalty)?;
        for &(token, bias) in &self.logit_bias {
            within("logit_bias", bias, bias < f32::INFINITY, "a finite number or minus infinity")?;
            if token as usize >= vocab {
                return Err(Error::TokenOutOfRange { place: "logit_bias", token, vocab });
            }
        }
        Ok(())
    }

    fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// Which tokens a sequence holds, as far as the penalties must know.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Times that a token is in the answer; empty if nothing is penalised.
    answer: Vec<u32>,
    /// Every token of prompt and answer once, in order of first appearance.
    seen: Vec<u32>,
    known: Vec<bool>,
}

impl History {
    /// The history of a sequence that consists of its prompt. Takes memory only if `sampling` penalises.
    pub fn new(vocab: usize, sampling: &Sampling, prompt: &[u32]) -> Self {
        let mut history = History::default();
        if sampling.penalises() {
            history.answer = vec![0; vocab];
            history.known = vec![false; vocab];
            history.seen.reserve(vocab);
            prompt.iter().for_each(|&token| history.see(token));
        }
        history
    }

    /// Notes a token of the answer.
    pub fn push(&mut self, token: u32) {
        if let Some(times) = self.answer.get_mut(token as usize) {
            *times += 1;
            self.see(token);
        }
    }

    fn see(&mut self, token: u32) {
        if !std::mem::replace(&mut self.known[token as usize], true) {
            self.seen.push(token);
        }
    }
}

/// Logits that no token can be drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadLogits {
    /// One of them is not a number.
    NotANumber,
    /// The greatest is plus infinity.
    Infinite,
    /// All are minus infinity: masks and biases left nothing.
    NothingLeft,
}

impl BadLogits {
    /// In words.
    pub fn why(self) -> &'static str {
        match self {
            BadLogits::NotANumber => "not a number",
            BadLogits::Infinite => "infinite",
            BadLogits::NothingLeft => "every token is excluded",
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    logit: f32,
    token: u32,
}

impl Candidate {
    /// Best first: by logit, then by lower id.
    fn rank(&self, other: &Self) -> std::cmp::Ordering {
        let by_logit = other.logit.partial_cmp(&self.logit).expect("invariant: logits were checked for NaN");
        by_logit.then(self.token.cmp(&other.token))
    }
}

/// Scratch memory of the sampler; carries nothing from one call to the next. Once warm it does not allocate.
#[derive(Clone, Debug)]
pub struct Sampler {
    candidates: Vec<Candidate>,
    /// Logits that penalties and biases replaced, to be put back.
    undo: Vec<(u32, f32)>,
    /// Logits behind a mask.
    masked: Vec<f32>,
}

impl Sampler {
    /// A sampler for vocabularies of up to `vocab` tokens.
    pub fn new(vocab: usize) -> Self {
        Sampler { candidates: Vec::with_capacity(vocab), undo: Vec::with_capacity(vocab), masked: Vec::new() }
    }

    /// Draws a token from `logits: [vocab]`, which are left as they were. Draws one random number, or none if greedy.
    ///
    /// # Errors
    /// If the logits allow no draw.
    pub fn sample(
        &mut self,
        logits: &mut [f32],
        history: &History,
        sampling: &Sampling,
        rng: &mut Rng,
    ) -> std::result::Result<u32, BadLogits> {
        self.adjust(logits, history, sampling);
        let token = self.draw(logits, sampling, rng);
        // In reverse, so that a token adjusted twice gets its first value back.
        while let Some((token, logit)) = self.undo.pop() {
            logits[token as usize] = logit;
        }
        token
    }

    /// As [`sample`](Self::sample), from the tokens that `mask` allows (bit `i % 32` of word `i / 32` for token `i`) and `also`.
    ///
    /// # Errors
    /// If the logits allow no draw.
    pub fn sample_masked(
        &mut self,
        logits: &[f32],
        (mask, also): (&[u32], Option<u32>),
        history: &History,
        sampling: &Sampling,
        rng: &mut Rng,
    ) -> std::result::Result<u32, BadLogits> {
        // The whole row is looked at, so that broken logits are not hidden by the mask.
        checked_max(logits)?;
        let mut masked = std::mem::take(&mut self.masked);
        masked.clear();
        masked.resize(logits.len(), f32::NEG_INFINITY);
        for (i, &word) in mask.iter().enumerate() {
            let mut bits = word;
            while bits != 0 {
                let token = i * 32 + bits.trailing_zeros() as usize;
                if let (Some(to), Some(from)) = (masked.get_mut(token), logits.get(token)) {
                    *to = *from;
                }
                bits &= bits - 1;
            }
        }
        if let Some(token) = also {
            masked[token as usize] = logits[token as usize];
        }
        let drawn = self.sample(&mut masked, history, sampling, rng);
        self.masked = masked;
        drawn
    }

    /// Log-probabilities of the model: of `token`, and in `top` of the `n` best-ranked tokens, best first.
    ///
    /// # Errors
    /// If the logits contain NaN or plus infinity.
    pub fn logprobs(
        &mut self,
        logits: &[f32],
        token: u32,
        n: usize,
        top: &mut Vec<(u32, f32)>,
    ) -> std::result::Result<f32, BadLogits> {
        let max = checked_max(logits)?;
        let norm = weigh(logits, max, 1.0).ln();
        let logprob = |logit: f32| (f64::from(logit - max) - norm) as f32;
        self.best(logits, n);
        top.clear();
        top.extend(self.candidates.iter().map(|c| (c.token, logprob(c.logit))));
        Ok(logprob(logits[token as usize]))
    }

    fn adjust(&mut self, logits: &mut [f32], history: &History, sampling: &Sampling) {
        for &token in &history.seen {
            let logit = &mut logits[token as usize];
            self.undo.push((token, *logit));
            let factor = sampling.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / factor } else { *logit * factor };
            let times = history.answer[token as usize];
            if times > 0 {
                *logit -= sampling.presence_penalty + sampling.frequency_penalty * times as f32;
            }
        }
        for &(token, bias) in &sampling.logit_bias {
            let logit = &mut logits[token as usize];
            self.undo.push((token, *logit));
            *logit += bias;
        }
    }

    fn draw(&mut self, logits: &[f32], sampling: &Sampling, rng: &mut Rng) -> std::result::Result<u32, BadLogits> {
        let max = checked_max(logits)?;
        if sampling.temperature == 0.0 {
            let best = logits.iter().position(|&l| l == max).expect("invariant: the maximum is one of the logits");
            return Ok(best as u32);
        }
        // The bound keeps the reciprocal finite; colder than this is greedy in f32 anyway.
        let inv_t = 1.0 / sampling.temperature.max(1e-30);
        let u = rng.uniform();
        if sampling.top_k == 0 && sampling.top_p == 1.0 && sampling.min_p == 0.0 {
            return Ok(draw_from_all(logits, max, inv_t, u));
        }
        let weight = |c: &Candidate| f64::from(exp((c.logit - max) * inv_t));
        let (kept, mass) = self.cut(logits, max, inv_t, sampling);
        let mut left = u * mass;
        let kept = &self.candidates[..kept];
        for candidate in kept {
            left -= weight(candidate);
            if left < 0.0 {
                return Ok(candidate.token);
            }
        }
        Ok(kept.last().expect("invariant: the best token is always kept").token)
    }

    /// Ranks as many candidates as top-k, top-p and min-p need; returns how many are kept and their weight, where the best
    /// token weighs 1.
    fn cut(&mut self, logits: &[f32], max: f32, inv_t: f32, sampling: &Sampling) -> (usize, f64) {
        let all = if sampling.top_k == 0 && sampling.top_p < 1.0 { weigh(logits, max, inv_t) } else { 0.0 };
        let mut ranked = if sampling.top_k > 0 { sampling.top_k } else { 128 };
        loop {
            self.best(logits, ranked);
            let weights = self.candidates.iter().map(|c| f64::from(exp((c.logit - max) * inv_t)));
            // Top-p is measured within what top-k left.
            let all = if sampling.top_k > 0 { weights.clone().sum() } else { all };
            let enough = if sampling.top_p < 1.0 { f64::from(sampling.top_p) * all } else { f64::INFINITY };
            let (mut kept, mut mass, mut decided) = (0, 0.0, false);
            for weight in weights {
                decided = mass >= enough || weight < f64::from(sampling.min_p) || weight == 0.0;
                if decided {
                    break;
                }
                (kept, mass) = (kept + 1, mass + weight);
            }
            if decided || mass >= enough || sampling.top_k > 0 || self.candidates.len() < ranked {
                return (kept, mass);
            }
            ranked *= 16;
        }
    }

    /// Fills `candidates` with the `k` best-ranked tokens, best first. Minus infinity is no candidate.
    fn best(&mut self, logits: &[f32], k: usize) {
        self.candidates.clear();
        if k == 0 {
            return;
        }
        let room = (2 * k).max(k + 1024).min(logits.len());
        // Once k candidates are at hand, a later token must beat the worst of them; an equal one has a higher id.
        let mut floor = f32::NEG_INFINITY;
        for (token, &logit) in logits.iter().enumerate() {
            if logit > floor {
                self.candidates.push(Candidate { logit, token: token as u32 });
                if self.candidates.len() == room && room > k {
                    self.candidates.select_nth_unstable_by(k - 1, Candidate::rank);
                    self.candidates.truncate(k);
                    floor = self.candidates[k - 1].logit;
                }
            }
        }
        self.candidates.sort_unstable_by(Candidate::rank);
        self.candidates.truncate(k);
    }
}

/// Draws by walking the whole vocabulary in order of id, 256 tokens at a stride.
fn draw_from_all(logits: &[f32], max: f32, inv_t: f32, u: f64) -> u32 {
    const STRIDE: usize = 256;
    let mass: f64 = logits.chunks(STRIDE).map(|chunk| weigh(chunk, max, inv_t)).sum();
    let mut left = u * mass;
    // Rounding can leave a crumb behind the last stride; it goes to the best token.
    let mut last = logits.iter().position(|&l| l == max).unwrap_or(0) as u32;
    for (i, chunk) in logits.chunks(STRIDE).enumerate() {
        let weight = weigh(chunk, max, inv_t);
        if left >= weight {
            left -= weight;
            continue;
        }
        for (j, &logit) in chunk.iter().enumerate() {
            let weight = f64::from(exp((logit - max) * inv_t));
            if weight > 0.0 {
                last = (i * STRIDE + j) as u32;
                left -= weight;
                if left < 0.0 {
                    return last;
                }
            }
        }
    }
    last
}

/// The greatest logit.
fn checked_max(logits: &[f32]) -> std::result::Result<f32, BadLogits> {
    // Sixteen lanes, because a single running maximum would not vectorise.
    let mut lanes = [f32::NEG_INFINITY; 16];
    let mut nan = false;
    let chunks = logits.chunks_exact(16);
    for &x in chunks.remainder() {
        lanes[0] = lanes[0].max(x);
        nan |= x.is_nan();
    }
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
            nan |= x.is_nan();
        }
    }
    let max = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    match max {
        _ if nan => Err(BadLogits::NotANumber),
        f32::INFINITY => Err(BadLogits::Infinite),
        f32::NEG_INFINITY => Err(BadLogits::NothingLeft),
        _ => Ok(max),
    }
}

/// `Σ exp((logit − max) / T)`.
fn weigh(logits: &[f32], max: f32, inv_t: f32) -> f64 {
    let mut lanes = [0.0; 8];
    let chunks = logits.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|&l| f64::from(exp((l - max) * inv_t))).sum();
    for chunk in chunks {
        for (lane, &l) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(exp((l - max) * inv_t));
        }
    }
    lanes.iter().sum::<f64>() + rest
}

/// `eˣ` for x ≤ 0, within 2 units in the last place; 0 below −87. Cody and Waite's reduction by powers of two,
/// then a polynomial (Moshier's Cephes): plain arithmetic that vectorises and rounds alike on every machine.
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to an integer that stands in the low bits.
    let shifted = x.max(-87.0) * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x.max(-87.0) - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    let y = (p * (r * r) + r + 1.0) * scale;
    if x < -87.0 { 0.0 } else { y }
}

#[cfg(test)]
mod tests {
    use super::{BadLogits, Error, History, Rng, Sampler, Sampling, exp};
    use proptest::prelude::{Just, ProptestConfig, Strategy, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};

    fn sample(logits: &[f32], sampling: &Sampling, seed: u64) -> std::result::Result<u32, BadLogits> {
        let mut logits = logits.to_vec();
        let before = logits.clone();
        let token =
            Sampler::new(logits.len()).sample(&mut logits, &History::default(), sampling, &mut Rng::new(seed, 0));
        if token.is_ok() {
            assert_eq!(logits, before, "logits are left as they were");
        }
        token
    }

    /// The definition, in f64 and with a full sort: probability of every token.
    fn brute_force(logits: &[f32], history: &[u32], prompt: usize, s: &Sampling) -> Vec<f64> {
        let mut x: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
        for (token, x) in x.iter_mut().enumerate() {
            let in_answer = history[prompt..].iter().filter(|&&t| t as usize == token).count();
            if history.contains(&(token as u32)) {
                let factor = f64::from(s.repetition_penalty);
                *x = if *x > 0.0 { *x / factor } else { *x * factor };
            }
            if in_answer > 0 {
                *x -= f64::from(s.presence_penalty) + f64::from(s.frequency_penalty) * in_answer as f64;
            }
            let bias = s.logit_bias.iter().filter(|b| b.0 as usize == token);
            *x += bias.map(|b| f64::from(b.1)).sum::<f64>();
        }
        let mut order: Vec<usize> = (0..x.len()).collect();
        order.sort_by(|&a, &b| x[b].total_cmp(&x[a]).then(a.cmp(&b)));
        let best = x[order[0]];
        if s.top_k > 0 {
            order.truncate(s.top_k);
        }
        let p = |i: usize| ((x[i] - best) / f64::from(s.temperature)).exp();
        let all: f64 = order.iter().map(|&i| p(i)).sum();
        if s.top_p < 1.0 {
            let mut sum = 0.0;
            let reaches = order.iter().position(|&i| {
                sum += p(i);
                sum >= f64::from(s.top_p) * all
            });
            order.truncate(reaches.map_or(order.len(), |at| at + 1));
        }
        order.retain(|&i| p(i) >= f64::from(s.min_p));
        let kept: f64 = order.iter().map(|&i| p(i)).sum();
        let mut out = vec![0.0; x.len()];
        order.iter().for_each(|&i| out[i] = p(i) / kept);
        out
    }

    fn any_sampling() -> impl Strategy<Value = Sampling> {
        let cuts = (
            prop_oneof![Just(0usize), 1..40usize, Just(100_000)],
            prop_oneof![Just(1.0f32), 0.01..1.0f32],
            prop_oneof![Just(0.0f32), 0.0..0.5f32],
        );
        let penalties = (prop_oneof![Just(1.0f32), 0.5..2.0f32], -1.0..1.0f32, prop_oneof![Just(0.0f32), -1.0..1.0f32]);
        (0.2..3.0f32, cuts, penalties, prop::collection::vec((0..300u32, -5.0..5.0f32), 0..4)).prop_map(
            |(temperature, (top_k, top_p, min_p), (rep, presence, frequency), logit_bias)| Sampling {
                temperature,
                top_k,
                top_p,
                min_p,
                repetition_penalty: rep,
                presence_penalty: presence,
                frequency_penalty: frequency,
                logit_bias,
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Every draw of 2,000 lies in the brute-force support, and the frequencies fit its probabilities.
        #[test]
        fn fits_the_definition(
            s in any_sampling(),
            logits in prop::collection::vec(-6.0..6.0f32, 300..400),
            history in prop::collection::vec(0..300u32, 0..40),
            split in 0.0..1.0f64,
        ) {
            let prompt = (split * history.len() as f64) as usize;
            let p = brute_force(&logits, &history, prompt, &s);
            let mut h = History::new(logits.len(), &s, &history[..prompt]);
            history[prompt..].iter().for_each(|&t| h.push(t));
            let (mut sampler, mut rng) = (Sampler::new(logits.len()), Rng::new(1, 2));
            let (mut work, n) = (logits.clone(), 2000);
            let mut counts = vec![0usize; logits.len()];
            for _ in 0..n {
                counts[sampler.sample(&mut work, &h, &s, &mut rng).unwrap() as usize] += 1;
            }
            prop_assert_eq!(&work, &logits);
            for (token, &count) in counts.iter().enumerate() {
                // A token at the very edge of a cut may fall on either side by rounding: then its neighbour in rank
                // is missing too, which the bound on the deviation would show.
                let sigma = (n as f64 * p[token] * (1.0 - p[token])).sqrt();
                prop_assert!(
                    (count as f64 - n as f64 * p[token]).abs() <= 6.0 * sigma + 3.0,
                    "token {} drawn {} times, expected {}", token, count, n as f64 * p[token]
                );
            }
        }

        #[test]
        fn logprobs_are_those_of_the_model(logits in prop::collection::vec(-30.0..30.0f32, 1..500), n in 0..25usize) {
            let z: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
            let mut order: Vec<u32> = (0..logits.len() as u32).collect();
            order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
            let mut top = Vec::new();
            let token = (logits.len() / 2) as u32;
            let got = Sampler::new(logits.len()).logprobs(&logits, token, n, &mut top).unwrap();
            let want = |t: u32| f64::from(logits[t as usize]) - z.ln();
            prop_assert!((f64::from(got) - want(token)).abs() < 1e-5);
            prop_assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), &order[..n.min(order.len())]);
            prop_assert!(top.iter().all(|&(t, l)| (f64::from(l) - want(t)).abs() < 1e-5));
        }

        #[test]
        fn exp_is_exp(x in -86.9..0.0f32) {
            let want = f64::from(x).exp();
            prop_assert!((f64::from(exp(x)) - want).abs() <= want * 2.4e-7, "{} {}", exp(x), want);
        }
    }

    #[test]
    fn exp_at_the_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(-87.1), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn greedy_takes_the_lowest_id_among_equals() {
        let mut logits = vec![0.0; 40];
        (logits[7], logits[9], logits[33]) = (2.0, 2.0, 2.0);
        assert_eq!(sample(&logits, &Sampling::default(), 0), Ok(7));
        let top1 = Sampling { temperature: 1.0, top_k: 1, ..Sampling::default() };
        assert_eq!(sample(&logits, &top1, 3), Ok(7));
        let cold = Sampling { temperature: 1e-38, top_k: 30, min_p: 0.1, ..Sampling::default() };
        assert!([7, 9, 33].contains(&sample(&logits, &cold, 3).unwrap()));
    }

    #[test]
    fn bad_logits_are_errors() {
        for sampling in [Sampling::default(), Sampling { temperature: 1.0, top_p: 0.9, ..Sampling::default() }] {
            for at in [0, 20, 36] {
                let mut logits = vec![1.0; 37];
                logits[at] = f32::NAN;
                assert_eq!(sample(&logits, &sampling, 0), Err(BadLogits::NotANumber));
                logits[at] = f32::INFINITY;
                assert_eq!(sample(&logits, &sampling, 0), Err(BadLogits::Infinite));
            }
            assert_eq!(sample(&[f32::NEG_INFINITY; 37], &sampling, 0), Err(BadLogits::NothingLeft));
        }
    }

    #[test]
    fn excluded_tokens_are_never_drawn() {
        let mut logits = vec![f32::NEG_INFINITY; 600];
        (logits[10], logits[599]) = (0.0, -50.0);
        for top_p in [1.0, 0.9999] {
            let s = Sampling { temperature: 2.0, top_p, logit_bias: vec![(3, 1.0)], ..Sampling::default() };
            for seed in 0..200 {
                assert_eq!(sample(&logits, &s, seed), Ok(10));
            }
        }
        let ban = Sampling { logit_bias: vec![(10, f32::NEG_INFINITY)], ..Sampling::default() };
        assert_eq!(sample(&logits, &ban, 0), Ok(599));
    }

    #[test]
    fn out_of_range_is_refused_by_name() {
        let d = Sampling::default;
        let bad = [
            ("temperature", Sampling { temperature: -0.1, ..d() }),
            ("temperature", Sampling { temperature: f32::NAN, ..d() }),
            ("top_p", Sampling { top_p: 0.0, ..d() }),
            ("top_p", Sampling { top_p: f32::NAN, ..d() }),
            ("min_p", Sampling { min_p: 1.5, ..d() }),
            ("repetition_penalty", Sampling { repetition_penalty: 0.0, ..d() }),
            ("presence_penalty", Sampling { presence_penalty: f32::INFINITY, ..d() }),
            ("frequency_penalty", Sampling { frequency_penalty: f32::NAN, ..d() }),
            ("logit_bias", Sampling { logit_bias: vec![(1, f32::NAN)], ..d() }),
        ];
        for (want, sampling) in bad {
            assert!(matches!(sampling.check(10), Err(Error::Option { name, .. }) if name == want), "{want}");
        }
        let outside = Sampling { logit_bias: vec![(10, 1.0)], ..d() };
        assert!(matches!(outside.check(10), Err(Error::TokenOutOfRange { token: 10, .. })));
        assert_eq!(d().check(10), Ok(()));
    }
}
