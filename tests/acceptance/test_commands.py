"""The commands as an operator runs them: check, explain, serve."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest

from tests.acceptance.conftest import World, Worlds, eventually

MINIMAL = '[upstream]\nurl = "http://127.0.0.1:9"\n'


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ATTACHGATE_")}


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**clean_environment(), **environ},
    )


def test_check_of_a_minimal_file(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(MINIMAL)
    assert run("check", "--config", str(file)).returncode == 0


def test_check_says_every_mistake_with_its_key(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('[upstream]\nurl = "ftp://x"\n[listen]\nport = "no"\nprot = 1\n[policy]\nfile = "policy.toml"\n')
    (tmp_path / "policy.toml").write_text("[[versions]]\nid = 1\n")
    checked = run("check", "--config", str(file))
    assert checked.returncode == 2
    for key in ("upstream.url", "listen.port", "listen.prot", "versions[0]"):
        assert key in checked.stderr
    assert "Traceback" not in checked.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("serve", "--config", "gateway.toml", "--workers", "100000"),
            "--workers: expected a whole number from 1 to 256",
        ),
        (("serve", "--config", "gateway.toml", "--workers", "x"), "--workers: expected a whole number from 1 to 256"),
        (("platform", "--port", "65536"), "--port: expected a whole number from 0 to 65535"),
        (("platform", "--latency", "nan"), "--latency: expected a number from 0"),
        (("platform", "--latency", "-1"), "--latency"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_expected(arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_says_what_check_says(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("[listen]\n")
    served = run("serve", "--config", str(file))
    assert served.returncode == 2
    assert "upstream" in served.stderr
    assert "Traceback" not in served.stderr


def test_the_environment_overrides(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(MINIMAL)
    checked = run("check", "--config", str(file), ATTACHGATE_LISTEN__PORT="none")
    assert checked.returncode == 2
    assert "ATTACHGATE_LISTEN__PORT" in checked.stderr


async def test_explain_gives_the_verdict_of_the_gateway(world: World, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f'[upstream]\nurl = "{world.upstream.url}"\n')
    arguments = ("--config", str(file), "--account", "shop-flagship", "--product", "ally-1", "--surface", "live_room")
    told = await asyncio.to_thread(run, "explain", *arguments, "--json", "--language", "zh-CN")
    assert told.returncode == 0, told.stderr
    explanation = json.loads(told.stdout)
    refused = await (await world.room("shop-flagship")).attach("ally-1")
    assert (explanation["verdict"], explanation["rule"]) == ("refused", "N1")
    assert (explanation["message"], explanation["help"]) == (refused.body["detail"], refused.body["help"])
    table = await asyncio.to_thread(run, "explain", *arguments)
    assert "N1" in table.stdout
    before = await asyncio.to_thread(run, "explain", *arguments, "--json", "--at", "2026-06-01T00:00:00+08:00")
    assert json.loads(before.stdout)["verdict"] == "allowed"
    for at in (
        "yesterday",
        "2026-07-15",
        "2026-07-15T20:00:00",
        "9999-12-31T23:59:59-14:00",
        "0001-01-01T00:00:00+14:00",
    ):
        wrong = await asyncio.to_thread(run, "explain", *arguments, "--at", at)
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert wrong.stderr.startswith(f"--at: {at!r} ")


@dataclass
class Serving:
    """`attachgate serve`, and what it logs."""

    process: asyncio.subprocess.Process
    url: str = ""

    async def logged(self, event: str) -> dict[str, Any]:
        """The next line of this event; what else is logged meanwhile is passed over."""
        assert self.process.stderr is not None
        async with asyncio.timeout(15):
            while line := await self.process.stderr.readline():
                entry: dict[str, Any] = json.loads(line)
                if entry["event"] == event:
                    return entry
        raise AssertionError(f"the gateway ended without {event}")

    async def stop(self) -> int:
        self.process.terminate()
        await self.logged("stopped")
        return await asyncio.wait_for(self.process.wait(), 10)


Serve = Callable[..., Awaitable[Serving]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    started: list[Serving] = []

    async def start(file: Path, **environ: str) -> Serving:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway.cli", "serve", "--config", str(file)),
            stderr=asyncio.subprocess.PIPE,
            env={**clean_environment(), **environ},
        )
        serving = Serving(process)
        started.append(serving)
        serving.url = (await serving.logged("listening"))["url"]
        return serving

    yield start
    for serving in started:
        if serving.process.returncode is None:
            serving.process.kill()
            await serving.process.wait()


async def test_serve_reloads_on_sighup_and_drains_on_sigterm(
    world: World, tmp_path: Path, redis_url: str, serve: Serve
) -> None:
    file = tmp_path / "gateway.toml"
    policy = tmp_path / "policy.toml"
    shipped = (Path(__file__).parents[2] / "deploy" / "policy.toml").read_text()
    policy.write_text(shipped)
    file.write_text(
        f'[listen]\nport = 0\nadmin_port = 0\n[upstream]\nurl = "{world.upstream.url}"\n'
        f'[ledger]\nurl = "{redis_url}"\nprefix = "sighup"\n[policy]\nfile = "policy.toml"\n'
    )
    gateway = await serve(file)
    room = await world.room()

    async def attach(product: str) -> int:
        answer = await world.ask("POST", f"{gateway.url}{room.path}/products", {"product_id": product}, room.account)
        return answer.status

    assert await attach("ally-1") == 200
    policy.write_text("nonsense")
    gateway.process.send_signal(signal.SIGHUP)
    refused = await gateway.logged("reload_refused")
    assert any("policy.toml" in mistake for mistake in refused["mistakes"])
    assert await attach("ally-2") == 200
    policy.write_text(shipped.replace("cap = 3", "cap = 2"))
    gateway.process.send_signal(signal.SIGHUP)
    await gateway.logged("reloaded")
    assert await attach("ally-3") == 403
    assert await gateway.stop() == 0


async def test_a_file_with_the_upstreams_address_alone_serves(
    world: World, tmp_path: Path, redis_url: str, serve: Serve
) -> None:
    """What a test machine must share with others, the ports and the Redis, comes from the environment."""
    file = tmp_path / "gateway.toml"
    file.write_text(f'[upstream]\nurl = "{world.upstream.url}"\n')
    gateway = await serve(
        file,
        ATTACHGATE_LISTEN__PORT="0",
        ATTACHGATE_LISTEN__ADMIN_PORT="0",
        ATTACHGATE_LEDGER__URL=redis_url,
        ATTACHGATE_LEDGER__PREFIX="minimal",
    )
    room = await world.room()
    path = f"{gateway.url}{room.path}/products"
    assert (await world.ask("POST", path, {"product_id": "ally-1"}, room.account)).status == 200
    body = {"product_ids": ["ally-2", "ally-3", "ally-4"]}
    assert (await world.ask("POST", path, body, room.account)).reason == "foreign_cap_reached"
    assert await gateway.stop() == 0


async def test_explain_counts_as_the_gateway_does_and_helps_as_its_refusal(
    worlds: Worlds, tmp_path: Path, redis_url: str
) -> None:
    world = await worlds()
    room = await world.room()
    await room.start()
    for n in (1, 2, 3):
        assert (await room.attach(f"ally-{n}")).status == 200
    await room.detach("ally-2")
    refused = await room.attach("ally-4", Accept_Language="en")
    file = tmp_path / "gateway.toml"
    prefix = world.gateways[0].config.ledger.prefix
    file.write_text(f'[upstream]\nurl = "{world.upstream.url}"\n[ledger]\nurl = "{redis_url}"\nprefix = "{prefix}"\n')
    arguments = ("--config", str(file), "--account", room.account, "--surface", "live_room", "--session", room.session)
    told = await asyncio.to_thread(run, "explain", *arguments, "--product", "ally-4", "--json")
    explanation = json.loads(told.stdout)
    assert (explanation["verdict"], explanation["reason"]) == ("refused", refused.reason)
    for name in ("rule", "cap", "used", "remaining", "slots", "policy_version", "help"):
        assert explanation[name] == refused.body[name]
    assert explanation["message"] == refused.body["detail"]
    again = await asyncio.to_thread(run, "explain", *arguments, "--product", "ally-2", "--json")
    assert json.loads(again.stdout)["verdict"] == "allowed"


async def test_explain_counts_a_session_that_the_ledger_does_not_know_by_the_upstreams_list(
    world: World, tmp_path: Path, redis_url: str
) -> None:
    body = {"account_id": "shop-individual", "session_id": "past"}
    assert (await world.ask("POST", f"{world.upstream.url}/live/sessions", body)).status == 201
    products = {"product_ids": ["ally-1", "own-individual-1", "ally-2", "ally-3"]}
    assert (await world.ask("POST", f"{world.upstream.url}/live/sessions/past/products", products)).status == 200
    file = tmp_path / "gateway.toml"
    file.write_text(
        f'[upstream]\nurl = "{world.upstream.url}"\n[ledger]\nurl = "{redis_url}"\nprefix = "unknown-to-it"\n'
    )
    arguments = ("--config", str(file), "--account", "shop-individual", "--surface", "live_room", "--session", "past")
    told = await asyncio.to_thread(run, "explain", *arguments, "--product", "ally-4", "--json")
    explanation = json.loads(told.stdout)
    assert (explanation["verdict"], explanation["used"]) == ("refused", 3)
    assert [slot["product_id"] for slot in explanation["slots"]] == ["ally-1", "ally-2", "ally-3"]


async def test_explain_does_not_guess_a_count_that_it_can_not_see(world: World, tmp_path: Path) -> None:
    room = await world.room()
    assert (await room.attach("ally-1", "ally-2", "ally-3")).status == 200
    file = tmp_path / "gateway.toml"
    file.write_text(f'[upstream]\nurl = "{world.upstream.url}"\n[ledger]\nurl = "embedded"\n')
    arguments = ("--config", str(file), "--account", room.account, "--product", "ally-4", "--session", room.session)
    told = await asyncio.to_thread(run, "explain", *arguments, "--surface", "live_room")
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith("ledger_unavailable: An embedded ledger")
    told = await asyncio.to_thread(run, "explain", *arguments, "--surface", "showcase", "--json")
    assert json.loads(told.stdout)["rule"] == "N4"


def test_explain_without_a_directory_says_so(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(MINIMAL)
    told = run("explain", "--config", str(file), "--account", "a", "--product", "p", "--surface", "live_room")
    assert (told.returncode, told.stdout) == (1, "")
    assert "directory_unavailable: " in told.stderr
    assert "Traceback" not in told.stderr


async def test_the_platform_takes_its_records_from_a_file(tmp_path: Path) -> None:
    data = tmp_path / "records.jsonl"
    data.write_text(
        '{"type":"account","account_id":"a1","kind":"creator","pure_creator":false,"shop":null}\n'
        '{"type":"product","product_id":"p1","shop_id":"s1"}\n'
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.cli", "platform", "--port", "0", "--data", str(data)),
        stdout=asyncio.subprocess.PIPE,
        env=clean_environment(),
    )
    try:
        assert process.stdout is not None
        url = (await asyncio.wait_for(process.stdout.readline(), 15)).decode().split()[-1]
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{url}/accounts/a1") as response:
                assert await response.json() == {
                    "account_id": "a1",
                    "kind": "creator",
                    "pure_creator": False,
                    "shop": None,
                }
            async with http.get(f"{url}/products/p1") as response:
                assert await response.json() == {"product_id": "p1", "shop_id": "s1"}
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_jwt_mode_end_to_end(worlds: Worlds, tmp_path: Path) -> None:
    secret = "0123456789abcdef0123456789abcdef"
    key = {"kty": "oct", "kid": "k1", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY", "alg": "HS256"}
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [key]}))
    world = await worlds(
        more='[identity]\nmode = "jwt"\nalgorithms = ["HS256"]\nissuer = "i"\naudience = "a"\njwks = "keys.json"'
    )

    async def create(token: str) -> int:
        headers = {"Authorization": f"Bearer {token}", "X-Account-Id": "shop-mall"}
        body = {"account_id": "shop-individual"}
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{world.url}/live/sessions", json=body, headers=headers) as r,
        ):
            return r.status

    claims = {"sub": "shop-individual", "iss": "i", "aud": "a", "exp": 4_000_000_000}
    assert await create(jwt.encode(claims, secret, headers={"kid": "k1"})) == 201
    assert await create(jwt.encode({**claims, "aud": "b"}, secret, headers={"kid": "k1"})) == 401
    assert await create(jwt.encode({**claims, "sub": "shop-mall"}, secret, headers={"kid": "k1"})) == 403
    assert await create(jwt.encode({**claims, "exp": 1}, secret, headers={"kid": "k1"})) == 401
    assert await create(jwt.encode(claims, secret[::-1], headers={"kid": "k1"})) == 401
    assert await create(jwt.encode(claims, None, algorithm="none")) == 401
    assert await create("none") == 401


async def test_a_running_request_survives_the_drain(worlds: Worlds) -> None:
    world = await worlds()
    room = await world.room()
    await room.attach("own-individual-1", "ally-2")
    await world.fault("attach", "slow", delay_ms=250)
    attaching = asyncio.ensure_future(room.attach("ally-1"))
    await eventually(lambda: world.applied(room.session), lambda applied: "ally-1" in applied)
    await world.gateways.pop().close()
    assert (await attaching).status == 200
