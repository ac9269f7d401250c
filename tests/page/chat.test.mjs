// A conversation, as somebody has it with the page.

import assert from "node:assert/strict";
import { test } from "node:test";
import { PHONE, answer, answerWith, bodies, daemon, open, say, talk } from "./page.mjs";

const { url } = await daemon();

test("a conversation streams, is counted, named, and kept over a reload", async () => {
  const page = await open(url);
  await say(page, "slow 0.3 One |two |**three**");
  await page.waitForFunction(() => document.querySelector("article.assistant")?.textContent.includes("two"));
  assert.equal(await page.isVisible("#stop"), true);
  await page.waitForSelector("article.assistant:not(.running)");
  assert.equal(await answer(page), "One two three");
  assert.equal(await page.locator("article.assistant strong").innerText(), "three");
  assert.match(await page.locator(".figures").innerText(), /^3 tokens · [\d.]+ tok\/s · first after 0\.\d+ s$/);
  await talk(page, "say Again.");
  assert.deepEqual(bodies(page).at(-1).messages.map(({ role }) => role), ["user", "assistant", "user"]);
  assert.match(await page.locator("#context").innerText(), /^\d+ of 4096 tokens of context used$/);
  const list = page.locator("#conversations .open");
  assert.equal(await list.innerText(), "slow 0.3 One |two |**three**");
  await page.reload();
  await page.waitForSelector("article.assistant.last");
  assert.equal(await page.locator("article").count(), 4);
  assert.equal(await answer(page), "Again.");
  await talk(page, "say third");
  assert.equal(bodies(page).at(-1).messages.length, 5);
  assert.deepEqual(page.complaints, []);
});

test("stop keeps what there is, and continue goes on with it", async () => {
  const page = await open(url);
  await say(page, "hang Half an");
  await page.waitForFunction(() => document.querySelector("article.assistant")?.textContent.includes("Half an"));
  await page.press("#say", "Escape");
  await page.waitForSelector(".problem.stopped");
  await page.waitForFunction(() => /^\d+ of 4096 tokens/.test(document.getElementById("context").innerText));
  await answerWith(page, [{ content: " answer." }]);
  await page.getByRole("button", { name: "Continue" }).click();
  await page.waitForSelector("article.assistant:not(.running) .figures");
  const { messages } = bodies(page).at(-1);
  assert.deepEqual(messages.at(-1), { role: "assistant", content: "Half an", prefix: true });
  assert.equal(await answer(page), "Half an answer.");
  assert.match(await page.locator(".figures").innerText(), /^2 tokens/);
  await page.reload();
  await page.waitForSelector("article.assistant.last");
  assert.equal(await answer(page), "Half an answer.");
});

