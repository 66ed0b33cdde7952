"""Processes pinned to a core, and what the kernel says of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.chaos.processes import Child

PROXY_CORE: Final = 0
LOAD_CORE: Final = 1
TICKS: Final = os.sysconf("SC_CLK_TCK")


class Pinned(Child):
    """A child on one core, with everything that it starts."""

    def __init__(self, name: str, command: Sequence[str], log: Path, core: int, root: Path | None = None) -> None:
        super().__init__(name, [shutil.which("taskset") or "taskset", "-c", str(core), *command], log, root)

    def pids(self) -> list[int]:
        """Its own and its children's."""
        if self._process is None:
            return []
        found = [self._process.pid]
        for pid in found:
            found += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time, exact to a tick (10 ms) each."""
    return sum(_ticks(pid) for pid in pids) / TICKS


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def resident_bytes(pids: Sequence[int]) -> int:
    """Resident memory now, shared pages counted in each."""
    return sum(_status(pid, "VmRSS") for pid in pids)


def forget_peak(pids: Sequence[int]) -> None:
    """`peak_bytes` counts from now on (proc(5), clear_refs)."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(pids: Sequence[int]) -> int:
    return sum(_status(pid, "VmHWM") for pid in pids)


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0
