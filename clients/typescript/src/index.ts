import type { components, operations } from "./api.js";
import { ProblemError } from "./errors.js";

export { ProblemError, type FieldError } from "./errors.js";

type Schemas = components["schemas"];
export type Token = Schemas["Token"];
export type TokenRecord = Schemas["TokenRecord"];
export type AuditEvent = Schemas["AuditEvent"];
export type InvalidationReason = Schemas["InvalidationReason"];
export type TokenFilter = Omit<NonNullable<operations["list_tokens"]["parameters"]["query"]>, "cursor">;
export type EventFilter = Omit<NonNullable<operations["list_events"]["parameters"]["query"]>, "cursor">;

export type TokenRequest = Schemas["IssueToken"] & {
  /** The least remaining life of the token, in seconds. */
  minFresh?: number;
  /** Requests a new token. It needs the scope `tokens:renew`. */
  noCache?: boolean;
};

export type Credentials =
  | { apiKey: string; apiSecret: string }
  /** Returns the JWT for each attempt. */
  | { bearer: () => string | Promise<string> };

export type Options = Credentials & {
  baseUrl: string;
  /** The time limit of each attempt, in milliseconds. 12,000 by default. */
  timeoutMs?: number;
  /** No attempt starts later than this time after the first, in milliseconds. 30,000 by default. */
  retryForMs?: number;
};

const VERSION = "0.1.0";
// Many tokens of one user are invalidated in up to 35 s.
const BULK_TIMEOUT_MS = 40_000;
const NETWORK_PAUSE_MS = 1_000;

type Call = { body?: unknown; headers?: Record<string, string>; timeoutMs?: number; mayRepeat?: boolean };

/**
 * A client of the service. It does not cache tokens.
 *
 * Calls throw `ProblemError` for an error response, and the error of `fetch` for a network error or a timeout.
 */
export class Client {
  readonly #options: Options;

  constructor(options: Options) {
    this.#options = options;
  }

  /**
   * Returns a token for the user: one on record, or a new one. `tokenString` and `verificationUrl` of the token are
   * secrets.
   */
  issue({ minFresh, noCache, ...body }: TokenRequest): Promise<Token> {
    const directives = [...(noCache ? ["no-cache"] : []), ...(minFresh === undefined ? [] : [`min-fresh=${minFresh}`])];
    const headers: Record<string, string> = directives.length > 0 ? { "Cache-Control": directives.join(", ") } : {};
    // A repeated request cannot reuse the token that these mint.
    const mayRepeat = !noCache && body.lifetime !== 0;
    return this.#send("POST", "/bank/tokens/", { body, headers, mayRepeat });
  }

  /** Reports that the user finished the verification. */
  invalidateUsed(tokenId: string): Promise<TokenRecord> {
    return this.invalidate(tokenId, "used");
  }

  /** Invalidates a token. A repeated call succeeds, and the first reason stays. */
  invalidate(tokenId: string, reason: InvalidationReason): Promise<TokenRecord> {
    return this.#send("POST", `/bank/tokens/${encodeURIComponent(tokenId)}/invalidate`, { body: { reason } });
  }

  /** Invalidates all valid tokens of a user. Returns the number that the last attempt invalidated. */
  invalidateUser(userId: string, reason: InvalidationReason): Promise<number> {
    return this.#invalidateAll({ userId, reason });
  }

  /** Invalidates every token with this token string. Returns the number that the last attempt invalidated. */
  invalidateTokenString(tokenString: string, reason: InvalidationReason): Promise<number> {
    return this.#invalidateAll({ tokenString, reason });
  }

  /** Returns the record of a token string. */
  lookUp(tokenString: string): Promise<TokenRecord> {
    return this.#send("POST", "/bank/tokens/lookup", { body: { tokenString } });
  }

  /** Returns the record of a token. */
  read(tokenId: string): Promise<TokenRecord> {
    return this.#send("GET", `/bank/tokens/${encodeURIComponent(tokenId)}`);
  }

  /** Iterates over the matching records, newest first. Loads pages of `limit` records. */
  tokens(filter: TokenFilter = {}): AsyncGenerator<TokenRecord, void> {
    return this.#pages<TokenRecord>("/bank/tokens/", filter);
  }

  /** Iterates over the matching audit events. Loads pages of `limit` events. Each page is audited. */
  events(filter: EventFilter = {}): AsyncGenerator<AuditEvent, void> {
    return this.#pages<AuditEvent>("/audit/events", filter);
  }

  async #invalidateAll(body: Schemas["InvalidateTokens"]): Promise<number> {
    const timeoutMs = Math.max(BULK_TIMEOUT_MS, this.#options.timeoutMs ?? 0);
    const result = await this.#send<Schemas["Invalidated"]>("POST", "/bank/tokens/invalidate", { body, timeoutMs });
    return result.invalidated;
  }

  async *#pages<T>(path: string, filter: Record<string, unknown>): AsyncGenerator<T, void> {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(filter))
      if (value !== undefined) for (const one of [value].flat()) query.append(name, String(one));
    for (let cursor: string | null = ""; cursor !== null; ) {
      const page: { items: T[]; nextCursor: string | null } = await this.#send("GET", `${path}?${query}`);
      yield* page.items;
      cursor = page.nextCursor;
      query.set("cursor", cursor ?? "");
    }
  }

  /** Sends a request until its response is final. */
  async #send<T>(method: string, path: string, call: Call = {}): Promise<T> {
    const { timeoutMs = 12_000, retryForMs = 30_000 } = this.#options;
    const url = this.#options.baseUrl.replace(/\/+$/, "") + path;
    const deadline = performance.now() + retryForMs;
    for (;;) {
      const headers = {
        ...call.headers,
        Authorization: await this.#authorization(),
        "User-Agent": `token-vendor-client-typescript/${VERSION}`,
        ...(call.body === undefined ? {} : { "Content-Type": "application/json" }),
      };
      const signal = AbortSignal.timeout(call.timeoutMs ?? timeoutMs);
      const init = { method, headers, signal, ...(call.body === undefined ? {} : { body: JSON.stringify(call.body) }) };
      let pause: number | undefined;
      let failure: unknown;
      let answer: { response: Response; text: string } | undefined;
      try {
        const response = await fetch(url, init);
        answer = { response, text: await response.text() };
      } catch (error) {
        failure = error;
        if (call.mayRepeat ?? true) pause = NETWORK_PAUSE_MS;
      }
      if (answer?.response.ok) return JSON.parse(answer.text) as T;
      if (answer) {
        const problem = new ProblemError(answer.response, answer.text);
        failure = problem;
        if (problem.mayBeRetried) pause = (problem.retryAfter ?? 0) * 1000;
      }
      if (pause === undefined || performance.now() + pause > deadline) throw failure;
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }

  async #authorization(): Promise<string> {
    const options = this.#options;
    if ("bearer" in options) return `Bearer ${await options.bearer()}`;
    const bytes = new TextEncoder().encode(`${options.apiKey}:${options.apiSecret}`);
    return `Basic ${btoa(String.fromCharCode(...bytes))}`;
  }
}
