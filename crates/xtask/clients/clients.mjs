// OpenAI's client for Node against a running server: clients.mjs BASE MODEL.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [base, model] = process.argv.slice(2);
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
