"""The demo as a newcomer runs it: the whole story, what goes otherwise than expected, and every way it ends."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO

import aiohttp
import pytest
from rich.console import Console

from gateway.demo import platform
from gateway.demo.scenes import MerchantView, Race, Step, story
from gateway.demo.story import INTERRUPTED, Player

DEMO = (sys.executable, "-m", "gateway.cli", "demo")
OTHER_STORY = """
import sys
from gateway.demo import scenes, story
from gateway.demo.scenes import Scene, Step
whole = scenes.story
scenes.story = lambda run: {scenes}
sys.exit(story.run(port=0, once={once}))
"""
RIGHT = 'Step("Asks for what is there", "GET", "/accounts/creator-li")'
WRONG = 'Step("Asks for what is not there", "GET", "/live/sessions/none")'
FIRST_OF_THE_LAST_SESSION = "(Scene('Short', 'N3', whole(run)[7].steps[:2]),)"
SECONDS = 60.0


def other_story(scenes: str, *, once: bool = True) -> tuple[str, ...]:
    return (sys.executable, "-c", OTHER_STORY.format(scenes=scenes, once=once))


def one_scene(*steps: str) -> str:
    return f"(Scene('Another story', 'N0', ({', '.join(steps)},)),)"


def played(*command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | environ
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, env=env)


@contextmanager
def playing(*command: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environ
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@asynccontextmanager
async def _server(answer: bytes) -> AsyncIterator[str]:
    """Answers every request with these bytes, and closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def _played_against(url: str, step: Step | MerchantView | Race) -> str:
    """What is printed; the step must be counted as wrong."""
    out = io.StringIO()
    async with aiohttp.ClientSession() as http:
        player = Player(Console(file=out, width=400, highlight=False), http, url, url)
        await player.play_step(step)
    assert (player.steps, player.wrong) == (1, 1)
    return out.getvalue()


def said_until(out: IO[str] | None, wanted: str) -> list[str]:
    assert out is not None
    lines: list[str] = []
    while wanted not in "".join(lines[-1:]):
        line = out.readline()
        assert line, "".join(lines)
        lines.append(line)
    return lines


