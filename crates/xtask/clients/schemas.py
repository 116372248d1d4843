"""JSON Schema against a running server: schemas.py BASE MODEL. Makes 300 schemas from a seed, asks for a document under each, and
validates with an independent validator. Prints the share that was accepted."""

import concurrent.futures
import json
import random
import sys

import jsonschema
import openai

BASE, MODEL = sys.argv[1:3]
# The bare FormatChecker() would check times by draft 3, which knows no zone.
VALIDATOR = jsonschema.Draft202012Validator
client = openai.OpenAI(base_url=f"{BASE}/v1", api_key="none", max_retries=0, timeout=300)


def schema(rng, depth):
    """A random schema; deeper ones are simpler."""
    kinds = ["string", "integer", "number", "boolean", "enum", "const", "null"] + (["object", "array", "anyOf", "object"] if depth else [])
    kind = rng.choice(kinds)
    if kind == "string":
        return rng.choice([
            {"type": "string", "maxLength": rng.randint(1, 12)},
            {"type": "string", "minLength": 1, "maxLength": 8},
            {"type": "string", "pattern": rng.choice(["^[a-z]{1,6}$", "^(red|green)-[0-9]{2}$", "^[A-Z][a-z]{0,5}$"])},
            {"type": "string", "format": rng.choice(["date", "time", "date-time", "duration", "ipv4", "ipv6", "uuid", "email", "hostname", "uri"])},
        ])
    if kind == "integer":
        low = rng.randint(-1000, 1000)
        return rng.choice([{"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 500)}, {"type": "integer", "exclusiveMinimum": 0, "maximum": 99999}, {"type": "integer", "minimum": 0, "maximum": 100, "multipleOf": rng.choice([2, 5])}])
    if kind == "number":
        return {"type": "number", "minimum": -5, "maximum": rng.choice([0, 7.5, 100])}
    if kind == "enum":
        return {"enum": rng.sample(["a", "b\"c", "ü", 1, 2.5, None, True, ["x"]], rng.randint(1, 5))}
    if kind == "const":
        return {"const": rng.choice(["fixed", 17, {"k": [1, 2]}])}
    if kind == "array":
        low = rng.randint(0, 2)
        if rng.random() < 0.2:
            return {"type": "array", "prefixItems": [schema(rng, depth - 1) for _ in range(2)], "items": False, "minItems": 2}
        return {"type": "array", "items": schema(rng, depth - 1), "minItems": low, "maxItems": low + rng.randint(0, 3)}
    if kind == "anyOf":
        return {"anyOf": [schema(rng, depth - 1) for _ in range(rng.randint(2, 3))]}
    if kind == "object":
        names = rng.sample(["name", "size", "tags", "öl", "a b", "x-1", "inner"], rng.randint(1, 4))
        result = {"type": "object", "properties": {n: schema(rng, depth - 1) for n in names}, "additionalProperties": False}
        result["required"] = names if rng.random() < 0.6 else rng.sample(names, rng.randint(0, len(names)))
        return result
    return {"type": kind}


def schemas(count, seed):
    rng = random.Random(seed)
    for i in range(count):
        top = {"type": "object", "properties": {"value": schema(rng, 3)}, "required": ["value"], "additionalProperties": False}
        if i % 10 == 0:
            top["properties"]["node"] = {"$ref": "#/$defs/node"}
            top["$defs"] = {"node": {"type": "object", "properties": {"v": {"type": "boolean"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, "required": ["v"], "additionalProperties": False}}
        yield top


def ask(numbered):
    number, wanted = numbered
    format = {"type": "json_schema", "json_schema": {"name": "document", "schema": wanted, "strict": True}}
    messages = [{"role": "user", "content": "Write the document."}]
    try:
        reply = client.chat.completions.create(model=MODEL, messages=messages, response_format=format, max_tokens=700, temperature=0.8, seed=number, extra_body={"thinking": {"type": "disabled"}})
    except openai.BadRequestError as error:
        return "refused", wanted, error.message
    if reply.choices[0].finish_reason == "length":
        return "cut", wanted, ""
    text = reply.choices[0].message.content
    try:
        VALIDATOR(wanted, format_checker=VALIDATOR.FORMAT_CHECKER).validate(json.loads(text))
        return "valid", wanted, text
    except Exception as error:
        return "INVALID", wanted, f"{text}: {error}"


with concurrent.futures.ThreadPoolExecutor(8) as pool:
    results = list(pool.map(ask, enumerate(schemas(300, 7))))
counts = {kind: sum(r[0] == kind for r in results) for kind in ("valid", "cut", "refused", "INVALID")}
for kind, wanted, detail in results:
    if kind in ("refused", "INVALID"):
        print(kind, json.dumps(wanted, ensure_ascii=False)[:200], detail[:300])
print(f"{counts['valid']} of {len(results)} documents valid, {counts['cut']} cut off, {counts['refused']} schemas refused, {counts['INVALID']} invalid")
sys.exit(counts["INVALID"] > 0 or counts["valid"] < 0.8 * len(results))
