// The plain page: a conversation kept in this tab, streamed from /v1/chat/completions of the server that the page came from.
"use strict";

const WORDS = {
  en: { model: "Model", think: "Think", fresh: "New chat", language: "Language", send: "Send", stop: "Stop",
    prompt: "Ask something…", thinking: "Thinking…", thought: "Reasoning", stopped: "stopped", cut: "cut off: no room left",
    key: "This server needs an API key:", rate: (n, s, f) => `${n} tokens · ${s} tokens/s · first after ${f} s`, lost: "The connection broke off.",
    pictures: "Pictures", count: "How many", attach: "Add picture", describe: "Describe a picture…", remove: "Click to remove",
    drawing: "Drawing…", drawn: (seed, s) => `seed ${seed} · ${s} s`, save: "Save" },
  de: { model: "Modell", think: "Nachdenken", fresh: "Neues Gespräch", language: "Sprache", send: "Senden", stop: "Anhalten",
    prompt: "Frag etwas …", thinking: "Denkt nach …", thought: "Überlegung", stopped: "angehalten", cut: "abgeschnitten: kein Platz mehr",
    key: "Dieser Server braucht einen API-Schlüssel:", rate: (n, s, f) => `${n} Tokens · ${s} Tokens/s · erstes nach ${f} s`, lost: "Die Verbindung ist abgebrochen.",
    pictures: "Bilder", count: "Anzahl", attach: "Bild dazu", describe: "Beschreib ein Bild …", remove: "Klicken entfernt es",
    drawing: "Zeichnet …", drawn: (seed, s) => `Startwert ${seed} · ${s} s`, save: "Speichern" },
};

const $ = (id) => document.getElementById(id);
let words = WORDS.en;
let messages = [];
let running = null;
// Pictures to be sent with the next message, as data URLs, and the models that see and draw.
let held = [];
let artists = new Set();

function speak(language) {
  words = WORDS[language];
  document.documentElement.lang = language;
  $("language").value = language;
  for (const e of document.querySelectorAll("[data-text]")) e.textContent = words[e.dataset.text];
  for (const e of document.querySelectorAll("[data-label]")) e.setAttribute("aria-label", words[e.dataset.label]);
  choose();
}

// What the chosen model can do decides what is offered.
function choose() {
  const able = artists.has($("model").value);
  $("draws").hidden = $("attach").hidden = !able;
  if (!able) { $("draw").checked = false; hold([]); }
  const drawing = $("draw").checked;
  document.body.classList.toggle("drawing", drawing);
  $("prompt").placeholder = drawing ? words.describe : words.prompt;
}

function picture(url, name) {
  const image = new Image();
  image.src = url;
  image.alt = name ?? "";
  return image;
}

function hold(urls) {
  held = urls;
  $("held").replaceChildren(...urls.map((url) => {
    const image = picture(url, words.remove);
    image.title = words.remove;
    image.addEventListener("click", () => hold(held.filter((other) => other !== url)));
    return image;
  }));
}

async function attach(files) {
  const read = (file) => new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(reader.error);
    reader.readAsDataURL(file);
  });
  hold([...held, ...(await Promise.all([...files].map(read)))]);
}

