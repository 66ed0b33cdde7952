"""Writes the journal's streams down as one consumer group: each entry at least once, and what is missing is said.

An entry is acknowledged when its line is on the disk. Whoever is killed before that leaves it with the group, and any
exporter takes it over once it has waited `claim_seconds`; so a line may come twice, and late. Several exporters of one
group share the work by asking: nobody owns a bucket.

Redis keeps so many entries a bucket, and may lose them all. What was lost before it was written down becomes a line:
`trimmed` where a stream does not have what came after the group's position, `lost` where stream or group is gone,
`rewound` where the position lies before one that was seen already. The last two are known from what this exporter has
read, and what its file says was read before it; to standard output, a loss while no exporter ran can't be told.

A gap may be told where only the last entry that was read is gone: that the next one was trimmed with it can't be ruled
out.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable

import structlog

from gateway.config import Config
from gateway.errors import LedgerUnavailable
from gateway.export.output import Output
from gateway.ledger.connection import connect
from gateway.ledger.journal import order
from gateway.ledger.lines import gap_of, line_of
from gateway.ledger.steps import BUCKETS
from gateway.ledger.streams import Absent, Batch, Streams, Trimmed

POLL_SECONDS = 1.0
AWAY_SECONDS = 1.0
BUCKETS_AT_ONCE = 64
ENTRIES_A_BUCKET = 200
LEAST_TIMEOUT_SECONDS = 1.0
"""Nobody waits for an exporter, so it may wait longer for Redis than a gateway does."""

log = structlog.get_logger(__name__)


class Exporter:
    """`wall_clock`: seconds since the epoch."""

    def __init__(
        self,
        streams: Streams,
        output: Output,
        group: str,
        claim_seconds: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._streams = streams
        self._output = output
        self._group = group
        self._claim_ms = round(claim_seconds * 1000)
        self._wall_clock = wall_clock
        self._positions = output.positions()
        self._told: dict[int, Trimmed] = {}
        self._problem: LedgerUnavailable | None = None
        self.written = 0

    async def run(self, stop: asyncio.Event, *, once: bool = False) -> None:
        """Until `stop` is set; `once`: until all that is there is written. Raises `OSError` where the output takes
        nothing, and `LedgerUnavailable` only if `once`."""
        while not stop.is_set():
            before, away = self.written, self._problem
            await self._round(stop)
            if once and self._problem is not None:
                raise self._problem
            if self._problem is not None and away is None:
                log.warning("ledger_unavailable", error=self._problem.detail)
            elif self._problem is None and away is not None:
                log.info("ledger_back")
            if self.written > before and self._problem is None:
                continue
            if once:
                return
            await _wait(stop, POLL_SECONDS if self._problem is None else AWAY_SECONDS)

    async def _round(self, stop: asyncio.Event) -> None:
        """All buckets, from any one on, so that exporters don't follow each other."""
        self._problem = None
        begin = random.randrange(BUCKETS)
        buckets = [(begin + number) % BUCKETS for number in range(BUCKETS)]
        for first in range(0, BUCKETS, BUCKETS_AT_ONCE):
            if stop.is_set():
                return
            await self._export(buckets[first : first + BUCKETS_AT_ONCE])

    async def _export(self, buckets: list[int]) -> None:
        found = await asyncio.gather(*(self._read(bucket) for bucket in buckets), return_exceptions=True)
        lines: list[bytes] = []
        done: list[tuple[int, list[str]]] = []
        for bucket, reading in zip(buckets, found, strict=True):
            if isinstance(reading, LedgerUnavailable):
                self._problem = reading
            elif isinstance(reading, BaseException):
                raise reading
            else:
                lines += self._lines(bucket, reading)
                if isinstance(reading, Batch) and (reading.entries or reading.lost):
                    done.append((bucket, [identifier for identifier, _ in reading.entries] + reading.lost))
        if lines:
            self._output.write(lines)
            self.written += len(lines)
        for bucket, reading in zip(buckets, found, strict=True):
            self._remember(bucket, reading)
        said = await asyncio.gather(
            *(self._streams.acknowledge(bucket, self._group, ids) for bucket, ids in done), return_exceptions=True
        )
        for problem in said:
            # Not acknowledged, it comes again.
            if isinstance(problem, LedgerUnavailable):
                self._problem = problem
            elif isinstance(problem, BaseException):
                raise problem

    async def _read(self, bucket: int) -> Absent | Trimmed | Batch:
        reading = await self._ask(bucket)
        known = self._positions.get(bucket)
        if known is None or not isinstance(reading, Absent):
            return reading
        if order(known)[0] + self._streams.retention_ms > reading.at_ms:
            return reading
        # It ended as it should, with all that it had written down.
        del self._positions[bucket]
        return await self._ask(bucket)

    async def _ask(self, bucket: int) -> Absent | Trimmed | Batch:
        return await self._streams.read(
            bucket,
            self._group,
            limit=ENTRIES_A_BUCKET,
            idle_ms=self._claim_ms,
            create=bucket not in self._positions,
            told=self._told.get(bucket),
        )

    def _lines(self, bucket: int, reading: Absent | Trimmed | Batch) -> list[bytes]:
        known = self._positions.get(bucket)
        if isinstance(reading, Absent):
            return [self._gap(bucket, "lost", known, "")] if known is not None else []
        if isinstance(reading, Trimmed):
            return [self._gap(bucket, "trimmed", reading.after, reading.before)]
        lines = []
        if known is not None and order(reading.position) < order(known):
            lines.append(self._gap(bucket, "rewound", known, ""))
        if reading.lost:
            lines.append(self._gap(bucket, "trimmed", "", "", reading.lost))
        return lines + [line_of(bucket, identifier, fields) for identifier, fields in reading.entries]

    def _gap(self, bucket: int, reason: str, after: str, before: str, ids: list[str] | None = None) -> bytes:
        log.warning("journal_gap", bucket=bucket, reason=reason, after=after, before=before, ids=ids)
        return gap_of(bucket, round(self._wall_clock() * 1000), reason, after, before, ids or ())

    def _remember(self, bucket: int, reading: object) -> None:
        """What is written down now."""
        if isinstance(reading, Absent):
            self._positions.pop(bucket, None)
        elif isinstance(reading, Trimmed):
            self._told[bucket] = reading
        elif isinstance(reading, Batch):
            self._told.pop(bucket, None)
            if reading.position != "0-0":
                self._positions[bucket] = reading.position


async def export(config: Config, output: Output, *, group: str, claim_seconds: float, once: bool) -> int:
    """Export until SIGTERM or SIGINT, which end it between two writes. 0 where it ended well, 1 where it failed."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    timeout_seconds = max(LEAST_TIMEOUT_SECONDS, config.ledger.timeout_seconds)
    connection = connect(config.ledger.url, timeout_seconds, time.monotonic)
    exporter = Exporter(Streams(connection, config.ledger), output, group, claim_seconds)
    log.info("exporting", group=group, once=once)
    try:
        await exporter.run(stop, once=once)
    except BrokenPipeError:
        log.error("output_gone", problem="whoever read standard output has ended; what was not written comes again")
        return 1
    except OSError as error:
        log.error("output_failed", error=str(error), problem="what was not written comes again at the next start")
        return 1
    except LedgerUnavailable as error:
        log.error("ledger_unavailable", error=error.detail)
        return 1
    finally:
        await connection.close()
        log.info("exported", lines=exporter.written)
    return 0


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        pass
