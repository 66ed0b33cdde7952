"""What the exported journal knows of a session whose ledger was lost: which products counted (N5).

The upstream's list shows what is attached now, not what was removed while live. `attachgate journal` has written each
step down, so the opening of a live session asks here. That is rare and may be much at once (a Redis that was flushed),
so nothing is read until somebody asks; then the files are read once, in a thread and in small pieces, from where they
were read last; and what was read is forgotten when nobody has asked for a while.

Kept in memory are the sessions of the last `ledger.retention_seconds` that have not ended, at most
`journal.max_products` products. Lines may come twice, late, and from the files of several exporters: of each product
the newest entry counts.

Never a fresh count by accident: where a file can't be read, there is none, there are too many products, or the reading
takes too long, this raises `LedgerUnavailable` and the attach is refused with 503. What the exporter says is missing in
the journal stays missing: the opening goes on with what is known, and logs it. So does what had not been exported when
Redis lost it, about a second. A detach whose slot was given back only later, after a look at the list, may count still:
one slot too few, never one too many.
"""

from __future__ import annotations

import asyncio
import errno
import glob
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec
import structlog

from gateway.config import Journal
from gateway.errors import LedgerUnavailable
from gateway.ledger.journal import order
from gateway.ledger.lines import EVENT_HEAD, GAP_HEAD, EventLine, GapLine
from gateway.ledger.steps import bucket_of
from gateway.tasks import Tasks

WAIT_SECONDS = 5.0
FORGET_SECONDS = 600.0
PIECE_BYTES = 32_768
PIECE_PAUSE_SECONDS = 0.0003
"""Between two pieces of less than a millisecond, so that the loop's thread never waits long for this one."""
PASSES = 5
HEAD_BYTES = 128

_SEQUENCE_BITS = 24
_event = msgspec.json.Decoder(EventLine)
_gap = msgspec.json.Decoder(GapLine)

log = structlog.get_logger(__name__)


class Recalled(msgspec.Struct, frozen=True):
    """The products that counted when the journal last spoke of the session; `gaps`: it may not know all."""

    products: frozenset[str]
    gaps: bool


class TooMany(Exception):
    """More products than may be held in memory."""


class Recall:
    """`keep_seconds`: how old an entry may be. `wall_clock`: seconds since the epoch."""

    def __init__(self, config: Journal, keep_seconds: float, wall_clock: Callable[[], float] = time.time) -> None:
        self._pattern = config.files
        self._limit = config.max_products
        self._index = Index(config.files, config.max_products, keep_seconds, wall_clock)
        self._thread = ThreadPoolExecutor(1, "recall")
        self._tasks = Tasks("recall")
        self._reading: asyncio.Task[OSError | TooMany | None] | None = None
        self._next: asyncio.Task[OSError | TooMany | None] | None = None
        self._asking = 0
        self._timer: asyncio.TimerHandle | None = None

    async def counted(self, session_id: str) -> Recalled:
        """As of a reading that began after this was asked. Raises `LedgerUnavailable`."""
        loop = asyncio.get_running_loop()
        self._asking += 1
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self._read()
            return await loop.run_in_executor(self._thread, self._index.counted, session_id)
        finally:
            self._asking -= 1
            if self._asking == 0:
                self._timer = loop.call_later(FORGET_SECONDS, self._thread.submit, self._index.clear)

    async def _read(self) -> None:
        """Wait for a reading that has not begun yet, which all share who ask before it does."""
        if self._next is None:
            self._next = self._tasks.start(self._refresh(self._reading))
        reading = self._next
        done, _ = await asyncio.wait({reading}, timeout=WAIT_SECONDS)
        if not done:
            raise LedgerUnavailable("The journal is being read for what this session has used; ask again in a moment.")
        problem = reading.result()
        if isinstance(problem, TooMany):
            raise LedgerUnavailable(
                f"The journal has more than journal.max_products ({self._limit}) products of sessions that have not "
                "ended; raise it, so that what this session has used can be found."
            )
        if problem is not None:
            raise LedgerUnavailable(
                f"The ledger lost this session, and the journal (journal.files) can't be read: {problem.strerror}."
            )

    async def check(self) -> None:
        """Warn where there is nothing to read; to be called at start."""
        problem = await asyncio.get_running_loop().run_in_executor(self._thread, self._index.problem)
        if problem:
            log.warning("journal_unreadable", files=self._pattern, problem=problem)

    async def _refresh(self, before: asyncio.Task[OSError | TooMany | None] | None) -> OSError | TooMany | None:
        if before is not None:
            await asyncio.wait({before})
        self._reading, self._next = self._next, None
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._index.refresh)
        except (OSError, TooMany) as error:
            log.error("journal_unreadable", files=self._pattern, problem=str(error))
            return error
        return None

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._index.closed = True
        await self._tasks.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)


