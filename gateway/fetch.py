"""One small document over HTTP, whole, in time and within its limit, or a failure that says why.

What the directory, the upstream's list and the signing keys have in common: a GET whose answer is worthless
in part. A failure is data, not an exception, so that a caller decides what it means: serve what is known,
refuse, or try again. Redirects are answers, never followed: who could redirect could otherwise choose what is
believed. The directory, which is asked all the time, and the lists have connections of their own
(`upstream.lookups`); the signing keys, which may be anywhere, are had with `get`.

Knows nothing about what a document means.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

T = TypeVar("T")

HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}


class Answer(NamedTuple):
    status: int
    body: bytes


class Failure(NamedTuple):
    """`why` may be told to a client; `cause` is for the log alone, since it may name hosts."""

    why: str
    cause: str = ""
    timed_out: bool = False


def late(limit_seconds: float, cause: str = "") -> Failure:
    return Failure(f"no whole answer came within {limit_seconds:g} s", cause, timed_out=True)


async def get(http: aiohttp.ClientSession, url: URL, *, limit_bytes: int, timeout_seconds: float) -> Answer | Failure:
    """The answer to one GET. `timeout_seconds` bounds it from the wait for a connection to the last byte."""
    timeout = aiohttp.ClientTimeout(total=timeout_seconds)
    try:
        async with http.get(url, headers=HEADERS, allow_redirects=False, timeout=timeout) as response:
            body = await _read(response, limit_bytes)
            if body is None:
                return Failure(f"the answer is longer than {limit_bytes} bytes")
            return Answer(response.status, body)
    except TimeoutError:
        return late(timeout_seconds)
    except (aiohttp.ClientError, OSError) as error:
        return Failure("no whole answer could be had", f"{type(error).__name__}: {error}")


async def _read(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes | None:
    """The whole body, or None once it exceeds the limit: what lies beyond is never held."""
    body = bytearray()
    while chunk := await response.content.readany():
        body += chunk
        if len(body) > limit_bytes:
            return None
    return bytes(body)


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T | Failure:
    """The body as the decoder's type. Unknown members are ignored; anything else that does not fit is a
    failure."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Failure(f"the answer is malformed: {error}")


class Template:
    """A path with one place for an id, such as `/accounts/{account_id}`."""

    def __init__(self, path: str, placeholder: str) -> None:
        self._path = path
        self._placeholder = placeholder

    def path(self, identifier: str) -> str | None:
        """The path for this id, percent-encoded, or None where no address can name it: as a path segment
        `.` and `..` mean another resource, however they are encoded (RFC 3986, 6.2.2), and an empty one means
        none."""
        if identifier in ("", ".", ".."):
            return None
        return self._path.replace(self._placeholder, quote(identifier, safe=""))
