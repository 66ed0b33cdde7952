"""The reference platform keeps the contract's routes: what is attached, refused and journaled."""

from __future__ import annotations

import asyncio
import io
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from gateway.demo import platform
from gateway.demo.records import DEMO_ACCOUNTS, DEMO_PRODUCTS, load
from gateway.demo.store import Refused, Store
from gateway.errors import ConfigurationError
from gateway.policy.model import Surface

if TYPE_CHECKING:
    from .conftest import Caller


def steps(entries: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    return [(entry["operation"], entry["product_id"]) for entry in entries]


# Sessions


async def test_a_session_is_created_started_and_ended(call: Caller) -> None:
    status, created = await call("POST", "/live/sessions", {"session_id": "s1", "account_id": "creator-li"})
    assert (status, created) == (201, {"session_id": "s1", "account_id": "creator-li", "state": "preparing"})
    for step, state in (("start", "live"), ("start", "live"), ("end", "ended"), ("end", "ended")):
        status, answer = await call("POST", f"/live/sessions/s1/{step}")
        assert (status, answer["state"]) == (200, state)
    assert await call("GET", "/live/sessions/s1") == (200, created | {"state": "ended"})
    assert [entry["operation"] for entry in await call.journal()] == ["create", "start", "end"]


async def test_a_session_gets_an_id_where_none_is_asked_for(call: Caller) -> None:
    await call("POST", "/live/sessions", {"account_id": "creator-li", "session_id": "live-1"})
    _, first = await call("POST", "/live/sessions", {"account_id": "creator-li"})
    _, second = await call("POST", "/live/sessions", {"account_id": "creator-li", "title": "ignored"})
    assert len({"live-1", first["session_id"], second["session_id"]}) == 3


async def test_a_session_id_is_never_used_twice(call: Caller) -> None:
    path = await call.live("s1")
    body = {"session_id": "s1", "account_id": "creator-li"}
    assert (await call("POST", "/live/sessions", body))[0] == 409
    await call("POST", path + "/end")
    assert (await call("POST", "/live/sessions", body))[0] == 409
    assert (await call("POST", path + "/start"))[0] == 409


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/live/sessions", {"account_id": "nobody"}),
        ("POST", "/live/sessions/none/start", None),
        ("POST", "/live/sessions/none/end", None),
        ("GET", "/live/sessions/none", None),
        ("GET", "/live/sessions/none/products", None),
        ("GET", "/live/sessions/none/events", None),
        ("GET", "/live/sessions/none/socket", None),
        ("POST", "/live/sessions/none/products", {"product_id": "ally-1"}),
        ("DELETE", "/live/sessions/none/products/ally-1", None),
        ("PUT", "/live/sessions/none/products/ally-1", {"product_id": "ally-2"}),
        ("POST", "/accounts/nobody/showcase/products", {"product_id": "ally-1"}),
        ("POST", "/accounts/nobody/videos/v1/products", {"product_id": "ally-1"}),
        ("GET", "/accounts/nobody/showcase/addable", None),
        ("GET", "/accounts/nobody", None),
        ("GET", "/products/nothing", None),
    ],
)
async def test_what_it_does_not_know_is_404(call: Caller, method: str, path: str, body: Any) -> None:
    status, answer = await call(method, path, body)
    assert status == 404
    assert set(answer) == {"error"}
    assert await call.journal() == []


# Attach, detach, replace


async def test_attach_takes_one_or_many_and_says_what_is_attached(call: Caller) -> None:
    path = await call.live()
    for body, attached in (
        ({"product_id": "ally-1"}, ["ally-1"]),
        ({"product_ids": ["ally-2", "own-individual-1", "ally-2"]}, ["ally-2", "own-individual-1"]),
        ({"product_ids": ["ally-3"], "product_id": "ally-4"}, ["ally-3", "ally-4"]),
        ({"product_ids": []}, []),
        ({"product_id": "ally-1"}, ["ally-1"]),
    ):
        assert await call("POST", path + "/products", body) == (200, {"attached": attached})
    expected = ["ally-1", "ally-2", "own-individual-1", "ally-3", "ally-4"]
    assert await call.attached(path) == expected
    assert steps(await call.journal())[2:] == [("attach", product_id) for product_id in expected]


