"""One small document over HTTP, whole, in time and within its limit, or a failure that says why.

What the directory, the upstream's list and the signing keys have in common: a GET whose answer is worthless
in part. A failure is data, not an exception, so that a caller decides what it means: serve what is known,
refuse, or try again. Redirects are answers, never followed: who could redirect could otherwise choose what is
believed.

Knows nothing about what a document means.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from multidict import CIMultiDictProxy
from yarl import URL

T = TypeVar("T")

HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}


class Answer(NamedTuple):
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


class Failure(NamedTuple):
    """`why` may be told to a client; `cause` is for the log alone, since it may name hosts."""

    why: str
    cause: str = ""
    timed_out: bool = False


async def get(
    http: aiohttp.ClientSession,
    url: URL,
    *,
    limit_bytes: int,
    timeout_seconds: float,
    connect_timeout_seconds: float | None = None,
) -> Answer | Failure:
    """The answer to one GET. `timeout_seconds` bounds it from the wait for a connection to the last byte,
    `connect_timeout_seconds` the wait alone."""
    timeout = aiohttp.ClientTimeout(
        total=timeout_seconds, connect=connect_timeout_seconds, sock_connect=connect_timeout_seconds
    )
    try:
        async with http.get(url, headers=HEADERS, allow_redirects=False, timeout=timeout) as response:
            body = await _read(response, limit_bytes)
            if body is None:
                return Failure(f"the answer is longer than {limit_bytes} bytes")
            return Answer(response.status, response.headers, body)
    except TimeoutError:
        return Failure(f"no whole answer came within {timeout_seconds:g} s", timed_out=True)
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
    """An address with one place for an id, such as `http://host/accounts/{account_id}`."""

    def __init__(self, base_url: str, path: str, placeholder: str) -> None:
        self._template = base_url.rstrip("/") + path
        self._placeholder = placeholder

    def url(self, identifier: str) -> URL | None:
        """The address for this id, percent-encoded, or None where no address can name it: as a path segment
        `.` and `..` mean another resource, however they are encoded (RFC 3986, 6.2.2), and an empty one means
        none."""
        if identifier in ("", ".", ".."):
            return None
        return URL(self._template.replace(self._placeholder, quote(identifier, safe="")), encoded=True)
