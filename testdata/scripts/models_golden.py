#!/usr/bin/env python3
"""Tiny models that transformers cannot record, with goldens from an independent float64 forward pass in numpy.

    python3 testdata/scripts/models_golden.py check   # the forward pass against transformers' own recordings
    python3 testdata/scripts/models_golden.py write   # testdata/models/{deepseek_moe,deepseek_coder}, the old GGUF layout

`check` holds the forward pass below to the recordings of llama and deepseek_v2_lite: attention, llama3 and YaRN frequencies, latent
attention, softmax routing and shared experts are all covered there, so what `write` records stands on transformers' word for
everything but DeepSeek-MoE's putting together of the same parts and linear frequency scaling (positions divided by a factor).

Needs numpy, safetensors and gguf from PyPI.
"""
import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file, save_file

MODELS = Path(__file__).resolve().parent.parent / "models"


# ---------------------------------------------------------------- the forward pass


def frequencies(c, dim):
    f = c.get("rope_theta", 10000.0) ** (-np.arange(0, dim, 2) / dim)
    s = c.get("rope_scaling") or {}
    kind = s.get("rope_type", s.get("type", "none"))
    if kind == "linear":
        return f / s["factor"]
    if kind == "llama3":
        wave, old = 2 * np.pi / f, s["original_max_position_embeddings"]
        blend = (old / wave - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])
        blend = np.clip(blend, 0, 1)
        return f * blend + f / s["factor"] * (1 - blend)
    if kind == "yarn":
        at = lambda beta: dim * np.log(s["original_max_position_embeddings"] / (2 * np.pi * beta)) / (2 * np.log(c["rope_theta"]))
        low, high = max(np.floor(at(s["beta_fast"])), 0), min(np.ceil(at(s["beta_slow"])), dim - 1)
        ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 1e-3), 0, 1)
        return f / s["factor"] * ramp + f * (1 - ramp)
    assert kind == "none", kind
    return f


def turn(x, freqs, interleaved):
    """Rotates the last dimension of x: [tokens, heads, dim]."""
    spin = np.exp(1j * np.outer(np.arange(len(x)), freqs))[:, None]
    if interleaved:
        z = (x[..., 0::2] + 1j * x[..., 1::2]) * spin
        return np.stack([z.real, z.imag], -1).reshape(x.shape)
    half = x.shape[-1] // 2
    z = (x[..., :half] + 1j * x[..., half:]) * spin
    return np.concatenate([z.real, z.imag], -1)


