"""Ports for the processes of tests."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from typing import Final

PORTS: Final = (12_000, 32_000)

_chance = random.SystemRandom()
_taken: set[int] = set()


def free_port() -> int:
    """A port that stays free while its process is away: below those that outgoing connections get (32768 and above on
    Linux), and never handed out twice."""
    while True:
        port = _chance.randrange(*PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                if port not in _taken:
                    _taken.add(port)
                    return port
