"""The reference platform's test controls under `/_platform/`: records, faults, the journal.

They are never subject to a fault or to the latency themselves.
"""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from gateway.demo.api import read, read_number
from gateway.demo.core import Platform, attempt, json_answer
from gateway.demo.faults import Fault
from gateway.demo.store import Refused
from gateway.policy.model import Account, Product


class Controls:
    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def routes(self) -> list[web.RouteDef]:
        return [
            web.put("/_platform/accounts/{id}", self.put_account),
            web.put("/_platform/products/{id}", self.put_product),
            web.post("/_platform/faults", self.post_fault),
            web.delete("/_platform/faults", self.delete_faults),
            web.get("/_platform/journal", self.journal),
            web.delete("/_platform/journal", self.delete_journal),
        ]

    async def put_account(self, request: web.Request) -> web.Response:
        return await self._put(request, "account_id", Account)

    async def put_product(self, request: web.Request) -> web.Response:
        return await self._put(request, "product_id", Product)

    async def _put(self, request: web.Request, key: str, form: type[Account] | type[Product]) -> web.Response:
        """The body is the directory's record; its id may be left out, as the path says it."""
        body = await request.read()

        def work(half: bool) -> web.Response:
            members: dict[str, Any] = read(body, dict[str, Any])
            record_id = request.match_info["id"]
            if members.setdefault(key, record_id) != record_id:
                raise Refused(400, f"malformed body: {key} differs from the path's {record_id}")
            try:
                record: Account | Product = msgspec.convert(members, form)
            except msgspec.ValidationError as error:
                raise Refused(400, f"malformed body: {error}") from error
            self._platform.store.upsert(record)
            return json_answer(record)

        return attempt(work)

    async def post_fault(self, request: web.Request) -> web.Response:
        body = await request.read()

        def work(half: bool) -> web.Response:
            fault = read(body, Fault)
            self._platform.faults.post(fault)
            return json_answer(fault)

        return attempt(work)

    async def delete_faults(self, request: web.Request) -> web.Response:
        self._platform.end_faults()
        return web.Response(status=204)

    async def journal(self, request: web.Request) -> web.Response:
        """Every entry, or with `?after=SEQ` those above it."""

        def work(half: bool) -> web.Response:
            after = read_number(request, "after", 10**12 - 1) or 0
            return json_answer({"entries": self._platform.store.entries(after)})

        return attempt(work)

    async def delete_journal(self, request: web.Request) -> web.Response:
        self._platform.store.forget_entries()
        return web.Response(status=204)
