"""Real clients against a running server: clients.py BASE MODEL TOOLED, where TOOLED is a model whose template knows tools. Every check
prints its name; the first failure ends it."""

import base64
import json
import math
import sys
import threading
import time
import urllib.request

import anthropic
import jsonschema
import ollama
import openai

BASE, MODEL, TOOLED = sys.argv[1:4]
ASK = [{"role": "user", "content": "What is 2 + 3?"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
PARAMETERS = {"type": "object", "properties": {"side": {"enum": ["left", "right"]}, "steps": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["side", "steps"], "additionalProperties": False}
TOOLS = [{"type": "function", "function": {"name": name, "description": "Moves.", "parameters": PARAMETERS, "strict": True}} for name in ("go", "turn")]
oai = openai.OpenAI(base_url=f"{BASE}/v1", api_key="none", max_retries=0)
ant = anthropic.Anthropic(base_url=BASE, api_key="none", max_retries=0)
oll = ollama.Client(host=BASE)


def check(name, truth, *shown):
    print(("ok    " if truth else "FAILED"), name, *(shown if not truth else ()))
    if not truth:
        sys.exit(1)


def refused(name, kind, call):
    try:
        call()
    except kind as error:
        check(name, True)
        return error
    check(name, False, "it was not refused")


# OpenAI: chat, stream, determinism, several answers, log-probabilities.
whole = oai.chat.completions.create(model=MODEL, messages=ASK, max_tokens=48, temperature=0)
text = (getattr(whole.choices[0].message, "reasoning_content", None) or "") + (whole.choices[0].message.content or "")
check("openai chat", text and whole.usage.completion_tokens > 0, whole)
pieces, usage = "", None
for chunk in oai.chat.completions.create(model=MODEL, messages=ASK, max_tokens=48, temperature=0, stream=True, stream_options={"include_usage": True}):
    usage = chunk.usage or usage
    for choice in chunk.choices:
        pieces += (getattr(choice.delta, "reasoning_content", None) or "") + (choice.delta.content or "")
check("openai stream says the same", pieces == text and usage.completion_tokens == whole.usage.completion_tokens, pieces, text)
several = oai.chat.completions.create(model=MODEL, messages=ASK, max_tokens=8, n=3, seed=7, temperature=1)
again = oai.chat.completions.create(model=MODEL, messages=ASK, max_tokens=8, n=3, seed=7, temperature=1)
check("openai n and seed", len(several.choices) == 3 and [c.message for c in several.choices] == [c.message for c in again.choices])
scored = oai.chat.completions.create(model=MODEL, messages=ASK, max_tokens=4, logprobs=True, top_logprobs=3, temperature=0)
lists = [x for kind in ("content", "reasoning_content") for x in (getattr(scored.choices[0].logprobs, kind, None) or [])]
first = lists[0] if not isinstance(lists[0], dict) else openai.types.chat.ChatCompletionTokenLogprob(**lists[0])
check("openai logprobs", len(lists) == scored.usage.completion_tokens and len(first.top_logprobs) == 3 and abs(first.logprob - first.top_logprobs[0].logprob) < 1e-6, lists)

# OpenAI: reasoning, shapes, tools.
check("openai reasoning", whole.choices[0].message.reasoning_content and whole.usage.completion_tokens_details.reasoning_tokens > 0, whole)
silent = oai.chat.completions.create(model=MODEL, messages=ASK, max_tokens=16, reasoning_effort="none")
check("openai reasoning off", not getattr(silent.choices[0].message, "reasoning_content", None) and silent.usage.completion_tokens_details.reasoning_tokens == 0, silent)
bounded = oai.chat.completions.create(model=MODEL, messages=ASK, max_tokens=64, extra_body={"thinking": {"type": "enabled", "budget_tokens": 5}})
# The tokens that close it come on top.
check("openai reasoning budget", 5 <= bounded.usage.completion_tokens_details.reasoning_tokens <= 8, bounded)
format = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
shaped = oai.chat.completions.create(model=MODEL, messages=ASK, max_tokens=1500, temperature=1, seed=1, response_format=format, extra_body={"thinking_budget": 16})
jsonschema.validate(json.loads(shaped.choices[0].message.content), SCHEMA)
check("openai json schema", True)

called = oai.chat.completions.create(model=TOOLED, messages=ASK, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=400, seed=1, reasoning_effort="none")
calls = called.choices[0].message.tool_calls
check("openai tools", len(calls) == 1 and calls[0].function.name in ("go", "turn") and called.choices[0].finish_reason == "tool_calls", called)
jsonschema.validate(json.loads(calls[0].function.arguments), PARAMETERS)
named = {"type": "function", "function": {"name": "turn"}}
name, arguments, reason = "", "", None
for chunk in oai.chat.completions.create(model=TOOLED, messages=ASK, tools=TOOLS, tool_choice=named, max_tokens=400, seed=1, reasoning_effort="none", stream=True):
    for choice in chunk.choices:
        reason = choice.finish_reason or reason
        for call in choice.delta.tool_calls or []:
            name, arguments = name + (call.function.name or ""), arguments + (call.function.arguments or "")
jsonschema.validate(json.loads(arguments), PARAMETERS)
check("openai named tool in a stream", name == "turn" and reason == "tool_calls", name, arguments, reason)
turns = ASK + [called.choices[0].message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": calls[0].id, "content": "done"}]
told = oai.chat.completions.create(model=TOOLED, messages=turns, tools=TOOLS, max_tokens=8, reasoning_effort="none")
check("openai a tool's answer", told.usage.prompt_tokens > called.usage.prompt_tokens, told)
check("openai the calls replay into the cache", told.usage.prompt_tokens_details.cached_tokens >= called.usage.prompt_tokens // 64 * 64, told.usage)

# OpenAI: text, embeddings, responses, models, errors, cancel.
echo = oai.completions.create(model=MODEL, prompt="One two three", max_tokens=1, echo=True, logprobs=1, temperature=0)
logprobs = echo.choices[0].logprobs
check("openai echo", echo.choices[0].text.startswith("One two three") and logprobs.token_logprobs[0] is None and len(logprobs.tokens) == len(logprobs.text_offset) == echo.usage.total_tokens, echo)
vectors = oai.embeddings.create(model=MODEL, input=["a whale", "a whale", "an unpaid bill"]).data
length = math.sqrt(sum(x * x for x in vectors[0].embedding))
check("openai embeddings", abs(length - 1) < 1e-3 and vectors[0].embedding == vectors[1].embedding != vectors[2].embedding, length)
response = oai.responses.create(model=MODEL, input="What is 2 + 3?", max_output_tokens=48, temperature=0)
check("openai responses", response.usage.output_tokens > 0 and response.output, response)
kinds = [event.type for event in oai.responses.create(model=MODEL, input="What is 2 + 3?", max_output_tokens=48, stream=True)]
check("openai responses stream", kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete"), kinds)
scored = oai.responses.create(model=MODEL, input="What is 2 + 3?", max_output_tokens=8, reasoning={"effort": "none"}, include=["message.output_text.logprobs"], top_logprobs=2)
logprobs = scored.output[0].content[0].logprobs
check("openai responses logprobs", len(logprobs) == scored.usage.output_tokens and len(logprobs[0].top_logprobs) == 2, scored)
flat = [{"type": "function", **tool["function"]} for tool in TOOLS]
response = oai.responses.create(model=TOOLED, input="Turn left.", tools=flat, tool_choice="required", max_output_tokens=400, reasoning={"effort": "none"})
items = [item for item in response.output if item.type == "function_call"]
check("openai responses tools", items and all(jsonschema.validate(json.loads(item.arguments), PARAMETERS) is None for item in items), response)
check("openai models", MODEL in [m.id for m in oai.models.list().data])
error = refused("openai unknown field", openai.BadRequestError, lambda: oai.chat.completions.create(model=MODEL, messages=ASK, extra_body={"max_tokns": 1}))
check("openai names the field", error.param == "max_tokns" and error.request_id, error)
refused("openai no such model", openai.NotFoundError, lambda: oai.chat.completions.create(model="nobody", messages=ASK))
refused("openai too long", openai.BadRequestError, lambda: oai.completions.create(model=MODEL, prompt="word " * 200_000))
stream = oai.chat.completions.create(model=MODEL, messages=ASK, stream=True, extra_body={"ignore_eos": True})
next(iter(stream))
stream.close()
check("openai cancel", oai.chat.completions.create(model=MODEL, messages=ASK, max_tokens=1).usage.completion_tokens == 1)

# DeepSeek's base URLs.
deep = openai.OpenAI(base_url=BASE, api_key="none", max_retries=0)
reply = deep.chat.completions.create(model="deepseek-chat", messages=ASK, max_tokens=8)
check("deepseek-chat does not reason", reply.usage.completion_tokens_details.reasoning_tokens == 0 and reply.usage.prompt_cache_hit_tokens + reply.usage.prompt_cache_miss_tokens == reply.usage.prompt_tokens, reply)
reply = deep.chat.completions.create(model="deepseek-reasoner", messages=ASK, max_tokens=8)
check("deepseek-reasoner does", reply.choices[0].message.reasoning_content, reply)
beta = openai.OpenAI(base_url=f"{BASE}/beta", api_key="none", max_retries=0)
reply = beta.chat.completions.create(model="deepseek-chat", messages=ASK + [{"role": "assistant", "content": "The answer is", "prefix": True}], max_tokens=8, stop=["\n\n\n"])
check("deepseek prefix completion", reply.usage.completion_tokens > 0, reply)
error = refused("deepseek refuses bad values with 422", openai.UnprocessableEntityError, lambda: deep.chat.completions.create(model="deepseek-chat", messages=ASK, temperature=9))
with urllib.request.urlopen(f"{BASE}/user/balance") as answer:
    check("deepseek balance", json.load(answer)["is_available"])

# Anthropic.
message = ant.messages.create(model=MODEL, max_tokens=48, messages=ASK, extra_body={"temperature": 0})
check("anthropic message", message.usage.output_tokens > 0 and message.content, message)
said = lambda blocks: "".join(getattr(b, "thinking", "") or getattr(b, "text", "") for b in blocks)
with ant.messages.stream(model=MODEL, max_tokens=48, messages=ASK, extra_body={"temperature": 0}) as stream:
    final = stream.get_final_message()
check("anthropic stream says the same", said(final.content) == said(message.content), final)
check("anthropic count", ant.messages.count_tokens(model=MODEL, messages=ASK).input_tokens == message.usage.input_tokens + message.usage.cache_read_input_tokens)
thought = ant.messages.create(model=MODEL, max_tokens=64, messages=ASK, thinking={"type": "enabled", "budget_tokens": 1024})
check("anthropic thinking", thought.content[0].type == "thinking", thought)
own = [{"name": tool["function"]["name"], "input_schema": PARAMETERS} for tool in TOOLS]
used = ant.messages.create(model=TOOLED, max_tokens=400, messages=ASK, tools=own, tool_choice={"type": "any"}, thinking={"type": "disabled"})
blocks = [block for block in used.content if block.type == "tool_use"]
check("anthropic tools", blocks and used.stop_reason == "tool_use", used)
jsonschema.validate(blocks[0].input, PARAMETERS)
with ant.messages.stream(model=TOOLED, max_tokens=400, messages=ASK, tools=own, tool_choice={"type": "tool", "name": "go"}, thinking={"type": "disabled"}) as stream:
    final = stream.get_final_message()
jsonschema.validate([block for block in final.content if block.type == "tool_use"][0].input, PARAMETERS)
check("anthropic tools in a stream", True)
with ant.messages.stream(model=MODEL, max_tokens=700, messages=ASK) as stream:
    next(iter(stream))
check("anthropic cancel", True)
refused("anthropic error", anthropic.NotFoundError, lambda: ant.messages.create(model="nobody", max_tokens=1, messages=ASK))

# Ollama.
answer = oll.chat(model=MODEL, messages=ASK, options={"num_predict": 48, "temperature": 0})
spoken = lambda m: (m.thinking or "") + (m.content or "")
check("ollama chat", answer.done and answer.eval_count > 0, answer)
check("ollama stream says the same", "".join(spoken(part.message) for part in oll.chat(model=MODEL, messages=ASK, options={"num_predict": 48, "temperature": 0}, stream=True)) == spoken(answer.message))
shaped = oll.chat(model=MODEL, messages=ASK, format=SCHEMA, think=False, options={"num_predict": 1500, "temperature": 1, "seed": 1})
jsonschema.validate(json.loads(shaped.message.content), SCHEMA)
check("ollama format", True)
scored = oll.chat(model=MODEL, messages=ASK, logprobs=True, top_logprobs=2, options={"num_predict": 6, "temperature": 0})
check("ollama logprobs", len(scored.logprobs) == scored.eval_count == 6 and len(scored.logprobs[0].top_logprobs) == 2, scored)
parts = [p for p in oll.chat(model=MODEL, messages=ASK, logprobs=True, stream=True, options={"num_predict": 6, "temperature": 0})]
check("ollama logprobs in a stream", sum(len(p.logprobs or []) for p in parts) == 6, parts)
check("ollama generate", oll.generate(model=MODEL, prompt="One two", raw=True, options={"num_predict": 4}).eval_count > 0)
check("ollama embed", len(oll.embed(model=MODEL, input=["a", "b"]).embeddings) == 2)
check("ollama list, ps, show", MODEL in [m.model for m in oll.list().models] and oll.ps().models and oll.show(MODEL).capabilities)
parts = oll.chat(model=MODEL, messages=ASK, stream=True, options={"num_predict": 700})
next(parts)
parts.close()
check("ollama cancel", True)
refused("ollama error", ollama.ResponseError, lambda: oll.chat(model="nobody", messages=ASK))

# Pictures, with the tiny model that sees and draws: what one client has drawn, all describe alike.
drawn = oai.images.generate(model="janus", prompt="a red fox", n=2, extra_body={"seed": 9})
picture = oai.images.generate(model="janus", prompt="a red fox", extra_body={"seed": 9}).data[0].b64_json
check("openai draws", len(drawn.data) == 2 and base64.b64decode(picture).startswith(b"\x89PNG") and drawn.usage.output_tokens > 0, drawn)
events = list(oai.images.generate(model="janus", prompt="a red fox", stream=True, partial_images=2, extra_body={"seed": 9}))
check("openai draws step by step", [e.type.split(".")[1] for e in events] == ["partial_image"] * 2 + ["completed"] and events[-1].b64_json == picture, [e.type for e in events])
url = f"data:image/png;base64,{picture}"
question = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
seen = oai.chat.completions.create(model="janus", messages=[{"role": "user", "content": question}], max_tokens=8, temperature=0)
words = seen.choices[0].message.content
check("openai describes a picture", words and seen.usage.prompt_tokens > 36, seen)
question = [{"type": "input_image", "image_url": url, "detail": "auto"}, {"type": "input_text", "text": "What is it?"}]
seen = oai.responses.create(model="janus", input=[{"role": "user", "content": question}], max_output_tokens=8, temperature=0)
check("openai responses describes it alike", seen.output_text == words, seen)
question = [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": picture}}, {"type": "text", "text": "What is it?"}]
seen = ant.messages.create(model="janus", max_tokens=8, messages=[{"role": "user", "content": question}], extra_body={"temperature": 0})
check("anthropic describes it alike", said(seen.content) == words, seen)
seen = oll.chat(model="janus", messages=[{"role": "user", "content": "What is it?", "images": [base64.b64decode(picture)]}], options={"num_predict": 8, "temperature": 0})
check("ollama describes it alike", seen.message.content == words, seen)
question = [{"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}]
error = refused("nothing is fetched", openai.BadRequestError, lambda: oai.chat.completions.create(model="janus", messages=[{"role": "user", "content": question}]))
check("the picture is named", error.param == "messages[0].content[0].image_url.url", error)

# Everybody at once gets what each got alone.
texts = [None] * 8
def ask(i):
    reply = oai.chat.completions.create(model=MODEL, messages=ASK, max_tokens=48, temperature=0)
    texts[i] = (getattr(reply.choices[0].message, "reasoning_content", None) or "") + (reply.choices[0].message.content or "")
threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
check("eight at once", texts == [text] * 8, texts)

# Whoever left has left nothing behind.
until = time.time() + 10
def gauges():
    with urllib.request.urlopen(f"{BASE}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return [float(line.split()[-1]) for line in lines if line.startswith(("vllm:num_requests", "vllm:kv_cache_usage"))]
while any(gauges()) and time.time() < until:
    time.sleep(0.1)
check("no sequence and no block is left", not any(gauges()), gauges())
