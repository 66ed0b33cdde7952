"""What a request needs on its way: the parts, built once by `serve` and handed to each operation.

A reload swaps `rules` whole, so that a request sees one policy and one set of routes from its beginning to its end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.admission.notes import Notes
from gateway.admission.settle import Settlements
from gateway.directory import Directory
from gateway.identity import Identity
from gateway.ledger.full import FullSessions
from gateway.ledger.steps import Ledger
from gateway.policy.evaluate import Verdicts
from gateway.policy.model import Account, Surface, Verdict
from gateway.reading.body import BodyReader
from gateway.reading.spelling import IdCheck
from gateway.reconciler.doubt import Reconciler
from gateway.reconciler.opening import Opening
from gateway.reconciler.takeover import Takeovers
from gateway.telemetry import Telemetry
from gateway.upstream.pool import Pool


@dataclass
class Gate:
    """The parts of one gateway process. `wall_clock`: seconds since the epoch. `send_within_seconds`: what was recorded
    must have left by then, so that its answer comes, or fails to, while its record is held. `is_id`: whether a text is
    an id."""

    verdicts: Verdicts
    bodies: BodyReader
    identity: Identity
    directory: Directory
    ledger: Ledger
    full: FullSessions
    opening: Opening
    reconciler: Reconciler
    takeovers: Takeovers
    settlements: Settlements
    notes: Notes
    pool: Pool
    telemetry: Telemetry
    wall_clock: Callable[[], float]
    send_within_seconds: float
    is_id: IdCheck

    def evaluate(self, account: Account, surface: Surface, now: float) -> Verdict:
        return self.verdicts.of(account, surface, now)
