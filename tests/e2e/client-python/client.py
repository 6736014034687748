import json
import os
from collections.abc import Callable

import httpx
from token_vendor_client import AccessRequest, Client, Country, InvalidationReason, ProblemError

base_url, key, secret = os.environ["BASE_URL"], os.environ["API_KEY"], os.environ["API_SECRET"]
user_id = f"client-python-{os.getpid()}"


def problem_of(call: Callable[[], object]) -> ProblemError:
    try:
        call()
    except ProblemError as problem:
        return problem
    raise AssertionError("the call succeeded")


with Client(base_url, key, secret) as client:
    minted = client.issue(user_id, country="LT", bank="Swedbank", access=AccessRequest(accounts=True), lifetime=7200)
    assert (minted.outcome, minted.country, minted.lifetime) == ("minted", Country.LT, 7200), minted.outcome
    reused = client.issue(user_id, country=Country.LT, bank="Swedbank", access=AccessRequest(accounts=True), min_fresh=600)
    assert reused.id == minted.id
    renewed = client.issue(user_id, country="LT", bank="Swedbank", access=AccessRequest(accounts=True), no_cache=True)
    assert renewed.id != minted.id
    assert client.issue(user_id).country is None

    assert client.look_up(renewed.token_string).id == renewed.id
    assert client.invalidate_used(str(renewed.id)).invalidation_reason == "used"
    assert client.read(renewed.id).is_valid is False
    assert client.invalidate(minted.id, InvalidationReason.REQUESTED).invalidation_reason == "requested"
    assert len(list(client.tokens(user_id=user_id, limit=1))) == 3
    assert client.invalidate_token_string(minted.token_string, InvalidationReason.COMPROMISED) == 0
    assert client.invalidate_user(user_id, InvalidationReason.REQUESTED) == 1
    kinds = [event.kind for event in client.events(user_id=user_id, order="asc", limit=2)]
    assert kinds[:4] == ["token.minted", "token.reused", "token.minted", "token.minted"], kinds
    assert kinds.count("token.invalidated") == 3, kinds
    of_kinds = client.events(user_id=user_id, kind=["token.minted", "token.invalidated"], exclude_kind="token.minted", limit=2)
    assert [event.kind for event in of_kinds] == ["token.invalidated"] * 3

    problem = problem_of(lambda: client.issue("", lifetime=-1))
    assert (problem.status, problem.slug) == (400, "validation") and problem.request_id
    assert [error.pointer for error in problem.errors] == ["#/userId", "#/lifetime"], problem.errors

assert problem_of(lambda: Client(base_url, key, "wrong").read(minted.id)).slug == "unauthenticated"


class Stub(httpx.BaseTransport):
    """Returns the given answers, one per request: a status with a slug, a Retry-After, or a network error."""

    def __init__(self, *answers: tuple[int, str, str | None] | Exception) -> None:
        self.answers, self.requests = list(answers), list[httpx.Request]()
        self.authorizations = list[str]()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.authorizations.append(request.headers["Authorization"])
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, slug, after = answer
        if status == 200:
            return httpx.Response(200, json={"invalidated": 7})
        body = {"type": f"urn:token-vendor:problem:{slug}", "title": "", "status": status, "detail": "", "requestId": "r"}
        return httpx.Response(status, headers={} if after is None else {"Retry-After": after}, content=json.dumps(body))


done = (200, "", None)
lost = httpx.ReadError("lost")
jwts = iter(("first", "second"))
stub = Stub((503, "overloaded", "1"), done)
client = Client("http://stub", bearer=lambda: next(jwts), transport=stub)
assert client.invalidate_user("u", InvalidationReason.USED) == 7
assert stub.authorizations == ["Bearer first", "Bearer second"]
assert stub.requests[0].headers["User-Agent"] == "token-vendor-client-python/0.1.0"
assert stub.requests[0].extensions["timeout"]["read"] == 40

for status, slug, after, is_retried in [
    (429, "rate-limited", "1", True),
    (504, "upstream-timeout", "1", True),
    (502, "upstream-failed", "1", True),
    (502, "upstream-refused", "1", False),
    (503, "overloaded", None, False),
    (429, "mint-quota-spent", "3000", False),
    (500, "internal", "1", False),
    (408, "request-timeout", "1", False),
    (422, "upstream-rejected", "1", False),
]:
    stub = Stub((status, slug, after), done)
    client = Client("http://stub", key, secret, transport=stub)
    if is_retried:
        assert client.invalidate_user("u", InvalidationReason.USED) == 7, slug
    else:
        assert problem_of(lambda: client.invalidate_user("u", InvalidationReason.USED)).slug == slug
    assert len(stub.requests) == 1 + is_retried, slug

for no_cache, lifetime, attempts in ((False, None, 2), (True, None, 1), (False, 0, 1)):
    stub = Stub(lost, (401, "unauthenticated", None))
    client = Client("http://stub", key, secret, transport=stub)
    try:
        client.issue("u", no_cache=no_cache, lifetime=lifetime)
    except (ProblemError, httpx.ReadError):
        pass
    assert len(stub.requests) == attempts, (no_cache, lifetime)

stub = Stub(*[(503, "overloaded", "1")] * 9)
assert problem_of(lambda: Client("http://stub", key, secret, retry_for=1.5, transport=stub).read(minted.id)).status == 503
assert len(stub.requests) == 2
print(f"made every call, paged through {len(kinds)} events and retried where the contract allows it")
