// Parses the collection with Bruno's own parser. The requests are sent here, because @usebruno/cli has hundreds of
// dependencies.
const assert = require("node:assert/strict");
const { readFileSync, readdirSync } = require("node:fs");
const { bruToJsonV2, collectionBruToJson } = require("@usebruno/lang");

const root = "clients/bruno";
const read = (name) => readFileSync(`${root}/${name}`, "utf8");
const { API_KEY: apiKey, API_SECRET: apiSecret, BASE_URL: baseUrl } = process.env;
const variables = { apiKey, apiSecret, baseUrl, userId: `bruno-${process.pid}` };
const fill = (text) => text.replace(/\{\{(\w+)\}\}/g, (_, name) => variables[name] ?? assert.fail(`${name} is not set`));

const { username, password } = collectionBruToJson(read("collection.bru")).auth.basic;
const authorization = `Basic ${btoa(fill(`${username}:${password}`))}`;

const document = JSON.parse(readFileSync("docs/openapi.json", "utf8"));
const operations = new Map();
for (const [path, methods] of Object.entries(document.paths)) {
  const pattern = path.replace(/[.]/g, "\\.").replace("{tile}", ".+").replace(/\{(\w+)\}/g, ":$1");
  for (const [method, { operationId, responses }] of Object.entries(methods))
    operations.set(operationId, { method, path: new RegExp(`^\\{\\{baseUrl\\}\\}${pattern}(\\?.*)?$`), responses });
}

async function send(id, bru) {
  const parameters = bru.params ?? [];
  const path = parameters.filter(({ type }) => type === "path");
  const url = fill(path.reduce((url, { name, value }) => url.replace(`/:${name}`, `/${value}`), bru.http.url));
  const headers = Object.fromEntries((bru.headers ?? []).map(({ name, value }) => [name, value]));
  if (bru.http.auth === "inherit") headers.Authorization = authorization;
  if (bru.http.body === "json") headers["Content-Type"] = "application/json";
  const body = bru.http.body === "json" ? fill(bru.body.json) : undefined;
  const deadline = Date.now() + 60_000;
  for (;;) {
    const response = await fetch(url, { method: bru.http.method.toUpperCase(), headers, body });
    const text = await response.text();
    // An event is sealed within about 10 seconds.
    if (response.status === 404 && url.includes("/audit/") && Date.now() < deadline) {
      await new Promise((resolve) => setTimeout(resolve, 500));
      continue;
    }
    assert.ok(response.ok && operations.get(id).responses[response.status], `${id}: ${response.status} ${text}`);
    for (const { name, value } of bru.vars?.res ?? [])
      variables[name] = value.match(/\w+/g).slice(2).reduce((at, key) => at[key], JSON.parse(text));
    return;
  }
}

(async () => {
  const found = [];
  for (const folder of ["tokens", "audit", "clients", "maintenance", "service"]) {
    const parse = (file) => [file.replace(".bru", ""), bruToJsonV2(read(`${folder}/${file}`))];
    const calls = readdirSync(`${root}/${folder}`).map(parse).sort(([, a], [, b]) => a.meta.seq - b.meta.seq);
    for (const [id, bru] of calls) {
      const operation = operations.get(id) ?? assert.fail(`${id} is no operation`);
      assert.equal(bru.http.method, operation.method, id);
      assert.match(bru.http.url, operation.path, id);
      await send(id, bru);
      found.push(id);
    }
  }
  assert.deepEqual(found.sort(), [...operations.keys()].sort());
  console.log(`sent ${found.length} requests, one for every operation`);
})();
