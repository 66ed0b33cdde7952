"""The demo as a newcomer runs it, and the player's judgement of what comes otherwise than expected."""

from __future__ import annotations

import io
import subprocess
import sys

import aiohttp
import pytest
from rich.console import Console

from gateway.demo import platform
from gateway.demo.scenes import Step, story
from gateway.demo.story import Player


def test_the_story_goes_as_expected_and_ends_by_itself() -> None:
    played = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "demo", "--once", "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert played.returncode == 0, played.stdout + played.stderr
    for scene in story("demo"):
        assert scene.title in played.stdout
    assert "not as expected" not in played.stdout
    assert "Traceback" not in played.stderr


def test_a_used_port_is_said_in_one_line() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        played = subprocess.run(
            [sys.executable, "-m", "gateway.cli", "demo", "--once", "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert played.returncode == 2
    assert str(port) in played.stderr
    assert len(played.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (Step("asks", "GET", "/live/sessions/none", status=200), "expected status 200, got 404"),
        (Step("asks", "GET", "/accounts/creator-li", used=3), "expected used 3, got None"),
        (Step("asks", "GET", "/accounts/creator-li", hidden="creator"), "expected nothing with 'creator'"),
    ],
)
async def test_a_step_that_goes_otherwise_is_said_and_counted(step: Step, told: str) -> None:
    out = io.StringIO()
    upstream = await platform.start()
    async with aiohttp.ClientSession() as http:
        player = Player(Console(file=out, width=200), http, upstream.url, upstream.url)
        await player._step(step)
    await upstream.close()
    assert player.wrong == 1
    assert told in out.getvalue()
