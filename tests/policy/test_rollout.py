"""N12: opened step by step and at random, to everybody in the end; who was reached stays reached."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.model import Step
from gateway.policy.rollout import percent_at, place, reached

ACCOUNTS = st.text(min_size=1, max_size=64)
SALTS = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=64)
TIMES = st.floats(0, 4e9)


@st.composite
def rollouts(draw: st.DrawFn) -> list[Step]:
    """A roll-out as `document` lets it through: ascending in time, never falling."""
    times = sorted(draw(st.sets(TIMES, max_size=6)))
    percents = sorted(draw(st.lists(st.floats(0, 100), min_size=len(times), max_size=len(times))))
    return [Step(at, percent) for at, percent in zip(times, percents, strict=True)]


@given(ACCOUNTS, SALTS)
def test_an_account_has_one_place_from_0_to_below_100(account: str, salt: str) -> None:
    assert 0 <= place(account, salt) < 100
    assert place(account, salt) == place(account, salt)


def test_a_place_is_the_same_in_every_process_and_release() -> None:
    assert place("acc-1", "2026-07") == pytest.approx(49.484734144061804, abs=1e-12)
    script = "from gateway.policy.rollout import place; print(repr(place('acc-1', '2026-07')))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert float(said) == place("acc-1", "2026-07")


@given(ACCOUNTS, SALTS, rollouts(), TIMES, TIMES)
def test_who_was_reached_stays_reached(account: str, salt: str, steps: list[Step], one: float, other: float) -> None:
    earlier, later = sorted((one, other))
    assert reached(account, salt, steps, later) or not reached(account, salt, steps, earlier)


@given(ACCOUNTS, SALTS, st.floats(0, 100), st.floats(0, 100))
def test_a_greater_percentage_reaches_no_fewer(account: str, salt: str, one: float, other: float) -> None:
    smaller, greater = sorted((one, other))
    assert reached(account, salt, [Step(0, greater)], 1) or not reached(account, salt, [Step(0, smaller)], 1)


@given(ACCOUNTS, SALTS)
def test_a_hundred_percent_is_everybody_and_zero_is_nobody(account: str, salt: str) -> None:
    assert reached(account, salt, [Step(0, 100)], 0)
    assert not reached(account, salt, [Step(0, 0)], 0)
    assert reached(account, salt, [], 0)


@pytest.mark.parametrize("percent", [1, 10, 50, 80])
def test_a_percentage_reaches_about_so_many(percent: float) -> None:
    number = sum(reached(f"account-{n}", "2026-07", [Step(0, percent)], 1) for n in range(5000))
    assert number / 50 == pytest.approx(percent, abs=2)


def test_another_salt_draws_other_accounts() -> None:
    steps = [Step(0, 50)]
    both = sum(reached(f"a{n}", "one", steps, 1) and reached(f"a{n}", "two", steps, 1) for n in range(2000))
    assert both / 20 == pytest.approx(25, abs=4)


def test_between_two_steps_nothing_changes() -> None:
    steps = [Step(100, 10), Step(200, 50)]
    percents = [(99.9, 0), (100, 10), (150, 10), (199.9, 10), (200, 50), (1e9, 50)]
    assert [(now, percent_at(steps, now)) for now, _ in percents] == percents


def test_a_salt_that_is_too_long_is_an_error() -> None:
    with pytest.raises(ValueError, match="key"):
        place("a", "x" * 65)
