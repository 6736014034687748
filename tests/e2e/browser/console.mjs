// Tests the console with mouse and keyboard, in light and dark colours, and at phone width.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";

const { BASE_URL, API_KEY, API_SECRET, TOOLS, CHROMIUM, SCREENSHOTS } = process.env;
const require = createRequire(`${TOOLS}/`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const authorization = `Basic ${btoa(`${API_KEY}:${API_SECRET}`)}`;
const api = async (method, path, body) => {
  const headers = { authorization, "content-type": "application/json" };
  const response = await fetch(BASE_URL + path, { method, headers, body: body && JSON.stringify(body) });
  assert.ok(response.ok, `${method} ${path}: ${response.status}`);
  return response.json();
};
const issue = (fields) => api("POST", "/bank/tokens/", { userId: user, ...fields });

const user = `browser ${Date.now()} <b>&"'\u202e`;
const token = await issue({ country: "LT", access: { accounts: true } });
for (let n = 0; n < 3; n++) await issue({ country: "LT", access: { accounts: true } });
const second = await issue({ bank: "Bank" });

// Blocks name resolution, so that the browser can reach only this machine.
const args = ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"];
const browser = await chromium.launch({ executablePath: CHROMIUM, args, chromiumSandbox: false });

/** Opens a page that records requests to other origins, script errors and violations of the security policy. */
const open = async (settings = {}) => {
  const context = await browser.newContext({
    httpCredentials: { username: API_KEY, password: API_SECRET },
    viewport: { width: 1280, height: 900 },
    ...settings,
  });
  const page = await context.newPage();
  page.failures = [];
  page.addresses = [];
  page.on("request", (request) => {
    page.addresses.push(request.url());
    if (!request.url().startsWith(`${BASE_URL}/`)) page.failures.push(`loads ${request.url()}`);
  });
  // Error statuses that a step expects are logged as failed loads.
  page.on("console", (message) => message.text().includes("Failed to load resource") || page.failures.push(message.text()));
  page.on("pageerror", (error) => page.failures.push(String(error)));
  return page;
};
const go = (page, path) => page.goto(BASE_URL + path);
const close = async (page) => {
  assert.deepEqual(page.failures, []);
  assert.ok(!page.addresses.some((address) => address.includes(encodeURIComponent(token.tokenString))));
  await page.context().close();
};
const tabTo = async (page, selector) => {
  for (let n = 0; n < 60; n++) {
    await page.keyboard.press("Tab");
    if (await page.locator(selector).evaluate((element) => element === document.activeElement)) return;
  }
  assert.fail(`Tab does not reach ${selector}`);
};
/** Lists the texts that cover another text of the same table cell. */
const overlaps = () => {
  const boxes = (cell) => {
    const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) {
      const range = document.createRange();
      range.selectNodeContents(walker.currentNode);
      for (const box of range.getClientRects()) found.push([box, walker.currentNode.data]);
    }
    return found.filter(([box]) => box.width > 1);
  };
  const cover = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 6;
  return [...document.querySelectorAll("td")].flatMap((cell) =>
    boxes(cell).filter(([box], index, all) => all.slice(0, index).some(([other]) => cover(box, other))).map(([, text]) => text.trim()));
};
const steps = {};
let event;

steps["search finds a token by its token string and no page shows the string"] = async () => {
  const page = await open();
  await go(page, "/console/search");
  await page.getByLabel("token string").fill(token.tokenString);
  await page.keyboard.press("Enter");
  await page.waitForURL(`${BASE_URL}/console/tokens/${token.id}?found=token+string`);
  assert.match(await page.getByRole("status").innerText(), /Found by its token string/);
  assert.ok(!(await page.content()).includes(token.tokenString));
  const history = await page.locator(".timeline li").allInnerTexts();
  assert.match(history[0], /token\.minted by dev/);
  assert.match(history[1], /token\.reused × 3/);
  assert.match(history[2], /token\.looked_up by dev/);
  assert.match(history.at(-1), /^20.*expires in /s);
  await page.goBack();
  assert.equal(await page.getByLabel("token string").inputValue(), "");
  await close(page);
};

/** Submits the search box. */
const search = async (page, text) => {
  await go(page, "/console/search");
  await page.getByLabel("token string").fill(text);
  await page.getByRole("button", { name: "Search" }).click();
  await page.waitForLoadState();
};

