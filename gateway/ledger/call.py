"""One call to Redis on its way: what is asked, how often it was, and who waits for the answer. No I/O."""

from __future__ import annotations

import asyncio
from typing import Any

import hiredis

from gateway.errors import LedgerUnavailable
from gateway.ledger.scripts import Script


def packed(command: tuple[Any, ...]) -> bytes:
    """A command as it goes over the wire. Strings are packed sooner than numbers, or bytes."""
    data: bytes = hiredis.pack_command(command)
    return data


class Call:
    """A command, perhaps of a script, and who waits for it. `key` decides which server has it. `replicated`: its result
    is a pair, the answer and whether enough replicas have what was written. `whole`: send the script's text. `asking`:
    the server is asked although the slot is only on its way there. `sends`: how often it was sent, but for one that
    found its script unknown. `refusal`: what a server said that did not run it."""

    __slots__ = (
        "asking",
        "command",
        "future",
        "key",
        "made_at",
        "refusal",
        "replicated",
        "script",
        "sends",
        "whole",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        script: Script | None,
        command: tuple[str | int, ...],
        key: str,
        made_at: float,
        *,
        replicated: bool = False,
    ) -> None:
        self.script, self.command, self.key, self.made_at = script, command, key, made_at
        self.replicated = replicated
        self.whole = self.asking = False
        self.sends = 0
        self.refusal: LedgerUnavailable | None = None
        self.future: asyncio.Future[Any] = loop.create_future()

    def pack(self) -> bytes:
        if self.whole and self.script is not None:
            return packed(("EVAL", self.script.text, *self.command[2:]))
        return packed(self.command)

    def settle(self, answer: Any) -> None:
        if not self.future.done():
            self.future.set_result(answer)

    def fail(self, error: LedgerUnavailable) -> None:
        if not self.future.done():
            self.future.set_exception(error)
