"""API tokens: what they look like, how one is made, and what of it may be stored.

A token is `hvs_`, 43 base64url characters (256 random bits) and 6 hexadecimal characters that
check the rest: a scanner recognises a leaked one, and a typing error is told from a revoked token
without asking the database. Only the SHA-256 digest is ever stored; with 256 random bits a slow
hash would protect nothing more.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

_PREFIX = "hvs_"
_CHECK_DIGITS = 6
_SHAPE = re.compile(r"hvs_[A-Za-z0-9_-]{43}[0-9a-f]{6}")


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode("ascii")).hexdigest()[:_CHECK_DIGITS]


def new_token() -> str:
    """A fresh token, 53 characters. Shown once to its owner, never stored."""
    body = _PREFIX + secrets.token_urlsafe(32)
    return body + _checksum(body)


def digest(token: str) -> str:
    """What the store keeps: SHA-256 of the whole token, 64 hexadecimal characters."""
    return hashlib.sha256(token.encode()).hexdigest()


def looks_valid(token: str) -> bool:
    """Whether `token` has the shape and checksum of one of ours; says nothing of its rights."""
    if _SHAPE.fullmatch(token) is None:
        return False
    body, check = token[:-_CHECK_DIGITS], token[-_CHECK_DIGITS:]
    return hmac.compare_digest(_checksum(body), check)
