import os
from base64 import b64encode

from provider import AuthenticatedClient
from provider.api.bank import bank_tokens_create
from provider.models import BankAccessRequest, BankToken, BankTokenCountryEnum, BankTokenRequest

pair = f"{os.environ['API_KEY']}:{os.environ['API_SECRET']}"
client = AuthenticatedClient(os.environ["BASE_URL"], b64encode(pair.encode()).decode(), prefix="Basic")

order = BankTokenRequest(
    f"provider-{os.getpid()}", country=BankTokenCountryEnum.LT, bank="Swedbank", access=BankAccessRequest(accounts=True)
)
tokens = []
for status in (201, 200):
    answer = bank_tokens_create.sync_detailed(client=client, body=order)
    assert answer.status_code == status and isinstance(answer.parsed, BankToken), answer
    tokens.append(answer.parsed)
minted, reused = tokens
assert minted.is_valid and minted.access.accounts and minted.country is BankTokenCountryEnum.LT, minted
assert reused.token_string == minted.token_string and reused.expiration == minted.expiration, reused
anywhere = bank_tokens_create.sync(client=client, body=BankTokenRequest(order.user_id))
assert isinstance(anywhere, BankToken) and anywhere.country is None and anywhere.bank is None, anywhere
print("minted and reused a token")
