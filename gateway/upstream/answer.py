"""An upstream's answer, from the bytes of its connection to what it says: whole, and in one reading. No I/O.

httptools reads; `Reading` keeps what it found, and judges it. An answer is the first message behind the interim ones;
anything behind it is noted (`behind`), since its connection must not be used again.

Most upstreams repeat their heads byte for byte while the second in their date is the same. `Heads` remembers what a
head was read as, and is no second reader: it knows only what httptools has read, and only where that can't depend on
anything but the head's own bytes: the answer came in one piece, its body is what stands behind the first empty line,
and its Content-Length says how many bytes that is. With the same head and as many bytes behind it, and nothing more,
httptools would read the same again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import httptools
from msgspec import Struct

Header = tuple[bytes, bytes]

MAX_OVERHEAD_BYTES = 65_536
"""Of an answer, all that is not its body: status line, fields, chunk sizes, interim answers, trailers. As many bytes as
the body has may come on top, for a body in tiny chunks."""

MAX_HEADS = 256
MAX_HEAD_BYTES = 2_048
"""What is remembered: so many, and no longer ones. All are forgotten when there are more."""

_VERSIONS = frozenset(("1.0", "1.1"))
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-connection", b"te", b"trailer", b"upgrade")
)
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))
_OF_THE_CONNECTION = _HOP_BY_HOP | _FRAMING
_EMPTY_LINE = b"\r\n\r\n"
_CHANGED = "The upstream changed the protocol without having been asked to."


class Head(Struct, frozen=True, gc=False):
    """What stands before an answer's body. `phrase` is empty where it has control characters. `headers`: the end-to-end
    fields (RFC 9110 section 7.6.1) in order. `keeps`: the connection may serve another request.
    `size` and `body_size`, in bytes, are of the answer that it was learnt from."""

    status: int
    phrase: bytes
    headers: Sequence[Header]
    keeps: bool
    size: int = 0
    body_size: int = 0


class Heads:
    """What the heads of one upstream were read as. A head is learnt when it comes again: of those that never do, only a
    hash is kept."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}
        self._met: set[int] = set()

    def of(self, data: bytes) -> Head | None:
        """The head of these bytes, where they are a whole answer with a known one and nothing else."""
        head = self._known.get(data[: data.find(_EMPTY_LINE) + 4])
        return head if head is not None and len(data) == head.size + head.body_size else None

    def learn(self, data: bytes, reading: Reading) -> None:
        """`data`: all that was read, in one piece, of an answer that is whole."""
        size = data.find(_EMPTY_LINE) + 4
        if size > MAX_HEAD_BYTES:
            return
        text, body = data[:size], reading.body
        if (met := hash(text)) not in self._met:
            if len(self._met) >= MAX_HEADS:
                self._met.clear()
            self._met.add(met)
        elif reading.framing == [(b"content-length", b"%d" % len(body))] and body == data[size:]:
            if len(self._known) >= MAX_HEADS:
                self._known.clear()
            head = reading.head
            self._known[text] = Head(head.status, head.phrase, head.headers, head.keeps, size, len(body))


class Reading:
    """One answer at a time, as it arrives. `problem` says why it is none; `done`: it is whole, with `head` and
    `body`. What is found once it is done, or can't be one any more, changes nothing of it. `head_done`: its body comes,
    `size` bytes of it so far; what is taken of it meanwhile (`take`) is not in `body`.

    Each answer has a parser of its own, and nothing of the one before it."""

    head: Head
    body: bytes

    def __init__(self, max_answer_bytes: int) -> None:
        self._limit_bytes = max_answer_bytes
        self.begin()

    def begin(self, *, limited: bool = True) -> None:
        """What is fed from now on is another answer; `limited`: its body may be no longer than `max_answer_bytes`."""
        self._limited = limited
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._received = self.size = 0
        self.problem = ""
        self.done = self.behind = False
        self._begin_head()

    def _begin_head(self) -> None:
        self._phrase = b""
        self._fields: list[Header] = []
        self._names: list[bytes] = []
        self.framing: list[Header] = []
        self.head_done = False

    def feed(self, data: bytes) -> None:
        """More bytes of the connection, in order."""
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(_CHANGED)
        except httptools.HttpParserError as error:
            self._refuse(f"The upstream's answer is not HTTP: {error}.")
        if self._received - self.size > MAX_OVERHEAD_BYTES + self.size:
            self._refuse(f"The upstream's answer has more than {MAX_OVERHEAD_BYTES} bytes of head.")

    def end(self) -> None:
        """The connection ends here, in good order; so does a body whose length nobody said."""
        if self.head_done and not self.framing and not self.done and not self.problem:
            self._finish(keeps=False)

    def _refuse(self, problem: str) -> None:
        if self.done:
            self.behind = True
        elif not self.problem:
            self.problem = problem

    def _finish(self, *, keeps: bool) -> None:
        self.done = True
        self.head = self.head_of(keeps=keeps)
        self.body = self.take()

    def head_of(self, *, keeps: bool) -> Head:
        """The answer's head, once it is there."""
        phrase = b"" if _CONTROL.search(self._phrase) else self._phrase
        return Head(self._parser.get_status_code(), phrase, end_to_end(self._fields, self._names), keeps)

    @property
    def length(self) -> int | None:
        """Of the body in bytes, where the head says it."""
        name, value = self.framing[0] if len(self.framing) == 1 else (b"", b"")
        return int(value) if name == b"content-length" else None

    def take(self) -> bytes:
        """What has come of the body since it was last asked for."""
        body = b"".join(self._pieces)
        self._pieces.clear()
        return body

    def on_message_begin(self) -> None:
        self.behind = self.done

    def on_status(self, phrase: bytes) -> None:
        self._phrase += phrase

    def on_header(self, name: bytes, value: bytes) -> None:
        """Trailers go no further: they come too late to be judged with the fields."""
        if not self.head_done:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        self.head_done = True
        names = self._names = [name.lower() for name, _ in self._fields]
        self.framing = [(name, field[1]) for name, field in zip(names, self._fields, strict=True) if name in _FRAMING]
        codings = [value.lower() for name, value in self.framing if name == b"transfer-encoding"]
        if codings not in ([], [b"chunked"]):
            self._refuse("The upstream's answer has a transfer coding that this gateway can't undo.")
        if self._parser.get_http_version() not in _VERSIONS or self._parser.get_status_code() < 100:
            self._refuse("The upstream's answer is not HTTP/1.1.")

    def on_body(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self._limited and self.size > self._limit_bytes:
            self._refuse(f"The upstream's answer is over {self._limit_bytes} bytes.")
        else:
            self._pieces.append(chunk)

    def on_message_complete(self) -> None:
        if self.done or self.problem:
            return
        status = self._parser.get_status_code()
        if status == 101:
            self._refuse(_CHANGED)
        elif status < 200:
            self._begin_head()
        else:
            self._finish(keeps=bool(self._parser.should_keep_alive()))


def end_to_end(fields: Sequence[Header], names: Sequence[bytes]) -> tuple[Header, ...]:
    """The fields without those of the connection (RFC 9110 section 7.6.1). `names`: theirs, in lower case."""
    dropped = _OF_THE_CONNECTION
    if b"connection" in names:
        values = [field[1] for field, name in zip(fields, names, strict=True) if name == b"connection"]
        dropped = dropped.union(token.strip().lower() for value in values for token in value.split(b","))
    return tuple([field for field, name in zip(fields, names, strict=True) if name not in dropped])
