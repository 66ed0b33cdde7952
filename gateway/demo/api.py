"""The reference platform's product-attach API and directory: requests in, the store's answers out.

Every handler reads its request, says what is to be done, and leaves the doing to `Platform.perform`. Bodies
are read as any JSON API would: unknown members are ignored, and of an attach both `product_id` and
`product_ids` count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, TypeVar

import msgspec
from aiohttp import web

from gateway.demo.core import Platform, json_answer
from gateway.demo.store import Refused
from gateway.policy.model import Account, Product, Session, Surface

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class CreateBody(msgspec.Struct):
    account_id: Id
    session_id: Id | None = None


class AttachBody(msgspec.Struct):
    product_id: str | None = None
    product_ids: list[str] | None = None


class ReplaceBody(msgspec.Struct):
    product_id: str


MAX_PAGE: Final = 100_000

T = TypeVar("T")


def read(body: bytes, form: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=form)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, f"malformed body: {error}") from error


def read_product_ids(body: bytes) -> list[str]:
    asked = read(body, AttachBody)
    if asked.product_id is None and asked.product_ids is None:
        raise Refused(400, "malformed body: expected product_id or product_ids")
    return [*(asked.product_ids or ()), *(() if asked.product_id is None else (asked.product_id,))]


def read_number(request: web.Request, name: str, most: int) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 12 and int(text) <= most):
        raise Refused(400, f"{name} is {text!r}, expected a whole number up to {most}")
    return int(text)


class Api:
    """The contract's routes."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._store = platform.store
        self._perform = platform.perform

    def routes(self) -> list[web.RouteDef]:
        session = "/live/sessions/{session_id}"
        account = "/accounts/{account_id}"
        # Of one prefix, the router tries routes in this order: the busiest come first.
        return [
            web.post(session + "/products", self.attach),
            web.get(session + "/products", self.listed),
            web.delete(session + "/products/{product_id}", self.detach),
            web.put(session + "/products/{product_id}", self.replace),
            web.get(session, self.session),
            web.post(session + "/start", self.start),
            web.post(session + "/end", self.end),
            web.post("/live/sessions", self.create),
            web.get(account, self.account),
            web.get("/products/{product_id}", self.product),
            web.post(account + "/showcase/products", self.shelve),
            web.get(account + "/showcase/addable", self.addable),
            web.post(account + "/videos/{video_id}/products", self.shelve),
        ]

    async def create(self, request: web.Request) -> web.Response:
        body = await request.read()

        def work(half: bool) -> web.Response:
            asked = read(body, CreateBody)
            session = self._store.create(asked.session_id, asked.account_id, self._platform.clock())
            return json_answer(session, 201)

        return await self._perform(request, "create", work)

    async def start(self, request: web.Request) -> web.Response:
        session_id = request.match_info["session_id"]
        return await self._perform(
            request, "start", lambda half: json_answer(self._store.start(session_id, self._platform.clock()))
        )

    async def end(self, request: web.Request) -> web.Response:
        session_id = request.match_info["session_id"]
        return await self._perform(
            request, "end", lambda half: json_answer(self._store.end(session_id, self._platform.clock()))
        )

    async def attach(self, request: web.Request) -> web.Response:
        session_id = request.match_info["session_id"]
        body = await request.read()

        def work(half: bool) -> web.Response:
            product_ids = read_product_ids(body)
            return json_answer({"attached": self._store.attach(session_id, product_ids, self._platform.clock(), half)})

        return await self._perform(request, "attach", work)

    async def shelve(self, request: web.Request) -> web.Response:
        """Attach to the account's showcase, or to one of its videos where the path names one."""
        account_id = request.match_info["account_id"]
        video_id = request.match_info.get("video_id", "")
        surface = Surface.short_video if video_id else Surface.showcase
        body = await request.read()

        def work(half: bool) -> web.Response:
            product_ids = read_product_ids(body)
            attached = self._store.shelve(surface, account_id, video_id, product_ids, self._platform.clock(), half)
            return json_answer({"attached": attached})

        return await self._perform(request, "attach", work)

    async def detach(self, request: web.Request) -> web.Response:
        session_id, product_id = request.match_info["session_id"], request.match_info["product_id"]

        def work(half: bool) -> web.Response:
            self._store.detach(session_id, product_id, self._platform.clock())
            return web.Response(status=204)

        return await self._perform(request, "detach", work)

    async def replace(self, request: web.Request) -> web.Response:
        session_id, old_id = request.match_info["session_id"], request.match_info["product_id"]
        body = await request.read()

        def work(half: bool) -> web.Response:
            new_id = read(body, ReplaceBody).product_id
            self._store.replace(session_id, old_id, new_id, self._platform.clock())
            return json_answer({"product_id": new_id})

        return await self._perform(request, "replace", work)

    async def listed(self, request: web.Request) -> web.Response:
        session_id = request.match_info["session_id"]
        return await self._perform(
            request, "list", lambda half: json_answer({"products": self._store.listed(session_id)})
        )

    async def addable(self, request: web.Request) -> web.Response:
        """All products, or with `?limit=` a page of them, whose `next_cursor` is the next one's
        `?cursor=`."""
        account_id = request.match_info["account_id"]

        def work(half: bool) -> web.Response:
            cursor = read_number(request, "cursor", 10**12 - 1) or 0
            return json_answer(self._store.addable(account_id, cursor, read_number(request, "limit", MAX_PAGE)))

        return await self._perform(request, "list", work)

    async def account(self, request: web.Request) -> web.Response:
        account_id = request.match_info["account_id"]
        return await self._look_up(request, lambda: self._store.account(account_id))

    async def product(self, request: web.Request) -> web.Response:
        product_id = request.match_info["product_id"]
        return await self._look_up(request, lambda: self._store.product(product_id))

    async def session(self, request: web.Request) -> web.Response:
        session_id = request.match_info["session_id"]
        return await self._look_up(request, lambda: self._store.session(session_id))

    async def _look_up(self, request: web.Request, record: Callable[[], Account | Product | Session]) -> web.Response:
        return await self._perform(request, "directory", lambda half: json_answer(record()))
