#!/usr/bin/env python3
"""Golden values of the backend operations: testdata/ops/golden.json.

Written with numpy in float64, and on purpose by other formulas than the Rust reference backend: rotation by complex
numbers, attention with whole masked score matrices over unpaged tensors, latent attention by materialising every head's
keys and values, experts as a dense sum over one-hot gates, routing with masked arrays. Inputs are multiples of 1/64, so that they
are exact in float32 and short in JSON.

    python3 testdata/scripts/ops_golden.py > testdata/ops/golden.json
"""
import json

import numpy as np

rng = np.random.default_rng(20261123)


def draw(*shape, spread=1.0):
    return np.round(rng.normal(size=shape) * spread * 64) / 64


def flat(a):
    return [float(f"{v:.10g}") for v in np.asarray(a, dtype=np.float64).ravel()]


def softmax(a):
    e = np.exp(a - np.log(np.sum(np.exp(a), axis=-1, keepdims=True)))  # small scores only: no maximum needed
    return e


cases = []


def case(op, out, **args):
    plain = {k: flat(v) if isinstance(v, np.ndarray) else v for k, v in args.items()}
    cases.append({"op": op, **plain, "out": flat(out)})


def rms_norm():
    x, w, eps = draw(4, 12), draw(12), 2.0**-10
    case("rms_norm", x * w / np.linalg.norm(np.c_[x, np.full((4, 1), np.sqrt(12 * eps))], axis=1, keepdims=True) * np.sqrt(12),
         rows=4, x=x, weight=w, eps=eps)


def linear():
    x, w, b = draw(3, 10), draw(7, 10), draw(7)
    case("linear", np.einsum("ti,oi->to", x, w) + b, rows=3, x=x, weight=w, bias=b)


def swiglu():
    g, u = draw(2, 9, spread=4.0), draw(2, 9)
    case("swiglu", g * u * 0.5 * (1 + np.tanh(g / 2)), rows=2, gate=g, up=u)


def rotate(x, positions, inv_freq, layout):
    """x: [tokens, heads, dim]"""
    turn = np.exp(1j * np.outer(positions, inv_freq))[:, None, :]
    if layout == "interleaved":
        z = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
        return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)
    half = x.shape[-1] // 2
    z = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate([z.real, z.imag], axis=-1)


def rope():
    positions, inv_freq, factor = [0, 3, 17, 250], np.array([1.0, 0.25, 0.0625]), 1.25
    for layout in ("interleaved", "halves"):
        x = draw(4, 2, 10)
        out = x.copy()
        out[..., 3:9] = rotate(x[..., 3:9], positions, inv_freq, layout) * factor
        case("rope", out, x=x, heads=2, first=3, positions=positions, inv_freq=inv_freq, factor=factor, layout=layout)


