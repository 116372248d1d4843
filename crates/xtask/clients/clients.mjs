// OpenAI's client for Node against a running server: clients.mjs BASE MODEL TOOLED.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [base, model, tooled] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is 2 + 3?" }];
const said = (m) => (m.reasoning_content ?? "") + (m.content ?? "");

const whole = await client.chat.completions.create({ model, messages, max_tokens: 48, temperature: 0 });
assert.ok(said(whole.choices[0].message).length > 0);
let pieces = "";
for await (const chunk of await client.chat.completions.create({ model, messages, max_tokens: 48, temperature: 0, stream: true })) {
  pieces += said(chunk.choices[0]?.delta ?? {});
}
assert.equal(pieces, said(whole.choices[0].message));
console.log("ok     openai for Node: chat and stream");
assert.ok(whole.choices[0].message.reasoning_content);
console.log("ok     openai for Node: reasoning");
const scored = await client.chat.completions.create({ model, messages, max_tokens: 4, logprobs: true, top_logprobs: 2, reasoning_effort: "none" });
assert.equal(scored.choices[0].logprobs.content.length, scored.usage.completion_tokens);
console.log("ok     openai for Node: log-probabilities");
const schema = { type: "object", properties: { ok: { type: "boolean" } }, required: ["ok"], additionalProperties: false };
const shaped = await client.chat.completions.create({ model, messages, max_tokens: 200, reasoning_effort: "none", response_format: { type: "json_schema", json_schema: { name: "verdict", schema, strict: true } } });
assert.equal(typeof JSON.parse(shaped.choices[0].message.content).ok, "boolean");
console.log("ok     openai for Node: JSON Schema");
const tools = [{ type: "function", function: { name: "decide", parameters: schema, strict: true } }];
const called = await client.chat.completions.create({ model: tooled, messages, tools, tool_choice: "required", max_tokens: 400, reasoning_effort: "none" });
assert.equal(typeof JSON.parse(called.choices[0].message.tool_calls[0].function.arguments).ok, "boolean");
console.log("ok     openai for Node: tools");
await assert.rejects(client.chat.completions.create({ model: "nobody", messages }), (error) => error.status === 404);
console.log("ok     openai for Node: errors");
const controller = new AbortController();
await assert.rejects(async () => {
  const stream = await client.chat.completions.create({ model, messages, stream: true, ignore_eos: true }, { signal: controller.signal });
  for await (const _ of stream) controller.abort();
  throw new Error("aborted");
});
console.log("ok     openai for Node: cancel");
const embedding = await client.embeddings.create({ model, input: "a whale" });
assert.ok(embedding.data[0].embedding.length > 0);
console.log("ok     openai for Node: embeddings");
