"""Which sessions the ledger has, piece by piece: for a sweep that all gateways share.

Found by SCAN, so that an open session costs Redis nothing more to be found, and one that an older gateway left, or a
backup brought back, is found too. Each server's keys are a round of their own, which one gateway at a time goes on with
under a lease; nothing but the upstream's peace hangs on that it is one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import uuid4

from gateway.ledger.connection import Connection
from gateway.ledger.scripts import Script
from gateway.ledger.steps import BUCKETS, session_key

PIECE_KEYS = 250
LEASE_SECONDS = 60.0

_SWEEP = Script("sweep", shared=False)


class Sessions:
    """`prefix`: what the ledger's keys start with. All raise `LedgerUnavailable`; what a lost answer held is found in
    the next round."""

    def __init__(self, connection: Connection, prefix: str) -> None:
        self._connection = connection
        self._prefix = prefix
        self._name = uuid4().hex

    def rounds(self) -> list[str]:
        """The key of each server's round."""
        return self._connection.one_a_server(f"{self._prefix}:{{{bucket}}}:w" for bucket in range(BUCKETS))

    async def piece(self, key: str) -> list[str] | None:
        """Sessions of the next piece of a round that the ledger does not know to have ended; often none. None where
        another gateway goes on with this round."""
        reply = await self._sweep(key, PIECE_KEYS)
        if not reply[0]:
            return None
        named = [self._session_of(name.decode()) for name in dict.fromkeys(reply[1:])]
        found = [session_id for session_id in named if session_id is not None]
        keys = (session_key(self._prefix, session_id) for session_id in found)
        states = await asyncio.gather(*(self._connection.command("HGET", name, "s") for name in keys))
        return [session_id for session_id, state in zip(found, states, strict=True) if state not in (None, b"e")]

    async def keep(self, key: str) -> bool:
        """Whether this gateway still has the round, for another `LEASE_SECONDS`."""
        return bool((await self._sweep(key, 0))[0])

    def _sweep(self, key: str, count: int) -> asyncio.Future[Sequence[bytes]]:
        arguments = (self._name, round(LEASE_SECONDS * 1000), f"{self._prefix}:{{*}}:s:*", count)
        return self._connection.call(_SWEEP, (key,), arguments)

    def _session_of(self, key: str) -> str | None:
        """None for a key of somebody else's that only looks like a session's."""
        session_id = key.partition(":s:")[2]
        return session_id if session_id and session_key(self._prefix, session_id) == key else None