// Mathematics stands between $$ $$, \[ \], \( \) or $ $. It becomes MathML, which needs neither fonts nor styles.
const FORMULA = /^(?:\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\]|\\\(([\s\S]+?)\\\)|\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\d))/;
marked.use({ breaks: true, extensions: [{
  name: "formula",
  level: "inline",
  start: (source) => { const at = source.search(/\$|\\\[|\\\(/); return at < 0 ? undefined : at; },
  tokenizer(source) {
    const found = FORMULA.exec(source);
    if (found) return { type: "formula", raw: found[0], text: found.slice(1).find((t) => t !== undefined), display: found[1] !== undefined || found[2] !== undefined };
  },
  renderer: (token) => katex.renderToString(token.text, { output: "mathml", throwOnError: false, displayMode: token.display, maxSize: 20, maxExpand: 200 }),
}] });

const ALLOWED = { USE_PROFILES: { html: true, mathMl: true }, ADD_TAGS: ["semantics", "annotation"], FORBID_TAGS: ["img", "style", "form", "input"], FORBID_ATTR: ["src", "srcset"] };
const render = (text) => DOMPurify.sanitize(marked.parse(text), ALLOWED);
DOMPurify.addHook("afterSanitizeAttributes", (node) => { if (node.tagName === "A") { node.target = "_blank"; node.rel = "noopener noreferrer"; } });

async function call(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem("key");
    const headers = { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
    const response = await fetch(path, { ...options, headers });
    if (response.status !== 401) return response;
    const entered = prompt(words.key);
    if (!entered) return response;
    sessionStorage.setItem("key", entered.trim());
  }
}

async function listModels() {
  const response = await call("v1/models");
  if (!response.ok) return;
  const { data } = await response.json();
  $("model").replaceChildren(...data.filter((m) => !m.parent).map((m) => new Option(m.id, m.id)));
  artists = new Set(data.filter((m) => m.pictures).map((m) => m.id));
  choose();
}

function turn(kind) {
  const element = document.createElement("div");
  element.className = `turn ${kind}`;
  $("talk").append(element);
  return element;
}

// Events of a server-sent stream: only `data:` lines matter here.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    let end;
    while ((end = held.indexOf("\n\n")) >= 0) {
      const block = held.slice(0, end);
      held = held.slice(end + 2);
      for (const line of block.split("\n")) {
        if (line === "data: [DONE]") return;
        if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
      }
    }
  }
}

function answerView() {
  const element = turn("answer");
  const fold = document.createElement("details");
  const summary = document.createElement("summary");
  const thought = document.createElement("div");
  const body = document.createElement("div");
  const note = document.createElement("div");
  body.className = "body";
  note.className = "note";
  fold.append(summary, thought);
  fold.hidden = true;
  element.append(fold, body, note);
  let painted = false;
  const view = {
    reasoning: "", text: "", ended: false, note,
    paint() {
      fold.hidden = !view.reasoning;
      summary.textContent = view.text || view.ended ? words.thought : words.thinking;
      thought.textContent = view.reasoning;
      body.innerHTML = render(view.text);
    },
    // At most once per frame, however fast tokens come; it follows the end unless the reader has scrolled away.
    soon() {
      if (painted) return;
      painted = true;
      requestAnimationFrame(() => {
        painted = false;
        const talk = $("talk");
        const atEnd = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
        view.paint();
        if (atEnd) talk.scrollTop = talk.scrollHeight;
      });
    },
  };
  return view;
}

function begin() {
  running = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
}

function end() {
  running = null;
  $("send").hidden = false;
  $("stop").hidden = true;
  $("prompt").focus();
}

function fault(note, error) {
  note.textContent = error.name === "AbortError" ? `(${words.stopped})` : error.message;
  note.classList.toggle("fault", error.name !== "AbortError");
}

// Pictures of what a text describes, newest first, blurred ones replaced as they grow.
async function draw(text) {
  const sheet = document.createElement("div");
  sheet.className = "sheet";
  const bar = document.createElement("progress");
  const caption = document.createElement("figcaption");
  const note = document.createElement("div");
  note.className = "note";
  note.textContent = words.drawing;
  caption.textContent = text;
  const figure = document.createElement("figure");
  figure.append(caption, sheet, bar, note);
  $("gallery").prepend(figure);
  begin();
  const start = performance.now();
  const n = Number($("count").value);
  const seed = crypto.getRandomValues(new Uint32Array(1))[0];
  const parts = 3;
  let finished = 0;
  let partial = 0;
  try {
    const body = { model: $("model").value, prompt: text, n, seed, stream: true, partial_images: parts };
    const response = await call("v1/images/generations", { method: "POST", body: JSON.stringify(body), signal: running.signal });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const done = event.type === "image_generation.completed";
      const index = done ? finished++ : partial++ % n;
      const image = picture(`data:image/png;base64,${event.b64_json}`, text);
      const link = document.createElement("a");
      if (done) Object.assign(link, { href: image.src, download: `${seed}-${index + 1}.png`, title: words.save });
      link.append(image);
      if (sheet.children[index]) sheet.children[index].replaceWith(link);
      else sheet.append(link);
      bar.value = done ? 1 : Math.floor((partial - 1) / n + 1) / (parts + 1);
    }
    if (finished < n) throw new Error(words.lost);
    note.textContent = words.drawn(seed, ((performance.now() - start) / 1000).toFixed(1));
  } catch (error) {
    fault(note, error);
  }
  bar.remove();
  end();
}

