"""The account in a signed token (JWT, RFC 7519), sent as `Authorization: Bearer`.

PyJWT verifies the signature, the issuer and the audience. What is decided here, because it must not be left
to the token: which key may verify it (`keys`), and which algorithms; that nothing in its header is critical
(RFC 7515, 4.1.11), since no extension is understood; and the times, by the clock handed in and as numbers
only.

A token that was verified is remembered for at most `REMEMBER_SECONDS`, never beyond its expiry nor a change
of the keys, so that the hot path is one look-up. No refusal repeats the token, or any part of it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jwt
import msgspec
from jwt.exceptions import InvalidSubjectError

from gateway import config, fetch
from gateway.errors import IdentityInvalid, IdentityMissing, IdentityUnavailable
from gateway.identity.header import Claims
from gateway.identity.keys import Keys

MAX_TOKEN_BYTES = 8192
MAX_REMEMBERED = 4096
REMEMBER_SECONDS = 60.0

_BEARER = re.compile(rb"bearer (?P<token>.+)", re.IGNORECASE | re.DOTALL)
_COMPACT = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")

_WHY: tuple[tuple[type[jwt.PyJWTError], str], ...] = (
    (jwt.InvalidSignatureError, "its signature does not fit"),
    (jwt.InvalidAudienceError, "it is meant for another audience (aud)"),
    (jwt.InvalidIssuerError, "it comes from another issuer (iss)"),
    (InvalidSubjectError, "its subject (sub) is not a string"),
)


class _Header(msgspec.Struct):
    """Of the token's header, what is looked at. Keys that it brings along (jwk, jku, x5c, x5u) are not."""

    alg: str
    kid: str | None = None
    crit: Any = msgspec.UNSET


_header = msgspec.json.Decoder(_Header)


def _refused(why: str) -> IdentityInvalid:
    return IdentityInvalid(f"The token was refused: {why}.")


class TokenIdentity:
    """See `Identity`. Waits only where a signing key must be fetched first."""

    def __init__(
        self,
        settings: config.Identity,
        id_pattern: str,
        keys: Keys,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._name = settings.header.encode()
        self.own_header = self._name.lower()
        self.challenge = b'Bearer realm="attachgate"'
        self._pattern = re.compile(id_pattern, re.ASCII)
        self._keys = keys
        self._clock = clock
        self._wall = wall
        # The header's exact bytes to (account, until), the oldest first, verified by this generation of keys.
        self._verified: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._generation = keys.generation

    def peek(self, peer_ip: str, claims: Claims) -> str | None:
        account_id = self._account(claims)
        if account_id is None and not self._keys.may_refresh():
            raise self._no_key()
        return account_id

    async def resolve(self, peer_ip: str, claims: Claims) -> str:
        account_id = self.peek(peer_ip, claims)
        if account_id is None:
            await self._keys.refresh()
            account_id = self._account(claims)
        if account_id is None:
            raise self._no_key()
        return account_id

    def forwarded_header(self, account_id: str) -> tuple[bytes, bytes]:
        return self._name, account_id.encode()

    async def start(self) -> None:
        await self._keys.start()

    async def reload(self) -> None:
        await self._keys.reload()

    async def close(self) -> None:
        await self._keys.close()

    def _account(self, claims: Claims) -> str | None:
        """The account, or None where the key that its token names is not here."""
        value = claims.authorization
        if value is None:
            raise IdentityMissing("The request has no Authorization header, so it is not known who asks.")
        if self._generation != self._keys.generation:
            self._verified.clear()
            self._generation = self._keys.generation
        known = self._verified.get(value)
        if known is not None and self._clock() < known[1]:
            return known[0]
        token = _bearer(value)
        key = self._key(token)
        if key is None:
            return None
        account_id, expires = self._claims(token, key)
        self._remember(value, account_id, expires)
        return account_id

    def _key(self, token: bytes) -> jwt.PyJWK | None:
        """The one key that this token must be signed with, or None where it is not here."""
        header = _decoded_header(token)
        if header.alg not in self._settings.algorithms:
            raise _refused("its algorithm (alg) is not one of those that the configuration allows")
        if header.crit is not msgspec.UNSET:
            raise _refused("its header demands an extension (crit), and none is supported")
        fitting = self._keys.fitting(header.kid, header.alg)
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise _refused("more than one key fits it; it must name its key (kid)")
        if header.kid is not None and self._keys.knows(header.kid):
            raise _refused("the key that it names (kid) is not for its algorithm (alg)")
        return None

    def _no_key(self) -> IdentityInvalid | IdentityUnavailable:
        """A key that is not in a set just read does not exist; one that is not in an old set may."""
        if self._keys.failing or not self._keys.loaded:
            return IdentityUnavailable("The keys to verify the token can't be had now; try again shortly.")
        return _refused("it is signed with a key (kid) that is not known")

    def _claims(self, token: bytes, key: jwt.PyJWK) -> tuple[str, float]:
        """The account that the token speaks for, and when it expires, in seconds since the epoch."""
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                options={
                    "require": ["exp", "iss", "aud"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "enforce_minimum_key_length": True,
                },
            )
        except jwt.MissingRequiredClaimError as error:
            raise _refused(f"it has no {error.claim}") from None
        except jwt.PyJWTError as error:
            why = next((why for kind, why in _WHY if isinstance(error, kind)), "it is malformed")
            raise _refused(why) from None
        expires = self._checked_times(claims)
        account_id = claims.get(self._settings.claim)
        if not isinstance(account_id, str) or self._pattern.fullmatch(account_id) is None:
            raise _refused(f"its claim {self._settings.claim} is not an account id")
        return account_id, expires

    def _checked_times(self, claims: dict[str, Any]) -> float:
        now, leeway = self._wall(), self._settings.leeway_seconds
        expires, begins = _seconds(claims, "exp"), _seconds(claims, "nbf") if "nbf" in claims else 0.0
        if expires + leeway <= now:
            raise _refused("it has expired (exp); get a new one")
        if begins - leeway > now:
            raise _refused("it does not hold yet (nbf)")
        return expires

    def _remember(self, value: str, account_id: str, expires: float) -> None:
        left = expires + self._settings.leeway_seconds - self._wall()
        self._verified.pop(value, None)
        self._verified[value] = account_id, self._clock() + min(REMEMBER_SECONDS, left)
        if len(self._verified) > MAX_REMEMBERED:
            self._verified.popitem(last=False)


def _bearer(value: str) -> bytes:
    match = _BEARER.fullmatch(value.encode())
    if match is None:
        raise IdentityInvalid("The Authorization header does not carry a Bearer token (RFC 6750).")
    token = match["token"]
    if len(token) > MAX_TOKEN_BYTES:
        raise _refused(f"it is longer than {MAX_TOKEN_BYTES} bytes")
    if _COMPACT.fullmatch(token) is None:
        raise _refused("it is not a signed JWT in its compact form, three parts joined by dots")
    return token


def _decoded_header(token: bytes) -> _Header:
    part = token.partition(b".")[0]
    try:
        header = fetch.decode(_header, base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4)))
    except binascii.Error:
        raise _refused("its header is malformed") from None
    if isinstance(header, fetch.Failure):
        raise _refused("its header is malformed")
    return header


def _seconds(claims: dict[str, Any], name: str) -> float:
    """A NumericDate (RFC 7519, 2): a number, and neither a string of one nor true."""
    value = claims[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e12:
        raise _refused(f"its {name} is not a number of seconds")
    return float(value)
