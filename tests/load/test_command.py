"""`attachgate load` from arguments to exit code, against the real reference platform."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from gateway.demo.platform import Running
from gateway.errors import ConfigurationError
from gateway.load import run as run_command
from gateway.load.command import execute, run
from gateway.load.evidence import Unusable

from .conftest import Keeper, arguments, options

BRISK = ("--rate", "300", "--duration", "0.6", "--rooms", "8", "--clients-per-room", "6", "--settle-seconds", "0.2")
DATA = """
{"type":"account","account_id":"small","kind":"official","shop":{"shop_id":"s","shop_type":"individual"}}
{"type":"account","account_id":"li","kind":"creator"}

{"type":"product","product_id":"own-1","shop_id":"s"}
{"type":"product","product_id":"f-1","shop_id":"x"}
{"type":"product","product_id":"f-2","shop_id":"x"}
{"type":"product","product_id":"f-3","shop_id":"y"}
{"type":"product","product_id":"f-4","shop_id":"y"}
{"type":"product","product_id":"f-5","shop_id":"y"}
"""


def console() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=200), out


async def started(url: str, *words: str) -> tuple[int, str]:
    """The command in a thread of its own, since the platform runs in this loop."""
    shown, out = console()
    status = await asyncio.to_thread(run, arguments("--target", url, *BRISK, *words), shown)
    return status, out.getvalue()


async def test_a_platform_that_enforces_nothing_breaks_the_promise(running: Running, tmp_path: Path) -> None:
    written = tmp_path / "report.json"
    status, text = await started(running.url, "--platform", running.url, "--json", str(written))
    assert status == 1
    assert "BROKEN  the promise: " in text
    assert "sessions went over the cap" in text
    assert "no session view" in text
    report = json.loads(written.read_bytes())
    assert report["judgement"]["over"] > 0
    assert report["judgement"]["most_foreign"] > 3
    assert report["asked"] == pytest.approx(180, abs=6)
    assert report["answers"][0]["operation"] in report["operations"]
    assert report["error_rate"] == 0


async def test_own_products_alone_break_nothing(running: Running) -> None:
    status, text = await started(running.url, "--platform", running.url, "--mix", "attach_own=3,detach=1,start=1,end=1")
    assert status == 0
    assert "0 over the cap" in text
    assert text.rstrip().endswith("KEPT    the promise and every bound held")


async def test_a_gateway_that_keeps_three_is_found_to(keeper: tuple[Keeper, str], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    mix = "attach_foreign=5,attach_batch=2,race=1,attach_own=2,start=1,list=1,view=1"
    words = ("--platform", keeper[1], "--mix", mix, "--html", str(page), "--max-error-rate", "0")
    status, text = await started(keeper[1], *words)
    assert status == 0, text
    assert "foreign_cap_reached" in text
    assert "Slots: 8 sessions compared" in text
    assert "0 differ" in text
    html = page.read_text()
    assert html.count("<svg") == 3
    assert "http://www" not in html
    assert "<script" not in html


async def test_a_slot_that_is_lost_is_found(keeper: tuple[Keeper, str]) -> None:
    keeper[0].leaked = {"load-ghost"}
    status, text = await started(
        keeper[1], "--platform", keeper[1], "--mix", "attach_own=3,attach_foreign=1", "--quiet"
    )
    assert status == 1
    assert "slots lost: in 8 of 8 sessions" in text
    assert "lost load-ghost" in text
    assert "latency" not in text, "quiet"


async def test_bounds_are_kept_or_named(running: Running) -> None:
    own = ("--platform", running.url, "--mix", "attach_own=1")
    status, text = await started(running.url, *own, "--max-p99-ms", "0.001")
    assert status == 1
    assert "--max-p99-ms" in text
    running.platform.faults.post(_fault())
    status, text = await started(running.url, *own, "--max-error-rate", "0.05", "--retries", "1")
    assert status == 1
    assert "--max-error-rate" in text


def _fault() -> object:
    from gateway.demo.faults import Fault, Mode

    return Fault(Mode.error, "attach", 0.5)


async def test_without_the_platform_lists_are_judged(running: Running, tmp_path: Path) -> None:
    from gateway.demo.records import load as load_records

    data = tmp_path / "data.jsonl"
    data.write_text(DATA)
    for record in load_records(data):
        running.platform.store.upsert(record)
    status, text = await started(running.url, "--data", str(data), "--mix", "attach_foreign=1,start=0.2")
    assert status == 1
    assert "the sessions' lists at the end" in text
    assert "--platform" in text
    status, text = await started(running.url, "--data", str(data), "--mix", "attach_own=1,start=0.2")
    assert status == 0
    assert "4 sessions checked" in text, "those of the creator have no cap"


async def test_several_targets_share_the_load(running: Running, keeper: tuple[Keeper, str]) -> None:
    """Two front doors to one session: here the second one is a platform that does not know it."""
    words = ("--target", running.url, "--target", keeper[1], "--platform", running.url, *BRISK)
    shown, _ = console()
    report = await execute(options(*words, "--mix", "attach_own=1", "--rooms", "1", "--retries", "0"), None, shown)
    statuses = {row.status: row.count for row in report.answers}
    assert statuses.keys() == {200, 404}
    assert statuses[200] == pytest.approx(statuses[404], rel=0.5)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--target", "http://127.0.0.1:9"], "target http://127.0.0.1:9 can't be reached"),
        (["--target", "{url}", "--platform", "http://127.0.0.1:9"], "platform http://127.0.0.1:9 can't be reached"),
    ],
)
async def test_who_does_not_answer_is_named(running: Running, words: list[str], says: str) -> None:
    words = [word.format(url=running.url) for word in words]
    words += [] if "--platform" in words else ["--platform", running.url]
    with pytest.raises(Unusable, match=says):
        await execute(options(*words), None, console()[0])


async def test_a_session_that_cannot_be_created_ends_the_run(running: Running, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(DATA)
    status, text = await started(running.url, "--data", str(data))
    assert (status, text) == (2, "")


async def test_what_is_no_reference_platform_is_said(keeper: tuple[Keeper, str], running: Running) -> None:
    from aiohttp import web

    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=404)

    app = web.Application()
    app.router.add_get("/{tail:.*}", refuse)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        with pytest.raises(Unusable, match="it is not the reference platform"):
            await execute(options("--target", running.url, "--platform", site.name), None, console()[0])
    finally:
        await runner.cleanup()


def test_bad_arguments_are_all_named_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--target", "ftp://x", "--rate", "0", "--rooms", "0", "--mix", "fly=1,detach=x,list=1,list=2"]
    words += ["--max-error-rate", "7", "--identity-header", "a b", "--json", "/no/such/folder/x.json", "--zipf", "nan"]
    assert run_command(arguments(*words)) == 2
    said = capsys.readouterr().err
    for option in (
        "--target",
        "--rate",
        "--rooms",
        "--mix",
        "--max-error-rate",
        "--identity-header",
        "--json",
        "--zipf",
    ):
        assert f"attachgate load: {option}: " in said
    assert "--platform" in said, "neither --platform nor --data"
    assert said.count("--mix") == 4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read"),
        ("{nonsense\n", "line 1"),
        ('{"type":"shop"}\n', "line 1"),
        ('{"type":"account","account_id":"li","kind":"creator"}\n', "nothing to check"),
        (DATA.split("\n\n")[0], "nothing to attach"),
    ],
)
def test_bad_data_is_said_and_exits_2(
    tmp_path: Path, text: str | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    if text is not None:
        data.write_text(text)
    assert run_command(arguments("--target", "http://127.0.0.1:9", "--data", str(data))) == 2
    said = capsys.readouterr().err
    assert says in said
    assert str(data) in said


def test_the_defaults_are_good() -> None:
    assert options("--target", "http://127.0.0.1:1/", "--platform", "http://[::1]:2").targets == ("http://127.0.0.1:1",)
    with pytest.raises(ConfigurationError):
        options("--target", "http://127.0.0.1:1/path", "--platform", "http://127.0.0.1:2")
