"""The directory's client against a real HTTP server that answers as each test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from gateway import config
from gateway import directory as module
from gateway.directory import Directory
from gateway.errors import AccountUnknown, DirectoryUnavailable, ProductUnknown, SessionUnknown
from gateway.policy.model import Account, Kind, Product, Session, SessionState, Shop, ShopType

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Service:
    """A directory that knows products of one shop, sessions of one account, and what a test puts in the way.

    While `gate` is clear, questions wait: `arrived` says that one does."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.arrived = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.state = "preparing"
        self.shop = "shop-1"
        self.instead: Handler | None = None
        self.url = ""
        self.concurrent = self.most_concurrent = 0

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request.raw_path)
        self.concurrent += 1
        self.most_concurrent = max(self.most_concurrent, self.concurrent)
        # What is true is decided when the question arrives, however long the answer takes.
        said = await self.instead(request) if self.instead else self.record(request.path)
        self.arrived.set()
        try:
            await self.gate.wait()
        finally:
            self.concurrent -= 1
        return said

    def record(self, path: str) -> web.Response:
        kind, _, identifier = path.rpartition("/")
        if identifier.startswith("no"):
            return web.json_response({"error": "unknown"}, status=404)
        match kind:
            case "/accounts":
                shop = {"shop_id": self.shop, "shop_type": "flagship", "city": "Hangzhou"}
                return web.json_response({"account_id": identifier, "kind": "official", "shop": shop, "fans": 7})
            case "/products":
                return web.json_response({"product_id": identifier, "shop_id": self.shop})
            case "/live/sessions":
                return web.json_response({"session_id": identifier, "account_id": "a1", "state": self.state})
        raise AssertionError(path)


def always(body: bytes = b"", status: int = 200, **headers: str) -> Handler:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=body, status=status, headers=headers)

    return handler


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    server = RawTestServer(service.answer)
    await server.start_server()
    service.url = str(server.make_url("/"))
    yield service
    service.gate.set()
    await server.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def make(service: Service, clock: Clock) -> AsyncIterator[Callable[..., Directory]]:
    made: list[Directory] = []

    def make(url: str = "", **settings: object) -> Directory:
        made.append(
            Directory(
                config.Directory(**{"timeout_seconds": 5.0, **settings}),  # type: ignore[arg-type]
                config.Upstream(url=url or service.url),
                clock,
            )
        )
        return made[-1]

    yield make
    for directory in made:
        await directory.close()


@pytest.fixture
def directory(make: Callable[..., Directory]) -> Directory:
    return make(ttl_seconds=5.0, negative_ttl_seconds=1.0, stale_if_error_seconds=30.0)


async def test_records_are_read_and_unknown_members_ignored(directory: Directory) -> None:
    assert await directory.account("a1") == Account("a1", Kind.official, False, Shop("shop-1", ShopType.flagship))
    assert await directory.product("p1") == Product("p1", "shop-1")
    assert await directory.session("s1") == Session("s1", "a1", SessionState.preparing)


async def test_peek_answers_only_what_is_fresh(directory: Directory, clock: Clock, service: Service) -> None:
    assert directory.peek_account("a1") is None
    record = await directory.account("a1")
    assert directory.peek_account("a1") is record
    assert (directory.peek_product("a1"), directory.peek_session("a1")) == (None, None)
    clock.now += 4.99
    assert directory.peek_account("a1") is record
    clock.now += 0.01
    assert directory.peek_account("a1") is None
    assert len(service.asked) == 1


async def test_a_change_takes_effect_within_the_ttl(directory: Directory, clock: Clock, service: Service) -> None:
    await directory.account("a1")
    service.shop = "shop-2"
    account = await directory.account("a1")
    assert account.shop is not None
    assert account.shop.shop_id == "shop-1"
    clock.now += 5
    account = await directory.account("a1")
    assert account.shop is not None
    assert account.shop.shop_id == "shop-2"


async def test_the_ttl_counts_from_the_question_not_from_the_answer(
    directory: Directory, clock: Clock, service: Service
) -> None:
    service.gate.clear()
    waiting = asyncio.ensure_future(directory.session("s1"))
    await service.arrived.wait()
    clock.now += 4
    service.gate.set()
    await waiting
    assert directory.peek_session("s1") is not None
    clock.now += 1
    assert directory.peek_session("s1") is None