@pytest.fixture
def folder() -> Iterator[Path]:
    """A temporary folder with a name so short that a Redis has its socket in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def test_the_story_goes_as_expected_and_ends_by_itself() -> None:
    demo = played(*DEMO, "--once", "--port", "0")
    assert demo.returncode == 0, demo.stdout + demo.stderr
    for number, scene in enumerate(story("demo"), start=1):
        assert f"\n{number}. {scene.title} ({scene.notice})\n" in demo.stdout
        for step in scene.steps:
            assert f"   {step.says}\n" in demo.stdout
    assert "200 × 3, 403 × 47" in demo.stdout
    assert "3 of 3 used: ally-1, ally-2 (in doubt), ally-3 (in doubt)" in demo.stdout
    assert "not as expected" not in demo.stdout
    assert "\x1b" not in demo.stdout, "piped, it is plain"
    assert demo.stderr == ""


def test_what_comes_otherwise_is_red_and_the_story_goes_on_and_fails() -> None:
    demo = played(*other_story(one_scene(WRONG, RIGHT)), FORCE_COLOR="1")
    assert demo.returncode == 1
    assert "\x1b[1;31mnot as expected: expected status 200, got 404" in demo.stdout
    assert "Asks for what is there" in demo.stdout
    assert "1 not as expected" in demo.stdout
    assert demo.stderr == ""


def test_a_terminal_without_chinese_has_its_story_too() -> None:
    demo = played(*other_story(one_scene(RIGHT)), PYTHONIOENCODING="ascii")
    assert demo.returncode == 0, demo.stderr
    assert "GET /accounts/creator-li ? 200" in demo.stdout


def test_it_stays_up_with_commands_that_work_until_it_is_told_to_end(folder: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl here to paste the commands to")
    with playing(*other_story(FIRST_OF_THE_LAST_SESSION, once=False), TMPDIR=str(folder)) as demo:
        said_until(demo.stdout, "To try:")
        commands = said_until(demo.stdout, "/_platform/journal")
        assert len(commands) >= 3
        for command in commands:
            assert command.startswith("  curl -s ")
            tried = subprocess.run(
                [*("sh", "-c"), command.replace("curl", "curl --fail", 1)],
                capture_output=True,
                timeout=SECONDS,
                check=False,
            )
            assert tried.returncode == 0, command
            assert tried.stdout
        redis = int(next(folder.glob("attachgate-redis-*/redis.pid")).read_text())
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(SECONDS) == 0
        assert demo.stderr is not None
        assert demo.stderr.read() == ""
    with pytest.raises(ProcessLookupError):
        os.kill(redis, 0)
    assert list(folder.iterdir()) == []


def test_ctrl_c_in_the_middle_ends_it_quietly(folder: Path) -> None:
    with playing(*DEMO, "--port", "0", TMPDIR=str(folder)) as demo:
        said_until(demo.stdout, "nobody knows whether it attached")
        demo.send_signal(signal.SIGINT)
        assert demo.wait(SECONDS) == INTERRUPTED
        assert demo.stderr is not None
        assert demo.stderr.read() == ""
    assert list(folder.iterdir()) == []


def test_a_reader_that_leaves_ends_it_quietly(folder: Path) -> None:
    with playing(*DEMO, "--port", "0", TMPDIR=str(folder)) as demo:
        assert demo.stdout is not None
        assert demo.stdout.readline().startswith("attachgate at http://127.0.0.1:")
        demo.stdout.close()
        assert demo.wait(SECONDS) == 1
        assert demo.stderr is not None
        assert demo.stderr.read() == ""
    assert list(folder.iterdir()) == []


def test_a_used_port_is_said_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        demo = played(*DEMO, "--once", "--port", str(port))
    assert demo.returncode == 2
    assert demo.stderr.count("\n") == 1
    assert f"port {port} can't be had (Address already in use); choose another with --port." in demo.stderr


def test_a_port_that_is_none_is_said_in_one_line() -> None:
    demo = played(*DEMO, "--once", "--port", "70000")
    assert (demo.returncode, demo.stderr) == (2, "demo: --port: expected a whole number from 0 to 65535, got 70000.\n")


def test_a_redis_that_does_not_start_is_said_with_its_own_words_and_what_to_do(folder: Path) -> None:
    broken = folder / "redis-server"
    broken.write_text("#!/bin/sh\necho out of luck >&2\nexit 1\n")
    broken.chmod(0o755)
    demo = played(*DEMO, "--once", "--port", "0", PATH=f"{folder}:{os.environ['PATH']}")
    assert demo.returncode == 2
    assert "out of luck" in demo.stderr
    assert "Put a redis-server or valkey-server that starts on PATH" in demo.stderr
    assert "Traceback" not in demo.stderr


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (Step("asks", "GET", "/live/sessions/none"), "expected status 200, got 404"),
        (Step("asks", "GET", "/live/sessions/none", status=404, reason="full"), "expected reason 'full'"),
        (Step("asks", "GET", "/live/sessions/none", status=404, detail="满"), "expected detail '满'"),
        (Step("asks", "GET", "/accounts/creator-li", used=3), "expected 3 used, got None"),
        (Step("asks", "GET", "/accounts/creator-li", doubtful=("a",)), "expected in doubt: a, got none"),
        (Step("asks", "GET", "/accounts/creator-li/showcase/addable", offered="no"), "expected no in the list"),
        (Step("asks", "GET", "/accounts/creator-li/showcase/addable", listed=()), "expected the list to be none"),
        (MerchantView("looks", "none", "creator-li", 3), "expected status 200, got 404"),
        (Race("all run", "none", "creator-li", 3), "expected exactly 3 of 50 let in (200)"),
    ],
)
async def test_a_step_that_goes_otherwise_is_said_and_counted(step: Step | MerchantView | Race, told: str) -> None:
    upstream = await platform.start()
    out = await _played_against(upstream.url, step)
    await upstream.close()
    assert told in out


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut", b"no HTTP at all\r\n\r\n"],
    ids=["none", "cut short", "not understood"],
)
async def test_an_answer_that_does_not_come_whole_is_no_answer(answer: bytes) -> None:
    async with _server(answer) as url:
        assert "got no answer" in await _played_against(url, Step("asks", "POST", "/"))


@pytest.mark.parametrize("body", [b"[1]", b'{"slots":[{}]}', b"\xff", b"plain", b"[" * 100_000])
async def test_a_body_in_no_known_form_is_told_as_it_came(body: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body)
    async with _server(answer) as url:
        out = await _played_against(url, Step("asks", "POST", "/", used=1))
    assert body.decode(errors="replace")[:100] in out
    assert "expected 1 used, got None" in out
