"""A ledger script: its text behind what it uses of the shared one, `slots.lua`, and the hash that Redis knows it by.

A script's functions are made anew each time it runs, and making all of the shared ones would cost more than what most
scripts do with them. So each script gets those that it calls, itself or through others. In `slots.lua` a function is a
block of its own, between blank lines, after those that it calls.
"""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files

_COMMENT = re.compile(r"--.*")
_FUNCTION = re.compile(r"^local function (\w+)", re.MULTILINE)


class Script:
    """`shared`: whether it works on a session, and so on what `slots.lua` defines."""

    def __init__(self, name: str, *, shared: bool = True) -> None:
        folder = files(__package__)
        text = (folder / f"{name}.lua").read_text()
        self.name = name
        self.text = _with_what_it_uses((folder / "slots.lua").read_text(), text) if shared else text
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


def _with_what_it_uses(shared: str, text: str) -> str:
    kept = [text]
    words = _words(text)
    for block in reversed(shared.split("\n\n")):
        function = _FUNCTION.search(block)
        if function is None or function[1] in words:
            kept.append(block)
            words |= _words(block)
    return "\n\n".join(reversed(kept))


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", _COMMENT.sub("", text)))