async def test_one_unknown_product_refuses_the_whole_batch(call: Caller) -> None:
    path = await call.live()
    status, answer = await call("POST", path + "/products", {"product_ids": ["ally-1", "nothing"]})
    assert (status, answer) == (404, {"error": "no product nothing"})
    assert await call.attached(path) == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"product_id":1}', b'{"product_ids":"a"}', b"\xff", b"[" * 100_000]
)
async def test_a_malformed_body_is_400_and_says_why(call: Caller, body: bytes) -> None:
    path = await call.live()
    status, answer = await call("POST", path + "/products", data=body)
    assert status == 400
    assert answer["error"].startswith("malformed body: ")
    assert await call.attached(path) == []


async def test_a_body_over_the_limit_is_413(call: Caller) -> None:
    path = await call.live()
    url = call.running.url + path + "/products"
    async with call.http.post(url, data=io.BytesIO(bytes(platform.MAX_BODY_BYTES + 1))) as answer:
        assert answer.status == 413


async def test_it_enforces_nothing_of_the_notice(call: Caller) -> None:
    path = await call.live("s1", "shop-flagship")
    everything = [f"ally-{n}" for n in range(1, 21)]
    assert await call("POST", path + "/products", {"product_ids": everything}) == (
        200,
        {"attached": everything},
    )


async def test_detach_is_204_once_and_then_404(call: Caller) -> None:
    path = await call.live("s1", "shop-individual", "ally-1", "ally-2")
    assert await call("DELETE", path + "/products/ally-1") == (204, None)
    assert (await call("DELETE", path + "/products/ally-1"))[0] == 404
    assert await call.attached(path) == ["ally-2"]
    assert steps(await call.journal())[-1] == ("detach", "ally-1")


async def test_a_replaced_product_leaves_its_place_to_the_new_one(call: Caller) -> None:
    path = await call.live("s1", "shop-individual", "ally-1", "ally-2", "ally-3")
    assert (await call("PUT", path + "/products/ally-2", {"product_id": "ally-9"}))[0] == 200
    assert await call.attached(path) == ["ally-1", "ally-9", "ally-3"]
    last = (await call.journal())[-1]
    assert (last["operation"], last["product_id"], last["replaced"]) == ("replace", "ally-9", "ally-2")
    assert last["surface"] == "live_room"


async def test_a_replace_by_what_is_there_already_keeps_it_once(call: Caller) -> None:
    path = await call.live("s1", "shop-individual", "ally-1", "ally-2", "ally-3")
    await call("PUT", path + "/products/ally-1", {"product_id": "ally-3"})
    assert await call.attached(path) == ["ally-2", "ally-3"]
    before = await call.journal()
    assert (await call("PUT", path + "/products/ally-2", {"product_id": "ally-2"}))[0] == 200
    assert await call.journal() == before


async def test_a_replace_of_or_by_what_is_not_there_is_404(call: Caller) -> None:
    path = await call.live("s1", "shop-individual", "ally-1")
    assert (await call("PUT", path + "/products/ally-2", {"product_id": "ally-3"}))[0] == 404
    assert (await call("PUT", path + "/products/ally-1", {"product_id": "nothing"}))[0] == 404
    assert (await call("PUT", path + "/products/ally-1", {"product_ids": ["ally-3"]}))[0] == 400
    assert await call.attached(path) == ["ally-1"]


async def test_an_ended_session_changes_no_more(call: Caller) -> None:
    path = await call.live("s1", "shop-individual", "ally-1")
    await call("POST", path + "/end")
    assert (await call("POST", path + "/products", {"product_id": "ally-1"}))[0] == 409
    assert (await call("PUT", path + "/products/ally-1", {"product_id": "ally-2"}))[0] == 409
    assert (await call("DELETE", path + "/products/ally-1"))[0] == 409
    assert await call.attached(path) == ["ally-1"]


# Showcase and short videos


