"""Janus in transformers, part by part, beside `fathom bench --pictures`.

    python crates/testkit/examples/pytorch_janus.py DIR [--threads 2] [--steps 5]

DIR is what `random_janus 1B DIR` wrote. bfloat16. Steps are measured in the middle of a picture, as fathom's are, and scaled up to 576: a step
is what transformers' `generate` does with two rows (guidance weight 5, one draw). Prints one line of JSON.
"""

import argparse
import json
import statistics
import time

import torch
from transformers import DynamicCache, JanusForConditionalGeneration

parser = argparse.ArgumentParser()
parser.add_argument("dir")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--steps", type=int, default=5)
args = parser.parse_args()
torch.set_num_threads(args.threads)
torch.manual_seed(1)
WORDS, IDS = 24, 576

full = JanusForConditionalGeneration.from_pretrained(args.dir, dtype=torch.bfloat16).eval()
model = full.model


def timed(call):
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def forward(embeds, cache):
    hidden = model.language_model(inputs_embeds=embeds, past_key_values=cache, use_cache=True).last_hidden_state
    return model.generation_head(hidden[:, -1])


def draw(logits):
    with_words, without = logits.float().chunk(2)
    mixed = without + 5.0 * (with_words - without)
    return torch.multinomial(torch.softmax(mixed, -1), 1).repeat(2, 1)


with torch.inference_mode():
    embed = lambda ids: model.language_model.get_input_embeddings()(ids)
    ids = torch.randint(0, 100_000, (2, WORDS))
    forward(embed(ids), DynamicCache())
    _, prompt = timed(lambda: forward(embed(ids), DynamicCache()))
    cache = DynamicCache()
    forward(embed(torch.randint(0, 100_000, (2, WORDS + (IDS - args.steps) // 2))), cache)
    codes, steps = torch.zeros(2, 1, dtype=torch.long), []
    for _ in range(args.steps + 1):
        step = lambda: draw(forward(full.prepare_embeddings_for_image_generation(codes), cache))
        codes, seconds = timed(step)
        steps.append(seconds)
    codes = torch.randint(0, 16_384, (1, IDS))
    _, decode = timed(lambda: full.decode_image_tokens(codes))
    pixels = torch.randn(1, 3, 384, 384, dtype=torch.bfloat16)
    model.get_image_features(pixels)
    _, see = timed(lambda: model.get_image_features(pixels))

step = statistics.median(steps[1:])
print(json.dumps({"prompt_s": prompt, "step_s": step, "decode_s": decode, "see_s": see, "picture_s": prompt + IDS * step + decode}))
