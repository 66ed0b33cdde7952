"""What counts as the same name spelt otherwise, what counts as an id, and how foreign text is shown in an
error.

A name that is nearly one of ours is never taken for ours and never passed on either, since an upstream may
compare more leniently than we do. `fold` is therefore wider than any one upstream's comparison: case,
compatibility forms (full-width letters, the Kelvin sign), accents, invisible and control characters, and
spaces or dots at the ends.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

_MAX_FOLDED_CHARS = 256
"""Normalizing takes quadratic time in a run of combining marks, so longer names are not compared: a
configured one has at most a quarter of this (`MAX_NAME_CHARS`)."""

MAX_NAME_CHARS = 64
"""The longest member name or path literal that a route may be configured with."""

_MAX_SHOWN_CHARS = 64
_CONTROLS = dict.fromkeys((*range(0x20), 0x7F))

IdCheck = Callable[[str], "re.Match[str] | None"]


def id_check(pattern: str) -> IdCheck:
    """What tells an id: the whole text matches `pattern`, and it is neither `.` nor `..`, which would walk up
    where an id becomes a part of a path. Raises `re.error` for a pattern that is not one."""
    re.compile(pattern, re.ASCII)
    return re.compile(rf"(?!\.{{1,2}}\Z)(?:{pattern})", re.ASCII).fullmatch


def fold(text: str) -> str:
    """The form in which two spellings of one name are equal."""
    if text.isascii():
        return (text if text.isprintable() else text.translate(_CONTROLS)).lower().strip(" .")
    if len(text) > _MAX_FOLDED_CHARS:
        return text
    # Upper before lower: some letters (dotless i, long s) meet their ASCII relative only on one way.
    wide = unicodedata.normalize("NFKD", text).upper()
    plain = unicodedata.normalize("NFKD", wide.casefold())
    return "".join(c for c in plain if unicodedata.category(c)[0] not in "MC").strip(" .")


def fold_segment(text: str) -> str:
    """`fold` for a part of a path, where some servers take a plus for a space."""
    return fold(text.replace("+", " ") if "+" in text else text)


def shown(text: str) -> str:
    """`text` for an error's detail: printable ASCII, and not longer than a reader needs to find the place."""
    cut = text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..."
    return "".join([c if " " <= c <= "~" else f"\\u{ord(c):04x}" for c in cut])
