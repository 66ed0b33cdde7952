"""`python -m tests.bench.budget`: how many microseconds of the gateway's CPU each stage of an attach takes.

Loads it as `make bench` does while py-spy (a package of its own: `pip install py-spy`) looks at it, and shares out the
time that a run without py-spy took. A sampling profiler shows proportions; what is below a microsecond is chance.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

import uvloop

from tests.bench import stages
from tests.bench.mixes import MIXES, session_names
from tests.bench.peers.kinds import Gateway, Site, Store, Upstream
from tests.bench.processes import LOAD_CORE
from tests.bench.rows import Bench, open_sessions, pin_harness, run_wrk

RATE_HZ = 400
SESSIONS = 3_000


async def profile(pid: int, seconds: float, out: Path) -> str:
    """Stacks of a process, native frames included, folded."""
    program = shutil.which("py-spy") or str(Path(sys.executable).with_name("py-spy"))
    options = [
        "--native",
        "-r",
        str(RATE_HZ),
        "-d",
        str(round(seconds)),
        "-f",
        "raw",
        "-o",
        str(out),
        "--pid",
        str(pid),
    ]
    command = ["taskset", "-c", str(LOAD_CORE), program, "record", *options]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(said.decode().strip())
    return out.read_text()


async def run(names: list[str], seconds: float, folder: Path) -> None:
    pin_harness()
    upstream, store = Upstream(folder), Store("redis", folder)
    gateway = None
    try:
        await upstream.begin()
        await store.begin()
        gateway = Gateway(Site(folder, upstream.port, store.port))
        gateway.prepare()
        await gateway.begin()
        bench = Bench(folder, upstream, store, [gateway], session_names(SESSIONS), 1, seconds, [], print)
        await open_sessions(bench, gateway)
        for name in names:
            file = bench.messages(name, bench.opened, name)
            await run_wrk(bench, gateway, file, 2, store)
            _, figures = await run_wrk(bench, gateway, file, seconds, store)
            loading = asyncio.ensure_future(run_wrk(bench, gateway, file, seconds + 2, store))
            folded = await profile(gateway.pids()[0], seconds, folder / f"{name}.folded")
            await loading
            print(f"\n{name}: {MIXES[name].says}\n{stages.table(stages.shares(folded), figures['CPU'])}", flush=True)
    finally:
        if gateway is not None:
            await gateway.end()
        await upstream.kill()
        await store.kill()


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.bench.budget", description=__doc__)
    arguments.add_argument(
        "--rows", default="mix,refusals,admits", help=f"of {', '.join(MIXES)} (default: %(default)s)"
    )
    arguments.add_argument("--seconds", type=float, default=10.0, help="of each (default: %(default)g)")
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="attachgate-budget-") as folder:
        uvloop.run(run(asked.rows.split(","), asked.seconds, Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