steps["one search box shows what a text was taken for"] = async () => {
  const page = await open();
  await search(page, ` ${token.verificationUrl} `);
  assert.match(await page.getByRole("status").innerText(), /Found by its verification link/);
  await search(page, token.id);
  assert.match(await page.getByRole("status").innerText(), /Found by its token id/);
  await issue({ userId: "dev" });
  await search(page, "dev");
  assert.match(await page.getByRole("status").innerText(), /belongs to 2 records/);
  await page.getByRole("link", { name: "The tokens of the user" }).click();
  await page.waitForURL(/console\/users/);
  assert.match(await page.locator("tbody tr").first().innerText(), /\d+ s ago/);
  await search(page, "unknown token");
  assert.match(await page.getByRole("alert").innerText(), /^Nothing on record\..* user id, request id and token string\.$/);
  assert.ok(!(await page.content()).includes("unknown token"));
  await go(page, "/console/users?userId=unknown");
  assert.match(await page.locator("main").innerText(), /No record of this user/);
  assert.equal(await page.getByRole("button").count(), 0);
  await close(page);
};

steps["a token can be invalidated with the keyboard only"] = async () => {
  const page = await open();
  await go(page, "/console/search");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to content");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => location.hash), "#main");
  await tabTo(page, "#text");
  await page.keyboard.type(user);
  await page.keyboard.press("Enter");
  await page.waitForURL(/console\/users/);
  assert.equal(await page.locator("h1 code").textContent(), user.replace("\u202e", "\\u202e"));
  await tabTo(page, `a[href="/console/tokens/${second.id}"]`);
  await page.keyboard.press("Enter");
  await page.waitForURL(/console\/tokens/);
  await tabTo(page, "#reason");
  await page.keyboard.press("ArrowDown");
  await tabTo(page, "form.inline button");
  await page.keyboard.press("Enter");
  await page.waitForURL(/console\/invalidate/);
  assert.match(await page.locator("main").innerText(), /compromised[\s\S]*cannot be undone/);
  assert.equal((await api("GET", `/bank/tokens/${second.id}`)).isValid, true);
  await tabTo(page, "button.danger");
  await page.keyboard.press("Enter");
  await page.waitForURL(/done=1/);
  await page.waitForFunction(() => document.activeElement.getAttribute("role") === "status");
  assert.match(await page.getByRole("status").innerText(), /Done\. This token is invalid/);
  const record = await api("GET", `/bank/tokens/${second.id}`);
  assert.deepEqual([record.isValid, record.invalidationReason], [false, "compromised"]);
  await close(page);
};

steps["the audit log can be filtered, paged and exported"] = async () => {
  const page = await open();
  await go(page, "/console/audit");
  await page.getByLabel("User id").fill(user);
  await page.getByText("Only these kinds: any").click();
  await page.getByRole("group", { name: "Only these kinds" }).getByLabel("token.reused").check();
  await page.getByLabel("From (UTC)").fill(new Date(Date.now() - 3600e3).toISOString().slice(0, 19));
  await page.getByLabel("Order").selectOption("oldest first");
  await page.getByRole("button", { name: "Show events" }).click();
  assert.equal(await page.getByText("Only these kinds:").innerText(), "Only these kinds: token.reused");
  const rows = page.locator("tbody tr:visible");
  assert.equal(await rows.count(), 3);
  for (const text of await rows.allInnerTexts()) assert.match(text, /token\.reused/);
  const link = page.getByRole("link", { name: "NDJSON" });
  const exported = await fetch(await link.evaluate((link) => link.href), { headers: { authorization } });
  const events = (await exported.text()).trim().split("\n").map((line) => JSON.parse(line));
  assert.deepEqual(events.map((event) => [event.userId, event.kind]), Array(3).fill([user, "token.reused"]));
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("link", { name: "CSV" }).click()]);
  assert.equal(download.suggestedFilename(), "audit-events.csv");
  await go(page, "/console/audit?limit=2");
  await page.getByRole("link", { name: "Next page" }).click();
  assert.equal(await rows.count(), 2);
  await close(page);
};

