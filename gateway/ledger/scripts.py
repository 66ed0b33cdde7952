"""A ledger script: its text behind the shared one of `slots.lua`, and the hash that Redis knows it by."""

from __future__ import annotations

import hashlib
from importlib.resources import files


class Script:
    """`shared`: whether it works on a session, and so on what `slots.lua` defines."""

    def __init__(self, name: str, *, shared: bool = True) -> None:
        folder = files(__package__)
        text = (folder / f"{name}.lua").read_text()
        self.name = name
        self.text = (folder / "slots.lua").read_text() + "\n" + text if shared else text
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
