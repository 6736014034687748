import assert from "node:assert/strict";
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

const { BASE_URL, API_KEY, API_SECRET } = process.env;
const client = createClient<paths>({
  baseUrl: BASE_URL,
  headers: { Authorization: `Basic ${btoa(`${API_KEY}:${API_SECRET}`)}` },
});

const userId = `typescript-${process.pid}`;
const issue = (body: components["schemas"]["IssueToken"], cacheControl?: string) =>
  client.POST("/bank/tokens/", { body, params: { header: { "Cache-Control": cacheControl } } });

({ userId }) satisfies components["schemas"]["IssueToken"];
({}) satisfies components["schemas"]["RunCleanup"];

const minted = await issue({ userId, country: "LT", access: { accounts: true } });
assert.equal(minted.response.status, 201);
assert.equal(minted.data?.outcome, "minted");
const reused = await issue({ userId, country: "LT", access: { accounts: true } });
assert.equal(reused.response.status, 200);
assert.equal(reused.data?.tokenString, minted.data?.tokenString);
const renewed = await issue({ userId, country: "LT", access: { accounts: true } }, "no-cache");
assert.equal(renewed.response.status, 201);

const kinds: string[] = [];
let cursor: string | undefined;
do {
  const query = { userId, order: "asc", limit: 2, cursor } as const;
  const page = await client.GET("/audit/events", { params: { query } });
  assert.ok(page.data);
  kinds.push(...page.data.items.map((event) => event.kind));
  cursor = page.data.nextCursor ?? undefined;
} while (cursor);
assert.deepEqual(kinds, ["token.minted", "token.reused", "token.minted"]);

const invalid = await issue({ userId: "", lifetime: -1 });
assert.equal(invalid.data, undefined);
const problem: components["schemas"]["Problem"] = invalid.error;
assert.equal(problem.type, "urn:token-vendor:problem:validation");
assert.deepEqual(problem.errors?.map((error) => error.pointer), ["#/userId", "#/lifetime"]);

const path = { id: renewed.data!.id };
const record = await client.POST("/bank/tokens/{id}/invalidate", { params: { path }, body: { reason: "used" } });
assert.equal(record.data?.invalidationReason, "used");
assert.equal(record.data?.isValid, false);
console.log(`got tokens, paged through ${kinds.length} events and parsed a problem`);
