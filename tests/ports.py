"""Ports for the processes of tests."""

from __future__ import annotations

import os
import random
import socket
from typing import Final

LOWEST: Final = 12_000
BUS: Final = 10_000

_chance = random.SystemRandom()
_taken: set[int] = set()


def free_port() -> int:
    """A port that stays free while its process is away, and so does the one of its cluster bus (10,000 above): both are
    below those that outgoing connections get (32768 and above on Linux), never handed out twice, and of a range that no
    other worker of the test run draws from."""
    width = BUS // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    first = LOWEST + width * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = _chance.randrange(first, first + width)
        if port not in _taken and _can_be_had(port) and _can_be_had(port + BUS):
            _taken.add(port)
            return port


def _can_be_had(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