steps["the audit page has one event per line, whole ids in copies and details in place"] = async () => {
  const long = `${"long ".repeat(25)}${process.pid}`.slice(0, 128).trim();
  const minted = await issue({ userId: long });
  for (let n = 0; n < 100; n++) await issue({ userId: n % 2 ? long : user, country: "LT", access: { accounts: true } });
  const page = await open();
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await go(page, "/console/audit");
  const rows = page.locator("tbody tr:visible");
  assert.equal(await rows.count(), 100);
  for (const width of [769, 900, 1024, 1920, 1280]) {
    await page.setViewportSize({ width, height: 900 });
    // The details of the first row must not move the columns of the others.
    await page.locator("tbody summary").first().click();
    const heights = await rows.evaluateAll((rows) => rows.map((row) => row.matches(".details") ? 0 : row.getBoundingClientRect().height));
    assert.ok(Math.max(...heights) <= 40, `rows are up to ${Math.max(...heights)} px high at ${width} px`);
    assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= width, `the page is wider than ${width} px`);
  }
  assert.ok(!(await rows.allInnerTexts()).some((text) => text.includes("audit.read")));

  await go(page, `/console/audit?tokenId=${minted.id}`);
  for (const [id, part] of [[long, "users"], [minted.id, "tokens"]]) {
    const code = rows.locator(`a[href*="/console/${part}"] code`);
    const { x, y, width, height } = await code.boundingBox();
    assert.ok(width < 160, "the id is short on the screen");
    assert.equal(await page.getByRole("link", { name: id, exact: true }).first().count(), 1, "the whole id is the name");
    // Drags over the short text, from outside of the link.
    await page.mouse.move(x - 4, y + height / 2);
    await page.mouse.down();
    await page.mouse.move(x + width + 4, y + height / 2, { steps: 4 });
    await page.mouse.up();
    await page.keyboard.press("Control+C");
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), id);
  }

  await tabTo(page, "tbody summary");
  await page.keyboard.press("Enter");
  assert.equal(await rows.count(), 2);
  assert.match(await rows.nth(1).innerText(), new RegExp(`${long}[^]*${minted.id}[^]*${minted.fingerprint}`));
  await page.keyboard.press("Enter");
  assert.equal(await rows.count(), 1);

  await go(page, "/console/audit");
  await page.getByText("Without these kinds: none").click();
  const without = page.getByRole("group", { name: "Without these kinds" });
  await without.getByLabel("token.reused").check();
  await without.getByLabel("token.minted").check();
  await page.getByLabel("Show reads of the audit log").check();
  await page.getByRole("button", { name: "Show events" }).click();
  await page.getByText("Without these kinds: token.minted, token.reused").waitFor();
  assert.ok(await page.getByLabel("Show reads of the audit log").isChecked());
  const texts = await rows.allInnerTexts();
  assert.ok(texts.some((text) => text.includes("audit.read")) && !texts.some((text) => /token\.(reused|minted)/.test(text)), texts[0]);
  await close(page);
};

