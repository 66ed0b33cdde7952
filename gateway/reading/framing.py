"""Where in the bytes of a connection each request ends, read strictly, beside the parser in front.

The parser decides what a request is; this follows along in the same bytes, by what the parser said of each head. It
knows what aiohttp does not tell: whether a chunked body is plain, that is without chunk extensions and trailers (RFC
9112 section 7.1), and whether all bytes so far are used up. Extensions mean nothing to anybody and are read differently
by many (CVE-2025-55315): so they are refused. Where the two disagree about where a request is, `head` says so, and the
connection must end.
"""

from __future__ import annotations

import re

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")
_PART_OF_SIZE = re.compile(rb"[0-9A-Fa-f]{0,16}\r?")
_HEAD_END = b"\r\n\r\n"


class Framing:
    """One connection's bytes. `broken`: a chunk is not plain. `trailed`: trailers follow the chunks. `lost`: it is not
    followed any further."""

    __slots__ = ("_chunked", "_last", "_left", "_place", "_rest", "broken", "lost", "trailed")

    def __init__(self) -> None:
        self._rest = b""
        self._place = 0
        self._left = 0
        self._chunked = False
        self._last = False
        self.broken = self.trailed = self.lost = False

    @property
    def idle(self) -> bool:
        """Whether every request so far has been followed to its end, with nothing behind it."""
        return not self.lost and not self._in_body and self._place == len(self._rest)

    @property
    def _in_body(self) -> bool:
        return self._chunked or self._left > 0

    def lose(self) -> None:
        self.lost = True
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """More bytes; those of a body that has begun are followed at once."""
        if self.lost or not data:
            return
        self._rest = self._rest[self._place :] + data if self._place < len(self._rest) else data
        self._place = 0
        self._follow()

    def head(self, length: int, chunked: bool) -> bool:
        """The parser has found a head, with a body of this length in bytes or a chunked one. False where there is none
        in these bytes, or the body before it has not ended."""
        if self.lost or self._in_body:
            return False
        begin = self._place
        while self._rest[begin : begin + 1] in (b"\r", b"\n"):
            begin += 1
        end = self._rest.find(_HEAD_END, begin)
        if end < 0:
            return False
        self._place = end + len(_HEAD_END)
        self._left, self._chunked, self._last = length, chunked, False
        self._follow()
        return True

    def _follow(self) -> None:
        if self._chunked:
            self._follow_chunks()
        else:
            self._skip()

    def _skip(self) -> None:
        step = min(self._left, len(self._rest) - self._place)
        self._place += step
        self._left -= step

    def _follow_chunks(self) -> None:
        while True:
            self._skip()
            if self._left:
                return
            if self._last:
                self._follow_end()
                return
            found = _SIZE.match(self._rest, self._place)
            if found is None:
                self.broken = _PART_OF_SIZE.fullmatch(self._rest, self._place) is None
                return
            self._place = found.end()
            size = int(found[1], 16)
            self._last = size == 0
            self._left = size + len(b"\r\n") if size else 0

    def _follow_end(self) -> None:
        end = self._rest[self._place : self._place + 2]
        if end == b"\r\n":
            self._place += 2
            self._chunked = False
        elif end not in (b"", b"\r"):
            self.trailed = True
