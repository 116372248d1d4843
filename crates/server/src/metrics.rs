//! Counters and gauges in Prometheus' text format, among them those that the Kubernetes Gateway API Inference Extension and
//! llm-d read under vLLM's names (gateway-api-inference-extension, proposal 003).

use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use fathom_engine::Usage;

use crate::App;

/// Upper bounds of the time histograms, in seconds.
const SECONDS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

/// See the module.
#[derive(Default)]
pub(crate) struct Metrics {
    /// Requests under way.
    pub(crate) running: AtomicU64,
    /// Answers whose client left before the end.
    pub(crate) cancelled: AtomicU64,
    prompt: AtomicU64,
    cached: AtomicU64,
    completion: AtomicU64,
    /// Responses by status.
    statuses: Mutex<std::collections::BTreeMap<u16, u64>>,
    first_token: Mutex<Histogram>,
    per_token: Mutex<Histogram>,
}

#[derive(Default)]
struct Histogram {
    counts: [u64; SECONDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn note(&mut self, seconds: f64) {
        SECONDS.iter().zip(&mut self.counts).filter(|(bound, _)| seconds <= **bound).for_each(|(_, n)| *n += 1);
        self.count += 1;
        self.sum += seconds;
    }

    fn write(&self, name: &str, help: &str, out: &mut String) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (bound, count) in SECONDS.iter().zip(self.counts) {
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(out, "{name}_sum {}\n{name}_count {}", self.sum, self.count);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Metrics {
    /// Counts a response.
    pub(crate) fn responded(&self, status: u16) {
        *lock(&self.statuses).entry(status).or_default() += 1;
    }

    /// Counts an ended answer.
    pub(crate) fn answered(&self, usage: &Usage) {
        self.prompt.fetch_add(usage.prompt as u64, Ordering::Relaxed);
        self.cached.fetch_add(usage.cached as u64, Ordering::Relaxed);
        self.completion.fetch_add(usage.completion as u64, Ordering::Relaxed);
        if usage.completion > 0 {
            lock(&self.first_token).note(usage.first_token_s());
        }
        if usage.completion > 1 {
            lock(&self.per_token).note(usage.decode_s / (usage.completion - 1) as f64);
        }
    }

    /// Everything as text.
    pub(crate) fn text(&self, app: &App) -> String {
        let mut out = String::new();
        let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, f64)]| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(out, "{name}{labels} {value}");
            }
        };
        let one = |value: &AtomicU64| vec![(String::new(), value.load(Ordering::Relaxed) as f64)];
        let statuses: Vec<_> =
            lock(&self.statuses).iter().map(|(s, n)| (format!("{{status=\"{s}\"}}"), *n as f64)).collect();
        family("fathom_responses_total", "counter", "Responses by status.", &statuses);
        family("fathom_requests_running", "gauge", "Requests under way.", &one(&self.running));
        family("fathom_cancelled_total", "counter", "Answers whose client left early.", &one(&self.cancelled));
        family("fathom_prompt_tokens_total", "counter", "Tokens of prompts.", &one(&self.prompt));
        family("fathom_cached_tokens_total", "counter", "Prompt tokens found in the cache.", &one(&self.cached));
        family("fathom_completion_tokens_total", "counter", "Tokens generated.", &one(&self.completion));
        let loaded = app.models.loaded();
        let each = |value: &dyn Fn(&fathom_engine::Stats) -> f64| -> Vec<(String, f64)> {
            let label = |name: &str| name.replace(['\\', '"', '\n'], "_");
            let sample =
                |s: &crate::Served| (format!("{{model_name=\"{}\"}}", label(&s.offer.name)), value(&s.engine.stats()));
            loaded.iter().map(|(served, _)| sample(served)).collect()
        };
        let used = |s: &fathom_engine::Stats| {
            if s.blocks == 0 { 0.0 } else { (s.blocks - s.idle_blocks) as f64 / s.blocks as f64 }
        };
        family("vllm:num_requests_running", "gauge", "Sequences in the batch.", &each(&|s| s.running as f64));
        family("vllm:num_requests_waiting", "gauge", "Sequences that wait.", &each(&|s| s.waiting as f64));
        family("vllm:kv_cache_usage_perc", "gauge", "Share of cache blocks in use, 0 to 1.", &each(&used));
        let config = loaded.iter().map(|(served, _)| {
            let info = served.engine.info();
            (format!("{{block_size=\"{}\",num_gpu_blocks=\"{}\"}}", info.block_tokens, info.blocks), 1.0)
        });
        let config: Vec<_> = config.collect();
        family("vllm:cache_config_info", "gauge", "Size of the cache, as labels.", &config);
        family(
            "fathom_preempted_total",
            "counter",
            "Sequences that lost their blocks.",
            &each(&|s| s.preempted as f64),
        );
        family("fathom_drafted_total", "counter", "Drafts verified.", &each(&|s| s.drafted as f64));
        family("fathom_accepted_total", "counter", "Drafts that were right.", &each(&|s| s.accepted as f64));
        lock(&self.first_token).write("fathom_first_token_seconds", "Time to the first token.", &mut out);
        lock(&self.per_token).write("fathom_token_seconds", "Time per token after the first.", &mut out);
        out
    }
}
