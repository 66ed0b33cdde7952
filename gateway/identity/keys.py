"""The keys that tokens are verified with: a JSON Web Key Set (RFC 7517), kept fresh.

Promises:
- A key verifies only the algorithms of its own type, curve and `alg`, and of those only the configured ones.
  So a public key never serves as an HMAC secret, whatever a token's header says.
- The set is read again regularly, on `reload`, and when a token names a key that is not in it, the last at
  most every `REFRESH_SECONDS`: a flood of invented key ids costs its source nothing.
- While the source fails, the keys read last stay in use. A well-formed set without a usable key is no
  failure: it means that no token is good any more.

Only what verifies is taken from a key, so that a private one, published by mistake, is not kept in
memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import jwt
import msgspec
import structlog
from yarl import URL

from gateway import fetch
from gateway.tasks import Tasks

log = structlog.get_logger(__name__)

LIMIT_BYTES = 256 * 1024
MAX_KEYS = 100
FETCH_TIMEOUT_SECONDS = 5.0
REFRESH_SECONDS = 10.0
"""The shortest time between two reads that tokens cause."""
RETRY_SECONDS = 2.0
"""The same, and the time between two regular reads, while the source fails."""

FITS: dict[tuple[str, str], tuple[str, ...]] = {
    ("oct", ""): ("HS256", "HS384", "HS512"),
    ("RSA", ""): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
"""Key type and curve to the algorithms they serve (RFC 7518, 6.1 and RFC 8037, 3.1)."""
VERIFYING_PARAMETERS = {"kty", "crv", "n", "e", "x", "y", "k"}

Source = Callable[[], Awaitable[bytes | fetch.Failure]]


def file_source(file: str) -> Source:
    """Reads the file in a thread. What is compared afterwards is its content: a changed time alone changes
    nothing, and a secret volume that swaps a symbolic link, or a second write within one tick of the clock,
    is not missed."""
    path = Path(file)

    def read() -> bytes | fetch.Failure:
        try:
            with path.open("rb") as opened:
                body = opened.read(LIMIT_BYTES + 1)
        except OSError as error:
            return fetch.Failure("the file of keys can't be read", str(error))
        return body if len(body) <= LIMIT_BYTES else fetch.Failure(f"it is longer than {LIMIT_BYTES} bytes")

    async def source() -> bytes | fetch.Failure:
        return await asyncio.to_thread(read)

    return source


def url_source(http: aiohttp.ClientSession, url: str) -> Source:
    address = URL(url)

    async def source() -> bytes | fetch.Failure:
        answer = await fetch.get(http, address, limit_bytes=LIMIT_BYTES, timeout_seconds=FETCH_TIMEOUT_SECONDS)
        if isinstance(answer, fetch.Failure):
            return answer
        return answer.body if answer.status == 200 else fetch.Failure(f"the answer is {answer.status}")

    return source


class _Set(msgspec.Struct):
    keys: list[Any]


_decoder = msgspec.json.Decoder(_Set)


class Key(NamedTuple):
    """One key of the set: its id, or None, and how it verifies each algorithm that it serves."""

    kid: str | None
    verifiers: dict[str, jwt.PyJWK]


def parse(body: bytes, algorithms: frozenset[str]) -> list[Key] | fetch.Failure:
    """The usable keys of a set; those that are not are skipped, as RFC 7517, 5 asks, and logged."""
    found = fetch.decode(_decoder, body)
    if isinstance(found, fetch.Failure):
        return found
    if len(found.keys) > MAX_KEYS:
        return fetch.Failure(f"it has {len(found.keys)} keys, more than {MAX_KEYS}")
    keys = [key for position, jwk in enumerate(found.keys) if (key := _usable(position, jwk, algorithms))]
    if not keys:
        log.warning("jwks_without_usable_key", keys=len(found.keys), algorithms=sorted(algorithms))
    return keys


def _usable(position: int, jwk: Any, algorithms: frozenset[str]) -> Key | None:
    key, why = _key(jwk, algorithms)
    if key is None:
        log.warning("jwk_skipped", position=position, why=why)
    return key


def _key(jwk: Any, algorithms: frozenset[str]) -> tuple[Key | None, str]:
    if not isinstance(jwk, dict):
        return None, "it is not an object"
    kid = jwk.get("kid")
    if kid is not None and not isinstance(kid, str):
        return None, "its kid is not a string"
    uses = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(uses, list) or "verify" not in uses:
        return None, "it is not for verifying signatures"
    fitting = algorithms.intersection(FITS.get((str(jwk.get("kty")), str(jwk.get("crv", ""))), ()))
    if "alg" in jwk:
        fitting &= {str(jwk["alg"])}
    if not fitting:
        return None, "its type, curve and alg serve none of the configured algorithms"
    public = {name: value for name, value in jwk.items() if name in VERIFYING_PARAMETERS}
    try:
        verifiers = {algorithm: jwt.PyJWK(public, algorithm) for algorithm in fitting}
    except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
        return None, f"its parameters make no key ({type(error).__name__})"
    strong = {alg: key for alg, key in verifiers.items() if key.Algorithm.check_key_length(key.key) is None}
    return (Key(kid, strong), "") if strong else (None, "it is shorter than its algorithm needs")


class Keys:
    """The current set. `poll_seconds`: the time between two regular reads of the source."""

    def __init__(
        self, source: Source, algorithms: tuple[str, ...], clock: Callable[[], float], poll_seconds: float
    ) -> None:
        self._source = source
        self._algorithms = frozenset(algorithms)
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._tasks = Tasks("identity keys")
        self._body: bytes | None = None
        self._keys: list[Key] = []
        self._refreshing: asyncio.Task[None] | None = None
        self._refresh_after = float("-inf")
        self.generation = 0
        """Rises whenever the set changes: what an earlier one verified is to be verified again."""
        self.failing = False
        """Whether the last read failed."""
        self.refreshes = 0

    @property
    def loaded(self) -> bool:
        return self._body is not None

    def fitting(self, kid: str | None, algorithm: str) -> list[jwt.PyJWK]:
        """What may verify a token with this key id and algorithm. Without a key id: every key that fits."""
        return [
            key.verifiers[algorithm]
            for key in self._keys
            if algorithm in key.verifiers and (kid is None or key.kid == kid)
        ]

    def knows(self, kid: str | None) -> bool:
        return any(key.kid == kid for key in self._keys)

    def may_refresh(self) -> bool:
        """Whether a token may cause a read now, or wait for the one under way."""
        return self._refreshing is not None or self._clock() >= self._refresh_after

    async def refresh(self) -> None:
        """Read the source, or wait for the read under way. A failure is logged, and `failing` says so. A
        caller who is cancelled does not end it."""
        if self._refreshing is None:
            self._refreshing = self._tasks.start(self._read())
        await asyncio.wait((self._refreshing,))

    async def reload(self) -> None:
        """Read the source from now: a read that is under way may have seen what was before."""
        if self._refreshing is not None:
            await asyncio.wait((self._refreshing,))
        await self.refresh()

    async def start(self) -> None:
        await self.refresh()
        self._tasks.start(self._poll())

    async def close(self) -> None:
        await self._tasks.cancel()

    async def _poll(self) -> None:
        while True:
            poll = self._poll_seconds
            await asyncio.sleep(min(poll, RETRY_SECONDS) if self.failing else poll)
            await self.refresh()

    async def _read(self) -> None:
        self.refreshes += 1
        try:
            body = await self._source()
            keys = body if isinstance(body, fetch.Failure) else self._parsed(body)
            self.failing = isinstance(keys, fetch.Failure)
            if isinstance(keys, fetch.Failure):
                log.warning("jwks_failed", why=keys.why, cause=keys.cause, keys_in_use=len(self._keys))
        finally:
            pause = RETRY_SECONDS if self.failing else REFRESH_SECONDS
            self._refresh_after = self._clock() + min(pause, self._poll_seconds)
            self._refreshing = None

    def _parsed(self, body: bytes) -> list[Key] | fetch.Failure:
        """The keys of this set, which are in use from now on where it can be read."""
        if body == self._body:
            return self._keys
        keys = parse(body, self._algorithms)
        if not isinstance(keys, fetch.Failure):
            self._body, self._keys = body, keys
            self.generation += 1
            log.info("jwks_loaded", keys=len(keys))
        return keys
