#!/usr/bin/env python3
"""Derivatives and twenty AdamW steps of the tiny models, by PyTorch and transformers.

    python3 testdata/scripts/training_golden.py      # writes testdata/training/NAME.json

The loss is the mean cross-entropy of the tokens that count, plus 0.3 times the prediction block's. transformers has that
block for drafting only, so it is put together here from the same decoder layer. A router's correction bias moves by 0.001 against
the load after every step, as the V3 paper describes; everything else by `torch.optim.AdamW` after `clip_grad_norm_(1.0)`.

Of every tensor (GGUF names, rows as in the Hugging Face files, experts below one another) a file has: the norm of its
derivative in the first step and how far it moved in twenty, both with the values at a few places: the largest, and some in between.
Derivatives are computed in float64 where transformers does not insist on float32, steps in float32.

Needs torch 2.13.0, transformers 5.23.0, safetensors and numpy from PyPI.
"""
import json
import re
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent
LR, BETAS, EPS, DECAY, CLIP, STEPS = 1e-4, (0.9, 0.95), 1e-8, 0.1, 1.0, 20
DRAFT, BALANCE, PLACES = 0.3, 1e-3, 16

GLOBAL = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
}


def weights(path):
    """All tensors of a directory in float32; FP8 ones times the scales of their blocks of 128 × 128."""
    raw = {}
    for file in sorted(path.glob("*.safetensors")):
        if "golden" not in file.name:
            raw.update(load_file(file))
    out = {}
    for name, w in raw.items():
        if name.endswith("_scale_inv"):
            continue
        w = w.float()
        if (scale := raw.get(name + "_scale_inv")) is not None:
            scale = scale.float().repeat_interleave(128, 0).repeat_interleave(128, 1)
            w = w * scale[: w.shape[0], : w.shape[1]]
        out[name] = w.contiguous()
    return out


def load(config, tensors):
    with tempfile.TemporaryDirectory() as d:
        (Path(d) / "config.json").write_text(json.dumps(config))
        save_file(tensors, Path(d) / "model.safetensors", metadata={"format": "pt"})
        eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
        return AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32, **eager)


class Net(torch.nn.Module):
    """A model, and its prediction block where it has one."""

    def __init__(self, name, tied):
        super().__init__()
        path = ROOT / "models" / name
        config, tensors = json.loads((path / "config.json").read_text()), weights(path)
        config.pop("quantization_config", None)
        config["tie_word_embeddings"] = tied
        if tied:
            tensors.pop("lm_head.weight")
        self.depth = config["num_hidden_layers"]
        block = f"model.layers.{self.depth}."
        own = {n.removeprefix(block): t for n, t in tensors.items() if n.startswith(block)}
        self.main = load(config, {n: t for n, t in tensors.items() if not n.startswith(block)})
        self.mtp = None
        if own:
            # One more model of a single layer: its final norm is the block's, what goes in is made below. Embedding and head
            # are the model's own (the files hold equal copies).
            shared = {"model.embed_tokens.weight": "embed_tokens.weight", "lm_head.weight": "shared_head.head.weight"}
            renamed = {n: tensors[n] for n in shared} | {"model.norm.weight": own.pop("shared_head.norm.weight")}
            assert all(torch.equal(tensors[n], own.pop(copy)) for n, copy in shared.items())
            dim, eps = config["hidden_size"], config["rms_norm_eps"]
            norm = type(self.main.model.norm)
            self.enorm, self.hnorm = norm(dim, eps), norm(dim, eps)
            self.eh_proj = torch.nn.Linear(2 * dim, dim, bias=False)
            for part in ("enorm", "hnorm", "eh_proj"):
                getattr(self, part).weight.data.copy_(own.pop(part + ".weight"))
            renamed.update({"model.layers.0." + n: t for n, t in own.items()})
            self.mtp = load(config | {"num_hidden_layers": 1, "first_k_dense_replace": 0}, renamed)
            self.mtp.model.embed_tokens, self.mtp.lm_head = self.main.model.embed_tokens, self.main.lm_head
        self.routers = [m for m in self.modules() if hasattr(m, "e_score_correction_bias")]

    def losses(self, examples):
        """Mean loss of what counts, and of the prediction block."""
        loss, draft, chosen = [], [], {m: [] for m in self.routers}
        hooks = [m.register_forward_hook(lambda m, _, out: chosen[m].append(out[2])) for m in self.routers]
        for tokens, start in examples:
            t = torch.tensor(tokens)
            h = self.main.model(input_ids=t[None, :-1], use_cache=False).last_hidden_state
            rows = torch.arange(len(t) - 1)
            loss.append(F.cross_entropy(self.main.lm_head(h)[0], t[1:], reduction="none")[rows + 1 >= start])
            if self.mtp is not None:
                e = self.mtp.model.embed_tokens(t[None, 1:])
                x = self.eh_proj(torch.cat([self.enorm(e), self.hnorm(h)], -1))
                z = self.mtp.lm_head(self.mtp.model(inputs_embeds=x, use_cache=False).last_hidden_state)[0, :-1]
                draft.append(F.cross_entropy(z, t[2:], reduction="none")[rows[:-1] + 2 >= start])
        for hook in hooks:
            hook.remove()
        self.load = {m: torch.cat([c.flatten() for c in chosen[m]]).bincount(minlength=len(m.weight)) for m in chosen}
        return torch.cat(loss).mean(), torch.cat(draft).mean() if draft else None

    def total(self, examples):
        loss, draft = self.losses(examples)
        return loss, draft, loss if draft is None else loss + DRAFT * draft

    def balance(self):
        for m, load in self.load.items():
            m.e_score_correction_bias += BALANCE * torch.sign(load.double().mean() - load)

    def tensors(self, of):
        """`of(parameter)` for every parameter, as float64 matrices under GGUF names."""
        out = {}
        for name, p in list(self.named_parameters()) + [b for b in self.named_buffers() if "correction" in b[0]]:
            if (v := of(p)) is None:
                continue
            v = v.detach().double()
            v = v.reshape(-1, v.shape[-1]) if v.dim() < 3 else v
            name, layer = name.removeprefix("main."), None
            if name.startswith("mtp.model.layers.0."):
                name = name.replace("mtp.model.layers.0.", f"model.layers.{self.depth}.")
            elif name.startswith(("mtp.", "enorm", "hnorm", "eh_proj")):
                part = name.replace("mtp.model.norm", "shared_head_norm")
                out[f"blk.{self.depth}.nextn.{part}"] = v
                continue
            if m := re.match(r"model\.layers\.(\d+)\.(.*)", name):
                layer, name = f"blk.{m[1]}.", m[2]
            if layer is None:
                out[GLOBAL[name]] = v
            elif name == "mlp.experts.gate_up_proj":
                gate, up = v.chunk(2, 1)
                out[layer + "ffn_gate_exps.weight"] = gate.reshape(-1, v.shape[-1])
                out[layer + "ffn_up_exps.weight"] = up.reshape(-1, v.shape[-1])
            elif name in LAYER:
                out[layer + LAYER[name]] = v.reshape(-1, v.shape[-1])
            else:
                stem, end = name.rsplit(".", 1)
                out[f"{layer}{LAYER[stem]}.{end}"] = v
        return out


