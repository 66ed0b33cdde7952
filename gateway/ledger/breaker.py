"""When to stop asking a server, and when to believe in it again. Pure: it is told what happened.

After `OPEN_AFTER` failures in a row nothing is sent any more. Whoever holds the breaker then probes in the background,
so that no caller is the probe. A probe that succeeds lets calls through, and the first of them that fails stops them
again: a server that answers a probe may still be unable to serve.
"""

from __future__ import annotations

OPEN_AFTER = 3
PROBE_SECONDS = 0.25


class Breaker:
    """Closed until `OPEN_AFTER` failures in a row."""

    def __init__(self) -> None:
        self._failures = 0

    @property
    def is_open(self) -> bool:
        return self._failures >= OPEN_AFTER

    def failed(self) -> bool:
        """Whether this failure opened it."""
        self._failures += 1
        return self._failures == OPEN_AFTER

    def succeeded(self) -> None:
        self._failures = 0

    def probed(self) -> None:
        """A probe was answered."""
        self._failures = min(self._failures, OPEN_AFTER - 1)
