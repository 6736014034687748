"""A client of the token-vendor service."""

from ._client import Client
from ._generated.models import AccessRequest, AuditEvent, Country, InvalidationReason, Token, TokenRecord
from ._transport import FieldError, ProblemError

__all__ = [
    "AccessRequest",
    "AuditEvent",
    "Client",
    "Country",
    "FieldError",
    "InvalidationReason",
    "ProblemError",
    "Token",
    "TokenRecord",
]
