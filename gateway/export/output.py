"""Where the journal's lines go: a file that rotates, or standard output. What `write` has taken is on the disk.

A file is written by one exporter at a time (a lock beside it). Full, it gets a number into its name
(`journal.jsonl` → `journal.000001.jsonl`, the higher the newer) and a new one begins. A line that a crash cut short was
never acknowledged and comes again, so what stands behind the last end of line is cut off at the start.

All raise `OSError` where the disk does not take what it is given.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec

from gateway.ledger.journal import order

TAIL_BYTES = 64 * 1024 * 1024
"""How far back a file is looked through for where its buckets stood."""
CUT_BYTES = 1 << 20
STANDARD_OUTPUT = 1


class Output(Protocol):
    def write(self, lines: Iterable[bytes]) -> None:
        """Whole lines, each with its end; safe when this returns."""

    def positions(self) -> dict[int, str]:
        """The newest id of each bucket, as far as known from what was written before."""

    def close(self) -> None: ...


class InUse(OSError):
    """Another exporter writes this file."""


class _Placed(msgspec.Struct):
    bucket: int
    id: str = ""


_placed = msgspec.json.Decoder(_Placed)


class StandardOutput:
    def write(self, lines: Iterable[bytes]) -> None:
        _write(STANDARD_OUTPUT, b"".join(lines))
        try:
            os.fsync(STANDARD_OUTPUT)
        except OSError as error:
            # A pipe or terminal has nothing to sync.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
                raise

    def positions(self) -> dict[int, str]:
        return {}

    def close(self) -> None:
        pass


class RotatingFile:
    """`rotate_bytes`: a file does not grow beyond (but for a single longer line). `keep`: how many full files stay, the
    oldest being deleted; 0 keeps all."""

    def __init__(self, path: Path, rotate_bytes: int, keep: int) -> None:
        self._path = path
        self._rotate_bytes = rotate_bytes
        self._keep = keep
        name = re.escape(path.stem) + r"\.(\d{6,})" + re.escape(path.suffix)
        self._full = re.compile(name)
        self._lock = os.open(f"{path}.lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise InUse(errno.EAGAIN, "another exporter writes this file; give each one of its own") from error
        self._open()
        self._cut()

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._file).st_size

    def _cut(self) -> None:
        """Cut off the beginning of a line that was never finished."""
        end = self._size
        while end > 0:
            begin = max(0, end - CUT_BYTES)
            found = os.pread(self._file, end - begin, begin).rfind(b"\n")
            if found >= 0:
                end = begin + found + 1
                break
            end = begin
        if end < self._size:
            os.ftruncate(self._file, end)
            self._size = end

    def write(self, lines: Iterable[bytes]) -> None:
        waiting: list[bytes] = []
        size = self._size
        for line in lines:
            if size + len(line) > self._rotate_bytes and size > 0:
                self._put(waiting)
                self._rotate()
                waiting, size = [], 0
            waiting.append(line)
            size += len(line)
        self._put(waiting)

    def _put(self, lines: Sequence[bytes]) -> None:
        if lines:
            self._size += _write(self._file, b"".join(lines))
            os.fsync(self._file)

    def _rotate(self) -> None:
        os.close(self._file)
        full = self._full_files()
        number = full[-1][0] + 1 if full else 1
        self._path.rename(self._path.with_name(f"{self._path.stem}.{number:06}{self._path.suffix}"))
        self._open()
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        if self._keep:
            for _, path in self._full_files()[: -self._keep]:
                path.unlink(missing_ok=True)

    def _full_files(self) -> list[tuple[int, Path]]:
        """Number and path, oldest first."""
        found = ((self._full.fullmatch(path.name), path) for path in self._path.parent.iterdir())
        return sorted((int(match[1]), path) for match, path in found if match)

    def positions(self) -> dict[int, str]:
        """From this file and the one that was full before it."""
        found: dict[int, str] = {}
        for path in [*(path for _, path in self._full_files()[-1:]), self._path]:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - TAIL_BYTES))
                for line in file:
                    # The first one may be half a line.
                    with suppress(msgspec.MsgspecError):
                        placed = _placed.decode(line)
                        if placed.id and order(placed.id) > order(found.get(placed.bucket, "0-0")):
                            found[placed.bucket] = placed.id
        return found

    def close(self) -> None:
        os.close(self._file)
        os.close(self._lock)


def _write(file: int, data: bytes) -> int:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
    return len(data)