async def test_a_thousand_misses_make_one_request(directory: Directory, service: Service) -> None:
    service.gate.clear()
    waiting = [asyncio.ensure_future(directory.account("a1")) for _ in range(1000)]
    await service.arrived.wait()
    service.gate.set()
    records = await asyncio.gather(*waiting)
    assert len(service.asked) == 1
    assert all(record is records[0] for record in records)
    assert directory.account_records.misses == 1000


async def test_a_cancelled_waiter_spoils_nothing_for_the_others(directory: Directory, service: Service) -> None:
    service.gate.clear()
    first, *others = [asyncio.ensure_future(directory.account("a1")) for _ in range(10)]
    await service.arrived.wait()
    first.cancel()
    others[-1].cancel()
    await asyncio.wait((first, others[-1]))
    service.gate.set()
    assert {(await other).account_id for other in others[:-1]} == {"a1"}
    assert first.cancelled()
    assert others[-1].cancelled()
    assert len(service.asked) == 1


async def test_a_look_up_whose_waiters_are_all_gone_is_still_remembered(directory: Directory, service: Service) -> None:
    service.gate.clear()
    waiting = asyncio.ensure_future(directory.account("a1"))
    await service.arrived.wait()
    waiting.cancel()
    await asyncio.wait((waiting,))
    joined = asyncio.ensure_future(directory.account("a1"))
    service.gate.set()
    await joined
    assert directory.peek_account("a1") is not None
    assert len(service.asked) == 1


async def test_each_waiter_of_a_failed_look_up_gets_an_error_of_its_own(directory: Directory, service: Service) -> None:
    service.instead = always(status=500)
    results = await asyncio.gather(*(directory.account("a1") for _ in range(3)), return_exceptions=True)
    assert all(isinstance(result, DirectoryUnavailable) for result in results)
    assert len({id(result) for result in results}) == 3
    assert len(service.asked) == 1


async def test_a_batch_asks_for_all_its_products_at_once(directory: Directory, service: Service) -> None:
    await directory.product("p0")
    service.gate.clear()
    waiting = asyncio.ensure_future(directory.products([f"p{n}" for n in range(10)] + ["p3"]))
    while service.concurrent < 9:
        service.arrived.clear()
        await service.arrived.wait()
    service.gate.set()
    assert [product.product_id for product in await waiting] == [f"p{n}" for n in range(10)] + ["p3"]
    assert len(service.asked) == 10


async def test_a_batch_names_every_unknown_product_in_one_error(directory: Directory) -> None:
    with pytest.raises(ProductUnknown) as refused:
        await directory.products(["p1", "no1", "p2", "no2"])
    assert "no1, no2" in refused.value.detail
    assert "p1" not in refused.value.detail


async def test_a_product_whose_owner_cannot_be_learnt_refuses_the_batch(directory: Directory, service: Service) -> None:
    await directory.product("p1")
    service.instead = always(status=503)
    with pytest.raises(DirectoryUnavailable, match="product p2: it answered 503"):
        await directory.products(["p1", "p2"])


@pytest.mark.parametrize(
    ("look_up", "error"),
    [("account", AccountUnknown), ("product", ProductUnknown), ("session", SessionUnknown)],
)
async def test_what_does_not_exist_is_remembered_for_the_negative_ttl(
    directory: Directory, clock: Clock, service: Service, look_up: str, error: type[Exception]
) -> None:
    for _ in range(3):
        with pytest.raises(error, match="no-such"):
            await getattr(directory, look_up)("no-such")
    assert len(service.asked) == 1
    clock.now += 1
    with pytest.raises(error):
        await getattr(directory, look_up)("no-such")
    assert len(service.asked) == 2
    assert getattr(directory, f"{look_up}_records").negative == 2


