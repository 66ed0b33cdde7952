"""What the policy says of an account's foreign products: (policy, facts, time) to a verdict.

The version in force is the newest whose `effective_from` the time has reached (N13). In it the account, as it
is now (N9, N10, N11), on this surface is exactly one case, and the case has exactly one rule: `document` has
checked that, so there is nothing to search.

A rule with a cap restricts only whom its roll-out has reached (N12). Whom it has not is judged by the version
before, and so on back, so that a new version that is being rolled out takes nothing back from the one it
follows. Whom no version restricts has no cap; where a roll-out alone is the reason, the verdict says so
(`reached` is False) and names the rule and version that the account will fall under.

Before the first version nothing is restricted. The verdict then has the rule BEFORE_FIRST_VERSION, since it
is N13 that says a rule holds from its time on and not before, and an empty `policy_version`.

Pure and quick: two dictionary look-ups, and one hash of the account's id while a roll-out is on its way.
"""

from __future__ import annotations

from bisect import bisect_right
from math import inf

from gateway.policy.cases import case_of
from gateway.policy.model import Account, Policy, Rule, Surface, Verdict, Version
from gateway.policy.rollout import reached

BEFORE_FIRST_VERSION = "N13"
MAX_REMEMBERED = 16_384
"""Verdicts: of one account on one surface each."""


def evaluate(policy: Policy, account: Account, surface: Surface, now: float) -> Verdict:
    """The verdict on foreign products at `now` (seconds since the epoch). Own products need none: they are
    never limited (N3)."""
    case = case_of(account, surface)
    waiting: tuple[Version, Rule] | None = None
    for version in reversed(policy.versions):
        if version.effective_from > now:
            continue
        rule = version.cases[case]
        if rule.cap is None:
            if waiting is None:
                return Verdict(None, rule.id, version.id, True, case.standing, rule.message)
            break
        if reached(account.account_id, version.salt, rule.rollout, now):
            return Verdict(rule.cap, rule.id, version.id, True, case.standing, rule.message)
        waiting = waiting or (version, rule)
    if waiting is None:
        return Verdict(None, BEFORE_FIRST_VERSION, "", True, case.standing, {})
    version, rule = waiting
    return Verdict(None, rule.id, version.id, False, case.standing, rule.message)


class Verdicts:
    """`evaluate` for one policy, with what it said last of an account on a surface kept: until the account's record is
    another one, or a version or a step of a roll-out comes."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._known: dict[tuple[str, Surface], tuple[Account, float, float, Verdict]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def of(self, account: Account, surface: Surface, now: float) -> Verdict:
        key = account.account_id, surface
        known = self._known.get(key)
        if known is not None and known[0] is account and known[1] <= now < known[2]:
            return known[3]
        verdict = evaluate(self.policy, account, surface, now)
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        changes = self.policy.changes
        index = bisect_right(changes, now)
        since = changes[index - 1] if index else -inf
        until = changes[index] if index < len(changes) else inf
        self._known[key] = account, since, until, verdict
        return verdict
