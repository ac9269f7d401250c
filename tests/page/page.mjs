// A daemon and a browser for the tests of the chat page.

import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { after, afterEach } from "node:test";

const require = createRequire(`${process.env.PAGE_MODULES}/`);
const { chromium } = require("playwright-core");
export const AXE = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
export const WIDE = { viewport: { width: 1280, height: 800 } };
export const PHONE = { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true };

const browser = await chromium.launch({
  executablePath: process.env.PAGE_CHROMIUM,
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
  ],
});
const running = [];
const contexts = new Set();
afterEach(async () => {
  await Promise.all([...contexts].map((context) => context.close()));
  contexts.clear();
});
after(async () => {
  await browser.close();
  for (const process of running) process.kill("SIGTERM");
});

/** A daemon: over the scripted engine of tests/fake_engine.py, or over the simulated runtime. */
export async function daemon({ real = false, options = [], faults = "" } = {}) {
  const module = real ? "rkruntime.daemon.main" : "tests.daemon_process";
  const command = ["-m", module, "--bundle", process.env.PAGE_BUNDLE, "--listen", "127.0.0.1:0", ...options];
  const child = spawn(process.env.PAGE_PYTHON, command, { stdio: ["ignore", "inherit", "pipe"], env: { ...process.env, RKSIM_FAULTS: faults } });
  running.push(child);
  const url = await new Promise((resolve, reject) => {
    createInterface(child.stderr).on("line", (line) => {
      const entry = JSON.parse(line);
      if (entry.event === "listening") resolve(`http://${entry.address}`);
    });
    child.on("exit", (code) => reject(new Error(`the daemon ended with ${code}`)));
  });
  return { url, pid: child.pid };
}

/** A page over a context of its own, or of a given one. What it complains of fails the test, but for `expected`. */
export async function open(url, { options = WIDE, context, expected = [], before } = {}) {
  const own = context ?? (await browser.newContext({ ...options, baseURL: url }));
  contexts.add(own);
  const page = await own.newPage();
  page.setDefaultTimeout(Number(process.env.PAGE_PATIENCE ?? 60) * 1000);
  page.complaints = [];
  page.on("pageerror", (error) => page.complaints.push(String(error)));
  page.on("console", (message) => {
    const text = message.text();
    if (message.type() === "error" && !expected.some((part) => text.includes(part))) page.complaints.push(text);
  });
  page.on("dialog", (dialog) => {
    page.complaints.push(`a dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  page.asked = [];
  page.on("request", (request) => page.asked.push(request));
  if (before) await page.addInitScript(before);
  await page.goto(url);
  await page.waitForFunction(() => document.querySelector("#model option") || document.querySelector("dialog[open]"));
  return page;
}

export async function say(page, text) {
  await page.fill("#say", text);
  await page.press("#say", "Enter");
}

/** Says it, and waits for the whole answer. */
export async function talk(page, text) {
  await say(page, text);
  await page.waitForSelector("article.assistant.last:not(.running) .foot:not([hidden])");
  return answer(page);
}

export function answer(page) {
  return page.locator("article.assistant .parts > .md").last().innerText();
}

/** Bodies of the answers that a page has asked for. */
export function bodies(page) {
  return page.asked.filter((request) => request.method() === "POST" && !request.url().endsWith("/tokenize")).map((request) => JSON.parse(request.postData()));
}

/** Answers the next chats with these chunks, as a daemon would that has them. */
export function answerWith(page, deltas, last = "stop", usage = undefined) {
  const events = [...deltas.map((delta) => ({ choices: [{ index: 0, delta, finish_reason: null }] })), { choices: [{ index: 0, delta: {}, finish_reason: last }] }, ...(usage ? [{ choices: [], usage }] : [])];
  const body = events.map((event) => `data: ${JSON.stringify(event)}\n\n`).join("") + "data: [DONE]\n\n";
  return page.route("**/v1/chat/completions", (route) => route.fulfill({ contentType: "text/event-stream", body }));
}