async def test_a_flood_of_unknown_ids_evicts_no_record_and_stays_bounded(
    make: Callable[..., Directory], monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    monkeypatch.setattr(module, "MAX_UNKNOWN", 20)
    directory = make(max_entries=16)
    await directory.products([f"p{n}" for n in range(16)])
    for n in range(50):
        with pytest.raises(ProductUnknown):
            await directory.product(f"no{n}")
    assert all(directory.peek_product(f"p{n}") for n in range(16))
    assert len(directory.product_records._unknown) == 20
    asked = len(service.asked)
    with pytest.raises(ProductUnknown):
        await directory.product("no49")
    assert len(service.asked) == asked


async def test_the_oldest_record_makes_room(make: Callable[..., Directory]) -> None:
    directory = make(max_entries=16)
    for n in range(17):
        await directory.product(f"p{n}")
    assert directory.peek_product("p0") is None
    assert all(directory.peek_product(f"p{n}") for n in range(1, 17))
    assert len(directory.product_records) == 16


async def test_records_beyond_use_fade(make: Callable[..., Directory], clock: Clock) -> None:
    directory = make(ttl_seconds=5.0, stale_if_error_seconds=30.0)
    await directory.products([f"p{n}" for n in range(6)])
    clock.now += 35
    for n in range(6, 9):
        await directory.product(f"p{n}")
    assert len(directory.product_records) == 3


async def test_a_record_that_expired_on_its_way_is_served_but_not_kept(
    make: Callable[..., Directory], clock: Clock, service: Service
) -> None:
    directory = make(ttl_seconds=1.0, stale_if_error_seconds=0.0)
    service.gate.clear()
    waiting = asyncio.ensure_future(directory.account("a1"))
    await service.arrived.wait()
    clock.now += 2
    service.gate.set()
    assert (await waiting).account_id == "a1"
    assert len(directory.account_records) == 0


async def test_an_expired_record_serves_while_the_directory_fails(
    directory: Directory, clock: Clock, service: Service
) -> None:
    record = await directory.account("a1")
    clock.now += 5
    service.instead = always(status=500)
    assert await directory.account("a1") is record
    assert (directory.account_records.stale, directory.account_records.errors) == (1, 1)
    assert directory.peek_account("a1") is record, "and for a second nobody waits for the directory again"
    clock.now += 1
    assert directory.peek_account("a1") is None
    assert await directory.account("a1") is record
    assert len(service.asked) == 3
    clock.now += 29
    with pytest.raises(DirectoryUnavailable):
        await directory.account("a1")
    service.instead = None
    assert (await directory.account("a1")).account_id == "a1"


async def test_stale_is_never_served_past_its_limit(
    make: Callable[..., Directory], clock: Clock, service: Service
) -> None:
    directory = make(ttl_seconds=5.0, stale_if_error_seconds=0.5)
    record = await directory.account("a1")
    service.instead = always(status=500)
    clock.now += 5
    assert await directory.account("a1") is record
    clock.now += 0.5
    assert directory.peek_account("a1") is None


async def test_not_found_is_an_answer_and_ends_a_known_record(
    directory: Directory, clock: Clock, service: Service
) -> None:
    await directory.session("s1")
    clock.now += 5
    service.instead = always(status=404)
    with pytest.raises(SessionUnknown):
        await directory.session("s1")
    service.instead = always(status=500)
    clock.now += 1
    with pytest.raises(DirectoryUnavailable):
        await directory.session("s1")


async def test_a_batch_serves_expired_records_too(directory: Directory, clock: Clock, service: Service) -> None:
    records = await directory.products(["p1", "p2"])
    clock.now += 5
    service.instead = always(status=500)
    assert await directory.products(["p2", "p1"]) == records[::-1]


NESTED = b'{"product_id":"p1","shop_id":"s","x":' + b"[" * 30_000 + b"]" * 30_000 + b"}"


@pytest.mark.parametrize(
    "instead",
    [
        always(status=500),
        always(status=429),
        always(status=403),
        always(status=204),
        always(b'{"product_id":"p1","shop_id":"s"}', status=206),
        always(status=302, Location="/products/p1"),
        always(b""),
        always(b"<html>"),
        always(b'{"product_id":"p1"}'),
        always(b'{"product_id":"p1","shop_id":7}'),
        always(b'{"product_id":"p1","shop_id":null}'),
        always(b'{"product_id":"p1","shop_id":"s'),
        always(b'{"product_id":"p1","shop_id":"s"}{}'),
        always(b'{"product_id":"p1","shop_id":"\xff"}'),
        always(b'[{"product_id":"p1","shop_id":"s"}]'),
        always(b'{"product_id":"p2","shop_id":"s"}'),
        always(b'{"product_id":"P1","shop_id":"s"}'),
        always(b'{"product_id":"p1","shop_id":"' + b"s" * module.LIMIT_BYTES + b'"}'),
        always(NESTED),
    ],
)
async def test_no_usable_answer_is_unavailable_never_guessed(
    directory: Directory, service: Service, instead: Handler
) -> None:
    service.instead = instead
    with pytest.raises(DirectoryUnavailable) as refused:
        await directory.product("p1")
    assert "127.0.0.1" not in refused.value.detail
    assert directory.peek_product("p1") is None
    assert len(service.asked) == 1
    assert directory.product_records.errors == 1


async def test_an_account_of_a_kind_that_is_not_known_is_unavailable(directory: Directory, service: Service) -> None:
    service.instead = always(b'{"account_id":"a1","kind":"robot","shop":null}')
    with pytest.raises(DirectoryUnavailable):
        await directory.account("a1")


async def test_a_body_that_ends_early_or_never_ends_is_unavailable(directory: Directory, service: Service) -> None:
    async def truncated(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "500"})
        await response.prepare(request)
        await response.write(b'{"product_id":"p1","shop_id":"s"}')
        assert request.transport is not None
        request.transport.close()
        return response

    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            try:
                await response.write(b" " * 8192)
            except ConnectionError:
                return response

    for service.instead in (truncated, endless):
        with pytest.raises(DirectoryUnavailable):
            await directory.product("p1")


