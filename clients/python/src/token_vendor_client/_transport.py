"""Authentication, retries and errors of all calls."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

# Many tokens of one user are invalidated in up to 35 s.
_BULK_PATH, _BULK_TIMEOUT = "/bank/tokens/invalidate", 40.0
_NETWORK_PAUSE = 1.0


@dataclass(frozen=True)
class FieldError:
    """An invalid field of a request. One of `pointer`, `parameter` and `header` names it."""

    detail: str
    pointer: str | None = None
    parameter: str | None = None
    header: str | None = None


class ProblemError(Exception):
    """An error response. Programs decide by `slug`, the last part of the problem's `type`.

    `slug` is None if the response has no problem document, for example because a proxy sent it.
    """

    def __init__(self, response: httpx.Response) -> None:
        try:
            body = response.json()
        except ValueError:
            body = None
        problem: dict[str, Any] = body if isinstance(body, dict) else {}
        prefix, _, slug = str(problem.get("type")).rpartition(":")
        self.slug = slug if prefix == "urn:token-vendor:problem" else None
        self.status = response.status_code
        self.detail = str(problem.get("detail", ""))
        self.request_id = response.headers.get("X-Request-Id")
        names = ("detail", "pointer", "parameter", "header")
        self.errors = [FieldError(*map(error.get, names)) for error in problem.get("errors", [])]
        after = response.headers.get("Retry-After", "")
        self.retry_after = int(after) if after.isascii() and after.isdigit() else None
        super().__init__(f"{self.status} {self.slug}: {self.detail} (request {self.request_id})")

    @property
    def may_be_retried(self) -> bool:
        """True if the service allows a retry after `retry_after` seconds."""
        allowed = self.status in (429, 503, 504) or (self.status == 502 and self.slug == "upstream-failed")
        return allowed and self.retry_after is not None


class Transport(httpx.BaseTransport):
    """Sends requests until a response is final. Starts no attempt later than `retry_for` seconds after the first."""

    def __init__(self, inner: httpx.BaseTransport, authorization: Callable[[], str], retry_for: float) -> None:
        self._inner, self._authorization, self._retry_for = inner, authorization, retry_for

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        deadline = time.monotonic() + self._retry_for
        if request.url.path.endswith(_BULK_PATH):
            request.extensions["timeout"]["read"] = max(_BULK_TIMEOUT, request.extensions["timeout"]["read"])
        while True:
            request.headers["Authorization"] = self._authorization()
            try:
                response = self._inner.handle_request(request)
                response.read()
            except httpx.TransportError as error:
                unsent = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
                pause = _NETWORK_PAUSE if unsent or _may_repeat(request) else None
                failure: Exception = error
            else:
                if response.is_success:
                    return response
                failure = problem = ProblemError(response)
                pause = problem.retry_after if problem.may_be_retried else None
            if pause is None or time.monotonic() + pause > deadline:
                raise failure
            time.sleep(pause)

    def close(self) -> None:
        self._inner.close()


def _may_repeat(request: httpx.Request) -> bool:
    """Returns false if the service may have minted a token that a repeated request cannot reuse."""
    if request.method == "GET" or request.url.path.rstrip("/").rpartition("/")[2] != "tokens":
        return True
    no_reuse = json.loads(request.content).get("lifetime") == 0
    return not no_reuse and "no-cache" not in request.headers.get("Cache-Control", "")