steps["an event can be verified against the sealed log"] = async () => {
  const page = await open();
  await go(page, `/console/tokens/${token.id}`);
  await page.locator(".timeline a").first().click();
  await page.waitForURL(/console\/events/);
  assert.match(await page.locator("dl.facts").innerText(), /token\.minted[\s\S]*LT · any bank · accounts/);
  event = new URL(page.url()).pathname;
  await page.getByRole("button", { name: "Verify this event" }).click();
  await page.waitForURL(/verify=1/);
  const status = page.getByRole("status");
  while (/not sealed yet/.test(await status.innerText())) {
    await page.waitForTimeout(500);
    await page.reload();
  }
  const verdict = await status.innerText();
  assert.match(verdict, /contains this event as entry [\d\u202f]+ of [\d\u202f]+ \(leaf index/);
  await page.getByRole("link", { name: "Proof as JSON" }).click();
  assert.equal(JSON.parse(JSON.parse(await page.locator("pre").innerText()).entry).tokenId, token.id);
  await close(page);
};

steps["a form on another site is rejected"] = async () => {
  const page = await open();
  await go(page, `/console/invalidate?tokenId=${token.id}&reason=used`);
  const formToken = await page.locator("input[name=formToken]").inputValue();
  await close(page);
  // The foreign form even has a valid form token, which another site cannot read.
  const attacker = createServer((_, response) => {
    response.setHeader("content-type", "text/html");
    response.end(`<form method="post" action="${BASE_URL}/console/invalidate">
      <input name="formToken" value="${formToken}"><input name="tokenId" value="${token.id}">
      <input name="reason" value="used"><button>win a prize</button></form>`);
  });
  await new Promise((listening) => attacker.listen(0, "localhost", listening));
  const victim = await open();
  await go(victim, "/console/");
  await victim.goto(`http://localhost:${attacker.address().port}/`);
  await victim.getByRole("button").click();
  assert.equal(await victim.locator("h1").innerText(), "Not allowed");
  await victim.context().close();
  attacker.close();
  assert.equal((await api("GET", `/bank/tokens/${token.id}`)).isValid, true);
};

steps["every page passes the accessibility checks and fits a phone screen, in light and dark"] = async () => {
  const paths = {
    landing: "/",
    overview: "/console/",
    search: "/console/search",
    "search-several": (page) => search(page, "dev"),
    "search-none": (page) => search(page, "unknown token"),
    found: `/console/tokens/${token.id}?found=token+string`,
    "user-unknown": "/console/users?userId=unknown",
    user: `/console/users?userId=${encodeURIComponent(user)}`,
    token: `/console/tokens/${token.id}`,
    invalidated: `/console/tokens/${second.id}?done=1`,
    audit: "/console/audit?limit=20",
    event,
    verified: `${event}?verify=1`,
    confirm: `/console/invalidate?tokenId=${token.id}&reason=used`,
    clients: "/console/clients",
    client: "/console/clients/dev",
    rotate: "/console/clients/dev?confirm=rotate",
    disable: "/console/clients/dev?confirm=disable",
    secret: async (page) => {
      await go(page, "/console/clients");
      await page.getByLabel("Name", { exact: true }).fill(`client ${Math.random()}`);
      await page.getByLabel("tokens:read").check();
      await page.getByRole("button", { name: "Create client" }).click();
      await page.getByText("Copy the secret now").waitFor();
    },
    invalid: "/console/audit?limit=0&from=2026-11-22T09:39:08.123456%2B02:00",
    missing: "/console/nothing",
  };
  for (const colorScheme of ["light", "dark"]) {
    for (const [device, viewport] of Object.entries({ desk: { width: 1280, height: 900 }, phone: { width: 360, height: 740 } })) {
      const page = await open({ colorScheme, viewport, reducedMotion: "reduce" });
      for (const [name, path] of Object.entries(paths)) {
        await (typeof path === "string" ? go(page, path) : path(page));
        const label = `${name}, ${colorScheme}, ${device}`;
        if (name === "overview") for (const table of await page.locator("details").all()) await table.locator("summary").click();
        if (SCREENSHOTS) await page.screenshot({ path: `${SCREENSHOTS}/${name}-${colorScheme}-${device}.png`, fullPage: true });
        if (name === "audit") for (const closed of await page.locator("summary").all()) await closed.click();
        const { violations } = await page.evaluate(`${axe}; axe.run()`);
        const found = violations.map(({ id, nodes }) => [id, nodes.map((node) => node.html)]);
        assert.deepEqual(found, [], label);
        const width = await page.evaluate(() => document.documentElement.scrollWidth);
        assert.ok(width <= viewport.width, `${label}: ${width} px wide`);
        assert.deepEqual(await page.evaluate(overlaps), [], label);
        const durations = await page.evaluate(() => [...document.querySelectorAll("*")].map((element) => getComputedStyle(element).transitionDuration));
        assert.ok(durations.every((duration) => duration === "0s"), label);
      }
      await close(page);
    }
  }
};

steps["the overview plots the counts of a completed minute"] = async () => {
  const page = await open();
  let columns;
  do {
    await go(page, "/console/");
    columns = JSON.parse(await page.locator("[data-columns]").first().getAttribute("data-columns"));
    if (Math.max(...columns[1]) < 3) await page.waitForTimeout(1000);
  } while (Math.max(...columns[1]) < 3);
  assert.equal(columns[0].length, 59);
  assert.equal(await page.locator("canvas").count(), 8);
  const colours = () =>
    page.locator("canvas").first().evaluate((canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const seen = new Set();
      for (let at = 0; at < data.length; at += 4) if (data[at + 3] === 255) seen.add(`${data[at]},${data[at + 1]},${data[at + 2]}`);
      return [...seen];
    });
  assert.ok((await colours()).includes("26,86,176"), "the line of reused tokens in light colours");
  await page.emulateMedia({ colorScheme: "dark" });
  await page.waitForTimeout(100);
  assert.ok((await colours()).includes("127,176,255"), "the line of reused tokens in dark colours");
  await page.setViewportSize({ width: 400, height: 800 });
  await page.waitForTimeout(100);
  assert.ok((await page.locator("canvas").first().boundingBox()).width < 400);
  await close(page);
};

steps["the overview refreshes itself until the user stops it"] = async () => {
  const page = await open();
  await page.clock.install();
  await go(page, "/console/");
  const asOf = () => page.locator("#as-of time").getAttribute("datetime");
  const toggle = page.getByLabel("every 15 s");
  const next = (part) => page.waitForResponse((response) => response.url() === `${BASE_URL}/console/${part}`);
  const before = await asOf();
  const [refreshed] = await Promise.all([next(""), page.clock.runFor(15_000)]);
  assert.equal(refreshed.status(), 200);
  await page.waitForFunction((before) => document.querySelector("#as-of time").dateTime !== before, before);
  assert.equal(await page.locator("canvas").count(), 8);
  await page.context().setOffline(true);
  await page.clock.runFor(15_000);
  await page.waitForFunction(() => document.getElementById("refresh-failed").textContent === "The last refresh failed.");
  await page.context().setOffline(false);
  await toggle.uncheck();
  const stopped = await asOf();
  page.addresses.length = 0;
  await page.clock.runFor(60_000);
  assert.deepEqual(page.addresses, []);
  assert.equal(await asOf(), stopped);
  await go(page, "/console/");
  assert.equal(await toggle.isChecked(), false, "the choice is kept");
  await close(page);
};

steps["legends show the last minute until the pointer chooses another"] = async () => {
  const page = await open();
  await go(page, "/console/");
  const legend = page.locator(".u-legend").first();
  const atFirst = await legend.innerText();
  assert.match(atFirst, /minute:?\s*\d\d:\d\d[\s\S]*reused:?\s*\d/);
  const box = await page.locator(".u-over").first().boundingBox();
  await page.mouse.move(box.x + 20, box.y + 20);
  await page.waitForFunction((text) => document.querySelector(".u-legend").innerText !== text, atFirst);
  await page.mouse.move(box.x + 20, box.y - 60);
  await page.waitForFunction((text) => document.querySelector(".u-legend").innerText === text, atFirst);
  await close(page);
};

steps["times show the local time on hover, and plots say that they need a script"] = async () => {
  const page = await open({ timezoneId: "Europe/Vilnius", locale: "en-GB" });
  await go(page, `/console/tokens/${token.id}`);
  const time = page.locator("time").first();
  const [exact, local] = (await time.getAttribute("title")).split("\n");
  assert.equal(exact, await time.getAttribute("datetime"));
  assert.match(local, /^\d{1,2} \w+ \d{4}, \d\d:\d\d:\d\d (EET|EEST|GMT\+[23])$/);
  await close(page);
  const plain = await open({ javaScriptEnabled: false });
  await go(plain, "/console/");
  assert.match(await plain.locator("main").innerText(), /Plots need JavaScript/);
  assert.equal(await plain.locator("[data-plot]").first().isVisible(), false);
  assert.equal(await plain.getByLabel("every 15 s").isVisible(), false);
  await close(plain);
};

steps["the verification page of the sandbox shows the request and ends the token"] = async () => {
  const { verificationUrl } = await issue({ country: "EE", bank: "LHV", access: { balances: true } });
  const looks = [["light", 1280], ["dark", 1280], ["light", 360], ["dark", 360]];
  const check = async (path, finish) => {
    for (const [colorScheme, width] of looks) {
      const page = await (await browser.newContext({ colorScheme, viewport: { width, height: 740 } })).newPage();
      const requests = [];
      page.on("request", (request) => requests.push(request.url()));
      await page.goto(verificationUrl);
      const { violations } = await page.evaluate(`${axe}; axe.run()`);
      assert.deepEqual(violations.map(({ id }) => id), [], `${path}, ${colorScheme}, ${width}`);
      assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= width);
      if (SCREENSHOTS) await page.screenshot({ path: `${SCREENSHOTS}/${path}-${colorScheme}-${width}.png` });
      assert.deepEqual(requests.filter((url) => !url.startsWith(new URL(verificationUrl).origin)), []);
      if (finish && colorScheme === "dark" && width === 360) await finish(page);
      await page.context().close();
    }
  };
  await check("verification", async (page) => {
    assert.match(await page.locator("dl").innerText(), /EE[\s\S]*LHV[\s\S]*balances/);
    await page.getByRole("button", { name: "Finish verification" }).click();
    await page.getByRole("heading", { name: "Verification finished" }).waitFor();
    const { violations } = await page.evaluate(`${axe}; axe.run()`);
    assert.deepEqual(violations, []);
  });
  await check("used");
  const response = await fetch(verificationUrl);
  assert.deepEqual([response.status, (await response.json()).identifier], [400, "TOKEN_NOT_VALID"]);
};

let failed = 0;
for (const [name, step] of Object.entries(steps)) {
  try {
    await step();
    console.log(`ok      ${name}`);
  } catch (error) {
    failed++;
    console.log(`FAILED  ${name}\n${error.stack}`);
  }
}
await browser.close();
process.exit(failed ? 1 : 0);
