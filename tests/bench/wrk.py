"""What wrk says, read."""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

_UNITS_MS: Final = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
_PERCENTILE = re.compile(r"^\s+(\d+)%\s+([\d.]+)(us|ms|s|m)\s*$", re.MULTILINE)
_REQUESTS = re.compile(r"(\d+) requests in ([\d.]+)(us|ms|s|m),")
_ERRORS = re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)")
_REFUSED = re.compile(r"Non-2xx or 3xx responses: (\d+)")


class Said(Struct, frozen=True):
    """One run. `refused`: answers other than 2xx and 3xx; `errors`: of sockets, and requests without an answer."""

    requests: int
    seconds: float
    refused: int
    errors: int
    p50_ms: float
    p99_ms: float


def read(text: str) -> Said:
    """Raises `ValueError` where it is not what `wrk --latency` prints."""
    counted = _REQUESTS.search(text)
    percentiles = {int(percent): float(value) * _UNITS_MS[unit] for percent, value, unit in _PERCENTILE.findall(text)}
    if counted is None or 50 not in percentiles or 99 not in percentiles:
        raise ValueError(f"wrk said something else than expected:\n{text}")
    errors = _ERRORS.search(text)
    refused = _REFUSED.search(text)
    return Said(
        requests=int(counted[1]),
        seconds=float(counted[2]) * _UNITS_MS[counted[3]] / 1000,
        refused=int(refused[1]) if refused else 0,
        errors=sum(map(int, errors.groups())) if errors else 0,
        p50_ms=percentiles[50],
        p99_ms=percentiles[99],
    )
