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

credentials = f"{os.environ['API_KEY']}:{os.environ['API_SECRET']}"
client = AuthenticatedClient(os.environ["BASE_URL"], b64encode(credentials.encode()).decode(), prefix="Basic")

user_id = f"python-{os.getpid()}"
assert IssueToken(user_id).to_dict() == {"userId": user_id}
request = IssueToken(user_id, country=Country.LT, bank="Swedbank", access=AccessRequest(accounts=True))
minted = issue_token.sync_detailed(client=client, body=request)
assert minted.status_code == 201 and isinstance(minted.parsed, Token), minted
assert minted.parsed.outcome is TokenOutcome.MINTED and minted.parsed.country is Country.LT
reused = issue_token.sync_detailed(client=client, body=request, cache_control="min-fresh=60")
assert reused.status_code == 200 and reused.parsed.token_string == minted.parsed.token_string, reused
any_country = issue_token.sync(client=client, body=IssueToken(user_id))
assert isinstance(any_country, Token) and any_country.country is None, any_country

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

request = InvalidateUser(user_id=user_id, reason=InvalidationReason.REQUESTED)
result = invalidate_tokens.sync(client=client, body=request)
assert result.invalidated == 2, result
print(f"got tokens, paged through {len(kinds)} events and parsed a problem")