def norm(x, w, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def mix(q, k, v, scale):
    """Causal attention of q: [tokens, heads, dim] over k, v with as many heads."""
    n = len(q)
    scores = np.einsum("ihd,jhd->hij", q, k) * scale + np.where(np.tri(n, dtype=bool), 0, -np.inf)
    return np.einsum("hij,jhd->ihd", softmax(scores), v).reshape(n, -1)


def attention(c, w, p, x):
    n, heads = len(x), c["num_attention_heads"]
    if "kv_lora_rank" in c:
        nope, rope, v_dim = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        s = c["rope_scaling"]
        m = 0.1 * s["mscale_all_dim"] * np.log(s["factor"]) + 1
        f = frequencies(c, rope)
        q = (x @ w[p + "q_proj.weight"].T).reshape(n, heads, nope + rope)
        low = x @ w[p + "kv_a_proj_with_mqa.weight"].T
        c_kv = norm(low[:, : c["kv_lora_rank"]], w[p + "kv_a_layernorm.weight"], 1e-6)
        kv = (c_kv @ w[p + "kv_b_proj.weight"].T).reshape(n, heads, nope + v_dim)
        k_r = turn(low[:, None, c["kv_lora_rank"] :], f, True)
        q = np.concatenate([q[..., :nope], turn(q[..., nope:], f, True)], -1)
        k = np.concatenate([kv[..., :nope], np.broadcast_to(k_r, (n, heads, rope))], -1)
        o = mix(q, k, kv[..., nope:], (nope + rope) ** -0.5 * m * m)
    else:
        kv_heads = c["num_key_value_heads"]
        dim = c["hidden_size"] // heads
        f = frequencies(c, dim)
        q, k, v = ((x @ w[f"{p}{n_}_proj.weight"].T).reshape(n, -1, dim) for n_ in "qkv")
        k, v = (np.repeat(t, heads // kv_heads, 1) for t in (turn(k, f, False), v))
        o = mix(turn(q, f, False), k, v, dim**-0.5)
    return o @ w[p + "o_proj.weight"].T


def ffn(w, p, x):
    g = x @ w[p + "gate_proj.weight"].T
    return (g / (1 + np.exp(-g)) * (x @ w[p + "up_proj.weight"].T)) @ w[p + "down_proj.weight"].T


def experts(c, w, p, x):
    """Routed experts plus shared ones; also the choice, its weights and its margin."""
    s = softmax(x @ w[p + "gate.weight"].T)
    order = np.argsort(-s, -1, kind="stable")
    k = c["num_experts_per_tok"]
    ids = np.sort(order[:, :k], -1)
    weights = np.take_along_axis(s, ids, -1)
    ranked = np.take_along_axis(s, order, -1)
    y = ffn(w, p + "shared_experts.", x)
    for t in range(len(x)):
        for e, g in zip(ids[t], weights[t]):
            y[t] += g * ffn(w, f"{p}experts.{e}.", x[t])
    return y, (ids, weights, (ranked[:, k - 1] - ranked[:, k]).min())


def forward(c, w, ids):
    """Logits, and a dictionary of intermediates under the names of the recordings."""
    h = w["model.embed_tokens.weight"][ids]
    seen = {"hidden.embed": h}
    margin = np.inf
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        h = h + attention(c, w, p + "self_attn.", norm(h, w[p + "input_layernorm.weight"], c["rms_norm_eps"]))
        x = norm(h, w[p + "post_attention_layernorm.weight"], c["rms_norm_eps"])
        if p + "mlp.gate.weight" in w:
            y, (ids_, weights, m) = experts(c, w, p + "mlp.", x)
            seen[f"route.{i}.experts"], seen[f"route.{i}.weights"] = ids_, weights
            margin = min(margin, m)
        else:
            y = ffn(w, p + "mlp.", x)
        h = h + y
        seen[f"hidden.layer.{i}"] = h
    h = seen["hidden.final_norm"] = norm(h, w["model.norm.weight"], c["rms_norm_eps"])
    return h @ w["lm_head.weight"].T, seen, margin


def greedy(c, w, ids, n=32):
    ids, out, gap = list(ids), [], np.inf
    for _ in range(n):
        row = forward(c, w, ids)[0][-1]
        top = np.sort(row)[::-1]
        gap = min(gap, top[0] - top[1])
        out.append(int(row.argmax()))
        ids.append(out[-1])
    return out, float(gap)


# ---------------------------------------------------------------- files


def bf16(x):
    """Nearest bfloat16, ties to even, as its upper 16 bits."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def widen(u):
    return (u.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def write_bf16(path, tensors):
    header, at, body = {"__metadata__": {"format": "pt"}}, 0, []
    for name, t in tensors.items():
        raw = t.tobytes()
        header[name] = {"dtype": "BF16", "shape": list(t.shape), "data_offsets": [at, at + len(raw)]}
        at += len(raw)
        body.append(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(body))


def weights_of(path):
    """All tensors of a Hugging Face directory, in float64."""
    w = {}
    for file in sorted(path.glob("model*.safetensors")):
        raw = file.read_bytes()
        n = int.from_bytes(raw[:8], "little")
        for name, t in json.loads(raw[8 : 8 + n]).items():
            if name == "__metadata__":
                continue
            data = raw[8 + n + t["data_offsets"][0] : 8 + n + t["data_offsets"][1]]
            kind = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}[t["dtype"]]
            a = np.frombuffer(data, kind).reshape(t["shape"])
            w[name] = widen(a) if t["dtype"] == "BF16" else a.astype(np.float64)
    return w


def check():
    for name in ("llama", "deepseek_v2_lite"):
        c = json.loads((MODELS / name / "config.json").read_text())
        w, golden = weights_of(MODELS / name), load_file(MODELS / name / "golden.safetensors")
        for prompt in ("one", "short", "mid", "long"):
            logits, seen, _ = forward(c, w, golden[f"{prompt}.input_ids"])
            worst = np.abs(logits - golden[f"{prompt}.logits"]).max()
            for key, value in seen.items():
                if f"{prompt}.{key}" in golden:
                    worst = max(worst, np.abs(value - golden[f"{prompt}.{key}"]).max())
            print(f"{name} {prompt}: largest difference to transformers {worst:.1e}")
            assert worst < 1e-4


def save(tensors, path):
    save_file(tensors, path)
    path.chmod(0o644)


NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "mlp.gate": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}


def write_gguf(path, arch, c, w, kind):
    """llama.cpp's layout. Returns the weights as the file holds them."""
    path.parent.mkdir(exist_ok=True)
    out = gguf.GGUFWriter(path, arch)
    for key, field in gguf.GGUFReader(MODELS / "deepseek_v2_lite/gguf/deepseek_v2_lite-q8_0.gguf").fields.items():
        if key.startswith("tokenizer."):
            sub = field.types[1] if len(field.types) > 1 else None
            out.add_key_value(key, field.contents(), field.types[0], sub)
    heads, s = c["num_attention_heads"], c.get("rope_scaling")
    out.add_block_count(c["num_hidden_layers"])
    out.add_context_length(c["max_position_embeddings"])
    out.add_embedding_length(c["hidden_size"])
    out.add_feed_forward_length(c["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(c["num_key_value_heads"])
    out.add_layer_norm_rms_eps(c["rms_norm_eps"])
    out.add_rope_freq_base(float(c["rope_theta"]))
    out.add_vocab_size(c["vocab_size"])
    if s:
        out.add_rope_scaling_type(gguf.RopeScalingType(s["type"]))
        out.add_rope_scaling_factor(float(s["factor"]))
    if "kv_lora_rank" in c:  # as files were before the split: no *_mla keys, as many key heads as query heads
        out.add_kv_lora_rank(c["kv_lora_rank"])
        out.add_key_length(c["qk_nope_head_dim"] + c["qk_rope_head_dim"])
        out.add_value_length(c["v_head_dim"])
        out.add_rope_dimension_count(c["qk_rope_head_dim"])
        out.add_rope_scaling_orig_ctx_len(s["original_max_position_embeddings"])
        out.add_rope_scaling_yarn_log_mul(0.1 * s["mscale_all_dim"])
    else:
        out.add_rope_dimension_count(c["hidden_size"] // heads)
    if "n_routed_experts" in c:
        out.add_leading_dense_block_count(c["first_k_dense_replace"])
        out.add_expert_feed_forward_length(c["moe_intermediate_size"])
        out.add_expert_count(c["n_routed_experts"])
        out.add_expert_used_count(c["num_experts_per_tok"])
        out.add_expert_shared_count(c["n_shared_experts"])
        out.add_expert_weights_scale(1.0)
    held = {}

    def put(name, a, as_kind):
        a = np.ascontiguousarray(a, np.float32)
        q = gguf.quants.quantize(a, as_kind)
        out.add_tensor(name, q, raw_dtype=as_kind)
        return gguf.quants.dequantize(q, as_kind).reshape(a.shape).astype(np.float64)

    stacks = {}
    for name, a in w.items():
        if ".mlp.experts." in name:
            layer, rest = name.removeprefix("model.layers.").split(".mlp.experts.")
            stacks.setdefault((layer, rest.split(".")[1]), []).append(name)
            continue
        target = NAMES.get(name)
        if target is None:
            layer, _, rest = name.removeprefix("model.layers.").partition(".")
            target = f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"
        plain = a.ndim == 1 or "ffn_gate_inp" in target
        pairs = None
        if "kv_lora_rank" not in c and target.endswith(("attn_q.weight", "attn_k.weight")):
            n = heads if "attn_q" in target else c["num_key_value_heads"]
            pairs = lambda m, x, y: m.reshape(n, x, y, m.shape[1]).swapaxes(1, 2).reshape(m.shape)
        half = c["hidden_size"] // heads // 2
        stored = put(target, pairs(a, 2, half) if pairs else a, gguf.GGMLQuantizationType.F32 if plain else kind)
        held[name] = pairs(stored, half, 2) if pairs else stored
    for (layer, which), names in stacks.items():
        names.sort(key=lambda n: int(n.split(".mlp.experts.")[1].split(".")[0]))
        target = f"blk.{layer}.ffn_{which.removesuffix('_proj')}_exps.weight"
        for name, a in zip(names, put(target, np.stack([w[n] for n in names]), kind)):
            held[name] = a
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return held


def draw(c, seed):
    rng = np.random.default_rng(seed)
    w, d, hidden = {}, c["hidden_size"], c["hidden_size"]

    def put(name, rows, cols, gain=1.0):
        w[name] = bf16(rng.normal(size=(rows, cols)) * gain / np.sqrt(cols))

    def vector(name, n):
        w[name] = bf16(1 + 0.2 * rng.normal(size=n))

    def mlp(p, width):
        put(p + "gate_proj.weight", width, d, 1.25)
        put(p + "up_proj.weight", width, d, 1.25)
        put(p + "down_proj.weight", d, width, 1.25)

    put("model.embed_tokens.weight", c["vocab_size"], d, 4.0)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        vector(p + "input_layernorm.weight", d)
        kv = d // c["num_attention_heads"] * c["num_key_value_heads"]
        for n, rows in (("q", d), ("k", kv), ("v", kv), ("o", d)):
            put(f"{p}self_attn.{n}_proj.weight", rows, d, 1.25)
        vector(p + "post_attention_layernorm.weight", d)
        if i >= c.get("first_k_dense_replace", 1 << 30):
            put(p + "mlp.gate.weight", c["n_routed_experts"], d, 1.5)
            for e in range(c["n_routed_experts"]):
                mlp(f"{p}mlp.experts.{e}.", c["moe_intermediate_size"])
            mlp(p + "mlp.shared_experts.", c["moe_intermediate_size"] * c["n_shared_experts"])
        else:
            mlp(p + "mlp.", c["intermediate_size"])
    vector("model.norm.weight", hidden)
    put("lm_head.weight", c["vocab_size"], d, 3.0)
    return w


def record(c, w, prompts, full=True):
    """The tensors and the JSON of a recording; None if a choice is too close to demand of float32."""
    tensors, listed, close = {}, {}, False
    for name, ids in prompts.items():
        logits, seen, margin = forward(c, w, ids)
        close |= margin < 2e-5
        tensors[f"{name}.input_ids"] = np.array(ids, np.int32)
        tensors[f"{name}.logits"] = logits.astype(np.float32)
        if full and name == "mid":
            for key, value in seen.items():
                tensors[f"mid.{key}"] = value.astype(np.int32 if key.endswith("experts") else np.float32)
        listed[name] = {"input_ids": [int(i) for i in ids]}
        if name in ("short", "long"):
            listed[name]["greedy32_cached"], gap = greedy(c, w, ids)
            listed[name]["greedy_min_top2_gap"] = gap
            close |= full and gap < 5e-3
    return None if close else (tensors, listed)


def make(name, arch, c, kind, label):
    out = MODELS / name
    out.mkdir(exist_ok=True)
    for seed in range(1000):
        stored = draw(c, seed)
        w = {k: widen(v) for k, v in stored.items()}
        rng = np.random.default_rng(seed + 1_000_000)
        lengths = {"one": 1, "short": 7, "mid": 24, "long": 80, "batch0": 5, "batch1": 13, "batch2": 29}
        prompts = {p: rng.integers(0, c["vocab_size"], n).tolist() for p, n in lengths.items()}
        recorded = record(c, w, prompts)
        if not recorded:
            continue
        file = out / "gguf" / f"{name}-{label}.gguf"
        held = write_gguf(file, arch, c, w, kind)
        recorded_gguf = record(c, held, {p: prompts[p] for p in ("short", "mid")}, full=False)
        if recorded_gguf:
            break
    tensors, listed = recorded
    write_bf16(out / "model.safetensors", stored)
    save(tensors, out / "golden.safetensors")
    made = {"recorder": "testdata/scripts/models_golden.py, numpy float64", "seed": seed, "prompts": listed}
    (out / "golden.json").write_text(json.dumps(made, indent=1) + "\n")
    (out / "config.json").write_text(json.dumps(c, indent=2) + "\n")
    for f in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (out / f).write_bytes((MODELS / "deepseek_v2_lite" / f).read_bytes())
    spread = tensors["mid.logits"].std()
    tensors, listed = recorded_gguf
    save(tensors, file.with_suffix(".golden.safetensors"))
    greedy_json = {label: {"greedy_short": listed["short"]["greedy32_cached"]}}
    (out / "gguf" / "golden_gguf.json").write_text(json.dumps(greedy_json) + "\n")
    print(f"{name}: seed {seed}, spread of the logits {spread:.2f}")


def fused():
    """The V2-Lite model in the GGUF layout from before key and value projections were split. Its float16 weights are held exactly, so
    the recording is transformers' own."""
    source = MODELS / "deepseek_v2_lite"
    c, w = json.loads((source / "config.json").read_text()), weights_of(source)
    file = source / "gguf" / "deepseek_v2_lite_fused-f16.gguf"
    held = write_gguf(file, "deepseek2", c, w, gguf.GGMLQuantizationType.F16)
    assert all((held[k] == w[k]).all() for k in w)
    golden = load_file(source / "golden.safetensors")
    keep = {k: v for k, v in golden.items() if k.split(".", 1)[1] in ("input_ids", "logits")}
    save({k: v for k, v in keep.items() if k.split(".")[0] in ("short", "mid")}, file.with_suffix(".golden.safetensors"))


def write():
    common = dict(hidden_act="silu", hidden_size=64, num_attention_heads=4, num_hidden_layers=3, rms_norm_eps=1e-6,
                  vocab_size=512, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False, attention_bias=False,
                  torch_dtype="bfloat16")
    moe = dict(architectures=["DeepseekForCausalLM"], model_type="deepseek", intermediate_size=160, num_key_value_heads=4,
               max_position_embeddings=256, rope_theta=10000.0, rope_scaling=None, first_k_dense_replace=1, moe_layer_freq=1,
               n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=3, moe_intermediate_size=32, norm_topk_prob=False,
               scoring_func="softmax", **common)
    coder = dict(architectures=["LlamaForCausalLM"], model_type="llama", intermediate_size=192, num_key_value_heads=2,
                 max_position_embeddings=256, rope_theta=100000.0, rope_scaling={"type": "linear", "factor": 4.0}, **common)
    make("deepseek_moe", "deepseek", moe, gguf.GGMLQuantizationType.Q8_0, "q8_0")
    make("deepseek_coder", "llama", coder, gguf.GGMLQuantizationType.Q4_1, "q4_1")
    fused()


{"check": check, "write": write}[sys.argv[1]]()