def sample(v):
    """Norm, and values at some places of a flattened tensor: half of them where it is largest."""
    v = v.flatten().numpy()
    places = np.argsort(-np.abs(v), kind="stable")[: PLACES // 2].tolist()
    places += (np.arange(PLACES // 2) * len(v) // (PLACES // 2)).tolist()
    places = sorted(set(places))
    short = lambda x: float(f"{x:.8g}")
    return {"norm": short(np.linalg.norm(v)), "at": places, "values": [short(v[i]) for i in places]}


def record(name, tied=False):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    vocab = json.loads((ROOT / "models" / name / "config.json").read_text())["vocab_size"]
    rng = np.random.default_rng(3)
    examples = [(rng.integers(0, vocab, n).tolist(), start) for n, start in [(14, 1), (9, 5), (3, 1)]]

    net = Net(name, tied).double()
    loss, draft, total = net.total(examples)
    total.backward()
    grads = {n: sample(g) for n, g in net.tensors(lambda p: p.grad).items()}

    net = Net(name, tied).float()
    before = {n: v.clone() for n, v in net.tensors(lambda p: p).items()}
    optimiser = torch.optim.AdamW(net.parameters(), LR, BETAS, EPS, DECAY)
    losses, drafts, norms = [], [], []
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss, draft, total = net.total(examples)
        total.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP).item())
        optimiser.step()
        net.balance()
        losses.append(loss.item())
        drafts += [draft.item()] if draft is not None else []
    moved = {n: sample(v - before[n]) for n, v in net.tensors(lambda p: p).items()}

    out = {
        "model": name,
        "tied": tied,
        "versions": {"torch": torch.__version__, "transformers": __import__("transformers").__version__},
        "examples": [{"tokens": t, "from": start} for t, start in examples],
        "adamw": {"lr": LR, "betas": BETAS, "eps": EPS, "decay": DECAY, "clip": CLIP},
        "losses": losses,
        "draft_losses": drafts,
        "norms": norms,
        "gradients": grads,
        "moved": moved,
    }
    file = ROOT / "training" / (name + ("_tied" if tied else "") + ".json")
    file.parent.mkdir(exist_ok=True)
    text = json.dumps(out, separators=(",", ":")).replace('"blk.', '\n"blk.')
    file.write_text(text + "\n")
    print(f"{file.name}: loss {losses[0]:.5f} -> {losses[-1]:.5f}, {len(grads)} derivatives, {file.stat().st_size} bytes")


for model in ["llama", "qwen2", "deepseek_v2", "deepseek_v3_fp8_mtp"]:
    record(model)
record("qwen2", tied=True)
