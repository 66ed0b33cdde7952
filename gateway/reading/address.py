"""The request-target, read once: a raw path and query as received, and the path's decoded segments.

A path that two servers could take for two different resources is refused for every request, matched or not
(RFC 9110 section 4.2.3 and RFC 3986 section 6 leave normalization to each server, which is how gateways are
walked around). A query is opaque here and stays byte for byte; only what can't stand in a request line is
refused in it.

Knows nothing of routes.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote, unquote_to_bytes

import msgspec

from gateway.errors import AddressMalformed, MethodRefused

MAX_TARGET_CHARS = 16_384

_PLAIN_PATH = re.compile(r"(?:/[A-Za-z0-9._~:-]++)++/?+")
"""Nothing to decode and nothing to doubt, except dot segments, which are looked for apart. A path like this
is its own canonical form: `quote` below keeps these characters."""
_CANONICAL_SAFE = ":@!$&'()*,="
"""What RFC 3986 section 3.3 allows raw in a segment, without `;`, which starts parameters, and `+`, which
some servers decode to a space."""

_VISIBLE = re.compile(r"[!-~]*+")
_TOKEN = re.compile(r"[0-9A-Za-z!#$%&'*+.^_`|~-]{1,32}")
_RAW_DOUBT = re.compile(r"[^!-~]|[#\\;]")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPED_DOUBT = re.compile(r"%(?:[01][0-9A-Fa-f]|7[Ff]|2[Ff]|5[Cc]|3[BbFf]|23)")
_ESCAPE_AFTER_DECODING = re.compile(r"%(?:[0-9A-Fa-f]{2}|[Uu][0-9A-Fa-f]{4})")
_COOKIELESS = re.compile(r"\([A-Za-z]\(.*\)\)")
"""`(S(...))`, which ASP.NET takes for a session and cuts out of the path (CVE-2023-36899)."""
_ORDINARY_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"))
_REFUSED_METHODS = frozenset(("CONNECT", "TRACE", "TRACK"))

_RAW_NAMES = {"#": "a fragment", "\\": "a backslash", ";": "a path parameter (;)"}
_ESCAPED_NAMES = {
    "%2F": "an encoded slash",
    "%5C": "an encoded backslash",
    "%3B": "an encoded path parameter (;)",
    "%3F": "an encoded question mark",
    "%23": "an encoded fragment",
}


class Address(msgspec.Struct, frozen=True, gc=False):
    """`path_raw + query_raw` is the target as received: `query_raw` has its `?`, and is empty where there is
    none.

    `segments` are percent-decoded; a trailing slash is an empty last segment. `canonical` is the path written
    anew from the segments: one spelling for each path, with everything percent-encoded that needs to be.
    """

    path_raw: str
    query_raw: str
    segments: tuple[str, ...]
    canonical: str


def read_target(raw_target: str, *, method: str) -> Address:
    """Read a request-target as received (origin form; non-ASCII bytes decoded in any way).

    Raises AddressMalformed for every other form (RFC 9112 section 3.2), the methods that ask for one
    (CONNECT) or echo a request (TRACE), and everything ambiguous.
    """
    if method not in _ORDINARY_METHODS and (not _TOKEN.fullmatch(method) or method.upper() in _REFUSED_METHODS):
        raise MethodRefused("The method is not one that this gateway forwards: use an ordinary HTTP method.")
    if len(raw_target) > MAX_TARGET_CHARS:
        raise AddressMalformed(f"The address is longer than {MAX_TARGET_CHARS} characters: shorten it.")
    path, mark, query = raw_target.partition("?")
    if mark:
        if not _VISIBLE.fullmatch(query) or "#" in query:
            raise AddressMalformed(
                "The query holds a space, a control character, a fragment or a character outside ASCII: "
                "percent-encode it."
            )
        query = mark + query
    if _PLAIN_PATH.fullmatch(path) and "/." not in path:
        return Address(path, query, tuple(path.split("/")[1:]), path)
    return _read_doubtful(path, query)


def _read_doubtful(path: str, query: str) -> Address:
    if not path.startswith("/"):
        raise AddressMalformed(
            "The address must be a path that starts with a slash: absolute form, authority form and * are refused."
        )
    if bad := _RAW_DOUBT.search(path):
        name = _RAW_NAMES.get(bad[0], "a space, a control character or a character outside ASCII")
        raise AddressMalformed(f"The path holds {name} at character {bad.start()}: percent-encode or remove it.")
    if bad := _BROKEN_ESCAPE.search(path):
        raise AddressMalformed(f"The path holds an incomplete percent-escape at character {bad.start()}.")
    if bad := _ESCAPED_DOUBT.search(path):
        name = _ESCAPED_NAMES.get(bad[0].upper(), "an encoded control character")
        raise AddressMalformed(f"The path holds {name} at character {bad.start()}: it could be read in two ways.")
    parts = path.split("/")[1:]
    last = len(parts) - 1
    segments = tuple(_segment(part, index, index == last) for index, part in enumerate(parts))
    canonical = "/" + "/".join([quote(segment, safe=_CANONICAL_SAFE) for segment in segments])
    return Address(path, query, segments, canonical)


def _segment(raw: str, index: int, is_last: bool) -> str:
    """One segment, percent-decoded; `index` counts from 0."""
    where = f"segment {index + 1} of the path"
    if not raw:
        if is_last:
            return ""
        raise AddressMalformed(f"The path holds two slashes in a row ({where} is empty): write one.")
    try:
        text = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise AddressMalformed(f"The percent-escapes in {where} are not valid UTF-8.") from None
    if text in (".", ".."):
        raise AddressMalformed(f"The path holds a dot segment ({where}): write the path without it.")
    if _ESCAPE_AFTER_DECODING.search(text):
        raise AddressMalformed(f"The path is percent-encoded twice in {where}: encode it once.")
    if text[0] == "(" and _COOKIELESS.search(text):
        raise AddressMalformed(f"The path holds a session in parentheses in {where}: some servers cut it out.")
    if not text.isascii():
        _check_wide(text, where)
    return text


def _check_wide(text: str, where: str) -> None:
    if any("\x80" <= c <= "\x9f" for c in text):
        raise AddressMalformed(f"The path holds an encoded control character in {where}.")
    # Decided character by character: normalizing a whole segment takes quadratic time in combining marks.
    plain = "".join([unicodedata.normalize("NFKC", c) for c in text])
    if plain in (".", "..") or "/" in plain or "\\" in plain:
        raise AddressMalformed(f"The path holds a look-alike of a slash or a dot segment in {where}.")