async function ask(text) {
  const urls = held;
  hold([]);
  const parts = urls.map((url) => ({ type: "image_url", image_url: { url } }));
  messages.push({ role: "user", content: urls.length ? [...parts, { type: "text", text }] : text });
  const said = turn("user");
  if (urls.length) {
    const shown = document.createElement("div");
    shown.append(...urls.map((url) => picture(url)));
    said.append(shown);
  }
  said.append(text);
  const view = answerView();
  $("talk").scrollTop = $("talk").scrollHeight;
  begin();
  const body = { model: $("model").value, messages, stream: true, stream_options: { include_usage: true } };
  if (!$("think").checked) body.thinking = { type: "disabled" };
  const start = performance.now();
  let first = 0;
  try {
    const response = await call("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal: running.signal });
    if (!response.ok) throw new Error((await response.json()).error.message);
    let ended = false;
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const [choice] = event.choices;
      if (choice) {
        const { reasoning_content: reasoning, content } = choice.delta;
        if ((reasoning || content) && !first) first = performance.now();
        view.reasoning += reasoning ?? "";
        view.text += content ?? "";
        ended ||= Boolean(choice.finish_reason);
        if (choice.finish_reason === "length") view.note.textContent = `(${words.cut}) `;
      }
      if (event.usage) {
        const tokens = event.usage.completion_tokens;
        const rate = ((tokens - 1) / Math.max((performance.now() - first) / 1000, 1e-3)).toFixed(1);
        view.note.textContent += words.rate(tokens, rate, ((first - start) / 1000).toFixed(2));
      }
      view.soon();
    }
    if (!ended) throw new Error(words.lost);
  } catch (error) {
    fault(view.note, error);
  }
  view.ended = true;
  view.paint();
  // A turn without an answer would break the alternation that templates expect.
  if (view.text) messages.push({ role: "assistant", content: view.text });
  else messages.pop();
  end();
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("prompt").value.trim();
  if (!text || running) return;
  $("prompt").value = "";
  $("prompt").style.height = "";
  if ($("draw").checked) draw(text);
  else ask(text);
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("ask").requestSubmit(); }
});
$("prompt").addEventListener("input", () => {
  const area = $("prompt");
  area.style.height = "";
  area.style.height = `${area.scrollHeight + 2}px`;
});
$("stop").addEventListener("click", () => running?.abort());
$("fresh").addEventListener("click", () => { running?.abort(); messages = []; hold([]); $("talk").replaceChildren(); $("gallery").replaceChildren(); $("prompt").focus(); });
$("model").addEventListener("change", choose);
$("draw").addEventListener("change", choose);
$("file").addEventListener("change", async () => { await attach($("file").files); $("file").value = ""; $("prompt").focus(); });
$("prompt").addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
  if (files.length && !$("attach").hidden) { event.preventDefault(); attach(files); }
});
$("language").addEventListener("change", () => { localStorage.setItem("language", $("language").value); speak($("language").value); });

speak(localStorage.getItem("language") ?? (navigator.language.startsWith("de") ? "de" : "en"));
listModels();
