"""`attachgate` with a wall clock that is wrong: an hour fast from the start, and at each SIGUSR1 another error.

Started as a script, so that the package under test is whichever stands first on the path. Only `time.time` is wrong:
what the gateway measures intervals with is monotonic everywhere.
"""

from __future__ import annotations

import itertools
import signal
import sys
import time

SKEWS_SECONDS = (3600.0, -3600.0, 86_400.0, 0.0)

_true = time.time
_skews = itertools.cycle(SKEWS_SECONDS)
_skew = next(_skews)


def _wrong() -> float:
    return _true() + _skew


def _step(number: int, frame: object) -> None:
    global _skew
    _skew = next(_skews)


if __name__ == "__main__":
    time.time = _wrong
    signal.signal(signal.SIGUSR1, _step)
    from gateway.cli import main

    sys.exit(main(sys.argv[1:]))
