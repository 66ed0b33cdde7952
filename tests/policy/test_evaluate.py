"""Versions and roll-outs together: which version judges whom, and when a verdict may change."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy import evaluate as module
from gateway.policy.cases import SPACE
from gateway.policy.evaluate import Verdicts, evaluate
from gateway.policy.model import Account, Kind, Policy, Rule, Shop, ShopType, Step, Surface, Version
from gateway.policy.rollout import place

SALT = "salt"
ROOM = Surface.live_room


def version(name: str, start: float, cap: int | None, *steps: tuple[float, float]) -> Version:
    """A version with one rule for everything."""
    rule = Rule(f"R-{name}", cap, {"en": name}, tuple(Step(at, percent) for at, percent in steps))
    return Version(name, start, SALT, dict.fromkeys(SPACE, rule))


def account_at(low: float, high: float) -> Account:
    """An account whose place lies between the two percentages."""
    name = next(name for n in range(100_000) if low <= place(name := f"account-{n}", SALT) < high)
    return Account(name, Kind.official, False, Shop("own", ShopType.mall))


FIRST, LAST = account_at(0, 5), account_at(90, 100)
OLD = version("old", 100, 3)


def test_the_newest_version_in_force_judges() -> None:
    policy = Policy((OLD, version("new", 200, 0), version("future", 300, None)))
    assert [evaluate(policy, FIRST, ROOM, now).policy_version for now in (99, 100, 199, 200, 299, 300)] == [
        *("", "old", "old", "new", "new", "future")
    ]


def test_whom_the_new_version_has_not_reached_is_judged_by_the_one_before() -> None:
    policy = Policy((OLD, version("new", 200, 0, (200, 10), (300, 100))))
    assert evaluate(policy, FIRST, ROOM, 250).cap == 0
    last = evaluate(policy, LAST, ROOM, 250)
    assert (last.cap, last.rule, last.policy_version, last.reached) == (3, "R-old", "old", True)
    assert evaluate(policy, LAST, ROOM, 300).cap == 0


def test_and_so_on_back_to_the_first() -> None:
    steps = ((0, 10),)
    policy = Policy((OLD, version("second", 200, 2, *steps), version("third", 300, 1, *steps)))
    assert evaluate(policy, LAST, ROOM, 400).policy_version == "old"
    assert evaluate(policy, FIRST, ROOM, 400).policy_version == "third"


def test_the_older_versions_rollout_goes_on_under_the_newer_one() -> None:
    old = version("old", 100, 3, (100, 10), (300, 100))
    policy = Policy((old, version("new", 200, 0, (200, 0))))
    assert evaluate(policy, LAST, ROOM, 250).cap is None
    assert evaluate(policy, LAST, ROOM, 300).cap == 3


def test_whom_no_version_has_reached_has_no_cap_and_learns_the_newest_rule() -> None:
    policy = Policy((version("old", 100, 3, (100, 10)), version("new", 200, 0, (200, 10))))
    verdict = evaluate(policy, LAST, ROOM, 250)
    assert (verdict.cap, verdict.rule, verdict.policy_version, verdict.reached) == (None, "R-new", "new", False)
    assert verdict.message == {"en": "new"}


def test_so_does_whom_the_version_before_does_not_restrict() -> None:
    policy = Policy((version("old", 100, None), version("new", 200, 0, (200, 10))))
    verdict = evaluate(policy, LAST, ROOM, 250)
    assert (verdict.cap, verdict.rule, verdict.reached) == (None, "R-new", False)


def test_a_version_that_lifts_a_cap_lifts_it_for_everybody_at_once() -> None:
    policy = Policy((OLD, version("new", 200, None)))
    verdict = evaluate(policy, LAST, ROOM, 200)
    assert (verdict.cap, verdict.policy_version, verdict.reached) == (None, "new", True)


TIMES = st.integers(0, 50).map(float)
STEPS = st.lists(st.tuples(TIMES, st.sampled_from((0.0, 10.0, 50.0, 100.0))), max_size=3)
VERSIONS = st.lists(st.tuples(TIMES, st.sampled_from((None, 0, 3)), STEPS), min_size=1, max_size=3)


def policy_of(versions: Sequence[tuple[float, int | None, list[tuple[float, float]]]]) -> Policy:
    """Versions and steps put in the order that `document` asks for."""
    return Policy(
        tuple(
            version(str(n), start, cap, *zip(sorted(at for at, _ in steps), sorted(p for _, p in steps), strict=True))
            for n, (start, cap, steps) in enumerate(sorted(versions, key=lambda one: one[0]))
        )
    )


@given(VERSIONS, st.lists(TIMES, min_size=2, max_size=8), st.sampled_from((FIRST, LAST, account_at(20, 40))))
def test_what_is_remembered_is_what_would_be_said_now(
    versions: list[tuple[float, int | None, list[tuple[float, float]]]], times: list[float], account: Account
) -> None:
    policy = policy_of(versions)
    verdicts = Verdicts(policy)
    for now in times:
        for asked in (now, now + 0.5):
            assert verdicts.of(account, ROOM, asked) == evaluate(policy, account, ROOM, asked)


def test_a_verdict_is_remembered_for_one_record_of_an_account_on_one_surface(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = Verdicts(Policy((OLD,)))
    first = verdicts.of(LAST, ROOM, 150)
    assert verdicts.of(LAST, ROOM, 151) is first
    changed = msgspec.structs.replace(LAST, pure_creator=True)
    assert verdicts.of(changed, ROOM, 151) == evaluate(verdicts.policy, changed, ROOM, 151)
    assert verdicts.of(LAST, Surface.showcase, 151) == evaluate(verdicts.policy, LAST, Surface.showcase, 151)
    monkeypatch.setattr(module, "MAX_REMEMBERED", 10)
    for number in range(50):
        verdicts.of(msgspec.structs.replace(LAST, account_id=f"a{number}"), ROOM, 151)
    assert len(verdicts) <= 10


@given(VERSIONS, TIMES, TIMES, st.sampled_from((FIRST, LAST, account_at(20, 40))))
def test_a_restricted_account_stays_restricted_through_rollouts_and_versions(
    versions: list[tuple[float, int | None, list[tuple[float, float]]]], one: float, other: float, account: Account
) -> None:
    restricting = [(start, cap or 0, steps) for start, cap, steps in versions]
    policy = policy_of(restricting)
    earlier, later = (evaluate(policy, account, ROOM, now).cap is not None for now in sorted((one, other)))
    assert later or not earlier
