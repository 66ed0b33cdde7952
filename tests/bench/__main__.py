"""`python -m tests.bench`: what `make bench` runs. The gateway beside what people would use instead, on two cores.

The proxy has one core; load, upstream and Redis share the other. Rows go round by round through all peers, so that what
the machine does meanwhile meets each. Writes results.json and index.html into a folder, and prints tables.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec
import uvloop

from tests.bench import enforce, page, results
from tests.bench.mixes import session_names
from tests.bench.peers.kinds import DEBIAN, DEFAULT, ENVOY, KINDS, LeftOut, Site, Store, Upstream, install
from tests.bench.results import Results
from tests.bench.rows import ROWS, SESSIONS, SIZES, Bench, open_sessions, pin_harness


def options() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    arguments.add_argument("--rows", default=",".join(ROWS), help="default: %(default)s")
    arguments.add_argument("--peers", default=",".join(DEFAULT), help=f"of {', '.join(KINDS)} (default: %(default)s)")
    arguments.add_argument("--rounds", type=int, default=5, help="of each row (default: %(default)s)")
    arguments.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default: %(default)g)")
    arguments.add_argument(
        "--sizes", default=",".join(map(str, SIZES)), help="of the row sessions, in Redis (default: %(default)s)"
    )
    arguments.add_argument(
        "--sessions", type=int, default=SESSIONS, help="opened beforehand, for all other rows (default: %(default)s)"
    )
    arguments.add_argument("--folder", type=Path, default=Path("build/bench"), help="default: %(default)s")
    asked = arguments.parse_args()
    for given, known in ((asked.rows, ROWS), (asked.peers, KINDS)):
        if unknown := [name for name in given.split(",") if name not in known]:
            arguments.error(f"there is no {', '.join(unknown)}; there are {', '.join(known)}")
    if asked.rounds < 1 or asked.seconds < 1 or asked.sessions < 10:
        arguments.error("at least one round of one second, with ten sessions")
    if (os.cpu_count() or 1) < 2:
        arguments.error("needs two cores")
    return asked


def say(line: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {line}", file=sys.stderr, flush=True)


def machine() -> str:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    found |= {name: version(name) for name in ("aiohttp", "uvloop", "hiredis")}
    for name, command in (("nginx", [str(DEBIAN["nginx"]), "-v"]), ("Redis", ["redis-server", "--version"])):
        with suppress(OSError):
            said = subprocess.run(command, capture_output=True, text=True, check=False)
            if number := re.search(r"\d+\.\d+\.\d+", said.stdout + said.stderr):
                found[name] = number[0]
    found["Envoy"] = ENVOY.partition("==")[2]
    with suppress(OSError):
        commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
        found["commit"] = commit.stdout.strip() or "unknown"
    return found


async def take_part(bench: Bench, name: str, site: Site, found: Results) -> None:
    """Start a peer and see that it enforces; else it is left out, and why is said."""
    peer = KINDS[name](site)
    try:
        peer.prepare()
        await peer.begin()
        bench.peers.append(peer)
        if peer.judges and (fault := await enforce.fault(peer.port)) is not None:
            raise LeftOut(f"does not enforce: {fault}")
    except (LeftOut, AssertionError) as problem:
        found.left_out[name] = str(problem)
        say(f"{name} is left out: {problem}")
        await peer.end()
        if peer in bench.peers:
            bench.peers.remove(peer)
        return
    found.peers[name] = peer.says
    await open_sessions(bench, peer)
    say(f"{name} enforces and has {len(bench.opened):,} sessions" if peer.judges else f"{name} runs")


async def run(asked: argparse.Namespace, found: Results, folder: Path) -> None:
    pin_harness()
    install("wrk")
    upstream, store = Upstream(folder), Store("redis", folder)
    sizes = [int(size) for size in asked.sizes.split(",")]
    bench = Bench(folder, upstream, store, [], session_names(asked.sessions), asked.rounds, asked.seconds, sizes, say)
    try:
        await upstream.begin()
        await store.begin()
        site = Site(folder, upstream.port, store.port)
        for name in asked.peers.split(","):
            await take_part(bench, name, site, found)
        for name in asked.rows.split(","):
            begun = len(bench.rows)
            await ROWS[name](bench)
            for row in list(bench.rows.values())[begun:]:
                found.rows.append(row)
                print(results.table(row) + "\n", flush=True)
    finally:
        for peer in bench.peers:
            await peer.end()
        await upstream.kill()
        await store.kill()


def main() -> int:
    asked = options()
    command = shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]])
    at = datetime.now(UTC).isoformat(timespec="seconds")
    found = Results(at, command, machine(), versions(), {}, {}, [])
    print(f"{found.command}, {found.at}, {found.machine}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="attachgate-bench-") as folder:
        try:
            uvloop.run(run(asked, found, Path(folder)))
        except LeftOut as problem:
            print(f"Nothing was measured: {problem}.", file=sys.stderr)
            return 2
    asked.folder.mkdir(parents=True, exist_ok=True)
    (asked.folder / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
    (asked.folder / "index.html").write_text(page.render(found))
    print(f"{asked.folder / 'results.json'} and {asked.folder / 'index.html'} have all of it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
