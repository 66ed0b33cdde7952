"""No count, lease or settlement depends on the wall clocks of two gateways agreeing."""

from __future__ import annotations

import ast
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

import gateway
from gateway import serve
from gateway.policy.model import Policy
from tests.admission.world import World, until

HARMLESS = {
    "commands.py": "`explain`: the time that it is asked about, where none is given",
    "demo/core.py": "the platform's journal, for its readers",
    "export/exporter.py": "when a gap was found, for the journal's readers",
    "identity/__init__.py": "whether a token is in force: its issuer's clock and ours, within identity.leeway_seconds",
    "load/command.py": "the date on a report",
    "proxy/fast.py": "the answer's Date",
    "reconciler/recall.py": "how old a journal's entry may be: days, give or take an hour",
    "telemetry/counts.py": "since when a metric counts, for whoever reads it",
    "serve.py": "which policy version is in force: the cap comes with each call, and the ledger keeps no verdict",
}
"""Where a wall clock is read, and why it may be an hour off. All else is measured on this machine's monotonic clock,
and what gateways share (holds, leases, when a slot was taken, event ids) is Redis' own time."""


def reads_wall_clock(file: Path) -> bool:
    tree = ast.parse(file.read_text())
    names = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "time"
        for alias in node.names
    }
    wall = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
    return bool(names & wall) or bool(imported & {"time", "time_ns"})


def test_wall_clocks_are_read_only_where_it_does_no_harm() -> None:
    root = Path(gateway.__file__).parent
    found = {str(file.relative_to(root)) for file in root.rglob("*.py") if reads_wall_clock(file)}
    assert found == set(HARMLESS)


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_gateway_whose_clock_is_an_hour_off(bare: World, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    await bare.session()
    right = await bare.gateway()
    off = SimpleNamespace(time=lambda: time.time() + 3600 * hours, monotonic=time.monotonic)
    with monkeypatch.context() as patched:
        patched.setattr(serve, "time", off)
        wrong = await bare.gateway()
    assert abs(wrong._gate.wall_clock() - right._gate.wall_clock()) > 3500

    assert (await bare.attach("ally-1", at=wrong)).status == 200
    bare.fault("apply_then_drop")
    await bare.attach("ally-2", at=wrong)
    bare.fault("timeout")
    await bare.attach("ally-3", at=wrong)
    bare.no_faults()
    assert await bare.used() == {"ally-1", "ally-2", "ally-3"}
    await bare.settled()
    assert await bare.used() == {"ally-1", "ally-2"}, "by either gateway, and at the right time"
    assert (await bare.attach("ally-4", at=right)).status == 200
    assert (await bare.attach("ally-5", at=wrong)).status == 403
    assert (await bare.detach("ally-4", at=wrong)).status == 204

    async def back() -> bool:
        return await bare.used() == {"ally-1", "ally-2"}

    await until(back)
    slots = (await bare.snapshot()).slots  # type: ignore[union-attr]
    assert all(abs(slot.since_ms / 1000 - time.time()) < 60 for slot in slots), "Redis' time"


async def test_a_version_that_begins_while_the_gateway_runs_is_said_to_be_in_force(
    bare: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.time()
    clock = SimpleNamespace(time=lambda: began, monotonic=time.monotonic)
    monkeypatch.setattr(serve, "time", clock)
    gateway = await bare.gateway()
    (first,) = gateway._gate.verdicts.policy.versions
    later = msgspec.structs.replace(first, id="later", effective_from=began + 3600)
    gateway.reload(gateway.config, Policy((first, later)))
    said = []
    for passed in (0, 3601):
        clock.time = lambda passed=passed: began + passed
        async with bare.http.get(gateway.admin_url + "/readyz") as ready:
            said.append((await ready.json())["policy_version"])
        async with bare.http.get(gateway.admin_url + "/metrics") as metrics:
            assert f'attachgate_policy_info{{version="{said[-1]}"}} 1.0' in await metrics.text()
    assert said == [first.id, "later"]
