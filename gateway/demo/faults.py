"""Which requests of the reference platform go wrong, and how.

Pure: a fault's rate is drawn from its own seed, so that the same requests in the same order go wrong every
time. What each mode means stands in `EFFECTS`; the platform carries it out and decides nothing.
"""

from __future__ import annotations

import random
from enum import StrEnum
from typing import Annotated, Final, Literal, NamedTuple

from msgspec import Meta, Struct

Operation = Literal["create", "start", "end", "attach", "detach", "replace", "list", "directory"]
"""`attach` is that of every surface, `list` a session's products and the addable list, `directory` the
records of accounts, products and sessions."""


class Mode(StrEnum):
    error = "error"
    refuse = "refuse"
    timeout = "timeout"
    apply_then_drop = "apply_then_drop"
    apply_then_error = "apply_then_error"
    drop_then_apply_late = "drop_then_apply_late"
    slow = "slow"
    partial = "partial"


class Effect(NamedTuple):
    """`applies`: when the change is made, `half` being at once, but only the first half of a batch.

    `answers`: the true answer, the true one after the delay, an error (500), a refusal (422), none while the
    client waits (`silence`), or the end of the connection (`drop`).
    """

    applies: Literal["now", "late", "half", "never"]
    answers: Literal["truth", "late_truth", "error", "refusal", "silence", "drop"]


EFFECTS: Final[dict[Mode, Effect]] = {
    Mode.error: Effect("never", "error"),
    Mode.refuse: Effect("never", "refusal"),
    Mode.timeout: Effect("never", "silence"),
    Mode.apply_then_drop: Effect("now", "drop"),
    Mode.apply_then_error: Effect("now", "error"),
    Mode.drop_then_apply_late: Effect("late", "drop"),
    Mode.slow: Effect("now", "late_truth"),
    Mode.partial: Effect("half", "truth"),
}


class Fault(Struct, frozen=True, forbid_unknown_fields=True):
    """What `POST /_platform/faults` takes. `delay_ms` counts for `slow` and `drop_then_apply_late` only."""

    mode: Mode
    operation: Operation | Literal["all"] = "all"
    rate: Annotated[float, Meta(ge=0, le=1)] = 1.0
    delay_ms: Annotated[float, Meta(ge=0, le=600_000)] = 100.0
    seed: int = 0


class FaultPlan:
    """The faults in force: at most one for each operation, and one for all of them."""

    def __init__(self) -> None:
        self._faults: dict[str, tuple[Fault, random.Random]] = {}

    def post(self, fault: Fault) -> None:
        """From now on. Takes the place of an earlier fault for the same operation."""
        self._faults[fault.operation] = (fault, random.Random(fault.seed))

    def clear(self) -> None:
        self._faults.clear()

    def draw(self, operation: Operation) -> Fault | None:
        """The fault that the next request meets: the operation's own is drawn first, then the one for all."""
        if self._faults:
            for key in (operation, "all"):
                if (planned := self._faults.get(key)) is not None:
                    fault, chance = planned
                    if chance.random() < fault.rate:
                        return fault
        return None
