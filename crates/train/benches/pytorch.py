"""Training speed beside PyTorch: the same models, batches and optimiser, in turn.

    python crates/train/benches/pytorch.py BENCH [--models dense latent] [--threads 2] [--rounds 3] [--steps 3]

BENCH is the program that `cargo bench -p fathom-train --bench step --no-run` names. Models are those of step.rs, in
transformers (Llama, DeepseekV3), from random weights; AdamW; 16 sequences of 256 random tokens. Every round runs
fathom in f32 and bf16 and every form of PyTorch (eager and compiled; f32 and bf16 autocast), so that whatever else
the machine does meets all of them. Prints medians over the rounds: tokens per second by the clock, and per second of processor time.
"""

import argparse
import re
import statistics
import subprocess
import time

import torch
from transformers import AutoModelForCausalLM, DeepseekV3Config, LlamaConfig

SEQUENCES, LENGTH, VOCAB = 16, 256, 4096

COMMON = dict(vocab_size=VOCAB, hidden_size=256, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4,
              max_position_embeddings=512, tie_word_embeddings=True, use_cache=False)
MODELS = {
    "dense": lambda: LlamaConfig(intermediate_size=704, **COMMON),
    "latent": lambda: DeepseekV3Config(
        intermediate_size=576, moe_intermediate_size=192, n_routed_experts=16, num_experts_per_tok=2, n_shared_experts=1,
        first_k_dense_replace=1, q_lora_rank=None, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32,
        n_group=1, topk_group=1, norm_topk_prob=True, routed_scaling_factor=1.0, **COMMON),
}


class Torch:
    """A model under PyTorch, one form of computing."""

    def __init__(self, config, compiled, bf16, experts=None):
        torch.manual_seed(1)
        if experts:
            config._experts_implementation = experts
        self.model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
        self.size = sum(p.numel() for p in self.model.parameters())
        self.run = torch.compile(self.model) if compiled else self.model
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
        self.bf16 = bf16
        self.steps(2)

    def steps(self, n):
        for _ in range(n):
            tokens = torch.randint(VOCAB, (SEQUENCES, LENGTH + 1))
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                logits = self.run(input_ids=tokens[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.float().view(-1, VOCAB), tokens[:, 1:].reshape(-1))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimiser.step()
            self.optimiser.zero_grad()

    def measure(self, n):
        clock, work = time.perf_counter(), time.process_time()
        self.steps(n)
        tokens = n * SEQUENCES * LENGTH
        return tokens / (time.perf_counter() - clock), tokens / (time.process_time() - work)


class Fathom:
    """fathom's own bench."""

    def __init__(self, bench, model, threads, products):
        self.command = [bench, model, str(threads)]
        self.rest = ["adamw", products]

    def measure(self, n):
        out = subprocess.run(self.command + [str(n)] + self.rest, capture_output=True, text=True, check=True).stdout
        return tuple(float(v) for v in re.search(r"(\d+) tokens/s, (\d+) tokens per second", out).groups())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench")
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--modes", nargs="*", default=["eager", "compiled"])
    parser.add_argument("--experts", nargs="*", default=["eager", "grouped_mm"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads")
    for name in args.models:
        forms = {f"fathom {p}": Fathom(args.bench, name, args.threads, p) for p in ("f32", "bf16")}
        for experts in ([None] if name == "dense" else args.experts):
            for mode in args.modes:
                for bf16 in (False, True):
                    label = " ".join(filter(None, ["PyTorch", mode, "bf16" if bf16 else "f32", experts and f"experts={experts}"]))
                    try:
                        forms[label] = Torch(MODELS[name](), mode == "compiled", bf16, experts)
                        print(f"{name}: {label}: {forms[label].size} parameters", flush=True)
                    except Exception as e:  # a form that this version cannot run is no competitor, but is named
                        print(f"{name}: {label} does not run: {str(e).splitlines()[0]}", flush=True)
        found = {label: [] for label in forms}
        for _ in range(args.rounds):
            for label, form in forms.items():
                found[label].append(form.measure(args.steps))
        for label, runs in found.items():
            clock, work = (statistics.median(r[i] for r in runs) for i in (0, 1))
            print(f"{name:7} {label:44} {clock:7.0f} tokens/s {work:7.0f} per second of processor time", flush=True)


if __name__ == "__main__":
    main()