test("an answer that was cut off says by what, and is gone on with where there is room", async () => {
  const page = await open(url, { expected: ["400"] });
  const cut = async (text, usage) => {
    await page.unroute("**/v1/chat/completions");
    await answerWith(page, [{ content: text }, { content: "…" }], "length", { completion_tokens: 2, ...usage });
    await talk(page, "go");
    return page.locator("article.last .problem").innerText();
  };
  const goOn = page.getByRole("button", { name: "Continue" });
  assert.match(await cut("one", { total_tokens: 90 }), /^Cut off: it only repeated itself, or reached a limit of the daemon's\./);
  assert.match(await cut("two"), /^Cut off: a limit of its length, or the context's end, was reached, or it only repeated itself\./);
  assert.equal(await goOn.count(), 1);
  assert.match(await cut("three", { total_tokens: 4096 }), /^Cut off: the context of 4096 tokens is full\./);
  assert.equal(await goOn.count(), 0);
  await page.click("#settings");
  await page.locator('dialog input[type="number"]').fill("2");
  await page.click("dialog button.primary");
  assert.match(await cut("four", { total_tokens: 90 }), /^Cut off: this conversation's own limit of 2 tokens was reached\./);
  await page.unroute("**/v1/chat/completions");
  const refusal = { error: { message: "the prompt is too long", code: "context_length_exceeded" } };
  await page.route("**/v1/chat/completions", (route) => route.fulfill({ status: 400, json: refusal }));
  await goOn.click();
  await page.waitForSelector("article.last .problem.failed");
  assert.equal(await goOn.count(), 0);
  assert.equal(await page.getByRole("button", { name: "Try again" }).count(), 1);
  assert.deepEqual(page.complaints, []);
});

test("an edited message and a second answer are branches; the first ones stay", async () => {
  const page = await open(url);
  await talk(page, "say first");
  await talk(page, "say second");
  await page.locator("article.user").first().hover();
  await page.locator('article.user button[aria-label="Edit message"]').first().click();
  await page.fill(".edit textarea", "say changed");
  await page.press(".edit textarea", "Enter");
  await page.waitForFunction(() => document.querySelector("article.assistant.last:not(.running) .parts > .md")?.textContent === "changed");
  assert.equal(await page.locator("article").count(), 2);
  assert.equal(bodies(page).at(-1).messages.length, 1);
  await page.locator('article.user button[aria-label="Version before"]').click();
  await page.waitForFunction(() => document.querySelectorAll("article").length === 4);
  assert.equal(await answer(page), "second");
  await page.locator('article.assistant button[aria-label="Answer again"]').click();
  await page.waitForSelector("text=2 / 2");
  assert.equal(await answer(page), "second");
  await page.reload();
  await page.waitForSelector("text=2 / 2");
  assert.equal(await page.locator("article").count(), 4);
});

test("an answer in the wings goes on while another conversation is shown", async () => {
  const page = await open(url);
  await say(page, "slow 0.4 a|b|c");
  await page.waitForFunction(() => location.hash && document.querySelector("article.assistant .parts > .md")?.textContent);
  await page.click("#new-chat");
  assert.equal(await page.locator("article").count(), 0);
  await talk(page, "say other");
  assert.equal(await answer(page), "other");
  await page.waitForTimeout(800);
  await page.click("#conversations li:nth-child(2) .open, #conversations li:nth-child(1) .open:not([aria-current])");
  await page.waitForFunction(() => document.querySelector("article.assistant .parts > .md")?.textContent === "abc");
  assert.deepEqual(page.complaints, []);
});

test("two tabs never mix", async () => {
  const one = await open(url);
  const two = await open(url, { context: one.context() });
  await Promise.all([talk(one, "slow 0.1 1|1|1"), talk(two, "slow 0.1 2|2|2")]);
  assert.equal(await answer(one), "111");
  assert.equal(await answer(two), "222");
  assert.equal(await one.locator("article").count(), 2);
  // And in one conversation: each has its own branch, and nobody's message is lost.
  await two.goto(one.url());
  await two.waitForSelector("article.assistant.last");
  await Promise.all([talk(one, "slow 0.1 3|3"), talk(two, "slow 0.1 4|4")]);
  assert.equal(await answer(one), "33");
  assert.equal(await answer(two), "44");
  for (const page of [one, two]) assert.equal(bodies(page).at(-1).messages.length, 3);
  const versions = one.locator("article.user .actions .quiet");
  await versions.waitFor();
  assert.match(await versions.innerText(), /^[12] \/ 2$/);
  await one.reload();
  await one.waitForSelector("article.assistant.last");
  assert.equal(await answer(one), "33");
  await one.locator("article.user").last().hover();
  await one.locator('article.user button[aria-label^="Version"]:not([disabled])').click();
  await one.waitForFunction(() => [...document.querySelectorAll("article.assistant .parts > .md")].at(-1)?.textContent === "44");
});

test("thoughts are folded away, calls of tools are shown", async () => {
  const page = await open(url);
  await answerWith(page, [
    { reasoning_content: "Let me **see**." }, { content: "Calling." },
    { tool_calls: [{ index: 0, id: "c1", type: "function", function: { name: "weather", arguments: '{"city":"Rome"}' } }] },
  ], "tool_calls");
  await talk(page, "weather?");
  assert.equal(await page.locator(".thought .md").isVisible(), false);
  await page.click(".thought summary");
  assert.equal(await page.locator(".thought .md").innerText(), "Let me see.");
  assert.match(await page.locator(".call").innerText(), /Calls weather[^]*"city": "Rome"/);
  assert.equal(await page.locator("article.assistant .parts > .md").innerText(), "Calling.");
});

test("system prompt, length, model and files reach the model", async () => {
  const asked = [];
  const page = await open(url);
  await page.route("**/v1/models", (route) => route.fulfill({ json: { data: ["tiny", "tiny:poet", "tiny:background"].map((id) => ({ id, runtime: "sim" })) } }));
  await page.reload();
  await page.waitForFunction(() => document.querySelectorAll("#model option").length === 2);
  await page.selectOption("#model", { label: "tiny with poet" });
  await page.route("**/v1/chat/completions", (route) => {
    asked.push(route.request().postDataJSON());
    return route.continue({ postData: JSON.stringify({ ...asked.at(-1), model: "tiny" }) });
  });
  await page.click("#settings");
  await page.locator("dialog textarea").fill("You are brief.");
  await page.locator('dialog input[type="number"]').fill("7");
  await page.click("dialog button.primary");
  await page.setInputFiles("#pick-files", [
    { name: "notes.txt", mimeType: "text/plain", buffer: Buffer.from("Grüße\nline\n") },
    { name: "photo.png", mimeType: "image/png", buffer: Buffer.from([0x89, 0x50, 0x4e, 0x47, 0, 255]) },
  ]);
  await page.waitForSelector("#files li");
  assert.match(await page.locator("#notice").innerText(), /^photo\.png was not added: it is no text/);
  await talk(page, "What is in it?");
  const body = asked.at(-1);
  assert.equal(body.model, "tiny:poet");
  assert.equal(body.max_tokens, 7);
  assert.deepEqual(body.messages[0], { role: "system", content: "You are brief." });
  assert.equal(body.messages[1].content, "File notes.txt:\n```\nGrüße\nline\n```\n\nWhat is in it?");
  assert.match(await page.locator("article.user .files").innerText(), /notes\.txt\s+2 lines/);
});

test("plain completion goes on where a text ends, can be taken back, and is kept", async () => {
  const page = await open(url);
  await page.click("#new-text");
  await page.fill("#document", "say  upon| a time");
  await page.click("#go-on");
  await page.waitForFunction(() => document.getElementById("document").value.endsWith("upon a time"));
  assert.equal(bodies(page).at(-1).prompt, "say  upon| a time");
  await page.waitForSelector("#take-back:not([disabled])");
  await page.click("#take-back");
  assert.equal(await page.inputValue("#document"), "say  upon| a time");
  await page.fill("#document", "Kept.");
  await page.waitForFunction(() => document.querySelector("#conversations .open")?.textContent === "Kept.");
  await page.click("#conversations .open");
  await page.reload();
  await page.waitForSelector("#conversations .open");
  await page.click("#conversations .open");
  await page.waitForFunction(() => document.getElementById("document").value === "Kept.");
});

test("conversations are searched, renamed, exported, imported and deleted", async () => {
  const page = await open(url);
  await talk(page, "say apples");
  await page.click("#new-chat");
  await talk(page, "say pears");
  await page.fill("#search", "APPLES");
  await page.waitForFunction(() => document.querySelectorAll("#conversations li").length === 1);
  await page.hover("#conversations li");
  await page.click('#conversations button[aria-label^="Rename"]');
  await page.fill("dialog input", "Fruit");
  await page.click("dialog button.primary");
  await page.waitForFunction(() => document.querySelector("#conversations .open")?.textContent === "Fruit");
  await page.fill("#search", "");
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#export")]);
  const file = await download.path();
  await page.waitForFunction(() => document.querySelectorAll("#conversations li").length === 2);
  await page.setInputFiles("#pick-import", { name: "all.json", mimeType: "application/json", buffer: await (await import("node:fs/promises")).readFile(file) });
  await page.waitForFunction(() => document.querySelectorAll("#conversations li").length === 4);
  await page.waitForFunction(() => document.querySelectorAll("article").length === 2);
  await page.setInputFiles("#pick-import", { name: "bad.json", mimeType: "application/json", buffer: Buffer.from('{"format": "other"}') });
  assert.match(await page.locator("dialog [role=alert]").innerText(), /holds no conversations/);
  await page.click("dialog button.primary");
  await page.hover("#conversations li");
  await page.click('#conversations button[aria-label^="Delete"]');
  await page.click("dialog button.danger");
  await page.waitForFunction(() => document.querySelectorAll("#conversations li").length === 3);
  assert.deepEqual(page.complaints, []);
});

test("keys: a new chat, the search, the last message; the theme is kept", async () => {
  const page = await open(url);
  await talk(page, "say hello");
  await page.press("#say", "ArrowUp");
  assert.equal(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), "Edit message");
  await page.keyboard.press("Escape");
  await page.keyboard.press("Control+k");
  assert.equal(await page.evaluate(() => document.activeElement.id), "search");
  await page.keyboard.press("Control+Shift+O");
  assert.equal(await page.locator("article").count(), 0);
  assert.equal(await page.evaluate(() => document.activeElement.id), "say");
  await page.click("#theme");
  await page.click("#theme");
  await page.reload();
  assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), "dark");
});

test("on a phone the list comes and goes, and nothing is wider than the screen", async () => {
  const page = await open(url, { options: PHONE });
  await talk(page, `say ${"x".repeat(300)} |\n\n\`\`\`\n${"y".repeat(300)}\n\`\`\``);
  assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 390);
  assert.equal(await page.evaluate(() => document.getElementById("chat").scrollWidth <= 390), true);
  await page.click("#menu");
  await page.waitForFunction(() => document.getElementById("sidebar").getBoundingClientRect().left === 0);
  await page.click("#new-chat");
  await page.waitForFunction(() => document.getElementById("sidebar").getBoundingClientRect().right <= 0);
});
