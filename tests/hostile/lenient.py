"""An upstream that reads as leniently as any that we know of, in one of several ways.

A gateway can be walked around where it and what stands behind it read one request in two ways. So this server takes
whatever could be taken for an attach, by its `Reading`: the first or the last of two equal keys, a length or chunks,
paths decoded twice, another case, ids in the query or in a form, methods and addresses in header fields. What it then
applies goes through the reference platform's own store, whose journal the oracle reads. Nothing here is a library's
parser: they refuse too much.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import time
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote_plus, unquote_to_bytes

import msgspec

from gateway.demo.records import DEMO_RECORDS
from gateway.demo.store import Refused, Store
from gateway.policy.model import Surface

Which = Literal["first", "last", "all"]


@dataclass(frozen=True)
class Reading:
    """`keys`: which of several equal members, fields or parameters counts. `framing`: which of two counts.
    `decodings`: how often a path is decoded. `folds`: case, width and accents do not matter. `tidies`: slashes, dots,
    parameters and suffixes of a path are cleared away. `overrides`: fields, parameters and forms may say another
    method, another address. `sources`: ids are looked for in the query and in forms, too. `haggles`: whether the
    client wants such an answer is looked at behind the work, as frameworks and proxies do."""

    name: str
    keys: Which = "last"
    framing: Literal["length", "chunks"] = "chunks"
    decodings: int = 1
    folds: bool = False
    tidies: bool = False
    overrides: bool = False
    sources: bool = False
    haggles: bool = False


READINGS = (
    Reading("first-wins", keys="first", framing="length", tidies=True),
    Reading("last-wins", keys="last", framing="chunks", tidies=True, haggles=True),
    Reading("decodes-twice", keys="last", decodings=2, tidies=True, folds=True),
    Reading("overridden", keys="first", overrides=True, sources=True, tidies=True),
    Reading(
        "takes-all",
        keys="all",
        framing="length",
        decodings=3,
        folds=True,
        tidies=True,
        overrides=True,
        sources=True,
        haggles=True,
    ),
)

_SUFFIX = re.compile(r"\.(?:json|xml|html|js|css|php|ico|png|do|action)\Z")
_COOKIELESS = re.compile(r"/\([A-Za-z]\([^/]*\)\)(?=/)")
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")


@dataclass
class Asked:
    """One request as this server takes it."""

    method: str
    path: list[str]
    query: list[tuple[str, str]]
    fields: list[tuple[str, str]]
    body: bytes


class Lenient:
    """Listens on `url`. `store` holds what was applied; `as_others` lists requests that a session's or shelf's own
    account did not seem to have sent; `most_at_once` is how many requests were in hand together."""

    def __init__(self) -> None:
        self.reading = READINGS[0]
        self.store = Store(DEMO_RECORDS)
        self.as_others: list[str] = []
        self.most_at_once = 0
        self._at_once = 0
        self._told: dict[tuple[str, str, str], tuple[int, Any]] = {}
        self.url = ""
        self.port = 0
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 22)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    # The connection

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            while (asked := await self._read(reader)) is not None:
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
                await asyncio.sleep(0)
                status, answer = self._replayed(asked) or self._answer(asked)
                if self.reading.haggles and status == 200:
                    status, answer = _haggled(asked, answer)
                self._at_once -= 1
                body = b"" if status == 204 else msgspec.json.encode(answer)
                length = b"" if status == 204 else b"Content-Length: %d\r\n" % len(body)
                head = b"HTTP/1.1 %d .\r\nContent-Type: application/json\r\n%b\r\n" % (status, length)
                writer.write(head if asked.method == "HEAD" else head + body)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass
        finally:
            self._serving.discard(task)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Asked | None:
        line = b"\n"
        while line.strip() == b"" and line:
            line = await reader.readline()
        if not line:
            return None
        parts = line.decode("latin-1").split()
        method, target = parts[0], parts[1] if len(parts) > 1 else "/"
        fields: list[tuple[str, str]] = []
        while (line := await reader.readline()).strip():
            text = line.decode("latin-1")
            if text[0] in " \t" and fields:
                fields[-1] = (fields[-1][0], fields[-1][1] + text.strip())
                continue
            name, _, value = text.partition(":")
            fields.append((_field_name(name), value.strip()))
        body = await self._body(reader, fields)
        return self._taken(method, target, fields, body)

    async def _body(self, reader: asyncio.StreamReader, fields: list[tuple[str, str]]) -> bytes:
        lengths = [int(digits[0]) for n, v in fields if n == "content-length" and (digits := re.search(r"\d+", v))]
        chunked = any("chunked" in v.lower() for n, v in fields if n == "transfer-encoding")
        length = lengths[0 if self.reading.keys == "first" else -1] if lengths else None
        if chunked and (length is None or self.reading.framing == "chunks"):
            pieces = []
            while True:
                digits = re.match(rb"\s*(?:0x)?([0-9A-Fa-f]+)", await reader.readline())
                if digits is None or not (size := int(digits[1], 16)):
                    break
                pieces.append(await reader.readexactly(size))
                await reader.readline()
            while (await reader.readline()).strip():
                pass
            return b"".join(pieces)
        return await reader.readexactly(length) if length else b""

    # What the request says

    def _taken(self, method: str, target: str, fields: list[tuple[str, str]], body: bytes) -> Asked:
        if self.reading.overrides:
            target = self._one(fields, ("x-original-url", "x-rewrite-url", "x-original-uri")) or target
        target = _ABSOLUTE.sub("", target, count=1).partition("#")[0]
        path, _, query = target.partition("?")
        path = path.encode("latin-1").decode("utf-8", "surrogateescape")
        for _ in range(self.reading.decodings):
            path, _, more = _unescaped(path).partition("?")
            query = f"{query}&{more}"
        parameters = _parameters(query)
        if self.reading.overrides:
            form = _parameters(body.decode("latin-1"))
            named = self._one(fields, ("x-http-method-override", "x-http-method", "x-method-override"))
            named = named or self._one([*parameters, *form], ("_method", "x-http-method-override"))
            method = named or method
        return Asked(method.upper(), self._segments(path), parameters, fields, body)

    def _segments(self, path: str) -> list[str]:
        if self.reading.folds:
            path = self._id(path)
        if not self.reading.tidies:
            return path.split("/")[1:]
        path = _COOKIELESS.sub("", path.replace("\\", "/").replace("\0", "").replace("+", " "))
        found: list[str] = []
        for part in path.split("/"):
            name = part.partition(";")[0].strip(" \t\r\n")
            if name == "..":
                del found[-1:]
            elif name not in ("", "."):
                found.append(name)
        if found:
            found[-1] = _SUFFIX.sub("", found[-1].rstrip("."))
        return found

    def _one(self, pairs: Sequence[tuple[str, str]], names: tuple[str, ...]) -> str | None:
        found = [value for name, value in pairs if name.lower() in names]
        if not found:
            return None
        return found[0 if self.reading.keys == "first" else -1]

    def _id(self, value: Any) -> str:
        text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        text = text.replace("\0", "").strip()
        if self.reading.folds:
            wide = unicodedata.normalize("NFKD", text)
            text = "".join(c for c in wide if unicodedata.category(c)[0] not in "MC").lower()
        return text

    def _account(self, asked: Asked) -> str | None:
        """Who seems to ask. Of one field with several accounts, one counts too."""
        values = [part.strip() for n, v in asked.fields if n == "x-account-id" for part in v.split(",")]
        if self.reading.sources:
            values = [v for n, v in asked.query if n.lower() == "account_id"] + values
        return (values[0] if self.reading.keys == "first" else values[-1]) if values else None

    def _products(self, asked: Asked) -> list[str]:
        pairs = list(self._members(asked))
        if self.reading.sources:
            pairs += asked.query + _parameters(asked.body.decode("latin-1"))
        found: list[list[str]] = []
        for name, value in pairs:
            plain = re.sub(r"[^a-z]", "", name.lower() if self.reading.folds or self.reading.sources else name)
            if plain in ("productid", "productids"):
                found.append([self._id(v) for v in (value if isinstance(value, list) else [value])])
        if not found:
            return []
        if self.reading.keys == "all":
            return [product_id for ids in found for product_id in ids]
        return found[0 if self.reading.keys == "first" else -1]

    def _members(self, asked: Asked) -> Iterable[tuple[str, Any]]:
        """The members of the body's first JSON value, with equal ones kept, whatever the body is said to be."""
        text = _text(asked).lstrip("\ufeff\0 \t\r\n")
        if self.reading.folds:
            text = unicodedata.normalize("NFKC", text)
        decoder = json.JSONDecoder(object_pairs_hook=lambda pairs: pairs, strict=False)
        try:
            value, _ = decoder.raw_decode(text.replace("\0", ""))
        except (ValueError, RecursionError):
            return []
        while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
            value = value[0]
        return value if isinstance(value, list) and all(isinstance(pair, tuple) for pair in value) else []

    # What is done

    def _replayed(self, asked: Asked) -> tuple[int, Any] | None:
        """Nothing is done: it is only tried out, or was done once under the same key, and is answered as it was."""
        if not self.reading.haggles:
            return None
        if any(name in ("dry_run", "x-dry-run") for name, _ in [*asked.query, *asked.fields]):
            return 200, {"attached": []}
        keys = [value for name, value in asked.fields if name == "idempotency-key"]
        if not keys:
            return None
        told = (asked.method, "/".join(asked.path), keys[0])
        if told not in self._told:
            self._told[told] = self._answer(asked)
        return self._told[told]

    def _answer(self, asked: Asked) -> tuple[int, Any]:
        try:
            return self._do(asked)
        except Refused as refused:
            return refused.status, {"error": refused.message}

    def _do(self, asked: Asked) -> tuple[int, Any]:
        match asked.path:
            case ["live", "sessions"] if asked.method == "POST":
                return self._create(asked)
            case ["live", "sessions", session_id]:
                return 200, self.store.session(self._session(asked, session_id))
            case ["live", "sessions", session_id, "products"]:
                session_id = self._session(asked, session_id)
                if asked.method in ("GET", "HEAD", "OPTIONS"):
                    return 200, {"products": self.store.listed(session_id)}
                self._note(asked, self.store.session(session_id).account_id)
                return 200, {"attached": self.store.attach(session_id, self._must(asked), time.time())}
            case ["live", "sessions", session_id, ("start" | "end") as step] if asked.method not in ("GET", "HEAD"):
                self._note(asked, self.store.session(session_id).account_id)
                return 200, getattr(self.store, step)(session_id, time.time())
            case ["live", "sessions", session_id, "products", product_id] if asked.method in ("DELETE", "PUT", "PATCH"):
                self._note(asked, self.store.session(session_id).account_id)
                if asked.method == "DELETE":
                    self.store.detach(session_id, self._id(product_id), time.time())
                    return 204, None
                new = self._must(asked)[-1]
                self.store.replace(session_id, self._id(product_id), new, time.time())
                return 200, {"product_id": new}
            case ["accounts", account_id]:
                return 200, self.store.account(account_id)
            case ["products", product_id]:
                return 200, self.store.product(product_id)
            case ["accounts", account_id, "showcase", "addable"]:
                return 200, self.store.addable(account_id, 0, None)
            case ["accounts", account_id, "showcase", "products"] if asked.method not in ("GET", "HEAD"):
                return self._shelve(asked, Surface.showcase, account_id, "")
            case ["accounts", account_id, "videos", video_id, "products"] if asked.method not in ("GET", "HEAD"):
                return self._shelve(asked, Surface.short_video, account_id, video_id)
        return 404, {"error": "nothing here"}

    def _create(self, asked: Asked) -> tuple[int, Any]:
        members = dict(self._members(asked))
        self._note(asked, str(members.get("account_id")))
        return 201, self.store.create(members.get("session_id"), str(members.get("account_id")), time.time())

    def _shelve(self, asked: Asked, surface: Surface, account_id: str, video_id: str) -> tuple[int, Any]:
        self._note(asked, account_id)
        return 200, {"attached": self.store.shelve(surface, account_id, video_id, self._must(asked), time.time())}

    def _session(self, asked: Asked, in_path: str) -> str:
        named = self._one(asked.query, ("session_id",)) if self.reading.sources else None
        return named or in_path

    def _must(self, asked: Asked) -> list[str]:
        found = self._products(asked)
        if not found:
            raise Refused(400, "names no product")
        return found

    def _note(self, asked: Asked, owner: str) -> None:
        if (seems := self._account(asked)) != owner:
            self.as_others.append(f"{asked.method} /{'/'.join(asked.path)} of {owner} as {seems}")


