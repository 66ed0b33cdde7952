"""The corpus: raw requests as data, one file a class, read and filled in.

    [[requests]]
    name = "two-lengths"
    reason = "…"                       the class it stands for, in one line
    send = ["…", "…"]                  the bytes, one write each; a character up to U+00FF is one byte
    refused = [400]                    the gateway's own answer, one of these statuses, with a problem document …
    because = ["headers_malformed"]    … that names one of these reasons
    served = [200]                     or: the upstream's answer, or the gateway's view
    before = [200]                     the statuses of the answers that come before the last
    unanswered = true                  or: the connection ends without an answer
    session = "full"                   what the session is like before; see `SESSIONS`
    account = "shop-individual"        whose session it is, and who asks
    source = "127.0.0.1"               where the connection comes from; 127.0.0.2 is not trusted
    method = "POST"                    of the request whose answer is read: HEAD has no body
    more = 1                           foreign products that a correct service adds (default: none)

In `send`, `{NAME}` stands for what `fill` says, and `<<text*n>>` for n times the text.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

FOLDER = Path(__file__).parent / "corpus"

Session = Literal["full", "room", "new", "new_full", "none"]
"""Three foreign products and live; live and empty; not yet live and empty; not yet live with three; unknown."""

_REPEATED = re.compile(r"<<(.+?)\*([0-9]+)>>", re.DOTALL)
_NAMED = re.compile(r"\{([A-Z]+)\}")
_LENGTH = "{LENGTH}"


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    reason: str
    send: tuple[str, ...]
    refused: tuple[int, ...] = ()
    because: tuple[str, ...] = ()
    served: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    unanswered: bool = False
    session: Session = "full"
    account: str = "shop-individual"
    source: str = "127.0.0.1"
    method: str = "POST"
    more: int = 0

    @property
    def answers(self) -> int:
        return len(self.before) + 1


class _File(msgspec.Struct, forbid_unknown_fields=True):
    about: str
    requests: list[Entry]


def load() -> dict[str, list[Entry]]:
    """All entries by class. Raises ValueError for a file that says something twice or nothing at all."""
    found = {}
    names: set[str] = set()
    for path in sorted(FOLDER.glob("*.toml")):
        entries = msgspec.convert(tomllib.loads(path.read_text("utf-8")), _File).requests
        for entry in entries:
            problem = _problem(entry) or ("is there twice" if entry.name in names else None)
            if problem:
                raise ValueError(f"{path.name}: {entry.name}: {problem}")
            names.add(entry.name)
        found[path.stem] = entries
    return found


def _problem(entry: Entry) -> str | None:
    if [bool(entry.refused), bool(entry.served), entry.unanswered].count(True) != 1:
        return "must say one of refused, served and unanswered"
    if bool(entry.refused) != bool(entry.because):
        return "says `because` exactly where it says `refused`"
    if any(char > "\xff" for text in entry.send for char in text):
        return "holds a character that is no byte"
    return "says no reason" if not entry.reason else None


def fill(text: str, values: Mapping[str, str]) -> bytes:
    """The bytes of one write. `{LENGTH}` is how many come behind the first empty line."""

    def value(found: re.Match[str]) -> str:
        return values[found[1]] if found[1] != "LENGTH" else _LENGTH

    while (filled := _NAMED.sub(value, text)) != text:
        text = filled
    text = _REPEATED.sub(lambda found: found[1] * int(found[2]), text)
    body = text.partition("\r\n\r\n")[2]
    return text.replace(_LENGTH, str(len(body))).encode("latin-1")


def values(session_id: str, account_id: str, others_session_id: str) -> dict[str, Any]:
    """What stands for `{NAME}` in an entry. `ally-9` is the foreign product that would be one too many."""
    return {
        "S": session_id,
        "A": account_id,
        "O": others_session_id,
        "P": "ally-9",
        "ONE": '{"product_id":"ally-9"}',
        "OWN": '{"product_id":"own-individual-1"}',
        "WHO": "Host: gateway\r\nX-Account-Id: {A}\r\n",
        "JSON": "Content-Type: application/json\r\n",
        "ATTACH": "POST /live/sessions/{S}/products HTTP/1.1\r\n{WHO}{JSON}",
        "PLAIN": "{ATTACH}Content-Length: 23\r\n\r\n{ONE}",
    }
