import type { components } from "./api.js";

type Problem = components["schemas"]["Problem"];

/** An invalid field of a request. One of `pointer`, `parameter` and `header` names it. */
export type FieldError = NonNullable<Problem["errors"]>[number];

/** An error response. Programs decide by `slug`, the last part of the problem's `type`. */
export class ProblemError extends Error {
  override readonly name = "ProblemError";
  readonly status: number;
  /** Undefined if the response has no problem document, for example because a proxy sent it. */
  readonly slug: string | undefined;
  readonly detail: string;
  readonly requestId: string | undefined;
  readonly errors: readonly FieldError[];
  /** The seconds of `Retry-After`. */
  readonly retryAfter: number | undefined;

  constructor(response: Response, body: string) {
    const problem = parse(body);
    const slug = /^urn:token-vendor:problem:(.+)$/.exec(problem.type ?? "")?.[1];
    const detail = problem.detail ?? "";
    const requestId = response.headers.get("X-Request-Id") ?? undefined;
    super(`${response.status} ${slug}: ${detail} (request ${requestId})`);
    [this.status, this.slug, this.detail, this.requestId] = [response.status, slug, detail, requestId];
    this.errors = problem.errors ?? [];
    const after = response.headers.get("Retry-After") ?? "";
    this.retryAfter = /^\d+$/.test(after) ? Number(after) : undefined;
  }

  /** True if the service allows a retry after `retryAfter` seconds. */
  get mayBeRetried(): boolean {
    const allowed = [429, 503, 504].includes(this.status) || (this.status === 502 && this.slug === "upstream-failed");
    return allowed && this.retryAfter !== undefined;
  }
}

function parse(body: string): Partial<Problem> {
  try {
    const value: unknown = JSON.parse(body);
    return typeof value === "object" && value !== null ? value : {};
  } catch {
    return {};
  }
}
