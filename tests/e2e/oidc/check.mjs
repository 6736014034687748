// Two clients get JWTs of oidc-provider by client_credentials and call a service of their own. Then the issuer changes
// its keys, and stops.

import assert from "node:assert/strict";
import { spawn, execFileSync } from "node:child_process";
import { generateKeyPairSync } from "node:crypto";
import { chmodSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { pathToFileURL } from "node:url";

const require = createRequire(process.env.TOOLS + "/");
const { Provider } = await import(pathToFileURL(require.resolve("oidc-provider")));

const TARGET = process.env.CARGO_TARGET_DIR ?? "target";
const PROGRAM = `${TARGET}/debug/token-vendor`;
const AUDIENCE = "token-vendor";
const ALGORITHMS = { RS256: ["rsa", { modulusLength: 2048 }], ES256: ["ec", { namedCurve: "P-256" }], EdDSA: ["ed25519", {}] };

function privateKey(algorithm, kid) {
  const { privateKey } = generateKeyPairSync(...ALGORITHMS[algorithm]);
  return { ...privateKey.export({ format: "jwk" }), kid, alg: algorithm, use: "sig" };
}

/** An issuer at this address whose access tokens for AUDIENCE are JWTs. */
function provider(issuer, algorithm, keys) {
  const client = (client_id) => ({
    client_id, client_secret: "secret", grant_types: ["client_credentials"], redirect_uris: [], response_types: [],
    id_token_signed_response_alg: algorithm,
  });
  const server = { scope: "audit:read", audience: AUDIENCE, accessTokenTTL: 600, accessTokenFormat: "jwt", jwt: { sign: { alg: algorithm } } };
  return new Provider(issuer, {
    clients: [client("checkout"), client("stranger")],
    jwks: { keys },
    scopes: ["audit:read"],
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_, resource) => ({ ...server, audience: resource === "urn:other" ? "other" : AUDIENCE }),
      },
    },
  });
}

let handler;
const http = createServer((request, response) => handler(request, response));
await new Promise((resolve) => http.listen(0, "127.0.0.1", resolve));
const issuer = `http://127.0.0.1:${http.address().port}`;
const use = (algorithm, ...keys) => (handler = provider(issuer, algorithm, keys).callback());

async function getToken(client, resource = "urn:vendor") {
  const body = new URLSearchParams({ grant_type: "client_credentials", resource, scope: "audit:read" });
  const headers = { Authorization: "Basic " + btoa(`${client}:secret`) };
  const answer = await (await fetch(`${issuer}/token`, { method: "POST", headers, body })).json();
  assert.ok(answer.access_token, JSON.stringify(answer));
  return answer.access_token;
}

use("RS256", privateKey("RS256", "first"));
const folder = mkdtempSync(`${tmpdir()}/token-vendor-oidc-`);
// Postgres runs as another user where this is root.
chmodSync(folder, 0o755);
const service = spawn(PROGRAM, [
  "dev", "--listen", "127.0.0.1:0", "--sandbox-listen", "127.0.0.1:0", "--data-dir", `${folder}/data`,
  "--auth-oidc-issuer", issuer, "--auth-oidc-audience", AUDIENCE,
], { stdio: ["ignore", "pipe", "pipe"] });
const stopped = new Promise((resolve) => service.on("exit", resolve));
try {
  let output = "";
  const base = await new Promise((resolve, reject) => {
    service.on("exit", () => reject(new Error(output)));
    for (const stream of [service.stdout, service.stderr]) stream.on("data", (chunk) => {
      output += chunk;
      const address = output.match(/^token-vendor listens on (\S+);/m)?.[1];
      if (address) resolve(address);
    });
  });
  // Line 5 of postmaster.pid is the folder of the socket.
  const socket = readFileSync(`${folder}/data/pgdata/postmaster.pid`, "utf8").split("\n")[4];
  const DATABASE_URL = `postgresql:///postgres?host=${socket}&port=5432&user=postgres`;
  const create = ["client", "create", "--name", "checkout", "--scope", "tokens:read", "--oidc-subject", "checkout"];
  execFileSync(PROGRAM, create, { env: { ...process.env, DATABASE_URL } });

  const call = async (token, path = "/bank/tokens/") =>
    (await fetch(base + path, { headers: { Authorization: `Bearer ${token}` } })).status;

  const first = await getToken("checkout");
  assert.equal(await call(first), 200);
  assert.equal(await call(first, "/audit/events"), 403, "a scope of the token grants nothing");
  assert.equal(await call(await getToken("stranger")), 401, "no client has this subject");
  assert.equal(await call(await getToken("checkout", "urn:other")), 401, "another audience");

  // The second key is new to the service. It reads the keys again.
  use("ES256", privateKey("ES256", "second"));
  assert.equal(await call(await getToken("checkout")), 200);
  const unused = await getToken("checkout");
  // Another new key within a minute does not make it read them again.
  use("EdDSA", privateKey("EdDSA", "third"));
  assert.equal(await call(await getToken("checkout")), 401);

  http.close();
  http.closeAllConnections();
  assert.equal(await call(unused), 200, "the issuer is down");
} finally {
  service.kill();
  await stopped;
  rmSync(folder, { recursive: true });
}
console.log("bearer tokens of oidc-provider work");
