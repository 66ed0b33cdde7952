"""The commands as an operator runs them: check, explain, serve."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import jwt
import pytest

from tests.acceptance.conftest import World, Worlds, eventually

MINIMAL = '[upstream]\nurl = "http://127.0.0.1:9"\n'


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ATTACHGATE_")}
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**inherited, **environ},
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


@pytest.mark.parametrize("language", ["en", "zh-CN"])
async def test_explain_gives_the_verdict_of_the_gateway(world: World, tmp_path: Path, language: str) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f'[upstream]\nurl = "{world.upstream.url}"\n')
    arguments = ("--config", str(file), "--account", "shop-flagship", "--product", "ally-1", "--surface", "live_room")
    told = await asyncio.to_thread(run, "explain", *arguments, "--json", "--language", language)
    assert told.returncode == 0, told.stderr
    explanation = json.loads(told.stdout)
    assert (explanation["verdict"], explanation["rule"]) == ("refused", "N1")
    table = await asyncio.to_thread(run, "explain", *arguments)
    assert "N1" in table.stdout
    before = await asyncio.to_thread(run, "explain", *arguments, "--json", "--at", "2026-06-01T00:00:00+08:00")
    assert json.loads(before.stdout)["verdict"] == "allowed"
    assert (await asyncio.to_thread(run, "explain", *arguments, "--at", "yesterday")).returncode == 2


async def test_serve_reloads_on_sighup_and_drains_on_sigterm(world: World, tmp_path: Path, redis_url: str) -> None:
    file = tmp_path / "gateway.toml"
    policy = tmp_path / "policy.toml"
    shipped = (Path(__file__).parents[2] / "deploy" / "policy.toml").read_text()
    policy.write_text(shipped)
    port = world.gateways[0].port
    file.write_text(
        f'[listen]\nport = 0\nadmin_port = 0\n[upstream]\nurl = "{world.upstream.url}"\n'
        f'[ledger]\nurl = "{redis_url}"\nprefix = "sighup{port}"\n[policy]\nfile = "policy.toml"\n'
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.cli", "serve", "--config", str(file), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    url = json.loads(await process.stderr.readline())["url"]
    room = await world.room()

    async def attach(product: str) -> int:
        answer = await world.ask("POST", f"{url}{room.path}/products", {"product_id": product}, room.account)
        return answer.status

    assert await attach("ally-1") == 200
    policy.write_text("nonsense")
    process.send_signal(signal.SIGHUP)
    refused = json.loads(await process.stderr.readline())
    assert refused["event"] == "reload_refused"
    assert await attach("ally-2") == 200
    policy.write_text(shipped.replace("cap = 3", "cap = 2"))
    process.send_signal(signal.SIGHUP)
    while json.loads(await process.stderr.readline())["event"] != "reloaded":
        pass
    assert await attach("ally-3") == 403
    process.terminate()
    rest = (await asyncio.wait_for(process.stderr.read(), 10)).decode()
    assert await process.wait() == 0
    assert '"stopped"' in rest


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
