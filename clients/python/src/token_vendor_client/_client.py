"""The calls of the service."""

from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from importlib.metadata import version
from types import TracebackType
from typing import Self, TypeVar
from uuid import UUID

import httpx

from ._generated import AuthenticatedClient
from ._generated.api.audit import list_events
from ._generated.api.tokens import (
    get_token,
    invalidate_token,
    invalidate_tokens,
    issue_token,
    list_tokens,
    look_up_token,
)
from ._generated.models import (
    AccessRequest,
    AuditEvent,
    AuditEventPage,
    Country,
    EventKind,
    Invalidated,
    InvalidateToken,
    InvalidateTokenString,
    InvalidateUser,
    InvalidationReason,
    IssueToken,
    ListEventsOrder,
    LookUpToken,
    Token,
    TokenRecord,
    TokenRecordPage,
)
from ._generated.types import UNSET, Unset
from ._transport import Transport

T = TypeVar("T")


class Client:
    """A client of the service. Threads can share it. It does not cache tokens.

    Pass `api_key` and `api_secret`, or `bearer`, which returns the JWT for each attempt. `timeout` limits each attempt,
    in seconds. No attempt starts later than `retry_for` seconds after the first.

    Calls raise `ProblemError` for an error response and `httpx.TransportError` for a network error.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        api_secret: str | None = None,
        *,
        bearer: Callable[[], str] | None = None,
        timeout: float = 12.0,
        retry_for: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if bearer is not None and api_key is None and api_secret is None:
            authorization = _bearer(bearer)
        elif bearer is None and api_key is not None and api_secret is not None:
            authorization = _basic(api_key, api_secret)
        else:
            raise ValueError("pass api_key and api_secret, or bearer")
        self._http = httpx.Client(
            base_url=base_url.rstrip("/"),
            timeout=timeout,
            headers={"User-Agent": f"token-vendor-client-python/{version('token-vendor-client')}"},
            transport=Transport(transport or httpx.HTTPTransport(), authorization, retry_for),
        )
        # Only `self._http` sends requests, so the token and the address here have no effect.
        self._client = AuthenticatedClient(base_url, token="").set_httpx_client(self._http)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def issue(
        self,
        user_id: str,
        *,
        country: Country | str | None = None,
        bank: str | None = None,
        access: AccessRequest | None = None,
        lifetime: int | None = None,
        min_fresh: int | None = None,
        no_cache: bool = False,
    ) -> Token:
        """Returns a token for the user: one on record, or a new one.

        The token has at least `min_fresh` seconds left. `no_cache` requests a new token and needs the scope
        `tokens:renew`. `token_string` and `verification_url` of the token are secrets.
        """
        directives = ["no-cache"] if no_cache else []
        if min_fresh is not None:
            directives.append(f"min-fresh={min_fresh}")
        body = IssueToken(
            user_id,
            country=None if country is None else Country(country),
            bank=bank,
            access=_set(access),
            lifetime=_set(lifetime),
        )
        return _expect(Token, issue_token.sync(client=self._client, body=body, cache_control=", ".join(directives) or UNSET))

    def invalidate_used(self, token_id: UUID | str) -> TokenRecord:
        """Reports that the user finished the verification."""
        return self.invalidate(token_id, InvalidationReason.USED)

    def invalidate(self, token_id: UUID | str, reason: InvalidationReason) -> TokenRecord:
        """Invalidates a token. A repeated call succeeds, and the first reason stays."""
        body = InvalidateToken(InvalidationReason(reason))
        return _expect(TokenRecord, invalidate_token.sync(UUID(str(token_id)), client=self._client, body=body))

    def invalidate_user(self, user_id: str, reason: InvalidationReason) -> int:
        """Invalidates all valid tokens of a user. Returns the number that the last attempt invalidated."""
        body = InvalidateUser(user_id=user_id, reason=InvalidationReason(reason))
        return _expect(Invalidated, invalidate_tokens.sync(client=self._client, body=body)).invalidated

    def invalidate_token_string(self, token_string: str, reason: InvalidationReason) -> int:
        """Invalidates every token with this token string. Returns the number that the last attempt invalidated."""
        body = InvalidateTokenString(token_string=token_string, reason=InvalidationReason(reason))
        return _expect(Invalidated, invalidate_tokens.sync(client=self._client, body=body)).invalidated

    def look_up(self, token_string: str) -> TokenRecord:
        """Returns the record of a token string."""
        return _expect(TokenRecord, look_up_token.sync(client=self._client, body=LookUpToken(token_string)))

    def read(self, token_id: UUID | str) -> TokenRecord:
        """Returns the record of a token."""
        return _expect(TokenRecord, get_token.sync(UUID(str(token_id)), client=self._client))

    def tokens(
        self,
        *,
        user_id: str | None = None,
        country: Country | str | None = None,
        bank: str | None = None,
        is_valid: bool | None = None,
        from_: datetime | None = None,
        to: datetime | None = None,
        limit: int = 100,
    ) -> Iterator[TokenRecord]:
        """Iterates over the matching records, newest first. Loads pages of `limit` records."""
        cursor: str | Unset | None = UNSET
        while cursor is not None:
            result = list_tokens.sync(
                client=self._client,
                user_id=_set(user_id),
                country=UNSET if country is None else Country(country),
                bank=_set(bank),
                is_valid=_set(is_valid),
                from_=_set(from_),
                to=_set(to),
                limit=limit,
                cursor=cursor,
            )
            page = _expect(TokenRecordPage, result)
            yield from page.items
            cursor = page.next_cursor

    def events(
        self,
        *,
        user_id: str | None = None,
        token_id: UUID | str | None = None,
        client: str | None = None,
        kind: EventKind | str | Iterable[EventKind | str] | None = None,
        exclude_kind: EventKind | str | Iterable[EventKind | str] | None = None,
        request_id: str | None = None,
        fingerprint: str | None = None,
        from_: datetime | None = None,
        to: datetime | None = None,
        order: ListEventsOrder | str = ListEventsOrder.DESC,
        limit: int = 100,
    ) -> Iterator[AuditEvent]:
        """Iterates over the matching audit events. Loads pages of `limit` events. Each page is audited.

        An event matches if its kind is one of `kind`, or if there is none, and is not one of `exclude_kind`.
        """
        kinds, excluded = _kinds(kind), _kinds(exclude_kind)
        cursor: str | Unset | None = UNSET
        while cursor is not None:
            result = list_events.sync(
                client=self._client,
                user_id=_set(user_id),
                token_id=UNSET if token_id is None else UUID(str(token_id)),
                client_query=_set(client),
                kind=kinds,
                exclude_kind=excluded,
                request_id=_set(request_id),
                fingerprint=_set(fingerprint),
                from_=_set(from_),
                to=_set(to),
                order=ListEventsOrder(order),
                limit=limit,
                cursor=cursor,
            )
            page = _expect(AuditEventPage, result)
            yield from page.items
            cursor = page.next_cursor


def _bearer(token: Callable[[], str]) -> Callable[[], str]:
    return lambda: f"Bearer {token()}"


def _basic(key: str, secret: str) -> Callable[[], str]:
    value = "Basic " + b64encode(f"{key}:{secret}".encode()).decode()
    return lambda: value


def _set(value: T | None) -> T | Unset:
    return UNSET if value is None else value


def _kinds(value: EventKind | str | Iterable[EventKind | str] | None) -> list[EventKind] | Unset:
    if value is None:
        return UNSET
    return [EventKind(kind) for kind in ([value] if isinstance(value, str) else value)]


def _expect(kind: type[T], result: object) -> T:
    """Narrows the result of a generated call. Error responses were raised before."""
    if not isinstance(result, kind):
        raise TypeError(f"the response is no {kind.__name__}: its status is not documented")
    return result
