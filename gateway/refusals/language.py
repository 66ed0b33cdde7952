"""Which of the gateway's languages a client reads best: negotiation of Accept-Language (RFC 9110, 12.5.4).

Promises an answer for every input: what is malformed is skipped, what is too long is not read. Written here
because Chinese needs what the general libraries don't do: a region tells the script (zh-HK reads zh-Hant),
old clients write `zh-cmn-Hans-CN`, and `zh` alone means zh-CN but does not exclude traditional characters.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, Literal

Language = Literal["zh-CN", "zh-Hant", "en"]

DEFAULT_LANGUAGE: Final[Language] = "zh-CN"
LANGUAGES: Final[tuple[Language, ...]] = ("zh-CN", "zh-Hant", "en")
"""In the order in which the gateway prefers them where the client has no preference."""

_MAX_CHARS = 512
_MAX_RANGES = 32
_RANGE = re.compile(
    r"[ \t]*(\*|[a-z]{1,8}(?:-[a-z0-9]{1,8})*)[ \t]*"
    r"(?:;[ \t]*q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)[ \t]*)?",
    re.IGNORECASE | re.ASCII,
)
_TRADITIONAL = frozenset({"hant", "tw", "hk", "mo"})
_SIMPLIFIED = frozenset({"hans", "cn", "sg", "my"})
_EXACT, _CHINESE, _ANY = 3, 2, 1
"""How closely a range names a language; the closest one decides, so that `zh-TW;q=0, zh` leaves zh-CN."""


def _names(tag: str) -> tuple[int, tuple[Language, ...]]:
    """How closely a language range names which of the languages; none where it names another one."""
    primary, *subtags = tag.lower().split("-")
    if primary == "*":
        return _ANY, LANGUAGES
    if primary == "en":
        return _EXACT, ("en",)
    if primary != "zh":
        return _ANY, ()
    scripts = {"hant", "hans"}.intersection(subtags) or subtags  # a script outranks the region: zh-Hans-HK
    if _TRADITIONAL.intersection(scripts):
        return _EXACT, ("zh-Hant",)
    if _SIMPLIFIED.intersection(scripts):
        return _EXACT, ("zh-CN",)
    return _CHINESE, ("zh-CN", "zh-Hant")


def _negotiate(header: str) -> Language:
    closest: dict[Language, tuple[int, float, int]] = {}
    for position, part in enumerate(header.split(",", _MAX_RANGES)[:_MAX_RANGES]):
        match = _RANGE.fullmatch(part)
        if match is None:
            continue
        closeness, named = _names(match[1])
        quality = float(match[2] or "1")
        for one in named:
            closest[one] = max(closest.get(one, (0, 0.0, 0)), (closeness, quality, -position))
    wanted = [one for one in LANGUAGES if one in closest and closest[one][1] > 0]
    if wanted:
        return max(wanted, key=lambda one: closest[one][1:])
    return next((one for one in LANGUAGES if one not in closest), DEFAULT_LANGUAGE)


_cached = lru_cache(maxsize=1024)(_negotiate)


def language(accept_language: str | None) -> Language:
    """The language of the answer. zh-CN where the header is absent, over 512 characters, or names none of
    ours; a language with q=0 only where every other one is excluded too."""
    if not accept_language or len(accept_language) > _MAX_CHARS:
        return DEFAULT_LANGUAGE
    return _cached(accept_language)
