"""Real clients against a running server: clients.py BASE MODEL. Every check prints its name; the first failure ends it."""

import json
import math
import sys
import threading

import anthropic
import jsonschema
import ollama
import openai

BASE, MODEL = sys.argv[1:3]
ASK = [{"role": "user", "content": "What is 2 + 3?"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
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

# OpenAI: shapes and tools.
format = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
shaped = oai.chat.completions.create(model=MODEL, messages=ASK, max_tokens=1500, temperature=1, seed=1, response_format=format, extra_body={"thinking_budget": 16})
jsonschema.validate(json.loads(shaped.choices[0].message.content), SCHEMA)
check("openai json schema", True)

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
check("openai models", MODEL in [m.id for m in oai.models.list().data])
error = refused("openai unknown field", openai.BadRequestError, lambda: oai.chat.completions.create(model=MODEL, messages=ASK, extra_body={"max_tokns": 1}))
check("openai names the field", error.param == "max_tokns" and error.request_id, error)
refused("openai no such model", openai.NotFoundError, lambda: oai.chat.completions.create(model="nobody", messages=ASK))
refused("openai too long", openai.BadRequestError, lambda: oai.completions.create(model=MODEL, prompt="word " * 200_000))
stream = oai.chat.completions.create(model=MODEL, messages=ASK, stream=True, extra_body={"ignore_eos": True})
next(iter(stream))
stream.close()
check("openai cancel", oai.chat.completions.create(model=MODEL, messages=ASK, max_tokens=1).usage.completion_tokens == 1)

# Anthropic.
message = ant.messages.create(model=MODEL, max_tokens=48, messages=ASK, extra_body={"temperature": 0})
check("anthropic message", message.usage.output_tokens > 0 and message.content, message)
said = lambda blocks: "".join(getattr(b, "thinking", "") or getattr(b, "text", "") for b in blocks)
with ant.messages.stream(model=MODEL, max_tokens=48, messages=ASK, extra_body={"temperature": 0}) as stream:
    final = stream.get_final_message()
check("anthropic stream says the same", said(final.content) == said(message.content), final)
check("anthropic count", ant.messages.count_tokens(model=MODEL, messages=ASK).input_tokens == message.usage.input_tokens + message.usage.cache_read_input_tokens)
refused("anthropic error", anthropic.NotFoundError, lambda: ant.messages.create(model="nobody", max_tokens=1, messages=ASK))

# Ollama.
answer = oll.chat(model=MODEL, messages=ASK, options={"num_predict": 48, "temperature": 0})
spoken = lambda m: (m.thinking or "") + (m.content or "")
check("ollama chat", answer.done and answer.eval_count > 0, answer)
check("ollama stream says the same", "".join(spoken(part.message) for part in oll.chat(model=MODEL, messages=ASK, options={"num_predict": 48, "temperature": 0}, stream=True)) == spoken(answer.message))
shaped = oll.chat(model=MODEL, messages=ASK, format=SCHEMA, think=False, options={"num_predict": 1500, "temperature": 1, "seed": 1})
jsonschema.validate(json.loads(shaped.message.content), SCHEMA)
check("ollama format", True)
check("ollama generate", oll.generate(model=MODEL, prompt="One two", raw=True, options={"num_predict": 4}).eval_count > 0)
check("ollama embed", len(oll.embed(model=MODEL, input=["a", "b"]).embeddings) == 2)
check("ollama list, ps, show", MODEL in [m.model for m in oll.list().models] and oll.ps().models and oll.show(MODEL).capabilities)
refused("ollama error", ollama.ResponseError, lambda: oll.chat(model="nobody", messages=ASK))

# Everybody at once gets what each got alone.
texts = [None] * 8
def ask(i):
    reply = oai.chat.completions.create(model=MODEL, messages=ASK, max_tokens=48, temperature=0)
    texts[i] = (getattr(reply.choices[0].message, "reasoning_content", None) or "") + (reply.choices[0].message.content or "")
threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
check("eight at once", texts == [text] * 8, texts)