def attend():
    # Two sequences: 5 positions of which the last 3 are asked for, and 4 of which all are.
    heads, kv, d, dv, scale = 6, 2, 4, 3, 0.375
    for mask in ("causal", "full"):
        spans, k, v, q, out = [], [], [], [], []
        for start, rows in ((2, 3), (0, 4)):
            n = start + rows
            ks, vs, qs = draw(n, kv, d), draw(n, kv, dv), draw(rows, heads, d)
            kr, vr = np.repeat(ks, heads // kv, axis=1), np.repeat(vs, heads // kv, axis=1)
            scores = np.einsum("ihd,jhd->hij", qs, kr) * scale
            if mask == "causal":
                scores += np.where(np.arange(n)[None, :] > np.arange(start, n)[:, None], -np.inf, 0.0)[None]
            out.append(np.einsum("hij,jhd->ihd", softmax(scores), vr).reshape(rows, -1))
            spans.append({"start": start, "rows": rows})
            k.append(ks.reshape(n, -1)), v.append(vs.reshape(n, -1)), q.append(qs.reshape(rows, -1))
        case("attend", np.concatenate(out), mask=mask, heads=heads, kv_heads=kv, head_dim=d, v_dim=dv, scale=scale,
             spans=spans, q=np.concatenate(q), k=np.concatenate(k), v=np.concatenate(v))


def attend_latent():
    heads, rank, nope, rope_dim, dv, scale = 3, 8, 5, 4, 6, 0.25
    w = draw(heads, nope + dv, rank, spread=0.5)
    spans, cache, q, out = [], [], [], []
    for start, rows in ((4, 2), (0, 3)):
        n = start + rows
        c, kr, qs = draw(n, rank), draw(n, rope_dim), draw(rows, heads, nope + rope_dim)
        kv = np.einsum("jr,hor->jho", c, w)
        keys = np.concatenate([kv[..., :nope], np.broadcast_to(kr[:, None], (n, heads, rope_dim))], axis=-1)
        scores = np.einsum("ihd,jhd->hij", qs, keys) * scale
        scores += np.where(np.arange(n)[None, :] > np.arange(start, n)[:, None], -np.inf, 0.0)[None]
        out.append(np.einsum("hij,jhd->ihd", softmax(scores), kv[..., nope:]).reshape(rows, -1))
        spans.append({"start": start, "rows": rows})
        cache.append(np.concatenate([c, kr], axis=1)), q.append(qs.reshape(rows, -1))
    case("attend_latent", np.concatenate(out), heads=heads, rank=rank, nope=nope, rope=rope_dim, v_dim=dv, scale=scale,
         spans=spans, q=np.concatenate(q), cache=np.concatenate(cache), kv_b=w)


def route():
    specs = [
        dict(experts=10, top_k=3, score="softmax", groups=1, groups_kept=1, group_top=1, normalise=False, scale=1.0),
        dict(experts=12, top_k=3, score="softmax", groups=4, groups_kept=2, group_top=1, normalise=False, scale=16.0),
        dict(experts=16, top_k=4, score="sigmoid", groups=4, groups_kept=2, group_top=2, normalise=True, scale=2.5),
    ]
    for spec in specs:
        tokens, e = 6, spec["experts"]
        logits, bias = draw(tokens, e, spread=1.5), draw(e, spread=0.25)
        s = softmax(logits) if spec["score"] == "softmax" else 0.5 * (1 + np.tanh(logits / 2))
        chosen_by = s + (bias if spec["score"] == "sigmoid" else 0.0)
        grouped = chosen_by.reshape(tokens, spec["groups"], -1)
        worth = np.partition(grouped, -spec["group_top"], axis=-1)[..., -spec["group_top"]:].sum(-1)
        kept = np.zeros_like(worth, dtype=bool)
        np.put_along_axis(kept, np.argsort(worth, axis=-1)[:, -spec["groups_kept"]:], True, axis=-1)
        masked = np.ma.array(chosen_by, mask=~np.repeat(kept, e // spec["groups"], axis=-1)).filled(-np.inf)
        ids = np.argsort(masked, axis=-1)[:, ::-1][:, : spec["top_k"]]
        w = np.take_along_axis(s, ids, axis=-1)
        if spec["normalise"]:
            w = w / w.sum(-1, keepdims=True)
        case("route", w * spec["scale"], spec=spec, rows=tokens, logits=logits,
             bias=bias if spec["score"] == "sigmoid" else None, experts=[int(i) for i in ids.ravel()])


def moe():
    tokens, e, k, d, h = 5, 6, 2, 7, 9
    x, plus = draw(tokens, d), draw(tokens, d)
    gate, up, down = draw(e, h, d, spread=0.5), draw(e, h, d, spread=0.5), draw(e, d, h, spread=0.5)
    ids = np.array([rng.permutation(e)[:k] for _ in range(tokens)])
    logits = draw(tokens, e)
    weights = np.zeros((tokens, e))
    np.put_along_axis(weights, ids, np.take_along_axis(softmax(logits), ids, axis=-1), axis=-1)
    g = np.einsum("td,ehd->teh", x, gate)
    y = np.einsum("teh,edh->ted", g * 0.5 * (1 + np.tanh(g / 2)) * np.einsum("td,ehd->teh", x, up), down)
    case("moe", np.einsum("te,ted->td", weights, y) + plus, rows=tokens, experts=e, top_k=k, hidden=h, x=x, plus=plus,
         gate=gate, up=up, down=down, logits=logits, chosen=[int(i) for i in ids.ravel()])


for f in (rms_norm, linear, swiglu, rope, attend, attend_latent, route, moe):
    f()
print("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]")
