"""Speed of running servers: throughput.py MODEL NAME=BASE... Decode with one stream and with eight, time to the first token of a
prompt of 2,000 tokens unknown and known, and of a short request behind seven long ones. Servers are asked in turn; standard library only."""

import json
import random
import sys
import threading
import time
import urllib.request

MODEL, SERVERS = sys.argv[1], dict(arg.split("=", 1) for arg in sys.argv[2:])
WORDS = "one two three four five six seven eight nine ten red green blue left right up down sun moon star".split()


def prompt(seed, words):
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(words))


def ask(base, text, tokens):
    """Time to the first piece, time to the last, tokens of the answer, tokens of the prompt."""
    body = {"model": MODEL, "prompt": text, "max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True, "temperature": 0}
    request = urllib.request.Request(f"{base}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    start, times, usage = time.time(), [], None
    with urllib.request.urlopen(request, timeout=400) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                usage = event.get("usage") or usage
                if event["choices"]:
                    times.append(time.time())
    return start, times[0], times[-1], usage["completion_tokens"], usage["prompt_tokens"]


def together(base, prompts, tokens):
    answers = [None] * len(prompts)
    def run(i):
        answers[i] = ask(base, prompts[i], tokens)
    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(prompts))]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return answers


def rate(answers):
    """Tokens a second while all of them are generated."""
    return sum(a[3] - 1 for a in answers) / (max(a[2] for a in answers) - min(a[1] for a in answers))


for seed in (1, 2):
    for name, base in SERVERS.items():
        one = rate([ask(base, prompt(10 * seed, 24), 96)])
        eight = rate(together(base, [prompt(10 * seed + i, 24) for i in range(1, 9)], 96))
        print(f"{name}: one stream {one:.1f} tokens/s, eight {eight:.1f} together, {eight / one:.2f} times one", flush=True)
name, base = next(iter(SERVERS.items()))
text = prompt(99, 2000)
cold, warm = ask(base, text, 1), ask(base, text, 1)
times = [a[1] - a[0] for a in (cold, warm)]
print(f"{name}: first token of {cold[4]} tokens after {times[0]:.2f} s, known {times[1]:.3f} s: {100 * times[1] / times[0]:.1f} %", flush=True)
long = threading.Thread(target=together, args=(base, [prompt(200 + i, 1200) for i in range(7)], 8))
long.start()
time.sleep(1.5)
short = ask(base, prompt(300, 12), 16)
print(f"{name}: a short request among seven prompts of 1,200 words: first token after {short[1] - short[0]:.2f} s", flush=True)
long.join()
