"""Load on a running server: load.py BASE MODEL PID SECONDS CLIENTS. Every client asks in a dialect at random, reads all, some or nothing of
the answer, and goes. No answer may be other than 200 or 429, none cut short; afterwards no sequence runs, no cache block is held, and
memory has not grown. Standard library only."""

import asyncio
import collections
import json
import random
import sys
import time
import urllib.request

BASE, MODEL, PID = sys.argv[1:4]
SECONDS, CLIENTS = map(int, sys.argv[4:6])
HOST, PORT = BASE.removeprefix("http://").split(":")
seen, faults = collections.Counter(), collections.Counter()


def resident():
    with open(f"/proc/{PID}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024


def gauges():
    with urllib.request.urlopen(f"{BASE}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {line.split("{")[0]: float(line.split()[-1]) for line in lines if line.startswith(("vllm:num_requests", "vllm:kv_cache_usage"))}


def request(rng):
    messages = [{"role": "user", "content": rng.choice(["What is 2 + 3?", "Count the letters of whale.", "Sort 3 1 2. " * rng.randint(1, 20)])}]
    tokens, stream = rng.randint(1, 60), rng.random() < 0.7
    kind = rng.randrange(6)
    if kind == 0:
        return "/v1/messages", {"model": MODEL, "max_tokens": tokens, "stream": stream, "messages": messages}
    if kind == 1:
        return "/api/chat", {"model": MODEL, "messages": messages, "stream": stream, "options": {"num_predict": tokens}}
    if kind == 2:
        return "/v1/responses", {"model": MODEL, "input": messages[0]["content"], "max_output_tokens": 16 + tokens, "stream": stream}
    if kind == 3:
        return "/v1/completions", {"model": MODEL, "prompt": ["One two", "three"], "max_tokens": tokens, "echo": True, "logprobs": 2, "n": 2}
    if kind == 4:
        format = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}}
        return "/v1/chat/completions", {"model": MODEL, "messages": messages, "max_tokens": tokens, "stream": stream, "response_format": format, "thinking": {"type": "disabled"}}
    return "/v1/chat/completions", {"model": MODEL, "messages": messages, "max_tokens": tokens, "stream": stream, "n": rng.choice([1, 1, 3]), "temperature": 1}


async def one(rng):
    path, body = request(rng)
    body = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(HOST, PORT)
    try:
        writer.write(f"POST {path} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        whim = rng.random()
        if whim < 0.1:
            return "left at once"
        if whim < 0.3:
            try:
                await asyncio.wait_for(reader.read(rng.randint(1, 4000)), rng.random() * 3)
            except TimeoutError:
                pass
            return "left early"
        answer = await asyncio.wait_for(reader.read(), 300)
        status = answer.split(b" ", 2)[1].decode() if answer.startswith(b"HTTP/1.1 ") else "nothing"
        if status == "200" and b"chunked" in answer.split(b"\r\n\r\n")[0] and not answer.endswith(b"0\r\n\r\n"):
            return "cut short"
        return status
    finally:
        writer.close()


async def client(number, until):
    rng = random.Random(number)
    while time.time() < until:
        try:
            kind = await one(rng)
        except Exception as error:
            kind = type(error).__name__
        seen[kind] += 1
        if kind not in ("200", "429", "left at once", "left early"):
            faults[kind] += 1
        if kind == "429":
            await asyncio.sleep(rng.random() * 2)


async def main():
    until = time.time() + SECONDS
    clients = [asyncio.create_task(client(i, until)) for i in range(CLIENTS)]
    memory = []
    while time.time() < until:
        await asyncio.sleep(SECONDS / 20)
        memory.append(resident())
    await asyncio.gather(*clients)
    return memory


memory = asyncio.run(main())
time.sleep(3)
early, late = max(memory[5:10]), max(memory[-5:])
print(f"{CLIENTS} clients, {SECONDS} s: {dict(seen)}")
print(f"memory {memory[0]:.0f} MiB at first, {early:.0f} at most in the second quarter, {late:.0f} in the last; afterwards {gauges()}")
if not faults:
    print(f"{sum(seen.values())} requests without a fault")
sys.exit(bool(faults) or any(gauges().values()) or late > 1.1 * early + 8)
