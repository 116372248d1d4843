#!/usr/bin/env python3
"""Golden renderings of testdata/templates/*.jinja: testdata/templates/golden.json.

Rendered by Jinja2 itself, set up as transformers does (utils/chat_template_utils.py): sandboxed, trim_blocks, lstrip_blocks,
loop controls, `tojson` without escapes, `raise_exception`, `strftime_now` (here of a fixed moment). `semantics.jinja` is our
own and covers what templates of the family use of the language.

    pip install jinja2==3.1.6; python3 testdata/scripts/templates_golden.py
"""
import datetime
import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

DIR = pathlib.Path(__file__).resolve().parent.parent / "templates"
NOW = 1_763_916_053  # 2025-11-23T16:40:53Z


def call(name, **arguments):
    return {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, *calls):
    return {"role": "assistant", "content": text} | ({"tool_calls": list(calls)} if calls else {})


def tool(text):
    return {"role": "tool", "content": text}


TOOLS = [{"type": "function", "function": {"name": "search", "description": "Sucht \"alles\" <b>", "parameters": {
    "type": "object", "properties": {"q": {"type": "string"}, "n": {"type": "integer", "default": 3}}, "required": ["q"]}}}]
CONVERSATIONS = {
    "question": [user("What is 2+2?")],
    "system": [{"role": "system", "content": "Be brief."}, user("Warum ist der Himmel blau? 为什么？")],
    "two systems": [{"role": "system", "content": "A"}, {"role": "system", "content": "B"}, user("x")],
    "turns": [user("a"), assistant("b"), user("c"), assistant("<think>d</think>e"), user("f")],
    "two thinks": [user("a"), assistant("<think>b</think>c</think>d"), user("e")],
    "call": [user("a"), assistant(None, call("search", q="é \"1\"\n", n=2)), tool("found")],
    "two calls": [user("a"), assistant(None, call("search", q="x"), call("clock")), tool("1"), tool("2")],
    "call answered": [user("a"), assistant(None, call("search", q="x")), tool("1"), assistant("b"), user("c")],
    "call with text": [user("a"), assistant("I look.", call("search", q="x")), tool("1")],
}
SWITCHES = {"default": {}, "on": {"thinking": True, "enable_thinking": True}, "off": {"thinking": False, "enable_thinking": False}}


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).strftime(f)
    return env


def as_objects(messages):
    """Arguments as objects, for templates that write them through `tojson`."""
    messages = json.loads(json.dumps(messages))
    for message in messages:
        for c in message.get("tool_calls", []):
            c["function"]["arguments"] = json.loads(c["function"]["arguments"])
    return messages


def main():
    cases = []
    for path in sorted(DIR.glob("*.jinja")):
        template = environment().from_string(path.read_text())
        objects = "arguments'] | tojson" in path.read_text()
        for name, messages in CONVERSATIONS.items():
            for switch, variables in SWITCHES.items():
                for tools in (None, TOOLS):
                    if tools and "tools" not in path.read_text():
                        continue
                    try:
                        text = template.render(
                            messages=as_objects(messages) if objects else messages, tools=tools, documents=None,
                            add_generation_prompt=True, bos_token="<｜begin▁of▁sentence｜>",
                            eos_token="<｜end▁of▁sentence｜>", **variables)
                    except (jinja2.exceptions.TemplateError, TypeError) as error:
                        text = None
                        print(path.name, name, switch, "refused:", error)
                    cases.append({"template": path.name, "name": name, "thinking": switch, "messages": messages,
                                  "tools": tools, "text": text})
    golden = {"unix_seconds": NOW, "cases": cases}
    (DIR / "golden.json").write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(len(cases), "cases")


if __name__ == "__main__":
    main()