async def test_a_directory_that_does_not_answer_in_time_is_unavailable(
    make: Callable[..., Directory], service: Service
) -> None:
    directory = make(timeout_seconds=0.05)
    service.gate.clear()
    with pytest.raises(DirectoryUnavailable, match=r"within 0\.05 s|in time"):
        await directory.product("p1")


async def test_a_directory_that_is_not_there_is_unavailable(make: Callable[..., Directory]) -> None:
    closed = RawTestServer(always())  # type: ignore[arg-type]
    await closed.start_server()
    url = str(closed.make_url("/"))
    await closed.close()
    with pytest.raises(DirectoryUnavailable) as refused:
        await make(url).product("p1")
    assert "127.0.0.1" not in refused.value.detail


@pytest.mark.parametrize(
    ("identifier", "path"),
    [
        ("a:b", "a%3Ab"),
        ("a/b", "a%2Fb"),
        ("a?b#c", "a%3Fb%23c"),
        ("a b%20", "a%20b%2520"),
        ("达人", "%E8%BE%BE%E4%BA%BA"),
    ],
)
async def test_ids_are_percent_encoded_into_the_path(
    make: Callable[..., Directory], service: Service, identifier: str, path: str
) -> None:
    directory = make(service.url + "v1/", account_path="/members/{account_id}/card")
    service.instead = always(status=404)
    with pytest.raises(AccountUnknown):
        await directory.account(identifier)
    assert service.asked == [f"/v1/members/{path}/card"]


@pytest.mark.parametrize("identifier", ["", ".", ".."])
async def test_ids_that_no_path_can_name_are_unknown_without_asking(
    directory: Directory, service: Service, identifier: str
) -> None:
    with pytest.raises(SessionUnknown):
        await directory.session(identifier)
    assert service.asked == []


