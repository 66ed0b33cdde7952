"""`attachgate journal` as processes: killed in the middle, stopped, two at once, to standard output."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

from gateway.export.output import RotatingFile
from tests.admission.world import until
from tests.export.conftest import Journal, operations, read_file


async def grown(path: Path, least: int = 1) -> None:
    await until(lambda: path.exists() and path.stat().st_size >= least)


async def test_killed_in_the_middle_nothing_is_missing(processes: Journal) -> None:
    names = [name for bucket in range(0, 1024, 8) for name in await processes.events(60, bucket=bucket)]
    file = processes.folder / "journal.jsonl"
    process = await processes.start("--output", str(file))
    await grown(file)
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    half = len(operations(read_file(file)))
    assert 0 < half < len(names), "it was killed in the middle"
    await processes.once(output := RotatingFile(file, 1 << 30, 0), claim_seconds=0)
    output.close()
    lines = read_file(file)
    assert set(operations(lines)) == set(names)
    assert not [line for line in lines if line["type"] == "gap"]


async def test_sigterm_ends_it_and_nothing_comes_twice(processes: Journal) -> None:
    names = [name for bucket in range(0, 1024, 8) for name in await processes.events(60, bucket=bucket)]
    file = processes.folder / "journal.jsonl"
    process = await processes.start("--output", str(file), "--rotate-bytes", "500000")
    await grown(file)
    process.send_signal(signal.SIGTERM)
    _, problems = await process.communicate()
    assert process.returncode == 0, problems
    await processes.once(output := RotatingFile(file, 500_000, 0))
    output.close()
    files = sorted(processes.folder.glob("journal*.jsonl"))
    assert len(files) > 1
    assert sorted(name for file in files for name in operations(read_file(file))) == sorted(names)


async def test_two_at_once_and_more_that_comes(processes: Journal) -> None:
    files = [processes.folder / f"journal-{name}.jsonl" for name in "ab"]
    for file in files:
        await processes.start("--output", str(file))
    names = [name for bucket in range(0, 1024, 8) for name in await processes.events(20, bucket=bucket)]

    async def both_have_something() -> bool:
        """One may have taken all that there was before the other came."""
        names.extend(await processes.events(5, bucket=len(names) % 1024, first=len(names)))
        return all(file.exists() and file.stat().st_size for file in files)

    await until(both_have_something)
    names += await processes.events(50, bucket=3)
    await until(lambda: sum(len(operations(read_file(file))) for file in files) >= len(names))
    assert sorted(name for file in files for name in operations(read_file(file))) == sorted(names)


async def test_to_standard_output(processes: Journal) -> None:
    names = await processes.events(20)
    code, out, problems = await processes.said("--once")
    assert code == 0, problems
    assert operations(json.loads(line) for line in out.splitlines()) == names


async def test_a_reader_that_ends_loses_nothing(processes: Journal) -> None:
    await processes.events(100_000 // 8)
    process = await processes.start()
    assert process.stdout is not None
    await process.stdout.readline()
    process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
    async with asyncio.timeout(15):
        _, problems = await process.communicate()
    assert process.returncode == 1
    assert b"output_gone" in problems
    assert b"Traceback" not in problems


async def test_a_file_that_another_one_writes_is_refused(processes: Journal) -> None:
    file = processes.folder / "journal.jsonl"
    held = RotatingFile(file, 100, 0)
    code, _, problems = await processes.said("--output", str(file), "--once")
    held.close()
    assert (code, b"another exporter" in problems) == (2, True)