@pytest.mark.parametrize(
    ("path", "surface"), [("showcase/products", "showcase"), ("videos/v1/products", "short_video")]
)
async def test_a_shelf_takes_products_and_journals_its_surface(call: Caller, path: str, surface: str) -> None:
    url = f"/accounts/creator-li/{path}"
    assert await call("POST", url, {"product_ids": ["ally-1", "ally-2"]}) == (
        200,
        {"attached": ["ally-1", "ally-2"]},
    )
    assert await call("POST", url, {"product_id": "ally-1"}) == (200, {"attached": ["ally-1"]})
    assert (await call("POST", url, {"product_ids": ["ally-3", "nothing"]}))[0] == 404
    entries = await call.journal()
    assert steps(entries) == [("attach", "ally-1"), ("attach", "ally-2")]
    for entry in entries:
        assert (entry["surface"], entry["session_id"], entry["account_id"]) == (surface, None, "creator-li")


async def test_each_video_is_a_shelf_of_its_own(call: Caller) -> None:
    for video in ("v1", "v2"):
        await call("POST", f"/accounts/creator-li/videos/{video}/products", {"product_id": "ally-1"})
    assert len(await call.journal()) == 2


async def test_every_product_is_addable_page_by_page(call: Caller) -> None:
    url = "/accounts/shop-flagship/showcase/addable"
    status, whole = await call("GET", url)
    assert status == 200
    assert list(whole) == ["products"]
    assert len(whole["products"]) == len(DEMO_PRODUCTS)
    pages: list[Any] = []
    cursor: str | None = "0"
    while cursor is not None:
        _, page = await call("GET", url, params={"limit": "30", "cursor": cursor})
        assert len(page["products"]) <= 30
        pages += page["products"]
        cursor = page.get("next_cursor")
    assert pages == whole["products"]
    for wrong in ("limit=x", "limit=-1", "limit=1_0", "cursor=٣", "limit=999999999999"):
        assert (await call("GET", f"{url}?{wrong}"))[0] == 400


# Directory and controls


async def test_the_directory_has_the_contracts_form(call: Caller) -> None:
    assert await call("GET", "/accounts/shop-crossborder") == (
        200,
        {
            "account_id": "shop-crossborder",
            "kind": "official",
            "pure_creator": False,
            "shop": {
                "shop_id": "crossborder",
                "shop_type": "flagship",
                "cross_border": True,
                "status": "open",
            },
        },
    )
    _, creator = await call("GET", "/accounts/creator-li")
    assert (creator["kind"], creator["shop"]) == ("creator", None)
    assert await call("GET", "/products/own-flagship-1") == (
        200,
        {"product_id": "own-flagship-1", "shop_id": "flagship"},
    )


async def test_a_record_is_put_and_put_again(call: Caller) -> None:
    shop = {"shop_id": "x", "shop_type": "mall", "cross_border": False, "status": "open"}
    record = {"account_id": "new", "kind": "official", "pure_creator": False, "shop": shop}
    assert await call("PUT", "/_platform/accounts/new", record) == (200, record)
    closed = record | {"shop": shop | {"status": "closed"}}
    await call("PUT", "/_platform/accounts/new", closed)
    assert await call("GET", "/accounts/new") == (200, closed)
    assert (await call("PUT", "/_platform/products/p", {"shop_id": "x"}))[0] == 200
    assert await call("GET", "/products/p") == (200, {"product_id": "p", "shop_id": "x"})


@pytest.mark.parametrize(
    "body",
    [{"kind": "king"}, {}, {"account_id": "other", "kind": "creator"}, [], {"kind": "official", "shop": {}}],
)
async def test_a_wrong_record_is_400_and_changes_nothing(call: Caller, body: Any) -> None:
    before = await call("GET", "/accounts/creator-li")
    assert (await call("PUT", "/_platform/accounts/creator-li", body))[0] == 400
    assert await call("GET", "/accounts/creator-li") == before


async def test_the_journal_is_numbered_dated_and_can_be_emptied(call: Caller) -> None:
    path = await call.live("s1", "shop-individual", "ally-1")
    entries = await call.journal()
    assert [entry["seq"] for entry in entries] == [1, 2, 3]
    form = {"seq", "at", "operation", "surface", "session_id", "account_id", "product_id"}
    for entry in entries:
        assert set(entry) == form
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["at"])
    assert (await call("DELETE", "/_platform/journal"))[0] == 204
    assert await call.journal() == []
    await call("POST", path + "/end")
    assert [(entry["seq"], entry["operation"]) for entry in await call.journal()] == [(4, "end")]


