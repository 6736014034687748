import os
from base64 import b64encode

from provider import AuthenticatedClient
from provider.api.bank import bank_tokens_create
from provider.models import BankAccessRequest, BankToken, BankTokenCountryEnum, BankTokenRequest

credentials = f"{os.environ['API_KEY']}:{os.environ['API_SECRET']}"
client = AuthenticatedClient(os.environ["BASE_URL"], b64encode(credentials.encode()).decode(), prefix="Basic")

request = BankTokenRequest(
    f"provider-{os.getpid()}", country=BankTokenCountryEnum.LT, bank="Swedbank", access=BankAccessRequest(accounts=True)
)
tokens = []
for status in (201, 200):
    response = bank_tokens_create.sync_detailed(client=client, body=request)
    assert response.status_code == status and isinstance(response.parsed, BankToken), response
    tokens.append(response.parsed)
minted, reused = tokens
assert minted.is_valid and minted.access.accounts and minted.country is BankTokenCountryEnum.LT, minted
assert reused.token_string == minted.token_string and reused.expiration == minted.expiration, reused
any_country = bank_tokens_create.sync(client=client, body=BankTokenRequest(request.user_id))
assert isinstance(any_country, BankToken) and any_country.country is None and any_country.bank is None, any_country
print("minted and reused a token")
