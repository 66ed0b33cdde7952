"""`python -m tests.chaos`: what `make chaos` runs. 0 where the promise was kept, 1 where it was not.

With `--mutants`, every planted bug in turn: 0 where each was found.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
from pathlib import Path

from tests.chaos import report
from tests.chaos.mutants import MUTANTS, Mutant, plant, shape
from tests.chaos.plan import Shape
from tests.chaos.run import Options, Outcome, run

TRIES = 3
MUTANT_SETTLE_SECONDS = 15.0


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    arguments.add_argument("--seconds", type=float, default=600.0, help="of load and faults (default: 600)")
    arguments.add_argument("--seed", type=int, help="of the plan; drawn where absent")
    arguments.add_argument("--store", choices=("standalone", "sentinel"), default="standalone")
    arguments.add_argument("--gateways", type=int, default=3)
    arguments.add_argument("--sessions", type=float, default=5.0, metavar="N", help="that begin in a second")
    arguments.add_argument("--faults", type=float, default=1.2, metavar="N", help="in a second")
    arguments.add_argument("--mutants", nargs="*", metavar="NAME", help="look for planted bugs, all or those named")
    asked = arguments.parse_args()
    seed = asked.seed if asked.seed is not None else secrets.randbelow(1_000_000)
    if asked.mutants is not None:
        chosen = [mutant for mutant in MUTANTS if not asked.mutants or mutant.name in asked.mutants]
        found = [find(mutant, seed) for mutant in chosen]
        return 0 if all(found) else 1
    print(
        f"seed {seed}: make chaos SEED={seed} CHAOS_SECONDS={asked.seconds:g} STORE={asked.store} repeats this plan",
        flush=True,
    )
    planned = Shape(asked.seconds, asked.gateways, asked.sessions, asked.faults)
    outcome = run(Options(seed, planned, asked.store), lambda line: print(line, flush=True))
    print("\n".join(report.lines(outcome)), flush=True)
    return 1 if outcome.findings else 0


def find(mutant: Mutant, seed: int) -> bool:
    """Up to three runs, with other seeds: a race that a bug needs does not come in each."""
    for tried in range(TRIES):
        outcome = run_mutant(mutant, seed + tried)
        told = [finding for finding in outcome.findings if finding.what in mutant.finds]
        if told:
            how = f"{told[0].what}: {told[0].session_id} {told[0].text}"
            print(f"found      {mutant.name} ({mutant.why}) in run {tried + 1}: {how}", flush=True)
            return True
    print(f"NOT FOUND  {mutant.name} ({mutant.why}) in {TRIES} runs", flush=True)
    return False


def run_mutant(mutant: Mutant, seed: int) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="attachgate-mutant-") as folder:
        root = plant(mutant, Path(folder))
        stop_early = "over the cap" in mutant.finds
        options = Options(
            seed,
            shape(mutant),
            root=root,
            stop_early=stop_early,
            no_doubts="settlement lost" in mutant.finds,
            settle_seconds=MUTANT_SETTLE_SECONDS,
        )
        return run(options)


if __name__ == "__main__":
    sys.exit(main())