async def test_the_journal_can_be_read_from_where_one_left_off(call: Caller) -> None:
    await call.live("s1", "shop-individual", "ally-1", "ally-2")
    await call("DELETE", "/_platform/journal")
    await call("POST", "/live/sessions/s1/products", {"product_ids": ["ally-3", "ally-4"]})
    for after, seqs in ((0, [5, 6]), (4, [5, 6]), (5, [6]), (6, []), (99, [])):
        _, answer = await call("GET", f"/_platform/journal?after={after}")
        assert [entry["seq"] for entry in answer["entries"]] == seqs


def test_a_full_journal_refuses_changes_rather_than_forget() -> None:
    store = Store((*DEMO_ACCOUNTS, *DEMO_PRODUCTS), max_entries=2)
    store.create("s1", "creator-li", 0.0)
    with pytest.raises(Refused, match="journal is full") as raised:
        store.attach("s1", ["ally-1", "ally-2"], 0.0)
    assert raised.value.status == 507
    assert store.listed("s1") == []
    store.attach("s1", ["ally-1"], 0.0)
    with pytest.raises(Refused):
        store.shelve(Surface.showcase, "creator-li", "", ["ally-1"], 0.0)
    assert [entry.operation for entry in store.entries()] == ["create", "attach"]


def test_journal_times_are_the_callers() -> None:
    store = Store(DEMO_ACCOUNTS)
    store.create("s1", "creator-li", 1752022800.9996)
    assert store.entries()[0].at == "2025-07-09T01:00:00.999Z"


# Starting and stopping


async def test_latency_is_added_to_an_answer_after_the_change_was_made(call: Caller) -> None:
    call.running.platform.latency_ms = 60_000
    created = asyncio.ensure_future(call("POST", "/live/sessions", {"account_id": "creator-li"}))
    await call.until(lambda: len(call.running.platform.store.entries()) == 1)
    assert not created.done()
    assert len(await call.journal()) == 1
    created.cancel()


def test_records_are_loaded_from_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(
        '{"type":"account","account_id":"a","kind":"creator"}\n\n{"type":"product","product_id":"p","shop_id":"s"}\n'
    )
    assert [type(record).__name__ for record in load(file)] == ["Account", "Product"]


def test_every_mistake_in_a_data_file_is_told_by_line(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(
        b'{"type":"shop"}\n{"type":"product","product_id":"p","shop_id":"s"}\n{"type":"account","kind":"king"}\n\xff\n{'
    )
    with pytest.raises(ConfigurationError) as raised:
        load(file)
    assert [mistake.key for mistake in raised.value.mistakes] == ["line 1", "line 3", "line 4", "line 5"]
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        load(tmp_path / "missing.jsonl")


COMMAND = """
import sys
from pathlib import Path
from gateway.demo.platform import run
data = Path(sys.argv[2]) if sys.argv[2] else None
sys.exit(run(host="127.0.0.1", port=int(sys.argv[1]), data=data, latency_ms=0.0,
             fault_rate=float(sys.argv[3]), fault_mode=sys.argv[4], seed=1))
"""


def command(port: int = 0, data: str = "", rate: str = "0", mode: str = "error") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(port), data, rate, mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_says_where_it_listens_and_ends_with_0(number: signal.Signals) -> None:
    process = command(rate="1", mode="refuse")
    try:
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        said = re.fullmatch(r"platform listening on (http://127\.0\.0\.1:\d+)\n", line)
        assert said is not None
        async with aiohttp.ClientSession() as http, http.get(said[1] + "/accounts/creator-li") as answer:
            assert answer.status == 422
    finally:
        process.send_signal(number)
        _, errors = await asyncio.to_thread(process.communicate)
    assert (process.returncode, errors) == (0, "")


def test_the_command_refuses_to_start_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        started = [
            (command(port=port), f"can't listen on 127.0.0.1:{port}: Address already in use"),
            (command(data=str(tmp_path / "missing")), "missing: cannot be read: No such file or directory"),
            (command(rate="2"), "--fault-rate, --fault-mode: Expected `float` <= 1.0"),
            (command(rate="1", mode="magic"), "Invalid enum value 'magic'"),
        ]
        for process, reason in started:
            _, errors = process.communicate()
            assert process.returncode == 2
            assert reason in errors
            assert errors.count("\n") == 1
