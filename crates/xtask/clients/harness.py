"""lm-evaluation-harness against a running server in exact precision: harness.py BASE MODEL FATHOM. Its `local-completions`, with no
option but the address, scores a small multiple-choice task; `FATHOM logits` scores the same tokens. The two must agree within 1e-4."""

import json
import math
import os
import subprocess
import sys
import tempfile
import urllib.request

BASE, MODEL, FATHOM = sys.argv[1:4]
HOME = tempfile.mkdtemp(prefix="fathom-harness-")
os.environ.update(HF_HOME=HOME, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

import lm_eval

DOCS = [
    {"question": "What is 2 + 3?", "choices": ["5", "6", "five apples"], "answer": 0},
    {"question": "Sort 3 1 2.", "choices": ["1 2 3", "3 2 1", "2 1 3"], "answer": 0},
    {"question": "Wie heißt die Hauptstadt von Frankreich?", "choices": ["Berlin", "Paris", "Łódź"], "answer": 1},
    {"question": "How many letters has whale?", "choices": ["4", "5", "five, I think 🐋"], "answer": 1},
]
path = os.path.join(HOME, "docs.jsonl")
with open(path, "w") as file:
    file.writelines(json.dumps(doc) + "\n" for doc in DOCS)
task = {"task": "small", "dataset_path": "json", "dataset_kwargs": {"data_files": path}, "test_split": "train", "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\nAnswer:", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}", "metric_list": [{"metric": "acc"}]}
results = lm_eval.simple_evaluate(model="local-completions", model_args={"model": MODEL, "base_url": f"{BASE}/v1/completions"}, tasks=[task], log_samples=True, bootstrap_iters=0)


def tokens(text):
    request = urllib.request.Request(f"{BASE}/tokenize", json.dumps({"prompt": text, "add_special_tokens": False}).encode())
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["tokens"]


def own(context, continuation):
    """The log-likelihood by `fathom logits`."""
    ids, known = tokens(context + continuation), len(tokens(context))
    command = [FATHOM, "logits", MODEL, "--tokens", ",".join(map(str, ids))]
    rows = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["logits"]
    total = 0.0
    for row, token in zip(rows[known - 1 : -1], ids[known:]):
        top = max(row)
        total += row[token] - top - math.log(math.fsum(math.exp(x - top) for x in row))
    return total


worst, count = 0.0, 0
for sample in results["samples"]["small"]:
    for index, response in enumerate(sample["resps"]):
        context, continuation = (sample["arguments"][f"gen_args_{index}"][f"arg_{i}"] for i in (0, 1)) if isinstance(sample["arguments"], dict) else sample["arguments"][index]
        theirs = float(response[0][0])
        worst, count = max(worst, abs(theirs - own(context, continuation))), count + 1
print(f"{count} log-likelihoods, largest difference {worst:.2e}")
sys.exit(not (count == 12 and worst < 1e-4))
