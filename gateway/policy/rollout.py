"""Whom a roll-out has reached: stable and monotone (N12).

An account has a place in [0, 100) that only its id and the version's salt decide, so that every process and
every restart agrees, and a roll-out at P percent reaches exactly the places below P. Percentages never fall
(`document` refuses such a file), therefore who was reached stays reached.

A roll-out is a step function: from a step's `at` on its percentage holds, until the next step; before the
first step it is 0. It is not interpolated, so that between two steps nothing changes and verdicts may be
kept.

Rejected: a random draw kept in the ledger (a roll-out must work while Redis is down), and `hash()` (it
differs in each process).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from gateway.policy.model import Step

MAX_SALT_BYTES = 64


def place(account_id: str, salt: str) -> float:
    """Where an account stands in the roll-outs with this salt, evenly spread over [0, 100).

    Raises ValueError where the salt is longer than MAX_SALT_BYTES.
    """
    digest = hashlib.blake2b(account_id.encode(), digest_size=4, key=salt.encode()).digest()
    return int.from_bytes(digest, "big") * 100.0 / 2**32


def percent_at(steps: Sequence[Step], now: float) -> float:
    """What percentage of the accounts a roll-out reaches. One without steps reaches everybody at once."""
    if not steps:
        return 100.0
    for step in reversed(steps):
        if step.at <= now:
            return step.percent
    return 0.0


def reached(account_id: str, salt: str, steps: Sequence[Step], now: float) -> bool:
    percent = percent_at(steps, now)
    return percent >= 100.0 or (percent > 0.0 and place(account_id, salt) < percent)
