// The page in Chromium: page.mjs BASE CHROMIUM SCREENSHOT PICTURE. Asks, waits, stops, changes the language, and takes a picture.
import assert from "node:assert/strict";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const [base, executablePath, screenshot, photo] = process.argv.slice(2);
const args = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const context = await chromium.launchPersistentContext(mkdtempSync(join(tmpdir(), "fathom-page-")), { executablePath, args, locale: "en-GB", viewport: { width: 1000, height: 800 } });
const page = context.pages()[0] ?? (await context.newPage());
const faults = [];
page.on("pageerror", (error) => faults.push(String(error)));
// The policy blocks the handler in the hostile text below even before it is taken out, and says so.
const blocked = (text) => text.startsWith("Executing inline event handler violates");
page.on("console", (message) => message.type() === "error" && !blocked(message.text()) && faults.push(message.text()));
page.on("request", (request) => { if (!request.url().startsWith(base) && !request.url().startsWith("data:")) faults.push(`asks elsewhere: ${request.url()}`); });

await page.goto(base);
await page.waitForFunction(() => document.querySelector("#model").options.length > 0);
await page.fill("#prompt", "What is 2 + 3?");
await page.click("#send");
// The miniature may think for long; what counts is that its words come while it does.
await page.waitForFunction(() => document.querySelector(".answer")?.textContent.length > 40, null, { timeout: 120000 });
await page.evaluate(() => document.querySelector("#stop").click());
await page.waitForFunction(() => document.querySelector("#stop").hidden && document.querySelector(".answer .note").textContent);
console.log("ok     page: a streamed answer");
await page.evaluate(() => document.querySelectorAll("details").forEach((fold) => { fold.open = true; }));

// Markdown, mathematics, and what must not run.
const shown = await page.evaluate(() => render("**bold** \\(x^2\\) and\n\n$$\\int_0^1 x\\,dx = \\tfrac{1}{2}$$\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n<img src=x onerror=alert(1)><script>alert(1)</" + "script>"));
for (const part of ["<strong>bold</strong>", "<math", "<msup>", "<table>"]) assert.ok(shown.includes(part), `${part}: ${shown}`);
for (const part of ["<img", "<script", "onerror"]) assert.ok(!shown.includes(part), `${part}: ${shown}`);
await page.evaluate((html) => { const e = document.createElement("div"); e.className = "turn"; e.innerHTML = html; document.querySelector("#talk").append(e); }, shown);
console.log("ok     page: markdown and mathematics, nothing that runs");

await page.selectOption("#language", "de");
assert.equal(await page.innerText("#send"), "Senden");
console.log("ok     page: German");
await page.screenshot({ path: screenshot });
await page.click("#fresh");
await page.fill("#prompt", "Count from one to one thousand.");
await page.click("#send");
await page.waitForTimeout(150);
await page.evaluate(() => document.querySelector("#stop").click());
await page.waitForFunction(() => document.querySelector("#stop").hidden);
console.log("ok     page: stop");

// With the model that sees and draws: a picture from words, then words from one that is sent along.
assert.ok(await page.isHidden("#draws"));
await page.selectOption("#model", "janus");
await page.check("#draw");
await page.selectOption("#count", "2");
await page.fill("#prompt", "Ein roter Fuchs im Schnee");
await page.click("#send");
await page.waitForFunction(() => document.querySelectorAll("#gallery a[download] img").length === 2 && document.querySelector("#stop").hidden, null, { timeout: 120000 });
const sizes = await page.evaluate(() => [...document.querySelectorAll("#gallery img")].map((image) => image.naturalWidth));
assert.deepEqual(sizes, [24, 24]);
await page.screenshot({ path: screenshot.replace(".png", "-drawn.png") });
console.log("ok     page: two pictures drawn");
await page.uncheck("#draw");
await page.setInputFiles("#file", photo);
await page.waitForFunction(() => document.querySelectorAll("#held img").length === 1);
await page.fill("#prompt", "What is it?");
await page.click("#send");
await page.waitForFunction(() => document.querySelector("#stop").hidden && document.querySelector(".answer .body")?.textContent.length > 0, null, { timeout: 120000 });
assert.equal(await page.locator("#held img").count(), 0);
assert.ok(await page.evaluate(() => document.querySelector(".user img").naturalWidth > 0));
await page.screenshot({ path: screenshot.replace(".png", "-seen.png") });
console.log("ok     page: an uploaded picture described");
assert.deepEqual(faults, []);
await context.close();
