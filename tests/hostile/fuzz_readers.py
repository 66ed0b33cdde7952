"""Fuzzes the pure readers, guided by coverage where atheris is installed, with Hypothesis otherwise.

    make fuzz                                                    ten minutes of everything
    python tests/hostile/fuzz_readers.py --seconds 300 --seed 1  this part of it

Ends with 0 after its time, otherwise with the input that broke a promise. No part of `make test`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))


def guided(seconds: int, seed: int) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["gateway.reading", "gateway.refusals", "json"]):
        from tests.hostile import readers
    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate(readers.SEEDS):
            (Path(corpus) / f"{number}").write_bytes(data)
        options = [f"-max_total_time={seconds}", f"-seed={seed}", "-max_len=4096", "-timeout=5", "-print_final_stats=1"]
        options.append(f"-artifact_prefix={tempfile.gettempdir()}/attachgate-")
        atheris.Setup([sys.argv[0], *options, corpus], readers.check)
        atheris.Fuzz()


def unguided(seconds: int, seed: int) -> int:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st

    from tests.hostile import readers

    until, runs = time.monotonic() + seconds, 0

    def one_round(number: int) -> None:
        @seeded(number)
        @settings(max_examples=5000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.one_of(st.binary(max_size=200), st.sampled_from(readers.SEEDS)))
        def round_of(data: bytes) -> None:
            nonlocal runs
            runs += 1
            readers.check(data)

        round_of()

    while time.monotonic() < until:
        one_round(seed)
        seed += 1
    print(f"{runs} runs in {seconds} s, {runs / max(1, seconds):.0f} a second")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("atheris is not installed (pip install -e '.[fuzz]'): Hypothesis, without coverage", flush=True)
        return unguided(arguments.seconds, arguments.seed)
    guided(arguments.seconds, arguments.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
