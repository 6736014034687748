import os
from base64 import b64encode

from vendor import AuthenticatedClient
from vendor.api.audit import list_events
from vendor.api.tokens import invalidate_tokens, issue_token
from vendor.models import (
    AccessRequest,
    Country,
    InvalidateUser,
    InvalidationReason,
    IssueToken,
    ListEventsOrder,
    Problem,
    ProblemType,
    Token,
    TokenOutcome,
)
from vendor.types import UNSET

pair = f"{os.environ['API_KEY']}:{os.environ['API_SECRET']}"
client = AuthenticatedClient(os.environ["BASE_URL"], b64encode(pair.encode()).decode(), prefix="Basic")

user_id = f"python-{os.getpid()}"
order = IssueToken(user_id, country=Country.LT, bank="Swedbank", access=AccessRequest(accounts=True))
minted = issue_token.sync_detailed(client=client, body=order)
assert minted.status_code == 201 and isinstance(minted.parsed, Token), minted
assert minted.parsed.outcome is TokenOutcome.MINTED and minted.parsed.country is Country.LT
reused = issue_token.sync_detailed(client=client, body=order, cache_control="min-fresh=60")
assert reused.status_code == 200 and reused.parsed.token_string == minted.parsed.token_string, reused
anywhere = issue_token.sync(client=client, body=IssueToken(user_id))
assert isinstance(anywhere, Token) and anywhere.country is None, anywhere

kinds, cursor = [], UNSET
while cursor is not None:
    page = list_events.sync(client=client, user_id=user_id, order=ListEventsOrder.ASC, limit=2, cursor=cursor)
    kinds += [event.kind for event in page.items]
    cursor = page.next_cursor
assert kinds == ["token.minted", "token.reused", "token.minted"], kinds

problem = issue_token.sync(client=client, body=IssueToken("", lifetime=-1))
assert isinstance(problem, Problem), problem
assert problem.type_ is ProblemType.URNTOKEN_VENDORPROBLEMVALIDATION, problem
assert [error.pointer for error in problem.errors] == ["#/userId", "#/lifetime"], problem

whose = InvalidateUser(user_id=user_id, reason=InvalidationReason.REQUESTED)
ended = invalidate_tokens.sync(client=client, body=whose)
assert ended.invalidated == 2, ended
print(f"vended, paged through {len(kinds)} events and read a problem")
