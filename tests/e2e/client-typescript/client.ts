import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { Client, ProblemError } from "token-vendor-client";

const baseUrl = process.env.BASE_URL!;
const [apiKey, apiSecret] = [process.env.API_KEY!, process.env.API_SECRET!];
const client = new Client({ baseUrl, apiKey, apiSecret });
const userId = `client-typescript-${process.pid}`;
const collect = async <T>(pages: AsyncIterable<T>) => {
  const all: T[] = [];
  for await (const one of pages) all.push(one);
  return all;
};
const problemOf = async (call: Promise<unknown>): Promise<ProblemError> => {
  const error: unknown = await call.then(() => assert.fail("the call succeeded"), (error: unknown) => error);
  assert.ok(error instanceof ProblemError, String(error));
  return error;
};

const request = { userId, country: "LT", bank: "Swedbank", access: { accounts: true } } as const;
const minted = await client.issue({ ...request, lifetime: 7200 });
assert.deepEqual([minted.outcome, minted.lifetime], ["minted", 7200]);
const reused = await client.issue({ ...request, minFresh: 600 });
assert.equal(reused.id, minted.id);
const renewed = await client.issue({ ...request, noCache: true });
assert.notEqual(renewed.id, minted.id);
assert.equal((await client.issue({ userId })).country, null);

assert.equal((await client.lookUp(renewed.tokenString)).id, renewed.id);
assert.equal((await client.invalidateUsed(renewed.id)).invalidationReason, "used");
assert.equal((await client.read(renewed.id)).isValid, false);
assert.equal((await client.invalidate(minted.id, "requested")).invalidationReason, "requested");
assert.equal((await collect(client.tokens({ userId, limit: 1 }))).length, 3);
assert.equal(await client.invalidateTokenString(minted.tokenString, "compromised"), 0);
assert.equal(await client.invalidateUser(userId, "requested"), 1);
const kinds = (await collect(client.events({ userId, order: "asc", limit: 2 }))).map((event) => event.kind);
assert.deepEqual(kinds.slice(0, 4), ["token.minted", "token.reused", "token.minted", "token.minted"]);
assert.equal(kinds.filter((kind) => kind === "token.invalidated").length, 3);
const ofKinds = client.events({ userId, kind: ["token.minted", "token.invalidated"], excludeKind: ["token.minted"], limit: 2 });
assert.deepEqual((await collect(ofKinds)).map((event) => event.kind), Array(3).fill("token.invalidated"));

const invalid = await problemOf(client.issue({ userId: "", lifetime: -1 }));
assert.deepEqual([invalid.status, invalid.slug], [400, "validation"]);
assert.ok(invalid.requestId);
assert.deepEqual(invalid.errors.map((error) => error.pointer), ["#/userId", "#/lifetime"]);
const wrong = new Client({ baseUrl, apiKey, apiSecret: "wrong" });
assert.equal((await problemOf(wrong.read(minted.id))).slug, "unauthenticated");

/** Returns the given answers, one per request: a status with a slug, a Retry-After, or a lost connection. */
type Answer = [status: number, slug: string, after?: string] | "lost";
let answers: Answer[] = [];
let received: IncomingMessage[] = [];
const stub = createServer((request: IncomingMessage, response: ServerResponse) => {
  received.push(request);
  const answer = answers.shift() ?? "lost";
  if (answer === "lost") return void request.socket.destroy();
  const [status, slug, after] = answer;
  response.writeHead(status, after === undefined ? {} : { "Retry-After": after });
  const problem = { type: `urn:token-vendor:problem:${slug}`, title: "", status, detail: "", requestId: "r" };
  response.end(JSON.stringify(status === 200 ? { invalidated: 7 } : problem));
});
await new Promise<void>((resolve) => stub.listen(0, "127.0.0.1", resolve));
const stubUrl = `http://127.0.0.1:${(stub.address() as AddressInfo).port}`;
const answering = (...next: Answer[]) => ([answers, received] = [next, []]);
const stubbed = new Client({ baseUrl: stubUrl, apiKey, apiSecret });

const { version } = JSON.parse(readFileSync("node_modules/token-vendor-client/package.json", "utf8"));
const jwts = ["first", "second"];
const bearing = new Client({ baseUrl: stubUrl, bearer: () => jwts.shift()! });
answering([503, "overloaded", "1"], [200, ""]);
assert.equal(await bearing.invalidateUser("u", "used"), 7);
assert.deepEqual(received.map((request) => request.headers.authorization), ["Bearer first", "Bearer second"]);
assert.equal(received[0]!.headers["user-agent"], `token-vendor-client-typescript/${version}`);

const cases: [Answer, boolean][] = [
  [[429, "rate-limited", "1"], true],
  [[504, "upstream-timeout", "1"], true],
  [[502, "upstream-failed", "1"], true],
  [[502, "upstream-refused", "1"], false],
  [[503, "overloaded"], false],
  [[429, "mint-quota-spent", "3000"], false],
  [[500, "internal", "1"], false],
  [[408, "request-timeout", "1"], false],
  [[422, "upstream-rejected", "1"], false],
];
for (const [answer, isRetried] of cases) {
  answering(answer, [200, ""]);
  const call = stubbed.invalidateUser("u", "used");
  if (isRetried) assert.equal(await call, 7);
  else assert.equal((await problemOf(call)).slug, answer[1]);
  assert.equal(received.length, isRetried ? 2 : 1, answer[1]);
}

for (const [options, attempts] of [[{}, 2], [{ noCache: true }, 1], [{ lifetime: 0 }, 1]] as const) {
  answering("lost", [401, "unauthenticated"]);
  await assert.rejects(stubbed.issue({ userId: "u", ...options }));
  assert.equal(received.length, attempts, JSON.stringify(options));
}

answering([503, "overloaded", "1"], [503, "overloaded", "1"], [503, "overloaded", "1"]);
const hasty = new Client({ baseUrl: stubUrl, apiKey, apiSecret, retryForMs: 1500 });
assert.equal((await problemOf(hasty.read(minted.id))).status, 503);
assert.equal(received.length, 2);
stub.close();
console.log(`made every call, paged through ${kinds.length} events and retried where the contract allows it`);