def _unescaped(path: str) -> str:
    """With the overlong forms of a slash and a dot that a careless decoder takes."""
    plain = unquote_to_bytes(path.encode("utf-8", "surrogateescape"))
    return plain.replace(b"\xc0\xaf", b"/").replace(b"\xc0\xae", b".").decode("utf-8", "replace")


def _field_name(name: str) -> str:
    """Another server behind CGI would not tell these apart."""
    return re.sub(r"[_. ]", "-", name.strip().lower())


def _parameters(text: str) -> list[tuple[str, str]]:
    found = []
    for part in re.split("[&;]", text):
        name, _, value = part.partition("=")
        name = unquote_plus(unquote_plus(name)).partition("[")[0]
        if name and not set(name) & set('"{}<>\r\n'):
            found.append((name, unquote_plus(value)))
    return found


_UNDO: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "x-gzip": gzip.decompress,
    "deflate": zlib.decompress,
}


def _haggled(asked: Asked, answer: Any) -> tuple[int, Any]:
    """What has been done already is answered as if it had not: no such form (406), no such part (416), not under this
    condition (412)."""
    wanted = {name: value.lower() for name, value in [*asked.query, *asked.fields]}
    forms = wanted.get("accept", "*/*") + wanted.get("format", "")
    if not re.search(r"json|\*/\*", forms) or wanted.get("format", "json") != "json":
        return 406, {"error": "not acceptable"}
    if "if-none-match" in wanted or "if-match" in wanted or "if-unmodified-since" in wanted:
        return 412, {"error": "precondition failed"}
    if found := re.match(r"bytes=(\d+)-", wanted.get("range", "")):
        return (206, {"attached": []}) if int(found[1]) < 100 else (416, {"error": "no such range"})
    return 200, answer


_MARKS = (
    *((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")),
    *((b"{\0\0\0", "utf-32-le"), (b"\0\0\0{", "utf-32-be"), (b"{\0", "utf-16-le"), (b"\0{", "utf-16-be")),
    *((b"+AHs", "utf-7"), (b"\xc0", "cp037")),
)


def _decoded(asked: Asked) -> bytes:
    body = asked.body
    for name, value in asked.fields:
        if name == "content-encoding":
            for coding in reversed(value.lower().split(",")):
                try:
                    body = _UNDO.get(coding.strip(), bytes)(body)
                except (OSError, EOFError, zlib.error):
                    return body
    return body


def _text(asked: Asked) -> str:
    """By the client's charset where that is one, else by the look of the first bytes."""
    body = _decoded(asked)
    kind = next((value for name, value in asked.fields if name == "content-type"), "")
    if named := re.search(r"charset=[\"']?([\w.-]+)", kind):
        try:
            return body.decode(named[1], "replace")
        except (LookupError, UnicodeError):
            pass
    for mark, charset in _MARKS:
        if body.startswith(mark):
            return body.decode(charset, "replace")
    return body.decode("utf-8", "surrogateescape")
