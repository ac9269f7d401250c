// Whoever cannot see well, or not at all: axe finds nothing to complain of, in both themes, wide and narrow.

import assert from "node:assert/strict";
import { test } from "node:test";
import { AXE, PHONE, WIDE, answerWith, daemon, open, say, talk } from "./page.mjs";

const { url } = await daemon();
const TEXT = "# Title\n\nText with `code`, a [link](https://example.org/x) and maths $a_1$.\n\n> Quoted\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n1. one\n2. two\n\n```python\nprint(1)\n```\n";

async function check(page, where) {
  // axe is run by the browser's own tools, which the page's policy does not bind.
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
  const told = violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.html} ${node.failureSummary}`).join("\n")}`);
  assert.deepEqual(told, [], where);
}

for (const colorScheme of ["light", "dark"]) {
  for (const [size, options] of [["wide", WIDE], ["phone", PHONE]]) {
    test(`${colorScheme}, ${size}`, async () => {
      const page = await open(url, { options: { ...options, colorScheme }, expected: ["429"] });
      await check(page, "welcome");
      await say(page, "full");
      await page.waitForSelector(".problem.failed");
      await check(page, "an error");
      await answerWith(page, [{ reasoning_content: "hm" }, { content: TEXT }, { tool_calls: [{ index: 0, id: "1", function: { name: "f", arguments: "{}" } }] }]);
      await page.setInputFiles("#pick-files", [{ name: "a.txt", mimeType: "text/plain", buffer: Buffer.from("a") }]);
      await check(page, "a file");
      await talk(page, "hello");
      await page.click(".thought:not([hidden]) summary");
      await page.locator("article.user").last().hover();
      await check(page, "a conversation");
      await page.locator('button[aria-label="Edit message"]').last().click();
      await check(page, "an edited message");
      await page.keyboard.press("Escape");
      await page.click("#settings");
      await check(page, "settings");
      await page.keyboard.press("Escape");
      if (size === "phone") {
        await page.click("#menu");
        await page.waitForFunction(() => document.getElementById("sidebar").getBoundingClientRect().left === 0);
        await check(page, "the list");
        await page.keyboard.press("Escape");
      }
      await page.click("#board");
      await page.waitForSelector("#panel h3");
      await check(page, "the board");
      await page.keyboard.press("Escape");
      if (size === "phone") await page.click("#menu");
      await page.click("#new-text");
      await page.waitForSelector("#document");
      await page.waitForTimeout(300);
      await check(page, "plain text");
      assert.deepEqual(page.complaints, []);
    });
  }
}
