"""The decision journal inside Redis: one capped stream a bucket, with each ledger step and each decision.

The scripts of the ledger write a step's event with the step. What is written and read here is the rest: decisions that
joined later, and the entries that an exporter is to write down (`note.lua`, `export.lua`). All raise
`LedgerUnavailable`; a step whose answer is lost may have been done, which costs a duplicate and never an entry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from gateway.config import Ledger as LedgerConfig
from gateway.ledger.connection import Connection
from gateway.ledger.scripts import Script
from gateway.ledger.steps import stream_key

_NOTE, _EXPORT = Script("note", shared=False), Script("export", shared=False)

NoteKind = Literal["decision", "refused", "dropped"]


class Note(Struct, frozen=True, gc=False):
    """One entry besides those of the steps. `session_id` is empty on surfaces without one. `document`: see `lines`.
    `refused` tells clients what no step does, and so has `products`, `used` and `cap`."""

    kind: NoteKind
    session_id: str
    operation: str
    document: bytes
    products: str = ""
    used: int = 0
    cap: int = 0


Entry = tuple[str, dict[str, str]]
"""Id and fields."""


class Absent(Struct, frozen=True):
    """No such stream or group; `at_ms` is Redis' clock."""

    at_ms: int


class Trimmed(Struct, frozen=True):
    """What came right after `after` is gone; the stream goes on with `before`. Nothing was read."""

    after: str
    before: str


class Batch(Struct, frozen=True):
    """`position`: how far the group has read. `lost`: ids of entries that were given out, never acknowledged, and are
    trimmed now."""

    position: str
    entries: list[Entry]
    lost: list[str]


class Streams:
    def __init__(self, connection: Connection, config: LedgerConfig) -> None:
        self._connection = connection
        self._prefix = config.prefix
        self._head = (round(config.retention_seconds * 1000), config.stream_entries)
        self.retention_ms = self._head[0]

    @property
    def available(self) -> bool:
        return self._connection.available

    def _key(self, bucket: int) -> str:
        return stream_key(self._prefix, bucket)

    def write(self, notes: Mapping[int, Sequence[Note]]) -> list[tuple[Sequence[int], asyncio.Future[Any]]]:
        """Append to buckets' streams. Each step, and the buckets that it writes to: one for all, or, in a Cluster, one
        for each."""
        together = [[bucket] for bucket in notes] if self._connection.cluster else [list(notes)]
        return [(buckets, self._write(notes, buckets)) for buckets in together if buckets]

    def _write(self, notes: Mapping[int, Sequence[Note]], buckets: Sequence[int]) -> asyncio.Future[Any]:
        arguments: list[Any] = [*self._head]
        for bucket in buckets:
            arguments.append("key")
            for note in notes[bucket]:
                arguments += (note.kind, note.session_id, note.operation, note.document)
                if note.kind == "refused":
                    arguments += (note.products, str(note.used), str(note.cap))
        return self._connection.call(_NOTE, [self._key(bucket) for bucket in buckets], arguments)

    async def read(
        self, bucket: int, group: str, *, limit: int, idle_ms: int, create: bool = False, told: Trimmed | None = None
    ) -> Absent | Trimmed | Batch:
        """What the group is to write down next. `create`: make the group, from the stream's beginning. `told`: a gap
        that is written down already."""
        gap = f"{told.after} {told.before}" if told is not None else ""
        arguments = (group, limit, idle_ms, "1" if create else "0", gap)
        reply = await self._connection.call(_EXPORT, (self._key(bucket),), arguments)
        match reply[0]:
            case b"absent":
                return Absent(reply[1])
            case b"gap":
                return Trimmed(reply[1].decode(), reply[2].decode())
        return Batch(reply[1].decode(), [_entry(entry) for entry in reply[2]], [one.decode() for one in reply[3]])

    def acknowledge(self, bucket: int, group: str, ids: Sequence[str]) -> asyncio.Future[Any]:
        """These are written down, and given to nobody again."""
        return self._connection.command("XACK", self._key(bucket), group, *ids)


def _entry(entry: tuple[bytes, list[bytes]]) -> Entry:
    """Whatever somebody wrote into the stream: it must be told, so it must not fail."""
    name, items = entry
    texts = [item.decode(errors="replace") for item in items]
    return name.decode(), dict(zip(texts[::2], texts[1::2], strict=True))
