"""A slice of `make chaos`, and one planted bug, so that the harness can't go blind unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import report
from tests.chaos.__main__ import find
from tests.chaos.mutants import MUTANTS, Mutant, plant
from tests.chaos.plan import Shape
from tests.chaos.run import Options, run

SLICE = Shape(seconds=20.0, sessions_a_second=4.0, faults_a_second=2.0)


@pytest.mark.timeout(180)
def test_the_promise_is_kept_while_everything_fails() -> None:
    outcome = run(Options(7, SLICE))
    assert not outcome.findings, "\n".join(report.lines(outcome))
    assert outcome.judgement.sessions > 40
    assert sum(outcome.faults.values()) > 20
    assert outcome.doubts.begun > 0


@pytest.mark.timeout(180)
def test_a_planted_bug_is_found() -> None:
    assert find(next(mutant for mutant in MUTANTS if mutant.name == "release on time-out"), 1)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_bug_can_still_be_planted(mutant: Mutant, tmp_path: Path) -> None:
    root = plant(mutant, tmp_path)
    for name, text, _ in mutant.changes:
        assert text not in (root / "gateway" / name).read_text()
