#!/usr/bin/env python3
"""How far llama.cpp itself is from the recordings: testdata/models/llama_cpp.json.

    cc -O1 -I llama.cpp/include -I llama.cpp/ggml/include testdata/scripts/llama_cpp_logits.c -o llama_cpp_logits libllama.a libggml*.a -lstdc++ -lgomp -lm
    python3 testdata/scripts/llama_cpp_kl.py ./llama_cpp_logits DIR... > testdata/models/llama_cpp.json

For every GGUF file with a recording: relative root mean square difference of the logits and mean Kullback-Leibler divergence, f16 cache,
the better of flash attention on and off and of repacked weights on and off. Files that this llama.cpp cannot load are left out.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def log_softmax(x):
    m = x.max(-1, keepdims=True)
    return x - (m + np.log(np.exp(x - m).sum(-1, keepdims=True)))


def measure(program, file, golden, repack, flash):
    error = power = kl = rows = 0
    for prompt in ("short", "mid"):
        ids, g = golden[f"{prompt}.input_ids"], golden[f"{prompt}.logits"].astype(np.float64)
        with tempfile.NamedTemporaryFile() as out:
            if subprocess.run([program, file, out.name, repack, flash, *map(str, ids)], capture_output=True).returncode:
                return None
            y = np.fromfile(out.name, np.float32).reshape(g.shape).astype(np.float64)
        p, q = log_softmax(g), log_softmax(y)
        error, power = error + ((y - g) ** 2).sum(), power + (g**2).sum()
        kl, rows = kl + (np.exp(p) * (p - q)).sum(), rows + len(g)
    return kl / rows, (error / power) ** 0.5


found = {}
for root in map(Path, sys.argv[2:]):
    for file in sorted(root.rglob("*.gguf")):
        golden = file.with_suffix(".golden.safetensors")
        if golden.exists():
            runs = [measure(sys.argv[1], file, load_file(golden), r, f) for r, f in (("1", "1"), ("0", "1"), ("1", "0"))]
            if all(runs):
                kl, rms = min(runs)
                found[str(file.relative_to(root))] = {"kl": float(f"{kl:.3g}"), "rms_rel": float(f"{rms:.3g}")}
made = "llama.cpp as vendored by llama-cpp-python 0.3.36, AVX-512 build, 2 threads; see testdata/scripts/llama_cpp_kl.py"
print(json.dumps({"made": made, "files": dict(sorted(found.items()))}, indent=1))