async def test_look_ups_at_once_are_bounded_and_the_queue_as_well(
    make: Callable[..., Directory], service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CONCURRENT", 2)
    monkeypatch.setattr(module, "MAX_QUEUED", 3)
    directory = make()
    service.gate.clear()
    waiting = [asyncio.ensure_future(directory.product(f"p{n}")) for n in range(5)]
    while service.concurrent < 2:
        service.arrived.clear()
        await service.arrived.wait()
    with pytest.raises(DirectoryUnavailable, match="too many"):
        await directory.product("p5")
    joined = asyncio.ensure_future(directory.product("p4"))
    await asyncio.sleep(0)
    service.gate.set()
    assert len(await asyncio.gather(*waiting, joined)) == 6
    assert service.most_concurrent == 2
    assert (await directory.product("p5")).product_id == "p5"


async def test_a_flood_of_one_kind_leaves_room_for_the_others(
    make: Callable[..., Directory], service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CONCURRENT", 2)
    monkeypatch.setattr(module, "MAX_QUEUED", 0)
    directory = make()
    service.gate.clear()
    flood = [asyncio.ensure_future(directory.product(f"p{n}")) for n in range(2)]
    account = asyncio.ensure_future(directory.account("a1"))
    while service.concurrent < 3:
        service.arrived.clear()
        await service.arrived.wait()
    service.gate.set()
    await asyncio.gather(*flood, account)


async def test_a_look_up_does_not_wait_for_its_turn_beyond_the_time_limit(
    make: Callable[..., Directory], service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CONCURRENT", 1)
    directory = make(timeout_seconds=0.1)
    service.gate.clear()
    results = await asyncio.gather(*(directory.product(f"p{n}") for n in range(3)), return_exceptions=True)
    assert all(isinstance(result, DirectoryUnavailable) for result in results)
    assert len(service.asked) == 1


async def test_a_fresh_look_bypasses_the_cache_and_renews_it(directory: Directory, service: Service) -> None:
    await directory.session("s1")
    service.state = "live"
    assert (await directory.session("s1")).state == "preparing"
    assert (await directory.fresh_session("s1")).state == "live"
    known = directory.peek_session("s1")
    assert known is not None
    assert known.state == "live"


async def test_a_fresh_look_is_asked_after_the_call_began(directory: Directory, service: Service) -> None:
    """An answer on its way may tell of the time before: the session was started in between."""
    service.gate.clear()
    earlier = asyncio.ensure_future(directory.session("s1"))
    await service.arrived.wait()
    service.state = "live"
    fresh = asyncio.ensure_future(directory.fresh_session("s1"))
    while len(service.asked) < 2:
        service.arrived.clear()
        await service.arrived.wait()
    service.gate.set()
    assert (await fresh).state == "live"
    assert (await earlier).state == "preparing"
    known = directory.peek_session("s1")
    assert known is not None
    assert known.state == "live", "the older answer, come later or not, does not replace the newer one"


async def test_fresh_looks_whose_question_has_not_left_share_it(directory: Directory, service: Service) -> None:
    sessions = await asyncio.gather(*(directory.fresh_session("s1") for _ in range(100)))
    assert len(service.asked) == 1
    assert len(sessions) == 100


async def test_a_fresh_look_is_never_stale(directory: Directory, clock: Clock, service: Service) -> None:
    record = await directory.session("s1")
    service.instead = always(status=500)
    with pytest.raises(DirectoryUnavailable):
        await directory.fresh_session("s1")
    assert directory.peek_session("s1") is record, "what is known stays known"
    service.instead = always(status=404)
    with pytest.raises(SessionUnknown):
        await directory.fresh_session("s1")
    assert directory.peek_session("s1") is None


async def test_a_session_seen_in_an_answer_is_learnt(directory: Directory, clock: Clock, service: Service) -> None:
    with pytest.raises(SessionUnknown):
        await directory.session("no1")
    session = Session("no1", "a1", SessionState.preparing)
    directory.learn_session(session)
    assert await directory.session("no1") is session
    clock.now += 5
    assert directory.peek_session("no1") is None


async def test_what_was_learnt_is_not_overwritten_by_an_older_question(directory: Directory, service: Service) -> None:
    service.gate.clear()
    earlier = asyncio.ensure_future(directory.session("s1"))
    await service.arrived.wait()
    directory.learn_session(Session("s1", "a1", SessionState.live))
    service.gate.set()
    await earlier
    known = directory.peek_session("s1")
    assert known is not None
    assert known.state == "live"


async def test_a_forgotten_session_is_asked_for_again(directory: Directory, service: Service) -> None:
    await directory.session("s1")
    service.gate.clear()
    directory.forget_session("s1")
    assert directory.peek_session("s1") is None
    earlier = asyncio.ensure_future(directory.session("s1"))
    service.arrived.clear()
    await service.arrived.wait()
    directory.forget_session("s1")
    service.gate.set()
    await earlier
    assert directory.peek_session("s1") is None, "an answer to a question from before is not remembered"
    await directory.session("s1")
    assert len(service.asked) == 3
    directory.forget_session("never-known")


async def test_closing_tells_waiters_so(directory: Directory, service: Service) -> None:
    service.gate.clear()
    waiting = asyncio.ensure_future(directory.account("a1"))
    await service.arrived.wait()
    await directory.close()
    with pytest.raises(DirectoryUnavailable, match="stopping"):
        await waiting


async def test_the_counters_say_how_it_went(directory: Directory, clock: Clock, service: Service) -> None:
    await directory.account("a1")
    directory.peek_account("a1")
    await directory.account("a1")
    directory.peek_account("a2")
    records = directory.account_records
    assert (records.hits, records.misses, records.stale, records.negative, records.errors) == (2, 1, 0, 0, 0)
    assert records.kind == "account"
