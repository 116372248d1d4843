#!/usr/bin/env python3
"""Adapters across: what fathom learns PEFT computes with, and what PEFT writes fathom computes with.

    python3 testdata/scripts/lora_peft.py target/release/fathom

For tiny models of three families: `fathom train lora` writes an adapter, PEFT loads it beside the same weights, and logits are compared
with `fathom logits --adapter`; then PEFT writes one with random matrices, and the same again. In the model with experts only attention is
adapted: PEFT 0.21 takes names of feed-forward projections there for transformers' fused experts.

Needs torch, transformers, peft and numpy from PyPI.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

MODELS = Path(__file__).resolve().parent.parent / "models"
FATHOM = sys.argv[1]
TOKENS = [17, 4, 256, 99, 180, 31, 7, 300, 12, 45, 201, 8]
DATA = [("Who wrote this?", "Ada did."), ("Where?", "In a small room.")]


def model(path):
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **eager)


def ours(path, adapter, work):
    out = work / "logits.npy"
    tokens = ",".join(map(str, TOKENS))
    command = [FATHOM, "logits", str(path), "--tokens", tokens, "--adapter", str(adapter), "--out", str(out)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return np.load(out)


def theirs(net):
    with torch.no_grad():
        return net(torch.tensor([TOKENS]), use_cache=False).logits[0].numpy()


def compare(what, path, adapter, work):
    plain = theirs(model(path))
    expected = theirs(PeftModel.from_pretrained(model(path), adapter))
    worst = np.abs(ours(path, adapter, work) - expected).max()
    changed = np.abs(expected - plain).max()
    print(f"{path.name}, {what}: logits differ by {worst:.1e} at most; the adapter changes them by {changed:.2f}")
    assert worst < 2e-4 and changed > 0.1


for name in ["llama", "qwen2", "deepseek_v2_lite"]:
    path = MODELS / name
    with tempfile.TemporaryDirectory() as d:
        work = Path(d)
        data = work / "data.jsonl"
        lines = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in DATA]
        data.write_text("".join(json.dumps(line) + "\n" for line in lines))
        learned = work / "learned"
        command = [FATHOM, "train", "lora", str(path), str(data), "-o", str(learned)]
        if name.startswith("deepseek"):
            command += ["--targets", "q_proj,kv_a_proj_with_mqa,o_proj"]
        command += ["--epochs", "20", "--lr", "2e-3", "--sequence", "128", "--precision", "exact"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        compare("learned by fathom", path, learned, work)

        torch.manual_seed(1)
        targets = json.loads((learned / "adapter_config.json").read_text())["target_modules"]
        config = LoraConfig(r=5, lora_alpha=7, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
        net = get_peft_model(model(path), config)
        net.save_pretrained(work / "random")
        compare("written by PEFT", path, work / "random", work)
