#!/usr/bin/env python3
"""How far llama.cpp itself is from exact arithmetic: testdata/models/llama_cpp.json.

    cc -O1 -I llama.cpp/include -I llama.cpp/ggml/include testdata/scripts/llama_cpp_logits.c -o llama_cpp_logits libllama.a libggml*.a -lstdc++ -lgomp -lm
    python3 testdata/scripts/llama_cpp_kl.py ./llama_cpp_logits target/release/fathom DIR... > testdata/models/llama_cpp.json

For every GGUF file with a recording: relative root mean square difference of the logits and mean Kullback-Leibler divergence over 48 prompts of
24 random tokens, f16 cache, the better of flash attention on and off and of repacked weights on and off. Exact logits come from
`fathom logits`, which the recordings hold to 1e-5. One prompt would say little: which near tie between experts flips decides more
than any rounding. Files that this llama.cpp cannot load are left out.
"""
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

draw = random.Random(1)
PROMPTS = [[draw.randrange(1 << 16) for _ in range(24)] for _ in range(48)]  # modulo the vocabulary


def log_softmax(x):
    m = x.max(-1, keepdims=True)
    return x - (m + np.log(np.exp(x - m).sum(-1, keepdims=True)))


def exact(fathom, file, ids):
    with tempfile.NamedTemporaryFile(suffix=".npy") as out:
        tokens = ",".join(map(str, ids))
        # As llama.cpp reads it: it knows no other factor than YaRN's own.
        factor = ["--rope-attn-factor", "ignore"]
        command = [fathom, "logits", file, "--tokens", tokens, "--out", out.name, *factor]
        subprocess.run(command, check=True, capture_output=True)
        return np.load(out.name).astype(np.float64)


def vocabulary(fathom, file):
    return len(exact(fathom, file, [0])[0])


def measure(program, file, prompts, truth, repack, flash):
    with tempfile.NamedTemporaryFile() as out:
        ids = [str(i) for p in prompts for i in p]
        command = [program, file, out.name, repack, flash, str(len(prompts[0])), *ids]
        if subprocess.run(command, capture_output=True).returncode:
            return None
        y = np.fromfile(out.name, np.float32).reshape(truth.shape).astype(np.float64)
    p, q = log_softmax(truth), log_softmax(y)
    return (np.exp(p) * (p - q)).sum() / (truth.size // truth.shape[-1]), (((y - truth) ** 2).sum() / (truth**2).sum()) ** 0.5


program, fathom, *roots = sys.argv[1:]
found = {}
for root in map(Path, roots):
    for file in sorted(root.rglob("*.gguf")):
        name = str(file.relative_to(root))
        if not file.with_suffix(".golden.safetensors").exists() or name in found:
            continue
        vocab = vocabulary(fathom, file)
        prompts = [[i % vocab for i in ids] for ids in PROMPTS]
        truth = np.stack([exact(fathom, file, ids) for ids in prompts])
        runs = [measure(program, file, prompts, truth, r, f) for r, f in (("1", "1"), ("0", "1"), ("1", "0"))]
        if not all(runs):
            continue
        kl, rms = min(runs)
        found[name] = {"kl": float(f"{kl:.3g}"), "rms_rel": float(f"{rms:.3g}")}
        print(name, found[name], file=sys.stderr)
made = "llama.cpp as vendored by llama-cpp-python 0.3.36, AVX-512 build; see testdata/scripts/llama_cpp_kl.py"
entries = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(found.items()))
prompts = ",\n".join(json.dumps(ids) for ids in PROMPTS)
print(f'{{"made": {json.dumps(made)},')
print(f'"prompts": [\n{prompts}],\n"files": {{\n{entries}}}}}')