class Index:
    """Products by session, read from files. Knows no loop; used by one thread at a time, but for `closed`."""

    def __init__(self, pattern: str, limit: int, keep_seconds: float, wall_clock: Callable[[], float]) -> None:
        self._pattern = pattern
        self._limit = limit
        self._keep_seconds = keep_seconds
        self._wall_clock = wall_clock
        self.closed = False
        self.clear()

    def clear(self) -> None:
        # Of each product the stamp of its newest entry, and in the last bit whether it counts by that.
        self._sessions: dict[str, dict[str, int]] = {}
        self._products = 0
        self._gaps: set[int] = set()
        # Where each file was read to, and how what was read began.
        self._read_to: dict[tuple[int, int], tuple[int, bytes]] = {}

    def counted(self, session_id: str) -> Recalled:
        known = self._sessions.get(session_id, {})
        products = frozenset(product for product, stamp in known.items() if stamp & 1)
        return Recalled(products, bucket_of(session_id) in self._gaps)

    def problem(self) -> str:
        """What keeps the files from being read, or an empty string."""
        try:
            paths = self._files().values()
        except OSError as error:
            return str(error)
        unreadable = [path for path in paths if not os.access(path, os.R_OK)]
        return f"may not be read: {', '.join(unreadable[:8])}" if unreadable else ""

    def refresh(self) -> None:
        """Read what the files have more. Raises `OSError`, or `TooMany`.

        Files may be rotated meanwhile: they are known by their inode, and looked for until no other ones turn up."""
        files = self._files()
        for _ in range(PASSES):
            for inode, path in files.items():
                self._read(inode, path)
            before, files = files, self._files()
            if files.keys() == before.keys():
                return
        raise OSError(errno.EAGAIN, "the files are rotated faster than they can be read")

    def _files(self) -> dict[tuple[int, int], str]:
        """By inode, those that may hold something young enough. Raises `OSError` where there is no file at all."""
        found: dict[tuple[int, int], str] = {}
        paths = glob.glob(self._pattern, recursive=True)
        if not paths:
            raise FileNotFoundError(errno.ENOENT, f"no file is {self._pattern}; `attachgate journal` makes them")
        oldest = self._wall_clock() - self._keep_seconds
        for path in paths:
            try:
                about = os.stat(path)
            except FileNotFoundError:
                continue
            if about.st_mtime >= oldest:
                found[about.st_dev, about.st_ino] = path
        return found

    def _read(self, inode: tuple[int, int], path: str) -> None:
        try:
            file = open(path, "rb")  # noqa: SIM115
        except FileNotFoundError:
            return
        with file:
            about = os.fstat(file.fileno())
            if (about.st_dev, about.st_ino) != inode:
                return
            head = file.read(HEAD_BYTES)
            offset, began = self._read_to.get(inode, (0, b""))
            if offset > about.st_size or not head.startswith(began):
                # Another file, which has got the inode of one that was deleted.
                offset = 0
            file.seek(offset)
            rest = b""
            while not self.closed and (piece := file.read(PIECE_BYTES)):
                lines = (rest + piece).split(b"\n")
                rest = lines.pop()
                for line in lines:
                    self.take(line, path)
                offset = file.tell() - len(rest)
                self._read_to[inode] = offset, head[:offset]
                time.sleep(PIECE_PAUSE_SECONDS)

    def take(self, line: bytes, path: str) -> None:
        """One line of a file."""
        try:
            if line.startswith(EVENT_HEAD):
                self._apply(_event.decode(line))
            elif line.startswith(GAP_HEAD):
                gap = _gap.decode(line)
                if gap.reason != "dropped":
                    self._gaps.add(gap.bucket)
        except (msgspec.DecodeError, ValueError) as error:
            log.warning("journal_line_unreadable", file=path, error=str(error))

    def _apply(self, line: EventLine) -> None:
        at_ms, sequence = order(line.id)
        if at_ms < (self._wall_clock() - self._keep_seconds) * 1000:
            return
        if line.event == "ended":
            self._products -= len(self._sessions.pop(line.session_id, ()))
            return
        here, gone = list(line.kept), line.replaced
        if line.event == "detached":
            gone = line.products
        elif line.event in ("opened", "attached", "settled", "replaced"):
            here += line.products
        if not here and not gone:
            return
        stamp = (at_ms << _SEQUENCE_BITS | sequence) << 1
        known = self._sessions.setdefault(line.session_id, {})
        before = len(known)
        for product in gone:
            if product not in here:
                _newest(known, product, stamp)
        for product in here:
            _newest(known, product, stamp | 1)
        self._products += len(known) - before
        if self._products > self._limit:
            raise TooMany("more than journal.max_products")


def _newest(known: dict[str, int], product: str, stamp: int) -> None:
    if stamp >= known.get(product, 0):
        known[sys.intern(product)] = stamp
